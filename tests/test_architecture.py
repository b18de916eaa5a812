"""The layers of the packages: imports go down only, and in no circle; docs/architecture.md draws them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (  # from the top; what stands in a row imports nothing else of its row and nothing above it
    {"converters.__main__", "convnets_torch.__main__"},
    {"convnets_torch.cli"},
    {"convnets_torch.batch"},
    {"convnets_torch.compat"},
    {"convnets_torch.training"},
    {"convnets_torch.evaluation"},
    {"convnets_torch.embeddings"},
    {"convnets_torch.explain", "converters"},
    {"convnets_torch.heatmaps", "convnets_torch.weights"},
    {"convnets_torch.inference"},
    {"convnets_torch.fcn", "convnets_torch.visualization"},
    {"convnets_torch.networks", "convnets_torch.wordnet"},
    {"convnets_torch.card"},
    {"convnets_torch.images"},
    {"convnets_torch.npz", "convnets_torch.safetensors_io"},
    {"convnets_torch.files"},
    {"convnets_torch.text", "convnets_torch.options", "convnets_torch._version"},
)
NAMES = {"convnets_torch.__init__", "convnets_torch._moved"}  # which name what is anywhere, and import it when asked
LOOSE = 12  # modules at the top of convnets_torch, at most


def modules() -> dict[str, Path]:
    paths = (path for name in ("convnets_torch", "converters") for path in (ROOT / name).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}


def imports(module: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules that a module imports, in functions and for types as well."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            wanted = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in wanted:
            places = (name, f"{name}.__init__", name.rpartition(".")[0], f"{name.rpartition('.')[0]}.__init__")
            found = next((place for place in places if place in known), None)
            if found not in (None, module):
                yield found


def arrows() -> dict[str, set[str]]:
    known = modules()
    return {module: set(imports(module, path, known)) for module, path in known.items() if module not in NAMES}


def floor(module: str) -> tuple[int, str]:
    """The row of a module, and which of its places it is in: the longest name that fits."""
    fits = [
        (len(place), row, place)
        for row, places in enumerate(LAYERS)
        for place in places
        if f"{module}.".startswith(f"{place}.")
    ]
    assert fits, f"{module} has no place in LAYERS"
    _, row, place = max(fits)
    return row, place


def test_imports_go_down():
    wrong = []
    for module, found in arrows().items():
        row, place = floor(module)
        for other in found - {"convnets_torch.__init__"}:
            below, its = floor(other)
            if below < row or (below == row and its != place):
                wrong.append(f"{module} imports {other}")
    assert not wrong


def test_few_modules_need_the_list_of_public_names():
    found = {module for module, others in arrows().items() if "convnets_torch.__init__" in others}
    assert found == {"convnets_torch.compat", "convnets_torch.cli.demo"}  # which are programs of a user's kind


def test_there_is_no_circle():
    TopologicalSorter(arrows()).prepare()  # raises CycleError


def test_few_modules_stand_at_the_top():
    assert len(list((ROOT / "convnets_torch").glob("*.py"))) <= LOOSE


def test_networks_need_torch_alone():
    allowed = ("convnets_torch.networks", "convnets_torch.card", "convnets_torch.options")
    for module, found in arrows().items():
        if module.startswith("convnets_torch.networks"):
            assert all(other.startswith(allowed) for other in found), module


@pytest.mark.parametrize("row", range(len(LAYERS)))
def test_every_place_in_the_table_is_there(row):
    known = modules()
    for place in LAYERS[row]:
        assert any(f"{module}.".startswith(f"{place}.") for module in known)

"""What an import costs: facts about fresh processes."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import convnets_torch

ROOT = Path(convnets_torch.__file__).parent
HEAVY = {"torch", "torchvision", "numpy", "PIL", "h5py", "safetensors", "typer", "rich", "matplotlib", "skimage"}


def imported(statement):
    """The packages that a fresh process holds after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import convnets_torch", set()),
        ("import converters", set()),
        ("import convnets_torch.synsets; convnets_torch.class_ids('dog')", set()),
        ("import convnets_torch.card", {"numpy", "PIL"}),
        ("import convnets_torch.cli.app", {"typer", "rich"}),
        ("import converters.tasks", {"h5py", "numpy"}),
        ("import converters.isolation", set()),
        ("import converters.conversion", {"h5py", "numpy", "PIL"}),
        ("import convnets_torch.classification, convnets_torch.weights", {"torch", "numpy", "PIL", "safetensors"}),
        ("import convnets_torch.networks", {"torch", "numpy"}),
        ("import convnets_torch.embeddings.searching", {"numpy", "PIL"}),
    ],
)
def test_an_import_brings_in_no_more_than_it_needs(statement, allowed):
    assert imported(statement) & HEAVY <= allowed


def test_every_public_name_resolves():
    for name in convnets_torch.__all__:
        assert getattr(convnets_torch, name) is not None
    assert set(convnets_torch.__all__) <= set(dir(convnets_torch))
    with pytest.raises(AttributeError, match="has no attribute 'resnet'"):
        convnets_torch.resnet  # noqa: B018


def modules_imported_by(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_imports_go_one_way():
    """cli -> tasks -> weights -> networks, preprocessing; converters -> the library, and never the reverse."""
    foundations = (
        "adoption", "ahead", "allocation", "apart", "networks", "preprocessing", "card", "cache", "decoders",
        "device_pixels", "files", "filling", "fitting", "headers", "images", "inputs", "jpeg", "arrays", "folders",
        "algebra", "labelled", "learnt_pictures", "levels", "npz", "profiles", "runtime", "sentences", "sources",
        "strict_json", "strips", "synsets", "tiff", "weights",
    )  # fmt: skip
    tasks = (
        "backoff", "classification", "compat", "confusions", "engines", "exports", "first_run", "heatmaps",
        "last_layers", "letters", "pipeline", "plots", "render", "targets",
    )  # fmt: skip

    def own(path):
        return {name for name in modules_imported_by(path) if name.startswith(("convnets_torch.", "converters"))}

    for path in (ROOT / "networks").glob("*.py"):
        assert all(name.startswith("convnets_torch.networks") or name == "convnets_torch.card" for name in own(path))
    for path in (ROOT / "maps").glob("*.py"):  # the parts of heatmaps, which imports them
        assert not any(
            name.startswith(("converters", "convnets_torch.cli", "convnets_torch.heatmaps")) for name in own(path)
        )
    for path in (path for name in ("explain", "embeddings", "training") for path in (ROOT / name).glob("*.py")):
        assert not any(name.startswith(("converters", "convnets_torch.cli")) for name in own(path))
    for path in ROOT.glob("*.py"):
        assert path.stem in (*foundations, *tasks, "__init__")  # a new module says where it stands
        if path.stem != "__init__":
            assert not any(name.startswith(("converters", "convnets_torch.cli")) for name in own(path))
        if path.stem in foundations:
            assert not any(name.split(".")[1] in tasks for name in own(path))
    for path in (ROOT.parent / "converters").glob("*.py"):
        if path.stem != "__main__":
            allowed = {"card", "cache", "files", "filling", "networks", "preprocessing", "sentences", "weights"}
            if path.stem in ("doctor", "evidence"):  # which run networks on pictures
                allowed |= {"classification", "folders", "images", "labelled", "targets"}
            assert {name.split(".")[1] for name in own(path) if name.startswith("convnets_torch.")} <= allowed


def test_types_are_checked_for_the_same_names_that_resolve():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    lines = [line for line in block.body if isinstance(line, ast.ImportFrom)]
    imported = {(line.module, alias.name) for line in lines for alias in line.names}
    assert imported == {(home, name) for home, names in convnets_torch._HOMES.items() for name in names}

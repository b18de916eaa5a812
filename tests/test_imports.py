"""What an import costs: facts about fresh processes."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import convnets_torch
from convnets_torch._moved import MODULES

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
        ("import convnets_torch.wordnet.synsets; convnets_torch.class_ids('dog')", set()),
        ("import convnets_torch.card", {"numpy", "PIL"}),
        ("import convnets_torch.cli.app", {"typer", "rich"}),
        ("from converters.readers import process; process._tasks()", {"h5py", "numpy"}),
        ("import converters.readers.process", set()),
        ("import converters.conversion", {"h5py", "numpy", "PIL"}),
        (
            "import convnets_torch.inference.classification, convnets_torch.weights",
            {"torch", "numpy", "PIL", "safetensors"},
        ),
        ("import convnets_torch.networks", {"torch", "numpy"}),
        ("import convnets_torch.embeddings.search", {"numpy", "PIL"}),
    ],
)
def test_an_import_brings_in_no_more_than_it_needs(statement, allowed):
    assert imported(statement) & HEAVY <= allowed


def test_every_public_name_resolves():
    for name in convnets_torch.__all__:
        assert getattr(convnets_torch, name) is not None
    assert set(convnets_torch.__all__) <= set(dir(convnets_torch))
    with pytest.raises(AttributeError, match="has no attribute 'resnet'"):
        convnets_torch.resnet  # type: ignore[attr-defined]  # noqa: B018


def test_names_of_the_first_version_still_resolve():
    """Those that moved warn and say where they are now, and there they are the same."""
    for name in (Path(__file__).parent / "data" / "names_0.1.txt").read_text().split():
        if name in convnets_torch.__all__:
            continue
        with pytest.warns(DeprecationWarning, match=rf"convnets_torch\.{name} is now \S+;") as caught:
            found = getattr(convnets_torch, name)
        place, _, present = str(caught[0].message).split()[3].rstrip(";").rpartition(".")
        assert found is getattr(import_module(place), present)
        assert present == name or name in ("Judged", "Reports", "Watch", "judge")
        assert caught[0].filename == __file__


def test_modules_of_the_first_version_are_found_where_they_are_now():
    code = "import warnings; warnings.simplefilter('error'); import convnets_torch.{}"
    for name, place in MODULES.items():
        sys.modules.pop(f"convnets_torch.{name}", None)
        with pytest.warns(DeprecationWarning, match=rf"convnets_torch\.{name} is now {place};"):
            assert import_module(f"convnets_torch.{name}") is import_module(place)
    with pytest.raises(ModuleNotFoundError, match=r"convnets_torch\.rendering"):
        import_module("convnets_torch.rendering")
    done = subprocess.run([sys.executable, "-c", code.format("runtime")], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert '"<string>", line 1' in done.stderr  # the warning is of the line that imports
    assert "convnets_torch.runtime is now convnets_torch.inference.prepare" in done.stderr

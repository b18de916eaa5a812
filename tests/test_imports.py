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
        ("import converters.keras_h5", {"h5py", "numpy"}),
        ("import convnets_torch.classification, convnets_torch.weights", {"torch", "numpy", "PIL", "safetensors"}),
        ("import convnets_torch.networks", {"torch", "numpy"}),
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
    """networks know nothing of the rest; the library knows converters and the command line only lazily."""
    for path in (ROOT / "networks").glob("*.py"):
        own = {name for name in modules_imported_by(path) if name.startswith(("convnets_torch", "converters"))}
        assert all(name.startswith("convnets_torch.networks") or name == "convnets_torch.card" for name in own)
    for path in ROOT.glob("*.py"):
        names = set(modules_imported_by(path))
        assert not any(name.startswith("convnets_torch.cli") for name in names)
        if path.name not in ("__init__.py", "first_run.py"):
            assert not any(name.startswith("converters") for name in names)

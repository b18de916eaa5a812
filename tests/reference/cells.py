"""Maps and cells drawn from a seed, and what a page says about them, derived again from the definitions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from convnets_torch.visualization.pages import Cells, MapLayer

NAMES = {7: "cock", 65_000: "tabby, tabby cat", 3: "tiger shark", 281: "espresso", 90: "pinwheel", 12: "house finch"}


def windows(count: int, stride: float, size: float) -> NDArray[np.float64]:
    """(count, 2): first and end of windows of `size` pixels, `stride` apart."""
    first = np.arange(count) * stride
    return np.stack([first, first + size], axis=1)


def draw_cells(seed: int, rows: int, columns: int, stride: tuple[float, float], size: float, best: int = 5) -> Cells:
    """Cells whose five best classes are six in random order, and whose receptive fields reach 20.5 pixels further."""
    random = np.random.RandomState(seed)
    down, across = (windows(count, step, size) for count, step in zip((rows, columns), stride, strict=True))
    order = random.rand(rows, columns, len(NAMES)).argsort(axis=2)[..., :best]
    chances = (np.sort(random.rand(rows, columns, best), axis=2)[..., ::-1] / best).astype(np.float32)
    beyond = [-20.5, 20.5]
    return Cells(down, across, down + beyond, across + beyond, np.array(list(NAMES))[order], chances, dict(NAMES))


def draw_map(seed: int, rows: int, columns: int, least: float = 0.0, most: float = 1.0) -> NDArray[np.float32]:
    """(rows, columns) float32, smooth enough for regions of several cells."""
    noise = ndimage.gaussian_filter(np.random.RandomState(seed).rand(rows, columns), 0.8)
    return (least + (most - least) * (noise - noise.min()) / np.ptp(noise)).astype(np.float32)


def nearest(boxes: NDArray[np.float64], pixel: int) -> int:
    """Which window's centre is nearest to the centre of a pixel."""
    return int(np.abs(boxes.mean(axis=1) - (pixel + 0.5)).argmin())


def boxes_of(cells: Cells, row: int, column: int) -> list[list[float]]:
    """Left, top, right, bottom of a cell's window and of its receptive field."""
    kinds = ((cells.window_rows, cells.window_columns), (cells.field_rows, cells.field_columns))
    return [np.stack([across[column], down[row]], axis=1).ravel().tolist() for down, across in kinds]


def regions(layer: MapLayer, cells: Cells, size: tuple[int, int], threshold: float) -> list[list[float]]:
    """Score, left, top, right, bottom of the regions above a threshold, the highest score first."""
    labels, count = ndimage.label(layer.values > np.float32(threshold), np.ones((3, 3)))
    found = []
    for label in range(1, count + 1):
        inside = np.argwhere(labels == label)
        down, across = cells.window_rows[inside[:, 0]], cells.window_columns[inside[:, 1]]
        box = [across.min(), down.min(), across.max(), down.max()]
        clipped = np.clip(box, 0, [size[1], size[0], size[1], size[0]])
        found.append([float(layer.values[labels == label].max()), *clipped.tolist()])
    return sorted(found, reverse=True)


def overlay(layer: MapLayer, cells: Cells, size: tuple[int, int], shape: tuple[int, int]) -> NDArray[np.float64]:
    """(h, w, 2): the layer's value at each of `shape` pixels over the picture, and how it fades towards the borders."""
    parts = []
    for boxes, extent, count in zip((cells.window_rows, cells.window_columns), size, shape, strict=True):
        place = (np.arange(count) + 0.5) * extent / count
        centres = boxes.mean(axis=1)
        weights = np.stack([np.interp(place, centres, column) for column in np.eye(len(centres))])
        fade = np.interp(place, [boxes[0, 0], centres[0], centres[-1], boxes[-1, 1]], [0, 1, 1, 0])
        parts.append((weights, fade))
    (down, fade_down), (across, fade_across) = parts
    return np.stack([down.T @ layer.values @ across, fade_down[:, None] * fade_across], axis=2)

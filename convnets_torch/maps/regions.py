"""Regions of a map: cells above a threshold that touch, as boxes with scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Box(NamedTuple):
    """A rectangle in pixels of the picture: columns left to right, rows top to bottom, the ends excluded."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Region:
    """Cells above a threshold that touch each other.

    Attributes:
        box: what their windows cover together, cut at the picture's borders.
        score: the highest value of its cells.
        peak: (row, column) of that cell.
        cells: how many there are.
    """

    box: Box
    score: float
    peak: tuple[int, int]
    cells: int


def components(above: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """The cells of each connected component, (cells, 2) of row and column; cells touch at sides and at corners.

    >>> [len(cells) for cells in components(np.array([[1, 0, 0, 1], [0, 1, 0, 1]], bool))]
    [2, 2]
    """
    left = {(int(row), int(column)) for row, column in zip(*np.nonzero(above), strict=True)}
    found = []
    while left:
        edge = [left.pop()]
        cells = []
        while edge:
            row, column = edge.pop()
            cells.append((row, column))
            for near in [(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)]:
                if near in left:
                    left.remove(near)
                    edge.append(near)
        found.append(np.array(sorted(cells)))
    return found


def check_threshold(threshold: float) -> None:
    """Raise ValueError when a threshold is not a number."""
    if not np.isfinite(threshold):
        raise ValueError(f"the threshold is {threshold}; give a number, 0 to 1 for probabilities")


def find_regions(
    values: NDArray[np.float32], threshold: float, boxes: NDArray[Any], size: tuple[int, int]
) -> list[Region]:
    """The regions of a map, the highest score first.

    Args:
        values: (rows, columns).
        threshold: cells above it belong to regions.
        boxes: (rows, columns, 4), each cell's window: left, top, right, bottom in pixels of the picture.
        size: (height, width) of the picture in pixels.

    Raises:
        ValueError: the threshold is not a number.
    """
    check_threshold(threshold)
    regions = []
    for cells in components(values > np.float32(threshold)):
        rows, columns = cells.T
        windows = boxes[rows, columns]
        left, top = (max(0.0, float(windows[:, side].min())) for side in (0, 1))
        right, bottom = (min(float(size[1 - side]), float(windows[:, 2 + side].max())) for side in (0, 1))
        best = int(values[rows, columns].argmax())
        peak = (int(rows[best]), int(columns[best]))
        regions.append(Region(Box(left, top, right, bottom), float(values[peak]), peak, len(cells)))
    return sorted(regions, key=lambda region: (-region.score, region.peak))

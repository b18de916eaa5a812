"""Values between cells."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float32]
Resampling = Literal["nearest", "bilinear", "bicubic"]


def interpolated(values: Values, places: NDArray[Any], axis: int, interpolation: Resampling = "bilinear") -> Values:
    """Values at places between cells along one axis, the outermost ones going on beyond.

    Args:
        values: (rows, columns).
        places: numbers of cells, such as 1.5.
        axis: 0 for rows, 1 for columns.
        interpolation: "bicubic" is Catmull-Rom's.
    """
    cells = values.shape[axis]
    places = np.clip(places, 0, cells - 1)
    if interpolation == "nearest":
        return values.take(np.ceil(places - 0.5).astype(np.int64), axis)
    before = np.minimum(places.astype(np.int64), max(cells - 2, 0))
    beyond = places - before
    if interpolation == "bilinear":
        weights = [1 - beyond, beyond]
        first = 0
    else:
        t, t2, t3 = beyond, beyond**2, beyond**3
        weights = [(2 * t2 - t - t3) / 2, (3 * t3 - 5 * t2 + 2) / 2, (4 * t2 + t - 3 * t3) / 2, (t3 - t2) / 2]
        first = -1
    shape = (-1, 1) if axis == 0 else (1, -1)
    total = np.zeros((1, 1), np.float32)
    for number, weight in enumerate(weights, start=first):
        near = values.take(np.clip(before + number, 0, cells - 1), axis)
        total = total + near * weight.astype(np.float32).reshape(shape)
    return total

"""Where the cells of a map lie over a picture, in the picture's own pixels."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnets_torch.maps.regions import Box
from convnets_torch.preprocessing import Interpolation, Pair

# How far Pillow's filters reach, in pixels of the larger of both pictures.
REACH = {"bilinear": 1.0, "bicubic": 2.0}


@dataclass(frozen=True)
class Placement:
    """A grid of cells over a picture that was perhaps resized before the network saw it.

    Attributes:
        size: (height, width) of the picture in pixels.
        seen: (height, width) of what the network saw.
        stride_seen: pixels between neighbouring cells, in what the network saw.
        window_seen: (height, width) of a window, in what the network saw.
        rows_seen: for each row of cells the first row of pixels that they see, and the one after the last, in what the
            network saw.
        columns_seen: likewise.
        interpolation: the filter with which the picture was resized.
    """

    size: Pair
    seen: Pair
    stride_seen: int
    window_seen: Pair
    rows_seen: tuple[Pair, ...]
    columns_seen: tuple[Pair, ...]
    interpolation: Interpolation = "bilinear"

    @property
    def scale(self) -> tuple[float, float]:
        """(vertical, horizontal) pixels of the picture for one that the network saw."""
        return (self.size[0] / self.seen[0], self.size[1] / self.seen[1])

    @property
    def stride(self) -> tuple[float, float]:
        """(vertical, horizontal) pixels of the picture between neighbouring cells."""
        return (self.stride_seen * self.scale[0], self.stride_seen * self.scale[1])

    @property
    def window_size(self) -> tuple[float, float]:
        """(height, width) of a window in pixels of the picture."""
        return (self.window_seen[0] * self.scale[0], self.window_seen[1] * self.scale[1])

    @property
    def shape(self) -> Pair:
        """(rows, columns) of cells."""
        return (len(self.rows_seen), len(self.columns_seen))

    def windows(self, axis: int) -> NDArray[np.float64]:
        """(count, 2): where the windows of each row (axis 0) or column (axis 1) begin and end."""
        begin = np.arange(self.shape[axis]) * self.stride[axis]
        return np.stack([begin, begin + self.window_size[axis]], axis=1)

    def fields(self, axis: int) -> NDArray[np.float64]:
        """(count, 2): the first pixel that the cells of a row or column see, and the one after the last."""
        seen = (self.rows_seen, self.columns_seen)[axis]
        return np.array([self._source_pixels(axis, first, end - 1) for first, end in seen], np.float64)

    def _source_pixels(self, axis: int, first: int, last: int) -> tuple[int, int]:
        """Pixels of the picture that those from `first` to `last`, as the network saw them, were made of."""
        scale = self.scale[axis]
        if self.size[axis] == self.seen[axis]:
            return (first, last + 1)
        reach = REACH.get(self.interpolation)
        middle, end = (first + 0.5) * scale, (last + 0.5) * scale
        if reach is None:  # the nearest pixel
            return (floor(middle), floor(end) + 1)
        reach *= max(scale, 1.0)
        return (max(0, floor(middle - reach + 0.5)), min(self.size[axis], floor(end + reach + 0.5)))

    def box(self, row: int, column: int) -> Box:
        """The window of a cell."""
        (height, width), (down, right) = self.window_size, self.stride
        return Box(column * right, row * down, column * right + width, row * down + height)

    def nearest(self, x: float, y: float) -> Pair:
        """(row, column) of the cell whose window has its centre nearest to the centre of a pixel."""
        places = (
            np.ceil((place + 0.5 - size / 2) / stride - 0.5)  # of two as near, the first
            for place, size, stride in zip((y, x), self.window_size, self.stride, strict=True)
        )
        row, column = (int(np.clip(place, 0, count - 1)) for place, count in zip(places, self.shape, strict=True))
        return (row, column)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON can hold them."""
        return asdict(self)

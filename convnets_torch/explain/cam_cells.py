"""Where the cells of a layer lie over a picture of which the network saw a part."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnets_torch.card import Card
from convnets_torch.explain.layers import layer_fields
from convnets_torch.maps.regions import Box
from convnets_torch.maps.resampling import interpolated
from convnets_torch.networks import Network
from convnets_torch.preprocessing import Pair, cropped_box

Values = NDArray[np.float32]


@dataclass(frozen=True)
class CamCells:
    """The cells of a layer over a picture.

    Attributes:
        size: (height, width) of the picture in pixels.
        seen: the part of it that the network saw, in pixels of the picture.
        seen_size: (height, width) in pixels at which the network saw that part.
        shape: (rows, columns) of cells.
        first: (vertical, horizontal) centre of the first cell, in pixels that the network saw.
        apart: (vertical, horizontal) pixels that the network saw between neighbouring centres.
    """

    size: Pair
    seen: Box
    seen_size: Pair
    shape: Pair
    first: tuple[float, float]
    apart: tuple[float, float]

    @property
    def scale(self) -> tuple[float, float]:
        """(vertical, horizontal) pixels of the picture for one that the network saw."""
        left, top, right, bottom = self.seen
        return ((bottom - top) / self.seen_size[0], (right - left) / self.seen_size[1])

    def centres(self, axis: int) -> NDArray[np.float64]:
        """Where the centres of rows (axis 0) or columns (axis 1) are, in pixels of the picture.

        It is the centre of the receptive field, which some networks shift by up to half the distance of the cells.
        """
        begin = (self.seen.top, self.seen.left)[axis]
        places = self.first[axis] + np.arange(self.shape[axis], dtype=np.float64) * self.apart[axis]
        return np.asarray(begin + places * self.scale[axis], np.float64)

    def boxes(self) -> NDArray[np.float64]:
        """(rows, columns, 4): what is nearest to each cell, cut at what the network saw.

        Left, top, right, bottom in pixels of the picture.
        """
        edges = []
        for axis, begin, end in ((0, self.seen.top, self.seen.bottom), (1, self.seen.left, self.seen.right)):
            half = self.apart[axis] * self.scale[axis] / 2
            centres = self.centres(axis)
            spans = np.stack([centres - half, centres + half], axis=1)
            spans[0, 0], spans[-1, 1] = begin, end  # the outermost cells reach to the border
            edges.append(np.clip(spans, begin, end))
        down, across = edges[0][:, None], edges[1][None]
        sides = (across[..., 0], down[..., 0], across[..., 1], down[..., 1])
        return np.stack([np.broadcast_to(side, self.shape) for side in sides], axis=-1)

    def at_picture_size(self, values: Values) -> Values:
        """Values (rows, columns) between the centres on the pixels of the picture, zero where nothing was seen.

        Returns:
            (H, W) for the picture's height and width.
        """
        left, top, right, bottom = self.seen
        for axis, begin, end in ((0, top, bottom), (1, left, right)):
            pixels = np.arange(self.size[axis]) + 0.5
            centres = self.centres(axis)
            values = interpolated(values, (pixels - centres[0]) / (self.apart[axis] * self.scale[axis]), axis)
            outside = (pixels < begin) | (pixels > end)
            values = np.where(outside[:, None] if axis == 0 else outside, np.float32(0), values)
        return values

    def at_seen_size(self, values: Values) -> Values:
        """Values (rows, columns) on the pixels that the network saw, (h, w)."""
        for axis in (0, 1):
            pixels = np.arange(self.seen_size[axis]) + 0.5
            values = interpolated(values, (pixels - self.first[axis]) / self.apart[axis], axis)
        return values

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON can hold them."""
        return {**asdict(self), "seen": self.seen._asdict()}


def cam_cells(network: Network, layer: str, shape: Pair, card: Card, size: Pair) -> CamCells:
    """Where the cells of a layer lie over a picture.

    Cells stand at the centres of their receptive fields where the layer is one of `features` that can be followed;
    otherwise they share what was seen evenly.

    Args:
        network: that saw the picture.
        layer: name of the module.
        shape: (rows, columns) of its output.
        card: of the weights, whose preprocessing says what was seen.
        size: (height, width) of the picture in pixels.
    """
    seen_size = card.preprocessing.shape
    fields = layer_fields(network).get(layer)
    if fields is None:
        apart = (seen_size[0] / shape[0], seen_size[1] / shape[1])
        first = (apart[0] / 2, apart[1] / 2)
    else:
        first = (fields[0].start + fields[0].size / 2, fields[1].start + fields[1].size / 2)
        apart = (float(fields[0].stride), float(fields[1].stride))
    return CamCells(size, Box(*cropped_box(size, card.preprocessing)), seen_size, shape, first, apart)

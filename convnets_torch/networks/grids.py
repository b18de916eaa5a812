"""Where cells lie over the pixels: how many there are, how far apart, and which pixels each one sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from convnets_torch.networks.network import NO_HEAD, Network, as_network
from convnets_torch.networks.sliding import slide
from convnets_torch.networks.steps import Pair, Step, Window, steps_of


class Field(NamedTuple):
    """The pixels that cells see along one axis: cell i sees start + i * stride up to that plus `size`, excluded.

    They may lie outside of the picture, where padding stands for them.
    """

    start: int
    size: int
    stride: int


@dataclass(frozen=True)
class Grid:
    """The cells of a network's map at one stride.

    Attributes:
        steps: from images to logits, the last one being the head, or to the feature map alone.
        vertical, horizontal: what the cells see.
        dilation: distance in cells of the feature map between the cells that the head reads.
    """

    steps: tuple[Step, ...]
    vertical: Field
    horizontal: Field
    dilation: int

    @property
    def stride(self) -> int:
        """Pixels between neighbouring cells."""
        return self.vertical.stride

    def shape(self, height: int, width: int) -> Pair:
        """(rows, columns) of the map of images of so many pixels; 0 where they are too small."""
        return (count(self.steps, height, 0), count(self.steps, width, 1))

    def seen(self, side: int, axis: int) -> tuple[Pair, ...]:
        """For each row of cells (axis 0) or column (axis 1): the first pixel that it sees, and the one after the last.

        Exactly: what a pool leaves over at the end of a side is seen by nobody.

        Args:
            side: pixels of the images along the axis.
        """
        sides = _sides(self.steps, side, axis)
        begin, end = np.arange(sides[-1]), np.arange(sides[-1])  # the first and the last cell, of every step's map
        reached: list[tuple[NDArray[np.int64], NDArray[np.int64]] | None] = [None] * len(self.steps)
        reached[-1] = (begin, end)
        for number in reversed(range(1, len(self.steps))):
            step, cells = self.steps[number], reached[number]
            if cells is None:
                continue
            window = step.window
            before = window.padding[2 * axis]
            for source in step.inputs:
                first = cells[0] * window.stride[axis] - before
                last = cells[1] * window.stride[axis] - before + window.reach(axis) - 1
                first, last = (np.clip(each, 0, sides[source] - 1) for each in (first, last))
                known = reached[source]
                reached[source] = (first, last) if known is None else (
                    np.minimum(known[0], first), np.maximum(known[1], last)
                )  # fmt: skip
        pixels = reached[0]
        assert pixels is not None
        return tuple(zip(pixels[0].tolist(), (pixels[1] + 1).tolist(), strict=True))


def grid_of(network: Network, cell_stride: int | None = None) -> Grid:
    """The cells of a network's map, at its own stride or at a smaller one.

    For a smaller one the last strides are removed, of convolutions and pools alike, and what follows is dilated, so
    that a layer reads the same cells as before: on every (stride / cell_stride)-th row and column the map is the same.

    Args:
        network: with a head.
        cell_stride: pixels between neighbouring cells; one of `cell_strides(network)`, None for the network's own.

    Raises:
        ValueError: the network has no head, cannot give this stride, or holds a layer that is not known.

    Source: Fully Convolutional Networks for Semantic Segmentation, arXiv:1411.4038, section 3.2 (the a trous trick).

    >>> from convnets_torch.networks import vgg16
    >>> narrow = vgg16(classes=10, widths=(2, 2, 4, 4, 4), hidden=(8, 8))
    >>> grid_of(narrow).vertical, grid_of(narrow, 8).vertical
    (Field(start=-90, size=404, stride=32), Field(start=-90, size=404, stride=8))
    """
    if network.head is None:
        raise ValueError(NO_HEAD)
    steps = steps_of(network.features)
    if cell_stride is not None and cell_stride != network.stride:
        known = cell_strides(network)
        if cell_stride not in known:
            raise ValueError(
                f"a cell stride of {cell_stride} pixels cannot be had from {type(network).__name__}; it gives"
                f" {', '.join(map(str, known))}"
            )
        steps = _densified(steps, cell_stride)
    own = fields(steps)[0]
    dilation = network.stride // own.stride
    head, window = network.head, network.window

    def sliding_head(cells):  # type: ignore[no-untyped-def]
        return slide(head, cells, window, dilation)

    last = Step("head", "head", (len(steps) - 1,), sliding_head, Window(window, (1, 1), (dilation, dilation)))
    steps = (*steps, last)
    vertical, horizontal = fields(steps)
    if vertical.stride != horizontal.stride:
        raise ValueError(
            f"the cells are {vertical.stride} pixels apart vertically and {horizontal.stride} horizontally"
        )
    return Grid(steps, vertical, horizontal, dilation)


def features_grid(network: Network) -> Grid:
    """The cells of a network's feature map, whether it has a head or not.

    >>> from convnets_torch.networks import vgg16
    >>> features_grid(vgg16(None, widths=(2, 2, 4, 4, 4))).vertical
    Field(start=-90, size=212, stride=32)
    """
    steps = steps_of(network.features)
    vertical, horizontal = fields(steps)
    return Grid(steps, vertical, horizontal, 1)


def cell_strides(network: Network) -> tuple[int, ...]:
    """The strides that a network's map can have, its own first, in pixels.

    >>> from convnets_torch.networks import AlexNet
    >>> cell_strides(AlexNet())
    (32, 16, 8, 4, 1)
    """
    features = as_network(network).features
    return tuple(sorted({field.stride for field, _ in all_fields(steps_of(features))}, reverse=True))


def fields(steps: Sequence[Step]) -> tuple[Field, Field]:
    """What a cell of the last step's map sees, vertically and horizontally."""
    return all_fields(steps)[-1]


def count(steps: Sequence[Step], side: int, axis: int) -> int:
    """Cells of the last step's map along a side of so many pixels."""
    return _sides(steps, side, axis)[-1]


def _sides(steps: Sequence[Step], side: int, axis: int) -> list[int]:
    """Cells of each step's map along a side of so many pixels."""
    sides: list[int] = []
    for step in steps:
        below = [sides[each] for each in step.inputs] or [side]
        sides.append(step.window.count(min(below), axis) if min(below) > 0 else 0)
    return sides


def all_fields(steps: Sequence[Step]) -> list[tuple[Field, Field]]:
    """What a cell of each step's map sees, vertically and horizontally."""
    found: list[tuple[Field, Field]] = []
    for step in steps:
        if step.kind == "images":
            found.append((Field(0, 1, 1), Field(0, 1, 1)))
            continue
        axes = []
        for axis in (0, 1):
            below = [found[each][axis] for each in step.inputs]
            if len({field.stride for field in below}) > 1:
                raise ValueError(f"{step.name} joins branches of different strides")
            start, stride = min(field.start for field in below), below[0].stride
            size = max(field.start + field.size for field in below) - start
            window = step.window
            axes.append(
                Field(
                    start - window.padding[2 * axis] * stride,
                    size + (window.reach(axis) - 1) * stride,
                    stride * window.stride[axis],
                )
            )
        found.append((axes[0], axes[1]))
    return found


def _densified(steps: Sequence[Step], cell_stride: int) -> tuple[Step, ...]:
    """The same steps with strides only up to `cell_stride`, and dilated from there on."""
    dense: list[Step] = []
    rates: list[Pair] = []  # how many times denser than before each step's map is
    strides: list[Pair] = []  # pixels between its cells
    for step in steps:
        below = step.inputs[0] if step.inputs else None
        rate, apart = ((1, 1), (1, 1)) if below is None else (rates[below], strides[below])
        window = step.window
        kept = [
            own if pixels * own <= cell_stride and times == 1 else 1
            for own, pixels, times in zip(window.stride, apart, rate, strict=True)
        ]
        top, bottom, left, right = window.padding
        dense.append(
            replace(
                step,
                window=Window(
                    window.kernel,
                    (kept[0], kept[1]),
                    (window.dilation[0] * rate[0], window.dilation[1] * rate[1]),
                    (top * rate[0], bottom * rate[0], left * rate[1], right * rate[1]),
                ),
            )
        )
        rates.append((rate[0] * window.stride[0] // kept[0], rate[1] * window.stride[1] // kept[1]))
        strides.append((apart[0] * kept[0], apart[1] * kept[1]))
    return tuple(dense)

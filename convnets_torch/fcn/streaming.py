"""Run traced ops on blocks of rows: the same map as in one pass, without holding all of it in memory.

Each layer that reads a window keeps the last rows of its input that later windows still need, and returns rows of its
own map as soon as they are complete. Nothing is computed twice, so blocks need no overlap, and the borders are those
of one pass: padding rows come before the first block and after the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convnets_torch.fcn.graph import Op, Window
from convnets_torch.networks import layers as own
from convnets_torch.networks.packed import PackedConv2d
from convnets_torch.networks.quantized import QuantizedConv2d

WINDOWED_KINDS = ("conv", "max", "average", "pad", "head")


class Stream:
    """Ops that process images block by block.

    >>> from torch import nn
    >>> from convnets_torch.fcn.graph import trace_ops
    >>> layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    >>> images = torch.randn(1, 3, 11, 8)
    >>> stream = Stream(trace_ops(layers))
    >>> blocks = [stream.push(images[:, :, :4]), stream.push(images[:, :, 4:], last=True)]
    >>> [tuple(block.shape) for block in blocks]
    [(1, 4, 1, 4), (1, 4, 4, 4)]
    >>> torch.testing.assert_close(torch.cat(blocks, dim=2), layers(images))
    """

    def __init__(self, ops: Sequence[Op]) -> None:
        self._ops = ops
        self._readers = [sum(op.inputs.count(number) for op in ops) for number in range(len(ops))]
        self._rows = [_RowBuffer(op.window) if op.kind in WINDOWED_KINDS else None for op in ops]
        self._waiting: list[list[Tensor | None]] = [[None] * len(op.inputs) for op in ops]

    def push(self, block: Tensor, *, last: bool = False) -> Tensor | None:
        """Process the next rows of the images, (N, C, rows, W), and return the completed rows of the map, if any."""
        maps: list[Tensor | None] = []
        left = list(self._readers)
        for number, op in enumerate(self._ops):
            below = []
            for each in op.inputs:
                below.append(maps[each])
                left[each] -= 1
                if not left[each]:  # free the map after its last reader
                    maps[each] = None
            maps.append(block if op.kind == "images" else self._run_op(number, op, below, last))
            if not number:
                del block
        return maps[-1]

    def _run_op(self, number: int, op: Op, below: list[Tensor | None], last: bool) -> Tensor | None:
        if op.kind in ("merge", "cat"):
            return self._join(number, op, below)
        if (rows := self._rows[number]) is not None:
            padded = rows.take(below, last, fill=-torch.inf if op.kind == "max" else 0.0)
            return None if padded is None else _run_layer(op, padded)
        cells = below.pop()
        return None if cells is None or op.layer is None else op.layer(cells)

    def _join(self, number: int, op: Op, below: list[Tensor | None]) -> Tensor | None:
        """Join the rows that all branches have; a branch that is ahead keeps its other rows for later."""
        waiting = self._waiting[number]
        for place, block in enumerate(below):
            if block is not None:
                kept = waiting[place]
                waiting[place] = block if kept is None else torch.cat([kept, block], dim=2)
        del below
        complete = [block for block in waiting if block is not None]
        if len(complete) < len(waiting):
            return None
        rows = min(block.shape[2] for block in complete)
        ready = [block[:, :, :rows] for block in complete]
        # clone, since a view would keep the whole block in memory
        self._waiting[number] = [block[:, :, rows:].clone() if block.shape[2] > rows else None for block in complete]
        return torch.cat(ready, dim=1) if op.layer is None else op.layer(*ready)


@dataclass
class _Padded:
    """Rows of a map, with padding above and below, for a whole number of windows.

    Attributes:
        cells: (N, C, rows, W), without padding at the sides.
        around: (top, bottom) padding rows still missing from `cells`; nonzero only if `cells` is the whole map.
        real: (first, end) rows of `cells` that belong to the map itself; the others are padding.
    """

    cells: Tensor
    around: tuple[int, int]
    real: tuple[int, int]


class _RowBuffer:
    """Buffer of a layer's input rows that are still needed; rows are counted from the top padding."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._kept: Tensor | None = None
        self._first = 0  # padded index of the first row of `_kept`
        self._end = 0  # padded index after the last row received
        self._given = 0  # rows of the map itself received
        self._output = 0  # next row of windows

    def take(self, below: list[Tensor | None], last: bool, fill: float) -> _Padded | None:
        """Add rows and return the rows that complete windows read; `below` is emptied so that it keeps no reference."""
        block = below.pop()
        window, top, bottom = self._window, *self._window.padding[:2]
        if block is None and (self._kept is None or not last):
            return None
        if self._kept is None and block is not None:
            if last:  # the whole map at once: the layer itself pads
                complete = window.count(block.shape[2], 0) > 0
                return _Padded(block, (top, bottom), (0, block.shape[2])) if complete else None
            self._kept, self._end = _constant_rows(block, top, fill), top
        assert self._kept is not None
        pieces = [self._kept]
        if block is not None:
            self._given += block.shape[2]
            self._end += block.shape[2]
            pieces.append(block)
        if last:
            pieces.append(_constant_rows(self._kept, bottom, fill))
            self._end += bottom
        del block
        self._kept = None
        pieces = [piece for piece in pieces if piece.shape[2]] or pieces[:1]
        cells = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)
        pieces.clear()
        first, begin = self._first, self._output * window.stride[0]
        outputs = max(0, (self._end - window.reach(0)) // window.stride[0] + 1 - self._output)
        self._output += outputs
        self._first = min(self._output * window.stride[0], self._end)
        if not last:  # clone, since a view would keep the whole block in memory
            self._kept = cells[:, :, self._first - first :].clone()
        if not outputs:
            return None
        until = begin + (outputs - 1) * window.stride[0] + window.reach(0)
        real = (max(0, top - begin), min(until, top + self._given) - begin)
        return _Padded(cells[:, :, begin - first : until - first], (0, 0), real)


def _constant_rows(sample: Tensor, rows: int, fill: float) -> Tensor:
    """Return constant rows in the memory format of `sample`, so that concatenation preserves it."""
    batch, channels, _, width = sample.shape
    if sample.stride(1) == 1:  # channels last
        return sample.new_full((batch, rows, width, channels), fill).permute(0, 3, 1, 2)
    return sample.new_full((batch, channels, rows, width), fill)


def _run_layer(op: Op, padded: _Padded) -> Tensor:
    """Apply the layer to complete rows, padding the sides."""
    window, cells = op.window, padded.cells
    (top, bottom), (left, right) = padded.around, window.padding[2:]
    if op.kind == "head" and op.layer is not None:
        return op.layer(cells)
    if op.kind == "pad":
        return F.pad(cells, (left, right, top, bottom))
    if op.kind == "average":
        return _average_pool(op, padded)
    if op.kind == "conv":
        layer = op.layer
        assert isinstance(layer, nn.Conv2d | PackedConv2d)
        if top == bottom and left == right:
            padding = (top, left)
        else:
            cells, padding = F.pad(cells, (left, right, top, bottom)), (0, 0)
        if isinstance(layer, PackedConv2d | QuantizedConv2d):
            return layer.convolve(cells, window.stride, padding, window.dilation)
        return F.conv2d(cells, layer.weight, layer.bias, window.stride, padding, window.dilation, layer.groups)
    if window.dilation == (1, 1) and top == bottom and left == right and top in (0, left):
        return F.max_pool2d(cells, window.kernel, window.stride, (top, left))
    cells = F.pad(cells, (left, right, top, bottom), value=-torch.inf)
    return F.max_pool2d(cells, window.kernel, window.stride, 0, window.dilation)


def _average_pool(op: Op, padded: _Padded) -> Tensor:
    """Average pooling with optional dilation: sums over rows, then columns, divided by the number of cells counted."""
    layer, window, cells = op.layer, op.window, padded.cells
    assert isinstance(layer, nn.AvgPool2d | own.AvgPool2d)
    (top, bottom), (left, right) = padded.around, window.padding[2:]
    if isinstance(layer, nn.AvgPool2d) and window.dilation == (1, 1) and (top, bottom) == window.padding[:2]:
        counted = (layer.count_include_pad, layer.divisor_override)
        return F.avg_pool2d(cells, window.kernel, window.stride, (top, left), False, *counted)
    real = torch.zeros(cells.shape[2] + top + bottom), torch.zeros(cells.shape[3] + left + right)
    real[0][top + padded.real[0] : top + padded.real[1]] = 1
    real[1][left : left + cells.shape[3]] = 1
    cells = F.pad(cells, (left, right, top, bottom))
    cells = _sums(_sums(cells, window, 0), window, 1)
    if layer.divisor_override or layer.count_include_pad:
        return cells / (layer.divisor_override or window.kernel[0] * window.kernel[1])
    counts = _sums(real[0].view(1, 1, -1, 1), window, 0) * _sums(real[1].view(1, 1, 1, -1), window, 1)
    return cells / counts.to(dtype=cells.dtype, device=cells.device)


def _sums(cells: Tensor, window: Window, axis: int) -> Tensor:
    """Sum over windows along one axis."""
    apart, stride = window.dilation[axis], window.stride[axis]
    outputs = (cells.shape[2 + axis] - window.reach(axis)) // stride + 1
    every = (slice(None),) * (2 + axis) + (slice(None, None, stride),)
    shifted = (
        cells.narrow(2 + axis, place * apart, (outputs - 1) * stride + 1)[every] for place in range(window.kernel[axis])
    )
    total = next(shifted).clone()
    for each in shifted:
        total += each
    return total

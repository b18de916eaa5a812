"""Estimate how many rows of a picture a network can process at once within a memory limit for activations.

The estimate is a dry run: the real code runs on maps that have a shape but no data, and a ledger counts the memory that
it would allocate and free.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch.nn import functional as F

from convnets_torch.fcn.graph import MapGraph
from convnets_torch.fcn.streaming import Stream

UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
LEAST_ROWS = 4  # per block; with fewer, the rows that layers keep between blocks dominate
INDEX = 8  # bytes per cell for the index of a maximum

Shape = tuple[int, ...]


def parse_bytes(value: int | str) -> int:
    """Parse a number of bytes, or text such as "1GB" (10^9), "1.5 GiB" (2^30 each) or "300MB".

    Raises:
        ValueError: it is not an amount of memory, or not above 0.

    >>> parse_bytes("1.5GB"), parse_bytes("2 KiB"), parse_bytes(10)
    (1500000000, 2048, 10)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", str(value).lower())
    if found is None or found[2] not in UNITS or isinstance(value, bool) or float(found[1]) * UNITS[found[2]] < 1:
        raise ValueError(f"{value!r} is not an amount of memory; give for example '1GB', '500MB' or a number of bytes")
    return int(float(found[1]) * UNITS[found[2]])


def block_rows(graph: MapGraph, shape: tuple[int, int, int], dtype: torch.dtype, most: int) -> int:
    """Return how many rows of images (N, H, W) to process at once so that activations take at most `most` bytes.

    This is H if everything fits, else the largest number that fits: whole strides, or a few rows.

    Raises:
        ValueError: not even blocks of a few rows fit; the message names the minimum.
    """
    _, height, width = shape

    def peak(rows: int) -> int:
        return peak_bytes(graph, shape, dtype, rows)

    if peak(height) <= most:
        return height
    if peak(graph.stride) > most:
        rows = graph.stride
        while rows > LEAST_ROWS:
            rows = max(LEAST_ROWS, rows // 2)
            if peak(rows) <= most:
                return rows
        raise ValueError(
            f"max_memory is {in_words(most)}, but images {width} pixels wide need at least {in_words(peak(rows))}"
            " for their activations; allow that much"
        )
    fits, too_many = 1, -(-height // graph.stride)  # in strides
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if peak(middle * graph.stride) <= most:
            fits = middle
        else:
            too_many = middle
    return fits * graph.stride


def peak_bytes(graph: MapGraph, shape: tuple[int, int, int], dtype: torch.dtype, rows: int) -> int:
    """Return the peak memory of activations in bytes for images (N, H, W) processed in blocks of `rows` rows."""
    batch, height, width = shape
    ledger = _Ledger()
    stream = Stream(graph.ops)

    def push(count: int, last: bool) -> None:
        stream.push(_Fake((batch, graph.channels, count, width), dtype, ledger), last=last)  # type: ignore[arg-type]

    warm = -(-graph.vertical.size // graph.stride) * graph.stride  # from here on memory use repeats
    cycle = max(1, graph.stride // rows) + 1
    if height > warm + cycle * rows:
        push(warm, False)
        ledger.peak = ledger.live
        for _ in range(cycle):
            push(rows, False)
        push(height % rows or rows, True)
    else:
        for top in range(0, height, rows):
            push(min(rows, height - top), top + rows >= height)
    return ledger.peak


def in_words(size: int) -> str:
    """Format a number of bytes as "640MB" or "2.15GB", rounded up.

    >>> in_words(639_000_001), in_words(2_141_000_000)
    ('640MB', '2.15GB')
    """
    return f"{-(-size // 10**6)}MB" if size < 10**9 else f"{-(-size // 10**7) / 100:g}GB"


class _Ledger:
    """Counts live bytes and their peak."""

    def __init__(self) -> None:
        self.live = self.peak = 0

    def book(self, size: int) -> None:
        self.live += size
        self.peak = max(self.peak, self.live)


class _Allocation:
    """Memory shared by several maps; freed when the last one is gone."""

    def __init__(self, size: int, ledger: _Ledger) -> None:
        self._size, self._ledger = size, ledger
        ledger.book(size)

    def __del__(self) -> None:
        self._ledger.live -= self._size


class _Fake:
    """A map with a shape but no data; PyTorch's functions on it return maps of the resulting shapes."""

    device = torch.device("cpu")
    requires_grad = False

    def __init__(
        self, shape: Sequence[int], dtype: torch.dtype, ledger: _Ledger, allocation: _Allocation | None = None
    ) -> None:
        self.shape, self.dtype, self._ledger = tuple(shape), dtype, ledger
        self._allocation = _Allocation(prod(self.shape) * dtype.itemsize, ledger) if allocation is None else allocation

    def dim(self) -> int:
        return len(self.shape)

    def stride(self, axis: int) -> int:
        return prod(self.shape[axis + 1 :])

    def made(self, shape: Sequence[int], dtype: torch.dtype | None = None) -> _Fake:
        """Return a map with its own memory."""
        return _Fake(shape, dtype or self.dtype, self._ledger)

    def book_temporary(self, size: int) -> None:
        """Count memory that a function needs only while it runs."""
        self._ledger.book(size)
        self._ledger.live -= size

    def view(self, shape: Sequence[int]) -> _Fake:
        """Return a view of the same memory."""
        return _Fake(shape, self.dtype, self._ledger, self._allocation)

    def clone(self, *_: Any) -> _Fake:
        return self.made(self.shape)

    __add__ = __sub__ = __mul__ = __rmul__ = __truediv__ = clone

    def movedim(self, source: int, destination: int) -> _Fake:
        sides = list(self.shape)
        sides.insert(destination % len(sides), sides.pop(source))
        return self.view(sides)

    def __iadd__(self, other: object) -> _Fake:  # type: ignore[misc]
        return self

    def new_full(self, shape: Sequence[int], fill: float) -> _Fake:
        return self.made(shape)

    def __getitem__(self, places: Sequence[Any]) -> _Fake:
        given = list(places)
        if Ellipsis in given:
            place = given.index(Ellipsis)
            given[place : place + 1] = [slice(None)] * (len(self.shape) - len(given) + 1)
        given += [slice(None)] * (len(self.shape) - len(given))
        return self.view([len(range(side)[part]) for side, part in zip(self.shape, given, strict=True)])

    def narrow(self, axis: int, start: int, length: int) -> _Fake:
        return self.view([*self.shape[:axis], length, *self.shape[axis + 1 :]])

    def unfold(self, axis: int, size: int, step: int) -> _Fake:
        count = (self.shape[axis] - size) // step + 1
        return self.view([*self.shape[:axis], count, *self.shape[axis + 1 :], size])

    def permute(self, *axes: int) -> _Fake:
        return self.view([self.shape[axis] for axis in axes])

    def flatten(self, first: int) -> _Fake:
        return self.made([*self.shape[:first], prod(self.shape[first:])])

    def mean(self, dim: tuple[int, ...]) -> _Fake:
        gone = {axis % len(self.shape) for axis in dim}
        return self.made([side for axis, side in enumerate(self.shape) if axis not in gone])

    def float(self) -> _Fake:
        return self.made(self.shape, torch.float32)

    def to(self, dtype: torch.dtype) -> _Fake:
        return self.made(self.shape, dtype)

    @classmethod
    def __torch_function__(cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> _Fake:
        if (shape_of := _SHAPES.get(function)) is not None:
            return shape_of(*args, **(kwargs or {}))
        return next(each for each in args if isinstance(each, _Fake)).clone()  # elementwise


def _cat(maps: Sequence[_Fake], dim: int) -> _Fake:
    shape = list(maps[0].shape)
    shape[dim] = sum(each.shape[dim] for each in maps)
    return maps[0].made(shape)


def _pad(cells: _Fake, around: Sequence[int], value: float | None = None, mode: str = "constant") -> _Fake:
    left, right, top, bottom = around
    return cells.made([*cells.shape[:2], cells.shape[2] + top + bottom, cells.shape[3] + left + right])


def _output_shape(cells: _Fake, channels: int, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Shape:
    sides = []
    for axis in (0, 1):
        size, step, around, apart = (
            each if isinstance(each, int) else each[axis] for each in (kernel, stride, padding, dilation)
        )
        sides.append((cells.shape[2 + axis] + 2 * around - (size - 1) * apart - 1) // step + 1)
    return (cells.shape[0], channels, *sides)


def _conv(
    cells: _Fake, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> _Fake:
    return cells.made(_output_shape(cells, weight.shape[0], tuple(weight.shape[2:]), stride, padding, dilation))


def _max_pool(cells: _Fake, kernel: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, **_: Any) -> _Fake:
    shape = _output_shape(cells, cells.shape[1], kernel, kernel if stride is None else stride, padding, dilation)
    result = cells.made(shape)
    result.book_temporary(prod(shape) * INDEX)
    return result


def _average_pool(cells: _Fake, kernel: Any, stride: Any = None, padding: Any = 0, *_: Any) -> _Fake:
    return cells.made(_output_shape(cells, cells.shape[1], kernel, kernel if stride is None else stride, padding, 1))


def _response_norm(cells: _Fake, *_: Any, **__: Any) -> _Fake:
    cells.book_temporary(4 * prod(cells.shape) * cells.dtype.itemsize)  # squares, padding, sums and root
    return cells.clone()


_SHAPES: dict[Callable[..., Any], Callable[..., _Fake]] = {
    torch.cat: _cat,
    F.pad: _pad,
    F.conv2d: _conv,
    F.max_pool2d: _max_pool,
    F.avg_pool2d: _average_pool,
    F.local_response_norm: _response_norm,
    F.linear: lambda cells, weight, bias=None: cells.made((*cells.shape[:-1], weight.shape[0])),
}

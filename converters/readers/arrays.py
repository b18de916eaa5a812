"""Check and read arrays of Keras files, and determine the axis order of their kernels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, pairwise
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from h5py import h5s
from numpy.typing import NDArray

from converters.layouts import Array as Values
from converters.readers.hdf5_tree import Array, Group
from converters.readers.keras_file import KerasArray, KerasLayer, KernelOrder
from converters.readers.keras_graph import format_of

KERNELS = ("kernel", "depthwise_kernel")


def with_kernel_orders(layers: tuple[KerasLayer, ...], *, modern: bool) -> tuple[KerasLayer, ...]:
    """Set the kernel order of layers with convolution kernels, which is the same throughout a file.

    Args:
        layers: all layers of a file.
        modern: whether Keras 2 or later wrote the file; its kernels are always (height, width, in, out).
    """
    order: KernelOrder | None = "hwio" if modern else _inferred(layers)
    return tuple(replace(layer, kernel_order=order) if _has_kernel(layer) else layer for layer in layers)


def _has_kernel(layer: KerasLayer) -> bool:
    return any(len(layer.arrays[role].shape) == 4 for role in KERNELS if role in layer.arrays)


def _inferred(layers: tuple[KerasLayer, ...]) -> KernelOrder | None:
    """Infer the kernel order from configs, else from lengths of other arrays; None if unknown or contradictory."""
    for votes in (_by_config(layers), _by_lengths(layers)):
        found = set(votes)
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def _by_config(layers: tuple[KerasLayer, ...]) -> Iterator[KernelOrder]:
    for layer in layers:
        if _has_kernel(layer) and layer.config and (order := format_of(layer.config)):
            yield "oihw" if order == "channels_first" else "hwio"


def _by_lengths(layers: tuple[KerasLayer, ...]) -> list[KernelOrder]:
    """Infer kernel orders from biases or else following batch normalisations, which have one value per output."""
    weighted = [layer for layer in layers if layer.arrays]
    own = [
        vote
        for layer in weighted
        if _has_kernel(layer) and "kernel" in layer.arrays and "bias" in layer.arrays
        for vote in _vote(layer, layer.arrays["bias"].shape)
    ]
    if own:
        return own
    return list(
        chain.from_iterable(
            _vote(layer, after.arrays["moving_mean"].shape)
            for layer, after in pairwise(weighted)
            if _has_kernel(layer) and "kernel" in layer.arrays and after.kind == "BatchNormalization"
        )
    )


def _vote(layer: KerasLayer, outputs: tuple[int, ...]) -> Iterator[KernelOrder]:
    shape = layer.arrays["kernel"].shape
    if len(outputs) == 1 and shape[0] != shape[3] and outputs[0] in (shape[0], shape[3]):
        yield "oihw" if outputs[0] == shape[0] else "hwio"


FLOATS = ("f2", "f4", "f8")


def check_array(path: Path, group: Group, name: str) -> Array:
    """Return an array that a group lists; raise ValueError if it is missing or must not be read."""
    found = group.find(name)
    place = f"{group.place.rstrip('/')}/{name}"
    if found is None:
        raise ValueError(f"{path} lists the array {place}, but does not hold it; download the file again")
    if isinstance(found, Group):
        raise ValueError(f"{path}: {place} is not an array; download the file again")
    if found.problem is not None:
        raise ValueError(f"{path}: {place} is {found.problem}; download the file again")
    if found.dtype != "bfloat16" and found.dtype[1:] not in FLOATS:
        raise ValueError(f"{path}: {place} holds {_type(found)} values, but weights are floating point")
    return found


def _type(array: Array) -> str:
    if array.dtype == "opaque" and array.declared == 2 * prod(array.shape):
        return "unknown values of two bytes (bfloat16 without Keras's mark? then save it as .keras)"
    try:
        return str(np.dtype(array.dtype))
    except TypeError:
        return array.dtype


def keras_array(path: Path, array: Array) -> KerasArray:
    return KerasArray(path, array.place, array.shape, array.dtype)


class Blocks(NamedTuple):
    """Rows `start` to `start + length`, and further such blocks at distances of `apart` rows, `number` in all."""

    start: int
    number: int
    apart: int
    length: int


def values(file: h5py.File, array: KerasArray, rows: slice | Blocks | None = None) -> Values:
    """Read an array's values, in native byte order and stored precision; bfloat16 as float32.

    Args:
        file: the open file, from `opened`.
        array: an array of this file.
        rows: part of the first axis, which is read at once; all rows by default.

    Raises:
        OSError: the values cannot be read.
        ValueError: the file has changed since it was examined.
    """
    dataset = file[array.place]
    if dataset.shape != array.shape:
        raise ValueError(f"{array.path}: {array.place} has changed since it was examined; read the file again")
    if isinstance(rows, slice):
        start, end, _ = rows.indices(array.shape[0])
        rows = Blocks(start, 1, max(1, end - start), end - start)
    if array.dtype != "bfloat16":
        return _read(dataset, np.dtype(array.dtype).newbyteorder("="), rows)
    if dataset.dtype.kind == "u":
        return from_bfloat16(_read(dataset, np.dtype(np.uint16), rows))
    pairs = _read(dataset, dataset.dtype, rows)  # opaque little-endian byte pairs (Keras 3.15)
    return from_bfloat16(pairs.view("<u2").astype(np.uint16, copy=False))


def _read(dataset: h5py.Dataset, dtype: np.dtype[Any], rows: Blocks | None) -> NDArray[Any]:
    """Read all rows, or blocks of rows, into a new array; h5py's own slices take a tenth of a millisecond each."""
    if rows is None:
        found = np.empty(dataset.shape, dtype)
        dataset.id.read(h5s.ALL, h5s.ALL, found)
        return found
    rest = dataset.shape[1:]
    found = np.empty((rows.number * rows.length, *rest), dtype)
    space, ones = dataset.id.get_space(), (1,) * len(rest)
    space.select_hyperslab(
        (rows.start, *(0 for _ in rest)), (rows.number, *ones), (rows.apart, *ones), (rows.length, *rest)
    )
    dataset.id.read(h5s.create_simple(found.shape), space, found)
    return found


def from_bfloat16(bits: NDArray[np.uint16]) -> Values:
    """Convert bfloat16 bit patterns, the upper halves of float32 values, to float32.

    >>> from_bfloat16(np.array([0x3F80, 0xC040], np.uint16)).tolist()
    [1.0, -3.0]
    """
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)

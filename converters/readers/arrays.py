"""Arrays of Keras files: read, and their kernels put in one order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, pairwise
from math import prod
from pathlib import Path

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
    """The layers, those with convolution kernels with their order, which is one for the file.

    Args:
        layers: of a file.
        modern: of Keras 2 or later, where kernels are always (height, width, in, out).
    """
    order: KernelOrder | None = "hwio" if modern else _told(layers)
    return tuple(replace(layer, kernel_order=order) if _has_kernel(layer) else layer for layer in layers)


def _has_kernel(layer: KerasLayer) -> bool:
    return any(len(layer.arrays[role].shape) == 4 for role in KERNELS if role in layer.arrays)


def _told(layers: tuple[KerasLayer, ...]) -> KernelOrder | None:
    """By the configs, else by biases, else by the batch normalisations that follow; None without one voice."""
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
    """A bias, or the batch normalisation behind, is as long as there are outputs."""
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
    """The array that a group lists; ValueError, in one sentence, where it is not there or must not be read."""
    found = group.find(name)
    place = f"{group.place.rstrip('/')}/{name}"
    if found is None:
        raise ValueError(f"{path} lists the array {place}, but does not hold it; download the file again")
    if isinstance(found, Group):
        raise ValueError(f"{path}: {place} is no array; download the file again")
    if found.problem is not None:
        raise ValueError(f"{path}: {place} is {found.problem}; download the file again")
    if found.dtype != "bfloat16" and found.dtype[1:] not in FLOATS:
        raise ValueError(f"{path}: {place} holds {_words(found)} values, but weights are floating point")
    return found


def _words(array: Array) -> str:
    if array.dtype == "opaque" and array.declared == 2 * prod(array.shape):
        return "unknown values of two bytes (bfloat16 without Keras's mark? then save it as .keras)"
    try:
        return str(np.dtype(array.dtype))
    except TypeError:
        return array.dtype


def keras_array(path: Path, array: Array) -> KerasArray:
    """An array as plain data."""
    return KerasArray(path, array.place, array.shape, array.dtype)


def values(file: h5py.File, array: KerasArray, rows: slice | None = None) -> Values:
    """The values of an array in native byte order, in the precision that is stored; bfloat16 as float32.

    Args:
        file: open, as `opened` gives it.
        array: of the same file.
        rows: which of them, along the first axis; all by default.

    Raises:
        OSError: the values cannot be read.
        ValueError: the file is no longer the one that was looked at.
    """
    dataset = file[array.place]
    if dataset.shape != array.shape:
        raise ValueError(f"{array.path}: {array.place} has changed since it was looked at; read the file anew")
    if array.dtype == "bfloat16":
        bits = _two_bytes(dataset)
        return from_bfloat16(bits if rows is None else bits[rows])
    return np.asarray(dataset[() if rows is None else rows], dtype=np.dtype(array.dtype).newbyteorder("="))


def _two_bytes(dataset: h5py.Dataset) -> NDArray[np.uint16]:
    """16-bit integers, or the opaque pairs of bytes that Keras 3.15 stores, little-endian."""
    if dataset.dtype.kind == "u":
        return np.asarray(dataset[()], np.uint16)
    raw = np.empty(dataset.shape, dataset.dtype)
    dataset.id.read(h5s.ALL, h5s.ALL, raw)
    return raw.view("<u2").astype(np.uint16, copy=False)


def from_bfloat16(bits: NDArray[np.uint16]) -> Values:
    """The upper halves of float32 values as these.

    >>> from_bfloat16(np.array([0x3F80, 0xC040], np.uint16)).tolist()
    [1.0, -3.0]
    """
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)

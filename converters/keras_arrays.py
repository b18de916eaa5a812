"""One array of a Keras file: checked before it is read, and read."""

from __future__ import annotations

from math import prod
from pathlib import Path

import h5py
import numpy as np
from h5py import h5s
from numpy.typing import NDArray

from converters.hdf5_tree import Array, Group
from converters.keras_file import KerasArray
from converters.layouts import Array as Values

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

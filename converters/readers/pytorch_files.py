"""Read state dicts of PyTorch (`.pth`) without torch and without running a pickle.

There are two layouts, those of `torch.save` since 2020 and before:

- a zip of `NAME/data.pkl`, a pickle that describes the tensors, and `NAME/data/0`, `NAME/data/1`, ... with the elements
  of their storages;
- bare pickles: a magic number, a version, the system's sizes, the tensors, a list of storage keys; then the storages in
  this order, each as its number of elements (8 bytes) and the elements.
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from converters.readers.arrays import from_bfloat16
from converters.readers.keras_archive import problems_of_zip, start_of
from converters.readers.torch_pickle import Stored, read_pickle
from converters.writing import Job, is_finite, target_of
from convnets_torch.files import open_file
from convnets_torch.text import printable_errors

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
MOST_PICKLE = 16 << 20  # bytes of the pickle; ResNet50's has 40,000
MOST_DIMENSIONS = 8
LARGEST = 1 << 48  # limit on any size, stride or offset; no disk holds more elements
DTYPES = {  # torch's name -> NumPy's
    "float64": "f8", "float32": "f4", "float16": "f2", "bfloat16": "u2", "int64": "i8", "int32": "i4", "int16": "i2",
    "int8": "i1", "uint8": "u1", "uint16": "u2", "uint32": "u4", "uint64": "u8", "bool": "u1",
}  # fmt: skip


@dataclass(frozen=True)
class _Held:
    """One storage's size in bytes and a function `read(start, size)` that reads bytes of it."""

    size: int
    read: Callable[[int, int], bytes]


@dataclass(frozen=True)
class _State:
    """A file's tensors by name, its storages by key, and its byte order."""

    tensors: dict[str, Stored]
    storages: dict[str, _Held]
    order: Literal["<", ">"] = "<"


@printable_errors()
def describe_state_dict(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Return the tensors of a `.pth` file by name, each as {"shape": [...], "dtype": "float32"}, without their values.

    Raises:
        OSError: the file does not exist or cannot be read.
        ValueError: the file is broken, holds anything but plain tensors, or is not a state dict.
    """
    with _opened(Path(path)) as state:
        return {name: {"shape": list(tensor.shape), "dtype": tensor.dtype} for name, tensor in state.tensors.items()}


@printable_errors()
def carry_out_tensors(path: str, output: str, jobs: Sequence[Job]) -> list[str]:
    """Write tensors into an existing file of final size.

    Args:
        path: the `.pth` file.
        output: the file to fill.
        jobs: the tensors and their destinations.

    Returns:
        The names of tensors with NaN, infinite or (for float32) too large values.

    Raises:
        ValueError: a tensor cannot be read, or the file has changed since it was examined.
    """
    not_finite = []
    mapped = np.memmap(output, np.uint8, "r+")
    with _opened(Path(path)) as state:
        for job in jobs:
            tensor = state.tensors.get(job["source"])
            if tensor is None or list(tensor.shape) != job["shape"]:
                raise ValueError(f"{path} has changed since it was examined; convert it again")
            target = target_of(mapped, job)
            with _one_sentence(path), np.errstate(over="ignore"):  # too large for float32 becomes inf and is reported
                target[...] = _values(state, tensor)
            if not is_finite(target):
                not_finite.append(job["source"])
    return not_finite


@contextmanager
def _opened(path: Path) -> Iterator[_State]:
    """Open a file and yield its checked tensors."""
    with open_file(path) as file:
        with _one_sentence(path):
            is_zip = file.read(2) == b"PK"
            file.seek(0)
            state = _zipped(path, file) if is_zip else _bare(file)
            _check(state)
        yield state


@contextmanager
def _one_sentence(path: str | Path) -> Iterator[None]:
    """Turn errors without a subject, and those of zipfile, into one-sentence errors that name the file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or "it ends too early"
        raise ValueError(f"{path} is broken ({reason}); download it again") from None


def _zipped(path: Path, file: IO[bytes]) -> _State:
    archive = zipfile.ZipFile(file)
    for problem in problems_of_zip(path, archive):
        raise ValueError(f"{problem}; download it again")
    members = {member.filename: member for member in archive.infolist()}
    pickles = [name for name in members if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"holds {len(pickles)} pickles; torch.save writes exactly one")
    [name] = pickles
    if members[name].file_size > MOST_PICKLE:
        raise ValueError(f"has a pickle of {members[name].file_size} bytes; no state dict has so many")
    tensors = read_pickle(io.BytesIO(archive.read(name)))
    _check_state_dict(tensors)
    folder = name.removesuffix("data.pkl")
    storages = {
        member.filename.removeprefix(f"{folder}data/"): _held(path, archive, file, member)
        for member in members.values()
        if member.filename.startswith(f"{folder}data/")
    }
    order = members.get(f"{folder}byteorder")
    big = order is not None and order.file_size < 16 and archive.read(order) == b"big"
    return _State(tensors, storages, ">" if big else "<")


def _held(path: Path, archive: zipfile.ZipFile, file: IO[bytes], member: zipfile.ZipInfo) -> _Held:
    if member.compress_type == zipfile.ZIP_STORED:
        return _Held(member.file_size, partial(_read_at, file, start_of(path, file, member)))
    return _Held(member.file_size, lambda start, size: archive.read(member)[start : start + size])


def _read_at(file: IO[bytes], place: int, start: int, size: int) -> bytes:
    file.seek(place + start)
    return file.read(size)


def _bare(file: IO[bytes]) -> _State:
    start = io.BytesIO(file.read(MOST_PICKLE))  # in memory, so that no instruction can request more than is there
    magic, protocol = read_pickle(start), read_pickle(start)
    if magic != MAGIC or protocol != PROTOCOL:
        raise ValueError("is not a PyTorch file in a known format; save the state dict again")
    read_pickle(start)  # sizes on the system that wrote it; elements are always little-endian
    tensors, keys = read_pickle(start), read_pickle(start)
    _check_state_dict(tensors)
    place, end = start.tell(), file.seek(0, os.SEEK_END)
    found = [tensor.storage for tensor in tensors.values()]
    sizes = {storage.key: np.dtype(DTYPES.get(storage.dtype, "u1")).itemsize for storage in found}
    storages = {}
    for key in map(str, keys if isinstance(keys, list) else ()):
        if key not in sizes:
            raise ValueError("is broken (it has a storage that no tensor uses); download it again")
        size = int.from_bytes(_read_at(file, place, 0, 8), "little") * sizes[key]
        storages[key] = _Held(size, partial(_read_at, file, place + 8))
        place += 8 + size
        if place > end:
            raise ValueError("is truncated; download it again")
    return _State(tensors, storages)


def _check_state_dict(found: Any) -> None:
    if not isinstance(found, dict) or not all(isinstance(entry, Stored) for entry in found.values()):
        raise ValueError("holds no state dict; save model.state_dict()")


def _check(state: _State) -> None:
    """Raise ValueError for the first tensor that is malformed or not completely in the file."""
    total = 0
    for name, tensor in state.tensors.items():
        if not isinstance(name, str):
            raise ValueError(f"holds a tensor under {name!r} instead of a name; save model.state_dict()")
        if problem := _problem(state, tensor):
            raise ValueError(f"holds {name}, {problem}")
        total += prod(tensor.shape) * np.dtype(DTYPES[tensor.dtype]).itemsize
    held = sum(storage.size for storage in state.storages.values())
    if total > held:
        raise ValueError(f"stores {held} bytes for tensors of {total} bytes that share memory; save clones of them")


def _problem(state: _State, tensor: Stored) -> str | None:
    """Return why a tensor must not be read, as the end of a sentence, or None."""
    storage, shape, strides = tensor.storage, tensor.shape, tensor.strides
    if tensor.dtype not in DTYPES:
        return f"a tensor of {tensor.dtype:.40}; real numbers of up to 64 bits are supported: convert it and save again"
    if not (isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides)):
        return "a tensor without shape; the file is broken, download it again"
    numbers = (*shape, *strides, tensor.offset, storage.start)
    if not all(isinstance(number, int) and 0 <= number < LARGEST for number in numbers):
        return "a tensor without size; the file is broken, download it again"
    if len(shape) > MOST_DIMENSIONS:
        return f"a tensor of {len(shape)} dimensions; weights have up to {MOST_DIMENSIONS}"
    if storage.dtype not in (tensor.dtype, "bytes"):
        return f"a {tensor.dtype} tensor in a {storage.dtype} storage; the file is broken, download it again"
    size = np.dtype(DTYPES[tensor.dtype]).itemsize
    held = state.storages.get(storage.key)
    if held is None or (storage.start + tensor.offset + _reach(tensor)) * size > held.size:
        return f"which is {shape}, but not completely in the file; download it again"
    if not _is_apart(tensor):
        return f"which is {shape}, but stores fewer elements, some shared by several indices; save a clone of it"
    return None


def _reach(tensor: Stored) -> int:
    """Return the number of storage elements that a tensor spans, from its first to its last."""
    if 0 in tensor.shape:
        return 0
    return 1 + sum((side - 1) * stride for side, stride in zip(tensor.shape, tensor.strides, strict=True))


def _is_apart(tensor: Stored) -> bool:
    """Return whether all indices map to distinct elements: each stride exceeds the span of all smaller strides."""
    reach = 1
    for stride, side in sorted(zip(tensor.strides, tensor.shape, strict=True)):
        if side > 1:
            if stride < reach:
                return False
            reach += (side - 1) * stride
    return True


def _values(state: _State, tensor: Stored) -> NDArray[Any]:
    """Read a checked tensor's values; bfloat16 as float32."""
    dtype = np.dtype(DTYPES[tensor.dtype]).newbyteorder(state.order)
    start, size = (tensor.storage.start + tensor.offset) * dtype.itemsize, _reach(tensor) * dtype.itemsize
    content = state.storages[tensor.storage.key].read(start, size)
    if len(content) != size:
        raise ValueError("is truncated; download it again")
    strides = [stride * dtype.itemsize for stride in tensor.strides]
    found = np.lib.stride_tricks.as_strided(np.frombuffer(content, dtype), tensor.shape, strides, writeable=False)
    if tensor.dtype == "bfloat16":
        return from_bfloat16(found.astype(np.uint16))
    return found != 0 if tensor.dtype == "bool" else found

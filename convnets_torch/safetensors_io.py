"""Read and write safetensors files: headers, whole arrays, memory-mapped arrays, and arrays filled in place.

`safetensors.torch.save_file` needs all arrays in memory and copies them into the file; converting VGG16 that way takes
twice 553 MB and three times as long as `filling`. The bytes are identical to the library's, which a test checks.

Source: the format's description in the README of safetensors: eight bytes with the length of a JSON header, the
header, then the arrays.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from convnets_torch import files
from convnets_torch.files import open_file, opened_path, replacing

DTYPES = {"I64": "<i8", "F32": "<f4", "I32": "<i4", "U8": "|u1"}  # the format's name -> NumPy's
Layout = Mapping[str, tuple[str, tuple[int, ...]]]  # name -> dtype and shape, in the order of the file
ZEROS = bytes(1 << 20)

# Limits that no legitimate file exceeds and that bound the time and memory a malicious one can take.
MOST_HEADER = 16_000_000  # bytes of JSON; parsing that many takes some seconds. ResNet50 has 35,000
MOST_ARRAYS = 10_000  # ResNet50 has 320


def header_of_opened(file: IO[bytes], path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the JSON header of an open safetensors file and check it against the file's length.

    Raises:
        ValueError: it is not a safetensors file, or is truncated; `path` is its name in the message.
    """
    length = os.fstat(file.fileno()).st_size
    no_header = ValueError(f"{path} is not a safetensors file; convert it with `convnets-torch convert`")
    start = file.read(9)
    header_length = int.from_bytes(start[:8], "little")
    if len(start) < 9 or start[8:] != b"{" or header_length > max(length, MOST_HEADER):
        raise no_header
    if header_length > MOST_HEADER:
        raise ValueError(
            f"{path} has a header of {header_length:,} bytes, more than {MOST_HEADER:,}; it is damaged, or has"
            " too many class names"
        )
    if header_length + 8 > length:
        raise ValueError(f"{path} is truncated: {length} bytes, its header alone needs {header_length + 8}")
    try:
        header: dict[str, Any] = files.loads(b"{" + file.read(header_length - 1))
        arrays = [entry for name, entry in header.items() if name != "__metadata__"]
        ends = [int(entry["data_offsets"][1]) for entry in arrays]
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{no_header} (its header: {error})") from None
    if len(arrays) > MOST_ARRAYS:
        raise ValueError(f"{path} has {len(arrays)} arrays, more than {MOST_ARRAYS}; it is damaged")
    wanted = 8 + header_length + max(ends, default=0)
    if wanted != length:
        raise ValueError(
            f"{path} is {'truncated' if length < wanted else 'too long'}: {length} bytes, not {wanted};"
            " copy or convert it again"
        )
    return header


def read_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Read the arrays and the metadata of a safetensors file; both from the same open file.

    Raises:
        OSError: it is not a regular file, or cannot be read.
        ValueError: it is not a safetensors file, is damaged, or has dtypes unknown to NumPy.
    """
    with open_file(path) as file:
        header_of_opened(file, path)
        try:
            return arrays_of_opened(file, "numpy")
        except ValueError as error:
            raise ValueError(f"{path} cannot be read ({error}); write it anew") from None


def arrays_of_opened(file: IO[bytes], framework: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Read the arrays ("numpy", or "pt" for tensors) and the metadata of an open file; ValueError if it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(opened_path(file), framework) as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (SafetensorError, RuntimeError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(str(error)) from None


def map_arrays(file: IO[bytes], header: Mapping[str, Any], names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Memory-map arrays of an open file with a header from `header_of_opened`; data is read on access.

    Raises:
        ValueError, KeyError, TypeError: an array is missing from the header, or its entry is invalid.
    """
    file.seek(0)
    start = 8 + int.from_bytes(file.read(8), "little")
    arrays = {}
    for name in names:
        entry = header[name]
        kind, shape, (begin, end) = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"]), entry["data_offsets"]
        if begin < 0 or end - begin != kind.itemsize * prod(shape):
            raise ValueError(f"{name} is damaged")
        array = np.memmap(file, kind, "r", start + begin, shape) if end > begin else np.zeros(shape, kind)
        arrays[name] = array.view(np.ndarray)  # slices of a plain ndarray are cheaper
    return arrays


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, Any], metadata: dict[str, str]) -> None:
    """Write NumPy arrays, or tensors on any device, to a safetensors file, atomically.

    Raises:
        OSError: `path` cannot be written; an existing file is unchanged.
    """
    from safetensors import SafetensorError

    with replacing(path) as temporary:
        try:
            if all(isinstance(array, np.ndarray) for array in arrays.values()):
                from safetensors.numpy import save_file as save_arrays

                save_arrays(dict(arrays), temporary, metadata)
            else:
                from safetensors.torch import save_file

                tensors = {name: array.detach().cpu().contiguous() for name, array in arrays.items()}
                save_file(tensors, temporary, metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from None


def array_bytes(tensors: Mapping[str, Any], metadata: dict[str, str]) -> bytes:
    """Return the contents of a safetensors file with tensors, on any device, for a place that is no file."""
    from safetensors.torch import save

    return save({name: array.detach().cpu().contiguous() for name, array in tensors.items()}, metadata)


@dataclass
class Filling:
    """A file that is being written.

    Attributes:
        path: the temporary file, for another process that fills it.
        offsets: name -> offset of its array, in bytes from the start of the file.
        arrays: name -> array mapped from the file; writing to it writes the file.
        metadata: metadata of the header; may be replaced, until the block ends, by metadata that is not longer.
    """

    path: Path
    offsets: dict[str, int]
    arrays: dict[str, NDArray[Any]]
    metadata: dict[str, str]


@contextmanager
def filling(
    path: str | os.PathLike[str],
    layout: Layout,
    metadata: dict[str, str],
) -> Iterator[Filling]:
    """Yield writable arrays mapped from a new safetensors file, which replaces `path` if the block succeeds.

    Args:
        layout: name -> dtype ("F32" or "I64") and shape of each array.
        metadata: metadata of the header; values not known yet need placeholders of at least the same length.

    Raises:
        OSError: `path` cannot be written, or the disk is full; raised before the block runs.
        ValueError: the final metadata is longer, or the header or length of the file was changed.
    """
    # The library's order: larger dtypes first, so that each array is aligned to its item size.
    ordered = dict(sorted(layout.items(), key=lambda item: (item[1][0] != "I64", item[0])))
    header = header_bytes(ordered, metadata)
    sizes = [_bytes(*entry) for entry in ordered.values()]
    with replacing(path) as temporary:
        with temporary.open("rb+") as file:
            _reserve(file.fileno(), len(header) + sum(sizes))
        mapped = np.memmap(temporary, np.uint8, "r+")
        mapped[: len(header)] = np.frombuffer(header, np.uint8)
        arrays, offsets, start = {}, {}, len(header)
        for (name, (dtype, shape)), size in zip(ordered.items(), sizes, strict=True):
            arrays[name] = np.asarray(mapped[start : start + size]).view(DTYPES[dtype]).reshape(shape)
            offsets[name] = start
            start += size
        filled = Filling(temporary, offsets, arrays, metadata)
        yield filled
        if temporary.stat().st_size != start or bytes(mapped[: len(header)]) != header:
            raise ValueError(f"{path} was damaged while it was written; convert again")
        final = header_bytes(ordered, filled.metadata, room=len(header) - 8)
        mapped[: len(final)] = np.frombuffer(final, np.uint8)
        mapped.flush()


def header_bytes(layout: Layout, metadata: Mapping[str, str], *, spaces: bool = False, room: int = 0) -> bytes:
    """Build the beginning of a file: the header's length and its JSON, padded with blanks to a multiple of 8 bytes.

    Args:
        layout, metadata: of the arrays, which follow one another without gaps.
        spaces: write a blank after each comma and colon; the library writes none.
        room: bytes of the padded JSON; by default as few as needed.

    Raises:
        ValueError: the JSON is longer than `room`.
    """
    entries: dict[str, object] = {"__metadata__": metadata}
    start = 0
    for name, (dtype, shape) in layout.items():
        end = start + _bytes(dtype, shape)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": (start, end)}
        start = end
    text = json.dumps(entries, separators=None if spaces else (",", ":")).encode()
    if room and len(text) > room:
        raise ValueError(f"the header has {len(text)} bytes, but room for {room} was kept")
    text = text.ljust(room or len(text) + -len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return prod(shape) * np.dtype(DTYPES[dtype]).itemsize


def _reserve(descriptor: int, size: int) -> None:
    """Allocate disk space now: writing to a mapped file on a full disk would kill the process (SIGBUS)."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    for start in range(0, size, len(ZEROS)):
        os.write(descriptor, ZEROS[: size - start])

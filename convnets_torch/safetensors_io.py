"""Write a safetensors file in place: arrays that lie in the file while they are filled.

`safetensors.torch.save_file` wants all arrays in memory and copies them into the file; for a conversion of VGG16
that is 553 MB twice, and three times the time of this. The bytes are the same as the library's, which a test says.

Source: the format's description in the README of safetensors: eight bytes with the length of a JSON header, the
header, then the arrays.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnets_torch.files import replacing

DTYPES = {"I64": np.int64, "F32": np.float32}  # the format's name -> NumPy's
Layout = Mapping[str, tuple[str, tuple[int, ...]]]
ZEROS = bytes(1 << 20)


@dataclass
class Filling:
    """A file that is being written.

    Attributes:
        path: the temporary file, for another process that fills it.
        places: name -> where its array begins, in bytes from the start of the file.
        arrays: name -> array in the file; what is written into it is in the file.
        metadata: of the header; may be replaced, by what is as long, until the block ends.
    """

    path: Path
    places: dict[str, int]
    arrays: dict[str, NDArray[Any]]
    metadata: dict[str, str]


@contextmanager
def filling(
    path: str | os.PathLike[str],
    layout: Layout,
    metadata: dict[str, str],
) -> Iterator[Filling]:
    """Give arrays that lie in a new safetensors file, which replaces `path` when the block ends well.

    Args:
        path: where the file goes; atomically, as by `replacing`.
        layout: name -> type ("F32" or "I64") and shape of each array.
        metadata: of the header; what is not known yet may be stood in for by something of the same length.

    Raises:
        OSError: `path` cannot be written, or the disk is too full: asked before anything is filled.
        ValueError: the metadata that was put in place is not as long as the first, or whoever filled the file
            changed its header or its length.
    """
    # The library's order: larger types first, so that each array begins at a multiple of its type's size.
    ordered = dict(sorted(layout.items(), key=lambda item: (item[1][0] != "I64", item[0])))
    header = _header(ordered, metadata)
    sizes = [_bytes(*entry) for entry in ordered.values()]
    with replacing(path) as temporary:
        with temporary.open("rb+") as file:
            _reserve(file.fileno(), len(header) + sum(sizes))
        mapped = np.memmap(temporary, np.uint8, "r+")
        mapped[: len(header)] = np.frombuffer(header, np.uint8)
        arrays, places, start = {}, {}, len(header)
        for (name, (dtype, shape)), size in zip(ordered.items(), sizes, strict=True):
            arrays[name] = np.asarray(mapped[start : start + size]).view(DTYPES[dtype]).reshape(shape)
            places[name] = start
            start += size
        filled = Filling(temporary, places, arrays, metadata)
        yield filled
        if temporary.stat().st_size != start or bytes(mapped[: len(header)]) != header:
            raise ValueError(f"{path} was damaged while it was written; convert again")
        final = _header(ordered, filled.metadata)
        if len(final) != len(header):
            raise ValueError(f"the header has {len(final)} bytes, but room for {len(header)} was kept")
        mapped[: len(final)] = np.frombuffer(final, np.uint8)
        mapped.flush()


def _bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return prod(shape) * np.dtype(DTYPES[dtype]).itemsize


def _header(layout: Layout, metadata: dict[str, str]) -> bytes:
    """The length and the JSON, padded with blanks to a multiple of eight bytes."""
    entries: dict[str, object] = {"__metadata__": metadata}
    start = 0
    for name, (dtype, shape) in layout.items():
        end = start + _bytes(dtype, shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _reserve(descriptor: int, size: int) -> None:
    """Take the room on the disk now: writing into a mapped file that finds none later would end the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    for start in range(0, size, len(ZEROS)):
        os.write(descriptor, ZEROS[: size - start])

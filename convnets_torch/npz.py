"""Read untrusted `.npz` files: memory is allocated only for data that the file really contains."""

from __future__ import annotations

import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from convnets_torch.files import open_file

MOST_ARRAYS = 10_000
FREE = 256 << 20  # bytes that any file may unpack to
MOST_COMPRESSED = 32  # maximum compression ratio beyond that; `embed` writes uncompressed files
KINDS = "biufcU"  # dtypes of numbers and text; no objects (pickles), records or dates

END, END64 = 22, 56  # bytes of the zip's end-of-central-directory record, and of its zip64 version
LOCATOR = 20  # bytes of the zip64 locator
BLOCK = 1 << 20  # bytes to read at once
DAMAGED = (
    ValueError, TypeError, KeyError, AttributeError, OverflowError, SyntaxError, MemoryError, RuntimeError, EOFError,
    struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays to a compressed `.npz` file, whatever the ending of `path`."""
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_npz(file: str | os.PathLike[str] | IO[bytes], *, max_bytes: int | None = None) -> dict[str, NDArray[Any]]:
    """Read the arrays of numbers and text in an `.npz` file.

    Args:
        file: path, or an open seekable binary file.
        max_bytes: refuse larger arrays, in total bytes. In any case, a file that unpacks to more than 256 MB must have
            at least 1/32 of the unpacked size.

    Raises:
        OSError: it is not a regular file, or cannot be read.
        ValueError: it is not an `.npz` file, is damaged or malicious, contains objects, or exceeds `max_bytes`.

    >>> np.savez("two.npz", sizes=np.arange(3), names=np.array(["a", "b"]))
    >>> {name: array.tolist() for name, array in read_npz("two.npz").items()}
    {'sizes': [0, 1, 2], 'names': ['a', 'b']}
    """
    if isinstance(file, str | os.PathLike):
        with open_file(file) as opened:
            return _read(opened, str(file), max_bytes)
    return _read(file, str(getattr(file, "name", "the file")), max_bytes)


def _read(file: IO[bytes], name: str, max_bytes: int | None) -> dict[str, NDArray[Any]]:
    try:
        size = file.seek(0, os.SEEK_END)
        _check_end(file, size)
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            _check_members(members, size, max_bytes)
            return {member.filename[:-4]: _array(archive, member) for member in members}
    except OSError as error:
        raise OSError(f"{name} cannot be read ({error.strerror or error}); copy or write it again") from None
    except DAMAGED as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{name} is not an .npz of plain arrays, or is damaged ({reason}); write it again") from None


def _check_end(file: IO[bytes], size: int) -> None:
    """Refuse a central directory that is too large, because zipfile would read all of it."""
    file.seek(max(0, size - END))
    end = file.read(END)
    if len(end) < END or end[:4] != b"PK\x05\x06" or end[-2:] != b"\0\0":
        raise ValueError("it does not end as NumPy ends it")
    listed = int.from_bytes(end[12:16], "little")
    before = size - END - LOCATOR
    file.seek(max(0, before))
    locator = file.read(LOCATOR)
    if before >= END64 and locator[:4] == b"PK\x06\x07":
        if int.from_bytes(locator[8:16], "little") != before - END64:
            raise ValueError("its zip64 end record is misplaced")
        file.seek(before - END64)
        listed = int.from_bytes(file.read(END64)[40:48], "little")
    if listed > MOST_ARRAYS * 1024:
        raise ValueError(f"its list of members has {listed:,} bytes")


def _check_members(members: list[zipfile.ZipInfo], size: int, max_bytes: int | None) -> None:
    """Raise ValueError if the list of members contains anything that NumPy never writes."""
    if len(members) > MOST_ARRAYS:
        raise ValueError(f"it has {len(members):,} members")
    if len({member.filename for member in members}) < len(members):
        raise ValueError("it has a name twice")
    for member in members:
        if not member.filename.endswith(".npy"):
            raise ValueError(f"member {member.filename!r:.80} is not an array")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 0x1:
            raise ValueError(f"member {member.filename!r:.80} is encrypted, or compressed in an unknown way")
    stored, unpacked = sum(member.compress_size for member in members), sum(member.file_size for member in members)
    if stored > size:
        raise ValueError(f"its members have {stored:,} bytes, and the file {size:,}")
    if unpacked > max(FREE, MOST_COMPRESSED * size):
        raise ValueError(f"{size:,} bytes unpack to {unpacked:,}")
    if max_bytes is not None and unpacked > max_bytes:
        raise ValueError(f"it unpacks to {unpacked:,} bytes, more than {max_bytes:,}")


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    """Read one array; the size in its header must match the member's."""
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, by_columns, kind = np.lib.format.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, by_columns, kind = np.lib.format.read_array_header_2_0(stream)
        else:
            raise ValueError(f"{member.filename!r:.80} has version {version}")
        if kind.kind not in KINDS or not kind.itemsize:
            raise ValueError(f"{member.filename!r:.80} holds {kind!s:.80}, not numbers or texts")
        if min(shape, default=0) < 0:
            raise ValueError(f"{member.filename!r:.80} has the shape {shape}")
        count = prod(shape)
        if count * kind.itemsize != member.file_size - stream.tell():
            raise ValueError(
                f"{member.filename!r:.80} has {member.file_size - stream.tell():,} bytes, not those of {shape} {kind}"
            )
        flat = np.empty(count, kind)
        room = flat.view(np.uint8).data
        while room and (block := stream.read(min(BLOCK, len(room)))):
            room[: len(block)] = block
            room = room[len(block) :]
        if room or stream.read(1):  # reading to the end also checks the CRC
            raise ValueError(f"{member.filename!r:.80} ends early")
    if kind.kind == "U" and count and flat.view(np.dtype("u4").newbyteorder(kind.byteorder)).max() > 0x10FFFF:
        raise ValueError(f"{member.filename!r:.80} has invalid characters")
    return flat.reshape(shape, order="F" if by_columns else "C")

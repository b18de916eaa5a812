"""Read `.keras` archives: a zip of `metadata.json`, `config.json` and `model.weights.h5`.

No member is extracted under its own name, so none can be written outside a folder. Uncompressed weights, as Keras
stores them, are read in place; compressed ones through an unnamed temporary file of bounded size.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import h5py

from converters.readers.hdf5_tree import BROKEN, MOST_COMPRESSED, reason_of
from converters.readers.keras_graph import parse
from convnets_torch import files
from convnets_torch.files import open_file

WEIGHTS, CONFIG, METADATA = "model.weights.h5", "config.json", "metadata.json"
MOST_MEMBERS = 10_000
MOST_JSON = 16 << 20  # bytes of the config; those of the largest networks have a few million
LOCAL_HEADER = 30  # bytes of a member's local header before its name
# What zipfile raises for broken files.
BROKEN_ZIP = (*BROKEN, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)


def is_archive(path: Path) -> bool:
    """Return whether a file starts like a zip."""
    with open_file(path) as file:
        return file.read(4) == b"PK\x03\x04"


@contextmanager
def opened_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip and check its list of members, without reading any.

    Raises:
        OSError: the zip is broken.
        ValueError: the zip is malicious, or not a model.
    """
    with open_file(path) as file:
        try:
            archive = zipfile.ZipFile(file)
        except BROKEN_ZIP as error:
            raise OSError(f"{path} is a broken zip ({reason_of(error)}); download it again") from None
        with archive:
            for what in problems_of_members(path, archive):
                raise ValueError(f"{path}: {what}; download the file again")
            yield archive


def problems_of_members(path: Path, archive: zipfile.ZipFile) -> Iterator[str]:
    """Describe what Keras never writes in the list of members."""
    yield from problems_of_zip(path, archive)
    names = set(archive.namelist())
    if WEIGHTS not in names:
        others = ", ".join(repr(name) for name in archive.namelist()[:8])
        yield f"holds no {WEIGHTS}, but {others or 'nothing'}"
    if CONFIG not in names:
        yield f"holds no {CONFIG}"


def problems_of_zip(path: Path, archive: zipfile.ZipFile) -> Iterator[str]:
    """Describe what no library that saves models writes in a zip."""
    members = archive.infolist()
    if len(members) > MOST_MEMBERS:
        yield f"has {len(members)} members"
        return
    size = path.stat().st_size
    [(name, count)] = Counter(member.filename for member in members).most_common(1) or [("", 0)]
    if count > 1:
        yield f"has two members {name!r}"
        return
    for member in members:
        name = member.filename
        parts = re.split(r"[/\\]", name)
        if name.startswith(("/", "\\")) or ".." in parts or re.match(r"[A-Za-z]:", name):
            yield f"member {name!r} would leave its folder"
        if member.flag_bits & 0x1:
            yield f"member {name!r} is encrypted"
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            yield f"member {name!r} is compressed in a way that is not used for models"
        elif member.compress_type == zipfile.ZIP_STORED and member.file_size != member.compress_size:
            yield f"member {name!r} gives two sizes, {member.file_size} and {member.compress_size} bytes"
        if member.compress_size > size or member.file_size > MOST_COMPRESSED * max(1024, member.compress_size):
            yield f"member {name!r} says {member.file_size} bytes, stored in {member.compress_size}"
    if (total := sum(member.compress_size for member in members)) > size:
        yield f"has members of {total} bytes in {size}, so that they overlap"


def config_of(path: Path, archive: zipfile.ZipFile) -> dict[str, Any]:
    """Return the model's config."""
    return parse(_read(path, archive, CONFIG))


def version_of(path: Path, archive: zipfile.ZipFile) -> str | None:
    """Return the version of Keras that wrote the archive, or None."""
    if METADATA not in archive.namelist():
        return None
    try:
        found = files.loads(_read(path, archive, METADATA))
    except ValueError:
        raise ValueError(f"{path}: {METADATA} is not JSON; download the file again") from None
    version = found.get("keras_version") if isinstance(found, dict) else None
    return version if isinstance(version, str) else None


def _read(path: Path, archive: zipfile.ZipFile, name: str) -> str:
    if archive.getinfo(name).file_size > MOST_JSON:
        raise ValueError(f"{path}: {name} has {archive.getinfo(name).file_size} bytes, too many for a model")
    try:
        with archive.open(name) as member:
            return member.read(MOST_JSON).decode()
    except BROKEN_ZIP as error:
        raise OSError(f"{path}: {name} is broken ({reason_of(error)}); download the file again") from None


@contextmanager
def opened_weights(path: Path, archive: zipfile.ZipFile) -> Iterator[h5py.File]:
    """Open the HDF5 file in an archive."""
    member = archive.getinfo(WEIGHTS)
    with _bytes_of(path, archive, member) as stream:
        try:
            file = h5py.File(stream, "r")
        except BROKEN as error:
            raise OSError(f"{path}: {WEIGHTS} cannot be opened ({reason_of(error)}); download the file again") from None
        with file:
            yield file


@contextmanager
def _bytes_of(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[IO[bytes]]:
    if member.compress_type == zipfile.ZIP_STORED:
        with open_file(path) as file, Section(file, start_of(path, file, member), member.file_size) as section:
            yield section  # type: ignore[misc]
        return
    folder = tempfile.gettempdir()
    if shutil.disk_usage(folder).free < member.file_size:
        raise OSError(f"{folder} has no room for the {member.file_size} bytes of {path}; free some, or set TMPDIR")
    with tempfile.TemporaryFile(dir=folder) as temporary:
        try:
            with archive.open(member) as stream:  # ends after file_size bytes and verifies the checksum
                shutil.copyfileobj(stream, temporary, 1 << 20)
        except BROKEN_ZIP as error:
            raise OSError(f"{path}: {member.filename} is broken ({reason_of(error)}); download it again") from None
        if temporary.tell() != member.file_size:
            raise OSError(f"{path}: {member.filename} is truncated; download the file again")
        yield temporary


def start_of(path: Path, file: IO[bytes], member: zipfile.ZipInfo) -> int:
    """Return the offset of an uncompressed member's data, after checking that its local header names it."""
    file.seek(member.header_offset)
    header = file.read(LOCAL_HEADER)
    length, extra = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    name = file.read(length)
    start = member.header_offset + LOCAL_HEADER + length + extra
    size = file.seek(0, os.SEEK_END)
    if header[:4] != b"PK\x03\x04" or name.decode("utf-8", "replace") != member.filename:
        raise OSError(f"{path}: {member.filename} is not where the zip says; download the file again")
    if start + member.file_size > size:
        raise OSError(f"{path} is truncated: {member.filename} ends after its end; download the file again")
    return start


class Section(io.RawIOBase):
    """A read-only file for a range of bytes of an open file."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self.file: Any = getattr(file, "raw", file)  # unbuffered, as whole arrays are read
        self.start, self.size, self.position = start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self.size - self.position)]
        done = 0
        self.file.seek(self.start + self.position)
        while done < len(view) and (read := self.file.readinto(view[done:])):
            done += read
        self.position += done
        return done

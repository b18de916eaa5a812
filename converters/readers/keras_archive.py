"""`.keras` archives: a zip of `metadata.json`, `config.json` and `model.weights.h5`.

Nothing is unpacked by its name: members are read from here, so none can escape. The weights are read in place where
they are stored uncompressed, as Keras stores them, else through a temporary file of bounded size without a name.
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

from converters.readers.hdf5_tree import BROKEN, MOST_COMPRESSED
from converters.readers.keras_graph import parse
from convnets_torch import files
from convnets_torch.files import open_file

WEIGHTS, CONFIG, METADATA = "model.weights.h5", "config.json", "metadata.json"
MOST_MEMBERS = 10_000
MOST_JSON = 16 << 20  # bytes of the config; those of the largest networks have a few millions
LOCAL_HEADER = 30  # bytes before the name in front of a member
# What zipfile raises for what is broken in a file.
BROKEN_ZIP = (*BROKEN, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)


def is_archive(path: Path) -> bool:
    """Whether a file begins as a zip does."""
    with open_file(path) as file:
        return file.read(4) == b"PK\x03\x04"


@contextmanager
def opened_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """The zip, its list of members checked: nothing of it is read yet.

    Raises:
        OSError: it is broken.
        ValueError: it is made to mislead, or no model.
    """
    with open_file(path) as file:
        try:
            archive = zipfile.ZipFile(file)
        except BROKEN_ZIP as error:
            raise OSError(f"{path} is a broken zip ({_reason(error)}); download it again") from None
        with archive:
            check_members(path, archive)
            yield archive


def check_members(path: Path, archive: zipfile.ZipFile) -> None:
    """Raise ValueError, in one sentence, for the first thing in the list of members that Keras never writes."""
    for what in problems_of_members(path, archive):
        raise ValueError(f"{path}: {what}; download the file again")


def problems_of_members(path: Path, archive: zipfile.ZipFile) -> Iterator[str]:
    """What is wrong with the list of members, one phrase each."""
    problems = list(problems_of_zip(path, archive))
    yield from problems
    names = set(archive.namelist())
    if WEIGHTS not in names:
        others = ", ".join(repr(name) for name in archive.namelist()[:8])
        yield f"holds no {WEIGHTS}, but {others or 'nothing'}"
    if CONFIG not in names:
        yield f"holds no {CONFIG}"


def problems_of_zip(path: Path, archive: zipfile.ZipFile) -> Iterator[str]:
    """What no library that saves models does to a zip, one phrase each."""
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
    """The model's config."""
    text = _read(path, archive, CONFIG)
    return parse(text)


def version_of(path: Path, archive: zipfile.ZipFile) -> str | None:
    """The version of Keras that wrote it, where it says so."""
    if METADATA not in archive.namelist():
        return None
    try:
        found = files.loads(_read(path, archive, METADATA))
    except ValueError:
        raise ValueError(f"{path}: {METADATA} is no JSON; download the file again") from None
    version = found.get("keras_version") if isinstance(found, dict) else None
    return version if isinstance(version, str) else None


def _read(path: Path, archive: zipfile.ZipFile, name: str) -> str:
    if archive.getinfo(name).file_size > MOST_JSON:
        raise ValueError(f"{path}: {name} has {archive.getinfo(name).file_size} bytes; that is no model")
    try:
        with archive.open(name) as member:
            return member.read(MOST_JSON).decode()
    except BROKEN_ZIP as error:
        raise OSError(f"{path}: {name} is broken ({_reason(error)}); download the file again") from None


@contextmanager
def opened_weights(path: Path, archive: zipfile.ZipFile) -> Iterator[h5py.File]:
    """The HDF5 file in an archive."""
    member = archive.getinfo(WEIGHTS)
    with _bytes_of(path, archive, member) as stream:
        try:
            file = h5py.File(stream, "r")
        except BROKEN as error:
            raise OSError(f"{path}: {WEIGHTS} cannot be opened ({_reason(error)}); download the file again") from None
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
            with archive.open(member) as stream:  # ends after file_size bytes, and checks their sum
                shutil.copyfileobj(stream, temporary, 1 << 20)
        except BROKEN_ZIP as error:
            raise OSError(f"{path}: {member.filename} is broken ({_reason(error)}); download it again") from None
        if temporary.tell() != member.file_size:
            raise OSError(f"{path}: {member.filename} is truncated; download the file again")
        yield temporary


def start_of(path: Path, file: IO[bytes], member: zipfile.ZipInfo) -> int:
    """Where a stored member's bytes begin: behind its local header, which must name the same member."""
    file.seek(member.header_offset)
    header = file.read(LOCAL_HEADER)
    length, extra = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    name = file.read(length)
    start = member.header_offset + LOCAL_HEADER + length + extra
    size = file.seek(0, os.SEEK_END)
    if header[:4] != b"PK\x03\x04" or name.decode("utf-8", "replace") != member.filename:
        raise OSError(f"{path}: {member.filename} is not where the zip says; download the file again")
    if start + member.file_size > size:
        raise OSError(f"{path} is truncated: {member.filename} ends behind it; download the file again")
    return start


class Section(io.RawIOBase):
    """Some bytes of an open file as a file that can only be read."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self.file: Any = getattr(file, "raw", file)  # what is read are whole arrays, which need no buffer
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


def _reason(error: BaseException) -> str:
    return " ".join(str(error).strip("'\"").split()) or type(error).__name__

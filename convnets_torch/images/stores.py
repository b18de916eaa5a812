"""Folders and object stores, as the folder of a job, the place of pictures, and that of a checkpoint.

The one module that opens files through `pyarrow.fs`: addresses of stores come from the user and are no local files,
which `convnets_torch.files` opens. What it reads of a store is bounded like a file. An error is a fact about a file,
which is missing or too large; or it says nothing about the file, since the store did not answer: a `TransportError`,
after several tries.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, TypeVar

from convnets_torch.files import check_regular, is_scratch, make_folder, open_file, replacing
from convnets_torch.images.decoding import MOST_BYTES
from convnets_torch.images.finding import ENDINGS, SYSTEM, named_by
from convnets_torch.images.remote import TransportError, is_remote
from convnets_torch.text import printable

WAITS = (1.0, 4.0, 10.0)  # seconds before a request to a store is tried again
BLOCK = 1 << 20  # bytes
NATIVE = ("s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")  # schemes that pyarrow itself reads
NO_PYARROW = "batch jobs and object stores need pyarrow: pip install 'convnets-torch[batch]'"
# Errors of a disk that are a fact about the file; others, such as EIO or ESTALE, are the disk's.
OF_THE_FILE = {errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR, errno.ENXIO, errno.EINVAL}
MISSING = {errno.ENOENT, errno.ENOTDIR}

Done = TypeVar("Done")


def pyarrow() -> Any:
    """Return the module; ImportError with the way out."""
    try:
        import pyarrow
    except ImportError:
        raise ImportError(NO_PYARROW) from None
    return pyarrow


def parquet() -> Any:
    """Return `pyarrow.parquet`; ImportError with the way out."""
    pyarrow()
    from pyarrow import parquet as found

    return found


def arrow_fs() -> Any:
    """Return `pyarrow.fs`; ImportError with the way out."""
    pyarrow()
    from pyarrow import fs

    return fs


def local_path(address: str | os.PathLike[str]) -> Path:
    """Return the path of a local address, with or without `file://`."""
    return Path(str(address).removeprefix("file://"))


class Address(NamedTuple):
    """An address in a store, in parts: `root` names the store, `path` is the rest, `query` is for pyarrow."""

    root: str
    path: str
    query: str = ""


def parts_of(address: str, *, query: bool = False) -> Address:
    """Split the address of a store; `query` says whether it may end with one.

    Raises:
        ValueError: it holds a password.

    >>> parts_of("s3://bucket/a b?c.jpg"), parts_of("s3://bucket/a?region=eu", query=True)
    (Address(root='s3://bucket', path='a b?c.jpg', query=''), Address(root='s3://bucket', path='a', query='region=eu'))
    """
    scheme, _, rest = address.partition("://")
    asked = ""
    if query:
        rest, _, asked = rest.partition("?")
    place, _, path = rest.partition("/")
    if ":" in place.rpartition("@")[0]:
        raise ValueError(
            f"the address {scheme}://... holds a password, which would be written into results; leave it out, and put"
            " credentials where the store's own tools find them, such as AWS_ACCESS_KEY_ID"
        )
    return Address(f"{scheme}://{place}", path.strip("/") if query else path, asked)


@functools.lru_cache(maxsize=64)
def _connected(root: str, query: str) -> tuple[Any, str]:
    """The file system of a store, and the path in it that `root` means."""
    fs = arrow_fs()
    scheme = root.partition("://")[0]
    if scheme in NATIVE:
        system, base = fs.FileSystem.from_uri(f"{root}/{'?' if query else ''}{query}")
        return system, base.rstrip("/")
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise ImportError(f"{root} needs fsspec and its package for {scheme}: pip install fsspec") from None
    try:
        found, base = url_to_fs(f"{root}/")
    except ValueError as error:
        raise ValueError(f"{root}: {' '.join(str(error).split())}") from None
    return fs.PyFileSystem(fs.FSSpecHandler(found)), base.rstrip("/")


def connected(root: str, query: str = "") -> tuple[Any, str]:
    """Return the file system of a store and the path in it of `root`; the errors are one sentence."""
    try:
        return _connected(root, query)
    except (ImportError, ValueError, TransportError):
        raise
    except Exception as error:
        raise TransportError(f"{root} cannot be used ({reason_of(error)})") from None


def reason_of(error: BaseException) -> str:
    """Return what a store said, as one line."""
    words = printable(" ".join(str(error).split()))[:300]
    return words or type(error).__name__


def trying(request: Callable[[], Done], what: str) -> Done:
    """Return the result of a request to a store; one that fails is tried again after growing waits.

    Raises:
        FileNotFoundError: there is no such file.
        TransportError: it failed every time.
    """
    for wait in (*WAITS, None):
        try:
            return request()
        except (FileNotFoundError, ImportError):
            raise
        except Exception as error:  # stores raise OSError, Arrow's errors, and those of fsspec's many packages
            if isinstance(error, _TooLargeError):
                raise
            if wait is None:
                raise TransportError(f"{what} could not be reached ({reason_of(error)})") from None
            time.sleep(wait)
    raise AssertionError


class State(NamedTuple):
    """What a store says of a file: its size in bytes, and a text that changes when the file does; None if unknown."""

    size: int | None
    etag: str | None


UNKNOWN = State(None, None)


def fetch(uri: str, query: str = "", most: int = MOST_BYTES) -> tuple[bytes, State]:
    """Return the contents of a file, and what its store says of it; runs in several threads at once.

    Raises:
        FileNotFoundError: there is no such file.
        OSError, ValueError: it cannot be opened, or has more than `most` bytes.
        TransportError: the store, or the disk, did not answer.
    """
    if not is_remote(uri):
        return _fetch_local(uri, most)
    root, path, _ = parts_of(uri)

    def request() -> tuple[bytes, State]:
        system, base = connected(root, query)
        with system.open_input_file(f"{base}/{path}") as file:
            size = file.size()
            check_size(uri, size, most)
            return file.read(), State(size, _changed(file.metadata()))

    try:
        return trying(request, uri)
    except FileNotFoundError:
        raise FileNotFoundError(f"{uri} does not exist") from None


def open_address(address: str, query: str = "") -> IO[bytes]:
    """Open a file, local or in a store, for reading in any order.

    Raises:
        FileNotFoundError: there is none.
        TransportError: the store did not answer.
    """
    if not is_remote(address):
        return open_file(local_path(address))
    root, path, _ = parts_of(address)

    def request() -> IO[bytes]:
        system, base = connected(root, query)
        found: IO[bytes] = system.open_input_file(f"{base}/{path}")
        return found

    return trying(request, address)


class _TooLargeError(ValueError):
    """Trying again would not help."""


def check_size(name: str, size: int, most: int) -> None:
    """Raise ValueError if a file has more than `most` bytes."""
    if size > most:
        raise _TooLargeError(f"{name} has {size:,} bytes, more than the {most:,} that are read of one file")


def _fetch_local(uri: str, most: int) -> tuple[bytes, State]:
    path = local_path(uri)
    try:
        with open_file(path) as file:
            found = os.fstat(file.fileno())
            check_size(uri, found.st_size, most)
            return file.read(), State(found.st_size, str(found.st_mtime_ns))
    except OSError as error:
        if error.errno is None or error.errno in MISSING or error.errno in OF_THE_FILE:
            raise
        raise TransportError(f"{uri} could not be read ({error.strerror})") from None


def _changed(metadata: Any) -> str | None:
    """The time of change that an open file of a store says; pyarrow 26 gives names as text, 25 as bytes.

    >>> {_changed({name: b"2026-12-01T14:58:48Z"}) for name in ("Last-Modified", b"Last-Modified")}
    {'2026-12-01T14:58:48'}
    """
    known = metadata or {}
    said = known.get("Last-Modified", known.get(b"Last-Modified"))
    return None if said is None else said.decode().removesuffix("Z").partition(".")[0]


def answers(uri: str, query: str = "") -> bool:
    """Return whether the store, or the disk, of a file answers at all."""
    if not is_remote(uri):
        return True
    try:
        system, base = connected(parts_of(uri).root, query)
        system.get_file_info(base or "/")
    except Exception:
        return False
    return True


@dataclass
class Walk:
    """The pictures of a folder or of a prefix, in the order of their paths, listed while they are read.

    Attributes:
        left_out: what -> how many were left out.
    """

    address: str
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.left_out: dict[str, int] = {}
        self._excluded = named_by(self.exclude)

    def __iter__(self) -> Iterator[tuple[str, int | None, str | None]]:
        """Yield (uri, size, etag) of each picture.

        Raises:
            OSError: there is no such folder, or it cannot be listed.
        """
        if not is_remote(self.address):
            folder = local_path(self.address)
            if not folder.is_dir():
                check_regular(folder)
                found = folder.stat()
                yield str(folder.absolute()), found.st_size, str(found.st_mtime_ns)
                return
            yield from self._local(folder.absolute(), PurePosixPath())
            return
        root, path, query = parts_of(self.address, query=True)
        system, base = connected(root, query)
        start = f"{base}/{path}".rstrip("/")
        yield from self._remote(system, start, f"{root}{start[len(base) :]}", PurePosixPath())

    def _keeps(self, name: str, below: PurePosixPath, is_folder: bool) -> bool:
        if self._excluded(Path(below)):
            return False
        is_picture = Path(name).suffix.lower() in ENDINGS
        if name.startswith(".") or (is_folder and name.lower() in SYSTEM):
            return self._leave_out("hidden files and hidden or system folders", is_folder or is_picture)
        return is_folder or is_picture or self._leave_out("files whose ending is no picture's")

    def _leave_out(self, kind: str, counts: bool = True) -> bool:
        self.left_out[kind] = self.left_out.get(kind, 0) + counts
        return False

    def _local(self, folder: Path, below: PurePosixPath) -> Iterator[tuple[str, int | None, str | None]]:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            inner = below / entry.name
            try:
                is_folder = entry.is_dir()
            except OSError:  # a link in a circle
                is_folder = False
            if not self._keeps(entry.name, inner, is_folder):
                continue
            if not is_folder:
                try:
                    state = entry.stat()
                    yield entry.path, state.st_size, str(state.st_mtime_ns)
                except OSError:
                    yield entry.path, None, None
            elif entry.is_symlink():
                self._leave_out("links to folders, which are not followed; name them as well if they are meant")
            else:
                yield from self._local(Path(entry.path), inner)

    def _remote(
        self, system: Any, place: str, uri: str, below: PurePosixPath
    ) -> Iterator[tuple[str, int | None, str | None]]:
        fs = arrow_fs()
        try:
            found = trying(lambda: system.get_file_info(fs.FileSelector(place)), uri)
        except FileNotFoundError:
            raise FileNotFoundError(f"{uri} does not exist; name a folder or prefix that holds pictures") from None
        for entry in sorted(found, key=lambda entry: str(entry.base_name)):
            inner, is_folder = below / entry.base_name, entry.type == fs.FileType.Directory
            if not entry.base_name or not self._keeps(entry.base_name, inner, is_folder):
                continue
            if is_folder:
                yield from self._remote(system, entry.path, f"{uri}/{entry.base_name}", inner)
            else:
                yield f"{uri}/{entry.base_name}", entry.size, _time_of(entry)


def _time_of(entry: Any) -> str | None:
    """When a store's listing says that a file was changed, to the second, as `_changed` says it."""
    found = entry.mtime
    return None if found is None else found.strftime("%Y-%m-%dT%H:%M:%S")


class Listed(NamedTuple):
    """A file of a job: its name, and when it was written, in seconds since 1970; 0 if the store does not say."""

    name: str
    written: float


class Folder:
    """The folder of a job: files that are written once, whole or not at all.

    Args:
        address: a path, `file://`, or the address of a store.
    """

    def __init__(self, address: str | os.PathLike[str]) -> None:
        self.address = str(address)
        self.remote = is_remote(self.address)
        self._root, path, self._query = (
            parts_of(self.address, query=True) if self.remote else Address("", str(local_path(address)))
        )
        self._path = Path(path)
        self._inner = path

    def __str__(self) -> str:
        return self.address

    def _store(self) -> tuple[Any, str]:
        system, base = connected(self._root, self._query)
        return system, f"{base}/{self._inner}".rstrip("/")

    def read(self, name: str, most: int) -> bytes:
        """Return the contents of a file.

        Raises:
            FileNotFoundError: there is none.
            OSError, ValueError: it cannot be read, or has more than `most` bytes.
        """
        if not self.remote:
            with open_file(self._path / name, max_bytes=most) as file:
                return file.read()

        def request() -> bytes:
            system, base = self._store()
            with system.open_input_file(f"{base}/{name}") as file:
                check_size(f"{self}/{name}", file.size(), most)
                return bytes(file.read())

        return trying(request, f"{self}/{name}")

    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading in any order; errors are as in `read`."""
        if not self.remote:
            return open_file(self._path / name)

        def request() -> IO[bytes]:
            system, base = self._store()
            found: IO[bytes] = system.open_input_file(f"{base}/{name}")
            return found

        return trying(request, f"{self}/{name}")

    def write(self, name: str, write: Callable[[IO[bytes]], object]) -> None:
        """Write a file: in a folder under a temporary name first, in a store in one upload.

        Raises:
            OSError: it cannot be written.
        """
        if not self.remote:
            make_folder(self._path, str(PurePosixPath(name).parent))
            with replacing(self._path / name) as temporary, temporary.open("wb") as file:
                write(file)
            return
        made = io.BytesIO()
        write(made)

        def request() -> None:
            system, base = self._store()
            with system.open_output_stream(f"{base}/{name}") as file:
                file.write(made.getbuffer())

        trying(request, f"{self}/{name}")

    def create(self, name: str, content: bytes) -> None:
        """Write a file that is not there yet.

        Raises:
            FileExistsError: it is there. Two that create it at the same moment in a store are not told apart here; who
                needs that reads it again.
        """
        if not self.remote:
            make_folder(self._path)
            scratch = self._path / f"{name}.{os.getpid()}.tmp"
            try:
                with replacing(scratch) as temporary:
                    temporary.write_bytes(content)
                try:
                    os.link(scratch, self._path / name)
                except FileExistsError:
                    raise
                except OSError:  # a file system without hard links
                    if self.exists(name):
                        raise FileExistsError(f"{self}/{name} exists") from None
                    scratch.replace(self._path / name)
            finally:
                scratch.unlink(missing_ok=True)
            return
        if self.exists(name):
            raise FileExistsError(f"{self}/{name} exists")
        self.write(name, lambda file: file.write(content))

    def exists(self, name: str) -> bool:
        if not self.remote:
            return (self._path / name).exists()
        fs = arrow_fs()

        def request() -> bool:
            system, base = self._store()
            return bool(system.get_file_info(f"{base}/{name}").type != fs.FileType.NotFound)

        return trying(request, f"{self}/{name}")

    def list(self, below: str) -> Iterator[Listed]:
        """Yield the files of a sub-folder in any order; none if there is no such folder."""
        if not self.remote:
            try:
                with os.scandir(self._path / below) as entries:
                    for entry in entries:
                        if not is_scratch(entry.name):
                            yield Listed(entry.name, entry.stat().st_mtime)
            except FileNotFoundError:
                return
            return
        fs = arrow_fs()

        def request() -> Any:
            system, base = self._store()
            return system.get_file_info(fs.FileSelector(f"{base}/{below}", allow_not_found=True))

        for entry in trying(request, f"{self}/{below}"):
            if entry.type == fs.FileType.File:
                yield Listed(entry.base_name, 0.0 if entry.mtime is None else entry.mtime.timestamp())

    def folders(self, below: str) -> tuple[str, ...]:
        """Return the names of the folders in a sub-folder; none if there is no such folder."""
        if not self.remote:
            with contextlib.suppress(FileNotFoundError), os.scandir(self._path / below) as entries:
                return tuple(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
            return ()
        fs = arrow_fs()

        def request() -> Any:
            system, base = self._store()
            return system.get_file_info(fs.FileSelector(f"{base}/{below}".rstrip("/"), allow_not_found=True))

        found = trying(request, f"{self}/{below}")
        return tuple(str(entry.base_name) for entry in found if entry.type == fs.FileType.Directory)

    def remove_folder(self, name: str) -> None:
        """Remove a folder and what is in it, if it is there."""
        if not self.remote:
            shutil.rmtree(self._path / name, ignore_errors=True)
            return

        def request() -> None:
            system, base = self._store()
            system.delete_dir(f"{base}/{name}")

        with contextlib.suppress(FileNotFoundError):
            trying(request, f"{self}/{name}")

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        if not self.remote:
            (self._path / name).unlink(missing_ok=True)
            return

        def request() -> None:
            system, base = self._store()
            system.delete_file(f"{base}/{name}")

        with contextlib.suppress(FileNotFoundError):
            trying(request, f"{self}/{name}")

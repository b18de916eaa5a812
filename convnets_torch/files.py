"""Open untrusted files safely, and write files atomically: a complete new file replaces the old one."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import inspect
import json
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias, TypeVar

if sys.platform != "win32":
    import fcntl

from convnets_torch.text import ConvnetsTorchWarning

# Flags that exist on this system. O_NONBLOCK: if a pipe has replaced the file, do not wait for it.
_READ = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"))
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_PART = re.compile(r"\.[0-9a-f]{16}\.part")  # names of the folders that `replacing` works in

_cleaned: set[Path] = set()  # folders in which this process has removed leftovers of killed processes
_warned_of: set[Path] = set()  # folders that this process has warned about


Output: TypeAlias = "str | os.PathLike[str] | IO[bytes]"
Write = TypeVar("Write", bound=Callable[..., Any])


class FileWarning(ConvnetsTorchWarning):
    """The location of a file is unsafe; the message names it."""


# Reading


def open_file(path: str | os.PathLike[str], *, max_bytes: int | None = None, follow_links: bool = True) -> IO[bytes]:
    """Open an untrusted file for reading; the checks apply to the opened file, even if its name is reused meanwhile.

    Args:
        path: path of a regular file.
        max_bytes: refuse larger files.
        follow_links: False refuses a symbolic link at the end of `path`.

    Raises:
        OSError: `path` is not a regular file, or cannot be read.
        ValueError: it has more than `max_bytes`.
    """
    check_regular(path, follow_links=follow_links)  # before opening, because opening a device can trigger it

    def check(found: os.stat_result) -> None:
        if max_bytes is not None and found.st_size > max_bytes:
            raise ValueError(
                f"{path} has {found.st_size:,} bytes, but no file of its kind needs more than {max_bytes:,}; it is"
                " damaged, or something else"
            )

    return _opened(path, _READ | (0 if follow_links else _NO_LINK), "rb", check)


def _opened(path: str | os.PathLike[str], flags: int, mode: str, check: Callable[[os.stat_result], None]) -> IO[bytes]:
    """Open a file and check its descriptor: it must be a regular file, and `check` must not raise."""
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        raise (_refused_link(path) if error.errno == errno.ELOOP else error) from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(f"{path} is not a regular file; name one")
        check(found)
        return os.fdopen(descriptor, mode)
    except BaseException:
        os.close(descriptor)
        raise


def read_text(path: str | os.PathLike[str], *, max_bytes: int) -> str:
    """Read a small UTF-8 file, with or without a byte order mark; line ends become `\\n`.

    Raises:
        OSError: as `open_file`.
        ValueError: it has more than `max_bytes`, or is not UTF-8.
    """
    with open_file(path, max_bytes=max_bytes) as file:
        content = file.read()
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def opened_path(file: IO[bytes]) -> str:
    """A path to an open file that stays valid if its name is reused, for libraries that need a path."""
    path = f"/dev/fd/{file.fileno()}"
    return path if os.path.exists(path) else os.fspath(file.name)  # noqa: PTH110 - path is a string


def check_regular(path: str | os.PathLike[str], *, follow_links: bool = True) -> None:
    """Raise OSError if there is no regular file at `path`."""
    try:
        mode = Path(path).stat(follow_symlinks=follow_links).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: NUL byte in the name
        if re.match(r"[a-z]+:/", str(path)):  # Path merges double slashes
            raise FileNotFoundError(f"{path} is a URL, and nothing is downloaded; save it, and name the file") from None
        raise FileNotFoundError(f"{path} does not exist; name a file") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(f"{path} is a link that leads in a circle; name another file") from None
        raise
    if stat.S_ISLNK(mode):
        raise _refused_link(path)
    if stat.S_ISDIR(mode):
        os.scandir(path).close()  # raises the reason if the folder cannot be listed
        raise IsADirectoryError(f"{path} is a folder; name a file")
    if not stat.S_ISREG(mode):
        raise OSError(f"{path} is not a regular file; name one")


def _refused_link(path: str | os.PathLike[str]) -> OSError:
    return OSError(f"{path} is a link, and what it leads to is not used; put a file in its place, or name another")


# Writing


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path; if the block succeeds, sync that file and rename it to `path`.

    If the block raises, the temporary file is removed and an existing file at `path` is unchanged. Processes that have
    mapped the old file keep it. A link at `path` is replaced, never followed. The new file has default permissions,
    restricted to those of the old file.

    The temporary file lies in its own folder beside `path`, so libraries can create further files there. Folders that
    killed processes left are removed by the next write to the same place.

    Raises:
        FileNotFoundError, NotADirectoryError: the parent of `path` is not a folder.
        IsADirectoryError: `path` is a folder.
        OSError: `path` exists and is not a regular file, or cannot be written.
    """
    check_writable(path)
    target = Path(path).parent.resolve() / Path(path).name
    with scratch_folder(target.parent) as folder:
        temporary = folder / target.name
        try:
            temporary.touch(exist_ok=False)
            rights = stat.S_IMODE(temporary.stat().st_mode)
            if target.is_file() and not target.is_symlink():
                rights &= stat.S_IMODE(target.stat().st_mode)
            yield temporary
            temporary.chmod(rights)  # a library may have replaced the file
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
        except OSError as error:
            reason = error.strerror or error
            raise OSError(f"{path} cannot be written ({reason}); what was there before is untouched") from None
    _sync_folder(target.parent)


@dataclass(frozen=True)
class Writer:
    """Writes one kind of output, in the format given by the ending of the file name.

    Attributes:
        what: name of the output in messages, such as "a map".
        formats: lower-case ending -> function that writes that format, given a path and the arguments of `write`.
    """

    what: str
    formats: Mapping[str, Callable[..., None]]

    def check(self, path: str | os.PathLike[str]) -> None:
        """As `check_output` with the endings of `formats`."""
        check_output(path, self.formats, self.what)

    def write(self, path: Output, *arguments: Any) -> None:
        """Write a file, atomically; `arguments` go to the function that writes the format. Raises as `check`.

        `path` may be an open binary file, which receives the complete output, or nothing if writing fails. Its format
        follows the ending of its `name`, if any, else it is the first of `formats`.
        """
        with _path_to_write(path, next(iter(self.formats))) as place:
            self.check(place)
            with replacing(place) as temporary:
                self.formats[place.suffix.lower()](temporary, *arguments)


def check_output(path: str | os.PathLike[str], endings: Iterable[str], what: str) -> None:
    """Raise if `what` ("a map") cannot be written to `path`; call it before long work.

    Raises:
        ValueError: the path has none of the `endings`, which are in lower case.
        OSError: `path` cannot be written.
    """
    *others, last = endings
    if Path(path).suffix.lower() not in (*others, last):
        known = f"{', '.join(others)} or {last}" if others else last
        raise ValueError(f"{path} has an unknown ending; {what} can be written as {known}")
    check_writable(path)


@contextlib.contextmanager
def _path_to_write(output: Output, ending: str) -> Iterator[Path]:
    """Yield the path to write; if `output` is an open file, copy the result into it."""
    if isinstance(output, str | os.PathLike):
        yield Path(output)
        return
    name = getattr(output, "name", None)
    with tempfile.TemporaryDirectory(prefix="convnets-torch-") as folder:
        whole = Path(folder) / f"output{(isinstance(name, str) and Path(name).suffix) or ending}"
        yield whole
        with open_file(whole) as file:
            shutil.copyfileobj(file, output)


def to_open_files(ending: str) -> Callable[[Write], Write]:
    """Decorate a function that writes to `path` so that it also accepts an open binary file, as `Writer.write` does.

    For functions that do not fit `Writer`; `ending` gives the format for files without a name, such as `io.BytesIO`.
    """

    def decorate(function: Write) -> Write:
        @functools.wraps(function)
        def with_path(*arguments: Any, **named: Any) -> Any:
            bound = inspect.signature(function).bind(*arguments, **named)
            with _path_to_write(bound.arguments["path"], ending) as bound.arguments["path"]:
                return function(*bound.args, **bound.kwargs)

        return with_path  # type: ignore[return-value]

    return decorate


def path_of(output: Output) -> Path:
    """The path to write, inside a function decorated with `to_open_files`."""
    assert isinstance(output, str | os.PathLike)
    return Path(output)


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Yield a new folder in `parent` and remove it afterwards; first remove those that killed processes left.

    `is_scratch` recognises its name, so it is not mistaken for an output.
    """
    _remove_leftovers(parent)
    with _own_folder(parent) as folder:
        yield folder


def is_scratch(name: str) -> bool:
    """Whether a name is that of a `scratch_folder`."""
    return _PART.fullmatch(name) is not None


@contextlib.contextmanager
def _own_folder(parent: Path) -> Iterator[Path]:
    """A new folder, locked while the block runs so that other processes do not take it for a leftover."""
    while True:
        folder = parent / f".{secrets.token_hex(8)}.part"
        folder.mkdir(mode=0o700)
        lock = _lock(folder, wait=True)
        if folder.exists():  # else another process locked it first and removed it as a leftover
            break
        _unlock(lock)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _unlock(lock)


def _remove_leftovers(parent: Path) -> None:
    """Remove leftover scratch folders from `parent`, once per process."""
    if parent in _cleaned or is_scratch(parent.name):  # the parent is a scratch folder in use
        return
    _cleaned.add(parent)
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if not is_scratch(entry.name) or not entry.is_dir(follow_symlinks=False) or not _is_trusted(entry.stat()):
                continue
            lock = _lock(Path(entry.path), wait=False)
            if lock is not None:
                with contextlib.suppress(RecursionError):  # not one of ours if nested that deep
                    shutil.rmtree(entry.path, ignore_errors=True)
                _unlock(lock)


def _lock(folder: Path, *, wait: bool) -> int | None:
    """Lock a folder and return the descriptor; None if it is locked, gone, or locks are not supported."""
    if sys.platform == "win32":
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | _NO_LINK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _unlock(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)


def resolved(path: str | os.PathLike[str]) -> Path:
    """Resolve all links; raises OSError if they lead in a circle."""
    try:
        return Path(path).resolve()
    except RuntimeError:  # raised before Python 3.13
        raise OSError(f"{path} is a link that leads in a circle; name another file") from None


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise OSError if an output cannot be written to `path`; call it before long work."""
    path = Path(path)
    behind = resolved(path)
    if behind.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file to write")
    if behind.exists() and not behind.is_file():
        raise OSError(f"{path} is not a regular file; name another output")
    folder = resolved(path.parent)
    if not folder.exists():
        raise FileNotFoundError(f"folder {folder} does not exist; create it first")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder; name another output")
    for place in (folder, folder / path.name):
        if place.exists() and not place.is_symlink() and not os.access(place, os.W_OK):
            raise PermissionError(f"{place} cannot be written to; name another output or change its rights")


def make_folder(folder: str | os.PathLike[str], below: str | os.PathLike[str] = ".") -> Path:
    """Create an output folder and the sub-folders `below` it; return the innermost.

    Raises:
        OSError: a sub-folder is a link or a file, or cannot be created.
    """
    inner = Path(folder)
    inner.mkdir(parents=True, exist_ok=True)
    for part in Path(below).parts:
        if part == os.pardir:
            raise OSError(f"{below} leads out of {folder}; name another place")
        inner = inner / part
        if inner.is_symlink():
            raise _refused_link(inner)
        inner.mkdir(exist_ok=True)
    return inner


# Files of earlier runs that are continued


def open_own(path: Path, mode: str = "rb") -> IO[bytes]:
    """Open a file that an earlier run of this user wrote and this run continues.

    Args:
        path: path of the file, in a folder checked with `check_own_folder`.
        mode: "rb" to read it, "r+b" to change it in place or create it.

    Raises:
        OSError: it is a link, not a regular file, belongs to another user, or cannot be opened; or, for "r+b", it has
            several hard links.
    """
    changing = mode == "r+b"
    if path.is_symlink():
        raise _refused_link(path)
    if not changing or path.exists():
        check_regular(path, follow_links=False)

    def check(found: os.stat_result) -> None:
        if not _is_trusted(found):
            raise PermissionError(f"{path} belongs to another user; name a folder of your own")
        if changing and found.st_nlink > 1:
            raise OSError(f"{path} is the same file as another one (a hard link); name another folder")

    flags = (os.O_RDWR | os.O_CREAT | (_READ & ~os.O_RDONLY)) if changing else _READ
    return _opened(path, flags | _NO_LINK, mode, check)


def check_own_folder(folder: Path) -> None:
    """Check a folder that an earlier run of this user wrote: a cache, an index, or a run to resume.

    Raises:
        OSError: an entry, at any depth, is neither a regular file nor a folder.

    Warns:
        FileWarning: the folder is world-writable.
    """
    if not folder.exists():
        return
    waiting = [folder]  # not recursive: folders can be nested deeper than Python's recursion limit
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    raise _refused_link(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                elif not entry.is_file(follow_symlinks=False):
                    raise OSError(f"{entry.path} is not a regular file; remove it, or name another folder")
    if stat.S_IMODE(folder.stat().st_mode) & stat.S_IWOTH and folder not in _warned_of:
        _warned_of.add(folder)
        message = f"every user may write to {folder}, and so change what is read from it; chmod o-w {folder}"
        warnings.warn(message, FileWarning, stacklevel=3)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Lock a folder against other processes that call this while the block runs, if the system has locks.

    Raises:
        BlockingIOError: another process holds the lock.
    """
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise BlockingIOError(f"another process works in {folder}; wait for its end, or name another folder") from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(descriptor)


def _is_trusted(found: os.stat_result) -> bool:
    """Whether a file belongs to this user or to root; root trusts every owner."""
    return os.name == "nt" or os.geteuid() == 0 or found.st_uid in (0, os.geteuid())


# Checks of outputs, and digests


def check_page(path: Path, what: str) -> None:
    """As `check_output`, for an HTML page that shows `what` ("a map")."""
    check_output(path, (".html", ".htm"), what)


def check_kept(output: Path, inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Raise ValueError if `output` would overwrite one of the `inputs`."""
    there = resolved(output)
    if there.exists() and any(str(each) != "-" and Path(each).exists() and there.samefile(each) for each in inputs):
        raise ValueError(f"{output} would overwrite a picture that is read; name another output")


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable, if the system can (Windows cannot open folders)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256(path: Path, *, max_bytes: int | None = None) -> str:
    """sha256 of a file in hexadecimal, read in blocks; raises as `open_file`."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(1 << 20))
    with open_file(path, max_bytes=max_bytes) as file:
        while read := file.readinto(buffer):  # type: ignore[attr-defined]
            digest.update(buffer[:read])
    return digest.hexdigest()


DEPTH = 64  # maximum nesting of lists and objects
DIGITS = 19  # maximum digits of integers: 64 bits


def loads(text: str | bytes) -> Any:
    """Parse JSON strictly.

    Raises:
        ValueError: it is not JSON, is nested deeper than 64 levels, repeats a name in an object, or has an integer of
            more than 19 digits.

    >>> loads('{"sizes": [224, 256]}')
    {'sizes': [224, 256]}
    """
    try:
        found = json.loads(text, parse_int=_whole_number, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError(f"it is nested more deeply than {DEPTH}") from None
    level = [found]
    for _ in range(DEPTH + 1):
        level = [entry for entry in level if isinstance(entry, dict | list)]
        if not level:
            return found
        level = [inner for entry in level for inner in (entry.values() if isinstance(entry, dict) else entry)]
    raise ValueError(f"it is nested more deeply than {DEPTH}")


def _whole_number(digits: str) -> int:
    if len(digits.lstrip("-")) > DIGITS:
        raise ValueError(f"it has a number of {len(digits)} digits")
    return int(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"it has the name {twice!r:.80} twice")
    return found


def cache_folder() -> Path:
    """The folder of cached weights: `CONVNETS_TORCH_HOME`, else the platform's cache folder."""
    if home := os.environ.get("CONVNETS_TORCH_HOME"):
        return Path(os.path.expanduser(home))  # noqa: PTH111 - Path.expanduser raises for an unknown user
    from platformdirs import user_cache_path

    return user_cache_path("convnets-torch", appauthor=False)


def find(name: str | os.PathLike[str]) -> Path:
    """Return the file called `name`, else `name.safetensors` in the user's cache; never downloads.

    Raises:
        OSError: neither exists.
    """
    path = Path(name)
    if path.is_file():
        return path
    bare = path.parent == Path() and path.name == str(name)
    if bare:
        cached = cache_folder() / (path.name if path.suffix == ".safetensors" else f"{path.name}.safetensors")
        if cached.is_file():
            return cached
    if path.exists() or not bare:
        check_regular(path)
    held = ", ".join(sorted(file.stem for file in cache_folder().glob("*.safetensors"))) or "nothing"
    raise FileNotFoundError(
        f"{name} is neither a file nor in the cache {cache_folder()}, which holds {held};"
        " convert weights into it with `convnets-torch convert IN.h5 --cache`"
    )

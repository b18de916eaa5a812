"""Files: what comes from outside is opened here, and what is written replaces the old file when it is whole."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import inspect
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias, TypeVar

if sys.platform != "win32":
    import fcntl
import json
from collections import Counter

from convnets_torch.text import ConvnetsTorchWarning

# Not every system has these flags. A pipe that took the file's place must not keep us waiting.
_READ = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"))
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_PART = re.compile(r"\.[0-9a-f]{16}\.part")  # the folders that `replacing` works in

_cleaned: set[Path] = set()  # folders in which this process has looked for what killed ones left
_remarked: set[Path] = set()  # folders that this process has remarked on


Output: TypeAlias = "str | os.PathLike[str] | IO[bytes]"
Write = TypeVar("Write", bound=Callable[..., Any])


class FileWarning(ConvnetsTorchWarning):
    """What is unsafe about where a file lies; the message names the place."""


# Reading


def open_file(path: str | os.PathLike[str], *, max_bytes: int | None = None, follow_links: bool = True) -> IO[bytes]:
    """Open a file from outside for reading; what was checked is what is read, whatever happens to its name meanwhile.

    Args:
        path: of a regular file.
        max_bytes: refuse a larger one.
        follow_links: False refuses a symbolic link at the end of `path`.

    Raises:
        OSError: there is no regular file, or it cannot be read.
        ValueError: it has more than `max_bytes`.
    """
    check_regular(path, follow_links=follow_links)  # before opening, which alone can start a device

    def check(found: os.stat_result) -> None:
        if max_bytes is not None and found.st_size > max_bytes:
            raise ValueError(
                f"{path} has {found.st_size:,} bytes, but no file of its kind needs more than {max_bytes:,}; it is"
                " damaged, or something else"
            )

    return _opened(path, _READ | (0 if follow_links else _NO_LINK), "rb", check)


def _opened(path: str | os.PathLike[str], flags: int, mode: str, check: Callable[[os.stat_result], None]) -> IO[bytes]:
    """A file whose descriptor has passed the checks: it is a regular one, and `check` does not raise."""
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


def read_text(path: str | os.PathLike[str], *, max_bytes: int, follow_links: bool = True) -> str:
    """The text of a small file in UTF-8, with or without a mark of the order of bytes; line ends become `\\n`.

    Raises:
        OSError: as `open_file`.
        ValueError: it has more than `max_bytes`, or is not UTF-8.
    """
    with open_file(path, max_bytes=max_bytes, follow_links=follow_links) as file:
        content = file.read()
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 (byte {error.start}); save it as UTF-8") from None


def opened_path(file: IO[bytes]) -> str:
    """A path that leads to an open file even when another has taken its name, for libraries that want a path."""
    path = f"/dev/fd/{file.fileno()}"
    return path if os.path.exists(path) else os.fspath(file.name)  # noqa: PTH110 - there is no Path to ask


def check_regular(path: str | os.PathLike[str], *, follow_links: bool = True) -> None:
    """Raise OSError, in one sentence, when there is no regular file at `path` to read."""
    try:
        mode = Path(path).stat(follow_symlinks=follow_links).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a zero byte in its name
        if re.match(r"[a-z]+:/", str(path)):  # a path has one slash less
            raise FileNotFoundError(
                f"{path} is an address, and nothing is downloaded; save what is there, and name the file"
            ) from None
        raise FileNotFoundError(f"{path} does not exist; name a file") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(f"{path} is a link that leads in a circle; name another file") from None
        raise
    if stat.S_ISLNK(mode):
        raise _refused_link(path)
    if stat.S_ISDIR(mode):
        os.scandir(path).close()  # which says why, where it is a folder that cannot even be listed
        raise IsADirectoryError(f"{path} is a folder; name a file")
    if not stat.S_ISREG(mode):
        raise OSError(f"{path} is not a regular file; name one")


def _refused_link(path: str | os.PathLike[str]) -> OSError:
    return OSError(f"{path} is a link, and what it leads to is not used; put a file in its place, or name another")


# Writing


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path; when the block ends well, sync that file and rename it to `path`.

    When the block raises, the temporary file is removed and an older file at `path` stays as it was. A mapped older
    file stays valid for those who have it open. A link at `path` is replaced by the file, never written through. The
    file has the rights of any new file, but none that an older one did not have.

    The temporary file lies in a folder of its own beside `path`, where libraries may put more; what a killed process
    left of such folders is removed by the next that writes there.

    Raises:
        FileNotFoundError, NotADirectoryError: the folder of `path` is none.
        IsADirectoryError: `path` is a folder.
        OSError: `path` is neither a new name nor a regular file, or cannot be written.
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
            temporary.chmod(rights)  # a library may have put a file with rights of its own in its place
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
        except OSError as error:
            reason = error.strerror or error
            raise OSError(f"{path} cannot be written ({reason}); what was there before is untouched") from None
    _sync_folder(target.parent)


def to_open_files(ending: str) -> Callable[[Write], Write]:
    """A decorator of functions that write a file at `path`: they take an open binary file there as well.

    It gets the whole file once that is written and checked, and nothing where the function raises. The format is that
    of the ending of the file's `name`, if it has one.

    Args:
        ending: of the format for files without such a name, such as `io.BytesIO`.
    """

    def decorate(function: Write) -> Write:
        @functools.wraps(function)
        def write(*arguments: Any, **named: Any) -> Any:
            bound = inspect.signature(function).bind(*arguments, **named)
            output = bound.arguments["path"]
            if not hasattr(output, "write"):
                return function(*arguments, **named)
            name = getattr(output, "name", None)
            with tempfile.TemporaryDirectory(prefix="convnets-torch-") as folder:
                whole = Path(folder) / f"output{(isinstance(name, str) and Path(name).suffix) or ending}"
                bound.arguments["path"] = whole
                result = function(*bound.args, **bound.kwargs)
                with open_file(whole) as file:
                    shutil.copyfileobj(file, output)
            return result

        return write  # type: ignore[return-value]

    return decorate


def path_of(output: Output) -> Path:
    """The path that a function is to write, within `to_open_files`."""
    assert isinstance(output, str | os.PathLike)
    return Path(output)


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Give a new folder in `parent`, removed afterwards; what a killed process left of such is removed first.

    Its name is that of no output: `is_scratch` says so.
    """
    _remove_left_over(parent)
    with _own_folder(parent) as folder:
        yield folder


def is_scratch(name: str) -> bool:
    """Whether a name is one that `scratch_folder` gives."""
    return _PART.fullmatch(name) is not None


@contextlib.contextmanager
def _own_folder(parent: Path) -> Iterator[Path]:
    """A new folder, locked while the block runs, so that others can tell it from what a killed process left."""
    while True:
        folder = parent / f".{secrets.token_hex(8)}.part"
        folder.mkdir(mode=0o700)
        lock = _lock(folder, wait=True)
        if folder.exists():  # else another process was faster to lock it, and took it for a dead one's
            break
        _unlock(lock)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _unlock(lock)


def _remove_left_over(parent: Path) -> None:
    """Remove, once in a process, the folders of `replacing` that nobody works in any more."""
    if parent in _cleaned:
        return
    _cleaned.add(parent)
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if not is_scratch(entry.name) or not entry.is_dir(follow_symlinks=False) or not _is_ours(entry.stat()):
                continue
            lock = _lock(Path(entry.path), wait=False)
            if lock is not None:
                with contextlib.suppress(RecursionError):  # one that lies so deep is none of ours
                    shutil.rmtree(entry.path, ignore_errors=True)
                _unlock(lock)


def _lock(folder: Path, *, wait: bool) -> int | None:
    """A descriptor that holds a lock on a folder; None where it is locked, gone, or the file system has no locks."""
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
    """The absolute path behind all links; OSError, in one sentence, where they lead in a circle."""
    try:
        return Path(path).resolve()
    except RuntimeError:  # what Python before 3.13 raises
        raise OSError(f"{path} is a link that leads in a circle; name another file") from None


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise OSError, in one sentence, when an output cannot be put at `path`: asked before long work begins."""
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
    """Make a folder for outputs, and the folders `below` it, none of which may be a link to elsewhere.

    Returns:
        The innermost.

    Raises:
        OSError: one of them is a link or a file, or cannot be made.
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


# What earlier runs left, to be gone on with


def open_own(path: Path, mode: str = "rb") -> IO[bytes]:
    """Open a file that an earlier run of this user wrote, and that this one goes on with.

    Args:
        path: of the file; its folder was asked about with `check_own_folder`.
        mode: "rb" to read it, "r+b" to change it in place, which makes it where there is none.

    Raises:
        OSError: it is a link, has further names, is no regular file, belongs to another user, or cannot be opened.
    """
    changing = mode == "r+b"
    if path.is_symlink():
        raise _refused_link(path)
    if not changing or path.exists():
        check_regular(path, follow_links=False)

    def check(found: os.stat_result) -> None:
        if not _is_ours(found):
            raise PermissionError(f"{path} belongs to another user; name a folder of your own")
        if changing and found.st_nlink > 1:
            raise OSError(f"{path} is the same file as another one (a hard link); name another folder")

    flags = (os.O_RDWR | os.O_CREAT | (_READ & ~os.O_RDONLY)) if changing else _READ
    return _opened(path, flags | _NO_LINK, mode, check)


def check_own_folder(folder: Path) -> None:
    """Ask about a folder whose files an earlier run of this user wrote: a cache, an index, a run to be resumed.

    Raises:
        OSError: anything in it, at any depth, is neither a regular file nor a folder.

    Warns:
        FileWarning: everybody may write to it.
    """
    if not folder.exists():
        return
    waiting = [folder]  # not os.walk, which calls itself: folders lie deeper within each other than Python does
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    raise _refused_link(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                elif not entry.is_file(follow_symlinks=False):
                    raise OSError(f"{entry.path} is not a regular file; remove it, or name another folder")
    if stat.S_IMODE(folder.stat().st_mode) & stat.S_IWOTH and folder not in _remarked:
        _remarked.add(folder)
        remark = f"everybody may write to {folder}, and so change what is read from it; chmod o-w {folder}"
        warnings.warn(remark, FileWarning, stacklevel=3)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes that ask from working in a folder while the block runs, where the system has locks.

    Raises:
        BlockingIOError: another one works in it.
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


def _is_ours(found: os.stat_result) -> bool:
    """Whether a file belongs to this user or to the system's administrator; who is administrator trusts all."""
    return os.name == "nt" or os.geteuid() == 0 or found.st_uid in (0, os.geteuid())


# Checks of names, and what identifies a file


def check_page(path: Path, what: str) -> None:
    """Raise, before long work begins, when a page that shows `what` ("a map") cannot be written to `path`.

    Raises:
        ValueError: another ending than .html.
        OSError: `path` cannot be written.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{path} has an unknown ending; {what} is a page: name a file that ends in .html")
    check_writable(path)


def check_kept(output: Path, inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Raise ValueError, in one sentence, when an output would take the place of a picture that is read."""
    there = resolved(output)
    if there.exists() and any(str(each) != "-" and Path(each).exists() and there.samefile(each) for each in inputs):
        raise ValueError(f"{output} would overwrite a picture that is read; name another output")


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system can (Windows cannot open folders)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256(path: Path, *, max_bytes: int | None = None) -> str:
    """The sha256 of a file, in hexadecimal, read once in blocks; refused as by `open_file`."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(1 << 20))
    with open_file(path, max_bytes=max_bytes) as file:
        while read := file.readinto(buffer):  # type: ignore[attr-defined]
            digest.update(buffer[:read])
    return digest.hexdigest()


DEPTH = 64  # of lists and objects within each other
DIGITS = 19  # of whole numbers, which 64 bits hold


def loads(text: str | bytes) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: it is no JSON, nested more deeply than 64, has a name twice in one object, or a whole number of
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
        raise ValueError(f"it says {twice!r:.80} twice")
    return found


def cache_folder() -> Path:
    """Where weights are kept by name: `CONVNETS_TORCH_HOME`, else the platform's cache folder."""
    if home := os.environ.get("CONVNETS_TORCH_HOME"):
        return Path(os.path.expanduser(home))  # noqa: PTH111 - Path.expanduser raises where there is no such user
    from platformdirs import user_cache_path

    return user_cache_path("convnets-torch", appauthor=False)


def find(name: str | os.PathLike[str]) -> Path:
    """The file that `name` means: a file of that name, else `name.safetensors` in the user's cache.

    Nothing is ever downloaded.

    Raises:
        OSError: there is neither.
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

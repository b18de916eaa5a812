"""Files: what may be read, outputs that appear whole or not at all, and what identifies a file."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well, sync that file and rename it to `path`.

    When the block raises, the temporary file is removed and an older file at `path` stays as it was. A mapped
    older file stays valid for those who have it open.

    Raises:
        FileNotFoundError, NotADirectoryError: the folder of `path` is none.
        IsADirectoryError: `path` is a folder.
        OSError: `path` is neither a new name nor a regular file, or cannot be written.
    """
    target = resolved(path)
    check_writable(target)
    temporary = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        temporary.touch(exist_ok=False)
        rights = (target if target.exists() else temporary).stat().st_mode
        yield temporary
        temporary.chmod(rights)  # a library may have put a file with rights of its own in its place
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{path} cannot be written ({reason}); what was there before is untouched") from None
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)


def resolved(path: str | os.PathLike[str]) -> Path:
    """The absolute path behind all links; OSError, in one sentence, where they lead in a circle."""
    try:
        return Path(path).resolve()
    except RuntimeError:  # what Python before 3.13 raises
        raise OSError(f"{path} is a link that leads in a circle; name another file") from None


def check_regular(path: Path) -> None:
    """Raise OSError, in one sentence, when there is no regular file at `path` to read."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file")
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is not a regular file; name one")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; name a file")


def check_writable(path: Path) -> None:
    """Raise OSError, in one sentence, when an output cannot be put at `path`: asked before long work begins."""
    path = resolved(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file to write")
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is not a regular file; name another output")
    if not path.parent.exists():
        raise FileNotFoundError(f"folder {path.parent} does not exist; create it first")
    if not path.parent.is_dir():
        raise NotADirectoryError(f"{path.parent} is not a folder; name another output")
    for place in (path.parent, path):
        if place.exists() and not os.access(place, os.W_OK):
            raise PermissionError(f"{place} cannot be written to; name another output or change its rights")


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


def sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal, read once in blocks."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while read := file.readinto(buffer):
            digest.update(buffer[:read])
    return digest.hexdigest()

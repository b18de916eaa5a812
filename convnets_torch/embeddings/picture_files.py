"""The files behind the paths of an index: which are there, and which paths lead to one file."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from convnets_torch.files import open_file
from convnets_torch.images import stored_size

NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
UNKNOWN = os.stat_result([stat.S_IFREG, *[0] * 9])  # of a file that may not be looked at
ESCAPED = re.compile(rb"\\x([89a-f][0-9a-f])")  # what `text_of` writes


@dataclass(frozen=True)
class PictureFile:
    """One file of an index.

    Attributes:
        paths: all that lead to it: hard links, symbolic links, and paths through another mount. The first one is no
            link where any of them is none.
        gone: nothing is there.
        link: all of its paths are symbolic links.
        bytes: its size; None where it is gone or may not be looked at.
        width, height: in pixels as they are stored; None where its header cannot be read.
    """

    paths: tuple[str, ...]
    gone: bool = False
    link: bool = False
    bytes: int | None = None
    width: int | None = None
    height: int | None = None

    @property
    def pixels(self) -> int:
        """0 where they are not known."""
        return (self.width or 0) * (self.height or 0)


def text_of(path: str) -> str:
    """A path as text that any file can hold: bytes of its name that are no UTF-8 are written as \\xff."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def file_of(path: str) -> str:
    """The path that `text_of` wrote as this text."""
    if "\\x" not in path or os.path.lexists(path):
        return path
    return os.fsdecode(ESCAPED.sub(lambda match: bytes.fromhex(match[1].decode()), path.encode()))


def is_there(path: str) -> bool:
    """Whether a path of an index leads to a file, which may be one that cannot be read."""
    return _state(path) is not None


def usable(paths: Sequence[str]) -> tuple[str, ...]:
    """Of the paths of one picture those that are there, links last; none where all are gone."""
    there = [path for path in paths if is_there(path)]
    return tuple(sorted(there, key=_leads_elsewhere) if len(there) > 1 else there)


def files_of(paths: Iterable[str]) -> list[PictureFile]:
    """The files that paths of an index lead to, each with all of its paths, in the order of the paths."""
    found: dict[object, list[str]] = {}
    states: dict[str, os.stat_result | None] = {}
    for path in paths:
        state = states[path] = _state(path)
        found.setdefault((state.st_dev, state.st_ino) if state and state.st_ino else path, []).append(path)
    return [_file(several, states[several[0]]) for several in found.values()]


def _file(paths: list[str], state: os.stat_result | None) -> PictureFile:
    if state is None or state is UNKNOWN:
        return PictureFile(tuple(paths), gone=state is None)
    if len(paths) > 1:
        paths = sorted(paths, key=_leads_elsewhere)
    path = file_of(paths[0])
    width = height = 0
    with contextlib.suppress(OSError), open_file(path) as file:
        width, height = stored_size(file)
    return PictureFile(tuple(paths), False, os.path.islink(path), state.st_size, width or None, height or None)  # noqa: PTH114


def _state(path: str) -> os.stat_result | None:
    """What the system says of a file; None where there is none."""
    if os.name == "nt" and path.startswith(("//", "\\\\")):  # a stranger's index must not reach another machine
        return UNKNOWN
    try:
        state = os.stat(file_of(path))  # noqa: PTH116 - the paths are texts, and many
    except OSError as error:
        return None if error.errno in NOT_THERE else UNKNOWN
    except ValueError:  # a zero byte
        return None
    return state if stat.S_ISREG(state.st_mode) else None


def _leads_elsewhere(path: str) -> tuple[bool, bool]:
    """For sorting: whether a path is a link, and whether a folder in it is one."""
    path = file_of(path)
    return os.path.islink(path), os.path.realpath(path) != path  # noqa: PTH114

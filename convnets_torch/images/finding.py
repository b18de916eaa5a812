"""Expand names, folders and patterns to a list of picture files."""

from __future__ import annotations

import fnmatch
import glob
import itertools
import os
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import add
from pathlib import Path

from convnets_torch.files import resolved
from convnets_torch.images.decoding import PictureWarning
from convnets_torch.text import printable

# Endings of the files that a folder contributes; those that Pillow cannot read are reported by name later.
ENDINGS = {
    ".apng", ".avif", ".avifs", ".bmp", ".dds", ".dib", ".gif", ".heic", ".heif", ".hif", ".ico", ".j2k", ".jfif",
    ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx", ".jxl", ".mpo", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".psd",
    ".qoi", ".tga", ".tif", ".tiff", ".webp",
}  # fmt: skip

# Folders made by operating systems, storage devices and archives, in lower case.
SYSTEM = {"#recycle", "#snapshot", "$recycle.bin", "@eadir", "__macosx", "lost+found", "system volume information"}


@dataclass
class Listing:
    """Contents of a folder and its sub-folders.

    Attributes:
        folder: the folder.
        pictures: files with a picture's ending, and folders that cannot be listed, sorted. Reading such a folder raises
            the reason, so that it becomes a row with an error.
        closed: the folders in `pictures`.
        folders: the sub-folders that were listed.
        others: files with other endings.
        hidden: hidden folders and pictures, and system folders; left out.
        links: links to folders that were left out.
    """

    folder: Path
    pictures: list[Path] = field(default_factory=list)
    closed: set[Path] = field(default_factory=set)
    folders: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    hidden: list[Path] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)

    def warn(self, *, others: bool = True) -> None:
        """Issue one PictureWarning for each kind of entry that was left out; for other files only if `others`."""
        kinds = [
            (self.hidden, "hidden files and hidden or system folders"),
            (self.links, "links to folders, which are not followed; name them as well if they are meant"),
            (self.others if others else [], "files whose ending is no picture's"),
        ]
        for paths, words in kinds:
            if paths:
                names = few([*dict.fromkeys(path.name for path in paths)], 3)
                sentence = f"{self.folder}: left out {len(paths)} {words} ({names})"
                warnings.warn(printable(sentence), PictureWarning, stacklevel=4)


def find_pictures(
    names: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], *, exclude: str | Iterable[str] = ()
) -> list[Path]:
    """Expand names to picture files, in the order of the names.

    A folder expands to all files in it and its sub-folders with a picture's ending, sorted by path. Hidden files and
    folders, system folders (`@eaDir`, `__MACOSX`, ...) and links to folders are left out. A sub-folder that cannot be
    listed is returned itself, so that reading it raises the reason. A pattern such as `"photos/**/*.jpg"` expands to
    the matching files, sorted. Any other name is returned unchanged, whether it exists or not. A file that several
    names expand to is returned several times.

    Args:
        names: one or several.
        exclude: shell patterns of what to leave out of folders and of the matches of a pattern. Each is compared with
            the name of a file or folder (`"*_mask.png"`, `"thumbnails"`), and with its path relative to the named
            folder or to the pattern's first wildcard (`"2019/*.jpg"`). Case-sensitive.

    Raises:
        OSError: a folder has no pictures or cannot be listed, or a pattern matches no file.

    Warns:
        PictureWarning: files with other endings, hidden files, system folders or links to folders were left out.

    >>> [path.name for path in find_pictures("*.jpg")]
    ['street.jpg']
    >>> find_pictures("*.jpg", exclude="str*")
    Traceback (most recent call last):
    ...
    FileNotFoundError: no file matches *.jpg that is not excluded; name another pattern, or a folder
    """
    several = [names] if isinstance(names, str | os.PathLike) else names
    return [path for name in several for path in _expand(name, exclude)]


def _expand(name: str | os.PathLike[str], exclude: str | Iterable[str]) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        found = list_folder(path, exclude=exclude)
        if not found.pictures:
            but = f" but {len(found.links)} links to folders, which are not followed" if found.links else ""
            raise FileNotFoundError(f"{path} holds no pictures{but}; name another folder, or the files themselves")
        found.warn()
        return found.pictures
    if is_pattern(path):
        try:
            matching = glob.glob(str(path), recursive=True)  # noqa: PTH207
        except RecursionError:
            raise OSError(f"{path}: folders are nested too deeply; name a folder instead") from None
        left_out = named_by(exclude)
        matches = sorted(Path(match) for match in matching if not os.path.isdir(match))  # noqa: PTH112
        wild = next(number for number, part in enumerate(path.parts) if glob.has_magic(part))
        kept = [match for match in matches if not left_out(Path(*match.parts[wild:]))]
        if not kept:
            but = " that is not excluded" if matches else ""
            raise FileNotFoundError(f"no file matches {path}{but}; name another pattern, or a folder")
        return kept
    return [path]


def is_pattern(name: str | os.PathLike[str]) -> bool:
    """Whether a name is a pattern: it contains `*`, `?` or `[`, and no file has that name."""
    return glob.has_magic(str(name)) and not os.path.lexists(name)


def list_folder(folder: Path, *, exclude: str | Iterable[str] = (), linked: int = 0) -> Listing:
    """List a folder, whatever its own name is, and its sub-folders; OSError if the folder itself cannot be listed.

    Links to folders are followed on the first `linked` levels, each folder once.
    """
    found, left_out = Listing(folder), _excluded(exclude)
    seen: set[tuple[int, int]] = set()
    waiting: list[tuple[Path, tuple[str, ...]]] = [(folder, ())]
    followed: list[tuple[Path, tuple[str, ...]]] = []  # links, processed after real folders
    again: list[Path] = []  # links to folders that were listed already
    while waiting or followed:  # not recursive: folders can be nested deeper than Python's recursion limit
        place, parts = waiting.pop() if waiting else followed.pop(followed.index(min(followed)))
        try:
            identity = _identity(place)
            if identity in seen:
                again.append(place)
                continue
            seen.add(identity)
            with os.scandir(place) as entries:
                if parts:
                    found.folders.append(place)
                for entry in entries:
                    path, below = place / entry.name, (*parts, entry.name)
                    if left_out(below):
                        continue
                    is_folder = _is_folder(entry)
                    is_picture = path.suffix.lower() in ENDINGS
                    if entry.name.startswith(".") or (is_folder and entry.name.lower() in SYSTEM):
                        if is_folder or is_picture:
                            found.hidden.append(path)
                    elif not is_folder:
                        (found.pictures if is_picture else found.others).append(path)
                    elif not entry.is_symlink():
                        waiting.append((path, below))
                    elif len(parts) < linked and not resolved(folder).is_relative_to(resolved(path)):
                        followed.append((path, below))
                    else:
                        found.links.append(path)
        except OSError:
            if place == folder:
                raise
            found.pictures.append(place)
            found.closed.add(place)
    found.links = [link for link in found.links if _identity(link) not in seen] + again
    for paths in (found.pictures, found.folders, found.others, found.hidden, found.links):
        paths.sort()
    return found


def _excluded(exclude: str | Iterable[str]) -> Callable[[Sequence[str]], bool]:
    """Return a predicate: whether a relative path, given by its parts, is excluded."""
    patterns = [normal(each).strip("/") for each in ([exclude] if isinstance(exclude, str) else exclude)]

    def left_out(parts: Sequence[str]) -> bool:
        if not patterns:
            return False
        words = (normal(parts[-1]), normal("/".join(parts)))
        return any(fnmatch.fnmatchcase(word, pattern) for pattern in patterns for word in words)

    return left_out


def named_by(exclude: str | Iterable[str]) -> Callable[[Path], bool]:
    """Return a predicate: whether a relative path, or one of its parent folders, is excluded."""
    left_out = _excluded(exclude)
    return lambda path: any(map(left_out, itertools.accumulate(((part,) for part in path.parts), add)))


def normal(text: str) -> str:
    """Normalise a name to NFC for comparison; macOS stores accented letters as two characters."""
    return unicodedata.normalize("NFC", text)


def few(names: Sequence[str], most: int = 5) -> str:
    """Join the first `most` names for a message.

    >>> few(["ant", "bee", "cat"], 2)
    'ant, bee, ...'
    """
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _identity(folder: Path) -> tuple[int, int]:
    state = folder.stat()
    return state.st_dev, state.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or links to one; False for a circular link."""
    try:
        return entry.is_dir()
    except OSError:
        return False

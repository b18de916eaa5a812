"""Which files are meant: names, folders and patterns become a list of pictures."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

from convnets_torch.images import PictureWarning
from convnets_torch.sentences import printable

# Files with these endings are a folder's pictures; what Pillow cannot read of them is refused by name later.
ENDINGS = {
    ".apng", ".avif", ".avifs", ".bmp", ".dds", ".dib", ".gif", ".heic", ".heif", ".hif", ".ico", ".j2k", ".jfif",
    ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx", ".jxl", ".mpo", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".psd",
    ".qoi", ".tga", ".tif", ".tiff", ".webp",
}  # fmt: skip


def find_pictures(names: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The pictures that names mean, in the order of the names.

    A folder means the files in it and in the folders below it whose ending is a picture's, sorted by path; hidden
    ones and links to folders are left out. A pattern such as `"photos/**/*.jpg"` means the files that match it,
    sorted. Any other name means itself, whether it exists or not. What two names mean is listed twice.

    Args:
        names: one, or several.

    Raises:
        OSError: a folder without pictures, or one that cannot be listed; a pattern that matches no file.

    Warns:
        PictureWarning: other files of a folder were left out, or folders below it that cannot be listed.

    >>> [path.name for path in find_pictures("*.jpg")]
    ['street.jpg']
    """
    several = [names] if isinstance(names, str | os.PathLike) else names
    return [path for name in several for path in _meant(name)]


def _meant(name: str | os.PathLike[str]) -> list[Path]:
    path = Path(name)
    if path.is_dir():
        files, closed = _files(path)
        if closed:
            warnings.warn(
                printable(f"{path}: left out {len(closed)} folders that cannot be listed ({closed[0]})"),
                PictureWarning,
                stacklevel=4,
            )
        pictures = [file for file in files if file.suffix.lower() in ENDINGS]
        if not pictures:
            raise FileNotFoundError(f"{path} holds no pictures; name another folder, or the files themselves")
        if others := [file.name for file in files if file.suffix.lower() not in ENDINGS]:
            few = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
            warnings.warn(
                printable(f"{path}: left out {len(others)} files whose ending is no picture's ({few})"),
                PictureWarning,
                stacklevel=4,
            )
        return pictures
    if is_pattern(path):
        try:
            found = glob.glob(str(path), recursive=True)  # noqa: PTH207
        except RecursionError:
            raise OSError(f"{path}: folders lie too deep within each other; name a folder instead") from None
        matches = sorted(match for match in map(Path, found) if not os.path.isdir(match))  # noqa: PTH112
        if not matches:
            raise FileNotFoundError(f"no file matches {path}; name another pattern, or a folder")
        return matches
    return [path]


def is_pattern(name: str | os.PathLike[str]) -> bool:
    """Whether a name means the files that match it: it has a `*`, `?` or `[`, and no file is called so."""
    return glob.has_magic(str(name)) and not os.path.lexists(name)


def _files(folder: Path) -> tuple[list[Path], list[str]]:
    """All files in a folder and below that are not hidden, sorted; and the folders below that cannot be listed, why."""
    files: list[Path] = []
    closed: list[str] = []
    waiting = [folder]  # no function that calls itself: folders lie deeper within each other than Python does
    while waiting:
        place = waiting.pop()
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if not _is_folder(entry):
                        files.append(place / entry.name)
                    elif not entry.is_symlink():
                        waiting.append(place / entry.name)
        except OSError as error:
            if place == folder:
                raise
            closed.append(f"{error.strerror}: {place}"[:200])
    return sorted(files), closed


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry of a folder is one, or leads to one; a link that leads in a circle is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False

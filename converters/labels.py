"""Names of a user's own classes, one on each line of a text file."""

from __future__ import annotations

import os
from pathlib import Path

from convnets_torch.files import check_regular

MOST_BYTES = 10_000_000


def read_labels(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The names of classes 0, 1, 2, ... in the order of their lines (UTF-8).

    Raises:
        OSError: there is no such file.
        ValueError: it is no text, is empty, or has an empty line before its last.

    >>> Path("labels.txt").write_text("cat\\ndog\\n")
    8
    >>> read_labels("labels.txt")
    ('cat', 'dog')
    """
    path = Path(path)
    check_regular(path)
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} has more than {MOST_BYTES} bytes; one class name on each line is wanted")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text in UTF-8; save it as such") from None
    names = tuple(line.strip() for line in text.rstrip().splitlines())
    if not names or not all(names):
        place = f"line {names.index('') + 1} is" if names else "all of it is"
        raise ValueError(f"{path}: {place} empty; one class name on each line is wanted")
    return names

"""Names of a user's own classes, one on each line of a text file."""

from __future__ import annotations

import os
from collections.abc import Sequence

from convnets_torch.files import read_text

MOST_BYTES = 10_000_000
LONGEST = 1000  # letters of a name; a card with a longer one is refused


def check_names(what: str, names: Sequence[str]) -> None:
    """Raise ValueError for the first name that is too long for a card."""
    for number, name in enumerate(names, start=1):
        if len(name) > LONGEST:
            raise ValueError(f"{what}: class name {number} has {len(name)} letters; up to {LONGEST} are wanted")


def read_labels(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The names of classes 0, 1, 2, ... in the order of their lines (UTF-8).

    Raises:
        OSError: there is no such file.
        ValueError: it is no text, is empty, has an empty line before its last, or a name of over 1,000 letters.

    >>> from pathlib import Path
    >>> Path("labels.txt").write_text("cat\\ndog\\n")
    8
    >>> read_labels("labels.txt")
    ('cat', 'dog')
    """
    text = read_text(path, max_bytes=MOST_BYTES)
    names = tuple(line.strip() for line in text.rstrip().splitlines())
    if not names or not all(names):
        place = f"line {names.index('') + 1} is" if names else "all of it is"
        raise ValueError(f"{path}: {place} empty; one class name on each line is wanted")
    check_names(str(path), names)
    return names

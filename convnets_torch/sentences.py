"""Errors as sentences: one line, nothing that steers a terminal, of a length that somebody reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 4000  # letters


def printable(text: str) -> str:
    """The text with whatever is no printable character escaped as Python does it."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


@contextmanager
def in_one_line() -> Iterator[None]:
    """Raise an OSError or ValueError whose words come from a file anew, where they are no readable sentence."""
    try:
        yield
    except (OSError, ValueError) as error:
        words = str(error)
        if words.isprintable() and len(words) <= LONGEST:
            raise
        if len(words) > LONGEST:
            words = f"{words[: LONGEST - 200]} ... {words[-180:]}"  # its end says what to do
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(printable(" ".join(words.split()))) from None

"""Errors as sentences: one line, nothing that steers a terminal, of a length that somebody reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 4000  # letters
FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # the last four are the same, of full width


class ConvnetsTorchWarning(UserWarning):
    """What a caller may not expect; the base of all warnings of this library."""


def printable(text: str) -> str:
    """The text with whatever is no printable character escaped as Python does it."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def shortened(sentence: str) -> str:
    """The sentence, or its beginning and its end, which says what to do."""
    return sentence if len(sentence) <= LONGEST else f"{sentence[: LONGEST - 200]} ... {sentence[-180:]}"


def cell(text: str) -> str:
    """A text as a cell of CSV: no formula for spreadsheets, and nothing that steers a terminal but ends of lines.

    A text that begins with =, +, - or @ gets an apostrophe before it, which spreadsheets take for the mark of a text;
    tabs and carriage returns become \\t and \\r.

    >>> cell("=SUM(A1:A9)"), cell("two\\nlines"), cell("beagle")
    ("'=SUM(A1:A9)", 'two\\nlines', 'beagle')
    """
    safe = "\n".join(map(printable, text.split("\n")))
    return f"'{safe}" if safe.lstrip(" \n").startswith(FORMULA) else safe


@contextmanager
def in_one_line() -> Iterator[None]:
    """Raise an OSError or ValueError whose words come from a file anew, where they are no readable sentence."""
    try:
        yield
    except (OSError, ValueError) as error:
        words = str(error)
        if words.isprintable() and len(words) <= LONGEST:
            raise
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(printable(shortened(" ".join(words.split())))) from None

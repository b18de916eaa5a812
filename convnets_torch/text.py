"""Errors and warnings as sentences: one line, nothing that steers a terminal, of a length that somebody reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

LONGEST = 4000  # letters
FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # the last four are the same, of full width


class ConvnetsTorchWarning(UserWarning):
    """The base of the warnings of this package."""


def check_choice(value: object, known: Iterable[str], what: str) -> None:
    """Raise ValueError when a value is none of those that are known.

    Args:
        value: what the user gave.
        known: the values to choose from.
        what: the name of the choice, for the message.

    >>> check_choice("sum", ("mean", "max"), "pool")
    Traceback (most recent call last):
    ...
    ValueError: unknown pool 'sum'; known: mean, max
    """
    names = tuple(known)
    if value not in names:
        raise ValueError(f"unknown {what} {value!r}; known: {', '.join(names)}")


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

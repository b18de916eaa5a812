"""Make messages safe to print: one line, no control characters, bounded length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

LONGEST = 4000  # characters
FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # the last four are their full-width forms


class ConvnetsTorchWarning(UserWarning):
    """Base class of this package's warnings."""


def check_choice(value: object, known: Iterable[str], what: str) -> None:
    """Raise ValueError if `value` is not one of `known`; `what` is the name of the option in the message.

    >>> check_choice("sum", ("mean", "max"), "pool")
    Traceback (most recent call last):
    ...
    ValueError: unknown pool 'sum'; known: mean, max
    """
    names = tuple(known)
    if value not in names:
        raise ValueError(f"unknown {what} {value!r}; known: {', '.join(names)}")


def printable(text: str) -> str:
    """Escape non-printable characters as Python's `repr` does."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def shortened(sentence: str) -> str:
    """Cut out the middle of a long sentence; its end says what to do."""
    return sentence if len(sentence) <= LONGEST else f"{sentence[: LONGEST - 200]} ... {sentence[-180:]}"


def cell(text: str) -> str:
    """Make text safe as a CSV cell: no spreadsheet formula, no control characters except line feeds.

    Text that begins with =, +, - or @ is prefixed with an apostrophe, which spreadsheets read as a mark of text; tabs
    and carriage returns become \\t and \\r.

    >>> cell("=SUM(A1:A9)"), cell("two\\nlines"), cell("beagle")
    ("'=SUM(A1:A9)", 'two\\nlines', 'beagle')
    """
    safe = "\n".join(map(printable, text.split("\n")))
    return f"'{safe}" if safe.lstrip(" \n").startswith(FORMULA) else safe


@contextmanager
def printable_errors() -> Iterator[None]:
    """Re-raise an OSError or ValueError as one printable line of bounded length; its text may come from a file."""
    try:
        yield
    except (OSError, ValueError) as error:
        words = str(error)
        if words.isprintable() and len(words) <= LONGEST:
            raise
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(printable(shortened(" ".join(words.split())))) from None

"""Tables of a report: headings that say what they head, and everything as text."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from convnets_torch.sentences import printable

LONG = 12  # letters of words that are given room to break at blanks


class Column(NamedTuple):
    """A heading, and whether numbers stand below it."""

    words: str
    number: bool = False


class Sorted(NamedTuple):
    """A number with what it is sorted by."""

    words: str
    value: float


Cell = str | Sorted | tuple[int, int]  # words; a number to sort by; or a part of a whole, as a bar


def escaped(words: str) -> str:
    """Words as text of a page, whatever is in them.

    >>> escaped("<b>\\x07")
    '&lt;b&gt;\\\\x07'
    """
    return escape(printable(words))


def share(some: int, every: int) -> str:
    """A percentage, or a dash where there is nothing to take it of.

    >>> share(1, 3), share(0, 0)
    ('33.33%', '-')
    """
    return f"{some / every:.2%}" if every else "-"


def number(some: int, every: int | None = None) -> Sorted:
    """A number, or where a whole is given the share of it, that columns can be sorted by."""
    if every is None:
        return Sorted(str(some), some)
    return Sorted(share(some, every), some / every if every else 0)


def table(caption: str, columns: Sequence[Column], rows: Sequence[Sequence[Cell]], sortable: bool = False) -> str:
    """A table whose first column heads its rows; one of many columns or rows can be scrolled, by keys too.

    >>> "<th scope=row>ant</th>" in table("Insects", [Column("Name")], [["ant"]])
    True
    """
    heads = "".join(
        f"<th scope=col{_class(column)}>"
        + (f'<button type="button">{escaped(column.words)}</button>' if sortable else escaped(column.words))
        + "</th>"
        for column in columns
    )
    lines = "\n".join(
        "<tr>"
        + "".join(
            _cell(cell, column, "th scope=row" if place == 0 else "td")
            for place, (cell, column) in enumerate(zip(row, columns, strict=True))
        )
        + "</tr>"
        for row in rows
    )
    name = escaped(caption)
    tall = " tall" if len(rows) > 30 else ""
    kind = " class=classes" if sortable else ""
    return (
        f'<div class="wide{tall}" role="region" aria-label="{name}" tabindex="0"><table{kind}>'
        f'<caption class="spoken">{name}</caption><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>'
    )


def facts_table(caption: str, facts: Sequence[tuple[str, str]]) -> str:
    """(what, value) as a table without headings of columns."""
    lines = "\n".join(f"<tr><th scope=row>{escaped(what)}</th><td>{escaped(value)}</td></tr>" for what, value in facts)
    name = escaped(caption)
    return (
        f'<div class="wide"><table class="facts"><caption class="spoken">{name}</caption>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _class(column: Column, words: str = "") -> str:
    return " class=number" if column.number else " class=long" if len(words) > LONG else ""


def _cell(cell: Cell, column: Column, tag: str) -> str:
    end = tag.partition(" ")[0]
    if isinstance(cell, Sorted):
        return f"<{tag}{_class(column)} data-value={cell.value:.6g}>{escaped(cell.words)}</{end}>"
    if isinstance(cell, tuple):
        some, every = cell
        bar = f"<meter min=0 max={max(every, 1)} value={some}>{share(some, every)}</meter>"
        return f"<{tag}>{bar}</{end}>"
    return f"<{tag}{_class(column, cell)}>{escaped(cell)}</{end}>"

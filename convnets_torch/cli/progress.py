"""A bar with the time left on stderr, where that is a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Entry = TypeVar("Entry")


def with_time_left(entries: Iterable[Entry], total: int) -> Iterator[Entry]:
    """The entries as they come, with a bar beside them; quiet for a single one and where stderr is no terminal."""
    if total < 2 or not sys.stderr.isatty():
        yield from entries
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    with Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # results go above the bar, but never from a pipe to the terminal
    ) as progress:
        yield from progress.track(entries, total=total)


@contextlib.contextmanager
def rows_done(words: str = "rows of cells") -> Iterator[Callable[[int, int], None] | None]:
    """A function that is told how many of how many are done, and draws the bar; None where nobody would see it."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(words), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(words, total=None)
        yield lambda done, whole: progress.update(task, completed=done, total=whole)

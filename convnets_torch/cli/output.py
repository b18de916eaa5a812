"""Printing of results, messages and progress."""

from __future__ import annotations

import contextlib
import csv
import json
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import IO, TYPE_CHECKING, Any, TypeVar

from convnets_torch.text import ConvnetsTorchWarning, cell, printable, shortened

if TYPE_CHECKING:
    from convnets_torch.inference.classification import Classified, Prediction


def one_line(error: Warning | Exception) -> str:
    """Return an error as one line, without the errno."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


QUIET, NORMAL, VERBOSE = -1, 0, 1
_level = NORMAL  # of the running command, in all its threads


@contextlib.contextmanager
def verbosity(*, quiet: bool, verbose: bool) -> Iterator[None]:
    """Set how much is printed within the block."""
    global _level
    before, _level = _level, QUIET if quiet else VERBOSE if verbose else NORMAL
    start = time.perf_counter()
    try:
        yield
    except (OSError, ValueError, ImportError):
        if verbose:
            traceback.print_exc()
        raise
    finally:
        say(f"{time.perf_counter() - start:.1f} s", verbose=True)
        _level = before


def say(sentence: str, *, verbose: bool = False) -> None:
    """Print a prefixed line to stderr unless --quiet is given; `verbose` lines need --verbose."""
    if _level >= (VERBOSE if verbose else NORMAL):
        print(prefixed(sentence), file=sys.stderr)


def aside(line: str) -> None:
    """Print a line about a result to stderr, without a prefix, unless --quiet is given."""
    if _level >= NORMAL:
        show(line, file=sys.stderr)


def complain(error: Exception | str) -> None:
    """Print an error that does not end the command as one line on stderr, also with --quiet."""
    print(prefixed(error if isinstance(error, str) else one_line(error)), file=sys.stderr)


def prefixed(sentence: str) -> str:
    """Prefix a sentence with the program's name; control characters are escaped, as it may quote a file."""
    return printable(shortened(f"convnets-torch: {sentence}"))


def show(line: str, file: IO[str] | None = None) -> None:
    """Print a line to stdout or `file`; control characters are escaped, as it may quote a file."""
    print(printable(line), file=file)


@contextlib.contextmanager
def all_warnings_as_lines() -> Iterator[None]:
    """Print each Python warning as one line."""
    with warnings.catch_warnings():
        warnings.showwarning = _say_warning
        yield


def _say_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    say(one_line(message) if isinstance(message, Warning) else message)


@contextlib.contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Print warnings, of Pillow and of the library, as one line each, also repeated ones of the library."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", ConvnetsTorchWarning)
        warnings.showwarning = _say_warning
        yield


def _shows_bars() -> bool:
    return _level > QUIET and sys.stderr.isatty()


Entry = TypeVar("Entry")


def with_time_left(entries: Iterable[Entry], total: int) -> Iterator[Entry]:
    """Yield the entries under a progress bar; no bar for a single entry or if stderr is not a terminal."""
    if total < 2 or not _shows_bars():
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
    """Yield a callback (done, total) that draws a progress bar, or None if no bar would be visible."""
    if not _shows_bars():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(words), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(words, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


COLUMNS = ("image", "rank", "probability", "class_id", "wnid", "words", "error")


class Writer:
    """Writes results one by one; call `finish` after the last."""

    def __init__(self, file: IO[str], several: bool) -> None:
        self.file, self.several = file, several

    def add(self, image: str, result: Classified) -> None:
        raise NotImplementedError

    def finish(self) -> None: ...


class Text(Writer):
    """Fixed columns, under the picture's name if there are several; the back-off answer comes first."""

    def add(self, image: str, result: Classified) -> None:
        if result.error is None:
            if self.several:
                show(image, file=self.file)
            if result.answer is not None:
                print(f"{result.answer.probability:.3f}  {result.answer.wnid:<9}  {result.answer.text}", file=self.file)
            for line in prediction_lines(result.predictions):
                print(line, file=self.file)


class JsonLines(Writer):
    """One JSON object per picture, each on its own line."""

    def add(self, image: str, result: Classified) -> None:
        if result.error is None:
            record: dict[str, Any] = {"image": image, "predictions": [asdict(entry) for entry in result.predictions]}
            if result.answer is not None:
                record["answer"] = asdict(result.answer)
        else:
            record = {"image": image, "error": one_line(result.error)}
        print(json.dumps(record), file=self.file)


class Csv(Writer):
    """One row per prediction, or one with the error of a failed picture, under `COLUMNS`; text goes through `cell`.

    The back-off answer has rank 0 and no class id.
    """

    def __init__(self, file: IO[str], several: bool) -> None:
        self.rows = csv.writer(file, lineterminator="\n")
        self.rows.writerow(COLUMNS)

    def add(self, image: str, result: Classified) -> None:
        if (answer := result.answer) is not None:
            self.rows.writerow([cell(image), 0, f"{answer.probability:.6f}", "", answer.wnid, answer.words, ""])
        for rank, entry in enumerate(result.predictions, start=1):
            chance = f"{entry.probability:.6f}"
            words = cell(entry.words)
            self.rows.writerow([cell(image), rank, chance, entry.class_id, entry.wnid or "", words, ""])
        if result.error is not None:
            self.rows.writerow([cell(image), "", "", "", "", "", cell(one_line(result.error))])


class Table(Writer):
    """A table for people, drawn after the last result."""

    def __init__(self, file: IO[str], several: bool) -> None:
        from rich.console import Console
        from rich.table import Table as RichTable

        wide = None if file.isatty() else 160
        self.console = Console(file=file, width=wide, markup=False, highlight=False, emoji=False)
        self.table = RichTable("image", "probability", "wnid", "words")
        for column in self.table.columns:
            column.overflow = "fold"  # never truncate

    def add(self, image: str, result: Classified) -> None:
        name = printable(image)
        if (answer := result.answer) is not None:
            self.table.add_row(name, f"{answer.probability:.3f}", answer.wnid, answer.text)
            name = ""
        for entry in result.predictions:
            words = printable(entry.words)
            self.table.add_row(name, f"{entry.probability:.3f}", entry.wnid or str(entry.class_id), words)
            name = ""
        if result.error is not None:
            self.table.add_row(name, "", "", printable(one_line(result.error)), style="red")
        self.table.add_section()

    def finish(self) -> None:
        self.console.print(self.table)


def prediction_lines(predictions: list[Prediction]) -> Iterator[str]:
    """Yield each prediction as probability, wnid and words in fixed columns."""
    for entry in predictions:
        yield f"{entry.probability:.3f}  {entry.wnid or entry.class_id:<9}  {printable(entry.words)}"


def print_columns(rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows with aligned columns."""
    shown = [tuple(map(printable, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        print("  ".join(field.ljust(width) for field, width in zip(row, widths, strict=True)).rstrip())

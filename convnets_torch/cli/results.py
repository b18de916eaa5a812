"""Results of classifying in the forms that `classify` prints: text, JSON lines, CSV, a table."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import IO, TYPE_CHECKING, Any, Protocol

from convnets_torch.cli.messages import one_line, show
from convnets_torch.sentences import cell, printable

if TYPE_CHECKING:
    from convnets_torch.classification import Classified, Prediction

COLUMNS = ("image", "rank", "probability", "class_id", "wnid", "words", "error")


class Writer(Protocol):
    """Takes results one by one; `finish` comes after the last."""

    def add(self, image: str, result: Classified) -> None: ...
    def finish(self) -> None: ...


class Text:
    """Fixed columns, under the picture's name where there are several; what backing off gives comes first."""

    def __init__(self, file: IO[str], several: bool) -> None:
        self.file, self.several = file, several

    def add(self, image: str, result: Classified) -> None:
        if result.error is None:
            if self.several:
                show(image, file=self.file)
            if result.answer is not None:
                print(f"{result.answer.probability:.3f}  {result.answer.wnid:<9}  {result.answer.text}", file=self.file)
            for line in prediction_lines(result.predictions):
                print(line, file=self.file)

    def finish(self) -> None: ...


class JsonLines:
    """One object per picture and line."""

    def __init__(self, file: IO[str], several: bool) -> None:
        self.file = file

    def add(self, image: str, result: Classified) -> None:
        if result.error is None:
            record: dict[str, Any] = {"image": image, "predictions": [asdict(entry) for entry in result.predictions]}
            if result.answer is not None:
                record["answer"] = asdict(result.answer)
        else:
            record = {"image": image, "error": one_line(result.error)}
        print(json.dumps(record), file=self.file)

    def finish(self) -> None: ...


class Csv:
    """One row per prediction, or with the error of a picture that has none, under `COLUMNS`; texts as `cell` has them.

    The synset that backing off gives has the rank 0 and no class id.
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

    def finish(self) -> None: ...


class Table:
    """A table for people, drawn when all results are there."""

    def __init__(self, file: IO[str], several: bool) -> None:
        from rich.console import Console
        from rich.table import Table as RichTable

        wide = None if file.isatty() else 160
        self.console = Console(file=file, width=wide, markup=False, highlight=False, emoji=False)
        self.table = RichTable("image", "probability", "wnid", "words")
        for column in self.table.columns:
            column.overflow = "fold"  # nothing is cut

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
    """Probability, wnid and words in fixed columns."""
    for entry in predictions:
        yield f"{entry.probability:.3f}  {entry.wnid or entry.class_id:<9}  {printable(entry.words)}"

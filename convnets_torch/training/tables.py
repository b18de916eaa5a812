"""Tables of labelled pictures in CSV: a path, a class and perhaps a side in each row."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from convnets_torch.files import open_file, resolved

COLUMNS = {"path": ("path", "image", "file", "filename"), "label": ("label", "class"), "split": ("split",)}
SIDES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}

MOST_BYTES = 1 << 28  # of a table
MOST_ROWS = 2_000_000
MOST_COLUMNS = 1000
MOST_LINE = 1 << 16  # letters
MOST_PATH, MOST_LABEL = 4096, 1000  # letters of a path, and of the name of a class


@dataclass(frozen=True)
class Row:
    """One picture of a table.

    Attributes:
        line: of the file, from 1; the header stands before.
        path: of the picture, from the folder of the table.
        label: its class, without spaces around it.
        side: "train", "val" or "test"; None where the table has no such column.
    """

    line: int
    path: Path
    label: str
    side: str | None


def read_table(path: Path) -> list[Row]:
    """The rows of a CSV file in UTF-8, with or without a mark of byte order; empty lines are none.

    Raises:
        OSError: the file cannot be read, or files that it names are missing; the first of them are listed.
        ValueError: it is not such a table, a column is missing or there twice, a row has no class or an unknown side,
            or two rows name one file.
    """
    records = _records(path)
    _, header = next(records, (0, None))
    if header is None:
        raise ValueError(
            f"{path} is empty; give it a header with the columns path and label, and a row for each picture"
        )
    columns = _columns(path, header)
    rows = [_row(path, line, record, columns, len(header)) for line, record in records]
    if not rows:
        raise ValueError(f"{path} has a header and no rows; give it a row for each picture")
    if missing := [row for row in rows if not row.path.is_file()]:
        few = ", ".join(f"line {row.line}: {row.path}" for row in missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise FileNotFoundError(
            f"{path}: {len(missing)} of {len(rows)} files are missing ({few}); paths count from the folder of the table"
        )
    first: dict[Path, Row] = {}
    for row in rows:
        before = first.setdefault(resolved(row.path), row)
        if before is not row:
            says = " and ".join(" ".join(filter(None, (each.label, each.side))) for each in (before, row))
            raise ValueError(
                f"{path}: lines {before.line} and {row.line} name the same file, {row.path} ({says}); keep one of them"
            )
    return rows


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Each record that is not empty, with the line where it begins."""
    try:
        with (
            open_file(path, max_bytes=MOST_BYTES) as opened,
            io.TextIOWrapper(opened, "utf-8-sig", newline="") as file,
        ):
            reader, line, count = csv.reader(_lines(path, file), strict=True, skipinitialspace=True), 1, 0
            for record in reader:
                if any(field.strip() for field in record):
                    count += 1
                    if count > MOST_ROWS + 1 or len(record) > MOST_COLUMNS:
                        raise ValueError(
                            f"{path} has more than {MOST_ROWS:,} rows, or {MOST_COLUMNS:,} columns, at line {line};"
                            " is it a table of pictures? Divide it, or remove columns"
                        )
                    yield line, record
                line = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read as CSV ({error}); look for a quote that is not closed") from None


def _lines(path: Path, file: io.TextIOWrapper) -> Iterator[str]:
    """The lines of a table, none of which is endless or holds what no editor writes."""
    number = 0
    while line := file.readline(MOST_LINE):
        number += 1
        if len(line) == MOST_LINE or "\0" in line:
            what = "a byte of zero" if "\0" in line else f"more than {MOST_LINE:,} letters"
            raise ValueError(f"{path}, line {number} has {what}; is it a table of pictures?")
        yield line


def _columns(path: Path, header: list[str]) -> dict[str, int]:
    names = [name.strip().lower() for name in header]
    found = {}
    for column, known in COLUMNS.items():
        places = [place for place, name in enumerate(names) if name in known]
        if len(places) > 1:
            twice = ", ".join(header[place].strip() for place in places)
            raise ValueError(f"{path} has several columns for the {column} ({twice}); rename all but one")
        if places:
            found[column] = places[0]
        elif column != "split":
            advice = "separate columns by commas" if len(header) == 1 and set(header[0]) & {";", "\t"} else "add it"
            raise ValueError(
                f"{path} has no column {' or '.join(known)} in its first line ({', '.join(names[:8])}); {advice}"
            )
    return found


def _row(path: Path, line: int, record: list[str], columns: dict[str, int], width: int) -> Row:
    if len(record) != width:
        raise ValueError(
            f"{path}, line {line} has {len(record)} fields, but the header has {width}; quote fields that hold commas"
        )
    named, label = record[columns["path"]], record[columns["label"]].strip()
    if not named.strip():
        raise ValueError(f"{path}, line {line} names no file; fill in its path, or remove the line")
    if len(named) > MOST_PATH or len(label) > MOST_LABEL:
        raise ValueError(
            f"{path}, line {line} has a path of {len(named)} letters and a class of {len(label)}, but {MOST_PATH} and"
            f" {MOST_LABEL} are the most; shorten them"
        )
    if not label:
        raise ValueError(f"{path}, line {line} has no class for {named}; fill it in, or remove the line")
    side = None
    if "split" in columns:
        word = record[columns["split"]].strip()
        side = SIDES.get(word.lower())
        if side is None:
            raise ValueError(f"{path}, line {line} has the split {word!r}; write train or val (test is left out)")
    return Row(line, path.parent / named, label, side)

"""Options of the commands that read pictures with labels: `probe`, `finetune` and `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

PANEL = "Data"
Truth = Annotated[
    Path | None,
    typer.Option(
        help="Table of the pictures in the folder: name and label in each line. Columns are known by their names;"
        " one for each class, with a 1 in the right one, will do as well.",
        rich_help_panel=PANEL,
        show_default=False,
    ),
]
Columns = Annotated[
    str | None,
    typer.Option(
        metavar="PATH,LABEL", help="The table's columns of pictures and labels.", rich_help_panel=PANEL,
        show_default="known by their names",
    ),
]  # fmt: skip
Partial = Annotated[
    bool,
    typer.Option(
        "--partial",
        help="Go on where pictures have no row in the table, or rows no picture.",
        rich_help_panel=PANEL,
    ),
]


def reading(truth: Path | None, columns: str | None, partial: bool, exclude: list[str] | None) -> dict[str, Any]:
    """What these options say, as keywords of `find_dataset`, `find_classes` and `find_truth`."""
    names = None if columns is None else [name.strip() for name in columns.split(",")]
    if names is not None and (len(names) != 2 or not all(names)):
        raise typer.BadParameter(f"--columns {columns} names no two columns; give one of pictures and one of labels")
    return {"truth": truth, "columns": names, "partial": partial, "exclude": exclude or ()}

"""The command `duplicates`: pictures of an index that are nearly the same."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convnets_torch.cli.messages import say, show
from convnets_torch.cli.search_command import COLUMNS, Address, AsJson
from convnets_torch.sentences import cell

if TYPE_CHECKING:
    from convnets_torch.embeddings.duplicate_files import Duplicate, DuplicateGroup

GROUPS = ("group", "mark", "cosine", "width", "height", "bytes", "path", "least_cosine", "chain")
LEAKS = ("path", "of", "cosine")


def duplicates(
    db: Address,
    threshold: Annotated[float, typer.Option(help="The least cosine of two vectors that counts, up to 1.")] = 0.95,
    between: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="Two folders: which pictures of A are nearly in B.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Contact sheet to write, a picture; or .csv.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find groups of files that are nearly the same, or pictures of one folder that leaked from another.

    Of each path is said: "keep", of the largest file of its group; "same", another path of the file above; "link"; or
    "gone". Then come its cosine to the first of the group, its width x height, and its bytes.
    """
    if not 0 < threshold <= 1:
        raise typer.BadParameter(f"--threshold {threshold} is no cosine of what is alike; give one above 0, up to 1")
    if output is not None:
        from convnets_torch import render
        from convnets_torch.files import check_writable

        if output.suffix.lower() not in (".csv", *render.FORMATS):
            known = ", ".join(render.FORMATS)
            raise typer.BadParameter(f"{output} has an unknown ending; tables are .csv, and sheets {known}")
        check_writable(output)
    from convnets_torch.cli.progress import rows_done
    from convnets_torch.embeddings.picture_files import is_there
    from convnets_torch.embeddings.searching import Index

    index = Index.open(db)
    groups: list[DuplicateGroup] = []
    leaks: list[tuple[str, str, float]] = []
    with rows_done("pairs of blocks") as progress:
        if between is None:
            groups = index.duplicates(threshold, progress)
        else:
            leaks = index.leaks(*between, threshold, progress)
    for group in groups:
        if as_json:
            print(json.dumps(group.to_dict()))
            continue
        for mark, file, path in _lines(group):
            size = f"{file.width} x {file.height}" if file.width else ""
            show(f"{mark:4}  {file.cosine:.4f}  {size:>13}  {'' if file.bytes is None else file.bytes:>11}  {path}")
        if group.chain:
            print(f"a chain: its least cosine is {group.least_cosine:.4f}")
        print()
    for path, source, similarity in leaks:
        if as_json:
            print(json.dumps({"path": path, "of": source, "similarity": similarity}))
        else:
            show(f"{similarity:.4f}  {path}  {source}")
    gone = sum(file.gone for group in groups for file in group.files)
    if gone := gone + sum(not is_there(path) for leak in leaks for path in leak[:2]):
        say(f"{gone} of these files are gone; index again, and they are left out")
    if output is not None and output.suffix.lower() == ".csv":
        _save_table(output, groups, leaks, between is not None)
    elif output is not None:
        from convnets_torch import render
        from convnets_torch.embeddings.result_sheets import groups_sheet

        tiles: Sequence[Sequence[tuple[str, str]]] = [[(a, ""), (b, f"{near:.3f}")] for a, b, near in leaks] or [
            [(path, f"{file.cosine:.3f} {mark}") for mark, file, path in _lines(group) if mark != "same"]
            for group in groups
        ]
        render.save_image(groups_sheet(index, tiles, COLUMNS), output)


def _lines(group: DuplicateGroup) -> Iterator[tuple[str, Duplicate, str]]:
    """(mark, file, path) of each path of a group."""
    for file in group.files:
        mark = "gone" if file.gone else "link" if file.link else "keep" if file.paths[0] == group.keeper else ""
        yield mark, file, file.paths[0]
        for path in file.paths[1:]:
            yield "same", file, path


def _save_table(
    output: Path, groups: Sequence[DuplicateGroup], leaks: Sequence[tuple[str, str, float]], between: bool
) -> None:
    """Write groups, a row for each path, or leaks, as CSV; texts as `cell` has them."""
    from convnets_torch.files import replacing

    with replacing(output) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(LEAKS if between else GROUPS)
        for path, source, similarity in leaks:
            table.writerow([cell(path), cell(source), f"{similarity:.6f}"])
        for number, group in enumerate(groups, start=1):
            whole = (f"{group.least_cosine:.6f}", "chain" if group.chain else "")
            for mark, each, path in _lines(group):
                size = (each.width, each.height, each.bytes)
                table.writerow([number, mark, f"{each.cosine:.6f}", *size, cell(path), *whole])

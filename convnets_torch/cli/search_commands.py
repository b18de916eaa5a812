"""`index`, `search` and `duplicates`."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from convnets_torch.cli.options import Device, Precision, load_network
from convnets_torch.cli.output import say, show, warnings_as_lines
from convnets_torch.cli.picture_commands import (
    AllowTruncated,
    BackgroundOption,
    DepthOption,
    Exclude,
    MaxPixels,
    Weights,
)
from convnets_torch.text import cell

if TYPE_CHECKING:
    from convnets_torch.embeddings.duplicates import Duplicate, DuplicateGroup

SHOWN = 20  # errors that are printed; the table has all

Database = Annotated[
    str,
    typer.Option(help="The index: a folder, made if need be, or an address that LanceDB takes, such as s3://..."),
]


def index(
    weights: Weights,
    images: Annotated[
        list[str], typer.Argument(metavar="PHOTO...", help="Pictures, folders of them, or quoted patterns.")
    ],
    db: Database,
    layer: Annotated[
        str | None,
        typer.Option(help="A layer's name, or Keras's, such as fc2.", show_default="what the last dense layer reads"),
    ] = None,
    pool: Annotated[
        Literal["avg", "max", "flatten", "gem"],
        typer.Option(help="How maps become vectors: of each channel one value."),
    ] = "avg",
    hash_all: Annotated[
        bool,
        typer.Option("--hash-all", help="Read all files, also those of the same size and time as when last indexed."),
    ] = False,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune", help="Remove the rows of all files that are gone, also of a disk that is not mounted just now."
        ),
    ] = False,
    device: Device = "cpu",
    precision: Precision = None,
    max_pixels: MaxPixels = None,
    allow_truncated: AllowTruncated = False,
    exclude: Exclude = None,
    depth: DepthOption = None,
    background: BackgroundOption = None,
) -> None:
    """Index pictures for search: only new and changed files go through the network. Safe to stop at any moment."""
    from convnets_torch.cli.output import rows_done
    from convnets_torch.embeddings.index import index_pictures

    network = load_network(weights, device, precision, whole=layer is not None, bulk=True)
    with warnings_as_lines(), rows_done("pictures") as progress:
        done = index_pictures(
            network,
            images,
            db,
            layer,
            pool,
            weights=weights,
            hash_all=hash_all,
            prune=prune,
            exact=precision == "exact",
            max_pixels=max_pixels,
            allow_truncated=allow_truncated,
            exclude=exclude or (),
            depth=depth,
            background=background,
            progress=progress,
        )
        count = len(done.index.vectors)  # which also writes them to where search reads them
    say(
        f"{db}: {done.embedded} embedded, {done.moved} moved, {done.copied} with the content of others,"
        f" {done.unchanged} unchanged, {done.failed} could not be used, {done.vanished} vanished"
        f"{f', {done.pruned} removed' if prune else ''}; {count} can be searched"
    )
    if done.failed:
        for sentence in islice(done.index.errors(), SHOWN):
            say(sentence)
        raise typer.Exit(1)


Address = Annotated[str, typer.Argument(metavar="DB", help="An index that `convnets-torch index` made.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Sheet = Annotated[
    Path | None, typer.Option("-o", "--output", help="Contact sheet to write: a picture.", show_default=False)
]
COLUMNS = 6  # tiles in a line of a sheet


def search(
    db: Address,
    queries: Annotated[
        list[str],
        typer.Argument(metavar="QUERY...", help="Pictures, or paths or sha256 of rows, which need no network."),
    ],
    k: Annotated[int, typer.Option("-k", min=1, help="How many pictures for each query.")] = 12,
    metric: Annotated[
        Literal["cosine", "l2", "dot"], typer.Option(help="Cosine, distance, or product of the vectors.")
    ] = "cosine",
    target: Annotated[
        str | None,
        typer.Option(
            "--class", help='Only pictures of this class: a word, a wnid, "dog - poodle".', show_default=False
        ),
    ] = None,
    box: Annotated[
        str | None,
        typer.Option(metavar="X0,Y0,X1,Y1", help="The part of each query to look for, in pixels.", show_default=False),
    ] = None,
    ann: Annotated[
        bool, typer.Option("--ann", help="Approximate, by LanceDB's index; its recall against exact search is said.")
    ] = False,
    output: Sheet = None,
    as_json: AsJson = False,
    weights: Annotated[
        str | None,
        typer.Option(help="The network, for pictures that are not in the index.", show_default="as when indexed"),
    ] = None,
) -> None:
    """Find the pictures of an index that are nearest to some others; these themselves are left out by content."""
    corners = None if box is None else _corners(box)
    if output is not None:
        from convnets_torch.files import check_writable
        from convnets_torch.visualization import overlays

        if output.suffix.lower() not in overlays.FORMATS:
            raise typer.BadParameter(f"{output} has an unknown ending; sheets are {', '.join(overlays.FORMATS)}")
        check_writable(output)
    from convnets_torch.embeddings.search import Index, recall

    index = Index.open(db)
    network = None
    if weights is not None:
        from convnets_torch.cli.options import load_network

        network = load_network(weights, "cpu", None)
    runs = network is not None or corners is not None or None in map(index.row_of, queries)
    with warnings_as_lines() if runs else contextlib.nullcontext():
        found = index.search(queries, k, metric=metric, target=target, box=corners, approximate=ann, network=network)
        if ann:
            exact = index.search(queries, k, metric=metric, target=target, box=corners, network=network)
            say(
                f"recall {recall(exact, found):.3f} of {sum(len(each.found) for each in exact)} that exact search finds"
            )
    for each in found:
        if as_json:
            print(json.dumps(each.to_dict()))
            continue
        if len(found) > 1:
            show(each.query)
        for match in each.found:
            words = f"{match.probability or 0:.3f}  {match.words}" if match.words else ""
            more = f"({len(match.paths)} paths)" if len(match.paths) > 1 else ""
            line = (f"{match.score:.4f}", match.path, words, more, "(gone)" if match.gone else "")
            show("  ".join(part for part in line if part))
    for each in found:
        if target is not None and not each.found:
            say(f"{each.query}: the index has no other picture whose most probable class is of {target!r}")
    if gone := sum(match.gone for each in found for match in each.found):
        say(f"{gone} of these pictures are gone; index again, and they are left out")
    if output is not None:
        from convnets_torch.embeddings.result_sheets import search_sheet
        from convnets_torch.visualization import overlays

        overlays.save_image(search_sheet(index, found, COLUMNS, metric), output)


def _corners(box: str) -> tuple[int, int, int, int]:
    try:
        left, top, right, bottom = map(int, box.split(","))
    except ValueError:
        raise typer.BadParameter(f"a box is four whole numbers, left,top,right,bottom, not {box!r}") from None
    return left, top, right, bottom


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
        from convnets_torch.files import check_writable
        from convnets_torch.visualization import overlays

        if output.suffix.lower() not in (".csv", *overlays.FORMATS):
            known = ", ".join(overlays.FORMATS)
            raise typer.BadParameter(f"{output} has an unknown ending; tables are .csv, and sheets {known}")
        check_writable(output)
    from convnets_torch.cli.output import rows_done
    from convnets_torch.embeddings.index_table import is_there
    from convnets_torch.embeddings.search import Index

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
        from convnets_torch.embeddings.result_sheets import groups_sheet
        from convnets_torch.visualization import overlays

        tiles: Sequence[Sequence[tuple[str, str]]] = [[(a, ""), (b, f"{near:.3f}")] for a, b, near in leaks] or [
            [(path, f"{file.cosine:.3f} {mark}") for mark, file, path in _lines(group) if mark != "same"]
            for group in groups
        ]
        overlays.save_image(groups_sheet(index, tiles, COLUMNS), output)


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

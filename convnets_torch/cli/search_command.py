"""The command `search`: the pictures of an index that are nearest to some others."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from convnets_torch.cli.messages import say, show, warnings_as_lines

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
        from convnets_torch import render
        from convnets_torch.files import check_writable

        if output.suffix.lower() not in render.FORMATS:
            raise typer.BadParameter(f"{output} has an unknown ending; sheets are {', '.join(render.FORMATS)}")
        check_writable(output)
    from convnets_torch.embeddings.searching import Index, recall

    index = Index.open(db)
    network = None
    if weights is not None:
        from convnets_torch.cli.running import load_network

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
        from convnets_torch import render
        from convnets_torch.embeddings.result_sheets import search_sheet

        render.save_image(search_sheet(index, found, COLUMNS, metric), output)


def _corners(box: str) -> tuple[int, int, int, int]:
    try:
        left, top, right, bottom = map(int, box.split(","))
    except ValueError:
        raise typer.BadParameter(f"a box is four whole numbers, left,top,right,bottom, not {box!r}") from None
    return left, top, right, bottom

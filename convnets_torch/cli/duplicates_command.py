"""The command `duplicates`: pictures of an index that are nearly the same."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from convnets_torch.cli.messages import show
from convnets_torch.cli.search_command import COLUMNS, Address, AsJson, Sheet
from convnets_torch.sentences import printable


def duplicates(
    db: Address,
    threshold: Annotated[float, typer.Option(help="The least cosine of two vectors that counts, up to 1.")] = 0.95,
    between: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="Two folders: which pictures of A are nearly in B.", show_default=False),
    ] = None,
    output: Sheet = None,
    as_json: AsJson = False,
) -> None:
    """Find groups of pictures that are nearly the same, or pictures of one folder that leaked from another."""
    if not 0 < threshold <= 1:
        raise typer.BadParameter(f"--threshold {threshold} is no cosine of what is alike; give one above 0, up to 1")
    if output is not None:
        from convnets_torch import render
        from convnets_torch.files import check_writable

        if output.suffix.lower() not in render.FORMATS:
            raise typer.BadParameter(f"{output} has an unknown ending; sheets are {', '.join(render.FORMATS)}")
        check_writable(output)
    from convnets_torch.cli.progress import rows_done
    from convnets_torch.embeddings.searching import Index

    index = Index.open(db)
    groups: list[list[tuple[str, float | None]]]
    with rows_done("pairs of blocks") as progress:
        if between is None:
            groups = [[(path, None) for path in group] for group in index.duplicates(threshold, progress)]
        else:
            found = index.leaks(*between, threshold, progress)
            groups = [[(leaked, None), (source, similarity)] for leaked, source, similarity in found]
    for group in groups:
        if as_json and between is None:
            print(json.dumps({"group": [path for path, _ in group]}))
        elif as_json:
            print(json.dumps({"path": group[0][0], "of": group[1][0], "similarity": group[1][1]}))
        elif between is None:
            print("\n".join(printable(path) for path, _ in group), end="\n\n")
        else:
            show(f"{group[1][1]:.4f}  {group[0][0]}  {group[1][0]}")
    if output is not None:
        from convnets_torch import render
        from convnets_torch.embeddings.result_sheets import groups_sheet

        render.save_image(groups_sheet(index, groups, COLUMNS), output)

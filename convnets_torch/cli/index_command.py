"""The command `index`: the vectors of pictures in a table that is brought up to date."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Literal

import typer

from convnets_torch.cli.messages import say, warnings_as_lines
from convnets_torch.cli.picture_commands import (
    AllowTruncated,
    BackgroundOption,
    DepthOption,
    Exclude,
    MaxPixels,
    Weights,
)
from convnets_torch.cli.running import Device, Precision, load_network

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
    from convnets_torch.cli.progress import rows_done
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

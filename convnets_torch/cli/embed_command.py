"""The command `embed`: pictures as vectors, in a file or as lines of JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from convnets_torch.cli.messages import one_line, say, warnings_as_lines
from convnets_torch.cli.picture_commands import (
    AllowTruncated,
    BackgroundOption,
    DepthOption,
    Exclude,
    MaxPixels,
    Weights,
)
from convnets_torch.cli.running import Device, Precision, load_network

if TYPE_CHECKING:
    from convnets_torch.embeddings.extraction import Embedded
    from convnets_torch.explain.statistics import ZeroShares


def embed(
    weights: Weights,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Pictures, folders of them, quoted patterns, or - for standard input."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File of vectors to write: .npz or .safetensors.", show_default=False),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            help="A layer's name, or Keras's, such as fc2; several times for more, from the same pass. Then --precision"
            " changes numbers alone, so that every layer stays by itself.",
            show_default="what the last dense layer reads",
        ),
    ] = None,
    pool: Annotated[
        Literal["avg", "max", "flatten", "gem"],
        typer.Option(help="How maps become vectors: of each channel one value."),
    ] = "avg",
    normalize: Annotated[bool, typer.Option("--normalize", help="Divide each vector by its length.")] = False,
    zeros: Annotated[
        Path | None,
        typer.Option(help="Picture to write: the histogram of the share of values that are zero.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per picture and line.")] = False,
    device: Device = "cpu",
    precision: Precision = None,
    max_pixels: MaxPixels = None,
    allow_truncated: AllowTruncated = False,
    exclude: Exclude = None,
    depth: DepthOption = None,
    background: BackgroundOption = None,
) -> None:
    """Turn pictures into vectors: what stands before the last dense layer, or other layers."""
    if output is None and zeros is None and not as_json:
        raise typer.BadParameter("name a file with -o, a histogram with --zeros, or ask for --json (or more of these)")
    if zeros is not None and layer is not None and len(layer) > 1:
        raise typer.BadParameter(f"--zeros draws the histogram of one layer, but --layer names {len(layer)}")
    from convnets_torch import render
    from convnets_torch.cli.progress import with_time_left
    from convnets_torch.embeddings.extraction import Embedder, embed_each
    from convnets_torch.embeddings.vector_files import check_vectors_output, save_vectors
    from convnets_torch.files import check_kept, check_writable
    from convnets_torch.folders import find_pictures
    from convnets_torch.levels import said_levels

    if output is not None:
        check_vectors_output(output)
    if zeros is not None:
        if zeros.suffix.lower() not in render.FORMATS:
            raise typer.BadParameter(f"{zeros} has an unknown ending; histograms are {', '.join(render.FORMATS)}")
        check_writable(zeros)
    network = load_network(weights, device, precision, whole=layer is not None, bulk=True)
    about = Embedder(network, layer, pool, normalize).about | said_levels(depth, background)
    with warnings_as_lines():
        found = [
            path
            for name in images
            for path in (["-"] if name == "-" else map(str, find_pictures(name, exclude=exclude or ())))
        ]
        for file in (output, zeros):
            if file is not None:
                check_kept(file, found)
        rows = embed_each(
            network,
            (sys.stdin.buffer if name == "-" else name for name in found),
            layer,
            pool,
            normalize,
            exact=precision == "exact",
            max_pixels=max_pixels,
            allow_truncated=allow_truncated,
            depth=depth,
            background=background,
        )
        told = _Told(found, as_json)
        passing = told.passing(with_time_left(rows, len(found)))
        if output is None:
            for _ in passing:
                pass
        else:
            saved = save_vectors(passing, output, about)
            shapes = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in saved.shapes.items())
            say(f"{output}: {shapes}; {saved.failed} of {len(found)} pictures could not be used")
    if zeros is not None:
        shares = told.zero_shares()
        render.save_image(shares.draw(), zeros)
        say(f"{zeros}: {shares.shares.mean():.3f} of the values of {shares.layer} are zero")
    if told.failed:
        raise typer.Exit(1)


class _Told:
    """Says of each row what is to be said, while it passes."""

    def __init__(self, names: list[str], as_json: bool) -> None:
        self._names, self._as_json = names, as_json
        self.failed = 0
        self._first: Exception | None = None
        self._shares: dict[str, list[float]] = {}

    def passing(self, rows: Iterable[Embedded]) -> Iterator[Embedded]:
        """The same rows."""
        from convnets_torch.explain.statistics import shares_of_zero

        for name, row in zip(self._names, rows, strict=True):
            for remark in row.remarks:
                say(remark)
            if row.error is not None:
                self.failed += 1
                self._first = self._first or row.error
                say(one_line(row.error))
            zeros = {layer: float(shares_of_zero(vector[None])[0]) for layer, vector in row.vectors.items()}
            for layer, share in zeros.items():
                self._shares.setdefault(layer, []).append(share)
            if self._as_json and row.error is not None:
                print(json.dumps({"image": name, "error": one_line(row.error)}))
            elif self._as_json:
                vectors = {layer: vector.tolist() for layer, vector in row.vectors.items()}
                print(json.dumps({"image": name, "vectors": vectors, "zeros": zeros}))
            yield row

    def zero_shares(self) -> ZeroShares:
        """Those of all rows that passed; of one layer."""
        import numpy as np

        from convnets_torch.explain.statistics import ZeroShares

        if not self._shares:
            raise ValueError(f"none of {len(self._names)} pictures could be used; the first: {self._first}")
        [(layer, shares)] = self._shares.items()
        return ZeroShares(layer, np.array(shares))

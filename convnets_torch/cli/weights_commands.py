"""Commands about weights: convert and info."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="IN", readable=False, help="Weights: .h5 of Keras, or .pth of EfficientNet-Lite0.")
    ],
    destination: Annotated[
        Path | None,
        typer.Argument(metavar="OUT", readable=False, help="The .safetensors file to write.", show_default=False),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(help="What trained the weights, theano or tensorflow, where the file does not say it."),
    ] = None,
    preprocessing: Annotated[
        str | None,
        typer.Option(help="Preset for the card, such as original-aspect; by default that of the released weights."),
    ] = None,
    cache: Annotated[bool, typer.Option("--cache", help="Write into the cache, under the network's name.")] = False,
) -> None:
    """Convert weights to a safetensors file that knows what it is."""
    if cache == (destination is not None):
        raise typer.BadParameter("name an output file, or give --cache to write into the cache (one of the two)")
    from converters import conversion

    report = conversion.convert(source, destination, backend=backend, preprocessing=preprocessing)
    rows = [(row.source, row.parameter, "x".join(map(str, row.shape)) or "1", row.change) for row in report.rows]
    _print_columns([("their layer", "our parameter", "shape", "done"), *rows])
    trained = f", trained by {report.card.source.backend}" if report.card.source and report.card.source.backend else ""
    print(f"\n{report.destination}: {report.card.network}{trained}, preprocessing {report.card.preprocessing.name}")


def info(
    weights: Annotated[str, typer.Argument(help="A .safetensors file, or a name in the cache.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the card as JSON.")] = False,
) -> None:
    """Print what weights are: network, classes, preprocessing and where they came from."""
    from convnets_torch.cache import find
    from convnets_torch.card import read_card

    path = find(weights)
    card = read_card(path)
    fields = json.loads(card.to_json())
    if as_json:
        print(json.dumps(fields))
        return
    source, rule = fields.pop("source") or {}, fields.pop("preprocessing")
    rows = [("file", str(path))]
    rows += [(key, _plain(value)) for key, value in fields.items()]
    rows += [(f"preprocessing {key}", _plain(value)) for key, value in rule.items()]
    rows += [(f"source {key}", _plain(value)) for key, value in source.items()]
    _print_columns(rows)


def _plain(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value[:12])) + (f", ... ({len(value)})" if len(value) > 12 else "")
    if isinstance(value, dict):
        return "; ".join(f"{key} {_plain(entry)}" for key, entry in value.items())
    text = "-" if value is None else str(value)
    return text if text.isprintable() else repr(text)  # a file's text must not steer the terminal


def _print_columns(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


convert_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
convert_app.command()(convert)

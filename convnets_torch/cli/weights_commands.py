"""Commands about weights: convert and info."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from convnets_torch.cli.messages import show
from convnets_torch.sentences import printable

LONG = 2000  # letters of a field, such as the digests of pictures, that nobody reads


def convert(
    source: Annotated[
        Path,
        typer.Argument(metavar="IN", readable=False, help="Weights: .h5 or .keras of Keras, or .pth of PyTorch."),
    ],
    destination: Annotated[
        Path | None,
        typer.Argument(metavar="OUT", readable=False, help="The .safetensors file to write.", show_default=False),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(help="What trained the weights, theano or tensorflow, where the file does not say it."),
    ] = None,
    data_format: Annotated[
        str | None,
        typer.Option(help="How it was trained, channels_first or channels_last, where the file does not say it."),
    ] = None,
    preprocessing: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.json",
            help="Preset such as keras-caffe, or a JSON file; by default that of the released weights.",
        ),
    ] = None,
    activation: Annotated[
        str | None, typer.Option(help="Of the outputs, softmax, sigmoid or none, where the file has no config.")
    ] = None,
    hidden_activation: Annotated[
        str | None, typer.Option(help="Between the dense layers of a head of your own, where the file has no config.")
    ] = None,
    pool1_padding: Annotated[
        str | None,
        typer.Option(
            metavar="yes|no", help="Whether ResNet50 pads before its first pooling; no file of old names says it."
        ),
    ] = None,
    input_size: Annotated[
        str | None,
        typer.Option(metavar="PIXELS|HxW", help="Of the pictures that your own head was trained on, without config."),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(readable=False, help="Names of your own classes: a text file, one on each line.")
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="torchvision: write VGG under torchvision's names, for load_state_dict there.")
    ] = None,
    proof: Annotated[
        bool,
        typer.Option("--proof", help="Compute what the source file means beside the result, and compare each layer."),
    ] = False,
    no_isolation: Annotated[
        bool, typer.Option("--no-isolation", help="Read the file in this process, which a damaged file may crash.")
    ] = False,
    cache: Annotated[bool, typer.Option("--cache", help="Write into the cache, under the network's name.")] = False,
) -> None:
    """Convert weights to a safetensors file that knows what it is."""
    if cache == (destination is not None):
        raise typer.BadParameter("name an output file, or give --cache to write into the cache (one of the two)")
    if pool1_padding not in (None, "yes", "no"):
        raise typer.BadParameter(f"--pool1-padding is {pool1_padding!r}; yes or no is wanted")
    from converters import conversion

    report = conversion.convert(
        source,
        destination,
        backend=backend,
        data_format=data_format,
        preprocessing=preprocessing,
        activation=activation,
        hidden_activation=hidden_activation,
        pool1_padding=None if pool1_padding is None else pool1_padding == "yes",
        input_size=None if input_size is None else _size(input_size),
        classes=classes,
        layout=layout,
        proof=proof,
        isolated=not no_isolation,
    )
    rows = [(row.source, row.parameter, "x".join(map(str, row.shape)) or "1", row.change) for row in report.rows]
    print_columns([("their layer", "our parameter", "shape", "done"), *rows])
    if report.proof:
        errors = [(row.layer, row.module, f"{row.error:.1e}") for row in report.proof]
        print()
        print_columns([("their layer", "our module", "largest error"), *errors])
    print()
    for choice in report.choices:
        show(f"note: {choice}")
    trained = f", trained by {report.card.source.backend}" if report.card.source and report.card.source.backend else ""
    show(f"{report.destination}: {report.card.network}{trained}, preprocessing {report.card.preprocessing.name}")


def _size(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise typer.BadParameter(
            f"--input-size is {text!r}; pixels are wanted, such as 150 or 150x200 (height x width)"
        )
    return int(sides[0]), int(sides[-1])


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
    print_columns(rows)


def _plain(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value[:12])) + (f", ... ({len(value)})" if len(value) > 12 else "")
    if isinstance(value, dict):
        return "; ".join(f"{key} {_plain(entry)}" for key, entry in value.items())
    text = "-" if value is None else str(value)
    if len(text) > LONG:
        text = f"{text[:12]}... ({len(text)} letters)"
    return text if text.isprintable() else repr(text)


def print_columns(rows: Sequence[tuple[str, ...]]) -> None:
    shown = [tuple(map(printable, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


convert_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
convert_app.command()(convert)

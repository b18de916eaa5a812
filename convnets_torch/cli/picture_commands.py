"""Commands about pictures: classify and demo."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from convnets_torch.cli import output as results
from convnets_torch.cli.options import Device, EngineName, Precision, load_engine
from convnets_torch.cli.output import one_line, say, show, warnings_as_lines

Weights = Annotated[str, typer.Argument(metavar="WEIGHTS", help="A .safetensors file, or a name in the cache.")]


MaxPixels = Annotated[
    int | None,
    typer.Option(min=1, help="Refuse files of more pixels (height times width).", show_default="178956970"),
]
AllowTruncated = Annotated[
    bool, typer.Option("--allow-truncated", help="Read what is there of pictures whose end is missing.")
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Leave out files and folders of a folder by their name or path in it, such as thumbs or '*_mask.png';"
        " several times for more.",
        show_default=False,
    ),
]
DepthOption = Annotated[
    Literal["8", "10", "12", "14", "16", "auto"] | None,
    typer.Option(
        "--depth",
        help="Bits of the values in files of 16 bits a channel; auto takes as few as hold each picture's largest.",
        show_default="as the file says, or 16",
    ),
]


def _background(text: str) -> str:
    from convnets_torch.images.levels import check_levels

    try:
        check_levels(None, text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return text


BackgroundOption = Annotated[
    str | None,
    typer.Option(
        "--background",
        metavar="white|black|checker|#RRGGBB",
        parser=_background,
        help="What shows through transparency.",
        show_default="the colours as stored",
    ),
]


def classify(
    weights: Weights,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Pictures, folders of them, quoted patterns, or - for standard input."),
    ],
    top: Annotated[int, typer.Option(min=1, help="How many classes to print for each picture.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per picture and line.")] = False,
    only: Annotated[
        str | None, typer.Option(help="Leave out classes that are not of this target; probabilities stay as they are.")
    ] = None,
    backoff: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="First the deepest WordNet synset that is at least so probable.", show_default=False
        ),
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, one row per class or error.")] = False,
    as_table: Annotated[bool, typer.Option("--table", help="Print a table when all is done.")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write instead of printing.", show_default=False)
    ] = None,
    device: Device = "cpu",
    precision: Precision = None,
    engine: EngineName = None,
    max_pixels: MaxPixels = None,
    allow_truncated: AllowTruncated = False,
    exclude: Exclude = None,
    depth: DepthOption = None,
    background: BackgroundOption = None,
) -> None:
    """Print the most probable classes of pictures: probability, wnid, words."""
    if as_json + as_csv + as_table > 1:
        raise typer.BadParameter("--json, --csv and --table exclude each other")
    from convnets_torch.cli.output import with_time_left
    from convnets_torch.files import check_writable, replacing
    from convnets_torch.images.finding import find_pictures
    from convnets_torch.inference import classification
    from convnets_torch.wordnet.targets import find_target

    if output is not None:
        check_writable(output)
    network = load_engine(weights, device, precision, engine)
    if only is not None:
        find_target(classification.card_of(network), only)  # an unknown one is refused once, before any picture
    form = results.JsonLines if as_json else results.Csv if as_csv else results.Table if as_table else results.Text
    with warnings_as_lines(), contextlib.ExitStack() as stack:
        found = [
            path
            for name in images
            for path in (["-"] if name == "-" else map(str, find_pictures(name, exclude=exclude or ())))
        ]
        sources = (sys.stdin.buffer if name == "-" else name for name in found)
        entries = classification.classify_each(
            network,
            sources,
            top,
            only=only,
            backoff=backoff,
            max_pixels=max_pixels,
            allow_truncated=allow_truncated,
            depth=depth,
            background=background,
        )
        file = sys.stdout
        if output is not None:
            part = stack.enter_context(replacing(output))
            file = stack.enter_context(part.open("w", encoding="utf-8", newline=""))
        writer: results.Writer = form(file, len(found) > 1)
        failed = 0
        for name, entry in zip(found, with_time_left(entries, len(found)), strict=True):
            for remark in entry.remarks:
                say(remark)
            if entry.error is not None:
                failed += 1
                say(one_line(entry.error))
            writer.add(name, entry)
        writer.finish()
    if output is not None:
        say(f"{output}: {len(found)} pictures, {failed} of which could not be classified")
    if failed:
        raise typer.Exit(1)


def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write the pictures into.")] = Path("demo"),
) -> None:
    """See it work without weights of your own: EfficientNet-Lite0 on four photographs."""
    from convnets_torch import demo as first_run

    result = first_run.demo(output)
    for photograph, predictions in result.predictions.items():
        show(photograph)
        print(*results.prediction_lines(predictions), sep="\n")
    for picture in result.pictures:
        show(str(picture))
    show(f"the network: {result.weights} (convnets-torch classify efficientnet_lite0 IMAGE)", file=sys.stderr)

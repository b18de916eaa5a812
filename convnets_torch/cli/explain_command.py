"""The command `explain`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from convnets_torch.cli.messages import show, warnings_as_lines
from convnets_torch.cli.picture_commands import AllowTruncated, BackgroundOption, DepthOption, MaxPixels, Weights
from convnets_torch.cli.running import Device, Precision, load_network


def explain(
    weights: Weights,
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="A picture, or - for standard input.")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page to write, an .html file.")],
    top: Annotated[int, typer.Option(min=1, help="How many classes to explain.")] = 5,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            help="Layers whose activations to show: names or patterns such as 'relu5_*'; several times for more.",
            show_default="five",
        ),
    ] = None,
    method: Annotated[
        Literal["gradcam", "gradcam++", "hirescam", "layercam"], typer.Option(help="How classes are explained.")
    ] = "gradcam",
    device: Device = "cpu",
    precision: Precision = None,
    max_pixels: MaxPixels = None,
    allow_truncated: AllowTruncated = False,
    depth: DepthOption = None,
    background: BackgroundOption = None,
) -> None:
    """Write one page: the top classes of a picture, the heatmap and the Grad-CAM of each, and what layers give."""
    from convnets_torch.cli.results import prediction_lines
    from convnets_torch.explain import report
    from convnets_torch.files import check_page

    check_page(output, "an explanation")
    network = load_network(weights, device, precision)
    picture = sys.stdin.buffer if image == "-" else image
    with warnings_as_lines():
        found = report.explain(
            network,
            picture,
            top=top,
            layers=layer,
            method=method,
            max_pixels=max_pixels,
            allow_truncated=allow_truncated,
            depth=depth,
            background=background,
        )
    found.save(output)
    for line in prediction_lines(found.predictions):
        show(line)

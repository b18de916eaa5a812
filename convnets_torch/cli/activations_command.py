"""The command `activations`: channels of layers for a picture, or their statistics over a folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from convnets_torch.cli.messages import one_line, say, show, warnings_as_lines
from convnets_torch.cli.picture_commands import AllowTruncated, BackgroundOption, DepthOption, MaxPixels, Weights
from convnets_torch.cli.running import Device, Precision, load_network

if TYPE_CHECKING:
    from convnets_torch.explain.grids import ChannelGrid
    from convnets_torch.networks import Network

ALL = "features.*"
CHANNELS, ORDER, SCALE = 64, "strongest", "channel"


def activations(
    weights: Weights,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...",
            help="A picture, or - for standard input; of several, folders or patterns the statistics are computed.",
        ),
    ],
    layer: Annotated[
        list[str] | None,
        typer.Option(
            help="A layer's name, Keras's name, prefix or quoted pattern, as in 'relu5_*'; several times for more.",
            show_default="all of the features",
        ),
    ] = None,
    order: Annotated[
        Literal["strongest", "number"] | None,
        typer.Option(help="Of the channels: by the mean of their absolute values, or by number.", show_default=ORDER),
    ] = None,
    channels: Annotated[
        int | None, typer.Option(min=1, help="Show so many of each layer.", show_default=str(CHANNELS))
    ] = None,
    scale: Annotated[
        Literal["channel", "layer"] | None,
        typer.Option(
            help="Colours reach to the largest absolute value of each channel, or of the layer.", show_default=SCALE
        ),
    ] = None,
    longest_side: Annotated[
        int | None,
        typer.Option(min=1, help="The whole picture, resized to so many pixels, instead of the centre of it."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Of a picture: .png, .jpg, .webp (one page of all layers), .npz (numbers), or a folder for a .png of"
            " each layer. Of several: .json, .csv, .npz, or a picture: the histogram of the share of zeros of one"
            " layer.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object for each layer.")] = False,
    device: Device = "cpu",
    precision: Precision = None,
    max_pixels: MaxPixels = None,
    allow_truncated: AllowTruncated = False,
    depth: DepthOption = None,
    background: BackgroundOption = None,
) -> None:
    """Draw what the channels of layers give for a picture, or compute their statistics over many."""
    if output is None and not as_json:
        raise typer.BadParameter("name a file or folder with -o, or ask for --json (or both)")
    from convnets_torch.cli.heatmap_folders import is_many

    reading: dict[str, Any] = {
        "max_pixels": max_pixels,
        "allow_truncated": allow_truncated,
        "depth": depth,
        "background": background,
    }

    def load() -> Network:
        return load_network(weights, device, precision, whole=True)

    if is_many(images):
        if any(option is not None for option in (order, channels, scale, longest_side)):
            raise typer.BadParameter(
                "--order, --channels, --scale and --longest-side are for one picture; of several, statistics are taken"
            )
        failed = _statistics(load, images, layer, output, as_json, reading)
        raise typer.Exit(1 if failed else 0)
    from convnets_torch.explain.grids import activation_grids, check_grids_output
    from convnets_torch.files import check_kept

    folder = output is not None and (output.is_dir() or not output.suffix)
    if output is not None and not folder:
        check_grids_output(output)
        check_kept(output, images)
    network = load()
    with warnings_as_lines():
        grids = activation_grids(
            network,
            sys.stdin.buffer if images == ["-"] else images[0],
            layer,
            order=order or "strongest",
            channels=channels or CHANNELS,
            scale=scale,
            longest_side=longest_side,
            **reading,
        )
    if output is not None:
        _save(grids, output, folder)
    for grid in grids:
        show(json.dumps(_record(grid)) if as_json else _line(grid))


def _save(grids: list[ChannelGrid], output: Path, folder: bool) -> None:
    """One page or file of numbers; or a page of each layer in a folder."""
    from convnets_torch.explain.grids import save_grids

    if not folder:
        save_grids(grids, output)
        return
    output.mkdir(parents=True, exist_ok=True)
    for grid in grids:
        save_grids([grid], output / f"{grid.layer}.png")
    say(f"{output}: pages of {len(grids)} layers")


def _record(grid: ChannelGrid) -> dict[str, Any]:
    return {
        "layer": grid.layer,
        "shape": list(grid.shape),
        "channels": grid.channels.tolist(),
        "strengths": grid.strengths[grid.channels].tolist(),
        "left_out": grid.left_out,
        "dead": int((grid.strengths == 0).sum()),
    }


def _line(grid: ChannelGrid) -> str:
    best, dead = int(grid.strengths.argmax()), int((grid.strengths == 0).sum())
    return (
        f"{grid.layer}  {'x'.join(map(str, grid.shape))}  {len(grid.channels)} shown, {grid.left_out} left out,"
        f" {dead} dead; strongest {best} ({grid.strengths[best]:.3g})"
    )


def _statistics(
    load: Callable[[], Network],
    images: list[str],
    layers: list[str] | None,
    output: Path | None,
    as_json: bool,
    reading: dict[str, Any],
) -> int:
    """Statistics of layers over pictures, or the histogram of one; how many pictures failed."""
    from convnets_torch import render
    from convnets_torch.explain import statistics
    from convnets_torch.files import check_kept, check_writable
    from convnets_torch.folders import find_pictures

    if histogram := output is not None and output.suffix.lower() in render.FORMATS:
        check_writable(output)
        if layers is None or len(layers) > 1 or as_json:
            raise typer.BadParameter(
                "of several pictures a picture is the histogram of one layer's zeros: name one with --layer, without"
                " --json; statistics go into .json, .csv or .npz"
            )
    elif output is not None:
        statistics.check_statistics_output(output)
    network = load()
    if "-" in images:
        raise ValueError("standard input is one picture; name it alone")
    with warnings_as_lines():
        pictures = find_pictures(images)
    if output is not None:
        check_kept(output, pictures)
    errors: tuple[tuple[str, Exception], ...]
    if histogram and layers is not None and output is not None:
        shares = statistics.zero_shares(network, pictures, layers[0], **reading)
        render.save_image(shares.draw(), output)
        show(f"{shares.layer}  {len(shares.shares)} pictures  {shares.shares.mean():.3f} of the values are zero")
        errors = shares.errors
    else:
        found = statistics.channel_statistics(network, pictures, layers or [ALL], **reading)
        for remark in found.remarks:
            say(remark)
        if output is not None:
            statistics.save_statistics(found, output)
        if as_json:
            print(json.dumps(statistics.as_json(found)))
        else:
            for each in found.layers:
                show(
                    f"{each.layer}  {each.pictures} pictures  mean {each.mean.mean():.3g}"
                    f"  zeros {each.zeros.mean():.3f}  dead {int(each.dead.sum())} of {len(each.mean)}"
                )
        errors = found.errors
    for _, error in errors:
        say(one_line(error))
    return len(errors)

"""The command `filters`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from convnets_torch.cli.messages import one_line, say, show, warnings_as_lines
from convnets_torch.cli.picture_commands import AllowTruncated, BackgroundOption, DepthOption, MaxPixels, Weights
from convnets_torch.cli.progress import rows_done
from convnets_torch.cli.running import Device, Precision, load_network

if TYPE_CHECKING:
    from convnets_torch.explain.filters import FilterPatterns
    from convnets_torch.explain.patches import Patch, TopPatches
    from convnets_torch.networks import Network


def filters(
    weights: Weights,
    layer: Annotated[
        str | None, typer.Option(help="Layer whose channels are excited; best before its ReLU.", show_default=False)
    ] = None,
    *,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="File to write: .png, .jpg, .webp (a sheet), or .npz (arrays).")
    ],
    channels: Annotated[str | None, typer.Option(help="Channels such as 0-63,70.", show_default="the first 64")] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="A class to excite instead: a word, a wnid, a class id; several times for several."),
    ] = None,
    kernels: Annotated[bool, typer.Option("--kernels", help="The first layer's kernels instead, as they are.")] = False,
    pictures: Annotated[
        list[str] | None,
        typer.Option(help="Pictures or a folder of them: beside each pattern the patches that excite it most."),
    ] = None,
    form: Annotated[
        Literal["fourier", "plain"], typer.Option(help="How: with natural scales and colours, or as in Chollet's book.")
    ] = "fourier",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of the ascent.", show_default="64, of the plain form 40")
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Pixels of each picture's side.", show_default="128")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the noise at the start.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of lines.")] = False,
    device: Device = "cpu",
    precision: Precision = None,
    max_pixels: MaxPixels = None,
    allow_truncated: AllowTruncated = False,
    depth: DepthOption = None,
    background: BackgroundOption = None,
) -> None:
    """Draw what excites a layer's channels, or a class: patterns, kernels, patches of your pictures."""
    _check_together(layer, channels, target, kernels, pictures)
    from convnets_torch.explain.sheets import check_output

    check_output(output)
    if pictures and output.suffix.lower() == ".npz":
        raise typer.BadParameter("--pictures draws a sheet; name an output that ends in .png, .jpg or .webp")
    numbers = _numbers(channels)
    network = load_network(weights, device, precision, whole=True)
    if kernels:
        _draw_kernels(network, output, as_json)
        return
    from convnets_torch.explain.filters import class_patterns, filter_patterns

    options: dict[str, Any] = {"form": form, "steps": steps, "size": size, "seed": seed}
    found = None
    if pictures:  # first: what is wrong with a layer or a channel is said before the long ascent
        assert layer is not None
        reading = {
            "max_pixels": max_pixels,
            "allow_truncated": allow_truncated,
            "depth": depth,
            "background": background,
        }
        found = _patches(network, layer, numbers, pictures, output, reading)
    with warnings_as_lines(), rows_done("steps") as progress:
        if target:
            patterns = class_patterns(network, target, **options, progress=progress)
        else:
            assert layer is not None
            patterns = filter_patterns(network, layer, numbers, **options, progress=progress)
    if found is None:
        patterns.save(output)
    else:
        found.save(output, patterns)
    _print(patterns, found, output, as_json)
    for _, error in found.failed if found else ():
        say(one_line(error))
    if found and found.failed:
        raise typer.Exit(1)


def _check_together(
    layer: str | None, channels: str | None, target: list[str] | None, kernels: bool, pictures: list[str] | None
) -> None:
    """Options that do not go together are a misuse."""
    if (layer is not None) + bool(target) + kernels != 1:
        raise typer.BadParameter("name one of --layer, --target and --kernels")
    if layer is None and (channels is not None or pictures):
        raise typer.BadParameter("--channels and --pictures go with --layer")


def _numbers(channels: str | None) -> list[int] | None:
    """Channels such as 0-63,70."""
    if channels is None:
        return None
    numbers: list[int] = []
    for part in channels.split(","):
        found = re.fullmatch(r"\s*(\d{1,6})(?:\s*-\s*(\d{1,6}))?\s*", part)
        if found is None or int(found[2] or found[1]) < int(found[1]):
            raise typer.BadParameter(f"--channels is {channels!r}; give numbers and ranges such as 0-63,70")
        numbers += range(int(found[1]), int(found[2] or found[1]) + 1)
    return list(dict.fromkeys(numbers))


def _draw_kernels(network: Network, output: Path, as_json: bool) -> None:
    from convnets_torch.explain.kernels import first_kernels

    found = first_kernels(network)
    found.save(output)
    if as_json:
        entries = [{"unit": number, "peak": float(peak)} for number, peak in enumerate(found.peaks)]
        print(json.dumps({"output": str(output), "layer": found.layer, "kernels": entries}))
        return
    count, height, width = found.pictures.shape[:3]
    show(f"{output}: {count} kernels of {height}x{width} pixels of {found.layer}")


def _patches(
    network: Network,
    layer: str,
    channels: list[int] | None,
    pictures: list[str],
    output: Path,
    reading: dict[str, Any],
) -> TopPatches:
    from convnets_torch.explain.patches import top_patches
    from convnets_torch.files import check_kept
    from convnets_torch.folders import find_pictures

    with warnings_as_lines(), rows_done("pictures") as progress:
        paths = find_pictures(pictures)
        check_kept(output, paths)
        return top_patches(
            network,
            paths,
            layer,
            channels,
            **reading,
            progress=None if progress is None else lambda done: progress(done, len(paths)),
        )


def _print(patterns: FilterPatterns, found: TopPatches | None, output: Path, as_json: bool) -> None:
    """A line for each unit: activation at the start and of the picture, and what it is."""
    from convnets_torch.explain.filters import words_of

    entries: list[dict[str, Any]] = []
    for place, unit in enumerate(patterns.units):
        entry: dict[str, Any] = {
            "unit": unit if isinstance(unit, int) else words_of(unit),
            "before": float(patterns.before[place]),
            "after": float(patterns.after[place]),
            "excited": bool(patterns.excited[place]),
        }
        if found is not None:
            entry["patches"] = [_described(patch) for patch in found.patches[place]]
        entries.append(entry)
    if as_json:
        about = {"layer": patterns.layer, "form": patterns.form, "steps": patterns.steps, "seed": patterns.seed}
        print(json.dumps({"output": str(output), **about, "patterns": entries}))
        return
    for entry in entries:
        note = "" if entry["excited"] else "  not excited"
        show(f"{entry['before']:>10.4g} {entry['after']:>10.4g}  {entry['unit']}{note}")
        for patch in entry.get("patches", ())[:1]:
            left, top, right, bottom = (round(edge) for edge in patch["box"])
            where = f"x {left} to {right}, y {top} to {bottom}"
            show(f"{'':>10} {patch['activation']:>10.4g}  {patch['picture']}, {where}")
    say(f"{output}: {len(entries)} patterns of {patterns.layer}; activation of the noise, and of the picture")


def _described(patch: Patch) -> dict[str, Any]:
    return {
        "picture": str(patch.picture),
        "activation": patch.activation,
        "cell": [patch.row, patch.column],
        "box": list(patch.box),
    }

"""`heatmap`: where in a picture a class is."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from convnets_torch.cli.options import Device, EngineName, Precision, load_engine, resumable
from convnets_torch.cli.output import rows_done, show, warnings_as_lines
from convnets_torch.cli.picture_commands import (
    AllowTruncated,
    BackgroundOption,
    DepthOption,
    Exclude,
    MaxPixels,
    Weights,
)

if TYPE_CHECKING:
    from convnets_torch.heatmaps.api import CellMap
    from convnets_torch.heatmaps.scales import Scales


def heatmap(
    weights: Weights,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="A picture, or - for standard input; or several, folders, patterns."),
    ],
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="What to look for: a word, a wnid, a class id, or 'dog - wolf'; several times for a sheet of maps."
        ),
    ] = None,
    *,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="File to write: .png, .jpg, .webp, .html (a page), .json (boxes), .npz or .npy (numbers);"
            " of several pictures a folder.",
        ),
    ],
    against: Annotated[
        str | None, typer.Option(help="What counts against the target: the map is the difference of the two.")
    ] = None,
    argmax: Annotated[
        bool, typer.Option("--argmax", help="What is where: the best class of each cell (of the targets, if any).")
    ] = False,
    every_class: Annotated[
        bool, typer.Option("--all", help="All classes: .npz or .npy of their probabilities in each cell.")
    ] = False,
    longest_side: Annotated[
        int | None, typer.Option(min=1, help="Resize to so many pixels first; more finds smaller things.")
    ] = None,
    upscale: Annotated[
        bool, typer.Option("--upscale", help="Enlarge a picture that is smaller than the network, as far as is needed.")
    ] = False,
    cell_stride: Annotated[
        int | None, typer.Option(min=1, help="Pixels between cells, for a denser map: 16, 8, 4.", show_default="32")
    ] = None,
    scales: Annotated[
        str | None, typer.Option(help="Sizes of the picture whose maps are fused: factors such as 0.5,1,2, or auto.")
    ] = None,
    fuse: Annotated[Literal["mean", "max"], typer.Option(help="How the maps of several scales become one.")] = "mean",
    max_memory: Annotated[
        str, typer.Option(help="Memory for activations; larger pictures go through in strips, with the same numbers.")
    ] = "1GB",
    resume: Annotated[
        Path | None,
        typer.Option(help="Folder for finished rows; an interrupted run goes on from there.", show_default=False),
    ] = None,
    device: Device = "cpu",
    precision: Precision = None,
    engine: EngineName = None,
    form: Annotated[
        Literal["png", "jpg", "webp", "html", "json", "npz", "npy"],
        typer.Option("--format", help="Ending of the files of several pictures."),
    ] = "png",
    threshold: Annotated[float, typer.Option(help="Of the regions in .json, .html and reports.")] = 0.5,
    reduced: Annotated[
        bool,
        typer.Option(
            "--reduced",
            help="Decode JPEG files at 1/2, 1/4 or 1/8 of their scale where --longest-side leaves room: faster, with"
            " slightly other numbers; for several pictures.",
        ),
    ] = False,
    plain: Annotated[bool, typer.Option("--plain", help="The colours alone, without the picture.")] = False,
    max_pixels: MaxPixels = None,
    allow_truncated: AllowTruncated = False,
    exclude: Exclude = None,
    depth: DepthOption = None,
    background: BackgroundOption = None,
) -> None:
    """Draw where in a picture a class is, or a whole branch of the WordNet tree."""
    targets = target or []
    _check_together(targets, against, argmax, every_class, plain, scales)
    if engine is not None and cell_stride is not None:
        raise typer.BadParameter(
            f"--engine {engine} gives the network's own cells; leave out --cell-stride or --engine"
        )
    from convnets_torch.files import check_kept
    from convnets_torch.heatmaps import api

    if every_class and output.suffix.lower() not in (".npz", ".npy"):
        raise typer.BadParameter("--all writes numbers; name an output that ends in .npz or .npy")
    factors = _factors(scales)
    from convnets_torch.cli.heatmap_folders import is_many, map_each

    if reduced and (longest_side is None or not is_many(images)):
        raise typer.BadParameter("--reduced goes with --longest-side and several pictures, or a folder of them")
    if is_many(images):
        if argmax or every_class or plain or against is not None or resume is not None:
            raise typer.BadParameter(
                "several pictures go with --target alone, not with --argmax, --all, --against, --plain or --resume"
            )
        failed = map_each(
            load_engine(weights, device, precision, engine, heatmap=True),
            images,
            targets,
            output,
            format=form,
            threshold=threshold,
            longest_side=longest_side,
            upscale=upscale,
            cell_stride=cell_stride,
            scales=factors,
            fuse=fuse,
            max_memory=max_memory,
            max_pixels=max_pixels,
            allow_truncated=allow_truncated,
            depth=depth,
            background=background,
            exact=not reduced,
            exclude=exclude or (),
        )
        raise typer.Exit(1 if failed else 0)
    api.CellMap.writer.check(output)
    check_kept(output, images)
    network = load_engine(weights, device, precision, engine, heatmap=True)
    picture = sys.stdin.buffer if images == ["-"] else images[0]
    with warnings_as_lines(), resumable(resume, "written"), rows_done() as progress:
        common: dict[str, Any] = {
            "longest_side": longest_side,
            "upscale": upscale,
            "cell_stride": cell_stride,
            "max_memory": max_memory,
            "resume": resume,
            "progress": progress,
            "max_pixels": max_pixels,
            "allow_truncated": allow_truncated,
            "depth": depth,
            "background": background,
        }
        maps: Sequence[CellMap]
        if every_class:
            maps = [api.probability_map(network, picture, **common)]
        elif argmax:
            maps = [api.class_map(network, picture, only=targets[0] if targets else None, **common)]
        elif against is not None:
            found = api.contrast(network, picture, targets[0], against, scales=factors, fuse=fuse, **common)
            maps = [found]
        else:
            maps = api.heatmap(network, picture, targets, scales=factors, fuse=fuse, **common)
    api.save_sheet(maps, output, plain=plain, threshold=threshold)
    _print(output, targets, maps)


def _check_together(
    targets: list[str], against: str | None, argmax: bool, every_class: bool, plain: bool, scales: str | None
) -> None:
    """Options that do not go together are a misuse."""
    if not (targets or argmax or every_class):
        raise typer.BadParameter("name what to look for with --target, or ask what is where with --argmax")
    if argmax and (plain or len(targets) > 1):
        raise typer.BadParameter("--argmax goes with one --target at most, and not with --plain")
    if every_class and (argmax or plain or targets):
        raise typer.BadParameter("--all goes with neither --target, --argmax nor --plain")
    if (argmax or every_class) and scales is not None:
        raise typer.BadParameter("--scales goes with --target, not with --argmax or --all")
    if against is not None and (argmax or every_class or len(targets) != 1):
        raise typer.BadParameter("--against goes with one --target")


def _factors(scales: str | None) -> Scales | None:
    if scales is None or scales == "auto":
        return scales  # type: ignore[return-value]
    try:
        return [float(factor) for factor in scales.split(",")]
    except ValueError:
        raise ValueError(f"--scales is {scales!r}; give factors such as 0.5,1,2, or auto") from None


def _print(output: Path, targets: list[str], maps: Sequence[CellMap]) -> None:
    """What was found: a line for each map on stdout, what a target was taken for on stderr."""
    from convnets_torch.heatmaps.maps import ClassMap, Contrast, Heatmap

    for name, found in zip(targets or [""], maps, strict=False):
        if isinstance(found, ClassMap):
            for class_id, words in found.names.items():
                show(f"{(found.class_ids == class_id).mean():.3f}  {class_id:<4}  {words}")
            return
        prefix = f"{output}: " if len(maps) == 1 else f"{output}: {name}: "
        if isinstance(found, Heatmap):
            ids, meant = len(found.target.class_ids), filter(None, [found.target.wnid, found.target.label])
            show(f"{name}: {' '.join(meant)} ({ids} {'class' if ids == 1 else 'classes'})", file=sys.stderr)
        if isinstance(found, Contrast):
            show(found.label, file=sys.stderr)
        if isinstance(found, Heatmap | Contrast):
            left, top, right, bottom = (round(edge) for edge in found.window(*found.peak))
            where = f"in the window x {left} to {right}, y {top} to {bottom} (pixels)"
            show(f"{prefix}highest {found.values.max():.3f}, {where}")
        else:
            rows, columns = found.values.shape
            show(f"{prefix}{found.card.classes} classes in {rows} rows and {columns} columns of cells")

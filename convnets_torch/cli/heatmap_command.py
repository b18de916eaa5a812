"""`heatmap`: show where in a picture a class is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from convnets_torch.cli import options
from convnets_torch.cli.options import Images, RunOptions, Shown, Weights, command, option
from convnets_torch.cli.output import aside, rows_done, show, warnings_as_lines

if TYPE_CHECKING:
    from convnets_torch.heatmaps.api import CellMap
    from convnets_torch.heatmaps.scales import Scales


@command(old={"--resume": "--resume-folder"})
def heatmap(
    weights: Weights,
    images: Images,
    run: RunOptions,
    shown: Shown,
    target: options.Targets = None,
    *,
    output: Path = option(
        ...,
        "File to write: .png, .jpg, .webp, .html (a page), .json (boxes), .npz or .npy (numbers);"
        " a folder for several pictures.",
    ),
    against: options.Against = None,
    argmax: bool = option(False, "Draw the best class of each cell (among the target's classes, if given)."),
    every_class: bool = option(False, "Write the probabilities of all classes in each cell, .npz or .npy.", "--all"),
    longest_side: options.LongestSide = None,
    upscale: bool = option(False, "Enlarge a picture that is smaller than the network's input, to just that size."),
    cell_stride: int | None = option(
        None, "Pixels between cells; 16, 8 or 4 give a denser map.", min=1, show_default="32"
    ),
    scales: str | None = option(None, "Picture scales whose maps are fused: factors such as 0.5,1,2, or auto."),
    fuse: Literal["mean", "max"] = option("mean", "How to fuse the maps of several scales."),
    max_memory: str = option(
        "1GB", "Memory for activations; larger pictures are processed in blocks of rows, with the same numbers."
    ),
    resume_folder: options.ResumeFolder = None,
    form: Literal["png", "jpg", "webp", "html", "json", "npz", "npy"] = option(
        "png", "File format for several pictures.", "--format"
    ),
    threshold: float = option(0.5, "Threshold of the regions in .json, .html and reports."),
    reduced: options.Reduced = False,
    plain: bool = option(False, "Draw the colours without the picture."),
) -> None:
    """Draw where in a picture a class, or a whole branch of the WordNet tree, is.

    Several targets give a sheet of maps. With --against, the map is the difference of the two.
    """
    targets = target or []
    _check_together(targets, against, argmax, every_class, plain, scales)
    if run.engine is not None and cell_stride is not None:
        raise typer.BadParameter(f"--engine {run.engine} has a fixed cell stride; leave out --cell-stride or --engine")
    from convnets_torch.files import check_kept
    from convnets_torch.heatmaps import api

    if every_class and output.suffix.lower() not in (".npz", ".npy"):
        raise typer.BadParameter("--all writes arrays; give an output ending in .npz or .npy")
    factors = _factors(scales)
    from convnets_torch.cli.heatmap_folders import is_many, map_each

    if reduced and (longest_side is None or not is_many(images)):
        raise typer.BadParameter("--reduced goes with --longest-side and several pictures, or a folder of them")
    if is_many(images):
        if argmax or every_class or plain or against is not None or resume_folder is not None:
            raise typer.BadParameter(
                "several pictures need --target, without --argmax, --all, --against, --plain and --resume-folder"
            )
        failed = map_each(
            run.runnable(weights, heatmap=True), images, targets, output, format=form, threshold=threshold,
            exclude=run.exclude or (), as_json=shown.as_json, longest_side=longest_side, upscale=upscale,
            cell_stride=cell_stride, scales=factors, fuse=fuse, max_memory=max_memory, exact=not reduced, **run.running,
        )  # fmt: skip
        raise typer.Exit(1 if failed else 0)
    api.CellMap.writer.check(output)
    check_kept(output, images)
    network = run.runnable(weights, heatmap=True)
    picture = options.opened(images[0])
    with warnings_as_lines(), options.resumable(resume_folder, "written"), rows_done() as progress:
        common: dict[str, Any] = {
            "longest_side": longest_side,
            "upscale": upscale,
            "cell_stride": cell_stride,
            "max_memory": max_memory,
            "resume": resume_folder,
            "progress": progress,
            **run.reading,
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
            maps = api.heatmap_targets(network, picture, targets, scales=factors, fuse=fuse, **common)
    api.save_sheet(maps, output, plain=plain, threshold=threshold)
    if shown.as_json:
        from convnets_torch.heatmaps.maps import regions_of

        about = {} if every_class else regions_of(maps, threshold)
        print(json.dumps({"image": images[0], "output": str(output), **about}))
    else:
        _print(output, targets, maps)


def _check_together(
    targets: list[str], against: str | None, argmax: bool, every_class: bool, plain: bool, scales: str | None
) -> None:
    """Raise for options that exclude each other."""
    if not (targets or argmax or every_class):
        raise typer.BadParameter("give --target, --argmax or --all")
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
    """Print a line per map to stdout, and the meaning of each target to stderr."""
    from convnets_torch.heatmaps.maps import ClassMap, Contrast, Heatmap

    for name, found in zip(targets or [""], maps, strict=False):
        if isinstance(found, ClassMap):
            for class_id, words in found.names.items():
                show(f"{(found.class_ids == class_id).mean():.3f}  {class_id:<4}  {words}")
            return
        prefix = f"{output}: " if len(maps) == 1 else f"{output}: {name}: "
        if isinstance(found, Heatmap):
            ids, meant = len(found.target.class_ids), filter(None, [found.target.wnid, found.target.label])
            aside(f"{name}: {' '.join(meant)} ({ids} {'class' if ids == 1 else 'classes'})")
        if isinstance(found, Contrast):
            aside(found.label)
        if isinstance(found, Heatmap | Contrast):
            left, top, right, bottom = (round(edge) for edge in found.window(*found.peak))
            where = f"in the window x {left} to {right}, y {top} to {bottom} (pixels)"
            show(f"{prefix}highest {found.values.max():.3f}, {where}")
        else:
            rows, columns = found.values.shape
            show(f"{prefix}{found.card.classes} classes in {rows} rows and {columns} columns of cells")

"""Patterns, kernels and patches as files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from convnets_torch import render
from convnets_torch.files import check_writable, replacing
from convnets_torch.preprocessing import Pixels

if TYPE_CHECKING:
    from convnets_torch.explain.filters import FilterPatterns
    from convnets_torch.explain.kernels import FirstKernels
    from convnets_torch.explain.patches import TopPatches

WIDTH = 800  # pixels of the narrowest page
TILE = 128  # pixels of a picture's width in a sheet of many
LARGE_TILE = 240  # and of few


def check_output(path: str | os.PathLike[str]) -> Path:
    """Raise, before long work begins, when pictures cannot be written to `path`.

    Raises:
        ValueError: another ending than that of a picture or `.npz`.
        OSError: `path` cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in (*render.FORMATS, ".npz"):
        raise ValueError(f"{path} has an unknown ending; name a picture: {', '.join(render.FORMATS)}, or .npz")
    check_writable(path)
    return path


def save_patterns(patterns: FilterPatterns, path: str | os.PathLike[str]) -> None:
    """What `FilterPatterns.save` says."""
    from convnets_torch.explain.filters import words_of

    path = check_output(path)
    if path.suffix.lower() == ".npz":
        names = ("pictures", "start", "before", "after", "layer", "form", "steps", "seed")
        words = [words_of(unit) for unit in patterns.units]
        _save_arrays(path, {name: getattr(patterns, name) for name in names} | {"units": np.array(words)})
        return
    labels = []
    for unit, before, after, excited in zip(
        patterns.units, patterns.before, patterns.after, patterns.excited, strict=True
    ):
        rise = f"{short(before)} to {short(after)}" if excited else "not excited"
        labels.append(f"{words_of(unit)}\n{rise}")
    title = f"{patterns.layer}, {patterns.form}, {patterns.steps} steps: activation from noise to picture"
    save_tiles(patterns.pictures, labels, path, title)


def save_kernels(kernels: FirstKernels, path: str | os.PathLike[str]) -> None:
    """What `FirstKernels.save` says."""
    path = check_output(path)
    if path.suffix.lower() == ".npz":
        _save_arrays(
            path,
            {"pictures": kernels.pictures, "weights": kernels.weights, "peaks": kernels.peaks, "layer": kernels.layer},
        )
        return
    labels = [f"{number}\nmost {short(peak)}" for number, peak in enumerate(kernels.peaks)]
    save_tiles(kernels.pictures, labels, path, f"{kernels.layer}: kernels, grey is 0, each up to its largest weight")


def save_patches(found: TopPatches, path: str | os.PathLike[str], patterns: FilterPatterns | None) -> None:
    """What `TopPatches.save` says."""
    path = check_output(path)
    if path.suffix.lower() not in render.FORMATS:
        raise ValueError(f"patches are drawn as a sheet; name a picture: {', '.join(render.FORMATS)}")
    if patterns is not None and (patterns.layer, patterns.units) != (found.layer, found.channels):
        raise ValueError("patterns and patches are of other layers or channels; make both for the same ones")
    most = max((len(patches) for patches in found.patches), default=0)
    tiles = []
    for place, (channel, patches) in enumerate(zip(found.channels, found.patches, strict=True)):
        row = [(enlarged(patch.pixels, TILE), short(patch.activation)) for patch in patches]
        if patterns is not None:
            row.insert(0, (enlarged(patterns.pictures[place], TILE), f"channel {channel}"))
        elif row:
            row[0] = (row[0][0], f"{row[0][1]}\nchannel {channel}")
        else:
            row = [(Image.new("RGB", (TILE, TILE), render.PAPER), f"channel {channel}:\nnone")]
        blank = (Image.new("RGB", (TILE, 1), render.PAPER), "")
        tiles += row + [blank] * (max(1, most + (patterns is not None)) - len(row))
    title = f"{found.layer}: what excites each channel most, with its activation"
    render.save_image(render.sheet(tiles, max(1, most + (patterns is not None)), TILE, title), path)


def save_tiles(pictures: Sequence[Pixels] | Pixels, labels: Sequence[str], path: Path, title: str) -> None:
    """Pictures in a sheet with words under each; small ones are enlarged to whole squares."""
    columns = 8 if len(pictures) > 9 else 3
    width = TILE if columns == 8 else LARGE_TILE
    tiles = [(enlarged(picture, width), label) for picture, label in zip(pictures, labels, strict=True)]
    render.save_image(render.sheet(tiles, columns, width, title), path)


def enlarged(picture: Pixels, width: int) -> Image.Image:
    """A picture as it is, or, much smaller than `width`, with its pixels as squares."""
    image = Image.fromarray(picture)
    if image.width * 2 > width:
        return image
    return image.resize((width, round(image.height * width / image.width)), Image.Resampling.NEAREST)


def short(value: float) -> str:
    """A number in three digits or so."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)

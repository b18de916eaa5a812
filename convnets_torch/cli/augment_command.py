"""The command `augment`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convnets_torch.cli import augmenting
from convnets_torch.cli.messages import say, show, warnings_as_lines
from convnets_torch.cli.picture_commands import AllowTruncated, BackgroundOption, DepthOption, MaxPixels

if TYPE_CHECKING:
    from convnets_torch.images import Reading
    from convnets_torch.preprocessing import Preprocessing
    from convnets_torch.training.view_sheets import Photo

ONE, SEVERAL = 15, 7  # views by default: of one picture, and of each of several


def augment(
    images: Annotated[
        list[str],
        typer.Argument(metavar="PHOTO...", help="Pictures, folders of them, quoted patterns, or - for standard input."),
    ],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="Sheet to write: .png, .jpg, .webp.")],
    strength: augmenting.Strength = "medium",
    scale: augmenting.Scale = None,
    crop: augmenting.Crop = None,
    rotation: augmenting.Rotation = None,
    skew: augmenting.Skew = None,
    flip: augmenting.Flip = None,
    vertical_flip: augmenting.VerticalFlip = None,
    no_flip_class: augmenting.NoFlipClass = None,
    tint: augmenting.Tint = None,
    hue: augmenting.Hue = None,
    blur: augmenting.Blur = None,
    randaugment: augmenting.RandAugment = None,
    mixup: augmenting.MixUp = None,
    cutmix: augmenting.CutMix = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Weights by whose card pictures are resized and cut.", show_default="224 pixels of 256, bicubic"
        ),
    ] = None,
    views: Annotated[
        int | None, typer.Option(min=1, help="Of each picture.", show_default=f"{ONE}, of several pictures {SEVERAL}")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of the changes.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as a JSON object.")] = False,
    max_pixels: MaxPixels = None,
    allow_truncated: AllowTruncated = False,
    depth: DepthOption = None,
    background: BackgroundOption = None,
) -> None:
    """Show what a network will see of pictures in training: a sheet of views, changed at random."""
    mixing = augmenting.chosen_mixing(mixup, cutmix)
    from convnets_torch import render
    from convnets_torch.files import check_kept, check_writable
    from convnets_torch.folders import find_pictures

    if output.suffix.lower() not in render.FORMATS:
        raise typer.BadParameter(f"-o is {output}; name a file that ends in {', '.join(render.FORMATS)}")
    check_writable(output)
    changes = augmenting.chosen_augmentation(
        strength,
        scale=scale,
        crop=crop,
        rotation=rotation,
        skew=skew,
        flip=flip,
        vertical_flip=vertical_flip,
        no_flip_class=no_flip_class,
        tint=tint,
        hue=hue,
        blur=blur,
        randaugment=randaugment,
    )
    rule = _rule(weights)
    with warnings_as_lines():
        paths = [path for name in images for path in (["-"] if name == "-" else map(str, find_pictures(name)))]
    check_kept(output, paths)
    if mixing is not None and len(paths) < 2:
        raise typer.BadParameter("--mixup and --cutmix mix pictures; name two or more")
    views = views or (ONE if len(paths) == 1 else SEVERAL)
    from convnets_torch.images import Reading
    from convnets_torch.training import view_sheets

    if len(paths) * (views + 1) > view_sheets.MOST_TILES:  # before any is decoded
        raise typer.BadParameter(
            f"{len(paths)} pictures of {views} views are more than {view_sheets.MOST_TILES} tiles; give fewer"
        )
    same = len({Path(path).name for path in paths}) < len(set(paths))  # 1.png of several classes
    reading = Reading(rule.exif, max_pixels, allow_truncated, depth, background)
    photos = [_photo(path, reading, with_folder=same) for path in paths]
    title = f"{strength}, seed {seed}" if mixing is None else f"{strength}, {mixing[0]} {mixing[1]:g}, seed {seed}"
    sheet = view_sheets.view_sheet(photos, rule, changes, views=views, seed=seed, mixing=mixing, title=title)
    render.save_image(sheet, output)
    if as_json:
        mixed = None if mixing is None else {"kind": mixing[0], "alpha": mixing[1]}
        about = {"augmentation": changes.to_dict(), "mixing": mixed, "seed": seed, "size": list(rule.shape)}
        print(json.dumps({"output": str(output), "pictures": paths, "views": views, **about}))
    else:
        count = f"{len(paths)} pictures" if len(paths) > 1 else "a picture"
        show(f"{output}: {views} views of {count} at {rule.shape[0]}x{rule.shape[1]} pixels")


def _rule(weights: str | None) -> Preprocessing:
    """The preprocessing of a card; else EfficientNet-Lite's, which is that of most networks of today."""
    if weights is None:
        from convnets_torch.preprocessing import preset

        return preset("efficientnet_lite0")
    from convnets_torch.cache import find
    from convnets_torch.card import read_card

    return read_card(find(weights)).preprocessing


def _photo(path: str, reading: Reading, *, with_folder: bool) -> Photo:
    """A picture, whose class is its folder's name."""
    from convnets_torch.images import open_upright
    from convnets_torch.sentences import printable
    from convnets_torch.training.view_sheets import Photo

    source = sys.stdin.buffer if path == "-" else path
    found = open_upright(source, reading)
    for remark in found.remarks:
        say(remark)
    if path == "-":
        return Photo(found.image, "standard input")
    name, label = Path(path).name, Path(path).resolve().parent.name
    return Photo(found.image, printable(f"{label}/{name}" if with_folder else name), label)

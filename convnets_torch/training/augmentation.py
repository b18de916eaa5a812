"""Seeded augmentation, MixUp and CutMix, and contact sheets that show them.

A view depends only on the picture, the card's preprocessing, an `Augmentation` and a key. Augmentation acts on
pixels, 0 to 255, before the card's normalisation: RGB, or what the card says, grey or RGBA.

Mixing is drawn and applied in separate steps: all processes of a group draw the same mix for the whole batch, and each
applies it to its own rows.

Source: mixup, arXiv:1710.09412, section 2; CutMix, arXiv:1905.04899, section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, cos, floor, isfinite, radians, sin, sqrt, tan
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convnets_torch.explain.filters import enlarged
from convnets_torch.images.preprocessing import (
    MODES,
    Preprocessing,
    array_of,
    crop_image,
    cropped_box,
    image_of,
    in_mode,
)
from convnets_torch.text import check_choice
from convnets_torch.training.settings import AUGMENTATIONS as AUGMENTATIONS
from convnets_torch.training.settings import Augmentation as Augmentation
from convnets_torch.training.settings import augmentation as augmentation
from convnets_torch.visualization import overlays

RANDAUGMENT_STEPS = 2  # operations in a row, N of the paper
FAINTEST_BLUR = 0.1  # standard deviation in pixels below which blur is skipped
GREY = [127, 127, 127]  # fill of the corners that RandAugment's rotations and translations leave


class Changes(NamedTuple):
    """Parameters of one augmentation.

    Attributes:
        zoom: -1 to 1, from the largest crop that `scale` and the picture allow to the smallest.
        place: horizontal and vertical position of the crop, -1 to 1 from one border of the picture to the other.
        rotation: degrees, clockwise.
        skew: horizontal and vertical shear, in degrees.
        mirrored, upside_down: horizontal and vertical flip.
        brightness, contrast, saturation: factors.
        hue: degrees.
        blur: standard deviation in pixels.
        seed: of RandAugment.
    """

    zoom: float
    place: tuple[float, float]
    rotation: float
    skew: tuple[float, float]
    mirrored: bool
    upside_down: bool
    brightness: float
    contrast: float
    saturation: float
    hue: float
    blur: float
    seed: int


def draw_changes(augmentation: Augmentation, key: Sequence[int], label: str | None = None) -> Changes:
    """Draw the augmentation that `view` applies for a key.

    Each parameter always uses the same random numbers of the key, so changing one setting does not affect the others.

    Args:
        augmentation, key, label: as in `view`.

    >>> medium = augmentation("medium")
    >>> draw_changes(medium, (0, 1)).hue == draw_changes(augmentation("medium", flip=0), (0, 1)).hue
    True
    """
    stream = np.random.default_rng(list(key))
    signed = (2 * stream.random(9) - 1).tolist()
    chances = stream.random(4).tolist()
    flips = label is None or label not in augmentation.no_flip
    return Changes(
        zoom=signed[0],
        place=(augmentation.crop * signed[1], augmentation.crop * signed[2]),
        rotation=augmentation.rotation * signed[3],
        skew=(augmentation.skew * signed[4], augmentation.skew * signed[5]),
        mirrored=flips and chances[0] < augmentation.flip,
        upside_down=flips and chances[1] < augmentation.vertical_flip,
        brightness=1 + augmentation.tint * signed[6],
        contrast=1 + augmentation.tint * signed[7],
        saturation=1 + augmentation.tint * signed[8],
        hue=augmentation.hue * (2 * chances[2] - 1),
        blur=augmentation.blur * max(0.0, 2 * chances[3] - 1),
        seed=int(stream.integers(2**63)),
    )


def view(
    image: Image.Image,
    rule: Preprocessing,
    augmentation: Augmentation,
    key: Sequence[int],
    *,
    label: str | None = None,
    part: tuple[float, float] | None = None,
) -> Tensor:
    """Augment a picture for training.

    A crop is resized with the filter of the card's preprocessing. At scale 1 it is as large as the crop used for
    classifying, so objects keep the size that the network knows. Corners exposed by rotation and skew are filled from
    the surrounding picture, and beyond its border by reflection.

    The same key gives the same pixels in any order, process or thread.

    Args:
        image: upright, mode RGB, or RGBA if `rule` reads it, any size from 1x1, as `decode` returns it. Tints and blur
            leave opacity as it is.
        rule: the card's preprocessing.
        augmentation: limits of the augmentation; `AUGMENTATIONS["none"]` gives the pixels of `center_crop`.
        key: non-negative integers, for instance (seed, epoch, index of the picture).
        label: name of the picture's class, which `no_flip` may list.
        part: (width, height) in pixels that the picture covers of the image, as in `DecodedPicture`; None for all.

    Returns:
        (3, height, width) of `rule.shape`, uint8, RGB, 0 to 255, on the CPU; (1, height, width) or (4, height, width)
        if the rule reads grey or RGBA.

    Raises:
        ValueError: the image is not in mode RGB, the key has a negative number, or RandAugment is to change RGBA.

    >>> from convnets_torch.images.preprocessing import preset
    >>> street = Image.open("street.jpg")
    >>> view(street, preset("vgg16"), augmentation("strong"), (0, 1, 2)).shape
    torch.Size([3, 224, 224])
    """
    if image.mode not in ("RGB", MODES[rule.channels]):
        raise ValueError(f"the image has mode {image.mode}; convert it to RGB")
    if augmentation.randaugment and rule.channels == "rgba":
        raise ValueError("RandAugment has no form for images of four channels (RGBA); leave it out")
    if any(number < 0 for number in key):
        raise ValueError(f"the key is {tuple(key)}; give non-negative integers")
    changes, image = draw_changes(augmentation, key, label), in_mode(image, rule)
    if augmentation.scale == 1 and changes.place == (0, 0) and changes.rotation == 0 and changes.skew == (0, 0):
        piece = image_of(crop_image(image, rule, part))
    else:
        piece = _cut(image, rule, augmentation.scale, changes, part)
    if changes.mirrored:
        piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if changes.upside_down:
        piece = piece.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    mode = piece.mode
    colors = piece if mode == "RGB" else piece.convert("RGB")  # of grey too, for which some operations have no form
    colors = _recolored(colors, changes)
    if augmentation.randaugment:
        colors = _randaugmented(colors, augmentation.randaugment, changes.seed)
    if mode == "RGBA":
        colors.putalpha(piece.getchannel("A"))
    piece = colors if colors.mode == mode else colors.convert(mode)
    return torch.from_numpy(array_of(piece).transpose(2, 0, 1).copy())


def _cut(
    image: Image.Image, rule: Preprocessing, scale: float, changes: Changes, part: tuple[float, float] | None
) -> Image.Image:
    """Crop, resize, rotate and skew.

    The crop is resized with its surroundings and then rotated at output resolution: a large photograph costs no more
    than resizing it, and the resizing stays antialiased.
    """
    (height, width), whole = rule.shape, image.size if part is None else part
    left, top, right, bottom = cropped_box((whole[1], whole[0]), rule)  # the crop for classifying
    across, down = (right - left) / width, (bottom - top) / height  # picture pixels per output pixel
    widest = min(scale, whole[0] / (right - left), whole[1] / (bottom - top))
    # Crop size relative to the crop for classifying, log-uniform from 1 / scale to `widest`.
    grown = (1 / scale) * (widest * scale) ** ((1 - changes.zoom) / 2)
    across, down = across * grown, down * grown
    center_x = (whole[0] + changes.place[0] * max(0.0, whole[0] - width * across)) / 2
    center_y = (whole[1] + changes.place[1] * max(0.0, whole[1] - height * down)) / 2
    margins = _margins(width, height, changes)
    xs = _clipped(center_x, across, width + 2 * margins[0], whole[0])
    ys = _clipped(center_y, down, height + 2 * margins[1], whole[1])
    resample = Image.Resampling[rule.interpolation.upper()]
    box = (xs.start, ys.start, xs.stop, ys.stop)
    resized = image.resize((xs.pixels, ys.pixels), resample, box=box)
    if changes.rotation == 0 and changes.skew == (0, 0):
        return resized
    from torchvision.transforms.v2 import InterpolationMode, functional

    around = np.pad(array_of(resized), (ys.missing, xs.missing, (0, 0)), mode="symmetric")
    fine = InterpolationMode.BICUBIC if rule.interpolation == "bicubic" else InterpolationMode.BILINEAR
    turned = functional.affine(
        image_of(around), angle=changes.rotation, translate=[0, 0], scale=1.0, shear=list(changes.skew),
        interpolation=fine,
    )  # fmt: skip
    return turned.crop((margins[0], margins[1], margins[0] + width, margins[1] + height))


def _margins(width: int, height: int, changes: Changes) -> tuple[int, int]:
    """Output pixels that rotation and skew need beyond the crop, horizontally and vertically."""
    if changes.rotation == 0 and changes.skew == (0, 0):
        return 0, 0
    turn, (lean_x, lean_y) = radians(changes.rotation), (tan(radians(angle)) for angle in changes.skew)
    # The inverse of a rotation after skews maps a corner of the output to the input.
    skews = np.array([[1, -lean_x], [-lean_y, 1 + lean_x * lean_y]])
    inverse = np.linalg.inv(np.array([[cos(turn), -sin(turn)], [sin(turn), cos(turn)]]) @ skews)
    reach = np.abs(inverse) @ (width / 2, height / 2)
    return max(0, ceil(reach[0] - width / 2)) + 2, max(0, ceil(reach[1] - height / 2)) + 2  # 2: the filter's reach


class _Span(NamedTuple):
    """Along one axis, the output pixels inside the picture and the interval of the picture that they show."""

    pixels: int
    start: float
    stop: float
    missing: tuple[int, int]  # output pixels outside the picture, before and after


def _clipped(center: float, step: float, count: int, end: float) -> _Span:
    """Clip `count` output pixels of `step` picture pixels each, centred on `center`, to the range 0 to `end`."""
    start = center - count * step / 2
    before = max(0, ceil(-start / step - 1e-6))
    after = max(0, count - floor((end - start) / step + 1e-6))
    if before + after >= count:  # less than one output pixel lies in the picture
        before, after = (count - 1) // 2, count // 2
    first, last = start + before * step, start + (count - after) * step
    return _Span(count - before - after, max(0.0, first), min(end, last), (before, after))


def _recolored(image: Image.Image, changes: Changes) -> Image.Image:
    """Apply brightness, contrast, saturation, hue and blur, as torchvision does for PIL images."""
    names = [name for name in ("brightness", "contrast", "saturation") if getattr(changes, name) != 1]
    if not names and changes.hue == 0 and changes.blur < FAINTEST_BLUR:
        return image
    from torchvision.transforms.v2 import functional

    for name in names:
        image = getattr(functional, f"adjust_{name}")(image, getattr(changes, name))
    if changes.hue:
        image = functional.adjust_hue(image, changes.hue / 360)
    if changes.blur >= FAINTEST_BLUR:
        reach = 2 * ceil(3 * changes.blur) + 1
        image = functional.gaussian_blur(image, [reach, reach], [changes.blur, changes.blur])
    return image


def _randaugmented(image: Image.Image, magnitude: int, seed: int) -> Image.Image:
    """Apply torchvision's RandAugment with a generator of its own."""
    from torchvision.transforms.v2 import RandAugment

    generator, bins = torch.Generator().manual_seed(seed), 31
    changes = RandAugment(RANDAUGMENT_STEPS, magnitude, num_magnitude_bins=bins, fill=GREY)
    space = changes._AUGMENTATION_SPACE
    for _ in range(RANDAUGMENT_STEPS):  # like its `forward`, which draws from torch's global generator
        name = tuple(space)[int(torch.randint(len(space), (), generator=generator))]
        magnitudes_of, signed = space[name]
        magnitudes = magnitudes_of(bins, image.height, image.width)
        size = 0.0 if magnitudes is None else float(magnitudes[magnitude])
        if magnitudes is not None and signed and torch.rand((), generator=generator) <= 0.5:
            size = -size
        image = changes._apply_image_or_video_transform(
            image, name, size, interpolation=changes.interpolation, fill=changes._fill
        )
    return image


MixKind = Literal["mixup", "cutmix"]


@dataclass(frozen=True, eq=False)
class Mix:
    """How a batch is mixed.

    Attributes:
        permutation: (N,) int64 on the CPU, index of each picture's partner.
        share: weight of the picture itself, 0 to 1, in pixels and targets; the rest is its partner's.
        box: for CutMix, (top, left, bottom, right) of the box that the partner covers, in pixels; the last two are
            exclusive. None for MixUp.
    """

    permutation: Tensor
    share: float
    box: tuple[int, int, int, int] | None = None

    def apply(
        self,
        images: Tensor,
        targets: Tensor,
        partners: Tensor | None = None,
        partner_targets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mix a batch, or some of its rows; return new images and targets.

        Args:
            images: (N, C, H, W) floats, normalised; the whole batch, or any of its rows if `partners` are given.
            targets: (N, classes) floats; a row adds up to 1, or has a 1 for each class of the picture.
            partners: the partner of each image, same shape as `images`; by default `images[permutation]`.
            partner_targets: the targets of `partners`, same shape as `targets`.

        Raises:
            ValueError: shapes do not fit.

        >>> mix = Mix(torch.tensor([1, 0]), share=0.75)
        >>> mix.apply(torch.zeros(2, 3, 4, 4), torch.eye(2))[1].tolist()
        [[0.75, 0.25], [0.25, 0.75]]
        """
        if (partners is None) != (partner_targets is None):
            raise ValueError("partners come with partner_targets; give both or neither")
        if partners is None or partner_targets is None:
            if len(images) != len(self.permutation):
                raise ValueError(
                    f"{len(images)} images, but the mix is for a batch of {len(self.permutation)}; give their partners"
                )
            order = self.permutation.to(images.device)
            partners, partner_targets = images[order], targets[order]
        shapes = [tuple(each.shape) for each in (images, partners, targets, partner_targets)]
        if shapes[0] != shapes[1] or shapes[2] != shapes[3] or shapes[0][:1] != shapes[2][:1]:
            raise ValueError(
                f"images are {shapes[0]}, partners {shapes[1]}, targets {shapes[2]} and {shapes[3]};"
                " images and partners need equal shapes, and so do targets, with a row for each image"
            )
        mixed_targets = torch.lerp(partner_targets, targets, self.share)
        if self.box is None:
            return torch.lerp(partners, images, self.share), mixed_targets
        top, left, bottom, right = self.box
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = partners[:, :, top:bottom, left:right]
        return mixed, mixed_targets


def draw_mix(count: int, kind: MixKind, alpha: float, size: tuple[int, int], generator: torch.Generator) -> Mix:
    """Draw how a batch is mixed: each picture's partner, and one share for all, from Beta(alpha, alpha).

    Args:
        count: pictures in the batch.
        kind: "mixup" blends two pictures; "cutmix" replaces a box of a picture by its partner's.
        alpha: above 0; 1 gives uniform shares, 0.2 mostly shares near 0 and 1.
        size: (height, width) of the images in pixels.
        generator: on the CPU; the only source of randomness.

    Returns:
        The mix. For CutMix, the share is the area outside the box after clipping it at the border.

    Raises:
        ValueError: the batch is empty, the kind is unknown, or alpha is not above 0.

    >>> draw_mix(4, "mixup", 0.2, (224, 224), torch.Generator().manual_seed(0)).permutation.shape
    torch.Size([4])
    """
    check_choice(kind, get_args(MixKind), "kind of mixing")
    if count < 1 or min(size) < 1 or not (isfinite(alpha) and alpha > 0):
        raise ValueError(f"a batch of {count} pictures of {size} and alpha {alpha} cannot be mixed; alpha is above 0")
    permutation = torch.randperm(count, generator=generator)
    # torch can draw from a Beta distribution only with its global generator.
    stream = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    share = float(stream.beta(alpha, alpha))
    if kind == "mixup":
        return Mix(permutation, share)
    (height, width), side = size, sqrt(1 - share)
    half_height, half_width = int(height * side / 2), int(width * side / 2)
    y, x = int(stream.integers(height)), int(stream.integers(width))
    top, bottom = max(0, y - half_height), min(height, y + half_height)
    left, right = max(0, x - half_width), min(width, x + half_width)
    covered = (bottom - top) * (right - left)
    return Mix(permutation, 1 - covered / (height * width), (top, left, bottom, right))


NARROWEST, WIDEST = 128, 300  # limits of a tile's width in pixels
MOST_COLUMNS = 8
MOST_TILES = 400


class Photo(NamedTuple):
    """A picture of a sheet.

    Attributes:
        image: upright, mode RGB, or RGBA for a rule that reads it.
        name: caption.
        label: name of its class, which `no_flip` may list; None if it has none.
    """

    image: Image.Image
    name: str
    label: str | None = None


def view_sheet(
    photos: Sequence[Photo],
    rule: Preprocessing,
    augmentation: Augmentation,
    *,
    views: int = 15,
    seed: int = 0,
    mixing: tuple[MixKind, float] | None = None,
    title: str = "",
) -> Image.Image:
    """Draw a contact sheet: for each picture the crop for classifying, then `views` random views.

    View k of picture n has the key (seed, k, n). Captions give the rotation in degrees and the flips.

    Args:
        photos: one or more; mixing takes two or more.
        rule: the preprocessing of a card.
        augmentation: limits of the augmentation.
        views: views of each picture.
        seed: of the augmentation, from 0.
        mixing: kind and alpha, as for `draw_mix`; each view is mixed with the same view of the previous picture.
        title: title of the sheet.

    Returns:
        An RGB image.

    Raises:
        ValueError: there are too few pictures, or more than 400 tiles.

    >>> street = Photo(Image.open("street.jpg"), "street")
    >>> from convnets_torch.images.preprocessing import preset
    >>> view_sheet([street], preset("vgg16"), Augmentation(rotation=10), views=2).width
    736
    """
    tiles_in_all = len(photos) * (views + 1)
    if len(photos) < (1 if mixing is None else 2) or views < 1:
        raise ValueError(
            f"{len(photos)} pictures and {views} views are too few for a sheet; give at least one of each, or two"
            " pictures to mix them"
        )
    if tiles_in_all > MOST_TILES:
        raise ValueError(f"{len(photos)} pictures of {views} views are more than {MOST_TILES} tiles; give fewer")
    rows = [[(crop_image(photo.image, rule), f"{photo.name}\nfor classifying")] for photo in photos]
    for number in range(views):
        seen = [
            view(photo.image, rule, augmentation, (seed, number, n), label=photo.label)
            for n, photo in enumerate(photos)
        ]
        words = [_caption(draw_changes(augmentation, (seed, number, n), photo.label)) for n, photo in enumerate(photos)]
        if mixing is not None:
            generator = torch.Generator().manual_seed(seed * MOST_TILES + number)
            drawn = draw_mix(len(photos), *mixing, rule.shape, generator)
            # A random permutation of few pictures would often map a picture to itself.
            mix = replace(drawn, permutation=torch.arange(len(photos)).roll(1))
            batch, _ = mix.apply(torch.stack(seen).float(), torch.zeros(len(photos), 1))
            seen = list(batch.round().to(torch.uint8))
            words = [
                f"{mix.share:.0%} {photo.name}\n{1 - mix.share:.0%} {photos[partner].name}"
                for photo, partner in zip(photos, mix.permutation.tolist(), strict=True)
            ]
        for row, pixels, said in zip(rows, seen, words, strict=True):
            row.append((np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()), said))
    columns = views + 1 if views < MOST_COLUMNS else 4 if views < 16 else MOST_COLUMNS
    width = min(max(rule.shape[1], NARROWEST), WIDEST)
    blank = (Image.new("RGB", (width, 1), overlays.PAPER), "")
    tiles = []
    for row in rows:
        tiles += [(enlarged(pixels, width), said) for pixels, said in row] + [blank] * (-len(row) % columns)
    return overlays.sheet(tiles, columns, width, title)


def _caption(changes: Changes) -> str:
    words = {
        f"{changes.rotation:+.0f}°": round(changes.rotation),
        "mirrored": changes.mirrored,
        "upside down": changes.upside_down,
        "blurred": changes.blur >= FAINTEST_BLUR,
    }
    return ", ".join(said for said, there in words.items() if there)

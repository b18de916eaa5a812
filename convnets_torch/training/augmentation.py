"""Pictures as a network sees them in training: cut, turned, skewed, mirrored, tinted and blurred at random.

A view of a picture depends on the picture, the card's preprocessing, an `Augmentation` and a key, and on nothing else.
Changes are made to the pixels, RGB, 0 to 255, before the card's normalisation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from math import ceil, cos, floor, radians, sin, tan
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convnets_torch.preprocessing import Preprocessing, crop_image, cropped_box

# Field -> the least and the largest value.
LIMITS = {
    "scale": (1.0, 4.0), "crop": (0.0, 1.0), "rotation": (0.0, 180.0), "skew": (0.0, 45.0), "flip": (0.0, 1.0),
    "vertical_flip": (0.0, 1.0), "tint": (0.0, 1.0), "hue": (0.0, 180.0), "blur": (0.0, 10.0), "randaugment": (0, 30),
}  # fmt: skip
RANDAUGMENT_STEPS = 2  # changes in a row, N of the paper
FAINTEST_BLUR = 0.1  # standard deviation in pixels below which nothing changes
GREY = [127, 127, 127]  # where RandAugment's own turns and shifts open corners


@dataclass(frozen=True)
class Augmentation:
    """What may be done to a picture at random; the defaults do nothing.

    Attributes:
        scale: objects appear up to this factor larger or smaller, 1 to 4. Smaller only as far as the picture reaches.
        crop: how far from the centre the piece that is cut out may lie: 0 in the centre, 1 anywhere in the picture.
        rotation: degrees to either side, 0 to 180.
        skew: degrees by which horizontal and vertical lines lean, each to either side, 0 to 45.
        flip: probability of being mirrored left to right, 0 to 1.
        vertical_flip: probability of being turned upside down by a mirror, 0 to 1.
        tint: brightness, contrast and saturation are multiplied by 1 - tint to 1 + tint each; 0 to 1.
        hue: degrees on the circle of colours to either side, 0 to 180.
        blur: half of the pictures are blurred by a Gaussian of a standard deviation of 0 to `blur` pixels; 0 to 10.
        randaugment: magnitude of RandAugment, 0 (off) to 30: two of its 14 changes after all others.
            Source: arXiv:1909.13719.
        no_flip: names of classes whose pictures are never mirrored, because that would change what they are.
    """

    scale: float = 1.0
    crop: float = 0.0
    rotation: float = 0.0
    skew: float = 0.0
    flip: float = 0.0
    vertical_flip: float = 0.0
    tint: float = 0.0
    hue: float = 0.0
    blur: float = 0.0
    randaugment: int = 0
    no_flip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, (least, most) in LIMITS.items():
            value = getattr(self, name)
            kinds = int if name == "randaugment" else int | float
            if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
                what = "a whole number" if name == "randaugment" else "a number"
                raise ValueError(f"augmentation has {name} {value!r}; {what} from {least:g} to {most:g} is wanted")
        if not isinstance(self.no_flip, tuple) or not all(isinstance(name, str) for name in self.no_flip):
            raise ValueError(f"augmentation has no_flip {self.no_flip!r}; a tuple of class names is wanted")

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON can hold them.

        >>> Augmentation(flip=0.5, no_flip=("left shoe",)).to_dict()["no_flip"]
        ['left shoe']
        """
        return {**asdict(self), "no_flip": list(self.no_flip)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Augmentation:
        """The inverse of `to_dict`; fields that are missing are off.

        Raises:
            ValueError: a field is unknown or its value impossible.

        >>> Augmentation.from_dict({"rotation": 10}).rotation
        10
        """
        _check_names(values)
        listed = values.get("no_flip", ())
        return cls(**{**values, "no_flip": tuple(listed) if isinstance(listed, list) else listed})

    def check_classes(self, names: Iterable[str]) -> None:
        """Refuse a name in `no_flip` that is none of the classes: a slip there would mirror what must not be.

        Raises:
            ValueError: a class is unknown.

        >>> Augmentation(no_flip=("b",)).check_classes(["b", "d"])
        """
        known = list(names)
        if unknown := [name for name in self.no_flip if name not in known]:
            listed = ", ".join(known[:10]) + (", ..." if len(known) > 10 else "")
            raise ValueError(f"no_flip names {', '.join(map(repr, unknown))}, none of the classes ({listed})")


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": Augmentation(),
    "light": Augmentation(scale=1.15, crop=1, flip=0.5, tint=0.1),
    "medium": Augmentation(scale=1.35, crop=1, rotation=10, skew=5, flip=0.5, tint=0.25, hue=5),
    "strong": Augmentation(scale=1.8, crop=1, rotation=20, skew=10, flip=0.5, tint=0.4, hue=15, blur=1.5),
}


def augmentation(strength: str = "medium", **switches: Any) -> Augmentation:
    """A named strength, with single switches replaced.

    Args:
        strength: none, light, medium or strong.
        switches: fields of `Augmentation`.

    Raises:
        ValueError: the strength or a switch is unknown, or a value impossible; the known ones are listed.

    >>> augmentation("medium", flip=0).rotation, augmentation("none", rotation=5).flip
    (10, 0.0)
    """
    if strength not in AUGMENTATIONS:
        raise ValueError(f"unknown augmentation {strength!r}; known: {', '.join(AUGMENTATIONS)}")
    _check_names(switches)
    return replace(AUGMENTATIONS[strength], **switches)


def _check_names(values: dict[str, Any]) -> None:
    known = [field.name for field in fields(Augmentation)]
    if unknown := [name for name in values if name not in known]:
        raise ValueError(f"augmentation has no {', '.join(unknown)}; known: {', '.join(known)}")


class Changes(NamedTuple):
    """What is done to one picture.

    Attributes:
        zoom: -1 to 1, from the widest piece that `scale` and the picture allow to the narrowest.
        place: of the piece, across and down: -1 to 1 from one border of the picture to the other.
        rotation: degrees, clockwise.
        skew: degrees, across and down.
        mirrored, upside_down: flips.
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
    """What `view` does to the picture with this key.

    Each change takes its own numbers of the key's stream, so a switch changes nothing but what it stands for.

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
    """A picture as the network sees it in training.

    A piece of the picture is resized as the card says, by its filter. At a zoom of 1 the piece is as large as the one
    that is cut out for classifying, so objects keep the size that the network knows. What rotation and skew open at
    the corners is filled from the picture around the piece, and beyond its border by reflection.

    The same key gives the same pixels in whatever order, process or thread.

    Args:
        image: upright, of mode RGB, of any size from 1x1, as `images.open_upright` gives it.
        rule: the card's preprocessing.
        augmentation: what may be done; `AUGMENTATIONS["none"]` gives `center_crop`'s pixels.
        key: whole numbers from 0, for instance (seed, epoch, number of the picture).
        label: the picture's class by name, which `no_flip` may list.
        part: (width, height) in pixels that the picture covers of the image, as in `images.Upright`; None for all.

    Returns:
        (3, height, width) of `rule.shape`, uint8, RGB, 0 to 255, on the CPU.

    Raises:
        ValueError: the image is not of mode RGB, or a number of the key is negative.

    >>> from convnets_torch.preprocessing import preset
    >>> street = Image.open("street.jpg")
    >>> view(street, preset("vgg16"), augmentation("strong"), (0, 1, 2)).shape
    torch.Size([3, 224, 224])
    """
    if image.mode != "RGB":
        raise ValueError(f"the image has mode {image.mode}; convert it to RGB")
    if any(number < 0 for number in key):
        raise ValueError(f"the key is {tuple(key)}; give whole numbers from 0")
    changes = draw_changes(augmentation, key, label)
    if augmentation.scale == 1 and changes.place == (0, 0) and changes.rotation == 0 and changes.skew == (0, 0):
        piece = Image.fromarray(crop_image(image, rule, part))
    else:
        piece = _cut(image, rule, augmentation.scale, changes, part)
    piece = _recolored(_mirrored(piece, changes), changes)
    if augmentation.randaugment:
        piece = _randaugmented(piece, augmentation.randaugment, changes.seed)
    return torch.from_numpy(np.array(piece).transpose(2, 0, 1).copy())


def _cut(
    image: Image.Image, rule: Preprocessing, scale: float, changes: Changes, part: tuple[float, float] | None
) -> Image.Image:
    """The piece of the picture, resized, turned and skewed.

    Once resized with what is around it, the piece is turned at the scale of the output: a large photograph costs no
    more than resizing it, and the resizing stays antialiased.
    """
    (height, width), whole = rule.shape, image.size if part is None else part
    left, top, right, bottom = cropped_box((whole[1], whole[0]), rule)  # what is cut out for classifying
    across, down = (right - left) / width, (bottom - top) / height  # pixels of the picture for one of the output
    widest = min(scale, whole[0] / (right - left), whole[1] / (bottom - top))
    # The piece's side, from 1 / scale to as wide as scale and picture allow, in equal steps of its logarithm.
    grown = (1 / scale) * (widest * scale) ** ((1 - changes.zoom) / 2)
    across, down = across * grown, down * grown
    center_x = (whole[0] + changes.place[0] * max(0.0, whole[0] - width * across)) / 2
    center_y = (whole[1] + changes.place[1] * max(0.0, whole[1] - height * down)) / 2
    margins = _margins(width, height, changes)
    xs = _inside(center_x, across, width + 2 * margins[0], whole[0])
    ys = _inside(center_y, down, height + 2 * margins[1], whole[1])
    resample = Image.Resampling[rule.interpolation.upper()]
    box = (xs.start, ys.start, xs.stop, ys.stop)
    resized = image.resize((xs.pixels, ys.pixels), resample, box=box)
    if changes.rotation == 0 and changes.skew == (0, 0):
        return resized
    from torchvision.transforms.v2 import InterpolationMode, functional

    around = np.pad(np.asarray(resized), (ys.missing, xs.missing, (0, 0)), mode="symmetric")
    fine = InterpolationMode.BICUBIC if rule.interpolation == "bicubic" else InterpolationMode.BILINEAR
    turned = functional.affine(
        Image.fromarray(around), angle=changes.rotation, translate=[0, 0], scale=1.0, shear=list(changes.skew),
        interpolation=fine,
    )  # fmt: skip
    return turned.crop((margins[0], margins[1], margins[0] + width, margins[1] + height))


def _margins(width: int, height: int, changes: Changes) -> tuple[int, int]:
    """Pixels of the output that turning and skewing reach beyond the piece, across and down."""
    if changes.rotation == 0 and changes.skew == (0, 0):
        return 0, 0
    turn, (lean_x, lean_y) = radians(changes.rotation), (tan(radians(angle)) for angle in changes.skew)
    # Where a corner of the output comes from: the inverse of a rotation after skews.
    skews = np.array([[1, -lean_x], [-lean_y, 1 + lean_x * lean_y]])
    inverse = np.linalg.inv(np.array([[cos(turn), -sin(turn)], [sin(turn), cos(turn)]]) @ skews)
    reach = np.abs(inverse) @ (width / 2, height / 2)
    return max(0, ceil(reach[0] - width / 2)) + 2, max(0, ceil(reach[1] - height / 2)) + 2  # 2: the filter's reach


class _Stretch(NamedTuple):
    """Pixels of the output that lie in the picture, along an axis, and the box of the picture that they show."""

    pixels: int
    start: float
    stop: float
    missing: tuple[int, int]  # pixels before and after, which the picture does not have


def _inside(center: float, step: float, count: int, end: float) -> _Stretch:
    """`count` pixels of `step` pixels of the picture each around `center`, as far as they lie in 0 to `end`."""
    start = center - count * step / 2
    before = max(0, ceil(-start / step - 1e-6))
    after = max(0, count - floor((end - start) / step + 1e-6))
    if before + after >= count:  # less than a pixel of the output is there
        before, after = (count - 1) // 2, count // 2
    first, last = start + before * step, start + (count - after) * step
    return _Stretch(count - before - after, max(0.0, first), min(end, last), (before, after))


def _mirrored(image: Image.Image, changes: Changes) -> Image.Image:
    if changes.mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if changes.upside_down else image


def _recolored(image: Image.Image, changes: Changes) -> Image.Image:
    """Brightness, contrast, saturation, hue and blur, as torchvision has Pillow do them."""
    if (
        changes.brightness == changes.contrast == changes.saturation == 1
        and changes.hue == 0
        and changes.blur < FAINTEST_BLUR
    ):
        return image
    from torchvision.transforms.v2 import functional

    for adjust, factor in (
        (functional.adjust_brightness, changes.brightness),
        (functional.adjust_contrast, changes.contrast),
        (functional.adjust_saturation, changes.saturation),
    ):
        image = image if factor == 1 else adjust(image, factor)
    if changes.hue:
        image = functional.adjust_hue(image, changes.hue / 360)
    if changes.blur >= FAINTEST_BLUR:
        reach = 2 * ceil(3 * changes.blur) + 1
        image = functional.gaussian_blur(image, [reach, reach], [changes.blur, changes.blur])
    return image


def _randaugmented(image: Image.Image, magnitude: int, seed: int) -> Image.Image:
    """RandAugment as torchvision has it, but for the generator."""
    from torchvision.transforms.v2 import RandAugment

    generator, bins = torch.Generator().manual_seed(seed), 31
    changes = RandAugment(RANDAUGMENT_STEPS, magnitude, num_magnitude_bins=bins, fill=GREY)
    space = changes._AUGMENTATION_SPACE
    for _ in range(RANDAUGMENT_STEPS):  # as its `forward`, which draws from torch's global generator
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

"""From RGB pixels to what a network was trained on: resize, crop, colour order, mean and scale.

NumPy and Pillow alone; each step is a pure function of the pixels and of a `Preprocessing`, which is part of
the card of every weights file.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]  # (H, W, 3), RGB, 0 to 255

MOST_SIDE = 20_000  # pixels of a resized square picture's side; beyond it a slip of the finger is likelier
MOST_PIXELS = MOST_SIDE**2

ResizeRule = Literal["stretch", "shorter-side"]
Interpolation = Literal["bilinear", "bicubic"]
Channels = Literal["rgb", "bgr"]


@dataclass(frozen=True)
class Preprocessing:
    """How pictures become input; written into the card by the converter.

    Attributes:
        name: the preset, or "custom".
        size: pixels of each side of the square that is classified, cut from the centre.
        resize: pixels of the resized picture's sides ("stretch") or of its shorter side ("shorter-side").
        resize_rule: "stretch" makes the picture square without keeping its aspect; "shorter-side" keeps it.
        interpolation: Pillow's filter, antialiased, on 8-bit pixels.
        channels: order of the colours, "rgb" or "bgr".
        scale: what 8-bit values are multiplied with first.
        mean: subtracted after scaling, in the order of `channels`.
        std: what is divided by last, in the order of `channels`.
        exif: whether the rotation that a camera noted in the file is followed.
    """

    name: str
    size: int
    resize: int
    resize_rule: ResizeRule
    interpolation: Interpolation
    channels: Channels
    mean: tuple[float, float, float]
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    scale: float = 1.0
    exif: bool = True

    def __post_init__(self) -> None:
        for field, known in (("resize_rule", ResizeRule), ("interpolation", Interpolation), ("channels", Channels)):
            if getattr(self, field) not in get_args(known):
                raise ValueError(
                    f"preprocessing has {field} {getattr(self, field)!r}; known: {', '.join(get_args(known))}"
                )
        if not all(type(side) is int and 0 < side <= MOST_SIDE for side in (self.size, self.resize)):
            raise ValueError(f"preprocessing has size {self.size!r} and resize {self.resize!r}; pixels are wanted")
        if not isinstance(self.scale, int | float) or not isfinite(self.scale) or type(self.exif) is not bool:
            raise ValueError(
                f"preprocessing has scale {self.scale!r} and exif {self.exif!r}; a number, and true or false"
            )
        for field in ("mean", "std"):
            values = getattr(self, field)
            numbers = all(isinstance(value, int | float) and isfinite(value) for value in values)
            if len(values) != 3 or not numbers or (field == "std" and 0 in values):
                raise ValueError(f"preprocessing has {field} {values!r}; three finite numbers are wanted, std not 0")
        if not 0 < self.size <= self.resize:
            raise ValueError(f"preprocessing crops {self.size} pixels out of {self.resize}; the crop must fit")

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON can hold them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`; ValueError where a field is missing or unknown."""
        try:
            return cls(**{**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"preprocessing cannot be read ({error}); a newer version may have written it") from None


# The mean colour of ImageNet's training pictures that Caffe's networks subtract, 0 to 255.
CAFFE_MEAN_RGB = (123.68, 116.779, 103.939)
CAFFE_MEAN_BGR = CAFFE_MEAN_RGB[::-1]


def _original(name: str, size: int, channels: Channels, rule: ResizeRule) -> Preprocessing:
    mean = CAFFE_MEAN_RGB if channels == "rgb" else CAFFE_MEAN_BGR
    return Preprocessing(name, size, 256, rule, "bilinear", channels, mean, exif=False)


def _originals(size: int, channels: Channels) -> dict[str, Preprocessing]:
    return {
        "original": _original("original", size, channels, "stretch"),
        "original-aspect": _original("original-aspect", size, channels, "shorter-side"),
    }


# Per network, the released weights' own rule first. `original` is convnets-keras down to the bit, EXIF ignored
# as it did; `original-aspect` differs in keeping the picture's aspect, which is worth points of accuracy.
PRESETS: dict[str, dict[str, Preprocessing]] = {
    "alexnet": _originals(227, "rgb"),
    "vgg16": _originals(224, "bgr"),
    "vgg19": _originals(224, "bgr"),
    "efficientnet_lite0": {
        "efficientnet-lite": Preprocessing(
            "efficientnet-lite", 224, 256, "shorter-side", "bicubic", "rgb", (127.0,) * 3, (128.0,) * 3
        )
    },
}


def preset(network: str, name: str | None = None) -> Preprocessing:
    """The preset `name` of a network, or the one its released weights were trained with.

    Raises:
        ValueError: the network has no such preset; the known ones are listed.

    >>> preset("vgg16").channels, preset("alexnet").size
    ('bgr', 227)
    """
    presets = PRESETS[network]
    if name is None:
        return next(iter(presets.values()))
    if name not in presets:
        raise ValueError(f"unknown preprocessing {name!r} for {network}; known: {', '.join(presets)}")
    return presets[name]


def square_crop(pixels: Pixels, rule: Preprocessing) -> Pixels:
    """Resize and cut the centre, as for classifying.

    Args:
        pixels: (H, W, 3), RGB, 0 to 255, of any size from 1x1.
        rule: the card's preprocessing.

    Returns:
        (size, size, 3), RGB, 0 to 255.
    """
    image = Image.fromarray(pixels)
    resample = Image.Resampling[rule.interpolation.upper()]
    if rule.resize_rule == "stretch":
        image = image.resize((rule.resize, rule.resize), resample)
        start = (rule.resize - rule.size) // 2
        return np.asarray(image.crop((start, start, start + rule.size, start + rule.size)))
    # Resizing the shorter side and cutting the centre is resizing the central square: the same grid, and a
    # strip of 1x10000 pixels does not grow to 256x2560000 on the way.
    side = min(image.size) * rule.size / rule.resize
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return np.asarray(image.resize((rule.size, rule.size), resample, box=(left, top, left + side, top + side)))


def fit_longest_side(pixels: Pixels, longest_side: int, rule: Preprocessing) -> Pixels:
    """Resize so that the longer side has `longest_side` pixels, keeping the aspect (each side at least 1).

    Raises:
        ValueError: less than one pixel, or more than 400 million of them in all.
    """
    height, width = pixels.shape[:2]
    factor = longest_side / max(height, width)
    if not longest_side >= 1 or height * width * factor**2 > MOST_PIXELS:
        raise ValueError(f"a longest side of {longest_side} pixels is out of range; give 1 to some {MOST_SIDE}")
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling[rule.interpolation.upper()]))


def normalize(pixels: Pixels, rule: Preprocessing) -> NDArray[np.float32]:
    """Colour order, scale, mean and standard deviation; the size stays.

    Args:
        pixels: (H, W, 3), RGB, 0 to 255.
        rule: the card's preprocessing.

    Returns:
        (3, H, W) float32, channels in the order of `rule.channels`.
    """
    ordered = pixels if rule.channels == "rgb" else pixels[:, :, ::-1]
    values = ordered.astype(np.float32)
    if rule.scale != 1.0:
        values *= np.float32(rule.scale)
    values -= np.asarray(rule.mean, np.float32)
    if rule.std != (1.0, 1.0, 1.0):
        values /= np.asarray(rule.std, np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1))

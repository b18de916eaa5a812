"""Preprocess pixels as a network was trained: grey or colour, resize, crop, colour order, mean and scale.

Uses NumPy and Pillow only; each step is a pure function of the pixels and a `Preprocessing`, which is part of the card
of every weights file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnets_torch import files
from convnets_torch.files import read_text
from convnets_torch.text import check_choice

Pixels = NDArray[np.uint8]  # (H, W, 3), RGB, 0 to 255; for networks that read these, (H, W, 1) grey or (H, W, 4) RGBA

MOST_INPUT = 4096  # maximum pixels of an input side; VGG16 takes 8 GB for a square of that size
MOST_NUMBER = 1e9  # maximum of scale, mean, std and 1 / std, within the range of float32
MOST_SIDE = 20_000  # maximum pixels of a side of a resized square picture; more is probably a typing error
MOST_PIXELS = MOST_SIDE**2
MOST_BYTES = 1_000_000  # maximum size of a JSON file with a rule
CENTER = (1, 1)
CORNERS = ((0, 0), (0, 2), (2, 0), (2, 2))

Pair = tuple[int, int]  # height, width
Position = tuple[int, int]  # of a crop, (down, across): 0 for the top or left edge, 1 the centre, 2 bottom or right
ResizeRule = Literal["stretch", "shorter-side"]
Interpolation = Literal["bilinear", "bicubic", "nearest"]
Channels = Literal["rgb", "bgr", "grey", "rgba"]

MODES: dict[Channels, str] = {"rgb": "RGB", "bgr": "RGB", "grey": "L", "rgba": "RGBA"}  # Pillow's, of what is resized
CHANNEL_WORDS = {"rgb": "RGB", "bgr": "BGR", "grey": "grey", "rgba": "RGBA"}
IN_WORDS = {1: "one", 3: "three", 4: "four"}


@dataclass(frozen=True)
class Preprocessing:
    """How pictures become network input; the converter writes it into the card.

    Attributes:
        name: the preset, or "custom".
        size: pixels of each side of the square centre crop that is classified; or (height, width).
        resize: pixels of the resized picture's sides ("stretch") or of its shorter side ("shorter-side"), or (height,
            width) of what the resized picture covers.
        resize_rule: "stretch" resizes to exactly that, ignoring the aspect ratio; "shorter-side" keeps it.
        interpolation: Pillow's filter on 8-bit pixels, antialiased; "nearest" picks pixels instead.
        channels: "rgb" or "bgr", the order of the colours; "grey", one channel, the luma of ITU-R 601-2 that Pillow and
            Keras compute; or "rgba", the colours and their opacity.
        scale: factor that 8-bit values are multiplied by first.
        mean: subtracted after scaling, a number for each channel, in the order of `channels`.
        std: divisors applied last, as for `mean`; 1 by default.
        exif: whether to apply the rotation stored in the file's EXIF data.
    """

    name: str
    size: int | Pair
    resize: int | Pair
    resize_rule: ResizeRule
    interpolation: Interpolation
    channels: Channels
    mean: tuple[float, ...]
    std: tuple[float, ...] = ()
    scale: float = 1.0
    exif: bool = True

    def __post_init__(self) -> None:
        for field, known in (("resize_rule", ResizeRule), ("interpolation", Interpolation), ("channels", Channels)):
            if getattr(self, field) not in get_args(known):
                raise ValueError(
                    f"preprocessing has {field} {getattr(self, field)!r}; known: {', '.join(get_args(known))}"
                )
        sides = (*_pair(self.size), *_pair(self.resize))
        if len(sides) != 4 or not all(type(side) is int and 0 < side <= MOST_INPUT for side in sides):
            raise ValueError(
                f"preprocessing has size {self.size!r} and resize {self.resize!r}; give 1 to {MOST_INPUT} pixels"
            )
        if not _is_number(self.scale) or type(self.exif) is not bool:
            raise ValueError(
                f"preprocessing has scale {self.scale!r} and exif {self.exif!r}; give a number, and true or false"
            )
        count = self.channel_count
        if self.std == ():
            object.__setattr__(self, "std", (1.0,) * count)
        for field in ("mean", "std"):
            values = getattr(self, field)
            numbers = all(map(_is_number, values))
            if len(values) != count or not numbers or (field == "std" and min(map(abs, values)) * MOST_NUMBER < 1):
                finite = f"{IN_WORDS[count]} finite number{'s' * (count > 1)}"
                raise ValueError(f"preprocessing has {field} {values!r}; give {finite}, std not 0")
        if not isinstance(self.name, str):
            raise ValueError(f"preprocessing has the name {self.name!r}; give a string")
        if sides[0] > sides[2] or sides[1] > sides[3]:
            raise ValueError(f"preprocessing crops {self.size} pixels out of {self.resize}; the crop must fit")

    @property
    def channel_count(self) -> int:
        """Number of channels of the input: 1, 3 or 4."""
        return len(MODES[self.channels])

    @property
    def shape(self) -> Pair:
        """(height, width) in pixels of the input."""
        return _pair(self.size)

    @property
    def resized(self) -> Pair:
        """(height, width) to which `crop_image` resizes the picture ("stretch") or the part of it that is kept."""
        return _pair(self.resize) if self.resize_rule == "stretch" else self.shape

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`; raises ValueError if a field is missing or unknown."""
        try:
            sequences: dict[str, Any] = {
                name: tuple(value) for name, value in fields.items() if isinstance(value, list)
            }
            return cls(**{**fields, **sequences, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"preprocessing cannot be read ({error}); a newer version may have written it") from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) <= MOST_NUMBER  # NaN is not


def _pair(value: int | Pair) -> Pair:
    return value if isinstance(value, tuple) else (value, value)


# Mean colour of the ImageNet training pictures that Caffe's networks subtract, 0 to 255.
CAFFE_MEAN_RGB = (123.68, 116.779, 103.939)
CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB, for pixels 0 to 1

# Network -> input side, and the presets of its released weights, the original first.
PRESETS: dict[str, tuple[int, tuple[str, ...]]] = {
    "alexnet": (227, ("original", "original-aspect")),
    "efficientnet_lite0": (224, ("efficientnet-lite",)),
    "inception_v3": (299, ("keras-tf",)),
    "resnet50": (224, ("keras-caffe",)),
    "vgg16": (224, ("original", "original-aspect")),
    "vgg19": (224, ("original", "original-aspect")),
}
# Channel order, mean and scale of Keras Applications' modes "caffe" and "tf", and of plain 1 / 255.
KERAS: dict[str, tuple[Channels, tuple[float, float, float], float]] = {
    "keras-caffe": ("bgr", CAFFE_MEAN_BGR, 1.0),
    "keras-tf": ("rgb", (1.0, 1.0, 1.0), 1 / 127.5),
    "unit": ("rgb", (0.0, 0.0, 0.0), 1 / 255),
}
# Presets that apply to any network, since people train their own networks with all of them.
GENERAL = (
    "keras-caffe", "keras-caffe-aspect", "keras-tf", "keras-tf-aspect", "unit", "torchvision", "efficientnet-lite",
)  # fmt: skip


def preset(network: str, name: str | None = None, size: int | Pair | None = None) -> Preprocessing:
    """Return a preset of a network; by default the one its released weights were trained with.

    Args:
        network: a name in `convnets_torch.networks.NETWORKS`.
        name: `original` (alexnet, vgg16 and vgg19) is bit-identical to convnets-keras, which ignores EXIF;
            `original-aspect` keeps the aspect ratio, which gains some points of accuracy. `keras-caffe` (BGR, mean),
            `keras-tf` (-1 to 1) and `unit` (0 to 1) match Keras's own examples: `load_img` stretches to the size with
            nearest-neighbour interpolation; with `-aspect` the shorter side is resized, antialiased, and the centre
            cropped. `torchvision` and `efficientnet-lite` are what their weights were tested with.
        size: pixels of each side of the input, or (height, width); the network's own by default. The crop keeps its
            share of the picture.

    Raises:
        ValueError: the network has no such preset; the message lists the known ones.

    >>> preset("vgg16").channels, preset("alexnet").size
    ('bgr', 227)
    >>> preset("resnet50").name, preset("vgg16", "torchvision", size=160).resize
    ('keras-caffe', 183)
    """
    own, released = PRESETS[network]
    known = (*released, *(each for each in GENERAL if each not in released))
    name = released[0] if name is None else name
    if name not in known:
        raise ValueError(f"unknown preprocessing {name!r} for {network}; known: {', '.join(known)}")
    size = own if size is None else size

    if name.startswith("original"):
        channels: Channels = "rgb" if network == "alexnet" else "bgr"
        mean = CAFFE_MEAN_RGB if channels == "rgb" else CAFFE_MEAN_BGR
        rule: ResizeRule = "stretch" if name == "original" else "shorter-side"
        resize = _with_margin(size, 256 / own)
        return Preprocessing(name, size, resize, rule, "bilinear", channels, mean, exif=False)
    return general(name, size)


def general(name: str, size: int | Pair, channels: int = 3) -> Preprocessing:
    """Return a preset that applies to any network, one of `GENERAL`; arguments and errors as for `preset`.

    Args:
        channels: 3 for colours; 1 for grey or 4 for RGBA, with presets whose numbers are those of all colours.

    >>> general("torchvision", (112, 224)).resize
    (128, 256)
    >>> general("keras-tf", 28, channels=1).channels, general("unit", 28, channels=4).mean
    ('grey', (0.0, 0.0, 0.0, 0.0))
    """
    known = presets_for(channels)
    if name in GENERAL and name not in known:
        raise ValueError(
            f"preprocessing {name} has numbers for three colours, but the images have {IN_WORDS[channels]}"
            f" channel{'s' * (channels > 1)}; known for these: {', '.join(known)}"
        )
    check_choice(name, known, "preprocessing")
    rule = _general(name, size)
    if channels == 3:
        return rule
    order: Channels = "grey" if channels == 1 else "rgba"
    return replace(rule, channels=order, mean=rule.mean[:1] * channels, std=rule.std[:1] * channels)


def presets_for(channels: int) -> tuple[str, ...]:
    """Names of the presets in `GENERAL` for images of 1, 3 or 4 channels.

    >>> presets_for(1)
    ('keras-tf', 'keras-tf-aspect', 'unit', 'efficientnet-lite')
    """
    rules = (_general(name, 1) for name in GENERAL)
    return tuple(rule.name for rule in rules if channels == 3 or len({*rule.mean}) == len({*rule.std}) == 1)


def _general(name: str, size: int | Pair) -> Preprocessing:
    """A preset for images of three channels."""
    resize = _with_margin(size, 256 / 224)
    if name == "torchvision":
        return Preprocessing(
            name, size, resize, "shorter-side", "bilinear", "rgb", IMAGENET_MEAN, IMAGENET_STD, scale=1 / 255
        )
    if name == "efficientnet-lite":
        return Preprocessing(name, size, resize, "shorter-side", "bicubic", "rgb", (127.0,) * 3, (128.0,) * 3)
    channels, mean, scale = KERAS[name.removesuffix("-aspect")]
    if name.endswith("-aspect"):
        return Preprocessing(name, size, resize, "shorter-side", "bilinear", channels, mean, scale=scale, exif=False)
    return Preprocessing(name, size, size, "stretch", "nearest", channels, mean, scale=scale, exif=False)


def _with_margin(size: int | Pair, share: float) -> int | Pair:
    """The size before cropping."""
    return round(size * share) if isinstance(size, int) else (round(size[0] * share), round(size[1] * share))


def read_preprocessing(path: str | os.PathLike[str]) -> Preprocessing:
    """Read a custom rule from a JSON file with the fields of `Preprocessing`.

    Required are size, resize_rule, interpolation, channels and mean. `resize` defaults to `size`, `name` to "custom",
    and the others to the defaults of `Preprocessing`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a JSON object, or a field is missing, unknown or invalid.

    >>> from pathlib import Path
    >>> fields = '"size": 150, "resize_rule": "stretch", "interpolation": "nearest", "channels": "rgb"'
    >>> _ = Path("rule.json").write_text('{' + fields + ', "mean": [0, 0, 0], "scale": 0.00392156862745098}')
    >>> read_preprocessing("rule.json").resize
    150
    """
    text = read_text(path, max_bytes=MOST_BYTES)
    try:
        values = files.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); give a JSON object with the fields of a rule") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a JSON object; give one with the fields of a rule")
    known = [entry.name for entry in fields(Preprocessing)]
    wanted = ("size", "resize_rule", "interpolation", "channels", "mean")
    problems = [f"{name} is missing" for name in wanted if name not in values]
    problems += [f"{name} is unknown" for name in values if name not in known]
    for name in ("mean", "std"):
        if name in values and not isinstance(values[name], list):
            problems.append(f"{name} is {values[name]!r:.80}, not a list of numbers, one for each channel")
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}; the fields are {', '.join(known)}")
    try:
        return Preprocessing.from_dict({"name": "custom", "resize": values["size"], "std": (), **values})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


def in_mode(image: Image.Image, rule: Preprocessing) -> Image.Image:
    """Convert an RGB image to the mode that a rule resizes; it is done first, as Keras's `load_img` does."""
    mode = MODES[rule.channels]
    return image if image.mode == mode else image.convert(mode)


def in_channels(pixels: Pixels, rule: Preprocessing) -> Pixels:
    """`in_mode` of pixels (H, W, C).

    >>> grey = Preprocessing("custom", 1, 1, "stretch", "nearest", "grey", (0,))
    >>> in_channels(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8), grey).tolist()
    [[[76], [29]]]
    """
    return pixels if pixels.shape[2] == rule.channel_count else array_of(in_mode(image_of(pixels), rule))


def image_of(pixels: Pixels) -> Image.Image:
    """A Pillow image of pixels (H, W, C): grey (mode L), RGB or RGBA."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def array_of(image: Image.Image) -> Pixels:
    """The inverse of `image_of`."""
    values = np.asarray(image)
    return values if values.ndim == 3 else values[:, :, None]


def center_crop(pixels: Pixels, rule: Preprocessing) -> Pixels:
    """Resize and crop the centre, as for classification.

    Args:
        pixels: (H, W, 3), RGB, 0 to 255, of any size from 1x1; or RGBA, or grey (H, W, 1).
        rule: the card's preprocessing.

    Returns:
        (height, width, channels) of `rule.shape`, 0 to 255: RGB, grey or RGBA as the rule says.
    """
    return crop_image(image_of(pixels), rule)


def crop_image(image: Image.Image, rule: Preprocessing, part: tuple[float, float] | None = None) -> Pixels:
    """`center_crop` of a Pillow image, of which the picture covers `part`, as in `DecodedPicture`."""
    return next(crop_each(image, rule, (CENTER,), part))


def crop_each(
    image: Image.Image, rule: Preprocessing, positions: Iterable[Position], part: tuple[float, float] | None = None
) -> Iterator[Pixels]:
    """Yield crops (height, width, channels) of the resized picture at `positions`, otherwise as `crop_image`.

    >>> image = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)).convert("RGB")
    >>> rule = Preprocessing("custom", 1, 3, "stretch", "nearest", "rgb", (0, 0, 0))
    >>> [int(crop[0, 0, 0]) for crop in crop_each(image, rule, (CENTER, *CORNERS))]
    [10, 0, 3, 12, 15]
    """
    image = in_mode(image, rule)
    resample = Image.Resampling[rule.interpolation.upper()]
    (height, width), (tall, wide) = rule.shape, _pair(rule.resize)
    whole_width, whole_height = image.size if part is None else part
    if rule.resize_rule == "stretch":
        image = image.resize((wide, tall), resample, box=None if part is None else (0, 0, *part))
        for down, across in positions:
            left, top = across * (wide - width) // 2, down * (tall - height) // 2
            yield array_of(image.crop((left, top, left + width, top + height)))
        return
    # Resizing only the cropped part gives the same grid as resizing the whole and cropping, and a strip of 1x10000
    # pixels does not grow to 256x2560000 in between.
    for position in positions:
        box = cropped_box((whole_height, whole_width), rule, position)
        yield array_of(image.resize((width, height), resample, box=box))


def cropped_box(
    size: tuple[float, float], rule: Preprocessing, position: Position = CENTER
) -> tuple[float, float, float, float]:
    """Return the part of a picture of (height, width) `size` that `center_crop` keeps, or `crop_each` at `position`.

    Returns:
        Left, top, right, bottom in pixels of the picture.

    >>> cropped_box((300, 400), general("torchvision", 224))
    (68.75, 18.75, 331.25, 281.25)
    """
    (height, width), (tall, wide) = rule.shape, _pair(rule.resize)
    if rule.resize_rule == "stretch":
        across, down = size[1] / wide, size[0] / tall  # picture pixels per resized pixel
        left, top = position[1] * (wide - width) // 2, position[0] * (tall - height) // 2
        return (left * across, top * down, (left + width) * across, (top + height) * down)
    scale = min(size[1] / wide, size[0] / tall)
    # Clip: rounding may lead beyond the picture.
    x = max(0.0, position[1] * (size[1] - width * scale) / 2)
    y = max(0.0, position[0] * (size[0] - height * scale) / 2)
    return (x, y, min(size[1], x + width * scale), min(size[0], y + height * scale))


def least_size(rule: Preprocessing) -> Pair | None:
    """Twice the (height, width) of the resized picture, or None if JPEG files must be read at full scale.

    A JPEG file read at a reduced scale that is at least this large gives nearly the same input. None for nearest
    interpolation, and for the rules of convnets-keras, which stay bit-identical.
    """
    if rule.interpolation == "nearest" or rule.name.startswith("original"):
        return None
    tall, wide = _pair(rule.resize)
    return 2 * tall, 2 * wide


def fit_longest_side(pixels: Pixels, longest_side: int, rule: Preprocessing) -> Pixels:
    """Resize so that the longer side has `longest_side` pixels, keeping the aspect ratio (each side at least 1).

    Pixels and result are as for `center_crop`.

    Raises:
        ValueError: `longest_side` is less than 1, or the result has more than 400 million pixels.
    """
    height, width = size_with_longest_side((pixels.shape[0], pixels.shape[1]), longest_side)
    resample = Image.Resampling[rule.interpolation.upper()]
    return array_of(in_mode(image_of(pixels), rule).resize((width, height), resample))


def size_with_longest_side(size: Pair, longest_side: int) -> Pair:
    """The (height, width) that `fit_longest_side` resizes to."""
    height, width = size
    factor = longest_side / max(height, width)
    if not longest_side >= 1 or height * width * factor**2 > MOST_PIXELS:
        raise ValueError(f"a longest side of {longest_side} pixels is out of range; give 1 to some {MOST_SIDE}")
    return (max(1, round(height * factor)), max(1, round(width * factor)))


def normalize(pixels: Pixels, rule: Preprocessing) -> NDArray[np.float32]:
    """Apply colour order, scale, mean and standard deviation: (H, W, C), 0 to 255 -> (C, H, W) float32.

    Pixels are as `center_crop` returns them; RGB ones become grey or opaque RGBA as the rule says.
    """
    pixels = in_channels(pixels, rule)
    ordered = pixels[:, :, ::-1] if rule.channels == "bgr" else pixels
    values = ordered.astype(np.float32)
    if rule.scale != 1.0:
        values *= np.float32(rule.scale)
    values -= np.asarray(rule.mean, np.float32)
    if set(rule.std) != {1.0}:
        values /= np.asarray(rule.std, np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1))

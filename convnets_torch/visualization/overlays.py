"""Draw heatmaps over their pictures, legends, and sheets of pictures with captions."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnets_torch.files import Writer
from convnets_torch.images.levels import shown
from convnets_torch.images.preprocessing import Pair, Pixels
from convnets_torch.text import printable
from convnets_torch.visualization.letters import Letters, Pen

Values = NDArray[np.float32]
Resampling = Literal["nearest", "bilinear", "bicubic"]


def interpolated(values: Values, places: NDArray[Any], axis: int, interpolation: Resampling = "bilinear") -> Values:
    """Interpolate cell values along one axis; beyond the outermost cells their values are repeated.

    Args:
        values: (rows, columns).
        places: fractional cell indices, such as 1.5.
        axis: 0 for rows, 1 for columns.
        interpolation: "bicubic" is Catmull-Rom.
    """
    cells = values.shape[axis]
    places = np.clip(places, 0, cells - 1)
    if interpolation == "nearest":
        return values.take(np.ceil(places - 0.5).astype(np.int64), axis)
    before = np.minimum(places.astype(np.int64), max(cells - 2, 0))
    beyond = places - before
    if interpolation == "bilinear":
        weights = [1 - beyond, beyond]
        first = 0
    else:
        t, t2, t3 = beyond, beyond**2, beyond**3
        weights = [(2 * t2 - t - t3) / 2, (3 * t3 - 5 * t2 + 2) / 2, (4 * t2 + t - 3 * t3) / 2, (t3 - t2) / 2]
        first = -1
    shape = (-1, 1) if axis == 0 else (1, -1)
    total = np.zeros((1, 1), np.float32)
    for number, weight in enumerate(weights, start=first):
        near = values.take(np.clip(before + number, 0, cells - 1), axis)
        total = total + near * weight.astype(np.float32).reshape(shape)
    return total


FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}

# Nine equally spaced colours of the perceptually uniform map "inferno" (CC0), which is nearly linear between them.
INFERNO = (
    (0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85),
    (227, 89, 51), (249, 140, 10), (249, 201, 50), (252, 255, 164),
)  # fmt: skip
# Blue for the second target, white between, red for the first: seven equally spaced colours of "RdBu".
# Source: ColorBrewer 2.0, Cynthia Brewer, Apache License 2.0.
DIVERGING = (
    (33, 102, 172), (103, 169, 207), (209, 229, 240), (247, 247, 247), (253, 219, 199), (239, 138, 98), (178, 24, 43),
)  # fmt: skip
# Seven colours that are distinguishable with colour blindness, and grey for the rest.
# Source: Okabe, Ito: Color Universal Design, 2008.
CLASS_COLORS = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
)  # fmt: skip
OTHER_COLOR = (150, 150, 150)
OPAQUE = 0.72  # maximum opacity, so that the picture stays visible
STRENGTH = np.clip(np.linspace(0, 1.6, 256), 0, OPAQUE)  # opacity of each of 256 colours
BLOCK_ROWS = 512  # drawn at a time, to save memory
LEAST_TOP = 0.1  # minimum end of the colour scale, so that a map of near-zeros stays dark
MOST_LINES = 12  # of a caption in a sheet
MOST_DRAWN = 1000  # characters per line; Pillow takes a second for 100,000
PAPER, INK, GREY = (255, 255, 255), (20, 20, 20), (110, 110, 110)


class Drawable(Protocol):
    """A map that can be drawn over its picture.

    Attributes:
        values: (rows, columns) float32, 0 to 1; -1 to 1 if signed.
        picture: (h, w, 3) uint8, RGB, or RGBA: the original picture, or a reduced copy.
        size: (height, width) of the original picture in pixels.
        stride: (vertical, horizontal) pixels of the original picture between neighbouring cells.
        window_size: (height, width) of a cell's window, in pixels of the original picture.
        label: readable name of the map.
        signed: whether the colour scale goes in both directions from 0.
    """

    @property
    def values(self) -> Values: ...
    @property
    def picture(self) -> Pixels: ...
    @property
    def size(self) -> Pair: ...
    @property
    def stride(self) -> tuple[float, float]: ...
    @property
    def window_size(self) -> tuple[float, float]: ...
    @property
    def label(self) -> str: ...
    @property
    def signed(self) -> bool: ...


def overlay(heatmap: Drawable) -> Image.Image:
    """Draw the map over its picture: transparent where the target is improbable, bright where it is probable.

    Cell values lie at the centres of their windows and are interpolated bilinearly. Towards the borders, beyond the
    outermost centres, the nearest cell's value fades out. The colour scale, shown in a bar below the picture, goes from
    0 to the map's maximum, or to 0.1 if that is larger. A signed map is red for the first target and blue for the
    second, up to the largest difference in either direction.
    """
    colors, strength = _palette_of(heatmap), STRENGTH.astype(np.float32)
    if heatmap.signed:  # transparent in the middle
        strength = np.concatenate([strength[::-2], strength[1::2]])

    def paint(rows: slice) -> tuple[Pixels, NDArray[np.float32]]:
        values = _pixel_values(heatmap, rows)
        return colors[values], strength[values]

    bar = _Bar(heatmap)
    return bar.draw(_blend(heatmap, paint, bar.height))


def class_overlay(class_map: Drawable, class_ids: NDArray[np.int64], names: Mapping[int, str]) -> Image.Image:
    """Draw each pixel in the colour of its nearest cell's class, the more opaque the more probable.

    A legend below lists the classes that win most cells, with their shares of all cells; classes beyond the available
    colours are grey. Towards the borders the nearest cell fades out.

    Args:
        class_map: map of the winning classes' probabilities.
        class_ids: (rows, columns), the winning class of each cell.
        names: class id -> name, for every class that wins a cell, most frequent first.
    """
    down, across = _nearest(class_map, 0)[:, None], _nearest(class_map, 1)
    colored = list(names)[: len(CLASS_COLORS)]
    colors = np.full((*class_ids.shape, 3), OTHER_COLOR, np.uint8)
    for class_id, color in zip(colored, CLASS_COLORS, strict=False):
        colors[class_ids == class_id] = color
    strength = (OPAQUE * (0.7 + 0.3 * class_map.values)).astype(np.float32)  # an improbable winner stays visible
    blended = _blend(class_map, lambda rows: (colors[down[rows], across], strength[down[rows], across]))
    shares = [(names[class_id], float((class_ids == class_id).mean())) for class_id in colored]
    entries = [(*share, color) for share, color in zip(shares, CLASS_COLORS, strict=False)]
    if rest := len(names) - len(colored):
        words = f"{rest} other {'class' if rest == 1 else 'classes'}"
        entries.append((words, 1 - sum(share for _, share in shares), OTHER_COLOR))
    return _with_legend(blended, entries)


def color_map(heatmap: Drawable) -> Image.Image:
    """Draw the map alone, opaque, with the colours and layout of `overlay`."""
    height, width = heatmap.picture.shape[:2]
    bar = _Bar(heatmap)
    page = Image.new("RGB", (width, height + bar.height), PAPER)
    for top in range(0, height, BLOCK_ROWS):
        rows = slice(top, min(top + BLOCK_ROWS, height))
        page.paste(Image.fromarray(bar.colors[_pixel_values(heatmap, rows)]), (0, top))
    return bar.draw(page)


def sheet(tiles: Sequence[tuple[Image.Image, str]], columns: int = 3, width: int = 480, title: str = "") -> Image.Image:
    """Draw pictures in a grid, each `width` pixels wide with a caption of up to 12 lines, under a title."""
    margin, font = 16, Letters(17)
    scaled = [image.resize((width, max(1, round(image.height * width / image.width)))) for image, _ in tiles]
    line_height = 23
    texts, titles = [_lines(text) for _, text in tiles], _lines(title)
    rows = [range(start, min(start + columns, len(tiles))) for start in range(0, len(tiles), columns)]
    heights = [max(scaled[i].height + line_height * len(texts[i]) + 8 for i in row) + margin for row in rows]
    top = margin + line_height * len(titles) + (8 if titles else 0)
    page = Image.new("RGB", (margin + columns * (width + margin), top + sum(heights)), PAPER)
    draw = Pen(page)
    for number, line in enumerate(titles):
        draw.text((margin, margin + number * line_height), shorten(line, font, page.width - 2 * margin), INK, font)
    for row, height in zip(rows, heights, strict=True):
        for place, i in enumerate(row):
            left = margin + place * (width + margin)
            page.paste(scaled[i], (left, top))
            for number, line in enumerate(texts[i]):
                y = top + scaled[i].height + 6 + number * line_height
                draw.text((left, y), shorten(line, font, width), INK, font)
        top += height
    return page


def _lines(text: str) -> list[str]:
    """Split a text into lines; if there are too many, the last shown is "..."."""
    lines = text[: MOST_LINES * MOST_DRAWN].splitlines()
    return lines if len(lines) <= MOST_LINES else [*lines[: MOST_LINES - 1], "..."]


def picture_formats(draw: Callable[..., Image.Image]) -> dict[str, Callable[..., None]]:
    """Return a save function per `FORMATS` extension for a `files.Writer`; `draw` gets the arguments of `write`."""

    def save(path: Path, *arguments: Any) -> None:
        draw(*arguments).save(path, format=FORMATS[path.suffix.lower()])

    return dict.fromkeys(FORMATS, save)


PICTURE = Writer("a picture", picture_formats(lambda image: image))


def save_image(image: Image.Image, path: Path) -> None:
    """Write a picture atomically, in the format that the extension of `path` names, one of `FORMATS`."""
    PICTURE.write(path, image)


def _blend(
    cells: Drawable, paint: Callable[[slice], tuple[Pixels, NDArray[np.float32]]], below: int = 0
) -> Image.Image:
    """Blend colours over the picture, fading towards the borders, in blocks of rows to save memory.

    `paint` gives the colours (n, W, 3) and opacities (n, W) of a slice of rows; `below` pixels stay empty below.
    """
    height, width = cells.picture.shape[:2]
    page = Image.new("RGB", (width, height + below), PAPER)
    fade_down, fade_across = (_fade(cells, axis) for axis in (0, 1))
    for top in range(0, height, BLOCK_ROWS):
        rows = slice(top, min(top + BLOCK_ROWS, height))
        colors, strength = paint(rows)
        alpha = 255 * strength * fade_down[rows, None] * fade_across
        mask = Image.fromarray(alpha.astype(np.uint8))
        page.paste(
            Image.composite(Image.fromarray(colors), Image.fromarray(shown(cells.picture[rows])), mask), (0, top)
        )
    return page


def _pixel_values(heatmap: Drawable, rows: slice) -> NDArray[np.uint8]:
    """Colour indices, 0 to 255, for rows of the picture's pixels."""
    down, across = (_places(heatmap, axis) for axis in (0, 1))
    top = _top(heatmap)
    scaled = (heatmap.values + top) * (127.5 / top) if heatmap.signed else heatmap.values * (255 / top)
    return np.rint(interpolated(interpolated(scaled, down[rows], 0), across, 1)).astype(np.uint8)


def _places(cells: Drawable, axis: int) -> NDArray[Any]:
    """The drawn picture's pixels as fractional cell indices: 1.5 is between the second and the third cell."""
    stride, size = _lattice(cells, axis)
    return (np.arange(cells.picture.shape[axis]) + 0.5 - size / 2) / stride


def _lattice(cells: Drawable, axis: int) -> tuple[float, float]:
    """Stride and window size along an axis, in pixels of the drawn picture, which may be a reduced copy."""
    ratio = cells.picture.shape[axis] / cells.size[axis]
    return cells.stride[axis] * ratio, cells.window_size[axis] * ratio


def _nearest(cells: Drawable, axis: int) -> NDArray[np.int64]:
    """The index of the nearest cell centre for each pixel."""
    return np.clip(np.ceil(_places(cells, axis) - 0.5), 0, cells.values.shape[axis] - 1).astype(np.int64)


def _fade(cells: Drawable, axis: int) -> NDArray[np.float32]:
    """Opacity per pixel: 1 between the outermost centres, falling to 0 half a window beyond them."""
    stride, size = _lattice(cells, axis)
    place = np.arange(cells.picture.shape[axis]) + 0.5
    first, last = size / 2, size / 2 + (cells.values.shape[axis] - 1) * stride
    beyond = np.maximum(np.maximum(first - place, place - last), 0)
    return np.clip(1 - beyond / (size / 2), 0, 1).astype(np.float32)


def _palette_of(heatmap: Drawable) -> Pixels:
    return palette(DIVERGING if heatmap.signed else INFERNO)


def _top(heatmap: Drawable) -> float:
    return max(float(np.abs(heatmap.values).max()), LEAST_TOP)


def palette(anchors: Sequence[tuple[int, int, int]] = INFERNO, count: int = 256) -> Pixels:
    """Interpolate `count` colours, (count, 3), between equally spaced `anchors`."""
    places = np.linspace(0, count - 1, len(anchors))
    channels = np.array(anchors, float).T
    return np.stack([np.interp(np.arange(count), places, channel) for channel in channels], axis=1).astype(np.uint8)


def _letters(width: int) -> int:
    """Font size in pixels below a picture: 28 for widths of 1000 to 2000, smaller or larger outside."""
    return max(11, min(28, width // 36), width // 71)


class _Bar:
    """The colour bar below a map: a label, the map's extremes, and the ends of the colour scale.

    The text stands beside the bar if there is room, else in two lines above it.
    """

    def __init__(self, heatmap: Drawable) -> None:
        width, values, top = heatmap.picture.shape[1], heatmap.values, _top(heatmap)
        self.colors, self.size = _palette_of(heatmap), _letters(width)
        self.font, self.gap, self.width = Letters(self.size), self.size // 2, width // 5
        self.begin, self.end = f"-{top:.2f}" if heatmap.signed else "0", f"{top:.2f}"
        self.left = round(width - 2 * self.gap - self.font.getlength(self.end)) - self.width
        most = f"{values.max():.2f}"
        figures = f"{values.min():.2f} to {most}" if heatmap.signed else f"highest {most}"
        room = self.left - 4 * self.gap - self.font.getlength(self.begin)
        if self.font.getlength(f"ab...  {figures}") <= room:
            label = shorten(heatmap.label, self.font, room - self.font.getlength(f"  {figures}"))
            self.texts = [f"{label}  {figures}"]
        else:
            room = width - self.size
            fits = next((text for text in (figures, most) if self.font.getlength(text) <= room), "")
            self.texts = [shorten(heatmap.label, self.font, room), fits]
        self.height = round(self.size * (2.2 if len(self.texts) == 1 else 4.5))

    def draw(self, page: Image.Image) -> Image.Image:
        """Draw the bar into the empty rows at the bottom of the page, in place to save memory."""
        font, gap, draw = self.font, self.gap, Pen(page)
        begin, end, width, left = self.begin, self.end, self.width, self.left
        middles = [page.height - self.height + round(self.size * 1.1) + n * round(self.size * 1.3) for n in range(3)]
        middle = middles[0 if len(self.texts) == 1 else 2]
        if len(self.texts) > 1:  # full width; without end labels if there is no room
            room = page.width - 4 * gap - font.getlength(begin) - font.getlength(end)
            if room < self.size:
                begin, end, room = "", "", page.width - 2 * gap
            width, left = round(room), round(gap + font.getlength(begin) + (gap if begin else 0))
        ramp = np.repeat(self.colors[np.linspace(0, 255, max(width, 1)).astype(int)][None], self.size, axis=0)
        page.paste(Image.fromarray(ramp), (left, middle - gap))
        draw.text((left - gap, middle), begin, GREY, font, anchor="rm")
        draw.text((left + width + gap, middle), end, GREY, font, anchor="lm")
        for text, place in zip(self.texts, middles, strict=False):
            draw.text((gap, place), text, INK, font, anchor="lm")
        return page


def _with_legend(image: Image.Image, entries: Sequence[tuple[str, float, tuple[int, int, int]]]) -> Image.Image:
    """Append a legend of (name, share, color) entries, as many per row as fit."""
    size = _letters(image.width)
    font = Letters(size)
    texts = [(drawable(words.split(", ")[0]), f" {share:.0%}") for words, share, _ in entries]
    widest = max(font.getlength(words + share) for words, share in texts) + size * 2.5
    columns = max(1, int(image.width // widest))
    line = round(size * 1.5)
    page = Image.new("RGB", (image.width, image.height + line * -(-len(texts) // columns) + size // 2), PAPER)
    page.paste(image)
    draw = Pen(page)
    for number, ((words, share), (_, _, color)) in enumerate(zip(texts, entries, strict=True)):
        left = size // 2 + (number % columns) * (image.width // columns)
        middle = image.height + size // 4 + line * (number // columns) + line // 2
        draw.rectangle((left, middle - size // 2, left + size, middle + size // 2), fill=color)
        room = image.width // columns - size * 2
        text = shorten(words, font, room - font.getlength(share)) + share
        draw.text((left + size * 1.4, middle), text, INK, font, anchor="lm")
    return page


def shorten(text: str, font: Letters, room: float) -> str:
    """Shorten a text to fit into `room` pixels, ending in "..."."""
    text = drawable(text)
    if font.getlength(text) <= room:
        return text
    fits = bisect_right(range(len(text) + 1), room, key=lambda count: font.getlength(text[:count] + "..."))
    return text[: max(0, fits - 1)].rstrip(" ,") + "..."


def drawable(text: str) -> str:
    """Make a text printable in one line, at most 1000 characters long."""
    return printable(text[:MOST_DRAWN])

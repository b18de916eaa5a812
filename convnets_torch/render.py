"""Maps as pictures; the one place that draws."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from convnets_torch.files import check_writable, replacing
from convnets_torch.preprocessing import Pixels

if TYPE_CHECKING:
    from convnets_torch.heatmaps import CellMap, ClassMap, Heatmap

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}

# Nine colours of the perceptually uniform map "inferno" (CC0) at equal distances; between them it is nearly linear.
INFERNO = (
    (0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85),
    (227, 89, 51), (249, 140, 10), (249, 201, 50), (252, 255, 164),
)  # fmt: skip
# Seven colours that people with any colour vision tell apart, and grey for the rest.
# Source: Okabe, Ito: Color Universal Design, 2008.
CLASS_COLORS = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
)  # fmt: skip
OTHER_COLOR = (150, 150, 150)
OPAQUE = 0.72  # the picture stays visible below the strongest colour
STRENGTH = np.clip(np.linspace(0, 1.6, 256), 0, OPAQUE)  # how opaque each of 256 colours is
LEAST_TOP = 0.1  # the colours reach at least up to here, so that a map of near-zeros does not glow
PAPER, INK, GREY = (255, 255, 255), (20, 20, 20), (110, 110, 110)


def overlay(heatmap: Heatmap) -> Image.Image:
    """The map over its picture: clear where the target is improbable, glowing where it is likely.

    The colour of a pixel is that of the window around it: cell values stand at the centres of their windows and
    are interpolated bilinearly between them. Towards the borders, where no window has its centre, the value of
    the nearest cell fades out. Colours go from 0 to the map's highest value (or 0.1 if that is lower), which
    the bar below the picture shows.

    Returns:
        RGB, as wide as the picture and higher by the bar.
    """
    values = _pixel_values(heatmap)
    blended = _blend(heatmap, palette()[values], STRENGTH.astype(np.float32)[values])
    return _with_bar(blended, heatmap)


def class_overlay(class_map: ClassMap) -> Image.Image:
    """What is where: each pixel in the colour of its nearest cell's class, the stronger the more probable.

    Below stands a legend: the words of the classes that win the most cells, and their share of all cells; the
    classes beyond the colours at hand share grey. Towards the borders the nearest cell fades out.

    Returns:
        RGB, as wide as the picture and higher by the legend.
    """
    rows, columns = class_map.class_ids.shape
    height, width = class_map.picture.shape[:2]
    down = _nearest(height, rows, class_map.stride[0], class_map.window_size[0])[:, None]
    across = _nearest(width, columns, class_map.stride[1], class_map.window_size[1])
    colored = list(class_map.names)[: len(CLASS_COLORS)]
    colors = np.full((rows, columns, 3), OTHER_COLOR, np.uint8)
    for class_id, color in zip(colored, CLASS_COLORS, strict=False):
        colors[class_map.class_ids == class_id] = color
    strength = OPAQUE * (0.7 + 0.3 * class_map.probabilities)  # an improbable winner stays a winner
    blended = _blend(class_map, colors[down, across], strength.astype(np.float32)[down, across])
    shares = [(class_map.names[class_id], float((class_map.class_ids == class_id).mean())) for class_id in colored]
    entries = [(*share, color) for share, color in zip(shares, CLASS_COLORS, strict=False)]
    if rest := len(class_map.names) - len(colored):
        entries.append(
            (f"{rest} other {'class' if rest == 1 else 'classes'}", 1 - sum(share for _, share in shares), OTHER_COLOR)
        )
    return _with_legend(blended, entries)


def color_map(heatmap: Heatmap) -> Image.Image:
    """The map alone in the same colours and the same place, without the picture."""
    return _with_bar(Image.fromarray(palette()[_pixel_values(heatmap)]), heatmap)


def sheet(tiles: Sequence[tuple[Image.Image, str]], columns: int = 3, width: int = 480) -> Image.Image:
    """Pictures side by side, each `width` pixels wide, with lines of text below each."""
    margin, font = 16, ImageFont.load_default(size=17)
    scaled = [image.resize((width, max(1, round(image.height * width / image.width)))) for image, _ in tiles]
    line_height = 23
    rows = [range(start, min(start + columns, len(tiles))) for start in range(0, len(tiles), columns)]
    heights = [
        max(scaled[i].height + line_height * len(tiles[i][1].splitlines()) + 8 for i in row) + margin for row in rows
    ]
    page = Image.new("RGB", (margin + columns * (width + margin), margin + sum(heights)), PAPER)
    draw = ImageDraw.Draw(page)
    top = margin
    for row, height in zip(rows, heights, strict=True):
        for place, i in enumerate(row):
            left = margin + place * (width + margin)
            page.paste(scaled[i], (left, top))
            for number, line in enumerate(tiles[i][1].splitlines()):
                y = top + scaled[i].height + 6 + number * line_height
                draw.text((left, y), _shorten(line, font, width), INK, font)
        top += height
    return page


def check_output(path: Path) -> None:
    """Raise, before long work begins, when a map cannot be written to `path`.

    Raises:
        ValueError: another ending than that of a picture or `.npy`.
        OSError: `path` cannot be written.
    """
    if path.suffix.lower() not in (*FORMATS, ".npy"):
        known = ", ".join(FORMATS)
        raise ValueError(f"{path} has an unknown ending; name a picture: {known} (or .npy for the numbers)")
    check_writable(path)


def save_map(values: NDArray[Any], draw: Callable[[], Image.Image], path: str | os.PathLike[str]) -> None:
    """Write `values` to an `.npy`, or what `draw` returns to a picture; atomically.

    Raises:
        ValueError: another file ending.
        OSError: `path` cannot be written.
    """
    path = Path(path)
    check_output(path)
    if path.suffix.lower() == ".npy":
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, values)
    else:
        save_image(draw(), path)


def save_image(image: Image.Image, path: Path) -> None:
    """Write a picture atomically, in the format that the ending of `path` names, one of `FORMATS`.

    Raises:
        OSError: `path` cannot be written.
    """
    with replacing(path) as temporary:
        image.save(temporary, format=FORMATS[path.suffix.lower()])


def _blend(cells: CellMap, colors: Pixels, strength: NDArray[np.float32]) -> Image.Image:
    """Colours (H, W, 3) over the picture, as opaque as `strength` (H, W) says and fading towards the borders."""
    fade_down, fade_across = (
        _fade(pixels, count, stride, size)
        for pixels, count, stride, size in zip(
            cells.picture.shape, cells.probabilities.shape, cells.stride, cells.window_size, strict=False
        )
    )
    alpha = 255 * strength * fade_down[:, None] * fade_across
    mask = Image.fromarray(alpha.astype(np.uint8))
    return Image.composite(Image.fromarray(colors), Image.fromarray(cells.picture), mask)


def _pixel_values(heatmap: Heatmap) -> NDArray[np.uint8]:
    """The map on the picture's pixels, 0 to 255 for 0 to the top of the colours."""
    rows, columns = heatmap.probabilities.shape
    height, width = heatmap.picture.shape[:2]
    down, beyond_down = _between_centres(height, rows, heatmap.stride[0], heatmap.window_size[0])
    across, beyond_across = _between_centres(width, columns, heatmap.stride[1], heatmap.window_size[1])
    scaled = heatmap.probabilities * (255 / _top(heatmap))
    tall = scaled[down] + (scaled[np.minimum(down + 1, rows - 1)] - scaled[down]) * beyond_down[:, None]
    left, right = tall[:, across], tall[:, np.minimum(across + 1, columns - 1)]
    return np.rint(left + (right - left) * beyond_across).astype(np.uint8)


def _between_centres(
    pixels: int, cells: int, stride: float, size: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each pixel the cell whose centre lies before it, and how far it is towards the next one, 0 to 1."""
    place = np.clip((np.arange(pixels) + 0.5 - size / 2) / stride, 0, cells - 1)
    before = place.astype(np.int64)
    return before, (place - before).astype(np.float32)


def _nearest(pixels: int, cells: int, stride: float, size: float) -> NDArray[np.int64]:
    """For each pixel the cell whose centre is nearest."""
    return np.clip(np.rint((np.arange(pixels) + 0.5 - size / 2) / stride), 0, cells - 1).astype(np.int64)


def _fade(pixels: int, cells: int, stride: float, size: float) -> NDArray[np.float32]:
    """1 between the first and the last centre, falling to 0 at half a window beyond them."""
    place = np.arange(pixels) + 0.5
    first, last = size / 2, size / 2 + (cells - 1) * stride
    beyond = np.maximum(np.maximum(first - place, place - last), 0)
    return np.clip(1 - beyond / (size / 2), 0, 1).astype(np.float32)


def _top(heatmap: Heatmap) -> float:
    return max(float(heatmap.probabilities.max()), LEAST_TOP)


def palette(anchors: Sequence[tuple[int, int, int]] = INFERNO, count: int = 256) -> Pixels:
    """`count` colours (count, 3) from the first to the last of `anchors`, which stand at equal distances."""
    places = np.linspace(0, count - 1, len(anchors))
    channels = np.array(anchors, float).T
    return np.stack([np.interp(np.arange(count), places, channel) for channel in channels], axis=1).astype(np.uint8)


def _with_bar(image: Image.Image, heatmap: Heatmap) -> Image.Image:
    """Add a strip below: the target's words and highest probability, and what the colours mean."""
    size = min(28, max(11, image.width // 36))
    font = ImageFont.load_default(size=size)
    strip = round(size * 2.2)
    page = Image.new("RGB", (image.width, image.height + strip), PAPER)
    page.paste(image)
    draw = ImageDraw.Draw(page)
    middle, gap = image.height + strip // 2, size // 2
    end = f"{_top(heatmap):.2f}"
    bar_width = image.width // 5
    bar_right = round(image.width - gap * 2 - font.getlength(end))
    bar_left = bar_right - bar_width
    ramp = np.repeat(palette()[np.linspace(0, 255, max(bar_width, 1)).astype(int)][None], size, axis=0)
    page.paste(Image.fromarray(ramp), (bar_left, middle - size // 2))
    draw.text((bar_left - gap, middle), "0", GREY, font, anchor="rm")
    draw.text((bar_right + gap, middle), end, GREY, font, anchor="lm")
    room = bar_left - gap * 4 - font.getlength("0")
    highest = f"  highest {heatmap.probabilities.max():.2f}"
    words = _shorten(heatmap.target.label, font, room - font.getlength(highest)) + highest
    draw.text((gap, middle), words if font.getlength(words) <= room else highest.strip(), INK, font, anchor="lm")
    return page


def _with_legend(image: Image.Image, entries: Sequence[tuple[str, float, tuple[int, int, int]]]) -> Image.Image:
    """Add a strip below with a colour, a share and words for each entry, as many in a row as fit."""
    size = min(28, max(11, image.width // 36))
    font = ImageFont.load_default(size=size)
    texts = [f"{words.split(', ')[0]} {share:.0%}" for words, share, _ in entries]
    widest = max(font.getlength(text) for text in texts) + size * 2.5
    columns = max(1, int(image.width // widest))
    line = round(size * 1.5)
    page = Image.new("RGB", (image.width, image.height + line * -(-len(texts) // columns) + size // 2), PAPER)
    page.paste(image)
    draw = ImageDraw.Draw(page)
    for number, (text, (_, _, color)) in enumerate(zip(texts, entries, strict=True)):
        left = size // 2 + (number % columns) * (image.width // columns)
        middle = image.height + size // 4 + line * (number // columns) + line // 2
        draw.rectangle((left, middle - size // 2, left + size, middle + size // 2), fill=color)
        room = image.width // columns - size * 2
        draw.text((left + size * 1.4, middle), _shorten(text, font, room), INK, font, anchor="lm")
    return page


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float) -> str:
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "...") > room:
        text = text[:-1]
    return text.rstrip(" ,") + "..."

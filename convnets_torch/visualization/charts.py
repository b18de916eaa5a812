"""Bar charts, curves, confusion tables and histograms."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnets_torch.text import printable
from convnets_torch.visualization.letters import Letters, Pen
from convnets_torch.visualization.overlays import GREY, INFERNO, INK, PAPER, drawable, shorten

Color = tuple[int, int, int]

LINE: Color = (225, 225, 225)
WIDTH = 800
SCALE = 2  # drawn so many times larger, so that slanted lines are smooth


def start_plot(lines: Sequence[str], entries: int) -> tuple[Image.Image, Pen, Letters, tuple[int, int, int, int]]:
    """An enlarged page under lines of words, its pen and letters, and (left, top, right, bottom) of the plot."""
    margin, width, high = 28 * SCALE, WIDTH * SCALE, WIDTH * SCALE * 3 // 8
    font, large = Letters(14 * SCALE), Letters(17 * SCALE)
    top = margin // 2 + 24 * SCALE * len(lines) + 20 * SCALE
    page = Image.new("RGB", (width, top + high + 34 * SCALE + 30 * SCALE * (1 if entries else 0)), PAPER)
    draw = Pen(page)
    write_lines(draw, lines, margin, font, large, SCALE)
    return page, draw, font, (margin + 30 * SCALE, top, width - margin - 10 * SCALE, top + high)


def with_legend(
    page: Image.Image,
    draw: Pen,
    font: Letters,
    box: tuple[int, int, int, int],
    texts: Sequence[str],
    colors: Sequence[Color],
) -> Image.Image:
    """Colours and their words below the plot; the page in its own size."""
    left, _, right, bottom = box
    y, size = bottom + 45 * SCALE, 12 * SCALE
    for number, (text, color) in enumerate(zip(texts, colors, strict=True)):
        x = left + number * (right - left) // len(texts)
        draw.rectangle((x, y - size // 2, x + size, y + size // 2), fill=color)
        draw.text((x + size + 6 * SCALE, y), text, INK, font, anchor="lm")
    return page.resize((page.width // SCALE, page.height // SCALE), Image.Resampling.LANCZOS)


def write_lines(
    draw: Pen,
    lines: Sequence[str],
    margin: int,
    font: Letters,
    large: Letters,
    scale: int = 1,
) -> None:
    """Lines of words from the top of a page; the first in larger letters and darker."""
    for number, text in enumerate(lines):
        draw.text((margin, margin // 2 + 24 * scale * number), text, GREY if number else INK, font if number else large)


def round_marks(low: float, high: float) -> list[float]:
    """Three to seven numbers between two, both allowed, whose steps are 1, 2 or 5 of some decimal place.

    >>> round_marks(0.5, 1)
    [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    >>> round_marks(1, 37)
    [10.0, 20.0, 30.0]
    """
    if not high > low:
        return [float(low)]
    place = 10.0 ** np.floor(np.log10((high - low) / 6))
    step = next(factor * place for factor in (1, 2, 5, 10) if (high - low) / (factor * place) <= 6 + 1e-9)
    first, last = int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9))
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


NOTHING: Color = (247, 247, 247)
LARGEST = 48  # pixels of a cell
MOST_SIDE = 1200  # pixels of all cells together
NAMED = 14  # pixels of a cell that leave room for letters
WITH_NAMES = MOST_SIDE // NAMED  # classes, at most
MARGIN = 20
CELL, CUT, SPOKEN = 16, 40, 5000  # of SVG: pixels of a cell, letters of a name, and cells that say what they count
GROUP_ROOM = 150  # pixels for the words of groups


def draw_counts(
    counts: NDArray[np.integer],
    names: Sequence[str],
    lines: Sequence[str],
    groups: Sequence[tuple[int, int, str]] = (),
) -> Image.Image:
    """Of each class, a row, the shares that were taken for the columns' classes; each cell with its number.

    Where there are too many classes for letters, cells are colours alone, by the square root of the share, so that
    single pictures are still seen.

    Args:
        counts: (classes, classes), the truth in rows; a row without pictures stays empty.
        names: of the classes.
        lines: of text above; the first in larger letters.
        groups: (first, end, words) of neighbouring classes; shown where there is no room for names.

    >>> draw_counts(np.eye(2, dtype=int), ("ant", "bee"), ("Answers",)).mode
    'RGB'
    """
    side = max(1, min(LARGEST, MOST_SIDE // len(names)))
    if len(names) <= WITH_NAMES:
        return _with_names(counts, names, lines, side)
    return _in_pixels(counts, lines, groups, side)


def counts_svg(counts: NDArray[np.integer], names: Sequence[str], lines: Sequence[str]) -> str:
    """What `draw_counts` shows, as SVG: vectors, in which all names can be read and searched however many there are.

    Names longer than 40 letters are cut, and said whole where a pointer rests on them. So is what a cell counts, up to
    5,000 cells that are not empty; of more a browser would be slow, and they are colours alone.

    Args:
        counts: (classes, classes), the truth in rows; a row without pictures stays empty.
        names: of the classes.
        lines: of text above; the first in larger letters.

    >>> "<title>ant taken for bee: 2</title>" in counts_svg(np.array([[1, 2], [0, 3]]), ("ant", "bee"), ("Answers",))
    True
    """
    shares = _shares(counts)
    colors = _mixed(shares if len(names) <= WITH_NAMES else np.sqrt(shares))
    whole = [escape(printable(name)) for name in names]
    short = [name if len(name) <= CUT else f"{name[: CUT - 1]}\u2026" for name in map(printable, names)]
    room = round(1.2 * max(map(Letters(12).getlength, map(drawable, short)))) + 10  # a browser's font may be wider
    left, top = MARGIN + room, MARGIN + 24 * len(lines) + room
    extent = CELL * len(names)
    width, height = max(left + extent, 9 * max(map(len, lines))) + MARGIN, top + extent + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        f' font-family="DejaVu Sans, sans-serif" font-size="12" fill="{_hex(INK)}">',
        f'<rect width="100%" height="100%" fill="{_hex(PAPER)}"/>',
        f'<rect x="{left}" y="{top}" width="{extent}" height="{extent}" fill="{_hex(NOTHING)}"/>',
    ]
    for number, line in enumerate(lines):
        size = 17 if number == 0 else 14
        parts.append(f'<text x="{MARGIN}" y="{MARGIN + 24 * number + 10}" font-size="{size}">{escape(line)}</text>')
    for place, name in enumerate(short):
        middle = CELL * place + CELL / 2 + 4
        words = escape(name) + (f"<title>{whole[place]}</title>" if len(name) == CUT else "") + "</text>"
        parts.append(f'<text x="{left - 6}" y="{top + middle:g}" text-anchor="end">{words}')
        parts.append(f'<text transform="translate({left + middle:g} {top - 6}) rotate(-90)">{words}')
    cells = np.argwhere(counts).tolist()
    squares: dict[str, list[str]] = {}  # of each colour
    for row, column in cells:
        x, y, color = left + CELL * column, top + CELL * row, _hex(colors[row, column].tolist())
        square = f"M{x} {y}h{CELL - 1}v{CELL - 1}h{1 - CELL}z"
        squares.setdefault(color, []).append(square)
        if len(cells) > SPOKEN:
            continue
        words, text = f"{whole[row]} taken for {whole[column]}: {counts[row, column]}", str(counts[row, column])
        parts.append(f'<path d="{square}" fill="{color}"><title>{words}</title></path>')
        if len(text) <= 3:
            ink = f'fill="{_hex(PAPER if shares[row, column] > 0.5 else INK)}" pointer-events="none"'
            parts.append(f'<text x="{x + 7.5}" y="{y + 11}" font-size="8" text-anchor="middle" {ink}>{text}</text>')
    if len(cells) > SPOKEN:
        parts += (f'<path d="{"".join(some)}" fill="{color}"/>' for color, some in squares.items())
    return "\n".join((*parts, "</svg>\n"))


def _hex(color: Sequence[int]) -> str:
    return "#" + bytes(color).hex()


def _with_names(counts: NDArray[np.integer], names: Sequence[str], lines: Sequence[str], side: int) -> Image.Image:
    font, names = Letters(14), [drawable(name) for name in names]
    small = Letters(max(9, min(14, side * 2 // 5)))
    room = min(220, round(max(font.getlength(name) for name in names)) + 10)
    page, draw, left, top = _start(lines, side * len(names), room, room)
    shares = _shares(counts)
    colors = _mixed(shares)
    for row, name in enumerate(names):
        text = shorten(name, font, room - 10)
        draw.text((left - 8, top + (row + 0.5) * side), text, INK, font, anchor="rm")
        upright = Image.new("RGB", (room, side), PAPER)
        Pen(upright).text((6, side / 2), text, INK, font, anchor="lm")
        page.paste(upright.rotate(90, expand=True), (left + row * side, top - room))
        for column in range(len(names)):
            share, corner = float(shares[row, column]), (left + column * side, top + row * side)
            color = tuple(colors[row, column].tolist())
            draw.rectangle((*corner, corner[0] + side - 2, corner[1] + side - 2), fill=color)
            if counts[row, column]:
                middle = (corner[0] + (side - 1) / 2, corner[1] + (side - 1) / 2)
                text = str(counts[row, column])
                if small.getlength(text) <= side:
                    draw.text(middle, text, PAPER if share > 0.5 else INK, small, anchor="mm")
    return page


def _in_pixels(
    counts: NDArray[np.integer], lines: Sequence[str], groups: Sequence[tuple[int, int, str]], side: int
) -> Image.Image:
    font = Letters(12)
    room = GROUP_ROOM if groups else 0
    page, draw, left, top = _start(lines, side * len(counts), room, 0)
    colors = _mixed(np.sqrt(_shares(counts)))
    for first, end, _ in groups:  # framed, as far as cells are empty
        square = colors[first:end, first:end]
        frame = counts[first:end, first:end] == 0
        frame[1:-1, 1:-1] = False
        square[frame] = LINE
    page.paste(Image.fromarray(colors.repeat(side, 0).repeat(side, 1)), (left, top))
    for first, end, words in groups:
        edges = top + first * side, top + end * side - 1
        draw.line((left - 6, edges[0], left - 6, edges[1]), GREY)
        for edge in edges:
            draw.line((left - 6, edge, left - 2, edge), GREY)
        if (end - first) * side >= NAMED - 2:
            text = shorten(words, font, room - 14)
            draw.text((left - 10, sum(edges) / 2), text, INK, font, anchor="rm")
    return page


def _start(lines: Sequence[str], extent: int, beside: int, above: int) -> tuple[Image.Image, Pen, int, int]:
    """A page for square cells of an extent, with room beside and above them, its pen, and where the cells begin."""
    font, large = Letters(14), Letters(17)
    top, left = MARGIN + 24 * len(lines) + above + 8, MARGIN + beside
    widest = max(large.getlength(line) for line in lines)
    page = Image.new("RGB", (max(left + extent, round(widest) + MARGIN) + MARGIN, top + extent + MARGIN), PAPER)
    draw = Pen(page)
    write_lines(draw, lines, MARGIN, font, large)
    return page, draw, left, top


def _shares(counts: NDArray[np.integer]) -> NDArray[np.float64]:
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)


def _mixed(shares: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(..., 3), from paper, at 0, to the colour of bars; a little is seen already."""
    strength = (0.08 + 0.92 * shares)[..., None]
    mixed = np.array(PAPER) * (1 - strength) + np.array(BAR) * strength
    return np.where(shares[..., None] == 0, np.array(NOTHING), mixed.round()).astype(np.uint8)


BAR = INFERNO[3]


def draw_histogram(
    counts: NDArray[np.int64], edges: NDArray[np.float64], words: Sequence[str], width: int = 800
) -> Image.Image:
    """Bars over their range, each with its count above it, under lines of words.

    Args:
        counts: (bins,).
        edges: (bins + 1,), of the bins.
        words: lines of text; the first in larger letters.
        width: of the picture in pixels.
    """
    size = max(11, width // 57)
    font, large = Letters(size), Letters(round(size * 1.2))
    line, margin = round(size * 1.5), 2 * size
    top, high = margin + line * (len(words) + 2), width * 3 // 8
    page = Image.new("RGB", (width, top + high + 2 * line + margin // 2), PAPER)
    draw = Pen(page)
    for number, text in enumerate(words):
        draw.text((margin, margin // 2 + number * line), text, GREY if number else INK, font if number else large)
    step = (width - 2 * margin) / len(counts)
    floor = top + high
    for number, count in enumerate(counts.tolist()):
        left, right = margin + number * step, margin + (number + 1) * step
        if count:
            height = max(1, round(high * count / counts.max()))
            draw.rectangle((round(left) + 1, floor - height, round(right) - 1, floor), fill=BAR)
            draw.text(((left + right) / 2, floor - height - 2), str(count), GREY, font, anchor="ms")
    draw.line((margin, floor, width - margin, floor), GREY)
    marks = np.linspace(0, len(counts), 5).round().astype(int)
    for mark in marks.tolist():
        draw.text((margin + mark * step, floor + line // 3), f"{edges[mark]:.2f}", GREY, font, anchor="ma")
    return page

"""What plots share: a page with words above and a legend below, its letters, and round numbers for an axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from convnets_torch.letters import Letters, Pen
from convnets_torch.render import GREY, INK, PAPER

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

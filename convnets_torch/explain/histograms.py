"""Histograms as pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnets_torch.letters import Letters, Pen
from convnets_torch.render import GREY, INFERNO, INK, PAPER

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

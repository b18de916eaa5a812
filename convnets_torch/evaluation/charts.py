"""Pictures of an evaluation: confusions, reliability, and contact sheets of mistakes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from convnets_torch.card import Card
from convnets_torch.embeddings.image_map_drawing import reduced
from convnets_torch.evaluation.calibration import Calibration
from convnets_torch.evaluation.metrics import Mistake
from convnets_torch.images.decoding import Reading, open_upright
from convnets_torch.images.levels import Background, Depth
from convnets_torch.text import printable
from convnets_torch.visualization.charts import (
    BAR,
    LINE,
    SCALE,
    WITH_NAMES,
    Color,
    counts_svg,
    draw_counts,
    write_lines,
)
from convnets_torch.visualization.letters import Letters, Pen
from convnets_torch.visualization.overlays import CLASS_COLORS, GREY, INK, PAPER, drawable, sheet, shorten
from convnets_torch.wordnet.hierarchy import tree_order
from convnets_torch.wordnet.targets import class_name, tree_wnids

SIDE = 230  # pixels of a picture on a contact sheet
COLUMNS = 5
MISSING: Color = (200, 200, 200)
GAP: Color = CLASS_COLORS[1]
PLOT, BELOW = 300, 70  # pixels of a reliability plot, and of the histogram below it


def draw_confusions(counts: NDArray[np.integer[Any]], card: Card) -> Image.Image:
    """What the pictures of each class were taken for; classes with wnids in the order of the synset tree.

    Of many classes of which few have pictures or were given, these alone are drawn, with their names.

    Args:
        counts: (classes, classes), the truth in rows.
        card: of the weights, for the names.
    """
    tree = tree_wnids(card)
    every, groups = (tuple(range(card.classes)), ()) if tree is None else tree_order(tree)
    used = (counts.sum(0) + counts.sum(1)) > 0
    order = [class_id for class_id in every if used[class_id]]
    if not card.classes > WITH_NAMES >= len(order):
        order = list(every)
    return draw_counts(*_confused(counts, card, order), groups)


def confusions_svg(counts: NDArray[np.integer[Any]], card: Card) -> str:
    """The same as vectors, with the names of all classes that have pictures or were given, however many these are."""
    tree = tree_wnids(card)
    every = range(card.classes) if tree is None else tree_order(tree)[0]
    used = (counts.sum(0) + counts.sum(1)) > 0
    return counts_svg(*_confused(counts, card, [class_id for class_id in every if used[class_id]]))


def _confused(
    counts: NDArray[np.integer[Any]], card: Card, order: list[int]
) -> tuple[NDArray[np.integer[Any]], list[str], tuple[str, str]]:
    """Counts of some classes, their names, and the lines above."""
    tree = tree_wnids(card) is not None
    names = [printable(class_name(card, class_id)) for class_id in order]
    if tree:
        names = [name.partition(",")[0] for name in names]
    words = "Classes (rows) and what they were taken for (columns)"
    words += f", {len(order)} of {card.classes}" * (len(order) < card.classes)
    words += ", in the order of the synset tree" * tree
    shade = "the share of the row" if len(order) <= WITH_NAMES else "the square root of the share of the row"
    lines = (words, f"right: {counts.trace()} of {counts.sum()} pictures; colours go with {shade}")
    return counts[np.ix_(order, order)], names, lines


def draw_reliability(*found: Calibration) -> Image.Image:
    """Accuracy over confidence in bins, side by side, such as before and after a temperature.

    Bars are the share of right answers of the pictures in a bin. The gap to their mean confidence is shaded. On the
    dashed diagonal both are equal. Below stands how many pictures each bin has, with the mean accuracy and confidence.

    >>> from convnets_torch.evaluation.calibration import calibrate
    >>> draw_reliability(calibrate(np.eye(3), np.array([0, 1, 1]))).size
    (400, 580)
    """
    margin, between = 28 * SCALE, 44 * SCALE
    font, large = Letters(14 * SCALE), Letters(17 * SCALE)
    wide = (PLOT + 44) * SCALE
    top, bottom = 96 * SCALE, (96 + PLOT) * SCALE
    width = 2 * margin + len(found) * wide + (len(found) - 1) * (between - 44 * SCALE)
    page = Image.new("RGB", (width, bottom + (BELOW + 114) * SCALE), PAPER)
    draw = Pen(page)
    write_lines(draw, ("Reliability",), margin, font, large, SCALE)
    for number, each in enumerate(found):
        left = margin + 44 * SCALE + number * wide
        _panel(draw, each, (left, top, left + PLOT * SCALE - 20 * SCALE, bottom), font)
    y, size = page.height - 22 * SCALE, 12 * SCALE
    x = margin
    for text, color in (("accuracy", BAR), ("gap to confidence", GAP)):
        draw.rectangle((x, y - size // 2, x + size, y + size // 2), fill=color)
        draw.text((x + size + 6 * SCALE, y), text, INK, font, anchor="lm")
        x += size + round(font.getlength(text)) + 30 * SCALE
    return page.resize((page.width // SCALE, page.height // SCALE), Image.Resampling.LANCZOS)


def _panel(draw: Pen, found: Calibration, box: tuple[int, int, int, int], font: Letters) -> None:
    left, top, right, bottom = box
    words = "as it is" if found.temperature == 1 else f"temperature {found.temperature:.3g}"
    draw.text((left, top - 46 * SCALE), words, INK, font)
    draw.text((left, top - 25 * SCALE), f"ECE {found.ece:.2%}, {found.counts.sum()} pictures", GREY, font)

    def down(value: float) -> float:
        return bottom - (bottom - top) * value

    for mark in (0, 0.2, 0.4, 0.6, 0.8, 1):
        draw.line((left, down(mark), right, down(mark)), LINE, SCALE)
        draw.text((left - 8 * SCALE, down(mark)), f"{mark:.1f}", GREY, font, anchor="rm")
    step = (right - left) / len(found.counts)
    base = bottom + (26 + BELOW) * SCALE
    for number, count in enumerate(found.counts.tolist()):
        if not count:
            continue
        edges = round(left + number * step) + SCALE, round(left + (number + 1) * step) - SCALE
        accuracy, confidence = float(found.accuracies[number]), float(found.confidences[number])
        if accuracy:
            draw.rectangle((edges[0], down(accuracy), edges[1], bottom), fill=BAR)
        low, high = sorted((accuracy, confidence))
        draw.rectangle((edges[0], down(high), edges[1], down(low)), fill=GAP)
        draw.line((edges[0], down(accuracy), edges[1], down(accuracy)), INK, SCALE)
        height = max(SCALE, round(BELOW * SCALE * count / found.counts.max()))
        draw.rectangle((edges[0], base - height, edges[1], base), fill=GREY)
    for part in range(0, 40, 2):
        ends = [(left + (right - left) * at / 40, down(at / 40)) for at in (part, part + 1)]
        draw.line(ends, INK, SCALE)
    draw.line((left, bottom, right, bottom), GREY, SCALE)
    draw.line((left, base, right, base), GREY, SCALE)
    for value, color in ((found.accuracy, BAR), (found.confidence, CLASS_COLORS[4])):
        x = left + (right - left) * value
        draw.line((x, base - BELOW * SCALE, x, base), color, 2 * SCALE)
    for mark in (0, 0.2, 0.4, 0.6, 0.8, 1):
        draw.text((left + (right - left) * mark, base + 6 * SCALE), f"{mark:.1f}", GREY, font, anchor="ma")
    words = f"accuracy {found.accuracy:.3f}, confidence {found.confidence:.3f}"
    draw.text((left, base + 26 * SCALE), words, GREY, font)


def mistakes_sheet(
    mistakes: Sequence[Mistake],
    pictures: Sequence[Image.Image],
    title: str,
    columns: int = COLUMNS,
) -> Image.Image:
    """Mistakes as a contact sheet: each picture's name, what it was taken for, what it is, and what both are.

    Args:
        mistakes: as `find_mistakes` gives them.
        pictures: of each, as `small_pictures` gives them.
        title: above all.
        columns: pictures in a line.
    """
    tiles = []
    for mistake, picture in zip(mistakes, pictures, strict=True):
        truth, given = mistake.short_words
        words = (
            Path(mistake.path).name,
            f"{chance(mistake.probability)} {given}",
            f"{chance(mistake.of_truth)} {truth} (truth)",
            mistake.common,
        )
        tiles.append((squared(picture), "\n".join(printable(line) or " " for line in words)))
    return sheet(tiles, columns, SIDE, printable(title) if mistakes else f"{printable(title)}: there are none")


def small_pictures(
    paths: Sequence[str | os.PathLike[str]],
    exif: bool = True,
    *,
    max_pixels: int | None = None,
    depth: Depth = None,
    background: Background = None,
) -> dict[str, Image.Image]:
    """Path -> a picture whose longer side is 230 pixels; a grey one with a sentence where the file cannot be read.

    Args:
        paths: may name a file several times.
        exif: whether to turn pictures as their EXIF data say, as the card's preprocessing has it.
        max_pixels, depth, background: as for `read_picture`.
    """
    reading = Reading(exif, max_pixels, True, depth, background, least=(SIDE, SIDE))
    return {str(path): _small(path, reading) for path in dict.fromkeys(paths)}


def squared(picture: Image.Image) -> Image.Image:
    """The picture in the middle of a white square of 230 pixels."""
    square = Image.new("RGB", (SIDE, SIDE), PAPER)
    square.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    return square


def chance(probability: float) -> str:
    """Three decimals, and what is too small for them by its power of ten.

    >>> chance(0.25), chance(0.00004), chance(0)
    ('0.250', '4e-05', '0')
    """
    return f"{probability:.3f}" if probability >= 0.0005 else f"{probability:.0e}" if probability else "0"


def _small(path: str | os.PathLike[str], reading: Reading) -> Image.Image:
    try:
        image = open_upright(path, reading).image
        small = reduced(image, SIDE, Image.Resampling.BILINEAR).convert("RGB")
        return ImageOps.contain(small, (SIDE, SIDE), Image.Resampling.BILINEAR)  # a digit of 8 x 8 pixels is seen too
    except (OSError, ValueError) as error:
        words = str(error) if Path(path).exists() else f"{Path(path).name} is no longer there"
        return _sentence(words)


def _sentence(words: str) -> Image.Image:
    """A grey square with words in lines."""
    square, font = Image.new("RGB", (SIDE, SIDE), MISSING), Letters(15)
    draw = Pen(square)
    lines = [""]
    for word in drawable(words).split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > SIDE - 20:
            lines.append(word)
        else:
            lines[-1] = longer
    for number, line in enumerate(lines[:8]):
        draw.text((10, 12 + 22 * number), shorten(line, font, SIDE - 20), INK, font)
    return square

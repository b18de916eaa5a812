"""Charts of an evaluation: confusion matrix, reliability diagram and contact sheets of mistakes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from convnets_torch.card import Card
from convnets_torch.embeddings.image_map_drawing import reduced
from convnets_torch.evaluation.calibration import Calibration
from convnets_torch.evaluation.metrics import Mistake
from convnets_torch.images.decoding import AS_IS, Reading, decode
from convnets_torch.text import printable
from convnets_torch.visualization import charts
from convnets_torch.visualization.charts import WITH_NAMES, Color, draw_counts, new_axes
from convnets_torch.visualization.letters import Letters, Pen
from convnets_torch.visualization.overlays import INK, PAPER, drawable, sheet, shorten
from convnets_torch.wordnet.hierarchy import tree_order
from convnets_torch.wordnet.targets import class_name, tree_wnids

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIDE = 230  # longer side in pixels of a picture on a contact sheet
SHEET_COLUMNS = 5
MISSING: Color = (200, 200, 200)


def draw_confusions(
    counts: NDArray[np.integer[Any]], card: Card, *, every_name: bool = False, ax: Axes | None = None
) -> Axes:
    """Draw the confusion matrix; classes with wnids are in the order of the synset tree.

    If only a few of many classes have pictures or were predicted, only those are drawn, with their names.

    Args:
        counts: (classes, classes), truth in rows.
        card: of the weights, for the names.
        every_name: label every class that has pictures or was predicted, however many there are.
    """
    tree = tree_wnids(card)
    every, groups = (tuple(range(card.classes)), ()) if tree is None else tree_order(tree)
    used = (counts.sum(0) + counts.sum(1)) > 0
    order = [class_id for class_id in every if used[class_id]]
    if not every_name and not card.classes > WITH_NAMES >= len(order):
        order = list(every)
    names = [printable(class_name(card, class_id)) for class_id in order]
    if tree is not None:
        names = [name.partition(",")[0] for name in names]
    words = "Classes (rows) and what they were taken for (columns)"
    words += f", {len(order)} of {card.classes}" * (len(order) < card.classes)
    words += ", in the order of the synset tree" * (tree is not None)
    shade = "the share of the row" if len(order) <= WITH_NAMES else "the square root of the share of the row"
    lines = (words, f"right: {counts.trace()} of {counts.sum()} pictures; colours go with {shade}")
    return draw_counts(counts[np.ix_(order, order)], names, lines, groups, every_name=every_name, ax=ax)


def draw_reliability(*found: Calibration, axes: Sequence[Axes] | None = None) -> list[Axes]:
    """Draw reliability diagrams side by side, e.g. before and after a temperature.

    Args:
        found: one or more calibrations.
        axes: one for each; by default those of a new figure.

    >>> from convnets_torch.evaluation.calibration import calibrate
    >>> [ax] = draw_reliability(calibrate(np.eye(3), np.array([0, 1, 1])))
    >>> ax.get_title(loc="left")
    'Reliability as it is\\nECE 9.05%, 3 pictures\\naccuracy 0.667, confidence 0.576'
    """
    axes = axes or new_axes(len(found), width=400 * len(found), height=560)
    for each, ax in zip(found, axes, strict=True):
        words = "as it is" if each.temperature == 1 else f"with temperature {each.temperature:.3g}"
        lines = (f"Reliability {words}", f"ECE {each.ece:.2%}, {each.counts.sum()} pictures")
        means = each.accuracy, each.confidence
        charts.draw_reliability(each.counts, each.accuracies, each.confidences, means, lines, ax=ax)
    return list(axes)


def mistakes_sheet(
    mistakes: Sequence[Mistake],
    pictures: Sequence[Image.Image],
    title: str,
    columns: int = SHEET_COLUMNS,
) -> Image.Image:
    """Draw mistakes as a contact sheet with file name, predicted class, true class and their common ancestor.

    Args:
        mistakes: as `find_mistakes` returns them.
        pictures: one for each mistake, as `small_pictures` returns them.
        title: title of the sheet.
        columns: pictures in a row.
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
        square = Image.new("RGB", (SIDE, SIDE), PAPER)
        square.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
        tiles.append((square, "\n".join(printable(line) or " " for line in words)))
    return sheet(tiles, columns, SIDE, printable(title) if mistakes else f"{printable(title)}: there are none")


def small_pictures(paths: Sequence[str | os.PathLike[str]], reading: Reading = AS_IS) -> dict[str, Image.Image]:
    """Return path -> thumbnail with a longer side of 230 pixels; a grey square with the error for an unreadable file.

    Args:
        paths: may contain duplicates.
        reading: how files are decoded; truncated ones always are.
    """
    reading = reading._replace(allow_truncated=True, least=(SIDE, SIDE))
    return {str(path): _thumbnail(path, reading) for path in dict.fromkeys(paths)}


def chance(probability: float) -> str:
    """Format a probability with three decimals, or in scientific notation if it is too small for them.

    >>> chance(0.25), chance(0.00004), chance(0)
    ('0.250', '4e-05', '0')
    """
    return f"{probability:.3f}" if probability >= 0.0005 else f"{probability:.0e}" if probability else "0"


def _thumbnail(path: str | os.PathLike[str], reading: Reading) -> Image.Image:
    try:
        image = decode(path, reading).image
        small = reduced(image, SIDE, Image.Resampling.BILINEAR).convert("RGB")
        return ImageOps.contain(small, (SIDE, SIDE), Image.Resampling.BILINEAR)  # enlarges tiny pictures too
    except (OSError, ValueError) as error:
        return _message_tile(str(error) if Path(path).exists() else f"{Path(path).name} no longer exists")


def _message_tile(words: str) -> Image.Image:
    """A grey square with wrapped text."""
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

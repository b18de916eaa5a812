"""How training went, epoch by epoch: as a table, as a picture, and for TensorBoard."""

from __future__ import annotations

import csv
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from PIL import Image

from convnets_torch.explain.histograms import BAR
from convnets_torch.files import replacing
from convnets_torch.plots import LINE, SCALE, Color, round_marks, start_plot, with_legend
from convnets_torch.render import CLASS_COLORS, GREY, PAPER

TRAIN, VAL = CLASS_COLORS[4], CLASS_COLORS[5]
DOTTED = 60  # epochs up to which each has its dot
WIDE = 30.0  # losses that are so many times larger than others need an axis of logarithms


@dataclass(frozen=True)
class EpochRow:
    """One finished epoch.

    Attributes:
        stage: 1 trains the last layer on cached features, 2 the unfrozen layers.
        epoch: 1, 2, ... over both stages.
        train_loss: mean over the epoch's batches, each with the parameters that it found.
        val_loss: mean over the validation pictures, after the epoch.
        val_accuracy: share of them whose class was found, 0 to 1; None where pictures have several labels.
        rate: learning rate of the last step.
        seconds: that the epoch took, validation included.
        val_mean_average_precision: of the validation pictures, 0 to 1, where pictures have several labels; else None.
    """

    stage: int
    epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float | None
    rate: float
    seconds: float
    val_mean_average_precision: float | None = None

    @property
    def measure(self) -> str:
        """Name of the figure that epochs are compared by, which is the one that is not None."""
        return "val_mean_average_precision" if self.val_accuracy is None else "val_accuracy"

    @property
    def score(self) -> float:
        """That figure."""
        return float(getattr(self, self.measure))

    @property
    def words(self) -> str:
        """Its name in words."""
        return self.measure.removeprefix("val_").replace("_", " ")

    def to_dict(self) -> dict[str, Any]:
        """All figures that are not None."""
        names = ("stage", "epoch", "train_loss", "val_loss", self.measure, "rate", "seconds")
        return {name: getattr(self, name) for name in names}


def best_epoch(rows: Sequence[EpochRow]) -> EpochRow:
    """The row of the highest validation accuracy, or mean average precision; of equal ones that of the lowest loss.

    Of those that have equal losses too, it is the earliest.

    >>> rows = [EpochRow(1, 1, 1.2, 1.1, 0.8, 0.1, 2), EpochRow(2, 2, 0.9, 1.0, 0.8, 0.1, 9)]
    >>> best_epoch(rows).epoch
    2
    """
    return min(rows, key=lambda row: (-row.score, row.val_loss, row.epoch))


def save_history_csv(rows: Sequence[EpochRow], path: str | os.PathLike[str]) -> None:
    """Write a row for each epoch, under the names of `EpochRow` that are not None; the file appears whole.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(rows[0].to_dict())
        table.writerows(row.to_dict().values() for row in rows)


def draw_history(rows: Sequence[EpochRow]) -> Image.Image:
    """Losses over the epochs, and below them the accuracy or mean average precision.

    The best epoch and the border of the stages are marked.

    Losses that differ more than 30 times stand on an axis of logarithms.

    Args:
        rows: of one epoch or more, in their order.

    Returns:
        RGB, 800 pixels wide.

    Raises:
        ValueError: there are no rows, or a loss or accuracy is NaN or infinite.

    >>> draw_history([EpochRow(1, 1, 1.2, 1.1, 0.8, 0.1, 2), EpochRow(2, 2, 0.9, 1.0, 0.9, 0.1, 9)]).size
    (800, 892)
    """
    if not rows:
        raise ValueError("there is no finished epoch to draw; train for one at least")
    for row in rows:
        for name in ("train_loss", "val_loss", row.measure):
            if not math.isfinite(value := getattr(row, name)):
                raise ValueError(f"epoch {row.epoch} has a {name} of {value}; draw the epochs before it")
    best, last = best_epoch(rows), rows[-1]
    losses = [value for row in rows for value in (row.train_loss, row.val_loss)]
    lowest, highest = min(losses), max(losses)
    wide = lowest > 0 and highest / lowest > WIDE
    first = sum(row.stage == 1 for row in rows)
    epochs = f"{len(rows)} epochs, {first} of the last layer alone" if len(rows) > 1 else "1 epoch"
    scores = [row.score for row in rows]
    floor = max(0.0, math.floor(min(scores) * 10 - 1e-9) / 10)
    above = _draw_lines(
        rows,
        ("Loss, by epoch", epochs + (", on a logarithmic axis" if wide else "")),
        {
            f"training, {last.train_loss:.4g} at last": (TRAIN, [row.train_loss for row in rows]),
            f"validation, {last.val_loss:.4g} at last": (VAL, [row.val_loss for row in rows]),
        },
        _decades(lowest, highest) if wide else round_marks(0, highest * 1.05 or 1),
        best,
        wide,
    )
    below = _draw_lines(
        rows,
        (
            f"{best.words.capitalize()} on the validation pictures, by epoch",
            f"best: {best.score:.4f} at epoch {best.epoch}, marked by a ring",
        ),
        {f"validation, {last.score:.4f} at last": (VAL, scores)},
        round_marks(floor, 1),
        best,
    )
    page = Image.new("RGB", (above.width, above.height + below.height), PAPER)
    page.paste(above)
    page.paste(below, (0, above.height))
    return page


def _draw_lines(
    rows: Sequence[EpochRow],
    words: Sequence[str],
    lines: dict[str, tuple[Color, list[float]]],
    marks: list[float],
    best: EpochRow,
    logarithmic: bool = False,
) -> Image.Image:
    """One plot: a line of each colour over the epochs, and the axis from the least to the greatest of all."""
    page, draw, font, (left, top, right, bottom) = start_plot(words, len(lines))
    scale = math.log10 if logarithmic else float
    every = [*marks, *(value for _, values in lines.values() for value in values)]
    low, high = scale(min(every)), scale(max(every))
    epochs = [row.epoch for row in rows]

    def across(epoch: float) -> float:
        if len(rows) == 1:
            return (left + right) / 2
        return left + (right - left) * (epoch - epochs[0]) / (epochs[-1] - epochs[0])

    def down(value: float) -> float:
        return bottom - (bottom - top) * (scale(value) - low) / (high - low)

    for mark in marks:
        draw.line((left, down(mark), right, down(mark)), LINE, SCALE)
        draw.text((left - 8 * SCALE, down(mark)), f"{mark:.4g}", GREY, font, anchor="rm")
    numbers = [int(mark) for mark in round_marks(epochs[0], epochs[-1]) if mark == int(mark)]
    for number in dict.fromkeys([epochs[0], *numbers, epochs[-1]]):
        near = min(abs(across(number) - across(end)) for end in (epochs[0], epochs[-1]))
        if near > 40 * SCALE or number in (epochs[0], epochs[-1]):
            draw.text((across(number), bottom + 8 * SCALE), str(number), GREY, font, anchor="ma")
    for before, after in itertools.pairwise(rows):
        if before.stage != after.stage:
            border = (across(before.epoch) + across(after.epoch)) / 2
            for dash in range(top, bottom, 8 * SCALE):
                draw.line((border, dash, border, min(bottom, dash + 4 * SCALE)), GREY, SCALE)
            draw.text((border - 6 * SCALE, top - 4 * SCALE), f"stage {before.stage}", GREY, font, anchor="rd")
            draw.text((border + 6 * SCALE, top - 4 * SCALE), f"stage {after.stage}", GREY, font, anchor="ld")
    for color, values in lines.values():
        points = [(across(epoch), down(value)) for epoch, value in zip(epochs, values, strict=True)]
        draw.line([xy for point in points for xy in point], color, 2 * SCALE, joint="curve")
        for x, y in points if len(points) <= DOTTED else []:
            draw.ellipse((x - 4 * SCALE, y - 4 * SCALE, x + 4 * SCALE, y + 4 * SCALE), fill=color)
        x, y = points[epochs.index(best.epoch)]
        if color == VAL:
            draw.ellipse((x - 8 * SCALE, y - 8 * SCALE, x + 8 * SCALE, y + 8 * SCALE), outline=BAR, width=2 * SCALE)
    colors = [color for color, _ in lines.values()]
    return with_legend(page, draw, font, (left, top, right, bottom), list(lines), colors)


def _decades(low: float, high: float) -> list[float]:
    """Marks of an axis of logarithms: powers of ten, and 2 and 5 times them where there are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= 3 else (1,)
    step = max(1, (last - first) // 8)
    marks = [factor * 10.0**place for place in range(first, last + 1, step) for factor in factors]
    return [mark for mark in marks if low <= mark <= high]


@contextmanager
def tensorboard_log(folder: str | os.PathLike[str], first_epoch: int = 1) -> Iterator[Callable[[EpochRow], None]]:
    """Give a function that writes an epoch into TensorBoard's files in a folder; each is on disk when it returns.

    Args:
        folder: is made where it is missing.
        first_epoch: that will be written. What an earlier run wrote of this epoch and later ones is then no longer
            shown, so that a run that goes on after a kill shows none twice.

    Raises:
        ImportError: tensorboard is not installed.
        OSError: the folder cannot be written to.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError(
            "events for TensorBoard need tensorboard: pip install 'convnets-torch[tensorboard]'"
        ) from None
    writer = SummaryWriter(str(folder), purge_step=first_epoch)

    def log(row: EpochRow) -> None:
        for name, value in row.to_dict().items():
            if name != "epoch":
                writer.add_scalar(name, value, row.epoch)
        writer.flush()

    try:
        yield log
    finally:
        writer.close()

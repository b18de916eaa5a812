"""Precision, recall, F1 and the area under the ROC curve: of each class, and their means.

Source: An introduction to ROC analysis, Pattern Recognition Letters 27, 2006 (the area as a rank statistic, one class
against all others).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnets_torch.card import Activation
from convnets_torch.training.answers import VALUES, blocks

COLUMNS = 16  # classes whose outputs are sorted together, at least: each time all pages of a mapped file are read
METRICS = ("precision", "recall", "f1", "auc")


@dataclass(frozen=True)
class ClassMetrics:
    """How well one class is told from the others; all figures are 0 to 1.

    Attributes:
        class_id: of the class.
        pictures: of this class.
        precision: share of this class among the pictures that were taken for it; 0 where there are none.
        recall: share of this class's pictures that were taken for it, 1 less its top-1 error.
        f1: the harmonic mean of both.
        auc: the chance that a picture of this class gets a higher probability of it than a picture of another, where a
            tie is a half; None where there are no others.
    """

    class_id: int
    pictures: int
    precision: float
    recall: float
    f1: float
    auc: float | None


def measure_classes(
    logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]], given: NDArray[np.integer[Any]],
    activation: Activation,
) -> tuple[ClassMetrics, ...]:  # fmt: skip
    """Of each class that has pictures, by class id.

    Args:
        logits: (N, classes); may be mapped from a disk.
        labels: (N,) class ids.
        given: (N,) class ids, the most probable one of each picture.
        activation: of the card. With "none" the area is that of the outputs.

    Raises:
        ValueError: as `blocks`: no pictures, outputs that are not finite, labels that do not fit.

    >>> logits = np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 0.5]])
    >>> first, _ = measure_classes(logits, np.array([0, 1, 1]), logits.argmax(1), "softmax")
    >>> first.precision, first.recall, round(first.f1, 4), first.auc
    (0.5, 1.0, 0.6667, 1.0)
    """
    classes = logits.shape[-1]
    pictures = np.bincount(labels, minlength=classes)
    taken = np.bincount(given, minlength=classes)
    right = np.bincount(labels[labels == given], minlength=classes)
    present = np.flatnonzero(pictures)
    areas = _areas(logits, labels, present, activation)
    return tuple(
        ClassMetrics(
            class_id,
            int(pictures[class_id]),
            float(right[class_id] / max(taken[class_id], 1)),
            float(right[class_id] / pictures[class_id]),
            float(2 * right[class_id] / (taken[class_id] + pictures[class_id])),
            area,
        )
        for class_id, area in zip(present.tolist(), areas, strict=True)
    )


def class_means(found: Sequence[ClassMetrics]) -> dict[str, dict[str, float | None]]:
    """Means over the classes that have pictures: "macro", each class alike; "weighted", by its pictures.

    >>> class_means([ClassMetrics(0, 1, 0.5, 1.0, 0.6, None), ClassMetrics(1, 3, 1.0, 0.5, 0.7, 0.9)])["macro"]
    {'precision': 0.75, 'recall': 0.75, 'f1': 0.6499999999999999, 'auc': 0.9}
    """
    means: dict[str, dict[str, float | None]] = {"macro": {}, "weighted": {}}
    for name in METRICS:
        known = [(value, each.pictures) for each in found if (value := getattr(each, name)) is not None]
        values, weights = np.array(known).reshape(-1, 2).T
        means["macro"][name] = float(values.mean()) if known else None
        means["weighted"][name] = float(np.average(values, weights=weights)) if known else None
    return means


def _areas(
    logits: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    present: NDArray[np.int64],
    activation: Activation,
) -> list[float | None]:
    """The area under the ROC curve of each class in `present`, from the ranks of its pictures among all."""
    count = len(labels)
    shift = np.zeros(count)
    for numbers, values, _ in blocks(logits, labels):
        if activation == "softmax":  # sigmoids, and outputs, are in the order of logits
            highest = values.max(1)
            shift[numbers] = highest + np.log(np.exp(values - highest[:, None]).sum(1))
    found: list[float | None] = []
    step = max(COLUMNS, VALUES // count)
    for start in range(0, len(present), step):
        some = present[start : start + step]
        columns = np.ascontiguousarray(np.asarray(logits[:, some], np.float64).T) - shift
        for class_id, values in zip(some, columns, strict=True):
            own, ordered = values[labels == class_id], np.sort(values)
            others = count - len(own)
            ranks = (np.searchsorted(ordered, own) + np.searchsorted(ordered, own, "right") + 1) / 2
            area = ranks.sum() - len(own) * (len(own) + 1) / 2
            found.append(float(area / (len(own) * others)) if others else None)
    return found

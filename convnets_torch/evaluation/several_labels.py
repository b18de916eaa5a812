"""Multi-label metrics: average precision, precision, recall and F1 of each label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnets_torch.card import Card
from convnets_torch.wordnet.targets import class_name, class_wnid

CLASSES_AT_ONCE = 64  # classes read together from memory-mapped outputs


@dataclass(frozen=True)
class LabelScores:
    """Metrics of one label, or of all labels together, at a probability threshold of 0.5.

    Attributes:
        true_positives: pictures that have the label and a probability of 0.5 or more.
        false_positives: pictures without the label and a probability of 0.5 or more.
        false_negatives: pictures that have the label and a probability below 0.5.
        average_precision: of the pictures sorted by output, 0 to 1; None if no picture has the label.
    """

    true_positives: int
    false_positives: int
    false_negatives: int
    average_precision: float | None = None

    @property
    def pictures(self) -> int:
        """Number of pictures that have the label."""
        return self.true_positives + self.false_negatives

    @property
    def precision(self) -> float:
        """Share of the predicted labels that are right, 0 to 1; 0 if none was predicted."""
        return self.true_positives / max(1, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """Share of the true labels that were predicted, 0 to 1; 0 if there are none."""
        return self.true_positives / max(1, self.pictures)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 0 to 1."""
        return 2 * self.true_positives / max(1, self.true_positives + self.false_positives + self.pictures)

    @property
    def figures(self) -> dict[str, float | None]:
        """Average precision, precision, recall and F1 by name; all None if no picture has the label."""
        names = ("average_precision", "precision", "recall", "f1")
        return {name: getattr(self, name) if self.pictures else None for name in names}


@dataclass(frozen=True)
class SeveralLabels:
    """Metrics of all labels.

    Attributes:
        pictures: number of pictures.
        unlabelled: number of pictures without a label.
        labels: scores of each class, by class id.
    """

    pictures: int
    unlabelled: int
    labels: tuple[LabelScores, ...]

    @property
    def macro(self) -> dict[str, float]:
        """Average precision, precision, recall and F1, each averaged over the labels that some picture has."""
        present = [each.figures for each in self.labels if each.pictures]
        return {name: float(np.mean([figures[name] for figures in present])) for name in present[0]}

    @property
    def mean_average_precision(self) -> float:
        """Mean average precision over the labels that some picture has, 0 to 1."""
        return self.macro["average_precision"]

    @property
    def micro(self) -> LabelScores:
        """Scores of the labels of all classes together, without an average precision."""
        columns = zip(
            *((each.true_positives, each.false_positives, each.false_negatives) for each in self.labels), strict=True
        )
        return LabelScores(*map(sum, columns))

    def to_dict(self, card: Card) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "unlabelled": self.unlabelled,
            "mean_average_precision": self.mean_average_precision,
            "macro": {name: value for name, value in self.macro.items() if name != "average_precision"},
            "micro": {name: value for name, value in self.micro.figures.items() if name != "average_precision"},
            "by_class": [
                {
                    "class_id": class_id,
                    "wnid": class_wnid(card, class_id),
                    "words": class_name(card, class_id),
                    "pictures": each.pictures,
                    **vars(each),
                    **each.figures,
                }
                for class_id, each in enumerate(self.labels)
            ],
        }


def average_precision(outputs: NDArray[np.floating[Any]], truth: NDArray[np.bool_]) -> float:
    """Return the mean of the precision at each distinct threshold, weighted by the increase in recall.

    It is neither interpolated nor sampled at fixed recalls, as Pascal VOC's is.

    Args:
        outputs: (N,), higher for a more likely label.
        truth: (N,) bool, which pictures have the label; at least one.

    Raises:
        ValueError: no picture has the label.

    >>> average_precision(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
    0.8333333333333333
    """
    if not truth.any():
        raise ValueError("no picture has the label, so recall is undefined; leave the label out")
    order = np.argsort(-outputs, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(outputs[order])), len(order) - 1)  # the last index of each distinct output
    right = np.cumsum(truth[order])[ends]
    return float(np.sum(np.diff(right, prepend=0) * right / (ends + 1)) / right[-1])


def score_labels(logits: NDArray[np.floating[Any]], truth: NDArray[np.bool_]) -> SeveralLabels:
    """Compute multi-label metrics.

    Args:
        logits: (N, classes) before the sigmoid; may be memory-mapped.
        truth: (N, classes) bool, whether a picture has a label.

    Raises:
        ValueError: shapes differ, or no picture has a label.

    >>> found = score_labels(np.array([[2.0, -1.0], [1.0, 3.0]]), np.array([[True, False], [False, True]]))
    >>> found.mean_average_precision, found.macro["precision"], found.micro.precision
    (1.0, 0.75, 0.6666666666666666)
    """
    if truth.ndim != 2 or logits.shape != truth.shape or truth.dtype != np.bool_:
        raise ValueError(
            f"outputs are {logits.shape} and labels {truth.shape} {truth.dtype}; give (N, classes) of both, labels bool"
        )
    if not truth.any():
        raise ValueError("no picture has a label; give pictures with labels")
    labels = []
    for start in range(0, truth.shape[1], CLASSES_AT_ONCE):
        block = np.array(logits[:, start : start + CLASSES_AT_ONCE], np.float64, order="F")
        for outputs, own in zip(block.T, truth.T[start : start + CLASSES_AT_ONCE], strict=True):
            given = outputs >= 0
            counts = (int((given & own).sum()), int((given & ~own).sum()), int((~given & own).sum()))
            labels.append(LabelScores(*counts, average_precision(outputs, own) if own.any() else None))
    return SeveralLabels(len(truth), int((~truth.any(1)).sum()), tuple(labels))


def figure(value: float | None) -> str:
    """Format with four decimals, or as a dash if None."""
    return "-" if value is None else f"{value:.4f}"


def learnt_several(card: Card) -> bool:
    """Whether a network was fine-tuned on multi-label pictures."""
    about = card.unknown.get("finetuning")
    data = about.get("data") if isinstance(about, dict) else None
    return isinstance(data, dict) and data.get("several_labels") is True and card.activation == "sigmoid"


def check_several(card: Card) -> None:
    """Raise ValueError if the card's activation is not sigmoid, which multi-label pictures need."""
    if card.activation != "sigmoid":
        raise ValueError(
            f"the pictures have several labels, but the network's activation is {card.activation}, which does not give"
            " each label its own probability; evaluate a network with sigmoid, such as one fine-tuned on such pictures,"
            " or give each picture one label"
        )

"""How good answers are where a picture may have several labels: average precision, precision and recall of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnets_torch.card import Card
from convnets_torch.wordnet.targets import class_name, class_wnid

COLUMNS = 64  # classes that are read together from outputs on a disk


@dataclass(frozen=True)
class LabelScores:
    """How well one label is told, or those of all classes together.

    Attributes:
        true_positives: pictures that have the label, and whose probability of it is 0.5 or more.
        false_positives: those that have it not, and whose probability is 0.5 or more.
        false_negatives: those that have it, and whose probability is below.
        average_precision: of the pictures sorted by their outputs, 0 to 1; None where no picture has the label.
    """

    true_positives: int
    false_positives: int
    false_negatives: int
    average_precision: float | None = None

    @property
    def pictures(self) -> int:
        """How many have the label."""
        return self.true_positives + self.false_negatives

    @property
    def precision(self) -> float:
        """Share of the given labels that are right, 0 to 1; 0 where none was given."""
        return self.true_positives / max(1, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """Share of the pictures' labels that were given, 0 to 1; 0 where there are none."""
        return self.true_positives / max(1, self.pictures)

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall, 0 to 1."""
        return 2 * self.true_positives / max(1, self.true_positives + self.false_positives + self.pictures)

    @property
    def figures(self) -> dict[str, float | None]:
        """Average precision, precision, recall and F1 by name; all None where no picture has the label."""
        names = ("average_precision", "precision", "recall", "f1")
        return {name: getattr(self, name) if self.pictures else None for name in names}


@dataclass(frozen=True)
class SeveralLabels:
    """How well all labels are told.

    Attributes:
        pictures: how many there are.
        unlabelled: how many of them have no label.
        labels: of each class, by class id.
    """

    pictures: int
    unlabelled: int
    labels: tuple[LabelScores, ...]

    @property
    def macro(self) -> dict[str, float]:
        """Average precision, precision, recall and F1, each the mean over the labels that some picture has."""
        had = [each.figures for each in self.labels if each.pictures]
        return {name: float(np.mean([figures[name] for figures in had])) for name in had[0]}

    @property
    def mean_average_precision(self) -> float:
        """The mean over the labels that some picture has, 0 to 1."""
        return self.macro["average_precision"]

    @property
    def micro(self) -> LabelScores:
        """Of the labels of all classes together, without an average precision."""
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
    """Precision at each distinct output, taken as the threshold, weighted by the recall that it adds.

    It is neither interpolated nor taken at fixed points of recall, as Pascal VOC's is.

    Args:
        outputs: (N,), the higher the surer.
        truth: (N,), which pictures have the label; one at least.

    Raises:
        ValueError: no picture has it.

    >>> average_precision(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
    0.8333333333333333
    """
    if not truth.any():
        raise ValueError("no picture has the label, so there is no recall; leave the label out")
    order = np.argsort(-outputs, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(outputs[order])), len(order) - 1)  # the last of each distinct output
    right = np.cumsum(truth[order])[ends]
    return float(np.sum(np.diff(right, prepend=0) * right / (ends + 1)) / right[-1])


def score_labels(logits: NDArray[np.floating[Any]], truth: NDArray[np.bool_]) -> SeveralLabels:
    """Measure how well labels are told of which a picture may have several.

    Args:
        logits: (N, classes) before the sigmoid; may be mapped from a disk.
        truth: (N, classes), whether a picture has a label.

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
        raise ValueError("no picture has a label, so there is nothing to be found; give some that have")
    labels = []
    for start in range(0, truth.shape[1], COLUMNS):
        block = np.array(logits[:, start : start + COLUMNS], np.float64, order="F")
        for outputs, own in zip(block.T, truth.T[start : start + COLUMNS], strict=True):
            given = outputs >= 0
            counts = (int((given & own).sum()), int((given & ~own).sum()), int((~given & own).sum()))
            labels.append(LabelScores(*counts, average_precision(outputs, own) if own.any() else None))
    return SeveralLabels(len(truth), int((~truth.any(1)).sum()), tuple(labels))


def figure(value: float | None) -> str:
    """Four decimals, or a dash where there is none."""
    return "-" if value is None else f"{value:.4f}"


def learnt_several(card: Card) -> bool:
    """Whether a network was fine-tuned on pictures with several labels."""
    about = card.unknown.get("finetuning")
    data = about.get("data") if isinstance(about, dict) else None
    return isinstance(data, dict) and data.get("several_labels") is True and card.activation == "sigmoid"


def check_several(card: Card) -> None:
    """Refuse several labels for a network whose classes exclude each other.

    Raises:
        ValueError: the card's activation is not sigmoid.
    """
    if card.activation != "sigmoid":
        raise ValueError(
            f"the pictures have several labels, but the network's activation is {card.activation}, which gives no label"
            " a probability of its own; evaluate a network with sigmoid, such as one that was fine-tuned on them, or"
            " give each picture one label"
        )

"""Error rates, per-class metrics, confusions and lists of mistakes.

Source of the interval: Wilson, Probable inference, the law of succession, and statistical inference, JASA 22, 1927.

Source: An introduction to ROC analysis, Pattern Recognition Letters 27, 2006 (AUC as a rank statistic, one-vs-rest).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnets_torch.card import Activation, Card
from convnets_torch.evaluation.calibration import VALUES, check_probable, log_probabilities, logit_batches
from convnets_torch.wordnet.hierarchy import Distances, distances_of
from convnets_torch.wordnet.targets import class_name, class_wnid

Z = 1.959963984540054  # 95 % of a normal distribution lie within so many standard deviations
SIZES = (1, 5, 10)  # k of top-k errors, as in the original's table
BEST = 10  # top classes kept for each picture


@dataclass(frozen=True)
class ErrorRate:
    """Top-k error: the share of pictures whose true class is not among the k most probable ones.

    Attributes:
        k: number of top classes.
        wrong: number of wrong pictures.
        count: number of all pictures.
    """

    k: int
    wrong: int
    count: int

    @property
    def error(self) -> float:
        """Top-k error, 0 to 1."""
        return self.wrong / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson confidence interval of the error, 0 to 1."""
        return wilson(self.wrong, self.count)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"error": self.error, "low": self.interval[0], "high": self.interval[1], "wrong": self.wrong}


def wilson(wrong: int, count: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share, 0 to 1; unlike the normal interval, it holds for small counts and 0.

    Raises:
        ValueError: `count` is 0, or `wrong` is negative or larger than `count`.

    >>> [round(end, 4) for end in wilson(1, 10)], [round(end, 4) for end in wilson(0, 10)]
    ([0.0179, 0.4042], [0.0, 0.2775])
    """
    if not 0 <= wrong <= count or not count:
        raise ValueError(f"{wrong} of {count} pictures is not a valid share; give at least one picture")
    share, square = wrong / count, Z**2
    middle = (share + square / (2 * count)) / (1 + square / count)
    reach = Z * sqrt(share * (1 - share) / count + square / (4 * count**2)) / (1 + square / count)
    return max(0.0, middle - reach) if wrong else 0.0, min(1.0, middle + reach) if wrong < count else 1.0


@dataclass(frozen=True, eq=False)
class Ranking:
    """Rank of the true class of each picture, and the top classes.

    Ties are always broken by the lower class id.

    Attributes:
        ranks: (N,) int64, number of classes ranked above the true one; 0 is right.
        best: (N, k) int64, the most probable classes, best first; k is 10, or the number of classes if that is less.
        ties: number of pictures for which another class has exactly the output of the true one.
    """

    ranks: NDArray[np.int64]
    best: NDArray[np.int64]
    ties: int

    def error(self, k: int) -> ErrorRate:
        """Return the top-k error."""
        return ErrorRate(k, int((self.ranks >= k).sum()), len(self.ranks))


def rank(logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> Ranking:
    """Rank the true class of each picture.

    Args:
        logits: (N, classes), two classes or more; may be memory-mapped.
        labels: (N,) class ids.

    Raises:
        ValueError: there are no pictures, outputs are not finite, or labels do not fit, as in `logit_batches`.

    >>> found = rank(np.array([[0.1, 0.5, 0.5], [0.9, 0.2, 0.9]]), np.array([2, 0]))
    >>> found.ranks.tolist(), found.best.tolist(), found.ties
    ([1, 0], [[1, 2, 0], [0, 2, 1]], 2)
    """
    ranks, best, ties = [], [], 0
    for _, values, truths in logit_batches(logits, labels):
        own = values[np.arange(len(truths)), truths][:, None]
        equal = values == own
        before = equal & (np.arange(values.shape[1]) < truths[:, None])
        ranks.append((values > own).sum(1) + before.sum(1))
        best.append(np.argsort(-values, axis=1, kind="stable")[:, :BEST].copy())  # a view would keep the whole array
        ties += int((equal.sum(1) > 1).sum())
    return Ranking(np.concatenate(ranks).astype(np.int64), np.concatenate(best).astype(np.int64), ties)


@dataclass(frozen=True)
class ClassErrors:
    """Error rates of one class.

    Attributes:
        class_id: of the class.
        errors: k -> top-k error.
        taken: pictures of other classes that were predicted as this one.
    """

    class_id: int
    errors: dict[int, ErrorRate]
    taken: int

    @property
    def count(self) -> int:
        """Pictures of this class."""
        return next(iter(self.errors.values())).count


def errors_by_class(
    ranking: Ranking, labels: NDArray[np.integer[Any]], classes: int, sizes: tuple[int, ...] = SIZES
) -> tuple[ClassErrors, ...]:
    """Return the errors of each class that has pictures, by class id, for each k of `sizes` below `classes`."""
    counts = np.bincount(labels, minlength=classes)
    wrong = {k: np.bincount(labels[ranking.ranks >= k], minlength=classes) for k in sizes if k < classes}
    taken = np.bincount(ranking.best[ranking.ranks > 0, 0], minlength=classes)
    return tuple(
        ClassErrors(
            class_id,
            {k: ErrorRate(k, int(each[class_id]), int(counts[class_id])) for k, each in wrong.items()},
            int(taken[class_id]),
        )
        for class_id in np.flatnonzero(counts).tolist()
    )


LEAST_CLASSES = 16  # minimum number of classes sorted together: each group reads all pages of a memory-mapped file
METRICS = ("precision", "recall", "f1", "auc")


@dataclass(frozen=True)
class ClassMetrics:
    """One-vs-rest metrics of one class, all 0 to 1.

    Attributes:
        class_id: of the class.
        pictures: number of pictures of this class.
        precision: share of this class among the pictures predicted as it; 0 if there are none.
        recall: share of this class's pictures that were predicted as it, i.e. 1 minus its top-1 error.
        f1: harmonic mean of precision and recall.
        auc: area under the ROC curve: the chance that a picture of this class gets a higher probability for it than a
            picture of another class, ties counting half; None if there are no other pictures.
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
    """Return the metrics of each class that has pictures, by class id.

    Args:
        logits, labels: as for `rank`.
        given: (N,) predicted class ids.
        activation: of the card. With "none", the AUC is computed from the raw outputs.

    Raises:
        ValueError: there are no pictures, outputs are not finite, or labels do not fit, as in `logit_batches`.

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
    areas = _aucs(logits, labels, present, activation)
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
    """Average metrics over the classes: "macro" unweighted, "weighted" by the number of pictures.

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


def _aucs(
    logits: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    present: NDArray[np.int64],
    activation: Activation,
) -> list[float | None]:
    """AUC of each class in `present`, from the ranks of its pictures among all."""
    count = len(labels)
    shift = np.zeros(count)
    for numbers, values, _ in logit_batches(logits, labels):
        if activation == "softmax":  # a sigmoid does not change the order of logits
            highest = values.max(1)
            shift[numbers] = highest + np.log(np.exp(values - highest[:, None]).sum(1))
    found: list[float | None] = []
    step = max(LEAST_CLASSES, VALUES // count)
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


MOST = 24  # pictures on a contact sheet
LISTED = 1000  # mistakes on the page; more would make it slow
PAIRS = 20
DIGITS = 9  # decimals of compared log probabilities, so that rounding errors do not order equal ones


@dataclass(frozen=True)
class Mistake:
    """A misclassified picture.

    Attributes:
        row: index of the picture.
        path: its file.
        truth, given: true and predicted class id.
        truth_words, given_words: their names.
        probability, of_truth: probability of the predicted and of the true class, 0 to 1.
        ancestor: first word of the deepest common ancestor in the synset tree; None if classes have no synsets.
        steps: from the true class up to it (`severity`); None if classes have no synsets.
    """

    row: int
    path: str
    truth: int
    given: int
    truth_words: str
    given_words: str
    probability: float
    of_truth: float
    ancestor: str | None
    steps: int | None

    @property
    def common(self) -> str:
        """The common ancestor in words, "both: dog, 2 steps up"; empty if classes have no synsets."""
        if self.ancestor is None:
            return ""
        return f"both: {self.ancestor}, {self.steps} {'step' if self.steps == 1 else 'steps'} up"

    @property
    def short_words(self) -> tuple[str, str]:
        """Short names of the true and predicted class: a synset's first word, or a custom class's full name."""
        words = self.truth_words, self.given_words
        return words if self.ancestor is None else (words[0].partition(",")[0], words[1].partition(",")[0])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "path": self.path,
            "truth": self.truth,
            "truth_words": self.truth_words,
            "given": self.given,
            "given_words": self.given_words,
            "probability": self.probability,
            "probability_of_truth": self.of_truth,
            "common_ancestor": self.ancestor,
            "steps": self.steps,
        }


@dataclass(frozen=True)
class Mistakes:
    """The mistakes to look at.

    Attributes:
        count: number of all mistakes.
        worst: those with the lowest probability of the true class, i.e. the highest loss; lowest first.
        confident: of the rest, those with the highest probability of the wrong class; highest first.
        listed: the first 1,000 mistakes in the order of `worst`.
    """

    count: int
    worst: tuple[Mistake, ...]
    confident: tuple[Mistake, ...]
    listed: tuple[Mistake, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "count": self.count,
            "worst": [each.to_dict() for each in self.worst],
            "most_confident": [each.to_dict() for each in self.confident],
        }


@dataclass(frozen=True)
class Confused:
    """Pictures of one class that were predicted as another.

    Attributes:
        truth, given: true and predicted class id.
        truth_words, given_words: their names.
        truth_wnid, given_wnid: their wnids; None if classes have no synsets.
        count: number of pictures.
        share: of all pictures of the true class, 0 to 1.
        ancestor, steps: as in `Mistake`.
    """

    truth: int
    given: int
    truth_words: str
    given_words: str
    truth_wnid: str | None
    given_wnid: str | None
    count: int
    share: float
    ancestor: str | None
    steps: int | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dict(vars(self))


def find_mistakes(
    logits: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    paths: Sequence[str | os.PathLike[str]],
    card: Card,
    *,
    most: int = MOST,
) -> Mistakes:
    """Find the worst mistakes, and the most confident of the rest; ties are in the order of rows.

    Log probabilities are compared in float64, so that those too small for a float still differ. Of equally probable
    classes the first one is the prediction.

    Args:
        logits, labels: as for `rank`.
        paths: N files.
        card: of the weights; gives the activation and the class names.
        most: number of mistakes of each kind.

    Raises:
        ValueError: outputs are not probabilities, not finite, or do not fit the labels, the paths or the card.
    """
    check_probable(card.activation)
    if len(paths) != len(labels):
        raise ValueError(f"there are {len(paths)} paths for {len(labels)} labels; give one for each")
    if logits.shape[-1] != card.classes:
        raise ValueError(f"outputs have {logits.shape[-1]} columns, and the card {card.classes} classes")
    parts = []
    for numbers, values, truths in logit_batches(logits, labels):
        given = values.argmax(1)
        wrong = given != truths
        logs = log_probabilities(values[wrong], card.activation).round(DIGITS)
        places = np.arange(len(logs))
        parts.append((numbers[wrong], given[wrong], logs[places, given[wrong]], logs[places, truths[wrong]]))
    row, given, log_sure, log_truth = (np.concatenate(each) for each in zip(*parts, strict=True))
    tree = distances_of(card)

    def described(place: int) -> Mistake:
        truth, answer = int(labels[row[place]]), int(given[place])
        return Mistake(
            int(row[place]),
            str(paths[int(row[place])]),
            truth,
            answer,
            class_name(card, truth),
            class_name(card, answer),
            float(np.exp(log_sure[place])),
            float(np.exp(log_truth[place])),
            *_common_ancestor(tree, truth, answer),
        )

    order = np.lexsort((row, log_truth))
    listed = tuple(map(described, order[: max(most, LISTED)].tolist()))
    others = np.setdiff1d(np.arange(len(row)), order[:most])
    confident = others[np.lexsort((row[others], -log_sure[others]))][:most]
    return Mistakes(len(row), listed[:most], tuple(map(described, confident.tolist())), listed[:LISTED])


def confusion(labels: NDArray[np.integer[Any]], given: NDArray[np.integer[Any]], classes: int) -> NDArray[np.int64]:
    """Count the confusion matrix (classes, classes): true class in rows, predicted class in columns.

    >>> confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    pairs = np.bincount(labels.astype(np.int64) * classes + given, minlength=classes * classes)
    return pairs.reshape(classes, classes)


def most_confused_pairs(counts: NDArray[np.integer[Any]], card: Card, *, most: int = PAIRS) -> tuple[Confused, ...]:
    """Return the most confused pairs of classes, ordered by count, then by share of the true class, then by ids.

    Args:
        counts: (classes, classes), as `confusion` returns them.
        card: of the weights.
        most: maximum number of pairs.

    Raises:
        ValueError: the shape of the counts does not fit the card's classes.
    """
    if counts.shape != (card.classes, card.classes):
        raise ValueError(f"confusions are {counts.shape}, and the card has {card.classes} classes")
    truths, given = np.nonzero(counts)
    truths, given = truths[truths != given], given[truths != given]
    found, pictures = counts[truths, given], counts.sum(1)[truths]
    order = np.lexsort((given, truths, -found / pictures, -found))[:most]
    tree = distances_of(card)
    return tuple(
        Confused(
            truth,
            answer,
            class_name(card, truth),
            class_name(card, answer),
            class_wnid(card, truth),
            class_wnid(card, answer),
            int(counts[truth, answer]),
            float(counts[truth, answer] / counts[truth].sum()),
            *_common_ancestor(tree, truth, answer),
        )
        for truth, answer in zip(truths[order].tolist(), given[order].tolist(), strict=True)
    )


def _common_ancestor(tree: Distances | None, truth: int, given: int) -> tuple[str | None, int | None]:
    if tree is None:
        return None, None
    return tree.ancestor(truth, given).words[0], int(tree.steps[truth, given])

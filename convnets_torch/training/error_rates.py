"""How often a network is wrong: the place of the truth among its answers, and shares with their confidence intervals.

Source of the interval: Wilson, Probable inference, the law of succession, and statistical inference, JASA 22, 1927.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnets_torch.training.answers import blocks

Z = 1.959963984540054  # standard deviations that 95 % of a normal distribution lie within
SIZES = (1, 5, 10)  # of the original's table
BEST = 10  # answers that are kept of each picture


@dataclass(frozen=True)
class ErrorRate:
    """The share of pictures whose class is not among a network's k most probable ones.

    Attributes:
        k: how many of them.
        wrong: pictures.
        count: of all pictures.
    """

    k: int
    wrong: int
    count: int

    @property
    def error(self) -> float:
        """0 to 1."""
        return self.wrong / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval of 95 %, 0 to 1: where the error on endlessly many such pictures is likely to be."""
        return wilson(self.wrong, self.count)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"error": self.error, "low": self.interval[0], "high": self.interval[1], "wrong": self.wrong}


def wilson(wrong: int, count: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share, 0 to 1; unlike the usual one it is right for few and for none.

    Raises:
        ValueError: there are no pictures, or more wrong ones than pictures.

    >>> [round(end, 4) for end in wilson(1, 10)], [round(end, 4) for end in wilson(0, 10)]
    ([0.0179, 0.4042], [0.0, 0.2775])
    """
    if not 0 <= wrong <= count or not count:
        raise ValueError(f"{wrong} of {count} pictures is no share; give at least one picture")
    share, square = wrong / count, Z**2
    middle = (share + square / (2 * count)) / (1 + square / count)
    reach = Z * sqrt(share * (1 - share) / count + square / (4 * count**2)) / (1 + square / count)
    return max(0.0, middle - reach) if wrong else 0.0, min(1.0, middle + reach) if wrong < count else 1.0


@dataclass(frozen=True, eq=False)
class Ranking:
    """Where the truth stands among a network's answers.

    Of equal outputs the class with the smaller id comes first, everywhere.

    Attributes:
        ranks: (N,) int64, how many classes come before the truth; 0 is right.
        best: (N, k) int64, the most probable classes, the best first; k is 10, or the classes where they are fewer.
        ties: pictures of which another class has exactly the output of the truth, so that the ids decided.
    """

    ranks: NDArray[np.int64]
    best: NDArray[np.int64]
    ties: int

    def error(self, k: int) -> ErrorRate:
        """Of the best k."""
        return ErrorRate(k, int((self.ranks >= k).sum()), len(self.ranks))


def rank(logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> Ranking:
    """Where the truth of each picture stands.

    Args:
        logits: (N, classes), two classes or more; may be mapped from a disk.
        labels: (N,) class ids.

    Raises:
        ValueError: as `blocks`: no pictures, outputs that are not finite, labels that do not fit.

    >>> found = rank(np.array([[0.1, 0.5, 0.5], [0.9, 0.2, 0.9]]), np.array([2, 0]))
    >>> found.ranks.tolist(), found.best.tolist(), found.ties
    ([1, 0], [[1, 2, 0], [0, 2, 1]], 2)
    """
    ranks, best, ties = [], [], 0
    for _, values, truths in blocks(logits, labels):
        own = values[np.arange(len(truths)), truths][:, None]
        equal = values == own
        before = equal & (np.arange(values.shape[1]) < truths[:, None])
        ranks.append((values > own).sum(1) + before.sum(1))
        best.append(np.argsort(-values, axis=1, kind="stable")[:, :BEST].copy())  # a view would keep all of it
        ties += int((equal.sum(1) > 1).sum())
    return Ranking(np.concatenate(ranks).astype(np.int64), np.concatenate(best).astype(np.int64), ties)


@dataclass(frozen=True)
class ClassErrors:
    """How often the pictures of one class are not recognised.

    Attributes:
        class_id: of the class.
        errors: k -> the share whose truth is not among the best k.
        taken: pictures of other classes that were taken for this one.
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
    """Of each class that has pictures, by class id; for those k of `sizes` that leave a class out."""
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

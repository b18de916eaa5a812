"""Which pictures a network gets wrong: the worst, the most confident, and the classes that it confuses."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnets_torch.card import Card
from convnets_torch.targets import class_name, class_wnid
from convnets_torch.training.answers import blocks, check_probable, log_probabilities
from convnets_torch.training.severity import Distances, distances_of

MOST = 24  # pictures on a sheet
LISTED = 1000  # mistakes that are described; a page of more is slow
PAIRS = 20
DIGITS = 9  # of logarithms that are compared: rounding errors of equal ones make no order


@dataclass(frozen=True)
class Mistake:
    """A picture and the wrong class that a network found the most probable.

    Attributes:
        row: which picture of all.
        path: its file.
        truth, given: class ids, and both in words.
        probability, of_truth: of the class that was given, and of the truth, 0 to 1.
        ancestor: first word of the deepest common ancestor in the synset tree; None where classes have no synsets.
        steps: from the truth up to it (`severity`); None where classes have no synsets.
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
        """What both have in common, "both: dog, 2 steps up"; empty where classes have no synsets."""
        if self.ancestor is None:
            return ""
        return f"both: {self.ancestor}, {self.steps} {'step' if self.steps == 1 else 'steps'} up"

    @property
    def short_words(self) -> tuple[str, str]:
        """Of the truth and of the class that was given: a synset's first word, a user's own name as it is."""
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
        count: of all mistakes.
        worst: those whose truth was found the least probable, the least first: they cost the most.
        confident: of the others those whose wrong class was found the most probable, the most first.
        listed: in the order of `worst` all mistakes, or the first 1,000.
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
    """Pictures of one class that were taken for another.

    Attributes:
        truth, given: class ids, and both in words and as wnids, which are None where classes have no synsets.
        count: pictures.
        share: of all pictures of the true class, 0 to 1.
        ancestor, steps: as of a `Mistake`.
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
    """The worst mistakes, and the most confident of the others; of equal ones those of earlier rows first.

    Probabilities are compared by their logarithms in float64, so that those too small for a float differ still. Of
    equally probable classes the first one is given.

    Args:
        logits: (N, classes); may be mapped from a disk.
        labels: (N,) class ids.
        paths: N files.
        card: of the weights; its activation makes probabilities, its classes words.
        most: of each kind.

    Raises:
        ValueError: outputs are no probabilities, not finite, or do not fit the labels, the paths or the card.
    """
    check_probable(card.activation)
    if len(paths) != len(labels):
        raise ValueError(f"there are {len(paths)} paths for {len(labels)} labels; give one for each")
    if logits.shape[-1] != card.classes:
        raise ValueError(f"outputs have {logits.shape[-1]} columns, and the card {card.classes} classes")
    rows, answers, sure, of_truth = [], [], [], []
    for numbers, values, truths in blocks(logits, labels):
        given = values.argmax(1)
        wrong = given != truths
        logs = log_probabilities(values[wrong], card.activation).round(DIGITS)
        places = np.arange(len(logs))
        rows.append(numbers[wrong])
        answers.append(given[wrong])
        sure.append(logs[places, given[wrong]])
        of_truth.append(logs[places, truths[wrong]])
    row, given, log_sure, log_truth = (np.concatenate(parts) for parts in (rows, answers, sure, of_truth))

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
            *_common(tree, truth, answer),
        )

    order = np.lexsort((row, log_truth))
    listed = tuple(map(described, order[: max(most, LISTED)].tolist()))
    others = np.setdiff1d(np.arange(len(row)), order[:most])
    confident = others[np.lexsort((row[others], -log_sure[others]))][:most]
    return Mistakes(len(row), listed[:most], tuple(map(described, confident.tolist())), listed[:LISTED])


def confusion(labels: NDArray[np.integer[Any]], given: NDArray[np.integer[Any]], classes: int) -> NDArray[np.int64]:
    """(classes, classes): how many pictures of the row's class were given the column's.

    >>> confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    pairs = np.bincount(labels.astype(np.int64) * classes + given, minlength=classes * classes)
    return pairs.reshape(classes, classes)


def most_confused_pairs(counts: NDArray[np.integer[Any]], card: Card, *, most: int = PAIRS) -> tuple[Confused, ...]:
    """Which classes were most often taken for which others, the most pictures first.

    Of equal counts the larger share of the true class comes first, then the smaller ids.

    Args:
        counts: (classes, classes), as `confusion` gives them.
        card: of the weights.
        most: pairs, at most.

    Raises:
        ValueError: the counts are of another shape than the card's classes.
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
            *_common(tree, truth, answer),
        )
        for truth, answer in zip(truths[order].tolist(), given[order].tolist(), strict=True)
    )


def _common(tree: Distances | None, truth: int, given: int) -> tuple[str | None, int | None]:
    if tree is None:
        return None, None
    return tree.ancestor(truth, given).words[0], int(tree.steps[truth, given])

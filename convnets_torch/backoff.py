"""Hierarchical answers: as deep in the WordNet tree as the network's probabilities allow.

A network that cannot tell two huskies apart is sure of a dog all the same. The probability of a synset is the sum over
the classes that it is or lies above, each once, however many paths lead there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnets_torch import synsets
from convnets_torch.card import Card
from convnets_torch.targets import class_name, class_wnids, tree_wnids

ROUNDING = 1e-7  # of a sum of float32 probabilities
SUM_WITHIN = 1e-3  # of 1, what probabilities add up to
ADDED = 0.02  # by how much a synset must be more probable than the next of a chain, to stand in it
CERTAIN = 0.995  # at which a general synset says nothing: it is written as 1.00


@dataclass(frozen=True)
class Link:
    """A synset and how probable it is.

    Attributes:
        wnid: of the synset.
        words: all of its words.
        probability: 0 to 1.
    """

    wnid: str
    words: str
    probability: float

    @property
    def word(self) -> str:
        """The first of its words."""
        return self.words.partition(",")[0]


@dataclass(frozen=True)
class Answer:
    """The deepest synset that is probable enough.

    Attributes:
        wnid, words, probability: as in `Link`.
        depth: steps down from "entity", by the longest path.
        chain: from the general to the particular: of the longest path to the answer those synsets that are more
            probable than the next one in the chain by at least 0.02, save those that are certain; then the answer, and
            the most probable class below it.
    """

    wnid: str
    words: str
    probability: float
    depth: int
    chain: tuple[Link, ...]

    @property
    def text(self) -> str:
        """The chain in words, each with its probability: "animal 0.98 > dog 0.91 > Siberian husky 0.22"."""
        return " > ".join(f"{link.word} {link.probability:.2f}" for link in self.chain)


class _Table:
    """All synsets above some classes with the classes below each, in one row, so that sums over them are one pass."""

    def __init__(self, wnids: tuple[str, ...]) -> None:
        below: dict[str, list[int]] = {}
        for class_id, wnid in enumerate(wnids):
            for above in synsets.lineage(wnid):
                below.setdefault(above, []).append(class_id)
        depths = {wnid: synsets.find(wnid).depth for wnid in below}
        self.wnids = sorted(below, key=lambda wnid: (-depths[wnid], wnid))
        self.depths = np.array([depths[wnid] for wnid in self.wnids])
        self.below = [below[wnid] for wnid in self.wnids]
        self.starts = np.cumsum([0, *map(len, self.below[:-1])])
        self.members = np.concatenate([np.array(each) for each in self.below])
        self.number = {wnid: number for number, wnid in enumerate(self.wnids)}

    def sums(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """(classes,) -> (synsets,), the deepest synsets first."""
        return np.add.reduceat(probabilities[self.members], self.starts)


@lru_cache(8)
def _table(wnids: tuple[str, ...]) -> _Table:
    return _Table(wnids)


def check_backoff(card: Card, threshold: float) -> None:
    """Raise, before long work begins, when `back_off` cannot be asked of a network.

    Raises:
        ValueError: a class has no synset in the WordNet tree, the outputs are no probabilities that add up, or the
            threshold is not above 0 and at most 1.
    """
    if tree_wnids(card) is None:
        wnids = class_wnids(card)
        without = [place for place, wnid in enumerate(wnids) if wnid is None or not synsets.is_known(wnid)]
        raise ValueError(
            f"{len(without)} of the network's {card.classes} classes"
            f"{f' ({class_name(card, without[0])})' if without else ''} have no place in the WordNet tree above"
            " ImageNet's; backoff wants classes whose names begin with wnids, such as 'n02123159 tiger cat'"
        )
    if card.activation != "softmax":
        raise ValueError(
            f"the card says that outputs are {card.activation}, whose values do not add up; backoff takes a softmax"
        )
    if not 0 < threshold <= 1:
        raise ValueError(f"a threshold of {threshold} is out of range; give a probability above 0, at most 1")


def back_off(probabilities: Any, threshold: float, wnids: Sequence[str] | None = None) -> Answer:
    """The deepest synset whose probability is at least `threshold`.

    Depth is that of `Synset.depth`. Of several equally deep ones it is the most probable, then the one with the
    smallest wnid. Below one half synsets of several branches can pass, and the deepest of them need not lie above the
    most probable class.

    Args:
        probabilities: (classes,), adding up to 1: an array, a list, or a tensor on the CPU.
        threshold: above 0, at most 1; at 1 it is the deepest synset over all that is probable at all.
        wnids: of the classes; by default those of ImageNet's 1,000.

    Raises:
        ValueError: there is not one number for each class, or they are no probabilities that add up to 1; the
            threshold is out of range; or a wnid is unknown.

    >>> probabilities = [0.0] * 1000
    >>> probabilities[248:251] = 0.4, 0.3, 0.2  # Eskimo dog, malamute, Siberian husky
    >>> probabilities[281] = 0.1  # tabby
    >>> back_off(probabilities, 0.8).text
    'working dog 0.90 > Eskimo dog 0.40'
    """
    chances = np.asarray(probabilities, np.float64)
    chosen = synsets.wnids() if wnids is None else tuple(wnids)
    if chances.shape != (len(chosen),):
        whose = "ImageNet's" if wnids is None else "the"
        raise ValueError(f"probabilities are {chances.shape}; one for each of {whose} {len(chosen)} classes is wanted")
    total = float(chances.sum())
    if not (chances >= 0).all() or not abs(total - 1) <= SUM_WITHIN:
        raise ValueError(
            f"the numbers add up to {total:.6g} and are no probabilities of one class each; take a softmax"
        )
    if not 0 < threshold <= 1:
        raise ValueError(f"a threshold of {threshold} is out of range; give a probability above 0, at most 1")
    table = _table(chosen)
    sums = table.sums(chances)
    sums /= sums[table.number[synsets.ENTITY]]  # so that rounding leaves no doubt of "entity"
    passing = np.flatnonzero(sums >= threshold - ROUNDING)
    deepest = passing[table.depths[passing] == table.depths[passing[0]]]
    number = int(deepest[np.argmax(sums[deepest])])
    found = synsets.find(table.wnids[number])

    def link(wnid: str) -> Link:
        return Link(wnid, synsets.find(wnid).label, float(sums[table.number[wnid]]))

    answer = link(found.wnid)
    chain = [answer]
    for wnid in reversed(found.paths[-1][:-1]):
        if chain[0].probability + ADDED <= sums[table.number[wnid]] < CERTAIN:
            chain.insert(0, link(wnid))
    below = table.below[number]
    best = chosen[below[int(chances[below].argmax())]]
    if best != found.wnid:
        chain.append(link(best))
    return Answer(answer.wnid, answer.words, answer.probability, found.depth, tuple(chain))

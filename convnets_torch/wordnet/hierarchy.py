"""Predictions in the WordNet tree: back off to a safer class, distances of mistakes, the order of the leaves.

A network that cannot tell two huskies apart is sure of a dog all the same. The probability of a synset is the sum over
the classes that it is or lies above, each once, however many paths lead there.

The synsets are no tree, so words need care. The depth of a synset is the number of steps down to it from "entity", by
the longest path; the common ancestor of two classes is the deepest synset above both, of equally deep ones that over
the fewest classes, then the one with the smallest wnid: `synsets.common_ancestor`. Its height is the number of steps
down to a class, by the longest path; the steps up to it are those from the truth, by depth: never fewer than there are.

Sources: Making Better Mistakes, arXiv:1912.09393, section 4 (the mean height over mistakes, and over the best k
answers); ImageNet Large Scale Visual Recognition Challenge 2010, second criterion (the height as a share of the
highest, the least over the guesses).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnets_torch.card import Card
from convnets_torch.wordnet import synsets
from convnets_torch.wordnet.targets import class_name, class_wnids, tree_wnids

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


FREQUENT = 10  # ancestors that are named


@dataclass(frozen=True, eq=False)
class Distances:
    """Where each two of some classes meet in the synset tree.

    Attributes:
        wnids: of all synsets that are the ancestor of two classes, or a class.
        ancestors: (classes, classes) int16, the place in `wnids` of the deepest common ancestor; a class is its own.
        heights: (classes, classes) uint8, of that ancestor: steps down from it to one of ImageNet's classes, by the
            longest path; 0 to 18.
        steps: (classes, classes) uint8, from the class of the row up to that ancestor: the difference of their depths.
        highest: the height of "entity", 18.
    """

    wnids: tuple[str, ...]
    ancestors: NDArray[np.int16]
    heights: NDArray[np.uint8]
    steps: NDArray[np.uint8]
    highest: int

    def ancestor(self, one: int, other: int) -> synsets.Synset:
        """The deepest synset that is, or lies above, two classes.

        >>> distances().ancestor(281, 207).name, int(distances().heights[281, 207])
        ('carnivore.n.01', 7)
        """
        return synsets.find(self.wnids[self.ancestors[one, other]])


@dataclass(frozen=True, eq=False)
class Severity:
    """How bad the mistakes of a network are.

    Attributes:
        pictures, mistakes: how many there are.
        height: mean height of the common ancestor over the mistakes; None where there are none.
        steps: mean steps from the truth up to it, over the mistakes; None where there are none.
        of_best: k -> mean height over the best k answers of all pictures, where a right answer is 0.
        least_cost: k -> mean over pictures of the least height among the best k answers, as a share of the highest
            there is, 0 to 1: the hierarchical error of 2010.
        heights: (19,), mistakes by height.
        frequent: the ten most frequent common ancestors of mistakes: (wnid, words, mistakes).
    """

    pictures: int
    mistakes: int
    height: float | None
    steps: float | None
    of_best: dict[int, float]
    least_cost: dict[int, float]
    heights: NDArray[np.int64]
    frequent: tuple[tuple[str, str, int], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "pictures": self.pictures,
            "mistakes": self.mistakes,
            "mean_height": self.height,
            "mean_steps": self.steps,
            "mean_height_of_best": {str(k): value for k, value in self.of_best.items()},
            "hierarchical_error": {str(k): value for k, value in self.least_cost.items()},
            "mistakes_by_height": self.heights.tolist(),
            "frequent_ancestors": [
                {"wnid": wnid, "words": words, "mistakes": count} for wnid, words, count in self.frequent
            ],
        }


@lru_cache(4)
def distances(classes: tuple[str, ...] | None = None) -> Distances:
    """Of all pairs of classes, computed once in less than a second.

    Args:
        classes: their wnids, as `tree_wnids` gives them; by default those of ImageNet's 1,000.

    >>> found = distances()
    >>> found.ancestor(151, 156).label, int(found.heights[151, 156]), int(found.steps[151, 156])
    ('toy dog, toy', 3, 1)
    """
    below: dict[str, int] = {}  # wnid -> its height
    entries: dict[str, synsets.Synset] = {}

    def height(wnid: str) -> int:
        if wnid not in below:
            entries[wnid] = synsets.find(wnid)
            below[wnid] = max((height(child) + 1 for child in entries[wnid].children), default=0)
        return below[wnid]

    height(synsets.ENTITY)
    depths = {wnid: entry.depth for wnid, entry in entries.items()}
    under: dict[str, list[int]] = {}
    chosen = synsets.wnids() if classes is None else classes
    for class_id, wnid in enumerate(chosen):
        for above in synsets.lineage(wnid):
            under.setdefault(above, []).append(class_id)
    # From the best choice to the worst, so that what is written last, from the end, is the best.
    order = sorted(under, key=lambda wnid: (-depths[wnid], len(entries[wnid].class_ids), wnid))
    places = np.empty((len(chosen), len(chosen)), np.int16)
    for place in range(len(order) - 1, -1, -1):
        ids = np.array(under[order[place]])
        places[np.ix_(ids, ids)] = place
    used, inverse = np.unique(places, return_inverse=True)
    wnids = tuple(order[place] for place in used)
    height_of = np.array([below[wnid] for wnid in wnids], np.uint8)
    depth_of = np.array([depths[wnid] for wnid in wnids], np.uint8)
    ancestors: NDArray[np.int16] = inverse.reshape(places.shape).astype(np.int16)
    own = depth_of[ancestors.diagonal()]
    return Distances(wnids, ancestors, height_of[ancestors], own[:, None] - depth_of[ancestors], below[synsets.ENTITY])


def distances_of(card: Card) -> Distances | None:
    """`distances` of a network's classes; None where not all of them stand in the synset tree."""
    classes = tree_wnids(card)
    return None if classes is None else distances(classes)


def measure_severity(
    best: NDArray[np.integer[Any]], labels: NDArray[np.integer[Any]], classes: tuple[str, ...] | None = None
) -> Severity:
    """Weigh the mistakes of a network whose classes stand in the synset tree.

    Args:
        best: (N, k) class ids, each picture's most probable classes, the best first, or (N,), the best alone.
        labels: (N,), the class ids of the truth.
        classes: wnids of the network's classes; by default those of ImageNet's 1,000.

    Raises:
        ValueError: shapes that do not fit, no pictures, or ids outside 0 to classes - 1.

    >>> found = measure_severity(np.array([[281, 282], [207, 281]]), np.array([281, 281]))
    >>> found.mistakes, found.height, found.of_best[1], round(found.least_cost[1], 3)
    (1, 7.0, 3.5, 0.194)
    """
    answers = best[:, None] if best.ndim == 1 else best
    if answers.ndim != 2 or labels.shape != answers.shape[:1] or not answers.size:
        raise ValueError(f"answers are {best.shape} and labels {labels.shape}; give (N, k) and (N,), N and k above 0")
    low, high = min(int(answers.min()), int(labels.min())), max(int(answers.max()), int(labels.max()))
    found = distances(classes)
    if low < 0 or high >= len(found.heights):
        raise ValueError(
            f"class ids go from {low} to {high}; the synset tree is over classes 0 to {len(found.heights) - 1}"
        )
    heights = found.heights[labels[:, None], answers].astype(np.float64)
    wrong = answers[:, 0] != labels
    truths, given = labels[wrong], answers[wrong, 0]
    sizes = [k for k in (1, 5, 10) if k <= answers.shape[1]]
    counts = np.bincount(found.ancestors[truths, given], minlength=len(found.wnids))
    order = np.argsort(-counts, kind="stable")[:FREQUENT]
    frequent = [(found.wnids[place], int(counts[place])) for place in order.tolist() if counts[place]]
    return Severity(
        len(labels),
        int(wrong.sum()),
        float(heights[wrong, 0].mean()) if wrong.any() else None,
        float(found.steps[truths, given].mean()) if wrong.any() else None,
        {k: float(heights[:, :k].mean()) for k in sizes},
        {k: float(heights[:, :k].min(1).mean()) / found.highest for k in sizes},
        np.bincount(found.heights[truths, given], minlength=found.highest + 1).astype(np.int64),
        tuple((wnid, synsets.find(wnid).label, count) for wnid, count in frequent),
    )


MOST, LEAST = 130, 12  # classes of a group that gets a name


@lru_cache(4)
def tree_order(classes: tuple[str, ...]) -> tuple[tuple[int, ...], tuple[tuple[int, int, str], ...]]:
    """All class ids, and (first, end, words) of groups of neighbours among them.

    Args:
        classes: their wnids, as `tree_wnids` gives them.

    Every synset of several parents stands under the deepest one, of equally deep ones the one with the smallest wnid,
    so that each has one place and everything under a synset is together. A group is the highest synset of a branch
    with no more than 130 classes; those with fewer than 12 have no name.

    >>> order, groups = tree_order(synsets.wnids())
    >>> len(set(order)), [words for _, _, words in groups][:4]
    (1000, ['aquatic vertebrate', 'bird', 'reptile', 'canine'])
    """
    depths: dict[str, int] = {}

    def depth(wnid: str) -> int:
        if wnid not in depths:
            depths[wnid] = synsets.find(wnid).depth
        return depths[wnid]

    ids: dict[str, list[int]] = {}
    for class_id, wnid in enumerate(classes):
        ids.setdefault(wnid, []).append(class_id)
    below: dict[str, list[str]] = {}
    waiting, seen = [synsets.ENTITY], {synsets.ENTITY}
    while waiting:
        for child in synsets.find(waiting.pop()).children:
            if child not in seen:
                seen.add(child)
                waiting.append(child)
                parent = min(synsets.find(child).parents, key=lambda wnid: (-depth(wnid), wnid))
                below.setdefault(parent, []).append(child)
    order: list[int] = []
    groups: list[tuple[int, int, str]] = []

    def visit(wnid: str) -> None:
        first, place = len(order), len(groups)
        for child in sorted(below.get(wnid, ())):
            visit(child)
        order.extend(ids.get(wnid, ()))
        size = len(order) - first
        if LEAST <= size <= MOST:
            groups[place:] = [(first, len(order), synsets.find(wnid).words[0])]

    visit(synsets.ENTITY)
    return tuple(order), tuple(groups)

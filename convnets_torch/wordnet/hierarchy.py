"""Predictions in the WordNet hierarchy: backing off to a more general class, severity of mistakes, order of classes.

A network that cannot tell two huskies apart may still be sure that it sees a dog. The probability of a synset is the
sum over the classes at or below it, each counted once, however many paths lead to it.

The synsets form a graph, not a tree, which needs some definitions. The depth of a synset is the length of the longest
path from "entity" to it. The common ancestor of two classes is the deepest synset above both; ties go to the synset
with the fewest classes, then to the smallest wnid, as in `synsets.common_ancestor`. Its height is the length of the
longest path down to a class. The steps from the truth up to it are the difference of their depths, which is never less
than the length of the shortest path.

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

ROUNDING = 1e-7  # rounding error of a sum of float32 probabilities
SUM_WITHIN = 1e-3  # tolerance for the sum of probabilities
ADDED = 0.02  # a synset is in the chain if it is more probable than the next one by at least this
CERTAIN = 0.995  # at or above this, printed as 1.00, a general synset is uninformative


@dataclass(frozen=True)
class Link:
    """A synset and its probability.

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
class Answer(Link):
    """The deepest synset that is probable enough.

    Attributes:
        depth: length of the longest path from "entity".
        chain: from general to specific: synsets on the longest path to the answer that are more probable than the next
            one in the chain by at least 0.02, except those that are certain; then the answer, and the most probable
            class below it.
    """

    depth: int
    chain: tuple[Link, ...]

    @property
    def text(self) -> str:
        """The chain as text, for instance "animal 0.98 > dog 0.91 > Siberian husky 0.22"."""
        return " > ".join(f"{link.word} {link.probability:.2f}" for link in self.chain)


def _classes_below(wnids: tuple[str, ...]) -> dict[str, list[int]]:
    """Map each synset at or above some classes to those at or below it, numbered from 0."""
    below: dict[str, list[int]] = {}
    for class_id, wnid in enumerate(wnids):
        for above in synsets.lineage(wnid):
            below.setdefault(above, []).append(class_id)
    return below


class _Table:
    """All synsets above some classes, with the classes below each in one flat array for `np.add.reduceat`."""

    def __init__(self, wnids: tuple[str, ...]) -> None:
        below = _classes_below(wnids)
        depths = {wnid: synsets.find(wnid).depth for wnid in below}
        self.wnids = sorted(below, key=lambda wnid: (-depths[wnid], wnid))
        self.depths = np.array([depths[wnid] for wnid in self.wnids])
        self.below = [below[wnid] for wnid in self.wnids]
        self.starts = np.cumsum([0, *map(len, self.below[:-1])])
        self.members = np.concatenate([np.array(each) for each in self.below])
        self.number = {wnid: number for number, wnid in enumerate(self.wnids)}

    def sums(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum probabilities (classes,) per synset, (synsets,), deepest synsets first."""
        return np.add.reduceat(probabilities[self.members], self.starts)


_table = lru_cache(8)(_Table)


def check_backoff(card: Card, threshold: float) -> None:
    """Check early whether `back_off` works for a network's classes and a threshold.

    Raises:
        ValueError: a class has no synset in the WordNet tree, the outputs are not a softmax, or the threshold is out of
            range.
    """
    if tree_wnids(card) is None:
        wnids = class_wnids(card)
        without = [place for place, wnid in enumerate(wnids) if wnid is None or not synsets.is_known(wnid)]
        raise ValueError(
            f"{len(without)} of the network's {card.classes} classes"
            f"{f' ({class_name(card, without[0])})' if without else ''} have no place in the WordNet tree above"
            " ImageNet's; backoff needs class names that begin with wnids, such as 'n02123159 tiger cat'"
        )
    if card.activation != "softmax":
        raise ValueError(
            f"the card says that outputs are {card.activation}, which do not add up to 1; backoff needs a softmax"
        )
    _check_threshold(threshold)


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise ValueError(f"a threshold of {threshold} is out of range; give a probability above 0, at most 1")


def back_off(probabilities: Any, threshold: float, wnids: Sequence[str] | None = None) -> Answer:
    """Return the deepest synset whose probability is at least `threshold`.

    Depth is `Synset.depth`. Ties go to the most probable synset, then to the smallest wnid. With a threshold below 0.5,
    synsets of several branches can pass, and the deepest need not lie above the most probable class.

    Args:
        probabilities: (classes,), with sum 1: an array, a list, or a tensor on the CPU.
        threshold: above 0, at most 1; 1 gives the deepest synset above all classes with a probability above 0.
        wnids: of the classes; defaults to ImageNet's 1,000.

    Raises:
        ValueError: `probabilities` has the wrong length, negative values, or a sum other than 1; the threshold is out
            of range; or a wnid is unknown.

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
        raise ValueError(f"probabilities are {chances.shape}; give one for each of {whose} {len(chosen)} classes")
    total = float(chances.sum())
    if not (chances >= 0).all() or not abs(total - 1) <= SUM_WITHIN:
        raise ValueError(f"the probabilities add up to {total:.6g}, or some are negative; give the output of a softmax")
    _check_threshold(threshold)
    table = _table(chosen)
    sums = table.sums(chances)
    sums /= sums[table.number[synsets.ENTITY]]  # exactly 1 for "entity"
    passing = np.flatnonzero(sums >= threshold - ROUNDING)
    deepest = passing[table.depths[passing] == table.depths[passing[0]]]
    number = int(deepest[np.argmax(sums[deepest])])
    found = synsets.find(table.wnids[number])

    def link(wnid: str) -> Link:
        return Link(wnid, synsets.find(wnid).label, float(sums[table.number[wnid]]))

    chain = [link(found.wnid)]
    for wnid in reversed(found.paths[-1][:-1]):
        if chain[0].probability + ADDED <= sums[table.number[wnid]] < CERTAIN:
            chain.insert(0, link(wnid))
    below = table.below[number]
    best = chosen[below[int(chances[below].argmax())]]
    if best != found.wnid:
        chain.append(link(best))
    return Answer(found.wnid, found.label, float(sums[number]), found.depth, tuple(chain))


FREQUENT = 10  # ancestors listed


@dataclass(frozen=True, eq=False)
class Distances:
    """Common ancestors of all pairs of classes.

    Attributes:
        wnids: of all synsets that are a common ancestor, or a class.
        ancestors: (classes, classes) int16, index in `wnids` of the deepest common ancestor; a class is its own.
        heights: (classes, classes) uint8, height of that ancestor: length of the longest path down to one of ImageNet's
            classes, 0 to 18.
        steps: (classes, classes) uint8, depth of the row's class minus depth of that ancestor.
        highest: the height of "entity", 18.
    """

    wnids: tuple[str, ...]
    ancestors: NDArray[np.int16]
    heights: NDArray[np.uint8]
    steps: NDArray[np.uint8]
    highest: int

    def ancestor(self, one: int, other: int) -> synsets.Synset:
        """Return the deepest common ancestor of two class ids.

        >>> distances().ancestor(281, 207).name, int(distances().heights[281, 207])
        ('carnivore.n.01', 7)
        """
        return synsets.find(self.wnids[self.ancestors[one, other]])


@dataclass(frozen=True, eq=False)
class Severity:
    """Severity of a network's mistakes in the WordNet hierarchy.

    Attributes:
        pictures, mistakes: their numbers.
        height: mean height of the common ancestor over mistakes; None without mistakes.
        steps: mean steps from the truth up to the common ancestor over mistakes; None without mistakes.
        of_best: k -> mean height over the top k predictions of all pictures; a correct one has height 0.
        least_cost: k -> hierarchical error of 2010: mean over pictures of the least height among the top k predictions,
            divided by the height of "entity"; 0 to 1.
        heights: (19,), number of mistakes by height.
        frequent: (wnid, words, mistakes) of the ten most frequent common ancestors.
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
        """Return plain data for JSON."""
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
    """Compute the common ancestors of all pairs of classes; takes under a second, and is cached.

    Args:
        classes: their wnids, as `tree_wnids` returns them; defaults to ImageNet's 1,000.

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
    chosen = synsets.wnids() if classes is None else classes
    under = _classes_below(chosen)
    # Sorted from best to worst and written in reverse, so that the best ancestor overwrites the others.
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
    """Return `distances` of a network's classes, or None if a class has no synset in the tree."""
    classes = tree_wnids(card)
    return None if classes is None else distances(classes)


def measure_severity(
    best: NDArray[np.integer[Any]], labels: NDArray[np.integer[Any]], classes: tuple[str, ...] | None = None
) -> Severity:
    """Measure the severity of a network's mistakes.

    Args:
        best: (N, k) class ids, each picture's most probable classes, best first, or (N,), the best alone.
        labels: (N,), the true class ids.
        classes: wnids of the network's classes; defaults to ImageNet's 1,000.

    Raises:
        ValueError: the shapes do not match, there are no pictures, or ids are outside 0 to classes - 1.

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


MOST, LEAST = 130, 12  # classes of a named group


@lru_cache(4)
def tree_order(classes: tuple[str, ...]) -> tuple[tuple[int, ...], tuple[tuple[int, int, str], ...]]:
    """Return class ids in tree order, and (first, end, words) of groups of neighbours.

    A synset with several parents is placed under the deepest one, or, if they are equally deep, the one with the
    smallest wnid, so everything under a synset is adjacent. A group is the highest synset of a branch with at most 130
    classes; groups with fewer than 12 are left out.

    Args:
        classes: their wnids, as `tree_wnids` returns them.

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

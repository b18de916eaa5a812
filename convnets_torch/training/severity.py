"""How bad mistakes are: how far up the synset tree the truth and what it was taken for meet.

The synsets are no tree, so words need care. The depth of a synset is the number of steps down to it from "entity", by
the longest path; the common ancestor of two classes is the deepest synset above both, of equally deep ones that over
the fewest classes, then the one with the smallest wnid: `synsets.common_ancestor`. Its height is the number of steps
down to a class, by the longest path; the steps up to it are those from the truth, by depth: never fewer than there are.

Sources: Making Better Mistakes, arXiv:1912.09393, section 4 (the mean height over mistakes, and over the best k
answers); ImageNet Large Scale Visual Recognition Challenge 2010, second criterion (the height as a share of the
highest, the least over the guesses).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnets_torch import synsets
from convnets_torch.card import Card
from convnets_torch.targets import tree_wnids

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

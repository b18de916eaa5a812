"""How far apart vectors are within classes and between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from convnets_torch.embeddings.probe_features import LabelledVectors

BINS = 40
MOST = 2_000  # pictures whose pairs are counted: some 2,000,000 pairs
ROWS = 256  # of the matrix of pairs that are in memory at once
SEED = 0

Measure = Literal["distance", "similarity"]


@dataclass(frozen=True, eq=False)
class Pairs:
    """A histogram of pairs of pictures, those of one class apart from those of two.

    Attributes:
        measure: "distance" (Euclidean) or "similarity" (cosine, -1 to 1; 0 where a vector is zeros alone).
        within, between: pairs in each bin, (bins,).
        edges: of the bins, (bins + 1,).
        means: of the pairs within classes, and between them.
        pictures: how many the pairs are of.
    """

    measure: Measure
    within: NDArray[np.int64]
    between: NDArray[np.int64]
    edges: NDArray[np.float64]
    means: tuple[float, float]
    pictures: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "measure": self.measure,
            "pictures": self.pictures,
            "within": {"mean": self.means[0], "pairs": int(self.within.sum()), "counts": self.within.tolist()},
            "between": {"mean": self.means[1], "pairs": int(self.between.sum()), "counts": self.between.tolist()},
            "edges": self.edges.tolist(),
        }


def count_pairs(labelled: LabelledVectors, measure: Measure, bins: int = BINS, most: int = MOST) -> Pairs:
    """Distances or similarities of all pairs of vectors, as histograms.

    Args:
        labelled: vectors and their classes; they are taken as they are, not standardised.
        measure: "distance" or "similarity".
        bins: of the histogram, equal ones from the least value to the largest.
        most: of more pictures so many are drawn at random, always the same.

    Raises:
        ValueError: the measure is not known; or no two pictures are of one class.

    >>> vectors = np.array([[1, 0], [1, 0], [0, 2], [0, 4]], np.float32)
    >>> pairs = count_pairs(LabelledVectors(vectors, np.array([0, 0, 1, 1]), ("a", "b")), "similarity", bins=2)
    >>> pairs.within.tolist(), pairs.between.tolist(), pairs.edges.tolist(), pairs.means
    ([0, 2], [4, 0], [0.0, 0.5, 1.0], (1.0, 0.0))
    """
    if measure not in ("distance", "similarity"):
        raise ValueError(f"unknown measure {measure!r}; known: distance, similarity")
    vectors, labels = labelled.vectors, labelled.labels
    if len(labels) > most:
        some = np.random.default_rng(SEED).choice(len(labels), most, replace=False)
        vectors, labels = vectors[some], labels[some]
    rows = vectors.astype(np.float64)
    if measure == "similarity":
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = rows / np.where(lengths > 0, lengths, 1)
    squares = (rows**2).sum(1)
    values, same = [], []
    for start in range(0, len(rows), ROWS):
        stop = min(start + ROWS, len(rows))
        products = rows[start:stop] @ rows.T
        if measure == "similarity":
            found = np.clip(products, -1, 1)
        else:
            found = np.sqrt(np.maximum(squares[start:stop, None] + squares - 2 * products, 0))
        above = np.arange(start, stop)[:, None] < np.arange(len(rows))  # each pair once
        values.append(found[above].astype(np.float32))
        same.append((labels[start:stop, None] == labels)[above])
    every, mates = np.concatenate(values), np.concatenate(same)
    if not mates.any() or mates.all():
        raise ValueError("there are no pairs within classes, or none between them; give two classes of two pictures")
    edges = np.histogram_bin_edges(every.astype(np.float64), bins)
    within, between = (np.histogram(every[mask], edges)[0] for mask in (mates, ~mates))
    means = float(every[mates].mean(dtype=np.float64)), float(every[~mates].mean(dtype=np.float64))
    return Pairs(measure, within, between, edges, means, len(rows))

"""t-SNE by openTSNE, with exact neighbours: the one place that imports it.

Source: openTSNE: a modular Python library for t-SNE dimensionality reduction and embedding, Policar, Strazar and Zupan,
doi:10.18637/jss.v109.i03; what it computes: Visualizing Data using t-SNE, van der Maaten and Hinton, 2008.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from openTSNE import TSNE, TSNEEmbedding
from openTSNE.affinity import PerplexityBasedNN
from openTSNE.nearest_neighbors import KNNIndex
from scipy.sparse import csr_matrix

EARLY, STEPS = 250, 500  # of the optimisation: with exaggeration, and after it
PLACING = 250  # steps, of new pictures
NEAR = 5.0  # perplexity of new pictures, as openTSNE has it
EVERY = 25  # steps between two reports
MANY = 10_000  # pictures from which the forces are interpolated on a grid instead of summed over a tree
BLOCK = 1024  # rows that are searched at once

Report = Callable[[int, int], None]


def fit(reduced: NDArray[np.float32], perplexity: float, report: Report | None) -> NDArray[np.float64]:
    """Places (N, 2) of vectors (N, k) whose first two values are those of the largest variance.

    The start is these two values, so that the map has the large outline of the vectors and depends on no chance.
    """
    neighbours = _Neighbours(reduced, min(len(reduced) - 1, max(1, int(3 * perplexity))))
    affinities = PerplexityBasedNN(perplexity=perplexity, knn_index=neighbours, n_jobs=_threads(len(reduced)))
    start = reduced[:, :2].astype(np.float64)
    if start.shape[1] < 2:
        start = np.column_stack([start, np.zeros(len(start))])
    start /= start[:, 0].std() / 1e-4  # what it takes for the first steps to be small
    start += np.random.RandomState(0).normal(0, 1e-6, start.shape)  # equal vectors must not lie upon each other
    model = TSNE(
        perplexity=perplexity,
        early_exaggeration_iter=EARLY,
        n_iter=STEPS,
        random_state=0,
        negative_gradient_method=_method(len(reduced)),
        n_jobs=_threads(len(reduced)),
        **_reporting(report, EARLY, STEPS),
    )
    return np.asarray(model.fit(affinities=affinities, initialization=start))


def place(
    reduced: NDArray[np.float32], positions: NDArray[np.float64], new: NDArray[np.float32], report: Report | None
) -> NDArray[np.float64]:
    """Places (M, 2) of new vectors (M, k) among old ones (N, k), which stay where they are, (N, 2)."""
    old = TSNEEmbedding(
        positions,
        _OfOld(reduced),
        negative_gradient_method=_method(len(reduced)),
        theta=0.5,
        n_jobs=_threads(len(new)),
        **_reporting(report, 0, PLACING),
    )
    placed = old.transform(new, perplexity=min(NEAR, len(reduced) / 3), n_iter=PLACING)
    return np.asarray(placed) + (positions[0] - np.asarray(old)[0])  # it moves the old ones to the middle


def _method(count: int) -> str:
    return "fft" if count >= MANY else "bh"


def _threads(count: int) -> int:
    """Its threads wait for each other a thousand times a second by spinning: few pictures are faster with one."""
    return torch.get_num_threads() if count >= MANY else 1


def _reporting(report: Report | None, early: int, steps: int) -> dict[str, Any]:
    """Options that have openTSNE say how far it is; it counts the steps of each of its two parts from 0."""
    if report is None:
        return {}
    seen = [0]

    def said(iteration: int, error: float, embedding: object) -> None:
        seen[0] = min(seen[0] + EVERY, early + steps)
        report(seen[0], early + steps)

    return {"callbacks": said, "callbacks_every_iters": EVERY}


class _Neighbours(KNNIndex):  # type: ignore[misc]
    """The nearest by comparing all, so that neither threads nor chance change them."""

    VALID_METRICS = ("euclidean",)

    def build(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        return self._nearest(self.data, self.k, itself=False)

    def query(self, query: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        return self._nearest(query, k, itself=True)

    def _nearest(self, rows: NDArray[np.float32], k: int, itself: bool) -> Any:
        among = torch.from_numpy(self.data).double()
        lengths = among.square().sum(1)
        among = among.T.contiguous()
        places, distances = [], []
        for start in range(0, len(rows), BLOCK):
            block = torch.from_numpy(rows[start : start + BLOCK]).double()
            squares = torch.addmm(lengths, block, among, alpha=-2) + block.square().sum(1, keepdim=True)
            if not itself:
                several = torch.arange(len(block))
                squares[several, several + start] = torch.inf
            found = squares.topk(k, largest=False)
            places.append(found.indices.numpy())
            distances.append(found.values.clamp(min=0).sqrt().numpy())
        return np.concatenate(places), np.concatenate(distances)


class _OfOld(PerplexityBasedNN):  # type: ignore[misc]
    """What places new pictures; what is between the old ones is not computed again."""

    def __init__(self, reduced: NDArray[np.float32]) -> None:
        self.knn_index = _Neighbours(reduced, 1)
        self.P = csr_matrix((len(reduced), len(reduced)))
        self.n_jobs, self.verbose = 1, False

"""Exact, reproducible t-SNE by openTSNE; imported only where a map is computed, as openTSNE is an extra.

Source: openTSNE: a modular Python library for t-SNE dimensionality reduction and embedding, Policar, Strazar and Zupan,
doi:10.18637/jss.v109.i03.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from openTSNE import TSNE, TSNEEmbedding
from openTSNE.affinity import PerplexityBasedNN
from openTSNE.nearest_neighbors import KNNIndex
from scipy.sparse import csr_matrix

from convnets_torch.inference.child_process import Progress

EARLY, STEPS = 250, 500  # optimisation steps: with early exaggeration, and after it
PLACING = 250  # optimisation steps for new pictures
NEAR = 5.0  # perplexity for new pictures, openTSNE's default
EVERY = 25  # steps between two progress reports
MANY = 10_000  # from this many pictures, forces are interpolated on a grid (FFT), not summed over a tree (Barnes-Hut)
BLOCK = 1024  # query rows per block of the distance matrix


def fit(reduced: NDArray[np.float32], perplexity: float, report: Progress | None) -> NDArray[np.float64]:
    """Return positions (N, 2) of vectors (N, k) in principal components, the largest variance first.

    The first two components are the initial positions: they keep the global structure, and no randomness is involved.
    """
    neighbours = _Neighbours(reduced, min(len(reduced) - 1, max(1, int(3 * perplexity))))
    affinities = PerplexityBasedNN(perplexity=perplexity, knn_index=neighbours, n_jobs=_threads(len(reduced)))
    start = reduced[:, :2].astype(np.float64)
    if start.shape[1] < 2:
        start = np.column_stack([start, np.zeros(len(start))])
    start /= start[:, 0].std() / 1e-4  # small initial positions keep the first steps small
    start += np.random.RandomState(0).normal(0, 1e-6, start.shape)  # equal vectors must not start at one position
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
    reduced: NDArray[np.float32], positions: NDArray[np.float64], new: NDArray[np.float32], report: Progress | None
) -> NDArray[np.float64]:
    """Return positions (M, 2) of new vectors (M, k) among the old ones (N, k), whose `positions` (N, 2) stay fixed."""
    old = TSNEEmbedding(
        positions,
        _FixedAffinities(reduced),
        negative_gradient_method=_method(len(reduced)),
        theta=0.5,
        n_jobs=_threads(len(new)),
        **_reporting(report, 0, PLACING),
    )
    placed = old.transform(new, perplexity=min(NEAR, len(reduced) / 3), n_iter=PLACING)
    return np.asarray(placed) + (positions[0] - np.asarray(old)[0])  # openTSNE centres the old positions


def _method(count: int) -> str:
    return "fft" if count >= MANY else "bh"


def _threads(count: int) -> int:
    """Return the number of openTSNE threads; they spin at barriers, so one is faster for few pictures."""
    return torch.get_num_threads() if count >= MANY else 1


def _reporting(report: Progress | None, early: int, steps: int) -> dict[str, Any]:
    """Return openTSNE options that report progress; openTSNE counts the steps of both phases from 0."""
    if report is None:
        return {}
    done = 0

    def callback(iteration: int, error: float, embedding: object) -> None:
        nonlocal done
        done = min(done + EVERY, early + steps)
        report(done, early + steps)

    return {"callbacks": callback, "callbacks_every_iters": EVERY}


class _Neighbours(KNNIndex):  # type: ignore[misc]
    """Exact nearest neighbours by brute force, independent of threads and random state."""

    VALID_METRICS = ("euclidean",)

    def build(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        return self._nearest(self.data, self.k, itself=False)

    def query(self, query: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        return self._nearest(query, k, itself=True)

    def _nearest(self, rows: NDArray[np.float32], k: int, itself: bool) -> Any:
        data = torch.from_numpy(self.data).double()
        squared_norms = data.square().sum(1)
        data = data.T.contiguous()
        indices, distances = [], []
        for start in range(0, len(rows), BLOCK):
            block = torch.from_numpy(rows[start : start + BLOCK]).double()
            squares = torch.addmm(squared_norms, block, data, alpha=-2) + block.square().sum(1, keepdim=True)
            if not itself:
                own = torch.arange(len(block))
                squares[own, own + start] = torch.inf
            found = squares.topk(k, largest=False)
            indices.append(found.indices.numpy())
            distances.append(found.values.clamp(min=0).sqrt().numpy())
        return np.concatenate(indices), np.concatenate(distances)


class _FixedAffinities(PerplexityBasedNN):  # type: ignore[misc]
    """Affinities of new pictures to old ones; those between old pictures are not computed again."""

    def __init__(self, reduced: NDArray[np.float32]) -> None:
        self.knn_index = _Neighbours(reduced, 1)
        self.P = csr_matrix((len(reduced), len(reduced)))
        self.n_jobs, self.verbose = 1, False

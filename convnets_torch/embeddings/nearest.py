"""Which of many vectors are nearest to some others: exact, a block of products at a time."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

Metric: TypeAlias = Literal["cosine", "l2", "dot"]

SCORES = 1 << 24  # that are in memory at once
SPARE = 16  # candidates beyond those wanted, whose scores are computed anew with more digits


def check_metric(metric: str) -> None:
    """ValueError where it is none."""
    if metric not in get_args(Metric):
        raise ValueError(f"unknown metric {metric!r}; known: {', '.join(get_args(Metric))}")


def lengths_of(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, values) -> (N,): the lengths of vectors."""
    return np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)).astype(np.float32)


def nearest(
    vectors: NDArray[np.float32],
    queries: NDArray[np.float32],
    k: int,
    metric: Metric = "cosine",
    *,
    lengths: NDArray[np.float32] | None = None,
    allowed: NDArray[np.bool_] | None = None,
    left_out: list[NDArray[np.int64]] | None = None,
) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """The k nearest of many vectors to each query, by looking at all of them.

    Products are taken in float32, in which two vectors that are nearly the same cannot be told apart; the best k and 16
    more are then compared in float64.

    Args:
        vectors: (N, values); may be mapped from a file, and is read once for as many queries as 16 million scores
            have room for.
        queries: (Q, values).
        k: how many for each query; fewer where there are not so many.
        metric: "cosine", the product of the vectors divided by their lengths, 0 where one has none; "dot", the
            product; "l2", the distance.
        lengths: (N,), of the vectors, if they are known.
        allowed: (N,), which vectors count; all by default.
        left_out: for each query the rows that do not count for it.

    Returns:
        For each query (rows, scores), the nearest first: the largest cosines or products, the smallest distances. Of
        equal ones the lower row comes first.

    Raises:
        ValueError: the metric is not known, k is none, or the vectors are of other sizes.

    >>> vectors = np.array([[1, 0], [3, 4], [0, 2]], np.float32)
    >>> [(rows, scores)] = nearest(vectors, np.array([[0, 1]], np.float32), 2)
    >>> rows.tolist(), scores.tolist()
    ([2, 1], [1.0, 0.8])
    """
    check_metric(metric)
    if k < 1:
        raise ValueError(f"{k} nearest vectors are none; ask for 1 or more")
    if vectors.shape[1] != queries.shape[-1] or queries.ndim != 2:
        raise ValueError(f"queries are {queries.shape}, but the vectors have {vectors.shape[1]} values each")
    queries = np.ascontiguousarray(queries, np.float32)
    left_out = left_out or [np.zeros(0, np.int64)] * len(queries)
    if lengths is None and metric != "dot":
        lengths = lengths_of(vectors)
    together = max(1, SCORES // max(1, len(vectors)))
    found = []
    for start in range(0, len(queries), together):
        block = queries[start : start + together]
        scores = _scores(vectors, block, metric, lengths)  # (N,) or (N, Q): the larger, the nearer
        for place in range(len(block)):
            column = scores if scores.ndim == 1 else np.ascontiguousarray(scores[:, place])
            if allowed is not None:
                column[~allowed] = -np.inf
            column[left_out[start + place]] = -np.inf
            found.append(_best(vectors, block[place], column, k, metric))
    return found


def _scores(
    vectors: NDArray[np.float32], queries: NDArray[np.float32], metric: Metric, lengths: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    products: NDArray[np.float32] = vectors @ (queries[0] if len(queries) == 1 else queries.T)
    if metric == "dot":
        return products
    assert lengths is not None
    known = lengths if products.ndim == 1 else lengths[:, None]
    if metric == "cosine":
        products /= np.maximum(known, np.float32(1e-30))  # those of the queries change no order
    else:
        products *= 2
        products -= known * known
    return products


def _best(
    vectors: NDArray[np.float32], query: NDArray[np.float32], scores: NDArray[np.float32], k: int, metric: Metric
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The rows of the largest scores, compared anew in float64."""
    most = min(len(scores), k + SPARE)
    rows = np.sort(np.argpartition(scores, len(scores) - most)[len(scores) - most :])
    rows = rows[np.isfinite(scores[rows])]
    exact = exact_scores(np.asarray(vectors[rows], np.float64), query.astype(np.float64), metric)
    order = np.argsort(exact if metric == "l2" else -exact, kind="stable")[:k]
    return rows[order], exact[order]


def exact_scores(vectors: NDArray[np.float64], query: NDArray[np.float64], metric: Metric) -> NDArray[np.float64]:
    """What the metric says of each vector and the query."""
    if metric == "l2":
        return np.asarray(np.linalg.norm(vectors - query, axis=1))
    products = vectors @ query
    if metric == "dot":
        return products
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
    return np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)

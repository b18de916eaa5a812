"""Approximate search by LanceDB's index of the vectors: faster than looking at all, and not always right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from convnets_torch.embeddings.nearest import Metric, exact_scores
from convnets_torch.embeddings.picture_table import GOOD, PictureTable, refusing

if TYPE_CHECKING:
    from convnets_torch.embeddings.searching import Index

LEAST = 256  # vectors that the index can be trained on
ROWS_IN_PART = 4096  # of the table, about, in each of the parts that the index sorts vectors into
PROBED = 20  # parts that are looked at
REFINED = 10  # times k candidates are compared with their vectors


def nearest(
    index: Index,
    queries: NDArray[np.float32],
    k: int,
    metric: Metric,
    class_ids: tuple[int, ...] | None,
    left_out: list[NDArray[np.int64]],
) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """What `nearest` of vectors gives, from the index of the table, which is made where there is none."""
    held = index.vectors
    if len(held) < LEAST:
        raise ValueError(
            f"{index.address} has {len(held)} vectors, too few to be approximate (from {LEAST} on); search exactly"
        )
    table = index.table
    make_index(table, metric, len(held))
    places = {path: row for row, path in enumerate(held.paths())}
    found = []
    where = GOOD if class_ids is None else f"{GOOD} AND class_id IN ({', '.join(map(str, class_ids))})"
    for query, others in zip(queries, left_out, strict=True):
        rows, limit = np.zeros(0, np.int64), k + 1
        while True:
            with refusing(index.address):
                search = table.table.search(query, vector_column_name="vector").distance_type(metric)
                search = search.where(where, prefilter=True).nprobes(PROBED).refine_factor(REFINED)
                paths = search.select(["path", "_distance"]).limit(limit).to_arrow()["path"].to_pylist()
            rows = np.array([places[path] for path in paths if path in places], np.int64)
            rows = np.array(list(dict.fromkeys(held.first[rows].tolist())), np.int64)  # pictures, not their copies
            rows = rows[~np.isin(rows, others)][:k]
            if len(rows) == k or len(paths) < limit:
                break
            limit *= 2
        scores = exact_scores(held.vectors[rows].astype(np.float64), query.astype(np.float64), metric)
        order = np.argsort(scores if metric == "l2" else -scores, kind="stable")
        found.append((rows[order], scores[order]))
    return found


def make_index(table: PictureTable, metric: Metric, count: int) -> None:
    """An index of the vectors for a metric, in the place of one for another; nothing where it is there."""
    from lancedb.index import IvfPq

    with refusing(table.address):
        for known in table.table.list_indices():
            if known.columns == ["vector"]:
                statistics = table.table.index_stats(known.name)
                if statistics is not None and statistics.distance_type == metric:
                    return
        parts = max(1, count // ROWS_IN_PART)
        table.table.create_index("vector", config=IvfPq(distance_type=metric, num_partitions=parts), replace=True)

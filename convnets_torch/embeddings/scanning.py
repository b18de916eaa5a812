"""Exact search where an index lies: all of its vectors are read and none is kept, so that an index may have any size.

Each part of the table gives its nearest; merged by score and then by path, these are the nearest of the whole.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from convnets_torch.embeddings.index_table import GOOD, PictureTable, values_of
from convnets_torch.embeddings.neighbours import Metric, nearest

COLUMNS = ("path", "sha256", "class_id", "probability", "vector")


@dataclass(frozen=True, eq=False)
class Question:
    """What is searched for.

    Attributes:
        vectors: (Q, values), the queries.
        k: number of results for each.
        metric: as in `nearest`.
        class_ids: classes of the results; None for all.
        left_out: for each query the sha256 of its own content, or None.
    """

    vectors: NDArray[np.float32]
    k: int
    metric: Metric
    class_ids: tuple[int, ...] | None
    left_out: Sequence[str | None]


class Hit(NamedTuple):
    """A result; `rank` is smaller for nearer ones, so that hits are in the order of score and path."""

    rank: float
    path: str
    sha256: str
    class_id: int | None
    probability: float | None

    def score(self, metric: Metric) -> float:
        return self.rank if metric == "l2" else -self.rank


Hits: TypeAlias = "list[list[Hit]]"  # for each query
Scan: TypeAlias = "Callable[[PictureTable, Question], Hits]"


def hits_in(table: PictureTable, batches: Iterable[Any], question: Question) -> Hits:
    """Return the nearest among rows of a table, which come as record batches of `COLUMNS`."""
    return merged((_hits(table, batch, question) for batch in batches), question)


def merged(parts: Iterable[Hits], question: Question) -> Hits:
    """Merge the hits of parts of a table; of several files with the same content the first path counts."""
    best: Hits = [[] for _ in question.left_out]
    for part in parts:
        for place, (known, more) in enumerate(zip(best, part, strict=True)):
            found: dict[str, Hit] = {}
            for hit in heapq.merge(known, more):
                found.setdefault(hit.sha256, hit)
            best[place] = list(found.values())[: question.k]
    return best


def _hits(table: PictureTable, batch: Any, question: Question) -> Hits:
    batch = batch.filter(table.is_sound(batch))
    if not len(batch):
        return [[] for _ in question.left_out]
    hashes = np.array(batch["sha256"].to_pylist())
    class_ids, paths = batch["class_id"].to_pylist(), batch["path"].to_pylist()
    order = np.lexsort((np.array(paths), hashes))
    again = order[1:][hashes[order][1:] == hashes[order][:-1]]  # copies, of which the first path counts
    allowed = np.ones(len(batch), bool) if question.class_ids is None else np.isin(
        batch["class_id"].fill_null(-1).to_numpy(zero_copy_only=False), question.class_ids
    )  # fmt: skip
    left_out = [np.union1d(again, np.flatnonzero(hashes == own)) for own in question.left_out]
    values = values_of(batch["vector"], table.about.width)
    found = nearest(values, question.vectors, question.k, question.metric, allowed=allowed, left_out=left_out)
    sign = 1 if question.metric == "l2" else -1
    chances = batch["probability"].to_pylist()
    return [
        sorted(
            Hit(sign * float(score), paths[row], str(hashes[row]), class_ids[row], chances[row])
            for row, score in zip(rows.tolist(), scores, strict=True)
        )
        for rows, scores in found
    ]


def scan(table: PictureTable, question: Question) -> Hits:
    """Return the nearest in the whole table, read in this process."""
    return hits_in(table, table.read(COLUMNS, GOOD), question)


def approximate_hits(table: PictureTable, question: Question, probes: int, refine: int) -> Iterator[list[Hit]]:
    """Yield the hits of each query by the table's approximate index, ranked by the vectors themselves."""
    for number, vector in enumerate(question.vectors):
        limit = question.k + 1
        where = GOOD if question.class_ids is None else (
            f"{GOOD} AND class_id IN ({', '.join(map(str, question.class_ids))})"
        )  # fmt: skip
        one = Question(vector[None], question.k, question.metric, question.class_ids, [question.left_out[number]])
        while True:
            batches = table.nearest(vector, question.metric, where, limit, probes, refine, COLUMNS)
            count = sum(map(len, batches))
            [hits] = hits_in(table, batches, one)
            if len(hits) == question.k or count < limit:
                break
            limit *= 2
        yield hits

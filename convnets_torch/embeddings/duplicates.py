"""Pictures that are nearly the same: groups of them in a collection, and leaks from one collection into another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 4096  # vectors that are compared with as many others at a time: 64 MB of cosines
JOINED = 1024  # pairs that are joined one by one before the others are looked at again


@dataclass(frozen=True)
class Leak:
    """A vector of one collection that is nearly one of another.

    Attributes:
        row: in the first collection.
        of: the nearest row of the other.
        similarity: their cosine.
    """

    row: int
    of: int
    similarity: float


def find_duplicates(
    vectors: NDArray[np.float32], threshold: float, progress: Callable[[int, int], None] | None = None
) -> list[list[int]]:
    """Groups of vectors that are nearly the same.

    Two belong together when their cosine is at least the threshold, or when others lead from one to the other step by
    step. All pairs are looked at, 4096 x 4096 at a time; never are all cosines in memory.

    Args:
        vectors: (N, values); may be mapped from a file.
        threshold: a cosine, above 0 and at most 1. Cosines are taken in float32: of equal vectors they may be 1e-6 less
            than 1, so that the threshold is taken that much lower.
        progress: told how many of how many pairs of blocks are done.

    Returns:
        Of each group of two or more the rows, sorted; the groups by their first rows.

    Raises:
        ValueError: the threshold is out of range.

    >>> find_duplicates(np.array([[1, 0], [0, 1], [1, 0.1], [0, 2], [-1, 0]], np.float32), 0.9)
    [[0, 2], [1, 3]]
    """
    _check(threshold)
    groups = _Groups(len(vectors))
    starts = range(0, len(vectors), BLOCK)
    total, done = len(starts) * (len(starts) + 1) // 2, 0
    for start in starts:
        block = _normalized(vectors[start : start + BLOCK])
        for other in range(start, len(vectors), BLOCK):
            right = block if other == start else _normalized(vectors[other : other + BLOCK])
            rows, columns = np.nonzero(block @ right.T >= threshold - 1e-6)
            groups.join(rows + start, columns + other)
            done += 1
            if progress is not None:
                progress(done, total)
    return groups.listed()


def find_leaks(
    vectors: NDArray[np.float32],
    others: NDArray[np.float32],
    threshold: float,
    progress: Callable[[int, int], None] | None = None,
) -> list[Leak]:
    """Which vectors of one collection are nearly in another, for instance those of a test set in a training set.

    Args:
        vectors: (N, values), of the collection that may hold what leaked.
        others: (M, values), of the collection that it may come from.
        threshold, progress: as in `find_duplicates`.

    Returns:
        Of each row whose cosine to some row of the other is at least the threshold: the nearest of these, the most
        similar first.

    Raises:
        ValueError: the threshold is out of range.

    >>> find_leaks(np.array([[1, 0], [0, 1]], np.float32), np.array([[1, 1], [3, 0]], np.float32), 0.9)
    [Leak(row=0, of=1, similarity=1.0)]
    """
    _check(threshold)
    starts, parts = range(0, len(vectors), BLOCK), range(0, len(others), BLOCK)
    found = []
    done = 0
    for start in starts:
        block = _normalized(vectors[start : start + BLOCK])
        best, place = np.full(len(block), -np.inf, np.float32), np.zeros(len(block), np.int64)
        for other in parts:
            cosines = block @ _normalized(others[other : other + BLOCK]).T
            columns = cosines.argmax(1)
            values = cosines[np.arange(len(block)), columns]
            better = values > best
            best[better], place[better] = values[better], columns[better] + other
            done += 1
            if progress is not None:
                progress(done, len(starts) * len(parts))
        for row in np.flatnonzero(best >= threshold - 1e-6):
            found.append(Leak(start + int(row), int(place[row]), min(1.0, float(best[row]))))
    return sorted(found, key=lambda leak: (-leak.similarity, leak.row))


def least_cosine(vectors: NDArray[np.float32]) -> float:
    """The cosine of the two vectors, of some (N, values), that are least alike.

    >>> least_cosine(np.array([[2, 0], [1, 1], [0, 3]], np.float32))
    0.0
    """
    least = 1.0
    for start in range(0, len(vectors), BLOCK):
        block = _normalized(vectors[start : start + BLOCK])
        for other in range(start, len(vectors), BLOCK):
            right = block if other == start else _normalized(vectors[other : other + BLOCK])
            least = min(least, float((block @ right.T).min()))
    return least


class _Groups:
    """Disjoint sets of rows; each is called by its least row."""

    def __init__(self, count: int) -> None:
        self._names = np.arange(count)

    def join(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> None:
        """Make one set of the sets of each pair."""
        while True:
            apart = self._names[left] != self._names[right]
            left, right = left[apart], right[apart]
            if not len(left):
                return
            for one, other in zip(left[:JOINED].tolist(), right[:JOINED].tolist(), strict=True):
                one, other = self._root(one), self._root(other)
                self._names[max(one, other)] = min(one, other)
            while True:  # names of names, until each is the set's own
                shorter = self._names[self._names]
                if np.array_equal(shorter, self._names):
                    break
                self._names = shorter

    def _root(self, row: int) -> int:
        while (name := int(self._names[row])) != row:
            row = name
        return row

    def listed(self) -> list[list[int]]:
        """The sets of two or more."""
        return list(_several(self._names))


def _several(names: NDArray[np.int64]) -> Iterator[list[int]]:
    order = np.argsort(names, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(names[order])) + 1):
        if len(group) > 1:
            yield group.tolist()


def _normalized(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each divided by its length; one of zeros is like no other, itself among them."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0))


def _check(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise ValueError(f"a threshold of {threshold} is no cosine of what is alike; give one above 0 and up to 1")

"""Pictures that are nearly the same: within a collection, and between training and test pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnets_torch.embeddings.index_table import PictureFile, files_of
from convnets_torch.embeddings.neighbours import Vectors, exact_scores

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


CHAIN = 2.0  # times as far from 1 as the threshold: so unlike may two files be in a group that is no chain
UNLIKE = 1e-3  # from 1, at least, that those of a chain are


@dataclass(frozen=True)
class Duplicate(PictureFile):
    """A file of a group.

    Attributes:
        cosine: of its vector and that of the group's first file.
    """

    cosine: float = 1.0


@dataclass(frozen=True)
class DuplicateGroup:
    """Files that are nearly the same, of which one may be kept.

    Attributes:
        files: the suggested keeper first, then those that are there, the largest first, then those that are gone.
        keeper: path of the file with the most pixels, and of these the one with the most bytes; never one that is gone
            or a link. None where there is no other.
        least_cosine: of the two files that are least alike.
        chain: these two are so unlike, more than twice as far from 1 as the threshold, that only other files, from one
            to the next, connect them. Look at all before one is deleted.
    """

    files: tuple[Duplicate, ...]
    keeper: str | None
    least_cosine: float
    chain: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; "group" are all paths, in the order of the files."""
        return {"group": [path for file in self.files for path in file.paths], **asdict(self)}


def group_of(held: Vectors, rows: Sequence[int], threshold: float) -> DuplicateGroup:
    """What there is to say of rows that `find_duplicates` has put into one group."""
    row_of = {held.path(row): row for row in rows}
    files = sorted(
        files_of(row_of), key=lambda file: (file.gone, file.link, -file.pixels, -(file.bytes or 0), file.paths[0])
    )
    keeper = None if files[0].gone or files[0].link else files[0].paths[0]
    own = held.vectors[[row_of[files[0].paths[0]]]].astype(np.float64)
    found = []
    for file in files:
        [cosine] = exact_scores(held.vectors[[row_of[file.paths[0]]]].astype(np.float64), own[0], "cosine")
        found.append(Duplicate(**vars(file), cosine=min(1.0, float(cosine))))
    least = least_cosine(held.vectors[np.unique(held.first[list(rows)])])
    return DuplicateGroup(tuple(found), keeper, least, 1 - least > max(UNLIKE, CHAIN * (1 - threshold)))

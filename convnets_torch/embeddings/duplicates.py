"""Find near-duplicate pictures, within a collection or between a training and a test set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnets_torch.embeddings.index_table import PictureFile, files_of
from convnets_torch.embeddings.neighbours import Vectors, exact_scores
from convnets_torch.inference.child_process import Progress

SLACK = 1e-6  # by which cosines in float32 are below those of equal vectors, at most
BLOCK = 4096  # rows and columns of a block of the similarity matrix: 64 MB of cosines


@dataclass(frozen=True)
class Leak:
    """A vector of one collection with a near-duplicate in another.

    Attributes:
        row: row in the first collection.
        of: nearest row in the other collection.
        similarity: cosine similarity of the two.
    """

    row: int
    of: int
    similarity: float


def find_duplicates(
    vectors: NDArray[np.float32], threshold: float, progress: Progress | None = None
) -> list[list[int]]:
    """Group vectors that are nearly the same.

    Groups are the connected components of the graph whose edges are pairs with a cosine similarity of at least
    `threshold`. All pairs are compared, in blocks of 4096 x 4096, so the full similarity matrix is never in memory.

    Args:
        vectors: (N, values); may be memory-mapped.
        threshold: cosine similarity, above 0 and at most 1. Cosines are computed in float32, where those of equal
            vectors may be 1e-6 below 1, so the threshold is lowered by that much.
        progress: called with (done, total), in pairs of blocks.

    Returns:
        Sorted rows of each group of two or more; groups are ordered by their first row.

    Raises:
        ValueError: the threshold is out of range.

    >>> find_duplicates(np.array([[1, 0], [0, 1], [1, 0.1], [0, 2], [-1, 0]], np.float32), 0.9)
    [[0, 2], [1, 3]]
    """
    check_threshold(threshold)
    groups = Groups(len(vectors))
    for start, column, cosines in _cosines(vectors, None, progress):
        rows, columns = np.nonzero(cosines >= threshold - SLACK)
        groups.join(rows + start, columns + column)
    return groups.listed()


def near_pairs(
    vectors: NDArray[np.float32], rows: range, columns: range, threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Compare a part of all pairs: some rows with some columns of the similarity matrix, on and above its diagonal.

    Together, the parts of a whole matrix join the groups that `find_duplicates` finds, from the same blocks.

    Args:
        vectors, threshold: as in `find_duplicates`.
        rows, columns: both begin at multiples of 4096; equal, or all rows before all columns.

    Returns:
        (rows, rows), pairs that join all rows that are nearly the same, at most one pair for each row and column.
    """
    check_threshold(threshold)
    same = rows == columns
    groups = Groups(len(rows) if same else len(rows) + len(columns))
    shift = -columns.start if same else len(rows) - columns.start  # from a column to its place in the groups
    corners = [(row, column) for row in rows[::BLOCK] for column in columns[::BLOCK] if column >= row]
    for row, column, cosines in _blocks(vectors, None, corners, rows.stop, columns.stop):
        left, right = np.nonzero(cosines >= threshold - SLACK)
        groups.join(left + (row - rows.start), right + (column + shift))
    places = np.array([*rows, *(() if same else columns)], np.int64)
    joined = np.flatnonzero(groups.labels != np.arange(len(places)))
    return places[groups.labels[joined]], places[joined]


def find_leaks(
    vectors: NDArray[np.float32],
    others: NDArray[np.float32],
    threshold: float,
    progress: Progress | None = None,
) -> list[Leak]:
    """Find vectors of one collection that have near-duplicates in another, such as a test set in a training set.

    Args:
        vectors: (N, values), the collection to check, such as the test set.
        others: (M, values), the collection to compare with, such as the training set.
        threshold, progress: as in `find_duplicates`.

    Returns:
        For each row of `vectors` with a similarity of at least `threshold` to some row of `others`, the most similar
        row; the highest similarity first.

    Raises:
        ValueError: the threshold is out of range.

    >>> find_leaks(np.array([[1, 0], [0, 1]], np.float32), np.array([[1, 1], [3, 0]], np.float32), 0.9)
    [Leak(row=0, of=1, similarity=1.0)]
    """
    check_threshold(threshold)
    best, nearest = np.full(len(vectors), -np.inf, np.float32), np.zeros(len(vectors), np.int64)
    for start, column, cosines in _cosines(vectors, others, progress):
        columns = cosines.argmax(1)
        values = cosines[np.arange(len(cosines)), columns]
        rows = start + np.flatnonzero(values > best[start : start + len(cosines)])
        best[rows], nearest[rows] = values[rows - start], columns[rows - start] + column
    rows = np.flatnonzero(best >= threshold - SLACK)
    found = [Leak(int(row), int(nearest[row]), min(1.0, float(best[row]))) for row in rows]
    return sorted(found, key=lambda leak: (-leak.similarity, leak.row))


def least_cosine(vectors: NDArray[np.float32]) -> float:
    """Return the lowest cosine similarity of any two of the vectors (N, values).

    >>> least_cosine(np.array([[2, 0], [1, 1], [0, 3]], np.float32))
    0.0
    """
    return min((float(cosines.min()) for _, _, cosines in _cosines(vectors)), default=1.0)


def _cosines(
    vectors: NDArray[np.float32],
    others: NDArray[np.float32] | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
    """Yield (first row, first column, cosines) of blocks of all pairs with `others`, or of each pair of `vectors`."""
    right = vectors if others is None else others
    corners = [
        (row, column)
        for row in range(0, len(vectors), BLOCK)
        for column in range(row if others is None else 0, len(right), BLOCK)
    ]
    for done, block in enumerate(_blocks(vectors, others, corners, len(vectors), len(right)), start=1):
        yield block
        if progress is not None:
            progress(done, len(corners))


def _blocks(
    vectors: NDArray[np.float32],
    others: NDArray[np.float32] | None,
    corners: Iterable[tuple[int, int]],
    last_row: int,
    last_column: int,
) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
    """Yield (first row, first column, cosines) of the blocks at some corners, up to a last row and column."""
    right = vectors if others is None else others
    block, at = vectors[:0], -1
    for row, column in corners:
        if row != at:
            block, at = _normalized(vectors[row : min(row + BLOCK, last_row)]), row
        same = others is None and row == column
        yield row, column, block @ (block if same else _normalized(right[column : min(column + BLOCK, last_column)])).T


class Groups:
    """Disjoint sets of rows (union-find).

    Attributes:
        labels: of each row, the lowest row of its set.
    """

    def __init__(self, count: int) -> None:
        self.labels = np.arange(count)

    def join(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> None:
        """Merge the sets of each pair."""
        while True:
            one, other = self.labels[left], self.labels[right]
            apart = one != other
            if not apart.any():
                return
            left, right, one, other = left[apart], right[apart], one[apart], other[apart]
            np.minimum.at(self.labels, np.maximum(one, other), np.minimum(one, other))
            while True:  # path compression
                shorter = self.labels[self.labels]
                if np.array_equal(shorter, self.labels):
                    break
                self.labels = shorter

    def listed(self) -> list[list[int]]:
        """Return the sets of two or more rows."""
        order = np.argsort(self.labels, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(self.labels[order])) + 1)
        return [group.tolist() for group in groups if len(group) > 1]


def _normalized(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """L2-normalise rows; a zero row stays zero, so its similarity to everything is 0."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0))


def check_threshold(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise ValueError(f"the similarity threshold is {threshold}; give a cosine above 0 and at most 1")


CHAIN = 2.0  # a group is a chain if its least cosine is more than this many times as far from 1 as the threshold
UNLIKE = 1e-3  # ... and at least this far from 1


@dataclass(frozen=True)
class Duplicate(PictureFile):
    """A file of a group.

    Attributes:
        cosine: similarity to the group's first file.
    """

    cosine: float = 1.0


@dataclass(frozen=True)
class DuplicateGroup:
    """Files that are nearly the same.

    Attributes:
        files: the suggested keeper first, then existing files, the largest first, then deleted ones.
        keeper: path of the file to keep: the one with the most pixels, then the most bytes. A deleted file or a link is
            never suggested; None if there is no other.
        least_cosine: lowest similarity of any two files in the group.
        chain: the two least similar files are more than twice as far from 1 as the threshold, so only intermediate
            files connect them. Look at all files before deleting one.
    """

    files: tuple[Duplicate, ...]
    keeper: str | None
    least_cosine: float
    chain: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; "group" lists all paths, in the order of the files."""
        return {"group": [path for file in self.files for path in file.paths], **asdict(self)}


def group_of(held: Vectors, rows: Sequence[int], threshold: float) -> DuplicateGroup:
    """Describe the rows of one group of `find_duplicates`."""
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

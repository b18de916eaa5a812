"""Maps of collections: pictures whose vectors are near to each other lie near to each other on a plane."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

COMPONENTS = 50  # principal ones that are kept of the vectors
FEWEST = 3  # pictures of a map
PERPLEXITY = 30.0
ROUNDING = 1e-5  # of a vector's length: so far apart are those of one picture, which depend on its batch


class MapWarning(UserWarning):
    """What was done otherwise than asked, because the collection is small."""


@dataclass(frozen=True, eq=False)
class ImageMap:
    """Places of pictures, and what it takes to place others among them.

    Attributes:
        positions: (N, 2) float32, x to the right and y upwards, in units of their own; the middle is at 0. Pictures
            whose vectors are equal up to rounding are at one place.
        perplexity: about how many neighbours each picture was kept near to.
        mean: (values,) float32, of the vectors.
        axes: (k, values) float32, the principal components, the one of the largest variance first.
        reduced: (N, k) float32, the vectors in these components.
    """

    positions: NDArray[np.float32]
    perplexity: float
    mean: NDArray[np.float32]
    axes: NDArray[np.float32]
    reduced: NDArray[np.float32]

    def place(self, vectors: ArrayLike, *, report: Callable[[int, int], None] | None = None) -> NDArray[np.float32]:
        """Place new pictures on the map; the old ones stay where they are.

        Each is placed by itself among the old ones: what else is placed does not matter.

        Args:
            vectors: (M, values), of the same kind as those that the map was made of.
            report: is told now and then how many of how many steps are done.

        Returns:
            (M, 2) float32.

        Raises:
            ValueError: vectors of another number of values, or with NaN or infinite ones.
            ImportError: openTSNE is missing.

        >>> vectors = np.random.RandomState(0).normal(size=(40, 8))
        >>> found = make_map(vectors, perplexity=5)
        >>> found.place(vectors[:2] + 0.01).shape
        (2, 2)
        """
        tsne = _tsne()
        checked = _checked(vectors)
        if checked.shape[1] != len(self.mean):
            raise ValueError(
                f"the map is of vectors of {len(self.mean)} values, and the new ones have {checked.shape[1]};"
                " make them with the same network and layer"
            )
        new = np.ascontiguousarray((checked - self.mean) @ self.axes.T, np.float32)
        _, one = np.unique(self.positions, axis=0, return_index=True)  # picture for each place
        one.sort()
        return tsne.place(self.reduced[one], self.positions[one].astype(np.float64), new, report).astype(np.float32)


def make_map(
    vectors: ArrayLike, *, perplexity: float = PERPLEXITY, report: Callable[[int, int], None] | None = None
) -> ImageMap:
    """Lay pictures out on a plane by t-SNE, so that those with near vectors are near.

    The vectors are reduced to their 50 principal components first. On one machine the same vectors always give the
    same map, whatever the number of threads: neighbours are searched exactly, and the start is the first two
    components. Pictures whose vectors are equal, such as copies, count as one and lie at one place. What a map shows is
    who is near to whom; distances between groups and their sizes mean little.

    Args:
        vectors: (N, values), at least 3 of them different, such as `embed` gives them.
        perplexity: about how many neighbours each picture is kept near to; few show small groups, many large ones. The
            most is half of the other pictures that are different.
        report: is told now and then how many of how many steps are done.

    Raises:
        ValueError: vectors of another shape, fewer than 3 that are different, or with NaN or infinite values; a
            perplexity below 1.
        ImportError: openTSNE is missing.

    Warns:
        MapWarning: the perplexity was too large for so few pictures, and a smaller one was taken.

    >>> found = make_map(np.random.RandomState(0).normal(size=(40, 8)), perplexity=5)
    >>> found.positions.shape, found.axes.shape
    ((40, 2), (8, 8))
    """
    checked = _checked(vectors)
    if len(checked) < FEWEST:
        raise ValueError(f"there are {len(checked)} vectors, and a map needs {FEWEST} or more; give more pictures")
    if not perplexity >= 1:  # NaN is neither
        raise ValueError(f"the perplexity is {perplexity}; give 1 or more, such as {PERPLEXITY:.0f}")
    if not (checked != checked[0]).any():
        raise ValueError(f"all {len(checked)} vectors are equal, so that there is nothing to map; give other pictures")
    mean, axes, reduced = _components(checked)
    one, place_of = np.unique(_first_alike(reduced, _rounding(checked)), return_inverse=True)
    if len(one) < FEWEST:
        raise ValueError(
            f"of {len(checked)} vectors {len(one)} are different, and a map needs {FEWEST} or more; give other pictures"
        )
    tsne = _tsne()
    most = (len(one) - 1) / 2
    if perplexity > most:
        warnings.warn(
            f"a perplexity of {perplexity:g} needs {int(2 * perplexity) + 1} pictures or more, and there are"
            f" {len(one)}; {most:.3g} was taken",
            MapWarning,
            stacklevel=2,
        )
        perplexity = most
    positions = tsne.fit(reduced[one], perplexity, report)[place_of]
    positions -= (positions.max(axis=0) + positions.min(axis=0)) / 2
    return ImageMap(positions.astype(np.float32), float(perplexity), mean, axes, reduced)


def check_installed() -> None:
    """Raise, before long work begins, when openTSNE is missing.

    Raises:
        ImportError: it is.
    """
    _tsne()


def _tsne() -> Any:
    try:
        return importlib.import_module("convnets_torch.embeddings.tsne")
    except ModuleNotFoundError as error:
        if error.name not in ("openTSNE", "sklearn", "scipy"):
            raise
        raise ImportError("a map of pictures needs openTSNE: pip install 'convnets-torch[maps]'") from None


def _checked(vectors: ArrayLike) -> NDArray[np.float32]:
    checked = np.asarray(vectors, np.float32)
    if checked.ndim != 2 or not checked.shape[1]:
        raise ValueError(f"the vectors are {checked.shape}; give (pictures, values)")
    bad = ~np.isfinite(checked).all(axis=1, keepdims=True)
    if bad.any():
        raise ValueError(
            f"{bad.sum()} of {len(checked)} vectors have values that are NaN or infinite, the first is number"
            f" {bad.argmax()}, from 0; leave them out, or make them anew"
        )
    return checked


def _components(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
    """Mean, principal axes, and the vectors in them."""
    from sklearn.decomposition import PCA

    count = min(COMPONENTS, len(vectors) - 1, vectors.shape[1])
    found = PCA(count, random_state=0).fit(vectors)  # its search for axes begins at random
    mean, axes = found.mean_.astype(np.float32), np.ascontiguousarray(found.components_, np.float32)
    return mean, axes, np.ascontiguousarray((vectors - mean) @ axes.T, np.float32)


def _rounding(vectors: NDArray[np.float32]) -> float:
    """How far apart two vectors of one picture may be."""
    return ROUNDING * float(np.median(np.linalg.norm(vectors, axis=1)))


def _first_alike(reduced: NDArray[np.float32], near: float) -> NDArray[np.int64]:
    """(N,), for each vector one that is not farther than `near` from it and stands for all such; often itself."""
    direction = np.random.RandomState(0).normal(size=reduced.shape[1])
    along = reduced @ (direction / np.linalg.norm(direction))  # differs no more than the vectors do
    first = np.arange(len(reduced))
    waiting: list[int] = []  # those that stand for others and are near in this direction
    for row in np.argsort(along, kind="stable").tolist():
        waiting = [other for other in waiting if along[row] - along[other] <= near]
        alike = (other for other in waiting if np.linalg.norm(reduced[row] - reduced[other]) <= near)
        first[row] = next(alike, row)
        if first[row] == row:
            waiting.append(row)
    return first

"""Shorter vectors for a large index: a projection on principal components that is trained once and kept in the table.

The components are those of the vectors themselves, not of their distances from a mean, so that products, cosines and
distances of projected vectors approximate those of the whole ones.

Source: A Tutorial on Principal Component Analysis, arXiv:1404.1100, section V, without its centering.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import heapq
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

SAMPLE = 4096  # pictures that components are trained on
MOST_VALUES = 16_384  # of a vector that is projected: its components are found in a square matrix
MOST_BYTES = 1 << 23  # of components, which each version of the table holds


class Projection:
    """Principal components (values, whole values) float32, rounded to float16, as which they are kept."""

    def __init__(self, components: NDArray[np.float32]) -> None:
        self.components = components.astype(np.float16).astype(np.float32)

    @property
    def width(self) -> int:
        """Number of values of a whole vector."""
        return self.components.shape[1]

    def __call__(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """Project one vector; one at a time, so that its bits do not depend on others.

        >>> Projection(np.array([[0.6, 0.8]], np.float32))(np.array([3, 4], np.float32)).round(2).tolist()
        [5.0]
        """
        return self.components @ np.asarray(vector, np.float32)

    def to_text(self) -> str:
        return base64.b64encode(self.components.astype("<f2").tobytes()).decode()

    @classmethod
    def from_text(cls, text: str, values: int) -> Projection:
        """Parse the output of `to_text`; ValueError if it is damaged."""
        try:
            numbers = np.frombuffer(base64.b64decode(text, validate=True), "<f2")
        except (binascii.Error, ValueError):
            numbers = np.zeros(0, "<f2")
        if not len(numbers) or len(numbers) % values or not np.isfinite(numbers).all():
            raise ValueError("its components are damaged")
        return cls(numbers.reshape(values, -1).astype(np.float32))


def sampled(names: Iterable[str], most: int = SAMPLE) -> list[str]:
    """Return some of any number of names, the same ones whatever their order, sorted.

    >>> sampled(["c", "a", "b"])
    ['a', 'b', 'c']
    """
    return sorted(
        heapq.nsmallest(most, names, key=lambda name: hashlib.blake2b(name.encode(errors="surrogateescape")).digest())
    )


def trained(vectors: NDArray[np.float32], values: int) -> Projection:
    """Find the first components of vectors (N, whole values).

    Raises:
        ValueError: there are fewer vectors, or values, than components.
    """
    count, width = vectors.shape
    if width > MOST_VALUES or values >= width:
        raise ValueError(
            f"vectors of {width:,} values cannot be projected to {values}; name a number below that"
            f"{f', and a pool that gives at most {MOST_VALUES:,}' if width > MOST_VALUES else ''}"
        )
    if 2 * values * width > MOST_BYTES:
        raise ValueError(
            f"{values} components of {width:,} values are more than a table holds; name {MOST_BYTES // 2 // width} or"
            " fewer"
        )
    if count < values:
        raise ValueError(f"{values} components need as many pictures to be trained on, but {count} could be used")
    moments = np.zeros((width, width))
    for start in range(0, count, 1024):
        some = vectors[start : start + 1024].astype(np.float64)
        moments += some.T @ some
    _, found = np.linalg.eigh(moments)  # the largest come last
    components = found[:, ::-1][:, :values].T
    signs = np.sign(components[np.arange(values), np.abs(components).argmax(1)])
    return Projection((components * signs[:, None]).astype(np.float32))

"""A network's outputs for labelled pictures, a block of rows at a time, so that outputs may be mapped from a disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnets_torch.card import Activation

VALUES = 1 << 20  # in a block: 8 MB in float64


def blocks(
    logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]], rows: NDArray[np.int64] | None = None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]]:
    """(row numbers, logits in float64, labels) of some rows after some more; of `rows` alone where they are given.

    Raises:
        ValueError: there are no rows, fewer than two classes, labels that do not fit, or outputs that are not finite.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"outputs are {logits.shape} and labels {labels.shape}; give (N, classes) and (N,)")
    count, classes = logits.shape
    if count == 0 or (rows is not None and len(rows) == 0):
        raise ValueError("there are no pictures to judge by; give some")
    if classes < 2:
        raise ValueError(f"outputs have {classes} columns, which leave no class to be mistaken for; give 2 or more")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels are {labels.dtype}; give class ids, which are integers")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels go from {labels.min()} to {labels.max()}, and there are {classes} classes")
    every = np.arange(count) if rows is None else np.asarray(rows, np.int64)
    step = max(1, VALUES // classes)
    for start in range(0, len(every), step):
        numbers = every[start : start + step]
        some = slice(start, start + step) if rows is None else numbers
        values = np.asarray(logits[some], np.float64)
        if not np.isfinite(values).all():
            bad = numbers[~np.isfinite(values).all(1)][0]
            raise ValueError(f"outputs of picture {bad} are NaN or infinite: the weights are broken")
        yield numbers, values, np.asarray(labels[some], np.int64)


def check_probable(activation: Activation) -> None:
    """Refuse outputs that are no probabilities.

    Raises:
        ValueError: the activation is "none".
    """
    if activation == "none":
        raise ValueError("the card says that outputs are no probabilities (activation none); they only rank classes")


def log_probabilities(logits: NDArray[np.float64], activation: Activation) -> NDArray[np.float64]:
    """(N, classes) of the same shape, natural logarithms: softmax over the row, or the sigmoid of each.

    >>> np.exp(log_probabilities(np.array([[0.0, 0.0]]), "softmax")).round(12).tolist()
    [[0.5, 0.5]]
    >>> log_probabilities(np.array([[-1000.0, 0.0]]), "sigmoid").round(4).tolist()
    [[-1000.0, -0.6931]]
    """
    if activation == "sigmoid":
        return -np.logaddexp(0, -logits)
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))

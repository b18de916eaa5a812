"""Array layouts of other frameworks, as pure functions; kernels are flipped here and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]


def flip(kernel: Array) -> Array:
    """Rotate convolution kernels by 180 degrees: Theano computes true convolution, PyTorch cross-correlation.

    Args:
        kernel: (out, in, height, width).

    Returns:
        A view (out, in, height, width).

    Source: Theano's documentation of `conv2d`, filter_flip=True, which Keras always used.

    >>> flip(np.arange(4.0).reshape(1, 1, 2, 2))[0, 0].tolist()
    [[3.0, 2.0], [1.0, 0.0]]
    """
    return kernel[:, :, ::-1, ::-1]


def transpose_dense(kernel: Array) -> Array:
    """(in, out) as Keras stores it -> a view (out, in) as PyTorch does.

    After a channels-first flatten, as in all files of this lineage, the rows stand in the order channel, height,
    width on both sides, so nothing is permuted.

    >>> transpose_dense(np.zeros((3, 2))).shape
    (2, 3)
    """
    return kernel.T

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


def oihw_from_hwio(kernel: Array) -> Array:
    """(height, width, in, out), as Keras 2 and 3 store convolution kernels -> a view (out, in, height, width).

    In a convolution in groups, `in` is one group's on both sides, and the outputs stand group after group.

    >>> oihw_from_hwio(np.zeros((2, 3, 4, 5))).shape
    (5, 4, 2, 3)
    """
    return kernel.transpose(3, 2, 0, 1)


def oihw_from_depthwise(kernel: Array) -> Array:
    """(height, width, in, multiplier) -> (in * multiplier, 1, height, width), for a convolution in `in` groups.

    The outputs of the first input come first, as in TensorFlow.

    Source: TensorFlow's documentation of `depthwise_conv2d`, output[..., k * multiplier + q].

    >>> oihw_from_depthwise(np.zeros((2, 3, 4, 5))).shape
    (20, 1, 2, 3)
    """
    height, width, inputs, multiplier = kernel.shape
    return kernel.transpose(2, 3, 0, 1).reshape(inputs * multiplier, 1, height, width)


def iohw_from_hwoi(kernel: Array) -> Array:
    """(height, width, out, in) of a transposed convolution -> a view (in, out, height, width), as PyTorch stores it.

    Neither framework flips the kernel: both compute the gradient of a convolution.

    >>> iohw_from_hwoi(np.zeros((2, 3, 4, 5))).shape
    (5, 4, 2, 3)
    """
    return kernel.transpose(3, 2, 0, 1)


def chw_rows_from_hwc(kernel: Array, window: tuple[int, int]) -> Array:
    """Reorder the rows of the dense kernel behind a channels-last flatten for a channels-first one.

    Args:
        kernel: (height * width * channels, out); the shape does not show the order of the rows.
        window: (height, width) of the feature map that was flattened.

    Returns:
        (channels * height * width, out).

    Raises:
        ValueError: the rows are not so many.

    >>> chw_rows_from_hwc(np.arange(6.0)[:, None], (1, 3))[:, 0].tolist()
    [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]
    """
    rows, outputs = kernel.shape
    height, width = window
    if height < 1 or width < 1 or rows % (height * width):
        raise ValueError(f"{rows} rows are no multiple of the {height}x{width} cells of a feature map")
    return kernel.reshape(height, width, -1, outputs).transpose(2, 0, 1, 3).reshape(rows, outputs)

"""Array layouts of other frameworks, as pure functions; kernels are flipped here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


def oihw_from_depthwise(kernel: Array) -> Array:
    """(height, width, in, multiplier) -> (in * multiplier, 1, height, width), for a convolution in `in` groups.

    The outputs of the first input come first, as in TensorFlow.

    Source: TensorFlow's documentation of `depthwise_conv2d`, output[..., k * multiplier + q].

    >>> oihw_from_depthwise(np.zeros((2, 3, 4, 5))).shape
    (20, 1, 2, 3)
    """
    height, width, inputs, multiplier = kernel.shape
    return kernel.transpose(2, 3, 0, 1).reshape(inputs * multiplier, 1, height, width)


ORDERS: Mapping[str | None, Callable[[Array], Array]] = {  # axis order in a file, as in `plan.Layout` -> to PyTorch's
    None: lambda array: array.T if array.ndim == 2 else array,
    "io": lambda array: array.T[:, :, None, None],
    "oihw": lambda array: array,
    "same": lambda array: array,
    "hwio": lambda array: array.transpose(3, 2, 0, 1),
    "hwoi": lambda array: array.transpose(3, 2, 0, 1),  # as (in, out, height, width), which neither framework flips
    "deconv_oihw": lambda array: array.transpose(1, 0, 2, 3),
    "deconv_hwio": lambda array: array.transpose(2, 3, 0, 1),
    "depthwise": oihw_from_depthwise,
    "hwc": lambda array: array.transpose(2, 0, 1),
    "flat": lambda array: array.reshape(-1),
}


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

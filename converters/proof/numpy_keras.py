"""What the layers of Keras compute, in plain NumPy float64, from the definitions of Theano and TensorFlow.

One image at a time, in the model's own data format: (channels, height, width) or (height, width, channels). Kernels
stay as they are stored: nothing is flipped, permuted or folded in advance, and no code is shared with the converter,
which this is the second derivation of. Slow only where it is simple: each tap of a kernel is one matrix product.

Theano differs from TensorFlow in three places, all seen in the sources of Keras 1.2.2 and 2.2.4:

- `conv2d` is true convolution, out[y, x] = sum over i, j of kernel[i, j] * image[y - i, x - j]; TensorFlow's is
  cross-correlation, with y + i, x + j. (The depthwise kernels are reversed by Keras before Theano reverses them.)
- `same` puts half of the (dilated) kernel before the image; TensorFlow puts the smaller half of what is needed.
- `same` pooling puts size - 2 before the image where the size is odd, else size - 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import erf
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from converters.readers.keras_file import DataFormat, KernelOrder

Array = NDArray[np.float64]
Pair = tuple[int, int]
Padding = Literal["valid", "same"]

BLOCK = 1 << 22  # values of a dense kernel that are in memory as float64 at once, 32 MiB


def channels_last(image: NDArray[Any], data_format: DataFormat) -> NDArray[Any]:
    """A view (height, width, channels)."""
    return image if data_format == "channels_last" else np.moveaxis(image, 0, 2)


def from_channels_last(image: NDArray[Any], data_format: DataFormat) -> NDArray[Any]:
    """A view in the model's format."""
    return image if data_format == "channels_last" else np.moveaxis(image, 2, 0)


def convolve(
    image: Array,
    kernel: NDArray[Any],
    *,
    data_format: DataFormat,
    order: KernelOrder,
    theano: bool,
    strides: Pair = (1, 1),
    padding: Padding = "valid",
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Array:
    """Conv2D without its bias.

    Args:
        image: in `data_format`.
        kernel: as stored: (out, in / groups, height, width) or (height, width, in / groups, out), by `order`.
        data_format: of the image and the result.
        order: of the kernel's axes.
        theano: true convolution, and Theano's padding.
        strides: of rows and columns.
        padding: "valid" or "same".
        dilation: of rows and columns.
        groups: output channels, in order, of which each sees its own part of the input channels.
    """
    height, width = kernel.shape[2:] if order == "oihw" else kernel.shape[:2]
    inputs, outputs = (kernel.shape[1], kernel.shape[0]) if order == "oihw" else kernel.shape[2:]
    pixels = channels_last(image, data_format)
    if inputs * groups != pixels.shape[2]:
        raise ValueError(f"the kernel {kernel.shape} reads {inputs * groups} channels, but there are {pixels.shape[2]}")
    cells = _cells(pixels, (height, width), strides, dilation, padding, 0.0, theano=theano)
    total = np.zeros(0)
    for i, j, seen in cells:
        row, column = (height - 1 - i, width - 1 - j) if theano else (i, j)
        tap = np.asarray(kernel[:, :, row, column].T if order == "oihw" else kernel[row, column], np.float64)
        if not total.size:
            total = np.zeros((*seen.shape[:2], outputs))
        for part in range(groups):
            source = slice(part * inputs, (part + 1) * inputs)
            target = slice(part * outputs // groups, (part + 1) * outputs // groups)
            product = seen[:, :, source].reshape(-1, inputs) @ tap[:, target]
            total[:, :, target] += product.reshape(*seen.shape[:2], -1)
    return from_channels_last(total, data_format)


def convolve_depthwise(
    image: Array,
    kernel: NDArray[Any],
    *,
    data_format: DataFormat,
    theano: bool,
    strides: Pair = (1, 1),
    padding: Padding = "valid",
    dilation: Pair = (1, 1),
) -> Array:
    """DepthwiseConv2D without its bias: each channel has `multiplier` kernels of its own.

    Args:
        kernel: (height, width, channels, multiplier); never reversed, on Theano neither.
    """
    height, width, channels, multiplier = kernel.shape
    pixels = channels_last(image, data_format)
    if channels != pixels.shape[2]:
        raise ValueError(f"the kernel {kernel.shape} reads {channels} channels, but there are {pixels.shape[2]}")
    total: Any = 0.0
    for i, j, seen in _cells(pixels, (height, width), strides, dilation, padding, 0.0, theano=theano):
        total = total + seen[:, :, :, None] * np.asarray(kernel[i, j], np.float64)
    return from_channels_last(total.reshape(*total.shape[:2], channels * multiplier), data_format)


def pool(
    image: Array,
    size: Pair,
    *,
    how: Literal["max", "average"],
    data_format: DataFormat,
    theano: bool,
    strides: Pair,
    padding: Padding = "valid",
) -> Array:
    """MaxPooling2D or AveragePooling2D; padding is never counted, neither in a maximum nor in an average."""
    pixels = channels_last(image, data_format)
    empty = -np.inf if how == "max" else 0.0
    if theano and padding == "same":
        before = tuple(side - 2 if side > 2 and side % 2 else side - 1 for side in size)
    else:
        before = None
    cells = _cells(pixels, size, strides, (1, 1), padding, empty, before=before)
    if how == "max":
        result: Any = -np.inf
        for _, _, seen in cells:
            result = np.maximum(result, seen)
    else:
        there = _cells(np.ones((*pixels.shape[:2], 1)), size, strides, (1, 1), padding, 0.0, before=before)
        total: Any = 0.0
        count: Any = 0.0
        for (_, _, seen), (_, _, real) in zip(cells, there, strict=True):
            total, count = total + seen, count + real
        result = total / count
    return from_channels_last(result, data_format)


def _cells(
    pixels: Array,
    window: Pair,
    strides: Pair,
    dilation: Pair,
    padding: Padding,
    empty: float,
    *,
    theano: bool = False,
    before: tuple[int, ...] | None = None,
) -> Iterator[tuple[int, int, Array]]:
    """For each place (i, j) of a window, the pixels (rows, columns, channels) that lie there in every window."""
    edges, counts = [], []
    for axis in range(2):
        length, step = pixels.shape[axis], strides[axis]
        span = (window[axis] - 1) * dilation[axis] + 1
        if padding == "same":
            count = -(-length // step)
            wanted = max(0, (count - 1) * step + span - length)
            start = before[axis] if before else span // 2 if theano else wanted // 2
        elif padding == "valid":
            count, start = (length - span) // step + 1, 0
        else:
            raise ValueError(f"padding is {padding!r}; known: 'same', 'valid'")
        if count < 1:
            raise ValueError(f"a window of {span} pixels does not fit into {length}")
        edges.append((start, max(0, (count - 1) * step + span - length - start)))
        counts.append(count)
    if any(map(any, edges)):
        pixels = np.pad(pixels, (*edges, (0, 0)), constant_values=empty)
    for i in range(window[0]):
        for j in range(window[1]):
            top, left = i * dilation[0], j * dilation[1]
            bottom, right = top + (counts[0] - 1) * strides[0] + 1, left + (counts[1] - 1) * strides[1] + 1
            yield i, j, pixels[top : bottom : strides[0], left : right : strides[1]]


def pad(image: Array, edges: Sequence[Pair], data_format: DataFormat) -> Array:
    """ZeroPadding2D: `edges` are ((top, bottom), (left, right))."""
    return from_channels_last(np.pad(channels_last(image, data_format), (*edges, (0, 0))), data_format)


def dense(values: Array, kernel: Any) -> Array:
    """Dense without its bias: the last axis times a kernel (in, out), a block of rows at a time.

    Args:
        values: (..., in).
        kernel: an array, or a dataset that is read by slicing.
    """
    rows, units = kernel.shape
    if values.shape[-1] != rows:
        raise ValueError(f"the kernel has {rows} rows, but {values.shape[-1]} values come in")
    total = np.zeros((*values.shape[:-1], units))
    step = max(1, BLOCK // units)
    for start in range(0, rows, step):
        total += values[..., start : start + step] @ np.asarray(kernel[start : start + step], np.float64)
    return total


def along(vector: NDArray[Any], values: Array, axis: int) -> Array:
    """One number a channel as an array that broadcasts to `values`."""
    shape = [1] * values.ndim
    shape[axis] = -1
    return np.asarray(vector, np.float64).reshape(shape)


def normalize_batch(
    values: Array,
    mean: NDArray[Any],
    variance: NDArray[Any],
    gamma: NDArray[Any] | None,
    beta: NDArray[Any] | None,
    *,
    epsilon: float,
    axis: int,
) -> Array:
    """BatchNormalization at inference; `axis` counts without the batch."""
    result = (values - along(mean, values, axis)) / np.sqrt(along(variance, values, axis) + epsilon)
    if gamma is not None:
        result = result * along(gamma, values, axis)
    return result if beta is None else result + along(beta, values, axis)


def normalize_across_channels(
    image: Array, data_format: DataFormat, *, alpha: float = 1e-4, k: float = 2.0, beta: float = 0.75, n: int = 5
) -> Array:
    """The Lambda `crosschannelnormalization` of convnets-keras: alpha times the square of each of n neighbours."""
    squares = np.square(channels_last(image, data_format))
    scale = np.full_like(squares, k)
    for channel in range(squares.shape[2]):
        near = slice(max(0, channel - n // 2), channel + n // 2 + 1)
        scale[:, :, channel] += alpha * squares[:, :, near].sum(axis=2)
    return image / from_channels_last(scale, data_format) ** beta


def activate(values: Array, name: str, *, keras: int = 3, **settings: Any) -> Array:
    """An activation by Keras's name; `keras` is the version, which decides what "hard_sigmoid" is.

    >>> activate(np.array([0.5, 1.0, 9.0]), "relu", max_value=6.0).tolist()
    [0.5, 1.0, 6.0]
    """
    if name in ("relu", "relu6"):
        most = 6.0 if name == "relu6" else settings.get("max_value")
        least, slope = settings.get("threshold") or 0.0, settings.get("negative_slope") or 0.0
        result = np.where(values >= least, values, slope * (values - least))
        return result if most is None else np.minimum(result, most)
    if name == "leaky_relu":
        return np.where(values >= 0, values, settings.get("negative_slope", 0.2) * values)
    if name == "elu":
        return np.where(values > 0, values, settings.get("alpha", 1.0) * np.expm1(np.minimum(values, 0)))
    if name == "gelu":
        if settings.get("approximate"):
            return 0.5 * values * (1 + np.tanh(np.sqrt(2 / np.pi) * (values + 0.044715 * values**3)))
        return 0.5 * values * (1 + np.vectorize(erf, otypes=[float])(values / np.sqrt(2)))
    if name == "hard_sigmoid":
        return np.clip(0.2 * values + 0.5, 0, 1) if keras < 3 else np.clip(values / 6 + 0.5, 0, 1)
    if name == "softmax":
        weights = np.exp(values - values.max(axis=settings.get("axis", -1), keepdims=True))
        return weights / weights.sum(axis=settings.get("axis", -1), keepdims=True)
    if name == "selu":
        alpha, scale = 1.6732632423543772, 1.0507009873554805
        return scale * np.where(values > 0, values, alpha * np.expm1(np.minimum(values, 0)))
    if name not in _PLAIN:
        known = sorted(("relu6", "relu", "leaky_relu", "elu", "gelu", "hard_sigmoid", "softmax", "selu", *_PLAIN))
        raise ValueError(f"the activation {name!r} is not known here; known: {', '.join(known)}")
    return _PLAIN[name](values)


def _sigmoid(values: Array) -> Array:
    return 0.5 * (1 + np.tanh(values / 2))  # never overflows


_PLAIN: dict[str, Any] = {
    "linear": lambda values: values,
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "softplus": lambda values: np.logaddexp(values, 0.0),
    "softsign": lambda values: values / (1 + np.abs(values)),
    "exponential": np.exp,
    "silu": lambda values: values * _sigmoid(values),
    "swish": lambda values: values * _sigmoid(values),
    "hard_silu": lambda values: values * np.clip(values / 6 + 0.5, 0, 1),
    "hard_swish": lambda values: values * np.clip(values / 6 + 0.5, 0, 1),
    "mish": lambda values: values * np.tanh(np.logaddexp(values, 0.0)),
}

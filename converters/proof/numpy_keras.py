"""Keras layers in plain NumPy float64, from the definitions of Theano and TensorFlow.

Functions process one image in the model's data format: (channels, height, width) or (height, width, channels). Kernels
are used as stored: nothing is flipped, permuted or folded in advance. No code is shared with the converter, so this is
an independent check of it. For simplicity, each kernel position is one matrix product.

Theano differs from TensorFlow in three ways, according to the sources of Keras 1.2.2 and 2.2.4:

- `conv2d` is true convolution, out[y, x] = sum over i, j of kernel[i, j] * image[y - i, x - j]; TensorFlow's is
  cross-correlation, with y + i, x + j. (Keras reverses depthwise kernels before Theano reverses them again.)
- `same` convolution pads half of the (dilated) kernel before the image; TensorFlow pads the smaller half of what is
  needed.
- `same` pooling pads size - 2 before the image if the size is odd, else size - 1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import erf
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from converters.readers.keras_file import DataFormat, KerasArray, KernelOrder
from converters.readers.keras_graph import Node, Operand
from converters.readers.keras_words import (
    ACTIVATIONS,
    IDENTITIES,
    axis_of,
    edges_of,
    layer_activation,
    number_of,
    pair_of,
)

Array = NDArray[np.float64]
Pair = tuple[int, int]
Padding = Literal["valid", "same"]

BLOCK = 1 << 22  # values of a dense kernel converted to float64 at once, 32 MiB


def channels_last(image: NDArray[Any], data_format: DataFormat) -> NDArray[Any]:
    """Return a view (height, width, channels)."""
    return image if data_format == "channels_last" else np.moveaxis(image, 0, 2)


def from_channels_last(image: NDArray[Any], data_format: DataFormat) -> NDArray[Any]:
    """Return a view in `data_format`."""
    return image if data_format == "channels_last" else np.moveaxis(image, 2, 0)


@dataclass(frozen=True)
class Sliding:
    """How a window slides over an image.

    Attributes:
        data_format: data format of the image and the result.
        theano: whether to use true convolution and Theano's padding.
        strides: (rows, columns).
        padding: "valid" or "same".
        dilation: (rows, columns).
    """

    data_format: DataFormat
    theano: bool
    strides: Pair = (1, 1)
    padding: Padding = "valid"
    dilation: Pair = (1, 1)


def convolve(image: Array, kernel: NDArray[Any], how: Sliding, order: KernelOrder, groups: int = 1) -> Array:
    """Conv2D without its bias.

    Args:
        image: in the data format.
        kernel: as stored: (out, in / groups, height, width) or (height, width, in / groups, out), by `order`.
        how: strides, padding and dilation.
        order: axis order of the kernel.
        groups: number of groups; each group of output channels reads its own part of the input channels.
    """
    height, width = kernel.shape[2:] if order == "oihw" else kernel.shape[:2]
    inputs, outputs = (kernel.shape[1], kernel.shape[0]) if order == "oihw" else kernel.shape[2:]
    pixels = channels_last(image, how.data_format)
    if inputs * groups != pixels.shape[2]:
        raise ValueError(f"the kernel {kernel.shape} reads {inputs * groups} channels, but there are {pixels.shape[2]}")
    total = np.zeros(0)
    for i, j, seen in _cells(pixels, (height, width), how):
        row, column = (height - 1 - i, width - 1 - j) if how.theano else (i, j)
        tap = np.asarray(kernel[:, :, row, column].T if order == "oihw" else kernel[row, column], np.float64)
        if not total.size:
            total = np.zeros((*seen.shape[:2], outputs))
        for part in range(groups):
            source = slice(part * inputs, (part + 1) * inputs)
            target = slice(part * outputs // groups, (part + 1) * outputs // groups)
            product = seen[:, :, source].reshape(-1, inputs) @ tap[:, target]
            total[:, :, target] += product.reshape(*seen.shape[:2], -1)
    return from_channels_last(total, how.data_format)


def convolve_depthwise(image: Array, kernel: NDArray[Any], how: Sliding) -> Array:
    """DepthwiseConv2D without its bias: each channel has its own `multiplier` kernels.

    Args:
        kernel: (height, width, channels, multiplier); never reversed, not even for Theano.
    """
    height, width, channels, multiplier = kernel.shape
    pixels = channels_last(image, how.data_format)
    if channels != pixels.shape[2]:
        raise ValueError(f"the kernel {kernel.shape} reads {channels} channels, but there are {pixels.shape[2]}")
    total: Any = 0.0
    for i, j, seen in _cells(pixels, (height, width), how):
        total = total + seen[:, :, :, None] * np.asarray(kernel[i, j], np.float64)
    return from_channels_last(total.reshape(*total.shape[:2], channels * multiplier), how.data_format)


def convolve_transposed(
    image: Array, kernel: NDArray[Any], how: Sliding, output_padding: Any, shape: Sequence[int] | None
) -> Array:
    """Conv2DTranspose without its bias: every pixel adds its multiple of the kernel to the output.

    Args:
        kernel: (height, width, out, in).
        how: strides, padding and dilation of the convolution whose gradient this is.
        output_padding: None for the size that a convolution with these strides would shrink to the image's.
        shape: (height, width) of the output, as Keras 1 says it.
    """
    pixels = channels_last(image, how.data_format)
    spans = [(kernel.shape[axis] - 1) * how.dilation[axis] + 1 for axis in range(2)]
    whole = [(pixels.shape[axis] - 1) * how.strides[axis] + spans[axis] for axis in range(2)]
    total = np.zeros((*whole, kernel.shape[2]))
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            rows, columns = (
                slice(place * rate, place * rate + (count - 1) * stride + 1, stride)
                for place, rate, count, stride in zip((i, j), how.dilation, pixels.shape, how.strides, strict=False)
            )
            tap = kernel[-1 - i, -1 - j] if how.theano else kernel[i, j]
            total[rows, columns] += pixels @ np.asarray(tap, np.float64).T
    same = how.padding == "same"
    for axis, (span, stride) in enumerate(zip(spans, how.strides, strict=True)):
        before, length = 0, whole[axis] + max(0, stride - span)
        if shape is not None:
            length = shape[axis]
        elif output_padding is not None:
            length = whole[axis] + pair_of(output_padding)[axis] + (span % 2 - span if same else 0)
        elif same:
            length = pixels.shape[axis] * stride
        if same:  # as many as the convolution pads before its input
            before = span // 2 if how.theano else max(0, whole[axis] - length) // 2
        short = max(0, before + length - total.shape[axis])
        total = np.pad(total, [(0, short if other == axis else 0) for other in range(3)])
        total = total.take(range(before, before + length), axis)
    return from_channels_last(total, how.data_format)


def pool_max(image: Array, size: Pair, how: Sliding) -> Array:
    """MaxPooling2D; padding does not count."""
    result: Any = -np.inf
    for _, _, seen in _cells(channels_last(image, how.data_format), size, how, empty=-np.inf, pools=True):
        result = np.maximum(result, seen)
    return from_channels_last(result, how.data_format)


def pool_average(image: Array, size: Pair, how: Sliding) -> Array:
    """AveragePooling2D; padding does not count."""
    pixels = channels_last(image, how.data_format)
    there = _cells(np.ones((*pixels.shape[:2], 1)), size, how, pools=True)
    total: Any = 0.0
    count: Any = 0.0
    for (_, _, seen), (_, _, real) in zip(_cells(pixels, size, how, pools=True), there, strict=True):
        total, count = total + seen, count + real
    return from_channels_last(total / count, how.data_format)


def _cells(
    pixels: Array, window: Pair, how: Sliding, *, empty: float = 0.0, pools: bool = False
) -> Iterator[tuple[int, int, Array]]:
    """Yield (i, j, pixels) for each position in a window: the pixels (rows, columns, channels) there in all windows."""
    edges, counts = [], []
    strides, dilation = how.strides, how.dilation
    for axis in range(2):
        length, step, size = pixels.shape[axis], strides[axis], window[axis]
        span = (size - 1) * dilation[axis] + 1
        if how.padding == "same":
            count = -(-length // step)
            start = max(0, (count - 1) * step + span - length) // 2
            if how.theano:
                start = span // 2 if not pools else size - 2 if size > 2 and size % 2 else size - 1
        elif how.padding == "valid":
            count, start = (length - span) // step + 1, 0
        else:
            raise ValueError(f"padding is {how.padding!r}; known: 'same', 'valid'")
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
    """Dense without its bias, computed in blocks of kernel rows.

    Args:
        values: (..., in).
        kernel: (in, out), an array or a dataset that is read by slicing.
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
    """Reshape a vector so that it broadcasts along `axis` of `values`."""
    shape = [1] * values.ndim
    shape[axis] = -1
    return np.asarray(vector, np.float64).reshape(shape)


def normalize_batch(values: Array, arrays: Mapping[str, NDArray[Any]], *, epsilon: float, axis: int) -> Array:
    """BatchNormalization at inference; `axis` does not count the batch."""
    one = {role: along(array, values, axis) for role, array in arrays.items()}
    result = (values - one["moving_mean"]) / np.sqrt(one["moving_variance"] + epsilon)
    return result * one.get("gamma", 1.0) + one.get("beta", 0.0)


def normalize_across_channels(
    image: Array, data_format: DataFormat, *, alpha: float = 1e-4, k: float = 2.0, beta: float = 0.75, n: int = 5
) -> Array:
    """The Lambda `crosschannelnormalization` of convnets-keras: LRN with alpha not divided by n."""
    squares = np.square(channels_last(image, data_format))
    scale = np.full_like(squares, k)
    for channel in range(squares.shape[2]):
        near = slice(max(0, channel - n // 2), channel + n // 2 + 1)
        scale[:, :, channel] += alpha * squares[:, :, near].sum(axis=2)
    return image / from_channels_last(scale, data_format) ** beta


def activate(values: Array, name: str, *, keras: int = 3, **settings: Any) -> Array:
    """Apply an activation by Keras's name; `keras` is the major version, on which "hard_sigmoid" depends.

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
    if name == "celu":
        alpha = settings.get("alpha", 1.0)
        return np.maximum(values, 0) + alpha * np.expm1(np.minimum(values, 0) / alpha)
    if name == "gelu":
        if settings.get("approximate"):
            return 0.5 * values * (1 + np.tanh(np.sqrt(2 / np.pi) * (values + 0.044715 * values**3)))
        return 0.5 * values * (1 + np.vectorize(erf, otypes=[float])(values / np.sqrt(2)))
    if name == "hard_sigmoid":
        return np.clip(0.2 * values + 0.5, 0, 1) if keras < 3 else np.clip(values / 6 + 0.5, 0, 1)
    if name == "softmax":
        weights = np.exp(values - values.max(axis=settings.get("axis", -1), keepdims=True))
        return weights / weights.sum(axis=settings.get("axis", -1), keepdims=True)
    if name == "log_softmax":
        rest = values - values.max(axis=-1, keepdims=True)
        return rest - np.log(np.exp(rest).sum(axis=-1, keepdims=True))
    if name == "selu":
        alpha, scale = 1.6732632423543772, 1.0507009873554805
        return scale * np.where(values > 0, values, alpha * np.expm1(np.minimum(values, 0)))
    if name not in _PLAIN:
        known = sorted(
            ("relu6", "relu", "leaky_relu", "elu", "celu", "gelu", "hard_sigmoid", "softmax", "selu", *_PLAIN)
        )
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
    "hard_tanh": lambda values: np.clip(values, -1, 1),
    "tanh_shrink": lambda values: values - np.tanh(values),
    "log_sigmoid": lambda values: -np.logaddexp(-values, 0.0),
}


# One layer of a graph from its settings and arrays

Read = Callable[[KerasArray], Any]


@dataclass(frozen=True)
class Meaning:
    """Properties of a file that determine how its arrays are interpreted.

    Attributes:
        theano: whether to use true convolution and Theano's padding.
        keras: major version of Keras, 1 (also for 0.x), 2 or 3.
        data_format: data format of layers that do not specify it.
    """

    theano: bool
    keras: int
    data_format: DataFormat

    def order(self, data_format: DataFormat) -> KernelOrder:
        """Return the kernel order: (out, in, h, w) only for channels-first layers of Keras 1."""
        return "oihw" if self.keras == 1 and data_format == "channels_first" else "hwio"


def format_of(node: Node, meaning: Meaning) -> DataFormat:
    """Return a node's data format: its setting; for batch normalisation by its axis; channels last for dense layers."""
    if node.kind == "BatchNormalization":
        return "channels_first" if axis_of(node.settings.get("axis", -1)) == 0 else "channels_last"
    if node.kind == "Dense":
        return "channels_last"
    stored = node.settings.get("data_format")
    return stored if stored in ("channels_first", "channels_last") and node.kind != "Flatten" else meaning.data_format


def channels_first(values: Array, data_format: DataFormat) -> Array:
    return np.moveaxis(values, 2, 0) if values.ndim == 3 and data_format == "channels_last" else values


def compute(node: Node, sources: Sequence[Array], read: Read, meaning: Meaning) -> Array:
    """Compute the output of a node, without the fused activation of a layer with weights."""
    kind, settings, x = node.kind, node.settings, sources[0]
    arrays = {} if node.layer is None else {role: read(array) for role, array in node.layer.arrays.items()}
    data_format = format_of(node, meaning)
    if kind in IDENTITIES:
        return x
    if kind in ACTIVATIONS:
        name, words = layer_activation(kind, settings)
        return activate(x, name, keras=meaning.keras, **words)
    if kind == "Conv2DTranspose":
        kernel, shape = arrays["kernel"][...], None
        if meaning.keras == 1:  # stored as those of a convolution that reads the image
            kernel = kernel.transpose(2, 3, 0, 1) if meaning.order(data_format) == "oihw" else kernel.swapaxes(2, 3)
            shape = settings["output_shape"][2:4] if data_format == "channels_first" else settings["output_shape"][1:3]
        how = sliding(settings, data_format, meaning)
        result = convolve_transposed(x, kernel, how, settings.get("output_padding"), shape)
        return _plus_bias(result, arrays, 0 if data_format == "channels_first" else 2)
    if kind in ("Conv2D", "DepthwiseConv2D", "SeparableConv2D"):
        return _convolve(kind, settings, x, arrays, data_format, meaning)
    if kind == "Dense":
        return _plus_bias(dense(x, arrays["kernel"]), arrays, -1)
    if kind == "BatchNormalization":
        if settings.get("mode", 0) != 0:
            raise ValueError(f"mode {settings['mode']!r} of Keras 1 is not known here; known: 0")
        axis = axis_of(settings.get("axis", -1))
        return normalize_batch(x, arrays, epsilon=float(settings["epsilon"]), axis=axis)
    if kind in ("MaxPooling2D", "AveragePooling2D"):
        size = pair_of(settings["pool_size"])
        how = sliding({**settings, "strides": settings.get("strides") or size}, data_format, meaning)
        return (pool_max if kind == "MaxPooling2D" else pool_average)(x, size, how)
    if kind in ("GlobalAveragePooling2D", "GlobalMaxPooling2D"):
        over = (0, 1) if data_format == "channels_last" else (1, 2)
        reduce = np.mean if kind == "GlobalAveragePooling2D" else np.max
        return reduce(x, axis=over, keepdims=bool(settings.get("keepdims")))
    if kind == "Flatten":  # Keras 2.2 and later transposes channels-first maps; older versions flatten in memory order
        first = settings.get("data_format") == "channels_first"
        return (np.moveaxis(x, 0, -1) if first and x.ndim > 1 else x).reshape(-1)
    if kind == "ZeroPadding2D":
        return pad(x, edges_of(settings["padding"]), data_format)
    if kind == "Rescaling":
        scale, offset = (np.asarray(settings.get(word, plain)) for word, plain in (("scale", 1), ("offset", 0)))
        axis = 0 if data_format == "channels_first" else -1  # a list has one number per channel
        return x * (along(scale, x, axis) if scale.ndim else scale) + (
            along(offset, x, axis) if offset.ndim else offset
        )
    if kind == "Concatenate":
        return np.concatenate(sources, axis=axis_of(settings.get("axis", -1)))
    if kind == "Dot":
        first, second = (
            each / max(np.sqrt(np.sum(each**2)), 1e-7) if settings.get("normalize") else each for each in sources
        )
        return np.array([first @ second])
    if kind in _MERGES:
        return _MERGES[kind](sources)
    if kind in _SHAPED:
        return _SHAPED[kind](x, settings, data_format)
    if kind in _LEARNT:
        return _LEARNT[kind](x, arrays, settings)
    if kind.startswith("ops."):
        return _operate(node, sources, meaning)
    if kind == "CustomScaleLayer":
        return x + sources[1] * float(settings["scale"])
    if kind == "SplitTensor":  # convnets-keras: half of the channels
        return np.split(x, 2, axis=0 if data_format == "channels_first" else 2)[settings["half"]]
    if kind == "CrossChannelNormalization":
        return normalize_across_channels(x, data_format)
    raise ValueError(f"layers of class {kind} are not known here")


def sliding(settings: Mapping[str, Any], data_format: DataFormat, meaning: Meaning) -> Sliding:
    """Return how the window of a layer with these settings slides."""
    strides, dilation = pair_of(settings.get("strides", 1)), pair_of(settings.get("dilation_rate", 1))
    return Sliding(data_format, meaning.theano, strides, settings.get("padding", "valid"), dilation)


def _convolve(
    kind: str, settings: Mapping[str, Any], x: Array, arrays: Mapping[str, Any], data_format: DataFormat,
    meaning: Meaning,
) -> Array:  # fmt: skip
    how = sliding(settings, data_format, meaning)
    order = meaning.order(data_format)
    channels = 0 if data_format == "channels_first" else 2
    if kind == "Conv2D":
        groups = int(settings.get("groups", 1))
        result = convolve(x, arrays["kernel"], how, order, groups)
        return _plus_bias(result, arrays, channels)
    if order == "oihw":
        raise ValueError("depthwise kernels of Keras 1 with channels first are not known here")
    depthwise = arrays["depthwise_kernel"] if "depthwise_kernel" in arrays else arrays["kernel"]
    if kind == "SeparableConv2D" and meaning.theano and how.padding == "same":
        # Theano pads half of the kernel on both sides, and Keras cuts off what an even kernel adds elsewhere only.
        half = [((side - 1) * rate + 1) // 2 for side, rate in zip(depthwise.shape, how.dilation, strict=False)]
        x = pad(x, [(each, each) for each in half], data_format)
        how = replace(how, padding="valid")
    result = convolve_depthwise(x, depthwise, how)
    if kind == "SeparableConv2D":
        result = convolve(result, arrays["pointwise_kernel"], Sliding(data_format, meaning.theano), order)
    return _plus_bias(result, arrays, channels)


def _plus_bias(values: Array, arrays: Mapping[str, Any], axis: int) -> Array:
    return values + along(arrays["bias"], values, axis) if "bias" in arrays else values


def _merged(function: Any) -> Callable[[Sequence[Array]], Array]:
    return lambda sources: functools.reduce(function, sources)


_MERGES: dict[str, Callable[[Sequence[Array]], Array]] = {
    "Add": _merged(np.add),
    "Subtract": _merged(np.subtract),
    "Multiply": _merged(np.multiply),
    "Average": lambda sources: sum(sources[1:], sources[0]) / len(sources),
    "Maximum": _merged(np.maximum),
    "Minimum": _merged(np.minimum),
}


def _crop(x: Array, settings: Mapping[str, Any], data_format: DataFormat) -> Array:
    (top, bottom), (left, right) = edges_of(settings["cropping"])
    pixels = channels_last(x, data_format)
    return from_channels_last(pixels[top : len(pixels) - bottom, left : pixels.shape[1] - right], data_format)


def _crop_centre(x: Array, settings: Mapping[str, Any], data_format: DataFormat) -> Array:
    pixels = channels_last(x, data_format)
    for axis, kept in enumerate((int(settings["height"]), int(settings["width"]))):
        first = (pixels.shape[axis] - kept) // 2
        pixels = pixels.take(range(first, first + kept), axis)
    return from_channels_last(pixels, data_format)


def _enlarge(x: Array, settings: Mapping[str, Any], data_format: DataFormat) -> Array:
    """UpSampling2D: repeated pixels, or values interpolated between the centres of pixels."""
    pixels = channels_last(x, data_format)
    for axis, factor in enumerate(pair_of(settings["size"])):
        if settings.get("interpolation", "nearest") == "nearest":
            pixels = pixels.repeat(factor, axis)
            continue
        length = pixels.shape[axis]
        places = np.clip((np.arange(length * factor) + 0.5) / factor - 0.5, 0, length - 1)
        below = np.floor(places).astype(int)
        share = along(places - below, pixels, axis)
        above = pixels.take(np.minimum(below + 1, length - 1), axis)
        pixels = pixels.take(below, axis) * (1 - share) + above * share
    return from_channels_last(pixels, data_format)


_SHAPED: dict[str, Callable[[Array, Mapping[str, Any], DataFormat], Array]] = {
    "Cropping2D": _crop,
    "CenterCrop": _crop_centre,
    "UpSampling2D": _enlarge,
    "Reshape": lambda x, settings, _: x.reshape(settings["target_shape"]),
    "Permute": lambda x, settings, _: x.transpose([int(axis) - 1 for axis in settings["dims"]]),
    "ThresholdedReLU": lambda x, settings, _: np.where(x > number_of(settings["theta"]), x, 0.0),
}


def _normalize_layer(x: Array, arrays: Mapping[str, Any], settings: Mapping[str, Any]) -> Array:
    """LayerNormalization: mean and variance over its axes, then a scale and a shift along them."""
    axes = settings.get("axis", -1)
    own = tuple(axis_of(axis) % x.ndim for axis in (axes if isinstance(axes, list | tuple) else [axes]))
    result = (x - x.mean(own, keepdims=True)) / np.sqrt(x.var(own, keepdims=True) + float(settings["epsilon"]))
    shape = [length if axis in own else 1 for axis, length in enumerate(x.shape)]
    if "gamma" in arrays:
        result = result * np.asarray(arrays["gamma"], np.float64).reshape(shape)
    return result + np.asarray(arrays["beta"], np.float64).reshape(shape) if "beta" in arrays else result


def _standardize(x: Array, arrays: Mapping[str, Any], settings: Mapping[str, Any]) -> Array:
    """Normalization, by the mean and variance in its config or its arrays."""
    axes = settings.get("axis", -1)
    axis = axis_of(axes[0] if isinstance(axes, list | tuple) else axes)
    mean, variance = (
        along(np.asarray(arrays[name] if settings.get(name) is None else settings[name]).reshape(-1), x, axis)
        for name in ("mean", "variance")
    )
    deviation = np.maximum(np.sqrt(variance), 1e-7)
    return x * deviation + mean if settings.get("invert") else (x - mean) / deviation


_LEARNT: dict[str, Callable[[Array, Mapping[str, Any], Mapping[str, Any]], Array]] = {
    "LayerNormalization": _normalize_layer,
    "Normalization": _standardize,
    "PReLU": lambda x, arrays, _: np.maximum(x, 0) + np.asarray(arrays["alpha"], np.float64) * np.minimum(x, 0),
    "LayerScale": lambda x, arrays, _: x * np.asarray(next(iter(arrays.values())), np.float64),
}

_OF_TWO: dict[str, Any] = {
    "ops.Add": np.add, "ops.Subtract": np.subtract, "ops.Multiply": np.multiply, "ops.TrueDivide": np.divide,
    "ops.Divide": np.divide, "ops.Maximum": np.maximum, "ops.Minimum": np.minimum,
}  # fmt: skip
_OF_ONE = {
    "ops.Relu": "relu", "ops.Relu6": "relu6", "ops.Sigmoid": "sigmoid", "ops.Silu": "silu", "ops.Tanh": "tanh",
    "ops.HardSigmoid": "hard_sigmoid", "ops.HardSilu": "hard_silu", "ops.Elu": "elu", "ops.Selu": "selu",
    "ops.Gelu": "gelu", "ops.Softplus": "softplus", "ops.Softsign": "softsign", "ops.Exp": "exponential",
    "ops.LeakyRelu": "leaky_relu", "ops.Mish": "mish",
}  # fmt: skip


def _operate(node: Node, sources: Sequence[Array], meaning: Meaning) -> Array:
    """Compute a function of `keras.ops` or `tf` from its arguments, which count the batch."""
    kind, settings, x = node.kind, node.settings, sources[0]

    def value(operand: Any) -> Any:
        if isinstance(operand, Operand):
            return sources[operand.number]
        constant = np.asarray(operand, np.float64)
        while constant.ndim > x.ndim:
            constant = constant[0]
        return constant

    if kind in _OF_TWO:
        return np.asarray(_OF_TWO[kind](*map(value, node.operands[:2])))
    if kind in _OF_ONE:
        words = {word: setting for word, setting in settings.items() if word not in ("name", "function")}
        return activate(x, _OF_ONE[kind], keras=meaning.keras, **words)
    if kind == "ops.Cast":
        return x
    axis = settings.get("axis", node.operands[1] if len(node.operands) > 1 else -1)
    if kind == "ops.Softmax":
        return activate(x, "softmax", axis=axis_of(axis))
    if kind == "ops.Mean":
        axes = tuple(axis_of(one) for one in (axis if isinstance(axis, list | tuple) else [axis]))
        return x.mean(axes, keepdims=bool(settings.get("keepdims")))
    if kind in ("ops.Concatenate", "ops.Stack"):
        join = np.concatenate if kind == "ops.Concatenate" else np.stack
        return join(sources, axis=axis_of(axis))
    if kind == "ops.GetItem":
        key = [... if one == "..." else one for one in node.operands[1]]
        return x[tuple(key[1:] if key[0] == slice(None) else key)]  # the batch is left out
    raise ValueError(f"the function {kind} is not known here")

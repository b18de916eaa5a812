"""One layer of a Keras graph computed from its settings and arrays; which function of `numpy_keras` is whose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from converters.proof import numpy_keras
from converters.proof.numpy_keras import Array
from converters.readers.keras_file import DataFormat, KerasArray, KernelOrder
from converters.readers.keras_graph import Node
from converters.readers.keras_words import IDENTITIES

Read = Callable[[KerasArray], Any]


@dataclass(frozen=True)
class Meaning:
    """What of a file decides how its arrays are read.

    Attributes:
        theano: whether convolution is true convolution, with Theano's padding.
        keras: the version of Keras, 1, 2 or 3; 1 for 0.x too.
        data_format: of layers that do not say theirs.
    """

    theano: bool
    keras: int
    data_format: DataFormat

    def order(self, data_format: DataFormat) -> KernelOrder:
        """How kernels are stored: (out, in, h, w) only by Keras 1 where channels come first."""
        return "oihw" if self.keras == 1 and data_format == "channels_first" else "hwio"


ACTIVATIONS = ("Activation", "ReLU", "LeakyReLU", "ELU", "Softmax")


def activation_of(settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A layer's activation by name; Keras writes a function as a word or as an object that holds the word."""
    value = settings.get("activation")
    if isinstance(value, Mapping):
        inner = value.get("config")
        if isinstance(inner, Mapping):  # an Activation layer in the place of a function
            return layer_activation(str(value["class_name"]), inner)
        value = inner or value.get("class_name")
    return str(value or "linear"), {}


def layer_activation(kind: str, settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The activation that a layer is, one of `ACTIVATIONS`: its name and its numbers."""
    if kind == "Activation":
        return activation_of(settings)
    if kind == "ReLU":
        words = ("max_value", "threshold", "negative_slope")
        return "relu", {word: None if settings.get(word) is None else _number(settings[word]) for word in words}
    if kind == "LeakyReLU":
        slope = settings.get("negative_slope", settings.get("alpha", 0.3))
        return "leaky_relu", {"negative_slope": _number(slope)}
    if kind == "ELU":
        return "elu", {"alpha": _number(settings.get("alpha", 1.0))}
    if kind == "Softmax":
        axis = settings.get("axis", -1)
        return "softmax", {"axis": _axis(axis)}
    raise ValueError(f"the activation {kind} is not known here")


def _number(value: Any) -> float:
    """A number; Keras 1 and 2 wrote some as {"type": "ndarray", "value": 0.1}."""
    return float(value["value"] if isinstance(value, Mapping) else value)


def _axis(value: Any) -> int:
    """An axis without the batch: 1 is the first, and -1 remains the last; tf_keras writes a list of one."""
    axis = int(value[0] if isinstance(value, list | tuple) else value)
    return axis if axis < 0 else axis - 1


def pair_of(value: Any) -> tuple[int, int]:
    """Of both axes, where one number stands for both."""
    if isinstance(value, int):
        return value, value
    first, second = value
    return int(first), int(second)


def edges_of(padding: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """((top, bottom), (left, right)) of ZeroPadding2D: one number, two, two pairs, or Keras 1's four or words."""
    if isinstance(padding, Mapping):
        top, bottom, left, right = (int(padding.get(f"{side}_pad", 0)) for side in ("top", "bottom", "left", "right"))
        return (top, bottom), (left, right)
    if isinstance(padding, int):
        return (padding, padding), (padding, padding)
    if len(padding) == 4:
        return pair_of(padding[:2]), pair_of(padding[2:])
    rows, columns = padding
    return pair_of(rows), pair_of(columns)


def format_of(node: Node, meaning: Meaning) -> DataFormat:
    """Of a node's image: its own setting; batch normalisation tells it by its axis, a dense layer has channels last."""
    if node.kind == "BatchNormalization":
        return "channels_first" if _axis(node.settings.get("axis", -1)) == 0 else "channels_last"
    if node.kind == "Dense":
        return "channels_last"
    said = node.settings.get("data_format")
    return said if said in ("channels_first", "channels_last") and node.kind != "Flatten" else meaning.data_format


def channels_first(values: Array, data_format: DataFormat) -> Array:
    return np.moveaxis(values, 2, 0) if values.ndim == 3 and data_format == "channels_last" else values


def compute(node: Node, sources: Sequence[Array], read: Read, meaning: Meaning) -> Array:
    """The output of a node, without the activation that is part of a layer with weights."""
    kind, settings, x = node.kind, node.settings, sources[0]
    arrays = {} if node.layer is None else {role: read(array) for role, array in node.layer.arrays.items()}
    data_format = format_of(node, meaning)
    if kind in IDENTITIES:
        return x
    if kind in ACTIVATIONS:
        name, words = layer_activation(kind, settings)
        return numpy_keras.activate(x, name, keras=meaning.keras, **words)
    if kind in ("Conv2D", "DepthwiseConv2D", "SeparableConv2D"):
        return _convolve(kind, settings, x, arrays, data_format, meaning)
    if kind == "Dense":
        return _plus_bias(numpy_keras.dense(x, arrays["kernel"]), arrays, -1)
    if kind == "BatchNormalization":
        if settings.get("mode", 0) != 0:
            raise ValueError(f"mode {settings['mode']!r} of Keras 1 is not known here; known: 0")
        return numpy_keras.normalize_batch(
            x, arrays["moving_mean"], arrays["moving_variance"], arrays.get("gamma"), arrays.get("beta"),
            epsilon=float(settings["epsilon"]), axis=_axis(settings.get("axis", -1)),
        )  # fmt: skip
    if kind in ("MaxPooling2D", "AveragePooling2D"):
        size = pair_of(settings["pool_size"])
        return numpy_keras.pool(
            x, size, how="max" if kind == "MaxPooling2D" else "average", data_format=data_format, theano=meaning.theano,
            strides=pair_of(settings.get("strides") or size), padding=settings.get("padding", "valid"),
        )  # fmt: skip
    if kind in ("GlobalAveragePooling2D", "GlobalMaxPooling2D"):
        over = (0, 1) if data_format == "channels_last" else (1, 2)
        reduce = np.mean if kind == "GlobalAveragePooling2D" else np.max
        return reduce(x, axis=over, keepdims=bool(settings.get("keepdims")))
    if kind == "Flatten":  # of Keras 2.2 and later; older ones take the values as they lie in memory
        first = settings.get("data_format") == "channels_first"
        return (np.moveaxis(x, 0, -1) if first and x.ndim > 1 else x).reshape(-1)
    if kind == "ZeroPadding2D":
        return numpy_keras.pad(x, edges_of(settings["padding"]), data_format)
    if kind == "Rescaling":
        scale, offset = (np.asarray(settings.get(word, plain)) for word, plain in (("scale", 1), ("offset", 0)))
        axis = 0 if data_format == "channels_first" else -1  # of a list, one number a channel
        return x * (numpy_keras.along(scale, x, axis) if scale.ndim else scale) + (
            numpy_keras.along(offset, x, axis) if offset.ndim else offset
        )
    if kind == "Add":
        return sum(sources[1:], x)
    if kind == "Concatenate":
        return np.concatenate(sources, axis=_axis(settings.get("axis", -1)))
    if kind == "SplitTensor":  # of convnets-keras: half the channels
        return np.split(x, 2, axis=0 if data_format == "channels_first" else 2)[settings["half"]]
    if kind == "CrossChannelNormalization":
        return numpy_keras.normalize_across_channels(x, data_format)
    raise ValueError(f"layers of class {kind} are not known here")


def _convolve(
    kind: str,
    settings: Mapping[str, Any],
    x: Array,
    arrays: Mapping[str, Any],
    data_format: DataFormat,
    meaning: Meaning,
) -> Array:
    strides, dilation = pair_of(settings.get("strides", 1)), pair_of(settings.get("dilation_rate", 1))
    how: Any = {"data_format": data_format, "theano": meaning.theano}
    place: Any = {"strides": strides, "padding": settings.get("padding", "valid"), "dilation": dilation}
    order = meaning.order(data_format)
    channels = 0 if data_format == "channels_first" else 2
    if kind == "Conv2D":
        groups = int(settings.get("groups", 1))
        result = numpy_keras.convolve(x, arrays["kernel"], order=order, groups=groups, **how, **place)
        return _plus_bias(result, arrays, channels)
    if order == "oihw":
        raise ValueError("depthwise kernels of Keras 1 with channels first are not known here")
    depthwise = arrays["depthwise_kernel"] if "depthwise_kernel" in arrays else arrays["kernel"]
    result = numpy_keras.convolve_depthwise(x, depthwise, **how, **place)
    if kind == "SeparableConv2D":
        result = numpy_keras.convolve(result, arrays["pointwise_kernel"], order=order, **how)
    return _plus_bias(result, arrays, channels)


def _plus_bias(values: Array, arrays: Mapping[str, Any], axis: int) -> Array:
    return values + numpy_keras.along(arrays["bias"], values, axis) if "bias" in arrays else values

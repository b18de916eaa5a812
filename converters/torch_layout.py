"""Convert one layer of a Keras file to the arrays of the corresponding PyTorch module."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Literal

import h5py
import numpy as np

from converters.layouts import ORDERS, Array, chw_rows_from_hwc, flip
from converters.readers.keras_file import KerasLayer, KernelOrder
from converters.readers.reading import opened, values

KNOWN = ("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Dense", "BatchNormalization")


def to_torch_layout(
    layer: KerasLayer,
    *,
    backend: str | None = None,
    window: tuple[int, int] | None = None,
    rows: Literal["hwc", "chw"] = "hwc",
    kernel_order: KernelOrder | None = None,
    file: h5py.File | None = None,
) -> dict[str, Array]:
    """Read the arrays of a layer in the layout of the corresponding PyTorch module, float32.

    | Keras | PyTorch | names |
    | --- | --- | --- |
    | Conv2D, also grouped | Conv2d | weight, bias |
    | DepthwiseConv2D | Conv2d(groups=in) | weight, bias |
    | SeparableConv2D | two Conv2d, `depthwise` and `pointwise` | depthwise.weight, pointwise.weight, pointwise.bias |
    | Dense | Linear | weight, bias |
    | BatchNormalization | BatchNorm2d | weight, bias, running_mean, running_var |

    A missing bias is left out; a missing gamma becomes ones, a missing beta zeros.

    Args:
        layer: a layer from `read_keras`.
        backend: `file.backend`: kernels trained on "theano" are flipped, except depthwise ones. Files of Keras 0.x and
            1 do not specify it, so it must be given; `.weights.h5` and `.keras` do not need it, as these formats are
            newer than Theano.
        window: (height, width) of the feature map flattened before a Dense; None if there is no Flatten.
        rows: row order of that Dense: "hwc" after a channels-last flatten; "chw" after a channels-first one of Keras 1,
            2.0 and 2.1 (Keras 2.2 and later transpose, unless the Flatten's `data_format` is "channels_last").
        kernel_order: axis order of convolution kernels, if the file does not determine it.
        file: the file opened with `opened`, to read many layers; by default the layer's file is opened.

    Raises:
        OSError: the arrays cannot be read.
        ValueError: the class is unsupported, arrays are missing or superfluous, or a required argument is not given.

    >>> from converters import read_keras
    >>> layers = read_keras("alexnet_weights.h5").weighted
    >>> {name: array.shape for name, array in to_torch_layout(layers[0], backend="theano").items()}
    {'weight': (12, 3, 11, 11), 'bias': (12,)}
    """
    if layer.kind not in KNOWN:
        raise ValueError(f"layer {layer.name} is {layer.kind or 'of unknown class'}; supported: {', '.join(KNOWN)}")
    _check_roles(layer)
    if "Conv" in layer.kind:
        kernel_order = kernel_order or layer.kernel_order
        if kernel_order is None:
            raise ValueError(f"the kernel order of {layer.name} is unknown; give kernel_order, hwio or oihw")
        if layer.kind == "Conv2D" and backend is None and not _is_younger_than_theano(layer):
            raise ValueError(
                f"layer {layer.name} must be flipped if Theano trained it; give backend, the file's or the one that"
                " trained it"
            )
    with ExitStack() as stack:
        if layer.arrays:
            file = file or stack.enter_context(opened(next(iter(layer.arrays.values())).path))
        held = {role: values(file, array) for role, array in layer.arrays.items()} if file else {}
    if layer.kind == "BatchNormalization":
        found = _batch_norm(held)
    elif layer.kind == "Dense":
        found = _dense(layer, held, window, rows)
    else:
        found = _convolution(layer.kind, held, kernel_order or "hwio", flipped=backend == "theano")
    return {name: np.array(array, np.float32, order="C") for name, array in found.items()}


def _check_roles(layer: KerasLayer) -> None:
    needed = {
        "DepthwiseConv2D": {"depthwise_kernel"},
        "SeparableConv2D": {"depthwise_kernel", "pointwise_kernel"},
        "BatchNormalization": {"moving_mean", "moving_variance"},
    }.get(layer.kind, {"kernel"})
    allowed = needed | ({"gamma", "beta"} if layer.kind == "BatchNormalization" else {"bias"})
    if missing := needed - set(layer.arrays):
        raise ValueError(f"layer {layer.name} has no {', '.join(sorted(missing))}; is it {layer.kind}?")
    if superfluous := set(layer.arrays) - allowed:
        raise ValueError(f"layer {layer.name} holds {', '.join(sorted(superfluous))}, which no {layer.kind} has")
    dimensions = {"kernel": 2 if layer.kind == "Dense" else 4, "depthwise_kernel": 4, "pointwise_kernel": 4}
    for role, array in layer.arrays.items():
        if len(array.shape) != dimensions.get(role, 1):
            raise ValueError(f"layer {layer.name}: {role} is {array.shape}; is it {layer.kind}?")


def _is_younger_than_theano(layer: KerasLayer) -> bool:
    return any(re.search(r"(^|/)vars/\d+$", array.place) for array in layer.arrays.values())


def _batch_norm(held: Mapping[str, Array]) -> dict[str, Array]:
    mean, variance = held["moving_mean"], held["moving_variance"]
    return {
        "weight": held.get("gamma", np.ones_like(variance)),
        "bias": held.get("beta", np.zeros_like(mean)),
        "running_mean": mean,
        "running_var": variance,
    }


def _dense(
    layer: KerasLayer, held: Mapping[str, Array], window: tuple[int, int] | None, rows: Literal["hwc", "chw"]
) -> dict[str, Array]:
    kernel = held["kernel"]
    if window is not None and len(kernel) % (window[0] * window[1] or 1):
        raise ValueError(
            f"layer {layer.name} has {len(kernel)} rows, which no feature map of {window[0]}x{window[1]} cells gives"
        )
    if window is not None and rows == "hwc":
        kernel = chw_rows_from_hwc(kernel, window)
    return {"weight": kernel.T} | _bias(held)


def _convolution(kind: str, held: Mapping[str, Array], order: KernelOrder, *, flipped: bool) -> dict[str, Array]:
    def kernel(role: str) -> Array:
        array = held[role]
        if role == "depthwise_kernel":  # Keras reverses these before Theano reverses them again: no flip
            # Keras 1 with th: (multiplier, in, height, width)
            return ORDERS["depthwise"](array.transpose(2, 3, 1, 0) if order == "oihw" else array)
        return flip(ORDERS[order](array)) if flipped else ORDERS[order](array)

    if kind == "SeparableConv2D":
        pointwise = {"weight": kernel("pointwise_kernel")} | _bias(held)
        named = {f"pointwise.{name}": array for name, array in pointwise.items()}
        return {"depthwise.weight": kernel("depthwise_kernel")} | named
    return {"weight": kernel("kernel" if kind == "Conv2D" else "depthwise_kernel")} | _bias(held)


def _bias(held: Mapping[str, Array]) -> dict[str, Array]:
    return {"bias": held["bias"]} if "bias" in held else {}

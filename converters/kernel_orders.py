"""How a file's convolution kernels are stored: (out, in, height, width) only in Keras 0.x and 1 with `th`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, pairwise

from converters.keras_config import format_of
from converters.keras_file import KerasLayer, KernelOrder

KERNELS = ("kernel", "depthwise_kernel")


def with_kernel_orders(layers: tuple[KerasLayer, ...], *, modern: bool) -> tuple[KerasLayer, ...]:
    """The layers, those with convolution kernels with their order, which is one for the file.

    Args:
        layers: of a file.
        modern: of Keras 2 or later, where kernels are always (height, width, in, out).
    """
    order: KernelOrder | None = "hwio" if modern else _told(layers)
    return tuple(replace(layer, kernel_order=order) if _has_kernel(layer) else layer for layer in layers)


def _has_kernel(layer: KerasLayer) -> bool:
    return any(len(layer.arrays[role].shape) == 4 for role in KERNELS if role in layer.arrays)


def _told(layers: tuple[KerasLayer, ...]) -> KernelOrder | None:
    """By the configs, else by biases, else by the batch normalisations that follow; None without one voice."""
    for votes in (_by_config(layers), _by_lengths(layers)):
        found = set(votes)
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def _by_config(layers: tuple[KerasLayer, ...]) -> Iterator[KernelOrder]:
    for layer in layers:
        if _has_kernel(layer) and layer.config and (order := format_of(layer.config)):
            yield "oihw" if order == "channels_first" else "hwio"


def _by_lengths(layers: tuple[KerasLayer, ...]) -> list[KernelOrder]:
    """A bias, or the batch normalisation behind, is as long as there are outputs."""
    weighted = [layer for layer in layers if layer.arrays]
    own = [
        vote
        for layer in weighted
        if _has_kernel(layer) and "kernel" in layer.arrays and "bias" in layer.arrays
        for vote in _vote(layer, layer.arrays["bias"].shape)
    ]
    if own:
        return own
    return list(
        chain.from_iterable(
            _vote(layer, after.arrays["moving_mean"].shape)
            for layer, after in pairwise(weighted)
            if _has_kernel(layer) and "kernel" in layer.arrays and after.kind == "BatchNormalization"
        )
    )


def _vote(layer: KerasLayer, outputs: tuple[int, ...]) -> Iterator[KernelOrder]:
    shape = layer.arrays["kernel"].shape
    if len(outputs) == 1 and shape[0] != shape[3] and outputs[0] in (shape[0], shape[3]):
        yield "oihw" if outputs[0] == shape[0] else "hwio"

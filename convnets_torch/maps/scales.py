"""One picture at several sizes: which, and how their maps become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from typing import Literal, get_args

import numpy as np

from convnets_torch.maps.cells import Heatmap
from convnets_torch.maps.resampling import interpolated
from convnets_torch.preprocessing import MOST_PIXELS, Pair

Fuse = Literal["mean", "max"]
Scales = Sequence[float] | Literal["auto"]


def sizes_of(scales: Scales, size: Pair, least: Pair) -> list[Pair]:
    """(height, width) in pixels of a picture at several scales, the smallest first.

    Args:
        scales: factors of `size`; or "auto": octaves from the size at which one window covers the shorter side up to
            the picture's own, and two of them at least.
        size: (height, width) of the picture.
        least: (height, width) of the network's own images.

    Raises:
        ValueError: no scale, one that is no number above 0, or a size that is smaller than the network's own or too
            large.

    >>> sizes_of("auto", (480, 640), (224, 224))
    [(224, 299), (448, 597)]
    >>> sizes_of((1, 0.5), (480, 640), (224, 224))
    [(240, 320), (480, 640)]
    """
    if scales == "auto":
        smallest = max(wanted / side for wanted, side in zip(least, size, strict=True))
        factors = [smallest, 2 * smallest]
        while 2 * factors[-1] <= 1:
            factors.append(2 * factors[-1])
    else:
        factors = factors_of(scales)
    sizes = []
    for factor in factors:
        at = (max(1, round(size[0] * factor)), max(1, round(size[1] * factor)))
        if scales == "auto":  # rounding may have taken a pixel
            at = (max(at[0], least[0]), max(at[1], least[1]))
        if at[0] < least[0] or at[1] < least[1]:
            smallest = max(wanted / side for wanted, side in zip(least, size, strict=True))
            raise ValueError(
                f"at scale {factor:g} the picture is {at[0]}x{at[1]} pixels (height x width), smaller than the"
                f" network's {least[0]}x{least[1]}; the least scale is {ceil(smallest * 1000) / 1000:g}"
            )
        if at[0] * at[1] > MOST_PIXELS:
            raise ValueError(f"at scale {factor:g} the picture has {at[0] * at[1]:,} pixels; take a smaller scale")
        sizes.append(at)
    return sizes


def factors_of(scales: Scales) -> list[float]:
    """Scales that are no word as factors, the least first and each once.

    Raises:
        ValueError: no scale, or one that is no number above 0.
    """
    factors = [] if isinstance(scales, str) else sorted({float(scale) for scale in scales})
    if not factors or not all(np.isfinite(factor) and factor > 0 for factor in factors):
        raise ValueError(f"scales are {scales!r}; give factors above 0, such as 0.5, 1, 2, or 'auto'")
    return factors


def check_fuse(fuse: str) -> None:
    """Raise ValueError when maps cannot be fused so."""
    if fuse not in get_args(Fuse):
        raise ValueError(f"unknown way to fuse scales {fuse!r}; known: {', '.join(get_args(Fuse))}")


def fused(maps: Sequence[Heatmap], fuse: Fuse) -> Heatmap:
    """One map of several scales of a picture, on the cells of the finest one.

    Each map is interpolated bilinearly between the centres of its windows; beyond the outermost ones the nearest goes
    on. Then the mean or the maximum is taken.

    Args:
        maps: of one picture and target, the coarsest first.
        fuse: "mean" or "max".

    Raises:
        ValueError: another way to fuse.
    """
    check_fuse(fuse)
    if len(maps) == 1:
        return maps[0]
    finest = maps[-1]
    layers = []
    for each in maps:
        values = each.values
        for axis in (0, 1):
            centres = finest.placement.windows(axis).mean(axis=1)
            places = (centres - each.window_size[axis] / 2) / each.stride[axis]
            values = interpolated(values, places, axis)
        layers.append(values)
    stack = np.stack(layers)
    values = stack.mean(axis=0, dtype=np.float32) if fuse == "mean" else stack.max(axis=0)
    return replace(finest, values=values, scales=tuple(maps), winners=stack.argmax(axis=0))

"""Choose the sizes at which the network sees a picture, and fuse the maps of several scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from math import ceil
from typing import Literal

import numpy as np

from convnets_torch.fcn.graph import MapGraph
from convnets_torch.heatmaps.maps import Box, CellGrid, Heatmap
from convnets_torch.images.levels import shown
from convnets_torch.images.preprocessing import MOST_PIXELS, Interpolation, Pair, Pixels, size_with_longest_side
from convnets_torch.images.sources import InMemory, Preview, Source
from convnets_torch.inference.pipeline import Mappable
from convnets_torch.visualization.overlays import interpolated

VIEW = 4096  # pixels, longer side of the view kept of a picture that is read row by row
BLOCK_ROWS = 256  # read at a time for it


def input_size(size: Pair, network: Mappable, name: str, longest_side: int | None, upscale: bool) -> Pair:
    """Return (height, width) of the network's input for a picture of `size`, enlarged with `upscale` if too small.

    Raises:
        ValueError: the picture is too small, or too thin to be enlarged.
    """
    resized = size if longest_side is None else size_with_longest_side(size, longest_side)
    if resized[0] >= network.size[0] and resized[1] >= network.size[1]:
        return resized
    if max(size) > 50 * min(size):
        raise ValueError(f"{name} is {size[0]}x{size[1]} pixels (height x width), too thin for a heatmap; crop it")
    least = max(Fraction(wanted, side) for wanted, side in zip(network.size, size, strict=True))
    enlarged = (ceil(size[0] * least), ceil(size[1] * least))
    if upscale:
        return enlarged
    raise ValueError(
        f"{name} is {resized[0]}x{resized[1]} pixels (height x width), smaller than the network's"
        f" {network.size[0]}x{network.size[1]}; enlarge it to {enlarged[0]}x{enlarged[1]} (upscale, --upscale), or with"
        f" a longest side of {max(enlarged)} or more"
    )


def placement_of(
    graph: MapGraph, network: Mappable, size: Pair, resized: Pair, interpolation: Interpolation
) -> CellGrid:
    """Place a graph's cells over a picture of `size`, resized to the network's input; (height, width) each."""
    return CellGrid(
        size=size,
        part=Box(0, 0, size[1], size[0]),
        seen=resized,
        shape=graph.shape(*resized),
        first=(network.size[0] / 2, network.size[1] / 2),
        apart=(graph.stride, graph.stride),
        window=network.size,
        fields_seen=(graph.input_ranges(resized[0], 0), graph.input_ranges(resized[1], 1)),
        interpolation=interpolation,
    )


def view_of(source: Source) -> Pixels:
    """Return the picture itself if it is in memory, else a reduced view of at most 4096 pixels a side."""
    if isinstance(source, InMemory):
        return source.pixels
    height = source.shape[0]
    preview = Preview(source.shape, VIEW)
    for top in range(0, height, BLOCK_ROWS):
        preview.add(top, shown(source.rows(top, min(top + BLOCK_ROWS, height))))
    return preview.picture


Fuse = Literal["mean", "max"]
Scales = Sequence[float] | Literal["auto"]


def sizes_of(scales: Scales, size: Pair, least: Pair) -> list[Pair]:
    """Return (height, width) in pixels of a picture at several scales, smallest first.

    Args:
        scales: factors of `size`; or "auto": octaves from the size at which one window covers the shorter side up to
            the picture's own, at least two.
        size: (height, width) of the picture.
        least: (height, width) of the network's own images.

    Raises:
        ValueError: there is no scale, a scale is not a number above 0, or a size is smaller than the network's own or
            too large.

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
        if scales == "auto":  # rounding may have lost a pixel
            at = (max(at[0], least[0]), max(at[1], least[1]))
        if at[0] < least[0] or at[1] < least[1]:
            smallest = max(wanted / side for wanted, side in zip(least, size, strict=True))
            raise ValueError(
                f"at scale {factor:g} the picture is {at[0]}x{at[1]} pixels (height x width), smaller than the"
                f" network's {least[0]}x{least[1]}; the smallest scale is {ceil(smallest * 1000) / 1000:g}"
            )
        if at[0] * at[1] > MOST_PIXELS:
            raise ValueError(f"at scale {factor:g} the picture has {at[0] * at[1]:,} pixels; use a smaller scale")
        sizes.append(at)
    return sizes


def factors_of(scales: Scales) -> list[float]:
    """Return scales given as numbers, sorted and without duplicates; ValueError unless all are above 0."""
    factors = [] if isinstance(scales, str) else sorted({float(scale) for scale in scales})
    if not factors or not all(np.isfinite(factor) and factor > 0 for factor in factors):
        raise ValueError(f"scales are {scales!r}; give factors above 0, such as 0.5, 1, 2, or 'auto'")
    return factors


def fused(maps: Sequence[Heatmap], fuse: Fuse) -> Heatmap:
    """Fuse the maps of several scales, coarsest first, into one on the cells of the finest scale.

    Each map is interpolated bilinearly between the centres of its windows; beyond the outermost centres the nearest
    value is used. Then the mean or the maximum is taken.
    """
    if len(maps) == 1:
        return maps[0]
    finest = maps[-1]
    layers = []
    for each in maps:
        values = each.values
        for axis in (0, 1):
            centres = finest.grid.windows(axis).mean(axis=1)
            values = interpolated(values, each.grid.places(axis, centres), axis)
        layers.append(values)
    stack = np.stack(layers)
    values = stack.mean(axis=0, dtype=np.float32) if fuse == "mean" else stack.max(axis=0)
    return replace(finest, values=values, scales=tuple(maps), winners=stack.argmax(axis=0))

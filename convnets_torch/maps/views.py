"""A picture as the network sees it: at which size, where its cells lie, and what is kept to draw on."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

from convnets_torch.maps.placement import Placement
from convnets_torch.networks.grids import Grid
from convnets_torch.pipeline import Mappable
from convnets_torch.preprocessing import Interpolation, Pair, Pixels, size_with_longest_side
from convnets_torch.sources import Held, Preview, Source

VIEW = 4096  # pixels of the longer side of what is kept of a picture that is read row by row
STRIP = 256  # rows that are read at a time for it


def size_seen(size: Pair, network: Mappable, name: str, longest_side: int | None, upscale: bool) -> Pair:
    """(height, width) in pixels at which the network is to see a picture.

    Args:
        size: (height, width) of the picture.
        network: whose own size is the least.
        name: of the picture, for messages.
        longest_side: pixels of the longer side, instead of the picture's own.
        upscale: enlarge it, keeping its aspect, where that is too small.

    Raises:
        ValueError: it is too small, or too thin to be enlarged.
    """
    seen = size if longest_side is None else size_with_longest_side(size, longest_side)
    if seen[0] >= network.size[0] and seen[1] >= network.size[1]:
        return seen
    if max(size) > 50 * min(size):
        raise ValueError(f"{name} is {size[0]}x{size[1]} pixels (height x width), too thin for a heatmap; cut it")
    least = max(Fraction(wanted, side) for wanted, side in zip(network.size, size, strict=True))
    enlarged = (ceil(size[0] * least), ceil(size[1] * least))
    if upscale:
        return enlarged
    raise ValueError(
        f"{name} is {seen[0]}x{seen[1]} pixels (height x width), smaller than the network's"
        f" {network.size[0]}x{network.size[1]}; enlarge it to {enlarged[0]}x{enlarged[1]} (upscale, --upscale), or with"
        f" a longest side of {max(enlarged)} or more"
    )


def placement_of(grid: Grid, network: Mappable, size: Pair, seen: Pair, interpolation: Interpolation) -> Placement:
    """Where a grid's cells lie over a picture of `size` that the network saw as `seen`, (height, width) each."""
    return Placement(
        size=size,
        seen=seen,
        stride_seen=grid.stride,
        window_seen=network.size,
        rows_seen=grid.seen(seen[0], 0),
        columns_seen=grid.seen(seen[1], 1),
        interpolation=interpolation,
    )


def view_of(source: Source) -> Pixels:
    """The picture itself where it is in memory; a reduced view, of at most 4096 pixels a side, where it is not."""
    if isinstance(source, Held):
        return source.pixels
    height = source.shape[0]
    preview = Preview(source.shape, VIEW)
    for top in range(0, height, STRIP):
        preview.add(top, source.rows(top, min(top + STRIP, height)))
    return preview.picture

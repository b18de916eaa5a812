"""Heatmaps of many pictures of mixed sizes: pictures with the same network input size run in one batch."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Generator, Hashable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from math import prod
from typing import Literal, cast

import numpy as np
import torch
from PIL import Image
from typing_extensions import Unpack

from convnets_torch.fcn.graph import Grid
from convnets_torch.fcn.memory import peak_bytes
from convnets_torch.heatmaps.maps import Heatmap
from convnets_torch.heatmaps.running import (
    HeatmapOptions,
    Kept,
    ScalesKeywords,
    Shared,
    Wanted,
    at_size,
    dtype_of,
    faint_remark,
    grid_for,
    heatmaps_of,
    run_batch,
    run_sizes,
    shared_by_maps,
    sizes_to_run,
)
from convnets_torch.heatmaps.scales import VIEW
from convnets_torch.images.decoding import picture_name
from convnets_torch.images.preprocessing import Pair, Pixels, least_size
from convnets_torch.images.sources import InMemory, Sliceable, Source, is_sliced, open_picture
from convnets_torch.inference.classification import card_of, probabilities
from convnets_torch.inference.pipeline import (
    THREADS,
    Mappable,
    Result,
    each_of,
    each_row,
    expected_pixels,
    mappable,
    run_pictures,
)
from convnets_torch.options import checked, shows
from convnets_torch.wordnet.targets import Target, Targets, checked_targets

WAITING = 64  # pictures decoded ahead, and as many again queued for others of their size


@dataclass(frozen=True)
class Mapped(Result[list[Heatmap]]):
    """The maps of one picture.

    Attributes:
        maps: one per target, also for a single target; empty on error.
        picture, error, remarks: as in `Result`.
    """

    @property
    def maps(self) -> list[Heatmap]:
        """The `value`; empty on error."""
        return self.value or []


@shows(ScalesKeywords, HeatmapOptions)
def heatmap_each(
    network: Mappable,
    images: Sliceable | Iterable[Sliceable],
    target: str | int | Targets,
    *,
    batch: int | Literal["auto"] = "auto",
    workers: int | None = None,
    exact: bool = True,
    **options: Unpack[ScalesKeywords],
) -> Generator[Mapped, None, None]:
    """Find a target in any number of pictures; a picture that cannot be used does not stop the others.

    The maps equal those of `heatmap` for each picture alone. Threads decode pictures ahead of time. Pictures with the
    same network input size run in one batch, as many as `max_memory` allows; they are never padded, which would change
    the numbers. A picture too large for one pass runs alone, in strips; with `scales`, every picture runs alone.
    Pictures wait for others of their size, so results come in bursts; about 64 million pixels are in memory at once, or
    a single picture that is larger.

    Args:
        network: in eval mode and with its card, as `load` returns it; or an engine, as for `heatmap`.
        images: whatever `heatmap` takes, any number of them; `find_pictures` lists those of a folder.
        target: as for `heatmap`; with several targets, each picture gets a map for each.
        batch: maximum number of pictures of one size per batch; "auto" is as many as memory allows.
        workers: number of decoding threads; one per core by default, at most 16.
        exact: compute the maps of `heatmap`. Without it, JPEG files are decoded at 1/2, 1/4 or 1/8 scale if they are
            then still twice as large as the network's input, which requires a `longest_side`; the map's `picture` is
            then smaller accordingly, and probabilities differ slightly. This never applies with `scales`, to cards with
            nearest-pixel interpolation, or to the presets of convnets-keras. docs/speed.md describes the effect.
        options: as for `heatmap`.

    Returns:
        A generator of one `Mapped` per picture, in the order given; `close()` stops it early.

    Raises:
        ValueError: immediately, for what concerns all pictures: the network has no card, no head, or is in training
            mode, its outputs are not probabilities, a target is unknown, the network does not support this stride, or
            an option is out of range.

    Warns:
        RuntimeRemark: the network runs instead of its engine because of a picture's size.
        MemoryWarning: memory ran out, and the work continues with smaller batches.

    >>> from convnets_torch import load
    >>> for result in heatmap_each(load("alexnet.safetensors"), ["street.jpg", "none.jpg"], "car"):
    ...     print(result.picture, [found.values.shape for found in result.maps], result.error)
    street.jpg [(3, 6)] None
    none.jpg [] none.jpg does not exist; name a file
    """
    settings = HeatmapOptions(**checked(options, ScalesKeywords))
    network = mappable(network)
    card = card_of(network)
    targets = checked_targets(card, target)
    probabilities(torch.zeros(1, card.classes, 1, 1), card)
    mapper = _Mapper(network, grid_for(network, settings.cell_stride), targets, settings, exact)
    resized = 0 if settings.longest_side is None else settings.longest_side**2  # at most
    rows = run_pictures(
        [images] if is_sliced(images) else each_of(images),
        mapper.open,
        mapper.run,
        batch=WAITING if batch == "auto" else batch,
        group=_Opened.group,
        room=mapper.room,
        waiting=WAITING,
        held=_Opened.pixels,
        most=WAITING,
        threads=workers or THREADS,
        size=lambda picture: expected_pixels(picture) + resized,
    )
    return each_row(rows, mapper.mapped)


@dataclass(eq=False)
class _Opened:
    """An opened picture.

    Attributes:
        source: may be smaller than the picture for a JPEG file.
        shape: (height, width) of the picture.
        sizes: sizes of the network's input.
        seen: the network's input, if it is one pass over a picture in memory; None if the picture runs alone, or
            has run.
        remarks: notes on the file.
    """

    source: Source
    shape: Pair
    sizes: list[Pair]
    seen: Pixels | None
    remarks: tuple[str, ...]

    def group(self) -> Hashable:
        """Return the key of the batch: the input size, or the picture itself if it runs alone."""
        return self if self.seen is None else self.sizes[0]

    def pixels(self) -> int:
        """Return the number of pixels kept in memory."""
        if not isinstance(self.source, InMemory):
            return 0
        resized = self.seen is not None and self.sizes[0] != self.source.shape  # else `seen` is a view
        return prod(self.source.shape) + (prod(self.sizes[0]) if resized else 0)


class _Mapper:
    """Turn pictures into maps."""

    def __init__(
        self, network: Mappable, grid: Grid, targets: list[Target], options: HeatmapOptions, exact: bool
    ) -> None:
        self._network, self._grid, self._targets, self._options = network, grid, targets, options
        self._card = card_of(network)
        self._wanted = Wanted(targets)
        self._fits = cache(partial(_fits, grid, dtype_of(network), options.memory))
        whole = exact or options.scales is not None or least_size(self._card.preprocessing) is None
        self._least = None if whole else self._least_decoded
        self.room = cache(self._batch_size)  # batch size of a group

    def open(self, picture: Sliceable) -> _Opened:
        """Decode and resize a picture, in a worker thread."""
        options, rule = self._options, self._card.preprocessing
        source, remarks, part, scale = open_picture(picture, options.reading(rule.exif, self._least))
        if max(source.shape) <= VIEW and not isinstance(source, InMemory):
            source = InMemory(source.rows(0, source.shape[0]))
        covered = source.shape if part is None else part[::-1]
        shape = (round(covered[0] * scale), round(covered[1] * scale))
        sizes = sizes_to_run(self._network, shape, picture_name(picture), options)
        size, seen = sizes[0], None
        if scale > 1 and isinstance(source, InMemory):
            filter = Image.Resampling[rule.interpolation.upper()]
            image = Image.fromarray(source.pixels)
            seen = np.asarray(image.resize(size[::-1], filter, box=(0, 0, *covered[::-1])))
        elif options.scales is None and isinstance(source, InMemory) and self._fits(size, 1):
            seen = at_size(source, size, self._card).rows(0, size[0])
        return _Opened(source, shape, sizes, seen, remarks)

    def _least_decoded(self, size: Pair) -> Pair | None:
        """Return the minimum (height, width) for decoding a JPEG file of this size; None for full scale."""
        try:
            [seen] = sizes_to_run(self._network, size, "", self._options)
        except ValueError:  # raised again once the picture has been read
            return None
        return (2 * seen[0], 2 * seen[1]) if self._fits(seen, 1) else None

    def _batch_size(self, group: Hashable) -> int:
        if isinstance(group, _Opened):
            return 1
        size = cast("Pair", group)
        return max(1, bisect_left(range(1, WAITING + 1), True, key=lambda count: not self._fits(size, count)))

    def run(self, items: list[_Opened]) -> list[list[Heatmap] | Exception]:
        """Return the maps of one picture that runs alone, or of several of one size."""
        pixels = [item.seen for item in items if item.seen is not None]
        if not pixels:
            [item] = items
            try:
                passes = run_sizes(self._network, self._grid, item.source, item.sizes, self._wanted, self._options)
            except (OSError, ValueError, ImportError) as error:
                return [error]
            return [self._maps(passes)]
        found = run_batch(self._network, self._grid, pixels, self._card, self._wanted)
        maps: list[list[Heatmap] | Exception] = [
            kept if isinstance(kept, ValueError) else self._maps([(self._shared(item, kept), kept)])
            for item, kept in zip(items, found, strict=True)
        ]
        for item in items:
            item.seen = None
        return maps

    def _shared(self, item: _Opened, kept: Kept) -> Shared:
        assert isinstance(item.source, InMemory)
        return shared_by_maps(self._network, self._grid, item.shape, item.sizes[0], item.source.pixels, kept)

    def _maps(self, passes: list[tuple[Shared, Kept]]) -> list[Heatmap]:
        return heatmaps_of(passes, self._targets, self._options.fuse)

    def mapped(self, row: Result[list[Heatmap]]) -> Mapped:
        """Return the row with a remark on low maps."""
        faint = () if row.value is None else faint_remark(self._network, row.picture, row.value, self._options)
        return Mapped(row.picture, row.value, row.error, row.remarks + faint)


def _fits(grid: Grid, dtype: torch.dtype, memory: int | None, size: Pair, count: int) -> bool:
    """Return whether `count` pictures of (height, width) pixels fit into memory in one strip."""
    return memory is None or peak_bytes(grid, (count, *size), dtype, size[0]) <= memory

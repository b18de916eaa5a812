"""Heatmaps of many pictures of mixed sizes: pictures with the same network input size run in one batch."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Generator, Hashable, Iterable
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Literal, cast

import torch
from PIL import Image
from typing_extensions import Unpack

from convnets_torch.fcn.memory import peak_bytes
from convnets_torch.heatmaps.maps import Heatmap
from convnets_torch.heatmaps.running import CellQuery, HeatmapOptions, MapRunner, ScalesKeywords, dtype_of
from convnets_torch.heatmaps.scales import VIEW
from convnets_torch.images.decoding import picture_name
from convnets_torch.images.preprocessing import Pair, Pixels, array_of, image_of, in_mode, least_size
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
from convnets_torch.wordnet.targets import Targets, checked_targets

WAITING = 64  # pictures decoded ahead, and as many again queued for others of their size


@dataclass(frozen=True)
class Mapped(Result[list[Heatmap]]):
    """The maps of one picture.

    Attributes:
        maps: one per target, also for a single target; empty on error.
        picture, error, notes: as in `Result`.
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
    the numbers. A picture too large for one pass runs alone, in blocks of rows; with `scales`, all run alone.
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
    mapper = _Mapper(MapRunner(network, CellQuery(targets), settings), exact)
    resized = 0 if settings.longest_side is None else settings.longest_side**2  # at most
    rows = run_pictures(
        [images] if is_sliced(images) else each_of(images),
        mapper.open,
        mapper.run,
        batch=WAITING if batch == "auto" else batch,
        group=_Opened.group,
        room=mapper.room,
        waiting=WAITING,
        held=_Opened.memory,
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
        pixels: the network's input, if it is one pass over a picture in memory; None if the picture runs alone, or
            has run.
        notes: notes on the file.
    """

    source: Source
    shape: Pair
    sizes: list[Pair]
    pixels: Pixels | None
    notes: tuple[str, ...]

    def group(self) -> Hashable:
        """Return the key of the batch: the input size, or the picture itself if it runs alone."""
        return self if self.pixels is None else self.sizes[0]

    def memory(self) -> int:
        """Return the number of pixels kept in memory."""
        if not isinstance(self.source, InMemory):
            return 0
        resized = self.pixels is not None and self.sizes[0] != self.source.shape  # else `pixels` is a view
        return prod(self.source.shape) + (prod(self.sizes[0]) if resized else 0)


class _Mapper:
    """Turn pictures into maps."""

    def __init__(self, runner: MapRunner, exact: bool) -> None:
        self._runner, self._options, self._rule = runner, runner.options, runner.card.preprocessing
        self._fits = cache(self._fits_in_memory)
        whole = exact or self._options.scales is not None or least_size(self._rule) is None
        self._least = None if whole else self._least_decoded
        self.room = cache(self._batch_size)  # batch size of a group

    def open(self, image: Sliceable) -> _Opened:
        """Decode and resize a picture, in a worker thread."""
        source, notes, part, scale = open_picture(image, self._options.reading(self._rule, self._least))
        if max(source.shape) <= VIEW and not isinstance(source, InMemory):
            source = InMemory(source.rows(0, source.shape[0]))
        covered = source.shape if part is None else part[::-1]
        shape = (round(covered[0] * scale), round(covered[1] * scale))
        sizes = self._runner.input_sizes(shape, picture_name(image))
        size, pixels = sizes[0], None
        if scale > 1 and isinstance(source, InMemory):
            filter = Image.Resampling[self._rule.interpolation.upper()]
            decoded = in_mode(image_of(source.pixels), self._rule)
            pixels = array_of(decoded.resize(size[::-1], filter, box=(0, 0, *covered[::-1])))
        elif self._options.scales is None and isinstance(source, InMemory) and self._fits(size, 1):
            pixels = self._runner.at_size(source, size).rows(0, size[0])
        return _Opened(source, shape, sizes, pixels, notes)

    def _least_decoded(self, size: Pair) -> Pair | None:
        """Return the minimum (height, width) for decoding a JPEG file of this size; None for full scale."""
        try:
            [(height, width)] = self._runner.input_sizes(size, "")
        except ValueError:  # raised again once the picture has been read
            return None
        return (2 * height, 2 * width) if self._fits((height, width), 1) else None

    def _batch_size(self, group: Hashable) -> int:
        if isinstance(group, _Opened):
            return 1
        size = cast("Pair", group)
        return max(1, bisect_left(range(1, WAITING + 1), True, key=lambda count: not self._fits(size, count)))

    def _fits_in_memory(self, size: Pair, count: int) -> bool:
        """Return whether `count` pictures of (height, width) pixels fit into memory in one pass."""
        memory, dtype = self._options.memory, dtype_of(self._runner.network)
        return memory is None or peak_bytes(self._runner.graph, (count, *size), dtype, size[0]) <= memory

    def run(self, items: list[_Opened]) -> list[list[Heatmap] | Exception]:
        """Return the maps of one picture that runs alone, or of several of one size."""
        pixels = [item.pixels for item in items if item.pixels is not None]
        if not pixels:
            [item] = items
            try:
                return [self._runner.heatmaps(self._runner.run_sizes(item.source, item.sizes))]
            except (OSError, ValueError, ImportError) as error:
                return [error]
        maps: list[list[Heatmap] | Exception] = []
        for item, arrays in zip(items, self._runner.run_batch(pixels), strict=True):
            item.pixels = None
            if isinstance(arrays, ValueError):
                maps.append(arrays)
                continue
            assert isinstance(item.source, InMemory)
            shared = self._runner.shared(item.shape, item.sizes[0], item.source.pixels, arrays)
            maps.append(self._runner.heatmaps([(shared, arrays)]))
        return maps

    def mapped(self, row: Result[list[Heatmap]]) -> Mapped:
        """Return the row with a note on low maps."""
        notes = () if row.value is None else self._runner.notes(row.picture, row.value)
        return Mapped(row.picture, row.value, row.error, row.notes + notes)

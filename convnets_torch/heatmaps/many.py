"""Heatmaps of many pictures of mixed sizes: those that the network sees at the same size go through it together."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import chain
from math import prod
from typing import Literal

import numpy as np
import torch
from PIL import Image

from convnets_torch.fcn.graph import Grid
from convnets_torch.fcn.memory import peak_bytes
from convnets_torch.heatmaps.maps import Heatmap
from convnets_torch.heatmaps.running import (
    MEMORY,
    Kept,
    Options,
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
from convnets_torch.heatmaps.scales import VIEW, Fuse, Scales, check_fuse, factors_of
from convnets_torch.images.decoding import picture_name
from convnets_torch.images.levels import Background, Depth
from convnets_torch.images.preprocessing import Pair, Pixels, least_size, size_with_longest_side
from convnets_torch.images.sources import Held, Sliceable, Source, is_sliced, open_with_remarks
from convnets_torch.inference.batching import in_batches
from convnets_torch.inference.classification import card_of, probabilities
from convnets_torch.inference.pipeline import THREADS, Mappable, ahead, each_of, expected_pixels, mappable
from convnets_torch.wordnet.targets import Target, Targets, checked_targets

ROOM = 32_000_000  # pixels that are decoded ahead, and as many that wait for others of their size
WAITING = 64  # pictures that are decoded ahead, and as many that wait


@dataclass(frozen=True)
class Mapped:
    """What became of one picture.

    Attributes:
        picture: as it was given.
        maps: one for each target, also for a single one; empty where there is an error.
        error: why the picture could not be used (OSError, ValueError, ImportError), else None.
        remarks: sentences on what its owner may not expect, such as that the first of several frames was read.
    """

    picture: Sliceable
    maps: list[Heatmap]
    error: Exception | None = None
    remarks: tuple[str, ...] = ()


def heatmap_each(
    network: Mappable,
    images: Sliceable | Iterable[Sliceable],
    target: str | int | Targets,
    *,
    longest_side: int | None = None,
    upscale: bool = False,
    cell_stride: int | None = None,
    scales: Scales | None = None,
    fuse: Fuse = "mean",
    max_memory: int | str | None = MEMORY,
    batch: int | Literal["auto"] = "auto",
    workers: int | None = None,
    max_pixels: int | None = None,
    allow_truncated: bool = False,
    depth: Depth = None,
    background: Background = None,
    exact: bool = True,
) -> Generator[Mapped, None, None]:
    """Find a target in any number of pictures; one that cannot be used does not stop the others.

    The maps are those that `heatmap` gives for each picture alone. Pictures are decoded ahead in threads, and those
    that the network sees at the same size go through it together, as many as `max_memory` allows: never padded, since
    that would change the numbers. A picture too large for one pass goes through by itself in strips, and each by
    itself where there are `scales`. Pictures wait for others of their size, so results come in bursts; some 64
    million pixels are in memory at once, or one picture that is larger.

    Args:
        network: in eval mode, with its card, as `load` gives it; or an engine, as for `heatmap`.
        images: whatever `heatmap` takes, any number of them; `find_pictures` lists those of a folder.
        target: as for `heatmap`; of several, each picture gets a map for each.
        longest_side, upscale, cell_stride, scales, fuse, max_memory: as for `heatmap`.
        batch: how many of a size go through the network together, at most; "auto" is as many as memory allows.
        workers: threads that decode; by default one for each core, at most 16.
        max_pixels, allow_truncated, depth, background: as in `read_picture`.
        exact: give the maps of `heatmap`. Without it, JPEG files are decoded at 1/2, 1/4 or 1/8 of their scale where
            they stay twice as large as what the network sees, which takes a `longest_side`; the map's `picture` is
            then so much smaller, and probabilities differ a little. Never so with `scales`, where the card picks
            nearest pixels, nor for the presets of convnets-keras. docs/speed.md has what that changes.

    Returns:
        A generator of one `Mapped` per picture, in the order given; `close()` stops it early.

    Raises:
        ValueError: at once, for what concerns all pictures: the network has no card, no head, or is in training mode,
            its outputs are no probabilities, a target is not known, the network cannot give this stride, or an option
            is out of range.

    Warns:
        RuntimeRemark: the network runs instead of its engine, for the size of a picture.
        MemoryWarning: memory ran out, and the work goes on with fewer pictures together.

    >>> from convnets_torch import load
    >>> for result in heatmap_each(load("alexnet.safetensors"), ["street.jpg", "none.jpg"], "car"):
    ...     print(result.picture, [found.values.shape for found in result.maps], result.error)
    street.jpg [(3, 6)] None
    none.jpg [] none.jpg does not exist; name a file
    """
    network = mappable(network)
    card = card_of(network)
    targets = checked_targets(card, target)
    probabilities(torch.zeros(1, card.classes, 1, 1), card)
    check_fuse(fuse)
    if scales is not None and scales != "auto":
        factors_of(scales)
    if longest_side is not None:
        size_with_longest_side((1, max(1, longest_side)), longest_side)
    options = Options(
        longest_side,
        upscale,
        cell_stride,
        max_memory,
        max_pixels=max_pixels,
        allow_truncated=allow_truncated,
        depth=depth,
        background=background,
        scales=scales,
    )
    mapper = _Mapper(network, grid_for(network, cell_stride), targets, options, fuse, exact, batch, workers)
    return mapper.map([images] if is_sliced(images) else each_of(images))


@dataclass(eq=False)
class _Entry:
    """A picture on its way.

    Attributes:
        picture: as it was given.
        source: opened; None where that failed.
        shape: (height, width) of the picture; the source of a JPEG file may be smaller.
        sizes: at which the network is to see it.
        seen: what the network is to see, where that is one pass over a picture in memory; None where the picture goes
            through by itself.
        maps: when it has gone through.
        error: why it cannot be used.
        remarks: on its file.
    """

    picture: Sliceable
    source: Source | None = None
    shape: Pair = (0, 0)
    sizes: list[Pair] = field(default_factory=list)
    seen: Pixels | None = None
    maps: list[Heatmap] | None = None
    error: Exception | None = None
    remarks: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        return self.maps is not None or self.error is not None

    @property
    def pixels(self) -> int:
        """How many of them it keeps in memory."""
        if not isinstance(self.source, Held):
            return 0
        resized = self.seen is not None and self.sizes[0] != self.source.shape  # else it is a view
        return prod(self.source.shape) + (prod(self.sizes[0]) if resized else 0)

    def fail(self, error: Exception) -> None:
        """Keep the reason and nothing else: the frames of its traceback would keep pixels and activations."""
        self.error = error.with_traceback(None)
        self.source = self.seen = None


class _Mapper:
    """Pictures in, maps out."""

    def __init__(
        self,
        network: Mappable,
        grid: Grid,
        targets: list[Target],
        options: Options,
        fuse: Fuse,
        exact: bool,
        batch: int | Literal["auto"],
        workers: int | None,
    ) -> None:
        self._batch, self._workers = batch, workers
        self._network, self._grid, self._targets, self._options, self._fuse = network, grid, targets, options, fuse
        self._card = card_of(network)
        self._wanted = Wanted(targets)
        self._fits = cache(partial(_fits, grid, dtype_of(network), options.memory))
        self._most: dict[Pair, int] = {}  # pictures of a size that go together, where memory ran out over more
        whole = exact or options.scales is not None or least_size(self._card.preprocessing) is None
        self._least = None if whole else self._enough

    def map(self, images: Iterable[Sliceable]) -> Generator[Mapped, None, None]:
        """All pictures in order."""
        waiting: deque[_Entry] = deque()
        resized = 0 if self._options.longest_side is None else self._options.longest_side**2  # at most
        entries = ahead(
            images,
            self._open,
            most=WAITING,
            threads=self._workers or THREADS,
            size=lambda picture: expected_pixels(picture) + resized,
            room=ROOM,
        )
        with contextlib.closing(entries):
            for _, entry in entries:
                waiting.append(entry)
                yield from self._finished(
                    waiting, lambda: len(waiting) < WAITING and sum(each.pixels for each in waiting) < ROOM
                )
        yield from self._finished(waiting, lambda: False)

    def _finished(self, waiting: deque[_Entry], may_wait: Callable[[], bool]) -> Iterator[Mapped]:
        """The first pictures as far as they are done; while no more may wait, the first one is run with its like."""
        while waiting and (waiting[0].done or not may_wait()):
            if not waiting[0].done:
                self._run(waiting)
            entry = waiting.popleft()
            yield Mapped(entry.picture, entry.maps or [], entry.error, entry.remarks)
            del entry  # whoever has the result may let go of it

    def _open(self, picture: Sliceable) -> _Entry:
        """Decode a picture and resize it: what threads do."""
        entry, options = _Entry(picture), self._options
        try:
            source, entry.remarks, part, scale = open_with_remarks(
                picture, options.reading(self._card.preprocessing.exif, self._least)
            )
            if max(source.shape) <= VIEW and not isinstance(source, Held):
                source = Held(source.rows(0, source.shape[0]))
            entry.source = source
            covered = source.shape if part is None else part[::-1]
            entry.shape = (round(covered[0] * scale), round(covered[1] * scale))
            entry.sizes = sizes_to_run(self._network, entry.shape, picture_name(picture), options)
            size = entry.sizes[0]
            if scale > 1 and isinstance(source, Held):
                filter = Image.Resampling[self._card.preprocessing.interpolation.upper()]
                image = Image.fromarray(source.pixels)
                entry.seen = np.asarray(image.resize(size[::-1], filter, box=(0, 0, *covered[::-1])))
            elif options.scales is None and isinstance(source, Held) and self._fits(size, 1):
                entry.seen = at_size(source, size, self._card).rows(0, size[0])
        except (OSError, ValueError, ImportError) as error:
            entry.fail(error)
        return entry

    def _enough(self, size: Pair) -> Pair | None:
        """(height, width) that a JPEG file of a picture of this size has to keep; None where it is read whole."""
        try:
            [seen] = sizes_to_run(self._network, size, "", self._options)
        except ValueError:  # which is said when it has been read
            return None
        return (2 * seen[0], 2 * seen[1]) if self._fits(seen, 1) else None

    def _run(self, waiting: Iterable[_Entry]) -> None:
        """Run the first picture, together with those of its size that wait as far as memory allows."""
        first, *others = waiting
        assert first.source is not None
        if first.seen is None:
            try:
                self._keep(
                    first, run_sizes(self._network, self._grid, first.source, first.sizes, self._wanted, self._options)
                )
            except (OSError, ValueError, ImportError) as error:
                first.fail(error)
            return
        [size] = first.sizes
        batch, pictures = [first], [first.seen]
        for each in others:
            if not each.done and each.seen is not None and each.sizes == first.sizes:
                if len(batch) in (self._batch, self._most.get(size)) or not self._fits(size, len(batch) + 1):
                    break
                batch.append(each)
                pictures.append(each.seen)
        found = list(
            in_batches(
                lambda items: run_batch(
                    self._network, self._grid, pictures[items.start : items.stop], self._card, self._wanted
                ),
                len(batch),
                len(batch),
            )
        )
        if len(found) > 1:
            self._most[size] = max(map(len, found))
        for each, kept in zip(batch, chain.from_iterable(found), strict=True):
            if isinstance(kept, ValueError):
                each.fail(kept)
                continue
            assert isinstance(each.source, Held)
            shared = shared_by_maps(self._network, self._grid, each.shape, size, each.source.pixels, kept)
            self._keep(each, [(shared, kept)])

    def _keep(self, entry: _Entry, passes: list[tuple[Shared, Kept]]) -> None:
        entry.maps = heatmaps_of(passes, self._targets, self._fuse)
        entry.remarks += faint_remark(self._network, entry.picture, entry.maps, self._options)
        entry.seen = None


def _fits(grid: Grid, dtype: torch.dtype, memory: int | None, size: Pair, count: int) -> bool:
    """Whether so many pictures of (height, width) pixels go through together, in one strip."""
    return memory is None or peak_bytes(grid, (count, *size), dtype, size[0]) <= memory

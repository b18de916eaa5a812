"""From a picture to its cells: at which sizes the network sees it, one pass for each, and what maps share of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convnets_torch.card import Card
from convnets_torch.classification import card_of
from convnets_torch.files import make_folder
from convnets_torch.images import Reading, picture_name, warn
from convnets_torch.jpeg import Least
from convnets_torch.levels import Background, Depth, said_levels
from convnets_torch.maps.cells import Heatmap
from convnets_torch.maps.passes import Kept, Progress, Store, Wanted, grid_for, run_pass
from convnets_torch.maps.resuming import FolderStore, fingerprint
from convnets_torch.maps.scales import Fuse, Scales, fused, sizes_of
from convnets_torch.maps.views import placement_of, size_seen, view_of
from convnets_torch.networks.budget import parse_bytes
from convnets_torch.networks.grids import Grid
from convnets_torch.pipeline import Mappable
from convnets_torch.preprocessing import Pair, Pixels
from convnets_torch.sources import Resized, Sliceable, Source, open_with_remarks
from convnets_torch.targets import Target

FAINT = 0.1  # probability
LARGE = 4  # windows along the longer side of a picture
MEMORY = "1GB"  # of activations, unless more is allowed

Shared = dict[str, Any]  # what all kinds of maps of one pass share, by the names of `CellMap`


@dataclass(frozen=True)
class Options:
    """How a picture is run; `heatmaps.heatmap` says what each means."""

    longest_side: int | None = None
    upscale: bool = False
    cell_stride: int | None = None
    max_memory: int | str | None = MEMORY
    resume: str | os.PathLike[str] | None = None
    progress: Progress | None = None
    max_pixels: int | None = None
    allow_truncated: bool = False
    scales: Scales | None = None
    depth: Depth = None
    background: Background = None

    def reading(self, exif: bool, least: Least = None) -> Reading:
        """How its picture is decoded, as `images.Reading` says."""
        return Reading(exif, self.max_pixels, self.allow_truncated, self.depth, self.background, least)

    @property
    def memory(self) -> int | None:
        """`max_memory` as a number of bytes.

        Raises:
            ValueError: it is none.
        """
        return None if self.max_memory is None else parse_bytes(self.max_memory)


def run(network: Mappable, image: Sliceable, wanted: Wanted, options: Options) -> list[tuple[Shared, Kept]]:
    """Open a picture and run it: for each scale what all kinds of maps share, and what was kept of the cells.

    Raises:
        OSError, ValueError: as `heatmaps.heatmap`.
    """
    rule = card_of(network).preprocessing
    grid = grid_for(network, options.cell_stride)
    opened = open_with_remarks(image, options.reading(rule.exif))
    warn(opened.remarks)
    source = opened.source
    sizes = sizes_to_run(network, source.shape, picture_name(image), options)
    return run_sizes(network, grid, source, sizes, wanted, options)


def sizes_to_run(network: Mappable, size: Pair, name: str, options: Options) -> list[Pair]:
    """(height, width) in pixels at which the network is to see a picture of `size`, one for each scale.

    Raises:
        ValueError: the picture is too small for it, or the scales are none.
    """
    base = size_seen(size, network, name, options.longest_side, options.upscale)
    return [base] if options.scales is None else sizes_of(options.scales, base, network.size)


def run_sizes(
    network: Mappable, grid: Grid, source: Source, sizes: Sequence[Pair], wanted: Wanted, options: Options
) -> list[tuple[Shared, Kept]]:
    """Run a picture at several sizes: for each what all kinds of maps share, and what was kept of the cells."""
    card = card_of(network)
    picture = view_of(source)
    totals = [grid.shape(*size)[0] for size in sizes]
    found = []
    for place, size in enumerate(sizes):
        seen = at_size(source, size, card)
        store = Store()
        if options.resume is not None:
            folder = make_folder(options.resume, "." if options.scales is None else f"scale-{place}")
            store = FolderStore(
                folder,
                fingerprint(network, grid, seen, wanted, said_levels(options.depth, options.background)),
                wanted,
                card.classes,
            )
        report = None if options.progress is None else _shifted(options.progress, sum(totals[:place]), sum(totals))
        try:
            kept = run_pass(network, grid, seen, card, wanted, max_memory=options.memory, store=store, progress=report)
        finally:
            if isinstance(store, FolderStore):
                store.close()
        found.append((shared_by_maps(network, grid, source.shape, size, picture, kept), kept))
    return found


def at_size(source: Source, size: Pair, card: Card) -> Source:
    """A picture at the size at which the network is to see it."""
    return source if size == source.shape else Resized(source, size, card.preprocessing.interpolation)


def shared_by_maps(network: Mappable, grid: Grid, size: Pair, seen: Pair, picture: Pixels, kept: Kept) -> Shared:
    """What all kinds of maps share of a picture of `size` that the network saw as `seen`, (height, width) each."""
    card = card_of(network)
    return {
        "picture": picture,
        "placement": placement_of(grid, network, size, seen, card.preprocessing.interpolation),
        "best_ids": np.moveaxis(kept["best_ids"], 0, -1),
        "best_probabilities": np.moveaxis(kept["best"], 0, -1),
        "card": card,
    }


def heatmaps_of(passes: Sequence[tuple[Shared, Kept]], targets: Sequence[Target], fuse: Fuse) -> list[Heatmap]:
    """The map of each target, fused of those of all scales."""
    return [
        fused([Heatmap(**shared, values=kept["sums"][place], target=found) for shared, kept in passes], fuse)
        for place, found in enumerate(targets)
    ]


def faint_remark(network: Mappable, image: Sliceable, maps: Sequence[Heatmap], options: Options) -> tuple[str, ...]:
    """A remark on maps of a large picture's file that are nowhere strong, where one scale alone was looked at."""
    size = max(maps[0].placement.seen)
    faint = [found for found in maps if found.values.max() < FAINT]
    if options.scales is not None or size < LARGE * max(network.size) or not faint:
        return ()
    if not isinstance(image, str | os.PathLike):
        return ()
    words = ", ".join(found.target.label for found in faint)
    highest = max(float(found.values.max()) for found in faint)
    return (
        f"{picture_name(image)}: {words} is nowhere more probable than {highest:.2g}; what is larger than a window of"
        f" {network.size[0]}x{network.size[1]} of {size} pixels is not recognised in it; look at several scales"
        " (scales='auto', --scales auto)",
    )


def _shifted(progress: Progress, before: int, whole: int) -> Progress:
    """Progress of one of several passes, as progress of all of them."""
    return lambda done, _: progress(before + done, whole)

"""Run one picture through a network in one or more passes, and resume an interrupted map."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convnets_torch import files
from convnets_torch.card import Card
from convnets_torch.fcn.graph import Grid, grid_of
from convnets_torch.fcn.memory import in_words, parse_bytes, peak_bytes, strip_rows
from convnets_torch.fcn.sliding import slide
from convnets_torch.fcn.streaming import Stream
from convnets_torch.files import alone_in, check_own_folder, make_folder, open_own, opened_path, replacing
from convnets_torch.heatmaps.maps import Heatmap
from convnets_torch.heatmaps.scales import (
    Fuse,
    Scales,
    factors_of,
    fused,
    placement_of,
    size_seen,
    sizes_of,
    view_of,
)
from convnets_torch.images.decoding import Least, Reading, ReadingKeywords, picture_name, warn
from convnets_torch.images.levels import Background, Depth, said_levels
from convnets_torch.images.preprocessing import (
    MOST_PIXELS,
    Pair,
    Pixels,
    Preprocessing,
    normalize,
    size_with_longest_side,
)
from convnets_torch.images.resizing import normalized
from convnets_torch.images.sources import Resized, Sliceable, Source, open_picture
from convnets_torch.inference.classification import card_of, probabilities, to_parameters
from convnets_torch.inference.pipeline import Mappable
from convnets_torch.inference.prepare import RuntimeRemark
from convnets_torch.networks import Network
from convnets_torch.npz import read_npz
from convnets_torch.text import check_choice
from convnets_torch.wordnet.targets import Target

FAINT = 0.1  # probability
LARGE = 4  # windows along the longer side of a picture
MEMORY = "1GB"  # default limit for activations

Shared = dict[str, Any]  # fields of `CellMap` that all maps of one pass share
Kept = dict[str, NDArray[Any]]  # arrays whose last two axes are rows and columns of cells
Progress = Callable[[int, int], None]


class MapKeywords(ReadingKeywords, total=False):
    """Keywords of all functions that compute maps; documented by `heatmap`."""

    longest_side: int | None
    upscale: bool
    cell_stride: int | None
    max_memory: int | str | None


class OneMapKeywords(MapKeywords, total=False):
    """Keywords of functions that run a single picture."""

    resume: str | os.PathLike[str] | None
    progress: Progress | None


class ScalesKeywords(MapKeywords, total=False):
    """Keywords of functions that support several scales."""

    scales: Scales | None
    fuse: Fuse


class HeatmapKeywords(ScalesKeywords, OneMapKeywords, total=False):
    """Keywords of `heatmap`."""


@dataclass(frozen=True)
class HeatmapOptions:
    """Options of a run; documented by `heatmap`.

    Raises:
        ValueError: an option is out of range.
    """

    longest_side: int | None = None
    upscale: bool = False
    cell_stride: int | None = None
    scales: Scales | None = None
    fuse: Fuse = "mean"
    max_memory: int | str | None = MEMORY
    resume: str | os.PathLike[str] | None = None
    progress: Progress | None = None
    max_pixels: int | None = None
    allow_truncated: bool = False
    depth: Depth = None
    background: Background = None

    def __post_init__(self) -> None:
        check_choice(self.fuse, get_args(Fuse), "way to fuse scales")
        if self.scales is not None and self.scales != "auto":
            factors_of(self.scales)
        if self.longest_side is not None:
            size_with_longest_side((1, MOST_PIXELS), self.longest_side)  # raises if no picture could be resized to it
        _ = self.memory

    def reading(self, exif: bool, least: Least = None) -> Reading:
        """Return how the picture is decoded, as in `images.Reading`."""
        return Reading(exif, self.max_pixels, self.allow_truncated, self.depth, self.background, least)

    @property
    def memory(self) -> int | None:
        """`max_memory` in bytes; ValueError if it is not an amount of memory."""
        return None if self.max_memory is None else parse_bytes(self.max_memory)


def run(network: Mappable, image: Sliceable, wanted: Wanted, options: HeatmapOptions) -> list[tuple[Shared, Kept]]:
    """Open and run a picture; return for each scale the fields that all maps share and the arrays kept.

    Raises:
        OSError, ValueError: as `heatmaps.heatmap`.
    """
    rule = card_of(network).preprocessing
    grid = grid_for(network, options.cell_stride)
    opened = open_picture(image, options.reading(rule.exif))
    warn(opened.notes)
    source = opened.source
    sizes = sizes_to_run(network, source.shape, picture_name(image), options)
    return run_sizes(network, grid, source, sizes, wanted, options)


def sizes_to_run(network: Mappable, size: Pair, name: str, options: HeatmapOptions) -> list[Pair]:
    """Return the input size (height, width) for each scale of a picture of `size`; ValueError if it is too small."""
    base = size_seen(size, network, name, options.longest_side, options.upscale)
    return [base] if options.scales is None else sizes_of(options.scales, base, network.size)


def run_sizes(
    network: Mappable, grid: Grid, source: Source, sizes: Sequence[Pair], wanted: Wanted, options: HeatmapOptions
) -> list[tuple[Shared, Kept]]:
    """Run a picture at several sizes; return for each the fields that all maps share and the arrays kept."""
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
    """Return the picture resized to the network's input size."""
    return source if size == source.shape else Resized(source, size, card.preprocessing.interpolation)


def shared_by_maps(network: Mappable, grid: Grid, size: Pair, seen: Pair, picture: Pixels, kept: Kept) -> Shared:
    """Return the fields that all maps of a pass share; `size` is the picture's (height, width), `seen` the input's."""
    card = card_of(network)
    return {
        "picture": picture,
        "grid": placement_of(grid, network, size, seen, card.preprocessing.interpolation),
        "best_ids": np.moveaxis(kept["best_ids"], 0, -1),
        "best_probabilities": np.moveaxis(kept["best"], 0, -1),
        "card": card,
    }


def heatmaps_of(passes: Sequence[tuple[Shared, Kept]], targets: Sequence[Target], fuse: Fuse) -> list[Heatmap]:
    """Return the map of each target, fused over all scales."""
    return [
        fused([Heatmap(**shared, values=kept["sums"][place], target=found) for shared, kept in passes], fuse)
        for place, found in enumerate(targets)
    ]


def faint_remark(
    network: Mappable, image: Sliceable, maps: Sequence[Heatmap], options: HeatmapOptions
) -> tuple[str, ...]:
    """Return a remark if maps of a large picture file, run at a single scale, are low everywhere."""
    size = max(maps[0].grid.seen)
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
    """Turn the progress of one of several passes into overall progress."""
    return lambda done, _: progress(before + done, whole)


BEST = 5  # classes kept per cell


@dataclass(frozen=True)
class Wanted:
    """What to keep of the probabilities of all classes.

    Attributes:
        targets: keep the sum over each target's classes.
        allowed: keep the most probable of these classes; None for no class map.
        everything: keep all probabilities.
    """

    targets: Sequence[Target] = ()
    allowed: Sequence[int] | None = None
    everything: bool = False

    def keep(self, chances: Tensor) -> Kept:
        """Return the wanted arrays of probabilities (classes, h, w), float32.

        They are "sums" (targets, h, w), "best_ids" and "best" (k, h, w), "winner_ids" and "winners" (h, w), and "all".
        """
        kept: dict[str, Tensor] = {}
        # Rounding alone can bring the sum of all classes above 1.
        sums = [chances[list(target.class_ids)].sum(dim=0).clamp(max=1) for target in self.targets]
        kept["sums"] = torch.stack(sums) if sums else chances[:0]
        best, best_ids = chances.topk(min(BEST, len(chances)), dim=0)
        kept |= {"best": best, "best_ids": best_ids.int()}
        if self.allowed is not None:
            winners, places = chances[list(self.allowed)].max(dim=0)
            kept |= {"winners": winners, "winner_ids": torch.as_tensor(self.allowed)[places.cpu()]}
        if self.everything:
            kept["all"] = chances
        return {name: tensor.cpu().numpy() for name, tensor in kept.items()}


class Store:
    """Storage for finished rows of a map, so that an interrupted run can resume; this base class stores nothing."""

    def load(self, size: tuple[int, int]) -> list[Kept]:
        """Return the rows finished by earlier runs, in order from the first, for a map of (rows, columns)."""
        return []

    def add(self, first: int, kept: Kept) -> None:
        """Store finished rows, starting at row `first`."""


def network_of(network: Mappable) -> Network:
    """Return the network, or the network behind an engine for score maps; ValueError if the engine classifies."""
    if isinstance(network, nn.Module):
        return network
    if network.mapped is None:
        raise ValueError(
            f"the engine classifies; for maps make one with engine(network, {network.name!r}, heatmap=True)"
        )
    return network.mapped


def grid_for(network: Mappable, cell_stride: int | None) -> Grid:
    """Return the cells of the map of a network or an engine.

    Raises:
        ValueError: as `grid_of`; or an engine was given with a stride other than the network's own.
    """
    own = network_of(network)
    if network is not own and cell_stride not in (None, own.stride):
        raise ValueError(
            f"an engine has one cell per {own.stride} pixels; for a cell stride of {cell_stride} use the network itself"
        )
    return grid_of(own, cell_stride)


def dtype_of(network: Mappable) -> torch.dtype:
    """Return the dtype of the activations of a network or an engine."""
    return next(network.parameters()).dtype if isinstance(network, nn.Module) else network.dtype


def run_pass(
    network: Mappable,
    grid: Grid,
    source: Source,
    card: Card,
    wanted: Wanted,
    *,
    max_memory: int | None = None,
    store: Store | None = None,
    progress: Progress | None = None,
) -> Kept:
    """Run a network over a picture and keep what `wanted` says.

    Args:
        network: in eval mode, or its engine; if the engine would need more memory, the network itself runs, in strips.
        grid: its cells.
        source: the picture at the network's input size.
        card: of the weights.
        wanted: what to keep.
        max_memory: limit in bytes for activations; None for a single strip.
        store: where finished rows are loaded from and stored.
        progress: called with the number of finished rows of cells and the total.

    Raises:
        ValueError: the memory is too small, or the outputs are not probabilities.

    Warns:
        RuntimeRemark: the network runs instead of its engine.
    """
    store = Store() if store is None else store
    rows, columns = grid.shape(*source.shape)
    whole: Kept = {}
    done = 0
    for piece in store.load((rows, columns)):
        done = _copy_rows(whole, done, piece, rows)
    if progress is not None:
        progress(done, rows)
    if done < rows:
        for scores in score_strips(network, grid, source, card.preprocessing, max_memory, done):
            piece = wanted.keep(probabilities(scores, card)[0])
            store.add(done, piece)
            done = _copy_rows(whole, done, piece, rows)
            if progress is not None:
                progress(done, rows)
    return whole


def _copy_rows(whole: Kept, first: int, piece: Kept, rows: int) -> int:
    """Copy rows to their place and return the index of the next row.

    One array holds all rows: many small arrays, allocated between short-lived activations, would fragment memory.
    """
    last = first + piece["best"].shape[-2]
    for name, values in piece.items():
        if name not in whole:
            whole[name] = np.empty((*values.shape[:-2], rows, values.shape[-1]), values.dtype)
        whole[name][..., first:last, :] = values
    return last


def score_strips(
    network: Mappable,
    grid: Grid,
    source: Source,
    rule: Preprocessing,
    max_memory: int | None = None,
    first: int = 0,
) -> Iterator[Tensor]:
    """Yield logits (1, classes, rows, w) of a picture in strips from top to bottom, starting at row `first` of cells.

    A run that starts further down re-reads the rows that its first cells see, so its numbers are the same.
    """
    height, width = source.shape
    begin = max(0, (first * grid.stride + grid.vertical.start) // grid.stride * grid.stride)
    cells = begin // grid.stride  # first row of cells of this run; the first ones lack the rows above and are skipped
    rows = height
    if max_memory is not None:
        network = _engine_or_network(network, grid, (height, width), max_memory)
        rows = strip_rows(grid, (1, height, width), dtype_of(network), max_memory)
    stream = Stream(grid.steps)
    for top in range(begin, height, rows):
        bottom = min(top + rows, height)
        with torch.inference_mode():
            images = to_images(normalize(source.rows(top, bottom), rule)[None], network)
            if rows == height and not begin:
                found: Tensor | None = score_whole(network, grid, images)
            else:
                found = stream.push(images, last=bottom == height)
            del images
        if found is None:
            continue
        skipped = min(max(0, first - cells), found.shape[2])
        cells += found.shape[2]
        if skipped < found.shape[2]:
            yield found[:, :, skipped:]


def _engine_or_network(network: Mappable, grid: Grid, size: tuple[int, int], max_memory: int) -> Mappable:
    """Return the engine if one pass over (height, width) pixels fits into memory, else the network itself."""
    if isinstance(network, nn.Module):
        return network
    wanted = peak_bytes(grid, (1, *size), network.dtype, size[0])
    if wanted <= max_memory:
        return network
    warnings.warn(
        f"one pass over {size[0]}x{size[1]} pixels (height x width) takes up to {in_words(wanted)}, but max_memory is"
        f" {in_words(max_memory)}; the network itself runs in strips instead of {network.name}",
        RuntimeRemark,
        stacklevel=2,
    )
    return network_of(network)


def run_batch(
    network: Mappable, grid: Grid, pictures: Sequence[Pixels], card: Card, wanted: Wanted
) -> list[Kept | ValueError]:
    """Run a network, or its engine, over pictures of one size in one batch.

    Args:
        network, grid, card, wanted: as in `run_pass`.
        pictures: at the network's input size, (H, W, 3) uint8, RGB, 0 to 255 each.

    Returns:
        The arrays kept of each picture, as by `run_pass`, or the error if its outputs are not probabilities.
    """
    device = next(network.parameters()).device if isinstance(network, nn.Module) else torch.device("cpu")
    with torch.inference_mode():
        pixels = torch.from_numpy(np.stack(pictures)).to(device)
        images = normalized(pixels, card.preprocessing).to(dtype_of(network))
        scores = score_whole(network, grid, images.contiguous(memory_format=torch.channels_last))
    found: list[Kept | ValueError] = []
    for place in range(len(pictures)):
        try:
            found.append(wanted.keep(probabilities(scores[place : place + 1], card)[0]))
        except ValueError as error:
            found.append(error)
    return found


def score_whole(network: Mappable, grid: Grid, images: Tensor) -> Tensor:
    """Return logits (N, classes, h, w) of whole images, in one pass."""
    if not isinstance(network, nn.Module):
        return network(images)
    if grid.dilation == 1:
        assert network.head is not None
        return slide(network.head, network.features(images), network.window)
    found = Stream(grid.steps).push(images, last=True)
    assert found is not None
    return found


def to_images(inputs: NDArray[np.float32], network: Mappable) -> Tensor:
    """Convert pictures (N, 3, H, W) to the network's device and dtype, in channels-last memory format."""
    if not isinstance(network, nn.Module):
        return torch.from_numpy(inputs)
    return to_parameters(inputs, network).contiguous(memory_format=torch.channels_last)


EVERY = 5.0  # seconds between files; a killed run loses at most that and its current strip
SAMPLED = 64  # rows of a picture that go into the fingerprint
MOST_NOTE = 1 << 16  # maximum size of the note in bytes
ROUNDING = 1e-4  # by which a probability may exceed 1


class FolderStore(Store):
    """Store rows in files of a folder, next to a note that identifies the run; call `close` at the end.

    Args:
        folder: created if it does not exist.
        run: identifies the run, as returned by `fingerprint`.
        wanted: what is kept of the cells.
        classes: number of the network's classes.

    Raises:
        ValueError: the folder holds rows of another run.
        OSError: it cannot be read or written, another process uses it, or something in it is a link.
    """

    def __init__(self, folder: str | os.PathLike[str], run: str, wanted: Wanted, classes: int) -> None:
        self._folder, self._wanted, self._classes = Path(folder), wanted, classes
        self._folder.mkdir(parents=True, exist_ok=True)
        self._waiting: list[Kept] = []
        self._first = 0
        self._saved = time.monotonic()
        with contextlib.ExitStack() as stack:
            stack.enter_context(alone_in(self._folder))
            check_own_folder(self._folder)
            note = self._folder / "run.json"
            if not note.exists():
                with replacing(note) as temporary:
                    temporary.write_text(json.dumps({"run": run}))
            elif _read_note(note) != run:
                raise ValueError(
                    f"{folder} holds rows of another run: another picture, network, target or option; name another"
                    " folder"
                )
            self._lock = stack.pop_all()

    def load(self, size: tuple[int, int]) -> list[Kept]:
        """Return the rows from the first on, up to the first gap or damaged file."""
        rows, columns = size
        found: list[Kept] = []
        while self._first < rows and (path := self._file(self._first)).exists():
            piece = self._read(path, rows - self._first, columns)
            if piece is None:
                break
            found.append(piece)
            self._first += piece["best"].shape[-2]
        return found

    def _read(self, path: Path, most: int, columns: int) -> Kept | None:
        """Return the rows of one file, at most `most`; None if they are not what a pass keeps."""
        blank = self._wanted.keep(torch.zeros(self._classes, 1, columns))
        room = most * sum(values.nbytes for values in blank.values()) + 1024 * len(blank)  # with headers
        with open_own(path) as file:
            try:
                piece = read_npz(opened_path(file), max_bytes=room)
            except (OSError, ValueError):
                return None
        if piece.keys() != blank.keys() or piece["best"].ndim != 3:
            return None
        count = piece["best"].shape[-2]
        if not 0 < count <= most:
            return None
        for name, values in piece.items():
            shape = (*blank[name].shape[:-2], count, columns)
            if values.shape != shape or values.dtype != blank[name].dtype or not self._is_valid(name, values):
                return None
        return piece

    def _is_valid(self, name: str, values: NDArray[Any]) -> bool:
        """Return whether all values are probabilities, or valid class ids."""
        if name == "winner_ids":
            return bool(np.isin(values, self._wanted.allowed or ()).all())
        if name == "best_ids":
            return bool(((values >= 0) & (values < self._classes)).all())
        return bool(((values >= 0) & (values <= 1 + ROUNDING)).all())

    def add(self, first: int, kept: Kept) -> None:
        """Queue rows; they are written every few seconds, and by `flush`."""
        self._waiting.append(kept)
        if time.monotonic() - self._saved > EVERY:
            self.flush()

    def flush(self) -> None:
        """Write queued rows."""
        if self._waiting:
            piece = {name: np.concatenate([each[name] for each in self._waiting], axis=-2) for name in self._waiting[0]}
            with replacing(self._file(self._first)) as temporary, temporary.open("wb") as file:
                np.savez(file, **piece)  # type: ignore[arg-type]
            self._first += piece["best"].shape[-2]
            self._waiting = []
        self._saved = time.monotonic()

    def close(self) -> None:
        """Write queued rows and release the folder."""
        with self._lock:
            self.flush()

    def _file(self, first: int) -> Path:
        return self._folder / f"rows-{first:07}.npz"


def fingerprint(network: Mappable, grid: Grid, source: Source, wanted: Wanted, levels: Mapping[str, str]) -> str:
    """Hash what a map depends on: weights, card, cells, targets, the picture's size and a sample of its rows.

    `levels` says how values became 8 bits, as returned by `said_levels`; the sampled rows may not show it.
    """
    digest = hashlib.sha256()
    state = network_of(network).state_dict()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    height, width = source.shape
    targets = [target.class_ids for target in wanted.targets]
    allowed = None if wanted.allowed is None else list(wanted.allowed)
    card = network.card.to_json() if network.card else None
    facts: list[Any] = [card, grid.stride, [height, width], targets, allowed, wanted.everything]
    if levels:
        facts += [dict(levels)]
    if not isinstance(network, nn.Module):
        facts += [network.name, network.precision]
    digest.update(json.dumps(facts).encode())
    for row in np.unique(np.linspace(0, height - 1, SAMPLED).astype(int)).tolist():
        digest.update(np.ascontiguousarray(source.rows(row, row + 1)).data)
    return digest.hexdigest()


def _read_note(note: Path) -> object:
    with open_own(note) as file:
        try:
            return files.loads(file.read(MOST_NOTE))["run"]
        except (ValueError, KeyError, TypeError):
            return None

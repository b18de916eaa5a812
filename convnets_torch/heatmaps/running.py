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
from convnets_torch.fcn.graph import MapGraph, map_graph
from convnets_torch.fcn.memory import block_rows, in_words, parse_bytes, peak_bytes
from convnets_torch.fcn.sliding import slide
from convnets_torch.fcn.streaming import Stream
from convnets_torch.files import alone_in, check_own_folder, make_folder, open_own, opened_path, replacing
from convnets_torch.heatmaps.maps import Heatmap
from convnets_torch.heatmaps.scales import (
    Fuse,
    Scales,
    factors_of,
    fused,
    input_size,
    placement_of,
    sizes_of,
    view_of,
)
from convnets_torch.images.decoding import Least, Reading, ReadingKeywords, picture_name, warn
from convnets_torch.images.levels import Background, Depth, said_levels
from convnets_torch.images.preprocessing import (
    MODES,
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
CellArrays = dict[str, NDArray[Any]]  # arrays whose last two axes are rows and columns of cells
Pass = tuple[Shared, CellArrays]
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

    def reading(self, rule: Preprocessing, least: Least = None) -> Reading:
        """Return how the picture is decoded, as in `images.Reading`."""
        found = Reading(True, self.max_pixels, self.allow_truncated, self.depth, self.background, least)
        return found.for_rule(rule)

    @property
    def memory(self) -> int | None:
        """`max_memory` in bytes; ValueError if it is not an amount of memory."""
        return None if self.max_memory is None else parse_bytes(self.max_memory)


BEST = 5  # classes kept per cell


@dataclass(frozen=True)
class CellQuery:
    """What to keep of the probabilities of all classes.

    Attributes:
        targets: keep the sum over each target's classes.
        allowed: keep the most probable of these classes; None for no class map.
        everything: keep all probabilities.
    """

    targets: Sequence[Target] = ()
    allowed: Sequence[int] | None = None
    everything: bool = False

    def select(self, chances: Tensor) -> CellArrays:
        """Return float32 arrays selected from the probabilities (classes, h, w).

        They are "sums" (targets, h, w), "best_ids" and "best" (k, h, w), "winner_ids" and "winners" (h, w), and "all".
        """
        # Rounding alone can bring the sum of all classes above 1.
        sums = [chances[list(target.class_ids)].sum(dim=0).clamp(max=1) for target in self.targets]
        best, best_ids = chances.topk(min(BEST, len(chances)), dim=0)
        found = {"sums": torch.stack(sums) if sums else chances[:0], "best": best, "best_ids": best_ids.int()}
        if self.allowed is not None:
            winners, places = chances[list(self.allowed)].max(dim=0)
            found |= {"winners": winners, "winner_ids": torch.as_tensor(self.allowed)[places.cpu()]}
        if self.everything:
            found["all"] = chances
        return {name: tensor.cpu().numpy() for name, tensor in found.items()}


class MapRunner:
    """Runs pictures through a network, or its engine, and keeps what a query asks for.

    Raises:
        ValueError: the network has no card or does not support the stride; or the engine classifies.
    """

    def __init__(self, network: Mappable, query: CellQuery, options: HeatmapOptions) -> None:
        self.network, self.query, self.options = network, query, options
        self.card = card_of(network)
        self.own = network_of(network)
        if network is not self.own and options.cell_stride not in (None, self.own.stride):
            raise ValueError(
                f"an engine has one cell per {self.own.stride} pixels; for a cell stride of {options.cell_stride} use"
                " the network itself"
            )
        self.graph = map_graph(self.own, options.cell_stride)

    def run(self, image: Sliceable) -> list[Pass]:
        """Open and run a picture; return a pass for each scale."""
        opened = open_picture(image, self.options.reading(self.card.preprocessing))
        warn(opened.notes)
        return self.run_sizes(opened.source, self.input_sizes(opened.source.shape, picture_name(image)))

    def input_sizes(self, size: Pair, name: str) -> list[Pair]:
        """Return the input size (height, width) for each scale of a picture; ValueError if it is too small."""
        base = input_size(size, self.network, name, self.options.longest_side, self.options.upscale)
        return [base] if self.options.scales is None else sizes_of(self.options.scales, base, self.network.size)

    def run_sizes(self, source: Source, sizes: Sequence[Pair]) -> list[Pass]:
        """Run a picture at several sizes."""
        picture, options = view_of(source), self.options
        totals = [self.graph.shape(*size)[0] for size in sizes]
        found = []
        for place, size in enumerate(sizes):
            resized, before = self.at_size(source, size), sum(totals[:place])

            def report(done: int, before: int = before) -> None:
                if options.progress is not None:
                    options.progress(before + done, sum(totals))

            if options.resume is None:
                arrays = self._run_pass(resized, None, report)
            else:
                folder = make_folder(options.resume, "." if options.scales is None else f"scale-{place}")
                levels = said_levels(options.depth, options.background)
                run = fingerprint(self.network, self.graph, resized, self.query, levels)
                store = FolderStore(folder, run, self.query, self.card.classes)
                try:
                    arrays = self._run_pass(resized, store, report)
                finally:
                    store.close()
            found.append((self.shared(source.shape, size, picture, arrays), arrays))
        return found

    def at_size(self, source: Source, size: Pair) -> Source:
        """Return the picture resized to an input size."""
        rule = self.card.preprocessing
        mode = MODES[rule.channels]
        same = size == source.shape and mode == "RGB"
        return source if same else Resized(source, size, rule.interpolation, mode)

    def shared(self, size: Pair, seen: Pair, picture: Pixels, arrays: CellArrays) -> Shared:
        """Return the fields that all maps of a pass share, for a picture of `size` and an input of the size `seen`."""
        return {
            "picture": picture,
            "grid": placement_of(self.graph, self.network, size, seen, self.card.preprocessing.interpolation),
            "best_ids": np.moveaxis(arrays["best_ids"], 0, -1),
            "best_probabilities": np.moveaxis(arrays["best"], 0, -1),
            "card": self.card,
        }

    def heatmaps(self, passes: Sequence[Pass]) -> list[Heatmap]:
        """Return the map of each target, fused over all scales."""
        return [
            fused(
                [Heatmap(**shared, values=arrays["sums"][place], target=target) for shared, arrays in passes],
                self.options.fuse,
            )
            for place, target in enumerate(self.query.targets)
        ]

    def notes(self, image: Sliceable, maps: Sequence[Heatmap]) -> tuple[str, ...]:
        """Return a note if maps of a large picture file, run at a single scale, are low everywhere."""
        size = max(maps[0].grid.seen)
        faint = [found for found in maps if found.values.max() < FAINT]
        if self.options.scales is not None or size < LARGE * max(self.network.size) or not faint:
            return ()
        if not isinstance(image, str | os.PathLike):
            return ()
        words = ", ".join(found.target.label for found in faint)
        highest = max(float(found.values.max()) for found in faint)
        return (
            f"{picture_name(image)}: {words} is nowhere more probable than {highest:.2g}; what is larger than a window"
            f" of {self.network.size[0]}x{self.network.size[1]} of {size} pixels is not recognised in it; look at"
            " several scales (scales='auto', --scales auto)",
        )

    def run_batch(self, images: Sequence[Pixels]) -> list[CellArrays | ValueError]:
        """Run pictures of one input size, (H, W, C) each, in one batch; a picture without probabilities is an error."""
        network = self.network
        device = next(network.parameters()).device if isinstance(network, nn.Module) else torch.device("cpu")
        with torch.inference_mode():
            pixels = torch.from_numpy(np.stack(images)).to(device)
            inputs = normalized(pixels, self.card.preprocessing).to(dtype_of(network))
            scores = self._score_whole(network, inputs.contiguous(memory_format=torch.channels_last))
        found: list[CellArrays | ValueError] = []
        for place in range(len(images)):
            try:
                found.append(self.query.select(probabilities(scores[place : place + 1], self.card)[0]))
            except ValueError as error:
                found.append(error)
        return found

    def _run_pass(self, source: Source, store: FolderStore | None, report: Callable[[int], None]) -> CellArrays:
        """Run a picture of the network's input size; finished rows are loaded from the store and added to it."""
        rows, columns = self.graph.shape(*source.shape)
        whole: CellArrays = {}
        done = 0
        for piece in () if store is None else store.load((rows, columns)):
            done = _copy_rows(whole, done, piece, rows)
        report(done)
        if done < rows:
            for scores in self._score_blocks(source, done):
                piece = self.query.select(probabilities(scores, self.card)[0])
                if store is not None:
                    store.add(piece)
                done = _copy_rows(whole, done, piece, rows)
                report(done)
        return whole

    def _score_blocks(self, source: Source, first: int) -> Iterator[Tensor]:
        """Yield logits (1, classes, rows, w) in blocks of rows from top to bottom, starting at row `first` of cells.

        A run that starts further down re-reads the rows that its first cells see, so its numbers are the same.
        """
        graph, network, (height, width) = self.graph, self.network, source.shape
        begin = max(0, (first * graph.stride + graph.vertical.start) // graph.stride * graph.stride)
        cells = begin // graph.stride  # first row of this run; the first ones lack the rows above and are skipped
        rows = height
        if self.options.memory is not None:
            network = self._engine_or_network((height, width), self.options.memory)
            rows = block_rows(graph, (1, height, width), dtype_of(network), self.options.memory)
        stream = Stream(graph.ops)
        for top in range(begin, height, rows):
            bottom = min(top + rows, height)
            with torch.inference_mode():
                inputs = normalize(source.rows(top, bottom), self.card.preprocessing)[None]
                if isinstance(network, nn.Module):
                    images = to_parameters(inputs, network).contiguous(memory_format=torch.channels_last)
                else:
                    images = torch.from_numpy(inputs)
                del inputs
                if rows == height and not begin:
                    found: Tensor | None = self._score_whole(network, images)
                else:
                    found = stream.push(images, last=bottom == height)
                del images
            if found is None:
                continue
            skipped = min(max(0, first - cells), found.shape[2])
            cells += found.shape[2]
            if skipped < found.shape[2]:
                yield found[:, :, skipped:]

    def _engine_or_network(self, size: Pair, max_memory: int) -> Mappable:
        """Return the engine if one pass over (height, width) pixels fits into memory, else the network itself."""
        if isinstance(self.network, nn.Module):
            return self.network
        needed = peak_bytes(self.graph, (1, *size), self.network.dtype, size[0])
        if needed <= max_memory:
            return self.network
        warnings.warn(
            f"one pass over {size[0]}x{size[1]} pixels (height x width) takes up to {in_words(needed)}, but max_memory"
            f" is {in_words(max_memory)}; the network itself runs in blocks of rows instead of {self.network.name}",
            RuntimeRemark,
            stacklevel=2,
        )
        return self.own

    def _score_whole(self, network: Mappable, images: Tensor) -> Tensor:
        """Return logits (N, classes, h, w) of whole images, in one pass."""
        if not isinstance(network, nn.Module):
            return network(images)
        if self.graph.dilation == 1:
            assert network.head is not None
            return slide(network.head, network.features(images), network.window)
        found = Stream(self.graph.ops).push(images, last=True)
        assert found is not None
        return found


def network_of(network: Mappable) -> Network:
    """Return the network, or the network behind an engine for score maps; ValueError if the engine classifies."""
    if isinstance(network, nn.Module):
        return network
    if network.mapped is None:
        raise ValueError(
            f"the engine classifies; for maps make one with engine(network, {network.name!r}, heatmap=True)"
        )
    return network.mapped


def dtype_of(network: Mappable) -> torch.dtype:
    """Return the dtype of the activations of a network or an engine."""
    return next(network.parameters()).dtype if isinstance(network, nn.Module) else network.dtype


def _copy_rows(whole: CellArrays, first: int, piece: CellArrays, rows: int) -> int:
    """Copy rows to their place and return the index of the next row.

    One array holds all rows: many small arrays, allocated between short-lived activations, would fragment memory.
    """
    last = first + piece["best"].shape[-2]
    for name, values in piece.items():
        if name not in whole:
            whole[name] = np.empty((*values.shape[:-2], rows, values.shape[-1]), values.dtype)
        whole[name][..., first:last, :] = values
    return last


EVERY = 5.0  # seconds between files; a killed run loses at most that and its current block
SAMPLED = 64  # rows of a picture that go into the fingerprint
MOST_NOTE = 1 << 16  # maximum size of the note in bytes
ROUNDING = 1e-4  # by which a probability may exceed 1


class FolderStore:
    """Store finished rows in files of a folder, next to a note that identifies the run; call `close` at the end.

    Args:
        folder: created if it does not exist.
        run: identifies the run, as returned by `fingerprint`.
        query: what the rows hold.
        classes: number of the network's classes.

    Raises:
        ValueError: the folder holds rows of another run.
        OSError: it cannot be read or written, another process uses it, or something in it is a link.
    """

    def __init__(self, folder: str | os.PathLike[str], run: str, query: CellQuery, classes: int) -> None:
        self._folder, self._query, self._classes = Path(folder), query, classes
        self._folder.mkdir(parents=True, exist_ok=True)
        self._waiting: list[CellArrays] = []
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

    def load(self, size: tuple[int, int]) -> list[CellArrays]:
        """Return the rows from the first on, up to the first gap or damaged file."""
        rows, columns = size
        found: list[CellArrays] = []
        while self._first < rows and (path := self._file(self._first)).exists():
            piece = self._read(path, rows - self._first, columns)
            if piece is None:
                break
            found.append(piece)
            self._first += piece["best"].shape[-2]
        return found

    def _read(self, path: Path, most: int, columns: int) -> CellArrays | None:
        """Return the rows of one file, at most `most`; None if they are not what a pass keeps."""
        blank = self._query.select(torch.zeros(self._classes, 1, columns))
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
            return bool(np.isin(values, self._query.allowed or ()).all())
        if name == "best_ids":
            return bool(((values >= 0) & (values < self._classes)).all())
        return bool(((values >= 0) & (values <= 1 + ROUNDING)).all())

    def add(self, arrays: CellArrays) -> None:
        """Queue the next rows; they are written every few seconds, and by `close`."""
        self._waiting.append(arrays)
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


def fingerprint(network: Mappable, graph: MapGraph, source: Source, query: CellQuery, levels: Mapping[str, str]) -> str:
    """Hash what a map depends on: weights, card, cells, targets, the picture's size and a sample of its rows.

    `levels` says how values became 8 bits, as returned by `said_levels`; the sampled rows may not show it.
    """
    digest = hashlib.sha256()
    state = network_of(network).state_dict()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    height, width = source.shape
    targets = [target.class_ids for target in query.targets]
    allowed = None if query.allowed is None else list(query.allowed)
    card = network.card.to_json() if network.card else None
    facts: list[Any] = [card, graph.stride, [height, width], targets, allowed, query.everything]
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

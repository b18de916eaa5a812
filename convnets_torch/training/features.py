"""Cached features for stage one: of the classification crop and of additional augmented views."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convnets_torch.embeddings.cache import CachedVectors, Computed, Vector, embed_cached
from convnets_torch.embeddings.extraction import Embedder
from convnets_torch.images.decoding import Reading, ReadingKeywords
from convnets_torch.images.finding import few
from convnets_torch.inference.pipeline import BATCH, Input, Inputs, run_pictures
from convnets_torch.networks import Network
from convnets_torch.training.datasets import Dataset, LabelledPaths, ViewedPictures
from convnets_torch.training.distributed import Group
from convnets_torch.training.settings import Settings

FIXED_VIEWS = 2**31  # offset of the epoch in the key of a fixed view, so that no real epoch has the same key


@dataclass(frozen=True, eq=False)
class Side:
    """Usable pictures of one split of a dataset, and their features.

    Attributes:
        paths: of N pictures.
        labels: (N,) int64, on the CPU; or (N, classes) uint8, 0 and 1, for multi-label data.
        digests: sha256 of the file contents.
        features: (views, N, values) float32, on the CPU.
    """

    paths: tuple[Path, ...]
    labels: Tensor
    digests: tuple[str, ...]
    features: Tensor


@dataclass(frozen=True, eq=False)
class Features:
    """Features of both splits of a dataset.

    Attributes:
        train, val: usable pictures.
        failed: errors of the other pictures.
        computed: number of vectors that were not in the cache.
        notes: on the cache and on the pictures.
    """

    train: Side
    val: Side
    failed: Mapping[Path, Exception]
    computed: int
    notes: tuple[str, ...]

    def without_vectors(self) -> Features:
        """Drop the vectors, which only stage one needs, to free memory."""
        train, val = (replace(side, features=side.features[:, :, :0].clone()) for side in (self.train, self.val))
        return replace(self, train=train, val=val)


@dataclass(frozen=True)
class LeakedPicture:
    """A validation picture that is a near-duplicate of a training picture.

    Attributes:
        path: the validation picture.
        of: the most similar training picture.
        similarity: cosine similarity of their vectors.
    """

    path: Path
    of: Path
    similarity: float


def cached_features(
    network: Network,
    dataset: Dataset,
    settings: Settings,
    group: Group,
    cache: Path | None,
    progress: Callable[[int, int], None] | None,
    reading: ReadingKeywords,
) -> Features:
    """Compute or load the input of the last dense layer for every picture of a dataset.

    The pictures are divided among the processes of the group.

    Raises:
        OSError: the cache cannot be written.
        ValueError: a class has no usable training picture, or there is no usable validation picture; or as
            `embed_cached`.
    """
    no_flip = settings.augmentation.no_flip
    names = {path: dataset.shown_as(label, no_flip) for path, label in (*dataset.val, *dataset.train)}
    paths = list(names)
    mine = [paths[place] for place in group.share(range(len(paths)))]
    found: list[CachedVectors] = []
    files = Reading(**reading)

    def embed(some: list[Path], **how: Any) -> dict[Path, Vector]:
        found.append(embed_cached(network, some, cache=cache, progress=progress, reading=files, **how))
        return {path: vector for path in some if (vector := found[-1].of(path)) is not None}

    views = [embed(mine)]
    learnt = {path for path, _ in dataset.train}
    for number in range(1, settings.views):
        views.append({})
        for still in (False, True):  # without and with `no_flip`: the same content may be in two classes
            some = [path for path in mine if path in learnt and (names[path] in no_flip) is still]
            made = {"view": str(number), "augmentation": json.dumps(settings.augmentation.to_dict())}
            made |= {"seed": str(settings.seed), "still": str(still)}
            compute = partial(_embed_view, settings, number, names, files)
            views[-1] |= embed(some, compute=compute, made=made)
    device = next(network.parameters()).device
    rows = _exchanged(paths, mine, found[0].digests, views, learnt, group, device)
    train, val = (_side(rows, dataset, some, name) for name, some in (("train", dataset.train), ("val", dataset.val)))
    return Features(train, val, *_merged(found, group, device))


def _merged(
    found: Sequence[CachedVectors], group: Group, device: torch.device
) -> tuple[dict[Path, Exception], int, tuple[str, ...]]:
    """Merge errors, counts and notes of all views and all processes."""
    failed = {path: error for kept in found for path, error in kept.failed.items()}
    computed = sum(kept.computed for kept in found)
    notes = dict.fromkeys(note for kept in found for note in kept.notes)
    mine = {"failed": {str(path): str(error) for path, error in failed.items()}, "computed": computed}
    for rank, text in enumerate(group.texts(json.dumps(mine | {"notes": [*notes]}), device)):
        if rank != group.rank:
            theirs = json.loads(text)
            failed |= {Path(path): ValueError(words) for path, words in theirs["failed"].items()}
            computed += theirs["computed"]
            notes |= dict.fromkeys(theirs["notes"])
    return failed, computed, tuple(notes)


def _embed_view(
    settings: Settings,
    view: int,
    names: Mapping[Path, str],
    reading: Reading,
    network: nn.Module,
    missing: Mapping[Path, str],
) -> Computed:
    """Return the rows of one augmented view of the missing pictures, in order."""
    embedder = Embedder(network)
    assert embedder.card is not None
    rule, paths = embedder.card.preprocessing, list(missing)
    labels, digests = [names[path] for path in paths], list(missing.values())
    views = ViewedPictures(paths, labels, digests, rule, settings.augmentation, settings.seed, reading)
    inputs = Inputs(rule, next(network.parameters()).device)

    def prepare(number: int) -> Input:
        return Input(views[FIXED_VIEWS + view, number].numpy())

    def run(items: list[Input]) -> list[Vector]:
        with torch.inference_mode():
            return list(embedder(inputs.images(items)).float().cpu().numpy())

    return run_pictures(range(len(paths)), prepare, run, batch=BATCH)


def _exchanged(
    paths: Sequence[Path],
    mine: Sequence[Path],
    digests: Mapping[Path, str],
    views: Sequence[Mapping[Path, Vector]],
    learnt: set[Path],
    group: Group,
    device: torch.device,
) -> dict[Path, tuple[str, Tensor]]:
    """All-reduce the sha256 and vectors (views, values) of usable pictures; each process fills its own rows."""
    widths = torch.zeros(group.size, dtype=torch.int64, device=device)
    widths[group.rank] = max((len(vector) for vector in views[0].values()), default=0)
    width = int(group.total(widths).max())
    values = torch.zeros(len(paths), len(views), width)
    hashes = torch.zeros(len(paths), 33, dtype=torch.uint8)  # the last byte: 1 where the picture could be used
    places = {path: place for place, path in enumerate(paths)}
    for path in mine:
        wanted = views if path in learnt else views[:1]  # validation uses only the first view
        if all(path in view for view in wanted):
            hashes[places[path]] = torch.tensor([*bytes.fromhex(digests[path]), 1], dtype=torch.uint8)
            for number, view in enumerate(wanted):
                values[places[path], number] = torch.from_numpy(view[path])
    values, hashes = (group.total(each.to(device)).cpu() for each in (values, hashes))
    return {
        path: (bytes(row[:32].tolist()).hex(), vectors)
        for path, row, vectors in zip(paths, hashes, values, strict=True)
        if row[32]
    }


def _side(rows: Mapping[Path, tuple[str, Tensor]], dataset: Dataset, pictures: LabelledPaths, name: str) -> Side:
    usable = [(path, label) for path, label in pictures if path in rows]
    labels = torch.tensor([label for _, label in usable], dtype=torch.int64)
    if dataset.sets:
        targets = torch.zeros(len(dataset.sets), len(dataset.classes), dtype=torch.uint8)
        for row, places in zip(targets, dataset.sets, strict=True):
            row[list(places)] = 1
        labels = targets[labels]
    counts = labels.sum(0) if dataset.sets else torch.bincount(labels, minlength=len(dataset.classes))
    empty = [word for word, count in zip(dataset.classes, counts.tolist(), strict=True) if not count]
    if empty and (name == "train" or not counts.any()):  # classes without validation pictures are still trained
        raise ValueError(
            f"{len(empty)} classes have no usable picture in {name} ({few(empty)}); repair their pictures, add some, or"
            " exclude the classes"
        )
    found = [rows[path] for path, _ in usable]
    return Side(
        tuple(path for path, _ in usable),
        labels,
        tuple(digest for digest, _ in found),
        torch.stack([vectors for _, vectors in found], 1),
    )

"""Vectors of pictures that stand in class folders, kept on disk: nothing is computed twice."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnets_torch.embeddings.kept_vectors import KeptVectors, embed_kept
from convnets_torch.labelled import find_classes
from convnets_torch.networks import Network
from convnets_torch.networks.network import as_network
from convnets_torch.networks.packed import check_unpacked
from convnets_torch.runtime import Precision


@dataclass(frozen=True, eq=False)
class LabelledVectors:
    """Vectors, and the class of each.

    Attributes:
        vectors: (N, values) float32.
        labels: (N,) int64, places in `classes`.
        classes: their names.
        paths: of the N pictures; empty where they are not known.
        failed: pictures that could not be used, and why.
        remarks: sentences on what was left out.
        computed: how many of the vectors were not in the cache.
    """

    vectors: NDArray[np.float32]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    paths: tuple[Path, ...] = ()
    failed: tuple[tuple[str, Exception], ...] = ()
    remarks: tuple[str, ...] = ()
    computed: int = 0

    @property
    def counts(self) -> NDArray[np.int64]:
        """Pictures of each class, (classes,)."""
        return np.bincount(self.labels, minlength=len(self.classes))


def embed_classes(
    network: Network,
    folder: str | os.PathLike[str] | Mapping[str, Iterable[Path]],
    *,
    precision: Precision | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LabelledVectors:
    """The vectors of pictures in class folders, as `embed` gives them; from the cache, where they are in it.

    Pictures are read as `classify` reads them. In the cache a vector is known by the content of the picture's file,
    and by what made it: parameters and card of the network, precision, device, version of this library. Renamed and
    moved pictures are found again. Every 256 vectors are written, so a process that is killed loses no more.

    Args:
        network: in eval mode, with its card, on the device where it is to run, as `load` gives it; not prepared.
        folder: with a sub-folder for each class, as `find_classes` takes it; or what that gives, or any other classes
            with their files.
        precision: as in `prepare`; None runs the network as it is.
        cache: a folder for vectors; by default `features` in the cache, where weights are kept by name.
        progress: told how many pictures of how many are done.

    Returns:
        Vectors in the order of classes and paths. Copies of a picture within a class are left out, since they would be
        learnt in one fold and asked for in another.

    Raises:
        OSError: the folder is none; or the cache cannot be written.
        ValueError: as `find_classes`; no picture could be used; the network has no card, is in training mode, or was
            prepared; activations are NaN or infinite.

    Warns:
        PictureWarning: as `find_classes`.
        MemoryWarning: memory ran out, and the work goes on in smaller batches.
    """
    network = as_network(network)
    check_unpacked(network)
    found = find_classes(folder) if isinstance(folder, str | os.PathLike) else folder
    pictures = [(path, label) for label, paths in enumerate(found.values()) for path in paths]
    kept = embed_kept(network, [path for path, _ in pictures], precision=precision, cache=cache, progress=progress)
    return _labelled(tuple(found), pictures, kept)


def _labelled(classes: tuple[str, ...], pictures: list[tuple[Path, int]], found: KeptVectors) -> LabelledVectors:
    """Pictures with their vectors: each content once in a class, and those that failed apart."""
    kept: dict[tuple[str, int], Path] = {}
    copies = 0
    for path, label in pictures:
        if path in found.failed:
            continue
        key = (found.digests[path], label)
        copies += key in kept
        kept.setdefault(key, path)
    failed = tuple((str(path), found.failed[path]) for path, _ in pictures if path in found.failed)
    if not kept:
        raise ValueError(f"none of {len(failed)} pictures could be used; the first: {failed[0][1]}")
    told = list(found.remarks)
    if copies:
        told.append(f"{copies} pictures have the same content as another of their class and were left out")
    places = Counter(digest for digest, _ in kept)
    if several := [path for (digest, _), path in kept.items() if places[digest] > 1]:
        told.append(f"{len(several)} pictures have the same content in several classes, such as {several[0]}")
    return LabelledVectors(
        np.stack([found.vectors[digest] for digest, _ in kept]),
        np.array([label for _, label in kept], np.int64),
        classes,
        tuple(kept.values()),
        failed,
        tuple(told),
        found.computed,
    )

"""Vectors of pictures that stand in class folders, kept on disk: nothing is computed twice."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnets_torch.embeddings.kept_vectors import KeptVectors, embed_kept
from convnets_torch.folders import ENDINGS, find_pictures
from convnets_torch.images import PictureWarning
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


def find_classes(folder: str | os.PathLike[str]) -> dict[str, list[Path]]:
    """The pictures of each class: a sub-folder is a class, and what is in it or below belongs to it.

    Hidden sub-folders are none. Classes are sorted by name.

    Raises:
        OSError: the folder is none, or cannot be listed.
        ValueError: it has no sub-folders, one alone, or some without pictures.

    Warns:
        PictureWarning: pictures that are in no sub-folder, and files that are no pictures, were left out.

    >>> find_classes("photos")
    Traceback (most recent call last):
    ...
    FileNotFoundError: photos does not exist; name a folder with a sub-folder for each class
    """
    found = class_folders(folder)
    if empty := [name for name, pictures in found.items() if not pictures]:
        few = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
        raise ValueError(
            f"{folder}: {len(empty)} of {len(found)} sub-folders hold no pictures ({few}); fill them, or remove them"
        )
    if len(found) == 1:
        raise ValueError(
            f"{folder} has one class alone ({next(iter(found))}), so nothing to tell apart; add a sub-folder"
        )
    return found


def class_folders(folder: str | os.PathLike[str]) -> dict[str, list[Path]]:
    """The pictures of each sub-folder, in it or below, sorted by name; hidden ones are left out, empty ones are not.

    Raises:
        OSError: the folder is none, or cannot be listed.
        ValueError: it has no sub-folders.

    Warns:
        PictureWarning: as `find_classes`.
    """
    folder = Path(folder)
    wanted = "name a folder with a sub-folder for each class"
    if not folder.exists():
        raise FileNotFoundError(f"{folder} does not exist; {wanted}")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder; {wanted}")
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    places = [entry for entry in entries if entry.is_dir()]
    if not places:
        raise ValueError(f"{folder} has no sub-folders, but a class is a sub-folder of pictures; {wanted}")
    if loose := [entry.name for entry in entries if entry.suffix.lower() in ENDINGS and not entry.is_dir()]:
        few = ", ".join(loose[:3]) + (", ..." if len(loose) > 3 else "")
        sentence = f"{folder}: left out {len(loose)} pictures that are in no sub-folder, so of no class ({few})"
        warnings.warn(sentence, PictureWarning, stacklevel=2)
    found: dict[str, list[Path]] = {}
    for place in places:
        try:
            found[place.name] = find_pictures(place)
        except FileNotFoundError:
            found[place.name] = []
    return found


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

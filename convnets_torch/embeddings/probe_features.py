"""Vectors of pictures that stand in class folders, kept on disk: nothing is computed twice."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

import convnets_torch
from convnets_torch.cache import cache_folder
from convnets_torch.embeddings.extraction import Embedder, embed_each
from convnets_torch.files import check_regular, check_writable, replacing, sha256
from convnets_torch.folders import ENDINGS, find_pictures
from convnets_torch.images import PictureWarning
from convnets_torch.networks import Network
from convnets_torch.networks.packed import PackedConv2d, PackedLinear
from convnets_torch.runtime import Precision, prepare

PART = 256  # vectors in a file of the cache: what is lost, at most, when the process is killed


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
    if loose := [entry.name for entry in entries if entry not in places and entry.suffix.lower() in ENDINGS]:
        few = ", ".join(loose[:3]) + (", ..." if len(loose) > 3 else "")
        sentence = f"{folder}: left out {len(loose)} pictures that are in no sub-folder, so of no class ({few})"
        warnings.warn(sentence, PictureWarning, stacklevel=2)
    found: dict[str, list[Path]] = {}
    for place in places:
        try:
            found[place.name] = find_pictures(place)
        except FileNotFoundError:
            found[place.name] = []
    if empty := [name for name, pictures in found.items() if not pictures]:
        few = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
        raise ValueError(
            f"{folder}: {len(empty)} of {len(found)} sub-folders hold no pictures ({few}); fill them, or remove them"
        )
    if len(found) == 1:
        raise ValueError(f"{folder} has one class alone ({places[0].name}), so nothing to tell apart; add a sub-folder")
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
    if any(isinstance(module, PackedConv2d | PackedLinear) for module in network.modules()):
        raise ValueError("the network was prepared, which rounds; give the one that was given to `prepare`")
    found = find_classes(folder) if isinstance(folder, str | os.PathLike) else folder
    pictures = [(path, label) for label, paths in enumerate(found.values()) for path in paths]
    kind = _kind(network, precision)
    store = _Store(cache_folder() / "features" if cache is None else Path(cache), kind)
    hashes: list[str | None] = []
    failed: list[tuple[str, Exception]] = []
    first: dict[str, Path] = {}  # content -> the first picture that has it
    for path, _ in pictures:
        try:
            check_regular(path)
            digest = sha256(path)
            first.setdefault(digest, path)
            hashes.append(digest)
        except OSError as error:
            failed.append((str(path), error))
            hashes.append(None)
    vectors, computed = store.read(set(first)), 0
    missing = {digest: path for digest, path in first.items() if digest not in vectors}
    names = {path: digest for digest, path in missing.items()}
    errors: dict[str, Exception] = {}
    total, known = len(first), len(vectors)
    if missing:
        device = next(network.parameters()).device
        ready = network if precision is None else prepare(network, device=device, precision=precision)
        with closing(embed_each(ready, names, exact=True)) as rows, store:
            for done, row in enumerate(rows, start=known + 1):
                digest = names[Path(str(row.picture))]
                if row.vector is None:
                    errors[digest] = row.error or ValueError(f"{row.picture} gives no vector")
                else:
                    vectors[digest] = row.vector.numpy()
                    store.add(digest, vectors[digest])
                    computed += 1
                if progress is not None:
                    progress(done, total)
    return _labelled(tuple(found), pictures, hashes, vectors, errors, failed, computed, store.remarks)


def _labelled(
    classes: tuple[str, ...],
    pictures: list[tuple[Path, int]],
    hashes: list[str | None],
    vectors: dict[str, NDArray[np.float32]],
    errors: dict[str, Exception],
    failed: list[tuple[str, Exception]],
    computed: int,
    remarks: Iterable[str],
) -> LabelledVectors:
    """Pictures with their vectors: each content once in a class, and those that failed apart."""
    kept: dict[tuple[str, int], Path] = {}
    copies = 0
    for (path, label), digest in zip(pictures, hashes, strict=True):
        if digest is None:
            continue
        if digest in errors:
            failed.append((str(path), errors[digest]))
        elif (digest, label) in kept:
            copies += 1
        else:
            kept[digest, label] = path
    if not kept:
        raise ValueError(f"none of {len(failed)} pictures could be used; the first: {failed[0][1]}")
    told = list(remarks)
    if copies:
        told.append(f"{copies} pictures have the same content as another of their class and were left out")
    places = Counter(digest for digest, _ in kept)
    if several := [path for (digest, _), path in kept.items() if places[digest] > 1]:
        told.append(f"{len(several)} pictures have the same content in several classes, such as {several[0]}")
    return LabelledVectors(
        np.stack([vectors[digest] for digest, _ in kept]),
        np.array([label for _, label in kept], np.int64),
        classes,
        tuple(kept.values()),
        tuple(failed),
        tuple(told),
        computed,
    )


def _kind(network: Network, precision: str | None) -> dict[str, str]:
    """What tells vectors of one kind from others; the same texts always mean the same vectors of the same files."""
    return Embedder(network).about | {
        "parameters": fingerprint(network),
        "precision": precision or "",
        "device": next(network.parameters()).device.type,
        "version": convnets_torch.__version__,
    }


def fingerprint(network: torch.nn.Module) -> str:
    """The sha256 of all parameters and their names, in hexadecimal: a card alone does not tell trained networks apart.

    >>> from convnets_torch.networks import vgg16
    >>> narrow = vgg16(classes=10, widths=(2, 2, 4, 4, 8), hidden=(8, 8))
    >>> before = fingerprint(narrow)
    >>> _ = torch.nn.init.zeros_(narrow.head[-1].bias)
    >>> fingerprint(narrow) == before
    False
    """
    digest = hashlib.sha256()
    for name, array in sorted(network.state_dict().items()):
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}\n".encode())
        digest.update(memoryview(array.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


class _Store:
    """Vectors of one kind in a folder: files of some each, which appear whole and are never changed."""

    def __init__(self, folder: Path, kind: dict[str, str]) -> None:
        text = json.dumps(kind, sort_keys=True)
        self._folder = folder / hashlib.sha256(text.encode()).hexdigest()[:32]
        self._folder.mkdir(parents=True, exist_ok=True)
        check_writable(self._folder / "part.safetensors")
        self._kind = kind
        self._rows: dict[str, NDArray[np.float32]] = {}  # not written yet
        self.remarks: list[str] = []

    def read(self, wanted: set[str]) -> dict[str, NDArray[np.float32]]:
        """Those that are there of the hashes that are wanted; a damaged file is removed."""
        found: dict[str, NDArray[np.float32]] = {}
        for path in sorted(self._folder.glob("[!.]*.safetensors")):
            try:
                with safe_open(path, "numpy") as file:
                    hashes, vectors = file.get_tensor("sha256"), file.get_tensor("vectors")
            except (SafetensorError, OSError) as error:
                path.unlink(missing_ok=True)
                self.remarks.append(f"{path} could not be read ({error}); its vectors are computed again")
                continue
            for digest, vector in zip(map(bytes.hex, map(bytes, hashes)), vectors, strict=True):
                if digest in wanted:
                    found[digest] = vector
        return found

    def add(self, digest: str, vector: NDArray[np.float32]) -> None:
        self._rows[digest] = vector
        if len(self._rows) == PART:
            self._write()

    def __enter__(self) -> _Store:
        return self

    def __exit__(self, *_: object) -> None:
        self._write()

    def _write(self) -> None:
        if not self._rows:
            return
        hashes = np.stack([np.frombuffer(bytes.fromhex(digest), np.uint8) for digest in self._rows])
        name = hashlib.sha256(hashes.tobytes()).hexdigest()[:32]  # two processes write the same, or beside each other
        with replacing(self._folder / f"{name}.safetensors") as temporary:
            save_file({"sha256": hashes, "vectors": np.stack(list(self._rows.values()))}, temporary, self._kind)
        self._rows = {}

"""Feature cache: vectors on disk, keyed by the sha256 of the picture, so that no picture is embedded twice."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convnets_torch._version import __version__
from convnets_torch.embeddings.extraction import Embedder, embedded
from convnets_torch.files import cache_folder, check_own_folder, check_writable, make_folder, open_own, sha256
from convnets_torch.images.decoding import AS_IS, MOST_BYTES, Reading, ReadingKeywords
from convnets_torch.inference.child_process import Progress
from convnets_torch.inference.pipeline import Result, each_row
from convnets_torch.inference.prepare import Precision, prepare
from convnets_torch.networks import Network
from convnets_torch.networks.packed import PackedConv2d, PackedLinear, check_unpacked
from convnets_torch.safetensors_io import header_of_opened, map_arrays, write_arrays

PART = 256  # vectors per cache file: the most that a killed process loses
MOST_VALUES = 1 << 24  # per vector

Vector = NDArray[np.float32]
Computed = Generator[Result[Vector], None, None]


@dataclass(frozen=True, eq=False)
class CachedVectors:
    """Vectors of pictures, from the cache or newly computed.

    Attributes:
        digests: picture -> sha256 of its content, for pictures that could be read.
        vectors: sha256 -> (values,) float32, for pictures that could be embedded.
        failed: the other pictures -> the error.
        computed: number of vectors that were not in the cache.
        notes: warnings about damaged cache files and about the pictures that were read.
    """

    digests: Mapping[Path, str]
    vectors: Mapping[str, Vector]
    failed: Mapping[Path, Exception]
    computed: int
    notes: tuple[str, ...]

    def of(self, path: Path) -> Vector | None:
        """Return the vector of a picture, or None if it failed."""
        return self.vectors.get(self.digests.get(path, ""))


def embed_cached(
    network: Network,
    paths: Iterable[Path],
    *,
    precision: Precision | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    batch: int | Literal["auto"] = "auto",
    workers: int | None = None,
    reading: Reading = AS_IS,
    compute: Callable[[nn.Module, Mapping[Path, str]], Computed] | None = None,
    made: Mapping[str, str] | None = None,
) -> CachedVectors:
    """Embed picture files as `embed` does, reading vectors from the cache where possible.

    Args:
        network, precision, cache, progress: as for `embed_classes`.
        paths: picture files.
        batch, workers: as for `embed_each`.
        reading: how files are decoded; part of the cache key.
        compute: (prepared network, path -> sha256 of the missing pictures) -> a row for each of these, in order; by
            default `embed_each` on whole pictures, read as `classify` reads them.
        made: cache key of `compute`; equal keys must mean equal vectors.

    Raises:
        OSError, ValueError: as for `embed_classes`.
    """
    check_unpacked(network)
    options = {name: getattr(reading, name) for name in ReadingKeywords.__annotations__}
    given = {name: str(value) for name, value in options.items() if value not in (None, False)}
    kind = _kind(network, precision) | given | dict(made or {})
    store = _Store(cache_folder() / "features" if cache is None else Path(cache), kind)
    digests: dict[Path, str] = {}
    failed: dict[Path, Exception] = {}
    first: dict[str, Path] = {}  # sha256 -> first picture with this content
    for path in paths:
        try:
            digests[path] = sha256(path, max_bytes=MOST_BYTES)
            first.setdefault(digests[path], path)
        except (OSError, ValueError) as error:
            failed[path] = error
    vectors = store.read(set(first))
    known = len(vectors)
    missing = {path: digest for digest, path in first.items() if digest not in vectors}
    errors: dict[str, Exception] = {}
    if missing:
        device = next(network.parameters()).device
        ready = network if precision is None else prepare(network, device=device, precision=precision)
        whole = partial(_whole_pictures, reading=reading, batch=batch, workers=workers)
        found = (compute or whole)(ready, missing)
        with closing(found) as rows, closing(store):
            for done, (row, digest) in enumerate(zip(rows, missing.values(), strict=True), start=known + 1):
                store.notes.extend(row.notes)
                if row.value is not None:
                    vectors[digest] = row.value
                    store.add(digest, row.value)
                elif row.error is not None:
                    errors[digest] = row.error
                if progress is not None:
                    progress(done, len(first))
    failed |= {path: errors[digest] for path, digest in digests.items() if digest in errors}
    return CachedVectors(digests, vectors, failed, len(vectors) - known, tuple(store.notes))


def _whole_pictures(
    network: nn.Module, paths: Iterable[Path], reading: Reading, batch: int | Literal["auto"], workers: int | None
) -> Computed:
    rows = embedded(Embedder(network), paths, reading, batch, workers, exact=True)
    return each_row(rows, lambda row: Result(row.picture, _array(row.vector), row.error, row.notes))


def _array(vector: Tensor | None) -> Vector | None:
    return None if vector is None else vector.numpy()


def _kind(network: Network, precision: str | None) -> dict[str, str]:
    """Return the cache key of whole-picture vectors."""
    return Embedder(network).about | {
        "parameters": fingerprint(network),
        "precision": precision or "",
        "device": next(network.parameters()).device.type,
        "version": __version__,
    }


def fingerprint(network: torch.nn.Module) -> str:
    """Return the hexadecimal sha256 of all parameters and their names.

    The card alone does not tell trained networks apart. For a prepared network the packed weights are hashed.

    >>> from convnets_torch.networks import vgg16
    >>> narrow = vgg16(classes=10, widths=(2, 2, 4, 4, 8), hidden=(8, 8))
    >>> before = fingerprint(narrow)
    >>> _ = torch.nn.init.zeros_(narrow.head[-1].bias)
    >>> fingerprint(narrow) == before
    False
    """
    digest = hashlib.sha256()
    arrays = dict(network.state_dict())
    for name, module in network.named_modules():
        if isinstance(module, PackedConv2d | PackedLinear):
            arrays[f"{name}.packed"] = module.weight  # packed kernels sum in another order
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}\n".encode())
        digest.update(memoryview(array.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


class _Store:
    """Cached vectors with one key: a folder of files that are written atomically and never changed."""

    def __init__(self, folder: Path, kind: dict[str, str]) -> None:
        text = json.dumps(kind, sort_keys=True)
        self._folder = make_folder(folder, hashlib.sha256(text.encode()).hexdigest()[:32])
        check_own_folder(self._folder)
        check_writable(self._folder / "part.safetensors")
        self._kind = kind
        self._values: int | None = None  # values per vector, from the first file
        self._rows: dict[str, Vector] = {}  # not yet written
        self.notes: list[str] = []

    def read(self, wanted: set[str]) -> dict[str, Vector]:
        """Return the cached vectors among `wanted`; delete damaged files."""
        found: dict[str, Vector] = {}
        for path in sorted(self._folder.glob("[!.]*.safetensors")):
            try:
                with open_own(path) as file:
                    header = header_of_opened(file, path)
                    self._check(header)
                    hashes, vectors = map_arrays(file, header, ("sha256", "vectors")).values()
                if len(hashes) != len(vectors) or not np.isfinite(vectors).all():
                    raise ValueError("it holds no vectors of pictures")
            except (OSError, ValueError, KeyError, TypeError) as error:
                path.unlink(missing_ok=True)
                self.notes.append(f"{path} could not be read ({error}); its vectors are computed again")
                continue
            for digest, vector in zip(map(bytes.hex, map(bytes, hashes)), vectors, strict=True):
                if digest in wanted:
                    found[digest] = np.array(vector)
        return found

    def _check(self, header: dict[str, Any]) -> None:
        """Validate array shapes before reading them."""
        for name in ("sha256", "vectors"):
            shape, kind = header[name]["shape"], header[name]["dtype"]
            if name == "vectors" and self._values is None and len(shape) == 2 and shape[1] <= MOST_VALUES:
                self._values = shape[1]
            wanted = ("U8", 32) if name == "sha256" else ("F32", self._values)
            if len(shape) != 2 or shape[0] > PART or (kind, shape[1]) != wanted:
                raise ValueError(f"its {name} are {shape} {kind}")

    def add(self, digest: str, vector: Vector) -> None:
        self._rows[digest] = vector
        if len(self._rows) == PART:
            self.close()

    def close(self) -> None:
        """Write the vectors that are not yet on disk."""
        if not self._rows:
            return
        hashes = np.stack([np.frombuffer(bytes.fromhex(digest), np.uint8) for digest in self._rows])
        # Named by content, so that concurrent processes write the same file or different ones.
        name = hashlib.sha256(hashes.tobytes()).hexdigest()[:32]
        arrays = {"sha256": hashes, "vectors": np.stack(list(self._rows.values()))}
        write_arrays(self._folder / f"{name}.safetensors", arrays, self._kind)
        self._rows = {}

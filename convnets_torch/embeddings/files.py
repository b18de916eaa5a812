"""Write and read vector files, .npz and .safetensors; writing streams rows through temporary files."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from convnets_torch import files
from convnets_torch.embeddings.extraction import Embedded
from convnets_torch.files import Output, Writer, check_regular
from convnets_torch.npz import read_npz
from convnets_torch.safetensors_io import header_bytes, read_arrays

ABOUT = "about"
BLOCK = 1 << 20  # bytes copied at a time
LINES = 4096  # texts in memory at a time
TEXTS = ("paths", "failed", "errors")
VECTORS = "vectors"


@dataclass(frozen=True)
class SavedVectors:
    """Summary of a written vector file.

    Attributes:
        shapes: name of each numeric array -> (pictures, values).
        pictures: number of pictures with vectors.
        failed: number of pictures that failed.
    """

    shapes: dict[str, tuple[int, int]]
    pictures: int
    failed: int


def save_vectors(rows: Iterable[Embedded], path: Output, about: Mapping[str, str] | None = None) -> SavedVectors:
    """Write the vectors of any number of pictures, with one row in memory at a time.

    The file is written atomically; meanwhile the vectors take twice their size on disk. The file holds, in the order of
    the rows:

    - `vectors`: (N, values) float32; for several layers `vectors.fc1` and so on, named as requested;
    - `logits`: (N, classes) float32, if the rows have them;
    - `paths`: paths of the N pictures; for a picture that is not a file, its index among all pictures, from 0;
    - `failed` and `errors`: paths of the pictures that failed, and their error messages;
    - `about`: metadata from the caller.

    In an `.npz` file, paths and messages are arrays of text and `about` is JSON. In a `.safetensors` file, which can be
    memory-mapped and read in slices, they are the bytes of a JSON list, and `about` is the metadata::

        with safetensors.safe_open("vectors.safetensors", "numpy") as file:
            some, paths = file.get_slice("vectors")[:100], json.loads(file.get_tensor("paths").tobytes())

    Args:
        rows: as from `embed_each`.
        path: output file, .npz or .safetensors; an existing file is replaced.
        about: metadata, such as `Embedder.about`, which identifies the kind of vectors.

    Raises:
        OSError: the file cannot be written.
        ValueError: unknown file extension; no picture could be used (the message gives the first error); or the layers
            or number of values differ between rows.

    >>> from convnets_torch import embed_each, load
    >>> save_vectors(embed_each(load("alexnet.safetensors"), ["street.jpg", "none.jpg"]), "vectors.npz")
    SavedVectors(shapes={'vectors': (1, 40)}, pictures=1, failed=1)
    >>> with np.load("vectors.npz") as file:
    ...     file["vectors"].shape, file["paths"].tolist(), file["failed"].tolist()
    ((1, 40), ['street.jpg'], ['none.jpg'])
    """
    saved: list[SavedVectors] = []
    WRITER.write(path, rows, dict(about or {}), saved)
    return saved[0]


class _Spool(contextlib.ExitStack):
    """Temporary files, one per array, to which rows are appended: raw float32, or one JSON list of texts."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._texts = {name: self._open(f"{name}.json") for name in TEXTS}
        self.files, self.shapes = self._texts, dict[str, tuple[int, int]]()
        self._widths: dict[str, int] = {}
        self._good = self._bad = 0
        self._first: Exception | None = None

    def _open(self, name: str) -> IO[bytes]:
        return self.enter_context((self._folder / name).open("w+b"))

    def add(self, row: Embedded) -> None:
        picture, number = row.picture, self._good + self._bad
        name = os.fspath(picture) if isinstance(picture, str | os.PathLike) else str(number)
        if row.error is not None:
            self._bad += 1
            self._first = self._first or row.error
            self._add_text("failed", name)
            self._add_text("errors", " ".join(str(row.error).split()))
            return
        arrays = {VECTORS if len(row.vectors) == 1 else f"{VECTORS}.{each}": row.vectors[each] for each in row.vectors}
        if row.logits is not None:
            arrays["logits"] = row.logits
        widths = {each: len(values) for each, values in arrays.items()}
        if not self._good:
            self._widths = widths
            self.files = {each: self._open(str(place)) for place, each in enumerate(arrays)} | self._texts
        elif widths != self._widths:
            raise ValueError(f"{name} has {widths}, but the pictures before it {self._widths}; save them apart")
        self._good += 1
        self._add_text("paths", name)
        for each, values in arrays.items():
            self.files[each].write(values.to(torch.float32).cpu().numpy().astype("<f4").tobytes())

    def _add_text(self, name: str, text: str) -> None:
        file = self._texts[name]
        file.write((b"," if file.tell() else b"[") + json.dumps(text).encode() + b"\n")

    def finish(self) -> SavedVectors:
        if not self._good:
            if self._first is None:
                raise ValueError("there are no pictures to save vectors of; give one or more")
            raise ValueError(f"none of {self._bad} pictures could be used; the first: {self._first}")
        for file in self._texts.values():
            file.write(b"]" if file.tell() else b"[]")
        self.shapes = {name: (self._good, width) for name, width in self._widths.items()}
        return SavedVectors(self.shapes, self._good, self._bad)


def _write_npz(path: Path, spool: _Spool, about: dict[str, str]) -> None:
    with zipfile.ZipFile(path, "w") as archive:

        @contextlib.contextmanager
        def member(name: str, kind: str, shape: tuple[int, ...]) -> Iterator[IO[bytes]]:
            entry = zipfile.ZipInfo(f"{name}.npy")  # its default date is fixed, so equal rows give equal files
            with archive.open(entry, "w", force_zip64=True) as file:
                header = {"descr": kind, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                yield file

        for name, source in spool.files.items():
            if name in spool.shapes:
                source.seek(0)
                with member(name, "<f4", spool.shapes[name]) as file:
                    shutil.copyfileobj(source, file, BLOCK)
                continue
            lengths = [len(text) for text in _texts(source)]
            width = max(lengths, default=1) or 1
            with member(name, f"<U{width}", (len(lengths),)) as file:
                texts = _texts(source)
                while block := list(islice(texts, LINES)):
                    file.write(np.array(block, f"<U{width}").tobytes())
        text = json.dumps(about)
        with member(ABOUT, f"<U{len(text)}", ()) as file:
            file.write(np.array(text, f"<U{len(text)}").tobytes())


def _texts(source: IO[bytes]) -> Iterator[str]:
    """Yield the texts of a JSON list with one text per line."""
    source.seek(0)
    return (json.loads(line[1:]) for line in source if line.endswith(b"\n"))


def _write_safetensors(path: Path, spool: _Spool, about: dict[str, str]) -> None:
    layout: dict[str, tuple[str, tuple[int, ...]]] = {
        name: ("F32", spool.shapes[name]) if name in spool.shapes else ("U8", (source.tell(),))
        for name, source in spool.files.items()
    }
    with path.open("wb") as file:
        file.write(header_bytes(layout, about, spaces=True))
        for source in spool.files.values():
            source.seek(0)
            shutil.copyfileobj(source, file, BLOCK)


def _write(
    write: Callable[[Path, _Spool, dict[str, str]], None],
    path: Path,
    rows: Iterable[Embedded],
    about: dict[str, str],
    saved: list[SavedVectors],
) -> None:
    with _Spool(path.parent) as spool:  # a temporary folder, cleaned up even after a kill
        for row in rows:
            spool.add(row)
        saved.append(spool.finish())
        write(path, spool, about)


WRITER = Writer("vectors", {".npz": partial(_write, _write_npz), ".safetensors": partial(_write, _write_safetensors)})


@dataclass(frozen=True, eq=False)
class ReadVectors:
    """Contents of a vector file.

    Attributes:
        vectors: (N, values) float32.
        paths: paths of the N pictures.
        logits: (N, classes) float32, or None.
        failed: path of each picture that failed -> error message.
        about: metadata that identifies the kind of vectors, as in `Embedder.about`.
    """

    vectors: NDArray[np.float32]
    paths: list[str]
    logits: NDArray[np.float32] | None
    failed: dict[str, str]
    about: dict[str, str]


def read_vectors(path: str | os.PathLike[str]) -> ReadVectors:
    """Read a vector file with a single layer.

    Raises:
        OSError: the file is missing, is a folder or cannot be read.
        ValueError: unknown file extension; the file holds no vectors or those of several layers, or is damaged.

    >>> from convnets_torch import embed_each, load
    >>> from convnets_torch.embeddings.files import save_vectors
    >>> rows = embed_each(load("alexnet.safetensors"), ["street.jpg", "none.jpg"])
    >>> saved = save_vectors(rows, "vectors.npz")
    >>> found = read_vectors("vectors.npz")
    >>> found.vectors.shape, found.paths, list(found.failed)
    ((1, 40), ['street.jpg'], ['none.jpg'])
    """
    path = Path(path)
    check_regular(path)
    if path.suffix.lower() not in WRITER.formats:
        raise ValueError(f"{path} has an unknown ending; vectors are read from {' or '.join(WRITER.formats)}")
    try:
        found = _read(path)
        _check(found)
    except (KeyError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} holds no vectors of one layer, or is damaged ({reason}); create it again") from None
    return found


def _read(path: Path) -> ReadVectors:
    if path.suffix.lower() == ".npz":
        arrays = read_npz(path)
        _check_names(list(arrays))
        texts = {name: _text_column(arrays, name, 1).tolist() for name in TEXTS}
        about = files.loads(str(_text_column(arrays, ABOUT, 0)))
    else:
        arrays, about = read_arrays(path)
        _check_names(list(arrays))
        texts = {name: files.loads(arrays[name].tobytes()) for name in TEXTS}
    for name, found in texts.items():
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            raise ValueError(f"{name} is not a list of texts")
    if not isinstance(about, dict) or not all(isinstance(text, str) for text in about.values()):
        raise ValueError("its metadata is not a mapping of names to texts")
    failed = dict(zip(texts["failed"], texts["errors"], strict=True))
    return ReadVectors(arrays[VECTORS], texts["paths"], arrays.get("logits"), failed, about)


def _text_column(arrays: dict[str, NDArray[Any]], name: str, dimensions: int) -> NDArray[np.str_]:
    array = arrays[name]
    if (array.dtype.kind, array.ndim) != ("U", dimensions):
        raise ValueError(f"{name} is {array.dtype} {array.shape}, not text")
    return array


def _check(found: ReadVectors) -> None:
    for name, array in ((VECTORS, found.vectors), ("logits", found.logits)):
        if array is not None and not (
            array.dtype == np.float32 and array.ndim == 2 and len(array) == len(found.paths) and array.shape[1]
        ):
            raise ValueError(f"it has {name} {array.dtype} {array.shape} of {len(found.paths)} pictures")
    if found.logits is not None and not np.isfinite(found.logits).all():
        raise ValueError("it has logits that are NaN or infinite")


def _check_names(names: list[str]) -> None:
    if layers := [name.removeprefix("vectors.") for name in names if name.startswith("vectors.")]:
        raise ValueError(f"it has vectors of {', '.join(layers[:8])}")
    if VECTORS not in names:
        raise ValueError(f"it has {', '.join(sorted(names)[:8]) or 'nothing'}")

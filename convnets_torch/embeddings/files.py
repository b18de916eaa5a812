"""Files of vectors: .npz, .npy, .safetensors, .csv and .parquet, written and read in parts."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnets_torch import files
from convnets_torch.embeddings.extraction import Embedded
from convnets_torch.files import Output, check_regular, check_writable, path_of, replacing, to_open_files
from convnets_torch.npz import read_npz
from convnets_torch.safetensors_io import header_bytes, read_arrays

ENDINGS = (".npz", ".safetensors")
ABOUT = "about"
BLOCK = 1 << 20  # bytes that are copied at once
LINES = 4096  # sentences that are held at once
TEXTS = ("paths", "failed", "errors")


@dataclass(frozen=True)
class SavedVectors:
    """What a file of vectors holds.

    Attributes:
        shapes: name of each array of numbers -> (pictures, values).
        pictures: how many have vectors.
        failed: how many could not be used.
    """

    shapes: dict[str, tuple[int, int]]
    pictures: int
    failed: int


@to_open_files(".npz")
def save_vectors(rows: Iterable[Embedded], path: Output, about: Mapping[str, str] | None = None) -> SavedVectors:
    """Write the vectors of any number of pictures; memory holds one row at a time.

    The file appears whole or not at all. While it is written, the disk holds the numbers twice. It holds, in the order
    of the rows:

    - `vectors`: (N, values) float32; of several layers `vectors.fc1` and so on, named as they were asked for;
    - `logits`: (N, classes) float32, where the rows have them;
    - `paths`: of the N pictures; of one that is no file, its number among all, from 0;
    - `failed` and `errors`: paths of the pictures that could not be used, and one sentence on each;
    - `about`: what the caller says of them.

    In an `.npz` the paths and sentences are arrays of text and `about` is JSON::

        with np.load("vectors.npz") as file:
            vectors, paths = file["vectors"], file["paths"].tolist()
            about = json.loads(str(file["about"]))

    In a `.safetensors`, which can be mapped and read in parts, paths and sentences are the bytes of a JSON list and
    `about` is the metadata::

        with safetensors.safe_open("vectors.safetensors", "numpy") as file:
            some, paths = file.get_slice("vectors")[:100], json.loads(file.get_tensor("paths").tobytes())
            about = file.metadata()

    Args:
        rows: as `embed_each` gives them.
        path: of the file, .npz or .safetensors; one that is there is replaced.
        about: names and texts; `Embedder.about` has what tells vectors of one kind from others.

    Raises:
        OSError: the file cannot be written.
        ValueError: another file ending; no picture could be used, the first reason is given; or a row has other layers
            or another number of values than the one before.

    >>> from convnets_torch import embed_each, load
    >>> save_vectors(embed_each(load("alexnet.safetensors"), ["street.jpg", "none.jpg"]), "vectors.npz")
    SavedVectors(shapes={'vectors': (1, 40)}, pictures=1, failed=1)
    >>> with np.load("vectors.npz") as file:
    ...     file["vectors"].shape, file["paths"].tolist(), file["failed"].tolist()
    ((1, 40), ['street.jpg'], ['none.jpg'])
    """
    path = path_of(path)
    check_vectors_output(path)
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(replacing(path))
        spool = stack.enter_context(_Spool(temporary.parent))  # which goes with it, also when we are killed
        for row in rows:
            spool.add(row)
        saved = spool.finish()
        write = _write_npz if path.suffix.lower() == ".npz" else _write_safetensors
        write(temporary, spool, dict(about or {}))
    return saved


def check_vectors_output(path: Path) -> None:
    """Raise, before long work begins, when vectors cannot be written to `path`.

    Raises:
        ValueError: another ending than .npz or .safetensors.
        OSError: `path` cannot be written.
    """
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"{path} has an unknown ending; vectors are written as {' or '.join(ENDINGS)}")
    check_writable(path)


class _Spool(contextlib.ExitStack):
    """Rows as they come, in files of their own: the numbers of each array, and each list of texts as JSON.

    Attributes:
        files: name -> file: of the arrays of numbers, in the order of the first row, then `TEXTS`.
        shapes: name of each array of numbers -> (pictures, values).
    """

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
            self._say("failed", name)
            self._say("errors", " ".join(str(row.error).split()))
            return
        arrays = _arrays(row)
        widths = {each: len(values) for each, values in arrays.items()}
        if not self._good:
            self._widths = widths
            self.files = {each: self._open(str(place)) for place, each in enumerate(arrays)} | self._texts
        elif widths != self._widths:
            raise ValueError(f"{name} has {widths}, but the pictures before it {self._widths}; save them apart")
        self._good += 1
        self._say("paths", name)
        for each, values in arrays.items():
            self.files[each].write(values.to(torch.float32).cpu().numpy().astype("<f4").tobytes())

    def _say(self, name: str, text: str) -> None:
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


def _arrays(row: Embedded) -> dict[str, Tensor]:
    """The names that a file has for what a row has."""
    one = len(row.vectors) == 1
    named = {"vectors" if one else f"vectors.{name}": values for name, values in row.vectors.items()}
    return named if row.logits is None else named | {"logits": row.logits}


def _write_npz(path: Path, spool: _Spool, about: dict[str, str]) -> None:
    with zipfile.ZipFile(path, "w") as archive:

        @contextlib.contextmanager
        def member(name: str, kind: str, shape: tuple[int, ...]) -> Iterator[IO[bytes]]:
            entry = zipfile.ZipInfo(f"{name}.npy")  # with a date of its own: the same rows give the same file
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
    """The texts of a JSON list, in which each ends a line."""
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


VECTORS = "vectors"


@dataclass(frozen=True, eq=False)
class ReadVectors:
    """What a file of vectors holds.

    Attributes:
        vectors: (N, values) float32.
        paths: of the N pictures.
        logits: (N, classes) float32; None where the file has none.
        failed: paths of pictures that could not be used, and a sentence on each.
        about: what tells vectors of this kind from others, as `Embedder.about` does.
    """

    vectors: NDArray[np.float32]
    paths: list[str]
    logits: NDArray[np.float32] | None
    failed: dict[str, str]
    about: dict[str, str]


def read_vectors(path: str | os.PathLike[str]) -> ReadVectors:
    """Read a file of vectors of one layer.

    Raises:
        OSError: the file is missing, a folder, or cannot be read.
        ValueError: another ending; the file holds no vectors, those of several layers, or is damaged.

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
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"{path} has an unknown ending; vectors are read from {' or '.join(ENDINGS)}")
    try:
        found = _of_npz(path) if path.suffix.lower() == ".npz" else _of_safetensors(path)
        _check(found)
    except (KeyError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} holds no vectors of one layer, or is damaged ({reason}); write it anew") from None
    return found


def _of_npz(path: Path) -> ReadVectors:
    arrays = read_npz(path)
    _check_names(list(arrays))
    paths, failed, errors = (_text_column(arrays, name, 1).tolist() for name in TEXTS)
    return ReadVectors(
        arrays[VECTORS],
        paths,
        arrays.get("logits"),
        dict(zip(failed, errors, strict=True)),
        files.loads(str(_text_column(arrays, ABOUT, 0))),
    )


def _text_column(arrays: dict[str, NDArray[Any]], name: str, dimensions: int) -> NDArray[np.str_]:
    array = arrays[name]
    if (array.dtype.kind, array.ndim) != ("U", dimensions):
        raise ValueError(f"{name} is {array.dtype} {array.shape}, not text")
    return array


def _of_safetensors(path: Path) -> ReadVectors:
    arrays, metadata = read_arrays(path)
    _check_names(list(arrays))
    texts = {name: files.loads(arrays[name].tobytes()) for name in TEXTS}
    for name, found in texts.items():
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            raise ValueError(f"{name} is no list of texts")
    return ReadVectors(
        arrays[VECTORS],
        texts["paths"],
        arrays.get("logits"),
        dict(zip(texts["failed"], texts["errors"], strict=True)),
        metadata,
    )


def _check(found: ReadVectors) -> None:
    count, shape = len(found.paths), found.vectors.shape
    if found.vectors.dtype != np.float32 or len(shape) != 2 or shape[0] != count or not shape[1]:
        raise ValueError(f"it has vectors {found.vectors.dtype} {shape} of {count} pictures")
    logits = found.logits
    if logits is not None and (
        logits.dtype != np.float32
        or logits.ndim != 2
        or len(logits) != count
        or not logits.shape[1]
        or not np.isfinite(logits).all()
    ):
        raise ValueError(f"it has logits {logits.dtype} {logits.shape} of {count} pictures, or NaN in them")
    about = found.about
    if not isinstance(about, dict) or not all(isinstance(text, str) for text in about.values()):
        raise ValueError("what it says of its network is no list of names and texts")


def _check_names(names: list[str]) -> None:
    layers = [name.removeprefix("vectors.") for name in names if name.startswith("vectors.")]
    if layers:
        raise ValueError(f"it has vectors of {', '.join(layers[:8])}")
    if VECTORS not in names:
        raise ValueError(f"it has {', '.join(sorted(names)[:8]) or 'nothing'}")

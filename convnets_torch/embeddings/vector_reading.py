"""Vectors from disk, as `save_vectors` and the command `embed` write them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from convnets_torch import strict_json
from convnets_torch.card import header_of_opened
from convnets_torch.embeddings.vector_files import ABOUT, ENDINGS
from convnets_torch.files import check_regular, open_file, opened_path
from convnets_torch.npz import read_npz

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

    >>> from convnets_torch import embed_each, load, save_vectors
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
    paths, failed, errors = (_texts(arrays, name, 1).tolist() for name in ("paths", "failed", "errors"))
    return ReadVectors(
        arrays[VECTORS],
        paths,
        arrays.get("logits"),
        dict(zip(failed, errors, strict=True)),
        strict_json.loads(str(_texts(arrays, ABOUT, 0))),
    )


def _texts(arrays: dict[str, NDArray[Any]], name: str, dimensions: int) -> NDArray[np.str_]:
    array = arrays[name]
    if (array.dtype.kind, array.ndim) != ("U", dimensions):
        raise ValueError(f"{name} is {array.dtype} {array.shape}, not text")
    return array


def _of_safetensors(path: Path) -> ReadVectors:
    arrays, metadata = read_arrays(path)
    _check_names(list(arrays))
    texts = {name: strict_json.loads(arrays[name].tobytes()) for name in ("paths", "failed", "errors")}
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


def read_arrays(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The arrays of a safetensors file, and what its metadata say; both of the same file, whatever becomes of its name.

    Raises:
        OSError: there is no regular file, or it cannot be read.
        ValueError: it is no safetensors file, is damaged, or has arrays that NumPy does not know.
    """
    with open_file(path) as file:
        header_of_opened(file, path)
        try:
            with safe_open(opened_path(file), "numpy") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"{path} cannot be read ({error}); write it anew") from None


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

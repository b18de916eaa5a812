"""Vectors from disk, as `save_vectors` and the command `embed` write them."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from convnets_torch.embeddings.vector_files import ABOUT, ENDINGS
from convnets_torch.files import check_regular

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
    except (zipfile.BadZipFile, zlib.error, SafetensorError, KeyError, ValueError, EOFError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} holds no vectors of one layer, or is damaged ({reason}); write it anew") from None
    if found.vectors.ndim != 2 or found.vectors.dtype != np.float32 or len(found.vectors) != len(found.paths):
        raise ValueError(
            f"{path} has vectors {found.vectors.dtype} {found.vectors.shape} of {len(found.paths)} pictures;"
            " write it anew"
        )
    return found


def _of_npz(path: Path) -> ReadVectors:
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:  # it leaves damaged files open
        _check_names(file.files)
        return ReadVectors(
            file[VECTORS],
            file["paths"].tolist(),
            file["logits"] if "logits" in file.files else None,
            dict(zip(file["failed"].tolist(), file["errors"].tolist(), strict=True)),
            json.loads(str(file[ABOUT])),
        )


def _of_safetensors(path: Path) -> ReadVectors:
    with safe_open(path, "numpy") as file:
        names = list(file.keys())
        _check_names(names)
        texts = {name: json.loads(file.get_tensor(name).tobytes()) for name in ("paths", "failed", "errors")}
        return ReadVectors(
            file.get_tensor(VECTORS),
            texts["paths"],
            file.get_tensor("logits") if "logits" in names else None,
            dict(zip(texts["failed"], texts["errors"], strict=True)),
            file.metadata() or {},
        )


def _check_names(names: list[str]) -> None:
    layers = [name.removeprefix("vectors.") for name in names if name.startswith("vectors.")]
    if layers:
        raise ValueError(f"it has vectors of {', '.join(layers)}")
    if VECTORS not in names:
        raise ValueError(f"it has {', '.join(sorted(names)) or 'nothing'}")

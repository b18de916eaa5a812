"""The vectors of an index as one array in a file, mapped into memory, so that exact search reads nothing else.

The file is derived from the table and says from which state of it; when that is no longer the table's, it is made anew.
Of a folder the state is the names, sizes and times of its manifests, one of which LanceDB adds with each commit, so
that asking for it needs neither LanceDB, whose import takes a second or two, nor torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnets_torch.cache import cache_folder
from convnets_torch.card import read_header
from convnets_torch.embeddings.picture_table import GOOD, TABLE, About, PictureTable, is_local
from convnets_torch.files import replacing

NAME = "vectors.cache"  # beside the table
COLUMNS = ("path", "sha256", "class_id", "probability", "vector")
KINDS = {"F32": "<f4", "I32": "<i4", "I64": "<i8", "U8": "|u1"}  # of safetensors, as NumPy calls them
SMALL = {"lengths": "<f4", "class_ids": "<i4", "probabilities": "<f4"}
SCHEMA = "1"
HEADER = 2048  # bytes that names, kinds and places of the arrays take at most


@dataclass(frozen=True, eq=False)
class Vectors:
    """The vectors that an index searches, and what is said of each; arrays that are not to be written to.

    Attributes:
        vectors: (N, values) float32.
        lengths: (N,) float32, of the vectors.
        class_ids: (N,) int32, the most probable class; -1 where there is none.
        probabilities: (N,) float32, its probability; NaN where there is none.
        hashes: (N, 32) uint8, sha256 of the files.
    """

    vectors: NDArray[np.float32]
    lengths: NDArray[np.float32]
    class_ids: NDArray[np.int32]
    probabilities: NDArray[np.float32]
    hashes: NDArray[np.uint8]
    _names: NDArray[np.uint8]  # paths in UTF-8, one after another
    _ends: NDArray[np.int64]  # where each of them ends

    def __len__(self) -> int:
        return len(self._ends)

    def path(self, row: int) -> str:
        """The path of a row."""
        start = int(self._ends[row - 1]) if row else 0
        return self._names[start : int(self._ends[row])].tobytes().decode()

    def paths(self) -> list[str]:
        """Those of all rows."""
        names, start, found = self._names.tobytes(), 0, []
        for end in self._ends.tolist():
            found.append(names[start:end].decode())
            start = end
        return found

    def row_of(self, path: str) -> int | None:
        """The row of a path, if there is one."""
        name = np.frombuffer(path.encode("utf-8", "surrogateescape"), np.uint8)
        rows = np.flatnonzero(np.diff(self._ends, prepend=0) == len(name))
        for back in range(1, len(name) + 1):  # from the end, where paths differ most
            rows = rows[self._names[self._ends[rows] - back] == name[-back]]
        return int(rows[0]) if len(rows) else None

    def rows_with(self, sha256: str) -> NDArray[np.int64]:
        """The rows of files with this content."""
        wanted = np.frombuffer(bytes.fromhex(sha256), np.uint8)
        some = np.flatnonzero((self.hashes[:, :4] == wanted[:4]).all(1))
        return some[(self.hashes[some] == wanted).all(1)]


def place_of(address: str) -> Path | None:
    """Where the vectors of an index are kept: in its folder, for object stores in the user's cache; None for memory."""
    if is_local(address):
        return Path(address) / NAME
    if address.startswith("memory:"):
        return None
    return cache_folder() / "vectors" / f"{hashlib.sha256(address.encode()).hexdigest()[:24]}.cache"


def state_of(address: str, table: PictureTable | None = None) -> str:
    """What changes whenever the table does; of other addresses than folders, only the table itself can say."""
    if not is_local(address):
        return "" if table is None else f"{table.about.made} version {table.version}"
    told = []
    with contextlib.suppress(OSError):
        for manifest in sorted((Path(address) / f"{TABLE}.lance" / "_versions").glob("*.manifest")):
            state = manifest.stat()
            told.append((manifest.name, state.st_size, state.st_mtime_ns))
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def kept(address: str, state: str) -> tuple[About, Vectors] | None:
    """What is kept of a table in this state; None where there is nothing, or of another state, or damaged."""
    place = place_of(address)
    if place is None or not place.is_file():
        return None
    try:
        header = read_header(place)
        metadata = header.pop("__metadata__")
        if metadata["state"] != state or metadata["schema"] != SCHEMA:
            return None
        return About.from_json(metadata["about"]), Vectors(**_mapped(place, header))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _mapped(path: Path, header: dict[str, Any]) -> dict[str, NDArray[Any]]:
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
    arrays = {}
    for name, entry in header.items():
        kind, shape, begin = KINDS[entry["dtype"]], tuple(entry["shape"]), start + entry["data_offsets"][0]
        arrays[name] = np.memmap(path, kind, "r", begin, shape) if np.prod(shape) else np.zeros(shape, kind)
        arrays[name] = arrays[name].view(np.ndarray)  # whose slices cost less
    return arrays


def keep(table: PictureTable, state: str) -> Vectors:
    """The vectors of a table, written to where they are kept, and mapped; in memory where the table is.

    Of the vectors, memory holds some thousand at a time.

    Args:
        table: as it was opened.
        state: asked for before it was opened, so that a commit in between makes the file old, not wrong.

    Raises:
        OSError: the table is damaged, or the file cannot be written.
    """
    place = place_of(table.address)
    if place is None:
        blocks: list[NDArray[np.float32]] = [np.zeros((0, table.about.width), np.float32)]
        arrays = _read(table, lambda block: blocks.append(block.copy()))
        return Vectors(vectors=np.concatenate(blocks), **arrays)
    place.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"schema": SCHEMA, "state": state, "about": table.about.to_json()}
    with replacing(place) as temporary, temporary.open("wb") as file:
        room = HEADER + len(json.dumps(metadata))
        room += -room % 64
        file.seek(8 + room)
        arrays = _read(table, lambda block: file.write(block.data))
        end = file.tell() - 8 - room
        header: dict[str, object] = {"__metadata__": metadata}
        header["vectors"] = {
            "dtype": "F32",
            "shape": (len(arrays["_ends"]), table.about.width),
            "data_offsets": (0, end),
        }
        for name, array in arrays.items():
            kind = next(kind for kind, numbers in KINDS.items() if np.dtype(numbers) == array.dtype)
            header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": (end, end + array.nbytes)}
            file.write(np.ascontiguousarray(array).data)
            end += array.nbytes
        file.seek(0)
        file.write(room.to_bytes(8, "little") + json.dumps(header).encode().ljust(room))
    found = kept(table.address, state)
    if found is None:
        raise OSError(f"{place} was changed while it was written; search again")
    return found[1]


def _read(table: PictureTable, take: Callable[[NDArray[np.float32]], object]) -> dict[str, NDArray[Any]]:
    """The small columns as arrays; `take` gets the vectors, some thousand at a time."""
    columns: dict[str, list[NDArray[Any]]] = {name: [np.zeros(0, kind)] for name, kind in SMALL.items()}
    hashes, names = [], []
    for batch in table.read(COLUMNS, GOOD):
        if not len(batch):
            continue
        block = batch["vector"].flatten().to_numpy(zero_copy_only=False).reshape(len(batch), table.about.width)
        block = np.ascontiguousarray(block, "<f4")
        take(block)
        columns["lengths"].append(np.sqrt(np.einsum("ij,ij->i", block, block, dtype=np.float64)).astype("<f4"))
        columns["class_ids"].append(batch["class_id"].fill_null(-1).to_numpy(zero_copy_only=False))
        columns["probabilities"].append(batch["probability"].fill_null(np.nan).to_numpy(zero_copy_only=False))
        hashes.append(bytes.fromhex("".join(batch["sha256"].to_pylist())))
        names += [name.encode() for name in batch["path"].to_pylist()]
    return {
        "_ends": np.cumsum([len(name) for name in names], dtype="<i8"),
        **{name: np.concatenate(parts) for name, parts in columns.items()},
        "hashes": np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 32),
        "_names": np.frombuffer(b"".join(names), np.uint8),
    }

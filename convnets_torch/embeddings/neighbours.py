"""Nearest neighbours: exact search in memory-mapped vectors, and approximate search by LanceDB.

Exact search reads a copy of the table's vectors in the user's own cache, never in the folder of the index, which may be
a stranger's. The copy records the state of the table that it was made from, and is rebuilt when the table has changed.
For a local folder the state is a hash of names, sizes and times of its manifests, of which LanceDB adds one per commit,
so checking it imports neither LanceDB, which takes a second or two, nor torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from convnets_torch.embeddings.index_table import (
    GOOD,
    TABLE,
    About,
    IndexWarning,
    PictureTable,
    is_local,
    refusing,
    values_of,
)
from convnets_torch.files import cache_folder, check_own_folder, make_folder, open_own, replacing, resolved
from convnets_torch.safetensors_io import DTYPES, header_bytes, header_of_opened, map_arrays
from convnets_torch.text import check_choice

Metric: TypeAlias = Literal["cosine", "l2", "dot"]

SCORES = 1 << 24  # maximum number of scores in memory
ASKED = 256  # queries that a recall is measured with
SPARE = 16  # candidates beyond k whose scores are recomputed in float64


def lengths_of(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the L2 norms (N,) of vectors (N, values)."""
    return np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)).astype(np.float32)


def nearest(
    vectors: NDArray[np.float32],
    queries: NDArray[np.float32],
    k: int,
    metric: Metric = "cosine",
    *,
    lengths: NDArray[np.float32] | None = None,
    allowed: NDArray[np.bool_] | None = None,
    left_out: list[NDArray[np.int64]] | None = None,
) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Find the k nearest vectors to each query by exact search.

    Scores are first computed in float32, which cannot tell nearly equal vectors apart; the best k + 16 candidates are
    then compared in float64.

    Args:
        vectors: (N, values); may be memory-mapped. They are read once per block of queries with up to 16 million
            scores.
        queries: (Q, values).
        k: number of results per query; fewer if there are not enough vectors.
        metric: "cosine", the cosine similarity, 0 for a zero vector; "dot", the dot product; "l2", the Euclidean
            distance.
        lengths: (N,), L2 norms of the vectors, if known.
        allowed: (N,), mask of vectors to search; all by default.
        left_out: rows to exclude, for each query.

    Returns:
        For each query (rows, scores), the nearest first: the largest cosines or products, the smallest distances. Ties
        are in row order.

    Raises:
        ValueError: the metric is unknown, k is below 1, or the sizes of vectors and queries differ.

    >>> vectors = np.array([[1, 0], [3, 4], [0, 2]], np.float32)
    >>> [(rows, scores)] = nearest(vectors, np.array([[0, 1]], np.float32), 2)
    >>> rows.tolist(), scores.tolist()
    ([2, 1], [1.0, 0.8])
    """
    check_choice(metric, get_args(Metric), "metric")
    if k < 1:
        raise ValueError(f"k must be 1 or more, got {k}")
    if vectors.shape[1] != queries.shape[-1] or queries.ndim != 2:
        raise ValueError(f"queries are {queries.shape}, but the vectors have {vectors.shape[1]} values each")
    queries = np.ascontiguousarray(queries, np.float32)
    left_out = left_out or [np.zeros(0, np.int64)] * len(queries)
    if lengths is None and metric != "dot":
        lengths = lengths_of(vectors)
    together = max(1, SCORES // max(1, len(vectors)))
    found = []
    for start in range(0, len(queries), together):
        block = queries[start : start + together]
        scores = _scores(vectors, block, metric, lengths)  # (N,) or (N, Q), larger is nearer
        for place in range(len(block)):
            column = scores if scores.ndim == 1 else np.ascontiguousarray(scores[:, place])
            if allowed is not None:
                column[~allowed] = -np.inf
            column[left_out[start + place]] = -np.inf
            found.append(_best(vectors, block[place], column, k, metric))
    return found


def _scores(
    vectors: NDArray[np.float32], queries: NDArray[np.float32], metric: Metric, lengths: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    products: NDArray[np.float32] = vectors @ (queries[0] if len(queries) == 1 else queries.T)
    if metric == "dot":
        return products
    assert lengths is not None
    known = lengths if products.ndim == 1 else lengths[:, None]
    if metric == "cosine":
        products /= np.maximum(known, np.float32(1e-30))  # the query's length does not change the order
    else:
        products *= 2
        products -= known * known
    return products


def _best(
    vectors: NDArray[np.float32], query: NDArray[np.float32], scores: NDArray[np.float32], k: int, metric: Metric
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the k best rows and their scores, recomputed in float64."""
    most = min(len(scores), k + SPARE)
    rows = np.sort(np.argpartition(scores, len(scores) - most)[len(scores) - most :])
    rows = rows[np.isfinite(scores[rows])]
    return _ranked(vectors, rows, query, k, metric)


def _ranked(
    vectors: NDArray[np.float32], rows: NDArray[np.int64], query: NDArray[np.float32], k: int, metric: Metric
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the k best of some rows and their scores in float64."""
    scores = exact_scores(np.asarray(vectors[rows], np.float64), query.astype(np.float64), metric)
    order = np.argsort(scores if metric == "l2" else -scores, kind="stable")[:k]
    return rows[order], scores[order]


def exact_scores(vectors: NDArray[np.float64], query: NDArray[np.float64], metric: Metric) -> NDArray[np.float64]:
    """Return the metric between each vector and the query; its bits do not depend on the other vectors."""
    if metric == "l2":
        return np.asarray(np.linalg.norm(vectors - query, axis=1))
    products = np.einsum("ij,j->i", vectors, query)  # a matrix product depends on the number of rows
    if metric == "dot":
        return products
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
    return np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)


def recall_of(whole: NDArray[np.float32], kept: NDArray[np.float32], k: int = 10) -> float:
    """Return which share of the k nearest by cosine of whole vectors (N, values) is also found by those kept."""
    asked = np.linspace(0, len(whole) - 1, min(ASKED, len(whole))).astype(int)
    own = [np.array([row]) for row in asked]
    right, found = (nearest(each, each[asked], k, left_out=own) for each in (whole, kept))
    same = sum(len(np.intersect1d(one[0], other[0])) for one, other in zip(right, found, strict=True))
    return same / max(1, sum(len(rows) for rows, _ in right))


MOST_CACHED = 100_000_000  # rows
SMALL = {"lengths": "<f4", "class_ids": "<i4", "probabilities": "<f4"}
CACHE_SCHEMA = "3"  # version of the cache file
HEADER = 2048  # maximum bytes of names, dtypes and offsets of the arrays


@dataclass(frozen=True, eq=False)
class Vectors:
    """The searchable vectors of an index and their metadata; the arrays are read-only.

    Attributes:
        vectors: (N, values) float32.
        lengths: (N,) float32, L2 norms of the vectors.
        class_ids: (N,) int32, top class, or -1 if unknown.
        probabilities: (N,) float32, probability of the top class, or NaN if unknown.
        hashes: (N, 32) uint8, sha256 of the files.
        first: (N,) int64, first row with the same content; a picture with several paths has several rows.
    """

    vectors: NDArray[np.float32]
    lengths: NDArray[np.float32]
    class_ids: NDArray[np.int32]
    probabilities: NDArray[np.float32]
    hashes: NDArray[np.uint8]
    first: NDArray[np.int64]
    _names: NDArray[np.uint8]  # concatenated paths in UTF-8
    _ends: NDArray[np.int64]  # end offset of each path

    def __len__(self) -> int:
        return len(self._ends)

    def path(self, row: int) -> str:
        """Return the path of a row."""
        start = int(self._ends[row - 1]) if row else 0
        return self._names[start : int(self._ends[row])].tobytes().decode()

    def paths(self) -> list[str]:
        """Return the paths of all rows."""
        names, start, found = self._names.tobytes(), 0, []
        for end in self._ends.tolist():
            found.append(names[start:end].decode())
            start = end
        return found

    def row_of(self, path: str) -> int | None:
        """Return the row of a path, or None."""
        name = np.frombuffer(path.encode("utf-8", "surrogateescape"), np.uint8)
        rows = np.flatnonzero(np.diff(self._ends, prepend=0) == len(name))
        for back in range(1, len(name) + 1):  # from the end, where paths differ most
            rows = rows[self._names[self._ends[rows] - back] == name[-back]]
        return int(rows[0]) if len(rows) else None

    def rows_with(self, sha256: str) -> NDArray[np.int64]:
        """Return the rows of files with this content."""
        wanted = np.frombuffer(bytes.fromhex(sha256), np.uint8)
        some = np.flatnonzero((self.hashes[:, :4] == wanted[:4]).all(1))
        return some[(self.hashes[some] == wanted).all(1)]


def cache_file(address: str) -> Path | None:
    """Return the cache file for the vectors of an index, or None for an index in memory."""
    if address.startswith("memory:"):
        return None
    name = hashlib.sha256(_absolute_address(address).encode()).hexdigest()[:24]
    return cache_folder() / "vectors" / f"{name}.cache"


def _absolute_address(address: str) -> str:
    """Return an address that does not depend on the working directory."""
    return str(resolved(address)) if is_local(address) else address


def state_of(address: str, table: PictureTable | None = None) -> str:
    """Return a text that changes with every change of the table; remote addresses need the open `table`."""
    if not is_local(address):
        return "" if table is None else f"{table.about.made} version {table.version}"
    manifests = []
    with contextlib.suppress(OSError):
        for manifest in sorted((Path(address) / f"{TABLE}.lance" / "_versions").glob("*.manifest")):
            state = manifest.stat()
            manifests.append((manifest.name, state.st_size, state.st_mtime_ns))
    return hashlib.sha256(json.dumps(manifests).encode()).hexdigest()


def read_cache(address: str, state: str) -> tuple[About, Vectors] | None:
    """Return the cached vectors of a table in this state, or None if they are missing, outdated or damaged."""
    place = cache_file(address)
    if place is None or not place.exists():
        return None
    check_own_folder(place.parent)
    try:
        with open_own(place) as file:
            header = header_of_opened(file, place)
            metadata = header["__metadata__"]
            made_from = metadata["schema"], metadata["state"], metadata["address"]
            if made_from != (CACHE_SCHEMA, state, _absolute_address(address)):
                return None
            about = About.from_json(metadata["about"])
            vectors = Vectors(**map_arrays(file, header, [field.name for field in fields(Vectors)]))
            _check(vectors, about.width)
    except (ValueError, KeyError, TypeError):
        return None
    _warn_left_out(address, int(metadata["left_out"]))
    return about, vectors


def _check(vectors: Vectors, width: int) -> None:
    """Raise ValueError if cached arrays are damaged."""
    rows = len(vectors)
    shapes = {"vectors": (rows, width), "hashes": (rows, 32), "_names": (int(vectors._ends.max(initial=0)),)}
    if any(array.shape != shapes.get(name, (rows,)) for name, array in vars(vectors).items()):
        raise ValueError("its arrays have different lengths")
    if ((vectors.first < 0) | (vectors.first > np.arange(rows))).any():
        raise ValueError("its rows refer to rows that do not exist")


def _warn_left_out(address: str, left_out: int) -> None:
    if left_out:
        warnings.warn(
            f"{address}: left out {left_out} of its rows, whose path, sha256, class, probability or vector is invalid;"
            " create the index again",
            IndexWarning,
            stacklevel=4,
        )


def write_cache(table: PictureTable, state: str) -> Vectors:
    """Cache the vectors of a table and return them memory-mapped; those of a table in memory stay in memory.

    `state` is from before the table was opened: a commit in between makes the cache outdated, not wrong.
    """
    table.check_room()
    if (rows := table.count()) > MOST_CACHED:
        raise ValueError(
            f"{table.address} has {rows:,} rows, more than the {MOST_CACHED:,} that are copied to one machine; search"
            " it where it lies (scan, --scan)"
        )
    place = cache_file(table.address)
    if place is None:
        blocks: list[NDArray[np.float32]] = [np.zeros((0, table.about.width), np.float32)]
        arrays, left_out = _read(table, lambda block: blocks.append(block.copy()))
        _warn_left_out(table.address, left_out)
        return Vectors(vectors=np.concatenate(blocks), **arrays)
    try:
        make_folder(cache_folder(), "vectors")
    except OSError as error:
        if not error.strerror:
            raise
        raise OSError(
            f"{place.parent} cannot be created ({error.strerror}), and search caches vectors there; set"
            " CONVNETS_TORCH_HOME to a folder of yours"
        ) from None
    check_own_folder(place.parent)
    _remove_orphans(place.parent)
    metadata = {"schema": CACHE_SCHEMA, "state": state}
    metadata |= {"address": _absolute_address(table.address), "about": table.about.to_json()}
    with replacing(place) as temporary, temporary.open("wb") as file:
        room = HEADER + len(json.dumps(metadata))
        room += -room % 64
        file.seek(8 + room)
        arrays, left_out = _read(table, lambda block: file.write(block.data))
        layout = {"vectors": ("F32", (len(arrays["_ends"]), table.about.width))}
        for name, array in arrays.items():
            layout[name] = next(kind for kind, numbers in DTYPES.items() if numbers == array.dtype.str), array.shape
            file.write(np.ascontiguousarray(array).data)
        file.seek(0)
        file.write(header_bytes(layout, metadata | {"left_out": str(left_out)}, spaces=True, room=room))
    found = read_cache(table.address, state)
    if found is None:
        raise OSError(f"{place} was changed while it was written; search again")
    return found[1]


def _remove_orphans(folder: Path) -> None:
    """Delete cached vectors of folders without an index, and those of older versions."""
    for place in folder.glob("*.cache"):
        try:
            with open_own(place) as file:
                address = header_of_opened(file, place)["__metadata__"]["address"]
            if is_local(address) and not (Path(address) / f"{TABLE}.lance").is_dir():
                place.unlink(missing_ok=True)
        except (OSError, ValueError, KeyError, TypeError):
            with contextlib.suppress(OSError):
                place.unlink(missing_ok=True)


def _read(table: PictureTable, take: Callable[[NDArray[np.float32]], object]) -> tuple[dict[str, NDArray[Any]], int]:
    """Return the small columns and the number of invalid rows; pass the vectors to `take` in blocks."""
    columns: dict[str, list[NDArray[Any]]] = {name: [np.zeros(0, kind)] for name, kind in SMALL.items()}
    hashes, names = [], []
    left_out = 0
    for batch in table.read(("path", "sha256", "class_id", "probability", "vector"), GOOD):
        sound = table.is_sound(batch)
        left_out += int((~sound).sum())
        if not sound.any():
            continue
        if not sound.all():
            batch = batch.filter(sound)
        block = values_of(batch["vector"], table.about.width)
        take(block)
        columns["lengths"].append(lengths_of(block).astype("<f4"))
        columns["class_ids"].append(batch["class_id"].fill_null(-1).to_numpy(zero_copy_only=False))
        columns["probabilities"].append(batch["probability"].fill_null(np.nan).to_numpy(zero_copy_only=False))
        hashes.append(bytes.fromhex("".join(batch["sha256"].to_pylist())))
        names += [name.encode() for name in batch["path"].to_pylist()]
    contents = np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 32)
    arrays = {
        "_ends": np.cumsum([len(name) for name in names], dtype="<i8"),
        **{name: np.concatenate(parts) for name, parts in columns.items()},
        "hashes": contents,
        "first": _first(contents),
        "_names": np.frombuffer(b"".join(names), np.uint8),
    }
    return arrays, left_out


def _first(hashes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return for each row (N,) the first row with the same content."""
    first = np.arange(len(hashes), dtype="<i8")
    starts = np.ascontiguousarray(hashes[:, :8]).view("<u8").reshape(-1)
    order = np.argsort(starts)
    again = order[np.flatnonzero(np.diff(starts[order]) == 0)[:, None] + (0, 1)]
    seen: dict[bytes, int] = {}
    for row in np.unique(again).tolist():
        first[row] = seen.setdefault(hashes[row].tobytes(), row)
    return first


LEAST = 256  # vectors needed to train the approximate index
ROWS_IN_PART = 4096  # approximate rows per IVF partition
PROBED = 20, 0.01  # partitions searched: at least so many, and this share
REFINED = 10  # times k candidates are reranked by their exact vectors


def approximate_nearest(
    held: Vectors,
    table: PictureTable,
    queries: NDArray[np.float32],
    k: int,
    metric: Metric,
    class_ids: tuple[int, ...] | None,
    left_out: list[NDArray[np.int64]],
    refine: int = REFINED,
) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Approximate `nearest` by LanceDB's vector index, which is created if missing."""
    if len(held) < LEAST:
        raise ValueError(
            f"{table.address} has {len(held)} vectors, and approximate search needs {LEAST} or more; search exactly"
        )
    make_index(table, metric, len(held))
    probes = probed_of(len(held))
    places = {path: row for row, path in enumerate(held.paths())}
    found = []
    where = GOOD if class_ids is None else f"{GOOD} AND class_id IN ({', '.join(map(str, class_ids))})"
    for query, others in zip(queries, left_out, strict=True):
        rows, limit = np.zeros(0, np.int64), k + 1
        while True:
            batches = table.nearest(query, metric, where, limit, probes, refine, ["path"])
            paths = [path for batch in batches for path in batch["path"].to_pylist()]
            rows = np.array([places[path] for path in paths if path in places], np.int64)
            rows = np.array(list(dict.fromkeys(held.first[rows].tolist())), np.int64)  # drop copies
            rows = rows[~np.isin(rows, others)][:k]
            if len(rows) == k or len(paths) < limit:
                break
            limit *= 2
        found.append(_ranked(held.vectors, rows, query, k, metric))
    return found


def make_index(table: PictureTable, metric: Metric, count: int) -> None:
    """Create the approximate index for a metric, replacing one for another metric, unless it exists."""
    from lancedb.index import IvfPq

    if table.has_index(metric):
        return
    with refusing(table.address):
        config = IvfPq(distance_type=metric, num_partitions=partitions_for(count))
        table.table.create_index("vector", config=config, replace=True)


def partitions_for(rows: int) -> int:
    """Return the number of IVF partitions of so many rows: a few thousand in each, and then the square root.

    >>> partitions_for(300), partitions_for(10**6), partitions_for(10**9)
    (1, 244, 31623)
    """
    return max(1, min(rows // ROWS_IN_PART, round(rows**0.5)))


def probed_of(rows: int) -> int:
    """Return how many partitions are searched."""
    least, share = PROBED
    return max(least, round(share * partitions_for(rows)))

"""Time of index search, against FAISS and LanceDB's own search (`benchmark.py search`).

Vectors are synthetic: clusters with zeros, as after a ReLU. All three search the same vectors for the same queries,
each in its own process.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scripts.benchmarks.processes import Program
    from scripts.benchmarks.rounds import Result

SIZES = ((100_000, 512), (100_000, 2048))  # (pictures, values of a vector)
K = 12
QUERIES = (1, 32)
PART = 10_000  # rows generated at once


def make_index(address: Path, count: int, width: int) -> None:
    """Make an index of synthetic vectors, without files."""
    from convnets_torch.card import Card
    from convnets_torch.embeddings.index_table import About, PictureTable
    from convnets_torch.embeddings.search import Index
    from convnets_torch.images.preprocessing import preset

    card = Card("vgg16", {"classes": 1000}, preset("vgg16"), "imagenet-1k")
    table = PictureTable.create(str(address), About("made", card.to_json(), None, "avg", "", width))
    chance = np.random.default_rng(0)
    centres = chance.standard_normal((count // 50, width), np.float32)
    for start in range(0, count, PART):
        some = centres[chance.integers(0, len(centres), min(PART, count - start))]
        vectors = np.maximum(some + 0.5 * chance.standard_normal(some.shape, np.float32), 0)
        table.put([_row(start + number, vector) for number, vector in enumerate(vectors)])
    table.optimize()
    assert len(Index.open(address).vectors) == count


def _row(number: int, vector: NDArray[np.float32]) -> dict[str, object]:
    path = f"/made/{number:08}.jpg"
    content = hashlib.sha256(path.encode()).hexdigest()
    known = {"path": path, "sha256": content, "size": 1, "modified": 1, "vector": vector, "class_id": number % 1000}
    return known | {"probability": 0.5, "thumbnail": None, "error": None, "vanished": False}


def ours(address: Path, queries: int) -> Program:
    """`nearest` over the mapped file, as `Index.search` calls it."""
    from convnets_torch.embeddings.neighbours import nearest
    from convnets_torch.embeddings.search import Index

    held = Index.open(address).vectors
    asked = np.array(held.vectors[:queries])
    return lambda: nearest(held.vectors, asked, K, lengths=held.lengths)


def faiss_flat(address: Path, queries: int) -> Program:
    """FAISS's exact index of the normalised vectors, in memory."""
    import faiss

    from convnets_torch.embeddings.search import Index

    vectors = np.array(Index.open(address).vectors.vectors)
    faiss.normalize_L2(vectors)
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    asked = vectors[:queries].copy()
    del vectors
    return lambda: flat.search(asked, K)


def lancedb_flat(address: Path, queries: int) -> Program:
    """LanceDB's own search without a vector index, one query after another."""
    from convnets_torch.embeddings.index_table import PictureTable
    from convnets_torch.embeddings.search import Index

    table = PictureTable.open(str(address)).table
    asked = np.array(Index.open(address).vectors.vectors[:queries])

    def search() -> None:
        for query in asked:
            flat = table.search(query).distance_type("cosine").bypass_vector_index()
            flat.select(["path", "_distance"]).limit(K).to_arrow()

    return search


def measure_search(folder: Path, rounds: int) -> list[Result]:
    """Measure exact, warm search: ours against FAISS flat and LanceDB flat."""
    from scripts.benchmarks.processes import alternating, started
    from scripts.benchmarks.rounds import compared

    results: list[Result] = []
    for count, width in SIZES:
        address = folder / f"{count}x{width}.lance"
        make_index(address, count, width)
        for queries in QUERIES:
            peers: dict[str, Callable[[], Program]] = {
                "ours": partial(ours, address, queries),
                "FAISS IndexFlatIP": partial(faiss_flat, address, queries),
            }
            if queries == 1:
                peers["LanceDB without an index"] = partial(lancedb_flat, address, queries)
            with started(peers) as timers:
                seconds = alternating(timers, rounds)
            work = f"{K} nearest of {count:,} x {width} to {queries}"
            mine = seconds.pop("ours")
            results += [compared(work, peer, mine, theirs) for peer, theirs in seconds.items()]
        shutil.rmtree(address)
    return results

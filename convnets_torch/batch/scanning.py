"""Exact search past one machine: processes of a Ray cluster read the fragments of an index, and the hits are merged."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from convnets_torch.batch.fragments import absolute, opened
from convnets_torch.batch.fragments import refused_by_lance as refused
from convnets_torch.batch.ray_actors import connect, ray_module
from convnets_torch.embeddings.index_table import GOOD, PictureTable
from convnets_torch.embeddings.scanning import COLUMNS, Hits, Question, Scan, hits_in, merged

ROWS = 4096  # that are read at a time


def scan_on_ray(address: str | None = None, workers: int | None = None) -> Scan:
    """Return what `Index.scan` may be, so that a search in place is divided among processes of a Ray cluster.

    Args:
        address: of the cluster, as for `run`.
        workers: number of processes; by default one for each CPU of the cluster.

    Raises:
        ImportError: Ray or pylance is not installed; raised when it is called, as ConnectionError if there is no
            cluster.
    """

    def scan(table: PictureTable, question: Question) -> Hits:
        index = absolute(table.address)
        data = opened(index)
        ids = [fragment.fragment_id for fragment in data.get_fragments()]
        ray = ray_module()
        mine = not ray.is_initialized()
        connect(address)
        try:
            count = max(1, min(workers or int(ray.cluster_resources().get("CPU", 1)), len(ids)))
            work = ray.remote(scan_fragments).options(num_cpus=1)
            parts = [work.remote(index, data.version, ids[first::count], question) for first in range(count)]
            return merged(ray.get(parts), question)
        except ray.exceptions.RayTaskError as error:
            raise OSError(" ".join(str(error.cause).split())) from None
        finally:
            if mine:
                with contextlib.suppress(Exception):
                    ray.shutdown()

    return scan


def scan_fragments(index: str | os.PathLike[str], version: int, ids: list[int], question: Question) -> Hits:
    """Return the nearest among some fragments of a version of an index."""
    name = os.fspath(index)
    table, data = PictureTable.open(name), opened(name, version)

    def batches() -> Iterator[Any]:
        for number in ids:
            with refused(name):
                rows = data.get_fragment(number).to_batches(columns=list(COLUMNS), filter=GOOD, batch_size=ROWS)
                yield from rows

    return hits_in(table, batches(), question)

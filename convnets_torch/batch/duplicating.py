"""Find the near-duplicates of an index with any number of processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from convnets_torch.batch.jobs import FAILED, part_name
from convnets_torch.batch.pairs import plan_pairs
from convnets_torch.batch.running import Executor, run
from convnets_torch.batch.working import TRIES, Event
from convnets_torch.embeddings.duplicates import DuplicateGroup
from convnets_torch.embeddings.search import Index


def duplicates(
    index: str | os.PathLike[str],
    threshold: float,
    job: str | os.PathLike[str],
    *,
    side: int | None = None,
    executor: Executor = "auto",
    address: str | None = None,
    workers: int | None = None,
    cpus: int | None = None,
    tries: int = TRIES,
    progress: Callable[[Event], None] | None = None,
) -> list[DuplicateGroup]:
    """Group the files of an index that are nearly the same, as `Index.duplicates` does, with any number of processes.

    All pairs are compared, in squares of the similarity matrix, each of which becomes a file in the job's folder. So it
    may be interrupted at any moment and called again, in as many processes as there are. Each machine keeps a copy of
    the vectors in its cache.

    Args:
        index: address of the index.
        threshold: cosine similarity of near-duplicates, above 0 and at most 1.
        job: folder or address for the files, which all processes see; the same call, and no other, may use it again.
        side: rows of a square, a multiple of 4096; by default so many that there are at most 20,100 squares.
        executor, address, workers, cpus, tries, progress: as for `batch.run`.

    Returns:
        The groups.

    Raises:
        OSError: there is no such index, a store does not answer, or a file cannot be written.
        ValueError: the threshold or the side is out of range; the folder holds another work; a file in it is damaged;
            or some squares failed, and the same call will try them again.
        ImportError: LanceDB, pyarrow or Ray is needed, but not installed.
    """
    opened = Index.open(Path(index) if isinstance(index, os.PathLike) else index)
    work = plan_pairs(job, opened, threshold, side)
    for shard in work.failed():
        work.folder.remove(f"{FAILED}/{part_name(shard)}.json")
    done = run(job, executor=executor, address=address, workers=workers, cpus=cpus, tries=tries, progress=progress)
    if done.failed or done.missing:
        reason = next(iter(done.failed.values()), "another process has not written them")
        raise ValueError(
            f"{len(done.failed) + done.missing} of {work.shards} squares of {work.folder} are missing ({reason}); run"
            " the same command again"
        )
    return opened.grouped(work.groups(), threshold)

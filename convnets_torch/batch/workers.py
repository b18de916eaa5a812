"""What computes the shards of a work, of whichever kind it is."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from dataclasses import replace
from typing import Protocol

from convnets_torch.batch.jobs import Job, Work, read_facts
from convnets_torch.batch.pairs import KIND as PAIRS
from convnets_torch.batch.pairs import Comparer, Pairs
from convnets_torch.batch.segments import KIND as SEGMENTS
from convnets_torch.batch.segments import Builder, Segments
from convnets_torch.batch.working import Computer, Event, Running, Shards
from convnets_torch.images.stores import Folder


class Worker(Protocol):
    """Computes shards in this process."""

    def compute(self, shards: Iterable[int]) -> Generator[Event, None, None]:
        """Compute the shards whose parts are not there yet; yield an event for each."""


def work_at(address: str | os.PathLike[str]) -> Work:
    """Open a work.

    Raises:
        OSError, ValueError: as `Job.open`.
    """
    folder = Folder(address)
    facts = read_facts(folder)
    kind = None if facts is None else facts.get("kind")
    if facts is not None and kind == SEGMENTS:
        return Segments(folder, facts)
    return Pairs(folder, facts) if facts is not None and kind == PAIRS else Job.open(address)


def worker_of(work: Work, running: Running, device: str | None = None) -> Worker:
    """Return what computes the shards of a work here; for a job it loads the network, on a device if one is named."""
    if isinstance(work, Segments):
        return Builder(work, running)
    if isinstance(work, Pairs):
        return Comparer(work)
    assert isinstance(work, Job)
    placed = replace(running, device=device or running.device)
    weights = running.weights or work.facts["weights"]
    return Shards(work, Computer(weights, work.options, placed, work.facts["identity"]["weights"]), running)

"""Distributed training with `torchrun`; a single process is a group of one."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed

TIMEOUT = timedelta(hours=1)  # of collective operations; some processes may be slower, e.g. with a slow disk

IGNORED_WARNINGS = (  # of PyTorch, which users can ignore
    "`broadcast_buffers` is deprecated",  # its replacement is much newer than PyTorch 2.6
    "Grad strides do not match bucket view strides",
)


@dataclass(frozen=True)
class Group:
    """A process and its process group.

    Attributes:
        rank: of this process, from 0; rank 0 writes files and reports.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def share(self, items: range) -> range:
        """Return this process's items: every `size`-th one.

        >>> [list(Group(rank, 2).share(range(5))) for rank in (0, 1)]
        [[0, 2, 4], [1, 3]]
        """
        return items[self.rank :: self.size]

    def total(self, values: Tensor) -> Tensor:
        """All-reduce: sum over all processes, in place."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def from_first(self, values: Tensor) -> Tensor:
        """Broadcast the values of rank 0 to all processes, in place."""
        if self.size > 1:
            distributed.broadcast(values, 0)
        return values

    def texts(self, text: str, device: torch.device) -> list[str]:
        """All-gather a text from each process, ordered by rank."""
        if self.size == 1:
            return [text]
        mine = torch.tensor([*text.encode()], dtype=torch.uint8)
        lengths = torch.zeros(self.size, dtype=torch.int64)
        lengths[self.rank] = len(mine)
        lengths = self.total(lengths.to(device)).cpu()
        rows = torch.zeros(self.size, int(lengths.max()), dtype=torch.uint8)
        rows[self.rank, : len(mine)] = mine
        rows = self.total(rows.to(device)).cpu()
        return [bytes(row[:length].tolist()).decode() for row, length in zip(rows, lengths, strict=True)]

    def wait(self) -> None:
        """Barrier: wait for all processes."""
        if self.size > 1:
            distributed.barrier()


def local_device() -> str | None:
    """Return the device of this process if `torchrun` started it, otherwise None."""
    if "LOCAL_RANK" not in os.environ:
        return None
    return f"cuda:{os.environ['LOCAL_RANK']}" if torch.cuda.is_available() else "cpu"


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Group]:
    """Join the process group that `torchrun` sets up in the environment, or one already joined; else a group of one.

    Args:
        device: of this process; CUDA uses NCCL, the CPU gloo.

    Raises:
        ConnectionError: another process was lost.
    """
    mine = not distributed.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if mine:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        together = distributed.is_available() and distributed.is_initialized()
        with warnings.catch_warnings():
            for message in IGNORED_WARNINGS:
                warnings.filterwarnings("ignore", message)
            yield Group(distributed.get_rank(), distributed.get_world_size()) if together else Group()
    except RuntimeError as error:
        if not isinstance(error, distributed.DistBackendError) and "gloo" not in str(error):
            raise
        raise ConnectionError(
            "another process of this training ended or cannot be reached; see its output, and continue with --resume"
        ) from error
    finally:
        if mine:
            distributed.destroy_process_group()

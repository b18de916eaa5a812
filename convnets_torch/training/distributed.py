"""Processes that train together, as `torchrun` starts them; a process by itself is a group of one."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed

PATIENCE = timedelta(hours=1)  # for processes whose share of the work takes longer, such as pictures on a slow disk

REMARKS = (  # of PyTorch on its own inner ways, which say nothing to who trains
    "`broadcast_buffers` is deprecated",  # its successor came long after PyTorch 2.6
    "Grad strides do not match bucket view strides",
)


@dataclass(frozen=True)
class Group:
    """One process of those that train together.

    Attributes:
        rank: its number, from 0; the first one writes and reports.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def share(self, items: range) -> range:
        """This process's items: every `size`-th one.

        >>> [list(Group(rank, 2).share(range(5))) for rank in (0, 1)]
        [[0, 2, 4], [1, 3]]
        """
        return items[self.rank :: self.size]

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, in each of them, in place."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def from_first(self, values: Tensor) -> Tensor:
        """What the first process has, in each of them, in place."""
        if self.size > 1:
            distributed.broadcast(values, 0)
        return values

    def texts(self, text: str, device: torch.device) -> list[str]:
        """What each process says, in their order."""
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
        """Until all processes are here."""
        if self.size > 1:
            distributed.barrier()


def local_device() -> str | None:
    """The device of this process among those that `torchrun` started on a machine; None for a process by itself."""
    if "LOCAL_RANK" not in os.environ:
        return None
    return f"cuda:{os.environ['LOCAL_RANK']}" if torch.cuda.is_available() else "cpu"


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Group]:
    """The group that `torchrun` names in the environment, or that was already joined; else this process alone.

    Args:
        device: where this process trains: NCCL connects those on CUDA, gloo those on the CPU.

    Raises:
        ConnectionError: another process was lost.
    """
    mine = not distributed.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if mine:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        together = distributed.is_available() and distributed.is_initialized()
        with warnings.catch_warnings():
            for remark in REMARKS:
                warnings.filterwarnings("ignore", remark)
            yield Group(distributed.get_rank(), distributed.get_world_size()) if together else Group()
    except RuntimeError as error:
        if not isinstance(error, distributed.DistBackendError) and "gloo" not in str(error):
            raise
        raise ConnectionError(
            "another process of this training ended or cannot be reached; see what it said, and go on with --resume"
        ) from error
    finally:
        if mine:
            distributed.destroy_process_group()

"""Networks in processes that were forked: GNU's OpenMP cannot go on there with the threads of the parent."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import torch

TASKS = Path("/proc/self/task")  # the threads of this process, on Linux

_started = False  # whether there were threads other than Python's when the process was last forked


def watch_forks() -> None:
    """From now on, have forked processes run PyTorch in one thread if the parent had begun to run it in several.

    They would wait for ever otherwise, for threads that a fork does not take along; workers of a `DataLoader` do the
    same. Processes that fork before they run a network, as servers do, keep all threads.
    """
    os.register_at_fork(before=_look, after_in_child=_limit)


def _look() -> None:
    global _started
    _started = TASKS.exists() and len(list(TASKS.iterdir())) > threading.active_count()


def _limit() -> None:
    if _started and torch.get_num_threads() > 1:
        torch.set_num_threads(1)

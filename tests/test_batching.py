"""Batches that become smaller when memory runs out."""

from __future__ import annotations

import subprocess
import sys
import warnings
import weakref

import numpy as np
import pytest

from convnets_torch.inference.batching import MemoryWarning, batches_with_retry

# A process that may take 690 MB more than it has; an item takes 100 MB twice over, and 200 for its sum.
LIMITED = """
import resource, sys, warnings
import torch
from convnets_torch.inference.batching import batches_with_retry

taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 690_000_000, -1))
EACH = {each}

def run(items):
    values = torch.ones(len(items), EACH)
    return items, float((values + 1).sum(dtype=torch.float64)) / EACH

for items, total in batches_with_retry(run, count=7, batch=7):
    print(items.start, items.stop, total)
"""


def limited(each: int) -> subprocess.CompletedProcess[str]:
    code = LIMITED.replace("{each}", str(each))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory as Linux has them")
def test_a_batch_that_does_not_fit_is_halved_until_it_does():
    done = limited(25_000_000)
    assert done.returncode == 0, done.stderr
    rows = [list(map(float, line.split())) for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == [0, *(row[1] for row in rows[:-1])]  # every item once, in order
    assert rows[-1][1] == 7
    assert all(total == 2 * (stop - start) for start, stop, total in rows)
    assert 1 <= rows[0][1] <= 3
    assert "MemoryWarning: memory ran out for 7 at a time; going on with 3" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory as Linux has them")
def test_a_single_item_that_does_not_fit_is_an_error():
    done = limited(200_000_000)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "can't allocate memory" in done.stderr.splitlines()[-1]
    assert "going on with 1" in done.stderr


def test_other_errors_are_not_taken_for_want_of_memory():
    tried = []

    def run(items: range) -> None:
        tried.append(items)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        list(batches_with_retry(run, 8, 4))
    assert tried == [range(4)]


def test_nothing_of_a_failed_attempt_is_held_while_the_next_one_runs():
    attempts: list[weakref.ref[np.ndarray]] = []

    def run(items: range) -> int:
        values = np.zeros(len(items))
        attempts.append(weakref.ref(values))
        if len(items) == 4:
            raise MemoryError
        return sum(each() is not None for each in attempts)

    with pytest.warns(MemoryWarning, match="for 4 at a time; going on with 2"):
        assert list(batches_with_retry(run, 4, 4)) == [1, 1]


def test_a_batch_of_none_is_refused():
    with pytest.raises(ValueError, match="batch must be 1 or more, got 0"):
        next(batches_with_retry(list, 3, 0))


def test_no_items_are_no_work():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(batches_with_retry(list, 0, 4)) == []

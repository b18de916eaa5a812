"""Memory between layers is kept while a network runs, and only then."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from convnets_torch import allocation, prepare
from convnets_torch.allocation import kept_memory
from tests.conftest import NARROW

# Takes and frees memory, and prints how many MB of it stay with the process.
KEEPING = """
from pathlib import Path
import numpy as np
from convnets_torch.allocation import kept_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def stays(size):
    before = resident()
    np.empty(size, np.uint8).fill(1)
    return (resident() - before) // 1_000_000

first = stays(60_000_000)
with kept_memory():
    within, again = stays(60_000_000), stays(60_000_000)
print(first, within, again, stays(300_000_000))
"""


def kept(**environment):
    """MB that stay: of 60 outside, of 60 within, of 60 once more, of 300 outside again."""
    done = subprocess.run([sys.executable, "-c", KEEPING], env=environment, check=True, capture_output=True, text=True)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc takes the settings")
def test_memory_is_kept_within_and_given_back_outside():
    outside, within, again, outside_again = kept()
    assert outside < 5
    assert within > 55  # kept
    assert abs(again) < 5  # and used again
    assert abs(outside_again) < 5


def test_settings_of_the_environment_are_left_alone():
    assert max(map(abs, kept(MALLOC_MMAP_THRESHOLD_="131072"))) < 5


def test_prepared_networks_run_within(monkeypatch):
    ready = prepare(NARROW["vgg16"]().eval(), device="cpu", precision="float32")
    depths = []
    ready.features.register_forward_hook(lambda *_: depths.append(allocation._inside))
    with torch.inference_mode():
        ready(torch.randn(1, 3, 224, 224))
        assert depths == [1]
        with pytest.raises(ValueError, match="100"):
            ready(torch.randn(1, 3, 100, 100))
    assert allocation._inside == 0


def test_who_is_within_twice_leaves_with_the_last():
    with kept_memory():
        with kept_memory():
            pass
        assert allocation._inside == 1
    assert allocation._inside == 0

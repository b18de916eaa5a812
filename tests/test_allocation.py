"""Memory between layers is kept where a program asks for it, and nowhere else."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Takes and frees memory before and after, and prints how many MB of it stay with the process.
KEEPING = """
from pathlib import Path
import numpy as np
from convnets_torch.inference.allocation import keep_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def stays(size):
    before = resident()
    np.empty(size, np.uint8).fill(1)
    return (resident() - before) // 1_000_000

first = stays(60_000_000)
made = keep_memory()
print(first, int(made), stays(60_000_000), stays(60_000_000))
"""


def kept(**environment):
    """MB of 60 that stay before it was asked for; whether it was granted; MB of 60 that stay then, and once more."""
    done = subprocess.run([sys.executable, "-c", KEEPING], env=environment, check=True, capture_output=True, text=True)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc takes the settings")
def test_memory_is_kept_and_used_again():
    before, made, after, again = kept()
    assert before < 5
    assert made
    assert after > 55  # kept
    assert abs(again) < 5  # and used again


def test_settings_of_the_environment_are_left_alone():
    before, made, after, again = kept(MALLOC_MMAP_THRESHOLD_="131072")
    assert not made
    assert max(map(abs, (before, after, again))) < 5

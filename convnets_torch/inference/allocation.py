"""Keep freed memory for the next layer instead of returning it to the operating system."""

from __future__ import annotations

import ctypes
import os
import platform

KEPT = 1 << 30  # bytes of freed memory that the process keeps, and the largest block served from them
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # from glibc's malloc.h
OWN_SETTINGS = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_")


def keep_memory() -> bool:
    """Make the process keep up to 1 GiB of freed memory and reuse it for large tensors.

    By default each map between two layers is fresh memory, whose pages the operating system zeroes on first use; that
    takes up to a fifth of a network's time on the CPU. The setting is process-wide and permanent, so the library never
    makes it: call it at the start of a program, as the command line does for commands that run a network on many
    pictures of one size. Maps of very large pictures, in strips, take more memory with it. docs/speed.md has figures.

    Returns:
        Whether it was set: only glibc's malloc supports it, and existing malloc settings in the environment are
            respected.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in OWN_SETTINGS):
        return False
    malloc = ctypes.CDLL(None).mallopt
    return all([malloc(MMAP_THRESHOLD, KEPT), malloc(TRIM_THRESHOLD, KEPT), malloc(TOP_PAD, KEPT >> 4)])

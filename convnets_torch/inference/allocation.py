"""Memory between layers: kept for the next one instead of given back to the operating system and asked for anew."""

from __future__ import annotations

import ctypes
import os
import platform

KEPT = 1 << 30  # bytes of freed memory that stay with the process, and the largest block that is taken from them
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # numbers of glibc's malloc.h
OWN_SETTINGS = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_")


def keep_memory() -> bool:
    """From now on, have the process keep up to 1 GiB of the memory that it frees, and use it for large tensors.

    By default each map between two layers is fresh memory, whose pages the operating system fills with zeros as they
    are touched; that takes up to a fifth of the time of a network on the CPU. The setting is the whole process's and
    stays, so that the library never makes it: programs do, at their start, as the command line does for commands that
    run a network on many pictures of one size. Maps of very large pictures, in strips, take more memory with it.
    docs/speed.md has figures.

    Returns:
        Whether it was made: only glibc's malloc takes it, and settings of malloc in the environment are left alone.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in OWN_SETTINGS):
        return False
    malloc = ctypes.CDLL(None).mallopt
    return all([malloc(MMAP_THRESHOLD, KEPT), malloc(TRIM_THRESHOLD, KEPT), malloc(TOP_PAD, KEPT >> 4)])

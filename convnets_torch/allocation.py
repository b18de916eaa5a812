"""Memory between layers: kept for the next one instead of given back to the operating system and asked for anew."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import threading
from collections.abc import Callable, Iterator

KEPT = 1 << 30  # bytes of freed memory that stay with the process, and the largest block that is taken from them
USUAL = 32 << 20  # the largest such block otherwise: where glibc's malloc arrives by itself
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # its numbers, of malloc.h
OWN_SETTINGS = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_")

_lock = threading.Lock()
_inside = 0  # how many are within `kept_memory`, in all threads


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """Within it, large tensors come from memory that the process keeps, up to 1 GiB of it.

    By default each map between two layers is fresh memory, whose pages the operating system fills with zeros as they
    are touched; that takes up to a fifth of the time of a network. Only passes whose memory is all free at their end
    run within it: pieces that come and go would leave holes. It works with glibc's malloc, in the main thread; settings
    of malloc in the environment are left alone. docs/speed.md has what it gives.

    >>> with kept_memory():
    ...     maps = [bytes(40_000_000) for _ in range(3)]
    """
    enter()
    try:
        yield
    finally:
        leave()


def enter() -> None:
    """Begin what `kept_memory` does; each call needs one of `leave`."""
    _set(+1)


def leave() -> None:
    """End it."""
    _set(-1)


def _set(change: int) -> None:
    tell = _mallopt()
    if tell is None:
        return
    global _inside
    with _lock:
        before, _inside = _inside, _inside + change
        if before == 0:
            tell(MMAP_THRESHOLD, KEPT)
            tell(TRIM_THRESHOLD, KEPT)
            tell(TOP_PAD, KEPT >> 4)
        elif _inside == 0:
            tell(MMAP_THRESHOLD, USUAL)
            tell(TOP_PAD, 0)


@functools.cache
def _mallopt() -> Callable[[int, int], int] | None:
    """The function by which glibc's malloc takes settings; None of other C libraries, and where it has its own."""
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in OWN_SETTINGS):
        return None
    tell: Callable[[int, int], int] = ctypes.CDLL(None).mallopt
    return tell

"""End a command on SIGINT or SIGTERM: clean up first, exit at once if that takes too long, never print a traceback."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

GRACE = 10.0  # seconds from a signal until a command that hangs, for example in a decoder, is killed
AGAIN = 1.0  # seconds; a signal sooner after the last is the same one, sent to both the process and its group
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def end_on_signals() -> Iterator[None]:
    """Make Ctrl-C and SIGTERM end the block with exit codes 130 and 143, after temporary files have been removed.

    On a second signal, or if the process is still running 10 seconds later, it exits at once with the same code. A
    command that handles the first signal itself, as `finetune` does, gets one more. The handlers stay installed after
    the block, while Python shuts down, and then exit at once.
    """
    _over.clear()
    _watch()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # shells ignore Ctrl-C for background jobs
            signal.signal(number, _end)
    hook, sys.unraisablehook = sys.unraisablehook, _unraisable
    try:
        yield
    finally:
        sys.unraisablehook = hook
        _over.set()


_over = threading.Event()  # set once the command has finished


def _end(number: int, frame: FrameType | None) -> None:
    if _over.is_set():
        _leave(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


@functools.cache  # once per process
def _watch() -> None:
    """Start a thread that sees each signal: Python handlers do not run while the main thread is in C code."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=_forget)
    threading.Thread(target=_count, args=[reading], daemon=True, name="signals").start()


def _count(reading: int) -> None:
    count, last = 0, -AGAIN
    while received := os.read(reading, 1):
        number, now = received[0], time.monotonic()
        if number not in SIGNALS or now - last < AGAIN:
            continue
        if _over.is_set() and signal.getsignal(number) is not _end:  # the calling program has its own handlers
            continue
        count, last = count + 1, now
        late = count - (signal.getsignal(number) is not _end)
        if late > 1:
            _leave(number)
        if late == 1:
            timer = threading.Timer(GRACE, _leave, [number])
            timer.daemon = True
            timer.start()


def _forget() -> None:
    """Detach a forked child: its signals are not the parent's."""
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)


def _leave(number: int) -> None:
    """Exit silently; the next process removes temporary files left behind."""
    os._exit(128 + number)


def _unraisable(found: Any) -> None:
    """Ignore a signal's exception that a destructor swallowed (the timer ends the process); report all others."""
    if not isinstance(found.exc_value, SystemExit | KeyboardInterrupt):
        sys.__unraisablehook__(found)

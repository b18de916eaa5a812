"""How a command ends when it is told to: in order, and when that takes too long, at once; never with a traceback."""

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

GRACE = 10.0  # seconds from a signal until a command that hangs, in a decoder for instance, is left as it is
AGAIN = 1.0  # seconds; what comes sooner after a signal is the same one, sent to the process and to its group
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def ends_when_told() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the block in order, so that temporary files go, with the exit codes 130 and 143.

    When the process is still there after 10 seconds, or at a second signal, it leaves at once with the same code. A
    command that answers the first signal itself, as `finetune` does, has one more. The handlers stay after the block,
    when Python ends, and then leave at once.
    """
    _over.clear()
    _watch()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as shells ignore Ctrl-C for what runs in the background
            signal.signal(number, _end)
    hook, sys.unraisablehook = sys.unraisablehook, _unraisable
    try:
        yield
    finally:
        sys.unraisablehook = hook
        _over.set()


_over = threading.Event()  # the command has said all that it had to say


def _end(number: int, frame: FrameType | None) -> None:
    if _over.is_set():
        _leave(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


@functools.cache  # once in a process
def _watch() -> None:
    """Have a thread told of each signal: the main one may be in C, where handlers do not run."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=_forget)
    threading.Thread(target=_count, args=[reading], daemon=True, name="signals").start()


def _count(reading: int) -> None:
    count, last = 0, -AGAIN
    while told := os.read(reading, 1):
        number, now = told[0], time.monotonic()
        if number not in SIGNALS or now - last < AGAIN:
            continue
        if _over.is_set() and signal.getsignal(number) is not _end:  # of a program that ran a command and goes on
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
    """In a child, whose signals are not the parent's."""
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)


def _leave(number: int) -> None:
    """End the process without a word; what it leaves of temporary files the next one removes."""
    os._exit(128 + number)


def _unraisable(found: Any) -> None:
    """Be quiet of a signal's exception in a destructor or the like, which swallows it; the timer ends the process."""
    if not isinstance(found.exc_value, SystemExit | KeyboardInterrupt):
        sys.__unraisablehook__(found)

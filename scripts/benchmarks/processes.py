"""Time programs alternately, each in its own process.

In one process they would share process-wide settings: threads, and memory kept between layers. While one runs,
the others wait for a message.
"""

from __future__ import annotations

import multiprocessing
import random
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection

Program = Callable[[], object]


@contextmanager
def started(builders: dict[str, Callable[[], Program]]) -> Iterator[dict[str, Callable[[], float]]]:
    """Build each program and run it twice in its process; skip, with a message, those whose package is missing.

    Args:
        builders: each builds its program; they are pickled, so they must be module-level functions or
            partials of such. They raise ImportError if a package is missing.

    Returns:
        For each program a function that runs it once and returns its seconds.
    """
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        timers = {}
        for name, build in builders.items():
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(build, theirs), daemon=True)
            process.start()
            stack.callback(process.join)
            stack.callback(ours.close)
            theirs.close()
            answer = ours.recv()
            if isinstance(answer, str):
                print(f"{name}: left out ({answer})")
                continue
            timers[name] = _timer(ours)
        yield timers


def _timer(connection: Connection) -> Callable[[], float]:
    def seconds() -> float:
        connection.send("run")
        taken: float = connection.recv()
        return taken

    return seconds


def _serve(build: Callable[[], Program], connection: Connection) -> None:
    """Serve requests until the other end closes the pipe."""
    warnings.simplefilter("ignore")
    try:
        program = build()
    except ImportError as error:
        connection.send(str(error))
        return
    program()
    program()
    connection.send(None)
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        start = time.perf_counter()
        program()
        connection.send(time.perf_counter() - start)


def alternating(timers: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each program in each round, in a random order per two rounds, forward and back.

    The preceding program affects caches and memory, so no program should always follow the same one.
    """
    generator = random.Random(0)
    order = list(timers)
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for number in range(rounds):
        if number % 2:
            order.reverse()
        else:
            generator.shuffle(order)
        for name in order:
            seconds[name].append(timers[name]())
    return seconds

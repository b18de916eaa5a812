"""Programs that are timed in turn, each in a process of its own.

In one process they would share what they set for it all: threads, and how memory is kept between layers. While one runs
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
    """Each program built and run twice in its process; those whose package is missing are named and left out.

    Args:
        builders: each builds its program; they are sent to the processes, so they are functions of modules, or
            partials of such. ImportError where a package is missing.

    Returns:
        For each program a function that runs it once and gives its seconds.
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
    """What a process does until the other end is closed."""
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
    """Seconds of each program in each round, in an order drawn anew for every two rounds, forth and back.

    What ran just before leaves caches and memory behind, so none should always run after the same one.
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

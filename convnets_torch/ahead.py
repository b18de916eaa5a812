"""Many pictures one after another: which are meant, and work on the next ones that is done ahead in threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from math import prod
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from convnets_torch.arrays import is_tensor
from convnets_torch.files import open_file
from convnets_torch.images import stored_pixels

THREADS = min(16, os.cpu_count() or 1)  # that decode; Pillow frees them to run at once
UNKNOWN_PIXELS = 12_000_000  # of an open file, which nobody has looked into yet

Item = TypeVar("Item")
Done = TypeVar("Done")


def ahead(
    items: Iterable[Item],
    work: Callable[[Item], Done],
    *,
    most: int,
    threads: int = THREADS,
    size: Callable[[Item], int] = lambda item: 0,
    room: int = 0,
) -> Generator[tuple[Item, Done], None, None]:
    """Each item with its work done, in order; threads are ahead of whoever asks.

    Args:
        items: taken as they are needed.
        work: runs in a thread; never in two at once for the same item.
        most: items that threads are ahead by.
        threads: how many of them.
        size: how much an item takes while it waits.
        room: how much all of them may take; one alone may take more.

    Returns:
        A generator; its `close` drops what has not begun and waits for the threads.

    >>> list(ahead([3, 1, 2], lambda number: number**2, most=2))
    [(3, 9), (1, 1), (2, 4)]
    """
    executor = ThreadPoolExecutor(threads, "decode")
    rest = iter(items)
    running: deque[tuple[Item, int, Future[Done]]] = deque()
    held: list[tuple[Item, int]] = []  # the next one, taken but not begun
    taken = 0
    try:
        while True:
            while len(running) < most:
                if not held:
                    held.extend((item, size(item)) for item in _next(rest))
                if not held or (running and taken + held[0][1] > room):
                    break
                item, needed = held.pop()
                wait([future for other, _, future in running if other is item])  # no two threads in one image
                running.append((item, needed, executor.submit(work, item)))
                taken += needed
            if not running:
                return
            item, needed, future = running.popleft()
            taken -= needed
            yield item, future.result()
            del item, future  # whoever has the result may let go of it
    finally:
        executor.shutdown(cancel_futures=True)


def _next(items: Iterable[Item]) -> list[Item]:
    """The next of an iterator's items, or none."""
    for item in items:
        return [item]
    return []


def each_of(images: Any) -> Iterable[Any]:
    """The pictures that are given: a single one is a list of one."""
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray)
    one = isinstance(images, kinds) or is_tensor(images)
    return [images] if one or hasattr(images, "read") else images


def expected_pixels(image: object) -> int:
    """How many pixels a picture has, as far as it can be said without decoding it; 0 where it cannot be read."""
    if isinstance(image, Image.Image):
        return image.width * image.height
    if hasattr(image, "shape"):
        return prod(sorted(image.shape)[-2:])  # without the channels, wherever they are
    if not isinstance(image, str | os.PathLike):
        return UNKNOWN_PIXELS
    try:
        with open_file(image) as file:
            return stored_pixels(file)
    except OSError:
        return 0

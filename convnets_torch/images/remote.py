"""Pictures that have to be fetched, for example from an object store: fetch them ahead, in threads of their own."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Condition
from typing import TypeVar

FETCH_THREADS = 64  # they only wait, so more than there are cores
ROOM = 256 << 20  # bytes of pictures that are fetched and not yet decoded; a single one may have more
PIXELS_PER_BYTE = 8  # of a compressed picture, at most in most cases


def is_remote(address: str) -> bool:
    """Return whether an address is that of a store.

    >>> is_remote("s3://bucket/key"), is_remote("file:///srv/photos"), is_remote("photos/a.jpg")
    (True, False, False)
    """
    return re.match(r"[a-z][a-z0-9+.-]*://", address) is not None and not address.startswith("file://")


class TransportError(OSError):
    """A picture could not be fetched although it may be in order: no connection, a timeout, missing rights.

    It ends the run of `predict` and of all functions like it, where any other error is a row of that picture.

    Attributes:
        picture: the `RemotePicture`, if it is known.
    """

    picture: RemotePicture | None = None


class RemotePicture:
    """A picture that is fetched when it is decoded, or ahead of that by `fetched_ahead`.

    Args:
        name: its name in messages.
        fetch: returns the contents of the file. It runs in a thread. An OSError or ValueError becomes the picture's
            error; a `TransportError` ends the run.
        size: of the file in bytes, if known, otherwise 0.
    """

    def __init__(self, name: str, fetch: Callable[[], bytes], size: int = 0) -> None:
        self.name, self.size, self._fetch = name, size, fetch
        self._fetched: Future[bytes] | None = None
        self._room: _Room | None = None

    def content(self) -> bytes:
        """Return the contents of the file: fetch them, or wait until they are fetched.

        Raises:
            TransportError: they could not be fetched.
            OSError, ValueError: there is no such file, or it cannot be a picture.
        """
        try:
            return self._fetch() if self._fetched is None else self._fetched.result()
        except TransportError as error:
            error.picture = self
            raise
        finally:
            if self._room is not None:
                self._room.give_back(self.size)
                self._room = None

    @property
    def pixels(self) -> int | None:
        """An estimate of the number of pixels; None if the size of the file is not known."""
        return PIXELS_PER_BYTE * self.size or None

    def _start(self, executor: ThreadPoolExecutor, room: _Room) -> None:
        self._room, self._fetched = room, executor.submit(self._fetch)


class _Room:
    """Bytes that fetched pictures may take."""

    def __init__(self, most: int) -> None:
        self._most, self._taken, self._changed = most, 0, Condition()

    def take(self, size: int, *, wait: bool) -> bool:
        """Take room for a picture, after waiting for it if `wait`; return whether it was taken."""
        with self._changed:
            while self._taken and self._taken + size > self._most:
                if not wait:
                    return False
                self._changed.wait()
            self._taken += size
            return True

    def give_back(self, size: int) -> None:
        with self._changed:
            self._taken -= size
            self._changed.notify_all()


Fetched = TypeVar("Fetched", bound=RemotePicture)


def fetched_ahead(
    pictures: Iterable[Fetched], threads: int = FETCH_THREADS, room: int = ROOM
) -> Generator[Fetched, None, None]:
    """Yield the pictures in order, while threads fetch those that come next.

    Args:
        pictures: consumed lazily, twice as many ahead as there are threads.
        threads: number of pictures that are fetched at the same time.
        room: bytes of pictures that may be fetched and not yet decoded.

    Returns:
        A generator; closing it cancels what was not begun and waits for the threads.

    >>> import time
    >>> slow = [RemotePicture(str(number), lambda: time.sleep(0.1) or b"...") for number in range(20)]
    >>> start = time.monotonic()
    >>> sum(len(picture.content()) for picture in fetched_ahead(slow, threads=20)), time.monotonic() - start < 1
    (60, True)
    """
    if threads < 1:
        raise ValueError(f"fetch_threads must be 1 or more, got {threads}")
    executor = ThreadPoolExecutor(threads, "fetch")
    queue: deque[Fetched] = deque()
    following: list[Fetched] = []  # the next picture, if there was no room for it
    rest, held = iter(pictures), _Room(room)
    try:
        while True:
            while len(queue) < 2 * threads:
                if not following and (picture := next(rest, None)) is not None:
                    following.append(picture)
                if not following or not held.take(following[0].size, wait=not queue):
                    break
                queue.append(following.pop())
                queue[-1]._start(executor, held)
            if not queue:
                break
            yield queue.popleft()
    except BaseException:
        executor.shutdown(cancel_futures=True)
        raise
    executor.shutdown(wait=False)  # the last ones may still be waited for by those that decode them

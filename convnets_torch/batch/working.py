"""Compute shards: one endless stream of pictures through the network, whose rows are cut at the borders of shards."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import tee
from typing import TYPE_CHECKING, Any, Literal

from convnets_torch.batch.jobs import FAILED, Entry, Job, Options, Work, part_name
from convnets_torch.batch.rows import ChangedError, Rows, Values, write_part
from convnets_torch.files import find, sha256
from convnets_torch.images.decoding import PIXEL_BYTES, stored_size
from convnets_torch.images.remote import FETCH_THREADS, RemotePicture, TransportError, fetched_ahead
from convnets_torch.images.stores import UNKNOWN, State, answers, fetch

if TYPE_CHECKING:
    from convnets_torch.networks import Network

Event = dict[str, Any]
HELD_SHARE, HELD_LEAST = 0.5, 5  # a shard with more bad pictures than both is held back
FAULTS = ("missing", "changed", "unreadable")  # kinds that a wrong mount gives
TRIES = 3
KEPT = "finished shards are kept: run the same command again"


@dataclass(frozen=True)
class Running:
    """How shards are computed here; none of it changes what the rows say. Documented by `run`."""

    weights: str | None = None
    device: str = "auto"
    batch: int | Literal["auto"] = "auto"
    workers: int | None = None
    fetch_threads: int = FETCH_THREADS
    tries: int = TRIES
    allow_bad: bool = False

    def check(self) -> None:
        """Raise ValueError if a value is out of range."""
        if self.batch != "auto" and (type(self.batch) is not int or self.batch < 1):
            raise ValueError(f"batch must be a positive integer or 'auto', got {self.batch!r}")
        for name in ("fetch_threads", "tries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")


class Listed(RemotePicture):
    """A picture of a manifest; what its store says of it is known once it is fetched.

    Attributes:
        entry: its line in the manifest.
        shard: its shard.
        state, pixels_stored, sha256: as `state`, `size` and `sha256` of `Values`.
    """

    def __init__(self, entry: Entry, shard: int, query: str, most: int, hashed: bool = False) -> None:
        super().__init__(entry.uri, self._load, entry.size or 0)
        self.entry, self.shard, self._query, self._most, self._hashed = entry, shard, query, most, hashed
        self.state, self.pixels_stored = UNKNOWN, (0, 0)
        self.sha256: str | None = None

    def _bytes(self) -> tuple[bytes, State]:
        return fetch(self.name, self._query, self._most)

    def _load(self) -> bytes:
        content, self.state = self._bytes()
        if self._hashed:
            self.sha256 = hashlib.sha256(content).hexdigest()
        for what, listed, found in (
            ("bytes", self.entry.size, self.state.size), ("time of change", self.entry.etag, self.state.etag)
        ):  # fmt: skip
            if None not in (listed, found) and listed != found:
                raise ChangedError(f"{self.name} has changed since it was listed: its {what} was {listed}, is {found}")
        self.pixels_stored = stored_size(BytesIO(content))
        return content


class Computer:
    """A loaded network, and what a job asks of it."""

    def __init__(self, weights: str, options: Options, running: Running, digest: str | None = None) -> None:
        """Load the network.

        Args:
            digest: sha256 of the weights file; another one is refused.

        Raises:
            OSError, ValueError: the file is not there, is another one, or cannot be used.
        """
        path = find(weights)
        if digest is not None and (found := sha256(path)) != digest:
            raise ValueError(
                f"{path} is not the weights file of the job: its sha256 is {found[:12]}..., that of the job's"
                f" {digest[:12]}...; copy the file again, or name the right one (--weights)"
            )
        from convnets_torch import weights as loading
        from convnets_torch.embeddings.extraction import Embedder
        from convnets_torch.inference.prepare import checked_device, dtype_of, prepare

        place = checked_device(running.device)
        network: Any = loading.load(path, device=place)
        if options.precision is not None and options.layer is not None:  # layers stay apart
            network = network.to(dtype_of(options.precision, place))
        elif options.precision is not None:
            precision: Any = options.precision
            network = prepare(network, device=place, precision=precision)
        self.network: Network = network
        self.card, self.options, self._running = network.card, options, running
        self.device = str(place)
        self._asked = {*options.outputs}
        self.embedder = None
        if "vector" in self._asked:
            logits = bool(self._asked & {"classes", "logits"})
            if options.index is not None:
                logits = network.head is not None
            pool: Any = options.pool
            self.embedder = Embedder(network, options.layer, pool, options.normalize, logits=logits)

    def rows(self, pictures: Iterable[Any]) -> Generator[tuple[Any, Values], None, None]:
        """Yield each picture with what was computed of it, in order."""
        alone = self._asked & {"classes", "vector", "logits"}
        streams: list[Callable[[Iterable[Any]], Any]] = []
        if alone:
            streams.append(self._numbers)
        if "heatmap" in self._asked:
            streams.append(self._maps)
        with contextlib.ExitStack() as stack:
            given = tee(pictures, len(streams)) if len(streams) > 1 else (pictures,)
            made = [
                stack.enter_context(contextlib.closing(run(each))) for run, each in zip(streams, given, strict=True)
            ]
            for several in zip(*made, strict=True):
                picture, found = several[0]
                for _, other in several[1:]:
                    found.maps = other.maps
                    found.error = found.error or other.error
                    found.remarks = tuple(dict.fromkeys([*found.remarks, *other.remarks]))
                yield picture, found

    def _numbers(self, pictures: Iterable[Any]) -> Generator[tuple[Any, Values], None, None]:
        from convnets_torch.embeddings.extraction import Embedded, embedded, top_class
        from convnets_torch.embeddings.image_map_drawing import thumbnail
        from convnets_torch.inference.classification import best_of, probabilities
        from convnets_torch.inference.pipeline import Predicted, each_row, predicted

        options, running = self.options, self._running
        every = list(range(self.card.classes)) if self.card is not None else []

        def values(row: Embedded | Predicted) -> tuple[Any, Values]:
            found = Values(error=row.error, remarks=row.notes)
            if row.error is None:
                logits = row.logits
                if isinstance(row, Embedded) and row.vector is not None:
                    found.vector = row.vector.numpy()
                    if options.index is not None:
                        found.best, found.thumbnail = top_class(logits, self.card), row.seen
                if "classes" in self._asked and logits is not None and self.card is not None:
                    found.classes = best_of(probabilities(logits[None], self.card)[0], options.top, every)
                if "logits" in self._asked and logits is not None:
                    if not logits.isfinite().all():
                        raise ValueError("the network's outputs are NaN or infinite: its weights are broken")
                    found.logits = logits.numpy()
            return row.picture, found

        how = (options.reading, running.batch, running.workers, options.exact)
        rows: Any = (
            predicted(self.network, pictures, *how, fill=True)
            if self.embedder is None
            else embedded(
                self.embedder, pictures, *how, look=thumbnail if options.index is not None else None, fill=True
            )
        )
        return each_row(rows, values)

    def _maps(self, pictures: Iterable[Any]) -> Generator[tuple[Any, Values], None, None]:
        from convnets_torch.heatmaps.many import Mapped, heatmap_each
        from convnets_torch.inference.pipeline import each_row

        options, running = self.options, self._running
        names = ("longest_side", "upscale", "cell_stride", "max_pixels", "allow_truncated", "depth", "background")
        rows = heatmap_each(
            self.network, pictures, list(options.targets), batch=running.batch, workers=running.workers,
            exact=options.exact, **{name: getattr(options, name) for name in names},
        )  # fmt: skip

        def values(row: Mapped) -> tuple[Any, Values]:
            maps = [(target, found.values) for target, found in zip(options.targets, row.maps, strict=False)]
            return row.picture, Values(maps=maps, error=row.error, remarks=row.notes)

        return each_row(rows, values)


@dataclass
class _Open:
    """A shard whose pictures are on their way through the network; `left` is how many of them."""

    shard: int
    left: int
    rows: Rows


class StoppedError(OSError):
    """The run cannot go on; finished shards are kept."""


class Shards:
    """Computes shards one after another in one stream.

    Args:
        job: the job.
        computer: the loaded network.
        running: how.
    """

    def __init__(self, job: Job, computer: Computer, running: Running) -> None:
        self._job, self._computer, self._running = job, computer, running
        self._most = PIXEL_BYTES * job.options.reading.limit
        self._attempts: Counter[int] = Counter()
        self._in_a_row = 0  # failures of the store since the last shard that was finished
        self._opened: deque[_Open] = deque()  # shards on their way, in order
        self._written: deque[tuple[Future[None], Event]] = deque()  # shards that are being written
        self._again: deque[int] = deque()  # shards that another's failure interrupted
        self._later: deque[int] = deque()  # shards that failed before

    def compute(self, shards: Iterable[int]) -> Generator[Event, None, None]:
        """Compute the shards whose parts are not there yet; yield an event for each, in the order they are finished.

        Raises:
            StoppedError: the store of the pictures, or that of the job, does not answer or cannot be written to.
        """
        coming: Iterator[int] = iter(shards)
        with ThreadPoolExecutor(1, "write") as writer:
            while True:
                failure: tuple[int, Exception] | None = None
                try:
                    yield from self._stream(coming, writer)
                except TransportError as error:
                    shard = getattr(error.picture, "shard", None)
                    if shard is None:
                        raise StoppedError(f"{error}; {KEPT}") from None
                    failure = shard, error
                    self._in_a_row += 1
                except (MemoryError, RuntimeError, ValueError) as error:
                    from convnets_torch.inference.batching import is_out_of_memory

                    if not self._opened or (isinstance(error, RuntimeError) and not is_out_of_memory(error)):
                        raise
                    failure = self._opened[0].shard, error
                while self._written:
                    yield self._next_written()
                if failure is None:
                    return
                self._again.extendleft(each.shard for each in reversed(self._opened) if each.shard != failure[0])
                self._opened.clear()
                yield self._failed(*failure)

    def _order(self, coming: Iterator[int]) -> Iterator[int]:
        while self._again:
            yield self._again.popleft()
        yield from coming
        while self._later:
            yield self._later.popleft()

    def _failed(self, shard: int, error: Exception) -> Event:
        self._attempts[shard] += 1
        tries, most = self._attempts[shard], self._running.tries
        reason = " ".join(str(error).split()) or type(error).__name__
        picture = getattr(error, "picture", None)
        name = None if picture is None or max(tries, self._in_a_row) < most else picture.name
        if name is not None and not answers(name, self._job.query_of(name)):
            raise StoppedError(f"{reason}; {KEPT}") from None
        if tries < most:
            self._later.append(shard)
            return {"event": "again", "shard": shard, "reason": reason, "tries": tries}
        give_up(self._job, shard, reason, "failed", tries)
        return {"event": "failed", "shard": shard, "reason": reason, "kind": "failed"}

    def _pictures(self, coming: Iterator[int]) -> Iterator[Listed]:
        for shard in self._order(coming):
            if self._job.has(shard):
                continue
            try:
                entries = self._job.read(shard)
            except ValueError as error:
                raise StoppedError(f"{error}; {KEPT}") from None
            indexed = self._job.options.index is not None
            rows = Rows(self._job.options.half, [] if indexed else None)
            self._opened.append(_Open(shard, len(entries), rows))
            for entry in entries:
                yield Listed(entry, shard, self._job.query_of(entry.uri), self._most, indexed)

    def _stream(self, coming: Iterator[int], writer: ThreadPoolExecutor) -> Iterator[Event]:
        """Run one stream until there are no more shards, or it fails; the unfinished ones are then open."""
        ahead = fetched_ahead(self._pictures(coming), self._running.fetch_threads)
        begun = time.monotonic()
        with contextlib.closing(ahead), contextlib.closing(self._computer.rows(ahead)) as rows:
            for picture, found in rows:
                found.state, found.size, found.sha256 = picture.state, picture.pixels_stored, picture.sha256
                current = self._opened[0]
                current.rows.add(picture.entry, found)
                current.left -= 1
                if current.left:
                    continue
                self._opened.popleft()
                if self._job.has(current.shard):  # another process was faster; its rows are the same
                    continue
                now = time.monotonic()
                event, begun = self._event(current, now - begun), now
                if (held := self._held_back(current.rows)) is not None:
                    give_up(self._job, current.shard, held, "held back", 1)
                    yield {"event": "held back", "shard": current.shard, "reason": held, "kind": "held back"}
                    continue
                while len(self._written) > 1:  # at most two in memory, besides the one that is being made
                    yield self._next_written()
                work = partial(write_part, self._job, current.shard, current.rows, self._computer.device)
                self._written.append((writer.submit(work), event))
                while self._written and self._written[0][0].done():
                    yield self._next_written()

    def _event(self, shard: _Open, seconds: float) -> Event:
        pictures = shard.rows.pictures
        return {
            "event": "shard", "shard": shard.shard, "pictures": pictures, "errors": dict(shard.rows.errors),
            "seconds": round(seconds, 3), "pictures_per_second": round(pictures / max(seconds, 1e-6), 1),
        }  # fmt: skip

    def _next_written(self) -> Event:
        """Wait for the shard that is written first."""
        future, event = self._written.popleft()
        try:
            future.result()
        except OSError as error:
            raise StoppedError(f"{error}; {KEPT}") from None
        self._in_a_row = 0
        return event

    def _held_back(self, rows: Rows) -> str | None:
        """Why a shard is held back; None if it is not."""
        bad = sum(rows.errors[kind] for kind in FAULTS)
        if self._running.allow_bad or bad < HELD_LEAST or bad <= HELD_SHARE * rows.pictures:
            return None
        first = next(error for error in rows.columns["error"] if error is not None)
        return (
            f"{bad} of {rows.pictures} pictures could not be read, as if their folder were not mounted here; the first:"
            f" {first}"
        )


def give_up(job: Work, shard: int, reason: str, kind: str, tries: int) -> None:
    """Note that a shard failed, so that later runs leave it alone until `retry`."""
    content = json.dumps({"job": job.digest, "shard": shard, "kind": kind, "tries": tries, "reason": reason}) + "\n"
    try:
        job.folder.write(f"{FAILED}/{part_name(shard)}.json", lambda file: file.write(content.encode()))
    except OSError as error:
        raise StoppedError(f"{error}; {KEPT}") from None

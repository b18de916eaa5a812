"""Run a job on a Ray cluster: actors that compute chunks of shards; only numbers of shards and counts go between them.

Ray restarts an actor whose process dies, places GPUs, and joins the machines. What is done and what is missing is known
from the job's files alone, so a dead actor, node or driver leaves missing shards and nothing else. A chunk is tried
again by this module rather than by Ray (`max_task_retries`), so that a picture that kills every process that decodes it
fails its shard after `tries` instead of keeping the cluster busy for ever.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from convnets_torch._version import __version__
from convnets_torch.batch.jobs import Work
from convnets_torch.batch.workers import Worker, work_at, worker_of
from convnets_torch.batch.working import Event, Running, StoppedError, give_up

LEAST, MOST = 2, 8  # shards of a chunk; towards the end single ones
SILENT = 10  # times the median time of a shard, after which a chunk is given to an idle actor as well
PATIENCE = 60.0  # seconds that a chunk may be silent before there is a median
WAIT = 1.0  # seconds between looks at the actors
CONNECT = 10.0  # seconds to reach a cluster
PORT = 6379
NO_RAY = "the executor ray needs Ray: pip install 'convnets-torch[ray]'"
HELD = 100 << 20  # bytes of Ray's object store where this process starts a cluster: nothing large is put there


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise ImportError(NO_RAY) from None
    return ray


class Actor:
    """Computes chunks of shards in a process of the cluster; its errors come back as data, which name what is wrong."""

    def __init__(self, job: str, running: Running, cpus: int) -> None:
        self._address, self._running, self._cpus = job, running, cpus
        self._shards: Worker | None = None

    def ready(self) -> dict[str, Any]:
        """Load the network; return what must be the same everywhere, and why this process cannot compute, if so."""
        import ray

        found: dict[str, Any] = {"version": __version__, "ray": ray.__version__, "node": socket.gethostname()}
        try:
            self._loaded()
        except (OSError, ValueError, ImportError) as error:
            found["problem"] = f"{socket.gethostname()}: {' '.join(str(error).split())}"
        return found

    def _loaded(self) -> Worker:
        if self._shards is None:
            import torch

            torch.set_num_threads(self._cpus)
            work = work_at(self._address)
            work.check_version()
            self._shards = worker_of(work, self._running)
        return self._shards

    def compute(self, shards: list[int]) -> Iterator[Event]:
        """Yield an event for each shard that is done or has failed; the last one may say why there are no more."""
        try:
            yield from self._loaded().compute(shards)
        except (OSError, ValueError, ImportError) as error:
            yield {"event": "stopped", "reason": f"{socket.gethostname()}: {' '.join(str(error).split())}"}


@dataclass
class _Chunk:
    """Shards that an actor computes; `left` are those that it has not told of yet."""

    left: list[int]
    actor: int
    heard: float = field(default_factory=time.monotonic)
    helped: bool = False


def connect(address: str | None) -> None:
    """Connect to a cluster, or start one.

    Raises:
        ConnectionError: there is none at the address.
        ValueError: its version of Ray or Python is another one.
    """
    ray = _ray()
    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address not in ("local", "auto"):
        _knock(address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "include_dashboard": False}
    if address == "local":
        options |= {"object_store_memory": HELD}
    else:
        options.pop("include_dashboard")
    try:
        ray.init(address=address, **options)
    except ConnectionError:
        raise ConnectionError(
            f"there is no Ray cluster at {address}; start one with `ray start --head`, or name its address"
        ) from None
    except (RuntimeError, ValueError) as error:
        words = " ".join(str(error).split())[:300]
        raise ValueError(f"the Ray cluster at {address} cannot be used ({words})") from None


def _knock(address: str) -> None:
    """Raise ConnectionError if nobody listens at an address, for which Ray itself waits for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        host, port = address.removeprefix("ray://"), str(PORT)
    try:
        socket.create_connection((host, int(port)), CONNECT).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConnectionError(
            f"there is no Ray cluster at {address} ({reason}); start one with `ray start --head`, or name its address"
        ) from None


def compute(
    job: Work, todo: list[int], running: Running, address: str | None, workers: int | None, cpus: int | None
) -> Generator[Event, None, None]:
    """Compute shards on a cluster; yield their events.

    Raises:
        ConnectionError: there is no cluster at the address.
        ValueError: an actor has another version of this package, or does not see the weights.
        StoppedError: a store does not answer, or no actor is left.
    """
    ray = _ray()
    mine = not ray.is_initialized()
    connect(address)
    try:
        yield from _Driver(job, todo, running, workers, cpus).run()
    finally:
        if mine:
            with contextlib.suppress(Exception):
                ray.shutdown()


class _Driver:
    """Hands out chunks and listens; the shards that are missing are the only thing that it believes in."""

    def __init__(self, job: Work, todo: list[int], running: Running, workers: int | None, cpus: int | None) -> None:
        ray = _ray()
        there = ray.cluster_resources()
        gpus = int(there.get("GPU", 0)) if running.device in ("auto", "cuda") else 0
        each = cpus or (max(1, int(there.get("CPU", 1)) // gpus) if gpus else min(2, int(there.get("CPU", 1)) or 1))
        count = workers or gpus or int(there.get("CPU", 1)) // each
        count = max(1, min(count, len(todo)))
        largest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
        if each > largest:
            raise ValueError(f"an actor asks for {each} CPUs, but no machine of the cluster has more than {largest:g}")
        inner = replace(running, workers=running.workers or max(1, each))
        made = ray.remote(Actor).options(
            num_cpus=each, num_gpus=1 if gpus else 0, max_restarts=-1, max_task_retries=0, scheduling_strategy="SPREAD"
        )
        self._job, self._running, self._ray = job, running, ray
        address = job.folder.address if job.folder.remote else os.path.abspath(job.folder.address)  # noqa: PTH100
        self._actors = [made.remote(address, inner, each) for _ in range(count)]
        self._pending = deque(todo)
        self._attempts: Counter[int] = Counter()
        self._finished: set[int] = set()
        self._busy: dict[Any, _Chunk] = {}  # stream of events -> its chunk
        self._coming: dict[Any, int] = {}  # answer of `ready` -> an actor that is starting, or is started again
        self._idle: deque[int] = deque()
        self._times: deque[float] = deque(maxlen=200)  # seconds of a shard

    def run(self) -> Generator[Event, None, None]:
        ray = self._ray
        for number in range(len(self._actors)):
            self._ask(number)
        while self._pending or any(self._missing(chunk) for chunk in self._busy.values()):
            while self._idle and (chunk := self._chunk(self._idle[0])) is not None:
                actor = self._actors[self._idle.popleft()]
                self._busy[actor.compute.options(num_returns="streaming").remote(chunk.left)] = chunk
            ready, _ = ray.wait([*self._busy, *self._coming], timeout=WAIT, fetch_local=False)
            for found in ready:
                if found in self._coming:
                    self._came(found)
                else:
                    yield from self._heard(found)
        for actor in self._actors:
            ray.kill(actor)

    def _ask(self, number: int) -> None:
        self._coming[self._actors[number].ready.remote()] = number

    def _came(self, answer: Any) -> None:
        """An actor can compute, or its process has died while it started, and Ray starts another one."""
        ray, number = self._ray, self._coming.pop(answer)
        try:
            about = ray.get(answer)
        except ray.exceptions.RayActorError:
            time.sleep(WAIT)
            self._ask(number)
            return
        except ray.exceptions.RayTaskError as error:
            words = " ".join(str(error.cause).split())[:300]
            raise ValueError(f"an actor of Ray cannot work ({words}); is convnets-torch installed there?") from None
        for what, ours in (("version", __version__), ("ray", ray.__version__)):
            if about[what] != ours:
                name = "convnets-torch" if what == "version" else "Ray"
                raise ValueError(
                    f"{about['node']} has {name} {about[what]}, but this process has {ours}; install the same version"
                    " everywhere"
                )
        if "problem" in about:
            raise ValueError(about["problem"])
        self._idle.append(number)

    def _missing(self, chunk: _Chunk) -> list[int]:
        return [shard for shard in chunk.left if shard not in self._finished]

    def _chunk(self, actor: int) -> _Chunk | None:
        """The next shards for an idle actor: new ones, else those of a silent chunk."""
        if self._pending:
            share = len(self._pending) // (2 * len(self._actors))
            count = min(MOST, share) if share >= LEAST else 1
            shards = [self._pending.popleft() for _ in range(min(count, len(self._pending)))]
            return _Chunk(shards, actor)
        limit = SILENT * median(self._times) if self._times else PATIENCE
        now = time.monotonic()
        for chunk in self._busy.values():
            if not chunk.helped and now - chunk.heard > max(limit, WAIT) and (missing := self._missing(chunk)):
                chunk.helped = True
                return _Chunk(missing[::-1], actor)  # from the other end
        return None

    def _heard(self, stream: Any) -> Iterator[Event]:
        """Take one event of a chunk, or its end."""
        ray, chunk = self._ray, self._busy[stream]
        try:
            event = ray.get(next(stream))
        except StopIteration:
            del self._busy[stream]
            self._idle.append(chunk.actor)
            self._again([shard for shard in self._missing(chunk) if not self._job.has(shard)])
            return
        except ray.exceptions.RayError as error:  # the process or its node has died; Ray starts the actor again
            del self._busy[stream]
            self._ask(chunk.actor)
            yield from self._died(chunk, error)
            return
        if event["event"] == "stopped":
            raise StoppedError(event["reason"])
        now = time.monotonic()
        if event["event"] == "shard":
            self._times.append(now - chunk.heard)
        chunk.heard = now
        if event["event"] != "again":
            done = event["shard"] in self._finished
            self._finished.add(event["shard"])
            if done:  # computed twice, there once
                return
        yield event

    def _died(self, chunk: _Chunk, error: Exception) -> Iterator[Event]:
        """Give the rest of a chunk out again, one by one; the first of it counts a try, as it may be the reason."""
        rest = [shard for shard in self._missing(chunk) if not self._job.has(shard)]
        for shard in self._missing(chunk):
            if shard not in rest:
                self._finished.add(shard)
        if not rest:
            return
        first = rest[0]
        self._attempts[first] += 1
        reason = f"the process that computed it died ({type(error).__name__})"
        if self._attempts[first] >= self._running.tries:
            give_up(self._job, first, f"{reason} {self._attempts[first]} times", "failed", self._attempts[first])
            self._finished.add(first)
            yield {"event": "failed", "shard": first, "reason": reason, "kind": "failed"}
            rest = rest[1:]
        else:
            yield {"event": "again", "shard": first, "reason": reason, "tries": self._attempts[first]}
        self._again(rest)

    def _again(self, shards: list[int]) -> None:
        held = {shard for chunk in self._busy.values() for shard in chunk.left}
        self._pending.extend(shard for shard in shards if shard not in self._finished and shard not in held)

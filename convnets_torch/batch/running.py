"""Run a job: in this process, as one of many processes that a scheduler started, or on a Ray cluster."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from convnets_torch.batch.jobs import FAILED, Work, numbers_in, part_name
from convnets_torch.batch.workers import work_at, worker_of
from convnets_torch.batch.working import TRIES, Event, Running
from convnets_torch.images.remote import FETCH_THREADS
from convnets_torch.images.stores import pyarrow
from convnets_torch.text import check_choice

Executor = Literal["auto", "local", "static", "ray"]


@dataclass
class Summary:
    """What a run did.

    Attributes:
        shards: of the job.
        done, pictures: shards and pictures that this run computed.
        errors: bad pictures among these, by kind.
        failed: shards that failed or were held back -> why.
        missing: shards that are left.
        seconds: wall-clock time.
    """

    shards: int
    done: int = 0
    pictures: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    failed: dict[int, str] = field(default_factory=dict)
    missing: int = 0
    seconds: float = 0.0

    def add(self, event: Event) -> None:
        """Count an event."""
        if event["event"] == "shard":
            self.done += 1
            self.pictures += event["pictures"]
            self.errors.update(event["errors"])
        elif event["event"] in ("failed", "held back"):
            self.failed[event["shard"]] = event["reason"]

    @property
    def throughput(self) -> float | None:
        """Pictures per second; None if none was computed."""
        return self.pictures / self.seconds if self.pictures else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        known = {
            **vars(self),
            "errors": dict(self.errors),
            "failed": {str(key): why for key, why in self.failed.items()},
        }
        return known | {"seconds": round(self.seconds, 3), "pictures_per_second": self.throughput}


class Share:
    """Which part of the shards a process has: every `world`-th one, from `rank` on."""

    def __init__(self, rank: int, world: int) -> None:
        if not 0 <= rank < world:
            raise ValueError(
                f"this is process {rank} of {world}, but they are counted from 0; correct RANK, WORLD_SIZE"
            )
        self.rank, self.world = rank, world


def share_of(environment: Mapping[str, str]) -> Share | None:
    """Return the share that a scheduler gave this process, from its environment; None if there is none.

    Known are RANK and WORLD_SIZE (torchrun, accelerate), SLURM_ARRAY_TASK_ID, SLURM_PROCID and both together, and
    JOB_COMPLETION_INDEX of Kubernetes, which needs JOB_COMPLETIONS beside it, since Kubernetes does not tell how many
    there are.

    >>> vars(share_of({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_COUNT": "4"}))
    {'rank': 2, 'world': 4}
    """

    def number(name: str) -> int:
        try:
            return int(environment[name])
        except KeyError:
            raise ValueError(f"{name} is not set, but needed to divide the shards; set it") from None
        except ValueError:
            raise ValueError(f"{name} is {environment[name]!r:.80}, not a number; correct it") from None

    if "RANK" in environment:
        return Share(number("RANK"), number("WORLD_SIZE"))
    if "JOB_COMPLETION_INDEX" in environment:
        return Share(number("JOB_COMPLETION_INDEX"), number("JOB_COMPLETIONS"))
    rank, world = 0, 1
    if "SLURM_ARRAY_TASK_ID" in environment:
        step = number("SLURM_ARRAY_TASK_STEP") if "SLURM_ARRAY_TASK_STEP" in environment else 1
        first = number("SLURM_ARRAY_TASK_MIN") if "SLURM_ARRAY_TASK_MIN" in environment else 0
        rank, world = (number("SLURM_ARRAY_TASK_ID") - first) // max(1, step), number("SLURM_ARRAY_TASK_COUNT")
    elif "SLURM_PROCID" not in environment:
        return None
    if "SLURM_PROCID" in environment:
        several = number("SLURM_NTASKS") if "SLURM_NTASKS" in environment else 1
        rank, world = rank * several + number("SLURM_PROCID"), world * several
    return Share(rank, world)


def chosen(executor: Executor, address: str | None) -> Executor:
    """Return the executor that "auto" means here."""
    check_choice(executor, get_args(Executor), "executor")
    if executor != "auto":
        return executor
    if address is not None or os.environ.get("RAY_ADDRESS"):
        return "ray"
    share = share_of(os.environ)
    return "static" if share is not None and share.world > 1 else "local"


def run(
    job: str | os.PathLike[str],
    *,
    executor: Executor = "auto",
    address: str | None = None,
    workers: int | None = None,
    cpus: int | None = None,
    tries: int = TRIES,
    fetch_threads: int = FETCH_THREADS,
    threads: int | None = None,
    batch: int | Literal["auto"] = "auto",
    device: str = "auto",
    weights: str | os.PathLike[str] | None = None,
    allow_bad: bool = False,
    progress: Callable[[Event], None] | None = None,
) -> Summary:
    """Compute the shards of a job that are missing. It may be interrupted at any moment and called again.

    A picture that is bad, missing or too large becomes a row with an error. A shard of which more than half is so, and
    at least five, is held back, since then a folder is not mounted rather than its files bad. A store that does not
    answer never becomes a row: it is asked again after growing waits, then the shard fails, and after `tries` it is
    noted as failed and left alone until `retry`.

    Args:
        job: where `plan` made it.
        executor: "local", this process; "static", this process as one of several that a scheduler started, each with
            its share of the shards, and then whatever is still missing; "ray", actors of a Ray cluster; "auto" takes
            the one that the environment suggests.
        address: with "ray", of the cluster: "auto" for the one of this machine, `ray://host:10001`, or "local" to start
            one here; by default RAY_ADDRESS, else "local".
        workers: with "ray": the number of actors; by default one for each GPU, else for each `cpus` of the cluster.
        cpus: with "ray": CPUs of each actor; by default its share of those of a GPU's node, or 2 without GPUs.
        tries: how often a shard may fail.
        fetch_threads: pictures that are fetched at the same time.
        threads: decoding threads, as `workers` of `predict`.
        batch, device: as in `predict` and `load`. With several GPUs, processes that a scheduler started on a node take
            the GPU of their own number.
        weights: the weights file, if it lies elsewhere here; its contents must be those of the job's.
        allow_bad: write shards with any number of bad pictures, also those that were held back before.
        progress: called with each event, a dict: of a shard with its pictures, errors by kind and pictures a second, of
            one that failed, is held back, or will be tried again.

    Returns:
        The summary. The job is complete when nothing is `failed` and nothing `missing`.

    Raises:
        OSError: there is no such job; a store does not answer, a disk is full, or a file cannot be written. Finished
            shards are kept.
        ValueError: another version of this package planned the job, or the weights are not those of the job.
        ImportError: pyarrow, Ray or the package of a store is not installed.

    >>> from convnets_torch import batch
    >>> _ = batch.plan("job", "street.jpg", weights="alexnet.safetensors")
    >>> done = batch.run("job", executor="local")
    >>> done.pictures, done.failed, batch.run("job").pictures
    (1, {}, 0)
    """
    pyarrow()
    if weights is not None and Path(weights).exists():  # else a name in the cache, or a file of other machines
        weights = Path(weights).absolute()
    place = None if weights is None else os.fspath(weights)
    running = Running(place, device, batch, threads, fetch_threads, tries, allow_bad)
    running.check()
    planned = work_at(job)
    planned.check_version()
    kind = chosen(executor, address)
    if kind != "ray" and address is not None:
        raise ValueError(f"an address is that of a Ray cluster, but the executor is {kind}; leave one of them out")
    begun = time.monotonic()
    if allow_bad:
        _forget_held_back(planned)
    done, failed = planned.done(), planned.failed()
    todo = [shard for shard in range(planned.shards) if shard not in done and shard not in failed]
    summary = Summary(planned.shards, failed={shard: reason_of_failed(planned, shard) for shard in sorted(failed)})
    if todo:
        events = _by_ray(planned, todo, running, address, workers, cpus) if kind == "ray" else None
        with closing(events or _here(planned, todo, running, kind)) as made:
            for event in made:
                summary.add(event)
                if progress is not None:
                    progress(event | {"done": len(done) + summary.done, "shards": planned.shards})
        done = planned.done()
        for shard in planned.failed() - summary.failed.keys():
            summary.failed[shard] = reason_of_failed(planned, shard)
        summary.failed = {shard: why for shard, why in sorted(summary.failed.items()) if shard not in done}
    summary.missing = planned.shards - len(done) - len(summary.failed)
    summary.seconds = time.monotonic() - begun
    return summary


def _here(job: Work, todo: list[int], running: Running, kind: Executor) -> Generator[Event, None, None]:
    """Compute shards in this process."""
    share = share_of(os.environ) if kind == "static" else Share(0, 1)
    if share is None:
        raise ValueError(
            "no scheduler says which share of the job this process has; set RANK and WORLD_SIZE, or use the executor"
            " local"
        )
    shards = worker_of(job, running, local_device(running.device, os.environ))
    own = [shard for shard in todo if shard % share.world == share.rank]
    yield from shards.compute(own)
    if share.world > 1:
        yield from shards.compute(_others(job, share))


def _others(job: Work, share: Share) -> Iterator[int]:
    """What is missing once the own share is done, in an order of its own: of dead processes and of slow ones."""
    done, failed = job.done(), job.failed()
    missing = [shard for shard in range(job.shards) if shard not in done and shard not in failed]
    random.Random(share.rank).shuffle(missing)
    for shard in missing:
        if not job.folder.exists(f"{FAILED}/{part_name(shard)}.json"):
            yield shard


def local_device(device: str, environment: Mapping[str, str]) -> str:
    """Return the device of this process: of several GPUs of a node, the one of its number there.

    >>> local_device("cpu", {"LOCAL_RANK": "1"})
    'cpu'
    """
    number = environment.get("LOCAL_RANK", environment.get("SLURM_LOCALID"))
    if device != "auto" or number is None or not number.isdigit():
        return device
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"cuda:{int(number) % count}" if count > 1 else device


def _by_ray(
    job: Work, todo: list[int], running: Running, address: str | None, workers: int | None, cpus: int | None
) -> Generator[Event, None, None]:
    from convnets_torch.batch.ray_actors import compute

    return compute(job, todo, running, address, workers, cpus)


def reason_of_failed(job: Work, shard: int) -> str:
    """Return why a shard failed."""
    return str(read_failed(job, shard).get("reason", "unknown"))


def read_failed(job: Work, shard: int) -> dict[str, Any]:
    """Return what is noted of a failed shard; empty if it cannot be read."""
    from convnets_torch import files

    try:
        found = files.loads(job.folder.read(f"{FAILED}/{part_name(shard)}.json", 1 << 20).decode())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _forget_held_back(job: Work) -> None:
    for shard in sorted(numbers_in(job.folder, FAILED, ".json")):
        if read_failed(job, shard).get("kind") == "held back":
            job.folder.remove(f"{FAILED}/{part_name(shard)}.json")

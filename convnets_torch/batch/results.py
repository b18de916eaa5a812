"""What has become of a job: its state, its bad pictures, whether its files are whole, and what is to be done again."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from convnets_torch.batch.jobs import COMMITTED, FAILED, PARTS, Job, numbers_in, part_name
from convnets_torch.batch.rows import KINDS, Part
from convnets_torch.batch.running import reason_of_failed
from convnets_torch.text import check_choice

RECENT = 600.0  # seconds that the rate is measured over, at most


@dataclass(frozen=True)
class Status:
    """The state of a job.

    Attributes:
        pictures, shards: of the job.
        done: shards whose part is there.
        done_pictures: their pictures.
        failed: shards that failed or were held back.
        throughput: pictures per second of all workers together over the last ten minutes that they worked; None with
            fewer than two parts, or where the store does not say when they were written.
        seconds_left: estimated from it; None if it is unknown.
    """

    pictures: int
    shards: int
    done: int
    done_pictures: int
    failed: tuple[int, ...]
    throughput: float | None
    seconds_left: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**vars(self), "failed": list(self.failed)}


def status(job: str | os.PathLike[str]) -> Status:
    """Return the state of a job, from a listing of its files alone.

    Raises:
        OSError: there is no such job, or its store does not answer.
        ValueError: it is damaged.

    >>> from convnets_torch import batch
    >>> _ = batch.plan("job", "street.jpg", weights="alexnet.safetensors")
    >>> batch.status("job").done, batch.status("job").shards
    (0, 1)
    """
    planned = Job.open(job)
    written: dict[int, float] = {}
    for name, when in planned.folder.list(PARTS):
        stem = name.removesuffix(".parquet")
        if name != stem and stem.isascii() and stem.isdigit() and int(stem) < planned.shards:
            written[int(stem)] = when
    failed = tuple(sorted({*numbers_in(planned.folder, FAILED, ".json")} - written.keys()))
    pictures = sum(map(planned.count, written))
    rate = _rate(planned, written)
    left = planned.pictures - pictures - sum(map(planned.count, failed))
    seconds = 0.0 if not left else None if rate is None else left / rate
    return Status(planned.pictures, planned.shards, len(written), pictures, failed, rate, seconds)


def _rate(job: Job, written: dict[int, float]) -> float | None:
    """Pictures per second between the first and the last part of the last minutes."""
    if len(written) < 2 or not all(written.values()):
        return None
    last = max(written.values())
    recent = {shard: when for shard, when in written.items() if when >= last - RECENT}
    first = min(recent, key=lambda shard: recent[shard])
    seconds = last - recent[first]
    pictures = sum(job.count(shard) for shard in recent if shard != first)  # the first was computed before
    return pictures / seconds if seconds > 0 and pictures else None


@dataclass(frozen=True)
class BadPicture:
    """A picture of a job without results: its id, address, kind of error and error."""

    id: int
    uri: str
    kind: str
    error: str


def errors(job: str | os.PathLike[str], kinds: Sequence[str] = ()) -> Iterator[BadPicture]:
    """Yield the bad pictures of the parts that are there, shard by shard.

    Args:
        job: where `plan` made it.
        kinds: some of "missing", "changed", "unreadable" and "refused"; all if there are none.

    Raises:
        OSError, ValueError: as `status`; or a part is damaged.
    """
    for kind in kinds:
        check_choice(kind, KINDS, "kind of error")
    planned = Job.open(job)
    return _bad(planned, {*kinds} or {*KINDS})


def _bad(job: Job, kinds: set[str]) -> Iterator[BadPicture]:
    for shard in sorted(job.done()):
        with Part(job, shard) as part:
            if not kinds & part.about["errors"].keys():
                continue
            found = part.table(["id", "uri", "error_kind", "error"]).to_pydict()
        for each in map(BadPicture, found["id"], found["uri"], found["error_kind"], found["error"]):
            if each.kind in kinds:
                yield each


@dataclass(frozen=True)
class Checked:
    """Whether the files of a job are whole.

    Attributes:
        pictures, rows, shards: of the job; rows are those of the parts that are whole.
        missing: shards without a part.
        failed: shards that failed or were held back -> why.
        damaged: shards whose part cannot be used -> why.
        errors: bad pictures, by kind.
        strange: files beside those of the job.
    """

    pictures: int
    rows: int
    shards: int
    missing: tuple[int, ...]
    failed: dict[int, str]
    damaged: dict[int, str]
    errors: dict[str, int]
    strange: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether each picture has its row, once."""
        return not (self.missing or self.failed or self.damaged)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        known = {
            name: {str(shard): why for shard, why in getattr(self, name).items()} for name in ("failed", "damaged")
        }
        return {
            **vars(self),
            **known,
            "missing": list(self.missing),
            "strange": list(self.strange),
            "whole": self.whole,
        }


def check(job: str | os.PathLike[str]) -> Checked:
    """Read all parts of a job and compare them with its list of pictures: nothing lost, nothing twice.

    Raises:
        OSError, ValueError: as `status`; or the list of pictures is damaged.
    """
    planned = Job.open(job)
    done, strange = set[int](), []
    for name, _ in planned.folder.list(PARTS):
        stem = name.removesuffix(".parquet")
        if name != stem and stem.isascii() and stem.isdigit() and int(stem) < planned.shards:
            done.add(int(stem))
        else:
            strange.append(f"{PARTS}/{name}")
    failed = {shard: reason_of_failed(planned, shard) for shard in sorted(planned.failed())}
    rows, bad, damaged = 0, Counter[str](), dict[int, str]()
    for shard in sorted(done):
        try:
            with Part(planned, shard) as part:
                part.check()
                rows += part.rows
                bad.update(part.about["errors"])
        except ValueError as error:
            damaged[shard] = str(error)
    missing = tuple(shard for shard in range(planned.shards) if shard not in done and shard not in failed)
    return Checked(planned.pictures, rows, planned.shards, missing, failed, damaged, dict(bad), tuple(sorted(strange)))


@dataclass(frozen=True)
class Retried:
    """Shards that the next run computes again.

    Attributes:
        failed: shards whose failure was forgotten.
        removed: shards whose part was removed.
    """

    failed: tuple[int, ...]
    removed: tuple[int, ...]


def retry(job: str | os.PathLike[str], kinds: Sequence[str] = ()) -> Retried:
    """Let the next run compute shards again: those that failed, and those with bad pictures of some kinds.

    Args:
        job: where `plan` made it.
        kinds: as for `errors`; with "damaged", also shards whose part cannot be read. None: failed shards alone.

    Raises:
        OSError, ValueError: as `errors`; or the rows are in an index already.
    """
    for kind in kinds:
        check_choice(kind, (*KINDS, "damaged"), "kind of error")
    planned = Job.open(job)
    if planned.options.index is not None and planned.folder.exists(COMMITTED):
        raise ValueError(
            f"the rows of {planned.folder} are in {planned.options.index}; update them with `convnets-torch index`"
            " without a job"
        )
    removed = []
    for shard in sorted(planned.done()) if kinds else ():
        try:
            with Part(planned, shard) as part:
                again = bool({*kinds} & part.about["errors"].keys())
                if "damaged" in kinds:
                    part.check()
        except ValueError:
            if "damaged" not in kinds:
                raise
            again = True
        if again:
            planned.folder.remove(f"{PARTS}/{part_name(shard)}.parquet")
            removed.append(shard)
    failed = sorted({*numbers_in(planned.folder, FAILED, ".json")})
    for shard in failed:
        planned.folder.remove(f"{FAILED}/{part_name(shard)}.json")
    return Retried(tuple(failed), tuple(removed))


def errors_by_kind(job: Job) -> Counter[str]:
    """Count the bad pictures of all parts, from what these say of themselves."""
    found = Counter[str]()
    for shard in job.done():
        with Part(job, shard) as part:
            found.update(part.about["errors"])
    return found

"""An index past one machine: a job whose shards are fragments of the index's table, which are committed once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from convnets_torch.batch.fragments import DATA, absolute, address_of, folder_of, opened, prefix_of, pylance
from convnets_torch.batch.fragments import refused_by_lance as refused
from convnets_torch.batch.jobs import (
    COMMITTED,
    FAILED,
    MANIFEST,
    SHARD,
    Entry,
    Job,
    Options,
    part_name,
    planned,
    reading_of,
)
from convnets_torch.batch.rows import Part
from convnets_torch.batch.running import Executor, Summary, run
from convnets_torch.batch.segments import commit_segments, plan_segments
from convnets_torch.batch.working import TRIES, Computer, Event, Listed, Running
from convnets_torch.embeddings.index_table import About, PictureTable, kind_of, storage_options
from convnets_torch.embeddings.neighbours import Metric
from convnets_torch.images.decoding import PIXEL_BYTES
from convnets_torch.images.levels import said_levels
from convnets_torch.images.remote import FETCH_THREADS, fetched_ahead
from convnets_torch.images.stores import parquet
from convnets_torch.text import check_choice

if TYPE_CHECKING:
    from convnets_torch.embeddings.extraction import Pool

MOST_COMMITTED = 1 << 16  # bytes of that file
COMMITS = 100  # tries, against others who change the table all the time
PROPERTY = "convnets_torch.job"  # of a transaction: the digest of the job whose fragments it added
VERSIONS = 1000  # that are looked through for it, at most
TOGETHER = 1 << 25  # names of pictures that are sorted at a time, eight bytes each
NAMED = 1000  # names that are told apart to the letter


@dataclass(frozen=True)
class IndexedByJob:
    """What `index` did.

    Attributes:
        summary: of the run.
        rows: in the table from this job; 0 if shards failed or are missing, since then nothing is committed.
        added: rows of these that were added now, and not before.
        errors: bad pictures among the rows, by kind.
        recall: with `pca`, and if the index is new: as for `index_pictures`.
    """

    summary: Summary
    rows: int = 0
    added: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    recall: float | None = None


def index(
    weights: str | os.PathLike[str],
    pictures: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    address: str | os.PathLike[str],
    job: str | os.PathLike[str],
    layer: str | None = None,
    pool: Pool = "avg",
    *,
    half: bool = False,
    pca: int | None = None,
    shard: int = SHARD,
    precision: str | None = None,
    exact: bool = False,
    column: str | None = None,
    exclude: Sequence[str] = (),
    max_pixels: int | None = None,
    allow_truncated: bool = False,
    depth: Any = None,
    background: str | None = None,
    executor: Executor = "auto",
    ray_address: str | None = None,
    workers: int | None = None,
    cpus: int | None = None,
    tries: int = TRIES,
    fetch_threads: int = FETCH_THREADS,
    threads: int | None = None,
    batch: int | Literal["auto"] = "auto",
    device: str = "auto",
    allow_bad: bool = False,
    progress: Callable[[Event], None] | None = None,
) -> IndexedByJob:
    """Index pictures by a job: workers write the rows of each shard as a fragment, and one commit adds them all.

    The rows are those of `index_pictures`, and `Index.open` reads them. The call may be interrupted at any moment and
    made again, by any number of processes at once: what is there is not computed again, and the rows are added once.
    Pictures that the index has already are refused; `index_pictures` updates those.

    Args:
        weights: a safetensors file, or the name of one in the cache.
        pictures: folders, addresses or tables, as for `plan`.
        address: of the index: a folder, or the address of a store that LanceDB and `pyarrow.fs` both take.
        job: folder of the job, as for `plan`.
        layer, pool, half, pca, exact: as for `index_pictures`.
        shard, precision, column, exclude, max_pixels, allow_truncated, depth, background: as for `plan`.
        ray_address: `address` of `run`.
        executor, workers, cpus, tries, fetch_threads, threads, batch, device, allow_bad, progress: as for `run`.

    Returns:
        What was done. Rows are added only if no shard is missing or has failed.

    Raises:
        ValueError: as for `plan`; the index has vectors of another kind, or some of the pictures already; pictures are
            named twice.
        OSError: as for `run`; the index cannot be read or written. Finished shards are kept.
        ImportError: pyarrow, LanceDB, pylance or the package of a store is not installed.

    >>> from convnets_torch import batch, Index
    >>> done = batch.index("alexnet.safetensors", "street.jpg", "photos.lance", "job", executor="local")
    >>> done.rows, done.added, len(Index.open("photos.lance").vectors)
    (1, 1, 1)
    >>> batch.index("alexnet.safetensors", "street.jpg", "photos.lance", "job").added
    0
    """
    pylance()
    several = [pictures] if isinstance(pictures, str | os.PathLike) else list(pictures)
    places = [name if "://" in (name := os.fspath(each)) else os.path.abspath(name) for each in several]  # noqa: PTH100
    options = Options(
        ("vector",), layer=layer, pool=pool, half=half, precision=precision, exact=exact, max_pixels=max_pixels,
        allow_truncated=allow_truncated, depth=depth, background=background, index=absolute(address), pca=pca,
    )  # fmt: skip
    running = Running(None, device, batch, threads, fetch_threads, tries, allow_bad)
    running.check()
    made = planned(
        job, places, weights, options, shard, column, tuple(exclude), lambda each: _created(each, running)
    )  # fmt: skip
    summary = run(
        job, executor=executor, address=ray_address, workers=workers, cpus=cpus, tries=tries,
        fetch_threads=fetch_threads, threads=threads, batch=batch, device=device, weights=weights, allow_bad=allow_bad,
        progress=progress,
    )  # fmt: skip
    if summary.failed or summary.missing:
        return IndexedByJob(summary)
    rows, added, errors = commit(made)
    return IndexedByJob(summary, rows, added, errors, made.facts["index"]["recall"])


def _created(job: Job, running: Running) -> Mapping[str, Any]:
    """Create the table of an index, or compare it; return what a job has to know of it."""
    from convnets_torch.embeddings.index import as_recorded, table_at, width_of

    options = job.options
    computer = Computer(job.facts["weights"], options, running)
    embedder: Any = computer.embedder
    levels = said_levels(options.depth, options.background)
    how = About(
        kind_of(embedder.about | levels), job.card.to_json(), options.layer, options.pool,
        as_recorded(job.facts["weights"]), 1, numbers="float16" if options.half else None, **levels,
    )  # fmt: skip
    with _digests_of(job) as digests:
        _check_twice(job, digests)
        table, recall = table_at(
            str(options.index), how, options.pca,
            lambda: width_of(embedder, job.card), lambda: _some(job, computer, running),
        )  # fmt: skip
        if table.count():
            _check_new(job, digests, table)
    data = opened(str(options.index))
    ids = [each.id() for each in data.lance_schema.fields()]
    if ids != list(range(len(ids))):
        raise ValueError(f"{options.index} was written by another program than convnets-torch; name another index")
    return {"index": {"about": table.about.to_json(), "storage": data.data_storage_version, "recall": recall}}


def _some(job: Job, computer: Computer, running: Running) -> NDArray[np.float32]:
    """Return whole vectors of some of the pictures."""
    from convnets_torch.embeddings.projection import sampled

    most = PIXEL_BYTES * job.options.reading.limit
    names = sampled(name for names in _names(job) for name in names)
    listed = (Listed(Entry(0, name, None, None), 0, job.query_of(name), most) for name in names)
    with closing(fetched_ahead(listed, running.fetch_threads)) as ahead, closing(computer.rows(ahead)) as rows:
        found = [values.vector for _, values in rows if values.error is None]
    return np.stack(found) if found else np.zeros((0, 1), np.float32)


def _names(job: Job) -> Iterator[list[str]]:
    """Yield the names of all pictures, some thousand at a time."""
    for number in range(-(-job.shards // job.file_shards)):
        name = f"{MANIFEST}/{part_name(number)}.parquet"
        with job.folder.open(name) as file, reading_of(f"{job.folder}/{name}"):
            for batch in parquet().ParquetFile(file).iter_batches(columns=["uri"], use_threads=False):
                yield batch.column(0).to_pylist()


def commit(job: Job) -> tuple[int, int, dict[str, int]]:
    """Add the fragments of a job, all of whose shards are there, to the table, once.

    Returns:
        The rows of the job, how many of these were added now, and its bad pictures by kind.

    Raises:
        ValueError: the table is another one than that of the plan; pictures are in it already, or twice in the job; or
            fragments are gone.
        OSError: the table cannot be read or written.
    """
    errors = Counter[str]()
    if job.folder.exists(COMMITTED):
        from convnets_torch import files

        known = files.loads(job.folder.read(COMMITTED, MOST_COMMITTED).decode())
        return int(known["rows"]), 0, dict(known["errors"])
    fragments: dict[str, Any] = {}

    def told(shard: int) -> dict[str, Any]:
        with Part(job, shard) as part:
            return part.about

    with ThreadPoolExecutor(FETCH_THREADS) as threads:
        for about in threads.map(told, range(job.shards)):
            errors.update(about["errors"])
            fragments[about["fragment"]["files"][0]["path"]] = about["fragment"]
    rows = sum(int(fragment["physical_rows"]) for fragment in fragments.values())
    added = _committed(job, fragments)
    said = {"rows": rows, "errors": dict(errors), "fragments": len(fragments)}
    job.folder.write(COMMITTED, lambda file: file.write(json.dumps(said).encode()))
    return rows, rows if added else 0, dict(errors)


def _committed(job: Job, fragments: Mapping[str, Any]) -> bool:
    """Commit the fragments unless they are there; then remove the files that killed writers left."""
    lance, index = pylance(), str(job.options.index)
    for _ in range(COMMITS):
        table = PictureTable.open(index)
        if table.about != job.about:
            raise ValueError(f"{index} is not the index that {job.folder} was planned for; plan another job")
        data = opened(index)
        there = [fragment.metadata for fragment in data.get_fragments()]
        names = {file.path for fragment in there for file in fragment.files}
        if names & fragments.keys() or (there and _was_committed(job, data)):
            _clean(job, names | fragments.keys())
            return False
        if there:
            with _digests_of(job) as digests:
                _check_new(job, digests, table)
        _check_there(job, fragments)
        ids = [fragment.id for fragment in there]
        for known in data.describe_indices():  # which may tell of fragments that are gone
            ids += [number for segment in known.segments for number in segment.fragment_ids]
        first = max(ids, default=-1) + 1
        new = [lance.FragmentMetadata.from_json(json.dumps(each)) for each in fragments.values()]
        for number, fragment in enumerate(new, start=first):
            fragment.id = number
        # Not an append, two of which would both succeed: a merge fails if anybody else has changed anything meanwhile.
        operation = lance.LanceOperation.Merge(there + new, data.lance_schema)
        change = lance.Transaction(data.version, operation, transaction_properties={PROPERTY: job.digest})
        try:
            with refused(index):
                made = lance.LanceDataset.commit(address_of(index), change, storage_options=storage_options(index))
        except lance.commit.CommitConflictError:
            continue
        _clean(job, {file.path for fragment in made.get_fragments() for file in fragment.metadata.files})
        return True
    raise OSError(f"{index} is changed by others all the time; run the same command again")


def _was_committed(job: Job, data: Any) -> bool:
    """Return whether an earlier version of the table is the commit of a job, whose files were joined since."""
    with refused(str(job.options.index)):
        recent = data.get_transactions(VERSIONS)
    return any(each is not None and (each.transaction_properties or {}).get(PROPERTY) == job.digest for each in recent)


def _check_there(job: Job, fragments: Mapping[str, Any]) -> None:
    """Raise ValueError if files of fragments are gone; their shards are then computed again."""
    there = {name for name, _ in folder_of(str(job.options.index)).list(DATA)}
    gone = [shard for shard, name in enumerate(fragments) if name not in there]
    for shard in gone:
        job.folder.remove(job.part(shard))
    if gone:
        raise ValueError(
            f"the files of {len(gone)} shards were removed from {job.options.index}; run the same command again, which"
            " computes them again"
        )


def _clean(job: Job, kept: set[str]) -> None:
    """Remove the files of a job that no fragment names."""
    folder, prefix = folder_of(str(job.options.index)), prefix_of(job)
    for name, _ in [*folder.list(DATA)]:
        if name.startswith(prefix) and name not in kept:
            folder.remove(f"{DATA}/{name}")


def _digests(names: Sequence[str]) -> NDArray[np.uint64]:
    """Eight bytes for each name."""
    joined = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(joined, np.uint64)


@contextlib.contextmanager
def _digests_of(job: Job) -> Iterator[NDArray[np.uint64]]:
    """Give the digests of the names of all pictures, sorted, in a file: eight bytes each."""
    turns = -(-job.pictures // TOGETHER)
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        parts = [Path(scratch, str(turn)) for turn in range(turns)]
        files = [stack.enter_context(part.open("w+b")) for part in parts]
        for digests in map(_digests, _names(job)):
            turn = ((digests >> np.uint64(32)) * np.uint64(turns)) >> np.uint64(32)
            for number, file in enumerate(files):
                file.write(digests[turn == number].tobytes())
        whole = np.memmap(Path(scratch, "all"), np.uint64, "w+", shape=(job.pictures,))
        place = 0
        for file, part in zip(files, parts, strict=True):
            file.flush()
            some = np.fromfile(part, np.uint64)
            some.sort()
            whole[place : place + len(some)] = some
            place += len(some)
        yield whole


def _check_twice(job: Job, digests: NDArray[np.uint64]) -> None:
    """Raise ValueError if a picture is in the job twice: the table's key is the path."""
    twice = set[int]()
    for start in range(0, len(digests), TOGETHER):
        some = np.asarray(digests[start : start + TOGETHER + 1])
        twice.update(some[1:][some[1:] == some[:-1]][:NAMED].tolist())
    if not twice:
        return
    seen = Counter(name for names in _names(job) for name in _with(names, twice))
    for name, count in seen.items():
        if count > 1:
            raise ValueError(f"{name} is named {count} times, but an index holds a picture once; plan another job")


def _with(names: Sequence[str], digests: set[int]) -> Iterator[str]:
    """Yield the names that have some digests."""
    for name, digest in zip(names, _digests(names).tolist(), strict=True):
        if digest in digests:
            yield name


def _check_new(job: Job, digests: NDArray[np.uint64], table: PictureTable) -> None:
    """Raise ValueError if the table has pictures of a job."""
    count, some = 0, set[str]()
    for batch in table.read(["path"]):
        names = batch["path"].to_pylist()
        found = _digests(names)
        there = digests[np.searchsorted(digests, found) % len(digests)] == found
        count += int(there.sum())
        some.update(names[place] for place in np.flatnonzero(there)[: NAMED - len(some)])
    if not count:
        return
    wanted = set(_digests(sorted(some)).tolist())
    for name in (name for names in _names(job) for name in _with(names, wanted)):
        if name in some:
            raise ValueError(
                f"{table.address} already has {count:,} of the {job.pictures:,} pictures, such as {name}; leave them"
                " out, or update them with `convnets-torch index` without a job"
            )


def index_vectors(
    address: str | os.PathLike[str],
    segments: int = 1,
    metric: Metric = "cosine",
    *,
    executor: Executor = "auto",
    ray_address: str | None = None,
    workers: int | None = None,
    cpus: int | None = None,
    tries: int = TRIES,
    progress: Callable[[Event], None] | None = None,
) -> Summary:
    """Build the approximate index (IVF_PQ) of an index in segments, and commit them once.

    Centroids and codebook are trained once, on a sample; workers build the segments, each of some fragments of the
    table, and a segment counts only together with the centroids that it was built with. It replaces the approximate
    index that was there. The call may be interrupted and made again, as `index`; a second one adds nothing.

    Args:
        address: of the index: a folder, or the address of a store.
        segments: into how many the work is divided, at most one for each fragment of the table.
        metric: that searches will use.
        ray_address: `address` of `run`.
        executor, workers, cpus, tries, progress: as for `run`; `pictures` of an event are rows.

    Returns:
        What was done; nothing is committed if a segment failed.

    Raises:
        ValueError: there are fewer than 512 rows; or the table was changed in the meantime.
        OSError: the index cannot be read or written; built segments are kept.
        ImportError: pyarrow, LanceDB, pylance or the package of a store is not installed.
    """
    pylance()
    check_choice(metric, get_args(Metric), "metric")
    if segments < 1:
        raise ValueError(f"segments must be 1 or more, got {segments}")
    work = plan_segments(absolute(address), segments, metric)
    for shard in work.failed():
        work.folder.remove(f"{FAILED}/{part_name(shard)}.json")
    summary = run(
        work.folder.address, executor=executor, address=ray_address, workers=workers, cpus=cpus, tries=tries,
        device="cpu", progress=progress,
    )  # fmt: skip
    if not summary.failed and not summary.missing:
        commit_segments(work)
    return summary

"""`index`, `index-vectors`, `search` and `duplicates`."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from convnets_torch.cli import options
from convnets_torch.cli.options import (
    FetchOptions,
    Images,
    RunOptions,
    Shown,
    Weights,
    WorkOptions,
    argument,
    command,
    option,
)
from convnets_torch.cli.output import complain, rows_done, say, show, warnings_as_lines
from convnets_torch.text import cell

if TYPE_CHECKING:
    from convnets_torch.embeddings.duplicates import Duplicate, DuplicateGroup
    from convnets_torch.embeddings.search import Index
    from convnets_torch.networks import Network

SHOWN = 20  # errors printed; the index stores all
Address = Annotated[str, typer.Argument(metavar="DB", help="An index written by `convnets-torch index`.")]
Metric = Annotated[
    Literal["cosine", "l2", "dot"], typer.Option(help="Cosine similarity, Euclidean distance, or dot product.")
]


@command(old={"--db": "--output"})
def index(
    weights: Weights,
    images: Images,
    output: str = option(..., "Index to write: a folder, created if missing, or a LanceDB address such as s3://..."),
    layer: options.Layer = None,
    pool: options.Pool = "avg",
    half: options.Half = False,
    pca: int | None = option(
        None,
        "Keep vectors projected on so many principal components, trained on the first pictures of a new index.",
        min=1,
        show_default="whole vectors",
    ),
    hash_all: bool = option(False, "Hash all files, also those whose size and time have not changed."),
    prune: bool = option(False, "Remove the rows of missing files, including those on a disk that is not mounted."),
    job: str | None = option(
        None, "Folder of a job that the work is divided by: a path, or an address such as s3://bucket/job."
    ),
    shard: options.Shard = 10_000,
    column: options.Column = None,
    *,
    run: RunOptions,
    work: FetchOptions,
    shown: Shown,
) -> None:
    """Index pictures for search. Only new and changed files are embedded; safe to interrupt at any time.

    Without --layer, the vectors are the input of the last dense layer.

    With --job, IMAGE may also be addresses such as s3://bucket/photos and tables (.parquet, .csv) of these, and any
    number of machines compute the rows, which are added once. Run the same command again after a crash, or from other
    machines.
    """
    if job is not None:
        if hash_all or prune:
            raise typer.BadParameter("--hash-all and --prune update an index, for which --job is of no use")
        _index_by_job(weights, images, output, layer, pool, half, pca, job, shard, column, run, work, shown)
        return
    if work != FetchOptions() or column is not None:
        raise typer.BadParameter("--executor, --column and other options of a job need --job JOB")
    from convnets_torch.embeddings.index import index_pictures

    network = run.load(weights, whole=layer is not None, bulk=True)
    with warnings_as_lines(), rows_done("pictures") as progress:
        done = index_pictures(
            network, images, output, layer, pool, weights=weights, hash_all=hash_all, prune=prune, half=half, pca=pca,
            exact=run.precision == "exact", exclude=run.exclude or (), progress=progress, **run.running,
        )  # fmt: skip
        count = len(done.index.vectors)  # also writes the cache that search reads
    _say_recall(pca, done.recall)
    say(
        f"{output}: {done.embedded} embedded, {done.moved} moved, {done.copied} duplicates of others,"
        f" {done.unchanged} unchanged, {done.failed} could not be used, {done.vanished} vanished"
        f"{f', {done.pruned} removed' if prune else ''}; {count} can be searched"
    )
    if shown.as_json:
        names = ("embedded", "moved", "copied", "unchanged", "failed", "vanished", "pruned")
        counts = {name: getattr(done, name) for name in names}
        print(json.dumps({"output": output, **counts, "searchable": count, "recall": done.recall}))
    if done.failed:
        for sentence in islice(done.index.errors(), SHOWN):
            complain(sentence)
        raise typer.Exit(1)


def _say_recall(pca: int | None, recall: float | None) -> None:
    if recall is not None:
        say(f"{pca} values keep {recall:.3f} of the 10 nearest that whole vectors have")


def _index_by_job(
    weights: str,
    images: list[str],
    output: str,
    layer: str | None,
    pool: Any,
    half: bool,
    pca: int | None,
    job: str,
    shard: int,
    column: str | None,
    run: RunOptions,
    work: FetchOptions,
    shown: Shown,
) -> None:
    from convnets_torch.batch.indexing import index as index_by_job
    from convnets_torch.cli.batch_commands import bad, tell_summary, teller

    run.without_engine()
    with warnings_as_lines():
        done = index_by_job(
            weights, images, output, job, layer, pool, half=half, pca=pca, shard=shard, precision=run.precision,
            exact=run.precision == "exact", column=column, exclude=run.exclude or (), **run.reading,
            executor=work.executor, ray_address=work.address, workers=work.actors, cpus=work.cpus, tries=work.tries,
            fetch_threads=work.fetch_threads, threads=run.workers, batch=run.batch, device=run.device,
            allow_bad=work.allow_bad, progress=teller(shown),
        )  # fmt: skip
    tell_summary(done.summary, shown)
    _say_recall(pca, done.recall)
    say(f"{output}: {done.added} of the job's {done.rows} rows added now{bad(done.errors)}")
    if shown.as_json:
        print(json.dumps({"output": output, "rows": done.rows, "added": done.added, "errors": done.errors}))


@command()
def index_vectors(
    db: Address,
    segments: int = option(1, "Into how many segments the work is divided, at most one per fragment.", min=1),
    metric: Metric = "cosine",
    *,
    work: WorkOptions,
    shown: Shown,
) -> None:
    """Build the approximate index that `search --approximate` uses, in segments, on one machine or many."""
    from convnets_torch.batch.indexing import index_vectors as build
    from convnets_torch.cli.batch_commands import tell_summary, teller

    found = build(
        db, segments, metric, executor=work.executor, ray_address=work.address, workers=work.actors, cpus=work.cpus,
        tries=work.tries, progress=teller(shown, "rows"),
    )  # fmt: skip
    tell_summary(found, shown, "rows")


TILES_PER_ROW = 6  # tiles per row of a sheet


@command(old={"--ann": "--approximate", "--class": "--target"})
def search(
    db: Address,
    queries: list[str] = argument(
        ..., "Pictures, or paths or sha256 of indexed rows, which need no network.", "QUERY..."
    ),
    k: int = option(12, "Number of results per query.", "-k", min=1),
    metric: Metric = "cosine",
    target: options.Targets = None,
    box: str | None = option(None, "Part of each query to search for, in pixels.", metavar="X0,Y0,X1,Y1"),
    approximate: bool = option(
        False,
        "Search approximately with LanceDB's index; prints the recall against exact search, unless --in-place.",
        "--approximate/--exact",
    ),
    refine: int = option(
        10, "With --approximate: so many times -k candidates are compared by the vectors themselves.", min=1
    ),
    in_place: bool = option(False, "Read the vectors where the index lies, without copying them to this machine."),
    address: str | None = option(
        None,
        "With --in-place: Ray cluster whose processes read the vectors, as for index.",
        show_default="this process reads them",
    ),
    output: Path | None = option(None, "Contact sheet to write, as a picture."),
    weights: str | None = option(
        None, "Weights for queries that are not in the index.", show_default="as when indexed"
    ),
    *,
    run: RunOptions,
    shown: Shown,
) -> None:
    """Find the indexed pictures nearest to each query, leaving out copies of the query itself."""
    corners = None if box is None else _corners(box)
    from convnets_torch.embeddings.search import Index, recall
    from convnets_torch.visualization import overlays

    options.check_output(output, overlays.FORMATS, "sheets are")
    index = Index.open(db)
    if address is not None:
        if not in_place or approximate:
            raise typer.BadParameter("--address names a cluster for exact searches with --in-place; leave it out")
        from convnets_torch.batch.scanning import scan_on_ray

        index.scan = scan_on_ray(address)
    queries = [path for name in queries for path in (run.find(name) if Path(name).is_dir() else [name])]
    only, runs = (
        options.one_target(target),
        corners is not None or not all(index.holds(query, in_place) for query in queries),
    )
    network = _network(index, weights, run) if weights is not None or runs else None
    asked: dict[str, Any] = {"metric": metric, "target": only, "box": corners, "network": network, **run.running}
    with warnings_as_lines() if runs else contextlib.nullcontext():
        found = index.search(queries, k, approximate=approximate, refine=refine, in_place=in_place, **asked)
        if approximate and not in_place:
            exact = index.search(queries, k, **asked)
            say(
                f"recall {recall(exact, found):.3f} of {sum(len(each.found) for each in exact)} that exact search finds"
            )
    for each in found:
        if shown.as_json:
            print(json.dumps(each.to_dict()))
            continue
        if len(found) > 1:
            show(each.query)
        for match in each.found:
            words = f"{match.probability or 0:.3f}  {match.words}" if match.words else ""
            more = f"({len(match.paths)} paths)" if len(match.paths) > 1 else ""
            line = (f"{match.score:.4f}", match.path, words, more, "(gone)" if match.gone else "")
            show("  ".join(part for part in line if part))
    for each in found:
        if target is not None and not each.found:
            say(f"{each.query}: the index has no other picture whose most probable class is of {only!r}")
    if gone := sum(match.gone for each in found for match in each.found):
        say(f"{gone} of these pictures are gone; index again to leave them out")
    if output is not None:
        from convnets_torch.embeddings.result_sheets import search_sheet

        overlays.save_image(search_sheet(index, found, TILES_PER_ROW, metric), output)


def _network(index: Index, weights: str | None, run: RunOptions) -> Network:
    """Load the network for queries that are not in the index, by default the one that made it."""
    from convnets_torch.embeddings.search import network_of

    if weights is not None:
        return run.load(weights)
    run.without_engine()
    return run.ready(network_of(index))


def _corners(box: str) -> tuple[int, int, int, int]:
    try:
        left, top, right, bottom = map(int, box.split(","))
    except ValueError:
        raise typer.BadParameter(f"a box is four integers, left,top,right,bottom, not {box!r}") from None
    return left, top, right, bottom


GROUP_HEADERS = ("group", "mark", "cosine", "width", "height", "bytes", "path", "least_cosine", "chain")
LEAK_HEADERS = ("path", "of", "cosine")


@command(old={"--threshold": "--min-similarity"})
def duplicates(
    db: Address,
    min_similarity: float = option(0.95, "Minimum cosine similarity of near-duplicates, above 0 and up to 1."),
    between: tuple[str, str] | None = option(
        None, "Two folders: find pictures of A that have a near-duplicate in B.", metavar="A B"
    ),
    output: Path | None = option(None, "Contact sheet to write, as a picture, or .csv."),
    job: str | None = option(
        None, "Folder of a job that the work is divided by: a path, or an address such as s3://bucket/job."
    ),
    executor: Literal["auto", "local", "static", "ray"] = option("auto", "With --job: who compares, as in batch run."),
    address: str | None = option(
        None, "With --job: Ray cluster, as in batch run.", show_default="RAY_ADDRESS, or local"
    ),
    *,
    shown: Shown,
) -> None:
    """Find groups of near-duplicate files, or pictures of one folder that leaked from another.

    Each path is marked "keep" (largest file of its group), "same" (another path of the file above), "link" or "gone",
    followed by its cosine similarity to the first of the group, width x height, and size in bytes.
    """
    threshold = min_similarity
    if not 0 < threshold <= 1:
        raise typer.BadParameter(f"--min-similarity is {threshold}; give a cosine similarity above 0 and up to 1")
    from convnets_torch.embeddings.index_table import is_there
    from convnets_torch.embeddings.search import Index
    from convnets_torch.visualization import overlays

    options.check_output(output, [".csv", *overlays.FORMATS], "tables and sheets are")
    if job is None and (executor, address) != ("auto", None):
        raise typer.BadParameter("--executor and --address need --job, a folder that all processes see")
    if job is not None and between is not None:
        raise typer.BadParameter("--job compares all pairs; leave out --between")
    index = Index.open(db)
    groups: list[DuplicateGroup] = []
    leaks: list[tuple[str, str, float]] = []
    with rows_done("pairs of blocks") as progress:
        if job is not None:
            from convnets_torch.batch.duplicating import duplicates as compare

            groups = compare(db, threshold, job, executor=executor, address=address, progress=_say_square)
        elif between is None:
            groups = index.duplicates(threshold, progress)
        else:
            leaks = index.leaks(*between, threshold, progress)
    for group in groups:
        if shown.as_json:
            print(json.dumps(group.to_dict()))
            continue
        for mark, file, path in _lines(group):
            size = f"{file.width} x {file.height}" if file.width else ""
            show(f"{mark:4}  {file.cosine:.4f}  {size:>13}  {'' if file.bytes is None else file.bytes:>11}  {path}")
        if group.chain:
            print(f"a chain: its smallest cosine is {group.least_cosine:.4f}")
        print()
    for path, source, similarity in leaks:
        if shown.as_json:
            print(json.dumps({"path": path, "of": source, "similarity": similarity}))
        else:
            show(f"{similarity:.4f}  {path}  {source}")
    gone = sum(file.gone for group in groups for file in group.files)
    if gone := gone + sum(not is_there(path) for leak in leaks for path in leak[:2]):
        say(f"{gone} of these files are gone; index again to leave them out")
    if output is not None and output.suffix.lower() == ".csv":
        _save_table(output, groups, leaks, between is not None)
    elif output is not None:
        from convnets_torch.embeddings.result_sheets import groups_sheet

        tiles: Sequence[Sequence[tuple[str, str]]] = [[(a, ""), (b, f"{near:.3f}")] for a, b, near in leaks] or [
            [(path, f"{file.cosine:.3f} {mark}") for mark, file, path in _lines(group) if mark != "same"]
            for group in groups
        ]
        overlays.save_image(groups_sheet(index, tiles, TILES_PER_ROW), output)


def _say_square(event: dict[str, Any]) -> None:
    if event["event"] == "shard":
        rate = f"{event['pairs_per_second']:,} pairs/s"
        say(f"square {event['shard']}: {event['found']} rows joined, {rate}; {event['done']} of {event['shards']}")
    else:
        complain(f"square {event['shard']}: {event['event']}: {event['reason']}")


def _lines(group: DuplicateGroup) -> Iterator[tuple[str, Duplicate, str]]:
    """Yield (mark, file, path) for each path of a group."""
    for file in group.files:
        mark = "gone" if file.gone else "link" if file.link else "keep" if file.paths[0] == group.keeper else ""
        yield mark, file, file.paths[0]
        for path in file.paths[1:]:
            yield "same", file, path


def _save_table(
    output: Path, groups: Sequence[DuplicateGroup], leaks: Sequence[tuple[str, str, float]], between: bool
) -> None:
    """Write groups (one row per path) or leaks as CSV; text goes through `cell`."""
    from convnets_torch.files import replacing

    with replacing(output) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(LEAK_HEADERS if between else GROUP_HEADERS)
        for path, source, similarity in leaks:
            table.writerow([cell(path), cell(source), f"{similarity:.6f}"])
        for number, group in enumerate(groups, start=1):
            whole = (f"{group.least_cosine:.6f}", "chain" if group.chain else "")
            for mark, each, path in _lines(group):
                size = (each.width, each.height, each.bytes)
                table.writerow([number, mark, f"{each.cosine:.6f}", *size, cell(path), *whole])

"""`batch plan`, `batch run` and what belongs to them: jobs over any number of pictures, on one machine or many."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from convnets_torch.cli import options
from convnets_torch.cli.options import (
    HELP,
    Command,
    FetchOptions,
    Labels,
    PlaceOptions,
    PlanOptions,
    Shown,
    argument,
    command,
    option,
)
from convnets_torch.cli.output import complain, print_columns, say, show, warnings_as_lines

if TYPE_CHECKING:
    from convnets_torch.batch.running import Summary

JOB = "Folder of the job: a path, or an address such as s3://bucket/job."
Job = Annotated[str, typer.Argument(metavar="JOB", help=JOB)]
Kinds = Annotated[
    str | None,
    typer.Option(
        "--kind",
        metavar="KIND,...",
        help="Kinds of bad pictures: missing, changed, unreadable, refused; for retry also damaged.",
    ),
]
STRICT = 3  # exit code of `run --strict` for bad pictures

app = typer.Typer(
    help="Run a network over any number of pictures, on one machine, SLURM, Kubernetes or Ray.",
    no_args_is_help=True,
    context_settings=HELP,
)


@command()
def plan(
    job: Job,
    pictures: list[str] = argument(
        ...,
        "Folders, addresses such as s3://bucket/photos, or tables (.parquet, .csv) with a column of these.",
        "PICTURES...",
    ),
    weights: str = option(..., "A .safetensors file or the name of cached weights.", "--weights"),
    outputs: str = option("classes", "What to compute: some of classes, vector, logits, heatmap.", metavar="NAME,..."),
    target: options.Targets = None,
    layer: options.Layer = None,
    pool: options.Pool = "avg",
    normalize: bool = option(False, "L2-normalise each vector."),
    half: options.Half = False,
    top: options.Top = 5,
    shard: options.Shard = 10_000,
    column: options.Column = None,
    longest_side: options.LongestSide = None,
    reduced: options.Reduced = False,
    *,
    read: PlanOptions,
    shown: Shown,
) -> None:
    """List pictures in shards, and write down what to compute of them; no network is loaded."""
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # Arrow's own keeps 30 MB of what is free
    from convnets_torch.batch.jobs import plan as make

    with warnings_as_lines():
        made = make(
            job, pictures, weights=weights, outputs=[name.strip() for name in outputs.split(",")], targets=target or (),
            layer=layer, pool=pool, normalize=normalize, half=half, top=top, shard=shard, precision=read.precision,
            exact=not reduced, longest_side=longest_side, column=column, exclude=read.exclude or (), **read.reading,
        )  # fmt: skip
    if shown.as_json:
        print(json.dumps({"job": job, "pictures": made.pictures, "shards": made.shards, "digest": made.digest}))
    else:
        show(f"{made.pictures} pictures in {made.shards} shards")


@command()
def run(
    job: Job,
    weights: str | None = option(
        None, "The weights file, if it lies elsewhere on this machine.", "--weights", show_default="as planned"
    ),
    strict: bool = option(False, "Exit with 3 if any picture of the job is bad."),
    *,
    place: PlaceOptions,
    work: FetchOptions,
    shown: Shown,
) -> None:
    """Compute the shards of a job that are missing; run it again at any time, from any number of machines."""
    from convnets_torch.batch.jobs import Job as Planned
    from convnets_torch.batch.results import errors_by_kind
    from convnets_torch.batch.running import run as compute

    with warnings_as_lines():
        found = compute(
            job, executor=work.executor, address=work.address, workers=work.actors, cpus=work.cpus, tries=work.tries,
            fetch_threads=work.fetch_threads, threads=place.workers, batch=place.batch, device=place.device,
            weights=weights, allow_bad=work.allow_bad, progress=teller(shown),
        )  # fmt: skip
    tell_summary(found, shown)
    if strict and errors_by_kind(Planned.open(job)):
        raise typer.Exit(STRICT)


def teller(shown: Shown, what: str = "pictures") -> Callable[[dict[str, Any]], None]:
    """Return a function that prints the events of a run; `what` is counted in them."""

    def tell(event: dict[str, Any]) -> None:
        if shown.as_json:
            print(json.dumps(event), flush=True)
        elif event["event"] == "shard":
            errors = bad(event["errors"])
            rate = f"{event['pictures_per_second']:.1f} {what}/s"
            done = f"{event['done']} of {event['shards']}"
            say(f"shard {event['shard']}: {event['pictures']} {what}, {rate}{errors}; {done}")
        else:
            complain(f"shard {event['shard']}: {event['event']}: {event['reason']}")

    return tell


def tell_summary(found: Summary, shown: Shown, what: str = "pictures") -> None:
    """Print what a run did; exit with 1 if it is not complete."""
    if shown.as_json:
        print(json.dumps({"event": "summary", **found.to_dict()}))
    else:
        _print_summary(found, what)
    if found.failed or found.missing:
        raise typer.Exit(1)


def bad(errors: dict[str, int]) -> str:
    """Numbers of bad pictures by kind, as the end of a line."""
    return "".join(f", {count} {kind}" for kind, count in sorted(errors.items()))


def _print_summary(found: Summary, what: str) -> None:
    rate = "" if found.throughput is None else f", {found.throughput:.1f} {what}/s"
    show(f"{found.done} of {found.shards} shards computed, {found.pictures} {what}{bad(found.errors)}{rate}")
    for shard, reason in found.failed.items():
        complain(f"shard {shard}: {reason}")
    if found.failed:
        complain(
            f"{len(found.failed)} shards failed; `convnets-torch batch retry` lets the next run compute them again"
        )


@command()
def status(job: Job, *, shown: Shown) -> None:
    """Show how far a job is, from a listing of its files alone: shards, pictures a second, time left."""
    from convnets_torch.batch.results import status as find

    found = find(job)
    if shown.as_json:
        print(json.dumps(found.to_dict()))
        return
    rate = "unknown" if found.throughput is None else f"{found.throughput:.1f} pictures/s"
    rows = [
        ("shards", f"{found.done} of {found.shards}"), ("pictures", f"{found.done_pictures} of {found.pictures}"),
        ("failed shards", str(len(found.failed))), ("rate", rate), ("time left", _duration(found.seconds_left)),
    ]  # fmt: skip
    print_columns(rows)


def _duration(seconds: float | None) -> str:
    """A time in words.

    >>> _duration(93784), _duration(None)
    ('1 d 2 h 3 min', 'unknown')
    """
    if seconds is None:
        return "unknown"
    days, rest = divmod(round(seconds), 86400)
    hours, rest = divmod(rest, 3600)
    parts = [(days, "d"), (hours, "h"), (rest // 60, "min"), (0 if days or hours else rest % 60, "s")]
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or "0 s"


@command()
def check(job: Job, *, shown: Shown) -> None:
    """Read all parts of a job and compare them with its list of pictures; exit code 1 if one is missing or damaged."""
    from convnets_torch.batch.results import check as look

    found = look(job)
    if shown.as_json:
        print(json.dumps(found.to_dict()))
    else:
        missing = f"{len(found.missing)} of {found.shards} shards missing"
        show(f"{found.rows} rows of {found.pictures} pictures{bad(found.errors)}; {missing}")
        for shard, reason in (*found.damaged.items(), *found.failed.items()):
            complain(f"shard {shard}: {reason}")
        for name in found.strange:
            say(f"{name} is no file of this job")
    if not found.whole:
        raise typer.Exit(1)


@command()
def errors(job: Job, kind: Kinds = None, *, shown: Shown) -> None:
    """Print the bad pictures of a job: id, kind, address, error."""
    from convnets_torch.batch.results import errors as find

    for each in find(job, _kinds(kind)):
        if shown.as_json:
            print(json.dumps(vars(each)))
        else:
            show(f"{each.id}  {each.kind:<10}  {each.error if each.uri in each.error else f'{each.uri}: {each.error}'}")


def _kinds(text: str | None) -> list[str]:
    return [] if text is None else [name.strip() for name in text.split(",")]


@command()
def retry(job: Job, kind: Kinds = None, *, shown: Shown) -> None:
    """Let the next run compute failed shards again, and with --kind those with such pictures."""
    from convnets_torch.batch.results import retry as forget

    found = forget(job, _kinds(kind))
    if shown.as_json:
        print(json.dumps({"failed": list(found.failed), "removed": list(found.removed)}))
    else:
        show(f"{len(found.failed)} failed shards and {len(found.removed)} with bad pictures will be computed again")


@command()
def collect(
    job: Job,
    table: str | None = argument(None, "File for all rows: .parquet, .csv (of classes) or .lance.", "TABLE"),
    evaluate: Path | None = option(
        None,
        "Labelled pictures, as evaluate takes them: measure the network's errors from the job's logits.",
        metavar="FOLDER",
    ),
    id_table: Path | None = option(None, "File of lines 'id wnid', for labels that are ILSVRC's own ids, 1 to 1000."),
    labels: Literal["auto", "class-ids"] = option(
        "auto", "Meaning of numeric labels: class-ids count from 0; auto refuses ambiguous numbers."
    ),
    incomplete: bool = option(False, "Take the shards that are there, even if some are missing."),
    *,
    given: Labels,
    shown: Shown,
) -> None:
    """Gather the rows of a job in one table, or evaluate the network on labelled pictures.

    The rows of a job of `convnets-torch index` are added to its index.
    """
    from convnets_torch.batch.jobs import Job as Planned

    index = Planned.open(job).options.index
    if table is None and evaluate is None and index is None:
        raise typer.BadParameter("give a TABLE, --evaluate FOLDER, or both")
    from convnets_torch.batch.collecting import check_table
    from convnets_torch.batch.collecting import collect as gather

    if table is not None:
        check_table(table)
    known = given.with_exclude(None)
    known.pop("exclude")
    with warnings_as_lines():
        found = gather(job, table, evaluate=evaluate, id_table=id_table, labels=labels, incomplete=incomplete, **known)
    if table is not None or index is not None:
        say(f"{table or index}: {found.rows} rows{bad(found.errors)}")
    if found.evaluation is not None:
        from convnets_torch.cli.evaluate_command import print_metrics
        from convnets_torch.evaluation.report import compute_metrics

        metrics = compute_metrics(found.evaluation)
        for note in (*found.evaluation.notes, *metrics.notes):
            say(note)
        if shown.as_json:
            print(json.dumps(metrics.to_dict()))
        else:
            print_metrics(metrics)
    elif shown.as_json:
        print(json.dumps({"rows": found.rows, "errors": found.errors}))


for function in (plan, run, status, check, errors, retry, collect):
    app.command(cls=Command)(function)

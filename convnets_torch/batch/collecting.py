"""Gather the rows of a job: one table of them, or the evaluation of a network on labelled pictures."""

from __future__ import annotations

import csv
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from convnets_torch.batch.indexing import commit
from convnets_torch.batch.jobs import Job
from convnets_torch.batch.rows import Part, parts, schema
from convnets_torch.files import check_output, replacing
from convnets_torch.images.remote import is_remote
from convnets_torch.images.stores import local_path, parquet, pyarrow
from convnets_torch.text import cell

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from convnets_torch.evaluation.evaluate import Evaluation
    from convnets_torch.evaluation.labels import GroundTruth

ENDINGS = (".parquet", ".csv", ".lance")
LANCE_TABLE = "rows"  # name of the table in a folder of LanceDB
COLUMNS = ("image", "rank", "probability", "class_id", "wnid", "words", "error")  # as `classify --csv` has them
NAMED = 5  # pictures or shards that a message names


@dataclass(frozen=True, eq=False)
class Collected:
    """What was collected.

    Attributes:
        rows: number of rows; with several targets a picture has several.
        errors: bad pictures among them, by kind.
        evaluation: of the network, if labels were given.
    """

    rows: int
    errors: dict[str, int]
    evaluation: Evaluation | None = None


def collect(
    job: str | os.PathLike[str],
    table: str | os.PathLike[str] | None = None,
    *,
    evaluate: str | os.PathLike[str] | GroundTruth | None = None,
    truth: str | os.PathLike[str] | None = None,
    id_table: str | os.PathLike[str] | None = None,
    labels: Any = "auto",
    columns: Sequence[str] | None = None,
    partial: bool = False,
    incomplete: bool = False,
) -> Collected:
    """Gather the rows of a job in the order of its pictures. It may be called any number of times.

    Those of a job that `index` planned are added to its index, once.

    Args:
        job: where `plan` made it.
        table: file for all rows: .parquet; .csv, one row for each class or error, as `classify` writes it; or .lance, a
            folder or address with a LanceDB table `rows`, whose vectors have a fixed size. Without it the rows are only
            counted.
        evaluate: labelled pictures, as `evaluate` takes them: a folder of class folders, a table, or `find_truth`'s
            result. For pictures in a store: a table of their addresses and labels. The job needs the output logits. The
            evaluation equals that of `evaluate` on the same pictures.
        truth, id_table, labels, columns, partial: with `evaluate`, as for `find_truth`.
        incomplete: take the shards that are there, even if some are missing.

    Returns:
        What was collected.

    Raises:
        ValueError: shards are missing; labelled pictures are not in the job; a part is damaged; the job lacks an output
            that is needed.
        OSError: the table cannot be written.
        ImportError: LanceDB is not installed.

    >>> from convnets_torch import batch
    >>> _ = batch.plan("job", "street.jpg", weights="alexnet.safetensors")
    >>> _ = batch.run("job", executor="local")
    >>> batch.collect("job", "answers.csv").rows
    1
    """
    planned = Job.open(job)
    done = planned.done()
    shards = sorted(shard for shard in done if shard < planned.shards)
    if len(shards) < planned.shards and not incomplete:
        missing = [shard for shard in range(planned.shards) if shard not in done]
        named = ", ".join(map(str, missing[:NAMED])) + (", ..." if len(missing) > NAMED else "")
        raise ValueError(
            f"{len(missing)} of {planned.shards} shards of {planned.folder} are missing ({named}); run the job first,"
            " or take what is there (incomplete, --incomplete)"
        )
    if planned.options.index is not None:
        if table is not None or evaluate is not None or len(shards) < planned.shards:
            raise ValueError(f"the rows of {planned.folder} go to {planned.options.index}, all at once; name no table")
        count, _, errors = commit(planned)
        return Collected(count, errors)
    evaluation = None
    if evaluate is not None:
        if "logits" not in planned.options.outputs:
            raise ValueError(
                f"{planned.folder} has the outputs {', '.join(planned.options.outputs)}, but an evaluation needs"
                " logits; plan a job with them"
            )
        known = _truth(planned, evaluate, truth, id_table, labels, columns, partial)
        evaluation = _evaluated(planned, shards, known)
    counted = Counter[str]()
    rows = 0

    def every() -> Iterator[Part]:
        nonlocal rows
        for part in parts(planned, shards):
            rows += part.rows
            counted.update(part.about["errors"])
            yield part

    if table is None:
        for _ in every():
            pass
    else:
        _write(planned, str(table), every())
    return Collected(rows, dict(counted), evaluation)


def check_table(table: str | os.PathLike[str]) -> None:
    """Raise if a table cannot be written.

    Raises:
        ValueError: the ending is unknown, or a table of this kind cannot lie in a store.
        OSError: it is there already, or cannot be written.
    """
    place = str(table)
    if PurePath(place).suffix.lower() == ".lance":
        if not is_remote(place) and (local_path(place) / f"{LANCE_TABLE}.lance").exists():
            raise FileExistsError(f"{place} holds a table of rows already; name another one, or remove it")
        return
    if is_remote(place):
        raise ValueError(f"{place}: a table in a store can be .lance; the folder parts of a job is a Parquet data set")
    check_output(local_path(place), ENDINGS, "rows")


def _write(job: Job, table: str, every: Iterator[Part]) -> None:
    check_table(table)
    ending = PurePath(table).suffix.lower()
    if ending == ".lance":
        _write_lance(job, table, every)
        return
    with replacing(local_path(table)) as temporary:
        if ending == ".csv":
            _write_csv(job, temporary, every)
            return
        with parquet().ParquetWriter(temporary, schema(job.options.half), compression="zstd") as writer:
            for part in every:
                writer.write_table(part.table().replace_schema_metadata(None))


def _write_csv(job: Job, path: Path, every: Iterator[Part]) -> None:
    if "classes" not in job.options.outputs:
        raise ValueError(f"{job.folder} has no classes, which a .csv holds; collect its rows as .parquet or .lance")
    from convnets_torch.wordnet.targets import class_name, class_wnid

    card = job.card
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        last = -1
        for part in every:
            names = ["id", "uri", "class_ids", "probabilities", "error"]
            for number, uri, class_ids, probabilities, error in zip(
                *part.table(names).to_pydict().values(), strict=True
            ):
                if number == last:  # the row of another target
                    continue
                last = number
                for rank, (class_id, value) in enumerate(zip(class_ids or (), probabilities or (), strict=True), 1):
                    wnid, words = class_wnid(card, class_id) or "", cell(class_name(card, class_id))
                    writer.writerow([cell(uri), rank, f"{value:.6f}", class_id, wnid, words, ""])
                if error is not None:
                    writer.writerow([cell(uri), "", "", "", "", "", cell(error)])


def _write_lance(job: Job, address: str, every: Iterator[Part]) -> None:
    pa = pyarrow()
    try:
        import lancedb
    except ImportError:
        raise ImportError("a .lance table needs LanceDB: pip install 'convnets-torch[search]'") from None
    from convnets_torch.embeddings.index_table import refusing

    first = next(every)
    tables = (each.table() for each in _chained(first, every))
    start = next(tables)
    fields = []
    for each in schema(job.options.half):
        kind = each.type
        if each.name == "error_kind":
            kind = pa.string()
        elif each.name in ("vector", "logits"):
            width = next((len(value) for value in start[each.name].to_pylist() if value is not None), 0)
            kind = pa.list_(kind.value_type, width) if width else kind
        fields.append(pa.field(each.name, kind, each.nullable))
    wanted = pa.schema(fields)

    def batches() -> Iterator[Any]:
        for table in _chained(start, tables):
            columns = [_fixed(table[each.name], each.type) for each in wanted]
            yield from pa.table(columns, schema=wanted).to_batches()

    with refusing(address):
        database = lancedb.connect(str(local_path(address)) if not is_remote(address) else address)
        reader = pa.RecordBatchReader.from_batches(wanted, batches())
        database.create_table(LANCE_TABLE, data=reader, schema=wanted, on_bad_vectors="null")


def _chained(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _fixed(column: Any, kind: Any) -> Any:
    """Change lists to lists of a fixed size."""
    import numpy as np

    pa = pyarrow()
    if not pa.types.is_fixed_size_list(kind):
        return column.cast(kind)
    array = pa.chunked_array(column.chunks, column.type).combine_chunks()
    there = np.asarray(array.is_valid())
    flat = np.zeros((len(array), kind.list_size), kind.value_type.to_pandas_dtype())
    given = array.drop_null().flatten().to_numpy(zero_copy_only=False)
    if len(given) != there.sum() * kind.list_size:
        raise ValueError("vectors of several sizes are in one job; its parts are damaged")
    flat[there] = given.reshape(-1, kind.list_size)
    values = pa.array(flat.reshape(-1), kind.value_type)
    return pa.FixedSizeListArray.from_arrays(values, type=kind, mask=pa.array(~there))


def _truth(
    job: Job,
    evaluate: str | os.PathLike[str] | GroundTruth,
    truth: str | os.PathLike[str] | None,
    id_table: str | os.PathLike[str] | None,
    labels: Any,
    columns: Sequence[str] | None,
    partial: bool,
) -> GroundTruth:
    from convnets_torch.evaluation.labels import GroundTruth, find_truth, read_id_table, resolved_labels

    if isinstance(evaluate, GroundTruth):
        return evaluate
    if not is_remote(job.read(0)[0].uri):
        return find_truth(
            job.card, evaluate, truth=truth, id_table=id_table, labels=labels, columns=columns, partial=partial
        )
    import numpy as np

    from convnets_torch.images.labelled import read_labels

    table = Path(evaluate)
    rows = read_labels(table, columns)
    ids = None if id_table is None else read_id_table(Path(id_table))
    meant, notes = resolved_labels(job.card, (label for _, label in rows), str(table), labels=labels, table=ids)
    addresses: Any = tuple(uri for uri, _ in rows)  # not paths, which would lose a slash of s3://
    return GroundTruth(table.parent, addresses, np.array([meant[label] for _, label in rows]), tuple(notes))


def _evaluated(job: Job, shards: Sequence[int], truth: GroundTruth) -> Evaluation:
    """The evaluation of rows that a job has computed."""
    import numpy as np

    from convnets_torch.evaluation.evaluate import Running, evaluation_of

    places: dict[str, list[int]] = {}
    for place, path in enumerate(truth.paths):
        places.setdefault(_name(path), []).append(place)
    classes, failed, notes, found = job.card.classes, dict[int, str](), dict[int, list[str]](), set[int]()
    with tempfile.TemporaryFile() as file:
        file.truncate(max(1, 4 * classes * len(truth.paths)))
        logits: NDArray[np.float32] = np.memmap(file, "<f4", "r+", shape=(len(truth.paths), classes))
        for part in parts(job, shards):
            table = part.table(["uri", "logits", "error", "remarks"])
            wanted = np.flatnonzero([uri in places for uri in table["uri"].to_pylist()])
            columns = table.take(wanted)
            for uri, values, error, remarks in zip(*columns.columns, strict=True):
                for place in places[uri.as_py()]:
                    if place in found:
                        continue
                    found.add(place)
                    notes[place] = remarks.as_py() or []
                    if error.is_valid:
                        failed[place] = error.as_py()
                    else:
                        logits[place] = values.values.to_numpy(zero_copy_only=False)
        if missing := [str(path) for place, path in enumerate(truth.paths) if place not in found]:
            raise ValueError(
                f"{len(missing)} of {len(truth.paths)} labelled pictures are not in the job, such as {missing[0]};"
                " plan a job with all of them"
            )
        good = [place for place in range(len(truth.paths)) if place not in failed]
        kept = logits if not failed else logits[good]
        said = [note for place in good for note in notes[place]]
        return evaluation_of(job.card, truth, kept, failed, said, Running(0, 0.0, 0.0, None, None))


def _name(path: str | Path) -> str:
    """The address by which a job knows a picture."""
    return path if isinstance(path, str) else str(Path(path).absolute())

"""The rows of a job: their schema, the files that hold them, and how the results of a picture become rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import IO, Any

from convnets_torch import files
from convnets_torch.batch.fragments import write_fragment
from convnets_torch.batch.jobs import Entry, Job, reading_of
from convnets_torch.images.stores import UNKNOWN, State, parquet, pyarrow

KEY = b"convnets_torch"  # in the metadata of a part's schema
KINDS = ("missing", "changed", "unreadable", "refused")


class ChangedError(OSError):
    """A picture is not the one that was listed."""


def kind_of(error: Exception) -> str:
    """Return the kind of a bad picture.

    >>> kind_of(FileNotFoundError()), kind_of(OSError()), kind_of(ValueError())
    ('missing', 'unreadable', 'refused')
    """
    if isinstance(error, ChangedError):
        return "changed"
    if isinstance(error, FileNotFoundError):
        return "missing"
    return "unreadable" if isinstance(error, OSError) else "refused"


def schema(half: bool = False) -> Any:
    """The columns of rows. Lists have no fixed size: with a null in them, pyarrow below 26 cannot read such files."""
    pa = pyarrow()
    numbers = pa.list_(pa.float32())
    return pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),  # the place in the manifest, from 0
            pa.field("uri", pa.string(), nullable=False),
            pa.field("size", pa.int64()),  # bytes
            pa.field("etag", pa.string()),  # changes when the file does
            pa.field("width", pa.int32()),  # pixels, as stored
            pa.field("height", pa.int32()),
            pa.field("class_ids", pa.list_(pa.int32())),  # best first
            pa.field("probabilities", numbers),
            pa.field("vector", pa.list_(pa.float16()) if half else numbers),
            pa.field("logits", numbers),
            pa.field("heatmap", numbers),  # row by row
            pa.field("rows", pa.int16()),  # of the heatmap
            pa.field("columns", pa.int16()),
            pa.field("target", pa.string()),  # of the heatmap: one row for each target
            pa.field("error", pa.string()),  # why there is nothing else
            pa.field(
                "error_kind", pa.dictionary(pa.int32(), pa.string())
            ),  # one of KINDS; pyarrow 17 reads int32 alone
            pa.field("remarks", pa.list_(pa.string())),  # notes on the file
        ]
    )


@dataclass
class Values:
    """What was computed of a picture.

    Attributes:
        classes: (class id, probability), best first.
        vector, logits: float32 arrays.
        maps: (target, array of rows and columns) of each target.
        thumbnail: JPEG file; for an index.
        best: (class id, probability) of the top class, if they are known; for an index.
        error: why there is nothing.
        remarks: notes on the file.
        sha256: of the file; for an index.
        state: what the store said of the file.
        size: (width, height) in pixels, as stored; zeros if unknown.
    """

    classes: Sequence[tuple[int, float]] | None = None
    vector: Any = None
    logits: Any = None
    maps: Sequence[tuple[str, Any]] = ()
    thumbnail: bytes | None = None
    best: tuple[int | None, float | None] = (None, None)
    error: Exception | None = None
    remarks: Sequence[str] = ()
    sha256: str | None = None
    state: State = UNKNOWN
    size: tuple[int, int] = (0, 0)


@dataclass
class Rows:
    """Rows of pictures, column by column.

    Attributes:
        index: rows for the table of an index, which then hold the vectors; None without an index.
    """

    half: bool = False
    index: list[dict[str, Any]] | None = None
    columns: dict[str, list[Any]] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    pictures: int = 0

    def add(self, entry: Entry, found: Values) -> None:
        """Add the row of a picture, or one for each target."""
        self.pictures += 1
        if self.index is not None:
            self.index.append(index_row(entry.uri, found))
            found.vector = None
        width, height = found.size
        row: dict[str, Any] = {
            "id": entry.id, "uri": entry.uri,
            "size": entry.size if found.state.size is None else found.state.size,
            "etag": found.state.etag or entry.etag, "width": width or None, "height": height or None,
            "remarks": list(found.remarks) or None,
        }  # fmt: skip
        if found.error is not None:
            kind = kind_of(found.error)
            self.errors[kind] += 1
            self._put(row | {"error": " ".join(str(found.error).split()), "error_kind": kind})
            return
        if found.classes is not None:
            row["class_ids"], row["probabilities"] = map(list, zip(*found.classes, strict=True))
        row |= {"vector": found.vector, "logits": found.logits}
        for target, values in found.maps:
            height, width = values.shape
            self._put(row | {"heatmap": values.ravel(), "rows": height, "columns": width, "target": target})
        if not found.maps:
            self._put(row)

    def _put(self, row: Mapping[str, Any]) -> None:
        for name in schema(self.half).names if not self.columns else self.columns:
            self.columns.setdefault(name, []).append(row.get(name))

    def table(self) -> Any:
        """Return the rows as an Arrow table of `schema`."""
        pa = pyarrow()
        wanted = schema(self.half)
        columns = [_column(self.columns.get(name, []), wanted.field(name).type) for name in wanted.names]
        return pa.table(columns, schema=wanted)


def index_row(path: str, found: Values) -> dict[str, Any]:
    """The row of a picture in the table of an index."""
    class_id, probability = found.best
    return {
        "path": path, "sha256": found.sha256, "size": found.state.size, "modified": nanoseconds(found.state.etag),
        "vector": found.vector, "class_id": class_id, "probability": probability, "thumbnail": found.thumbnail,
        "error": None if found.error is None else " ".join(str(found.error).split()), "vanished": False,
    }  # fmt: skip


def nanoseconds(etag: str | None) -> int | None:
    """The time of change that a file's `etag` says, in nanoseconds since 1970; None if it says none.

    >>> nanoseconds("1700000000000000001"), nanoseconds("2023-11-14T22:13:20"), nanoseconds('"9a0364b9"')
    (1700000000000000001, 1700000000000000000, None)
    """
    if etag is None or etag.isdigit():
        return None if etag is None else int(etag)
    try:
        return int(datetime.fromisoformat(etag).replace(tzinfo=timezone.utc).timestamp()) * 10**9
    except ValueError:
        return None


def _column(values: list[Any], kind: Any) -> Any:
    """One column; lists of numbers are copied as arrays, without a detour over Python numbers."""
    import numpy as np

    pa = pyarrow()
    if not (pa.types.is_list(kind) and pa.types.is_floating(kind.value_type)):
        return pa.array(values, kind)
    given = [value for value in values if value is not None]
    dtype = np.float16 if kind.value_type == pa.float16() else np.float32
    flat = np.concatenate([np.asarray(value, dtype) for value in given]) if given else np.zeros(0, dtype)
    lengths = [0 if value is None else len(value) for value in values]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    missing = pa.array([value is None for value in values], pa.bool_()) if values else None
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, kind.value_type), kind, mask=missing)


def write_part(job: Job, shard: int, rows: Rows, device: str) -> None:
    """Write the rows of a shard under the name that the shard alone decides, after those for an index."""
    about: dict[str, Any] = {
        "job": job.digest, "shard": shard, "pictures": rows.pictures, "errors": dict(rows.errors), "device": device,
    }  # fmt: skip
    if rows.index is not None:
        about["fragment"] = write_fragment(job, shard, rows.index)
    table = rows.table()
    table = table.replace_schema_metadata({KEY: json.dumps(about)})

    def write(file: IO[bytes]) -> None:
        parquet().write_table(table, file, compression="zstd")

    job.folder.write(job.part(shard), write)


@dataclass
class Part:
    """The file of a shard.

    Attributes:
        name: of the file.
        about: what it says of itself: job, shard, pictures, errors by kind, device, and the fragment of an index.
    """

    job: Job
    shard: int

    def __post_init__(self) -> None:
        self.name = f"{self.job.folder}/{self.job.part(self.shard)}"
        self._file = self.job.folder.open(self.job.part(self.shard))
        try:
            with reading_of(self.name):
                self._parquet = parquet().ParquetFile(self._file)
            self.about = self._about()
        except BaseException:
            self._file.close()
            raise

    def _about(self) -> dict[str, Any]:
        found = self._parquet.schema_arrow
        try:
            about = files.loads(found.metadata[KEY])
            good = about["job"] == self.job.digest and about["shard"] == self.shard
            errors = {kind: int(count) for kind, count in about["errors"].items() if kind in KINDS}
            good = good and about["pictures"] == self.job.count(self.shard) and errors == about["errors"]
        except (TypeError, KeyError, ValueError, AttributeError):
            raise ValueError(f"{self.name} was not written by this job; remove it") from None
        if not good:
            raise ValueError(f"{self.name} is a file of another job or shard; remove it")
        if not found.equals(schema(self.job.options.half)):
            raise ValueError(f"{self.name} has other columns than the rows of a job; remove it")
        return dict(about)

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def rows(self) -> int:
        return int(self._parquet.metadata.num_rows)

    def table(self, columns: Sequence[str] | None = None) -> Any:
        """Return the rows, or some columns of them, as an Arrow table."""
        with reading_of(self.name):
            return self._parquet.read(columns=None if columns is None else list(columns), use_threads=False)

    def check(self) -> None:
        """Raise ValueError if the rows are not those of the shard's pictures, each once for each target."""
        table = self.table(["id", "uri", "target"])
        each = {(number, uri, target) for number, uri, target in zip(*table.to_pydict().values(), strict=True)}
        entries = {(entry.id, entry.uri) for entry in self.job.read(self.shard)}
        if len(each) != len(table) or {(number, uri) for number, uri, _ in each} != entries:
            raise ValueError(f"{self.name} does not hold each picture of its shard once; remove it")


def parts(job: Job, shards: Sequence[int]) -> Iterator[Part]:
    """Open the parts of shards, one after another."""
    for shard in shards:
        with Part(job, shard) as part:
            yield part

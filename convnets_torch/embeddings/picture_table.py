"""The table of indexed pictures on LanceDB: its columns, how it is opened, read and added to.

Every change is one commit of LanceDB: a new version, written beside the old one and then named. Whoever is killed in
between leaves the version before it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

TABLE = "pictures"  # its name in the database, a folder pictures.lance
KEY = "convnets_torch"  # in the metadata of the table's schema
SCHEMA = 1  # of that metadata
GOOD = "error IS NULL AND NOT vanished"  # the pictures that are searched; to ask for vectors would read them all
ONE_ROW = {"lance-schema:unenforced-primary-key": "true"}  # of two commits at once that add a path, one is tried again
NAMES = 500  # values in one condition
NO_LANCEDB = "an index of pictures needs LanceDB: pip install 'convnets-torch[search]'"


@dataclass(frozen=True)
class About:
    """What made the vectors of a table, in its metadata.

    Attributes:
        kind: sha256 of network, card, layers, pool and normalisation; vectors of two kinds cannot be compared.
        card: of the network, as JSON.
        layer: as it was asked for; None for what the last dense layer reads.
        pool: as `pooled` takes it.
        weights: the file or name that the network was loaded from; "" where it is not known.
        width: how many values a vector has.
        made: told apart by it from another table that was at the same address.
    """

    kind: str
    card: str
    layer: str | None
    pool: str
    weights: str
    width: int
    made: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"schema": SCHEMA}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> About:
        """The inverse of `to_json`; ValueError where the text is none."""
        try:
            values = json.loads(text)
            schema = values.pop("schema")
            if schema == SCHEMA:
                return cls(**values)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ValueError("what it says of its network cannot be read") from None
        raise ValueError(f"it has schema {schema!r}, but this version reads {SCHEMA}; update convnets-torch")


def kind_of(about: Mapping[str, str]) -> str:
    """The sha256, in hexadecimal, of what `Embedder.about` says."""
    return hashlib.sha256(json.dumps(dict(about), sort_keys=True).encode()).hexdigest()


def is_local(address: str) -> bool:
    """Whether an address is a folder, and not one of an object store or of memory."""
    return "://" not in address


class PictureTable:
    """One table, at its newest version when it was opened.

    Attributes:
        address: as it was given.
        about: what made its vectors.
        table: LanceDB's own.
    """

    def __init__(self, address: str, table: Any) -> None:
        self.address, self.table = address, table
        text = (table.schema.metadata or {}).get(KEY.encode())
        if text is None:
            raise ValueError(f"{address} was not made by `convnets-torch index`; name another index")
        try:
            self.about = About.from_json(text.decode())
        except ValueError as error:
            raise ValueError(f"{address}: {error}") from None

    @classmethod
    def open(cls, address: str) -> PictureTable:
        """The table at an address.

        Raises:
            OSError: there is none.
            ValueError: it is damaged, or no index of pictures.
            ImportError: LanceDB is not installed.
        """
        if is_local(address):
            check_index(Path(address))
        database = _connected(address)
        with refusing(address):
            names = database.list_tables().tables
        if TABLE not in names:
            raise FileNotFoundError(f"{address} holds no index; make one with `convnets-torch index`")
        with refusing(address):
            return cls(address, database.open_table(TABLE))

    @classmethod
    def create(cls, address: str, about: About) -> PictureTable:
        """A new and empty table, or the one that another process has just made there; errors are those of `open`."""
        database = _connected(address)
        with refusing(address):
            return cls(address, database.create_table(TABLE, schema=_schema(about), exist_ok=True))

    @property
    def version(self) -> int:
        with refusing(self.address):
            return int(self.table.version)

    def read(self, columns: Sequence[str], where: str | None = None) -> Iterator[pa.RecordBatch]:
        """Columns of the rows that fulfil a condition, in the table's order, a part at a time."""
        with refusing(self.address):
            query = self.table.search().select(list(columns))
            yield from (query.where(where) if where else query).to_batches(4096)

    def rows(self, columns: Sequence[str], column: str, values: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Columns of the rows that have one of some values in a column of text."""
        values = list(values)
        for start in range(0, len(values), NAMES):
            for batch in self.read(columns, one_of(column, values[start : start + NAMES])):
                yield from batch.to_pylist()

    def count(self, where: str | None = None) -> int:
        with refusing(self.address):
            return int(self.table.count_rows(where))

    def put(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows, each in the place of the one of the same path, in one commit."""
        import pyarrow as pa

        schema = _schema(self.about)
        batch = pa.table({name: _column(rows, schema.field(name)) for name in schema.names}, schema=schema)
        with refusing(self.address):
            merge = self.table.merge_insert("path").when_matched_update_all().when_not_matched_insert_all()
            merge.execute(batch, on_bad_vectors="null")

    def mark_vanished(self, paths: Sequence[str]) -> None:
        """Say of rows that their files are gone; they keep what they hold."""
        for start in range(0, len(paths), NAMES):
            with refusing(self.address):
                self.table.update(one_of("path", paths[start : start + NAMES]), {"vanished": True})

    def optimize(self) -> None:
        """Join small files, add new rows to an approximate index, and drop versions older than a week."""
        with refusing(self.address):
            self.table.optimize()


def check_index(folder: Path) -> None:
    """Raise OSError, in one sentence, where a folder holds no index."""
    if not folder.exists():
        raise FileNotFoundError(f"{folder} does not exist; make an index with `convnets-torch index`")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no index, which is a folder; name one")
    if not (folder / f"{TABLE}.lance").is_dir():
        raise FileNotFoundError(f"{folder} holds no index; make one with `convnets-torch index`")


def one_of(column: str, values: Iterable[str]) -> str:
    """A condition in SQL: that a column has one of some texts."""
    listed = ", ".join("'" + value.replace("'", "''") + "'" for value in values)
    return f"{column} IN ({listed})"


@contextlib.contextmanager
def refusing(address: str) -> Iterator[None]:
    """LanceDB's errors in one sentence."""
    try:
        yield
    except (RuntimeError, OSError, ValueError) as error:
        if isinstance(error, ValueError) and str(error).startswith(address):
            raise
        words = " ".join(str(error).split())[:200]
        raise OSError(f"{address} cannot be used ({words}); repair it, or index into another folder") from None


def _connected(address: str) -> Any:
    try:
        import lancedb
    except ImportError:
        raise ImportError(NO_LANCEDB) from None
    with refusing(address):
        return lancedb.connect(address)


def _schema(about: About) -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("path", pa.string(), nullable=False, metadata=ONE_ROW),  # absolute
            pa.field("sha256", pa.string()),  # of the file, in hexadecimal; null where it could not be read
            pa.field("size", pa.int64()),  # bytes
            pa.field("modified", pa.int64()),  # nanoseconds since 1970
            pa.field("vector", pa.list_(pa.float32(), about.width)),
            pa.field("class_id", pa.int32()),  # the most probable; null without a head
            pa.field("probability", pa.float32()),  # null where outputs are no probabilities
            pa.field("thumbnail", pa.binary()),  # a JPEG file, at most 128 x 128 pixels
            pa.field("error", pa.string()),  # why there is no vector
            pa.field("vanished", pa.bool_(), nullable=False),  # the file was not there any more
        ],
        metadata={KEY: about.to_json()},
    )


def _column(rows: Sequence[Mapping[str, Any]], field: pa.Field) -> pa.Array:
    """One column of rows; vectors are arrays, which need no numbers of Python in between."""
    import numpy as np
    import pyarrow as pa

    values = [row[field.name] for row in rows]
    if field.name != "vector":
        return pa.array(values, field.type)
    width = field.type.list_size
    missing = np.array([value is None for value in values])
    flat = np.zeros((len(values), width), np.float32)
    for place, value in enumerate(values):
        if value is not None:
            flat[place] = value
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), width, mask=pa.array(missing))

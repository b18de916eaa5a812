"""The LanceDB table of an index of pictures: its rows, the picture files they describe, and safety checks.

Every change is one LanceDB commit: a new version is written beside the old one and then made current, so a killed
process leaves the previous version intact.

A table is a folder, but its data may lie elsewhere: a manifest may name other folders and object stores, a namespace
table may redirect to another location, and links lead anywhere. An index from a stranger could use these to reach other
files, so all three are refused.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convnets_torch import files
from convnets_torch.card import Card
from convnets_torch.files import check_own_folder, open_file, scratch_folder
from convnets_torch.images.decoding import stored_size
from convnets_torch.images.levels import check_levels, said_levels
from convnets_torch.images.remote import is_remote
from convnets_torch.text import ConvnetsTorchWarning, check_choice, printable

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from convnets_torch.embeddings.projection import Projection

TABLE = "pictures"  # name of the table; its folder is pictures.lance
KEY = "convnets_torch"  # key in the metadata of the table's schema
TABLE_SCHEMA = 1  # version of that metadata
GOOD = "error IS NULL AND NOT vanished"  # searchable rows; a condition on `vector` would read all vectors
ONE_ROW = {"lance-schema:unenforced-primary-key": "true"}  # of concurrent commits that add one path, one is retried
NAMES = 500  # values per SQL condition
MOST_WIDTH = 1 << 24  # values per vector; VGG's first block flattened has 3,211,264
MOST_ROWS = 10_000_000_000
FREE = 256 << 20  # bytes of vectors that are always allowed
MOST_COMPRESSED = 32  # beyond that, the most bytes of vectors per byte of the table's files
MOST_PATH = 16_384  # bytes; Linux allows 4,096, and a byte that is not UTF-8 is written as four
SHA256 = "[0-9a-f]{64}"
NO_LANCEDB = "an index of pictures needs LanceDB: pip install 'convnets-torch[search]'"


class IndexWarning(ConvnetsTorchWarning):
    """Rows of an index were ignored; the message names the index."""


@dataclass(frozen=True)
class About:
    """Metadata of a table: how its vectors were made.

    Attributes:
        kind: sha256 of network, card, layers, pool and normalisation; vectors of different kinds are not comparable.
        card: card of the network, as JSON.
        layer: layer name, as requested; None for the input of the last dense layer.
        pool: as in `pooled`.
        weights: file or name that the network was loaded from; "" if unknown.
        width: number of values of a vector.
        made: random ID that distinguishes this table from an earlier one at the same address.
        depth, background: how pictures were read, as in `read_picture`.
        numbers: "float16" if vectors are kept so; None for float32.
        components: the `Projection` of the vectors, as text; None if they are whole.
    """

    kind: str
    card: str
    layer: str | None
    pool: str
    weights: str
    width: int
    made: str = ""
    depth: str | None = None
    background: str | None = None
    numbers: str | None = None
    components: str | None = None

    @property
    def levels(self) -> dict[str, Any]:
        return said_levels(self.depth, self.background)

    def to_json(self) -> str:
        values = {name: value for name, value in asdict(self).items() if name == "layer" or value is not None}
        return json.dumps(values | {"schema": TABLE_SCHEMA}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> About:
        """Parse the output of `to_json`; ValueError if it is damaged or of another schema."""
        try:
            values = files.loads(text)
            schema = values.pop("schema")
            if schema == TABLE_SCHEMA:
                return cls(**values)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ValueError("its metadata cannot be read") from None
        raise ValueError(f"it has schema {schema!r:.80}, but this version reads {TABLE_SCHEMA}; update convnets-torch")

    @cached_property
    def projection(self) -> Projection | None:
        """What whole vectors become shorter by; None if they stay whole."""
        from convnets_torch.embeddings.projection import Projection

        return None if self.components is None else Projection.from_text(self.components, self.width)

    def kept(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a vector of the network as the table keeps it."""
        return vector if self.projection is None else self.projection(vector)

    def __post_init__(self) -> None:
        texts = (self.kind, self.card, self.pool, self.weights, self.made, self.layer or "", self.depth or "")
        if not all(isinstance(text, str) and "\0" not in text for text in (*texts, self.components or "")):
            raise TypeError("a text is expected")
        check_choice(self.numbers or "float16", ("float16",), "number of a vector")
        check_levels(self.depth, self.background)
        if type(self.width) is not int or not 1 <= self.width <= MOST_WIDTH:
            raise ValueError(f"it has vectors of {self.width!r:.80} values")


def kind_of(about: Mapping[str, str]) -> str:
    """Return the hexadecimal sha256 of `Embedder.about`."""
    return hashlib.sha256(json.dumps(dict(about), sort_keys=True).encode()).hexdigest()


def is_local(address: str) -> bool:
    """Return whether an address is a local folder, not an object store or memory."""
    return "://" not in address


class PictureTable:
    """A table of pictures, at the version that was the newest when it was opened.

    Attributes:
        address: address of the index, as given.
        about: metadata.
        card: card of the network.
        table: the LanceDB table.
    """

    def __init__(self, address: str, table: Any) -> None:
        self.address, self.table = address, table
        schema = table.schema
        text = (schema.metadata or {}).get(KEY.encode())
        if text is None:
            raise ValueError(f"{address} was not made by `convnets-torch index`; name another index")
        try:
            self.about = About.from_json(text.decode())
            self.card = Card.from_json(self.about.card)
        except ValueError as error:
            raise ValueError(f"{address}: {error}") from None
        wanted = table_schema(self.about).with_metadata({KEY: text})
        if not schema.equals(wanted, check_metadata=True):  # LanceDB instantiates what metadata name: code execution
            raise ValueError(
                f"{address} has other columns or metadata than `convnets-torch index` gives; create it again"
            )
        if (rows := self.count()) > MOST_ROWS:
            raise ValueError(f"{address} has {rows:,} rows, more than the maximum of {MOST_ROWS:,}; divide it")

    @classmethod
    def open(cls, address: str) -> PictureTable:
        """Open the table at an address; OSError if there is none, ValueError if it is damaged or no index."""
        if is_local(address):
            check_index(Path(address))
            check_table_folder(Path(address), TABLE)
        database = _connected(address)
        with refusing(address):
            names = database.list_tables().tables
        if TABLE not in names:
            raise FileNotFoundError(f"{address} holds no index; make one with `convnets-torch index`")
        with refusing(address):
            return cls(address, database.open_table(TABLE))

    @classmethod
    def create(cls, address: str, about: About) -> PictureTable:
        """Create an empty table, or open one that another process has just created; errors are as in `open`."""
        if not is_local(address):
            database = _connected(address)
            with refusing(address):
                return cls(address, database.create_table(TABLE, schema=table_schema(about), exist_ok=True))
        _lancedb()
        folder = Path(address)
        folder.mkdir(exist_ok=True)
        with scratch_folder(folder.resolve()) as scratch:
            database = _connected(str(scratch))
            with refusing(address):
                database.create_table(TABLE, schema=table_schema(about))
            with contextlib.suppress(OSError):  # LanceDB would overwrite a table that was created meanwhile
                (scratch / f"{TABLE}.lance").rename(folder / f"{TABLE}.lance")
        return cls.open(address)

    @property
    def version(self) -> int:
        with refusing(self.address):
            return int(self.table.version)

    def read(self, columns: Sequence[str], where: str | None = None) -> Iterator[pa.RecordBatch]:
        """Yield columns of the rows that satisfy a SQL condition, in table order, in batches."""
        with refusing(self.address):
            query = self.table.search().select(list(columns))
            for batch in (query.where(where) if where else query).to_batches(4096):
                batch.validate(full=True)  # checks that texts are UTF-8
                yield batch

    def rows(
        self, columns: Sequence[str], column: str, values: Iterable[str], *, sound: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Yield columns of the rows whose text `column` is one of `values`; with `sound`, only of valid rows."""
        values = list(values)
        for start in range(0, len(values), NAMES):
            for batch in self.read(columns, one_of(column, values[start : start + NAMES])):
                yield from (batch.filter(self.is_sound(batch)) if sound else batch).to_pylist()

    def nearest(
        self,
        vector: NDArray[np.float32],
        metric: str,
        where: str,
        limit: int,
        probes: int,
        refine: int,
        columns: Sequence[str],
    ) -> list[pa.RecordBatch]:
        """Return columns of the rows nearest to a vector, found by LanceDB with an approximate index if there is one.

        Of the partitions nearest to the vector `probes` are searched, and `refine` times as many candidates as the
        limit are compared by the vectors themselves.
        """
        with refusing(self.address):
            search = self.table.search(vector, vector_column_name="vector").distance_type(metric)
            search = search.where(where, prefilter=True).nprobes(probes).refine_factor(refine)
            found = search.select([*columns, "_distance"]).limit(limit).to_arrow()
            return list(found.select(list(columns)).to_batches())

    def has_index(self, metric: str) -> bool:
        """Return whether the table has an approximate index for a metric."""
        with refusing(self.address):
            for known in self.table.list_indices():
                if known.columns == ["vector"]:
                    statistics = self.table.index_stats(known.name)
                    if statistics is not None and statistics.distance_type == metric:
                        return True
        return False

    def is_sound(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        """Return a mask of rows that are valid for search, judged by the columns in the batch."""
        import numpy as np
        import pyarrow.compute as pc

        sound = np.ones(len(batch), bool)
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if name == "path":
                good = pc.and_(
                    pc.less_equal(pc.binary_length(column), MOST_PATH), pc.match_substring_regex(column, ".")
                )
                good = pc.and_(good, pc.invert(pc.match_substring_regex(column, r"\x00")))
            elif name == "sha256":
                good = pc.match_substring_regex(column, f"^{SHA256}$")
            elif name == "class_id":
                good = _between(column.fill_null(-1), -1, self.card.classes - 1)
            elif name == "probability":
                good = _between(column.fill_null(0), 0, 1.001)
            elif name == "vector":
                finite = np.isfinite(values_of(column, self.about.width)).all(1)
                sound &= finite & column.is_valid().to_numpy(zero_copy_only=False)
                continue
            else:
                continue
            sound &= good.fill_null(False).to_numpy(zero_copy_only=False)
        return sound

    def check_room(self) -> None:
        """Raise ValueError if a folder's vectors would be far larger than its files (a decompression bomb)."""
        if not is_local(self.address):
            return
        needed, stored = 4 * self.about.width * self.count(GOOD), size_of(Path(self.address), TABLE)
        if needed > max(FREE, MOST_COMPRESSED * stored):
            raise ValueError(f"{self.address} has {stored:,} bytes, but its vectors need {needed:,}; create it again")

    def count(self, where: str | None = None) -> int:
        with refusing(self.address):
            return int(self.table.count_rows(where))

    def put(self, rows: Sequence[Mapping[str, Any]], moved: Sequence[str] = ()) -> None:
        """Insert or replace rows by path, and delete the rows at paths in `moved`, in one commit."""
        batch = rows_table(self.about, rows)
        with refusing(self.address):
            merge = self.table.merge_insert("path").when_matched_update_all().when_not_matched_insert_all()
            if moved:
                merge = merge.when_not_matched_by_source_delete(one_of("path", moved))
            merge.execute(batch, on_bad_vectors="null")

    def mark_vanished(self, paths: Sequence[str]) -> None:
        """Mark rows whose files are missing, keeping their data."""
        with refusing(self.address):
            for start in range(0, len(paths), NAMES):
                self.table.update(one_of("path", paths[start : start + NAMES]), {"vanished": True})

    def remove(self, paths: Sequence[str]) -> None:
        """Delete rows by path."""
        with refusing(self.address):
            for start in range(0, len(paths), NAMES):
                self.table.delete(one_of("path", paths[start : start + NAMES]))

    def optimize(self) -> None:
        """Compact small files, add new rows to the approximate index, and delete versions older than a week."""
        with refusing(self.address):
            self.table.optimize()


def check_index(folder: Path) -> None:
    """Raise OSError if a folder holds no index."""
    if not folder.exists():
        raise FileNotFoundError(f"{folder} does not exist; make an index with `convnets-torch index`")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not an index, which is a folder; name one")
    if not (folder / f"{TABLE}.lance").is_dir():
        raise FileNotFoundError(f"{folder} holds no index; make one with `convnets-torch index`")


def one_of(column: str, values: Iterable[str]) -> str:
    """Return a SQL condition: the column has one of the values."""
    listed = ", ".join("'" + value.replace("'", "''") + "'" for value in values)
    return f"{column} IN ({listed})"


@contextlib.contextmanager
def refusing(address: str) -> Iterator[None]:
    """Turn any LanceDB error into an OSError with a one-sentence message."""
    try:
        yield
    except BaseException as error:
        # LanceDB raises all kinds of errors on damaged files; a Rust panic is not even an Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if isinstance(error, ValueError) and str(error).startswith(address):
            raise
        words = printable(" ".join(str(error).split())[:200])
        raise OSError(f"{address} cannot be used ({words}); repair it, or index into another folder") from None


def _connected(address: str) -> Any:
    if address.startswith("file") and not is_local(address):
        raise ValueError(f"{address} is a folder; name it without file://")
    lancedb = _lancedb()
    with refusing(address):
        return lancedb.connect(address, storage_options=storage_options(address))


def storage_options(address: str) -> dict[str, str] | None:
    """Return what LanceDB and Lance must be told of a store besides what they read from the environment."""
    plain = address.startswith("s3:") and os.environ.get("AWS_ENDPOINT_URL", "").startswith("http:")
    return {"allow_http": "true"} if plain else None


def _lancedb() -> Any:
    try:
        import lancedb
    except ImportError:
        raise ImportError(NO_LANCEDB) from None
    return lancedb


def table_schema(about: About) -> pa.Schema:
    """Columns and metadata of a table."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("path", pa.string(), nullable=False, metadata=ONE_ROW),  # absolute
            pa.field("sha256", pa.string()),  # of the file, hexadecimal; null if it could not be read
            pa.field("size", pa.int64()),  # bytes
            pa.field("modified", pa.int64()),  # nanoseconds since 1970
            pa.field("vector", pa.list_(pa.float32() if about.numbers is None else pa.float16(), about.width)),
            pa.field("class_id", pa.int32()),  # top class; null without a head
            pa.field("probability", pa.float32()),  # of the top class; null if outputs are not probabilities
            pa.field("thumbnail", pa.binary()),  # JPEG file, at most 128 x 128 pixels
            pa.field("error", pa.string()),  # why there is no vector
            pa.field("vanished", pa.bool_(), nullable=False),  # the file is missing
        ],
        metadata={KEY: about.to_json()},
    )


def _between(column: pa.Array, least: float, most: float) -> pa.Array:
    import pyarrow.compute as pc

    return pc.and_(pc.greater_equal(column, least), pc.less_equal(column, most))


def values_of(column: pa.Array, width: int) -> NDArray[np.float32]:
    """Return a column of vectors as (N, width); a missing value or vector is NaN."""
    import numpy as np

    flat = column.values.slice(column.offset * width, len(column) * width)  # `flatten` would skip missing vectors
    return np.ascontiguousarray(flat.to_numpy(zero_copy_only=False).reshape(len(column), width), "<f4")


def rows_table(about: About, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return rows as an Arrow table.

    Raises:
        ValueError: a vector does not fit into float16.
    """
    import pyarrow as pa

    schema = table_schema(about)
    return pa.table({name: _column(rows, schema.field(name)) for name in schema.names}, schema=schema)


def _column(rows: Sequence[Mapping[str, Any]], field: pa.Field) -> pa.Array:
    """Return one column of rows; vectors are copied as arrays, without a detour over Python numbers."""
    import numpy as np
    import pyarrow as pa

    values = [row[field.name] for row in rows]
    if field.name != "vector":
        return pa.array(values, field.type)
    width = field.type.list_size
    missing = np.array([value is None for value in values], bool)
    flat = np.zeros((len(values), width), np.float32)
    for place, value in enumerate(values):
        if value is not None:
            flat[place] = value
    if field.type.value_type == pa.float16():
        if np.abs(flat).max(initial=0) > np.finfo(np.float16).max:
            raise ValueError("vectors have values above 65,504, the largest of float16; keep them as float32 (no half)")
        flat = flat.astype(np.float16)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), width, mask=pa.array(missing))


NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
UNKNOWN = os.stat_result([stat.S_IFREG, *[0] * 9])  # for a file that cannot be inspected
ESCAPED = re.compile(rb"\\x([89a-f][0-9a-f])")  # bytes as `text_of` writes them


@dataclass(frozen=True)
class PictureFile:
    """A file of an index.

    Attributes:
        paths: all paths to it, including hard links, symbolic links and other mounts; the first is not a link unless
            all are.
        gone: the file is missing.
        link: all paths are symbolic links.
        bytes: file size; None if the file is missing or cannot be inspected.
        width, height: size in pixels as stored; None if the header cannot be read.
    """

    paths: tuple[str, ...]
    gone: bool = False
    link: bool = False
    bytes: int | None = None
    width: int | None = None
    height: int | None = None

    @property
    def pixels(self) -> int:
        """Number of pixels; 0 if unknown."""
        return (self.width or 0) * (self.height or 0)


def text_of(path: str) -> str:
    """Encode a path as valid text: bytes that are not UTF-8 are written such as \\xff."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def file_of(path: str) -> str:
    """Decode a path that `text_of` encoded."""
    if "\\x" not in path or os.path.lexists(path):
        return path
    return os.fsdecode(ESCAPED.sub(lambda match: bytes.fromhex(match[1].decode()), path.encode()))


def is_there(path: str) -> bool:
    """Return whether a path of an index leads to a file, readable or not."""
    return _state(path) is not None


def usable(paths: Sequence[str]) -> tuple[str, ...]:
    """Return the existing ones among the paths of a picture, links last."""
    there = [path for path in paths if is_there(path)]
    return tuple(sorted(there, key=_leads_elsewhere) if len(there) > 1 else there)


def files_of(paths: Iterable[str]) -> list[PictureFile]:
    """Group paths of an index by file, in the order of the paths."""
    found: dict[object, list[str]] = {}
    states: dict[str, os.stat_result | None] = {}
    for path in paths:
        state = states[path] = _state(path)
        found.setdefault((state.st_dev, state.st_ino) if state and state.st_ino else path, []).append(path)
    return [_file(several, states[several[0]]) for several in found.values()]


def _file(paths: list[str], state: os.stat_result | None) -> PictureFile:
    if state is None or state is UNKNOWN:
        return PictureFile(tuple(paths), gone=state is None)
    if len(paths) > 1:
        paths = sorted(paths, key=_leads_elsewhere)
    path = file_of(paths[0])
    width = height = 0
    with contextlib.suppress(OSError), open_file(path) as file:
        width, height = stored_size(file)
    return PictureFile(tuple(paths), False, os.path.islink(path), state.st_size, width or None, height or None)  # noqa: PTH114


def _state(path: str) -> os.stat_result | None:
    """Return the `stat` result of a regular file, UNKNOWN if it cannot be inspected, or None if it is missing."""
    if is_remote(path):  # never asked: a stranger's index would name any host
        return UNKNOWN
    if os.name == "nt" and path.startswith(("//", "\\\\")):  # a stranger's index must not reach another machine
        return UNKNOWN
    try:
        state = os.stat(file_of(path))  # noqa: PTH116 - the paths are texts, and many
    except OSError as error:
        return None if error.errno in NOT_THERE else UNKNOWN
    except ValueError:  # null byte in the path
        return None
    return state if stat.S_ISREG(state.st_mode) else None


def _leads_elsewhere(path: str) -> tuple[bool, bool]:
    """Return a sort key: whether a path is a link, and whether it contains a linked folder."""
    path = file_of(path)
    return os.path.islink(path), os.path.realpath(path) != path  # noqa: PTH114


NAMESPACE = "__manifest"  # folder of LanceDB's namespace table, which locates tables
MOST_MANIFEST = 1 << 28  # bytes; a manifest has about a hundred per file of the table
MOST_FIELDS = 2_000_000  # in all manifests together; reading them takes a few seconds
BASE_PATHS = 18  # manifest field that names other locations of data
FOOTER = 16  # bytes at the end of a manifest: its offset, the format version, "LANC"


def check_table_folder(address: Path, name: str) -> None:
    """Raise OSError if a table could lead LanceDB out of its folder, or a manifest is damaged.

    Source: `message Manifest` of https://github.com/lance-format/lance/blob/main/protos/table.proto.
    """
    table = address / f"{name}.lance"
    if table.is_symlink():
        raise OSError(f"{table} is a link, and what it leads to is not used; put the table in its place")
    if os.path.lexists(address / NAMESPACE):
        raise OSError(f"{address} holds {NAMESPACE}, which may say that its tables lie elsewhere; remove it")
    check_own_folder(table)
    fields = 0
    for manifest in sorted(table.rglob("*.manifest")):
        try:
            for number in _fields(manifest):
                fields += 1
                if number == BASE_PATHS:
                    raise ValueError("names other folders or stores that hold the table's data")
                if fields > MOST_FIELDS:
                    raise ValueError(f"and others have more than {MOST_FIELDS:,} fields")
        except ValueError as error:
            raise OSError(
                f"{address} cannot be used ({manifest.name} {error}); repair it, or index into another folder"
            ) from None


def _fields(manifest: Path) -> Iterator[int]:
    """Yield the field numbers of a manifest; raise ValueError if it is damaged."""
    with open_file(manifest, max_bytes=MOST_MANIFEST, follow_links=False) as file:
        content = file.read()
    start = int.from_bytes(content[-FOOTER : -FOOTER + 8], "little")
    length = int.from_bytes(content[start : start + 4], "little")
    message = memoryview(content)[start + 4 : start + 4 + length]
    if content[-4:] != b"LANC" or len(message) != length:
        raise ValueError("has no valid footer")
    yield from _numbers(message)


def size_of(address: Path, name: str) -> int:
    """Return the total size of a table's files in bytes."""
    return sum(
        (Path(folder) / file).lstat().st_size
        for folder, _, files in os.walk(address / f"{name}.lance")
        for file in files
    )


def _numbers(message: memoryview) -> Iterator[int]:
    """Yield the field numbers of a protobuf message; raise ValueError if it is malformed.

    Source: https://protobuf.dev/programming-guides/encoding/.
    """
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        yield key >> 3
        kind = key & 7
        if kind == 0:
            _, place = _varint(message, place)
        elif kind == 2:
            length, place = _varint(message, place)
            place += length
        elif kind in (1, 5):
            place += 8 if kind == 1 else 4
        else:
            raise ValueError(f"has a field of wire type {kind}")
    if place > len(message):
        raise ValueError("ends early")


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """Decode a varint (7 bits per byte); return it and the next offset."""
    found = 0
    for number, byte in enumerate(message[place : place + 10]):
        found |= (byte & 127) << (7 * number)
        if byte < 128:
            return found, place + number + 1
    raise ValueError("has an unterminated varint")

"""Jobs: what is to be computed of which pictures, written down once; `plan` makes one, `Job.open` reads it."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from convnets_torch import files
from convnets_torch._version import __version__
from convnets_torch.card import Card, read_card
from convnets_torch.files import find, sha256
from convnets_torch.images.decoding import PictureWarning, Reading, ReadingKeywords
from convnets_torch.images.levels import check_levels
from convnets_torch.images.remote import is_remote
from convnets_torch.images.stores import Folder, Walk, local_path, open_address, parquet, parts_of, pyarrow
from convnets_torch.text import check_choice, printable

if TYPE_CHECKING:
    from convnets_torch.embeddings.index_table import About

Output = Literal["classes", "vector", "logits", "heatmap"]

JOB, MANIFEST, PARTS, FAILED = "job.json", "manifest", "parts", "failed"
COMMITTED = "committed.json"  # in a job's folder: its rows are in the table of an index
FORMAT = 1  # version of these files
MOST_JOB = 1 << 25  # bytes of job.json: enough for 100,000 class names and long options
SHARD = 10_000  # pictures
MOST_SHARD = 1_000_000
FILE_ROWS, FILE_SHARDS = 1_000_000, 1000  # most pictures and shards in one file of the manifest
BLOCK_ROWS = 16_384  # rows that are written at a time, at most, or one shard
MOST_URI = 16_384  # characters
CSV_BLOCK = 1 << 18  # bytes; a row of a table has at most as many
URIS = ("uri", "url", "path", "filepath", "image", "file", "filename")  # names of the column, if it is not named
TABLES = (".parquet", ".csv")


@dataclass(frozen=True)
class Options:
    """What is computed; part of a job's identity. Documented by `plan`, and `index` and `pca` by `index`."""

    outputs: tuple[str, ...]
    targets: tuple[str, ...] = ()
    layer: str | None = None
    pool: str = "avg"
    normalize: bool = False
    half: bool = False
    top: int = 5
    precision: str | None = None
    exact: bool = True
    longest_side: int | None = None
    upscale: bool = False
    cell_stride: int | None = None
    max_pixels: int | None = None
    allow_truncated: bool = False
    depth: Any = None
    background: str | None = None
    index: str | None = None
    pca: int | None = None

    @property
    def reading(self) -> Reading:
        """How files are decoded; the card decides on EXIF."""
        return Reading(**{name: getattr(self, name) for name in ReadingKeywords.__annotations__})

    def check(self, card: Card) -> None:
        """Raise ValueError if the options do not go together, or not with the network of a card."""
        if not self.outputs:
            raise ValueError("no output is named; name some of " + ", ".join(get_args(Output)))
        for output in self.outputs:
            check_choice(output, get_args(Output), "output")
        if len(set(self.outputs)) < len(self.outputs):
            raise ValueError(f"an output is named twice: {', '.join(self.outputs)}")
        check_choice(self.pool, ("avg", "max", "flatten", "gem"), "pool")
        if self.precision is not None:
            check_choice(self.precision, ("auto", "exact", "float32", "bfloat16", "float16"), "precision")
        check_levels(self.depth, self.background)
        if self.top < 1:
            raise ValueError(f"top is {self.top}; give 1 or more")
        if self.layer is not None and "vector" not in self.outputs:
            raise ValueError("a layer is named, but no vector asked for; add the output vector")
        if bool(self.targets) != ("heatmap" in self.outputs):
            raise ValueError("the output heatmap and targets go together; give both or neither")
        if not card.classes and set(self.outputs) != {"vector"}:
            raise ValueError("the network has no head, so it has vectors alone; ask for the output vector")
        if card.activation == "none" and {"classes", "heatmap"} & {*self.outputs}:
            raise ValueError("the card says that outputs are not probabilities (activation none); ask for logits")
        if self.targets:
            from convnets_torch.wordnet.targets import checked_targets

            checked_targets(card, list(self.targets))


class Entry(NamedTuple):
    """A picture of a manifest."""

    id: int
    uri: str
    size: int | None
    etag: str | None


def part_name(shard: int) -> str:
    """The name of a shard's file, without its ending.

    >>> part_name(7), part_name(1234567)
    ('000007', '1234567')
    """
    return f"{shard:06}"


class Work:
    """Shards that workers compute, each with one file, or part, of a name that the shard alone decides.

    Attributes:
        folder: its place.
        facts: the contents of `job.json`.
        shards: their number.
        parts: the sub-folder of the parts.
        ending: of a part's name.
    """

    parts = PARTS
    ending = ".parquet"

    def __init__(self, folder: Folder, facts: Mapping[str, Any], shards: int) -> None:
        self.folder, self.facts, self.shards = folder, facts, shards

    @cached_property
    def digest(self) -> str:
        """Identifies the work: sha256 of what is computed, and of what."""
        raise NotImplementedError

    def part(self, shard: int) -> str:
        """Return the name of a shard's file."""
        return f"{self.parts}/{part_name(shard)}{self.ending}"

    def has(self, shard: int) -> bool:
        """Return whether the part of a shard is there."""
        return self.folder.exists(self.part(shard))

    def done(self) -> set[int]:
        """Shards whose part is there, from a listing alone."""
        return {*numbers_in(self.folder, self.parts, self.ending)}

    def failed(self) -> set[int]:
        """Shards that failed and whose part is not there."""
        return {*numbers_in(self.folder, FAILED, ".json")} - self.done()

    def check_version(self) -> None:
        """Raise ValueError if another version of this package planned the work: its results may differ."""
        theirs = self.facts["identity"].get("version")
        if theirs != __version__:
            raise ValueError(
                f"{self.folder} was planned by version {theirs!r:.40} of convnets-torch, but this is {__version__};"
                " use that version everywhere, or plan another job"
            )


class Job(Work):
    """A planned job over pictures.

    Attributes:
        options: what is computed.
        pictures, shard: the number of pictures, in all and of each shard but the last.
    """

    def __init__(self, folder: Folder, facts: Mapping[str, Any]) -> None:
        try:
            if facts["format"] != FORMAT:
                raise ValueError(f"it has format {facts['format']!r:.80}, but this version reads {FORMAT}")
            known = {**facts["identity"]["options"]}
            self.options = Options(**known | {name: tuple(known[name]) for name in ("outputs", "targets")})
            self.pictures, shards, self.shard, self.file_shards = (
                int(facts["manifest"][name]) for name in ("pictures", "shards", "shard", "file_shards")
            )
            self.queries: dict[str, str] = dict(facts["queries"])
            texts = (facts["weights"], facts["identity"]["card"], facts["identity"]["weights"])
            if not all(isinstance(text, str) for text in texts) or min(self.shard, self.file_shards) < 1:
                raise TypeError
        except (KeyError, TypeError, AttributeError):
            raise ValueError(f"{folder}/{JOB} was not made by `convnets-torch batch plan`, or is damaged") from None
        except ValueError as error:
            raise ValueError(f"{folder}/{JOB}: {error}") from None
        super().__init__(folder, facts, shards)

    @classmethod
    def open(cls, address: str | os.PathLike[str]) -> Job:
        """Open a job.

        Raises:
            OSError: there is none, or its store does not answer.
            ValueError: it is damaged.
        """
        folder = Folder(address)
        facts = read_facts(folder)
        if facts is None:
            raise FileNotFoundError(f"{folder} holds no job; make one with `convnets-torch batch plan`")
        return cls(folder, facts)

    @cached_property
    def about(self) -> About:
        """How the vectors of the index are made that the pictures go to.

        Raises:
            ValueError: it is damaged.
        """
        from convnets_torch.embeddings.index_table import About

        try:
            return About.from_json(self.facts["index"]["about"])
        except (KeyError, TypeError):
            raise ValueError(
                f"{self.folder} is no job of an index; plan one with `convnets-torch index --job`"
            ) from None

    @cached_property
    def card(self) -> Card:
        return Card.from_json(self.facts["identity"]["card"])

    @cached_property
    def digest(self) -> str:
        """Identifies the job: sha256 of what is computed, and of which pictures."""
        known = [self.facts["identity"], self.facts["manifest"]["sha256"]]
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()

    def count(self, shard: int) -> int:
        """The number of pictures of a shard."""
        return min(self.shard, self.pictures - shard * self.shard)

    def read(self, shard: int) -> list[Entry]:
        """Return the pictures of a shard.

        Raises:
            OSError, ValueError: its list cannot be read or is damaged.
        """
        number, group = divmod(shard, self.file_shards)
        name = f"{MANIFEST}/{part_name(number)}.parquet"
        with self.folder.open(name) as file, reading_of(f"{self.folder}/{name}"):
            found = parquet().ParquetFile(file).read_row_group(group, use_threads=False).to_pydict()
        entries = list(map(Entry, found["id"], found["uri"], found["size"], found["etag"]))
        first = shard * self.shard
        if [each.id for each in entries] != list(range(first, first + self.count(shard))):
            raise ValueError(f"{self.folder}/{name} is not the list of this job; plan the job again in another folder")
        return entries

    def query_of(self, uri: str) -> str:
        """What pyarrow is told of the store of a picture."""
        return self.queries.get(parts_of(uri).root, "") if is_remote(uri) else ""


class reading_of:
    """Turn what pyarrow raises on a damaged file into a ValueError that names it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, pyarrow().ArrowException | KeyError | EOFError | OverflowError):
            words = printable(" ".join(str(error).split()))[:200]
            raise ValueError(f"{self._name} is damaged ({words}); remove it") from None


def numbers_in(folder: Folder, below: str, ending: str) -> Iterator[int]:
    """Yield the shards that the files of a sub-folder are named after."""
    for name, _ in folder.list(below):
        stem = name.removesuffix(ending)
        if name.endswith(ending) and stem.isascii() and stem.isdigit() and part_name(int(stem)) == stem:
            yield int(stem)


def read_facts(folder: Folder) -> dict[str, Any] | None:
    """Return the contents of `job.json`; None if there is none."""
    try:
        found = files.loads(folder.read(JOB, MOST_JOB).decode())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{folder}/{JOB} is damaged ({error}); remove it, or name another job") from None
    return found if isinstance(found, dict) else {}


def plan(
    job: str | os.PathLike[str],
    pictures: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    weights: str | os.PathLike[str],
    outputs: str | Sequence[str] = ("classes",),
    targets: Sequence[str | int] = (),
    layer: str | None = None,
    pool: str = "avg",
    normalize: bool = False,
    half: bool = False,
    top: int = 5,
    shard: int = SHARD,
    precision: str | None = None,
    exact: bool = True,
    longest_side: int | None = None,
    upscale: bool = False,
    cell_stride: int | None = None,
    column: str | None = None,
    exclude: Sequence[str] = (),
    max_pixels: int | None = None,
    allow_truncated: bool = False,
    depth: Any = None,
    background: str | None = None,
) -> Job:
    """Plan a job: list the pictures in shards, and write down what is to be computed of them. No network is loaded.

    The list is written while it is read, so it may have any length. Where a job is there already, nothing is written:
    the same call returns it, and another one is refused.

    Args:
        job: an empty or new folder for the job: a path, or an address such as `s3://bucket/job` that `pyarrow.fs` or
            fsspec takes. An address may end with options for pyarrow: `?endpoint_override=...&scheme=http`.
        pictures: folders or addresses of the same kinds, whose pictures are taken in the order of their paths; or
            tables, .parquet or .csv, with a column of paths or addresses, whose order is kept.
        weights: a safetensors file, or the name of one in the cache.
        outputs: some of "classes", "vector", "logits" and "heatmap".
        targets: with "heatmap": what to look for, as in `heatmap_each`; each gives a row.
        layer, pool, normalize: with "vector", as in `embed_each`; a single layer.
        half: write vectors as float16.
        top: with "classes": the number of classes of each picture.
        shard: pictures of a shard: what is lost when a process dies, and one file of results.
        precision: as in `prepare`; None computes with the weights as they are.
        exact: exactly the pixels of `classify`; False decodes JPEG files at reduced scale, as in `predict`.
        longest_side, upscale, cell_stride: with "heatmap", as there.
        column: column of the tables; by default the one that is called uri, url, path, image, file or the like.
        exclude: as in `find_pictures`.
        max_pixels, allow_truncated, depth, background: as in `read_picture`.

    Returns:
        The job.

    Raises:
        ValueError: an option is invalid or does not suit the network; there are no pictures; or the folder holds
            another job (the message names what differs).
        OSError: a file, folder or store cannot be read or written.
        ImportError: pyarrow is not installed.

    >>> from convnets_torch import batch
    >>> made = batch.plan("job", "street.jpg", weights="alexnet.safetensors", outputs=["classes", "vector"])
    >>> made.pictures, made.shards
    (1, 1)
    >>> batch.plan("job", "street.jpg", weights="alexnet.safetensors", outputs=["logits"])
    Traceback (most recent call last):
    ...
    ValueError: job holds another job, which differs in: outputs; name another folder, or remove this one
    """
    options = Options(
        (outputs,) if isinstance(outputs, str) else tuple(outputs), tuple(map(str, targets)), layer, pool, normalize,
        half, top, precision, exact, longest_side, upscale, cell_stride, max_pixels, allow_truncated, depth, background,
    )  # fmt: skip
    return planned(job, pictures, weights, options, shard, column, tuple(exclude))


def planned(
    job: str | os.PathLike[str],
    pictures: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    weights: str | os.PathLike[str],
    options: Options,
    shard: int = SHARD,
    column: str | None = None,
    exclude: tuple[str, ...] = (),
    more: Callable[[Job], Mapping[str, Any]] | None = None,
) -> Job:
    """Plan a job as `plan` does; `more` returns further contents of `job.json`, once the pictures are listed."""
    if type(shard) is not int or not 1 <= shard <= MOST_SHARD:
        raise ValueError(f"a shard has 1 to {MOST_SHARD:,} pictures, not {shard}")
    path = find(weights)
    card = read_card(path)
    options.check(card)
    if options.layer is not None:
        _check_layer(card, options.layer)
    several = [pictures] if isinstance(pictures, str | os.PathLike) else list(pictures)
    sources = [_Source(str(each), column, exclude) for each in several]
    folder = Folder(job)
    identity = {
        "version": __version__,
        "card": card.to_json(),
        "weights": sha256(path),
        "options": json.loads(json.dumps(asdict(options))),
    }
    before = read_facts(folder)
    if before is not None:
        _check_same(folder, before, identity | {"shard": shard})
    file_shards = max(1, min(FILE_SHARDS, FILE_ROWS // shard))
    listed = _Manifest(folder if before is None else None, shard, file_shards)
    for source in sources:
        for table in source.tables(shard):
            listed.add(table)
        source.warn()
    listed.close()
    if not listed.rows:
        raise ValueError(f"{', '.join(map(str, several))}: there are no pictures; name another folder or table")
    queries = {parts_of(each.address).root: each.query for each in sources if each.query}
    facts = {
        "format": FORMAT,
        "identity": identity,
        "manifest": {
            "sha256": listed.digest.hexdigest(), "pictures": listed.rows, "shards": -(-listed.rows // shard),
            "shard": shard, "file_shards": file_shards,
        },
        "queries": queries,
        "weights": str(path.absolute()),
    }  # fmt: skip
    if before is None:
        if more is not None:
            facts |= more(Job(folder, facts))
        with contextlib.suppress(FileExistsError):  # another process has just planned it; it is compared below
            folder.create(JOB, (json.dumps(facts, indent=1) + "\n").encode())
        before = read_facts(folder) or {}
        _check_same(folder, before, identity | {"shard": shard})
    theirs = before.get("manifest", {})
    if theirs.get("sha256") != facts["manifest"]["sha256"]:  # type: ignore[index]
        raise ValueError(
            f"{folder} holds a job of other pictures: {theirs.get('pictures', 0):,} there, {listed.rows:,} here, or"
            " some of them have changed; name another folder, or remove this one"
        )
    return Job(folder, before)


def _check_same(folder: Folder, facts: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise ValueError, naming what differs, if a folder holds a job of another identity."""
    try:
        theirs = {**facts["identity"], "shard": facts["manifest"]["shard"]}
        one, other = ({**each, **each["options"], "options": None} for each in (theirs, wanted))
    except (KeyError, TypeError):
        raise ValueError(f"{folder}/{JOB} was not made by `convnets-torch batch plan`; name another folder") from None
    names = sorted(name for name in {**one, **other} if one.get(name) != other.get(name))
    if names:
        raise ValueError(
            f"{folder} holds another job, which differs in: {', '.join(names)}; name another folder, or remove this one"
        )


def _check_layer(card: Card, layer: str) -> None:
    from convnets_torch.explain.layer_names import find_layer
    from convnets_torch.weights import build

    find_layer(build(card.network, card.arguments), layer)


def manifest_schema() -> Any:
    """The columns of a manifest."""
    pa = pyarrow()
    return pa.schema([("id", pa.int64()), ("uri", pa.string()), ("size", pa.int64()), ("etag", pa.string())])


class _Manifest:
    """Writes the list of pictures: a row group for each shard, and several shards in a file.

    Args:
        folder: where; None computes the digest alone.
    """

    def __init__(self, folder: Folder | None, shard: int, file_shards: int) -> None:
        self.rows, self.digest = 0, hashlib.sha256()
        self._folder, self._shard, self._file_shards = folder, shard, file_shards
        most = max(1, min(file_shards, BLOCK_ROWS // shard))
        self._block = shard * next(count for count in range(most, 0, -1) if file_shards % count == 0)  # rows at a time
        self._waiting: list[Any] = []  # tables of (uri, size, etag)
        self._count = 0  # rows of these
        self._writer: Any = None  # of the file that is made
        self._sink = io.BytesIO()
        self._groups = self._file = 0  # row groups of that file, and its number

    def add(self, table: Any) -> None:
        self._waiting.append(table)
        self._count += len(table)
        while self._count >= self._block:
            whole = pyarrow().concat_tables(self._waiting)
            self._put(whole.slice(0, self._block))
            rest = whole.slice(self._block)
            self._waiting, self._count = [rest], len(rest)

    def _put(self, table: Any) -> None:
        pa = pyarrow()
        table = table.combine_chunks()
        ids = pa.array(range(self.rows, self.rows + len(table)), pa.int64())
        self.rows += len(table)
        for name in ("uri", "size", "etag"):
            self.digest.update(_bytes_of(table[name]))
        if self._folder is None:
            return
        if self._writer is None:
            self._sink = io.BytesIO()  # compressed; a request to a store may have to be tried again
            self._writer = parquet().ParquetWriter(
                self._sink, manifest_schema(), compression="zstd", use_dictionary=False
            )
        group = table.add_column(0, "id", ids).cast(manifest_schema())
        self._writer.write_table(group, row_group_size=self._shard)
        self._groups += -(-len(group) // self._shard)
        if self._groups == self._file_shards:
            self._flush()

    def _flush(self) -> None:
        if self._writer is None or self._folder is None:
            return
        self._writer.close()
        self._writer, self._groups, content = None, 0, self._sink.getbuffer()
        self._folder.write(f"{MANIFEST}/{part_name(self._file)}.parquet", lambda file: file.write(content))
        self._file += 1

    def close(self) -> None:
        if self._count:
            self._put(pyarrow().concat_tables(self._waiting))
            self._waiting, self._count = [], 0
        self._flush()


def _bytes_of(column: Any) -> bytes:
    """The values of a column as bytes that do not depend on how Arrow lays them out."""
    import numpy as np

    array = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    if hasattr(array, "chunks"):
        array = pyarrow().concat_arrays(array.chunks)
    if array.null_count:
        array = array.fill_null("\0" if pyarrow().types.is_string(array.type) else -1)
    if not pyarrow().types.is_string(array.type):
        return bytes(array.to_numpy(zero_copy_only=False).astype("<i8").tobytes())
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, "<i4")[array.offset : array.offset + len(array) + 1]
    text = b"" if data is None else memoryview(data)[int(ends[0]) : int(ends[-1])]
    return np.diff(ends).astype("<i4").tobytes() + bytes(text)


def _csv_names(start: bytes) -> list[str]:
    """The names of the columns, from the beginning of a table."""
    lines = io.StringIO(start.decode("utf-8-sig", "replace"), newline="")
    with contextlib.suppress(csv.Error):  # a NUL, or a name of more than 100,000 letters
        return next((names for names in csv.reader(lines) if names), [])  # pyarrow leaves out empty lines
    return []


@dataclass
class _Source:
    """A folder, a prefix or a table of pictures."""

    address: str
    column: str | None
    exclude: tuple[str, ...]

    def __post_init__(self) -> None:
        self.query = ""
        place = self.address
        if is_remote(place):
            root, path, self.query = parts_of(place, query=True)
            place = f"{root}/{path}"
        self._place = place
        self.is_table = PurePosixPath(place).suffix.lower() in TABLES and (
            is_remote(place) or local_path(place).is_file()
        )
        self._walk = Walk(self.address, self.exclude)

    def tables(self, rows: int) -> Iterator[Any]:
        """Yield tables of (uri, size, etag), of at most so many rows."""
        pa = pyarrow()
        if self.is_table:
            yield from self._of_table()
            return
        schema = pa.schema([("uri", pa.string()), ("size", pa.int64()), ("etag", pa.string())])
        some: list[tuple[str, int | None, str | None]] = []
        for found in self._walk:
            try:
                found[0].encode()
            except UnicodeEncodeError:
                raise ValueError(f"{printable(found[0])} is not UTF-8; rename the file") from None
            some.append(found)
            if len(some) == rows:
                yield pa.table([list(each) for each in zip(*some, strict=True)], schema=schema)
                some = []
        if some:
            yield pa.table([list(each) for each in zip(*some, strict=True)], schema=schema)

    def _of_table(self) -> Iterator[Any]:
        """Yield the column of URIs, checked, batch by batch."""
        pa = pyarrow()
        import pyarrow.compute as pc

        beside = self._place.rpartition("/")[0]
        if not is_remote(self._place):
            beside = str(local_path(self._place).absolute().parent)
        first = 0
        with open_address(self._place, self.query) as file, reading_of(self.address):
            for column in self._batches(file):
                if column.null_count or pc.any(pc.equal(column, "")).as_py():
                    at = pc.index(pc.equal(pc.fill_null(column, ""), ""), True).as_py()
                    raise ValueError(f"{self.address}, row {first + at}: no picture is named; fill or remove the row")
                if pc.max(pc.binary_length(column)).as_py() > MOST_URI:
                    raise ValueError(f"{self.address} names a picture with more than {MOST_URI} letters")
                whole = pc.or_(pc.match_substring_regex(column, "^[a-z][a-z0-9+.-]*://"), pc.starts_with(column, "/"))
                if not pc.all(whole).as_py():
                    column = pc.if_else(whole, column, pc.binary_join_element_wise(f"{beside}/", column, ""))
                remote = pc.match_substring_regex(column, "^[a-z0-9+.-]+://[^/]*:[^/]*@")
                if pc.any(remote).as_py():
                    parts_of(column.filter(remote)[0].as_py())  # raises
                nulls = pa.nulls(len(column))
                yield pa.table(
                    {"uri": column, "size": nulls.cast(pa.int64()), "etag": nulls.cast(pa.string())},
                )
                first += len(column)

    def _batches(self, file: IO[bytes]) -> Iterator[Any]:
        pa = pyarrow()
        if self._place.lower().endswith(".csv"):
            from pyarrow import csv as arrow_csv

            name = self._name(_csv_names(file.read(CSV_BLOCK)))
            file.seek(0)  # not after a first `open_csv`, which goes on reading in a thread of its own
            block = arrow_csv.ReadOptions(block_size=CSV_BLOCK, use_threads=False)  # it reads ahead
            how = arrow_csv.ConvertOptions(
                include_columns=[name], column_types={name: pa.string()}, strings_can_be_null=True
            )
            batches: Iterator[Any] = iter(arrow_csv.open_csv(file, read_options=block, convert_options=how))
        else:
            found = parquet().ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
            name = self._name(found.schema_arrow.names)
            batches = found.iter_batches(columns=[name], batch_size=1 << 14, use_threads=False)
        for batch in batches:
            column = batch.column(0)
            if pa.types.is_dictionary(column.type):
                column = column.dictionary_decode()
            if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
                raise ValueError(f"{self.address}: the column {name} is {column.type}, but names of pictures are text")
            yield column.cast(pa.string())

    def _name(self, names: Sequence[str]) -> str:
        if self.column is not None:
            if self.column not in names:
                raise ValueError(f"{self.address} has no column {self.column!r}; it has {', '.join(names)}"[:2000])
            return self.column
        lower = {name.lower(): name for name in reversed(names)}
        for name in URIS:
            if name in lower:
                return lower[name]
        if len(names) == 1:
            return names[0]
        raise ValueError(
            f"{self.address}: which column names the pictures? It has {', '.join(names)}; name it (column, --column)"[
                :2000
            ]
        )

    def warn(self) -> None:
        """Warn of what a folder held beside pictures."""
        import warnings

        for kind, count in self._walk.left_out.items():
            if count:
                warnings.warn(printable(f"{self.address}: left out {count} {kind}"), PictureWarning, stacklevel=3)

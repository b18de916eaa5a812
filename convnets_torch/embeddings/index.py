"""Build and update an index of pictures: a table of their vectors, safe to interrupt at any time."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import Unpack

from convnets_torch.card import Card
from convnets_torch.embeddings.extraction import Embedded, Embedder, Pool, embedded, top_class
from convnets_torch.embeddings.image_map_drawing import thumbnail
from convnets_torch.embeddings.index_table import (
    About,
    PictureTable,
    check_index,
    file_of,
    is_local,
    is_there,
    kind_of,
    text_of,
)
from convnets_torch.embeddings.neighbours import recall_of
from convnets_torch.embeddings.projection import sampled, trained
from convnets_torch.embeddings.search import Index
from convnets_torch.files import check_regular, is_scratch, resolved, sha256
from convnets_torch.images.decoding import Reading, ReadingKeywords, check_bytes
from convnets_torch.images.finding import find_pictures
from convnets_torch.images.levels import said_levels
from convnets_torch.inference.child_process import Progress
from convnets_torch.inference.pipeline import prefetch, ready_card
from convnets_torch.networks import Network
from convnets_torch.networks.tracing import unwrapped
from convnets_torch.options import checked, renamed, shows

ROWS = 1024  # maximum rows per commit
BYTES = 1 << 26  # maximum bytes of vectors per commit
SECONDS = 20.0  # maximum time between commits
HASHED_AHEAD = 64  # files hashed ahead by worker threads


@dataclass(frozen=True)
class Indexed:
    """Result of `index_pictures`: the index, and numbers of files or rows.

    Attributes:
        index: the updated index.
        embedded: files that went through the network.
        moved: files with the content of a deleted file, whose row they took over.
        copied: files whose vector was copied from another file with the same content.
        unchanged: files whose rows were up to date, except perhaps for the modification time.
        failed: files that could not be used; their rows hold the error.
        vanished: rows whose files were deleted or cannot be read.
        pruned: rows of deleted files that were removed.
        recall: with `pca`, and if the index is new: which share of the 10 nearest by cosine of whole vectors is also
            found by those kept, among the pictures that the components were trained on.
    """

    index: Index
    embedded: int = 0
    moved: int = 0
    copied: int = 0
    unchanged: int = 0
    failed: int = 0
    vanished: int = 0
    pruned: int = 0
    recall: float | None = None


@renamed(pictures="images")
@shows(ReadingKeywords, Reading)
def index_pictures(
    network: Network,
    images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    address: str | os.PathLike[str],
    layer: str | None = None,
    pool: Pool = "avg",
    *,
    weights: str | os.PathLike[str] = "",
    hash_all: bool = False,
    prune: bool = False,
    batch: int | Literal["auto"] = "auto",
    workers: int | None = None,
    exact: bool = False,
    half: bool = False,
    pca: int | None = None,
    exclude: str | Iterable[str] = (),
    progress: Progress | None = None,
    **reading: Unpack[ReadingKeywords],
) -> Indexed:
    """Create or update an index of pictures: a table with one row per file, holding its vector and top class.

    A file whose size and modification time match its row is taken as unchanged, without reading it. Other files are
    hashed: if the sha256 is in the table, under any path, the vector is reused, so the network runs only on new
    content. If that other file has been deleted, the file counts as moved and takes over its row. Failed files are
    tried again each time.

    Rows of deleted files, inside or outside the given folders, are marked and not removed, since a disk may only be
    unmounted. They keep their vectors, are not searched, and are unmarked by the next call that finds the file again.

    Rows are committed about a thousand at a time, at least every 20 seconds. An interrupted or killed call loses the
    work since the last commit, and the next call continues from there.

    Args:
        network: in eval mode, with its card, as from `load`, prepared or not, with or without a head.
        images: files, folders and patterns, as in `find_pictures`.
        address: address of the index: a folder, created if needed, or any LanceDB address such as
            "s3://bucket/photos.lance", or "memory://" for an index that ends with this process.
        layer, pool: as in `embed`.
        weights: where the network came from; search loads it from there for pictures that are not in the index.
        hash_all: hash all files, even if size and modification time match their row.
        prune: remove all rows whose files are missing, including those on unmounted disks.
        exclude: patterns of files and folders to skip, as in `find_pictures`.
        batch, workers, exact: as for `predict`.
        half: keep vectors as float16, which takes half the space.
        pca: keep vectors projected on so many principal components. They are trained once, on 4,096 of the pictures or
            all of them, when the index is created, and kept in its metadata; an index that is there already keeps
            those that it has.
        progress: called with (files checked, total files).
        **reading: as for `read_picture`.

    Raises:
        OSError: a folder has no pictures or cannot be listed; the index cannot be read or written.
        ValueError: the index has vectors of another network, layer or pool, or keeps them in another way; the layer or
            the pool is invalid; vectors are NaN or infinite, or too large for float16; there are fewer pictures than
            components. The existing index is unchanged.
        ImportError: LanceDB is not installed.

    Warns:
        PictureWarning: as in `find_pictures`.

    >>> from convnets_torch import load
    >>> network = load("alexnet.safetensors")
    >>> done = index_pictures(network, ["street.jpg", "none.jpg"], "photos.lance", weights="alexnet.safetensors")
    >>> done.embedded, done.failed
    (1, 1)
    >>> index_pictures(network, "street.jpg", "photos.lance").unchanged
    1
    """
    decoding = Reading(**checked(reading, ReadingKeywords))
    address = os.fspath(address)
    names = [images] if isinstance(images, str | os.PathLike) else list(images)
    network = unwrapped(network)  # type: ignore[assignment]
    places = map(os.path.abspath, find_pictures(names, exclude=exclude))  # does not resolve links
    found = {text_of(path): path for path in places}
    embedder = Embedder(network, layer, pool, logits=not isinstance(network, Network) or network.head is not None)
    card = ready_card(network)
    levels = said_levels(decoding.depth, decoding.background)

    def vectors_of_some() -> NDArray[np.float32]:
        return vectors_for(embedded(embedder, sampled(found), decoding, batch, workers, exact, fill=True))

    how = About(
        kind_of(embedder.about | levels), card.to_json(), layer, embedder.pool, as_recorded(weights), 1,
        numbers="float16" if half else None, **levels,
    )  # fmt: skip
    table, recall = table_at(address, how, pca, lambda: width_of(embedder, card), vectors_of_some)
    job = _Job(table, card, found, hash_all, decoding.max_pixels)
    rows = embedded(embedder, job.to_embed(progress), decoding, batch, workers, exact, look=thumbnail)
    with contextlib.closing(rows):
        try:
            for row in rows:
                job.embedded(row)
        finally:
            job.commit()
    job.finish(prune)
    fresh = Index.of(table) if address.startswith("memory:") else Index.open(address)
    return Indexed(fresh, **job.counts, recall=recall)


def as_recorded(weights: str | os.PathLike[str]) -> str:
    """Return the place of weights as an index records it."""
    name = os.fspath(weights)
    return os.path.abspath(name) if name and Path(name).exists() else name  # noqa: PTH100


def vectors_for(rows: Iterator[Embedded]) -> NDArray[np.float32]:
    """Return the vectors (N, values) of the pictures that could be used."""
    found = [row.vector.numpy() for row in rows if row.error is None and row.vector is not None]
    return np.stack(found) if found else np.zeros((0, 1), np.float32)


def table_at(
    address: str,
    how: About,
    pca: int | None,
    width: Callable[[], int],
    vectors_of_some: Callable[[], NDArray[np.float32]],
) -> tuple[PictureTable, float | None]:
    """Open or create the table at an address; return also the recall of a projection that was trained.

    Args:
        address: of the index.
        how: how its vectors are made, without their width.
        pca: number of principal components; None keeps whole vectors.
        width: returns that of whole vectors; called if there is no table yet.
        vectors_of_some: returns whole vectors for training; called likewise, with `pca`.

    Raises:
        OSError: the address cannot hold an index.
        ValueError: the vectors of the table there are of another kind.
    """
    if is_local(address):
        folder = resolved(address)
        if folder.is_dir() and any(not is_scratch(entry.name) for entry in folder.iterdir()):
            check_index(folder)
        elif folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"{address} is a file, but an index is a folder; name another")
        elif not folder.parent.is_dir():
            raise FileNotFoundError(f"folder {folder.parent} does not exist; create it first")
    recall = None
    try:
        table = PictureTable.open(address)
    except FileNotFoundError:
        if pca is None:
            how = replace(how, width=width())
        else:
            how, recall = _projected(how, pca, vectors_of_some())
        table = PictureTable.create(address, replace(how, made=secrets.token_hex(8)))
    about = table.about
    if about.kind != how.kind:
        held = [Card.from_json(about.card).network, about.layer or "last dense layer", about.pool]
        held += [f"{name} {text}" for name, text in about.levels.items()]
        raise ValueError(
            f"{address} has vectors of another kind ({', '.join(held)}) than"
            f" {Card.from_json(how.card).network} gives here; index into another folder"
        )
    kept = about.width if about.components is not None else None
    if (how.numbers and not about.numbers) or (pca is not None and pca != kept):
        raise ValueError(
            f"{address} keeps vectors as {about.numbers or 'float32'},"
            f" {'whole' if kept is None else f'projected to {kept} values'}; index into another folder"
        )
    return table, recall


def _projected(how: About, pca: int, vectors: NDArray[np.float32]) -> tuple[About, float]:
    """Train a projection; return also the share of the 10 nearest that it keeps."""
    projection = trained(vectors, pca)
    kept = np.stack([projection(vector) for vector in vectors])
    return replace(how, width=pca, components=projection.to_text()), recall_of(vectors, kept)


def width_of(embedder: Embedder, card: Card) -> int:
    """Return the number of values of a vector, by running the network on a black image."""
    some = next(embedder.parameters())
    with torch.inference_mode():
        embedder(some.new_zeros(1, card.preprocessing.channel_count, *card.preprocessing.shape))
    return embedder.widths[0]


@dataclass(frozen=True)
class _File:
    """State of a file before decoding; sha256, size and modified are None if it cannot be read."""

    path: str
    sha256: str | None = None
    size: int | None = None
    modified: int | None = None
    error: str | None = None
    same: bool = False  # size and modification time match the row

    @property
    def row(self) -> dict[str, Any]:
        """The columns of its row that do not depend on its content."""
        return {"path": self.path, "size": self.size, "modified": self.modified, "vanished": False}


@dataclass(frozen=True)
class _Row:
    """State of a file as its row has it."""

    sha256: str | None
    size: int | None
    modified: int | None
    error: str | None
    vanished: bool


class _Job:
    """One update of a table. All methods but `_inspect` run in one thread."""

    def __init__(
        self, table: PictureTable, card: Card, found: dict[str, str], hash_all: bool, max_pixels: int | None
    ) -> None:
        self._table, self._card, self._found, self._hash_all = table, card, dict(found), hash_all
        self._max_pixels = max_pixels
        self._known: dict[str, _Row] = {}
        self._held: set[str] = set()  # sha256 of contents that have vectors
        for batch in table.read(["path", "sha256", "size", "modified", "error", "vanished"]):
            columns = [column.to_pylist() for column in batch.columns]
            named, sound = table.is_sound(batch.select(["path"])), table.is_sound(batch)
            for has_path, is_sound, path, *values in zip(named, sound, *columns, strict=True):
                row = _Row(*values)
                if not has_path or not (is_sound or row.error is not None):
                    continue  # ignore rows that `index` did not write
                self._known[path] = row
                if row.error is None and row.sha256 is not None:
                    self._held.add(row.sha256)
        self._gone: set[str] = set()  # rows whose files are missing, or have vectors but cannot be read
        self._left: dict[str | None, deque[str]] = {}  # sha256 -> rows of missing files that no file has taken over yet
        for path in sorted(self._known.keys() - found.keys()):
            row = self._known[path]
            if not is_there(path):
                self._gone.add(path)
                self._left.setdefault(row.sha256, deque()).append(path)
            elif row.vanished and row.error is None:
                self._found[path] = file_of(path)  # the file is back
        self._moved: dict[str, str] = {}  # path of a file -> path of the row that it takes over
        self._running: deque[_File] = deque()  # files passed to embed_each, in order
        self._twins: dict[str, list[_File]] = {}  # sha256 of a running file -> other files with this content
        self._rows: list[dict[str, Any]] = []  # rows to commit
        self._copies: list[_File] = []  # files to commit whose vectors are in the table
        self._again: list[_File] = []  # files of `_copies` whose source row has since disappeared
        self._last = time.monotonic()
        self._wrote = False
        self.counts = {field.name: 0 for field in fields(Indexed) if field.type == "int"}

    def to_embed(self, progress: Progress | None) -> Iterator[str]:
        """Yield the files that the network must embed; handle the others on the way."""
        with contextlib.closing(prefetch(self._found, self._inspect, most=HASHED_AHEAD)) as inspected:
            for number, (_, file) in enumerate(inspected, start=1):
                if self._is_new(file):
                    yield self._begin(file)
                if progress is not None:
                    progress(number, len(self._found))
        self.commit()
        while self._again:
            yield self._begin(self._again.pop())

    def _inspect(self, path: str) -> _File:
        """Return a file's size and modification time, and its sha256 unless these match the row; runs in a thread."""
        known = self._known.get(path)
        real = Path(self._found[path])
        try:
            check_regular(real)  # for its error messages
            state = real.stat()
            file = _File(path, None, state.st_size, state.st_mtime_ns)
            same = known is not None and (known.size, known.modified) == (file.size, file.modified)
            if same and known is not None and known.error is None and not self._hash_all:
                return replace(file, sha256=known.sha256, same=True)
            check_bytes(str(real), state.st_size, self._max_pixels)  # hashing a huge file would take hours
            return replace(file, sha256=sha256(real), same=same)
        except ValueError as error:
            return _File(path, error=str(error))
        except OSError as error:
            return _File(path, error=_reason(real, error))

    def _is_new(self, file: _File) -> bool:
        """Return whether the network must embed a file; handle it otherwise."""
        known = self._known.get(file.path)
        good = known is not None and known.error is None
        if file.sha256 is None:
            if good:
                self._gone.add(file.path)
            else:
                self._failed(file, file.error or "")
            return False
        if known is not None and good and known.sha256 == file.sha256:
            self.counts["unchanged"] += 1
            if file.same and not known.vanished:
                return False
        elif file.sha256 in self._held:
            self.counts["moved" if self._take_row(file) else "copied"] += 1
        elif file.sha256 in self._twins:
            self._twins[file.sha256].append(file)
            return False
        else:
            return True
        self._copies.append(file)
        self._commit_if_due()
        return False

    def _take_row(self, file: _File) -> bool:
        """Let a file take over the row of a missing file with the same content, if there is one."""
        if not (left := self._left.get(file.sha256)) or file.sha256 is None:
            return False
        self._moved[file.path] = left.popleft()
        return True

    def _begin(self, file: _File) -> str:
        self._twins.setdefault(file.sha256 or "", [])
        self._running.append(file)
        return self._found[file.path]

    def embedded(self, row: Embedded) -> None:
        """Record the network's result for the file that was started first."""
        file = self._running.popleft()
        files = [file, *self._twins.pop(file.sha256 or "", [])]
        if row.error is not None:
            for each in files:
                self._failed(each, str(row.error).replace(file.path, each.path))
            return
        class_id, probability = top_class(row.logits, self._card)
        assert row.vector is not None
        values = {
            "sha256": file.sha256,
            "vector": self._table.about.kept(row.vector.numpy()),
            "class_id": class_id,
            "probability": probability,
            "thumbnail": row.seen,
        }
        self._held.add(file.sha256 or "")
        self.counts["embedded"] += 1
        self.counts["copied"] += len(files) - 1
        for each in files:
            self._add(each, values)

    def _failed(self, file: _File, reason: str) -> None:
        self.counts["failed"] += 1
        reason = " ".join(reason.split())
        if self._known.get(file.path) != _Row(file.sha256, file.size, file.modified, reason, False):
            self._take_row(file)
            nothing = dict.fromkeys(("vector", "class_id", "probability", "thumbnail"))
            self._add(file, {"sha256": file.sha256, "error": reason} | nothing)

    def _add(self, file: _File, values: dict[str, Any]) -> None:
        self._rows.append({"error": None} | values | file.row)
        self._commit_if_due()

    def _commit_if_due(self) -> None:
        waiting = len(self._rows) + len(self._copies)
        most = min(ROWS, BYTES // (4 * self._table.about.width) + 1)
        if waiting >= most or time.monotonic() - self._last > SECONDS:
            self.commit()

    def commit(self) -> None:
        """Write everything that is ready, as one version of the table."""
        rows = {row["path"]: row for row in self._rows}
        if self._copies:
            wanted = {file.sha256 for file in self._copies if file.sha256 is not None}
            columns = ["sha256", "vector", "class_id", "probability", "thumbnail", "error"]
            rows_of = self._table.rows(columns, "sha256", wanted, sound=True)
            sources = {row["sha256"]: row for row in rows_of}
            sources |= {row["sha256"]: row for row in self._rows if row["vector"] is not None}
            for file in self._copies:
                source = sources.get(file.sha256)
                if source is None:
                    self._again.append(file)
                    continue
                rows[file.path] = source | file.row
        self._rows, self._copies = [], []
        if rows:
            moved = [self._moved.pop(path) for path in rows if path in self._moved]
            self._table.put(list(rows.values()), moved)
            self._gone.difference_update(moved)
            self._wrote = True
        self._last = time.monotonic()

    def finish(self, prune: bool) -> None:
        """Commit the remaining rows, and mark or remove rows of missing files."""
        self.commit()
        removed = sorted(path for path in self._gone if prune and not is_there(path))
        marked = sorted(path for path in self._gone.difference(removed) if not self._known[path].vanished)
        self.counts["pruned"], self.counts["vanished"] = len(removed), len(self._gone) - len(removed)
        self._table.remove(removed)
        self._table.mark_vanished(marked)
        if self._wrote or marked or removed:
            self._table.optimize()


def _reason(path: Path, error: OSError) -> str:
    """Return why a file cannot be read, without the errno."""
    try:
        path.stat()
    except OSError as other:
        if other.errno == errno.ELOOP:
            return f"{path} is a link that leads in a circle"
    return f"{path}: {error.strerror}" if error.strerror else str(error)

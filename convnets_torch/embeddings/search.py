"""Search an index by pictures, vectors or classes, and find near-duplicates and leaks in it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Unpack

from convnets_torch.card import Card, read_card
from convnets_torch.embeddings import neighbours
from convnets_torch.embeddings.duplicates import DuplicateGroup, find_duplicates, find_leaks, group_of
from convnets_torch.embeddings.index_table import About, PictureTable, check_index, is_local, kind_of, usable
from convnets_torch.embeddings.neighbours import (
    REFINED,
    Metric,
    Vectors,
    approximate_nearest,
    nearest,
    probed_of,
)
from convnets_torch.embeddings.scanning import Hit, Question, Scan, approximate_hits, scan
from convnets_torch.files import find, sha256
from convnets_torch.images.decoding import Reading, ReadingKeywords, decode, warn
from convnets_torch.images.preprocessing import Pixels
from convnets_torch.images.remote import is_remote
from convnets_torch.inference.child_process import Progress
from convnets_torch.options import checked, shows
from convnets_torch.text import LONGEST, check_choice
from convnets_torch.wordnet.targets import class_name, class_wnid, find_target

if TYPE_CHECKING:
    from convnets_torch.embeddings.extraction import Pool
    from convnets_torch.networks import Network

Query: TypeAlias = "str | os.PathLike[str] | NDArray[np.float32]"
Box: TypeAlias = tuple[int, int, int, int]


@dataclass(frozen=True)
class Match:
    """A search result.

    Attributes:
        path: absolute path of the file; if possible an existing one that is not a link.
        score: cosine or product (larger is nearer), or distance.
        sha256: sha256 of the file.
        class_id, wnid, words: top class; None if the network has no head or the class no wnid.
        probability: probability of the top class, 0 to 1; None if outputs are not probabilities.
        paths: all paths to files with this content, starting with `path`: copies, links and other mounts.
        gone: no file exists at any path; `paths` are then those of the table.
    """

    path: str
    score: float
    sha256: str
    class_id: int | None
    wnid: str | None
    words: str | None
    probability: float | None
    paths: tuple[str, ...]
    gone: bool


@dataclass(frozen=True)
class Matches:
    """Search results of one query.

    Attributes:
        query: the query, as given, or "vector 0" and so on.
        sha256: sha256 of the query's content, which is excluded from results; None for a vector.
        found: matches, the nearest first.
    """

    query: str
    sha256: str | None
    found: tuple[Match, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {"query": self.query, "sha256": self.sha256, "matches": [asdict(match) for match in self.found]}


class Index:
    """An index of pictures, in the state in which it was opened.

    Attributes:
        address: address of the index, as given.
        about: metadata of its vectors.
        card: card of the network.
        scan: how a search in place reads the table; `batch.scan_on_ray` gives one that divides the work among machines.

    >>> from PIL import Image
    >>> from convnets_torch import index_pictures, load
    >>> Image.open("street.jpg").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save("mirrored.png")
    >>> done = index_pictures(load("alexnet.safetensors"), ["street.jpg", "mirrored.png"], "photos.lance")
    >>> [matches] = Index.open("photos.lance").search("street.jpg")
    >>> [Path(match.path).name for match in matches.found]
    ['mirrored.png']
    """

    def __init__(
        self, address: str, about: About, table: PictureTable | None, vectors: Vectors | None, state: str
    ) -> None:
        """Use `Index.open` or `index_pictures` instead."""
        self.address, self.about = address, about
        try:
            self.card = Card.from_json(about.card)
        except ValueError as error:
            raise ValueError(f"{address}: {error}") from None
        self._table, self._vectors, self._state = table, vectors, state
        self.scan: Scan = scan
        self._network: Network | None = None  # loaded when a query needs it

    @classmethod
    def open(cls, address: str | os.PathLike[str]) -> Index:
        """Open the index at an address.

        Its vectors are cached in a memory-mapped file in the user's cache; nothing is written to the folder of the
        index. If the cache is up to date, LanceDB is not even imported; otherwise the cache is written on first use.

        Raises:
            OSError: there is no index, or it is damaged.
            ValueError: the table is not an index of pictures, or would lead LanceDB elsewhere.
            ImportError: LanceDB is not installed.

        Warns:
            IndexWarning: invalid rows, which `index_pictures` did not write, were left out.
        """
        address = os.fspath(address)
        if is_local(address):
            check_index(Path(address))
        state = neighbours.state_of(address)
        if found := neighbours.read_cache(address, state) if is_local(address) else None:
            return cls(address, found[0], None, found[1], state)
        return cls.of(PictureTable.open(address), state)

    @classmethod
    def of(cls, table: PictureTable, state: str | None = None) -> Index:
        """Return the index of an open table; `state` is from before the table was opened."""
        return cls(table.address, table.about, table, None, state or neighbours.state_of(table.address, table))

    @property
    def table(self) -> PictureTable:
        """The table with all rows, including those of failed and missing files."""
        if self._table is None:
            self._table = PictureTable.open(self.address)
        return self._table

    @property
    def vectors(self) -> Vectors:
        """The searchable vectors: of files that could be used and existed when last checked."""
        if self._vectors is None:
            found = neighbours.read_cache(self.address, self._state)
            self._vectors = found[1] if found else neighbours.write_cache(self.table, self._state)
        return self._vectors

    @shows(ReadingKeywords, Reading)
    def search(
        self,
        queries: Query | Iterable[Query],
        k: int = 12,
        *,
        metric: Metric = "cosine",
        target: str | int | None = None,
        box: Box | None = None,
        approximate: bool = False,
        refine: int = REFINED,
        in_place: bool = False,
        network: Network | None = None,
        batch: int | Literal["auto"] = "auto",
        workers: int | None = None,
        **reading: Unpack[ReadingKeywords],
    ) -> list[Matches]:
        """Find the pictures nearest to each query.

        A query is a picture file, the path or sha256 of a row, or a vector. If the content of a file is in the index,
        under any path, its stored vector is used; otherwise, and always with `box`, the network runs. Pictures with the
        query's own content are excluded. Files with the same content are one picture with several paths.

        Args:
            queries: a query or several; vectors are arrays (values,) float32.
            k: number of results per query.
            metric: "cosine", "l2" or "dot", as in `nearest`.
            target: only return pictures whose top class belongs to this target, as in `heatmap`.
            box: (left, top, right, bottom) in pixels of the upright picture: search by this part of each query.
            approximate: use LanceDB's vector index, which is first created if there is none for this metric; with
                `in_place` it must be there, as from `batch.index_vectors`.
            refine: with `approximate`: so many times k candidates are compared by the vectors themselves.
            in_place: read the vectors where the index lies, without a copy of them in the user's cache: an exact search
                then reads all of them each time, by `scan`.
            network: the network that made the index, for pictures not in it; by default loaded from its recorded
                location.
            batch, workers: as for `predict`, for pictures not in the index.
            **reading: as for `read_picture`, for pictures not in the index; depth and background by default as for the
                index.

        Returns:
            One `Matches` per query, in order.

        Raises:
            OSError: a query is neither a file nor a row, or its file is not a picture; the index is damaged; the
                network is no longer at its recorded location.
            ValueError: the metric or target is unknown; the box is outside the picture; the network is not that of the
                index.
            ImportError: LanceDB is needed but not installed.
        """
        check_choice(metric, get_args(Metric), "metric")
        for number, name in ((k, "k"), (refine, "refine")):
            if number < 1:
                raise ValueError(f"{name} must be 1 or more, got {number}")
        class_ids = None if target is None else find_target(self.card, target).class_ids
        given = {name: value for name, value in checked(reading, ReadingKeywords).items() if value is not None}
        decoding = Reading(**(self.about.levels | given)).for_rule(self.card.preprocessing)
        names, contents, vectors = self._asked(queries, box, network, decoding, batch, workers, in_place)
        if in_place:
            question = Question(vectors, k, metric, class_ids, contents)
            return self._found_in_place(names, question, refine if approximate else None)
        held = self.vectors
        again = np.flatnonzero(held.first != np.arange(len(held)))
        left_out = [np.concatenate([again, held.rows_with(content)]) if content else again for content in contents]
        if approximate:
            found = approximate_nearest(held, self.table, vectors, k, metric, class_ids, left_out, refine)
        else:
            allowed = None if class_ids is None else np.isin(held.class_ids, class_ids)
            found = nearest(held.vectors, vectors, k, metric, lengths=held.lengths, allowed=allowed, left_out=left_out)
        return [
            Matches(name, content, tuple(self.match(int(row), float(score)) for row, score in zip(*each, strict=True)))
            for name, content, each in zip(names, contents, found, strict=True)
        ]

    def _found_in_place(self, names: list[str], question: Question, refine: int | None) -> list[Matches]:
        table = self.table
        if refine is None:
            found = self.scan(table, question)
        else:
            if not table.has_index(question.metric):
                raise ValueError(
                    f"{self.address} has no approximate index for {question.metric}; build it with `convnets-torch"
                    " index-vectors`, or search exactly"
                )
            found = list(approximate_hits(table, question, probed_of(table.count()), refine))
        paths: dict[str, list[str]] = {}
        for row in table.rows(["path", "sha256", "error", "vanished"], "sha256", {h.sha256 for h in chain(*found)}):
            if row["error"] is None and not row["vanished"]:
                paths.setdefault(row["sha256"], []).append(row["path"])

        def match_of(hit: Hit) -> Match:
            score = hit.score(question.metric)
            return self._match(paths[hit.sha256], score, hit.sha256, hit.class_id, hit.probability)

        return [
            Matches(name, content, tuple(map(match_of, hits)))
            for name, content, hits in zip(names, question.left_out, found, strict=True)
        ]

    def match(self, row: int, score: float) -> Match:
        """Return the `Match` of a row of `vectors`, with all paths of its content."""
        held = self.vectors
        paths = [held.path(int(each)) for each in np.flatnonzero(held.first == held.first[row])]
        class_id, chance = int(held.class_ids[row]), float(held.probabilities[row])
        return self._match(
            paths, score, held.hashes[row].tobytes().hex(), class_id if class_id >= 0 else None,
            None if np.isnan(chance) else chance,
        )  # fmt: skip

    def _match(
        self, paths: list[str], score: float, content: str, class_id: int | None, probability: float | None
    ) -> Match:
        existing = usable(paths)
        return Match(
            (existing or paths)[0],
            score,
            content,
            class_id,
            None if class_id is None else class_wnid(self.card, class_id),
            None if class_id is None else class_name(self.card, class_id),
            probability,
            existing or tuple(paths),
            not existing,
        )

    def thumbnails(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Return path -> bytes of a JPEG thumbnail, for paths in the table."""
        rows = self.table.rows(["path", "thumbnail"], "path", dict.fromkeys(paths))
        return {row["path"]: row["thumbnail"] for row in rows if row["thumbnail"]}

    def row_of(self, query: str | os.PathLike[str]) -> int | None:
        """Return the row of `vectors` with a query's content, path or sha256; None if no row has the file's content."""
        return self._found(os.fspath(query))[1]

    def holds(self, query: str | os.PathLike[str], in_place: bool = False) -> bool:
        """Return whether a query needs no network; arguments are as in `search`."""
        name = os.fspath(query)
        return (self._row_in_place(name)[1] if in_place else self.row_of(name)) is not None

    def errors(self) -> Iterator[str]:
        """Yield the error messages of failed files that still exist."""
        for batch in self.table.read(["error"], "error IS NOT NULL AND NOT vanished"):
            yield from (sentence[:LONGEST] for sentence in batch["error"].to_pylist())

    def duplicates(self, threshold: float, progress: Progress | None = None) -> list[DuplicateGroup]:
        """Group files that are nearly the same, as `find_duplicates` does; several paths of a file count once."""
        return self.grouped(find_duplicates(self.vectors.vectors, threshold, progress), threshold)

    def grouped(self, groups: Iterable[Sequence[int]], threshold: float) -> list[DuplicateGroup]:
        """Describe groups of rows that `find_duplicates` found, leaving out those of a single file."""
        made = (group_of(self.vectors, rows, threshold) for rows in groups)
        return [group for group in made if len(group.files) > 1]

    def leaks(
        self,
        folder: str | os.PathLike[str],
        source: str | os.PathLike[str],
        threshold: float,
        progress: Progress | None = None,
    ) -> list[tuple[str, str, float]]:
        """Find pictures of `folder` that have near-duplicates in `source`, as `find_leaks` does.

        Returns:
            (path in `folder`, nearest path in `source`, cosine similarity), the most similar first.

        Raises:
            ValueError: the index has no pictures of one of the folders; one folder contains the other; the threshold is
                out of range.
        """
        paths = self.vectors.paths()
        places = [os.path.abspath(each) for each in (folder, source)]  # noqa: PTH100 - as index_pictures does it
        if any(Path(one).is_relative_to(other) for one, other in (places, places[::-1])):
            raise ValueError(f"one of {places[0]} and {places[1]} contains the other; name two separate folders")
        rows = [[row for row, path in enumerate(paths) if Path(path).is_relative_to(place)] for place in places]
        for place, some in zip(places, rows, strict=True):
            if not some:
                raise ValueError(f"{self.address} has no pictures of {place}; index that folder first")
        mine, others = (self.vectors.vectors[some] for some in rows)
        found = find_leaks(mine, others, threshold, progress)
        return [(paths[rows[0][leak.row]], paths[rows[1][leak.of]], leak.similarity) for leak in found]

    def _asked(
        self,
        queries: Query | Iterable[Query],
        box: Box | None,
        network: Network | None,
        reading: Reading,
        batch: int | Literal["auto"],
        workers: int | None,
        in_place: bool,
    ) -> tuple[list[str], list[str | None], NDArray[np.float32]]:
        """Return the name of each query, the sha256 of its content (None for a vector), and its vector."""
        one = isinstance(queries, str | os.PathLike) or (isinstance(queries, np.ndarray) and queries.ndim == 1)
        several = cast("Iterable[Query]", [queries] if one else queries)
        names: list[str] = []
        contents: list[str | None] = []
        vectors: list[NDArray[np.float32] | None] = []
        for number, query in enumerate(several):
            if isinstance(query, np.ndarray):
                projection, values = self.about.projection, query.astype(np.float32)
                if projection is not None and query.shape == (projection.width,):
                    values = projection(values)
                if values.shape != (self.about.width,):
                    raise ValueError(f"vector {number} is {query.shape}, but those of the index ({self.about.width},)")
                names.append(f"vector {number}")
                contents.append(None)
                vectors.append(values)
                continue
            names.append(os.fspath(query))
            vector: NDArray[np.float32] | None = None
            if in_place:
                content, vector = self._row_in_place(os.fspath(query))
            else:
                content, row = self._found(os.fspath(query))
                vector = None if row is None else self.vectors.vectors[row]
            contents.append(content)
            vectors.append(None if box is not None else vector)
        if missing := [place for place, vector in enumerate(vectors) if vector is None]:
            self._network = network or self._network or network_of(self)
            paths = [names[place] for place in missing]
            seen = vectors_of(self, self._network, paths, box, reading, batch, workers)
            for place, vector in zip(missing, seen, strict=True):
                vectors[place] = vector
        if not vectors:
            raise ValueError("there is no query; give a picture, or the path or sha256 of a row")
        return names, contents, np.stack([vector for vector in vectors if vector is not None])

    def _found(self, query: str) -> tuple[str, int | None]:
        """Return the sha256 of a query's content, and a row with this content or None."""
        if Path(query).is_file():
            content = sha256(Path(query))
            rows = self.vectors.rows_with(content)
            return content, int(rows[0]) if len(rows) else None
        if len(query) == 64 and not set(query) - set("0123456789abcdef"):
            rows = self.vectors.rows_with(query)
            if len(rows):
                return query, int(rows[0])
        row = self.vectors.row_of(_path_of(query))
        if row is None:
            raise FileNotFoundError(f"{query} is neither a file nor in {self.address}; name a picture, or a row of it")
        return self.vectors.hashes[row].tobytes().hex(), row

    def _row_in_place(self, query: str) -> tuple[str, NDArray[np.float32] | None]:
        """Return the sha256 of a query's content, and the vector of a row with this content or None; as `_found`."""
        is_file = Path(query).is_file()
        asked = [("path", _path_of(query))]
        if is_file:
            asked = [("sha256", sha256(Path(query)))]
        elif len(query) == 64 and not set(query) - set("0123456789abcdef"):
            asked.insert(0, ("sha256", query))
        for column, value in asked:
            names = ["sha256", "vector", "error", "vanished"]
            for row in self.table.rows(names, column, [value], sound=True):
                if row["error"] is None and not row["vanished"]:
                    return row["sha256"], np.array(row["vector"], np.float32)
        if not is_file:
            raise FileNotFoundError(f"{query} is neither a file nor in {self.address}; name a picture, or a row of it")
        return asked[0][1], None


def _path_of(query: str) -> str:
    """Return a query as the path of a row."""
    return query if is_remote(query) else os.path.abspath(query)  # noqa: PTH100 - as index does it


def recall(exact: Sequence[Matches], found: Sequence[Matches]) -> float:
    """Return the recall of approximate search against exact search, 0 to 1; 1 if exact search found nothing."""
    pairs = [({m.path for m in a.found}, {m.path for m in b.found}) for a, b in zip(exact, found, strict=True)]
    wanted = sum(len(right) for right, _ in pairs)
    return sum(len(right & other) for right, other in pairs) / wanted if wanted else 1.0


def vectors_of(
    index: Index,
    network: Network,
    paths: list[str],
    box: Box | None,
    reading: Reading,
    batch: int | Literal["auto"] = "auto",
    workers: int | None = None,
) -> NDArray[np.float32]:
    """Embed pictures, or the same part of each, with the network of an index."""
    from convnets_torch.embeddings.extraction import Embedder, embedded, stacked

    embedder = Embedder(network, index.about.layer, cast("Pool", index.about.pool))
    if kind_of(embedder.about | index.about.levels) != index.about.kind:
        raise ValueError(
            f"{index.address} has vectors of {index.card.network} with another card; give the weights that made it"
        )
    images = paths if box is None else [_crop(path, box, reading) for path in paths]
    [vectors] = stacked(embedded(embedder, images, reading, batch, workers)).values()
    return np.stack([index.about.kept(vector) for vector in vectors.numpy()])


def network_of(index: Index) -> Network:
    """Load the network of an index from its recorded location; ValueError or OSError if it is not there."""
    from convnets_torch.weights import load

    weights = index.about.weights
    if not weights:
        raise ValueError(f"{index.address} does not say where its weights are; name them (network, --weights)")
    if "://" in weights or weights.startswith(("//", "\\\\")):  # even looking it up may contact another machine
        raise ValueError(f"{index.address} says that its weights are at {weights}; name a file (network, --weights)")
    try:
        path = find(weights)
    except (OSError, ValueError):
        raise FileNotFoundError(
            f"the weights of {index.address} are not at {weights} any more; name them (network, --weights)"
        ) from None
    try:
        same = read_card(path).to_json() == index.about.card
    except ValueError as error:
        raise ValueError(f"the weights that {index.address} names cannot be used: {error}") from None
    if not same:
        raise ValueError(f"{weights} is not the network that made {index.address}; name that one (network, --weights)")
    return load(path)


def _crop(path: str, box: Box, reading: Reading) -> Pixels:
    """Return a part of a picture."""
    picture = decode(path, reading)
    warn(picture.notes)
    left, top, right, bottom = box
    height, width = picture.pixels.shape[:2]
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(f"the box {left},{top},{right},{bottom} is not in {path}, which is {width} x {height} pixels")
    return picture.pixels[top:bottom, left:right]

"""Near-duplicates past one machine: all pairs of an index, in squares of the similarity matrix as shards of a work."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from bisect import bisect_right
from collections.abc import Generator, Iterable, Iterator, Mapping
from functools import cached_property
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from convnets_torch import files
from convnets_torch._version import __version__
from convnets_torch.batch.jobs import FORMAT, JOB, Work, read_facts, reading_of
from convnets_torch.batch.working import KEPT, Event, StoppedError, give_up
from convnets_torch.embeddings.duplicates import BLOCK, Groups, check_threshold, near_pairs
from convnets_torch.embeddings.index_table import is_local
from convnets_torch.embeddings.search import Index
from convnets_torch.images.stores import Folder, parquet, pyarrow

KIND = "duplicates"  # of the facts of such a work
MOST_ACROSS = 200  # squares beside each other, if nothing else is asked for: 20,100 shards
TOGETHER = 1 << 22  # pairs that are joined at a time
HASHED = 1 << 20  # rows
KEY = b"convnets_torch"  # in the metadata of a part's schema


class Pairs(Work):
    """The squares of the similarity matrix of an index, on and above its diagonal.

    Attributes:
        index: address of the index.
        threshold: cosine similarity of near-duplicates.
        rows: vectors of the index.
        side: rows and columns of a square, a multiple of the blocks of `find_duplicates`.
    """

    def __init__(self, folder: Folder, facts: Mapping[str, Any]) -> None:
        try:
            if facts["format"] != FORMAT:
                raise ValueError(f"it has format {facts['format']!r:.80}, but this version reads {FORMAT}")
            known = facts["identity"]
            self.index, self.threshold, self.state = known["index"], float(known["threshold"]), known["vectors"]
            self.rows, self.side = int(known["rows"]), int(known["side"])
            if not isinstance(self.index, str) or self.rows < 0 or self.side < 1 or self.side % BLOCK:
                raise TypeError
            check_threshold(self.threshold)
        except (KeyError, TypeError, AttributeError):
            raise ValueError(f"{folder}/{JOB} was not made by `convnets-torch duplicates`, or is damaged") from None
        except ValueError as error:
            raise ValueError(f"{folder}/{JOB}: {error}") from None
        self._across = -(-self.rows // self.side)
        super().__init__(folder, facts, self._first(self._across))

    def _first(self, row: int) -> int:
        """The first shard of a row of squares."""
        return row * self._across - row * (row - 1) // 2

    def square(self, shard: int) -> tuple[range, range]:
        """Return the rows and the columns of a shard."""
        row = bisect_right(range(self._across), shard, key=self._first) - 1
        column = row + shard - self._first(row)
        one, other = (range(each * self.side, min((each + 1) * self.side, self.rows)) for each in (row, column))
        return one, other

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.facts["identity"], sort_keys=True).encode()).hexdigest()

    def write(self, shard: int, pairs: tuple[NDArray[np.int64], NDArray[np.int64]]) -> None:
        """Write what was found in a square."""
        pa = pyarrow()
        about = {KEY: json.dumps({"job": self.digest, "shard": shard})}
        table = pa.table({"row": pairs[0], "of": pairs[1]}).replace_schema_metadata(about)

        def write(file: IO[bytes]) -> None:
            parquet().write_table(table, file, compression="zstd")

        self.folder.write(self.part(shard), write)

    def read(self, shard: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the pairs that `write` wrote.

        Raises:
            OSError, ValueError: there is no part, it is damaged, or it is of another work or shard.
        """
        name = f"{self.folder}/{self.part(shard)}"
        with self.folder.open(self.part(shard)) as file, reading_of(name):
            found = parquet().ParquetFile(file).read(use_threads=False)
            one, other = (found[name].to_numpy() for name in ("row", "of"))
        try:
            about = files.loads(found.schema.metadata[KEY])
            mine = (about["job"], about["shard"]) == (self.digest, shard)
        except (TypeError, KeyError, ValueError):
            mine = False
        if not mine or one.dtype != np.int64 or other.dtype != np.int64:
            raise ValueError(f"{name} is no file of this work; remove it, and run the same command again")
        square = self.square(shard)
        inside = [[(each.start <= rows) & (rows < each.stop) for each in square] for rows in (one, other)]
        if not all((first | second).all() for first, second in inside):
            raise ValueError(f"{name} is damaged; remove it, and run the same command again")
        return one, other

    def groups(self) -> list[list[int]]:
        """Return the groups of rows that all squares together join, as `find_duplicates` does.

        Raises:
            OSError, ValueError: a part is missing or damaged.
        """
        groups = Groups(self.rows)
        for one, other in _together(map(self.read, range(self.shards))):
            groups.join(one, other)
        return groups.listed()


def _together(
    pairs: Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Put several lists of pairs together, as joining takes a time of its own for all rows."""
    held, count = list[tuple[NDArray[np.int64], NDArray[np.int64]]](), 0
    for each in pairs:
        held.append(each)
        count += len(each[0])
        if count > TOGETHER:
            yield np.concatenate([one for one, _ in held]), np.concatenate([other for _, other in held])
            held, count = [], 0
    if count:
        yield np.concatenate([one for one, _ in held]), np.concatenate([other for _, other in held])


def state_of(index: Index) -> str:
    """Return the hexadecimal sha256 of what the vectors of an index are made of, and of their order."""
    digest = hashlib.sha256(index.about.to_json().encode())
    hashes = index.vectors.hashes
    for start in range(0, len(hashes), HASHED):
        digest.update(hashes[start : start + HASHED].tobytes())
    return digest.hexdigest()


def plan_pairs(job: str | os.PathLike[str], index: Index, threshold: float, side: int | None = None) -> Pairs:
    """Plan a work over all pairs of an index, or return the one that is there.

    Args:
        job: an empty or new folder, or an address, as for `plan`.
        side: rows of a square, a multiple of 4096; by default so many that there are at most 20,100 squares.

    Raises:
        ValueError: the threshold or the side is out of range; or the folder holds another work.
        OSError: the store does not answer, or nothing can be written there.
    """
    check_threshold(threshold)
    count = len(index.vectors)
    if side is None:
        side = BLOCK * max(1, -(-count // (BLOCK * MOST_ACROSS)))
    if side < 1 or side % BLOCK:
        raise ValueError(f"a square has a multiple of {BLOCK} rows, not {side}")
    address = os.path.abspath(index.address) if is_local(index.address) else index.address  # noqa: PTH100 - a text
    folder = Folder(job)
    identity = {
        "version": __version__, "index": address, "vectors": state_of(index), "rows": count, "side": side,
        "threshold": float(threshold),
    }  # fmt: skip
    before = read_facts(folder)
    if before is None:
        facts = {"format": FORMAT, "kind": KIND, "identity": identity}
        with contextlib.suppress(FileExistsError):  # another process has just planned it; it is compared below
            folder.create(JOB, (json.dumps(facts, indent=1) + "\n").encode())
        before = read_facts(folder) or {}
    theirs = before.get("identity") if before.get("kind") == KIND else None
    if not isinstance(theirs, dict):
        raise ValueError(f"{folder}/{JOB} was not made by `convnets-torch duplicates`; name another folder")
    if names := sorted(name for name in identity if theirs.get(name) != identity[name]):
        words = ["pictures of the index" if name == "vectors" else name for name in names if name != "rows"]
        raise ValueError(
            f"{folder} holds another work, which differs in: {', '.join(words)}; name another folder, or remove this"
            " one"
        )
    return Pairs(folder, before)


class Comparer:
    """Compares the vectors of squares in this process.

    Raises:
        OSError: the index is not there, or cannot be used.
        ValueError: it has changed since the work was planned.
    """

    def __init__(self, work: Pairs) -> None:
        self._work = work
        index = Index.open(work.index)
        if state_of(index) != work.state:
            raise ValueError(
                f"{work.index} has changed since its pairs were planned in {work.folder}; name another folder"
            )
        self._vectors = index.vectors.vectors

    def compute(self, shards: Iterable[int]) -> Generator[Event, None, None]:
        """Compare the squares whose parts are not there yet; yield an event for each.

        Raises:
            StoppedError: the store of the work does not answer or cannot be written to.
        """
        work = self._work
        for shard in shards:
            if work.has(shard):
                continue
            begun = time.monotonic()
            rows, columns = work.square(shard)
            try:
                found = near_pairs(self._vectors, rows, columns, work.threshold)
            except MemoryError:
                reason = (
                    f"the memory does not hold two times {work.side} vectors and what is found; use smaller squares"
                )
                give_up(work, shard, reason, "failed", 1)
                yield {"event": "failed", "shard": shard, "reason": reason, "kind": "failed"}
                continue
            try:
                work.write(shard, found)
            except OSError as error:
                raise StoppedError(f"{error}; {KEPT}") from None
            seconds = time.monotonic() - begun
            compared = len(rows) * (len(rows) + 1) // 2 if rows == columns else len(rows) * len(columns)
            yield {
                "event": "shard", "shard": shard, "pairs": compared, "found": len(found[0]), "pictures": 0,
                "errors": {}, "seconds": round(seconds, 3), "pairs_per_second": round(compared / max(seconds, 1e-6)),
            }  # fmt: skip

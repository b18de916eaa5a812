"""An approximate index (IVF_PQ) past one machine: trained once, built in segments by workers, committed once."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import secrets
import time
import uuid
from collections.abc import Generator, Iterable, Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np

from convnets_torch import files
from convnets_torch._version import __version__
from convnets_torch.batch.fragments import folder_of, opened, pylance
from convnets_torch.batch.fragments import refused_by_lance as refused
from convnets_torch.batch.jobs import FORMAT, JOB, Work, read_facts
from convnets_torch.batch.working import KEPT, Event, Running, StoppedError, give_up
from convnets_torch.embeddings.index_table import PictureTable
from convnets_torch.embeddings.neighbours import Metric, partitions_for
from convnets_torch.images.stores import Folder

KIND = "segments"  # of the facts of such a work
NAME, COLUMN = "vector_idx", "vector"  # the name is LanceDB's own
INDICES = "_indices"  # folder of a table's segments
CODES = 256  # of a part of a vector: one byte
SAMPLED = 64  # vectors that are read for each partition and for each code, at most
LEAST = 2 * CODES  # vectors
COMMITS = 100  # tries, against others who change the table all the time
MOST_PARTS = 80  # of a vector, each of which becomes a byte
MOST_PART = 1 << 24  # bytes of a segment's description
MOST_TRAINED = 1 << 32  # bytes of centroids and codebook


class Segments(Work):
    """The segments of an approximate index.

    Attributes:
        index: address of the index.
        groups: fragments of the table in each segment.
        trained: sha256 of the centroids and the codebook, which is in the names of all segments made with them.
    """

    ending = ".json"

    def __init__(self, folder: Folder, facts: Mapping[str, Any]) -> None:
        try:
            if facts["format"] != FORMAT:
                raise ValueError(f"it has format {facts['format']!r:.80}, but this version reads {FORMAT}")
            known = facts["identity"]
            self.index, self.metric, self.trained = known["index"], known["metric"], facts["trained"]
            self.partitions, self.sub_vectors = int(known["partitions"]), int(known["sub_vectors"])
            self.width, self.half = int(known["width"]), bool(known["half"])
            self.groups: list[list[int]] = [[int(each) for each in group] for group in known["groups"]]
            if not all(isinstance(text, str) for text in (self.index, self.metric, self.trained)):
                raise TypeError
        except (KeyError, TypeError, AttributeError):
            raise ValueError(f"{folder}/{JOB} was not made by `convnets-torch index-vectors`; remove it") from None
        except ValueError as error:
            raise ValueError(f"{folder}/{JOB}: {error}") from None
        self.parts = f"parts-{self.trained[:16]}"
        super().__init__(folder, facts, len(self.groups))

    @cached_property
    def digest(self) -> str:
        known = [self.facts["identity"], self.trained]
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()

    @property
    def prefix(self) -> str:
        """What the names of the segments' folders begin with."""
        return str(uuid.UUID(hex=self.trained[:16] + 16 * "0"))[:18]

    def model(self) -> tuple[Any, Any]:
        """Return the centroids and the codebook.

        Raises:
            ValueError: they are others than those of the plan.
        """
        name = trained_name(self.trained)
        content = self.folder.read(name, MOST_TRAINED)
        if hashlib.sha256(content).hexdigest() != self.trained:
            raise ValueError(f"{self.folder}/{name} is damaged; remove it and run the same command again")
        values = np.frombuffer(content, "<f4").reshape(-1, self.width)
        return tuple(_vectors(each, self.half) for each in (values[: self.partitions], values[self.partitions :]))

    def segment(self, shard: int) -> Any:
        """Return the description of a segment that a worker has built.

        Raises:
            ValueError: it was built with other centroids, or of other fragments.
        """
        name = self.part(shard)
        try:
            found = files.loads(self.folder.read(name, MOST_PART).decode())
            segment = _segment(found)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ValueError(f"{self.folder}/{name} is damaged; remove it and run the same command again") from None
        if not segment.uuid.startswith(self.prefix) or sorted(found["fragment_ids"]) != sorted(self.groups[shard]):
            raise ValueError(
                f"{self.folder}/{name} was built with other centroids or of other fragments; remove it and run the same"
                " command again"
            )
        return segment


def trained_name(digest: str) -> str:
    """The name of a file of centroids and codebook."""
    return f"trained-{digest}.bin"


def _vectors(values: Any, half: bool) -> Any:
    import pyarrow as pa

    flat = np.ascontiguousarray(values, np.float16 if half else np.float32).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), values.shape[1])


def _told(segment: Any) -> dict[str, Any]:
    """The description of a segment as JSON."""
    kind, details = segment.index_details
    return {
        "uuid": segment.uuid, "name": segment.name, "fields": list(segment.fields),
        "dataset_version": segment.dataset_version, "fragment_ids": sorted(segment.fragment_ids),
        "index_version": segment.index_version, "files": [asdict(file) for file in segment.files],
        "index_details": [kind, base64.b64encode(details).decode()],
    }  # fmt: skip


def _segment(told: Mapping[str, Any]) -> Any:
    pylance()
    from lance.bitmap import Bitmap
    from lance.dataset import Index, IndexFile

    kind, details = told["index_details"]
    return Index(
        uuid=str(uuid.UUID(told["uuid"])), name=told["name"], fields=list(told["fields"]),
        dataset_version=int(told["dataset_version"]), fragment_ids=Bitmap(told["fragment_ids"]),
        index_version=int(told["index_version"]), files=[IndexFile(**file) for file in told["files"]],
        index_details=(kind, base64.b64decode(details)),
    )  # fmt: skip


class Builder:
    """Builds segments in this process."""

    def __init__(self, work: Segments, running: Running) -> None:
        self._work, self._tries = work, running.tries
        self._model = work.model()
        self._data = opened(work.index)

    def compute(self, shards: Iterable[int]) -> Generator[Event, None, None]:
        """Build the segments whose parts are not there yet; yield an event for each.

        Raises:
            StoppedError: the parts cannot be written.
        """
        for shard in shards:
            for attempt in range(1, self._tries + 1):
                if self._work.has(shard):
                    break
                begun = time.monotonic()
                try:
                    content = json.dumps(_told(self._built(shard))).encode()
                except OSError as error:
                    reason = str(error)
                    if attempt < self._tries:
                        yield {"event": "again", "shard": shard, "reason": reason, "tries": attempt}
                        continue
                    give_up(self._work, shard, reason, "failed", attempt)
                    yield {"event": "failed", "shard": shard, "reason": reason, "kind": "failed"}
                    break
                try:
                    self._work.folder.write(self._work.part(shard), lambda file, made=content: file.write(made))  # type: ignore[misc]
                except OSError as error:
                    raise StoppedError(f"{error}; {KEPT}") from None
                rows, seconds = self._rows(shard), time.monotonic() - begun
                yield {
                    "event": "shard", "shard": shard, "pictures": rows, "errors": {}, "seconds": round(seconds, 3),
                    "pictures_per_second": round(rows / max(seconds, 1e-6), 1),
                }  # fmt: skip

    def _rows(self, shard: int) -> int:
        return sum(self._data.get_fragment(number).count_rows() for number in self._work.groups[shard])

    def _built(self, shard: int) -> Any:
        work = self._work
        centroids, codebook = self._model
        name = str(uuid.UUID(hex=work.trained[:16] + secrets.token_hex(8)))
        with refused(work.index):
            return self._data.create_index_uncommitted(
                COLUMN, "IVF_PQ", name=NAME, metric=work.metric, num_partitions=work.partitions,
                ivf_centroids=centroids, pq_codebook=codebook, num_sub_vectors=work.sub_vectors,
                fragment_ids=work.groups[shard], index_uuid=name, replace=True,
            )  # fmt: skip


def plan_segments(index: str, segments: int, metric: Metric) -> Segments:
    """Train centroids and codebook and divide the fragments of a table, unless that has been done.

    Raises:
        ValueError: there are too few vectors.
        OSError: the index cannot be read or written.
    """
    table = PictureTable.open(index)
    data = opened(index)
    there = [fragment.metadata for fragment in data.get_fragments()]
    counted = sum(fragment.physical_rows for fragment in there)
    if counted < LEAST:
        raise ValueError(f"{index} has {counted:,} rows, and an approximate index needs {LEAST}; search it exactly")
    about = table.about
    identity = {
        "version": __version__, "index": index, "made": about.made, "metric": metric, "width": about.width,
        "half": about.numbers is not None, "partitions": partitions_for(counted), "sub_vectors": _parts_of(about.width),
        "groups": _groups({fragment.id: fragment.physical_rows for fragment in there}, segments), "files": _files(data),
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    folder = Folder(f"{index.rstrip('/')}/vectors-{key[:24]}")
    facts = read_facts(folder)
    if facts is None:
        content = _trained(data, identity, counted)
        digest = hashlib.sha256(content).hexdigest()
        folder.write(trained_name(digest), lambda file: file.write(content))
        facts = {"format": FORMAT, "kind": KIND, "identity": identity, "trained": digest}
        with contextlib.suppress(FileExistsError):  # another process has trained meanwhile: its centroids hold
            folder.create(JOB, (json.dumps(facts) + "\n").encode())
        facts = read_facts(folder) or facts
    return Segments(folder, facts)


def _files(data: Any, kept: frozenset[int] | None = None) -> str:
    """A digest of the fragments of a table, or of some, and of their files; deleted rows do not change it."""
    found = sorted(
        (fragment.fragment_id, [file.path for file in fragment.metadata.files])
        for fragment in data.get_fragments()
        if kept is None or fragment.fragment_id in kept
    )
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _parts_of(width: int) -> int:
    """Into how many parts of equal size a vector is cut.

    >>> _parts_of(1280), _parts_of(256), _parts_of(40)
    (80, 64, 10)
    """
    most = max(1, min(MOST_PARTS, width // 4))
    return next(parts for parts in range(most, 0, -1) if width % parts == 0)


def _groups(rows: Mapping[int, int], segments: int) -> list[list[int]]:
    """Divide fragments, which are id -> rows, into at most so many groups of neighbours with about as many rows.

    >>> _groups({0: 10, 1: 10, 2: 10, 3: 30}, 2), _groups({5: 1}, 4)
    ([[0, 1, 2], [3]], [[5]])
    """
    total, done, groups = sum(rows.values()), 0, list[list[int]]()
    for number, count in rows.items():
        if not groups or done * segments >= total * len(groups):
            groups.append([])
        groups[-1].append(number)
        done += count
    return groups


def _trained(data: Any, identity: Mapping[str, Any], rows: int) -> bytes:
    """Train centroids and codebook; return them as bytes."""
    pylance()
    from lance.indices import IndicesBuilder

    partitions = identity["partitions"]
    with refused(identity["index"]):
        builder = IndicesBuilder(data, COLUMN)
        rate = max(2, min(SAMPLED, rows // partitions))
        ivf = builder.train_ivf(partitions, distance_type=identity["metric"], sample_rate=rate)
        codes = builder.train_pq(ivf, identity["sub_vectors"], sample_rate=max(2, min(SAMPLED, rows // CODES)))
    found = [
        each.values.to_numpy(zero_copy_only=False).astype("<f4").reshape(-1, identity["width"])
        for each in (ivf.centroids, codes.codebook)
    ]
    return np.concatenate(found).tobytes()


def commit_segments(work: Segments) -> bool:
    """Make the segments the table's approximate index, unless they are; return whether that was done now.

    Raises:
        ValueError: a segment does not belong to these, or the table's fragments are others by now.
        OSError: the table cannot be read or written.
    """
    built = [work.segment(shard) for shard in range(work.shards)]
    wanted = {segment.uuid for segment in built}
    planned = frozenset(number for group in work.groups for number in group)
    for _ in range(COMMITS):
        data = opened(work.index)
        if any(wanted <= {str(each.uuid) for each in known.segments} for known in data.describe_indices()):
            return False
        if _files(data, planned) != work.facts["identity"]["files"]:
            raise ValueError(f"{work.index} was changed while its segments were built; run the same command again")
        with contextlib.suppress(pylance().commit.CommitConflictError), refused(work.index):
            data.commit_existing_index_segments(NAME, COLUMN, built)
            _clean(work, wanted)
            return True
    raise OSError(f"{work.index} is changed by others all the time; run the same command again")


def _clean(work: Segments, kept: set[str]) -> None:
    """Remove what killed builders left, and earlier works, whose centroids hold no more."""
    folder = folder_of(work.index)
    for name in folder.folders(INDICES):
        if name.startswith(work.prefix) and name not in kept:
            folder.remove_folder(f"{INDICES}/{name}")
    index = Folder(work.index)
    for name in index.folders(""):
        if name.startswith("vectors-") and name != work.folder.address.rpartition("/")[2]:
            index.remove_folder(name)

"""A callable for pipelines of Ray Data, Spark or Dask: a batch of pictures in, rows as those of a job out."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any, Literal

from convnets_torch.batch.jobs import URIS, Entry, Options
from convnets_torch.batch.rows import Rows
from convnets_torch.batch.working import Computer, Listed, Running
from convnets_torch.card import read_card
from convnets_torch.files import find, sha256
from convnets_torch.images.decoding import PIXEL_BYTES
from convnets_torch.images.remote import FETCH_THREADS, fetched_ahead
from convnets_torch.images.stores import pyarrow

CONTENTS = ("bytes", "image_bytes", "content", "data")  # names of a column of files' contents


class Worker:
    """Computes the rows of pictures, batch by batch, in somebody else's pipeline.

    It is small until its first call, which loads the network, and may be pickled; a copy loads it again. Several
    threads may call it.

    Args:
        weights: a safetensors file, or the name of one in the cache, on the machine where it is called.
        outputs: as for `plan`; the other options too.
        column: column of paths, addresses or contents; by default the one called bytes, uri, url, path or the like.
        device, batch, workers, fetch_threads: as for `run`, where `workers` is called `threads`.

    Raises:
        OSError, ValueError: the weights are not there, or an option is invalid or does not suit the network.

    >>> from convnets_torch.batch import Worker
    >>> worker = Worker("alexnet.safetensors", outputs=["classes", "vector"])
    >>> rows = worker({"uri": ["street.jpg", "none.jpg"]})
    >>> rows["uri"], len(rows["vector"][0]), rows["error_kind"]
    (['street.jpg', 'none.jpg'], 40, [None, 'missing'])
    """

    def __init__(
        self,
        weights: str | os.PathLike[str],
        outputs: str | Sequence[str] = ("classes",),
        *,
        column: str | None = None,
        device: str = "auto",
        batch: int | Literal["auto"] = "auto",
        workers: int | None = None,
        fetch_threads: int = FETCH_THREADS,
        **options: Any,
    ) -> None:
        names = (outputs,) if isinstance(outputs, str) else tuple(outputs)
        options["targets"] = tuple(map(str, options.get("targets", ())))
        try:
            self._options = Options(names, **options)
        except TypeError as error:
            raise TypeError(f"unknown option of Worker: {error}") from None
        path = find(weights)
        self._options.check(read_card(path))
        self._weights, self._digest, self._column = str(weights), sha256(path), column
        self._running = Running(None, device, batch, workers, fetch_threads)
        self._running.check()
        self._forget()

    def _forget(self) -> None:
        self._computer: Computer | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_computer", "_lock")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def __call__(self, batch: Any) -> Any:
        """Compute the rows of a batch.

        Args:
            batch: an Arrow table or record batch, a pandas data frame, or a dict of columns. A column `id`, if there is
                one, is kept.

        Returns:
            The rows in the same form, in the order given, with the columns of a job's; a bad picture is a row with an
            error.

        Raises:
            ValueError: there is no column of pictures.
            TransportError: a store did not answer; the pipeline should try the batch again.
        """
        names = list(batch.schema.names if hasattr(batch, "schema") else batch)
        column = self._column_of(names)
        values = _listed(batch[column])
        ids = _listed(batch["id"]) if "id" in names else list(range(len(values)))
        addresses = next((_listed(batch[name]) for name in URIS if name in names and name != column), None)
        rows = Rows(self._options.half)
        with self._lock:
            if self._computer is None:
                self._computer = Computer(self._weights, self._options, self._running, self._digest)
        most = PIXEL_BYTES * self._options.reading.limit
        pictures = self._pictures(ids, values, addresses, most)
        ahead = fetched_ahead(pictures, self._running.fetch_threads)
        with closing(ahead), closing(self._computer.rows(ahead)) as found:
            for picture, result in found:
                result.state, result.size = picture.state, picture.pixels_stored
                rows.add(picture.entry, result)
        return _like(batch, rows.table())

    def _column_of(self, names: Sequence[str]) -> str:
        known = (self._column,) if self._column is not None else (*CONTENTS, *URIS)
        found = next((name for name in known if name in names), None)
        if found is None:
            raise ValueError(f"the batch has the columns {', '.join(names)}; name the one of pictures (column)")
        return found

    def _pictures(
        self, ids: Sequence[int], values: Sequence[Any], addresses: Sequence[str] | None, most: int
    ) -> Iterable[Listed]:
        for place, (number, value) in enumerate(zip(ids, values, strict=True)):
            name = str(addresses[place]) if addresses is not None else f"picture {number}"
            if isinstance(value, bytes | bytearray | memoryview):
                yield _Given(Entry(int(number), name, len(value), None), bytes(value))
            else:
                yield Listed(Entry(int(number), str(value), None, None), 0, "", most)


class _Given(Listed):
    """A picture whose contents are at hand."""

    def __init__(self, entry: Entry, content: bytes) -> None:
        super().__init__(entry, 0, "", 0)
        self._content = content

    def _bytes(self) -> tuple[bytes, Any]:
        return self._content, self.state


def _listed(column: Any) -> list[Any]:
    """The values of a column of any kind."""
    for name in ("to_pylist", "tolist"):
        if hasattr(column, name):
            return list(getattr(column, name)())
    return list(column)


def _like(batch: Any, table: Any) -> Any:
    """The rows in the form of the batch: an Arrow table, a data frame or a dict of lists."""
    pa = pyarrow()
    if isinstance(batch, pa.Table):
        return table
    if isinstance(batch, pa.RecordBatch):
        whole = table.combine_chunks().to_batches()
        return whole[0] if whole else pa.RecordBatch.from_pylist([], schema=table.schema)
    if isinstance(batch, Mapping):
        return table.to_pydict()
    return table.to_pandas()

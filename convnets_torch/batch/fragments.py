"""Fragments of the table of an index: files of rows that workers write, for one commit to take in."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from convnets_torch.batch.jobs import Job, part_name
from convnets_torch.embeddings.index_table import TABLE, rows_table, storage_options, table_schema
from convnets_torch.files import open_file
from convnets_torch.images.stores import Folder
from convnets_torch.text import printable

DATA = "data"  # folder of a table's files
NO_LANCE = "fragments of an index need pylance: pip install 'convnets-torch[cluster-index]'"


def pylance() -> Any:
    """Return the module `lance`; ImportError with the way out."""
    try:
        import lance
        import lance.commit
        import lance.fragment
    except ImportError:
        raise ImportError(NO_LANCE) from None
    return lance


@contextlib.contextmanager
def refused_by_lance(address: str) -> Iterator[None]:
    """Turn what Lance raises into an OSError with a one-sentence message; conflicts of commits go through."""
    conflict = pylance().commit.CommitConflictError
    try:
        yield
    except (ImportError, MemoryError, conflict):
        raise
    except Exception as error:
        words = printable(" ".join(str(error).partition(", /")[0].split())[:200])  # without places in Lance's source
        raise OSError(f"{address} cannot be used ({words}); finished shards are kept") from None


def address_of(index: str) -> str:
    """Return the address of the table of an index."""
    return f"{index.rstrip('/')}/{TABLE}.lance"


def folder_of(index: str) -> Folder:
    """Return the folder of the table of an index."""
    return Folder(address_of(index))


def opened(index: str, version: int | None = None) -> Any:
    """Return the Lance data set of an index."""
    with refused_by_lance(index):
        return pylance().dataset(address_of(index), version=version, storage_options=storage_options(index))


def file_name(job: Job, shard: int) -> str:
    """Return a new name for the file of a shard: it tells the job, and no two writers ever share one."""
    return f"{prefix_of(job)}{part_name(shard)}-{secrets.token_hex(6)}.lance"


def prefix_of(job: Job) -> str:
    """Return what the names of all files of a job begin with."""
    return f"{job.digest[:24]}-"


def write_fragment(job: Job, shard: int, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Write the rows of a shard beside the table's files; return what `commit` has to know of them.

    Raises:
        ValueError: a vector cannot be kept.
        OSError: the file cannot be written.
        ImportError: pylance is not installed.
    """
    lance, about, index = pylance(), job.about, str(job.options.index)
    kept = [row if row["vector"] is None else {**row, "vector": about.kept(row["vector"])} for row in rows]
    with tempfile.TemporaryDirectory() as scratch, refused_by_lance(scratch):
        found = lance.fragment.write_fragments(
            rows_table(about, kept), scratch, schema=table_schema(about), mode="create",
            data_storage_version=job.facts["index"]["storage"], max_rows_per_file=len(kept),
        )  # fmt: skip
        fragment = found[0].to_json()
        [file] = fragment["files"]
        made = Path(scratch, DATA, file["path"])
        file["path"] = file_name(job, shard)

        def write(sink: IO[bytes]) -> None:
            with open_file(made) as source:
                shutil.copyfileobj(source, sink)

        folder_of(index).write(f"{DATA}/{file['path']}", write)
    return dict(fragment)


def absolute(index: str | os.PathLike[str]) -> str:
    """Return the address of an index as all workers can use it.

    Raises:
        ValueError: it is in memory, or has another form.
    """
    address = os.fspath(index)
    if "://" not in address:
        return os.path.abspath(address)  # noqa: PTH100 - as the index does it
    if address.startswith(("memory:", "file:")):
        raise ValueError(f"{address} cannot be reached by other processes; name a folder or the address of a store")
    return address

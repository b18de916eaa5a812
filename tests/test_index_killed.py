"""An index whose process is killed again and again: nothing that was committed is lost, nothing is there twice."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convnets_torch import weights
from convnets_torch.embeddings.extraction import embed
from convnets_torch.embeddings.index_table import PictureTable
from convnets_torch.files import sha256
from tests.reference.pictures import picture

pytest.importorskip("lancedb", reason="needs LanceDB, the extra search")

COUNT = 30
KILLS = 3
ROOT = Path(__file__).parent.parent
PROGRAM = """
import sys
import lancedb  # which takes seconds
from convnets_torch import index_pictures, load
from convnets_torch.embeddings import index
index.ROWS = 3  # commits after every third row, and so many moments to be killed in
network = load(sys.argv[1])
print("ready", flush=True)
index_pictures(network, sys.argv[2], sys.argv[3], batch=2, workers=1)
print("done", flush=True)
"""


def wait_for_commits(address, count, process):
    """Until so many commits more are there, or the process has ended."""
    commits = address / "pictures.lance" / "_versions"
    before = len(list(commits.glob("*.manifest")))
    while len(list(commits.glob("*.manifest"))) < before + count and process.poll() is None:
        time.sleep(0.001)


def rows_of(address):
    """Path -> sha256 of the rows that are there; none twice."""
    try:
        table = PictureTable.open(str(address))
    except FileNotFoundError:
        return {}
    pairs = [(row["path"], row["sha256"]) for batch in table.read(["path", "sha256"]) for row in batch.to_pylist()]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


@pytest.mark.slow
def test_killed_at_any_moment_nothing_is_lost_and_nothing_is_there_twice(vgg, tmp_path):
    weights.save(vgg, tmp_path / "vgg.safetensors")
    folder, address = tmp_path / "photos", tmp_path / "photos.lance"
    folder.mkdir()
    for number in range(COUNT):
        Image.fromarray(picture(number, 60 + number, 90)).save(folder / f"{number:02}.png")
    command = [sys.executable, "-c", PROGRAM, tmp_path / "vgg.safetensors", folder, address]
    chance = random.Random(0)
    before: dict[str, str] = {}
    grew = 0
    for _ in range(KILLS):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\n"
            time.sleep(chance.uniform(0, 0.25 * (number + 1)))
            process.send_signal(signal.SIGKILL)
        after = rows_of(address)
        assert before.items() <= after.items()
        grew += len(after) > len(before)
        before = after
    assert grew  # at least one was killed after it had begun to write
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "ready\ndone\n"
    paths = sorted(folder.iterdir())
    assert rows_of(address) == {str(path): sha256(path) for path in paths}
    table = PictureTable.open(str(address))
    held = {row["path"]: row["vector"] for batch in table.read(["path", "vector"]) for row in batch.to_pylist()}
    found = np.array([held[str(path)] for path in paths], np.float32)
    np.testing.assert_allclose(found, embed(vgg, paths).numpy(), rtol=1e-4, atol=1e-5)

    moved = folder.rename(tmp_path / "moved")
    command[-2] = moved
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        wait_for_commits(address, 3, process)
        process.send_signal(signal.SIGKILL)
    contents = sorted(sha256(path) for path in moved.iterdir())
    assert sorted(rows_of(address).values()) == contents  # each row is at the old path or at the new one
    subprocess.run(command, capture_output=True, check=True)
    assert rows_of(address) == {str(path): sha256(path) for path in moved.iterdir()}


WRITER = """
import sys
from tests.reference.made_index import add, filled
table = filled(sys.argv[1], 0)
print("ready", flush=True)
sys.stdin.readline()
for seed in range(20):
    add(table, 5, seed)
print("added", flush=True)
sys.stdin.readline()
for seed in range(20):
    old = [f"/made/{seed}-{number}.jpg" for number in range(5)]
    found = table.read(table.table.schema.names, f"path LIKE '%/{seed}-%'")
    rows = [row for batch in found for row in batch.to_pylist()]
    table.put([row | {"path": row["path"].replace("/made/", "/moved/")} for row in rows], old)
"""


@pytest.mark.slow
def test_two_that_write_the_same_rows_at_once_write_none_twice(tmp_path):
    """Seen with LanceDB 0.40: without a key in the schema every second row is there twice."""
    command = [sys.executable, "-c", WRITER, tmp_path / "x.lance"]
    pipe = subprocess.PIPE
    both = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT) for _ in range(2)]
    assert [process.stdout.readline() for process in both] == ["ready\n"] * 2
    for answer in (["added\n"] * 2, None):
        for process in both:
            process.stdin.write("go\n")
            process.stdin.flush()
        assert answer is None or [process.stdout.readline() for process in both] == answer
    assert [process.communicate() for process in both] == [("", "")] * 2
    assert sorted(rows_of(tmp_path / "x.lance")) == sorted(f"/moved/{a}-{b}.jpg" for a in range(20) for b in range(5))

"""An index by a job: its rows are those of one process, are added once, and are searched in parts as in one piece."""

from __future__ import annotations

import builtins
import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convnets_torch import Index, batch, index_pictures, load, save
from convnets_torch.batch import indexing, segments
from convnets_torch.batch.fragments import opened
from convnets_torch.batch.jobs import Job
from convnets_torch.batch.scanning import scan_fragments
from convnets_torch.embeddings.index_table import PictureTable
from convnets_torch.embeddings.neighbours import Metric
from convnets_torch.embeddings.scanning import Question, merged, scan
from convnets_torch.embeddings.search import recall
from tests.finetuned import small_resnet
from tests.reference.made_index import add, filled, rows_of
from tests.reference.pictures import picture

for name, extra in (("pyarrow", "batch"), ("lancedb", "search"), ("lance", "cluster-index")):
    pytest.importorskip(name, reason=f"needs {name}, the extra {extra}")

BAD = {5: b"no picture", 18: None, 40: b"", 51: None}  # id -> contents; None cuts the file


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save(small_resnet(), path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """52 files and a copy of one, 4 of them bad: 48 contents, three whole batches."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(52):
        path = folder / ("b" if number > 30 else "a") / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture(number, 66 + number, 90)).save(path)
        if number in BAD:
            content = BAD[number]
            path.write_bytes(path.read_bytes()[:400] if content is None else content)
    shutil.copy(folder / "a" / "07.png", folder / "b" / "copy.png")
    return folder


def files_of(address) -> set[str]:
    return {path.name for path in Path(address, "pictures.lance", "data").glob("*.lance")}


@pytest.mark.parametrize("kept", [{}, {"half": True, "pca": 5}], ids=str)
def test_the_rows_are_those_of_one_process_to_the_bit(weights, photos, tmp_path, kept):
    one = index_pictures(load(weights), photos, tmp_path / "one.lance", weights=weights, **kept)
    run = partial(batch.index, weights, photos, tmp_path / "two.lance", tmp_path / "job", shard=7, **kept)
    done = run(executor="local")
    assert (done.rows, done.added, done.summary.done, done.errors) == (53, 53, 8, {"unreadable": 4})
    assert done.recall == one.recall
    wanted = rows_of(tmp_path / "one.lance")
    assert rows_of(tmp_path / "two.lance") == wanted
    assert {row["path"] for row in wanted.values() if row["error"]} == {str(each) for each in bad_of(photos)}
    assert (run().added, run().summary.done) == (0, 0)
    query = str(photos / "a" / "03.png")
    indexes = [Index.open(tmp_path / name) for name in ("one.lance", "two.lance")]
    assert indexes[0].search(query, 5) == indexes[1].search(query, 5)
    assert indexes[1].search(query, 5, in_place=True) == indexes[1].search(query, 5)

    Image.fromarray(picture(99, 80, 90)).save(tmp_path / "new.png")  # goes on as any other index
    more = index_pictures(load(weights), [photos, tmp_path / "new.png"], tmp_path / "two.lance")
    assert (more.embedded, more.unchanged, more.failed, more.recall) == (1, 49, 4, None)
    assert rows_of(tmp_path / "two.lance").keys() == {*wanted, str(tmp_path / "new.png")}


def bad_of(photos) -> list[Path]:
    return [photos / ("b" if number > 30 else "a") / f"{number:02}.png" for number in BAD]


def test_a_commit_is_made_once_whoever_makes_it(weights, photos, tmp_path):
    """Also without the note of it, at the same moment, and after the files of the job were joined with others."""
    address, place = tmp_path / "x.lance", tmp_path / "job"
    batch.index(weights, photos / "a", address, place, shard=7)
    before = rows_of(address)
    (place / "committed.json").unlink()
    orphan = address / "pictures.lance" / "data" / f"{Job.open(place).digest[:24]}-000001-00.lance"
    orphan.write_bytes(b"of a killed writer")
    other = orphan.with_name("of-another-job.lance")
    other.write_bytes(b"not ours")
    assert indexing.commit(Job.open(place))[1] == 0
    assert rows_of(address) == before
    assert not orphan.exists()
    assert other.exists()
    with pytest.raises(ValueError, match=r"the rows of .* are in .*x\.lance; update them with `convnets-torch index`"):
        batch.retry(place, ["unreadable"])
    (place / "committed.json").unlink()
    PictureTable.open(str(address)).optimize()
    assert len(opened(str(address)).get_fragments()) == 1
    assert indexing.commit(Job.open(place))[1] == 0
    assert rows_of(address) == before


def test_of_two_committers_at_once_one_adds_the_rows(weights, photos, tmp_path, monkeypatch):
    """Both have read the table before either commits. Break it with an append: then both add their rows."""
    address, place = tmp_path / "x.lance", tmp_path / "job"
    monkeypatch.setattr(indexing, "commit", lambda job: (0, 0, {}))
    batch.index(weights, photos / "a", address, place, shard=7)
    monkeypatch.undo()
    assert rows_of(address) == {}
    both, calls, check = threading.Barrier(2), itertools.count(), indexing._check_there

    def together(*arguments):
        check(*arguments)
        if next(calls) < 2:
            both.wait(20)

    monkeypatch.setattr(indexing, "_check_there", together)
    found = []
    threads = [threading.Thread(target=lambda: found.append(indexing.commit(Job.open(place)))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(added for _, added, _ in found) == [0, 31]
    assert len(rows_of(address)) == 31


def test_a_second_job_adds_its_pictures_to_the_first(weights, photos, tmp_path):
    address = tmp_path / "x.lance"
    batch.index(weights, photos / "a", address, tmp_path / "a", shard=9)
    batch.index(weights, photos / "b", address, tmp_path / "b", shard=9)
    assert len(rows_of(address)) == 53
    with pytest.raises(ValueError, match=r"already has 53 of the 53 pictures, such as .*; leave them out, or update"):
        batch.index(weights, photos, address, tmp_path / "c")
    assert len(rows_of(address)) == 53


def test_files_that_were_removed_are_made_again(weights, photos, tmp_path, monkeypatch):
    """As LanceDB's own cleaning does after a week, if a job takes longer."""
    address, place = tmp_path / "x.lance", tmp_path / "job"
    monkeypatch.setattr(indexing, "commit", lambda job: (0, 0, {}))
    run = partial(batch.index, weights, photos / "a", address, place, shard=7)
    run()
    monkeypatch.undo()
    next(Path(address, "pictures.lance", "data").glob("*-000002-*")).unlink()
    with pytest.raises(ValueError, match=r"the files of 1 shards were removed from .*; run the same command again"):
        run()
    assert rows_of(address) == {}
    assert (run().added, len(rows_of(address))) == (31, 31)


def test_a_full_disk_is_a_sentence_and_keeps_what_is_there(weights, photos, tmp_path, monkeypatch):
    run = partial(batch.index, weights, photos / "a", tmp_path / "x.lance", tmp_path / "job", shard=7)
    copy, left = shutil.copyfileobj, [2]

    def failing(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        copy(*arguments)

    monkeypatch.setattr(shutil, "copyfileobj", failing)
    with pytest.raises(OSError, match=r"cannot be .*No space left on device.*; finished shards are kept"):
        run(executor="local")
    monkeypatch.undo()
    assert rows_of(tmp_path / "x.lance") == {}
    done = run(executor="local")
    assert (done.summary.done, done.added) == (3, 31)


def test_what_cannot_be_indexed_is_said(weights, photos, tmp_path, monkeypatch):
    batch.index(weights, photos / "a", tmp_path / "x.lance", tmp_path / "job")
    before = rows_of(tmp_path / "x.lance")
    table = tmp_path / "twice.csv"
    table.write_text(f"path\n{photos}/a/01.png\n{photos}/a/02.png\n{photos}/a/01.png\n")
    run = partial(batch.index, weights, photos / "b")
    batch.plan(tmp_path / "vectors", photos, weights=weights, outputs="vector")
    for call, message in (
        (partial(run, "memory://", tmp_path / "j"), "memory:// cannot be reached by other processes"),
        (partial(run, tmp_path / "y.lance", tmp_path / "vectors"), "holds another job, which differs in: exact, index"),
        (partial(run, tmp_path / "x.lance", tmp_path / "j1", "avg_pool"), "has vectors of another kind"),
        (partial(run, tmp_path / "x.lance", tmp_path / "j2", half=True), "keeps vectors as float32, whole; index into"),
        (partial(run, tmp_path / "z.lance", tmp_path / "j3", pca=30), "30 components need as many pictures"),
        (
            partial(batch.index, weights, table, tmp_path / "z.lance", tmp_path / "j4"),
            "a/01.png is named 2 times, but an index holds a picture once",
        ),
        (partial(batch.collect, tmp_path / "job", tmp_path / "t.parquet"), r"go to .*x\.lance, all at once; name no"),
        (partial(batch.index_vectors, tmp_path / "x.lance"), "has 31 rows, and an approximate index needs 512"),
        (partial(batch.index_vectors, tmp_path / "x.lance", 0), "segments must be 1 or more, got 0"),
        (partial(batch.index_vectors, tmp_path / "none"), "none does not exist; make an index"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            call()
    assert rows_of(tmp_path / "x.lance") == before
    shutil.rmtree(tmp_path / "x.lance")
    batch.index(weights, photos / "b", tmp_path / "x.lance", tmp_path / "later")
    (tmp_path / "job" / "committed.json").unlink()
    with pytest.raises(ValueError, match=r"x\.lance is not the index that .*job was planned for; plan another job"):
        batch.collect(tmp_path / "job")
    load_module = builtins.__import__

    def without(name, *arguments, **more):
        if name.partition(".")[0] == "lance":
            raise ModuleNotFoundError(name)
        return load_module(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'convnets-torch\[cluster-index\]'"):
        run(tmp_path / "w.lance", tmp_path / "w")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> str:
    """An index of 4 fragments, whose fragments share contents."""
    address = str(tmp_path_factory.mktemp("made") / "x.lance")
    table = filled(address, 1500)
    for seed in (1, 2, 3):
        add(table, 1500, seed)
    rows = [row for some in table.read(table.table.schema.names) for row in some.to_pylist()][100:4000:50]
    table.put([row | {"path": f"/copies{row['path']}"} for row in rows])
    return address


def test_fragments_searched_apart_and_merged_are_one_search(made):
    table, data = PictureTable.open(made), opened(made)
    vectors = Index.open(made).vectors.vectors[::700] + np.float32(0.01)
    ids = [fragment.fragment_id for fragment in data.get_fragments()]
    assert len(ids) == 5
    for metric in ("cosine", "l2", "dot"):
        for classes in (None, (3, 4)):
            question = Question(vectors, 12, metric, classes, [None] * len(vectors))
            whole = scan(table, question)
            parts = [scan_fragments(made, data.version, ids[first::3], question) for first in (2, 0, 1)]
            assert merged(parts, question) == whole  # to the bit
    apart = Index.open(made)
    apart.scan = lambda table, question: merged(
        (scan_fragments(made, data.version, [n], question) for n in ids), question
    )
    metrics: tuple[Metric, ...] = ("l2", "cosine")
    for metric, target in zip(metrics, ("c", None), strict=True):
        found = apart.search(vectors, 12, in_place=True, metric=metric, target=target)
        assert found == Index.open(made).search(vectors, 12, metric=metric, target=target)


def test_segments_of_shared_centroids_are_one_approximate_index(made, tmp_path):
    address = str(tmp_path / "x.lance")
    shutil.copytree(made, address)
    with pytest.raises(ValueError, match=r"no approximate index for cosine; build it with `convnets-torch index-vec"):
        Index.open(address).search("/made/0-7.jpg", approximate=True, in_place=True)
    done = batch.index_vectors(address, 3, executor="local")
    assert (done.done, done.shards, done.pictures) == (3, 3, 6078)
    index = Index.open(address)
    [known] = index.table.table.list_indices()
    assert (known.num_segments, known.num_unindexed_rows) == (3, 0)
    version = index.table.version
    assert batch.index_vectors(address, 3).done == 0
    assert Index.open(address).table.version == version
    queries = index.vectors.vectors[::100]
    exact = index.search(queries, 10)
    found = index.search(queries, 10, approximate=True)
    assert recall(exact, found) >= 0.95
    assert index.search(queries, 10, approximate=True, in_place=True) == found
    assert recall(exact, index.search(queries, 10, approximate=True, refine=1)) < recall(exact, found)
    add(index.table, 20, 9)
    index.table.optimize()
    [known] = index.table.table.list_indices()
    assert (known.num_indexed_rows, known.num_unindexed_rows) == (6098, 0)
    assert batch.index_vectors(address, 9, "l2").shards == 4  # as many fragments as there are now
    assert [path.name for path in Path(address).iterdir() if path.name.startswith("vectors-")] == [
        Path(segments.plan_segments(address, 9, "l2").folder.address).name
    ]
    assert PictureTable.open(address).has_index("l2")
    assert not PictureTable.open(address).has_index("cosine")


def test_a_segment_of_other_centroids_is_refused(made, tmp_path):
    """Break the comparison of names, and it is committed together with others."""
    address = str(tmp_path / "x.lance")
    shutil.copytree(made, address)
    work = segments.plan_segments(address, 2, "cosine")
    batch.run(work.folder.address, executor="local")
    part = Path(work.folder.address, work.part(1))
    assert work.trained[:16] in part.parent.name
    told = json.loads(part.read_text())
    assert told["uuid"].replace("-", "").startswith(work.trained[:16])
    part.write_text(json.dumps(told | {"uuid": "0" * 32}))
    with pytest.raises(ValueError, match="was built with other centroids or of other fragments; remove it and run"):
        segments.commit_segments(work)
    part.write_text("{")
    with pytest.raises(ValueError, match="is damaged; remove it"):
        segments.commit_segments(work)
    part.unlink()
    orphan = Path(address, "pictures.lance", "_indices", f"{work.prefix}-0000-000000000000")
    orphan.mkdir()
    add(PictureTable.open(address), 20, 9)  # rows that come meanwhile do no harm
    assert batch.run(work.folder.address, executor="local").done == 1
    assert segments.commit_segments(work)
    assert not orphan.exists()
    trained = Path(work.folder.address, segments.trained_name(work.trained))
    trained.write_bytes(trained.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(ValueError, match="is damaged; remove it and run the same command again"):
        work.model()


def test_segments_of_fragments_that_are_gone_are_refused(made, tmp_path):
    address = str(tmp_path / "x.lance")
    shutil.copytree(made, address)
    work = segments.plan_segments(address, 2, "cosine")
    batch.run(work.folder.address, executor="local")
    PictureTable.open(address).optimize()
    with pytest.raises(ValueError, match="was changed while its segments were built; run the same command again"):
        segments.commit_segments(work)


def test_the_commands_do_the_same(weights, photos, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def told(*words, code=0):
        found, out, error = command(*words)
        assert found == code, error
        return out, re.sub(r"[│\s]+", " ", error)

    words = ("index", weights, photos / "a", "-o", "x.lance", "--job", "job", "--shard", 20)
    out, error = told(*words, "--pca", 4)
    assert out == "2 of 2 shards computed, 31 pictures, 2 unreadable\n" or "31 pictures, 2 unreadable, " in out
    assert "4 values keep 0." in error
    assert "x.lance: 31 of the job's 31 rows added now, 2 unreadable" in error
    assert "0 of the job's 31 rows added now" in told(*words, "--pca", 4)[1]
    assert "which differs in: pca" in told(*words, code=1)[1]
    query = photos / "a" / "03.png"
    assert told("search", "x.lance", query, "-k", 3) == told("search", "x.lance", query, "-k", 3, "--in-place")
    assert "has 31 rows, and an approximate index needs 512" in told("index-vectors", "x.lance", code=1)[1]
    assert "need --job JOB" in told("index", weights, photos, "-o", "y.lance", "--executor", "static", code=2)[1]
    assert "--job is of no use" in told(*words, "--prune", code=2)[1]
    batch.plan(tmp_path / "vectors", photos, weights=weights, outputs="vector")
    assert "give a TABLE" in told("batch", "collect", "vectors", code=2)[1]
    assert "x.lance: 31 rows, 2 unreadable" in told("batch", "collect", "job")[1]


def test_pictures_in_a_store_are_taken_as_there(tmp_path):
    """Nobody asks the store: an index of a stranger would name any host."""
    table = filled(tmp_path / "x.lance", 8)
    [row] = [row for some in table.read(table.table.schema.names, "path = '/made/0-3.jpg'") for row in some.to_pylist()]
    address = "s3://bucket/photos/a b.jpg"
    row |= {"path": address, "sha256": hashlib.sha256(b"other").hexdigest()}
    table.put([row])
    index = Index.open(tmp_path / "x.lance")
    [found] = index.search("/made/0-3.jpg", 1)
    assert (found.found[0].path, found.found[0].gone) == (address, False)
    for in_place in (False, True):
        [found] = index.search(address, 1, in_place=in_place)
        assert found.found[0].path == "/made/0-3.jpg"
        assert found.found[0].gone

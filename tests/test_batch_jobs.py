"""Batch jobs in one process: what is planned, computed, told and collected; and what becomes of every failure."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convnets_torch import batch, classify_each, embed_each, evaluate, find_truth, heatmap_each, load, save
from convnets_torch._version import __version__
from convnets_torch.batch import working
from convnets_torch.batch.jobs import Job
from convnets_torch.batch.rows import Part
from convnets_torch.batch.running import share_of
from convnets_torch.images import stores
from convnets_torch.images.decoding import read_picture
from convnets_torch.images.remote import RemotePicture, TransportError, fetched_ahead
from convnets_torch.inference.pipeline import predict
from tests.finetuned import small_resnet
from tests.reference.pictures import picture

pa = pytest.importorskip("pyarrow", reason="needs pyarrow, the extra batch")
pq = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow, the extra batch")

BAD = {5: b"no picture", 18: None, 40: b"", 51: None}  # id -> contents; None cuts the file


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save(small_resnet(), path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """52 files, 4 of them bad: 48 good ones, three whole batches."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(52):
        path = folder / ("b" if number > 30 else "a") / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture(number, 66 + number, 90)).save(path)
        if number in BAD:
            content = BAD[number]
            path.write_bytes(path.read_bytes()[:400] if content is None else content)
    return folder


def rows_of(job) -> list[dict]:
    """The rows of all parts, in order."""
    parts = sorted(Path(job, "parts").glob("*.parquet"))
    return pa.concat_tables([pq.read_table(part) for part in parts]).to_pylist()


def listed(folder) -> list[Path]:
    return sorted(path for path in folder.rglob("*.png"))


def test_the_rows_are_those_of_one_embed_each_to_the_bit(weights, photos, tmp_path):
    made = batch.plan(
        tmp_path / "job", photos, weights=weights, outputs=["vector", "logits", "classes"], shard=7, top=3
    )
    assert (made.pictures, made.shards) == (52, 8)
    summary = batch.run(tmp_path / "job", executor="local")
    assert (summary.done, summary.pictures, summary.errors.total(), summary.missing) == (8, 52, 4, 0)
    network = load(weights)
    found = rows_of(tmp_path / "job")
    wanted = list(embed_each(network, listed(photos), logits=True, exact=True))
    assert [row["id"] for row in found] == list(range(52))
    for row, one, other in zip(found, wanted, classify_each(network, listed(photos), 3), strict=True):
        assert row["uri"] == str(one.picture)
        assert row["size"] == one.picture.stat().st_size
        if one.error is not None:
            assert (row["error"], row["vector"], row["class_ids"]) == (str(one.error), None, None)
            continue
        assert (row["height"], row["width"]) == read_picture(one.picture).shape[:2]
        np.testing.assert_array_equal(np.array(row["vector"], np.float32), one.vector.numpy())
        np.testing.assert_array_equal(np.array(row["logits"], np.float32), one.logits.numpy())
        assert list(zip(row["class_ids"], row["probabilities"], strict=True)) == [
            (each.class_id, each.probability) for each in other.predictions
        ]
    assert {row["id"] for row in found if row["error"] is not None} == set(BAD)
    checked = batch.check(tmp_path / "job")
    assert (checked.whole, checked.rows, checked.errors) == (True, 52, {"unreadable": 4})


def test_the_rows_of_a_shard_are_the_same_whoever_computes_it(weights, photos, tmp_path):
    """Whatever was computed before it, and in whichever order: also what a worker believed dead writes."""
    batch.plan(tmp_path / "job", photos, weights=weights, outputs=["vector", "logits"], shard=9)
    batch.run(tmp_path / "job", executor="local")
    before = rows_of(tmp_path / "job")
    for gone in ("000001", "000004"):
        (tmp_path / "job" / "parts" / f"{gone}.parquet").unlink()
    assert batch.run(tmp_path / "job", executor="local").done == 2
    assert rows_of(tmp_path / "job") == before


def test_batches_that_are_not_full_are_filled_up(weights, photos):
    """Break `_filled` and the last three pictures differ in their last bits."""
    from convnets_torch.images.decoding import Reading
    from convnets_torch.inference.pipeline import predicted

    network = load(weights)
    good = [path for number, path in enumerate(listed(photos)) if number not in BAD]
    whole = [row.logits for row in predict(network, good[:48], exact=True)]
    some = list(predicted(network, good[30:33], Reading(), exact=True, fill=True))
    assert all((row.logits == logits).all() for row, logits in zip(some, whole[30:33], strict=True))


def test_batches_that_do_not_fit_are_halved_and_not_filled_up_again(weights, photos):
    from convnets_torch.images.decoding import Reading
    from convnets_torch.inference.batching import MemoryWarning
    from convnets_torch.inference.pipeline import predicted

    network = load(weights)
    seen = []

    class Small:
        """A device with room for five pictures."""

        card, training = network.card, False

        def __call__(self, images):
            seen.append(len(images))
            if len(images) > 5:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return network(images)

    some = [path for number, path in enumerate(listed(photos)) if number not in BAD][:19]
    with pytest.warns(MemoryWarning, match="going on with"):
        rows = list(predicted(Small(), some, Reading(), exact=True, fill=True))
    assert [row.error for row in rows] == [None] * 19
    wanted = [row.logits for row in predict(network, some, exact=True)]
    for row, logits in zip(rows, wanted, strict=True):
        np.testing.assert_allclose(row.logits, logits, atol=1e-5)
    assert seen == [16, 16, 8, 4, 4, 4, 4, 3]  # the second is the first half, filled up once more


def test_maps_of_several_targets_are_a_row_each(weights, photos, tmp_path):
    targets = ["class 3", "class 7"]
    batch.plan(
        tmp_path / "job", photos / "b", weights=weights, outputs=["heatmap", "classes"], targets=targets, shard=8
    )
    batch.run(tmp_path / "job", executor="local")
    found = rows_of(tmp_path / "job")
    wanted = list(heatmap_each(load(weights), listed(photos / "b"), targets))
    assert len(found) == sum(len(each.maps) or 1 for each in wanted)
    rows = iter(found)
    for one in wanted:
        for target, map in zip(targets, one.maps, strict=False):
            row = next(rows)
            assert (row["uri"], row["target"], len(row["class_ids"])) == (str(one.picture), target, 5)
            values = np.array(row["heatmap"], np.float32).reshape(row["rows"], row["columns"])
            np.testing.assert_allclose(values, map.values, atol=1e-6)
        if one.error is not None:
            assert next(rows)["error_kind"] == "unreadable"
    assert batch.check(tmp_path / "job").whole


def test_evaluation_equals_evaluate_number_for_number(weights, tmp_path, command):
    folder = tmp_path / "classes"
    for number in range(33):
        path = folder / f"class {number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number, 80, 90)).save(path)
    (folder / "class 1" / "7.png").write_bytes(b"")
    network = load(weights)
    known = find_truth(network.card, folder)
    batch.plan(tmp_path / "other", folder, weights=weights, shard=50)
    batch.run(tmp_path / "other", executor="local")
    with pytest.raises(ValueError, match="an evaluation needs logits"):
        batch.collect(tmp_path / "other", evaluate=folder)
    batch.plan(tmp_path / "job", folder, weights=weights, outputs="logits", shard=10)
    batch.run(tmp_path / "job", executor="local")
    wanted = evaluate(network, known).to_dict()
    found = batch.collect(tmp_path / "job", evaluate=folder)
    assert {**found.evaluation.to_dict(), "running": None} == {**wanted, "running": None}
    code, out, _ = command("batch", "collect", tmp_path / "job", "--evaluate", folder, "--json")
    told = json.loads(out)
    assert (code, told["errors"], told["confusions"]) == (0, wanted["errors"], wanted["confusions"])
    (folder / "class 1" / "new.png").write_bytes((folder / "class 1" / "1.png").read_bytes())
    with pytest.raises(ValueError, match=r"1 of 34 labelled pictures are not in the job, such as .*new\.png"):
        batch.collect(tmp_path / "job", evaluate=folder)


def test_collected_tables_hold_every_row_once(weights, photos, tmp_path, command):
    job = tmp_path / "job"
    batch.plan(job, photos, weights=weights, outputs=["classes", "vector"], shard=20, half=True)
    with pytest.raises(ValueError, match=r"3 of 3 shards of .* are missing \(0, 1, 2\); run the job first"):
        batch.collect(job, tmp_path / "x.parquet")
    batch.run(job, executor="local")
    wanted = rows_of(job)
    assert batch.collect(job, tmp_path / "x.parquet").rows == 52
    assert pq.read_table(tmp_path / "x.parquet").to_pylist() == wanted
    assert pq.read_schema(tmp_path / "x.parquet").field("vector").type == pa.list_(pa.float16())
    code, _, error = command("batch", "collect", job, tmp_path / "x.csv")
    assert (code, error) == (0, f"convnets-torch: {tmp_path}/x.csv: 52 rows, 4 unreadable\n")
    lines = (tmp_path / "x.csv").read_text().splitlines()
    assert len(lines) == 1 + 48 * 5 + 4
    assert lines[1].startswith(f"{wanted[0]['uri']},1,{wanted[0]['probabilities'][0]:.6f},")
    for name, message in (("x.txt", "unknown ending"), ("s3://bucket/x.parquet", "a table in a store can be")):
        with pytest.raises(ValueError, match=message):
            batch.collect(job, tmp_path / name if name == "x.txt" else name)


def test_a_lance_table_has_vectors_of_a_fixed_size(weights, photos, tmp_path):
    lancedb = pytest.importorskip("lancedb", reason="needs LanceDB, the extra search")
    batch.plan(tmp_path / "job", photos, weights=weights, outputs=["vector"], shard=20)
    batch.run(tmp_path / "job", executor="local")
    batch.collect(tmp_path / "job", tmp_path / "x.lance")
    table = lancedb.connect(str(tmp_path / "x.lance")).open_table("rows")
    wanted = rows_of(tmp_path / "job")
    assert table.to_arrow().select(["id", "uri", "vector"]).to_pylist() == [
        {name: row[name] for name in ("id", "uri", "vector")} for row in wanted
    ]
    assert pa.types.is_fixed_size_list(table.schema.field("vector").type)
    with pytest.raises(FileExistsError, match="holds a table of rows already"):
        batch.collect(tmp_path / "job", tmp_path / "x.lance")


class SlowFile(io.FileIO):
    def read(self, size: int | None = -1) -> bytes:
        time.sleep(0.002)
        return super().read(size)


def test_a_long_csv_is_read_whole(weights, tmp_path, monkeypatch):
    """From a slow disk, where a reader that only looks at the head is still reading while the next one reads."""
    monkeypatch.setattr("convnets_torch.batch.jobs.open_address", lambda address, query: SlowFile(address))
    names = [f"/photos/of a long name, number {number:07}.jpg" for number in range(200_000)]
    (tmp_path / "list.csv").write_text("\ufeff\nnumber,url\n" + "".join(f'1,"{name}"\n' for name in names))
    made = batch.plan(tmp_path / "job", tmp_path / "list.csv", weights=weights)
    assert made.pictures == len(names)
    assert [made.read(shard)[-1].uri for shard in (0, 9, 19)] == [names[9_999], names[99_999], names[-1]]


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_column_of_names_is_streamed_in_its_order(ending, weights, photos, tmp_path):
    names = [*map(str, reversed(listed(photos))), "beside.png"]
    Image.fromarray(picture(0, 70, 70)).save(tmp_path / "beside.png")
    table = pa.table({"number": list(range(len(names))), "url": names})
    if ending == "parquet":
        pq.write_table(table, tmp_path / "list.parquet", row_group_size=5)
    else:
        (tmp_path / "list.csv").write_text("number,url\n" + "".join(f'1,"{name}"\n' for name in names))
    made = batch.plan(tmp_path / "job", tmp_path / f"list.{ending}", weights=weights, shard=10)
    entries = [entry for shard in range(made.shards) for entry in made.read(shard)]
    assert [entry.uri for entry in entries] == [*names[:-1], str(tmp_path / "beside.png")]
    assert [entry.id for entry in entries] == list(range(53))
    with pytest.raises(ValueError, match=r"list\.\w+ has no column 'uri'; it has number, url"):
        batch.plan(tmp_path / "other", tmp_path / f"list.{ending}", weights=weights, column="uri")


def test_the_same_plan_again_is_the_same_job_and_another_is_refused(weights, photos, tmp_path):
    job = tmp_path / "job"
    first = batch.plan(job, photos, weights=weights, shard=10)
    before = {path: path.stat().st_mtime_ns for path in job.rglob("*")}
    assert batch.plan(job, photos, weights=weights, shard=10).digest == first.digest
    assert {path: path.stat().st_mtime_ns for path in job.rglob("*")} == before
    with pytest.raises(ValueError, match=r"holds another job, which differs in: outputs, shard, top; name another"):
        batch.plan(job, photos, weights=weights, shard=11, top=3, outputs="logits")
    with pytest.raises(ValueError, match=r"holds a job of other pictures: 52 there, 31 here"):
        batch.plan(job, photos / "a", weights=weights, shard=10)
    other = tmp_path / "other.safetensors"
    network = small_resnet()
    next(network.parameters()).data += 1
    save(network, other)
    with pytest.raises(ValueError, match="differs in: weights"):
        batch.plan(job, photos, weights=other, shard=10)
    with pytest.raises(ValueError, match=r"other\.safetensors is not the weights file of the job"):
        batch.run(job, executor="local", weights=other)
    (job / "job.json").write_text((job / "job.json").read_text().replace(f'"{__version__}"', '"0.0.1"'))
    with pytest.raises(ValueError, match=rf"planned by version '0\.0\.1' of convnets-torch, but this is {__version__}"):
        batch.run(job)
    (job / "job.json").write_text("{}")
    with pytest.raises(ValueError, match=r"job\.json was not made by `convnets-torch batch plan`"):
        batch.status(job)
    with pytest.raises(FileNotFoundError, match="holds no job; make one with"):
        batch.status(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": ["class"]}, "unknown output 'class'; known: classes, vector, logits, heatmap"),
        ({"outputs": []}, "no output is named"),
        ({"outputs": ["heatmap"]}, "heatmap and targets go together"),
        ({"outputs": ["heatmap"], "targets": ["cow"]}, "'cow' is not one of the 10 classes"),
        ({"layer": "fc"}, "no vector asked for"),
        ({"outputs": ["vector"], "layer": "fc9"}, "fc9"),
        ({"shard": 0}, "a shard has 1 to 1,000,000 pictures, not 0"),
        ({"precision": "int8"}, "unknown precision 'int8'"),
        ({"depth": 99}, "depth"),
    ],
    ids=str,
)
def test_plans_that_cannot_work_are_refused(options, message, weights, photos, tmp_path):
    with pytest.raises(ValueError, match=message):
        batch.plan(tmp_path / "job", photos, weights=weights, **options)
    assert not (tmp_path / "job").exists()


def test_a_finished_job_loads_no_network(weights, photos, tmp_path):
    """In a process of its own: torch is not even imported."""
    batch.plan(tmp_path / "job", photos, weights=weights, shard=30)
    batch.run(tmp_path / "job", executor="local")
    code = (
        "import sys; from convnets_torch import batch; found = batch.run(sys.argv[1]); batch.status(sys.argv[1]);"
        " print(found.pictures, found.missing, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, tmp_path / "job"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "0 0 False\n"


def test_what_has_changed_since_the_plan_is_a_row(weights, photos, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(8):
        Image.fromarray(picture(number, 70, 70)).save(folder / f"{number}.png")
    batch.plan(tmp_path / "job", folder, weights=weights)
    Image.fromarray(picture(9, 99, 70)).save(folder / "3.png")
    os.utime(folder / "4.png", ns=(1, 1))
    (folder / "5.png").unlink()
    batch.run(tmp_path / "job", executor="local")
    kinds = [(each.id, each.kind) for each in batch.errors(tmp_path / "job")]
    assert kinds == [(3, "changed"), (4, "changed"), (5, "missing")]
    assert [each.id for each in batch.errors(tmp_path / "job", ["missing"])] == [5]
    assert "its bytes was" in next(iter(batch.errors(tmp_path / "job"))).error
    Image.fromarray(picture(5, 70, 70)).save(folder / "5.png")
    assert batch.retry(tmp_path / "job", ["missing"]).removed == (0,)
    batch.run(tmp_path / "job", executor="local")
    assert [each.kind for each in batch.errors(tmp_path / "job")] == ["changed", "changed", "changed"]


def test_too_many_pixels_are_refused_and_named(weights, photos, tmp_path, command):
    batch.plan(tmp_path / "job", photos / "a", weights=weights, max_pixels=8500)
    code, out, _ = command("batch", "run", tmp_path / "job", "--strict", "--executor", "local")
    assert code == 3
    assert out.startswith("1 of 1 shards computed, 31 pictures, 2 refused, 2 unreadable, ")
    code, out, _ = command("batch", "errors", tmp_path / "job", "--kind", "refused")
    assert (code, len(out.splitlines())) == (0, 2)
    assert "29.png has 8,550 pixels (95x90), more than 8,500" in out
    assert command("batch", "run", tmp_path / "job")[0] == 0
    assert command("batch", "run", tmp_path / "job", "--strict")[0] == 3  # also where there was nothing left to do


def test_a_shard_half_unreadable_is_held_back(weights, photos, tmp_path, command):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(20):
        Image.fromarray(picture(number, 70, 70)).save(folder / f"{number:02}.png")
    batch.plan(tmp_path / "job", folder, weights=weights, shard=10)
    for number in range(6):
        (folder / f"{number:02}.png").unlink()
    code, _, error = command("batch", "run", tmp_path / "job", "--executor", "local")
    assert code == 1
    assert "shard 0: held back: 6 of 10 pictures could not be read, as if their folder were not mounted" in error
    assert [row["id"] for row in rows_of(tmp_path / "job")] == list(range(10, 20))
    assert batch.run(tmp_path / "job", executor="local").failed.keys() == {0}  # left alone
    assert batch.status(tmp_path / "job").failed == (0,)
    assert command("batch", "check", tmp_path / "job")[0] == 1
    assert command("batch", "run", tmp_path / "job", "--allow-bad", "--executor", "local")[0] == 0
    assert batch.check(tmp_path / "job").errors == {"missing": 6}


class Disk:
    """A disk that stops answering: `fetch` fails for some names."""

    def __init__(self, monkeypatch, failing, times=10**9):
        self.failing, self.times, self.fetch = failing, times, stores.fetch
        monkeypatch.setattr(working, "fetch", self)

    def __call__(self, uri, query="", most=0):
        if self.failing(uri) and self.times:
            self.times -= 1
            raise TransportError(f"{uri} could not be read (Input/output error)")
        return self.fetch(uri, query, most)


def test_a_shard_that_fails_is_noted_and_the_job_goes_on(weights, photos, tmp_path, monkeypatch):
    job, events = tmp_path / "job", list[dict]()
    batch.plan(job, photos, weights=weights, outputs="logits", shard=10)
    disk = Disk(monkeypatch, lambda uri: uri.endswith("23.png"))
    found = batch.run(job, executor="local", progress=events.append)
    assert found.failed == {2: f"{photos}/a/23.png could not be read (Input/output error)"}
    assert [each["event"] for each in events if each["shard"] == 2] == ["again", "again", "failed"]
    assert [row["id"] for row in rows_of(job)] == [*range(20), *range(30, 52)]
    noted = json.loads((job / "failed" / "000002.json").read_text())
    assert (noted["tries"], noted["kind"]) == (3, "failed")
    disk.failing = lambda uri: False
    assert batch.run(job, executor="local").done == 0
    assert batch.retry(job).failed == (2,)
    assert batch.run(job, executor="local").done == 1
    assert batch.check(job).whole
    whole = tmp_path / "whole"
    batch.plan(whole, photos, weights=weights, outputs="logits", shard=10)
    batch.run(whole, executor="local")
    assert rows_of(job) == rows_of(whole)


def test_a_store_that_hiccups_costs_nothing(weights, photos, tmp_path, monkeypatch):
    batch.plan(tmp_path / "job", photos, weights=weights, shard=10)
    Disk(monkeypatch, lambda uri: uri.endswith(("03.png", "47.png")), times=2)
    assert batch.run(tmp_path / "job", executor="local").failed == {}
    assert batch.check(tmp_path / "job").whole


def test_a_store_that_is_gone_ends_the_run_without_a_row(weights, photos, tmp_path, monkeypatch, command):
    job = tmp_path / "job"
    batch.plan(job, photos, weights=weights, shard=5)
    disk = Disk(monkeypatch, lambda uri: "/b/" in uri)
    monkeypatch.setattr(working, "answers", lambda *_: False)
    code, _, error = command("batch", "run", job, "--executor", "local")
    assert code == 1
    assert error.splitlines()[-1].endswith("(Input/output error); finished shards are kept: run the same command again")
    found = batch.check(job)
    assert (found.errors, found.failed, found.damaged) == ({"unreadable": 2}, {}, {})
    assert found.missing == (6, 7, 8, 9, 10)
    disk.failing = lambda uri: False
    assert command("batch", "run", job, "--executor", "local")[0] == 0
    assert batch.check(job).whole


@pytest.mark.parametrize(
    ("number", "error", "message"),
    [
        (errno.ENOSPC, OSError, r"cannot be written \(No space left on device\).*; finished shards are kept"),
        (errno.EACCES, OSError, r"cannot be written \(Permission denied\).*; finished shards are kept"),
    ],
)
def test_a_full_disk_is_a_sentence_and_keeps_what_is_there(
    number, error, message, weights, photos, tmp_path, monkeypatch
):
    batch.plan(tmp_path / "job", photos, weights=weights, shard=10)
    write, left = pq.write_table, [2]

    def failing(*arguments, **named):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(number, os.strerror(number))
        return write(*arguments, **named)

    monkeypatch.setattr(pq, "write_table", failing)
    with pytest.raises(error, match=message):
        batch.run(tmp_path / "job", executor="local")
    assert len(rows_of(tmp_path / "job")) == 20
    monkeypatch.undo()
    batch.run(tmp_path / "job", executor="local")
    assert batch.check(tmp_path / "job").whole


def test_a_part_of_another_job_or_a_damaged_one_is_found(weights, photos, tmp_path, command):
    for name, top in (("job", 5), ("other", 4)):
        batch.plan(tmp_path / name, photos, weights=weights, shard=13, top=top)
        batch.run(tmp_path / name, executor="local")
    part = tmp_path / "job" / "parts" / "000001.parquet"
    part.write_bytes((tmp_path / "other" / "parts" / "000001.parquet").read_bytes())
    (tmp_path / "job" / "parts" / "000002.parquet").write_bytes(b"PAR1 nothing PAR1")
    part.with_name("note.txt").touch()
    lost = pq.read_table(part.with_name("000000.parquet"))
    pq.write_table(pa.concat_tables([lost.slice(1), lost.slice(5, 1)]), part.with_name("000000.parquet"))
    found = batch.check(tmp_path / "job")
    assert found.strange == ("parts/note.txt",)
    assert sorted(found.damaged) == [0, 1, 2]
    assert "does not hold each picture of its shard once" in found.damaged[0]
    assert "of another job" in found.damaged[1]
    assert "damaged" in found.damaged[2]
    with pytest.raises(ValueError, match="of another job or shard; remove it"):
        batch.collect(tmp_path / "job")
    assert command("batch", "check", tmp_path / "job")[0] == 1
    assert batch.retry(tmp_path / "job", ["damaged"]).removed == (0, 1, 2)
    batch.run(tmp_path / "job", executor="local")
    assert batch.check(tmp_path / "job").whole


def test_nulls_in_every_list_are_read_back(weights, photos, tmp_path):
    """Of bad pictures. Read without this library, as pyarrow 17 and 26 do alike: lists have no fixed size, and indices
    of a dictionary are int32, the only ones that 17 reads back as they were written.
    """
    outputs = ["classes", "vector", "logits", "heatmap"]
    batch.plan(tmp_path / "job", photos / "b", weights=weights, outputs=outputs, targets=["class 1"])
    batch.run(tmp_path / "job", executor="local")
    with Part(Job.open(tmp_path / "job"), 0) as part:
        table = part.table()
    assert pq.read_table(tmp_path / "job" / "parts" / "000000.parquet").equals(table)
    assert table["error_kind"].type == pa.dictionary(pa.int32(), pa.string())
    for name in ("class_ids", "probabilities", "vector", "logits", "heatmap"):
        column = table[name]
        assert pa.types.is_list(column.type)
        assert [value is None for value in column.to_pylist()] == [number in BAD for number in range(31, 52)]


def test_status_estimates_from_a_listing_alone(weights, photos, tmp_path, monkeypatch, command):
    job = tmp_path / "job"
    batch.plan(job, photos, weights=weights, shard=10)
    batch.run(job, executor="local")
    for shard in range(6):
        os.utime(job / "parts" / f"{shard:06}.parquet", (1000 + 2 * shard,) * 2)
    (job / "parts" / "000005.parquet").unlink()
    (job / "parts" / "000004.parquet").write_bytes(b"")  # is not opened
    os.utime(job / "parts" / "000004.parquet", (1008, 1008))
    found = batch.status(job)
    assert (found.done, found.done_pictures, found.throughput) == (5, 50, 40 / 8)
    assert found.seconds_left == pytest.approx(2 / 5)
    code, out, _ = command("batch", "status", job)
    assert code == 0
    assert [line.split("  ")[-1].strip() for line in out.splitlines()] == [
        "5 of 6",
        "50 of 52",
        "0",
        "5.0 pictures/s",
        "0 s",
    ]


def test_two_workers_on_one_shard_leave_it_there_once(weights, photos, tmp_path, monkeypatch):
    """Both begin before either has written it."""
    job = Job.open(batch.plan(tmp_path / "job", photos, weights=weights, outputs="logits", shard=13).folder.address)
    running = working.Running()
    part = tmp_path / "job" / "parts" / "000002.parquet"
    results: list[list[int]] = [[], []]
    meet = threading.Barrier(2)

    class Together(working.Computer):
        """Waits for the other worker before the first rows."""

        def rows(self, pictures):
            meet.wait()
            return super().rows(pictures)

    def work(number: int) -> None:
        computer = Together(str(weights), job.options, running)
        results[number] = [event["shard"] for event in working.Shards(job, computer, running).compute([2])]

    both = [threading.Thread(target=work, args=[number]) for number in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    assert results[0] + results[1] in ([2], [2, 2])  # the slower one may see what the faster one has written
    before = pq.read_table(part)
    assert list(part.parent.iterdir()) == [part]
    shards = working.Shards(job, working.Computer(str(weights), job.options, running), running)
    asked = Disk(monkeypatch, lambda uri: True)  # no picture can be read
    assert list(shards.compute([2])) == []  # it looks before it begins
    asked.failing = lambda uri: False
    part.unlink()
    assert [event["shard"] for event in shards.compute([2])] == [2]
    assert pq.read_table(part).equals(before)


ARRAY = "SLURM_ARRAY_TASK"
ENVIRONMENTS = [
    ({}, None),
    ({"RANK": "1", "WORLD_SIZE": "4"}, (1, 4)),
    ({"SLURM_PROCID": "2", "SLURM_NTASKS": "3"}, (2, 3)),
    ({f"{ARRAY}_ID": "11", f"{ARRAY}_MIN": "1", f"{ARRAY}_STEP": "5", f"{ARRAY}_COUNT": "3"}, (2, 3)),
    ({f"{ARRAY}_ID": "1", f"{ARRAY}_COUNT": "2", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, (3, 4)),
    ({"JOB_COMPLETION_INDEX": "0", "JOB_COMPLETIONS": "8"}, (0, 8)),
]  # fmt: skip


@pytest.mark.parametrize(("environment", "wanted"), ENVIRONMENTS)
def test_schedulers_say_the_share(environment, wanted):
    found = share_of(environment)
    assert (None if found is None else (found.rank, found.world)) == wanted


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "4", "WORLD_SIZE": "4"}, "process 4 of 4"),
        ({"RANK": "x", "WORLD_SIZE": "4"}, "RANK is 'x', not a number"),
        ({"JOB_COMPLETION_INDEX": "0"}, "JOB_COMPLETIONS is not set"),
    ],
)
def test_shares_that_make_no_sense_are_refused(environment, message):
    with pytest.raises(ValueError, match=message):
        share_of(environment)


def test_a_static_process_does_its_share_and_then_what_is_missing(weights, photos, tmp_path, monkeypatch):
    job, events = tmp_path / "job", list[dict]()
    batch.plan(job, photos, weights=weights, shard=5)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    found = batch.run(job, progress=events.append)  # auto
    order = [event["shard"] for event in events]
    assert order[:4] == [1, 4, 7, 10]
    assert sorted(order[4:]) == [0, 2, 3, 5, 6, 8, 9]
    assert order[4:] != sorted(order[4:])
    assert (found.done, batch.check(job).whole) == (11, True)


def test_executors_that_do_not_fit_are_refused(weights, photos, tmp_path):
    batch.plan(tmp_path / "job", photos, weights=weights)
    with pytest.raises(ValueError, match="no scheduler says which share"):
        batch.run(tmp_path / "job", executor="static")
    with pytest.raises(ValueError, match="unknown executor 'dask'"):
        batch.run(tmp_path / "job", executor="dask")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the executor is local; leave one of them out"):
        batch.run(tmp_path / "job", executor="local", address="auto")
    with pytest.raises(ValueError, match="tries must be 1 or more"):
        batch.run(tmp_path / "job", tries=0)


def test_a_transport_error_ends_predict_and_another_is_a_row(weights):
    good = RemotePicture("good.png", lambda: png, 10)
    bad = RemotePicture("s3://bucket/bad.png", lambda: b"nothing")

    def gone() -> bytes:
        raise TransportError("no answer")

    file = io.BytesIO()
    Image.fromarray(picture(0, 70, 70)).save(file, "PNG")
    png = file.getvalue()
    network = load(weights)
    rows = list(predict(network, [good, bad, good]))
    assert [row.error and str(row.error).split(" is")[0] for row in rows] == [None, "s3://bucket/bad.png", None]
    lost = RemotePicture("lost.png", gone)
    with pytest.raises(TransportError, match="no answer") as caught:
        list(predict(network, [good, lost, good]))
    assert caught.value.picture is lost
    stream = predict(network, [good, good, lost, good])
    assert [next(stream).error, next(stream).error] == [None, None]  # what came before it is not lost


def test_fetching_ahead_keeps_to_its_room():
    """At most 100 bytes are fetched and not decoded, or one picture that is larger."""
    held, most = 0, 0

    def fetch(size):
        nonlocal held, most
        held += size
        most = max(most, held)
        return b"x" * size

    sizes = [40, 40, 40, 300, 10, 10, 60, 60, 60]
    pictures = [RemotePicture(str(size), partial(fetch, size), size) for size in sizes]
    for one in fetched_ahead(pictures, threads=8, room=100):
        held -= len(one.content())
    assert most == 300
    with pytest.raises(ValueError, match="fetch_threads must be 1 or more"):
        list(fetched_ahead([], 0))


def test_a_worker_takes_tables_frames_and_dicts(weights, photos, tmp_path):
    import pickle

    paths = [str(path) for path in listed(photos)[:20]]
    worker = pickle.loads(pickle.dumps(batch.Worker(weights, ["vector", "classes"], top=2)))
    table = worker(pa.table({"id": list(range(100, 120)), "uri": paths}))
    wanted = list(embed_each(load(weights), paths, exact=True))
    assert table["id"].to_pylist() == list(range(100, 120))
    for row, one in zip(table.to_pylist(), wanted, strict=True):
        assert (row["error"] is None) == (one.error is None)
        if one.error is None:
            np.testing.assert_allclose(row["vector"], one.vector, atol=1e-5)
    contents = [Path(path).read_bytes() for path in paths]
    given = worker({"bytes": contents, "uri": paths})
    assert given["vector"] == table["vector"].to_pylist()
    assert given["error"][5].startswith(f"{paths[5]} is not a picture")
    again = worker({"bytes": np.array(contents, object)})
    assert again["uri"][5] == "picture 5"
    assert again["class_ids"] == table["class_ids"].to_pylist()
    pandas = pytest.importorskip("pandas", reason="needs pandas")
    frame = worker(pandas.DataFrame({"path": paths}))
    assert frame["error_kind"].isna().sum() == 18
    with pytest.raises(ValueError, match="the batch has the columns x; name the one of pictures"):
        worker({"x": paths})
    with pytest.raises(TypeError, match="unknown option of Worker"):
        batch.Worker(weights, colour="red")


def test_stores_of_fsspec_hold_jobs_and_pictures(weights, photos, tmp_path):
    """In memory; without seconds in its times of change, so that only sizes are compared."""
    fsspec = pytest.importorskip("fsspec", reason="needs fsspec")
    system = fsspec.filesystem("memory")
    try:
        for number, path in enumerate(listed(photos)):
            system.pipe(f"/bucket/photos/{path.parent.name}/a b?{number:02}.png", path.read_bytes())
        system.pipe("/bucket/photos/.hidden.png", b"")
        address = "memory://bucket/job"
        with pytest.warns(UserWarning, match=r"memory://bucket/photos: left out 1 hidden files"):
            made = batch.plan(address, "memory://bucket/photos", weights=weights, outputs="logits", shard=9)
        assert made.read(0)[1].uri == "memory://bucket/photos/a/a b?01.png"
        assert batch.run(address, executor="local").errors == {"unreadable": 4}
        assert batch.check(address).whole
        batch.collect(address, tmp_path / "memory.parquet")
        batch.plan(tmp_path / "job", photos, weights=weights, outputs="logits", shard=9)
        batch.run(tmp_path / "job", executor="local")
        found = pq.read_table(tmp_path / "memory.parquet")["logits"].to_pylist()
        assert found == [row["logits"] for row in rows_of(tmp_path / "job")]
        system.rm("/bucket/photos/a/a b?03.png")
        assert batch.retry(address, ["unreadable"]).removed == (0, 2, 4, 5)
        batch.run(address, executor="local")
        assert next(iter(batch.errors(address))).error == "memory://bucket/photos/a/a b?03.png does not exist"
        assert batch.status(address).done == 6
    finally:
        system.rm("/bucket", recursive=True)


def test_labels_of_pictures_in_a_store_are_a_table_of_addresses(weights, tmp_path):
    fsspec = pytest.importorskip("fsspec", reason="needs fsspec")
    system = fsspec.filesystem("memory")
    lines = ["path,label"]
    try:
        for number in range(20):
            path = tmp_path / "classes" / f"class {number % 3}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(number, 80, 90)).save(path)
            system.pipe(f"/labelled/{number}.png", path.read_bytes())
            lines.append(f"memory://labelled/{number}.png,class {number % 3}")
        (tmp_path / "labels.csv").write_text("\n".join(lines))
        batch.plan(tmp_path / "job", "memory://labelled", weights=weights, outputs="logits")
        batch.run(tmp_path / "job", executor="local")
        found = batch.collect(tmp_path / "job", evaluate=tmp_path / "labels.csv").evaluation
        network = load(weights)
        wanted = evaluate(network, find_truth(network.card, tmp_path / "classes"))
        assert found.errors == wanted.errors
        assert found.confusion.tolist() == wanted.confusion.tolist()
    finally:
        system.rm("/labelled", recursive=True)


def test_events_are_told_as_json(weights, photos, tmp_path, command):
    code, out, _ = command("batch", "plan", tmp_path / "job", photos, "--weights", weights, "--shard", "20", "--json")
    assert (code, json.loads(out)["shards"]) == (0, 3)
    code, out, error = command("batch", "run", tmp_path / "job", "--executor", "local", "--json")
    *events, summary = map(json.loads, out.splitlines())
    assert (code, error) == (0, "")
    assert [(each["event"], each["shard"], each["pictures"], each["done"]) for each in events] == [
        ("shard", 0, 20, 1), ("shard", 1, 20, 2), ("shard", 2, 12, 3),
    ]  # fmt: skip
    assert [each["errors"] for each in events] == [{"unreadable": 2}, {}, {"unreadable": 2}]
    assert (summary["event"], summary["pictures"], summary["errors"]) == ("summary", 52, {"unreadable": 4})
    assert summary["pictures_per_second"] > 0


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("s3://key:secret@bucket/photos", ValueError, r"the address s3://\.\.\. holds a password"),
        ("nowhere://bucket/photos", ValueError, "nowhere://bucket: Protocol not known: nowhere"),
        ("none", FileNotFoundError, "none does not exist"),
    ],
)
def test_addresses_that_cannot_be_used_are_refused(address, error, message, weights, tmp_path):
    with pytest.raises(error, match=message) as caught:
        batch.plan(tmp_path / "job", address, weights=weights)
    assert "secret" not in str(caught.value)


SHARDS = """
import sys
import time
from pathlib import Path
from convnets_torch import batch
made = batch.plan(sys.argv[3], sys.argv[2], weights=sys.argv[1], shard=1)
parts = Path(sys.argv[3], "parts")
parts.mkdir()
for number in range(made.shards - 1):
    (parts / f"{number:06}.parquet").touch()
print(batch.status(sys.argv[3]).done, made.read(made.shards - 1)[0].uri, "torch" in sys.modules)
print(*(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
"""


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_hundred_thousand_shards_are_planned_and_listed_in_300_megabytes(weights, tmp_path):
    pq.write_table(pa.table({"uri": [f"/photos/{number}.jpg" for number in range(100_000)]}), tmp_path / "list.parquet")
    command = [sys.executable, "-c", SHARDS, weights, tmp_path / "list.parquet", tmp_path / "job"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said, peak = done.stdout.splitlines()
    assert said == "99999 /photos/99999.jpg False"
    assert int(peak.split()[1]) < 300_000  # kilobytes


def test_options_of_a_job_survive_json(weights, photos, tmp_path):
    made = batch.plan(tmp_path / "job", photos, weights=weights, depth="auto", background="#ff0000", exact=False)
    assert Job.open(tmp_path / "job").options == made.options
    assert replace(made.options, exact=True) != made.options

"""Fine-tuning that is interrupted, killed, refused by the disk, blown up, or divided among processes."""

from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from convnets_torch import save
from convnets_torch.training.datasets import find_dataset
from convnets_torch.training.finetuning import checkpoint_of, finetune
from convnets_torch.training.running import Callbacks, TrainingStopped, read_checkpoint, save_checkpoint
from tests.finetuned import QUICK, draw_pictures, small_resnet

SETTINGS = replace(QUICK, head_epochs=2, dropout=True, mixing="mixup", patience=0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return find_dataset(draw_pictures(tmp_path_factory.mktemp("pictures") / "data"))


def train(dataset, vectors, output, settings=SETTINGS, **options):
    return finetune(small_resnet(), dataset, output, settings, cache=vectors, allow_leaks=True, **options)


def without_seconds(rows):
    return [replace(row, seconds=0) for row in rows]


@pytest.fixture(scope="module")
def unbroken(dataset, vectors, tmp_path_factory):
    output = tmp_path_factory.mktemp("unbroken") / "mine.safetensors"
    return train(dataset, vectors, output), output.read_bytes()


class Killed(BaseException):
    """What no handler of the library catches."""


@pytest.mark.parametrize("steps", [2, 3, 5, 8, 10])  # of 3 an epoch: in both stages, in epochs and between them
def test_a_training_that_was_stopped_goes_on_to_the_same_file(dataset, vectors, unbroken, tmp_path, steps):
    output = tmp_path / "mine.safetensors"
    seen: list[None] = []

    def stop():
        seen.append(None)
        return len(seen) > steps

    with pytest.raises(TrainingStopped, match=r"the checkpoint is .*mine\.checkpoint\.safetensors, .* --resume"):
        train(dataset, vectors, output, callbacks=Callbacks(stop=stop))
    assert not output.exists()
    result = train(dataset, vectors, output, resume=True)
    assert without_seconds(result.history) == without_seconds(unbroken[0].history)
    assert output.read_bytes() == unbroken[1]
    assert not checkpoint_of(output).exists()


@pytest.mark.parametrize("steps", [4, 8])  # in both stages
def test_a_checkpoint_of_version_0_1_goes_on_to_the_same_file(dataset, vectors, unbroken, tmp_path, steps):
    output, seen = tmp_path / "mine.safetensors", itertools.count()
    with pytest.raises(TrainingStopped):
        train(dataset, vectors, output, callbacks=Callbacks(stop=lambda: next(seen) >= steps))
    arrays, state, _ = read_checkpoint(checkpoint_of(output))
    former = {"lr": "rate", "head_lr": "head_rate"}  # what that version called them
    state["settings"] = {former.get(name, name): value for name, value in state["settings"].items()}
    rows = state["progress"]["history"]
    state["progress"]["history"] = [{former.get(name, name): value for name, value in row.items()} for row in rows]
    assert "rate" in rows[0].keys() ^ state["progress"]["history"][0].keys()
    save_checkpoint(checkpoint_of(output), arrays, state)
    train(dataset, vectors, output, resume=True)
    assert output.read_bytes() == unbroken[1]


def test_features_that_were_stopped_are_kept(dataset, unbroken, tmp_path):
    output, cache, found = tmp_path / "mine.safetensors", tmp_path / "cache", []
    with pytest.raises(TrainingStopped, match="stopped after the features of 16 of 30 pictures, which are cached; run"):
        train(dataset, cache, output, callbacks=Callbacks(stop=lambda: True))
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    train(dataset, cache, output, callbacks=Callbacks(found=lambda features, leaks: found.append(features.computed)))
    assert found == [14]
    assert output.read_bytes() == unbroken[1]


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_training_that_was_killed_goes_on_from_its_last_epoch(dataset, vectors, unbroken, tmp_path, epoch):
    output = tmp_path / "mine.safetensors"

    def kill(row, left):
        if row.epoch == epoch:
            raise Killed

    with pytest.raises(Killed):
        train(dataset, vectors, output, callbacks=Callbacks(epoch=kill))
    done = []
    callbacks = Callbacks(epoch=lambda row, left: done.append(row.epoch))
    train(dataset, vectors, output, resume=True, callbacks=callbacks)
    assert done == list(range(epoch + 1, 5))
    assert output.read_bytes() == unbroken[1]


@pytest.mark.parametrize("place", ["folder", "memory://runs/of mine"])
def test_a_checkpoint_in_another_folder_or_a_store_is_continued(dataset, vectors, unbroken, tmp_path, place):
    if "://" in place:
        pytest.importorskip("pyarrow", reason="needs pyarrow, the extra batch")
    fsspec = pytest.importorskip("fsspec", reason="needs fsspec") if "://" in place else None
    output, folder = tmp_path / "mine.safetensors", place if fsspec else tmp_path / place

    def kill(row, left):
        if row.epoch == 3:
            raise Killed

    if not fsspec:
        (tmp_path / place).mkdir()
    try:
        with pytest.raises(Killed):
            train(dataset, vectors, output, checkpoint=folder, callbacks=Callbacks(epoch=kill))
        assert list(tmp_path.glob("*.safetensors")) == []
        with pytest.raises(ValueError, match=r"/mine\.checkpoint\.safetensors is the checkpoint of an unfinished"):
            train(dataset, vectors, output, checkpoint=folder)
        done = []
        callbacks = Callbacks(epoch=lambda row, left: done.append(row.epoch))
        train(dataset, vectors, output, checkpoint=folder, resume=True, callbacks=callbacks)
        assert done == [4]
        assert output.read_bytes() == unbroken[1]
        left = fsspec.filesystem("memory").find("/runs") if fsspec else list((tmp_path / place).iterdir())
        assert left == []
    finally:
        for file in fsspec.filesystem("memory").find("/runs") if fsspec else ():
            fsspec.filesystem("memory").rm(file)


def test_a_checkpoint_is_safetensors_and_belongs_to_one_training(dataset, vectors, tmp_path):
    output = tmp_path / "mine.safetensors"
    with pytest.raises(TrainingStopped):
        train(dataset, vectors, output, callbacks=Callbacks(stop=lambda: True))
    with safe_open(checkpoint_of(output), "pt") as file:
        assert {"now.weight", "now.bias"} <= set(file.keys())
    arrays, state, _ = read_checkpoint(checkpoint_of(output))
    assert state["progress"]["step"] == 0
    with pytest.raises(ValueError, match=r"is of another training \(batch 8, now 4\); give its own options"):
        train(dataset, vectors, output, replace(SETTINGS, batch=4), resume=True)
    with pytest.raises(ValueError, match="another set of pictures"):
        train(replace(dataset, train=dataset.train[1:]), vectors, output, resume=True)
    other = small_resnet()
    other.get_parameter("head.dense_1.bias").data.zero_()
    with pytest.raises(ValueError, match="another network"):
        finetune(other, dataset, output, SETTINGS, cache=vectors, allow_leaks=True, resume=True)
    train(dataset, vectors, output, replace(SETTINGS, epochs=0, lr=1), resume=True)  # a rate may change on the way
    for text in (
        json.dumps({**state, "schema": 99}),
        json.dumps({**state, "progress": {**state["progress"], "ended": True}}),
        "{",
    ):
        save_file(arrays, checkpoint_of(output), {"training": text})
        with pytest.raises(ValueError, match=r"was written by another version; remove it to start again"):
            train(dataset, vectors, output, resume=True)


def test_a_loss_that_is_no_number_stops_and_leaves_the_last_good_epoch(dataset, vectors, tmp_path):
    output = tmp_path / "mine.safetensors"
    wild = replace(SETTINGS, lr=1e30, epochs=2)
    match = (
        r"the loss is NaN or infinite in epoch 3, at step 2 of 3 \(stage 2, learning rate 1e\+30\); give a lower rate,"
        r" such as --lr 1e\+29, and --resume to continue from epoch 2 in .*mine\.checkpoint\.safetensors"
    )
    with pytest.raises(ValueError, match=match):
        train(dataset, vectors, output, wild)
    assert not output.exists()
    arrays, state, _ = read_checkpoint(checkpoint_of(output))
    assert len(state["progress"]["history"]) == 2
    assert all(values.isfinite().all() for values in arrays.values())
    result = train(dataset, vectors, output, resume=True)  # at the lower rate, from there
    assert [row.stage for row in result.history] == [1, 1, 2, 2]


def test_a_full_disk_leaves_the_checkpoint_before(dataset, vectors, tmp_path):
    output, kept = tmp_path / "mine.safetensors", []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(row, left):
        kept.append(checkpoint_of(output).read_bytes())
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # what is written now is too long

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(OSError, match=r"mine\.checkpoint\.safetensors cannot be written .* is untouched"):
            train(dataset, vectors, output, callbacks=Callbacks(epoch=fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert [checkpoint_of(output).read_bytes()] == kept
    assert [path.name for path in tmp_path.iterdir()] == ["mine.checkpoint.safetensors"]


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(dataset, cache, command, tmp_path):
    weights, output = tmp_path / "small.safetensors", tmp_path / "mine.safetensors"
    save(small_resnet(), weights)
    data = dataset.train[0][0].parents[1]
    options = ("--batch-size", 8, "--epochs", 1, "--head-epochs", 3000, "--patience", 0, "--allow-leaks")

    def interrupt():
        while not checkpoint_of(output).exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        code, _, err = command("finetune", weights, data, "-o", output, *options)
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert code == 130
    assert "stopping after this step" in err
    assert "run the same command with --resume to continue" in err.splitlines()[-1]
    code, out, err = command("finetune", weights, data, "-o", output, *options[:-4], 3, "--allow-leaks")
    assert (code, out) == (1, "")
    assert "is the checkpoint of an unfinished training" in err


def test_fewer_epochs_end_a_stage_and_its_best_epoch_is_what_is_kept(dataset, vectors, tmp_path):
    output = tmp_path / "mine.safetensors"

    def kill(row, left):
        if row.epoch == 4:
            raise Killed

    with pytest.raises(Killed):
        train(dataset, vectors, output, replace(SETTINGS, epochs=9), callbacks=Callbacks(epoch=kill))
    with pytest.raises(ValueError, match=r"is of another training \(epochs 9, now 0\)"):
        train(dataset, vectors, output, replace(SETTINGS, epochs=0), resume=True)
    result = train(dataset, vectors, output, replace(SETTINGS, epochs=1), resume=True)
    assert len(result.history) == 4


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_goes_on_the_way_is_named(dataset, vectors, tmp_path, workers):
    gone = tmp_path / "gone.png"
    gone.write_bytes(dataset.train[0][0].read_bytes())
    replaced = replace(dataset, train=((gone, 0), *dataset.train[1:]))
    callbacks = Callbacks(layers=lambda rows: gone.unlink())
    with pytest.raises(OSError, match=r"gone\.png") as error:
        train(replaced, vectors, tmp_path / "mine.safetensors", workers=workers, callbacks=callbacks)
    assert "Traceback" not in str(error.value)


def test_what_is_read_is_no_output(dataset, cache, command, tmp_path):
    weights, table = tmp_path / "small.safetensors", tmp_path / "mine.history.csv"
    save(small_resnet(), weights)
    rows = [f"{path},{dataset.classes[label]}" for path, label in (*dataset.train, *dataset.val)]
    table.write_text("\n".join(["path,label", *rows]))
    before = table.read_bytes()
    code, _, err = command("finetune", weights, table, "-o", tmp_path / "mine.safetensors", "--batch-size", 8)
    assert (code, table.read_bytes()) == (1, before)
    assert "mine.history.csv would overwrite the input table; name another output" in err
    code, _, err = command("finetune", weights, table, "-o", weights)
    assert code == 1
    assert "would overwrite the input weights" in err


def test_a_table_of_pictures_may_be_called_as_the_weights_are(dataset, cache, command, tmp_path):
    weights, table = tmp_path / "small.safetensors", tmp_path / "mine.csv"
    save(small_resnet(), weights)
    rows = [f"{path},{dataset.classes[label]}" for path, label in (*dataset.train, *dataset.val)]
    table.write_text("\n".join(["path,label", *rows]))
    before = table.read_bytes()
    quick = ("--batch-size", 8, "--head-epochs", 1, "--epochs", 0, "--allow-leaks")
    for data in (table, dataset.train[0][0].parent.parent):  # beside a folder it lost its rows before
        code, _, err = command("finetune", weights, data, "-o", tmp_path / "mine.safetensors", *quick)
        assert code == 0, err
        assert table.read_bytes() == before


def keeping_the_last(output: Path) -> Callbacks:
    """Copies the checkpoint of the last epoch, whose parameters are those learnt last, whichever epoch was best."""

    def keep(row, left):
        if row.epoch == 4 and checkpoint_of(output).exists():
            shutil.copy(checkpoint_of(output), f"{output}.last")

    return Callbacks(epoch=keep)


TOGETHER = """
import json, os, sys
from dataclasses import asdict
from pathlib import Path
import torch
from convnets_torch.training.datasets import find_dataset
from convnets_torch.training.finetuning import finetune
from tests.finetuned import small_resnet
from tests.test_finetuning_resumed import DIVIDED, keeping_the_last
torch.set_num_threads(1)
data, output, cache = map(Path, sys.argv[1:])
result = finetune(
    small_resnet(), find_dataset(data), output, DIVIDED, cache=cache, allow_leaks=True,
    callbacks=keeping_the_last(output),
)
if os.environ["RANK"] == "0":
    Path(f"{output}.history").write_text(json.dumps([asdict(row) for row in result.history]))
"""
# Uneven shares of 24 pictures, and in the last step one picture for two processes.
DIVIDED = replace(SETTINGS, batch=23, dropout=False, views=2, precision="float32", lr=3e-4)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_from_the_same_batches(dataset, vectors, tmp_path):
    program, data = tmp_path / "together.py", dataset.train[0][0].parents[1]
    program.write_text(TOGETHER)
    output = tmp_path / "two.safetensors"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", str(program),
        str(data), str(output), str(tmp_path / "cache"),
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr
    found = json.loads(Path(f"{output}.history").read_text())
    one_output = tmp_path / "one.safetensors"
    alone = train(dataset, vectors, one_output, DIVIDED, callbacks=keeping_the_last(one_output))
    assert len(found) == len(alone.history) == 4
    for row, wanted in zip(found, map(asdict, alone.history), strict=True):
        for name in ("train_loss", "val_loss", "val_accuracy"):
            assert row[name] == pytest.approx(wanted[name], rel=1e-4), (name, row["epoch"])
    start = small_resnet().state_dict()
    one, two = (read_checkpoint(tmp_path / f"{name}.safetensors.last")[0] for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, values in one.items():
        torch.testing.assert_close(two[name], values, rtol=1e-3, atol=1e-5)
        if name.startswith("now.features"):  # what was learnt is little beside what was there
            learnt = values - start[name.removeprefix("now.")]
            assert (two[name] - values).norm() <= 0.02 * learnt.norm(), name
            assert learnt.norm() > 0, name

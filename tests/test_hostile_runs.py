"""Runs beside strangers' files: resume folders, checkpoints, tables, folders of modules, and disks that are full."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convnets_torch.card import Card
from convnets_torch.evaluation.evaluate import OutputFile, evaluate
from convnets_torch.evaluation.labels import find_truth, read_id_table, resolved_labels
from convnets_torch.heatmaps.api import heatmap
from convnets_torch.heatmaps.running import FolderStore
from convnets_torch.images.labelled import find_labelled
from convnets_torch.training.datasets import find_dataset
from convnets_torch.training.finetuning import checkpoint_of, finetune
from convnets_torch.training.running import Callbacks, TrainingStopped
from convnets_torch.weights import load, save
from tests.finetuned import COLORS, QUICK, draw_pictures, small_resnet

pytestmark = pytest.mark.hostile

ROOT = Path(__file__).parents[1]
PRECIOUS = b"precious" * 1000
SETTINGS = replace(QUICK, batch=23)  # two steps an epoch


@pytest.fixture(scope="module")
def pets(tmp_path_factory) -> Path:
    return draw_pictures(tmp_path_factory.mktemp("pictures") / "pets")


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Of three classes, called as the folders are."""
    made = small_resnet(3)
    assert made.card is not None
    made.card = replace(made.card, class_names=tuple(COLORS))
    path = tmp_path_factory.mktemp("weights") / "three.safetensors"
    save(made, path)
    return load(path)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8)


@pytest.fixture
def precious(tmp_path) -> Path:
    path = tmp_path / "precious.txt"
    path.write_bytes(PRECIOUS)
    return path


def evaluated(network, pets, folder):
    return evaluate(network, find_truth(network.card, pets), batch=4, store=folder)


# Links


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_outputs_that_lead_elsewhere_are_not_written_to(network, pets, tmp_path, precious, link):
    evaluated(network, pets, tmp_path / "outputs")
    (tmp_path / "outputs" / "outputs.f32").unlink()
    link(precious, tmp_path / "outputs" / "outputs.f32")
    with pytest.raises(OSError, match=r"outputs\.f32 is (a link|the same file as another one)"):
        evaluated(network, pets, tmp_path / "outputs")
    assert precious.read_bytes() == PRECIOUS


@pytest.mark.parametrize("name", ["rows-0000000.npz", "run.json", "rows-0000099.npz"])
def test_rows_that_lead_elsewhere_are_not_taken(network, photo, tmp_path, precious, name):
    heatmap(network, photo, "ant", resume=tmp_path / "rows")
    (tmp_path / "rows" / name).unlink(missing_ok=True)
    (tmp_path / "rows" / name).symlink_to(precious)
    with pytest.raises(OSError, match=rf"{name} is a link"):
        heatmap(network, photo, "ant", resume=tmp_path / "rows")
    assert precious.read_bytes() == PRECIOUS


def test_folders_of_outputs_that_lead_elsewhere_are_not_written_to(network, photo, tmp_path, command):
    few = draw_pictures(tmp_path / "few", 2)
    (tmp_path / "far").mkdir()
    for name in ("rows/scale-0", "maps/ant", "cams/ant"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).symlink_to(tmp_path / "far")
    with pytest.raises(OSError, match="scale-0 is a link"):
        heatmap(network, photo, "ant", resume=tmp_path / "rows", scales=(1, 1.5))
    weights = tmp_path / "three.safetensors"
    save(network, weights)
    for arguments in (("heatmap", weights, few, "--target", "ant", "-o", tmp_path / "maps"),
                      ("gradcam", weights, few, "--target", "ant", "-o", tmp_path / "cams")):  # fmt: skip
        code, _, error = command(*arguments)
        assert code == 1
        assert "ant is a link" in error
    assert len(list((tmp_path / "maps" / "bee").iterdir())) == len(list((tmp_path / "cams" / "cat").iterdir())) == 2
    assert not list((tmp_path / "far").iterdir())


def test_one_process_at_a_time_works_in_a_folder(network, photo, pets, tmp_path):
    from convnets_torch.heatmaps.running import CellQuery

    store = FolderStore(tmp_path / "rows", "another", CellQuery(), 3)
    outputs = OutputFile(tmp_path / "outputs", {}, 30, 3)
    with pytest.raises(OSError, match=r"another process works in .*rows; wait for its end, or name another folder"):
        heatmap(network, photo, "ant", resume=tmp_path / "rows")
    with pytest.raises(OSError, match=r"another process works in .*outputs"):
        evaluated(network, pets, tmp_path / "outputs")
    store.close()
    outputs.close()
    with pytest.raises(ValueError, match="holds rows of another run"):
        heatmap(network, photo, "ant", resume=tmp_path / "rows")


# What the files of a run hold


LINES: dict[str, Any] = {
    "no object": 7,
    "no fields": {},
    "texts": {"done": "4", "rows": "4", "crc32": "0", "failed": {}, "remarks": []},
    "negative rows": {"done": 4, "rows": -4, "crc32": 0, "failed": {}, "remarks": []},
    "rows beyond all memory": {"done": 4, "rows": 10**18, "crc32": 0, "failed": {}, "remarks": []},
    "more pictures than there are": {"done": 10**9, "rows": 30, "crc32": 0, "failed": {}, "remarks": []},
    "no picture done": {"done": 0, "rows": 0, "crc32": 0, "failed": {}, "remarks": []},
    "failed ones that it does not speak of": {
        "done": 4, "rows": 0, "crc32": 0, "failed": {str(n): "" for n in range(4, 8)}, "remarks": [],
    },
    "failed as a list": {"done": 4, "rows": 4, "crc32": 0, "failed": [], "remarks": []},
    "remarks of numbers": {"done": 4, "rows": 0, "crc32": 0, "failed": dict.fromkeys("0123", "x"), "remarks": [7]},
    "numbers of 10,000 digits": b'{"done": ' + b"9" * 10_000 + b"}\n",
    "lists within lists": b"[" * 100_000 + b"\n",
    "no text": b"\xff\xfe\n",
    "a million lines": b'{"done": 0, "rows": 0, "crc32": 0, "failed": {}, "remarks": []}\n' * 1_000_000,
}  # fmt: skip


@pytest.mark.parametrize("line", LINES.values(), ids=LINES.keys())
def test_lines_that_no_run_writes_are_cut_off(tmp_path, line):
    written = OutputFile(tmp_path / "outputs", {}, 30, 3)
    written.add(np.ones((30, 3), np.float32), {}, [], 30)
    written.close()
    (tmp_path / "outputs" / "done.jsonl").write_bytes(
        line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n"
    )
    start = time.monotonic()
    found = OutputFile(tmp_path / "outputs", {}, 30, 3)
    found.close()
    assert (found.done, found.failed, found.notes) == (0, {}, [])
    assert not (tmp_path / "outputs" / "done.jsonl").stat().st_size
    assert not (tmp_path / "outputs" / "outputs.f32").stat().st_size
    assert time.monotonic() - start < 30


def test_outputs_that_no_network_gives_are_computed_again(network, pets, tmp_path):
    from zlib import crc32

    whole = evaluated(network, pets, tmp_path / "outputs")
    data = np.full((30, 3), np.nan, "<f4").tobytes()
    (tmp_path / "outputs" / "outputs.f32").write_bytes(data)
    entry = {"done": 30, "rows": 30, "crc32": crc32(data), "failed": {}, "remarks": []}
    (tmp_path / "outputs" / "done.jsonl").write_text(json.dumps(entry) + "\n")
    np.testing.assert_array_equal(evaluated(network, pets, tmp_path / "outputs").logits, whole.logits)


def changed(**arrays):
    """Writes a file of rows anew with other arrays."""

    def write(path: Path) -> None:
        with np.load(path) as file:
            kept = {name: file[name] for name in file.files}
        np.savez(path, **{**kept, **{name: change(kept.get(name)) for name, change in arrays.items()}})

    return write


def packed(path: Path) -> None:
    """Gigabytes of zeros in a few kilobytes, under a header that says so."""
    header = b"\x93NUMPY\x01\x00" + struct.pack("<H", 118)
    header += b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1073741824, 8)}".ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("best.npy", "w") as file:
        file.write(header)
        file.write(bytes(1 << 24))


ROWS = {
    "objects": changed(best=lambda _: np.array([{}, 1], object)),
    "another shape": changed(best=lambda values: values[:, :, :-1]),
    "no rows": changed(best=lambda values: values[:, :0]),
    "more rows than the map": changed(best=lambda values: np.repeat(values, 99, 1)),
    "another kind": changed(best=lambda values: values.astype("f8")),
    "NaN": changed(sums=lambda values: values * np.nan),
    "above 1": changed(sums=lambda values: values + 1),
    "below 0": changed(best=lambda values: -values - 1),
    "classes that there are not": changed(best_ids=lambda values: values + 3),
    "an array more": changed(more=lambda _: np.zeros(1)),
    "gigabytes": packed,
    "no archive": lambda path: path.write_bytes(b"PK\x03\x04" * 1000),
}


@pytest.mark.parametrize("spoil", ROWS.values(), ids=ROWS.keys())
def test_rows_that_no_pass_keeps_are_computed_again(network, photo, tmp_path, spoil):
    whole = heatmap(network, photo, "ant", resume=tmp_path / "rows")
    spoil(tmp_path / "rows" / "rows-0000000.npz")
    told: list[tuple[int, int]] = []
    found = heatmap(network, photo, "ant", resume=tmp_path / "rows", progress=lambda *done: told.append(done))
    assert told[0][0] == 0  # nothing was taken
    np.testing.assert_array_equal(found.values, whole.values)


def test_files_with_other_names_are_no_rows(network, photo, tmp_path):
    whole = heatmap(network, photo, "ant", resume=tmp_path / "rows")
    for name in ("rows-x.npz", f"rows-{'9' * 99}.npz", "rows--1.npz"):
        (tmp_path / "rows" / name).write_bytes(b"")
    np.testing.assert_array_equal(heatmap(network, photo, "ant", resume=tmp_path / "rows").values, whole.values)


# Checkpoints


@pytest.fixture(scope="module")
def begun(pets, tmp_path_factory):
    """A dataset, a folder of its features, and the checkpoint of a training that was stopped in stage two."""
    folder, dataset = tmp_path_factory.mktemp("begun"), find_dataset(pets)
    output = folder / "mine.safetensors"
    told: list[int] = []
    callbacks = Callbacks(epoch=lambda row, left: told.append(row.stage), stop=lambda: 2 in told)
    with pytest.raises(TrainingStopped):
        finetune(
            small_resnet(),
            dataset,
            output,
            SETTINGS,
            cache=folder / "cache",
            allow_leaks=True,
            workers=0,
            callbacks=callbacks,
        )
    return dataset, folder / "cache", checkpoint_of(output).read_bytes()


def resumed(begun, output: Path, content: bytes):
    dataset, cache, _ = begun
    checkpoint_of(output).write_bytes(content)
    return finetune(small_resnet(), dataset, output, SETTINGS, cache=cache, allow_leaks=True, resume=True, workers=0)


def taken_apart(content: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Header and state of a checkpoint, and the bytes of its arrays."""
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:end])
    return header, json.loads(header["__metadata__"]["training"]), content[end:]


def put_together(header: dict[str, Any], state: Any, data: bytes) -> bytes:
    header["__metadata__"]["training"] = json.dumps(state)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


STATES: dict[str, Any] = {
    "a stage that there is not": lambda state: state["progress"].update(stage=3),
    "a stage as text": lambda state: state["progress"].update(stage="2"),
    "a step behind the last": lambda state: state["progress"].update(step=10**6, rows=10**6),
    "a step of no rows": lambda state: state["progress"].update(step=1),
    "a negative step": lambda state: state["progress"].update(step=-1, rows=-1),
    "a loss of text": lambda state: state["progress"].update(loss="x"),
    "a loss that is infinite": lambda state: state["progress"].update(loss=float("inf")),
    "no history": lambda state: state["progress"].update(history=[]),
    "history as text": lambda state: state["progress"].update(history="x"),
    "epochs of another stage": lambda state: state["progress"]["history"][0].update(stage=9),
    "epochs in another order": lambda state: state["progress"]["history"].reverse(),
    "an epoch twice": lambda state: state["progress"]["history"].append(state["progress"]["history"][0]),
    "accuracy of NaN": lambda state: state["progress"]["history"][0].update(val_accuracy=float("nan")),
    "accuracy of 2": lambda state: state["progress"]["history"][0].update(val_accuracy=2.0),
    "no accuracy": lambda state: state["progress"]["history"][0].update(val_accuracy=None),
    "two measures": lambda state: state["progress"]["history"][0].update(val_mean_average_precision=0.5),
    "settings as text": lambda state: state.update(settings="x"),
    "no settings": lambda state: state.pop("settings"),
    "another field": lambda state: state["progress"].update(more=1),
    "nothing": lambda state: state.clear(),
    "numbers of 1,000 digits": lambda state: state["progress"].update(step=10**999),
}


@pytest.mark.parametrize("spoil", STATES.values(), ids=STATES.keys())
def test_a_checkpoint_that_no_training_wrote_is_refused(begun, tmp_path, spoil):
    header, state, data = taken_apart(begun[2])
    spoil(state)
    content = put_together(header, state, data)
    with pytest.raises(
        ValueError, match=r"mine\.checkpoint\.safetensors (is damaged|was written by another version).*; remove it"
    ) as caught:
        resumed(begun, tmp_path / "mine.safetensors", content)
    assert len(str(caught.value)) < 1000
    assert checkpoint_of(tmp_path / "mine.safetensors").read_bytes() == content


def test_arrays_that_are_not_the_trainings_are_refused(begun, tmp_path):
    def arrays(content, change):
        from safetensors.numpy import load as unpack
        from safetensors.numpy import save as pack

        found = unpack(content)
        change(found)
        return pack(found, json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])["__metadata__"])

    name = "now.head.dense_1.weight"
    spoilt = {
        f"{name}.* missing or unknown": lambda found: found.pop(name),
        "head.dense_1.weight is .*, not": lambda found: found.update({name: found[name][:2]}),
        "values that are NaN": lambda found: found.update({name: found[name] * np.nan}),
        r"before.weight is \(9,\)": lambda found: found.update({"before.weight": np.zeros(9, np.float32)}),
        "momentum_buffer": lambda found: found.pop(next(key for key in found if key.endswith("momentum_buffer"))),
    }
    for match, change in spoilt.items():
        match = match.replace("now.head.dense_1.weight", r"head\.dense_1\.weight")
        with pytest.raises(ValueError, match=rf"checkpoint\.safetensors is damaged \(.*{match}"):
            resumed(begun, tmp_path / "mine.safetensors", arrays(begun[2], change))


def test_a_checkpoint_of_gigabytes_or_behind_a_link_is_refused(begun, tmp_path, precious):
    output = tmp_path / "mine.safetensors"
    checkpoint = checkpoint_of(output)
    dataset, cache, content = begun
    checkpoint.symlink_to(precious)
    options: dict[str, Any] = {"cache": cache, "allow_leaks": True, "resume": True, "workers": 0}
    with pytest.raises(OSError, match=r"mine\.checkpoint\.safetensors is a link"):
        finetune(small_resnet(), dataset, output, SETTINGS, **options)
    checkpoint.unlink()
    checkpoint.write_bytes(content)
    os.truncate(checkpoint, 1 << 40)
    with pytest.raises(ValueError, match=r"is damaged \(it has 1,099,511,627,776 bytes"):
        finetune(small_resnet(), dataset, output, SETTINGS, **options)
    assert precious.read_bytes() == PRECIOUS


def test_a_cache_of_features_that_leads_elsewhere_is_refused(begun, tmp_path):
    dataset, cache, _ = begun
    [kind] = cache.iterdir()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / kind.name).symlink_to(kind)
    with pytest.raises(OSError, match=f"{kind.name} is a link"):
        finetune(small_resnet(), dataset, tmp_path / "mine.safetensors", SETTINGS, cache=tmp_path / "cache")
    (tmp_path / "cache" / kind.name).unlink()
    shutil.copytree(kind, tmp_path / "cache" / kind.name)
    [part] = (tmp_path / "cache" / kind.name).iterdir()
    content = part.read_bytes()
    part.write_bytes(content.replace(b'"F32"', b'"I32"'))  # as many bytes, which are no vectors
    told = []
    callbacks = Callbacks(found=lambda features, leaks: told.append(features))
    with pytest.raises(ValueError, match="nearly the same"):
        finetune(
            small_resnet(), dataset, tmp_path / "mine.safetensors", SETTINGS, cache=tmp_path / "cache",
            leak_threshold=0.01, callbacks=callbacks,
        )  # fmt: skip
    assert told[0].computed == 30
    assert "its vectors are computed again" in told[0].notes[0]


# Tables, files of labels, and folders


def test_tables_that_nobody_writes_are_refused_in_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr("convnets_torch.images.labelled.MOST_ROWS", 10_000)
    table = tmp_path / "data.csv"
    contents = {
        b"path,label\n1.png," + b"a" * 10_000_000: r"line 2 has more than 65,536 characters",
        b"path,label\n1.png,a\0b\n": "line 2 has a NUL byte",
        b"path,label\n1.png,\xff\n": "is not UTF-8 text",
        b"\xff\xfepat": "is not UTF-16 text",
        "path,label\n1.png,a\n".encode("utf-16-le"): "line 1 has a NUL byte",
        b"path,label" + b",x" * 20_000 + b"\n1.png,a\n": "more than 1,000 columns",
        b'path,label\n1.png,"' + (b"a" * 60_000 + b"\n") * 4 + b'"\n': "field larger than field limit",
        b"path,label\n1.png," + b"a" * 1001: "a class of 1001, but 4096 and 1000 are the maximum",
        b"path,label\n" + b"a" * 5000 + b",b": "a path of 5000 characters",
        b"path,label\n" + b"a,b\n" * 10_001: "more than 10,000 lines",
    }
    start = time.monotonic()
    for content, match in contents.items():
        table.write_bytes(content)
        with pytest.raises(ValueError, match=match):
            find_labelled(table)
    os.truncate(table, 10 << 30)
    with pytest.raises(ValueError, match="has 10,737,418,240 bytes"):
        find_labelled(table)
    assert time.monotonic() - start < 40


def test_tables_name_files_that_are_some(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")  # which is one picture with an error
    for name in ("/dev/zero", "/dev/stdin"):
        (tmp_path / "data.csv").write_text(f"path,label\n{name},a\n")
        with pytest.raises(OSError, match="1 of 1 files are missing"):
            find_labelled(tmp_path / "data.csv")


def test_files_of_labels_that_nobody_writes_are_refused_in_seconds(pets, network, tmp_path):
    truth = tmp_path / "truth.txt"
    contents = {
        b"ant\n" * 2_000_002: "has more than 2,000,000 lines",
        b"\x0b" * 2_000_001: "line 1 has more than 65,536 characters",
        b"a" * 6000: "a class of 6000, but 4096 and 1000 are the maximum",
        b"a\0b\n": "line 1 has a NUL byte",
        b"\xff\xfea": "is not UTF-16 text",
    }
    for content, match in contents.items():
        truth.write_bytes(content)
        with pytest.raises(ValueError, match=match):
            find_truth(network.card, pets / "ant", truth=truth)
    os.truncate(truth, 10 << 30)
    for read in (read_id_table, lambda truth: find_truth(network.card, pets / "ant", truth=truth)):
        with pytest.raises(ValueError, match="has 10,737,418,240 bytes"):
            read(truth)
    truth.write_text("x,y\n" * 1_000_000)
    with pytest.raises(ValueError, match=r"has 1000000 lines, but .* holds 10 pictures"):
        find_truth(network.card, pets / "ant", truth=truth)
    truth.write_text(",\n" + "".join(f"{number}.png ant\n" for number in range(10)))  # a header without words
    with pytest.raises(ValueError, match=r"1 lines are no name and label \(line 1: ','\)"):
        find_truth(network.card, pets / "ant", truth=truth)
    truth.write_text("".join(f"{number}.png ant\n" for number in range(10)))
    assert not find_truth(network.card, pets / "ant", truth=truth).labels.any()


def test_many_unknown_labels_are_refused_in_seconds():
    from convnets_torch.images.preprocessing import preset

    card = Card("resnet50", {"classes": 1000}, preset("resnet50", "torchvision"), "imagenet-1k")
    start = time.monotonic()
    with pytest.raises(ValueError, match="truth: 100 of 100 labels are none of"):
        resolved_labels(card, [f"xq{number}" for number in range(1_000_000)], "truth")
    assert time.monotonic() - start < 40


def test_a_picture_of_gigabytes_is_refused_by_itself(network, pets, tmp_path):
    shutil.copytree(pets, tmp_path / "pets")
    huge = tmp_path / "pets" / "ant" / "huge.png"
    shutil.copy(pets / "ant" / "1.png", huge)
    os.truncate(huge, 4 << 40)
    start = time.monotonic()
    dataset = find_dataset(tmp_path / "pets")
    found = []
    callbacks = Callbacks(found=lambda features, leaks: found.append(features))
    with pytest.raises(ValueError, match="nearly the same"):
        finetune(
            small_resnet(), dataset, tmp_path / "mine.safetensors", SETTINGS, cache=tmp_path / "cache",
            leak_threshold=0.01, callbacks=callbacks,
        )  # fmt: skip
    assert [*found[0].failed] == [huge]
    assert time.monotonic() - start < 30


@pytest.mark.slow
def test_twenty_thousand_class_folders_are_listed_in_seconds(tmp_path):
    """Once each was looked for in the list of all the others."""
    for number in range(20_000):
        (tmp_path / f"{number}.png").mkdir()
    start = time.monotonic()
    assert len(find_labelled(tmp_path).empty) == 20_000
    assert time.monotonic() - start < 20


# Processes


SPAWNED = """
import multiprocessing, sys
from pathlib import Path
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    from convnets_torch.images.preprocessing import preset
    from convnets_torch.training.augmentation import AUGMENTATIONS
    from convnets_torch.training.datasets import ViewedPictures, loaded
    views = ViewedPictures(
        [Path("1.png")], ["ant"], ["0" * 64], preset("resnet50", "torchvision", 64), AUGMENTATIONS["none"], 0
    )
    print(*[batch.shape for batch in loaded(views, [[(0, 0)]], 1)])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="there the processes start in Python's own folder")
def test_workers_import_nothing_from_the_current_folder(tmp_path):
    """On macOS, and on Linux from Python 3.14 on, they are new interpreters, which look into that folder first."""
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    for name in ("multiprocessing", "socket", "re", "enum", "json", "random", "torch", "numpy"):
        (downloads / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write('{name} ')\n")
    Image.new("RGB", (80, 80)).save(downloads / "1.png")
    (tmp_path / "spawned.py").write_text(SPAWNED)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "spawned.py")], cwd=downloads, capture_output=True, text=True, check=False
    )
    assert not (tmp_path / "ran").exists()
    assert done.stdout == "torch.Size([1, 64, 64, 3])\n", done.stderr


ENGINE = """
import sys
began = []
sys.addaudithook(lambda name, args: began.append(args) if name in ("os.fork", "socket.connect") else None)
import torch
from convnets_torch.inference.engines import engine
engine(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 2)).eval(), size=8, precision="float32")
print(began)
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("openvino") is None, reason="no OpenVINO")
def test_the_engine_tells_nobody_of_its_use(tmp_path):
    """OpenVINO counts its imports and conversions in the home folder, and sends them to its makers from processes."""
    environment = {key: value for key, value in os.environ.items() if key not in ("CI", "TF_BUILD", "JENKINS_URL")}
    environment["HOME"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", ENGINE], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
    assert not (tmp_path / "intel").exists()


FULL = """
import resource, sys, torch
from pathlib import Path
from convnets_torch.inference.export import _write_pt2
from convnets_torch.files import replacing
program = torch.export.export(torch.nn.Linear(512, 512), (torch.zeros(1, 512),))
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
try:
    with replacing(sys.argv[1]) as temporary:
        _write_pt2(program, temporary, None)
except OSError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_disk_that_is_full_ends_no_process(tmp_path):
    path = tmp_path / "x.pt2"
    path.write_bytes(PRECIOUS)
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == f"{path} cannot be written (File too large); what was there before is untouched\n", done
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == {"x.pt2": PRECIOUS}


FULL_OF_OUTPUTS = """
import resource, sys
import numpy as np
from pathlib import Path
from convnets_torch.evaluation.evaluate import OutputFile
outputs = OutputFile(Path(sys.argv[1]), {}, 60, 3)
outputs.add(np.ones((30, 3), np.float32), {}, [], 30)
resource.setrlimit(resource.RLIMIT_FSIZE, (400, resource.RLIM_INFINITY))
try:
    outputs.add(np.ones((30, 3), np.float32), {}, [], 60)
finally:
    outputs.close()
"""


@pytest.mark.slow
def test_a_disk_that_is_full_loses_no_finished_outputs(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_OF_OUTPUTS, tmp_path / "outputs"], cwd=ROOT, capture_output=True, text=True
    )
    assert re.search(
        r"OSError: outputs cannot be written to .*outputs \(File too large\); free some space", done.stderr
    )
    again = OutputFile(tmp_path / "outputs", {}, 60, 3)
    again.close()
    assert again.done == 30

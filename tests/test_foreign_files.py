"""Models of other frameworks and formats are refused as what they are, by their content, with the way on."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters import audit, convert, read_keras
from convnets_torch import export, load
from tests.reference.goldens import DATA

ARCHIVE = DATA / "keras305/vgg16.keras"
LAYERS = {f"conv{block}_{number}": (3, 3, 2, 2) for block, depth in enumerate((2, 2, 3, 3, 3), 1)
          for number in range(1, depth + 1)} | {f"fc{number}": (2, 2) for number in (6, 7, 8)}  # fmt: skip


def field(number: int, content: bytes) -> bytes:
    """One field of a Protocol Buffers message, of at most 16,383 bytes."""
    size = len(content)
    return bytes([number << 3 | 2, *([size] if size < 128 else [size & 0x7F | 0x80, size >> 7])]) + content


def node(name: bytes, operation: bytes) -> bytes:
    """A node of a TensorFlow graph, `NodeDef`: name, op, and an attribute."""
    return field(1, name) + field(2, operation) + field(5, field(1, b"dtype") + field(2, b"\x30\x01"))


GRAPH = field(1, node(b"input_1", b"Placeholder")) + field(1, node(b"conv1/kernel", b"Const")) * 300  # a GraphDef
SAVED_MODEL = b"\x08\x01" + field(2, field(1, field(4, b"serve")) + field(2, GRAPH[:9000]))  # SavedModel, MetaGraphDef


def config() -> str:
    with zipfile.ZipFile(ARCHIVE) as archive:
        return archive.read("config.json").decode()


def folder(name: str, content: bytes = b""):
    def make(path: Path) -> None:
        path.mkdir()
        (path / "variables").mkdir()
        (path / name).write_bytes(content)

    return make


def unzipped(path: Path) -> None:
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(path)


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("my_model/saved_model.pb", SAVED_MODEL)
        archive.writestr("my_model/variables/variables.index", b"x")


def written(content: bytes | str):
    return lambda path: path.write_bytes(content.encode() if isinstance(content, str) else content)


def frossard(path: Path) -> None:
    arrays: dict[str, Any] = {f"{name}_{role}": np.zeros(shape) for name, shape in LAYERS.items() for role in "Wb"}
    np.savez(path, **arrays)


def alexnet(path: Path) -> None:
    np.save(path, np.array({"conv1": [np.zeros((11, 11, 3, 96)), np.zeros(96)]}, object), allow_pickle=True)


TABLE = b"\x00" * 100 + (0xDB4775248B80FB57).to_bytes(8, "little")  # of LevelDB
KINDS = {  # what it is -> (file or folder, how it is made, sentence)
    "SavedModel": ("model", folder("saved_model.pb", SAVED_MODEL), "is a TensorFlow SavedModel; load it in Keras and"),
    "its graph": ("saved_model.pb", written(SAVED_MODEL), "is a TensorFlow SavedModel; load it in Keras and"),
    "a zip of it": ("model.zip", zipped, "is a zip of a TensorFlow SavedModel; unzip it, load it in Keras"),
    "frozen": ("frozen.pb", written(GRAPH), "is a frozen TensorFlow graph, which has lost its Keras layers"),
    "index": ("model.ckpt.index", written(TABLE), "is of a TensorFlow checkpoint, .* load it with load_weights and"),
    "shard": ("model.ckpt.data-00000-of-00001", written(b"\x00\x01\x02\x03" * 99), "is of a TensorFlow checkpoint"),
    "checkpoint": ("run", folder("model.ckpt.index", TABLE), "is of a TensorFlow checkpoint"),
    "TensorFlow Lite": ("model.tflite", written(b"\x1c\0\0\0TFL3" + bytes(99)), "is a TensorFlow Lite model"),
    "architecture": ("model.json", written(config()), "is the architecture of a Keras model, without weights"),
    "TensorFlow.js": (
        "model.json",
        written(json.dumps({"format": "layers-model", "modelTopology": json.loads(config()), "weightsManifest": []})),
        "is a TensorFlow.js model; make an .h5 of it with tensorflowjs_converter",
    ),
    "folder of TensorFlow.js": ("web", folder("model.json", b"{}"), "is a TensorFlow.js model"),
    "JSON": ("labels.json", written('{"0": "cat"}'), "is a JSON file, without weights; give a weights file"),
    "JSON without end": ("deep.json", written("{\"a\":" * 5000), "is a JSON file, without weights"),
    "unzipped": ("model.keras", unzipped, r"is the folder of an unzipped \.keras; zip its files, and convert the zip"),
    "Frossard's VGG16": ("vgg16_weights.npz", frossard, "is Frossard's VGG16 .* so convert vgg16_weights_tf_dim_order"),
    "arrays": ("some.npz", lambda path: np.savez(path, a=np.zeros(3)), "has arrays of NumPy, but no Keras layers; set"),
    "one array": ("one.npy", lambda path: np.save(path, np.zeros(3)), "has arrays of NumPy, but no Keras layers"),
    "Caffe's AlexNet": ("bvlc_alexnet.npy", alexnet, r"pickled objects, as Caffe's bvlc_alexnet\.npy is, and"),
}  # fmt: skip


@pytest.mark.parametrize("what", KINDS)
def test_a_file_of_another_kind_is_refused_as_what_it_is(what, tmp_path, command):
    name, make, sentence = KINDS[what]
    path, out = tmp_path / name, tmp_path / "out.safetensors"
    make(path)
    with pytest.raises(ValueError, match=sentence) as caught:
        convert(path, out)
    assert str(caught.value).startswith(str(path))
    with pytest.raises(ValueError, match=sentence):
        read_keras(path)
    code, printed, error = command("convert", path, "-o", out)
    assert (code, printed, "\n" in error.strip()) == (1, "", False)
    if path.is_file() and path.suffix != ".zip":  # by its content, whatever it is called
        other = tmp_path / "renamed.h5"
        shutil.copy(path, other)
        if what != "shard":
            with pytest.raises(ValueError, match=sentence):
                convert(other, out)
            assert sentence.split(" ")[1] in audit(other).refused
    assert not out.exists()


@pytest.mark.slow
def test_an_onnx_model_is_refused_as_what_it_is(tmp_path):
    weights, path, out = tmp_path / "vgg16.safetensors", tmp_path / "vgg16.onnx", tmp_path / "out.safetensors"
    convert(DATA / "keras231/vgg16_last_model.h5", weights, preprocessing="unit")
    export(load(weights), path)
    with pytest.raises(ValueError, match="is an ONNX model, which has lost its Keras layers; convert the Keras model"):
        convert(path, out)


def test_other_files_and_folders_keep_their_sentences(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder; name a file"):
        convert(tmp_path / "empty", tmp_path / "out.safetensors")
    for number, content in enumerate(
        (b"\n", b"\n\xff\xff\xff\xff\xff\xff", b"\n\x03\n\xf0a", b"\x08", b"{", b"\n\n\n\n\n")
    ):
        path = tmp_path / f"{number}.bin"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"is a JSON file|is neither HDF5"):
            convert(path, tmp_path / "out.safetensors")

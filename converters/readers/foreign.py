"""Recognise files of other kinds by their content, so that each is refused as what it is, with the way on."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import IO

from converters.readers.keras_archive import BROKEN_ZIP, MOST_JSON, WEIGHTS
from convnets_torch import files
from convnets_torch.files import open_file

MOST_ENTRIES = 1000  # of a folder that are looked at
HEAD = 256  # bytes of a file that are looked at
TABLE = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"  # the last bytes of a TensorFlow checkpoint's index, a LevelDB table
ONNX = re.compile(rb"\x08[\x03-\x20][\x12\x1a\x22\x28\x32\x3a\x42]")  # version of the format, then another field
OBJECTS = re.compile(rb"\x93NUMPY.{2,8}\{'descr': '\|O", re.DOTALL)
SHARD = re.compile(r"\.data-\d{5}-of-\d{5}$")  # bare numbers, so that only the name tells them
FROSSARDS = {"conv1_1_W.npy", "conv5_3_W.npy", "fc6_W.npy", "fc8_b.npy"}

SAVE = "load it in Keras and save it as .keras, then convert that"
ORIGIN = "has lost its Keras layers; convert the Keras model that it was made from"
SAVED_MODEL = f"is a TensorFlow SavedModel; {SAVE}"
CHECKPOINT = (
    "is of a TensorFlow checkpoint, which has no Keras layers; build its model in Keras, load it with load_weights and"
    " save the model as .keras, then convert that"
)
ONNX_MODEL = f"is an ONNX model, which {ORIGIN}"
LITE = f"is a TensorFlow Lite model, which {ORIGIN}"
FROZEN = f"is a frozen TensorFlow graph, which {ORIGIN}"
UNZIPPED = "is the folder of an unzipped .keras; zip its files, and convert the zip"
TENSORFLOW_JS = (
    "is a TensorFlow.js model; make an .h5 of it with tensorflowjs_converter --input_format=tfjs_layers_model"
    " --output_format=keras, then convert that"
)
ARCHITECTURE = (
    "is the architecture of a Keras model, without weights; build it in Keras, load its weights and save it as .keras,"
    " then convert that"
)
JSON = "is a JSON file, without weights; give a weights file"
PICKLED = (
    "is a NumPy file of pickled objects, as Caffe's bvlc_alexnet.npy is, and reading one can run code; build its model"
    " in Keras, set its weights there if you trust the file, and save the model as .keras, then convert that"
)
ARRAYS = (
    "has arrays of NumPy, but no Keras layers; set them as the weights of a Keras model and save it as .keras, then"
)
ARRAYS += " convert that"
FROSSARD = (
    "is Frossard's VGG16 as arrays of NumPy; its weights are those of Keras Applications, so convert"
    " vgg16_weights_tf_dim_ordering_tf_kernels.h5 instead"
)


def check_folder(path: Path) -> None:
    """Raise ValueError if `path` is the folder of a model."""
    if not path.is_dir():
        return
    with os.scandir(path) as entries:
        names = {entry.name for entry, _ in zip(entries, range(MOST_ENTRIES), strict=False)}
    for name, words in (("saved_model.pb", SAVED_MODEL), (WEIGHTS, UNZIPPED), ("model.json", TENSORFLOW_JS)):
        if name in names:
            raise ValueError(f"{path} {words}")
    if any(name.endswith(".index") for name in names):
        raise ValueError(f"{path} {CHECKPOINT}")


def check_foreign(path: Path, file: IO[bytes]) -> None:
    """Raise ValueError if an open file, which is neither HDF5 nor a zip, is a model of another kind."""
    if words := _words(path, file):
        raise ValueError(f"{path} {words}")


def _words(path: Path, file: IO[bytes]) -> str | None:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - len(TABLE)))
    end = file.read()
    file.seek(0)
    head = file.read(HEAD)
    if end == TABLE or SHARD.search(path.name):
        return CHECKPOINT
    if head[4:8] == b"TFL3":
        return LITE
    if head.startswith(b"\x08\x01\x12"):  # version 1 of the format, then a graph
        return SAVED_MODEL
    if ONNX.match(head):
        return ONNX_MODEL
    if head.startswith(b"\x93NUMPY"):
        return PICKLED if OBJECTS.match(head) else ARRAYS
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return _json(path)
    return FROZEN if _is_graph(head) else None


def _json(path: Path) -> str:
    try:
        with open_file(path, max_bytes=MOST_JSON) as file:
            found = files.loads(file.read())
    except ValueError:
        return JSON
    if "modelTopology" in found:
        return TENSORFLOW_JS
    return ARCHITECTURE if "class_name" in found and "config" in found else JSON


def _is_graph(head: bytes) -> bool:
    """Return whether bytes begin with the first node of a TensorFlow graph: its length, its name, its operation.

    >>> _is_graph(b"\\x0a\\x19\\x0a\\x05input\\x12\\x0bPlaceholder*..."), _is_graph(b"\\x0a\\x0a and more")
    (True, False)
    """
    found = re.match(rb"\x0a(?:[\x80-\xff]{0,4}[\x00-\x7f])\x0a(.)", head, re.DOTALL)
    if found is None:
        return False
    after = head[found.end() + found[1][0] :]
    operation = after[2 : 2 + after[1]] if after[:1] == b"\x12" and len(after) > 2 else b""
    return operation.isalnum() and operation[:1].isupper()


def kind_of_zip(path: str) -> str:
    """Return whether a zip is "pytorch" or "keras"; "pytorch" also for a broken one, whose problem its reader reports.

    Raises:
        ValueError: it is of another kind.
    """
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except BROKEN_ZIP:
        return "pytorch"
    if any(name.endswith("/data.pkl") for name in names):
        return "pytorch"
    if WEIGHTS in names:
        return "keras"
    if any(name.endswith("saved_model.pb") for name in names):
        raise ValueError(f"{path} is a zip of a TensorFlow SavedModel; unzip it, {SAVE}")
    if names and all(name.endswith(".npy") for name in names):
        raise ValueError(f"{path} {FROSSARD if FROSSARDS.issubset(names) else ARRAYS}")
    return "keras"

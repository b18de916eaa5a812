"""Reading the files of every Keras: what stands in them, against what the framework that wrote them says."""

from __future__ import annotations

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest

from converters import KerasFile, read_array, read_keras
from converters.readers.arrays import Blocks, from_bfloat16, values
from converters.readers.keras_file import KerasArray
from tests.conftest import KERAS0, KERAS1


@pytest.mark.parametrize("network", ["alexnet", "vgg16", "vgg19"])
def test_weights_of_keras_1_on_theano(network):
    file = read_keras(KERAS1 / f"{network}.h5")
    assert (file.container, file.named, file.framework) == ("legacy", True, "Keras 1")
    assert (file.backend, file.version, file.config, file.unlisted) == (None, None, None, ())
    weighted = file.weighted
    assert {layer.kind for layer in weighted} == {"Conv2D", "Dense"}
    assert {tuple(layer.arrays) for layer in weighted} == {("kernel", "bias")}
    assert {layer.kernel_order for layer in weighted if layer.kind == "Conv2D"} == {"oihw"}
    assert [layer.name for layer in weighted][-3:] == ["dense_1", "dense_2", "dense_3"]
    names = [layer.name for layer in file.layers]
    assert "flatten" in names  # layers without weights are layers too
    assert [layer.kind for layer in file.layers if layer.name == "flatten"] == ["Flatten"]


def test_weights_of_keras_0_have_numbers_instead_of_names():
    file = read_keras(KERAS0 / "vgg16.h5")
    assert (file.container, file.named, file.framework, len(file.layers)) == ("nb_layers", False, "Keras 0", 37)
    assert [layer.name for layer in file.weighted][:3] == ["layer_1", "layer_3", "layer_6"]
    assert [layer.kind for layer in file.weighted] == ["Conv2D"] * 13 + ["Dense"] * 3


def test_arrays_are_read_as_they_are_stored():
    import h5py

    [layer, *_] = read_keras(KERAS1 / "alexnet.h5").weighted
    with h5py.File(KERAS1 / "alexnet.h5") as file:
        np.testing.assert_array_equal(read_array(layer.arrays["kernel"]), file["conv_1/conv_1_W"][()])


def test_what_was_read_survives_json():
    file = read_keras(KERAS1 / "vgg16.h5")
    assert KerasFile.from_dict(json.loads(json.dumps(file.to_dict()))) == file


# Habits of versions that no framework here can write, laid out by hand with h5py


def write(path, layers, **attributes):
    """layer -> {weight name: shape or array}, as Keras 1 and 2 lay them out; attributes go to the root."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in layers]
        for key, value in attributes.items():
            file.attrs[key] = value
        for name, weights in layers.items():
            group = file.create_group(name)
            group.attrs["weight_names"] = [weight.encode() for weight in weights] if weights else np.zeros(0)
            for weight, value in weights.items():
                group[weight] = np.ones(value, np.float32) if isinstance(value, tuple) else value
    return path


def told(file):
    return {(*layer.parents, layer.name): (layer.kind, tuple(layer.arrays)) for layer in file.layers}


def test_spellings_of_released_files_by_hand(tmp_path):
    """fchollet/deep-learning-models: TensorFlow's numbers, scopes, and the variance under the name running_std."""
    path = write(
        tmp_path / "released.h5",
        {
            "input_1": {},
            "block1_conv1": {"block1_conv1_W_1:0": (3, 3, 3, 8), "block1_conv1_b_1:0": (8,)},
            "conv1": {"conv1/conv1_W:0": (7, 7, 8, 4), "conv1/conv1_b:0": (4,)},
            "bn_conv1": {f"bn_conv1_{word}:0": (4,) for word in ("gamma", "beta", "running_mean", "running_std")},
            "dense_1": {"dense_1/kernel:0": (4, 2), "dense_1/bias:0": (2,)},
        },
    )
    file = read_keras(path)
    assert told(file) == {
        ("input_1",): ("InputLayer", ()),
        ("block1_conv1",): ("Conv2D", ("kernel", "bias")),
        ("conv1",): ("Conv2D", ("kernel", "bias")),
        ("bn_conv1",): ("BatchNormalization", ("gamma", "beta", "moving_mean", "moving_variance")),
        ("dense_1",): ("Dense", ("kernel", "bias")),
    }
    assert file.layers[3].arrays["moving_variance"].place == "/bn_conv1/bn_conv1_running_std:0"


@pytest.mark.parametrize(
    ("layers", "order"),
    [
        ({"a": {"a_W": (8, 3, 3, 3), "a_b": (8,)}}, "oihw"),
        ({"a": {"a_W": (3, 3, 3, 8), "a_b": (8,)}}, "hwio"),
        ({"a": {"a_W": (3, 3, 3, 3), "a_b": (3,)}}, None),  # both would do
        ({"a": {"a_W": (3, 3, 3, 3), "a_b": (3,)}, "b": {"b_W": (5, 3, 1, 1), "b_b": (5,)}}, "oihw"),  # one decides
        ({"a": {"a_W": (8, 3, 3, 3), "a_b": (8,)}, "b": {"b_W": (3, 3, 8, 5), "b_b": (5,)}}, None),  # no one voice
        ({"a": {"a_W": (8, 3, 3, 3)}}, None),
        ({"a": {"a_W": (8, 3, 3, 3)}, "n": {f"n_{word}": (8,) for word in ("running_mean", "running_std")}}, "oihw"),
        ({"a": {"a/kernel:0": (8, 3, 3, 3), "a/bias:0": (3,)}}, "hwio"),  # Keras 2's names
    ],
)
def test_the_order_of_kernels_by_hand(tmp_path, layers, order):
    file = read_keras(write(tmp_path / "x.h5", layers))
    assert {layer.kernel_order for layer in file.weighted if "kernel" in layer.arrays} == {order}


def test_backend_and_version_mean_keras_2_by_hand(tmp_path):
    layers = {"conv": {"conv_W": (8, 3, 3, 3), "conv_b": (3,)}}
    file = read_keras(write(tmp_path / "x.h5", layers, backend=b"theano", keras_version=b"2.0.8"))
    assert (file.backend, file.version, file.layers[0].kernel_order) == ("theano", "2.0.8", "hwio")


def test_lists_of_names_over_64_kilobytes_by_hand(tmp_path):
    """Keras splits them into numbered attributes."""
    path = write(tmp_path / "x.h5", {"b": {"b_W": (2, 3), "b_b": (3,)}, "a": {}})
    with h5py.File(path, "r+") as file:
        del file.attrs["layer_names"], file["b"].attrs["weight_names"]
        file.attrs["layer_names0"], file.attrs["layer_names1"] = [b"b"], [b"a"]
        file["b"].attrs["weight_names0"], file["b"].attrs["weight_names1"] = [b"b_W"], [b"b_b"]
    assert told(read_keras(path)) == {("b",): ("Dense", ("kernel", "bias")), ("a",): ("", ())}


def test_strings_of_fixed_length_by_hand(tmp_path):
    """What h5py 2 wrote, where h5py 3 writes strings of any length."""
    path = write(tmp_path / "x.h5", {"b": {"b_W": (2, 3)}})
    with h5py.File(path, "r+") as file:
        file.attrs.create("layer_names", np.array([b"b"], "S8"))
        file["b"].attrs.create("weight_names", np.array([b"b_W"], "S16"))
        file.attrs.create("keras_version", np.bytes_(b"1.2.2"))
    file = read_keras(path)
    assert (told(file), file.version) == ({("b",): ("Dense", ("kernel",))}, "1.2.2")


def test_a_model_in_a_model_without_a_config_by_hand(tmp_path):
    """Keras 2 on TensorFlow, Keras 1 on Theano, Keras 3 in a scope; trainable weights come first."""
    path = write(
        tmp_path / "x.h5",
        {
            "vgg16": {
                "block1_conv1/kernel:0": (3, 3, 3, 8),
                "bn/beta:0": (8,),
                "block1_conv1/bias:0": (8,),
                "bn/moving_mean:0": (8,),
                "bn/moving_variance:0": (8,),
            },
            "model_1": {"conv_W": (8, 3, 3, 3), "conv_b": (8,), "dense_W": (8, 2)},
            "base": {"outer/base/one/kernel": (1, 1, 8, 2), "outer/base/inner/two/kernel": (2, 2)},
            "dense": {"sequential/dense/kernel": (2, 2)},
        },
    )
    assert {name: kind for name, (kind, _) in told(read_keras(path)).items()} == {
        ("vgg16", "block1_conv1"): "Conv2D",
        ("vgg16", "bn"): "BatchNormalization",
        ("model_1", "conv"): "Conv2D",
        ("model_1", "dense"): "Dense",
        ("base", "one"): "Conv2D",
        ("base", "inner", "two"): "Dense",
        ("dense",): "Dense",
    }


def test_a_whole_model_of_keras_1_by_hand(tmp_path):
    """Old class names and settings: classes in Keras 3's spelling, settings as stored; the optimizer is left aside."""
    layers = [
        {"class_name": "Convolution2D", "config": {"name": "c", "nb_filter": 3, "nb_row": 3, "dim_ordering": "th"}},
        {"class_name": "Flatten", "config": {"name": "f"}},
        {"class_name": "Sequential", "config": [{"class_name": "Dense", "config": {"name": "d"}}], "name": "top"},
    ]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.attrs["keras_version"] = b"1.2.2"
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": layers}).encode()
        file["optimizer_weights/int_step"] = np.int64(3)
        file["model_weights/c/c_W"], file["model_weights/c/c_b"] = np.ones((3, 3, 3, 3)), np.ones(3)
        file["model_weights/d/d_W"] = np.ones((3, 2), ">f4")
        weights = file["model_weights"]
        weights.attrs["layer_names"] = [b"c", b"f", b"d"]
        weights.create_group("f").attrs["weight_names"] = np.zeros(0)
        weights["c"].attrs["weight_names"], weights["d"].attrs["weight_names"] = [b"c_W", b"c_b"], [b"d_W"]
    file = read_keras(tmp_path / "x.h5")
    assert (file.framework, file.backend, file.data_format, file.unlisted) == (
        "Keras 1.2.2",
        None,
        "channels_first",
        (),
    )
    conv = file.layers[0]
    assert (conv.name, conv.kind, conv.kernel_order, conv.config["nb_row"]) == ("c", "Conv2D", "oihw", 3)
    dense = next(layer for layer in file.weighted if layer.name == "d")
    values = read_array(dense.arrays["kernel"])
    assert (dense.arrays["kernel"].dtype, values.dtype.isnative, values.tolist()) == (">f4", True, [[1, 1]] * 3)


def test_integers_with_keras_mark_are_bfloat16_by_hand(tmp_path):
    with h5py.File(tmp_path / "x.weights.h5", "w") as file:
        file["layers/dense/vars/0"] = np.array([[0x3F80], [0xC040], [0x7F80]], np.uint16)
        file["layers/dense/vars/0"].attrs["dtype"] = "bfloat16"
    [dense] = read_keras(tmp_path / "x.weights.h5").weighted
    assert (dense.arrays["kernel"].dtype, read_array(dense.arrays["kernel"])[:, 0].tolist()) == (
        "bfloat16", [1.0, -3.0, float("inf")],
    )  # fmt: skip


def test_batch_normalisation_without_names_by_hand(tmp_path):
    """Keras 0.x numbers its arrays; `.weights.h5` too, and three of them are those of Keras's own networks."""
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file.attrs["nb_layers"] = 1
        file.create_group("layer_0").attrs["nb_params"] = 4
        for number in range(4):
            file[f"layer_0/param_{number}"] = np.ones(3)
    [layer] = read_keras(tmp_path / "old.h5").layers
    assert (layer.kind, list(layer.arrays)) == (
        "BatchNormalization", ["gamma", "beta", "moving_mean", "moving_variance"],
    )  # fmt: skip
    with h5py.File(tmp_path / "new.weights.h5", "w") as file:
        for number in range(3):
            file[f"layers/batch_normalization/vars/{number}"] = np.ones(3)
    [layer] = read_keras(tmp_path / "new.weights.h5").layers
    assert (layer.kind, list(layer.arrays)) == ("BatchNormalization", ["beta", "moving_mean", "moving_variance"])


def test_arrays_that_no_layer_lists_are_told_by_hand(tmp_path):
    path = write(tmp_path / "x.h5", {"a": {"a_W": (2, 3)}})
    with h5py.File(path, "r+") as file:
        file["a/extra"], file["more/kernel"] = np.ones(2), np.ones(2)
    assert read_keras(path).unlisted == ("/a/extra", "/more/kernel")


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2", "bfloat16", "opaque"])
def test_blocks_of_rows_are_read_as_numpy_slices_them(dtype, tmp_path):
    numbers = np.random.default_rng(0).standard_normal((24, 5)).astype("f4")
    bits = (numbers.view(np.uint32) >> 16).astype(np.uint16)
    stored = {"bfloat16": bits, "opaque": bits.view("V2")}.get(dtype)
    stored = numbers.astype(dtype) if stored is None else stored
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a"], file["nothing"] = stored, stored[:0]
    described = dtype if dtype != "opaque" else "bfloat16"
    wanted = np.asarray(from_bfloat16(bits) if described == "bfloat16" else stored)
    array = KerasArray(tmp_path / "x.h5", "/a", (24, 5), described)
    with h5py.File(tmp_path / "x.h5") as file:
        np.testing.assert_array_equal(values(file, array), wanted)
        for rows in (slice(3, 7), slice(20, 99), slice(24, 30), slice(0, 0)):
            np.testing.assert_array_equal(values(file, array, rows), wanted[rows])
        for start, count, apart, length in ((0, 4, 6, 6), (2, 4, 6, 3), (5, 1, 24, 19), (1, 3, 8, 1)):
            parts = [wanted[start + apart * place :][:length] for place in range(count)]
            found = values(file, array, Blocks(start, count, apart, length))
            np.testing.assert_array_equal(found, np.concatenate(parts))
            assert found.dtype.isnative
        assert values(file, replace(array, place="/nothing", shape=(0, 5))).shape == (0, 5)
        with pytest.raises(ValueError, match="/a has changed since it was examined"):
            values(file, replace(array, shape=(5, 24)))

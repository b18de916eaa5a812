"""Reading the files that real Keras 3 wrote, in every format."""

from __future__ import annotations

import json
import shutil
import zipfile
from importlib import metadata

import h5py
import numpy as np
import pytest

from converters import KerasFile, opened, read_array, read_keras, values

FORMS = {"h5": "legacy", "legacy.h5": "legacy", "weights.h5": "weights", "keras": "archive"}
MODELS = ("every_layer", "channels_first", "transfer", "many", "with_code")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model", MODELS)
def test_every_weight_of_every_format_is_found_under_its_layer(keras3_formats, model, form):
    """What Keras says of its layers, against what the file says; models in a model are told as one by Keras."""
    file = read_keras(keras3_formats / f"{model}.{form}")
    told = json.loads((keras3_formats / f"{model}.json").read_text())
    assert (file.container, file.named, file.unlisted) == (FORMS[form], True, ())
    assert file.version == (None if form == "weights.h5" else metadata.version("keras"))
    assert file.backend == ("torch" if FORMS[form] == "legacy" else None)
    assert (file.config is None) == (form in ("legacy.h5", "weights.h5"))
    found: dict[str, list] = {}
    for layer in file.weighted:
        found.setdefault((*layer.parents, layer.name)[0], []).extend(list(a.shape) for a in layer.arrays.values())
    expected = {name: shapes for name, shapes in told if shapes}
    if form != "weights.h5":  # which keeps no order between classes
        assert list(found) == list(expected)
    assert {name: sorted(shapes) for name, shapes in found.items()} == {
        name: sorted(shapes) for name, shapes in expected.items()
    }
    assert KerasFile.from_dict(json.loads(json.dumps(file.to_dict()))) == file


@pytest.mark.parametrize("form", FORMS)
def test_models_in_models_give_their_layers_with_their_parents(keras3_formats, form):
    file = read_keras(keras3_formats / f"transfer.{form}")
    roles = {(*layer.parents, layer.name): tuple(layer.arrays) for layer in file.weighted}
    assert roles == {
        ("base", "conv"): ("kernel", "bias"),
        ("base", "bn"): ("beta", "moving_mean", "moving_variance"),
        ("base", "inner", "conv"): ("kernel", "bias"),
        ("dense",): ("kernel", "bias"),
        ("dense_1",): ("kernel", "bias"),
    }
    shapes = {
        (*layer.parents, layer.name): layer.arrays["kernel"].shape for layer in file.weighted if layer.name != "bn"
    }
    assert shapes["base", "conv"] == (3, 3, 3, 4)
    assert shapes["base", "inner", "conv"] == (3, 3, 4, 5)


@pytest.mark.parametrize("form", ["h5", "keras"])
def test_whole_models_give_order_classes_and_configs(keras3_formats, form):
    file = read_keras(keras3_formats / f"transfer.{form}")
    kinds = [(*layer.parents, layer.kind) for layer in file.layers]
    assert kinds == [
        ("InputLayer",),
        ("base", "InputLayer"),
        ("base", "Conv2D"),
        ("base", "BatchNormalization"),
        ("base", "inner", "InputLayer"),
        ("base", "inner", "Conv2D"),
        ("base", "inner", "ReLU"),
        ("base", "MaxPooling2D"),
        ("Flatten",),
        ("Dense",),
        ("Dropout",),
        ("Dense",),
    ]
    assert file.layers[9].config["activation"] == "relu"
    assert file.data_format == "channels_last"
    assert read_keras(keras3_formats / f"channels_first.{form}").data_format == "channels_first"


@pytest.mark.parametrize("form", FORMS)
def test_arrays_are_the_same_in_every_format(keras3_formats, form):
    """Twelve of a class: `conv2d_10` comes after `conv2d_9` and not after `conv2d_1`."""
    reference = {layer.name: layer for layer in read_keras(keras3_formats / "many.h5").weighted}
    file = read_keras(keras3_formats / f"many.{form}")
    assert [layer.name for layer in file.weighted] == [f"conv2d_{number}" for number in range(2, 14)]
    with opened(file.path) as h5:
        for layer in file.weighted:
            for role, array in layer.arrays.items():
                np.testing.assert_array_equal(values(h5, array), read_array(reference[layer.name].arrays[role]))


@pytest.mark.parametrize("form", ["weights.h5", "keras"])
def test_all_floating_point_types_are_read_and_states_are_no_weights(keras3_formats, form):
    file = read_keras(keras3_formats / f"precisions.{form}")
    assert [layer.arrays["kernel"].dtype for layer in file.weighted if layer.kind == "Conv2D"] == [
        "<f8", "<f2", "bfloat16",
    ]  # fmt: skip
    assert (file.unlisted, [layer.name for layer in file.weighted][-1]) == ((), "normalization")
    assert list(file.weighted[-1].arrays) == ["mean", "variance"]
    kernels = [read_array(layer.arrays["kernel"]) for layer in file.weighted[:3]]
    assert [kernel.dtype.name for kernel in kernels] == ["float64", "float16", "float32"]
    random = np.random.default_rng(9)  # what the program drew, in its order
    for kernel, precision in zip(kernels, (1e-7, 1e-3, 1e-2), strict=True):
        expected = random.standard_normal(kernel.shape)
        random.standard_normal(kernel.shape[3])  # the bias
        np.testing.assert_allclose(kernel, expected, rtol=precision)


def test_bfloat16_without_keras_mark_is_refused(keras3_formats):
    """Keras 3 writes no mark in the legacy format; its own loader reads such files wrongly."""
    with pytest.raises(ValueError, match=r"unknown values of two bytes \(bfloat16 without Keras's mark\?"):
        read_keras(keras3_formats / "precisions.legacy.h5")


def test_files_of_older_keras_3_without_names_by_hand(keras3_formats, tmp_path):
    """The attribute `name` taken away, as before 3.15: the numbers count, in a `.keras` the config's order."""
    weights = shutil.copy(keras3_formats / "many.weights.h5", tmp_path / "old.weights.h5")
    strip_names(weights)
    file = read_keras(weights)
    assert not file.named
    assert [layer.name for layer in file.weighted] == ["conv2d", *(f"conv2d_{number}" for number in range(1, 12))]
    with zipfile.ZipFile(keras3_formats / "many.keras") as archive, zipfile.ZipFile(tmp_path / "old.keras", "w") as old:
        for name in ("metadata.json", "config.json"):
            old.writestr(name, archive.read(name))
        archive.extract("model.weights.h5", tmp_path)
        strip_names(tmp_path / "model.weights.h5")
        old.write(tmp_path / "model.weights.h5", "model.weights.h5", zipfile.ZIP_DEFLATED)
    file = read_keras(tmp_path / "old.keras")
    assert file.named
    assert [layer.name for layer in file.weighted] == [f"conv2d_{number}" for number in range(2, 14)]
    reference = read_keras(keras3_formats / "many.keras")
    for one, other in zip(file.weighted, reference.weighted, strict=True):
        np.testing.assert_array_equal(read_array(one.arrays["kernel"]), read_array(other.arrays["kernel"]))


def strip_names(path):
    with h5py.File(path, "r+") as file:
        groups = []
        file.visit(lambda name: groups.append(name) if name.endswith("vars") else None)
        for name in groups:
            file[name].attrs.pop("name", None)


def test_tf_keras_layout_by_hand(keras3_formats, tmp_path):
    """tf_keras holds the layers under another name and writes no names."""
    weights = shutil.copy(keras3_formats / "transfer.weights.h5", tmp_path / "tf.weights.h5")
    strip_names(weights)
    with h5py.File(weights, "r+") as file:
        base = file["layers/functional"]
        base.move("layers/sequential/layers", "layers/sequential/_layer_checkpoint_dependencies")
        base.move("layers", "_layer_checkpoint_dependencies")
        file.move("layers", "_layer_checkpoint_dependencies")
    file = read_keras(weights)
    roles = {(*layer.parents, layer.name): layer.kind for layer in file.weighted}
    assert roles == {
        ("functional", "conv2d"): "Conv2D",
        ("functional", "batch_normalization"): "BatchNormalization",
        ("functional", "sequential", "conv2d"): "Conv2D",
        ("dense",): "Dense",
        ("dense_1",): "Dense",
    }


def test_a_name_that_the_config_contradicts_is_refused(keras3_formats, tmp_path):
    with zipfile.ZipFile(keras3_formats / "many.keras") as archive, zipfile.ZipFile(tmp_path / "x.keras", "w") as other:
        for name in ("metadata.json", "model.weights.h5"):
            other.writestr(name, archive.read(name))
        other.writestr("config.json", archive.read("config.json").replace(b"conv2d_5", b"conv2d_x"))
    with pytest.raises(ValueError, match="is named 'conv2d_5', but 'conv2d_x' in the config"):
        read_keras(tmp_path / "x.keras")

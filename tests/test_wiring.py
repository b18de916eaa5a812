"""Configs whose names and shapes are a network's and whose graph is another.

Every case is a file of a real framework, of which nothing but the config is changed.
"""

from __future__ import annotations

import json
import shutil

import h5py
import numpy as np
import pytest
import torch

from converters import convert
from convnets_torch.weights import load
from tests.reference.goldens import DATA
from tests.reference.theano_goldens import THEANO
from tests.test_formats import assert_answers

VGG, RESNET, INCEPTION = (
    "keras231/vgg16_last_model.h5", "keras224/resnet50_first_model.h5", "keras231/inception_v3_last_model.h5",
)  # fmt: skip
FLAT, NESTED_WEIGHTS, FLAT_WEIGHTS = (
    "keras231/vgg16_flat_first_model.h5", "keras231/vgg16_nested_first.h5", "keras231/vgg16_flat_last.h5",
)  # fmt: skip


class Config:
    """A functional model's config, to be changed."""

    def __init__(self, model):
        self.model = model["config"]

    @property
    def layers(self):
        return {layer["name"]: layer for layer in self.model["layers"]}

    def set(self, name, **settings):
        self.layers[name]["config"].update(settings)

    def replace(self, name, class_name, **settings):
        layer = self.layers[name]
        layer["class_name"], layer["config"] = class_name, {"name": name} | settings

    def rewire(self, name, *sources):
        self.layers[name]["inbound_nodes"] = [[[source, 0, 0, {}] for source in sources]]

    def sources(self, name):
        return [entry[0] for entry in self.layers[name]["inbound_nodes"][0]]

    def drop(self, name):
        [source] = self.sources(name)
        self.model["layers"].remove(self.layers[name])
        for layer in self.model["layers"]:
            for entry in layer["inbound_nodes"][0] if layer["inbound_nodes"] else []:
                entry[0] = source if entry[0] == name else entry[0]
        for output in self.model["output_layers"]:
            output[0] = source if output[0] == name else output[0]

    def insert(self, before, class_name, **settings):
        new = {"class_name": class_name, "name": "new", "config": {"name": "new"} | settings, "inbound_nodes": []}
        self.model["layers"].append(new)
        self.rewire("new", *self.sources(before)[:1])
        self.rewire(before, "new", *self.sources(before)[1:])


@pytest.fixture
def changed(tmp_path):
    """A copy of a golden, its config changed by a function."""

    def change(file, function):
        path = tmp_path / "model.h5"
        shutil.copy(DATA / file, path)
        with h5py.File(path, "r+") as h5:
            model = json.loads(h5.attrs["model_config"])
            function(Config(model))
            h5.attrs["model_config"] = json.dumps(model).encode()
        return path

    return change


def move_stride(config):
    config.set("res3a_branch2a", strides=[1, 1])
    config.set("res3a_branch2b", strides=[2, 2])


def permute(config):
    config.insert("flatten", "Permute", dims=[2, 1, 3])


ANOTHER = {  # what is changed -> file, change, and the sentence that refuses it; None if it converts as a graph
    "average instead of max": (
        VGG,
        lambda c: c.replace("block2_pool", "AveragePooling2D", pool_size=[2, 2], strides=[2, 2], padding="valid"),
        None,
    ),
    "a larger pool": (
        VGG,
        lambda c: c.set("block2_pool", pool_size=[3, 3]),
        "fc1 has a kernel of .*, but reads 432 values",
    ),
    "a padded pool": (VGG, lambda c: c.set("block5_pool", padding="same"), None),
    "a stride": (VGG, lambda c: c.set("block3_conv2", strides=[2, 2]), "fc1 has a kernel of .*, but reads 108 values"),
    "dilation": (VGG, lambda c: c.set("block3_conv2", dilation_rate=[2, 2]), None),
    "no padding": (
        VGG,
        lambda c: c.set("block3_conv2", padding="valid"),
        "fc1 has a kernel of .*, but reads 432 values",
    ),
    "reflected padding": (
        VGG,
        lambda c: c.set("block3_conv2", padding="reflect"),
        "block3_conv2 .* has the padding 'reflect'; known",
    ),
    "groups": (
        VGG,
        lambda c: c.set("block3_conv2", groups=2),
        r"block3_conv2 has a kernel of \(3, 3, 8, 8\), for 16 channels, but reads 8",
    ),
    "no bias": (
        VGG,
        lambda c: c.set("block3_conv2", use_bias=False),
        "block3_conv2 has a bias, but its config has none",
    ),
    "another data format": (
        VGG,
        lambda c: c.set("block3_conv2", data_format="channels_first"),
        "block3_conv2 .* is channels_first, but the model is channels_last",
    ),
    "tanh": (VGG, lambda c: c.set("block3_conv2", activation="tanh"), None),
    "no activation": (VGG, lambda c: c.set("block5_conv3", activation="linear"), None),
    "a LeakyReLU between": (
        VGG,
        lambda c: (c.set("block3_conv2", activation="linear"), c.insert("block3_conv3", "LeakyReLU", alpha=0.3)),
        None,
    ),
    "a bounded ReLU": (
        VGG,
        lambda c: (c.set("block3_conv2", activation="linear"), c.insert("block3_conv3", "ReLU", max_value=6.0)),
        None,
    ),
    "a Lambda between": (
        VGG,
        lambda c: c.insert("block3_conv3", "Lambda", function=["", None, None]),
        r"layer new \(Lambda\) runs Python code",
    ),
    "a Lambda before the head": (
        VGG,
        lambda c: c.insert("flatten", "Lambda", function=["", None, None]),
        r"layer new \(Lambda\) runs Python code",
    ),
    "a Lambda in the head": (
        VGG,
        lambda c: c.insert("fc2", "Lambda", function=["", None, None]),
        r"layer new \(Lambda\) runs Python code",
    ),
    "no last pool": (VGG, lambda c: c.drop("block5_pool"), "fc1 has a kernel of .*, but reads 2352 values"),
    "Reshape for Flatten": (VGG, lambda c: c.replace("flatten", "Reshape", target_shape=[-1]), None),
    "Permute before Flatten": (VGG, permute, None),
    "an activation before the head": (
        FLAT,
        lambda c: c.insert("global_average_pooling2d_1", "Activation", activation="tanh"),
        None,
    ),
    "a skipped convolution": (
        VGG,
        lambda c: c.rewire("block3_conv3", "block3_conv1"),
        "block3_conv2 is not on the way from the input to the output",
    ),
    "an input of no size": (
        VGG,
        lambda c: c.set("input_1", batch_input_shape=[None, 0, 0, 3]),
        "expected a list of sizes",
    ),
    "an input of words": (
        VGG,
        lambda c: c.set("input_1", batch_input_shape=[None, "a", {}, 3]),
        "expected a list of sizes",
    ),
    "a head that is normalised by the batch": (
        FLAT,
        lambda c: c.insert("dense_1", "BatchNormalization", mode=2),
        r"new \(BatchNormalization\) normalises in mode 2",
    ),
    "two outputs": (
        VGG,
        lambda c: c.model["output_layers"].append(["fc1", 0, 0]),
        "its model has 2 outputs, predictions, fc1; choose one with --output-layer",
    ),
    "two inputs": (
        VGG,
        lambda c: (
            c.model["layers"].append(json.loads(json.dumps(c.layers["input_1"]).replace("input_1", "input_2"))),
            c.model["input_layers"].append(["input_2", 0, 0]),
            c.insert("block1_conv2", "Add"),
            c.rewire("new", "block1_conv1", "input_2"),
        ),
        "its model has 2 inputs; only one is supported",
    ),
    "a shared layer": (
        VGG,
        lambda c: (
            c.layers["block3_conv2"]["inbound_nodes"].append([["block3_conv2", 0, 0, {}]]),
            c.layers["block3_conv3"]["inbound_nodes"][0][0].__setitem__(1, 1),
        ),
        None,
    ),
    "a ReLU dropped": (RESNET, lambda c: c.drop("activation_2"), None),
    "a ReLU moved before the sum": (
        RESNET,
        lambda c: (c.drop("activation_4"), c.insert("add_1", "Activation", activation="relu")),
        None,
    ),
    "a stride moved": (RESNET, move_stride, None),
    "another epsilon in one place": (RESNET, lambda c: c.set("bn3a_branch2a", epsilon=1e-5), None),
    "another axis": (RESNET, lambda c: c.set("bn3a_branch2a", axis=2), "bn3a_branch2a has a gamma of"),
    "Maximum for Add": (RESNET, lambda c: c.replace("add_1", "Maximum"), None),
    "Concatenate for Add": (
        RESNET,
        lambda c: c.replace("add_1", "Concatenate", axis=1),
        "res2b_branch2a has a kernel of .*, for 12 channels, but reads 24",
    ),
    "a shortcut dropped": (RESNET, lambda c: c.rewire("add_2", c.sources("add_2")[0], c.sources("add_2")[0]), None),
    "a shortcut from elsewhere": (
        RESNET,
        lambda c: c.rewire("add_3", c.sources("add_3")[0], c.sources("add_2")[1]),
        None,
    ),
    "a pool that is not the whole map": (
        RESNET,
        lambda c: (
            c.replace("avg_pool", "AveragePooling2D", pool_size=[4, 4], strides=[4, 4], padding="valid"),
            c.insert("fc1000", "Flatten"),
        ),
        None,
    ),
    "branches in another order": (INCEPTION, lambda c: c.rewire("mixed0", *reversed(c.sources("mixed0"))), None),
    "a branch from elsewhere": (
        INCEPTION,
        lambda c: c.rewire("conv2d_103", *c.sources("mixed0")[:1]),
        "conv2d_103 has a kernel of .*, for 5 channels, but reads 2",
    ),
    "max instead of average in a branch": (
        INCEPTION,
        lambda c: c.replace("average_pooling2d_10", "MaxPooling2D", pool_size=[3, 3], strides=[1, 1], padding="same"),
        None,
    ),
    "another axis of a Concatenate": (
        INCEPTION,
        lambda c: c.set("mixed0", axis=1),
        r"mixed0 \(Concatenate\) cannot read inputs of",
    ),
}


@pytest.mark.parametrize("change", ANOTHER)
def test_a_config_of_another_graph_is_not_taken_for_the_papers(change, changed, tmp_path):
    """It is converted as the graph that it is, or refused by what contradicts its arrays."""
    file, function, message = ANOTHER[change]
    path, out = changed(file, function), tmp_path / "out.safetensors"
    if message is None:
        report = convert(path, out, preprocessing="unit", proof=True)
        assert report.card.network == "graph"
        assert max(row.error for row in report.proof) < 1e-9
        return
    with pytest.raises(ValueError, match=message) as caught:
        convert(path, out, preprocessing="unit", proof=True)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [left.name for left in tmp_path.iterdir()] == ["model.h5"]


def test_convolutions_in_another_order_are_the_papers(changed, tmp_path):
    """Names say nothing: the second and third convolution of a block, exchanged, are the third and the second."""

    def rewire(config):
        config.rewire("block3_conv3", "block3_conv1")
        config.rewire("block3_conv2", "block3_conv3")
        config.rewire("block3_pool", "block3_conv2")

    report = convert(changed(VGG, rewire), tmp_path / "out.safetensors", preprocessing="unit", proof=True)
    assert report.card.network == "vgg16"
    rows = {row.parameter: row.source for row in report.rows}
    assert [rows[f"features.conv3_{number}.weight"] for number in (2, 3)] == ["block3_conv3", "block3_conv2"]


THE_SAME = {  # in other words
    "a padding as a layer": (
        VGG,
        lambda c: (
            c.set("block3_conv2", padding="valid"), c.insert("block3_conv2", "ZeroPadding2D", padding=[[1, 1], [1, 1]]),
        ),
    ),
    "an activation as a layer": (
        VGG,
        lambda c: (
            c.set("block3_conv2", activation="linear"), c.insert("block3_conv3", "Activation", activation="relu"),
        ),
    ),
    "a ReLU as its own class": (RESNET, lambda c: c.replace("activation_2", "ReLU", max_value=None)),
    "dropout between convolutions": (VGG, lambda c: c.insert("block3_conv3", "SpatialDropout2D", rate=0.3)),
    "a sum in the other order": (RESNET, lambda c: c.rewire("add_3", *reversed(c.sources("add_3")))),
    "an average of the whole map and Flatten": (
        RESNET,
        lambda c: (
            c.replace("avg_pool", "AveragePooling2D", pool_size=[7, 7], strides=[7, 7], padding="valid"),
            c.insert("fc1000", "Flatten", data_format="channels_first"),
        ),
    ),
    "dropout and Flatten after global pooling": (
        RESNET, lambda c: (c.insert("fc1000", "Flatten", data_format="channels_first")),
    ),
    "a layer that does not matter to the output": (
        VGG,
        lambda c: c.model["layers"].append(
            {"class_name": "Lambda", "name": "aside", "config": {"name": "aside"},
             "inbound_nodes": [[["block2_conv1", 0, 0, {}]]]}
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", THE_SAME)
def test_a_config_that_says_the_same_in_other_words_converts(change, changed, tmp_path):
    file, function = THE_SAME[change]
    convert(changed(file, function), tmp_path / "out.safetensors", preprocessing="keras-caffe", proof=True)
    golden = next(golden for golden in THEANO if golden.file == file)
    assert_answers(load(tmp_path / "out.safetensors"), golden, DATA)


@pytest.mark.parametrize("ending", ["GlobalAveragePooling2D", "AveragePooling2D"])
def test_a_pooling_at_the_end_of_a_model_without_a_head_is_left_out_and_said(ending, changed, tmp_path):
    """`pooling="avg"`, and ResNet50 of Keras 1 and 2.0, which kept its average where it had no top."""

    def behead(config):
        config.drop("fc1000")
        if ending == "AveragePooling2D":
            config.replace("avg_pool", ending, pool_size=[7, 7], strides=[7, 7], padding="valid")

    path = changed(RESNET, behead)
    with h5py.File(path, "r+") as h5:
        del h5["model_weights/fc1000"]
        weights = h5["model_weights"]
        weights.attrs["layer_names"] = [name for name in weights.attrs["layer_names"] if name != "fc1000"]
    report = convert(path, tmp_path / "out.safetensors")
    assert "the model ends with avg_pool, which is left out: the features are the map before it" in report.choices
    network, whole = load(tmp_path / "out.safetensors"), tmp_path / "whole.safetensors"
    convert(DATA / RESNET, whole, preprocessing="keras-caffe")
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert network.head is None
    with torch.inference_mode():
        assert torch.equal(network.features(images), load(whole).features(images))


def test_a_slope_is_read_as_keras_1_wrote_it_too(changed, tmp_path):
    def slope(config):
        config.insert("dense_1", "LeakyReLU", alpha={"type": "ndarray", "value": 0.25})

    report = convert(changed(FLAT, slope), tmp_path / "out.safetensors", preprocessing="unit", proof=True)
    assert report.card.arguments["head"] == (("average",), ("leaky_relu", 0.25), ("dense", 1))


def test_a_resnet_that_strides_in_its_3x3_convolutions_is_one_of_its_own(changed, tmp_path):
    """As torchvision's does; the proof, which follows the config, agrees."""

    def stride(config):
        for stage in (3, 4, 5):
            config.set(f"res{stage}a_branch2a", strides=[1, 1])
            config.set(f"res{stage}a_branch2b", strides=[2, 2])

    path = changed(RESNET, stride)
    report = convert(path, tmp_path / "out.safetensors", preprocessing="keras-caffe", proof=True)
    assert report.card.arguments["stride_in"] == "3x3"


def test_code_before_the_first_convolution_is_taken_for_the_preprocessing_that_is_named(changed, tmp_path):
    path = changed(VGG, lambda config: config.insert("block1_conv1", "Lambda", function=["", None, None]))
    with pytest.raises(ValueError, match=r"new \(Lambda\) changes the input .*; give the whole preprocessing"):
        convert(path, tmp_path / "out.safetensors")
    report = convert(path, tmp_path / "out.safetensors", preprocessing="keras-caffe", proof=True)
    assert "new before the first convolution is assumed to be part of the preprocessing you named" in report.choices
    assert_answers(load(tmp_path / "out.safetensors"), next(one for one in THEANO if one.file == VGG), DATA)


def test_a_pooling_before_the_first_convolution_is_part_of_the_graph(changed, tmp_path):
    def halve(config):
        config.insert("block1_conv1", "MaxPooling2D", pool_size=[2, 2])
        config.set("input_1", batch_input_shape=[None, 448, 448, 3])

    report = convert(changed(VGG, halve), tmp_path / "out.safetensors", preprocessing="unit", proof=True)
    assert (report.card.network, report.card.arguments["graph"]["size"]) == ("graph", (448, 448))


def test_a_normalization_without_its_statistics_is_refused(changed, tmp_path):
    path = changed(VGG, lambda config: config.insert("block1_conv1", "Normalization"))
    with pytest.raises(ValueError, match="new has no arrays"):
        convert(path, tmp_path / "out.safetensors", preprocessing="keras-caffe")


# Relatives of the networks, by their arrays alone


@pytest.fixture
def with_layers(tmp_path):
    """A copy of a golden with batch normalisations more, and layers less."""

    def change(file, more, less=()):
        path = tmp_path / "model.h5"
        shutil.copy(DATA / file, path)
        with h5py.File(path, "r+") as h5:
            for name, size in more.items():
                roles = [f"{name}/{role}" for role in ("gamma", "beta", "moving_mean", "moving_variance")]
                for role in roles:
                    h5[f"{name}/{role}"] = np.ones(size, np.float32)
                h5[name].attrs["weight_names"] = roles
            for name in less:
                del h5[name]
            h5.attrs["layer_names"] = [*[name for name in h5.attrs["layer_names"] if name not in less], *more]
        return path

    return change


@pytest.mark.parametrize("file", ["keras231/vgg16_last.h5", NESTED_WEIGHTS, FLAT_WEIGHTS])
def test_a_vgg_with_batch_normalisation_is_refused(file, with_layers, tmp_path):
    path = with_layers(file, {f"batch_normalization_{number}": 4 for number in range(1, 14)})
    with pytest.raises(ValueError, match="batch_normalization_1"):
        convert(path, tmp_path / "out.safetensors", preprocessing="unit", input_size=(96, 96), activation="sigmoid")


def test_a_resnet50_of_the_second_version_is_refused(with_layers, tmp_path):
    blocks = [f"conv{stage}_block{block + 1}" for stage, depth in enumerate((3, 4, 6, 3), 2) for block in range(depth)]
    less = [f"{block}_{part}_bn" for block in blocks for part in (0, 3)]
    with h5py.File(DATA / "keras231/resnet50_new_names_last.h5") as h5:
        less = [name for name in (*less, "conv1_bn") if name in h5]
    path = with_layers("keras231/resnet50_new_names_last.h5", {f"{block}_preact_bn": 12 for block in blocks}, less)
    with pytest.raises(ValueError, match=r"not a complete ResNet50V2: post_bn is missing"):
        convert(path, tmp_path / "out.safetensors", preprocessing="keras-caffe")

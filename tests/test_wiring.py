"""Configs whose names and shapes are a network's and whose graph is another: refused, each by what is different.

Every case is a file of a real framework, of which nothing but the config is changed.
"""

from __future__ import annotations

import json
import re
import shutil

import h5py
import numpy as np
import pytest
import torch

from converters import convert, read_keras
from converters.keras_plan import plan_keras
from converters.plan import Wishes
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


ANOTHER = {  # what is changed -> file, change, sentence
    "average instead of max": (
        VGG,
        lambda c: c.replace("block2_pool", "AveragePooling2D", pool_size=[2, 2], strides=[2, 2], padding="valid"),
        r"block3_conv1 reads AveragePooling2D 2x2 2x2\(relu\(block2_conv2\)\), not MaxPooling2D 2x2 2x2",
    ),
    "a larger pool": (VGG, lambda c: c.set("block2_pool", pool_size=[3, 3]), "block3_conv1 reads MaxPooling2D 3x3 2x2"),
    "a padded pool": (VGG, lambda c: c.set("block5_pool", padding="same"), "its head reads MaxPooling2D .* same"),
    "a stride": (
        VGG,
        lambda c: c.set("block3_conv2", strides=[2, 2]),
        r"block3_conv2 has strides \(2, 2\), not \(1, 1\)",
    ),
    "dilation": (VGG, lambda c: c.set("block3_conv2", dilation_rate=[2, 2]), r"block3_conv2 has dilation \(2, 2\)"),
    "no padding": (
        VGG,
        lambda c: c.set("block3_conv2", padding="valid"),
        r"block3_conv2 has padding \(\(0, 0\), \(0, 0\)\)",
    ),
    "reflected padding": (VGG, lambda c: c.set("block3_conv2", padding="reflect"), "block3_conv2 has padding reflect"),
    "groups": (VGG, lambda c: c.set("block3_conv2", groups=2), "block3_conv2 has groups 2, not 1"),
    "no bias": (VGG, lambda c: c.set("block3_conv2", use_bias=False), "block3_conv2 has bias False, not True"),
    "another data format": (
        VGG,
        lambda c: c.set("block3_conv2", data_format="channels_first"),
        "block3_conv2 has data format channels_first",
    ),
    "tanh": (
        VGG,
        lambda c: c.set("block3_conv2", activation="tanh"),
        r"block3_conv3 reads tanh\(block3_conv2\), not relu",
    ),
    "no activation": (
        VGG,
        lambda c: c.set("block5_conv3", activation="linear"),
        r"its head reads MaxPooling2D .*\(block5_conv3\)",
    ),
    "a LeakyReLU between": (
        VGG,
        lambda c: (c.set("block3_conv2", activation="linear"), c.insert("block3_conv3", "LeakyReLU", alpha=0.3)),
        r"block3_conv3 reads leaky_relu .*\(block3_conv2\), not relu",
    ),
    "a bounded ReLU": (
        VGG,
        lambda c: (c.set("block3_conv2", activation="linear"), c.insert("block3_conv3", "ReLU", max_value=6.0)),
        r"block3_conv3 reads relu .*\(block3_conv2\), not relu\(block3_conv2\)",
    ),
    "a Lambda between": (
        VGG,
        lambda c: c.insert("block3_conv3", "Lambda", function=["", None, None]),
        r"block3_conv3 reads Lambda\(",
    ),
    "a Lambda before the head": (
        VGG,
        lambda c: c.insert("flatten", "Lambda", function=["", None, None]),
        r"its head reads Lambda\(MaxPooling2D",
    ),
    "a Lambda in the head": (
        VGG,
        lambda c: c.insert("fc2", "Lambda", function=["", None, None]),
        r"its head has new \(Lambda\), which is not supported",
    ),
    "no last pool": (VGG, lambda c: c.drop("block5_pool"), "its head reads relu|a 12x14x14 block"),
    "Reshape for Flatten": (
        VGG,
        lambda c: c.replace("flatten", "Reshape", target_shape=[-1]),
        r"has flatten \(Reshape\), which",
    ),
    "Permute before Flatten": (VGG, permute, r"its head reads Permute\(MaxPooling2D"),
    "an activation before the head": (
        FLAT,
        lambda c: c.insert("global_average_pooling2d_1", "Activation", activation="tanh"),
        r"its head reads tanh\(",
    ),
    "another order of convolutions": (
        VGG,
        lambda c: (
            c.rewire("block3_conv3", "block3_conv1"),
            c.rewire("block3_conv2", "block3_conv3"),
            c.rewire("block3_pool", "block3_conv2"),
        ),
        r"block3_conv2 reads relu\(block3_conv3\), not relu\(block3_conv1\)",
    ),
    "a skipped convolution": (
        VGG,
        lambda c: c.rewire("block3_conv3", "block3_conv1"),
        "block3_conv2 is not on the way",
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
        "new of its head normalises in mode 2; only mode 0 is supported",
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
        "calls block3_conv2 2 times; shared layers are not supported",
    ),
    "a ReLU dropped": (
        RESNET,
        lambda c: c.drop("activation_2"),
        r"res2a_branch2b reads bn2a_branch2a, not relu\(bn2a_branch2a\)",
    ),
    "a ReLU moved before the sum": (
        RESNET,
        lambda c: (c.drop("activation_4"), c.insert("add_1", "Activation", activation="relu")),
        r"res2b_branch2a reads Add\(",
    ),
    "a stride moved": (
        RESNET,
        move_stride,
        r"res4a_branch2a has strides \(2, 2\), not \(1, 1\)|has strides \(1, 1\), not \(2, 2\)",
    ),
    "another epsilon in one place": (
        RESNET,
        lambda c: c.set("bn3a_branch2a", epsilon=1e-5),
        "batch normalisations have several epsilons",
    ),
    "another axis": (RESNET, lambda c: c.set("bn3a_branch2a", axis=2), "bn3a_branch2a has axis 2, not channels"),
    "Maximum for Add": (RESNET, lambda c: c.replace("add_1", "Maximum"), r"reads relu\(Maximum"),
    "Concatenate for Add": (RESNET, lambda c: c.replace("add_1", "Concatenate", axis=1), r"reads relu\(Concatenate"),
    "a shortcut dropped": (
        RESNET,
        lambda c: c.rewire("add_2", c.sources("add_2")[0], c.sources("add_2")[0]),
        r"res2c_branch2a reads relu\(Add\(bn2b_branch2c, bn2b_branch2c\)\)",
    ),
    "a shortcut from elsewhere": (
        RESNET,
        lambda c: c.rewire("add_3", c.sources("add_3")[0], c.sources("add_2")[1]),
        r"res3a_branch2a reads relu\(Add",
    ),
    "a pool that is not the whole map": (
        RESNET,
        lambda c: (
            c.replace("avg_pool", "AveragePooling2D", pool_size=[4, 4], strides=[4, 4], padding="valid"),
            c.insert("fc1000", "Flatten"),
        ),
        r"its head reads AveragePooling2D 4x4 4x4\(",
    ),
    "branches in another order": (
        INCEPTION,
        lambda c: c.rewire("mixed0", *reversed(c.sources("mixed0"))),
        r"reads Concatenate\(.*\), not Concatenate\(",
    ),
    "a branch from elsewhere": (
        INCEPTION,
        lambda c: c.rewire("conv2d_103", *c.sources("mixed0")[:1]),
        "conv2d_103 reads",
    ),
    "max instead of average in a branch": (
        INCEPTION,
        lambda c: c.replace("average_pooling2d_10", "MaxPooling2D", pool_size=[3, 3], strides=[1, 1], padding="same"),
        "reads MaxPooling2D 3x3 1x1 same",
    ),
    "another axis of a Concatenate": (
        INCEPTION,
        lambda c: c.set("mixed0", axis=1),
        r"reads Concatenate 1\(|reads Concatenate",
    ),
}


@pytest.mark.parametrize("change", ANOTHER)
def test_a_config_of_another_graph_is_not_taken_for_the_papers(change, changed, tmp_path):
    """It is refused as the paper's network by what is different; and converted as the graph that it is, or refused."""
    file, function, message = ANOTHER[change]
    path = changed(file, function)
    with pytest.raises(ValueError, match=message) as caught:
        plan_keras(read_keras(path), Wishes(preprocessing="unit"))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    out = tmp_path / "out.safetensors"
    if change in AS_A_GRAPH:
        report = convert(path, out, preprocessing="unit", proof=True)
        assert report.card.network == "graph"
        assert max(row.error for row in report.proof) < 1e-9
    else:
        with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
            convert(path, out, preprocessing="unit", proof=True)
        assert "\n" not in str(caught.value)
        assert [left.name for left in tmp_path.iterdir()] == ["model.h5"]


AS_A_GRAPH = {
    "average instead of max", "a padded pool", "dilation", "tanh", "no activation", "a LeakyReLU between",
    "a bounded ReLU", "Reshape for Flatten", "Permute before Flatten", "an activation before the head",
    "another order of convolutions", "a shared layer", "a ReLU dropped", "a ReLU moved before the sum",
    "a stride moved", "another epsilon in one place", "Maximum for Add", "a shortcut dropped",
    "a shortcut from elsewhere", "a pool that is not the whole map", "branches in another order",
    "max instead of average in a branch",
}  # fmt: skip


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
    with pytest.raises(ValueError, match=r"new \(Lambda\) changes the input .*; name the whole preprocessing"):
        convert(path, tmp_path / "out.safetensors")
    report = convert(path, tmp_path / "out.safetensors", preprocessing="keras-caffe", proof=True)
    assert "new before the first convolution is assumed to be part of the preprocessing you named" in report.choices
    assert_answers(load(tmp_path / "out.safetensors"), next(one for one in THEANO if one.file == VGG), DATA)


@pytest.mark.parametrize("layer", ["CenterCrop", "Resizing", "RandomCrop", "Normalization", "MaxPooling2D"])
def test_a_layer_that_changes_the_input_is_refused(layer, changed, tmp_path):
    path = changed(VGG, lambda config: config.insert("block1_conv1", layer, height=224, width=224, pool_size=[2, 2]))
    with pytest.raises(ValueError, match=rf"new \({layer}\) changes the input in a way that is not read; remove it"):
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
    with pytest.raises(ValueError, match=r"conv1_bn is missing; .*conv2_block1_preact_bn"):
        convert(path, tmp_path / "out.safetensors", preprocessing="keras-caffe")

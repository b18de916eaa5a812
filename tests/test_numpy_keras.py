"""Each layer of the second derivation against real Keras 3, on its torch backend."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import keras
import numpy as np
import pytest

from converters.proof.listing import list_of
from converters.proof.numpy_keras import Sliding, pool_average
from converters.proof.proof import forward
from tests.reference.keras3_models import NETWORKS, assert_logits, branches, output, randomize, sequential
from tests.reference.keras_files import of_arrays, of_model, with_graph

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Keras and torch about each other

L = keras.layers
FORMATS = ("channels_last", "channels_first")


def image_of(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def answers(model, image, file=None, values=None, **assumptions):
    """(ours, theirs) for one image (h, w, c), both with channels first."""
    if file is None:
        file, values = of_model(model, config=json.loads(model.to_json()))
    ours = dict(forward(file, of_arrays(values), image, **assumptions))
    return ours, output(model, image)


def agree(layers, shape=(7, 10, 4), data_format="channels_last", **assumptions):
    """The last output of a Sequential against Keras's own."""
    image = image_of(shape)
    model = keras.Sequential(
        [keras.Input(shape if data_format == "channels_last" else (shape[2], *shape[:2])), *layers]
    )
    randomize(model)
    ours, theirs = answers(model, image, data_format=data_format, **assumptions)
    found = ours.get("logits", ours.get("features"))
    assert found.shape == theirs.shape
    np.testing.assert_allclose(found, theirs, atol=2e-5 * np.abs(theirs).max())
    return ours


SIZES = [((7, 10, 4), (3, 3)), ((8, 9, 4), (2, 5)), ((9, 9, 4), (3, 1)), ((8, 8, 4), (3, 3))]  # odd and even, each way


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("shape", "kernel"), SIZES)
@pytest.mark.parametrize("data_format", FORMATS)
def test_convolutions(shape, kernel, padding, data_format):
    where = {"padding": padding, "data_format": data_format}
    for strides in (1, 2, 3):
        agree([L.Conv2D(6, kernel, strides=strides, **where)], shape, data_format)
        agree([L.DepthwiseConv2D(kernel, strides=(strides, strides), depth_multiplier=2, **where)], shape, data_format)
        agree([L.SeparableConv2D(5, kernel, strides=(strides, strides), **where)], shape, data_format)
    agree([L.Conv2D(6, kernel, groups=2, use_bias=False, **where)], shape, data_format)
    agree([L.Conv2D(6, (3, 2), dilation_rate=2, **where)], shape, data_format)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("shape", "size"), SIZES)
@pytest.mark.parametrize("data_format", FORMATS)
def test_pooling(shape, size, padding, data_format):
    where = {"padding": padding, "data_format": data_format}
    for strides in (None, 1, 2):
        agree([L.MaxPooling2D(size, strides=strides, **where)], shape, data_format)
        if padding == "valid":
            agree([L.AveragePooling2D(size, strides=strides, **where)], shape, data_format)
    agree([L.AveragePooling2D(3, strides=1, **where)], shape, data_format)


@pytest.mark.parametrize(("shape", "size"), SIZES)
def test_an_average_never_counts_the_padding(shape, size):
    """By hand: Keras on torch counts the copied edge where the padding is uneven, unlike on TensorFlow and Theano."""
    image = image_of(shape).astype(float)
    for strides in ((1, 1), (2, 2), (3, 2)):
        found = pool_average(image, size, Sliding("channels_last", theano=False, strides=strides, padding="same"))
        counts = [-(-length // step) for length, step in zip(shape[:2], strides, strict=True)]
        starts = [
            max(0, (count - 1) * step + side - length) // 2
            for count, step, side, length in zip(counts, strides, size, shape[:2], strict=True)
        ]
        assert found.shape == (*counts, shape[2])
        for row, column in itertools.product(*map(range, counts)):
            top, left = row * strides[0] - starts[0], column * strides[1] - starts[1]
            seen = image[max(0, top) : top + size[0], max(0, left) : left + size[1]]
            np.testing.assert_allclose(found[row, column], seen.mean((0, 1)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("data_format", FORMATS)
def test_what_reads_a_whole_map(data_format):
    where = {"data_format": data_format}
    for layer in (L.GlobalAveragePooling2D, L.GlobalMaxPooling2D):
        agree([layer(**where)], data_format=data_format)
        agree([layer(keepdims=True, **where)], data_format=data_format)
    for flatten in FORMATS:  # its own data format decides, not that of the maps
        agree([L.Conv2D(5, 3, **where), L.Flatten(data_format=flatten), L.Dense(6)], data_format=data_format)
    agree([L.ZeroPadding2D(((1, 2), (3, 0)), **where), L.Conv2D(5, 3, **where)], data_format=data_format)
    axis = 1 if data_format == "channels_first" else 3
    for words in ({}, {"scale": False}, {"center": False}, {"epsilon": 0.3}):
        agree([L.Conv2D(5, 3, **where), L.BatchNormalization(axis=axis, **words)], data_format=data_format)
    agree([L.Dense(6), L.Flatten(), L.BatchNormalization(), L.Dense(3)])


FUNCTIONS = (
    "linear", "relu", "relu6", "leaky_relu", "elu", "gelu", "hard_sigmoid", "selu", "sigmoid", "tanh", "softplus",
    "softsign", "exponential", "silu", "hard_silu", "mish",
)  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_activations(name):
    agree([L.Conv2D(5, 3, activation=name), L.Conv2D(5, 3, activation="relu")])
    agree([L.Activation(name), L.Conv2D(5, 3)])


def test_activation_layers_and_layers_that_do_nothing_in_use():
    for layer in (L.ReLU(1.5, 0.1, 0.2), L.LeakyReLU(0.2), L.ELU(0.7), L.Softmax(), L.Activation("softmax"),
                  L.Rescaling(1 / 127.5, -1.0), L.Rescaling([1.0, 2.0, 3.0, 4.0], [0.1, 0.2, 0.3, 0.4]),
                  L.Dropout(0.5), L.SpatialDropout2D(0.5), L.GaussianNoise(1.0), L.RandomFlip(), L.RandomRotation(0.2),
                  L.RandomZoom(0.2), L.RandomTranslation(0.2, 0.2)):  # fmt: skip
        agree([layer, L.Conv2D(5, 3)])


@pytest.mark.parametrize("function", ["softmax", "sigmoid"])
def test_logits_stand_before_the_last_activation(function):
    for end in ([L.Dense(5, activation=function)], [L.Dense(5), L.Activation(function), L.Dropout(0.5)]):
        model = keras.Sequential([keras.Input((7, 10, 4)), L.Flatten(), *end])
        randomize(model)
        ours, theirs = answers(model, image_of((7, 10, 4)), data_format="channels_last")
        np.testing.assert_array_equal(ours["logits"], ours[next(iter(ours))])
        wanted = np.exp(ours["logits"]) / (
            np.exp(ours["logits"]).sum() if function == "softmax" else 1 + np.exp(ours["logits"])
        )
        np.testing.assert_allclose(wanted, theirs, atol=1e-5)


def test_layers_that_are_not_known_are_refused_by_name():
    with pytest.raises(ValueError, match=r"layer .*\(GroupNormalization\) cannot be computed: .* are not known here"):
        agree([L.GroupNormalization(2)])
    with pytest.raises(ValueError, match="layers of class Lambda are not known here"):
        agree([L.Lambda(lambda x: x, output_shape=(7, 10, 4)), L.Conv2D(5, 3)])


def test_a_functional_model_with_another_in_it():
    model = branches()
    randomize(model)
    ours, theirs = answers(model, image_of((16, 16, 3)))
    assert_logits(model, ours["logits"], theirs)
    assert {*ours} == {"base/conv", "strided", "twice", "conv", "logits"}


def test_a_sequential_of_a_network_and_an_own_head():
    model = sequential()
    randomize(model)
    ours, theirs = answers(model, image_of((16, 16, 3)) * 255)
    assert_logits(model, ours["logits"], theirs)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("how", ["config", "names", "numbers"])
def test_whole_networks_by_config_by_names_and_by_the_order_of_their_layers(name, how):
    model = NETWORKS[name]()
    randomize(model)
    image = image_of(model.input_shape[1:])
    if how == "config":
        ours, theirs = answers(model, image)
    else:
        file, values = of_model(model)
        if how == "numbers":
            file, values = numbered(file, values)
        ours, theirs = answers(model, image, with_graph(file), values)
    assert_logits(model, ours["logits"], theirs)


def numbered(file, values):
    """As `.weights.h5` before Keras 3.15 has them: by class, then number in the order of `model.layers`."""

    ordered = sorted(file.layers, key=lambda layer: layer.kind)
    layers = [replace(layer, name=f"layer_{i}") for i, layer in enumerate(ordered)]
    return replace(file, layers=tuple(layers), named=False, container="weights"), values


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_are_ordered_as_keras_orders_them(name):
    model = NETWORKS[name]()
    file, _ = of_model(model)
    config = with_graph(file).config
    assert [layer.name for layer in list_of(config)] == [layer.name for layer in model.layers[1:]]


def changed(file, kind, **settings):
    """The file with other settings of the layers of a class in its config."""
    config = json.loads(json.dumps(file.config))
    for layer in config["config"]["layers"]:
        if layer["class_name"] == kind:
            layer["config"] |= settings
    return replace(file, config=config)


@pytest.mark.parametrize(
    ("name", "kind", "setting"),
    [
        ("resnet50", "BatchNormalization", {"epsilon": 1e-3}),
        ("resnet50", "MaxPooling2D", {"padding": "same"}),
        ("inception_v3", "BatchNormalization", {"epsilon": 0.1}),
    ],
)
def test_wrong_settings_are_seen(name, kind, setting):
    model = NETWORKS[name]()
    randomize(model)
    for weight in model.weights:
        if weight.name == "moving_variance":  # as small as some of released networks are
            weight.assign(weight.value * 0.02)
    file, values = of_model(model)
    file, image = with_graph(file), image_of(model.input_shape[1:])
    right, wrong = (dict(forward(one, of_arrays(values), image)) for one in (file, changed(file, kind, **setting)))
    errors = [
        np.abs(right[key] - wrong[key]).max() / np.abs(right[key]).max() if right[key].shape == wrong[key].shape else 1
        for key in right
    ]
    assert max(errors) > 1e-3

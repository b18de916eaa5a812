"""Write models of real Keras 3, on its torch backend, that have no class of their own here, with what they answer.

    KERAS_BACKEND=torch python -m tests.reference.keras3_graphs FOLDER KIND [NAME ...]

KIND is one of layers, models, papers, narrow, refused and both.

Each model NAME is written as NAME.keras and NAME.h5, with NAME.npz: two images (2, H, W, 3), 0 to 255, and its output.
Weights and statistics are random, from seeds, and large enough that a mistake shows.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.reference.goldens import Golden
from tests.reference.narrow_networks import keras_application

SIZE = (20, 28)  # pixels, unequal so that exchanged axes show

Model = Callable[[Any, Any, Any], Any]  # (keras.layers, keras, input) -> output


def _conv(**settings: Any) -> Model:
    return lambda L, k, x: L.Conv2D(4, **({"kernel_size": 3} | settings))(x)


def _after(layer: str, *arguments: Any, **settings: Any) -> Model:
    """A layer on the map of a convolution, whose values are of both signs."""
    return lambda L, k, x: getattr(L, layer)(*arguments, **settings)(L.Conv2D(4, 3, name="first")(x))


def _of_sequence(layer: str, *arguments: Any, **settings: Any) -> Model:
    """A layer on values of two dimensions."""
    return lambda L, k, x: getattr(L, layer)(*arguments, **settings)(L.Reshape((39, -1))(L.Conv2D(3, 3)(x)))


def _of_vector(layer: str, *arguments: Any, **settings: Any) -> Model:
    return lambda L, k, x: getattr(L, layer)(*arguments, **settings)(_vector(L, x))


def _vector(L: Any, x: Any, units: int = 6) -> Any:
    return L.Dense(units, name=f"vector{units}")(L.GlobalAveragePooling2D(name=f"pooled{units}")(L.Conv2D(4, 3)(x)))


def _merged(layer: str, **settings: Any) -> Model:
    return lambda L, k, x: getattr(L, layer)(**settings)([L.Conv2D(4, 3)(x), L.Conv2D(4, 3)(x)])


def _gated(L: Any, x: Any) -> Any:
    return L.Multiply()([x, L.GlobalAveragePooling2D(keepdims=True)(x)])


def _computed(k: Any, x: Any) -> Any:
    return (1.0 - x) * 2.0 / 4.0 + k.ops.relu6(x + 3.0) * x - k.ops.sigmoid(x)


LAYERS: dict[str, Model] = {
    # convolutions
    "conv": _conv(),
    "conv_same": _conv(padding="same", activation="relu"),
    "conv_same_stride_2": _conv(padding="same", strides=2),  # one more row and column of padding below and right
    "conv_same_stride_3_kernel_4": _conv(kernel_size=4, padding="same", strides=3),
    "conv_softmax": _conv(activation="softmax"),
    "conv_sigmoid": _conv(activation="sigmoid"),
    "conv_uneven": _conv(kernel_size=(2, 5), strides=(3, 1), padding="same", use_bias=False),
    "conv_dilated": _conv(dilation_rate=(2, 3), padding="same"),
    "conv_groups": lambda L, k, x: L.Conv2D(8, 3, groups=4, activation="tanh")(L.Conv2D(8, 1)(x)),
    "depthwise": _after("DepthwiseConv2D", 3, padding="same"),
    "depthwise_multiplied": _after("DepthwiseConv2D", 3, depth_multiplier=3, strides=2, padding="same"),
    "separable": _after("SeparableConv2D", 5, 3, padding="same", activation="elu"),
    "separable_multiplied": _after("SeparableConv2D", 5, (2, 3), depth_multiplier=2, strides=2, use_bias=False),
    "transposed": _after("Conv2DTranspose", 5, 3),
    "transposed_same": _after("Conv2DTranspose", 5, 3, strides=2, padding="same", activation="relu"),
    "transposed_kernel_4": _after("Conv2DTranspose", 5, 4, strides=2, padding="same"),
    "transposed_kernel_5_stride_3": _after("Conv2DTranspose", 5, 5, strides=3, padding="same"),
    "transposed_stride_above_kernel": _after("Conv2DTranspose", 5, 2, strides=3),
    "transposed_dilated": _after("Conv2DTranspose", 5, 3, dilation_rate=2),
    "transposed_output_padding": _after("Conv2DTranspose", 5, 3, strides=2, padding="same", output_padding=1),
    "transposed_output_padding_valid": _after("Conv2DTranspose", 5, 3, strides=2, output_padding=1),
    # dense and normalisation
    "dense_on_map": _after("Dense", 7, activation="gelu"),
    "dense_without_bias": _of_vector("Dense", 5, use_bias=False),
    "batch_norm": _after("BatchNormalization", epsilon=0.02),
    "batch_norm_bare": _after("BatchNormalization", scale=False, center=False),
    "batch_norm_of_rows": _after("BatchNormalization", axis=1),
    "batch_norm_of_vector": _of_vector("BatchNormalization"),
    "layer_norm": _after("LayerNormalization", epsilon=0.02),
    "layer_norm_of_all": _after("LayerNormalization", axis=(1, 2, 3)),
    "layer_norm_of_sequence": _of_sequence("LayerNormalization", axis=(1, 2)),
    "layer_norm_without_scale": _of_vector("LayerNormalization", scale=False),
    "normalization_inside": _after("Normalization", mean=[0.1, 0.2, 0.3, 0.4], variance=[1.0, 2.0, 3.0, 0.5]),
    "normalization_inverted": _after(
        "Normalization", mean=[0.1, 0.2, 0.3, 0.4], variance=[1.0, 2.0, 3.0, 0.5], invert=True
    ),
    "normalization_learnt": _after("Normalization"),
    "rescaling_inside": _after("Rescaling", 0.5, offset=0.25),
    "rescaling_of_channels": _after("Rescaling", [0.5, 2.0, 1.0, 3.0], offset=[0.1, 0.2, 0.3, 0.4]),
    # activations
    **{f"activation_{name}": _after("Activation", name) for name in (
        "relu", "relu6", "elu", "selu", "gelu", "silu", "sigmoid", "tanh", "softplus", "softsign", "exponential",
        "hard_sigmoid", "hard_silu", "leaky_relu", "mish", "linear", "softmax", "log_softmax",
        "celu", "hard_tanh", "tanh_shrink", "log_sigmoid",
    )},
    "activation_fused_as_layer": lambda L, k, x: L.Conv2D(4, 3, activation=L.LeakyReLU(negative_slope=0.1))(x),
    "relu": _after("ReLU"),
    "relu_to_6": _after("ReLU", max_value=6.0),
    "relu_with_slope": _after("ReLU", negative_slope=0.2),
    "relu_with_all": _after("ReLU", max_value=0.7, negative_slope=0.1, threshold=0.2),
    "leaky_relu": _after("LeakyReLU"),
    "elu": _after("ELU", alpha=0.7),
    "prelu": _after("PReLU"),
    "prelu_of_channels": _after("PReLU", shared_axes=[1, 2]),
    "prelu_of_rows": _after("PReLU", shared_axes=[2, 3]),
    "prelu_of_sequence": _of_sequence("PReLU"),
    "prelu_of_vector": _of_vector("PReLU"),
    "softmax_of_rows": _after("Softmax", axis=1),
    # pooling and shapes
    "max_pool": _after("MaxPooling2D", 2),
    "max_pool_same": _after("MaxPooling2D", 3, strides=2, padding="same"),
    "average_pool": _after("AveragePooling2D", (3, 2), strides=1),
    "average_pool_same": _after("AveragePooling2D", 3, strides=2, padding="same"),
    "average_pool_same_stride_1": _after("AveragePooling2D", 3, strides=1, padding="same"),
    "global_max": _after("GlobalMaxPooling2D", keepdims=True),
    "global_average": _after("GlobalAveragePooling2D"),
    "zero_padding": _after("ZeroPadding2D", ((1, 2), (3, 4))),
    "cropping": _after("Cropping2D", ((1, 2), (3, 4))),
    "center_crop": _after("CenterCrop", 9, 20),
    "upsampling": _after("UpSampling2D", (2, 3)),
    "upsampling_bilinear": _after("UpSampling2D", (2, 3), interpolation="bilinear"),
    "flatten": _after("Flatten"),
    "flatten_as_first": _after("Flatten", data_format="channels_first"),
    "flatten_sequence_as_first": _of_sequence("Flatten", data_format="channels_first"),
    "without_parameters": lambda L, k, x: L.MaxPooling2D(3)(x),
    "without_format": lambda L, k, x: L.Reshape((-1,))(L.BatchNormalization()(x)),
    "reshape": _after("Reshape", (26, 18, 4)),
    "reshape_to_vector": _after("Reshape", (-1,)),
    "permute": _after("Permute", (3, 1, 2)),
    # merges
    **{f"merge_{name.lower()}": _merged(name) for name in (
        "Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate",
    )},
    "concatenate_rows": _merged("Concatenate", axis=1),
    "multiply_by_gate": lambda L, k, x: _gated(L, L.Conv2D(4, 3)(x)),
    "dot": lambda L, k, x: L.Dot(axes=1)(
        [L.Dense(5)(L.GlobalMaxPooling2D()(x)), L.Dense(5)(L.GlobalAveragePooling2D()(x))]),
    "cosine": lambda L, k, x: L.Dot(axes=1, normalize=True)(
        [L.Dense(5)(L.GlobalMaxPooling2D()(x)), L.Dense(5)(L.GlobalAveragePooling2D()(x))]),
    # operations
    "operations": lambda L, k, x: _computed(k, L.Conv2D(4, 3)(x)),
    "operation_with_numbers": lambda L, k, x: L.Conv2D(4, 3)(x) * np.array([0.5, 2.0, -1.0, 3.0], np.float32),
    "operation_softmax": lambda L, k, x: k.ops.softmax(L.Conv2D(4, 3)(x), axis=1),
    "operation_mean": lambda L, k, x: k.ops.mean(L.Conv2D(4, 3)(x), axis=(1, 2)),
    "ends_in_sigmoid": lambda L, k, x: L.Conv2D(4, 3, activation="sigmoid")(x),
    "ends_in_fused_softmax": lambda L, k, x: L.GlobalAveragePooling2D()(L.Conv2D(4, 3, activation="softmax")(x)),
    "ends_in_sigmoid_of_cells": lambda L, k, x: L.Activation("sigmoid")(L.Flatten()(L.Conv2D(4, 3)(x))),
    "ends_in_softmax_of_cells": lambda L, k, x: L.Softmax()(L.BatchNormalization()(L.Flatten()(L.Conv2D(4, 3)(x)))),
    "ends_in_sigmoid_of_sum": lambda L, k, x: L.Activation("sigmoid")(L.Multiply()([y := _vector(L, x), y])),
    # wrappers
    "time_distributed": lambda L, k, x: L.TimeDistributed(L.Dense(7, activation="softmax"))(L.Conv2D(4, 3)(x)),
    "time_distributed_sequence": lambda L, k, x: L.Dense(3)(L.Flatten()(L.TimeDistributed(L.LeakyReLU())(
        L.TimeDistributed(L.Dense(2))(L.Reshape((26, 72))(L.Conv2D(4, 3)(x)))))),
    "dropout": _after("SpatialDropout2D", 0.3),
}  # fmt: skip


def _small(L: Any, x: Any) -> Any:
    """A small convolutional part with a branch, strides and a pool."""
    x = L.Conv2D(6, 3, strides=2, padding="same", use_bias=False, name="stem")(x)
    x = L.ReLU(name="stem_relu")(L.BatchNormalization(name="stem_bn")(x))
    y = L.Conv2D(6, 3, padding="same", activation="relu", name="branch")(x)
    x = L.Add(name="joined")([x, y])
    return L.MaxPooling2D(2, name="pool")(x)


def _head(*layers: Callable[[Any], Any]) -> Model:
    def build(L: Any, k: Any, x: Any) -> Any:
        x = _small(L, x)
        for layer in layers:
            x = layer(L)(x)
        return x

    return build


def _preprocessed(mode: str) -> Model:
    def build(L: Any, k: Any, x: Any) -> Any:
        return _small(L, k.applications.imagenet_utils.preprocess_input(x, mode=mode))

    return build


def _two_readers(L: Any, k: Any, x: Any) -> Any:
    x = _small(L, x)
    joined = L.Concatenate()([L.GlobalAveragePooling2D()(x), L.GlobalMaxPooling2D()(x)])
    return L.Dense(3, activation="softmax", name="scores")(L.Dense(8, activation="relu", name="hidden")(joined))


def _shared(L: Any, k: Any, x: Any) -> Any:
    again = L.Conv2D(6, 3, padding="same", name="shared")
    x = _small(L, x)
    return L.Dense(3)(L.GlobalAveragePooling2D()(again(again(x))))


def _nested(L: Any, k: Any, x: Any) -> Any:
    inner_input = k.Input((*SIZE, 3))
    inner = k.Model(inner_input, _small(L, inner_input), name="base")
    return L.Dense(3, activation="sigmoid", name="scores")(L.Flatten()(inner(x)))


def _gate_in_head(L: Any, k: Any, x: Any) -> Any:
    """A head of single cells, with a product of two inputs before its last convolution, as MobileNetV3 in tf.keras."""
    x = L.Conv2D(8, 1)(L.GlobalAveragePooling2D(keepdims=True)(_small(L, x)))
    x = L.Multiply()([x, L.Activation("sigmoid")(x)])
    return L.Flatten()(L.Conv2D(4, 1, name="scores")(L.Dropout(0.2)(x)))


def _softmax_of_product(L: Any, k: Any, x: Any) -> Any:
    x = L.Dense(4)(L.GlobalAveragePooling2D()(_small(L, x)))
    return L.Softmax()(L.Multiply()([x, L.ReLU()(x)]))


FIRST: dict[str, Model] = {  # channels first
    "first_prelu": lambda L, k, x: L.PReLU(shared_axes=[2, 3])(L.Conv2D(4, 3)(x)),
    "first_log_softmax": lambda L, k, x: L.Activation("log_softmax")(L.Conv2D(4, 3)(x)),
    "first_pool": lambda L, k, x: L.Dense(3)(L.Flatten(data_format="channels_last")(L.MaxPooling2D((4, 5))(x))),
    "first_flatten": lambda L, k, x: L.Dense(3)(L.Flatten()(L.Conv2D(4, 3)(x))),
    "first_preprocess_caffe": lambda L, k, x: L.Conv2D(4, 3)(
        k.applications.imagenet_utils.preprocess_input(x, mode="caffe")),
}  # fmt: skip

MODELS: dict[str, Model] = {
    **FIRST,
    "softmax_of_product": _softmax_of_product,
    "softmax_of_sigmoid": _head(
        lambda L: L.Flatten(), lambda L: L.Dense(4, activation="sigmoid"), lambda L: L.Softmax()),
    "softmax_inside_head": _head(
        lambda L: L.Flatten(), lambda L: L.Dense(4, activation="softmax"), lambda L: L.Dense(3)),
    "numbers_after_flatten": _head(
        lambda L: L.Flatten(), lambda L: L.Rescaling([0.5 + place / 100 for place in range(210)]),
        lambda L: L.Dense(4)),
    "two_norms_after_flatten": _head(
        lambda L: L.Flatten(), lambda L: L.BatchNormalization(), lambda L: L.BatchNormalization(),
        lambda L: L.Dense(4)),
    "norm_after_pool": _head(lambda L: L.GlobalAveragePooling2D(), lambda L: L.BatchNormalization()),
    "dense_of_each_channel": _head(
        lambda L: L.GlobalAveragePooling2D(), lambda L: L.Reshape((6, 1)), lambda L: L.Dense(3), lambda L: L.Flatten(),
        lambda L: L.Dense(2)),
    "gate_in_head": _gate_in_head,
    "average_head": _head(
        lambda L: L.GlobalAveragePooling2D(), lambda L: L.Dense(4, activation="softmax", name="scores")
    ),
    "max_head": _head(lambda L: L.GlobalMaxPooling2D(), lambda L: L.Dense(1, activation="sigmoid")),
    "flatten_head": _head(
        lambda L: L.Flatten(), lambda L: L.BatchNormalization(), lambda L: L.Dense(9, activation="selu"),
        lambda L: L.Dropout(0.4), lambda L: L.BatchNormalization(), lambda L: L.Dense(4), lambda L: L.Softmax(),
    ),
    "average_pool_head": _head(lambda L: L.AveragePooling2D((5, 7)), lambda L: L.Flatten(), lambda L: L.Dense(4)),
    "convolutional_head": _head(
        lambda L: L.GlobalAveragePooling2D(keepdims=True), lambda L: L.Dropout(0.2), lambda L: L.Conv2D(4, 1),
        lambda L: L.Reshape((4,)), lambda L: L.Activation("softmax"),
    ),
    "convolution_then_pool": _head(
        lambda L: L.Conv2D(4, 1), lambda L: L.GlobalAveragePooling2D(), lambda L: L.Activation("softmax")
    ),
    "norm_before_activation": _head(
        lambda L: L.GlobalAveragePooling2D(), lambda L: L.Dense(9), lambda L: L.BatchNormalization(),
        lambda L: L.Activation("relu"), lambda L: L.Dense(4, activation="softmax"),
    ),
    "unknown_to_slide": _head(lambda L: L.Flatten(), lambda L: L.Dense(4, activation="softsign"), lambda L: L.Dense(3)),
    "two_readers": _two_readers,
    "shared": _shared,
    "nested": _nested,
    "map_only": _head(),
    "pooled_only": _head(lambda L: L.GlobalAveragePooling2D()),
    "rescaled_and_pooled": lambda L, k, x: L.GlobalAveragePooling2D()(L.Rescaling(1 / 255, offset=-1)(x)),
    "cropped_and_rescaled": lambda L, k, x: _small(L, L.Rescaling(1 / 255)(L.CenterCrop(15, 20)(x))),
    "rescaled": lambda L, k, x: _small(L, L.Rescaling(1 / 127.5, offset=-1)(x)),
    "augmented": lambda L, k, x: _small(L, L.Rescaling(1 / 255)(L.RandomFlip()(x))),
    "normalized": lambda L, k, x: _small(
        L, L.Normalization(mean=[120.0, 110.0, 100.0], variance=[3600.0, 3400.0, 3200.0])(x)),
    **{f"preprocess_{mode}": _preprocessed(mode) for mode in ("caffe", "tf", "torch")},
}  # fmt: skip
INSIDE = {name for name in MODELS if "preprocess_" in name} | {
    "rescaled",
    "cropped_and_rescaled",
    "rescaled_and_pooled",
    "augmented",
    "normalized",
}

REFUSED: dict[str, tuple[Model, str]] = {  # what is not supported -> model, sentence
    "a constant to compare with": (
        lambda L, k, x: k.ops.maximum(L.Conv2D(4, 3)(x), 0.5), "compares its input with a constant, which is not"),
    "a constant of rows": (  # as many as channels
        lambda L, k, x: L.Conv2D(18, 3)(x) + np.arange(18, dtype=np.float32).reshape(18, 1, 1),
        r"has a constant of \[18, 1, 1\] numbers for \[18, 18, 26\]"),
    "numbers of a sequence": (
        lambda L, k, x: L.Rescaling([0.5, 2.0, 3.0])(L.Reshape((3, 3))(L.Dense(9)(L.Flatten()(x)))),
        "has a constant of 3 numbers"),
}  # fmt: skip

BOTH_FORMATS = (  # also made with channels first, where axes count otherwise
    "conv_same_stride_2", "conv_groups", "depthwise_multiplied", "separable_multiplied", "transposed_same",
    "transposed_output_padding", "batch_norm", "batch_norm_of_rows", "layer_norm", "layer_norm_of_all",
    "activation_softmax", "activation_log_softmax", "activation_hard_sigmoid", "softmax_of_rows", "relu_with_all",
    "prelu", "prelu_of_rows", "prelu_of_channels", "max_pool_same", "upsampling_bilinear", "zero_padding", "cropping",
    "reshape", "permute", "concatenate_rows", "merge_concatenate", "time_distributed_sequence", "flatten_head",
    "preprocess_caffe", "preprocess_torch",
)  # fmt: skip


def _vgg(L: Any, depths: Any, start: Any, head: Any, split: bool = False, named: str = "") -> Any:
    """VGG with an eighth of a few channels, its layers named by Keras or by a pattern."""
    x = start
    for block, (width, depth) in enumerate(zip((4, 6, 8, 10, 12), depths, strict=True), 1):
        for number in range(1, depth + 1):
            name = {"name": named.format(block, number)} if named else {}
            if split:
                x = L.Conv2D(width, 3, **name)(L.ZeroPadding2D(1)(x))
                x = L.ReLU()(x)
            else:
                x = L.Conv2D(width, 3, padding="same", activation="relu", **name)(x)
        x = L.MaxPooling2D(2)(x)
    for layer in head(L):
        x = layer(x)
    return x


def _dense3(L: Any) -> list[Any]:
    return [L.Flatten(), L.Dense(9, "relu"), L.Dense(8, "relu"), L.Dense(5, "softmax", name="anything")]


def _renamed(model: Any, keras: Any) -> Any:
    """The same model with all layers named in another way."""
    names = {layer.name: f"layer_{number * 7919 % 10007}" for number, layer in enumerate(model.layers)}
    return keras.models.clone_model(
        model,
        clone_function=lambda layer: layer.__class__.from_config(layer.get_config() | {"name": names[layer.name]}),
    )


def _application(name: str, side: int, **settings: Any) -> Any:
    def make(L: Any, keras: Any) -> Any:
        network = getattr(keras.applications, name)
        return _renamed(network(weights=None, input_shape=(side, side, 3), classes=5, **settings), keras)

    return make


def _of_vgg(depths: tuple[int, ...], head: Any, **settings: Any) -> Any:
    def make(L: Any, keras: Any) -> Any:
        start = keras.Input((64, 96, 3))
        return keras.Model(start, _vgg(L, depths, start, head, **settings))

    return make


D, E = (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)
PAPERS = {  # models that are networks of the papers by their graph, whatever their names are
    "vgg16_automatic_names": _of_vgg(D, _dense3),
    "vgg19_in_small_layers": _of_vgg(E, _dense3, split=True),
    "vgg16_own_dense_layers": _of_vgg(
        D, lambda L: [L.GlobalAveragePooling2D(), L.Dense(6, "elu", name="fc1"), L.Dense(4, name="fc2")],
        named="block{}_conv{}",
    ),
    "vgg16_until_fc2": _of_vgg(
        D, lambda L: [L.Flatten(name="flatten"), L.Dense(9, "relu", name="fc1"), L.Dense(8, "relu", name="fc2")],
        named="block{}_conv{}",
    ),
    "vgg16_normalised_head": _of_vgg(
        D, lambda L: [L.Flatten(), L.BatchNormalization(), L.Dense(9), L.BatchNormalization(), L.ReLU(), L.Dense(3)]
    ),
    "vgg16_names_of_vgg19": _of_vgg(D, _dense3, named="block5_conv{}{}"),
    "resnet50_renamed": _application("ResNet50", 32),
    "inception_v3_renamed": _application("InceptionV3", 75),
}  # fmt: skip
NEARLY = {  # that differ from them in one place
    "vgg16_with_one_average": lambda L, keras: _nearly(L, keras, pool="AveragePooling2D"),
    "vgg16_with_one_leaky": lambda L, keras: _nearly(L, keras, activation="leaky_relu"),
    "vgg16_with_one_dilated": lambda L, keras: _nearly(L, keras, dilation_rate=2),
    "vgg16_of_uneven_width": lambda L, keras: _nearly(L, keras, filters=7),
}  # fmt: skip


def _nearly(L: Any, keras: Any, pool: str = "", filters: int = 8, **settings: Any) -> Any:
    start = x = keras.Input((64, 64, 3))
    for block, (width, depth) in enumerate(zip((4, 6, 8, 10, 12), D, strict=True), 1):
        for number in range(1, depth + 1):
            here = (block, number) == (3, 2)
            other = {"activation": "relu"} | (settings if here else {})
            x = L.Conv2D(filters if here else width, 3, padding="same", **other)(x)
        x = getattr(L, pool if pool and block == 2 else "MaxPooling2D")(2)(x)
    for layer in _dense3(L):
        x = layer(x)
    return keras.Model(start, x)


# Narrow networks of Keras Applications whose maps have a single cell, or that end with a pooling: (network, size,
# pooling instead of the head).
NARROW: dict[str, tuple[str, tuple[int, int], str]] = {
    "resnet50_one_cell": ("resnet50", (32, 32), ""),
    "inception_v3_one_cell": ("inception_v3", (75, 75), ""),
    "vgg16_one_cell_maximum": ("vgg16", (32, 32), "GlobalMaxPooling2D"),
    "vgg16_average": ("vgg16", (64, 96), "GlobalAveragePooling2D"),
}


def _narrow(name: str) -> Any:
    import keras

    network, size, pooling = NARROW[name]
    top: Any = "none" if pooling else "standard"
    plan = Golden(name, network, "keras-applications", "3", "channels_last", ".keras", top, "unit", size)
    model = keras_application(plan)
    return keras.Model(model.input, getattr(keras.layers, pooling)()(model.output)) if pooling else model


def choose_weights(model: Any, seed: int, gain: float = 1.3) -> None:
    """Random weights that keep the size of values from layer to layer, and random statistics."""
    random = np.random.default_rng(seed)
    for weight in model.weights:
        shape, name = tuple(weight.shape), weight.path.rpartition("/")[2]
        if "seed" in weight.path or name == "count":
            continue
        if "variance" in name or name == "gamma":
            values = random.uniform(0.5, 1.5, shape)
        elif "kernel" in name:
            inputs = shape[:-1] if shape[-1] > 1 else shape[:2]  # a depthwise kernel reads one channel at a time
            values = random.normal(0, gain / np.sqrt(max(1, np.prod(inputs))), shape)
        else:
            values = random.normal(0, 0.3, shape)
        weight.assign(values.astype(np.float32))


def write(model: Any, path: Path, seed: int, inside: bool, first: bool) -> None:
    """Write a model in both containers with its answers; images are divided by 255 unless it normalises them."""
    choose_weights(model, seed)
    sides = model.input_shape[2:] if first else model.input_shape[1:3]
    images = np.random.default_rng(seed).integers(0, 256, (2, *sides, 3)).astype(np.float32)
    given = images if inside else images / np.float32(255)
    outputs = model.predict(given.transpose(0, 3, 1, 2) if first else given, verbose=0)
    np.savez(f"{path}.npz", images=images.astype(np.uint8), outputs=outputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(f"{path}.keras")
        model.save(f"{path}.h5")


def main(folder: str, kind: str, *names: str) -> None:
    import keras
    from keras import layers

    kinds = {
        "layers": LAYERS, "models": MODELS, "papers": PAPERS | NEARLY, "narrow": NARROW,
        "refused": REFUSED, "both": BOTH_FORMATS,
    }  # fmt: skip
    makers = LAYERS | MODELS | {name: model for name, (model, _) in REFUSED.items()}
    for number, name in enumerate(names or kinds[kind]):
        first = name in FIRST or kind == "both"
        keras.config.set_image_data_format("channels_first" if first else "channels_last")
        if kind == "narrow":
            model, inside = _narrow(name), False
        elif kind == "papers":
            model, inside = (PAPERS | NEARLY)[name](layers, keras), False
        else:
            start = keras.Input((3, *SIZE) if first else (*SIZE, 3))
            model = keras.Model(start, makers[name](layers, keras, start))
            inside = name in INSIDE
        write(model, Path(folder) / name, number, inside, first)
        keras.backend.clear_session()


if __name__ == "__main__":
    main(*sys.argv[1:])

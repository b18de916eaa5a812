"""Heads of a user's own on narrow networks of real Keras 3, for files that hold weights alone: right and odd ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from tests.reference.goldens import Golden
from tests.reference.narrow_networks import keras_application

L = keras.layers
SIZE = (96, 96)  # 3x3 cells of 12 channels


def base(network: str = "vgg16", size: tuple[int, int] = SIZE) -> Any:
    """Without its top."""
    return keras_application(
        Golden("", network, "keras-applications", "3", "channels_last", "weights", "none", "raw", size)
    )


def on_map(*layers: Any) -> Any:
    """A model of the layers after the network's feature map, one after another."""
    network = base()
    x = network.output
    for layer in layers:
        x = layer(x)
    return keras.Model(network.input, x)


def pooled(*layers: Any) -> Any:
    return on_map(L.GlobalAveragePooling2D(), *layers, L.Dense(5, "softmax"))


def gate() -> Any:
    network = base()
    x = L.GlobalAveragePooling2D()(network.output)
    return keras.Model(network.input, L.Dense(5, "softmax")(L.Multiply()([x, L.Dense(12, "sigmoid")(x)])))


def residual() -> Any:
    network = base()
    x = L.Dense(12, "relu")(L.GlobalAveragePooling2D()(network.output))
    return keras.Model(network.input, L.Dense(5, "softmax")(L.Add()([x, L.Dense(12, "relu")(x)])))


def second_input() -> Any:
    network = base()
    other = keras.Input((12,))
    x = L.Subtract()([L.GlobalAveragePooling2D()(network.output), other])
    return keras.Model([network.input, other], L.Dense(5, "softmax")(x))


def own_names() -> Any:
    return on_map(
        L.Flatten(name="my_flatten"), L.Dense(8, name="hidden"), L.Activation("relu", name="hidden_relu"),
        L.Dropout(0.3, name="drop1"), L.Dense(5, name="scores"), L.Activation("softmax", name="probs"),
    )  # fmt: skip


def nested(*layers: Any) -> Any:
    return keras.Sequential([base(), *layers])


def two_outputs() -> Any:
    network = base()
    x = L.GlobalAveragePooling2D()(network.output)
    return keras.Model(network.input, [L.Dense(12, "softmax", name="colour")(x), L.Dense(5, "softmax", name="kind")(x)])


def concatenated() -> Any:
    network = base()
    x = L.GlobalAveragePooling2D()(network.output)
    y = L.GlobalMaxPooling2D()(network.output)
    return keras.Model(network.input, L.Dense(5, "softmax")(L.Concatenate()([x, y])))


def in_front(layer: Any) -> Any:
    inputs = keras.Input((*SIZE, 3))
    x = layer(inputs)
    x = base(size=tuple(x.shape[1:3]))(x)
    return keras.Model(inputs, L.Dense(5, "softmax")(L.GlobalAveragePooling2D()(x)))


def cut() -> Any:
    """Without the last pooling of the network."""
    network = base()
    x = L.GlobalAveragePooling2D()(network.get_layer("block5_conv3").output)
    return keras.Model(network.input, L.Dense(5, "softmax")(x))


def changed(pool: Any = L.MaxPooling2D, gated: bool = False) -> Any:
    """VGG16 by hand, with poolings of automatic names, and with a gate behind its second block."""
    x = inputs = keras.Input((*SIZE, 3))
    for block, depth in enumerate((2, 2, 3, 3, 3), 1):
        for conv in range(1, depth + 1):
            x = L.Conv2D(2 + 2 * block, 3, padding="same", activation="relu", name=f"block{block}_conv{conv}")(x)
        x = pool(2)(x)
        if gated and block == 2:
            x = L.Multiply()([x, L.Activation("sigmoid")(x)])
    return keras.Model(inputs, L.Dense(5, "softmax")(L.GlobalAveragePooling2D()(x)))


def on(network: str, *layers: Any) -> Any:
    """On a network with branches."""
    body = base(network, (107, 139) if network == "inception_v3" else SIZE)
    x = body.output
    for layer in (L.GlobalAveragePooling2D(), *layers, L.Dense(5, "softmax")):
        x = layer(x)
    return keras.Model(body.input, x)


def frozen() -> Any:
    """A nested head whose first layer is frozen: a `.h5` lists its arrays last."""
    network = base()
    head = [L.GlobalAveragePooling2D(), L.Dense(12, "relu"), L.Dense(12, "relu"), L.Dense(12, "softmax")]
    model = keras.Model(network.input, keras.Sequential(head)(network.output))
    head[1].trainable = False
    return model


Head = Callable[[], Any]
NORMALISED: dict[str, Head] = {  # in `.weights.h5` nothing tells where the normalisation or its activation stands
    "dense, normalisation, activation": lambda: pooled(L.Dense(8), L.BatchNormalization(), L.Activation("relu")),
    "dense, activation, normalisation": lambda: pooled(L.Dense(8), L.Activation("relu"), L.BatchNormalization()),
    "as wide as the map, normalisation after": lambda: pooled(
        L.Dense(12), L.BatchNormalization(), L.Activation("relu")
    ),
    "as wide as the map, normalisation before": lambda: pooled(L.BatchNormalization(), L.Dense(12, "relu")),
    "normalisation and activation of the average": lambda: pooled(
        L.BatchNormalization(), L.Activation("relu"), L.Dense(8, "relu")
    ),
    "resnet50": lambda: on("resnet50", L.Dense(8), L.BatchNormalization(), L.Activation("relu")),
    "dense without bias, normalisation, activation": lambda: pooled(
        L.Dense(8, use_bias=False), L.BatchNormalization(), L.Activation("relu")
    ),
    "softmax in the middle": lambda: pooled(L.Dense(8), L.Softmax()),
    "normalisation of the map, maximum": lambda: on_map(
        L.BatchNormalization(), L.GlobalMaxPooling2D(), L.Dense(5, "softmax")
    ),
}
RIGHT: dict[str, Head] = {
    "plain": lambda: pooled(L.Dense(12, "relu")),
    "identities": lambda: pooled(
        L.Dropout(0.5), L.Dense(12, "relu"), L.GaussianNoise(1.0), L.AlphaDropout(0.1), L.Identity()
    ),
    "dense, activation": lambda: pooled(L.Dense(8), L.Activation("relu"), L.Dropout(0.5)),
    "dense, relu layer": lambda: pooled(L.Dense(8), L.ReLU()),
    "dense with relu, normalisation": lambda: pooled(L.Dense(8, "relu"), L.BatchNormalization()),
    "dense with relu without bias, normalisation": lambda: pooled(
        L.Dense(8, "relu", use_bias=False), L.BatchNormalization()
    ),
    "normalisation of the map": lambda: on_map(
        L.BatchNormalization(), L.GlobalAveragePooling2D(), L.Dense(5, "softmax")
    ),
    "normalisation before and after": lambda: pooled(
        L.BatchNormalization(), L.Dense(8, "relu"), L.BatchNormalization(), L.Dropout(0.1)
    ),
    "softmax layer": lambda: on_map(L.GlobalAveragePooling2D(), L.Dense(5), L.Softmax()),
    "activation at the end": lambda: on_map(L.GlobalAveragePooling2D(), L.Dense(5), L.Activation("softmax")),
    "maximum": lambda: on_map(L.GlobalMaxPooling2D(), L.Dense(5, "softmax")),
    "average, flattened": lambda: pooled(L.Flatten(), L.Dense(8, "relu")),
    "prelu": lambda: pooled(L.Dense(8), L.PReLU()),
    "own names": own_names,
    "nested": lambda: nested(L.Flatten(), L.Dense(12, "relu"), L.Dropout(0.5), L.Dense(5, "softmax")),
    "nested, normalised": lambda: nested(
        L.BatchNormalization(), L.GlobalAveragePooling2D(), L.Dense(8, "relu"), L.Dense(5, "softmax")
    ),
    "by hand": changed,
    "inception_v3": lambda: on("inception_v3", L.Dense(8), L.Activation("relu")),
}
REFUSED: dict[str, tuple[Head, str]] = {  # and the layer that is named, in either form
    "leaky relu": (lambda: pooled(L.Dense(8), L.LeakyReLU(0.3)), "leaky_re_lu"),
    "elu": (lambda: nested(L.Flatten(), L.Dense(8), L.ELU(), L.Dense(5, "softmax")), "elu"),
    "gate": (gate, "multiply"),
    "residual": (residual, "add"),
    "second input": (second_input, "input_layer, input_layer_1"),
    "average before flatten": (
        lambda: on_map(L.AveragePooling2D(2), L.Flatten(), L.Dense(5, "softmax")),
        "average_pooling2d",
    ),
    "maximum of the whole before flatten": (
        lambda: on_map(L.MaxPooling2D(3), L.Flatten(), L.Dense(5, "softmax")),
        "max_pooling2d",
    ),
    "concatenated": (concatenated, "concatenate"),
    "layer normalisation": (lambda: pooled(L.LayerNormalization(), L.Dense(8, "relu")), "layer_normalization"),
    "unit normalisation": (lambda: pooled(L.UnitNormalization(name="x1"), L.Dense(8, "relu")), "x1"),
    "permuted": (lambda: on_map(L.Permute((2, 1, 3)), L.Flatten(), L.Dense(5, "softmax")), "permute"),
    "enlarged": (lambda: on_map(L.UpSampling2D(2), L.GlobalMaxPooling2D(), L.Dense(5, "softmax")), "up_sampling2d"),
    "padded": (lambda: on_map(L.ZeroPadding2D(1), L.GlobalAveragePooling2D(), L.Dense(5, "softmax")), "zero_padding2d"),
    "cropped": (lambda: on_map(L.Cropping2D(1), L.GlobalAveragePooling2D(), L.Dense(5, "softmax")), "cropping2d"),
    "lambda": (lambda: pooled(L.Lambda(lambda x: x * 2.0), L.Dense(8, "relu")), "lambda"),
    "turned": (
        lambda: pooled(L.Reshape((3, 4)), L.Permute((2, 1)), L.Flatten(), L.Dense(8, "relu")),
        "reshape|permute",
    ),
    "cropped in front": (lambda: in_front(L.Cropping2D(2)), "cropping2d"),
    "cut": (cut, "global_average_pooling2d .* stands where block5_pool|block5_pool is missing"),
    "other pools": (lambda: changed(L.AveragePooling2D), "average_pooling2d|block1_pool is missing"),
    "gate within": (lambda: changed(gated=True), "activation .* stands where block3_conv1|multiply"),
    "gate on branches": (lambda: on("resnet50", L.Dense(8), L.LeakyReLU(0.1)), "leaky_re_lu"),
}
PLACED: dict[str, tuple[Head, str]] = {  # refused where the list has an order; else taken to stand elsewhere, and said
    "rescaled in the head": (lambda: pooled(L.Rescaling(3.0), L.Dense(8, "relu")), "rescaling"),
    "activation on the map": (
        lambda: on_map(L.Activation("tanh"), L.GlobalAveragePooling2D(), L.Dense(5, "softmax")),
        "activation",
    ),
    "maximum of a name that Keras does not give it here": (  # a MaxPooling2D may bear it as well
        lambda: on_map(L.GlobalMaxPooling2D(name="max_pool"), L.Dense(5, "softmax")),
        "max_pool, whose class is unknown",
    ),
}

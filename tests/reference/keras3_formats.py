"""Files of real Keras 3 in all its formats, with what the models answer: run as a program, in a process of its own.

    KERAS_BACKEND=torch python tests/reference/keras3_formats.py FOLDER

For each model it writes NAME.h5 (whole), NAME.weights.h5, NAME.keras, NAME.legacy.h5 (weights alone, as Keras 1 and 2
laid them out) and NAME.npz: the input and every layer's output. Weights are random, from an explicit seed.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"

import h5py
import keras
import numpy as np
from keras import layers
from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group


def every_layer() -> keras.Model:
    """Each class that `to_torch_layout` knows, in a chain, channels last."""
    image = x = keras.Input((9, 7, 4), name="image")
    for layer in (
        layers.Conv2D(6, (2, 3), groups=2, name="grouped"),
        layers.BatchNormalization(name="bn_all", epsilon=0.01),
        layers.DepthwiseConv2D((3, 2), depth_multiplier=2, name="depthwise"),
        layers.BatchNormalization(name="bn_without_gamma", scale=False, epsilon=0.01),
        layers.SeparableConv2D(5, (2, 1), depth_multiplier=3, name="separable"),
        layers.BatchNormalization(name="bn_without_beta", center=False, epsilon=0.01),
        layers.Conv2D(3, 1, use_bias=False, name="without_bias"),
        layers.BatchNormalization(name="bn_bare", center=False, scale=False, epsilon=0.01),
        layers.Flatten(name="flatten"),
        layers.Dense(4, name="dense"),
        layers.Dense(2, use_bias=False, name="dense_without_bias"),
    ):
        x = layer(x)
    return keras.Model(image, x, name="every_layer")


def channels_first() -> keras.Model:
    """The same flatten, of channels-first maps: Keras 3 transposes in it."""
    image = keras.Input((3, 5, 4))
    x = layers.Conv2D(6, 2, data_format="channels_first", name="conv")(image)
    x = layers.Flatten(data_format="channels_first", name="flatten")(x)
    return keras.Model(image, layers.Dense(2, name="dense")(x))


def transfer() -> keras.Model:
    """A base in a model, a model in the base, a name that occurs twice; compiled, with the slots of Adam."""
    inner = keras.Sequential([keras.Input((8, 8, 4)), layers.Conv2D(5, 3, name="conv"), layers.ReLU()], name="inner")
    image = keras.Input((10, 10, 3))
    x = layers.Conv2D(4, 3, name="conv")(image)
    x = layers.BatchNormalization(name="bn", scale=False)(x)
    base = keras.Model(image, layers.MaxPooling2D(name="pool")(inner(x)), name="base")
    head = [layers.Flatten(), layers.Dense(6, activation="relu"), layers.Dropout(0.5, seed=1), layers.Dense(2)]
    model = keras.Sequential([keras.Input((10, 10, 3)), base, *head], name="transfer")
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def many() -> keras.Model:
    """Twelve convolutions whose automatic names do not begin at zero: the count in `.weights.h5` does."""
    layers.Conv2D(1, 1), layers.Conv2D(1, 1)
    image = x = keras.Input((4, 4, 2))
    for width in range(2, 14):
        x = layers.Conv2D(width, 1)(x)
    return keras.Model(image, x)


def precisions() -> keras.Model:
    """Every floating point type, and layers that keep states which are no weights."""
    image = x = keras.Input((4, 4, 2))
    for dtype in ("float64", "float16", "bfloat16"):
        x = layers.Conv2D(3, 1, name=dtype, dtype=dtype)(x)
    x = layers.Dropout(0.5, seed=1, name="dropout")(layers.Normalization(name="normalization")(x))
    return keras.Model(image, x)


def with_code() -> keras.Model:
    """A Lambda, whose Python is stored in the file."""
    return keras.Sequential([keras.Input((3,)), layers.Lambda(lambda x: x * 2, name="twice"), layers.Dense(2)])


def randomise(model: keras.Model, seed: int) -> None:
    """Values of order one; variances stay positive."""
    random = np.random.default_rng(seed)
    for variable in model.weights:
        values = random.standard_normal(variable.shape)
        if "variance" in variable.path:
            values = np.abs(values) + 0.5
        variable.assign(values.astype("float32") if str(variable.dtype).startswith(("float", "bfloat")) else values)


def save(model: keras.Model, name: str, folder: Path, seed: int, *, answers: bool) -> None:
    randomise(model, seed)
    model.save(folder / f"{name}.h5")
    model.save(folder / f"{name}.keras")
    model.save_weights(folder / f"{name}.weights.h5")
    with h5py.File(folder / f"{name}.legacy.h5", "w") as file:
        save_weights_to_hdf5_group(file, model)
    if answers:
        image = np.random.default_rng(seed + 1).standard_normal((2, *model.input_shape[1:])).astype("float32")
        each = keras.Model(model.input, [layer.output for layer in model.layers[1:]])
        outputs = [np.asarray(output.detach().cpu()) for output in each(image, training=False)]
        named = dict(zip([layer.name for layer in model.layers[1:]], outputs, strict=True))
        np.savez(folder / f"{name}.npz", image=image, **named)
    told = [[layer.name, [list(weight.shape) for weight in layer.weights]] for layer in model.layers]
    (folder / f"{name}.json").write_text(json.dumps(told))


def main(folder: Path) -> None:
    keras.utils.set_random_seed(0)
    save(every_layer(), "every_layer", folder, 1, answers=True)
    save(channels_first(), "channels_first", folder, 3, answers=True)
    save(transfer(), "transfer", folder, 5, answers=False)
    save(many(), "many", folder, 7, answers=False)
    save(precisions(), "precisions", folder, 9, answers=False)
    save(with_code(), "with_code", folder, 11, answers=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Models of real Keras 3, small, that the second derivation is held against."""

from __future__ import annotations

from unittest.mock import patch

import keras
import numpy as np
import torch
from keras.src.applications import inception_v3
from keras.src.applications.resnet import ResNet, stack_residual_blocks_v1

L = keras.layers


def randomize(model, seed=0):
    """Random weights everywhere: variances positive, and nothing zero or one that a mistake could hide behind."""
    random = np.random.default_rng(seed)
    for weight in model.weights:
        if "seed" in weight.name:
            continue
        if weight.name in ("gamma", "moving_variance"):
            values = random.uniform(0.5, 1.5, weight.shape)
        else:
            inputs = max(1, int(np.prod(weight.shape[:-1])))
            values = random.standard_normal(weight.shape) / (np.sqrt(inputs / 2) if inputs > 1 else 2)
        weight.assign(values.astype(np.float32))


def branches():
    """A functional model with all that joins, a layer that is used twice, and a model within a model."""
    inner_input = keras.Input((16, 16, 3), name="inner_input")
    x = L.Conv2D(4, 3, padding="same", activation="relu", name="conv")(inner_input)
    y = L.Conv2D(4, 3, strides=2, padding="same", name="strided")(x)
    z = L.AveragePooling2D(2, 2, padding="same")(x)
    inner = keras.Model(inner_input, L.Concatenate()([y, L.Add()([y, z])]), name="base")
    outer_input = keras.Input((16, 16, 3))
    x = inner(L.RandomFlip()(outer_input))
    same = L.Conv2D(8, 3, padding="same", activation="relu", name="twice")
    x = L.GlobalAveragePooling2D()(L.Add()([same(x), same(same(x))]))
    return keras.Model(outer_input, L.Dense(3, activation="softmax", name="conv")(x))  # the same name as an inner layer


def sequential() -> keras.Model:
    """A network without its head in a Sequential, an own head after it."""
    inputs = keras.Input((16, 16, 3))
    base = keras.Model(inputs, L.MaxPooling2D()(L.Conv2D(4, 3, activation="relu", name="block1_conv1")(inputs)))
    head = [L.Flatten(), L.Dense(5, "relu"), L.BatchNormalization(), L.Dropout(0.5), L.Dense(1, "sigmoid")]
    return keras.Sequential([keras.Input((16, 16, 3)), L.Rescaling(1 / 255), base, *head])


def narrow_resnet50():
    def stack(x):
        for stage, (filters, blocks) in enumerate(zip((4, 6, 8, 10), (3, 4, 6, 3), strict=True), 2):
            x = stack_residual_blocks_v1(x, filters, blocks, stride1=1 if stage == 2 else 2, name=f"conv{stage}")
        return x

    words = {"weights": None, "input_shape": (64, 96, 3), "classes": 7, "classifier_activation": None}
    return ResNet(stack, False, True, weights_name="resnet50", **words)


def narrow_inception_v3():
    original = inception_v3.conv2d_bn
    keras.backend.clear_session()
    for _ in range(3):
        L.Conv2D(1, 1)  # automatic numbers then start at 3
    narrow = lambda x, filters, *rest, **words: original(x, filters // 16, *rest, **words)  # noqa: E731
    with patch.object(inception_v3, "conv2d_bn", narrow):
        return inception_v3.InceptionV3(weights=None, input_shape=(107, 139, 3), classes=7, classifier_activation=None)


def narrow_vgg19():
    x = inputs = keras.Input((224, 224, 3))
    for block, (width, depth) in enumerate(zip((2, 3, 4, 5, 6), (2, 2, 4, 4, 4), strict=True), 1):
        for conv in range(1, depth + 1):
            x = L.Conv2D(width, 3, padding="same", activation="relu", name=f"block{block}_conv{conv}")(x)
        x = L.MaxPooling2D(2)(x)
    x = L.Dense(9, "relu", name="fc2")(L.Dense(8, "relu", name="fc1")(L.Flatten()(x)))
    return keras.Model(inputs, L.Dense(10, name="predictions")(x))


MODELS = {"branches": branches, "sequential": sequential}
NETWORKS = {"resnet50": narrow_resnet50, "inception_v3": narrow_inception_v3, "vgg19": narrow_vgg19}


def output(model, image):
    """What a model gives for one image (height, width, channels), with channels first."""
    first = model.input_shape[1] == image.shape[2]
    with torch.inference_mode():
        values = model((image.transpose(2, 0, 1) if first else image)[None], training=False)[0].numpy()
    return values if first or values.ndim < 3 else values.transpose(2, 0, 1)


def assert_logits(model, logits, answer):
    """The logits are what the model answers, before the softmax or sigmoid that `MODELS` end with."""
    name = model.layers[-1].activation.__name__
    if name != "linear":
        odds = np.exp(logits)
        logits = odds / (odds.sum() if name == "softmax" else 1 + odds)
    np.testing.assert_allclose(logits, answer, atol=2e-5 * np.abs(answer).max())

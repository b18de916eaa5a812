"""Arrays for PyTorch: PyTorch's layers answer what real Keras 3's answer, and Theano's flip by its definition."""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from converters import opened, read_keras, to_torch_layout
from tests.conftest import KERAS1
from tests.reference.theano_forward import convolve

FORMS = ("h5", "legacy.h5", "weights.h5", "keras")
EPSILON = 0.01  # of the models' batch normalisations


def tensors(arrays):
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def apply(kind, held, image, *, groups=1):
    """PyTorch's function for a class of Keras, on (N, C, H, W) or (N, values)."""
    if kind == "SeparableConv2D":
        inner = F.conv2d(image, held["depthwise.weight"], groups=image.shape[1])
        return F.conv2d(inner, held["pointwise.weight"], held.get("pointwise.bias"))
    if kind == "BatchNormalization":
        mean, variance = held["running_mean"], held["running_var"]
        return F.batch_norm(image, mean, variance, held["weight"], held["bias"], eps=EPSILON)
    if kind == "Dense":
        return F.linear(image, held["weight"], held.get("bias"))
    groups = image.shape[1] if kind == "DepthwiseConv2D" else groups
    return F.conv2d(image, held["weight"], held.get("bias"), groups=groups)


@pytest.mark.parametrize("form", FORMS)
def test_pytorch_answers_what_keras_3_answered_in_every_layer(keras3_formats, form):
    """In the legacy form without a config, the class of a depthwise layer with a multiplier is named by us; in
    `.weights.h5` that of the batch normalisation without beta, whose three arrays are as many as those without gamma.
    """
    path = keras3_formats / f"every_layer.{form}"
    golden = np.load(keras3_formats / "every_layer.npz")
    file = read_keras(path)
    layers = {layer.name: layer for layer in file.weighted}
    if form == "legacy.h5":
        arrays = {"depthwise_kernel": layers["depthwise"].arrays["kernel"], "bias": layers["depthwise"].arrays["bias"]}
        layers["depthwise"] = replace(layers["depthwise"], kind="DepthwiseConv2D", arrays=arrays)
    if form == "weights.h5":
        held = dict(layers["bn_without_beta"].arrays)
        layers["bn_without_beta"] = replace(layers["bn_without_beta"], arrays={"gamma": held.pop("beta"), **held})
    image = torch.from_numpy(golden["image"]).permute(0, 3, 1, 2)
    with opened(path) as h5:
        for name in golden.files[1:]:
            if name == "flatten":
                window, image = (image.shape[2], image.shape[3]), image.flatten(1)
                continue
            layer = layers[name]
            flattened = window if name == "dense" else None
            held = tensors(to_torch_layout(layer, backend=file.backend, file=h5, window=flattened))
            image = apply(layer.kind, held, image, groups=2 if name == "grouped" else 1)
            expected = golden[name].transpose(0, 3, 1, 2) if golden[name].ndim == 4 else golden[name]
            np.testing.assert_allclose(image.numpy(), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("form", FORMS)
def test_keras_3_flattens_channels_first_maps_as_if_they_were_channels_last(keras3_formats, form):
    golden = np.load(keras3_formats / "channels_first.npz")
    file = read_keras(keras3_formats / f"channels_first.{form}")
    conv, dense = file.weighted
    held = tensors(to_torch_layout(conv, backend=file.backend))
    maps = F.conv2d(torch.from_numpy(golden["image"]), held["weight"], held["bias"])
    np.testing.assert_allclose(maps.numpy(), golden["conv"], rtol=1e-4, atol=1e-5)
    held = tensors(to_torch_layout(dense, window=(4, 3)))
    found = F.linear(maps.flatten(1), held["weight"], held["bias"])
    np.testing.assert_allclose(found.numpy(), golden["dense"], rtol=1e-4, atol=1e-4)


def test_kernels_of_theano_are_true_convolutions():
    [layer, *_] = read_keras(KERAS1 / "alexnet.h5").weighted
    held = tensors(to_torch_layout(layer, backend="theano"))
    with h5py.File(KERAS1 / "alexnet.h5") as file:
        kernel, bias = (file[array.place][()].astype(np.float64) for array in layer.arrays.values())
    image = np.random.default_rng(0).standard_normal((3, 13, 14))
    found = F.conv2d(torch.from_numpy(image)[None], held["weight"].double(), held["bias"].double())
    np.testing.assert_allclose(found[0].relu().numpy(), convolve(image, (kernel, bias)), rtol=1e-9, atol=1e-9)


def test_rows_behind_a_channels_first_flatten_stay():
    dense = read_keras(KERAS1 / "alexnet.h5").weighted[-3]
    held = to_torch_layout(dense, window=(6, 6), rows="chw")
    np.testing.assert_array_equal(held["weight"], to_torch_layout(dense)["weight"])
    assert (held["weight"] != to_torch_layout(dense, window=(6, 6))["weight"]).any()


def test_what_must_be_known_is_asked_for():
    conv, *_, dense = read_keras(KERAS1 / "alexnet.h5").weighted
    with pytest.raises(ValueError, match=r"conv_1 must be flipped if Theano trained it; give backend"):
        to_torch_layout(conv)
    with pytest.raises(ValueError, match=r"the kernel order of conv_1 is unknown; give kernel_order"):
        to_torch_layout(replace(conv, kernel_order=None), backend="theano")
    with pytest.raises(ValueError, match=r"dense_3 has 40 rows, which no feature map of 7x7 cells gives"):
        to_torch_layout(dense, window=(7, 7))
    with pytest.raises(ValueError, match=r"dense_3 is LSTM; supported: Conv2D, DepthwiseConv2D"):
        to_torch_layout(replace(dense, kind="LSTM"))
    with pytest.raises(ValueError, match=r"dense_3: kernel is \(40, 1000\); is it Conv2D"):
        to_torch_layout(replace(dense, kind="Conv2D"), backend="theano")
    with pytest.raises(ValueError, match=r"dense_3 has no moving_mean, moving_variance; is it BatchNormalization"):
        to_torch_layout(replace(dense, kind="BatchNormalization"))
    with pytest.raises(ValueError, match=r"conv_1 holds alpha, which no Conv2D has"):
        to_torch_layout(replace(conv, arrays={**conv.arrays, "alpha": conv.arrays["bias"]}), backend="theano")

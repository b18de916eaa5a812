"""Name tables against our modules, real Keras 3 and torchvision."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from converters import convert
from converters.pytorch import TORCHVISION
from convnets_torch.explain.activations import record_activations
from convnets_torch.explain.layer_names import find_layers, keras_names
from convnets_torch.networks import NETWORKS, AlexNet, inception_v3, resnet50, vgg16
from convnets_torch.weights import load
from tests.conftest import run_keras3_layers
from tests.reference.keras3_goldens import FULL, KERAS3


@pytest.fixture(params=TORCHVISION, ids=lambda lineage: lineage.network)
def lineage(request):
    return request.param


def test_every_module_with_parameters_has_its_layers_and_no_layer_two_modules(lineage):
    with torch.device("meta"):
        network = NETWORKS[lineage.network]()
    modules = {name for name, module in network.named_modules() if list(module.parameters(recurse=False))}
    assert set(lineage.layers) == modules
    assert len(set(lineage.layers.values())) == len(lineage.layers)


def test_widths_are_those_of_the_convolutions_named_for_them(lineage):
    """Each of another number of channels, so that a swapped pair shows."""
    count = len(lineage.widths)
    widths = tuple(2 * number for number in range(2, count + 2))
    with torch.device("meta"):
        network = NETWORKS[lineage.network](10, widths)
    found = []
    for name in lineage.widths:
        layer = network.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        found.append(layer.out_channels)
    assert tuple(found) == widths
    dense = [network.get_submodule(name) for name in lineage.head]
    assert [type(layer) for layer in dense] == [nn.Linear] * len(dense)
    assert dense[-1] is (network.head or [None])[-1]


@pytest.mark.parametrize("lineage", TORCHVISION, ids=lambda each: each.network)
def test_every_array_of_torchvision_is_one_of_ours_of_the_same_shape(lineage):
    import torchvision

    arguments = {"stride_in": "3x3", "bias": False} if lineage.network == "resnet50" else {}
    with torch.device("meta"):
        ours = NETWORKS[lineage.network](**arguments).state_dict()
        theirs = getattr(torchvision.models, lineage.network)().state_dict()
    renamed = {}
    for name, array in ours.items():
        module, _, role = name.rpartition(".")
        renamed[f"{lineage.layers[module]}.{role}"] = array.shape
    assert renamed == {name: array.shape for name, array in theirs.items()}


# What real Keras 3 gives under each name


# Keras's layers that are no module here, or give something else.
WITHOUT = {
    "vgg16": r"predictions",
    "vgg19": r"predictions",
    "resnet50": r"conv1_pad|pool1_pad|conv\d_block\d_add|predictions",
    "inception_v3": r"predictions",
}


def assert_same_layers(name: str, folder: Path, golden, tmp_path) -> None:
    network = load(tmp_path / "out.safetensors")
    aliases = keras_names(network)
    keras_outputs = np.load(folder / f"{name}_layers.npz")
    unnamed = [layer for layer in keras_outputs.files if layer not in aliases]
    assert all(re.fullmatch(WITHOUT[name], layer) for layer in unnamed), unnamed
    assert set(aliases) <= set(keras_outputs.files)
    with record_activations(network, set(aliases.values())) as activations, torch.inference_mode():
        logits = network(torch.from_numpy(golden.inputs()[:1]))
    wanted = keras_outputs["predictions"]
    assert np.abs(logits.softmax(1).numpy() - wanted).max() <= 1e-4 * wanted.max()
    dead = 0  # layers of few channels that a random network leaves at zero: their names could be any
    for alias, module in aliases.items():
        wanted, found = keras_outputs[alias], activations[module].numpy()
        if alias == "flatten":  # Keras flattens (h, w, C), PyTorch (C, h, w)
            cells = network.window
            wanted = wanted.reshape(1, *cells, -1).transpose(0, 3, 1, 2).reshape(1, -1)
        assert found.shape == wanted.shape, alias
        error, highest = np.abs(found - wanted).max(), np.abs(wanted).max()
        # Rounding in float32, through up to 94 layers; another layer's output differs by about the largest value.
        assert error <= 1e-3 * highest, f"{alias} ({module}) differs by {error:.1e}; the largest is {highest:.1e}"
        dead += highest == 0
    assert dead <= 2


@pytest.mark.parametrize("name", WITHOUT)
def test_each_layer_gives_what_keras_gives_under_its_name(name, keras3_layers, tmp_path):
    golden = next(golden for golden in KERAS3[name] if golden.form == ".keras")
    convert(keras3_layers / golden.file, tmp_path / "out.safetensors", preprocessing=golden.preprocessing)
    assert_same_layers(name, keras3_layers, golden, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16", "resnet50", "inception_v3"])
def test_each_layer_of_a_full_network_gives_what_keras_gives_under_its_name(name, tmp_path):
    run_keras3_layers(tmp_path, name, "--full")
    golden = next(golden for golden in FULL[name] if golden.form == ".keras")
    report = convert(tmp_path / golden.file, tmp_path / "out.safetensors")
    assert report.card.class_names == "imagenet-1k"
    assert report.card.preprocessing.name == golden.preprocessing
    (tmp_path / golden.file).unlink()
    assert_same_layers(name, tmp_path, golden, tmp_path)
    (tmp_path / "out.safetensors").unlink()


def test_what_is_no_module_here_has_no_name():
    network = resnet50(None)
    for layer in ("predictions", "conv2_block1_add", "conv1_pad"):
        with pytest.raises(ValueError, match="has no layer"):
            find_layers(network, layer)
    assert keras_names(AlexNet()) == {}


def test_a_network_without_a_head_has_the_names_of_its_features():
    for build in (vgg16, resnet50, inception_v3):
        whole, headless = keras_names(build(10)), keras_names(build(None))
        assert headless == {alias: name for alias, name in whole.items() if name.startswith("features.")}
        assert len(headless) < len(whole)

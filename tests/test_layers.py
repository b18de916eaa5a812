"""The table of layers: shapes, strides and what a cell sees, and which layers a name means."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch import nn

from convnets_torch.explain.activations import layer_names, record_activations, run_to
from convnets_torch.explain.layer_names import find_layer, find_layers, last_convolution
from convnets_torch.networks import AlexNet, efficientnet_lite0, inception_v3, resnet50, vgg16
from tests.conftest import NARROW

PERIOD = 32  # pixels; the strides of all layers here divide it
NARROWEST = {  # one channel is enough to see which pixels reach a cell
    "alexnet": lambda: AlexNet(10, widths=(2, 2, 2, 2, 2), hidden=(2, 2)),
    "efficientnet_lite0": lambda: efficientnet_lite0(10, widths=(1,) * 9),
    "inception_v3": lambda: inception_v3(10, widths=(1,) * 94),
    "resnet50": lambda: resnet50(10, widths=(1,) * 5),
    "vgg16": lambda: vgg16(10, widths=(1,) * 5, hidden=(2, 2)),
}


def headless_vgg():
    torch.manual_seed(0)
    return vgg16(None, widths=(2, 3, 4, 5, 6)).eval()


@pytest.mark.parametrize("axis", [0, 1], ids=["vertical", "horizontal"])
@pytest.mark.parametrize("name", NARROWEST)
def test_strides_and_receptive_fields_are_what_a_pixel_reaches(name, axis):
    """A pixel that is NaN makes exactly those cells NaN that see it; each of a stride's pixels is seen in turn.

    Over a period of neighbouring pixels the cells that see them add up to the size of the field times the cells in the
    period. The picture is long enough for the fields of all cells that see its middle.
    """
    network = NARROWEST[name]().eval()
    layers = [layer for layer in layer_names(network) if layer.receptive_field and layer.receptive_field[0] <= 2000]
    assert len(layers) > 10
    long = 2 * max(layer.receptive_field[axis] for layer in layers) + PERIOD
    reached = {layer.name: 0 for layer in layers}
    for first in range(long // 2 - PERIOD // 2, long // 2 + PERIOD // 2, 8):
        lines = torch.zeros(8, 3, *((long, 75) if axis == 0 else (75, long)))
        for number, line in enumerate(lines):
            line.select(1 + axis, first + number).fill_(math.nan)
        with record_activations(network, list(reached)) as activations, torch.inference_mode():
            run_to(network, list(reached), lines)
        for name, output in activations.items():
            reached[name] += int(output.isnan().any(1).any(2 - axis).sum())
    for layer in layers:
        size, stride = layer.receptive_field[axis], layer.stride[axis]
        assert reached[layer.name] == size * PERIOD // stride, layer


def test_shapes_are_those_of_a_run(narrow):
    layers = layer_names(narrow)
    with record_activations(narrow, [layer.name for layer in layers]) as activations, torch.inference_mode():
        narrow(torch.randn(2, 3, *narrow.size, generator=torch.Generator().manual_seed(0)))
    assert [(layer.name, (2, *layer.shape)) for layer in layers] == [
        (name, tuple(output.shape)) for name, output in activations.items()
    ]
    assert layers[-1].shape == (10,)
    assert all(layer.stride is None for layer in layers if layer.name.startswith("head"))


def test_the_table_of_vgg16_is_that_of_the_paper():
    """Sizes by hand: 3x3 convolutions add 2 cells, 2x2 pools 1, each times the stride so far."""
    torch.manual_seed(0)
    network = NARROW["vgg16"]().eval()
    size, stride, expected = 1, 1, {}
    for block, depth in enumerate((2, 2, 3, 3, 3), 1):
        for conv in range(1, depth + 1):
            size += 2 * stride
            expected[f"features.conv{block}_{conv}"] = (224 // stride, size, stride)
        size, stride = size + stride, 2 * stride
        expected[f"features.pool{block}"] = (224 // stride, size, stride)
    found = {
        layer.name: (layer.shape[1], layer.receptive_field[0], layer.stride[0])
        for layer in layer_names(network)
        if layer.name in expected
    }
    assert found == expected


def test_a_size_that_is_not_the_networks_own_goes_through_the_features():
    for network in (NARROW["vgg16"]().eval(), headless_vgg()):
        layers = {layer.name: layer for layer in layer_names(network, size=(64, 96))}
        assert layers["features.pool1"].shape[1:] == (32, 48)
        assert layers["features.pool5"].shape[1:] == (2, 3)
        assert layers["features.pool5"].receptive_field == (212, 212)
        assert not any(name.startswith("head") for name in layers)


def test_a_module_of_another_library_needs_a_size():
    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights=None).eval()
    with pytest.raises(ValueError, match=r"ResNet does not say what images it takes; give size=\(height, width\)"):
        layer_names(network)
    layers = {layer.name: layer for layer in layer_names(network, size=(64, 96))}
    assert layers["layer3.1"].shape == (256, 4, 6)
    assert layers["layer3.1"].receptive_field is None
    assert layers["layer3.1"].keras_name is None
    assert layers["fc"].shape == (1000,)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("features.conv5_3", ["features.conv5_3"]),
        ("conv5_3", ["features.conv5_3"]),
        ("block5_conv3", ["features.relu5_3"]),
        ("block5_conv?", ["features.relu5_1", "features.relu5_2", "features.relu5_3"]),
        ("block5", ["features.relu5_1", "features.relu5_2", "features.relu5_3", "features.pool5"]),
        ("relu5_", ["features.relu5_1", "features.relu5_2", "features.relu5_3"]),
        ("*conv1_[12]", ["features.conv1_1", "features.conv1_2"]),
        ("*conv?", [f"features.relu{block}_{conv}" for block in range(1, 6) for conv in range(1, 2 + (block > 2) + 1)]),
        ("fc1", ["head.relu_dense_1"]),
        ("head.relu", ["head.relu_dense_1", "head.relu_dense_2"]),
        ("features", ["features"]),
        (["pool5", "pool1", "block1_pool"], ["features.pool1", "features.pool5"]),
    ],
)
def test_which_layers_a_name_means(wanted, found):
    assert find_layers(NARROW["vgg16"](), wanted) == found


def test_a_name_that_also_begins_others_means_itself():
    network = NARROW["resnet50"]()
    assert find_layers(network, "conv2_block1") == ["features.conv2_block1"]
    assert find_layers(network, "conv2_block1_out") == ["features.conv2_block1.out"]
    assert len(find_layers(network, "conv2_block*_out")) == 3
    assert find_layers(torchvision.models.resnet18(weights=None), "layer1.0.bn") == ["layer1.0.bn1", "layer1.0.bn2"]
    assert len(find_layers(NARROW["inception_v3"](), "conv2d_1")) == 1  # and not conv2d_10 to conv2d_19, too


@pytest.mark.parametrize("wanted", ["feat", "f*", "h*"])
def test_prefixes_and_patterns_mean_no_containers(wanted):
    network = NARROW["vgg16"]()
    found = find_layers(network, wanted)
    assert found
    assert not {"features", "head"} & set(found)
    assert find_layers(network, "features") == ["features"]  # which its name means


@pytest.mark.parametrize(
    ("wanted", "near"),
    [("conv5_4", "conv5_3"), ("block6_conv3", "block5_conv3"), ("relu_5_3", "relu5_3"), ("fc3", "fc1")],
)
def test_an_unknown_layer_is_answered_with_the_nearest_names(wanted, near):
    with pytest.raises(ValueError, match=rf"VGG has no layer '{wanted}'; did you mean .*{near}"):
        find_layers(NARROW["vgg16"](), wanted)


@pytest.mark.parametrize("wanted", ["", "zzzzzz", "q*"])
def test_what_resembles_no_layer_is_answered_with_the_first_names(wanted):
    with pytest.raises(ValueError, match=r"there are .* \(see layer_names\)"):
        find_layers(NARROW["alexnet"](), wanted)


def test_one_layer_is_wanted_where_one_is_asked_for():
    assert find_layer(headless_vgg(), "block1_conv2") == "features.relu1_2"
    with pytest.raises(ValueError, match=r"'relu5_\*' matches 3 layers \(features\.relu5_1, .*\); name one of them"):
        find_layer(headless_vgg(), "relu5_*")


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("alexnet", "features.relu_5"),
        ("vgg16", "features.relu5_3"),
        ("vgg19", "features.relu5_4"),
        ("resnet50", "features.conv5_block3.out"),
        ("inception_v3", "features.mixed10"),
    ],
)
def test_the_last_convolution_is_the_last_map_before_a_pool(name, layer):
    assert last_convolution(NARROW[name]()) == layer


@pytest.mark.parametrize("build", [resnet50, efficientnet_lite0])
def test_the_last_convolution_gives_what_the_features_give(build):
    torch.manual_seed(0)
    network = build(None).eval()
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        [output] = run_to(network, last_convolution(network), images).values()
        torch.testing.assert_close(output, network.features(images), rtol=0, atol=0)


def test_of_other_modules_the_last_convolution_is_not_guessed():
    for network in (torchvision.models.resnet18(weights=None), nn.Sequential(nn.Conv2d(3, 4, 3))):
        with pytest.raises(ValueError, match="is not known; name a layer"):
            last_convolution(network)


def test_alexnet_has_no_names_of_keras():
    network = AlexNet(10, widths=(4, 4, 4, 4, 4), hidden=(5, 6)).eval()
    assert all(layer.keras_name is None for layer in layer_names(network))


def test_a_cell_of_a_block_sees_what_one_of_its_last_layer_does():
    layers = {layer.name: layer for layer in layer_names(NARROW["resnet50"]().eval())}
    block, last = layers["features.conv3_block2"], layers["features.conv3_block2.out"]
    assert block.receptive_field == last.receptive_field is not None
    assert block.stride == last.stride == (8, 8)

"""Classifiers of users' own, of torchvision and of timm: the same answers, parameters and pixels under three names."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models
from torchvision.models.resnet import BasicBlock

from convnets_torch import classify, densify, heatmap, save, score_map
from convnets_torch.images.preprocessing import GENERAL, general, normalize
from convnets_torch.inference.classification import probabilities
from tests.reference.pictures import picture
from tests.reference.users_networks import FAMILIES, Tutorial, lively, resnet, sequential
from tests.test_networks import random
from tests.test_streaming import assert_same


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """A module, its size, and the network that was made of it."""
    build, size = FAMILIES[request.param]
    torch.manual_seed(0)
    module = lively(build())
    return module, size, densify(module, size)


def test_the_answers_are_the_modules(family):
    module, size, network = family
    images = random(3, 3, *size)
    with torch.no_grad():
        wanted = module(images)
        assert (wanted.amax(0) - wanted.amin(0)).max() > 1e-3 * wanted.abs().max()  # and not the biases alone
        assert_same(network(images), wanted)
        assert_same(score_map(network, images)[:, :, 0, 0], wanted)
    assert not network.training
    assert network.card is None


def test_a_cell_is_the_head_on_its_crop(family):
    _, size, network = family
    images = random(1, 3, size[0] + 2 * network.stride, size[1] + network.stride)
    rows, columns = network.window
    with torch.no_grad():
        cells = network.features(images)
        scores = score_map(network, images)
        assert scores.shape == (1, 5, 3, 2)
        for row in range(3):
            for column in range(2):
                crop = cells[:, :, row : row + rows, column : column + columns]
                assert_same(scores[:, :, row, column], network.head(crop))


def test_cells_that_see_no_padding_are_the_module_on_their_pictures():
    """Without padding a cell is what the module itself says of the crop of the picture."""
    torch.manual_seed(0)
    module = lively(Tutorial(None))
    images = random(1, 3, 44, 52)
    with torch.no_grad():
        scores = score_map(densify(module, 32), images)
        for row, column in ((0, 0), (1, 4), (3, 5)):
            crop = images[:, :, 4 * row : 4 * row + 32, 4 * column : 4 * column + 32]
            assert_same(scores[:, :, row, column], module(crop))


def test_blocks_and_denser_cells_agree_with_the_plain_map(family):
    _, size, network = family
    images = random(1, 3, size[0] + 3 * network.stride + 1, size[1] + network.stride + 1)
    with torch.no_grad():
        plain = score_map(network, images)
        assert_same(score_map(network, images, max_memory="40MB"), plain)
        dense = score_map(network, images, cell_stride=network.stride // 2)
    assert_same(dense[:, :, ::2, ::2], plain)


def test_the_parameters_are_the_modules_own(family):
    module, size, network = family
    theirs = {tensor.data_ptr() for tensor in module.state_dict().values() if tensor.numel()}
    assert {tensor.data_ptr() for tensor in network.state_dict().values() if tensor.numel()} == theirs
    module.zero_grad()
    score_map(network, random(1, 3, *size)).square().sum().backward()
    missing = [name for name, parameter in module.named_parameters() if parameter.grad is None]
    assert not missing
    module.zero_grad()


def test_the_module_is_left_as_it_was():
    torch.manual_seed(0)
    module = lively(sequential())
    module[2].weight.requires_grad_(False)
    seen: list = []
    module[0].register_forward_hook(lambda *_: seen.append(0))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    described, state = repr(module), torch.get_rng_state()
    network = densify(module, (32, 48))
    assert len(seen) == 1  # the module itself runs once, and following it calls no hooks
    assert repr(module) == described
    assert module[3].inplace
    assert not any(part.training for part in module.modules())
    assert [parameter.requires_grad for parameter in module.parameters()].count(False) == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    images = random(1, 3, 32, 48)
    cells = network.features(images)
    kept = cells.clone()
    network.head(cells)
    assert torch.equal(cells, kept)
    copied = copy.deepcopy(network)
    assert torch.equal(copied(images), network(images))


def test_layers_that_overwrite_images_leave_them_alone():
    class Overwriting(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.rest = nn.ReLU(inplace=True), sequential()

        def forward(self, x):
            return self.rest(F.elu(self.first(x).relu_(), inplace=True))

    network = densify(lively(Overwriting()), (32, 48))
    images = random(1, 3, 32, 48)
    kept = images.clone()
    network(images)
    assert torch.equal(images, kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kind_of_number_is_the_modules(dtype):
    torch.manual_seed(0)
    network = densify(lively(sequential()).to(dtype), (32, 48))
    with torch.no_grad():
        assert score_map(network, random(1, 3, 40, 52).to(dtype)).dtype == dtype


# The card


def test_with_preprocessing_pictures_are_classified_and_mapped():
    torch.manual_seed(0)
    module = lively(resnet(BasicBlock)).float()
    names = ("aster", "bellis", "crocus", "dahlia", "erica")
    network = densify(module, 64, preprocessing="torchvision", classes=list(names))
    assert network.card.preprocessing == general("torchvision", 64)
    pixels = picture(1, 130, 170)
    [predictions] = classify(network, pixels, top=5)
    assert {entry.words for entry in predictions} == set(names)
    assert sum(entry.probability for entry in predictions) == pytest.approx(1, abs=1e-5)
    found = heatmap(network, pixels, "crocus")
    with torch.no_grad():
        images = torch.from_numpy(normalize(pixels, network.card.preprocessing))[None]
        expected = probabilities(score_map(network, images), network.card)[0, 2]
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
    assert found.probabilities.shape == (4, 5)


@pytest.mark.parametrize("name", GENERAL)
def test_every_general_preset_makes_a_card(name):
    network = densify(lively(sequential()), (32, 48), preprocessing=name)
    assert network.card.preprocessing.shape == (32, 48)
    assert network.card.classes == 5


def test_cards_that_do_not_fit_are_refused():
    module = lively(sequential())
    with pytest.raises(ValueError, match=r"unknown preprocessing 'original'; known: keras-caffe, .*torchvision"):
        densify(module, (32, 48), preprocessing="original")
    with pytest.raises(ValueError, match=r"images of \(64, 64\) pixels, but size is \(32, 48\)"):
        densify(module, (32, 48), preprocessing=general("unit", 64))
    with pytest.raises(ValueError, match="card has 5 classes but 2 class names"):
        densify(module, (32, 48), preprocessing="unit", classes=["bee", "wasp"])
    with pytest.raises(ValueError, match="card has 5 classes but 1000 class names"):
        densify(module, (32, 48), preprocessing="unit", classes="imagenet-1k")
    with pytest.raises(ValueError, match="classes are given, but no preprocessing"):
        densify(module, (32, 48), classes=["bee"] * 5)


def test_such_a_network_is_not_saved(tmp_path):
    network = densify(lively(sequential()), (32, 48), preprocessing="unit")
    with pytest.raises(ValueError, match=r"a module of your own, .*; save that module's state_dict, and densify it"):
        save(network, tmp_path / "own.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("last", "activation", "wrong"),
    [
        (nn.Softmax(dim=1), "softmax", "sigmoid"),
        (nn.LogSoftmax(dim=1), "softmax", "none"),
        (nn.Sigmoid(), "sigmoid", "softmax"),
    ],
)
def test_a_last_layer_that_makes_probabilities_is_left_out(last, activation, wrong):
    torch.manual_seed(0)
    module = lively(sequential(end=(last,)))
    network = densify(module, (32, 48), activation=activation)
    images = random(2, 3, 32, 48)
    with torch.no_grad():
        assert_same(network(images), module[:-1](images))
        assert_same(last(network(images)), module(images))
    refusal = f"ends in {type(last).__name__}, but activation is '{wrong}'; give '{activation}'"
    with pytest.raises(ValueError, match=refusal):
        densify(module, (32, 48), activation=wrong)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("vgg11", "torchvision"),
        ("alexnet", "torchvision"),
        ("resnet50", "torchvision"),
        ("densenet121", "torchvision"),
        ("vgg11_bn", "timm"),
        ("resnet50", "timm"),
    ],
)
def test_full_size_networks(name, library):
    torch.manual_seed(0)
    built = getattr(models, name)() if library == "torchvision" else timm.create_model(name)
    module = lively(built).float()
    network = densify(module, preprocessing="torchvision", classes="imagenet-1k")
    images = random(1, 3, 256, 288, dtype=torch.float32)
    with torch.no_grad():
        scores = score_map(network, images)
        assert scores.shape == (1, 1000, 2, 3)
        assert_same(scores[:, :, 1, 2], network.head(network.features(images)[:, :, 1:8, 2:9]), 1e-4)
        assert_same(score_map(network, images, max_memory="150MB"), scores, 1e-4)

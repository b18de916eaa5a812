"""Heads of a user's own, no head at all, and images of another size than the network was made for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from convnets_torch.card import Card, read_card
from convnets_torch.fcn.score_map import score_map
from convnets_torch.heatmaps.api import class_map, heatmap
from convnets_torch.images.preprocessing import preset
from convnets_torch.inference.classification import classify
from convnets_torch.networks import NETWORKS
from convnets_torch.networks.heads import build_head
from convnets_torch.weights import load, save
from tests.reference.pictures import picture

NARROW: dict[str, dict[str, Any]] = {  # arguments that make each network small
    "alexnet": {"widths": (4, 8, 8, 8, 6)},
    "efficientnet_lite0": {"widths": (4, 2, 3, 5, 10, 14, 24, 40, 6)},
    "inception_v3": {"widths": (4,) * 94},
    "resnet50": {"widths": (4, 4, 4, 4, 4)},
    "vgg16": {"widths": (4, 4, 4, 4, 6)},
    "vgg19": {"widths": (4, 4, 4, 4, 6)},
}
STEPS = (
    ("flatten",), ("dense", 5), ("batch_norm", 1e-3), ("elu", 0.5), ("dropout", 0.3), ("dense", 4), ("leaky_relu", 0.2),
    ("dense", 3),
)  # fmt: skip


def test_steps_are_the_layers_of_their_names_in_order():
    head = build_head((("max",), ("batch_norm", 0.1), *STEPS[1:]), channels=6, window=(2, 3)).eval()
    assert [name for name, _ in head.named_children()] == [
        "pool", "flatten", "bn_1", "dense_1", "bn_2", "elu_dense_1", "dropout_1", "dense_2", "leaky_relu_dense_2",
        "dense_3",
    ]  # fmt: skip
    window = torch.randn(2, 6, 2, 3, generator=torch.Generator().manual_seed(0))
    x = window.amax(dim=(2, 3)) / 1.1**0.5  # a fresh normalisation divides by sqrt(1 + epsilon)
    dense = dict(head.named_children())
    x = F.elu(dense["dense_1"](x) / 1.001**0.5, alpha=0.5)
    x = dense["dense_3"](F.leaky_relu(dense["dense_2"](x), 0.2))
    torch.testing.assert_close(head(window), x)


def test_two_activations_after_one_layer_have_two_names():
    head = build_head((("flatten",), ("relu",), ("dense", 2), ("tanh",), ("softplus",), ("tanh",)), 3, (1, 1))
    assert len(list(head.named_children())) == 6
    assert [type(layer) for layer in head][3:] == [nn.Tanh, nn.Softplus, nn.Tanh]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("flatten", r"a head is 'flatten'; give a list of steps"),
        ((("flatten",), "dense"), r"give a list of steps"),
        ((("flatten",), ("swish",)), r"unknown step \('swish',\); known: flatten, average, max, dense"),
        ((("flatten",), ([1],)), r"unknown step"),
        ((("dense", 3),), r"\('dense', 3\) as its step 1; exactly one of flatten, average, max reads the window"),
        ((("flatten",), ("dense", 3), ("flatten",)), r"\('flatten',\) as its step 3"),
        ((("average",), ("relu",)), r"no dense layer, so no classes; add one, or use classes=None"),
        ((), r"no dense layer"),
        ((("flatten",), ("dense",)), r"step \('dense',\); give a number of units"),
        ((("flatten",), ("dense", 2.0)), r"give a number of units, 1 to"),
        ((("flatten",), ("dense", 0)), r"give a number of units, 1 to"),
        ((("flatten",), ("dense", 10**12)), r"give a number of units, 1 to"),
        ((("flatten",), ("dropout", 1.0)), r"give its rate, from 0 to below 1"),
        ((("flatten",), ("batch_norm", 0.0)), r"give its epsilon, above 0"),
        ((("flatten",), ("elu", float("nan"))), r"give one number"),
        ((("flatten",), ("relu", 6)), r"step \('relu', 6\); it takes no number"),
    ],
)
def test_steps_that_make_no_head_are_refused(steps, message):
    with pytest.raises(ValueError, match=message):
        build_head(steps, 3, (2, 2))


@pytest.fixture(params=NARROW)
def name(request):
    return request.param


def built(name, *arguments, **keywords):
    torch.manual_seed(0)
    return NETWORKS[name](*arguments, **NARROW[name], **keywords).eval()


@pytest.mark.parametrize("reader", ["flatten", "average", "max"])
@pytest.mark.parametrize("size", [(160, 201), None])
def test_any_network_takes_any_head_and_size_and_slides(name, reader, size):
    network = built(name, 3, head=((reader,), *STEPS[1:]), size=size)
    height, width = network.size
    assert size is None or network.size == size
    images = torch.randn(1, 3, height + 64, width + 96, generator=torch.Generator().manual_seed(1))
    own = images[:, :, :height, :width]
    assert network.features(own).shape[2:] == network.window
    with torch.no_grad():
        torch.testing.assert_close(score_map(network, own)[:, :, 0, 0], network(own), rtol=1e-4, atol=1e-5)
        cells, head = network.features(images), network.head
        scores = score_map(network, images)
        h, w = network.window
        assert scores.shape[1] == 3
        assert min(scores.shape[2:]) > 1
        crop = cells[:, :, 1 : 1 + h, 2 : 2 + w]
        torch.testing.assert_close(scores[:, :, 1, 2], head(crop), rtol=1e-4, atol=1e-5)


def test_without_a_head_there_are_features_alone(name):
    network = built(name, None)
    assert network.head is None
    images = torch.zeros(1, 3, *network.size)
    assert network.features(images).shape[2:] == network.window
    assert not any(parameter.startswith("head") for parameter in network.state_dict())
    for use in (network, lambda images: score_map(network, images)):
        with pytest.raises(ValueError, match="has no head: features and embeddings work on it; to classify, give it"):
            use(images)


def test_a_head_of_other_classes_and_an_impossible_size_are_refused(name):
    with pytest.raises(ValueError, match="ends in 3 units, but there are 4 classes"):
        built(name, 4, head=STEPS)
    with pytest.raises(ValueError, match="a head is given, but classes is None"):
        built(name, None, head=STEPS)
    for size in ((0, 224), (224,), (224.0, 224), (224, 10**9)):
        with pytest.raises(ValueError, match="give height and width in pixels"):
            built(name, 3, size=size)


@pytest.mark.parametrize("arguments", [{}, {"pool_padding": False}, {"stride_in": "3x3"}])
def test_the_window_of_a_size_is_what_the_features_give_for_it(name, arguments):
    if arguments and name != "resnet50":
        return  # they are ResNet50's alone
    features = built(name, None, **arguments).features
    for height in (20, 63, 64, 66, 67, 74, 75, 80, 96, 107):
        images = torch.zeros(1, 3, height, 75)
        try:
            wanted = tuple(features(images).shape[2:])
        except RuntimeError:  # a kernel larger than what it reads
            wanted = (0, 0)
        if 0 in wanted:
            with pytest.raises(ValueError, match=rf"a size of {height} pixels is too small: the feature map"):
                built(name, None, size=(height, 75), **arguments)
        else:
            assert built(name, None, size=(height, 75), **arguments).window == wanted


def carded(name, classes, **keywords):
    network = built(name, classes, **keywords)
    network.card = Card(name, {"classes": classes, **NARROW[name], **keywords}, preset(name), None)
    return network


def test_no_head_and_own_heads_are_saved_and_loaded(name, tmp_path, command):
    for network in (carded(name, None), carded(name, 3, head=STEPS, size=(256, 320))):
        save(network, tmp_path / "own.safetensors")
        again = load(tmp_path / "own.safetensors")
        assert again.card == network.card == read_card(tmp_path / "own.safetensors")
        assert (again.size, again.window) == (network.size, network.window)
        images = torch.randn(1, 3, *network.size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            answers = [each.features(images) if each.head is None else each(images) for each in (again, network)]
        assert all(map(torch.equal, again.state_dict().values(), network.state_dict().values()))
        torch.testing.assert_close(*answers, rtol=1e-5, atol=1e-6)  # parameters of a mapped file lie otherwise
        code, out, _ = command("info", tmp_path / "own.safetensors")
        assert code == 0
        assert name in out


def test_weights_without_a_head_say_that_one_is_wanted(command, tmp_path):
    network = carded("alexnet", None)
    for use in (classify, class_map, lambda network, image: heatmap(network, image, 0)):
        with pytest.raises(ValueError, match="has no head"):
            use(network, picture(1, 300, 300))
    save(network, tmp_path / "own.safetensors")
    np.save(tmp_path / "x.npy", picture(1, 300, 300))
    code, _, errors = command("classify", tmp_path / "own.safetensors", "none.jpg")
    assert code == 1
    assert "has no head" in errors


def test_a_head_of_one_unit_is_a_sigmoid():
    network = carded_for_one_class()
    pixels = picture(1, 259, 291)
    [[answer]] = classify(network, pixels, top=1)
    assert (answer.class_id, answer.words) == (0, "bee")
    assert 0 < answer.probability < 1
    found = heatmap(network, pixels, "bee")
    assert found.probabilities.shape == (2, 3)
    assert 0 < found.probabilities.min() < found.probabilities.max() < 1
    own = pixels[:227, :227]
    rule = replace(network.card.preprocessing, resize=227)
    network.card = replace(network.card, preprocessing=rule)
    [[answer]] = classify(network, own, top=1)
    with torch.no_grad():
        bgr = torch.from_numpy(own.copy()).permute(2, 0, 1)[None].float()
        logit = network(bgr - torch.tensor(rule.mean).view(1, 3, 1, 1)).item()
    assert answer.probability == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-5)


def carded_for_one_class():
    network = built("alexnet", 1, head=(("average",), ("dense", 1)))
    network.card = Card("alexnet", {"classes": 1}, preset("alexnet"), ("bee",), "sigmoid")
    return network


def test_cards_with_a_head_and_names_that_do_not_fit_are_refused():
    rule = preset("vgg16")
    with pytest.raises(ValueError, match="one class and softmax, which is always 1; use sigmoid"):
        Card("vgg16", {"classes": 1}, rule, None)
    for names in ("imagenet-1k", ("bee",)):
        with pytest.raises(ValueError, match="card has 0 classes but"):
            Card("vgg16", {"classes": None}, rule, names)
    for wrong in ({}, {"classes": 0}, {"classes": True}, {"classes": "2"}):
        with pytest.raises(ValueError, match="give a name, and a number or null"):
            Card("vgg16", wrong, rule, None)
    assert Card("vgg16", {"classes": None}, rule, None).classes == 0

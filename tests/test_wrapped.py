"""Networks as PyTorch wraps them, modules of other libraries, layers given as modules, and pictures as bytes."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn

import convnets_torch as ct
from convnets_torch.explain.activations import run_to
from convnets_torch.explain.gradcam import cams
from tests.test_threads import CALLS, FOREIGN, make, pictures, plain, same, tensor

WRAPPERS: dict[str, Any] = {
    "DataParallel": nn.DataParallel,
    "torch.compile": lambda network: torch.compile(network, backend="eager"),
}
NOT_OF_NETWORKS = ("another's module", "another's numbers", "strict", "lenient", "finetune", "densify")


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("pictures"))[0]


@pytest.mark.parametrize("wrapper", ["DataParallel", pytest.param("torch.compile", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")  # of random weights, and of the compiler
def test_every_function_takes_the_network_out_of_its_wrapper(wrapper, picture):
    wrong = {}
    for name, call in CALLS.items():
        if name not in NOT_OF_NETWORKS:
            found = plain(call(WRAPPERS[wrapper](make()), picture))
            wrong[name] = not same(found, plain(call(make(), picture)))
    assert len(wrong) > 25
    module = nn.Sequential(make().features, *make().head).eval()
    assert ct.densify(WRAPPERS[wrapper](module), (227, 227)).window == make().window
    assert not any(wrong.values()), [name for name in wrong if wrong[name]]


def test_a_module_of_another_library_is_refused_with_the_way_on(picture):
    module: Any = FOREIGN
    for name in ("heatmap", "gradcam", "class_map", "score_map", "activation_grids", "save"):
        with pytest.raises(ValueError, match=r"Sequential is not a network of this library; convert a classifier"):
            CALLS[name](module, picture)
    for name in ("classify", "predict", "evaluate", "embed"):
        with pytest.raises(ValueError, match=r"no card, .* load it with convnets_torch\.load, or .*densify"):
            CALLS[name](module, picture)


def test_a_layer_may_be_the_module_itself(picture):
    network, images = make(), tensor(picture)
    layer: Any = network.get_submodule("features.relu_3")
    wanted = run_to(network, "relu_3", images)["features.relu_3"]
    torch.testing.assert_close(run_to(network, layer, images), {"features.relu_3": wanted})
    assert ct.embed_layers(network, images, [layer, "pool_5"]).keys() == {"features.relu_3", "pool_5"}
    torch.testing.assert_close(ct.embed(network, images, layer), wanted.mean((2, 3)))
    assert ct.gradcam(network, picture, np.int64(3), layer=layer).layer == "features.relu_3"
    torch.testing.assert_close(
        cams(network, images, [np.int64(2)], layer=layer), cams(network, images, [2], layer="relu_3")
    )
    with torch.no_grad(), ct.record_activations(network, [layer, "relu_1"]) as found:
        network(images)
    assert list(found) == ["features.relu_1", "features.relu_3"]
    with pytest.raises(ValueError, match="the given ReLU is not a layer of the AlexNet; name one"):
        run_to(network, nn.ReLU(), images)


def test_a_block_that_records_nothing_says_so():
    network = make()
    sentence = r"features\.relu_3 did not run in this block"
    with pytest.raises(ValueError, match=sentence), ct.record_activations(network, "relu_3"):
        make()(torch.zeros(1, 3, 227, 227))
    with pytest.raises(KeyError), ct.record_activations(network, "relu_3"):
        raise KeyError("what went wrong in the block comes first")


@pytest.mark.parametrize("name", ["classify", "heatmap", "heatmap_each", "gradcam", "embed", "activation_grids"])
def test_a_picture_may_be_the_bytes_of_its_file_and_an_address_is_said_to_be_one(name, picture):
    assert same(plain(CALLS[name](make(), picture.read_bytes())), plain(CALLS[name](make(), picture)))
    address: Any = "https://x.org/cat.jpg"
    if name != "heatmap_each":  # which has it as a row
        with pytest.raises(FileNotFoundError, match=r"https://x\.org/cat\.jpg is a URL, and nothing is downloaded"):
            CALLS[name](make(), address)


def test_copies_of_compiled_networks_run_uncompiled(picture, monkeypatch):
    """`prepare(compiled=True)` puts a program in the place of `forward`; copies of the network run its layers."""
    network, images = make(), tensor(picture)
    wanted = ct.embed(network, images, "relu_3")
    program = Mock(side_effect=AssertionError("the program ran"), uncompiled=network.forward)
    monkeypatch.setattr(network, "forward", program)
    torch.testing.assert_close(ct.embed_layers(network, images, ["relu_3", "head.dense_1"])["relu_3"], wanted)

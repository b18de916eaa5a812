"""Weights on disk: round trips, cards, the cache, and what is refused."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import load_file, save_file

from converters import convert
from convnets_torch.card import Card, read_card
from convnets_torch.files import cache_folder
from convnets_torch.images.preprocessing import preset
from convnets_torch.networks import Network, vgg16
from convnets_torch.weights import list_networks, load, save
from tests.conftest import KERAS1


@pytest.fixture
def weights(tmp_path):
    """The narrow VGG16, converted."""
    return convert(KERAS1 / "vgg16.h5", tmp_path / "vgg16.safetensors").destination


def rewrite_card(path, change):
    """Change the text of the card in a file."""
    arrays = load_file(path)
    card = json.loads(read_card(path).to_json())
    save_file({name: array.clone() for name, array in arrays.items()}, path, {"card": json.dumps(change(card))})


def test_a_loaded_network_is_ready_to_classify(weights):
    network = load(weights)
    assert not network.training
    assert network.card == read_card(weights)
    assert network(torch.zeros(2, 3, 224, 224)).shape == (2, 60)


def test_saving_what_was_loaded_gives_the_same_bytes(weights, tmp_path):
    save(load(weights), tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == weights.read_bytes()


def test_saving_over_the_file_that_is_mapped_is_safe(weights):
    network = load(weights)
    before = {name: array.clone() for name, array in network.state_dict().items()}
    with torch.no_grad():
        network.get_parameter("head.dense_3.bias").add_(1)
    save(network, weights)
    again = load(weights).state_dict()
    assert torch.equal(again["head.dense_3.bias"], before["head.dense_3.bias"] + 1)
    assert all(torch.equal(again[name], before[name]) for name in before if name != "head.dense_3.bias")


@pytest.mark.parametrize("mapped", [True, False])
def test_training_does_not_change_the_file(mapped, weights):
    before = weights.read_bytes()
    network = load(weights, mapped=mapped).train()
    network(torch.ones(1, 3, 224, 224)).sum().backward()
    torch.optim.SGD(network.parameters(), lr=1.0).step()
    assert weights.read_bytes() == before
    changed, kept = (each.get_parameter("head.dense_3.bias") for each in (network, load(weights)))
    assert not torch.equal(changed, kept)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists the maps of a process")
def test_mapped_parameters_stay_in_the_file_and_others_do_not(weights):
    maps = Path("/proc/self/maps")
    network = load(weights, mapped=False)
    assert str(weights) not in maps.read_text()
    network = load(weights)
    assert str(weights) in maps.read_text()
    del network


@pytest.mark.filterwarnings("ignore::convnets_torch.inference.prepare.RuntimeRemark")  # not every processor has it
@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
)
def test_precision_is_that_of_every_parameter(precision, dtype, weights):
    assert {parameter.dtype for parameter in load(weights, precision=precision).parameters()} == {dtype}


def test_a_new_head_is_saved_with_a_card_that_fits(weights, tmp_path):
    network = load(weights)
    network.head[-1] = torch.nn.Linear(40, 3)
    with pytest.raises(ValueError, match=r"dense_3\.weight is \(3, 40\), not \(60, 40\).* set network\.card"):
        save(network, tmp_path / "mine.safetensors")
    arguments = {**network.card.arguments, "classes": 3}
    network.card = replace(network.card, arguments=arguments, class_names=("bee", "wasp", "fly"))
    save(network, tmp_path / "mine.safetensors")
    again = load(tmp_path / "mine.safetensors")
    assert again.card.class_names == ("bee", "wasp", "fly")
    assert again.head[-1].out_features == 3


def test_a_network_without_a_card_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match=r"has no card.*set network\.card first"):
        save(vgg16(2, widths=(1, 1, 1, 1, 1), hidden=(2, 2)), tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_unknown_fields_of_a_card_are_kept(weights, tmp_path):
    rewrite_card(weights, lambda card: card | {"mood": "good", "source": card["source"] | {"author": "somebody"}})
    save(load(weights), tmp_path / "again.safetensors")
    kept = json.loads(read_card(tmp_path / "again.safetensors").to_json())
    assert (kept["mood"], kept["source"]["author"]) == ("good", "somebody")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card | {"schema": 3}, "schema 3, but this version reads up to 2; update convnets-torch"),
        (lambda card: {}, "no schema number"),
        (lambda card: card | {"network": "lenet"}, "unknown network 'lenet'; known: alexnet"),
        (lambda card: {key: value for key, value in card.items() if key != "arguments"}, "cannot be read .'arguments'"),
        (lambda card: card | {"arguments": {"classes": 60, "depth": 3}}, "cannot be built with .*depth"),
        (
            lambda card: card | {"arguments": {"classes": 60}},
            r"does not hold the vgg16 of its card: .*conv1_1\.weight is",
        ),
        (lambda card: card | {"class_names": ["a", "b"]}, "60 classes but 2 class names"),
        (lambda card: card | {"activation": "tanh"}, "activation 'tanh'; known: softmax, sigmoid, none"),
        (lambda card: card | {"preprocessing": {"size": 3}}, "preprocessing cannot be read"),
        (lambda card: card | {"preprocessing": 3}, "cannot be read"),
        (lambda card: 5, "no schema number"),
        (lambda card: card | {"network": []}, "network .* with 60 classes; give a name, and a number or null"),
        (lambda card: card | {"arguments": {"classes": True}}, "with True classes"),
        (lambda card: card | {"class_names": {}}, "class names .*; give 'imagenet-1k', null or a list of strings"),
        (lambda card: card | {"class_names": [1] * 60}, "null or a list of strings"),
        (lambda card: card | {"preprocessing": card["preprocessing"] | {"scale": None}}, "scale None"),
        (lambda card: card | {"preprocessing": card["preprocessing"] | {"exif": "no"}}, "exif 'no'"),
        (lambda card: card | {"preprocessing": card["preprocessing"] | {"size": 1e9}}, "size 1000000000.0"),
        (lambda card: card | {"network": "alexnet", "arguments": {"classes": 60, "lrn": [0, 1, 1, 1]}}, "lrn is"),
        (lambda card: card | {"source": {"file": "x"}}, "cannot be read"),
        (lambda card: card | {"arguments": {"classes": -3}}, "-3 classes"),
    ],
)
def test_a_card_that_cannot_be_followed_is_refused(change, message, weights):
    rewrite_card(weights, change)
    with pytest.raises(ValueError, match=message) as caught:
        load(weights)
    assert str(weights) in str(caught.value)


def test_integers_are_no_weights(weights):
    arrays = {name: array.to(torch.int32) for name, array in load_file(weights).items()}
    save_file(arrays, weights, {"card": read_card(weights).to_json()})
    with pytest.raises(ValueError, match=r"conv1_1\.weight holds torch\.int32"):
        load(weights)


def test_safetensors_without_a_card_says_how_to_get_one(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x\.safetensors has no card.*convnets-torch convert"):
        load(tmp_path / "x.safetensors")


def test_a_header_that_is_no_header_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    for header, message in (
        (b'{"__metadata__":null}', "has no card"),
        (b'{"__metadata__":{"card":"{oops"}}', "no schema number"),
        (b'{"a":{"dtype":"F32"}}', "is not a safetensors file"),
        (b'{"a":3}', "is not a safetensors file"),
        (b"[1]", "is not a safetensors file"),
        (b'{"a":', "is not a safetensors file"),
    ):
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(ValueError, match=rf"x\.safetensors.* ?{message}"):
            read_card(path)


def test_a_file_with_more_than_its_header_says_is_refused(weights):
    weights.write_bytes(weights.read_bytes() + b"more")
    with pytest.raises(ValueError, match="is too long"):
        load(weights)


def test_a_compiled_network_is_saved_as_what_it_wraps(weights, tmp_path):
    save(cast(Network, torch.compile(load(weights))), tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == weights.read_bytes()


@pytest.mark.parametrize("length", [0, 5, 100, 2000, 500_000])
def test_truncated_safetensors_are_refused(length, weights):
    weights.write_bytes(weights.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"vgg16\.safetensors is (truncated|not a safetensors file)"):
        load(weights)


def test_other_files_are_no_safetensors(tmp_path):
    with pytest.raises(ValueError, match="is not a safetensors file; convert it"):
        load(KERAS1 / "vgg16.h5")
    with pytest.raises(FileNotFoundError, match=r"a/b\.safetensors does not exist"):
        load("a/b.safetensors")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        load(tmp_path)


def test_an_unknown_device_or_precision_is_refused(weights):
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        load(weights, device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device cuda:1 is not available: PyTorch finds 0 CUDA devices; use cpu"):
            load(weights, device="cuda:1")
    with pytest.raises(ValueError, match="device meta cannot take weights"):
        load(weights, device="meta")
    with pytest.raises(ValueError, match="unknown precision 'half'; known: auto, exact, float32, bfloat16, float16"):
        load(weights, precision="half")  # type: ignore[arg-type]


def test_names_are_looked_up_in_the_cache(weights, cache):
    with pytest.raises(FileNotFoundError, match=r"neither a file nor in the cache .*, which holds nothing; .* --cache"):
        load("mine")
    cache.mkdir()
    weights.rename(cache / "mine.safetensors")
    assert load("mine").card == load("mine.safetensors").card
    with pytest.raises(FileNotFoundError, match="which holds mine"):
        load("yours")


def test_without_the_variable_the_cache_is_the_platforms(monkeypatch, tmp_path):
    monkeypatch.delenv("CONVNETS_TORCH_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tmp_path in cache_folder().parents


def test_the_networks_are_listed():
    assert list_networks() == ["alexnet", "efficientnet_lite0", "inception_v3", "resnet50", "vgg16", "vgg19"]


def test_a_card_survives_its_text():
    head = (("flatten",), ("dense", 2))
    card = Card("vgg16", {"classes": 2, "widths": (1, 2), "head": head}, preset("vgg16"), ("bee", "wäsp"), "sigmoid")
    assert Card.from_json(card.to_json()) == card
    assert len({card, Card.from_json(card.to_json())}) == 1

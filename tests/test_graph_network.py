"""Networks given as a graph of layers: built from plain data, run, compiled, saved; and refused if malformed."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import nn

from convnets_torch import load, save, score_map
from convnets_torch.card import Card
from convnets_torch.images.preprocessing import general
from convnets_torch.networks.graph_network import KINDS, GraphNetwork, LayerGraph
from convnets_torch.weights import build

CONV = {"inputs": 3, "outputs": 8, "kernel": (3, 3), "padding": (1, 1)}
FEATURES: tuple[Any, ...] = (
    ("conv", "conv", ("images",), CONV),
    ("conv_activation", "relu", ("conv",), {}),
    ("branch", "conv", ("conv_activation",), {**CONV, "inputs": 8, "bias": False}),
    ("bn", "batch_norm", ("branch",), {"channels": 8, "epsilon": 0.001}),
    ("join", "add", ("conv_activation", "bn"), {}),
    ("pool", "max_pool", ("join",), {"kernel": (2, 2), "stride": (2, 2)}),
)
HEAD: tuple[Any, ...] = (
    ("average", "average_pool", (), {"kernel": (4, 4), "stride": (1, 1)}),
    ("flat", "flatten", ("average",), {}),
    ("scores", "dense", ("flat",), {"inputs": 8, "outputs": 5}),
)
GRAPH: dict[str, Any] = {
    "name": "small",
    "features": FEATURES,
    "head": HEAD,
    "size": (8, 8),
    "window": (4, 4),
    "stride": 2,
}


@pytest.fixture
def network() -> GraphNetwork:
    torch.manual_seed(0)
    return GraphNetwork(5, GRAPH).eval()


def test_layers_are_submodules_and_each_reads_the_outputs_it_names(network):
    images = torch.rand(2, 3, 8, 8)
    part = network.features
    first = part.conv(images).relu()
    joined = first + part.bn(part.branch(first))
    wanted = network.head.scores(nn.functional.max_pool2d(joined, 2).mean((2, 3)))
    assert torch.allclose(network(images), wanted, atol=1e-6)
    assert network.keras_names()["conv"] == "features.conv_activation"


def test_it_compiles_to_one_graph_exports_and_runs_in_half_precision(network):
    images = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        wanted = network(images)
        compiled = torch.compile(network, fullgraph=True, backend="eager")(images)
        exported = torch.export.export(network, (images,)).module()(images)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(images).float()
    assert torch.equal(compiled, wanted)
    assert torch.equal(exported, wanted)
    assert torch.allclose(rounded, wanted, atol=0.1)


def test_its_map_is_the_head_on_every_crop_of_the_features(network):
    images = torch.rand(1, 3, 12, 14)
    with torch.no_grad():
        cells = network.features(images)
        found = score_map(network, images)
        strips = score_map(network, images, max_memory="30KB")
    assert found.shape == (1, 5, 3, 4)
    assert torch.allclose(found[0, :, 2, 1], network.head(cells[:, :, 2:6, 1:5])[0], atol=1e-6)
    assert torch.allclose(strips, found, atol=1e-6)


def test_a_shared_layer_is_one_module_called_twice():
    twice = (*FEATURES[:3], ("branch_again", "again", ("branch",), {"layer": "branch"}))
    part = LayerGraph(twice).eval()
    images = torch.rand(1, 3, 8, 8)
    conv, branch = part.get_submodule("conv"), part.get_submodule("branch")
    assert torch.equal(part(images), branch(branch(conv(images).relu())))
    assert sum(isinstance(module, nn.Conv2d) for module in part.modules()) == 2


def test_a_file_keeps_the_graph_in_its_card(network, tmp_path):
    network.card = Card("graph", {"classes": 5, "graph": GRAPH}, general("unit", 8), None)
    save(network, tmp_path / "small.safetensors")
    again = load(tmp_path / "small.safetensors")
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(again(images), network(images))
    assert json.loads(again.card.to_json())["schema"] == 2
    assert Card.from_json(again.card.to_json()) == again.card


def changed(where: str, place: int, part: int, value: object) -> dict[str, Any]:
    graph = copy.deepcopy(GRAPH)
    entries = [list(entry) for entry in graph[where]]
    entries[place][part] = value
    return graph | {where: tuple(map(tuple, entries))}


MALFORMED = {
    "code in a name": (changed("features", 0, 0, "a); import os; ("), "letters, digits"),
    "a name with another meaning": (changed("features", 0, 0, "forward"), "has another meaning"),
    "two of a name": (changed("features", 2, 0, "conv"), "two layers conv"),
    "an unknown kind": (changed("features", 0, 1, "lambda"), "unknown kind 'lambda'"),
    "a kind that is no word": (changed("features", 0, 1, ["conv"]), "unknown kind"),
    "a cycle": (changed("features", 0, 2, ("join",)), "give names of layers before it"),
    "an input that is no list": (changed("features", 1, 2, "conv"), "give names of layers before it"),
    "a setting that is unknown": (
        changed("features", 0, 3, {**CONV, "code": "x"}),
        "unexpected keyword argument 'code'",
    ),
    "a setting that is missing": (changed("features", 0, 3, {"inputs": 3}), "missing a required argument"),
    "a huge layer": (changed("features", 0, 3, {**CONV, "outputs": 10**12}), "out of range"),
    "a long setting": (changed("features", 0, 3, {**CONV, "kernel": "3" * 100}), "neither a number nor a word"),
    "a list of lists": (changed("features", 0, 3, {**CONV, "kernel": [[[[[[3]]]]]]}), "too many numbers"),
    "NaN": (changed("features", 3, 3, {"channels": 8, "epsilon": float("nan")}), "out of range"),
    "a head that branches": (changed("head", 2, 2, ("average",)), "give the layer before it"),
    "too many layers": (GRAPH | {"features": FEATURES * 1000}, "at most 5000 layers"),
    "a huge window": (GRAPH | {"window": (10**9, 1)}, "whole numbers"),
    "a size that is no size": (GRAPH | {"size": "8x8"}, "two whole numbers"),
    "another field": (GRAPH | {"code": "x"}, "known: features"),
    "no head for its classes": (GRAPH | {"head": None}, "5 classes and no head"),
    "channels": (GRAPH | {"channels": 2}, "known: 1, 3, 4"),
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_a_malformed_graph_is_refused_in_one_sentence(fault):
    graph, message = MALFORMED[fault]
    with pytest.raises(ValueError, match=message) as caught:
        build("graph", {"classes": 5, "graph": graph})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 3000


def test_a_card_of_a_huge_network_builds_nothing_large():
    """Ten layers of 4 TB each: shapes on the meta device alone."""
    wide = {"inputs": 1_000_000, "outputs": 1_000_000, "kernel": (1, 1), "bias": False}
    first = ("c0", "conv", ("images",), {**wide, "inputs": 3})
    layers = [first, *((f"c{number}", "conv", (f"c{number - 1}",), wide) for number in range(1, 10))]
    network = build("graph", {"classes": None, "graph": {"features": layers, "head": None, "size": (8, 8)}})
    assert all(parameter.is_meta for parameter in network.parameters())


def test_a_graph_and_another_network_do_not_go_together():
    with pytest.raises(ValueError, match="or the other way round"):
        Card("vgg16", {"classes": 5, "graph": GRAPH}, general("unit", 8), None)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"conv_transpose"}))
def test_no_kind_takes_a_word_for_a_number(kind):
    """Whatever the kind, settings of strings end in a ValueError, or the kind has no such setting."""
    graph = {"features": (("x", kind, ("images",), {"kernel": "x", "channels": "x", "shape": "x"}),), "size": (8, 8)}
    with pytest.raises(ValueError, match=r"layer x \("):
        build("graph", {"classes": None, "graph": graph})


def entry(name: str, kind: str, *inputs: str, **settings: Any) -> tuple[Any, ...]:
    return (name, kind, inputs, settings)


CONV_8 = {"inputs": 8, "outputs": 8, "kernel": (3, 3), "padding": (1, 1)}
MAPPED = {  # layers on a map of 8 channels that read a fixed window of cells
    "max_pool": entry("x", "max_pool", "conv", kernel=(3, 3), stride=(2, 2), edges=(0, 1, 0, 1)),
    "average_pool": entry("x", "average_pool", "conv", kernel=(3, 3), stride=(2, 2), edges=(0, 1, 0, 1)),
    "pad": entry("x", "pad", "conv", edges=(0, 1, 2, 1)),
    "scale": entry("x", "scale", "conv", scale=2.0, offset=(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)),
    "channel_norm": entry("x", "channel_norm", "conv", channels=8, epsilon=0.01),
    "layer_scale": entry("x", "layer_scale", "conv", channels=8),
    "clipped_relu": entry("x", "clipped_relu", "conv", most=0.5, threshold=0.1, slope=0.2),
    "prelu": entry("x", "prelu", "conv", shape=(8, 1, 1)),
    "hard_sigmoid_0.2": entry("x", "hard_sigmoid_0.2", "conv"),
    **{kind: entry("x", kind, "conv", "other") for kind in ("subtract", "multiply", "average", "maximum", "minimum")},
    "squared": entry("x", "multiply", "conv", "conv"),
    "concatenate": entry("x", "concatenate", "conv", "other", "conv", dim=1),
}


@pytest.mark.parametrize("kind", MAPPED)
def test_blocks_of_rows_give_the_map_of_the_whole(kind):
    """Each layer, with a branch and a head, in blocks of 8 rows against one pass; and each cell against its crop."""
    features = [
        entry("conv", "conv", "images", **CONV), entry("other", "conv", "conv", **CONV_8), MAPPED[kind],
        entry("end", "conv", "x", **{**CONV_8, "inputs": 24 if kind == "concatenate" else 8}),
    ]  # fmt: skip
    torch.manual_seed(0)
    side = 8 if "pool" in kind else 16
    window = (17, 19) if kind == "pad" else (side, side)
    head = [
        entry("average", "average_pool", kernel=window, stride=(1, 1)), entry("flat", "flatten", "average"),
        entry("scores", "dense", "flat", inputs=8, outputs=3),
    ]  # fmt: skip
    graph = {"features": features, "head": head, "size": (16, 16), "window": window, "stride": 16 // side}
    network = GraphNetwork(3, graph).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.4)
    images = torch.rand(1, 3, 40, 30)
    with torch.no_grad():
        whole = score_map(network, images)
        blocks = score_map(network, images, max_memory=least_memory(network, images))
        cells = network.features(images)
        crop = network.head(cells[:, :, 2 : 2 + window[0], 3 : 3 + window[1]])
    assert torch.allclose(blocks, whole, atol=1e-5)
    assert torch.allclose(whole[:, :, 2, 3], crop, atol=1e-5)


def least_memory(network: GraphNetwork, images: torch.Tensor) -> int:
    """Bytes that let only some rows through at once."""
    from convnets_torch.fcn.graph import map_graph
    from convnets_torch.fcn.memory import peak_bytes

    graph = map_graph(network)
    size = images.shape[2:]
    return (peak_bytes(graph, (1, *size), torch.float32, 4) + peak_bytes(graph, (1, *size), torch.float32, 40)) // 2

"""A linear probe as the head of the network whose features it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from convnets_torch.card import Card
from convnets_torch.embeddings.extraction import last_dense
from convnets_torch.embeddings.probes import LinearProbe
from convnets_torch.networks import Network
from convnets_torch.networks.packed import PackedConv2d, PackedLinear
from convnets_torch.weights import build, differences


def with_probe(network: Network, probe: LinearProbe, remarks: Mapping[str, Any] | None = None) -> Network:
    """The network with the probe in the place of its last dense layer; of one without a head, behind its mean.

    What `embed` gives by default goes into the probe; `classify`, `heatmap` and `gradcam` work with its classes.

    Args:
        network: with its card; it is left as it is and shares all other parameters with what is returned.
        probe: of vectors that `embed` or `embed_classes` gave for this network.
        remarks: plain data to keep in the card beside the kind of probe, such as its accuracy.

    Returns:
        A network in eval mode with a card of its own, which `save` takes. Its card says softmax: for logistic
        regression these are scikit-learn's probabilities, for a support vector machine numbers with the same order.

    Raises:
        ValueError: the network has no card, or was prepared; or the probe reads another number of values.

    >>> import numpy as np
    >>> from convnets_torch import load
    >>> flowers = LinearProbe("logistic", ("aster", "bellis"), np.zeros((2, 40)), np.array([0.0, 1.0]), 20)
    >>> network = with_probe(load("alexnet.safetensors"), flowers)
    >>> network.card.class_names, network(torch.zeros(1, 3, 227, 227)).tolist()
    (('aster', 'bellis'), [[0.0, 1.0]])
    """
    card = network.card
    if card is None:
        raise ValueError("the network has no card, so its preprocessing is not known; set network.card first")
    if any(isinstance(module, PackedConv2d | PackedLinear) for module in network.modules()):
        raise ValueError("the network was prepared, which rounds; give the one that was given to `prepare`")
    classes = len(probe.classes)
    found = build(card.network, _arguments(card, classes))
    new = last_dense(found)
    wanted = found.get_submodule(new).in_features
    if probe.weight.shape != (classes, wanted):
        raise ValueError(
            f"the probe reads {probe.weight.shape[1]} values, but the head gives {wanted}; fit it to vectors that"
            " `embed` gives for this network by default"
        )
    some = next(network.parameters())
    held = found.state_dict()  # without what stood behind the last dense layer
    arrays = {
        name: array for name, array in network.state_dict().items() if name in held or not name.startswith("head.")
    }
    arrays[f"{new}.weight"] = torch.from_numpy(probe.weight).to(some)
    arrays[f"{new}.bias"] = torch.from_numpy(probe.bias).to(some)
    if wrong := differences(held, arrays):
        raise ValueError(f"the network is not the {card.network} of its card: {'; '.join(wrong)}")
    found.load_state_dict(arrays, assign=True)
    found.card = _card(card, probe, dict(remarks or {}))
    return found.eval()


def _arguments(card: Card, classes: int) -> dict[str, Any]:
    """Those of the builder: the head as it was up to the last dense layer, whose units change."""
    arguments = {**card.arguments, "classes": classes}
    if card.arguments["classes"] is None:
        return arguments | {"head": (("average",), ("dense", classes))}
    steps = card.arguments.get("head")
    if steps is not None:
        last = max(place for place, step in enumerate(steps) if step[0] == "dense")
        arguments["head"] = (*steps[:last], ("dense", classes))
    return arguments


def _card(card: Card, probe: LinearProbe, remarks: dict[str, Any]) -> Card:
    source = card.source
    if source is not None:
        words = f"last dense layer replaced by a probe of {len(probe.classes)} classes ({probe.kind})"
        source = replace(source, changes=(*source.changes, words))
    described = {"kind": probe.kind, "pictures": probe.pictures, **remarks}
    return Card(
        card.network,
        _arguments(card, len(probe.classes)),
        card.preprocessing,
        probe.classes,
        "softmax",
        source,
        {**card.unknown, "probe": described},
    )

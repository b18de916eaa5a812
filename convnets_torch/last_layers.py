"""A new last layer for classes of one's own in the place of a network's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from convnets_torch.card import Activation, Card
from convnets_torch.embeddings.extraction import last_dense
from convnets_torch.networks import Network
from convnets_torch.networks.network import as_network
from convnets_torch.networks.packed import check_unpacked
from convnets_torch.weights import build, differences

OF_THE_LAST_LAYER = ("probe", "finetuning", "temperature")  # fields of cards that describe it, and go with it


def with_last_layer(
    network: Network,
    weight: Tensor,
    bias: Tensor,
    classes: Sequence[str],
    change: str,
    *,
    activation: Activation = "softmax",
    remarks: Mapping[str, Any] | None = None,
) -> Network:
    """The network with another last dense layer; one without a head gets it behind the mean of its features.

    What `embed` gives by default goes into the layer. What stood behind the last dense layer is left out.

    Args:
        network: with its card; it is left as it is and shares all other parameters with what is returned.
        weight: (classes, values).
        bias: (classes,).
        classes: their names.
        change: what was done, in words, for the card's source.
        activation: what turns the new logits into probabilities.
        remarks: plain data to keep in the card under names that it has not itself.

    Returns:
        A network in eval mode with a card of its own, which `save` takes.

    Raises:
        ValueError: the network has no card, or was prepared; or the layer reads another number of values.

    >>> import torch
    >>> from convnets_torch import load
    >>> network = with_last_layer(
    ...     load("alexnet.safetensors"), torch.zeros(2, 40), torch.tensor([0.0, 1.0]), ("aster", "bellis"), "for fun"
    ... )
    >>> network.card.class_names, network(torch.zeros(1, 3, 227, 227)).tolist()
    (('aster', 'bellis'), [[0.0, 1.0]])
    """
    network = as_network(network)
    card = network.card
    if card is None:
        raise ValueError("the network has no card, so its preprocessing is not known; set network.card first")
    check_unpacked(network)
    arguments = _arguments(card, len(classes))
    found = planned(card, len(classes))
    new = last_dense(found)
    wanted = found.get_submodule(new).in_features
    if weight.shape != (len(classes), wanted):
        raise ValueError(
            f"the new layer is {tuple(weight.shape)}, but {len(classes)} classes of {wanted} values are wanted; fit it"
            " to vectors that `embed` gives for this network by default"
        )
    some = next(network.parameters())
    held = found.state_dict()  # without what stood behind the last dense layer
    arrays = {
        name: array for name, array in network.state_dict().items() if name in held or not name.startswith("head.")
    }
    arrays |= {f"{new}.weight": weight.to(some), f"{new}.bias": bias.to(some)}
    if wrong := differences(held, arrays):
        raise ValueError(f"the network is not the {card.network} of its card: {'; '.join(wrong)}")
    found.load_state_dict(arrays, assign=True)
    source = card.source and replace(card.source, changes=(*card.source.changes, change))
    kept = {name: value for name, value in card.unknown.items() if name not in OF_THE_LAST_LAYER}
    found.card = Card(
        card.network, arguments, card.preprocessing, tuple(classes), activation, source, {**kept, **(remarks or {})}
    )
    return found.eval()


def planned(card: Card, classes: int) -> Network:
    """What `with_last_layer` would make of a card's network: shapes without numbers.

    Raises:
        ValueError: the card's network cannot be built.
    """
    return build(card.network, _arguments(card, classes))


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

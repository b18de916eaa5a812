"""A temperature put into the weights, so that whatever runs them is calibrated."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite

from torch import nn

from convnets_torch.card import Card
from convnets_torch.embeddings.extraction import last_dense
from convnets_torch.networks import Network
from convnets_torch.networks.network import NO_HEAD, as_network
from convnets_torch.networks.packed import check_unpacked
from convnets_torch.weights import build


def with_temperature(network: Network, temperature: float) -> Network:
    """The network with its logits divided by a temperature: the last dense layer's weights and biases are.

    The order of classes stays, so errors do; probabilities change everywhere, in heatmaps too.

    Args:
        network: with its card and a head that ends in a dense layer; it is left as it is and shares all other
            parameters with what is returned.
        temperature: above 0; above 1 makes answers less sure.

    Returns:
        A network in eval mode whose card says so, which `save` takes. Temperatures given one after another multiply.

    Raises:
        ValueError: the temperature is no such number; the network has no card, no head or another last layer, or was
            prepared.

    >>> import torch
    >>> from convnets_torch import load
    >>> network = load("alexnet.safetensors")
    >>> cooler, images = with_temperature(network, 2.0), torch.rand(1, 3, 227, 227)
    >>> torch.testing.assert_close(cooler(images), network(images) / 2)
    >>> cooler.card.unknown["temperature"]
    2.0
    """
    if not (isfinite(temperature) and temperature > 0):
        raise ValueError(f"the temperature is {temperature}; give a number above 0")
    network = as_network(network)
    card = network.card
    if card is None:
        raise ValueError("the network has no card, which is to say what was done; set network.card first")
    if network.head is None:
        raise ValueError(NO_HEAD)
    check_unpacked(network)
    last = last_dense(network)
    ending = [name for name, module in network.head.named_modules() if name and not isinstance(module, nn.Dropout)][-1]
    if last != f"head.{ending}":
        raise ValueError(
            f"the head ends in head.{ending}, not in a dense layer, so its outputs cannot be divided there"
        )
    found = build(card.network, card.arguments)
    arrays = dict(network.state_dict())
    for name in (f"{last}.weight", f"{last}.bias"):
        if name in arrays:
            arrays[name] = (arrays[name].detach().double() / temperature).to(arrays[name])
    found.load_state_dict(arrays, assign=True)
    found.card = _card(card, temperature)
    return found.eval()


def _card(card: Card, temperature: float) -> Card:
    source = card.source
    if source is not None:
        source = replace(source, changes=(*source.changes, f"logits divided by the temperature {temperature:.6g}"))
    before = card.unknown.get("temperature", 1.0)
    return replace(card, source=source, unknown={**card.unknown, "temperature": before * temperature})

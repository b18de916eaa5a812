"""Weights on disk: load and save safetensors files that know what they are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from convnets_torch.cache import find
from convnets_torch.card import KEY, Card, card_of_opened
from convnets_torch.files import Output, open_file, opened_path, path_of, replacing, to_open_files
from convnets_torch.networks import NETWORKS, Network
from convnets_torch.networks.densified import Densified
from convnets_torch.networks.network import as_network
from convnets_torch.networks.packed import PackedConv2d, PackedLinear
from convnets_torch.runtime import Precision, check_precision, checked_device, prepare
from convnets_torch.sentences import in_one_line

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # kinds of number that networks compute with


def list_networks() -> list[str]:
    """Names of the networks that weights can be converted for and loaded into.

    >>> list_networks()
    ['alexnet', 'efficientnet_lite0', 'inception_v3', 'resnet50', 'vgg16', 'vgg19']
    """
    return sorted(NETWORKS)


def build(network: str, arguments: Mapping[str, Any]) -> Network:
    """A network as a card describes it, on the meta device: shapes without numbers, in milliseconds.

    Raises:
        ValueError: the network is unknown, or its builder does not take the arguments.
    """
    if not isinstance(network, str) or network not in NETWORKS:
        raise ValueError(f"unknown network {network!r}; known: {', '.join(list_networks())}")
    try:
        with torch.device("meta"):
            return NETWORKS[network](**arguments)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, AttributeError) as error:
        raise ValueError(f"{network} cannot be built with {dict(arguments)}: {error}") from None


@in_one_line()
def load(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    precision: Precision | None = None,
    mapped: bool = True,
) -> Network:
    """Load a network that is ready to classify.

    Args:
        path: a safetensors file with a card, or the name of one in the user's cache.
        device: where the parameters go: "cpu", "cuda", "cuda:1", "mps", or "auto" for the best that is there.
        precision: None gives the parameters as the file holds them, for training as well. "auto", "exact", "float32",
            "bfloat16" or "float16" give a network that is ready to run fast, and only to run; `prepare` says what each
            means.
        mapped: leave the parameters in the file, mapped and read on first use (copied on write, so that
            training does not change the file); False reads them in. On other devices they are always copied.

    Returns:
        The network in eval mode, with its `card`. `network(x)` gives logits (N, classes) for x (N, 3, H, W)
        of `network.size`, normalised as `network.card.preprocessing` says.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: the file has no card, is truncated, or does not hold what its card says; the device or the
            precision is not known.

    >>> network = load("alexnet.safetensors")
    >>> network.card.network, network.card.preprocessing.channels, network.training
    ('alexnet', 'rgb', False)
    """
    place = checked_device(device)
    if precision is not None:
        check_precision(precision)
    file = find(path)
    with open_file(file) as opened:
        card = card_of_opened(opened, file)
        try:
            network = build(card.network, card.arguments)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        if layout := card.unknown.get("layout"):
            raise ValueError(
                f"{file} has the parameter names of {layout}, for its load_state_dict; convert the original weights"
                " again without a layout to load them here"
            )
        try:
            arrays = load_file(opened_path(opened), device=str(place))  # what is mapped stays so when this closes
        except SafetensorError as error:
            raise ValueError(f"{file} cannot be read ({error}); copy or convert it again") from None
    kinds = {array.dtype for array in arrays.values() if array.is_floating_point()}
    if len(kinds) > 1 or not kinds.issubset(FLOATS):
        raise ValueError(
            f"{file} has arrays of {', '.join(sorted(map(str, kinds)))}; all of one kind are wanted, of"
            f" {', '.join(map(str, FLOATS))}"
        )
    if wrong := differences(network.state_dict(), arrays):
        raise ValueError(f"{file} does not hold the {card.network} of its card: {'; '.join(wrong)}")
    if not mapped and place.type == "cpu":
        arrays = {name: array.clone() for name, array in arrays.items()}
    network.load_state_dict(arrays, assign=True)
    network.card = card
    network.eval()
    return network if precision is None else prepare(network, device=place, precision=precision)


@to_open_files(".safetensors")
def save(network: Network, path: Output) -> None:
    """Write a network's weights and its card to a new safetensors file, which then replaces `path`.

    Raises:
        OSError: `path` cannot be written; an older file there survives.
        ValueError: the network has no card, or not the shapes that its card says; or `densify` made it.

    >>> network = load("alexnet.safetensors")
    >>> save(network, "copy.safetensors")
    >>> load("copy.safetensors").card == network.card
    True
    """
    network = as_network(network)
    if isinstance(network, Densified):
        raise ValueError(
            "the network was made of a module of your own, which `load` could not build; save that module's state_dict,"
            " and densify it again"
        )
    if any(isinstance(module, PackedConv2d | PackedLinear) for module in network.modules()):
        raise ValueError("the network was prepared to run, not to be saved; save the one that was given to `prepare`")
    if network.card is None:
        raise ValueError("the network has no card, so nobody could load what is saved; set network.card first")
    arrays = {name: array.detach().cpu().contiguous() for name, array in network.state_dict().items()}
    try:
        Card.from_json(network.card.to_json())
    except ValueError as error:
        raise ValueError(f"the network could not be loaded again: {error}") from None
    if wrong := differences(build(network.card.network, network.card.arguments).state_dict(), arrays):
        raise ValueError(
            f"the network is not the {network.card.network} of its card: {'; '.join(wrong)};"
            " set network.card to what it is now"
        )
    with replacing(path_of(path)) as temporary:
        try:
            save_file(arrays, temporary, metadata={KEY: network.card.to_json()})
        except SafetensorError as error:
            raise OSError(str(error)) from None


def differences(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Every parameter that is missing, not known, or of another shape or kind of number, in a few words each."""
    missing = [f"{name} is missing" for name in wanted if name not in found]
    extra = [f"{name} is not known" for name in found if name not in wanted]
    shapes = [
        f"{name} is {tuple(found[name].shape)}, not {tuple(array.shape)}"
        for name, array in wanted.items()
        if name in found and tuple(found[name].shape) != tuple(array.shape)
    ]
    types = [
        f"{name} holds {found[name].dtype}"
        for name, array in wanted.items()
        if name in found and found[name].is_floating_point() != array.is_floating_point()
    ]
    return missing + extra + shapes + types

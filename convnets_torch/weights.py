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
from convnets_torch.card import KEY, read_card
from convnets_torch.files import replacing
from convnets_torch.networks import NETWORKS, Network
from convnets_torch.networks.densified import Densified

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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


def load(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    precision: str | None = None,
    mapped: bool = True,
) -> Network:
    """Load a network that is ready to classify.

    Args:
        path: a safetensors file with a card, or the name of one in the user's cache.
        device: where the parameters go.
        precision: "float32", "bfloat16" or "float16"; None keeps what the file holds.
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
    device = _check_device(device)
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    file = find(path)
    card = read_card(file)
    try:
        network = build(card.network, card.arguments)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    if layout := card.unknown.get("layout"):
        raise ValueError(
            f"{file} has the parameter names of {layout}, for its load_state_dict; convert the original weights again"
            " without a layout to load them here"
        )
    try:
        arrays = load_file(file, device=str(device))
    except SafetensorError as error:
        raise ValueError(f"{file} cannot be read ({error}); copy or convert it again") from None
    if wrong := differences(network.state_dict(), arrays):
        raise ValueError(f"{file} does not hold the {card.network} of its card: {'; '.join(wrong)}")
    if not mapped and device.type == "cpu":
        arrays = {name: array.clone() for name, array in arrays.items()}
    network.load_state_dict(arrays, assign=True)
    if precision is not None:
        network.to(PRECISIONS[precision])
    network.card = card
    return network.eval()


def save(network: Network, path: str | os.PathLike[str]) -> None:
    """Write a network's weights and its card to a new safetensors file, which then replaces `path`.

    Raises:
        OSError: `path` cannot be written; an older file there survives.
        ValueError: the network has no card, or not the shapes that its card says; or `densify` made it.

    >>> network = load("alexnet.safetensors")
    >>> save(network, "copy.safetensors")
    >>> load("copy.safetensors").card == network.card
    True
    """
    network = getattr(network, "_orig_mod", network)  # what torch.compile wraps
    if isinstance(network, Densified):
        raise ValueError(
            "the network was made of a module of your own, which `load` could not build; save that module's state_dict,"
            " and densify it again"
        )
    if network.card is None:
        raise ValueError("the network has no card, so nobody could load what is saved; set network.card first")
    arrays = {name: array.detach().cpu().contiguous() for name, array in network.state_dict().items()}
    if wrong := differences(build(network.card.network, network.card.arguments).state_dict(), arrays):
        raise ValueError(
            f"the network is not the {network.card.network} of its card: {'; '.join(wrong)};"
            " set network.card to what it is now"
        )
    with replacing(path) as temporary:
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


def _check_device(device: str | torch.device) -> torch.device:
    try:
        checked = torch.device(device)
    except RuntimeError:
        raise ValueError(f"unknown device {device!r}; known are cpu, cuda, cuda:1, mps") from None
    if checked.type == "cuda" and (checked.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device} is not there: PyTorch finds {torch.cuda.device_count()} of CUDA; use cpu")
    if checked.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device {device} is not there: PyTorch finds no Metal; use cpu")
    if checked.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device {device} cannot take weights; use cpu, cuda or mps")
    return torch.device("cpu") if checked.type == "cpu" else checked

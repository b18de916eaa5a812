"""Load and save weights files: safetensors with a card that describes the network."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from convnets_torch.card import GRAPH, KEY, Activation, Card, card_of_opened, network_digest
from convnets_torch.fcn.densify import Densified
from convnets_torch.files import Output, find, open_file, opened_path, path_of, to_open_files
from convnets_torch.inference.prepare import Precision, checked_device, fold, prepare
from convnets_torch.networks import NETWORKS, Network
from convnets_torch.networks.graph_network import GraphNetwork, with_classes
from convnets_torch.networks.network import as_network
from convnets_torch.networks.packed import PackedConv2d, PackedLinear, check_unpacked
from convnets_torch.networks.quantized import quantized_form
from convnets_torch.options import renamed
from convnets_torch.safetensors_io import write_arrays
from convnets_torch.text import check_choice, printable_errors

OF_THE_LAST_LAYER = ("probe", "finetuning", "temperature")  # fields of the card that describe it, dropped with it


@renamed(remarks="fields")
def with_last_layer(
    network: Network,
    weight: Tensor,
    bias: Tensor,
    classes: Sequence[str],
    change: str,
    *,
    activation: Activation = "softmax",
    fields: Mapping[str, Any] | None = None,
) -> Network:
    """Replace the last dense layer of a network; without a head, append one after global average pooling.

    The input of the layer is the vector that `embed` returns by default. Layers after the last dense layer are dropped.

    Args:
        network: a network with a card; it is not changed, and shares all other parameters with the result.
        weight: (classes, values).
        bias: (classes,).
        classes: names of the classes.
        change: description of the change for the card's source.
        activation: function that turns the new logits into probabilities.
        fields: additional fields for the card, as plain data.

    Returns:
        A network in eval mode with its own card, which `save` accepts.

    Raises:
        ValueError: the network has no card or was prepared, or the layer has the wrong number of inputs.

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
    held = found.state_dict()  # without layers after the last dense layer
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
        card.network, arguments, card.preprocessing, tuple(classes), activation, source, {**kept, **(fields or {})}
    )
    return found.eval()


def planned(card: Card, classes: int) -> Network:
    """The network that `with_last_layer` would return, on the meta device; raises as `build`."""
    return build(card.network, _arguments(card, classes))


def _arguments(card: Card, classes: int) -> dict[str, Any]:
    """Arguments of the builder for `classes` units in the last dense layer, and no layers after it."""
    arguments = {**card.arguments, "classes": classes}
    if card.network == GRAPH:
        return arguments | {GRAPH: with_classes(card.arguments[GRAPH], classes)}
    if card.arguments["classes"] is None:
        return arguments | {"head": (("average",), ("dense", classes))}
    steps = card.arguments.get("head")
    if steps is not None:
        last = max(place for place, step in enumerate(steps) if step[0] == "dense")
        arguments["head"] = (*steps[:last], ("dense", classes))
    return arguments


FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # dtypes that networks compute with


def list_networks() -> list[str]:
    """Names of the networks that weights can be converted to and loaded into.

    >>> list_networks()
    ['alexnet', 'efficientnet_lite0', 'inception_v3', 'resnet50', 'vgg16', 'vgg19']
    """
    return sorted(NETWORKS)


def build(network: str, arguments: Mapping[str, Any]) -> Network:
    """Build a network on the meta device: shapes without data, in milliseconds.

    Raises:
        ValueError: the network is unknown, or its builder does not accept the arguments.
    """
    check_choice(network, (*list_networks(), GRAPH), "network")
    try:
        with torch.device("meta"):
            return GraphNetwork(**arguments) if network == GRAPH else NETWORKS[network](**arguments)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, AttributeError) as error:
        raise ValueError(f"{network} cannot be built with {dict(arguments)!r:.1000}: {error}") from None


def build_of(card: Card) -> Network:
    """Build the network of a card on the meta device, quantised if it is; raises as `build`."""
    network = build(card.network, card.arguments)
    if card.quantization is None:
        return network
    fold(network.eval())
    return quantized_form(network, card.quantization.wide)


@printable_errors()
def load(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    precision: Precision | None = None,
    mapped: bool = True,
) -> Network:
    """Load a network, ready to classify.

    Args:
        path: a safetensors file with a card, or the name of one in the user's cache.
        device: device of the parameters: "cpu", "cuda", "cuda:1", "mps", or "auto" for the best one available.
        precision: None keeps the parameters as stored, also for training. "auto", "exact", "float32", "bfloat16" or
            "float16" return a network prepared for fast inference only; see `prepare`.
        mapped: memory-map the parameters, which are read on first use and copied on write, so that training does not
            change the file; False reads them at once. On other devices than the CPU they are always copied.

    Returns:
        The network in eval mode, with its `card`. `network(x)` returns logits (N, classes) for x (N, C, H, W)
        of `network.size`, normalised as `network.card.preprocessing` says.

    Raises:
        OSError: the file does not exist or cannot be read.
        ValueError: the file has no card, is truncated, or does not match its card; or the device or precision is
            unknown.

    >>> network = load("alexnet.safetensors")
    >>> network.card.network, network.card.preprocessing.channels, network.training
    ('alexnet', 'rgb', False)
    """
    place = checked_device(device)
    if precision is not None:
        check_choice(precision, get_args(Precision), "precision")
    file = find(path)
    with open_file(file) as opened:
        card = card_of_opened(opened, file)
        try:
            network = build_of(card)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        if layout := card.unknown.get("layout"):
            raise ValueError(
                f"{file} has the parameter names of {layout}, for its load_state_dict; convert the original weights"
                " again without a layout to load them here"
            )
        try:
            arrays = load_file(opened_path(opened), device=str(place))  # the mapping outlives the file object
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
    """Write a network's weights and card to a safetensors file, atomically.

    A proof in the card is written only if the network is still the one that was proven.

    Raises:
        OSError: `path` cannot be written; an existing file is unchanged.
        ValueError: the network has no card, does not match its card, or was made by `densify` or `prepare`.

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
        raise ValueError("the network has no card, so a saved file could not be loaded; set network.card first")
    arrays = network.state_dict()
    try:
        Card.from_json(network.card.to_json())
    except ValueError as error:
        raise ValueError(f"the network could not be loaded again: {error}") from None
    if wrong := differences(build_of(network.card).state_dict(), arrays):
        raise ValueError(
            f"the network is not the {network.card.network} of its card: {'; '.join(wrong)};"
            " set network.card to what it is now"
        )
    card = network.card if _is_proven(network.card, arrays) else replace(network.card, proof=None)
    write_arrays(path_of(path), arrays, {KEY: card.to_json()})


def _is_proven(card: Card, arrays: Mapping[str, Tensor]) -> bool:
    """Whether a card's proof is of these parameters."""
    if card.proof is None or not {array.dtype for array in arrays.values()} <= {torch.float32, torch.int64}:
        return False
    return card.proof.network == network_digest(card, {name: array.numpy(force=True) for name, array in arrays.items()})


def differences(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Describe every parameter that is missing, unknown, or differs in shape or in kind of dtype."""
    both = [(name, array, found[name]) for name, array in wanted.items() if name in found]
    return [
        *(f"{name} is missing" for name in wanted if name not in found),
        *(f"{name} is not known" for name in found if name not in wanted),
        *(
            f"{name} is {tuple(own.shape)}, not {tuple(array.shape)}"
            for name, array, own in both
            if own.shape != array.shape
        ),
        *(
            f"{name} holds {own.dtype}"
            for name, array, own in both
            if own.is_floating_point() != array.is_floating_point()
        ),
    ]


def last_dense(network: nn.Module) -> str:
    """Name of the last dense layer, whose input is the default embedding."""
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | PackedLinear)]
    if not names:
        raise ValueError(f"{type(network).__name__} has no dense layer, so no default vector; name a layer")
    return names[-1]

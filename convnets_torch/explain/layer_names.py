"""Resolve layer names: PyTorch's, Keras's, prefixes and patterns."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase
from math import prod
from typing import TypeAlias

from torch import nn

from convnets_torch.fcn.graph import count, trace_ops
from convnets_torch.networks import Network


def keras_names(network: nn.Module) -> dict[str, str]:
    """Map Keras layer names to the modules with the same output.

    Keras layers often include their activation: `block5_conv3` of VGG is the output of the ReLU, so it maps to
    `features.relu5_3`. Not included are the last layer, `predictions`, which gives probabilities in Keras, and layers
    that are not modules here, such as ResNet50's additions. `flatten` of VGG has the same values in another order:
    channels first here, last in Keras. Layers that Keras numbers automatically have the numbers of a fresh session:
    `conv2d`, `conv2d_1`, ...; names such as `mixed9_0` are the forks of InceptionV3.

    Args:
        network: a network of `convnets_torch.networks`; for any other module the result is empty.

    Returns:
        Keras name -> name of the module in `network.named_modules()`.

    >>> from convnets_torch.networks import vgg16
    >>> keras_names(vgg16(10, widths=(1, 1, 1, 1, 1), hidden=(1, 1)))["block5_conv3"]
    'features.relu5_3'
    """
    modules = dict(network.named_modules())
    names = network.keras_names() if isinstance(network, Network) else {}
    return {alias: name for alias, name in names.items() if name in modules}


LayerLike: TypeAlias = "str | nn.Module"
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # not listed: their output is that of a layer inside


def find_layers(network: nn.Module, layers: LayerLike | Iterable[LayerLike]) -> list[str]:
    """Return the names of the modules that names, prefixes and patterns match.

    An entry is a module of the network or a string, which is tried in this order: the name of a module, with or
    without "features."; a Keras layer name (`keras_names`); a pattern with * ? [] or a prefix of any of these.
    Prefixes and patterns match layers and blocks, but not their containers.

    Args:
        network: any module.
        layers: one entry, or several.

    Returns:
        Module names in the network's order, without duplicates.

    Raises:
        ValueError: an entry matches nothing; the message lists the closest names.

    >>> from convnets_torch.networks import vgg16
    >>> narrow = vgg16(classes=10, widths=(2, 2, 4, 4, 8), hidden=(8, 8))
    >>> find_layers(narrow, ["features.conv5_3", "relu5_*", "block1_pool"])
    ['features.pool1', 'features.relu5_1', 'features.relu5_2', 'features.conv5_3', 'features.relu5_3']
    """
    asked = [layers] if isinstance(layers, str | nn.Module) else layers
    found = {name for each in asked for name in _matches(network, each)}
    return [name for name, _ in network.named_modules() if name in found]


def find_layer(network: nn.Module, layer: LayerLike) -> str:
    """Return the name of the one module that a name or pattern matches.

    Raises:
        ValueError: it matches none, or several.
    """
    found = find_layers(network, layer)
    if len(found) > 1:
        raise ValueError(f"{layer!r} matches {len(found)} layers ({', '.join(found[:5])}, ...); name one of them")
    return found[0]


def last_convolution(network: nn.Module) -> str:
    """Return the name of the last convolution, including its normalisation, activation or block.

    It is the last module of `features` before any final pooling whose output has 2 cells or more at the network's own
    size, and through which all that follows is computed.

    Raises:
        ValueError: the module is not one of this library's networks, or its last convolution is unknown.
    """
    sentence = f"the last convolution of {type(network).__name__} is not known; name a layer"
    if not isinstance(network, Network):
        raise ValueError(sentence)
    if network.last_map is not None:
        return f"features.{network.last_map}"
    ops = trace_ops(network.features)
    last = len(ops) - 1
    while ops[last].kind in ("max", "average", "pad"):
        [last] = ops[last].inputs
    modules = dict(network.features.named_modules())
    whole = last == len(ops) - 1
    read = len(ops)  # the first op that a later one reads
    for number in range(last, 0, -1):
        if number <= read and prod(count(ops[: number + 1], network.size[axis], axis) for axis in (0, 1)) > 1:
            if name := next((name for name in (ops[number].name, *ops[number].blocks) if name in modules), None):
                return f"features.{name}"
            if number == last and whole:
                return "features"
        read = min(read, *ops[number].inputs)
    raise ValueError(sentence)


def candidates(network: nn.Module) -> list[str]:
    """Return the names of all layers and blocks, in the network's order."""
    return [name for name, module in network.named_modules() if name and not isinstance(module, CONTAINERS)]


def whole(network: nn.Module) -> nn.Module:
    """Return the network, or its `features` if it has no head."""
    return network.features if isinstance(network, Network) and network.head is None else network


def needed(network: nn.Module, names: Iterable[str]) -> nn.Module:
    """Return the part of a network that runs all of these modules: only `features` if that suffices."""
    inside = all(name == "features" or name.startswith("features.") for name in names)
    return network.features if inside and isinstance(network, Network) else whole(network)


def _matches(network: nn.Module, layer: LayerLike) -> set[str]:
    if isinstance(layer, nn.Module):
        for name, module in network.named_modules():
            if module is layer and name:
                return {name}
        raise ValueError(f"the given {type(layer).__name__} is not a layer of the {type(network).__name__}; name one")
    modules = {name for name, _ in network.named_modules() if name}
    for name in (layer, f"features.{layer}"):
        if name in modules:
            return {name}
    known = keras_names(network)  # alias -> name
    for name in candidates(network):
        known |= {name: name, name.removeprefix("features."): name}
    if layer in known:
        return {known[layer]}
    if any(sign in layer for sign in "*?["):
        found = {name for alias, name in known.items() if fnmatchcase(alias, layer)}
    else:
        found = {name for alias, name in known.items() if layer and alias.startswith(layer)}
    if not found:
        raise ValueError(f"{type(network).__name__} has no layer {layer!r}; {_nearest(layer, list(known))}")
    return found


def _nearest(layer: str, known: list[str]) -> str:
    near = get_close_matches(layer, known, n=5, cutoff=0.5)
    return f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(known[:5])}, ... (see layer_names)"

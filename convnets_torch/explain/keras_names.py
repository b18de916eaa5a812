"""Keras's names of the layers whose outputs a network here also has."""

from __future__ import annotations

import re

from torch import nn

from convnets_torch.networks import VGG, InceptionV3, Network, ResNet


def keras_names(network: nn.Module) -> dict[str, str]:
    """Keras's names of layers, each with the module that gives the same tensor.

    Keras's layers often hold their activation: `block5_conv3` of VGG gives what comes after the ReLU, so it stands for
    `features.relu5_3`. The last layer, `predictions`, gives probabilities in Keras and is therefore not among them;
    neither are layers that are no module here, such as ResNet50's additions. `flatten` of VGG has the same values in
    another order: channels first here, last in Keras. Layers that Keras numbers by itself have
    the numbers of a fresh session: `conv2d`, `conv2d_1`, ...; `mixed9_0` and the like are the forks of InceptionV3.

    Args:
        network: a network of `convnets_torch.networks`; for others there are none.

    Returns:
        Keras's name -> name of the module in `network.named_modules()`.

    >>> from convnets_torch.networks import vgg16
    >>> keras_names(vgg16(10, widths=(1, 1, 1, 1, 1), hidden=(1, 1)))["block5_conv3"]
    'features.relu5_3'
    """
    modules = dict(network.named_modules())
    return {alias: name for alias, name in _candidates(network).items() if name in modules}


def _candidates(network: nn.Module) -> dict[str, str]:
    if isinstance(network, VGG):
        return _vgg(network)
    if isinstance(network, ResNet):
        return _resnet(network)
    return _inception(network) if isinstance(network, InceptionV3) else {}


def _vgg(network: Network) -> dict[str, str]:
    names: dict[str, str] = {}
    for name, _ in network.features.named_children():
        if found := re.fullmatch(r"relu(\d)_(\d)", name):
            names[f"block{found[1]}_conv{found[2]}"] = f"features.{name}"
        elif found := re.fullmatch(r"pool(\d)", name):
            names[f"block{found[1]}_pool"] = f"features.{name}"
    return names | {"flatten": "head.flatten", "fc1": "head.relu_dense_1", "fc2": "head.relu_dense_2"}


def _resnet(network: Network) -> dict[str, str]:
    names = {}
    for name, module in network.features.named_modules():
        if found := re.fullmatch(r"(conv\d_block\d)\.(conv|bn|relu)_(\d)", name):
            names[f"{found[1]}_{found[3]}_{found[2]}"] = f"features.{name}"
        elif name.endswith(".out"):
            names[name.replace(".", "_")] = f"features.{name}"
        elif name and "." not in name and not list(module.children()):
            names[name] = f"features.{name}"  # conv1_conv, conv1_bn, conv1_relu, pool1_pool
    return names | {"avg_pool": "head.flatten"}


def _inception(network: Network) -> dict[str, str]:
    kinds = {
        nn.Conv2d: "conv2d", nn.BatchNorm2d: "batch_normalization", nn.ReLU: "activation",
        nn.MaxPool2d: "max_pooling2d", nn.AvgPool2d: "average_pooling2d",
    }  # fmt: skip
    names: dict[str, str] = {}
    counts = dict.fromkeys([*kinds.values(), "concatenate"], 0)

    def numbered(kind: str) -> str:
        counts[kind] += 1
        return kind if counts[kind] == 1 else f"{kind}_{counts[kind] - 1}"

    for name, module in network.features.named_modules():
        if kind := kinds.get(type(module)):
            names[numbered(kind)] = f"features.{name}"
        elif re.fullmatch(r"mixed\d+", name):
            names[name] = f"features.{name}"
        elif found := re.fullmatch(r"mixed(\d+)\.(.*)\.fork", name):  # Keras names the first of a block's two
            alias = f"mixed9_{int(found[1]) - 9}" if found[2] == "branch3x3" else numbered("concatenate")
            names[alias] = f"features.{name}"
    return names | {"avg_pool": "head.flatten"}

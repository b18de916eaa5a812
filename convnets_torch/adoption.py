"""A user's own trained classifier, taken up as a network that everything here works on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from convnets_torch.card import Activation, Card
from convnets_torch.networks import Network
from convnets_torch.networks.densified import Densified
from convnets_torch.networks.replicas import unwrapped
from convnets_torch.preprocessing import Preprocessing, general

# The last layer of a module -> what makes the same probabilities of logits.
LEFT_OUT: dict[type, Activation] = {nn.Softmax: "softmax", nn.LogSoftmax: "softmax", nn.Sigmoid: "sigmoid"}


def densify(
    module: nn.Module,
    size: int | tuple[int, int] = 224,
    *,
    preprocessing: str | Preprocessing | None = None,
    classes: str | Sequence[str] | None = None,
    activation: Activation = "softmax",
) -> Network:
    """Turn a trained classifier of one's own into a network with `features`, `head` and `window`.

    Taken are modules that `torch.fx` can follow, made of convolutions, pools, batch normalisation, activations, sums
    and concatenations, with a head of dense layers on a flatten or a global pool: plain `nn.Sequential`, most modules
    with a `forward` of their own, torchvision's AlexNet, VGG, ResNet, ResNeXt, DenseNet and MobileNetV2, timm's VGG
    and ResNet. That the answers are equal is tried out on random images before anything is returned; the module's hooks
    see those.

    The layers are the module's own: training the one trains the other, and `train()` on either switches those of both.
    The module itself is left as it was. Activations that overwrite their input do so in the module, not in the network.

    Args:
        module: images (N, 3, H, W) -> logits (N, classes), in eval mode; stays on its device.
        size: pixels of the images that it classifies, a side or (height, width).
        preprocessing: how pictures become its input: "torchvision", "unit" or another of `preprocessing.GENERAL`, or a
            `Preprocessing` of the same size. Then the network has a card, and `classify` and `heatmap` take pictures.
        classes: "imagenet-1k", or a name for each; for the card.
        activation: what makes probabilities of the logits: "softmax", "sigmoid" or "none". A last layer of the module
            that does this (Softmax, LogSoftmax, Sigmoid) is left out of the network, which gives logits.

    Returns:
        The network in eval mode, for `score_map` and all else. `save` refuses it: keep the module's state_dict.

    Raises:
        ValueError: the module is in training mode, holds a layer that does not keep to a window of cells
            (squeeze-and-excitation, attention, pools with ceil_mode), or has a head that cannot slide, each by
            name; or it answers otherwise than the network does, or does not fit `size` or the card.

    >>> import torch
    >>> from convnets_torch import score_map
    >>> layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(8 * 8 * 8, 5)]
    >>> network = densify(nn.Sequential(*layers).eval(), 32)
    >>> score_map(network, torch.zeros(1, 3, 64, 96)).shape, network.stride, network.window
    (torch.Size([1, 5, 9, 17]), 4, (8, 8))
    """
    sides = size if isinstance(size, tuple) else (size, size)
    if classes is not None and preprocessing is None:
        raise ValueError("classes are given, but no preprocessing; both stand in the card, so give both")
    module = unwrapped(module)
    network = Densified(module, sides)
    last = type(network.left_out)
    if activation != LEFT_OUT.get(last, activation):
        raise ValueError(
            f"{type(module).__name__} ends in {last.__name__}, but activation is {activation!r}; give"
            f" {LEFT_OUT[last]!r}"
        )
    if preprocessing is not None:
        rule = preprocessing
        if isinstance(rule, str):
            rule = general(rule, sides[0] if sides[0] == sides[1] else sides)
        if rule.shape != sides:
            raise ValueError(
                f"the preprocessing makes images of {rule.shape} pixels, but size is {sides}; give one size"
            )
        names: Any = classes if classes is None or isinstance(classes, str) else tuple(classes)
        network.card = Card(type(module).__name__, {"classes": network.classes}, rule, names, activation)
    return network

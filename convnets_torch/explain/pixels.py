"""Pixels that gradients flow through: the card's preprocessing as operations on tensors."""

from __future__ import annotations

from torch import Tensor, nn

from convnets_torch.networks import Network
from convnets_torch.preprocessing import Preprocessing, general


def to_input(pixels: Tensor, rule: Preprocessing) -> Tensor:
    """What `preprocessing.normalize` does, on tensors: colour order, scale, mean and standard deviation.

    Args:
        pixels: (N, 3, H, W), RGB, 0 to 255, of any floating-point type.
        rule: the card's preprocessing.

    Returns:
        (N, 3, H, W) of the same type, channels in the order of `rule.channels`.

    >>> import torch
    >>> to_input(torch.tensor([123.68, 116.779, 113.939]).view(1, 3, 1, 1), general("keras-caffe", 224)).flatten()
    tensor([10.,  0.,  0.])
    """
    ordered = pixels if rule.channels == "rgb" else pixels.flip(1)
    mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (rule.mean, rule.std))
    return (ordered * rule.scale - mean) / std


def rule_of(network: nn.Module) -> Preprocessing:
    """The preprocessing of a network's card; of one without card, that of torchvision's weights.

    That is RGB, 0 to 1, with ImageNet's mean and standard deviation. Give the network a card where it is another.
    """
    if isinstance(network, Network) and network.card is not None:
        return network.card.preprocessing
    return general("torchvision", 224)

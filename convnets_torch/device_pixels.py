"""From pixels to a network's input on the device where the network is."""

from __future__ import annotations

import torch
from torch import Tensor

from convnets_torch.preprocessing import Preprocessing


def normalized(pixels: Tensor, rule: Preprocessing) -> Tensor:
    """What `preprocessing.normalize` does to the bit, on a device: (N, h, w, 3) uint8, RGB -> (N, 3, h, w) float32.

    Whole rows at a time: the three colours of a pixel lie side by side, and operations that repeat every three numbers
    take ten times as long. In memory they stay side by side (channels last).

    >>> from convnets_torch.preprocessing import general
    >>> normalized(torch.full((1, 1, 1, 3), 255, dtype=torch.uint8), general("keras-tf", 224)).flatten()
    tensor([1., 1., 1.])
    """
    count, height, width, _ = pixels.shape
    ordered = pixels if rule.channels == "rgb" else pixels.flip(3)
    mean, std = (torch.tensor(values, device=pixels.device).repeat(width) for values in (rule.mean, rule.std))
    rows = ordered.reshape(count, height, 3 * width).float()
    rows.mul_(rule.scale).sub_(mean).div_(std)
    return rows.view(count, height, width, 3).permute(0, 3, 1, 2)

"""The kernels of the first layer, which can be seen as they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from convnets_torch.explain.pixels import rule_of
from convnets_torch.files import Output, path_of, to_open_files
from convnets_torch.networks.replicas import unwrapped


@dataclass(frozen=True, eq=False)
class FirstKernels:
    """What the first layer looks for, in colours.

    Attributes:
        layer: name of the module.
        weights: (K, h, w, 3) float32, RGB: what one more of 255 in a pixel adds to the channel.
        pictures: (K, h, w, 3) uint8, RGB: 128 is a weight of 0; 1 and 255 are those of the kernel's `peaks`.
        peaks: (K,) the largest absolute weight of each kernel.
    """

    layer: str
    weights: NDArray[np.float32]
    pictures: NDArray[np.uint8]
    peaks: NDArray[np.float32]

    @to_open_files(".png")
    def save(self, path: Output) -> None:
        """Write the kernels as a sheet (`.png`, `.jpg`, `.webp`) or as arrays (`.npz`), atomically.

        Raises:
            ValueError: another ending.
            OSError: `path` cannot be written.
        """
        from convnets_torch.explain.sheets import save_kernels

        save_kernels(self, path_of(path))


def first_kernels(network: nn.Module) -> FirstKernels:
    """The kernels of the first convolution, in RGB whatever the order of the network's colours is.

    The weights are those of pixels 0 to 255: multiplied with the scale of the card's preprocessing, divided by its
    standard deviation, and turned to RGB; without a card, as `rule_of` says. Each kernel is then stretched by itself:
    zero is grey, its largest absolute weight black or full.

    Args:
        network: any module whose first convolution reads three channels.

    Raises:
        ValueError: there is no such convolution, or its weights are not finite.

    >>> from convnets_torch import load
    >>> kernels = first_kernels(load("alexnet.safetensors"))
    >>> kernels.layer, kernels.pictures.shape
    ('features.conv_1', (12, 11, 11, 3))
    """
    network = unwrapped(network)
    found = next(((name, each) for name, each in network.named_modules() if isinstance(each, nn.Conv2d)), None)
    if found is None:
        raise ValueError(f"{type(network).__name__} has no convolution whose kernels could be drawn")
    layer, module = found
    if module.weight.shape[1] != 3:
        raise ValueError(f"{layer}, the first convolution, reads {module.weight.shape[1]} channels, which are no RGB")
    rule = rule_of(network)
    kernels = module.weight.detach().float().cpu().numpy().transpose(0, 2, 3, 1)
    weights = kernels * np.float32(rule.scale) / np.asarray(rule.std, np.float32)
    if rule.channels == "bgr":
        weights = weights[..., ::-1]
    weights = np.ascontiguousarray(weights)
    if not np.isfinite(weights).all():
        raise ValueError(f"weights of {layer} are NaN or infinite: the file is broken")
    peaks = np.abs(weights).max(axis=(1, 2, 3))
    shares = weights / np.where(peaks > 0, peaks, 1)[:, None, None, None]
    return FirstKernels(layer, weights, np.rint(128 + 127 * shares).astype(np.uint8), peaks)

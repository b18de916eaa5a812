"""A network with its head as convolutions: one graph for images of any size, for runtimes that cannot run `slide`.

Source: Fully Convolutional Networks for Semantic Segmentation, arXiv:1411.4038, section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from convnets_torch.fcn.sliding import ELEMENTWISE, POOLS
from convnets_torch.networks.network import NO_HEAD, Network
from convnets_torch.networks.quantized import QuantizedLinear, as_convolution


class Convolutional(nn.Module):
    """Map images (N, 3, H, W) to logits (N, classes, h, w), like `score_map`; parameters are shared with the network.

    >>> from convnets_torch.networks import vgg16
    >>> narrow = vgg16(classes=10, widths=(2, 2, 4, 4, 4), hidden=(8, 8)).eval()
    >>> dense = Convolutional(narrow)
    >>> dense(torch.zeros(1, 3, 256, 288)).shape
    torch.Size([1, 10, 2, 3])
    >>> dense.head[0].weight.shape, dense.head[0].weight.data_ptr() == narrow.head[1].weight.data_ptr()
    (torch.Size([8, 4, 7, 7]), True)
    """

    def __init__(self, network: Network) -> None:
        """Raise ValueError if the network has no head, or its head has a layer without a convolutional form."""
        super().__init__()
        if network.head is None:
            raise ValueError(NO_HEAD)
        self.features = network.features
        self.head = nn.Sequential(*_layers(network.head, network.window))
        self.train(network.training)

    def forward(self, images: Tensor) -> Tensor:
        """Run images (N, 3, H, W), at least of the network's own size, normalised as the weights expect."""
        return self.head(self.features(images))


def _layers(head: Iterable[nn.Module], window: tuple[int, int]) -> Iterator[nn.Module]:
    """Yield the head's layers for maps; elementwise layers stay the same."""
    kernel = window  # what the next dense layer reads
    for layer in head:
        if isinstance(layer, nn.Linear):
            yield _convolution(layer, kernel)
            kernel = (1, 1)
        elif isinstance(layer, nn.BatchNorm1d):
            yield _normalization(layer)
        elif isinstance(layer, ELEMENTWISE):
            yield layer
        elif isinstance(layer, (*POOLS, nn.Conv2d)):
            yield layer
            kernel = (1, 1)
        elif not isinstance(layer, nn.Flatten):  # the channels of a cell are its vector
            raise ValueError(f"a head with {layer} has no convolutional form; export it without heatmap")


def _convolution(layer: nn.Linear, kernel: tuple[int, int]) -> nn.Conv2d:
    """View a dense layer after a channels-first flatten as a convolution with the same weights."""
    channels = layer.in_features // (kernel[0] * kernel[1])
    if isinstance(layer, QuantizedLinear):
        return as_convolution(layer, channels, kernel)
    with torch.device("meta"):
        made = nn.Conv2d(channels, layer.out_features, kernel, bias=layer.bias is not None)
    made.weight = nn.Parameter(layer.weight.detach().view(made.weight.shape), requires_grad=False)
    made.bias = layer.bias
    return made


def _normalization(layer: nn.BatchNorm1d) -> nn.BatchNorm2d:
    with torch.device("meta"):
        made = nn.BatchNorm2d(layer.num_features, eps=layer.eps, affine=layer.affine)
    made.weight, made.bias = layer.weight, layer.bias
    made.running_mean, made.running_var = layer.running_mean, layer.running_var
    made.num_batches_tracked = layer.num_batches_tracked
    return made

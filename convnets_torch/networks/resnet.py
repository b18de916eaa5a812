"""ResNet50: sixteen bottleneck blocks with residual connections.

Source: Deep Residual Learning for Image Recognition, arXiv:1512.03385, table 1 (50-layer) and figure 5.
The layers have Keras's names. Keras's released weights differ from other implementations of the paper: their
convolutions have biases although batch normalisation follows, and the first 1x1 convolution of a stage has the stride,
as in the authors' own Caffe model. torchvision's networks have it in the 3x3 convolution (`stride_in="3x3"`), and no
biases. Keras 1 and the first files of Keras Applications have no padding before the first pool (`pool_padding=False`)
and divide by the root of the variance plus 1e-3 (`epsilon`).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Literal

from torch import Tensor, nn

from convnets_torch.networks.heads import Steps
from convnets_torch.networks.layers import Add
from convnets_torch.networks.network import Network, NetworkSpec, Size
from convnets_torch.options import synonym

Five = tuple[int, int, int, int, int]
StrideIn = Literal["1x1", "3x3"]

WIDTHS: Five = (64, 64, 128, 256, 512)  # channels: first convolution, then the bottlenecks of the four stages
DEPTHS = (3, 4, 6, 3)  # blocks of each stage
EXPANSION = 4  # output channels of a block per channel of its bottleneck
EPSILON = 1.001e-5


class Bottleneck(nn.Module):
    """1x1 to few channels, 3x3, 1x1 to many; added to the input, which is projected if its shape differs."""

    def __init__(
        self, width_in: int, width: int, stride: int, *, project: bool, epsilon: float, stride_in: StrideIn, bias: bool
    ) -> None:
        super().__init__()
        first, second = (stride, 1) if stride_in == "1x1" else (1, stride)
        width_out = EXPANSION * width
        self.projected = project
        if project:
            self.conv_0 = nn.Conv2d(width_in, width_out, 1, stride, bias=bias)
            self.bn_0 = nn.BatchNorm2d(width_out, eps=epsilon, momentum=0.01)
        self.conv_1 = nn.Conv2d(width_in, width, 1, first, bias=bias)
        self.bn_1 = nn.BatchNorm2d(width, eps=epsilon, momentum=0.01)
        self.relu_1 = nn.ReLU()
        self.conv_2 = nn.Conv2d(width, width, 3, second, padding=1, bias=bias)
        self.bn_2 = nn.BatchNorm2d(width, eps=epsilon, momentum=0.01)
        self.relu_2 = nn.ReLU()
        self.conv_3 = nn.Conv2d(width, width_out, 1, bias=bias)
        self.bn_3 = nn.BatchNorm2d(width_out, eps=epsilon, momentum=0.01)
        self.add = Add()
        self.out = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, width_in, h, w) -> (N, 4 * width, h / stride, w / stride)."""
        shortcut = self.bn_0(self.conv_0(x)) if self.projected else x
        x = self.relu_1(self.bn_1(self.conv_1(x)))
        x = self.relu_2(self.bn_2(self.conv_2(x)))
        return self.out(self.add(shortcut, self.bn_3(self.conv_3(x))))


class ResNet(Network):
    """ResNet50: 25,583,592 parameters, and 53,120 statistics of batch normalisation.

    Args:
        classes: units of the last layer; None for no head.
        widths: channels of the first convolution, then of the bottlenecks of the four stages.
        epsilon: of batch normalisation.
        pool_padding: whether the first pool has zero padding.
        stride_in: the strided convolution in a stage's first block, "1x1" or "3x3".
        bias: whether convolutions have biases.
        head: steps of a head other than the standard one, average and dense.
        size: (height, width) in pixels of images other than 224x224.

    >>> sum(parameter.numel() for parameter in resnet50().parameters())
    25583592
    """

    window = (7, 7)
    size = (224, 224)
    stride = 32

    @synonym(num_classes="classes")
    def __init__(
        self,
        classes: int | None = 1000,
        widths: Five = WIDTHS,
        *,
        epsilon: float = EPSILON,
        pool_padding: bool = True,
        stride_in: StrideIn = "1x1",
        bias: bool = True,
        head: Steps | None = None,
        size: Size | None = None,
    ) -> None:
        super().__init__()
        if type(pool_padding) is not bool or type(bias) is not bool:
            raise ValueError(f"pool_padding is {pool_padding!r} and bias {bias!r}; give true or false")
        if stride_in not in ("1x1", "3x3"):
            raise ValueError(f"stride_in is {stride_in!r}; known: '1x1' (Keras), '3x3' (torchvision)")
        self.shrinking = ((7, 2, 3), (3, 2, int(pool_padding)), (1, 2, 0), (1, 2, 0), (1, 2, 0))
        channels, *bottlenecks = widths
        self.features = nn.Sequential(
            OrderedDict(
                conv1_conv=nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=bias),
                conv1_bn=nn.BatchNorm2d(channels, eps=epsilon, momentum=0.01),
                conv1_relu=nn.ReLU(),
                # After a ReLU, Keras's zero padding equals the minus infinity of MaxPool2d.
                pool1_pool=nn.MaxPool2d(3, stride=2, padding=int(pool_padding)),
            )
        )
        for stage, (width, depth) in enumerate(zip(bottlenecks, DEPTHS, strict=True), start=2):
            for block in range(1, depth + 1):
                stride = 2 if block == 1 and stage > 2 else 1
                self.features.add_module(
                    f"conv{stage}_block{block}",
                    Bottleneck(
                        channels, width, stride, project=block == 1, epsilon=epsilon, stride_in=stride_in, bias=bias
                    ),
                )
                channels = EXPANSION * width
        self.add_head(channels, (("average",), ("dense", classes or 1)), classes, head, size)

    def keras_names(self) -> dict[str, str]:
        """Return Keras Applications' layer names."""
        names = {}
        for name, module in self.features.named_modules():
            if found := re.fullmatch(r"(conv\d_block\d)\.(conv|bn|relu)_(\d)", name):
                names[f"{found[1]}_{found[3]}_{found[2]}"] = f"features.{name}"
            elif name.endswith(".out"):
                names[name.replace(".", "_")] = f"features.{name}"
            elif name and "." not in name and not list(module.children()):
                names[name] = f"features.{name}"  # conv1_conv, conv1_bn, conv1_relu, pool1_pool
        return names | {"avg_pool": "head.flatten"}


resnet50 = ResNet
RESNET50 = NetworkSpec("resnet50", resnet50, "features.conv5_block1")

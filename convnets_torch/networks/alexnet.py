"""AlexNet: the two-group network of 2012, as in convnets-keras.

Source: ImageNet Classification with Deep Convolutional Neural Networks, NIPS 2012, section 3.
The released weights descend from Caffe's CaffeNet and differ from the paper in one place: they
pool first and normalise after (section 3.5 of the paper has the reverse order), on 227x227 pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from math import isfinite

import torch
from torch import Tensor, nn

from convnets_torch.networks.heads import Steps
from convnets_torch.networks.network import Network, NetworkSpec, Size, dense_steps
from convnets_torch.options import synonym

WIDTHS = (96, 256, 384, 384, 256)  # channels of the five convolutions
HIDDEN = (4096, 4096)  # units of the two hidden dense layers

# size, alpha, beta and k of nn.LocalResponseNorm. The original adds 1e-4 for each of the five neighbours;
# PyTorch divides alpha by their number, so it is five times as large here.
LRN = (5, 5e-4, 0.75, 2.0)


class LocalResponseNorm(nn.LocalResponseNorm):
    """Normalisation over neighbouring channels (section 3.3), in float32 for networks in half precision.

    Activations of the released weights reach several hundred, whose squares overflow float16.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> the same shape and precision."""
        half = x.dtype in (torch.float16, torch.bfloat16)
        return super().forward(x.float()).to(x.dtype) if half else super().forward(x)


class AlexNet(Network):
    """Five convolutions, three of them in two independent groups; 60,965,224 parameters.

    >>> sum(parameter.numel() for parameter in AlexNet().parameters())
    60965224
    """

    window = (6, 6)
    size = (227, 227)
    stride = 32
    shrinking = ((11, 4, 0), (3, 2, 0), (3, 2, 0), (3, 2, 0))

    @synonym(num_classes="classes")
    def __init__(
        self,
        classes: int | None = 1000,
        widths: tuple[int, int, int, int, int] = WIDTHS,
        hidden: tuple[int, int] = HIDDEN,
        lrn: tuple[int, float, float, float] = LRN,
        *,
        head: Steps | None = None,
        size: Size | None = None,
    ) -> None:
        super().__init__()
        neighbours, *constants = lrn
        if (
            type(neighbours) is not int
            or not 1 <= neighbours < 1000
            or len(constants) != 3
            or not all(map(isfinite, constants))
        ):
            raise ValueError(f"lrn is {lrn!r}; give size (1 to 999 channels), alpha, beta and k")
        one, two, three, four, five = widths
        self.features = nn.Sequential(
            OrderedDict(
                conv_1=nn.Conv2d(3, one, 11, stride=4),
                relu_1=nn.ReLU(),
                pool_1=nn.MaxPool2d(3, stride=2),
                lrn_1=LocalResponseNorm(*lrn),
                conv_2=nn.Conv2d(one, two, 5, padding=2, groups=2),
                relu_2=nn.ReLU(),
                pool_2=nn.MaxPool2d(3, stride=2),
                lrn_2=LocalResponseNorm(*lrn),
                conv_3=nn.Conv2d(two, three, 3, padding=1),
                relu_3=nn.ReLU(),
                conv_4=nn.Conv2d(three, four, 3, padding=1, groups=2),
                relu_4=nn.ReLU(),
                conv_5=nn.Conv2d(four, five, 3, padding=1, groups=2),
                relu_5=nn.ReLU(),
                pool_5=nn.MaxPool2d(3, stride=2),
            )
        )
        # (N, 256, 6, 6) -> (N, 9216) -> (N, classes)
        self.add_head(five, dense_steps(hidden, classes), classes, head, size)


ALEXNET = NetworkSpec("alexnet", AlexNet, "features.conv_5", {1: 0.4294, 5: 0.2009, 10: 0.1384})

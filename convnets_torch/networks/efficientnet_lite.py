"""EfficientNet-Lite0: inverted residual blocks without squeeze-and-excitation, ReLU6 instead of swish.

Source: EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, arXiv:1905.11946, table 1
(baseline B0), with the changes of the Lite variants that Google released in 2020. The block is that of
MobileNetV2, arXiv:1801.04381, figure 3.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from convnets_torch.networks.heads import Steps
from convnets_torch.networks.layers import Add
from convnets_torch.networks.network import Network, NetworkSpec, Size
from convnets_torch.options import synonym

WIDTHS = (32, 16, 24, 40, 80, 112, 192, 320, 1280)  # channels: first convolution, seven stages, last convolution
STAGES = (  # per stage: blocks, kernel size, stride of the first block, expansion
    (1, 3, 1, 1),
    (2, 3, 2, 6),
    (2, 5, 2, 6),
    (3, 3, 2, 6),
    (3, 5, 1, 6),
    (4, 5, 2, 6),
    (1, 3, 1, 6),
)
EPSILON = 1e-3  # of batch normalisation, as in the released weights; PyTorch's default is 1e-5


class SamePad2d(nn.ZeroPad2d):
    """TensorFlow's `SAME` padding of a strided convolution on an even image: the odd pixel goes right and below.

    At every strided layer the native 224 pixels are even. The padding is the same for other sizes, so that a window of
    a larger picture has the same grid as an image of the network's own size; in TensorFlow it would depend on the
    parity of the size.
    """

    def __init__(self, kernel: int, stride: int) -> None:
        total = kernel - stride
        super().__init__((total // 2, total - total // 2) * 2)


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter each channel separately, project by 1x1; add the input if shapes match."""

    def __init__(self, width_in: int, width_out: int, kernel: int, stride: int, expansion: int, epsilon: float) -> None:
        super().__init__()
        width = width_in * expansion
        self.layers = nn.Sequential()
        if expansion != 1:
            self.layers.add_module("expand_conv", nn.Conv2d(width_in, width, 1, bias=False))
            self.layers.add_module("bn0", nn.BatchNorm2d(width, eps=epsilon, momentum=0.01))
            self.layers.add_module("relu0", nn.ReLU6())
        self.layers.add_module("pad", SamePad2d(kernel, stride))
        self.layers.add_module("depthwise_conv", nn.Conv2d(width, width, kernel, stride, groups=width, bias=False))
        self.layers.add_module("bn1", nn.BatchNorm2d(width, eps=epsilon, momentum=0.01))
        self.layers.add_module("relu1", nn.ReLU6())
        self.layers.add_module("project_conv", nn.Conv2d(width, width_out, 1, bias=False))
        self.layers.add_module("bn2", nn.BatchNorm2d(width_out, eps=epsilon, momentum=0.01))
        self.residual = stride == 1 and width_in == width_out
        if self.residual:
            self.add = Add()

    def forward(self, x: Tensor) -> Tensor:
        """(N, width_in, h, w) -> (N, width_out, h / stride, w / stride)."""
        return self.add(x, self.layers(x)) if self.residual else self.layers(x)


class EfficientNetLite(Network):
    """EfficientNet-Lite0: 16 inverted residual blocks, 4,652,008 parameters.

    >>> sum(parameter.numel() for parameter in efficientnet_lite0().parameters())
    4652008
    """

    window = (7, 7)
    size = (224, 224)
    stride = 32
    shrinking = ((2, 2, 0),) * 5  # equivalent with the padding of `SamePad2d`

    @synonym(num_classes="classes")
    def __init__(
        self,
        classes: int | None = 1000,
        widths: Sequence[int] = WIDTHS,
        epsilon: float = EPSILON,
        *,
        head: Steps | None = None,
        size: Size | None = None,
    ) -> None:
        super().__init__()
        first, *stage_widths, last = widths
        self.features = nn.Sequential(
            OrderedDict(
                pad=SamePad2d(3, 2),
                conv_stem=nn.Conv2d(3, first, 3, stride=2, bias=False),
                bn0=nn.BatchNorm2d(first, eps=epsilon, momentum=0.01),
                relu0=nn.ReLU6(),
            )
        )
        channels, number = first, 0
        for width, (blocks, kernel, stride, expansion) in zip(stage_widths, STAGES, strict=True):
            for block in range(blocks):
                stride_here = stride if block == 0 else 1
                residual = InvertedResidual(channels, width, kernel, stride_here, expansion, epsilon)
                self.features.add_module(f"block{number}", residual)
                channels, number = width, number + 1
        self.features.add_module("conv_head", nn.Conv2d(channels, last, 1, bias=False))
        self.features.add_module("bn1", nn.BatchNorm2d(last, eps=epsilon, momentum=0.01))
        self.features.add_module("relu1", nn.ReLU6())
        self.add_head(last, (("average",), ("dropout", 0.2), ("dense", classes or 1)), classes, head, size)
        if head is None and self.head is not None:  # layer names of the released weights
            names = ("pool", "flatten", "dropout", "fc")
            self.head = nn.Sequential(OrderedDict(zip(names, self.head, strict=True)))


efficientnet_lite0 = EfficientNetLite
EFFICIENTNET_LITE0 = NetworkSpec("efficientnet_lite0", efficientnet_lite0, "features.block11")

"""VGG16 and VGG19: stacks of 3x3 convolutions, then three dense layers.

Source: Very Deep Convolutional Networks for Large-Scale Image Recognition,
arXiv:1409.1556, table 1, columns D and E.
"""

from __future__ import annotations

import re

from torch import nn

from convnets_torch.networks.heads import Steps
from convnets_torch.networks.network import Network, NetworkSpec, Size, dense_steps
from convnets_torch.options import synonym

Five = tuple[int, int, int, int, int]

WIDTHS: Five = (64, 128, 256, 512, 512)  # channels of the five blocks
HIDDEN = (4096, 4096)  # units of the two hidden dense layers


class VGG(Network):
    """A VGG network; `depths` is the number of convolutions in each block."""

    window = (7, 7)
    size = (224, 224)
    stride = 32
    shrinking = ((2, 2, 0),) * 5

    @synonym(num_classes="classes")
    def __init__(
        self,
        depths: Five,
        classes: int | None = 1000,
        widths: Five = WIDTHS,
        hidden: tuple[int, int] = HIDDEN,
        *,
        head: Steps | None = None,
        size: Size | None = None,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential()
        channels = 3
        for block, (width, depth) in enumerate(zip(widths, depths, strict=True), start=1):
            for conv in range(1, depth + 1):
                self.features.add_module(f"conv{block}_{conv}", nn.Conv2d(channels, width, 3, padding=1))
                self.features.add_module(f"relu{block}_{conv}", nn.ReLU())
                channels = width
            self.features.add_module(f"pool{block}", nn.MaxPool2d(2))
        # (N, 512, 7, 7) -> (N, 25088) -> (N, classes)
        self.add_head(channels, dense_steps(hidden, classes), classes, head, size)

    def keras_names(self) -> dict[str, str]:
        """Return Keras Applications' layer names."""
        names: dict[str, str] = {}
        for name, _ in self.features.named_children():
            if found := re.fullmatch(r"relu(\d)_(\d)", name):
                names[f"block{found[1]}_conv{found[2]}"] = f"features.{name}"
            elif found := re.fullmatch(r"pool(\d)", name):
                names[f"block{found[1]}_pool"] = f"features.{name}"
        return names | {"flatten": "head.flatten", "fc1": "head.relu_dense_1", "fc2": "head.relu_dense_2"}


@synonym(num_classes="classes")
def vgg16(
    classes: int | None = 1000,
    widths: Five = WIDTHS,
    hidden: tuple[int, int] = HIDDEN,
    *,
    head: Steps | None = None,
    size: Size | None = None,
) -> VGG:
    """Configuration D: 13 convolutions, 138,357,544 parameters.

    >>> vgg16(classes=10, widths=(1, 1, 1, 1, 1), hidden=(2, 3)).head[-1]
    Linear(in_features=3, out_features=10, bias=True)
    """
    return VGG((2, 2, 3, 3, 3), classes, widths, hidden, head=head, size=size)


@synonym(num_classes="classes")
def vgg19(
    classes: int | None = 1000,
    widths: Five = WIDTHS,
    hidden: tuple[int, int] = HIDDEN,
    *,
    head: Steps | None = None,
    size: Size | None = None,
) -> VGG:
    """Configuration E: 16 convolutions, 143,667,240 parameters."""
    return VGG((2, 2, 4, 4, 4), classes, widths, hidden, head=head, size=size)


VGG16 = NetworkSpec("vgg16", vgg16, "features.conv5_1", {1: 0.3293, 5: 0.1239, 10: 0.0777})
VGG19 = NetworkSpec("vgg19", vgg19, "features.conv5_1", {1: 0.3277, 5: 0.1217, 10: 0.0780})

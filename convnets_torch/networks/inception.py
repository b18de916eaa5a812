"""InceptionV3: blocks of parallel branches, with wide convolutions factorised into narrow ones.

Source: Rethinking the Inception Architecture for Computer Vision, arXiv:1512.00567, table 1 and figures 5 to 7 and 10.
Blocks and branches have the names of Keras Applications, whose released weights depart from the paper as Google's own
do: the 7x7 convolution of the stem is three 3x3 ones, the blocks have the widths below, and batch normalisation has no
scale (here it has one, of ones). Keras only numbers the convolutions; in the order of `features.modules()`, ours match
the order in which Keras creates its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from convnets_torch.networks.heads import Steps
from convnets_torch.networks.network import Network, NetworkSpec, Size
from convnets_torch.options import synonym

# Channels of the 94 convolutions in the order in which Keras creates them: a line per block, a gap per branch.
WIDTHS = (
    32, 32, 64, 80, 192,  # stem
    64,  48, 64,  64, 96, 96,  32,  # mixed0
    64,  48, 64,  64, 96, 96,  64,  # mixed1
    64,  48, 64,  64, 96, 96,  64,  # mixed2
    384,  64, 96, 96,  # mixed3
    192,  128, 128, 192,  128, 128, 128, 128, 192,  192,  # mixed4
    192,  160, 160, 192,  160, 160, 160, 160, 192,  192,  # mixed5
    192,  160, 160, 192,  160, 160, 160, 160, 192,  192,  # mixed6
    192,  192, 192, 192,  192, 192, 192, 192, 192,  192,  # mixed7
    192, 320,  192, 192, 192, 192,  # mixed8
    320,  384, 384, 384,  448, 384, 384, 384,  192,  # mixed9
    320,  384, 384, 384,  448, 384, 384, 384,  192,  # mixed10
)  # fmt: skip
EPSILON = 1e-3

Kernel = tuple[int, int]  # height, width
ONE, THREE, FIVE = (1, 1), (3, 3), (5, 5)
ROW, COLUMN = (1, 7), (7, 1)  # a 7x7 kernel split in two


class Convolutions(nn.Sequential):
    """Consecutive convolutions, each with batch normalisation and ReLU, that keep the map's size.

    Attributes:
        channels: of the output.
    """

    def __init__(
        self,
        channels: int,
        *kernels: Kernel,
        widths: Iterator[int],
        epsilon: float,
        halve: bool = False,
        pool: nn.Module | None = None,
    ) -> None:
        """`halve`: the last convolution has stride 2 and no padding; `pool`: a layer before the convolutions."""
        super().__init__()
        if pool is not None:
            self.add_module("pool", pool)
        for number, kernel in enumerate(kernels, start=1):
            strided = halve and number == len(kernels)
            padding = (0, 0) if strided else (kernel[0] // 2, kernel[1] // 2)
            width = next(widths)
            stride = 2 if strided else 1
            self.add_module(f"conv_{number}", nn.Conv2d(channels, width, kernel, stride, padding, bias=False))
            self.add_module(f"bn_{number}", nn.BatchNorm2d(width, eps=epsilon, momentum=0.01))
            self.add_module(f"relu_{number}", nn.ReLU())
            channels = width
        self.channels = channels


class Branches(nn.Module):
    """Branches with the same input, whose outputs are concatenated along the channels.

    Attributes:
        channels: of the output.
    """

    def __init__(self, **branches: Convolutions) -> None:
        super().__init__()
        for name, branch in branches.items():
            self.add_module(name, branch)
        self.channels = sum(branch.channels for branch in branches.values())

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, channels, h', w')."""
        return torch.cat([branch(x) for branch in self.children()], dim=1)


# `Convolutions` with the network's widths, in Keras's order, and epsilon
Chain = partial[Convolutions]


def average() -> nn.AvgPool2d:
    """Average pooling that ignores padding, as Keras's padding "same" does."""
    return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)


def mixed_35(channels: int, chain: Chain) -> Branches:
    """Build a block on 35x35 cells (figure 5)."""
    return Branches(
        branch1x1=chain(channels, ONE),
        branch5x5=chain(channels, ONE, FIVE),
        branch3x3dbl=chain(channels, ONE, THREE, THREE),
        branch_pool=chain(channels, ONE, pool=average()),
    )


def reduction_17(channels: int, chain: Chain) -> Branches:
    """Build the reduction from 35x35 cells to 17x17 (figure 10)."""
    return Branches(
        branch3x3=chain(channels, THREE, halve=True),
        branch3x3dbl=chain(channels, ONE, THREE, THREE, halve=True),
        branch_pool=chain(channels, pool=nn.MaxPool2d(3, stride=2)),
    )


def mixed_17(channels: int, chain: Chain) -> Branches:
    """Build a block on 17x17 cells (figure 6, n = 7)."""
    return Branches(
        branch1x1=chain(channels, ONE),
        branch7x7=chain(channels, ONE, ROW, COLUMN),
        branch7x7dbl=chain(channels, ONE, COLUMN, ROW, COLUMN, ROW),
        branch_pool=chain(channels, ONE, pool=average()),
    )


def reduction_8(channels: int, chain: Chain) -> Branches:
    """Build the reduction from 17x17 cells to 8x8 (figure 10, with a 7x7 convolution in it)."""
    return Branches(
        branch3x3=chain(channels, ONE, THREE, halve=True),
        branch7x7x3=chain(channels, ONE, ROW, COLUMN, THREE, halve=True),
        branch_pool=chain(channels, pool=nn.MaxPool2d(3, stride=2)),
    )


def mixed_8(channels: int, chain: Chain) -> Branches:
    """Build a block on 8x8 cells (figure 7): two branches fork at their end."""
    return Branches(
        branch1x1=chain(channels, ONE),
        branch3x3=forked(chain(channels, ONE), chain),
        branch3x3dbl=forked(chain(channels, ONE, THREE), chain),
        branch_pool=chain(channels, ONE, pool=average()),
    )


def forked(stem: Convolutions, chain: Chain) -> Convolutions:
    """Append a 1x3 and a 3x1 convolution side by side to a branch."""
    fork = Branches(branch1x3=chain(stem.channels, (1, 3)), branch3x1=chain(stem.channels, (3, 1)))
    stem.add_module("fork", fork)
    stem.channels = fork.channels
    return stem


# mixed0 to mixed10
BLOCKS = (*[mixed_35] * 3, reduction_17, *[mixed_17] * 4, reduction_8, *[mixed_8] * 2)


class InceptionV3(Network):
    """InceptionV3 as in Keras 2 and 3; that of Keras 1 is another network.

    It has 23,834,568 parameters, of which 17,216 are scales that Keras does not have.

    Args:
        classes: units of the last layer; None for no head.
        widths: channels of the 94 convolutions in Keras's order.
        epsilon: of batch normalisation.
        head: steps of a head other than the standard one, average and dense.
        size: (height, width) in pixels of images other than 299x299.

    >>> sum(parameter.numel() for parameter in inception_v3().parameters())
    23834568
    """

    window = (8, 8)
    size = (299, 299)
    stride = 32
    shrinking = ((3, 2, 0), (3, 1, 0), (3, 2, 0), (3, 1, 0), (3, 2, 0), (3, 2, 0), (3, 2, 0))

    @synonym(num_classes="classes")
    def __init__(
        self,
        classes: int | None = 1000,
        widths: Sequence[int] = WIDTHS,
        *,
        epsilon: float = EPSILON,
        head: Steps | None = None,
        size: Size | None = None,
    ) -> None:
        super().__init__()
        if len(widths) != len(WIDTHS):
            raise ValueError(f"there are {len(widths)} widths; give {len(WIDTHS)}, one for each convolution")
        left = iter(widths)
        chain = partial(Convolutions, widths=left, epsilon=epsilon)
        self.features = nn.Sequential()
        channels = 3
        # kernel, stride and padding of the stem's convolutions
        for number, shape in enumerate(((3, 2, 0), (3, 1, 0), (3, 1, 1), (1, 1, 0), (3, 1, 0)), start=1):
            width = next(left)
            self.features.add_module(f"conv_{number}", nn.Conv2d(channels, width, *shape, bias=False))
            self.features.add_module(f"bn_{number}", nn.BatchNorm2d(width, eps=epsilon, momentum=0.01))
            self.features.add_module(f"relu_{number}", nn.ReLU())
            if number in (3, 5):
                self.features.add_module(f"pool_{number}", nn.MaxPool2d(3, stride=2))
            channels = width
        for number, block in enumerate(BLOCKS):
            branches = block(channels, chain)
            self.features.add_module(f"mixed{number}", branches)
            channels = branches.channels
        self.add_head(channels, (("average",), ("dense", classes or 1)), classes, head, size)

    def keras_names(self) -> dict[str, str]:
        """Return Keras Applications' layer names."""
        kinds = {
            nn.Conv2d: "conv2d", nn.BatchNorm2d: "batch_normalization", nn.ReLU: "activation",
            nn.MaxPool2d: "max_pooling2d", nn.AvgPool2d: "average_pooling2d",
        }  # fmt: skip
        names: dict[str, str] = {}
        counts = dict.fromkeys([*kinds.values(), "concatenate"], 0)

        def numbered(kind: str) -> str:
            counts[kind] += 1
            return kind if counts[kind] == 1 else f"{kind}_{counts[kind] - 1}"

        for name, module in self.features.named_modules():
            if kind := kinds.get(type(module)):
                names[numbered(kind)] = f"features.{name}"
            elif re.fullmatch(r"mixed\d+", name):
                names[name] = f"features.{name}"
            elif found := re.fullmatch(r"mixed(\d+)\.(.*)\.fork", name):  # Keras names the first of a block's two
                alias = f"mixed9_{int(found[1]) - 9}" if found[2] == "branch3x3" else numbered("concatenate")
                names[alias] = f"features.{name}"
        return names | {"avg_pool": "head.flatten"}


inception_v3 = InceptionV3
INCEPTION_V3 = NetworkSpec("inception_v3", inception_v3, "features.mixed9")

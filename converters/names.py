"""Module names in PyTorch's files of the same networks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

VGG_DEPTHS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
RESNET50_DEPTHS = (3, 4, 6, 3)


@dataclass(frozen=True)
class Lineage:
    """Module names of one network in torchvision's published state dicts.

    Attributes:
        network: a name in `convnets_torch.networks.NETWORKS`.
        layers: our module -> theirs.
        widths: our convolutions whose output channels are the `widths` of the network's builder, in order.
        head: our modules whose outputs are `hidden` (all but the last) and `classes` of the standard head.
        epsilon: epsilon of batch normalisation, if there is any.
    """

    network: str
    layers: Mapping[str, str]
    widths: tuple[str, ...]
    head: tuple[str, ...]
    epsilon: float | None = None
    preset: str = "torchvision"


def efficientnet_lite0(name: str) -> str:
    """Return our parameter for one of EfficientNet-Lite0's PyTorch file, whose module names begin with underscores.

    >>> efficientnet_lite0("_blocks.3._bn1.running_mean")
    'features.block3.layers.bn1.running_mean'
    >>> efficientnet_lite0("_fc.bias")
    'head.fc.bias'
    """
    if name.startswith("_fc."):
        return f"head.{name[1:]}"
    return re.sub(r"^_", "features.", re.sub(r"^_blocks\.(\d+)\._", r"_block\1.layers.", name))


def _vgg(network: str) -> Lineage:
    table: dict[str, str] = {}
    for block, depth in enumerate(VGG_DEPTHS[network], 1):
        for number in range(1, depth + 1):
            place = 2 * len(table) + block - 1  # torchvision counts convolutions, ReLUs and a pool after each block
            table[f"features.conv{block}_{number}"] = f"features.{place}"
    head = {f"head.dense_{number}": f"classifier.{place}" for number, place in enumerate((0, 3, 6), 1)}
    widths = tuple(f"features.conv{block}_1" for block in range(1, 6))
    return Lineage(network, MappingProxyType(table | head), widths, tuple(head))


def _resnet50() -> Lineage:
    table = {"features.conv1_conv": "conv1", "features.conv1_bn": "bn1"}
    for stage, depth in enumerate(RESNET50_DEPTHS, start=2):
        for block in range(depth):
            module, theirs = f"features.conv{stage}_block{block + 1}", f"layer{stage - 1}.{block}"
            if block == 0:
                table[f"{module}.conv_0"] = f"{theirs}.downsample.0"
                table[f"{module}.bn_0"] = f"{theirs}.downsample.1"
            for part in (1, 2, 3):
                table[f"{module}.conv_{part}"] = f"{theirs}.conv{part}"
                table[f"{module}.bn_{part}"] = f"{theirs}.bn{part}"
    widths = ("features.conv1_conv", *(f"features.conv{stage}_block1.conv_1" for stage in range(2, 6)))
    return Lineage("resnet50", MappingProxyType(table | {"head.dense_1": "fc"}), widths, ("head.dense_1",), 1e-5)


TORCHVISION: tuple[Lineage, ...] = (*map(_vgg, VGG_DEPTHS), _resnet50())

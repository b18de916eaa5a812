"""Per network: their layer names and our parameters."""

from __future__ import annotations

import re

# our module -> their layers, in order; several are the groups of one convolution, concatenated on the output axis
LayerTable = dict[str, tuple[str, ...]]

_DENSE: LayerTable = {f"head.dense_{number}": (f"dense_{number}",) for number in (1, 2, 3)}


def _vgg(*depths: int) -> LayerTable:
    names = [f"conv{block}_{conv}" for block, depth in enumerate(depths, 1) for conv in range(1, depth + 1)]
    return {f"features.{name}": (name,) for name in names} | _DENSE


# The lineage of convnets-keras, trained for Theano.
CONVNETS_KERAS: dict[str, LayerTable] = {
    "alexnet": {
        "features.conv_1": ("conv_1",),
        "features.conv_2": ("conv_2_1", "conv_2_2"),
        "features.conv_3": ("conv_3",),
        "features.conv_4": ("conv_4_1", "conv_4_2"),
        "features.conv_5": ("conv_5_1", "conv_5_2"),
    }
    | _DENSE,
    "vgg16": _vgg(2, 2, 3, 3, 3),
    "vgg19": _vgg(2, 2, 4, 4, 4),
}

# The convolutions whose widths are the network's `widths`.
WIDTH_LAYERS: dict[str, list[str]] = {
    "alexnet": [f"features.conv_{number}" for number in range(1, 6)],
    "vgg16": [f"features.conv{block}_1" for block in range(1, 6)],
    "vgg19": [f"features.conv{block}_1" for block in range(1, 6)],
}


def efficientnet_lite0(name: str) -> str:
    """Our parameter for one of the PyTorch file of EfficientNet-Lite0, whose modules begin with an underscore.

    >>> efficientnet_lite0("_blocks.3._bn1.running_mean")
    'features.block3.layers.bn1.running_mean'
    >>> efficientnet_lite0("_fc.bias")
    'head.fc.bias'
    """
    if name.startswith("_fc."):
        return f"head.{name[1:]}"
    return re.sub(r"^_", "features.", re.sub(r"^_blocks\.(\d+)\._", r"_block\1.layers.", name))

"""Which layers train, and which stay to the bit as they were."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convnets_torch.embeddings.extraction import last_dense
from convnets_torch.explain.names import find_layers
from convnets_torch.networks import Network

LAST_BLOCKS = {  # where stage two begins unless it is told: the last block of convolutions of each network
    "alexnet": "features.conv_5",
    "efficientnet_lite0": "features.block11",
    "inception_v3": "features.mixed9",
    "resnet50": "features.conv5_block1",
    "vgg16": "features.conv5_1",
    "vgg19": "features.conv5_1",
}


@dataclass(frozen=True)
class LayerRow:
    """One line of the table of what trains.

    Attributes:
        name: of a module: a layer of the head, or a layer or block of the features.
        parameters: how many numbers it has, without statistics of batch normalisation.
        trains: how many of them stage two changes.
    """

    name: str
    parameters: int
    trains: int


def unfrozen(network: Network, layer: str | None) -> list[str]:
    """Names of the parameters that stage two trains, in the network's order: those of a layer, and all behind it.

    "Behind" is the order in which the network lists its modules, which is that of the computation, but for branches
    that stand side by side. The last dense layer is always among them.

    Args:
        network: with its card.
        layer: as in `Settings.unfreeze`.

    Raises:
        ValueError: the layer is not known; or None, and the network has no last block that is known.
    """
    if layer is None:
        name = network.card.network if network.card else type(network).__name__
        if name not in LAST_BLOCKS:
            raise ValueError(f"the last block of {name} is not known; name the layer from which on is trained")
        layer = LAST_BLOCKS[name]
    first = layer if layer in dict(network.named_children()) else find_layers(network, layer)[0]
    order = [name for name, _ in network.named_modules()]
    behind = set(order[order.index(first) :]) | {last_dense(network)}
    return [name for name, _ in network.named_parameters() if name.rpartition(".")[0] in behind]


def freeze(network: Network, trained: list[str], *, dropout: bool) -> None:
    """Let only these parameters learn, and no statistics; dropout works where it stands behind the first of them.

    Batch normalisation runs in eval mode everywhere, behind the first trained layer as well: its statistics come from
    many more pictures than a batch for fine-tuning has. Its scale and shift learn where they are trained.

    Source: for batch normalisation, Keras's guide to transfer learning: https://keras.io/guides/transfer_learning/
    """
    network.eval()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in trained)
    order = [name for name, _ in network.named_modules()]
    first = order.index(trained[0].rpartition(".")[0])
    for place, (_, module) in enumerate(network.named_modules()):
        if isinstance(module, nn.Dropout) and place > first:
            module.train(dropout)


class _Dropout(nn.Dropout):
    generator: torch.Generator

    def forward(self, values: Tensor) -> Tensor:
        if not self.training:
            return values
        kept = torch.empty_like(values).bernoulli_(1 - self.p, generator=self.generator)
        return values * kept.div_(1 - self.p or 1)


def own_dropout(network: Network) -> torch.Generator:
    """Have a network's dropout draw from a generator of its own, which is returned, and not from PyTorch's global one.

    From the same seed it draws the same on the CPU.
    """
    generator = torch.Generator(next(network.parameters()).device)
    for module in network.modules():
        if type(module) is nn.Dropout:
            module.__class__ = _Dropout
            module.generator = generator  # type: ignore[assignment]
    return generator


def what_trains(network: Network, trained: list[str]) -> list[LayerRow]:
    """The table of what trains: a row for each layer or block that has parameters."""
    rows = []
    for top, module in _blocks(network):
        names = [(f"{top}.{name}", parameter) for name, parameter in module.named_parameters()]
        if names:
            total = sum(parameter.numel() for _, parameter in names)
            rows.append(LayerRow(top, total, sum(each.numel() for name, each in names if name in trained)))
    return rows


def _blocks(network: Network) -> Iterator[tuple[str, nn.Module]]:
    for part in ("features", "head"):
        for name, module in network.get_submodule(part).named_children():
            yield f"{part}.{name}", module

"""Which layers a network has: their names, what they give, and what a cell of theirs sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convnets_torch.explain.activations import observed
from convnets_torch.explain.keras_names import keras_names
from convnets_torch.explain.names import candidates, whole
from convnets_torch.networks import Network
from convnets_torch.networks.grids import Field, all_fields
from convnets_torch.networks.replicas import unwrapped
from convnets_torch.networks.steps import Pair, Step, steps_of


@dataclass(frozen=True)
class Layer:
    """One layer, or a block of them such as those of ResNet50 and InceptionV3.

    Attributes:
        name: as `network.named_modules()` has it.
        kind: its class, such as "Conv2d".
        shape: of its output for one image of the network's own size: (channels, height, width) or (values,).
        stride: (vertical, horizontal) pixels of the image between neighbouring cells; None where that is not known,
            and for layers without cells.
        receptive_field: (height, width) in pixels of the image of what a cell sees at most, padding included; None as
            above.
        keras_name: what Keras calls the layer with this output; None where it has none.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    stride: Pair | None = None
    receptive_field: Pair | None = None
    keras_name: str | None = None


def layer_names(network: nn.Module, size: Pair | None = None) -> list[Layer]:
    """The layers of a network in the order in which they run, by a trial on one black image.

    Args:
        network: in eval mode; any module from images (N, 3, H, W) to a tensor.
        size: (height, width) of the image in pixels; the network's own by default, which modules of other libraries
            do not have. Of networks here, whose heads take their own size alone, another one gives the layers of
            `features`.

    Raises:
        ValueError: the network is in training mode, or its size is not known.

    >>> from convnets_torch.networks import vgg16
    >>> narrow = vgg16(classes=10, widths=(2, 2, 4, 4, 8), hidden=(8, 8)).eval()
    >>> for layer in layer_names(narrow)[-10:-7]:
    ...     print(layer.name, layer.shape, layer.receptive_field, layer.keras_name)
    features.relu5_3 (8, 14, 14) (196, 196) block5_conv3
    features.pool5 (8, 7, 7) (212, 212) block5_pool
    head.flatten (392,) None flatten
    """
    network = unwrapped(network)
    if size is None:
        if not isinstance(network, Network):
            raise ValueError(f"{type(network).__name__} does not say what images it takes; give size=(height, width)")
        size = network.size
    if network.training:
        raise ValueError("the network is in training mode, where its answers are random; call network.eval()")
    shapes: dict[str, tuple[int, ...]] = {}

    def see(name: str, output: Tensor) -> None:
        shapes[name] = tuple(output.shape[1:])

    copy = observed(network, candidates(network), see)
    run = copy.features if isinstance(copy, Network) and size != copy.size else whole(copy)
    with torch.no_grad():
        run(next(network.parameters()).new_zeros(1, 3, *size))
    fields, aliases = layer_fields(network), {name: alias for alias, name in keras_names(network).items()}
    layers = []
    for name, shape in shapes.items():
        seen = fields.get(name)
        layers.append(
            Layer(
                name,
                type(network.get_submodule(name)).__name__,
                shape,
                None if seen is None else (seen[0].stride, seen[1].stride),
                None if seen is None else (seen[0].size, seen[1].size),
                aliases.get(name),
            )
        )
    return layers


def layer_fields(network: nn.Module) -> dict[str, tuple[Field, Field]]:
    """What a cell of each layer's and block's map sees, where the network can be followed."""
    if not isinstance(network, Network):
        return {}
    found: dict[str, tuple[Field, Field]] = {}
    steps: tuple[Step, ...] = steps_of(network.features)
    for step, field in zip(steps, all_fields(steps), strict=True):
        for name in (step.name, *step.blocks):  # of a block, what its last step sees
            found[f"features.{name}"] = field
    return found

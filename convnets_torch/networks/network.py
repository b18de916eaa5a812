"""The base class of all networks: `features`, `head` and `window`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from convnets_torch.networks.heads import Steps, build_head, check_steps
from convnets_torch.networks.tracing import unwrapped

if TYPE_CHECKING:
    from convnets_torch.card import Card

Size = tuple[int, int]
MOST_SIDE = 20_000  # pixels of a network's own images


def check_eval_mode(network: nn.Module) -> None:
    """Raise ValueError if any part of a network is in training mode; wrappers and compiled modules are ignored."""
    if any(part.training for part in network.modules() if unwrapped(part) is part):
        raise ValueError("the network is in training mode, where its answers are random; call network.eval()")


class Network(nn.Module):
    """A convolutional part, and a dense part that reads `window` cells of its output at once.

    Attributes:
        features: images (N, channels, H, W) -> feature map (N, C, h, w).
        head: feature map of exactly `window` cells -> logits (N, classes); None if there are no classes.
        window: (height, width) in cells of the feature map that the head reads at once.
        channels: of an image: 3, 1 (grey) or 4 (RGBA).
        size: (height, width) in pixels of the images for which `features` returns exactly one window.
        stride: pixels of the image between neighbouring cells of the feature map.
        shrinking: (kernel, stride, padding) of the layers that reduce the map's size, in order; for branches, of one.
        card: describes the weights; None until weights are loaded.
        no_map: why the network has no dense map, and no window; None if it has one.
        last_map: the last layer of `features` whose output is a map, for networks given as a graph.
    """

    features: nn.Module
    head: nn.Sequential | None
    window: Size
    channels: int = 3
    size: Size
    stride: int
    shrinking: tuple[tuple[int, int, int], ...]
    card: Card | None = None
    no_map: str | None = None
    last_map: str | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Classify images of the network's own size.

        Args:
            images: (N, channels, H, W) with (H, W) = `size`, normalised as the weights expect.

        Returns:
            Logits (N, classes).

        Raises:
            ValueError: the images have another size, or the network has no head.
        """
        if self.head is None:
            raise ValueError(NO_HEAD)
        if tuple(images.shape[-2:]) != self.size:
            raise ValueError(
                f"images are {tuple(images.shape[-2:])} pixels (height, width), but this network classifies"
                f" {self.size}; resize them, or use score_map for larger ones"
            )
        return self.head(self.features(images))

    def keras_names(self) -> dict[str, str]:
        """Map Keras layer names to modules with the same outputs; a custom head may lack some of them."""
        return {}

    def add_head(
        self, channels: int, standard: Steps, classes: int | None, head: Steps | None = None, size: Size | None = None
    ) -> None:
        """Set `size`, `window` and `head`; call it last in a constructor, after setting `features`.

        Args:
            channels: of the feature map.
            standard: steps of the network's own head.
            classes, head, size: arguments of the constructor; ValueError if they do not fit.
        """
        if size is not None:
            self.size = check_size(size)
            self.window = (self._cells(self.size[0]), self._cells(self.size[1]))
        if classes is None:
            if head is not None:
                raise ValueError("a head is given, but classes is None; give the number of its classes, or no head")
            self.head = None
            return
        if head is not None:
            check_steps(head)
            units = [step[1] for step in head if step[0] == "dense"][-1]
            if units != classes:
                raise ValueError(f"the head ends in {units} units, but there are {classes} classes; give it as many")
        self.head = build_head(standard if head is None else head, channels, self.window)

    def _cells(self, side: int) -> int:
        """Return the number of cells of the feature map along a side of `side` pixels."""
        cells = side
        for kernel, stride, padding in self.shrinking:
            cells = (cells + 2 * padding - kernel) // stride + 1
            if cells < 1:
                raise ValueError(f"a size of {side} pixels is too small: the feature map would be empty")
        return cells


def check_map(network: Network) -> nn.Sequential:
    """Return the head that slides over the feature map; raise ValueError if there is none."""
    if network.head is None:
        raise ValueError(NO_HEAD)
    if network.no_map is not None:
        raise ValueError(f"the network has no dense map: {network.no_map}; it can classify and embed")
    return network.head


def as_network(network: nn.Module) -> Network:
    """Return the network of this library in a module, unwrapping compiled and parallel modules.

    Raises:
        ValueError: the module is not a network of this library.
    """
    inner = unwrapped(network)
    if not isinstance(inner, Network):
        raise ValueError(
            f"{type(inner).__name__} is not a network of this library; convert a classifier with"
            " convnets_torch.densify(module, size), which shares its parameters"
        )
    return inner


@dataclass(frozen=True)
class NetworkSpec:
    """Facts about a network; each spec is defined at the end of its network's file.

    Attributes:
        name: as in cards.
        build: builds the network; its positional parameters are determined by the weights.
        last_block: the first layer of the last convolutional block, where fine-tuning begins by default.
        errors: k -> the original network's top-k error on ImageNet, 0 to 1.
    """

    name: str
    build: Callable[..., Network]
    last_block: str
    errors: Mapping[int, float] = field(default_factory=dict)

    @property
    def standard(self) -> dict[str, Any]:
        """The arguments determined by the weights, with the released weights' values."""
        parameters = inspect.signature(self.build).parameters.values()
        return {one.name: one.default for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD}


NO_HEAD = "the network has no head: features and embeddings work on it; to classify, give it one"


def check_size(size: Size) -> Size:
    """Return (height, width) in pixels; ValueError if invalid."""
    if len(size) != 2 or not all(type(side) is int and 1 <= side <= MOST_SIDE for side in size):
        raise ValueError(f"size is {size!r}; give height and width in pixels, 1 to {MOST_SIDE}")
    return (size[0], size[1])


def dense_steps(hidden: tuple[int, int], classes: int | None) -> Steps:
    """Return the three dense layers of AlexNet and VGG, with dropout; `hidden` are the units of the first two."""
    steps: list[tuple[str | int | float, ...]] = [("flatten",)]
    for units in hidden:
        steps += [("dense", units), ("relu",), ("dropout", 0.5)]
    return [*steps, ("dense", classes or 1)]

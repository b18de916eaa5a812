"""What every network here has: `features`, `head` and `window`."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from convnets_torch.card import Card


class Network(nn.Module):
    """A convolutional part, and a dense part that reads `window` cells of its output at once.

    Attributes:
        features: images (N, 3, H, W) -> feature map (N, C, h, w).
        head: feature map of exactly `window` cells -> logits (N, classes).
        window: (height, width) in cells of the feature map, what the head reads at once.
        size: (height, width) in pixels of the images for which `features` gives exactly one window.
        stride: pixels of the image between neighbouring cells of the feature map.
        card: what the weights are; None until weights are loaded.
    """

    features: nn.Sequential
    head: nn.Sequential
    window: tuple[int, int]
    size: tuple[int, int]
    stride: int
    card: Card | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Classify images of the network's own size.

        Args:
            images: (N, 3, H, W) with (H, W) = `size`, normalised as the weights want it.

        Returns:
            Logits (N, classes).

        Raises:
            ValueError: the images have another size.
        """
        if tuple(images.shape[-2:]) != self.size:
            raise ValueError(
                f"images are {tuple(images.shape[-2:])} pixels (height, width), but this network classifies"
                f" {self.size}; resize them, or take score_map for larger ones"
            )
        return self.head(self.features(images))


def dense_head(inputs: int, hidden: tuple[int, int], classes: int) -> nn.Sequential:
    """The three dense layers of AlexNet and VGG, with dropout between them.

    Args:
        inputs: values of one window of the feature map, C * h * w.
        hidden: units of the first two layers.
        classes: units of the last.

    Returns:
        Layers that map a window (N, C, h, w) to logits (N, classes).
    """
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            dense_1=nn.Linear(inputs, hidden[0]),
            relu_dense_1=nn.ReLU(),
            dropout_1=nn.Dropout(0.5),
            dense_2=nn.Linear(hidden[0], hidden[1]),
            relu_dense_2=nn.ReLU(),
            dropout_2=nn.Dropout(0.5),
            dense_3=nn.Linear(hidden[1], classes),
        )
    )

"""What others published about the networks, to stand beside what is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from convnets_torch.card import Card


@dataclass(frozen=True)
class Published:
    """Errors on ImageNet as somebody gave them; they were not measured here.

    Attributes:
        errors: k -> share of pictures whose class is not among the best k, 0 to 1.
        source: whose figures they are.
    """

    errors: Mapping[int, float]
    source: str


SOURCE = "convnets-keras' README, Performances on ImageNet"
ERRORS = {
    "alexnet": {1: 0.4294, 5: 0.2009, 10: 0.1384},
    "vgg16": {1: 0.3293, 5: 0.1239, 10: 0.0777},
    "vgg19": {1: 0.3277, 5: 0.1217, 10: 0.0780},
}


def published(card: Card) -> Published | None:
    """The original's own figures for a network, where its classes are ImageNet's 1,000; None for all others.

    >>> from convnets_torch.card import read_card
    >>> published(read_card("alexnet.safetensors")).errors[5]
    0.2009
    """
    return Published(ERRORS[card.network], SOURCE) if card.imagenet and card.network in ERRORS else None

"""From pictures to the most probable classes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convnets_torch.card import Card
from convnets_torch.images import Picture, read_picture
from convnets_torch.networks import Network
from convnets_torch.preprocessing import normalize, square_crop
from convnets_torch.targets import class_name, class_wnid, find_target

BATCH = 16  # pictures that go through the network together


@dataclass(frozen=True)
class Prediction:
    """One class and how probable it is.

    Attributes:
        class_id: 0 to classes - 1.
        wnid: the WordNet synset, None for a user's own classes.
        words: the class in words.
        probability: 0 to 1.
    """

    class_id: int
    wnid: str | None
    words: str
    probability: float


def classify(
    network: Network, images: Picture | Iterable[Picture], top: int = 5, *, only: str | int | None = None
) -> list[list[Prediction]]:
    """Classify pictures, each resized and cropped as the network's card says.

    Args:
        network: in eval mode, with its card, as `load` gives it.
        images: files, `PIL.Image`s or arrays (H, W, 3) uint8 RGB; one of them alone is a list of one.
        top: how many classes to return for each.
        only: a target, as for `heatmap`: leave out all classes that are not of it. The probabilities stay those among
            all of the network's classes and do not add up to 1 again: of a cat, the most probable dog has nearly none.

    Returns:
        Per picture, in the order given, its `top` most probable classes, the best first; all classes of `only` where
        it has fewer.

    Raises:
        OSError: a picture is missing or broken.
        ValueError: a picture cannot be used, `only` is not known, or the network has no card or is in training mode.
    """
    card = card_of(network)
    listed = range(card.classes) if only is None else find_target(card, only).class_ids
    if not 1 <= top <= card.classes:
        raise ValueError(f"top is {top}, but the network has {card.classes} classes; give 1 to {card.classes}")
    pictures = [images] if isinstance(images, str | os.PathLike | Image.Image | np.ndarray) else images
    rest = iter(pictures)
    results: list[list[Prediction]] = []
    while batch := list(itertools.islice(rest, BATCH)):
        inputs = [square_input(picture, card) for picture in batch]
        with torch.inference_mode():
            chances = probabilities(network(to_parameters(np.stack(inputs), network)), card).cpu()
        if only is not None:
            chances = chances[:, list(listed)]
        values, places = chances.topk(min(top, len(listed)), dim=1)
        for row_values, row_places in zip(values.tolist(), places.tolist(), strict=True):
            pairs = zip(row_places, row_values, strict=True)
            results.append([_prediction(card, listed[place], value) for place, value in pairs])
    return results


def square_input(picture: Picture, card: Card) -> np.ndarray:
    """One picture as the network's own input, (3, size, size) float32."""
    rule = card.preprocessing
    return normalize(square_crop(read_picture(picture, exif=rule.exif), rule), rule)


def to_parameters(inputs: np.ndarray, network: Network) -> Tensor:
    """An array as a tensor on the device and in the precision of the network's parameters."""
    return torch.from_numpy(inputs).to(next(network.parameters()))


def probabilities(logits: Tensor, card: Card) -> Tensor:
    """Logits (N, classes, ...) -> probabilities of the same shape in float32, by the card's activation.

    Raises:
        ValueError: the card says that outputs are no probabilities, or does not fit them; or they are not finite.
    """
    if logits.shape[1] != card.classes:
        raise ValueError(
            f"the network has {logits.shape[1]} outputs, its card {card.classes} classes; set network.card"
        )
    if not logits.isfinite().all():
        raise ValueError("the network's outputs are NaN or infinite: its weights are broken, or too large for float16")
    if card.activation == "none":
        raise ValueError("the card says that outputs are no probabilities (activation none); take the logits")
    return logits.float().softmax(dim=1) if card.activation == "softmax" else logits.float().sigmoid()


def card_of(network: Network) -> Card:
    """The card of a network that is ready to run.

    Raises:
        ValueError: the network has no card, or is in training mode.
    """
    if network.card is None:
        raise ValueError("the network has no card, so its preprocessing is unknown; load it with convnets_torch.load")
    if any(module.training for module in network.modules()):
        raise ValueError("the network is in training mode, where dropout makes answers random; call network.eval()")
    return network.card


def _prediction(card: Card, class_id: int, probability: float) -> Prediction:
    return Prediction(class_id, class_wnid(card, class_id), class_name(card, class_id), probability)

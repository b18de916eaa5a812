"""From pictures to the most probable classes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from convnets_torch.ahead import ahead, each_of
from convnets_torch.card import Card
from convnets_torch.images import Decoded, Picture, decode, warn
from convnets_torch.networks import Network
from convnets_torch.networks.network import NO_HEAD
from convnets_torch.preprocessing import Pixels, center_crop, normalize
from convnets_torch.targets import class_name, class_wnid, find_target

BATCH = 16  # pictures that go through the network together
AHEAD = 3 * BATCH  # pictures that are decoded before the network asks for them


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


@dataclass(frozen=True)
class Classified:
    """What became of one picture.

    Attributes:
        picture: as it was given.
        predictions: the most probable classes, the best first; empty where there is an error.
        error: why the picture could not be used (OSError, ValueError), else None.
        remarks: sentences on what its owner may not expect, such as that the first of several frames was read.
    """

    picture: Picture
    predictions: list[Prediction]
    error: Exception | None = None
    remarks: tuple[str, ...] = ()


def classify(
    network: Network,
    images: Picture | Iterable[Picture],
    top: int = 5,
    *,
    only: str | int | None = None,
    max_pixels: int | None = None,
    allow_truncated: bool = False,
) -> list[list[Prediction]]:
    """Classify pictures, each resized and cropped as the network's card says.

    Args:
        network: in eval mode, with its card, as `load` gives it.
        images: whatever `read_picture` takes: files, `PIL.Image`s, arrays (H, W, 3), tensors (3, H, W), RGB, 0 to 255;
            one of them alone is a list of one. `find_pictures` lists those of a folder.
        top: how many classes to return for each.
        only: a target, as for `heatmap`: leave out all classes that are not of it. The probabilities stay those among
            all of the network's classes and do not add up to 1 again: of a cat, the most probable dog has nearly none.
        max_pixels: refuse files of more pixels; 178,956,970 by default.
        allow_truncated: read what is there of files whose end is missing.

    Returns:
        Per picture, in the order given, its `top` most probable classes, the best first; all classes of `only` where
        it has fewer.

    Raises:
        OSError: a picture is missing or broken; `classify_each` goes on with the others.
        ValueError: a picture cannot be used, `only` is not known, or the network has no card, no head, or is in
            training mode.

    Warns:
        PictureWarning: as `read_picture` does.

    >>> from convnets_torch import load
    >>> [[best, second]] = classify(load("alexnet.safetensors"), "street.jpg", top=2)
    >>> best.probability > second.probability, best.wnid.startswith("n")
    (True, True)
    """
    results = []
    for entry in classify_each(network, images, top, only=only, max_pixels=max_pixels, allow_truncated=allow_truncated):
        if entry.error is not None:
            raise entry.error
        warn(entry.remarks)
        results.append(entry.predictions)
    return results


def classify_each(
    network: Network,
    images: Picture | Iterable[Picture],
    top: int = 5,
    *,
    only: str | int | None = None,
    max_pixels: int | None = None,
    allow_truncated: bool = False,
) -> Generator[Classified, None, None]:
    """Classify any number of pictures one after another; one that cannot be used does not stop the others.

    Pictures are decoded ahead in threads and go through the network 16 at a time, so results come in bursts; some
    60 pictures are in memory at once, cut to the network's size.

    Args:
        network, images, top, only, max_pixels, allow_truncated: as in `classify`.

    Returns:
        A generator of one `Classified` per picture, in the order given; `close()` stops it early.

    Raises:
        ValueError: at once, when the network has no card, no head, or is in training mode, `top` is out of range, or
            `only` is not known; later, when the outputs are no probabilities.

    >>> from convnets_torch import load
    >>> for result in classify_each(load("alexnet.safetensors"), ["street.jpg", "none.jpg"]):
    ...     print(result.picture, len(result.predictions), result.error)
    street.jpg 5 None
    none.jpg 0 none.jpg does not exist; name a file
    """
    card = card_of(network)
    listed = list(range(card.classes)) if only is None else list(find_target(card, only).class_ids)
    if not 1 <= top <= card.classes:
        raise ValueError(f"top is {top}, but the network has {card.classes} classes; give 1 to {card.classes}")
    options = partial(decode, exif=card.preprocessing.exif, max_pixels=max_pixels, allow_truncated=allow_truncated)
    return _classified(network, card, each_of(images), top, listed, options)


def _classified(
    network: Network,
    card: Card,
    pictures: Iterable[Picture],
    top: int,
    listed: list[int],
    read: Callable[[Picture], Decoded],
) -> Generator[Classified, None, None]:
    waiting: list[tuple[Picture, _Input]] = []
    with contextlib.closing(ahead(pictures, partial(_input, card=card, read=read), most=AHEAD)) as entries:
        for picture, entry in entries:
            waiting.append((picture, entry))
            if sum(entry.pixels is not None for _, entry in waiting) == BATCH:
                yield from _answers(network, card, waiting, top, listed)
                waiting = []
    yield from _answers(network, card, waiting, top, listed)


@dataclass(frozen=True)
class _Input:
    """A picture as (3, size, size) float32, or why there is none."""

    pixels: np.ndarray | None
    error: Exception | None = None
    remarks: tuple[str, ...] = ()


def _input(picture: Picture, card: Card, read: Callable[[Picture], Decoded]) -> _Input:
    try:
        decoded = read(picture)
        return _Input(square_input(decoded.pixels, card), remarks=decoded.remarks)
    except (OSError, ValueError) as error:
        return _Input(None, error)


def _answers(
    network: Network, card: Card, entries: list[tuple[Picture, _Input]], top: int, listed: list[int]
) -> Iterator[Classified]:
    """One batch through the network, the best of the `listed` classes; what could not be read stays in its place."""
    inputs = [entry.pixels for _, entry in entries if entry.pixels is not None]
    rows: Iterator[list[Prediction]] = iter(())
    if inputs:
        with torch.inference_mode():
            chances = probabilities(network(to_parameters(np.stack(inputs), network)), card).cpu()
        best = (column.tolist() for column in chances[:, listed].topk(min(top, len(listed)), dim=1))
        rows = (
            [prediction(card, listed[place], value) for place, value in zip(places, values, strict=True)]
            for values, places in zip(*best, strict=True)
        )
    for picture, entry in entries:
        yield Classified(picture, [] if entry.error else next(rows), entry.error, entry.remarks)


def square_input(pixels: Pixels, card: Card) -> np.ndarray:
    """Pixels (H, W, 3), RGB, 0 to 255, as the network's own input, (3, size, size) float32."""
    return normalize(center_crop(pixels, card.preprocessing), card.preprocessing)


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
    """The card of a network that is ready to classify.

    Raises:
        ValueError: the network has no card or no head, or is in training mode.
    """
    card = ready_card(network)
    if network.head is None:
        raise ValueError(NO_HEAD)
    return card


def ready_card(network: Network) -> Card:
    """The card of a network that is ready to run, with a head or without.

    Raises:
        ValueError: the network has no card, or is in training mode.
    """
    if network.card is None:
        raise ValueError("the network has no card, so its preprocessing is unknown; load it with convnets_torch.load")
    if any(module.training for module in network.modules()):
        raise ValueError("the network is in training mode, where dropout makes answers random; call network.eval()")
    return network.card


def prediction(card: Card, class_id: int, probability: float) -> Prediction:
    """One class of a card in words."""
    return Prediction(class_id, class_wnid(card, class_id), class_name(card, class_id), probability)

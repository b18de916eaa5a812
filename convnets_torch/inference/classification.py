"""Classify pictures: from files to the most probable classes."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from convnets_torch.card import Card
from convnets_torch.images.decoding import Picture, Reading, ReadingKeywords, warn
from convnets_torch.images.preprocessing import Pixels, center_crop, normalize
from convnets_torch.inference.pipeline import Predicted, Result, Runnable, each_row, predicted
from convnets_torch.inference.pipeline import card_of as card_of
from convnets_torch.inference.pipeline import ready_card as ready_card
from convnets_torch.networks import Network
from convnets_torch.options import checked, shows
from convnets_torch.wordnet.hierarchy import Answer, back_off, check_backoff
from convnets_torch.wordnet.targets import allowed_classes, class_name, class_wnid, tree_wnids


@dataclass(frozen=True)
class Prediction:
    """A class and its probability.

    Attributes:
        class_id: 0 to classes - 1.
        wnid: the WordNet synset; None for a user-defined class whose name does not begin with a wnid.
        words: the class name.
        probability: 0 to 1.
    """

    class_id: int
    wnid: str | None
    words: str
    probability: float


@dataclass(frozen=True)
class Classified(Result[list[Prediction]]):
    """The classification of one picture.

    Attributes:
        predictions: the most probable classes, best first; empty on error.
        picture, error, notes: as in `Result`.
        answer: the deepest synset that is probable enough, if `backoff` was given.
    """

    answer: Answer | None = None

    @property
    def predictions(self) -> list[Prediction]:
        """The `value`; empty on error."""
        return self.value or []


@shows(ReadingKeywords, Reading)
def classify(
    network: Runnable,
    images: Picture | Iterable[Picture],
    top: int = 5,
    *,
    only: str | int | None = None,
    **reading: Unpack[ReadingKeywords],
) -> list[list[Prediction]]:
    """Classify pictures, each resized and cropped as the network's card says.

    Args:
        network: in eval mode and with its card, as `load` returns it; or an `engine` of one.
        images: whatever `read_picture` takes: files, `PIL.Image`s, arrays (H, W, 3), tensors (3, H, W), RGB, 0 to 255;
            a single one is treated as a list of one. `find_pictures` lists those of a folder.
        top: number of classes to return per picture; all if there are fewer.
        only: a target, as for `heatmap`: leave out all other classes. Probabilities remain relative to all of the
            network's classes and are not renormalised: for a picture of a cat, the most probable dog has almost none.
        **reading: as for `read_picture`.

    Returns:
        For each picture, in the order given, its `top` most probable classes, best first; all classes of `only` if it
        has fewer.

    Raises:
        OSError: a picture is missing or broken; `classify_each` continues with the others.
        ValueError: a picture cannot be used, `only` is unknown, or the network has no card, no head, or is in
            training mode.

    Warns:
        PictureWarning: as `read_picture` does.

    >>> from convnets_torch import load
    >>> [[best, second]] = classify(load("alexnet.safetensors"), "street.jpg", top=2)
    >>> best.probability > second.probability, best.wnid.startswith("n")
    (True, True)
    """
    how = Reading(**checked(reading, ReadingKeywords))
    results = []
    for entry in _classify(network, images, how, top, only):
        if entry.error is not None:
            raise entry.error
        warn(entry.notes)
        results.append(entry.predictions)
    return results


@shows(ReadingKeywords, Reading)
def classify_each(
    network: Runnable,
    images: Picture | Iterable[Picture],
    top: int = 5,
    *,
    only: str | int | None = None,
    backoff: float | None = None,
    batch: int | Literal["auto"] = "auto",
    workers: int | None = None,
    **reading: Unpack[ReadingKeywords],
) -> Generator[Classified, None, None]:
    """Classify any number of pictures one after another; a picture that cannot be used does not stop the others.

    Threads decode pictures ahead of time. By default the network runs 16 pictures at a time on the CPU, so results come
    in bursts; about 60 pictures are in memory at once, cropped to the network's size.

    Args:
        network, images, top, only, **reading: as in `classify`.
        backoff: a probability above 0, at most 1: return as `answer` the deepest synset that is at least this probable
            (`backoff.back_off`), regardless of `only`. Requires classes with wnids.
        batch, workers: as in `predict`.

    Returns:
        A generator of one `Classified` per picture, in the order given; `close()` stops it early.

    Raises:
        ValueError: immediately, if the network has no card, no head, or is in training mode, `top` is below 1, `only`
            is unknown, or `backoff` is not a probability or not applicable to these classes; later, if the outputs
            are not probabilities.

    >>> from convnets_torch import load
    >>> for result in classify_each(load("alexnet.safetensors"), ["street.jpg", "none.jpg"]):
    ...     print(result.picture, len(result.predictions), result.error)
    street.jpg 5 None
    none.jpg 0 none.jpg does not exist; name a file
    """
    how = Reading(**checked(reading, ReadingKeywords))
    return _classify(network, images, how, top, only, backoff, batch, workers)


def _classify(
    network: Runnable,
    images: Picture | Iterable[Picture],
    reading: Reading,
    top: int,
    only: str | int | None,
    backoff: float | None = None,
    batch: int | Literal["auto"] = "auto",
    workers: int | None = None,
) -> Generator[Classified, None, None]:
    card = card_of(network)
    listed = allowed_classes(card, only)
    if top < 1:
        raise ValueError(f"top is {top}; give 1 or more")
    if backoff is not None:
        check_backoff(card, backoff)
    wnids = None if backoff is None else tree_wnids(card)

    def classified(row: Predicted) -> Classified:
        """Select the best of the `listed` classes."""
        if row.value is None:
            return Classified(row.picture, None, row.error, row.notes)
        found = probabilities(row.value[None], card)[0]
        best = [prediction(card, class_id, value) for class_id, value in best_of(found, top, listed)]
        answer = None if backoff is None else back_off(found, backoff, wnids)
        return Classified(row.picture, best, None, row.notes, answer)

    return each_row(predicted(network, images, reading, batch, workers, exact=True), classified)


def best_of(found: Tensor, top: int, listed: Sequence[int]) -> list[tuple[int, float]]:
    """Return the `top` most probable of the `listed` class ids with their probabilities, best first.

    >>> best_of(torch.tensor([0.5, 0.25, 0.125, 0.125]), 2, [1, 2, 3])
    [(1, 0.25), (2, 0.125)]
    """
    chances = found[listed].topk(min(top, len(listed)))
    places = chances.indices.tolist()
    return [(listed[place], value) for value, place in zip(chances.values.tolist(), places, strict=True)]


def square_input(pixels: Pixels, card: Card) -> np.ndarray:
    """Crop and normalise pixels, as for `center_crop`, to network input (C, size, size) float32."""
    return normalize(center_crop(pixels, card.preprocessing), card.preprocessing)


def to_parameters(inputs: np.ndarray, network: Network) -> Tensor:
    """Convert an array to a tensor on the device and in the dtype of the network's parameters."""
    return torch.from_numpy(inputs).to(next(network.parameters()))


def probabilities(logits: Tensor, card: Card) -> Tensor:
    """Convert logits (N, classes, ...) to float32 probabilities of the same shape, by the card's activation.

    Raises:
        ValueError: the card says that outputs are not probabilities, or does not match them; or they are not finite.
    """
    if logits.shape[1] != card.classes:
        raise ValueError(
            f"the network has {logits.shape[1]} outputs, its card {card.classes} classes; set network.card"
        )
    if not logits.isfinite().all():
        raise ValueError("the network's outputs are NaN or infinite: its weights are broken, or too large for float16")
    if card.activation == "none":
        raise ValueError("the card says that outputs are not probabilities (activation none); use the logits")
    return logits.float().softmax(dim=1) if card.activation == "softmax" else logits.float().sigmoid()


def prediction(card: Card, class_id: int, probability: float) -> Prediction:
    """Return a class of a card with its name."""
    return Prediction(class_id, class_wnid(card, class_id), class_name(card, class_id), probability)

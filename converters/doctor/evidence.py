"""What is known of the right answers: labels of pictures, or inputs and outputs recorded from another framework."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnets_torch.card import Card
from convnets_torch.files import open_file, opened_path
from convnets_torch.images.labelled import find_labelled
from convnets_torch.images.preprocessing import Pixels, Preprocessing, center_crop, normalize

WRONG_LABEL = 0.05  # the probability with which an expected answer is taken to be wrong itself
ODDS = 100.0  # a hypothesis must make the expected answers so many times likelier than another to be told from it
NOISE = 1e-5  # of the largest recorded output: differences of float32 that mean nothing
MOST_RECORDED = 1 << 30  # bytes of a recording: some thousand pictures
# What NumPy raises for a header that is none.
NO_NPY = (ValueError, EOFError, TypeError, LookupError, ArithmeticError, RecursionError, MemoryError, SyntaxError)
AGREES = 1e-3  # of the largest recorded output: further away, no hypothesis has explained it

Form = Literal["pixels", "preprocessed"]


class Evidence(Protocol):
    """What hypotheses are judged by.

    Attributes:
        untested: families of hypotheses that make no difference to it.
    """

    untested: frozenset[str]

    def inputs(self, card: Card) -> NDArray[np.float32]:
        """(N, 3, size, size) for the network, as the card prepares it."""

    def score(self, logits: Tensor, card: Card) -> float:
        """How well outputs (N, classes) explain it; higher is better, -inf where they are not finite."""

    def tied(self, best: float, other: float) -> bool:
        """Whether a score is too near the best one to be told from it."""

    def explained(self, logits: Tensor, card: Card) -> bool:
        """Whether these outputs explain it at all."""

    def figure(self, score: float) -> float:
        """The score as people read it: a probability, or a relative error."""


class Labels:
    """Pictures with their expected answers.

    The likelihood of an answer is the probability that the network gives to its classes, with a chance of 5 % that
    the label itself is wrong, so that one odd picture cannot decide alone.

    Args:
        pictures: (H, W, 3) RGB, 0 to 255, each.
        class_ids: per picture, the classes that are right.
        classes: of the network.
    """

    untested: frozenset[str] = frozenset()

    def __init__(self, pictures: Sequence[Pixels], class_ids: Sequence[Sequence[int]], classes: int) -> None:
        self.pictures = pictures
        self.right = torch.zeros(len(pictures), classes, dtype=torch.bool)
        for row, ids in enumerate(class_ids):
            self.right[row, list(ids)] = True
        self._crops: dict[Preprocessing, list[Pixels]] = {}

    def inputs(self, card: Card) -> NDArray[np.float32]:
        rule = card.preprocessing
        cut = Preprocessing("cut", rule.size, rule.resize, rule.resize_rule, rule.interpolation, "rgb", (0.0, 0.0, 0.0))
        if cut not in self._crops:
            self._crops[cut] = [center_crop(picture, cut) for picture in self.pictures]
        return np.stack([normalize(crop, rule) for crop in self._crops[cut]])

    def score(self, logits: Tensor, card: Card) -> float:
        """The mean log likelihood of the expected answers."""
        if logits.shape != self.right.shape or not logits.isfinite().all():
            return -math.inf  # of another number of classes than are expected
        return float(self._likelihoods(_shares(logits, card)).log().mean())

    def _likelihoods(self, shares: Tensor) -> Tensor:
        expected = (shares * self.right).sum(1)
        return (1 - WRONG_LABEL) * expected + WRONG_LABEL * self.right.double().mean(1)

    def tied(self, best: float, other: float) -> bool:
        """Whether all pictures together are less than a hundred times likelier under the best one."""
        return (best - other) * len(self.right) < math.log(ODDS)

    def explained(self, logits: Tensor, card: Card) -> bool:
        """A hundred times likelier than by chance, and the best class right for half of the pictures at least."""
        by_chance = float(self.right.double().mean(1).log().mean())
        hits = self.right[torch.arange(len(self.right)), logits.argmax(1)].double().mean()
        return not self.tied(self.score(logits, card), by_chance) and bool(hits >= 0.5)

    def figure(self, score: float) -> float:
        return math.exp(score)


def _shares(logits: Tensor, card: Card) -> Tensor:
    """Probabilities in float64; of independent (sigmoid) outputs, each one's share of their sum."""
    if card.activation == "softmax":
        return logits.double().softmax(1)
    chances = logits.double().sigmoid()
    return chances / chances.sum(1, keepdim=True).clamp_min(1e-30)


@dataclass(frozen=True)
class Golden:
    """What the original framework was given, and what it answered.

    Attributes:
        inputs: (N, 3, H, W) or (N, H, W, 3): pixels, RGB, 0 to 255; or what preprocessing had made of them, in
            the order of colours that the card names.
        outputs: (N, classes), probabilities or logits.
    """

    inputs: NDArray[Any]
    outputs: NDArray[Any]

    @classmethod
    def read(cls, inputs: str | Path, outputs: str | Path) -> Golden:
        """Read two `.npy` files.

        Raises:
            OSError: one is missing or cannot be read.
            ValueError: one is no `.npy` file of numbers, or has more than 1 GiB.
        """
        return cls(_read_npy(Path(inputs)), _read_npy(Path(outputs)))


def _read_npy(path: Path) -> NDArray[Any]:
    with open_file(path, max_bytes=MOST_RECORDED) as file:
        if file.read(2) == b"PK":
            raise ValueError(f"{path} holds several arrays; write each with numpy.save into a file of its own")
        try:  # mapped: a header cannot ask for more than is there
            array = np.load(opened_path(file), mmap_mode="r", allow_pickle=False)
        except NO_NPY as error:
            reason = f"{error}" or "its header cannot be read"
            raise ValueError(f"{path} is no .npy file of numbers ({reason:.200}); write it with numpy.save") from None
    if array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
        raise ValueError(f"{path} holds {array.dtype!s:.80}; real numbers of up to 64 bits are wanted")
    return array


class Recorded:
    """A golden, its input taken in one form; how far the network's outputs are from the recorded ones."""

    def __init__(self, golden: Golden, card: Card, form: Form) -> None:
        self.form: Form = form
        self.card = card
        self.golden = torch.from_numpy(np.array(golden.outputs, np.float64))
        self.images = _channels_last(golden.inputs)
        self.crop = self.images.shape[1:3] != (card.preprocessing.size,) * 2
        small = form == "preprocessed"
        self.untested = frozenset({"classes"} | ({"values", "resize"} if small else set() if self.crop else {"resize"}))
        sums = self.golden.sum(1)
        within = bool((self.golden >= 0).all() and (self.golden <= 1).all())
        self.probabilities = within and (card.activation == "sigmoid" or bool(((sums - 1).abs() < 1e-2).all()))

    def inputs(self, card: Card) -> NDArray[np.float32]:
        if self.form == "preprocessed":
            step = 1 if card.preprocessing.channels == self.card.preprocessing.channels else -1
            return np.ascontiguousarray(self.images[..., ::step].transpose(0, 3, 1, 2), dtype=np.float32)
        images = self.images
        if self.crop:
            images = np.stack([center_crop(image.astype(np.uint8), card.preprocessing) for image in images])
        return np.stack([normalize(image, card.preprocessing) for image in images])

    def score(self, logits: Tensor, card: Card) -> float:
        """Minus the largest difference, relative to the largest recorded output."""
        if not logits.isfinite().all():
            return -math.inf
        found = logits.double()
        if self.probabilities:
            found = found.sigmoid() if card.activation == "sigmoid" else found.softmax(1)
        return -float((found - self.golden).abs().max() / self.golden.abs().max())

    def tied(self, best: float, other: float) -> bool:
        """Whether the error is less than three times the smallest, or nothing but rounding."""
        return -other <= max(3 * -best, NOISE)

    def explained(self, logits: Tensor, card: Card) -> bool:
        return self.score(logits, card) >= -AGREES

    def figure(self, score: float) -> float:
        return -score


def _channels_last(images: NDArray[Any]) -> NDArray[Any]:
    return images if images.shape[-1] == 3 else images.transpose(0, 2, 3, 1)


def recordings(golden: Golden, card: Card) -> list[Recorded]:
    """The ways in which a golden can be meant, each of them evidence of its own.

    Whole numbers from 0 to 255 are pixels; fractions within that range may be pixels or already preprocessed;
    what goes beyond it is preprocessed.

    Raises:
        ValueError: shapes that do not fit each other or the network; NaN; outputs without any size.
    """
    inputs, outputs, size = golden.inputs, golden.outputs, card.preprocessing.size
    if inputs.ndim != 4 or 3 not in (inputs.shape[1], inputs.shape[3]) or 0 in inputs.shape:
        raise ValueError(f"the recorded input is {inputs.shape}; wanted: (N, 3, H, W) or (N, H, W, 3)")
    if outputs.shape != (len(inputs), card.classes):
        raise ValueError(
            f"the recorded output is {outputs.shape}, but {len(inputs)} inputs and {card.classes} classes make"
            f" {(len(inputs), card.classes)}; record the network's last output, one row per input"
        )
    for name, array in (("input", inputs), ("output", outputs)):
        if array.dtype.kind not in "fiu":
            raise ValueError(f"the recorded {name} holds {array.dtype}; real numbers are wanted")
        if not np.isfinite(array).all():
            raise ValueError(f"the recorded {name} holds NaN or infinite numbers; record it again")
    if not outputs.any():
        raise ValueError("the recorded output is all zeros, which nothing can be compared with; record it again")
    in_range = bool(inputs.min() >= 0 and inputs.max() <= 255)
    whole = in_range and inputs.max() > 1 and bool((inputs == np.rint(inputs)).all())
    fits = _channels_last(inputs).shape[1:3] == (size, size)
    if not fits and not whole:
        raise ValueError(
            f"the recorded input is {inputs.shape}, but the network takes {size}x{size} pixels; only whole pixel"
            " values, 0 to 255, can be resized as the card says"
        )
    forms: list[Form] = ["pixels"] if whole else ["preprocessed", "pixels"] if in_range else ["preprocessed"]
    return [Recorded(golden, card, form) for form in forms]


def labelled_pictures(folder: str | Path, exclude: Iterable[str] = ()) -> list[tuple[Path, str]]:
    """The pictures in class folders, or of a table, each with its label.

    Raises:
        OSError, ValueError: as `find_dataset`, but one class alone is enough.
    """
    found = find_labelled(folder, exclude=exclude)
    if found.doubt:
        raise ValueError(found.doubt)
    return [*zip(found.paths, found.labels, strict=True)]

"""Evidence of the right answers: labelled pictures, or inputs and outputs recorded in another framework."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnets_torch.card import Card
from convnets_torch.files import open_file, opened_path
from convnets_torch.images.labelled import find_labelled
from convnets_torch.images.preprocessing import Pixels, Preprocessing, center_crop, normalize

WRONG_LABEL = 0.05  # assumed probability that a label is wrong
ODDS = 100.0  # likelihood ratio of the expected answers above which one hypothesis beats another
NOISE = 1e-5  # float32 rounding error, relative to the largest recorded output
MOST_RECORDED = 1 << 30  # bytes of a recording: a few thousand pictures
# What NumPy raises for an invalid header.
NO_NPY = (ValueError, EOFError, TypeError, LookupError, ArithmeticError, RecursionError, MemoryError, SyntaxError)
AGREES = 1e-3  # largest error, relative to the largest recorded output, at which a hypothesis explains a recording

Form = Literal["pixels", "preprocessed"]


class LabelEvidence:
    """Pictures with their expected answers.

    The likelihood of an answer is the probability that the network assigns to its classes, allowing for a 5 % chance
    that the label is wrong, so that a single odd picture cannot decide the verdict.

    `untested` are families of hypotheses that do not affect the evidence.

    Args:
        images: each (H, W, 3) RGB, 0 to 255.
        class_ids: the correct classes of each image.
        classes: the network's number of classes.
    """

    untested: frozenset[str] = frozenset()

    def __init__(self, images: Sequence[Pixels], class_ids: Sequence[Sequence[int]], classes: int) -> None:
        self.images = images
        self.right = torch.zeros(len(images), classes, dtype=torch.bool)
        for row, ids in enumerate(class_ids):
            self.right[row, list(ids)] = True
        self._crops: dict[Preprocessing, list[Pixels]] = {}

    def inputs(self, card: Card) -> NDArray[np.float32]:
        """Return the network's input (N, 3, size, size), preprocessed as the card specifies."""
        rule = card.preprocessing
        cut = Preprocessing("cut", rule.size, rule.resize, rule.resize_rule, rule.interpolation, "rgb", (0.0, 0.0, 0.0))
        if cut not in self._crops:
            self._crops[cut] = [center_crop(image, cut) for image in self.images]
        return np.stack([normalize(crop, rule) for crop in self._crops[cut]])

    def score(self, logits: Tensor, card: Card) -> float:
        """Return the mean log likelihood of the expected answers, (N, classes) outputs; -inf if they are not finite."""
        if logits.shape != self.right.shape or not logits.isfinite().all():
            return -math.inf  # another number of classes than expected, or not finite
        return float(self._likelihoods(_shares(logits, card)).log().mean())

    def _likelihoods(self, shares: Tensor) -> Tensor:
        expected = (shares * self.right).sum(1)
        return (1 - WRONG_LABEL) * expected + WRONG_LABEL * self.right.double().mean(1)

    def tied(self, best: float, other: float) -> bool:
        """Return whether all pictures together are less than 100 times as likely under the best one."""
        return (best - other) * len(self.right) < math.log(ODDS)

    def explained(self, logits: Tensor, card: Card) -> bool:
        """Return whether answers are 100 times as likely as by chance and top-1 accuracy is at least 0.5."""
        by_chance = float(self.right.double().mean(1).log().mean())
        hits = self.right[torch.arange(len(self.right)), logits.argmax(1)].double().mean()
        return not self.tied(self.score(logits, card), by_chance) and bool(hits >= 0.5)

    def figure(self, score: float) -> float:
        """Return a score as a probability."""
        return math.exp(score)


def _shares(logits: Tensor, card: Card) -> Tensor:
    """Return float64 probabilities; independent (sigmoid) outputs are divided by their sum."""
    if card.activation == "softmax":
        return logits.double().softmax(1)
    chances = logits.double().sigmoid()
    return chances / chances.sum(1, keepdim=True).clamp_min(1e-30)


@dataclass(frozen=True)
class Golden:
    """Inputs and outputs recorded in the original framework.

    Attributes:
        inputs: (N, 3, H, W) or (N, H, W, 3): RGB pixels, 0 to 255; or preprocessed pixels in the card's channel order.
        outputs: (N, classes), probabilities or logits.
    """

    inputs: NDArray[Any]
    outputs: NDArray[Any]

    @classmethod
    def read(cls, inputs: str | Path, outputs: str | Path) -> Golden:
        """Read two `.npy` files.

        Raises:
            OSError: a file is missing or cannot be read.
            ValueError: a file is not a `.npy` file of numbers, or is larger than 1 GiB.
        """
        return cls(_read_npy(Path(inputs)), _read_npy(Path(outputs)))


def _read_npy(path: Path) -> NDArray[Any]:
    with open_file(path, max_bytes=MOST_RECORDED) as file:
        if file.read(2) == b"PK":
            raise ValueError(f"{path} holds several arrays; write each with numpy.save into a file of its own")
        try:  # memory-mapped, so that a header cannot make NumPy allocate more than the file holds
            array = np.load(opened_path(file), mmap_mode="r", allow_pickle=False)
        except NO_NPY as error:
            reason = f"{error}" or "its header cannot be read"
            raise ValueError(
                f"{path} is not a .npy file of numbers ({reason:.200}); write it with numpy.save"
            ) from None
    if array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
        raise ValueError(f"{path} holds {array.dtype!s:.80}; real numbers of up to 64 bits are required")
    return array


class GoldenEvidence:
    """A golden with its input interpreted in one form; the score is minus the outputs' relative error."""

    def __init__(self, golden: Golden, card: Card, form: Form) -> None:
        self.form: Form = form
        self.card = card
        self.golden = torch.from_numpy(np.array(golden.outputs, np.float64))
        self.images = _channels_last(golden.inputs)
        self.crop = self.images.shape[1:3] != (card.preprocessing.size,) * 2
        input_families = {"values", "resize"} if form == "preprocessed" else set() if self.crop else {"resize"}
        self.untested = frozenset({"classes"} | input_families)
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
        """Return minus the largest error, relative to the largest recorded output."""
        if not logits.isfinite().all():
            return -math.inf
        found = logits.double()
        if self.probabilities:
            found = found.sigmoid() if card.activation == "sigmoid" else found.softmax(1)
        return -float((found - self.golden).abs().max() / self.golden.abs().max())

    def tied(self, best: float, other: float) -> bool:
        """Return whether the error is at most three times the smallest, or just rounding."""
        return -other <= max(3 * -best, NOISE)

    def explained(self, logits: Tensor, card: Card) -> bool:
        return self.score(logits, card) >= -AGREES

    def figure(self, score: float) -> float:
        """Return a score as a relative error."""
        return -score


Evidence = LabelEvidence | GoldenEvidence


def _channels_last(images: NDArray[Any]) -> NDArray[Any]:
    return images if images.shape[-1] == 3 else images.transpose(0, 2, 3, 1)


def recordings(golden: Golden, card: Card) -> list[GoldenEvidence]:
    """Return the possible interpretations of a golden, each as separate evidence.

    Whole numbers from 0 to 255 are pixels; fractions within that range may be pixels or preprocessed; inputs outside it
    are preprocessed.

    Raises:
        ValueError: shapes do not fit each other or the network, values are not finite, or all outputs are 0.
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
            raise ValueError(f"the recorded {name} holds {array.dtype}; real numbers are required")
        if not np.isfinite(array).all():
            raise ValueError(f"the recorded {name} holds NaN or infinite numbers; record it again")
    if not outputs.any():
        raise ValueError("the recorded output is all zeros, so no relative error exists; record it again")
    in_range = bool(inputs.min() >= 0 and inputs.max() <= 255)
    whole = in_range and inputs.max() > 1 and bool((inputs == np.rint(inputs)).all())
    fits = _channels_last(inputs).shape[1:3] == (size, size)
    if not fits and not whole:
        raise ValueError(
            f"the recorded input is {inputs.shape}, but the network takes {size}x{size} pixels; only whole pixel"
            " values, 0 to 255, can be resized as the card says"
        )
    forms: list[Form] = ["pixels"] if whole else ["preprocessed", "pixels"] if in_range else ["preprocessed"]
    return [GoldenEvidence(golden, card, form) for form in forms]


def labelled_pictures(folder: str | Path, exclude: Iterable[str] = ()) -> list[tuple[Path, str]]:
    """Return the pictures of class folders or of a table, each with its label; raises as `find_dataset`."""
    found = find_labelled(folder, exclude=exclude)
    if found.doubt:
        raise ValueError(found.doubt)
    return [*zip(found.paths, found.labels, strict=True)]

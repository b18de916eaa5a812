"""Temperature scaling, calibration error and blockwise reading of logits.

Source: On Calibration of Modern Neural Networks, arXiv:1706.04599, sections 2 and 4.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from convnets_torch.card import Activation
from convnets_torch.networks import Network
from convnets_torch.networks.network import NO_HEAD, as_network
from convnets_torch.networks.packed import check_unpacked
from convnets_torch.weights import build, last_dense

VALUES = 1 << 20  # logits in a block: 8 MB in float64


def logit_batches(
    logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]], rows: NDArray[np.int64] | None = None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]]:
    """Yield (row numbers, logits in float64, labels) block by block, for all rows or only for `rows`.

    Raises:
        ValueError: there are no rows or fewer than two classes, labels do not fit, or outputs are not finite.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"outputs are {logits.shape} and labels {labels.shape}; give (N, classes) and (N,)")
    count, classes = logits.shape
    if count == 0 or (rows is not None and len(rows) == 0):
        raise ValueError("there are no pictures to evaluate on; give at least one")
    if classes < 2:
        raise ValueError(f"outputs have {classes} columns, but at least 2 classes are needed")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels are {labels.dtype}; give class ids, which are integers")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels go from {labels.min()} to {labels.max()}, and there are {classes} classes")
    every = np.arange(count) if rows is None else np.asarray(rows, np.int64)
    step = max(1, VALUES // classes)
    for start in range(0, len(every), step):
        numbers = every[start : start + step]
        some = slice(start, start + step) if rows is None else numbers
        values = np.asarray(logits[some], np.float64)
        if not np.isfinite(values).all():
            bad = numbers[~np.isfinite(values).all(1)][0]
            raise ValueError(f"outputs of picture {bad} are NaN or infinite: the weights are broken")
        yield numbers, values, np.asarray(labels[some], np.int64)


def check_probable(activation: Activation) -> None:
    """Raise ValueError if outputs are not probabilities, i.e. if the activation is "none"."""
    if activation == "none":
        raise ValueError("the card says that outputs are not probabilities (activation none); they only rank classes")


def log_probabilities(logits: NDArray[np.float64], activation: Activation) -> NDArray[np.float64]:
    """Return natural log probabilities (N, classes): the log-softmax of each row, or the log-sigmoid of each logit.

    >>> np.exp(log_probabilities(np.array([[0.0, 0.0]]), "softmax")).round(12).tolist()
    [[0.5, 0.5]]
    >>> log_probabilities(np.array([[-1000.0, 0.0]]), "sigmoid").round(4).tolist()
    [[-1000.0, -0.6931]]
    """
    if activation == "sigmoid":
        return -np.logaddexp(0, -logits)
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def with_temperature(network: Network, temperature: float) -> Network:
    """Return a network whose logits are divided by a temperature, by dividing the last dense layer's parameters.

    The ranking of classes, and so the error rate, does not change. Probabilities change everywhere, including heatmaps.

    Args:
        network: has a card and a head that ends in a dense layer. It is not modified; the returned network shares all
            its other parameters.
        temperature: above 0; values above 1 make predictions less confident.

    Returns:
        A network in eval mode that `save` accepts; its card records the temperature. Successive temperatures multiply.

    Raises:
        ValueError: the temperature is not finite or not above 0; the network has no card or no head, its head ends in
            another layer, or it was prepared.

    >>> import torch
    >>> from convnets_torch import load
    >>> network = load("alexnet.safetensors")
    >>> cooler, images = with_temperature(network, 2.0), torch.rand(1, 3, 227, 227)
    >>> torch.testing.assert_close(cooler(images), network(images) / 2)
    >>> cooler.card.unknown["temperature"]
    2.0
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"the temperature is {temperature}; give a number above 0")
    network = as_network(network)
    card = network.card
    if card is None:
        raise ValueError("the network has no card to record the temperature in; set network.card first")
    if network.head is None:
        raise ValueError(NO_HEAD)
    check_unpacked(network)
    last = last_dense(network)
    ending = [name for name, module in network.head.named_modules() if name and not isinstance(module, nn.Dropout)][-1]
    if last != f"head.{ending}":
        raise ValueError(
            f"the head ends in head.{ending}, not in a dense layer, so a temperature cannot be applied to it"
        )
    found = build(card.network, card.arguments)
    arrays = dict(network.state_dict())
    for name in (f"{last}.weight", f"{last}.bias"):
        if name in arrays:
            arrays[name] = (arrays[name].detach().double() / temperature).to(arrays[name])
    found.load_state_dict(arrays, assign=True)
    source = card.source
    if source is not None:
        source = replace(source, changes=(*source.changes, f"logits divided by the temperature {temperature:.6g}"))
    before = card.unknown.get("temperature", 1.0)
    unknown = {**card.unknown, "temperature": before * temperature}
    found.card = replace(card, source=source, unknown=unknown, proof=None)
    return found.eval()


BINS = 15  # as in the paper's tables
EMPTY = {"confidence": None, "accuracy": None}  # of a bin without pictures
COLDEST, HOTTEST = 1e-3, 1e3  # range in which the temperature is searched
ROUNDS = 100  # maximum iterations of L-BFGS; about ten are usual
FLAT = 1e-12  # gradient tolerance of L-BFGS on the mean loss
SEED = 0  # of the random split into halves

LogitArray = NDArray[np.floating[Any]]
LabelArray = NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class Calibration:
    """Confidence (the probability of the top class) compared with accuracy, in bins of confidence.

    Bins have equal width: bin m of M holds the pictures with a confidence in ((m - 1) / M, m / M].

    Attributes:
        counts: (bins,), number of pictures.
        confidences: (bins,), mean confidence, 0 to 1; NaN in an empty bin.
        accuracies: (bins,), accuracy, 0 to 1; NaN in an empty bin.
        adaptive: expected calibration error with the same number of equally filled bins, 0 to 1.
        nll: mean negative log-likelihood; for sigmoid, the binary terms are summed over classes.
        brier: mean squared difference from the one-hot truth, summed over classes; 0 to 2 for softmax.
        temperature: divisor of the logits.
    """

    counts: NDArray[np.int64]
    confidences: NDArray[np.float64]
    accuracies: NDArray[np.float64]
    adaptive: float
    nll: float
    brier: float
    temperature: float = 1.0

    @property
    def gaps(self) -> NDArray[np.float64]:
        """(bins,), absolute difference of accuracy and confidence, 0 to 1; 0 in an empty bin."""
        return np.nan_to_num(np.abs(self.accuracies - self.confidences), nan=0.0)

    @property
    def ece(self) -> float:
        """Expected calibration error, 0 to 1: the mean gap, weighted by the pictures in each bin (equation 3)."""
        return float(self.gaps @ self.counts / self.counts.sum())

    @property
    def largest(self) -> float:
        """Maximum calibration error, 0 to 1: the largest gap (equation 5). A single picture can determine it."""
        return float(self.gaps.max())

    @property
    def accuracy(self) -> float:
        """Accuracy over all pictures, 0 to 1."""
        return float(np.nan_to_num(self.accuracies) @ self.counts / self.counts.sum())

    @property
    def confidence(self) -> float:
        """Mean confidence over all pictures, 0 to 1."""
        return float(np.nan_to_num(self.confidences) @ self.counts / self.counts.sum())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; values of empty bins are None."""
        return {
            "ece": self.ece,
            "maximum_error": self.largest,
            "adaptive_ece": self.adaptive,
            "nll": self.nll,
            "brier": self.brier,
            "accuracy": self.accuracy,
            "confidence": self.confidence,
            "temperature": self.temperature,
            "bins": [
                {"pictures": int(count), **({"confidence": float(sure), "accuracy": float(right)} if count else EMPTY)}
                for count, sure, right in zip(self.counts, self.confidences, self.accuracies, strict=True)
            ],
        }


@dataclass(frozen=True)
class Temperature:
    """The divisor of the logits that maximises the likelihood of the labels.

    Attributes:
        value: above 1 if the network was overconfident, below 1 if it was underconfident.
        before, after: mean negative log-likelihood of the pictures it was fitted to, without and with it.
        pictures: number of pictures it was fitted to.
    """

    value: float
    before: float
    after: float
    pictures: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"value": self.value, "nll_before": self.before, "nll_after": self.after, "pictures": self.pictures}


@dataclass(frozen=True, eq=False)
class Recalibration:
    """A temperature fitted to one half of the pictures, and the calibration of the other half before and after."""

    temperature: Temperature
    before: Calibration
    after: Calibration

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {name: each.to_dict() for name, each in vars(self).items()}


def calibrate(
    logits: LogitArray,
    labels: LabelArray,
    activation: Activation = "softmax",
    *,
    temperature: float = 1.0,
    bins: int = BINS,
    rows: NDArray[np.int64] | None = None,
) -> Calibration:
    """Measure how far confidence and accuracy differ.

    Args:
        logits: (N, classes), two classes or more; may be memory-mapped.
        labels: (N,) class ids.
        activation: of the card, "softmax" or "sigmoid".
        temperature: divisor of the logits, above 0.
        bins: number of bins, both of equal width and of equal counts.
        rows: pictures to use; by default all.

    Raises:
        ValueError: outputs are not probabilities, not finite, or do not fit the labels; no pictures; no bins.

    >>> found = calibrate(np.log([[0.8, 0.2], [0.8, 0.2], [0.1, 0.9]]), np.array([0, 1, 1]))
    >>> found.counts.tolist()[11:14], round(found.accuracy, 4), round(found.ece, 4)
    ([2, 0, 1], 0.6667, 0.2333)
    """
    check_probable(activation)
    if bins < 1:
        raise ValueError(f"bins must be 1 or more, got {bins}")
    if not (0 < temperature < np.inf):
        raise ValueError(f"the temperature is {temperature}; give a number above 0")
    sure, right = [], []
    nll = brier = 0.0
    for _, values, truths in logit_batches(logits, labels, rows):
        logs = log_probabilities(values / temperature, activation)
        places = np.arange(len(truths))
        chances = np.exp(logs)
        given = values.argmax(1)
        sure.append(chances[places, given])
        right.append(given == truths)
        nll += float(_loss(values, truths, torch.tensor(1 / temperature, dtype=torch.float64), activation))
        of_truth = chances[places, truths]
        brier += float((chances**2).sum() + (1 - 2 * of_truth).sum())
    confidences, hits = np.concatenate(sure), np.concatenate(right).astype(np.float64)
    count = len(hits)
    places = np.clip(np.ceil(confidences * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(places, minlength=bins)
    sure_sums, right_sums = (np.bincount(places, each, minlength=bins) for each in (confidences, hits))
    filled = np.where(counts > 0, counts, np.nan)
    order = np.argsort(confidences, kind="stable")
    parts = np.array_split(order, min(bins, count))
    adaptive = sum(abs(float(confidences[part].sum() - hits[part].sum())) for part in parts) / count
    return Calibration(
        counts, sure_sums / filled, right_sums / filled, adaptive, nll / count, brier / count, float(temperature)
    )


def fit_temperature(
    logits: LogitArray, labels: LabelArray, activation: Activation = "softmax", *, rows: NDArray[np.int64] | None = None
) -> Temperature:
    """Fit the temperature, 0.001 to 1,000, that maximises the likelihood of the labels.

    The negative log-likelihood is convex in 1 / T, so it has one minimum, which L-BFGS finds over log T, in float64.
    The result is deterministic. A temperature does not change the ranking of classes.

    Args:
        logits, labels, activation, rows: as for `calibrate`. Evaluate the temperature on other pictures, as
            `recalibrate` does.

    Raises:
        ValueError: as for `calibrate`; or there is no optimum, because a lower temperature (nearly all predictions are
            right) or a higher one (outputs carry no information about the truth) is always better.

    >>> random = np.random.default_rng(0)
    >>> logits = random.normal(size=(4000, 3))
    >>> labels = np.array([random.choice(3, p=np.exp(row) / np.exp(row).sum()) for row in logits])
    >>> round(fit_temperature(4 * logits, labels).value, 1)
    4.0
    """
    check_probable(activation)
    count = len(labels) if rows is None else len(rows)
    with torch.inference_mode(False), torch.enable_grad():
        log = torch.zeros((), dtype=torch.float64, requires_grad=True)  # of the temperature

        def loss() -> float:
            """Return the mean loss and leave its gradient in `log.grad`."""
            log.grad, found = None, 0.0
            for _, values, truths in logit_batches(logits, labels, rows):
                part = _loss(values, truths, torch.exp(-log), activation) / count
                part.backward()  # type: ignore[no-untyped-call]
                found += part.item()
            return found

        def slope(temperature: float) -> float:
            log.detach().fill_(math.log(temperature))
            loss()
            assert log.grad is not None
            return log.grad.item()

        if slope(COLDEST) >= 0:
            raise ValueError(
                f"no temperature is the best for {count} pictures: the lower, the better, because nearly all"
                " predictions are right; fit it to pictures with some mistakes"
            )
        if slope(HOTTEST) <= 0:
            raise ValueError(
                f"no temperature is the best for {count} pictures: the higher, the better, because outputs do not"
                " predict the labels; check that labels are in the order of the card's classes"
            )
        log.detach().zero_()
        search = torch.optim.LBFGS(
            [log], max_iter=ROUNDS, tolerance_grad=FLAT, tolerance_change=0, line_search_fn="strong_wolfe"
        )
        before: float = search.step(loss)  # type: ignore[no-untyped-call]
        return Temperature(math.exp(log.item()), before, loss(), count)


def recalibrate(logits: LogitArray, labels: LabelArray, activation: Activation = "softmax") -> Recalibration:
    """Fit a temperature to a fixed random half of the pictures and evaluate it on the other half.

    Args:
        logits, labels, activation: as for `calibrate`.

    Raises:
        ValueError: as for `fit_temperature`; or there are fewer than two pictures.
    """
    if len(labels) < 2:
        raise ValueError(f"{len(labels)} pictures cannot be split into two halves; give two or more")
    order = np.random.default_rng(SEED).permutation(len(labels))
    fitted, judged = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
    found = fit_temperature(logits, labels, activation, rows=fitted)
    before = calibrate(logits, labels, activation, rows=judged)
    return Recalibration(found, before, calibrate(logits, labels, activation, temperature=found.value, rows=judged))


def _loss(values: NDArray[np.float64], truths: NDArray[np.int64], inverse: Tensor, activation: Activation) -> Tensor:
    """Summed negative log-likelihood of the logits times `inverse`, the inverse temperature."""
    outputs, places = torch.tensor(values), torch.tensor(truths)
    if activation == "sigmoid":
        one_hot = F.one_hot(places, outputs.shape[1]).double()
        return F.binary_cross_entropy_with_logits(outputs * inverse, one_hot, reduction="sum")
    outputs -= outputs.amax(1, keepdim=True)  # so that the gradient keeps its sign if nearly all predictions are right
    return F.cross_entropy(outputs * inverse, places, reduction="sum")

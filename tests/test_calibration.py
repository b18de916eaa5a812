"""Calibration against plain loops and peers, and temperatures against hidden ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from convnets_torch.evaluation.calibration import calibrate, fit_temperature, recalibrate

LEARNT = 600  # of scikit-learn's 1,797 digits are learnt from


@pytest.fixture(scope="module")
def digits():
    """(logits, labels) of digits that logistic regression has not learnt from."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    pixels, labels = pixels[order] / 16, labels[order].astype(np.int64)
    model = LogisticRegression(C=1, max_iter=300).fit(pixels[:LEARNT], labels[:LEARNT])
    return model.decision_function(pixels[LEARNT:]).astype(np.float32), labels[LEARNT:]


def drawn(logits, seed=0):
    """Labels that are as probable as the softmax says."""
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    ends = np.cumsum(shifted / shifted.sum(1, keepdims=True), 1)
    return (np.random.default_rng(seed).random((len(logits), 1)) > ends).sum(1).clip(max=logits.shape[1] - 1)


@pytest.mark.parametrize("factor", [0.2, 1, 7.3])
def test_a_hidden_factor_of_held_out_digits_is_recovered_within_5_percent(digits, factor):
    logits, labels = digits
    half = len(labels) // 2
    own = fit_temperature(logits[:half], labels[:half]).value  # what makes the regression itself as sure as it is right
    hidden = np.float32(factor / own) * logits[half:]
    found = fit_temperature(hidden, labels[half:])
    assert found.value == pytest.approx(factor, rel=0.05)
    assert found.after <= found.before


@pytest.mark.parametrize("factor", [0.2, 1, 7.3])
def test_a_hidden_factor_is_recovered_where_labels_are_drawn_from_what_logits_say(digits, factor):
    many = np.tile(digits[0], (8, 1))
    assert fit_temperature(np.float32(factor) * many, drawn(many)).value == pytest.approx(factor, rel=0.03)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_the_temperature_is_what_other_optimisers_find(digits, activation):
    logits, labels = digits
    logits = logits * 3
    found = fit_temperature(logits, labels, activation)
    values, truths = torch.from_numpy(logits).double(), torch.from_numpy(labels)

    def loss(temperature):
        if activation == "softmax":
            return functional.cross_entropy(values / temperature, truths)
        wanted = functional.one_hot(truths, 10).double()
        return functional.binary_cross_entropy_with_logits(values / temperature, wanted, reduction="none").sum(1).mean()

    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([log_temperature], max_iter=200, tolerance_change=0, line_search_fn="strong_wolfe")

    def closure():
        search.zero_grad()
        value = loss(log_temperature.exp())
        value.backward()
        return value

    search.step(closure)
    assert found.value == pytest.approx(log_temperature.exp().item(), rel=1e-5)
    assert found.before == pytest.approx(loss(1.0).item(), rel=1e-12)
    assert found.after == pytest.approx(loss(found.value).item(), rel=1e-12)
    assert found == fit_temperature(logits, labels, activation)
    from scipy.optimize import minimize_scalar

    best = minimize_scalar(lambda log: loss(np.exp(log)).item(), bounds=(-3, 5), method="bounded")
    assert found.value == pytest.approx(np.exp(best.x), rel=1e-3)


@pytest.mark.parametrize("start", [0.002, 600.0])
def test_the_search_ends_far_from_where_it_begins(digits, start):
    logits, labels = digits
    near = fit_temperature(logits, labels).value
    assert fit_temperature(logits.astype(np.float64) * start / near, labels).value == pytest.approx(start, rel=1e-6)


def test_where_no_temperature_is_the_best_that_is_said():
    logits = np.eye(4)[[0, 1, 2, 3]]
    with pytest.raises(ValueError, match="no temperature is the best for 4 pictures: the lower, the better"):
        fit_temperature(logits, np.arange(4))
    with pytest.raises(ValueError, match="the higher, the better, because outputs do not predict"):
        fit_temperature(logits, np.array([1, 2, 3, 0]))
    with pytest.raises(ValueError, match="the higher, the better"):
        fit_temperature(np.tile([0.0, 1.0, 0.0], (4, 1)), np.array([0, 2, 0, 2]))


@pytest.mark.parametrize("classes", [2, 3, 10, 200])
@pytest.mark.parametrize("scale", [0.1, 1, 30, 1e6])
def test_answers_that_are_all_right_have_no_best_temperature(classes, scale):
    """At the lowest one the slope is nearly 0, and rounding must not turn its sign."""
    random = np.random.default_rng(0)
    labels = random.integers(classes, size=400)
    logits = scale * (random.uniform(0, 1, size=(400, classes)) + 2 * np.eye(classes)[labels])
    with pytest.raises(ValueError, match="the lower, the better, because nearly all predictions are right"):
        fit_temperature(logits, labels)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.tile([20.0, 0.0], (1000, 1)), np.arange(1000) == 0),  # one wrong answer of many
        (np.tile([200.0, 0.0], (1000, 1)), np.arange(1000) == 0),
        (np.tile([1e5, 0.0], (3, 1)), np.array([0, 0, 1])),
    ],
)
def test_two_classes_have_the_temperature_that_a_formula_gives(logits, labels):
    labels = labels.astype(np.int64)
    odds = (labels == 0).sum() / (labels == 1).sum()
    wanted = (logits[0, 0] - logits[0, 1]) / np.log(odds)
    if wanted <= 1000:
        assert fit_temperature(logits, labels).value == pytest.approx(wanted, rel=1e-8)
        with torch.inference_mode():
            assert fit_temperature(logits, labels).value == pytest.approx(wanted, rel=1e-8)
    else:
        with pytest.raises(ValueError, match="the higher, the better"):
            fit_temperature(logits, labels)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_all_figures_are_those_of_plain_loops(digits, activation, temperature):
    logits, labels = digits
    found = calibrate(logits, labels, activation, temperature=temperature, bins=7)
    values = torch.from_numpy(logits).double() / temperature
    chances = (values.softmax(1) if activation == "softmax" else values.sigmoid()).numpy()
    pictures = [(row.max(), int(row.argmax() == label)) for row, label in zip(chances, labels, strict=True)]
    ece = 0.0
    for number in range(7):
        inside = [picture for picture in pictures if number / 7 < picture[0] <= (number + 1) / 7]
        assert found.counts[number] == len(inside)
        if inside:
            confidence, accuracy = np.mean(inside, axis=0)
            assert found.confidences[number] == pytest.approx(confidence)
            assert found.accuracies[number] == pytest.approx(accuracy)
            ece += len(inside) / len(pictures) * abs(confidence - accuracy)
        else:
            assert np.isnan(found.confidences[number])
    assert found.ece == pytest.approx(ece)
    parts = np.array_split(sorted(pictures, key=lambda picture: picture[0]), 7)
    gaps = [len(part) * abs(np.subtract(*part.mean(0))) for part in parts]
    assert found.adaptive == pytest.approx(
        sum(gaps) / len(pictures), abs=1e-3
    )  # of equal confidences the order is free
    wanted = np.eye(10)[labels]
    assert found.brier == pytest.approx(((chances - wanted) ** 2).sum(1).mean())
    binary = -(wanted * np.log(chances) + (1 - wanted) * np.log1p(-chances)).sum(1).mean()
    assert found.nll == pytest.approx(-np.log(chances[wanted == 1]).mean() if activation == "softmax" else binary)
    assert found.accuracy == pytest.approx(np.mean([right for _, right in pictures]))


def test_a_confidence_on_an_edge_belongs_to_the_bin_below_it():
    found = calibrate(np.zeros((3, 2)), np.array([0, 0, 1]), bins=2)  # each 0.5
    assert found.counts.tolist() == [3, 0]
    assert found.ece == pytest.approx(2 / 3 - 0.5)
    assert found.to_dict()["bins"][1] == {"pictures": 0, "confidence": None, "accuracy": None}


def test_a_temperature_is_fitted_to_one_half_and_judged_by_the_other(digits):
    logits, labels = digits
    found = recalibrate(9 * logits, labels)
    assert found.temperature.pictures + found.before.counts.sum() == len(labels)
    assert found.before.counts.sum() == found.after.counts.sum()
    assert found.after.temperature == found.temperature.value
    assert found.after.accuracy == found.before.accuracy
    assert found.after.nll < found.before.nll / 2
    assert found.to_dict() == recalibrate(9 * logits, labels).to_dict()


def test_outputs_are_read_in_blocks_from_a_disk(digits, tmp_path, monkeypatch):
    logits, labels = digits
    whole = calibrate(logits, labels).to_dict()
    np.save(tmp_path / "logits.npy", logits)
    mapped = np.load(tmp_path / "logits.npy", mmap_mode="r")
    monkeypatch.setattr("convnets_torch.evaluation.calibration.VALUES", 64)  # six rows
    parts = calibrate(mapped, labels).to_dict()
    assert parts["bins"] == whole["bins"]
    assert parts["nll"] == pytest.approx(whole["nll"], rel=1e-12)
    assert fit_temperature(mapped, labels).value == pytest.approx(fit_temperature(logits, labels).value, rel=1e-9)


def test_what_cannot_be_judged_is_refused_in_one_sentence():
    two = np.zeros((2, 2))
    with pytest.raises(ValueError, match=r"outputs are \(2, 2\) and labels \(3,\)"):
        calibrate(two, np.array([0, 1, 0]))
    with pytest.raises(ValueError, match="labels go from 0 to 2, and there are 2 classes"):
        calibrate(two, np.array([0, 2]))
    with pytest.raises(ValueError, match="labels are float64"):
        calibrate(two, np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match="outputs of picture 1 are NaN or infinite"):
        calibrate(np.array([[0, 1], [0, np.nan]]), np.array([0, 1]))
    with pytest.raises(ValueError, match="no pictures"):
        calibrate(np.zeros((0, 2)), np.zeros(0, np.int64))
    with pytest.raises(ValueError, match="1 columns, but at least 2 classes"):
        fit_temperature(np.zeros((2, 1)), np.array([0, 0]))
    with pytest.raises(ValueError, match=r"activation none"):
        fit_temperature(two, np.array([0, 1]), "none")
    with pytest.raises(ValueError, match="temperature is 0"):
        calibrate(two, np.array([0, 1]), temperature=0)
    with pytest.raises(ValueError, match="bins must be 1 or more, got 0"):
        calibrate(two, np.array([0, 1]), bins=0)
    with pytest.raises(ValueError, match="1 pictures cannot be split into two halves"):
        recalibrate(two[:1], np.array([0]))

"""Precision, recall, F1 and AUC against scikit-learn, and in what `evaluate` gives."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

from convnets_torch.evaluation.metrics import METRICS, class_means, measure_classes
from tests.test_evaluation import narrow_alexnet, write_pictures


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
@pytest.mark.parametrize("absent", [(), (2, 6)])
def test_figures_are_those_of_scikit_learn(activation, absent, monkeypatch):
    monkeypatch.setattr("convnets_torch.evaluation.calibration.VALUES", 40)  # some rows a block
    monkeypatch.setattr("convnets_torch.evaluation.metrics.VALUES", 1)
    monkeypatch.setattr("convnets_torch.evaluation.metrics.LEAST_CLASSES", 3)  # and some columns
    random = np.random.default_rng(3)
    labels = random.choice([each for each in range(9) if each not in absent], 150)
    logits = random.normal(size=(150, 9)).astype(np.float32)
    logits[np.arange(150), labels] += 1
    logits[:, 4] = -9  # is never given
    logits[::3] = logits[0]  # ties
    given = logits.argmax(1)
    scores = torch.from_numpy(logits).double()
    if activation != "none":
        scores = scores.softmax(1) if activation == "softmax" else scores.sigmoid()
    found = measure_classes(logits, labels, given, activation)
    present = [each.class_id for each in found]
    assert present == sorted(set(labels.tolist()))
    values = precision_recall_fscore_support(labels, given, labels=present, zero_division=0)
    for each, precision, recall, f1, count in zip(found, *values, strict=True):
        assert (each.precision, each.recall, each.f1) == pytest.approx((precision, recall, f1))
        assert each.pictures == count
        assert each.auc == pytest.approx(
            roc_auc_score(labels == each.class_id, scores[:, each.class_id].round(decimals=12))
        )
    means = class_means(found)
    for kind in ("macro", "weighted"):
        wanted = precision_recall_fscore_support(labels, given, labels=present, average=kind, zero_division=0)
        assert [means[kind][name] for name in METRICS[:3]] == pytest.approx(wanted[:3])
    if activation == "softmax" and not absent:
        for kind in ("macro", "weighted"):
            wanted = roc_auc_score(labels, scores.round(decimals=12), average=kind, multi_class="ovr")
            assert means[kind]["auc"] == pytest.approx(wanted, abs=1e-9)


def test_one_class_alone_has_no_area():
    logits = np.array([[1.0, 0.0], [0.0, 1.0]])
    [only] = measure_classes(logits, np.array([0, 0]), logits.argmax(1), "softmax")
    assert (only.precision, only.recall, only.auc) == (1, 0.5, None)
    assert class_means([only])["macro"]["auc"] is None


def test_the_command_gives_them_everywhere(command, tmp_path):
    from convnets_torch.weights import save

    pictures = write_pictures(tmp_path / "pictures")
    save(narrow_alexnet(), tmp_path / "narrow.safetensors")
    arguments = (tmp_path / "narrow.safetensors", pictures / "classes")
    _, out, _ = command("evaluate", *arguments, "-o", tmp_path / "report")
    figures = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    means = figures["means_of_classes"]["macro"]
    assert means["recall"] == pytest.approx(1 - figures["balanced_error"])
    assert ["macro", "F1", f"{means['f1']:.4f}"] in [line.split() for line in out.splitlines()]
    with (tmp_path / "report" / "classes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == list("abcdefghi")  # j has no pictures
    for row, entry in zip(rows, figures["by_class"], strict=True):
        assert int(row["pictures"]) == entry["pictures"]
        assert [float(row[name]) for name in METRICS] == pytest.approx([entry[name] for name in METRICS], rel=1e-6)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "1 class of the network has no pictures here." in page
    assert "Means are over classes with pictures." in page
    assert f">{means['auc']:.3f}<" in page

"""What is said of an evaluation, against its own figures, and the page of a real one."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from convnets_torch.card import Card
from convnets_torch.training.calibration import calibrate, fit_temperature
from convnets_torch.training.error_rates import rank
from convnets_torch.training.evaluation import Evaluation, evaluate
from convnets_torch.training.evaluation_report import write_report
from convnets_torch.training.ground_truth import find_truth
from convnets_torch.training.judgement import judge, report_of
from convnets_torch.training.mistakes import find_mistakes
from tests.reference.pictures import picture


@pytest.fixture(scope="module")
def evaluated(vgg, tmp_path_factory) -> Evaluation:
    """Twelve pictures of three of ten classes, one of them broken, by a narrow VGG16."""
    folder = tmp_path_factory.mktemp("judgement")
    for number in range(12):
        path = folder / "abd"[number % 3] / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture(number, 40, 60)).save(path)
    path.write_text("no picture")
    return evaluate(vgg, find_truth(vgg.card, folder))


def with_card(evaluated, **changes):
    return replace(evaluated, card=replace(evaluated.card, **changes))


def test_all_is_of_the_evaluation_s_own_outputs(evaluated, tmp_path):
    found = judge(evaluated, temperature=True, most=3)
    logits, labels = np.array(evaluated.logits), evaluated.labels
    assert found.calibration.to_dict() == calibrate(logits, labels).to_dict()
    paths = [str(path) for path in evaluated.paths]
    assert found.mistakes == find_mistakes(logits, labels, paths, evaluated.card, most=3)
    assert found.mistakes.count == evaluated.errors[0].wrong
    assert found.severity is None
    assert sum(pair.count for pair in judge(evaluated).pairs) == evaluated.errors[0].wrong
    said = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert said["mistakes"]["count"] == evaluated.errors[0].wrong
    assert said["severity"] is None
    report = report_of(found, "Ten classes", [("Command", "evaluate")])
    assert [row.pictures for row in report.classes] == [4, 4, 0, 3, 0, 0, 0, 0, 0, 0]
    assert sum(row.wrong for row in report.classes) == evaluated.errors[0].wrong
    assert sum(row.wrong_of_best or 0 for row in report.classes) == evaluated.errors[1].wrong
    write_report(report, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "1 file could not be used" in text
    assert "11 of 3 classes" in text


def test_a_temperature_that_is_not_there_is_a_remark(evaluated):
    perfect = replace(evaluated, logits=np.eye(10, dtype=np.float32)[evaluated.labels])
    with pytest.raises(ValueError, match="no temperature"):
        fit_temperature(perfect.logits, perfect.labels)
    found = judge(perfect, temperature=True)
    assert found.recalibration is None
    assert "no temperature is the best" in found.remarks[0]
    assert any("no temperature" in value for _, value in report_of(found, "", []).facts)


def test_outputs_that_are_no_probabilities_are_only_ranked(evaluated, tmp_path):
    found = judge(with_card(evaluated, activation="none"), temperature=True)
    assert (found.calibration, found.recalibration, found.mistakes) == (None, None, None)
    assert found.pairs == judge(evaluated).pairs
    assert "no probabilities" in found.remarks[0]
    write_report(report_of(found, "Ten classes", []), tmp_path / "report.html")
    assert "Reliability" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_thousand_classes_have_a_severity_and_the_original_s_errors(evaluated, tmp_path):
    card = Card("vgg16", {"classes": 1000}, evaluated.card.preprocessing, "imagenet-1k")
    logits = np.zeros((11, 1000), np.float32)
    logits[:, 281] = 2
    labels = np.array([281] * 5 + [282] * 5 + [0])
    cats = replace(evaluated, card=card, logits=logits, labels=labels, ranking=rank(logits, labels))
    found = judge(cats)
    assert found.severity.mistakes == 6
    assert found.pairs[0].ancestor == "domestic cat"
    report = report_of(found, "Cats", [])
    assert [row.original for row in report.errors] == [0.3293, 0.1239, 0.0777]
    assert report.classes[282].taken_for == "tabby, tabby cat (5)"
    write_report(report, tmp_path / "report.html")
    assert "both: domestic cat, 1 step up" in (tmp_path / "report.html").read_text(encoding="utf-8")

"""The command `evaluate`: its table, its report, and what it refuses."""

from __future__ import annotations

import json
import shutil
import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from convnets_torch.card import Card, read_card
from convnets_torch.evaluation.report import CHARTS, FILES
from convnets_torch.images.preprocessing import preset
from convnets_torch.inference.pipeline import predict
from convnets_torch.networks import AlexNet
from convnets_torch.weights import load, save
from convnets_torch.wordnet import synsets
from tests.test_evaluation import narrow_alexnet, write_pictures

PHOTOGRAPHS = {"chelsea.png": 285, "coffee.png": 967, "rocket.jpg": 657, "motorcycle_left.png": 670}  # what they show


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "narrow.safetensors"
    save(narrow_alexnet(), path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("evaluation"), 40)


def test_errors_are_printed_and_reported(command, weights, pictures, tmp_path):
    report = tmp_path / "report"
    options = (
        "-o",
        report,
        "--temperature",
        "--save-temperature",
        tmp_path / "calibrated.safetensors",
        "--batch-size",
        8,
    )
    code, out, error = command("evaluate", weights, pictures / "classes", *options)
    assert code == 1  # for the picture that is none
    assert "09.png is not a picture that Pillow can read" in error
    assert "1 of the 10 classes have no pictures (j)" in error
    figures = json.loads((report / "evaluation.json").read_text())
    assert sorted(path.name for path in report.iterdir()) == sorted(FILES)
    for path in report.glob("*.png"):
        with Image.open(path) as image:
            image.load()
    first = figures["errors"]["top-1"]
    lines = out.splitlines()
    assert lines[0].split() == ["error", "share", "95", "%,", "Wilson", "wrong"]
    assert lines[1].split()[:-1] == (
        f"top-1 {first['error']:.2%} {first['low']:.2%} to {first['high']:.2%} {first['wrong']} of".split()
    )
    assert lines[2].startswith("top-5 ")
    assert ["could", "not", "be", "read", "1"] in [line.split() for line in lines]
    assert "pictures a second" in out
    page = (report / "report.html").read_text()
    assert "09.png" in page
    assert "no temperature was fitted" in page
    assert "original: stretch to 256 pixels (bilinear), centre 227 pixels, RGB, times 1, less (123.68, " in page
    assert f"convnets-torch evaluate {weights} {pictures}/classes -o {report} --temperature" in page
    assert f"{first['error']:.2%}".replace("%", "") in page
    assert figures["mistakes"]["count"] == first["wrong"]
    assert sum(each["pictures"] for each in figures["by_class"]) == 39
    assert figures["recalibration"] is None
    assert (
        "no temperature was fitted: no temperature is the best for 19 pictures" in error
    )  # these weights know nothing
    assert not (tmp_path / "calibrated.safetensors").exists()


def test_without_matplotlib_a_report_has_all_but_its_charts(command, weights, pictures, tmp_path, monkeypatch):
    report = tmp_path / "report"
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    _, out, error = command("evaluate", weights, pictures / "classes", "-o", report)
    assert out.startswith("error")
    said = [line for line in error.splitlines() if "are left out" in line]
    assert len(said) == 1
    assert said[0].startswith(
        "convnets-torch: confusion.svg, confusion.png, reliability.png are left out: a chart needs"
    )
    assert said[0].endswith("pip install 'convnets-torch[plots]'")
    assert {path.name for path in report.iterdir()} == {*FILES} - {*CHARTS}
    page = (report / "report.html").read_text()
    assert page.count("A chart is missing here: a chart needs matplotlib") == 2
    assert "Most confused pairs" in page
    assert "Expected calibration error" in page


def test_a_temperature_goes_into_the_weights(command, weights, pictures, tmp_path):
    paths = sorted((pictures / "flat").glob("*.png"))
    answers = [row.logits for row in predict(load(weights), paths)]
    labels = [0 if each is None else (int(each.argmax()) + (place % 3 == 0)) % 10 for place, each in enumerate(answers)]
    (tmp_path / "truth.txt").write_text(
        "\n".join(f"{path.name} {'abcdefghij'[label]}" for path, label in zip(paths, labels, strict=True))
    )
    output = tmp_path / "calibrated.safetensors"
    truth = ("--truth", tmp_path / "truth.txt")
    code, out, error = command("evaluate", weights, pictures / "flat", *truth, "--save-temperature", output, "--json")
    assert code == 1  # for the picture that is none
    found = json.loads(out)["recalibration"]
    value = found["temperature"]["value"]
    assert value != 1
    assert read_card(output).unknown["temperature"] == value
    assert f"the logits of {weights} divided by {value:.4g}" in error
    before, after = (
        np.stack([row.logits.numpy() for row in predict(load(path), paths) if row.logits is not None])
        for path in (weights, output)
    )
    np.testing.assert_allclose(after, before / value, rtol=1e-4, atol=1e-5)
    _, out, _ = command("evaluate", output, pictures / "flat", *truth, "--temperature", "--json")
    again = json.loads(out)["recalibration"]
    assert again["temperature"]["value"] == pytest.approx(1, abs=1e-3)
    assert again["before"]["nll"] == pytest.approx(found["after"]["nll"], rel=1e-3)


def test_an_interrupted_run_goes_on(command, weights, pictures, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    arguments = (weights, pictures / "flat", "--truth", pictures / "truth.txt", "--batch-size", 4)
    _, whole, _ = command("evaluate", *arguments, "--json")
    with monkeypatch.context() as patch:
        patch.setattr("convnets_torch.evaluation.evaluate.PART", 4)
        patch.setattr("convnets_torch.evaluation.evaluate.rank", interrupt)  # all outputs are there, no figures yet
        code, out, error = command("evaluate", *arguments, "--resume-folder", tmp_path / "outputs")
    assert (code, out) == (130, "")
    assert f"nothing was reported; the same command goes on from {tmp_path / 'outputs'}" in error
    code, out, _ = command("evaluate", *arguments, "--resume-folder", tmp_path / "outputs", "--json")
    assert code == 1
    figures, wanted = json.loads(out), json.loads(whole)
    assert (figures.pop("running")["computed"], wanted.pop("running")["computed"]) == (0, 40)
    assert figures == wanted


def test_wnid_folders_and_a_flat_folder_with_ids_give_the_same_for_a_trained_network(
    command, lite_weights, photographs, tmp_path
):
    (tmp_path / "flat").mkdir()
    lines, table = [], []
    for number, (name, class_id) in enumerate(PHOTOGRAPHS.items(), start=1):
        folder = tmp_path / "wnids" / synsets.wnid(class_id)
        folder.mkdir(parents=True)
        shutil.copy(photographs / name, folder)
        shutil.copy(photographs / name, tmp_path / "flat")
        lines.append(f"{name},{number}\n")
        table.append(f"{number} {synsets.wnid(class_id)}\n")
    (tmp_path / "truth.csv").write_text("".join(lines))
    (tmp_path / "map.txt").write_text("".join(table))
    code, out, error = command("evaluate", lite_weights, tmp_path / "wnids", "--json", "-o", tmp_path / "report")
    assert code == 0
    assert "996 of the 1000 classes have no pictures" in error
    first = json.loads(out)
    truth = ("--truth", tmp_path / "truth.csv")
    code, out, error = command("evaluate", lite_weights, tmp_path / "flat", *truth)
    assert code == 1
    assert "the labels are numbers from 1 to 4, and without a 0" in error
    code, out, _ = command(
        "evaluate", lite_weights, tmp_path / "flat", *truth, "--id-table", tmp_path / "map.txt", "--json"
    )
    second = json.loads(out)
    assert first["errors"] == second["errors"]
    assert sorted(first["confusions"]) == sorted(second["confusions"])
    assert first["severity"]["mean_height_of_best"] == second["severity"]["mean_height_of_best"]
    assert first["errors"]["top-5"]["wrong"] <= 1  # it is a trained network
    assert first["published"] is None
    assert "Confusions of 1000 classes" in (tmp_path / "report" / "report.html").read_text()


def test_the_originals_figures_stand_beside(command, pictures, tmp_path):
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"classes": 1000, "widths": (2, 2, 2, 2, 2), "hidden": (4, 4)}
    network = AlexNet(**arguments).eval()
    network.card = Card("alexnet", arguments, preset("alexnet"), "imagenet-1k")
    save(network, tmp_path / "alexnet.safetensors")
    for class_id, name in ((3, "00.png"), (900, "01.png")):
        (tmp_path / "val" / synsets.wnid(class_id)).mkdir(parents=True)
        shutil.copy(pictures / "flat" / name, tmp_path / "val" / synsets.wnid(class_id))
    code, out, _ = command("evaluate", tmp_path / "alexnet.safetensors", tmp_path / "val", "-o", tmp_path / "report")
    assert code == 0
    heading, *rows = (line.split() for line in out.splitlines()[:4])
    assert heading[-1] == "original"
    assert [(row[0], row[-1]) for row in rows] == [("top-1", "42.94%"), ("top-5", "20.09%"), ("top-10", "13.84%")]
    assert out.endswith("original: convnets-keras' README, Performances on ImageNet\n")
    assert json.loads((tmp_path / "report" / "evaluation.json").read_text())["published"]["errors"]["top-1"] == 0.4294
    page = (tmp_path / "report" / "report.html").read_text()
    assert "13.84%" in page
    assert "Performances on ImageNet" in page


def test_what_cannot_be_is_refused_before_any_work(command, weights, pictures, tmp_path):
    classes = pictures / "classes"
    for arguments, code, words in [
        ((classes, "--save-temperature", tmp_path / "a.h5"), 2, "unknown ending"),
        ((classes, "--save-temperature", tmp_path / "a.safetensors", "--crops", "ten"), 2, "averages several outputs"),
        ((classes, "--save-temperature", weights), 1, "would overwrite the input weights"),
        ((classes, "-o", classes / "report"), 1, "where it would be taken for a class; name a folder outside"),
        (
            (classes, "--resume-folder", classes / "outputs"),
            1,
            "where it would be taken for a class; name a folder outside",
        ),
        ((classes, "--resume-folder", pictures / "truth.txt"), 1, "is not a folder; name one for the outputs"),
        ((classes, "-o", pictures / "truth.txt"), 1, "is not a folder; name one for the report"),
        ((weights,), 1, "is not a folder, and no table"),
        ((pictures / "flat",), 1, "has no sub-folders, so nothing says which class"),
        ((classes, "--id-table", tmp_path / "none.txt"), 1, "none.txt does not exist; name a file"),
    ]:
        found, out, error = command("evaluate", weights, *arguments)
        assert (found, out) == (code, "")
        assert words in " ".join(error.replace("│", " ").split())
    assert not (classes / "report").exists()

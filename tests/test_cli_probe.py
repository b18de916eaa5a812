"""The command `probe`: figures, reports, weights to classify with, and what it refuses."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
from PIL import Image

from convnets_torch.card import read_card
from convnets_torch.weights import load
from tests.reference.digits import write_digits

REPORT = ["confusion.png", "curve.png", "distances.png", "report.json", "similarities.png"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve pictures of each of three digits, and one file that is no picture."""
    folder = tmp_path_factory.mktemp("probe")
    write_digits(folder / "digits", (0, 3, 7), 12)
    (folder / "digits" / "3" / "bad.png").write_text("no picture")
    return folder / "digits"


def test_a_folder_of_classes_becomes_figures_pictures_and_weights(command, cache, lite_weights, folder, tmp_path):
    output, report = tmp_path / "mine.safetensors", tmp_path / "report"
    options = ["--folds", 3, "-o", output, "--report", report]
    code, out, error = command("probe", lite_weights, folder, *options, "--choose", "svm")
    assert code == 1  # for the picture that is none
    assert "bad.png is not a picture that Pillow can read" in error
    assert "36 vectors of 1280 values, 36 of them computed, 0 from the cache; 1 pictures could not be used" in error
    accuracies, curve = out.split("\n\n")
    assert [line.rsplit("  ", 1)[1] for line in accuracies.splitlines()[:3]] == ["knn", "svm", "logistic"]
    assert accuracies.splitlines()[3].startswith("0.333 ")
    assert [line.split()[0] for line in curve.splitlines()] == ["images", "5"]
    assert sorted(path.name for path in report.iterdir()) == REPORT
    for name in REPORT:
        if name.endswith(".png"):
            with Image.open(report / name) as image:
                image.load()
    code, out, error = command("probe", lite_weights, folder, *options, "--json")
    assert "36 vectors of 1280 values, 0 of them computed, 36 from the cache" in error
    figures = json.loads(out)
    assert figures["classes"] == {"0": 12, "3": 12, "7": 12}
    assert list(figures["failed"]) == [str(folder / "3" / "bad.png")]
    assert figures["chosen"] == max(("logistic", "svm"), key=lambda kind: figures["accuracy"][kind]["mean"])
    assert sum(map(sum, figures["confusion"]["knn"])) == 36
    assert len(figures["accuracy"]["svm"]["folds"]) == 3
    assert accuracies.startswith(
        f"{figures['accuracy']['knn']['mean']:.3f} +/- {figures['accuracy']['knn']['spread']:.3f}"
    )
    written = json.loads((report / "report.json").read_text())
    assert {key: written[key] for key in figures} == figures
    assert sum(written["distances"]["within"]["counts"]) == 3 * 12 * 11 / 2
    card = read_card(output)
    assert (card.class_names, card.unknown["probe"]["pictures"]) == (("0", "3", "7"), 36)
    assert card.unknown["probe"]["accuracy"] == figures["accuracy"][figures["chosen"]]["mean"]
    code, out, _ = command("classify", output, folder / "7", "--json")
    predictions = [json.loads(line)["predictions"] for line in out.splitlines()]
    assert (code, len(predictions), len(predictions[0])) == (0, 12, 3)
    assert sum(each[0]["words"] == "7" for each in predictions) >= 11
    asked = ["--target", "7", "--longest-side", 300, "-o", tmp_path / "map.png"]
    code, _, _ = command("heatmap", output, min((folder / "7").iterdir()), *asked)
    assert (code, (tmp_path / "map.png").is_file()) == (0, True)


def test_without_matplotlib_a_report_has_its_numbers(command, cache, lite_weights, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, error = command("probe", lite_weights, folder, "--folds", 3, "--report", tmp_path / "report")
    assert (code, out.count("+/-")) == (1, 6)  # the code is of the picture that is none
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["report.json"]
    assert "curve.png, confusion.png, distances.png, similarities.png are left out: a chart needs matplotlib" in error


def test_what_is_misused_is_said_before_any_work(command, cache, lite_weights, folder, tmp_path):
    output = tmp_path / "mine.safetensors"
    for options, message in (
        (["-o", output, "--choose", "knn"], "k nearest neighbours cannot be written as a layer"),
        (["--choose", "svm"], "--choose applies to -o and --report"),
        (["-o", tmp_path / "mine.pth"], "weights are written as .safetensors"),
        (["--folds", 1], "--folds"),
    ):
        code, _, error = command("probe", lite_weights, folder, *options)
        assert code == 2
        assert message in " ".join(error.replace("│", " ").split())
    assert not cache.exists()


def test_what_cannot_be_done_is_one_line(command, cache, lite_weights, folder, tmp_path, monkeypatch):
    few = tmp_path / "few"
    shutil.copytree(folder / "0", few / "many")
    shutil.copytree(folder / "3", few / "few")
    for path in sorted((few / "few").iterdir())[3:]:
        path.unlink()
    (tmp_path / "loose").mkdir()
    shutil.copytree(folder / "0", tmp_path / "alone" / "0")
    output = tmp_path / "mine.safetensors"
    for arguments, message in (
        (
            [few],
            "1 of 2 classes have fewer usable pictures (few: 3) than the 5 folds, so nothing can be told apart",
        ),
        ([tmp_path / "loose"], "has no sub-folders"),
        ([tmp_path / "alone"], "has only one class (0)"),
        ([tmp_path / "none"], "does not exist; name a folder with a sub-folder for each class"),
        ([folder, "-o", tmp_path / "none" / "x.safetensors"], "create it first"),
        ([folder, "-o", lite_weights], "would overwrite the input weights"),
        ([folder, "--report", lite_weights], "is not a folder"),
    ):
        code, out, error = command("probe", lite_weights, *arguments)
        assert (code, out) == (1, "")
        assert message in error.splitlines()[-1]
        assert len(error.splitlines()) <= 1
    (few / "few" / "bad.png").write_text("no picture")
    (few / "few" / "worse.png").write_text("none either")
    code, _, error = command("probe", lite_weights, few, "-o", output)
    assert code == 1
    assert "(few: 3) than the 5 folds" in error.splitlines()[-1]
    assert not output.exists()
    monkeypatch.setitem(sys.modules, "sklearn", None)
    code, _, error = command("probe", lite_weights, folder)
    assert code == 1
    assert error.endswith("pip install 'convnets-torch[probes]'")
    assert load(lite_weights).card.classes == 1000

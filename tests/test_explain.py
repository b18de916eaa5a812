"""The page that explains what a network says of a picture."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convnets_torch import classify, gradcam_targets, heatmap_targets, load
from convnets_torch.card import Card
from convnets_torch.explain.activations import layer_names
from convnets_torch.explain.page import explain, five_layers
from convnets_torch.images.preprocessing import preset
from tests.conftest import NARROW


class Reader(HTMLParser):
    """The words of a page, and what it would fetch or run."""

    def __init__(self):
        super().__init__()
        self.words, self.sources, self.tags = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.words.append(data.strip())


def read(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


@pytest.fixture(scope="module")
def explanation(lite_weights, photographs):
    return explain(load(lite_weights), photographs / "coffee.png")


def test_the_parts_are_those_of_the_functions(explanation, lite_weights, photographs):
    network, path = load(lite_weights), photographs / "coffee.png"
    assert explanation.predictions == classify(network, [path])[0]
    ids = [entry.class_id for entry in explanation.predictions]
    for found, wanted in zip(explanation.heatmaps, heatmap_targets(network, path, ids), strict=True):
        np.testing.assert_array_equal(found.values, wanted.values)
    for cam, again in zip(explanation.cams, gradcam_targets(network, path, ids), strict=True):
        np.testing.assert_array_equal(cam.values, again.values)


def test_the_page_holds_everything_and_asks_for_nothing(explanation, tmp_path):
    explanation.save(tmp_path / "coffee.html")
    reader = read(tmp_path / "coffee.html")
    assert "script" not in reader.tags
    assert len(reader.sources) == 1 + 2 * 5 + 5  # the picture, two of each class, five layers
    assert all(re.match(r"data:image/(jpeg|png);base64,", source) for source in reader.sources)
    words = " ".join(reader.words)
    for entry in explanation.predictions:
        assert entry.words in words
        assert f"{entry.probability:.1%}" in words
    for grid in explanation.grids:
        assert grid.layer in words


def test_five_layers_go_from_the_first_to_the_last(narrow):
    names = five_layers(narrow)
    order = [layer.name for layer in layer_names(narrow)]
    assert len(names) == 5
    assert sorted(names, key=order.index) == names
    assert all(name.startswith("features.") for name in names)


@pytest.mark.filterwarnings("ignore::convnets_torch.explain.gradcam.CamWarning")  # weights are random
def test_words_cannot_become_markup(tmp_path):
    torch.manual_seed(0)
    network = NARROW["vgg16"]().eval()
    names = tuple(f"<script>alert({number})</script>" for number in range(10))
    network.card = Card("vgg16", {"classes": 10}, preset("vgg16"), names, "softmax")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (230, 240, 3), np.uint8)).save(tmp_path / "<b>.png")
    explain(network, tmp_path / "<b>.png", top=3).save(tmp_path / "page.html")
    reader = read(tmp_path / "page.html")
    assert not {"script", "b"} & set(reader.tags)
    assert "<b>.png" in " ".join(reader.words)


def test_the_command_writes_the_page_and_prints_the_classes(command, lite_weights, photographs, tmp_path):
    page = tmp_path / "cat.html"
    arguments = ("explain", lite_weights, photographs / "chelsea.png", "-o", page, "--top", 2, "--layer", "block1")
    code, out, _ = command(*arguments, "--method", "layercam")
    assert code == 0
    assert [line.split()[1] for line in out.splitlines()] == ["n02123159", "n02124075"]
    reader = read(page)
    assert len(reader.sources) == 1 + 2 * 2 + 1
    assert "LayerCAM" in " ".join(reader.words)


def test_what_cannot_be_explained_is_one_sentence(command, lite_weights, photographs, tmp_path):
    picture = photographs / "coffee.png"
    code, _, said = command("explain", lite_weights, picture, "-o", tmp_path / "page.png")
    assert (code, said.count("\n")) == (1, 0)
    assert "an explanation can be written as .html or .htm" in said
    code, _, said = command("explain", lite_weights, picture, "-o", tmp_path / "page.html", "--layer", "block99")
    assert code == 1
    assert "has no layer 'block99'; did you mean" in said
    assert not list(tmp_path.iterdir())


def test_the_code_of_the_page_on_explaining_runs(cache, lite_weights, photographs, tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parent.parent / "docs" / "explain.md").read_text(encoding="utf-8")
    for name in ("coffee.png", "chelsea.png"):
        shutil.copy(photographs / name, tmp_path)
    cache.mkdir()
    shutil.copy(lite_weights, cache / "efficientnet_lite0.safetensors")
    monkeypatch.chdir(tmp_path)
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(code, "docs/explain.md", "exec"), {})
    assert (tmp_path / "coffee-maps.png").is_file()
    assert "features.block1 (1, 24, 56, 56)" in capsys.readouterr().out

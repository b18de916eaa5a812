"""Networks whose feature map has a single cell, and networks without a head that end with a pooling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from converters import convert
from convnets_torch import classify, embed, gradcam, heatmap, load
from tests.reference.keras3_graphs import NARROW
from tests.test_graph_conversion import check, run_keras

pytestmark = pytest.mark.slow  # Keras writes the models


@pytest.fixture(scope="module")
def narrow(filled) -> Path:
    return filled("keras3_graph_narrow", run_keras("narrow"))


@pytest.mark.parametrize("name", NARROW)
def test_they_answer_as_in_keras(narrow, name, tmp_path):
    network, report = check(narrow / f"{name}.keras", tmp_path, inside=False, network=NARROW[name][0])
    cells = network.features(torch.zeros(1, 3, *network.size))
    assert tuple(cells.shape[2:]) == ((1, 1) if "one_cell" in name else (2, 3))
    assert any("is left out" in choice for choice in report.choices) == (network.head is None) == bool(NARROW[name][2])


@pytest.mark.filterwarnings("ignore::convnets_torch.explain.gradcam.CamWarning")  # weights are random
@pytest.mark.parametrize(("name", "layer", "cells"), [
    ("resnet50_one_cell", "features.conv4_block6.out", (2, 2)), ("inception_v3_one_cell", "features.mixed7", (3, 3)),
])  # fmt: skip
def test_one_cell_suffices_for_everything(narrow, name, layer, cells, tmp_path, command):
    """Grad-CAM of one cell says nothing: it explains the last map of several cells through which all is computed."""
    out = tmp_path / "out.safetensors"
    convert(narrow / f"{name}.keras", out, preprocessing="unit", isolated=False)
    network = load(out)
    picture = np.random.default_rng(0).integers(0, 256, (*network.size, 3), np.uint8)
    [best] = classify(network, picture, top=7)
    assert sum(each.probability for each in best) == pytest.approx(1, abs=1e-5)
    explained = gradcam(network, picture, 1)
    assert (explained.layer, explained.values.shape) == (layer, cells)
    assert heatmap(network, picture, 1).values.shape == (1, 1)
    assert min(heatmap(network, np.zeros((200, 300, 3), np.uint8), 1).values.shape) > 1
    assert embed(network, picture).shape == (1, network.head[-1].in_features)
    code, shown, _ = command("info", out)
    assert code == 0
    assert network.card.network in shown

"""What `scripts/judge_maps.py` measures, and the page that holds its tables."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from convnets_torch.heatmaps.api import Box, heatmap
from convnets_torch.networks import Network
from convnets_torch.weights import load
from scripts import cells_and_crops, judge_maps
from scripts.judged_photographs import photographs, trained
from tests.reference.pictures import picture

PAGE = (Path(__file__).parent.parent / "docs" / "heatmaps.md").read_text(encoding="utf-8")


class Tiny(Network):
    """One convolution and a dense layer; images of 9x9 pixels are 4x4 cells without padding, 5x5 with it."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        cells = 4 + padding
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=padding), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(4 * cells * cells, 6))
        self.window, self.size, self.stride, self.shrinking = (cells, cells), (9, 9), 2, ((3, 2, padding),)


@pytest.mark.parametrize("stride", [2, 1])
def test_padding_alone_sets_a_cell_apart_from_its_crop(stride):
    inputs = torch.randn(3, 18, 24, generator=torch.Generator().manual_seed(0))
    exact, padded = (
        cells_and_crops.cells_and_crops(cells_and_crops.randomized(Tiny(padding)), inputs, stride) for padding in (0, 1)
    )
    assert exact[0].shape == exact[1].shape == ((9 // stride + 1) * (15 // stride + 1), 6)
    assert cells_and_crops.relative(*exact) < 1e-6
    assert cells_and_crops.relative(*padded) > 0.05


def test_the_overlap_of_boxes():
    box = Box(0, 0, 4, 4)
    assert judge_maps.overlap(box, box) == 1
    assert judge_maps.overlap(box, Box(2, 2, 6, 6)) == pytest.approx(4 / 28)
    assert judge_maps.overlap(box, Box(5, 0, 9, 4)) == 0
    assert judge_maps.overlap(box, Box(4, 4, 8, 8)) == 0  # they touch
    assert judge_maps.drawn([box, Box(2, 2, 6, 5)], (5, 6)).sum() == 16 + 12 - 4


def test_a_map_is_judged_by_its_own_numbers(users_files):
    found = heatmap(load(users_files / "alexnet.safetensors"), picture(1, 300, 400), "car")
    centre = judge_maps.centre_of(found.window(*found.peak))
    around = Box(centre[0] - 1, centre[1] - 1, centre[0] + 1, centre[1] + 1)
    beside = Box(centre[0] + 1, centre[1] - 1, centre[0] + 3, centre[1] + 1)
    row = judge_maps.judged(found, [beside, around])
    assert row["hit"]
    assert not judge_maps.judged(found, [beside])["hit"]
    highest = found.values.max()
    region = found.regions(highest / 2)[0]
    assert judge_maps.judged(found, [region.box])["half box"] == 1
    assert row["0.5 box"] is None  # random weights are sure of nothing
    above = found.at_picture_size() >= highest / 2
    assert judge_maps.judged(found, [Box(0, 0, 400, 300)])["mask"] == pytest.approx(above.mean())


def test_the_photographs_are_those_that_the_boxes_were_drawn_on():
    pytest.importorskip("sklearn")
    found = photographs()
    assert (len(found), sum(len(each.targets) for each in found)) == (8, 15)
    for each in found:
        for left, top, right, bottom in (box for boxes in each.targets.values() for box in boxes):
            assert 0 <= left < right <= each.pixels.shape[1]
            assert 0 <= top < bottom <= each.pixels.shape[0]


@pytest.mark.slow
def test_the_tables_of_the_architectures_are_those_of_the_page():
    for rows in (judge_maps.network_table(), judge_maps.cost_table()):
        assert judge_maps.markdown(rows) in PAGE


def test_a_row_of_the_page_is_what_is_measured():
    pytest.importorskip("sklearn")
    chelsea = [each for each in photographs() if each.name == "chelsea"]
    [row] = cells_and_crops.padding_table(trained(), chelsea, 32)
    [line] = re.findall(r"^\| chelsea \| cat \| 32 \|.*$", PAGE, re.MULTILINE)
    written = [float(cell) for cell in line.split("|")[3:-1]]
    np.testing.assert_allclose(written, list(row.values())[2:], atol=0.02)


def test_the_code_of_the_page_runs(users_files, tmp_path, monkeypatch, capsys):
    folder = Path(shutil.copytree(users_files, tmp_path / "user"))
    monkeypatch.chdir(folder)
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 8
    for code in blocks:
        exec(compile(code, "heatmaps.md", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "(3, 6) (32.0, 32.0) (227.0, 227.0)"
    assert len(names["several"].scales) == 2
    assert names["seen"].values.shape == (25, 31)
    assert np.load("cars.npz")["receptive_fields"].shape == (3, 6, 4)
    assert (folder / "cars.html").is_file()

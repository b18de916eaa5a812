"""Channels as pictures and numbers: which are kept, how they are scaled, and what stands on the page."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from convnets_torch.explain.activations import record_activations
from convnets_torch.explain.channels import activation_grids, save_grids
from convnets_torch.images.preprocessing import center_crop, normalize
from convnets_torch.inference.classification import square_input, to_parameters
from convnets_torch.visualization.overlays import INFERNO
from convnets_torch.weights import load
from tests.reference.pictures import picture

PICTURE = picture(3, 200, 300)


def outputs(network, layer, inputs):
    with record_activations(network, layer) as activations, torch.inference_mode():
        network.features(to_parameters(inputs[None], network))
    return activations[f"features.{layer}"][0].numpy()


@pytest.mark.parametrize("layer", ["relu0", "bn0", "block4", "conv_head"])
def test_the_strongest_channels_by_numpy(network, layer):
    [grid] = activation_grids(network, PICTURE, layer, channels=12)
    wanted = outputs(network, layer, square_input(PICTURE, network.card))
    strengths = np.abs(wanted.astype(np.float64)).mean((1, 2))
    np.testing.assert_allclose(grid.strengths, strengths, rtol=1e-5)
    assert set(grid.channels.tolist()) == set(np.argsort(strengths)[-12:].tolist())
    assert (np.diff(strengths[grid.channels]) <= 1e-6).all()
    np.testing.assert_array_equal(grid.values, wanted[grid.channels])
    assert grid.shape == wanted.shape
    assert grid.left_out == len(wanted) - 12
    assert grid.signed == bool((wanted < 0).any())
    assert grid.highest == pytest.approx(np.abs(wanted).max())
    np.testing.assert_array_equal(grid.picture, center_crop(PICTURE, network.card.preprocessing))


def test_channels_by_number_and_the_two_scales(network):
    [own] = activation_grids(network, PICTURE, "block2", order="number", channels=5)
    [shared] = activation_grids(network, PICTURE, "block2", order="number", channels=5, scale="layer")
    assert own.channels.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(np.abs(own.scaled()).max((1, 2)), 1)
    np.testing.assert_allclose(shared.scaled() * shared.highest, shared.values, rtol=1e-6)
    assert own.left_out == 24 - 5


def test_a_whole_picture_that_is_not_square(network):
    [grid] = activation_grids(network, PICTURE, "block2", longest_side=300, channels=3)
    wanted = outputs(network, "block2", normalize(PICTURE, network.card.preprocessing))
    assert wanted.shape[1:] != wanted.shape[:0:-1]
    np.testing.assert_array_equal(grid.values, wanted[grid.channels])
    np.testing.assert_array_equal(grid.picture, PICTURE)
    with pytest.raises(ValueError, match=r"images are \(200, 300\) pixels"):
        activation_grids(network, PICTURE, "head.fc", longest_side=300)


def test_all_layers_and_layers_without_cells(network):
    everything = activation_grids(network, PICTURE, channels=1)
    assert len(everything) > 100
    assert all(grid.layer.startswith("features.") for grid in everything)
    [logits] = activation_grids(network, PICTURE, "head.fc", channels=3)
    assert logits.values.shape == (3, 1, 1)
    assert logits.scale == "layer"
    with torch.inference_mode():
        answers = network(to_parameters(square_input(PICTURE, network.card)[None], network))[0].numpy()
    np.testing.assert_allclose(logits.values[:, 0, 0], answers[np.argsort(-np.abs(answers))[:3]], rtol=1e-5)


def silenced(path):
    """A network whose first convolution's channel 5 gives nothing."""
    network = load(path, mapped=False)
    for name in ("weight", "bias"):
        network.get_parameter(f"features.bn0.{name}").data[5] = 0
    return network


def test_a_dead_channel_is_grey_and_called_so(lite_weights):
    [grid] = activation_grids(silenced(lite_weights), PICTURE, "relu0", order="number")
    assert grid.strengths[5] == 0
    assert not grid.scaled()[5].any()
    page = np.asarray(grid.draw())
    grey = (page == (190, 190, 190)).all(-1)
    side = (800 - 2 * 12 - 7 * 6) // 8
    left, column = 12 + 5 * (side + 6), np.arange(5, 32, 8)
    assert grey[:, left : left + side].all(1).sum() == side * (grid.strengths[column] == 0).sum()


def test_a_tile_shows_the_cells_in_the_colours(network):
    """The largest cell of each channel has the last colour, and the whole page is as wide as was asked."""
    [grid] = activation_grids(network, PICTURE, "relu1", channels=8)
    page = np.asarray(grid.draw(1000))
    assert page.shape[1] == 1000
    width = (1000 - 2 * 12 - 7 * 6) // 8
    last = (page == INFERNO[-1]).all(-1)
    rows = np.flatnonzero(last[:, 12 : 12 + width].any(1))  # the first tile's
    assert width // 7 - 1 <= len(rows)
    for place in range(8):
        left = 12 + place * (width + 6)
        assert last[rows[0] - width : rows[-1] + width, left : left + width].any()


def test_a_page_and_numbers_of_several_layers(network, tmp_path):
    grids = activation_grids(network, PICTURE, ["relu0", "block3", "head.fc"], channels=9)
    save_grids(grids, tmp_path / "page.png")
    save_grids(grids[:1], tmp_path / "one.jpg")
    with Image.open(tmp_path / "page.png") as page, Image.open(tmp_path / "one.jpg") as first:
        assert page.width == first.width == 800
        assert page.height > 2 * first.height - 250
    save_grids(grids, tmp_path / "numbers.npz")
    numbers = np.load(tmp_path / "numbers.npz")
    assert numbers["layers"].tolist() == ["features.relu0", "features.block3", "head.fc"]
    np.testing.assert_array_equal(numbers["picture"], grids[0].picture)
    for grid in grids:
        np.testing.assert_array_equal(numbers[f"{grid.layer}.values"], grid.values)
        np.testing.assert_array_equal(numbers[f"{grid.layer}.channels"], grid.channels)
        np.testing.assert_array_equal(numbers[f"{grid.layer}.strengths"], grid.strengths)


def test_what_cannot_be_had_is_one_sentence(network, tmp_path):
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"channels": 0}, "channels is 0"),
        ({"order": "best"}, "unknown order 'best'; known: strongest, number"),
        ({"scale": "best"}, "unknown scale 'best'; known: channel, layer"),
        ({"layers": "relu_9"}, "did you mean"),
    ]
    for options, said in wrong:
        with pytest.raises(ValueError, match=said):
            activation_grids(network, PICTURE, **{"layers": "relu0", **options})
    grids = activation_grids(network, PICTURE, "relu0")
    with pytest.raises(ValueError, match="unknown ending"):
        save_grids(grids, tmp_path / "page.txt")
    with pytest.raises(ValueError, match="give one or more"):
        save_grids([], tmp_path / "page.png")
    with pytest.raises(ValueError, match="300 pixels wide cannot be read"):
        grids[0].draw(300)
    with pytest.raises(ValueError, match=r"more than 65000; take fewer layers or channels"):
        save_grids(grids * 300, tmp_path / "page.png")
    assert list(tmp_path.iterdir()) == []


def test_below_a_tile_stands_the_strength_of_its_own_channel(network):
    grids = activation_grids(network, PICTURE, "relu0", channels=1)
    [channel] = grids[0].channels
    page = np.asarray(grids[0].draw())
    for changed in np.flatnonzero(grids[0].strengths):
        strengths = grids[0].strengths.copy()
        strengths[changed] += 100
        same = np.array_equal(np.asarray(replace(grids[0], strengths=strengths).draw()), page)
        assert same == (changed != channel)

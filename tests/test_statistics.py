"""Statistics of channels over pictures, against NumPy on all activations at once, in float64."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch

from convnets_torch.explain.activations import record_activations
from convnets_torch.explain.statistics import (
    ZeroShares,
    _Running,
    channel_statistics,
    save_statistics,
    zero_shares,
)
from convnets_torch.images.decoding import read_picture
from convnets_torch.inference.classification import square_input, to_parameters
from tests.reference.pictures import picture

LAYERS = ["features.relu0", "features.block3", "head.flatten", "head.fc"]


@pytest.fixture(scope="module")
def pictures(photographs):
    drawn = [picture(seed, 150 + 10 * seed, 200) for seed in range(5)]
    return [*drawn, *(read_picture(photographs / name) for name in ("chelsea.png", "coffee.png"))]


@pytest.fixture(scope="module")
def stacked(network, pictures):
    """Layer -> (pictures, channels, cells), float64."""
    inputs = np.stack([square_input(each, network.card) for each in pictures])
    with record_activations(network, LAYERS) as activations, torch.inference_mode():
        network(to_parameters(inputs, network))
    return {
        name: output.numpy().astype(np.float64).reshape(*output.shape[:2], -1) for name, output in activations.items()
    }


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_statistics_are_those_of_all_values_at_once(network, pictures, stacked, batch):
    done: list[int] = []
    found = channel_statistics(network, pictures, LAYERS, batch=batch, progress=done.append)
    assert [each.layer for each in found.layers] == LAYERS
    assert done == [min(each, 7) for each in range(batch, 7 + batch, batch)]
    for each in found.layers:
        values = stacked[each.layer]
        assert each.pictures == 7
        assert each.values == 7 * values.shape[2]
        scale = values.std()  # batches of other sizes round differently, in float32
        np.testing.assert_allclose(each.mean, values.mean((0, 2)), rtol=1e-5, atol=1e-5 * scale)
        np.testing.assert_allclose(each.standard_deviation, values.std((0, 2)), rtol=1e-5, atol=1e-5 * scale)
        np.testing.assert_allclose(each.maximum, values.max((0, 2)), rtol=1e-5, atol=1e-5 * scale)
        np.testing.assert_allclose(each.zeros, (values == 0).mean((0, 2)), atol=1e-4)
        np.testing.assert_array_equal(each.dead, values.max((0, 2)) <= 0)
    assert found.layers[0].dead.any()  # ReLU6 of trained weights leaves some
    assert not found.layers[0].dead.all()


def test_small_deviations_around_large_means_keep_their_digits():
    """Where a sum of squares has none left: 1e8 with a deviation of 1e-2."""
    values = 1e8 + 1e-2 * np.random.default_rng(0).standard_normal((12, 3, 5, 7))
    running = _Running()
    for part in np.split(values, [1, 2, 7]):
        running.add(torch.from_numpy(part))
    found = running.result("layer")
    np.testing.assert_allclose(found.standard_deviation, values.std((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(found.mean, values.mean((0, 2, 3)), rtol=1e-15)
    naive = np.sqrt(np.abs((values**2).mean((0, 2, 3)) - values.mean((0, 2, 3)) ** 2))
    assert (np.abs(naive / values.std((0, 2, 3)) - 1) > 1).any()


def test_bad_pictures_alone_are_refused_with_the_first_reason(network, tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"none of 2 pictures could be used; the first: .*bad\.png is not a picture"):
        channel_statistics(network, [tmp_path / "bad.png", tmp_path / "none.png"], "relu0")


def test_the_share_of_zeros_of_an_embedding(network, pictures, stacked):
    found = zero_shares(network, pictures, "head.flatten", batch=3)
    wanted = (stacked["head.flatten"] == 0).mean((1, 2))
    np.testing.assert_allclose(found.shares, wanted, atol=1e-9)
    assert 0 < wanted.min() < wanted.max() < 1
    counts, edges = found.histogram(bins=10)
    assert counts.sum() == 7
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        assert count == sum(low <= share < high for share in wanted)


def test_the_bars_of_a_histogram_are_as_high_as_their_counts():
    found = ZeroShares("fc1", np.array([0.1] * 4 + [0.3] * 2 + [0.95]))
    ax = found.draw(bins=4)
    assert [bar.get_height() for bar in ax.patches] == [4, 2, 0, 1]
    assert ax.get_title(loc="left") == (
        "fc1: share of values that are zero, in 7 pictures\nmean 0.279, from 0.100 to 0.950"
    )


def test_files_hold_the_same_numbers(network, pictures, tmp_path):
    found = channel_statistics(network, pictures[:2], ["relu0", "block3"])
    for ending in ("json", "csv", "npz"):
        save_statistics(found, tmp_path / f"out.{ending}")
    record = json.loads((tmp_path / "out.json").read_text())
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    arrays = np.load(tmp_path / "out.npz")
    for each, entry in zip(found.layers, record["layers"], strict=True):
        own = [row for row in rows if row["layer"] == each.layer]
        assert [int(row["channel"]) for row in own] == list(range(len(each.mean)))
        for name in ("mean", "standard_deviation", "zeros", "maximum"):
            values = getattr(each, name)
            np.testing.assert_array_equal(entry[name], values)
            np.testing.assert_array_equal([float(row[name]) for row in own], values)
            np.testing.assert_array_equal(arrays[f"{each.layer}.{name}"], values)
        assert entry["dead"] == [channel for channel, row in enumerate(own) if row["dead"] == "1"]
    with pytest.raises(ValueError, match=r"statistics can be written as \.json, \.csv or \.npz"):
        save_statistics(found, tmp_path / "out.png")


def test_what_cannot_be_had_is_one_sentence(network, pictures):
    with pytest.raises(ValueError, match="batch is 0"):
        channel_statistics(network, pictures, "relu0", batch=0)
    with pytest.raises(ValueError, match=r"matches \d+ layers"):
        zero_shares(network, pictures, "block3.*")
    with pytest.raises(ValueError, match=r"no picture reached features\.relu0"):
        channel_statistics(network, [], "relu0")


def test_values_below_zero_do_not_count_as_zero(network, pictures, stacked):
    assert (stacked["head.fc"] < 0).any(axis=(1, 2)).all()
    np.testing.assert_array_equal(zero_shares(network, pictures, "head.fc").shares, 0)

"""Heatmaps of many pictures: the maps of each alone, few passes, and bad pictures in their place."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from convnets_torch.fcn.graph import map_graph
from convnets_torch.fcn.memory import peak_bytes
from convnets_torch.heatmaps.api import heatmap
from convnets_torch.heatmaps.many import Mapped, heatmap_each
from convnets_torch.images.decoding import decode
from convnets_torch.inference import pipeline
from convnets_torch.weights import load
from tests.reference.pictures import picture

SIZES = [(240, 300), (240, 331)]  # of one height: the width counts too


@pytest.fixture
def network(weights):
    return load(weights)


@pytest.fixture
def passes(network):
    """The shape of what has gone through the network's features, pass by pass."""
    shapes = []
    network.features.register_forward_hook(lambda features, inputs, output: shapes.append(tuple(inputs[0].shape)))
    return shapes


def mixed(count, sizes=SIZES):
    """Pictures of several sizes in turn."""
    return [picture(seed, *size) for seed, size in zip(range(count), itertools.cycle(sizes), strict=False)]


def assert_same_maps(found, alone):
    np.testing.assert_allclose(found.values, alone.values, atol=1e-5)
    np.testing.assert_array_equal(found.best_ids[..., 0], alone.best_ids[..., 0])
    np.testing.assert_allclose(found.best_probabilities, alone.best_probabilities, atol=1e-5)
    np.testing.assert_array_equal(found.picture, alone.picture)
    assert found.placement == alone.placement
    assert found.target == alone.target


def test_six_pictures_of_two_sizes_are_two_passes_with_the_maps_of_each_alone(network, passes):
    pictures = mixed(6)
    results = list(heatmap_each(network, pictures, ["dog", "car - sports car"]))
    assert passes == [(3, 3, 240, 300), (3, 3, 240, 331)]
    for given, result in zip(pictures, results, strict=True):
        assert result.picture is given
        for found, target in zip(result.maps, ["dog", "car - sports car"], strict=True):
            assert_same_maps(found, heatmap(network, given, target))


@pytest.mark.parametrize(
    "options",
    [
        {"longest_side": 320},
        {"cell_stride": 16},
        {"scales": (1, 1.3), "fuse": "max"},
        {"scales": "auto"},
        {"upscale": True, "longest_side": 200},
        {"max_memory": None},
        {"max_memory": "1.5MB"},
    ],
    ids=str,
)
def test_options_mean_what_they_mean_for_one_picture(options, network):
    pictures = mixed(3, [(240, 300), (270, 300), (270, 231)])
    results = list(heatmap_each(network, pictures, "dog", **options))
    for given, result in zip(pictures, results, strict=True):
        [found] = result.maps
        alone = heatmap(network, given, "dog", **options)
        assert_same_maps(found, alone)
        assert len(found.scales) == len(alone.scales)


def test_pictures_that_become_the_same_size_go_together(network, passes):
    list(heatmap_each(network, [picture(0, 300, 400), picture(1, 600, 800)], "dog", longest_side=320))
    assert passes == [(2, 3, 240, 320)]


@pytest.mark.parametrize("together", [1, 2, 3])
def test_a_batch_is_as_large_as_memory_allows_and_no_larger(together, network, passes):
    grid, dtype = map_graph(network), torch.float32
    memory = peak_bytes(grid, (together, 240, 300), dtype, 240)
    results = list(heatmap_each(network, mixed(7, SIZES[:1]), "dog", max_memory=memory))
    assert [shape[0] for shape in passes] == [together] * (7 // together) + [7 % together] * (7 % together > 0)
    assert all(peak_bytes(grid, (shape[0], *shape[2:]), dtype, shape[2]) <= memory for shape in passes)
    assert all(result.error is None for result in results)


def test_a_picture_too_large_for_one_pass_goes_alone_in_strips(network, passes):
    large, small = picture(1, 700, 300), picture(2, 240, 300)
    memory = peak_bytes(map_graph(network), (2, 240, 300), torch.float32, 240)
    results = list(heatmap_each(network, [large, small, large, small], "dog", max_memory=memory))
    assert passes == [(2, 3, 240, 300)]  # strips go layer by layer
    for given, result in zip([large, small, large, small], results, strict=True):
        assert_same_maps(result.maps[0], heatmap(network, given, "dog"))
    wide = np.zeros((240, 20_000, 3), np.uint8)
    [narrow, too_wide] = heatmap_each(network, [small, wide], "dog", max_memory=memory)
    assert narrow.error is None
    assert "images 20000 pixels wide need at least" in str(too_wide.error)


def test_pictures_wait_for_their_like_only_as_long_as_there_is_room(network, passes, monkeypatch):
    """Room for three pictures of 72,000 pixels: the fourth makes the first one and its like go."""
    monkeypatch.setattr(pipeline, "ROOM", 250_000)
    sizes = [(240, 300), (300, 240), (240, 300), (300, 240)]
    results = list(heatmap_each(network, mixed(8, sizes), "dog"))
    assert [shape[0] for shape in passes] == [2] * 4
    assert [result.maps[0].size for result in results] == sizes * 2


@pytest.fixture
def holiday(tmp_path):
    """Files of every kind, with bad ones at the start, in the middle and at the end."""
    folder = tmp_path / "holiday"
    folder.mkdir()
    Image.fromarray(picture(1, 240, 300)).save(folder / "b.png")
    (folder / "c.jpg").write_text("no picture")
    Image.fromarray(picture(2, 240, 300)).convert("L").save(folder / "d.png")  # grey
    see_through = Image.fromarray(picture(3, 240, 300))
    see_through.putalpha(128)
    see_through.save(folder / "e.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.fromarray(picture(4, 300, 240)).save(folder / "f.png", exif=exif)
    Image.new("RGB", (9, 9)).save(folder / "g.png")
    return [folder / name for name in ("none.jpg", "b.png", "c.jpg", "d.png", "e.png", "f.png", "g.png")]


def test_bad_pictures_stand_in_their_place_and_the_others_have_maps(network, passes, holiday):
    network.card = replace(network.card, preprocessing=replace(network.card.preprocessing, exif=True))
    results = list(heatmap_each(network, holiday, "dog"))
    assert [result.picture for result in results] == holiday
    assert [type(result.error) for result in results] == [
        FileNotFoundError, type(None), OSError, type(None), type(None), type(None), ValueError,
    ]  # fmt: skip
    assert "g.png is 9x9 pixels" in str(results[-1].error)
    assert passes == [(4, 3, 240, 300)]  # upright, the last one has the size of the others
    for path, result in zip(holiday, results, strict=True):
        if result.error is None:
            [found] = result.maps
            np.testing.assert_array_equal(found.picture, decode(path).pixels)
            values = heatmap(network, found.picture, "dog").values
            np.testing.assert_allclose(found.values, values, atol=1e-5)
        else:
            assert result.maps == []
    [note] = [note for result in results for note in result.notes]
    assert note.startswith(
        f"{holiday[4]} is partly transparent; transparency was dropped, the colours under it taken as"
    )


def test_one_picture_with_broken_outputs_does_not_stop_its_batch(network):
    """A weight so large that bright pixels alone overflow."""
    pictures = [np.zeros((240, 300, 3), np.uint8), picture(1, 240, 300), np.zeros((240, 300, 3), np.uint8)]
    network.features.register_forward_hook(
        lambda features, inputs, output: output / (inputs[0].amax(dim=(1, 2, 3)) < 0).view(-1, 1, 1, 1)
    )
    [black, bright, again] = heatmap_each(network, pictures, "dog")
    assert "outputs are NaN or infinite" in str(bright.error)
    assert black.error is again.error is None


def test_what_concerns_all_pictures_is_refused_before_any_is_taken(network):
    def untouched():
        raise AssertionError("a picture was taken")
        yield

    refused: list[tuple[dict[str, Any], str]] = [
        ({"target": "doog"}, "unknown word 'doog'"),
        ({"target": []}, "list of targets is empty"),
        ({"cell_stride": 5}, "does not support a cell stride of 5 pixels"),
        ({"scales": (1, -2)}, "scales are"),
        ({"scales": (1, 2), "fuse": "sum"}, "unknown way to fuse scales 'sum'"),
        ({"max_memory": "much"}, "'much' is not an amount of memory"),
        ({"longest_side": 0}, "a longest side of 0 pixels is out of range"),
    ]
    for options, sentence in refused:
        with pytest.raises(ValueError, match=sentence):
            heatmap_each(network, untouched(), **{"target": "dog", **options})
    network.card = replace(network.card, activation="none")
    with pytest.raises(ValueError, match="outputs are not probabilities"):
        heatmap_each(network, untouched(), "dog")
    network.card = None
    with pytest.raises(ValueError, match="has no card"):
        heatmap_each(network, untouched(), "dog")


def test_a_single_picture_and_none_are_lists_of_one_and_none(network, tmp_path):
    [result] = heatmap_each(network, picture(1, 240, 300), 7)
    assert isinstance(result, Mapped)
    assert result.maps[0].target.class_ids == (7,)
    assert list(heatmap_each(network, [], "dog")) == []
    stored = np.memmap(tmp_path / "pixels", np.uint8, "w+", shape=(240, 300, 3))
    stored[:] = picture(1, 240, 300)
    [mapped] = heatmap_each(network, stored, 7)
    np.testing.assert_array_equal(mapped.maps[0].values, result.maps[0].values)

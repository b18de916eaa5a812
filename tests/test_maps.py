"""What can be read from a map: best classes, regions, contrasts, scales, the map at the picture's size."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

import convnets_torch
from convnets_torch.heatmaps.api import class_map, contrast, heatmap, heatmap_targets, probability_map
from convnets_torch.heatmaps.many import heatmap_each
from convnets_torch.heatmaps.maps import find_regions
from convnets_torch.heatmaps.scales import sizes_of
from convnets_torch.images.decoding import PictureWarning
from convnets_torch.images.preprocessing import fit_longest_side, normalize
from convnets_torch.inference.classification import classify
from convnets_torch.visualization.overlays import interpolated
from tests.reference.pictures import picture
from tests.test_heatmaps import made


@pytest.fixture(scope="module")
def pixels(photographs):
    return convnets_torch.read_picture(photographs / "coffee.png")  # 400 high, 600 wide


def test_the_best_classes_of_a_cell_are_those_of_its_scores(network, pixels):
    found = heatmap(network, pixels, "espresso")
    with torch.inference_mode():
        images = torch.from_numpy(normalize(pixels, network.card.preprocessing))[None]
        chances = convnets_torch.score_map(network, images).softmax(1)[0]
    for row, column in ((0, 0), (3, 5), found.peak):
        best = chances[:, row, column].topk(5)
        entries = found.top_at(row, column)
        assert [entry.class_id for entry in entries] == best.indices.tolist()
        np.testing.assert_allclose([entry.probability for entry in entries], best.values, atol=1e-5)
        assert entries[0].wnid == convnets_torch.wordnet.synsets.wnid(entries[0].class_id)
    assert found.top_at(*found.peak)[0].words == "espresso"
    with pytest.raises(IndexError, match=r"cell \(0, 99\) is outside the map of 6 rows and 12 columns"):
        found.top_at(0, 99)


def test_at_a_pixel_the_best_classes_are_those_of_the_nearest_window(network, pixels):
    found = heatmap(network, pixels, "espresso")
    assert found.cell_at_pixel(0, 0) == (0, 0)
    assert found.cell_at_pixel(599, 399) == (5, 11)
    assert found.cell_at_pixel(112 + 3 * 32 + 5, 112 + 2 * 32 - 9) == (2, 3)
    assert found.top_at_pixel(112 + 3 * 32, 112 + 2 * 32) == found.top_at(2, 3)
    for x, y in ((600, 0), (-1, 0), (0, 400)):
        with pytest.raises(IndexError, match=r"is outside the picture, 600 pixels wide and 400 high"):
            found.top_at_pixel(x, y)


def test_regions_are_the_connected_components():
    """Against SciPy's labels, with corners touching, on random maps."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        values = generator.random((9, 13), np.float32)
        found = made(values, 224 + 8 * 32, 224 + 12 * 32)
        labels, count = ndimage.label(values > 0.7, structure=np.ones((3, 3)))
        wanted = []
        for label, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
            box = (columns.start * 32, rows.start * 32, (columns.stop - 1) * 32 + 224, (rows.stop - 1) * 32 + 224)
            wanted.append((values[labels == label].max(), int((labels == label).sum()), box))
        regions = found.regions(0.7)
        assert sorted((region.score, region.cells, region.box) for region in regions) == sorted(wanted)
        assert [region.score for region in regions] == sorted((score for score, *_ in wanted), reverse=True)
        assert all(values[region.peak] == np.float32(region.score) for region in regions)
        assert len(regions) == count
    assert made(values).regions(1.0) == []
    with pytest.raises(ValueError, match="the threshold is nan; give a number"):
        made(values).regions(float("nan"))


def test_regions_end_at_the_picture():
    boxes = np.array([[[300.0, 200.0, 524.0, 424.0]]])
    [region] = find_regions(np.ones((1, 1), np.float32), 0.5, boxes, (400, 500))
    assert region.box == (300, 200, 500, 400)


def test_the_map_at_the_pictures_size_is_interpolated_between_the_centres():
    values = np.random.default_rng(0).random((4, 7), np.float32)
    found = made(values, 320, 416)
    large = found.at_picture_size()
    assert large.shape == (320, 416)
    rows, columns = 112 + 32 * np.arange(4), 112 + 32 * np.arange(7)
    down = np.stack([np.interp(np.arange(320) + 0.5, rows, column) for column in values.T], axis=1)
    wanted = np.stack([np.interp(np.arange(416) + 0.5, columns, row) for row in down])
    np.testing.assert_allclose(large, wanted, atol=1e-6)
    near = found.at_picture_size("nearest")
    assert set(np.unique(near)) == set(np.unique(values))
    assert near[112 + 32 * 2, 112 + 32 * 5] == values[2, 5]
    smooth = found.at_picture_size("bicubic")
    assert np.abs(smooth - large).max() < 0.3
    with pytest.raises(ValueError, match="unknown interpolation 'linear'; known: nearest, bilinear, bicubic"):
        found.at_picture_size("linear")


def test_bicubic_goes_through_the_cells_and_keeps_straight_lines():
    values = np.random.default_rng(0).random((6, 1), np.float32)
    np.testing.assert_allclose(interpolated(values, np.arange(6.0), 0, "bicubic"), values, atol=1e-6)
    line = np.arange(8, dtype=np.float32)[None]
    places = np.linspace(1, 6, 23)
    np.testing.assert_allclose(interpolated(line, places, 1, "bicubic")[0], places, atol=1e-5)


def test_a_contrast_is_the_difference_of_two_maps(network, pixels):
    found = contrast(network, pixels, "espresso", "spoon")
    one, other = heatmap_targets(network, pixels, ["espresso", "spoon"])
    np.testing.assert_array_equal(found.values, one.values - other.values)
    assert found.values.max() > 0.5
    np.testing.assert_array_equal(contrast(network, pixels, "spoon", "espresso").values, -found.values)
    assert found.label == "espresso rather than spoon"
    assert found.window(1, 2) == one.window(1, 2)
    assert found.top_at(1, 2) == one.top_at(1, 2)
    with pytest.raises(ValueError, match="cat and n02121620 are the same classes; contrast two targets"):
        contrast(network, pixels, "cat", "n02121620")


def test_all_classes_answer_whatever_is_asked_later(network, pixels):
    every = probability_map(network, pixels)
    assert every.probabilities.shape == (1000, 6, 12)
    np.testing.assert_allclose(every.probabilities.sum(axis=0), 1, atol=1e-5)
    np.testing.assert_allclose(every.heatmap("cup").values, heatmap(network, pixels, "cup").values, atol=1e-6)
    best, asked = every.class_map("animal"), class_map(network, pixels, only="animal")
    np.testing.assert_array_equal(best.class_ids, asked.class_ids)
    assert best.names == asked.names
    np.testing.assert_array_equal(every.values, every.probabilities.max(axis=0))
    difference = every.contrast("cup", "dog")
    np.testing.assert_array_equal(difference.values, every.heatmap("cup").values - every.heatmap("dog").values)


def test_a_denser_map_has_the_map_on_its_own_grid(network, pixels):
    own, dense = heatmap(network, pixels, "espresso"), heatmap(network, pixels, "espresso", cell_stride=8)
    assert dense.values.shape == (23, 48)
    np.testing.assert_allclose(dense.values[::4, ::4], own.values, atol=1e-5)
    assert dense.window(4, 8) == own.window(1, 2)
    assert dense.receptive_field(4, 8) == own.receptive_field(1, 2)
    assert dense.window(1, 0).top == 8


def test_memory_and_strips_change_no_number(network, pixels):
    free = heatmap_targets(network, pixels, ["espresso", "cup"], max_memory=None)
    for memory in ("100MB", "20MB"):
        bound = heatmap_targets(network, pixels, ["espresso", "cup"], max_memory=memory)
        for one, other in zip(free, bound, strict=True):
            np.testing.assert_allclose(one.values, other.values, atol=1e-5)
        np.testing.assert_array_equal(free[0].best_ids[..., 0], bound[0].best_ids[..., 0])
    with pytest.raises(ValueError, match=r"max_memory is 1MB, but images 600 pixels wide need at least \d+MB"):
        heatmap(network, pixels, "cup", max_memory="1MB")


def test_a_small_picture_is_enlarged_when_asked(network):
    small = picture(6, 100, 300)
    with pytest.raises(ValueError, match=r"enlarge it to 224x672 \(upscale, --upscale\), or .* side of 672"):
        heatmap(network, small, "dog")
    found = heatmap(network, small, "dog", upscale=True)
    by_hand = heatmap(network, small, "dog", longest_side=672)
    np.testing.assert_array_equal(found.values, by_hand.values)
    assert found.window(0, 0) == (0, 0, 100, 100)
    large = picture(6, 300, 300)
    np.testing.assert_array_equal(
        heatmap(network, large, "dog", upscale=True).values, heatmap(network, large, "dog").values
    )


# Scales


def test_scales_are_the_maps_of_the_resized_pictures(network, pixels):
    found = heatmap(network, pixels, "espresso", scales=(1, 0.6, 2))
    rule = network.card.preprocessing
    assert [scale.placement.seen for scale in found.scales] == [(240, 360), (400, 600), (800, 1200)]
    for scale, side in zip(found.scales, (360, 600, 1200), strict=True):
        alone = heatmap(network, fit_longest_side(pixels, side, rule), "espresso")
        np.testing.assert_array_equal(scale.values, alone.values)
    assert found.values.shape == found.scales[-1].values.shape
    assert found.window_size == (112, 112)


def test_fusing_takes_the_mean_or_the_maximum_at_the_same_places(network, pixels):
    def values(fuse):
        return heatmap(network, pixels, "espresso", scales=(0.6, 1), fuse=fuse)

    mean, most = values("mean"), values("max")
    coarse, fine = most.scales
    rows, columns = fine.values.shape
    down = (np.arange(rows) * 32 + 112) / 400 * 240  # centres, in the pixels of the smaller picture
    across = (np.arange(columns) * 32 + 112) / 600 * 360
    spread = np.stack([np.interp(down, np.arange(coarse.values.shape[0]) * 32 + 112, c) for c in coarse.values.T], 1)
    spread = np.stack([np.interp(across, np.arange(coarse.values.shape[1]) * 32 + 112, r) for r in spread])
    np.testing.assert_allclose(most.values, np.maximum(spread, fine.values), atol=1e-5)
    np.testing.assert_allclose(mean.values, (spread + fine.values) / 2, atol=1e-5)
    np.testing.assert_array_equal(most.winners, (fine.values > spread).astype(int))
    for row, column in ((0, 0), most.peak):
        winner = most.scales[most.winners[row, column]]
        x, y = column * 32 + 112 - 0.5, row * 32 + 112 - 0.5
        cell = winner.cell_at_pixel(x, y)
        assert most.window(row, column) == winner.window(*cell)
        assert most.top_at(row, column) == winner.top_at(*cell)
    with pytest.raises(ValueError, match="unknown way to fuse scales 'sum'; known: mean, max"):
        values("sum")


def test_automatic_scales_are_octaves_from_one_window_on():
    assert sizes_of("auto", (480, 640), (224, 224)) == [(224, 299), (448, 597)]
    assert sizes_of("auto", (1000, 900), (224, 224)) == [(249, 224), (498, 448), (996, 896)]
    assert sizes_of("auto", (200, 230), (224, 224)) == [(224, 258), (448, 515)]
    assert [min(size) for size in sizes_of("auto", (10_000, 10_000), (224, 224))] == [224, 448, 896, 1792, 3584, 7168]


@pytest.mark.parametrize(
    ("scales", "words"),
    [
        ((), r"scales are \(\); give factors above 0"),
        ((1, -2), "give factors above 0"),
        ((float("nan"),), "give factors above 0"),
        ("big", "scales are 'big'; give factors"),
        ((0.2,), r"at scale 0.2 .* 96x128 pixels .*smaller than the network's 224x224; the smallest scale is 0.467"),
        ((60,), "use a smaller scale"),
    ],
)  # fmt: skip
def test_scales_that_cannot_be_are_refused(scales, words):
    with pytest.raises(ValueError, match=words):
        sizes_of(scales, (480, 640), (224, 224))


def test_progress_counts_the_rows_of_all_scales(network, pixels):
    told: list[tuple[int, int]] = []
    found = heatmap(network, pixels, "cup", scales=(0.7, 1), progress=lambda *done: told.append(done))
    rows = sum(len(each.values) for each in found.scales)
    assert told[-1] == (rows, rows)
    assert told == sorted(told)
    assert {whole for _, whole in told} == {rows}


def test_an_empty_list_of_targets_is_refused(network, pixels):
    with pytest.raises(ValueError, match="the list of targets is empty; name what to look for"):
        heatmap_targets(network, pixels, [])


def test_fewer_classes_than_five_are_all_listed(network, pixels):
    head = torch.nn.Sequential(*list(network.head)[:-1], torch.nn.Linear(1280, 3))
    small = load_like(network, head)
    found = heatmap(small, pixels, "wasp")
    assert [entry.words for entry in found.top_at(0, 0)] and len(found.top_at(0, 0)) == 3  # noqa: PT018 - one fact
    assert {entry.words for entry in found.top_at(0, 0)} == {"bee", "wasp", "ant"}


def load_like(network, head):
    import copy

    other = copy.copy(network)
    other._modules = dict(network._modules)
    other.head = head.eval()
    other.card = replace(network.card, arguments={"classes": 3}, class_names=("bee", "wasp", "ant"))
    return other


def test_the_whole_pictures_answer_is_the_map_of_a_picture_of_the_networks_size(network, pixels):
    rule = replace(network.card.preprocessing, resize=224)
    exact = load_like(network, network.head)
    exact.card = replace(network.card, preprocessing=rule)
    square = pixels[:224, :224]
    [answers] = classify(exact, square)
    assert [entry.class_id for entry in heatmap(exact, square, "cup").top_at(0, 0)] == [e.class_id for e in answers]


def test_a_faint_map_of_a_large_picture_names_several_scales(network, tmp_path):
    path = tmp_path / "grey.png"
    Image.new("RGB", (900, 230), (120, 130, 110)).save(path)
    said = r"grey\.png: dog.* is nowhere more probable than 0\.0\d*; .* \(scales='auto', --scales auto\)"
    with pytest.warns(PictureWarning, match=said):
        heatmap_targets(network, path, ["dog", "cat"])
    [mapped] = heatmap_each(network, [path], "dog")
    assert [bool(re.search(said, note)) for note in mapped.notes] == [True]
    heatmap(network, path, "dog", scales="auto")
    Image.new("RGB", (600, 230), (120, 130, 110)).save(path)
    heatmap(network, path, "dog")

"""Heatmaps: what a cell is, where the hot ones lie, and how the map is drawn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from convnets_torch.card import Card
from convnets_torch.explain.gradcam import gradcam, gradcam_targets
from convnets_torch.fcn.score_map import score_map
from convnets_torch.heatmaps.api import ClassMap, Heatmap, class_map, heatmap, heatmap_targets, save_sheet
from convnets_torch.heatmaps.maps import Box, CellGrid
from convnets_torch.images.preprocessing import normalize, preset
from convnets_torch.inference.classification import classify
from convnets_torch.visualization import overlays
from convnets_torch.weights import load
from convnets_torch.wordnet.synsets import class_ids
from convnets_torch.wordnet.targets import Target, find_target
from tests.reference.pictures import picture


@pytest.fixture(scope="module")
def alexnet(weights):
    return load(weights)


def test_a_cell_is_the_summed_probability_of_the_distinct_classes(alexnet):
    pixels = picture(3, 291, 355)
    found = heatmap(alexnet, pixels, "wheeled vehicle")
    with torch.inference_mode():
        scores = score_map(alexnet, torch.from_numpy(normalize(pixels, alexnet.card.preprocessing))[None])
    expected = scores.double().softmax(1)[0, class_ids("wheeled vehicle")].sum(0)
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
    assert len(found.target.class_ids) == 44
    assert found.probabilities.shape == (3, 5)


def test_no_cell_is_above_1_when_every_class_is_meant(alexnet):
    found = heatmap(alexnet, picture(4, 419, 483), "entity")
    assert found.probabilities.max() <= 1
    np.testing.assert_allclose(found.probabilities, 1, atol=1e-5)


def test_at_the_networks_own_size_the_map_is_one_cell_with_the_answer(alexnet):
    pixels = picture(5, 227, 227)
    rule = replace(alexnet.card.preprocessing, resize=227)  # the picture as it is
    exact = load_with(alexnet, rule)
    [predictions] = classify(exact, pixels, top=1000)
    dogs = sum(entry.probability for entry in predictions if entry.class_id in range(151, 269))
    found = heatmap(exact, pixels, "dog")
    assert found.probabilities.shape == (1, 1)
    assert found.probabilities[0, 0] == pytest.approx(dogs, abs=1e-5)


def load_with(network, rule):
    network.card = replace(network.card, preprocessing=rule)
    return network


def test_windows_are_boxes_in_pixels_of_the_picture(network, photographs):
    found = heatmap(network, photographs / "motorcycle_left.png", "moped")  # 500 high, 741 wide
    assert found.probabilities.shape == (9, 17)
    assert found.window(0, 0) == (0, 0, 224, 224)
    assert found.window(8, 16) == (512, 256, 736, 480)
    larger = heatmap(network, photographs / "motorcycle_left.png", "moped", longest_side=1482)
    assert larger.window(0, 0) == (0, 0, 112, 112)
    assert larger.window(2, 1) == (16, 32, 128, 144)
    with pytest.raises(IndexError, match=r"cell \(9, 0\) is outside the map of 9 rows and 17 columns"):
        found.window(9, 0)


# Boxes around the objects, by eye: left, top, right, bottom.
@pytest.mark.parametrize(
    ("name", "target", "box"),
    [
        ("motorcycle_left.png", "wheeled vehicle", (105, 80, 690, 465)),
        ("chelsea.png", "cat", (20, 0, 360, 300)),
        ("coffee.png", "espresso", (75, 15, 480, 400)),
    ],
)
def test_the_hottest_cell_lies_on_the_object(name, target, box, network, photographs):
    found = heatmap(network, photographs / name, target, longest_side=600)
    left, top, right, bottom = found.window(*found.peak)
    across, down = (left + right) / 2, (top + bottom) / 2
    assert box[0] < across < box[2]
    assert box[1] < down < box[3]
    assert found.probabilities.max() > 0.3
    assert found.probabilities.min() < 0.6 * found.probabilities.max()


def test_an_absent_object_stays_cold(network, photographs):
    assert heatmap(network, photographs / "chelsea.png", "wheeled vehicle", longest_side=600).probabilities.max() < 0.1


def test_a_small_picture_is_refused_with_the_least_longest_side(network):
    pixels = picture(6, 100, 300)
    with pytest.raises(ValueError, match=r"100x300 pixels .*smaller than the network's 224x224; .* 672 or more"):
        heatmap(network, pixels, "dog")
    assert heatmap(network, pixels, "dog", longest_side=672).probabilities.shape == (1, 15)
    with pytest.raises(ValueError, match="672 or more"):
        heatmap(network, pixels, "dog", longest_side=668)


def test_a_users_own_classes_are_targets_by_name_and_id(network):
    card = replace(network.card, arguments={"classes": 3}, class_names=("bee", "wasp", "7"))
    assert find_target(card, "wasp") == Target("wasp", None, (1,))
    assert find_target(card, 0) == find_target(card, "0") == Target("bee", None, (0,))
    digits = replace(card, class_names=("1", "2", "7"))  # a name goes before an id
    assert find_target(digits, "1") == Target("1", None, (0,))
    assert find_target(digits, 1) == find_target(digits, "2") == Target("2", None, (1,))
    with pytest.raises(ValueError, match=r"'dog' is not one of the 3 classes \(bee, wasp, 7\); give a name or an id"):
        find_target(card, "dog")
    with pytest.raises(ValueError, match="3 is not one of the 3 classes"):
        find_target(card, 3)
    unnamed = replace(card, class_names=None)
    assert find_target(unnamed, 2) == Target("class 2", None, (2,))
    with pytest.raises(ValueError, match="'wasp' is not one of the 3 classes"):
        find_target(unnamed, "wasp")


def test_a_users_own_classes_are_targets_with_signs_too(network):
    card = replace(network.card, arguments={"classes": 4}, class_names=("bee", "wasp", "salt - pepper", "Vespa sp."))
    assert find_target(card, "bee + 1 + Vespa sp. - bee") == Target("bee + wasp + Vespa sp. - bee", None, (1, 3))
    assert find_target(card, "salt - pepper") == Target("salt - pepper", None, (2,))  # a name of its own
    with pytest.raises(ValueError, match=r"'ant' is not one of the 4 classes \(bee, .*\(at >>> in 'bee \+ >>>ant'\)"):
        find_target(card, "bee + ant")
    with pytest.raises(ValueError, match="no class is left"):
        find_target(card, "bee - bee")


def test_targets_with_signs_are_sums_and_differences_of_their_maps(network, photographs):
    maps = {
        target: heatmap(network, photographs / "chelsea.png", target).probabilities.astype(np.float64)
        for target in ("cat", "tabby", "dog", "cat - tabby", "cat + dog", "cat + tabby")
    }
    np.testing.assert_allclose(maps["cat - tabby"], maps["cat"] - maps["tabby"], atol=1e-6)
    np.testing.assert_allclose(maps["cat + dog"], maps["cat"] + maps["dog"], atol=1e-6)
    np.testing.assert_array_equal(maps["cat + tabby"], maps["cat"])
    assert maps["tabby"].max() > 0.05


def test_the_label_of_targets_with_signs_says_what_was_found(network):
    assert find_target(network.card, "plane  -  n04552348") == Target("airplane - warplane", None, (404,))


def test_boxes_keep_heights_and_widths_apart():
    found = made(np.zeros((3, 4)), 150, 900, seen=(300, 900))
    assert found.window(1, 3) == (96, 16, 320, 128)
    assert found.window(1, 3).left == 96


# Pictures


def sliding(size, seen, stride, side, fields, interpolation="bilinear") -> CellGrid:
    """Windows of `side` pixels that slide over all of a picture."""
    whole, shape = Box(0, 0, *size[::-1]), (len(fields[0]), len(fields[1]))
    place, window = (side / 2, side / 2), (side, side)
    return CellGrid(size, whole, seen, shape, place, (stride, stride), window, fields, interpolation)


def over(values, height, width, seen=None) -> dict:
    """Cells over a grey picture, every 32 pixels, with windows of 224, of a network with twenty classes."""
    values = np.asarray(values, np.float32)
    rule = preset("vgg16")
    seen = seen or (height, width)
    rows, columns = (((0, side),) * count for side, count in zip(seen, values.shape, strict=True))
    grid = sliding((height, width), seen, 32, 224, (rows, columns))
    return {
        "values": values,
        "picture": np.full((height, width, 3), 128, np.uint8),
        "grid": grid,
        "best_ids": np.broadcast_to(np.arange(5, dtype=np.int32), (*values.shape, 5)),
        "best_probabilities": np.broadcast_to(np.linspace(0.5, 0.1, 5, dtype=np.float32), (*values.shape, 5)),
        "card": Card("vgg16", {"classes": 20}, rule, None),
    }


def made(probabilities, height=320, width=416, *, label="car, auto", seen=None):
    return Heatmap(**over(probabilities, height, width, seen), target=Target(label, None, (1,)))


def test_the_overlay_glows_at_the_window_of_the_hot_cell_and_nowhere_else():
    cells = np.zeros((4, 7))
    cells[1, 5] = 0.9
    image = np.asarray(overlays.overlay(made(cells)))[:320]
    changed = np.abs(image.astype(int) - 128).sum(axis=2)
    row, column = np.unravel_index(changed.argmax(), changed.shape)
    assert abs(row - (32 + 112)) <= 8  # the centre of the window, about which the colours saturate
    assert abs(column - (5 * 32 + 112)) <= 8
    rows, columns = np.nonzero(changed)
    assert rows.min() >= 112 and rows.max() < 112 + 2 * 32 + 1  # noqa: PT018 - one box
    assert columns.min() >= 112 + 4 * 32 and columns.max() < 112 + 6 * 32 + 1  # noqa: PT018


def test_an_overlay_fades_towards_the_borders_where_no_window_has_its_centre():
    image = np.asarray(overlays.overlay(made(np.ones((4, 7)))))[:320].astype(int)
    assert (image[160, 208] != 128).any()
    assert np.abs(image[:2, 0] - 128).max() <= 2
    assert np.abs(image[160, :2] - 128).max() <= 2


def test_a_cold_map_does_not_glow_and_nothing_divides_by_zero():
    for cells in (np.zeros((4, 7)), np.full((4, 7), 0.002)):
        image = np.asarray(overlays.overlay(made(cells)))[:320].astype(int)
        assert np.abs(image - 128).max() < 12


@pytest.mark.parametrize(("size", "shape"), [((224, 224), (1, 1)), ((224, 480), (1, 9)), ((1000, 230), (25, 1))])
def test_maps_of_one_row_or_column_are_drawn(size, shape):
    image = overlays.overlay(made(np.full(shape, 0.5), *size, label="a very long name " * 20))
    assert image.width == size[1]
    assert size[0] < image.height < size[0] + 80


def test_a_map_is_saved_as_picture_or_numbers(tmp_path):
    found = made(np.linspace(0, 1, 28).reshape(4, 7))
    for name in ("map.png", "map.JPG", "map.webp"):
        found.save(tmp_path / name)
        with Image.open(tmp_path / name) as image:
            assert image.width == 416
    found.save(tmp_path / "plain.png", plain=True)
    assert (tmp_path / "plain.png").read_bytes() != (tmp_path / "map.png").read_bytes()
    plain = np.asarray(overlays.color_map(found))[:320].astype(int)
    assert plain[-1, -1].sum() > 2 * plain[160, 208].sum() > 10 * plain[0, 0].sum()  # bright is likely, black is not
    found.save(tmp_path / "map.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "map.npy"), found.probabilities)
    with pytest.raises(ValueError, match=r"map\.tiff has an unknown ending; a heatmap can be written as .png"):
        found.save(tmp_path / "map.tiff")
    assert len(list(tmp_path.iterdir())) == 5


def test_several_targets_are_the_single_ones_from_one_pass(alexnet, monkeypatch):
    pixels, targets = picture(3, 291, 355), ("dog", 670, "n04576211")
    alone = [heatmap(alexnet, pixels, target) for target in targets]
    passes = 0
    features = alexnet.features.forward

    def counted(x):
        nonlocal passes
        passes += 1
        return features(x)

    monkeypatch.setattr(alexnet.features, "forward", counted)
    together = heatmap_targets(alexnet, pixels, targets)
    assert passes == 1
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one.probabilities, other.probabilities)
        assert one.target == other.target


def test_a_list_of_targets_works_for_one_more_release(alexnet):
    pixels, targets = picture(3, 291, 355), ["dog", "cat"]
    functions: list[tuple[Any, Any]] = [(heatmap, heatmap_targets), (gradcam, gradcam_targets)]
    for one, many in functions:
        with pytest.warns(DeprecationWarning, match=f"{one.__name__} of a list of targets is now {many.__name__}"):
            found = one(alexnet, pixels, targets)
        assert [each.label for each in found] == [each.label for each in many(alexnet, pixels, targets)]


def test_the_class_map_has_the_best_class_of_each_cell(alexnet):
    pixels = picture(3, 291, 355)
    found = class_map(alexnet, pixels)
    with torch.inference_mode():
        scores = score_map(alexnet, torch.from_numpy(normalize(pixels, alexnet.card.preprocessing))[None])
    np.testing.assert_array_equal(found.class_ids, scores[0].argmax(0))
    np.testing.assert_allclose(found.probabilities, scores.softmax(1)[0].amax(0), rtol=1e-5)
    counts = [int((found.class_ids == class_id).sum()) for class_id in found.names]
    assert sum(counts) == 15
    assert counts == sorted(counts, reverse=True)
    dogs = class_map(alexnet, pixels, only="dog")
    assert set(dogs.class_ids.ravel()) <= set(range(151, 269))
    np.testing.assert_array_equal(dogs.class_ids, scores[0, 151:269].argmax(0) + 151)
    np.testing.assert_allclose(dogs.probabilities, scores.softmax(1)[0, 151:269].amax(0), rtol=1e-5)


def test_each_cell_of_a_class_map_has_the_colour_of_its_class():
    class_ids = np.array([[3, 3, 5, 5], [3, 3, 5, 7]])
    names = {3: "tiger shark", 5: "electric ray", 7: "cock"}
    found = ClassMap(**over(np.ones((2, 4)), 288, 320), class_ids=class_ids, names=names)
    image = np.asarray(found.draw()).astype(int)
    assert image.shape[1] == 320
    assert image.shape[0] > 288 + 20
    colors = np.array(overlays.CLASS_COLORS)
    for (row, column), rank in (((0, 0), 0), ((0, 3), 1), ((1, 3), 2)):
        pixel = image[112 + 32 * row, 112 + 32 * column]
        expected = 128 + overlays.OPAQUE * (colors[rank] - 128)
        assert np.abs(pixel - expected).max() <= 3


def test_more_classes_than_colours_share_grey(tmp_path):
    class_ids = np.arange(12).reshape(3, 4)
    names = {class_id: f"class {class_id}" for class_id in range(12)}
    found = ClassMap(**over(np.ones((3, 4)), 320, 320), class_ids=class_ids, names=names)
    image = np.asarray(found.draw()).astype(int)
    assert np.abs(image[112 + 64, 112 + 96] - (128 + overlays.OPAQUE * (150 - 128))).max() <= 2  # class 11
    found.save(tmp_path / "map.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "map.npy"), class_ids)


def test_several_maps_are_saved_as_one_sheet_or_array(tmp_path):
    maps = [made(np.full((4, 7), value)) for value in (0.1, 0.5, 0.9)]
    save_sheet(maps, tmp_path / "maps.npy")
    np.testing.assert_allclose(np.load(tmp_path / "maps.npy")[:, 0, 0], [0.1, 0.5, 0.9])
    save_sheet(maps, tmp_path / "maps.png")
    save_sheet(maps[:1], tmp_path / "map.png")
    with Image.open(tmp_path / "maps.png") as sheet, Image.open(tmp_path / "map.png") as single:
        assert sheet.width == 2 * 640 + 3 * 16
        assert single.width == 416


def test_a_sheet_has_every_tile_at_its_place_and_room_for_its_text():
    tiles = [(Image.new("RGB", (100, 50), color), "one\ntwo") for color in ("red", "green", "blue", "black")]
    page = overlays.sheet(tiles, columns=3, width=200)
    assert page.width == 3 * 200 + 4 * 16
    middles = [(16 + place * 216 + 100, 16 + 50) for place in range(3)]
    assert [page.getpixel(place) for place in middles] == [(255, 0, 0), (0, 128, 0), (0, 0, 255)]
    row = 100 + 2 * 23 + 8 + 16  # picture, two lines, space
    assert page.getpixel((116, 16 + row + 50)) == (0, 0, 0)
    assert page.height == 16 + 2 * row


def test_the_longest_side_has_limits(network):
    pixels = picture(6, 300, 300)
    for side in (0, -5, 2_000_000, float("inf"), float("nan")):  # the last two against their type
        with pytest.raises(ValueError, match=f"a longest side of {side} pixels is out of range"):
            heatmap(network, pixels, "dog", longest_side=side)  # type: ignore[arg-type]


def test_a_picture_that_is_too_thin_is_not_sent_to_a_size_beyond_reason(network):
    with pytest.raises(ValueError, match=r"20000x1 pixels .*, too thin for a heatmap"):
        heatmap(network, np.zeros((20_000, 1, 3), np.uint8), "dog")


def test_an_error_about_a_picture_names_its_file(network, tmp_path):
    Image.fromarray(picture(6, 100, 300)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match=r"small\.png is 100x300 pixels"):
        heatmap(network, tmp_path / "small.png", "dog")

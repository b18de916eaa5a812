"""Maps as files: numbers, boxes, a page, a sheet; and that they say what the map says."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from convnets_torch.heatmaps.api import contrast, heatmap, heatmap_targets, probability_map, save_sheet
from convnets_torch.heatmaps.maps import CellMap, contrast_of
from convnets_torch.visualization import overlays
from convnets_torch.wordnet.targets import Target
from tests.test_heatmaps import made


@pytest.fixture(scope="module")
def coffee(network, photographs):
    return heatmap(network, photographs / "coffee.png", "espresso", scales=(0.6, 1))


def test_an_npz_holds_the_map_and_where_its_cells_lie(coffee, tmp_path):
    coffee.save(tmp_path / "coffee.npz")
    with np.load(tmp_path / "coffee.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["values"], coffee.values)
        np.testing.assert_array_equal(arrays["windows"][2, 3], coffee.window(2, 3))
        np.testing.assert_array_equal(arrays["receptive_fields"][2, 3], coffee.receptive_field(2, 3))
        for place in ((0, 0), coffee.peak, (3, 7)):  # of a fused map what its winning scale says
            np.testing.assert_array_equal(arrays["windows"][place], coffee.window(*place))
            np.testing.assert_array_equal(arrays["receptive_fields"][place], coffee.receptive_field(*place))
            assert arrays["best_ids"][place].tolist() == [entry.class_id for entry in coffee.top_at(*place)]
        np.testing.assert_array_equal(arrays["scale_0"], coffee.scales[0].values)
        mapping = json.loads(str(arrays["mapping"]))
        assert json.loads(str(arrays["mapping_0"]))["placement"]["seen"] == [240, 360]
    assert mapping["placement"]["size"] == [400, 600]
    [described] = mapping["maps"]
    assert described == {"kind": "heatmap", "target": "espresso", "wnid": "n07920052", "class_ids": [967]}


def test_a_json_holds_the_regions(coffee, tmp_path):
    coffee.save(tmp_path / "coffee.json", threshold=0.25)
    found = json.loads((tmp_path / "coffee.json").read_text())
    assert found["picture"] == {"height": 400, "width": 600}
    assert found["threshold"] == 0.25
    [entry] = found["maps"]
    regions = coffee.regions(0.25)
    assert [tuple(region["box"].values()) for region in entry["regions"]] == [tuple(region.box) for region in regions]
    assert entry["highest"] == pytest.approx(coffee.values.max(), abs=1e-6)
    assert list(entry["regions"][0]["box"]) == ["left", "top", "right", "bottom"]


def test_all_classes_are_numbers_in_an_npz(network, photographs, tmp_path):
    every = probability_map(network, photographs / "coffee.png")
    every.save(tmp_path / "all.npz")
    with np.load(tmp_path / "all.npz") as arrays:
        np.testing.assert_array_equal(arrays["probabilities"], every.probabilities)
    every.save(tmp_path / "all.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "all.npy"), every.probabilities)
    every.save(tmp_path / "all.png")
    with Image.open(tmp_path / "all.png") as image:
        assert image.width == 600


def test_several_maps_share_what_is_of_their_cells(network, photographs, tmp_path):
    every = probability_map(network, photographs / "coffee.png")
    winners = [every.class_map(), every.class_map("dog")]
    save_sheet(winners, tmp_path / "both.npz")
    with np.load(tmp_path / "both.npz") as arrays:
        np.testing.assert_array_equal(arrays["values"], np.stack([each.values for each in winners]))
        np.testing.assert_array_equal(arrays["class_ids"], np.stack([each.class_ids for each in winners]))
        assert arrays["best_ids"].shape == (*winners[0].values.shape, 5)
        kinds = [each["kind"] for each in json.loads(str(arrays["mapping"]))["maps"]]
    assert kinds == ["classes", "classes"]


def test_a_page_holds_every_layer_and_asks_no_network(network, photographs, tmp_path):
    maps = [*heatmap_targets(network, photographs / "coffee.png", ["espresso", "cup"])]
    difference = contrast(network, photographs / "coffee.png", "espresso", "cup")
    save_sheet([*maps, difference], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    for words in ("espresso", "cup", "espresso rather than cup"):
        assert words in text
    assert not re.search(r"(src|href)=.https?:", text)
    assert len(text) > 100_000


def test_maps_of_other_cells_do_not_go_into_one_file(tmp_path):
    with pytest.raises(ValueError, match="maps differ in picture or cells from the first one"):
        save_sheet([made(np.zeros((4, 7))), made(np.zeros((3, 7)), 288)], tmp_path / "sheet.png")
    with pytest.raises(ValueError, match="there are no maps to write"):
        save_sheet([], tmp_path / "sheet.png")
    with pytest.raises(
        ValueError, match=r"x.tiff has an unknown ending; a heatmap can be written as .png, .* or .html"
    ):
        CellMap.writer.check(tmp_path / "x.tiff")
    assert not any(tmp_path.iterdir())


def test_a_contrast_glows_in_two_colours_and_is_clear_between():
    ones, others = np.zeros((4, 7)), np.zeros((4, 7))
    ones[1, 1], others[2, 5] = 0.8, 0.6
    difference = contrast_of(made(ones), other(others))
    image = np.asarray(overlays.overlay(difference))[:320].astype(int)
    red, blue = image[112 + 32, 112 + 32], image[112 + 64, 112 + 5 * 32]
    assert red[0] > red[2] + 80
    assert blue[2] > blue[0] + 50
    assert np.abs(image[112 + 32 * 3, 112 + 32 * 3] - 128).max() <= 4


def other(values):
    return replace(made(values), target=Target("dog", None, (2,)))


def test_a_reduced_view_is_drawn_as_the_picture_is():
    """The picture of a map that was read row by row is smaller than the picture itself; cells keep their place."""
    cells = np.zeros((4, 7))
    cells[1, 5] = 0.9
    whole = made(cells, 320, 416)
    half = replace(whole, picture=whole.picture[::2, ::2])
    large = np.asarray(overlays.color_map(whole))[:320].astype(int)
    small = np.asarray(overlays.color_map(half))[:160].astype(int)
    mean = large.reshape(160, 2, 208, 2, 3).mean(axis=(1, 3))
    assert np.abs(mean - small).max() <= 12
    assert np.asarray(overlays.overlay(half)).shape[1] == 208


def test_bands_of_a_large_picture_join_without_a_seam(monkeypatch):
    values = np.random.default_rng(0).random((9, 7))
    found = made(values, 224 + 8 * 32, 416)
    whole = np.asarray(overlays.overlay(found))
    monkeypatch.setattr(overlays, "BLOCK_ROWS", 37)
    np.testing.assert_array_equal(np.asarray(overlays.overlay(found)), whole)

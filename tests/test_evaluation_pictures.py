"""What the pictures of an evaluation show, read from their pixels."""

from __future__ import annotations

import itertools
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from convnets_torch.card import Card
from convnets_torch.evaluation.calibration import Calibration
from convnets_torch.evaluation.charts import (
    GAP,
    MISSING,
    SIDE,
    confusions_svg,
    draw_confusions,
    draw_reliability,
    mistakes_sheet,
    small_pictures,
)
from convnets_torch.evaluation.metrics import Mistake
from convnets_torch.images.preprocessing import preset
from convnets_torch.visualization.charts import BAR, CELL, GROUP_ROOM, MARGIN, counts_svg, draw_counts
from convnets_torch.wordnet import synsets
from convnets_torch.wordnet.hierarchy import tree_order

IMAGENET = Card("vgg16", {"classes": 1000}, preset("vgg16"), "imagenet-1k")


def test_what_is_alike_stands_together_in_the_order_of_the_tree():
    order, groups = tree_order(synsets.wnids())
    assert sorted(order) == list(range(1000))
    for word in ("dog", "bird", "snake", "wheeled vehicle", "musical instrument", "fruit"):
        places = sorted(order.index(class_id) for class_id in synsets.class_ids(word))
        assert places == list(range(places[0], places[-1] + 1)), word
    assert all(12 <= end - first <= 130 for first, end, _ in groups)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(groups))
    for first, end, words in groups:
        meant = [entry for entry in synsets.search(words) if words in entry.words]
        assert any(set(order[first:end]) <= set(entry.class_ids) for entry in meant), words


def test_cells_of_a_thousand_classes_stand_where_the_order_says():
    counts = np.diag(np.full(1000, 50))
    counts[151, 900] = 12
    counts[3] = 0  # a class without pictures
    order, _ = tree_order(synsets.wnids())
    image = np.asarray(draw_confusions(counts, IMAGENET)).astype(int)
    left, top = MARGIN + GROUP_ROOM, image.shape[0] - MARGIN - 1000
    cells = image[top : top + 1000, left : left + 1000]
    colored = {(int(y), int(x)) for y, x in np.argwhere(cells[..., 0] - cells[..., 1] > 30)}
    wanted = {(place, place) for place, class_id in enumerate(order) if class_id != 3}
    assert colored == wanted | {(order.index(151), order.index(900))}


def test_of_a_thousand_classes_few_that_occur_are_drawn_alone_with_names():
    counts = np.zeros((1000, 1000), int)
    counts[[281, 281, 0], [281, 282, 900]] = [8, 2, 5]
    image = np.asarray(draw_confusions(counts, IMAGENET)).astype(int)
    assert max(image.shape) < 900
    order = [class_id for class_id in tree_order(synsets.wnids())[0] if class_id in (0, 281, 282, 900)]
    top, left = image.shape[0] - MARGIN - 4 * 48, np.flatnonzero((image == 247).all(2).sum(0) > 60)[0]
    colored = [
        (order[row], order[column])
        for row in range(4)
        for column in range(4)
        if np.ptp(image[top + 48 * row + 4, left + 48 * column + 4]) > 10
    ]
    assert sorted(colored) == [(0, 900), (281, 281), (281, 282)]


def test_many_classes_without_groups_are_drawn_in_pixels_and_few_with_numbers():
    counts = np.diag(np.arange(1, 301))
    image = draw_counts(counts, [f"class {number}" for number in range(300)], ("All",))
    assert image.height < 1300
    cells = np.asarray(image).astype(int)[-MARGIN - 1200 : -MARGIN, MARGIN : MARGIN + 1200]
    assert (np.argwhere(cells[..., 0] - cells[..., 1] > 30) // 4 == np.arange(300).repeat(16)[:, None]).all()
    own = Card("vgg16", {"classes": 2}, preset("vgg16"), ("ant", "a name \u202e of \x07 signs"))
    assert draw_confusions(np.array([[3, 1], [0, 0]]), own).height < 400


def calibration(accuracies, confidences, counts, temperature=1.0):
    return Calibration(np.array(counts), np.array(confidences), np.array(accuracies), 0.1, 0.2, 0.3, temperature)


def test_bars_are_as_high_as_the_accuracy_and_gaps_reach_to_the_confidence():
    before = calibration([np.nan, 0.25, 1.0, 0.6], [np.nan, 0.4, 0.7, 0.9], [0, 4, 1, 10])
    after = calibration([0.1, 0.5, 0.75, 0.9], [0.1, 0.5, 0.75, 0.9], [5, 5, 5, 5], temperature=2.0)
    image = np.asarray(draw_reliability(before, after)).astype(int)
    bottom, high = 396, 300  # of the plots
    for left, found in ((72, before), (72 + 344, after)):
        for number in range(4):
            column = image[bottom - high : bottom - 1, left + number * 70 + 20]
            bar, gap = ((np.abs(column - color).sum(1) < 30).sum() / high for color in (BAR, GAP))
            accuracy, confidence = np.nan_to_num((found.accuracies[number], found.confidences[number]))
            assert bar == pytest.approx(min(accuracy, confidence) if accuracy > confidence else accuracy, abs=0.03)
            assert gap == pytest.approx(abs(accuracy - confidence), abs=0.03)
    assert draw_reliability(before).width == 400


def mistake(path, **changes):
    facts = {"row": 0, "truth": 0, "given": 1, "truth_words": "tench, Tinca tinca", "given_words": "goldfish, gold"}
    return Mistake(path=str(path), probability=0.9, of_truth=0.01, ancestor="fish", steps=2, **{**facts, **changes})


def test_a_sheet_shows_pictures_and_says_which_files_are_gone_or_broken(tmp_path):
    Image.new("RGB", (40, 20), "teal").save(tmp_path / "wide.png")  # enlarged, or nobody would see it
    turned = Image.new("RGB", (400, 200), "navy")
    exif = turned.getexif()
    exif[0x0112] = 6  # a quarter to the right
    turned.save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    names = ["wide.png", "turned.jpg", "broken.jpg", "gone \udcff.jpg"]
    found = [mistake(tmp_path / name, truth_words="signs \x07 <b>") for name in names]
    pictures = small_pictures([each.path for each in found] * 2)
    assert [picture.size for picture in pictures.values()] == [(SIDE, SIDE // 2), (SIDE // 2, SIDE)] + [
        (SIDE, SIDE)
    ] * 2
    assert [picture.getpixel((2, 2)) for picture in list(pictures.values())[2:]] == [MISSING] * 2
    assert all(np.asarray(picture).min() < 100 for picture in list(pictures.values())[2:])  # letters
    assert small_pictures([tmp_path / "turned.jpg"], exif=False)[str(tmp_path / "turned.jpg")].size == (SIDE, SIDE // 2)
    sheet = mistakes_sheet(found, list(pictures.values()), "The worst", columns=2)
    assert sheet.width == 16 + 2 * (SIDE + 16)
    assert (np.asarray(sheet) == (0, 128, 128)).all(2).sum() > SIDE * SIDE * 0.45
    assert mistakes_sheet([], [], "The worst").height < 100


SVG = "{http://www.w3.org/2000/svg}"


def texts(svg):
    """What a page of SVG shows as letters."""
    return [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("classes", [2, 90, 400])
def test_all_names_of_any_number_of_classes_are_in_the_vectors(classes):
    names = [f"name {number} <b>&\"'\x07 of what is a class" for number in range(classes)]
    counts = np.diag(np.arange(1, classes + 1))
    counts[0, 1] = 1234
    svg = counts_svg(counts, names, ("Title <i>", "second"))
    found = texts(svg)
    assert found[:2] == ["Title <i>", "second"]
    for name in names:
        assert found.count(name.replace("\x07", "\\x07")) == 2  # its row and its column
    page = ElementTree.fromstring(svg)
    squares = list(page.iter(f"{SVG}path"))
    assert len(squares) == classes + 1
    titles = [title.text for each in squares for title in each]
    assert titles[1] == "{} taken for {}: 1234".format(*(name.replace("\x07", "\\x07") for name in names[:2]))
    width, height = (int(page.get(name)) for name in ("width", "height"))
    for each in squares:
        x, y = map(int, each.get("d").removeprefix("M").partition("h")[0].split())
        assert 0 < x < x + CELL <= width
        assert 0 < y < y + CELL <= height
    x, y = map(int, squares[1].get("d").removeprefix("M").partition("h")[0].split())
    first = tuple(map(int, squares[0].get("d").removeprefix("M").partition("h")[0].split()))
    assert (x, y) == (first[0] + CELL, first[1])  # the truth in rows


def test_many_cells_are_a_path_of_each_colour_and_long_names_are_cut(monkeypatch):
    monkeypatch.setattr("convnets_torch.visualization.charts.SPOKEN", 3)
    counts = np.array([[1, 1, 0], [0, 5, 0], [0, 0, 7]])
    svg = counts_svg(counts, ("a" * 60, "bee", "cat"), ("Answers",))
    squares = [each.get("d").count("M") for each in ElementTree.fromstring(svg).iter(f"{SVG}path")]
    assert sorted(squares) == [2, 2]  # a half each, and whole
    assert texts(svg)[1] == "a" * 39 + "\u2026"
    assert f"<title>{'a' * 60}</title>" in svg


def test_the_vectors_show_the_classes_that_are_there():
    counts = np.zeros((1000, 1000), int)
    counts[281, 282], counts[3, 3] = 2, 5
    shown = texts(confusions_svg(counts, IMAGENET))
    assert "3 of 1000" in shown[0]
    assert sorted(shown[2:]) == sorted(2 * ["tabby", "tiger cat", "tiger shark"] + ["2", "5"])

"""What the charts of an evaluation hold, and what the sheets of mistakes show."""

from __future__ import annotations

import itertools

import numpy as np
from PIL import Image

from convnets_torch.card import Card
from convnets_torch.evaluation.calibration import Calibration
from convnets_torch.evaluation.charts import (
    MISSING,
    SIDE,
    draw_confusions,
    draw_reliability,
    mistakes_sheet,
    small_pictures,
)
from convnets_torch.evaluation.metrics import Mistake
from convnets_torch.images.decoding import Reading
from convnets_torch.images.preprocessing import preset
from convnets_torch.wordnet import synsets
from convnets_torch.wordnet.hierarchy import tree_order
from tests.test_ground_truth import IMAGENET


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


def colored(ax):
    """Rows and columns of the cells of a chart that are not empty."""
    if ax.images:
        return {tuple(map(int, place)) for place in np.argwhere(ax.images[0].get_array()[..., 3])}
    return {tuple(map(int, np.rint(patch.get_path().vertices[:4].mean(0)[::-1]))) for patch in ax.patches}


def names(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


def test_cells_of_a_thousand_classes_stand_where_the_order_says():
    counts = np.diag(np.full(1000, 50))
    counts[151, 900] = 12
    counts[3] = 0  # a class without pictures
    order, groups = tree_order(synsets.wnids())
    ax = draw_confusions(counts, IMAGENET)
    wanted = {(place, place) for place, class_id in enumerate(order) if class_id != 3}
    assert colored(ax) == wanted | {(order.index(151), order.index(900))}
    assert set(names(ax)) <= {words for _, _, words in groups}


def test_of_a_thousand_classes_few_that_occur_are_drawn_alone_with_names():
    counts = np.zeros((1000, 1000), int)
    counts[[281, 281, 0], [281, 282, 900]] = [8, 2, 5]
    ax = draw_confusions(counts, IMAGENET)
    order = [class_id for class_id in tree_order(synsets.wnids())[0] if class_id in (0, 281, 282, 900)]
    assert names(ax) == [synsets.words(class_id).partition(",")[0] for class_id in order]
    assert {(order[row], order[column]) for row, column in colored(ax)} == {(0, 900), (281, 281), (281, 282)}
    assert sorted(text.get_text() for text in ax.texts) == ["2", "5", "8"]


def test_few_classes_are_drawn_all_and_every_name_means_those_that_occur():
    own = Card("vgg16", {"classes": 3}, preset("vgg16"), ("ant", "a name \u202e of \x07 signs", "cat"))
    counts = np.array([[3, 1, 0], [0, 0, 0], [0, 0, 0]])
    assert names(draw_confusions(counts, own)) == ["ant", r"a name \u202e of \x07 signs", "cat"]
    assert names(draw_confusions(counts, own, every_name=True)) == ["ant", r"a name \u202e of \x07 signs"]


def test_the_vectors_show_the_classes_that_are_there(tmp_path):
    counts = np.zeros((1000, 1000), int)
    counts[281, 282], counts[3, 3] = 2, 5
    ax = draw_confusions(counts, IMAGENET, every_name=True)
    assert "3 of 1000" in ax.get_title(loc="left")
    assert sorted(names(ax)) == ["tabby", "tiger cat", "tiger shark"]


def calibration(accuracies, confidences, counts, temperature=1.0):
    return Calibration(np.array(counts), np.array(confidences), np.array(accuracies), 0.1, 0.2, 0.3, temperature)


def test_reliability_before_and_after_a_temperature_stands_side_by_side():
    before = calibration([np.nan, 0.25, 1.0, 0.6], [np.nan, 0.4, 0.7, 0.9], [0, 4, 1, 10])
    after = calibration([0.1, 0.5, 0.75, 0.9], [0.1, 0.5, 0.75, 0.9], [5, 5, 5, 5], temperature=2.0)
    both = draw_reliability(before, after)
    titles = [ax.get_title(loc="left").splitlines() for ax in both]
    assert [lines[0] for lines in titles] == ["Reliability as it is", "Reliability with temperature 2"]
    assert titles[0][1] == f"ECE {before.ece:.2%}, 15 pictures"
    for ax, found in zip(both, (before, after), strict=True):
        bars = [bar.get_height() for bar in ax.containers[0]]
        assert bars == found.accuracies[found.counts > 0].tolist()
    assert len(draw_reliability(before)) == 1


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
    [turned] = small_pictures([tmp_path / "turned.jpg"], Reading(exif=False)).values()
    assert turned.size == (SIDE, SIDE // 2)
    sheet = mistakes_sheet(found, list(pictures.values()), "The worst", columns=2)
    assert sheet.width == 16 + 2 * (SIDE + 16)
    assert (np.asarray(sheet) == (0, 128, 128)).all(2).sum() > SIDE * SIDE * 0.45
    assert mistakes_sheet([], [], "The worst").height < 100

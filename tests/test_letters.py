"""Letters in pictures: every script that a font has, each word in the font that has it, and captions of any size."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFont

from convnets_torch.heatmaps.maps import ClassMap
from convnets_torch.visualization import letters, overlays
from convnets_torch.visualization.letters import OWN, Letters, Pen, font_for, runs
from tests.test_heatmaps import made, over

ACCENTS = (
    "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒÓÔÕÖØÙÚÛÜÝÞßàáâãäåæçèéêëìíîïðñòóôõöøùúûüýþÿĀąĆćČčĎďđĒęĚěĞğİıŁłŃńŇňŐőŒœŘřŚśŞşŠšŤťŮůŰűŹźŻżŽžẞế"
)
MIXED = "HHH \u041d\u041d\u041d"  # the second word is Cyrillic
WORDS = "Αλφα Кошка Épée"


def drawn(text, size=40, anchor="la", at=(20, 20), page=(900, 120)):
    image = Image.new("L", page, 255)
    Pen(image).text(at, text, 0, Letters(size), anchor)
    return np.asarray(image) < 128


@pytest.fixture
def bare(monkeypatch):
    """A system without a font."""
    monkeypatch.setattr(letters, "_of_system", lambda letter: iter(()))
    monkeypatch.setattr(letters, "_found", [])
    font_for.cache_clear()
    yield
    font_for.cache_clear()


def test_accents_greek_and_cyrillic_are_drawn_where_no_font_is_installed(bare):
    """Pillow's own font has a box for each of them."""
    boxes = {drawn(letter).tobytes() for letter in "\U0010ffff\U0010fffe"}
    assert len(boxes) == 1
    assert len({drawn(letter).tobytes() for letter in ACCENTS} | boxes) == len(ACCENTS) + 1  # all differ, none is a box
    own = np.asarray(ImageFont.load_default(size=40).getmask("é"))
    assert (own == np.asarray(ImageFont.load_default(size=40).getmask("\U0010ffff"))).all()
    for letter in set(WORDS) - set(" "):
        assert drawn(letter).tobytes() not in boxes


def test_a_word_is_in_one_font_and_english_in_pillows(bare):
    assert list(runs("a fine cat")) == [(None, "a fine cat")]
    assert list(runs("a fine Épée of Łódź")) == [
        (None, "a fine "), (str(OWN), "Épée "), (None, "of "), (str(OWN), "Łódź"),
    ]  # fmt: skip
    assert list(runs("")) == [(None, "")]
    assert list(runs("猫é")) == [(None, "猫"), (str(OWN), "é")]  # none has the first, and the second is not lost


def test_a_font_of_the_system_draws_what_the_others_lack(monkeypatch):
    """With whichever fonts there are: one that fontconfig names is taken only where it has the letter."""
    font_for.cache_clear()
    monkeypatch.setattr(letters, "_found", [])
    for letter in "猫ق🦊ㅎ":
        name = font_for(letter)
        box = drawn("\U0010ffff").tobytes()
        if name is None:
            assert drawn(letter).tobytes() == box
        else:
            assert drawn(letter, page=(300, 120)).any()
            assert name in letters._found
    font_for.cache_clear()


def test_a_font_that_is_set_comes_first(monkeypatch, bare):
    monkeypatch.setenv("CONVNETS_TORCH_FONT", str(OWN))
    assert list(runs("cat")) == [(str(OWN), "cat")]
    monkeypatch.setenv("CONVNETS_TORCH_FONT", "/none/such.ttf")
    assert list(runs("cat")) == [(None, "cat")]


@pytest.mark.parametrize("anchor", ["la", "lm", "rm", "mm", "ms", "ls", "rd"])
def test_several_fonts_stand_where_one_would(anchor, bare):
    """A line of two fonts has its letters at the heights of a line of one, and its ends where they should be."""
    one, several = (drawn(text, anchor=anchor, at=(400, 60)) for text in ("HHH HHH", MIXED))
    rows = [np.flatnonzero(page.any(1)) for page in (one, several)]
    assert abs(rows[0][0] - rows[1][0]) <= 4  # capitals of two fonts
    assert abs(rows[0][-1] - rows[1][-1]) <= 1
    columns, width = np.flatnonzero(several.any(0)), Letters(40).getlength(MIXED)
    start = 400 - {"l": 0, "m": 0.5, "r": 1}[anchor[0]] * width
    assert abs(columns[0] - start) <= 6
    assert abs(columns[-1] - start - width) <= 6


@pytest.mark.parametrize("width", [60, 100, 240, 600, 3000, 10_000])
@pytest.mark.parametrize("label", ["car", "Épée Кошка Αλφα, of very many words which no picture holds"])
def test_captions_scale_with_the_picture_and_cover_nothing(width, label):
    heatmap = made(np.linspace(0, 0.93, 12).reshape(2, 6), 224, width, label=label)
    page, alone = np.asarray(overlays.overlay(heatmap)), np.asarray(overlays.color_map(heatmap))
    assert page.shape[1] == width
    strip = page[224:]
    np.testing.assert_array_equal(alone[224:], strip)
    size = max(11, width // 71)
    assert 2 * size <= len(strip) <= max(70, width // 20)
    bar = (strip.max(2).astype(int) - strip.min(2)) > 60  # colours, which letters are none of
    left, right = np.flatnonzero(bar.any(0))[[0, -1]]
    rows = np.flatnonzero(bar.any(1))
    dark = (strip.max(2) < 200) & ~bar
    inside = dark[rows[0] : rows[-1] + 1, left + (right - left) // 4 : right]  # the bar begins in black
    assert not inside.any()
    for border in (strip[:, 0], strip[:, -1], strip[-1]):
        assert (border == 255).all()  # no letter is cut
    words = dark.any(0)
    assert words[: width // 3].any()


@pytest.mark.parametrize("width", [60, 600, 10_000])
def test_legends_keep_their_shares(width):
    ids = np.arange(12).reshape(2, 6) % 9
    names = {number: f"Épée {number} of many words" for number in range(9)}
    cells = ClassMap(**over(np.full((2, 6), 0.5), 224, width), class_ids=ids, names=names)
    page = np.asarray(cells.draw())
    assert page.shape[1] == width
    assert (page[224:, -1] == 255).all()
    assert (page[-1] == 255).all()


def test_a_sheet_bounds_its_words():
    tile = Image.new("RGB", (40, 30))
    text = "x\n" * 1_000_000
    page = overlays.sheet([(tile, text)], columns=1, width=100, title=text)
    assert page.height < 30 + 2 * 12 * 23 + 200

"""Thumbnails of maps, who of them is shown, sheets of them, and maps as pictures and pages."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from convnets_torch.embeddings.image_map import MapEntry
from convnets_torch.embeddings.image_map_drawing import (
    NEVER,
    PAPER,
    apart,
    draw_map,
    levels,
    mean_color,
    save_map_page,
    sheets,
    thumbnail_side,
    thumbnails,
)

COUNT = 120
RANDOM = np.random.RandomState(3)
PLACES = (RANDOM.normal(size=(4, 2)).repeat(30, 0) * 20 + RANDOM.normal(size=(COUNT, 2)) * 3).astype(np.float32)
COLORS = RANDOM.randint(0, 200, (COUNT, 3))
IMAGES = [Image.new("RGB", (40, 30) if i % 2 else (30, 40), tuple(COLORS[i].tolist())) for i in range(COUNT)]
ENTRIES = [MapEntry(f"{i}.jpg", "espresso") for i in range(COUNT)]


def test_at_each_level_no_two_squares_overlap_and_each_that_is_left_out_would():
    found, extent = levels(PLACES), float(np.ptp(PLACES.astype(float), axis=0).max())
    assert found.max() < NEVER
    away = np.abs(PLACES[:, None].astype(float) - PLACES).max(axis=2)  # squares touch by the longer of both
    np.fill_diagonal(away, np.inf)
    for level in range(int(found.max()) + 1):
        side, shown = extent / 2 ** (level / 2), found <= level
        assert shown.any()
        assert (away[np.ix_(shown, shown)] >= side).all()
        if not shown.all():
            assert (away[np.ix_(~shown, shown)].min(axis=1) < side).all()


def test_who_comes_first_is_shown_first():
    first = np.zeros(COUNT, bool)
    first[[5, 40, 70, 100]] = True  # one in each group
    found, plain = levels(PLACES, first), levels(PLACES)
    assert (found[first] == 0).sum() == 1
    assert not (plain[first] == 0).any()
    assert found[first].mean() < plain[first].mean() - 1


def test_pictures_at_one_place_are_one_thumbnail():
    found = levels(np.array([[0, 0], [1, 1], [1, 1], [1, 1]], float))
    assert sorted(found.tolist()) == [0, 0, NEVER, NEVER] or sorted(found.tolist()) == [0, 1, NEVER, NEVER]
    assert sorted(levels(np.zeros((3, 2))).tolist()) == [0, NEVER, NEVER]


def test_squares_of_any_side_are_thinned_alike():
    for side in (2.0, 3.7, 11.0):
        shown = apart(PLACES, side)
        away = np.abs(PLACES[:, None].astype(float) - PLACES).max(axis=2)
        np.fill_diagonal(away, np.inf)
        assert (away[np.ix_(shown, shown)] >= side).all()
        assert (away[np.ix_(~shown, shown)].min(axis=1) < side).all()


def test_thumbnails_are_small_upright_and_in_order(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (400, 300), "red").save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGB", (1000, 5), "blue").save(tmp_path / "thin.png")
    Image.new("L", (20, 30), 77).save(tmp_path / "tiny.png")
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    names = ["turned.jpg", "thin.png", "bad.jpg", "tiny.png", "none.jpg"]
    found = list(thumbnails([tmp_path / name for name in names], 64))
    assert [each.image and each.image.size for each in found] == [(48, 64), (64, 1), None, (20, 30), None]
    assert [type(each.error) for each in found] == [type(None), type(None), OSError, type(None), FileNotFoundError]
    assert mean_color(found[0].image)[0] > 240
    assert mean_color(found[3].image) == (77, 77, 77)


def test_thumbnails_of_larger_collections_are_smaller():
    sides = [thumbnail_side(count) for count in (3, 1_000, 1_001, 20_000, 10**6)]
    assert sides == [128, 128, 96, 48, 32]


def test_a_sheet_holds_thumbnails_row_by_row():
    order = RANDOM.permutation(COUNT)
    pages = list(sheets([*IMAGES[:-1], None], order.tolist(), 48))
    assert [page.size for page in pages] == [(1536, 4 * 48)]  # 32 in a row
    pixels = np.asarray(pages[0])
    for slot, i in enumerate(order):
        left, top = slot % 32 * 48, slot // 32 * 48
        wanted = (128, 128, 128) if i == COUNT - 1 else COLORS[i]
        assert (pixels[top : top + 48, left : left + 48] == wanted).all()


def test_a_map_shows_thumbnails_whole_and_the_others_as_dots():
    drawn = draw_map(PLACES, IMAGES, longest=700, side=40)
    assert max(drawn.image.size) == 700
    assert 10 < drawn.shown.sum() < 80
    pixels = np.asarray(drawn.image)
    low, extent = (PLACES * (1, -1)).min(0), np.ptp(PLACES, axis=0).max()
    middles = (PLACES * (1, -1) - low) * (700 - 2 * drawn.side) / extent + drawn.side
    free = np.ones(pixels.shape[:2], bool)
    for i in range(COUNT):
        x, y = np.rint(middles[i]).astype(int)
        half = np.array(IMAGES[i].size) // 2 - 1 if drawn.shown[i] else np.array([2, 2])
        box = np.s_[y - half[1] : y + half[1], x - half[0] : x + half[0]]
        if drawn.shown[i]:
            assert (pixels[box] == COLORS[i]).all()  # nothing lies over it
        free[y - half[1] - 2 : y + half[1] + 3, x - half[0] - 2 : x + half[0] + 3] = False
    assert (pixels[free] == PAPER).all()


def test_thumbnails_of_many_pictures_are_drawn_smaller():
    assert draw_map(PLACES, IMAGES, longest=600).side == 32  # 600 / sqrt(120) / 2 would be 27
    assert draw_map(PLACES, IMAGES, longest=770).side == 35
    assert draw_map(PLACES[:9], IMAGES[:9], longest=600).side == 40  # as they are


def test_new_pictures_are_framed_and_come_first():
    new = np.arange(COUNT) % 10 == 0
    drawn = draw_map(PLACES, IMAGES, new=new, longest=700, side=40)
    plain = draw_map(PLACES, IMAGES, longest=700, side=40)
    assert drawn.shown[new].sum() > plain.shown[new].sum()
    frames = (np.asarray(drawn.image) == (214, 69, 0)).all(axis=2)
    assert frames.sum() > 100 * drawn.shown[new].sum()
    assert not (np.asarray(plain.image) == (214, 69, 0)).all(axis=2).any()


def test_pictures_without_thumbnail_take_no_room():
    some = [image if i % 3 == 0 else None for i, image in enumerate(IMAGES)]
    drawn = draw_map(PLACES, some, longest=700, side=40)
    assert not drawn.shown[[image is None for image in some]].any()
    assert drawn.shown.sum() > 8
    assert not draw_map(PLACES, [None] * COUNT, longest=700, side=40).shown.any()
    assert draw_map(PLACES[:1], IMAGES[:1], longest=700, side=40).shown.all()


def test_a_page_holds_everything_and_its_sheets_every_thumbnail(tmp_path):
    save_map_page(PLACES, ENTRIES, IMAGES, tmp_path / "m.html", title="T")
    text = (tmp_path / "m.html").read_text()
    assert "http:" not in text
    assert "https:" not in text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    [sheet] = re.findall(r'class="sheet">data:image/jpeg;base64,(.*?)</script>', text)
    slots, side = np.frombuffer(b64decode(data["slots"]), np.uint32), data["side"]
    with Image.open(BytesIO(b64decode(sheet))) as image:
        pixels = np.asarray(image).astype(int)
    across = 1536 // side
    for i, slot in enumerate(slots):
        left, top = slot % across * side, slot // across * side
        part = pixels[top : top + IMAGES[i].height, left : left + IMAGES[i].width]
        assert np.abs(part - COLORS[i]).max() < 12  # JPEG
    first = (tmp_path / "m.html").read_bytes()
    save_map_page(PLACES, ENTRIES, IMAGES, tmp_path / "m.html", title="T")
    assert (tmp_path / "m.html").read_bytes() == first


def test_what_does_not_fit_together_is_refused(tmp_path):
    with pytest.raises(ValueError, match="120 places, 119 entries and 120 thumbnails"):
        save_map_page(PLACES, ENTRIES[1:], IMAGES, tmp_path / "m.html", title="T")
    with pytest.raises(ValueError, match=r"a map can be written as \.html"):
        save_map_page(PLACES, ENTRIES, IMAGES, tmp_path / "m.png", title="T")
    with pytest.raises(ValueError, match="119 places and 120 thumbnails"):
        draw_map(PLACES[1:], IMAGES)
    with pytest.raises(ValueError, match="no room for thumbnails of 40; make it 120 or more"):
        draw_map(PLACES, IMAGES, longest=100, side=40)
    assert not list(tmp_path.iterdir())

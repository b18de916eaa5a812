"""What the page of a map does in a browser: real mouse, keys and touch, against places computed from the input."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image, ImageDraw

from convnets_torch.embeddings.image_map import MapEntry
from convnets_torch.embeddings.image_map_drawing import levels, save_map_page

COUNT, SIDE = 300, 64
RANDOM = np.random.RandomState(7)
PLACES = (RANDOM.normal(size=(6, 2)).repeat(50, 0) * (30, 20) + RANDOM.normal(size=(COUNT, 2)) * 4).astype(np.float32)
WORDS = ["tabby, tabby cat", "espresso", "space shuttle", "", "wolf <b>&", "zebra"]
ENTRIES = [
    MapEntry(f"photos/{'ab'[i % 2]}/img_{i:03}.jpg", WORDS[i // 50], None if i // 50 == 3 else (i % 50) / 50)
    for i in range(COUNT)
]
COLORS = RANDOM.randint(40, 220, (COUNT, 3))
IMAGES = [Image.new("RGB", (SIDE, 48 if i % 3 else SIDE), tuple(COLORS[i].tolist())) for i in range(COUNT)]
MARGIN = 12 + SIDE / 2  # pixels around the map that is shown whole
NOTCH = 0.0016  # of a wheel, a pixel


@pytest.fixture
def opened(visit, tmp_path):
    def open_page(places=PLACES, entries=ENTRIES, images=IMAGES, title="Photos", **facts):
        path = tmp_path / "map.html"
        names = ("width", "height", "has_touch", "is_mobile", "device_scale_factor")
        options = {name: facts.pop(name) for name in names if name in facts}
        save_map_page(places, entries, images, path, title=title, **facts)
        page = visit(path, permissions=["clipboard-read", "clipboard-write"], **({"height": 850} | options))
        settle(page)
        return page

    return open_page


def settle(page):
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done())))")


def on_stage(page, places=PLACES):
    """Where each picture is in the window when the whole map is shown, and pixels per unit."""
    box = page.locator("#map").bounding_box()
    flipped = places.astype(float) * np.array((1, -1))
    low, high = flipped.min(axis=0), flipped.max(axis=0)
    size = np.array([box["width"], box["height"]])
    scale = ((size - 2 * MARGIN) / (high - low)).min()
    return (flipped - (low + high) / 2) * scale + size / 2 + (box["x"], box["y"]), scale


def thumbnails_at(scale, places=PLACES):
    extent = np.ptp(places.astype(float), axis=0).max()
    return levels(places * np.array((1, -1), np.float32)) <= np.floor(2 * np.log2(extent * scale / SIDE))


def expected_under(point, at, shown):
    """The picture whose thumbnail holds the point, or else the nearest dot within 14 pixels; None where none is."""
    for i in np.flatnonzero(shown):
        reach = np.array(IMAGES[i].size) / 2
        if (np.abs(point - at[i]) < reach - 1).all():
            return i
        if (np.abs(point - at[i]) < reach + 1).all():
            return -1  # too near to its border to say
    away = np.where(shown, np.inf, np.linalg.norm(at - point, axis=1))
    near = np.sort(away)[:2]
    if near[1] - near[0] < 2 or abs(near[0] - 14) < 2:
        return -1
    return int(away.argmin()) if near[0] < 14 else None


def shown_name(page):
    settle(page)
    return page.locator("#card .name").inner_text() if page.locator("#card").is_visible() else None


def listed(page):
    return page.input_value("#list").splitlines()


@pytest.mark.parametrize("width", [1300, 700])
def test_the_mouse_says_which_picture_is_under_it(opened, width):
    page = opened(width=width)
    at, scale = on_stage(page)
    shown = thumbnails_at(scale)
    assert 8 < shown.sum() < 150
    seen = set()
    for i in [*np.flatnonzero(shown)[:10], *np.flatnonzero(~shown)[::12]]:
        point = at[i]
        expected = expected_under(point, at, shown)
        if expected is None or expected < 0:
            continue
        page.mouse.move(*point)
        assert shown_name(page) == ENTRIES[expected].name.rpartition("/")[2]
        said = page.locator("#card .words").inner_text()
        entry = ENTRIES[expected]
        assert said == (f"{entry.words} {entry.probability:.2f}" if entry.words else "")
        seen.add(bool(shown[expected]))
    assert seen == {True, False}
    page.mouse.move(5, 5)
    assert shown_name(page) is None


def test_thumbnails_stand_at_their_places_and_dots_have_their_colours(opened, tmp_path):
    page = opened()
    at, scale = on_stage(page)
    shown = thumbnails_at(scale)
    page.wait_for_timeout(300)  # for the sheets
    page.screenshot(path=tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    for i in np.flatnonzero(shown):
        half = np.array(IMAGES[i].size) / 2 - 3
        for corner in ((-1, -1), (1, 1), (-1, 1)):
            x, y = np.rint(at[i] + half * corner).astype(int)
            assert np.abs(pixels[y, x] - COLORS[i]).max() <= 6
    for i in np.flatnonzero(~shown):
        x, y = np.floor(at[i]).astype(int)
        alone = np.linalg.norm(np.delete(at, i, 0) - at[i], axis=1).min() > 50
        if alone:
            assert np.abs(pixels[y, x] - COLORS[i]).max() <= 2


def test_the_wheel_zooms_about_the_mouse_and_dragging_moves(opened):
    page = opened()
    at, scale = on_stage(page)
    fixed = at[120]
    page.mouse.move(*fixed)
    for _ in range(5):
        page.mouse.wheel(0, -200)
        settle(page)
    factor = np.exp(5 * 200 * NOTCH)
    now, shown = fixed + (at - fixed) * factor, thumbnails_at(scale * factor)
    page.mouse.move(*np.add(fixed, 1))
    assert shown_name(page) == "img_120.jpg"
    box = page.locator("#map").bounding_box()
    middle = np.array([box["x"] + box["width"] / 2, box["y"] + box["height"] / 2])
    page.mouse.move(*(middle + 60))
    page.mouse.down()
    page.mouse.move(*np.add(middle, (20, 90)), steps=4)
    page.mouse.up()
    now = np.add(now, (-40, 30))
    inside = (
        (now > (box["x"] + 40, box["y"] + 40)) & (now < (box["x"] + box["width"] - 40, box["y"] + box["height"] - 40))
    ).all(1)
    tested = 0
    for i in np.flatnonzero(inside):
        if expected_under(now[i], now, shown) == i:
            page.mouse.move(*now[i])
            assert shown_name(page) == f"img_{i:03}.jpg"
            tested += 1
    assert tested >= 5
    page.locator("#all").click()
    page.mouse.move(*at[np.flatnonzero(thumbnails_at(scale))[0]])
    assert shown_name(page) == f"img_{np.flatnonzero(thumbnails_at(scale))[0]:03}.jpg"


def draw_loop(page, corners):
    page.mouse.move(*corners[0])
    page.mouse.down()
    for corner in [*corners[1:], corners[0]]:
        page.mouse.move(*corner, steps=5)
    page.mouse.up()


def within(corners, at):
    """Which places are inside, by a filled drawing of the loop at eight times the scale."""
    image = Image.new("1", (1300 * 8, 900 * 8))
    ImageDraw.Draw(image).polygon([tuple((8 * np.array(corner)).tolist()) for corner in corners], fill=1)
    inside = np.asarray(image)
    return {i for i, (x, y) in enumerate(np.rint(8 * at).astype(int)) if inside[y, x]}


def test_a_loop_makes_a_list_of_the_files_inside(opened):
    page = opened()
    at, _ = on_stage(page)
    box = page.locator("#map").bounding_box()
    places = [(0.1, 0.1), (0.75, 0.2), (0.4, 0.45), (0.7, 0.8), (0.15, 0.75)]  # with a bay
    corners = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in places]
    page.locator("#lasso").click()
    draw_loop(page, corners)
    wanted = within(corners, at)
    assert 30 < len(wanted) < COUNT - 30
    assert set(listed(page)) == {ENTRIES[i].name for i in wanted}
    assert page.inner_text("#count") == f"{len(wanted)} of {COUNT}"
    page.locator("#copy").click()
    page.get_by_text(f"{len(wanted)} lines copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()").splitlines() == listed(page)
    with page.expect_download() as download:
        page.locator("#download").click()
    assert download.value.suggested_filename == "files.txt"
    assert download.value.path().read_text().splitlines() == listed(page)
    page.locator("#clear").click()
    assert listed(page) == []
    page.locator("#lasso").click()  # off; with Shift it works all the same, and a second loop adds to the first
    halves = [corners[:3], [corners[2], *corners[3:]]]
    page.keyboard.down("Shift")
    for half in halves:
        draw_loop(page, half)
    page.keyboard.up("Shift")
    assert set(listed(page)) == {ENTRIES[i].name for half in halves for i in within(half, at)}


def test_search_finds_files_and_classes_leads_there_and_fills_the_list(opened):
    page = opened()
    page.fill("#search", "B/IMG_01")
    hits = [entry.name for entry in ENTRIES if "b/img_01" in entry.name]
    assert page.locator("#hits button").all_inner_texts() == [name.rpartition("/")[2] for name in hits]
    assert page.inner_text("#found") == f"{len(hits)} of {COUNT}"
    page.locator("#hits button").nth(2).click()
    assert shown_name(page) == hits[2].rpartition("/")[2]
    box = page.locator("#map").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert shown_name(page) == hits[2].rpartition("/")[2]  # in the middle now
    page.locator("#take").click()
    assert listed(page) == hits
    page.fill("#search", "espresso")
    assert page.inner_text("#found") == f"50 of {COUNT}"
    page.fill("#search", "no such thing")
    assert page.inner_text("#found") == f"0 of {COUNT}"
    assert not page.locator("#take").is_visible()


def test_keys_go_from_picture_to_picture_and_fill_the_list(opened):
    page = opened()
    page.locator("#map").focus()
    at = PLACES.astype(float) * (1, -1)
    page.keyboard.press("ArrowRight")
    before = int(shown_name(page)[4:7])
    for key, along in {"ArrowRight": (1, 0), "ArrowDown": (0, 1), "ArrowLeft": (-1, 0), "ArrowUp": (0, -1)}.items():
        step = at - at[before]
        ahead, aside = step @ along, np.abs(step @ np.array(along)[::-1])
        away = np.where((ahead > 0) & (aside <= ahead), np.hypot(*step.T), np.inf)
        page.keyboard.press(key)
        expected = int(away.argmin()) if np.isfinite(away).any() else before
        assert shown_name(page) == f"img_{expected:03}.jpg"
        before = expected
    assert page.inner_text("#said").startswith(f"img_{before:03}.jpg. ")  # what a screen reader speaks
    page.keyboard.press("Enter")
    assert listed(page) == [ENTRIES[before].name]
    page.keyboard.press("+")
    assert shown_name(page) == f"img_{before:03}.jpg"
    page.keyboard.press("Enter")
    assert listed(page) == []
    page.keyboard.press("Escape")
    assert shown_name(page) is None


def test_a_finger_chooses_a_picture_on_a_narrow_screen(opened):
    page = opened(width=390, height=800, has_touch=True, is_mobile=True, device_scale_factor=2)
    at, scale = on_stage(page)
    i = np.flatnonzero(thumbnails_at(scale))[0]
    page.touchscreen.tap(*at[i])
    assert shown_name(page) == f"img_{i:03}.jpg"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_new_and_failed_pictures_are_told(opened):
    page = opened(new=np.arange(COUNT) >= 290, failed={"bad<i>.jpg": "bad<i>.jpg is no picture"})
    assert page.inner_text("#facts") == "300 pictures, 10 of them new (framed)"
    page.fill("#search", "img_295")
    page.locator("#hits button").click()
    settle(page)
    assert page.locator("#card .words").inner_text().endswith(", new on the map")
    page.locator("#failed summary").click()
    assert page.locator("#failed li").all_inner_texts() == ["bad<i>.jpg bad<i>.jpg is no picture"]


def test_words_from_files_are_text(opened):
    hostile = "</script><img src=x onerror='window.hacked=1'><!--\u202e\x07"
    entries = [MapEntry(hostile, hostile, 0.5), *ENTRIES[1:]]
    page = opened(entries=entries, title=hostile, failed={hostile: hostile})
    shown = hostile.split("\u202e")[0] + r"\u202e\x07"
    assert page.inner_text("h1") == shown
    page.fill("#search", "onerror")
    assert page.locator("#hits button").count() == 1
    page.locator("#hits button").click()
    settle(page)
    assert shown in page.locator("#card .words").inner_text()
    assert page.evaluate("window.hacked") is None


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_pictures_and_pictures_at_one_place_are_shown(opened, count):
    page = opened(places=np.zeros((count, 2), np.float32), entries=ENTRIES[:count], images=[*IMAGES[: count - 1], None])
    box = page.locator("#map").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 + 2, box["y"] + box["height"] / 2)
    assert re.fullmatch(r"img_00\d\.jpg", shown_name(page))
    said = page.locator("#card .words").inner_text()
    assert said.endswith(f", {count - 1} more at this place") if count > 1 else "more" not in said


def test_twenty_thousand_pictures_move_at_interactive_speed(opened):
    """A wheel's step in each frame; the bound is far above what is measured, for machines that are busy."""
    places = np.random.RandomState(0).normal(size=(20_000, 2)).astype(np.float32)
    page = opened(places, [MapEntry(f"{i}.jpg") for i in range(20_000)], [IMAGES[i % COUNT] for i in range(20_000)])
    milliseconds = page.evaluate("""async () => {
      const map = document.getElementById("map"), box = map.getBoundingClientRect(), found = [];
      const frame = () => new Promise(requestAnimationFrame);
      let last = await frame();
      for (let i = 0; i < 60; i++) {
        const place = { clientX: box.left + box.width / 2, clientY: box.top + box.height / 2 };
        map.dispatchEvent(new WheelEvent("wheel", { ...place, deltaY: i < 40 ? -60 : 60, cancelable: true }));
        const now = await frame();
        found.push(now - last);
        last = now;
      }
      return found;
    }""")
    print(f"median {np.median(milliseconds):.1f} ms, 95th percentile {np.percentile(milliseconds, 95):.1f} ms")  # noqa: T201
    assert np.median(milliseconds) < 200

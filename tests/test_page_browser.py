"""What the page does in a browser: real mouse, keyboard and touch, against numbers derived from the input arrays."""

from __future__ import annotations

import re
from base64 import b64decode
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from convnets_torch.visualization.overlays import STRENGTH, palette
from convnets_torch.visualization.pages import MapLayer, write_page
from tests.reference.cells import NAMES, boxes_of, draw_cells, draw_map, nearest, overlay, regions
from tests.reference.pictures import picture

SIZE = (521, 803)  # of the original, which the last windows leave by some pixels; the picture on the page is half of it
CELLS = draw_cells(seed=3, rows=9, columns=13, stride=(41.25, 50.5), size=200)
MAPS = [
    MapLayer("cat, true cat", draw_map(1, 9, 13, most=0.93)),
    MapLayer("dog - hunting dog", draw_map(2, 9, 13, most=0.06), threshold=0.03),
    MapLayer("cat against dog", draw_map(4, 9, 13, -0.6, 0.8), signed=True, threshold=0.25),
]
HOSTILE = (
    "</script ><img src=x onerror='window.hacked=1'><script>window.hacked=1</script><!--<script \"' \u202e\x07\udc80"
)


@pytest.fixture
def opened(visit, tmp_path):
    def open_page(layers=MAPS, cells=CELLS, size=SIZE, pixels=None, title="A street", **options):
        path = tmp_path / "page.html"
        write_page(path, picture(1, 260, 401) if pixels is None else pixels, size, layers, cells, title=title)
        return visit(path, **options)

    return open_page


def on_screen(page, x, y, size=SIZE):
    """Where the middle of a pixel of the original picture is in the window."""
    box = page.locator("#stage").bounding_box()
    return box["x"] + (x + 0.5) / size[1] * box["width"], box["y"] + (y + 0.5) / size[0] * box["height"]


def numbers(text):
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text)]


def shown_cell(page):
    """Row and column, the value, both boxes, and the best classes with their probabilities, as the page says them."""
    place, value, window, field, *best = page.evaluate(
        "[...document.querySelectorAll('#place, #value, #window-box, #field-box, #best li')].map((it) => it.innerText)"
    )
    row, column = numbers(place)
    chances = [tuple(line.split("\n")[:2]) for line in best]
    return (int(row), int(column)), float(value), [numbers(window), numbers(field)], chances


def assert_shows(page, row, column, layer=MAPS[0], cells=CELLS):
    place, value, boxes, best = shown_cell(page)
    assert place == (row, column)
    assert value == pytest.approx(layer.values[row, column], abs=0.00051)  # three decimals
    np.testing.assert_allclose(boxes, boxes_of(cells, row, column), rtol=0, atol=0.051)  # one decimal
    ids, chances = cells.top_ids[row, column].tolist(), cells.top_probabilities[row, column].tolist()
    assert [words for _, words in best] == [cells.names[class_id] for class_id in ids]
    assert [float(chance) for chance, _ in best] == pytest.approx(chances, abs=0.00052)  # and 16 bits


def drawn_box(page, kind):
    """Left, top, right, bottom of the rectangle on the picture, in its own pixels."""
    x, y, width, height = page.locator(f"#chosen rect.{kind}:not(.halo)").evaluate(
        "(it) => ['x', 'y', 'width', 'height'].map((name) => Number(it.getAttribute(name)))"
    )
    return [x, y, x + width, y + height]


def shown_regions(page):
    return [numbers(line)[1:] for line in page.locator("#list tbody tr").all_inner_texts()]


def assert_lists(page, layer, threshold, cells=CELLS, size=SIZE):
    expected = regions(layer, cells, size, threshold)
    found = shown_regions(page)
    assert len(found) == len(expected)
    for line, region in zip(found, expected, strict=True):
        assert line[0] == pytest.approx(region[0], abs=0.00051)
        np.testing.assert_allclose(line[1:], region[1:], rtol=0, atol=0.051)
    return len(expected)


@pytest.mark.parametrize("width", [1300, 700])
def test_the_mouse_shows_the_nearest_cell_its_boxes_and_its_best_classes(opened, width):
    page = opened(width=width)
    random = np.random.RandomState(0)
    places = [(0, 0), (SIZE[1] - 1, SIZE[0] - 1), (SIZE[1] - 1, 0)]
    places += [(random.randint(SIZE[1]), random.randint(SIZE[0])) for _ in range(20)]
    seen = set()
    for x, y in places:
        row, column = nearest(CELLS.window_rows, y), nearest(CELLS.window_columns, x)
        if (row, column) != (nearest(CELLS.window_rows, y + 2), nearest(CELLS.window_columns, x + 2)):
            continue  # a screen's pixel is larger than one of the picture's: between two cells it is neither's
        page.mouse.move(*on_screen(page, x, y))
        assert_shows(page, row, column)
        window, field = boxes_of(CELLS, row, column)
        limits = [SIZE[1], SIZE[0]] * 2
        np.testing.assert_allclose(drawn_box(page, "window"), np.clip(window, 0, limits))
        np.testing.assert_allclose(drawn_box(page, "field"), np.clip(field, 0, limits))
        assert page.locator("#beyond").is_visible() == bool((np.clip(field, 0, limits) != field).any())
        seen.add((row, column))
    assert len(seen) > 12


def test_the_page_begins_with_the_highest_cell(opened):
    page = opened()
    row, column = np.unravel_index(MAPS[0].values.argmax(), (9, 13))
    assert_shows(page, row, column)


def test_the_arrow_keys_move_from_cell_to_cell_and_stop_at_the_borders(opened):
    page = opened()
    page.mouse.move(*on_screen(page, 0, 0))
    page.locator("#stage").focus()
    steps = {"ArrowRight": (0, 1), "ArrowDown": (1, 0), "ArrowLeft": (0, -1), "ArrowUp": (-1, 0), "End": (0, 12)}
    row = column = 0
    for key in [
        "ArrowUp",
        "ArrowRight",
        "ArrowRight",
        "ArrowDown",
        "ArrowLeft",
        "End",
        "ArrowRight",
        *["ArrowDown"] * 9,
    ]:
        page.keyboard.press(key)
        row, column = min(max(row + steps[key][0], 0), 8), min(max(column + steps[key][1], 0), 12)
        assert_shows(page, row, column)
    assert page.inner_text("#said").startswith("Row 8, column 12: 0.")  # what a screen reader speaks
    page.keyboard.press("Home")
    assert_shows(page, 8, 0)


def test_a_finger_shows_the_cell_below_it(opened):
    page = opened(width=390, has_touch=True, is_mobile=True, device_scale_factor=2)
    page.touchscreen.tap(*on_screen(page, 600, 150))
    assert_shows(page, nearest(CELLS.window_rows, 150), nearest(CELLS.window_columns, 600))


def test_regions_follow_the_slider(opened):
    page = opened()
    assert_lists(page, MAPS[0], 0.5)
    counts = []
    slider = page.locator("#threshold").bounding_box()
    for part in (0.3, 0.45, 0.6, 0.75, 0.99):
        page.mouse.click(slider["x"] + part * slider["width"], slider["y"] + slider["height"] / 2)
        threshold = float(page.input_value("#threshold-exact"))
        assert threshold == pytest.approx(part, abs=0.05)
        counts.append(assert_lists(page, MAPS[0], threshold))
        assert numbers(page.inner_text("#count"))[0] == threshold
    assert counts[-1] == 0
    assert not page.locator("#list").is_visible()
    assert max(counts) > 2
    page.locator("#threshold").focus()
    page.keyboard.press("ArrowLeft")
    assert float(page.input_value("#threshold-exact")) == pytest.approx(threshold - 0.01)


def test_a_threshold_equal_to_a_value_leaves_that_cell_out(opened):
    page = opened()
    for value in np.sort(MAPS[0].values.ravel())[[40, 70, 100]]:
        page.fill("#threshold-exact", repr(float(value)))
        page.keyboard.press("Enter")
        assert_lists(page, MAPS[0], float(value))
    page.fill("#threshold-exact", "")
    page.keyboard.press("Enter")
    assert_lists(page, MAPS[0], float(value))  # no number is no threshold


def test_values_are_compared_as_float32(opened):
    values = draw_map(5, 9, 13)
    values[3:6, 5:8] = 0.1
    values[4, 6] = 0.3  # which is a little more than 0.3 in float32
    layer = MapLayer("cat", values, threshold=0.3)
    assert float(values[4, 6]) > 0.3
    assert_lists(opened([layer]), layer, 0.3)


def test_cells_that_touch_at_a_corner_are_one_region(opened):
    values = np.zeros((9, 13), np.float32)
    values[[1, 2, 3, 5, 8], [2, 3, 2, 2, 12]] = (0.6, 0.7, 0.8, 0.9, 0.95)
    page = opened([MapLayer("corners", values)])
    assert assert_lists(page, MapLayer("corners", values), 0.5) == 3
    # Each cell is as high and wide as cells are apart, the last one as far as the picture goes; corners join nothing.
    lengths = page.evaluate("document.querySelector('.contour').getTotalLength()")
    right = min(12 * 50.5 + 100 + 25.25, SIZE[1]) - (12 * 50.5 + 100 - 25.25)
    bottom = min(8 * 41.25 + 100 + 20.625, SIZE[0]) - (8 * 41.25 + 100 - 20.625)
    assert lengths == pytest.approx(4 * 2 * (50.5 + 41.25) + 2 * (right + bottom), rel=1e-4)


def test_a_line_of_the_list_lights_its_box_and_leads_to_its_cell(opened):
    page = opened()
    second = regions(MAPS[0], CELLS, SIZE, 0.5)[1]
    line = page.locator("#list tbody tr").nth(1)
    line.hover()
    assert [box.get_attribute("class") for box in page.locator("#region-boxes rect").all()][:2] == [
        "region",
        "region lit",
    ]
    line.get_by_role("button").click()
    row, column = np.argwhere(MAPS[0].values == np.float32(second[0]))[0]
    assert_shows(page, row, column)


def test_each_map_has_its_words_its_values_and_its_threshold(opened):
    page = opened()
    assert page.locator("#layer option").all_inner_texts() == [layer.words for layer in MAPS]
    page.mouse.move(*on_screen(page, 300, 200))
    row, column = nearest(CELLS.window_rows, 200), nearest(CELLS.window_columns, 300)
    ends = [("0", "0.93"), ("0", "0.10"), ("-0.80", "0.80")]
    for number, layer in enumerate(MAPS):
        page.select_option("#layer", index=number)
        assert_shows(page, row, column, layer)
        assert_lists(page, layer, layer.threshold)
        assert (page.inner_text("#words"), page.inner_text("#cell-words")) == (layer.words, layer.words)
        assert (page.inner_text("#low"), page.inner_text("#high")) == ends[number]
    page.fill("#threshold-exact", "0.4")
    page.keyboard.press("Enter")
    page.select_option("#layer", index=0)
    assert_lists(page, MAPS[0], 0.5)
    page.select_option("#layer", index=2)
    assert_lists(page, MAPS[2], 0.4)


def test_one_map_has_no_list_to_choose_from(opened):
    assert not opened(MAPS[:1]).locator("#layer").is_visible()


@pytest.mark.parametrize("number", range(3))
def test_the_overlay_is_the_map_between_the_centres(opened, number):
    page = opened(width=900)
    page.select_option("#layer", index=number)
    painted = page.evaluate("document.getElementById('heat').toDataURL()")
    colors = np.asarray(Image.open(BytesIO(b64decode(painted.removeprefix("data:image/png;base64,"))))).astype(int)
    value, fade = np.moveaxis(overlay(MAPS[number], CELLS, SIZE, colors.shape[:2]), 2, 0)
    level = 255 * np.abs(value) / max(float(np.abs(MAPS[number].values).max()), 0.1)
    strength = np.interp(level, np.arange(256), 255 * STRENGTH) * fade
    assert np.abs(colors[..., 3] - strength).max() <= 2
    strong = colors[..., 3] > 100  # a browser keeps colours multiplied by their strength: weak ones are coarse
    if number < 2:
        expected = palette()[np.rint(level).astype(int)]
        assert np.abs(colors[strong][:, :3] - expected[strong]).max() <= 8
    else:
        assert (colors[strong & (value > 0)][:, 0] > colors[strong & (value > 0)][:, 2]).all()  # red
        assert (colors[strong & (value < 0)][:, 2] > colors[strong & (value < 0)][:, 0]).all()  # blue


def test_the_overlay_changes_the_hot_cell_and_goes_with_its_opacity(opened, tmp_path):
    page = opened(pixels=np.full((260, 401, 3), (90, 140, 120), np.uint8))
    page.fill("#threshold-exact", "1")
    page.keyboard.press("Enter")

    def look():
        page.locator("#stage").screenshot(path=tmp_path / "stage.png")
        return np.asarray(Image.open(tmp_path / "stage.png").convert("RGB")).astype(int)

    row, column = np.unravel_index(MAPS[0].values.argmax(), (9, 13))
    hot = [CELLS.window_rows[row].mean() / SIZE[0], CELLS.window_columns[column].mean() / SIZE[1]]
    page.mouse.move(*on_screen(page, SIZE[1] - 1 if hot[1] < 0.5 else 0, 0))
    full = look()
    y, x = (int(part * side) for part, side in zip(hot, full.shape, strict=False))
    expected = 0.72 * palette()[-1] + 0.28 * np.array((90, 140, 120))
    np.testing.assert_allclose(full[y, x], expected, atol=12)
    page.locator("#shown").click()
    np.testing.assert_array_equal(look()[y, x], (90, 140, 120))
    page.locator("#shown").click()
    slider = page.locator("#opacity").bounding_box()
    page.mouse.click(slider["x"] + slider["width"] / 2, slider["y"] + slider["height"] / 2)
    page.mouse.move(*on_screen(page, SIZE[1] - 1 if hot[1] < 0.5 else 0, 0))
    np.testing.assert_allclose(look()[y, x], (full[y, x] + (90, 140, 120)) / 2, atol=6)


def test_words_from_files_are_text(opened):
    layers = [replace(MAPS[0], words=HOSTILE), replace(MAPS[1], words="<b>dog</b> &amp; 'wolf'")]
    cells = replace(CELLS, names={class_id: f"{HOSTILE}{class_id}" for class_id in NAMES})
    page = opened(layers, cells, title=HOSTILE)
    shown = HOSTILE.split("\u202e")[0] + r"\u202e\x07\udc80"
    assert page.title() == shown
    assert page.inner_text("h1") == shown
    assert page.inner_text("#words") == shown
    assert page.locator("#layer option").all_inner_texts() == [shown, "<b>dog</b> &amp; 'wolf'"]
    assert page.locator("#best bdi").first.inner_text().startswith(shown)
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, script, b:has-text('dog')").count() == 3  # the picture, the data, the script


@pytest.mark.parametrize("width", [320, 700, 1300, 2200])
def test_the_page_fits_the_window_and_the_picture_keeps_its_shape(opened, width):
    page = opened(width=width, device_scale_factor=2)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    box = page.locator("#stage").bounding_box()
    assert box["width"] / box["height"] == pytest.approx(SIZE[1] / SIZE[0], rel=0.01)
    page.set_viewport_size({"width": 500, "height": 700})  # the overlay is painted anew
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    sides = "[document.getElementById('heat').width, document.getElementById('stage').clientWidth]"
    assert len(set(page.evaluate(sides))) == 1
    page.mouse.move(*on_screen(page, 300, 200))
    assert_shows(page, nearest(CELLS.window_rows, 200), nearest(CELLS.window_columns, 300))


def test_the_page_is_light_or_dark_as_the_reader_wishes(opened):
    def contrast(scheme):
        paper, ink = opened(color_scheme=scheme).evaluate(
            "(({ backgroundColor, color }) => [backgroundColor, color])(getComputedStyle(document.body))"
        )
        light = [sum(weight * part for weight, part in zip((0.3, 0.6, 0.1), numbers(it), strict=False))
                 for it in (paper, ink)]  # fmt: skip
        return light[0] - light[1]

    assert contrast("light") > 180
    assert contrast("dark") < -180


def test_a_map_of_one_cell_is_shown(opened):
    cells = draw_cells(seed=1, rows=1, columns=1, stride=(32, 32), size=224, best=1)
    layer = MapLayer("cat", np.full((1, 1), 0.75, np.float32))
    page = opened([layer], cells, size=(224, 224), pixels=picture(1, 224, 224))
    page.mouse.move(*on_screen(page, 3, 200, (224, 224)))
    assert_shows(page, 0, 0, layer, cells)
    assert shown_regions(page) == [[0.75, 0, 0, 224, 224]]


def test_the_cells_of_a_hundred_megapixels_open(opened):
    cells = draw_cells(seed=1, rows=306, columns=306, stride=(32, 32), size=224)
    noise = np.random.RandomState(0).rand(306, 306).astype(np.float32)
    layers = [MapLayer("smooth", draw_map(1, 306, 306), threshold=0.7), MapLayer("noise", noise)]
    page = opened(layers, cells, size=(10_000, 10_000), pixels=picture(1, 400, 400))
    page.mouse.move(*on_screen(page, 153 * 32 + 112, 281 * 32 + 112, (10_000, 10_000)))
    assert_shows(page, 281, 153, layers[0], cells)
    expected = regions(layers[0], cells, (10_000, 10_000), 0.7)
    assert page.inner_text("#count") == f"above 0.7: {len(expected)}"
    assert page.inner_text("#more") == "The 100 highest are listed."
    assert [page.locator(f"{marks}:visible").count() for marks in ("#badges span", "#region-boxes rect")] == [20, 20]
    assert shown_regions(page)[99][0] == pytest.approx(expected[99][0], abs=0.00051)
    page.select_option("#layer", index=1)
    assert page.inner_text("#count") == f"above 0.5: {len(regions(layers[1], cells, (10_000, 10_000), 0.5))}"

"""The page as a file: what is in it, how large it is, and what is refused. What it does is in test_page_browser.py."""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode, b64encode
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from convnets_torch.visualization.overlays import INFERNO
from convnets_torch.visualization.pages import MapLayer, write_page
from tests.reference.cells import NAMES, draw_cells, draw_map
from tests.reference.pictures import picture

SIZE = (300, 420)
HOSTILE = "</script ><script>alert(1)</script><!--<script \"'& \x00\x1b[31m\u2028\u202e\udc80 \\u003c"


class Elements(HTMLParser):
    """The elements of a page with their attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes), []))
        self.open = True

    def handle_endtag(self, tag):
        self.open = False

    def handle_data(self, data):
        if self.open:
            self.found[-1][2].append(data)

    def all(self, tag):
        return [(attributes, "".join(text)) for name, attributes, text in self.found if name == tag]


@pytest.fixture
def cells():
    return draw_cells(seed=1, rows=3, columns=5, stride=(40, 60), size=200)


@pytest.fixture
def layer():
    return MapLayer("cat, true cat", draw_map(1, 3, 5, most=0.9))


@pytest.fixture
def written(tmp_path):
    """Write a page and return its text."""

    def write(layers, cells, *, pixels=None, size=SIZE, title="A street"):
        path = tmp_path / "page.html"
        write_page(path, picture(1, 150, 210) if pixels is None else pixels, size, layers, cells, title=title)
        return path.read_bytes().decode()

    return write


def data_of(page):
    [text] = [text for attributes, text in Elements(page).all("script") if attributes.get("id") == "data"]
    return json.loads(text)


def picture_of(page):
    [(attributes, _)] = Elements(page).all("img")
    kind, data = attributes["src"].split(";base64,")
    return kind, np.asarray(Image.open(BytesIO(b64decode(data))))


def test_nothing_in_the_page_points_outside_it(written, layer, cells):
    page = written([layer], cells)
    for word in ("http:", "https:", "@import", "fetch(", "url(", "XMLHttpRequest"):
        assert word not in page
    for _, attributes, _ in Elements(page).found:
        assert not {"href", "srcset", "action", "onclick", "onload"} & set(attributes)
        assert attributes.get("src", "data:").startswith("data:")


def test_the_policy_lets_run_the_pages_own_script_and_style_alone(written, layer, cells):
    elements = Elements(written([layer], cells))
    [policy] = [attributes["content"] for attributes, _ in elements.all("meta") if "http-equiv" in attributes]
    own = [text for attributes, text in elements.all("script") if not attributes] + [elements.all("style")[0][1]]
    for directive, text in zip(("script-src", "style-src"), own, strict=True):
        assert f"{directive} 'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy


def test_the_numbers_are_those_that_were_given(written, layer, cells):
    signed = MapLayer("cat - dog", draw_map(2, 3, 5, -0.7, 0.4), signed=True, threshold=0.125)
    data = data_of(written([layer, signed], cells))
    assert (data["height"], data["width"]) == SIZE
    for given, found in zip([layer, signed], data["layers"], strict=True):
        np.testing.assert_array_equal(np.frombuffer(b64decode(found["values"]), "<f4"), given.values.ravel())
        assert (found["words"], found["signed"], found["threshold"]) == (given.words, given.signed, given.threshold)
    for axis in ("rows", "columns"):
        np.testing.assert_array_equal(data[axis]["windows"], getattr(cells, f"window_{axis}"))
        np.testing.assert_array_equal(data[axis]["fields"], getattr(cells, f"field_{axis}"))
    names = [data["names"][place] for place in np.frombuffer(b64decode(data["top_ids"]), "<u2")]
    assert names == [NAMES[class_id] for class_id in cells.top_ids.ravel().tolist()]
    chances = np.frombuffer(b64decode(data["top_probabilities"]), "<u2").reshape(cells.top_ids.shape) / 65535
    np.testing.assert_allclose(chances, cells.top_probabilities, rtol=0, atol=1e-5)  # the docstring's promise


def test_colours_end_at_the_highest_value_and_go_both_ways_for_a_contrast(written, cells):
    near_zero = MapLayer("nothing", draw_map(1, 3, 5, most=0.02))
    signed = MapLayer("contrast", draw_map(2, 3, 5, -0.7, 0.4), signed=True)
    low, both = data_of(written([near_zero, signed], cells))["layers"]
    assert low["top"] == 0.1
    assert both["top"] == pytest.approx(0.7)
    ramp = np.frombuffer(b64decode(low["ramp"]), np.uint8).reshape(-1, 4)
    assert ramp.shape == (256, 4)
    assert ramp[[0, -1], :3].tolist() == [list(INFERNO[0]), list(INFERNO[-1])]
    assert ramp[[0, -1], 3].tolist() == [0, 184]  # clear at 0; 0.72 of 255 at the top
    ramp = np.frombuffer(b64decode(both["ramp"]), np.uint8).reshape(-1, 4)
    assert ramp.shape == (511, 4)
    np.testing.assert_array_equal(ramp[:, 3], ramp[::-1, 3])
    assert ramp[255, 3] == 0
    assert ramp[0, 2] > ramp[0, 0]  # blue below
    assert ramp[-1, 0] > ramp[-1, 2]  # red above


def test_words_cannot_end_their_element(written, layer, cells):
    names = {class_id: HOSTILE for class_id in NAMES}
    page = written([replace(layer, words=HOSTILE)], replace(cells, names=names), title=HOSTILE)
    elements = Elements(page)
    assert len(elements.all("script")) == 2
    shown = "</script ><script>alert(1)</script><!--<script \"'& \\x00\\x1b[31m\\u2028\\u202e\\udc80 \\u003c"
    assert elements.all("title")[0][1] == shown
    assert elements.all("bdi")[0][1] == shown
    data = data_of(page)
    assert {*data["names"], data["layers"][0]["words"]} == {shown}


def test_photographs_are_jpeg_and_drawings_png_to_the_bit(written, layer, cells):
    photograph = np.asarray(Image.fromarray(picture(1, 15, 21)).resize((210, 150)))
    kind, found = picture_of(written([layer], cells, pixels=photograph))
    assert kind == "data:image/jpeg"
    assert np.abs(found.astype(int) - photograph).mean() < 4
    drawing = np.zeros((150, 210, 3), np.uint8)
    drawing[20:40, 30:90] = (250, 3, 70)
    kind, found = picture_of(written([layer], cells, pixels=drawing))
    assert kind == "data:image/png"
    np.testing.assert_array_equal(found, drawing)


def test_a_hundred_megapixels_stay_a_small_file(written):
    cells = draw_cells(seed=1, rows=306, columns=306, stride=(32, 32), size=224)
    page = written([MapLayer("cat", draw_map(1, 306, 306))], cells, size=(10_000, 10_000))
    few = written([MapLayer("cat", draw_map(1, 3, 5))], draw_cells(1, 3, 5, (32, 32), 224))
    assert (len(page) - len(few)) / 306**2 == pytest.approx(5.3 + 5 * 5.3, rel=0.02)  # as the docstring says
    assert len(page) < 3_200_000


def test_an_older_page_stays_when_a_new_one_is_refused(tmp_path, layer, cells):
    path = tmp_path / "page.html"
    path.write_text("older")
    with pytest.raises(ValueError, match=r"the map of cat, true cat is \(2, 5\), and the cells are \(3, 5\)"):
        write_page(path, picture(1, 30, 42), SIZE, [replace(layer, values=layer.values[1:])], cells, title="")
    with pytest.raises(IsADirectoryError, match="is a folder; name a file to write"):
        write_page(tmp_path, picture(1, 30, 42), SIZE, [layer], cells, title="")
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]
    write_page(path, picture(1, 30, 42), SIZE, [layer], cells, title="newer")
    assert "<title>newer</title>" in path.read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_input_gives_the_same_bytes(written, layer, cells):
    assert written([layer], cells) == written([layer], cells)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window_rows": np.zeros((2, 2))}, r"window_rows is \(2, 2\), and there are 3 rows; give \(3, 2\)"),
        ({"field_columns": np.zeros((5, 2))}, "field_columns has a box whose end is not after its start"),
        ({"field_rows": np.full((3, 2), np.nan)}, "field_rows has a box whose end is not after its start"),
        ({"window_columns": np.array([[0, 9]] * 5)}, "window_columns is not in ascending order"),
        ({"top_probabilities": np.ones((3, 5, 4))}, r"are \(3, 5, 5\) and their probabilities \(3, 5, 4\)"),
        ({"top_probabilities": np.full((3, 5, 5), 1.5)}, "the best classes has values from 1.5 to 1.5; give .* 0 to 1"),
        ({"names": {7: "cock"}}, "class 3 is among the best classes but has no name"),
    ],
)
def test_cells_that_do_not_fit_are_refused(written, layer, cells, change, message):
    with pytest.raises(ValueError, match=message):
        written([layer], replace(cells, **change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": np.full((3, 5), -0.1)}, "cat, true cat has values from -0.1 to -0.1; give values from 0 to 1"),
        ({"values": np.full((3, 5), -1.1), "signed": True}, "from -1.1 to -1.1; give values from -1 to 1"),
        ({"values": np.full((3, 5), np.nan)}, "values from nan to nan"),
        ({"threshold": 1.5}, "the threshold of cat, true cat is 1.5; give one from 0 to 1"),
    ],
)
def test_layers_out_of_range_are_refused(written, layer, cells, change, message):
    with pytest.raises(ValueError, match=message):
        written([replace(layer, **change)], cells)


def test_pictures_and_lists_that_cannot_be_shown_are_refused(written, layer, cells):
    with pytest.raises(ValueError, match="a page needs a map"):
        written([], cells)
    with pytest.raises(ValueError, match=r"the picture is float64 \(3, 4, 3\); give uint8 \(height, width, 3\)"):
        written([layer], cells, pixels=np.zeros((3, 4, 3)))
    with pytest.raises(
        ValueError, match="is 70000x1 pixels, but a page takes at most 65500 per side; give a reduced copy"
    ):
        written([layer], cells, pixels=np.zeros((70_000, 1, 3), np.uint8))
    with pytest.raises(ValueError, match=r"the size of the original picture is \(0, 4\)"):
        written([layer], cells, size=(0, 4))

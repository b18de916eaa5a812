"""Pages about strangers' files in a browser: whatever names and words hold is shown as text, and nothing of it runs."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convnets_torch.card import Card, Source
from convnets_torch.embeddings.image_map import MapEntry
from convnets_torch.embeddings.image_map_drawing import save_map_page
from convnets_torch.evaluation.evaluate import evaluate
from convnets_torch.evaluation.labels import find_truth
from convnets_torch.evaluation.report import compute_metrics, save_report
from convnets_torch.explain.gradcam import CamWarning
from convnets_torch.explain.page import explain
from convnets_torch.images.preprocessing import preset
from convnets_torch.text import printable
from convnets_torch.visualization.pages import MapLayer, write_page
from tests.conftest import NARROW
from tests.reference.cells import draw_cells, draw_map
from tests.reference.pictures import picture

pytestmark = pytest.mark.hostile

PWN = "window.pwned=1;document.title='pwned'"
TEXTS = [
    # an element
    f"<img src=x onerror=\"{PWN}\"><svg/onload={PWN}>",
    # the end of a script
    f"</script ><script>{PWN}</script>",
    # the end of a title
    f"</title></style></textarea></head><body onload={PWN}>",
    # the end of an attribute
    f"\" autofocus onfocus=\"{PWN}\" '><a href='javascript:{PWN}' ",
    # a comment
    f"<!--<script>--><script>{PWN}</script>]]>",
    # another base
    "<base href='https://example.org/'><form action='https://example.org/'><meta http-equiv=refresh "
    "content='0;url=https://example.org/'><link rel=stylesheet href='https://example.org/x.css'>",
    # a placeholder
    f"$title ${{script}} $$ {{{{7*7}}}} ${{`{PWN}`}}`${{{PWN}}}`",
    # an end of line
    f"a\u2028{PWN}\u2029\n{PWN}\r\"];{PWN}//",
    # what steers
    "\x1b[2J\x07\x00\udc80\ud800 \u202egnp.exe\u2066\u200f \ufeff\ufffe",
    # an entity
    f"&lt;script&gt;&#60;script&#62;{PWN}&amp;",
]  # fmt: skip


def heatmap_page(path: Path, text: str, made=None) -> None:
    cells = draw_cells(seed=3, rows=2, columns=3, stride=(40, 50), size=100)
    cells = replace(cells, names={class_id: f"{text} {class_id}" for class_id in cells.names})
    layers = [MapLayer(text, draw_map(1, 2, 3, most=0.9)), MapLayer(f"other {text}", draw_map(2, 2, 3, most=0.9))]
    write_page(path, picture(1, 140, 200), (140, 200), layers, cells, title=text)


def map_page(path: Path, text: str, made) -> None:
    entries = [MapEntry(f"photos/{text}", text, 0.5), MapEntry(f"{text}/b.jpg", ""), MapEntry("c.jpg", text, 1)]
    images = [Image.new("RGB", (64, 48), color) for color in ("red", "green", "blue")]
    places = np.array([[0, 0], [3, 1], [1, 4]], np.float32)
    save_map_page(places, entries, images, path, title=text, failed={text: text})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A network's explanation of a picture, and its evaluation on three; the tests give them other words."""
    torch.manual_seed(0)
    network = NARROW["vgg16"]().eval()
    arguments = {"classes": 10, "widths": (8, 16, 32, 64, 64), "hidden": (24, 40)}
    network.card = Card("vgg16", arguments, preset("vgg16"), tuple("0123456789"))
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        (folder / str(number)).mkdir()
        Image.fromarray(picture(number, 40, 50)).save(folder / str(number) / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CamWarning)  # random weights find nothing
        explained = explain(network, picture(1, 240, 260), top=1, layers=["features.relu1_1"])
    return explained, evaluate(network, find_truth(network.card, folder))


def explanation(path: Path, text: str, made) -> None:
    found = made[0]
    cams = [replace(found.cams[0], layer=text)]
    named = [replace(found.predictions[0], words=text, wnid=text)]
    replace(found, name=text, network=text, predictions=named, cams=cams).save(path)


def evaluation(path: Path, text: str, made) -> None:
    found = made[1]
    source = Source(f"{text}.h5", text, text, "theano", (text,), text)
    names = tuple(f"{text} {number}" for number in range(10))
    rule = replace(found.card.preprocessing, name=text)
    card = replace(found.card, class_names=names, source=source, preprocessing=rule)
    paths = tuple(Path(f"{text} {number}") for number in range(len(found.paths)))
    failed = ((Path(text), text),)
    metrics = compute_metrics(replace(found, card=card, folder=Path(text), paths=paths, failed=failed, notes=(text,)))
    save_report(metrics, path.parent, weights=text, repeat=[(text, text)])
    path.with_name("report.html").rename(path)


PAGES = {
    "heatmap": heatmap_page,
    "map": map_page,
    "explanation": explanation,
    "evaluation": evaluation,
}  # fmt: skip
WORKS = {  # what the page's own script has done when it works; the explanation has none
    "heatmap": "document.querySelector('#place').textContent.startsWith('row')",
    "map": "document.querySelector('#facts').textContent.startsWith('3 pictures')",
    "explanation": "document.querySelectorAll('script').length === 0",
    "evaluation": "document.querySelector('#count').textContent === '3 of 3 classes'",
}


@pytest.mark.parametrize("text", [" ".join(TEXTS), " ".join(TEXTS[::-1])], ids=["in order", "backwards"])
@pytest.mark.parametrize("kind", PAGES)
def test_a_name_is_text_on_every_page(visit, made, tmp_path, kind, text):
    path = tmp_path / "page.html"
    PAGES[kind](path, text, made)
    page = visit(path)
    works = page.evaluate(WORKS[kind])
    pwned, title = page.evaluate("[window.pwned, document.title]")
    shown = page.evaluate("document.body.textContent")
    elements = page.evaluate(
        "[...document.querySelectorAll('base, form, iframe, link, a, object, svg[onload]')].length"
    )
    handlers = page.evaluate(
        "[...document.querySelectorAll('*')].flatMap((it) => [...it.attributes])"
        ".filter((it) => it.name.startsWith('on') || it.name == 'autofocus').length"
    )
    assert works
    assert pwned is None
    assert title != "pwned"
    assert (elements, handlers) == (0, 0)
    assert collapsed(printable(text)) in collapsed(shown)
    assert collapsed(title).startswith(collapsed(printable(text))[:20])


@pytest.mark.parametrize("kind", PAGES)
def test_the_policy_of_every_page_leaves_no_gap(made, tmp_path, kind):
    path = tmp_path / "page.html"
    PAGES[kind](path, "text", made)
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', path.read_text())
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:"
    assert all(re.fullmatch("'sha256-[^ ]*'", rules.get(kind, "'sha256-'")) for kind in ("script-src", "style-src"))


def test_a_script_that_were_in_a_page_would_not_run(browser, tmp_path):
    """The policy alone stops it, if escaping once failed."""
    path = tmp_path / "page.html"
    heatmap_page(path, "MARK")
    path.write_text(path.read_text().replace("<h1>", f'<h1><script>{PWN}</script><img src=data:, onerror="{PWN}">'))
    page = browser.new_page()
    page.goto(path.as_uri())
    page.wait_for_timeout(100)
    assert page.evaluate("[window.pwned, document.title]") == [None, "MARK"]
    page.close()


def test_letters_that_run_from_right_to_left_do_not_move_the_numbers_beside_them(visit, made, tmp_path):
    path = tmp_path / "page.html"
    explanation(path, "\u05d0\u05d1\u05d2", made)
    page = visit(path)
    words, share = page.evaluate(
        "[...document.querySelector('article h3').children].map((it) => it.getBoundingClientRect().left)"
    )
    assert words < share


def collapsed(text: str) -> str:
    return " ".join(text.split())

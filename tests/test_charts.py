"""Charts: what their axes hold, the words in them, and the files that they become."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from convnets_torch.visualization import charts, letters
from convnets_torch.visualization.charts import (
    BAR,
    CUT,
    ENDINGS,
    MARGIN,
    MISSING,
    NOTHING,
    Line,
    check_chart,
    draw_counts,
    draw_histogram,
    draw_lines,
    draw_reliability,
    draw_shares,
    new_axes,
    png_of,
    save_chart,
    why_not,
)

matplotlib = pytest.importorskip(
    "matplotlib", reason="matplotlib is not installed: pip install 'convnets-torch[plots]'"
)
Figure = pytest.importorskip("matplotlib.figure").Figure
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = [r"$\frac{$ and $x^2$", r"\input{/etc/passwd} % # _ & ~", "a\x07\u202eb\ud800", "<b>&\"'</b>", ""]
EDGES = np.array([0, 0.5, 1])
ENV = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}


def histogram(lines=("Shares",), ax=None):
    return draw_histogram(np.array([2, 1]), EDGES, lines, ax=ax)


def texts(path):
    """What a page of SVG shows as letters."""
    return [each.text or "" for each in ElementTree.parse(path).iter(f"{SVG}text")]


@pytest.mark.parametrize(
    "draw",
    [
        histogram,
        lambda ax=None: draw_counts(np.eye(3, dtype=int), "abc", ("Answers",), ax=ax),
        lambda ax=None: draw_counts(np.eye(90, dtype=int), ["x"] * 90, ("Answers",), [(0, 9, "birds")], ax=ax),
        lambda ax=None: draw_shares({"one": (BAR, np.array([1, 3]))}, EDGES, ("Pairs",), ax=ax),
        lambda ax=None: draw_lines([Line("one", BAR, [1, 2], [0.5, 0.7], [0.1, 0.1])], ("Curve",), ax=ax),
        lambda ax=None: draw_reliability(np.array([0, 3]), np.array([np.nan, 0.5]), EDGES[1:], (0.5, 1), ("R",), ax=ax),
    ],
    ids=["histogram", "names", "pixels", "shares", "lines", "reliability"],
)
def test_a_chart_goes_into_axes_that_are_given_or_into_its_own(draw):
    given = new_axes(columns=2)
    assert draw(ax=given[1]) is given[1]
    assert not given[0].get_title(loc="left")
    own = draw()
    assert own.get_title(loc="left") == given[1].get_title(loc="left")
    assert own.figure.axes == [own]


def test_drawing_needs_no_pyplot():
    """Its state is shared by threads; a fresh process, since other packages' tests import it."""
    code = "import sys; from tests.test_charts import histogram; histogram(); print('matplotlib.pyplot' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_is_what_its_ending_says_and_the_same_each_time(tmp_path, ending):
    signs = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF", ".webp": b"RIFF"}
    for name in ("one", "two"):
        save_chart(histogram(), tmp_path / f"{name}{ending}")
        time.sleep(1.1 if ending == ".pdf" else 0)  # dates in PDF are of seconds
    first, second = ((tmp_path / f"{name}{ending}").read_bytes() for name in ("one", "two"))
    assert first == second
    assert first.startswith(signs.get(ending, b"\xff\xd8"))
    assert not re.search(rb"20\d\d-\d\d-\d\d|CreationDate", first)
    if ending not in (".svg", ".pdf"):
        with Image.open(tmp_path / f"one{ending}") as image:
            assert image.size == (800, 400)


def test_what_cannot_be_written_is_refused_before_any_work(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"x\.txt has an unknown ending; a chart is written as \.png, \.svg, \.pdf"):
        check_chart(tmp_path / "x.txt")
    with pytest.raises(FileNotFoundError, match="create it first"):
        check_chart(tmp_path / "none" / "x.svg")
    assert why_not() == ""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"a chart needs matplotlib \(.+\): pip install 'convnets-torch\[plots\]'"):
        check_chart(tmp_path / "x.svg")
    with pytest.raises(ImportError, match="a chart needs matplotlib"):
        histogram()


def test_an_older_file_stays_where_drawing_fails(tmp_path):
    path = tmp_path / "chart.svg"
    path.write_text("older")
    ax = histogram()
    ax.set_title("$\\frac{$")  # a formula that is none
    with pytest.raises(ValueError, match="Expected"):
        save_chart(ax, path)
    assert path.read_text() == "older"
    assert [each.name for each in tmp_path.iterdir()] == ["chart.svg"]
    assert ax.figure.dpi == charts.DPI


def test_no_name_reaches_tex(tmp_path):
    with matplotlib.rc_context({"text.usetex": True}):
        ax = Figure().add_subplot()
        draw_counts(np.eye(5, dtype=int), HOSTILE, HOSTILE[:1], ax=ax)
        assert not any(each.get_usetex() for each in (*ax.get_xticklabels(), *ax.get_yticklabels(), ax._left_title))
        for draw in (histogram, lambda: save_chart(ax, tmp_path / "chart.png")):
            with pytest.raises(ImportError, match=r"is set to draw text with TeX, .* set text\.usetex to False"):
                draw()


def test_settings_that_cannot_be_read_are_a_reason(tmp_path):
    """A matplotlibrc of the folder that one stands in, which matplotlib reads first."""
    (tmp_path / "matplotlibrc").write_bytes(b"\xff\xfe")
    code = "from convnets_torch.visualization.charts import why_not; print(why_not())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=ENV)
    assert done.stdout.startswith("matplotlib cannot read its settings ("), done.stderr


def test_words_are_no_formulas_and_steer_nothing(tmp_path):
    shown = [r"a\x07\u202eb\ud800" if name.startswith("a\x07") else name for name in HOSTILE]
    ax = draw_counts(np.eye(5, dtype=int), HOSTILE, (HOSTILE[0], HOSTILE[2]))
    save_chart(ax, tmp_path / "chart.svg")
    found = texts(tmp_path / "chart.svg")
    for name in shown[:4]:
        assert found.count(name) >= 2  # a row and a column
    for ending in (".png", ".pdf"):
        save_chart(ax, tmp_path / f"chart{ending}")


def test_every_letter_is_in_a_font_or_a_box(tmp_path, monkeypatch):
    words = "Épée Łódź Кошка Αλφα ẞ"
    save_chart(histogram((words,)), tmp_path / "chart.svg")  # a letter that is missing would warn, which is an error
    assert words in texts(tmp_path / "chart.svg")
    png_of(histogram(("猫 हिन्दी 🦊 𓀀",)))
    monkeypatch.setattr(letters, "_of_system", lambda letter: iter(()))
    monkeypatch.setattr(letters, "_found", [])
    caches = (letters.font_for, charts._families)
    for cache in caches:
        cache.cache_clear()
    try:
        assert charts._text_options(["Épée Кошка 猫"])[0] == [f"Épée Кошка {MISSING}"]
        monkeypatch.setenv("CONVNETS_TORCH_FONT", str(letters.OWN))
        own = charts._family(str(letters.OWN))
        assert charts._text_options(["é"])[1]["family"] == [own, "DejaVu Sans"]
        png_of(histogram(("Épée Кошка",)))
    finally:
        for cache in caches:
            cache.cache_clear()


def test_threads_draw_the_same_as_one_alone():
    counts = np.arange(16).reshape(4, 4)

    def draw(number):
        ax = draw_counts(counts, [f"{name} Кошка {number}" for name in "abcd"], ("Answers",))
        return threading.get_ident(), png_of(ax)

    alone = [draw(number)[1] for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(draw, [0, 1, 2, 3] * 2))
    assert [content for _, content in found] == alone * 2


# Confusion tables


def test_cells_of_many_classes_are_whole_pixels_in_the_order_of_the_classes():
    counts = np.diag(np.full(1000, 50))
    counts[151, 900], counts[3] = 12, 0
    ax = draw_counts(counts, ["x"] * 1000, ("All",), [(100, 200, "birds"), (300, 305, "few")])
    page = np.asarray(Image.open(BytesIO(png_of(ax))).convert("RGB")).astype(int)
    assert page.shape[0] < 1100
    left, top = page.shape[1] - MARGIN - 1000, page.shape[0] - MARGIN - 1000
    cells = page[top : top + 1000, left : left + 1000]
    colored = {(int(y), int(x)) for y, x in np.argwhere(cells[..., 0] - cells[..., 1] > 30)}
    assert colored == {(place, place) for place in range(1000) if place != 3} | {(151, 900)}
    assert tuple(cells[500, 100]) == NOTHING
    assert [label.get_text() for label in ax.get_yticklabels()] == ["birds"]  # the other is too low for letters
    assert list(ax.get_yticks(minor=True)) == [99.5, 199.5, 299.5, 304.5]


def test_cells_of_a_few_hundred_classes_are_squares_of_pixels():
    counts = np.diag(np.arange(1, 301))
    ax = draw_counts(counts, [f"class {number}" for number in range(300)], ("All",))
    page = np.asarray(Image.open(BytesIO(png_of(ax))).convert("RGB")).astype(int)
    cells = page[-MARGIN - 1200 : -MARGIN, MARGIN : MARGIN + 1200]
    assert (np.argwhere(cells[..., 0] - cells[..., 1] > 30) // 4 == np.arange(300).repeat(16)[:, None]).all()


@pytest.mark.parametrize("classes", [2, 85])
def test_cells_of_few_classes_have_names_and_numbers(classes):
    counts = np.diag(np.arange(1, classes + 1))
    counts[0, 1], counts[1] = 2, 0
    ax = draw_counts(counts, [f"class {number}" for number in range(classes)], ("Answers",))
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        assert [label.get_text() for label in labels] == [f"class {number}" for number in range(classes)]
    wanted = {(row, column): str(counts[row, column]) for row, column in np.argwhere(counts).tolist()}
    assert {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in ax.texts} == wanted
    rows = [tuple(np.rint(patch.get_path().vertices.mean(0)[::-1]).astype(int)) for patch in ax.patches]
    assert len(rows) == len(wanted)
    assert ax.yaxis_inverted()
    assert max(Image.open(BytesIO(png_of(ax))).size) < 1500


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 90, 400])
def test_all_names_of_any_number_of_classes_are_in_the_vectors(classes, tmp_path):
    names = [f"name {number} <b>&\"'\x07 of what is a class" for number in range(classes)]
    counts = np.diag(np.arange(1, classes + 1))
    counts[0, 1] = 1234
    save_chart(draw_counts(counts, names, ("Title <i>",), every_name=True), tmp_path / "chart.svg")
    found = texts(tmp_path / "chart.svg")
    assert "Title <i>" in found
    for name in names:
        assert found.count(name.replace("\x07", "\\x07")) == 2  # its row and its column
    titles = [each.text for each in ElementTree.parse(tmp_path / "chart.svg").iter(f"{SVG}title")]
    assert titles.count("{} predicted as {}: 1234".format(*(name.replace("\x07", "\\x07") for name in names[:2]))) >= 1


def test_of_very_many_cells_a_path_has_each_colour_and_long_names_are_cut(monkeypatch, tmp_path):
    monkeypatch.setattr(charts, "TOOLTIPS", 3)
    counts = np.array([[1, 1, 0], [0, 5, 0], [0, 0, 7]])
    ax = draw_counts(counts, ("a" * 60, "bee", "cat"), ("Answers",), every_name=True)
    assert sorted(len(patch.get_path().vertices) for patch in ax.patches) == [10, 10]  # two halves, and two whole ones
    assert not ax.texts
    save_chart(ax, tmp_path / "chart.svg")
    assert texts(tmp_path / "chart.svg").count("a" * (CUT - 1) + "\u2026") == 2
    titles = [each.text for each in ElementTree.parse(tmp_path / "chart.svg").iter(f"{SVG}title")]
    assert titles == ["a" * 60] * 2


@pytest.mark.slow
def test_a_thousand_names_take_seconds(tmp_path):
    began = time.process_time()
    save_chart(draw_counts(np.eye(1000, dtype=int), ["name"] * 1000, ("All",), every_name=True), tmp_path / "x.svg")
    assert time.process_time() - began < 60
    assert (tmp_path / "x.svg").stat().st_size < 4_000_000


# Histograms and reliability


def test_bars_are_as_high_as_their_counts():
    ax = draw_histogram(np.array([4, 2, 0, 1]), np.linspace(0, 1, 5), ("Shares", "second"))
    assert [(bar.get_x(), bar.get_height()) for bar in ax.patches] == [(0, 4), (0.25, 2), (0.5, 0), (0.75, 1)]
    assert [text.get_text() for text in ax.texts] == ["4", "2", "", "1"]
    assert ax.get_title(loc="left") == "Shares\nsecond"


def test_bars_are_as_high_as_the_accuracy_and_gaps_reach_to_the_confidence():
    right, sure = np.array([np.nan, 0.25, 1.0, 0.6]), np.array([np.nan, 0.4, 0.7, 0.9])
    ax = draw_reliability(np.array([0, 4, 1, 10]), right, sure, (0.55, 0.75), ("Reliability",))
    bars, gaps, counts = ([bar.get_bbox() for bar in group] for group in ax.containers)
    for number, (bar, gap, count) in enumerate(zip(bars, gaps, counts, strict=True), start=1):
        assert (bar.x0, bar.x1, bar.y0, bar.y1) == (number / 4, (number + 1) / 4, 0, right[number])
        assert sorted((right[number], sure[number])) == pytest.approx([gap.y0, gap.y1])
        assert (count.y1 - count.y0) == pytest.approx(charts.BELOW * (4, 1, 10)[number - 1] / 10)
    assert "accuracy 0.550, confidence 0.750" in ax.get_title(loc="left")

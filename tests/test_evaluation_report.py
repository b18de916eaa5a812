"""The page of an evaluation: what it says, and what it does in a browser."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from convnets_torch.card import Card
from convnets_torch.evaluation.calibration import calibrate, recalibrate
from convnets_torch.evaluation.metrics import confusion, find_mistakes, most_confused_pairs
from convnets_torch.evaluation.report import ClassRow, ErrorRow, Report, write_report
from convnets_torch.images.preprocessing import preset
from convnets_torch.wordnet.hierarchy import measure_severity

HOSTILE = "</script ><img src=x onerror='window.hacked=1'><script>window.hacked=1</script> \u202e\x07"


def report_of(names, count, imagenet=False):
    """A report of drawn answers to so many pictures."""
    random = np.random.default_rng(0)
    classes = 1000 if imagenet else len(names)
    card = Card("vgg16", {"classes": classes}, preset("vgg16"), "imagenet-1k" if imagenet else tuple(names))
    labels = np.arange(count) % classes
    logits = random.normal(size=(count, classes)).astype(np.float32)
    logits[np.arange(count), labels] += 1.5
    given = logits.argmax(1)
    counts = confusion(labels, given, classes)
    paths = [f"/pictures/{HOSTILE[:20]}{row}.jpg".replace("script ", "") for row in range(count)]
    found = find_mistakes(logits, labels, paths, card, most=5)
    wrong = int((given != labels).sum())
    best = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    return Report(
        title=f"A network on {HOSTILE}",
        card=card,
        facts=[("Weights", HOSTILE)],
        errors=[ErrorRow("top-1", wrong, count, 0.1, 0.9, 0.315), ErrorRow("top-5", 0, count, 0, 0.1)],
        interval="95 %, Wilson",
        classes=[
            ClassRow(
                name, f"n{place:08}" if imagenet else None, int(row.sum()), int(row.sum() - row[place]), 0, HOSTILE
            )
            for place, (name, row) in enumerate(zip(names, counts, strict=False))
        ],
        best=5,
        confusion=counts,
        pairs=most_confused_pairs(counts, card, most=3),
        calibration=calibrate(logits, labels),
        recalibration=recalibrate(logits, labels),
        mistakes=found,
        pictures={each.path: Image.new("RGB", (230, 150), "teal") for each in (*found.worst, *found.confident)},
        severity=measure_severity(best, labels) if imagenet else None,
        running=[("Throughput", "12 pictures a second")],
        repeat=[("Command", f"convnets-torch evaluate {HOSTILE}")],
        bad={HOSTILE: "it is <b>broken</b>"},
        original="its paper",
    )


@pytest.fixture(scope="module")
def own():
    return report_of(("ant 10", "ant 9", HOSTILE, "dog", "empty"), 64)


class Elements(HTMLParser):
    """The elements of a page, each with its attributes, and the text outside scripts and styles."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text, self.inside = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.text.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def test_the_page_says_all_as_text_and_every_picture_in_words(own, tmp_path):
    write_report(own, tmp_path / "report.html")
    page = Elements((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert len(page.of("script")) == 1  # its own
    assert not any(key.startswith("on") or key == "style" for _, keys in page.found for key in keys)
    assert page.of("b") == []
    assert all(image["src"].startswith("data:image/") for image in page.of("img"))
    assert all(len(image["alt"]) > 10 for image in page.of("img"))
    assert len(page.of("img")) == 5 + 5 + 2
    assert all(heading.get("scope") in ("col", "row") for heading in page.of("th"))
    assert len(page.of("caption")) == len(page.of("table"))
    text = " ".join(" ".join(page.text).split())
    wrong = own.errors[0].wrong
    assert f"top-1 {wrong / 64:.2%} 10.00% to 90.00% {wrong} of 64 31.50%" in text
    assert "The original's figures are from its paper." in text
    assert f"Expected calibration error, 15 bins {own.calibration.ece:.2%}" in text
    assert f"Temperature {own.recalibration.temperature.value:.4g}" in text
    assert "1 file could not be used" in text
    assert "it is <b>broken</b>" in text
    assert f"{own.mistakes.worst[0].probability:.3f}" in text
    assert "synset" not in text


def test_what_is_not_known_is_left_out(own, tmp_path):
    bare = Report("Bare", own.card, [("Pictures", "64")], [replace(own.errors[0], original=None)], "95 %", [])
    write_report(bare, tmp_path / "bare.html")
    page = Elements((tmp_path / "bare.html").read_text(encoding="utf-8"))
    text = " ".join(" ".join(page.text).split())
    headings = re.findall(r"<h2[^>]*>([^<]*)", (tmp_path / "bare.html").read_text(encoding="utf-8"))
    assert headings == ["What was evaluated", "Errors"]
    assert "original" not in text
    with pytest.raises(ValueError, match=r"report.txt has an unknown ending"):
        write_report(bare, tmp_path / "report.txt")
    with pytest.raises(FileNotFoundError, match=r"folder .* does not exist"):
        write_report(bare, tmp_path / "none" / "report.html")


def test_without_mistakes_that_is_said(own, tmp_path):
    none = find_mistakes(np.eye(5), np.arange(5), list("abcde"), own.card)
    write_report(replace(own, mistakes=none), tmp_path / "report.html")
    assert "No mistakes." in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_classes_are_sorted_and_filtered_by_mouse_and_keys_and_nothing_is_asked_for(visit, own, tmp_path):
    path = tmp_path / "report.html"
    write_report(replace(own, classes=[*own.classes, ClassRow("nothing", None, 0, 0)]), path)
    page = visit(path, 390)

    def column(number):
        rows = page.locator(".classes tbody tr:not([hidden])")
        return [rows.nth(row).locator("th, td").nth(number).inner_text() for row in range(rows.count())]

    def sorts():
        return page.evaluate("[...document.querySelectorAll('.classes thead th')].map((it) => it.ariaSort)")

    first = column(0)
    errors = {row.words: row.wrong / row.pictures for row in own.classes}
    button = page.get_by_role("button", name="Top-1 error")
    button.click()
    assert column(0) == sorted(first, key=lambda words: -list(errors.values())[first.index(words)])
    assert sorts() == [None, None, "descending", None, None]
    page.keyboard.press("Enter")  # the button has the focus
    assert column(0) == sorted(first, key=lambda words: list(errors.values())[first.index(words)])
    assert "1 class of the network has no pictures here." in page.inner_text("body")
    assert sorts()[2] == "ascending"
    page.get_by_role("button", name="Class").press("Space")
    assert column(0).index("ant 9") < column(0).index("ant 10") < column(0).index("dog")
    page.get_by_label("Filter classes").fill("ANT")
    assert column(0) == ["ant 9", "ant 10"]
    assert page.get_by_role("status").inner_text() == "2 of 5 classes"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("[...document.images].every((it) => it.naturalWidth > 0)")
    page.set_viewport_size({"width": 1200, "height": 800})
    assert page.evaluate("[...document.querySelectorAll('.plot')].every((it) => it.scrollWidth <= it.clientWidth)")
    assert page.evaluate("window.hacked") is None


def test_a_thousand_classes_are_a_page_of_moderate_size(tmp_path):
    names = [f"class {number}" for number in range(1000)]
    report = report_of(names, 1200, imagenet=True)
    write_report(report, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(text) < 1_500_000
    assert text.count("<tr>") > 1000
    assert f"{report.severity.height:.2f}" in text
    assert "both: " in text

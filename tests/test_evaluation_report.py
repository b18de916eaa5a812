"""The page of an evaluation: what it says, and what it does in a browser."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convnets_torch.card import Card
from convnets_torch.evaluation.evaluate import Evaluation, Running, published
from convnets_torch.evaluation.metrics import rank, wilson
from convnets_torch.evaluation.report import compute_metrics, write_page
from convnets_torch.images.preprocessing import preset
from convnets_torch.text import printable

HOSTILE = "</script ><img src=x onerror='window.hacked=1'><script>window.hacked=1</script> \u202e\x07"


def evaluation_of(names, count, imagenet=False, activation="softmax"):
    """An evaluation of random outputs for so many pictures of all classes but the last."""
    random = np.random.default_rng(0)
    classes = 1000 if imagenet else len(names)
    card = Card("vgg16", {"classes": classes}, preset("vgg16"), tuple(names) or None, activation=activation)
    card = replace(card, class_names="imagenet-1k") if imagenet else card
    labels = np.arange(count) % (classes - 1)
    logits = random.normal(size=(count, classes)).astype(np.float32)
    logits[np.arange(count), labels] += 1.5
    paths = tuple(Path(f"/pictures/{HOSTILE[:20]}{row}.jpg".replace("script ", "")) for row in range(count))
    return Evaluation(
        card, Path(HOSTILE), "center", paths, labels, logits, rank(logits, labels),
        failed=((Path(HOSTILE), "it is <b>broken</b>"),), notes=(HOSTILE,), running=Running(count, 2, 1, None, None),
    )  # fmt: skip


def write(metrics, path):
    thumbnails = {}
    if metrics.mistakes is not None:
        shown = (*metrics.mistakes.worst, *metrics.mistakes.confident)
        thumbnails = {each.path: Image.new("RGB", (230, 150), "teal") for each in shown}
    repeat = [("Command", f"convnets-torch evaluate {HOSTILE}")]
    write_page(metrics, path, weights=HOSTILE, repeat=repeat, thumbnails=thumbnails)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def own():
    return compute_metrics(evaluation_of(("ant 10", "ant 9", HOSTILE, "dog", "empty"), 64), temperature=True)


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
    page = Elements(write(own, tmp_path / "report.html"))
    assert len(page.of("script")) == 1  # its own
    assert not any(key.startswith("on") or key == "style" for _, keys in page.found for key in keys)
    assert page.of("b") == []
    assert all(image["src"].startswith("data:image/") for image in page.of("img"))
    assert all(len(image["alt"]) > 10 for image in page.of("img"))
    assert len(page.of("img")) == len(own.mistakes.worst) + len(own.mistakes.confident) + 2
    assert all(heading.get("scope") in ("col", "row") for heading in page.of("th"))
    assert len(page.of("caption")) == len(page.of("table"))
    text = " ".join(" ".join(page.text).split())
    [top1] = own.evaluation.errors
    low, high = wilson(top1.wrong, 64)
    assert f"top-1 {top1.wrong / 64:.2%} {low:.2%} to {high:.2%} {top1.wrong} of 64" in text
    assert f"Expected calibration error, 15 bins {own.calibration.ece:.2%}" in text
    assert f"Temperature {own.recalibration.temperature.value:.4g}" in text
    assert "1 file could not be used" in text
    assert "it is <b>broken</b>" in text
    assert f"{own.mistakes.worst[0].probability:.3f}" in text
    labels, given = own.evaluation.labels, own.evaluation.logits.argmax(1)
    for class_id, name in enumerate(("ant 10", "ant 9")):
        [(most, count)] = Counter(given[(labels == class_id) & (given != class_id)].tolist()).most_common(1)
        measured = own.classes[class_id]
        numbers = (measured.precision, measured.recall, measured.f1, measured.auc)
        wrong = f"{1 - measured.recall:.2%} " + " ".join(f"{number:.3f}" for number in numbers)
        assert f"{name} 16 {wrong} {printable(own.evaluation.card.class_names[most])} ({count})" in text
    assert "synset" not in text
    assert "The original's figures" not in text


def test_what_is_not_known_is_left_out(tmp_path):
    bare = compute_metrics(replace(evaluation_of("abc", 64, activation="none"), failed=()))
    write_page(bare, tmp_path / "bare.html")
    headings = re.findall(r"<h2[^>]*>([^<]*)", (tmp_path / "bare.html").read_text(encoding="utf-8"))
    assert headings == ["What was evaluated", "Errors", "Classes", "Confusion matrix", "Throughput and memory"]
    with pytest.raises(ValueError, match=r"report.txt has an unknown ending"):
        write_page(bare, tmp_path / "report.txt")
    with pytest.raises(FileNotFoundError, match=r"folder .* does not exist"):
        write_page(bare, tmp_path / "none" / "report.html")


def test_without_mistakes_that_is_said(tmp_path):
    found = evaluation_of("abc", 64)
    found = replace(found, labels=found.logits.argmax(1), ranked=rank(found.logits, found.logits.argmax(1)))
    assert "No mistakes." in write(compute_metrics(found), tmp_path / "report.html")


def test_classes_are_sorted_and_filtered_by_mouse_and_keys_and_nothing_is_asked_for(visit, own, tmp_path):
    path = tmp_path / "report.html"
    write(own, path)
    page = visit(path, 390)

    def column(number):
        rows = page.locator(".classes tbody tr:not([hidden])")
        return [rows.nth(row).locator("th, td").nth(number).inner_text() for row in range(rows.count())]

    def sorts():
        return page.evaluate("[...document.querySelectorAll('.classes thead th')].map((it) => it.ariaSort)")

    first = column(0)
    rates = [each.errors[1].error for each in own.evaluation.by_class]
    button = page.get_by_role("button", name="Top-1 error")
    button.click()
    assert column(0) == sorted(first, key=lambda words: -rates[first.index(words)])
    assert sorts() == [None, None, "descending", *[None] * 5]
    page.keyboard.press("Enter")  # the button has the focus
    assert column(0) == sorted(first, key=lambda words: rates[first.index(words)])
    assert "1 class of the network has no pictures here." in page.inner_text("body")
    assert sorts()[2] == "ascending"
    page.get_by_role("button", name="Class").press("Space")
    assert column(0).index("ant 9") < column(0).index("ant 10") < column(0).index("dog")
    shown = [name for name, mistaken in zip(column(0), column(7), strict=True) if "ant" in name + mistaken]
    assert 2 <= len(shown) < 4
    page.get_by_label("Filter classes").fill("ANT")
    assert column(0) == shown
    assert page.get_by_role("status").inner_text() == f"{len(shown)} of 4 classes"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("[...document.images].every((it) => it.naturalWidth > 0)")
    page.set_viewport_size({"width": 1200, "height": 800})
    assert page.evaluate("[...document.querySelectorAll('.plot')].every((it) => it.scrollWidth <= it.clientWidth)")
    assert page.evaluate("window.hacked") is None


def test_a_thousand_classes_are_a_page_of_moderate_size(tmp_path):
    metrics = compute_metrics(evaluation_of((), 1200, imagenet=True))
    text = write(metrics, tmp_path / "report.html")
    assert len(text) < 1_500_000
    assert text.count("<tr>") > 1000
    assert f"{metrics.severity.height:.2f}" in text
    assert "both: " in text
    page = " ".join(" ".join(Elements(text).text).split())
    assert "The original's figures are from convnets-keras' README" in page
    top1, top5, _ = metrics.evaluation.errors
    theirs = published(metrics.evaluation.card)
    for rate in (top1, top5):
        assert f"{rate.wrong} of 1200 {theirs[rate.k]:.2%}" in page

"""The page of an explanation in a browser: everything is shown, nothing is asked for, at widths from a phone's on."""

from __future__ import annotations

import pytest

from convnets_torch import load
from convnets_torch.explain.page import explain


@pytest.fixture(scope="module")
def page_file(lite_weights, photographs, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "coffee.html"
    explain(load(lite_weights), photographs / "coffee.png").save(path)
    return path


@pytest.mark.parametrize("width", [400, 800, 1300])
def test_everything_is_shown_and_nothing_is_asked_for(visit, page_file, width):
    page = visit(page_file, width)
    sizes = page.evaluate(
        "[...document.images].map((it) => [it.naturalWidth, it.getBoundingClientRect().width,"
        " it.getBoundingClientRect().right])"
    )
    columns = page.evaluate("getComputedStyle(document.querySelector('.pair')).gridTemplateColumns.split(' ').length")
    meters = page.evaluate("[...document.querySelectorAll('meter')].map((it) => it.getBoundingClientRect().width)")
    whole = page.evaluate("document.documentElement.scrollWidth")
    assert len(sizes) == 1 + 2 * 5 + 5
    assert all(natural > 300 and shown > 150 and right <= width for natural, shown, right in sizes)
    assert columns == (1 if width < 700 else 2)
    assert len(meters) == 5
    assert min(meters) > 60
    assert whole <= width

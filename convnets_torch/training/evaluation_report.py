"""An evaluation as one HTML file without network: errors, classes, confusions, calibration and mistakes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnets_torch.card import Card
from convnets_torch.confusions import WITH_NAMES
from convnets_torch.files import check_page, replacing
from convnets_torch.maps.page import data_uri, part, whole_page
from convnets_torch.targets import class_name
from convnets_torch.training.calibration import Calibration, Recalibration
from convnets_torch.training.class_metrics import METRICS, ClassMetrics
from convnets_torch.training.evaluation_pictures import chance, draw_confusions, draw_reliability
from convnets_torch.training.mistakes import Confused, Mistake, Mistakes
from convnets_torch.training.report_tables import Cell, Column, Sorted, escaped, facts_table, number, share, table
from convnets_torch.training.several_labels import SeveralLabels, figure
from convnets_torch.training.severity import Severity

METRIC_WORDS = {"precision": "Precision", "recall": "Recall", "f1": "F1", "auc": "AUC"}
FILTER = (
    '<p class="filter" hidden><label for="filter">Only classes with</label>'
    '<input id="filter" type="search" autocomplete="off"><span id="count" role="status"></span></p>'
)
LARGE = 700  # pixels of a picture that is scrolled rather than made small on a narrow screen


@dataclass(frozen=True)
class ErrorRow:
    """One kind of error.

    Attributes:
        words: such as "top-1".
        wrong, pictures: counts.
        low, high: ends of the confidence interval of the error, 0 to 1.
        original: the error that the network's authors or its original report, 0 to 1; None where there is none.
    """

    words: str
    wrong: int
    pictures: int
    low: float
    high: float
    original: float | None = None


@dataclass(frozen=True)
class ClassRow:
    """The pictures of one class.

    Attributes:
        words: of the class.
        wnid: None for a user's own classes.
        pictures: how many there are; may be 0.
        wrong: how many of them have another class as the most probable one.
        wrong_of_best: how many have not their class among the best k; None where that is not asked.
        taken_for: the wrong class that was given most often, with how many; empty where there is none.
        metrics: precision, recall and more; None where there are no pictures.
    """

    words: str
    wnid: str | None
    pictures: int
    wrong: int
    wrong_of_best: int | None = None
    taken_for: str = ""
    metrics: ClassMetrics | None = None


@dataclass(frozen=True, eq=False)
class Report:
    """What a page shows; parts that are None or empty are left out.

    Attributes:
        title: above all, such as the names of weights and folder.
        card: of the weights.
        facts: (what, value): what was evaluated, weights, preprocessing, pictures.
        errors: the best first.
        interval: how the confidence intervals are made, "95 %, Wilson".
        classes: one row for each class, in the card's order.
        means: of their metrics, as `class_means` gives them.
        best: the k of `wrong_of_best`.
        confusion: (classes, classes) counts, the truth in rows.
        pairs: the most confused ones.
        calibration: of all pictures.
        recalibration: where a temperature was asked for.
        mistakes: to look at.
        pictures: path -> small picture, of all in `mistakes`.
        severity: for the 1,000 classes.
        running: (what, value): throughput, memory, device.
        repeat: (what, value): command, options and versions.
        bad: path -> why it was left out.
        original: where the `original` errors are from, in words.
        several: where pictures may have several labels, how well each is told.
    """

    title: str
    card: Card
    facts: Sequence[tuple[str, str]]
    errors: Sequence[ErrorRow]
    interval: str
    classes: Sequence[ClassRow]
    means: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    best: int | None = None
    confusion: NDArray[np.integer[Any]] | None = None
    pairs: Sequence[Confused] = ()
    calibration: Calibration | None = None
    recalibration: Recalibration | None = None
    mistakes: Mistakes | None = None
    pictures: Mapping[str, Image.Image] = field(default_factory=dict)
    severity: Severity | None = None
    running: Sequence[tuple[str, str]] = ()
    repeat: Sequence[tuple[str, str]] = ()
    bad: Mapping[str, str] = field(default_factory=dict)
    original: str = ""
    several: SeveralLabels | None = None


def write_report(report: Report, path: str | os.PathLike[str]) -> None:
    """Write one HTML file, atomically, that holds everything and asks no network.

    Its script sorts and filters the table of classes and does nothing else; without it the table is whole. Names are
    shown as text, whatever is in them.

    Raises:
        ValueError: another ending than .html.
        OSError: `path` cannot be written.
    """
    check_page(Path(path), "a report")
    style, script = part("explain.css") + part("evaluation.css"), part("evaluation.js")
    page = whole_page(
        "evaluation.html",
        escaped(report.title),
        style,
        script,
        summary=_summary(report),
        sections="\n".join(_sections(report)),
    )
    with replacing(path) as temporary:
        temporary.write_bytes(page.encode())


def _summary(report: Report) -> str:
    bad = f" · {len(report.bad)} left out" if report.bad else ""
    if report.several is not None:
        mean = report.several.mean_average_precision
        return f"mean average precision {mean:.4f} · {report.several.pictures} pictures{bad}"
    first = " · ".join(f"{escaped(row.words)} error {share(row.wrong, row.pictures)}" for row in report.errors[:2])
    pictures = report.errors[0].pictures if report.errors else 0
    return f"{first} · {pictures} pictures{bad}"


def _sections(report: Report) -> Iterable[str]:
    yield _section("what", "What was evaluated", facts_table("What was evaluated", report.facts) + _bad(report.bad))
    if report.several is not None:
        yield _section("labels", "Labels", _labels(report.several, report.card))
    else:
        yield _section("errors", "Errors", _errors(report))
    if report.severity is not None:
        yield _section("severity", "How bad the mistakes are", _severity(report.severity))
    if report.mistakes is not None:
        yield _section("mistakes", "Mistakes to look at", _mistakes(report.mistakes, report.pictures))
    if report.classes:
        yield _section("classes", "Classes", _classes(report))
    if report.confusion is not None:
        yield _section("confusion", "Confusions", _confusion(report.confusion, report))
    if report.calibration is not None:
        yield _section(
            "calibration", "Is it as sure as it is right?", _calibration(report.calibration, report.recalibration)
        )
    if report.running:
        yield _section("running", "Throughput and memory", facts_table("Throughput and memory", report.running))
    if report.repeat:
        yield _section("repeat", "To repeat it", facts_table("Options and versions", report.repeat))


def _section(name: str, heading: str, content: str) -> str:
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{heading}</h2>\n{content}\n</section>'


def _bad(bad: Mapping[str, str]) -> str:
    if not bad:
        return ""
    rows = table("Files that were left out", [Column("File"), Column("Why")], [list(pair) for pair in bad.items()])
    words = "1 file could not be used and is" if len(bad) == 1 else f"{len(bad)} files could not be used and are"
    return f"<details><summary>{words} counted in no figure</summary>{rows}</details>"


def _errors(report: Report) -> str:
    theirs = any(row.original is not None for row in report.errors)
    columns = [Column("Error"), Column("Share", True), Column("Interval", True), Column("Wrong", True)]
    rows = [
        [
            row.words,
            share(row.wrong, row.pictures),
            f"{row.low:.2%} to {row.high:.2%}",
            f"{row.wrong} of {row.pictures}",
            *(["" if row.original is None else f"{row.original:.2%}"] if theirs else []),
        ]
        for row in report.errors
    ]
    source = f" The original's are from {escaped(report.original)}." if theirs and report.original else ""
    hint = (
        '<p class="hint">A picture is wrong where its class is not among the most probable 1, 5 or 10.'
        f" Confidence intervals: {escaped(report.interval)}.{source}</p>"
    )
    return hint + table("Errors", columns + ([Column("The original", True)] if theirs else []), rows)


def _classes(report: Report) -> str:
    of_best = report.best is not None and any(row.wrong_of_best is not None for row in report.classes)
    wnids = any(row.wnid for row in report.classes)
    measured = any(row.metrics for row in report.classes)
    shown = [row for row in report.classes if row.pictures]
    empty = len(report.classes) - len(shown)
    columns = [
        Column("Class"),
        *([Column("wnid")] if wnids else []),
        Column("Pictures", True),
        Column("Top-1 error", True),
        *([Column(f"Top-{report.best} error", True)] if of_best else []),
        *([Column(METRIC_WORDS[name], True) for name in METRICS] if measured else []),
        Column("Most often taken for"),
    ]
    rows: list[list[Cell]] = [
        [
            row.words,
            *([row.wnid or ""] if wnids else []),
            number(row.pictures),
            number(row.wrong, row.pictures),
            *([number(row.wrong_of_best or 0, row.pictures)] if of_best else []),
            *([_metric(getattr(row.metrics, name, None)) for name in METRICS] if measured else []),
            row.taken_for,
        ]
        for row in shown
    ]
    verb = "class of the network has" if empty == 1 else "classes of the network have"
    hint = f'<p class="hint">{empty} {verb} no pictures here.</p>' if empty else ""
    if report.means:
        hint += '<p class="hint">Means are over the classes that have pictures.</p>'
        heads = [Column("Mean"), *(Column(METRIC_WORDS[name], True) for name in METRICS)]
        lines: list[list[Cell]] = [
            [words, *(_metric(report.means[kind][name]) for name in METRICS)]
            for kind, words in (("macro", "Each class alike (macro)"), ("weighted", "By pictures (weighted)"))
        ]
        hint += table("Means over the classes", heads, lines)
    return hint + FILTER + table("Errors of each class", columns, rows, sortable=True)


def _labels(found: SeveralLabels, card: Card) -> str:
    columns = [Column(head, True) for head in ("Average precision", "Precision", "Recall", "F1")]
    rows: list[list[Cell]] = [
        [
            class_name(card, class_id),
            number(each.pictures),
            *(Sorted(figure(value), value or 0) for value in each.figures.values()),
        ]
        for class_id, each in enumerate(found.labels)
    ]
    means = [
        ["Mean of the labels (macro)", *map(figure, found.macro.values())],
        ["All labels together (micro)", *map(figure, found.micro.figures.values())],
    ]
    hint = (
        '<p class="hint">Average precision is the mean of the precision at each threshold, weighted by the recall that'
        " it adds. Precision, recall and F1 are of labels with a probability of 0.5 or more. Means of the labels leave"
        " out those that no picture has.</p>"
    )
    return (
        hint
        + table("All labels", [Column("Labels"), *columns], means)
        + "<h3>Each label</h3>"
        + FILTER
        + table("Each label", [Column("Label"), Column("Pictures", True), *columns], rows, sortable=True)
    )


def _metric(value: float | None) -> Sorted:
    """Three decimals, to sort by, or a dash where there is none."""
    return Sorted("-", -1) if value is None else Sorted(f"{value:.3f}", value)


def _confusion(counts: NDArray[np.integer[Any]], report: Report) -> str:
    alt = f"Confusions of {len(counts)} classes: {counts.trace()} of {counts.sum()} pictures on the diagonal"
    found = _plot(draw_confusions(counts, report.card), alt)
    if len(counts) > WITH_NAMES:
        found = f'<p class="hint">The names of all classes are in confusion.svg, beside this page.</p>{found}'
    if not report.pairs:
        return found
    tree = any(pair.ancestor for pair in report.pairs)
    columns = [Column("Is"), Column("Was taken for"), Column("Pictures", True), Column("Of its class", True)]
    rows = [
        [
            pair.truth_words,
            pair.given_words,
            str(pair.count),
            f"{pair.share:.1%}",
            *([f"{pair.ancestor}, {pair.steps} up"] if tree else []),
        ]
        for pair in report.pairs
    ]
    pairs = table("The most confused pairs", columns + ([Column("Both are")] if tree else []), rows)
    return f"{found}<h3>The most confused pairs</h3>{pairs}"


def _calibration(found: Calibration, both: Recalibration | None) -> str:
    shown = [found] if both is None else [both.before, both.after]
    ece = ", ".join(
        f"{each.ece:.2%}" + (f" with temperature {each.temperature:.3g}" * (each.temperature != 1)) for each in shown
    )
    picture = draw_reliability(*shown)
    plot = _plot(picture, f"Reliability: expected calibration error {ece}")
    heads = ["All pictures", *([] if both is None else ["Other half", f"Temperature {both.after.temperature:.4g}"])]
    every = [found, *([] if both is None else [both.before, both.after])]
    kinds: list[tuple[str, list[str]]] = [
        ("Pictures", [str(each.counts.sum()) for each in every]),
        ("Accuracy", [f"{each.accuracy:.2%}" for each in every]),
        ("Mean confidence", [f"{each.confidence:.2%}" for each in every]),
        (f"Expected calibration error, {len(found.counts)} bins", [f"{each.ece:.2%}" for each in every]),
        ("The same, bins of equal numbers", [f"{each.adaptive:.2%}" for each in every]),
        ("Largest gap of a bin", [f"{each.largest:.2%}" for each in every]),
        ("Negative log-likelihood", [f"{each.nll:.4f}" for each in every]),
        ("Brier score", [f"{each.brier:.4f}" for each in every]),
    ]
    hint = (
        "Confidence is the probability of the most probable class. Of pictures with confidence 0.8 eight in ten should"
        " be right."
    )
    if both is not None:
        hint += (
            f" The temperature {both.temperature.value:.4g}, by which logits are divided, was fitted to"
            f" {both.temperature.pictures} pictures, one half; the plots and the last two columns"
            " are of the other half."
        )
    columns = [Column("Figure"), *(Column(head, True) for head in heads)]
    figures = table("Calibration", columns, [[words, *values] for words, values in kinds])
    body = plot + figures if picture.width > LARGE else f'<div class="columns">{plot}{figures}</div>'
    return f'<p class="hint">{hint}</p>{body}'


def _severity(found: Severity) -> str:
    rows = [("Mistakes", f"{found.mistakes} of {found.pictures} pictures")]
    if found.height is not None and found.steps is not None:
        rows += [
            ("Mean height of the common ancestor, over mistakes", f"{found.height:.2f}"),
            ("Mean steps from the truth up to it, over mistakes", f"{found.steps:.2f}"),
        ]
    rows += [
        (f"Mean height over the best {k} of all pictures" if k > 1 else "Mean height over all pictures", f"{mean:.2f}")
        for k, mean in found.of_best.items()
    ]
    rows += [
        (f"Hierarchical error of 2010, {k} {'guess' if k == 1 else 'guesses'}", f"{cost:.4f}")
        for k, cost in found.least_cost.items()
    ]
    hint = (
        '<p class="hint">A beagle that is taken for a basset is a smaller mistake than one that is taken for a bus.'
        " The truth and what it was taken for meet in the synset tree in their deepest common ancestor; its height is"
        f" the number of steps from it down to a class, 1 to {len(found.heights) - 1}.</p>"
    )
    heights: list[list[Cell]] = [
        [str(height), str(count), (count, found.mistakes)]
        for height, count in enumerate(found.heights.tolist())
        if height
    ]
    columns = [Column("Height", True), Column("Mistakes", True), Column("Share")]
    frequent = [[words, wnid, str(count)] for wnid, words, count in found.frequent]
    beside = table("Mistakes by height", columns, heights)
    common = table(
        "The most frequent common ancestors", [Column("Both are"), Column("wnid"), Column("Mistakes", True)], frequent
    )
    first = f"<div>{facts_table('Severity', rows)}<h3>Where most mistakes meet</h3>{common}</div>"
    return f'{hint}<div class="columns">{first}{beside}</div>'


def _mistakes(found: Mistakes, pictures: Mapping[str, Image.Image]) -> str:
    if not found.count:
        return "<p>There are none.</p>"
    parts = [
        ("The worst", "The truth was found the least probable.", found.worst),
        ("The most confident of the others", "A wrong class was found the most probable.", found.confident),
    ]
    lists = "".join(
        f'<h3>{heading}</h3><p class="hint">{hint} {len(shown)} of {found.count} mistakes.</p>'
        f'<ul class="photos">{"".join(_photo(each, pictures.get(each.path)) for each in shown)}</ul>'
        for heading, hint, shown in parts
        if shown
    )
    return lists + _all_mistakes(found)


def _all_mistakes(found: Mistakes) -> str:
    tree = any(each.ancestor for each in found.listed)
    columns = [Column("File"), Column("Is"), Column("Was taken for"), Column("Probability", True)]
    columns += [Column("Of the truth", True), *([Column("Both are")] if tree else [])]
    rows = [
        [
            each.path,
            each.short_words[0],
            each.short_words[1],
            chance(each.probability),
            chance(each.of_truth),
            *([f"{each.ancestor}, {each.steps} up"] if tree else []),
        ]
        for each in found.listed
    ]
    left = found.count - len(found.listed)
    words = (
        f"The {len(rows)} worst of {found.count} mistakes" if left else f"All mistakes ({found.count}), the worst first"
    )
    hint = (
        f'<p class="hint">{left} more are in predictions.csv, beside this page: the rows of a rank above 1.</p>'
        if left
        else ""
    )
    return f"<details><summary>{words}</summary>{hint}{table('All mistakes', columns, rows)}</details>"


def _photo(mistake: Mistake, picture: Image.Image | None) -> str:
    name, (truth, given) = Path(mistake.path).name, mistake.short_words
    alt = escaped(f"{name}: {mistake.truth_words}, taken for {mistake.given_words}")
    image = "" if picture is None else f'<img src="{data_uri(picture, "JPEG")}" alt="{alt}">'
    common = f"<p>{escaped(mistake.common)}</p>" if mistake.common else ""
    return (
        f'<li>{image}<p class="given">{_chance(mistake.probability)} <bdi>{escaped(given)}</bdi></p>'
        f"<p>is {_chance(mistake.of_truth)} <bdi>{escaped(truth)}</bdi></p>{common}"
        f'<p class="name"><bdi>{escaped(name)}</bdi></p></li>'
    )


def _chance(probability: float) -> str:
    return f'<span class="chance">{chance(probability)}</span>'


def _plot(image: Image.Image, alt: str) -> str:
    scrolled = ' large" role="region" tabindex="0" aria-label="Picture' if image.width > LARGE else ""
    return f'<figure class="plot{scrolled}"><img src="{data_uri(image, "PNG")}" alt="{escaped(alt)}"></figure>'

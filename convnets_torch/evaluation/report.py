"""The files of an evaluation: report page, tables and predictions."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnets_torch.card import Card
from convnets_torch.evaluation.calibration import (
    Calibration,
    Recalibration,
    blocks,
    calibrate,
    log_probabilities,
    recalibrate,
)
from convnets_torch.evaluation.charts import (
    chance,
    confusions_svg,
    draw_confusions,
    draw_reliability,
    mistakes_sheet,
    small_pictures,
)
from convnets_torch.evaluation.evaluate import Evaluation, published
from convnets_torch.evaluation.metrics import (
    METRICS,
    ClassMetrics,
    Confused,
    Mistake,
    Mistakes,
    class_means,
    find_mistakes,
    measure_classes,
    most_confused_pairs,
)
from convnets_torch.evaluation.several_labels import SeveralLabels, figure
from convnets_torch.files import check_page, check_writable, replacing, resolved
from convnets_torch.images.levels import Background, Depth
from convnets_torch.images.preprocessing import Preprocessing
from convnets_torch.text import cell, printable
from convnets_torch.visualization.charts import WITH_NAMES
from convnets_torch.visualization.overlays import save_image
from convnets_torch.visualization.pages import data_uri, part, whole_page
from convnets_torch.wordnet import synsets
from convnets_torch.wordnet.hierarchy import Severity, distances_of, measure_severity
from convnets_torch.wordnet.targets import class_name, class_wnid, tree_wnids

LONG = 12  # letters of words that are given room to break at blanks


class Column(NamedTuple):
    """A heading, and whether numbers stand below it."""

    words: str
    number: bool = False


class Sorted(NamedTuple):
    """A number with what it is sorted by."""

    words: str
    value: float


Cell = str | Sorted | tuple[int, int]  # words; a number to sort by; or a part of a whole, as a bar


def escaped(words: str) -> str:
    """Words as text of a page, whatever is in them.

    >>> escaped("<b>\\x07")
    '&lt;b&gt;\\\\x07'
    """
    return escape(printable(words))


def share(some: int, every: int) -> str:
    """A percentage, or a dash where there is nothing to take it of.

    >>> share(1, 3), share(0, 0)
    ('33.33%', '-')
    """
    return f"{some / every:.2%}" if every else "-"


def number(some: int, every: int | None = None) -> Sorted:
    """A number, or where a whole is given the share of it, that columns can be sorted by."""
    if every is None:
        return Sorted(str(some), some)
    return Sorted(share(some, every), some / every if every else 0)


def table(caption: str, columns: Sequence[Column], rows: Sequence[Sequence[Cell]], sortable: bool = False) -> str:
    """A table whose first column heads its rows; one of many columns or rows can be scrolled, by keys too.

    >>> "<th scope=row>ant</th>" in table("Insects", [Column("Name")], [["ant"]])
    True
    """
    heads = "".join(
        f"<th scope=col{_class(column)}>"
        + (f'<button type="button">{escaped(column.words)}</button>' if sortable else escaped(column.words))
        + "</th>"
        for column in columns
    )
    lines = "\n".join(
        "<tr>"
        + "".join(
            _cell(cell, column, "th scope=row" if place == 0 else "td")
            for place, (cell, column) in enumerate(zip(row, columns, strict=True))
        )
        + "</tr>"
        for row in rows
    )
    name = escaped(caption)
    tall = " tall" if len(rows) > 30 else ""
    kind = " class=classes" if sortable else ""
    return (
        f'<div class="wide{tall}" role="region" aria-label="{name}" tabindex="0"><table{kind}>'
        f'<caption class="spoken">{name}</caption><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>'
    )


def facts_table(caption: str, facts: Sequence[tuple[str, str]]) -> str:
    """(what, value) as a table without headings of columns."""
    lines = "\n".join(f"<tr><th scope=row>{escaped(what)}</th><td>{escaped(value)}</td></tr>" for what, value in facts)
    name = escaped(caption)
    return (
        f'<div class="wide"><table class="facts"><caption class="spoken">{name}</caption>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _class(column: Column, words: str = "") -> str:
    return " class=number" if column.number else " class=long" if len(words) > LONG else ""


def _cell(cell: Cell, column: Column, tag: str) -> str:
    end = tag.partition(" ")[0]
    if isinstance(cell, Sorted):
        return f"<{tag}{_class(column)} data-value={cell.value:.6g}>{escaped(cell.words)}</{end}>"
    if isinstance(cell, tuple):
        some, every = cell
        bar = f"<meter min=0 max={max(every, 1)} value={some}>{share(some, every)}</meter>"
        return f"<{tag}>{bar}</{end}>"
    return f"<{tag}{_class(column, cell)}>{escaped(cell)}</{end}>"


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


FILES = (
    "evaluation.json", "report.html", "predictions.csv", "classes.csv", "confusion.svg", "confusion.png",
    "reliability.png", "worst.png", "most_confident.png",
)  # fmt: skip
ALWAYS = FILES[:6]
INTERVAL = "95 %, Wilson"
LEFT_OUT = "top-k errors, confusions, calibration, severity and mistakes are left out: they are of one class a picture"
NO_TEMPERATURE = "no temperature was fitted: it is for classes that exclude each other"
MOST_REMARKS = 10  # on the page


@dataclass(frozen=True, eq=False)
class Judged:
    """What can be said of an evaluation.

    Attributes:
        evaluation: of which.
        calibration, mistakes: None where the network's outputs are no probabilities.
        recalibration: where a temperature was asked for, and one is the best.
        severity: for classes that all stand in the synset tree.
        pairs: the most confused ones.
        classes: precision, recall, F1 and area under the ROC curve of each class that has pictures.
        remarks: sentences on what could not be said.
    """

    evaluation: Evaluation
    calibration: Calibration | None
    recalibration: Recalibration | None
    mistakes: Mistakes | None
    severity: Severity | None
    pairs: tuple[Confused, ...]
    classes: tuple[ClassMetrics, ...]
    remarks: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with all figures of the evaluation."""
        if self.evaluation.several_labels is not None:
            return self.evaluation.to_dict() | {"remarks": [*self.evaluation.remarks, *self.remarks]}
        figures = self.evaluation.to_dict()
        for entry, measured in zip(figures["by_class"], self.classes, strict=True):
            entry.update((name, getattr(measured, name)) for name in METRICS)
        return figures | {
            "means_of_classes": class_means(self.classes),
            "calibration": self.calibration and self.calibration.to_dict(),
            "recalibration": self.recalibration and self.recalibration.to_dict(),
            "mistakes": self.mistakes and self.mistakes.to_dict(),
            "severity": self.severity and self.severity.to_dict(),
            "most_confused": [pair.to_dict() for pair in self.pairs],
            "remarks": [*self.evaluation.remarks, *self.remarks],
        }


def judge(found: Evaluation, *, temperature: bool = False) -> Judged:
    """Measure what follows from a network's outputs.

    Args:
        found: the outputs.
        temperature: fit one to a half of the pictures, and judge it by the other. Where none is the best, a remark
            says so, and the rest is there all the same.

    Of pictures with several labels nothing follows that takes classes to exclude each other: no calibration, mistakes,
    severity or temperature.
    """
    if found.several_labels is not None:
        said = (LEFT_OUT, *([NO_TEMPERATURE] if temperature else ()))
        return Judged(
            found,
            calibration=None,
            recalibration=None,
            mistakes=None,
            severity=None,
            pairs=(),
            classes=(),
            remarks=said,
        )
    card, logits, labels, remarks = found.card, found.logits, found.labels, []
    calibration = recalibration = mistakes = None
    if card.activation == "none":
        remarks.append(
            "the outputs are no probabilities (activation none), so no calibration and no mistakes are shown"
        )
    else:
        calibration = calibrate(logits, labels, card.activation)
        mistakes = find_mistakes(logits, labels, found.paths, card)
        if temperature:
            try:
                recalibration = recalibrate(logits, labels, card.activation)
            except ValueError as error:
                remarks.append(f"no temperature was fitted: {error}")
    tree = tree_wnids(card)
    severity = None if tree is None else measure_severity(found.ranking.best, labels, tree)
    pairs = most_confused_pairs(found.confusion, card)
    classes = measure_classes(logits, labels, found.ranking.best[:, 0], card.activation)
    return Judged(found, calibration, recalibration, mistakes, severity, pairs, classes, tuple(remarks))


def check_report_folder(folder: Path, pictures: Path) -> None:
    """Make a folder for reports, and see that they can be written, before long work begins.

    Raises:
        OSError: it is none, or cannot be written.
        ValueError: it is the folder of the pictures or below it, whose pictures would be evaluated the next time.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder; name one for the report")
    check_outside(folder, pictures)
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        check_writable(folder / name)


def check_outside(folder: Path, pictures: Path) -> None:
    """Raise ValueError when what is written would be looked for pictures the next time."""
    if resolved(folder).is_relative_to(resolved(pictures)):
        raise ValueError(f"{folder} lies in {pictures}, where it would be taken for a class; name a folder outside")


def save_judged(
    found: Judged,
    folder: str | os.PathLike[str],
    *,
    weights: str = "",
    repeat: Sequence[tuple[str, str]] = (),
    max_pixels: int | None = None,
    depth: Depth = None,
    background: Background = None,
) -> tuple[str, ...]:
    """Write `evaluation.json`, `report.html`, tables and pictures into a folder, each atomically.

    Args:
        found: what `judge` gives.
        folder: which exists.
        weights: the name of the weights, for the page.
        repeat: (what, value), for the page: command, options, versions.
        max_pixels, depth, background: as for `evaluate`, for the pictures of mistakes.

    Returns:
        The names of the files; those of what cannot be said are left out.

    Raises:
        OSError: a file cannot be written.
    """
    folder, evaluation, card = Path(folder), found.evaluation, found.evaluation.card
    if evaluation.several_labels is not None:
        return _save_labels(found, folder, weights, repeat)
    pictures = {"confusion.png": draw_confusions(evaluation.confusion, card)}
    small: dict[str, Any] = {}
    if found.calibration is not None:
        both = found.recalibration
        shown = (found.calibration,) if both is None else (both.before, both.after)
        pictures["reliability.png"] = draw_reliability(*shown)
    if found.mistakes is not None:
        kinds = {"worst": found.mistakes.worst, "most_confident": found.mistakes.confident}
        paths = [each.path for mistakes in kinds.values() for each in mistakes]
        exif = card.preprocessing.exif
        small = small_pictures(paths, exif, max_pixels=max_pixels, depth=depth, background=background)
        for name, mistakes in kinds.items():
            others = found.mistakes.count - len(found.mistakes.worst)
            of = f"{others} other mistakes" if name == "most_confident" else f"{found.mistakes.count} mistakes"
            title = f"The {name.replace('_', ' ')} of {of}"
            pictures[f"{name}.png"] = mistakes_sheet(mistakes, [small[each.path] for each in mistakes], title)
    for name, picture in pictures.items():
        save_image(picture, folder / name)
    with replacing(folder / "confusion.svg") as temporary:
        temporary.write_text(confusions_svg(evaluation.confusion, card), encoding="utf-8")
    save_predictions(evaluation, folder / "predictions.csv", probabilities=False)
    save_classes(evaluation, found.classes, folder / "classes.csv")
    _save_figures(found, folder, weights)
    original = published(card)
    errors = [
        ErrorRow(
            f"top-{rate.k}",
            rate.wrong,
            rate.count,
            *rate.interval,
            None if original is None else original.errors.get(rate.k),
        )
        for rate in evaluation.errors
    ]
    page = Report(
        title=f"{weights or card.network} on {evaluation.folder}",
        card=card,
        facts=_facts(found, weights),
        errors=errors,
        interval=INTERVAL,
        classes=_class_rows(found),
        means=class_means(found.classes),
        best=5 if card.classes > 5 else None,
        confusion=evaluation.confusion,
        pairs=found.pairs,
        calibration=found.calibration,
        recalibration=found.recalibration,
        mistakes=found.mistakes,
        pictures=small,
        severity=found.severity,
        running=running_facts(evaluation),
        repeat=repeat,
        bad={str(path): words for path, words in evaluation.failed},
        original="" if original is None else original.source,
    )
    write_report(page, folder / "report.html")
    return tuple(name for name in FILES if name in pictures or name in ALWAYS)


def _save_figures(found: Judged, folder: Path, weights: str) -> None:
    with replacing(folder / "evaluation.json") as temporary:
        figures = {"weights": weights, **found.to_dict()}
        temporary.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _save_labels(found: Judged, folder: Path, weights: str, repeat: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """What `save_judged` writes where pictures may have several labels."""
    evaluation = found.evaluation
    _save_figures(found, folder, weights)
    page = Report(
        title=f"{weights or evaluation.card.network} on {evaluation.folder}",
        card=evaluation.card,
        facts=_facts(found, weights),
        errors=(),
        interval="",
        classes=(),
        running=running_facts(evaluation),
        repeat=repeat,
        bad={str(path): words for path, words in evaluation.failed},
        several=evaluation.several_labels,
    )
    write_report(page, folder / "report.html")
    return FILES[:2]


def _facts(judged: Judged, weights: str) -> list[tuple[str, str]]:
    found = judged.evaluation
    card, several = found.card, found.several_labels
    made = "" if card.source is None else f"{card.source.file}, {card.source.framework}, sha256 {card.source.sha256}"
    facts = [
        ("Weights", weights),
        ("Converted from", made),
        ("Network", f"{card.network}, {card.classes} classes, {card.activation}"),
        ("Preprocessing", _rule(card.preprocessing)),
        ("Crops", {"center": "the centre", "flip": "the centre and its mirror image", "ten": "ten"}[found.crops]),
        ("Folder", str(found.folder)),
        ("Pictures", str(len(found.labels))),
        ("Pictures without a label", "" if several is None else str(several.unlabelled)),
        ("Classes with pictures", "" if several is not None else str(len(found.by_class))),
        ("Could not be read", str(len(found.failed))),
        ("Trained on", "" if found.learnt is None else f"{found.learnt.train.sum()} of these pictures"),
        ("Mean top-1 error of the classes", "" if several is not None else f"{found.balanced_error:.2%}"),
    ]
    remarks = [*found.remarks[:MOST_REMARKS], *judged.remarks]
    if len(found.remarks) > MOST_REMARKS:
        remarks.append(f"and {len(found.remarks) - MOST_REMARKS} more, in evaluation.json")
    return [fact for fact in facts if fact[1]] + [("Remark", remark) for remark in remarks]


def _rule(rule: Preprocessing) -> str:
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (rule.mean, rule.std))
    return (
        f"{rule.name}: {rule.resize_rule} to {rule.resize} pixels ({rule.interpolation}), centre {rule.size} pixels,"
        f" {rule.channels.upper()}, times {rule.scale:.6g}, less ({mean}), divided by ({std})"
    )


def running_facts(found: Evaluation) -> list[tuple[str, str]]:
    """Throughput and memory in words."""
    running = found.running
    facts = [("Pictures computed in this run", str(running.computed))]
    if running.throughput is not None:
        facts += [
            ("Pictures a second", f"{running.throughput:.1f}"),
            ("The network's share of the time", f"{running.network_seconds / running.seconds:.0%}"),
        ]
    if running.memory is not None:
        facts.append(("Memory of the process, at most", f"{running.memory / 1e9:.2f} GB"))
    if running.device_memory is not None:
        facts.append(("Memory of the GPU, at most", f"{running.device_memory / 1e9:.2f} GB"))
    return facts


def _class_rows(judged: Judged) -> list[ClassRow]:
    """One for each class of the card, also for those without pictures."""
    found, metrics = judged.evaluation, {each.class_id: each for each in judged.classes}
    errors = {each.class_id: each.errors for each in found.by_class}
    counts = found.confusion
    rows = []
    for class_id in range(found.card.classes):
        words, wnid = class_name(found.card, class_id), class_wnid(found.card, class_id)
        if class_id not in errors:
            rows.append(ClassRow(words, wnid, 0, 0))
            continue
        others = counts[class_id].copy()
        others[class_id] = 0
        most = int(np.argmax(others))
        first_word = class_name(found.card, most).partition(",")[0] if judged.severity else class_name(found.card, most)
        taken = f"{first_word} ({others[most]})" if others[most] else ""
        of_best = errors[class_id].get(5)
        first = errors[class_id][1]
        wrong_of_best = None if of_best is None else of_best.wrong
        rows.append(ClassRow(words, wnid, first.count, first.wrong, wrong_of_best, taken, metrics[class_id]))
    return rows


TEXTS = ("path", "truth", "answer", "common_ancestor", "learnt_from", "error")
INTEGERS = ("truth_id", "answer_id", "rank", "height", "steps")


def check_predictions(path: Path) -> None:
    """Raise, before long work begins, when `save_predictions` cannot write to `path`.

    Raises:
        ValueError: another ending than .csv or .parquet.
        ImportError: a Parquet file is wanted, and pyarrow is missing.
        OSError: `path` cannot be written.
    """
    ending = path.suffix.lower()
    if ending not in (".csv", ".parquet"):
        raise ValueError(f"{path} has an unknown ending; predictions are written as .csv or .parquet")
    if ending == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise ImportError(
                f"a Parquet file needs pyarrow ({error}): pip install 'convnets-torch[parquet]'"
            ) from None
    check_writable(path)


def save_predictions(found: Evaluation, path: str | os.PathLike[str], *, probabilities: bool = True) -> None:
    """Write a row for each picture; the file appears whole, and memory does not grow with the pictures.

    Columns: `path`; `truth_id` and `truth`; `answer_id` and `answer`, the most probable class; `rank` of the truth,
    where 1 is right; `probability` of the answer, and `probability_of_truth`; for classes in the synset tree
    `common_ancestor`, its `height`, and the `steps` from the truth up to it; `learnt_from`, "train", "validation" or
    "no", where the card says it; `error`, of a picture that could not be read, whose other cells are empty. Then
    "probability 3 beagle" and the like, one for each class. Where outputs are no probabilities all these columns are
    called output instead.

    In CSV texts are as `sentences.cell` has them: formulas get an apostrophe. In Parquet they are as they are.

    Args:
        found: of `evaluate`.
        path: ends in .csv or .parquet.
        probabilities: False leaves out the columns of the classes.

    Raises:
        ValueError, ImportError, OSError: as `check_predictions`.
    """
    path = Path(path)
    check_predictions(path)
    header, rows = _header(found, probabilities), _parts(found, probabilities)
    if path.suffix.lower() == ".csv":
        _save_csv(path, header, (row for part in rows for row in zip(*map(_cells, part), strict=True)))
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {**dict.fromkeys(TEXTS, pa.string()), **dict.fromkeys(INTEGERS, pa.int32())}
    schema = pa.schema([(name, kinds.get(name, pa.float32())) for name in map(_utf8, header)])
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for part in rows:
            arrays = [pa.array(_exact(column), kind.type) for column, kind in zip(part, schema, strict=True)]
            writer.write_table(pa.table(arrays, schema=schema))


def save_classes(found: Evaluation, metrics: Sequence[ClassMetrics], path: str | os.PathLike[str]) -> None:
    """Write a row for each class that has pictures, in CSV: counts, the top-1 error and the metrics.

    Raises:
        OSError: it cannot be written.
    """
    header = ("class_id", "wnid", "class", "pictures", "wrong", "taken_for_it", "top1_error", *METRICS)
    rows = [
        [
            str(each.class_id),
            class_wnid(found.card, each.class_id) or "",
            cell(class_name(found.card, each.class_id)),
            *(str(number) for number in (each.count, each.errors[1].wrong, each.taken)),
            *_cells([each.errors[1].error, *(getattr(measured, name) for name in METRICS)]),
        ]
        for each, measured in zip(found.by_class, metrics, strict=True)
    ]
    _save_csv(Path(path), header, rows)


def _header(found: Evaluation, probabilities: bool) -> list[str]:
    word = "output" if found.card.activation == "none" else "probability"
    names = [f"{word} {number} {class_name(found.card, number)}" for number in range(found.card.classes)]
    return [
        "path", "truth_id", "truth", "answer_id", "answer", "rank", word, f"{word}_of_truth",
        "common_ancestor", "height", "steps", "learnt_from", "error", *(names if probabilities else ()),
    ]  # fmt: skip


def _parts(found: Evaluation, probabilities: bool) -> Iterator[list[Any]]:
    """Columns under `_header`, of some pictures after some more: lists of texts or None, and arrays of numbers."""
    card, tree, learnt = found.card, distances_of(found.card), found.learnt
    names = [class_name(card, number) for number in range(card.classes)]
    ancestors = [] if tree is None else [synsets.find(wnid).words[0] for wnid in tree.wnids]
    for numbers, values, truths in blocks(found.logits, found.labels):
        if card.activation != "none":
            values = np.exp(log_probabilities(values, card.activation))
        given, places, unknown = found.ranking.best[numbers, 0], np.arange(len(numbers)), [None] * len(numbers)
        yield [
            [str(found.paths[number]) for number in numbers],
            truths,
            [names[truth] for truth in truths],
            given,
            [names[answer] for answer in given],
            found.ranking.ranks[numbers] + 1,
            values[places, given],
            values[places, truths],
            unknown if tree is None else [ancestors[place] for place in tree.ancestors[truths, given]],
            *((unknown, unknown) if tree is None else (tree.heights[truths, given], tree.steps[truths, given])),
            unknown
            if learnt is None
            else ["train" if learnt.train[n] else "validation" if learnt.val[n] else "no" for n in numbers],
            unknown,
            *(values.T if probabilities else ()),
        ]
    if found.failed:
        paths, words = ([str(each) for each in column] for column in zip(*found.failed, strict=True))
        unknown = [None] * len(paths)
        width = len(_header(found, probabilities))
        yield [paths, *[unknown] * 11, words, *[unknown] * (width - 13)]


def _cells(column: Sequence[Any]) -> list[str]:
    """Texts for CSV."""
    values = column.tolist() if isinstance(column, np.ndarray) else column
    return ["" if value is None else cell(value) if isinstance(value, str) else f"{value:.7g}" for value in values]


def _save_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(map(cell, header))
        table.writerows(rows)


def _exact(column: Any) -> Any:
    """A column for Parquet."""
    return column if isinstance(column, np.ndarray) else [text if text is None else _utf8(text) for text in column]


def _utf8(text: str) -> str:
    """The text without what UTF-8 cannot hold: bytes of names that are none, as \\udcff."""
    return text.encode("utf-8", "backslashreplace").decode()

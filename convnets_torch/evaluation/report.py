"""The files of an evaluation: report page, tables and predictions."""

from __future__ import annotations

import csv
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from convnets_torch.text import cell
from convnets_torch.visualization import charts
from convnets_torch.visualization.charts import WITH_NAMES
from convnets_torch.visualization.overlays import save_image
from convnets_torch.visualization.pages import as_uri, data_uri, save_page
from convnets_torch.wordnet import synsets
from convnets_torch.wordnet.hierarchy import Severity, distances_of, measure_severity
from convnets_torch.wordnet.targets import class_name, class_wnid, tree_wnids

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def share(some: int, every: int) -> str:
    """A percentage, or a dash where there is nothing to take it of.

    >>> share(1, 3), share(0, 0)
    ('33.33%', '-')
    """
    return f"{some / every:.2%}" if every else "-"


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
    both, found = report.recalibration, report.calibration
    shown = [] if found is None else [found] if both is None else [both.before, both.after]
    save_page(
        path,
        "evaluation.html",
        "evaluation.js",
        title=report.title,
        report=report,
        names=[class_name(report.card, number) for number in range(report.card.classes)],
        confusion_chart=None if report.confusion is None else _chart(draw_confusions, report.confusion, report.card),
        reliability_chart=_chart(draw_reliability, *shown) if shown else None,
        with_names=WITH_NAMES,
        share=share,
        chance=chance,
        figure=figure,
        data_uri=data_uri,
        file_name=lambda path: Path(path).name,
    )


def _chart(draw: Callable[..., Axes | list[Axes]], *arguments: Any) -> dict[str, Any]:
    """A chart as the page's template takes it, or why there is none."""
    if reason := charts.why_not():
        return {"missing": reason, "wide": False}
    drawn = draw(*arguments)
    figure = (drawn[0] if isinstance(drawn, list) else drawn).figure
    wide = figure.bbox.width > LARGE
    return {"missing": "", "wide": wide, "source": as_uri(charts.png_of(figure), "PNG")}


FILES = (
    "evaluation.json", "report.html", "predictions.csv", "classes.csv", "confusion.svg", "confusion.png",
    "reliability.png", "worst.png", "most_confident.png",
)  # fmt: skip
CHARTS = FILES[4:7]
ALWAYS = FILES[:4]
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
    _save_figures(found, folder, weights)
    save_predictions(evaluation, folder / "predictions.csv", probabilities=False)
    save_classes(evaluation, found.classes, folder / "classes.csv")
    pictures: dict[str, Image.Image] = {}
    small: dict[str, Any] = {}
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
    drawn = _save_charts(found, folder)
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
    return tuple(name for name in FILES if name in (*ALWAYS, *drawn, *pictures))


def _save_charts(found: Judged, folder: Path) -> list[str]:
    """Write the charts of an evaluation, or warn of which are left out; the names of those that were written."""
    if reason := charts.why_not():
        warnings.warn(f"{', '.join(CHARTS)} are left out: {reason}", charts.ChartWarning, stacklevel=3)
        return []
    confusion, card = found.evaluation.confusion, found.evaluation.card
    charts.save_chart(draw_confusions(confusion, card, every_name=True), folder / "confusion.svg")
    charts.save_chart(draw_confusions(confusion, card), folder / "confusion.png")
    if found.calibration is None:
        return ["confusion.svg", "confusion.png"]
    both = found.recalibration
    shown = (found.calibration,) if both is None else (both.before, both.after)
    charts.save_chart(draw_reliability(*shown)[0], folder / "reliability.png")
    return list(CHARTS)


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

"""Write the files of an evaluation: HTML report, figures, charts, class table and predictions."""

from __future__ import annotations

import csv
import itertools
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from typing_extensions import Unpack

from convnets_torch.evaluation.calibration import (
    Calibration,
    Recalibration,
    calibrate,
    log_probabilities,
    logit_batches,
    recalibrate,
)
from convnets_torch.evaluation.charts import (
    chance,
    draw_confusions,
    draw_reliability,
    mistakes_sheet,
    small_pictures,
)
from convnets_torch.evaluation.evaluate import SOURCE, Evaluation, published
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
from convnets_torch.evaluation.several_labels import figure
from convnets_torch.files import check_page, check_writable, replacing, resolved
from convnets_torch.images.decoding import Reading, ReadingKeywords
from convnets_torch.images.preprocessing import CHANNEL_WORDS, Preprocessing
from convnets_torch.options import FormerAttribute, checked, former_names, shows
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

FILES = (
    "evaluation.json", "report.html", "predictions.csv", "classes.csv", "confusion.svg", "confusion.png",
    "reliability.png", "worst.png", "most_confident.png",
)  # fmt: skip
CHARTS = FILES[4:7]
ALWAYS = FILES[:4]
INTERVAL = "95 %, Wilson"
LEFT_OUT = "top-k errors, confusions, calibration, severity and mistakes are left out: they need one class per picture"
NO_TEMPERATURE = "no temperature was fitted: it is for mutually exclusive classes"
MOST_NOTES = 10  # on the page
LARGE = 700  # width in pixels above which a chart scrolls on a narrow screen instead of shrinking


@dataclass(frozen=True, eq=False)
class Metrics:
    """An evaluation and the measurements derived from its outputs.

    Attributes:
        evaluation: the outputs.
        calibration, mistakes: None if the network's outputs are not probabilities.
        recalibration: if a temperature was requested and has an optimum.
        severity: if all classes are in the synset tree.
        pairs: the most confused pairs of classes.
        classes: precision, recall, F1 and AUC of each class that has pictures.
        notes: on what was left out.
    """

    evaluation: Evaluation
    calibration: Calibration | None = None
    recalibration: Recalibration | None = None
    mistakes: Mistakes | None = None
    severity: Severity | None = None
    pairs: tuple[Confused, ...] = ()
    classes: tuple[ClassMetrics, ...] = ()
    notes: tuple[str, ...] = ()
    remarks = FormerAttribute("notes")

    @property
    def reliability(self) -> tuple[Calibration, ...]:
        """The calibrations to draw: before and after the temperature if there is one."""
        if self.recalibration is not None:
            return self.recalibration.before, self.recalibration.after
        return () if self.calibration is None else (self.calibration,)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, including the data of the evaluation."""
        figures = self.evaluation.to_dict() | {"remarks": [*self.evaluation.notes, *self.notes]}
        if self.evaluation.several_labels is not None:
            return figures
        for entry, measured in zip(figures["by_class"], self.classes, strict=True):
            entry.update((name, getattr(measured, name)) for name in METRICS)
        return figures | {
            "means_of_classes": class_means(self.classes),
            "calibration": self.calibration and self.calibration.to_dict(),
            "recalibration": self.recalibration and self.recalibration.to_dict(),
            "mistakes": self.mistakes and self.mistakes.to_dict(),
            "severity": self.severity and self.severity.to_dict(),
            "most_confused": [pair.to_dict() for pair in self.pairs],
        }


def compute_metrics(found: Evaluation, *, temperature: bool = False) -> Metrics:
    """Measure calibration, mistakes, severity, confusions and class metrics from a network's outputs.

    Multi-label data have none of these, since they need mutually exclusive classes.

    Args:
        found: the outputs.
        temperature: fit a temperature to one half of the pictures and evaluate it on the other. If there is no optimum,
            a note says so, and the other results are still returned.
    """
    if found.several_labels is not None:
        return Metrics(found, notes=(LEFT_OUT, NO_TEMPERATURE) if temperature else (LEFT_OUT,))
    card, logits, labels, notes = found.card, found.logits, found.labels, []
    calibration = recalibration = mistakes = None
    if card.activation == "none":
        notes.append("the outputs are not probabilities (activation none), so calibration and mistakes are left out")
    else:
        calibration = calibrate(logits, labels, card.activation)
        mistakes = find_mistakes(logits, labels, found.paths, card)
        if temperature:
            try:
                recalibration = recalibrate(logits, labels, card.activation)
            except ValueError as error:
                notes.append(f"no temperature was fitted: {error}")
    tree = tree_wnids(card)
    severity = None if tree is None else measure_severity(found.ranking.best, labels, tree)
    pairs = most_confused_pairs(found.confusion, card)
    classes = measure_classes(logits, labels, found.ranking.best[:, 0], card.activation)
    return Metrics(found, calibration, recalibration, mistakes, severity, pairs, classes, tuple(notes))


def check_report_folder(folder: Path, pictures: Path) -> None:
    """Create the report folder and check that its files can be written, before a long evaluation starts.

    Raises:
        OSError: it is not a folder, or cannot be written.
        ValueError: it is inside the folder of the pictures, where its pictures would be evaluated the next time.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder; name one for the report")
    check_outside(folder, pictures)
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        check_writable(folder / name)


def check_outside(folder: Path, pictures: Path) -> None:
    """Raise ValueError if `folder` is inside `pictures`, where the next run would look for pictures in it."""
    if resolved(folder).is_relative_to(resolved(pictures)):
        raise ValueError(f"{folder} is inside {pictures}, where it would be taken for a class; name a folder outside")


@shows(ReadingKeywords, Reading)
def save_report(
    found: Metrics,
    folder: str | os.PathLike[str],
    *,
    weights: str = "",
    repeat: Sequence[tuple[str, str]] = (),
    **reading: Unpack[ReadingKeywords],
) -> tuple[str, ...]:
    """Write `evaluation.json`, `report.html`, tables and pictures into a folder, each atomically.

    Args:
        found: as `compute_metrics` returns it.
        folder: an existing folder.
        weights: name of the weights, for the page.
        repeat: (name, value), for the page: command, options, versions.
        reading: as for `evaluate`, for the pictures of mistakes.

    Returns:
        The names of the written files; those without data are left out.

    Raises:
        OSError: a file cannot be written.
    """
    folder, evaluation = Path(folder), found.evaluation
    how = Reading(**checked(reading, ReadingKeywords)).for_rule(evaluation.card.preprocessing)
    with replacing(folder / "evaluation.json") as temporary:
        figures = {"weights": weights, **found.to_dict()}
        temporary.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if evaluation.several_labels is not None:
        write_page(found, folder / "report.html", weights=weights, repeat=repeat)
        return FILES[:2]
    save_predictions(evaluation, folder / "predictions.csv", probabilities=False)
    save_classes(evaluation, found.classes, folder / "classes.csv")
    written = [*ALWAYS, *_save_charts(found, folder)]
    thumbnails: dict[str, Image.Image] = {}
    if (mistakes := found.mistakes) is not None:
        thumbnails = small_pictures([each.path for each in (*mistakes.worst, *mistakes.confident)], how)
        others = f"{mistakes.count - len(mistakes.worst)} other mistakes"
        for name, of, some in (
            ("worst", f"{mistakes.count} mistakes", mistakes.worst),
            ("most_confident", others, mistakes.confident),
        ):
            title = f"The {name.replace('_', ' ')} of {of}"
            save_image(mistakes_sheet(some, [thumbnails[each.path] for each in some], title), folder / f"{name}.png")
            written.append(f"{name}.png")
    write_page(found, folder / "report.html", weights=weights, repeat=repeat, thumbnails=thumbnails)
    return tuple(written)


def _save_charts(found: Metrics, folder: Path) -> Sequence[str]:
    """Write the charts and return their names, or warn that they are left out."""
    if reason := charts.why_not():
        warnings.warn(f"{', '.join(CHARTS)} are left out: {reason}", charts.ChartWarning, stacklevel=3)
        return ()
    confusion, card = found.evaluation.confusion, found.evaluation.card
    charts.save_chart(draw_confusions(confusion, card, every_name=True), folder / "confusion.svg")
    charts.save_chart(draw_confusions(confusion, card), folder / "confusion.png")
    if not found.reliability:
        return CHARTS[:2]
    charts.save_chart(draw_reliability(*found.reliability)[0], folder / "reliability.png")
    return CHARTS


def write_page(
    found: Metrics,
    path: str | os.PathLike[str],
    *,
    weights: str = "",
    repeat: Sequence[tuple[str, str]] = (),
    thumbnails: Mapping[str, Image.Image] | None = None,
) -> None:
    """Write one self-contained HTML file, atomically.

    Its script only sorts and filters the class table, which is complete without it. Names are escaped.

    Args:
        found, weights, repeat: as for `save_report`.
        path: ends in .html.
        thumbnails: path -> thumbnail of each picture in `found.mistakes`.

    Raises:
        ValueError: the suffix is not .html.
        OSError: `path` cannot be written.
    """
    check_page(Path(path), "a report")
    evaluation, card, several = found.evaluation, found.evaluation.card, found.evaluation.several_labels
    confusion = None if several else evaluation.confusion
    save_page(
        path,
        "evaluation.html",
        "evaluation.js",
        title=f"{weights or card.network} on {evaluation.folder}",
        found=found,
        several=several,
        about=_facts(found, weights),
        running=running_facts(evaluation),
        repeat=repeat,
        bad={str(path): words for path, words in evaluation.failed},
        names=[class_name(card, number) for number in range(card.classes)],
        rates=() if several else evaluation.errors,
        interval=INTERVAL,
        original=published(card),
        source=SOURCE,
        classes=() if several else list(zip(evaluation.by_class, found.classes, _taken_for(found), strict=True)),
        wnids=[class_wnid(card, number) for number in range(card.classes)],
        means=class_means(found.classes),
        counts=confusion,
        confusion_chart=None if confusion is None else _chart(draw_confusions, confusion, card),
        reliability_chart=_chart(draw_reliability, *found.reliability) if found.reliability else None,
        with_names=WITH_NAMES,
        thumbnails=thumbnails or {},
        chance=chance,
        figure=figure,
        data_uri=data_uri,
        file_name=lambda path: Path(path).name,
    )


def _chart(draw: Callable[..., Axes | list[Axes]], *arguments: Any) -> dict[str, Any]:
    """A chart for the page's template, or the reason why there is none."""
    if reason := charts.why_not():
        return {"missing": reason, "wide": False}
    drawn = draw(*arguments)
    figure = (drawn[0] if isinstance(drawn, list) else drawn).figure
    wide = figure.bbox.width > LARGE
    return {"missing": "", "wide": wide, "source": as_uri(charts.png_of(figure), "PNG")}


def _taken_for(found: Metrics) -> list[str]:
    """The most frequent wrong prediction of each class that has pictures, with its count; empty if there is none."""
    counts, card = found.evaluation.confusion, found.evaluation.card
    np.fill_diagonal(counts, 0)
    words = []
    for each in found.classes:
        most = int(np.argmax(counts[each.class_id]))
        name = class_name(card, most).partition(",")[0] if found.severity else class_name(card, most)
        words.append(f"{name} ({counts[each.class_id, most]})" if counts[each.class_id, most] else "")
    return words


def _facts(metrics: Metrics, weights: str) -> list[tuple[str, str]]:
    found = metrics.evaluation
    card, several = found.card, found.several_labels
    made = "" if card.source is None else f"{card.source.file}, {card.source.framework}, sha256 {card.source.sha256}"
    facts = [
        ("Weights", weights),
        ("Converted from", made),
        ("Network", f"{card.network}, {card.classes} classes, {card.activation}"),
        ("Preprocessing", _preprocessing_words(card.preprocessing)),
        ("Crops", {"center": "the centre", "flip": "the centre and its mirror image", "ten": "ten"}[found.crops]),
        ("Folder", str(found.folder)),
        ("Pictures", str(len(found.labels))),
        ("Pictures without a label", "" if several is None else str(several.unlabelled)),
        ("Classes with pictures", "" if several is not None else str(len(found.by_class))),
        ("Could not be read", str(len(found.failed))),
        ("Trained on", "" if found.learnt is None else f"{found.learnt.train.sum()} of these pictures"),
        ("Mean top-1 error of the classes", "" if several is not None else f"{found.balanced_error:.2%}"),
    ]
    notes = [*found.notes[:MOST_NOTES], *metrics.notes]
    if len(found.notes) > MOST_NOTES:
        notes.append(f"and {len(found.notes) - MOST_NOTES} more, in evaluation.json")
    return [fact for fact in facts if fact[1]] + [("Remark", note) for note in notes]


def _preprocessing_words(rule: Preprocessing) -> str:
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (rule.mean, rule.std))
    return (
        f"{rule.name}: {rule.resize_rule} to {rule.resize} pixels ({rule.interpolation}), centre {rule.size} pixels,"
        f" {CHANNEL_WORDS[rule.channels]}, times {rule.scale:.6g}, less ({mean}), divided by ({std})"
    )


def running_facts(found: Evaluation) -> list[tuple[str, str]]:
    """Return (name, value) of throughput and memory, for display."""
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


TEXTS = ("path", "truth", "answer", "common_ancestor", "learnt_from", "error")
INTEGERS = ("truth_id", "answer_id", "rank", "height", "steps")


def check_predictions(path: Path) -> None:
    """Check that `save_predictions` can write to `path`, before a long evaluation starts.

    Raises:
        ValueError: the suffix is not .csv or .parquet.
        ImportError: `path` is a Parquet file and pyarrow is not installed.
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
    """Write a row for each picture, atomically; memory does not grow with the number of pictures.

    Columns: `path`; `truth_id` and `truth`; `answer_id` and `answer`, the most probable class; `rank` of the truth,
    where 1 is right; `probability` of the answer, and `probability_of_truth`; for classes in the synset tree
    `common_ancestor`, its `height`, and the `steps` from the truth up to it; `learnt_from`, "train", "validation" or
    "no", if the card records it; `error`, for an unreadable picture, whose other cells are empty. Then
    "probability 3 beagle" and the like, one for each class. If outputs are not probabilities, these columns are named
    `output` instead.

    In CSV, `text.cell` escapes text: formulas get an apostrophe. In Parquet, text is not escaped.

    Args:
        found: as `evaluate` returns it.
        path: ends in .csv or .parquet.
        probabilities: False leaves out the columns of the classes.

    Raises:
        ValueError, ImportError, OSError: as `check_predictions`.
    """
    path = Path(path)
    check_predictions(path)
    rest = _columns(found, probabilities)
    first = next(rest)
    parts = (part.values() for part in itertools.chain([first], rest))
    if path.suffix.lower() == ".csv":
        _save_csv(path, first, (row for part in parts for row in zip(*map(_cells, part), strict=True)))
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {**dict.fromkeys(TEXTS, pa.string()), **dict.fromkeys(INTEGERS, pa.int32())}
    schema = pa.schema([(name, kinds.get(name, pa.float32())) for name in map(_utf8, first)])
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for part in parts:
            arrays = [pa.array(_for_parquet(column), kind.type) for column, kind in zip(part, schema, strict=True)]
            writer.write_table(pa.table(arrays, schema=schema))


def save_classes(found: Evaluation, metrics: Sequence[ClassMetrics], path: str | os.PathLike[str]) -> None:
    """Write a CSV row for each class that has pictures: counts, top-1 error and metrics.

    Raises:
        OSError: the file cannot be written.
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


def _columns(found: Evaluation, probabilities: bool) -> Iterator[dict[str, Any]]:
    """Yield name -> column for chunks of pictures: lists of texts or None, and arrays of numbers."""
    card, tree, learnt = found.card, distances_of(found.card), found.learnt
    word = "output" if card.activation == "none" else "probability"
    names = [class_name(card, number) for number in range(card.classes)]
    ancestors = [] if tree is None else [synsets.find(wnid).words[0] for wnid in tree.wnids]
    for numbers, values, truths in logit_batches(found.logits, found.labels):
        if card.activation != "none":
            values = np.exp(log_probabilities(values, card.activation))
        given, places, unknown = found.ranking.best[numbers, 0], np.arange(len(numbers)), [None] * len(numbers)
        columns = {
            "path": [str(found.paths[number]) for number in numbers],
            "truth_id": truths,
            "truth": [names[truth] for truth in truths],
            "answer_id": given,
            "answer": [names[answer] for answer in given],
            "rank": found.ranking.ranks[numbers] + 1,
            word: values[places, given],
            f"{word}_of_truth": values[places, truths],
            **dict.fromkeys(("common_ancestor", "height", "steps", "learnt_from", "error"), unknown),
        }
        if tree is not None:
            columns["common_ancestor"] = [ancestors[place] for place in tree.ancestors[truths, given]]
            columns["height"], columns["steps"] = tree.heights[truths, given], tree.steps[truths, given]
        if learnt is not None:
            columns["learnt_from"] = [
                "train" if learnt.train[n] else "validation" if learnt.val[n] else "no" for n in numbers
            ]
        if probabilities:
            columns |= {f"{word} {number} {name}": values[:, number] for number, name in enumerate(names)}
        yield columns
    if found.failed:
        paths, words = ([str(each) for each in column] for column in zip(*found.failed, strict=True))
        yield {**dict.fromkeys(columns, [None] * len(paths)), "path": paths, "error": words}


def _cells(column: Sequence[Any]) -> list[str]:
    """Format a column for CSV."""
    values = column.tolist() if isinstance(column, np.ndarray) else column
    return ["" if value is None else cell(value) if isinstance(value, str) else f"{value:.7g}" for value in values]


def _save_csv(path: Path, header: Iterable[str], rows: Iterable[Sequence[str]]) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(map(cell, header))
        table.writerows(rows)


def _for_parquet(column: Any) -> Any:
    """Convert a column for Parquet."""
    return column if isinstance(column, np.ndarray) else [text if text is None else _utf8(text) for text in column]


def _utf8(text: str) -> str:
    """Escape what UTF-8 cannot encode: undecodable bytes of file names become \\udcff and the like."""
    return text.encode("utf-8", "backslashreplace").decode()


if not TYPE_CHECKING:
    __getattr__ = former_names(__name__, Judged="Metrics", judge="compute_metrics", save_judged="save_report")

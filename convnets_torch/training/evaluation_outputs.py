"""An evaluation with all that can be said of it: calibration, mistakes, their weight; and the files that show it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convnets_torch.files import check_writable, replacing, resolved
from convnets_torch.levels import Background, Depth
from convnets_torch.preprocessing import Preprocessing
from convnets_torch.render import save_image
from convnets_torch.targets import class_name, class_wnid, tree_wnids
from convnets_torch.training.calibration import Calibration, Recalibration, calibrate, recalibrate
from convnets_torch.training.class_metrics import METRICS, ClassMetrics, class_means, measure_classes
from convnets_torch.training.evaluation import Evaluation
from convnets_torch.training.evaluation_pictures import (
    confusions_svg,
    draw_confusions,
    draw_reliability,
    mistakes_sheet,
    small_pictures,
)
from convnets_torch.training.evaluation_report import ClassRow, ErrorRow, Report, write_report
from convnets_torch.training.evaluation_tables import save_classes, save_predictions
from convnets_torch.training.mistakes import Confused, Mistakes, find_mistakes, most_confused_pairs
from convnets_torch.training.published import published
from convnets_torch.training.severity import Severity, measure_severity

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

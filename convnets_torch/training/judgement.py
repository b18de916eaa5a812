"""What an evaluation's outputs say beyond errors: calibration, mistakes and their weight, and the page of it all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from convnets_torch.preprocessing import Preprocessing
from convnets_torch.targets import class_name, class_wnid
from convnets_torch.training.calibration import Calibration, Recalibration, calibrate, recalibrate
from convnets_torch.training.evaluation import Evaluation
from convnets_torch.training.evaluation_pictures import small_pictures
from convnets_torch.training.evaluation_report import ClassRow, ErrorRow, Report
from convnets_torch.training.mistakes import MOST, Confused, Mistakes, find_mistakes, most_confused_pairs
from convnets_torch.training.published import published
from convnets_torch.training.severity import Severity, measure_severity

INTERVAL = "95 %, by Wilson's method"
BEST = 5  # of the table of classes, besides the first


@dataclass(frozen=True, eq=False)
class Judged:
    """What an evaluation's outputs say.

    Attributes:
        evaluation: whose.
        pairs: the classes that are most often confused.
        calibration: None where outputs are no probabilities.
        recalibration: None where no temperature was asked for, or none is the best.
        mistakes: to look at; None where outputs are no probabilities.
        severity: None for a user's own classes.
        remarks: sentences on what is missing.
    """

    evaluation: Evaluation
    pairs: tuple[Confused, ...]
    calibration: Calibration | None
    recalibration: Recalibration | None
    mistakes: Mistakes | None
    severity: Severity | None
    remarks: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the evaluation itself; None where there is nothing."""
        return {
            "confused_pairs": [pair.to_dict() for pair in self.pairs],
            "calibration": self.calibration and self.calibration.to_dict(),
            "temperature": self.recalibration and self.recalibration.to_dict(),
            "mistakes": self.mistakes and self.mistakes.to_dict(),
            "severity": self.severity and self.severity.to_dict(),
        }


def judge(evaluation: Evaluation, *, temperature: bool = False, most: int = MOST) -> Judged:
    """Calibration, mistakes and their weight, as far as the network's card allows.

    Args:
        evaluation: whose outputs.
        temperature: fit one to a half of the pictures and judge it by the other.
        most: mistakes to look at, of each kind.
    """
    card, labels, logits = evaluation.card, evaluation.labels, evaluation.logits
    pairs = most_confused_pairs(evaluation.confusion, card)
    severity = measure_severity(evaluation.ranking.best, labels) if card.imagenet else None
    if card.activation == "none":
        remark = "outputs are no probabilities (activation none): there is no calibration, and no mistakes are ranked"
        return Judged(evaluation, pairs, None, None, None, severity, (remark,))
    recalibration, remarks = None, []
    if temperature:
        try:
            recalibration = recalibrate(logits, labels, card.activation)
        except ValueError as error:  # which is a fact about the pictures
            remarks.append(str(error))
    return Judged(
        evaluation,
        pairs,
        calibrate(logits, labels, card.activation),
        recalibration,
        find_mistakes(logits, labels, evaluation.paths, card, most=most),
        severity,
        tuple(remarks),
    )


def report_of(
    judged: Judged, title: str, repeat: Sequence[tuple[str, str]], *, max_pixels: int | None = None
) -> Report:
    """The page of an evaluation, for `write_report`. Reads the pictures of the mistakes.

    Args:
        judged: as `judge` gives it.
        title: above all, such as the names of weights and folder.
        repeat: (what, value): the command, options and versions.
        max_pixels: as for `evaluate`.
    """
    evaluation = judged.evaluation
    card, mistakes = evaluation.card, judged.mistakes
    original = published(card)
    theirs = {} if original is None else original.errors
    paths = [] if mistakes is None else [each.path for each in (*mistakes.worst, *mistakes.confident)]
    return Report(
        title=title,
        card=card,
        facts=_facts(judged),
        errors=[
            ErrorRow(f"top-{each.k}", each.wrong, each.count, *each.interval, theirs.get(each.k))
            for each in evaluation.errors
        ],
        interval=INTERVAL,
        classes=_classes(evaluation),
        best=BEST if card.classes > BEST else None,
        confusion=evaluation.confusion,
        pairs=judged.pairs,
        calibration=judged.calibration,
        recalibration=judged.recalibration,
        mistakes=mistakes,
        pictures=small_pictures(paths, card.preprocessing.exif, max_pixels),
        severity=judged.severity,
        running=_running(evaluation),
        repeat=repeat,
        bad={str(path): words for path, words in evaluation.failed},
        original="" if original is None else original.source,
    )


def _facts(judged: Judged) -> list[tuple[str, str]]:
    evaluation = judged.evaluation
    card = evaluation.card
    facts = [("Network", f"{card.network}, {card.classes} classes, {card.activation}")]
    if card.source is not None:
        made = f"{card.source.file}, {card.source.framework}, sha256 {card.source.sha256}"
        facts.append(("Weights from", made))
    facts += [
        ("Folder", str(evaluation.folder)),
        ("Pictures", f"{len(evaluation.labels)} of {len(evaluation.by_class)} classes"),
        ("Preprocessing", in_words(card.preprocessing)),
        ("Crops", evaluation.crops),
        ("Mean error over classes", f"{evaluation.balanced_error:.2%}"),
    ]
    return facts + [("Remark", remark) for remark in (*evaluation.remarks, *judged.remarks)]


def in_words(rule: Preprocessing) -> str:
    """How pictures became input, in one line.

    >>> from convnets_torch.preprocessing import preset
    >>> in_words(preset("vgg16"))
    'original: stretch to 256, crop 224, bilinear, BGR, times 1, minus (103.939, 116.779, 123.68), over (1, 1, 1)'
    """
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (rule.mean, rule.std))
    return (
        f"{rule.name}: {rule.resize_rule.replace('-', ' ')} to {rule.resize}, crop {rule.size}, {rule.interpolation},"
        f" {rule.channels.upper()}, times {rule.scale:g}, minus ({mean}), over ({std})"
    )


def _classes(evaluation: Evaluation) -> list[ClassRow]:
    card, counts = evaluation.card, evaluation.confusion
    known = {each.class_id: each for each in evaluation.by_class}
    rows = []
    for class_id in range(card.classes):
        words, wnid = class_name(card, class_id), class_wnid(card, class_id)
        if class_id not in known:
            rows.append(ClassRow(words, wnid, 0, 0))
            continue
        found = known[class_id]
        others = counts[class_id].copy()
        others[class_id] = 0
        most = int(others.argmax())
        taken = f"{class_name(card, most)} ({others[most]})" if others[most] else ""
        of_best = found.errors[BEST].wrong if BEST in found.errors else None
        rows.append(ClassRow(words, wnid, found.count, found.errors[1].wrong, of_best, taken))
    return rows


def _running(evaluation: Evaluation) -> list[tuple[str, str]]:
    cost = evaluation.running
    rows = [
        ("Pictures of this run", f"{cost.computed} of {len(evaluation.labels) + len(evaluation.failed)}"),
        ("Time", f"{cost.seconds:.1f} s, of which the network {cost.network_seconds:.1f} s"),
    ]
    if cost.throughput is not None:
        rows.append(("Throughput", f"{cost.throughput:.1f} pictures a second"))
    memory = (("Most memory", cost.memory), ("Most memory of the device", cost.device_memory))
    return rows + [(what, f"{size / 2**20:,.0f} MiB") for what, size in memory if size is not None]

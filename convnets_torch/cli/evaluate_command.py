"""`evaluate`: measure a network on labelled pictures."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from convnets_torch.cli import options
from convnets_torch.cli.options import RunOptions, Shown, Weights, argument, command, option
from convnets_torch.cli.output import complain, print_columns, rows_done, say, show, warnings_as_lines

if TYPE_CHECKING:
    from convnets_torch.card import Card
    from convnets_torch.evaluation.report import Metrics
    from convnets_torch.evaluation.several_labels import SeveralLabels


@command(old={"--report": "--output", "--resume": "--resume-folder", "--batch": "--batch-size"})
def evaluate(
    weights: Weights,
    folder: Path = argument(
        ...,
        "Folder with one subfolder per class, named by wnid or class name, perhaps below test or val; or a table; or,"
        " with --truth, a folder of pictures.",
        "FOLDER",
    ),
    id_table: Path | None = option(None, "File of lines 'id wnid', for labels that are ILSVRC's own ids, 1 to 1000."),
    labels: Literal["auto", "class-ids"] = option(
        "auto", "Meaning of numeric labels: class-ids count from 0; auto refuses ambiguous numbers."
    ),
    crops: Literal["center", "flip", "ten"] = option(
        "center", "Views to average over: the centre crop, that and its mirror image, or ten crops."
    ),
    output: Path | None = option(None, "Folder for evaluation.json, report.html, tables and charts."),
    predictions: Path | None = option(
        None, "File for each picture's prediction and all its probabilities, .csv or .parquet."
    ),
    temperature: bool = option(False, "Fit a temperature on one half of the pictures and measure it on the other."),
    save_temperature: Path | None = option(
        None, "File for the weights with that temperature in the last layer, .safetensors."
    ),
    resume_folder: options.ResumeFolder = None,
    reduced: options.Reduced = False,
    *,
    given: options.Labels,
    run: RunOptions,
    shown: Shown,
) -> None:
    """Measure a network's errors and calibration on labelled pictures."""
    if save_temperature is not None and crops != "center":
        raise typer.BadParameter(f"--save-temperature needs --crops center; --crops {crops} averages several outputs")
    labelling = given.with_exclude(run.exclude)
    from convnets_torch.card import read_card
    from convnets_torch.evaluation.evaluate import evaluate as count
    from convnets_torch.evaluation.labels import find_truth
    from convnets_torch.evaluation.report import (
        check_outside,
        check_predictions,
        check_report_folder,
        compute_metrics,
        save_predictions,
        save_report,
    )
    from convnets_torch.files import check_kept, find

    options.check_weights(save_temperature, weights)
    with warnings_as_lines():
        known = find_truth(read_card(find(weights)), folder, id_table=id_table, labels=labels, **labelling)
    if known.labels.ndim == 2:
        if temperature or save_temperature is not None:
            raise ValueError(
                "a temperature needs classes that exclude each other, but the pictures may have several labels; leave"
                " out --temperature and --save-temperature"
            )
        if predictions is not None:
            raise ValueError(
                "--predictions writes one answer per picture, but these may have several labels; leave it out"
            )
    if predictions is not None:
        check_predictions(predictions)
        check_kept(predictions, [*known.paths, *(each for each in (given.truth, id_table) if each is not None)])
    if output is not None:
        check_report_folder(output, folder)
    if resume_folder is not None:
        check_outside(resume_folder, folder)
    network = run.runnable(weights)
    with warnings_as_lines(), options.resumable(resume_folder, "reported"), rows_done("pictures") as progress:
        found = count(
            network, known, crops=crops, exact=not reduced, store=resume_folder, progress=progress, **run.running
        )
    metrics = compute_metrics(found, temperature=temperature or save_temperature is not None)
    for path, words in found.failed:
        complain(words if str(path) in words else f"{path}: {words}")
    for note in (*found.notes, *metrics.notes):
        say(note)
    if output is not None:
        with warnings_as_lines():
            names = save_report(metrics, output, weights=str(weights), repeat=_repeat(run), **run.reading)
        say(f"{output}: {', '.join(names)}")
    if predictions is not None:
        save_predictions(found, predictions)
        say(f"{predictions}: {len(found.labels) + len(found.failed)} pictures")
    if shown.as_json:
        print(json.dumps({"weights": str(weights), **metrics.to_dict()}))
    else:
        print_metrics(metrics)
    fitted = metrics.recalibration is not None
    if save_temperature is not None and metrics.recalibration is not None:
        _save_temperature(weights, metrics.recalibration.temperature.value, save_temperature)
    if found.failed or ((temperature or save_temperature is not None) and not fitted):
        raise typer.Exit(1)


def _print_labels(found: SeveralLabels, card: Card) -> None:
    """Print a row per label and two for the means."""
    from convnets_torch.evaluation.several_labels import figure
    from convnets_torch.wordnet.targets import class_name

    rows = [
        (class_name(card, class_id), str(each.pictures), *map(figure, each.figures.values()))
        for class_id, each in enumerate(found.labels)
    ]
    means = [
        ("mean of the labels (macro)", "", *map(figure, found.macro.values())),
        ("all labels together (micro)", "", *map(figure, found.micro.figures.values())),
    ]
    print_columns([("label", "pictures", "average precision", "precision", "recall", "F1"), *rows, *means])


def _repeat(run: RunOptions) -> list[tuple[str, str]]:
    import numpy
    import torch
    from PIL import __version__ as pillow

    from convnets_torch._version import __version__
    from convnets_torch.inference.prepare import checked_device

    return [
        ("Command", shlex.join(["convnets-torch", *sys.argv[1:]])),
        ("Device", "cpu" if run.engine else str(checked_device(run.device))),
        ("Precision", run.precision or "as in the file"),
        *([("Engine", run.engine)] if run.engine else []),
        ("convnets-torch", __version__),
        ("PyTorch", torch.__version__),
        ("NumPy", numpy.__version__),
        ("Pillow", pillow),
    ]


def _save_temperature(weights: str, value: float, output: Path) -> None:
    from convnets_torch.evaluation.calibration import with_temperature
    from convnets_torch.weights import load, save

    save(with_temperature(load(weights), value), output)
    say(f"{output}: the logits of {weights} divided by {value:.4g}")


def print_metrics(metrics: Metrics) -> None:
    """Print the error rates beside the original's, then one other figure per line."""
    from convnets_torch.evaluation.evaluate import SOURCE, published
    from convnets_torch.evaluation.metrics import class_means
    from convnets_torch.evaluation.report import INTERVAL, running_facts

    found = metrics.evaluation
    running = [(words[0].lower() + words[1:], value) for words, value in running_facts(found)]
    if found.several_labels is not None:
        _print_labels(found.several_labels, found.card)
        print()
        print_columns([("could not be read", str(len(found.failed))), *running])
        return
    original = published(found.card)
    rows = [("error", "share", INTERVAL, "wrong", *(["original"] if original else []))]
    for rate in found.errors:
        low, high = rate.interval
        theirs = [f"{original[rate.k]:.2%}"] if original else []
        rows.append(
            (f"top-{rate.k}", f"{rate.error:.2%}", f"{low:.2%} to {high:.2%}", f"{rate.wrong} of {rate.count}", *theirs)
        )
    print_columns(rows)
    print()
    facts = [
        ("mean top-1 error of the classes", f"{found.balanced_error:.2%} of {len(found.by_class)} classes"),
        ("could not be read", str(len(found.failed))),
    ]
    if found.learnt is not None:
        facts.append(("pictures seen in training", f"{found.learnt.train.sum()} of {len(found.labels)}"))
    means = class_means(metrics.classes)
    for mean, words in (("macro", "precision"), ("macro", "F1"), ("weighted", "F1"), ("macro", "AUC")):
        value = means[mean][words.lower()]
        facts += [] if value is None else [(f"{mean} {words}", f"{value:.4f}")]
    if metrics.calibration is not None:
        facts += [
            ("negative log-likelihood", f"{metrics.calibration.nll:.4f}"),
            ("expected calibration error", f"{metrics.calibration.ece:.2%}"),
        ]
    if metrics.recalibration is not None:
        both = metrics.recalibration
        facts += [
            ("temperature fitted on one half", f"{both.temperature.value:.4g}"),
            ("calibration error on the other half", f"{both.before.ece:.2%}, with it {both.after.ece:.2%}"),
        ]
    if metrics.severity is not None and metrics.severity.height is not None:
        facts.append(("mean height of mistakes in the tree", f"{metrics.severity.height:.2f}"))
    print_columns([*facts, *running])
    if original:
        print()
        show(f"original: {SOURCE}")

"""`classify` and `demo`."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from convnets_torch.cli import options
from convnets_torch.cli import output as results
from convnets_torch.cli.options import Images, RunOptions, Shown, Weights, command, option
from convnets_torch.cli.output import aside, complain, say, show, warnings_as_lines, with_time_left

ENDINGS: dict[str, Any] = {
    ".txt": results.Text,
    ".csv": results.Csv,
    ".json": results.JsonLines,
    ".jsonl": results.JsonLines,
}


@command(old={"--only": "--target"})
def classify(
    weights: Weights,
    images: Images,
    run: RunOptions,
    shown: Shown,
    top: options.Top = 5,
    target: options.Targets = None,
    backoff: float | None = option(
        None, "First print the deepest WordNet synset with at least this probability.", min=0, max=1
    ),
    as_csv: bool = option(False, "Print CSV, one row per class or error.", "--csv"),
    as_table: bool = option(False, "Print a table once all pictures are done.", "--table"),
    output: Path | None = option(
        None, "File to write instead of printing: .csv, .json or .jsonl (one object per line), or .txt."
    ),
) -> None:
    """Print the most probable classes of pictures: probability, wnid, words.

    --target leaves out all other classes; probabilities do not change.
    """
    asked = [name for name, wanted in (("json", shown.as_json), ("csv", as_csv), ("table", as_table)) if wanted]
    if len(asked) > 1:
        raise typer.BadParameter("--json, --csv and --table exclude each other")
    forms: dict[str, Any] = {"json": results.JsonLines, "csv": results.Csv, "table": results.Table}
    form = forms.get("".join(asked), results.Text)
    options.check_output(output, ENDINGS, "answers are written as")
    if output is not None:
        ending = output.suffix.lower()
        if asked and form is not ENDINGS[ending] and (form, ending) != (results.Table, ".txt"):
            raise typer.BadParameter(f"--{asked[0]} does not go with {output}, whose ending sets the format")
        form = form if asked else ENDINGS[ending]
    from convnets_torch.files import replacing
    from convnets_torch.inference import classification
    from convnets_torch.wordnet.targets import find_target

    network = run.runnable(weights)
    only = options.one_target(target)
    if only is not None:
        find_target(classification.card_of(network), only)  # raise for an unknown target before reading any picture
    with warnings_as_lines(), contextlib.ExitStack() as stack:
        found = run.find(images)
        sources = map(options.opened, found)
        entries = classification.classify_each(network, sources, top, only=only, backoff=backoff, **run.running)
        file = sys.stdout
        if output is not None:
            part = stack.enter_context(replacing(output))
            file = stack.enter_context(part.open("w", encoding="utf-8", newline=""))
        writer: results.Writer = form(file, len(found) > 1)
        failed = 0
        for name, entry in zip(found, with_time_left(entries, len(found)), strict=True):
            for note in entry.notes:
                say(note)
            if entry.error is not None:
                failed += 1
                complain(entry.error)
            writer.add(name, entry)
        writer.finish()
    if output is not None:
        say(f"{output}: {len(found)} pictures, {failed} of which could not be classified")
    if failed:
        raise typer.Exit(1)


@command()
def demo(shown: Shown, output: Path = option(Path("demo"), "Folder to write the pictures into.")) -> None:
    """Classify and map four photographs with EfficientNet-Lite0, without weights of your own."""
    from convnets_torch.cli import demo as first_run

    result = first_run.demo(output)
    if shown.as_json:
        answers = {name: [asdict(entry) for entry in found] for name, found in result.predictions.items()}
        pictures = [str(picture) for picture in result.pictures]
        print(json.dumps({"predictions": answers, "pictures": pictures, "weights": str(result.weights)}))
        return
    for photograph, predictions in result.predictions.items():
        show(photograph)
        print(*results.prediction_lines(predictions), sep="\n")
    for picture in result.pictures:
        show(str(picture))
    aside(f"the network: {result.weights} (convnets-torch classify efficientnet_lite0 IMAGE)")

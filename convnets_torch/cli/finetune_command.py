"""`finetune` and `augment`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from convnets_torch.cli import options
from convnets_torch.cli.options import Images, RunOptions, Shown, Weights, argument, command, option
from convnets_torch.cli.output import complain, one_line, print_columns, rows_done, say, show, warnings_as_lines
from convnets_torch.inference.allocation import keep_memory
from convnets_torch.training.settings import BOTH, SECOND, Settings

if TYPE_CHECKING:
    from convnets_torch.images.decoding import Reading
    from convnets_torch.images.preprocessing import Preprocessing
    from convnets_torch.training.augmentation import Photo
    from convnets_torch.training.features import Features, LeakedPicture
    from convnets_torch.training.finetuning import Finetuned
    from convnets_torch.training.running import EpochRow
    from convnets_torch.training.stages import LayerRow

LEAKS_SHOWN = 20
DATA = "Data"  # help panel


@dataclass(frozen=True)
class TrainOptions(RunOptions):
    """Run options whose meaning or default differs in training."""

    precision: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "bfloat16 is mixed precision; auto uses it where it is fast.", rich_help_panel=SECOND
    )
    batch_size: int = option(32, "Pictures per step, over all processes.", min=1, rich_help_panel=BOTH)
    workers: int | None = option(
        None,
        "Processes that load pictures.",
        min=0,
        show_default="0 on the CPU, else one per core",
        rich_help_panel=options.NETWORK,
    )


@command(old={"--batch": "--batch-size", "--rate": "--lr", "--head-rate": "--head-lr"})
def finetune(
    weights: Weights,
    data: Path = argument(
        ...,
        "Folder with one subfolder of pictures per class, folders train and val of such, or a table with path, label"
        " and optionally split.",
        "DATA",
    ),
    *,
    output: Path = option(
        ..., "File for the weights, .safetensors; curves go beside it as .history.csv and .history.png."
    ),
    chosen: Settings,
    activation: Literal["softmax", "sigmoid"] | None = option(
        None,
        "Output activation: softmax for one class per picture, sigmoid for several labels.",
        show_default="softmax; sigmoid where pictures have several labels",
        rich_help_panel=BOTH,
    ),
    strength: options.Strength = "light",
    changes: options.Changes,
    val_share: float = option(
        0.2, "Share of each class for validation, if the data have no split.", rich_help_panel=DATA
    ),
    given: options.Labels,
    allow_leaks: bool = option(
        False, "Allow validation pictures with near-duplicates in the training set.", rich_help_panel=DATA
    ),
    leak_threshold: float | None = option(
        None,
        "Minimum cosine similarity of the features of near-duplicates.",
        show_default="0.98",
        rich_help_panel=DATA,
    ),
    resume: bool = option(False, "Resume from the checkpoint, if there is one."),
    checkpoint: str | None = option(
        None,
        "Folder of the checkpoint, or an address such as s3://bucket/run; several machines must share it.",
        metavar="FOLDER",
        show_default="that of the output",
    ),
    tensorboard: Path | None = option(None, "Write TensorBoard events to this folder.", metavar="FOLDER"),
    run: TrainOptions,
    shown: Shown,
) -> None:
    """Fine-tune a network for your own classes.

    To train with several processes, on one machine or many, use torchrun: torchrun --no-python --nproc-per-node 2
    convnets-torch finetune ...
    """
    options.check_weights(output)
    run.without_engine()
    labelling, truth, mixing = given.with_exclude(run.exclude), given.truth, changes.mixing
    from convnets_torch.files import find
    from convnets_torch.inference.prepare import checked_device
    from convnets_torch.training.datasets import find_dataset
    from convnets_torch.training.distributed import joined, local_device
    from convnets_torch.training.finetuning import LEAK, LeakError, checkpoint_place, outputs_of
    from convnets_torch.training.finetuning import finetune as train
    from convnets_torch.training.running import Callbacks, TrainingStopped
    from convnets_torch.weights import load

    settings = replace(
        chosen, activation=activation or "softmax", batch=run.batch_size, precision=run.precision,
        augmentation=changes.of(strength), mixing=mixing[0] if mixing else "none",
        mixing_alpha=mixing[1] if mixing else 0.2,
    )  # fmt: skip
    place = checkpoint_place(output, checkpoint)
    for path in (output, *([place] if isinstance(place, Path) else []), *outputs_of(output)):
        for read, words in ((find(weights), "weights"), (truth or data, "table")):
            if path.exists() and read.exists() and path.samefile(read):
                raise ValueError(f"{path} would overwrite the input {words}; name another output")
    is_main = os.environ.get("RANK", "0") == "0"  # only the main process prints
    keep_memory()
    device = checked_device((None if run.device == "cpu" else local_device()) or run.device)
    with contextlib.ExitStack() as stack:
        stack.enter_context(joined(device))  # before what may fail on one machine alone, which the others then notice
        stack.enter_context(warnings_as_lines())
        dataset = find_dataset(data, val_share=val_share, seed=settings.seed, **labelling)
        if dataset.sets and activation is None:
            settings = replace(settings, activation="sigmoid")
        network = load(weights, device=device)
        signals = stack.enter_context(_interruption())
        bar = stack.enter_context(rows_done("pictures, then steps of an epoch")) if is_main else None
        log = None
        if tensorboard is not None and is_main:
            log = _log(stack, tensorboard, place, resume)

        def say_epoch(row: EpochRow, left: float) -> None:
            if log is not None:
                log(row)
            _say_epoch(row, left)

        callbacks = Callbacks(
            pictures=bar,
            found=_found if is_main else None,
            layers=None if shown.as_json or not is_main else _print_layers,
            epoch=say_epoch if is_main else None,
            steps=bar,
            stop=lambda: bool(signals),
        )
        if is_main:
            for note in dataset.notes:
                say(note)
        try:
            result = train(
                network,
                dataset,
                output,
                settings,
                started_from=Path(weights).name,
                resume=resume,
                checkpoint=checkpoint,
                allow_leaks=allow_leaks,
                leak_threshold=LEAK if leak_threshold is None else leak_threshold,
                workers=run.workers,
                callbacks=callbacks,
                **run.reading,
            )
        except LeakError:
            if not is_main:
                raise typer.Exit(1) from None
            raise
        except TrainingStopped as stopped:
            if is_main:
                complain(stopped)
            raise typer.Exit(128 + signals[0]) from None
    if is_main:
        _report(result, output, shown.as_json)
    if result.failed:
        raise typer.Exit(1)


def _found(features: Features, leaks: list[LeakedPicture]) -> None:
    for error in features.failed.values():
        complain(error)
    for note in features.notes:
        say(note)
    train, val = len(features.train.paths), len(features.val.paths)
    say(
        f"{train} pictures to train on, {val} to validate on, {len(features.failed)} could not be used;"
        f" {features.computed} vectors computed, the others from the cache"
    )
    for leak in leaks[:LEAKS_SHOWN]:
        say(f"leak: {leak.path} is a near-duplicate of {leak.of} (similarity {leak.similarity:.4f})")
    if len(leaks) > LEAKS_SHOWN:
        say(f"leak: {len(leaks) - LEAKS_SHOWN} more")


def _print_layers(rows: list[LayerRow]) -> None:

    def state(row: LayerRow) -> str:
        return "frozen" if not row.trains else "trains" if row.trains == row.parameters else f"{row.trains:,} train"

    total, trains = sum(row.parameters for row in rows), sum(row.trains for row in rows)
    lines = [(row.name, f"{row.parameters:,}", state(row)) for row in rows]
    print_columns([("layer", "parameters", ""), *lines, ("all", f"{total:,}", f"{trains:,} train")])
    sys.stdout.flush()


def _say_epoch(row: EpochRow, left: float) -> None:
    stage = "last layer" if row.stage == 1 else "unfrozen layers"
    say(
        f"epoch {row.epoch} ({stage}): loss {row.train_loss:.4f}, validation {row.val_loss:.4f}, {row.words}"
        f" {row.score:.4f}; {row.seconds:.1f} s, at most {_time(left)} left of this stage"
    )


def _time(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def _log(stack: contextlib.ExitStack, folder: Path, checkpoint: Path | str, resume: bool) -> Callable[[EpochRow], None]:
    """Return a function that writes TensorBoard events, from the first epoch after a checkpoint."""
    from convnets_torch.training.running import has_checkpoint, read_checkpoint, tensorboard_log

    first = 1
    if resume and has_checkpoint(checkpoint):
        first += len(read_checkpoint(checkpoint)[2].history)
    return stack.enter_context(tensorboard_log(folder, first))


@contextlib.contextmanager
def _interruption() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM in a list, so that training stops after the step; a second one interrupts at once."""
    signals: list[int] = []

    def note(number: int, frame: Any) -> None:
        if signals:
            raise KeyboardInterrupt
        signals.append(number)
        say("stopping after this step; a second signal stops at once")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(result: Finetuned, output: Path, as_json: bool) -> None:
    from convnets_torch.training.finetuning import outputs_of

    best = result.best
    if as_json:
        figures = {
            "output": str(output),
            "best": best.to_dict(),
            "history": [row.to_dict() for row in result.history],
            "leaks": [
                {"path": str(leak.path), "of": str(leak.of), "similarity": leak.similarity} for leak in result.leaks
            ],
            "failed": {str(path): one_line(error) for path, error in result.failed.items()},
        }
        print(json.dumps(figures))
    else:
        print(
            f"{best.score:.4f}  {best.words} on the validation pictures, loss {best.val_loss:.4f}, of epoch"
            f" {best.epoch}"
        )
    say(f"{output}, {', '.join(str(path) for path in outputs_of(output) if path.exists())}: written")


ONE, SEVERAL = 15, 7  # default views of a single picture, and of each of several


@command()
def augment(
    images: Images,
    *,
    output: Path = option(..., "Sheet to write: .png, .jpg, .webp."),
    strength: options.Strength = "medium",
    changes: options.Changes,
    weights: str | None = option(
        None, "Weights whose card sets resizing and cropping.", show_default="224 pixels of 256, bicubic"
    ),
    views: int | None = option(
        None, "Views per picture.", min=1, show_default=f"{ONE}, or {SEVERAL} for several pictures"
    ),
    seed: int = option(0, options.SEED, min=0, max=2**31 - 1),
    read: options.ReadOptions,
    shown: Shown,
) -> None:
    """Draw a sheet of randomly augmented views, as a network sees them in training."""
    mixing = changes.mixing
    from convnets_torch.files import check_kept
    from convnets_torch.visualization import overlays

    options.check_output(output, overlays.FORMATS, "sheets are")
    drawn = changes.of(strength)
    rule = _rule(weights)
    with warnings_as_lines():
        paths = read.find(images)
    check_kept(output, paths)
    if mixing is not None and len(paths) < 2:
        raise typer.BadParameter("--mixup and --cutmix mix pictures; give two or more")
    views = views or (ONE if len(paths) == 1 else SEVERAL)
    from convnets_torch.images.decoding import Reading
    from convnets_torch.training import augmentation

    if len(paths) * (views + 1) > augmentation.MOST_TILES:  # before any is decoded
        raise typer.BadParameter(
            f"{views} views of {len(paths)} pictures are more than {augmentation.MOST_TILES} tiles; give fewer"
        )
    same = len({Path(path).name for path in paths}) < len(set(paths))  # such as 1.png of several classes
    reading = Reading(**read.reading).for_rule(rule)
    photos = [_photo(path, reading, with_folder=same) for path in paths]
    title = f"{strength}, seed {seed}" if mixing is None else f"{strength}, {mixing[0]} {mixing[1]:g}, seed {seed}"
    sheet = augmentation.view_sheet(photos, rule, drawn, views=views, seed=seed, mixing=mixing, title=title)
    overlays.save_image(sheet, output)
    if shown.as_json:
        mixed = None if mixing is None else {"kind": mixing[0], "alpha": mixing[1]}
        about = {"augmentation": drawn.to_dict(), "mixing": mixed, "seed": seed, "size": list(rule.shape)}
        print(json.dumps({"output": str(output), "pictures": paths, "views": views, **about}))
    else:
        count = f"{len(paths)} pictures" if len(paths) > 1 else "a picture"
        show(f"{output}: {views} views of {count} at {rule.shape[0]}x{rule.shape[1]} pixels")


def _rule(weights: str | None) -> Preprocessing:
    """Return the preprocessing of a card, by default EfficientNet-Lite's, which most current networks use."""
    if weights is None:
        from convnets_torch.images.preprocessing import preset

        return preset("efficientnet_lite0")
    from convnets_torch.card import read_card
    from convnets_torch.files import find

    return read_card(find(weights)).preprocessing


def _photo(path: str, reading: Reading, *, with_folder: bool) -> Photo:
    """Load a picture; its class is its folder's name."""
    from convnets_torch.images.decoding import decode
    from convnets_torch.text import printable
    from convnets_torch.training.augmentation import Photo

    source = sys.stdin.buffer if path == "-" else path
    found = decode(source, reading)
    for note in found.notes:
        say(note)
    if path == "-":
        return Photo(found.image, "standard input")
    name, label = Path(path).name, Path(path).resolve().parent.name
    return Photo(found.image, printable(f"{label}/{name}" if with_folder else name), label)

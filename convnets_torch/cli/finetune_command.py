"""`finetune` and `augment`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from convnets_torch.cli import options
from convnets_torch.cli import options as augmenting
from convnets_torch.cli.options import Columns, Partial, Truth, reading
from convnets_torch.cli.output import one_line, say, show, warnings_as_lines
from convnets_torch.cli.picture_commands import (
    AllowTruncated,
    BackgroundOption,
    DepthOption,
    Exclude,
    MaxPixels,
    Weights,
)
from convnets_torch.inference.allocation import keep_memory

if TYPE_CHECKING:
    from convnets_torch.images.decoding import Reading
    from convnets_torch.images.preprocessing import Preprocessing
    from convnets_torch.training.augmentation import Photo
    from convnets_torch.training.features import Features
    from convnets_torch.training.finetuning import Finetuned, LeakedPicture
    from convnets_torch.training.running import EpochRow
    from convnets_torch.training.stages import LayerRow

LEAKS_SHOWN = 20
DATA, FIRST, SECOND, BOTH = (  # panels of the help
    "Data", "Stage one: the last layer", "Stage two: the unfrozen layers", "Both stages",
)  # fmt: skip


def finetune(
    weights: Weights,
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Pictures in a folder for each class, in folders train and val of such, or a table of path, label"
            " and perhaps split.",
        ),
    ],
    *,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="File of weights to write, .safetensors; curves go beside it as .history.csv and .history.png.",
        ),
    ],
    head_epochs: Annotated[int, typer.Option(min=1, help="How many, at most.", rich_help_panel=FIRST)] = 40,
    head_rate: Annotated[float, typer.Option(help="Learning rate.", rich_help_panel=FIRST)] = 1e-3,
    views: Annotated[
        int,
        typer.Option(
            min=1,
            help="Fixed views of each picture; those after the first are changed at random.",
            rich_help_panel=FIRST,
        ),
    ] = 1,
    unfreeze: Annotated[
        str | None,
        typer.Option(
            metavar="LAYER",
            help="Train from this layer on; head for the dense layers, features for all.",
            show_default="the last block of convolutions",
            rich_help_panel=SECOND,
        ),
    ] = None,
    epochs: Annotated[
        int, typer.Option(min=0, help="How many, at most; 0 trains the last layer alone.", rich_help_panel=SECOND)
    ] = 10,
    rate: Annotated[
        float,
        typer.Option(help="Highest learning rate: it rises over the first epoch, and falls.", rich_help_panel=SECOND),
    ] = 1e-4,
    optimizer: Annotated[
        Literal["sgd", "adamw"], typer.Option(help="What makes the steps.", rich_help_panel=SECOND)
    ] = "sgd",
    momentum: Annotated[float, typer.Option(help="Of --optimizer sgd.", rich_help_panel=SECOND)] = 0.9,
    weight_decay: Annotated[float, typer.Option(help="Of the trained layers.", rich_help_panel=SECOND)] = 0.0,
    batch: Annotated[
        int, typer.Option(min=1, help="Pictures in a step, over all processes.", rich_help_panel=BOTH)
    ] = 32,
    activation: Annotated[
        Literal["softmax", "sigmoid"] | None,
        typer.Option(
            help="One class of all, or yes or no for each by itself.",
            show_default="softmax; sigmoid where pictures have several labels",
            rich_help_panel=BOTH,
        ),
    ] = None,
    class_weights: Annotated[
        Literal["none", "balanced"],
        typer.Option(help="balanced: rare classes weigh as much as frequent ones.", rich_help_panel=BOTH),
    ] = "none",
    label_smoothing: Annotated[
        float, typer.Option(help="Share of a label that goes to all classes.", rich_help_panel=BOTH)
    ] = 0.0,
    patience: Annotated[
        int,
        typer.Option(
            min=0, help="End a stage after so many epochs that were no better; 0 never.", rich_help_panel=BOTH
        ),
    ] = 5,
    dropout: Annotated[
        bool, typer.Option("--dropout/--no-dropout", help="Of the head, where it has some.", rich_help_panel=SECOND)
    ] = True,
    strength: augmenting.Strength = "light",
    scale: augmenting.Scale = None,
    crop: augmenting.Crop = None,
    rotation: augmenting.Rotation = None,
    skew: augmenting.Skew = None,
    flip: augmenting.Flip = None,
    vertical_flip: augmenting.VerticalFlip = None,
    no_flip_class: augmenting.NoFlipClass = None,
    tint: augmenting.Tint = None,
    hue: augmenting.Hue = None,
    blur: augmenting.Blur = None,
    randaugment: augmenting.RandAugment = None,
    mixup: augmenting.MixUp = None,
    cutmix: augmenting.CutMix = None,
    val_share: Annotated[
        float, typer.Option(help="Share of each class to judge by, where the data do not say it.", rich_help_panel=DATA)
    ] = 0.2,
    truth: Truth = None,
    columns: Columns = None,
    partial: Partial = False,
    exclude: Exclude = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of all that is drawn.")] = 0,
    allow_leaks: Annotated[
        bool,
        typer.Option(
            "--allow-leaks",
            help="Go on where pictures to judge by are nearly among those to learn from.",
            rich_help_panel=DATA,
        ),
    ] = False,
    leak_threshold: Annotated[
        float | None,
        typer.Option(
            help="The cosine of two pictures' features from which on they count as nearly the same.",
            show_default="0.98",
            rich_help_panel=DATA,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint beside the output, if there is one.")
    ] = False,
    tensorboard: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write events for TensorBoard.", show_default=False)
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that load pictures.", show_default="0 on the CPU, else one a core"),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to train: cpu, cuda, cuda:1, mps, or auto for the best.")] = "cpu",
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option(help="bfloat16 is mixed precision, auto takes it where it is fast.", rich_help_panel=SECOND),
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as one JSON object.")] = False,
) -> None:
    """Train a network for your own classes, from weights that know other ones.

    Several processes train together under torchrun: torchrun --no-python --nproc-per-node 2 convnets-torch finetune ...
    """
    if output.suffix.lower() != ".safetensors":
        raise typer.BadParameter(f"{output} has an unknown ending; weights are written as .safetensors")
    options = reading(truth, columns, partial, exclude)
    mixing = augmenting.chosen_mixing(mixup, cutmix)
    from convnets_torch.cli.output import rows_done
    from convnets_torch.files import check_writable, find
    from convnets_torch.training.datasets import find_dataset
    from convnets_torch.training.distributed import local_device
    from convnets_torch.training.finetuning import LEAK, LeakError, Watch, checkpoint_of, outputs_of
    from convnets_torch.training.finetuning import finetune as train
    from convnets_torch.training.running import Reports, TrainingStopped
    from convnets_torch.training.settings import Settings
    from convnets_torch.weights import load

    settings = Settings(
        activation=activation or "softmax", head_epochs=head_epochs, views=views, head_rate=head_rate, epochs=epochs,
        unfreeze=unfreeze, optimizer=optimizer, rate=rate, momentum=momentum, weight_decay=weight_decay, batch=batch,
        augmentation=augmenting.chosen_augmentation(
            strength, scale=scale, crop=crop, rotation=rotation, skew=skew, flip=flip, vertical_flip=vertical_flip,
            no_flip_class=no_flip_class, tint=tint, hue=hue, blur=blur, randaugment=randaugment,
        ),
        mixing=mixing[0] if mixing else "none", mixing_alpha=mixing[1] if mixing else 0.2,
        class_weights=class_weights, label_smoothing=label_smoothing, dropout=dropout, patience=patience,
        precision=precision, seed=seed,
    )  # fmt: skip
    check_writable(output)
    for path in (output, checkpoint_of(output), *outputs_of(output)):
        for read, words in ((find(weights), "weights that are"), (truth or data, "table that is")):
            if path.exists() and read.exists() and path.samefile(read):
                raise ValueError(f"{path} would overwrite the {words} read; name another output")
    speaks = os.environ.get("RANK", "0") == "0"  # the first of several processes
    with warnings_as_lines():
        dataset = find_dataset(data, val_share=val_share, seed=seed, **options)
    if dataset.sets and activation is None:
        settings = replace(settings, activation="sigmoid")
    keep_memory()
    network = load(weights, device=local_device() or device)
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings_as_lines())
        came = stack.enter_context(_interruption())
        bar = stack.enter_context(rows_done("pictures, then steps of an epoch")) if speaks else None
        told: list[Callable[[EpochRow, float], None]] = []
        if tensorboard is not None and speaks:
            told.append(_log(stack, tensorboard, checkpoint_of(output), resume))
        told.append(_say_epoch)
        watch = Watch(
            pictures=bar,
            found=_found if speaks else None,
            layers=None if as_json or not speaks else _print_layers,
            reports=Reports(epoch=_each(told) if speaks else None, steps=bar, stop=lambda: bool(came)),
        )
        if speaks:
            for remark in dataset.remarks:
                say(remark)
        try:
            result = train(
                network,
                dataset,
                output,
                settings,
                started_from=Path(weights).name,
                resume=resume,
                allow_leaks=allow_leaks,
                leak_threshold=LEAK if leak_threshold is None else leak_threshold,
                workers=workers,
                watch=watch,
            )
        except LeakError:
            if not speaks:
                raise typer.Exit(1) from None
            raise
        except TrainingStopped as stopped:
            if speaks:
                say(one_line(stopped))
            raise typer.Exit(128 + came[0]) from None
    if speaks:
        _report(result, output, as_json)
    if result.failed:
        raise typer.Exit(1)


def _found(features: Features, leaks: list[LeakedPicture]) -> None:
    for error in features.failed.values():
        say(one_line(error))
    for remark in features.remarks:
        say(remark)
    train, val = len(features.train.paths), len(features.val.paths)
    say(
        f"{train} pictures to train on, {val} to judge by, {len(features.failed)} that could not be used;"
        f" {features.computed} vectors computed, the others from the cache"
    )
    for leak in leaks[:LEAKS_SHOWN]:
        say(f"leak: {leak.path} is nearly {leak.of} (similarity {leak.similarity:.4f})")
    if len(leaks) > LEAKS_SHOWN:
        say(f"leak: {len(leaks) - LEAKS_SHOWN} more")


def _print_layers(rows: list[LayerRow]) -> None:
    from convnets_torch.cli.weights_commands import print_columns

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


def _each(told: list[Callable[[EpochRow, float], None]]) -> Callable[[EpochRow, float], None]:
    def tell(row: EpochRow, left: float) -> None:
        for one in told:
            one(row, left)

    return tell


def _log(
    stack: contextlib.ExitStack, folder: Path, checkpoint: Path, resume: bool
) -> Callable[[EpochRow, float], None]:
    """TensorBoard's events, from the epoch on that a checkpoint leaves to do."""
    from convnets_torch.training.running import read_progress, tensorboard_log

    first = 1
    if resume and checkpoint.exists():
        first += len(read_progress(checkpoint)[2].history)
    log = stack.enter_context(tensorboard_log(folder, first))
    return lambda row, left: log(row)


@contextlib.contextmanager
def _interruption() -> Iterator[list[int]]:
    """The signals that came, of Ctrl-C and SIGTERM; the second one breaks off at once."""
    came: list[int] = []

    def note(number: int, frame: Any) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)
        print("convnets-torch: stopping after this step; once more breaks off at once", file=sys.stderr)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
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


ONE, SEVERAL = 15, 7  # views by default: of one picture, and of each of several


def augment(
    images: Annotated[
        list[str],
        typer.Argument(metavar="PHOTO...", help="Pictures, folders of them, quoted patterns, or - for standard input."),
    ],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="Sheet to write: .png, .jpg, .webp.")],
    strength: options.Strength = "medium",
    scale: options.Scale = None,
    crop: options.Crop = None,
    rotation: options.Rotation = None,
    skew: options.Skew = None,
    flip: options.Flip = None,
    vertical_flip: options.VerticalFlip = None,
    no_flip_class: options.NoFlipClass = None,
    tint: options.Tint = None,
    hue: options.Hue = None,
    blur: options.Blur = None,
    randaugment: options.RandAugment = None,
    mixup: options.MixUp = None,
    cutmix: options.CutMix = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Weights by whose card pictures are resized and cut.", show_default="224 pixels of 256, bicubic"
        ),
    ] = None,
    views: Annotated[
        int | None, typer.Option(min=1, help="Of each picture.", show_default=f"{ONE}, of several pictures {SEVERAL}")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of the changes.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as a JSON object.")] = False,
    max_pixels: MaxPixels = None,
    allow_truncated: AllowTruncated = False,
    depth: DepthOption = None,
    background: BackgroundOption = None,
) -> None:
    """Show what a network will see of pictures in training: a sheet of views, changed at random."""
    mixing = options.chosen_mixing(mixup, cutmix)
    from convnets_torch.files import check_kept, check_writable
    from convnets_torch.images.finding import find_pictures
    from convnets_torch.visualization import overlays

    if output.suffix.lower() not in overlays.FORMATS:
        raise typer.BadParameter(f"-o is {output}; name a file that ends in {', '.join(overlays.FORMATS)}")
    check_writable(output)
    changes = options.chosen_augmentation(
        strength,
        scale=scale,
        crop=crop,
        rotation=rotation,
        skew=skew,
        flip=flip,
        vertical_flip=vertical_flip,
        no_flip_class=no_flip_class,
        tint=tint,
        hue=hue,
        blur=blur,
        randaugment=randaugment,
    )
    rule = _rule(weights)
    with warnings_as_lines():
        paths = [path for name in images for path in (["-"] if name == "-" else map(str, find_pictures(name)))]
    check_kept(output, paths)
    if mixing is not None and len(paths) < 2:
        raise typer.BadParameter("--mixup and --cutmix mix pictures; name two or more")
    views = views or (ONE if len(paths) == 1 else SEVERAL)
    from convnets_torch.images.decoding import Reading
    from convnets_torch.training import augmentation

    if len(paths) * (views + 1) > augmentation.MOST_TILES:  # before any is decoded
        raise typer.BadParameter(
            f"{len(paths)} pictures of {views} views are more than {augmentation.MOST_TILES} tiles; give fewer"
        )
    same = len({Path(path).name for path in paths}) < len(set(paths))  # 1.png of several classes
    reading = Reading(rule.exif, max_pixels, allow_truncated, depth, background)
    photos = [_photo(path, reading, with_folder=same) for path in paths]
    title = f"{strength}, seed {seed}" if mixing is None else f"{strength}, {mixing[0]} {mixing[1]:g}, seed {seed}"
    sheet = augmentation.view_sheet(photos, rule, changes, views=views, seed=seed, mixing=mixing, title=title)
    overlays.save_image(sheet, output)
    if as_json:
        mixed = None if mixing is None else {"kind": mixing[0], "alpha": mixing[1]}
        about = {"augmentation": changes.to_dict(), "mixing": mixed, "seed": seed, "size": list(rule.shape)}
        print(json.dumps({"output": str(output), "pictures": paths, "views": views, **about}))
    else:
        count = f"{len(paths)} pictures" if len(paths) > 1 else "a picture"
        show(f"{output}: {views} views of {count} at {rule.shape[0]}x{rule.shape[1]} pixels")


def _rule(weights: str | None) -> Preprocessing:
    """The preprocessing of a card; else EfficientNet-Lite's, which is that of most networks of today."""
    if weights is None:
        from convnets_torch.images.preprocessing import preset

        return preset("efficientnet_lite0")
    from convnets_torch.card import read_card
    from convnets_torch.files import find

    return read_card(find(weights)).preprocessing


def _photo(path: str, reading: Reading, *, with_folder: bool) -> Photo:
    """A picture, whose class is its folder's name."""
    from convnets_torch.images.decoding import open_upright
    from convnets_torch.text import printable
    from convnets_torch.training.augmentation import Photo

    source = sys.stdin.buffer if path == "-" else path
    found = open_upright(source, reading)
    for remark in found.remarks:
        say(remark)
    if path == "-":
        return Photo(found.image, "standard input")
    name, label = Path(path).name, Path(path).resolve().parent.name
    return Photo(found.image, printable(f"{label}/{name}" if with_folder else name), label)

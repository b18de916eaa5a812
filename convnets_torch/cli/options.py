"""Options that several commands share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from convnets_torch.cli.output import say, warnings_as_lines
from convnets_torch.inference.allocation import keep_memory

if TYPE_CHECKING:
    from convnets_torch.inference.pipeline import Mappable
    from convnets_torch.networks import Network
    from convnets_torch.training.augmentation import Augmentation, MixKind

Device = Annotated[str, typer.Option(help="Where the network runs: cpu, cuda, cuda:1, mps, or auto for the best.")]
Precision = Annotated[
    Literal["auto", "exact", "float32", "bfloat16", "float16"] | None,
    typer.Option(
        help="Make the network ready for many pictures: auto takes bfloat16 where it is fast, which rounds"
        " (docs/speed.md says how far).",
        show_default="as in the file",
    ),
]
EngineName = Annotated[
    Literal["openvino"] | None,
    typer.Option("--engine", help="Run the network in another program; openvino is fast on CPUs.", show_default=False),
]


def load_engine(
    weights: str, device: str, precision: str | None, name: str | None, *, heatmap: bool = False
) -> Mappable:
    """The network of a command that only classifies, or with `heatmap` only maps, in an engine if one is named.

    Raises:
        OSError, ValueError, ImportError: as `load` and `engine`.
    """
    if name is None:
        return load_network(weights, device, precision, bulk=not heatmap)
    if device != "cpu":
        raise typer.BadParameter(f"--engine {name} runs on the CPU, not with --device {device}")
    if precision in ("exact", "float16"):
        raise typer.BadParameter(f"--engine {name} takes --precision auto, float32 or bfloat16, not {precision}")
    from convnets_torch.inference.engines import engine

    network = load_network(weights, device, None)
    with warnings_as_lines():
        return engine(network, name, precision=precision or "float32", heatmap=heatmap)  # type: ignore[arg-type]


def load_network(
    weights: str, device: str, precision: str | None, *, whole: bool = False, bulk: bool = False
) -> Network:
    """The network of a command.

    Args:
        weights: a file, or a name in the cache.
        device, precision: as in `prepare`; None for a network as its file holds it.
        whole: keep every layer by itself, for commands that look into them; then the precision alone is changed.
        bulk: many pictures of one size go through it, for which the process keeps memory between layers.

    Raises:
        OSError, ValueError: as `load`.
    """
    from convnets_torch import weights as files
    from convnets_torch.inference import prepare

    if bulk:
        keep_memory()
    place = prepare.checked_device(device)
    network = files.load(weights, device=place)
    if precision is None:
        return network
    with warnings_as_lines():
        if whole:
            return network.to(prepare.dtype_of(precision, place))
        return prepare.prepare(network, device=place, precision=precision)  # type: ignore[arg-type]


@contextlib.contextmanager
def resumable(folder: Path | None, done: str) -> Iterator[None]:
    """Say how a run that is interrupted goes on.

    Args:
        folder: given with --resume.
        done: what did not happen to anything yet: "written", "reported".
    """
    try:
        yield
    except KeyboardInterrupt:
        way = f"the same command goes on from {folder}" if folder else "with --resume FOLDER a run can go on"
        say(f"interrupted; nothing was {done}; {way}")
        raise typer.Exit(130) from None


PANEL = "Data"
Truth = Annotated[
    Path | None,
    typer.Option(
        help="Table of the pictures in the folder: name and label in each line. Columns are known by their names;"
        " one for each class, with a 1 in the right one, will do as well.",
        rich_help_panel=PANEL,
        show_default=False,
    ),
]
Columns = Annotated[
    str | None,
    typer.Option(
        metavar="PATH,LABEL", help="The table's columns of pictures and labels.", rich_help_panel=PANEL,
        show_default="known by their names",
    ),
]  # fmt: skip
Partial = Annotated[
    bool,
    typer.Option(
        "--partial",
        help="Go on where pictures have no row in the table, or rows no picture.",
        rich_help_panel=PANEL,
    ),
]


def reading(truth: Path | None, columns: str | None, partial: bool, exclude: list[str] | None) -> dict[str, Any]:
    """What these options say, as keywords of `find_dataset`, `find_classes` and `find_truth`."""
    names = None if columns is None else [name.strip() for name in columns.split(",")]
    if names is not None and (len(names) != 2 or not all(names)):
        raise typer.BadParameter(f"--columns {columns} names no two columns; give one of pictures and one of labels")
    return {"truth": truth, "columns": names, "partial": partial, "exclude": exclude or ()}


AUGMENTATION_PANEL = "Changes of pictures at random"

Strength = Annotated[
    Literal["none", "light", "medium", "strong"],
    typer.Option(
        help="How much pictures are changed, in one word; the switches below change single values of it.",
        rich_help_panel=AUGMENTATION_PANEL,
    ),
]
Scale = Annotated[
    float | None,
    typer.Option(
        min=1,
        max=4,
        help="Objects up to so many times larger or smaller.",
        show_default=False,
        rich_help_panel=AUGMENTATION_PANEL,
    ),
]
Crop = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="How far from the centre pieces are cut out: 0 to 1 (anywhere).",
        show_default=False,
        rich_help_panel=AUGMENTATION_PANEL,
    ),
]
Rotation = Annotated[
    float | None,
    typer.Option(
        min=0, max=180, help="Turned by up to so many degrees.", show_default=False, rich_help_panel=AUGMENTATION_PANEL
    ),
]
Skew = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=45,
        help="Lines lean by up to so many degrees.",
        show_default=False,
        rich_help_panel=AUGMENTATION_PANEL,
    ),
]
Flip = Annotated[
    bool | None,
    typer.Option(
        "--flip/--no-flip",
        help="Mirror half of the pictures; not where left and right matter, as in digits.",
        show_default=False,
        rich_help_panel=AUGMENTATION_PANEL,
    ),
]
VerticalFlip = Annotated[
    bool | None,
    typer.Option(
        "--vertical-flip/--no-vertical-flip",
        help="Turn half of them upside down, by a mirror.",
        show_default=False,
        rich_help_panel=AUGMENTATION_PANEL,
    ),
]
NoFlipClass = Annotated[
    list[str] | None,
    typer.Option(
        "--no-flip-class",
        help="A class whose pictures are never mirrored; several times.",
        show_default=False,
        rich_help_panel=AUGMENTATION_PANEL,
    ),
]
Tint = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Brightness, contrast, saturation times 1 - tint to 1 + tint.",
        show_default=False,
        rich_help_panel=AUGMENTATION_PANEL,
    ),
]
Hue = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=180,
        help="Colours turned by up to so many degrees.",
        show_default=False,
        rich_help_panel=AUGMENTATION_PANEL,
    ),
]
Blur = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=10,
        help="Half are blurred, by a standard deviation of up to so many pixels.",
        show_default=False,
        rich_help_panel=AUGMENTATION_PANEL,
    ),
]
RandAugment = Annotated[
    int | None,
    typer.Option(
        "--randaugment",
        min=0,
        max=30,
        help="Two changes more by RandAugment of this magnitude.",
        show_default="off",
        rich_help_panel=AUGMENTATION_PANEL,
    ),
]
MixUp = Annotated[
    float | None,
    typer.Option(
        "--mixup",
        min=0.01,
        max=100,
        help="Blend pictures: alpha of the shares.",
        show_default="off",
        rich_help_panel=AUGMENTATION_PANEL,
    ),
]
CutMix = Annotated[
    float | None,
    typer.Option(
        "--cutmix",
        min=0.01,
        max=100,
        help="Cover a part by another picture: alpha of the shares.",
        show_default="off",
        rich_help_panel=AUGMENTATION_PANEL,
    ),
]


def chosen_augmentation(
    strength: str,
    *,
    scale: float | None,
    crop: float | None,
    rotation: float | None,
    skew: float | None,
    flip: bool | None,
    vertical_flip: bool | None,
    no_flip_class: list[str] | None,
    tint: float | None,
    hue: float | None,
    blur: float | None,
    randaugment: int | None,
) -> Augmentation:
    """The named strength with the switches that were given."""
    from convnets_torch.training.augmentation import augmentation

    switches: dict[str, Any] = {
        "scale": scale,
        "crop": crop,
        "rotation": rotation,
        "skew": skew,
        "flip": None if flip is None else 0.5 * flip,
        "vertical_flip": None if vertical_flip is None else 0.5 * vertical_flip,
        "tint": tint,
        "hue": hue,
        "blur": blur,
        "randaugment": randaugment,
        "no_flip": tuple(dict.fromkeys(no_flip_class)) if no_flip_class else None,
    }
    return augmentation(strength, **{name: value for name, value in switches.items() if value is not None})


def chosen_mixing(mixup: float | None, cutmix: float | None) -> tuple[MixKind, float] | None:
    """Kind and alpha of the mixing that was asked for."""
    if mixup is not None and cutmix is not None:
        raise typer.BadParameter("--mixup and --cutmix exclude each other")
    if mixup is not None:
        return "mixup", mixup
    return None if cutmix is None else ("cutmix", cutmix)

"""The options of commands that change pictures at random for training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from convnets_torch.training.augmentation import Augmentation
    from convnets_torch.training.mixing import MixKind

PANEL = "Changes of pictures at random"

Strength = Annotated[
    Literal["none", "light", "medium", "strong"],
    typer.Option(
        help="How much pictures are changed, in one word; the switches below change single values of it.",
        rich_help_panel=PANEL,
    ),
]
Scale = Annotated[
    float | None,
    typer.Option(
        min=1, max=4, help="Objects up to so many times larger or smaller.", show_default=False, rich_help_panel=PANEL
    ),
]
Crop = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="How far from the centre pieces are cut out: 0 to 1 (anywhere).",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
Rotation = Annotated[
    float | None,
    typer.Option(min=0, max=180, help="Turned by up to so many degrees.", show_default=False, rich_help_panel=PANEL),
]
Skew = Annotated[
    float | None,
    typer.Option(min=0, max=45, help="Lines lean by up to so many degrees.", show_default=False, rich_help_panel=PANEL),
]
Flip = Annotated[
    bool | None,
    typer.Option(
        "--flip/--no-flip",
        help="Mirror half of the pictures; not where left and right matter, as in digits.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
VerticalFlip = Annotated[
    bool | None,
    typer.Option(
        "--vertical-flip/--no-vertical-flip",
        help="Turn half of them upside down, by a mirror.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
NoFlipClass = Annotated[
    list[str] | None,
    typer.Option(
        "--no-flip-class",
        help="A class whose pictures are never mirrored; several times.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
Tint = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Brightness, contrast, saturation times 1 - tint to 1 + tint.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
Hue = Annotated[
    float | None,
    typer.Option(
        min=0, max=180, help="Colours turned by up to so many degrees.", show_default=False, rich_help_panel=PANEL
    ),
]
Blur = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=10,
        help="Half are blurred, by a standard deviation of up to so many pixels.",
        show_default=False,
        rich_help_panel=PANEL,
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
        rich_help_panel=PANEL,
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
        rich_help_panel=PANEL,
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
        rich_help_panel=PANEL,
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

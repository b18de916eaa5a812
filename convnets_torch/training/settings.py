"""Settings of fine-tuning: all options that affect the result.

The dataclass fields carry the help texts of the command-line options. This module does not import torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from math import isfinite
from typing import Any, Literal, get_args

from convnets_torch.options import FormerAttribute, renamed
from convnets_torch.text import check_choice

Optimizer = Literal["sgd", "adamw"]
Output = Literal["softmax", "sigmoid"]
Mixing = Literal["none", "mixup", "cutmix"]
TrainingPrecision = Literal["auto", "float32", "bfloat16"]
ClassWeights = Literal["none", "balanced"]

CHANGEABLE = ("head_epochs", "head_lr", "epochs", "lr", "patience")  # may change when resuming from a checkpoint

FIRST, SECOND, BOTH = (  # panels of the help
    "Stage one: the last layer", "Stage two: the unfrozen layers", "Both stages",
)  # fmt: skip


def _switch(default: Any, least: float, most: float, help: str, *names: str) -> Any:
    return field(default=default, metadata={"help": help, "min": least, "max": most, "names": names})


@dataclass(frozen=True)
class Augmentation:
    """Limits of random augmentation; the defaults do nothing.

    Attributes:
        scale: maximum factor by which objects appear larger or smaller, 1 to 4; the size of the picture limits smaller.
        crop: maximum offset of the crop: 0 in the centre, 1 anywhere in the picture.
        rotation: maximum degrees in either direction, 0 to 180.
        skew: maximum shear of horizontal and vertical lines in either direction, 0 to 45 degrees.
        flip: probability of a horizontal flip, 0 to 1.
        vertical_flip: probability of a vertical flip, 0 to 1.
        tint: brightness, contrast and saturation are each multiplied by 1 - tint to 1 + tint; 0 to 1.
        hue: maximum hue shift in either direction, 0 to 180 degrees.
        blur: half of the pictures get a Gaussian blur with a standard deviation of 0 to `blur` pixels; 0 to 10.
        randaugment: magnitude of RandAugment, 0 (off) to 30: two of its 14 operations, applied last.
            Source: arXiv:1909.13719.
        no_flip: names of classes whose pictures are never flipped, because that would change their class.
    """

    scale: float = _switch(1.0, 1, 4, "Maximum factor by which objects appear larger or smaller.")
    crop: float = _switch(0.0, 0, 1, "Maximum offset of the crop from the centre: 0 to 1 (anywhere).")
    rotation: float = _switch(0.0, 0, 180, "Maximum rotation in degrees.")
    skew: float = _switch(0.0, 0, 45, "Maximum shear in degrees.")
    flip: float = _switch(
        0.0, 0, 1, "Flip half of the pictures left to right; not for digits and the like.", "--flip/--no-flip"
    )
    vertical_flip: float = _switch(
        0.0, 0, 1, "Flip half of the pictures vertically.", "--vertical-flip/--no-vertical-flip"
    )
    tint: float = _switch(0.0, 0, 1, "Multiply brightness, contrast and saturation by 1 - tint to 1 + tint.")
    hue: float = _switch(0.0, 0, 180, "Maximum hue shift in degrees.")
    blur: float = _switch(0.0, 0, 10, "Blur half of the pictures; maximum standard deviation in pixels.")
    randaugment: int = _switch(0, 0, 30, "Add two operations of RandAugment with this magnitude.", "--randaugment")
    no_flip: tuple[str, ...] = field(
        default=(),
        metadata={"help": "A class whose pictures are never flipped; repeatable.", "names": ("--no-flip-class",)},
    )

    def __post_init__(self) -> None:
        for name, (least, most) in LIMITS.items():
            value = getattr(self, name)
            kinds = int if name == "randaugment" else int | float
            if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
                what = "a whole number" if name == "randaugment" else "a number"
                raise ValueError(f"augmentation has {name} {value!r}; give {what} from {least:g} to {most:g}")
        if not isinstance(self.no_flip, tuple) or not all(isinstance(name, str) for name in self.no_flip):
            raise ValueError(f"augmentation has no_flip {self.no_flip!r}; give a tuple of class names")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON.

        >>> Augmentation(flip=0.5, no_flip=("left shoe",)).to_dict()["no_flip"]
        ['left shoe']
        """
        return {**asdict(self), "no_flip": list(self.no_flip)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Augmentation:
        """The inverse of `to_dict`; missing fields are off.

        Raises:
            ValueError: a field is unknown or its value is out of range.

        >>> Augmentation.from_dict({"rotation": 10}).rotation
        10
        """
        _check_names(values)
        listed = values.get("no_flip", ())
        return cls(**{**values, "no_flip": tuple(listed) if isinstance(listed, list) else listed})

    def check_classes(self, names: Iterable[str]) -> None:
        """Raise ValueError if `no_flip` names an unknown class: a typo would flip pictures that must not be flipped.

        >>> Augmentation(no_flip=("b",)).check_classes(["b", "d"])
        """
        known = list(names)
        if unknown := [name for name in self.no_flip if name not in known]:
            listed = ", ".join(known[:10]) + (", ..." if len(known) > 10 else "")
            raise ValueError(f"no_flip names {', '.join(map(repr, unknown))}, not among the classes ({listed})")


LIMITS = {  # field -> the least and the largest value
    each.name: (each.metadata["min"], each.metadata["max"]) for each in fields(Augmentation) if "min" in each.metadata
}
AUGMENTATIONS: dict[str, Augmentation] = {
    "none": Augmentation(),
    "light": Augmentation(scale=1.15, crop=1, flip=0.5, tint=0.1),
    "medium": Augmentation(scale=1.35, crop=1, rotation=10, skew=5, flip=0.5, tint=0.25, hue=5),
    "strong": Augmentation(scale=1.8, crop=1, rotation=20, skew=10, flip=0.5, tint=0.4, hue=15, blur=1.5),
}


def augmentation(strength: str = "medium", **switches: Any) -> Augmentation:
    """Return a preset, with some fields replaced.

    Args:
        strength: none, light, medium or strong.
        switches: fields of `Augmentation`.

    Raises:
        ValueError: the strength or a field is unknown, or a value is out of range.

    >>> augmentation("medium", flip=0).rotation, augmentation("none", rotation=5).flip
    (10, 0.0)
    """
    check_choice(strength, AUGMENTATIONS, "augmentation")
    _check_names(switches)
    return replace(AUGMENTATIONS[strength], **switches)


def _check_names(values: dict[str, Any]) -> None:
    known = [each.name for each in fields(Augmentation)]
    if unknown := [name for name in values if name not in known]:
        raise ValueError(f"augmentation has no {', '.join(unknown)}; known: {', '.join(known)}")


def _option(default: Any, panel: str | None, help: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": help, "rich_help_panel": panel, "names": (), **more})


@dataclass(frozen=True)
class Settings:
    """Settings of `finetune`; stored in the card of its result and in its checkpoints.

    Attributes:
        activation: "softmax" for mutually exclusive classes; "sigmoid" for independent classes, required for
            multi-label data.
        head_epochs: maximum number of epochs of stage one, each over the cached features of all views.
        views: fixed views of each picture whose features are cached; the first is the crop of `classify`, the others
            are augmented.
        head_lr: learning rate of AdamW in stage one, on centred and scaled features.
        epochs: maximum number of epochs of stage two, each with new augmentation; 0 skips stage two.
        unfreeze: first layer that stage two trains, by any name that `find_layers` accepts; "head" for only the dense
            layers, "features" for all layers; None for the network's last block (`networks.CATALOG`).
        optimizer: of stage two, "sgd" or "adamw".
        lr: peak learning rate of stage two, with one epoch of warm-up and cosine decay (`stages.scheduled`).
        momentum: of "sgd".
        weight_decay: of stage two.
        batch: batch size; in stage two over all processes.
        augmentation: of stage two, and of the additional views of stage one.
        mixing: "mixup" or "cutmix" in stage two, or "none".
        mixing_alpha: parameter of the Beta distribution of the mixing share.
        class_weights: "balanced" weights each class by the inverse of its share of the training pictures; for
            multi-label data, positives and negatives of each label get equal total weight.
        label_smoothing: 0 to below 1.
        dropout: whether the head's dropout is active in stage two.
        patience: end a stage after this many epochs in a row without improvement on the validation pictures
            (`running.best_epoch`); 0 never.
        precision: of stage two. "bfloat16" is mixed precision; "auto" uses it where it is fast.
        seed: of all random numbers.
    """

    activation: Output = "softmax"
    head_epochs: int = _option(40, FIRST, "Maximum number of epochs.", min=1)
    views: int = _option(1, FIRST, "Fixed views of each picture; all but the first are augmented.", min=1)
    head_lr: float = _option(1e-3, FIRST, "Learning rate.")
    epochs: int = _option(10, SECOND, "Maximum number of epochs; 0 trains only the last layer.", min=0)
    unfreeze: str | None = _option(
        None,
        SECOND,
        "First layer to train; head for the dense layers, features for all layers.",
        metavar="LAYER",
        show_default="the last block of convolutions",
    )
    optimizer: Optimizer = _option("sgd", SECOND, "Optimizer.")  # noqa: RUF009
    lr: float = _option(1e-4, SECOND, "Peak learning rate, after one epoch of warm-up.")
    momentum: float = _option(0.9, SECOND, "Momentum of --optimizer sgd.")
    weight_decay: float = _option(0.0, SECOND, "Weight decay of the trained layers.")
    batch: int = 32
    augmentation: Augmentation = field(default_factory=lambda: AUGMENTATIONS["light"])
    mixing: Mixing = "none"
    mixing_alpha: float = 0.2
    class_weights: ClassWeights = _option(  # noqa: RUF009
        "none", BOTH, "balanced: rare classes get the same total weight as frequent ones."
    )
    label_smoothing: float = _option(0.0, BOTH, "Share of the target spread over all classes.")
    dropout: bool = _option(True, SECOND, "Use the head's dropout, if it has any.")
    patience: int = _option(5, BOTH, "End a stage after this many epochs without improvement; 0 never.", min=0)
    precision: TrainingPrecision = "auto"
    seed: int = _option(0, None, "Seed of all random numbers.", min=0, max=2**31 - 1)
    rate, head_rate = FormerAttribute("lr"), FormerAttribute("head_lr")

    def __post_init__(self) -> None:
        known = {
            "activation": Output, "optimizer": Optimizer, "mixing": Mixing, "class_weights": ClassWeights,
            "precision": TrainingPrecision,
        }  # fmt: skip
        for name, words in known.items():
            if getattr(self, name) not in get_args(words):
                raise ValueError(f"{name} is {getattr(self, name)!r}; known: {', '.join(get_args(words))}")
        limits = {"head_epochs": 1, "views": 1, "epochs": 0, "batch": 1, "patience": 0, "seed": 0}
        for name, least in limits.items():
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name} is {value!r}; give an integer, {least} or more")
        for name in ("head_lr", "lr", "mixing_alpha"):
            self._check(name, 0, float("inf"), inner=True)
        self._check("weight_decay", 0, float("inf"))
        for name in ("momentum", "label_smoothing"):
            self._check(name, 0, 1)
        if self.mixing != "none" and self.activation == "sigmoid":
            raise ValueError("mixing needs mutually exclusive classes, i.e. activation softmax; set mixing to none")

    def _check(self, name: str, least: float, most: float, *, inner: bool = False) -> None:
        value = getattr(self, name)
        if type(value) not in (int, float) or not isfinite(value) or not least <= value < most or (inner and not value):
            above = f"above {least}" if inner else f"{least} or more"
            raise ValueError(f"{name} is {value!r}; give a number {above}" + (f", below {most}" if most == 1 else ""))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "augmentation": self.augmentation.to_dict()}

    def differences(self, other: dict[str, Any]) -> list[str]:
        """Describe how these settings differ from another `to_dict`, apart from fields that may change when resuming.

        >>> Settings(batch=8, lr=0.1).differences(Settings().to_dict())
        ['batch 32, now 8']
        """
        mine = json.loads(json.dumps(self.to_dict()))
        return [
            f"{entry.name} {other.get(entry.name)}, now {mine[entry.name]}"
            for entry in fields(self)
            if entry.name not in CHANGEABLE and other.get(entry.name) != mine[entry.name]
        ]


Settings.__init__ = renamed(rate="lr", head_rate="head_lr")(Settings.__init__)  # type: ignore[method-assign]

"""How a network is fine-tuned: every choice that changes the result, in one place.

The fields of the dataclasses carry the help texts of the commands' options. Importing this brings in no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from math import isfinite
from typing import Any, Literal, get_args

Optimizer = Literal["sgd", "adamw"]
Output = Literal["softmax", "sigmoid"]
Mixing = Literal["none", "mixup", "cutmix"]
TrainingPrecision = Literal["auto", "float32", "bfloat16"]
ClassWeights = Literal["none", "balanced"]

CHANGEABLE = ("head_epochs", "head_rate", "epochs", "rate", "patience")  # when a training goes on from a checkpoint

FIRST, SECOND, BOTH = (  # panels of the help
    "Stage one: the last layer", "Stage two: the unfrozen layers", "Both stages",
)  # fmt: skip


def _switch(default: Any, least: float, most: float, help: str, *names: str) -> Any:
    return field(default=default, metadata={"help": help, "min": least, "max": most, "names": names})


@dataclass(frozen=True)
class Augmentation:
    """What may be done to a picture at random; the defaults do nothing.

    Attributes:
        scale: objects appear up to this factor larger or smaller, 1 to 4. Smaller only as far as the picture reaches.
        crop: how far from the centre the piece that is cut out may lie: 0 in the centre, 1 anywhere in the picture.
        rotation: degrees to either side, 0 to 180.
        skew: degrees by which horizontal and vertical lines lean, each to either side, 0 to 45.
        flip: probability of being mirrored left to right, 0 to 1.
        vertical_flip: probability of being turned upside down by a mirror, 0 to 1.
        tint: brightness, contrast and saturation are multiplied by 1 - tint to 1 + tint each; 0 to 1.
        hue: degrees on the circle of colours to either side, 0 to 180.
        blur: half of the pictures are blurred by a Gaussian of a standard deviation of 0 to `blur` pixels; 0 to 10.
        randaugment: magnitude of RandAugment, 0 (off) to 30: two of its 14 changes after all others.
            Source: arXiv:1909.13719.
        no_flip: names of classes whose pictures are never mirrored, because that would change what they are.
    """

    scale: float = _switch(1.0, 1, 4, "Objects up to so many times larger or smaller.")
    crop: float = _switch(0.0, 0, 1, "How far from the centre pieces are cut out: 0 to 1 (anywhere).")
    rotation: float = _switch(0.0, 0, 180, "Turned by up to so many degrees.")
    skew: float = _switch(0.0, 0, 45, "Lines lean by up to so many degrees.")
    flip: float = _switch(
        0.0, 0, 1, "Mirror half of the pictures; not where left and right matter, as in digits.", "--flip/--no-flip"
    )
    vertical_flip: float = _switch(
        0.0, 0, 1, "Turn half of them upside down, by a mirror.", "--vertical-flip/--no-vertical-flip"
    )
    tint: float = _switch(0.0, 0, 1, "Brightness, contrast, saturation times 1 - tint to 1 + tint.")
    hue: float = _switch(0.0, 0, 180, "Colours turned by up to so many degrees.")
    blur: float = _switch(0.0, 0, 10, "Half are blurred, by a standard deviation of up to so many pixels.")
    randaugment: int = _switch(0, 0, 30, "Two changes more by RandAugment of this magnitude.", "--randaugment")
    no_flip: tuple[str, ...] = field(
        default=(),
        metadata={"help": "A class whose pictures are never mirrored; several times.", "names": ("--no-flip-class",)},
    )

    def __post_init__(self) -> None:
        for name, (least, most) in LIMITS.items():
            value = getattr(self, name)
            kinds = int if name == "randaugment" else int | float
            if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
                what = "a whole number" if name == "randaugment" else "a number"
                raise ValueError(f"augmentation has {name} {value!r}; {what} from {least:g} to {most:g} is wanted")
        if not isinstance(self.no_flip, tuple) or not all(isinstance(name, str) for name in self.no_flip):
            raise ValueError(f"augmentation has no_flip {self.no_flip!r}; a tuple of class names is wanted")

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON can hold them.

        >>> Augmentation(flip=0.5, no_flip=("left shoe",)).to_dict()["no_flip"]
        ['left shoe']
        """
        return {**asdict(self), "no_flip": list(self.no_flip)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Augmentation:
        """The inverse of `to_dict`; fields that are missing are off.

        Raises:
            ValueError: a field is unknown or its value impossible.

        >>> Augmentation.from_dict({"rotation": 10}).rotation
        10
        """
        _check_names(values)
        listed = values.get("no_flip", ())
        return cls(**{**values, "no_flip": tuple(listed) if isinstance(listed, list) else listed})

    def check_classes(self, names: Iterable[str]) -> None:
        """Refuse a name in `no_flip` that is none of the classes: a slip there would mirror what must not be.

        Raises:
            ValueError: a class is unknown.

        >>> Augmentation(no_flip=("b",)).check_classes(["b", "d"])
        """
        known = list(names)
        if unknown := [name for name in self.no_flip if name not in known]:
            listed = ", ".join(known[:10]) + (", ..." if len(known) > 10 else "")
            raise ValueError(f"no_flip names {', '.join(map(repr, unknown))}, none of the classes ({listed})")


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
    """A named strength, with single switches replaced.

    Args:
        strength: none, light, medium or strong.
        switches: fields of `Augmentation`.

    Raises:
        ValueError: the strength or a switch is unknown, or a value impossible; the known ones are listed.

    >>> augmentation("medium", flip=0).rotation, augmentation("none", rotation=5).flip
    (10, 0.0)
    """
    if strength not in AUGMENTATIONS:
        raise ValueError(f"unknown augmentation {strength!r}; known: {', '.join(AUGMENTATIONS)}")
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
    """What `finetune` does; written into the card of its result and into its checkpoints.

    Attributes:
        activation: "softmax" for classes that exclude each other; "sigmoid" answers for each class by itself, and
            alone suits pictures with several labels.
        head_epochs: how often stage one sees the cached features of every view, at most.
        views: fixed views of each picture whose features are cached; the first is the whole picture as `classify` cuts
            it, others are augmented.
        head_rate: learning rate of AdamW in stage one, on features that were centred and scaled.
        epochs: how often stage two sees every picture, each time augmented anew, at most; 0 leaves stage two out.
        unfreeze: layer from which on stage two trains, by any name that `find_layers` takes; "head" for the dense
            layers alone, "features" for all; None for the network's last block (`networks.CATALOG`).
        optimizer: of stage two, "sgd" or "adamw".
        rate: highest learning rate of stage two, which rises over the first epoch and falls to the last
            (`schedule.scheduled`).
        momentum: of "sgd".
        weight_decay: of stage two.
        batch: pictures in a step of stage two, over all processes; rows in one of stage one.
        augmentation: of stage two, and of the further views of stage one.
        mixing: "mixup" or "cutmix" in stage two, or "none".
        mixing_alpha: of the beta distribution of mixing's shares.
        class_weights: "balanced" weighs each class by the inverse of its share of the training pictures; where they
            may have several labels, those with a label and those without it weigh alike.
        label_smoothing: 0 to below 1.
        dropout: whether the head's dropout works in stage two.
        patience: a stage ends when so many epochs in a row were no better on the validation pictures than the best one
            before (`curves.best_epoch` says which is better); 0 never.
        precision: of stage two. "bfloat16" is mixed precision; "auto" takes it where it is fast.
        seed: of everything that is drawn.
    """

    activation: Output = "softmax"
    head_epochs: int = _option(40, FIRST, "How many, at most.", min=1)
    views: int = _option(1, FIRST, "Fixed views of each picture; those after the first are changed at random.", min=1)
    head_rate: float = _option(1e-3, FIRST, "Learning rate.")
    epochs: int = _option(10, SECOND, "How many, at most; 0 trains the last layer alone.", min=0)
    unfreeze: str | None = _option(
        None,
        SECOND,
        "Train from this layer on; head for the dense layers, features for all.",
        metavar="LAYER",
        show_default="the last block of convolutions",
    )
    optimizer: Optimizer = _option("sgd", SECOND, "What makes the steps.")  # noqa: RUF009
    rate: float = _option(1e-4, SECOND, "Highest learning rate: it rises over the first epoch, and falls.")
    momentum: float = _option(0.9, SECOND, "Of --optimizer sgd.")
    weight_decay: float = _option(0.0, SECOND, "Of the trained layers.")
    batch: int = 32
    augmentation: Augmentation = field(default_factory=lambda: AUGMENTATIONS["light"])
    mixing: Mixing = "none"
    mixing_alpha: float = 0.2
    class_weights: ClassWeights = _option(  # noqa: RUF009
        "none", BOTH, "balanced: rare classes weigh as much as frequent ones."
    )
    label_smoothing: float = _option(0.0, BOTH, "Share of a label that goes to all classes.")
    dropout: bool = _option(True, SECOND, "Of the head, where it has some.")
    patience: int = _option(5, BOTH, "End a stage after so many epochs that were no better; 0 never.", min=0)
    precision: TrainingPrecision = "auto"
    seed: int = _option(0, None, "Of all that is drawn at random.", min=0, max=2**31 - 1)

    def __post_init__(self) -> None:
        known = {
            "activation": Output, "optimizer": Optimizer, "mixing": Mixing, "class_weights": ClassWeights,
            "precision": TrainingPrecision,
        }  # fmt: skip
        for name, words in known.items():
            if getattr(self, name) not in get_args(words):
                raise ValueError(f"{name} is {getattr(self, name)!r}; known: {', '.join(get_args(words))}")
        for name, least in (
            ("head_epochs", 1),
            ("views", 1),
            ("epochs", 0),
            ("batch", 1),
            ("patience", 0),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name} is {value!r}; give a whole number, {least} or more")
        for name in ("head_rate", "rate", "mixing_alpha"):
            self._check(name, 0, float("inf"), inner=True)
        self._check("weight_decay", 0, float("inf"))
        for name in ("momentum", "label_smoothing"):
            self._check(name, 0, 1)
        if self.mixing != "none" and self.activation == "sigmoid":
            raise ValueError("mixing needs classes that exclude each other, with activation softmax; take mixing none")

    def _check(self, name: str, least: float, most: float, *, inner: bool = False) -> None:
        value = getattr(self, name)
        if type(value) not in (int, float) or not isfinite(value) or not least <= value < most or (inner and not value):
            above = f"above {least}" if inner else f"{least} or more"
            raise ValueError(f"{name} is {value!r}; give a number {above}" + (f", below {most}" if most == 1 else ""))

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON can hold them."""
        return {**asdict(self), "augmentation": self.augmentation.to_dict()}

    def differences(self, other: dict[str, Any]) -> list[str]:
        """What of `to_dict` of other settings is not as here, in words, but for what may change on the way.

        >>> Settings(batch=8, rate=0.1).differences(Settings().to_dict())
        ['batch 32, now 8']
        """
        mine = json.loads(json.dumps(self.to_dict()))
        return [
            f"{entry.name} {other.get(entry.name)}, now {mine[entry.name]}"
            for entry in fields(self)
            if entry.name not in CHANGEABLE and other.get(entry.name) != mine[entry.name]
        ]

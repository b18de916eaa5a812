"""How a network is fine-tuned: every choice that changes the result, in one place."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from math import isfinite
from typing import Any, Literal, get_args

from convnets_torch.training.augmentation import AUGMENTATIONS, Augmentation

Optimizer = Literal["sgd", "adamw"]
Output = Literal["softmax", "sigmoid"]
Mixing = Literal["none", "mixup", "cutmix"]
TrainingPrecision = Literal["auto", "float32", "bfloat16"]
ClassWeights = Literal["none", "balanced"]

CHANGEABLE = ("head_epochs", "head_rate", "epochs", "rate", "patience")  # when a training goes on from a checkpoint


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
    head_epochs: int = 40
    views: int = 1
    head_rate: float = 1e-3
    epochs: int = 10
    unfreeze: str | None = None
    optimizer: Optimizer = "sgd"
    rate: float = 1e-4
    momentum: float = 0.9
    weight_decay: float = 0.0
    batch: int = 32
    augmentation: Augmentation = field(default_factory=lambda: AUGMENTATIONS["light"])
    mixing: Mixing = "none"
    mixing_alpha: float = 0.2
    class_weights: ClassWeights = "none"
    label_smoothing: float = 0.0
    dropout: bool = True
    patience: int = 5
    precision: TrainingPrecision = "auto"
    seed: int = 0

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

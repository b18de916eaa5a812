"""Epochs of a stage: steps, judging, checkpoints, and the reasons to end early."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convnets_torch.training.checkpoints import (
    another_version,
    check_arrays,
    damaged,
    optimizer_arrays,
    read_checkpoint,
    restore_optimizer,
    save_checkpoint,
)
from convnets_torch.training.curves import EpochRow, best_epoch
from convnets_torch.training.distributed import Group
from convnets_torch.training.stages import Stage

STOP, BROKEN = 0, 1  # places of what the processes tell each other before each step


class TrainingStopped(Exception):
    """Somebody asked a training to stop, and it wrote a checkpoint; the message says how to go on."""


@dataclass
class Progress:
    """How far a training has come; with the arrays of a checkpoint all that is needed to go on.

    Attributes:
        stage: 1 or 2, the one that is running.
        step: steps done of the epoch that is running.
        loss: sum over the rows of these steps.
        rows: how many they were.
        seconds: that they took.
        history: finished epochs of both stages.
    """

    stage: int = 1
    step: int = 0
    loss: float = 0.0
    rows: int = 0
    seconds: float = 0.0
    history: list[EpochRow] = field(default_factory=list)

    @property
    def epoch(self) -> int:
        """Number of the epoch that is running."""
        return len(self.history) + 1

    @property
    def done(self) -> int:
        """Finished epochs of this stage."""
        return sum(row.stage == self.stage for row in self.history)

    @property
    def waited(self) -> int:
        """Epochs of this stage since the best one of all."""
        return min(self.done, len(self.history) - best_epoch(self.history).epoch) if self.history else 0

    def ended(self, epochs: int, patience: int) -> bool:
        """Whether this stage is over after at most so many epochs."""
        return self.done >= epochs or (patience > 0 and self.waited >= patience)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Progress:
        """The inverse of `to_dict`.

        Raises:
            KeyError, TypeError: the fields are others.
            ValueError: no training comes there; the reason in words.
        """
        found = cls(**{**values, "history": [EpochRow(**row) for row in values["history"]]})
        found._check()
        return found

    def _check(self) -> None:
        """Raise ValueError for what no training writes, and what would keep one from its end."""
        for name in ("stage", "step", "rows"):
            _check_number(name, getattr(self, name), whole=True)
        _check_number("loss", self.loss, least=-math.inf)  # which rounding may bring below 0
        _check_number("seconds", self.seconds)
        if self.stage not in (1, 2) or self.step > self.rows or bool(self.step) != bool(self.rows):
            raise ValueError(f"it stands in stage {self.stage}, after step {self.step} and {self.rows} rows")
        for number, row in enumerate(self.history, start=1):
            for name in ("stage", "epoch"):
                _check_number(name, getattr(row, name), whole=True)
            for name in ("train_loss", "val_loss"):
                _check_number(name, getattr(row, name), least=-math.inf)
            for name in (row.measure, "rate", "seconds"):
                _check_number(name, getattr(row, name))
            if row.epoch != number or row.score > 1:
                raise ValueError(f"epoch {number} is number {row.epoch}, of {row.words} {row.score}")
        if len({row.measure for row in self.history}) > 1 or any(
            None not in (row.val_accuracy, row.val_mean_average_precision) for row in self.history
        ):
            raise ValueError("its epochs have accuracies and mean average precisions")
        stages = [row.stage for row in self.history]
        if stages != sorted(stages) or not {*stages} <= {1, self.stage} or (self.stage == 2 and 1 not in stages):
            raise ValueError("its epochs are not those of the stages in their order")


def _check_number(name: str, value: Any, *, whole: bool = False, least: float = 0) -> None:
    if type(value) not in ((int,) if whole else (int, float)) or not math.isfinite(value) or value < least:
        raise ValueError(f"{name} is {value!r:.80}")


def read_progress(
    checkpoint: Path, *, max_bytes: int | None = None
) -> tuple[dict[str, Tensor], dict[str, Any], Progress]:
    """Arrays and state of a checkpoint, and how far its training had come.

    Raises:
        OSError, ValueError: as `read_checkpoint`; or it is damaged.
    """
    arrays, state = read_checkpoint(checkpoint, max_bytes=max_bytes)
    try:
        if not isinstance(state["settings"], dict):
            raise TypeError
        return arrays, state, Progress.from_dict(state["progress"])
    except (KeyError, TypeError):
        raise another_version(checkpoint) from None
    except ValueError as error:
        raise damaged(checkpoint, str(error)) from None


@dataclass(frozen=True)
class Reports:
    """Who is told of what.

    Attributes:
        epoch: of each finished epoch, and how many seconds the epochs left of its stage would take.
        steps: how many steps of the epoch are done, of how many.
        stop: asked before each step, and after each batch of features, whether to stop.
    """

    epoch: Callable[[EpochRow, float], None] | None = None
    steps: Callable[[int, int], None] | None = None
    stop: Callable[[], bool] | None = None


class Keeper:
    """Where checkpoints go, and the parameters of the best epoch.

    Attributes:
        best: name -> values of the best epoch of the stage that is running; empty while an earlier stage's is best.
    """

    def __init__(self, path: Path, identity: dict[str, Any], group: Group) -> None:
        self.path, self.group = path, group
        self._identity = identity
        self.best: dict[str, Tensor] = {}

    def save(self, stage: Stage, progress: Progress, more: dict[str, Tensor]) -> None:
        """Write a checkpoint; `more` are arrays of earlier stages that the result needs."""
        if self.group.first:
            arrays: dict[str, Tensor] = {
                f"now.{name}": values for name, values in zip(stage.names, stage.parameters, strict=True)
            }
            if not self._is_best(progress):
                arrays |= {f"best.{name}": values for name, values in self.best.items()}
            moments = optimizer_arrays(stage.optimizer, stage.names)
            arrays |= {f"optimizer.{name}": values for name, values in moments.items()}
            arrays |= {f"before.{name}": values for name, values in more.items()}
            save_checkpoint(self.path, arrays, {**self._identity, "progress": progress.to_dict()})

    @staticmethod
    def _is_best(progress: Progress) -> bool:
        """Whether the parameters are those of the best epoch, so that a checkpoint need not hold them twice."""
        return progress.step == 0 and bool(progress.history) and best_epoch(progress.history) is progress.history[-1]

    def restore(self, stage: Stage, progress: Progress, arrays: dict[str, Tensor]) -> None:
        """Put a stage where the checkpoint left it.

        Raises:
            ValueError: the checkpoint is not of this stage.
        """
        now, best, moments = (_under(kind, arrays) for kind in ("now.", "best.", "optimizer."))
        parameters = dict(zip(stage.names, stage.parameters, strict=True))
        kept = progress.history and best_epoch(progress.history).stage == stage.number and not self._is_best(progress)
        try:
            if progress.step >= stage.count():
                raise ValueError(f"it stands after step {progress.step} of {stage.count()}")
            check_arrays(parameters, now)
            check_arrays(parameters if kept else {}, best)
            restore_optimizer(stage.optimizer, stage.names, moments)
        except ValueError as error:
            raise damaged(self.path, str(error)) from None
        with torch.no_grad():
            for name, parameter in zip(stage.names, stage.parameters, strict=True):
                parameter.copy_(now[name])
        self.best = now if self._is_best(progress) else best

    def give_best(self, module: nn.Module) -> None:
        """Copy the parameters of the best epoch into a module that has them by these names."""
        with torch.no_grad():
            for name, values in self.best.items():
                module.get_parameter(name).copy_(values)


def _under(kind: str, arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(kind): values for name, values in arrays.items() if name.startswith(kind)}


def run_stage(
    stage: Stage,
    progress: Progress,
    epochs: int,
    patience: int,
    keeper: Keeper,
    reports: Reports,
    more: dict[str, Tensor],
) -> None:
    """Train a stage to its end, from wherever `progress` stands in it; the best epoch's parameters are `keeper.best`.

    Raises:
        TrainingStopped: somebody asked for it.
        ValueError: a loss became NaN or infinite.
        OSError: a checkpoint could not be written; the one before survives.
    """
    while not progress.ended(epochs, patience):
        _run_epoch(stage, progress, keeper, reports, more)
        row = progress.history[-1]
        if best_epoch(progress.history) is row:
            keeper.best = {
                name: values.detach().clone() for name, values in zip(stage.names, stage.parameters, strict=True)
            }
        keeper.save(stage, progress, more)
        if reports.epoch is not None:
            left = 0 if progress.ended(epochs, patience) else epochs - progress.done
            reports.epoch(row, row.seconds * left)


def _run_epoch(stage: Stage, progress: Progress, keeper: Keeper, reports: Reports, more: dict[str, Tensor]) -> None:
    """The steps that are left of an epoch, and its row in the history."""
    group, count = keeper.group, stage.count()
    began = time.perf_counter() - progress.seconds
    with contextlib.closing(stage.steps(progress.epoch, progress.step)) as steps:
        for step in steps:
            said = [bool(reports.stop and reports.stop()), not step.total.isfinite()]
            if group.size > 1:
                said = group.total(torch.tensor(said, dtype=torch.int32, device=step.total.device)).tolist()
            if said[BROKEN]:
                _refuse(stage, progress, keeper, f"step {progress.step + 1} of {count}")
            if said[STOP]:
                progress.seconds = time.perf_counter() - began
                progress.loss = _summed(progress.loss, stage, group)
                keeper.save(stage, progress, more)
                raise TrainingStopped(
                    f"stopped in epoch {progress.epoch}, after step {progress.step} of {count}, and all of it is in"
                    f" {keeper.path}; give the same command with --resume to go on"
                )
            for parameters in stage.optimizer.param_groups:
                parameters["lr"] = stage.rate_at(progress.done * count + progress.step)
            stage.optimizer.zero_grad()
            step.loss.backward()  # type: ignore[no-untyped-call]
            stage.optimizer.step()
            progress.step += 1
            progress.loss += float(step.total)
            progress.rows += step.rows
            if reports.steps is not None:
                reports.steps(progress.step, count)
    progress.loss = _summed(progress.loss, stage, group)
    val_loss, score = stage.judge()
    if group.size > 1:  # all go on, or end, by the same numbers, were their machines to round otherwise
        device = stage.parameters[0].device
        figures = torch.tensor([val_loss, score], dtype=torch.float64, device=device)
        val_loss, score = group.from_first(figures).tolist()
    if not math.isfinite(val_loss):
        _refuse(stage, progress, keeper, "judging the validation pictures")
    rate = stage.optimizer.param_groups[0]["lr"]
    seconds = time.perf_counter() - began
    train_loss = progress.loss / progress.rows
    figures_of = (None, rate, seconds, score) if stage.several else (score, rate, seconds)
    progress.history.append(EpochRow(stage.number, progress.epoch, train_loss, val_loss, *figures_of))
    progress.step, progress.loss, progress.rows, progress.seconds = 0, 0.0, 0, 0.0


def _summed(loss: float, stage: Stage, group: Group) -> float:
    """The loss of all processes, where each has rows of its own."""
    if group.size == 1 or not stage.shared:
        return loss
    device = stage.parameters[0].device
    return float(group.total(torch.tensor(loss, dtype=torch.float64, device=device)))


def _refuse(stage: Stage, progress: Progress, keeper: Keeper, place: str) -> None:
    """Raise ValueError for a loss that is no number."""
    rate = stage.rate
    option = "--head-rate" if stage.number == 1 else "--rate"
    kept = f", and --resume to go on from epoch {progress.epoch - 1}, kept in {keeper.path}" if progress.history else ""
    raise ValueError(
        f"the loss is NaN or infinite in epoch {progress.epoch}, at {place} (stage {stage.number}, learning rate"
        f" {rate:g}); give a lower rate, such as {option} {rate / 10:g}{kept}"
    )

"""The training loop with callbacks, early stopping, checkpoints and the history of epochs."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import InitVar, asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from convnets_torch import files
from convnets_torch.files import open_own, replacing
from convnets_torch.images.finding import few
from convnets_torch.images.remote import is_remote
from convnets_torch.images.stores import BLOCK, Folder, local_path, parts_of
from convnets_torch.options import FormerAttribute, former_names, renamed
from convnets_torch.safetensors_io import array_bytes, arrays_of_opened, write_arrays
from convnets_torch.text import printable
from convnets_torch.training.distributed import Group
from convnets_torch.training.stages import LayerRow, Stage
from convnets_torch.visualization import charts
from convnets_torch.visualization.charts import Line
from convnets_torch.visualization.overlays import CLASS_COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from convnets_torch.training.features import Features, LeakedPicture

MEASURES = ("val_accuracy", "val_mean_average_precision")  # metrics of an epoch; one of them is None
STOP, BROKEN = 0, 1  # indices of the flags that processes exchange before each step


class TrainingStopped(Exception):
    """Training was stopped on request, after writing a checkpoint; the message says how to continue."""


@dataclass
class TrainingProgress:
    """Progress of a training; together with the arrays of a checkpoint, all that is needed to resume.

    Attributes:
        stage: current stage, 1 or 2.
        step: finished steps of the current epoch.
        loss: sum over the rows of these steps.
        rows: number of these rows.
        seconds: time that these steps took.
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
        """Number of the current epoch, from 1."""
        return len(self.history) + 1

    @property
    def done(self) -> int:
        """Number of finished epochs of this stage."""
        return sum(row.stage == self.stage for row in self.history)

    @property
    def waited(self) -> int:
        """Epochs of this stage without improvement over the best epoch of both stages."""
        return min(self.done, len(self.history) - best_epoch(self.history).epoch) if self.history else 0

    def ended(self, epochs: int, patience: int) -> bool:
        """Whether this stage has reached its maximum of `epochs` or run out of patience."""
        return self.done >= epochs or (patience > 0 and self.waited >= patience)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingProgress:
        """The inverse of `asdict`; also reads rows of version 0.1, which called `lr` `rate`.

        Raises:
            KeyError, TypeError, AttributeError: fields are missing or unknown.
            ValueError: the values are inconsistent.
        """
        rows = [{FORMER_FIELDS.get(name, name): value for name, value in row.items()} for row in values["history"]]
        found = cls(**{**values, "history": [EpochRow(**row) for row in rows]})
        found._check()
        return found

    def _check(self) -> None:
        """Raise ValueError for values that no training writes, or that would keep one from ending."""
        for record in (self, *self.history):
            for name, value in vars(record).items():
                kinds = (int,) if name in ("stage", "step", "rows", "epoch") else (int, float)
                least = -math.inf if name.endswith("loss") else 0  # rounding may bring a loss below 0
                if name == "history" or (name in MEASURES and value is None):
                    continue
                if type(value) not in kinds or not math.isfinite(value) or value < least:
                    raise ValueError(f"{name} is {value!r:.80}")
        if self.stage not in (1, 2) or self.step > self.rows or bool(self.step) != bool(self.rows):
            raise ValueError(f"it is in stage {self.stage}, after step {self.step} and {self.rows} rows")
        if any(sum(getattr(row, name) is None for name in MEASURES) != 1 for row in self.history):
            raise ValueError("its epochs do not have one metric each")
        if len({row.measure for row in self.history}) > 1:
            raise ValueError("its epochs mix accuracies and mean average precisions")
        for number, row in enumerate(self.history, start=1):
            if row.epoch != number or row.score > 1:
                raise ValueError(f"epoch {number} is number {row.epoch}, of {row.words} {row.score}")
        stages = [row.stage for row in self.history]
        if stages != sorted(stages) or not {*stages} <= {1, self.stage} or (self.stage == 2 and 1 not in stages):
            raise ValueError("its epochs are not in the order of the stages")


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """Callbacks of `finetune`; each may be None.

    Attributes:
        pictures: called with the number of pictures whose features are ready, and the total.
        found: called once before training, with the features and the leaks.
        layers: called once after stage one, with the table of trained layers.
        epoch: called after each epoch with its row and the estimated seconds left in the stage.
        steps: called with the number of finished steps of the epoch, and the total.
        stop: called before each step, and after each batch of features; returns whether to stop.
    """

    pictures: Callable[[int, int], None] | None = None
    found: Callable[[Features, list[LeakedPicture]], None] | None = None
    layers: Callable[[list[LayerRow]], None] | None = None
    epoch: Callable[[EpochRow, float], None] | None = None
    steps: Callable[[int, int], None] | None = None
    stop: Callable[[], bool] | None = None
    reports: InitVar[Callbacks | None] = None  # the former place of the last three

    def __post_init__(self, reports: Callbacks | None) -> None:
        for name in ("epoch", "steps", "stop") if reports else ():
            object.__setattr__(self, name, getattr(reports, name))


class Checkpointer:
    """Writes checkpoints and keeps the parameters of the best epoch.

    Attributes:
        best: name -> values at the best epoch of the current stage; empty while an epoch of an earlier stage is best.
    """

    def __init__(self, path: Path | str, identity: dict[str, Any], group: Group) -> None:
        self.path, self.group = path, group
        self._identity = identity
        self.best: dict[str, Tensor] = {}

    def save(self, stage: Stage, progress: TrainingProgress, more: dict[str, Tensor]) -> None:
        """Write a checkpoint; `more` are arrays of earlier stages needed for the result."""
        if self.group.first:
            arrays: dict[str, Tensor] = {
                f"now.{name}": values for name, values in zip(stage.names, stage.parameters, strict=True)
            }
            if not self._is_best(progress):
                arrays |= {f"best.{name}": values for name, values in self.best.items()}
            moments = optimizer_arrays(stage.optimizer, stage.names)
            arrays |= {f"optimizer.{name}": values for name, values in moments.items()}
            arrays |= {f"before.{name}": values for name, values in more.items()}
            save_checkpoint(self.path, arrays, {**self._identity, "progress": asdict(progress)})

    @staticmethod
    def _is_best(progress: TrainingProgress) -> bool:
        """Whether the current parameters are those of the best epoch, so that a checkpoint holds them only once."""
        return progress.step == 0 and bool(progress.history) and best_epoch(progress.history) is progress.history[-1]

    def restore(self, stage: Stage, progress: TrainingProgress, arrays: dict[str, Tensor]) -> None:
        """Restore a stage from a checkpoint.

        Raises:
            ValueError: the checkpoint does not fit this stage.
        """
        now, best, moments = (_with_prefix(kind, arrays) for kind in ("now.", "best.", "optimizer."))
        parameters = dict(zip(stage.names, stage.parameters, strict=True))
        kept = progress.history and best_epoch(progress.history).stage == stage.number and not self._is_best(progress)
        try:
            if progress.step >= stage.count():
                raise ValueError(f"it is after step {progress.step} of {stage.count()}")
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
        """Copy the parameters of the best epoch into a module with the same parameter names."""
        with torch.no_grad():
            for name, values in self.best.items():
                module.get_parameter(name).copy_(values)


def _with_prefix(kind: str, arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(kind): values for name, values in arrays.items() if name.startswith(kind)}


def run_stage(
    stage: Stage,
    progress: TrainingProgress,
    epochs: int,
    patience: int,
    checkpointer: Checkpointer,
    callbacks: Callbacks,
    more: dict[str, Tensor],
) -> None:
    """Run the rest of a stage, from `progress` on; the best epoch's parameters are in `checkpointer.best`.

    Raises:
        TrainingStopped: `callbacks.stop` returned True.
        ValueError: a loss became NaN or infinite.
        OSError: a checkpoint could not be written; the previous one is kept.
    """
    while not progress.ended(epochs, patience):
        _run_epoch(stage, progress, checkpointer, callbacks, more)
        row = progress.history[-1]
        if best_epoch(progress.history) is row:
            checkpointer.best = {
                name: values.detach().clone() for name, values in zip(stage.names, stage.parameters, strict=True)
            }
        checkpointer.save(stage, progress, more)
        if callbacks.epoch is not None:
            left = 0 if progress.ended(epochs, patience) else epochs - progress.done
            callbacks.epoch(row, row.seconds * left)


def _run_epoch(
    stage: Stage, progress: TrainingProgress, checkpointer: Checkpointer, callbacks: Callbacks, more: dict[str, Tensor]
) -> None:
    """Run the remaining steps of an epoch, validate, and append its row to the history."""
    group, count = checkpointer.group, stage.count()
    began = time.perf_counter() - progress.seconds
    with contextlib.closing(stage.steps(progress.epoch, progress.step)) as steps:
        for step in steps:
            flags = [bool(callbacks.stop and callbacks.stop()), not step.total.isfinite()]
            if group.size > 1:
                flags = group.total(torch.tensor(flags, dtype=torch.int32, device=step.total.device)).tolist()
            if flags[BROKEN]:
                _raise_not_finite(stage, progress, checkpointer, f"step {progress.step + 1} of {count}")
            if flags[STOP]:
                progress.seconds = time.perf_counter() - began
                progress.loss = _total_loss(progress.loss, stage, group)
                checkpointer.save(stage, progress, more)
                raise TrainingStopped(
                    f"stopped in epoch {progress.epoch}, after step {progress.step} of {count}; the checkpoint is"
                    f" {checkpointer.path}, run the same command with --resume to continue"
                )
            for parameters in stage.optimizer.param_groups:
                parameters["lr"] = stage.lr_at(progress.done * count + progress.step)
            stage.optimizer.zero_grad()
            step.loss.backward()  # type: ignore[no-untyped-call]
            stage.optimizer.step()
            progress.step += 1
            progress.loss += float(step.total)
            progress.rows += step.rows
            if callbacks.steps is not None:
                callbacks.steps(progress.step, count)
    progress.loss = _total_loss(progress.loss, stage, group)
    val_loss, score = stage.validate()
    if group.size > 1:  # rounding may differ between machines, but all processes must take the same decisions
        device = stage.parameters[0].device
        figures = torch.tensor([val_loss, score], dtype=torch.float64, device=device)
        val_loss, score = group.from_first(figures).tolist()
    if not math.isfinite(val_loss):
        _raise_not_finite(stage, progress, checkpointer, "the validation pictures")
    lr = stage.optimizer.param_groups[0]["lr"]
    seconds = time.perf_counter() - began
    train_loss = progress.loss / progress.rows
    figures_of = (None, lr, seconds, score) if stage.several else (score, lr, seconds)
    progress.history.append(EpochRow(stage.number, progress.epoch, train_loss, val_loss, *figures_of))
    progress.step, progress.loss, progress.rows, progress.seconds = 0, 0.0, 0, 0.0


def _total_loss(loss: float, stage: Stage, group: Group) -> float:
    """Sum the loss over all processes, if each has its own rows."""
    if group.size == 1 or not stage.shared:
        return loss
    device = stage.parameters[0].device
    return float(group.total(torch.tensor(loss, dtype=torch.float64, device=device)))


def _raise_not_finite(stage: Stage, progress: TrainingProgress, checkpointer: Checkpointer, place: str) -> None:
    """Raise ValueError for a loss that is NaN or infinite."""
    option = "--head-lr" if stage.number == 1 else "--lr"
    kept = (
        f", and --resume to continue from epoch {progress.epoch - 1} in {checkpointer.path}" if progress.history else ""
    )
    raise ValueError(
        f"the loss is NaN or infinite in epoch {progress.epoch}, at {place} (stage {stage.number}, learning rate"
        f" {stage.lr:g}); give a lower rate, such as {option} {stage.lr / 10:g}{kept if progress.history else ''}"
    )


KEY = "training"  # of the state in the metadata of the safetensors header
SCHEMA = 1
LOOKS = (0.1, 0.5, 1.0, 2.0, 0.0)  # seconds after a look for a file that another machine has just written
MOST_STATE = 1 << 25  # maximum bytes of the state: enough for 100,000 epochs


def save_checkpoint(path: str | os.PathLike[str], arrays: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write a checkpoint, atomically replacing the previous one.

    Args:
        path: of a file, or the address of one in an object store.
        arrays: on any device.
        state: JSON-serialisable data.

    Raises:
        OSError: it cannot be written; the previous one is kept.
    """
    metadata = {KEY: json.dumps({**state, "schema": SCHEMA})}
    if is_remote(str(path)):
        folder, name = _stored(path)
        content = array_bytes(arrays, metadata)
        folder.write(name, lambda file: file.write(content))
    else:
        write_arrays(path, arrays, metadata)


def _stored(path: str | os.PathLike[str]) -> tuple[Folder, str]:
    """The folder of a checkpoint, and its name there."""
    if not is_remote(str(path)):
        return Folder(Path(path).parent), Path(path).name
    address, mark, query = str(path).partition("?")
    folder, _, name = address.rpartition("/")
    return Folder(f"{folder}{mark}{query}"), name


def checkpoint_in(folder: str | os.PathLike[str], name: str) -> Path | str:
    """Return the path of a checkpoint in a folder, or its address in an object store.

    >>> checkpoint_in("s3://bucket/runs/?region=eu", "mine.safetensors")
    's3://bucket/runs/mine.safetensors?region=eu'
    """
    if not is_remote(str(folder)):
        return local_path(folder) / name
    parts_of(str(folder), query=True)  # raises if it holds a password
    address, mark, query = str(folder).partition("?")
    return f"{address.rstrip('/')}/{name}{mark}{query}"


def has_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Return whether there is a checkpoint; OSError if its store does not answer."""
    folder, name = _stored(path)
    return folder.exists(name)


def remove_checkpoint(path: str | os.PathLike[str]) -> None:
    """Remove a checkpoint, if it is there."""
    folder, name = _stored(path)
    folder.remove(name)


def check_shared(path: str | os.PathLike[str], group: Group, device: torch.device) -> None:
    """Check that all processes of a group see the folder of a checkpoint, by a file that rank 0 writes there.

    Raises:
        ValueError: one does not, as on another machine whose folder of this name is its own.
        OSError: nothing can be written there.
    """
    if group.size == 1:
        return
    folder, name = _stored(path)
    probe = f"{name}.{group.texts(secrets.token_hex(8), device)[0]}.tmp"
    try:
        if group.first:
            folder.write(probe, lambda file: file.write(b"seen by all processes?"))
        group.wait()
        sees = any(folder.exists(probe) or time.sleep(wait) for wait in LOOKS)  # type: ignore[func-returns-value]
        seen = [json.loads(text) for text in group.texts(json.dumps([socket.gethostname(), sees]), device)]
    finally:
        if group.first:
            folder.remove(probe)
    if blind := [f"process {rank} on {printable(host)}" for rank, (host, sees) in enumerate(seen) if not sees]:
        raise ValueError(
            f"{few(blind)} cannot see the folder {folder}, in which process 0 writes the checkpoint, so that a restart"
            " would find another one or none; give a folder or an object store that all machines share (checkpoint,"
            " --checkpoint)"
        )


def read_checkpoint(
    path: str | os.PathLike[str], *, max_bytes: int | None = None
) -> tuple[dict[str, Tensor], dict[str, Any], TrainingProgress]:
    """Read the arrays, on the CPU, the state that `save_checkpoint` wrote, and the progress in it.

    Args:
        path: of a file that an earlier run of this user wrote, or the address of one in an object store.
        max_bytes: reject a larger file.

    Raises:
        OSError: the file does not exist, is a link or another user's, or cannot be read.
        ValueError: the file is not a checkpoint, is damaged, or is too large or of another version.
    """
    with _opened(path) as opened:
        size = os.fstat(opened.fileno()).st_size
        if max_bytes is not None and size > max_bytes:
            raise damaged(path, f"it has {size:,} bytes, but this training needs at most {max_bytes:,}")
        try:
            arrays, metadata = arrays_of_opened(opened, "pt")
        except ValueError as error:
            raise ValueError(f"{path} is not a training checkpoint ({error}); remove it to start again") from None
    text = metadata.get(KEY)
    if text is None:
        raise ValueError(f"{path} is not a training checkpoint; remove it, or name another output")
    try:
        state: Any = files.loads(text) if len(text) <= MOST_STATE else None
    except ValueError:
        state = None
    try:
        if state["schema"] != SCHEMA or not isinstance(state["settings"], dict):
            raise TypeError
        return arrays, state, TrainingProgress.from_dict(state["progress"])
    except (KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{path} was written by another version; remove it to start again, or finish with that version"
        ) from None
    except ValueError as error:
        raise damaged(path, str(error)) from None


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a checkpoint as a file, of an object store as a copy."""
    if not is_remote(str(path)):
        with open_own(Path(path)) as opened:
            yield opened
        return
    folder, name = _stored(path)
    with tempfile.TemporaryFile() as copy, folder.open(name) as found:
        shutil.copyfileobj(found, copy, BLOCK)
        copy.seek(0)
        yield copy


def damaged(path: str | os.PathLike[str], reason: str) -> ValueError:
    """Return the error for a damaged checkpoint."""
    return ValueError(f"{path} is damaged ({reason}); remove it to start again")


def check_arrays(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise ValueError if arrays do not have the expected names, shapes and dtypes, or have values that are not finite.

    >>> import torch
    >>> check_arrays({"bias": torch.zeros(3)}, {"bias": torch.ones(3)})
    >>> check_arrays({"bias": torch.zeros(3)}, {"bias": torch.ones(2)})
    Traceback (most recent call last):
    ...
    ValueError: bias is (2,) torch.float32, not (3,) torch.float32
    """
    if wanted.keys() != found.keys():
        raise ValueError(f"the arrays {', '.join(sorted(wanted.keys() ^ found.keys()))[:200]} are missing or unknown")
    for name, values in found.items():
        shape, kind = tuple(wanted[name].shape), wanted[name].dtype
        if tuple(values.shape) != shape or values.dtype != kind:
            raise ValueError(f"{name} is {tuple(values.shape)} {values.dtype}, not {shape} {kind}")
        if not values.isfinite().all():
            raise ValueError(f"{name} has values that are NaN or infinite")


def optimizer_arrays(optimizer: Optimizer, names: list[str]) -> dict[str, Tensor]:
    """Return the tensors of an optimizer's state, by the names of its parameters, given in order."""
    [group] = optimizer.param_groups
    return {
        f"{name}.{kind}": values
        for name, parameter in zip(names, group["params"], strict=True)
        for kind, values in optimizer.state.get(parameter, {}).items()
        if isinstance(values, Tensor)
    }


def restore_optimizer(optimizer: Optimizer, names: list[str], arrays: Mapping[str, Tensor]) -> None:
    """Restore the state that `optimizer_arrays` returned for an optimizer of the same kind.

    Raises:
        ValueError: the arrays are not the state of such an optimizer.
    """
    [group] = optimizer.param_groups
    kinds = ("momentum_buffer",) if isinstance(optimizer, SGD) else ("step", "exp_avg", "exp_avg_sq")
    parameters = dict(zip(names, group["params"], strict=True))
    if arrays:  # empty before the first step, and without momentum
        one = arrays.get(f"{names[0]}.step", next(iter(parameters.values()))).new_zeros(())
        check_arrays(
            {
                f"{name}.{kind}": one if kind == "step" else parameter
                for name, parameter in parameters.items()
                for kind in kinds
            },
            arrays,
        )
    for key, values in arrays.items():
        name, _, kind = key.rpartition(".")
        if kind in ("step", "exp_avg_sq") and not (values >= 0).all():
            raise ValueError(f"{key} has values below 0")
        device = values.device if kind == "step" else parameters[name].device  # step counts stay on the CPU
        optimizer.state[parameters[name]][kind] = values.to(device)


TRAIN, VAL = CLASS_COLORS[4], CLASS_COLORS[5]
WIDE = 30.0  # ratio of the largest to the smallest loss above which the axis is logarithmic


@dataclass(frozen=True)
class EpochRow:
    """One finished epoch.

    Attributes:
        stage: 1 trains the last layer on cached features, 2 the unfrozen layers.
        epoch: 1, 2, ... over both stages.
        train_loss: mean over the training pictures, each with the parameters before its step.
        val_loss: mean over the validation pictures, after the epoch.
        val_accuracy: top-1 accuracy on the validation pictures, 0 to 1; None for multi-label data.
        lr: learning rate of the last step.
        seconds: duration of the epoch, including validation.
        val_mean_average_precision: on the validation pictures, 0 to 1, for multi-label data; otherwise None.
    """

    stage: int
    epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float | None
    lr: float
    seconds: float
    val_mean_average_precision: float | None = None
    rate = FormerAttribute("lr")

    @property
    def measure(self) -> str:
        """Name of the metric that epochs are compared by: the one that is not None."""
        return "val_mean_average_precision" if self.val_accuracy is None else "val_accuracy"

    @property
    def score(self) -> float:
        """Value of that metric."""
        return float(getattr(self, self.measure))

    @property
    def words(self) -> str:
        """Name of that metric in words."""
        return self.measure.removeprefix("val_").replace("_", " ")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the metric that is None."""
        names = ("stage", "epoch", "train_loss", "val_loss", self.measure, "lr", "seconds")
        return {name: getattr(self, name) for name in names}


FORMER_FIELDS = {"rate": "lr"}
EpochRow.__init__ = renamed(**FORMER_FIELDS)(EpochRow.__init__)  # type: ignore[method-assign]


def best_epoch(rows: Sequence[EpochRow]) -> EpochRow:
    """Return the epoch with the best validation metric; ties go to the lowest validation loss, then the earliest.

    >>> rows = [EpochRow(1, 1, 1.2, 1.1, 0.8, 0.1, 2), EpochRow(2, 2, 0.9, 1.0, 0.8, 0.1, 9)]
    >>> best_epoch(rows).epoch
    2
    """
    return min(rows, key=lambda row: (-row.score, row.val_loss, row.epoch))


def save_history_csv(rows: Sequence[EpochRow], path: str | os.PathLike[str]) -> None:
    """Write a CSV row for each epoch, atomically; columns are the fields of `EpochRow` that are not None.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(rows[0].to_dict())
        table.writerows(row.to_dict().values() for row in rows)


def draw_history(rows: Sequence[EpochRow], *, axes: Sequence[Axes] | None = None) -> list[Axes]:
    """Plot the losses by epoch, and below them the accuracy or mean average precision.

    The best epoch and the boundary of the stages are marked. The axis of the losses is logarithmic if they differ by
    more than a factor of 30.

    Args:
        rows: one or more epochs, in order.
        axes: two, for the losses and for the metric; by default those of a new figure.

    Raises:
        ValueError: there are no rows, or a loss or metric is NaN or infinite.

    >>> rows = [EpochRow(1, 1, 1.2, 1.1, 0.8, 0.1, 2), EpochRow(2, 2, 0.9, 1.0, 0.9, 0.1, 9)]
    >>> losses, accuracy = draw_history(rows)
    >>> [line.get_label() for line in losses.get_lines()[:2]]
    ['training, 0.9 at last', 'validation, 1 at last']
    """
    if not rows:
        raise ValueError("there is no finished epoch to plot; train for at least one")
    for row in rows:
        for name in ("train_loss", "val_loss", row.measure):
            if not math.isfinite(value := getattr(row, name)):
                raise ValueError(f"epoch {row.epoch} has a {name} of {value}; plot the epochs before it")
    best, last = best_epoch(rows), rows[-1]
    train, val, scores = ([getattr(row, name) for row in rows] for name in ("train_loss", "val_loss", "score"))
    lowest, highest = min(*train, *val), max(*train, *val)
    wide = lowest > 0 and highest / lowest > WIDE
    first = sum(row.stage == 1 for row in rows)
    number = f"{len(rows)} epochs, {first} of the last layer alone" if len(rows) > 1 else "1 epoch"
    above, below = axes or charts.new_axes(rows=2, height=880)
    epochs = [row.epoch for row in rows]
    charts.draw_lines(
        [
            Line(f"training, {last.train_loss:.4g} at last", TRAIN, epochs, train),
            Line(f"validation, {last.val_loss:.4g} at last", VAL, epochs, val),
        ],
        ("Loss, by epoch", number + (", on a logarithmic axis" if wide else "")),
        ax=above,
    )
    if wide:
        charts.set_log_axis(above, lowest, highest)
    else:
        above.set_ylim(0, highest * 1.05 or 1)
    charts.draw_lines(
        [Line(f"validation, {last.score:.4f} at last", VAL, epochs, scores)],
        (
            f"{best.words.capitalize()} on the validation pictures, by epoch",
            f"best: {best.score:.4f} at epoch {best.epoch}, marked by a ring",
        ),
        ax=below,
    )
    below.set_ylim(max(0.0, math.floor(min(scores) * 10 - 1e-9) / 10), 1)
    for ax, score in ((above, best.val_loss), (below, best.score)):
        charts.mark_best(ax, best.epoch, score)
        charts.mark_stages(ax, epochs, [row.stage for row in rows])
    return [above, below]


@contextmanager
def tensorboard_log(folder: str | os.PathLike[str], first_epoch: int = 1) -> Iterator[Callable[[EpochRow], None]]:
    """Provide a function that logs an epoch to TensorBoard, and flushes it to disk before it returns.

    Args:
        folder: created if missing.
        first_epoch: the first epoch that will be logged. Entries of an earlier run for this epoch and later ones are
            hidden, so that a resumed run does not show an epoch twice.

    Raises:
        ImportError: tensorboard is not installed.
        OSError: the folder cannot be written to.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError(
            "events for TensorBoard need tensorboard: pip install 'convnets-torch[tensorboard]'"
        ) from None
    writer = SummaryWriter(str(folder), purge_step=first_epoch)

    def log(row: EpochRow) -> None:
        for name, value in row.to_dict().items():
            if name != "epoch":
                writer.add_scalar(name, value, row.epoch)
        writer.flush()

    try:
        yield log
    finally:
        writer.close()


if not TYPE_CHECKING:
    __getattr__ = former_names(__name__, Reports="Callbacks")

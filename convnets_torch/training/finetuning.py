"""Transfer learning: fine-tune a pretrained network for new classes.

Stage one trains a new last layer on cached features. Stage two unfreezes the layers from a chosen one on, with a small
learning rate and augmented pictures. So the large gradients of an untrained last layer never reach them.

Source: Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution, arXiv:2202.10054 (the two
stages).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from convnets_torch.card import with_learnt
from convnets_torch.embeddings.cache import fingerprint
from convnets_torch.embeddings.duplicates import find_leaks
from convnets_torch.files import check_kept, check_writable
from convnets_torch.images.decoding import Reading, ReadingKeywords
from convnets_torch.images.levels import said_levels
from convnets_torch.inference.pipeline import BATCH, ready_card
from convnets_torch.networks import Network
from convnets_torch.networks.network import as_network
from convnets_torch.options import checked, former_names, renamed, shows
from convnets_torch.training.datasets import Dataset, ViewedPictures, check_batch
from convnets_torch.training.distributed import joined
from convnets_torch.training.features import Features, LeakedPicture, cached_features
from convnets_torch.training.running import (
    Callbacks,
    Checkpointer,
    EpochRow,
    TrainingProgress,
    TrainingStopped,
    best_epoch,
    check_arrays,
    check_shared,
    checkpoint_in,
    damaged,
    draw_history,
    has_checkpoint,
    read_checkpoint,
    remove_checkpoint,
    run_stage,
    save_history_csv,
)
from convnets_torch.training.settings import Settings
from convnets_torch.training.stages import HeadStage, LayersStage, own_parameters, unfrozen, what_trains
from convnets_torch.visualization import charts
from convnets_torch.weights import planned, save, with_last_layer

LEAK = 0.98  # cosine similarity from which two pictures are near-duplicates
MOST_WORKERS = 16
ARRAYS = 5  # per parameter in a checkpoint: current, at the best epoch, two of the optimizer, and after stage one
FURTHER = 1 << 27  # maximum bytes of a checkpoint beyond those, for its state and the names of arrays


class LeakError(ValueError):
    """Validation pictures are near-duplicates of training pictures.

    Attributes:
        leaks: all of them, most similar first.
    """

    def __init__(self, leaks: list[LeakedPicture], count: int) -> None:
        first = leaks[0]
        super().__init__(
            f"{len(leaks)} of {count} validation pictures are nearly the same as training pictures, so accuracy would"
            f" be too high (the nearest: {first.path} and {first.of}, similarity {first.similarity:.3f}); move or"
            " remove them, or train anyway with --allow-leaks"
        )
        self.leaks = leaks


@dataclass(frozen=True, eq=False)
class Finetuned:
    """Result of fine-tuning.

    Attributes:
        network: as saved in the file, in eval mode, with its card.
        history: finished epochs.
        best: the epoch whose parameters were kept.
        failed: errors of unusable pictures.
        leaks: validation pictures that are near-duplicates of training pictures.
    """

    network: Network
    history: tuple[EpochRow, ...]
    best: EpochRow
    failed: dict[Path, Exception]
    leaks: tuple[LeakedPicture, ...]


def checkpoint_of(output: Path) -> Path:
    """Return the path of the checkpoint for an output, unless it lies in another folder.

    >>> checkpoint_of(Path("mine.safetensors")).name
    'mine.checkpoint.safetensors'
    """
    return output.with_name(f"{output.stem}.checkpoint.safetensors")


def checkpoint_place(output: Path, folder: str | os.PathLike[str] | None) -> Path | str:
    """Return the path or address of the checkpoint for an output, in a folder or store; None is beside the output."""
    beside = checkpoint_of(output)
    return beside if folder is None else checkpoint_in(folder, beside.name)


def outputs_of(output: Path) -> tuple[Path, Path]:
    """Return the paths of the history's table and chart, beside the output.

    >>> [path.name for path in outputs_of(Path("mine.safetensors"))]
    ['mine.history.csv', 'mine.history.png']
    """
    return output.with_name(f"{output.stem}.history.csv"), output.with_name(f"{output.stem}.history.png")


@renamed(watch="callbacks")
@shows(ReadingKeywords, Reading)
def finetune(
    network: Network,
    dataset: Dataset,
    output: Path,
    settings: Settings | None = None,
    *,
    started_from: str = "",
    resume: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    allow_leaks: bool = False,
    leak_threshold: float = LEAK,
    workers: int | None = None,
    cache: Path | None = None,
    callbacks: Callbacks | None = None,
    **reading: Unpack[ReadingKeywords],
) -> Finetuned:
    """Fine-tune a network for the classes of a dataset, and save the best epoch's parameters with a card.

    On one machine, the same call with the same features gives the same file; the last bits of the features depend on
    how many of them were already cached. A checkpoint is written beside the output after each epoch and removed when
    the output is complete. With `torchrun`, on one machine or several, every process calls this function on its own
    device; rank 0 writes, and the others must see the checkpoint.

    Args:
        network: in eval mode with its card, with or without a head, on the device to train on. It is not modified.
        dataset: as `find_dataset` returns it.
        output: the safetensors file to write; the history is written beside it as .history.csv and .history.png.
        settings: by default `Settings()`.
        started_from: name of the network's file, recorded in the card.
        resume: continue from the checkpoint, if any, to the same result as an uninterrupted run.
        checkpoint: folder of the checkpoint, or an address such as `s3://bucket/run` that `pyarrow.fs` or fsspec takes;
            by default that of the output.
        allow_leaks: accept validation pictures that are near-duplicates of training pictures.
        leak_threshold: cosine similarity from which pictures are near-duplicates; above 0, up to 1.
        workers: processes that load and augment pictures; by default none on the CPU, else one per core, up to 16.
        cache: folder of the feature cache, as in `embed_classes`.
        callbacks: called while training.
        reading: as for `read_picture`.

    Raises:
        LeakError: validation pictures are near-duplicates of training pictures.
        TrainingStopped: `callbacks.stop` returned True; a checkpoint, or the features so far, were saved.
        ValueError: there are fewer pictures than a batch, or too few usable ones; a loss became NaN; the checkpoint is
            of another run, exists without `resume`, or is not seen by all processes; or the network has no card, is in
            training mode or was prepared.
        OSError: a file cannot be written; checkpoint and output keep their previous content.
        ConnectionError: another process was lost.
    """
    settings, callbacks = settings or Settings(), callbacks or Callbacks()
    how = Reading(**checked(reading, ReadingKeywords))
    levels = said_levels(how.depth, how.background)
    if dataset.sets and settings.activation != "sigmoid":
        raise ValueError(
            "the pictures have several labels, but softmax is for mutually exclusive classes; use sigmoid:"
            " --activation sigmoid, Settings(activation='sigmoid') in Python"
        )
    network = as_network(network)
    card = ready_card(network)
    empty = planned(card, len(dataset.classes))
    empty.card = card
    names = unfrozen(empty, settings.unfreeze if settings.epochs else "head")
    check_batch(dataset, settings.batch)
    settings.augmentation.check_classes(dataset.classes)
    place, written = checkpoint_place(output, checkpoint), outputs_of(output)
    device = next(network.parameters()).device
    with joined(device) as group, deterministic(device):
        for path in (output, *written, *([place] if isinstance(place, Path) else [])) if group.first else ():
            check_writable(path)
            check_kept(path, (picture for picture, _ in (*dataset.train, *dataset.val)))
        if group.first and not resume and has_checkpoint(place):
            raise ValueError(
                f"{place} is the checkpoint of an unfinished training; continue it with --resume, or remove it"
            )
        check_shared(place, group, device)
        features = cached_features(network, dataset, settings, group, cache, _feature_callback(callbacks), reading)
        train, val = features.train, features.val
        if len(train.paths) < settings.batch:
            raise ValueError(
                f"{len(train.paths)} training pictures are usable, fewer than a batch of {settings.batch}; lower"
                " --batch-size"
            )
        found = find_leaks(val.features[0].numpy(), train.features[0].numpy(), leak_threshold)
        leaks = [LeakedPicture(val.paths[leak.row], train.paths[leak.of], leak.similarity) for leak in found]
        if callbacks.found is not None:
            callbacks.found(features, leaks)
        if leaks and not allow_leaks:
            raise LeakError(leaks, len(val.paths))
        identity = {
            "settings": settings.to_dict(),
            "network": fingerprint(network),
            "data": _data_fingerprint(dataset, features, levels),
        }
        checkpointer = Checkpointer(place, identity, group)
        arrays: dict[str, Tensor] = {}
        progress = TrainingProgress()
        if has_checkpoint(place):
            most = ARRAYS * sum(values.numel() * values.element_size() for values in empty.parameters()) + FURTHER
            arrays, progress = _read_checkpoint(place, identity, settings, most)
        if len(set(group.texts(json.dumps(asdict(progress)), device))) > 1:
            raise ValueError(
                f"the processes do not all find the same {place}; wait until the folder shows all of them the same, and"
                " run the same command again"
            )
        if not group.first:
            progress.loss = 0.0  # the loss in a checkpoint is the sum over all processes

        def with_head() -> Network:
            change = f"fine-tuned for {len(dataset.classes)} classes"
            return with_last_layer(network, *head, dataset.classes, change, activation=settings.activation)

        head = _first_stage(features, len(dataset.classes), settings, checkpointer, progress, arrays, callbacks, device)
        features = features.without_vectors()
        train, val = features.train, features.val
        tuned = with_head()
        if callbacks.layers is not None:
            callbacks.layers(what_trains(tuned, names if settings.epochs else names[-2:]))
        if settings.epochs:
            if progress.stage == 1:
                progress.stage, checkpointer.best, arrays = 2, {}, {}
            own_parameters(tuned, names)
            shown = {path: dataset.shown_as(label, settings.augmentation.no_flip) for path, label in dataset.train}
            labels = [shown[path] for path in train.paths]
            views = ViewedPictures(
                train.paths, labels, train.digests, card.preprocessing, settings.augmentation, settings.seed, how
            )
            if workers is None:  # on the CPU, the network needs all cores
                workers = 0 if device.type == "cpu" else min(MOST_WORKERS, os.cpu_count() or 1)
            stage = LayersStage(tuned, names, views, train.labels, val.paths, val.labels, settings, group, workers)
            if arrays:
                checkpointer.restore(stage, progress, arrays)
            arrays = {}  # free memory; the stage has copied what it needs
            more = dict(zip(("weight", "bias"), head, strict=True))
            run_stage(stage, progress, settings.epochs, settings.patience, checkpointer, callbacks, more)
            tuned = with_head()  # the result if the best epoch is one of stage one
            if checkpointer.best:
                own_parameters(tuned, names)
                checkpointer.give_best(tuned)
        best = best_epoch(progress.history)
        about = {
            "from": {"file": started_from, "parameters": identity["network"]},
            "settings": settings.to_dict(),
            "data": {
                "split": dataset.split, "train": len(train.paths), "val": len(val.paths),
                "several_labels": bool(dataset.sets), **levels,
            },
            "metrics": {
                "epoch": best.epoch, "stage": best.stage, best.measure: best.score, "val_loss": best.val_loss,
                "leaks": len(leaks),
            },
        }  # fmt: skip
        assert tuned.card is not None
        described = replace(tuned.card, unknown={**tuned.card.unknown, "finetuning": about})
        tuned.card = with_learnt(described, train.digests, val.digests)
        if group.first:
            save(tuned, output)
            save_history_csv(progress.history, written[0])
            if reason := charts.why_not():
                warnings.warn(f"{written[1]} is left out: {reason}", charts.ChartWarning, stacklevel=3)
                written[1].unlink(missing_ok=True)  # a chart of an earlier training would not match
            else:
                charts.save_chart(draw_history(progress.history)[0], written[1])
            remove_checkpoint(place)
        group.wait()
    return Finetuned(tuned, tuple(progress.history), best, dict(features.failed), tuple(leaks))


def _first_stage(
    features: Features,
    classes: int,
    settings: Settings,
    checkpointer: Checkpointer,
    progress: TrainingProgress,
    arrays: dict[str, Tensor],
    callbacks: Callbacks,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Run stage one, or read its result from a checkpoint of stage two; return weight and bias of the last layer."""
    train, val = features.train, features.val
    if progress.stage == 2:
        before = {name: values for name, values in arrays.items() if name.startswith("before.")}
        wanted = {
            "before.weight": torch.empty(classes, train.features.shape[-1]),
            "before.bias": torch.empty(classes),
        }
        try:
            check_arrays(wanted, before)
        except ValueError as error:
            raise damaged(checkpointer.path, str(error)) from None
        return before["before.weight"].to(device), before["before.bias"].to(device)
    stage = HeadStage(
        train.features.flatten(0, 1).to(device),
        torch.cat([train.labels] * settings.views).to(device),
        val.features[0].to(device),
        val.labels.to(device),
        classes,
        settings,
    )
    if arrays:
        checkpointer.restore(stage, progress, arrays)
    run_stage(stage, progress, settings.head_epochs, settings.patience, checkpointer, callbacks, {})
    checkpointer.give_best(stage.layer)
    weight, bias = stage.unscaled()
    return checkpointer.group.from_first(weight), checkpointer.group.from_first(bias)


def _read_checkpoint(
    checkpoint: Path | str, identity: dict[str, Any], settings: Settings, most: int
) -> tuple[dict[str, Tensor], TrainingProgress]:
    """Read a checkpoint of at most `most` bytes; raise ValueError if it is of another training."""
    arrays, state, progress = read_checkpoint(checkpoint, max_bytes=most)
    other = settings.differences(state["settings"])
    other += [
        f"another {word}"
        for key, word in (("network", "network"), ("data", "set of pictures"))
        if state.get(key) != identity[key]
    ]
    if progress.stage == 2 and not settings.epochs:  # the history would not match the parameters
        other.append(f"epochs {state['settings'].get('epochs')}, now 0")
    if other:
        raise ValueError(
            f"{checkpoint} is of another training ({'; '.join(other)[:1000]}); give its own options to continue it, or"
            " remove it to start again"
        )
    return arrays, progress


def _feature_callback(callbacks: Callbacks) -> Callable[[int, int], None]:
    """Return a callback that reports progress and stops on request, between batches, on which last bits depend."""

    def tell(done: int, count: int) -> None:
        if callbacks.pictures is not None:
            callbacks.pictures(done, count)
        if (done % BATCH == 0 or done == count) and callbacks.stop is not None and callbacks.stop():
            raise TrainingStopped(
                f"stopped after the features of {done} of {count} pictures, which are cached; run the same command to"
                " continue"
            )

    return tell


def _data_fingerprint(dataset: Dataset, features: Features, levels: dict[str, Any]) -> str:
    """Hash of classes, contents, labels and split of the usable pictures (not of file names), and of their levels."""
    digest = hashlib.sha256(json.dumps(dataset.classes).encode())
    if levels:
        digest.update(json.dumps(levels).encode())
    for side in (features.train, features.val):
        labels = side.labels if side.labels.dim() == 1 else side.labels.nonzero()
        digest.update(json.dumps([side.digests, labels.tolist()]).encode())
    return digest.hexdigest()


@contextlib.contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Make operations deterministic.

    On the CPU they already are. On CUDA this is a switch for the whole process, which imports PyTorch's compiler and
    takes 2 s.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    switches: Any = torch.utils.deterministic
    filled = switches.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    switches.fill_uninitialized_memory = False  # filling costs time and is not needed here
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        switches.fill_uninitialized_memory = filled


if not TYPE_CHECKING:
    __getattr__ = former_names(__name__, Watch="Callbacks")

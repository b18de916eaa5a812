"""Transfer learning: a network for classes of one's own, from the weights of another.

Stage one trains a new last layer on features that are computed once. Stage two unfreezes the layers behind a chosen
one, at a small rate and on augmented pictures: the large gradients of a layer that knows nothing never reach them.

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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convnets_torch.card import with_learnt
from convnets_torch.embeddings.cache import fingerprint
from convnets_torch.embeddings.duplicates import find_leaks
from convnets_torch.files import check_kept, check_writable
from convnets_torch.images.levels import Background, Depth, said_levels
from convnets_torch.inference.pipeline import BATCH, ready_card
from convnets_torch.networks import Network
from convnets_torch.networks.network import as_network
from convnets_torch.training.datasets import Dataset, ViewedPictures, check_batch
from convnets_torch.training.distributed import joined
from convnets_torch.training.features import Features, Side, cached_features
from convnets_torch.training.running import (
    EpochRow,
    Keeper,
    Progress,
    Reports,
    TrainingStopped,
    best_epoch,
    check_arrays,
    damaged,
    draw_history,
    read_progress,
    run_stage,
    save_history_csv,
)
from convnets_torch.training.settings import Settings
from convnets_torch.training.stages import HeadStage, LayerRow, LayersStage, own_parameters, unfrozen, what_trains
from convnets_torch.visualization import charts
from convnets_torch.weights import planned, save, with_last_layer

LEAK = 0.98  # cosine of two pictures' vectors from which on one is taken for nearly the other
MOST_WORKERS = 16
ARRAYS = 5  # of each parameter in a checkpoint: now, at the best epoch, two of the optimizer, and after stage one
FURTHER = 1 << 27  # bytes of a checkpoint beyond those: its state, and the names of arrays


@dataclass(frozen=True)
class LeakedPicture:
    """A picture to judge by that is nearly one to learn from.

    Attributes:
        path: in `val`.
        of: the most similar picture in `train`.
        similarity: the cosine of their vectors.
    """

    path: Path
    of: Path
    similarity: float


class LeakError(ValueError):
    """Pictures to judge by are nearly the same as some to learn from.

    Attributes:
        leaks: all of them, the most similar first.
    """

    def __init__(self, leaks: list[LeakedPicture], count: int) -> None:
        first = leaks[0]
        super().__init__(
            f"{len(leaks)} of {count} validation pictures are nearly the same as training pictures, so accuracy would"
            f" flatter (the nearest: {first.path} and {first.of}, similarity {first.similarity:.3f}); move or remove"
            " them, or go on all the same with --allow-leaks"
        )
        self.leaks = leaks


@dataclass(frozen=True, eq=False)
class Finetuned:
    """What came of fine-tuning.

    Attributes:
        network: in eval mode, with its card; what the file holds.
        history: finished epochs.
        best: the epoch whose parameters these are.
        failed: pictures that could not be used, and why.
        leaks: pictures of `val` that are nearly in `train`.
    """

    network: Network
    history: tuple[EpochRow, ...]
    best: EpochRow
    failed: dict[Path, Exception]
    leaks: tuple[LeakedPicture, ...]


@dataclass(frozen=True)
class Watch:
    """Who is told of what while `finetune` runs; each may be None.

    Attributes:
        pictures: how many pictures' features are there, of how many.
        found: once, before training: the features, and the leaks.
        layers: once, before stage two could begin: the table of what trains.
        reports: of epochs and steps.
    """

    pictures: Callable[[int, int], None] | None = None
    found: Callable[[Features, list[LeakedPicture]], None] | None = None
    layers: Callable[[list[LayerRow]], None] | None = None
    reports: Reports = field(default_factory=Reports)


def checkpoint_of(output: Path) -> Path:
    """Where a training with this output keeps its checkpoint.

    >>> checkpoint_of(Path("mine.safetensors")).name
    'mine.checkpoint.safetensors'
    """
    return output.with_name(f"{output.stem}.checkpoint.safetensors")


def outputs_of(output: Path) -> tuple[Path, Path]:
    """The table and the picture of the history, beside the output; a table of pictures may be called as that is.

    >>> [path.name for path in outputs_of(Path("mine.safetensors"))]
    ['mine.history.csv', 'mine.history.png']
    """
    return output.with_name(f"{output.stem}.history.csv"), output.with_name(f"{output.stem}.history.png")


def finetune(
    network: Network,
    dataset: Dataset,
    output: Path,
    settings: Settings | None = None,
    *,
    started_from: str = "",
    resume: bool = False,
    allow_leaks: bool = False,
    leak_threshold: float = LEAK,
    workers: int | None = None,
    cache: Path | None = None,
    watch: Watch | None = None,
    max_pixels: int | None = None,
    allow_truncated: bool = False,
    depth: Depth = None,
    background: Background = None,
) -> Finetuned:
    """Fine-tune a network for the classes of a dataset, and save the best epoch's parameters with a card.

    The same call gives the same file on the same machine, from the same features: the last bits of those depend on how
    many the cache had already. A checkpoint is written after each epoch beside the output;
    it goes when the output is there. Every process that `torchrun` started calls this, on the device of its own; the
    first one writes.

    Args:
        network: with its card, in eval mode, with a head or without, on the device where it is to train; it is left as
            it is.
        dataset: as `find_dataset` gives it.
        output: the safetensors file to write; the history goes beside it as .history.csv and .history.png.
        settings: by default those of `Settings`.
        started_from: the name of the file that the network came from, for the card.
        resume: go on from the checkpoint beside the output, if there is one, to the same result as without a break.
        allow_leaks: go on where pictures of `val` are nearly in `train`.
        leak_threshold: the cosine of two vectors from which on they are; above 0, up to 1.
        workers: processes that load and augment pictures; by default none on the CPU, else one for each core, up to 16.
        cache: folder for features, as in `embed_classes`.
        watch: who is told of what.
        max_pixels, allow_truncated, depth, background: as in `read_picture`.

    Raises:
        LeakError: pictures of `val` are nearly in `train`.
        TrainingStopped: `watch.reports.stop` asked for it; a checkpoint was written, or before training the features
            that are there.
        ValueError: there are fewer pictures than a batch, or too few that can be used; a loss became NaN; the
            checkpoint is of another run, or there is one but no `resume`; or the network has no card, is in training
            mode or was prepared.
        OSError: something cannot be written; checkpoint and output survive as they were.
    """
    settings, watch = settings or Settings(), watch or Watch()
    reading = {"max_pixels": max_pixels, "allow_truncated": allow_truncated, "depth": depth, "background": background}
    levels = said_levels(depth, background)
    if dataset.sets and settings.activation != "sigmoid":
        raise ValueError(
            "the pictures have several labels, which softmax would take for classes that exclude each other; take"
            " sigmoid: --activation sigmoid, Settings(activation='sigmoid') in Python"
        )
    network = as_network(network)
    card = ready_card(network)
    empty = planned(card, len(dataset.classes))
    empty.card = card
    names = unfrozen(empty, settings.unfreeze if settings.epochs else "head")
    check_batch(dataset, settings.batch)
    settings.augmentation.check_classes(dataset.classes)
    checkpoint, written = checkpoint_of(output), outputs_of(output)
    for path in (output, checkpoint, *written):
        check_writable(path)
        check_kept(path, (picture for picture, _ in (*dataset.train, *dataset.val)))
    if checkpoint.exists() and not resume:
        raise ValueError(
            f"{checkpoint} is the checkpoint of a training that did not end; go on with --resume, or remove it"
        )
    device = next(network.parameters()).device
    with joined(device) as group, deterministic(device):
        features = cached_features(network, dataset, settings, group, cache, _stoppable(watch), reading)
        _check_usable(features, settings.batch)
        leaks = _leaks(features, leak_threshold)
        if watch.found is not None:
            watch.found(features, leaks)
        if leaks and not allow_leaks:
            raise LeakError(leaks, len(features.val.paths))
        identity = {
            "settings": settings.to_dict(),
            "network": fingerprint(network),
            "data": _data_fingerprint(dataset, features, levels),
        }
        keeper = Keeper(checkpoint, identity, group)
        arrays: dict[str, Tensor] = {}
        progress = Progress()
        if checkpoint.exists():
            most = ARRAYS * sum(values.numel() * values.element_size() for values in empty.parameters()) + FURTHER
            arrays, progress = _begun(checkpoint, identity, settings, most)
        if len(set(group.texts(json.dumps(progress.to_dict()), device))) > 1:
            raise ValueError(
                f"the processes do not all find the same {checkpoint}; name an output in a folder that all machines see"
            )
        if not group.first:
            progress.loss = 0.0  # of a checkpoint it is the sum of all processes

        def with_head() -> Network:
            change = f"fine-tuned for {len(dataset.classes)} classes"
            return with_last_layer(network, *head, dataset.classes, change, activation=settings.activation)

        head = _first_stage(features, len(dataset.classes), settings, keeper, progress, arrays, watch.reports, device)
        features = features.without_vectors()
        tuned = with_head()
        if watch.layers is not None:
            watch.layers(what_trains(tuned, names if settings.epochs else names[-2:]))
        if settings.epochs:
            if progress.stage == 1:
                progress.stage, keeper.best, arrays = 2, {}, {}
            own_parameters(tuned, names)
            views = _views(tuned, dataset, features.train, settings, reading)
            loading = _workers(device) if workers is None else workers
            stage = LayersStage(
                tuned, names, views, features.train.labels, features.val.paths, features.val.labels, settings, group,
                loading,
            )  # fmt: skip
            if arrays:
                keeper.restore(stage, progress, arrays)
            arrays = {}  # what is still needed of them is elsewhere
            more = dict(zip(("weight", "bias"), head, strict=True))
            run_stage(stage, progress, settings.epochs, settings.patience, keeper, watch.reports, more)
            tuned = with_head()  # whose parameters are those of the best epoch, if that is one of stage one
            if keeper.best:
                own_parameters(tuned, names)
                keeper.give_best(tuned)
        best = best_epoch(progress.history)
        about = {
            "from": {"file": started_from, "parameters": identity["network"]},
            "settings": settings.to_dict(),
            "data": {
                "split": dataset.split, "train": len(features.train.paths), "val": len(features.val.paths),
                "several_labels": bool(dataset.sets),
                **levels,
            },
            "metrics": {
                "epoch": best.epoch, "stage": best.stage, best.measure: best.score, "val_loss": best.val_loss,
                "leaks": len(leaks),
            },
        }  # fmt: skip
        assert tuned.card is not None
        described = replace(tuned.card, unknown={**tuned.card.unknown, "finetuning": about})
        tuned.card = with_learnt(described, features.train.digests, features.val.digests)
        if group.first:
            save(tuned, output)
            save_history_csv(progress.history, written[0])
            if reason := charts.why_not():
                warnings.warn(f"{written[1]} is left out: {reason}", charts.ChartWarning, stacklevel=2)
                written[1].unlink(missing_ok=True)  # which would be of another training
            else:
                charts.save_chart(draw_history(progress.history)[0], written[1])
            checkpoint.unlink(missing_ok=True)
        group.wait()
    return Finetuned(tuned, tuple(progress.history), best, dict(features.failed), tuple(leaks))


def _first_stage(
    features: Features,
    classes: int,
    settings: Settings,
    keeper: Keeper,
    progress: Progress,
    arrays: dict[str, Tensor],
    reports: Reports,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the last layer after stage one, which a checkpoint of stage two has already."""
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
            raise damaged(keeper.path, str(error)) from None
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
        keeper.restore(stage, progress, arrays)
    run_stage(stage, progress, settings.head_epochs, settings.patience, keeper, reports, {})
    keeper.give_best(stage.layer)
    weight, bias = stage.unscaled()
    return keeper.group.from_first(weight), keeper.group.from_first(bias)


def _begun(
    checkpoint: Path, identity: dict[str, Any], settings: Settings, most: int
) -> tuple[dict[str, Tensor], Progress]:
    """Where the training that wrote a checkpoint, of `most` bytes, stood.

    Raises:
        ValueError: it was another training.
    """
    arrays, state, progress = read_progress(checkpoint, max_bytes=most)
    other = settings.differences(state["settings"])
    other += [
        f"another {word}"
        for key, word in (("network", "network"), ("data", "set of pictures"))
        if state.get(key) != identity[key]
    ]
    if progress.stage == 2 and not settings.epochs:  # whose history would be that of other parameters
        other.append(f"epochs {state['settings'].get('epochs')}, now 0")
    if other:
        raise ValueError(
            f"{checkpoint} is of another training ({'; '.join(other)[:1000]}); give its own options to go on with it,"
            " or remove it to begin anew"
        )
    return arrays, progress


def _stoppable(watch: Watch) -> Callable[[int, int], None]:
    """Tells of features, and stops where it is wished: vectors are kept as they come.

    It stops between batches, since the last bits of a vector depend on how many are computed together.
    """

    def tell(done: int, count: int) -> None:
        if watch.pictures is not None:
            watch.pictures(done, count)
        if (done % BATCH == 0 or done == count) and watch.reports.stop is not None and watch.reports.stop():
            raise TrainingStopped(
                f"stopped at the features of {done} of {count} pictures, which are kept; give the same command to go on"
            )

    return tell


def _check_usable(features: Features, batch: int) -> None:
    count = len(features.train.paths)
    if count < batch:
        raise ValueError(f"{count} training pictures could be used, fewer than a batch of {batch}; lower --batch-size")


def _leaks(features: Features, threshold: float) -> list[LeakedPicture]:
    train, val = features.train, features.val
    found = find_leaks(val.features[0].numpy(), train.features[0].numpy(), threshold)
    return [LeakedPicture(val.paths[leak.row], train.paths[leak.of], leak.similarity) for leak in found]


def _data_fingerprint(dataset: Dataset, features: Features, levels: dict[str, Any]) -> str:
    """What tells usable pictures and classes from others: contents and sides, not names of files; and their levels."""
    digest = hashlib.sha256(json.dumps(dataset.classes).encode())
    if levels:
        digest.update(json.dumps(levels).encode())
    for side in (features.train, features.val):
        labels = side.labels if side.labels.dim() == 1 else side.labels.nonzero()
        digest.update(json.dumps([side.digests, labels.tolist()]).encode())
    return digest.hexdigest()


def _views(
    network: Network, dataset: Dataset, side: Side, settings: Settings, reading: dict[str, Any]
) -> ViewedPictures:
    assert network.card is not None
    shown = {path: dataset.shown_as(label, settings.augmentation.no_flip) for path, label in dataset.train}
    labels = [shown[path] for path in side.paths]
    rule = network.card.preprocessing
    return ViewedPictures(side.paths, labels, side.digests, rule, settings.augmentation, settings.seed, reading)


def _workers(device: torch.device) -> int:
    """On the CPU the network needs all cores itself."""
    return 0 if device.type == "cpu" else min(MOST_WORKERS, os.cpu_count() or 1)


@contextlib.contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """The same operations give the same numbers at each run.

    On the CPU they do; on CUDA PyTorch has to be asked for it, for the whole process, which imports its compiler and
    takes 2 s.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    switches: Any = torch.utils.deterministic
    filled = switches.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    switches.fill_uninitialized_memory = False  # which costs time and would hide nothing here
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        switches.fill_uninitialized_memory = filled

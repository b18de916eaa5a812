"""The two stages of fine-tuning: a last layer on cached features, then the unfrozen layers on augmented pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW, Optimizer

from convnets_torch.device_pixels import normalized
from convnets_torch.networks import Network
from convnets_torch.pipeline import predict
from convnets_torch.runtime import dtype_of, is_depthwise
from convnets_torch.training.distributed import Group
from convnets_torch.training.freezing import freeze, own_dropout
from convnets_torch.training.loading import ViewedPictures, batches, loaded
from convnets_torch.training.losses import balanced, row_losses, soft_targets
from convnets_torch.training.mixing import Mix, draw_mix
from convnets_torch.training.schedule import scheduled
from convnets_torch.training.settings import Settings
from convnets_torch.training.several_labels import score_labels


@dataclass(frozen=True)
class Step:
    """A step's loss.

    Attributes:
        loss: to go backward from; averaged over the processes it is the mean of the whole batch.
        total: the sum over this process's rows.
        rows: of the whole batch.
    """

    loss: Tensor
    total: Tensor
    rows: int


class Stage(Protocol):
    """What an epoch of either stage does."""

    number: int
    shared: bool  # whether each process of a group has rows of its own
    names: list[str]  # of the parameters that train
    parameters: list[nn.Parameter]
    optimizer: Optimizer
    rate: float  # the highest learning rate
    several: bool  # whether a row may have several labels

    def count(self) -> int:
        """Steps of an epoch."""

    def rate_at(self, step: int) -> float:
        """The learning rate of a step of the stage, from 0."""

    def steps(self, epoch: int, first: int) -> Generator[Step, None, None]:
        """The steps of an epoch from number `first` on; each is to be applied before the next is asked for."""

    def judge(self) -> tuple[float, float]:
        """Loss and accuracy on the validation pictures; of several labels the loss and the mean average precision."""


class Rows:
    """Targets of labelled rows, and the mean loss of logits."""

    def __init__(self, labels: Tensor, classes: int, settings: Settings) -> None:
        self._settings = settings
        self.targets = soft_targets(labels, classes, settings.label_smoothing, settings.activation)
        if settings.class_weights == "balanced":
            self.weights = balanced(labels, classes)
        else:
            self.weights = torch.ones(len(labels), device=labels.device)

    def losses(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """(N,) float32."""
        return row_losses(logits, targets, self._settings.activation, weights)


def judged(logits: Tensor, labels: Tensor, settings: Settings) -> tuple[float, float]:
    """The mean loss, without weights or smoothing, and the share of rows whose class has the highest logit.

    Of rows with several labels, (N, classes) of 0 and 1, the mean average precision in place of that share.
    """
    targets = soft_targets(labels, logits.shape[1], 0, settings.activation)
    loss = row_losses(logits, targets, settings.activation).double().mean()
    if labels.dim() == 2:
        return float(loss), score_labels(logits.cpu().numpy(), labels.cpu().numpy() > 0).mean_average_precision
    return float(loss), float((logits.argmax(1) == labels).double().mean())


class HeadStage:
    """Stage one: a linear layer on cached features, which are centred and scaled for it.

    Every process of a group does all of it, since it takes less time than to divide it would.
    """

    number, shared = 1, False

    def __init__(
        self, features: Tensor, labels: Tensor, val: Tensor, val_labels: Tensor, classes: int, settings: Settings
    ) -> None:
        """Args:
        features: (N, values) float32, a row for each view of each picture; `val` the same, a row for each picture.
        labels, val_labels: (N,) int64; or (N, classes) uint8, 0 and 1, where a row may have several labels.
        """
        self._settings, self.several = settings, labels.dim() == 2
        # One scale for all values: many of them are nearly always 0, and divided by their own small spreads they would
        # get weights a thousand times larger, from which stage two's gradients explode.
        self.mean, spread = features.mean(0), features.std(0, unbiased=False).square().mean().sqrt()
        self.spread = spread if spread > 0 else torch.ones_like(spread)
        self._features, self._val = (features - self.mean) / self.spread, (val - self.mean) / self.spread
        self._labels, self._val_labels = labels, val_labels
        self._rows = Rows(labels, classes, settings)
        self.layer: nn.Linear = nn.utils.skip_init(  # type: ignore[no-untyped-call]
            nn.Linear, features.shape[1], classes, device=features.device
        )
        nn.init.zeros_(self.layer.weight)  # the loss is convex: what it begins from does not matter
        nn.init.zeros_(self.layer.bias)
        self.names = ["weight", "bias"]
        self.parameters: list[nn.Parameter] = [*self.layer.parameters()]
        self.rate = settings.head_rate
        self.optimizer: Optimizer = AdamW(self.parameters, self.rate, weight_decay=0.0)

    def count(self) -> int:
        return -(-len(self._features) // self._settings.batch)

    def rate_at(self, step: int) -> float:
        return self.rate

    def steps(self, epoch: int, first: int) -> Generator[Step, None, None]:
        for rows in batches(len(self._features), self._settings.batch, self._settings.seed, epoch)[first:]:
            places = torch.tensor(rows, device=self._features.device)
            logits = self.layer(self._features[places])
            total = self._rows.losses(logits, self._rows.targets[places], self._rows.weights[places]).sum()
            yield Step(total / len(rows), total.detach(), len(rows))

    def judge(self) -> tuple[float, float]:
        with torch.no_grad():
            return judged(self.layer(self._val), self._val_labels, self._settings)

    def unscaled(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the layer that reads the features as they are."""
        with torch.no_grad():
            weight = self.layer.weight.double() / self.spread
            return weight.float(), (self.layer.bias.double() - weight @ self.mean.double()).float()


class LayersStage:
    """Stage two: the unfrozen layers, on pictures that are augmented anew in each epoch."""

    number, shared = 2, True

    def __init__(
        self,
        network: Network,
        names: list[str],
        views: ViewedPictures,
        labels: Tensor,
        val: Sequence[Path],
        val_labels: Tensor,
        settings: Settings,
        group: Group,
        workers: int,
    ) -> None:
        """Args:
        network: whose parameters of these `names` are its own; they change.
        views, labels: what to learn from; labels as for `HeadStage`, on the CPU, as `val_labels`.
        val: pictures to judge by.
        """
        self.network, self.names, self._views, self._workers = network, names, views, workers
        self._val, self._val_labels, self._settings, self._group = val, val_labels, settings, group
        self.several = labels.dim() == 2
        assert network.card is not None
        self._rule, self._classes = network.card.preprocessing, network.card.classes
        parameters = dict(network.named_parameters())
        self.parameters = [parameters[name] for name in names]
        self._device = self.parameters[0].device
        self._rows = Rows(labels, self._classes, settings)
        self.rate = settings.rate
        if settings.optimizer == "adamw":
            self.optimizer: Optimizer = AdamW(self.parameters, settings.rate, weight_decay=settings.weight_decay)
        else:
            self.optimizer = SGD(self.parameters, settings.rate, settings.momentum, weight_decay=settings.weight_decay)
        self._mixed_precision = mixed_precision(network, settings.precision)
        freeze(network, names, dropout=settings.dropout)
        self._dropout = own_dropout(network)
        self._run: nn.Module = network
        if group.size > 1:
            places = [self._device] if self._device.type == "cuda" else None
            self._run = DistributedDataParallel(network, places, broadcast_buffers=False)

    def count(self) -> int:
        return -(-len(self._views) // self._settings.batch)

    def rate_at(self, step: int) -> float:
        return scheduled(self.rate, step, self.count(), self._settings.epochs)

    def steps(self, epoch: int, first: int) -> Generator[Step, None, None]:
        settings, group = self._settings, self._group
        freeze(self.network, self.names, dropout=settings.dropout)  # `judge` has it in eval mode
        every = batches(len(self._views), settings.batch, settings.seed, epoch)
        plans = [self._plan(rows, epoch, step) for step, rows in enumerate(every)]
        wanted = [[(epoch, row) for row in plan.loaded] for plan in plans[first:]]
        with closing(loaded(self._views, wanted, self._workers)) as parts:
            for step, (plan, pixels) in enumerate(zip(plans[first:], parts, strict=True), start=first):
                self._dropout.manual_seed(_seed(settings.seed, epoch, step, group.rank))
                images, targets = plan.mixed(
                    normalized(pixels.to(self._device), self._rule), self._rows.targets[plan.loaded].to(self._device)
                )
                weights = self._rows.weights[plan.rows]
                weights = (weights * plan.counts.view(-1, *[1] * (weights.dim() - 1))).to(self._device)
                with torch.autocast(self._device.type, torch.bfloat16, enabled=self._mixed_precision):
                    logits = self._run(images)
                total = self._rows.losses(logits, targets, weights).sum()
                size = len(every[step])
                yield Step(total * (group.size / size), total.detach(), size)

    def judge(self) -> tuple[float, float]:
        self.network.eval()
        mine = self._group.share(range(len(self._val)))
        logits = torch.zeros(len(self._val), self._classes)
        with closing(predict(self.network, [self._val[place] for place in mine], exact=True)) as rows:
            for place, row in zip(mine, rows, strict=True):
                if row.logits is None:
                    raise row.error or ValueError(f"{self._val[place]} could not be used")
                logits[place] = row.logits
        logits = self._group.total(logits.to(self._device)).cpu()
        return judged(logits, self._val_labels, self._settings)

    def _plan(self, rows: list[int], epoch: int, step: int) -> _Plan:
        """What this process does of a step."""
        settings = self._settings
        mine = list(self._group.share(range(len(rows))))
        counts = torch.ones(len(mine))
        if not mine:  # DDP wants a backward pass of every process: of a row that counts for nothing
            mine, counts = [0], torch.zeros(1)
        if settings.mixing == "none":
            chosen = [rows[place] for place in mine]
            return _Plan(chosen, chosen, counts, None, None)
        generator = torch.Generator().manual_seed(_seed(settings.seed, epoch, step, -1))
        mix = draw_mix(len(rows), settings.mixing, settings.mixing_alpha, self._rule.shape, generator)
        own, partners = [rows[place] for place in mine], [rows[mix.permutation[place]] for place in mine]
        needed = list(dict.fromkeys([*own, *partners]))
        places = torch.tensor([[needed.index(row) for row in side] for side in (own, partners)])
        return _Plan(own, needed, counts, mix, places)


@dataclass(frozen=True, eq=False)
class _Plan:
    """One process's part of a step: its rows, the pictures to load for them, and how they are mixed."""

    rows: list[int]
    loaded: list[int]
    counts: Tensor
    mix: Mix | None
    places: Tensor | None  # (2, rows) in `loaded`: of the rows themselves, and of their partners

    def mixed(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if self.mix is None or self.places is None:
            return images, targets
        own, partners = self.places.to(images.device)
        return self.mix.apply(images[own], targets[own], images[partners], targets[partners])


def mixed_precision(network: Network, precision: str) -> bool:
    """Whether stage two computes in bfloat16 where that loses little.

    "auto" takes it where the device has instructions for it, but on the CPU not for networks with depthwise
    convolutions, which are slower for it.
    """
    if precision != "auto":
        return precision == "bfloat16"
    device = next(network.parameters()).device
    if device.type == "cpu" and is_depthwise(network):
        return False
    return dtype_of("auto", device) == torch.bfloat16


def own_parameters(network: Network, names: list[str]) -> None:
    """Give a network copies of these parameters, which it may share with others or with a mapped file."""
    for name in names:
        owner, _, part = name.rpartition(".")
        module = network.get_submodule(owner)
        setattr(module, part, nn.Parameter(getattr(module, part).detach().clone()))


def _seed(*numbers: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "little", signed=True)

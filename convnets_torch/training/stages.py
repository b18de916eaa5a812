"""The stages of a training: which layers learn, the loss, the learning rate, and the steps."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW, Optimizer

from convnets_torch.evaluation.several_labels import score_labels
from convnets_torch.explain.layer_names import find_layers
from convnets_torch.images.resizing import normalized
from convnets_torch.inference.pipeline import predict
from convnets_torch.inference.prepare import dtype_of, is_depthwise
from convnets_torch.networks import CATALOG, Network
from convnets_torch.training.augmentation import Mix, draw_mix
from convnets_torch.training.datasets import ViewedPictures, batches, loaded
from convnets_torch.training.distributed import Group
from convnets_torch.training.settings import Output, Settings
from convnets_torch.weights import last_dense


@dataclass(frozen=True)
class LayerRow:
    """One line of the table of what trains.

    Attributes:
        name: of a module: a layer of the head, or a layer or block of the features.
        parameters: how many numbers it has, without statistics of batch normalisation.
        trains: how many of them stage two changes.
    """

    name: str
    parameters: int
    trains: int


def unfrozen(network: Network, layer: str | None) -> list[str]:
    """Names of the parameters that stage two trains, in the network's order: those of a layer, and all behind it.

    "Behind" is the order in which the network lists its modules, which is that of the computation, but for branches
    that stand side by side. The last dense layer is always among them.

    Args:
        network: with its card.
        layer: as in `Settings.unfreeze`.

    Raises:
        ValueError: the layer is not known; or None, and the network has no last block that is known.
    """
    if layer is None:
        name = network.card.network if network.card else type(network).__name__
        if name not in CATALOG:
            raise ValueError(f"the last block of {name} is not known; name the layer from which on is trained")
        layer = CATALOG[name].last_block
    first = layer if layer in dict(network.named_children()) else find_layers(network, layer)[0]
    order = [name for name, _ in network.named_modules()]
    behind = set(order[order.index(first) :]) | {last_dense(network)}
    return [name for name, _ in network.named_parameters() if name.rpartition(".")[0] in behind]


def freeze(network: Network, trained: list[str], *, dropout: bool) -> None:
    """Let only these parameters learn, and no statistics; dropout works where it stands behind the first of them.

    Batch normalisation runs in eval mode everywhere, behind the first trained layer as well: its statistics come from
    many more pictures than a batch for fine-tuning has. Its scale and shift learn where they are trained.

    Source: for batch normalisation, Keras's guide to transfer learning: https://keras.io/guides/transfer_learning/
    """
    network.eval()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in trained)
    order = [name for name, _ in network.named_modules()]
    first = order.index(trained[0].rpartition(".")[0])
    for place, (_, module) in enumerate(network.named_modules()):
        if isinstance(module, nn.Dropout) and place > first:
            module.train(dropout)


class _Dropout(nn.Dropout):
    generator: torch.Generator

    def forward(self, values: Tensor) -> Tensor:
        if not self.training:
            return values
        kept = torch.empty_like(values).bernoulli_(1 - self.p, generator=self.generator)
        return values * kept.div_(1 - self.p or 1)


def own_dropout(network: Network) -> torch.Generator:
    """Have a network's dropout draw from a generator of its own, which is returned, and not from PyTorch's global one.

    From the same seed it draws the same on the CPU.
    """
    generator = torch.Generator(next(network.parameters()).device)
    for module in network.modules():
        if type(module) is nn.Dropout:
            module.__class__ = _Dropout
            module.generator = generator  # type: ignore[assignment]
    return generator


def what_trains(network: Network, trained: list[str]) -> list[LayerRow]:
    """The table of what trains: a row for each layer or block that has parameters."""
    rows = []
    for top, module in _blocks(network):
        names = [(f"{top}.{name}", parameter) for name, parameter in module.named_parameters()]
        if names:
            total = sum(parameter.numel() for _, parameter in names)
            rows.append(LayerRow(top, total, sum(each.numel() for name, each in names if name in trained)))
    return rows


def _blocks(network: Network) -> Iterator[tuple[str, nn.Module]]:
    for part in ("features", "head"):
        for name, module in network.get_submodule(part).named_children():
            yield f"{part}.{name}", module


def soft_targets(labels: Tensor, classes: int, smoothing: float, activation: Output) -> Tensor:
    """Labels as (N, classes) float32 of what the outputs should be.

    With smoothing s, softmax spreads s evenly over all classes; sigmoid draws each class so far towards 1/2.

    Args:
        labels: (N,) class ids; or (N, classes) of 0 and 1, where a row may have several classes.

    Source: Rethinking the Inception Architecture for Computer Vision, arXiv:1512.00567, section 7.

    >>> soft_targets(torch.tensor([1]), 4, 0.2, "softmax")
    tensor([[0.0500, 0.8500, 0.0500, 0.0500]])
    """
    hard = (F.one_hot(labels, classes) if labels.dim() == 1 else labels).float()
    return hard * (1 - smoothing) + smoothing / (classes if activation == "softmax" else 2)


def row_losses(logits: Tensor, targets: Tensor, activation: Output, weights: Tensor | None = None) -> Tensor:
    """The loss of each row, (N,) float32: cross entropy, or the mean over classes of the binary ones.

    Args:
        logits: (N, classes), taken as float32.
        targets: (N, classes), 0 to 1.
        activation: what will turn the logits into probabilities.
        weights: by which the losses are multiplied, (N,); or (N, classes), those of the binary ones.
    """
    logits, of_labels = logits.float(), weights is not None and weights.dim() == 2
    if activation == "softmax":
        losses = F.cross_entropy(logits, targets, reduction="none")
    else:
        each = F.binary_cross_entropy_with_logits(logits, targets, weights if of_labels else None, reduction="none")
        losses = each.mean(1)
    return losses if weights is None or of_labels else losses * weights


def balanced(labels: Tensor, classes: int) -> Tensor:
    """A weight for each row, (N,) float32: the rows of a class together weigh as much as those of any other.

    Of rows with several labels, (N, classes) of 0 and 1, a weight for each label of each row, (N, classes): the rows
    that have a label weigh as much as those that do not. The mean weight is 1, so that learning rates mean the same
    with and without weights.

    >>> balanced(torch.tensor([0, 0, 0, 1]), 2)
    tensor([0.6667, 0.6667, 0.6667, 2.0000])
    >>> balanced(torch.tensor([[1], [0], [0], [0]]), 1).flatten()
    tensor([2.0000, 0.6667, 0.6667, 0.6667])
    """
    if labels.dim() == 1:
        counts = torch.bincount(labels, minlength=classes).float()
        return (len(labels) / (classes * counts))[labels]
    has = labels.float().mean(0)
    weights = torch.where(labels == 1, 1 / (2 * has), 1 / (2 * (1 - has)))
    return torch.where((has == 0) | (has == 1), 1, weights)  # where there is nothing to weigh against


def scheduled(rate: float, step: int, count: int, epochs: int) -> float:
    """Rising in a line over the first epoch, then falling as half a cosine to nearly nothing at the last step.

    The rise keeps the first steps, whose gradients are the largest and whose momentum is not there yet, from throwing
    away what the layers know; the fall lets accuracy settle.

    Args:
        rate: the highest.
        step: of all of the stage, from 0.
        count: steps of an epoch.
        epochs: that the stage takes at most; of one alone, half is the rise.

    Source: the fall is that of SGDR, arXiv:1608.03983, without restarts; the rise that of arXiv:1706.02677, section
    2.2.

    >>> [round(scheduled(1.0, step, count=4, epochs=3), 2) for step in range(12)]
    [0.25, 0.5, 0.75, 1.0, 0.97, 0.88, 0.75, 0.59, 0.41, 0.25, 0.12, 0.03]
    """
    total = count * epochs
    rise = max(1, min(count, total // 2))
    if step < rise:
        return rate * (step + 1) / rise
    return rate * (1 + cos(pi * (step - rise + 1) / (total - rise + 1))) / 2


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

"""Recognise the networks of the papers in a graph of layers: by what it computes, whatever its layers are called.

A network's operations are traced and compared with those of the hand-written networks, from the map back to the
images. Padding counts as part of the convolution or pooling that reads it, dropout as nothing, and a convolution in
groups may be written as several convolutions of slices. Widths, epsilons and the head may differ.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from torch import nn

from convnets_torch.fcn.graph import Op, trace_ops
from convnets_torch.networks import CATALOG, Network
from convnets_torch.networks import layers as own
from convnets_torch.networks.graph_network import GraphNetwork
from convnets_torch.networks.heads import ACTIVATIONS, NUMBERED
from convnets_torch.weights import build

CONVOLUTIONS = {8: "alexnet", 13: "vgg16", 16: "vgg19", 53: "resnet50", 94: "inception_v3"}  # of one group each
VARIANTS: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "resnet50": {"pool_padding": (True, False), "stride_in": ("1x1", "3x3")}
}
WIDTHS = {  # convolutions whose channels are the argument `widths`; None for all
    "alexnet": None,
    "vgg16": [f"conv{block}_1" for block in range(1, 6)],
    "vgg19": [f"conv{block}_1" for block in range(1, 6)],
    "resnet50": ["conv1_conv", *(f"conv{stage}_block1.conv_1" for stage in range(2, 6))],
    "inception_v3": None,
}

Key = tuple[Any, ...]
Edges = tuple[int, int, int, int]
Reference = int | tuple[int, ...]  # an operation, or several whose outputs are concatenated


@dataclass(frozen=True)
class Recognised:
    """A network of a paper.

    Attributes:
        name: as in `convnets_torch.networks.NETWORKS`.
        network: on the meta device.
        arguments: of its builder.
        modules: its module with weights -> the graph's; several are the groups of one convolution.
    """

    name: str
    network: Network
    arguments: dict[str, Any]
    modules: Mapping[str, tuple[str, ...]]


def recognise(graph: GraphNetwork, classes: int | None, head: Sequence[Any] | None) -> Recognised | None:
    """Return the paper's network that a graph's features equal, with the graph's head; None if there is none.

    Args:
        graph: the network.
        classes: number of its logits.
        head: entries of its head.
    """
    convolutions = [layer for layer in graph.features.modules() if isinstance(layer, nn.Conv2d)]
    name = CONVOLUTIONS.get(len(convolutions))
    steps = _steps_of(head or (), graph.window)
    if name is None or graph.no_map is not None or steps is None:
        return None
    try:
        theirs = trace_ops(graph.features)
    except ValueError:
        return None
    variants = VARIANTS.get(name, {})
    for values in product(*variants.values()):
        settings = dict(zip(variants, values, strict=True))
        modules = _same(trace_ops(build(name, settings).features), theirs)
        if modules is not None:
            return _built(name, settings, modules, graph, classes, steps)
    return None


def _built(
    name: str, settings: Mapping[str, Any], modules: Mapping[str, tuple[str, ...]], graph: GraphNetwork,
    classes: int | None, steps: tuple[list[tuple[Any, ...]], list[str]],
) -> Recognised | None:  # fmt: skip
    """Return the network with the graph's widths, epsilon, size and head; None if other numbers differ."""
    features = dict(graph.features.named_modules())
    standard = CATALOG[name].standard
    arguments = {key: value for key, value in standard.items() if key != "hidden"} | dict(settings)
    convolutions = WIDTHS[name] or [one for one in modules if isinstance(features[modules[one][0]], nn.Conv2d)]
    arguments["widths"] = tuple(sum(features[each].weight.shape[0] for each in modules[one]) for one in convolutions)
    norms = [features[theirs[0]] for theirs in modules.values() if isinstance(features[theirs[0]], nn.BatchNorm2d)]
    if len(epsilons := {float(norm.eps) for norm in norms}) > 1:
        return None
    if epsilons:
        arguments["epsilon"] = epsilons.pop()
    if name == "resnet50" and not any(
        getattr(features[each[0]], "bias", None) is not None
        for each in modules.values() if isinstance(features[each[0]], nn.Conv2d)
    ):  # fmt: skip
        arguments["bias"] = False
    arguments["classes"] = classes
    head, placed = steps
    if graph.size != build(name, arguments | {"classes": None}).size:
        arguments["size"] = graph.size
    if classes is not None:
        units = [step[1] for step in head if step[0] == "dense"]
        essence = [step for step in head if step[0] != "dropout"]
        if essence == _standard(name, units):
            if "hidden" in standard:
                arguments["hidden"] = tuple(units[:2])
        else:
            arguments["head"] = tuple(head)
    try:
        network = build(name, arguments)
    except ValueError:
        return None
    if classes is not None and network.window != graph.window:
        return None
    renamed = {f"features.{module}": tuple(f"features.{each}" for each in theirs) for module, theirs in modules.items()}
    weighted = (nn.Linear, nn.BatchNorm1d)
    heads = [f"head.{module}" for module, layer in (network.head or nn.Sequential()).named_children()
             if isinstance(layer, weighted)]  # fmt: skip
    renamed |= {module: (f"head.{each}",) for module, each in zip(heads, placed, strict=True)}
    return Recognised(name, network, arguments, renamed) if _fits(network, graph, renamed) else None


def _fits(network: Network, graph: GraphNetwork, modules: Mapping[str, tuple[str, ...]]) -> bool:
    """Return whether all parameters have the graph's shapes; a bias that the graph lacks may be zeros in the head."""
    theirs = graph.state_dict()
    used = set()
    for name, parameter in network.state_dict().items():
        module, _, role = name.rpartition(".")
        sources = [f"{each}.{role}" for each in modules.get(module, ())]
        used.update(sources)
        found = [theirs[source].shape for source in sources if source in theirs]
        if not found and module.startswith("head.") and role == "bias" and sources:
            continue
        if len(found) != len(sources) or not found:
            return False
        whole = found[0] if not found[0] else (sum(shape[0] for shape in found), *found[0][1:])
        if tuple(whole) != tuple(parameter.shape):
            return False
    return set(theirs) <= used


def _standard(name: str, units: Sequence[int]) -> list[tuple[Any, ...]] | None:
    """Return the steps of a network's own head with these units; None if it has another number of dense layers."""
    if "hidden" not in CATALOG[name].standard:
        return [("average",), ("dense", units[0])] if len(units) == 1 else None
    first = [("flatten",)]
    return None if len(units) != 3 else [
        *first, ("dense", units[0]), ("relu",), ("dense", units[1]), ("relu",), ("dense", units[2])
    ]  # fmt: skip


def _steps_of(head: Sequence[Any], window: Sequence[int]) -> tuple[list[tuple[Any, ...]], list[str]] | None:
    """Return a head as steps of `networks.heads`, and its layers with weights; None if it has other layers."""
    steps: list[tuple[Any, ...]] = []
    placed = []
    for number, (name, kind, _, settings) in enumerate(head):
        if number == 0 and kind in ("average_pool", "max_pool") and tuple(settings["kernel"]) == tuple(window):
            steps.append(({"average_pool": "average", "max_pool": "max"}[kind],))
        elif kind == "flatten" and number <= 1 and not settings.get("channels_last"):
            steps += [] if steps else [("flatten",)]
        elif kind in ("dense", "batch_norm"):
            steps.append((kind, settings["outputs" if kind == "dense" else "epsilon"]))
            placed.append(name)
        elif kind == "dropout":
            steps.append((kind, settings["rate"]))
        elif kind in ACTIVATIONS:
            steps.append((kind, *(settings.values() if kind in NUMBERED else ())))
        else:
            return None
    if head and not any(step[0] == "dense" for step in steps):
        return None
    return steps, placed


# Comparing operations


def _same(ours: Sequence[Op], theirs: Sequence[Op]) -> dict[str, tuple[str, ...]] | None:
    """Return our layer with weights -> theirs if both lists of operations compute the same map; else None."""
    terms: dict[Any, int] = {}
    one, other = _Graph(ours, terms), _Graph(theirs, terms)
    if one.term(len(ours) - 1) != other.term(len(theirs) - 1):
        return None
    modules: dict[str, tuple[str, ...]] = {}
    waiting: list[tuple[Reference, Reference]] = [(len(ours) - 1, len(theirs) - 1)]
    seen = set()
    while waiting:
        pair = waiting.pop()
        if pair in seen:
            continue
        seen.add(pair)
        (_, names, sources), (_, their_names, their_sources) = one.read(pair[0]), other.read(pair[1])
        if names and modules.setdefault(names[0], their_names) != their_names:
            return None
        waiting.extend(zip(sources, their_sources, strict=True))
    taken = [name for names in modules.values() for name in names]
    if len(set(taken)) < len(taken):
        return None
    order = [op.name for op in ours]
    return {name: modules[name] for name in sorted(modules, key=order.index)}


class _Graph:
    """Operations in a form that does not depend on how they were written."""

    def __init__(self, ops: Sequence[Op], terms: dict[Any, int]) -> None:
        self.ops, self.terms = ops, terms
        self.known: dict[Reference, int] = {}
        for number in range(len(ops)):  # from the images on, so that no call goes deep
            self.term(number)

    def term(self, place: Reference) -> int:
        """Return a number that is equal for two outputs if and only if they are computed in the same way."""
        if place not in self.known:
            key, _, sources = self.read(place)
            self.known[place] = self.terms.setdefault((key, *map(self.term, sources)), len(self.terms))
        return self.known[place]

    def read(self, place: Reference) -> tuple[Key, tuple[str, ...], list[Reference]]:
        """Return what an operation does, its layers with weights, and what it reads."""
        place = self._skipped(place)
        if isinstance(place, tuple):
            return self._concatenated(place)
        op = self.ops[place]
        if op.kind == "images":
            return ("images",), (), []
        if op.kind in ("conv", "max", "average"):
            window, source = op.window, self._skipped(op.inputs[0])
            padding = window.padding
            while isinstance(source, int) and self.ops[source].kind == "pad" and self._may_pad(op, source):
                padding = _sum(padding, self.ops[source].window.padding)
                source = self._skipped(self.ops[source].inputs[0])
            key: Key = (op.kind, window.kernel, window.stride, window.dilation, padding, getattr(op.layer, "groups", 1))
            return key, (op.name,) if op.kind == "conv" else (), [source]
        sources: list[Reference] = [self._skipped(each) for each in op.inputs]
        if op.kind == "cat":
            return self._concatenated(op.inputs)
        if op.kind == "merge":
            add = op.layer is operator.add or isinstance(op.layer, own.Add)
            return ("add",) if add else (repr(op.layer),), (), sorted(sources, key=self.term) if add else sources
        if op.kind == "pad":
            return ("pad", op.window.padding), (), sources
        key = _cells(op.layer)
        return key, (op.name,) if key == ("batch norm",) else (), sources

    def _skipped(self, place: Reference) -> Reference:
        """Return the operation itself, or what it passes on in eval mode."""
        while isinstance(place, int) and isinstance(self.ops[place].layer, nn.Dropout | nn.Dropout2d | nn.Identity):
            place = self.ops[place].inputs[0]
        return place

    def _may_pad(self, op: Op, pad: int) -> bool:
        """Return whether zeros around a map can be the padding of the operation: not if a maximum may be negative."""
        if op.kind == "conv":
            return True
        source = self._skipped(self.ops[pad].inputs[0])
        return op.kind == "max" and isinstance(source, int) and isinstance(self.ops[source].layer, nn.ReLU)

    def _concatenated(self, places: Sequence[int]) -> tuple[Key, tuple[str, ...], list[Reference]]:
        """Read several outputs, concatenated: a convolution in groups, an activation of such, or just that."""
        parts = list(self._flat(places))
        ops = [self.ops[part] for part in parts]
        if all(op.kind == "conv" for op in ops):
            if (source := self._sliced(ops)) is not None and len({self.read(part)[0] for part in parts}) == 1:
                kind, *rest, padding, _ = self.read(parts[0])[0]
                while self.ops[source].kind == "pad":
                    padding, source = _sum(padding, self.ops[source].window.padding), self.ops[source].inputs[0]
                return (kind, *rest, padding, len(parts)), tuple(op.name for op in ops), [source]
        elif all(isinstance(op.layer, nn.ReLU) for op in ops):
            below = tuple(op.inputs[0] for op in ops)
            inner = [self.ops[each] for each in below]
            if all(op.kind == "conv" for op in inner) and self._sliced(inner) is not None:
                return ("relu",), (), [below]
        return ("concatenate",), (), list(parts)

    def _flat(self, places: Sequence[int]) -> Iterator[int]:
        for place in places:
            place = self._skipped(place)  # type: ignore[assignment]
            if self.ops[place].kind == "cat":
                yield from self._flat(self.ops[place].inputs)
            else:
                yield place

    def _sliced(self, convolutions: Sequence[Op]) -> int | None:
        """Return what convolutions read if they read its channels, one equal slice after another."""
        slices = []
        for op in convolutions:
            place = op.inputs[0]
            while self.ops[place].kind == "pad":
                place = self.ops[place].inputs[0]
            slices.append(self.ops[place])
        cuts = [op.layer for op in slices]
        if len({op.inputs for op in slices}) > 1 or not all(isinstance(cut, own.Channels) for cut in cuts):
            return None
        width = cuts[0].stop - cuts[0].start  # type: ignore[union-attr]
        equal = all((cut.start, cut.stop) == (width * number, width * (number + 1)) for number, cut in enumerate(cuts))  # type: ignore[union-attr]
        return slices[0].inputs[0] if equal else None


def _sum(one: Edges, other: Edges) -> Edges:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2], one[3] + other[3]


def _cells(layer: Any) -> tuple[Any, ...]:
    """Return what a layer does to each cell."""
    if isinstance(layer, nn.BatchNorm2d):
        return ("batch norm",)
    if isinstance(layer, nn.LocalResponseNorm):
        return ("local response norm", layer.size, layer.alpha, layer.beta, layer.k)
    return ("relu",) if isinstance(layer, nn.ReLU) else (repr(layer),)

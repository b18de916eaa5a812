"""Plan a network's head: how the feature map becomes a vector, the dense layers and the activations between them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise, takewhile
from typing import Any

from converters.listed import WAY_ON, Listed, few
from converters.names import Found, head_names, number
from converters.plan import Wishes
from converters.readers.keras_file import KerasFile, KerasLayer
from converters.readers.keras_graph import Graph, Node
from converters.readers.keras_words import ACTIVATIONS, IDENTITIES, KERAS_EPSILON, kind_of_name, number_of

READS = {"Flatten": "flatten", "GlobalAveragePooling2D": "average", "GlobalMaxPooling2D": "max"}
CHAIN = ("Dense", "Activation", "BatchNormalization", "ReLU", "LeakyReLU", "ELU", "Softmax", "AveragePooling2D")
PLAIN = {"relu": "relu", "relu6": "relu6", "selu": "selu", "gelu": "gelu", "silu": "silu", "swish": "silu",
         "sigmoid": "sigmoid", "tanh": "tanh", "softplus": "softplus"}  # fmt: skip
NUMBERED = {"leaky_relu": "LeakyReLU", "elu": "ELU"}  # activation layers with a numeric parameter
OWN_READERS = ("avg_pool", "max_pool")  # pooling layer names in Keras's own networks
MAPS = ("MaxPooling2D", "Concatenate", "Add")  # layers that can end the convolutional part
OUTPUTS = {"softmax": "softmax", "sigmoid": "sigmoid", "linear": "none"}

Step = tuple[Any, ...]


@dataclass(frozen=True)
class Head:
    """The layers after the convolutions.

    Attributes:
        steps: in the format of `convnets_torch.networks.heads`; empty for no head.
        layers: our module -> Keras layer.
        activation: output activation; None if the file does not specify it.
        flatten: the Flatten node of the model's config, if any.
        choices: notes on assumptions made because the file does not specify something.
        hidden: step used for hidden activations that the file does not specify.
    """

    steps: tuple[Step, ...]
    layers: Mapping[str, KerasLayer]
    activation: str | None
    flatten: Node | None = None
    choices: tuple[str, ...] = ()
    hidden: Step = ("relu",)

    @property
    def units(self) -> int | None:
        """Number of outputs of the last dense layer."""
        return next((step[1] for step in reversed(self.steps) if step[0] == "dense"), None)

    @property
    def essence(self) -> tuple[Step, ...]:
        """The steps without dropout; heads with equal steps compute the same outputs."""
        return tuple(step for step in self.steps if step[0] != "dropout")


def head_of_graph(file: KerasFile, found: Found, graph: Graph, wishes: Wishes) -> Head:
    """Return the head described by a model's config.

    Raises:
        ValueError: the user gives a hidden activation although the config specifies it.
        ValueError: the end of the model is not a chain of known layers.
    """
    if wishes.hidden_activation is not None:
        raise ValueError(f"{file.path}: its config specifies the hidden activations; leave out the hidden activation")
    base = {id(layer) for layer in found.base.values()}
    chain: list[Node] = []
    end = graph[graph.output]
    while id(end.layer) not in base and len(end.inputs) == 1 and end.kind in (*READS, *IDENTITIES, *CHAIN):
        chain.insert(0, end)
        end = graph[end.inputs[0]]
    known = id(end.layer) in base or end.kind in MAPS
    reader = next((number for number, node in enumerate(chain) if node.kind in READS), None)
    if reader is None:
        if any(node.kind == "Dense" for node in chain):
            if not known:
                raise _not_read(file, end)
            raise ValueError(f"{file.path}: its head has a dense layer on a map, without Flatten or pooling before it")
        pooled = [node for node in chain if node.kind == "AveragePooling2D"]
        return Head((), {}, None, choices=_left_out(pooled))
    if not known and end.layer is not None:
        raise _not_read(file, end)
    reads = READS[chain[reader].kind]
    if reads == "flatten" and reader and chain[reader - 1].kind == "AveragePooling2D":
        reads = "average"  # pools the whole window; the check of the network's shapes verifies that
    head = [node for node in chain[reader + 1 :] if node.kind not in READS]
    flatten = chain[reader] if reads == "flatten" else None
    return _from_nodes(file, reads, head, flatten, chain)


def _not_read(file: KerasFile, node: Node) -> ValueError:
    return ValueError(f"{file.path}: its head has {node.own_name} ({node.kind}), which is not supported")


def _left_out(nodes: Sequence[Node]) -> tuple[str, ...]:
    """Return the note that a model without dense layers ends with `nodes`, which are not converted."""
    names = ", ".join(node.own_name for node in nodes)
    return (f"the model ends with {names}, which is left out: the features are the map before it",) if names else ()


def _from_nodes(file: KerasFile, reads: str, nodes: Sequence[Node], flatten: Node | None, read: Sequence[Node]) -> Head:
    steps: list[Step] = [(reads,)]
    layers: dict[str, KerasLayer] = {}
    activation = "linear"
    for node in nodes:
        layer = node.layer
        if layer is not None and node.kind in ("Dense", "BatchNormalization") and layer.kind != node.kind:
            raise ValueError(f"{file.path}: {node.own_name} is {node.kind} in its config, but has other arrays")
        if node.kind in ("Dense", "BatchNormalization"):
            steps += _activation_step(file, activation)
            activation = "linear"
            if (mode := node.settings.get("mode", 0)) != 0:
                raise ValueError(
                    f"{file.path}: {node.own_name} of its head normalises in mode {mode}; only mode 0 is supported"
                )
            if layer is None:
                raise ValueError(f"{file.path} is not complete: {node.own_name} of its config has no arrays")
            kind, short = ("dense", "dense") if node.kind == "Dense" else ("batch_norm", "bn")
            count = 1 + sum(step[0] == kind for step in steps)
            layers[f"head.{short}_{count}"] = layer
            if kind == "dense":
                steps.append((kind, layer.arrays["kernel"].shape[-1]))
                activation = _activation(node.settings.get("activation"))
            else:
                steps.append((kind, float(node.setting("epsilon", default=KERAS_EPSILON))))
        elif node.kind == "Dropout":
            steps += _activation_step(file, activation)
            activation = "linear"
            steps.append(("dropout", float(node.setting("rate", "p", default=0.5))))
        elif node.kind not in IDENTITIES:
            steps += _activation_step(file, activation)
            activation = _activation_of_layer(file, node)
    if len(steps) == 1 and not layers:
        return Head((), {}, None, flatten, _left_out([node for node in read if node.kind in READS]))
    if not any(step[0] == "dense" for step in steps):
        raise ValueError(
            f"{file.path}: its head has no dense layer; only the convolutional part of such models is read"
        )
    if activation not in OUTPUTS:
        raise ValueError(f"{file.path}: its outputs have the activation {activation!r}; known: {', '.join(OUTPUTS)}")
    return Head(tuple(steps), layers, OUTPUTS[activation], flatten)


def _activation(value: Any) -> str:
    if isinstance(value, Mapping):  # Keras 3 serialises some activations as objects
        value = value.get("config", {}).get("name") if isinstance(value.get("config"), Mapping) else value.get("config")
    return "linear" if value is None else str(value)


def _activation_of_layer(file: KerasFile, node: Node) -> str:
    if node.kind == "Activation":
        return _activation(node.settings.get("activation"))
    plain = {"ReLU": "relu", "Softmax": "softmax"}
    if node.kind in plain and not any(node.settings.get(key) for key in ("max_value", "negative_slope", "threshold")):
        return plain[node.kind]
    if node.kind == "LeakyReLU":
        return f"leaky_relu {number_of(node.setting('negative_slope', 'alpha', default=0.3))}"
    if node.kind == "ELU":
        return f"elu {number_of(node.setting('alpha', default=1.0))}"
    raise _not_read(file, node)


def _activation_step(file: KerasFile, activation: str) -> list[Step]:
    """Return the step of a hidden activation; no step for linear."""
    name, _, number = activation.partition(" ")
    if name == "linear":
        return []
    if name in PLAIN:
        return [(PLAIN[name],)]
    if name in ("elu", "leaky_relu"):
        return [(name, float(number or {"elu": 1.0, "leaky_relu": 0.2}[name]))]
    raise ValueError(
        f"{file.path}: its head has the activation {activation!r} between layers; known: linear, elu, leaky_relu, "
        + ", ".join(PLAIN)
    )


def head_of_arrays(file: KerasFile, found: Found, listed: Listed | None, channels: int, wishes: Wishes) -> Head:
    """Return the head of a file without config, its layers in file order where the file keeps one.

    Args:
        listed: the layers around the network's own; None if some of the network's layers are missing, which is
            reported later.
        channels: channels of the feature map.

    Raises:
        ValueError: a layer has an unsupported class or position, its position is ambiguous, or the rows of the first
            dense layer do not fit the pooling before it.
    """
    layers = found.rest
    if found.standard_head and file.named:  # other layers are reported as unknown, together with all other problems
        layers = tuple(layer for layer in layers if layer.name in head_names(found.lineage))
    for layer in layers:
        if layer.kind not in ("Dense", "BatchNormalization"):
            raise ValueError(f"{file.path} is not a complete {found.lineage.network}: {layer.name} is unknown")
    if not any(layer.kind == "Dense" for layer in layers):
        return Head((), {}, None)
    if listed is None:
        listed = Listed((), layers, ordered=True, complete=False)
    elif listed.ordered:
        _refuse_frozen(file, layers)
        used = {id(layer) for layer in layers}
        listed = replace(listed, head=tuple(one for one in listed.head if not one.arrays or id(one) in used))
    else:
        listed = replace(listed, head=_in_order(file, layers, [one for one in listed.head if not one.arrays]))
    return _Listing(file, found, listed, channels, wishes).head()


def _refuse_frozen(file: KerasFile, layers: Sequence[KerasLayer]) -> None:
    """Raise ValueError if a nested model's layers are not in creation order: Keras lists frozen layers last."""
    for one, other in pairwise(layer for layer in layers if re.fullmatch(r"dense(_\d+)?", layer.name)):
        if one.parents and one.parents == other.parents and number(one.name) > number(other.name):
            raise ValueError(
                f"{file.path} lists {one.name} of {one.parents[0]} before {other.name}, as it does where layers are"
                f" frozen, so their order is unknown; {WAY_ON}"
            )


class _Listing:
    """Builds the steps of a head layer by layer, in listed order."""

    def __init__(self, file: KerasFile, found: Found, listed: Listed, channels: int, wishes: Wishes) -> None:
        self.file, self.found, self.listed, self.wishes = file, found, listed, wishes
        self.hidden = wishes.hidden_activation or "relu"
        self.layers = listed.head
        self.dense = [place for place, layer in enumerate(self.layers) if layer.arrays and layer.kind == "Dense"]
        places = (place for place, layer in enumerate(self.layers[: self.dense[0]]) if layer.kind in READS)
        self.reader = next(places, self.dense[0])  # Flatten or pooling layer, if listed; else the first dense layer
        self.reads = self._reads(channels)
        self.steps: list[Step] = [(self.reads,)]
        self.placed: dict[str, KerasLayer] = {}
        self.choices: list[str] = []
        self.assumed: list[str] = []  # layers for which the hidden activation is assumed
        self.relus: list[str] = []  # names of ReLU layers
        self.ended = False  # whether the output activation was listed
        self.output: str | None = None  # output activation, if the list specifies it

    def head(self) -> Head:
        hidden = next(iter(_activation_step(self.file, self.hidden)), ("linear",))
        pending: list[Step] = []  # activation of a dense layer, to be applied after its batch normalisation
        for place, layer in enumerate(self.layers):
            if not layer.arrays:
                self._plain(place, layer)
                continue
            kind, short = ("dense", "dense") if layer.kind == "Dense" else ("batch_norm", "bn")
            self.placed[f"head.{short}_{1 + sum(step[0] == kind for step in self.steps)}"] = layer
            if kind == "dense":
                self.steps.append((kind, layer.arrays["kernel"].shape[-1]))
                pending = self._fused(place, layer)
                following = self.layers[place + 1] if place + 1 < len(self.layers) else layer
                if self.listed.complete or following.kind != "BatchNormalization" or "bias" in layer.arrays:
                    self.steps += pending
                    pending = []
            else:
                self.steps += [(kind, KERAS_EPSILON), *pending]
                pending = []
                self.choices.append(f"{layer.name} is assumed to have Keras's default epsilon, {KERAS_EPSILON:g}")
        self._note_assumptions()
        return Head(tuple(self.steps), self.placed, self.output, choices=tuple(self.choices), hidden=hidden)

    def _fused(self, place: int, layer: KerasLayer) -> list[Step]:
        """Return the activation fused into a dense layer; none for the last, or if an activation layer follows."""
        if place == self.dense[-1]:
            return []
        behind = takewhile(lambda one: one.kind != "Dense" or not one.arrays, islice(self.layers, place + 1, None))
        if any(not one.arrays and _is_activation(one) for one in behind):
            return []
        self.assumed.append(layer.name)
        return _activation_step(self.file, self.hidden)

    def _plain(self, place: int, layer: KerasLayer) -> None:
        """Handle a layer without arrays: skip identities, add a step for an activation, refuse anything else."""
        kind = layer.kind
        reading = place < self.dense[0] and place <= self.reader
        if kind in IDENTITIES or kind == "Flatten" or (kind in READS and reading):
            return
        if place > self.dense[-1]:
            last = {"Softmax": "softmax", "softmax": "softmax", "sigmoid": "sigmoid", "Activation": None}
            if kind not in last or self.ended:
                raise self._refusal(layer)
            self.output, self.ended = last[kind], True
            return
        if reading:
            if kind != "ReLU" or self.placed:  # the map is already a ReLU output, so another ReLU changes nothing
                raise self._refusal(layer)
        elif kind == "ReLU" or kind in PLAIN:
            self.steps.append((PLAIN[kind.lower()],))
            self.relus += [layer.name] * (kind == "ReLU")
        elif kind not in ("Activation", NUMBERED.get(self.hidden.partition(" ")[0])):
            raise self._refusal(layer)
        else:
            self.steps += _activation_step(self.file, self.hidden)
            self.assumed.append(layer.name)

    def _refusal(self, layer: KerasLayer) -> ValueError:
        kinds = {value: key for key, value in NUMBERED.items()}
        said = (
            f"whose parameter the file does not store: give --hidden-activation '{kinds[layer.kind]} NUMBER', or"
            if layer.kind in kinds
            else "of which a weights file stores too little;"
        )
        kind = f" ({layer.kind})" if layer.kind else ", whose class is unknown"
        return ValueError(f"{self.file.path}: its head lists {layer.name}{kind}, {said} {WAY_ON}")

    def _reads(self, channels: int) -> str:
        """Return how the feature map becomes a vector: as listed, else inferred from the first dense layer's rows."""
        first = self.layers[self.dense[0]]
        rows = first.arrays["kernel"].shape[0]
        before = self.layers[: self.dense[0]]
        reads = "flatten" if rows != channels else "average"
        if self.reader < len(before):
            reader = before[self.reader]
            reads = READS[reader.kind]
            if reads != "flatten" and rows != channels:
                raise ValueError(
                    f"{self.file.path}: {first.name} has {rows} rows, but {reader.name} leaves {channels} values;"
                    f" {WAY_ON}"
                )
            mapped = [layer for layer in before[: self.reader] if layer.arrays]
            if mapped and reads != "average":  # batch normalisation and averaging commute
                raise self._refusal(mapped[0])
        elif self.listed.complete and not (first.parents or any(layer.parents for layer in self.found.base.values())):
            raise ValueError(f"{self.file.path}: its head has {first.name} on a map, without Flatten or pooling before"
                             f" it; {WAY_ON}")  # fmt: skip
        if any(layer.kind in READS and layer.kind != "Flatten" for layer in self.layers[self.dense[0] :]):
            raise ValueError(f"{self.file.path}: its head has {first.name} on a map, before its pooling; {WAY_ON}")
        return reads

    def _note_assumptions(self) -> None:
        if self.reader == self.dense[0] and self.reads == "average" and not self.found.standard_head:
            self.choices.insert(
                0, "the feature map is averaged before the dense layers, which have a row for each channel"
            )
        if self.assumed and not (self.wishes.hidden_activation or self.found.standard_head):
            self.choices.insert(
                0,
                f"{self.hidden} is assumed between the dense layers (at {few(self.assumed)}), as the file does not"
                " specify it; change it with --hidden-activation",
            )
        named = [layer for layer in self.layers if not layer.arrays and not kind_of_name(layer.name)]
        if named and self.file.container == "legacy":
            told = few([f"{layer.name} is {layer.kind}" for layer in named if layer.name not in OWN_READERS])
            self.choices += [f"inferred from layer names: {told}"] if told else []
        if self.relus:
            self.choices.append(f"{few(self.relus)} is assumed to have no maximum, threshold or slope")
        order = few([layer.name for layer in self.layers])
        if not self.listed.ordered and not self.found.standard_head:
            self.choices.append(f"the file numbers layers only within each class; their assumed order is {order}")
        elif not self.found.standard_head:
            self.choices.append(f"the head is assumed to be the listed layers in sequence: {order}")
        models = sorted({layer.parents[0] for layer in self.layers if layer.arrays and layer.parents})
        if models and self.file.container == "legacy":
            self.choices.append(
                f"of the layers of {few(models)} the file lists only those with weights; any others are assumed"
                " to change nothing"
            )
        elif not self.listed.complete and not self.found.standard_head:
            self.choices.append("the file lists no layers without weights; any are assumed to change nothing")


def _is_activation(layer: KerasLayer) -> bool:
    return layer.kind in (*ACTIVATIONS, "PReLU", "ThresholdedReLU", *PLAIN)


def _in_order(file: KerasFile, layers: Sequence[KerasLayer], plain: Sequence[KerasLayer]) -> tuple[KerasLayer, ...]:
    """Return the head's layers in the only order that sizes and biases allow, for a file that keeps no common order.

    Raises:
        ValueError: several orders are possible and would compute different outputs.
    """
    ordered = _by_sizes(file, layers)
    readers = [layer for layer in plain if layer.kind in READS]
    pools = {layer.kind for layer in readers} - {"Flatten"}
    if len(pools) > 1:
        raise ValueError(f"{file.path} lists {' and '.join(layer.name for layer in readers)}; {WAY_ON}")
    readers.sort(key=lambda layer: layer.kind == "Flatten")
    behind = [layer for layer in plain if layer.kind not in READS and not _is_activation(layer)]
    ends = [layer for layer in plain if layer.kind == "Softmax"]
    activations = [layer for layer in plain if _is_activation(layer) and layer.kind != "Softmax"]
    dense = [place for place, layer in enumerate(ordered) if layer.kind == "Dense"]
    result: list[KerasLayer] = [*behind, *readers[:1]]
    for place, layer in enumerate(ordered):
        result.append(layer)
        if place >= dense[-1] or not activations:
            continue
        following = ordered[place + 1]
        of_map = place < dense[0] and len(dense) > 1  # batch normalisation before the first of several dense layers
        if of_map or (following.kind == "BatchNormalization" and "bias" in layer.arrays):
            norm = layer if of_map else following
            raise ValueError(
                f"{file.path} does not say whether {activations[0].name} comes before or after {norm.name}; {WAY_ON}"
            )
        if following.kind == "Dense" and place >= dense[0]:
            result.append(activations.pop(0))
    return (*result, *activations, *ends)


def _by_sizes(file: KerasFile, layers: Sequence[KerasLayer]) -> list[KerasLayer]:
    """Return dense and batch normalisation layers in the only order that their sizes allow."""
    dense = [layer for layer in layers if layer.kind == "Dense"]
    norms = [layer for layer in layers if layer.kind == "BatchNormalization"]
    widths = [dense[0].arrays["kernel"].shape[0], *(layer.arrays["kernel"].shape[-1] for layer in dense)]
    first, last = _slots(norms, widths, forward=True), _slots(norms, widths, forward=False)
    for norm, one, other in zip(norms, first, last, strict=True):
        if one != other:
            raise ValueError(
                f"{file.path} does not say after which layer {norm.name} comes: its size fits several; {WAY_ON}"
            )
    ordered: list[KerasLayer] = []
    for slot, _ in enumerate(widths):  # after Flatten or pooling, and after each dense layer
        ordered += [*dense[max(0, slot - 1) : slot]]
        ordered += [norm for norm, place in zip(norms, first, strict=True) if place == slot]
    return ordered


def _slots(norms: Sequence[KerasLayer], widths: Sequence[int], *, forward: bool) -> list[int]:
    """Return the earliest (`forward`) or latest slot that fits each batch normalisation; all 0 if one fits nowhere."""
    numbers = range(len(widths))
    slots, waiting = [], list(norms if forward else norms[::-1])
    slot = 0 if forward else len(widths) - 1
    for norm in waiting:
        while slot in numbers and norm.arrays["moving_mean"].shape != (widths[slot],):
            slot += 1 if forward else -1
        if slot not in numbers:
            return [0] * len(norms)
        slots.append(slot)
    return slots if forward else slots[::-1]

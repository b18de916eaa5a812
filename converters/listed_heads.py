"""Read a head from the list of a file without config: its layers in listed order, or in the only order possible."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from math import prod
from typing import Any

from converters.architectures import Shape, shape_after
from converters.layer_lists import described, few, outputs_of
from converters.readers.keras_file import KerasFile, KerasLayer
from converters.readers.keras_words import ACTIVATIONS, IDENTITIES, KERAS_EPSILON, kind_of_name, kind_of_words

WAY_ON = "save the whole model as .keras and convert that, or give its to_json() with --architecture FILE.json"
POOLS = ("AveragePooling2D", "MaxPooling2D")
GLOBAL = ("GlobalAveragePooling2D", "GlobalMaxPooling2D")
READERS = ("Flatten", *GLOBAL)
OWN = {"avg_pool": "GlobalAveragePooling2D", "max_pool": "GlobalMaxPooling2D"}  # Keras's own names of poolings
PLAIN = ("relu", "relu6", "selu", "gelu", "silu", "swish", "sigmoid", "tanh", "softplus", "linear")
NUMBERED = {"leaky_relu": ("LeakyReLU", "negative_slope", 0.2), "elu": ("ELU", "alpha", 1.0)}
NUMBERED_KINDS = {kind: name for name, (kind, _, _) in NUMBERED.items()}
# Layers that may be the output activation -> the activation that they name.
OUTPUTS = {"Softmax": "softmax", "softmax": "softmax", "sigmoid": "sigmoid", "Activation": None}
MOST_ORDERS = 20_000  # steps of the search for a head's order


def activation_setting(path: Any, given: str) -> Any:
    """Return a hidden activation, "relu" or "leaky_relu 0.3", as a config has it.

    >>> activation_setting("weights.h5", "elu 0.5")
    {'class_name': 'ELU', 'config': {'alpha': 0.5}}
    """
    name, _, number = given.partition(" ")
    if name in PLAIN and not number:
        return name
    if name in NUMBERED:
        kind, word, default = NUMBERED[name]
        try:
            return {"class_name": kind, "config": {word: float(number or default)}}
        except ValueError:
            pass
    known = f"{', '.join(PLAIN)}, elu NUMBER, leaky_relu NUMBER"
    raise ValueError(f"{path}: its head has the activation {given!r} between layers; known: {known}")


@dataclass(frozen=True)
class Op:
    """A layer of a head as it will stand in the config: its class, its settings without a name, the listed layer."""

    kind: str
    settings: Mapping[str, Any]
    layer: KerasLayer


@dataclass
class Head:
    """A head and what was assumed for it; `essence` is equal for heads that compute the same."""

    ops: list[Op] = field(default_factory=list)
    essence: tuple[Any, ...] = ()
    notes: list[str] = field(default_factory=list)
    uses_hidden: bool = False


@dataclass(frozen=True)
class Place:
    """Where a head begins.

    Attributes:
        shape: of the network's output; a map, or a vector behind the network's own top.
        path: names of the nested models that hold the network.
        positive: whether the output has no negative values.
        hides: whether the file does not list the layers without arrays of the model that holds the network.
    """

    shape: Shape
    path: tuple[str, ...]
    positive: bool
    hides: bool


class HeadReader:
    """Reads the layers behind a network.

    Args:
        file: the file.
        layers: the layers as `with_kinds` gives them, in listed order where the file has one.
        place: where the head begins.
        hidden: the activation that the user names for places where the file names none; None for relu.
        output: returns the setting of the output activation for (units, activation that the list names).
        ordered: whether the layers are in order.
    """

    def __init__(
        self, file: KerasFile, layers: Sequence[KerasLayer], place: Place, hidden: str | None,
        output: Callable[[int, str | None], str], *, ordered: bool,
    ) -> None:  # fmt: skip
        self.file, self.place, self.output, self.ordered = file, place, output, ordered
        self.layers = list(layers)
        self.given = hidden
        self.hidden = activation_setting(file.path, hidden or "relu")

    def head(self) -> Head:
        """Return the head.

        Raises:
            ValueError: a layer's settings are not known and matter; a layer contradicts the shapes before it; or
                several orders are possible and compute different outputs.
        """
        for layer in self.layers:
            if self.ordered and layer.parents:
                raise self._hidden(layer.parents[0])
            self._check_known(layer)
        if not self.layers:
            return Head()
        head = self._in_order(self.layers) if self.ordered else self._only_order()
        order = few([op.layer.name for op in head.ops])
        if self.ordered:
            head.notes.append(f"the head is assumed to be the listed layers in sequence: {order}")
        else:
            head.notes.append(f"the file numbers layers only within each class; their assumed order is {order}")
        if self.place.hides:
            head.notes.append(
                f"of the layers of {self.place.path[-1]} the file lists only those with weights; it is assumed to be"
                " Keras's own network without its top"
            )
        return head

    # What a layer may be

    def _check_known(self, layer: KerasLayer) -> None:
        """Refuse a layer of which the list says too little, wherever it stands."""
        if layer.arrays:
            known = layer.kind in ("Dense", "BatchNormalization", "PReLU")
        elif layer.kind in NUMBERED_KINDS:
            known = isinstance(self.hidden, Mapping) and self.hidden["class_name"] == layer.kind
        else:
            known = layer.kind in (*IDENTITIES, *READERS, *POOLS, *PLAIN, *ACTIVATIONS)
        if not known:
            raise self._refusal(layer)

    def _hidden(self, model: str) -> ValueError:
        return ValueError(
            f"{self.file.path} lists only the arrays of {model}, not its layers without arrays, such as pooling and"
            f" activations; {WAY_ON}"
        )

    def _refusal(self, layer: KerasLayer) -> ValueError:
        said = (
            f"whose parameter the file does not store: give --hidden-activation '{NUMBERED_KINDS[layer.kind]} NUMBER',"
            " or"
            if layer.kind in NUMBERED_KINDS
            else "of which a weights file stores too little;"
        )
        kind = f" ({layer.kind})" if layer.kind else ", whose class is unknown"
        return ValueError(f"{self.file.path}: its head lists {layer.name}{kind}, {said} {WAY_ON}")

    # In listed order

    def _in_order(self, layers: Sequence[KerasLayer]) -> Head:
        """Return the head whose layers follow one another."""
        head = Head()
        essence: list[Any] = [("relu",)] if self.place.positive else []
        shape = self.place.shape
        dense = [place for place, layer in enumerate(layers) if layer.kind == "Dense"]
        last = dense[-1] if dense else -1
        assumed: list[str] = []  # layers with an activation that the file does not name
        relus: list[str] = []
        ended = False  # whether the output activation is found
        for place, layer in enumerate(layers):
            kind, settings = layer.kind, {}
            behind = [*takewhile(lambda one: one.kind != "Dense", layers[place + 1 :])]
            if len(shape) == 3 and self.place.hides and self._needs_map(layer, layers[place:], shape):
                raise self._hidden(self.place.path[-1])
            before, shape = shape, self._after(layer, shape)
            if kind == "Dense":
                essence.append(("dense", layer.name))
                activation: Any = "linear"
                if place == last:
                    if stray := [one for one in behind if one.arrays]:
                        raise self._refusal(stray[0])
                    if not any(map(_is_activation, behind)):
                        activation = self.output(shape[-1], None)
                        essence.append(("out", activation))
                        ended = True
                elif not any(_is_activation(one) or one.kind == "PReLU" for one in behind):
                    activation = self.hidden
                    assumed.append(layer.name)
                    _activate(essence, activation)
                settings = {"activation": activation, "use_bias": "bias" in layer.arrays}
            elif kind == "BatchNormalization":
                settings = {
                    "axis": -1, "epsilon": KERAS_EPSILON, "scale": "gamma" in layer.arrays,
                    "center": "beta" in layer.arrays,
                }  # fmt: skip
                essence.append(("norm", layer.name))
                head.notes.append(f"{layer.name} is assumed to have Keras's default epsilon, {KERAS_EPSILON:g}")
            elif kind == "PReLU":
                essence.append(("prelu", layer.name))
            elif kind in GLOBAL or (kind == "Flatten" and len(before) == 3):
                essence.append((kind,))
            elif kind in POOLS:
                settings = self._pool(layer, before)
                head.notes.append(f"{layer.name} is assumed to pool the whole map")
                essence.append((f"Global{kind}",))
            elif _is_activation(layer) and place > last >= 0:
                if ended or kind not in OUTPUTS:
                    raise self._refusal(layer)
                activation = self.output(shape[-1], OUTPUTS[kind])
                essence.append(("out", activation))
                ended = True
                settings = {"axis": -1} if kind == "Softmax" else {"activation": activation}
                kind = kind if kind == "Softmax" else "Activation"
            elif kind == "Softmax":
                if len(shape) != 1:
                    raise self._refusal(layer)
                settings = {"axis": -1}
                essence.append(("softmax",))
            elif kind == "ReLU":
                relus.append(layer.name)
                _activate(essence, "relu")
            elif kind in PLAIN:
                kind, settings = "Activation", {"activation": kind}
                _activate(essence, layer.kind)
            elif _is_activation(layer):  # of unknown function, or with the number that the user gives
                if len(shape) == 3 or not dense:
                    raise self._refusal(layer)
                settings = {"activation": self.hidden} if kind == "Activation" else dict(self.hidden["config"])
                assumed.append(layer.name)
                _activate(essence, self.hidden)
            head.ops.append(Op(kind, settings, layer))
        if dense and len(shape) == 3:
            raise ValueError(
                f"{self.file.path}: its head has {layers[last].name} on a map, without Flatten or pooling before it;"
                f" {WAY_ON}"
            )
        head.uses_hidden = bool(assumed)
        if assumed and not self.given:
            head.notes.insert(
                0,
                f"relu is assumed between the dense layers (at {few(assumed)}), as the file does not specify it; change"
                " it with --hidden-activation",
            )
        named = [
            layer for layer in layers if not layer.arrays and not kind_of_name(layer.name) and layer.name not in OWN
        ]
        if named and self.file.container == "legacy":
            told_by = few([f"{layer.name} is {layer.kind}" for layer in named])
            head.notes.append(f"inferred from layer names: {told_by}")
        if relus:
            head.notes.append(f"{few(relus)} is assumed to have no maximum, threshold or slope")
        head.essence = _commuted(essence)
        return head

    def _needs_map(self, layer: KerasLayer, layers: Sequence[KerasLayer], shape: Shape) -> bool:
        """Return whether a layer reads a map as only a pooling before it, which the file does not list, can give it."""
        return layer.kind == "Dense" or (layer.kind == "Flatten" and _rows_in(layers) == shape[-1] < prod(shape))

    def _after(self, layer: KerasLayer, shape: Shape) -> Shape:
        """Return the shape of a layer's output; raise ValueError if it cannot read values of this shape."""
        kind, path = layer.kind, self.file.path
        if kind in GLOBAL and len(shape) != 3:
            raise ValueError(f"{path}: its head lists {layer.name} ({kind}) where there is no map; {WAY_ON}")
        if kind in POOLS and len(shape) != 3:
            raise self._refusal(layer)
        if kind == "PReLU" and (len(shape) != 1 or layer.arrays["alpha"].shape != shape):
            raise self._refusal(layer)
        wanted = {"Dense": ("kernel", "rows"), "BatchNormalization": ("moving_mean", "values")}
        if kind in wanted:
            role, what = wanted[kind]
            if (count := layer.arrays[role].shape[0]) != shape[-1]:
                raise ValueError(f"{path}: {layer.name} has {count} {what}, but reads {shape[-1]} values; {WAY_ON}")
        if kind in POOLS:
            return (1, 1, shape[-1])
        return shape_after(kind, {}, [shape], outputs_of(layer))

    def _pool(self, layer: KerasLayer, shape: Shape) -> dict[str, Any]:
        """Return the settings of a listed pooling if only one size is possible."""
        rows = _rows_in(self.layers[self.layers.index(layer) :] if self.ordered else self.layers)
        cells = shape[:2]
        if rows != shape[-1] or max(cells) > 2:
            why = (
                f"several sizes leave one of its {cells[0]}x{cells[1]} cells"
                if rows == shape[-1]
                else f"a map of {cells[0]}x{cells[1]} cells and {rows or 'no'} rows leave it open"
            )
            raise ValueError(
                f"{self.file.path}: its head lists {layer.name} ({layer.kind}), whose size the file does not store, and"
                f" {why}; {WAY_ON}"
            )
        return {"pool_size": list(cells), "strides": list(cells), "padding": "valid"}

    # In the only order possible

    def _only_order(self) -> Head:
        """Return the head in the only order that computes something and fits all shapes.

        Dense layers are taken to read vectors, activations to stand behind a dense layer or normalisation, and a
        dense layer without bias to be followed by its normalisation.
        """
        idle = [layer for layer in self.layers if layer.kind in IDENTITIES]
        acting = [layer for layer in self.layers if layer.kind not in IDENTITIES]
        levels = {layer.parents for layer in acting}
        outward = {self.place.path[:depth] for depth in range(len(self.place.path) + 1)}
        if len(levels) > 1 and not levels <= outward:
            names = few(sorted("/".join(level) or "the model" for level in levels))
            raise ValueError(f"{self.file.path} does not say in which order the layers of {names} come; {WAY_ON}")
        found: list[tuple[list[KerasLayer], Head]] = []
        first: ValueError | None = None
        for count, order in enumerate(self._orders(acting)):
            if count > MOST_ORDERS:
                raise ValueError(f"{self.file.path} does not say in which order its head's layers come; {WAY_ON}")
            try:
                found.append((order, self._in_order(order)))
            except ValueError as error:
                first = first or error
        if not found:
            raise first or ValueError(
                f"{self.file.path}: the sizes of its head's layers ({few([described(one) for one in acting])}) fit no"
                f" order; {WAY_ON}"
            )
        found = [one for one in found if _normalised_at_once(one[0])] or found
        different: dict[tuple[Any, ...], list[KerasLayer]] = {}
        for order, head in found:
            different.setdefault(head.essence, order)
        if len(different) > 1:
            one, other, *_ = (few([layer.name for layer in order]) for order in different.values())
            raise ValueError(
                f"{self.file.path} does not say in which order its head's layers come, as it numbers them only"
                f" within each class: {one}, or {other}; {WAY_ON}"
            )
        head = found[0][1]
        start = next((place for place, op in enumerate(head.ops) if op.kind in READERS), -1) + 1
        head.ops[start:start] = [Op(layer.kind, {}, layer) for layer in idle]
        return head

    def _orders(self, layers: Sequence[KerasLayer]) -> Iterator[list[KerasLayer]]:
        """Yield the orders in which each class keeps its own and the sizes of dense layers and normalisations fit."""
        kinds: dict[tuple[int, str], list[KerasLayer]] = {}  # those of inner models come first
        for layer in layers:
            kinds.setdefault((-len(layer.parents), layer.kind), []).append(layer)
        # In this order the first complete one is what people write: normalise and activate behind a dense layer.
        preferred = sorted(
            kinds, key=lambda one: (one[0], one[1] not in READERS, one[1] == "Flatten", one[1] == "Dense")
        )

        def search(so_far: list[KerasLayer], shape: Shape, taken: Counter[Any]) -> Iterator[list[KerasLayer]]:
            if len(so_far) == len(layers):
                yield so_far
                return
            left = [kind for kind in preferred if taken[kind] < len(kinds[kind])]
            for kind in left:
                layer = kinds[kind][taken[kind]]
                # Dense layers read vectors, and an activation of pooled values is not what people write.
                activates = bool(so_far) and so_far[-1].kind in ("Dense", "BatchNormalization")
                skipped = len(shape) == 3 if layer.kind == "Dense" else _is_activation(layer) and not activates
                if skipped or kind[0] != left[0][0]:
                    continue
                try:
                    after = self._after(layer, shape)
                except ValueError:
                    continue
                yield from search([*so_far, layer], after, taken + Counter([kind]))

        yield from search([], self.place.shape, Counter())


def with_kinds(layers: Sequence[KerasLayer], *, named: bool) -> Iterator[KerasLayer]:
    """Yield the layers, those without arrays and class with the class that their names tell.

    Args:
        layers: of a head, in listed order.
        named: whether Keras names the network's own global pooling "avg_pool" or "max_pool".
    """
    words = " ".join(layer.name for layer in layers if layer.arrays)
    for number, layer in enumerate(layers):
        if layer.kind or layer.arrays:
            yield layer
            continue
        kind = kind_of_words(layer.name, words)
        flattened = number + 1 < len(layers) and layers[number + 1].kind == "Flatten"
        if named and layer.name in OWN and not flattened:  # behind a global pooling there is nothing to flatten
            kind = OWN[layer.name]
        yield replace(layer, kind=kind)


def _rows_in(layers: Sequence[KerasLayer]) -> int | None:
    """Return the rows of the first dense layer."""
    return next((layer.arrays["kernel"].shape[0] for layer in layers if layer.kind == "Dense"), None)


def _is_activation(layer: KerasLayer) -> bool:
    return not layer.arrays and (layer.kind in ACTIVATIONS or layer.kind in PLAIN)


def _normalised_at_once(order: Sequence[KerasLayer]) -> bool:
    """Return whether a normalisation follows each hidden dense layer that has no bias."""
    dense = [place for place, layer in enumerate(order) if layer.kind == "Dense"]
    bare = [place for place in dense[:-1] if "bias" not in order[place].arrays]
    return bool(bare) and all(order[place + 1].kind == "BatchNormalization" for place in bare)


def _activate(essence: list[Any], activation: Any) -> None:
    """Append an activation, unless it is a ReLU of values that are not negative."""
    computed = [one for one in essence if one[0] not in READERS]
    if activation == "relu" and computed and computed[-1] == ("relu",):
        return
    essence.append((activation,) if isinstance(activation, str) else (str(activation),))


def _commuted(essence: Sequence[Any]) -> tuple[Any, ...]:
    """Put normalisations of a map behind the averaging that follows them, with which they commute."""
    result = list(essence)
    for place in range(len(result) - 2, -1, -1):
        for here in range(place, len(result) - 1):
            if result[here][0] != "norm" or result[here + 1] != ("GlobalAveragePooling2D",):
                break
            result[here], result[here + 1] = result[here + 1], result[here]
    return tuple(result)

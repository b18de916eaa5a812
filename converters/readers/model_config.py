"""The config of a whole model as one flat graph of layers, nested models taken apart; of Keras 1, 2 and 3."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converters.readers.config_checks import check_settings, told_of
from converters.readers.keras_words import kind_of_class

MODELS = ("Functional", "Sequential")
MOST_LAYERS = 20_000
DEEPEST = 20  # levels of nested models


@dataclass(frozen=True)
class Node:
    """One layer of the graph.

    Attributes:
        name: of the layer.
        kind: its class, in Keras 3's spelling.
        config: its own config, as stored.
        parents: names of the nested models that it is in, outermost first.
        inputs: places in the list of nodes of the layers before it.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    parents: tuple[str, ...]
    inputs: tuple[int, ...]

    def __post_init__(self) -> None:
        check_settings(self.name, self.kind, self.config)

    def setting(self, *names: str, default: Any) -> Any:
        """A setting by its names in several versions."""
        return next((self.config[name] for name in names if self.config.get(name) is not None), default)


def model_graph(config: Mapping[str, Any]) -> tuple[Node, ...]:
    """The layers of a model, each after those that it reads; the last one is the output.

    Args:
        config: {"class_name": ..., "config": ...}, as Keras stores it.

    Raises:
        ValueError: the config is no model's, has several outputs, or a layer is shared (called more than once).
    """
    nodes: list[Node] = []
    try:
        output = _add_model(nodes, config, (), None)
    except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"the model's config cannot be read ({error!r:.200})") from None
    if output != len(nodes) - 1:  # what stands after the output does not matter to it
        nodes = _renumbered(nodes, output)
    return tuple(nodes)


def _add_model(nodes: list[Node], model: Mapping[str, Any], parents: tuple[str, ...], source: int | None) -> int:
    """Append the layers of a model that reads node `source` (None: it begins the graph); the place of its output."""
    if len(parents) > DEEPEST:
        raise ValueError("the model's config nests models without end")
    if kind_of_class(str(model["class_name"])) == "Sequential":
        return _add_sequential(nodes, model["config"], parents, source)
    return _add_functional(nodes, model["config"], parents, source)


def _add_sequential(nodes: list[Node], config: Any, parents: tuple[str, ...], source: int | None) -> int:
    layers = config if isinstance(config, list) else config["layers"]
    place = source
    for layer in layers:
        with told_of(f"layer {_name(layer):.80}"):
            place = _add_layer(nodes, layer, parents, () if place is None else (place,))
    if place is None:
        raise ValueError("the model's config holds a model without layers")
    return place


def _add_functional(nodes: list[Node], config: Mapping[str, Any], parents: tuple[str, ...], source: int | None) -> int:
    inputs = {entry[0] for entry in _triples(config["input_layers"])}
    outputs = [entry[0] for entry in _triples(config["output_layers"])]
    if len(outputs) != 1:
        raise ValueError(f"the model has {len(outputs)} outputs; models with one are read")
    places: dict[str, int] = {}
    layers = {_name(layer): layer for layer in config["layers"]}
    reads = {}
    for name, layer in layers.items():
        with told_of(f"layer {name:.80}"):
            reads[name] = _inbound(layer)
    for name in _sorted(reads):
        if name in inputs and source is not None:
            places[name] = source  # the input of a nested model is what its parent gives it
        else:
            with told_of(f"layer {name:.80}"):
                places[name] = _add_layer(nodes, layers[name], parents, tuple(places[before] for before in reads[name]))
    return places[outputs[0]]


def _sorted(reads: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Names in their order, but each after those that it reads; in a time that grows as the config does."""
    begun: set[str] = set()
    done: set[str] = set()
    for first in reads:
        stack = [first]
        while stack:
            name = stack[-1]
            if name not in reads:
                raise ValueError(f"the model's config has a layer that reads {name:.80}, which is none")
            missing = [] if name in done else [before for before in reads[name] if before not in done]
            if missing and name in begun:
                raise ValueError(f"the model's config has layers that read each other: {name}, {missing[0]}")
            begun.add(name)
            stack += missing[::-1]
            if not missing:
                stack.pop()
                if name not in done:
                    done.add(name)
                    yield name


def _add_layer(nodes: list[Node], layer: Mapping[str, Any], parents: tuple[str, ...], inputs: tuple[int, ...]) -> int:
    name, kind = _name(layer), kind_of_class(str(layer["class_name"]))
    if kind in MODELS:
        return _add_model(nodes, layer, (*parents, name), inputs[0] if inputs else None)
    config = layer["config"]
    if kind == "TimeDistributed" or "layer" in config:
        raise ValueError(f"the model wraps a layer in {name} ({kind}), which is not read")
    shape = config.get("batch_shape") or config.get("batch_input_shape")
    if not inputs and kind != "InputLayer" and shape is not None:  # of a Sequential before Keras 3
        nodes.append(Node(f"{name}_input", "InputLayer", {"batch_shape": shape}, parents, ()))
        inputs = (len(nodes) - 1,)
    if len(nodes) >= MOST_LAYERS:
        raise ValueError(f"the model's config has more than {MOST_LAYERS} layers")
    nodes.append(Node(name, kind, config, parents, inputs))
    return len(nodes) - 1


def _name(layer: Mapping[str, Any]) -> str:
    config = layer["config"]
    return str(
        layer.get("name") or (config.get("name") if isinstance(config, Mapping) else None) or layer["class_name"]
    )


def _triples(entry: Any) -> list[list[Any]]:
    """Keras 3 writes ["name", 0, 0] for a single input or output where others write [["name", 0, 0]]."""
    return [entry] if entry and isinstance(entry[0], str) else list(entry)


def _inbound(layer: Mapping[str, Any]) -> list[str]:
    """Names of the layers that a layer reads."""
    calls = layer.get("inbound_nodes") or []
    if len(calls) > 1:
        raise ValueError(f"the model calls {_name(layer)} {len(calls)} times; layers that are shared are not read")
    names: list[str] = []
    for call in calls:
        if isinstance(call, Mapping):  # Keras 3
            names += _histories(call["args"])
            names += _histories(list(call.get("kwargs", {}).values()))
        else:
            entries = [call] if call and isinstance(call[0], str) else call
            names += [str(entry[0]) for entry in entries]
    return names


def _histories(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping) and value.get("class_name") == "__keras_tensor__":
        yield str(value["config"]["keras_history"][0])
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _histories(entry)


def upstream(nodes: Sequence[Node], output: int) -> set[int]:
    """The places of the nodes that the one at `output` depends on, itself among them."""
    needed, stack = set(), [output]
    while stack:
        place = stack.pop()
        if place not in needed:
            needed.add(place)
            stack.extend(nodes[place].inputs)
    return needed


def _renumbered(nodes: list[Node], output: int) -> list[Node]:
    """The nodes that the output depends on, and their places among themselves."""
    needed = upstream(nodes, output)
    order = {old: new for new, old in enumerate(sorted(needed))}
    return [
        Node(node.name, node.kind, node.config, node.parents, tuple(order[place] for place in node.inputs))
        for old, node in enumerate(nodes)
        if old in needed
    ]

"""A Keras model as a graph of layers, read out of its config; plain data.

Configs of Keras 1 (`nb_filter`, `border_mode`, `dim_ordering`), Keras 2 (`inbound_nodes` as nested lists) and Keras 3
(`__keras_tensor__` with its `keras_history`) give the same graph, in the words of Keras 2 and 3. Nested models are
laid out flat. Nothing of a config is executed: a layer that is not known here is refused by name when it is run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from converters.readers.config_checks import check_settings
from converters.readers.keras_file import DataFormat, KerasFile, KerasLayer

MODELS = ("Sequential", "Functional", "Model")
MOST_NESTED = 20  # models within models
MOST_NODES = 20_000  # calls of layers; the largest networks of Keras have some hundreds

_CLASSES = {
    "Convolution2D": "Conv2D",
    "AtrousConvolution2D": "Conv2D",
    "SeparableConvolution2D": "SeparableConv2D",
}
_WORDS = {  # of Keras 1
    "subsample": "strides",
    "border_mode": "padding",
    "dim_ordering": "data_format",
    "atrous_rate": "dilation_rate",
    "concat_axis": "axis",
}
_VALUES = {"th": "channels_first", "tf": "channels_last"}


@dataclass(frozen=True)
class Node:
    """One call of a layer.

    Attributes:
        name: of the layer, unlike that of every other node.
        kind: the class, in the words of Keras 3, "Conv2D".
        inputs: names of the nodes that it reads, in order.
        settings: the layer's config, in the words of Keras 2 and 3.
        layer: its arrays; None where it has none.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    layer: KerasLayer | None = None


@dataclass(frozen=True)
class Graph:
    """A model of one input and one output.

    Attributes:
        nodes: each after those that it reads; the first is the input.
        output: name of the node that is the result.
        data_format: of the input.
    """

    nodes: tuple[Node, ...]
    output: str
    data_format: DataFormat


def label(layer: KerasLayer, file: KerasFile) -> str:
    """What a weighted layer is called here: its name, with its parents' before it where two have the same."""
    alike = sum(other.name == layer.name for other in file.weighted)
    return layer.name if alike == 1 else "/".join((*layer.parents, layer.name))


def graph_of_config(file: KerasFile, data_format: DataFormat | None = None) -> Graph:
    """The graph of a whole model's file.

    Args:
        file: with a config.
        data_format: where no layer of the config says it.

    Raises:
        ValueError: there is no config, it has several inputs or outputs, or it is broken.
    """
    if file.config is None:
        raise ValueError(f"{file.path} holds no model config, only weights; name the network")
    reader = _Reader(file)
    try:
        kind, config = str(file.config["class_name"]), file.config["config"]
        source = "input"
        reader.nodes.append(Node(source, "InputLayer", ()))
        output = reader.lay_out(kind, config, (source,), (), ())
    except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, ValueError) as error:
        if isinstance(error, ValueError) and str(file.path) in str(error):
            raise
        raise ValueError(f"{file.path}: its model config is broken ({error!r:.200}); save the model again") from None
    formats = [str(node.settings["data_format"]) for node in reader.nodes if node.settings.get("data_format")]
    known: Any = data_format or file.data_format or next((one for one in formats if one != "default"), None)
    if known not in ("channels_first", "channels_last"):
        raise ValueError(f"{file.path}: its model config tells no data format; say channels_first or channels_last")
    return Graph(tuple(reader.nodes), output, known)


class _Reader:
    """Lays the layers of a config out as nodes, one model after another."""

    def __init__(self, file: KerasFile) -> None:
        self.file = file
        self.nodes: list[Node] = []
        self.calls = Counter(["input"])
        self.layers = {(layer.parents, layer.name): layer for layer in file.weighted}

    def lay_out(
        self, kind: str, config: Any, inputs: tuple[str, ...], parents: tuple[str, ...], places: tuple[str, ...]
    ) -> str:
        """Append the nodes of a model that is called on `inputs`; the name of its result.

        `parents` are the names of the models that this one is in and its own, `places` how a file without names
        calls them.
        """
        if kind not in MODELS:
            raise ValueError(f"{self.file.path}: its model is a {kind}, of which no config tells the layers")
        if len(parents) > MOST_NESTED:
            raise ValueError(f"{self.file.path}: its models are nested more than {MOST_NESTED} deep; save it again")
        entries = config if isinstance(config, list) else config["layers"]
        if kind == "Sequential":
            numbers = _numbers(entries)
            for entry, place in zip(entries, numbers, strict=True):
                if entry["class_name"] != "InputLayer":
                    inputs = (self._call(entry, inputs, parents, (*places, place)),)
            return _only(inputs)
        return self._functional(config, inputs, parents, places)

    def _functional(
        self, config: Any, inputs: tuple[str, ...], parents: tuple[str, ...], places: tuple[str, ...]
    ) -> str:
        entries = {
            entry["config"]["name"] if "name" not in entry else entry["name"]: entry for entry in config["layers"]
        }
        numbers = dict(zip(entries, _numbers(list(entries.values())), strict=True))
        starts, ends = _tensors(config["input_layers"]), _tensors(config["output_layers"])
        if len(starts) != len(inputs) or len(ends) != 1:
            raise ValueError(
                f"{self.file.path}: a model has {len(starts)} inputs and {len(ends)} outputs; one of each is read here"
            )
        done: dict[tuple[str, int], str] = {
            (name, call): node for (name, call), node in zip(starts, inputs, strict=True)
        }
        calls = {name: _calls(entry.get("inbound_nodes", [])) for name, entry in entries.items()}
        read = {*ends, *(tensor for each in calls.values() for sources in each for tensor in sources)}
        # Keras 1 and 2 count a model's own output as its call 0
        own = {name for name, call in read if call >= len(calls[name]) and entries[name]["class_name"] in MODELS}
        begun = set()
        waiting = [ends[0]]  # a stack and no recursion: networks are hundreds of layers deep
        while waiting:
            name, call = tensor = waiting[-1]
            if tensor in done:
                waiting.pop()
                continue
            sources = calls[name][call - 1 if name in own else call]
            missing = [source for source in sources if source not in done]
            if missing and tensor in begun:
                raise ValueError(f"{self.file.path}: the layers of its model config go in a circle; save it again")
            begun.add(tensor)
            waiting.extend(missing[::-1])
            if not missing:
                inputs = tuple(done[source] for source in sources)
                done[tensor] = self._call(entries[name], inputs, parents, (*places, numbers[name]))
        return done[ends[0]]

    def _call(self, entry: Any, inputs: tuple[str, ...], parents: tuple[str, ...], place: tuple[str, ...]) -> str:
        """Append the node, or for a model the nodes, of one layer called on `inputs`; the name of the result."""
        kind, config = str(entry["class_name"]), entry["config"]
        name = str(entry.get("name") or (config["name"] if isinstance(config, dict) else place[-1]))
        if kind in MODELS:
            return self.lay_out(kind, config, inputs, (*parents, name), place)
        if self.file.named:
            layer = self.layers.get((parents, name))
            if layer is None:  # some files keep no parents; then the name alone must tell
                alike = [one for one in self.file.weighted if one.name == name]
                layer = alike[0] if len(alike) == 1 else None
        else:
            layer = self.layers.get((place[:-1], place[-1])) or self.layers.get((parents, name))
        kind, settings = _in_new_words(kind, config)
        check_settings(name, kind, settings)
        node = "/".join((*parents, name))
        self.calls[node] += 1
        if self.calls[node] > 1:
            node += f" (call {self.calls[node]})"
        if len(self.nodes) > MOST_NODES:
            raise ValueError(f"{self.file.path}: its model config has more than {MOST_NODES} layers")
        self.nodes.append(Node(node, kind, inputs, settings, layer))
        return node


def _only(names: tuple[str, ...]) -> str:
    if len(names) != 1:
        raise ValueError(f"a Sequential reads one input, not {len(names)}")
    return names[0]


def _numbers(entries: Sequence[Any]) -> list[str]:
    """How `.weights.h5` and `.keras` call the layers: the class in small letters, and a number from the second on."""
    seen: dict[str, int] = {}
    names = []
    for entry in entries:
        word = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", str(entry["class_name"])))
        word = re.sub(r"([a-z])([A-Z])", r"\1_\2", word).lower()
        number = seen[word] = seen.get(word, -1) + 1
        names.append(f"{word}_{number}" if number else word)
    return names


def _tensors(entry: Any) -> list[tuple[str, int]]:
    """The (layer, call) pairs of ["name", 0, 0], of [["name", 0, 0], ...] or of a dict of such."""
    if isinstance(entry, Mapping):
        return [pair for value in entry.values() for pair in _tensors(value)]
    if entry and isinstance(entry[0], str):
        return [(entry[0], int(entry[1]))]
    return [pair for value in entry for pair in _tensors(value)]


def _calls(inbound: Sequence[Any]) -> list[list[tuple[str, int]]]:
    """For each call of a layer, the (layer, call) pairs that it reads."""
    calls = []
    for call in inbound:
        if isinstance(call, Mapping):  # Keras 3
            calls.append(list(_histories([call.get("args", []), call.get("kwargs", {})])))
        else:
            sources = [call] if call and isinstance(call[0], str) else call
            extra = [source for source in sources if len(source) > 3 and _holds_tensor(source[3])]
            if extra:
                raise ValueError(f"a layer is called with more than its input: {extra[0]!r:.80}")
            calls.append([(str(source[0]), int(source[1])) for source in sources])
    return calls


def _holds_tensor(keywords: Any) -> bool:
    return isinstance(keywords, Mapping) and any(isinstance(value, list) and value for value in keywords.values())


def _histories(value: Any) -> Iterator[tuple[str, int]]:
    if isinstance(value, Mapping):
        if value.get("class_name") == "__keras_tensor__":
            name, call, _ = value["config"]["keras_history"]
            yield str(name), int(call)
        else:
            for inner in value.values():
                yield from _histories(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _histories(inner)


def _in_new_words(kind: str, config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A layer's class and config of Keras 1, 2 or 3 in the words of the latter two."""
    settings = {_WORDS.get(word, word): value for word, value in config.items()}
    settings["data_format"] = _VALUES.get(str(settings.get("data_format")), settings.get("data_format"))
    if "nb_row" in settings:
        settings["kernel_size"] = (settings.pop("nb_row"), settings.pop("nb_col"))
    if kind == "Merge":
        mode = settings.get("mode")
        if mode not in ("concat", "sum"):
            raise ValueError(f"a Merge of mode {mode!r} is not known here; known: concat, sum")
        kind = "Concatenate" if mode == "concat" else "Add"
    return _CLASSES.get(kind, kind), settings


def in_layer_order(graph: Graph) -> tuple[Node, ...]:
    """The nodes as Keras orders `model.layers`: by depth from the output, then as a walk from it first meets them.

    Source: `map_graph` of keras/src/ops/function.py, which Keras 1 and 2 have as `Container.__init__`.
    """
    nodes = {node.name: node for node in graph.nodes}
    met: dict[str, None] = {}
    waiting = [graph.output]
    while waiting:
        name = waiting.pop()
        if name not in met:
            met[name] = None
            waiting.extend(reversed(nodes[name].inputs))
    depth = dict.fromkeys(met, 0)
    for node in reversed(graph.nodes):
        for source in node.inputs:
            depth[source] = max(depth[source], depth[node.name] + 1)
    walk = {name: index for index, name in enumerate(met)}
    return tuple(nodes[name] for name in sorted(met, key=lambda name: (-depth[name], walk[name])))

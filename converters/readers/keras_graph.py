"""Parse a model's config, of Keras 1, 2 or 3, into a tree of layers and a graph of layer calls.

Configs of Keras 1 (`nb_filter`, `border_mode`, `dim_ordering`), Keras 2 (`inbound_nodes` as nested lists) and Keras 3
(`__keras_tensor__` with its `keras_history`) give the same graph, in Keras 3's terms. Nested models are flattened.
Nothing in a config is executed; an unknown layer is refused by name when the graph is computed. Settings that determine
what a model computes are checked for type and range.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import index
from typing import Any, NamedTuple

from converters.readers.keras_file import DataFormat, KerasFile, KerasLayer
from converters.readers.keras_words import FORMATS, in_new_words, kind_of_class
from convnets_torch import files

MODELS = ("Sequential", "Functional")
OPERATIONS = {  # functions of tf that stand in a config of tf.keras, and the same ones in keras.ops
    "__operators__.add": "ops.Add", "math.add": "ops.Add", "nn.bias_add": "ops.Add", "math.subtract": "ops.Subtract",
    "__operators__.sub": "ops.Subtract", "math.multiply": "ops.Multiply", "__operators__.mul": "ops.Multiply",
    "math.truediv": "ops.TrueDivide", "math.divide": "ops.TrueDivide", "__operators__.truediv": "ops.TrueDivide",
    "__operators__.getitem": "ops.GetItem", "concat": "ops.Concatenate",
    "math.reduce_mean": "ops.Mean", "nn.relu": "ops.Relu", "nn.relu6": "ops.Relu6", "nn.silu": "ops.Silu",
    "nn.swish": "ops.Silu", "nn.sigmoid": "ops.Sigmoid", "math.sigmoid": "ops.Sigmoid", "math.tanh": "ops.Tanh",
    "nn.tanh": "ops.Tanh", "nn.softmax": "ops.Softmax", "nn.elu": "ops.Elu", "nn.softplus": "ops.Softplus",
    "cast": "ops.Cast",
}  # fmt: skip
MOST_NESTED = 20  # levels of nested models
MOST_LAYERS = 20_000  # layer calls; Keras's largest networks have several hundred


# The tree


@dataclass(frozen=True)
class Described:
    """A layer's entry in the config.

    Attributes:
        name: the layer's name.
        class_name: as stored.
        config: the layer's settings, as stored.
        layers: layers of a nested model, else None.
        outer: the whole entry, including module and registered name if present.
    """

    name: str
    class_name: str
    config: Mapping[str, Any]
    layers: tuple[Described, ...] | None
    outer: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """The class name in Keras 3's spelling; "ops.Add" for a function of `keras.ops` or `tf`, which is no layer."""
        module, function = self.outer.get("module"), self.config.get("function")
        if isinstance(module, str) and module.startswith(("keras.src.ops.", "keras.ops.")):
            return f"ops.{self.class_name}"
        calls = self.outer.get("inbound_nodes")
        modern = isinstance(calls, list) and calls and isinstance(calls[0], Mapping)
        if module is None and modern and not {"trainable", "dtype"} & set(self.config):
            return f"ops.{self.class_name}"  # an .h5 of Keras 3 has no modules, but only layers have these settings
        if self.class_name in ("TFOpLambda", "SlicingOpLambda") and isinstance(function, str):
            return OPERATIONS.get(function, self.class_name)
        return kind_of_class(self.class_name)


def parse(text: str) -> dict[str, Any]:
    """Parse a config's JSON; raise ValueError if it is not a config."""
    try:
        found = files.loads(text)
    except ValueError as error:
        raise ValueError(
            f"the model's config is not JSON as Keras writes it, or is nested too deeply ({error})"
        ) from None
    if not isinstance(found, dict) or not isinstance(found.get("class_name"), str) or "config" not in found:
        raise ValueError("the model's config names no class")
    return found


def describe(entry: Any, level: int = 0) -> Described:
    """Return the tree of a model or layer entry, {"class_name": ..., "config": ...}, which is nested `level` deep."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("class_name"), str):
        raise ValueError("the model's config has a layer without a class")
    if level > MOST_NESTED:
        raise ValueError(f"the model's config has models nested more than {MOST_NESTED} deep")
    config = entry.get("config")
    inner = config if isinstance(config, list) else config.get("layers") if isinstance(config, Mapping) else None
    if len(inner or ()) > MOST_LAYERS:
        raise ValueError(f"the model's config has more than {MOST_LAYERS} layers")
    layers = tuple(describe(layer, level + 1) for layer in inner) if isinstance(inner, list) else None
    own = config if isinstance(config, Mapping) else {}
    name = entry.get("name") or own.get("name") or ""
    return Described(str(name), entry["class_name"], own, layers, entry)


def each(described: Described, parents: tuple[str, ...] = ()) -> Iterator[tuple[Described, tuple[str, ...]]]:
    """Yield (layer, names of its parents) for all layers of a model in order, descending into nested models."""
    for layer in described.layers or ():
        if layer.layers is None:
            yield layer, parents
        else:
            yield from each(layer, (*parents, layer.name))


def data_format(described: Described) -> DataFormat | None:
    """Return the data format of the convolutions; None if it is not specified or they disagree."""
    found = {format_of(layer.config) for layer, _ in each(described) if "Conv" in layer.class_name}
    found.discard(None)
    return found.pop() if len(found) == 1 else None


def format_of(config: Mapping[str, Any]) -> DataFormat | None:
    """Return a layer's data format, also if stored as Keras 1's `dim_ordering`; None if not specified."""
    found = [
        FORMATS.get(value) for word in ("data_format", "dim_ordering") if isinstance(value := config.get(word), str)
    ]
    return next(filter(None, found), None)


# The graph


class Operand(NamedTuple):
    """A tensor among the arguments of an operation: the node's input of this number."""

    number: int


@dataclass(frozen=True)
class Node:
    """One call of a layer.

    Attributes:
        name: unique name of the node.
        kind: class name in Keras 3's spelling, "Conv2D".
        inputs: names of its input nodes, in order.
        settings: the layer's config, in Keras 2 and 3's terms.
        layer: the layer with its arrays; None if it has none.
        own_name: the layer's name, without the names of enclosing models.
        operands: arguments of an operation ("ops.Add"): constants as nested lists, tensors as `Operand`; () for layers.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    layer: KerasLayer | None = None
    own_name: str = ""
    operands: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        check_settings(self.own_name or self.name, self.kind, self.settings)

    def setting(self, *names: str, default: Any) -> Any:
        """Return a setting by its names in different Keras versions."""
        return next((self.settings[name] for name in names if self.settings.get(name) is not None), default)


@dataclass(frozen=True)
class Graph:
    """A model with one input and one output.

    Attributes:
        nodes: in topological order; the first is the input.
        output: name of the output node.
        data_format: data format of the input.
    """

    nodes: tuple[Node, ...]
    output: str
    data_format: DataFormat

    def __getitem__(self, name: str) -> Node:
        return self.by_name[name]

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        return {node.name: node for node in self.nodes}


def label(layer: KerasLayer, file: KerasFile) -> str:
    """Return a unique label of a layer with weights: its name, prefixed with its parents' names if ambiguous."""
    alike = sum(other.name == layer.name for other in file.weighted)
    return layer.name if alike == 1 else "/".join((*layer.parents, layer.name))


def graph_of_config(
    file: KerasFile, data_format: DataFormat | None = None, *, output: str | None = None, until: str | None = None
) -> Graph:
    """Return the graph of a file's model config.

    Args:
        file: a file with a config.
        data_format: overrides the config's data format, which may be unspecified.
        output: the output layer, for a model with several.
        until: a layer at which to cut the model; its output becomes the model's.

    Raises:
        ValueError: there is no config, it has several inputs, or several outputs and none is chosen; a chosen layer
            does not exist; or the config is malformed.
    """
    if file.config is None:
        raise ValueError(f"{file.path} holds no model config, only weights; name the network")
    reader = _Reader(file, output)
    try:
        end = reader.lay_out(describe(file.config), ("input",), ())
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from None
    except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{file.path}: its model config is broken ({error!r:.200}); save the model again") from None
    known: Any = data_format or file.data_format or _format_of(reader.nodes, (reader.input or {}).get("batch_shape"))
    if known not in ("channels_first", "channels_last"):
        raise ValueError(
            f"{file.path}: its model config specifies no data format; give channels_first or channels_last"
        )
    start = Node("input", "InputLayer", (), reader.input or {})
    graph = _with_alexnets(Graph((start, *reader.nodes), end, known))
    return graph if until is None else _cut(file, graph, until)


def _format_of(nodes: Sequence[Node], shape: Any) -> str | None:
    """Return the data format of a model's layers, or else the one in which its input has the channels of an image.

    The format of a Flatten counts last: it is that of the user's settings, in which the model need not be.
    """
    axes = {"channels_first": 1, "channels_last": 3}
    fitting = [
        name for name, axis in axes.items() if isinstance(shape, list) and shape[axis : axis + 1] in ([1], [3], [4])
    ]
    said = [[node.settings.get("data_format") for node in nodes if (node.kind == "Flatten") == last] for last in (0, 1)]
    return next((one for one in (*said[0], *fitting[: len(fitting) % 2], *said[1]) if one in axes), None)


def _cut(file: KerasFile, graph: Graph, until: str) -> Graph:
    """Return the part of a graph that a layer's output depends on."""
    found = [node for node in graph.nodes[1:] if until in (node.name, node.own_name)]
    if len(found) != 1:
        names = ", ".join(node.name for node in graph.nodes[-10:])
        many = f"{len(found)} layers named {until}; give the name of its model too" if found else f"no layer {until}"
        raise ValueError(f"{file.path} has {many}; its last layers are {names}")
    needed = {found[0].name}
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update(node.inputs)
    nodes = tuple(node for node in graph.nodes if node.name in needed)
    return replace(graph, nodes=nodes, output=found[0].name)


ALEXNETS = ("SplitTensor", "CrossChannelNormalization")


def _with_alexnets(graph: Graph) -> Graph:
    """Name the Lambda layers of convnets-keras's AlexNet after what they do, as far as their place tells.

    Two that read one layer, each in front of a convolution whose outputs are concatenated, take halves of the channels;
    one between a pooling and a padding normalises across channels. What they hold is never run.
    """
    kinds: dict[str, tuple[str, dict[str, Any]]] = {}
    for node in graph.nodes:
        halves = [graph[each] for source in node.inputs for each in graph[source].inputs]
        if node.kind == "Concatenate" and len(halves) == 2 and halves[0].inputs == halves[1].inputs:
            if all(half.kind == "Lambda" for half in halves):
                kinds |= {half.name: ("SplitTensor", {"half": place}) for place, half in enumerate(halves)}
        elif node.kind == "ZeroPadding2D" and graph[node.inputs[0]].kind == "Lambda":
            [before] = graph[node.inputs[0]].inputs
            if graph[before].kind == "MaxPooling2D":
                kinds[node.inputs[0]] = ("CrossChannelNormalization", {})
    if not kinds:
        return graph
    nodes = [replace(node, kind=kinds[node.name][0], settings=kinds[node.name][1]) if node.name in kinds else node
             for node in graph.nodes]  # fmt: skip
    return replace(graph, nodes=tuple(nodes))


class _Reader:
    """Flattens the layers of a config into nodes, one model after another."""

    def __init__(self, file: KerasFile, output: str | None = None) -> None:
        self.file, self.output = file, output
        self.nodes: list[Node] = []
        self.calls = Counter(["input"])
        self.layers = {(layer.parents, layer.name): layer for layer in file.weighted}
        self.input: Mapping[str, Any] | None = None  # settings of the first layer that specifies the input size

    def lay_out(self, model: Described, inputs: tuple[str, ...], parents: tuple[str, ...]) -> str:
        """Append the nodes of a model called on `inputs` and return the name of its output node.

        `parents` are the names of the enclosing models and of this one.
        """
        if model.kind not in MODELS:
            raise ValueError(f"its model is a {model.kind}, whose config does not list its layers")
        if model.layers is None:
            raise TypeError("a model without layers")
        if model.kind == "Functional":
            if (inner := _replicated(model)) is not None:
                self._look(model.layers[0], inputs)
                return self.lay_out(inner, inputs, (*parents, inner.name))
            return self._functional(model, model.layers, inputs, parents)
        for layer in model.layers:
            self._look(layer, inputs)
            if layer.kind != "InputLayer":
                inputs = (self._call(layer, inputs, parents),)
        if len(inputs) != 1:
            raise ValueError(f"a Sequential reads one input, not {len(inputs)}")
        return inputs[0]

    def _functional(
        self, model: Described, layers: Sequence[Described], inputs: tuple[str, ...], parents: tuple[str, ...]
    ) -> str:
        named = {layer.name: layer for layer in layers}
        starts, ends = _tensors(model.config["input_layers"]), _tensors(model.config["output_layers"])
        if self.output is not None and len(parents) == 0:
            known = [name for name, _ in ends]
            if self.output not in known:
                raise ValueError(f"its model has no output {self.output}; its outputs are {', '.join(known)}")
            ends = [ends[known.index(self.output)]]
        if len(ends) > 1:
            names = ", ".join(name for name, _ in ends)
            raise ValueError(f"its model has {len(ends)} outputs, {names}; choose one with --output-layer")
        for count, wanted, what in ((len(ends), 1, "outputs"), (len(starts), len(inputs), "inputs")):
            if count != wanted:
                raise ValueError(f"its model has {count} {what}; only one is supported")
        done = dict(zip(starts, inputs, strict=True))
        for name, _ in starts:
            self._look(named[name], inputs)
        calls = {
            name: _calls(layer.outer.get("inbound_nodes") or [], operation=layer.kind.startswith("ops."))
            for name, layer in named.items()
        }
        read = {*ends, *(tensor for each in calls.values() for sources, _ in each for tensor in sources)}
        if absent := [name for name, _ in read if name not in named]:
            raise ValueError(f"its model config has a layer that reads {absent[0]:.80}, which does not exist")
        # Keras 1 and 2 count a nested model's own output as its call 0.
        own = {name for name, call in read if call >= len(calls[name]) and named[name].kind in MODELS}
        begun = set()
        waiting = [ends[0]]  # a stack instead of recursion: networks are hundreds of layers deep
        while waiting:
            name, call = tensor = waiting[-1]
            if tensor in done:
                waiting.pop()
                continue
            sources, operands = calls[name][call - 1 if name in own else call]
            missing = [source for source in sources if source not in done]
            if missing and tensor in begun:
                raise ValueError("the layers of its model config form a cycle; save it again")
            begun.add(tensor)
            waiting.extend(missing[::-1])
            if not missing:
                inputs = tuple(done[source] for source in sources)
                done[tensor] = self._call(named[name], inputs, parents, operands)
        return done[ends[0]]

    def _look(self, layer: Described, inputs: tuple[str, ...]) -> None:
        """Record the input shape given by the first layer that reads the model's input."""
        said = layer.config.get("batch_shape") or layer.config.get("batch_input_shape")
        if self.input is None and inputs == ("input",) and said is not None:
            check_settings(layer.name, "InputLayer", layer.config)
            self.input = {"batch_shape": said}

    def _call(
        self, layer: Described, inputs: tuple[str, ...], parents: tuple[str, ...], operands: tuple[Any, ...] = ()
    ) -> str:
        """Append the node (for a nested model, the nodes) of a layer called on `inputs`; return the output's name."""
        if layer.kind in MODELS:
            return self.lay_out(layer, inputs, (*parents, layer.name))
        if layer.layers is not None:
            raise ValueError(f"its layer {layer.name} ({layer.class_name}) holds models of its own, each with an input")
        with config_errors(f"layer {layer.name or layer.class_name:.80}"):
            kind, settings = in_new_words(layer.kind, layer.outer["config"])
            place = (parents, layer.name)
            if kind == "TimeDistributed":
                inside = [key for key in self.layers if key[0] == (*parents, layer.name)]  # in a .keras file
                place = inside[0] if len(inside) == 1 else place
                kind, settings = _wrapped(layer.name, settings["layer"])
            elif "layer" in settings:
                raise ValueError(f"the model wraps a layer in {layer.name} ({kind}), which is not supported")
            if kind == "Lambda" and self._scales(layer.name, settings, inputs):
                kind, settings = "CustomScaleLayer", {"scale": settings["arguments"]["scale"]}
        held = self.layers.get(place)
        if held is None:  # some files store no parents; then the name must be unique
            alike = [one for one in self.file.weighted if one.name == layer.name]
            held = alike[0] if len(alike) == 1 else None
        name = "/".join((*parents, layer.name))
        self.calls[name] += 1
        if self.calls[name] > 1:
            name += f" (call {self.calls[name]})"
        if len(self.nodes) >= MOST_LAYERS:
            raise ValueError(f"its model config has more than {MOST_LAYERS} layers")
        is_operation = kind.startswith("ops.")
        self.nodes.append(Node(name, kind, inputs, settings, held, layer.name, operands if is_operation else ()))
        return name

    def _scales(self, name: str, settings: Mapping[str, Any], inputs: tuple[str, ...]) -> bool:
        """Return whether a Lambda is that of a block of InceptionResNetV2: first input + scale * second input.

        It is known by its place: its name, and that it adds the convolution called after it. Its code is never read.
        """
        arguments = settings.get("arguments")
        if not re.fullmatch(r"block(35|17|8)_\d+", name) or len(inputs) != 2 or not isinstance(arguments, Mapping):
            return False
        added = next((node for node in reversed(self.nodes) if node.name == inputs[1]), None)
        if added is None or (added.kind, added.own_name) != ("Conv2D", f"{name}_conv"):
            return False
        return set(arguments) == {"scale"} and _is_number(arguments["scale"])


STEPWISE = (  # layers that do the same to each step of a sequence as to the whole of it
    "Dense", "Activation", "ReLU", "LeakyReLU", "ELU", "ThresholdedReLU", "Dropout", "GaussianNoise", "GaussianDropout",
)  # fmt: skip


def _wrapped(name: str, layer: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return class and settings of a layer in a TimeDistributed, where it can stand on its own."""
    kind, settings = in_new_words(kind_of_class(layer["class_name"]), layer["config"])
    if kind not in STEPWISE:
        raise ValueError(
            f"{name} (TimeDistributed) wraps a {kind:.40} for sequences of pictures, but networks here read one"
            " picture; save the wrapped model by itself, or cut this one before it with --until"
        )
    return kind, settings


def _replicated(model: Described) -> Described | None:
    """Return the model within a model made by `multi_gpu_model`; None if it is no such model.

    Its place tells: one Lambda per GPU reads the input, with the number of its part of the batch as argument; the model
    reads them all; and a concatenation along the batch puts its outputs in order again. No code is read.

    Source: `multi_gpu_model` in keras/utils/multi_gpu_utils.py of Keras 2; its forerunner `make_parallel` says idx.
    """
    layers = [layer for layer in model.layers or () if layer.kind != "InputLayer"]
    slices = [layer for layer in layers if layer.kind == "Lambda"]
    rest = [layer for layer in layers if layer.kind != "Lambda"]
    starts, ends = _tensors(model.config["input_layers"]), _tensors(model.config["output_layers"])
    if not slices or len(rest) != 2 or len(starts) != 1 or rest[0].kind not in MODELS or ends != [(rest[1].name, 0)]:
        return None
    inner, gathered = rest
    kind, settings = in_new_words(gathered.kind, gathered.config)
    reads = [sources for sources, _ in _calls(gathered.outer["inbound_nodes"], operation=False)]
    if (kind, settings.get("axis")) != ("Concatenate", 0) or len(reads) != 1 or {*dict(reads[0])} != {inner.name}:
        return None
    [parts] = reads
    parts_of = {}  # Lambda -> number of its part
    for layer in slices:
        arguments = layer.config.get("arguments")
        number = arguments.get("i", arguments.get("idx")) if isinstance(arguments, Mapping) else None
        reads = [sources for sources, _ in _calls(layer.outer["inbound_nodes"], operation=False)]
        if reads != [starts] or not isinstance(arguments, Mapping) or arguments.get("parts") != len(slices):
            return None
        parts_of[layer.name, 0] = number
    calls = [sources for sources, _ in _calls(inner.outer["inbound_nodes"], operation=False)]
    first = min(call for _, call in parts)  # Keras 1 and 2 count the model's own output as its call 0
    order = [parts_of.get(source) for _, call in parts for source in calls[call - first]]
    return inner if order == list(range(len(slices))) else None


def _tensors(entry: Any) -> list[tuple[str, int]]:
    """Return the (layer, call) pairs in ["name", 0, 0], in [["name", 0, 0], ...] or in a dict of these."""
    if isinstance(entry, Mapping):
        return [pair for value in entry.values() for pair in _tensors(value)]
    if entry and isinstance(entry[0], str):
        return [(entry[0], index(entry[1]))]
    return [pair for value in entry for pair in _tensors(value)]


_Call = tuple[list[tuple[str, int]], tuple[Any, ...]]  # (layer, call) pairs of the tensors, and the arguments


def _calls(inbound: Sequence[Any], *, operation: bool) -> list[_Call]:
    """Return what each call of a layer reads; the arguments only of an operation."""
    calls: list[_Call] = []
    for call in inbound:
        sources: list[tuple[str, int]] = []
        if isinstance(call, Mapping):  # Keras 3
            named = dict(call.get("kwargs", {}))
            named.pop("training", None)  # a model passes its own to all its layers
            arguments = _arguments([*call.get("args", []), *named.values()], sources)
            if not operation and (constants := [*_constants(arguments)]):
                raise ValueError(
                    f"a layer is called with {constants[0]!r:.80} beside its input, which is not supported"
                )
            calls.append((sources, tuple(arguments)))
        elif operation:
            calls.append((sources, tuple(_keras_2_arguments(call, sources))))
        else:
            tensors = [call] if call and isinstance(call[0], str) else call
            extra = [source for source in tensors if len(source) > 3 and _holds_tensor(source[3])]
            if extra:
                raise ValueError(f"a layer is called with more than its input: {extra[0]!r:.80}")
            if any(isinstance(source[3], Mapping) and source[3].get("training") for source in tensors if source[3:]):
                raise ValueError("a layer is called in training mode, where its outputs are random")
            calls.append(([(str(source[0]), index(source[1])) for source in tensors], ()))
    return calls


def _keras_2_arguments(call: Any, sources: list[tuple[str, int]]) -> list[Any]:
    """Return the arguments of a call of a TFOpLambda: [name, call, tensor, keywords], or a list of these."""

    def one(value: Any) -> Any:
        if isinstance(value, list) and len(value) >= 3 and isinstance(value[0], str):
            if value[0] == "_CONSTANT_VALUE":
                return value[2]
            sources.append((value[0], index(value[1])))
            return Operand(len(sources) - 1)
        if isinstance(value, Mapping) and {"start", "stop", "step"} <= set(value):
            return slice(value["start"], value["stop"], value["step"])
        if isinstance(value, Mapping) and value.get("class_name") == "__ellipsis__":
            return "..."
        return [one(each) for each in value] if isinstance(value, list) else value

    keywords = (call if isinstance(call[0], str) else call[0])[3:]
    named = dict(keywords[0]) if keywords else {}
    first = one(call)
    return [first, *(one(value) for name, value in named.items() if name not in ("name", "data_format"))]


def _holds_tensor(keywords: Any) -> bool:
    return isinstance(keywords, Mapping) and any(isinstance(value, list) and value for value in keywords.values())


def _constants(arguments: Any) -> Iterator[Any]:
    """Yield the arguments that are neither tensors nor None or False."""
    if isinstance(arguments, Operand) or arguments is None or arguments is False:
        return
    if isinstance(arguments, list | Mapping):
        for each in arguments.values() if isinstance(arguments, Mapping) else arguments:
            yield from _constants(each)
    else:
        yield arguments


def _arguments(value: Any, sources: list[tuple[str, int]]) -> Any:
    """Return a call's arguments with an `Operand` for each tensor, whose (layer, call) is appended to `sources`."""
    if isinstance(value, list | tuple):
        return [_arguments(each, sources) for each in value]
    if not isinstance(value, Mapping):
        return value
    kind, config = value.get("class_name"), value.get("config", {})
    if kind == "__keras_tensor__":
        name, call, _ = config["keras_history"]
        sources.append((str(name), index(call)))
        return Operand(len(sources) - 1)
    if kind in ("__tensor__", "__numpy__"):
        return config["value"]
    if kind == "__ellipsis__":
        return "..."
    if kind == "__slice__":
        return slice(config["start"], config["stop"], config["step"])
    return {key: _arguments(each, sources) for key, each in value.items()}


# The settings


LARGEST = 65_536  # pixels of a side, a stride or a padding
MOST_ACTIVATIONS = 8  # levels of nested activation objects
Check = Callable[[Any], bool]


@contextmanager
def config_errors(what: str) -> Iterator[None]:
    """Turn errors from a malformed layer config into a ValueError that names the layer.

    Args:
        what: the subject of the message, "vgg16.keras: layer conv1".
    """
    try:
        yield
    except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else f"{error}"
        raise ValueError(
            f"{what} has a config that Keras does not write ({reason:.200}); save the model again"
        ) from None


def check_settings(name: str, kind: str, config: Mapping[str, Any]) -> None:
    """Raise ValueError for the first invalid setting of a layer."""
    if not isinstance(config, Mapping):
        raise ValueError(f"the model's config gives {name} the settings {_shown(config)}, expected an object")
    for setting, (check, wanted) in (EVERYWHERE | CHECKS.get(kind, {})).items():
        value = config.get(setting)
        if value is not None and not check(value):
            raise ValueError(f"the model's config gives {name} the {setting} {_shown(value)}; expected {wanted}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST


def _is_whole(value: Any) -> bool:
    return _is_side(value) and value > 0


def _is_pair(value: Any, check: Check = _is_whole) -> bool:
    """Return whether a value, or each of two, passes a check."""
    return check(value) or (isinstance(value, list | tuple) and len(value) == 2 and all(map(check, value)))


def _is_padding(value: Any) -> bool:
    """One number; one number or pair per axis; or four numbers, in Keras 1 also by name."""
    if isinstance(value, Mapping | list | tuple) and len(value) == 4:
        return all(map(_is_side, value.values() if isinstance(value, Mapping) else value))
    return _is_pair(value, lambda edge: _is_pair(edge, _is_side))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e6


def _is_slope(value: Any) -> bool:
    """A number; Keras 1 wrote one-element arrays as {"type": "ndarray", "value": 0.3}."""
    return _is_number(value.get("value") if isinstance(value, Mapping) else value)


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(side is None or _is_whole(side) for side in value)


def _is_axis(value: Any) -> bool:
    """An axis number; `tf_keras` writes a one-element list."""
    if isinstance(value, list | tuple) and len(value) == 1:
        [value] = value
    return isinstance(value, int) and not isinstance(value, bool) and -4 <= value < 4


def _is_activation(value: Any, level: int = 0) -> bool:
    """A name, or an object that holds a name or an activation layer's settings."""
    if not isinstance(value, Mapping):
        return value is None or isinstance(value, str)
    kind, inner = value.get("class_name"), value.get("config")
    if not isinstance(kind, str | None) or level == MOST_ACTIVATIONS:
        return False
    if not isinstance(inner, Mapping):
        return inner is None or isinstance(inner, str)
    checks = CHECKS.get(str(kind), {})
    fits = all(check(inner[setting]) for setting, (check, _) in checks.items() if inner.get(setting) is not None)
    return fits and isinstance(kind, str) and _is_activation(inner.get("activation"), level + 1)


def _is_word(value: Any) -> bool:
    return isinstance(value, str)


WORD = (_is_word, "a string")
AXIS = (_is_axis, "an axis number")
SLOPE = (_is_slope, "a number")
PAIR = (_is_pair, "one or two positive integers")
SHAPE = (_is_shape, "a list of sizes")
EVERYWHERE: dict[str, tuple[Check, str]] = {"activation": (_is_activation, "an activation name"), "data_format": WORD}
CHECKS: Mapping[str, dict[str, tuple[Check, str]]] = {
    "Conv2D": {
        "padding": WORD,
        **dict.fromkeys(("kernel_size", "strides", "subsample", "dilation_rate", "atrous_rate"), PAIR),
        "groups": (_is_whole, "a positive integer"),
    },
    "MaxPooling2D": {**dict.fromkeys(("pool_size", "strides"), PAIR), "padding": WORD},
    "AveragePooling2D": {**dict.fromkeys(("pool_size", "strides"), PAIR), "padding": WORD},
    "ZeroPadding2D": {"padding": (_is_padding, "non-negative integers")},
    "BatchNormalization": {"epsilon": (_is_share, "a number from 0 to 1"), "axis": AXIS},
    "Concatenate": {"axis": AXIS},
    "Softmax": {"axis": AXIS},
    "ReLU": dict.fromkeys(("max_value", "threshold", "negative_slope"), SLOPE),
    "Dropout": dict.fromkeys(("rate", "p"), (_is_share, "a number from 0 to 1")),
    "LeakyReLU": dict.fromkeys(("negative_slope", "alpha"), SLOPE),
    "ELU": {"alpha": SLOPE},
    "InputLayer": dict.fromkeys(("batch_shape", "batch_input_shape"), SHAPE),
}

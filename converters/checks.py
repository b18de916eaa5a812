"""Check a file against its network: swapped layers, settings and connections, and preprocessing layers.

Names and shapes cannot distinguish tanh from ReLU, average from max pooling, or reveal a moved stride or a dropped
shortcut. Therefore each node output of both graphs is given a number (hash consing): two numbers are equal if and only
if both nodes apply the same computation to the same inputs. Layers with weights are then compared by settings and
input, and the two graphs by the node that feeds the head.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from converters.listed import few
from converters.names import Found
from converters.options import Questions, ask_whole_preprocessing
from converters.plan import Wishes
from converters.proof.architectures import graph_of_lineage
from converters.readers.keras_file import KerasArray, KerasFile, KerasLayer
from converters.readers.keras_graph import LARGEST, Graph, Node, config_errors
from converters.readers.keras_words import (
    ACTIVATIONS,
    CODE,
    IDENTITIES,
    KERAS_EPSILON,
    activation_of,
    edges_of,
    layer_activation,
    pair_of,
)  # fmt: skip

LONGEST = 1000  # characters of an array's name that are examined


def exchanged(file: KerasFile, found: Found) -> list[str]:
    """Describe layers that appear swapped, judging by array names and group numbers."""
    return [*misnamed_arrays(file), *_by_numbers(file, found)]


def misnamed_arrays(file: KerasFile) -> list[str]:
    """Describe arrays named after another layer than the one that lists them."""
    names = {layer.name for layer in file.weighted}
    problems = []
    for layer in file.weighted:
        for array in layer.arrays.values():
            own = _own_name(array, names)
            if f"{layer.name}/{layer.name}/" in array.place:  # a name with slashes may end like another layer's
                continue
            if file.named and file.container == "legacy" and own is not None and own != layer.name:
                problems.append(f"{layer.name} lists the array {array.place}, which is named after {own}")
    return problems


def _by_numbers(file: KerasFile, found: Found) -> list[str]:
    """Describe layers whose names are in another order than their groups, which follow `model.layers`."""
    if file.container != "weights" or not file.named or found.lineage.automatic:
        return []
    groups = {
        name: re.fullmatch(r"(.*?)(?:_(\d+))?", next(iter(layer.arrays.values())).place.split("/")[-3])
        for name, layer in found.base.items()
    }
    problems = []
    for kind in dict.fromkeys(group[1] for group in groups.values() if group):
        listed = [
            (int(group[2] or 0), name)
            for name in found.lineage.order
            if (group := groups.get(name)) and group[1] == kind
        ]
        problems += [
            f"{name} stands where {other} should"
            for (_, other), (_, name) in zip(listed, sorted(listed), strict=True)
            if name != other
        ]
    return problems


def _own_name(array: KerasArray, names: set[str]) -> str | None:
    """Return the layer named in an array's path: "/conv1_2/conv1_2_W" or "/block1_conv1/block1_conv1/kernel:0"."""
    *folders, last = array.place.strip("/").split("/")
    candidates = [folders[-1] if folders else ""]
    pieces = last[:LONGEST].split(":")[0].split("_")
    candidates += ["_".join(pieces[:end]) for end in range(len(pieces) - 1, 0, -1)]
    return next((name for name in (*candidates[1:], candidates[0]) if name in names), None)  # the longest first


ALEXNETS_OWN = ("SplitTensor", "CrossChannelNormalization")  # both are Lambda layers in a config
POOLED = ("GlobalAveragePooling2D", "GlobalMaxPooling2D")
READERS = (*POOLED, "Flatten")
BEFORE_READER = (*READERS, *IDENTITIES, *ACTIVATIONS, "Dense", "BatchNormalization", "AveragePooling2D")
ALIASES = {"swish": "silu"}
MOST_SOURCES = 4  # inputs shown in the description of a term
MOST_REPORTED = 6  # differences; one mistake in a graph often shows in many layers

Key = tuple[tuple[str, ...], str]
Pair = tuple[int, int]


@dataclass
class _Terms:
    """Numbers layer outputs: two numbers are equal if and only if operation and inputs are equal."""

    numbers: dict[tuple[Any, ...], int] = field(default_factory=dict)
    words: list[tuple[Any, ...]] = field(default_factory=list)  # (operation, *numbers of its inputs)

    def of(self, what: Any, *sources: int) -> int:
        term = (what, *sources)
        if term not in self.numbers:
            self.numbers[term] = len(self.words)
            self.words.append(term)
        return self.numbers[term]

    def describe(self, number: int, depth: int = 3) -> str:
        """Describe a term in Keras's terms: "relu(Add(bn2a_branch2c, bn2a_branch1))"."""
        (kind, *settings), *sources = self.words[number]
        if kind == "layer":
            return str(settings[0][1])
        if kind == "input":
            return "the input"
        shown = [self.describe(source, depth - 1) for source in sources[:MOST_SOURCES]] if depth else ["..."]
        inner = ", ".join([*shown, *(["..."] if depth and len(sources) > MOST_SOURCES else [])])
        return f"{' '.join([kind, *map(_short, settings)]).strip()}({inner})"


def _short(setting: Any) -> str:
    """Format a size as 2x2; omit data formats and whole configs."""
    if isinstance(setting, str):
        return setting if setting in ("same", "full") else ""
    return "x".join(map(str, setting))


@dataclass(frozen=True)
class _Read:
    """A graph as terms.

    Attributes:
        layers: layer with weights -> (settings, number of its input).
        terms: node -> number of its output.
    """

    layers: Mapping[Key, tuple[Mapping[str, Any], int]]
    terms: Mapping[str, int]


def differences(
    file: KerasFile, found: Found, theirs: Graph, window: Pair, *, theano: bool, headless: bool, **assumptions: Any
) -> list[str]:
    """Describe where the config's convolutional part differs from the network; empty if it does not.

    Args:
        file: a file with a config.
        found: the network recognised in it.
        theirs: the config's graph.
        window: (h, w) of the map that the head reads.
        theano: whether Theano trained it; its `same` padding is symmetric at any stride.
        headless: whether the model has no dense layers.
        assumptions: arguments of the network that `graph_of_lineage` takes.

    Raises:
        ValueError: the config is malformed.
    """
    base = {id(layer) for layer in found.base.values()}
    alone = replace(file, layers=tuple(layer for layer in file.layers if id(layer) in base))
    lineage = found.lineage
    ours = graph_of_lineage(alone, lineage.network, theirs.data_format, lineage=lineage.name, head=(), **assumptions)
    keys = {_key(layer) for layer in found.base.values()}
    terms = _Terms()
    wanted, read = (
        _read(file.path, graph, keys, terms, theano=theano, alexnet=lineage.network == "alexnet")
        for graph in (ours, theirs)
    )
    problems = []
    for key, (settings, source) in wanted.layers.items():
        if key not in read.layers:
            problems.append(f"{key[1]} is not on the way from the input to the output")
            continue
        other, other_source = read.layers[key]
        if other.keys() != settings.keys():
            problems.append(f"{key[1]} is a {other.get('class', 'layer')}, not of its network's class")
            continue
        problems += [f"{key[1]} has {word} {other[word]}, not {value}" for word, value in settings.items()
                 if other[word] != value]  # fmt: skip
        if other_source != source:
            problems.append(f"{key[1]} reads {terms.describe(other_source)}, not {terms.describe(source)}")
    end, wanted_end = read.terms[_end(theirs, keys, window, headless=headless)], wanted.terms[ours.output]
    if end != wanted_end:
        reader = "the model ends with" if headless else "its head reads"
        problems.append(f"{reader} {terms.describe(end)}, not {terms.describe(wanted_end)}")
    if (more := len(problems) - MOST_REPORTED) > 0:
        problems[MOST_REPORTED:] = [f"and {more} more differences"]
    return problems


def _key(layer: KerasLayer) -> Key:
    return layer.parents, layer.name


def _read(path: Path, graph: Graph, keys: set[Key], terms: _Terms, *, theano: bool, alexnet: bool) -> _Read:
    layers: dict[Key, tuple[Mapping[str, Any], int]] = {}
    outputs: dict[str, int] = {}
    beginning = terms.of(("input",))
    for node in graph.nodes:
        with config_errors(f"{path}: layer {node.name} ({node.kind})"):
            sources = [outputs[name] for name in node.inputs]
            name, words = activation_of(node.settings) if node.layer is not None else ("linear", {})
            if node.layer is not None and _key(node.layer) in keys:
                settings, source = _settings(node, sources, graph, terms, theano)
                layers[_key(node.layer)] = settings, source
                term = terms.of(("layer", _key(node.layer)))
            elif not sources or (set(sources) == {beginning} and node.layer is None and node.kind != "ZeroPadding2D"):
                term = beginning  # layers before the first convolution belong to the preprocessing
            else:
                term = _term(node, sources, graph, terms, alexnet)
            outputs[node.name] = _activated(term, name, words, terms)
    return _Read(layers, outputs)


def _settings(
    node: Node, sources: Sequence[int], graph: Graph, terms: _Terms, theano: bool
) -> tuple[dict[str, Any], int]:
    """Return the settings and the input of a layer with weights; a ZeroPadding2D before it counts as its padding."""
    settings, source = node.settings, sources[0]
    if node.kind == "BatchNormalization":
        return {
            "epsilon": float(settings.get("epsilon", KERAS_EPSILON)),
            "axis": _axis(settings.get("axis", -1), graph),
            "mode": settings.get("mode", 0),
        }, source
    if node.kind != "Conv2D":
        return {"class": node.kind}, source
    (what, *inner), edges = terms.words[source], ((0, 0), (0, 0))
    if what[0] == "ZeroPadding2D":
        edges, source = what[1], inner[0]
    strides, dilation = pair_of(settings.get("strides", 1)), pair_of(settings.get("dilation_rate", 1))
    padding: Any = edges
    if settings.get("padding", "valid") != "valid":
        reach = [(side - 1) * step for side, step in zip(_kernel_size(node), dilation, strict=True)]
        if settings["padding"] == "same" and (theano or strides == (1, 1) or reach == [0, 0]):
            padding = _sum(edges, tuple((total // 2, total - total // 2) for total in reach))
        else:
            padding = settings["padding"]  # its width depends on the input size
    return {
        "strides": strides,
        "dilation": dilation,
        "groups": int(settings.get("groups") or 1),
        "padding": padding,
        "bias": bool(settings.get("use_bias", settings.get("bias", _has_bias(node)))),
        "data format": _format(node, graph),
    }, source


def _sum(one: Any, other: Any) -> tuple[Pair, Pair]:
    (top, bottom), (left, right) = one
    (more_top, more_bottom), (more_left, more_right) = other
    return (top + more_top, bottom + more_bottom), (left + more_left, right + more_right)


def _has_bias(node: Node) -> bool:
    return node.layer is not None and "bias" in node.layer.arrays


def _kernel_size(node: Node) -> Pair:
    """Return the array's kernel size, as graphs of architectures have no setting for it."""
    if node.layer is None:
        return pair_of(node.settings.get("kernel_size", 1))
    shape = node.layer.arrays["kernel"].shape
    return (shape[2], shape[3]) if node.layer.kernel_order == "oihw" else (shape[0], shape[1])


def _term(node: Node, sources: Sequence[int], graph: Graph, terms: _Terms, alexnet: bool) -> int:
    kind, settings = node.kind, node.settings
    if kind in IDENTITIES:
        return sources[0]
    if kind in ACTIVATIONS:
        return _activated(sources[0], *layer_activation(kind, settings), terms)
    if kind == "ZeroPadding2D":
        return _padded(sources[0], edges_of(settings.get("padding", 1)), terms)
    if kind in ("MaxPooling2D", "AveragePooling2D"):
        size = pair_of(settings.get("pool_size", 2))
        strides = pair_of(settings.get("strides") or size)
        return terms.of((kind, size, strides, settings.get("padding", "valid"), _format(node, graph)), *sources)
    if kind == "Add":
        return terms.of((kind,), *sorted(sources))
    if kind == "Concatenate":
        return terms.of((kind, _axis(settings.get("axis", -1), graph)), *sources)
    if kind in ALEXNETS_OWN or (kind == "Lambda" and alexnet):
        return terms.of(("Lambda",), *sources)
    kept = {key: value for key, value in settings.items() if key not in ("name", "trainable", "dtype")}
    return terms.of((kind, json.dumps(kept, sort_keys=True, default=str)), *sources)


def _activated(term: int, name: str, words: Mapping[str, Any], terms: _Terms) -> int:
    name = ALIASES.get(name, name)
    parameters = tuple(sorted((word, value) for word, value in words.items() if value))
    return term if name == "linear" else terms.of((name, parameters), term)


def _padded(term: int, edges: tuple[Pair, Pair], terms: _Terms) -> int:
    (what, *inner) = terms.words[term]
    if what[0] == "ZeroPadding2D":
        term, edges = inner[0], _sum(what[1], edges)
    return terms.of(("ZeroPadding2D", edges), term) if edges != ((0, 0), (0, 0)) else term


def _end(graph: Graph, keys: set[Key], window: Pair, *, headless: bool) -> str:
    """Return the node whose map the head reads: before Flatten, global pooling or pooling of the whole window."""
    chain = [graph[graph.output]]
    while _before_reader(chain[-1], keys):
        chain.append(graph[chain[-1].inputs[0]])
    readers = [place for place, node in enumerate(chain) if node.kind in READERS]
    start = readers[-1] + 1 if readers else 0 if headless else None
    if start is None:
        return graph.output
    end = start
    while end < len(chain) - 1 and chain[end].kind in IDENTITIES:
        end += 1
    whole = chain[end].kind == "AveragePooling2D" and pair_of(chain[end].settings.get("pool_size", 2)) == window
    if whole and (not readers or chain[readers[-1]].kind == "Flatten"):
        return chain[end].inputs[0]
    return chain[start].name


def _before_reader(node: Node, keys: set[Key]) -> bool:
    of_base = node.layer is not None and _key(node.layer) in keys
    return not of_base and len(node.inputs) == 1 and node.kind in BEFORE_READER


def _format(node: Node, graph: Graph) -> str:
    stored = node.settings.get("data_format")
    return stored if stored in ("channels_first", "channels_last") else graph.data_format


def _axis(value: Any, graph: Graph) -> str:
    axis = int(value[0] if isinstance(value, list | tuple) else value) % 4
    return "channels" if axis == (1 if graph.data_format == "channels_first" else 3) else str(axis)


# What an architecture leaves open, and layers before the first convolution


def epsilons(graph: Graph, found: Found) -> set[float]:
    """Return the epsilons of the batch normalisations in the convolutional part."""
    base = {id(layer) for layer in found.base.values() if layer.kind == "BatchNormalization"}
    return {
        float(node.setting("epsilon", default=KERAS_EPSILON))
        for node in graph.nodes
        if node.kind == "BatchNormalization" and id(node.layer) in base
    }


def stride_place(graph: Graph | None) -> str:
    """Return which convolution strides in ResNet50's blocks, "1x1" (as in Keras's own) or "3x3"."""
    convolutions = [node for node in graph.nodes if node.kind == "Conv2D"] if graph is not None else []
    shapes = [
        tuple(pair_of(node.setting(word, default=1)) for word in ("kernel_size", "strides")) for node in convolutions
    ]
    return "3x3" if ((3, 3), (2, 2)) in shapes else "1x1"


def reads_pixels(
    file: KerasFile, graph: Graph | None, found: Found, wishes: Wishes, questions: Questions
) -> tuple[tuple[float, float] | None, list[str]]:
    """Return the preprocessing that the model applies before the first convolution.

    Lambda layers are assumed to be part of the preprocessing that the user names, which is asked.

    Returns:
        (scale, offset) of a Rescaling layer, or None; and notes on the assumptions made.

    Raises:
        ValueError: an unsupported layer precedes the first convolution.
    """
    if graph is None:
        return None, []
    base = {id(layer) for layer in found.base.values()}
    first = next(node for node in graph.nodes if id(node.layer) in base)
    rescaling: tuple[float, float] | None = None
    code = []
    for node in graph.upstream(first.name):
        if node.kind == "Rescaling" and rescaling is None:
            scale, offset = node.settings.get("scale", 1.0), node.settings.get("offset", 0.0)
            if not all(isinstance(value, int | float) and abs(value) <= LARGEST for value in (scale, offset)):
                raise ValueError(
                    f"{file.path}: {node.own_name} has scale {scale!r} and offset {offset!r}; numbers are required"
                )
            rescaling = float(scale), float(offset)
        elif node.kind in CODE:
            if wishes.preprocessing is None:
                ask_whole_preprocessing(questions, node)
            code.append(node.own_name)
        elif node.kind not in (*IDENTITIES, "ZeroPadding2D"):
            raise ValueError(
                f"{file.path}: {node.own_name} ({node.kind}) changes the input in a way that is not read; remove it and"
                " save again"
            )
    return rescaling, _prepares(code)


def listed_front(front: Sequence[KerasLayer], wishes: Wishes, questions: Questions) -> list[str]:
    """Return notes on layers that a weights file lists before the first convolution.

    The preprocessing that they are part of is asked.
    """
    names = [layer.name for layer in front]
    if wishes.preprocessing is None:
        reason = f"it lists {few(names)} before the first convolution, but not what these layers do"
        questions.ask("preprocessing", reason, "the whole preprocessing with --preprocessing")
    return _prepares(names)


def _prepares(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    return [f"{few(names)} before the first convolution is assumed to be part of the preprocessing you named"]

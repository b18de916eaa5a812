"""Graphs of the released architectures as built by Keras code, for files that hold only weights.

Sources, by which the files were made: convnets-keras (`convnetskeras/convnets.py`), deep-learning-models and
keras-applications (`vgg16.py`, `vgg19.py`, `resnet50.py`, `resnet.py`, `inception_v3.py`). Widths are not listed here,
as the arrays determine them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from typing import Any

from converters.listed import Listed, listed_around
from converters.readers.keras_file import DataFormat, KerasFile, KerasLayer
from converters.readers.keras_graph import Graph, Node, in_layer_order
from converters.readers.keras_words import ACTIVATIONS, IDENTITIES, KERAS_EPSILON

CONVNETS_KERAS, APPLICATIONS, OLD_APPLICATIONS = "convnets-keras", "keras-applications", "keras-applications-old"
STEPS_WITHOUT_NUMBERS = ("relu", "relu6", "selu", "gelu", "silu", "sigmoid", "tanh", "softplus")
Steps = Sequence[Sequence[Any]]


class _Model:
    """Builds a graph by calling layers on names of nodes, like Keras's functional API."""

    def __init__(self, data_format: DataFormat) -> None:
        self.data_format = data_format
        self.nodes = [Node("input", "InputLayer", ())]
        self.channels = 1 if data_format == "channels_first" else 3  # channel axis, counting the batch

    def __call__(self, kind: str, *inputs: str, name: str = "", **settings: Any) -> str:
        """Append a node and return its name."""
        name = name or f"{kind}#{len(self.nodes)}"
        self.nodes.append(Node(name, kind, inputs, {"data_format": self.data_format, **settings}))
        return name

    def conv(self, x: str, name: str, **settings: Any) -> str:
        """Append a Conv2D; its array determines the kernel size."""
        return self("Conv2D", x, name=name, **settings)

    def max_pool(self, x: str, size: int, stride: int) -> str:
        return self("MaxPooling2D", x, pool_size=(size, size), strides=(stride, stride))

    def zeros(self, x: str, edge: int) -> str:
        return self("ZeroPadding2D", x, padding=(edge, edge))

    def relu(self, x: str) -> str:
        return self("Activation", x, activation="relu")

    def batch_norm(self, x: str, name: str, epsilon: float) -> str:
        return self("BatchNormalization", x, name=name, epsilon=epsilon, axis=self.channels)

    def concatenate(self, *parts: str) -> str:
        return self("Concatenate", *parts, axis=self.channels)


def _alexnet(model: _Model, names: str, x: str, settings: Mapping[str, Any]) -> str:
    def two_groups(x: str, name: str) -> str:
        halves = [model("SplitTensor", x, half=half) for half in (0, 1)]
        return model.concatenate(
            *(model.conv(half, f"{name}_{i}", activation="relu") for i, half in enumerate(halves, 1))
        )

    x = model.conv(x, "conv_1", strides=(4, 4), activation="relu")
    x = model("CrossChannelNormalization", model.max_pool(x, 3, 2))
    x = two_groups(model.zeros(x, 2), "conv_2")
    x = model("CrossChannelNormalization", model.max_pool(x, 3, 2))
    x = model.conv(model.zeros(x, 1), "conv_3", activation="relu")
    x = two_groups(model.zeros(x, 1), "conv_4")
    x = two_groups(model.zeros(x, 1), "conv_5")
    return model.max_pool(x, 3, 2)


def _vgg(*depths: int) -> Callable[[_Model, str, str, Mapping[str, Any]], str]:
    def build(model: _Model, names: str, x: str, settings: Mapping[str, Any]) -> str:
        for block, depth in enumerate(depths, 1):
            for conv in range(1, depth + 1):
                if names == CONVNETS_KERAS:
                    x = model.conv(model.zeros(x, 1), f"conv{block}_{conv}", activation="relu")
                else:
                    x = model.conv(x, f"block{block}_conv{conv}", padding="same", activation="relu")
            x = model.max_pool(x, 2, 2)
        return x

    return build


def _resnet50(model: _Model, names: str, x: str, settings: Mapping[str, Any]) -> str:
    old = names == OLD_APPLICATIONS
    epsilon, pool1_padding = settings["epsilon"] or (1e-3 if old else 1.001e-5), settings["pool1_padding"]
    if pool1_padding is None:
        if old:
            raise ValueError("ResNet50 with old layer names may or may not pad its first pool; give pool1_padding")
        pool1_padding = True

    def conv_bn(x: str, conv: str, bn: str, **settings: Any) -> str:
        return model.batch_norm(model.conv(x, conv, **settings), bn, epsilon)

    x = conv_bn(model.zeros(x, 3), *(("conv1", "bn_conv1") if old else ("conv1_conv", "conv1_bn")), strides=(2, 2))
    x = model.relu(x)
    x = model.max_pool(model.zeros(x, 1) if pool1_padding else x, 3, 2)
    for stage, depth in enumerate((3, 4, 6, 3), 2):
        for block in range(1, depth + 1):
            if old:  # branch1 is the shortcut
                letter = "abcdef"[block - 1]
                end = {0: "1", 1: "2a", 2: "2b", 3: "2c"}
                names_of = {
                    i: (f"res{stage}{letter}_branch{e}", f"bn{stage}{letter}_branch{e}") for i, e in end.items()
                }
            else:
                names_of = {
                    i: (f"conv{stage}_block{block}_{i}_conv", f"conv{stage}_block{block}_{i}_bn") for i in range(4)
                }
            strides = (2, 2) if stage > 2 and block == 1 else (1, 1)
            first, second = ((1, 1), strides) if settings["stride_in"] == "3x3" else (strides, (1, 1))
            shortcut = conv_bn(x, *names_of[0], strides=strides) if block == 1 else x
            y = model.relu(conv_bn(x, *names_of[1], strides=first))
            y = model.relu(conv_bn(y, *names_of[2], strides=second, padding="same"))
            y = conv_bn(y, *names_of[3])
            x = model.relu(model("Add", *((y, shortcut) if old else (shortcut, y))))
    return x


def _inception_v3(model: _Model, names: str, x: str, settings: Mapping[str, Any]) -> str:
    made = 0

    def conv(x: str, stride: int = 1, padding: str = "same") -> str:
        nonlocal made
        made += 1  # automatic names: the k-th convolution created is conv2d_k
        x = model.conv(x, f"conv2d_{made}", strides=(stride, stride), padding=padding)
        return model.relu(model.batch_norm(x, f"batch_normalization_{made}", settings["epsilon"] or 1e-3))

    def convs(x: str, count: int) -> str:
        for _ in range(count):
            x = conv(x)
        return x

    def average(x: str) -> str:
        return model("AveragePooling2D", x, pool_size=(3, 3), strides=(1, 1), padding="same")

    x = conv(x, 2, "valid")
    x = conv(conv(x, 1, "valid"))
    x = model.max_pool(x, 3, 2)
    x = conv(conv(x, 1, "valid"), 1, "valid")
    x = model.max_pool(x, 3, 2)
    for _ in range(3):  # mixed 0 to 2: 1x1; 1x1, 5x5; 1x1, 3x3, 3x3; pool, 1x1
        x = model.concatenate(convs(x, 1), convs(x, 2), convs(x, 3), convs(average(x), 1))
    # mixed 3: 3x3 / 2; 1x1, 3x3, 3x3 / 2; pool
    x = model.concatenate(conv(x, 2, "valid"), conv(convs(x, 2), 2, "valid"), model.max_pool(x, 3, 2))
    for _ in range(4):  # mixed 4 to 7: 1x1; 1x1, 1x7, 7x1; 1x1, 7x1, 1x7, 7x1, 1x7; pool, 1x1
        x = model.concatenate(convs(x, 1), convs(x, 3), convs(x, 5), convs(average(x), 1))
    # mixed 8: 1x1, 3x3 / 2; 1x1, 1x7, 7x1, 3x3 / 2; pool
    x = model.concatenate(conv(convs(x, 1), 2, "valid"), conv(convs(x, 3), 2, "valid"), model.max_pool(x, 3, 2))
    for _ in range(2):  # mixed 9 and 10: 1x1; 1x1, then 1x3 beside 3x1; 1x1, 3x3, then the same two; pool, 1x1
        one = conv(x)
        two = conv(x)
        two = model.concatenate(conv(two), conv(two))
        three = convs(x, 2)
        three = model.concatenate(conv(three), conv(three))
        x = model.concatenate(one, two, three, convs(average(x), 1))
    return x


_DENSE3 = (("flatten",), ("dense", 0), ("relu",), ("dense", 0), ("relu",), ("dense", 0))
_DENSE1 = (("average",), ("dense", 0))


@dataclass(frozen=True)
class _Lineage:
    """How one family of files names a network's layers; `tops` are the alternative names of the standard head's."""

    build: Callable[[_Model, str, str, Mapping[str, Any]], str]
    names: str
    head: Steps
    tops: tuple[tuple[str, ...], ...]


_FC, _TOP = (("dense_1", "dense_2", "dense_3"),), (("fc1", "fc2", "predictions"),)
ARCHITECTURES: dict[str, tuple[_Lineage, ...]] = {
    "alexnet": (_Lineage(_alexnet, CONVNETS_KERAS, _DENSE3, _FC),),
    "vgg16": tuple(
        _Lineage(_vgg(2, 2, 3, 3, 3), *rest) for rest in ((CONVNETS_KERAS, _DENSE3, _FC), (APPLICATIONS, _DENSE3, _TOP))
    ),
    "vgg19": tuple(
        _Lineage(_vgg(2, 2, 4, 4, 4), *rest) for rest in ((CONVNETS_KERAS, _DENSE3, _FC), (APPLICATIONS, _DENSE3, _TOP))
    ),
    "resnet50": (
        _Lineage(_resnet50, APPLICATIONS, _DENSE1, (("predictions",), ("probs",))),
        _Lineage(_resnet50, OLD_APPLICATIONS, _DENSE1, (("fc1000",),)),
    ),
    "inception_v3": (_Lineage(_inception_v3, APPLICATIONS, _DENSE1, (("predictions",),)),),
}


def graph_of_lineage(
    file: KerasFile,
    network: str,
    data_format: DataFormat,
    *,
    lineage: str | None = None,
    pool1_padding: bool | None = None,
    epsilon: float | None = None,
    stride_in: str = "1x1",
    head: Steps | None = None,
    hidden: Sequence[Any] = ("relu",),
) -> Graph:
    """Return the graph of a file without config, with arrays assigned to all nodes with weights.

    Args:
        file: a file whose layers, by name or number, are exactly the network's.
        network: "alexnet", "vgg16", "vgg19", "resnet50" or "inception_v3".
        data_format: data format of all layers.
        lineage: "convnets-keras", "keras-applications" or "keras-applications-old"; None to use the first that fits the
            file's layers.
        pool1_padding: whether ResNet50 pads before its first pool; None for the lineage's, if it determines it.
        epsilon: epsilon of batch normalisation in the network; None for the lineage's.
        stride_in: which convolution of ResNet50's blocks strides, "1x1" as in Keras's own code or "3x3".
        head: steps such as ("average",), ("dense", 3); None for the standard head or no head, whichever the file has.
            If the file lists all layers in order, the listed head is used, and the first step only determines how the
            map is read if no layer for that is listed.
        hidden: step used for hidden activations that the list does not specify.

    Raises:
        ValueError: the file's layers are not those of the network and head, or an assumption is missing.
    """
    if network not in ARCHITECTURES:
        raise ValueError(f"no code of Keras is known for {network!r}; known: {', '.join(ARCHITECTURES)}")
    failures = []
    for kind in ARCHITECTURES[network]:
        if lineage not in (None, kind.names):
            continue
        model = _Model(data_format)
        try:
            settings = {"epsilon": epsilon, "pool1_padding": pool1_padding, "stride_in": stride_in}
            x = kind.build(model, kind.names, "input", settings)
            bound = _bind(file, Graph(tuple(model.nodes), x, data_format))
        except _Missing as error:
            failures.append(str(error))
            continue
        return _with_head(file, bound, kind, head, hidden)
    raise ValueError(f"{file.path}: its layers are not those of {network} ({'; '.join(failures) or lineage})")


class _Missing(ValueError):
    """A layer of the network is missing from the file."""


def _class(layer: KerasLayer) -> str:
    """Return a layer's class, judging only by its arrays."""
    if "moving_mean" in layer.arrays:
        return "BatchNormalization"
    kernel = layer.arrays.get("kernel")
    return {4: "Conv2D", 2: "Dense"}.get(len(kernel.shape), "") if kernel is not None else ""


def _bind(file: KerasFile, graph: Graph) -> Graph:
    """Assign arrays to nodes by name or, for a file without names, by class and `model.layers` order."""
    kinds: dict[str, list[KerasLayer]] = defaultdict(list)
    for layer in file.weighted:
        kinds[_class(layer)].append(layer)
    weighted = [node for node in in_layer_order(graph) if node.kind in ("Conv2D", "BatchNormalization", "Dense")]
    found: dict[str, KerasLayer] = {}
    if not file.named:
        for kind in ("Conv2D", "BatchNormalization", "Dense"):
            nodes = [node for node in weighted if node.kind == kind]
            if len(kinds[kind]) < len(nodes) or (kind == "Conv2D" and len(kinds[kind]) > len(nodes)):
                raise _Missing(f"{len(kinds[kind])} layers look like {kind}, not {len(nodes)}")
            found.update({node.name: layer for node, layer in zip(nodes, kinds[kind], strict=False)})
    else:
        by_name = {layer.name: layer for layer in file.weighted}
        for word in ("conv2d", "batch_normalization"):  # automatic numbers may start at any value
            automatic = [name for name in by_name if re.fullmatch(rf"{word}(_\d+)?", name)]
            wanted = sum(re.fullmatch(rf"{word}_\d+", node.name) is not None for node in weighted)
            for number, name in enumerate(sorted(automatic, key=_number)[:wanted], 1):
                found[f"{word}_{number}"] = by_name[name]
        found.update(
            {node.name: by_name[node.name] for node in weighted if node.name in by_name and node.name not in found}
        )
        missing = [node.name for node in weighted if node.name not in found]
        if missing:
            raise _Missing(f"{len(missing)} are missing, {missing[0]} first")
    return replace(graph, nodes=tuple(replace(node, layer=found.get(node.name)) for node in graph.nodes))


def _number(name: str) -> int:
    digits = re.search(r"_(\d+)$", name)
    return int(digits[1]) if digits else 0


def _with_head(file: KerasFile, graph: Graph, lineage: _Lineage, head: Steps | None, hidden: Sequence[Any]) -> Graph:
    used = [node.layer for node in graph.nodes if node.layer is not None]
    left = [layer for layer in file.weighted if not any(layer is other for other in used)]
    if left and file.config is None and (listed := listed_around(file, graph)).ordered and listed.complete:
        return _listed_head(file, graph, listed, (head or lineage.head)[0][0], hidden)
    names = [layer.name for layer in left]
    if head is None:
        standard = len(left) == len(lineage.tops[0]) and all(_class(layer) == "Dense" for layer in left)
        if left and not standard:
            raise ValueError(f"{file.path}: {', '.join(names)} are not the standard head; give the head")
        head = lineage.head if left else ()
    for top in lineage.tops:
        if sorted(top) == sorted(names):  # names determine the order, else the file's order is used
            left = [left[names.index(name)] for name in top]
    model = _Model(graph.data_format)
    model.nodes = list(graph.nodes)
    x = graph.output
    for number, step in enumerate(head):
        kind, *numbers = step
        if kind in READERS:
            x = _read(model, x, READERS[kind], file)
        elif kind in ("dense", "batch_norm"):
            wanted = "Dense" if kind == "dense" else "BatchNormalization"
            layer = next((layer for layer in left if _class(layer) == wanted), None)
            if layer is None:
                raise ValueError(
                    f"{file.path}: step {number + 1} of the head is {kind}, but no {wanted} is left for it"
                )
            left = [other for other in left if other is not layer]
            x = _weigh(model, x, layer, **({} if kind == "dense" else {"epsilon": numbers[0]}))
        elif kind != "dropout":
            x = _activate(model, x, step)
    if left:
        raise ValueError(f"{file.path}: the head has no step for {', '.join(layer.name for layer in left)}")
    return Graph(tuple(model.nodes), x, graph.data_format)


READERS = {"flatten": "Flatten", "average": "GlobalAveragePooling2D", "max": "GlobalMaxPooling2D"}


def _listed_head(file: KerasFile, graph: Graph, listed: Listed, reads: str, hidden: Sequence[Any]) -> Graph:
    """Append the listed head; `reads` and `hidden` replace pooling and activations that are not listed."""
    model = _Model(graph.data_format)
    model.nodes = list(graph.nodes)
    x, read = graph.output, False
    dense = [place for place, layer in enumerate(listed.head) if _class(layer) == "Dense"]
    for place, layer in enumerate(listed.head):
        if layer.arrays:
            of_map = not read
            if of_map and _class(layer) == "Dense":
                x, read = _read(model, x, READERS[reads], file), True
            x = _weigh(model, x, layer, axis=model.channels if of_map and not read else -1)
            # Each dense layer but the last has a fused activation, unless an activation layer follows.
            if _class(layer) == "Dense" and place < dense[-1]:
                behind = takewhile(lambda other: _class(other) != "Dense", islice(listed.head, place + 1, None))
                x = x if any(map(_is_activation, behind)) else _activate(model, x, hidden)
        elif layer.kind in READERS.values():
            x, read = (x if read and layer.kind == "Flatten" else _read(model, x, layer.kind, file)), True
        elif _is_activation(layer):
            if place < dense[-1]:  # the output activation is not part of the logits
                name = layer.kind.lower()
                step = (name,) if name in STEPS_WITHOUT_NUMBERS else hidden
                x = model("Softmax", x) if layer.kind == "Softmax" else _activate(model, x, step)
        elif layer.kind not in IDENTITIES:
            x = model(layer.kind, x)  # computing it raises an error that names it
    return Graph(tuple(model.nodes), x, graph.data_format)


def _is_activation(layer: KerasLayer) -> bool:
    return not layer.arrays and (layer.kind in ACTIVATIONS or layer.kind in STEPS_WITHOUT_NUMBERS)


def _read(model: _Model, x: str, kind: str, file: KerasFile) -> str:
    """Append a Flatten or global pooling layer."""
    if kind != "Flatten":
        return model(kind, x)
    version = tuple(map(int, re.findall(r"\d+", file.version or "1")[:2]))
    transposes = model.data_format == "channels_first" and version >= (2, 2)  # Flatten transposes since Keras 2.2
    return model(kind, x, data_format="channels_first" if transposes else "channels_last")


def _weigh(model: _Model, x: str, layer: KerasLayer, **settings: Any) -> str:
    """Append a dense or batch normalisation layer with its arrays."""
    kind = _class(layer)
    x = model(kind, x, **({"epsilon": KERAS_EPSILON, "axis": -1} | settings if kind == "BatchNormalization" else {}))
    model.nodes[-1] = replace(model.nodes[-1], layer=layer)
    return x


def _activate(model: _Model, x: str, step: Sequence[Any]) -> str:
    kind, *numbers = step
    if kind == "linear":
        return x
    if kind in STEPS_WITHOUT_NUMBERS:
        return model("Activation", x, activation=kind)
    if kind == "elu":
        return model("ELU", x, alpha=numbers[0])
    if kind == "leaky_relu":
        return model("LeakyReLU", x, negative_slope=numbers[0])
    raise ValueError(f"the activation {kind!r} of a head is not known")

"""Sort the layers that a weights file lists, also those without arrays, into those before, in and after the network.

A file without config still names its layers: `.h5` in the order of `model.layers`, `.weights.h5` by class and number.
Of a nested model, `.h5` lists only the arrays.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from converters.readers.keras_file import KerasFile, KerasLayer
from converters.readers.keras_graph import Graph, in_layer_order
from converters.readers.keras_words import IDENTITIES, kind_of_words

WAY_ON = "save the whole model as .keras and convert that"
MOST_NAMED = 20
# Layers that are preprocessing if before the first convolution; "" are functions and layers of unrecognised names.
PREPARES = ("Rescaling", "Normalization", "Resizing", "CenterCrop")
PREPARES_IN_PLACE = (*PREPARES, "Lambda", "TFOpLambda", "Sequential", "Functional", "")
OWN = {  # names of layers without weights in the supported networks
    r"block\d_pool|pool1_pool|convpool_5": "MaxPooling2D",
    r"conv1_pad|pool1_pad": "ZeroPadding2D",
    r"conv\d_block\d_add": "Add",
    r"conv1_relu|conv\d_block\d_(\d_relu|out)": "Activation",
    r"mixed\d+(_\d)?|conv_[245]": "Concatenate",
    r"convpool_1": "Lambda",
    r"avg_pool": "GlobalAveragePooling2D",
    r"max_pool": "GlobalMaxPooling2D",
}
ALIKE = {"SplitTensor": "Lambda", "CrossChannelNormalization": "Lambda", "ReLU": "Activation"}


@dataclass(frozen=True)
class Listed:
    """A file's layers around those of a network.

    Attributes:
        front: layers without weights before the first convolution, which preprocess pictures.
        head: all layers after the network's own; if `ordered` is False, only those without weights.
        ordered: whether the file keeps the order of layers.
        complete: whether layers without weights are listed at all.
    """

    front: tuple[KerasLayer, ...]
    head: tuple[KerasLayer, ...]
    ordered: bool
    complete: bool


def few(names: Sequence[str]) -> str:
    """Join names for a message, at most `MOST_NAMED`."""
    return ", ".join(names[:MOST_NAMED]) + (f", ... ({len(names)})" if len(names) > MOST_NAMED else "")


def listed_around(file: KerasFile, graph: Graph) -> Listed:
    """Sort the layers that a file lists into those of a network and the others.

    Args:
        file: a file without config.
        graph: graph of the network without a head, its nodes bound to the file's layers.

    Raises:
        ValueError: a foreign layer is within the network, one of its own layers is not listed, or there are several
            inputs; the layer is named.
    """
    base = {id(node.layer) for node in graph.nodes if node.layer is not None}
    nested = any(layer.parents for layer in file.layers if id(layer) in base)
    ordered = file.container != "weights"
    inputs = [layer.name for layer in file.layers if layer.kind == "InputLayer" and not layer.parents]
    if len(inputs) > 1:
        raise ValueError(f"{file.path} lists {len(inputs)} inputs ({few(inputs)}); only one is supported")
    plain = [layer for layer in file.layers if not layer.arrays and layer.kind != "InputLayer"]
    if file.container == "nb_layers" or not (plain or (ordered and nested)):
        return Listed((), tuple(layer for layer in file.weighted if id(layer) not in base), ordered, False)
    words = _words(file, base)
    layers = [replace(layer, kind=layer.kind or _kind(layer.name, words)) if not layer.arrays else layer
              for layer in file.layers]  # fmt: skip
    if not ordered:
        return _unordered(file, graph, layers, base)
    places = [place for place, layer in enumerate(file.layers) if id(layer) in base]
    before, after = layers[: places[-1] + 1], layers[places[-1] + 1 :]
    front = [layer for layer in before[: places[0]] if not layer.arrays and layer.kind in PREPARES_IN_PLACE]
    if not nested:
        tail, after = _tail(file, graph, layers[places[-1]].name, after)
        before += tail
    own = {id(layer) for layer in front}
    within = [layer for layer, original in zip(before, file.layers, strict=False)
              if id(original) not in base and id(layer) not in own and layer.kind not in IDENTITIES]  # fmt: skip
    _check_within(file, graph, within, nested=nested)
    return Listed(tuple(front), tuple(after), True, True)


def _words(file: KerasFile, base: set[int]) -> str:
    """Return the names of the head's layers with weights, after which layers without weights may be named."""
    return " ".join(layer.name for layer in file.weighted if id(layer) not in base)


def _kind(name: str, words: str) -> str:
    return next((kind for own, kind in OWN.items() if re.fullmatch(own, name)), "") or kind_of_words(name, words)


def _of_network(graph: Graph) -> list[str]:
    """Return the classes of the network's layers in the order of `model.layers`, "" for those with weights."""
    return ["" if node.layer is not None else ALIKE.get(node.kind, node.kind)
            for node in in_layer_order(graph) if node.kind != "InputLayer"]  # fmt: skip


def _same(kind: str, expected: str) -> bool:
    return ALIKE.get(kind, kind) == expected or (kind == "Merge" and expected in ("Add", "Concatenate"))


def _tail(
    file: KerasFile, graph: Graph, last: str, after: Sequence[KerasLayer]
) -> tuple[list[KerasLayer], list[KerasLayer]]:
    """Split the layers after the last one with weights into the network's own and those listed after them."""
    kinds = _of_network(graph)
    wanted = kinds[max(place for place, kind in enumerate(kinds) if kind == "") + 1 :]
    tail, left = [], deque(after)
    for expected in wanted:
        while left and left[0].kind in IDENTITIES and not left[0].arrays:
            tail.append(left.popleft())
        found = left[0] if left else None
        own_pool = found is not None and expected == "MaxPooling2D" and not found.kind and "pool" in found.name.lower()
        if found is None or found.arrays or not (own_pool or _same(found.kind, expected)):
            name = "nothing" if found is None else _named(found)
            raise ValueError(f"{file.path} lists {name} after {last}, where the network has {expected}; {WAY_ON}")
        tail.append(replace(left.popleft(), kind=expected))
    return tail, [*left]


def _check_within(file: KerasFile, graph: Graph, within: Sequence[KerasLayer], *, nested: bool) -> None:
    """Raise ValueError if foreign layers are among the network's, or if some of its own are not listed."""
    wanted = Counter() if nested else Counter(kind for kind in _of_network(graph) if kind)
    for layer in within:
        if layer.arrays:
            raise ValueError(f"{file.path} lists {_named(layer)} among the layers of the network; {WAY_ON}")
    _surplus(file, wanted, [layer for layer in within if layer.kind], len([1 for layer in within if not layer.kind]))


def _surplus(
    file: KerasFile, wanted: Mapping[str, int], layers: Sequence[KerasLayer], unknown: int, *, rest: bool = False
) -> list[KerasLayer]:
    """Return the layers in excess of the network's, by class.

    Raises:
        ValueError: layers of the network are missing, or there is an excess and `rest` is False.
    """
    left, surplus = Counter(wanted), []
    for layer in layers:
        kind = next((kind for kind in left if _same(layer.kind, kind) and left[kind]), None)
        if kind is not None:
            left[kind] -= 1
        elif not rest and (layer.name == "pool1_pad" or (layer.kind == "Activation" and "Activation" not in wanted)):
            continue  # padding that the user decides, or the activation of a convolution without a fused one
        else:
            surplus.append(layer)
    del left["ZeroPadding2D"]  # convolutions may include the padding
    if surplus and not rest:
        raise ValueError(f"{file.path} lists {_named(surplus[0])} among the layers of the network; {WAY_ON}")
    missing = sum(left.values()) - unknown
    if missing > 0:
        kind = next(kind for kind in left if left[kind])
        raise ValueError(
            f"{file.path} lists {wanted[kind] - left[kind]} of the network's {wanted[kind]} layers {kind}; {WAY_ON}"
        )
    return surplus


def _unordered(file: KerasFile, graph: Graph, layers: Sequence[KerasLayer], base: set[int]) -> Listed:
    """Return the layers around the network for a file that numbers layers only within each class."""
    parents = next(layer.parents for layer in file.layers if id(layer) in base)
    plain = sorted(
        (layer for layer in layers if not layer.arrays and layer.kind not in ("InputLayer", *IDENTITIES)),
        key=lambda layer: layer.parents != parents,  # the network's own first
    )
    wanted = Counter(kind for kind in _of_network(graph) if kind)
    front = [layer for layer in plain if layer.kind in PREPARES]
    head = _surplus(file, wanted, [layer for layer in plain if layer.kind not in PREPARES], 0, rest=True)
    return Listed(tuple(front), tuple(head), False, True)


def _named(layer: KerasLayer) -> str:
    return f"{layer.name} ({layer.kind or 'a layer of unknown class'})"

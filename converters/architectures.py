"""The graphs of Keras Applications, of every release from Keras 1.2 to today, as configs of whole models.

They are taken from real Keras by `scripts/build_graphs.py`. Widths are left to the arrays: `filters` and `units` are
not in the configs, so one graph stands for every number of classes and, where Keras's own graph is the same, for every
`alpha`.

Names that Keras gives automatically ("activation_7") are those of a new session; a user's file may count from another
number.
"""

from __future__ import annotations

import lzma
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

from converters.readers.keras_words import HOLDS, edges_of, kind_of_class, pair_of
from convnets_torch import files

DATA = Path(__file__).parent / "data" / "graphs.json.xz"
MOST_PACKED = 1 << 20  # bytes of the file
MOST = 32 << 20  # bytes of its JSON

Pair = tuple[int, int]
Config = dict[str, Any]
Listed = tuple[tuple[str, str, bool], ...]


@dataclass(frozen=True)
class Architecture:
    """A network of Keras Applications as one or several releases build it.

    Attributes:
        name: as in `keras.applications`, "MobileNetV2".
        release: what builds it, "keras 3.0.0 to keras 3.15.1", with the options that change the graph.
        top: names of the layers that `include_top=True` adds.
        size: default input size, (height, width).
        preprocessing: preset of the released weights; None if the model does it itself, or no preset does the same.
        padded: names of the ZeroPadding2D layers whose padding Keras computes from the size of their input.
        layers: (name, class, whether it has weights) of each layer of `model.layers`, as from `layer_list`.
        make: returns the config.
    """

    name: str
    release: str
    top: tuple[str, ...]
    size: Pair
    preprocessing: str | None
    padded: tuple[str, ...]
    layers: Listed = field(repr=False)
    make: Callable[[], Config] = field(repr=False, compare=False)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """Config of the whole model in Keras 3's form, {"class_name": "Functional", "config": ...}.

        It has the top for 1000 classes, the default size, and channels last; layers are in the order of `model.layers`.
        """
        return self.make()

    def sized(self, size: Pair) -> Mapping[str, Any]:
        """Return the config for another input size, (height, width)."""
        return resized(self.config, size, self.padded)


@lru_cache(maxsize=1)
def architectures() -> tuple[Architecture, ...]:
    """Return all graphs, those of one network together, its newest release first."""
    with files.open_file(DATA, max_bytes=MOST_PACKED) as file:
        packed = file.read()
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=128 << 20)
    text = decompressor.decompress(packed, MOST)
    if not decompressor.eof:
        raise ValueError(f"{DATA} holds more than {MOST:,} bytes; install convnets_torch again")
    found = files.loads(text)
    kinds = [listing(layer) for layer in found["layers"]]
    return tuple(
        Architecture(
            graph["name"], graph["release"], tuple(graph["top"]), pair_of(graph["size"]), graph["preprocessing"],
            tuple(graph["padded"]), listed(graph["nodes"], kinds), partial(unpacked, graph, found["layers"]),
        )
        for graph in found["graphs"]
    )  # fmt: skip


def listed(nodes: Iterable[Sequence[Any]], kinds: Sequence[tuple[str, bool] | None]) -> Listed:
    """Return the layers of a graph of the data file as `layer_list` does; `kinds` are those of the file's layers."""
    return tuple((name, *kind) for name, number, _ in nodes if (kind := kinds[number]))


def unpacked(graph: Mapping[str, Any], layers: Sequence[Mapping[str, Any]]) -> Config:
    """Return the config of a graph of the data file.

    Args:
        graph: its "nodes" are [name, place in `layers`, how many nodes before it each of its inputs stands].
        layers: {"class_name", "config", "args", and "module" of an operation}; each None in "args" stands for an input.
    """
    names = [name for name, _, _ in graph["nodes"]]
    entries = []
    for place, (name, kind, steps) in enumerate(graph["nodes"]):
        layer = layers[kind]
        inputs = iter([names[place - step] for step in steps])
        calls = [{"args": _filled(layer["args"], inputs), "kwargs": {}}] if steps else []
        entries.append({
            "class_name": layer["class_name"], "config": {"name": name, **layer["config"]}, "name": name,
            "module": layer.get("module", "keras.layers"), "inbound_nodes": calls,
        })  # fmt: skip
    ends = {"input_layers": [[names[0], 0, 0]], "output_layers": [[names[-1], 0, 0]]}
    return {"class_name": "Functional", "config": {"name": graph["model"], "layers": entries, **ends}}


def _filled(argument: Any, inputs: Any) -> Any:
    """Return arguments of a call with tensors for None."""
    if argument is None:
        return {"class_name": "__keras_tensor__", "config": {"keras_history": [next(inputs), 0, 0]}}
    return [_filled(each, inputs) for each in argument] if isinstance(argument, list) else argument


def layer_list(config: Mapping[str, Any]) -> Listed:
    """Return (name, class, whether it has weights) of each layer of `model.layers`, in order.

    Functions of `keras.ops` in the graph are not among them. A nested model is one layer.
    """
    found = ((layer["config"]["name"], listing(layer)) for layer in config["config"]["layers"])
    return tuple((name, *kind) for name, kind in found if kind)


def listing(layer: Mapping[str, Any]) -> tuple[str, bool] | None:
    """Return a layer's class and whether it has weights; None for an operation."""
    if "ops." in layer.get("module", ""):
        return None
    kind, settings = kind_of_class(layer["class_name"]), layer["config"]
    if "layers" in settings:
        weighted = any(has for inner in settings["layers"] for _, has in [listing(inner) or ("", False)])
    elif kind == "Normalization":
        weighted = settings.get("mean") is None
    else:
        weighted = kind in HOLDS or kind == "BatchNormalization"
    return kind, weighted


def resized(config: Mapping[str, Any], size: Pair, padded: Sequence[str]) -> Config:
    """Return a config with another input size, and with the paddings named in `padded` recomputed for it."""
    sizes: dict[str, Pair] = {}  # of each layer's output
    entries = []
    waiting = set(padded)
    for layer in config["config"]["layers"]:
        name, settings = layer["config"]["name"], layer["config"]
        if layer["class_name"] == "InputLayer":
            settings = {**settings, "batch_shape": [None, *size, settings["batch_shape"][-1]]}
            sizes[name] = size
        elif waiting:  # the sizes are of no interest behind the last one
            before = max(sizes[one] for one in _inputs(layer))  # of a map and its factors, the map
            if name in waiting:
                waiting.remove(name)
                settings = {**settings, "padding": _halving(settings["padding"], before)}
            sizes[name] = _size_after(kind_of_class(layer["class_name"]), settings, before)
        entries.append({**layer, "config": settings})
    return {**config, "config": {**config["config"], "layers": entries}}


def _inputs(layer: Mapping[str, Any]) -> list[str]:
    def names(argument: Any) -> list[str]:
        if isinstance(argument, list):
            return [name for each in argument for name in names(each)]
        return [argument["config"]["keras_history"][0]] if isinstance(argument, Mapping) else []

    return names(layer["inbound_nodes"][0]["args"])


def _halving(padding: Any, size: Pair) -> list[list[int]]:
    """Return the padding before a convolution of stride 2: one cell less above and on the left of an even size.

    Source: `correct_pad` in keras/applications/imagenet_utils.py.
    """
    return [[most - 1 + side % 2, most] for (_, most), side in zip(padding, size, strict=True)]


def _size_after(kind: str, settings: Mapping[str, Any], size: Pair) -> Pair:
    """Return the size of a layer's output; (1, 1) after global pooling."""
    if kind.startswith("Global"):
        return (1, 1)
    if kind in ("ZeroPadding2D", "Cropping2D"):
        sign = 1 if kind == "ZeroPadding2D" else -1
        edges = edges_of(settings["padding" if sign == 1 else "cropping"])
        return (size[0] + sign * sum(edges[0]), size[1] + sign * sum(edges[1]))
    window = pair_of(settings.get("kernel_size") or settings.get("pool_size") or 1)
    strides = pair_of(settings.get("strides") or window)
    less = (0, 0) if settings.get("padding") == "same" else (window[0] - 1, window[1] - 1)
    return (-(-(size[0] - less[0]) // strides[0]), -(-(size[1] - less[1]) // strides[1]))

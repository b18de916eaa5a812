"""The graphs of Keras Applications, of every release from Keras 1.2 to today, and those of convnets-keras.

They are configs of whole models, which `scripts/build_graphs.py` takes from real Keras. Widths are left to the arrays:
`filters` and `units` are not in the configs, so one graph stands for every number of classes and, where Keras's own
graph is the same, for every `alpha`.

Names that Keras gives automatically ("activation_7") are those of a new session; a user's file may count from another
number.
"""

from __future__ import annotations

import lzma
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

from converters.readers.keras_words import edges_of, holds_arrays, kind_of_class, kind_of_name, pair_of
from convnets_torch import files

DATA = Path(__file__).parent / "data" / "graphs.json.xz"
MOST_PACKED = 1 << 20  # bytes of the file
MOST = 32 << 20  # bytes of its JSON

Pair = tuple[int, int]
Shape = tuple[int, ...]  # (height, width, channels) of a map, (values,) of a vector
Config = dict[str, Any]
Listed = tuple[tuple[str, str, bool], ...]


@dataclass(frozen=True)
class Architecture:
    """A network of Keras Applications as one or several releases build it.

    Attributes:
        name: as in `keras.applications`, "MobileNetV2"; or "AlexNet".
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
        return tensor(next(inputs))
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
    kind = kind_of_class(layer["class_name"])
    return kind, holds_arrays(kind, layer["config"])


@dataclass(frozen=True)
class Entry:
    """A layer or operation of a functional config of Keras 3.

    Attributes:
        name: its name.
        kind: class in Keras 3's spelling; "ops.Add" for a function.
        settings: its config.
        inputs: names of the layers that it reads.
        raw: the whole entry of the config.
    """

    name: str
    kind: str
    settings: Mapping[str, Any]
    inputs: tuple[str, ...]
    raw: Mapping[str, Any]

    @property
    def weighted(self) -> bool:
        """Whether it has arrays."""
        return holds_arrays(self.kind, self.settings)

    @property
    def automatic(self) -> bool:
        """Whether Keras named it, after its class."""
        return is_automatic(self.name, self.kind)


def is_automatic(name: str, kind: str) -> bool:
    """Return whether a name is what Keras gives to layers of a class: "conv2d_7"."""
    return kind != "" and kind_of_name(name) == kind


def entries_of(settings: Mapping[str, Any]) -> tuple[Entry, ...]:
    """Return the layers and operations of a model with these settings."""
    return tuple(
        Entry(
            raw["config"]["name"],
            f"ops.{raw['class_name']}" if "ops." in str(raw.get("module", "")) else kind_of_class(raw["class_name"]),
            raw["config"],
            tuple(_names_in(raw.get("inbound_nodes", []))),
            raw,
        )
        for raw in settings["layers"]
    )


def _names_in(value: Any) -> Iterator[str]:
    """Yield the names of the layers whose outputs are among the arguments of a call."""
    if isinstance(value, Mapping) and value.get("class_name") == "__keras_tensor__":
        yield value["config"]["keras_history"][0]
    elif isinstance(value, list | tuple | Mapping):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _names_in(each)


def tensor(source: str) -> dict[str, Any]:
    """Return what stands for a layer's output in the arguments of a call."""
    return {"class_name": "__keras_tensor__", "config": {"keras_history": [source, 0, 0]}}


# Sizes


def resized(
    config: Mapping[str, Any], size: Pair, padded: Sequence[str], outputs: Mapping[str, int | None]
) -> tuple[Config, dict[str, Shape]]:
    """Return a config with another input size, and the shape of each layer's output, channels last.

    Args:
        config: the config.
        size: (height, width).
        padded: names of the layers whose paddings are recomputed.
        outputs: numbers of channels that the layers with weights give, also those of inner models.
    """
    shapes: dict[str, Shape] = {}
    layers = []
    for entry in entries_of(config["config"]):
        settings = entry.settings
        if entry.kind == "InputLayer":
            settings = {**settings, "batch_shape": [None, *size, settings["batch_shape"][-1]]}
            shapes[entry.name] = (*size, settings["batch_shape"][-1])
        else:
            before = [shapes[source] for source in entry.inputs]
            if entry.name in padded:
                settings = {**settings, "padding": _halving(settings["padding"], before[0])}
            shapes[entry.name] = shape_after(entry.kind, settings, before, outputs.get(entry.name), outputs)
        layers.append({**entry.raw, "config": settings})
    return {**config, "config": {**config["config"], "layers": layers}}, shapes


def _halving(padding: Any, size: Shape) -> list[list[int]]:
    """Return the padding before a convolution of stride 2: one cell less above and on the left of an even size.

    Source: `correct_pad` in keras/applications/imagenet_utils.py.
    """
    return [[most - 1 + side % 2, most] for (_, most), side in zip(padding, size, strict=False)]


def shape_after(
    kind: str, settings: Mapping[str, Any], shapes: Sequence[Shape], outputs: int | None,
    inner: Mapping[str, int | None] = MappingProxyType({}),
) -> Shape:  # fmt: skip
    """Return the shape of a layer's output, channels last.

    Args:
        shapes: of its inputs.
        outputs: number of channels or values that its weights give; None if it has none, or they are not known.
        inner: the same for the layers of an inner model.
    """
    shape = shapes[0]
    if kind == "Sequential":
        for entry in entries_of(settings):
            shape = shape_after(entry.kind, entry.settings, [shape], inner.get(entry.name))
        return shape
    if kind.startswith("Global"):
        return (1, 1, shape[-1]) if settings.get("keepdims") else shape[-1:]
    if kind == "Flatten":
        return (prod(shape),)
    if kind == "Reshape":
        return fitting(settings["target_shape"], shape)
    if kind == "Dense":
        return (*shape[:-1], outputs or 0)
    if kind == "SplitTensor":
        return (*shape[:-1], shape[-1] // 2)
    if kind in ("Concatenate", "ops.Concatenate"):
        return (*shape[:-1], sum(one[-1] for one in shapes))
    if len(shape) != 3:
        return shape
    if kind in ("ZeroPadding2D", "Cropping2D"):
        sign = 1 if kind == "ZeroPadding2D" else -1
        edges = edges_of(settings["padding" if sign == 1 else "cropping"])
        return (shape[0] + sign * sum(edges[0]), shape[1] + sign * sum(edges[1]), shape[2])
    if "kernel_size" in settings or "pool_size" in settings:
        window = pair_of(settings.get("kernel_size") or settings.get("pool_size"))
        strides = pair_of(settings.get("strides") or settings.get("pool_size") or 1)
        rates = pair_of(settings.get("dilation_rate") or 1)
        less = [0 if settings.get("padding") == "same" else (side - 1) * rate
                for side, rate in zip(window, rates, strict=True)]  # fmt: skip
        sides = [-(-(side - loss) // step) for side, loss, step in zip(shape, less, strides, strict=False)]
        return (*sides, outputs or shape[-1])
    alike = len({len(one) for one in shapes}) == 1
    return tuple(max(sides) for sides in zip(*shapes, strict=True)) if alike else shape


def fitting(target: Sequence[int], shape: Shape) -> Shape:
    """Return the target of a Reshape, its largest side such that it fits: that is the number of channels or classes."""
    target, total = list(target), prod(shape)
    if -1 in target or prod(target) != total:
        place = target.index(-1) if -1 in target else target.index(max(target))
        target[place] = total // max(1, prod(target[:place] + target[place + 1 :]))
    return tuple(target)

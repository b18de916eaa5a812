"""A network given as a graph of layers: plain data that a card can hold, and the module built from it.

A layer is an entry (name, kind, inputs, settings): a unique name, one of `KINDS`, the names of the layers that it
reads ("images" for the network's input), and the arguments of its kind. A layer reads earlier entries only, so there
are no cycles. A shared layer's later calls are entries of kind "again" that name the first one.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from convnets_torch.networks import layers
from convnets_torch.networks.alexnet import LocalResponseNorm
from convnets_torch.networks.network import Network, Size, check_size

Entry = tuple[str, str, Sequence[str], Mapping[str, Any]]

IMAGES = "images"
MOST_LAYERS = 5_000  # Keras's largest network has 1,041
MOST_LEVELS = 4  # of lists in a setting
MOST_SIDE = 65_536  # pixels of a kernel, stride or padding
MOST_CHANNELS = 1_000_000
MOST_NAME = 200  # characters


class LayerGraph(nn.Module):
    """Calls layers in order, each on the outputs of earlier ones; the layers are submodules under their names."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        """Build the layers of `entries`; the last one is the output.

        Raises:
            ValueError: an entry is malformed, unknown, or reads a layer that does not exist before it.
        """
        super().__init__()
        check_entries(entries)
        for name, kind, _, settings in entries:
            if kind != "again":
                self.add_module(name, make_layer(name, kind, settings))
        last_use = {source: number for number, (_, _, inputs, _) in enumerate(entries) for source in inputs}
        # (name, name of the module, inputs, values not needed afterwards) of each call
        self.calls = tuple(
            (
                name,
                settings["layer"] if kind == "again" else name,
                tuple(inputs),
                tuple(source for source in dict.fromkeys(inputs) if last_use[source] == number),
            )
            for number, (name, kind, inputs, settings) in enumerate(entries)
        )
        self.output = entries[-1][0] if entries else IMAGES

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) -> the output of the last layer."""
        values = {IMAGES: images}
        for name, module, inputs, done in self.calls:
            result = getattr(self, module)(*[values[source] for source in inputs])
            for source in done:
                del values[source]
            values[name] = result
        return values[self.output]


class GraphNetwork(Network):
    """A network whose layers are data, as converted from a model without a class of its own here."""

    shrinking = ()

    def __init__(self, classes: int | None, graph: Mapping[str, Any]) -> None:
        """Build a network.

        Args:
            classes: number of logits; None for no head.
            graph: "features" and "head", lists of entries (a head's entries each read the one before); "size",
                (height, width) in pixels of the images; "window", (height, width) in cells that the head reads at
                once; "stride", pixels between cells; "no_map", why there is no map, or null; "last_map", the last layer
                of the features whose output is a map; "channels" of an image, 3 by default; "name" of the model.

        Raises:
            ValueError: an entry or a number is invalid.
        """
        super().__init__()
        known = ("features", "head", "size", "window", "stride", "no_map", "last_map", "channels", "name")
        if not isinstance(graph, Mapping) or not set(graph) <= set(known):
            raise ValueError(f"a graph has the fields {', '.join(map(str, graph))}; known: {', '.join(known)}")
        self.size = check_size(_pair_of(graph.get("size")))
        self.channels = graph.get("channels", 3)
        if self.channels not in (1, 3, 4):
            raise ValueError(f"a graph reads images of {self.channels!r} channels; known: 1, 3, 4")
        self.features = LayerGraph(graph["features"])
        head, self.no_map, self.last_map = graph.get("head"), graph.get("no_map"), graph.get("last_map")
        if not isinstance(self.no_map, str | None):
            raise ValueError(f"a graph has the reason {self.no_map!r:.80} for having no map; give a string")
        if self.last_map not in (None, *(entry[0] for entry in graph["features"])):
            raise ValueError(
                f"a graph has the last map {self.last_map!r:.80}; give the name of a layer of its features"
            )
        self.window = _pair_of(graph.get("window", (0, 0)))
        self.stride = graph.get("stride", 0)
        if type(self.stride) is not int or self.stride < 0 or min(self.window) < 0 or max(self.window) > MOST_SIDE:
            raise ValueError(f"a graph has a window {self.window} and a stride {self.stride!r}; give whole numbers")
        self.head = None
        if (head is None) != (classes is None):
            raise ValueError(f"a graph has {classes} classes and {'no' if head is None else 'a'} head; give both")
        if head is not None:
            check_entries(head, chain=True)
            self.head = nn.Sequential()
            for name, kind, _, settings in head:
                self.head.add_module(name, make_layer(name, kind, settings))

    def keras_names(self) -> dict[str, str]:
        """Map Keras layer names to modules with the same outputs: the activation if one is fused into the layer."""
        names = {}
        for part in ("features", "head"):
            for name, _ in getattr(self, part).named_children() if getattr(self, part) is not None else ():
                names[name.removesuffix(FUSED) if name.endswith(FUSED) else name] = f"{part}.{name}"
        return names


FUSED = "_activation"  # ends the names of activations that Keras fuses into the layer before


def check_entries(entries: Any, *, chain: bool = False) -> None:
    """Raise ValueError for the first malformed entry; in a `chain`, each entry reads the one before."""
    if not isinstance(entries, list | tuple) or len(entries) > MOST_LAYERS:
        raise ValueError(f"a graph has no list of at most {MOST_LAYERS} layers")
    known, taken, before = {IMAGES}, set(dir(LayerGraph)) | {"calls", "output"}, None
    for entry in entries:
        if not isinstance(entry, list | tuple) or len(entry) != 4:
            raise ValueError(f"a graph has the layer {entry!r:.80}; give (name, kind, inputs, settings)")
        name, kind, inputs, settings = entry
        if not isinstance(name, str) or not re.fullmatch(rf"[\w-]{{1,{MOST_NAME}}}", name):
            raise ValueError(f"a graph has a layer named {name!r:.80}; give letters, digits, _ and -")
        if name in known or name in taken:
            raise ValueError(f"a graph has two layers {name}, or the name has another meaning; rename one")
        if kind != "again" and (not isinstance(kind, str) or kind not in KINDS):
            raise ValueError(f"layer {name} is of the unknown kind {kind!r:.80}; known: {', '.join(sorted(KINDS))}")
        wanted = () if before is None else (before,)
        if chain and tuple(inputs) != wanted:
            raise ValueError(f"layer {name} of a head reads {inputs!r:.80}; give the layer before it")
        if not isinstance(inputs, list | tuple) or not (chain or inputs) or not all(one in known for one in inputs):
            raise ValueError(f"layer {name} reads {inputs!r:.80}; give names of layers before it")
        if not isinstance(settings, Mapping):
            raise ValueError(f"layer {name} has the settings {settings!r:.80}; give an object")
        if kind == "again" and (set(settings) != {"layer"} or settings["layer"] not in known - {IMAGES}):
            raise ValueError(f"layer {name} repeats {settings!r:.80}; give a layer before it")
        known.add(name)
        before = name


def make_layer(name: str, kind: str, settings: Mapping[str, Any]) -> nn.Module:
    """Build one layer; ValueError if its settings are not those of its kind."""
    try:
        for value in settings.values():
            _check_setting(value)
        inspect.signature(KINDS[kind]).bind(**settings)
        return KINDS[kind](**settings)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
        raise ValueError(f"layer {name} ({kind}) cannot be built with {dict(settings)!r:.200}: {error}") from None


def _check_setting(value: Any, level: int = 0) -> None:
    """Raise ValueError unless a value is a short word, a bool, None, a bounded number, or a nested list of these."""
    if isinstance(value, list | tuple):
        if level == MOST_LEVELS or len(value) > 10_000:
            raise ValueError("a setting has too many numbers")
        for each in value:
            _check_setting(each, level + 1)
    elif isinstance(value, bool) or value is None:
        pass
    elif isinstance(value, int | float):
        if not isfinite(value) or abs(value) > 1e9:
            raise ValueError(f"{value} is out of range")
    elif not isinstance(value, str) or len(value) > 40:
        raise ValueError(f"{value!r:.80} is neither a number nor a word")


def _pair_of(value: Any) -> Size:
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(type(side) is int for side in value):
        raise ValueError(f"a graph has the size {value!r:.80}; give two whole numbers")
    return value[0], value[1]


def _whole(*values: Any, least: int = 1, most: int = MOST_SIDE) -> None:
    for value in values:
        for each in value if isinstance(value, list | tuple) else (value,):
            if type(each) is not int or not least <= each <= most:
                raise ValueError(f"{value!r:.80} is not a number from {least} to {most}")


def _pair(value: Any) -> tuple[int, int]:
    first, second = value
    return first, second


# Kinds of layers


def _conv(
    inputs: int, outputs: int, kernel: Any, stride: Any = (1, 1), padding: Any = (0, 0), dilation: Any = (1, 1),
    groups: int = 1, bias: bool = True,
) -> nn.Module:  # fmt: skip
    _whole(inputs, outputs, groups, most=MOST_CHANNELS)
    _whole(kernel, stride, dilation)
    _whole(padding, least=0)
    return nn.Conv2d(inputs, outputs, _pair(kernel), _pair(stride), _pair(padding), _pair(dilation), groups, bool(bias))


def _conv_transpose(
    inputs: int, outputs: int, kernel: Any, stride: Any, edges: Any, output_padding: Any = (0, 0),
    dilation: Any = (1, 1), groups: int = 1, bias: bool = True,
) -> nn.Module:  # fmt: skip
    _whole(inputs, outputs, groups, most=MOST_CHANNELS)
    _whole(kernel, stride, dilation)
    _whole(edges, output_padding, least=0)
    return layers.ConvTranspose2d(
        inputs, outputs, _pair(kernel), stride=_pair(stride), output_padding=_pair(output_padding),
        dilation=_pair(dilation), groups=groups, bias=bool(bias), edges=tuple(edges),
    )  # fmt: skip


def _dense(inputs: int, outputs: int, bias: bool = True) -> nn.Module:
    _whole(inputs, most=1 << 31)
    _whole(outputs, most=MOST_CHANNELS)
    return nn.Linear(inputs, outputs, bool(bias))


def _batch_norm(channels: int, epsilon: float, dims: int = 4) -> nn.Module:
    _whole(channels, most=1 << 31)
    kinds: dict[int, Any] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}
    return kinds[dims](channels, eps=float(epsilon), momentum=0.01)


def _layer_norm(shape: Any, epsilon: float) -> nn.Module:
    _whole(shape, most=MOST_CHANNELS)
    return nn.LayerNorm(list(shape), eps=float(epsilon))


def _channels(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def layer(channels: int, **settings: Any) -> nn.Module:
        _whole(channels, most=MOST_CHANNELS)
        return make(channels, **settings)

    return layer


def _pool(how: str) -> Callable[..., nn.Module]:
    def layer(kernel: Any, stride: Any, edges: Any = (0, 0, 0, 0)) -> nn.Module:
        _whole(kernel, stride)
        _whole(edges, least=0)
        top, bottom, left, right = edges
        if top == bottom <= kernel[0] // 2 and left == right <= kernel[1] // 2:
            if how == "max":
                return nn.MaxPool2d(_pair(kernel), _pair(stride), (top, left))
            return nn.AvgPool2d(_pair(kernel), _pair(stride), (top, left), count_include_pad=False)
        kind = layers.MaxPool2d if how == "max" else layers.AvgPool2d
        return kind(_pair(kernel), _pair(stride), (top, bottom, left, right))

    return layer


def _global(how: str) -> Callable[..., nn.Module]:
    def layer(keepdims: bool = False) -> nn.Module:
        pool: nn.Module = nn.AdaptiveAvgPool2d(1) if how == "average" else nn.AdaptiveMaxPool2d(1)
        return pool if keepdims else nn.Sequential(pool, nn.Flatten())

    return layer


def _pad(edges: Any) -> nn.Module:
    _whole(edges, least=-MOST_SIDE)
    top, bottom, left, right = edges
    return nn.ZeroPad2d((left, right, top, bottom))


def _upsample(factor: Any, how: str) -> nn.Module:
    _whole(factor)
    bilinear = {"nearest": False, "bilinear": True}[how]
    scale: Any = tuple(map(float, _pair(factor)))
    return nn.Upsample(scale_factor=scale, mode=how, align_corners=False if bilinear else None)


def _slice(start: int, stop: int) -> nn.Module:
    _whole(start, least=0, most=MOST_CHANNELS)
    _whole(stop, least=start + 1, most=MOST_CHANNELS)
    return layers.Channels(start, stop)


def _local_response_norm(size: int, alpha: float, beta: float, k: float) -> nn.Module:
    _whole(size, most=1000)
    return LocalResponseNorm(size, float(alpha), float(beta), float(k))


def _prelu(shape: Any) -> nn.Module:
    _whole(shape, most=MOST_CHANNELS)
    return nn.PReLU(shape[0]) if len(shape) == 3 and tuple(shape[1:]) == (1, 1) else layers.PReLU(shape)


def _shape(shape: Any, channels_last: bool) -> nn.Module:
    _whole(shape, least=-1, most=1 << 31)
    return layers.Reshape(shape, bool(channels_last))


ACTIVATIONS: Mapping[str, Callable[..., nn.Module]] = {
    "linear": lambda: nn.Identity(), "relu": nn.ReLU, "relu6": nn.ReLU6, "selu": nn.SELU, "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "softplus": nn.Softplus, "softsign": nn.Softsign,
    "exponential": layers.Exponential,
    "mish": nn.Mish, "hard_silu": nn.Hardswish, "hard_sigmoid": nn.Hardsigmoid, "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"), "log_softmax": lambda dim=1: nn.LogSoftmax(dim),
    "hard_sigmoid_0.2": lambda: nn.Sequential(layers.Scale(0.2, 0.5), nn.Hardtanh(0.0, 1.0)),  # of Keras 1 and 2
    "hard_tanh": nn.Hardtanh, "tanh_shrink": nn.Tanhshrink, "log_sigmoid": nn.LogSigmoid,
}  # fmt: skip

KINDS: Mapping[str, Callable[..., nn.Module]] = {
    **ACTIVATIONS,
    "elu": lambda alpha=1.0: nn.ELU(float(alpha)),
    "celu": lambda alpha=1.0: nn.CELU(float(alpha)),
    "leaky_relu": lambda slope: nn.LeakyReLU(float(slope)),
    "clipped_relu": layers.ClippedReLU,
    "threshold": lambda threshold: nn.Threshold(float(threshold), 0.0),
    "prelu": _prelu,
    "softmax": lambda dim: nn.Softmax(dim),
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "dense": _dense,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "channel_norm": _channels(layers.ChannelNorm),
    "layer_scale": _channels(layers.LayerScale),
    "normalize": _channels(layers.Normalize),
    "scale": layers.Scale,
    "max_pool": _pool("max"),
    "average_pool": _pool("average"),
    "global_max": _global("max"),
    "global_average": _global("average"),
    "pad": _pad,
    "upsample": _upsample,
    "flatten": lambda channels_last=False: layers.Flatten() if channels_last else nn.Flatten(),
    "reshape": _shape,
    "permute": layers.Permute,
    "dropout": lambda rate: nn.Dropout(float(rate)),
    "add": layers.Add,
    "subtract": layers.Subtract,
    "multiply": layers.Multiply,
    "divide": layers.Divide,
    "average": layers.Average,
    "maximum": layers.Maximum,
    "minimum": layers.Minimum,
    "concatenate": layers.Concatenate,
    "dot": layers.Dot,
    "channels": _slice,
    "local_response_norm": _local_response_norm,
}


def with_classes(graph: Mapping[str, Any], classes: int) -> dict[str, Any]:
    """Return a graph whose head ends in a dense layer of `classes` units, instead of its last one.

    A graph without a head gets one: global average pooling of its map, then the dense layer.
    """
    head = list(graph.get("head") or ())
    last = next((place for place in reversed(range(len(head))) if head[place][1] == "dense"), None)
    if last is not None:
        name, kind, before, settings = head[last]
        dense = (name, kind, before, {"inputs": settings["inputs"], "outputs": classes})
        return {**graph, "head": (*head[:last], dense)}
    if head:
        raise ValueError("the head of the graph has no dense layer to replace")
    shape = output_shape(graph["features"], (1, graph.get("channels", 3), *graph["size"]))
    if len(shape) == 2:
        return {**graph, "head": (("dense_1", "dense", (), {"inputs": shape[1], "outputs": classes}),)}
    pool = ("pool", "average_pool", (), {"kernel": shape[2:], "stride": (1, 1)})
    dense = ("dense_1", "dense", ("flatten",), {"inputs": shape[1], "outputs": classes})
    return {**graph, "head": (pool, ("flatten", "flatten", ("pool",), {}), dense), "window": shape[2:]}


def output_shape(entries: Iterable[Entry], images: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the output for images of a shape, computed without data."""
    with torch.device("meta"):
        return tuple(LayerGraph(list(entries)).eval()(torch.empty(images)).shape)

"""Trace a network's layers and compute their receptive fields: strides, windows and what each layer reads.

`torch.fx` traces the module once. The result is a list of ops: layers that read a window of cells, layers and
functions that treat each cell by itself, and sums and concatenations of branches. The ops suffice to run the same
layers in blocks of rows (`streaming`) or at another stride, and to say which pixels a cell sees.
"""

from __future__ import annotations

import copy
import operator
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.proxy import TraceError
from torch.nn import functional as F

from convnets_torch.fcn.sliding import ELEMENTWISE, slide
from convnets_torch.networks import layers as own
from convnets_torch.networks.network import Network, as_network, check_map
from convnets_torch.networks.packed import PackedAdd, PackedConv2d
from convnets_torch.networks.packed_int8 import Int8MaxPool2d, PackedInt8Conv2d
from convnets_torch.networks.quantized import QuantizedConv2d
from convnets_torch.networks.tracing import LayerTracer


class ReceptiveField(NamedTuple):
    """Receptive field along one axis: cell i sees `size` pixels from start + i * stride on.

    Pixels outside the picture are padding.
    """

    start: int
    size: int
    stride: int


@dataclass(frozen=True)
class MapGraph:
    """The ops that compute a network's map at one stride, and where its cells are.

    Attributes:
        ops: from images to logits, with the head as the last op; or to the feature map only.
        vertical, horizontal: receptive fields of the cells.
        dilation: distance, in cells of the feature map, between the cells that the head reads.
        channels: of the images.
    """

    ops: tuple[Op, ...]
    vertical: ReceptiveField
    horizontal: ReceptiveField
    dilation: int
    channels: int = 3

    @property
    def stride(self) -> int:
        """Pixels between neighbouring cells."""
        return self.vertical.stride

    def shape(self, height: int, width: int) -> Pair:
        """Return (rows, columns) of the map for images of this size in pixels; 0 if they are too small."""
        return (count(self.ops, height, 0), count(self.ops, width, 1))

    def input_ranges(self, side: int, axis: int) -> tuple[Pair, ...]:
        """Return the first pixel and the one after the last that each row (axis 0) or column (axis 1) of cells reads.

        The result is exact for images of `side` pixels along the axis: pixels that a pool drops are not included.
        """
        sides = _sides(self.ops, side, axis)
        cells = np.arange(sides[-1])
        reached = {len(self.ops) - 1: (cells, cells)}  # index of an op -> the first and last cells of its map
        for number in reversed(range(1, len(self.ops))):
            if number not in reached:
                continue
            window, (begin, end) = self.ops[number].window, reached[number]
            first = begin * window.stride[axis] - window.padding[2 * axis]
            last = end * window.stride[axis] - window.padding[2 * axis] + window.reach(axis) - 1
            for source in self.ops[number].inputs:
                low, high = (np.clip(each, 0, sides[source] - 1) for each in (first, last))
                known = reached.get(source, (low, high))
                reached[source] = (np.minimum(known[0], low), np.maximum(known[1], high))
        return tuple(zip(reached[0][0].tolist(), (reached[0][1] + 1).tolist(), strict=True))


def map_graph(network: Network, cell_stride: int | None = None) -> MapGraph:
    """Return the cells of a network's map, at its own stride or at a smaller one.

    For a smaller stride, the last strides of convolutions and pools are removed and the following layers are dilated,
    so that each layer reads the same cells as before: every (stride / cell_stride)-th row and column of the map is
    unchanged.

    Args:
        network: with a head.
        cell_stride: pixels between neighbouring cells; one of `cell_strides(network)`, None for the network's own.

    Raises:
        ValueError: the network has no head, does not support this stride, or contains an unknown layer.

    Source: Fully Convolutional Networks for Semantic Segmentation, arXiv:1411.4038, section 3.2 (the a trous trick).

    >>> from convnets_torch.networks import vgg16
    >>> narrow = vgg16(classes=10, widths=(2, 2, 4, 4, 4), hidden=(8, 8))
    >>> map_graph(narrow).vertical, map_graph(narrow, 8).vertical
    (ReceptiveField(start=-90, size=404, stride=32), ReceptiveField(start=-90, size=404, stride=8))
    """
    head = check_map(network)
    ops = trace_ops(network.features)
    if cell_stride is not None and cell_stride != network.stride:
        known = cell_strides(network)
        if cell_stride not in known:
            raise ValueError(
                f"{type(network).__name__} does not support a cell stride of {cell_stride} pixels; it supports"
                f" {', '.join(map(str, known))}"
            )
        ops = _with_stride(ops, cell_stride)
    dilation = network.stride // receptive_fields(ops)[-1][0].stride
    window = network.window

    def sliding_head(cells):  # type: ignore[no-untyped-def]
        return slide(head, cells, window, dilation)

    last = Op("head", "head", (len(ops) - 1,), sliding_head, Window(window, (1, 1), (dilation, dilation)))
    ops = (*ops, last)
    vertical, horizontal = receptive_fields(ops)[-1]
    if vertical.stride != horizontal.stride:
        raise ValueError(
            f"the cells are {vertical.stride} pixels apart vertically and {horizontal.stride} horizontally"
        )
    return MapGraph(ops, vertical, horizontal, dilation, network.channels)


def features_graph(network: Network) -> MapGraph:
    """Return the cells of a network's feature map, with or without a head.

    >>> from convnets_torch.networks import vgg16
    >>> features_graph(vgg16(None, widths=(2, 2, 4, 4, 4))).vertical
    ReceptiveField(start=-90, size=212, stride=32)
    """
    ops = trace_ops(network.features)
    return MapGraph(ops, *receptive_fields(ops)[-1], dilation=1, channels=network.channels)


def cell_strides(network: Network) -> tuple[int, ...]:
    """Return the strides that a network's map supports, in pixels, its own first.

    >>> from convnets_torch.networks import AlexNet
    >>> cell_strides(AlexNet())
    (32, 16, 8, 4, 1)
    """
    features = as_network(network).features
    return tuple(sorted({field.stride for field, _ in receptive_fields(trace_ops(features))}, reverse=True))


def count(ops: Sequence[Op], side: int, axis: int) -> int:
    """Return the number of cells of the last op's map along a side of `side` pixels."""
    return _sides(ops, side, axis)[-1]


def _sides(ops: Sequence[Op], side: int, axis: int) -> list[int]:
    """Return the number of cells of each op's map along a side of `side` pixels."""
    sides: list[int] = []
    for op in ops:
        below = [sides[each] for each in op.inputs] or [side]
        sides.append(op.window.count(min(below), axis) if min(below) > 0 else 0)
    return sides


def receptive_fields(ops: Sequence[Op]) -> list[tuple[ReceptiveField, ReceptiveField]]:
    """Return the receptive field of each op's cells, vertical and horizontal."""
    found: list[tuple[ReceptiveField, ReceptiveField]] = []
    for op in ops:
        if op.kind == "images":
            found.append((ReceptiveField(0, 1, 1), ReceptiveField(0, 1, 1)))
            continue
        axes = []
        for axis in (0, 1):
            below = [found[each][axis] for each in op.inputs]
            if len({field.stride for field in below}) > 1:
                raise ValueError(f"{op.name} joins branches of different strides")
            start, stride = min(field.start for field in below), below[0].stride
            size = max(field.start + field.size for field in below) - start
            start -= op.window.padding[2 * axis] * stride
            size += (op.window.reach(axis) - 1) * stride
            axes.append(ReceptiveField(start, size, stride * op.window.stride[axis]))
        found.append((axes[0], axes[1]))
    return found


def _with_stride(ops: Sequence[Op], cell_stride: int) -> tuple[Op, ...]:
    """Remove strides beyond `cell_stride` and dilate the ops that follow."""
    dense: list[Op] = []
    rates: list[Pair] = []  # density of each op's map relative to the original
    strides: list[Pair] = []  # pixels between its cells
    for op in ops:
        below = op.inputs[0] if op.inputs else None
        rate, apart = ((1, 1), (1, 1)) if below is None else (rates[below], strides[below])
        window = op.window
        kept = [
            own if pixels * own <= cell_stride and times == 1 else 1
            for own, pixels, times in zip(window.stride, apart, rate, strict=True)
        ]
        top, bottom, left, right = window.padding
        dilation = (window.dilation[0] * rate[0], window.dilation[1] * rate[1])
        padding = (top * rate[0], bottom * rate[0], left * rate[1], right * rate[1])
        dense.append(replace(op, window=Window(window.kernel, (kept[0], kept[1]), dilation, padding)))
        rates.append((rate[0] * window.stride[0] // kept[0], rate[1] * window.stride[1] // kept[1]))
        strides.append((apart[0] * kept[0], apart[1] * kept[1]))
    return tuple(dense)


Pair = tuple[int, int]  # vertical, horizontal

# Layers that treat each cell by itself in eval mode.
CELLWISE = (
    *ELEMENTWISE, nn.BatchNorm2d, nn.LocalResponseNorm, nn.Dropout2d, nn.Hardtanh, nn.PReLU, nn.Mish, nn.LogSigmoid,
    nn.Hardsigmoid, nn.Softsign, nn.Threshold, own.Scale, own.Normalize, own.ChannelNorm, own.LayerScale,
    own.ClippedReLU, own.Exponential, own.Channels,
)  # fmt: skip
MERGING = (own.Add, own.Subtract, own.Multiply, own.Divide, own.Average, own.Maximum, own.Minimum)
# Layers that read a window of cells; their padding must not depend on the cells' values.
WINDOWED = (
    nn.Conv2d, QuantizedConv2d, PackedConv2d, PackedInt8Conv2d, nn.MaxPool2d, Int8MaxPool2d, nn.AvgPool2d, nn.ZeroPad2d,
)  # fmt: skip

SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
CELLWISE_CALLS: dict[Any, Callable[..., Tensor]] = {
    F.relu: F.relu, torch.relu: F.relu, "relu": F.relu, "relu_": F.relu, F.relu6: F.relu6, F.silu: F.silu,
    F.gelu: F.gelu, F.elu: F.elu, F.leaky_relu: F.leaky_relu, F.hardswish: F.hardswish,
    torch.sigmoid: torch.sigmoid, "sigmoid": torch.sigmoid, torch.tanh: torch.tanh, "tanh": torch.tanh,
}  # fmt: skip
POOL_CALLS: dict[Any, Callable[..., nn.Module]] = {F.max_pool2d: nn.MaxPool2d, F.avg_pool2d: nn.AvgPool2d}

Kind = Literal["images", "conv", "max", "average", "pad", "cells", "merge", "cat", "head"]


@dataclass(frozen=True)
class Window:
    """The cells of its input that a layer reads for each output cell.

    Attributes:
        kernel: (height, width) in cells.
        stride: (vertical, horizontal) cells between neighbouring windows.
        dilation: (vertical, horizontal) distance between the cells that a window reads.
        padding: (top, bottom, left, right) cells around the map.
    """

    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)

    def reach(self, axis: int) -> int:
        """Return the extent of one window in cells, including dilation, along axis 0 (vertical) or 1."""
        return (self.kernel[axis] - 1) * self.dilation[axis] + 1

    def count(self, side: int, axis: int) -> int:
        """Return the number of windows along a side of `side` cells."""
        around = self.padding[2 * axis] + self.padding[2 * axis + 1]
        return max(0, (side + around - self.reach(axis)) // self.stride[axis] + 1)


@dataclass(frozen=True, eq=False)
class Op:
    """One operation on maps.

    Attributes:
        name: of the layer, as in `features.named_modules()`, or of the function.
        kind: kind of operation.
        inputs: indices of the ops whose maps it reads.
        layer: the module, whose current parameters are used; or the function.
        window: what it reads; kernel and stride 1 if each cell is treated by itself.
        blocks: names of the modules in which it is called, outermost first.
    """

    name: str
    kind: Kind
    inputs: tuple[int, ...]
    layer: Callable[..., Tensor] | None = None
    window: Window = Window()
    blocks: tuple[str, ...] = ()


class Layers(LayerTracer):
    """Trace modules down to the layers that `trace_ops` supports."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return is_layer(module) or super().is_leaf_module(module, name)


_cache: weakref.WeakKeyDictionary[nn.Module, tuple[str, tuple[int, ...], tuple[Op, ...]]] = weakref.WeakKeyDictionary()


def trace_ops(features: nn.Module) -> tuple[Op, ...]:
    """Return the ops of a convolutional part in execution order; the first is the images, the last produces the map.

    Args:
        features: a module from images (N, C, H, W) to one map (N, C, h, w).

    Raises:
        ValueError: a layer or function in it is unknown, or depends on the size of the map (global or adaptive
            pooling), so that the cells' receptive fields are undefined.

    >>> [op.name for op in trace_ops(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()))]
    ['images', '0', '1']
    """
    described, modules = repr(features), tuple(map(id, features.modules()))
    known = _cache.get(features)
    if known is None or known[:2] != (described, modules):
        _cache[features] = known = (described, modules, _trace(features))
    return known[2]


def _trace(features: nn.Module) -> tuple[Op, ...]:
    if is_layer(features):
        features = nn.Sequential(features)
    try:
        graph: Graph = Layers().trace(features)
    except (TraceError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{type(features).__name__} cannot be traced layer by layer ({reason}); give plain modules without"
            " branches that depend on their input"
        ) from None
    traced = GraphModule(features, graph, type(features).__name__)
    ops: list[Op] = []
    numbers: dict[Node, int] = {}
    for node in graph.nodes:
        if node.op == "output":
            result = node.args[0]
            if not isinstance(result, Node):
                raise ValueError(f"{type(features).__name__} returns several maps instead of one")
            if numbers[result] != len(ops) - 1:
                raise ValueError(f"{type(features).__name__} returns a map that is not its last layer's")
            break
        numbers[node] = len(ops)
        # The stack lists the second call of a module as "name@1".
        blocks = tuple(name.split("@")[0] for name in node.meta.get("nn_module_stack", ()) if name)
        ops.append(replace(op_of(node, traced, numbers), blocks=blocks))
    return tuple(ops)


def op_of(node: Node, traced: GraphModule, numbers: dict[Node, int]) -> Op:
    """Return the op of a graph node; ValueError if the operation is unknown."""
    inputs = tuple(numbers[each] for each in node.all_input_nodes)
    if node.op == "placeholder":
        if numbers[node]:
            raise ValueError("the features take several inputs; they must take images only")
        return Op("images", "images", ())
    if node.op == "call_module":
        read = tuple(numbers[each] for each in node.args if isinstance(each, Node))
        return layer_op(traced.get_submodule(str(node.target)), str(node.target), read)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    if node.op in ("call_function", "call_method"):
        maps = [each for each in node.args if isinstance(each, Node)]
        if node.target in SUMS and len(maps) == len(node.args) == 2 and not node.kwargs:
            return Op(name, "merge", tuple(numbers[each] for each in maps), operator.add)
        if node.target in (torch.cat, torch.concat) and (node.kwargs.get("dim", (*node.args[1:], 0)[0])) == 1:
            joined: Any = node.args[0] if node.args else node.kwargs["tensors"]
            return Op(name, "cat", tuple(numbers[each] for each in joined))
        if node.target in CELLWISE_CALLS and maps == [node.args[0]]:
            return Op(name, "cells", inputs, _call(node))
        if (pool := pool_of(node)) is not None:
            return layer_op(pool, name, inputs)
    raise ValueError(f"the features call {name}, which is not known to read a fixed window of cells")


def _call(node: Node) -> Callable[[Tensor], Tensor]:
    """Return a node's function with its arguments, never in-place: another op may need its input."""
    function, rest = CELLWISE_CALLS[node.target], node.args[1:]
    named = {name: False if name == "inplace" else value for name, value in node.kwargs.items()}
    return lambda cells: function(cells, *rest, **named)


def pool_of(node: Node) -> nn.Module | None:
    """Return the layer equivalent to a call of `max_pool2d` or `avg_pool2d`; None for other calls or computed sizes."""
    if len(node.all_input_nodes) != 1 or node.kwargs.get("return_indices"):
        return None
    if (kind := POOL_CALLS.get(node.target)) is None:
        return None
    named = {name: value for name, value in node.kwargs.items() if name not in ("input", "return_indices")}
    return kind(*node.args[1:], **named)


def layer_op(layer: nn.Module, name: str, inputs: tuple[int, ...]) -> Op:
    """Return the op of one layer; ValueError if it is unknown, or its padding depends on the map."""
    if isinstance(layer, CELLWISE):
        return Op(name, "cells", inputs, out_of_place(layer))
    if isinstance(layer, PackedAdd):
        return Op(name, "merge", inputs, layer.merge)
    if isinstance(layer, MERGING):
        return Op(name, "merge", inputs, layer)
    if isinstance(layer, own.Concatenate) and layer.dim == 1:
        return Op(name, "cat", inputs)
    if isinstance(layer, own.MaxPool2d):
        kind: Kind = "average" if isinstance(layer, own.AvgPool2d) else "max"
        return Op(name, kind, inputs, layer, Window(layer.kernel_size, layer.stride, (1, 1), layer.edges))
    if not is_layer(layer):
        raise ValueError(
            f"{name or 'the layer'} is {type(layer).__name__}, which is not known to read a fixed window of cells"
        )
    if isinstance(layer, nn.ZeroPad2d):
        left, right, top, bottom = layer.padding
        if min(left, right, top, bottom) < 0:
            raise ValueError(f"{name} is {layer}, which crops the map; only padding is supported")
        return Op(name, "pad", inputs, None, Window(padding=(top, bottom, left, right)))
    kernel, stride, dilation = (_pair(getattr(layer, each, 1)) for each in ("kernel_size", "stride", "dilation"))
    if isinstance(layer, nn.Conv2d | PackedConv2d):
        if layer.padding_mode != "zeros":
            raise ValueError(f"{name} has padding mode {layer.padding_mode!r}; only 'zeros' is supported")
        if layer.padding == "same":
            total = [(side - 1) * apart for side, apart in zip(kernel, dilation, strict=True)]
            padding = (total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2)
        else:
            down, across = (0, 0) if layer.padding == "valid" else _pair(layer.padding)
            padding = (down, down, across, across)
        return Op(name, "conv", inputs, layer, Window(kernel, stride, dilation, padding))
    if layer.ceil_mode:
        raise ValueError(f"{name} is {layer}, whose padding depends on the map's size; use ceil_mode=False")
    down, across = _pair(layer.padding)
    window = Window(kernel, stride, dilation, (down, down, across, across))
    return Op(name, "max" if isinstance(layer, nn.MaxPool2d) else "average", inputs, layer, window)


def out_of_place(layer: nn.Module) -> nn.Module:
    """Return the layer, or an out-of-place copy of an in-place layer, whose input something else may need."""
    if getattr(layer, "inplace", False):
        layer = copy.copy(layer)
        layer.inplace = False  # type: ignore[assignment]
    return layer


def is_layer(module: nn.Module) -> bool:
    """Return whether this is a known layer; a subclass with its own `forward` is traced instead."""
    if isinstance(module, CELLWISE):
        return True
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in WINDOWED)


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))

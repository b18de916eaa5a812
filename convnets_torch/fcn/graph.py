"""The layers of a traced network as receptive fields: strides, windows and what each layer reads.

`torch.fx` follows the module once; what it finds are layers that read a window of cells, layers and functions that
treat each cell by itself, and sums and concatenations of branches. Whoever knows these can run the same layers in
strips (`streaming`), at another stride, and say which pixels a cell sees (`grids`).
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
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.proxy import TraceError
from torch.nn import functional as F

from convnets_torch.fcn.sliding import ELEMENTWISE, slide
from convnets_torch.networks.network import NO_HEAD, Network, as_network
from convnets_torch.networks.packed import PackedConv2d
from convnets_torch.networks.tracing import LocalTracer


class Field(NamedTuple):
    """The pixels that cells see along one axis: cell i sees start + i * stride up to that plus `size`, excluded.

    They may lie outside of the picture, where padding stands for them.
    """

    start: int
    size: int
    stride: int


@dataclass(frozen=True)
class Grid:
    """The cells of a network's map at one stride.

    Attributes:
        steps: from images to logits, the last one being the head, or to the feature map alone.
        vertical, horizontal: what the cells see.
        dilation: distance in cells of the feature map between the cells that the head reads.
    """

    steps: tuple[Step, ...]
    vertical: Field
    horizontal: Field
    dilation: int

    @property
    def stride(self) -> int:
        """Pixels between neighbouring cells."""
        return self.vertical.stride

    def shape(self, height: int, width: int) -> Pair:
        """(rows, columns) of the map of images of so many pixels; 0 where they are too small."""
        return (count(self.steps, height, 0), count(self.steps, width, 1))

    def seen(self, side: int, axis: int) -> tuple[Pair, ...]:
        """For each row of cells (axis 0) or column (axis 1): the first pixel that it sees, and the one after the last.

        Exactly: what a pool leaves over at the end of a side is seen by nobody.

        Args:
            side: pixels of the images along the axis.
        """
        sides = _sides(self.steps, side, axis)
        begin, end = np.arange(sides[-1]), np.arange(sides[-1])  # the first and the last cell, of every step's map
        reached: list[tuple[NDArray[np.int64], NDArray[np.int64]] | None] = [None] * len(self.steps)
        reached[-1] = (begin, end)
        for number in reversed(range(1, len(self.steps))):
            step, cells = self.steps[number], reached[number]
            if cells is None:
                continue
            window = step.window
            before = window.padding[2 * axis]
            for source in step.inputs:
                first = cells[0] * window.stride[axis] - before
                last = cells[1] * window.stride[axis] - before + window.reach(axis) - 1
                first, last = (np.clip(each, 0, sides[source] - 1) for each in (first, last))
                known = reached[source]
                reached[source] = (first, last) if known is None else (
                    np.minimum(known[0], first), np.maximum(known[1], last)
                )  # fmt: skip
        pixels = reached[0]
        assert pixels is not None
        return tuple(zip(pixels[0].tolist(), (pixels[1] + 1).tolist(), strict=True))


def grid_of(network: Network, cell_stride: int | None = None) -> Grid:
    """The cells of a network's map, at its own stride or at a smaller one.

    For a smaller one the last strides are removed, of convolutions and pools alike, and what follows is dilated, so
    that a layer reads the same cells as before: on every (stride / cell_stride)-th row and column the map is the same.

    Args:
        network: with a head.
        cell_stride: pixels between neighbouring cells; one of `cell_strides(network)`, None for the network's own.

    Raises:
        ValueError: the network has no head, cannot give this stride, or holds a layer that is not known.

    Source: Fully Convolutional Networks for Semantic Segmentation, arXiv:1411.4038, section 3.2 (the a trous trick).

    >>> from convnets_torch.networks import vgg16
    >>> narrow = vgg16(classes=10, widths=(2, 2, 4, 4, 4), hidden=(8, 8))
    >>> grid_of(narrow).vertical, grid_of(narrow, 8).vertical
    (Field(start=-90, size=404, stride=32), Field(start=-90, size=404, stride=8))
    """
    if network.head is None:
        raise ValueError(NO_HEAD)
    steps = steps_of(network.features)
    if cell_stride is not None and cell_stride != network.stride:
        known = cell_strides(network)
        if cell_stride not in known:
            raise ValueError(
                f"a cell stride of {cell_stride} pixels cannot be had from {type(network).__name__}; it gives"
                f" {', '.join(map(str, known))}"
            )
        steps = _densified(steps, cell_stride)
    own = fields(steps)[0]
    dilation = network.stride // own.stride
    head, window = network.head, network.window

    def sliding_head(cells):  # type: ignore[no-untyped-def]
        return slide(head, cells, window, dilation)

    last = Step("head", "head", (len(steps) - 1,), sliding_head, Window(window, (1, 1), (dilation, dilation)))
    steps = (*steps, last)
    vertical, horizontal = fields(steps)
    if vertical.stride != horizontal.stride:
        raise ValueError(
            f"the cells are {vertical.stride} pixels apart vertically and {horizontal.stride} horizontally"
        )
    return Grid(steps, vertical, horizontal, dilation)


def features_grid(network: Network) -> Grid:
    """The cells of a network's feature map, whether it has a head or not.

    >>> from convnets_torch.networks import vgg16
    >>> features_grid(vgg16(None, widths=(2, 2, 4, 4, 4))).vertical
    Field(start=-90, size=212, stride=32)
    """
    steps = steps_of(network.features)
    vertical, horizontal = fields(steps)
    return Grid(steps, vertical, horizontal, 1)


def cell_strides(network: Network) -> tuple[int, ...]:
    """The strides that a network's map can have, its own first, in pixels.

    >>> from convnets_torch.networks import AlexNet
    >>> cell_strides(AlexNet())
    (32, 16, 8, 4, 1)
    """
    features = as_network(network).features
    return tuple(sorted({field.stride for field, _ in all_fields(steps_of(features))}, reverse=True))


def fields(steps: Sequence[Step]) -> tuple[Field, Field]:
    """What a cell of the last step's map sees, vertically and horizontally."""
    return all_fields(steps)[-1]


def count(steps: Sequence[Step], side: int, axis: int) -> int:
    """Cells of the last step's map along a side of so many pixels."""
    return _sides(steps, side, axis)[-1]


def _sides(steps: Sequence[Step], side: int, axis: int) -> list[int]:
    """Cells of each step's map along a side of so many pixels."""
    sides: list[int] = []
    for step in steps:
        below = [sides[each] for each in step.inputs] or [side]
        sides.append(step.window.count(min(below), axis) if min(below) > 0 else 0)
    return sides


def all_fields(steps: Sequence[Step]) -> list[tuple[Field, Field]]:
    """What a cell of each step's map sees, vertically and horizontally."""
    found: list[tuple[Field, Field]] = []
    for step in steps:
        if step.kind == "images":
            found.append((Field(0, 1, 1), Field(0, 1, 1)))
            continue
        axes = []
        for axis in (0, 1):
            below = [found[each][axis] for each in step.inputs]
            if len({field.stride for field in below}) > 1:
                raise ValueError(f"{step.name} joins branches of different strides")
            start, stride = min(field.start for field in below), below[0].stride
            size = max(field.start + field.size for field in below) - start
            window = step.window
            axes.append(
                Field(
                    start - window.padding[2 * axis] * stride,
                    size + (window.reach(axis) - 1) * stride,
                    stride * window.stride[axis],
                )
            )
        found.append((axes[0], axes[1]))
    return found


def _densified(steps: Sequence[Step], cell_stride: int) -> tuple[Step, ...]:
    """The same steps with strides only up to `cell_stride`, and dilated from there on."""
    dense: list[Step] = []
    rates: list[Pair] = []  # how many times denser than before each step's map is
    strides: list[Pair] = []  # pixels between its cells
    for step in steps:
        below = step.inputs[0] if step.inputs else None
        rate, apart = ((1, 1), (1, 1)) if below is None else (rates[below], strides[below])
        window = step.window
        kept = [
            own if pixels * own <= cell_stride and times == 1 else 1
            for own, pixels, times in zip(window.stride, apart, rate, strict=True)
        ]
        top, bottom, left, right = window.padding
        dense.append(
            replace(
                step,
                window=Window(
                    window.kernel,
                    (kept[0], kept[1]),
                    (window.dilation[0] * rate[0], window.dilation[1] * rate[1]),
                    (top * rate[0], bottom * rate[0], left * rate[1], right * rate[1]),
                ),
            )
        )
        rates.append((rate[0] * window.stride[0] // kept[0], rate[1] * window.stride[1] // kept[1]))
        strides.append((apart[0] * kept[0], apart[1] * kept[1]))
    return tuple(dense)


Pair = tuple[int, int]  # vertical, horizontal

# Layers that treat each cell by itself in eval mode, whatever its neighbours are.
CELLWISE = (
    *ELEMENTWISE, nn.BatchNorm2d, nn.LocalResponseNorm, nn.Dropout2d, nn.Hardtanh, nn.PReLU, nn.Mish, nn.LogSigmoid,
)  # fmt: skip
# Layers that read a window of cells; their padding must not depend on what is in the cells.
WINDOWED = (nn.Conv2d, PackedConv2d, nn.MaxPool2d, nn.AvgPool2d, nn.ZeroPad2d)

SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
CELLWISE_CALLS: dict[Any, Callable[..., Tensor]] = {
    F.relu: F.relu, torch.relu: F.relu, "relu": F.relu, "relu_": F.relu, F.relu6: F.relu6, F.silu: F.silu,
    F.gelu: F.gelu, F.elu: F.elu, F.leaky_relu: F.leaky_relu, F.hardswish: F.hardswish,
    torch.sigmoid: torch.sigmoid, "sigmoid": torch.sigmoid, torch.tanh: torch.tanh, "tanh": torch.tanh,
}  # fmt: skip
POOL_CALLS: dict[Any, Callable[..., nn.Module]] = {F.max_pool2d: nn.MaxPool2d, F.avg_pool2d: nn.AvgPool2d}

Kind = Literal["images", "conv", "max", "average", "pad", "cells", "sum", "cat", "head"]


@dataclass(frozen=True)
class Window:
    """What a layer reads of the map below it, for each of its cells.

    Attributes:
        kernel: (height, width) in cells.
        stride: (vertical, horizontal) cells from one window to the next.
        dilation: (vertical, horizontal) distance of the cells that one window reads.
        padding: (top, bottom, left, right) cells around the map.
    """

    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)

    def reach(self, axis: int) -> int:
        """Cells from the first to the last that one window reads, along axis 0 (vertical) or 1."""
        return (self.kernel[axis] - 1) * self.dilation[axis] + 1

    def count(self, side: int, axis: int) -> int:
        """Windows along a side of so many cells."""
        around = self.padding[2 * axis] + self.padding[2 * axis + 1]
        return max(0, (side + around - self.reach(axis)) // self.stride[axis] + 1)


@dataclass(frozen=True, eq=False)
class Step:
    """One operation on maps.

    Attributes:
        name: of the layer, as `features.named_modules()` has it, or of the function.
        kind: what it is.
        inputs: numbers of the steps whose maps it reads.
        layer: the module, whose parameters are used as they are at the time; or the function.
        window: what it reads; kernel and stride 1 where each cell is treated by itself.
        blocks: names of the modules in which it is called, the outermost first.
    """

    name: str
    kind: Kind
    inputs: tuple[int, ...]
    layer: Callable[..., Tensor] | None = None
    window: Window = Window()
    blocks: tuple[str, ...] = ()


class Layers(LocalTracer):
    """Follows modules down to the layers that `steps_of` knows."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return is_layer(module) or super().is_leaf_module(module, name)


_seen: weakref.WeakKeyDictionary[nn.Module, tuple[str, tuple[int, ...], tuple[Step, ...]]] = weakref.WeakKeyDictionary()


def steps_of(features: nn.Module) -> tuple[Step, ...]:
    """The steps of a convolutional part in their order; the first one is the images, the last gives the map.

    Args:
        features: a module from images (N, 3, H, W) to one map (N, C, h, w).

    Raises:
        ValueError: a layer or function in it is not known, or depends on the size of the map (global or adaptive
            pooling), so that nothing can be said about which pixels a cell sees.

    >>> [step.name for step in steps_of(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()))]
    ['images', '0', '1']
    """
    described, modules = repr(features), tuple(map(id, features.modules()))
    known = _seen.get(features)
    if known is None or known[:2] != (described, modules):
        _seen[features] = known = (described, modules, _trace(features))
    return known[2]


def _trace(features: nn.Module) -> tuple[Step, ...]:
    if is_layer(features):
        features = nn.Sequential(features)
    try:
        graph: Graph = Layers().trace(features)
    except (TraceError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{type(features).__name__} cannot be followed layer by layer ({reason}); wanted are plain modules"
            " without branches that depend on their input"
        ) from None
    traced = GraphModule(features, graph, type(features).__name__)
    steps: list[Step] = []
    numbers: dict[Node, int] = {}
    for node in graph.nodes:
        if node.op == "output":
            result = node.args[0]
            if not isinstance(result, Node):
                raise ValueError(f"{type(features).__name__} gives several maps; one is wanted")
            if numbers[result] != len(steps) - 1:
                raise ValueError(f"{type(features).__name__} gives a map that is not its last layer's")
            break
        numbers[node] = len(steps)
        # The second call of a module is in the stack as "name@1".
        blocks = tuple(name.split("@")[0] for name in node.meta.get("nn_module_stack", ()) if name)
        steps.append(replace(step_of(node, traced, numbers), blocks=blocks))
    return tuple(steps)


def step_of(node: Node, traced: GraphModule, numbers: dict[Node, int]) -> Step:
    """The step of one node of a graph; ValueError where it is not known."""
    inputs = tuple(numbers[each] for each in node.all_input_nodes)
    if node.op == "placeholder":
        if numbers[node]:
            raise ValueError("the features take several inputs; images alone are wanted")
        return Step("images", "images", ())
    if node.op == "call_module":
        return layer_step(traced.get_submodule(str(node.target)), str(node.target), inputs)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    if node.op in ("call_function", "call_method"):
        maps = [each for each in node.args if isinstance(each, Node)]
        if node.target in SUMS and len(maps) == len(node.args) == 2 and not node.kwargs:
            return Step(name, "sum", tuple(numbers[each] for each in maps))
        if node.target in (torch.cat, torch.concat) and (node.kwargs.get("dim", (*node.args[1:], 0)[0])) == 1:
            joined: Any = node.args[0] if node.args else node.kwargs["tensors"]
            return Step(name, "cat", tuple(numbers[each] for each in joined))
        if node.target in CELLWISE_CALLS and maps == [node.args[0]]:
            return Step(name, "cells", inputs, _call(node))
        if (pool := pool_of(node)) is not None:
            return layer_step(pool, name, inputs)
    raise ValueError(f"the features call {name}, which is not known to keep to a window of cells")


def _call(node: Node) -> Callable[[Tensor], Tensor]:
    """The function of a node with the arguments it is called with, never in place: another step may need its input."""
    function, rest = CELLWISE_CALLS[node.target], node.args[1:]
    named = {name: False if name == "inplace" else value for name, value in node.kwargs.items()}
    return lambda cells: function(cells, *rest, **named)


def pool_of(node: Node) -> nn.Module | None:
    """The layer that a call of `max_pool2d` or `avg_pool2d` stands for; None for another call.

    A pool whose numbers are computed from the map has none.
    """
    if len(node.all_input_nodes) != 1 or node.kwargs.get("return_indices"):
        return None
    kind = POOL_CALLS.get(node.target)
    if kind is None:
        return None
    named = {name: value for name, value in node.kwargs.items() if name not in ("input", "return_indices")}
    return kind(*node.args[1:], **named)


def layer_step(layer: nn.Module, name: str, inputs: tuple[int, ...]) -> Step:
    """The step of one layer.

    Raises:
        ValueError: it is not known, or pads in a way that depends on the map.
    """
    if isinstance(layer, CELLWISE):
        return Step(name, "cells", inputs, out_of_place(layer))
    if not is_layer(layer):
        raise ValueError(
            f"{name or 'the layer'} is {type(layer).__name__}, which is not known to keep to a window of cells"
        )
    if isinstance(layer, nn.ZeroPad2d):
        left, right, top, bottom = layer.padding
        if min(left, right, top, bottom) < 0:
            raise ValueError(f"{name} is {layer}, which cuts the map; only padding is known")
        return Step(name, "pad", inputs, None, Window(padding=(top, bottom, left, right)))
    kernel, stride, dilation = (_pair(getattr(layer, each, 1)) for each in ("kernel_size", "stride", "dilation"))
    if isinstance(layer, nn.Conv2d | PackedConv2d):
        if layer.padding_mode != "zeros":
            raise ValueError(f"{name} pads in the mode {layer.padding_mode!r}; only zeros are known")
        if layer.padding == "same":
            total = [(side - 1) * apart for side, apart in zip(kernel, dilation, strict=True)]
            padding = (total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2)
        else:
            down, across = (0, 0) if layer.padding == "valid" else _pair(layer.padding)
            padding = (down, down, across, across)
        return Step(name, "conv", inputs, layer, Window(kernel, stride, dilation, padding))
    if layer.ceil_mode:
        raise ValueError(f"{name} is {layer}: what a pool with ceil_mode adds depends on the map; take ceil_mode=False")
    down, across = _pair(layer.padding)
    window = Window(kernel, stride, dilation, (down, down, across, across))
    return Step(name, "max" if isinstance(layer, nn.MaxPool2d) else "average", inputs, layer, window)


def out_of_place(layer: nn.Module) -> nn.Module:
    """The layer, or where it would overwrite its input, which something else may need, one that does not."""
    if getattr(layer, "inplace", False):
        layer = copy.copy(layer)
        layer.inplace = False  # type: ignore[assignment]
    return layer


def is_layer(module: nn.Module) -> bool:
    """Whether this is a known layer itself; a subclass with a `forward` of its own is followed instead."""
    if isinstance(module, CELLWISE):
        return True
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in WINDOWED)


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))

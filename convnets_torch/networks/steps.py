"""A convolutional part as a list of steps, each of which says what it does to the grid of cells.

`torch.fx` follows the module once; what it finds are layers that read a window of cells, layers and functions that
treat each cell by itself, and sums and concatenations of branches. Whoever knows these can run the same layers in
strips (`streaming`), at another stride, and say which pixels a cell sees (`grids`).
"""

from __future__ import annotations

import copy
import operator
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.proxy import TraceError
from torch.nn import functional as F

from convnets_torch.networks.packed import PackedConv2d
from convnets_torch.networks.sliding import ELEMENTWISE
from convnets_torch.networks.tracing import LocalTracer

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

"""Where a classifier of somebody's own is cut: the convolutional part, and the head that reads its map.

`torch.fx` follows the module from images to logits. From the logits backwards its operations are a chain; the first of
them that reads the whole map (a flatten, a global pool, a convolution as large as the map) begins the head, and all
before it are the features. The layers of both are the module's own, so parameters are shared and nothing is copied.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter, Node, Proxy
from torch.fx.node import map_arg
from torch.fx.proxy import TraceError
from torch.nn import functional as F

from convnets_torch.networks.grids import count
from convnets_torch.networks.network import MOST_SIDE, Size
from convnets_torch.networks.sliding import ELEMENTWISE, is_dense
from convnets_torch.networks.steps import Layers, out_of_place, pool_of, step_of, steps_of

LAST = (nn.Softmax, nn.LogSoftmax, nn.Sigmoid)  # layers that make probabilities of logits; as the last one, left out
AVERAGE, MAXIMUM = (nn.AdaptiveAvgPool2d, nn.AvgPool2d), (nn.AdaptiveMaxPool2d, nn.MaxPool2d)
ADAPTIVE: dict[Any, type[nn.Module]] = {
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    torch._C._nn.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    F.adaptive_max_pool2d: nn.AdaptiveMaxPool2d,
}
OVER_THE_MAP: dict[Any, type[nn.Module]] = {
    torch.mean: nn.AdaptiveAvgPool2d, "mean": nn.AdaptiveAvgPool2d,
    torch.amax: nn.AdaptiveMaxPool2d, "amax": nn.AdaptiveMaxPool2d,
}  # fmt: skip
FLATTENING = (torch.flatten, "flatten", torch.reshape, "reshape", "view", torch.squeeze, "squeeze")
ACTIVATIONS: dict[Any, Callable[[], nn.Module]] = {
    F.relu: nn.ReLU, torch.relu: nn.ReLU, "relu": nn.ReLU, "relu_": nn.ReLU, torch.tanh: nn.Tanh, "tanh": nn.Tanh,
    torch.sigmoid: nn.Sigmoid, "sigmoid": nn.Sigmoid, F.sigmoid: nn.Sigmoid,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Cut:
    """A module in two parts.

    Attributes:
        features: images (N, 3, H, W) -> feature map (N, C, h, w).
        head: feature map of exactly `window` cells -> logits (N, classes).
        window: (height, width) in cells of the feature map.
        left_out: the last layer, where it makes probabilities of logits; else None.
    """

    features: GraphModule
    head: nn.Sequential
    window: Size
    left_out: nn.Module | None


def cut(module: nn.Module, images: Tensor) -> Cut:
    """Cut a classifier into features and head.

    Args:
        module: in eval mode, images (N, 3, H, W) -> (N, classes).
        images: two or more of the size that it classifies, on its device.

    Raises:
        ValueError: it cannot be followed, or does not end in a head that slides; the layer is named.
    """
    traced = _followed(module, images)
    layers = {str(node.target): traced.get_submodule(str(node.target)) for node in _called(traced)}
    shapes = _shapes(traced, images)
    [output] = (node.args[0] for node in traced.graph.nodes if node.op == "output")
    if not isinstance(output, Node) or len(shapes.get(output, ())) != 2:
        raise ValueError("it does not give logits (N, classes); a classifier of single pictures is wanted")
    chain = _chain(output, shapes)
    names = _Names()
    head, window, left_out = nn.Sequential(), None, None
    for place, node in enumerate(chain):
        layer, shape = _layer_of(node, layers, shapes), shapes[_below(node, shapes)]
        if window is None:
            begins = _beginning(layer, shape)
            if begins is not None:
                cells = _below(node, shapes)
                window = (shape[2], shape[3])
                features = _until(cells, traced, layers)
                for part in begins:
                    head.add_module(names.of(node, part), part)
            elif isinstance(layer, AVERAGE[:1] + MAXIMUM[:1]):
                if _sides(layer) != (shape[2], shape[3]):
                    raise ValueError(_sizes_for(node, layer, shape, _until(_below(node, shapes), traced, layers)))
                # as many cells as there are: every one is its own mean
                node.replace_all_uses_with(_below(node, shapes))
        elif place == len(chain) - 1 and isinstance(layer, LAST):
            left_out = layer
        elif not _does_nothing(layer, shape, head):
            if not isinstance(layer, (*ELEMENTWISE, nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.Flatten)):
                raise ValueError(
                    f"{_title(node)} is {type(layer).__name__ if layer else 'a function'} in the head, which cannot"
                    " slide; known are Linear, BatchNorm1d, Dropout and activations"
                )
            head.add_module(names.of(node, layer), out_of_place(layer))
    _check_known(_until(output, traced, layers) if window is None else features)
    if window is None:
        raise ValueError("no layer reads the whole map: neither a flatten nor a global pool")
    return Cut(features, head, window, left_out)


class _Alone(nn.Module):
    """The module with images as its only input, whatever else it may take."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Any:
        return self.module(images)


class _Whole(Layers):
    """Follows a classifier without calling its hooks; questions about shapes are answered as they are at one size."""

    def __init__(self, module: nn.Module, images: Tensor) -> None:
        super().__init__()
        self._module, self._images = module, images

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        dense = (nn.Linear, nn.BatchNorm1d, nn.Flatten)
        kinds = [kind for kind in dense if isinstance(module, kind)]
        return any(type(module).forward is kind.forward for kind in kinds) or super().is_leaf_module(module, name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return super().call_module(m, m.forward, args, kwargs)

    def to_bool(self, obj: Proxy) -> bool:
        if not _about_shapes(obj.node):
            return super().to_bool(obj)
        with torch.no_grad():
            return bool(GraphModule(self._module, _graph_until(obj.node))(self._images))


def _about_shapes(node: Node) -> bool:
    if node.op == "call_method" and node.target in ("size", "dim"):
        return True
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim")
    return bool(node.all_input_nodes) and all(map(_about_shapes, node.all_input_nodes))


def _followed(module: nn.Module, images: Tensor) -> GraphModule:
    """The module as one graph of layers, none of which overwrites its input."""
    alone = _Alone(module)
    try:
        graph = _Whole(alone, images).trace(alone)
    except (TraceError, TypeError, NotImplementedError, AttributeError, RuntimeError, ValueError, LookupError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"it cannot be followed layer by layer ({reason}); wanted are plain modules without branches that depend"
            " on their input"
        ) from None
    layers: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            layer = alone.get_submodule(str(node.target))
            node.target = str(node.target).removeprefix("module.")
            layers[node.target] = out_of_place(layer)
        elif node.op == "get_attr":
            raise ValueError(
                f"it uses {str(node.target).removeprefix('module.')} outside of a layer, which is not known"
            )
        elif node.target == "relu_":
            node.target = "relu"
        elif node.kwargs.get("inplace"):
            node.update_kwarg("inplace", False)
    return GraphModule(layers, graph, type(module).__name__)


def _called(traced: GraphModule) -> list[Node]:
    return [node for node in traced.graph.nodes if node.op == "call_module"]


def _shapes(traced: GraphModule, images: Tensor) -> dict[Node, torch.Size]:
    """Of every map in the graph; numbers that are computed from shapes become the numbers that they are."""
    recorder = _Recorder(traced)
    with torch.no_grad():
        recorder.run(images)
    for node in traced.graph.nodes:
        node.args = map_arg(node.args, lambda each: recorder.numbers.get(each, each))
        node.kwargs = map_arg(node.kwargs, lambda each: recorder.numbers.get(each, each))
    return recorder.shapes


class _Recorder(Interpreter):
    def __init__(self, traced: GraphModule) -> None:
        super().__init__(traced)
        self.shapes: dict[Node, torch.Size] = {}
        self.numbers: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n] = value.shape
        elif isinstance(value, int | float) or (isinstance(value, tuple) and all(type(each) is int for each in value)):
            self.numbers[n] = tuple(value) if isinstance(value, tuple) else value
        return value


def _below(node: Node, shapes: dict[Node, torch.Size]) -> Node:
    """The one map that a node of the chain reads."""
    [below] = (each for each in node.all_input_nodes if each in shapes)
    return below


def _chain(output: Node, shapes: dict[Node, torch.Size]) -> list[Node]:
    """The operations before the output, as far back as each reads one map alone; in the order in which they run."""
    chain: list[Node] = []
    node = output
    while node.op != "placeholder":
        below = [each for each in node.all_input_nodes if each in shapes]
        if len(below) != 1:
            break
        chain.append(node)
        [node] = below
    return chain[::-1]


def _layer_of(node: Node, layers: dict[str, Any], shapes: dict[Node, torch.Size]) -> nn.Module | None:
    """The layer that a node is, or that its function stands for; None where there is none."""
    named: dict[str, Any] = dict(node.kwargs)
    second: Any = (*node.args[1:2], named.get("dim", named.get("output_size")))[0]
    if node.op == "call_module":
        return layers[str(node.target)]
    if node.target in FLATTENING:
        below, shape = shapes[_below(node, shapes)], shapes[node]
        return nn.Flatten() if len(shape) == 2 and shape[0] == below[0] else None
    if node.target in ACTIVATIONS:
        return ACTIVATIONS[node.target]()
    if node.target in ADAPTIVE:
        return ADAPTIVE[node.target](second)
    if node.target in OVER_THE_MAP:
        whole = isinstance(second, list | tuple) and sorted(axis % 4 for axis in second) == [2, 3]
        return OVER_THE_MAP[node.target](1) if whole else None
    if node.target is F.dropout and not named.get("training"):
        return nn.Dropout(named["p"]).eval()
    if node.target in (F.softmax, F.log_softmax, torch.softmax, torch.log_softmax, "softmax", "log_softmax"):
        kind = nn.LogSoftmax if "log" in getattr(node.target, "__name__", str(node.target)) else nn.Softmax
        return kind(dim=second)
    return pool_of(node)


def _beginning(layer: nn.Module | None, shape: torch.Size) -> tuple[nn.Module, ...] | None:
    """The first layers of a head, if this one reads the whole map of cells (N, C, h, w)."""
    if len(shape) != 4:
        return None
    cells = (shape[2], shape[3])
    if isinstance(layer, nn.Flatten):
        return (nn.Flatten(),)
    if isinstance(layer, nn.Conv2d) and layer.kernel_size == cells != (1, 1) and is_dense(layer):
        return (layer,)
    if isinstance(layer, nn.AdaptiveMaxPool2d) and _sides(layer) == (1, 1):
        return (nn.MaxPool2d(cells, stride=1), nn.Flatten())
    one = isinstance(layer, nn.AdaptiveAvgPool2d) and _sides(layer) == (1, 1)
    if isinstance(layer, nn.AvgPool2d):
        one = (
            _pair(layer.kernel_size) == cells != (1, 1)
            and _pair(layer.padding) == (0, 0)
            and not layer.divisor_override
        )
    return (nn.AvgPool2d(cells, stride=1), nn.Flatten()) if one else None


def _does_nothing(layer: nn.Module | None, shape: torch.Size, head: nn.Sequential) -> bool:
    """Whether a layer of the head changes nothing: a second flatten, a pool of single cells."""
    if isinstance(layer, nn.Flatten):
        return any(isinstance(each, nn.Flatten) for each in head)
    if isinstance(layer, nn.Identity):
        return True
    return isinstance(layer, AVERAGE + MAXIMUM) and len(shape) == 4 and tuple(shape[2:]) == (1, 1)


def _sides(layer: nn.Module) -> tuple[int | None, int | None]:
    return _pair(layer.output_size)


def _pair(value: Any) -> tuple[Any, Any]:
    return (value, value) if isinstance(value, int) or value is None else (value[0], value[1])


def _sizes_for(node: Node, layer: nn.Module, shape: torch.Size, features: nn.Module) -> str:
    """A sentence on an adaptive pool that does not leave the map as it is, with the sizes for which it would."""
    steps, ranges = steps_of(features), []
    for axis, cells in enumerate(_sides(layer)):
        least, most = (
            bisect_left(range(MOST_SIDE), wanted, key=lambda side: count(steps, side, axis))
            for wanted in (cells or 1, (cells or MOST_SIDE) + 1)
        )
        ranges.append(f"{least} to {most - 1}")
    wanted = " x ".join(map(str, _sides(layer)))
    return (
        f"{_title(node)} makes {wanted} cells of {shape[2]} x {shape[3]}, which mixes cells unevenly; give a size of"
        f" {ranges[0]} pixels in height and {ranges[1]} in width"
    )


def _check_known(features: GraphModule) -> None:
    """ValueError that names the first operation that does not keep to a window of cells, and what it belongs to."""
    numbers: dict[Node, int] = {}
    for node in features.graph.nodes:
        if node.op == "output":
            break
        numbers[node] = len(numbers)
        try:
            step_of(node, features, numbers)
        except ValueError as error:
            around = [
                kind for path, kind in node.meta.get("nn_module_stack", {}).values() if path != f"module.{_title(node)}"
            ]
            raise ValueError(f"{error} (in {around[-1].__name__})" if around else str(error)) from None


def _title(node: Node) -> str:
    return str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", node.name)


class _Names:
    """Names of the head's layers: the module's own with _ for a dot, each once."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def of(self, node: Node, layer: nn.Module) -> str:
        name = str(node.target).replace(".", "_") if node.op == "call_module" else node.name
        if name in self._taken:
            name = f"{name}_{type(layer).__name__.lower()}"
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def _graph_until(last: Node) -> Graph:
    """A graph of what a node is computed from."""
    wanted, left = set(), [last]
    while left:
        node = left.pop()
        if node not in wanted:
            wanted.add(node)
            left.extend(node.all_input_nodes)
    graph = Graph()
    copies: dict[Node, Node] = {}
    for node in last.graph.nodes:
        if node in wanted:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[last])
    return graph


def _until(last: Node, traced: GraphModule, layers: dict[str, Any]) -> GraphModule:
    """The module from images to a node's map."""
    graph = _graph_until(last)
    used = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    return GraphModule({name: layers[name] for name in used}, graph, type(traced).__name__)

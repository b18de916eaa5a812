"""Make any classifier fully convolutional: find its dense head, cut it off, and slide it over larger pictures.

`torch.fx` traces the module from images to logits. The operations are followed backwards from the logits; the first
one that reads the whole map (a flatten, a global pool, a convolution as large as the map) starts the head, and
everything before it is the features. Both consist of the module's own layers: parameters are shared, not copied.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter, Node, Proxy
from torch.fx.node import map_arg
from torch.fx.proxy import TraceError
from torch.nn import functional as F

from convnets_torch.card import Activation, Card
from convnets_torch.fcn.graph import Layers, count, map_graph, op_of, out_of_place, pool_of, receptive_fields, trace_ops
from convnets_torch.fcn.score_map import gather, score_map
from convnets_torch.fcn.sliding import ELEMENTWISE, is_dense
from convnets_torch.images.preprocessing import Preprocessing, general
from convnets_torch.networks.network import MOST_SIDE, Network, Size, check_size
from convnets_torch.networks.tracing import unwrapped

LAST = (nn.Softmax, nn.LogSoftmax, nn.Sigmoid)  # turn logits into probabilities; left out if last
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


def cut(module: nn.Module, images: Tensor) -> tuple[GraphModule, nn.Sequential, Size, nn.Module | None]:
    """Split a classifier into its features, its head, the head's window, and a last layer that gives probabilities.

    Args:
        module: in eval mode, images (N, 3, H, W) -> (N, classes).
        images: two or more images of the size that it classifies, on its device.

    Raises:
        ValueError: it cannot be traced, or does not end in a head that can slide; the message names the layer.
    """
    traced = _traced(module, images)
    layers = {
        str(node.target): traced.get_submodule(str(node.target))
        for node in traced.graph.nodes
        if node.op == "call_module"
    }
    shapes = _shapes(traced, images)
    [output] = (node.args[0] for node in traced.graph.nodes if node.op == "output")
    if not isinstance(output, Node) or len(shapes.get(output, ())) != 2:
        raise ValueError("it does not return logits (N, classes); give a classifier of single pictures")
    chain = _chain(output, shapes)
    head, window, left_out = nn.Sequential(), None, None
    for place, node in enumerate(chain):
        layer, shape = _layer_of(node, layers, shapes), shapes[_input_map(node, shapes)]
        if window is None:
            begins = _start_of_head(layer, shape)
            if begins is not None:
                cells = _input_map(node, shapes)
                window = (shape[2], shape[3])
                features = _module_until(cells, traced, layers)
                for part in begins:
                    _add(head, node, part)
            elif isinstance(layer, AVERAGE[:1] + MAXIMUM[:1]):
                below = _input_map(node, shapes)
                if _sides(layer) != (shape[2], shape[3]):
                    raise ValueError(_sizes_for(node, layer, shape, _module_until(below, traced, layers)))
                node.replace_all_uses_with(below)  # same size, so the pool is the identity
        elif place == len(chain) - 1 and isinstance(layer, LAST):
            left_out = layer
        elif not _is_noop(layer, shape, head):
            if not isinstance(layer, (*ELEMENTWISE, nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.Flatten)):
                raise ValueError(
                    f"{_title(node)} is {type(layer).__name__ if layer else 'a function'} in the head, which cannot"
                    " slide; supported are Linear, BatchNorm1d, Dropout and activations"
                )
            _add(head, node, out_of_place(layer))
    _check_known(_module_until(output, traced, layers) if window is None else features)
    if window is None:
        raise ValueError("no layer reads the whole map: neither a flatten nor a global pool")
    return features, head, window, left_out


class _ImagesOnly(nn.Module):
    """A module whose only input is images."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Any:
        return self.module(images)


class _ClassifierTracer(Layers):
    """Trace a classifier without calling its hooks; conditions on shapes are evaluated for one image size."""

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
        if not _depends_on_shapes(obj.node):
            return super().to_bool(obj)
        with torch.no_grad():
            return bool(GraphModule(self._module, _graph_until(obj.node))(self._images))


def _depends_on_shapes(node: Node) -> bool:
    if node.op == "call_method" and node.target in ("size", "dim"):
        return True
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim")
    return bool(node.all_input_nodes) and all(map(_depends_on_shapes, node.all_input_nodes))


def _traced(module: nn.Module, images: Tensor) -> GraphModule:
    """Trace a module to one graph of layers, with in-place operations replaced."""
    alone = _ImagesOnly(module)
    try:
        graph = _ClassifierTracer(alone, images).trace(alone)
    except (TraceError, TypeError, NotImplementedError, AttributeError, RuntimeError, ValueError, LookupError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"it cannot be traced layer by layer ({reason}); give plain modules without branches that depend on their"
            " input"
        ) from None
    layers: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            layer = alone.get_submodule(str(node.target))
            node.target = str(node.target).removeprefix("module.")
            layers[node.target] = out_of_place(layer)
        elif node.op == "get_attr":
            raise ValueError(
                f"it uses {str(node.target).removeprefix('module.')} outside of a layer, which is not supported"
            )
        elif node.target == "relu_":
            node.target = "relu"
        elif node.kwargs.get("inplace"):
            node.update_kwarg("inplace", False)
    return GraphModule(layers, graph, type(module).__name__)


def _shapes(traced: GraphModule, images: Tensor) -> dict[Node, torch.Size]:
    """Return the shape of every map in the graph, and replace numbers computed from shapes by constants."""
    recorder = _ShapeRecorder(traced)
    with torch.no_grad():
        recorder.run(images)
    for node in traced.graph.nodes:
        node.args = map_arg(node.args, lambda each: recorder.numbers.get(each, each))
        node.kwargs = map_arg(node.kwargs, lambda each: recorder.numbers.get(each, each))
    return recorder.shapes


class _ShapeRecorder(Interpreter):
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


def _input_map(node: Node, shapes: dict[Node, torch.Size]) -> Node:
    """Return the single map that a node of the chain reads."""
    [below] = (each for each in node.all_input_nodes if each in shapes)
    return below


def _chain(output: Node, shapes: dict[Node, torch.Size]) -> list[Node]:
    """Return the operations before the output, in execution order, as far back as each reads a single map."""
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
    """Return the layer of a node, or the layer equivalent to its function; None if there is none."""
    named: dict[str, Any] = dict(node.kwargs)
    second: Any = (*node.args[1:2], named.get("dim", named.get("output_size")))[0]
    if node.op == "call_module":
        return layers[str(node.target)]
    if node.target in FLATTENING:
        below, shape = shapes[_input_map(node, shapes)], shapes[node]
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


def _start_of_head(layer: nn.Module | None, shape: torch.Size) -> tuple[nn.Module, ...] | None:
    """Return the first layers of the head if this layer reads the whole map (N, C, h, w), else None."""
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
        plain = _pair(layer.padding) == (0, 0) and not layer.divisor_override
        one = _pair(layer.kernel_size) == cells != (1, 1) and plain
    return (nn.AvgPool2d(cells, stride=1), nn.Flatten()) if one else None


def _is_noop(layer: nn.Module | None, shape: torch.Size, head: nn.Sequential) -> bool:
    """Return whether a layer of the head is a no-op: a second flatten, or a pool of single cells."""
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
    """Describe an adaptive pool that changes the map, with the image sizes for which it would not."""
    ops, ranges = trace_ops(features), []
    for axis, cells in enumerate(_sides(layer)):
        least, most = (
            bisect_left(range(MOST_SIDE), wanted, key=lambda side: count(ops, side, axis))
            for wanted in (cells or 1, (cells or MOST_SIDE) + 1)
        )
        ranges.append(f"{least} to {most - 1}")
    wanted = " x ".join(map(str, _sides(layer)))
    return (
        f"{_title(node)} makes {wanted} cells of {shape[2]} x {shape[3]}, which mixes cells unevenly; give a size of"
        f" {ranges[0]} pixels in height and {ranges[1]} in width"
    )


def _check_known(features: GraphModule) -> None:
    """Raise ValueError for the first operation that does not read a fixed window of cells, naming it and its module."""
    numbers: dict[Node, int] = {}
    for node in features.graph.nodes:
        if node.op == "output":
            break
        numbers[node] = len(numbers)
        try:
            op_of(node, features, numbers)
        except ValueError as error:
            stack = node.meta.get("nn_module_stack", {}).values()
            around = [kind for path, kind in stack if path != f"module.{_title(node)}"]
            raise ValueError(f"{error} (in {around[-1].__name__})" if around else str(error)) from None


def _title(node: Node) -> str:
    return str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", node.name)


def _add(head: nn.Sequential, node: Node, layer: nn.Module) -> None:
    """Add a layer to the head under a unique name: the module's own with "_" for "."."""
    name = str(node.target).replace(".", "_") if node.op == "call_module" else node.name
    if name in head._modules:
        name = f"{name}_{type(layer).__name__.lower()}"
    while name in head._modules:
        name += "_"
    head.add_module(name, layer)


def _graph_until(last: Node) -> Graph:
    """Return the graph of everything that a node is computed from."""
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


def _module_until(last: Node, traced: GraphModule, layers: dict[str, Any]) -> GraphModule:
    """Return the module from images to the map of a node."""
    graph = _graph_until(last)
    used = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    return GraphModule({name: layers[name] for name in used}, graph, type(traced).__name__)


# Relative to the largest value, for sums in another order. Half precision has 8 or 11 bits; on GPUs, convolutions of
# float32 have 11 bits too, unless the user asked for more.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 1e-1}
ON_GPU = 1e-2


class Densified(Network):
    """The features and the head of another module, whose layers it shares.

    Attributes:
        classes: number of classes.
        left_out: the module's last layer, if it turns logits into probabilities and is therefore not in the head.
    """

    classes: int
    head: nn.Sequential
    left_out: nn.Module | None

    def __init__(self, module: nn.Module, size: Size) -> None:
        """See `convnets_torch.densify`; the network has no card."""
        super().__init__()
        try:
            self.size = check_size(size)
            first = next((layer for layer in module.modules() if isinstance(layer, nn.Conv2d)), None)
            self.channels = first.in_channels if first is not None and first.in_channels in (1, 4) else 3
            images = _random_images(module, self.size, self.channels)
            wanted = _logits(module, images)
            self.features, self.head, self.window, self.left_out = cut(module, images)
            down, across = receptive_fields(trace_ops(self.features))[-1]
            if down.stride != across.stride:
                raise ValueError(f"cells are {down.stride} pixels apart vertically and {across.stride} horizontally")
        except ValueError as error:
            raise ValueError(f"{type(module).__name__} cannot be made dense: {error}") from None
        self.stride, self.classes = down.stride, wanted.shape[1]
        self.eval()
        self._check_outputs(wanted, images)

    def _check_outputs(self, wanted: Tensor, images: Tensor) -> None:
        """Raise ValueError unless outputs equal the module's, and on larger images the head's on every crop."""
        larger = _noise((self.size[0] + self.stride, self.size[1] + self.stride), images, self.channels)[:1]
        with torch.no_grad():
            found = self(images)
            _compare(found if self.left_out is None else self.left_out(found), wanted, "the module's outputs")
            cells = self.features(larger)
            crops = [
                self.head(cells[:, :, row : row + self.window[0], column : column + self.window[1]])
                for row, column in product(*(range(cells.shape[2 + axis] - self.window[axis] + 1) for axis in (0, 1)))
            ]
            found = score_map(self, larger)
            _compare(found.flatten(2), torch.stack(crops, dim=2), "its head on crops of the feature map")
            graph, height = map_graph(self), larger.shape[2]
            blocks = (larger[:, :, top : top + height // 2] for top in range(0, height, height // 2))
            _compare(
                gather(graph, blocks, *larger.shape[2:]), found, "its outputs in one pass, when run in blocks of rows,"
            )


def _random_images(module: nn.Module, size: Size, channels: int) -> Tensor:
    """Check that the module can run, and return random images for it."""
    if lazy := [name for name, part in module.named_modules() if getattr(part, "has_uninitialized_params", bool)()]:
        raise ValueError(f"{lazy[0]} has no parameters yet; run the module once on images of its size")
    parameters = [parameter for parameter in module.parameters() if parameter.dtype in TOLERANCES]
    if not parameters:
        raise ValueError("it has no parameters in floating point")
    if training := [name or "the module" for name, part in module.named_modules() if part.training]:
        raise ValueError(
            f"{training[0]} is in training mode, where dropout and batch normalisation change outputs; call eval()"
        )
    return _noise(size, parameters[0], channels)


def _noise(size: Size, like: Tensor, channels: int) -> Tensor:
    """Return two random pictures on the device and in the dtype of `like`."""
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0)).to(like.device, like.dtype)


def _logits(module: nn.Module, images: Tensor) -> Tensor:
    shape = tuple(images.shape)
    try:
        with torch.no_grad():
            logits = module(images)
    except (RuntimeError, AssertionError, ValueError, TypeError, LookupError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"it does not take images {shape} ({reason}); give the size that it classifies") from None
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[0] != shape[0]:
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"it returns {given} for images {shape} instead of logits (N, classes)")
    if not torch.isfinite(logits).all():
        raise ValueError("its outputs for random images are not finite, so they cannot be compared")
    return logits


def _compare(found: Tensor, wanted: Tensor, of_what: str) -> None:
    tolerance = TOLERANCES[wanted.dtype]
    if wanted.is_cuda and wanted.dtype != torch.float64:
        tolerance = max(tolerance, ON_GPU)
    difference, largest = float((found - wanted).abs().max()), float(wanted.abs().max())
    if found.shape != wanted.shape or not difference <= tolerance * largest:
        raise ValueError(
            f"the dense network differs from {of_what} by {difference:.3g}, with values up to {largest:.3g}: an"
            " operation in the module was not recognised correctly"
        )


# The last layer of a module -> the card's equivalent activation.
LEFT_OUT: dict[type, Activation] = {nn.Softmax: "softmax", nn.LogSoftmax: "softmax", nn.Sigmoid: "sigmoid"}


def densify(
    module: nn.Module,
    size: int | tuple[int, int] = 224,
    *,
    preprocessing: str | Preprocessing | None = None,
    classes: str | Sequence[str] | None = None,
    activation: Activation = "softmax",
) -> Network:
    """Convert your own trained classifier to a network with `features`, `head` and `window`.

    It accepts modules that `torch.fx` can trace, made of convolutions, pools, batch normalisation, activations, sums
    and concatenations, with a head of dense layers after a flatten or a global pool: plain `nn.Sequential`, most
    modules with their own `forward`, torchvision's AlexNet, VGG, ResNet, ResNeXt, DenseNet and MobileNetV2, timm's VGG
    and ResNet. The outputs are compared on random images before the network is returned; the module's hooks see these
    images.

    The layers are shared with the module: training one trains the other, and `train()` on either switches both. The
    module itself is left unchanged. In-place activations stay in-place in the module, but not in the network.

    Args:
        module: images (N, 3, H, W) -> logits (N, classes), in eval mode; stays on its device. If its first convolution
            reads 1 or 4 channels, its images have these: grey, or RGBA.
        size: pixels of the images that it classifies, a side or (height, width).
        preprocessing: how pictures become its input: "torchvision", "unit" or another of `preprocessing.GENERAL`, or a
            `Preprocessing` of the same size. The network then has a card, so `classify` and `heatmap` take pictures.
        classes: "imagenet-1k", or a name per class; for the card.
        activation: turns the logits into probabilities: "softmax", "sigmoid" or "none". A last layer of the module that
            does this (Softmax, LogSoftmax, Sigmoid) is left out of the network, which returns logits.

    Returns:
        The network in eval mode, for `score_map` and everything else. `save` refuses it: save the module's state_dict.

    Raises:
        ValueError: the module is in training mode, contains a layer that does not read a fixed window of cells
            (squeeze-and-excitation, attention, pools with ceil_mode), or has a head that cannot slide, with the layer's
            name; its outputs differ from the network's; or it does not fit `size` or the card.

    >>> import torch
    >>> from convnets_torch import score_map
    >>> layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(8 * 8 * 8, 5)]
    >>> network = densify(nn.Sequential(*layers).eval(), 32)
    >>> score_map(network, torch.zeros(1, 3, 64, 96)).shape, network.stride, network.window
    (torch.Size([1, 5, 9, 17]), 4, (8, 8))
    """
    sides = size if isinstance(size, tuple) else (size, size)
    if classes is not None and preprocessing is None:
        raise ValueError("classes are given, but no preprocessing; the card needs both, so give both")
    module = unwrapped(module)
    network = Densified(module, sides)
    last = type(network.left_out)
    if activation != LEFT_OUT.get(last, activation):
        raise ValueError(
            f"{type(module).__name__} ends in {last.__name__}, but activation is {activation!r}; give"
            f" {LEFT_OUT[last]!r}"
        )
    if preprocessing is not None:
        rule = preprocessing
        if isinstance(rule, str):
            rule = general(rule, sides[0] if sides[0] == sides[1] else sides, network.channels)
        if rule.channel_count != network.channels:
            raise ValueError(
                f"the preprocessing makes images of {rule.channel_count} channels ({rule.channels}), but"
                f" {type(module).__name__} reads {network.channels}; give a preprocessing of as many"
            )
        if rule.shape != sides:
            raise ValueError(
                f"the preprocessing makes images of {rule.shape} pixels, but size is {sides}; give the same size"
            )
        names: Any = classes if classes is None or isinstance(classes, str) else tuple(classes)
        network.card = Card(type(module).__name__, {"classes": network.classes}, rule, names, activation)
    return network

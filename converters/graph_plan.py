"""Plan the conversion of a Keras model whose config describes its graph to a `GraphNetwork`: every layer as it is.

Tensors of four dimensions are maps (N, C, h, w) here, in whichever data format the model computes; all others keep
Keras's order. Shapes are computed on the meta device, with the layers that the network will have.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import nn

from converters.front import Front, front_of
from converters.layer_lists import misnamed_arrays
from converters.layouts import ORDERS
from converters.options import (
    Questions,
    check_data_format,
    check_size,
    released_preset,
    settle_activation,
    settle_backend,
)
from converters.paper import recognise
from converters.plan import Layout, Plan, Row, Step, Wishes, change
from converters.readers.keras_file import KerasArray, KerasFile, KerasLayer
from converters.readers.keras_graph import ALEXNETS, Graph, Node, Operand, config_errors, graph_of_config, label
from converters.readers.keras_words import (
    ACTIVATIONS,
    CODE,
    IDENTITIES,
    KERAS_EPSILON,
    activation_of,
    edges_of,
    layer_activation,
    number_of,
    pair_of,
)
from convnets_torch.networks.alexnet import LRN
from convnets_torch.networks.graph_network import FUSED, IMAGES, Entry, make_layer

Pair = tuple[int, int]
Shape = tuple[int, ...]

ACTIVATION_KINDS = {  # Keras's name -> ours, for activations without a number
    **{name: name for name in (
        "linear", "relu", "relu6", "selu", "silu", "sigmoid", "tanh", "softplus", "softsign", "exponential", "mish",
        "hard_silu", "hard_tanh", "tanh_shrink", "log_sigmoid",
    )},
    "swish": "silu", "hard_swish": "hard_silu",
}  # fmt: skip
FUNCTIONS = {  # operations that are activations -> Keras's name of the activation
    f"ops.{name}": word for name, word in (
        ("Relu", "relu"), ("Relu6", "relu6"), ("Sigmoid", "sigmoid"), ("Silu", "silu"), ("Tanh", "tanh"),
        ("HardSigmoid", "hard_sigmoid"), ("HardSilu", "hard_silu"), ("Elu", "elu"), ("Selu", "selu"), ("Gelu", "gelu"),
        ("Softplus", "softplus"), ("Softsign", "softsign"), ("Exp", "exponential"), ("LeakyRelu", "leaky_relu"),
        ("Softmax", "softmax"), ("Mish", "mish"),
    )
}  # fmt: skip
MERGES = {
    "Add": "add", "Subtract": "subtract", "Multiply": "multiply", "Average": "average", "Maximum": "maximum",
    "Minimum": "minimum", "ops.Maximum": "maximum", "ops.Minimum": "minimum",
}  # fmt: skip
ARITHMETIC = {"ops.Add": "add", "ops.Subtract": "subtract", "ops.Multiply": "multiply", "ops.TrueDivide": "divide",
              "ops.Divide": "divide"}  # fmt: skip
SAME_SHAPE = frozenset((*ACTIVATION_KINDS.values(), "batch_norm", "dropout"))  # layers that are not run for a shape
POOLS = {"MaxPooling2D": "max_pool", "AveragePooling2D": "average_pool"}
GLOBAL = {"GlobalMaxPooling2D": "global_max", "GlobalAveragePooling2D": "global_average"}
ON_MAPS = frozenset(  # layers that read maps only
    ("Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Conv2DTranspose", "ZeroPadding2D", "Cropping2D", "CenterCrop",
     "UpSampling2D", "SplitTensor", "CrossChannelNormalization", *POOLS, *GLOBAL)
)  # fmt: skip
ENDS = ("softmax", "sigmoid")  # activations of logits, which the card keeps
ASSUMED = (224, 224)  # pixels of a model of any size, until the user says it


@dataclass(eq=False)
class Layer:
    """A layer of the network being planned.

    Attributes:
        entry: for the network's graph.
        before: shape of its first input.
        after: shape of its output.
        arrays: parameter -> (array or None for a constant, its layout, constant).
        source: label of the Keras layer whose arrays it has, "" if none.
        linear: whether its output is that Keras layer's, before a fused activation.
        node: name of the Keras node that it was translated from.
    """

    entry: Entry
    before: Shape
    after: Shape
    arrays: dict[str, tuple[KerasArray | None, Layout, float]] = field(default_factory=dict)
    source: str = ""
    linear: bool = True
    node: str = ""

    @property
    def name(self) -> str:
        return self.entry[0]

    @property
    def kind(self) -> str:
        return self.entry[1]


def plan_graph(file: KerasFile, wishes: Wishes, questions: Questions | None = None) -> Plan:
    """Plan the conversion of a model by its config, whatever its layers are called.

    Raises:
        ValueError: the config has a layer that is not supported, with its name, class and place; arrays are missing,
            superfluous or of a wrong shape; or an option is required that neither the file nor the user gives.
    """
    check_data_format(file, wishes)
    for given, what in ((wishes.hidden_activation, "the hidden activations"), (wishes.pool1_padding, "all paddings")):
        if given is not None:
            raise ValueError(f"{file.path}: its config specifies {what}; leave out the option")
    graph = graph_of_config(file, cast(Any, wishes.data_format), output=wishes.output, until=wishes.until)
    questions = questions or Questions(file.path)
    backend, choices = settle_backend(file, wishes, questions)
    front = front_of(file, graph, wishes, questions)
    if front.size is not None and wishes.input_size not in (None, front.size):
        raise ValueError(
            f"{file.path} says that its input is {front.size[0]}x{front.size[1]} pixels; leave out the input size"
        )
    size = check_size(file, front.size or wishes.input_size)
    if size is None:
        answers = "the size to classify, --input-size HEIGHTxWIDTH"
        questions.ask("input_size", "its model takes pictures of any size", answers)
        size = ASSUMED
    try:
        layers = _Translator(file, graph, front, size, theano=backend == "theano").layers()
        parts = _split(layers)
    except ValueError:
        if "input_size" in questions.asked:
            questions.check()  # the error may be that of a size which nobody chose
        raise
    arguments, network = _with_map(parts, _model_name(file), size, front.channels)
    name = "graph"
    modules: Mapping[str, tuple[str, ...]] = {module: (module,) for module, _ in network.named_modules()}
    paper = recognise(network, parts.classes, arguments["graph"]["head"])
    if paper is None and parts.later:  # the last pooling of VGG16 reads the whole map of pictures of 32x32 pixels
        other = _split(layers, later=True)
        theirs, split = _with_map(other, _model_name(file), size, front.channels)
        if (paper := recognise(split, other.classes, theirs["graph"]["head"])) is not None:
            parts = other
    if paper is not None:
        name, network, arguments, modules = paper.name, paper.network, paper.arguments, paper.modules
    if name != "alexnet" and (code := [node.own_name for node in graph.nodes if node.kind in ALEXNETS]):
        raise ValueError(f"{file.path}: layer {code[0]} (Lambda) {UNKNOWN}")
    known = front.affine or wishes.preprocessing is not None
    released = None if known else released_preset(file, name, parts.classes, arguments)
    rule, chosen = front.preprocessing(size, name, released, questions)
    choices += chosen
    activation, chosen = settle_activation(file, parts.classes, parts.activation, wishes, questions)
    choices += [*chosen, *parts.notes]
    questions.check()
    planned = {
        f"{part}.{layer.name}": layer
        for part, members in (("features", parts.features), ("head", parts.head or ()))
        for layer in members
    }
    sources = {module: [planned[each] for each in theirs if each in planned] for module, theirs in modules.items()}
    steps = []
    for parameter, ours in network.state_dict().items():
        module, _, role = parameter.rpartition(".")
        steps.append(_step(parameter, tuple(ours.shape), sources[module], role))
    table = {
        module: tuple(layer.source for layer in found)
        for module, found in sources.items()
        if found and all(layer.source and layer.linear for layer in found)
    }
    return Plan(
        network=name, arguments=arguments, framework=file.framework, backend=backend, preprocessing=rule,
        steps=tuple(steps), activation=activation, data_format=graph.data_format, choices=tuple(choices),
        rescales=front.affine, skipped=front.skipped, table=table, final=parts.final, fused=parts.fused,
        output=wishes.output, until=wishes.until,
    )  # fmt: skip


def _last_map(features: Sequence[Layer]) -> str | None:
    """Return the last layer before a pooling or padding whose output is a map of several cells, and all that is read
    from then on."""
    places = {layer.name: number for number, layer in enumerate(features)}
    read = len(features)  # the first layer that a later one reads
    for number, layer in reversed([*enumerate(features)]):
        several = len(layer.after) == 4 and prod(layer.after[2:]) > 1
        if several and number <= read and layer.kind not in ("max_pool", "average_pool", "pad"):
            return layer.name
        read = min(read, *(places.get(source, -1) for source in layer.entry[2]))
    return None


def _model_name(file: KerasFile) -> str:
    config = (file.config or {}).get("config")
    name = config.get("name") if isinstance(config, Mapping) else None
    return re.sub(r"[^\w.-]", "_", str(name or "model"))[:40]


def _step(parameter: str, shape: Shape, layers: Sequence[Layer], role: str) -> Step:
    """Return how one of our parameters is made from the arrays of Keras layers, several for a convolution in groups."""
    source = " + ".join(layer.source or layer.name for layer in layers)
    array, layout, constant = layers[0].arrays.get(role, (None, Layout(), 0.0))
    if array is None:
        return Step(Row(source, parameter, shape, f"set to {constant:g}"), (), layout, constant)
    words = []
    if layout.kernel_order not in (None, "oihw", "flat", "same") or (
        layout.kernel_order is None and len(array.shape) == 2 and not layout.window
    ):
        words.append("transposed")
    if layout.flipped:
        words.append("flipped")
    if layout.window:
        words.append("permuted")
    if len(layers) > 1:
        words.append("concatenated")
    arrays = tuple(found for layer in layers if (found := layer.arrays[role][0]) is not None)
    return Step(Row(source, parameter, shape, change(words, array.dtype)), arrays, layout)


def _with_map(parts: _Parts, name: str, size: Pair, channels: int) -> tuple[dict[str, Any], Any]:
    """Return the arguments, with the stride of the map or the reason why there is none; and the network."""
    from convnets_torch.fcn.graph import features_graph, map_graph
    from convnets_torch.fcn.sliding import slide
    from convnets_torch.weights import build

    graph: dict[str, Any] = {
        "name": name,
        "features": [layer.entry for layer in parts.features],
        "head": None if parts.head is None else [layer.entry for layer in parts.head],
        "size": size, "window": parts.window, "stride": 0, "no_map": parts.no_map,
        "last_map": _last_map(parts.features), "channels": channels,
    }  # fmt: skip
    network = build("graph", {"classes": parts.classes, "graph": graph})
    if graph["no_map"] is None:
        try:
            grid = features_graph(network)
            if grid.vertical.stride != grid.horizontal.stride:
                raise ValueError("its cells are not as far apart vertically as horizontally")
            network.stride = grid.stride
            if network.head is not None:
                map_graph(network)
                images = torch.empty(1, graph["channels"], *graph["size"], device="meta")
                slide(network.head, network.eval().features(images), graph["window"])
            graph = {**graph, "stride": grid.stride}
        except ValueError as error:
            graph = {**graph, "window": (0, 0), "no_map": f"{error}"[:1000]}
    return {"classes": parts.classes, "graph": graph}, network


# Translation


class _Translator:
    """Translates the nodes of a Keras graph one by one."""

    def __init__(self, file: KerasFile, graph: Graph, front: Front, size: Pair, *, theano: bool) -> None:
        self.file, self.graph, self.front, self.theano = file, graph, front, theano
        self.last = graph.data_format == "channels_last"
        self.keras = max(1, file.release[0])
        self.taken: set[str] = {IMAGES}
        self.found: dict[str, Layer] = {}  # by name of the entry
        self.shapes: dict[str, Shape] = {IMAGES: (2, front.channels, *size)}
        self.outputs: dict[str, str] = dict.fromkeys(front.nodes, IMAGES)  # Keras node -> name of the entry
        own = Counter(node.own_name for node in graph.nodes)
        self.unique = {name for name, count in own.items() if count == 1}
        self.first_calls: dict[str, tuple[list[str], list[Layer]]] = {}  # node -> its inputs and layers
        self.used: set[str] = set()  # places of arrays

    def layers(self) -> dict[str, Layer]:
        """Return all layers by name, in order; the last one is the output.

        Raises:
            ValueError: a layer is not supported, or an array is missing, superfluous or of a wrong shape.
        """
        problems = []
        for node in self.graph.nodes[1:]:
            if node.name in self.outputs:
                continue
            what = f"{self.file.path}: layer {node.name} ({node.kind})"
            with config_errors(what):
                try:
                    self._translate(node)
                except _Missing as error:
                    problems.append(f"{node.name} {error}")
                    break
                except ValueError as error:
                    raise ValueError(f"{what} {error}") from None
        if not problems and self.graph.output in self.outputs and len(self.found) == 0:
            raise ValueError(f"{self.file.path}: its model has no layers that compute anything")
        unused = {
            label(layer, self.file): array.place for layer in self.file.weighted
            for role, array in layer.arrays.items() if array.place not in self.used and role != "count"
        }  # fmt: skip
        read = {label(node.layer, self.file) for node in self.graph.nodes if node.layer is not None}
        if not problems and not self.front.cut:
            problems += [
                f"{place} is an array that belongs to no layer" if name in read
                else f"{name} is not on the way from the input to the output"
                for name, place in unused.items()
            ][:10]  # fmt: skip
            problems += [f"{place} is an array that belongs to no layer" for place in self.file.unlisted[:10]]
        problems += misnamed_arrays(self.file)
        if problems:
            raise ValueError(f"{self.file.path} is not complete: {'; '.join(problems)}")
        return self.found

    def _translate(self, node: Node) -> None:
        inputs = [self.outputs[source] for source in node.inputs]
        base = node.name.partition(" (call ")[0]
        if base != node.name and base in self.first_calls:
            self._again(node, inputs)
            return
        if node.kind in IDENTITIES or node.kind == "ops.Cast":
            if "Dropout" in node.kind and (rate := node.setting("rate", "p", default=None)) is not None:
                self._emit(node, "dropout", inputs, rate=min(float(rate), 0.999))
            else:
                self.outputs[node.name] = inputs[0]
            return
        before = len(self.found)
        if node.kind in TRANSLATORS:
            shape = self._map(node, inputs[0]) if node.kind in ON_MAPS else self.shapes[inputs[0]]
            TRANSLATORS[node.kind](self, node, inputs, shape)
        elif node.kind in ACTIVATIONS or node.kind in FUNCTIONS:
            self._activate(node, inputs[0], *self._activation_of(node))
        elif node.kind in REGISTERED:
            self._registered(node, inputs)
        else:
            raise ValueError(UNREAD if node.kind in CODE else UNKNOWN)
        if node.kind not in ACTIVATIONS and "activation" in node.settings:
            name, settings = activation_of(node.settings)
            if name != "linear":
                self._activate(node, self.outputs[node.name], name, settings, fused=True)
        self.first_calls[base] = inputs, list(self.found.values())[before:]

    def _again(self, node: Node, inputs: list[str]) -> None:
        """Repeat the layers of a shared layer's first call on other inputs."""
        first_inputs, layers = self.first_calls[node.name.partition(" (call ")[0]]
        if [self.shapes[one] for one in inputs] != [self.shapes[one] for one in first_inputs]:
            raise ValueError("is called on inputs of several shapes, which is not supported")
        if not layers:
            self.outputs[node.name] = inputs[0]
        now = dict(zip(first_inputs, inputs, strict=True))
        for layer in layers:
            sources = [now[source] for source in layer.entry[2]]
            suffix = layer.name.removeprefix(layers[0].name) if layer is not layers[0] else ""
            now[layer.name] = self._emit(node, "again", sources, suffix, shape_of=layer, layer=layer.name)

    def _name(self, node: Node, suffix: str = "") -> str:
        """Return a name for an entry: the layer's own where it is unique, prefixed with its model's otherwise."""
        own = node.own_name if node.own_name in self.unique else node.name
        name = re.sub(r"[^\w-]", "_", own)[:150] + suffix
        if name in RESERVED:
            name += "_"
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name

    def _emit(
        self, node: Node, kind: str, sources: Sequence[str], suffix: str = "", /, *,
        arrays: Mapping[str, Any] | None = None, shape_of: Layer | None = None, **settings: Any,
    ) -> str:  # fmt: skip
        """Append an entry and return its name; its output becomes the node's.

        Args:
            arrays: parameter -> (role, layout), or (role, layout, value where the file has no such array).
        """
        name = self._name(node, suffix)
        shapes = [self.shapes[source] for source in sources]
        if shape_of is None:
            with torch.device("meta"):
                module = make_layer(name, kind, settings).eval()
                try:
                    images = [torch.empty(shape) for shape in shapes]
                    result = images[0] if kind in SAME_SHAPE else module(*images)
                except (RuntimeError, IndexError, TypeError) as error:
                    reason = str(error).splitlines()[0]
                    if "too small" in reason or "can't be greater" in reason:
                        size = "x".join(map(str, self.shapes[IMAGES][2:]))
                        reason = f"{reason}: pictures of {size} pixels are too small for the network"
                    raise ValueError(
                        f"cannot read inputs of {[list(shape[1:]) for shape in shapes]} ({reason})"
                    ) from None
            after = tuple(result.shape)
        else:
            module, after = nn.Identity(), shape_of.after
        found: dict[str, tuple[KerasArray | None, Layout, float]] = {}
        held = node.layer.arrays if node.layer is not None and arrays else {}
        for parameter, (role, layout, *other) in (arrays or {}).items():
            array = held.get(role)
            if array is None and not other:
                raise _Missing(f"has no {role}" if held else "has no arrays")
            found[parameter] = (array, layout, float(other[0]) if other else 0.0)
            if array is not None:
                self._check_shape(array, role, layout, tuple(module.state_dict()[parameter].shape))
                self.used.add(array.place)
        if "num_batches_tracked" in module.state_dict():
            found["num_batches_tracked"] = (None, Layout(), 0.0)
        source = label(node.layer, self.file) if node.layer is not None and found else ""
        self.found[name] = Layer(
            (name, kind, tuple(sources), settings), shapes[0], after, found, source, node=node.name
        )
        self.shapes[name], self.outputs[node.name] = after, name
        return name

    @staticmethod
    def _check_shape(array: KerasArray, role: str, layout: Layout, wanted: Shape) -> None:
        try:
            found = ORDERS[layout.kernel_order](np.broadcast_to(np.float32(0), array.shape)).shape
        except ValueError:  # for another number of dimensions
            found = ()
        if found[: len(wanted)] != wanted or prod(found) != prod(wanted):
            raise _Missing(f"has a {role} of {array.shape}, which does not give {wanted}")

    # Helpers

    def _dim(self, axis: int, rank: int) -> int:
        """Return our dimension of a Keras axis that is counted with the batch."""
        axis = axis + rank if axis < 0 else axis
        if not 0 < axis < rank:
            raise ValueError(f"works along axis {axis} of {rank} dimensions, which is not supported")
        return {1: 2, 2: 3, 3: 1}[axis] if rank == 4 and self.last else axis

    def _check_format(self, node: Node) -> None:
        own = node.settings.get("data_format")
        if own not in (None, "default", self.graph.data_format):
            raise ValueError(f"is {own}, but the model is {self.graph.data_format}; mixed formats are not supported")

    def _map(self, node: Node, source: str) -> Shape:
        self._check_format(node)
        shape = self.shapes[source]
        if len(shape) != 4:
            raise ValueError(f"reads values of {len(shape) - 1} dimensions instead of a map")
        return shape

    def _kernel_order(self, node: Node) -> str:
        known = "oihw" if self.keras == 1 and self.graph.data_format == "channels_first" else "hwio"
        return (node.layer.kernel_order if node.layer is not None else None) or known

    def _edges(self, sides: Sequence[int], kernel: Pair, stride: Pair, dilation: Pair, padding: str, pool: bool) -> Any:
        """Return (top, bottom, left, right) padding cells."""
        if padding == "valid":
            return (0, 0, 0, 0)
        if padding != "same":
            raise ValueError(f"has the padding {padding!r}; known: 'valid', 'same'")
        edges: list[int] = []
        for side, size, step, rate in zip(sides, kernel, stride, dilation, strict=True):
            span = (size - 1) * rate + 1
            total = max(0, (-(-side // step) - 1) * step + span - side)
            before = total // 2
            if self.theano:
                before = (size - 2 if size > 2 and size % 2 else size - 1) if pool else span // 2
            symmetric = self.theano and not pool and span % 2  # its last cells may not be read at this size
            edges += [before, before if symmetric else max(0, total - before)]
        return tuple(edges)

    def _activation_of(self, node: Node) -> tuple[str, Mapping[str, Any]]:
        if node.kind in FUNCTIONS:
            words = {key: value for key, value in node.settings.items() if key not in ("name", "function")}
            others = [one for one in node.operands[1:] if one is not None]
            if node.kind == "ops.Softmax" and [type(one) for one in others] == [int]:
                return FUNCTIONS[node.kind], words | {"axis": others[0]}
            if others:
                raise ValueError(f"is called with {others[0]!r:.80} beside its input, which is not supported")
            return FUNCTIONS[node.kind], words
        return layer_activation(node.kind, node.settings)

    def _activate(
        self, node: Node, source: str, name: str, settings: Mapping[str, Any], *, fused: bool = False
    ) -> None:
        suffix = FUSED if fused else ""
        kind, numbers = ACTIVATION_KINDS.get(name), {}
        if name == "linear":
            self.outputs[node.name] = source
            return
        given = {key: value for key, value in settings.items() if value is not None}
        most, threshold = given.get("max_value"), given.get("threshold", 0.0)
        slope = given.get("negative_slope", 0.0)
        if name == "relu" and (most, threshold, slope) != (None, 0.0, 0.0):
            if (most, threshold, slope) == (6.0, 0.0, 0.0):
                kind = "relu6"
            elif most is None and threshold == 0:
                kind, numbers = "leaky_relu", {"slope": slope}
            else:
                kind, numbers = "clipped_relu", {"most": most, "threshold": threshold, "slope": slope}
        elif name == "leaky_relu":
            kind, numbers = "leaky_relu", {"slope": number_of(given.get("negative_slope", given.get("alpha", 0.2)))}
        elif name in ("elu", "celu"):
            kind, numbers = name, {"alpha": number_of(given.get("alpha", 1.0))}
        elif name == "gelu":
            kind = "gelu_tanh" if given.get("approximate") else "gelu"
        elif name == "hard_sigmoid":
            kind = "hard_sigmoid" if self.keras >= 3 else "hard_sigmoid_0.2"
        elif name in ("softmax", "log_softmax"):
            rank, axis = len(self.shapes[source]), given.get("axis", -1)
            # `layer_activation` does not count the batch in an axis from the front
            counted = axis if axis < 0 or node.kind in FUNCTIONS else axis + 1
            kind, numbers = name, {"dim": self._dim(counted, rank)}
        if kind is None:
            raise ValueError(f"has the activation {name!r}, which is not known here")
        self._emit(node, kind, [source], suffix, **numbers)

    # Layers with weights

    def _emit_kernel(
        self, node: Node, kind: str, inputs: Sequence[str], role: str, layout: Layout, suffix: str = "", /, *,
        biased: bool = True, **settings: Any,
    ) -> str:  # fmt: skip
        """Emit a layer with a kernel and, unless its config leaves it out, a bias."""
        bias = biased and _has(node, "bias", "use_bias", "bias")
        arrays = {"weight": (role, layout)} | ({"bias": ("bias", Layout())} if bias else {})
        return self._emit(node, kind, inputs, suffix, arrays=arrays, **settings, bias=bias)

    def _conv2d(self, node: Node, inputs: list[str], shape: Shape) -> None:
        stored = _layer(node).arrays["kernel"].shape
        order = self._kernel_order(node)
        height, width, reads, outputs = (stored[place] for place in ((2, 3, 1, 0) if order == "oihw" else range(4)))
        groups = int(node.setting("groups", default=1))
        said = pair_of(node.settings["kernel_size"]) if "kernel_size" in node.settings else (height, width)
        units = node.setting("filters", "nb_filter", default=outputs)
        if (said, units) != ((height, width), outputs):
            raise _Missing(f"has a kernel of {stored}, but its config says {units} filters of {said[0]}x{said[1]}")
        if reads * groups != shape[1]:
            raise _Missing(f"has a kernel of {stored}, for {reads * groups} channels, but reads {shape[1]}")
        self._windowed(node, inputs, shape, "kernel", Layout(order, self.theano), (height, width), outputs, groups)

    def _depthwiseconv2d(self, node: Node, inputs: list[str], shape: Shape) -> None:
        """Translate DepthwiseConv2D, or SeparableConv2D, which continues with a convolution of 1x1."""
        layer = _layer(node)
        role = "depthwise_kernel" if "depthwise_kernel" in layer.arrays else "kernel"
        if self._kernel_order(node) == "oihw":
            raise ValueError("has kernels as Keras 1 orders them with channels first, which is not supported")
        height, width, channels, multiplier = layer.arrays[role].shape
        _check_size(node, (height, width))
        if channels != shape[1]:
            raise _Missing(f"has kernels of {layer.arrays[role].shape}, but reads {shape[1]} channels")
        # Depthwise kernels are not flipped: Keras reverses them before Theano reverses them again.
        layout, separable = Layout("depthwise"), node.kind == "SeparableConv2D"
        source = self._windowed(
            node, inputs, shape, role, layout, (height, width), channels * multiplier, channels, separable=separable
        )
        if separable:
            self.found[source].linear = False
            outputs = layer.arrays["pointwise_kernel"].shape[-1]
            self._emit_kernel(
                node, "conv", [source], "pointwise_kernel", Layout("hwio"), inputs=channels * multiplier,
                outputs=outputs, kernel=(1, 1),
            )  # fmt: skip

    def _windowed(
        self, node: Node, inputs: list[str], shape: Shape, role: str, layout: Layout, kernel: Pair, outputs: int,
        groups: int, *, separable: bool = False,
    ) -> str:  # fmt: skip
        """Emit a convolution, or the first part of a separable one."""
        suffix = "_depthwise" if separable else ""
        stride, dilation = (pair_of(node.setting(word, default=1)) for word in ("strides", "dilation_rate"))
        padding = str(node.setting("padding", default="valid"))
        edges = self._edges(shape[2:], kernel, stride, dilation, padding, pool=False)
        if self.theano and separable:  # whose `same` pads half of the kernel on both sides
            edges = (edges[0], edges[0], edges[2], edges[2])
        if edges[0] != edges[1] or edges[2] != edges[3]:
            inputs = [self._emit(node, "pad", inputs, f"{suffix}_pad", edges=edges)]
            edges = (0, 0, 0, 0)
        return self._emit_kernel(
            node, "conv", inputs, role, layout, suffix, biased=not separable, inputs=shape[1], outputs=outputs,
            kernel=kernel, stride=stride, padding=(edges[0], edges[2]), dilation=dilation, groups=groups,
        )  # fmt: skip

    def _conv2dtranspose(self, node: Node, inputs: list[str], shape: Shape) -> None:
        stored = _layer(node).arrays["kernel"].shape
        order = "hwoi" if self.keras > 1 else f"deconv_{self._kernel_order(node)}"
        places = {"hwoi": (0, 1, 2, 3), "deconv_hwio": (0, 1, 3, 2), "deconv_oihw": (2, 3, 0, 1)}[order]
        height, width, outputs, channels = (stored[place] for place in places)
        kernel = (height, width)
        _check_size(node, kernel)
        stride, dilation = (pair_of(node.setting(word, default=1)) for word in ("strides", "dilation_rate"))
        padding = node.setting("padding", default="valid")
        if padding not in ("valid", "same"):
            raise ValueError(f"has the padding {padding!r}; known: 'valid', 'same'")
        if self.theano and padding == "same" and not all(side % 2 for side in kernel):
            raise ValueError("has an even kernel and the padding 'same', for which Keras on Theano had no rule")
        said = node.settings.get("output_shape")  # of Keras 1
        sizes = None if said is None else [int(side) for side in (said[1:3] if self.last else said[2:4])]
        given = node.settings.get("output_padding")
        edges: list[int] = []
        extra: list[int] = []
        for axis in range(2):
            side, span, step = shape[2 + axis], (kernel[axis] - 1) * dilation[axis] + 1, stride[axis]
            full = (side - 1) * step + span
            if sizes is not None:
                wanted = sizes[axis]
            elif given is None:
                wanted = side * step if padding == "same" else max(full, side * step)
            else:
                wanted = (side - 1) * step + pair_of(given)[axis] + (span % 2 if padding == "same" else span)
            before = 0
            if padding == "same":  # as many as the convolution pads before its input
                before = span // 2 if self.theano else max(0, full - wanted) // 2
            extra.append(max(0, wanted + before - full))
            edges += [before, max(0, full + extra[-1] - before - wanted)]
        self._emit_kernel(
            node, "conv_transpose", inputs, "kernel", Layout(order, self.theano), inputs=channels, outputs=outputs,
            kernel=kernel, stride=stride, edges=tuple(edges), output_padding=tuple(extra), dilation=dilation,
        )  # fmt: skip

    def _dense(self, node: Node, inputs: list[str], shape: Shape) -> None:
        rows, units = _layer(node).arrays["kernel"].shape
        if (said := node.setting("units", "output_dim", default=units)) != units:
            raise _Missing(f"has a kernel of ({rows}, {units}), but its config says {said} units")
        if len(shape) == 4:
            if not self.last:
                raise ValueError("works along the width of a channels-first map, which is not supported")
            layout = Layout("io")
            self._emit_kernel(node, "conv", inputs, "kernel", layout, inputs=rows, outputs=units, kernel=(1, 1))
            return
        if rows != shape[-1]:
            raise _Missing(f"has a kernel of ({rows}, {units}), but reads {shape[-1]} values")
        self._emit_kernel(node, "dense", inputs, "kernel", Layout(), inputs=rows, outputs=units)

    def _batchnormalization(self, node: Node, inputs: list[str], shape: Shape) -> None:
        if (mode := node.setting("mode", default=0)) != 0:
            raise ValueError(f"normalises in mode {mode} of Keras 1; known: 0")
        axis = node.setting("axis", default=-1)
        dim = self._dim(axis[0] if isinstance(axis, list | tuple) else axis, len(shape))
        order = list(range(len(shape)))
        order[1], order[dim] = order[dim], order[1]
        if dim != 1:
            inputs = [self._emit(node, "permute", inputs, "_permute", order=tuple(order))]
        moving = {"running_mean": ("moving_mean", Layout()), "running_var": ("moving_variance", Layout())}
        arrays = _scale_and_shift(node, Layout()) | moving
        name = self._emit(
            node, "batch_norm", inputs, arrays=arrays, channels=shape[dim],
            epsilon=float(node.setting("epsilon", default=KERAS_EPSILON)), dims=len(shape),
        )  # fmt: skip
        if dim != 1:
            self.found[name].linear = False
            self._emit(node, "permute", [name], "_permute_back", order=tuple(order))

    def _layernormalization(self, node: Node, inputs: list[str], shape: Shape) -> None:
        if node.settings.get("rms_scaling"):
            raise ValueError("scales by the root mean square, which is not supported")
        axes = node.setting("axis", default=-1)
        dims = sorted(self._dim(axis, len(shape)) for axis in (axes if isinstance(axes, list | tuple) else [axes]))
        epsilon = float(node.setting("epsilon", default=KERAS_EPSILON))
        if dims == [1] and len(shape) in (2, 4):
            arrays = _scale_and_shift(node, Layout())
            self._emit(node, "channel_norm", inputs, arrays=arrays, channels=shape[1], epsilon=epsilon)
        elif dims == list(range(dims[0], len(shape))):
            layout = Layout("hwc" if len(shape) == 4 and self.last else "same")
            if layout.kernel_order == "hwc" and dims != [1, 2, 3]:
                raise ValueError("normalises some axes of a map, which is not supported")
            arrays = _scale_and_shift(node, layout)
            self._emit(node, "layer_norm", inputs, arrays=arrays, shape=shape[dims[0] :], epsilon=epsilon)
        else:
            raise ValueError("normalises axes that are not the last ones, which is not supported")

    def _normalization(self, node: Node, inputs: list[str], shape: Shape) -> None:
        mean = node.settings.get("mean")
        axes = node.setting("axis", default=-1)
        axis = axes if isinstance(axes, int) else axes[0] if axes else None
        if axis is None or self._dim(axis, len(shape)) != 1 or (not isinstance(axes, int) and len(axes) > 1):
            raise ValueError("normalises other axes than the channels, which is not supported")
        invert = bool(node.setting("invert", default=False))
        if mean is not None:
            means, deviations = _flat(mean), [max(each**0.5, 1e-7) for each in _flat(node.settings["variance"])]
            scale = deviations if invert else [1 / each for each in deviations]
            offset = means if invert else [-one * by for one, by in zip(means, scale, strict=True)]
            self._emit(node, "scale", inputs, scale=tuple(scale), offset=tuple(offset))
            return
        arrays = {"mean": ("mean", Layout("flat")), "variance": ("variance", Layout("flat"))}
        _layer(node)
        self._emit(node, "normalize", inputs, arrays=arrays, channels=shape[1], invert=invert)

    def _prelu(self, node: Node, inputs: list[str], shape: Shape) -> None:
        array = _layer(node).arrays["alpha"]
        own = array.shape
        layout = Layout("flat" if own[1:] == (1, 1) else "same")
        if len(own) != len(shape) - 1:
            raise _Missing(f"has an alpha of {own}, but reads values of {shape[1:]}")
        if len(shape) == 4 and self.last:
            own, layout = (own[2], own[0], own[1]), Layout("hwc")
        self._emit(node, "prelu", inputs, arrays={"weight": ("alpha", layout)}, shape=own)

    def _thresholdedrelu(self, node: Node, inputs: list[str], shape: Shape) -> None:
        self._emit(node, "threshold", inputs, threshold=number_of(node.setting("theta", default=1.0)))

    def _layerscale(self, node: Node, inputs: list[str], shape: Shape) -> None:
        role = next(iter(_layer(node).arrays))
        self._emit(node, "layer_scale", inputs, arrays={"weight": (role, Layout())}, channels=shape[1])

    def _customscalelayer(self, node: Node, inputs: list[str], shape: Shape) -> None:
        scaled = self._emit(node, "scale", inputs[1:], "_scaled", scale=float(node.settings["scale"]))
        self._emit(node, "add", [inputs[0], scaled])

    # Layers without weights

    def _pool(self, node: Node, inputs: list[str], shape: Shape) -> None:
        size = pair_of(node.setting("pool_size", default=(2, 2)))
        stride = pair_of(node.setting("strides", default=size))
        padding = str(node.setting("padding", default="valid"))
        edges = self._edges(shape[2:], size, stride, (1, 1), padding, pool=True)
        self._emit(node, POOLS[node.kind], inputs, kernel=size, stride=stride, edges=edges)

    def _global_pool(self, node: Node, inputs: list[str], shape: Shape) -> None:
        self._emit(node, GLOBAL[node.kind], inputs, keepdims=bool(node.setting("keepdims", default=False)))

    def _pad(self, node: Node, inputs: list[str], shape: Shape) -> None:
        sign, word, plain = (1, "padding", 1) if node.kind == "ZeroPadding2D" else (-1, "cropping", 0)
        edges = edges_of(node.setting(word, default=plain))
        self._emit(node, "pad", inputs, edges=tuple(sign * edge for side in edges for edge in side))

    def _centercrop(self, node: Node, inputs: list[str], shape: Shape) -> None:
        wanted = int(node.settings["height"]), int(node.settings["width"])
        edges: list[int] = []
        for side, kept in zip(shape[2:], wanted, strict=True):
            if not 0 < kept <= side:
                raise ValueError(f"crops {side} cells to {kept}; only a crop within the map is supported")
            edges += [-((side - kept) // 2), (side - kept) // 2 - (side - kept)]
        self._emit(node, "pad", inputs, edges=tuple(edges))

    def _upsampling2d(self, node: Node, inputs: list[str], shape: Shape) -> None:
        how = node.setting("interpolation", default="nearest")
        if how not in ("nearest", "bilinear"):
            raise ValueError(f"enlarges by {how!r}; known: nearest, bilinear")
        if how == "bilinear" and self.keras < 3 and self.file.release < (2, 4):
            raise ValueError("enlarges bilinearly as Keras before TensorFlow 2 did, which is not supported")
        self._emit(node, "upsample", inputs, factor=pair_of(node.setting("size", default=(2, 2))), how=how)

    def _flatten(self, node: Node, inputs: list[str], shape: Shape) -> None:
        rank = len(shape)
        first = node.settings.get("data_format") == "channels_first"  # Keras 2.2 and later transposes such values
        if first and rank == 4 and self.last:  # Keras's first axis, which is no channels here
            inputs = [self._emit(node, "permute", inputs, "_permute", order=(0, 3, 1, 2))]
            self._emit(node, "reshape", inputs, shape=(-1,), channels_last=False)
            return
        self._emit(node, "flatten", inputs, channels_last=(rank == 4 and self.last) or (rank > 2 and first))

    def _reshape(self, node: Node, inputs: list[str], shape: Shape) -> None:
        target = [int(side) for side in node.settings["target_shape"]]
        self._emit(node, "reshape", inputs, shape=tuple(target), channels_last=self.last)

    def _permute(self, node: Node, inputs: list[str], shape: Shape) -> None:
        rank = len(shape)
        axes = [0, *(int(axis) for axis in node.settings["dims"])]
        if rank != len(axes):
            raise ValueError(f"reorders {len(axes) - 1} axes of {rank - 1}")
        ours = {0: 0} | {axis: self._dim(axis, rank) for axis in range(1, rank)}  # Keras axis -> our dimension
        order = [0] * rank
        for place, axis in enumerate(axes):
            order[ours[place]] = ours[axis]
        self._emit(node, "permute", inputs, order=tuple(order))

    def _rescaling(self, node: Node, inputs: list[str], shape: Shape) -> None:
        scale, offset = (node.setting(word, default=plain) for word, plain in (("scale", 1.0), ("offset", 0.0)))
        along_last = len(shape) == 2 or (len(shape) == 4 and self.last)
        # Keras 3 alone, and for the scale alone, follows the data format
        for list_of, known in ((scale, len(shape) == 4 and self.keras >= 3), (offset, False)):
            if isinstance(list_of, list | tuple) and not (along_last or known):
                raise ValueError(f"has a constant of {len(list_of)} numbers for {list(shape[1:])}, not one per channel")
        self._emit(node, "scale", inputs, scale=_numbers(scale), offset=_numbers(offset))

    def _merge(self, node: Node, inputs: list[str], shape: Shape) -> None:
        if any(not isinstance(operand, Operand) for operand in node.operands):
            raise ValueError("compares its input with a constant, which is not supported")
        shapes = {self.shapes[source] for source in inputs}
        if len({len(shape) for shape in shapes}) > 1:
            raise ValueError("merges inputs of different dimensions, which is not supported")
        self._emit(node, MERGES[node.kind], inputs)

    def _concatenate(self, node: Node, inputs: list[str], shape: Shape) -> None:
        axis = node.setting("axis", default=node.operands[1] if len(node.operands) > 1 else -1)
        axis = int(axis[0] if isinstance(axis, list | tuple) else axis)  # tf_keras writes a list of one
        self._emit(node, "concatenate", inputs, dim=self._dim(axis, len(shape)))

    def _split_tensor(self, node: Node, inputs: list[str], shape: Shape) -> None:
        """Half of the channels, as convnets-keras's AlexNet reads them."""
        half = shape[1] // 2
        first = half * int(node.settings["half"])
        self._emit(node, "channels", inputs, start=first, stop=first + half)

    def _cross_channel_normalization(self, node: Node, inputs: list[str], shape: Shape) -> None:
        size, alpha, beta, k = LRN
        self._emit(node, "local_response_norm", inputs, size=size, alpha=alpha, beta=beta, k=k)

    def _dot(self, node: Node, inputs: list[str], shape: Shape) -> None:
        if any(len(self.shapes[source]) != 2 for source in inputs) or node.settings.get("axes") not in (1, -1, [1, 1]):
            raise ValueError("multiplies maps; only the dot product of vectors is supported")
        self._emit(node, "dot", inputs, normalize=bool(node.settings.get("normalize")))

    def _ops_mean(self, node: Node, inputs: list[str], shape: Shape) -> None:
        given = node.settings.get("axis", node.operands[1] if len(node.operands) > 1 else None)
        keepdims = bool(node.settings.get("keepdims", False))
        rank = len(shape)
        axes = [given] if isinstance(given, int) else list(given or ())
        if rank != 4 or sorted(self._dim(axis, rank) for axis in axes) != [2, 3]:
            raise ValueError("averages other axes than height and width, which is not supported")
        self._emit(node, "global_average", inputs, keepdims=keepdims)

    def _arithmetic(self, node: Node, inputs: list[str], shape: Shape) -> None:
        kind = ARITHMETIC[node.kind]
        first, second = node.operands[:2]
        if isinstance(first, Operand) and isinstance(second, Operand):
            if len({len(self.shapes[source]) for source in inputs}) > 1:
                raise ValueError("combines inputs of different dimensions, which is not supported")
            self._emit(node, kind, [inputs[first.number], inputs[second.number]])
            return
        number = self._constant(second if isinstance(first, Operand) else first, shape)
        left = isinstance(second, Operand)  # the constant stands on the left
        scale: float | tuple[float, ...] = 1.0
        offset: float | tuple[float, ...] = 0.0
        if kind == "add":
            offset = number
        elif kind == "multiply":
            scale = number
        elif kind == "subtract":
            scale, offset = (-1.0, number) if left else (1.0, _mapped(number, lambda each: -each))
        elif left:
            raise ValueError("divides a constant by its input, which is not supported")
        else:
            scale = _mapped(number, lambda each: 1 / each)
        self._emit(node, "scale", inputs, scale=scale, offset=offset)

    def _constant(self, value: Any, shape: Shape) -> float | tuple[float, ...]:
        """Return a constant operand as one number, or one per channel."""
        numbers, sides, inner = _flat(value), [], value
        if len(numbers) == 1:
            return numbers[0]
        while isinstance(inner, list | tuple):
            sides.append(len(inner))
            inner = inner[0]
        axes = [place - len(sides) for place, side in enumerate(sides) if side > 1]
        if len(axes) != 1 or self._dim(axes[0], len(shape)) != 1 or len(numbers) != shape[1]:
            raise ValueError(f"has a constant of {sides} numbers for {list(shape[1:])}; known: one, or one per channel")
        return tuple(numbers)

    def _registered(self, node: Node, inputs: list[str]) -> None:
        held = {} if node.layer is None else {role: array.shape for role, array in node.layer.arrays.items()}
        shapes = [self.shapes[source][1:] for source in inputs]
        made = REGISTERED[node.kind](dict(node.settings), held, shapes)
        for number, layer in enumerate(made, start=1):
            arrays = {parameter: (role, Layout(order)) for parameter, (role, order) in layer.arrays.items()}
            last = number == len(made)
            suffix = "" if last else f"_{number}"
            inputs = [self._emit(node, layer.kind, inputs, suffix, arrays=arrays, **layer.settings)]
            self.found[inputs[0]].linear = last
        if not made:
            self.outputs[node.name] = inputs[0]


class Translated(NamedTuple):
    """One layer that a registered Keras layer becomes.

    Attributes:
        kind: a key of `convnets_torch.networks.graph_network.KINDS`.
        settings: its arguments.
        arrays: parameter -> (role of the array in the file, axis order: "hwio", "depthwise", "hwoi", "io", "hwc",
            "flat", or None for vectors and dense kernels).
    """

    kind: str
    settings: Mapping[str, Any] = MappingProxyType({})
    arrays: Mapping[str, tuple[str, str | None]] = MappingProxyType({})


Translation = Callable[[dict[str, Any], dict[str, Shape], list[Shape]], Sequence[Translated]]
REGISTERED: dict[str, Translation] = {}


def register_layer(class_name: str, translate: Translation) -> None:
    """Teach `convert` a Keras class that it does not know; it stays known in this process.

    Args:
        class_name: as in the model's config, "MyLayer".
        translate: (settings of the layer, role -> shape of its arrays, shapes of its inputs without the batch) -> the
            layers that it becomes, each reading the one before; none for a layer without effect. Maps are (C, h, w).

    Raises:
        ValueError: the class is known already.

    >>> register_layer("Halve", lambda settings, arrays, inputs: [Translated("scale", {"scale": 0.5})])
    """
    if class_name in (*TRANSLATORS, *ACTIVATIONS, *IDENTITIES):
        raise ValueError(f"{class_name} is a layer that is known already; register one that is not")
    REGISTERED[class_name] = translate


UNKNOWN = "is of a class that is not known here; leave it out with --until, or teach it with converters.register_layer"
UNREAD = (
    "runs Python code or a function that is not known here, which is never executed; put layers in its place in Keras"
    " and save the model again, leave it out with --until, or teach it with converters.register_layer"
)
RESERVED = frozenset(dir(nn.Module())) | {"calls", "output"}

Translate = Callable[[_Translator, Node, list[str], Shape], None]
TRANSLATORS: dict[str, Translate] = {
    "Conv2D": _Translator._conv2d, "DepthwiseConv2D": _Translator._depthwiseconv2d,
    "SeparableConv2D": _Translator._depthwiseconv2d, "Conv2DTranspose": _Translator._conv2dtranspose,
    "Dense": _Translator._dense, "BatchNormalization": _Translator._batchnormalization,
    "LayerNormalization": _Translator._layernormalization, "Normalization": _Translator._normalization,
    "PReLU": _Translator._prelu, "ThresholdedReLU": _Translator._thresholdedrelu, "LayerScale": _Translator._layerscale,
    "CustomScaleLayer": _Translator._customscalelayer, "ZeroPadding2D": _Translator._pad,
    "CenterCrop": _Translator._centercrop,
    "Cropping2D": _Translator._pad, "UpSampling2D": _Translator._upsampling2d, "Flatten": _Translator._flatten,
    "Reshape": _Translator._reshape, "Permute": _Translator._permute, "Rescaling": _Translator._rescaling,
    "Concatenate": _Translator._concatenate, "ops.Concatenate": _Translator._concatenate, "Dot": _Translator._dot,
    "ops.Mean": _Translator._ops_mean, "SplitTensor": _Translator._split_tensor,
    "CrossChannelNormalization": _Translator._cross_channel_normalization,
    **dict.fromkeys(POOLS, _Translator._pool),
    **dict.fromkeys(GLOBAL, _Translator._global_pool),
    **dict.fromkeys(MERGES, _Translator._merge),
    **dict.fromkeys(ARITHMETIC, _Translator._arithmetic),
}  # fmt: skip


class _Missing(ValueError):
    """An array is missing or has another shape than the config says."""


def _layer(node: Node) -> KerasLayer:
    """Return the layer's arrays; raise an error if there are none."""
    if node.layer is None:
        raise _Missing("has no arrays")
    wanted = {
        "SeparableConv2D": ("depthwise_kernel", "pointwise_kernel"), "Conv2D": ("kernel",), "Dense": ("kernel",),
        "Conv2DTranspose": ("kernel",), "PReLU": ("alpha",), "Normalization": ("mean", "variance"),
    }.get(node.kind, ())  # fmt: skip
    if lacking := [role for role in wanted if role not in node.layer.arrays]:
        raise _Missing(f"has no {lacking[0]}")
    for role in ("kernel", "depthwise_kernel", "pointwise_kernel"):
        array = node.layer.arrays.get(role)
        if array is not None and len(array.shape) != (2 if node.kind == "Dense" else 4):
            raise _Missing(f"has a {role} of {array.shape}, which is no {node.kind}'s")
    return node.layer


def _check_size(node: Node, kernel: Pair) -> None:
    """Raise an error if a kernel's size, (height, width), is not the config's."""
    if (said := pair_of(node.settings.get("kernel_size", kernel))) != kernel:
        raise _Missing(f"has a kernel of {kernel[0]}x{kernel[1]}, but its config says {said[0]}x{said[1]}")


def _has(node: Node, role: str, *flags: str) -> bool:
    """Return whether a layer has an array that its config may leave out, on which both must agree."""
    found = node.layer is not None and role in node.layer.arrays
    if found != bool(node.setting(*flags, default=True)):
        raise _Missing(f"has a {role}, but its config has none" if found else f"has no {role}")
    return found


def _scale_and_shift(node: Node, layout: Layout) -> dict[str, Any]:
    """Return where the gamma and beta of a normalisation come from, as `_emit` takes it."""
    _has(node, "gamma", "scale")
    _has(node, "beta", "center")
    return {"weight": ("gamma", layout, 1.0), "bias": ("beta", layout, 0.0)}


def _flat(value: Any) -> list[float]:
    if isinstance(value, list | tuple):
        return [number for each in value for number in _flat(each)]
    return [number_of(value)]


def _numbers(value: Any) -> float | tuple[float, ...]:
    return tuple(_flat(value)) if isinstance(value, list | tuple) else number_of(value)


def _mapped(value: float | tuple[float, ...], change: Callable[[float], float]) -> float | tuple[float, ...]:
    return tuple(map(change, value)) if isinstance(value, tuple) else change(value)


# Features and head


ELEMENTWISE = frozenset((*ACTIVATION_KINDS.values(), "elu", "celu", "leaky_relu", "clipped_relu", "threshold",
                         "gelu", "gelu_tanh", "hard_sigmoid", "hard_sigmoid_0.2", "dropout", "scale", "softmax",
                         "log_softmax"))  # fmt: skip
SLIDING = frozenset(  # layers of a head that `slide` knows
    ("linear", "relu", "relu6", "selu", "silu", "sigmoid", "tanh", "softplus", "elu", "leaky_relu", "gelu", "gelu_tanh",
     "hard_silu", "dropout")
)  # fmt: skip


@dataclass(frozen=True)
class _Parts:
    """A network's layers, split.

    Attributes:
        features, head: the layers; no head for a network without classes.
        window: (height, width) in cells that the head reads at once; (0, 0) without a map.
        no_map: why there is no map.
        classes: number of logits.
        activation: that of the logits; None without a head.
        notes: what was left out.
        final: name of the Keras node whose output the network has; "" for the model's own.
        fused: whether that output is the one after the node's fused activation.
        later: whether the features end before a maximum pooling of their whole map, which may be part of them.
    """

    features: list[Layer]
    head: list[Layer] | None
    window: Pair
    no_map: str | None
    classes: int | None
    activation: str | None = None
    notes: tuple[str, ...] = ()
    final: str = ""
    fused: bool = True
    later: bool = False


def _split(layers: dict[str, Layer], *, later: bool = False) -> _Parts:
    """Split a network where its head can slide over the feature map, or else before its last layers.

    The head begins with the first layer that reads a whole map, the last one if `later`; then a maximum pooling at the
    end of a network without a head is one of its layers.
    """
    uses = Counter(source for layer in layers.values() for source in layer.entry[2])
    ordered = whole = list(layers.values())
    chain: list[Layer] = []
    layer: Layer | None = whole[-1]
    while layer is not None and uses[layer.name] == (0 if layer is whole[-1] else 1) and _can_follow(layer):
        chain.insert(0, layer)
        layer = layers.get(layer.entry[2][0])
    result, activation = whole[-1].after, "none"
    last = chain[-1] if chain else None
    if last and last.kind in ENDS and prod(result[2:]) == 1 and last.entry[3].get("dim", 1) == 1:
        activation, chain, ordered = last.kind, chain[:-1], whole[:-1]
    starts = [place for place, one in enumerate(chain) if _reads_map(one)]
    start = starts[-1 if later else 0] if starts else None
    final = ordered[-1].node if ordered else ""
    fused = whole[-1] is ordered[-1] or whole[-1].node != final if ordered else True

    def without_head(why: str | None) -> _Parts:
        return _Parts(whole, None, (0, 0), why, None, final=whole[-1].node)

    def before(layer: Layer) -> list[Layer]:
        return ordered[: ordered.index(layer)]

    if prod(result[2:]) != 1 or (len(result) == 4 and start is None) or len(result) == 3:
        return without_head(None if len(result) == 4 else "its output is not a map")
    reason = "no single layer reads its whole feature map: neither a flatten nor a global pooling"
    if start is not None and not any(one.kind in ("dense", "conv") for one in chain[start:]):
        # The dense layers, if any, are convolutions of a single cell before the flatten.
        place = next((place for place, one in enumerate(chain[:start]) if one.kind == "conv"), None)
        if place is not None:
            cell = chain[place]
            flat = Layer((f"{cell.name}_flatten", "flatten", (), {}), cell.before, cell.before[:2])
            head = _sliding_head([flat, *chain[place:]])
            return _Parts(before(cell), head, (0, 0), reason, result[1], activation, final=final, fused=fused)
        if activation == "none":
            if not (before(chain[start]) and all(one.kind in UNLEARNT for one in chain[start:])):
                return without_head("its output is not a map")
            # A pooling of all cells before a global one is part of the features.
            pools = [place for place, one in enumerate(chain) if one.kind in GLOBAL.values()]
            start = pools[-1] if pools else start
            pooled = chain[start].kind == "max_pool" and chain[start] is whole[-1]
            if later and pooled:
                return without_head(None)
            features = before(chain[start])
            names = ", ".join(one.name for one in chain[start:])
            note = f"the model ends with {names}, which is left out: the features are the map before it"
            if chain[start].kind in ("global_max", "max_pool"):
                note += "; --pool max embeds them"
            return _Parts(features, None, (0, 0), None, None, None, (note,), features[-1].node, later=pooled)
    ordered_cells = start is not None and chain[start].entry[3].get("channels_last")
    if ordered_cells and not any(one.kind == "dense" for one in chain[start:]):
        return without_head("its output is not a map")  # but all cells, in an order that no dense layer undoes
    if start is not None:
        head = _sliding_head(chain[start:])
        fixed = next((one for one in head if one.kind in ELEMENTWISE and one.kind not in SLIDING), None)
        why = None if fixed is None else f"its head has {fixed.name} ({fixed.kind}), which cannot slide over a map"
        window = (chain[start].before[2], chain[start].before[3]) if why is None else (0, 0)
        pooled = len(starts) > 1 and chain[start].kind == "max_pool"
        features = before(chain[start])
        return _Parts(features, head, window, why, result[1], activation, (), final, fused, later=pooled)
    vector = next((place for place, one in enumerate(chain) if len(one.before) == 2), len(chain))
    if not any(one.kind == "dense" for one in chain[vector:]):
        return without_head("its output is not a map")
    features = before(chain[vector])
    return _Parts(features, _chained(chain[vector:]), (0, 0), reason, result[1], activation, final=final, fused=fused)


def _can_follow(layer: Layer) -> bool:
    """Return whether a layer can be part of a head."""
    if len(layer.entry[2]) != 1:
        return False
    if layer.kind == "scale":  # the numbers of channels would need another order behind a flatten
        return not any(isinstance(value, list | tuple) for value in layer.entry[3].values())
    if layer.kind == "dense":
        return prod(layer.before[1:]) == layer.before[-1]
    if layer.kind in ("softmax", "log_softmax"):
        return len(layer.before) != 3 and layer.entry[3]["dim"] == 1
    if layer.kind in ELEMENTWISE or layer.kind in ("flatten", *GLOBAL.values()):
        return True
    if layer.kind in ("max_pool", "average_pool"):
        return _pools_whole(layer)
    if layer.kind == "reshape":
        return prod(layer.before[1:]) == max(layer.before[1:]) == max(layer.after[1:])  # one dimension only
    if layer.kind == "batch_norm":
        return len(layer.before) == 2
    return layer.kind == "conv" and tuple(layer.before[2:]) == (1, 1) and tuple(layer.entry[3]["kernel"]) == (1, 1)


UNLEARNT = ("flatten", "reshape", "max_pool", "average_pool", "dropout", *GLOBAL.values())  # may end a map


def _pools_whole(layer: Layer) -> bool:
    kernel, edges = tuple(layer.entry[3]["kernel"]), tuple(layer.entry[3]["edges"])
    return kernel == tuple(layer.before[2:]) and not any(edges)


def _reads_map(layer: Layer) -> bool:
    """Return whether a layer of a head reads the whole map."""
    if len(layer.before) != 4 or layer.kind not in ("flatten", "max_pool", "average_pool", *GLOBAL.values()):
        return False
    return layer.kind == "flatten" or prod(layer.after[2:]) == 1


def _sliding_head(chain: Sequence[Layer]) -> list[Layer]:
    """Return the layers of a head that slides: a pool or flatten of the window, then layers that read vectors."""
    first = chain[0]
    cells = (first.before[2], first.before[3])
    window = None
    head: list[Layer] = []
    if first.kind == "flatten":
        if first.entry[3].get("channels_last"):
            window = (first.before[1], *cells)
        head.append(Layer((first.name, "flatten", (), {}), first.before, first.after))
    else:
        kind = "max_pool" if "max" in first.kind else "average_pool"
        pooled = (*first.before[:2], 1, 1)
        head.append(Layer((first.name, kind, (), {"kernel": cells, "stride": (1, 1)}), first.before, pooled))
        head.append(Layer((f"{first.name}_flatten", "flatten", (), {}), pooled, pooled[:2]))
    for layer in chain[1:]:
        if layer.kind in ("flatten", "reshape", "max_pool", "average_pool", *GLOBAL.values()):
            continue  # of a vector
        settings, arrays, kind = dict(layer.entry[3]), dict(layer.arrays), layer.kind
        if kind == "conv":  # of a single cell
            kind, settings = "dense", {key: settings[key] for key in ("inputs", "outputs", "bias") if key in settings}
        if window is not None and kind in ("dense", "batch_norm"):
            rows = {name: window if name in ORDERED[kind] else None for name in arrays}
            arrays = {
                name: (array, Layout(layout.kernel_order, layout.flipped, rows[name]), value)
                for name, (array, layout, value) in arrays.items()
            }
            window = None if kind == "dense" else window
        head.append(replace(layer, entry=(layer.name, kind, (), settings), arrays=arrays))
    return _chained(head)


ORDERED = {"dense": ("weight",), "batch_norm": ("weight", "bias", "running_mean", "running_var")}


def _chained(head: list[Layer]) -> list[Layer]:
    """Return the layers with each reading the one before."""
    before: tuple[str, ...] = ()
    for layer in head:
        name, kind, _, settings = layer.entry
        layer.entry = (name, kind, before, settings)
        before = (name,)
    return head

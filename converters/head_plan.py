"""Which dense layers follow the convolutions, what reads the feature map, and which activations lie between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converters.keras_file import KerasFile, KerasLayer
from converters.model_config import Node
from converters.plans import Wishes
from converters.recognition import Found, head_names

READS = {"Flatten": "flatten", "GlobalAveragePooling2D": "average", "GlobalMaxPooling2D": "max"}
CHAIN = ("Dense", "Activation", "BatchNormalization", "ReLU", "LeakyReLU", "ELU", "Softmax", "AveragePooling2D")
IDENTITIES = ("Dropout", "SpatialDropout2D", "SpatialDropout1D", "GaussianNoise", "GaussianDropout", "AlphaDropout",
              "ActivityRegularization", "Identity", "InputLayer")  # fmt: skip
PLAIN = {"relu": "relu", "relu6": "relu6", "selu": "selu", "gelu": "gelu", "silu": "silu", "swish": "silu",
         "sigmoid": "sigmoid", "tanh": "tanh", "softplus": "softplus"}  # fmt: skip
MAPS = ("MaxPooling2D", "Concatenate", "Add", "Merge")  # what a convolutional part may end with
OUTPUTS = {"softmax": "softmax", "sigmoid": "sigmoid", "linear": "none"}
KERAS_EPSILON = 1e-3  # of batch normalisation, Keras's default

Step = tuple[Any, ...]


@dataclass(frozen=True)
class Head:
    """The layers after the convolutions.

    Attributes:
        steps: as `convnets_torch.networks.heads` has them; empty for no head.
        layers: our module -> their layer.
        activation: of the outputs; None where the file does not say it.
        flatten: the Flatten in the model's config, where there is one.
        choices: what was chosen for want of better.
    """

    steps: tuple[Step, ...]
    layers: Mapping[str, KerasLayer]
    activation: str | None
    flatten: Node | None = None
    choices: tuple[str, ...] = ()

    @property
    def units(self) -> int | None:
        """Of the last dense layer."""
        return next((step[1] for step in reversed(self.steps) if step[0] == "dense"), None)

    @property
    def essence(self) -> tuple[Step, ...]:
        """The steps that change numbers: two heads of one essence answer alike."""
        return tuple(step for step in self.steps if step[0] != "dropout")


def head_of_graph(file: KerasFile, found: Found, graph: Sequence[Node], wishes: Wishes) -> Head:
    """The head that a model's config ends with.

    Raises:
        ValueError: the user says what the config says.
        ValueError: the end of the model is not a chain of known layers.
    """
    if wishes.hidden_activation is not None:
        raise ValueError(
            f"{file.path}: its config says what lies between the dense layers; leave out the hidden activation"
        )
    base = {(layer.parents, layer.name) for layer in found.base.values()} | {
        (layer.name,) for layer in found.base.values()
    }
    chain: list[Node] = []
    place = len(graph) - 1
    while True:
        node = graph[place]
        at_base = (node.parents, node.name) in base or (node.name,) in base
        if at_base or len(node.inputs) != 1 or node.kind not in (*READS, *IDENTITIES, *CHAIN):
            break
        chain.insert(0, node)
        place = node.inputs[0]
    reader = next((number for number, node in enumerate(chain) if node.kind in READS), None)
    if reader is None:
        if any(node.kind == "Dense" for node in chain):
            if not at_base and node.kind not in MAPS:
                raise ValueError(f"{file.path}: its head has {node.name} ({node.kind}), which is not read")
            raise ValueError(f"{file.path}: its head has a dense layer on a map, without Flatten or pooling before it")
        pooled = [node for node in chain if node.kind == "AveragePooling2D"]
        return Head((), {}, None, choices=_left_out(pooled))
    if not at_base and graph[place].kind not in MAPS:
        weighted = {layer.name for layer in file.weighted} - {layer.name for layer in found.base.values()}
        if graph[place].name in weighted:
            raise ValueError(f"{file.path}: its head has {graph[place].name} ({graph[place].kind}), which is not read")
    reads = READS[chain[reader].kind]
    if reads == "flatten" and reader and chain[reader - 1].kind == "AveragePooling2D":
        reads, reader = "average", reader  # of the whole window, which the network's shapes check
    head = [node for node in chain[reader + 1 :] if node.kind not in READS]
    flatten = chain[reader] if reads == "flatten" else None
    return _from_nodes(file, reads, head, flatten, chain)


def _left_out(nodes: Sequence[Node]) -> tuple[str, ...]:
    """The note on what a model without dense layers does to its feature map at its end."""
    names = ", ".join(node.name for node in nodes)
    return (f"the model ends with {names}, which is left out: features are the map before it",) if names else ()


def _from_nodes(file: KerasFile, reads: str, nodes: Sequence[Node], flatten: Node | None, read: Sequence[Node]) -> Head:
    by_key = {(layer.parents, layer.name): layer for layer in file.weighted}
    by_name = {layer.name: layer for layer in file.weighted}
    steps: list[Step] = [(reads,)]
    layers: dict[str, KerasLayer] = {}
    activation = "linear"
    for node in nodes:
        layer = by_key.get((node.parents, node.name)) or by_name.get(node.name)
        if layer is not None and node.kind in ("Dense", "BatchNormalization") and layer.kind != node.kind:
            raise ValueError(f"{file.path}: {node.name} is {node.kind} in its config, but has other arrays")
        if node.kind in ("Dense", "BatchNormalization"):
            steps += _activation_step(file, activation)
            activation = "linear"
            if node.config.get("mode", 0) != 0:
                raise ValueError(
                    f"{file.path}: {node.name} of its head normalises in mode {node.config['mode']}; 0 is read"
                )
            if layer is None:
                raise ValueError(f"{file.path} is not complete: {node.name} of its config has no arrays")
            kind, short = ("dense", "dense") if node.kind == "Dense" else ("batch_norm", "bn")
            count = 1 + sum(step[0] == kind for step in steps)
            layers[f"head.{short}_{count}"] = layer
            if kind == "dense":
                steps.append((kind, layer.arrays["kernel"].shape[-1]))
                activation = _activation(node.config.get("activation"))
            else:
                steps.append((kind, float(node.setting("epsilon", default=KERAS_EPSILON))))
        elif node.kind == "Dropout":
            steps += _activation_step(file, activation)
            activation = "linear"
            steps.append(("dropout", float(node.setting("rate", "p", default=0.5))))
        elif node.kind not in IDENTITIES:
            steps += _activation_step(file, activation)
            activation = _activation_of_layer(file, node)
    if len(steps) == 1 and not layers:
        return Head((), {}, None, flatten, _left_out([node for node in read if node.kind in READS]))
    if not any(step[0] == "dense" for step in steps):
        raise ValueError(
            f"{file.path}: its head has no dense layer; only the convolutional part of such models is read"
        )
    if activation not in OUTPUTS:
        raise ValueError(f"{file.path}: its outputs have the activation {activation!r}; known: {', '.join(OUTPUTS)}")
    return Head(tuple(steps), layers, OUTPUTS[activation], flatten)


def _activation(value: Any) -> str:
    if isinstance(value, Mapping):  # Keras 3 writes some as objects
        value = value.get("config", {}).get("name") if isinstance(value.get("config"), Mapping) else value.get("config")
    return "linear" if value is None else str(value)


def _activation_of_layer(file: KerasFile, node: Node) -> str:
    if node.kind == "Activation":
        return _activation(node.config.get("activation"))
    plain = {"ReLU": "relu", "Softmax": "softmax"}
    if node.kind in plain and not any(node.config.get(key) for key in ("max_value", "negative_slope", "threshold")):
        return plain[node.kind]
    if node.kind == "LeakyReLU":
        return f"leaky_relu {_number(node.setting('negative_slope', 'alpha', default=0.3))}"
    if node.kind == "ELU":
        return f"elu {_number(node.setting('alpha', default=1.0))}"
    raise ValueError(f"{file.path}: its head has {node.name} ({node.kind}), which is not read")


def _number(value: Any) -> float:
    """A number; Keras 1 wrote some as {"type": "ndarray", "value": 0.3}."""
    return float(value["value"] if isinstance(value, Mapping) else value)


def _activation_step(file: KerasFile, activation: str) -> list[Step]:
    """The step of an activation between two layers."""
    name, _, number = activation.partition(" ")
    if name == "linear":
        return []
    if name in PLAIN:
        return [(PLAIN[name],)]
    if name in ("elu", "leaky_relu"):
        return [(name, float(number or {"elu": 1.0, "leaky_relu": 0.2}[name]))]
    raise ValueError(
        f"{file.path}: its head has the activation {activation!r} between layers; known: linear, elu, leaky_relu, "
        + ", ".join(PLAIN)
    )


def head_of_arrays(file: KerasFile, found: Found, channels: int, wishes: Wishes) -> Head:
    """The head of a file without config: dense layers and batch normalisations in the order of the file.

    Args:
        channels: of the feature map.

    Raises:
        ValueError: a layer is of another kind, or the rows of the first fit no window.
    """
    layers = found.rest
    if found.standard_head and file.named:  # others are said to be unknown, with all that is wrong
        layers = tuple(layer for layer in layers if layer.name in head_names(found.lineage))
    for layer in layers:
        if layer.kind not in ("Dense", "BatchNormalization"):
            raise ValueError(f"{file.path} is not a complete {found.lineage.network}: {layer.name} is unknown")
    if not any(layer.kind == "Dense" for layer in layers):
        return Head((), {}, None)
    choices: list[str] = []
    if file.container in ("weights", "archive"):
        layers = _by_sizes(layers, choices)
    reads = _reads(file, found, layers, channels, choices)
    hidden = wishes.hidden_activation or "relu"
    _activation_step(file, hidden)
    if sum(layer.kind == "Dense" for layer in layers) > 1 and not (wishes.hidden_activation or found.standard_head):
        choices.append(
            "relu is taken between the dense layers, which the file does not say; --hidden-activation decides otherwise"
        )
    steps: list[Step] = [(reads,)]
    placed: dict[str, KerasLayer] = {}
    last = next(layer for layer in reversed(layers) if layer.kind == "Dense")
    pending: list[Step] = []  # the activation of a dense layer whose normalisation comes first
    for place, layer in enumerate(layers):
        kind, short = ("dense", "dense") if layer.kind == "Dense" else ("batch_norm", "bn")
        placed[f"head.{short}_{1 + sum(step[0] == kind for step in steps)}"] = layer
        if kind == "dense":
            steps.append((kind, layer.arrays["kernel"].shape[-1]))
            following = layers[place + 1] if place + 1 < len(layers) else layer
            step = [] if layer is last else _activation_step(file, hidden)
            normalised_first = following.kind == "BatchNormalization" and "bias" not in layer.arrays
            if normalised_first:
                pending = step
            else:
                steps += step
        else:
            steps += [(kind, KERAS_EPSILON), *pending]
            pending = []
            choices.append(f"{layer.name} is taken to have Keras's own epsilon, {KERAS_EPSILON:g}")
    return Head(tuple(steps), placed, None, choices=tuple(choices))


def _reads(file: KerasFile, found: Found, layers: Sequence[KerasLayer], channels: int, choices: list[str]) -> str:
    """How the feature map becomes a vector: by the rows of the first dense layer, and the names of the layers."""
    rows = next(layer.arrays["kernel"].shape[0] for layer in layers if layer.kind == "Dense")
    if rows != channels:
        return "flatten"
    names = [layer.name.replace("_", "") for layer in file.layers]
    if any(name.startswith("globalmaxpooling2d") for name in names):
        return "max"
    if not found.standard_head and not any(name.startswith(("globalaveragepooling2d", "avgpool")) for name in names):
        choices.append("the feature map is averaged before the dense layers, which have a row for each channel")
    return "average"


def _by_sizes(layers: Sequence[KerasLayer], choices: list[str]) -> tuple[KerasLayer, ...]:
    """In the order that sizes allow, where the file counts each class by itself: a normalisation as soon as it can."""
    dense = [layer for layer in layers if layer.kind == "Dense"]
    normalisations = [layer for layer in layers if layer.kind == "BatchNormalization"]
    if not normalisations:
        return tuple(dense)
    choices.append("normalisations stand where their sizes fit first, which the file does not say")
    ordered: list[KerasLayer] = []
    width = dense[0].arrays["kernel"].shape[0]
    for layer in [*dense, None]:
        while normalisations and normalisations[0].arrays["moving_mean"].shape == (width,):
            ordered.append(normalisations.pop(0))
        if layer is not None:
            ordered.append(layer)
            width = layer.arrays["kernel"].shape[-1]
    return (*ordered, *normalisations)

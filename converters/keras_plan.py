"""Plan the conversion of a Keras file: map every array to a parameter, check every shape and setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from converters.checks import differences, epsilons, exchanged, listed_front, reads_pixels, stride_place
from converters.graph_plan import plan_graph
from converters.head_plan import Head, head_of_arrays, head_of_graph
from converters.listed import Listed, listed_around
from converters.names import Found, Lineage, base_names, head_names, recognise
from converters.options import (
    check_data_format,
    check_size,
    guessed_size,
    input_size,
    map_shape,
    settle_activation,
    settle_backend,
    settle_kernel_order,
    settle_pool_padding,
    settle_preprocessing,
    settle_rows,
)
from converters.plan import KerasStep, Layout, Plan, Row, Wishes, change, refuse
from converters.proof.architectures import graph_of_lineage
from converters.readers.keras_file import KerasFile, KerasLayer, KernelOrder
from converters.readers.keras_graph import Graph, graph_of_config
from converters.weights_only import PAPER, derive, network_of, with_config
from convnets_torch.networks import CATALOG, Network
from convnets_torch.weights import build

ROLES = {
    "weight": ("kernel", "gamma"),
    "bias": ("bias", "beta"),
    "running_mean": ("moving_mean",),
    "running_var": ("moving_variance",),
}
ABSENT = {"weight": 1.0, "bias": 0.0, "num_batches_tracked": 0.0}  # values of arrays that a file may omit

Shape = tuple[int, ...]


def plan_keras(file: KerasFile, wishes: Wishes | None = None) -> Plan:
    """Recognise the network of a file and check all of it, without reading a weight.

    Args:
        file: the file's description.
        wishes: the user's options, for what the file does not specify.

    Raises:
        ValueError: the network is unknown; arrays are missing, superfluous or of a wrong shape (all are named); the
            config describes another network; or a required option is specified neither by the file nor by the user.
    """
    try:
        return _plan(file, wishes or Wishes())
    except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        if file.config is None:
            raise  # without untrusted config this is a bug in our code
        raise ValueError(
            f"{file.path}: its model config is incomplete or malformed ({error!r:.200}); save the model again"
        ) from None


def plan_any(file: KerasFile, wishes: Wishes) -> tuple[KerasFile, Plan]:
    """Plan a file as one of the paper networks, or else as the graph that its config describes.

    Returns:
        The file, with the config that was derived if it has none; and the plan.

    Raises:
        ValueError: as `plan_keras` for a paper network, as `derive` and `plan_graph` for any other model.
    """
    if file.config is not None:
        return file, _plan_model(file, wishes)
    network = network_of(file)
    if network in PAPER or (network is None and _is_paper(file)):  # planned by their names
        if wishes.output is not None or wishes.until is not None:
            raise ValueError(
                f"{file.path} holds no model config, so no layer to cut at; leave out --output-layer and --until"
            )
        return file, plan_keras(file, wishes)
    derived = derive(file, wishes)
    file = with_config(file, derived.config)
    plan = plan_graph(file, derived.wishes)
    return file, replace(plan, choices=(*derived.notes, *plan.choices))


def _plan_model(file: KerasFile, wishes: Wishes) -> Plan:
    if wishes.output is not None or wishes.until is not None:
        return plan_graph(file, wishes)
    try:
        return plan_keras(file, wishes)
    except ValueError as error:
        refused = error
    try:
        return plan_graph(file, wishes)
    except ValueError as error:
        raise (refused if _is_paper(file) else error) from None


def _is_paper(file: KerasFile) -> bool:
    """Return whether a file's layers are those of a paper network, complete or not."""
    try:
        recognise(file)
    except ValueError:
        return False
    return True


def _plan(file: KerasFile, wishes: Wishes) -> Plan:
    found = recognise(file)
    graph = _graph(file)
    arguments, order = _base(file, found)
    lineage = found.lineage
    choices = (
        []
        if file.named
        else [f"{lineage.network} is inferred from the number and shapes of the layers, which have no names"]
    )
    if lineage.network == "resnet50":
        padding, chosen = settle_pool_padding(file, lineage, graph, wishes)
        arguments |= {"pool_padding": padding, "stride_in": stride_place(graph)}
        arguments["epsilon"] = lineage.epsilon
        choices += chosen
    elif wishes.pool1_padding is not None:
        raise ValueError(f"{file.path} is {lineage.network}, whose first pooling is known; leave out --pool1-padding")
    if graph is not None and (found_epsilons := epsilons(graph, found)):
        if len(found_epsilons) > 1:
            raise ValueError(f"{file.path}: its batch normalisations have several epsilons: {sorted(found_epsilons)}")
        arguments["epsilon"] = found_epsilons.pop()
    size = input_size(file, graph)
    if size is not None and wishes.input_size not in (None, size):
        raise ValueError(f"{file.path} says that its input is {size[0]}x{size[1]} pixels; leave out the input size")
    size = check_size(file, size or wishes.input_size)
    listed = _listed(file, found, arguments)
    head = _head(file, found, graph, listed, arguments, size, wishes)
    arguments, rows = _with_head(file, found, head, arguments, size)
    network = build(lineage.network, arguments)
    layers = _placed(lineage, found, head, network)
    problems = _problems(network, layers, order, found)
    problems += [f"{place} is an array that belongs to no layer" for place in file.unlisted]
    problems += exchanged(file, found)
    if graph is not None and not problems:
        renamed = {"pool_padding": "pool1_padding", "epsilon": "epsilon", "stride_in": "stride_in"}
        problems = differences(
            file,
            found,
            graph,
            network.window,
            theano="theano" in (file.backend, wishes.backend),
            headless=not head.steps,
            **{name: arguments[key] for key, name in renamed.items() if key in arguments},
        )
    refuse(file.path, lineage.network, problems)
    check_data_format(file, wishes)
    backend, chosen = settle_backend(file, lineage.name, wishes)
    choices += [*head.choices, *chosen]
    window, data_format = None, file.data_format
    if rows is not None:
        permuted, data_format, chosen = settle_rows(file, order, head.flatten, wishes)
        choices += chosen
        window = rows if permuted else None
    released = "head" not in arguments and (lineage.name == "convnets-keras" or head.units in (None, 1000))
    front = reads_pixels(file, graph, found, wishes.preprocessing is not None)
    if listed is not None and listed.front:
        front = None, listed_front(file, listed.front, wishes)
    rule, chosen = settle_preprocessing(
        file,
        network,
        lineage.network,
        front,
        wishes,
        released=released,
        preset_name=lineage.preset,
    )
    choices += chosen
    known = found.standard_head and head.units == 1000  # a released head, which ends with softmax
    activation, chosen = settle_activation(file, head, wishes, known=known)
    choices += chosen
    flattened = _flattened(network)
    steps = [
        _step(
            layers[parameter.rpartition(".")[0]],
            parameter,
            array,
            Layout(
                order if array.dim() == 4 else None,
                flipped=array.dim() == 4 and backend == "theano",
                window=window if parameter in flattened and array.dim() else None,
            ),
        )
        for parameter, array in network.state_dict().items()
    ]
    return Plan(
        network=lineage.network,
        arguments=arguments,
        framework=file.framework,
        backend=backend,
        preprocessing=rule,
        steps=tuple(steps),
        activation=activation,
        data_format=data_format,
        choices=tuple(choices),
        lineage=lineage.name,
        rescales=front[0] is not None,
        hidden=head.hidden,
    )


def _flattened(network: Network) -> set[str]:
    """Return the parameters indexed by the flattened window: all up to and including the first dense kernel."""
    flattened: set[str] = set()
    for name, layer in (network.head or nn.Sequential()).named_children():
        if isinstance(layer, nn.Linear):
            return {*flattened, f"head.{name}.weight"}
        flattened |= {f"head.{name}.{parameter}" for parameter in layer.state_dict()}
    return flattened


def _graph(file: KerasFile) -> Graph | None:
    if file.config is None:
        return None
    graph = graph_of_config(file)
    for name, count in graph.calls.items():
        shared = graph[name].own_name
        raise ValueError(f"{file.path}: the model calls {shared} {count} times; shared layers are not supported")
    return graph


# The convolutional part


def _base(file: KerasFile, found: Found) -> tuple[dict[str, Any], KernelOrder]:
    """Return the builder's arguments without a head and the kernel order, chosen so that most layers fit."""
    network = found.lineage.network
    fits: dict[KernelOrder, int] = {}
    best: dict[KernelOrder, dict[str, Any]] = {}
    for order in ("oihw", "hwio"):
        # The file may hold a narrower network, but a single wrong layer must not make the standard one look narrow.
        standard = {key: value for key, value in CATALOG[network].standard.items() if key != "hidden"}
        standard["classes"] = None
        inferred = standard | {"widths": _widths(found, order, standard["widths"])}
        counted = {id(one): _fitting(found, network, one, order) for one in (standard, inferred)}
        best[order] = max((standard, inferred), key=lambda one: counted[id(one)])
        fits[order] = max(counted.values())
    order = settle_kernel_order(file, fits)
    return best[order], order


def _widths(found: Found, order: KernelOrder, standard: Sequence[int]) -> tuple[int, ...]:
    """Return the output channels that determine `widths`; the standard width where a layer is missing."""
    widths = []
    for module, width in zip(found.lineage.widths, standard, strict=True):
        shapes = [_shape(found.base.get(name), "kernel") for name in found.lineage.layers[module]]
        whole = all(len(shape) == 4 for shape in shapes)
        widths.append(sum(shape[0 if order == "oihw" else 3] for shape in shapes) if whole else width)
    return tuple(widths)


def _shape(layer: KerasLayer | None, role: str) -> Shape:
    return layer.arrays[role].shape if layer is not None and role in layer.arrays else ()


def _fitting(found: Found, network: str, arguments: Mapping[str, Any], order: KernelOrder) -> int:
    """Return how many layers of the convolutional part have the network's shapes."""
    try:
        built = build(network, arguments)
    except ValueError:  # impossible widths, inferred from a wrong layer
        return -1
    layers = {module: _theirs(found, names) for module, names in found.lineage.layers.items() if not _of_head(module)}
    return sum(
        bool(theirs) and _wanted(built, module, len(theirs), order) == _found(theirs[0])
        for module, theirs in layers.items()
    )


def _of_head(module: str) -> bool:
    return module.startswith("head.")


def _theirs(found: Found, names: Sequence[str]) -> tuple[KerasLayer, ...]:
    return tuple(found.base[name] for name in names if name in found.base)


# The head


def _head(
    file: KerasFile,
    found: Found,
    graph: Graph | None,
    listed: Listed | None,
    arguments: Mapping[str, Any],
    size: tuple[int, int] | None,
    wishes: Wishes,
) -> Head:
    if graph is not None:
        return head_of_graph(file, found, graph, wishes)
    channels, *_ = map_shape(file, build(found.lineage.network, dict(arguments)), size)
    return head_of_arrays(file, found, listed, channels, wishes)


def _listed(file: KerasFile, found: Found, arguments: Mapping[str, Any]) -> Listed | None:
    """Return the layers that a file without config lists around the network; None if network layers are missing."""
    if file.config is not None or set(base_names(found.lineage)) - found.base.keys():
        return None
    base = {id(layer) for layer in found.base.values()}
    alone = replace(file, layers=tuple(layer for layer in file.layers if id(layer) in base))
    padding, lineage = arguments.get("pool_padding"), found.lineage
    graph = graph_of_lineage(
        alone, lineage.network, "channels_last", lineage=lineage.name, pool1_padding=padding, head=()
    )
    return listed_around(file, graph)


def _with_head(
    file: KerasFile, found: Found, head: Head, arguments: dict[str, Any], size: tuple[int, int] | None
) -> tuple[dict[str, Any], tuple[int, int, int] | None]:
    """Return the builder's arguments with head and input size, and the window (channels, h, w) that a Flatten reads."""
    name = found.lineage.network
    network = build(name, arguments)
    channels, *window = map_shape(file, network, None)
    if size is not None and size != network.size:
        arguments = arguments | {"size": size}
        channels, *window = map_shape(file, network, size)
    if not head.steps:
        return arguments, None
    arguments = arguments | {"classes": head.units}
    reads = head.steps[0][0]
    first = next(layer for module, layer in head.layers.items() if module.startswith("head.dense"))
    rows = first.arrays["kernel"].shape[0]
    if reads == "flatten" and size is None and rows != channels * window[0] * window[1]:
        arguments, window = guessed_size(file, found, network, arguments, rows, channels)
    standard, hidden = _standard_steps(name, head)
    if standard is not None and head.essence == standard:
        if hidden is not None:
            arguments["hidden"] = hidden
    else:
        arguments["head"] = head.steps
    return arguments, (channels, window[0], window[1]) if reads == "flatten" else None


def _standard_steps(network: str, head: Head) -> tuple[tuple[Any, ...] | None, tuple[int, int] | None]:
    """Return the standard head's steps with this head's units, and the units of its hidden layers."""
    units = [step[1] for step in head.steps if step[0] == "dense"]
    if "hidden" not in CATALOG[network].standard:
        return ((("average",), ("dense", units[-1])) if units else None), None
    if len(units) != 3:
        return None, None
    steps = (("flatten",), ("dense", units[0]), ("relu",), ("dense", units[1]), ("relu",), ("dense", units[2]))
    return steps, (units[0], units[1])


# Mapping and checks


def _placed(lineage: Lineage, found: Found, head: Head, network: Network) -> dict[str, tuple[KerasLayer, ...]]:
    """Return our module -> Keras layers, in network order; missing layers are left out."""
    placed = {module: _theirs(found, names) for module, names in lineage.layers.items() if not _of_head(module)}
    for module in _modules(network):
        if _of_head(module):
            placed[module] = (head.layers[module],) if module in head.layers else ()
    return {module: placed[module] for module in _modules(network)}


def _modules(network: Network) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] for name in network.state_dict()))


def _found(layer: KerasLayer) -> dict[str, Shape]:
    return {role: array.shape for role, array in layer.arrays.items()}


def _wanted(network: Network, module: str, groups: int, order: KernelOrder) -> dict[str, Shape]:
    """Return role -> expected shape for one Keras layer, `groups` of which make up a module."""
    layer = network.get_submodule(module)
    if isinstance(layer, nn.Conv2d):
        outputs, inputs, height, width = layer.weight.shape
        outputs //= groups
        kernel = (outputs, inputs, height, width) if order == "oihw" else (height, width, inputs, outputs)
        return {"kernel": kernel} | ({"bias": (outputs,)} if layer.bias is not None else {})
    if isinstance(layer, nn.Linear):
        return {"kernel": (layer.in_features, layer.out_features), "bias": (layer.out_features,)}
    features = int(layer.num_features)  # type: ignore[arg-type]
    return dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), (features,))


def _problems(
    network: Network, layers: Mapping[str, tuple[KerasLayer, ...]], order: KernelOrder, found: Found
) -> list[str]:
    """Describe every layer that is missing, unknown or of a wrong shape."""
    used = {id(layer) for theirs in layers.values() for layer in theirs}
    table = found.lineage.layers
    problems = [f"{name} is missing" for name in base_names(found.lineage) if name not in found.base]
    if found.standard_head:
        names = {layer.name for layer in found.rest}
        if len(found.rest) != len(head_names(found.lineage)):
            problems += [f"{name} is missing" for name in head_names(found.lineage) if name not in names]
    problems += [f"{layer.name} is unknown" for layer in found.rest if id(layer) not in used]
    for module, theirs in layers.items():
        if len(theirs) != len(table.get(module, theirs)):
            continue  # already reported as missing
        wanted = _wanted(network, module, max(1, len(theirs)), order)
        for layer in theirs:
            shapes = _found(layer)
            optional = {role for role in ("gamma", "beta") if role not in shapes}
            if isinstance(network.get_submodule(module), nn.Linear):
                optional |= {"bias"} - set(shapes)
            if shapes != {role: shape for role, shape in wanted.items() if role not in optional}:
                problems.append(_difference(network, module, layer.name, shapes, wanted))
    return problems


def _difference(
    network: Network, module: str, name: str, found: Mapping[str, Shape], wanted: Mapping[str, Shape]
) -> str:
    rows = [shapes.get("kernel", ())[:1] for shapes in (found, wanted)]
    if (
        len(wanted["kernel" if "kernel" in wanted else "beta"]) == 2
        and rows[0] != rows[1]
        and len(found) == len(wanted)
    ):
        height, width = network.window
        if module == "head.dense_1" and rows[1][0] % (height * width) == 0 and len(found["kernel"]) == 2:
            block = f"{rows[1][0] // height // width}x{height}x{width}"
            return f"{name} has {rows[0][0]} rows, but a {block} block flattens to {rows[1][0]}"
    return f"{name} is {' '.join(map(str, found.values()))}, not {' '.join(map(str, wanted.values()))}"


def _step(theirs: tuple[KerasLayer, ...], parameter: str, ours: Tensor, layout: Layout) -> KerasStep:
    role = parameter.rpartition(".")[2]
    arrays = [layer.arrays[name] for layer in theirs for name in ROLES.get(role, ()) if name in layer.arrays]
    source = " + ".join(layer.name for layer in theirs)
    shape = tuple(ours.shape)
    if not arrays:
        return KerasStep(Row(source, parameter, shape, f"set to {ABSENT[role]:g}"), (), layout, ABSENT[role])
    words = []
    if layout.kernel_order == "hwio":
        words.append("transposed")
    if layout.flipped:
        words.append("flipped")
    if len(shape) == 2 and layout.window is None:
        words.append("transposed")
    if layout.window is not None:
        words.append("permuted")
    if len(arrays) > 1:
        words.append("concatenated")
    return KerasStep(Row(source, parameter, shape, change(words, arrays[0].dtype)), tuple(arrays), layout)

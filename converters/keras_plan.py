"""Plan the conversion of a Keras file: recognise the network, give every array its place, check every shape."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from converters.keras_h5 import KerasFile, KerasLayer
from converters.layouts import flip, transpose_dense
from converters.names import CONVNETS_KERAS, WIDTH_LAYERS, LayerTable
from converters.plans import Plan, Row, Step, refuse
from convnets_torch.networks import Network, alexnet, vgg
from convnets_torch.weights import build

BACKENDS = ("theano", "tensorflow")
BLOCK = 1_000_000  # values of a dense kernel that are read at once, 4 MB: transposed within the cache

STANDARD: dict[str, dict[str, Any]] = {
    "alexnet": {"classes": 1000, "widths": alexnet.WIDTHS, "hidden": alexnet.HIDDEN, "lrn": alexnet.LRN},
    "vgg16": {"classes": 1000, "widths": vgg.WIDTHS, "hidden": vgg.HIDDEN},
    "vgg19": {"classes": 1000, "widths": vgg.WIDTHS, "hidden": vgg.HIDDEN},
}

Layers = dict[str, KerasLayer]  # by the names of the table, in the order of the file


def plan_keras(file: KerasFile, backend: str | None = None) -> Plan:
    """Recognise the network of a file and check all of it, without reading a weight.

    Args:
        file: open, as its datasets are read when the steps of the plan are carried out.
        backend: "theano" or "tensorflow"; needed where neither the file nor its lineage says it.

    Raises:
        ValueError: the network is not known; arrays are missing, superfluous or of a wrong shape (all are
            named); the backend is not known, or another than the file says.
    """
    network = _recognise(file)
    table = CONVNETS_KERAS[network]
    names = [layer.name for layer in file.layers] if file.named else _layer_names(table)
    layers = dict(zip(names, file.layers, strict=True))
    if len(layers) < len(file.layers):
        raise ValueError(f"{file.path} lists a layer twice; download it again")
    _refuse_channels_last(file, layers)
    # The file may be narrow, or have other classes; a single wrong layer must not make it look so.
    candidates = [STANDARD[network], _inferred(network, table, layers)]
    problems, arguments = min(
        ((_problems(network, arguments, table, layers), arguments) for arguments in candidates),
        key=lambda pair: len(pair[0]),
    )
    refuse(file.path, network, problems + [f"{name} is an array that no layer lists" for name in file.unlisted])
    backend = _backend(file, backend)
    steps = []
    for parameter, array in build(network, arguments).state_dict().items():
        module, _, role = parameter.rpartition(".")
        sources = [layers[name] for name in table[module]]
        steps.append(_step(sources, parameter, tuple(array.shape), role, flipped=backend == "theano"))
    return Plan(network, arguments, file.framework, backend, tuple(steps))


def _recognise(file: KerasFile) -> str:
    """The network whose layers resemble the file's most; without names (Keras 0.x), the VGG with as many layers."""
    if file.named:
        found = {layer.name for layer in file.layers}
        best, agreement = "", 0.0
        for network, table in CONVNETS_KERAS.items():
            wanted = set(_layer_names(table))
            if (share := len(wanted & found) / len(wanted | found)) > agreement:
                best, agreement = network, share
        if agreement >= 0.5:
            return best
    else:
        for network in ("vgg16", "vgg19"):
            if len(file.layers) == len(_layer_names(CONVNETS_KERAS[network])):
                return network
    held = ", ".join(f"{layer.name} {' '.join(map(str, _shapes(layer)))}" for layer in file.layers)
    raise ValueError(
        f"{file.path}: the network is not known here (known: {', '.join(CONVNETS_KERAS)});"
        f" its layers with weights are: {held or 'none'}"
    )


def _layer_names(table: LayerTable) -> list[str]:
    return [name for names in table.values() for name in names]


def _shapes(layer: KerasLayer) -> list[tuple[int, ...]]:
    return [tuple(dataset.shape) for dataset in layer.arrays.values()]


def _refuse_channels_last(file: KerasFile, layers: Layers) -> None:
    """Kernels (height, width, in, out) are another convention, with another order of the first dense rows."""
    first = next(iter(layers), "")
    shape, *rest = _shapes(layers[first]) if layers else [()]
    if len(shape) == 4 and rest == [shape[3:]] and shape[0] != shape[3]:
        raise ValueError(
            f"{file.path}: {first} is {shape}, a channels-last kernel (height, width, in, out);"
            " only channels-first files (Keras 1 with 'th' ordering) are read so far"
        )


def _inferred(network: str, table: LayerTable, layers: Layers) -> dict[str, Any]:
    """The builder's arguments as the shapes in the file suggest them; the standard where a layer is missing."""

    def outputs(module: str, axis: int, standard: int) -> int:
        shapes = [_shapes(layers[name])[0] for name in table[module] if name in layers]
        fits = len(shapes) == len(table[module]) and all(len(shape) > axis for shape in shapes)
        return sum(shape[axis] for shape in shapes) if fits else standard

    standard = STANDARD[network]
    widths = zip(WIDTH_LAYERS[network], standard["widths"], strict=True)
    dense = [outputs(f"head.dense_{number}", 1, standard["hidden"][number - 1]) for number in (1, 2)]
    return standard | {
        "classes": outputs("head.dense_3", 1, standard["classes"]),
        "widths": tuple(outputs(module, 0, width) for module, width in widths),
        "hidden": tuple(dense),
    }


def _problems(network: str, arguments: dict[str, Any], table: LayerTable, layers: Layers) -> list[str]:
    """Every layer that is missing, unknown or of a wrong shape, each in a few words."""
    try:
        built = build(network, arguments)
    except ValueError:  # widths that no network can have, inferred from a wrong layer
        return [f"{name} does not fit" for name in layers]
    known = _layer_names(table)
    problems = [f"{name} is missing" for name in known if name not in layers]
    problems += [f"{name} is unknown" for name in layers if name not in known]
    shapes = {name: tuple(array.shape) for name, array in built.state_dict().items()}
    for module, names in table.items():
        kernel, bias = shapes[f"{module}.weight"], shapes[f"{module}.bias"]
        wanted = [kernel[::-1] if len(kernel) == 2 else (kernel[0] // len(names), *kernel[1:])]
        wanted.append((bias[0] // len(names),))
        for name in names:
            if name in layers and (found := _shapes(layers[name])) != wanted:
                problems.append(_difference(built, name, found, wanted))
    return problems


def _difference(built: Network, name: str, found: list[tuple[int, ...]], wanted: list[tuple[int, ...]]) -> str:
    if len(found) == len(wanted) and name == "dense_1" and len(found[0]) == 2 and found[0][0] != wanted[0][0]:
        rows, (height, width) = wanted[0][0], built.window
        block = f"{rows // height // width}x{height}x{width}"
        return f"{name} has {found[0][0]} rows, but a {block} block flattens to {rows}"
    return f"{name} is {' '.join(map(str, found))}, not {' '.join(map(str, wanted))}"


def _backend(file: KerasFile, chosen: str | None) -> str:
    if chosen is not None and chosen not in BACKENDS:
        raise ValueError(f"unknown backend {chosen!r}; known: {', '.join(BACKENDS)}")
    if file.backend is not None:
        if file.backend not in BACKENDS:
            raise ValueError(f"{file.path} was trained with {file.backend!r}; known: {', '.join(BACKENDS)}")
        if chosen not in (None, file.backend):
            raise ValueError(f"{file.path} says that {file.backend} trained it, not {chosen}; leave out the backend")
        return file.backend
    if chosen is not None:
        return chosen
    if file.named:
        return "theano"  # the lineage of these layer names
    raise ValueError(
        f"{file.path}: files of Keras 0.x do not say which backend trained them, and kernels of both look alike;"
        " give --backend theano (which trained the widely copied VGG16 and VGG19 files) or --backend tensorflow"
    )


def _step(layers: Sequence[KerasLayer], parameter: str, shape: tuple[int, ...], role: str, *, flipped: bool) -> Step:
    datasets = [list(layer.arrays.values())[0 if role == "weight" else 1] for layer in layers]
    changes = []
    if len(shape) == 4 and flipped:
        changes.append("flipped")
    if len(shape) == 2:
        changes.append("transposed")
    if len(datasets) > 1:
        changes.append("concatenated")
    if datasets[0].dtype != np.float32:
        changes.append(f"{datasets[0].dtype} to float32")
    source = " + ".join(layer.name for layer in layers)
    if len(shape) == 2:
        fill = partial(_fill_dense, datasets[0])
    else:
        fill = partial(_fill_concatenated, datasets, flipped=flipped and len(shape) == 4)
    return Step(Row(source, parameter, shape, ", ".join(changes) or "kept"), fill)


def _fill_concatenated(datasets: Sequence[h5py.Dataset], target: Tensor, *, flipped: bool) -> None:
    """Kernels (out, in, h, w) or biases (out,), those of several groups one after another."""
    start = 0
    for dataset in datasets:
        array = dataset[()]
        target.numpy()[start : start + len(array)] = flip(array) if flipped else array
        start += len(array)


def _fill_dense(dataset: h5py.Dataset, target: Tensor) -> None:
    """A dense kernel block by block, so that the large one of VGG is in memory once and not twice."""
    rows = max(1, BLOCK // dataset.shape[1])
    for start in range(0, dataset.shape[0], rows):
        block = dataset[start : start + rows].astype(np.float32, copy=False)
        target[:, start : start + rows] = torch.from_numpy(transpose_dense(block))

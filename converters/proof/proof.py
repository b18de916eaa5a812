"""Compute a Keras file's layer outputs for one image, independently of the converter, to verify a conversion.

The graph comes from the model's config or, for a weights file, from the architecture as built by Keras's code; the
values come from `numpy_keras`. This module imports neither torch nor h5py nor any code of the converter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters.proof import numpy_keras
from converters.proof.numpy_keras import Array, Meaning, Read, channels_first, compute, format_of
from converters.readers.keras_file import DataFormat, KerasFile
from converters.readers.keras_graph import Graph, graph_of_config, label
from converters.readers.keras_words import ACTIVATIONS, IDENTITIES, activation_of

TOLERANCE = 1e-4  # relative to a layer's largest value; float32 stays well below it through a hundred layers
NOISE = 1e-10  # of the largest value: a layer of smaller ones, such as a normalised constant, is rounding alone

OUTPUT = "(output)"  # of a model whose layers may have any name
ENDS = ("linear", "softmax", "sigmoid")  # activations that may follow the logits


def forward(
    file: KerasFile,
    read: Read,
    image: NDArray[Any],
    *,
    backend: str | None = None,
    data_format: DataFormat | None = None,
    output: str | None = None,
    until: str | None = None,
    final: str | None = None,
    fused: bool = True,
    skipped: Sequence[str] = (),
) -> Iterator[tuple[str, Array]]:
    """Run a file's model on one image.

    Args:
        file: the file's description.
        read: returns the values of an array: anything with a shape whose slices are NumPy arrays.
        image: (height, width, channels), as the model's input expects it: preprocessed, in its channel order.
        backend: backend that trained the weights, "theano" or another; None for the file's.
        data_format: the model's data format; None for the config's or, without config, that of Keras 1's kernels or
            "channels_last".
        output, until: as in `graph_of_config`.
        final: name of the node whose output is yielded last, as `OUTPUT`; by default, that before a softmax or sigmoid.
        fused: whether that is its output after a fused activation.
        skipped: names of nodes whose input is taken for their output.

    Yields:
        The name of each layer with weights and its linear output, before a fused activation: (channels, height, width)
        or (units,). Finally "logits", the output before a softmax or sigmoid, or "features" if the model has no dense
        layer.

    Raises:
        ValueError: an assumption is missing, the layers are not the network's, or a layer is unsupported.
    """
    if (backend := backend or file.backend) is None and file.release[0] < 3:
        raise ValueError(f"{file.path} does not say which backend trained it; give theano or tensorflow")
    if image.ndim != 3:
        raise ValueError(f"the image is {image.shape}; expected (height, width, channels)")
    graph = graph_of_config(file, data_format, output=output, until=until)
    meaning = Meaning(backend == "theano", max(1, file.release[0]), graph.data_format)
    last = numpy_keras.from_channels_last(np.asarray(image, np.float64), graph.data_format)
    readers = Counter(source for node in graph.nodes for source in node.inputs)
    end = final or _end(graph)
    readers[graph.output] += 1
    values: dict[str, Array] = {graph.nodes[0].name: last}
    for node in graph.nodes[1:]:
        sources = [values[source] for source in node.inputs]
        for source in node.inputs:
            readers[source] -= 1
            if not readers[source]:
                del values[source]
        try:
            linear = sources[0] if node.name in skipped else compute(node, sources, read, meaning)
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            raise ValueError(f"{file.path}: layer {node.name} ({node.kind}) cannot be computed: {error}") from None
        layout = meaning.data_format if final else format_of(node, meaning)
        if node.layer is not None and " (call " not in node.name:
            yield label(node.layer, file), channels_first(linear, layout)
        name, settings = activation_of(node.settings) if node.kind not in ACTIVATIONS else ("linear", {})
        values[node.name] = numpy_keras.activate(linear, name, keras=meaning.keras, **settings)
        if node.name == end:
            whole = fused if final else name not in ENDS
            last = channels_first(values[node.name] if whole else linear, layout)
    headless = not any(node.kind == "Dense" for node in graph.nodes)
    yield OUTPUT if final else "features" if headless else "logits", last


def _end(graph: Graph) -> str:
    """Return the name of the logits' node: the last one other than dropout, softmax or sigmoid."""
    node = graph[graph.output]
    while node.inputs and (
        node.kind in (*IDENTITIES, "Softmax") or (node.kind == "Activation" and activation_of(node.settings)[0] in ENDS)
    ):
        node = graph[node.inputs[0]]
    return node.name


@dataclass(frozen=True)
class ProofRow:
    """The error of a converted layer.

    Attributes:
        layer: Keras layer; several layers joined by " + " are the groups of one convolution.
        module: our module.
        error: largest absolute difference divided by `largest`, or by `NOISE` of all layers' largest value if that is
            more.
        largest: largest absolute value of the Keras layer's output.
    """

    layer: str
    module: str
    error: float
    largest: float


def compare(
    ours: Mapping[str, NDArray[Any]], theirs: Mapping[str, NDArray[Any]], table: Mapping[str, Sequence[str]]
) -> list[ProofRow]:
    """Compare the outputs of our modules with those of the Keras layers.

    Args:
        ours: module -> output, (channels, height, width) or (units,).
        theirs: layer -> output, as yielded by `forward`.
        table: our module -> Keras layers, whose outputs are concatenated along the channels.

    Raises:
        ValueError: an output is missing or unused, or two outputs differ in shape.

    >>> compare({"conv": np.ones(2)}, {"a": np.ones(1), "b": np.full(1, 2.0)}, {"conv": ("a", "b")})
    [ProofRow(layer='a + b', module='conv', error=0.5, largest=2.0)]
    """
    absent = [module for module in table if module not in ours]
    absent += [layer for layers in table.values() for layer in layers if layer not in theirs]
    idle = set(theirs) - {layer for layers in table.values() for layer in layers}
    if absent or idle:
        raise ValueError(
            f"the proof lacks the outputs of {absent or 'none'}, and does not use those of {sorted(idle) or 'none'}"
        )
    rows = []
    noise = NOISE * max((float(np.abs(each).max()) for each in theirs.values() if each.size), default=0.0)
    for module, layers in table.items():
        wanted = np.concatenate([np.asarray(theirs[layer], np.float64) for layer in layers])
        found = np.asarray(ours[module], np.float64)
        if found.shape != wanted.shape:
            raise ValueError(f"{module} gives {found.shape}, but {' + '.join(layers)} {wanted.shape}")
        largest = float(np.abs(wanted).max())
        error = float(np.abs(found - wanted).max())
        rows.append(ProofRow(" + ".join(layers), module, error / (max(largest, noise) or 1.0), largest))
    return rows


def check(rows: Sequence[ProofRow], tolerance: float = TOLERANCE) -> None:
    """Raise ValueError, naming the first layer, if any layer's error exceeds `tolerance`."""
    bad = [row for row in rows if not row.error <= tolerance]  # `not <=` includes NaN
    if bad:
        first = bad[0]
        raise ValueError(
            f"the proof fails at {first.layer} ({first.module}): it is {first.error:.1e} of its largest value off,"
            f" more than {tolerance:.0e}, and so are {len(bad) - 1} later layers"
        )

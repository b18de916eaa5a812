"""What trained the weights, and in which layout: what the file says, what the user says, and what must be asked."""

from __future__ import annotations

import re
from collections.abc import Sequence

from converters.keras_file import DataFormat, KerasFile, KernelOrder
from converters.model_config import Node
from converters.names import Lineage
from converters.plans import Wishes

BACKENDS = ("theano", "tensorflow")
KNOWN_BACKENDS = (*BACKENDS, "jax", "torch", "cntk", "openvino", "numpy", "plaidml")
DATA_FORMATS = ("channels_first", "channels_last")
FLATTEN_TRANSPOSES = (2, 2)  # the version of Keras since which Flatten turns channels-first maps to H, W, C


def settle_backend(file: KerasFile, lineage: Lineage, wishes: Wishes) -> tuple[str | None, list[str]]:
    """The backend whose kernels these are, and what was chosen for want of better.

    Raises:
        ValueError: neither the file, nor its lineage, nor the user says it; or file and user disagree.
    """
    chosen = wishes.backend
    if chosen is not None and chosen not in BACKENDS:
        raise ValueError(f"unknown backend {chosen!r}; known: {', '.join(BACKENDS)}")
    if file.backend is not None:
        if file.backend not in KNOWN_BACKENDS:
            raise ValueError(f"{file.path} was trained with {file.backend!r}; known: {', '.join(KNOWN_BACKENDS)}")
        if chosen not in (None, file.backend):
            raise ValueError(f"{file.path} says that {file.backend} trained it, not {chosen}; leave out the backend")
        return file.backend, []
    if file.container in ("weights", "archive"):  # of Keras 3 and tf_keras, which never ran on Theano
        if chosen == "theano":
            raise ValueError(f"{file.path} is of {file.framework}, which never ran on Theano; leave out the backend")
        return chosen, []
    if chosen is not None:
        return chosen, []
    # What is in the file comes before its name, and both before the names of layers, which anybody may take over.
    if any(array.place.endswith(":0") for layer in file.weighted for array in layer.arrays.values()):
        return "tensorflow", [
            "kernels are tensorflow's, whose way of naming arrays the file has; --backend theano decides otherwise"
        ]
    if told := re.search(r"_(th|tf)_kernels", file.path.name):
        backend = {"th": "theano", "tf": "tensorflow"}[told[1]]
        return backend, [f"kernels are {backend}'s, as the name of the file says; --backend decides otherwise"]
    if lineage.name == "convnets-keras" and file.named:
        return "theano", ["kernels are theano's, as in the released files with these names of layers;"
                          " --backend decides otherwise"]  # fmt: skip
    generation = "0.x" if file.container == "nb_layers" else "1"
    raise ValueError(
        f"{file.path}: files of Keras {generation} do not say which backend trained them, and kernels of both look"
        " alike; give --backend theano (which trained the widely copied VGG16 and VGG19 files) or --backend tensorflow"
    )


def settle_kernel_order(file: KerasFile, fits: dict[KernelOrder, int]) -> KernelOrder:
    """How the kernels are stored: the order by which more layers fit the network; where both do, what the file says."""
    said = {layer.kernel_order for layer in file.weighted if layer.kernel_order is not None}
    if fits["oihw"] == fits["hwio"] and len(said) == 1:
        return said.pop()
    return max(fits, key=lambda order: fits[order])


def check_data_format(file: KerasFile, wishes: Wishes) -> None:
    """ValueError where the user's data format is none, or not the file's."""
    given = wishes.data_format
    if given is not None and given not in DATA_FORMATS:
        raise ValueError(f"unknown data format {given!r}; known: {', '.join(DATA_FORMATS)}")
    if file.data_format is not None and given not in (None, file.data_format):
        raise ValueError(f"{file.path} says that it is {file.data_format}, not {given}; leave out the data format")


def settle_rows(
    file: KerasFile, order: KernelOrder, flatten: Node | None, wishes: Wishes
) -> tuple[bool, DataFormat | None, list[str]]:
    """Whether the rows of the first dense kernel after a Flatten stand in the order h, w, channels.

    Args:
        file: for its version and data format.
        order: of its kernels.
        flatten: the layer in the model's config, where there is one.
        wishes: for the data format.

    Returns:
        That; the data format of the convolutions as far as it is known; and what was chosen for want of better.

    Raises:
        ValueError: it depends on the data format, which neither the file nor the user says.
    """
    data_format: DataFormat | None = file.data_format or wishes.data_format  # type: ignore[assignment]
    if order == "oihw":  # Keras 0 and 1
        if data_format == "channels_last":
            raise ValueError(f"{file.path} has kernels (out, in, height, width), which are never channels_last")
        return False, "channels_first", []
    version = _version(file)
    if version < (2,):
        return True, "channels_last", []  # Keras 1 with tf ordering
    if data_format == "channels_last":
        return True, data_format, []
    if flatten is not None:
        flattens = flatten.config.get("data_format")
        if data_format == "channels_first":
            return flattens == "channels_first", data_format, []
    if version >= FLATTEN_TRANSPOSES:
        return True, data_format, []  # in either format
    if data_format == "channels_first":
        return False, data_format, []
    if file.backend == "tensorflow":
        return True, "channels_last", ["trained channels_last, TensorFlow's usual; --data-format decides otherwise"]
    raise ValueError(
        f"{file.path} does not say whether it was trained channels first or last, on which the order of the first dense"
        " layer depends; give --data-format channels_first or channels_last"
    )


def _version(file: KerasFile) -> tuple[int, ...]:
    numbers = re.findall(r"\d+", file.version or "")
    if numbers:
        return tuple(map(int, numbers[:2]))
    return {"nb_layers": (0,), "legacy": (1,), "weights": (3,), "archive": (3,)}[file.container]


def settle_pool_padding(
    file: KerasFile, lineage: Lineage, graph: Sequence[Node] | None, wishes: Wishes
) -> tuple[bool, list[str]]:
    """Whether ResNet50 pads before its first pooling."""
    if graph is not None:
        first = next((node for node in graph if node.kind == "MaxPooling2D"), None)
        padded = first is not None and bool(first.inputs) and graph[first.inputs[0]].kind == "ZeroPadding2D"
        if wishes.pool1_padding not in (None, padded):
            raise ValueError(
                f"{file.path}: its config {'has' if padded else 'lacks'} the padding of the first pooling;"
                " leave out --pool1-padding"
            )
        return padded, []
    if wishes.pool1_padding is not None:
        return wishes.pool1_padding, []
    if lineage.name != "keras-applications-old":
        return True, []
    listed = any(layer.name == "pool1_pad" for layer in file.layers)
    said = "the file lists pool1_pad" if listed else "as in Keras 1, since the file lists no pool1_pad"
    is_padded = "padded" if listed else "not padded"
    return listed, [f"the first pooling is {is_padded} ({said}); --pool1-padding yes or no decides otherwise"]

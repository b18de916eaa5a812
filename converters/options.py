"""Resolve the options of a conversion from the file, the user's options and defaults."""

from __future__ import annotations

import re
from typing import Any, Protocol, cast, get_args

import torch

from converters.names import Found, Lineage
from converters.plan import Wishes
from converters.readers.keras_file import DataFormat, KerasFile, KernelOrder
from converters.readers.keras_graph import Graph, Node
from convnets_torch.card import Activation
from convnets_torch.images.preprocessing import GENERAL, PRESETS, Preprocessing, preset, read_preprocessing
from convnets_torch.networks import Network
from convnets_torch.text import check_choice

LARGEST = 20_000  # pixels of a side


def input_size(file: KerasFile, graph: Graph | None) -> tuple[int, int] | None:
    """Return (height, width) of the model's input in pixels, or None if its config does not specify it.

    Raises:
        ValueError: the model's input is not an image with three channels.
    """
    if graph is None:
        return None
    shape = graph.nodes[0].settings.get("batch_shape")
    if not isinstance(shape, list | tuple) or len(shape) != 4:
        raise ValueError(f"{file.path}: its model's input is {shape!r}; expected images with three channels")
    first = 1 if graph.data_format == "channels_first" else 3
    sides: list[Any] = [side for axis, side in enumerate(shape) if axis not in (0, first)]
    if shape[first] not in (3, None):
        raise ValueError(
            f"{file.path}: its model's input has {shape[first]} channels; expected images with three channels"
        )
    if None in sides:
        return None
    if not all(isinstance(side, int) for side in sides):
        raise ValueError(f"{file.path}: its model's input is {shape!r}; expected images with three channels")
    return sides[0], sides[1]


def check_size(file: KerasFile, size: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return the size; raise ValueError if a side is not 1 to `LARGEST` pixels."""
    if size is not None and not all(1 <= side <= LARGEST for side in size):
        raise ValueError(
            f"{file.path}: the input size {size[0]}x{size[1]} is invalid; give 1 to {LARGEST} pixels for each side"
        )
    return size


def map_shape(file: KerasFile, network: Network, size: tuple[int, int] | None) -> tuple[int, int, int]:
    """Return (channels, h, w) of the feature map at an input size, by default the network's own.

    Raises:
        ValueError: the size is too small for the network.
    """
    try:
        with torch.device("meta"):  # in eval mode: in training mode, batch norm rejects a single value per channel
            shape = network.eval().features(torch.empty(1, 3, *(size or network.size))).shape
    except RuntimeError:
        height, width = size or network.size
        raise ValueError(f"{file.path}: pictures of {height}x{width} pixels are too small for the network") from None
    return shape[1], shape[2], shape[3]


def guessed_size(
    file: KerasFile, found: Found, network: Network, arguments: dict[str, Any], rows: int, channels: int
) -> tuple[dict[str, Any], list[int]]:
    """Return arguments with an input size that gives a Flatten of `rows` values, and the window (h, w).

    The rows determine only the number of cells, so a square window is assumed.
    """
    side = round((rows / channels) ** 0.5)
    if found.standard_head:
        return arguments, list(network.window)  # reported later, together with all other problems
    if rows % channels == 0 and side * side * channels != rows:
        raise ValueError(
            f"{file.path} has a head that reads {rows // channels} cells, which is not a square number; give"
            " --input-size HEIGHTxWIDTH, in pixels"
        )
    if not side or side * side * channels != rows:
        return arguments, list(network.window)
    size = tuple(pixels + network.stride * (side - network.window[0]) for pixels in network.size)
    return arguments | {"size": size}, [side, side]


Front = tuple[tuple[float, float] | None, list[str]]


def settle_preprocessing(
    file: KerasFile,
    network: Network,
    name: str,
    front: Front,
    wishes: Wishes,
    *,
    released: bool,
    preset_name: str | None,
) -> tuple[Preprocessing, list[str]]:
    """Return the preprocessing for the card, and notes on the assumptions made.

    Args:
        network: provides the input size.
        name: the network's name.
        front: preprocessing within the model, and notes on it; see `checks.reads_pixels`.
        wishes: the user's options; `preprocessing` is a preset or a JSON file.
        released: whether the weights are released ones, or have the same layer names and shapes.
        preset_name: preset of the released weights of this lineage.

    Raises:
        ValueError: the preprocessing is required but not given, is given although the model rescales its input, or
            has another size than the model's input.
    """
    rescaling, chosen = front
    given = wishes.preprocessing
    if rescaling is not None:
        if given is not None:
            raise ValueError(
                f"{file.path}: its model rescales pictures itself (a Rescaling layer); leave out the preprocessing"
            )
        scale, offset = rescaling
        size = network.size[0] if network.size[0] == network.size[1] else network.size
        rule = Preprocessing("custom", size, size, "stretch", "bilinear", "rgb", (-offset,) * 3, scale=scale)
        return rule, [*chosen, "pictures are stretched to the input size, as Keras's datasets do"]
    if given is None and not released:
        known = dict.fromkeys((*PRESETS[name][1], *GENERAL))
        raise ValueError(
            f"{file.path} does not say how its pictures were preprocessed; give --preprocessing with a JSON file or one"
            f" of {', '.join(known)}"
        )
    rule = chosen_preprocessing(name, given or preset_name, network.size)
    if given is None:
        chosen = [*chosen, f"pictures are preprocessed with {rule.name}, as for the released weights with these layers;"
                  " change it with --preprocessing"]  # fmt: skip
    return rule, chosen


def chosen_preprocessing(network: str, given: str | None, size: tuple[int, int]) -> Preprocessing:
    """Return a preset by name (None: that of the network's released weights) or the preprocessing in a JSON file.

    Args:
        network: a name in `convnets_torch.networks.NETWORKS`.
        given: a preset name, or the path of a .json file.
        size: (height, width) of the network's input in pixels.

    Raises:
        OSError: the file cannot be read.
        ValueError: the name is unknown, or the preprocessing in the file has another size.
    """
    if given is None or not given.lower().endswith(".json"):
        return preset(network, given, size[0] if size[0] == size[1] else size)
    rule = read_preprocessing(given)
    if rule.shape != size:
        raise ValueError(f"{given} has the size {rule.size}, but the network's input is {size[0]}x{size[1]} pixels")
    return rule


class Ending(Protocol):
    """The end of a head."""

    @property
    def units(self) -> int | None: ...
    @property
    def activation(self) -> str | None: ...


def settle_activation(
    file: KerasFile, head: Ending, wishes: Wishes, *, known: bool = False
) -> tuple[Activation, list[str]]:
    """Return the output activation, and notes on the assumptions made.

    Args:
        known: whether the head is a released one, which ends with softmax.

    Raises:
        ValueError: the given activation is unknown, contradicts the file, or is given for a file without a head; or
            there is a single output and its activation is missing or softmax.
    """
    given = wishes.activation
    if given is not None:
        check_choice(given, get_args(Activation), "activation")
    if head.units is None:
        if given is not None:
            raise ValueError(f"{file.path} has no head, so no activation of its outputs; leave it out")
        return "none", []
    if head.activation is not None and given not in (None, head.activation):
        raise ValueError(f"{file.path} says that its activation is {head.activation}, not {given}; leave it out")
    activation = head.activation or given
    if activation is None and head.units == 1:
        raise ValueError(
            f"{file.path} has a single output and does not say its activation; give --activation sigmoid (for a"
            " probability) or none"
        )
    if activation == "softmax" and head.units == 1:
        raise ValueError(f"{file.path} has a single output, which no softmax fits; give --activation sigmoid or none")
    if activation is None and not known:
        return "softmax", [
            "softmax is assumed for the outputs, as the file does not specify it; change it with --activation"
        ]
    return cast(Activation, activation or "softmax"), []


BACKENDS = ("theano", "tensorflow")
KNOWN_BACKENDS = (*BACKENDS, "jax", "torch", "cntk", "openvino", "numpy", "plaidml")
DATA_FORMATS = ("channels_first", "channels_last")
FLATTEN_TRANSPOSES = (2, 2)  # first version of Keras whose Flatten transposes channels-first maps to H, W, C


def settle_backend(file: KerasFile, lineage: Lineage | None, wishes: Wishes) -> tuple[str | None, list[str]]:
    """Return the backend that trained the kernels, and notes on the assumptions made.

    Raises:
        ValueError: the file, its lineage and the user leave it open; or file and user disagree.
    """
    chosen = wishes.backend
    if chosen is not None:
        check_choice(chosen, BACKENDS, "backend")
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
    # The content takes precedence over the file name, and both over the layer names, which anyone may reuse.
    if any(array.place.endswith(":0") for layer in file.weighted for array in layer.arrays.values()):
        return "tensorflow", [
            "kernels are tensorflow's, as the file names arrays in its style; change it with --backend theano"
        ]
    if told := re.search(r"_(th|tf)_kernels", file.path.name):
        backend = {"th": "theano", "tf": "tensorflow"}[told[1]]
        return backend, [f"kernels are {backend}'s according to the file name; change it with --backend"]
    if lineage is not None and lineage.name == "convnets-keras" and file.named:
        return "theano", [
            "kernels are theano's, as in the released files with these layer names; change it with --backend"
        ]
    generation = "0.x" if file.container == "nb_layers" else "1"
    raise ValueError(
        f"{file.path}: files of Keras {generation} do not say which backend trained them, and kernels of both look"
        " alike; give --backend theano (which trained the widely copied VGG16 and VGG19 files) or --backend tensorflow"
    )


def settle_kernel_order(file: KerasFile, fits: dict[KernelOrder, int]) -> KernelOrder:
    """Return the kernel order with which more layers fit the network; on a tie, the one that the file specifies."""
    stored = {layer.kernel_order for layer in file.weighted if layer.kernel_order is not None}
    if fits["oihw"] == fits["hwio"] and len(stored) == 1:
        return stored.pop()
    return max(fits, key=lambda order: fits[order])


def check_data_format(file: KerasFile, wishes: Wishes) -> None:
    """Raise ValueError if the user's data format is invalid or contradicts the file."""
    given = wishes.data_format
    if given is not None:
        check_choice(given, DATA_FORMATS, "data format")
    if file.data_format is not None and given not in (None, file.data_format):
        raise ValueError(f"{file.path} says that it is {file.data_format}, not {given}; leave out the data format")


def settle_rows(
    file: KerasFile, order: KernelOrder, flatten: Node | None, wishes: Wishes
) -> tuple[bool, DataFormat | None, list[str]]:
    """Determine whether the rows of the first dense kernel after a Flatten are in the order h, w, channels.

    Args:
        file: provides the Keras version and data format.
        order: the kernel order.
        flatten: the Flatten node of the model's config, if any.
        wishes: provides the user's data format.

    Returns:
        Whether they are; the data format of the convolutions, if known; and notes on the assumptions made.

    Raises:
        ValueError: it depends on the data format, which neither the file nor the user specifies.
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
        flattens = flatten.settings.get("data_format")
        if data_format == "channels_first":
            return flattens == "channels_first", data_format, []
    if version >= FLATTEN_TRANSPOSES:
        return True, data_format, []  # in either format
    if data_format == "channels_first":
        return False, data_format, []
    if file.backend == "tensorflow":
        return True, "channels_last", ["channels_last is assumed, TensorFlow's default; change it with --data-format"]
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
    file: KerasFile, lineage: Lineage, graph: Graph | None, wishes: Wishes
) -> tuple[bool, list[str]]:
    """Return whether ResNet50 pads before its first pooling, and notes on the assumptions made."""
    if graph is not None:
        first = next((node for node in graph.nodes if node.kind == "MaxPooling2D"), None)
        padded = first is not None and graph[first.inputs[0]].kind == "ZeroPadding2D"
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
    reason = "the file lists pool1_pad" if listed else "as in Keras 1, since the file lists no pool1_pad"
    is_padded = "padded" if listed else "not padded"
    return listed, [f"the first pooling is {is_padded} ({reason}); change it with --pool1-padding yes or no"]

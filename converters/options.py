"""Resolve the options of a conversion from the file, the user's options and defaults."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast, get_args

from converters.layer_lists import candidates
from converters.plan import Wishes
from converters.readers.keras_file import DataFormat, KerasFile, KernelOrder
from converters.readers.keras_graph import Graph
from convnets_torch.card import Activation
from convnets_torch.images.preprocessing import IN_WORDS, PRESETS, Preprocessing, general, preset, read_preprocessing
from convnets_torch.text import check_choice

LARGEST = 20_000  # pixels of a side


IMAGES = "expected images of 1 (grey), 3 (RGB) or 4 (RGBA) channels"


class Questions:
    """Collects what only the user can tell about a file, so that one error asks for all of it.

    Whoever asks goes on with any answer; `check` raises before the plan is used.

    >>> questions = Questions("x.h5")
    >>> questions.ask("input_size", "it takes any size", "--input-size")
    >>> questions.ask("activation", "it has one output", "--activation")
    >>> questions.check()
    Traceback (most recent call last):
    ...
    ValueError: x.h5 needs 2 options: --input-size, since it takes any size; and --activation, since it has one output
    """

    def __init__(self, path: object) -> None:
        self.path = path
        self.asked: dict[str, tuple[str, str]] = {}

    def ask(self, option: str, reason: str, answers: str) -> None:
        """Ask for an option, whose first question counts: why it is needed, and what may be given."""
        self.asked.setdefault(option, (reason, answers))

    def check(self) -> None:
        """Raise a ValueError with all questions, if there are any."""
        if len(self.asked) == 1:
            [(reason, answers)] = self.asked.values()
            raise ValueError(f"{self.path}: {reason}; give {answers}")
        if self.asked:
            *first, last = (f"{answers}, since {reason}" for reason, answers in self.asked.values())
            raise ValueError(f"{self.path} needs {len(self.asked)} options: {'; '.join(first)}; and {last}")


def image_shape(file: KerasFile, graph: Graph) -> tuple[int, tuple[int, int] | None]:
    """Return the number of channels of the model's input, and its size as `input_size` does; errors are the same.

    An input (height, width) without an axis of channels is grey; see `front.front_of`.
    """
    shape = graph.nodes[0].settings.get("batch_shape")
    if isinstance(shape, list | tuple) and len(shape) == 3 and all(type(side) is int for side in shape[1:]):
        return 1, (shape[1], shape[2])
    if not isinstance(shape, list | tuple) or len(shape) != 4:
        raise ValueError(f"{file.path}: its model's input is {shape!r}; {IMAGES}")
    first = 1 if graph.data_format == "channels_first" else 3
    sides: list[Any] = [side for axis, side in enumerate(shape) if axis not in (0, first)]
    channels = 3 if shape[first] is None else shape[first]
    if type(channels) is not int or channels not in (1, 3, 4):
        raise ValueError(f"{file.path}: its model's input has {channels!r:.80} channels; {IMAGES}")
    if None in sides:
        return channels, None
    if not all(isinstance(side, int) for side in sides):
        raise ValueError(f"{file.path}: its model's input is {shape!r}; {IMAGES}")
    return channels, (sides[0], sides[1])


def check_size(file: KerasFile, size: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return the size; raise ValueError if a side is not 1 to `LARGEST` pixels."""
    if size is not None and not all(1 <= side <= LARGEST for side in size):
        raise ValueError(
            f"{file.path}: the input size {size[0]}x{size[1]} is invalid; give 1 to {LARGEST} pixels for each side"
        )
    return size


def named_preprocessing(
    given: str | None, network: str, size: tuple[int, int], channels: int = 3, *, sized: bool = True
) -> Preprocessing:
    """Return a preset by name (None: that of the network's released weights) or the preprocessing in a JSON file.

    Args:
        given: a preset name, or the path of a .json file.
        network: the network's name, on which the meaning of presets depends.
        size: (height, width) of the network's input in pixels.
        channels: number of channels of the input.
        sized: whether the file must have that size.

    Raises:
        OSError: the file cannot be read.
        ValueError: the name is unknown, or the preprocessing in the file has another size or other channels.
    """
    if given is None or not given.lower().endswith(".json"):
        side = size[0] if size[0] == size[1] else size
        return preset(network, given, side) if network in PRESETS else general(str(given), side, channels)
    rule = read_preprocessing(given)
    if rule.channel_count != channels:
        raise ValueError(f"{given} has the channels {rule.channels}, but the network's input has {IN_WORDS[channels]}")
    if sized and rule.shape != size:
        raise ValueError(f"{given} has the size {rule.size}, but the network's input is {size[0]}x{size[1]} pixels")
    return rule


def settle_activation(
    file: KerasFile, units: int | None, said: str | None, wishes: Wishes, questions: Questions, *,
    known: bool = False,
) -> tuple[Activation, list[str]]:  # fmt: skip
    """Return the output activation, and notes on the assumptions made; it is asked for a single output.

    Args:
        units: number of outputs; None for a network without a head.
        said: the activation that the file says.
        known: whether the head is a released one, which ends with softmax.

    Raises:
        ValueError: the given activation is unknown, contradicts the file, is given for a file without a head, or is
            softmax for a single output.
    """
    given = wishes.activation
    if given is not None:
        check_choice(given, get_args(Activation), "activation")
    if units is None:
        if given is not None:
            raise ValueError(f"{file.path} has no head, so no activation of its outputs; leave it out")
        return "none", []
    if said is not None and given not in (None, said):
        raise ValueError(f"{file.path} says that its activation is {said}, not {given}; leave it out")
    activation = said or given
    if activation is None and units == 1:
        reason = "it has a single output and does not say its activation"
        questions.ask("activation", reason, "--activation sigmoid (for a probability) or none")
        return "none", []
    if activation == "softmax" and units == 1:
        raise ValueError(f"{file.path} has a single output, which no softmax fits; give --activation sigmoid or none")
    if activation is None and not known:
        return "softmax", [
            "softmax is assumed for the outputs, as the file does not specify it; change it with --activation"
        ]
    return cast(Activation, activation or "softmax"), []


CONVNETS_KERAS = r"conv_[1-5](_[12])?|conv[1-5]_[1-4]"  # convolutions of AlexNet, VGG16 and VGG19


def is_convnets_keras(file: KerasFile) -> bool:
    """Return whether a file's convolutions have the names of convnets-keras."""
    names = [layer.name for layer in file.weighted if layer.kind == "Conv2D"]
    return file.named and bool(names) and all(re.fullmatch(CONVNETS_KERAS, name) for name in names)


def released_preset(file: KerasFile, network: str, classes: int | None, arguments: Mapping[str, Any]) -> str | None:
    """Return the preset of the released weights if a file has their layers, and no head of its own."""
    if "head" in arguments:
        return None
    if network in PRESETS and is_convnets_keras(file):
        return "original"
    if classes not in (None, 1000):
        return None
    if network in PRESETS:
        return {"inception_v3": "keras-tf"}.get(network, "keras-caffe")
    found = [one for one in candidates(file) if not one.problems and not any(layer.arrays for layer in one.rest)]
    return found[0].architecture.preprocessing if found else None


BACKENDS = ("theano", "tensorflow")
KNOWN_BACKENDS = (*BACKENDS, "jax", "torch", "cntk", "openvino", "numpy", "plaidml")
DATA_FORMATS = ("channels_first", "channels_last")
FLATTEN_TRANSPOSES = (2, 2)  # first version of Keras whose Flatten transposes channels-first maps to H, W, C


def settle_backend(file: KerasFile, wishes: Wishes, questions: Questions) -> tuple[str | None, list[str]]:
    """Return the backend that trained the kernels, and notes on the assumptions made.

    It is asked if the file, its lineage and the user leave it open.

    Raises:
        ValueError: the user's backend is unknown, or contradicts the file.
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
    if is_convnets_keras(file):
        return "theano", [
            "kernels are theano's, as in the released files with these layer names; change it with --backend"
        ]
    generation = "0.x" if file.container == "nb_layers" else "1"
    questions.ask(
        "backend",
        f"files of Keras {generation} do not say which backend trained them, and kernels of both look alike",
        "--backend theano (which trained the widely copied VGG16 and VGG19 files) or --backend tensorflow",
    )
    return None, []


def check_data_format(file: KerasFile, wishes: Wishes) -> None:
    """Raise ValueError if the user's data format is invalid or contradicts the file."""
    given = wishes.data_format
    if given is not None:
        check_choice(given, DATA_FORMATS, "data format")
    if file.data_format is not None and given not in (None, file.data_format):
        raise ValueError(f"{file.path} says that it is {file.data_format}, not {given}; leave out the data format")


def settle_rows(
    file: KerasFile, order: KernelOrder, wishes: Wishes, questions: Questions
) -> tuple[bool, DataFormat | None, list[str]]:
    """Determine whether the rows of the first dense kernel after a Flatten are in the order h, w, channels.

    Args:
        file: provides the Keras version and data format.
        order: the kernel order.
        wishes: provides the user's data format, which is asked if the rows depend on it and nobody says it.

    Returns:
        Whether they are; the data format of the convolutions, if known; and notes on the assumptions made.

    Raises:
        ValueError: the data format contradicts the kernels.
    """
    data_format: DataFormat | None = file.data_format or wishes.data_format  # type: ignore[assignment]
    if order == "oihw":  # Keras 0 and 1
        if data_format == "channels_last":
            raise ValueError(f"{file.path} has kernels (out, in, height, width), which are never channels_last")
        return False, "channels_first", []
    version = file.release
    if version < (2,):
        return True, "channels_last", []  # Keras 1 with tf ordering
    if data_format == "channels_last":
        return True, data_format, []
    if version >= FLATTEN_TRANSPOSES:
        return True, data_format, []  # in either format
    if data_format == "channels_first":
        return False, data_format, []
    if file.backend == "tensorflow":
        return True, "channels_last", ["channels_last is assumed, TensorFlow's default; change it with --data-format"]
    questions.ask(
        "data_format",
        "it does not say whether it was trained channels first or last, on which the order of the first dense layer"
        " depends",
        "--data-format channels_first or channels_last",
    )
    return True, None, []

"""What a conversion is going to do, complete before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from converters.readers.keras_file import DataFormat, KerasArray
from convnets_torch.card import Activation
from convnets_torch.images.preprocessing import Preprocessing


@dataclass(frozen=True)
class Wishes:
    """What the user says, where a file cannot; None leaves it to the file.

    Attributes:
        backend: what trained the weights, "theano" or "tensorflow".
        data_format: of the convolutions when they were trained, "channels_first" or "channels_last".
        preprocessing: name of a preset, or a JSON file.
        activation: of the outputs.
        hidden_activation: between the dense layers of a head of the user's own.
        pool1_padding: whether the first pooling of ResNet50 pads.
        input_size: (height, width) of the pictures that the model was trained on, in pixels.
    """

    backend: str | None = None
    data_format: str | None = None
    preprocessing: str | None = None
    activation: str | None = None
    hidden_activation: str | None = None
    pool1_padding: bool | None = None
    input_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Row:
    """What becomes of one array.

    Attributes:
        source: their layer or layers, "conv_2_1 + conv_2_2".
        parameter: our parameter or buffer, "features.conv_2.weight".
        shape: of our parameter.
        change: what is done on the way: "flipped", "transposed", "concatenated", "kept".
    """

    source: str
    parameter: str
    shape: tuple[int, ...]
    change: str


@dataclass(frozen=True)
class Layout:
    """How the arrays of a Keras file become one of ours.

    Attributes:
        kernel_order: of convolution kernels, "oihw" or "hwio"; None for other arrays.
        flipped: whether the kernels are rotated by 180 degrees.
        window: (channels, h, w) where the rows of a dense kernel, or the values of a normalisation before it, stand in
            the order h, w, channels.
    """

    kernel_order: str | None = None
    flipped: bool = False
    window: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class KerasStep:
    """One parameter of ours out of arrays of a Keras file, carried out by `converters.writing`.

    Attributes:
        row: for the report.
        arrays: concatenated on the output axis; none of them for a constant.
        layout: of the arrays.
        constant: the value where there are no arrays: 1 for a scale that the file leaves out.
    """

    row: Row
    arrays: tuple[KerasArray, ...]
    layout: Layout = Layout()
    constant: float = 0.0


@dataclass(frozen=True)
class Step:
    """One parameter of ours out of a file of PyTorch, the tensor `row.source`, which has the row's shape."""

    row: Row


@dataclass(frozen=True)
class Plan:
    """A checked conversion: every array of the file has its place, and every parameter its arrays.

    Attributes:
        network: a name in `convnets_torch.networks.NETWORKS`.
        arguments: what its builder is called with.
        framework: what wrote the file, "Keras 1".
        backend: what trained it, "theano", "tensorflow", ... or None.
        preprocessing: how pictures become input.
        steps: in the order of the network.
        activation: of the outputs.
        data_format: in which the convolutions were trained, where it matters.
        choices: sentences on what the file does not say and was therefore chosen.
        lineage: whose layer names the file has, for the proof.
        rescales: whether the file's own model does the preprocessing, by a Rescaling layer.
        hidden: the step of activations in the head that the file does not say, for the proof.
    """

    network: str
    arguments: Mapping[str, Any]
    framework: str
    backend: str | None
    preprocessing: Preprocessing
    steps: tuple[Step | KerasStep, ...]
    activation: Activation = "softmax"
    data_format: DataFormat | None = None
    choices: tuple[str, ...] = ()
    lineage: str | None = None
    rescales: bool = False
    hidden: tuple[Any, ...] = ("relu",)


def stored_dtype(parameter: str) -> str:
    """The safetensors name of the type that a parameter is stored in.

    >>> stored_dtype("features.bn0.num_batches_tracked"), stored_dtype("head.fc.bias")
    ('I64', 'F32')
    """
    return "I64" if parameter.endswith("num_batches_tracked") else "F32"


def change(words: list[str], dtype: str | np.dtype[Any] = "float32") -> str:
    """The words of a row: what is done, and to which type the values are rounded.

    >>> change(["flipped"], ">f8"), change([])
    ('flipped, >f8 to float32', 'kept')
    """
    if dtype != "bfloat16":
        dtype = np.dtype(dtype)
    if dtype != np.dtype("<f4"):
        words = [*words, f"{dtype} to float32"]
    return ", ".join(words) or "kept"


def refuse(path: object, network: str, problems: list[str]) -> None:
    """Raise ValueError with everything that is wrong in a file, all at once; nothing is wrong in an empty list."""
    if problems:
        raise ValueError(f"{path} is not a complete {network}: {'; '.join(problems)}")

"""The plan of a conversion, complete before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from converters.readers.keras_file import DataFormat, KerasArray
from convnets_torch.card import Activation
from convnets_torch.images.preprocessing import Preprocessing


@dataclass(frozen=True)
class Wishes:
    """The user's options, for what a file does not specify; None leaves an option to the file.

    Attributes:
        backend: "theano" or "tensorflow", whichever trained the weights.
        data_format: format of the convolutions in training, "channels_first" or "channels_last".
        preprocessing: name of a preset, or path of a JSON file.
        activation: output activation.
        hidden_activation: activation between the dense layers of a custom head.
        pool1_padding: whether ResNet50 pads before its first pooling.
        input_size: (height, width) of the pictures that the model was trained on, in pixels.
        output: the output of a model with several.
        until: the layer at which to cut the model.
    """

    backend: str | None = None
    data_format: str | None = None
    preprocessing: str | None = None
    activation: str | None = None
    hidden_activation: str | None = None
    pool1_padding: bool | None = None
    input_size: tuple[int, int] | None = None
    output: str | None = None
    until: str | None = None


@dataclass(frozen=True)
class Row:
    """How one parameter is converted.

    Attributes:
        source: source layer or layers, "conv_2_1 + conv_2_2".
        parameter: our parameter or buffer, "features.conv_2.weight".
        shape: shape of our parameter.
        change: what is done to the values: "flipped", "transposed", "concatenated", "kept".
    """

    source: str
    parameter: str
    shape: tuple[int, ...]
    change: str


@dataclass(frozen=True)
class Layout:
    """How the arrays of a Keras file become one of our parameters.

    Attributes:
        kernel_order: axis order of the array: "oihw" or "hwio" of convolutions, "depthwise" (h, w, channels,
            multiplier), "hwoi" of transposed ones, in Keras 1 "deconv_oihw" or "deconv_hwio", "io" of a dense kernel
            that becomes a convolution, "hwc" of one number for each value of a map, "flat" for a vector with dimensions
            of 1, "same" for one that is not changed; None for vectors and dense kernels.
        flipped: whether the kernels are rotated by 180 degrees.
        window: (channels, h, w) if the rows of a dense kernel, or the values of a batch normalisation before it, are in
            the order h, w, channels; else None.
    """

    kernel_order: str | None = None
    flipped: bool = False
    window: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Step:
    """The conversion to one of our parameters, executed by `converters.writing` or, of PyTorch tensors, by its reader.

    Attributes:
        row: for the report; its source is the PyTorch tensor.
        arrays: the Keras arrays, to be concatenated on the output axis; empty for a constant.
        layout: layout of the arrays.
        constant: the value if there are no arrays, such as 1 for an omitted scale.
    """

    row: Row
    arrays: tuple[KerasArray, ...] = ()
    layout: Layout = Layout()
    constant: float = 0.0


@dataclass(frozen=True)
class Plan:
    """A checked conversion: every array of the file is used, and every parameter has its arrays.

    Attributes:
        network: a name in `convnets_torch.networks.NETWORKS`.
        arguments: arguments of its builder.
        framework: framework that wrote the file, "Keras 1".
        backend: backend that trained it, "theano", "tensorflow", ... or None.
        preprocessing: the preprocessing of pictures.
        steps: in network order.
        activation: output activation.
        data_format: format in which the convolutions were trained, where it matters.
        choices: notes on assumptions made because the file does not specify something.
        rescales: whether the file's own model does the preprocessing, with a Rescaling layer.
        table: our module -> Keras layers whose outputs, concatenated, are its own, for the proof.
        final: name of the Keras layer whose output is the network's, for the same.
        fused: whether that is its output after a fused activation.
        skipped: names of Keras layers of code that are part of the preprocessing which the user named.
        output, until: the user's options.
    """

    network: str
    arguments: Mapping[str, Any]
    framework: str
    backend: str | None
    preprocessing: Preprocessing
    steps: tuple[Step, ...]
    activation: Activation = "softmax"
    data_format: DataFormat | None = None
    choices: tuple[str, ...] = ()
    rescales: bool = False
    table: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    final: str | None = None
    fused: bool = True
    skipped: tuple[str, ...] = ()
    output: str | None = None
    until: str | None = None


def stored_dtype(parameter: str) -> str:
    """Return the safetensors dtype that a parameter is stored in.

    >>> stored_dtype("features.bn0.num_batches_tracked"), stored_dtype("head.fc.bias")
    ('I64', 'F32')
    """
    return "I64" if parameter.endswith("num_batches_tracked") else "F32"


def change(words: list[str], dtype: str | np.dtype[Any] = "float32") -> str:
    """Return the text of `Row.change`: the given words, and the dtype conversion if there is one.

    >>> change(["flipped"], ">f8"), change([])
    ('flipped, >f8 to float32', 'kept')
    """
    if dtype != "bfloat16":
        dtype = np.dtype(dtype)
    if dtype != np.dtype("<f4"):
        words = [*words, f"{dtype} to float32"]
    return ", ".join(words) or "kept"

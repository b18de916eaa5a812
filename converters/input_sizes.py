"""How large a model's pictures are, as its config, the user or the rows of its first dense layer say it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from converters.keras_file import KerasFile
from converters.model_config import Node
from converters.recognition import Found
from convnets_torch.networks import Network

LARGEST = 20_000  # pixels of a side


def input_size(file: KerasFile, graph: Sequence[Node] | None) -> tuple[int, int] | None:
    """(height, width) of the model's input in pixels, where its config says it.

    Raises:
        ValueError: the model has several inputs, or no pictures of three colours.
    """
    if graph is None:
        return None
    inputs = [node for node in graph if not node.inputs]
    if len(inputs) != 1:
        raise ValueError(f"{file.path}: its model has {len(inputs)} inputs; models with one are read")
    shape = inputs[0].config.get("batch_shape") or inputs[0].config.get("batch_input_shape")
    if not isinstance(shape, list | tuple) or len(shape) != 4:
        raise ValueError(f"{file.path}: its model's input is {shape!r}; pictures are wanted")
    first = 1 if file.data_format == "channels_first" else 3
    sides: list[Any] = [side for axis, side in enumerate(shape) if axis not in (0, first)]
    if shape[first] not in (3, None):
        raise ValueError(
            f"{file.path}: its model's input has {shape[first]} channels; pictures of three colours are read"
        )
    if None in sides:
        return None
    if not all(isinstance(side, int) for side in sides):
        raise ValueError(f"{file.path}: its model's input is {shape!r}; pictures are wanted")
    return sides[0], sides[1]


def check_size(file: KerasFile, size: tuple[int, int] | None) -> tuple[int, int] | None:
    """The size, where pictures can have it; else ValueError."""
    if size is not None and not all(1 <= side <= LARGEST for side in size):
        raise ValueError(
            f"{file.path}: no pictures are {size[0]}x{size[1]} pixels; 1 to {LARGEST} on each side are wanted"
        )
    return size


def map_shape(file: KerasFile, network: Network, size: tuple[int, int] | None) -> tuple[int, int, int]:
    """(channels, h, w) of the feature map at an input size, by default the network's own.

    Raises:
        ValueError: the size is too small for the network.
    """
    try:
        with torch.device("meta"):  # in eval mode: in training no single cell can be normalised
            shape = network.eval().features(torch.empty(1, 3, *(size or network.size))).shape
    except RuntimeError:
        height, width = size or network.size
        raise ValueError(f"{file.path}: pictures of {height}x{width} pixels are too small for the network") from None
    return shape[1], shape[2], shape[3]


def guessed_size(
    file: KerasFile, found: Found, network: Network, arguments: dict[str, Any], rows: int, channels: int
) -> tuple[dict[str, Any], list[int]]:
    """An input size for which a Flatten gives so many rows; only the number of cells is told by them."""
    side = round((rows / channels) ** 0.5)
    if found.standard_head:
        return arguments, list(network.window)  # a problem that is said with all others
    if rows % channels == 0 and side * side * channels != rows:
        raise ValueError(
            f"{file.path} has a head that reads {rows // channels} cells, which are no square; give --input-size"
            " HEIGHTxWIDTH, in pixels"
        )
    if not side or side * side * channels != rows:
        return arguments, list(network.window)
    size = tuple(pixels + network.stride * (side - network.window[0]) for pixels in network.size)
    return arguments | {"size": size}, [side, side]

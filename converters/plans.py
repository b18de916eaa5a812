"""What a conversion is going to do, complete before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


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
class Step:
    """How one parameter of ours comes to be: `fill` writes its values into a given CPU tensor of the row's shape."""

    row: Row
    fill: Callable[[Tensor], object]


@dataclass(frozen=True)
class Plan:
    """A checked conversion: every array of the file has its place, and every parameter its arrays.

    Attributes:
        network: a name in `convnets_torch.NETWORKS`.
        arguments: what its builder is called with.
        framework: what wrote the file, "Keras 1".
        backend: what trained it, "theano", "tensorflow" or None.
        steps: in the order of the network.
    """

    network: str
    arguments: dict[str, Any]
    framework: str
    backend: str | None
    steps: tuple[Step, ...]


def refuse(path: object, network: str, problems: list[str]) -> None:
    """Raise ValueError with everything that is wrong in a file, all at once; nothing is wrong in an empty list."""
    if problems:
        raise ValueError(f"{path} is not a complete {network}: {'; '.join(problems)}")

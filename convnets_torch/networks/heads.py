"""Heads as lists of steps: plain data that a card can hold, and the modules built from it.

The first step turns the window of the feature map into a vector: ("flatten",), ("average",) or ("max",).
Any of these follow: ("dense", units), ("batch_norm", epsilon), ("dropout", rate) and the activations ("relu",),
("relu6",), ("elu", alpha), ("selu",), ("gelu",), ("silu",), ("leaky_relu", slope), ("sigmoid",), ("tanh",),
("softplus",). The final activation to probabilities is not a step; it is stored in the card.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any, TypeAlias

from torch import nn

Steps: TypeAlias = Sequence[Sequence[Any]]

READERS = ("flatten", "average", "max")  # read the window; exactly one, as the first step

ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {  # those with a number take it as their first argument
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "leaky_relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
}
NUMBERED = ("dense", "batch_norm", "dropout", "elu", "leaky_relu")  # steps of two entries
MOST_UNITS = 1_000_000


def build_head(steps: Steps, channels: int, window: tuple[int, int]) -> nn.Sequential:
    """Build the modules of a head.

    Modules are named flatten, pool, dense_1, relu_dense_1 (an activation after dense_1), dropout_1, bn_1 and so on.

    Args:
        steps: see the module docstring.
        channels: of the feature map.
        window: (h, w) in cells of the feature map, which the head reads at once.

    Returns:
        Layers that map a window (N, channels, h, w) to (N, units of the last dense layer).

    Raises:
        ValueError: a step is unknown, has an invalid number, or is in the wrong place.

    >>> build_head((("average",), ("dense", 5), ("relu",), ("dense", 2)), channels=8, window=(7, 7))
    Sequential(
      (pool): AvgPool2d(kernel_size=(7, 7), stride=1, padding=0)
      (flatten): Flatten(start_dim=1, end_dim=-1)
      (dense_1): Linear(in_features=8, out_features=5, bias=True)
      (relu_dense_1): ReLU()
      (dense_2): Linear(in_features=5, out_features=2, bias=True)
    )
    """
    check_steps(steps)
    head = nn.Sequential()
    values, latest, counts = channels, "flatten", {"dense": 0, "batch_norm": 0, "dropout": 0}
    for kind, *numbers in steps:
        if kind in counts:
            counts[kind] += 1
        if kind == "flatten":
            values = channels * window[0] * window[1]
            head.add_module("flatten", nn.Flatten())
        elif kind in READERS:
            pool = nn.AvgPool2d if kind == "average" else nn.MaxPool2d
            head.add_module("pool", pool(window, stride=1))  # fixed: adaptive pooling would hide a wrong image size
            head.add_module("flatten", nn.Flatten())
        elif kind == "dense":
            latest = f"dense_{counts[kind]}"
            head.add_module(latest, nn.Linear(values, numbers[0]))
            values = numbers[0]
        elif kind == "batch_norm":
            head.add_module(f"bn_{counts[kind]}", nn.BatchNorm1d(values, eps=numbers[0], momentum=0.01))
        elif kind == "dropout":
            head.add_module(f"dropout_{counts[kind]}", nn.Dropout(numbers[0]))
        else:
            name = f"{kind}_{latest}"
            head.add_module(f"{name}_{len(head)}" if hasattr(head, name) else name, ACTIVATIONS[kind](*numbers))
    return head


def check_steps(steps: Steps) -> None:
    """Check that `build_head` can build these steps.

    Raises:
        ValueError: a step is unknown, has an invalid number, or is in the wrong place; or there is no dense layer.
    """
    known = (*READERS, "dense", "batch_norm", "dropout", *ACTIVATIONS)
    if not isinstance(steps, list | tuple) or not all(isinstance(step, list | tuple) and step for step in steps):
        raise ValueError(f"a head is {steps!r:.80}; give a list of steps, such as ('average',), ('dense', 10)")
    for place, step in enumerate(steps):
        kind, *numbers = step
        if not isinstance(kind, str) or kind not in known:
            raise ValueError(f"a head has the unknown step {tuple(step)!r:.80}; known: {', '.join(known)}")
        if len(numbers) != (kind in NUMBERED) or not all(_fits(kind, number) for number in numbers):
            raise ValueError(f"a head has the step {tuple(step)!r:.80}; {_wanted(kind)}")
        if (kind in READERS) != (place == 0):
            raise ValueError(
                f"a head has {tuple(step)!r} as its step {place + 1}; exactly one of {', '.join(READERS)} reads the"
                " window, and it is the first"
            )
    if not any(step[0] == "dense" for step in steps):
        raise ValueError("a head has no dense layer, so no classes; add one, or use classes=None for no head at all")


def _fits(kind: str, number: object) -> bool:
    if kind == "dense":
        return type(number) is int and 1 <= number <= MOST_UNITS
    if type(number) not in (int, float) or not isfinite(number):  # type: ignore[arg-type]
        return False
    return {"batch_norm": number > 0, "dropout": 0 <= number < 1}.get(kind, True)  # type: ignore[operator]


def _wanted(kind: str) -> str:
    numbers = {
        "dense": f"give a number of units, 1 to {MOST_UNITS}",
        "batch_norm": "give its epsilon, above 0",
        "dropout": "give its rate, from 0 to below 1",
    }
    return numbers.get(kind, "give one number" if kind in NUMBERED else "it takes no number")

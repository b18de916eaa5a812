"""The settings of a model's config that decide what the model computes: refused where they are no such settings.

What is looked up later (`Node.setting`) has then the type and the size that it must have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

LARGEST = 65_536  # pixels of a side, and steps of a stride or a padding
Check = Callable[[Any], bool]


def check_settings(name: str, kind: str, config: Mapping[str, Any]) -> None:
    """Raise ValueError for the first setting of a layer that is none."""
    for setting, (check, wanted) in CHECKS.get(kind, {}).items():
        value = config.get(setting)
        if value is not None and not check(value):
            raise ValueError(f"the model's config gives {name} the {setting} {_shown(value)}, but {wanted}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST


def _is_whole(value: Any) -> bool:
    return _is_side(value) and value > 0


def _is_pair(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, list) and len(value) == 2 and all(map(_is_whole, value)))


def _is_edge(value: Any) -> bool:
    return _is_side(value) or (isinstance(value, list) and len(value) == 2 and all(map(_is_side, value)))


def _is_padding(value: Any) -> bool:
    """One number; one a side, or two; or, in Keras 1, the four by their names."""
    if isinstance(value, Mapping):
        return len(value) == 4 and all(_is_side(edge) for edge in value.values())
    if isinstance(value, list):
        return (len(value) == 4 and all(map(_is_side, value))) or (len(value) == 2 and all(map(_is_edge, value)))
    return _is_side(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e6


def _is_slope(value: Any) -> bool:
    """Keras 1 wrote arrays of one number as {"type": "ndarray", "value": 0.3}."""
    return _is_number(value.get("value") if isinstance(value, Mapping) else value)


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(side is None or _is_whole(side) for side in value)


SLOPE = (_is_slope, "a number is wanted")
PAIR = (_is_pair, "one or two whole numbers are wanted")
SHAPE = (_is_shape, "sizes are wanted")
CHECKS: Mapping[str, Mapping[str, tuple[Check, str]]] = {
    "Conv2D": {
        **dict.fromkeys(("kernel_size", "strides", "subsample", "dilation_rate", "atrous_rate"), PAIR),
        "groups": (_is_whole, "a whole number is wanted"),
    },
    "MaxPooling2D": dict.fromkeys(("pool_size", "strides"), PAIR),
    "AveragePooling2D": dict.fromkeys(("pool_size", "strides"), PAIR),
    "ZeroPadding2D": {"padding": (_is_padding, "whole numbers are wanted")},
    "BatchNormalization": {"epsilon": (_is_share, "a number from 0 to 1 is wanted")},
    "Dropout": dict.fromkeys(("rate", "p"), (_is_share, "a number from 0 to 1 is wanted")),
    "LeakyReLU": dict.fromkeys(("negative_slope", "alpha"), SLOPE),
    "ELU": {"alpha": SLOPE},
    "InputLayer": dict.fromkeys(("batch_shape", "batch_input_shape"), SHAPE),
}

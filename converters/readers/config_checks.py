"""The settings of a model's config that decide what the model computes: refused where they are no such settings.

What is looked up later (`Node.setting`) has then the type and the size that it must have. What this does not foresee,
`told_of` turns into a sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

LARGEST = 65_536  # pixels of a side, and steps of a stride or a padding
DEEPEST = 8  # activations in activations
Check = Callable[[Any], bool]


@contextmanager
def told_of(what: str) -> Iterator[None]:
    """Where a config does not say what Keras says of every such layer: a sentence that names the layer.

    Args:
        what: is told of, "vgg16.keras: layer conv1".
    """
    try:
        yield
    except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        reason = f"{error} is not there" if isinstance(error, KeyError) else f"{error}"
        sentence = f"{what} is described otherwise than Keras does it ({reason:.200}); save the model again"
        raise ValueError(sentence) from None


def check_settings(name: str, kind: str, config: Mapping[str, Any]) -> None:
    """Raise ValueError for the first setting of a layer that is none."""
    if not isinstance(config, Mapping):
        raise ValueError(
            f"the model's config gives {name} the settings {_shown(config)}, but names and values are wanted"
        )
    for setting, (check, wanted) in (EVERYWHERE | CHECKS.get(kind, {})).items():
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
    return _is_whole(value) or (isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_whole, value)))


def _is_edge(value: Any) -> bool:
    return _is_side(value) or (isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_side, value)))


def _is_padding(value: Any) -> bool:
    """One number; one a side, or two; or, in Keras 1, the four by their names."""
    if isinstance(value, Mapping):
        return len(value) == 4 and all(_is_side(edge) for edge in value.values())
    if isinstance(value, list | tuple):
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


def _is_axis(value: Any) -> bool:
    """A number; `tf_keras` writes a list of one."""
    if isinstance(value, list | tuple) and len(value) == 1:
        [value] = value
    return isinstance(value, int) and not isinstance(value, bool) and -4 <= value < 4


def _is_activation(value: Any, level: int = 0) -> bool:
    """A word; or an object that holds it, or an activation layer's settings."""
    if not isinstance(value, Mapping):
        return value is None or isinstance(value, str)
    kind, inner = value.get("class_name"), value.get("config")
    if not isinstance(kind, str | None) or level == DEEPEST:
        return False
    if not isinstance(inner, Mapping):
        return inner is None or isinstance(inner, str)
    checks = CHECKS.get(str(kind), {})
    fits = all(check(inner[setting]) for setting, (check, _) in checks.items() if inner.get(setting) is not None)
    return fits and isinstance(kind, str) and _is_activation(inner.get("activation"), level + 1)


def _is_word(value: Any) -> bool:
    return isinstance(value, str)


WORD = (_is_word, "a word is wanted")
AXIS = (_is_axis, "the number of an axis is wanted")
SLOPE = (_is_slope, "a number is wanted")
PAIR = (_is_pair, "one or two whole numbers are wanted")
SHAPE = (_is_shape, "sizes are wanted")
EVERYWHERE: dict[str, tuple[Check, str]] = {
    "activation": (_is_activation, "the name of an activation is wanted"),
    "data_format": WORD,
}
CHECKS: Mapping[str, dict[str, tuple[Check, str]]] = {
    "Conv2D": {
        "padding": WORD,
        **dict.fromkeys(("kernel_size", "strides", "subsample", "dilation_rate", "atrous_rate"), PAIR),
        "groups": (_is_whole, "a whole number is wanted"),
    },
    "MaxPooling2D": {**dict.fromkeys(("pool_size", "strides"), PAIR), "padding": WORD},
    "AveragePooling2D": {**dict.fromkeys(("pool_size", "strides"), PAIR), "padding": WORD},
    "ZeroPadding2D": {"padding": (_is_padding, "whole numbers are wanted")},
    "BatchNormalization": {"epsilon": (_is_share, "a number from 0 to 1 is wanted"), "axis": AXIS},
    "Concatenate": {"axis": AXIS},
    "Softmax": {"axis": AXIS},
    "ReLU": dict.fromkeys(("max_value", "threshold", "negative_slope"), SLOPE),
    "Dropout": dict.fromkeys(("rate", "p"), (_is_share, "a number from 0 to 1 is wanted")),
    "LeakyReLU": dict.fromkeys(("negative_slope", "alpha"), SLOPE),
    "ELU": {"alpha": SLOPE},
    "InputLayer": dict.fromkeys(("batch_shape", "batch_input_shape"), SHAPE),
}

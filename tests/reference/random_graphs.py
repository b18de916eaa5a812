"""Random models of real Keras 3, drawn by Hypothesis, converted and compared with what Keras answers.

A model is drawn as lines of Python, so that a failure is reported, after shrinking, as a program that makes the model.
`scripts/random_graphs.py` runs this; it needs KERAS_BACKEND=torch.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import isqrt, prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import keras
import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from converters import convert
from convnets_torch import load
from convnets_torch.fcn.graph import map_graph
from convnets_torch.fcn.sliding import slide
from convnets_torch.images.preprocessing import normalize
from tests.reference.keras3_graphs import choose_weights

TOLERANCE = 1e-4  # of the largest output
FLOOR = 1e-6
MOST_VALUES = 3000  # of a tensor
MOST_CHANNELS = 8

ACTIVATIONS = (
    "relu", "sigmoid", "tanh", "elu", "selu", "gelu", "silu", "softplus", "softsign", "hard_sigmoid", "hard_silu",
    "relu6", "leaky_relu", "mish", "celu", "hard_tanh", "tanh_shrink", "log_sigmoid", "exponential", "softmax",
    "log_softmax", "linear",
)  # fmt: skip
FUNCTIONS = (
    "relu", "sigmoid", "tanh", "relu6", "silu", "elu", "selu", "softplus", "softsign", "hard_sigmoid", "hard_silu",
    "gelu", "leaky_relu", "softmax", "exp",
)  # fmt: skip
MERGES = ("Add", "Multiply", "Subtract", "Average", "Maximum", "Minimum")
IDLE = (  # layers without effect
    "Dropout(0.5)", "SpatialDropout2D(0.3)", "GaussianNoise(0.1)", "GaussianDropout(0.1)", "AlphaDropout(0.1)",
    "ActivityRegularization(l2=0.1)", "Identity()", 'Activation("linear")',
)  # fmt: skip
AUGMENTATIONS = (
    "RandomFlip()",
    "RandomRotation(0.1)",
    "RandomZoom(0.1)",
    "RandomContrast(0.1)",
    "RandomTranslation(0.1, 0.1)",
)
NAMES = ("features", "forward", "images", "output", "head", "window", "calls", "my layer", "größe", "again")

REFUSALS = {  # why a model may be refused: a short word -> the sentence
    "merge of two ranks": "(merges|combines) inputs of different dimensions, which is not supported",
    "shared at two shapes": "is called on inputs of several shapes, which is not supported",
    "dense along the width": "works along the width of a channels-first map, which is not supported",
    "some axes normalised": "normalises (some axes of a map|axes that are not the last ones), which is not supported",
    "constant compared": "compares its input with a constant, which is not supported",
    "constant divided": "divides a constant by its input, which is not supported",
    "other mean": "averages other axes than height and width, which is not supported",
    "softmax of one output": "has a single output, which no softmax fits",
    "nothing computed": "its model has no layers that compute anything",
    "numbers of sequences": "has a constant of .* numbers for",
    "other axes normalised": "normalises other axes than the channels, which is not supported",
    "mixed formats": "but the model is channels_(last|first); mixed formats are not supported",
}


class Program:
    """A Keras model as lines of Python, each of which runs when it is written. Tensors are known by their names."""

    def __init__(self, draw: Callable[[st.SearchStrategy], Any]) -> None:
        self.draw = draw
        self.lines: list[str] = []
        self.scope: dict[str, Any] = {"keras": keras, "layers": keras.layers, "ops": keras.ops, "np": np}
        self.tensors: list[str] = []  # of the model being written, in order
        self.shared: list[tuple[str, tuple[int, ...]]] = []  # layers and the shapes of their inputs
        self.names: Counter[str] = Counter()
        self.last = True  # channels last
        self.inside = False  # the model normalises pictures itself
        self.depth = 0  # of nested models
        self.form = ".keras"
        self.seed = 0

    def __repr__(self) -> str:
        return "\n".join(["", *self.lines, f"# saved as {self.form}, weights of seed {self.seed}"])

    # Drawing

    def whole(self, least: int, most: int) -> int:
        return self.draw(st.integers(least, max(least, most)))

    def flag(self) -> bool:
        return self.draw(st.booleans())

    def seldom(self, of: int = 8) -> bool:
        return self.draw(st.integers(0, of - 1)) == of - 1

    def pick(self, values: Sequence[Any]) -> Any:
        return self.draw(st.sampled_from(values))

    def number(self) -> float:
        return self.draw(st.integers(-8, 8)) / 4

    def positive(self) -> float:
        return self.draw(st.integers(1, 8)) / 4

    # Writing

    def run(self, line: str) -> None:
        self.lines.append(line)
        exec(line, self.scope)

    def name(self, letter: str) -> str:
        self.names[letter] += 1
        return f"{letter}{self.names[letter]}"

    def tensor(self, expression: str) -> str:
        name = self.name("x")
        self.run(f"{name} = {expression}")
        self.tensors.append(name)
        return name

    def layer(self, made: str, *inputs: str, share: bool = True) -> str:
        """Call a new layer, written as "Conv2D(4, 3)"."""
        made = made.replace(", )", ")")
        if self.seldom(25):
            word = self.pick(NAMES)
            if word not in self.names:
                self.names[word] += 1
                made = f"{made[:-1]}{'' if made.endswith('()') else ', '}name={word!r})"
        layer = self.name("l")
        self.run(f"{layer} = layers.{made}")
        if share and len(inputs) == 1:
            self.shared.append((layer, self.shape(inputs[0])))
        return self.tensor(f"{layer}({inputs[0] if len(inputs) == 1 else '[' + ', '.join(inputs) + ']'})")

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor without the batch."""
        return tuple(self.scope[name].shape[1:])

    def sides(self, name: str) -> tuple[int, int]:
        shape = self.shape(name)
        return shape[:2] if self.last else shape[1:]  # type: ignore[return-value]

    def channels(self, name: str) -> int:
        return self.shape(name)[self.axis - 1 if self.axis > 0 else -1]

    @property
    def axis(self) -> int:
        """The axis of the channels of a map."""
        return -1 if self.last else 1

    def same_shape(self, x: str) -> list[str]:
        return [one for one in self.tensors if self.shape(one) == self.shape(x)]


def words(**settings: Any) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in settings.items() if value is not None)


# Layers on maps


def _window(p: Program, x: str, most: int = 4, *, dilates: bool = True) -> dict[str, Any]:
    """Settings of a convolution that fits."""
    padding = p.pick(("valid", "same"))
    sides = p.sides(x)
    how = p.pick(("plain", "strides", "dilation") if dilates else ("plain", "strides"))
    kernel, dilation = [], []
    for side in sides:
        limit = most if padding == "same" else min(most, side)
        size = p.whole(1, limit)
        rate = 1
        if how == "dilation":
            rate = p.whole(1, 3 if padding == "same" or size == 1 else min(3, max(1, (side - 1) // (size - 1))))
        kernel.append(size)
        dilation.append(rate)
    found: dict[str, Any] = {"kernel_size": tuple(kernel), "padding": padding}
    if how == "strides":
        found["strides"] = (p.whole(1, 3), p.whole(1, 3))
    if how == "dilation":
        found["dilation_rate"] = tuple(dilation)
    return found


def _extras(p: Program) -> dict[str, Any]:
    found: dict[str, Any] = {"use_bias": None if p.flag() else False}
    if p.flag():
        found["activation"] = p.pick(ACTIVATIONS)
    return found


def _filters(p: Program, x: str) -> int:
    return p.whole(1, max(1, min(MOST_CHANNELS, MOST_VALUES // prod(p.sides(x)))))


def conv(p: Program, x: str) -> str:
    channels = p.channels(x)
    groups = p.pick([number for number in range(1, channels + 1) if channels % number == 0])
    filters = groups * p.whole(1, max(1, _filters(p, x) // groups))
    settings = _window(p, x) | _extras(p) | ({"groups": groups} if groups > 1 else {})
    return p.layer(f"Conv2D({filters}, {words(**settings)})", x)


def depthwise(p: Program, x: str) -> str:
    multiplier = p.whole(1, 2 if p.channels(x) * 2 <= MOST_CHANNELS else 1)
    return p.layer(f"DepthwiseConv2D({words(**_window(p, x), depth_multiplier=multiplier, **_extras(p))})", x)


def separable(p: Program, x: str) -> str:
    settings = _window(p, x) | {"depth_multiplier": p.whole(1, 2)} | _extras(p)
    return p.layer(f"SeparableConv2D({_filters(p, x)}, {words(**settings)})", x)


def transposed(p: Program, x: str) -> str:
    height, width = p.sides(x)
    largest = max(1, isqrt(MOST_VALUES // (height * width)))
    settings: dict[str, Any] = {"kernel_size": (p.whole(1, 4), p.whole(1, 4)), "padding": p.pick(("valid", "same"))}
    if p.flag():
        settings["strides"] = strides = (p.whole(1, min(3, largest)), p.whole(1, min(3, largest)))
        if min(strides) > 1 and p.seldom(4):
            settings["output_padding"] = tuple(p.whole(0, step - 1) for step in strides)
    elif p.flag():
        settings["dilation_rate"] = (p.whole(1, 2), p.whole(1, 2))
    grown = height * width * prod(settings.get("strides", (1,)))
    filters = p.whole(1, max(1, min(4, MOST_VALUES // grown)))
    return p.layer(f"Conv2DTranspose({filters}, {words(**settings, **_extras(p))})", x)


def dense_on_map(p: Program, x: str) -> str:
    return p.layer(f"Dense({_filters(p, x)}, {words(**_extras(p))})", x) if p.last or p.seldom() else x


def batch_norm(p: Program, x: str) -> str:
    rank = len(p.shape(x))
    axis = p.axis if rank == 3 else -1
    if p.seldom(4):
        axis = p.pick([one for one in range(-rank, rank + 1) if one])
    flags = {flag: False for flag in ("scale", "center") if p.seldom(3)}
    return p.layer(f"BatchNormalization({words(axis=axis, epsilon=p.pick((1e-3, 0.02, 0.1)), **flags)})", x)


def layer_norm(p: Program, x: str) -> str:
    rank = len(p.shape(x))
    axis = p.pick((-1, tuple(range(1, rank + 1))))  # Keras's torch backend normalises last axes only
    if rank > 1 and p.seldom(12):
        axis = p.pick(((-2, -1), (rank - 1, rank)))
    flags = {flag: False for flag in ("scale", "center") if p.seldom(4)}
    return p.layer(f"LayerNormalization({words(axis=axis, epsilon=p.pick((1e-3, 0.02)), **flags)})", x)


def normalization(p: Program, x: str) -> str:
    rank = len(p.shape(x))
    axis = p.axis if rank == 3 else -1
    count = p.shape(x)[axis - 1 if axis > 0 else axis]
    if p.flag():
        return p.layer(f"Normalization({words(axis=axis)})", x)
    mean, variance = [p.number() for _ in range(min(count, 12))], [p.positive() for _ in range(min(count, 12))]
    if count > 12:
        mean, variance = mean[0], variance[0]  # type: ignore[assignment]
    invert = True if p.seldom(4) else None
    return p.layer(f"Normalization({words(axis=axis, mean=mean, variance=variance, invert=invert)})", x)


def rescaling(p: Program, x: str) -> str:
    count = p.channels(x) if len(p.shape(x)) == 3 else p.shape(x)[-1]
    if count <= 12 and (p.last or len(p.shape(x)) == 3) and p.flag():
        scale: Any = [p.positive() for _ in range(count)]
        offset: Any = [p.number() for _ in range(count)] if p.last else p.number()
    else:
        scale, offset = p.positive(), p.number()
    return p.layer(f"Rescaling({scale}, {offset})", x)


def activation(p: Program, x: str) -> str:
    rank = len(p.shape(x))
    kind = p.pick(("Activation", "ReLU", "LeakyReLU", "ELU", "PReLU", "Softmax"))
    if kind == "Activation":
        return p.layer(f"Activation({p.pick(ACTIVATIONS)!r})", x)
    if kind == "ReLU":
        # No pixel is at the threshold, where the function jumps.
        settings = {name: p.pick((0.0, 0.123, 0.377)) for name in ("negative_slope", "threshold") if p.flag()}
        if p.flag():
            settings["max_value"] = settings.get("threshold", 0.0) + p.positive()
        return p.layer(f"ReLU({words(**settings)})", x)
    if kind == "LeakyReLU":
        return p.layer(f"LeakyReLU({words(negative_slope=p.positive() / 4)})", x)
    if kind == "ELU":
        return p.layer(f"ELU({words(alpha=p.positive())})", x)
    if kind == "PReLU":
        axes = [axis for axis in range(1, rank + 1) if p.flag()]
        return p.layer(f"PReLU({words(shared_axes=axes or None)})", x)
    return p.layer(f"Softmax({words(axis=p.pick([-1, *range(1, rank + 1)]))})", x)


def idle(p: Program, x: str) -> str:
    made = p.pick([one for one in IDLE if len(p.shape(x)) == 3 or "2D" not in one])
    return p.layer(made, x)


def pool(p: Program, x: str) -> str:
    kind = p.pick(("MaxPooling2D", "AveragePooling2D"))
    sides = p.sides(x)
    padding = p.pick(("valid", "same"))
    size = tuple(p.whole(1, min(3, side)) for side in sides)
    strides = None if p.flag() else (p.whole(1, 3), p.whole(1, 3))
    if kind == "AveragePooling2D" and padding == "same":
        # Where padding is uneven, Keras's torch backend repeats the edge, unlike TensorFlow, which counts no padding.
        wanted = [
            max(0, (-(-side // step) - 1) * step + window - side)
            for side, window, step in zip(sides, size, strides or size, strict=True)
        ]
        padding = "valid" if any(one % 2 for one in wanted) else padding
    return p.layer(f"{kind}({words(pool_size=size, strides=strides, padding=padding)})", x)


def resize(p: Program, x: str) -> str:
    kind = p.pick(("ZeroPadding2D", "Cropping2D", "UpSampling2D"))
    height, width = p.sides(x)
    if kind == "ZeroPadding2D":
        edges: Any = ((p.whole(0, 2), p.whole(0, 2)), (p.whole(0, 2), p.whole(0, 2)))
        return p.layer(f"ZeroPadding2D({p.pick((edges, edges[0], edges[0][0]))})", x)
    if kind == "Cropping2D":
        edges = tuple(
            (one := p.whole(0, min(2, side - 1)), p.whole(0, min(2, side - 1 - one))) for side in (height, width)
        )
        return p.layer(f"Cropping2D({edges})", x)
    largest = max(1, min(3, isqrt(MOST_VALUES // prod(p.shape(x)))))
    size = (p.whole(1, largest), p.whole(1, largest))
    return p.layer(f"UpSampling2D({words(size=size, interpolation=p.pick((None, 'bilinear')))})", x)


# Arithmetic


def arithmetic(p: Program, x: str) -> str:
    """Operators and functions with constants."""
    number = p.number() or 1.0
    kind = p.pick(("plus", "minus", "from", "times", "by", "maximum", "minimum", "channels", "divided"))
    if kind in ("maximum", "minimum") and not p.seldom():
        return x
    if kind == "channels":
        shape = p.shape(x)
        count = shape[-1] if len(shape) < 3 else p.channels(x)
        if count > 12:
            return x
        numbers = [p.positive() for _ in range(count)]
        constant = f"np.array({numbers}, 'float32')"
        if len(shape) == 3 and not p.last:
            constant += "[:, None, None]"
        return p.tensor(f"{x} {p.pick(('+', '*', '-', '/'))} {constant}")
    if kind == "divided":
        return p.tensor(f"{number} / (ops.relu({x}) + 1.0)") if p.seldom(20) else x
    return p.tensor({
        "plus": f"{x} + {number}", "minus": f"{x} - {number}", "from": f"{number} - {x}", "times": f"{number} * {x}",
        "by": f"{x} / {number}", "maximum": f"ops.maximum({x}, {number})", "minimum": f"ops.minimum({number}, {x})",
    }[kind])  # fmt: skip


def function(p: Program, x: str) -> str:
    name = p.pick(FUNCTIONS)
    settings: dict[str, Any] = {}
    if name == "gelu":
        settings["approximate"] = p.pick((None, False, True))
    elif name == "leaky_relu":
        settings["negative_slope"] = p.pick((None, 0.1))
    elif name in ("elu", "celu"):
        settings["alpha"] = p.pick((None, 0.5))
    elif name == "softmax":
        settings["axis"] = p.pick((None, *range(1, len(p.shape(x)) + 1)))
    given = words(**settings)
    return p.tensor(f"ops.{name}({x}{', ' if given else ''}{given})")


# Shapes


def permute(p: Program, x: str) -> str:
    order = list(range(1, len(p.shape(x)) + 1))
    return p.layer(f"Permute({tuple(p.draw(st.permutations(order)))})", x)


def reshape(p: Program, x: str) -> str:
    """Reshape a map to another one."""
    shape = list(p.draw(st.permutations(p.shape(x))))
    for one in (2, 3):
        if shape[0] % one == 0 and p.flag():
            shape[0], shape[1] = shape[0] // one, shape[1] * one
    shape = list(p.draw(st.permutations(shape)))
    if p.flag():
        shape[p.whole(0, 2)] = -1
    made = f"Reshape({tuple(shape)})"
    sides = [side for side in shape if side > 0]
    if len(sides) == 2:
        sides.append(prod(p.shape(x)) // prod(sides))
    return p.layer(made, x) if max(sides) <= 40 else x


def as_sequence(p: Program, x: str) -> str:
    """Reshape a map to two dimensions, work on these, and reshape back."""
    height, width, channels = *p.sides(x), p.channels(x)
    y = p.layer(f"Reshape({p.pick(((height * width, channels), (height, width * channels), (channels, -1)))})", x)
    for _ in range(p.whole(1, 2)):
        y = p.pick(ON_SEQUENCES)(p, y)
    count = prod(p.shape(y))
    other = p.pick([one for one in range(1, MOST_CHANNELS + 1) if count % one == 0])
    rest = count // other
    third = next(one for one in range(isqrt(rest), 0, -1) if rest % one == 0)
    target = (rest // third, third, other) if p.last else (other, rest // third, third)
    return p.layer(f"Reshape({target})", y)


def dense_on_sequence(p: Program, x: str) -> str:
    return p.layer(f"Dense({p.whole(1, 6)}, {words(**_extras(p))})", x)


def flat_concatenation(p: Program, x: str) -> str:
    axis = p.pick((-1, 1, 2, -2))
    return p.layer(f"Concatenate({words(axis=axis)})", x, p.pick(p.same_shape(x)))


# Several inputs


def merge(p: Program, *inputs: str) -> str:
    """Merge tensors of one shape."""
    kind = p.pick((*MERGES, "operator", "Concatenate", "Concatenate"))
    if kind == "operator":
        first, second = inputs[:2]
        written = p.pick((
            f"{first} + {second}", f"{first} * {second}", f"{first} - {second}", f"ops.maximum({first}, {second})",
            f"ops.minimum({first}, {second})", f"{first} / ({second} * {second} + 1.0)",
        ))  # fmt: skip
        return p.tensor(written)
    if kind == "Concatenate":
        return concatenate(p, *inputs)
    return p.layer(f"{kind}()", *(inputs[:2] if kind == "Subtract" else inputs))


def concatenate(p: Program, *inputs: str) -> str:
    rank = len(p.shape(inputs[0]))
    usual = p.axis if rank == 3 else -1
    axis = p.pick((usual, *(one for one in range(-rank, rank + 1) if one)))
    if prod(p.shape(inputs[0])) * len(inputs) > MOST_VALUES:
        return p.layer("Add()", *inputs)
    if p.seldom(4):
        return p.tensor(f"ops.concatenate([{', '.join(inputs)}], {p.pick((f'axis={axis}', f'{axis}'))})")
    return p.layer(f"Concatenate({words(axis=axis)})", *inputs)


def with_earlier(p: Program, x: str) -> str:
    return merge(p, x, p.pick(p.same_shape(x)))


def branches(p: Program, x: str) -> str:
    """Two or three branches that keep the shape, merged."""
    ends = []
    for _ in range(p.whole(2, 3)):
        y = x
        for _ in range(p.whole(0, 2)):
            y = p.pick(KEEPING)(p, y)
        ends.append(y if p.shape(y) == p.shape(x) else x)  # `again` may pool
    return merge(p, *ends)


def inception(p: Program, x: str) -> str:
    """Branches of several widths, concatenated along the channels."""
    ends = [
        p.layer(f"Conv2D({p.whole(1, 3)}, {p.whole(1, 3)}, {words(padding='same', **_extras(p))})", x)
        for _ in range(p.whole(2, 3))
    ]
    return p.layer(f"Concatenate({words(axis=p.axis)})", *ends)


def same_conv(p: Program, x: str) -> str:
    return p.layer(f"Conv2D({p.channels(x)}, {p.whole(1, 3)}, {words(padding='same', **_extras(p))})", x)


def same_pool(p: Program, x: str) -> str:
    size = p.pick((3, 1)) if p.seldom() else 3
    sides = p.sides(x)
    kind = p.pick(("MaxPooling2D", "AveragePooling2D")) if min(sides) > 2 else "MaxPooling2D"
    return p.layer(f"{kind}({size}, strides=1, padding='same')", x)


def squeeze(p: Program, x: str) -> str:
    """Squeeze and excitation, or another product that broadcasts."""
    kind = p.pick(("GlobalAveragePooling2D", "GlobalMaxPooling2D", "mean", "spatial"))
    channels = p.channels(x)
    if kind == "spatial":  # one number for each cell
        gate = p.layer(f"Conv2D(1, {p.whole(1, 3)}, padding='same', activation='sigmoid')", x)
    else:
        if kind == "mean":
            y = p.tensor(f"ops.mean({x}, axis={(1, 2) if p.last else p.pick(((2, 3), (-1, -2)))}, keepdims=True)")
        elif p.flag():
            y = p.layer(f"{kind}(keepdims=True)", x)
        else:
            y = p.layer(f"{kind}()", x)
            if p.flag():
                y = p.layer(f"Dense({channels}, {words(**_extras(p))})", y)
            y = p.layer(f"Reshape({(1, 1, channels) if p.last else (channels, 1, 1)})", y)
        if p.flag():
            y = p.layer(f"Conv2D({p.whole(1, 4)}, 1, activation='relu')", y)
        gate = p.layer(f"Conv2D({channels}, 1, activation={p.pick(('sigmoid', 'hard_sigmoid', 'tanh'))!r})", y)
    if p.flag():
        return p.tensor(f"{x} * {gate}" if p.flag() else f"{gate} * {x}")
    kind = p.pick(("Multiply", *MERGES))
    return p.layer(f"{kind}()", *((x, gate) if p.flag() else (gate, x)))


def again(p: Program, x: str) -> str:
    """Call a layer a second time."""
    fitting = [layer for layer, shape in p.shared if shape == p.shape(x)]
    if p.seldom(12):
        fitting = [layer for layer, shape in p.shared if len(shape) == len(p.shape(x))] or fitting
    if not fitting:
        return x
    layer = p.pick(fitting)
    before = len(p.lines), len(p.tensors), p.names.copy()
    try:
        y = p.tensor(f"{layer}({x})")
    except (ValueError, RuntimeError):  # weights of another shape
        del p.lines[before[0] :], p.tensors[before[1] :]
        p.names = before[2]
        return x
    return y if prod(p.shape(y)) <= MOST_VALUES and len(p.shape(y)) == len(p.shape(x)) else x


def nested(p: Program, x: str) -> str:
    """A model as a layer, functional or Sequential, called once or twice."""
    if p.depth > 1:
        return x
    outer, shared, p.tensors, p.shared = p.tensors, p.shared, [], []
    p.depth += 1
    model, count = p.name("m"), p.whole(1, 3)
    if p.flag():
        start = p.tensor(f"keras.Input({p.shape(x)})")
        y = start
        for _ in range(count):
            y = p.pick(ON_MAPS if len(p.shape(y)) == 3 else ON_VECTORS)(p, y)
        if y == start:
            y = p.layer("Activation('relu')", y)
        p.run(f"{model} = keras.Model({start}, {y})")
    else:
        made = p.name("s")
        p.run(f"{made} = [keras.Input({p.shape(x)})]" if p.flag() else f"{made} = []")
        for _ in range(count):
            inner = p.pick(
                (
                    f"Conv2D({p.whole(1, 4)}, {p.whole(1, 3)}, {words(padding='same', **_extras(p))})",
                    "BatchNormalization()",
                    "ReLU()",
                    f"Activation({p.pick(ACTIVATIONS)!r})",
                    "Dropout(0.2)",
                )
                if len(p.shape(x)) == 3
                else (f"Dense({p.whole(1, 6)}, {words(**_extras(p))})", "BatchNormalization()")
            )
            p.run(f"{made}.append(layers.{inner})")
        p.run(f"{model} = keras.Sequential({made})")
    p.depth -= 1
    p.tensors, p.shared = outer, shared
    p.shared.append((model, p.shape(x)))
    return p.tensor(f"{model}({x})")


KEEPING: tuple[Callable[[Program, str], str], ...] = (
    same_conv, activation, batch_norm, same_pool, arithmetic, function, layer_norm, idle, squeeze, again,
    normalization, rescaling,
)  # fmt: skip
ON_MAPS: tuple[Callable[[Program, str], str], ...] = (
    conv, activation, batch_norm, pool, branches, depthwise, squeeze, inception, separable, transposed, resize,
    with_earlier, arithmetic, function, layer_norm, dense_on_map, again, nested, permute, reshape, as_sequence, idle,
    normalization, rescaling,
)  # fmt: skip
ON_SEQUENCES: tuple[Callable[[Program, str], str], ...] = (
    dense_on_sequence, layer_norm, permute, activation, batch_norm, arithmetic, function, with_earlier,
    flat_concatenation, idle, rescaling, again,
)  # fmt: skip


# Heads


def dense(p: Program, x: str) -> str:
    return p.layer(f"Dense({p.whole(1, 6)}, {words(**_extras(p))})", x)


def gate(p: Program, x: str) -> str:
    return merge(p, x, activation(p, x))


ON_VECTORS: tuple[Callable[[Program, str], str], ...] = (
    dense, activation, batch_norm, idle, layer_norm, arithmetic, function, with_earlier, again, normalization,
    rescaling, nested, gate,
)  # fmt: skip


def to_vector(p: Program, x: str) -> str:
    """Turn a map into a vector."""
    height, width = p.sides(x)
    kind = p.pick((
        "average", "flatten", "max", "pool", "conv", "two readers", "reshape", "mean", "rows", "dot", "single cell",
    ))  # fmt: skip
    average, largest = "GlobalAveragePooling2D()", "GlobalMaxPooling2D()"
    if kind == "average":
        return p.layer(average, x)
    if kind == "max":
        return p.layer(largest, x)
    if kind == "flatten":
        return flatten(p, x)
    if kind == "pool":
        return flatten(p, p.layer(f"{p.pick(('AveragePooling2D', 'MaxPooling2D'))}({(height, width)})", x))
    if kind == "conv":
        x = p.layer(f"{p.pick((average, largest))[:-1]}keepdims=True)", x)
        for _ in range(p.whole(1, 2)):
            x = p.layer(f"Conv2D({p.whole(1, 6)}, 1, {words(**_extras(p))})", x)
        return flatten(p, x)
    if kind == "single cell":  # a convolution of the whole map
        return flatten(p, p.layer(f"Conv2D({p.whole(1, 4)}, {(height, width)}, {words(**_extras(p))})", x))
    if kind == "two readers":
        return concatenate(p, p.layer(average, x), p.layer(largest, x))
    if kind == "reshape":
        return p.layer(f"Reshape({p.pick(((-1,), (prod(p.shape(x)),)))})", x)
    if kind == "mean":
        return p.tensor(f"ops.mean({x}, axis={[1, 2] if p.last else [2, 3]})")
    if kind == "rows":
        return flatten(p, p.layer(f"Reshape({(height, -1)})", x))
    vectors = [p.layer(f"Dense({p.whole(3, 3)})", p.layer(one, x)) for one in (average, largest)]
    dot = p.layer(f"Dot({words(axes=p.pick((1, -1)), normalize=p.flag())})", *vectors)
    return p.layer("Concatenate()", dot, vectors[0])


def flatten(p: Program, x: str) -> str:
    if p.last:
        return p.layer(f"Flatten({words(data_format='channels_first' if p.seldom(20) else None)})", x)
    return p.layer(f"Flatten({words(data_format=p.pick((None, 'channels_last')))})", x)


def end(p: Program, x: str) -> str:
    """A head of one of many kinds, or none."""
    kind = p.pick(("classes", "classes", "classes", "vector", "map", "convolution then pool"))
    if kind == "map":
        return x
    if kind == "convolution then pool":
        y = p.layer(f"Conv2D({p.whole(2, 5)}, 1)", x)
        y = p.layer(f"{p.pick(('GlobalAveragePooling2D', 'GlobalMaxPooling2D'))}()", y)
        return p.layer(f"Activation({p.pick(('softmax', 'sigmoid', 'linear'))!r})", y)
    x = to_vector(p, x)
    for _ in range(p.whole(0, 2)):
        x = p.pick(ON_VECTORS)(p, x)
    if kind == "classes":
        after = p.pick((None, "Activation('softmax')", "Softmax()", "Activation('sigmoid')", "Dropout(0.1)"))
        fused = p.pick((None, "softmax", "sigmoid")) if after is None else None
        x = p.layer(f"Dense({p.whole(2, 5) if fused or after else p.whole(1, 5)}, {words(activation=fused)})", x)
        x = x if after is None else p.layer(after, x)
    return x


def front(p: Program, x: str) -> str:
    """Preprocessing inside the model."""
    if p.seldom(4):
        x = p.layer(p.pick(AUGMENTATIONS), x, share=False)
    kind = p.pick(("none", "none", "rescaling", "normalization", "caffe", "tf", "torch"))
    p.inside = kind != "none"
    if kind == "rescaling":
        return p.layer(f"Rescaling(1 / {p.pick((255, 127.5))}, {p.number()})", x, share=False)
    if kind == "normalization":
        mean, variance = [100.0 + p.number() for _ in range(3)], [4000.0 * p.positive() for _ in range(3)]
        return p.layer(f"Normalization({words(axis=p.axis, mean=mean, variance=variance)})", x, share=False)
    if kind != "none":
        return p.tensor(f"keras.applications.imagenet_utils.preprocess_input({x}, mode={kind!r})")
    return x


@st.composite
def programs(draw: Callable[[st.SearchStrategy], Any]) -> Program:
    """A model with one image input and one output."""
    p = Program(draw)
    keras.utils.clear_session(free_memory=False)
    p.last = not p.seldom(5)
    p.form, p.seed = p.pick((".keras", ".h5")), p.whole(0, 1000)
    p.run(f"keras.config.set_image_data_format('channels_{'last' if p.last else 'first'}')")
    try:
        sides = (p.whole(9, 20), p.whole(9, 20))
        start = x = p.tensor(f"keras.Input({(*sides, 3) if p.last else (3, *sides)})")
        x = front(p, x)
        p.tensors = [x]
        for _ in range(p.whole(1, 7)):
            x = p.pick(ON_MAPS)(p, x)
        x = end(p, x)
        if x == start:
            x = p.layer("Activation('relu')", x)
        p.run(f"model = keras.Model({start}, {x})")
        if p.seldom(10):
            p.run("whole = keras.Sequential([keras.Input(model.input_shape[1:]), model])")
        else:
            p.run("whole = model")
    finally:
        keras.config.set_image_data_format("channels_last")
    return p


# The check


@dataclass
class Tally:
    """What became of the models."""

    count: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)  # layers and operations
    notes: Counter[str] = field(default_factory=Counter)


def check(p: Program, folder: Path, tally: Tally) -> None:
    """Save, convert and load a model, and compare its answers with Keras's.

    Raises:
        AssertionError, ValueError: an answer is wrong, or the model is refused for no reason of `REFUSALS`.
    """
    keras.config.set_image_data_format(f"channels_{'last' if p.last else 'first'}")
    tally.count += 1
    try:
        _check(p, folder, tally)
    finally:
        keras.config.set_image_data_format("channels_last")


def _check(p: Program, folder: Path, tally: Tally) -> None:
    model, whole = p.scope["model"], p.scope["whole"]
    choose_weights(whole, p.seed)
    tally.kinds.update(set(_kinds(whole)))
    sides = model.input_shape[1:3] if p.last else model.input_shape[2:4]
    pictures = np.random.default_rng(p.seed).integers(0, 256, (2, *sides, 3)).astype(np.uint8)
    images = pictures.astype(np.float32) if p.inside else pictures / np.float32(255)
    tail = dict(_tail(model.output))
    with torch.no_grad():
        given = torch.from_numpy(images if p.last else images.transpose(0, 3, 1, 2).copy())
        try:
            outputs = keras.Model(model.input, [model.output, *tail.values()])(given, training=False)
        except RuntimeError:  # Keras built it, but cannot run it: a shared layer's numbers are of another shape
            tally.refused["by Keras itself"] += 1
            return None
    answers, *befores = (each.numpy() for each in (outputs if tail else [outputs]))
    if not np.isfinite(answers).all() or np.abs(answers).max() > 1e9:
        tally.notes["too large for float32"] += 1
        return None
    source, destination = folder / f"model{p.form}", folder / "model.safetensors"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole.save(source)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            report = convert(
                source, destination, preprocessing=None if p.inside else "unit", proof=True, isolated=False
            )
        except ValueError as error:
            if not p.inside and "its model normalises pictures itself" in str(error):
                p.inside = True  # by a layer that could stand anywhere
                return _check(p, folder, tally)
            why = next((word for word, sentence in REFUSALS.items() if re.search(sentence, str(error))), None)
            if why is None:
                raise
            tally.refused[why] += 1
            return None
        network = load(destination, mapped=False)
        normalised = torch.from_numpy(np.stack([normalize(one, network.card.preprocessing) for one in pictures]))
        with torch.no_grad():
            answered = _answers(network, normalised)
    end = next((choice for choice in report.choices if "which is left out" in choice), None)
    if end is not None:
        first = re.search(r"ends with ([^,]*),", end)[1]
        before = {re.sub(r"[^\w-]", "_", name): each for name, each in zip(tail, befores, strict=True)}
        answers = before[first.rstrip("_")] if first not in before else before[first]
        tally.notes["end left out"] += 1
    found = _as_keras(answered, answers, p.last)
    allowed = TOLERANCE * np.abs(answers).max() + FLOOR
    if np.abs(found - answers).max() > allowed:
        with torch.no_grad():
            exact = _as_keras(_answers(network.double(), normalised.double()), answers, p.last)
        if np.abs(found - exact).max() > allowed / 10:
            tally.notes["multiplies rounding errors"] += 1
            return None
        raise AssertionError(f"answers differ by {np.abs(found - answers).max():.2e}, more than {allowed:.2e}")
    tally.notes["has a map" if network.no_map is None else "has no map"] += 1
    tally.notes["has a head" if network.head is not None else "has no head"] += 1
    tally.notes["answers depend on the picture"] += bool(np.abs(answers[0] - answers[1]).max() > 10 * allowed)
    if network.no_map is None and network.head is not None:
        map_graph(network)
        with torch.no_grad():
            slid = slide(network.head, network.features(normalised), network.window)
            torch.testing.assert_close(slid[:, :, 0, 0], network(normalised), rtol=1e-4, atol=1e-4)
        assert slid.shape[2:] == (1, 1)
    return None


def _kinds(model: Any) -> Iterator[str]:
    for operation in model.layers if isinstance(model, keras.Sequential) else model.operations:
        if isinstance(operation, keras.Model):
            yield from _kinds(operation)
        else:
            is_layer = isinstance(operation, keras.layers.Layer)
            yield type(operation).__name__ if is_layer else f"ops.{type(operation).__name__}"


def _tail(output: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, input) of the model's last operations, from the end, as long as they have one input each."""
    while True:
        operation, number, _ = output._keras_history
        inputs = operation._inbound_nodes[number].input_tensors
        if len(inputs) != 1:
            return
        output = inputs[0]
        yield operation.name, output


def _answers(network: Any, images: torch.Tensor) -> torch.Tensor:
    if network.head is None:
        return network.features(images)
    logits = network(images)
    return {"softmax": lambda x: x.softmax(1), "sigmoid": torch.sigmoid, "none": lambda x: x}[network.card.activation](
        logits
    )


def _as_keras(found: torch.Tensor, answers: np.ndarray, last: bool) -> np.ndarray:
    if found.dim() == 4 and answers.ndim == 4 and last:
        found = found.permute(0, 2, 3, 1)
    values = found.double().numpy()
    if values.shape != answers.shape and sum(side > 1 for side in answers.shape[1:]) <= 1:
        values = values.reshape(answers.shape)  # a vector that Keras keeps as a map of one cell
    assert values.shape == answers.shape, f"answers of {values.shape} instead of {answers.shape}"
    return values


def run(count: int, number: int, *, shrink: bool = True) -> Tally:
    """Check `count` random models; the same ones for the same `number`. The first failure is shrunk and raised.

    Hypothesis makes most examples after the tenth out of earlier ones, so each ten models have a seed of their own.
    """
    tally = Tally()
    phases = [Phase.generate, *([Phase.shrink] if shrink else [])]

    def answers_as_keras_does(program: Program) -> None:
        with TemporaryDirectory() as folder:
            check(program, Path(folder), tally)

    for part in range(-(-count // 10)):
        wanted = settings(
            max_examples=min(10, count - 10 * part), database=None, deadline=None, phases=phases,
            suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
        )  # fmt: skip
        seed(100_000 * number + part)(wanted(given(programs())(answers_as_keras_does)))()
    return tally

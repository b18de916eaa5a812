"""Small models of Keras 1 and 2 with each layer whose meaning depends on the version or on Theano.

`scripts/make_layer_fixtures.py` builds them with the real frameworks and writes them into tests/data; the tests read
`FILES`. Keras is given by the caller: the environment decides which.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

SIZE = (9, 12)  # pixels, unequal so that exchanged axes show
VERSIONS = ("1.2.2", "2.1.6", "2.2.4", "2.3.1")


class Kit:
    """The layers of one Keras in one data format, by the words of Keras 2."""

    def __init__(self, layers: Any, version: str, *, first: bool) -> None:
        self.layers, self.old, self.first = layers, version < "2", first
        self.version, self.channels = version, 1 if first else -1

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layers, name)

    def conv(
        self, filters: int, size: tuple[int, int], strides: tuple[int, int] = (1, 1), padding: str = "same",
        dilation: tuple[int, int] = (1, 1), **words: Any,
    ) -> Any:  # fmt: skip
        if not self.old:
            return self.layers.Conv2D(
                filters, size, strides=strides, padding=padding, dilation_rate=dilation, **words
            )  # fmt: skip
        if dilation != (1, 1):
            return self.layers.AtrousConvolution2D(filters, *size, atrous_rate=dilation, border_mode=padding, **words)
        return self.layers.Convolution2D(filters, *size, subsample=strides, border_mode=padding, **words)

    def transposed(
        self, filters: int, size: tuple[int, int], strides: tuple[int, int], padding: str, shape: tuple[int, int]
    ) -> Any:
        if not self.old:
            return self.layers.Conv2DTranspose(filters, size, strides=strides, padding=padding)
        whole = (None, filters, *shape) if self.first else (None, *shape, filters)
        return self.layers.Deconvolution2D(filters, *size, output_shape=whole, subsample=strides, border_mode=padding)

    def pool(self, kind: str, size: tuple[int, int], strides: tuple[int, int], padding: str = "same") -> Any:
        word = "border_mode" if self.old else "padding"
        return getattr(self.layers, f"{kind}Pooling2D")(size, strides=strides, **{word: padding})

    def join(self, kind: str, tensors: list[Any], **words: Any) -> Any:
        if not self.old:
            return getattr(self.layers, kind)(**words)(tensors)
        modes = {"Add": "sum", "Multiply": "mul", "Average": "ave", "Maximum": "max", "Concatenate": "concat"}
        axis = {"concat_axis": words["axis"]} if "axis" in words else {}
        return self.layers.merge(tensors, mode=modes.get(kind, kind), **axis)


def _convolutions(k: Kit, x: Any) -> Any:
    x = k.conv(4, (4, 3), (1, 2), activation="relu")(x)
    x = k.conv(3, (3, 2), padding="valid", dilation=(2, 1))(x)
    return k.conv(3, (2, 2))(x)


def _transposed(k: Kit, x: Any) -> Any:
    x = k.transposed(4, (3, 5), (2, 3), "same", (6, 12))(k.conv(2, (3, 3), (3, 3))(x))
    x = k.transposed(2, (4, 2), (2, 1), "valid", (14, 13))(x)
    return k.transposed(2, (1, 2), (2, 3), "valid", (28, 39))(x)  # strides above the kernel


def _transposed_output_padding(k: Kit, x: Any) -> Any:
    x = k.Conv2DTranspose(4, 3, strides=2, padding="same", output_padding=1)(k.conv(2, (3, 3), (3, 3))(x))
    return k.Conv2DTranspose(2, (3, 4), strides=2, padding="valid", output_padding=(0, 1))(x)


def _depthwise(k: Kit, x: Any) -> Any:
    x = k.DepthwiseConv2D((3, 4), strides=2, padding="same", depth_multiplier=2, activation="relu")(x)
    return k.SeparableConv2D(5, (3, 5), padding="same", depth_multiplier=2)(x)


def _separable_even(k: Kit, x: Any) -> Any:
    return k.SeparableConv2D(5, (2, 4), padding="same", strides=1)(x)


def _pools(k: Kit, x: Any) -> Any:
    x = k.pool("Max", (3, 3), (2, 2))(k.conv(4, (3, 3))(x))
    x = k.pool("Average", (2, 2), (1, 1))(x)
    x = k.pool("Max", (2, 3), (1, 1), "valid")(k.conv(4, (1, 1))(x))
    x = k.pool("Max", (5, 4), (1, 1))(k.conv(4, (1, 1))(x))
    return k.pool("Average", (3, 4), (2, 1))(x)


def _activations(k: Kit, x: Any) -> Any:
    def again(x: Any, **words: Any) -> Any:
        return k.conv(3, (1, 2), **words)(x)

    of_cells = [2, 3] if k.first else [1, 2]
    x = k.LeakyReLU(0.2)(again(x))
    x = k.PReLU(shared_axes=of_cells)(again(k.PReLU()(again(x))))
    x = k.ThresholdedReLU(0.1)(again(x))
    x = k.ELU(0.7)(again(x))
    x = again(x, activation="hard_sigmoid")
    if k.version >= "2.2":
        x = k.ReLU(max_value=0.4, negative_slope=0.25, threshold=0.1)(again(x))
        x = k.Softmax(axis=1)(again(x))
    return k.Activation("softplus")(again(x, activation="tanh"))


def _edges(k: Kit, x: Any) -> Any:
    x = k.ZeroPadding2D((1, 2, 3, 0) if k.old else ((1, 2), (3, 0)))(x)
    x = k.Cropping2D(((0, 1), (2, 1)))(k.conv(4, (3, 3))(x))
    return k.BatchNormalization(axis=k.channels, epsilon=0.02)(k.UpSampling2D((2, 3))(x))


def _merges(k: Kit, x: Any) -> Any:
    one, other = k.conv(4, (3, 3))(x), k.conv(4, (1, 1))(x)
    x = k.join("Concatenate", [k.join(kind, [one, other]) for kind in ("Add", "Maximum")], axis=k.channels)
    x = k.join("Multiply", [k.conv(4, (1, 1))(x), one])
    x = k.join("Average", [x, one, other])
    x = k.join("Concatenate", [x, one], axis=2)  # columns of channels-first maps and of channels-last maps
    if not k.old:
        x = k.join("Subtract", [x, k.conv(4, (1, 1))(x)])
    return x


def _flatten(k: Kit, x: Any) -> Any:
    x = k.Dense(5, activation="relu")(k.Flatten()(k.conv(4, (3, 3), (3, 3))(x)))
    return k.Dense(3, activation="softmax")(k.Dropout(0.5)(k.BatchNormalization()(x)))


def _flatten_normalized(k: Kit, x: Any) -> Any:
    return k.Dense(3, activation="sigmoid")(k.BatchNormalization()(k.Flatten()(k.conv(4, (3, 3), (3, 3))(x))))


def _permuted(k: Kit, x: Any) -> Any:
    return k.Dense(3)(k.Flatten()(k.Permute((2, 3, 1))(k.conv(4, (3, 3), (3, 3))(x))))


def _reshaped(k: Kit, x: Any) -> Any:
    return k.Dense(3)(k.Flatten()(k.Permute((2, 1))(k.Reshape((6, 8))(k.conv(4, (3, 3), (3, 3))(x)))))


def _vectors(k: Kit, x: Any) -> Any:
    x = k.conv(4, (3, 3))(x)
    return k.Dense(4)(k.GlobalMaxPooling2D()(x)), k.Dense(4)(k.GlobalAveragePooling2D()(x))


def _dot(k: Kit, x: Any) -> Any:
    one, other = _vectors(k, x)
    if k.old:
        return k.merge([one, other], mode="dot", dot_axes=1)
    x = k.Concatenate()([k.Dot(1)([one, other]), k.Dot(-1, normalize=True)([one, other])])
    return k.Dense(3)(x)


def _cosine(k: Kit, x: Any) -> Any:
    return k.merge([*_vectors(k, x)], mode="cos")


MODELS: dict[str, tuple[Callable[[Kit, Any], Any], tuple[str, ...]]] = {  # name -> (model, versions that have it)
    "convolutions": (_convolutions, VERSIONS),
    "transposed": (_transposed, VERSIONS),
    "transposed_output_padding": (_transposed_output_padding, VERSIONS[2:]),
    "depthwise": (_depthwise, VERSIONS[2:]),  # on Theano from 2.2 on
    "separable_even": (_separable_even, VERSIONS[3:]),
    "pools": (_pools, VERSIONS),
    "activations": (_activations, VERSIONS),
    "edges": (_edges, VERSIONS),
    "merges": (_merges, VERSIONS),
    "flatten": (_flatten, VERSIONS),
    "flatten_normalized": (_flatten_normalized, VERSIONS),
    "permuted": (_permuted, VERSIONS),
    "reshaped": (_reshaped, VERSIONS),
    "dot": (_dot, VERSIONS),
    "cosine": (_cosine, VERSIONS[:1]),
}
LAST = ("convolutions", "transposed", "depthwise", "pools", "edges", "merges", "flatten")  # also made channels last
FILES = {  # file -> (version, model, data format)
    f"keras{version.replace('.', '') if version > '2' else '1'}/layers/{name}_{order}.h5": (version, name, order)
    for name, (_, versions) in MODELS.items()
    for version in versions
    for order in (("first", "last") if name in LAST else ("first",))
}

"""Narrow networks: Keras's own code for its applications, given layers with fewer channels, from Keras 1.2.2 on.

Keras is imported by name inside functions: the environment decides which.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import SimpleNamespace
from typing import Any

from tests.reference.goldens import WIDTHS, Golden

FUNCTIONS = {"vgg16": "VGG16", "vgg19": "VGG19", "resnet50": "ResNet50", "inception_v3": "InceptionV3"}


class Narrow:
    """Layers of a network of Keras Applications, told by their names, with the channels of `widths`."""

    def __init__(self, golden: Golden, layers: Any) -> None:
        self.network = golden.network.removesuffix("-keras1")
        self.widths, self.hidden = WIDTHS[self.network], golden.arguments.get("hidden", ())
        self.layers, self.made = layers, 0

    def conv(self, kind: str) -> Any:
        def build(filters: int, *arguments: Any, **options: Any) -> Any:
            self.made += 1
            width = self.width(filters, options.get("name") or "")
            return getattr(self.layers, kind)(width, *arguments, **options)

        return build

    def dense(self, units: int, **options: Any) -> Any:
        hidden = dict(zip(("fc1", "fc2"), self.hidden, strict=False))
        return self.layers.Dense(hidden.get(options["name"], units), **options)

    def width(self, filters: int, name: str) -> int:
        if self.network == "inception_v3":  # which leaves most of its layers without a name
            return self.widths[self.made - 1]
        if name.startswith("block"):  # block3_conv1
            return self.widths[int(name[5]) - 1]
        if name in ("conv1", "conv1_conv"):
            return self.widths[0]
        stage = int(name[3] if name.startswith("res") else name[4])  # res3a_branch2a, conv3_block1_1_conv
        return self.widths[stage - 1] * (4 if filters in (256, 512, 1024, 2048) and self.last(name) else 1)

    @staticmethod
    def last(name: str) -> bool:
        """Whether a convolution of a ResNet is the last of its bottleneck, or the shortcut."""
        return name.endswith(("branch1", "2c", "_0_conv", "_3_conv"))


@contextmanager
def narrow_layers(module: Any, golden: Golden) -> Iterator[dict[str, Any]]:
    """Make `keras.applications` build `golden` narrow; gives what its function of Keras 2.2 and 2.3 wants besides."""
    if golden.full:
        yield {}
        return
    layers = import_module("keras.layers")
    narrow = Narrow(golden, layers)
    changed = {kind: narrow.conv(kind) for kind in ("Convolution2D", "Conv2D")} | {"Dense": narrow.dense}
    if module.__name__.startswith("keras_applications"):
        of_keras = {name: import_module(f"keras.{name}") for name in ("backend", "models", "utils")}
        yield of_keras | {"layers": SimpleNamespace(**vars(layers) | changed)}
        return
    if golden.version.startswith("3"):
        changed = {"layers": SimpleNamespace(**vars(module.layers) | changed)}
    before = {name: vars(module)[name] for name in changed if name in vars(module)}
    vars(module).update({name: changed[name] for name in before})
    yield {}
    vars(module).update(before)


def keras_application(golden: Golden) -> Any:
    """The network as `keras.applications` has it, with or without its top."""
    plain = golden.network.removesuffix("-keras1")
    module = plain
    if golden.version.startswith("3"):
        package = "keras.src.applications"
        module = "resnet" if plain == "resnet50" else plain
    else:
        package = "keras_applications" if golden.version >= "2.2" else "keras.applications"
        if golden.network == "resnet50" and golden.lineage == "keras-applications":
            module = "resnet"
    with narrow_layers(import_module(f"{package}.{module}"), golden) as modules:
        return getattr(import_module(f"{package}.{module}"), FUNCTIONS[plain])(
            include_top=golden.top == "standard", weights=None, input_shape=shape(golden),
            classes=golden.classes or 1000, **modules,
        )  # fmt: skip


def shape(golden: Golden) -> tuple[int, int, int]:
    """Of one picture, as Keras takes it."""
    return (3, *golden.size) if golden.data_format == "channels_first" else (*golden.size, 3)


def build(golden: Golden) -> Any:
    """The whole model."""
    layers, models = import_module("keras.layers"), import_module("keras.models")
    network = keras_application(golden)
    if golden.top in ("standard", "none"):
        return network
    if golden.top == "flat":
        pooled = layers.GlobalAveragePooling2D()(network.output)
        return models.Model(network.input, layers.Dense(1, activation="sigmoid")(pooled))
    if golden.top in ("nested", "nested top"):
        cells = {"input_shape": tuple(int(side) for side in network.output_shape[1:])}
        first = cells if golden.top == "nested top" and not golden.version.startswith("3") else {}
        top = [
            layers.Flatten(**first),
            layers.Dense(9, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(5, activation="softmax"),
        ]
        if golden.top == "nested":
            return models.Sequential([network, *top])
        return models.Model(network.input, models.Sequential(top)(network.output))
    if golden.top == "batch norm":
        x = layers.Dense(9, use_bias=False)(layers.GlobalAveragePooling2D()(network.output))
        x = layers.Activation("relu")(layers.BatchNormalization()(x))
        return models.Model(network.input, layers.Dense(5, activation="softmax")(layers.Dropout(0.25)(x)))
    if golden.top == "flat batch norm":
        x = layers.BatchNormalization()(layers.Flatten()(network.output))
        return models.Model(network.input, layers.Dense(5, activation="softmax")(x))
    if golden.top == "rescaling":
        front: list[Any] = [layers.Input(shape(golden)), layers.Rescaling(1 / 255)]
        pooled = [layers.GlobalAveragePooling2D(), layers.Dropout(0.2)]
        return models.Sequential([*front, network, *pooled, layers.Dense(5, activation="softmax")])
    inputs = layers.Input(shape(golden))  # as the guides to transfer learning have it
    x = layers.RandomRotation(0.1)(layers.RandomFlip("horizontal")(inputs))
    x = network(layers.Rescaling(1 / 127.5, offset=-1)(x), training=False)
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    return models.Model(inputs, layers.Dense(5, activation="softmax")(x))

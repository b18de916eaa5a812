"""What a model's config says about its input, and about what an architecture leaves open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from converters.listed import few
from converters.names import Found
from converters.plan import Wishes
from converters.readers.config_checks import LARGEST
from converters.readers.keras_file import KerasFile, KerasLayer
from converters.readers.model_config import Node, upstream

KERAS_EPSILON = 1e-3  # of batch normalisation, Keras's default
AUGMENTATIONS = (
    "RandomFlip", "RandomRotation", "RandomZoom", "RandomTranslation", "RandomContrast", "RandomBrightness",
    "RandomHeight", "RandomWidth", "GaussianNoise", "Dropout", "RandomShear", "RandomErasing",
    "RandomSaturation", "RandomHue", "RandomColorJitter", "RandomGrayscale", "RandomInvert", "RandomPosterization",
    "RandomSharpness", "RandomGaussianBlur", "RandomPerspective", "AugMix", "RandAugment",
)  # fmt: skip
CODE = ("Lambda", "TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer")


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def epsilons(graph: Sequence[Node], found: Found) -> set[float]:
    """The epsilons of the convolutional part's batch normalisations."""
    names = {layer.name for layer in found.base.values() if layer.kind == "BatchNormalization"}
    return {
        float(node.setting("epsilon", default=KERAS_EPSILON))
        for node in graph
        if node.kind == "BatchNormalization" and node.name in names
    }


def stride_place(graph: Sequence[Node] | None) -> str:
    """Where ResNet50's blocks stride: Keras's own in the first 1x1 convolution."""
    if graph is not None:
        for node in graph:
            if node.kind == "Conv2D":
                kernel, strides = (_pair(node.setting(word, default=1)) for word in ("kernel_size", "strides"))
                if (kernel, strides) == ((3, 3), (2, 2)):
                    return "3x3"
    return "1x1"


def reads_pixels(
    file: KerasFile, graph: Sequence[Node] | None, found: Found, named: bool
) -> tuple[tuple[float, float] | None, list[str]]:
    """What the model does to its input before the first convolution.

    Args:
        named: whether the user named the preprocessing, which code in the model is then taken to be a part of.

    Returns:
        (scale, offset) of a Rescaling layer, or None; and what was chosen for want of better.

    Raises:
        ValueError: a layer that cannot be read stands there.
    """
    if graph is None:
        return None, []
    base = {layer.name for layer in found.base.values()}
    first = next(place for place, node in enumerate(graph) if node.name in base)
    rescaling: tuple[float, float] | None = None
    code = []
    for node in (graph[place] for place in sorted(upstream(graph, first) - {first})):
        if node.kind == "Rescaling" and rescaling is None:
            scale, offset = node.config.get("scale", 1.0), node.config.get("offset", 0.0)
            if not all(isinstance(value, int | float) and abs(value) <= LARGEST for value in (scale, offset)):
                raise ValueError(
                    f"{file.path}: {node.name} scales the colours by {scale!r}, {offset!r}; numbers are read"
                )
            rescaling = float(scale), float(offset)
        elif node.kind in CODE and named:
            code.append(node.name)
        elif node.kind not in (*AUGMENTATIONS, "InputLayer", "ZeroPadding2D", "Identity", "Sequential"):
            way_out = (
                "name the whole preprocessing with --preprocessing" if node.kind in CODE else "remove it and save again"
            )
            raise ValueError(
                f"{file.path}: {node.name} ({node.kind}) changes the input in a way that is not read; {way_out}"
            )
    return rescaling, _prepares(code)


def listed_front(file: KerasFile, front: Sequence[KerasLayer], wishes: Wishes) -> list[str]:
    """What was chosen for layers that a file of weights lists before the first convolution.

    Raises:
        ValueError: the user did not name the preprocessing, which they are a part of.
    """
    names = [layer.name for layer in front]
    if wishes.preprocessing is None:
        raise ValueError(
            f"{file.path} lists {few(names)} before the first convolution, and not what is done there; name the"
            " whole preprocessing with --preprocessing"
        )
    return _prepares(names)


def _prepares(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    return [f"{few(names)} before the first convolution is taken to be part of the preprocessing you named"]

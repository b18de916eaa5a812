"""Write files in the layout of Keras 1 by hand, at any size: the names, attributes and shapes of the goldens."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from tests.reference.goldens import DATA

Shapes = dict[str, tuple[int, ...]]
Layers = dict[str, tuple[np.ndarray, np.ndarray]]  # layer -> kernel and bias

ALEXNET: Shapes = {  # layer -> shape of its kernel
    "conv_1": (96, 3, 11, 11),
    "conv_2_1": (128, 48, 5, 5),
    "conv_2_2": (128, 48, 5, 5),
    "conv_3": (384, 256, 3, 3),
    "conv_4_1": (192, 192, 3, 3),
    "conv_4_2": (192, 192, 3, 3),
    "conv_5_1": (128, 192, 3, 3),
    "conv_5_2": (128, 192, 3, 3),
    "dense_1": (9216, 4096),
    "dense_2": (4096, 4096),
    "dense_3": (4096, 1000),
}


def vgg_shapes(depths: tuple[int, ...]) -> Shapes:
    """layer -> shape of its kernel, for VGG with so many convolutions in each block."""
    shapes: Shapes = {}
    channels = 3
    for block, (depth, width) in enumerate(zip(depths, (64, 128, 256, 512, 512), strict=True), 1):
        for conv in range(1, depth + 1):
            shapes[f"conv{block}_{conv}"] = (width, channels, 3, 3)
            channels = width
    return shapes | {"dense_1": (25088, 4096), "dense_2": (4096, 4096), "dense_3": (4096, 1000)}


FULL = {"alexnet": ALEXNET, "vgg16": vgg_shapes((2, 2, 3, 3, 3)), "vgg19": vgg_shapes((2, 2, 4, 4, 4))}


def random_layers(shapes: Shapes, seed: int = 0) -> Layers:
    """layer -> (kernel, bias) float32, of a size that keeps activations alive."""
    random = np.random.default_rng(seed)
    layers: Layers = {}
    for name, shape in shapes.items():
        inputs = np.prod(shape[1:]) if len(shape) == 4 else shape[0]
        kernel = random.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / inputs))
        outputs = shape[0] if len(shape) == 4 else shape[1]
        layers[name] = kernel, random.standard_normal(outputs, np.float32)
    return layers


def write_keras1(path: Path, layers: Layers) -> None:
    """Layers without weights are listed too, with an empty float64 array of names, as Keras does."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in all_names(list(layers))]
        for name in all_names(list(layers)):
            group = file.create_group(name)
            if name not in layers:
                group.attrs["weight_names"] = np.zeros(0)
                continue
            group.attrs["weight_names"] = [f"{name}_W".encode(), f"{name}_b".encode()]
            group[f"{name}_W"], group[f"{name}_b"] = layers[name]


def all_names(names: list[str]) -> list[str]:
    """With those of layers without weights, as real Keras lists them, where these are the layers of a golden."""
    for network in FULL:
        with h5py.File(DATA / "keras1" / f"{network}.h5") as file:
            listed = list(file.attrs["layer_names"])
        if set(names) <= set(listed):
            return listed
    return [*names, "softmax"]

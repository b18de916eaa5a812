"""Every network of Keras Applications at its smallest size: converted whole and from weights alone, against real Keras.

The weights and statistics are random. Keras runs on its torch backend.
"""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import h5py
import numpy as np
import torch
from safetensors.torch import load_file

from converters import convert
from convnets_torch import load
from convnets_torch.images.preprocessing import normalize
from tests.reference.keras3_graphs import choose_weights

TOLERANCE = 1e-4  # of the largest output
CLASSES = 7
SMALLEST = {"InceptionV3": 75, "InceptionResNetV2": 75, "Xception": 71}  # pixels; 32 for all others
FAMILIES = {  # family -> its networks, the smallest first
    "VGG": ("VGG16", "VGG19"),
    "ResNet": ("ResNet50", "ResNet101", "ResNet152"),
    "ResNetV2": ("ResNet50V2", "ResNet101V2", "ResNet152V2"),
    "Inception": ("InceptionV3",),
    "InceptionResNet": ("InceptionResNetV2",),
    "Xception": ("Xception",),
    "MobileNet": ("MobileNet",),
    "MobileNetV2": ("MobileNetV2",),
    "MobileNetV3": ("MobileNetV3Small", "MobileNetV3Large"),
    "DenseNet": ("DenseNet121", "DenseNet169", "DenseNet201"),
    "NASNet": ("NASNetMobile", "NASNetLarge"),
    "EfficientNet": tuple(f"EfficientNetB{number}" for number in range(8)),
    "EfficientNetV2": tuple(f"EfficientNetV2{name}" for name in ("B0", "B1", "B2", "B3", "S", "M", "L")),
    "ConvNeXt": tuple(f"ConvNeXt{name}" for name in ("Tiny", "Small", "Base", "Large", "XLarge")),
}
MORE: dict[str, tuple[dict[str, Any], ...]] = {  # options that give other graphs or widths
    "MobileNet": ({"alpha": 0.25},),
    "MobileNetV2": ({"alpha": 0.35}, {"alpha": 1.4}),
    "MobileNetV3Small": ({"alpha": 0.35}, {"minimalistic": True}, {"include_preprocessing": False}),
    "MobileNetV3Large": ({"alpha": 0.35}, {"minimalistic": True}),
    "EfficientNetV2B0": ({"include_preprocessing": False},),
    "ConvNeXtTiny": ({"include_preprocessing": False},),
}
LISTED, NAMED = "weights.h5", "model.weights.h5"
FORMS = ("model.h5", LISTED, NAMED)  # beside model.keras


@dataclass
class Row:
    """What was found for one network.

    Attributes:
        name: of the network, with its options.
        network: the network's name in the card.
        error: the largest difference from Keras's output, as a share of the largest value.
        spread: the largest difference between the outputs for two pictures, likewise.
        forms: each other container -> "equal" parameters, or why it was refused.
        proof: the largest error of the proof.
        seconds: those of Keras, and those of all conversions.
    """

    name: str
    network: str = ""
    error: float = float("nan")
    spread: float = float("nan")
    forms: dict[str, str] = field(default_factory=dict)
    proof: float = float("nan")
    seconds: tuple[float, float] = (0.0, 0.0)

    @property
    def agrees(self) -> bool:
        """Whether the network answers as Keras: its error is small, and far below the difference between pictures."""
        return self.error <= min(TOLERANCE, self.spread / 20)


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield all (network, options); the smallest of each family also without its top, pooled in both ways."""
    for networks in FAMILIES.values():
        for name in networks:
            yield name, {}
            yield from ((name, options) for options in MORE.get(name, ()))
        yield networks[0], {"include_top": False}
        yield networks[0], {"include_top": False, "pooling": "avg"}
        yield networks[0], {"include_top": False, "pooling": "max"}


def build(name: str, options: dict[str, Any]) -> Any:
    """Return a network with random weights, with names as in a new session."""
    import keras
    from keras.src.applications import nasnet

    keras.backend.clear_session()
    side = SMALLEST.get(name, 32)
    told = {"weights": None, "input_shape": (side, side, 3), **options}
    if options.get("include_top", True):
        told |= {"classes": CLASSES, "classifier_activation": None}
    # Keras refuses NASNetMobile on PyTorch, for a layer of which it checks the channels; built, it runs.
    backend = SimpleNamespace(**{**vars(nasnet.backend), "backend": lambda: "tensorflow"})
    with mock.patch.object(nasnet, "backend", backend):
        model = getattr(keras.applications, name)(**told)
    # Deep ones of EfficientNetV2 would multiply rounding errors until nothing else is left.
    choose_weights(model, len(name), 1.0 if name.startswith("EfficientNetV2") else 1.3)
    return model


def write(model: Any, path: Path) -> None:
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if path.name == LISTED:
            with h5py.File(path, "w") as file:
                save_weights_to_hdf5_group(file, model)
        elif path.name == NAMED:
            model.save_weights(path)
        else:
            model.save(path)


def check(name: str, options: dict[str, Any], folder: Path, forms: tuple[str, ...] = FORMS) -> Row:
    """Convert a network from each container with its proof, and compare the outputs and the parameters."""
    row = Row(", ".join([name, *(f"{word}={value}" for word, value in options.items())]))
    start = time.perf_counter()
    model = build(name, options)
    size = tuple(model.input_shape[1:3])
    images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    inside = any(type(layer).__name__ in ("Rescaling", "Normalization") for layer in model.layers)
    with torch.inference_mode():
        given = images.astype(np.float32) / np.float32(1 if inside else 255)
        answers = np.asarray(model(given, training=False).cpu())
    row.spread = float(np.abs(answers[0] - answers[1]).max() / np.abs(answers).max())
    for form in ("model.keras", *forms):
        write(model, folder / form)
    del model
    gc.collect()
    built = time.perf_counter()
    told: dict[str, Any] = {} if inside else {"preprocessing": "unit"}
    report = convert(folder / "model.keras", folder / "model.safetensors", proof=True, isolated=False, **told)
    row.network = report.card.network
    row.proof = max(one.error for one in report.proof)
    row.error = difference(load(folder / "model.safetensors"), images, answers, options)
    wanted = load_file(folder / "model.safetensors")
    for form in forms:
        if form != "model.h5":
            told["input_size"] = size
            if options.get("include_top", True):
                told["activation"] = report.card.activation
        try:
            convert(folder / form, folder / "other.safetensors", proof=True, isolated=False, **told)
        except ValueError as error:
            row.forms[form] = str(error).replace(f"{folder}/", "")
            continue
        found = load_file(folder / "other.safetensors")
        same = found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)
        row.forms[form] = "equal" if same else "DIFFERS"
    row.seconds = (built - start, time.perf_counter() - built)
    return row


def difference(network: Any, images: np.ndarray, answers: np.ndarray, options: dict[str, Any]) -> float:
    """Return the largest difference between the answers, as a share of the largest value."""
    pixels = torch.from_numpy(np.stack([normalize(image, network.card.preprocessing) for image in images]))
    with torch.inference_mode():
        found = network.features(pixels) if network.head is None else network(pixels)
    if options.get("pooling") and found.dim() == 4:  # which is left out
        found = found.mean((2, 3)) if options["pooling"] == "avg" else found.amax((2, 3))
    found = found.permute(0, 2, 3, 1).numpy() if found.dim() == 4 else found.numpy()
    assert found.shape == answers.shape
    return float(np.abs(found - answers).max() / np.abs(answers).max())

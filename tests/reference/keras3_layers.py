"""Write networks of Keras 3, on its torch backend, and what each of their layers gives for a picture.

    KERAS_BACKEND=torch python -m tests.reference.keras3_layers FOLDER vgg16 resnet50    # narrow: seconds
    KERAS_BACKEND=torch python -m tests.reference.keras3_layers FOLDER vgg16 --full

For each network a `.keras` file and `NAME_layers.npz`: name of the layer -> its output, channels first, float32.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import keras
import numpy as np
import torch

from tests.reference.keras3_goldens import FULL, KERAS3
from tests.reference.narrow_networks import build
from tests.reference.random_weights import set_random_weights


def write(name: str, folder: Path, full: bool) -> None:
    """One network, built in a fresh session, where Keras's automatic numbers begin."""
    keras.backend.clear_session()
    golden = next(golden for golden in (FULL if full else KERAS3)[name] if golden.form == ".keras")
    model = build(golden)
    set_random_weights(model, golden, attempt=0)
    model.save(folder / golden.file)
    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    with torch.inference_mode():
        outputs = keras.Model(model.input, [layer.output for layer in layers])(golden.fed()[:1], training=False)
    arrays = {}
    for layer, output in zip(layers, outputs, strict=True):
        values = keras.ops.convert_to_numpy(output)
        arrays[layer.name] = values.transpose(0, 3, 1, 2) if values.ndim == 4 else values
    np.savez(folder / f"{name}_layers.npz", **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write networks of Keras 3 and what their layers give.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--full", action="store_true", help="networks as wide as the released ones")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.models:
        write(name, arguments.folder, arguments.full)


if __name__ == "__main__":
    main()

"""Write models of real Keras 3 that read grey or RGBA pictures, pictures, and what Keras answers to them.

    KERAS_BACKEND=torch python -m tests.reference.keras3_channels FOLDER

Pictures are read as Keras reads them, `load_img(color_mode=...)`. MODEL.npz holds for each picture what Keras read,
PICTURE.INTERPOLATION (height, width, channels), and the answers of the model to it divided by 127.5 less 1, or as it is
if the model rescales itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.reference.keras3_graphs import choose_weights
from tests.reference.pictures import picture

MODES = {1: "grayscale", 4: "rgba"}
INSIDE = ("rescaled", "normalized", "given_channels")  # models that normalise themselves


def _classifier(size: tuple[int, int], channels: int, *front: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def build(keras: Any) -> Any:
        L = keras.layers
        return keras.Sequential([
            keras.Input((*size, channels)), *(layer(L) for layer in front), L.Conv2D(8, 3, activation="relu"),
            L.MaxPooling2D(2), L.Conv2D(12, 3, activation="relu"), L.MaxPooling2D(2), L.Flatten(), L.Dropout(0.5),
            L.Dense(10, activation="softmax"),
        ])  # fmt: skip

    return build


MODELS: dict[str, Callable[[Any], Any]] = {
    "grey": _classifier((28, 28), 1),
    "rgba": _classifier((32, 40), 4),
    "rescaled": _classifier((28, 36), 1, lambda L: L.Rescaling(1 / 127.5, offset=-1)),
    "normalized": _classifier(
        (20, 28), 4, lambda L: L.Normalization(mean=[120.0, 110.0, 100.0, 99.0], variance=[90.0, 85.0, 80.0, 75.0])),
    "without_channels": lambda keras: keras.Sequential([
        keras.Input((20, 28)), keras.layers.Flatten(), keras.layers.Dense(9, activation="relu"), keras.layers.Dense(4),
        keras.layers.Softmax(),
    ]),
    "given_channels": lambda keras: keras.Sequential([
        keras.Input((28, 20)), keras.layers.Rescaling(1 / 127.5, offset=-1), keras.layers.Reshape((28, 20, 1)),
        keras.layers.Conv2D(4, 3, activation="relu"), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(4),
        keras.layers.Softmax(),
    ]),
    "mobilenet": lambda keras: keras.applications.MobileNet(weights=None, input_shape=(32, 32, 1), classes=7),
}  # fmt: skip

REFUSED: dict[str, Callable[[Any], Any]] = {
    "two_channels": _classifier((28, 28), 2),
    "five_channels": _classifier((28, 28), 5),
    "dense_on_rows": lambda keras: keras.Sequential([
        keras.Input((20, 28)), keras.layers.Dense(9, name="rows"), keras.layers.Flatten(), keras.layers.Dense(4),
    ]),
}  # fmt: skip


def write_pictures(folder: Path) -> list[Path]:
    """Write pictures of all ordinary kinds; some are partly transparent."""
    colors = picture(1, 60, 83)
    alpha = np.clip(np.add.outer(np.arange(70) * 6 - 90, np.arange(64) * 3), 0, 255).astype(np.uint8)
    see_through = Image.fromarray(np.dstack([picture(2, 70, 64), alpha]))
    found = {
        "photo.jpg": Image.fromarray(colors),
        "grey.jpg": Image.fromarray(picture(3, 45, 50)).convert("L"),
        "cmyk.jpg": Image.fromarray(picture(4, 40, 52)).convert("CMYK"),
        "plain.png": Image.fromarray(picture(5, 28, 28)),
        "transparent.png": see_through,
        "grey_transparent.png": see_through.convert("LA"),
        "palette.png": Image.fromarray(picture(6, 57, 41)).quantize(32),
        "palette_transparent.gif": Image.fromarray(picture(7, 39, 44)).quantize(32),
        "two_levels.png": Image.fromarray(picture(8, 50, 40)).convert("1"),
    }
    for name, image in found.items():
        more: dict[str, Any] = {"transparency": 3} if name.endswith(".gif") else {}
        image.save(folder / name, **more)
    return [folder / name for name in found]


def main(folder: str) -> None:
    import keras

    pictures = write_pictures(Path(folder))
    for number, (name, build) in enumerate(MODELS.items()):
        model = build(keras)
        choose_weights(model, number)
        size, channels = model.input_shape[1:3], (*model.input_shape, 1)[3]
        arrays = {}
        for path in pictures:
            for how in ("nearest", "bilinear", "bicubic"):
                image = keras.utils.load_img(path, color_mode=MODES[channels], target_size=size, interpolation=how)
                arrays[f"{path.name}.{how}"] = seen = keras.utils.img_to_array(image)
                inputs = seen if name in INSIDE else seen / 127.5 - 1
                arrays[f"{path.name}.{how}.answers"] = model.predict(
                    inputs.reshape(1, *model.input_shape[1:]), verbose=0
                )[0]
        np.savez(Path(folder) / f"{name}.npz", **arrays)
        model.save(Path(folder) / f"{name}.keras")
        keras.backend.clear_session()
    for name, build in REFUSED.items():
        build(keras).save(Path(folder) / f"{name}.keras")


if __name__ == "__main__":
    main(sys.argv[1])

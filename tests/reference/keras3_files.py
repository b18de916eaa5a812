"""Write real files of Keras 3, on its torch backend, with what their networks answer.

    KERAS_BACKEND=torch python -m tests.reference.keras3_files FOLDER                    # narrow, all forms: seconds
    KERAS_BACKEND=torch python -m tests.reference.keras3_files FOLDER --models vgg16 resnet50 --forms .keras
    KERAS_BACKEND=torch python -m tests.reference.keras3_files FOLDER --full --models vgg16 --forms .keras model
    KERAS_BACKEND=torch python -m tests.reference.keras3_files tests/data --recorded     # under Keras 3.0.5 or 3.6.0

The narrow networks are those of `keras.applications`, which is given layers with fewer channels; all weights are
random, from seeds, the statistics of batch normalisation too. `keras3_goldens.py` is the list of the files.
AlexNet is not among them: the original's LRN is a Lambda layer, which no file of weights describes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import torch
from keras.src.legacy.saving.legacy_h5_format import load_weights_from_hdf5_group, save_weights_to_hdf5_group

from tests.reference.goldens import Golden
from tests.reference.keras3_goldens import FULL, KERAS3, RECORDED
from tests.reference.narrow_networks import build
from tests.reference.random_weights import check_that_mistakes_show, choose_weights, with_weights


def save(model: Any, golden: Golden, path: Path) -> None:
    """As Keras saves each form; it writes legacy files of weights only on the way to a whole model."""
    if golden.form == "weights":
        with h5py.File(path, "w") as file:
            save_weights_to_hdf5_group(file, model)
    elif golden.form == ".weights.h5":
        model.save_weights(path)
    else:
        model.save(path)


def answer_again(model: Any, golden: Golden, path: Path) -> np.ndarray:
    """What the network answers after Keras has read the file."""
    if golden.config:
        model = keras.models.load_model(path, compile=False)
    else:
        for layer in with_weights(model):
            layer.set_weights([np.full_like(array, 0.5) for array in layer.get_weights()])
        if golden.form == "weights":
            with h5py.File(path) as file:
                load_weights_from_hdf5_group(file, model)
        else:
            model.load_weights(path)
    return model.predict(golden.fed()).astype(np.float32)


def write(name: str, goldens: list[Golden], folder: Path, *, check: bool) -> None:
    """One model in the forms of `goldens`, and its outputs."""
    first = goldens[0]
    keras.config.set_image_data_format(first.data_format)
    model = build(first)
    choose_weights(model, first.fed(), first)
    outputs = model.predict(first.fed())
    if check:
        check_that_mistakes_show(model, first.fed(), outputs, first)
    half = name.rpartition("_")[2] if name.endswith("float16") else None
    if half:  # the same weights, which are short binary numbers, in 16 bits
        keras.config.set_dtype_policy(half)
        in_half = build(first)
        keras.config.set_dtype_policy("float32")
        for layer, source in zip(with_weights(in_half), with_weights(model), strict=True):
            layer.set_weights(source.get_weights())
    for golden in goldens:
        path = folder / golden.file
        path.parent.mkdir(exist_ok=True, parents=True)
        save(in_half if half else model, golden, path)
        if not half and (check or golden is first):  # reading each form again takes longer than all the rest
            np.testing.assert_allclose(answer_again(model, golden, path), outputs, rtol=1e-5, atol=1e-6)
    if outputs.ndim == 4 and first.data_format == "channels_last":
        outputs = outputs.transpose(0, 3, 1, 2)
    np.savez_compressed(folder / first.answers, outputs=outputs, seeds=first.seeds, size=first.size)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write real files of Keras 3 with what their networks answer.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--full", action="store_true", help="networks as wide as the released ones")
    parser.add_argument("--recorded", action="store_true", help="the files of an older Keras 3 in tests/data")
    parser.add_argument("--models", nargs="*", help="some of the models only")
    parser.add_argument("--forms", nargs="*", help="some of weights, model, .weights.h5, .keras only")
    parser.add_argument("--check", action="store_true", help="refuse networks that wrong readings would hardly change")
    arguments = parser.parse_args()
    keras.utils.disable_interactive_logging()  # progress bars
    torch.set_num_threads(1)  # the networks are too small for more
    models = FULL if arguments.full else RECORDED if arguments.recorded else KERAS3
    for name, goldens in models.items():
        wanted = [golden for golden in goldens if not arguments.forms or golden.form in arguments.forms]
        if (not arguments.models or name in arguments.models) and wanted[0].version in ("3", keras.__version__):
            write(name, wanted, arguments.folder, check=arguments.check)


if __name__ == "__main__":
    main()

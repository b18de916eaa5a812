"""Make the golden files of single layers: small models of Keras 1.2.2 to 2.3.1 on Theano, and what they answer.

    python scripts/make_layer_fixtures.py tests/data           # for the Keras of this environment
    python scripts/make_layer_fixtures.py tests/data pools     # only those with `pools` in the name

`tests/reference/theano_layers.py` has the models. Weights and statistics are random, seeded. The environments are those
of `make_application_fixtures.py`. The answers of all models of a version go into its `layers.npz`, with the pictures.
"""

import argparse
import sys
import zlib
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from make_fixtures import revive_theano

from tests.reference.theano_layers import FILES, MODELS, SIZE, Kit  # needs the line above


def choose_weights(model: Any, seed: int) -> None:
    """Random weights that keep the size of values; the statistics of batch normalisation are positive."""
    random = np.random.RandomState(seed)
    for layer in model.layers:
        shapes = [array.shape for array in layer.get_weights()]
        if type(layer).__name__ == "BatchNormalization":
            arrays = [random.uniform(0.5, 1.5, shapes[0]), random.normal(0, 0.3, shapes[0]),
                      random.normal(0, 0.3, shapes[0]), random.uniform(0.1, 1.5, shapes[0])]  # fmt: skip
        else:
            spread = [0.3 if len(shape) != 4 and len(shape) != 2 else 1.3 / np.sqrt(np.prod(shape) / max(shape))
                      for shape in shapes]  # fmt: skip
            arrays = [random.normal(0, by, shape) for by, shape in zip(spread, shapes, strict=True)]
        layer.set_weights([array.astype(np.float32) for array in arrays])


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the golden files of single layers, on Theano.")
    parser.add_argument("folder", type=Path, help="where keras1, keras216, ... go: tests/data")
    parser.add_argument("part", nargs="?", default="", help="make only the files with this in their names")
    arguments = parser.parse_args()
    revive_theano()
    keras, backend = import_module("keras"), import_module("keras.backend")
    layers, models = import_module("keras.layers"), import_module("keras.models")
    if keras.__version__ < "2":  # where activations of their own stand in another module
        vars(layers).update(vars(import_module("keras.layers.advanced_activations")))
    pictures = np.random.RandomState(0).randint(0, 256, (2, *SIZE, 3)).astype(np.uint8)
    answers = {}
    for file, (version, name, order) in FILES.items():
        if version != keras.__version__ or arguments.part not in file:
            continue
        first = order == "first"
        if version < "2":
            backend.set_image_dim_ordering("th" if first else "tf")
        else:
            backend.set_image_data_format(f"channels_{order}")
        fed = np.moveaxis(pictures, 3, 1) if first else pictures
        start = layers.Input(fed.shape[1:])
        end = MODELS[name][0](Kit(layers, version, first=first), start)
        model = models.Model(start, end)
        choose_weights(model, zlib.crc32(name.encode()))
        path = arguments.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        model.save(str(path))
        outputs = model.predict(np.ascontiguousarray(fed, np.float32) / np.float32(255))
        answers[path.stem] = outputs.astype(np.float32)
        print(f"{file}: {path.stat().st_size:,} bytes, {outputs.shape}, {np.abs(outputs).max():.3g}", flush=True)
    if answers and not arguments.part:
        np.savez_compressed(path.parent / "layers.npz", pictures=pictures, **answers)


if __name__ == "__main__":
    main()

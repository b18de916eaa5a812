"""Make the golden files of Keras Applications: networks as `keras.applications` of Keras 1.2.2 to 2.3.1 builds them.

    python scripts/make_application_fixtures.py tests/data              # for the Keras of this environment
    python scripts/make_application_fixtures.py tests/data resnet50     # only those with `resnet50` in the name

`tests/reference/theano_goldens.py` lists them. The graphs come from the framework's own code, with
fewer channels; the weights are random, seeded, on a coarse binary grid. There is one environment
for each of Keras 1.2.2, 2.0.8, 2.1.6, 2.2.4 and 2.3.1, as in the docstring of `make_fixtures.py`; 2.2.4
and 2.3.1 also need

    pip install --no-deps keras_applications==1.0.6 keras_preprocessing==1.0.5    # Keras 2.2.4
    pip install --no-deps keras_applications==1.0.8 keras_preprocessing==1.1.0    # Keras 2.3.1
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from make_fixtures import revive_theano

from tests.reference.goldens import DATA, Golden, of_version  # needs the line above
from tests.reference.narrow_networks import build, keras_application
from tests.reference.random_weights import check_that_mistakes_show, choose_weights, with_weights
from tests.reference.theano_goldens import THEANO


def make(golden: Golden, folder: Path) -> None:
    """Write the file, read it back, and write the answers of the network that was read."""
    backend = import_module("keras.backend")
    if golden.version.startswith("1"):
        backend.set_image_dim_ordering("th" if golden.data_format == "channels_first" else "tf")
    else:
        backend.set_image_data_format(golden.data_format)
    if (golden.version, golden.network) != ("2.3.1", "inception_v3"):  # which goes on from conv2d_95, as in a notebook
        import_module("keras.backend.common" if golden.version.startswith("1") else "keras.backend").reset_uids()
    else:
        keras_application(golden)
    path = folder / golden.file
    path.parent.mkdir(exist_ok=True)
    pictures = golden.fed()

    model = build(golden)
    loss = "binary_crossentropy" if golden.activation == "sigmoid" else "categorical_crossentropy"
    optimizer = import_module("keras.optimizers").Adam(lr=1e-6) if golden.trained else "sgd"
    model.compile(optimizer, loss)
    choose_weights(model, pictures, golden)
    if golden.trained:
        model.train_on_batch(pictures, np.eye(golden.classes)[:2])
    if golden.form == "model":
        model.save(str(path))
        model = import_module("keras.models").load_model(str(path))
    else:
        model.save_weights(str(path), overwrite=True)
        for layer in with_weights(model):
            layer.set_weights([np.full_like(array, 0.5) for array in layer.get_weights()])
        model.load_weights(str(path))
    outputs = model.predict(pictures).astype(np.float32)
    print(
        f"{golden.file}: {path.stat().st_size:,} bytes, {np.array2string(outputs.reshape(2, -1)[:, :7], precision=3)}"
    )
    check_that_mistakes_show(model, pictures, outputs, golden)
    if outputs.ndim == 4 and golden.data_format == "channels_last":
        outputs = outputs.transpose(0, 3, 1, 2)
    np.savez_compressed(folder / golden.answers, outputs=outputs, seeds=golden.seeds, size=golden.size)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the golden files of Keras Applications, on Theano.")
    parser.add_argument("folder", type=Path, nargs="?", default=DATA, help="where keras1, keras208, ... go: tests/data")
    parser.add_argument("part", nargs="?", default="", help="make only the files with this in their names")
    arguments = parser.parse_args()
    revive_theano()
    version = import_module("keras").__version__
    wanted = [golden for golden in of_version(THEANO, version) if golden.lineage != "convnets-keras"]
    if not wanted:
        raise ImportError(f"this is Keras {version}, of which there are no files; see the docstring")
    for golden in wanted:
        if arguments.part in golden.file:
            make(golden, arguments.folder)


if __name__ == "__main__":
    main()

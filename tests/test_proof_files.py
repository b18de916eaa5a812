"""The second derivation of the files that real Keras 3 writes, in all its formats, read as any file is."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

from converters import read_keras
from converters.proof.proof import forward
from converters.readers.arrays import values
from converters.readers.reading import opened
from tests.reference.keras3_models import MODELS, NETWORKS, assert_logits, output, randomize
from tests.reference.keras_files import with_graph

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Keras and torch about each other
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
]
WHOLE, WEIGHTS = ("model.keras", "model.h5"), ("model.weights.h5", "legacy.h5")


def save(model, path):
    if path.name == "legacy.h5":
        with h5py.File(path, "w") as file:
            save_weights_to_hdf5_group(file, model)
    elif path.name == "model.weights.h5":
        model.save_weights(path)
    else:
        model.save(path)


def check(model, path):
    randomize(model)
    save(model, path)
    image = np.random.default_rng(0).standard_normal(model.input_shape[1:]).astype(np.float32)
    file = read_keras(path)
    file = with_graph(file) if file.config is None else file
    with opened(path) as h5:
        logits = dict(forward(file, lambda array: values(h5, array), image))["logits"]
    assert_logits(model, logits, output(model, image))


@pytest.mark.slow
@pytest.mark.parametrize("form", WHOLE)
@pytest.mark.parametrize("name", MODELS | NETWORKS)
def test_a_whole_model_by_its_config(name, form, tmp_path):
    check((MODELS | NETWORKS)[name](), tmp_path / form)


@pytest.mark.slow
@pytest.mark.parametrize("form", WEIGHTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_weights_by_the_architecture_that_keras_has(name, form, tmp_path):
    check(NETWORKS[name](), tmp_path / form)

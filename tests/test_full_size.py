"""Full-size files: of the original's layout against plain NumPy, of real Keras 3 against what Keras answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from converters import convert
from convnets_torch.images.preprocessing import normalize
from convnets_torch.weights import load
from tests.conftest import assert_agree, run_keras3
from tests.reference import theano_forward
from tests.reference.keras1_files import FULL, random_layers, write_keras1
from tests.reference.keras3_goldens import FULL as FULL_KERAS3
from tests.reference.pictures import picture
from tests.test_formats import assert_answers


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_a_full_size_file_computes_what_its_arrays_mean(name, tmp_path):
    layers = random_layers(FULL[name])
    write_keras1(tmp_path / "in.h5", layers)
    report = convert(tmp_path / "in.h5", tmp_path / "out.safetensors")
    (tmp_path / "in.h5").unlink()
    assert report.card.network == name
    network = load(tmp_path / "out.safetensors")
    image = normalize(picture(5, *network.size), network.card.preprocessing)
    forward = theano_forward.alexnet if name == "alexnet" else theano_forward.vgg
    expected = forward(image.astype(np.float64), layers)
    with torch.inference_mode():
        found = network(torch.from_numpy(image)[None])
    assert_agree(found.numpy(), expected[None])


@pytest.mark.slow
def test_a_full_size_file_of_keras_3_answers_as_keras_3(tmp_path):
    """`keras.applications` with 1000 classes; test_keras_names.py has others, in another format."""
    run_keras3(tmp_path, "--full", "--models", "resnet50", "--forms", "model")
    golden = next(golden for golden in FULL_KERAS3["resnet50"] if golden.form == "model")
    report = convert(tmp_path / golden.file, tmp_path / "out.safetensors")
    (tmp_path / golden.file).unlink()
    assert report.card.class_names == "imagenet-1k"
    assert report.card.preprocessing.name == golden.preprocessing
    assert_answers(load(tmp_path / "out.safetensors"), golden, tmp_path)
    (tmp_path / "out.safetensors").unlink()

"""Full-size files in the original's layout, against plain NumPy that knows only the definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from converters import convert
from convnets_torch.preprocessing import normalize
from convnets_torch.weights import load
from tests.conftest import assert_agree
from tests.reference import theano_forward
from tests.reference.keras1_files import FULL, random_layers, write_keras1
from tests.reference.pictures import picture


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

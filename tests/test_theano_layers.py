"""Layers of real Keras 1 and 2 on real Theano: converted, proven, and compared with what the frameworks answered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from converters import convert
from convnets_torch import load
from convnets_torch.images.preprocessing import normalize
from tests.conftest import DATA
from tests.reference.theano_layers import FILES

TOLERANCE = 1e-5  # of the largest output: float32 on both sides
REFUSED = {  # model -> why
    "cosine": "a Merge of mode 'cos' is not known here",  # it gives one dimension more than Keras says
}


def answers(file: str) -> tuple[np.ndarray, np.ndarray]:
    """The pictures and what the framework answered, with channels first."""
    with np.load((DATA / file).parent / "layers.npz") as stored:
        outputs = stored[(DATA / file).stem]
        last = file.endswith("_last.h5") and outputs.ndim == 4
        return stored["pictures"], np.moveaxis(outputs, 3, 1) if last else outputs


def needs(file: str) -> dict[str, Any]:
    """Keras 1 says neither backend nor, in a whole model, more than the dim ordering of its layers."""
    return {"backend": "theano"} if file.startswith("keras1/") else {}


@pytest.mark.parametrize("file", [file for file, (_, model, _) in FILES.items() if model not in REFUSED])
def test_a_layer_means_what_it_means_on_theano(file, tmp_path):
    out = tmp_path / "out.safetensors"
    convert(DATA / file, out, preprocessing="unit", proof=True, isolated=False, **needs(file))
    network = load(out)
    pictures, wanted = answers(file)
    images = torch.from_numpy(np.stack([normalize(picture, network.card.preprocessing) for picture in pictures]))
    with torch.no_grad():
        found = network.features(images) if network.head is None else network(images)
    found = {"softmax": lambda x: x.softmax(1), "sigmoid": torch.sigmoid, "none": lambda x: x}[network.card.activation](
        found
    ).numpy()
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max()


@pytest.mark.parametrize("file", [file for file, (_, model, _) in FILES.items() if model in REFUSED])
def test_what_has_no_meaning_here_is_refused_by_name(file, tmp_path):
    with pytest.raises(ValueError, match=REFUSED[FILES[file][1]]):
        convert(DATA / file, tmp_path / "out.safetensors", preprocessing="unit", isolated=False, **needs(file))

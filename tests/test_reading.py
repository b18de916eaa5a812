"""Reading the files of every Keras: what stands in them, against what the framework that wrote them says."""

from __future__ import annotations

import json

import numpy as np
import pytest

from converters import KerasFile, read_array, read_keras
from tests.conftest import KERAS0, KERAS1


@pytest.mark.parametrize("network", ["alexnet", "vgg16", "vgg19"])
def test_weights_of_keras_1_on_theano(network):
    file = read_keras(KERAS1 / f"{network}.h5")
    assert (file.container, file.named, file.framework) == ("legacy", True, "Keras 1")
    assert (file.backend, file.version, file.config, file.unlisted) == (None, None, None, ())
    weighted = file.weighted
    assert {layer.kind for layer in weighted} == {"Conv2D", "Dense"}
    assert {tuple(layer.arrays) for layer in weighted} == {("kernel", "bias")}
    assert {layer.kernel_order for layer in weighted if layer.kind == "Conv2D"} == {"oihw"}
    assert [layer.name for layer in weighted][-3:] == ["dense_1", "dense_2", "dense_3"]
    names = [layer.name for layer in file.layers]
    assert "flatten" in names  # layers without weights are layers too
    assert [layer.kind for layer in file.layers if layer.name == "flatten"] == ["Flatten"]


def test_weights_of_keras_0_have_numbers_instead_of_names():
    file = read_keras(KERAS0 / "vgg16.h5")
    assert (file.container, file.named, file.framework, len(file.layers)) == ("nb_layers", False, "Keras 0", 37)
    assert [layer.name for layer in file.weighted][:3] == ["layer_1", "layer_3", "layer_6"]
    assert [layer.kind for layer in file.weighted] == ["Conv2D"] * 13 + ["Dense"] * 3


def test_arrays_are_read_as_they_are_stored():
    import h5py

    [layer, *_] = read_keras(KERAS1 / "alexnet.h5").weighted
    with h5py.File(KERAS1 / "alexnet.h5") as file:
        np.testing.assert_array_equal(read_array(layer.arrays["kernel"]), file["conv_1/conv_1_W"][()])


def test_what_was_read_survives_json():
    file = read_keras(KERAS1 / "vgg16.h5")
    assert KerasFile.from_dict(json.loads(json.dumps(file.to_dict()))) == file

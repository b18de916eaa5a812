"""The graphs of Keras Applications that are shipped, against real Keras."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from converters import architectures as shipped
from converters.architectures import architectures, layer_list, resized
from converters.readers.keras_graph import describe, each
from tests.conftest import DATA

NAMES = sorted({architecture.name for architecture in architectures()})


def test_the_data_is_small():
    assert shipped.DATA.stat().st_size < 200_000


def test_reading_needs_neither_torch_nor_keras():
    program = "import sys; from converters.architectures import architectures; architectures(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=DATA.parents[1], capture_output=True, text=True)
    assert not {"torch", "keras", "numpy", "h5py"} & set(done.stdout.split()), done.stderr


@pytest.mark.parametrize("architecture", architectures(), ids=lambda one: f"{one.name}, {one.release}")
def test_a_config_is_one_that_readers_understand(architecture):
    config = json.loads(json.dumps(architecture.config))
    assert config == architecture.config  # JSON values alone
    listed = [name for name, _, _ in layer_list(config)]
    described = list(each(describe(config)))
    assert [layer.name for layer, _ in described if not layer.kind.startswith("ops.")] == listed
    assert set(architecture.top) <= set(listed)
    assert architecture.top[-1] == listed[-1]


# Real Keras, in a process of its own: name, options, size -> its layers with weights, and the paddings it computes
REAL = """
import json, sys, keras
found = []
for name, options, size in json.loads(sys.argv[1]):
    keras.backend.clear_session()
    with keras.device("meta"):
        model = getattr(keras.applications, name)(weights=None, input_shape=(*size, 3), **options)
    layers = [[layer.name, type(layer).__name__, bool(layer.weights)] for layer in model.layers]
    paddings = {layer.name: layer.padding for layer in model.layers if type(layer).__name__ == "ZeroPadding2D"}
    found.append([layers, paddings])
print(json.dumps(found))
"""
SIZED: list = [
    ("MobileNetV2", {}, (97, 128)), ("MobileNetV3Small", {}, (101, 64)), ("EfficientNetB0", {}, (225, 130)),
    ("VGG16", {}, (50, 40)),
]  # fmt: skip


@pytest.fixture(scope="module")
def real() -> list:
    command = [sys.executable, "-W", "ignore", "-c", REAL, json.dumps(SIZED)]
    done = subprocess.run(command, env=os.environ | {"KERAS_BACKEND": "torch"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(SIZED)), ids=[name for name, _, _ in SIZED])
def test_another_size_is_as_keras_builds_it(real, number):
    name, _, size = SIZED[number]
    layers, paddings = real[number]
    fits = [one for one in architectures() if one.name == name and [*map(list, layer_list(one.config))] == layers]
    assert len(fits) == 1
    config = fits[0].sized(size)
    found = {one["name"]: one["config"].get("padding") for one in config["config"]["layers"]}
    assert {layer: found[layer] for layer in paddings} == paddings
    assert config["config"]["layers"][0]["config"]["batch_shape"] == [None, *size, 3]
    assert resized(config, fits[0].size, fits[0].padded) == fits[0].config

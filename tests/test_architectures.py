"""The graphs of Keras Applications that are shipped, against real Keras."""

from __future__ import annotations

import json
import lzma
import os
import subprocess
import sys
from dataclasses import replace

import h5py
import pytest

from converters import architectures as shipped
from converters.architectures import architectures, layer_list, resized
from converters.graph_plan import plan_graph
from converters.plan import Wishes
from converters.readers.keras_graph import describe
from converters.readers.reading import read_keras
from tests.conftest import DATA


def test_the_data_is_small():
    assert shipped.DATA.stat().st_size < 200_000


def test_a_file_that_swells_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "DATA", tmp_path / "graphs.json.xz")
    shipped.DATA.write_bytes(lzma.compress(b" " * (shipped.MOST + 1)))
    with pytest.raises(ValueError, match="holds more than"):
        architectures.__wrapped__()


def test_reading_needs_neither_torch_nor_keras():
    program = "import sys; from converters.architectures import architectures; architectures(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=DATA.parents[1], capture_output=True, text=True)
    assert not {"torch", "keras", "numpy", "h5py"} & set(done.stdout.split()), done.stderr


@pytest.mark.parametrize("architecture", architectures(), ids=lambda one: f"{one.name}, {one.release}")
def test_a_config_is_one_that_readers_understand(architecture):
    config = json.loads(json.dumps(architecture.config))
    assert config == architecture.config  # JSON values alone
    listed = [name for name, _, _ in layer_list(config)]
    assert [layer.name for layer in describe(config).layers if "ops." not in layer.outer["module"]] == listed
    assert architecture.layers == layer_list(config)
    assert set(architecture.top) <= set(listed)
    assert ("include_top=False" in architecture.release) == (listed[-1] not in architecture.top)


# Real Keras, in a process of its own

HERE = DATA.parents[1]
SIZED: list = [
    ("MobileNetV2", (97, 128)), ("MobileNetV3Small", (101, 64)), ("EfficientNetB0", (225, 130)),
    ("NASNetMobile", (225, 224)), ("VGG16", (50, 40)),
]  # fmt: skip
WRITTEN: dict = {  # name -> options
    "MobileNet": {"alpha": 0.5, "input_shape": [65, 96, 3], "classes": 7},
    "MobileNetV3Small": {"input_shape": [33, 64, 3], "classes": 7},
}
SIZED_BY_KERAS = """
import json, sys
sys.path[:0] = ["scripts", "."]
import build_graphs
keras = build_graphs.the_keras()
graphs = []
for name, size in json.loads(sys.argv[1]):
    [graph] = build_graphs.described(keras, name, {"input_shape": (*size, 3)})
    graphs.append(build_graphs.graph_of(json.loads(json.dumps(graph)), "now"))
print(json.dumps(build_graphs.in_table(graphs)))
"""
WRITTEN_BY_KERAS = """
import json, sys, keras
folder, networks = sys.argv[1], json.loads(sys.argv[2])
for name, options in networks.items():
    keras.backend.clear_session()
    getattr(keras.applications, name)(weights=None, **options).save(f"{folder}/{name}.h5")
"""


def run(program: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c", program, *arguments]
    environment = os.environ | {"KERAS_BACKEND": "torch"}
    done = subprocess.run(command, env=environment, cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_another_size_is_as_keras_builds_it():
    entries, layers = json.loads(run(SIZED_BY_KERAS, json.dumps(SIZED)).splitlines()[-1])
    for (name, size), entry in zip(SIZED, entries, strict=True):
        real = shipped.unpacked(entry, layers)
        [fits] = [one for one in architectures() if one.name == name and one.layers == layer_list(real)]
        found, _ = resized(fits.config, size, fits.padded, {})
        assert found["config"]["layers"] == real["config"]["layers"], name
        assert resized(found, fits.size, fits.padded, {})[0] == fits.config


SHIPPED = """
import sys
sys.path[:0] = ["scripts", "."]
import build_graphs, convnets_keras_graphs
from converters.architectures import architectures, unpacked
graphs = convnets_keras_graphs.graphs()
entries, layers = build_graphs.in_table(graphs)
shipped = {one.release + one.name: one for one in architectures()}
for graph, entry in zip(graphs, entries, strict=True):
    one = shipped[graph["release"] + graph["name"]]
    assert (one.config, list(one.top)) == (unpacked(entry, layers), graph["top"]), graph["name"]
"""


def test_the_graphs_of_convnets_keras_are_shipped():
    run(SHIPPED)


@pytest.mark.slow
def test_the_installed_keras_builds_what_is_shipped():
    names = ["VGG16", "ResNet50", "MobileNet", "EfficientNetB0", "Xception"]
    command = [sys.executable, "-W", "ignore", "scripts/build_graphs.py", "check", *names]
    environment = os.environ | {"KERAS_BACKEND": "torch"}
    done = subprocess.run(command, env=environment, cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_is_planned_by_the_shipped_graph_as_by_its_own(filled, name):
    folder = filled("shipped_graphs", lambda folder: run(WRITTEN_BY_KERAS, str(folder), json.dumps(WRITTEN)))
    with h5py.File(folder / f"{name}.h5") as file:
        names = list(file["model_weights"].attrs["layer_names"])
        weighted = [word for word in names if len(file["model_weights"][word].attrs["weight_names"])]
    [fits] = [one for one in architectures() if [layer for layer, _, _ in one.layers] == names]
    assert [layer for layer, _, has in fits.layers if has] == weighted
    wishes = Wishes(preprocessing=fits.preprocessing)
    own = read_keras(folder / f"{name}.h5")
    plan = plan_graph(own, wishes)
    config, _ = resized(fits.config, WRITTEN[name]["input_shape"][:2], fits.padded, {})
    found = plan_graph(replace(own, config=config), wishes)
    assert found.steps == plan.steps
    graph = {**plan.arguments["graph"], "name": found.arguments["graph"]["name"]}
    assert found.arguments == {**plan.arguments, "graph": graph}

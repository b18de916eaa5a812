"""Models that have no class of their own here, converted by their graph and compared with real Keras 3."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from converters import convert
from convnets_torch import load, record_activations
from convnets_torch.images.preprocessing import normalize
from tests.conftest import DATA
from tests.reference.keras3_graphs import IN_CI, INSIDE, LAYERS, MODELS

pytestmark = pytest.mark.slow  # Keras writes the models
TOLERANCE = 1e-4  # of the largest output


def run_keras(kind: str):
    def run(folder: Path) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "tests.reference.keras3_graphs", str(folder), kind]
        environment = os.environ | {"KERAS_BACKEND": "torch", "KERAS_HOME": str(folder / ".keras")}
        done = subprocess.run(command, env=environment, cwd=DATA.parents[1], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]

    return run


@pytest.fixture(scope="module")
def layers(filled) -> Path:
    return filled("keras3_graph_layers", run_keras("layers"))


@pytest.fixture(scope="module")
def models(filled) -> Path:
    return filled("keras3_graph_models", run_keras("models"))


@pytest.fixture(scope="module")
def applications(filled) -> Path:
    return filled("keras3_graph_applications", run_keras("applications"))


def check(file: Path, tmp_path: Path, *, inside: bool, **options: Any):
    """Convert with the proof, and compare with what Keras answered; returns the network and the report."""
    with np.load(file.with_suffix(".npz")) as stored:
        wanted = dict(stored)
    options = ({} if inside else {"preprocessing": "unit"}) | options
    report = convert(file, tmp_path / "converted.safetensors", proof=True, isolated=False, **options)
    network = load(tmp_path / "converted.safetensors")
    card = network.card
    images = torch.from_numpy(np.stack([normalize(image, card.preprocessing) for image in wanted["images"]]))
    with torch.no_grad():
        found = network.features(images) if network.head is None else network(images)
        found = {"softmax": lambda x: x.softmax(1), "sigmoid": torch.sigmoid, "none": lambda x: x}[card.activation](
            found
        )
    answers = wanted["outputs"]
    if left := next((choice for choice in report.choices if "which is left out" in choice), None):
        reduce = torch.amax if "max" in left else torch.mean
        found = found.permute(0, 2, 3, 1).flatten(1) if answers.shape[1] > 10 else reduce(found, (2, 3))
    if found.dim() == 4 and answers.ndim == 4:
        found = found.permute(0, 2, 3, 1)
    found = found.numpy()
    if answers.shape[1:3] == (1, 1):
        answers = answers.reshape(found.shape)
    assert found.shape == answers.shape
    if file.stem == "average_pool_same":  # Keras's torch backend repeats the edge where TensorFlow counts no padding
        found, answers = found[:, :-1, :-1], answers[:, :-1, :-1]
    assert np.abs(found - answers).max() <= TOLERANCE * np.abs(answers).max()
    assert network.card.network == report.card.network == "graph"
    return network, report


@pytest.mark.parametrize("form", [".keras", ".h5"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_means_what_it_means_in_keras(layers, name, form, tmp_path):
    check(layers / f"{name}{form}", tmp_path, inside=False)


WITHOUT_MAP = {
    "two_readers": "no single layer reads its whole feature map",
    "unknown_to_slide": r"its head has dense_activation \(softsign\), which cannot slide",
}


@pytest.mark.parametrize("form", [".keras", ".h5"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_split_into_features_and_head(models, name, form, tmp_path):
    network, _ = check(models / f"{name}{form}", tmp_path, inside=name in INSIDE)
    assert (network.head is None) == (name in ("map_only", "pooled_only", *INSIDE))


@pytest.mark.parametrize("name", IN_CI)
def test_keras_applications_convert(applications, name, tmp_path):
    inside = name.startswith(("EfficientNet", "MobileNetV3", "ConvNeXt"))
    check(applications / f"{name}.keras", tmp_path, inside=inside)


@pytest.mark.parametrize("name", ["flatten_head", "two_readers", "nested", "shared"])
def test_names_of_layers_change_no_answer(models, name, tmp_path):
    """Every name in the config is replaced by another; weights are stored by class and number in a .keras file."""
    from zipfile import ZipFile

    file = models / f"{name}.keras"
    with ZipFile(file) as archive, ZipFile(tmp_path / "renamed.keras", "w") as renamed:
        config = json.loads(archive.read("config.json"))
        text = json.dumps(config)
        for number, old in enumerate(sorted(names_in(config), key=len, reverse=True)):
            text = text.replace(f'"{old}"', f'"layer_{number:03}_of_mine"')
        renamed.writestr("config.json", text)
        renamed.writestr("metadata.json", archive.read("metadata.json"))
        weights = archive.read("model.weights.h5")
        renamed.writestr("model.weights.h5", without_names(weights, tmp_path))
    images = torch.rand(2, 3, 20, 28)
    answers = []
    for source in (file, tmp_path / "renamed.keras"):
        convert(source, tmp_path / "out.safetensors", preprocessing="unit", isolated=False)
        with torch.no_grad():
            answers.append(load(tmp_path / "out.safetensors", mapped=False)(images))
    assert torch.equal(*answers)


def names_in(config: object) -> set[str]:
    """All names of layers and models in a config."""
    if isinstance(config, list):
        return {name for each in config for name in names_in(each)}
    if not isinstance(config, dict):
        return set()
    own = {config["name"]} if isinstance(config.get("name"), str) and "class_name" in config else set()
    return own | {name for each in config.values() for name in names_in(each)}


def without_names(weights: bytes, folder: Path) -> bytes:
    """A weights file without the names that Keras 3.15 adds to its groups."""
    path = folder / "weights.h5"
    path.write_bytes(weights)
    with h5py.File(path, "r+") as file:
        named: list[str] = []
        file.visit(lambda place: named.append(place) if "name" in file[place].attrs else None)
        for place in named:
            del file[place].attrs["name"]
    return path.read_bytes()


def test_an_inner_layer_ends_the_network(models, tmp_path):
    network, _ = check_until(models / "average_head.keras", tmp_path, "joined")
    assert network.head is None
    assert network.features.output == "joined"
    images = torch.rand(1, 3, 20, 28)
    whole = load_of(models / "average_head.keras", tmp_path)
    with torch.no_grad():
        assert torch.equal(network.features(images), joined(whole, images))


def check_until(file: Path, tmp_path: Path, layer: str):
    report = convert(file, tmp_path / "cut.safetensors", preprocessing="unit", until=layer, proof=True, isolated=False)
    return load(tmp_path / "cut.safetensors"), report


def load_of(file: Path, tmp_path: Path):
    convert(file, tmp_path / "whole.safetensors", preprocessing="unit", isolated=False)
    return load(tmp_path / "whole.safetensors")


def joined(network, images: torch.Tensor) -> torch.Tensor:
    with record_activations(network.features, "joined") as found:
        network.features(images)
    return found["joined"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"until": "nowhere"}, "has no layer nowhere; its last layers are"),
        ({"output": "nowhere"}, "has no output nowhere; its outputs are scores"),
        ({"preprocessing": None}, "does not say how its pictures were preprocessed"),
    ],
)
def test_what_must_be_named_is_asked_for(models, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        convert(
            models / "average_head.keras", tmp_path / "out.safetensors", isolated=False,
            **({"preprocessing": "unit"} | options),
        )  # fmt: skip
    assert not list(tmp_path.glob("out*"))

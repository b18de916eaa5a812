"""Models that have no class of their own here, converted by their graph and compared with real Keras 3."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from converters import Translated, convert, graph_plan, register_layer
from convnets_torch import classify, embed, gradcam, heatmap, load, record_activations, save
from convnets_torch.images.preprocessing import center_crop, normalize
from convnets_torch.weights import with_last_layer
from tests.conftest import DATA
from tests.reference.keras3_graphs import BOTH_FORMATS, FIRST, INSIDE, LAYERS, MODELS, NEARLY, PAPERS, REFUSED

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
def refused(filled) -> Path:
    return filled("keras3_graph_refused", run_keras("refused"))


def check(file: Path, tmp_path: Path, *, inside: bool, network: str = "graph", **options: Any):
    """Convert with the proof, and compare with what Keras answered; returns the network and the report."""
    with np.load(file.with_suffix(".npz")) as stored:
        wanted = dict(stored)
    options = ({} if inside else {"preprocessing": "unit"}) | options
    report = convert(file, tmp_path / "converted.safetensors", proof=True, isolated=False, **options)
    loaded = load(tmp_path / "converted.safetensors")
    card = loaded.card
    pictures = wanted["images"]
    if "cropped" in file.stem:
        pictures = [center_crop(picture, card.preprocessing) for picture in pictures]
    images = torch.from_numpy(np.stack([normalize(picture, card.preprocessing) for picture in pictures]))
    with torch.no_grad():
        found = loaded.features(images) if loaded.head is None else loaded(images)
        found = {"softmax": lambda x: x.softmax(1), "sigmoid": torch.sigmoid, "none": lambda x: x}[card.activation](
            found
        )
    answers = wanted["outputs"]
    if left := next((choice for choice in report.choices if "which is left out" in choice), None):
        reduce = torch.amax if "max" in left else torch.mean
        flat = found.permute(0, 2, 3, 1).flatten(1)
        found = flat if flat.shape == answers.shape else reduce(found, (2, 3))
    if found.dim() == 4 and answers.ndim == 4 and file.stem not in FIRST:
        found = found.permute(0, 2, 3, 1)
    found = found.numpy()
    if answers.shape[1:3] == (1, 1):
        answers = answers.reshape(found.shape)
    assert found.shape == answers.shape
    if file.stem == "average_pool_same":  # Keras's torch backend repeats the edge where TensorFlow counts no padding
        found, answers = found[:, :-1, :-1], answers[:, :-1, :-1]
    assert np.abs(found - answers).max() <= TOLERANCE * np.abs(answers).max()
    assert card.network == report.card.network == network
    return loaded, report


@pytest.mark.parametrize("form", [".keras", ".h5"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_means_what_it_means_in_keras(layers, name, form, tmp_path):
    check(layers / f"{name}{form}", tmp_path, inside=False)


WITHOUT_MAP = {
    "two_readers": "no single layer reads its whole feature map",
    "unknown_to_slide": r"its head has dense_activation \(softsign\), which cannot slide",
    "two_norms_after_flatten": "it must follow the layer that reads the window",
    "softmax_inside_head": r"its head has dense_activation \(softmax\), which cannot slide",
}
HEADLESS = {
    "map_only",
    "pooled_only",
    "softmax_of_product",
    "norm_after_pool",
    "first_prelu",
    "first_log_softmax",
    *INSIDE,
}


@pytest.mark.parametrize("form", [".keras", ".h5"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_split_into_features_and_head(models, name, form, tmp_path):
    network, _ = check(models / f"{name}{form}", tmp_path, inside=name in INSIDE)
    assert (network.head is None) == (name in HEADLESS)
    if name in WITHOUT_MAP:
        assert re.search(WITHOUT_MAP[name], network.no_map)


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_supported_is_refused_by_name(refused, what, tmp_path):
    with pytest.raises(ValueError, match=REFUSED[what][1]):
        convert(refused / f"{what}.keras", tmp_path / "out.safetensors", preprocessing="unit", isolated=False)


@pytest.fixture(scope="module")
def papers(filled) -> Path:
    return filled("keras3_graph_papers", run_keras("papers"))


@pytest.mark.parametrize("form", [".keras", ".h5"])
@pytest.mark.parametrize("name", PAPERS)
def test_a_network_of_a_paper_is_known_by_its_graph(papers, name, form, tmp_path):
    wanted = name[: name.index("_", 10 if "inception" in name else 0)]
    _, report = check(papers / f"{name}{form}", tmp_path, inside=False, network=wanted)
    assert max(row.error for row in report.proof) < 1e-9
    if name == "vgg16_until_fc2":
        assert report.card.arguments["head"][-1] == ("relu",)


@pytest.mark.parametrize("name", NEARLY)
def test_a_graph_that_differs_in_one_place_is_no_network_of_a_paper(papers, name, tmp_path):
    check(papers / f"{name}.keras", tmp_path, inside=False, network="graph")


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


def edited(source: Path, folder: Path, change) -> Path:
    """A copy of an .h5 file whose config a function has changed; it gets the layers by name."""
    path = folder / "edited.h5"
    shutil.copy(source, path)
    with h5py.File(path, "r+") as file:
        model = json.loads(file.attrs["model_config"])
        change({layer["config"]["name"]: layer for layer in model["config"]["layers"]}, model["config"])
        file.attrs["model_config"] = json.dumps(model)
    return path


def to_class(name: str, class_name: str):
    return lambda layers, model: layers[name].update(class_name=class_name)


def setting(name: str, **values: object):
    return lambda layers, model: layers[name]["config"].update(values)


def test_a_softmax_of_tf_has_its_axis_as_an_argument(layers, tmp_path):
    def change(layers, model):
        layers["softmax"].update(class_name="TFOpLambda")
        layers["softmax"].pop("module", None)
        layers["softmax"]["config"] = {"name": "softmax", "trainable": True, "function": "nn.softmax"}
        layers["softmax"]["inbound_nodes"][0]["kwargs"] = {"axis": 1}

    path = edited(layers / "operation_softmax.h5", tmp_path, change)
    shutil.copy(layers / "operation_softmax.npz", path.with_suffix(".npz"))
    check(path, tmp_path, inside=False)


def read(name: str, source: str):
    def change(layers, model):
        layers[name]["inbound_nodes"][0]["args"][0]["config"]["keras_history"][0] = source

    return change


def many(layers, model):
    model["layers"] += [json.loads(json.dumps(layers["pool"])) for _ in range(20_001)]


def function_with_slope(layers, model):
    layers["pool"].update(class_name="TFOpLambda")
    layers["pool"]["config"]["function"] = "nn.relu"
    layers["pool"]["inbound_nodes"][0]["kwargs"] = {"alpha": 0.5}


WRONG = {  # what is wrong -> change of the config, sentence
    "a class that is not known": (
        to_class("pool", "SpaceToDepth"),
        r"layer pool \(SpaceToDepth\) is of a class that is",
    ),
    "code": (
        to_class("pool", "Lambda"),
        r"layer pool \(Lambda\) runs Python code .* which is never executed; put layers",
    ),
    "a bias that is not there": (setting("stem", use_bias=True), "stem has no bias"),
    "a bias too many": (setting("branch", use_bias=False), "branch has a bias, but its config has none"),
    "more filters than kernels": (setting("branch", filters=7), "but its config says 7 filters of 3x3"),
    "another kernel size": (setting("branch", kernel_size=[5, 5]), "but its config says 6 filters of 5x5"),
    "no scale": (setting("stem_bn", scale=False), "stem_bn has a gamma, but its config has none"),
    "an unknown padding": (setting("branch", padding="reflect"), "has the padding 'reflect'; known"),
    "another data format": (setting("pool", data_format="channels_first"), "is channels_first, but the model is"),
    "an unknown activation": (setting("branch", activation="sparkle"), "has the activation 'sparkle', which is not"),
    "a huge pool": (setting("pool", pool_size=[60_000, 60_000]), "pool"),
    "a pool of words": (setting("pool", pool_size="large"), "expected one or two positive integers"),
    "shapes that do not fit": (setting("branch", padding="valid"), r"layer joined \(Add\) cannot read inputs of"),
    "a function with more than its input": (function_with_slope, "is called with 0.5 beside its input"),
    "a cycle": (read("stem", "pool"), "form a cycle"),
    "a layer that does not exist": (read("pool", "nowhere"), "reads nowhere, which does not exist"),
    "too many layers": (many, "more than 20000 layers"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_graph_that_cannot_be_is_refused_in_one_sentence(models, what, tmp_path):
    change, message = WRONG[what]
    path = edited(models / "average_head.h5", tmp_path, change)
    with pytest.raises(ValueError, match=message) as caught:
        convert(path, tmp_path / "out.safetensors", preprocessing="unit", isolated=False)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("name", ["depthwise", "separable", "transposed"])
def test_a_kernel_of_another_size_than_the_config_says_is_refused(layers, name, tmp_path):
    def change(layers, model):
        [changed] = [
            layer for layer in layers.values() if re.search("Depthwise|Separable|Transpose", layer["class_name"])
        ]
        changed["config"]["kernel_size"] = [7, 7]

    path = edited(layers / f"{name}.h5", tmp_path, change)
    with pytest.raises(ValueError, match=r"has a kernel of .x., but its config says 7x7"):
        convert(path, tmp_path / "out.safetensors", preprocessing="unit", isolated=False)


def any_size(layers, model):
    model["layers"][0]["config"]["batch_shape"] = [None, None, None, 3]


def test_all_that_a_graph_needs_is_asked_at_once(models, tmp_path):
    out = tmp_path / "out.safetensors"
    path = edited(models / "average_head.h5", tmp_path, any_size)
    wanted = (
        "needs 2 options: the size to classify, --input-size HEIGHTxWIDTH, since its model takes pictures of any size;"
        " and --preprocessing with a JSON file or one of"
    )
    with pytest.raises(ValueError, match=wanted):
        convert(path, out, isolated=False)
    with pytest.raises(ValueError, match="its model takes pictures of any size; give the size to classify, --input-si"):
        convert(path, out, isolated=False, preprocessing="unit")
    with pytest.raises(ValueError, match="unknown preprocessing 'caffe'"):
        convert(path, out, isolated=False, preprocessing="caffe")
    convert(path, out, isolated=False, preprocessing="unit", input_size=(20, 28), proof=True)


def test_a_layer_of_ones_own_is_taught(models, tmp_path, monkeypatch):
    monkeypatch.setattr(graph_plan, "REGISTERED", {})
    path = edited(models / "average_head.h5", tmp_path, to_class("stem_relu", "Doubled"))
    with pytest.raises(ValueError, match=r"layer stem_relu \(Doubled\) is of a class that is not known"):
        convert(path, tmp_path / "out.safetensors", preprocessing="unit", isolated=False)
    register_layer(
        "Doubled", lambda settings, arrays, inputs: [Translated("scale", {"scale": 2.0}), Translated("relu")]
    )
    convert(path, tmp_path / "out.safetensors", preprocessing="unit", isolated=False)
    part = load(tmp_path / "out.safetensors").features
    assert part.get_submodule("stem_relu_1").scale == 2.0
    assert isinstance(part.stem_relu, torch.nn.ReLU)
    with pytest.raises(ValueError, match="Conv2D is a layer that is known already"):
        register_layer("Conv2D", lambda settings, arrays, inputs: [])


def test_a_network_without_a_map_says_why_and_does_all_else(models, tmp_path):
    network, _ = check(models / "two_readers.keras", tmp_path, inside=False)
    with pytest.raises(ValueError, match="the network has no dense map: no single layer reads its whole feature map"):
        heatmap(network, np.zeros((40, 60, 3), np.uint8), 0)
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    [best] = classify(network, picture)
    assert sum(each.probability for each in best) == pytest.approx(1, abs=1e-5)
    assert embed(network, picture).shape == (1, 8)
    assert gradcam(network, picture, 1).values.shape == (10, 14)
    assert gradcam(network, picture, 1).layer == "features.joined"


def test_a_new_last_layer_takes_the_place_of_the_old_one(models, tmp_path):
    network, _ = check(models / "average_head.keras", tmp_path, inside=False)
    changed = with_last_layer(network, torch.zeros(2, 6), torch.tensor([0.5, 1.5]), ("a", "b"), "for a test")
    save(changed, tmp_path / "changed.safetensors")
    assert load(tmp_path / "changed.safetensors")(torch.zeros(1, 3, 20, 28)).tolist() == [[0.5, 1.5]]


@pytest.fixture(scope="module")
def channels_first(filled) -> Path:
    return filled("keras3_graph_first", run_keras("both"))


@pytest.mark.parametrize("name", BOTH_FORMATS)
def test_a_layer_means_what_it_means_in_keras_with_channels_first(channels_first, name, tmp_path):
    with np.load(channels_first / f"{name}.npz") as stored:
        pictures, answers = stored["images"], stored["outputs"]
    options: dict[str, Any] = {} if name in INSIDE else {"preprocessing": "unit"}
    convert(channels_first / f"{name}.keras", tmp_path / "out.safetensors", proof=True, isolated=False, **options)
    network = load(tmp_path / "out.safetensors")
    images = torch.from_numpy(np.stack([normalize(picture, network.card.preprocessing) for picture in pictures]))
    with torch.no_grad():
        found = network.features(images) if network.head is None else network(images)
    found = found.softmax(1).numpy() if network.card.activation == "softmax" else found.numpy()
    assert found.shape == answers.shape
    assert np.abs(found - answers).max() <= TOLERANCE * np.abs(answers).max()

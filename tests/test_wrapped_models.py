"""Models that wrap others, or hold code known by its place: `multi_gpu_model`, InceptionResNetV2, TimeDistributed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from converters import convert
from convnets_torch import load
from convnets_torch.images.preprocessing import normalize
from tests.conftest import DATA

WRAPPED = DATA / "keras224" / "wrapped"
FILES = ("multi_gpu", "multi_gpu_sequential", "inception_resnet")


@pytest.mark.parametrize("name", FILES)
def test_they_answer_as_real_keras_on_tensorflow(name, tmp_path):
    """A batch of four pictures: each GPU had one or two, or the rest."""
    convert(WRAPPED / f"{name}.h5", tmp_path / "out.safetensors", preprocessing="unit", proof=True, isolated=False)
    network = load(tmp_path / "out.safetensors")
    with np.load(WRAPPED / f"{name}.npz") as stored:
        pictures, wanted = stored["images"], stored["outputs"]
    images = torch.from_numpy(np.stack([normalize(picture, network.card.preprocessing) for picture in pictures]))
    with torch.no_grad():
        found = network(images)
    found = found.softmax(1) if network.card.activation == "softmax" else found
    assert np.abs(found.numpy() - wanted).max() <= 1e-5 * np.abs(wanted).max()


def edited(name: str, folder: Path, change) -> Path:
    """A copy whose config a function has changed; it gets the layers by name."""
    path = folder / "edited.h5"
    shutil.copy(WRAPPED / f"{name}.h5", path)
    with h5py.File(path, "r+") as file:
        model = json.loads(file.attrs["model_config"])
        change({layer["config"]["name"]: layer for layer in model["config"]["layers"]}, model["config"])
        file.attrs["model_config"] = json.dumps(model)
    return path


def arguments(name: str, **values: object):
    return lambda layers, model: layers[name]["config"].update(arguments=values)


def setting(name: str, **values: object):
    return lambda layers, model: layers[name]["config"].update(values)


def exchange(layers, model):
    [parts] = layers["scores"]["inbound_nodes"]
    parts.reverse()


def rename(old: str, new: str):
    def change(layers, model):
        text = json.dumps(model).replace(f'"{old}"', f'"{new}"')
        model.clear()
        model.update(json.loads(text))

    return change


def add_other(layers, model):
    """The scaled branch is no longer the convolution called after the Lambda."""
    layers["block35_1"]["inbound_nodes"][0].reverse()


WRONG = {  # what is wrong -> file, change of the config, sentence
    "a part that is taken twice": ("multi_gpu", arguments("lambda_2", i=0, parts=2), r"lambda_\d \(Lambda\) runs"),
    "a part of more": ("multi_gpu", arguments("lambda_2", i=1, parts=3), r"lambda_\d \(Lambda\)"),
    "no part": ("multi_gpu", arguments("lambda_2"), r"lambda_\d \(Lambda\)"),
    "parts in another order": ("multi_gpu", exchange, r"lambda_\d \(Lambda\)"),
    "another axis": ("multi_gpu", setting("scores", axis=1), r"lambda_\d \(Lambda\)"),
    "a scale of words": ("inception_resnet", arguments("block35_1", scale="0.17"), r"block35_1 \(Lambda\) runs"),
    "more than a scale": (
        "inception_resnet", arguments("block35_1", scale=0.17, bias=1.0), r"block35_1 \(Lambda\) runs Python code",
    ),
    "inputs in another order": ("inception_resnet", add_other, r"block35_1 \(Lambda\) runs Python code"),
    "another name": ("inception_resnet", rename("block35_1", "sum_1"), r"sum_1 \(Lambda\) runs Python code"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_code_in_another_place_is_refused(what, tmp_path):
    name, change, message = WRONG[what]
    with pytest.raises(ValueError, match=message):
        convert(edited(name, tmp_path, change), tmp_path / "out.safetensors", preprocessing="unit", isolated=False)
    assert not list(tmp_path.glob("out*"))


def test_a_sequence_of_pictures_is_refused(tmp_path):
    def wrap(layers, model):
        conv = layers["block35_1_conv"]
        conv["config"] = {"name": "block35_1_conv", "layer": {"class_name": "Conv2D", "config": conv["config"]}}
        conv["class_name"] = "TimeDistributed"

    path = edited("inception_resnet", tmp_path, wrap)
    with pytest.raises(
        ValueError, match=r"block35_1_conv \(TimeDistributed\) wraps a Conv2D for sequences of pictures"
    ):
        convert(path, tmp_path / "out.safetensors", preprocessing="unit", isolated=False)

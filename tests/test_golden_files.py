"""The files of the real frameworks are what their tables say: read with h5py alone, nothing of convnets_torch."""

from __future__ import annotations

import io
import json
import zipfile
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.reference.goldens import DATA, TOPS, Golden
from tests.reference.keras3_goldens import KERAS3, RECORDED
from tests.reference.theano_goldens import THEANO
from tests.reference.theano_layers import FILES as LAYERS
from tests.test_wrapped_models import FILES as WRAPPED

STORED = THEANO + [golden for goldens in RECORDED.values() for golden in goldens]
WRITTEN = [golden for goldens in KERAS3.values() for golden in goldens]
CONVOLUTIONS = {"alexnet": 8, "vgg16": 13, "vgg19": 16, "resnet50": 53, "inception_v3": 94, "inception_v3-keras1": 94}
BATCH_NORMS = {"resnet50": 53, "inception_v3": 94, "inception_v3-keras1": 94}


@dataclass
class Content:
    """What h5py and zipfile see in a file."""

    attributes: dict  # of the group that says what framework wrote it
    arrays: dict  # place -> dataset's shape and dtype, without the optimizer's
    names: set  # of layers, wherever the file says them
    slots: int  # arrays of the optimizer
    config: dict | None


def text(value):
    return value.decode() if isinstance(value, bytes) else value


@cache
def read(path: Path) -> Content:
    with ExitStack() as stack:
        config, attributes = None, {}
        if path.suffix == ".keras":
            archive = stack.enter_context(zipfile.ZipFile(path))
            config, attributes = json.loads(archive.read("config.json")), json.loads(archive.read("metadata.json"))
            file = stack.enter_context(h5py.File(io.BytesIO(archive.read("model.weights.h5"))))
        else:
            file = stack.enter_context(h5py.File(path))
            attributes = {name: text(value) for name, value in file.attrs.items()}
            if "model_weights" in file:
                attributes |= {name: text(value) for name, value in file["model_weights"].attrs.items()}
            if "model_config" in attributes:
                config = json.loads(attributes["model_config"])
        names, arrays, slots = {text(name) for name in attributes.get("layer_names", [])}, {}, 0

        def visit(place, item):
            nonlocal slots
            names.update(text(name) for name in [item.attrs.get("name")] if name is not None)
            if "weight_names" in item.attrs:
                names.update(
                    part.removesuffix("_W") for name in item.attrs["weight_names"] for part in text(name).split("/")
                )
            if isinstance(item, h5py.Dataset):
                if "optimizer" in place:
                    slots += 1
                else:
                    arrays[place] = (item.shape, item.dtype)

        file.visititems(visit)
        return Content(attributes, arrays, names, slots, config)


PARAMETERS = [pytest.param(golden, marks=[pytest.mark.slow] * (golden in WRITTEN)) for golden in STORED + WRITTEN]


@pytest.fixture(params=PARAMETERS, ids=lambda golden: golden.file)
def golden(request) -> Golden:
    return request.param


@pytest.fixture
def folder(golden, request) -> Path:
    """Where the file is: tests/data, or what Keras 3 has just written."""
    return DATA if golden in STORED else request.getfixturevalue("keras3_files")


@pytest.fixture
def content(golden, folder) -> Content:
    return read(folder / golden.file)


def test_the_convolutions_are_those_of_the_network(golden, content):
    """Their number and widths, and OIHW in Keras 0 and 1 with `th`, else HWIO."""
    kernels = [shape for shape, _ in content.arrays.values() if len(shape) == 4]
    oihw = golden.version < "2" and golden.data_format == "channels_first"
    outputs, inputs = (0, 1) if oihw else (3, 2)
    assert min(shape[inputs] for shape in kernels) == (2 if "inception" in golden.network else 3)
    widths = {shape[outputs] for shape in kernels}
    if golden.network == "alexnet":  # halves of two groups are stored apart
        assert len(kernels) == 8
        assert widths == {12, 16, 48, 24}
    elif golden.network == "resnet50":
        assert len(kernels) == 53
        assert widths == {5, 3, 4, 6, 12, 16, 20, 24}
    else:
        assert len(kernels) == CONVOLUTIONS[golden.network]
        assert widths == set(golden.arguments["widths"])
        if "inception" in golden.network:
            assert sorted(shape[outputs] for shape in kernels) == sorted(golden.arguments["widths"])


def test_the_dense_layers_are_those_of_the_top(golden, content):
    units = [step[1] for step in TOPS[golden.top] or () if step[0] == "dense"]
    if golden.top == "standard":
        units = [*golden.arguments.get("hidden", ()), golden.classes]
    assert sorted(shape[1] for shape, _ in content.arrays.values() if len(shape) == 2) == sorted(units)
    if units and golden.network.startswith("vgg") and golden.top in ("standard", "nested", "nested top"):
        cells = golden.size[0] // 32 * (golden.size[1] // 32)
        rows = max(shape[0] for shape, _ in content.arrays.values() if len(shape) == 2)
        assert rows == cells * golden.arguments["widths"][-1]


def test_batch_normalisation_has_a_gamma_but_in_inception_v3_of_keras_2(golden, content):
    """Arrays with one axis: the biases, of which convolutions there have none, and four or three of each."""
    vectors = sum(len(shape) == 1 for shape, _ in content.arrays.values())
    dense = sum(len(shape) == 2 for shape, _ in content.arrays.values())
    norms = BATCH_NORMS.get(golden.network, 0)
    expected = dense + (CONVOLUTIONS[golden.network] + 4 * norms if golden.network != "inception_v3" else 3 * norms)
    assert vectors == expected + {"batch norm": 3, "flat batch norm": 4}.get(golden.top, 0)  # four more; a bias less


def test_the_file_says_of_its_framework_what_the_table_says(golden, content):
    version = content.attributes.get("keras_version")
    if golden.version == "3":
        assert golden.form == ".weights.h5" or version.startswith("3.")
    elif golden.form == ".weights.h5" or (golden.version < "2" and golden.form == "weights"):
        assert version is None
    else:
        assert version == golden.version
    says_backend = golden.version >= "2" and golden.form in ("weights", "model")
    assert content.attributes.get("backend") == (golden.backend if says_backend else None)
    assert (content.config is not None) == golden.config
    assert (content.slots > 40) == golden.trained


MARKS = {
    ("vgg16", "convnets-keras"): {"conv5_3", "dense_3"},
    ("vgg19", "convnets-keras"): {"conv5_4", "dense_3"},
    ("alexnet", "convnets-keras"): {"conv_5_2", "dense_3"},
    ("vgg16", "keras-applications"): {"block1_conv1", "block5_conv3"},
    ("vgg19", "keras-applications"): {"block1_conv1", "block5_conv4"},
    ("resnet50", "keras-applications"): {"conv2_block1_0_conv", "conv5_block3_3_bn"},
    ("resnet50", "keras-applications-old"): {"res2a_branch1", "bn5c_branch2c"},
    ("inception_v3", "keras-applications"): set(),
    ("inception_v3-keras1", "keras-applications"): set(),
}


def test_the_names_are_of_the_lineage(golden, content):
    without = golden.version in ("0.3.3", "3.0.5") and golden.form in ("weights", ".weights.h5")
    names = content.names
    if golden.form == ".keras":
        names = names | {part for part in json.dumps(content.config).split('"')}
    marks = MARKS[golden.network, golden.lineage]
    assert not names if without else marks <= names
    if "inception" in golden.network:
        assert sum(name.startswith(("conv2d_", "convolution2d_")) for name in content.names) >= 93


def layers_of(config, kind):
    """The configs of all layers of a class, in nested models too."""
    inner = config["config"]
    for layer in inner["layers"] if isinstance(inner, dict) and "layers" in inner else inner:
        if isinstance(layer["config"], list) or "layers" in layer["config"]:
            yield from layers_of(layer, kind)
        elif layer["class_name"] == kind:
            yield layer["config"]


def models(network):
    """Whole models of the old Keras that hold this network, as parameters of a test."""
    chosen = [golden for golden in THEANO if (golden.network, golden.form) == (network, "model")]
    return pytest.mark.parametrize("golden", chosen, ids=lambda golden: golden.file)


@models("vgg16")
def test_what_flatten_says_of_itself(golden):
    """It transposes where it says `channels_first`; 2.1.6 alone says `channels_last` of a channels-first network."""
    flattens = list(layers_of(read(DATA / golden.file).config, "Flatten"))
    says = {"1.2.2": None, "2.0.8": None, "2.1.6": "channels_last"}.get(golden.version, golden.data_format)
    assert [flatten.get("data_format") for flatten in flattens] == ([] if golden.top == "flat" else [says])


@models("resnet50")
def test_whole_models_say_whether_the_first_pool_is_padded(golden):
    names = {layer["name"] for layer in layers_of(read(DATA / golden.file).config, "ZeroPadding2D")}
    assert ("pool1_pad" in names) == golden.arguments["pool_padding"]


def test_the_outputs_are_likely_ones(golden, folder):
    """As many as the table says, and the best five so far apart that rounding does not change their order."""
    outputs = golden.outputs(folder)
    with np.load(folder / golden.answers) as file:
        assert tuple(file["seeds"]) == golden.seeds
        assert tuple(file["size"]) == golden.size
    assert outputs.dtype == np.float32
    if golden.top == "none":
        size = {"inception_v3": (8, 8)}.get(golden.network, (7, 7))
        assert outputs.shape[0] == 2
        assert outputs.shape[2:] == size
        return
    assert outputs.shape == (2, golden.classes)
    assert np.ptp(outputs, axis=0).max() > 0.02
    if golden.activation == "softmax":
        np.testing.assert_allclose(outputs.sum(axis=1), 1, atol=1e-5)
        best = np.sort(outputs, axis=1)[:, ::-1][:, :5]
        assert (best[:, :-1] / best[:, 1:]).min() > 1.005


def test_16_bits_are_stored_as_16_bits(keras3_files):
    """bfloat16 is an opaque type to HDF5; only `.weights.h5`, also in a `.keras`, says in an attribute what it is."""
    for name, kind in (("vgg16_bfloat16", "V2"), ("vgg16_float16", "f2")):
        for golden in KERAS3[name]:
            kinds = {dtype.str[1:] for _, dtype in read(keras3_files / golden.file).arrays.values()}
            assert kinds == {kind}
    with h5py.File(keras3_files / "vgg16_bfloat16.weights.h5") as file:
        assert file["layers/conv2d/vars/0"].attrs["dtype"] == "bfloat16"
    with h5py.File(keras3_files / "vgg16_bfloat16.legacy.h5") as file:
        assert not dict(file["block1_conv1/block1_conv1/kernel"].attrs)


def test_weights_of_keras_3_0_have_no_names_and_those_of_3_6_have():
    for version, named in (("305", False), ("360", True)):
        with h5py.File(DATA / f"keras{version}" / "vgg16.weights.h5") as file:
            assert ("name" in file["layers/conv2d/vars"].attrs) == named


def test_every_file_is_in_the_table():
    stored = {str(path.relative_to(DATA)) for kind in ("h5", "keras") for path in DATA.rglob(f"*.{kind}")}
    assert stored == {golden.file for golden in STORED} | set(LAYERS) | {
        f"keras224/wrapped/{name}.h5" for name in WRAPPED
    }

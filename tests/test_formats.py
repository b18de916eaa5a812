"""Every file of the table converts to a network that answers as the framework that wrote the file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from converters import convert
from convnets_torch.images.preprocessing import normalize
from convnets_torch.networks import Network
from convnets_torch.weights import load
from tests.conftest import assert_agree, run_keras3
from tests.reference import theano_forward
from tests.reference.goldens import DATA, Golden
from tests.reference.keras1_files import FULL, random_layers, write_keras1
from tests.reference.keras3_goldens import FULL as FULL_KERAS3
from tests.reference.keras3_goldens import KERAS3, RECORDED
from tests.reference.pictures import picture
from tests.reference.theano_goldens import THEANO

REFUSED = {  # file -> why
    "vgg16_nested_top.legacy.h5": "lists only the arrays of sequential_1, not its layers without arrays",
    "vgg16_batch_norm.weights.h5": "does not say in which order its head's layers come",
    "vgg16_bfloat16.h5": "bfloat16 without Keras's mark",
    "vgg16_bfloat16.legacy.h5": "bfloat16 without Keras's mark",
}
RECORDED_FILES = [*THEANO, *(golden for files in RECORDED.values() for golden in files)]
WRITTEN_NOW = [golden for files in KERAS3.values() for golden in files]


def read(goldens: list[Golden]) -> list[Golden]:
    return [golden for golden in goldens if golden.file not in REFUSED]


def converted(golden: Golden, folder: Path, target: Path, **options) -> Network:
    """The network of a golden's file, converted with what the file cannot tell."""
    needs = golden.needs | options
    settled = golden.config and golden.top in ("rescaling", "augmentation")  # by a layer of the model
    if not settled and golden.lineage != "convnets-keras":
        needs["preprocessing"] = golden.preprocessing
    report = convert(folder / golden.file, target / "out.safetensors", proof=True, **needs)
    assert max(row.error for row in report.proof) < 1e-4
    assert report.card.activation == golden.activation
    return load(target / "out.safetensors")


def assert_answers(network: Network, golden: Golden, folder: Path) -> None:
    wanted = golden.outputs(folder)
    with torch.inference_mode():
        inputs = torch.from_numpy(golden.inputs())
        if network.head is None:
            found = network.features(inputs)
        else:
            found = network(inputs)
            found = found.sigmoid() if golden.activation == "sigmoid" else found.softmax(1)
    assert found.shape == wanted.shape
    assert np.abs(found.numpy() - wanted).max() <= 1e-4 * np.abs(wanted).max()
    if network.head is not None:
        best, best_wanted = (array.argsort(axis=1)[:, ::-1][:, :5] for array in (found.numpy(), wanted))
        np.testing.assert_array_equal(best, best_wanted)


@pytest.mark.parametrize("golden", read(RECORDED_FILES), ids=lambda golden: golden.file)
def test_a_recorded_file_answers_as_its_framework_did(golden, tmp_path):
    assert_answers(converted(golden, DATA, tmp_path), golden, DATA)


@pytest.mark.parametrize("golden", read(WRITTEN_NOW), ids=lambda golden: golden.file)
def test_a_file_of_keras_3_answers_as_keras_3(golden, keras3_files, tmp_path):
    assert_answers(converted(golden, keras3_files, tmp_path), golden, keras3_files)


@pytest.mark.parametrize(
    "golden",
    [golden for golden in (*RECORDED_FILES, *WRITTEN_NOW) if golden.file in REFUSED],
    ids=lambda golden: golden.file,
)
def test_what_cannot_be_read_is_refused_by_name(golden, keras3_files, tmp_path):
    folder = DATA if golden in RECORDED_FILES else keras3_files
    with pytest.raises(ValueError, match=REFUSED[golden.file]):
        convert(folder / golden.file, tmp_path / "out.safetensors", preprocessing=golden.preprocessing)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_page_of_formats_is_what_the_lists_say():
    script = Path(__file__).parents[1] / "scripts" / "build_formats.py"
    subprocess.run([sys.executable, script, "--check"], check=True)


# Full-size files: of the original's layout against plain NumPy, of Keras 3 against what it answers


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
    """`keras.applications` with 1000 classes; test_names.py has others, in another format."""
    run_keras3(tmp_path, "--full", "--models", "resnet50", "--forms", "model")
    golden = next(golden for golden in FULL_KERAS3["resnet50"] if golden.form == "model")
    report = convert(tmp_path / golden.file, tmp_path / "out.safetensors")
    (tmp_path / golden.file).unlink()
    assert report.card.class_names == "imagenet-1k"
    assert report.card.preprocessing.name == golden.preprocessing
    assert_answers(load(tmp_path / "out.safetensors"), golden, tmp_path)
    (tmp_path / "out.safetensors").unlink()

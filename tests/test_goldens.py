"""The converted networks against the original: real Keras 1.2.2 and 0.3 on real Theano 1.0.5."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch

from converters import convert
from convnets_torch.fcn.score_map import score_map
from convnets_torch.images.preprocessing import normalize
from convnets_torch.weights import load
from tests.conftest import KERAS0, KERAS1, assert_agree
from tests.reference.pictures import picture


def inputs(network, seeds, size):
    """The pictures of the goldens, normalised as the card says (they are not resized)."""
    pictures = [normalize(picture(int(seed), *map(int, size)), network.card.preprocessing) for seed in seeds]
    return torch.from_numpy(np.stack(pictures))


@pytest.mark.parametrize("name", ["alexnet", "vgg16", "vgg19"])
def test_a_converted_network_answers_as_keras_1_on_theano(name, tmp_path):
    convert(KERAS1 / f"{name}.h5", tmp_path / "out.safetensors")
    network = load(tmp_path / "out.safetensors")
    golden = np.load(KERAS1 / f"{name}.npz")
    with torch.inference_mode():
        classified = network(inputs(network, golden["seeds"], golden["size"])).softmax(1)
        mapped = score_map(network, inputs(network, golden["heatmap_seeds"], golden["heatmap_size"])).softmax(1)
    assert_agree(classified.numpy(), golden["softmax"])
    assert mapped.shape[2:] == (3, 5)
    assert_agree(mapped.numpy(), golden["heatmap"])


@pytest.mark.parametrize("name", ["vgg16", "vgg19"])
def test_a_file_without_layer_names_answers_as_keras_0_on_theano(name, tmp_path):
    convert(KERAS0 / f"{name}.h5", tmp_path / "out.safetensors", backend="theano")
    network = load(tmp_path / "out.safetensors")
    golden = np.load(KERAS0 / f"{name}.npz")
    with torch.inference_mode():
        classified = network(inputs(network, golden["seeds"], golden["size"])).softmax(1)
    assert_agree(classified.numpy(), golden["softmax"])


@pytest.mark.filterwarnings("ignore::convnets_torch.inference.prepare.RuntimeRemark")  # not every processor has it
@pytest.mark.parametrize(
    ("precision", "dtype", "tolerance"), [("float16", torch.float16, 0.02), ("bfloat16", torch.bfloat16, 0.1)]
)
@pytest.mark.parametrize("name", ["alexnet", "vgg16"])
def test_half_precision_stays_near_the_original(name, precision, dtype, tolerance, tmp_path):
    """With activations as large as real ones: AlexNet's normalisation squares values of several hundred."""
    convert(KERAS1 / f"{name}.h5", tmp_path / "out.safetensors")
    network = load(tmp_path / "out.safetensors")
    golden = np.load(KERAS1 / f"{name}.npz")
    images = inputs(network, golden["seeds"], golden["size"])
    with torch.inference_mode():
        with torch.autocast("cpu", dtype):
            mixed = network(images).float().softmax(1)
        half = load(tmp_path / "out.safetensors", precision=precision)(images.to(dtype))
    for found in (mixed, half.float().softmax(1)):
        assert np.abs(found.numpy() - golden["softmax"]).max() < tolerance * golden["softmax"].max()


# What the goldens must be able to see: each of these mistakes keeps all shapes.
def unflipped(state):
    return {name: array.flip(2, 3) if array.dim() == 4 else array for name, array in state.items()}


def channels_last_rows(state):
    weight = state["head.dense_1.weight"]
    height, width = (6, 6) if weight.shape[1] % 36 == 0 else (7, 7)
    blocks = weight.reshape(len(weight), height, width, -1)
    return state | {"head.dense_1.weight": blocks.permute(0, 3, 1, 2).reshape(weight.shape)}


def swapped_groups(state):
    return state | {
        name: torch.cat(array.chunk(2)[::-1]) for name, array in state.items() if name.startswith("features.conv_4")
    }


MISTAKES = {"alexnet": [unflipped, channels_last_rows, swapped_groups]} | {
    name: [unflipped, channels_last_rows] for name in ("vgg16", "vgg19")
}


@pytest.mark.parametrize(
    ("name", "mistake"), [(name, made) for name, all_made in MISTAKES.items() for made in all_made]
)
def test_the_goldens_see_a_mistake_that_shapes_do_not(name, mistake, tmp_path):
    convert(KERAS1 / f"{name}.h5", tmp_path / "out.safetensors")
    network = load(tmp_path / "out.safetensors")
    network.load_state_dict(mistake(network.state_dict()))
    golden = np.load(KERAS1 / f"{name}.npz")
    with torch.inference_mode():
        classified = network(inputs(network, golden["seeds"], golden["size"])).softmax(1)
    with pytest.raises(AssertionError):
        assert_agree(classified.numpy(), golden["softmax"])


def test_the_goldens_see_an_lrn_that_divides_alpha_by_its_size(tmp_path):
    convert(KERAS1 / "alexnet.h5", tmp_path / "out.safetensors")
    network = load(tmp_path / "out.safetensors")
    for layer in network.features.modules():
        if isinstance(layer, torch.nn.LocalResponseNorm):
            layer.alpha = 1e-4
    golden = np.load(KERAS1 / "alexnet.npz")
    with torch.inference_mode():
        classified = network(inputs(network, golden["seeds"], golden["size"])).softmax(1)
    with pytest.raises(AssertionError):
        assert_agree(classified.numpy(), golden["softmax"])


def test_the_golden_files_are_of_the_layouts_that_they_stand_for():
    with h5py.File(KERAS1 / "vgg16.h5") as file:
        assert "backend" not in file.attrs
        assert "conv5_3" in list(file.attrs["layer_names"])
    with h5py.File(KERAS0 / "vgg16.h5") as file:
        assert file.attrs["nb_layers"] == 37

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


def converted(name, tmp_path, folder=KERAS1):
    """The network, the answers of the original, and the pictures that it answered to."""
    convert(folder / f"{name}.h5", tmp_path / "out.safetensors", backend="theano" if folder is KERAS0 else None)
    network, golden = load(tmp_path / "out.safetensors"), np.load(folder / f"{name}.npz")
    return network, golden, inputs(network, golden["seeds"], golden["size"])


@torch.inference_mode()
def classified(network, images):
    return network(images).float().softmax(1).numpy()


@pytest.mark.parametrize(
    ("folder", "name"),
    [*((KERAS1, name) for name in ("alexnet", "vgg16", "vgg19")), (KERAS0, "vgg16"), (KERAS0, "vgg19")],
)
def test_a_converted_network_answers_as_keras_on_theano(folder, name, tmp_path):
    """The files of Keras 0 have no names of layers."""
    network, golden, images = converted(name, tmp_path, folder)
    assert_agree(classified(network, images), golden["softmax"])
    if folder is KERAS1:
        with torch.inference_mode():
            mapped = score_map(network, inputs(network, golden["heatmap_seeds"], golden["heatmap_size"])).softmax(1)
        assert mapped.shape[2:] == (3, 5)
        assert_agree(mapped.numpy(), golden["heatmap"])


@pytest.mark.filterwarnings("ignore::convnets_torch.inference.prepare.RuntimeRemark")  # not every processor has it
@pytest.mark.parametrize(
    ("precision", "dtype", "tolerance"), [("float16", torch.float16, 0.02), ("bfloat16", torch.bfloat16, 0.1)]
)
@pytest.mark.parametrize("name", ["alexnet", "vgg16"])
def test_half_precision_stays_near_the_original(name, precision, dtype, tolerance, tmp_path):
    """With activations as large as real ones: AlexNet's normalisation squares values of several hundred."""
    network, golden, images = converted(name, tmp_path)
    with torch.autocast("cpu", dtype):
        mixed = classified(network, images)
    half = classified(load(tmp_path / "out.safetensors", precision=precision), images.to(dtype))
    for found in (mixed, half):
        assert np.abs(found - golden["softmax"]).max() < tolerance * golden["softmax"].max()


# What the goldens must be able to see: each of these mistakes keeps all shapes.
def unflipped(network):
    return {name: array.flip(2, 3) for name, array in network.state_dict().items() if array.dim() == 4}


def channels_last_rows(network):
    weight = network.get_parameter("head.dense_1.weight")
    blocks = weight.reshape(len(weight), *network.window, -1)
    return {"head.dense_1.weight": blocks.permute(0, 3, 1, 2).reshape(weight.shape)}


def swapped_groups(network):
    state = {name: array for name, array in network.state_dict().items() if name.startswith("features.conv_4")}
    return {name: torch.cat(array.chunk(2)[::-1]) for name, array in state.items()}


def divided_alpha(network):
    """The normalisation's alpha divided by its size."""
    for layer in network.features.modules():
        if isinstance(layer, torch.nn.LocalResponseNorm):
            layer.alpha = 1e-4
    return {}


ALL = [(name, mistake) for name in ("alexnet", "vgg16", "vgg19") for mistake in (unflipped, channels_last_rows)]


@pytest.mark.parametrize(("name", "mistake"), [*ALL, ("alexnet", swapped_groups), ("alexnet", divided_alpha)])
def test_the_goldens_see_a_mistake_that_shapes_do_not(name, mistake, tmp_path):
    network, golden, images = converted(name, tmp_path)
    network.load_state_dict(network.state_dict() | mistake(network))
    with pytest.raises(AssertionError):
        assert_agree(classified(network, images), golden["softmax"])


def test_the_golden_files_are_of_the_layouts_that_they_stand_for():
    with h5py.File(KERAS1 / "vgg16.h5") as file:
        assert "backend" not in file.attrs
        assert "conv5_3" in list(file.attrs["layer_names"])
    with h5py.File(KERAS0 / "vgg16.h5") as file:
        assert file.attrs["nb_layers"] == 37

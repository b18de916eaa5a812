"""What the commands that explain a network say when they cannot, and that nothing is lost then."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from convnets_torch.card import Card
from convnets_torch.explain.channels import activation_grids
from convnets_torch.explain.filters import filter_patterns
from convnets_torch.explain.statistics import channel_statistics, zero_shares
from convnets_torch.images.preprocessing import general
from convnets_torch.networks import Network
from convnets_torch.weights import save
from tests.conftest import NARROW
from tests.reference.pictures import picture


def narrow_vgg() -> Network:
    """VGG16 with few channels, seeded random weights and classes that a terminal would obey."""
    torch.manual_seed(0)
    network = NARROW["vgg16"]().eval()
    arguments = {"classes": 10, "widths": (8, 16, 32, 64, 64), "hidden": (24, 40)}
    names = tuple(f"class\x1b[31m{number}" for number in range(10))
    network.card = Card("vgg16", arguments, general("torchvision", 224), names)
    return network


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "vgg.safetensors"
    save(narrow_vgg(), path)
    return path


def test_activations_of_broken_weights_are_refused():
    network, pixels = narrow_vgg(), picture(1, 240, 300)
    with torch.no_grad():
        network.get_submodule("features.conv2_1").get_parameter("bias")[0] = float("inf")
    sentence = "activations of features.conv2_1 are NaN or infinite: weights are broken"
    for run in (
        lambda: activation_grids(network, pixels, "conv2_1"),
        lambda: channel_statistics(network, [pixels], "conv2_1"),
        lambda: zero_shares(network, [pixels], "conv2_1"),
        lambda: filter_patterns(network, "conv2_1", [0], steps=1, size=32),
    ):
        with pytest.raises(ValueError, match=sentence):
            run()
    assert activation_grids(network, pixels, "conv1_2")[0].highest > 0  # what comes before is whole


@pytest.mark.parametrize("shape", [(1, 1), (3, 400), (400, 3)])
def test_a_picture_that_is_too_small_for_a_layer_gets_a_sentence(shape, weights, tmp_path, command):
    Image.fromarray(picture(1, *shape)).save(tmp_path / "small.png")
    options = ["--layer", "conv2_1", "--longest-side", 100, "-o", tmp_path / "x.png"]
    code, out, error = command("activations", weights, tmp_path / "small.png", *options)
    if shape == (1, 1):  # which is resized to 100 pixels like any other
        assert code == 0
        return
    assert (code, out, len(error.splitlines())) == (1, "", 1)
    assert "small.png at " in error
    assert "is too small for these layers" in error
    assert not (tmp_path / "x.png").exists()


def test_names_of_classes_and_files_do_not_steer_the_terminal(weights, street, tmp_path, command):
    odd = street.rename(tmp_path / "street\x1b[2J.png")
    for words in (
        ["gradcam", weights, odd, "--target", 3, "-o", tmp_path / "a\x1b[2J.png"],
        ["explain", weights, odd, "--top", 1, "--method", "layercam", "-o", tmp_path / "a.html"],
        ["filters", weights, "--target", 3, "--steps", 1, "-o", tmp_path / "b.png"],
        ["filters", weights, "--layer", "conv1_1", "--steps", 1, "--pictures", odd, "-o", tmp_path / "c.png"],
    ):
        code, out, error = command(*words)
        assert code == 0, error
        assert "\\x1b" in out
        assert "\x1b" not in out + error


@pytest.mark.parametrize("name", ["x.html", "x.tif", "x"])
def test_grad_cam_names_the_endings_that_it_writes(name, weights, street, tmp_path, command):
    code, _, error = command("gradcam", weights, street, "-o", tmp_path / name)
    assert code == 1
    assert error.endswith("Grad-CAM can be written as .png, .jpg, .jpeg, .webp, .json, .npz or .npy")


def test_an_unknown_layer_is_refused_before_any_class_is_explained(weights, street, tmp_path, command):
    words = ["explain", weights, street, "--layer", "relu9_9", "-o", tmp_path / "x.html"]
    code, out, error = command(*words)
    assert (code, out, len(error.splitlines())) == (1, "", 1)
    assert "did you mean relu5_3" in error


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_is_a_misuse(seed, weights, tmp_path, command):
    code, _, error = command("filters", weights, "--layer", "conv1_1", "--seed", seed, "-o", tmp_path / "x.png")
    assert code == 2
    assert "--seed" in error


def test_a_layer_without_receptive_field_is_refused_before_the_ascent(weights, street, tmp_path, command):
    options = ["--steps", 10**9, "--channels", 0, "--pictures", street, "-o", tmp_path / "x.png"]
    code, out, error = command("filters", weights, "--layer", "fc1", *options)
    assert (code, out, len(error.splitlines())) == (1, "", 1)
    assert "the receptive field of head.relu_dense_1 is unknown" in error


def test_a_map_of_zeros_is_told_with_what_it_is_weighed_against(weights, tmp_path, command):
    Image.new("RGB", (224, 224)).save(tmp_path / "black.png")
    told = []
    for one, other in ((3, 4), (4, 3)):  # weights are random; one of the two is such a map
        words = ["gradcam", weights, tmp_path / "black.png", "--target", one, "--against", other, "--json"]
        code, out, error = command(*words)
        assert code == 0, error
        [found] = json.loads(out)["maps"]
        told.append(found["raw_maximum"] == 0)
        label = f"class\\x1b[31m{one} rather than class\\x1b[31m{other}"
        assert (f"black.png: {label}: no cell supports it" in error) == told[-1]
    assert any(told)


@pytest.mark.parametrize(
    "words",
    [
        ["gradcam", "PICTURE", "--target", 3],
        ["heatmap", "PICTURE", "--target", 3],
        ["activations", "PICTURE", "--layer", "conv1_1"],
        ["activations", "PICTURE", "PICTURE", "--layer", "conv1_1"],
        ["filters", "--layer", "conv1_1", "--channels", 0, "--steps", 1, "--pictures", "PICTURE"],
    ],
)
def test_a_picture_is_not_overwritten_by_what_is_made_of_it(words, weights, street, command):
    before, link = street.read_bytes(), street.with_name("link.png")
    link.symlink_to(street)
    named = [street if word == "PICTURE" else word for word in words]
    for output in (street, link):
        code, _, error = command(named[0], weights, *named[1:], "-o", output)
        assert (code, len(error.splitlines())) == (1, 1)
        assert "would overwrite a picture that is read" in error
        assert street.read_bytes() == before


def test_maps_and_their_report_are_not_the_same_file(weights, street, tmp_path, command):
    path = tmp_path / "report.json"
    code, _, error = command("gradcam", weights, street, "--target", 3, "-o", path, "--report", tmp_path)
    assert code == 2
    assert "--report and -o both write" in error
    assert not path.exists()

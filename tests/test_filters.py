"""Pictures that excite channels: activations rise, whatever the network and the form, and nothing is left behind."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from convnets_torch import Card, filter_patterns, load
from convnets_torch.explain import filters
from convnets_torch.explain.activations import record_activations
from convnets_torch.explain.filters import class_patterns, rule_of, words_of
from convnets_torch.explain.layer_names import last_convolution
from convnets_torch.images.preprocessing import GENERAL, general, normalize, preset
from convnets_torch.images.resizing import normalized
from convnets_torch.networks import NETWORKS
from tests.reference.pictures import picture


def convolution_of(network):
    """One that is neither the first nor deep: random networks let little through."""
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    return names[max(1, len(names) // 6)]


def activation(network, layer, pixels):
    """What a layer gives for a picture, normalised by NumPy, from a whole run of the features."""
    images = torch.from_numpy(normalize(pixels, rule_of(network))[None])
    with record_activations(network, layer) as found, torch.no_grad():
        network.features(images)
    return found[layer][0]


@pytest.mark.parametrize("form", ["fourier", "plain"])
def test_activations_rise_and_are_those_of_the_pictures(narrow, form):
    layer = convolution_of(narrow)
    found = filter_patterns(narrow, layer, channels=[0, 2, 1], form=form, steps=40, size=(80, 96))
    assert found.pictures.shape == (3, 80, 96, 3)
    assert found.excited.all(), (found.before, found.after)
    for unit, pixels, before, after in zip(found.units, found.pictures, found.before, found.after, strict=True):
        for shown, value in ((found.start, before), (pixels, after)):
            expected = float(activation(narrow, layer, shown)[unit].mean())
            assert value == pytest.approx(expected, rel=1e-3, abs=1e-3 * abs(found.after).max())


def test_a_channels_picture_excites_it_more_than_those_of_others(vgg):
    found = filter_patterns(vgg, "conv3_1", channels=range(6), steps=24, size=64)
    answers = np.array([activation(vgg, found.layer, pixels)[:6].mean(dim=(1, 2)).numpy() for pixels in found.pictures])
    assert answers.argmax(axis=0).tolist() == list(range(6))


@pytest.mark.parametrize("form", ["fourier", "plain"])
def test_a_picture_depends_on_seed_and_channel_not_on_the_batch(vgg, form):
    several = filter_patterns(vgg, "conv2_1", channels=[4, 2, 7], form=form, steps=6, size=48, batch=2)
    alone = filter_patterns(vgg, "conv2_1", channels=[7], form=form, steps=6, size=48)
    other = filter_patterns(vgg, "conv2_1", channels=[7], form=form, steps=6, size=48, seed=1)
    assert np.abs(several.pictures[2].astype(int) - alone.pictures[0]).max() <= 1
    assert np.abs(other.pictures[0].astype(int) - alone.pictures[0]).mean() > 1
    again = filter_patterns(vgg, "conv2_1", channels=[4, 2, 7], form=form, steps=6, size=48, batch=2)
    np.testing.assert_array_equal(several.pictures, again.pictures)


def test_the_network_is_left_as_it_was(vgg):
    before = copy.deepcopy(vgg.state_dict())
    with torch.no_grad():  # the user's own setting
        filter_patterns(vgg, "conv2_1", channels=[0], steps=2, size=32)
    with torch.inference_mode():
        filter_patterns(vgg, "conv2_1", channels=[0], steps=2, size=32)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in vgg.parameters())
    assert all(not module._forward_hooks for module in vgg.modules())
    assert all(torch.equal(before[name], value) for name, value in vgg.state_dict().items())


def test_a_neuron_moves_only_what_it_sees(vgg):
    """conv2_1 sees 10 pixels: of a picture in the plain form nothing else leaves the noise."""
    found = filter_patterns(vgg, "conv2_1", channels=[(3, 8, 11)], form="plain", steps=5, size=(40, 48))
    changed = (found.pictures[0] != found.start).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert found.excited.all()
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (12, 22, 18, 28)
    assert words_of(found.units[0]) == "3 at 8, 11"


def test_classes_are_excited_by_the_logarithm_of_the_sum_of_exponentials(vgg):
    targets: list[str | int] = ["c", 0]
    found = class_patterns(vgg, targets, steps=4)
    assert found.pictures.shape == (2, 224, 224, 3)
    assert found.excited.all()
    with torch.no_grad():
        logits = vgg(torch.from_numpy(np.stack([normalize(each, rule_of(vgg)) for each in found.pictures])))
    np.testing.assert_allclose(found.after, [logits[0, 2], logits[1, 0]], rtol=1e-4)


def test_a_group_of_classes_is_one_target(users_files):
    network = load(users_files / "alexnet.safetensors")
    found = class_patterns(network, ["dog"], steps=2)
    with torch.no_grad():
        logits = network(torch.from_numpy(normalize(found.pictures[0], rule_of(network))[None]))
    assert found.after[0] == pytest.approx(float(logits[0, 151:269].exp().sum().log()), rel=1e-4)


def test_a_dead_channel_stays_noise_and_is_told(vgg, tmp_path):
    network = copy.deepcopy(vgg)
    with torch.no_grad():
        network.features.conv2_1.bias[1] = -1e6
    for form in ("fourier", "plain"):
        found = filter_patterns(network, "relu2_1", channels=[1], form=form, steps=3, size=32)
        assert not found.excited.any()
        np.testing.assert_array_equal(found.pictures[0], found.start)
        assert found.after == found.before == 0
        found.save(tmp_path / "dead.png")


@pytest.mark.parametrize("name", GENERAL)
def test_pixels_become_input_as_when_classifying(name):
    rule, pixels = general(name, 24), picture(3, 24, 36)
    tensor = torch.from_numpy(pixels.copy())[None].float()
    expected = normalize(pixels, rule)
    np.testing.assert_array_equal(normalized(tensor, rule)[0].numpy(), expected)
    assert rule_of(NETWORKS["vgg16"](2, widths=(1,) * 5, hidden=(1, 1))) == general("torchvision", 224)


@pytest.mark.parametrize("size", [(6, 8), (7, 9), (8, 5)])
def test_coefficients_become_pictures_by_the_definition_of_the_transform(size):
    """A sum of waves in float64, for even and odd sides."""
    height, width = size
    random = np.random.default_rng(0)
    coefficients = torch.from_numpy(random.standard_normal((1, 3, height, width // 2 + 1, 2)))
    found = filters.fourier_pixels(coefficients, size)[0].numpy()
    values = torch.view_as_complex(coefficients)[0].numpy()
    rows, columns = np.arange(height), np.arange(width)
    planes = np.zeros((3, height, width))
    for v in range(height):
        for u in range(width // 2 + 1):
            turn = (v if v <= (height - 1) // 2 else v - height) / height
            amplitude = values[:, v, u] / max(np.hypot(turn, u / width), 1 / max(size))
            wave = np.exp(2j * np.pi * (rows[:, None] * turn + columns * u / width))
            alone = u == 0 or 2 * u == width  # others stand for their mirror images too
            planes += (1 if alone else 2) * np.real(amplitude[:, None, None] * wave)
    planes *= filters.CONTRAST / np.sqrt(height * width)
    colors = np.array(filters.COLORS)
    mixed = np.tensordot(colors / np.linalg.norm(colors, axis=0).max(), planes, 1)
    np.testing.assert_allclose(found, 255 / (1 + np.exp(-mixed)), rtol=1e-6)


def test_the_colours_are_a_square_root_of_the_photographs_covariance():
    from scripts.color_correlation import covariance, photographs

    root = np.array(filters.COLORS)
    np.testing.assert_allclose(root @ root.T, covariance(photographs()), atol=2e-4)
    axes = root.T @ root
    assert np.abs(axes - np.diag(np.diag(axes))).max() < 1e-4  # principal: at right angles


def test_pictures_are_moved_right_and_down_turned_and_zoomed():
    spot = torch.zeros(1, 1, 64, 96)
    spot[..., 32, 60] = 1
    place = lambda moved: [int(each) for each in np.unravel_index(int(moved[0, 0].argmax()), (64, 96))]  # noqa: E731
    assert place(filters._transformed(spot, torch.tensor([0.0, 0, 0, 0]))) == [32, 60]
    assert place(filters._transformed(spot, torch.tensor([1.0, 0, 0, 0]))) == [28, 60]
    assert place(filters._transformed(spot, torch.tensor([0, -1.0, 0, 0]))) == [32, 66]
    row, column = place(filters._transformed(spot, torch.tensor([0, 0, 1.0, 0])))
    assert (row, column) in ((32, 61), (31, 61))
    row, column = place(filters._transformed(spot, torch.tensor([0, 0, 0, 1.0])))
    assert np.hypot(row + 0.5 - 32, column + 0.5 - 48) == pytest.approx(12.5, abs=0.8)  # a circle, not an ellipse
    assert row != 32


def test_a_module_of_another_library_works():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3)).double().eval()
    found = filter_patterns(module, "2", steps=8, size=24)
    assert (found.units, found.pictures.shape) == ((0, 1, 2, 3), (4, 24, 24, 3))
    assert found.excited.all()


def test_progress_counts_all_steps(vgg):
    seen = []
    filter_patterns(
        vgg, "conv1_2", channels=range(5), steps=3, size=32, batch=2, progress=lambda *done: seen.append(done)
    )
    assert seen == [(done, 15) for done in (2, 4, 6, 8, 10, 12, 13, 14, 15)]


@pytest.mark.parametrize(
    ("layer", "options", "sentence"),
    [
        ("conv9_1", {}, "has no layer 'conv9_1'; did you mean"),
        ("conv3_1", {"channels": [32]}, "features.conv3_1 has 32 channels, 0 to 31; 32 is out of range"),
        ("conv3_1", {"channels": [-1]}, "-1 is out of range"),
        ("conv3_1", {"channels": [(0, 8, 0)]}, "has 8 rows, 0 to 7; 8 is out of range"),
        ("conv3_1", {"channels": [(0, 8)]}, "is not a unit"),
        ("head.dense_1", {"channels": [(0, 1, 1)]}, "gives 24 values and no map"),
        ("conv3_1", {"form": "deep"}, "unknown form 'deep'; known: fourier, plain"),
        ("conv3_1", {"steps": 0}, "steps is 0"),
        ("conv3_1", {"size": 0}, "pictures of 0x0 pixels are out of range"),
        ("conv5_1", {"size": 8}, "cannot run on pictures of 8x8 pixels"),
        ("head.dense_1", {"size": 64}, "images are .64, 64. pixels"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(vgg, layer, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        filter_patterns(vgg, layer, **{"channels": [0], "size": 32 if layer.startswith("c") else None, **options})


def test_broken_weights_are_refused(vgg):
    network = copy.deepcopy(vgg)
    with torch.no_grad():
        network.features.conv1_1.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite"):
        filter_patterns(network, "conv1_2", channels=[0], steps=1, size=16)
    headless = NETWORKS["vgg16"](None, widths=(1,) * 5).eval()
    headless.card = Card("vgg16", {"classes": None}, preset("vgg16"), None)
    with pytest.raises(ValueError, match="has no head"):
        class_patterns(headless, 0)
    assert last_convolution(headless) == "features.relu5_3"


def test_gradients_are_divided_by_the_root_mean_square_of_each_picture():
    gradient = torch.randn(3, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    gradient[0] *= 1e-30  # whose square would vanish
    gradient[2] = 0
    even = filters._rms_normalized(gradient)
    torch.testing.assert_close(even[:2].square().mean(dim=(1, 2, 3)), torch.ones(2))
    torch.testing.assert_close(even[1], gradient[1] / gradient[1].square().mean().sqrt())
    assert not even[2].any()


@pytest.mark.parametrize("turn", [-1.0, 1.0])
def test_turning_an_oblong_picture_keeps_distances(turn):
    pixels = torch.zeros(1, 3, 60, 120)
    for plane, (row, column) in enumerate([(12, 60), (48, 60), (30, 100)]):
        pixels[0, plane, row - 1 : row + 2, column - 1 : column + 2] = 1
    moved = filters._transformed(pixels, torch.tensor([0.0, 0.0, 0.0, turn]))[0].double()
    weights = moved / moved.sum(dim=(1, 2), keepdim=True)
    rows = (weights.sum(dim=2) * torch.arange(60)).sum(dim=1)
    columns = (weights.sum(dim=1) * torch.arange(120)).sum(dim=1)
    for one, other, distance in ((0, 1, 36.0), (0, 2, 1924**0.5), (1, 2, 1924**0.5)):
        assert torch.hypot(rows[one] - rows[other], columns[one] - columns[other]) == pytest.approx(distance, abs=0.3)
    assert abs(columns[0] - columns[1]) == pytest.approx(36 * np.sin(np.radians(10)), abs=0.3)

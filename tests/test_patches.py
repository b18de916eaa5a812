"""Patches of pictures: their boxes hold all that a cell sees and nothing else; broken files do not stop it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convnets_torch.explain.activations import record_activations
from convnets_torch.explain.filters import filter_patterns, first_kernels
from convnets_torch.explain.patches import top_patches
from convnets_torch.images.preprocessing import normalize
from tests.conftest import NARROW
from tests.reference.pictures import picture


def maps_of(network, layer, pixels):
    """(C, h, w) of a layer, from a whole run of the features."""
    rule = network.card.preprocessing
    with record_activations(network, layer) as found, torch.no_grad():
        network.features(torch.from_numpy(normalize(pixels, rule)[None]))
    return found[f"features.{layer}"][0]


def test_patches_are_the_strongest_cells_of_the_strongest_pictures(vgg):
    pictures = [picture(seed, 64 + 8 * seed, 96) for seed in range(5)]
    found = top_patches(vgg, pictures, "relu3_1", channels=[5, 0], count=3)
    for channel, patches in zip(found.channels, found.patches, strict=True):
        highest = [float(maps_of(vgg, "relu3_1", pixels)[channel].max()) for pixels in pictures]
        assert [patch.activation for patch in patches] == pytest.approx(sorted(highest, reverse=True)[:3], rel=1e-4)
        for patch in patches:
            maps = maps_of(vgg, "relu3_1", patch.picture)
            assert float(maps[channel, patch.row, patch.column]) == pytest.approx(patch.activation, rel=1e-4)
        assert len({id(patch.picture) for patch in patches}) == 3  # one of each picture


def test_a_box_holds_all_that_the_cell_sees_and_no_more(vgg):
    pixels = picture(7, 104, 136)
    found = top_patches(vgg, [pixels], "conv3_1", channels=range(8))
    inner = 0
    for channel, [patch] in zip(found.channels, found.patches, strict=True):
        left, top, right, bottom = map(int, patch.box)
        other = picture(8, 104, 136)
        other[top:bottom, left:right] = pixels[top:bottom, left:right]  # all but the box is another picture
        assert float(maps_of(vgg, "conv3_1", other)[channel, patch.row, patch.column]) == pytest.approx(
            patch.activation, rel=1e-4, abs=1e-4
        )
        images = torch.from_numpy(normalize(pixels, vgg.card.preprocessing)[None]).requires_grad_(True)
        with record_activations(vgg, "conv3_1") as activations:
            vgg.features(images)
        value = activations["features.conv3_1"][0, channel, patch.row, patch.column]
        [gradient] = torch.autograd.grad(value, images)
        rows, columns = np.nonzero(gradient[0].abs().sum(dim=0).numpy())
        assert top <= rows.min() <= rows.max() < bottom
        assert left <= columns.min() <= columns.max() < right
        if patch.pixels.shape[:2] == (bottom - top, right - left):
            inner += 1
            np.testing.assert_array_equal(patch.pixels, pixels[top:bottom, left:right])
            around = pixels[top - top % 4 - 32 : bottom + 32, left - left % 4 - 32 : right + 32]
            if min(top, left) >= 36:  # context that begins on the grid of cells, beyond the reach of its padding
                row, column = (place - (edge - edge % 4 - 32) // 4 for place, edge in (
                    (patch.row, top), (patch.column, left)
                ))  # fmt: skip
                assert float(maps_of(vgg, "conv3_1", around)[channel, row, column]) == pytest.approx(
                    patch.activation, rel=1e-4, abs=1e-4
                )
    assert inner > 0


def test_what_lies_outside_of_the_picture_is_grey(vgg):
    pixels = np.zeros((40, 48, 3), np.uint8)
    pixels[:4, -4:] = 255
    found = top_patches(vgg, [pixels], "conv2_1", channels=range(8))
    outside = [patch for [patch] in found.patches if patch.pixels.shape[:2] != (
        patch.box.bottom - patch.box.top, patch.box.right - patch.box.left
    )]  # fmt: skip
    assert outside
    for patch in outside:
        assert patch.pixels.shape == (10, 10, 3)
        assert (patch.pixels == 128).all(axis=2).sum() == 100 - (patch.box.bottom - patch.box.top) * (
            patch.box.right - patch.box.left
        )


def test_boxes_of_a_reduced_picture_are_in_its_own_pixels(vgg):
    pixels = picture(9, 80, 120).repeat(2, axis=0).repeat(2, axis=1)
    small = top_patches(vgg, [pixels], "conv2_1", channels=[1], longest_side=120).patches[0][0]
    assert small.box.right <= 240
    assert small.box.bottom <= 160
    top = small.row * 2 - 4
    assert (small.box.top, small.box.bottom) == (2 * max(top, 0), 2 * min(top + 10, 80))
    assert small.pixels.shape == (10, 10, 3)


def test_pictures_that_cannot_be_used_do_not_stop_the_others(vgg, tmp_path):
    Image.fromarray(picture(1, 64, 64)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    Image.fromarray(picture(1, 3, 3)).save(tmp_path / "c.png")
    flat = np.full((64, 64, 3), 7, np.uint8)
    names = [tmp_path / name for name in ("b.png", "a.png", "c.png", "none.png")]
    seen: list[int] = []
    found = top_patches(vgg, names, "conv4_1", channels=[0], progress=seen.append)
    assert [patch.picture for patch in found.patches[0]] == [names[1]]
    sentences = {Path(str(name)).name: str(error) for name, error in found.failed}
    assert sorted(sentences) == ["b.png", "c.png", "none.png"]
    assert "3x3 pixels is too small for features.conv4_1" in sentences["c.png"]
    assert seen == [1, 2, 3, 4]
    network = NARROW["vgg16"]().eval()
    with torch.no_grad():
        network.get_parameter("features.conv2_1.bias")[0] = -1e6
    assert top_patches(network, [flat, picture(1, 64, 64)], "relu2_1", channels=[0]).patches == ((),)


@pytest.mark.parametrize(
    ("layer", "options", "sentence"),
    [
        ("head.dense_1", {}, "the receptive field of head.dense_1 is unknown"),
        ("conv3_1", {"channels": [32]}, "has 32 channels, 0 to 31; 32 is out of range"),
        ("conv3_1", {"count": 0}, "count is 0"),
        ("conv3_1", {"longest_side": 0}, "a longest side of 0 pixels is out of range"),
        ("conv7", {}, "has no layer 'conv7'"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(vgg, layer, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        top_patches(vgg, [picture(1, 32, 32)], layer, **options)


def test_the_sheet_has_a_row_for_each_channel(vgg, tmp_path):
    patterns = filter_patterns(vgg, "conv2_1", channels=[2, 0], steps=1, size=32)
    found = top_patches(vgg, [picture(seed, 48, 64) for seed in range(3)], "conv2_1", channels=[2, 0])
    found.save(tmp_path / "both.png", patterns)
    with Image.open(tmp_path / "both.png") as image:
        assert image.width == 16 + 4 * (128 + 16)
        sheet = np.asarray(image.convert("RGB"))
    drawn = np.asarray(Image.fromarray(patterns.pictures[0]).resize((128, 128), Image.Resampling.NEAREST))
    assert any((sheet[y : y + 128, 16:144] == drawn).all() for y in range(16, 80))
    with pytest.raises(ValueError, match="other layers or channels"):
        found.save(tmp_path / "both.png", filter_patterns(vgg, "conv2_1", channels=[0, 2], steps=1, size=32))
    with pytest.raises(ValueError, match=r"patches can be written as \.png"):
        found.save(tmp_path / "both.npz")


def test_kernels_are_drawn_in_rgb_of_networks_that_take_bgr(vgg):
    network = NARROW["vgg16"]().eval()
    weight = network.get_parameter("features.conv1_1.weight")
    with torch.no_grad():
        weight.zero_()
        weight[0, 0, 1, 2] = 0.5  # blue, in a network that takes BGR
        weight[1, 2, 0, 0] = -2.0  # red
    network.card = vgg.card
    found = first_kernels(network)
    assert found.layer == "features.conv1_1"
    assert found.pictures[0, 1, 2].tolist() == [128, 128, 255]
    assert found.pictures[1, 0, 0].tolist() == [1, 128, 128]
    assert (found.pictures[2] == 128).all()
    assert found.peaks[:3].tolist() == [0.5, 2.0, 0.0]
    network.card = None  # torchvision's: RGB, and what one of 255 adds
    assert first_kernels(network).weights[0, 1, 2].tolist() == pytest.approx([0.5 / 255 / 0.229, 0, 0])


def test_a_module_without_convolutions_of_colours_has_no_kernels():
    with pytest.raises(ValueError, match="no convolution, so there are no kernels"):
        first_kernels(torch.nn.Linear(3, 3))
    with pytest.raises(ValueError, match="takes 1 channels"):
        first_kernels(torch.nn.Conv2d(1, 3, 3))


def test_boxes_of_a_reduced_picture_reach_to_its_borders_on_both_axes(vgg):
    """2000x37 pixels become 100x2, which is 20 for one across and 18.5 down."""
    found = top_patches(vgg, [picture(1, 37, 2000)], "conv1_1", channels=[0, 1, 2], longest_side=100)
    for [patch] in found.patches:
        assert (patch.box.top, patch.box.bottom) == (0, 37)
        assert patch.box.right - patch.box.left == pytest.approx(60)

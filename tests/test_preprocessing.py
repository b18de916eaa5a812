"""Preprocessing against the original's own steps, written out with Pillow and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from convnets_torch.images import read_picture
from convnets_torch.preprocessing import PRESETS, Preprocessing, fit_longest_side, normalize, preset, square_crop


def original(path, crop, mode):
    """`preprocess_image_batch` of convnets-keras with img_size=(256, 256), line for line on Pillow's pixels."""
    image = np.array(Image.open(path).convert("RGB").resize((256, 256), Image.Resampling.BILINEAR), np.float32)
    image[:, :, 0] -= 123.68
    image[:, :, 1] -= 116.779
    image[:, :, 2] -= 103.939
    if mode == "bgr":
        image[:, :, [0, 1, 2]] = image[:, :, [2, 1, 0]]
    image = image.transpose((2, 0, 1))
    return image[:, (256 - crop) // 2 : (256 + crop) // 2, (256 - crop) // 2 : (256 + crop) // 2]


@pytest.mark.parametrize(("network", "crop", "mode"), [("alexnet", 227, "rgb"), ("vgg16", 224, "bgr")])
@pytest.mark.parametrize("name", ["chelsea.png", "rocket.jpg"])
def test_original_is_convnets_keras_down_to_the_bit(network, crop, mode, name, photographs):
    rule = preset(network)
    found = normalize(square_crop(read_picture(photographs / name, exif=rule.exif), rule), rule)
    np.testing.assert_array_equal(found, original(photographs / name, crop, mode))


def test_original_ignores_the_rotation_of_a_camera_and_others_follow_it(tmp_path, photographs):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    image = Image.open(photographs / "rocket.jpg")
    image.save(tmp_path / "turned.png", exif=exif)
    ignored = read_picture(tmp_path / "turned.png", exif=preset("vgg16").exif)
    np.testing.assert_array_equal(ignored, np.asarray(image))
    followed = read_picture(tmp_path / "turned.png", exif=preset("efficientnet_lite0").exif)
    np.testing.assert_array_equal(followed, np.rot90(np.asarray(image), -1))


@pytest.mark.parametrize("size", [(300, 451), (512, 300), (256, 256), (90, 40)])
def test_keeping_the_aspect_is_resizing_the_shorter_side_and_cutting_the_centre(size):
    """A smooth picture, so that the last rounding of a resized side is the only difference."""
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]] / max(size) * 250
    pixels = np.stack([rows, columns, (rows + columns) / 2], axis=2).astype(np.uint8)
    rule = preset("vgg16", "original-aspect")
    factor = 256 / min(size)
    resized = Image.fromarray(pixels).resize(
        (round(size[1] * factor), round(size[0] * factor)), Image.Resampling.BILINEAR
    )
    left, top = (resized.width - 224) // 2, (resized.height - 224) // 2
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224))).astype(int)
    assert np.abs(square_crop(pixels, rule).astype(int) - expected).max() <= 2


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1), (3, 2)])
@pytest.mark.parametrize("rule", [rule for rules in PRESETS.values() for rule in rules.values()], ids=str)
def test_pictures_of_any_size_become_a_square_in_little_memory(size, rule):
    crop = square_crop(np.full((*size, 3), 77, np.uint8), rule)
    assert crop.shape == (rule.size, rule.size, 3)
    assert (crop == 77).all()


def test_efficientnet_lite_cuts_seven_eighths_of_the_shorter_side_from_the_centre(photographs):
    """As its training code has it: a square of size / (size + 32) of the shorter side, then resized, bicubic."""
    pixels = read_picture(photographs / "coffee.png")
    height, width = pixels.shape[:2]
    side = round(224 / (224 + 32) * min(height, width))
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(pixels[top : top + side, left : left + side])
    expected = np.asarray(square.resize((224, 224), Image.Resampling.BICUBIC)).astype(float)
    found = square_crop(pixels, preset("efficientnet_lite0")).astype(float)
    assert np.abs(found - expected)[2:-2, 2:-2].max() <= 2  # at the edge, ours sees the picture beyond


def test_efficientnet_lite_maps_0_to_255_onto_minus_1_to_1():
    rule = preset("efficientnet_lite0")
    values = normalize(np.array([[[0, 127, 255]]], np.uint8), rule)
    np.testing.assert_allclose(values[:, 0, 0], [-127 / 128, 0, 1])


def test_the_channels_of_bgr_are_reversed_and_the_mean_is_in_their_order():
    values = normalize(np.array([[[200, 100, 50]]], np.uint8), preset("vgg16"))
    np.testing.assert_allclose(values[:, 0, 0], [50 - 103.939, 100 - 116.779, 200 - 123.68], rtol=1e-6)


def test_the_longest_side_is_reached_and_the_aspect_kept():
    pixels = np.zeros((300, 450, 3), np.uint8)
    assert fit_longest_side(pixels, 900, preset("vgg16")).shape == (600, 900, 3)
    assert fit_longest_side(pixels, 45, preset("vgg16")).shape == (30, 45, 3)


def test_a_resized_picture_is_smooth():
    """Halving a checkerboard of single pixels gives grey; skipping pixels would keep black and white."""
    board = np.indices((64, 64)).sum(0) % 2 * 255
    small = fit_longest_side(np.repeat(board[..., None], 3, 2).astype(np.uint8), 32, preset("vgg16"))
    assert np.abs(small.astype(int) - 127)[1:-1, 1:-1].max() <= 2


def test_a_preset_that_the_network_has_not_is_refused_with_those_it_has():
    with pytest.raises(ValueError, match="unknown preprocessing 'caffe' for vgg16; known: original, original-aspect"):
        preset("vgg16", "caffe")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("channels", "gbr", "channels 'gbr'; known: rgb, bgr"),
        ("resize_rule", "pad", "resize_rule 'pad'; known: stretch, shorter-side"),
        ("size", 300, "crops 300 pixels out of 256"),
        ("std", (1.0, 0.0, 1.0), "three finite numbers are wanted, std not 0"),
        ("mean", (1.0, 2.0), "three finite numbers are wanted"),
        ("pad", 3, "cannot be read .*'pad'.*a newer version may have written it"),
    ],
)
def test_an_impossible_rule_is_refused(field, value, message):
    fields = preset("vgg16").to_dict() | {field: value}
    with pytest.raises(ValueError, match=message):
        Preprocessing.from_dict(fields)

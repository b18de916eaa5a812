"""Preprocessing against the original's own steps, written out with Pillow and NumPy."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from convnets_torch.images.decoding import PictureWarning, read_picture
from convnets_torch.images.preprocessing import (
    GENERAL,
    Preprocessing,
    center_crop,
    fit_longest_side,
    normalize,
    preset,
    read_preprocessing,
)
from convnets_torch.networks import NETWORKS

EVERY = [preset("vgg16", name) for name in ("original", "original-aspect", *GENERAL)] + [
    preset(network) for network in NETWORKS
]


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
    found = normalize(center_crop(read_picture(photographs / name, exif=rule.exif), rule), rule)
    np.testing.assert_array_equal(found, original(photographs / name, crop, mode))


def test_original_ignores_the_rotation_of_a_camera_and_others_follow_it(tmp_path, photographs):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    image = Image.open(photographs / "rocket.jpg")
    image.save(tmp_path / "turned.png", exif=exif)
    with pytest.warns(PictureWarning, match=r"turned\.png is turned or mirrored in its file"):
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
    assert np.abs(center_crop(pixels, rule).astype(int) - expected).max() <= 2


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1), (3, 2)])
@pytest.mark.parametrize("rule", EVERY, ids=str)
def test_pictures_of_any_size_become_a_square_in_little_memory(size, rule):
    crop = center_crop(np.full((*size, 3), 77, np.uint8), rule)
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
    found = center_crop(pixels, preset("efficientnet_lite0")).astype(float)
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
        ("std", (1.0, 0.0, 1.0), "give three finite numbers, std not 0"),
        ("mean", (1.0, 2.0), "give three finite numbers"),
        ("pad", 3, "cannot be read .*'pad'.*a newer version may have written it"),
    ],
)
def test_an_impossible_rule_is_refused(field, value, message):
    fields = preset("vgg16").to_dict() | {field: value}
    with pytest.raises(ValueError, match=message):
        Preprocessing.from_dict(fields)


def loaded_by_keras(path, side):
    """`keras.utils.load_img(path, target_size=(side, side))` with its default interpolation, as float32 (H, W, 3)."""
    return np.asarray(Image.open(path).convert("RGB").resize((side, side), Image.Resampling.NEAREST), np.float32)


def ready(path, rule):
    return normalize(center_crop(read_picture(path, exif=rule.exif), rule), rule).transpose(1, 2, 0)


@pytest.mark.parametrize("name", ["chelsea.png", "rocket.jpg"])
@pytest.mark.parametrize("size", [224, 150])
def test_keras_caffe_is_the_documented_recipe(name, size, photographs):
    """`preprocess_input` of VGG and ResNet50, mode "caffe": RGB to BGR, each channel's mean taken off."""
    expected = loaded_by_keras(photographs / name, size)[..., ::-1] - np.array([103.939, 116.779, 123.68], np.float32)
    for network in ("resnet50", "vgg16"):
        rule = preset(network, "keras-caffe", None if size == 224 else size)
        np.testing.assert_array_equal(ready(photographs / name, rule), expected)


def test_keras_tf_and_unit_are_the_documented_recipes(photographs):
    """Mode "tf": x /= 127.5, x -= 1."""
    path = photographs / "rocket.jpg"
    np.testing.assert_allclose(
        ready(path, preset("inception_v3")), loaded_by_keras(path, 299) / 127.5 - 1, rtol=0, atol=1e-6
    )
    np.testing.assert_allclose(ready(path, preset("vgg16", "unit")), loaded_by_keras(path, 224) / 255, atol=1e-6)


@pytest.mark.parametrize(("network", "crop", "side"), [("resnet50", 224, 256), ("inception_v3", 294, 336)])
def test_keeping_the_aspect_changes_where_keras_looks_and_not_what_it_makes_of_pixels(network, crop, side, photographs):
    """A square photograph, of which every step is exact."""
    image = Image.open(photographs / "astronaut.png").convert("RGB")
    rule = preset(network, f"{preset(network).name}-aspect", size=crop)
    start = (side - crop) // 2
    resized = image.resize((side, side), Image.Resampling.BILINEAR)
    expected = np.asarray(resized.crop((start, start, start + crop, start + crop)), np.float32)
    found = center_crop(np.asarray(image), rule)
    assert found.shape == (crop, crop, 3)
    assert np.abs(found - expected).mean() < 0.01
    pixels = np.array([[[10, 20, 30]]], np.uint8)
    np.testing.assert_array_equal(normalize(pixels, rule), normalize(pixels, preset(network)))


@pytest.mark.parametrize(("name", "mean", "most"), [("astronaut.png", 1e-3, 0.02), ("coffee.png", 0.1, 3)])
def test_torchvision_is_what_its_transforms_do(name, mean, most, photographs):
    """Exact on a square photograph; on others torchvision rounds the longer side and the place of the crop."""
    from torchvision import transforms

    steps = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    expected = steps(Image.open(photographs / name).convert("RGB")).numpy().transpose(1, 2, 0)
    difference = np.abs(ready(photographs / name, preset("vgg16", "torchvision")) - expected)
    assert difference.mean() < mean
    assert difference.max() < most


def test_each_network_has_its_released_rule_first_and_general_ones_of_its_own_size():
    assert {name: preset(name).name for name in NETWORKS} == {
        "alexnet": "original",
        "efficientnet_lite0": "efficientnet-lite",
        "inception_v3": "keras-tf",
        "resnet50": "keras-caffe",
        "vgg16": "original",
        "vgg19": "original",
    }
    for network, builder in NETWORKS.items():
        with torch.device("meta"):
            own = builder().size
        for name in GENERAL:
            assert (preset(network, name).size,) * 2 == own
    assert preset("alexnet", size=300).resize == round(300 * 256 / 227)
    with pytest.raises(
        ValueError, match="unknown preprocessing 'original' for resnet50; known: keras-caffe, keras-caffe-"
    ):
        preset("resnet50", "original")


OWN = {"size": 150, "resize_rule": "stretch", "interpolation": "nearest", "channels": "rgb", "mean": [0, 0.5, 1]}


def test_a_rule_of_ones_own_is_read_from_json(tmp_path):
    path = tmp_path / "rule.json"
    path.write_text(json.dumps(OWN))
    assert read_preprocessing(path) == Preprocessing(
        "custom", 150, 150, "stretch", "nearest", "rgb", (0, 0.5, 1), (1.0, 1.0, 1.0), 1.0, True
    )
    for rule in EVERY:
        path.write_text(json.dumps(asdict(rule)))
        assert read_preprocessing(path) == rule


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("\udcff".encode("utf-8", "surrogateescape"), "is not UTF-8 text"),
        ("[1]", "is not a JSON object"),
        ('{"sice": 3, "mean": [0, 0, 0]}', "size is missing; resize_rule is .*sice is unknown; the fields are name"),
        (json.dumps(OWN | {"mean": 3}), "mean is 3, not a list of numbers"),
        (json.dumps(OWN | {"mean": ["a", 0, 0]}), "give three finite numbers"),
        (json.dumps(OWN | {"std": [1, 0, 1]}), "std not 0"),
        (json.dumps(OWN | {"channels": ["rgb"]}), "channels"),
        (json.dumps(OWN | {"name": 3}), "has the name 3"),
        (json.dumps(OWN | {"resize": 100}), "crops 150 pixels out of 100"),
        (" " * 1_000_001, "has 1,000,001 bytes"),
    ],
)  # fmt: skip
def test_a_rule_that_cannot_be_followed_is_refused_with_the_files_name(text, message, tmp_path):
    path = tmp_path / "rule.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=rf"rule\.json.*{message}"):
        read_preprocessing(path)


def test_a_rule_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match=r"none\.json"):
        read_preprocessing(tmp_path / "none.json")


@pytest.mark.parametrize(("name", "resize"), [("unit", (96, 128)), ("torchvision", (110, 146))])
def test_inputs_that_are_no_squares_are_cut_in_their_own_aspect(name, resize, photographs):
    rule = preset("vgg16", name, size=(96, 128))
    assert (rule.shape, rule.resize) == ((96, 128), resize)
    pixels = read_picture(photographs / "chelsea.png")  # 300 x 451
    crop = center_crop(pixels, rule)
    assert crop.shape == (96, 128, 3)
    if rule.resize_rule == "shorter-side":  # the same by resizing the whole and cutting afterwards
        scale = max(110 / 300, 146 / 451)
        whole = Image.fromarray(pixels).resize((round(451 * scale), round(300 * scale)), Image.Resampling.BILINEAR)
        left, top = (whole.width - 128) // 2, (whole.height - 96) // 2
        expected = np.asarray(whole.crop((left, top, left + 128, top + 96)))
        stretched = np.asarray(Image.fromarray(pixels).resize((128, 96), Image.Resampling.BILINEAR))
        off = [np.abs(other.astype(int) - expected).mean() for other in (crop, stretched)]
        assert off[0] < 5 < 15 < off[1]  # half a pixel, and another part of the picture
    again = Preprocessing.from_dict(json.loads(json.dumps(rule.to_dict())))
    assert again == rule

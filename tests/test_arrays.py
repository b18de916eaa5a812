"""Arrays and tensors as pictures: one convention each, and the sentence for every other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from convnets_torch.images.decoding import read_picture

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 4, 3), dtype=np.uint8)


def test_an_array_of_uint8_is_itself():
    assert read_picture(PIXELS) is PIXELS


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_from_0_to_255_are_rounded_and_not_cut(kind):
    np.testing.assert_array_equal(read_picture(PIXELS.astype(kind)), PIXELS)
    np.testing.assert_array_equal(read_picture(np.minimum(PIXELS + 0.4, 255)), PIXELS)
    np.testing.assert_array_equal(read_picture(np.maximum(PIXELS - 0.4, 0)), PIXELS)


def test_a_grey_array_has_three_equal_channels():
    np.testing.assert_array_equal(read_picture(PIXELS[:, :, 0]), np.stack([PIXELS[:, :, 0]] * 3, axis=2))


def test_a_tensor_has_its_channels_first():
    first = torch.from_numpy(PIXELS).permute(2, 0, 1)
    np.testing.assert_array_equal(read_picture(first), PIXELS)
    even = first // 2 * 2  # bfloat16 holds eight bits of a number
    np.testing.assert_array_equal(read_picture(even.bfloat16()), even.permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(read_picture(first.float().requires_grad_()), PIXELS)
    square = torch.arange(27, dtype=torch.uint8).reshape(3, 3, 3)
    np.testing.assert_array_equal(read_picture(square), square.permute(1, 2, 0).numpy())


def test_black_is_black_in_every_range():
    assert (read_picture(np.zeros((2, 4, 3))) == 0).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (PIXELS / 255, r"values are 0\.\d+ to 0\.9\d*, as if white were 1, but pixels are 0 to 255; multiply by 255"),
        (PIXELS - 120.0, "values are -.*, but pixels are 0 to 255; bring them there first"),
        (PIXELS / 127.5 - 1, "as if the mean were subtracted, .*; give the picture itself"),
        (PIXELS * 257.0, "values are .*, but pixels are 0 to 255; bring them there first"),
        (np.where(PIXELS > 100, np.nan, 1), "NaN or infinite"),
        (np.where(PIXELS > 100, np.inf, 1), "NaN or infinite"),
        (PIXELS * np.uint16(257), r"uint16, but pixels are uint8 or float; divide by 257 and round"),
        (PIXELS.astype(np.int64), "int64, but pixels are uint8 or float; bring it to 0 to 255"),
        (PIXELS > 100, "bool, but pixels are uint8 or float"),
        (PIXELS.transpose(2, 0, 1), r"channels seem to come first: array\.transpose\(1, 2, 0\)"),
        (np.dstack([PIXELS, PIXELS[:, :, :1]]), r"fourth channel seems to be transparency: array\[:, :, :3\]"),
        (PIXELS[:, :, :1], r"seems to be grey: array\[:, :, 0\]"),
        (PIXELS[None], r"is \(1, 2, 4, 3\) uint8, .*; give one picture, or a list of them"),
        (PIXELS[:0], r"is \(0, 4, 3\) uint8, but a picture is \(height, width, 3\), RGB"),
        (np.zeros(3, np.uint8), r"is \(3,\) uint8, but a picture is"),
    ],
)  # fmt: skip
def test_an_array_that_is_no_picture_is_refused_with_what_it_seems_to_be(values, message):
    with pytest.raises(ValueError, match=f"the array.*{message}"):
        read_picture(values)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(4, 5, 3), r"channels seem to come last: tensor\.permute\(2, 0, 1\)"),
        (torch.zeros(1, 4, 5), r"grey: tensor\.expand\(3, -1, -1\)"),
        (torch.zeros(4, 5), r"grey: tensor\.expand\(3, -1, -1\)"),
        (torch.zeros(4, 6, 5), r"transparency: tensor\[:3\]"),
        (torch.zeros(2, 3, 4, 5), "give one picture, or a list of them"),
        (torch.zeros(3, 0, 5), r"is \(3, 0, 5\), but a picture is a tensor \(3, height, width\)"),
        (torch.full((3, 4, 5), 0.5), "as if white were 1, .*; multiply by 255"),
        (torch.zeros(3, 4, 5, dtype=torch.int32), "int32, but pixels are uint8 or float"),
    ],
)
def test_a_tensor_that_is_no_picture_is_refused_with_what_it_seems_to_be(tensor, message):
    with pytest.raises(ValueError, match=f"the tensor.*{message}"):
        read_picture(tensor)

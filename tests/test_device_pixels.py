"""Resizing where the network is: what Pillow does, PyTorch's own filter, roundings, rotations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from convnets_torch.images.decoding import UPRIGHT
from convnets_torch.images.resizing import Resizer, _matrices, reach, turned
from tests.reference.pictures import picture

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")]),
]
BOXES = [(0, 0, 203, 151), (12.25, 7.5, 190.75, 150), (0.4, 0.6, 60.1, 50.9), (100, 100, 130, 120)]


def as_tensor(pixels, device="cpu"):
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].to(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("box", BOXES, ids=str)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_it_is_pillows_resize_to_the_bit(interpolation, box, device):
    """Reduced and enlarged, whole and in part, beginning on a pixel and between two."""
    pixels = picture(3, 151, 203)
    box = tuple(map(float, np.asarray(box, np.float32)))
    filter = Image.Resampling[interpolation.upper()]
    wanted = np.asarray(Image.fromarray(pixels).resize((48, 40), filter, box=box)).astype(int)
    found = Resizer((40, 48), interpolation)(as_tensor(pixels, device), box)
    assert (found.shape, found.dtype) == ((1, 40, 48, 3), torch.uint8)
    np.testing.assert_array_equal(found[0].cpu().numpy(), wanted)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_of_a_whole_picture_it_is_pytorchs_antialiased_filter(interpolation):
    pixels = as_tensor(picture(4, 120, 91)) // 2 + 64  # so that nothing is cut at 0 or 255 on the way
    wanted = interpolate(pixels.double(), (31, 40), mode=interpolation, antialias=True)
    found = Resizer((31, 40), interpolation)(pixels, (0, 0, 91, 120)).permute(0, 3, 1, 2)
    assert (found - wanted).abs().max() < 1.5  # rounded twice


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("box", BOXES, ids=str)
def test_what_is_beyond_its_reach_does_not_count(interpolation, box):
    pixels = picture(5, 151, 203)
    left, top, right, bottom = reach(box, (151, 203), (40, 48), interpolation)
    resize = Resizer((40, 48), interpolation)
    cut = as_tensor(pixels[top:bottom, left:right])
    assert torch.equal(resize(cut, box, (left, top)), resize(as_tensor(pixels), box))


def test_multiplications_are_exact():
    """Weights have so few bits that sums of products with pixels have 24, and that TF32, with its 11, holds each."""
    coarse, fine = _matrices(0, 1500, 20.25, 1470.125, 224, "bicubic", torch.device("cpu"))
    for weights, unit in ((coarse, 2.0**-10), (fine, 2.0**-22)):
        whole = weights.double() / unit
        assert torch.equal(whole, whole.round())
        assert whole.abs().max() <= 2**11
    assert (255 * fine.abs().sum(dim=1)).max() < 4  # in units of 2 to the -22nd: no more than 24 bits
    torch.testing.assert_close((coarse + fine).sum(dim=1), torch.ones(224), rtol=0, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("turn", [None, *UPRIGHT.values()])
def test_turning_is_pillows(turn, device):
    pixels = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    image = Image.fromarray(pixels)
    found = turned(as_tensor(pixels, device)[0], turn).permute(1, 2, 0).cpu()
    np.testing.assert_array_equal(found, np.asarray(image if turn is None else image.transpose(turn)))


def test_many_pictures_are_each_alone():
    resize = Resizer((20, 31), "bicubic")
    stack = torch.cat([as_tensor(picture(seed, 80, 93)) for seed in range(3)])
    together = resize(stack, (1.5, 2, 90, 80))
    for one, found in zip(stack, together, strict=True):
        assert (resize(one[None], (1.5, 2, 90, 80))[0].int() - found.int()).abs().max() <= 1

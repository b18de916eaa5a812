"""Several views of a picture: flips, and ten crops, against Pillow and NumPy by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from convnets_torch.card import Card
from convnets_torch.images.preprocessing import CENTER, CORNERS, Preprocessing, crop_each, cropped_box
from convnets_torch.inference.pipeline import predict
from tests.reference.pictures import picture

STRETCH = Preprocessing("custom", (24, 20), (33, 30), "stretch", "bilinear", "bgr", (10.0, 20.0, 30.0), scale=0.5)
SHORTER = Preprocessing("custom", 28, 32, "shorter-side", "bicubic", "rgb", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))


class Seeing(nn.Module):
    """A network whose answer is what it is shown."""

    def __init__(self, rule):
        super().__init__()
        self.card = Card("vgg16", {"classes": 10}, rule, None)
        self.some = nn.Parameter(torch.zeros(1))
        self.batches = []
        self.eval()

    def forward(self, images):
        self.batches.append(len(images))
        return images.flatten(1)


def ten_by_hand(pixels, rule):
    """Resize the whole picture, cut it, and mirror what is cut."""
    height, width = pixels.shape[:2]
    if rule.resize_rule == "stretch":
        tall, wide = rule.resized
    else:  # the shorter side becomes `resize`; the longer one is whole for the sizes tested
        tall, wide = height * rule.resize // min(height, width), width * rule.resize // min(height, width)
    resample = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[rule.interpolation]
    whole = np.asarray(Image.fromarray(pixels).resize((wide, tall), resample)).astype(np.float64)
    h, w = rule.shape
    bottom, right = tall - h, wide - w
    crops = [
        whole[y : y + h, x : x + w]
        for y, x in [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
    ]
    crops += [crop[:, ::-1] for crop in crops]
    ordered = [crop if rule.channels == "rgb" else crop[:, :, ::-1] for crop in crops]
    return np.stack([((crop * rule.scale - rule.mean) / rule.std).transpose(2, 0, 1) for crop in ordered])


@pytest.mark.parametrize(
    ("rule", "size"),
    [(STRETCH, (300, 401)), (STRETCH, (20, 11)), (SHORTER, (64, 160)), (SHORTER, (96, 64)), (SHORTER, (32, 32))],
)
def test_ten_views_are_the_corners_and_the_centre_of_the_resized_picture_and_their_mirror_images(rule, size):
    pixels = picture(3, *size)
    [row] = predict(Seeing(rule), [pixels], views="ten")
    wanted = ten_by_hand(pixels, rule)
    np.testing.assert_allclose(row.logits.numpy().reshape(wanted.shape), wanted, rtol=0, atol=1e-4)
    [flipped] = predict(Seeing(rule), [pixels], views="flip")
    np.testing.assert_array_equal(flipped.logits, row.logits[[4, 9]])
    [center] = predict(Seeing(rule), [pixels])
    np.testing.assert_array_equal(center.logits, row.logits[4])


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (333, 97), (90, 91)])
def test_crops_of_any_picture_lie_within_it(size):
    pixels = picture(5, *size)
    for place in (CENTER, *CORNERS):
        left, top, right, bottom = cropped_box(size, SHORTER, place)
        assert 0 <= left < right <= size[1]
        assert 0 <= top < bottom <= size[0]
    crops = list(crop_each(Image.fromarray(pixels), SHORTER, CORNERS))
    assert [crop.shape for crop in crops] == [(28, 28, 3)] * 4


def test_a_batch_counts_views_and_holds_whole_pictures():
    pictures = [picture(number, 40, 40) for number in range(5)]
    bad: list = [pictures[0], "none.jpg", *pictures[1:]]
    for batch, wanted in ((25, [20, 20, 10]), (4, [10] * 5)):
        network = Seeing(STRETCH)
        rows = list(predict(network, bad, views="ten", batch=batch))
        assert network.batches == wanted
        assert [row.error is None for row in rows] == [True, False, True, True, True, True]
        assert all(row.logits.shape[0] == 10 for row in rows if row.error is None)
    alone = [next(iter(predict(Seeing(STRETCH), [each], views="ten"))).logits for each in pictures]
    for row, logits in zip([row for row in rows if row.error is None], alone, strict=True):
        np.testing.assert_array_equal(row.logits, logits)


def test_views_that_are_none_are_refused():
    with pytest.raises(ValueError, match="unknown views 'five'; known: center, flip, ten"):
        predict(Seeing(STRETCH), [], views="five")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the ten views are resized by Pillow"):
        predict(Seeing(STRETCH), [], views="ten", resize="device")

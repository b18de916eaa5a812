"""What is made of strips is what is made of the whole picture, wherever it is cut."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from convnets_torch.images.preprocessing import fit_longest_side, preset
from convnets_torch.images.rows import BLOCK_PIXELS, Bands, Preview, Resized

PIXELS = np.random.default_rng(0).integers(0, 256, (83, 61, 3), dtype=np.uint8)
PIXELS[20:40] = np.where(PIXELS[20:40] > 127, 255, 0)  # overshoots, which bicubic cuts off


class Counted:
    """An array whose rows are read one strip after the other, each noted."""

    def __init__(self, pixels):
        self.pixels, self.shape, self.read = pixels, pixels.shape[:2], []

    def rows(self, top, bottom):
        assert 0 <= top < bottom <= self.shape[0]
        self.read.append((top, bottom))
        return self.pixels[top:bottom]


def cuts(height, seed):
    """Ends of strips of odd heights, the whole, and single rows."""
    random = np.random.default_rng(seed)
    yield [0, height]
    yield range(height + 1)
    yield [0, *sorted({*random.integers(1, height + 1, 3).tolist(), height})]


def whole(pixels, shape, interpolation):
    return np.asarray(Image.fromarray(pixels).resize(shape[::-1], Image.Resampling[interpolation.upper()]))


SHAPES = [(83, 61), (83, 30), (30, 61), (7, 5), (1, 1), (84, 62), (82, 60), (200, 99), (251, 17), (19, 150), (500, 400)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_strips_are_the_whole_picture_resized_to_the_bit(shape, interpolation):
    expected = whole(PIXELS, shape, interpolation)
    for ends in cuts(shape[0], seed=shape[0]):
        resized = Resized(Counted(PIXELS), shape, interpolation)
        strips = [resized.rows(top, bottom) for top, bottom in itertools.pairwise(ends)]
        np.testing.assert_array_equal(np.concatenate(strips), expected)


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_heights_of_thousands_of_rows_are_equal_too(interpolation):
    """Where the middles of rows are large numbers, rounding would show."""
    pixels = np.random.default_rng(1).integers(0, 256, (20_011, 3, 3), dtype=np.uint8)
    for height in (997, 6_661, 19_997, 20_012, 41_113):
        resized = Resized(Counted(pixels), (height, 3), interpolation)
        strips = [resized.rows(top, min(top + 777, height)) for top in range(0, height, 777)]
        np.testing.assert_array_equal(np.concatenate(strips), whole(pixels, (height, 3), interpolation))


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_two_directions_are_taken_in_the_order_that_pillow_takes(interpolation):
    """Pillow 13 goes down first where more rows than twice the columns go; tall pictures at their own aspect too."""
    random = np.random.default_rng(2)
    for _ in range(150):
        height, width, longest = (int(side) for side in random.integers((30, 30, 20), (400, 400, 500)))
        factor = longest / max(height, width)
        shape = (max(1, round(height * factor)), max(1, round(width * factor * random.choice([0.7, 1, 1, 1.4]))))
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        rows = Resized(Counted(pixels), shape, interpolation).rows(0, shape[0])
        np.testing.assert_array_equal(rows, whole(pixels, shape, interpolation), err_msg=f"{pixels.shape} {shape}")


def test_a_photograph_is_resized_as_for_a_heatmap(photographs):
    pixels = np.asarray(Image.open(photographs / "chelsea.png"))
    expected = fit_longest_side(pixels, 387, preset("vgg16"))
    resized = Resized(Counted(pixels), expected.shape[:2], "bilinear")
    np.testing.assert_array_equal(np.concatenate([resized.rows(0, 100), resized.rows(100, 257)]), expected)


def test_strips_may_overlap_and_go_back():
    expected = whole(PIXELS, (50, 61), "bicubic")
    resized = Resized(Counted(PIXELS), (50, 61), "bicubic")
    for top, bottom in ((0, 20), (15, 30), (30, 31), (3, 9), (40, 50), (0, 50)):
        np.testing.assert_array_equal(resized.rows(top, bottom), expected[top:bottom])


@pytest.mark.parametrize("height", [20, 83, 300])
def test_strips_that_follow_each_other_read_each_row_once(height):
    source = Counted(PIXELS)
    resized = Resized(source, (height, 61), "bicubic")
    for top in range(0, height, 5):
        resized.rows(top, min(top + 5, height))
    assert [top for top, _ in source.read] == [0, *(bottom for _, bottom in source.read[:-1])]
    assert source.read[-1][1] == 83


@pytest.mark.parametrize(("interpolation", "reach"), [("bilinear", 1), ("bicubic", 2)])
def test_no_more_rows_are_read_than_the_filter_reaches(interpolation, reach):
    source = Counted(PIXELS)
    Resized(source, (20, 61), interpolation).rows(10, 12)  # middles at 43.6 and 47.7, of 4.15 rows each
    [(first, last)] = source.read
    assert abs(first - (43.575 - reach * 4.15)) <= 1
    assert abs(last - (47.725 + reach * 4.15)) <= 1


def test_a_strip_of_a_much_larger_picture_is_read_in_blocks():
    """250 rows of the result are 25,000 of the source, 300 MB at its width."""

    class Wide:
        shape = (40_000, 4_000)
        most = 0

        def rows(self, top, bottom):
            self.most = max(self.most, bottom - top)
            return np.full((bottom - top, 4_000, 3), 200, np.uint8)

    source = Wide()
    resized = Resized(source, (400, 40), "bilinear")
    tracemalloc.start()
    assert (resized.rows(0, 250) == 200).all()
    assert source.most * 4_000 <= BLOCK_PIXELS
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000_000


def test_what_cannot_be_resized_is_refused():
    with pytest.raises(ValueError, match="unknown interpolation 'lanczos'; known: bilinear, bicubic, nearest"):
        Resized(Counted(PIXELS), (5, 5), "lanczos")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot resize to 0x5 pixels; give each side at least 1"):
        Resized(Counted(PIXELS), (0, 5), "bilinear")
    resized = Resized(Counted(PIXELS), (5, 5), "bilinear")
    for top, bottom in ((-1, 2), (2, 2), (3, 2), (0, 6)):
        with pytest.raises(ValueError, match=f"rows {top} to {bottom} are not in a picture of 5 rows"):
            resized.rows(top, bottom)


@pytest.mark.parametrize("longest", [100, 83, 50, 41, 20, 7, 2, 1])
def test_a_preview_is_the_whole_picture_reduced(longest):
    for pixels in (PIXELS, PIXELS.transpose(1, 0, 2)):
        height = len(pixels)
        for ends in cuts(height, seed=longest):
            preview = Preview(pixels.shape[:2], longest)
            for top, bottom in itertools.pairwise(ends):
                preview.add(top, pixels[top:bottom])
            expected = np.asarray(Image.fromarray(pixels).reduce(-(-83 // longest)))
            assert max(expected.shape[:2]) <= longest
            np.testing.assert_array_equal(preview.picture, expected)


def test_a_preview_of_a_small_picture_is_the_picture():
    preview = Preview((83, 61), 83)
    preview.add(0, PIXELS)
    assert preview.factor == 1
    np.testing.assert_array_equal(preview.picture, PIXELS)


def test_strips_out_of_order_are_refused():
    preview = Preview((83, 61), 50)
    preview.add(0, PIXELS[:10])
    for top, rows in ((0, PIXELS[:10]), (11, PIXELS[11:20]), (10, PIXELS[10:20, :5]), (10, PIXELS)):
        with pytest.raises(ValueError, match=r"a preview of 83x61 pixels is at row 10; give the strips in order"):
            preview.add(top, rows)
    with pytest.raises(ValueError, match="has seen 10 of 83 rows"):
        preview.picture  # noqa: B018
    with pytest.raises(ValueError, match="a preview cannot have 0 pixels"):
        Preview((83, 61), 0)


def test_bands_are_decoded_once_for_strips_that_overlap_by_less_than_a_band():
    source = Counted(PIXELS)
    bands = Bands(source.rows, source.shape, 16)
    for top in range(0, 80, 5):
        np.testing.assert_array_equal(bands.rows(top, min(top + 15, 83)), PIXELS[top : top + 15])
    assert source.read == [(0, 16), (16, 32), (32, 48), (48, 64), (64, 80), (80, 83)]
    np.testing.assert_array_equal(bands.rows(0, 83), PIXELS)

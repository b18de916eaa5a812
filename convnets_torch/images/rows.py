"""Read pictures row by row: sources, and resizing and previews that never hold the whole picture."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import ceil
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnets_torch.images.preprocessing import Interpolation, Pair, Pixels, array_of, image_of
from convnets_torch.text import check_choice

BLOCK_PIXELS = 4_000_000  # pixels of a source to read at once
BAND_PIXELS = 64_000_000  # maximum pixels of a band: 192 MB, of which two are cached
LEAST_ROWS = 64  # minimum rows to decode together

PRECISION = 22  # fractional bits of Pillow's weights
REACH = {"bilinear": 1.0, "bicubic": 2.0}  # support of each filter in pixels on each side when enlarging


class Source(Protocol):
    """A picture that is read row by row.

    Attributes:
        shape: (height, width) in pixels.
    """

    @property
    def shape(self) -> Pair: ...

    def rows(self, top: int, bottom: int) -> Pixels:
        """(bottom - top, width, 3) uint8, RGB, 0 to 255; or (bottom - top, width, 4), RGBA, for networks that read it.

        Reading is cheapest from top to bottom, in strips that are adjacent or overlap a little. The result may be a
        view; do not write to it.

        Raises:
            ValueError: not 0 <= top < bottom <= height.
        """
        ...


def check_rows(top: int, bottom: int, height: int) -> None:
    """Raise ValueError if rows `top` to `bottom` are not in the picture."""
    if not 0 <= top < bottom <= height:
        raise ValueError(f"rows {top} to {bottom} are not in a picture of {height} rows; give 0 to {height}")


class Bands:
    """Source of a picture stored in bands of rows that are decoded together, such as rows of tiles or chunks.

    The last two bands are cached, so that narrow or overlapping strips decode each band once. `read` is called for
    whole bands of `band` rows only; the last may have fewer.
    """

    def __init__(self, read: Callable[[int, int], Pixels], shape: Pair, band: int) -> None:
        self.shape = shape
        self._read, self._band = read, band
        self._cached: dict[int, Pixels] = {}  # oldest first

    def rows(self, top: int, bottom: int) -> Pixels:
        """As `Source.rows`."""
        height, width = self.shape
        check_rows(top, bottom, height)
        pixels: Pixels | None = None
        for start in range(top - top % self._band, bottom, self._band):
            band = self._decoded(start)
            if pixels is None:
                pixels = np.empty((bottom - top, width, band.shape[2]), np.uint8)
            first, last = max(top, start), min(bottom, start + self._band)
            pixels[first - top : last - top] = band[first - start : last - start]
        assert pixels is not None
        return pixels

    def _decoded(self, start: int) -> Pixels:
        if start not in self._cached:
            if len(self._cached) == 2:
                del self._cached[next(iter(self._cached))]
            self._cached[start] = self._read(start, min(start + self._band, self.shape[0]))
        return self._cached[start]


def band_of(unit: int, width: int) -> int:
    """Rows per band if `unit` rows are stored together: a multiple of `unit`, unless that needs too much memory."""
    rows = unit * ceil(LEAST_ROWS / unit)
    return rows if rows * width <= BAND_PIXELS else max(1, BAND_PIXELS // width)


class Resized:
    """A resized source, bit-identical to Pillow's `resize` of the whole picture.

    Pillow resizes horizontally, row by row. Vertically, rows are summed here with Pillow's weights and rounding:
    Pillow's `resize(box=...)` stores the box as 32-bit floats, so that about 1 in 30,000 values of concatenated strips
    would differ by 1 from the whole picture.

    Memory holds the source rows of one row of the result, a block of about 4 million pixels of the source, and the
    requested strip.

    Args:
        source: the picture.
        shape: new (height, width) in pixels.
        interpolation: Pillow's filter, antialiased; "nearest" picks pixels instead.
        mode: Pillow's mode to resize in: "RGB"; "L", to which RGB rows are converted first; or "RGBA", whose colours
            are weighted by their opacity.

    Raises:
        ValueError: a side of less than one pixel, or an unknown interpolation.

    >>> from convnets_torch.images.sources import open_source
    >>> half = Resized(open_source("street.jpg"), (150, 200), "bilinear")
    >>> half.rows(20, 52).shape
    (32, 200, 3)
    """

    def __init__(self, source: Source, shape: Pair, interpolation: Interpolation, mode: str = "RGB") -> None:
        check_choice(interpolation, ("bilinear", "bicubic", "nearest"), "interpolation")
        if min(shape) < 1:
            raise ValueError(f"cannot resize to {shape[0]}x{shape[1]} pixels; give each side at least 1")
        self.shape = shape
        self._source, self._mode = source, mode
        self._weighted = mode == "RGBA" and interpolation != "nearest" and shape != source.shape
        self._resample = Image.Resampling[interpolation.upper()]
        self._picked: NDArray[np.int32] | None = None
        height = source.shape[0]
        if height == shape[0]:
            self._picked = np.arange(height, dtype=np.int32)
        elif interpolation == "nearest":  # let Pillow itself pick the rows
            numbers = Image.fromarray(np.arange(height, dtype=np.int32)[:, None])
            self._picked = np.asarray(numbers.resize((1, shape[0]), self._resample))[:, 0]
        else:
            self._first, taps = pillow_weights(height, 0, height, shape[0], interpolation)
            self._taps = taps.astype(np.int32)
        self._down_first = interpolation != "nearest" and goes_down_first(source.shape, shape)
        # Cached rows of the source, resized horizontally already unless `_down_first`; `_top` is the first.
        width = source.shape[1] if self._down_first else shape[1]
        self._cached = np.empty((0, width, len(mode)), np.uint8)
        self._top = 0

    def rows(self, top: int, bottom: int) -> Pixels:
        """As `Source.rows`."""
        check_rows(top, bottom, self.shape[0])
        pixels = np.empty((bottom - top, *self._cached.shape[1:]), np.uint8)
        last, of_last = self._weights(bottom - 1)
        for row in range(top, bottom):
            first, weights = self._weights(row)
            window = self._window(first, first + len(weights), last + len(of_last))
            if len(weights) == 1:
                pixels[row - top] = window[0]
                continue
            sums = np.einsum("k,kij->ij", weights, window, dtype=np.int32)
            pixels[row - top] = np.clip((sums + (1 << (PRECISION - 1))) >> PRECISION, 0, 255)
        pixels = self._across(pixels) if self._down_first else pixels
        return _reinterpreted(pixels, "RGBa", "RGBA") if self._weighted else pixels

    def _weights(self, row: int) -> tuple[int, NDArray[np.int32]]:
        """The first source row of a row, and the weights of the source rows from there on."""
        if self._picked is not None:
            return int(self._picked[row]), np.ones(1, np.int32)
        return int(self._first[row]), np.trim_zeros(self._taps[row], "b")

    def _window(self, first: int, last: int, end: int) -> Pixels:
        """Source rows `first` to `last`; reads missing ones in blocks, up to `end`."""
        if not self._top <= first <= self._top + len(self._cached):
            self._top, self._cached = first, self._cached[:0]
        block = max(1, BLOCK_PIXELS // self._source.shape[1])
        while (end_of_cache := self._top + len(self._cached)) < last:
            rows = in_mode(self._source.rows(end_of_cache, min(end_of_cache + block, end)), self._mode)
            rows = _reinterpreted(rows, "RGBA", "RGBa") if self._weighted else rows
            rows = rows if self._down_first else self._across(rows)
            self._cached = np.concatenate([self._cached[first - self._top :], rows])
            self._top = first
        return self._cached[first - self._top : last - self._top]

    def _across(self, rows: Pixels) -> Pixels:
        """Resize rows horizontally; Pillow skips the vertical pass if the height is unchanged."""
        if rows.shape[1] == self.shape[1]:
            return rows
        size = (self.shape[1], len(rows))
        if self._mode == "RGB":
            return np.asarray(Image.fromarray(rows).resize(size, self._resample))
        bands = (Image.fromarray(rows[:, :, band]).resize(size, self._resample) for band in range(rows.shape[2]))
        return np.stack([np.asarray(band) for band in bands], axis=2)


def in_mode(rows: Pixels, mode: str) -> Pixels:
    """Convert RGB rows to Pillow's mode "L", (n, width, 1), or "RGBA"; rows of the mode are returned as they are."""
    return rows if rows.shape[2] == len(mode) else array_of(image_of(rows).convert(mode))


def _reinterpreted(rows: Pixels, before: str, after: str) -> Pixels:
    """Convert rows of four channels between Pillow's modes RGBA and RGBa, whose colours are multiplied by opacity."""
    size = (rows.shape[1], len(rows))
    return np.asarray(Image.frombytes(before, size, np.ascontiguousarray(rows).tobytes()).convert(after))


def goes_down_first(before: Pair, after: Pair) -> bool:
    """Whether Pillow resizes vertically first; the order matters because it rounds in between."""
    lost = before[0] - after[0]
    return lost > max(0, 2 * (before[1] - after[1])) and _has_both_orders()


@cache
def _has_both_orders() -> bool:
    """Whether this Pillow chooses the order; versions before 13 always resize horizontally first."""
    image = Image.fromarray((np.arange(40 * 20 * 3) * 7919 % 256).astype(np.uint8).reshape(40, 20, 3))
    across_first = image.resize((19, 40), Image.Resampling.BILINEAR).resize((19, 10), Image.Resampling.BILINEAR)
    return image.resize((19, 10), Image.Resampling.BILINEAR).tobytes() != across_first.tobytes()


def pillow_weights(
    before: int, start: float, end: float, after: int, interpolation: Interpolation, origin: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pillow's weights for resizing an axis.

    Args:
        before: number of given source pixels, the first of which is pixel `origin` of the source.
        start, end: the part of the source that is resized.
        after: number of target pixels.
        interpolation: "bilinear" or "bicubic".

    Returns:
        The first source pixel of each target pixel (after,), and the weights of the pixels from there on (after, n), in
        units of 2**-22.

    Source: `precompute_coeffs` and `normalize_coeffs_8bpc` in Pillow's src/libImaging/Resample.c.
    """
    scale = float(np.float32(end - start)) / after
    stretch = max(scale, 1.0)
    support = REACH[interpolation] * stretch
    centers = (start + (np.arange(after) + 0.5) * scale)[:, None]
    first = np.maximum((centers - support + 0.5).astype(np.int64), origin)
    last = np.minimum((centers + support + 0.5).astype(np.int64), origin + before)
    places = first + np.arange((last - first).max())
    distances = np.abs((places - centers + 0.5) * (1.0 / stretch))
    if interpolation == "bilinear":
        weights = np.where(distances < 1, 1 - distances, 0)
    else:
        a = -0.5
        near = ((a + 2) * distances - (a + 3)) * distances * distances + 1
        far = (((distances - 5) * distances + 8) * distances - 4) * a
        weights = np.where(distances < 1, near, np.where(distances < 2, far, 0))
    weights[places >= last] = 0
    weights /= np.add.accumulate(weights, axis=1)[:, -1:]  # sequentially, as Pillow does; np.sum adds pairwise
    return first[:, 0], np.trunc(weights * (1 << PRECISION) + np.copysign(0.5, weights)).astype(np.int64)


class Preview:
    """A small preview of a large picture, built from its strips as they pass.

    Each pixel is the mean of `factor` x `factor` pixels, of fewer at the right and lower edges, as Pillow's `reduce` of
    the whole picture computes it.

    Args:
        shape: (height, width) in pixels of the picture.
        longest: maximum pixels of the longer side of the preview.

    Attributes:
        factor: ceil(max(shape) / longest); 1 if the preview is the picture itself.

    Raises:
        ValueError: `longest` is less than 1.

    >>> preview = Preview((5, 8), longest=4)
    >>> for top in (0, 3):
    ...     preview.add(top, np.full((min(3, 5 - top), 8, 3), 77, np.uint8))
    >>> preview.factor, preview.picture.shape
    (2, (3, 4, 3))
    """

    def __init__(self, shape: Pair, longest: int) -> None:
        if longest < 1:
            raise ValueError(f"a preview cannot have {longest} pixels; give at least 1")
        self.shape = shape
        self.factor = ceil(max(shape) / longest)
        height, width = shape
        self._picture = np.empty((ceil(height / self.factor), ceil(width / self.factor), 3), np.uint8)
        self._rest = np.empty((0, width, 3), np.uint8)  # rows that do not fill a whole square yet
        self._seen = 0

    def add(self, top: int, rows: Pixels) -> None:
        """Add the next strip; ValueError if it is out of order, has the wrong width, or exceeds the picture."""
        height, width = self.shape
        if top != self._seen or rows.shape[1:] != (width, 3) or top + len(rows) > height:
            raise ValueError(
                f"rows {top} to {top + len(rows)} of {rows.shape[1]} pixels were given, but a preview of"
                f" {height}x{width} pixels is at row {self._seen}; give the strips in order, each row once"
            )
        self._seen += len(rows)
        if len(self._rest):
            rows = np.concatenate([self._rest, rows])
        full = len(rows) if self._seen == height else len(rows) - len(rows) % self.factor
        if full:
            start = (self._seen - len(rows)) // self.factor
            small = np.asarray(Image.fromarray(rows[:full]).reduce(self.factor))
            self._picture[start : start + len(small)] = small
        self._rest = rows[full:].copy()

    @property
    def picture(self) -> Pixels:
        """(ceil(H / factor), ceil(W / factor), 3) uint8, RGB; ValueError if strips are missing."""
        if self._seen != self.shape[0]:
            raise ValueError(f"the preview has seen {self._seen} of {self.shape[0]} rows; give it the others first")
        return self._picture

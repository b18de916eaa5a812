"""Resize and normalise pictures on the device of the network."""

from __future__ import annotations

from functools import lru_cache
from math import ceil, floor

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from convnets_torch.images.preprocessing import Interpolation, Pair, Preprocessing
from convnets_torch.images.rows import PRECISION, REACH, pillow_weights

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels

FINE = 12  # low bits of Pillow's weights, which go into the second matrix


def reach(box: Box, image: Pair, size: Pair, interpolation: Interpolation) -> tuple[int, int, int, int]:
    """Return the pixels (left, top, right, bottom) that resizing a box to (height, width) `size` reads.

    The filter also reads pixels outside the box, within (height, width) `image`.

    >>> reach((10, 0, 90, 80), (80, 100), (40, 40), "bilinear")
    (8, 0, 92, 80)
    """
    left, top, right, bottom = box
    across, down = (
        REACH[interpolation] * max(1.0, (end - start) / count)
        for start, end, count in ((left, right, size[1]), (top, bottom, size[0]))
    )
    return (
        max(0, floor(left - across)),
        max(0, floor(top - down)),
        min(image[1], ceil(right + across)),
        min(image[0], ceil(bottom + down)),
    )


class Resizer:
    """Pillow's `resize(size, filter, box)` on the device of the pictures.

    Resizing along one axis is a multiplication by a matrix of Pillow's weights. The result is rounded to 8 bits after
    each axis as in Pillow, and bit-identical to Pillow's in IEEE float32 arithmetic. PyTorch's
    `interpolate(antialias=True)` has the same weights for whole pictures, but cannot start between two pixels, which a
    centre crop needs.

    The matrices of the last sizes are cached, so use one resizer for each CUDA stream.

    Args:
        size: (height, width) of the result.
        interpolation: "bilinear" or "bicubic".

    >>> half = Resizer((2, 3), "bicubic")
    >>> half(torch.full((1, 3, 9, 8), 77, dtype=torch.uint8), (0.5, 0, 8, 9)).unique()
    tensor([77], dtype=torch.uint8)
    """

    def __init__(self, size: Pair, interpolation: Interpolation) -> None:
        self._size, self._interpolation = size, interpolation
        self._matrices = lru_cache(maxsize=32)(_matrices)

    def __call__(self, images: Tensor, box: Box, origin: tuple[int, int] = (0, 0), down_first: bool = False) -> Tensor:
        """Resize (N, C, H, W) uint8, in any memory format, to (N, height, width, C) uint8.

        Unlike Pillow's, the colours are not weighted by a channel of opacity.

        Args:
            images: of one size.
            box: the part of each that is resized, in pixels as float32; pixels around it are read too.
            origin: (x, y) of the first given pixel, if `images` has only the pixels from `reach`.
            down_first: resize vertically first, as `rows.goes_down_first` says; the order affects rounding.
        """
        (height, width), (left, top, right, bottom) = images.shape[2:], box
        device, filter = images.device, self._interpolation
        values = images.to(torch.float32, memory_format=torch.contiguous_format)
        across = self._matrices(origin[0], width, left, right, self._size[1], filter, device)
        down = self._matrices(origin[1], height, top, bottom, self._size[0], filter, device)
        values = _across(_down(values, *down), *across) if down_first else _down(_across(values, *across), *down)
        return values.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _across(values: Tensor, coarse: Tensor, fine: Tensor) -> Tensor:
    return _rounded(torch.matmul(values, coarse.T), torch.matmul(values, fine.T))


def _down(values: Tensor, coarse: Tensor, fine: Tensor) -> Tensor:
    return _rounded(torch.matmul(coarse, values), torch.matmul(fine, values))


def _rounded(coarse: Tensor, fine: Tensor) -> Tensor:
    """Sum of both, rounded half up; no intermediate value needs more than 24 bits."""
    whole = coarse.add_(0.5).floor()
    return coarse.sub_(whole).add_(fine).floor_().add_(whole).clamp_(0, 255)


def _matrices(
    origin: int, before: int, start: float, end: float, after: int, interpolation: Interpolation, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Pillow's weights (after, before) of one axis, which have 22 fractional bits, as a sum of two matrices."""
    # The first has the upper 10 of these bits and the second the others, so that products with pixels and their sums
    # are exact in float32, and also in TF32, whose 11-bit significand holds each of these numbers.
    first, weights = pillow_weights(before, start, end, after, interpolation, origin)
    places = (first[:, None] + np.arange(weights.shape[1]) - origin).clip(0, before - 1)
    coarse = (weights + (1 << (FINE - 1))) >> FINE
    fine = weights - (coarse << FINE)
    index = torch.from_numpy(places).to(device)
    return (
        _dense_matrix(coarse, 2.0 ** (FINE - PRECISION), index, before),
        _dense_matrix(fine, 2.0**-PRECISION, index, before),
    )


def _dense_matrix(values: NDArray[np.int64], unit: float, index: Tensor, before: int) -> Tensor:
    values_there = torch.from_numpy((values * unit).astype(np.float32)).to(index.device)
    return torch.zeros(len(values), before, device=index.device).scatter_add_(1, index, values_there)


def turned(image: Tensor, turn: Image.Transpose | None) -> Tensor:
    """Pillow's `transpose` of a picture (C, H, W).

    >>> turned(torch.arange(6).view(1, 2, 3), Image.Transpose.ROTATE_90)[0].tolist()
    [[2, 5], [1, 4], [0, 3]]
    """
    if turn is None:
        return image
    lying = image.transpose(1, 2)
    return {
        Image.Transpose.FLIP_LEFT_RIGHT: lambda: image.flip(2),
        Image.Transpose.ROTATE_180: lambda: image.flip(1, 2),
        Image.Transpose.FLIP_TOP_BOTTOM: lambda: image.flip(1),
        Image.Transpose.TRANSPOSE: lambda: lying,
        Image.Transpose.ROTATE_270: lambda: lying.flip(2),
        Image.Transpose.TRANSVERSE: lambda: lying.flip(1, 2),
        Image.Transpose.ROTATE_90: lambda: lying.flip(1),
    }[turn]()


def normalized(pixels: Tensor, rule: Preprocessing) -> Tensor:
    """`preprocessing.normalize` on a device, bit-identical: (N, h, w, C), 0 to 255 -> (N, C, h, w).

    uint8 becomes float32; floating-point types are kept, and gradients pass through.

    The result has channels last in memory. Mean and std are repeated to whole rows, because broadcasting over three
    interleaved channels takes ten times as long.

    >>> from convnets_torch.images.preprocessing import general
    >>> normalized(torch.full((1, 1, 1, 3), 255, dtype=torch.uint8), general("keras-tf", 224)).flatten()
    tensor([1., 1., 1.])
    """
    count, height, width, channels = pixels.shape
    dtype = pixels.dtype if pixels.is_floating_point() else torch.float32
    ordered = pixels.flip(3) if rule.channels == "bgr" else pixels
    mean, std = (
        torch.tensor(values, dtype=dtype, device=pixels.device).repeat(width) for values in (rule.mean, rule.std)
    )
    rows = ordered.reshape(count, height, channels * width).to(dtype, copy=True)
    rows.mul_(rule.scale).sub_(mean).div_(std)
    return rows.view(count, height, width, channels).permute(0, 3, 1, 2)


def grey_of(images: Tensor) -> Tensor:
    """Pillow's conversion to grey of images (..., 3, H, W) uint8, RGB, bit-identical: (..., 1, H, W).

    >>> grey_of(torch.tensor([255, 0, 0], dtype=torch.uint8).view(3, 1, 1)).tolist()
    [[[76]]]
    """
    red, green, blue = images.to(torch.int32).unbind(-3)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000 >> 16).to(torch.uint8).unsqueeze(-3)

"""Handwritten digits as picture files: scikit-learn's 8x8 cells, from the UCI repository, which its package holds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def write_digits(
    folder: Path, digits: Iterable[int] = range(10), count: int | None = None, skip: int = 0
) -> dict[str, list[Path]]:
    """Write PNG files of 160x160 into a folder for each digit: cells with a dark margin of one, enlarged bicubically.

    Args:
        folder: gets the folders.
        digits: that are wanted.
        count: of each digit; None for all, some 180.
        skip: how many of each are passed over first.

    Returns:
        Class -> paths, named after the places of the digits among all 1797.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    found = {}
    for digit in digits:
        place = folder / str(digit)
        place.mkdir(parents=True)
        numbers = np.flatnonzero(data.target == digit)[skip:][:count].tolist()
        found[str(digit)] = [place / f"{number:04}.png" for number in numbers]
        for number, path in zip(numbers, found[str(digit)], strict=True):
            small = Image.fromarray((data.images[number] * 255 / 16).astype(np.uint8))
            ImageOps.expand(small, 1).resize((160, 160), Image.Resampling.BICUBIC).save(path)
    return found

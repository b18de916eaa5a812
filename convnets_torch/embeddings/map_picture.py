"""A map as one picture, with thumbnails at their places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from convnets_torch.embeddings.map_thumbnails import LEAST_SIDE, apart, mean_color

LONGEST = 2400  # pixels of the longer side
PAPER = (250, 250, 248)
NEW = (214, 69, 0)  # frames of new pictures
DOT = 2  # pixels around a dot's middle


class MapPicture(NamedTuple):
    """A drawn map.

    Attributes:
        image: RGB.
        shown: (N,), which pictures have a thumbnail; the others are dots.
        corners: (N, 2) integers, left and top of each picture's square in pixels.
        side: of these squares.
    """

    image: Image.Image
    shown: NDArray[np.bool_]
    corners: NDArray[np.int64]
    side: int


def draw_map(
    positions: NDArray[np.floating],
    images: Sequence[Image.Image | None],
    *,
    new: NDArray[np.bool_] | None = None,
    longest: int = LONGEST,
    side: int | None = None,
) -> MapPicture:
    """Draw pictures at their places, none over another.

    A thumbnail that would cover one drawn before is a dot of its mean colour instead; they are taken in an order drawn
    by a fixed seed, new pictures first.

    Args:
        positions: (N, 2), x to the right and y upwards, as `ImageMap` has them.
        images: the N thumbnails, None for a picture that has none, which is a dot.
        new: (N,), which pictures were placed on an old map; they get a frame.
        longest: pixels of the picture's longer side.
        side: pixels of a thumbnail's longer side; by default half of what would fill the picture, at least 32, and not
            more than the largest thumbnail has.

    Raises:
        ValueError: another number of thumbnails than places, or no room for one thumbnail.

    >>> places = np.random.RandomState(0).normal(size=(30, 2))
    >>> drawn = draw_map(places, [Image.new("RGB", (64, 48), "teal")] * 30, longest=600)
    >>> max(drawn.image.size), int(drawn.shown.sum()) > 8
    (600, True)
    """
    if len(positions) != len(images) or not len(positions):
        raise ValueError(f"there are {len(positions)} places and {len(images)} thumbnails; give one for each")
    most = max((max(image.size) for image in images if image is not None), default=2 * DOT + 1)
    side = side or min(most, max(LEAST_SIDE, round(longest / len(images) ** 0.5 / 2)))
    room = longest - 2 * side
    if room < side:
        raise ValueError(f"a map of {longest} pixels has no room for thumbnails of {side}; make it {3 * side} or more")
    places = np.asarray(positions, np.float64) * (1, -1)
    places -= places.min(axis=0)
    extent = float(places.max()) or 1.0
    pixels = places * (room / extent)
    width, height = (int(np.ceil(edge)) + 2 * side for edge in pixels.max(axis=0))
    there = np.array([image is not None for image in images])
    shown = np.zeros(len(images), bool)
    among = np.flatnonzero(there)  # those without leave their room to others
    if len(among):
        # A pixel more than a thumbnail has, since places are rounded to pixels.
        shown[among] = apart(pixels[among], side + 1, None if new is None else new[among])
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    middles = np.rint(pixels + side).astype(np.int64)
    for i in np.flatnonzero(~shown).tolist():
        x, y = middles[i].tolist()
        frame = NEW if new is not None and new[i] else None
        draw.rectangle((x - DOT, y - DOT, x + DOT, y + DOT), mean_color(images[i]), frame)
    corners = middles - side // 2
    for i in np.flatnonzero(shown).tolist():
        image = images[i]
        assert image is not None
        small = _fitted(image, side)
        left, top = (corners[i] + [(side - small.width) // 2, (side - small.height) // 2]).tolist()
        page.paste(small, (left, top))
        if new is not None and new[i]:
            draw.rectangle((left, top, left + small.width - 1, top + small.height - 1), None, NEW, max(2, side // 24))
    return MapPicture(page, shown, corners, side)


def _fitted(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    if scale == 1:
        return image
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))

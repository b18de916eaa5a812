"""Small pictures for maps: made from files in threads, chosen so that none covers another, packed into sheets."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnets_torch.ahead import THREADS, ahead, expected_pixels
from convnets_torch.embeddings.thumbnails import reduced
from convnets_torch.images import Picture, Reading, open_upright
from convnets_torch.levels import Background, Depth

SIDES = {1_000: 128, 4_000: 96, 10_000: 64, 25_000: 48}  # pictures -> pixels of a thumbnail's longer side; then 32
LEAST_SIDE = 32
SHEET = 1536  # pixels a side of the sheets that thumbnails are packed into
GREY = (128, 128, 128)  # of a picture without thumbnail
STEPS = 40  # levels; two of them double the scale
NEVER = STEPS + 1  # the level of a picture that lies upon another
ROOM = 300_000_000  # pixels of pictures that are decoded ahead, as many as their files hold


class Thumbnail(NamedTuple):
    """A small picture, or why there is none."""

    image: Image.Image | None
    error: Exception | None = None


def thumbnail_side(count: int) -> int:
    """Pixels of the longer side of thumbnails, so that a page of `count` pictures stays within some 40 MB.

    >>> thumbnail_side(200), thumbnail_side(20_000)
    (128, 48)
    """
    return next((side for most, side in SIDES.items() if count <= most), LEAST_SIDE)


def thumbnails(
    pictures: Iterable[Picture],
    side: int,
    *,
    max_pixels: int | None = None,
    allow_truncated: bool = False,
    depth: Depth = None,
    background: Background = None,
) -> Generator[Thumbnail, None, None]:
    """Small pictures of their shape, at most `side` pixels in height and width, in order; threads are ahead.

    JPEG files are read at a fraction of their scale, which takes a small part of the time.

    Args:
        pictures: whatever `read_picture` takes.
        side: in pixels.
        max_pixels, allow_truncated, depth, background: as in `read_picture`.

    >>> [found] = thumbnails(["street.jpg"], 64)
    >>> found.image.size
    (64, 48)
    """
    reading = Reading(True, max_pixels, allow_truncated, depth, background, least=(side, side))

    def small(picture: Picture) -> Thumbnail:
        try:
            image = open_upright(picture, reading).image
        except (OSError, ValueError) as error:
            return Thumbnail(None, error)
        return Thumbnail(reduced(image, side, Image.Resampling.BOX))

    done = ahead(pictures, small, most=4 * THREADS, size=expected_pixels, room=ROOM)
    try:
        for _, found in done:
            yield found
    finally:
        done.close()


def levels(positions: NDArray[np.floating], first: NDArray[np.bool_] | None = None) -> NDArray[np.uint8]:
    """From which scale on each picture has a thumbnail that covers no other.

    At level L thumbnails are squares of a side of extent / 2 ** (L / 2), around their places. Pictures are taken in an
    order drawn by a fixed seed, so that those that remain are a fair sample; one is left out where its square would
    touch that of a picture taken before. Who has a thumbnail at a level has one at all higher levels.

    Args:
        positions: (N, 2).
        first: (N,), who comes before the others.

    Returns:
        (N,) uint8, 0 to 40; 41 for one that lies upon another.

    >>> levels(np.array([[0, 0], [8, 0], [4, 0], [4, 0]])).tolist().count(41)
    1
    """
    places = np.asarray(positions, np.float64)
    places = places - places.min(axis=0)
    extent = float(places.max()) or 1.0
    found = np.full(len(places), NEVER, np.uint8)
    waiting = _order(len(places), first)
    taken: list[int] = []
    for level in range(STEPS + 1):
        more, waiting = _with_room(waiting, taken, places, extent / 2 ** (level / 2))
        found[more] = level
        taken += more
        if not waiting:
            break
    return found


def apart(positions: NDArray[np.floating], side: float, first: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Who has a thumbnail of `side` around its place, so that none covers another, taken in the order of `levels`.

    >>> int(apart(np.array([[0.0, 0.0], [3.0, 1.0], [0.0, 9.0]]), 4).sum())
    2
    """
    places = np.asarray(positions, np.float64)
    taken, _ = _with_room(_order(len(places), first), [], places - places.min(axis=0), side)
    return np.isin(np.arange(len(places)), taken)


def _order(count: int, first: NDArray[np.bool_] | None) -> list[int]:
    order = np.random.RandomState(0).permutation(count)
    if first is not None:
        order = order[np.argsort(~first[order], kind="stable")]
    found: list[int] = order.tolist()
    return found


def _with_room(
    waiting: Sequence[int], taken: Sequence[int], places: NDArray[np.float64], side: float
) -> tuple[list[int], list[int]]:
    """Those whose squares touch none that is taken, one after another; and the others."""
    xs, ys = places[:, 0].tolist(), places[:, 1].tolist()
    columns, rows = (np.floor(places / side).astype(np.int64).T).tolist()
    cells = {(columns[i], rows[i]): i for i in taken}  # two in a cell would touch
    more, still = [], []
    for i in waiting:
        if _touches(i, cells, columns[i], rows[i], xs, ys, side):
            still.append(i)
        else:
            cells[columns[i], rows[i]] = i
            more.append(i)
    return more, still


def _touches(
    i: int,
    cells: dict[tuple[int, int], int],
    column: int,
    row: int,
    xs: Sequence[float],
    ys: Sequence[float],
    side: float,
) -> bool:
    for x in (column, column - 1, column + 1):
        for y in (row, row - 1, row + 1):
            other = cells.get((x, y))
            if other is not None and abs(xs[i] - xs[other]) < side and abs(ys[i] - ys[other]) < side:
                return True
    return False


def sheets(images: Sequence[Image.Image | None], order: Sequence[int], side: int) -> Iterator[Image.Image]:
    """Thumbnails in the order given, packed row by row into pictures of at most 1536 pixels a side.

    Each stands at the top left of a cell of `side` pixels, whose rest has its mean colour.
    """
    across = SHEET // side
    for start in range(0, len(order), across * across):
        some = order[start : start + across * across]
        page = Image.new("RGB", (across * side, math.ceil(len(some) / across) * side), GREY)
        for place, number in enumerate(some):
            image = images[number]
            if image is not None:
                corner = place % across * side, place // across * side
                page.paste(mean_color(image), (*corner, corner[0] + side, corner[1] + side))
                page.paste(image, corner)
        yield page


def mean_color(image: Image.Image | None) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255; grey for a picture that is not there."""
    if image is None:
        return GREY
    red, green, blue = np.asarray(image.convert("RGB")).reshape(-1, 3).mean(axis=0).round().astype(int).tolist()
    return red, green, blue

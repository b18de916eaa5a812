"""Draw a map of a collection: thumbnails, a picture and a page."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from convnets_torch.embeddings.image_map import MapEntry
from convnets_torch.files import check_page
from convnets_torch.images.decoding import Picture, Reading, open_upright
from convnets_torch.images.levels import Background, Depth
from convnets_torch.inference.pipeline import THREADS, ahead, expected_pixels
from convnets_torch.text import printable
from convnets_torch.visualization.pages import as_base64, as_json, as_uri, save_page

SIDE = 128  # pixels of the longer side
QUALITY = 80


def thumbnail(image: Image.Image) -> bytes:
    """The bytes of a JPEG file, at most 128 x 128 pixels, of the same shape as the picture.

    >>> found = Image.open(io.BytesIO(thumbnail(Image.new("RGB", (640, 480)))))
    >>> found.format, found.size
    ('JPEG', (128, 96))
    """
    file = io.BytesIO()
    reduced(image, SIDE, Image.Resampling.BILINEAR).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def reduced(image: Image.Image, side: int, filter: Image.Resampling) -> Image.Image:
    """A picture of the same shape whose longer side has at most so many pixels, made fast rather than exactly.

    >>> reduced(Image.new("RGB", (640, 3)), 64, Image.Resampling.BOX).size
    (64, 1)
    """
    scale = min(1.0, side / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, filter, reducing_gap=2.0)


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
    workers: int | None = None,
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
        workers: threads that decode; by default one for each core, at most 16.
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

    done = ahead(pictures, small, most=4 * THREADS, threads=workers or THREADS, size=expected_pixels, room=ROOM)
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


PAGE_QUALITY = 80  # of the sheets, which are JPEG
CHANCES = 65_535  # steps of a probability
UNKNOWN = 65_535  # stands for no probability
MOST_WORDS = 65_535  # different ones


def save_map_page(
    positions: NDArray[np.floating],
    entries: Sequence[MapEntry],
    images: Sequence[Image.Image | None],
    path: str | os.PathLike[str],
    *,
    title: str,
    new: NDArray[np.bool_] | None = None,
    failed: Mapping[str, str] | None = None,
) -> None:
    """Write one HTML file, atomically, to look through a collection.

    The page shows a dot of its mean colour for each picture, and thumbnails where they cover no other: the nearer one
    goes, the more of them. It pans, zooms, says what a picture is, finds pictures by their names and the words of
    their classes, and makes a list of the files inside a loop that is drawn around them, to copy or to download. The
    file holds everything, asks no network and opens from a disk. Names and words are shown as text, whatever is in
    them.

    Args:
        positions: (N, 2), x to the right and y upwards, as `ImageMap` has them.
        entries: one for each.
        images: the N thumbnails, as `thumbnails` makes them, all of at most the same side; None for a picture that
            has none, which is a grey dot.
        path: the file, such as `map.html`.
        title: stands above the map.
        new: (N,), which pictures were placed on an old map; they get a frame.
        failed: names of pictures that could not be used -> a sentence on each, which are listed.

    Raises:
        ValueError: another ending, no pictures, or another number of entries or thumbnails than places.
        OSError: `path` cannot be written.

    >>> places = np.random.RandomState(0).normal(size=(30, 2))
    >>> entries = [MapEntry(f"{number}.jpg") for number in range(30)]
    >>> save_map_page(places, entries, [Image.new("RGB", (64, 48), "teal")] * 30, "map.html", title="My photographs")
    """
    check_page(Path(path), "a map")
    if not len(positions) or not len(positions) == len(entries) == len(images):
        raise ValueError(
            f"there are {len(positions)} places, {len(entries)} entries and {len(images)} thumbnails; give one for each"
        )
    side = max((max(image.size) for image in images if image is not None), default=16)
    side += -side % 8  # whole blocks of JPEG, so that no thumbnail colours another
    level = levels(positions, new)
    order = np.lexsort((*_strips(positions), level))  # what is seen first and what is near lies in one sheet
    save_page(
        path,
        "collection.html",
        "collection.js",
        "collection_tools.js",
        title=title,
        data=as_json(_numbers(positions, entries, images, level, order, new, side)),
        sheets=[_jpeg(sheet) for sheet in sheets(images, order.tolist(), side)],
        failed=failed or {},
    )


def _numbers(
    positions: NDArray[np.floating],
    entries: Sequence[MapEntry],
    images: Sequence[Image.Image | None],
    level: NDArray[np.uint8],
    order: NDArray[np.int64],
    new: NDArray[np.bool_] | None,
    side: int,
) -> dict[str, Any]:
    """What the script of the page reads."""
    words = sorted({printable(entry.words) for entry in entries})
    if len(words) > MOST_WORDS:
        raise ValueError(f"the pictures have {len(words)} different classes, and a page names {MOST_WORDS}")
    place_of = {text: place for place, text in enumerate(words)}
    chances = [UNKNOWN if entry.probability is None else entry.probability * (CHANCES - 1) for entry in entries]
    slots = np.empty(len(order), "<u4")
    slots[order] = np.arange(len(order))
    sizes = [(0, 0) if image is None else image.size for image in images]
    return {
        "positions": as_base64((np.asarray(positions) * (1, -1)).astype("<f4")),  # y downwards, as on a screen
        "names": [printable(entry.name) for entry in entries],
        "words": words,
        "word_of": as_base64(np.array([place_of[printable(entry.words)] for entry in entries], "<u2")),
        "chances": as_base64(np.rint(chances).astype("<u2")),
        "levels": as_base64(level),
        "never": NEVER,
        "slots": as_base64(slots),
        "sizes": as_base64(np.array(sizes, np.uint8)),
        "colors": as_base64(np.array([mean_color(image) for image in images], np.uint8)),
        "new": as_base64(np.zeros(len(order), np.uint8) if new is None else new.astype(np.uint8)),
        "side": side,
    }


def _strips(positions: NDArray[np.floating]) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
    """For sorting: pictures of one of 24 strips from the left to the right follow each other, from strip to strip."""
    y = positions[:, 1] - positions[:, 1].min()
    return positions[:, 0], (y * (24 / (float(y.max()) or 1.0))).astype(np.int64)


def _jpeg(sheet: Image.Image) -> str:
    file = BytesIO()
    # Colours at the full scale: decoders interpolate coarser ones from one thumbnail into the next.
    sheet.save(file, "JPEG", quality=PAGE_QUALITY, subsampling="4:4:4", optimize=True)
    return as_uri(file.getvalue(), "JPEG")

"""Draw an image map as a picture or as an interactive HTML page, with thumbnails."""

from __future__ import annotations

import io
import itertools
import math
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from typing_extensions import Unpack

from convnets_torch.embeddings.image_map import MapEntry
from convnets_torch.files import check_page
from convnets_torch.images.decoding import DecodedPicture, Picture, Reading, ReadingKeywords, decode
from convnets_torch.images.levels import shown
from convnets_torch.inference.pipeline import THREADS, each_row, expected_pixels, run_pictures
from convnets_torch.options import checked, renamed, shows
from convnets_torch.text import printable
from convnets_torch.visualization.pages import as_base64, as_json, as_uri, save_page

SIDE = 128  # pixels of the longer side
QUALITY = 80


def thumbnail(image: Image.Image) -> bytes:
    """Return a JPEG thumbnail of at most 128 x 128 pixels, with the picture's aspect ratio.

    >>> found = Image.open(io.BytesIO(thumbnail(Image.new("RGB", (640, 480)))))
    >>> found.format, found.size
    ('JPEG', (128, 96))
    """
    file = io.BytesIO()
    reduced(image, SIDE, Image.Resampling.BILINEAR).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def reduced(image: Image.Image, side: int, filter: Image.Resampling) -> Image.Image:
    """Shrink a picture until its longer side has at most `side` pixels; fast rather than exact. RGBA is laid on white.

    >>> reduced(Image.new("RGB", (640, 3)), 64, Image.Resampling.BOX).size
    (64, 1)
    """
    small = image.resize(_scaled(image, min(1.0, side / max(image.size))), filter, reducing_gap=2.0)
    return Image.fromarray(shown(np.asarray(small))) if small.mode == "RGBA" else small


def _scaled(image: Image.Image, scale: float) -> tuple[int, int]:
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


SIDES = {1_000: 128, 4_000: 96, 10_000: 64, 25_000: 48}  # up to so many pictures -> pixels of the longer side
LEAST_SIDE = 32  # pixels of the longer side, for more pictures
SHEET = 1536  # pixels per side of a sprite sheet
GREY = (128, 128, 128)  # colour of a picture without a thumbnail
STEPS = 40  # zoom levels; two of them double the scale
NEVER = STEPS + 1  # level of a picture at the position of another
REDUCED = 9  # a picture counts as so many times fewer pixels than its file has: most are decoded at reduced scale


class Thumbnail(NamedTuple):
    """A thumbnail, or the error."""

    image: Image.Image | None
    error: Exception | None = None


def thumbnail_side(count: int) -> int:
    """Return the longer side of thumbnails in pixels, so that a page of `count` pictures stays below about 40 MB.

    >>> thumbnail_side(200), thumbnail_side(20_000)
    (128, 48)
    """
    return next((side for most, side in SIDES.items() if count <= most), LEAST_SIDE)


@renamed(pictures="images")
@shows(ReadingKeywords, Reading)
def thumbnails(
    images: Iterable[Picture], side: int, *, workers: int | None = None, **reading: Unpack[ReadingKeywords]
) -> Generator[Thumbnail, None, None]:
    """Yield thumbnails in order; worker threads prefetch them. The aspect ratio is kept.

    JPEG files are decoded at reduced scale, which is much faster.

    Args:
        images: as for `read_picture`.
        side: maximum height and width in pixels.
        workers: decoding threads; by default one per core, at most 16.
        **reading: as for `read_picture`.

    >>> [found] = thumbnails(["street.jpg"], 64)
    >>> found.image.size
    (64, 48)
    """
    decoding = Reading(**checked(reading, ReadingKeywords), least=(side, side))

    def small(image: Picture) -> DecodedPicture:
        found = decode(image, decoding)
        return found._replace(content=reduced(found.image, side, Image.Resampling.BOX))

    rows = run_pictures(
        images, small, lambda found: [each.image for each in found], batch=1, most=4 * THREADS,
        threads=workers or THREADS, size=lambda image: expected_pixels(image) // REDUCED,
    )  # fmt: skip
    return each_row(rows, lambda row: Thumbnail(row.value, row.error))


def levels(positions: NDArray[np.floating], first: NDArray[np.bool_] | None = None) -> NDArray[np.uint8]:
    """Return the zoom level from which each picture has a thumbnail that covers no other.

    At level L thumbnails are squares of side extent / 2 ** (L / 2), centred at their positions. Pictures are chosen
    greedily, in an order shuffled with a fixed seed, so that those shown are a fair sample; a picture is skipped if its
    square would overlap a chosen one. A picture shown at one level is shown at all higher levels.

    Args:
        positions: (N, 2).
        first: (N,), mask of pictures that are chosen before the others.

    Returns:
        (N,) uint8, 0 to 40; 41 for a picture at the same position as another.

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
    """Return a mask of points whose thumbnails of `side` do not overlap, chosen greedily in the order of `levels`.

    >>> int(apart(np.array([[0.0, 0.0], [3.0, 1.0], [0.0, 9.0]]), 4).sum())
    2
    """
    places = np.asarray(positions, np.float64)
    taken, _ = _with_room(_order(len(places), first), [], places - places.min(axis=0), side)
    return np.isin(np.arange(len(places)), taken)


def _order(count: int, first: NDArray[np.bool_] | None) -> list[int]:
    order = np.random.RandomState(0).permutation(count)
    found: list[int] = (order if first is None else order[np.argsort(~first[order], kind="stable")]).tolist()
    return found


def _with_room(
    waiting: Sequence[int], taken: Sequence[int], places: NDArray[np.float64], side: float
) -> tuple[list[int], list[int]]:
    """Choose greedily from `waiting` what overlaps no chosen square; return (newly chosen, still waiting)."""
    xs, ys = places[:, 0].tolist(), places[:, 1].tolist()
    columns, rows = (np.floor(places / side).astype(np.int64).T).tolist()
    cells = {(columns[i], rows[i]): i for i in taken}  # at most one per cell, as two in a cell would overlap

    def overlaps(i: int) -> bool:
        for x, y in itertools.product((0, -1, 1), (0, -1, 1)):
            other = cells.get((columns[i] + x, rows[i] + y))
            if other is not None and abs(xs[i] - xs[other]) < side and abs(ys[i] - ys[other]) < side:
                return True
        return False

    more, still = [], []
    for i in waiting:
        if overlaps(i):
            still.append(i)
        else:
            cells[columns[i], rows[i]] = i
            more.append(i)
    return more, still


def sheets(images: Sequence[Image.Image | None], order: Sequence[int], side: int) -> Iterator[Image.Image]:
    """Pack thumbnails row by row, in the given order, into sprite sheets of at most 1536 pixels a side.

    Each thumbnail is at the top left of a cell of `side` pixels, padded with its mean colour.
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
    """Return the mean (red, green, blue), 0 to 255; grey if there is no image."""
    if image is None:
        return GREY
    red, green, blue = np.asarray(image.convert("RGB")).reshape(-1, 3).mean(axis=0).round().astype(int).tolist()
    return red, green, blue


LONGEST = 2400  # pixels of the longer side
PAPER = (250, 250, 248)
NEW = (214, 69, 0)  # frame colour of new pictures
DOT = 2  # pixels on each side of a dot's centre


class MapPicture(NamedTuple):
    """A drawn map.

    Attributes:
        image: RGB.
        shown: (N,), mask of pictures drawn as thumbnails; the others are dots.
        corners: (N, 2) integers, left and top of each picture's square in pixels.
        side: side of these squares in pixels.
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
    """Draw thumbnails at their positions without overlap.

    A thumbnail that would overlap one already drawn becomes a dot of its mean colour. The order is shuffled with a
    fixed seed, new pictures first.

    Args:
        positions: (N, 2), x to the right and y upwards, as in `ImageMap`.
        images: the N thumbnails; a picture with None is drawn as a dot.
        new: (N,), mask of pictures placed on an existing map; they get a frame.
        longest: longer side of the drawing in pixels.
        side: longer side of a thumbnail in pixels; by default half of what would fill the drawing, at least 32 and at
            most that of the largest thumbnail.

    Raises:
        ValueError: the numbers of thumbnails and positions differ, or there is no room for one thumbnail.

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
    among = np.flatnonzero(there)  # pictures without a thumbnail take no room
    if len(among):
        # One pixel more than a thumbnail, as positions are rounded to pixels.
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
        small = image if max(image.size) == side else image.resize(_scaled(image, side / max(image.size)))
        left, top = (corners[i] + [(side - small.width) // 2, (side - small.height) // 2]).tolist()
        page.paste(small, (left, top))
        if new is not None and new[i]:
            draw.rectangle((left, top, left + small.width - 1, top + small.height - 1), None, NEW, max(2, side // 24))
    return MapPicture(page, shown, corners, side)


CHANCES = 65_535  # quantisation steps of a probability
UNKNOWN = 65_535  # code for an unknown probability
MOST_WORDS = 65_535  # distinct class names


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
    """Write an interactive HTML page of a map, atomically.

    The page shows each picture as a dot of its mean colour, and as a thumbnail where it overlaps no other; zooming in
    shows more thumbnails. It supports panning, zooming, captions, search by file and class name, and a lasso selection
    whose file list can be copied or downloaded. The file is self-contained and works offline. Names and words are
    escaped.

    Args:
        positions, new: as for `draw_map`.
        entries: one entry per picture.
        images: the N thumbnails, as from `thumbnails`, all made for one side; a picture with None is a grey dot.
        path: output file, such as `map.html`.
        title: heading of the page.
        failed: name of each picture that failed -> error message; listed on the page.

    Raises:
        ValueError: unknown file extension, no pictures, or the numbers of positions, entries and thumbnails differ.
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
    side += -side % 8  # whole JPEG blocks, so that thumbnails do not bleed into each other
    level = levels(positions, new)
    y = positions[:, 1] - positions[:, 1].min()
    strips = (y * (24 / (float(y.max()) or 1.0))).astype(np.int64)  # horizontal ones
    order = np.lexsort((positions[:, 0], strips, level))  # thumbnails seen first, or close together, share a sheet
    save_page(
        path,
        "collection.html",
        "collection.js",
        "collection_tools.js",
        title=title,
        data=as_json(_page_data(positions, entries, images, level, order, new, side)),
        sheets=[_jpeg(sheet) for sheet in sheets(images, order.tolist(), side)],
        failed=failed or {},
    )


def _page_data(
    positions: NDArray[np.floating],
    entries: Sequence[MapEntry],
    images: Sequence[Image.Image | None],
    level: NDArray[np.uint8],
    order: NDArray[np.int64],
    new: NDArray[np.bool_] | None,
    side: int,
) -> dict[str, Any]:
    """Return the data for the page's script."""
    words = sorted({printable(entry.words) for entry in entries})
    if len(words) > MOST_WORDS:
        raise ValueError(f"the pictures have {len(words)} different classes, but a page can name {MOST_WORDS} at most")
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


def _jpeg(sheet: Image.Image) -> str:
    file = io.BytesIO()
    # No chroma subsampling: decoders would interpolate colours from one thumbnail into the next.
    sheet.save(file, "JPEG", quality=QUALITY, subsampling="4:4:4", optimize=True)
    return as_uri(file.getvalue(), "JPEG")

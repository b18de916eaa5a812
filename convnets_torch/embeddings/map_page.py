"""A map as one HTML file without network: pan, zoom, search, and a lasso that makes a list of files."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnets_torch.embeddings.map_files import MapEntry
from convnets_torch.embeddings.map_thumbnails import NEVER, levels, mean_color, sheets
from convnets_torch.files import check_page, replacing
from convnets_torch.maps.page import as_base64, as_json, part, whole_page
from convnets_torch.sentences import printable

QUALITY = 80  # of the sheets, which are JPEG
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
    style, script = part("collection.css"), part("collection.js") + part("collection_tools.js")
    page = whole_page(
        "collection.html",
        escape(printable(title)),
        style,
        script,
        data=as_json(_numbers(positions, entries, images, level, order, new, side)),
        sheets="\n".join(
            f'<script type="text/plain" class="sheet">{_jpeg(sheet)}</script>'
            for sheet in sheets(images, order.tolist(), side)
        ),
        failed="".join(
            f"<li><bdi>{escape(printable(name))}</bdi> <span>{escape(printable(said))}</span></li>"
            for name, said in (failed or {}).items()
        ),
        failed_count=len(failed or {}),
    )
    with replacing(path) as temporary:
        temporary.write_bytes(page.encode())


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
    sheet.save(file, "JPEG", quality=QUALITY, subsampling="4:4:4", optimize=True)
    return f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"

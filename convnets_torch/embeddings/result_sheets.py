"""Contact sheets of search results and duplicate groups, made from the thumbnails of an index."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from convnets_torch.embeddings.image_map_drawing import SIDE, thumbnail
from convnets_torch.embeddings.neighbours import Metric
from convnets_torch.embeddings.search import Index, Matches
from convnets_torch.images.decoding import Reading, decode, open_thumbnail
from convnets_torch.visualization import overlays
from convnets_torch.visualization.overlays import drawable

GREY = (200, 200, 200)  # around a thumbnail, and instead of a missing one
MOST = 100  # groups per sheet
SIGNS = {"cosine": "cosine", "l2": "distance", "dot": "product"}


def search_sheet(index: Index, found: Sequence[Matches], columns: int, metric: Metric) -> Image.Image:
    """Draw each query followed by its matches, the nearest first."""
    small = index.thumbnails(match.path for each in found for match in each.found)
    rows = []
    for each in found:
        row = [(_of_query(index, each.query), f"query\n{_name(each.query)}")]
        for match in each.found:
            words = (match.words or "").partition(",")[0]
            row.append((small.get(match.path), f"{match.score:.3f} {drawable(words)}\n{_name(match.path)}"))
        rows.append(row)
    return contact_sheet(rows, columns, f"{index.address}: the nearest by {SIGNS[metric]}")


def groups_sheet(index: Index, groups: Sequence[Sequence[tuple[str, str]]], columns: int) -> Image.Image:
    """Draw groups of similar pictures, (path, words) each, every group on new lines; at most the first hundred."""
    shown = groups[:MOST]
    small = index.thumbnails(path for group in shown for path, _ in group)
    rows = [
        [(small.get(path), f"{words} {_name(path)}\n{_name(Path(path).parent)}".lstrip()) for path, words in group]
        for group in shown
    ]
    more = f"; the first {MOST} are shown" if len(groups) > MOST else ""
    return contact_sheet(rows, columns, f"{index.address}: {len(groups)} found{more}")


def contact_sheet(rows: Iterable[Sequence[tuple[bytes | None, str]]], columns: int, title: str = "") -> Image.Image:
    """Draw thumbnails with captions; each row starts on a new line and wraps as needed.

    Args:
        rows: rows of (JPEG thumbnail or None, caption).
        columns: tiles per line.
        title: title above the sheet.
    """
    blank = (Image.new("RGB", (SIDE, SIDE), overlays.PAPER), "")
    tiles = []
    for row in rows:
        line = [(_squared(data), words) for data, words in row]
        tiles += line + [blank] * (-len(line) % columns)
    return overlays.sheet(tiles, columns, SIDE, title)


def _name(path: str | Path) -> str:
    return drawable(Path(path).name)


def _squared(data: bytes | None) -> Image.Image:
    """Centre a thumbnail on a grey square, as all tiles of a sheet have one shape."""
    square = Image.new("RGB", (SIDE, SIDE), GREY)
    if data is not None:
        try:
            small = open_thumbnail(data, SIDE)
        except ValueError:
            return square  # as for a missing thumbnail
        square.paste(small, ((SIDE - small.width) // 2, (SIDE - small.height) // 2))
    return square


def _of_query(index: Index, query: str) -> bytes | None:
    """Return the thumbnail of a query: of its file, or of its row if the file is missing."""
    if Path(query).is_file():
        about, rule = index.about, index.card.preprocessing
        reading = Reading(depth=about.depth, background=about.background, least=(SIDE, SIDE)).for_rule(rule)
        return thumbnail(decode(query, reading).image)
    row = index.row_of(query)
    path = None if row is None else index.vectors.path(row)
    return None if path is None else index.thumbnails([path]).get(path)

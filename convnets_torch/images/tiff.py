"""Read TIFF files row by row with tifffile, decoding tiles and strips as they are reached."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnets_torch.files import open_file
from convnets_torch.images.decoding import AS_IS, Reading, ignored_turn_note, reason_of
from convnets_torch.images.headers import MOST_FRAMES, TIFF, TiffValues, frames_note, pages, tiff_values
from convnets_torch.images.levels import (
    SLIVER,
    Depth,
    Refused,
    check_levels,
    check_white,
    laid_on,
    to_8_bits,
    white_of,
)
from convnets_torch.images.preprocessing import Pair, Pixels
from convnets_torch.images.rows import BAND_PIXELS, LEAST_ROWS, Bands, Source, band_of, check_rows, in_mode

if TYPE_CHECKING:
    from tifffile import TiffPage

# Photometric interpretations, compressions and kinds of extra samples of the TIFF 6.0 specification.
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, YCBCR = 0, 1, 2, 6
UNCOMPRESSED, JPEG = 1, 7
PREMULTIPLIED, TRANSPARENCY = 1, 2
SAMPLED_ROWS = 4  # rows read to find how many bits the values of a 16-bit file use


def is_tiff(file: IO[bytes]) -> bool:
    """Whether a file begins like TIFF or BigTIFF, whatever its name."""
    file.seek(0)
    return file.read(4) in TIFF


def open_tiff(path: Path, reading: Reading = AS_IS, file: IO[bytes] | None = None) -> tuple[Source, tuple[str, ...]]:
    """Open the first page of a TIFF or BigTIFF file, decoding rows when they are requested.

    Reads grey and RGB of 8 or 16 bits, with the same pixels as `read_picture`. Uncompressed contiguous rows are read
    directly, others by rows of tiles or by strips.

    Args:
        path: the file; it is reopened for each read, and a file that has replaced it is refused.
        reading: as for `decode`; any size is read. Only orientations that mirror the picture or rotate it by 180
            degrees are applied. With depth "auto", or if sampled rows use few of 16 bits, all rows are read once
            beforehand.
        file: the same file, opened by `files.open_file`; it stays open.

    Returns:
        The source, and the warnings that `open_source` issues.

    Raises:
        ImportError: tifffile, or the codec for the file's compression, is missing.
        ValueError: this kind of TIFF is not read row by row; the message names it.
        OSError: the file is broken or truncated; `rows` raises it too.
    """
    try:
        import tifffile
    except ImportError:
        raise ImportError(
            f"{path} is to be read row by row, which needs tifffile: pip install 'convnets-torch[tiff]'"
        ) from None
    check_levels(reading.depth, reading.background)
    path = path.resolve()
    with contextlib.nullcontext(file) if file is not None else open_file(path) as opened:
        with _readable_errors(path):
            count = pages(opened, allow_truncated=reading.allow_truncated)
            start = opened.seek(0)
            # Microscope formats for which tifffile would read all pages.
            flags: dict[str, Any] = {"is_lsm": False, "is_scanimage": False} | (
                {"is_ndpi": False} if count > MOST_FRAMES else {}
            )
            tiff = tifffile.TiffFile(opened, offset=start, name=path.name, **flags)
            page = tiff.pages.first
            values = tiff_values(opened)
            kind = _why_unsupported(page, values)
            state = os.fstat(opened.fileno())
            reader = None if kind else _Reader(path, state, page, tiff.byteorder, values, reading)
        if reader is None:
            raise ValueError(f"{path} is not read row by row: {kind}; save it as 8-bit RGB or grey in tiles")
        return _opened_tiff(reader, count, reading)


def _opened_tiff(reader: _Reader, count: int, reading: Reading) -> tuple[Source, tuple[str, ...]]:
    path, values = reader.path, reader.values
    notes = [*frames_note(str(path), count)]
    if reader.end > reader.state.st_size:
        if not reading.allow_truncated:
            raise OSError(
                f"{path} is truncated; copy the picture again, or read what is there"
                " (allow_truncated, --allow-truncated)"
            )
        notes.append(f"{path} is truncated; what is missing of it is black")
    if reader.alpha and reader.background is None and not reader.rgba:
        notes.append(
            f"{path} has a channel of transparency; it was dropped, the colours under it taken as stored"
            " (background, --background)"
        )
    source = reader.source()
    turned = values.orientation in range(2, 9)
    if turned and not reading.exif:
        notes.append(ignored_turn_note(str(path)))
    elif turned and values.orientation > 4:
        raise ValueError(
            f"{path} lies on its side (orientation {values.orientation}), so that its rows are stored as columns;"
            " save it upright, or leave it as stored (exif=False)"
        )
    elif turned:
        reader.down = values.orientation in (3, 4)
        reader.across = values.orientation in (2, 3)
        source = _Mirrored(source, reader)
    return source, (*notes, *reader.measure(source, reading.depth))


def _why_unsupported(page: TiffPage, values: TiffValues) -> str | None:
    """Why a page cannot be read row by row; None if it can."""
    grey = page.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO)
    colour = page.photometric == RGB or (page.photometric == YCBCR and page.compression == JPEG)
    samples = page.samplesperpixel
    if not (grey or colour):
        return f"its colours are {getattr(page.photometric, 'name', page.photometric)}"
    if page.dtype not in (np.uint8, np.uint16) or page.bitspersample not in (8, 16):
        return f"its values are {values.numbers} of {page.bitspersample} bits"
    if page.imagedepth != 1:
        return f"it is a volume of {page.imagedepth} pictures"
    if samples not in ((1, 2) if grey else (3, 4)):
        return f"it has {samples} channels"
    if samples > 1 and page.planarconfig != 1:
        return "its channels are stored one after the other (planar)"
    if values.extra == PREMULTIPLIED and samples in (2, 4) and (samples, page.bitspersample) != (4, 8):
        return f"its {samples - 1} channels of {page.bitspersample} bits were multiplied with its transparency"
    return None


class _Reader:
    """Reads rows of a page from its file."""

    def __init__(
        self,
        path: Path,
        state: os.stat_result,
        page: TiffPage,
        byteorder: str,
        values: TiffValues,
        reading: Reading,
    ) -> None:
        self.values, self.background, self.rgba = values, reading.background, reading.channels == "rgba"
        self.alpha = values.samples in (2, 4) and values.extra in (PREMULTIPLIED, TRANSPARENCY)
        self.down = self.across = False  # whether to mirror vertically, horizontally
        self.white = self.opaque = 65535  # levels of 16-bit values
        self.highest = np.zeros(2, int)  # maxima of colours and alpha read so far
        self.path, self.state, self.page = path, state, page
        self.shape: Pair = (page.imagelength, page.imagewidth)
        self.offsets, self.sizes = page.dataoffsets, page.databytecounts
        self.end = max((sum(each) for each in zip(self.offsets, self.sizes, strict=False)), default=0)
        self.tables: dict[str, Any] = {}
        if page.compression == JPEG:
            self.tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
        # The byte order in the file; tifffile decodes to native order.
        self.stored = np.dtype(f"{byteorder}u{page.bitspersample // 8}")
        self.decode = page.decode  # created now, while tifffile can still read the file

    def source(self) -> Source:
        """The source of the rows; raises ImportError if a codec is missing, ValueError if strips are too large."""
        height, width = self.shape
        if self._is_plain():
            return _Plain(self)
        with _readable_errors(self.path):
            try:
                self.decode(None, 0, **self.tables)  # raises if a codec is missing
            except ValueError as error:
                if "imagecodecs" not in str(error):
                    raise
                kind = getattr(self.page.compression, "name", self.page.compression)
                raise ImportError(
                    f"{self.path} is compressed ({kind}), which tifffile decodes with imagecodecs:"
                    " pip install imagecodecs"
                ) from None
        unit = self.page.tilelength if self.page.is_tiled else min(self.page.rowsperstrip, height)
        if unit * width > BAND_PIXELS:
            raise ValueError(
                f"{self.path} is not read row by row: {unit} rows of {width} pixels are compressed together;"
                " save it as 8-bit RGB or grey in tiles"
            )
        return Bands(self._decoded, self.shape, band_of(unit, width))

    def opened(self) -> IO[bytes]:
        """Reopen the file; OSError if it was replaced."""
        file = open_file(self.path)
        found = os.fstat(file.fileno())
        if any(getattr(found, name) != getattr(self.state, name) for name in ("st_dev", "st_ino", "st_size")):
            file.close()
            raise OSError(f"{self.path} was changed while it was read; read it again")
        return file

    def _is_plain(self) -> bool:
        """Whether the rows are uncompressed and contiguous in the file."""
        page = self.page
        follow = all(
            offset + size == after
            for offset, size, after in zip(self.offsets, self.sizes, self.offsets[1:], strict=False)
        )
        plain = page.compression == UNCOMPRESSED and page.predictor == 1 and page.fillorder == 1
        whole = self.shape[0] * self.shape[1] * page.samplesperpixel * self.stored.itemsize
        return plain and not page.is_tiled and follow and sum(self.sizes) == whole and self.offsets[0] > 0

    def _decoded(self, top: int, bottom: int) -> Pixels:
        """Decode rows from whole tiles or strips."""
        page, (_, width) = self.page, self.shape
        if page.is_tiled:
            high, across = page.tilelength, ceil(width / page.tilewidth)
        else:
            high, across = min(page.rowsperstrip, self.shape[0]), 1
        pixels = np.zeros((bottom - top, width, 4 if self.rgba else 3), np.uint8)
        with self.opened() as file, _readable_errors(self.path):
            for number in range(top // high * across, ceil(bottom / high) * across):
                size, offset = self.sizes[number], self.offsets[number]
                file.seek(offset)
                content = file.read(size)
                if not size or len(content) < size:
                    continue  # omitted by the writer, which means black, or truncated, which has a note
                values, (_, _, row, column, _), _ = self.decode(content, number, **self.tables)
                if values is None:
                    continue
                # Only some rows of a tile row are needed if the tile row is split into several bands.
                first, last = max(top, row), min(bottom, row + values.shape[1])
                piece = self.to_rgb(values[0, first - row : last - row, : width - column], first, column)
                pixels[first - top : last - top, column : column + piece.shape[1]] = piece
        return pixels

    def measure(self, source: Source, depth: Depth) -> tuple[str, ...]:
        """Find the white level of 16-bit values; return notes on it."""
        if self.stored.itemsize < 2:
            return ()
        height = self.shape[0]
        with contextlib.suppress(OSError):  # damaged rows raise again when they are requested
            for row in np.linspace(0, height - 1, SAMPLED_ROWS).astype(int).tolist():
                source.rows(row, row + 1)
        if depth == "auto" or (depth is None and self.highest[0] <= SLIVER):
            for top in range(0, height, LEAST_ROWS):
                source.rows(top, min(top + LEAST_ROWS, height))
        white, notes = white_of(str(self.path), int(self.highest[0]), self.values.white, depth)
        self.white, self.opaque = white, 65535 if self.highest[1] > white else white
        return notes

    def to_rgb(self, values: NDArray[Any], top: int, left: int) -> Pixels:
        """Convert (h, w, samples) of 8 or 16 bits, located at (top, left) in the file, to (h, w, 3), or RGBA."""
        colors = values[:, :, : 1 if values.shape[2] < 3 else 3]
        alpha = values[:, :, -1] if self.alpha else None
        if values.dtype.itemsize == 2:
            found = (colors.max(initial=0), 0 if alpha is None else alpha.max(initial=0))
            self.highest = np.maximum(self.highest, found)
            check_white(str(self.path), int(self.highest[0]), self.white)
            check_white(str(self.path), int(self.highest[1]), self.opaque)
            colors = to_8_bits(colors, self.white)
            alpha = None if alpha is None else to_8_bits(alpha, self.opaque)
        elif alpha is not None and self.values.extra == PREMULTIPLIED:
            size = (values.shape[1], values.shape[0])
            divided = Image.frombytes("RGBA", size, np.ascontiguousarray(values).tobytes(), "raw", "RGBa")
            colors = np.asarray(divided)[:, :, :3]
        if self.values.photometric == WHITE_IS_ZERO:
            colors = 255 - colors
        pixels = np.broadcast_to(colors, (*colors.shape[:2], 3))
        if self.rgba and (alpha is None or self.background is None):
            return np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8) if alpha is None else alpha])
        if alpha is None or self.background is None:
            return pixels
        rows, columns = np.arange(top, top + len(pixels)), np.arange(left, left + pixels.shape[1])
        rows = self.shape[0] - 1 - rows if self.down else rows
        columns = self.shape[1] - 1 - columns if self.across else columns
        pixels = laid_on(self.background, pixels, alpha, rows, columns)
        return in_mode(pixels, "RGBA") if self.rgba else pixels


class _Plain:
    """Source of uncompressed contiguous rows."""

    def __init__(self, reader: _Reader) -> None:
        self.shape = reader.shape
        self._reader = reader

    def rows(self, top: int, bottom: int) -> Pixels:
        reader, (height, width) = self._reader, self.shape
        check_rows(top, bottom, height)
        samples = reader.page.samplesperpixel
        line = width * samples * reader.stored.itemsize
        with reader.opened() as file, _readable_errors(reader.path):
            file.seek(reader.offsets[0] + top * line)
            content = file.read((bottom - top) * line)
        content += bytes((bottom - top) * line - len(content))  # truncated, which has a note
        values = np.frombuffer(content, reader.stored).reshape(bottom - top, width, samples)
        return reader.to_rgb(values, top, 0)


class _Mirrored:
    """Source mirrored as orientation 2, 3 or 4 says."""

    def __init__(self, source: Source, reader: _Reader) -> None:
        self.shape = source.shape
        self._source = source
        self._down, self._across = -1 if reader.down else 1, -1 if reader.across else 1

    def rows(self, top: int, bottom: int) -> Pixels:
        height = self.shape[0]
        check_rows(top, bottom, height)
        if self._down == -1:
            top, bottom = height - bottom, height - top
        return self._source.rows(top, bottom)[:: self._down, :: self._across]


@contextlib.contextmanager
def _readable_errors(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises into OSError that names the file; imagecodecs has exception classes of its own."""
    try:
        yield
    except (ImportError, Refused):
        raise
    except Exception as error:
        raise OSError(f"{path} is broken ({reason_of(error)}); copy the picture again") from None

"""Open pictures as sources that are read row by row, so that gigapixel pictures fit in memory."""

from __future__ import annotations

import mmap
import os
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeGuard, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from typing_extensions import Unpack

from convnets_torch.files import open_file
from convnets_torch.images.decoding import (
    AS_IS,
    DecodedPicture,
    Picture,
    Reading,
    ReadingKeywords,
    check_kind,
    check_range,
    decode,
    decode_file,
    is_tensor,
    picture_name,
    stored_pixels,
    to_pixels,
    warn,
)
from convnets_torch.images.preprocessing import Pair, Pixels
from convnets_torch.images.rows import BLOCK_PIXELS, Bands, Preview, Resized, Source, band_of, check_rows
from convnets_torch.images.tiff import is_tiff, open_tiff
from convnets_torch.options import checked, shows

__all__ = [
    "InMemory", "OpenedPicture", "Preview", "Resized", "SlicedArray", "Source", "is_sliced", "open_picture",
    "open_source",
]  # fmt: skip

STREAMED_PIXELS = 64_000_000  # TIFF files with more pixels are read row by row


class SlicedArray(Protocol):
    """Array read by slicing: `numpy.memmap`, `zarr.Array`, `h5py.Dataset`, `dask.array.Array`, ..."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...
    def __getitem__(self, key: Any, /) -> Any: ...


Sliceable: TypeAlias = "Picture | SlicedArray"


class OpenedPicture(NamedTuple):
    """A picture that is read row by row; `notes`, `part` and `scale` are as in `DecodedPicture`."""

    source: Source
    notes: tuple[str, ...] = ()
    part: tuple[float, float] | None = None
    scale: int = 1


@shows(ReadingKeywords, Reading)
def open_source(image: Sliceable, *, exif: bool = True, **reading: Unpack[ReadingKeywords]) -> Source:
    """Open a picture for reading row by row.

    Two kinds are never held whole, and `max_pixels` does not apply to them:

    - arrays that are read by slicing: (H, W, 3) RGB or (H, W) grey, 0 to 255, uint8 or float, as for NumPy arrays. Only
      the requested rows are read, or whole chunks if the array has chunks; the pages of a `numpy.memmap` are released
      again. Floats are read once beforehand for their minimum and maximum, since no single strip shows whether white
      is 1.
    - paths of TIFF files of more than 64 million pixels, read by tifffile (extra `tiff`): grey and RGB of 8 or 16
      bits, in tiles or strips. Other kinds of TIFF are decoded whole if `max_pixels` allows it.

    Everything else is decoded at once, as `read_picture` does.

    Args:
        image: anything that `read_picture` takes, or an array that is read by slicing.
        exif: apply the rotation stored in the file's EXIF data; arrays have none.
        **reading: as for `read_picture`. With depth "auto", a file that is read row by row is read once beforehand.

    Returns:
        A source with `shape` (height, width), and `rows(top, bottom)`: (bottom - top, width, 3) uint8, RGB, 0 to 255.

    Raises:
        OSError, ValueError: as `read_picture`; or a TIFF file can be read neither row by row nor whole.
        ImportError: such a file needs tifffile or imagecodecs.

    Warns:
        PictureWarning: as `read_picture`; or a file that is read row by row has an alpha channel.

    >>> source = open_source("street.jpg")
    >>> source.shape, source.rows(100, 132).shape
    ((300, 400), (32, 400, 3))
    >>> import h5py
    >>> with h5py.File("pictures.h5", "w") as file:
    ...     pictures = file.create_dataset("street", data=source.rows(0, 300), chunks=(64, 64, 3))
    ...     open_source(pictures).rows(298, 300).shape
    (2, 400, 3)
    """
    opened = open_picture(image, Reading(exif, **checked(reading, ReadingKeywords)))
    warn(opened.notes)
    return opened.source


def open_picture(image: Sliceable, reading: Reading = AS_IS) -> OpenedPicture:
    """`open_source` for threads: return notes instead of issuing warnings."""
    if is_sliced(image):
        return OpenedPicture(_sliced(image, reading))
    if isinstance(image, str | os.PathLike):
        with open_file(image) as file:
            pixels = stored_pixels(file) if is_tiff(file) else 0
            if pixels > STREAMED_PIXELS:
                try:
                    return OpenedPicture(*open_tiff(Path(image), reading, file))
                except (ImportError, ValueError):
                    if pixels > reading.limit:
                        raise
            return _in_memory(decode_file(file, picture_name(image), reading))
    return _in_memory(decode(cast("Picture", image), reading))


def _in_memory(decoded: DecodedPicture) -> OpenedPicture:
    return OpenedPicture(InMemory(decoded.pixels), *decoded[1:])


def is_sliced(image: object) -> TypeGuard[SlicedArray]:
    """Whether `open_source` reads `image` by slicing: an array-like that is no ndarray, tensor or Pillow image."""
    if isinstance(image, np.memmap):
        return True
    if isinstance(image, np.ndarray | np.generic | Image.Image) or is_tensor(image):
        return False
    return all(hasattr(image, name) for name in ("shape", "dtype", "__getitem__"))


class InMemory:
    """Source of a decoded picture; `pixels` are (H, W, 3) uint8, RGB, 0 to 255, or RGBA for a network that reads it."""

    def __init__(self, pixels: Pixels) -> None:
        self.shape: Pair = (pixels.shape[0], pixels.shape[1])
        self.pixels = pixels

    def rows(self, top: int, bottom: int) -> Pixels:
        check_rows(top, bottom, self.shape[0])
        return self.pixels[top:bottom]


class _Sliced:
    """Source of a checked array that is read by slicing."""

    def __init__(self, array: SlicedArray) -> None:
        self.shape: Pair = (int(array.shape[0]), int(array.shape[1]))
        self._array = array
        self._map = _shared_map(array)

    def values(self, top: int, bottom: int) -> NDArray[Any]:
        """Rows as stored."""
        values = np.asarray(self._array[top:bottom])
        expected = (bottom - top, *self._array.shape[1:])
        if values.shape != expected:
            raise ValueError(f"rows {top} to {bottom} of the array are {values.shape}, not {expected}; slice it so")
        return values

    def rows(self, top: int, bottom: int) -> Pixels:
        check_rows(top, bottom, self.shape[0])
        pixels = to_pixels(self.values(top, bottom))
        if self._map is not None:
            pixels = np.array(pixels)
            self.forget()
        return pixels

    def forget(self) -> None:
        """Release the pages of a mapped file that were read; the file keeps them."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)


def _sliced(array: SlicedArray, reading: Reading) -> Source:
    dtype = np.dtype(array.dtype)
    check_kind(tuple(array.shape), dtype, "array", reading.channels)
    source = _Sliced(array)
    height, width = source.shape
    unit = _chunk_rows(array)
    if dtype != np.uint8:
        step = min(height, band_of(unit or 1, width), max(unit or 1, BLOCK_PIXELS // prod(array.shape[1:])))
        lowest, highest = np.inf, -np.inf
        for top in range(0, height, step):
            values = source.values(top, min(top + step, height))
            lowest, highest = np.minimum(lowest, values.min()), np.maximum(highest, values.max())  # NaN propagates
            source.forget()
        check_range(float(lowest), float(highest), "array")
    return source if unit is None else Bands(source.rows, source.shape, band_of(unit, width))


def _chunk_rows(array: SlicedArray) -> int | None:
    """Rows of a chunk (zarr, h5py) or of the first chunk (dask); None if the array is not chunked."""
    chunks = getattr(array, "chunks", None)
    if not chunks:
        return None
    rows = chunks[0][0] if isinstance(chunks[0], tuple) else chunks[0]
    return max(1, int(rows))


def _shared_map(array: object) -> mmap.mmap | None:
    """The mapping behind a `numpy.memmap`; None if releasing its pages would lose written data."""
    if not isinstance(array, np.memmap) or array.mode == "c" or not hasattr(mmap, "MADV_DONTNEED"):
        return None
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None

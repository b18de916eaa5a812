"""Pictures from files and arrays; the one place that decodes."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from convnets_torch.files import check_regular
from convnets_torch.preprocessing import Pixels

Picture: TypeAlias = "str | os.PathLike[str] | Image.Image | NDArray[np.uint8]"

# What Pillow raises over a broken file, depending on its format.
BROKEN = (OSError, SyntaxError, EOFError, ValueError, NotImplementedError, IndexError, OverflowError, struct.error)

# Pillow's modes whose conversion to 8-bit RGB neither clips nor guesses.
EIGHT_BIT_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")


def read_picture(source: Picture, *, exif: bool = True) -> Pixels:
    """Decode one picture.

    Args:
        source: a file, a `PIL.Image`, or an array (H, W, 3) uint8, RGB.
        exif: follow the rotation that a camera noted in the file; arrays have none.

    Returns:
        (H, W, 3) uint8, RGB, 0 to 255. Transparency is dropped, as convnets-keras did.

    Raises:
        OSError: the file is missing, a folder, or no picture, or it is broken.
        ValueError: an array of another shape or type; a picture that is too large to be meant, or that has
            more than 8 bits a channel.
    """
    if isinstance(source, np.ndarray):
        if source.ndim != 3 or source.shape[2] != 3 or source.dtype != np.uint8 or 0 in source.shape:
            raise ValueError(
                f"the array is {source.shape} {source.dtype}, but a picture is (height, width, 3) uint8, RGB, 0 to 255"
            )
        return source
    if isinstance(source, Image.Image):
        return _to_pixels(source, picture_name(source), exif)
    path = Path(source)
    check_regular(path)
    if path.stat().st_size == 0:
        raise OSError(f"{path} is empty; copy the picture again")
    try:
        with Image.open(path) as image:
            return _to_pixels(image, str(path), exif)
    except UnidentifiedImageError:
        raise OSError(f"{path} is no picture that Pillow can read; convert it to JPEG or PNG") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: {error}; raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file") from None
    except BROKEN as error:
        if str(path) in str(error):  # said already, or by the system
            raise
        raise OSError(f"{path} is broken ({str(error).rstrip('.')}); copy the picture again") from None


def picture_name(source: Picture) -> str:
    """What to call a picture in a message: its path, or "the picture"."""
    return str(source) if isinstance(source, str | os.PathLike) else "the picture"


def _to_pixels(image: Image.Image, name: str, exif: bool) -> Pixels:
    deep = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))  # Pillow would drop the lower bits
    if deep or image.mode not in EIGHT_BIT_MODES:
        raise ValueError(f"{name} has more than 8 bits a channel (mode {image.mode}); convert it to 8-bit RGB first")
    if 0 in image.size:
        raise ValueError(f"{name} is {image.height}x{image.width} pixels; give one that has some")
    try:
        upright = ImageOps.exif_transpose(image) if exif else image
        return np.asarray(upright.convert("RGB"))
    except BROKEN as error:
        raise OSError(f"{name} is broken ({str(error).rstrip('.')}); copy the picture again") from None

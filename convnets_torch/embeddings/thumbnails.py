"""Small pictures, kept with the vectors."""

from __future__ import annotations

import io

from PIL import Image

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

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
    scale = min(1.0, SIDE / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    small = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()

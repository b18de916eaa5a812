"""JPEG files before they are decoded: the rotation that a camera noted, and reading at a fraction of the scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from PIL import Image

from convnets_torch.preprocessing import Pair
from convnets_torch.profiles import profile_remark

# (height, width) in pixels that an upright picture is to keep; or a function that says so of the whole picture's.
Least: TypeAlias = "Pair | Callable[[Pair], Pair | None] | None"

END = b"\xff\xd9"  # the last bytes of a JPEG file

# EXIF's orientation -> what puts the picture upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

LYING = (Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90)


class Encoded(NamedTuple):
    """A JPEG file of grey or RGB before it is decoded; its end is there.

    Attributes:
        data: the file.
        name: what to call it in a message.
        pixels: how many it has.
        turn: what puts it upright.
        remarks: as in `images.Decoded`.
    """

    data: bytes
    name: str
    pixels: int
    turn: Image.Transpose | None = None
    remarks: tuple[str, ...] = ()


def _turn_of(image: Image.Image) -> Image.Transpose | None:
    """What puts an opened image upright, as its EXIF says; raises anything over broken data."""
    return UPRIGHT.get(image.getexif().get(0x0112, 1))


def encoded(image: Image.Image, data: bytes, name: str, exif: bool) -> Encoded | None:
    """An opened JPEG file, where it is such as any decoder understands alike."""
    if image.mode not in ("L", "RGB") or image.info.get("adobe_transform") == 0:  # 0: colours are stored as RGB
        return None
    if not data.rstrip(b"\0").endswith(END):
        return None
    turn, remarks = noted_turn(image, name, exif)
    return Encoded(data, name, image.width * image.height, turn, remarks + profile_remark(image, name))


def noted_turn(image: Image.Image, name: str, exif: bool) -> tuple[Image.Transpose | None, tuple[str, ...]]:
    """What puts an image upright if EXIF is to be followed, and a remark where it cannot be, or is not to be."""
    try:
        turn = _turn_of(image)
    except Exception:  # Pillow raises what its code happens to over broken data
        remark = f"{name} has broken EXIF data; a rotation noted there was not followed"
        return None, (remark,) if exif else ()
    return (turn, ()) if exif or turn is None else (None, (ignored_turn(name),))


def ignored_turn(name: str) -> str:
    """The remark on a picture that is taken as it is stored, not as its file says that it is to be shown."""
    return (
        f"{name} is turned or mirrored in its file, and the rotation noted there (EXIF) not followed, as the weights'"
        " preprocessing says; to have it seen upright, turn the picture itself"
    )


def reduce(image: Image.Image, least: Least, exif: bool) -> tuple[int, tuple[float, float] | None]:
    """Have a JPEG file read at a fraction of its scale, if it is large enough.

    Returns:
        1, 2, 4 or 8, by which its scale is divided; and its part of the image, as in `images.Upright`.
    """
    if least is None or image.format not in ("JPEG", "MPO"):
        return 1, None
    turn, _ = noted_turn(image, "", exif)  # the caller remarks on it
    width, height = image.size
    if callable(least):
        least = least((width, height) if turn in LYING else (height, width))
        if least is None:
            return 1, None
    tall, wide = least[::-1] if turn in LYING else least
    scale = max((scale for scale in (1, 2, 4, 8) if width >= scale * wide and height >= scale * tall), default=1)
    whole = width % scale == height % scale == 0
    if scale == 1 or (turn is not None and not whole):  # a turn would put the margin to the left or the top
        return 1, None
    if image.draft(image.mode, (width // scale, height // scale)) is None:
        return 1, None
    return scale, None if whole else (width / scale, height / scale)


def without_exif(data: bytes) -> bytearray:
    """A JPEG file whose EXIF data is called something else: torchcodec always follows a rotation noted there."""
    changed, place = bytearray(data), 2
    while place + 4 <= len(changed) and changed[place] == 0xFF and changed[place + 1] != 0xDA:  # up to the pixels
        if changed[place + 1] == 0xFF:  # filling
            place += 1
            continue
        if changed[place + 1] == 0xE1:
            changed[place + 1] = 0xEC
        place += 2 + int.from_bytes(changed[place + 2 : place + 4], "big")
    return changed

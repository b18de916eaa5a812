"""What a pixel's values mean: bit depth, transparent backgrounds, colour profiles.

Profiles are not applied. They come with untrusted pictures, LittleCMS would parse them in this process, and what the
networks were trained on was read without. What is read here are some numbers at places that are checked.
"""

from __future__ import annotations

import re
import struct
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnets_torch.images.preprocessing import Pixels
from convnets_torch.text import printable

Depth: TypeAlias = "int | str | None"  # 8 to 16 bits, "auto", or None for what the file says
Background: TypeAlias = "str | None"  # "white", "black", "checker", "#RRGGBB", or None for the colours as stored

DEPTHS = (8, 10, 12, 14, 16)  # bits that "auto" chooses from
SLIVER = 4095  # the highest value below which a picture of 16 bits is said to use little of its range
SQUARE = 16  # pixels of a side of the checker's squares
LIGHT, DARK = 255, 204  # their greys, as image viewers have them


class Refused(ValueError):
    """A sentence that is already what the caller should read."""


def check_levels(depth: Depth, background: Background) -> None:
    """Raise ValueError, in one sentence, for a depth or a background that is none."""
    if depth not in (None, "auto") and _bits(depth) not in range(8, 17):
        raise ValueError(f"depth {depth!r} is none; give 8 to 16 bits, or 'auto'")
    if background not in (None, "checker"):
        _color(background)


def said_levels(depth: Depth, background: Background) -> dict[str, Any]:
    """Those that are not the default, by name, for records of how results were made."""
    named = {"depth": depth, "background": background}
    return {name: str(value) for name, value in named.items() if value is not None}


def _bits(depth: Depth) -> int:
    return int(depth) if str(depth).isdecimal() else 0  # type: ignore[arg-type]


def _color(background: str) -> NDArray[np.uint8]:
    found = re.fullmatch("#([0-9a-fA-F]{6})", {"white": "#FFFFFF", "black": "#000000"}.get(background, str(background)))
    if found is None:
        raise ValueError(f"background {background!r} is none; give white, black, checker, or #RRGGBB as #FF8000")
    return np.frombuffer(bytes.fromhex(found[1]), np.uint8)


def white_of(name: str, highest: int, said: int, depth: Depth) -> tuple[int, tuple[str, ...]]:
    """Which value is white in a picture of 16 bits a channel, and a remark where that is doubtful.

    Args:
        name: of the picture, for messages.
        highest: its largest value.
        said: what the file says of white; 65535 where it says nothing.
        depth: as for `read_picture`.

    Raises:
        ValueError: the largest value is beyond white.

    >>> white_of("scan.tif", 4090, 65535, "auto")
    (4095, ())
    """
    if depth == "auto":
        white = said if highest <= said < 65535 else next(2**bits - 1 for bits in DEPTHS if highest < 2**bits)
    else:
        white = said if depth is None else 2 ** _bits(depth) - 1
    check_white(name, highest, white)
    if depth is not None or not 0 < highest <= SLIVER or white < 65535:
        return white, ()
    bits = next(bits for bits in DEPTHS if highest < 2**bits)
    return white, (
        f"{name} has no value above {highest:,} of 65,535; if its values have {bits} bits, say so"
        f" (depth={bits}, --depth {bits}, or auto)",
    )


def check_white(name: str, highest: int, white: int) -> None:
    """Raise ValueError when a picture has values beyond white."""
    if highest > white:
        raise Refused(
            f"{name} has values up to {highest:,}, but white is {white:,}; give a greater depth (depth=16, --depth 16)"
        )


def to_8_bits(values: NDArray[Any], white: int | NDArray[np.uint32]) -> Pixels:
    """0 to `white` -> 0 to 255, rounded."""
    return ((values.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)


def laid_on(
    background: str, pixels: Pixels, alpha: NDArray[np.uint8], rows: NDArray[Any], columns: NDArray[Any]
) -> Pixels:
    """A piece of a picture on a background.

    Args:
        background: as for `read_picture`.
        pixels: (h, w, 3), the colours as they are stored.
        alpha: (h, w), 255 is opaque.
        rows, columns: (h,) and (w,), where the piece lies in the upright picture, which places the checker's squares.
    """
    if background == "checker":
        light = (rows[:, None] // SQUARE + columns // SQUARE) % 2 == 0
        page = np.where(light, np.uint8(LIGHT), np.uint8(DARK))[:, :, None]
    else:
        page = _color(background)[None, None]
    share = alpha.astype(np.uint16)[:, :, None]
    return ((pixels * share + page * (255 - share) + 127) // 255).astype(np.uint8)


# X, Y and Z of red, green and blue under D50. Source: the ICC's profile sRGB2014.
SRGB = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7142))
NEAR = 0.02  # within which the numbers of profiles called sRGB lie
GAMMAS = (2.0, 2.5)  # that look like sRGB's curve
MOST_TAGS = 100
MOST_NAME = 60  # letters


def profile_remark(image: Image.Image, name: str) -> tuple[str, ...]:
    """A remark on an opened picture whose profile says that its RGB is not sRGB, by primaries or by curve."""
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or profile[16:20] != b"RGB " or image.mode not in ("RGB", "RGBA", "RGBX", "P"):
        return ()
    tags = _tags(profile)
    primaries = [_numbers(tags.get(key, b"")) for key in (b"rXYZ", b"gXYZ", b"bXYZ")]
    pairs = [pair for found, srgb in zip(primaries, SRGB, strict=True) for pair in zip(found, srgb, strict=True)]
    if all(abs(one - other) <= NEAR for one, other in pairs) and not _is_odd(tags.get(b"gTRC", b"")):
        return ()
    called = _name(tags.get(b"desc", b""))
    return (
        f"{name} has colours of another space than sRGB{f' ({called})' if called else ''}; they are taken as if they"
        " were sRGB's; convert the picture to sRGB for true ones",
    )


def _tags(profile: bytes) -> dict[bytes, bytes]:
    count = min(int.from_bytes(profile[128:132], "big"), MOST_TAGS)
    table = profile[132 : 132 + 12 * count]
    entries = struct.iter_unpack(">4sII", table[: len(table) // 12 * 12])
    return {key: profile[place : place + size] for key, place, size in entries}


def _numbers(tag: bytes) -> tuple[float, ...]:
    """The three numbers of a tag, 16 bits before the point and 16 behind; zeros where there are none."""
    found = struct.unpack(">3i", tag[8:20]) if tag[:4] == b"XYZ " and len(tag) >= 20 else (0, 0, 0)
    return tuple(number / 65536 for number in found)


def _is_odd(tag: bytes) -> bool:
    """Whether a curve is a power that sRGB's does not resemble; of others that is not looked into."""
    count = int.from_bytes(tag[8:12], "big")
    if tag[:4] != b"curv" or count > 1:
        return False
    gamma = int.from_bytes(tag[12:14], "big") / 256 if count else 1.0
    return not GAMMAS[0] <= gamma <= GAMMAS[1]


def _name(tag: bytes) -> str:
    """What a profile calls itself."""
    if tag[:4] == b"mluc":
        length, place = struct.unpack(">II", tag[20:28]) if len(tag) >= 28 else (0, 0)
        text = tag[place : place + min(length, 2 * MOST_NAME)].decode("utf-16-be", "replace")
    else:
        text = tag[12 : 12 + MOST_NAME].split(b"\0")[0].decode("ascii", "replace")
    return printable(text.strip("\0 "))

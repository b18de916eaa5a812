"""Interpret pixel values: bit depth, transparency and colour profiles.

Colour profiles are not applied: they come with untrusted pictures, LittleCMS would parse them in this process, and the
networks' training pictures were read without them. This module only reads a few numbers of a profile, with bounds
checked, to warn about colour spaces other than sRGB.
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
SLIVER = 4095  # a 16-bit picture without larger values gets a note that it uses little of its range
SQUARE = 16  # pixels of a side of the checker's squares
LIGHT, DARK = 255, 204  # grey levels of the checker, as in image viewers


class Refused(ValueError):
    """A ValueError whose message is ready for the user."""


def check_levels(depth: Depth, background: Background) -> None:
    """Raise ValueError for an invalid depth or background."""
    if depth not in (None, "auto") and _bits(depth) not in range(8, 17):
        raise ValueError(f"depth must be 8 to 16 bits or 'auto', got {depth!r}")
    if background not in (None, "checker"):
        _color(background)


def said_levels(depth: Depth, background: Background) -> dict[str, Any]:
    """Depth and background by name if not None, for records of how results were made."""
    named = {"depth": depth, "background": background}
    return {name: str(value) for name, value in named.items() if value is not None}


def _bits(depth: Depth) -> int:
    return int(depth) if str(depth).isdecimal() else 0  # type: ignore[arg-type]


def _color(background: str) -> NDArray[np.uint8]:
    found = re.fullmatch("#([0-9a-fA-F]{6})", {"white": "#FFFFFF", "black": "#000000"}.get(background, str(background)))
    if found is None:
        raise ValueError(f"background must be white, black, checker or a colour such as #FF8000, got {background!r}")
    return np.frombuffer(bytes.fromhex(found[1]), np.uint8)


def white_of(name: str, highest: int, declared: int, depth: Depth) -> tuple[int, tuple[str, ...]]:
    """Return the white level of a 16-bit picture, and a note if it is doubtful.

    Args:
        highest: its largest value; ValueError if it exceeds the white level.
        declared: white level that the file declares; 65535 if it declares none.

    >>> white_of("scan.tif", 4090, 65535, "auto")
    (4095, ())
    """
    if depth == "auto":
        white = declared if highest <= declared < 65535 else next(2**bits - 1 for bits in DEPTHS if highest < 2**bits)
    else:
        white = declared if depth is None else 2 ** _bits(depth) - 1
    check_white(name, highest, white)
    if depth is not None or not 0 < highest <= SLIVER or white < 65535:
        return white, ()
    bits = next(bits for bits in DEPTHS if highest < 2**bits)
    return white, (
        f"{name} has no value above {highest:,} of 65,535; if its values have {bits} bits, say so"
        f" (depth={bits}, --depth {bits}, or auto)",
    )


def check_white(name: str, highest: int, white: int) -> None:
    """Raise ValueError if values exceed the white level."""
    if highest > white:
        raise Refused(
            f"{name} has values up to {highest:,}, but white is {white:,}; give a greater depth (depth=16, --depth 16)"
        )


def to_8_bits(values: NDArray[Any], white: int | NDArray[np.uint32]) -> Pixels:
    """Scale 0 to `white` to 0 to 255, rounded."""
    return ((values.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)


def laid_on(
    background: str, pixels: Pixels, alpha: NDArray[np.uint8], rows: NDArray[Any], columns: NDArray[Any]
) -> Pixels:
    """Composite a piece (h, w, 3) of a picture with transparency `alpha` (h, w) over a background.

    `rows` (h,) and `columns` (w,) are coordinates in the upright picture, which align the checker pattern.
    """
    if background == "checker":
        light = (rows[:, None] // SQUARE + columns // SQUARE) % 2 == 0
        page = np.where(light, np.uint8(LIGHT), np.uint8(DARK))[:, :, None]
    else:
        page = _color(background)[None, None]
    share = alpha.astype(np.uint16)[:, :, None]
    return ((pixels * share + page * (255 - share) + 127) // 255).astype(np.uint8)


def shown(pixels: Pixels) -> Pixels:
    """RGB pixels for display: grey (H, W, 1) is repeated, RGBA laid on white; RGB is returned as it is.

    >>> shown(np.array([[[255, 0, 0, 51]]], np.uint8)).tolist()
    [[[255, 204, 204]]]
    """
    if pixels.shape[2] == 4:
        return laid_on("white", pixels[:, :, :3], pixels[:, :, 3], np.arange(len(pixels)), np.arange(pixels.shape[1]))
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


# XYZ of the primaries red, green and blue under D50. Source: the ICC profile sRGB2014.
SRGB = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7142))
NEAR = 0.02  # tolerance that covers the primaries of profiles called sRGB
GAMMAS = (2.0, 2.5)  # range of gammas close to sRGB's curve
MOST_TAGS = 100
MOST_NAME = 60  # letters


def profile_note(image: Image.Image, name: str) -> tuple[str, ...]:
    """Note on an opened picture whose ICC profile is not sRGB by its primaries or its tone curve."""
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
    """The three s15Fixed16 numbers of an XYZ tag; zeros if it is missing."""
    found = struct.unpack(">3i", tag[8:20]) if tag[:4] == b"XYZ " and len(tag) >= 20 else (0, 0, 0)
    return tuple(number / 65536 for number in found)


def _is_odd(tag: bytes) -> bool:
    """Whether a curve is a pure gamma far from sRGB's; other kinds of curves are not checked."""
    count = int.from_bytes(tag[8:12], "big")
    if tag[:4] != b"curv" or count > 1:
        return False
    gamma = int.from_bytes(tag[12:14], "big") / 256 if count else 1.0
    return not GAMMAS[0] <= gamma <= GAMMAS[1]


def _name(tag: bytes) -> str:
    """The description of a profile."""
    if tag[:4] == b"mluc":
        length, place = struct.unpack(">II", tag[20:28]) if len(tag) >= 28 else (0, 0)
        text = tag[place : place + min(length, 2 * MOST_NAME)].decode("utf-16-be", "replace")
    else:
        text = tag[12 : 12 + MOST_NAME].split(b"\0")[0].decode("ascii", "replace")
    return printable(text.strip("\0 "))

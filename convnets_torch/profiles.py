"""Colour profiles: whether the colours of a picture are others than sRGB's.

Profiles are not applied. They come with untrusted pictures, LittleCMS would parse them in this process, and what the
networks were trained on was read without. What is read here are some numbers at places that are checked.
"""

from __future__ import annotations

import struct

from PIL import Image

from convnets_torch.sentences import printable

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

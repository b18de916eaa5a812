"""From what a file stores to 8 bits a channel: which value is white, and what shows through transparency."""

from __future__ import annotations

import re
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from convnets_torch.preprocessing import Pixels

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

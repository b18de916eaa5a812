"""Draw text of any script into pictures: each word in the first font that has all of its letters.

Fonts are tried in this order: the one that CONVNETS_TORCH_FONT names; Pillow's own, for English; the one in this
package, for Latin, Greek and Cyrillic; then system fonts, found with fontconfig.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

SETTING = "CONVNETS_TORCH_FONT"  # environment variable: path or name of a font
OWN = Path(__file__).parent / "fonts" / "letters.ttf"
# Tried without fontconfig; Pillow looks for these file names in the system's font folders.
USUAL = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "NotoSansArabic-Regular.ttf",
         "Arial Unicode.ttf", "arialuni.ttf", "PingFang.ttc", "msyh.ttc", "segoeui.ttf", "seguiemj.ttf")  # fmt: skip
BITMAP = 109  # pixels, the only size of Noto Color Emoji
SECONDS = 5  # timeout of fontconfig
NONE = "\U0010ffff"  # in no font, so it shows the form of missing letters

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Letters:
    """A font of one size in pixels that falls back to other fonts for missing letters."""

    def __init__(self, size: float) -> None:
        self.size = size
        self.first = ImageFont.load_default(size=size)

    def getlength(self, text: str) -> float:
        """Return the width of a text in pixels."""
        fonts = ((_font(name, self.size), part) for name, part in runs(text))
        return sum(font.getlength(part) * self.scale_of(font) for font, part in fonts)

    def scale_of(self, font: Font) -> float:
        """Return the factor to resize a font's output: 1 except for bitmap fonts."""
        return float(self.size / getattr(font, "size", self.size))


class Pen(ImageDraw.ImageDraw):
    """An `ImageDraw` that also takes `Letters` as a font."""

    def __init__(self, image: Image.Image) -> None:
        super().__init__(image)
        self._page = image

    def text(  # type: ignore[override]
        self, xy: Any, text: Any, fill: Any = None, font: Any = None, anchor: str = "la", **options: Any
    ) -> None:
        """Draw a line of text, as `ImageDraw.text`, in several fonts if necessary."""
        parts = list(runs(text)) if isinstance(font, Letters) else []
        if len(parts) < 2 and all(name is None for name, _ in parts):
            super().text(xy, text, fill, font.first if isinstance(font, Letters) else font, anchor, **options)
            return
        ascent, descent = font.first.getmetrics()
        x = xy[0] - {"l": 0.0, "m": 0.5, "r": 1.0}[anchor[0]] * font.getlength(text)
        y = xy[1] + {"a": ascent, "t": ascent, "m": (ascent - descent) / 2, "s": 0, "d": -descent}[anchor[1]]
        for name, part in parts:
            each = _font(name, font.size)
            if (scale := font.scale_of(each)) != 1:
                self._pictures(each, part, (x, y - ascent), scale)
            else:  # with Raqm, keep right-to-left parts in their place
                raqm = getattr(each, "layout_engine", None) == ImageFont.Layout.RAQM
                super().text((x, y), part, fill, each, "ls", **options, direction="ltr" if raqm else None)
            x += each.getlength(part) * scale

    def _pictures(self, font: Font, text: str, place: tuple[float, float], scale: float) -> None:
        """Draw emoji of a colour bitmap font, resized."""
        *_, right, bottom = map(round, font.getbbox(text))
        drawn = Image.new("RGBA", (max(1, right), max(1, bottom)))
        ImageDraw.Draw(drawn).text((0, 0), text, font=font, embedded_color=True)
        small = drawn.resize((max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale))))
        self._page.paste(small, (round(place[0]), round(place[1])), small)


def runs(text: str) -> Iterator[tuple[str | None, str]]:
    """Split a text into (font name, part), in order; the name is None for Pillow's own font.

    Spaces belong to the word before them, and adjacent words of one font stay together, so that right-to-left scripts
    are laid out over several words.

    >>> list(runs("two words"))
    [(None, 'two words')]
    """
    before, held = None, ""
    for word in re.findall(r"\s*\S+\s*", text) or [text]:
        for name, part in _of_word(word):
            if held and name != before:
                yield before, held
                held = ""
            before, held = name, held + part
    yield before, held


def _of_word(word: str) -> list[tuple[str | None, str]]:
    letters, setting = frozenset(filter(_needs_glyph, word)), os.environ.get(SETTING, "")
    if word.isascii() and not setting:
        return [(None, word)]
    for letter in sorted(letters, reverse=True):  # the rarest first
        name = font_for(letter, setting)
        if all(has(name, each) for each in letters):
            return [(name, word)]
    parts = [(font_for(letter, setting) if _needs_glyph(letter) else None, letter) for letter in word]
    joined = parts[:1]
    for name, letter in parts[1:]:
        before, held = joined[-1]
        if name == before or not _needs_glyph(letter):
            joined[-1] = (before, held + letter)
        else:
            joined.append((name, letter))
    return joined


def _needs_glyph(letter: str) -> bool:
    """Whether a character needs a glyph: not spaces, joiners, direction marks and variation selectors."""
    return unicodedata.category(letter) not in ("Zs", "Cf", "Cc") and not 0xFE00 <= ord(letter) <= 0xFE0F


@functools.lru_cache(maxsize=20_000)
def font_for(letter: str, setting: str = "") -> str | None:
    """Return the first font that has a letter; None means Pillow's own, also if no font has it."""
    for name in (*([setting] if setting else []), None, str(OWN), *_found):
        if has(name, letter):
            return name
    for name in _of_system(letter):
        if has(name, letter):
            _found.append(name)
            return name
    return None


_found: list[str] = []  # system fonts in use


def _of_system(letter: str) -> Iterator[str]:
    """Yield system fonts that may have a letter, most likely first."""
    program = shutil.which("fc-match")
    if program is None:
        yield from USUAL
        return
    asked = [program, "-f", "%{file}\n", f"sans-serif:charset={ord(letter):x}"]
    try:
        answer = subprocess.run(asked, capture_output=True, timeout=SECONDS, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return
    yield from os.fsdecode(answer).splitlines()[:1]


@functools.lru_cache(maxsize=20_000)
def has(name: str | None, letter: str) -> bool:
    """Whether a font has a letter, that is, draws it differently from a missing one."""
    try:
        font = _font(name, 20)
    except OSError:
        return False
    return _glyph(font, letter) != _glyph(font, NONE)


def _glyph(font: Font, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


@functools.lru_cache(maxsize=64)
def _font(name: str | None, size: float) -> Font:
    """Load a font at a size, or a bitmap font at its only size; raise OSError if that fails."""
    if name is None:
        return ImageFont.load_default(size=size)
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return ImageFont.truetype(name, BITMAP)

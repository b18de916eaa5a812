"""Checks of picture files before decoding: limits on what a header may demand, TIFF tags and frame counts.

Pillow parses headers in Python, entry by entry, and allocates the pixels of some formats on opening, both without
limits, so a small file could take much time or memory.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Mapping
from typing import IO, Any, NamedTuple

from PIL import Image

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # little- and big-endian, then the same for BigTIFF
GIF = (b"GIF87a", b"GIF89a")
ICONS = (b"\0\0\1\0", b"icns")  # ICO (Windows) and ICNS (macOS)

# Maxima, unless said otherwise.
UNCHECKED = 1 << 20  # bytes of a file that is not checked: the header of a smaller one takes less than a second
SEGMENTS = 10_000  # JPEG segments before the first scan, and parts of a PSD or ICNS file
EXIF = 64  # JPEG segments with EXIF data; Pillow concatenates them again for each one
JUNK = 1 << 20  # bytes between two JPEG segments, which Pillow skips one by one
SCANS = 100  # JPEG scans, each of which updates all pixels; encoders write about ten
CHUNKS = 1000  # PNG chunks without pixels
CHUNK_BYTES = 1 << 26  # bytes of such a chunk, which is read into memory twice
CHUNK = 512  # minimum mean size in bytes of the other PNG chunks; encoders write 4,096 and more
BLOCKS = 100_000  # GIF blocks before the first frame
TAGS = 4096  # tags of a TIFF page; the same limit as tifffile's
NUMBERS = 2_000_000  # numbers in the tags of a TIFF page: offsets and sizes of a million tiles
TILE_PIXELS = 1 << 24  # pixels of a TIFF tile if the picture has fewer
TAG_BYTES = 1 << 30  # bytes of all other tags; Photoshop stores its layers in one
ICON_PIXELS = 1 << 24  # pixels of a picture in an icon
MOST_FRAMES = 1000  # frames that are counted

_NO_LENGTH = {0xD8, 0xD9, *range(0xD0, 0xD8), *range(0xF0, 0xFE)}  # JPEG markers without a length field
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_NON_NUMERIC = (2, 6, 7)  # non-numeric types of TIFF tags
WIDTH, LENGTH, TILE_WIDTH, TILE_LENGTH = 256, 257, 322, 323  # TIFF tags


def check_header(file: IO[bytes], start: bytes, size: int) -> None:
    """Refuse a file of `size` bytes, beginning with `start`, whose header would take Pillow too much time or memory.

    Raises:
        OSError: the reason, without the name of the file.
        Image.DecompressionBombError: a picture in an icon is too large.
    """
    if start.startswith(ICONS):
        _check_icon(file, start)
    elif start.startswith(TIFF):
        _check_tags(file, start)
    elif size > UNCHECKED:
        if start.startswith(b"\xff\xd8\xff"):
            _check_segments(file)
        elif start.startswith(b"\x89PNG\r\n\x1a\n"):
            _check_chunks(file, size)
        elif start.startswith(GIF):
            _check_blocks(file)
        elif start.startswith(b"8BPS"):
            _check_resources(file)
        elif re.match(rb"P[0-7CFfy]\s", start):
            _check_comments(file)


def canvas(start: bytes) -> tuple[int, int] | None:
    """(width, height) of a WebP file, whose pixels Pillow allocates on opening; None for other formats."""
    if not (start.startswith(b"RIFF") and start[8:12] == b"WEBP" and len(start) >= 30):
        return None
    kind = start[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(start[24:27], "little"), 1 + int.from_bytes(start[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(start[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", start, 26)
    return width & 0x3FFF, height & 0x3FFF


def check_scans(file: IO[bytes], image: Image.Image) -> None:
    """Refuse an opened JPEG file with too many scans, as `check_header`; `file` keeps its position."""
    place = file.tell()  # where Pillow stopped: after the header of the first scan
    channels = len(image.getbands())
    if "progressive" not in image.info:
        head = struct.pack(">HHB", 0xFFDA, 6 + 2 * channels, channels)
        file.seek(max(0, place - 8 - 2 * channels))
        if file.read(5) == head:
            file.seek(place)
            return  # the first scan has all channels, so it is the only one
    scans, before = 0, b""
    file.seek(0)
    while block := file.read(1 << 20):
        scans += (before + block).count(b"\xff\xda")
        before = b"\xff" if block.endswith(b"\xff") else b""
        if scans > SCANS:
            raise OSError(f"it has more than {SCANS} scans")
    file.seek(place)


def _check_segments(file: IO[bytes]) -> None:
    """JPEG: check the segments before the first scan."""
    place, exif = 2, 0
    for _ in range(SEGMENTS):
        file.seek(place)
        head = file.read(4)
        if len(head) < 4 or head[:2] == b"\xff\xda":
            return
        if head[0] != 0xFF or head[1] in (0, 0xFF):
            file.seek(place)
            found = re.search(rb"\xff[^\0\xff]", file.read(JUNK))
            if found is None:
                break
            place += found.start()
        elif head[1] in _NO_LENGTH:
            place += 2
        else:
            place += 2 + max(2, int.from_bytes(head[2:], "big"))
            exif += head[1] == 0xE1 and file.read(4) == b"Exif"
            if exif > EXIF:
                raise OSError(f"it has more than {EXIF} segments with EXIF data")
    raise OSError(f"no pixels begin within its first {SEGMENTS:,} segments")


def _check_chunks(file: IO[bytes], size: int) -> None:
    """PNG: check all chunks."""
    place, most, others = 8, CHUNKS + size // CHUNK, 0
    for _ in range(most):
        file.seek(place)
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            return
        length = int.from_bytes(head[:4], "big")
        if head[4:] not in (b"IDAT", b"fdAT", b"fcTL"):
            others += 1
            if others > CHUNKS or length > CHUNK_BYTES:
                raise OSError(
                    f"it holds more than {CHUNKS:,} chunks, or {CHUNK_BYTES:,} bytes in one, beside its pixels"
                )
        place += 12 + length
    raise OSError(f"it has more than {most:,} chunks")


def _check_blocks(file: IO[bytes]) -> None:
    """GIF: check the blocks before the first frame."""
    for number, kind in enumerate(_gif_blocks(file)):
        if kind == b",":
            return
        if number > BLOCKS:
            raise OSError(f"no frame begins within its first {BLOCKS:,} blocks")


def _gif_blocks(file: IO[bytes]) -> Iterator[bytes]:
    """Yield "," for each frame of a GIF file, "!" for each other block, and "" for each sub-block."""
    file.seek(0)
    head = file.read(13)
    file.seek(3 << (head[10] & 7) + 1 if len(head) == 13 and head[10] & 128 else 0, os.SEEK_CUR)
    while (kind := file.read(1)) not in (b"", b";"):
        yield kind
        if kind == b",":
            head = file.read(9)
            file.seek(1 + (3 << (head[8] & 7) + 1 if len(head) == 9 and head[8] & 128 else 0), os.SEEK_CUR)
        elif kind == b"!":
            file.seek(1, os.SEEK_CUR)
        else:
            continue
        while (length := file.read(1)) not in (b"", b"\0"):
            file.seek(length[0], os.SEEK_CUR)
            yield b""


def _check_resources(file: IO[bytes]) -> None:
    """PSD: check the image resources section."""
    file.seek(26)
    file.seek(int.from_bytes(file.read(4), "big"), os.SEEK_CUR)
    end = int.from_bytes(file.read(4), "big") + file.tell()
    for _ in range(SEGMENTS):
        if file.tell() >= end:
            return
        head = file.read(7)
        if len(head) < 7:
            return
        file.seek(head[6] | 1, os.SEEK_CUR)  # a Pascal string padded to an even length
        length = int.from_bytes(file.read(4), "big")
        file.seek(length + (length & 1), os.SEEK_CUR)
    raise OSError(f"it has more than {SEGMENTS:,} resources")


def _check_comments(file: IO[bytes]) -> None:
    """PPM: check the comments, which Pillow reads byte by byte."""
    file.seek(0)
    words = re.sub(rb"#[^\r\n]*", b"", file.read(UNCHECKED)).split(maxsplit=4)
    if len(words) < 4:
        raise OSError("its width and height are not at its beginning")


def _check_icon(file: IO[bytes], start: bytes) -> None:
    """ICO and ICNS: check the embedded pictures, which may have any size."""
    if start.startswith(b"icns"):
        place = 8
        for _ in range(SEGMENTS):
            file.seek(place)
            head = file.read(8)
            length = int.from_bytes(head[4:], "big")
            if len(head) < 8:
                return
            if length < 8:
                raise OSError("one of its parts has no length")
            _check_embedded(file, place + 8)
            place += length
        raise OSError(f"it has more than {SEGMENTS:,} parts")
    file.seek(6)
    entries = file.read(16 * int.from_bytes(start[4:6], "little"))
    for entry in range(0, len(entries) - 15, 16):
        _check_embedded(file, int.from_bytes(entries[entry + 12 : entry + 16], "little"))


def _check_embedded(file: IO[bytes], place: int) -> None:
    """Check the size of a PNG, JPEG 2000 or bitmap picture in an icon."""
    file.seek(place)
    head = file.read(256)
    if len(head) < 24:
        return
    found = head.find(b"\xff\x4f\xff\x51")
    if head.startswith(b"\x89PNG"):
        width, height = struct.unpack_from(">II", head, 16)
    elif head.startswith(b"\x28\0\0\0"):
        width, height = map(abs, struct.unpack_from("<ii", head, 4))
    elif (box := head.find(b"ihdr")) > 0 and box + 12 <= len(head):
        height, width = struct.unpack_from(">II", head, box + 4)
    elif 0 <= found <= len(head) - 24:
        width, height = struct.unpack_from(">II", head, found + 8)
    else:
        return
    if width * height > ICON_PIXELS:
        raise Image.DecompressionBombError


class _Pages:
    """Parser of the linked list of pages (IFDs) of a TIFF file."""

    def __init__(self, file: IO[bytes], start: bytes) -> None:
        self._file = file
        self._order = "<" if start.startswith(b"II") else ">"
        self._big = b"+" in start[2:4]
        self.first = self._number(start[8:16] if self._big else start[4:8])
        self.entry = 20 if self._big else 12

    def _number(self, content: bytes) -> int:
        return int.from_bytes(content, "little" if self._order == "<" else "big")

    def tags(self, place: int) -> int | None:
        """Number of tags of the page at offset `place`, leaving the file at the first; None if there is no page."""
        length = 8 if self._big else 2
        if place >= 2**63:
            return None
        self._file.seek(place)
        content = self._file.read(length)
        return self._number(content) if len(content) == length else None

    def described(self, tags: int) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield (tag, type, count, value) of the next `tags` entries; `numbers` decodes the value."""
        content = self._file.read(tags * self.entry)
        form, length = f"{self._order}HH{'Q8s' if self._big else 'I4s'}", len(content) // self.entry * self.entry
        yield from struct.iter_unpack(form, content[:length])

    def numbers(self, kind: int, count: int, value: bytes) -> list[int]:
        """The values of a tag as integers; fewer if the file is truncated."""
        size = _SIZES.get(kind, 1)
        if size * count > len(value):
            place = self._number(value)
            if place >= 2**63:
                return []
            self._file.seek(place)
            value = self._file.read(size * count)
        whole = min(count, len(value) // size) * size
        return [self._number(value[start : start + size]) for start in range(0, whole, size)]

    def after(self, tags: int) -> int | None:
        """Offset of the page after the one whose tags begin here; 0 after the last, None if truncated."""
        length = 8 if self._big else 4
        self._file.seek(tags * self.entry, os.SEEK_CUR)
        content = self._file.read(length)
        return self._number(content) if len(content) == length else None


def _check_tags(file: IO[bytes], start: bytes) -> None:
    """TIFF: check the tags of the first page."""
    pages = _Pages(file, start)
    tags = pages.tags(pages.first) or 0
    if tags > TAGS:
        raise OSError(f"its first page has {tags:,} tags, more than {TAGS:,}")
    numbers = others = 0
    sides = dict.fromkeys((WIDTH, LENGTH, TILE_WIDTH, TILE_LENGTH), 0)
    for tag, kind, count, value in pages.described(tags):
        if tag in sides and kind not in _NON_NUMERIC:
            sides[tag] = max(pages.numbers(kind, 1, value), default=0)
        if kind in _NON_NUMERIC:
            others += count * _SIZES[kind]
        elif kind in _SIZES:
            numbers += count
    tile = sides[TILE_WIDTH] * sides[TILE_LENGTH]
    if tile > max(TILE_PIXELS, sides[WIDTH] * sides[LENGTH]):
        raise OSError(f"it has tiles of {tile:,} pixels, more than the picture")
    if numbers > NUMBERS or others > TAG_BYTES:
        raise OSError(f"the tags of its first page hold {numbers:,} numbers and {others:,} bytes")


class TiffValues(NamedTuple):
    """Tags of the first page of a TIFF file that define its values; the defaults are those of TIFF 6.0.

    Shared by both readers, Pillow and tifffile, which do not agree on all of these.

    Attributes:
        width, height: in pixels.
        bits: bits per sample.
        photometric: 0 WhiteIsZero, 1 BlackIsZero, 2 RGB, ...
        orientation: as in EXIF.
        samples: samples per pixel.
        planar: 2 if the channels are stored in separate planes.
        highest: MaxSampleValue; 0 if missing.
        extra: kind of an extra channel: 1 premultiplied alpha, 2 other alpha.
        format: 1 unsigned integers, 2 signed integers, 3 floats.
    """

    width: int = 0
    height: int = 0
    bits: int = 1
    photometric: int = 0
    orientation: int = 1
    samples: int = 1
    planar: int = 1
    highest: int = 0
    extra: int = 0
    format: int = 1

    @property
    def white(self) -> int:
        """White level of 16-bit samples (black level if 0 is white): MaxSampleValue, such as 4,095, or 65,535.

        MaxSampleValue can also be the largest value that occurs, so it is used only if it is 2**n - 1.
        """
        deep = 255 <= self.highest < 65535 and self.highest & (self.highest + 1) == 0
        return self.highest if self.bits == 16 and deep else 65535

    @property
    def unknown(self) -> str | None:
        """Why the values cannot be interpreted, or no reader decodes them correctly; None if they can."""
        if self.format not in (1, 4) or (self.bits > 16 and self.photometric in (0, 1, 2)):
            return f"has pixels of {self.bits} bits ({self.numbers}), whose range is unknown; {_TO_8_BITS}"
        if self.bits > 8 and self.planar == 2 and self.samples > 1:
            return f"has channels of {self.bits} bits that are stored one after the other (planar); {_TO_8_BITS}"
        return None

    @property
    def numbers(self) -> str:
        return _NUMBERS.get(self.format, "numbers of an unknown kind")

    def __str__(self) -> str:
        colors = _COLORS.get(self.photometric, f"colours of kind {self.photometric}")
        channels = f"{self.samples} channel{'s' * (self.samples != 1)}"
        return f"{colors}, {channels} of {self.bits} bits, {self.numbers}"


_NUMBERS = {1: "unsigned integers", 2: "signed integers", 3: "floats", 4: "of no kind", 5: "complex integers",
              6: "complex floats"}  # fmt: skip
_COLORS = {0: "grey from white to black", 1: "grey", 2: "RGB", 3: "a palette", 4: "a mask", 5: "CMYK", 6: "YCbCr",
               8: "CIELAB", 9: "ICCLAB", 10: "ITULAB", 32803: "a sensor's colour filter", 32844: "LogL",
               32845: "LogLuv", 34892: "linear raw"}  # fmt: skip
_TO_8_BITS = "scale them to 0 to 255 and give an array, or save 8-bit RGB or grey"
_FIELDS = {WIDTH: "width", LENGTH: "height", 258: "bits", 262: "photometric", 274: "orientation", 277: "samples",
           281: "highest", 284: "planar", 338: "extra", 339: "format"}  # fmt: skip


def tiff_values_of(tags: Mapping[int, Any]) -> TiffValues:
    """TiffValues from Pillow's tags of an opened picture, keyed by tag number."""
    found = {name: tags[tag] for tag, name in _FIELDS.items() if tag in tags}
    return TiffValues(**{name: max(value) if isinstance(value, tuple) else value for name, value in found.items()})


def tiff_values(file: IO[bytes]) -> TiffValues:
    """TiffValues of the first page of a TIFF file; changes the position of `file`."""
    file.seek(0)
    chain = _Pages(file, file.read(16))
    tags = chain.tags(chain.first) or 0
    found = {}
    for tag, kind, count, value in list(chain.described(min(tags, TAGS))):
        if tag in _FIELDS and kind in (1, 3, 4, 16) and 0 < count <= 8:
            found[_FIELDS[tag]] = max(chain.numbers(kind, count, value), default=0)
    return TiffValues(**found)


def significant_bits(file: IO[bytes]) -> int:
    """Significant bits of a PNG file (sBIT), or 16; changes the position of `file`."""
    place = 8
    for _ in range(CHUNKS):
        file.seek(place)
        head = file.read(8)
        length = int.from_bytes(head[:4], "big")
        if head[4:] == b"sBIT":
            return max(file.read(min(length, 3)), default=16) or 16
        if head[4:] in (b"IDAT", b"PLTE", b""):
            break
        place += 12 + length
    return 16


def frames(file: IO[bytes], image: Image.Image, *, allow_truncated: bool = False) -> int:
    """Number of frames or pages of an opened file; 1,001 for more than 1,000.

    Raises:
        OSError: a TIFF page is missing; the message does not name the file.
    """
    if image.format == "TIFF":
        return pages(file, allow_truncated=allow_truncated)
    if image.format == "GIF":
        found = 0
        for number, kind in enumerate(_gif_blocks(file)):
            found += kind == b","
            if found > MOST_FRAMES or number > 10 * BLOCKS:
                break
        return found
    return min(int(getattr(image, "n_frames", 1)), MOST_FRAMES + 1)


def frames_note(name: str, count: int) -> tuple[str, ...]:
    """Note on a file of several frames, of which only the first is read; empty for one."""
    number = f"more than {MOST_FRAMES:,}" if count > MOST_FRAMES else count
    return (f"{name} has {number} frames or pages; the first was read",) if count > 1 else ()


def pages(file: IO[bytes], *, allow_truncated: bool = False) -> int:
    """Number of pages of a TIFF file, as `frames`; pages that form a cycle are counted once."""
    file.seek(0)
    chain = _Pages(file, file.read(16))
    place: int | None = chain.first
    seen: set[int] = set()
    while place and place not in seen and len(seen) <= MOST_FRAMES:
        tags = chain.tags(place)
        following = None if tags is None or tags > TAGS else chain.after(tags)
        if following is None:
            if allow_truncated:
                break
            raise OSError(f"page {len(seen) + 1} is missing; the file is truncated")
        seen.add(place)
        place = following
    return len(seen)

"""Picture files before they are decoded: bounds on what a header may ask for, and how many frames a file has.

Pillow walks through headers in Python, entry after entry, and some formats make room for their pixels while they are
opened; neither has a limit that a small file could not reach.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Mapping
from typing import IO, Any, NamedTuple

from PIL import Image

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # both orders of bytes, and both again of BigTIFF
GIF = (b"GIF87a", b"GIF89a")
ICONS = (b"\0\0\1\0", b"icns")  # Windows' and macOS's

LOOKED_THROUGH = 1 << 20  # bytes; what a smaller file can ask for in its header takes no second
SEGMENTS = 10_000  # of a JPEG file before its pixels, and parts of a PSD file
EXIF = 64  # of these segments with EXIF data, which Pillow puts together anew each time
JUNK = 1 << 20  # bytes between two segments, which Pillow skips one by one
SCANS = 100  # of a JPEG file, each of which goes over all pixels; encoders write about ten
CHUNKS = 1000  # of a PNG file that hold no pixels
CHUNK_BYTES = 1 << 26  # of such a chunk, which is read into memory twice
CHUNK = 512  # bytes that its other chunks hold at least, on average; encoders write 4,096 and more
BLOCKS = 100_000  # of a GIF file before its first frame
TAGS = 4096  # of a page of a TIFF file, as tifffile says too
NUMBERS = 2_000_000  # in its tags: the places and sizes of a million tiles
TILE_PIXELS = 1 << 24  # of a tile, where the picture has less
TAG_BYTES = 1 << 30  # of everything else in its tags: Photoshop puts its layers there
ICON_PIXELS = 1 << 24  # of a picture within an icon
MOST_FRAMES = 1000  # that are counted

_NO_LENGTH = {0xD8, 0xD9, *range(0xD0, 0xD8), *range(0xF0, 0xFE)}  # markers of JPEG files that stand alone
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_BYTES = (2, 6, 7)  # types of TIFF's tags that are no numbers
WIDTH, LENGTH, TILE_WIDTH, TILE_LENGTH = 256, 257, 322, 323  # numbers of its tags


def check_header(file: IO[bytes], start: bytes, size: int) -> None:
    """Refuse a file whose header would keep Pillow busy, or have it make room for more than it says.

    Args:
        file: it is left anywhere.
        start: its first 64 bytes.
        size: its length.

    Raises:
        OSError: a reason, which does not name the file.
        Image.DecompressionBombError: a picture inside is larger than an icon's.
    """
    if start.startswith(ICONS):
        _check_icon(file, start)
    elif start.startswith(TIFF):
        _check_tags(file, start)
    elif size > LOOKED_THROUGH:
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
    """(width, height) of a WebP file, of which Pillow makes room for all pixels when it opens it; None of others."""
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
    """Refuse an opened JPEG file that goes over its pixels again and again; `file` is left where it was.

    Raises:
        OSError: a reason, which does not name the file.
    """
    place = file.tell()  # where Pillow stopped: behind the head of the first scan
    channels = len(image.getbands())
    if "progressive" not in image.info:
        head = struct.pack(">HHB", 0xFFDA, 6 + 2 * channels, channels)
        file.seek(max(0, place - 8 - 2 * channels))
        if file.read(5) == head:
            file.seek(place)
            return  # all channels are in the first scan, which is then the only one
    scans, before = 0, b""
    file.seek(0)
    while block := file.read(1 << 20):
        scans += (before + block).count(b"\xff\xda")
        before = b"\xff" if block.endswith(b"\xff") else b""
        if scans > SCANS:
            raise OSError(f"it goes over its pixels in more than {SCANS} scans")
    file.seek(place)


def _check_segments(file: IO[bytes]) -> None:
    """JPEG: the segments before the first scan."""
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
    """PNG: its chunks, of pixels and of others."""
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
    """GIF: the blocks before the first frame."""
    for number, kind in enumerate(_gif_blocks(file)):
        if kind == b",":
            return
        if number > BLOCKS:
            raise OSError(f"no frame begins within its first {BLOCKS:,} blocks")


def _gif_blocks(file: IO[bytes]) -> Iterator[bytes]:
    """What stands in a GIF file: "," where a frame begins, "!" for each other block, and "" for a part of either."""
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
    """PSD: the parts of its section of resources."""
    file.seek(26)
    file.seek(int.from_bytes(file.read(4), "big"), os.SEEK_CUR)
    end = int.from_bytes(file.read(4), "big") + file.tell()
    for _ in range(SEGMENTS):
        if file.tell() >= end:
            return
        head = file.read(7)
        if len(head) < 7:
            return
        file.seek(head[6] | 1, os.SEEK_CUR)  # a name, with its length of an even number of bytes
        length = int.from_bytes(file.read(4), "big")
        file.seek(length + (length & 1), os.SEEK_CUR)
    raise OSError(f"it has more than {SEGMENTS:,} resources")


def _check_comments(file: IO[bytes]) -> None:
    """PPM: comments, which Pillow reads letter by letter."""
    file.seek(0)
    words = re.sub(rb"#[^\r\n]*", b"", file.read(LOOKED_THROUGH)).split(maxsplit=4)
    if len(words) < 4:
        raise OSError("its width and height do not stand at its beginning")


def _check_icon(file: IO[bytes], start: bytes) -> None:
    """ICO and ICNS: the pictures inside, which may be of any size."""
    if start.startswith(b"icns"):
        place = 8
        for _ in range(SEGMENTS):
            file.seek(place)
            head = file.read(8)
            length = int.from_bytes(head[4:], "big")
            if len(head) < 8:
                return
            if length < 8:
                raise OSError("a part of it has no length")
            _check_inside(file, place + 8)
            place += length
        raise OSError(f"it has more than {SEGMENTS:,} parts")
    file.seek(6)
    entries = file.read(16 * int.from_bytes(start[4:6], "little"))
    for entry in range(0, len(entries) - 15, 16):
        _check_inside(file, int.from_bytes(entries[entry + 12 : entry + 16], "little"))


def _check_inside(file: IO[bytes], place: int) -> None:
    """A PNG file, JPEG 2000 file or bitmap within an icon."""
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
    """Where the pages of a TIFF file lie, which form a chain."""

    def __init__(self, file: IO[bytes], start: bytes) -> None:
        self._file = file
        self._order = "<" if start.startswith(b"II") else ">"
        self._big = b"+" in start[2:4]
        self.first = self._number(start[8:16] if self._big else start[4:8])
        self.entry = 20 if self._big else 12

    def _number(self, content: bytes) -> int:
        return int.from_bytes(content, "little" if self._order == "<" else "big")

    def tags(self, place: int) -> int | None:
        """How many tags the page at a place has, whose first is read next; None where there is no page."""
        length = 8 if self._big else 2
        if place >= 2**63:
            return None
        self._file.seek(place)
        content = self._file.read(length)
        return self._number(content) if len(content) == length else None

    def described(self, tags: int) -> Iterator[tuple[int, int, int, bytes]]:
        """(number, type, count, value) of so many tags that are read next, the value as `numbers` takes it."""
        content = self._file.read(tags * self.entry)
        form, length = f"{self._order}HH{'Q8s' if self._big else 'I4s'}", len(content) // self.entry * self.entry
        yield from struct.iter_unpack(form, content[:length])

    def numbers(self, kind: int, count: int, value: bytes) -> list[int]:
        """The values of a tag, as integers; fewer where the file ends before them."""
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
        """Where the page lies that follows the one whose tags begin here; 0 after the last, None at the end."""
        length = 8 if self._big else 4
        self._file.seek(tags * self.entry, os.SEEK_CUR)
        content = self._file.read(length)
        return self._number(content) if len(content) == length else None


def _check_tags(file: IO[bytes], start: bytes) -> None:
    """TIFF: the tags of its first page."""
    pages = _Pages(file, start)
    tags = pages.tags(pages.first) or 0
    if tags > TAGS:
        raise OSError(f"its first page has {tags:,} tags, more than {TAGS:,}")
    numbers = others = 0
    sides = dict.fromkeys((WIDTH, LENGTH, TILE_WIDTH, TILE_LENGTH), 0)
    for tag, kind, count, value in pages.described(tags):
        if tag in sides and kind not in _BYTES:
            sides[tag] = max(pages.numbers(kind, 1, value), default=0)
        if kind in _BYTES:
            others += count * _SIZES[kind]
        elif kind in _SIZES:
            numbers += count
    tile = sides[TILE_WIDTH] * sides[TILE_LENGTH]
    if tile > max(TILE_PIXELS, sides[WIDTH] * sides[LENGTH]):
        raise OSError(f"it has tiles of {tile:,} pixels, more than the picture")
    if numbers > NUMBERS or others > TAG_BYTES:
        raise OSError(f"the tags of its first page hold {numbers:,} numbers and {others:,} bytes")


class TiffValues(NamedTuple):
    """What the first page of a TIFF file says about its values; the defaults are those of TIFF 6.0.

    One statement for both readers, Pillow and tifffile, which do not agree on all of these.

    Attributes:
        width, height: in pixels.
        bits: of a value.
        photometric: how values are colours: 0 is white, 1 black, 2 RGB, ...
        orientation: as EXIF counts.
        samples: values of a pixel.
        planar: 2 where the channels are stored one after the other.
        highest: the largest value, as the file says; 0 where it does not.
        extra: what a further channel is: 1 is transparency with which the colours were multiplied, 2 other.
        format: 1 is unsigned integers, 2 signed ones, 3 floats.
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
        """What white is where a value has 16 bits, or black where 0 is white: 4,095 in a file that says so, or 65,535.

        MaxSampleValue may also be the largest value that happens to occur. It is followed where it is 2**n - 1.
        """
        deep = 255 <= self.highest < 65535 and self.highest & (self.highest + 1) == 0
        return self.highest if self.bits == 16 and deep else 65535

    @property
    def unknown(self) -> str | None:
        """Why nobody can say what the values mean, or no reader gives them rightly; None otherwise."""
        if self.format not in (1, 4) or (self.bits > 16 and self.photometric in (0, 1, 2)):
            return f"has pixels of {self.bits} bits ({self.numbers}), whose range nobody knows; {_TO_8_BITS}"
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
    """The same of tags by their numbers, as Pillow gives those of a picture that it opened."""
    found = {name: tags[tag] for tag, name in _FIELDS.items() if tag in tags}
    return TiffValues(**{name: max(value) if isinstance(value, tuple) else value for name, value in found.items()})


def tiff_values(file: IO[bytes]) -> TiffValues:
    """What the first page of a TIFF file says about its values; `file` is left anywhere."""
    file.seek(0)
    chain = _Pages(file, file.read(16))
    tags = chain.tags(chain.first) or 0
    found = {}
    for tag, kind, count, value in list(chain.described(min(tags, TAGS))):
        if tag in _FIELDS and kind in (1, 3, 4, 16) and 0 < count <= 8:
            found[_FIELDS[tag]] = max(chain.numbers(kind, count, value), default=0)
    return TiffValues(**found)


def significant_bits(file: IO[bytes]) -> int:
    """How many bits of a channel a PNG file says are significant (sBIT), or 16; `file` is left anywhere."""
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
    """How many frames or pages an opened GIF or TIFF file has, or another whose header says it; 1,001 for more.

    Raises:
        OSError: a reason, which does not name the file: a page that is said to follow is not there.
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


def pages(file: IO[bytes], *, allow_truncated: bool = False) -> int:
    """As `frames`, of a TIFF file; pages that form a circle are counted once."""
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
            raise OSError(f"page {len(seen) + 1} is not there; the file is truncated")
        seen.add(place)
        place = following
    return len(seen)

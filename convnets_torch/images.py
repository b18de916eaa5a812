"""Pictures from files, arrays and tensors; the one place that decodes."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from convnets_torch.arrays import from_array, from_tensor, is_tensor
from convnets_torch.files import check_regular
from convnets_torch.jpeg import BROKEN, Encoded, Least, encoded, noted_turn, reduce
from convnets_torch.preprocessing import Pixels

if TYPE_CHECKING:
    import torch

Picture: TypeAlias = "str | os.PathLike[str] | IO[bytes] | Image.Image | NDArray[Any] | torch.Tensor"

MAX_PIXELS = 178_956_970  # half a gigabyte of RGB; the number at which Pillow speaks of a decompression bomb

# Pillow's modes whose conversion to 8-bit RGB neither clips nor guesses.
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")

# Formats whose further frames are other pictures. MPO (a camera's preview or depth beside the photograph) and
# PSD (the layers of what was read) hold one picture.
SEQUENCES = ("GIF", "PNG", "WEBP", "AVIF", "TIFF", "FLI", "DCX", "IM", "MIC", "SPIDER")

# Pillow takes the high byte of 16-bit colour. Told that the bytes are the other way round, it takes the low one.
_OTHER_BYTE = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}

# Kinds that Pillow may not read, by (offset, first bytes): what they are called, and the way out.
_TO_JPEG = "convert it to JPEG or PNG"
_NOT_READ = {
    (4, b"ftypavif"): ("AVIF", f"Pillow reads it from 11.3 on; upgrade Pillow, or {_TO_JPEG}"),
    (0, b"\xff\x0a"): ("JPEG XL", _TO_JPEG),
    (0, b"\0\0\0\x0cJXL "): ("JPEG XL", _TO_JPEG),
} | {
    (4, b"ftyp" + brand): ("HEIC", f"{_TO_JPEG}, or in Python call pillow_heif.register_heif_opener() first")
    for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
}


class PictureWarning(UserWarning):
    """What was done with a picture that its owner may not expect; the message names the picture."""


class Decoded(NamedTuple):
    """A decoded picture.

    Attributes:
        pixels: (H, W, 3) uint8, RGB, 0 to 255.
        remarks: what `read_picture` would warn about.
        part, scale: as in `Upright`.
    """

    pixels: Pixels
    remarks: tuple[str, ...] = ()
    part: tuple[float, float] | None = None
    scale: int = 1


class Upright(NamedTuple):
    """A decoded picture before it becomes an array, which costs a copy.

    Attributes:
        image: of mode RGB, turned as wanted.
        remarks: as in `Decoded`.
        part: (width, height) in pixels of the image that the picture covers, from its top left; None for all of it. A
            JPEG file read at a fraction of its scale ends within a pixel where its sides are no multiples.
        scale: by which its sides were divided.
    """

    image: Image.Image
    remarks: tuple[str, ...] = ()
    part: tuple[float, float] | None = None
    scale: int = 1


class Reading(NamedTuple):
    """How pictures are decoded.

    Attributes:
        exif, max_pixels, allow_truncated: as for `read_picture`.
        least: (height, width) in pixels of the upright picture: JPEG files are read at 1/2, 1/4 or 1/8 of their scale
            where both sides stay at least so long; or a function that says it of the whole picture's (height, width).
            None for the whole scale.
        jpeg: decodes the bytes of a whole JPEG file to (H, W, 3) in place of Pillow, or says by None that it cannot.
        encoded: whether `open_encoded` leaves JPEG files as they are.
    """

    exif: bool = True
    max_pixels: int | None = None
    allow_truncated: bool = False
    least: Least = None
    jpeg: Callable[[bytes], Pixels | None] | None = None
    encoded: bool = False


def read_picture(
    source: Picture, *, exif: bool = True, max_pixels: int | None = None, allow_truncated: bool = False
) -> Pixels:
    """Decode one picture, whatever its file is called: the content decides.

    Files of 16-bit grey or colour are scaled to 8 bits (65535 becomes 255). Transparency is dropped and the colours
    under it taken as they are stored, as convnets-keras, Keras and torchvision do; of several frames or pages the
    first is read; both with a warning. Colour profiles are not applied.

    Args:
        source: a file's path, an open binary file, a `PIL.Image`, an array (H, W, 3) RGB or (H, W) grey, or a
            tensor (3, H, W) RGB. Arrays and tensors hold 0 to 255, as uint8 or as floats, which are rounded.
        exif: follow the rotation that a camera noted in the file; arrays have none.
        max_pixels: refuse a file of more pixels than so many; 178,956,970 by default.
        allow_truncated: read what is there of a file whose end is missing, with a warning.

    Returns:
        (H, W, 3) uint8, RGB, 0 to 255.

    Raises:
        OSError: the file is missing, a folder, or no picture, or it is broken or truncated.
        ValueError: an array or tensor of another shape, type or range; a picture that has more than `max_pixels`,
            or whose values have no fixed range (32-bit integers and floats).

    Warns:
        PictureWarning: transparency, further frames, broken EXIF data, or a missing end.

    >>> read_picture(Image.new("L", (2, 1), 77)).tolist()
    [[[77, 77, 77], [77, 77, 77]]]
    """
    decoded = decode(source, exif=exif, max_pixels=max_pixels, allow_truncated=allow_truncated)
    warn(decoded.remarks)
    return decoded.pixels


def warn(remarks: tuple[str, ...]) -> None:
    """Raise what was said about a picture as warnings at the caller's caller."""
    for remark in remarks:
        warnings.warn(remark, PictureWarning, stacklevel=3)


def decode(
    source: Picture,
    *,
    exif: bool = True,
    max_pixels: int | None = None,
    allow_truncated: bool = False,
    least: Least = None,
) -> Decoded:
    """`read_picture` for threads: remarks are returned, not warned about; `least` is as in `Reading`."""
    if isinstance(source, np.ndarray):
        return Decoded(from_array(source))
    if is_tensor(source):
        return Decoded(from_tensor(source))
    found = open_upright(source, Reading(exif, max_pixels, allow_truncated, least))
    return Decoded(np.asarray(found.image), *found[1:])


def open_upright(source: Picture, reading: Reading) -> Upright:
    """Decode one picture to an image, for threads; errors are those of `read_picture`.

    >>> open_upright(Image.new("L", (2, 1)), Reading()).image.mode
    'RGB'
    """
    found = open_encoded(source, reading._replace(encoded=False))
    assert isinstance(found, Upright)
    return found


def open_encoded(source: Picture, reading: Reading) -> Upright | Encoded:
    """`open_upright`, but where `reading.encoded` says so, JPEG files are left to another decoder.

    That one may refuse, and then `decode_encoded` reads the same bytes. Files whose end is missing, of four colours, or
    with colours that are stored as RGB are decoded here.
    """
    if isinstance(source, np.ndarray):
        return Upright(Image.fromarray(from_array(source)))
    if is_tensor(source):
        return Upright(Image.fromarray(from_tensor(source)))
    if TYPE_CHECKING:  # a TypeGuard does not narrow what is left
        assert not isinstance(source, torch.Tensor)
    name = picture_name(source)
    if isinstance(source, Image.Image):
        with _refusing(name):
            return _upright(source, name, Reading(reading.exif))
    with _opened(source) as file:
        return _read(file, name, reading)


def decode_encoded(found: Encoded, reading: Reading) -> Upright:
    """Decode here what `open_encoded` left to another decoder."""
    decoded = _read(io.BytesIO(found.data), found.name, reading._replace(encoded=False))
    assert isinstance(decoded, Upright)
    return decoded


def _read(file: IO[bytes], name: str, reading: Reading) -> Upright | Encoded:
    if not file.read(1):
        raise OSError(f"{name} is empty; copy the picture again")
    try:
        with _refusing(name, file):
            return _decode_file(file, name, reading)
    except OSError:
        if not reading.allow_truncated:
            raise
        with _refusing(name, file), _switched(ImageFile, "LOAD_TRUNCATED_IMAGES", True):
            found = _decode_file(file, name, reading)
        remark = f"{name} is truncated or damaged; what could not be read of it is black or grey"
        return found._replace(remarks=(remark, *found.remarks))


def picture_name(source: object) -> str:
    """What to call a picture in a message: its path, "standard input", or "the picture"."""
    if isinstance(source, str | os.PathLike):
        return str(source)
    return "standard input" if getattr(source, "name", None) == "<stdin>" else "the picture"


def _opened(source: str | os.PathLike[str] | IO[bytes]) -> IO[bytes]:
    if not isinstance(source, str | os.PathLike):
        return io.BytesIO(source.read())  # standard input cannot seek
    check_regular(Path(source))
    return Path(source).open("rb")


def _decode_file(file: IO[bytes], name: str, reading: Reading) -> Upright | Encoded:
    image = _open(file)
    pixels = image.width * image.height
    most = MAX_PIXELS if reading.max_pixels is None else reading.max_pixels
    if pixels > most:
        raise _Refused(
            f"{name} has {pixels:,} pixels ({image.height}x{image.width}), more than {most:,};"
            f" if you trust the file, allow {pixels} (max_pixels, --max-pixels)"
        )
    bomb = Image.MAX_IMAGE_PIXELS is None or pixels > Image.MAX_IMAGE_PIXELS
    with _switched(Image, "MAX_IMAGE_PIXELS", None) if bomb else contextlib.nullcontext():
        low = _open_low_bytes(file, image, name) if not image.mode.startswith("I") else None
        decoded = None
        if reading.encoded and image.format == "JPEG" and (found := encoded(image, _whole(file), name, reading.exif)):
            return found
        if reading.jpeg is not None and image.format == "JPEG" and image.mode in ("L", "RGB"):
            decoded = reading.jpeg(_whole(file))
        return _upright(image, name, reading, low, decoded)


def stored_pixels(path: Path) -> int:
    """How many pixels a file's header says that it has; 0 where Pillow cannot tell, and decoding says why."""
    with path.open("rb") as file:
        try:
            image = _open(file)
        except BROKEN:
            return 0
        return image.width * image.height


def _open(file: IO[bytes]) -> Image.Image:
    """`Image.open` without its own limit on pixels: it reads the header, and the caller knows a better sentence."""
    with _switched(Image, "MAX_IMAGE_PIXELS", None):
        file.seek(0)
        return Image.open(file)


def _open_low_bytes(file: IO[bytes], image: Image.Image, name: str) -> Image.Image | None:
    """The same picture with the low byte of each 16-bit channel; None where channels have 8 bits."""
    if not _is_deep(image):
        return None
    low = _open(io.BytesIO(_whole(file)))
    tiles = []
    for tile in low.tile:  # type: ignore[attr-defined]
        mode = tile.args if isinstance(tile.args, str) else tile.args[0]
        kind, _, bits = mode.partition(";")
        if bits not in _OTHER_BYTE or kind not in ("RGB", "RGBX", "RGBA", "CMYK"):
            raise _deep(name, mode)
        other = f"{kind};{_OTHER_BYTE[bits]}"
        tiles.append(tile._replace(args=other if isinstance(tile.args, str) else (other, *tile.args[1:])))
    low.tile = tiles  # type: ignore[attr-defined]
    return low


def _whole(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _upright(
    image: Image.Image, name: str, reading: Reading, low: Image.Image | None = None, decoded: Pixels | None = None
) -> Upright:
    """Decode an opened image; `low` has the low bytes of its 16-bit channels, `decoded` its pixels, if another did."""
    if 0 in image.size:
        raise _Refused(f"{name} is {image.height}x{image.width} pixels; give one that has some")
    remarks = []
    frames = getattr(image, "n_frames", 1) if image.format in SEQUENCES else 1
    if frames > 1 and image.tell() == 0:
        remarks.append(f"{name} has {frames} frames or pages; the first was read")
    highest = _highest(image, name) if low is None else None
    part, scale = None, 1
    if decoded is None:
        scale, part = reduce(image, reading.least, reading.exif)
        image.load()
    turn, said = noted_turn(image, name, reading.exif)
    remarks.extend(said)
    if decoded is not None:
        image = Image.fromarray(decoded)
    elif low is not None:
        high_bytes, low_bytes = np.asarray(image, np.uint16), np.asarray(low, np.uint16)
        image = Image.fromarray(to_8_bits(high_bytes * np.uint16(256) + low_bytes, 65535), image.mode)
    elif highest is not None:
        image = Image.fromarray(to_8_bits(np.asarray(image), highest))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "RGBa" or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("LA", "PA", "RGBA") and np.asarray(image.getchannel("A")).min() < 255:
        remarks.append(f"{name} is partly transparent; transparency was dropped, the colours under it taken as stored")
    return Upright(image if image.mode == "RGB" else image.convert("RGB"), tuple(remarks), part, scale)


def _highest(image: Image.Image, name: str) -> int | None:
    """What white is in a picture of deep grey; None in one of 8 bits a channel. ValueError where nobody knows."""
    raw = [str(tile[3]) for tile in getattr(image, "tile", ())]
    if image.mode.startswith("I;16"):
        return 4095 if any("I;12" in mode for mode in raw) else 65535
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        return 65535
    if image.mode in ("I", "F"):
        raise _Refused(
            f"{name} has pixels of 32 bits (mode {image.mode}), whose range nobody knows;"
            " scale them to 0 to 255 and give an array, or save 8-bit grey"
        )
    if image.mode not in EIGHT_BIT_MODES or _is_deep(image):
        raise _deep(name, raw[0] if raw else image.mode)
    return None


def _is_deep(image: Image.Image) -> bool:
    return any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def to_8_bits(values: NDArray[Any], highest: int) -> Pixels:
    """0 to `highest` -> 0 to 255, rounded."""
    return ((values.astype(np.uint32) * 255 + highest // 2) // highest).astype(np.uint8)


class _Refused(ValueError):
    """A sentence that is already what the caller should read."""


def _deep(name: str, mode: str) -> _Refused:
    return _Refused(f"{name} has more than 8 bits a channel ({mode}), of a kind that is not read; save it as 8-bit RGB")


@contextlib.contextmanager
def _refusing(name: str, file: IO[bytes] | None = None) -> Iterator[None]:
    """Pillow's exceptions as sentences that name the picture."""
    try:
        yield
    except _Refused as error:
        raise ValueError(str(error)) from None
    except UnidentifiedImageError:
        start = _whole(file)[:16] if file else b""
        for (offset, first), (kind, way_out) in _NOT_READ.items():
            if start.startswith(first, offset):
                raise OSError(f"{name} is {kind}, which this Pillow does not read; {way_out}") from None
        raise OSError(f"{name} is no picture that Pillow can read; convert it to JPEG or PNG") from None
    except Image.DecompressionBombError:  # inside an icon, for instance
        raise ValueError(f"{name} holds a picture larger than its header says; convert it to JPEG or PNG") from None
    except BROKEN as error:
        way_out = "copy the picture again"
        if "truncated" in str(error):
            way_out += ", or read what is there (allow_truncated, --allow-truncated)"
        raise OSError(f"{name} is broken ({str(error).rstrip('.')}); {way_out}") from None


_switches = threading.RLock()


@contextlib.contextmanager
def _switched(module: ModuleType, name: str, value: object) -> Iterator[None]:
    """Hold one of Pillow's settings, which are the whole process's, at `value` for as short as can be."""
    with _switches:
        before = getattr(module, name)
        setattr(module, name, value)
        try:
            yield
        finally:
            setattr(module, name, before)

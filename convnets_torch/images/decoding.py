"""Decode pictures from files, bytes, arrays and tensors into upright RGB pixels, or RGBA for networks that read it."""

from __future__ import annotations

import contextlib
import io
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypedDict, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError, features
from typing_extensions import Unpack

from convnets_torch.files import open_file
from convnets_torch.images.headers import (
    TIFF,
    TiffValues,
    canvas,
    check_header,
    check_scans,
    frames,
    frames_note,
    significant_bits,
    tiff_values,
    tiff_values_of,
)
from convnets_torch.images.levels import Background, Depth, check_levels, laid_on, profile_note, to_8_bits, white_of
from convnets_torch.images.levels import Refused as _Refused
from convnets_torch.images.preprocessing import Channels, Pair, Pixels, Preprocessing
from convnets_torch.images.remote import RemotePicture
from convnets_torch.options import checked, renamed, shows
from convnets_torch.text import LONGEST, ConvnetsTorchWarning, printable

if TYPE_CHECKING:
    import torch


def is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    """Whether `value` is a torch tensor; does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def from_tensor(tensor: torch.Tensor, channels: Channels = "rgb") -> Pixels:
    """Convert a tensor (3, H, W), RGB, 0 to 255, uint8 or float, on any device, to pixels.

    Args:
        channels: what the network reads, as for `from_array`: (1, H, W) too for "grey", (4, H, W) for "rgba".

    Returns:
        (H, W, 3) uint8, or (H, W, 4).

    Raises:
        ValueError: wrong shape, dtype or range. (H, W, 3) is not accepted; an ambiguous shape is read as (3, H, W).
    """
    also = ALSO.get(channels, 3)
    if tensor.ndim != 3 or tensor.shape[0] not in (3, also) or 0 in tensor.shape:
        other = "" if also == 3 else f" or ({also}, height, width), {channels},"
        raise ValueError(
            f"the tensor is {tuple(tensor.shape)}, but a picture is a tensor (3, height, width), RGB,{other}"
            f" 0 to 255{_shape_hint(tuple(tensor.shape), 0)}"
        )
    if tensor.is_floating_point():
        tensor = tensor.float()  # NumPy has no bfloat16
    return from_array(tensor.detach().cpu().numpy().transpose(1, 2, 0), "tensor", channels)


ALSO: dict[Channels, int] = {"grey": 1, "rgba": 4}  # channels that arrays may have for a network besides three


def from_array(array: NDArray[Any], kind: str = "array", channels: Channels = "rgb") -> Pixels:
    """Convert an array (H, W, 3), RGB, or (H, W), grey, with values 0 to 255, uint8 or float, to pixels.

    Args:
        array: floats are rounded, never clipped; grey is repeated in all three channels.
        kind: name of the input in error messages.
        channels: what the network reads: arrays for "grey" may be (H, W, 1) too, and for "rgba" (H, W, 4).

    Returns:
        (H, W, 3) uint8, or (H, W, 4) of such an array; a matching array is returned without a copy.

    Raises:
        ValueError: wrong shape or dtype, values outside 0 to 255, or floats that seem to be 0 to 1.

    >>> from_array(np.array([[0.0, 127.6]])).tolist()
    [[[0, 0, 0], [128, 128, 128]]]
    >>> from_array(np.array([[0.0, 0.5]]))
    Traceback (most recent call last):
    ...
    ValueError: the array's values are 0 to 0.5, as if white were 1, but pixels are 0 to 255; multiply by 255
    """
    check_kind(array.shape, array.dtype, kind, channels)
    if array.dtype != np.uint8:
        check_range(float(array.min()), float(array.max()), kind)
    return to_pixels(array)


def to_pixels(array: NDArray[Any]) -> Pixels:
    """Convert a checked array, or rows of one, to pixels: round floats, repeat grey in three channels."""
    pixels = array if array.dtype == np.uint8 else np.rint(array).astype(np.uint8)
    pixels = pixels if pixels.ndim == 3 else pixels[:, :, None]
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def check_kind(shape: tuple[int, ...], dtype: np.dtype[Any], kind: str, channels: Channels = "rgb") -> None:
    """Raise ValueError if an array of this shape and dtype is not a picture for a network that reads `channels`."""
    also = ALSO.get(channels, 3)
    if not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, also))) or 0 in shape:
        other = "" if also == 3 else f" (height, width, {also}), {channels},"
        raise ValueError(
            f"the {kind} is {shape} {dtype}, but a picture is (height, width, 3), RGB,{other} or (height, width), grey,"
            f" 0 to 255{_shape_hint(shape, 2)}"
        )
    if dtype != np.uint8 and not np.issubdtype(dtype, np.floating):
        way = "divide by 257 and round" if dtype == np.uint16 else "bring it to 0 to 255"
        raise ValueError(f"the {kind} is {shape} {dtype}, but pixels are uint8 or float; {way}, then take uint8")


def check_range(lowest: float, highest: float, kind: str) -> None:
    """Raise ValueError if floats from `lowest` to `highest` are not in the range 0 to 255."""
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise ValueError(f"the {kind} holds NaN or infinite values, but pixels are 0 to 255; replace them first")
    values = f"the {kind}'s values are {lowest:.6g} to {highest:.6g}"
    if lowest < 0 and highest <= 127.5:
        raise ValueError(f"{values}, as if the mean were subtracted, but pixels are 0 to 255; give the picture itself")
    if lowest < 0 or highest > 255:
        raise ValueError(f"{values}, but pixels are 0 to 255; bring them there first")
    if 0 < highest <= 1:
        raise ValueError(f"{values}, as if white were 1, but pixels are 0 to 255; multiply by 255")


def _shape_hint(shape: tuple[int, ...], axis: int) -> str:
    """How to correct the shape of a tensor (channels along axis 0) or of an array (axis 2)."""
    last, colour, grey = (
        ("first: array.transpose(1, 2, 0)", "array[:, :, :3]", "array[:, :, 0]")
        if axis == 2
        else ("last: tensor.permute(2, 0, 1)", "tensor[:3]", "tensor.expand(3, -1, -1)")
    )
    if len(shape) == 4:
        return "; give one picture, or a list of them"
    if len(shape) == 3 and shape[2 - axis] == 3:
        return f"; its channels seem to come {last}"
    if len(shape) == 3 and shape[axis] == 4:
        return f"; its fourth channel seems to be transparency: {colour}"
    if (len(shape) == 2 and axis == 0) or (len(shape) == 3 and shape[axis] == 1):
        return f"; it seems to be grey: {grey}"
    return ""


# Minimum (height, width) in pixels of the upright picture, or a function that computes it from the full size.
Least: TypeAlias = "Pair | Callable[[Pair], Pair | None] | None"

END = b"\xff\xd9"  # the last bytes of a JPEG file

# EXIF orientation -> the transpose that makes the picture upright.
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


class JpegFile(NamedTuple):
    """A complete grey or RGB JPEG file that is not decoded yet.

    Attributes:
        data: contents of the file.
        name: its name in messages.
        pixels: number of pixels.
        turn: the transpose that makes it upright.
        notes: as in `DecodedPicture`.
    """

    data: bytes
    name: str
    pixels: int
    turn: Image.Transpose | None = None
    notes: tuple[str, ...] = ()


def _undecoded(image: Image.Image, data: bytes, name: str, exif: bool) -> JpegFile | None:
    """An opened JPEG file if it is of a kind that all decoders read alike."""
    if image.mode not in ("L", "RGB") or image.info.get("adobe_transform") == 0:  # 0: colours are stored as RGB
        return None
    if not data.rstrip(b"\0").endswith(END):
        return None
    turn, notes = _exif_turn(image, name, exif)
    return JpegFile(data, name, image.width * image.height, turn, notes + profile_note(image, name))


def _exif_turn(image: Image.Image, name: str, exif: bool) -> tuple[Image.Transpose | None, tuple[str, ...]]:
    """The transpose that makes an image upright, and a note if its EXIF is broken or ignored (`exif=False`)."""
    try:
        turn = UPRIGHT.get(image.getexif().get(0x0112, 1))  # 0x0112: orientation
    except Exception:  # Pillow can raise anything on broken data
        note = f"{name} has broken EXIF data; a rotation noted there was not followed"
        return None, (note,) if exif else ()
    return (turn, ()) if exif or turn is None else (None, (ignored_turn_note(name),))


def ignored_turn_note(name: str) -> str:
    """Note on a picture whose EXIF rotation is ignored."""
    return (
        f"{name} is turned or mirrored in its file, and the rotation noted there (EXIF) not followed, as the weights'"
        " preprocessing says; to have it seen upright, turn the picture itself"
    )


def _reduce(image: Image.Image, least: Least, exif: bool) -> tuple[int, tuple[float, float] | None]:
    """Let a JPEG file that is large enough decode at reduced scale; return `scale` and `part` of `DecodedPicture`."""
    if least is None or image.format not in ("JPEG", "MPO"):
        return 1, None
    turn, _ = _exif_turn(image, "", exif)
    width, height = image.size
    if callable(least):
        least = least((width, height) if turn in LYING else (height, width))
        if least is None:
            return 1, None
    tall, wide = least[::-1] if turn in LYING else least
    scale = max((scale for scale in (1, 2, 4, 8) if width >= scale * wide and height >= scale * tall), default=1)
    whole = width % scale == height % scale == 0
    if scale == 1 or (turn is not None and not whole):  # else the partial pixel moves to the left or the top
        return 1, None
    if image.draft(image.mode, (width // scale, height // scale)) is None:
        return 1, None
    return scale, None if whole else (width / scale, height / scale)


def without_exif(data: bytes) -> bytearray:
    """Copy a JPEG file with its EXIF segments relabelled, because torchcodec always applies EXIF rotation."""
    changed, place = bytearray(data), 2
    while place + 4 <= len(changed) and changed[place] == 0xFF and changed[place + 1] != 0xDA:  # up to the pixels
        if changed[place + 1] == 0xFF:  # fill byte
            place += 1
            continue
        if changed[place + 1] == 0xE1:
            changed[place + 1] = 0xEC
        place += 2 + int.from_bytes(changed[place + 2 : place + 4], "big")
    return changed


Picture: TypeAlias = (
    "str | os.PathLike[str] | bytes | IO[bytes] | RemotePicture | Image.Image | NDArray[Any] | torch.Tensor"
)

MAX_PIXELS = 178_956_970  # half a gigabyte of RGB; beyond it Pillow raises DecompressionBombError
PIXEL_BYTES = 16  # maximum bytes of a file for each allowed pixel: four channels of 32 bits
MOST_BYTES = PIXEL_BYTES * MAX_PIXELS  # maximum size of a picture file
SLOW_PIXELS = 1 << 24  # maximum for formats that Pillow decodes in Python, at about a million pixels a second
TILES = 200_000  # maximum number of tiles; each takes Pillow about 0.05 ms
BLOCK_PIXELS = 1 << 22  # processed at once, where copying the whole picture would take much memory

# Formats that Pillow decodes itself: those it tries first, and those for which it imports all its plugins.
# Excluded: EPS (starts Ghostscript), IPTC (opens its content as any format), FPX and MIC (OLE documents), WMF, BUFR,
# GRIB and HDF5 (need registered handlers), and MPEG (has no decoder).
_COMMON = ("BMP", "DIB", "GIF", "JPEG", "PPM", "PNG")
_OTHERS = (
    "AVIF", "BLP", "CUR", "PCX", "DCX", "DDS", "FITS", "FLI", "FTEX", "GBR", "JPEG2000", "ICNS", "ICO", "IM", "IMT",
    "MCIDAS", "TIFF", "MSP", "PCD", "PIXAR", "PSD", "QOI", "SGI", "SPIDER", "SUN", "TGA", "WEBP", "XBM", "XPM",
    "XVTHUMB",
)  # fmt: skip

# Formats whose headers Pillow parses byte by byte or entry by entry without a limit; accepted in small files only.
_SMALL = ("BLP", "CUR", "FITS", "FLI", "FTEX", "GBR", "ICNS", "ICO", "IM", "IMT", "MSP", "SPIDER", "XBM", "XPM",
          "XVTHUMB")  # fmt: skip
SMALL = 1 << 24  # bytes

# Pillow modes that convert to 8-bit RGB without clipping or guessing.
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")

# Formats whose further frames are other pictures. Those of MPO (a preview or depth map beside the photograph) and
# PSD (layers of the same picture) are not.
SEQUENCES = ("GIF", "PNG", "WEBP", "AVIF", "TIFF", "FLI", "DCX", "IM", "MIC", "SPIDER")

# Pillow keeps the high byte of 16-bit colour. With the byte order swapped, it keeps the low byte.
_OTHER_BYTE = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}

# Unsupported formats by (offset, magic bytes): their name, the reason, and the way out.
_TO_JPEG = "convert it to JPEG or PNG"
_OF_PILLOW = "which this Pillow does not read"
_OF_PROGRAMS = f"which is not read, since a program would have to run; {_TO_JPEG}"
_NO_PICTURE = f"which is not read; {_TO_JPEG}"
_NOT_READ = {
    (4, b"ftypavif"): f"AVIF, {_OF_PILLOW}; Pillow reads it from 11.3 on; upgrade Pillow, or {_TO_JPEG}",
    (0, b"\xff\x0a"): f"JPEG XL, {_OF_PILLOW}; {_TO_JPEG}",
    (0, b"\0\0\0\x0cJXL "): f"JPEG XL, {_OF_PILLOW}; {_TO_JPEG}",
    (0, b"%!PS"): f"PostScript (EPS), {_OF_PROGRAMS}",
    (0, b"\xc5\xd0\xd3\xc6"): f"PostScript (EPS), {_OF_PROGRAMS}",
    (0, b"%PDF-"): f"PDF, {_OF_PROGRAMS}",
    (0, b"\xd7\xcd\xc6\x9a"): f"WMF, {_OF_PROGRAMS}",
    (40, b" EMF"): f"EMF, {_OF_PROGRAMS}",
    (0, b"<svg"): f"SVG, {_OF_PROGRAMS}",
    (0, b"<?xml"): f"XML (SVG is), {_OF_PROGRAMS}",
    (0, b"<!DOCTYPE"): "a web page; download the picture itself",
    (0, b"<html"): "a web page; download the picture itself",
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"): f"a document (FPX and MIC are), {_NO_PICTURE}",
    (0, b"\0\0\1\xb3"): f"a film (MPEG), {_NO_PICTURE}",
    (0, b"\x89HDF\r\n\x1a\n"): f"HDF5, {_NO_PICTURE}",
} | {
    (4, b"ftyp" + brand): (
        f"HEIC, {_OF_PILLOW}; {_TO_JPEG}, or in Python call pillow_heif.register_heif_opener() first"
    )
    for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
}


# Pillow's names for formats of `_NOT_READ` that some versions, or plugins that users register, can read.
_NAMES = {"AVIF": "AVIF", "HEIC": "HEIF", "JPEG XL": "JXL"}


class PictureWarning(ConvnetsTorchWarning):
    """A picture was read in a way that users may not expect; the message names the picture."""


class DecodedPicture(NamedTuple):
    """A decoded picture.

    Attributes:
        content: a Pillow image of mode RGB, rotated as EXIF says if wanted; or pixels (H, W, 3) uint8, RGB, 0 to 255.
            For networks that read RGBA, mode RGBA and (H, W, 4).
        notes: what `read_picture` warns of.
        part: (width, height) in pixels of the content that the picture covers, from the top left; None for all of it.
            A JPEG file read at reduced scale ends within a pixel if its sides are not multiples of the divisor.
        scale: divisor of the sides.
    """

    content: Image.Image | Pixels
    notes: tuple[str, ...] = ()
    part: tuple[float, float] | None = None
    scale: int = 1

    @property
    def image(self) -> Image.Image:
        """The content as a Pillow image."""
        return self.content if isinstance(self.content, Image.Image) else Image.fromarray(self.content)

    @property
    def pixels(self) -> Pixels:
        """The content as pixels (H, W, 3) or (H, W, 4); copied from an image at each access."""
        return pixels_of(self.content) if isinstance(self.content, Image.Image) else self.content


class Reading(NamedTuple):
    """How pictures are decoded.

    Attributes:
        exif, max_pixels, allow_truncated, depth, background: as for `read_picture`.
        least: minimum (height, width) in pixels of the upright picture: JPEG files are read at 1/2, 1/4 or 1/8 scale
            if both sides stay at least that long. Or a function that computes it from the full (height, width). None
            reads them at full scale.
        jpeg: decodes the bytes of a JPEG file to (H, W, 3) in place of Pillow; returns None if it cannot.
        keep_jpeg: whether `decode_unless_jpeg` returns JPEG files undecoded.
        channels: what the network reads: for "rgba" pictures are decoded as RGBA, otherwise as RGB; it also decides on
            the arrays that are accepted, as in `from_array`.
    """

    exif: bool = True
    max_pixels: int | None = None
    allow_truncated: bool = False
    depth: Depth = None
    background: Background = None
    least: Least = None
    jpeg: Callable[[bytes], Pixels | None] | None = None
    keep_jpeg: bool = False
    channels: Channels = "rgb"

    def for_rule(self, rule: Preprocessing) -> Reading:
        """This reading with what a card's preprocessing decides: EXIF and channels."""
        return self._replace(exif=rule.exif, channels=rule.channels)

    @property
    def limit(self) -> int:
        """`max_pixels`, or the default."""
        return MAX_PIXELS if self.max_pixels is None else self.max_pixels


AS_IS = Reading()


class ReadingKeywords(TypedDict, total=False):
    """Keywords of functions that read pictures; see `read_picture`."""

    max_pixels: int | None
    allow_truncated: bool
    depth: Depth
    background: Background


@renamed(source="image")
@shows(ReadingKeywords, Reading)
def read_picture(image: Picture, *, exif: bool = True, **reading: Unpack[ReadingKeywords]) -> Pixels:
    """Decode one picture; its content decides the format, not its file name.

    16-bit grey and colour is scaled to 8 bits (65535 becomes 255). Transparency is dropped and the colours under it are
    read as stored, as convnets-keras, Keras and torchvision do; only the first frame or page is read. Both give a
    warning. Colour profiles are not applied; a profile of a colour space other than sRGB gives a warning.

    Args:
        image: a file's path, its bytes, an open binary file, a `PIL.Image`, an array (H, W, 3) RGB or (H, W) grey, or
            a tensor (3, H, W) RGB. Arrays and tensors hold 0 to 255, as uint8 or as floats, which are rounded.
        exif: apply the rotation stored in the file's EXIF data; arrays have none.
        max_pixels: refuse files with more pixels; 178,956,970 by default.
        allow_truncated: read what is left of a truncated file, with a warning.
        depth: significant bits of the values of a 16-bit file, 8 to 16, for cameras and microscopes that store 10 or
            12; or "auto" for the fewest of 8, 10, 12, 14, 16 that hold the largest value of each picture. By default
            what the file says (sBIT of PNG, MaxSampleValue of TIFF), or 16.
        background: what shows through transparency: "white", "black", "checker" for grey and white squares of 16
            pixels, or a colour such as "#FF8000"; by default the colours as stored.

    Returns:
        (H, W, 3) uint8, RGB, 0 to 255.

    Raises:
        OSError: the file is missing, a folder, not a picture, broken or truncated.
        ValueError: an array or tensor has the wrong shape, dtype or range; a picture has more than `max_pixels`, values
            without a fixed range (signed and 32-bit integers, floats) or values beyond `depth`; `depth` or `background`
            is invalid.

    Warns:
        PictureWarning: transparency, further frames, broken EXIF data, a truncated file, a 16-bit picture that uses few
            of its bits, a colour profile other than sRGB, or an EXIF rotation that `exif=False` ignores.

    >>> read_picture(Image.new("L", (2, 1), 77)).tolist()
    [[[77, 77, 77], [77, 77, 77]]]
    """
    decoded = decode(image, Reading(exif, **checked(reading, ReadingKeywords)))
    warn(decoded.notes, stacklevel=4)  # beyond the wrapper of `renamed`
    return decoded.pixels


def warn(notes: tuple[str, ...], stacklevel: int = 3) -> None:
    """Issue notes on a picture as warnings at the caller's caller."""
    for note in notes:
        warnings.warn(note, PictureWarning, stacklevel)


def decode(image: Picture, reading: Reading = AS_IS) -> DecodedPicture:
    """`read_picture` for threads: return notes instead of issuing warnings.

    >>> decode(Image.new("L", (2, 1))).image.mode
    'RGB'
    """
    found = decode_unless_jpeg(image, reading._replace(keep_jpeg=False))
    assert isinstance(found, DecodedPicture)
    return found


def open_upright(image: Picture, reading: Reading) -> DecodedPicture:
    """Former name of `decode`."""
    warnings.warn("open_upright is now decode; the old name goes with the next release", DeprecationWarning, 2)
    return decode(image, reading)


def decode_unless_jpeg(image: Picture, reading: Reading) -> DecodedPicture | JpegFile:
    """As `decode`, but return JPEG files undecoded if `reading.keep_jpeg`, for another decoder.

    If that decoder refuses a file, `decode_file` decodes the same bytes. JPEG files that are truncated, have four
    channels, or store their colours as RGB are decoded here.
    """
    if isinstance(image, np.ndarray):
        return DecodedPicture(from_array(image, channels=reading.channels))
    if is_tensor(image):
        return DecodedPicture(from_tensor(image, reading.channels))
    if TYPE_CHECKING:  # a TypeGuard does not narrow the negative case
        assert not isinstance(image, torch.Tensor)
    check_levels(reading.depth, reading.background)
    name = picture_name(image)
    if isinstance(image, Image.Image):
        with _readable_errors(name):
            return _decode_image(image, name, reading._replace(least=None))
    with _opened(image, reading.limit) as file:
        return _read(file, name, reading)


def decode_file(file: IO[bytes], name: str, reading: Reading) -> DecodedPicture:
    """Decode a file opened by `files.open_file`, or a `JpegFile`'s bytes, with Pillow; `name` is used in messages."""
    check_levels(reading.depth, reading.background)
    found = _read(file, name, reading._replace(keep_jpeg=False))
    assert isinstance(found, DecodedPicture)
    return found


def _read(file: IO[bytes], name: str, reading: Reading) -> DecodedPicture | JpegFile:
    try:
        with _readable_errors(name, file), _decoding(truncated=False):
            return _decode_file(file, name, reading)
    except OSError:
        if not reading.allow_truncated:
            raise
        with _readable_errors(name, file), _decoding(truncated=True):
            found = _decode_file(file, name, reading, damaged=True)
        note = f"{name} is truncated or damaged; what could not be read of it is black or grey"
        return found._replace(notes=(note, *found.notes))


def picture_name(image: object) -> str:
    """Name of a picture in messages: its path or address, "standard input", or "the picture"."""
    if isinstance(image, RemotePicture):
        return image.name
    if isinstance(image, str | os.PathLike):
        return str(image)
    return "standard input" if getattr(image, "name", None) == "<stdin>" else "the picture"


def _opened(image: str | os.PathLike[str] | bytes | IO[bytes] | RemotePicture, most: int) -> IO[bytes]:
    """A seekable file of a path, of bytes, of what is fetched, or of the rest of an open file, as standard input."""
    if isinstance(image, RemotePicture):
        return io.BytesIO(image.content())
    if isinstance(image, str | os.PathLike):
        return open_file(image)
    if isinstance(image, bytes | bytearray | memoryview):
        return io.BytesIO(image)
    content = io.BytesIO()
    while block := image.read(1 << 20):
        content.write(block)
        if content.tell() > PIXEL_BYTES * max(MAX_PIXELS, most):
            break  # `check_bytes` refuses it
    return content


def _decode_file(file: IO[bytes], name: str, reading: Reading, *, damaged: bool = False) -> DecodedPicture | JpegFile:
    image = _open(file, name, reading.limit)
    pixels = image.width * image.height
    _check_size(name, image.size, reading.limit)
    tiles = getattr(image, "tile", ())
    if pixels > max(SLOW_PIXELS, reading.max_pixels or 0) and any(tile[0] in Image.DECODERS for tile in tiles):
        raise _Refused(
            f"{name} has {pixels:,} pixels, and its kind of {image.format} is decoded slowly, a million a second;"
            f" {_TO_JPEG}, or allow {pixels} (max_pixels, --max-pixels)"
        )
    if len(tiles) > TILES:
        raise _Refused(f"{name} is stored in {len(tiles):,} pieces, more than {TILES:,}; save it in larger ones")
    if image.format in ("JPEG", "MPO"):
        check_scans(file, image)
    with _decoding(most=reading.limit):
        decoded = None
        is_jpeg = image.format == "JPEG"
        if reading.keep_jpeg and is_jpeg and (found := _undecoded(image, _read_all(file), name, reading.exif)):
            return found
        if reading.jpeg is not None and is_jpeg and image.mode in ("L", "RGB"):
            decoded = reading.jpeg(_read_all(file))
        return _decode_image(image, name, reading, file, decoded, damaged=damaged)


def open_thumbnail(data: bytes, most: int) -> Image.Image:
    """Decode a JPEG file from an untrusted table; ValueError if its longer side has more than `most` pixels."""
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG",))
        if image.format == "JPEG" and max(image.size) <= most and len(data) <= PIXEL_BYTES * most * most:
            check_scans(io.BytesIO(data), image)
            return image.convert("RGB")
    except Exception:  # as in `_readable_errors`
        pass
    raise ValueError(f"it is not a JPEG file of at most {most} pixels a side")


def stored_size(file: IO[bytes]) -> tuple[int, int]:
    """(width, height) in pixels from a file's header; (0, 0) if unreadable: decoding then raises the reason."""
    file.seek(0)
    if file.read(4) in TIFF:  # tifffile may read it even if Pillow cannot
        values = tiff_values(file)
        return (0, 0) if values.unknown else (values.width, values.height)
    try:
        return _open(file, "", MAX_PIXELS).size
    except Exception:  # as in `_readable_errors`
        return 0, 0


def stored_pixels(file: IO[bytes]) -> int:
    """Number of pixels from a file's header; 0 if unreadable."""
    width, height = stored_size(file)
    return width * height


def check_bytes(name: str, size: int, max_pixels: int | None = None) -> None:
    """Raise ValueError if a file is larger than a picture of `max_pixels` can be."""
    most = max(MAX_PIXELS, max_pixels or 0)
    if size > PIXEL_BYTES * most:
        raise _Refused(
            f"{name} has {size:,} bytes, more than {PIXEL_BYTES} for each of {most:,} pixels; if you trust the file,"
            " allow more of them (max_pixels, --max-pixels)"
        )


def _check_size(name: str, size: tuple[int, int], most: int) -> None:
    width, height = size
    if width * height > most:
        raise _Refused(
            f"{name} has {width * height:,} pixels ({height}x{width}), more than {most:,};"
            f" if you trust the file, allow {width * height} (max_pixels, --max-pixels)"
        )


def _open(file: IO[bytes], name: str, most: int) -> Image.Image:
    """`Image.open` without Pillow's own limit on pixels; reads the header only.

    Raises:
        _Refused: the file is larger than `most` pixels need, or Pillow would allocate too many pixels on opening it.
        OSError: it is empty, or its header is endless.
    """
    size = file.seek(0, os.SEEK_END)
    if not size:
        raise _EmptyFile(f"{name} is empty; copy the picture again")
    file.seek(0)
    start = file.read(64)
    if not start.startswith(TIFF):
        check_bytes(name, size, most)
    check_header(file, start, size)
    if start.startswith(TIFF) and (unknown := tiff_values(file).unknown) is not None:
        raise _Refused(f"{name} {unknown}")
    if start.startswith(b"MM\0+"):  # big-endian BigTIFF, which Pillow takes for broken TIFF
        raise UnidentifiedImageError
    if (shape := canvas(start)) is not None:
        _check_size(name, shape, most)
    with _decoding(most=math.inf):
        Image.preinit()
        try:
            return Image.open(file, formats=_COMMON)
        except UnidentifiedImageError:
            return Image.open(file, formats=_other_formats(size))


def _other_formats(size: int) -> list[str]:
    """Formats besides the common ones that this Pillow reads and a file of `size` bytes may have."""
    Image.init()
    registered = [name for name, (opener, _) in Image.OPEN.items() if not opener.__module__.startswith("PIL.")]
    found = [name for name in _OTHERS if name in Image.OPEN and (size <= SMALL or name not in _SMALL)]
    return registered + found  # plugins that users registered, such as pillow_heif, recognise their own files


def _other_bytes(tiles: list[Any], name: str) -> list[Any]:
    """Change Pillow's tile descriptors of 16-bit channels so that they decode to the low bytes."""
    changed = []
    for tile in tiles:
        mode = tile.args if isinstance(tile.args, str) else tile.args[0]
        kind, _, bits = mode.partition(";")
        if bits not in _OTHER_BYTE or kind not in ("RGB", "RGBX", "RGBA", "CMYK"):
            raise _deep_error(name, mode)
        other = f"{kind};{_OTHER_BYTE[bits]}"
        changed.append(tile._replace(args=other if isinstance(tile.args, str) else (other, *tile.args[1:])))
    return changed


def _read_all(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _decode_image(
    image: Image.Image,
    name: str,
    reading: Reading,
    file: IO[bytes] | None = None,
    decoded: Pixels | None = None,
    *,
    damaged: bool = False,
) -> DecodedPicture:
    """Decode an image opened from `file` (None if the caller opened it), or use its `decoded` pixels."""
    if 0 in image.size:
        raise _Refused(f"{name} is {image.height}x{image.width} pixels; give one that has some")
    notes: list[str] = []
    if image.format in SEQUENCES and image.tell() == 0:
        count = getattr(image, "n_frames", 1) if file is None else frames(file, image, allow_truncated=damaged)
        notes += frames_note(name, count)
    tiff = None
    if image.format == "TIFF":
        tiff = tiff_values_of(getattr(image, "tag_v2", {})) if file is None else tiff_values(file)
    if tiff is not None and tiff.unknown is not None:
        raise _Refused(f"{name} {tiff.unknown}")
    deep = file is not None and not image.mode.startswith("I") and _is_deep(image)
    if deep:
        _other_bytes(image.tile, name)  # type: ignore[attr-defined]  # raises for unknown kinds
    white = 65535 if deep else _white_level(image, name)
    part, scale = None, 1
    if decoded is None:
        scale, part = _reduce(image, reading.least, reading.exif)
        image.load()
    turn, said = _exif_turn(image, name, reading.exif)
    notes.extend(said + profile_note(image, name))
    if decoded is not None:
        image = Image.fromarray(decoded)
    elif white is not None:
        low = None
        if deep:
            assert file is not None
            low = _open(file, name, image.width * image.height)
            low.tile = _other_bytes(low.tile, name)  # type: ignore[attr-defined]
            low.load()
        bits = 16 if file is None or image.format != "PNG" else significant_bits(file)
        image, said = _reduce_to_8_bits(image, low, white, tiff, bits, name, reading.depth)
        notes.extend(said)
    if tiff is not None and file is not None and not reading.exif and tiff.orientation in UPRIGHT:
        applied = UPRIGHT[tiff.orientation]
        image = image.transpose(_INVERSE.get(applied, applied))  # Pillow has turned it
        notes.append(ignored_turn_note(name))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "RGBa" or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("LA", "PA", "RGBA") and image.getchannel("A").getextrema()[0] < 255:  # type: ignore[operator]
        if reading.background is not None:
            image = _laid_on(reading.background, image)
        elif reading.channels != "rgba":
            notes.append(
                f"{name} is partly transparent; transparency was dropped, the colours under it taken as stored"
                " (background, --background)"
            )
    mode = "RGBA" if reading.channels == "rgba" else "RGB"
    return DecodedPicture(image if image.mode == mode else image.convert(mode), tuple(notes), part, scale)


_INVERSE = {
    Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
}  # the others are their own inverses


def _reduce_to_8_bits(
    image: Image.Image,
    low: Image.Image | None,
    white: int,
    tiff: TiffValues | None,
    significant: int,
    name: str,
    depth: Depth,
) -> tuple[Image.Image, tuple[str, ...]]:
    """Convert to 8 bits a channel; return the image and notes on its depth.

    Args:
        image: its values, or their high bytes if `low` has the low ones.
        white: the largest possible value.
        significant: significant bits that a PNG file declares, or 16.
    """

    def values(box: tuple[int, int, int, int]) -> NDArray[Any]:
        if low is None:
            return np.asarray(image.crop(box))
        high_bytes, low_bytes = (np.asarray(each.crop(box), np.uint16) for each in (image, low))
        return high_bytes * np.uint16(256) + low_bytes

    colors = 3 if image.mode == "RGBA" else None
    boxes = list(_blocks(image))
    highest = np.max([np.max(values(box), axis=(0, 1)) for box in boxes], axis=0)
    brightest = int(np.max(highest[:colors] if highest.ndim else highest))
    declared = white if tiff is None or white < 65535 else tiff.white
    if significant < 16 and brightest < 2**significant:
        # Such values should be shifted to the high bits (PNG, third edition, 12.4), but some encoders leave them in the
        # low bits.
        behind = 2 ** (16 - significant) - 1
        if any(((values(box) & behind) > 1).any() for box in boxes):
            declared = 2**significant - 1
    white, notes = white_of(name, brightest, declared, depth if white == 65535 else None)
    whites = np.where(highest > white, 65535, white).astype(np.uint32)  # an alpha channel may have another depth
    page = image if low is not None else Image.new("L", image.size)
    inverted = tiff is not None and tiff.photometric == 0 and low is None
    for box in boxes:
        pixels = to_8_bits(values(box), whites)
        page.paste(Image.fromarray(255 - pixels if inverted else pixels, page.mode), box[:2])
    page.info = image.info
    return page, notes


def _laid_on(background: str, image: Image.Image) -> Image.Image:
    """Composite a picture with an alpha channel over a background."""
    page = Image.new("RGB", image.size)
    for box in _blocks(image):
        values = np.asarray(image.crop(box).convert("RGBA"))
        rows, columns = np.arange(box[1], box[3]), np.arange(box[0], box[2])
        page.paste(Image.fromarray(laid_on(background, values[:, :, :3], values[:, :, 3], rows, columns)), box[:2])
    return page


def _blocks(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Yield boxes of whole rows, of about `BLOCK_PIXELS` each, that cover an image."""
    step = max(1, BLOCK_PIXELS // image.width)
    for top in range(0, image.height, step):
        yield 0, top, image.width, min(top + step, image.height)


def pixels_of(image: Image.Image) -> Pixels:
    """The pixels of an RGB or RGBA image; large ones are copied in blocks, to avoid NumPy's second copy."""
    if image.width * image.height <= 16 * BLOCK_PIXELS:
        return np.asarray(image)
    pixels = np.empty((image.height, image.width, len(image.getbands())), np.uint8)
    for box in _blocks(image):
        pixels[box[1] : box[3]] = np.asarray(image.crop(box))
    pixels.flags.writeable = False
    return pixels


def _white_level(image: Image.Image, name: str) -> int | None:
    """White level of deep grey; None for 8 bits a channel. Raise ValueError if it is unknown."""
    raw = [str(tile[3]) for tile in getattr(image, "tile", ())]
    if image.mode.startswith("I;16"):
        return 4095 if any("I;12" in mode for mode in raw) else 65535
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        return 65535
    if image.mode in ("I", "F"):
        raise _Refused(
            f"{name} has pixels of 32 bits (mode {image.mode}), whose range is unknown;"
            " scale them to 0 to 255 and give an array, or save 8-bit grey"
        )
    if image.mode not in EIGHT_BIT_MODES or _is_deep(image):
        raise _deep_error(name, raw[0] if raw else image.mode)
    return None


def _is_deep(image: Image.Image) -> bool:
    return any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


class _EmptyFile(OSError):
    """An OSError whose message is ready for the user."""


def _deep_error(name: str, mode: str) -> _Refused:
    return _Refused(f"{name} has more than 8 bits a channel ({mode}), of a kind that is not read; save it as 8-bit RGB")


@contextlib.contextmanager
def _readable_errors(name: str, file: IO[bytes] | None = None) -> Iterator[None]:
    """Turn whatever a decoder raises into OSError or ValueError that names the picture."""
    try:
        yield
    except _Refused as error:
        raise ValueError(str(error)) from None
    except _EmptyFile as error:
        raise OSError(str(error)) from None
    except UnidentifiedImageError:
        raise OSError(f"{name} is {_describe_unknown(file)}") from None
    except Image.DecompressionBombError:  # for example inside an icon
        raise ValueError(f"{name} holds a picture larger than its header says; convert it to JPEG or PNG") from None
    except Exception as error:
        # Decoders raise anything on broken files (KeyError, TypeError, AssertionError, MemoryError, ...). Report it for
        # this file only, so that a batch continues with the others.
        way_out = "copy the picture again"
        if "truncated" in str(error):
            way_out += ", or read what is there (allow_truncated, --allow-truncated)"
        raise OSError(f"{name} is broken ({reason_of(error)}); {way_out}") from None


def reason_of(error: Exception) -> str:
    """A decoder's error message as one printable line.

    >>> reason_of(RuntimeError("no\\nframe. "))
    'no frame'
    >>> reason_of(MemoryError())
    'MemoryError'
    """
    words = printable(" ".join(str(error).split())).rstrip(".")[: LONGEST // 10]
    return words if words and not isinstance(error, KeyError) else f"{type(error).__name__} {words}".rstrip()


def _describe_unknown(file: IO[bytes] | None) -> str:
    """Describe a file that Pillow does not recognise, with the way out."""
    if file is not None:
        file.seek(0)
        if file.read(4) in TIFF:
            return f"a TIFF file of a kind that is not read ({tiff_values(file)}); save it as 8-bit RGB or grey"
        file.seek(0)
        start = file.read(64).removeprefix(b"\xef\xbb\xbf")
        for (offset, first), kind in _NOT_READ.items():
            if start.startswith(first, offset):
                form = _NAMES.get(kind.partition(",")[0])
                read = features.check("avif") if form == "AVIF" else form in Image.OPEN
                return "broken; copy the picture again" if read else kind
    return "not a picture that Pillow can read; convert it to JPEG or PNG"


class _Settings(NamedTuple):
    """Values for this context of two settings that Pillow has for the whole process."""

    truncated: bool = False  # whether truncated files are decoded
    most: float = math.inf  # maximum pixels of a picture, also of one inside an icon


_settings: ContextVar[_Settings | None] = ContextVar("_settings", default=None)  # None in code that is not ours


class _Truncated:
    """Replaces Pillow's `LOAD_TRUNCATED_IMAGES`: our own value inside `_decoding`, the original elsewhere."""

    def __init__(self, others: bool) -> None:
        self.others = others

    def __bool__(self) -> bool:
        here = _settings.get()
        return self.others if here is None else here.truncated


_check_of_pillow = Image._decompression_bomb_check


def _check_bomb(size: tuple[int, int], **options: Any) -> None:
    """Replaces Pillow's check of sizes in the same way."""
    here = _settings.get()
    if here is None:
        _check_of_pillow(size, **options)
    elif size[0] * size[1] > here.most:
        raise Image.DecompressionBombError(f"{size[0] * size[1]} pixels")


@contextlib.contextmanager
def _decoding(**changed: Any) -> Iterator[None]:
    """Change Pillow's settings in this block only; other threads and other users keep theirs."""
    if not isinstance(ImageFile.LOAD_TRUNCATED_IMAGES, _Truncated):
        ImageFile.LOAD_TRUNCATED_IMAGES = _Truncated(ImageFile.LOAD_TRUNCATED_IMAGES)  # type: ignore[assignment]
    Image._decompression_bomb_check = _check_bomb
    before = _settings.set((_settings.get() or _Settings())._replace(**changed))
    try:
        yield
    finally:
        _settings.reset(before)

"""Decoding: what is read, and the sentence for what is not."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from convnets_torch.images import read_picture


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_8_bit_pictures_of_every_mode_become_rgb(mode, tmp_path):
    image = Image.new("RGB", (4, 3), (255, 255, 255)).convert(mode)
    image.save(tmp_path / "picture.tif")
    pixels = read_picture(tmp_path / "picture.tif")
    assert pixels.shape == (3, 4, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == 255).all()


def test_a_file_an_image_and_an_array_are_the_same_picture(photographs):
    path = photographs / "chelsea.png"
    pixels = read_picture(path)
    assert pixels.shape == (300, 451, 3)
    np.testing.assert_array_equal(read_picture(Image.open(path)), pixels)
    np.testing.assert_array_equal(read_picture(pixels), pixels)


def broken(photographs, tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content((photographs / "rocket.jpg").read_bytes()))
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda whole: b"", "is empty; copy the picture again"),
        (lambda whole: b"no picture", "is no picture that Pillow can read"),
        (lambda whole: whole[: len(whole) // 2], "is broken .*truncated.*; copy the picture again"),
    ],
)
def test_an_unreadable_picture_is_refused_in_a_sentence_that_names_it(content, message, photographs, tmp_path):
    with pytest.raises(OSError, match=rf"photo\.jpg {message}"):
        read_picture(broken(photographs, tmp_path, "photo.jpg", content))


def test_a_truncated_png_is_refused(photographs, tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes((photographs / "chelsea.png").read_bytes()[:50_000])
    with pytest.raises(OSError, match=r"photo\.png is broken"):
        read_picture(path)


def test_missing_files_and_folders_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_picture(tmp_path / "none.jpg")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        read_picture(tmp_path)


def test_16_bits_are_refused_and_not_clipped(tmp_path):
    Image.fromarray(np.full((4, 4), 60_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"more than 8 bits a channel .*; convert it to 8-bit RGB first"):
        read_picture(tmp_path / "deep.png")


def test_16_bits_of_colour_are_refused_and_not_cut(tmp_path):
    """A PNG by hand: Pillow reads such files as 8-bit RGB without a word."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" + bytes(2 * 3 * 2))
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    with pytest.raises(ValueError, match="more than 8 bits a channel"):
        read_picture(tmp_path / "deep.png")


def test_formats_that_pillow_fails_over_in_its_own_ways_are_refused_by_name(tmp_path):
    for name, content in (
        ("a.ppm", b"P3\n2 2\n255\nabc"),
        ("b.qoi", b"qoif" + struct.pack(">II", 4, 4) + b"\3\0"),
        ("c.dds", b"DDS " + struct.pack("<31I", 124, 4103, 4, 4, *[0] * 27)),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(OSError, match=rf"{name} is (broken|no picture)"):
            read_picture(tmp_path / name)


def test_a_picture_without_pixels_is_refused():
    with pytest.raises(ValueError, match="the picture is 5x0 pixels"):
        read_picture(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_an_array_that_is_no_picture_is_refused_with_its_shape(array):
    with pytest.raises(ValueError, match=r"a picture is \(height, width, 3\) uint8"):
        read_picture(array)


def test_a_bomb_becomes_a_sentence_with_the_way_out(photographs, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"raise PIL\.Image\.MAX_IMAGE_PIXELS"):
        read_picture(photographs / "chelsea.png")

"""Decoding: what is read, and the sentence for what is not."""

from __future__ import annotations

import contextlib
import io
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, features

from convnets_torch.images.decoding import PictureWarning, read_picture
from convnets_torch.images.levels import profile_note

READS_AVIF = "avif" in features.get_supported()  # from Pillow 11.3 on


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
        (lambda whole: b"no picture", "is not a picture that Pillow can read"),
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


EIGHT = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
DEEP = np.random.default_rng(1).integers(0, 65536, (3, 5, 3), dtype=np.uint16)


def scaled(values, highest=65535):
    """0 to `highest` -> 0 to 255, in float64."""
    return np.floor(values / highest * 255 + 0.5).astype(np.uint8)


def png(path, values, color_type):
    """A 16-bit PNG by hand: Pillow writes none of colour."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, color_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@pytest.mark.parametrize("ending", ["png", "tif", "pgm", "jp2"])
def test_16_bits_of_grey_are_scaled_and_not_clipped(ending, tmp_path):
    Image.fromarray(DEEP[:, :, 0]).save(tmp_path / f"deep.{ending}")
    grey = scaled(DEEP[:, :, 0])
    assert len(np.unique(grey)) > 10
    np.testing.assert_array_equal(read_picture(tmp_path / f"deep.{ending}"), np.stack([grey] * 3, axis=2))
    np.testing.assert_array_equal(read_picture(Image.fromarray(DEEP[:, :, 0]))[:, :, 0], grey)


def test_12_bits_of_grey_are_scaled_by_their_own_white(tmp_path):
    """A TIFF by hand, two pixels packed into three bytes: 0x000 and 0xfff."""
    tags = [(256, 3, 2), (257, 3, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (279, 4, 3)]
    directory = struct.pack("<H", len(tags)) + b"".join(
        struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags
    )
    pixels = b"\x00\x0f\xff\x00"
    (tmp_path / "x.tif").write_bytes(b"II*\0" + struct.pack("<I", 12) + pixels + directory + struct.pack("<I", 0))
    assert read_picture(tmp_path / "x.tif").tolist() == [[[0] * 3, [255] * 3]]


def test_16_bits_of_colour_are_scaled_and_not_cut(tmp_path):
    """Pillow alone would drop the low byte: another value for a third of these."""
    png(tmp_path / "deep.png", DEEP, color_type=2)
    assert (scaled(DEEP) != np.asarray(Image.open(tmp_path / "deep.png"))).any()
    np.testing.assert_array_equal(read_picture(tmp_path / "deep.png"), scaled(DEEP))
    opaque = np.dstack([DEEP, np.full((3, 5), 65535)])
    png(tmp_path / "alpha.png", opaque, color_type=6)
    np.testing.assert_array_equal(read_picture(tmp_path / "alpha.png"), scaled(DEEP))


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "deflate"])
def test_16_bits_of_colour_in_tiff_are_scaled_and_not_cut(byteorder, compression, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    try:
        tifffile.imwrite(
            tmp_path / "x.tif", DEEP, photometric="rgb", byteorder=byteorder, compression=compression, metadata=None
        )
    except (ImportError, ValueError, KeyError) as error:
        pytest.skip(f"this tifffile does not write it: {error}")
    np.testing.assert_array_equal(read_picture(tmp_path / "x.tif"), scaled(DEEP))


def test_deep_pictures_that_are_not_read_rightly_are_refused_by_name(tmp_path):
    png(tmp_path / "grey-alpha.png", DEEP[:, :, :2], color_type=4)
    for name in ("float.tif", "int.tif"):
        kind = np.float32 if name == "float.tif" else np.int32
        Image.fromarray(np.zeros((2, 3), kind)).save(tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name} has pixels of 32 bits .*, whose range is unknown; scale"):
            read_picture(tmp_path / name)
    with pytest.raises(ValueError, match=r"grey-alpha\.png has more than 8 bits a channel .*; save it as 8-bit RGB"):
        read_picture(tmp_path / "grey-alpha.png")
    png(tmp_path / "deep.png", DEEP, color_type=2)
    with Image.open(tmp_path / "deep.png") as opened, pytest.raises(ValueError, match="more than 8 bits a channel"):
        read_picture(opened)


def sbit(path, values, bits):
    """A 16-bit grey PNG by hand that says how many bits are significant."""
    png(path, values[:, :, None], color_type=0)
    content, chunk = path.read_bytes(), b"sBIT" + bytes([bits])
    inserted = struct.pack(">I", 1) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(content[:33] + inserted + content[33:])  # behind the header


def test_significant_bits_of_a_png_are_followed_where_the_zeros_are_in_front(tmp_path):
    """The standard has them behind; OpenCV and others write values as they come from a camera."""
    values = np.array([[0, 77, 1000, 4095]], np.uint16)
    sbit(tmp_path / "front.png", values, 12)
    np.testing.assert_array_equal(read_picture(tmp_path / "front.png")[:, :, 0], scaled(values, 4095))
    sbit(tmp_path / "behind.png", values * 16, 12)
    np.testing.assert_array_equal(read_picture(tmp_path / "behind.png")[:, :, 0], scaled(values * 16))
    dark = np.array([[0, 16, 160, 240]], np.uint16)  # and rightly so: 4 of 16 bits, all of them low
    sbit(tmp_path / "dark.png", dark, 12)
    with pytest.warns(PictureWarning, match="no value above 240 of 65,535"):
        np.testing.assert_array_equal(read_picture(tmp_path / "dark.png")[:, :, 0], scaled(dark))


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 3)], ids=["grey", "colour"])
@pytest.mark.parametrize(("bits", "largest"), [(8, 255), (10, 1023), (12, 4095)])
def test_values_of_few_bits_in_a_file_of_16_are_spoken_of_and_read_by_their_depth(bits, largest, shape, tmp_path):
    values = np.linspace(0, largest, np.prod(shape)).round().astype(np.uint16).reshape(shape)
    path = tmp_path / "scan.png"
    png(path, values if values.ndim == 3 else values[:, :, None], color_type=2 if values.ndim == 3 else 0)
    eight = scaled(values, largest) if values.ndim == 3 else np.stack([scaled(values, largest)] * 3, 2)
    for depth in (bits, str(bits), "auto"):
        np.testing.assert_array_equal(read_picture(path, depth=depth), eight)
    said = rf"scan\.png has no value above {largest:,} of 65,535; .*\(depth={bits}, --depth {bits}, or auto\)"
    with pytest.warns(PictureWarning, match=said):
        dark = read_picture(path)
    assert dark.max() == round(largest / 257)
    np.testing.assert_array_equal(read_picture(path, depth=16), dark)
    refused = pytest.raises(ValueError, match=r"values up to [\d,]+, but white is 511; give a greater depth")
    with refused if bits > 9 else contextlib.nullcontext():
        read_picture(path, depth=9)


def test_depths_and_backgrounds_that_are_none_are_refused_whatever_the_picture(photographs, tmp_path):
    with pytest.raises(ValueError, match="depth must be 8 to 16 bits or 'auto', got 7"):
        read_picture(photographs / "chelsea.png", depth=7)
    with pytest.raises(ValueError, match="background must be white, black, checker or a colour such as #FF8000"):
        read_picture(photographs / "chelsea.png", background="blue")


@pytest.mark.parametrize(
    ("background", "color"), [("white", (255,) * 3), ("black", (0,) * 3), ("#FF8000", (255, 128, 0)), ("checker", None)]
)
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_background_shows_through_transparency(mode, background, color, tmp_path):
    generator = np.random.default_rng(2)
    image = Image.fromarray(generator.integers(0, 256, (40, 50, 4), dtype=np.uint8), "RGBA")
    if mode == "P":
        image = image.convert("RGB").quantize(8)
        image.info["transparency"] = bytes([0, 99, 255])
    elif mode == "LA":
        image = image.convert("LA")
    image.save(tmp_path / "logo.png")
    values = np.asarray(image.convert("RGBA"), float)
    rows, columns = np.indices((40, 50)) // 16
    page = np.where((rows + columns) % 2, 204.0, 255.0)[:, :, None] if color is None else np.array(color, float)
    alpha = values[:, :, 3:] / 255
    found = read_picture(tmp_path / "logo.png", background=background)
    np.testing.assert_allclose(found, values[:, :, :3] * alpha + page * (1 - alpha), atol=0.5 + 1e-9)


def profile(primaries, gamma=563):
    """A colour profile by hand; 563 is a gamma of 2.2 in 8 bits behind the point. Source: ICC.1:2022."""
    bodies = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", 9) + b"By hand\x1b\0"}
    for name, values in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True):
        bodies[name] = b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))
    bodies[b"gTRC"] = b"curv\0\0\0\0" + struct.pack(">IH", 1, gamma)
    table, place = b"", 132 + 12 * len(bodies)
    for name, body in bodies.items():
        table += name + struct.pack(">II", place, len(body))
        place += len(body)
    return bytes(16) + b"RGB XYZ " + bytes(104) + struct.pack(">I", len(bodies)) + table + b"".join(bodies.values())


SRGB = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
DISPLAY_P3 = ((0.5151, 0.2412, -0.0011), (0.2919, 0.6922, 0.0419), (0.1572, 0.0666, 0.7841))


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp"])
def test_colours_of_another_space_are_spoken_of_and_those_of_srgb_are_not(ending, tmp_path):
    path = tmp_path / f"wide.{ending}"
    for primaries, gamma in ((DISPLAY_P3, 563), (SRGB, 256)):
        Image.fromarray(EIGHT).save(path, icc_profile=profile(primaries, gamma))
        with pytest.warns(PictureWarning, match=rf"wide\.{ending} has colours of another space .* \(By hand\\x1b\)"):
            read_picture(path)
    for good in (profile(SRGB), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()):
        Image.fromarray(EIGHT).save(path, icc_profile=good)
        read_picture(path)


def test_profiles_that_are_cut_anywhere_break_nothing(tmp_path):
    whole = profile(DISPLAY_P3)
    image = Image.fromarray(EIGHT)
    for length in range(len(whole)):
        image.info["icc_profile"] = whole[:length]
        profile_note(image, "cut")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_rotation_of_a_camera_is_undone_as_the_standard_says(orientation, tmp_path):
    """EXIF 2.3, tag 0x0112: where row 0 and column 0 of the stored picture are to be shown."""
    shown = {
        1: EIGHT, 2: EIGHT[:, ::-1], 3: EIGHT[::-1, ::-1], 4: EIGHT[::-1], 5: EIGHT.transpose(1, 0, 2),
        6: np.rot90(EIGHT, -1), 7: EIGHT[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(EIGHT),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(EIGHT).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "turned.png"), shown[orientation])
    ignored = r"turned\.png is turned or mirrored in its file, and the rotation noted there \(EXIF\) not followed"
    with pytest.warns(PictureWarning, match=ignored) if orientation > 1 else contextlib.nullcontext():
        np.testing.assert_array_equal(read_picture(tmp_path / "turned.png", exif=False), EIGHT)


def test_a_rotation_in_broken_exif_data_is_not_followed_and_that_is_said(tmp_path):
    Image.fromarray(EIGHT).save(tmp_path / "odd.webp", lossless=True, exif=b"Exif\0\0no TIFF header")
    with pytest.warns(PictureWarning, match=r"odd\.webp has broken EXIF data; a rotation noted there was not followed"):
        np.testing.assert_array_equal(read_picture(tmp_path / "odd.webp"), EIGHT)
    np.testing.assert_array_equal(read_picture(tmp_path / "odd.webp", exif=False), EIGHT)  # not looked at, not said


TRANSPARENT = {
    "LA": Image.fromarray(EIGHT[:, :, :2].copy(), "LA"),
    "RGBA": Image.fromarray(np.dstack([EIGHT, EIGHT[:, :, :1]]), "RGBA"),
    "palette, one colour": Image.fromarray(EIGHT).quantize(4),
    "palette, alpha": Image.fromarray(EIGHT).quantize(4),
}
TRANSPARENT["palette, one colour"].info["transparency"] = 1
TRANSPARENT["palette, alpha"].info["transparency"] = b"\xff\x80\x00\xff"


@pytest.mark.parametrize("image", TRANSPARENT.values(), ids=TRANSPARENT.keys())
@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")  # of the expected value's own
def test_transparency_is_dropped_as_the_original_did_and_that_is_said(image, tmp_path):
    image.save(tmp_path / "logo.png")
    with Image.open(tmp_path / "logo.png") as opened:
        original = np.asarray(opened.convert("RGB"))  # what scipy's imread(mode="RGB") did
    with pytest.warns(PictureWarning, match=r"logo\.png is partly transparent; transparency was dropped"):
        np.testing.assert_array_equal(read_picture(tmp_path / "logo.png"), original)


def test_an_alpha_channel_that_hides_nothing_is_not_spoken_of(tmp_path):
    Image.fromarray(EIGHT).convert("RGBA").save(tmp_path / "photo.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "photo.png"), EIGHT)


@pytest.mark.parametrize(
    ("ending", "options"), [("gif", {}), ("png", {}), ("webp", {"lossless": True}), ("tif", {}), ("avif", {})]
)
def test_of_several_frames_the_first_is_read_and_that_is_said(ending, options, tmp_path):
    if ending == "avif" and not READS_AVIF:
        pytest.skip("this Pillow reads no AVIF")
    frames = [Image.new("RGB", (8, 8), (value, value, value)) for value in (200, 100, 0)]
    path = tmp_path / f"moving.{ending}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    with pytest.warns(PictureWarning, match=rf"moving\.{ending} has 3 frames or pages; the first was read"):
        pixels = read_picture(path)
    assert np.abs(pixels.astype(int) - 200).max() <= 2  # AVIF is lossy


def test_the_preview_beside_a_cameras_photograph_is_no_second_frame(tmp_path):
    Image.fromarray(EIGHT).save(
        tmp_path / "camera.jpg", format="MPO", save_all=True, append_images=[Image.new("RGB", (2, 2))]
    )
    assert read_picture(tmp_path / "camera.jpg").shape == EIGHT.shape


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
def test_pictures_of_one_pixel_are_pictures(size, tmp_path):
    Image.new("L", size, 7).save(tmp_path / "dot.png")
    assert read_picture(tmp_path / "dot.png").shape == (*size[::-1], 3)


def test_the_content_decides_and_not_the_ending(photographs, tmp_path):
    for name in ("cat.jpg", "cat.txt", "cat"):
        shutil.copy(photographs / "chelsea.png", tmp_path / name)
        np.testing.assert_array_equal(read_picture(tmp_path / name), read_picture(photographs / "chelsea.png"))


def test_an_open_file_is_read_even_where_it_cannot_seek(photographs):
    class Pipe(io.BytesIO):
        name = "<stdin>"

        def seek(self, *_):
            raise io.UnsupportedOperation("seek")

    whole = (photographs / "rocket.jpg").read_bytes()
    np.testing.assert_array_equal(read_picture(Pipe(whole)), read_picture(photographs / "rocket.jpg"))
    with pytest.raises(OSError, match="standard input is empty"):
        read_picture(Pipe(b""))


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC, .*register_heif_opener"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0", "HEIC"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL"),
    ],
)
def test_kinds_that_pillow_does_not_read_are_refused_by_name_with_the_way_out(start, kind, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(start + bytes(100))
    with pytest.raises(OSError, match=rf"photo\.jpg is {kind}"):
        read_picture(tmp_path / "photo.jpg")


@pytest.mark.skipif(not READS_AVIF, reason="this Pillow reads no AVIF")
def test_avif_is_read(photographs, tmp_path):
    with Image.open(photographs / "chelsea.png") as image:
        image.convert("RGB").save(tmp_path / "cat.avif", quality=95)
    found, whole = read_picture(tmp_path / "cat.avif"), read_picture(photographs / "chelsea.png")
    assert np.abs(found.astype(int) - whole).mean() < 4


def test_a_truncated_picture_is_read_as_far_as_it_goes_when_that_is_asked_for(photographs, tmp_path):
    for name in ("rocket.jpg", "chelsea.png"):
        content = (photographs / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(OSError, match=rf"{name} is broken .*; copy the picture again"):
            read_picture(tmp_path / name)
        with pytest.warns(PictureWarning, match=rf"{name} is truncated or damaged; .* black or grey"):
            half = read_picture(tmp_path / name, allow_truncated=True)
        whole = read_picture(photographs / name)
        assert half.shape == whole.shape
        third = len(whole) // 3
        np.testing.assert_array_equal(half[:third], whole[:third])
        assert (half[-8:] != whole[-8:]).any()
        assert not ImageFile.LOAD_TRUNCATED_IMAGES
    (tmp_path / "none.jpg").write_bytes(b"no picture")
    with pytest.raises(OSError, match="not a picture that Pillow can read"):
        read_picture(tmp_path / "none.jpg", allow_truncated=True)


def test_a_whole_picture_is_the_same_when_truncated_ones_are_allowed(photographs):
    path = photographs / "rocket.jpg"
    np.testing.assert_array_equal(read_picture(path, allow_truncated=True), read_picture(path))


def test_a_huge_picture_is_refused_before_it_is_decoded_with_the_way_out(photographs, tmp_path):
    with pytest.raises(ValueError, match=r"chelsea\.png has 135,300 pixels \(300x451\), more than 1,000; .*max_pixels"):
        read_picture(photographs / "chelsea.png", max_pixels=1000)
    Image.new("1", (20_000, 10_000)).save(tmp_path / "huge.png")
    with pytest.raises(ValueError, match=r"200,000,000 pixels .* more than 178,956,970; .*allow 200000000"):
        read_picture(tmp_path / "huge.png")


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "gif", "webp"])
def test_a_picture_beyond_pillows_limits_is_read_without_its_warnings_where_ours_allows_it(
    ending, photographs, tmp_path, monkeypatch
):
    with Image.open(photographs / "chelsea.png") as image:
        image.save(tmp_path / f"large.{ending}")
    for limit in (100_000, 1000):  # Pillow would warn, and refuse
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert read_picture(tmp_path / f"large.{ending}").shape == (300, 451, 3)
        assert limit == Image.MAX_IMAGE_PIXELS

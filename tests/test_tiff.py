"""TIFF files of every layout, read row by row, beside what was written into them."""

from __future__ import annotations

import importlib.util
import tracemalloc

import numpy as np
import pytest
from PIL import Image, ImageFilter

from convnets_torch.images import sources, tiff
from convnets_torch.images.decoding import PictureWarning, Reading, read_picture
from convnets_torch.images.levels import Refused
from convnets_torch.images.tiff import is_tiff, open_tiff
from tests.test_sources import PIXELS, read_through

tifffile = pytest.importorskip("tifffile")
CODECS = importlib.util.find_spec("imagecodecs") is not None
DEEP = np.random.default_rng(1).integers(0, 65536, PIXELS.shape, dtype=np.uint16)
GREY, ALPHA = PIXELS[:, :, 0], np.dstack([PIXELS, PIXELS[:, :, 0]])


def write(path, array, photometric="rgb", **options):
    tifffile.imwrite(path, array, photometric=photometric, **options)
    return path


def rgb(values):
    """What a stored picture looks like, in float64."""
    values = np.floor(values / 65535 * 255 + 0.5).astype(np.uint8) if values.dtype.itemsize == 2 else values
    return np.stack([values] * 3, axis=2) if values.ndim == 2 else values[:, :, :3]


LAYOUTS: dict[str, dict] = {
    "plain": {},
    "plain strips": {"rowsperstrip": 7},
    "tiles": {"tile": (64, 48)},
    "strips": {"rowsperstrip": 7, "compression": "zlib"},
    "tall strips": {"rowsperstrip": 130, "compression": "zlib"},
    "tiles, deflate": {"tile": (64, 48), "compression": "zlib"},
    "tall tiles, deflate": {"tile": (128, 16), "compression": "zlib"},
    "BigTIFF": {"tile": (64, 48), "compression": "zlib", "bigtiff": True},
    "big-endian": {"tile": (64, 48), "byteorder": ">"},
    "big-endian, plain": {"byteorder": ">"},
    "big-endian BigTIFF, plain": {"byteorder": ">", "bigtiff": True},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("array", [PIXELS, GREY, DEEP, DEEP[:, :, 1]], ids=["rgb", "grey", "deep", "deep grey"])
def test_every_layout_is_what_was_written(array, layout, tmp_path):
    path = write(tmp_path / "picture.tif", array, "rgb" if array.ndim == 3 else "minisblack", **layout)
    with path.open("rb") as file:
        assert is_tiff(file)
    source, notes = open_tiff(path)
    assert notes == ()
    assert source.shape == (300, 170)
    np.testing.assert_array_equal(read_through(source), rgb(array))
    np.testing.assert_array_equal(read_through(source, step=300), rgb(array))


@pytest.mark.parametrize("array", [GREY, PIXELS], ids=["grey", "rgb"])
def test_horizontal_differences_are_added_up(array, tmp_path):
    photometric = "rgb" if array.ndim == 3 else "minisblack"
    path = write(tmp_path / "picture.tif", array, photometric, compression="zlib", predictor=2, tile=(64, 64))
    np.testing.assert_array_equal(read_through(open_tiff(path)[0]), rgb(array))


def test_what_pillow_writes_is_what_pillow_reads(tmp_path):
    path = tmp_path / "picture.tif"
    for options in ({}, {"compression": "tiff_adobe_deflate"}, {"compression": "packbits"}):
        Image.fromarray(PIXELS).save(path, **options)
        np.testing.assert_array_equal(read_through(open_tiff(path)[0]), read_picture(path))


@pytest.mark.parametrize(("compression", "name"), [("tiff_lzw", "LZW"), ("jpeg", "JPEG")])
def test_compressions_that_need_imagecodecs_say_so(compression, name, tmp_path):
    path = tmp_path / "picture.tif"
    Image.fromarray(PIXELS).filter(ImageFilter.GaussianBlur(9)).save(path, compression=compression)
    if not CODECS:
        with pytest.raises(ImportError, match=rf"is compressed \({name}\), .*: pip install imagecodecs"):
            open_tiff(path)
        return
    differences = np.abs(read_through(open_tiff(path)[0]).astype(int) - read_picture(path))
    assert differences.max() <= (0 if name == "LZW" else 4)  # two decoders of JPEG, and of its colours


def test_white_may_be_zero(tmp_path):
    path = write(tmp_path / "picture.tif", GREY, "miniswhite", tile=(64, 64))
    np.testing.assert_array_equal(read_through(open_tiff(path)[0]), 255 - rgb(GREY))
    deep = write(tmp_path / "deep.tif", DEEP[:, :, 0], "miniswhite")
    np.testing.assert_array_equal(read_through(open_tiff(deep)[0]), 255 - rgb(DEEP[:, :, 0]))


@pytest.mark.parametrize("layout", [{}, {"tile": (64, 64), "compression": "zlib"}], ids=["plain", "tiles"])
def test_transparency_is_dropped_with_a_remark(layout, tmp_path):
    path = write(tmp_path / "picture.tif", ALPHA, extrasamples=["unassalpha"], **layout)
    source, [note] = open_tiff(path)
    assert "has a channel of transparency; it was dropped, the colours under it taken as stored" in note
    np.testing.assert_array_equal(read_through(source), PIXELS)
    grey = write(
        tmp_path / "grey.tif", PIXELS[:, :, :2], "minisblack", planarconfig="contig", extrasamples=["unassalpha"]
    )
    np.testing.assert_array_equal(read_through(open_tiff(grey)[0]), rgb(GREY))


def test_of_several_pages_the_first_is_read(tmp_path):
    path = tmp_path / "pages.tif"
    tifffile.imwrite(path, np.stack([PIXELS, 255 - PIXELS]), photometric="rgb")
    source, [note] = open_tiff(path)
    assert note.endswith("has 2 frames or pages; the first was read")
    np.testing.assert_array_equal(read_through(source), PIXELS)


@pytest.mark.parametrize("orientation", [1, 2, 3, 4])
def test_mirrored_pictures_are_put_upright(orientation, tmp_path):
    """Pillow turns every TIFF as it says."""
    path = write(tmp_path / "picture.tif", PIXELS, tile=(64, 64), extratags=[(274, "H", 1, orientation, True)])
    np.testing.assert_array_equal(read_through(open_tiff(path)[0]), read_picture(path))
    np.testing.assert_array_equal(read_through(open_tiff(path, Reading(exif=False))[0]), PIXELS)


def seen(values, white=65535, photometric="rgb"):
    """(h, w) or (h, w, channels) as `read_picture` should see it, in float64; transparency is not looked at."""
    values = np.floor(values / white * 255 + 0.5).astype(np.uint8)
    values = values[:, :, None] if values.ndim == 2 else values[:, :, : 1 if values.shape[2] < 3 else 3]
    return np.broadcast_to(255 - values if photometric == "miniswhite" else values, (*values.shape[:2], 3))


DEEP_GREY, DARK = DEEP[:, :, 0], DEEP >> 4  # the second is of 12 bits
MAXIMUM = {"extratags": [(281, "H", 1, 4095, True)]}
KINDS: dict[str, tuple] = {
    "grey": (GREY, "minisblack", {}, 255),
    "grey, white is zero": (GREY, "miniswhite", {}, 255),
    "deep grey": (DEEP_GREY, "minisblack", {}, 65535),
    "deep grey, white is zero": (DEEP_GREY, "miniswhite", {}, 65535),
    "12 bits of grey that say so": (DARK[:, :, 0], "minisblack", MAXIMUM, 4095),
    "12 bits of grey that say so, white is zero": (DARK[:, :, 0], "miniswhite", MAXIMUM, 4095),
    "12 bits of colour that say so": (DARK, "rgb", MAXIMUM, 4095),
    "deep grey whose largest value is noted": (
        DEEP_GREY // 2,
        "minisblack",
        {"extratags": [(281, "H", 1, 32760, True)]},
        65535,
    ),
    "deep colour": (DEEP, "rgb", {}, 65535),
    "colour and something else": (ALPHA, "rgb", {"extrasamples": ["unspecified"]}, 255),
}


@pytest.mark.parametrize("layout", ["plain", "tiles, deflate", "big-endian", "big-endian BigTIFF, plain"])
@pytest.mark.parametrize("kind", KINDS)
def test_small_and_large_files_are_the_same_picture(kind, layout, tmp_path, monkeypatch):
    """Pillow reads the one, tifffile the other; it was a negative where 0 is white in 16 bits."""
    array, photometric, options, white = KINDS[kind]
    path = write(tmp_path / "picture.tif", array, photometric, **options, **LAYOUTS[layout])
    expected = seen(array, white, photometric)
    monkeypatch.setattr(sources, "STREAMED_PIXELS", 0)
    np.testing.assert_array_equal(read_through(sources.open_source(path)), expected)
    deep_negative = (photometric, array.dtype) == ("miniswhite", np.uint16)
    if "BigTIFF" in layout or (deep_negative and layout == "big-endian"):  # which Pillow does not know
        with pytest.raises(OSError, match=r"is a TIFF file of a kind that is not read \((grey|RGB).* \d channel"):
            read_picture(path)
    else:
        np.testing.assert_array_equal(read_picture(path), expected)


@pytest.mark.parametrize("background", [None, "white", "checker", "#FF8000"])
@pytest.mark.parametrize("extra", ["unassalpha", "assocalpha"])
@pytest.mark.parametrize("orientation", [1, 3, 4])
def test_transparency_is_the_same_in_small_and_large_files(extra, background, orientation, tmp_path):
    premultiplied = ALPHA.copy()
    if extra == "assocalpha":
        premultiplied[:, :, :3] = ALPHA[:, :, :3].astype(int) * ALPHA[:, :, 3:] // 255
    tags = [(274, "H", 1, orientation, True)]
    path = write(tmp_path / "picture.tif", premultiplied, extrasamples=[extra], tile=(64, 64), extratags=tags)
    source, notes = open_tiff(path, Reading(background=background))
    if background is None:
        with pytest.warns(PictureWarning, match="partly transparent; transparency was dropped"):
            small = read_picture(path)
        assert len(notes) == 1
    else:
        small = read_picture(path, background=background)
        assert notes == ()
    np.testing.assert_array_equal(read_through(source), small)


def test_values_of_12_bits_are_told_and_read_by_their_depth(tmp_path):
    path = write(tmp_path / "scan.tif", DARK[:, :, 0], "minisblack", rowsperstrip=7, compression="zlib")
    highest = int(DARK[:, :, 0].max())
    sentence = rf"scan\.tif has no value above {highest:,} of 65,535; if its values have 12 bits, say so \(depth=12, --"
    source, [note] = open_tiff(path)
    with pytest.warns(PictureWarning, match=sentence):
        small = read_picture(path)
    assert note.startswith(f"{path} has no value above {highest:,}")
    np.testing.assert_array_equal(read_through(source), small)
    for depth in (12, "12", "auto"):
        source, notes = open_tiff(path, Reading(depth=depth))
        assert notes == ()
        np.testing.assert_array_equal(read_through(source), seen(DARK[:, :, 0], 4095))
        np.testing.assert_array_equal(read_picture(path, depth=depth), seen(DARK[:, :, 0], 4095))
    for read in (lambda: read_picture(path, depth=10), lambda: open_tiff(path, Reading(depth=10))):
        with pytest.raises(ValueError, match=r"has values up to [\d,]+, but white is 1,023; give a greater depth"):
            read()


def test_a_value_beyond_white_is_refused_where_it_is_met(tmp_path):
    array = np.zeros((300, 170), np.uint16)
    array[150, 3] = 5000
    path = write(tmp_path / "scan.tif", array, "minisblack")
    source, _ = open_tiff(path, Reading(depth=12))
    source.rows(0, 150)
    with pytest.raises(Refused, match="values up to 5,000, but white is 4,095"):
        source.rows(150, 151)
    assert open_tiff(path)[1] == ()  # all rows were read, since some use few bits: 5000 has 13


@pytest.mark.parametrize(
    ("array", "options", "kind"),
    [
        (PIXELS.astype(np.int8), {}, r"pixels of 8 bits \(signed integers\), whose range is unknown"),
        (GREY.astype(np.int16), {"photometric": "minisblack"}, r"pixels of 16 bits \(signed integers\), whose range"),
        (GREY.astype(np.int16), {"photometric": "miniswhite"}, r"pixels of 16 bits \(signed integers\), whose range"),
        (PIXELS.astype(np.float16), {}, r"pixels of 16 bits \(floats\), whose range is unknown"),
        (
            GREY.astype(np.uint32),
            {"photometric": "minisblack"},
            r"pixels of 32 bits \(unsigned integers\), whose range",
        ),
        (DEEP.transpose(2, 0, 1), {"planarconfig": "separate"}, r"channels of 16 bits that are stored one after the"),
        (DEEP, {"photometric": "cielab"}, r"kind that is not read \(CIELAB, 3 channels of 16 bits"),
        (PIXELS, {"photometric": "icclab"}, r"kind that is not read \(ICCLAB, 3 channels of 8 bits"),
        (
            DEEP[:, :, :2],
            {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": ["unassalpha"]},
            r"kind that is not read \(grey, 2 channels of 16 bits",
        ),
    ],
)
@pytest.mark.parametrize("layout", ["plain", "big-endian", "tiles, deflate"])
def test_kinds_that_pillow_reads_wrongly_or_not_are_refused_as_what_they_are(array, options, kind, layout, tmp_path):
    """Pillow took signed 8 bits for unsigned ones, and made noise of planar 16 bits."""
    path = write(tmp_path / "odd.tif", np.ascontiguousarray(array), **options, **LAYOUTS[layout])
    with pytest.raises((ValueError, OSError), match=rf"odd\.tif (has|is) .*{kind}.*(scale them to|save it as)"):
        read_picture(path)


def test_lab_and_planar_pictures_are_read_rightly(tmp_path):
    planar = write(tmp_path / "planar.tif", PIXELS.transpose(2, 0, 1), planarconfig="separate", tile=(64, 64))
    np.testing.assert_array_equal(read_picture(planar), PIXELS)
    lab = np.zeros((2, 3, 3), np.int8)
    lab[:, :, 0], lab[:, :, 1], lab[:, :, 2] = 127, 20, -20  # L* is 127/255*100
    color = read_picture(write(tmp_path / "lab.tif", lab.view(np.uint8), "cielab"))[0, 0]
    np.testing.assert_allclose(color, (139, 107, 154), atol=2)  # by the formulas of CIE 15, adapted from D50 to D65


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turn_that_is_not_to_be_followed_is_not_and_that_is_said(orientation, tmp_path):
    """Pillow turns TIFF files by itself."""
    path = write(tmp_path / "picture.tif", PIXELS, extratags=[(274, "H", 1, orientation, True)])
    with pytest.warns(PictureWarning, match=r"picture\.tif is turned or mirrored in its file, .* not followed"):
        np.testing.assert_array_equal(read_picture(path, exif=False), PIXELS)
    source, [note] = open_tiff(path, Reading(exif=False))
    assert "not followed" in note
    np.testing.assert_array_equal(read_through(source), PIXELS)


def test_a_picture_on_its_side_is_refused_unless_that_is_ignored(tmp_path):
    path = write(tmp_path / "picture.tif", PIXELS, extratags=[(274, "H", 1, 6, True)])
    with pytest.raises(ValueError, match=r"lies on its side \(orientation 6\).*; save it upright, or .*exif=False"):
        open_tiff(path)
    np.testing.assert_array_equal(read_through(open_tiff(path, Reading(exif=False))[0]), PIXELS)


@pytest.mark.parametrize(
    ("array", "options", "kind"),
    [
        (PIXELS.transpose(2, 0, 1), {"planarconfig": "separate"}, r"stored one after the other \(planar\)"),
        (GREY, {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}, "its colours are PALETTE"),
        (ALPHA, {"photometric": "separated"}, "its colours are SEPARATED"),
        (PIXELS.astype(np.float32), {}, "its values are floats of 32 bits"),
        (PIXELS.astype(np.int16), {}, "its values are signed integers of 16 bits"),
        (GREY > 99, {"photometric": "minisblack"}, "its values are unsigned integers of 1 bits"),
        (np.dstack([PIXELS, PIXELS]), {"planarconfig": "contig"}, "it has 6 channels"),
        (
            np.stack([GREY] * 16),
            {"photometric": "minisblack", "volumetric": True, "tile": (16, 64, 64)},
            "it is a volume of 16",
        ),
    ],
)
def test_other_kinds_are_refused_by_name(array, options, kind, tmp_path):
    path = write(tmp_path / "odd.tif", array, **options)
    with pytest.raises(ValueError, match=rf"odd\.tif is not read row by row: .*{kind}"):
        open_tiff(path)


def test_rows_that_are_compressed_all_together_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("convnets_torch.images.tiff.BAND_PIXELS", 50_000)
    path = write(tmp_path / "picture.tif", PIXELS, compression="zlib", rowsperstrip=300)
    with pytest.raises(ValueError, match="300 rows of 170 pixels are compressed together"):
        open_tiff(path)
    read_through(open_tiff(write(tmp_path / "plain.tif", PIXELS))[0])  # these need not be decoded together


@pytest.mark.parametrize("layout", ["plain", "tiles, deflate"])
def test_a_truncated_file_is_refused_or_black_where_it_ends(layout, tmp_path):
    path = write(tmp_path / "picture.tif", PIXELS, **LAYOUTS[layout])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(OSError, match=r"picture\.tif is truncated; copy .*\(allow_truncated, --allow-truncated\)"):
        open_tiff(path)
    source, [note] = open_tiff(path, Reading(allow_truncated=True))
    assert note.endswith("is truncated; what is missing of it is black")
    pixels = read_through(source)
    np.testing.assert_array_equal(pixels[:128], PIXELS[:128])
    assert (pixels[256:] == 0).all()


def test_damage_is_met_where_it_is_and_named(tmp_path):
    path = write(tmp_path / "picture.tif", PIXELS, tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[-1]
    with path.open("r+b") as file:
        file.seek(offset + 20)
        file.write(bytes(200))
    source = open_tiff(path)[0]
    np.testing.assert_array_equal(source.rows(0, 200), PIXELS[:200])
    with pytest.raises(OSError, match=r"picture\.tif is broken \(.*\); copy the picture again"):
        source.rows(200, 300)
    path.write_bytes(path.read_bytes()[:6])
    with pytest.raises(OSError, match=r"picture\.tif is broken \(.*\); copy the picture again"):
        open_tiff(path)


def test_a_file_that_is_gone_is_missing_and_not_broken(tmp_path):
    path = write(tmp_path / "picture.tif", PIXELS)
    source = open_tiff(path)[0]
    path.unlink()
    with pytest.raises(FileNotFoundError):
        source.rows(0, 10)


def test_tiles_that_were_left_out_are_black(tmp_path):
    """As GDAL writes sparse files; here the last tile."""
    path = write(tmp_path / "picture.tif", PIXELS, tile=(64, 64))
    with tifffile.TiffFile(path, mode="r+b") as file:
        for name in ("TileOffsets", "TileByteCounts"):
            tag = file.pages[0].tags[name]
            tag.overwrite((*tag.value[:-1], 0))
    pixels = read_through(open_tiff(path)[0])
    assert (pixels[256:, 128:] == 0).all()
    np.testing.assert_array_equal(pixels[:, :128], PIXELS[:, :128])


def test_tiles_are_decoded_once_and_270_mb_pass_through_40_mb(tmp_path, monkeypatch):
    path = tmp_path / "large.tif"
    tile = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (256, 256, 3))
    tiles, shape = (tile for _ in range(40 * 35)), (10_240, 8_960, 3)
    write(path, tiles, shape=shape, dtype=np.uint8, tile=(256, 256), compression="zlib")
    decoded = []

    def noted(reader, top, bottom):
        decoded.append(top)
        return read(reader, top, bottom)

    read = tiff._Reader._decoded
    monkeypatch.setattr(tiff._Reader, "_decoded", noted)
    tracemalloc.start()
    source = open_tiff(path)[0]
    for top in range(0, 10_240, 40):
        rows = source.rows(max(0, top - 8), top + 40)
        assert rows[-1, -1, 0] == (top + 39) % 256
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40_000_000
    assert decoded == list(range(0, 10_240, 256))

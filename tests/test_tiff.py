"""TIFF files of every layout, read row by row, beside what was written into them."""

from __future__ import annotations

import importlib.util
import tracemalloc

import numpy as np
import pytest
from PIL import Image, ImageFilter

from convnets_torch import tiff
from convnets_torch.images import read_picture
from convnets_torch.tiff import is_tiff, open_tiff
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
    source, remarks = open_tiff(path)
    assert remarks == ()
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
    source, [remark] = open_tiff(path)
    assert remark.endswith("has a channel of transparency; it was dropped, the colours under it taken as stored")
    np.testing.assert_array_equal(read_through(source), PIXELS)
    grey = write(
        tmp_path / "grey.tif", PIXELS[:, :, :2], "minisblack", planarconfig="contig", extrasamples=["unassalpha"]
    )
    np.testing.assert_array_equal(read_through(open_tiff(grey)[0]), rgb(GREY))


def test_of_several_pages_the_first_is_read(tmp_path):
    path = tmp_path / "pages.tif"
    tifffile.imwrite(path, np.stack([PIXELS, 255 - PIXELS]), photometric="rgb")
    source, [remark] = open_tiff(path)
    assert remark.endswith("has 2 frames or pages; the first was read")
    np.testing.assert_array_equal(read_through(source), PIXELS)


@pytest.mark.parametrize("orientation", [1, 2, 3, 4])
def test_mirrored_pictures_are_put_upright(orientation, tmp_path):
    """Pillow turns every TIFF as it says."""
    path = write(tmp_path / "picture.tif", PIXELS, tile=(64, 64), extratags=[(274, "H", 1, orientation, True)])
    np.testing.assert_array_equal(read_through(open_tiff(path)[0]), read_picture(path))
    np.testing.assert_array_equal(read_through(open_tiff(path, exif=False)[0]), PIXELS)


def test_a_picture_on_its_side_is_refused_unless_that_is_ignored(tmp_path):
    path = write(tmp_path / "picture.tif", PIXELS, extratags=[(274, "H", 1, 6, True)])
    with pytest.raises(ValueError, match=r"lies on its side \(orientation 6\).*; save it upright, or .*exif=False"):
        open_tiff(path)
    np.testing.assert_array_equal(read_through(open_tiff(path, exif=False)[0]), PIXELS)


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
    monkeypatch.setattr("convnets_torch.tiff.BAND_PIXELS", 50_000)
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
    source, [remark] = open_tiff(path, allow_truncated=True)
    assert remark.endswith("is truncated; what is missing of it is black")
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

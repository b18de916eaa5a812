"""Pictures by strangers: nothing runs, work is bounded, and what cannot be read is one row beside the others."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, features

from convnets_torch.embeddings import result_sheets
from convnets_torch.embeddings.extraction import embed_each
from convnets_torch.embeddings.image_map_drawing import SIDE, thumbnail
from convnets_torch.evaluation.evaluate import evaluate
from convnets_torch.evaluation.labels import GroundTruth
from convnets_torch.explain.gradcam import gradcam_each
from convnets_torch.explain.patches import top_patches
from convnets_torch.heatmaps.many import heatmap_each
from convnets_torch.images import decoding
from convnets_torch.images.decoding import PictureWarning, read_picture
from convnets_torch.images.finding import find_pictures
from convnets_torch.images.sources import open_source
from convnets_torch.inference.classification import classify_each
from convnets_torch.inference.pipeline import expected_pixels, predict
from convnets_torch.weights import save

pytestmark = pytest.mark.hostile

NOISE = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
PROGRAM = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(ran) print { } loop\n%%EOF\n"
ENCAPSULATED = b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 30, len(PROGRAM)) + bytes(18) + PROGRAM


def png(width, height, bits=8, kind=2, extra=b""):
    """A PNG file of zeros, deflated."""
    row = bytes(1 + width * bits // 8 * {0: 1, 2: 3, 6: 4}[kind])
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def saved(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def tiff(tags, content=b""):
    """A TIFF file of one page: (number, type, count, value) each."""
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags)) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(content)) + content + directory


def grey_tags(width, height, offset=8, **changed):
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: offset, 277: 1, 278: height, 279: width * height}
    return [(tag, 4, 1, value) for tag, value in (tags | {int(k[1:]): v for k, v in changed.items()}).items()]


def pages(count, last=0):
    """A TIFF file of so many pages of one pixel; `last` is where the page after the last one lies."""
    size = 2 + 9 * 12 + 4
    found = [b"II*\0" + struct.pack("<I", 12) + b"\x80\0\0\0"]
    for number in range(1, count + 1):
        following = 12 + size * number if number < count else last
        found.append(tiff(grey_tags(1, 1))[8:-4] + struct.pack("<I", following))
    return b"".join(found)


# What is read, and what is not


@pytest.mark.parametrize("name", ["holiday.jpg", "holiday.png", "holiday.eps", "holiday"])
@pytest.mark.parametrize("content", [PROGRAM, ENCAPSULATED], ids=["PostScript", "DOS EPS"])
def test_postscript_starts_no_program_whatever_it_is_called(content, name, tmp_path, monkeypatch):
    """A Ghostscript that leaves a note is first on the path."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    Path(tmp_path / name).write_bytes(content)
    with pytest.raises(OSError, match=r"is PostScript \(EPS\), which is not read, since a program would have to run"):
        read_picture(tmp_path / name)
    assert expected_pixels(tmp_path / name) == 0
    with pytest.raises(ValueError, match="it is not a JPEG file"):
        decoding.open_thumbnail(content, SIDE)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"%PDF-1.7\n", "PDF, which is not read, since a program would have to run; convert it to JPEG or PNG"),
        (b"\xd7\xcd\xc6\x9a" + bytes(40), "WMF, "),
        (b"\1\0\0\0" + bytes(36) + b" EMF" + bytes(40), "EMF, "),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG, "),
        (b"<!DOCTYPE html><html>", "a web page; download the picture itself"),
        (b"GRIB" + bytes(60), "not a picture that Pillow can read"),
        (b"\x1c\x03\x3c\0\2\0\0\x1c\x08\x0a\0\0" + PROGRAM, "not a picture that Pillow can read"),  # IPTC around EPS
    ],
)
def test_kinds_that_other_programs_read_are_refused_by_name(content, kind, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(content)
    with pytest.raises(OSError, match=rf"photo\.jpg is {kind}"):
        read_picture(tmp_path / "photo.jpg")


@pytest.mark.parametrize(
    ("form", "mode"),
    [
        ("BMP", "RGB"), ("DIB", "RGB"), ("GIF", "P"), ("JPEG", "RGB"), ("MPO", "RGB"), ("PNG", "RGB"), ("PPM", "RGB"),
        ("TIFF", "RGB"), ("WEBP", "RGB"), ("JPEG2000", "RGB"), ("ICO", "RGB"), ("TGA", "RGB"),
        ("PCX", "RGB"), ("SGI", "RGB"), ("MSP", "1"), ("DDS", "RGB"), ("QOI", "RGB"), ("BLP", "P"),
        ("XBM", "1"),
    ],
)  # fmt: skip
def test_formats_that_pillow_decodes_by_itself_are_read(form, mode, tmp_path):
    image = Image.fromarray(NOISE).resize((32, 32))
    image = image.quantize(8) if mode == "P" else image.convert(mode)
    try:
        (tmp_path / "x").write_bytes(saved(image, form))
    except KeyError:
        pytest.skip("this Pillow does not write it")
    assert read_picture(tmp_path / "x").shape == (32, 32, 3)


def test_a_format_that_a_user_registers_is_read(tmp_path, monkeypatch):
    """As pillow_heif and the plugins of JPEG XL do it."""

    class Own(ImageFile.ImageFile):
        format = "OWN"

        def _open(self):
            self._mode, self._size = "L", (2, 1)
            self.tile = [ImageFile._Tile("raw", (0, 0, 2, 1), 3, "L")]

    monkeypatch.setattr(Image, "OPEN", Image.OPEN.copy())
    monkeypatch.setattr(Image, "ID", Image.ID.copy())
    Image.register_open("OWN", Own, lambda start: start.startswith(b"OWN"))
    (tmp_path / "x.own").write_bytes(b"OWN\x07\x09")
    assert read_picture(tmp_path / "x.own")[0, :, 0].tolist() == [7, 9]


def test_a_jpeg_file_needs_no_plugins_beside_the_common_ones(tmp_path):
    (tmp_path / "x.jpg").write_bytes(saved(Image.fromarray(NOISE), "JPEG"))
    program = f"""if True:
        import sys
        from convnets_torch.images.decoding import read_picture
        read_picture({str(tmp_path / "x.jpg")!r})
        print(sorted(name for name in sys.modules if name.startswith("PIL.") and "Plugin" in name))
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not any(name in done.stdout for name in ("Eps", "Psd", "WebP", "Jpeg2K", "Wmf"))


# Whatever a decoder raises


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two pictures, and between them files over which decoders raise what is neither OSError nor ValueError."""
    place = tmp_path_factory.mktemp("pictures")
    Image.fromarray(NOISE).resize((300, 300)).save(place / "a.png")
    Image.fromarray(NOISE[::-1]).resize((300, 300)).save(place / "z.png")
    (place / "cut.tif").write_bytes(pages(3)[:-60])
    (place / "short.tif").write_bytes(tiff([tag for tag in grey_tags(4, 4) if tag[0] != 257], bytes(16)))
    (place / "holiday.jpg").write_bytes(PROGRAM)
    if features.check("avif"):
        film = saved(Image.fromarray(NOISE), "AVIF")
        (place / "cut.avif").write_bytes(film[: len(film) // 2])
    with (place / "sparse.jpg").open("wb") as file:
        file.truncate(15 * 10**12)
    return place


def bad_and_good(rows):
    """The errors of rows by the names of their pictures; the pictures beside them have none."""
    errors = {Path(row[0]).name: row[1] for row in rows}
    assert errors.pop("a.png") is None
    assert errors.pop("z.png") is None
    assert {"cut.tif", "short.tif", "holiday.jpg", "sparse.jpg"} <= set(errors)
    for name, error in errors.items():
        assert isinstance(error, OSError | ValueError), name
        assert name in str(error)
        assert str(error).isprintable()


def test_bad_pictures_are_rows_of_every_task_and_those_beside_them_have_results(folder, vgg):
    paths = find_pictures(folder)
    bad_and_good([(row.picture, row.error) for row in classify_each(vgg, paths)])
    bad_and_good([(row.picture, row.error) for row in predict(vgg, paths)])
    bad_and_good([(row.picture, row.error) for row in embed_each(vgg, paths)])
    bad_and_good([(row.picture, row.error) for row in heatmap_each(vgg, paths, "a")])
    bad_and_good([(row.picture, row.error) for row in gradcam_each(vgg, paths, "a")])
    failed = list(top_patches(vgg, paths, "block1_conv1").failed)
    bad_and_good([(path, None) for path in (paths[0], paths[-1])] + failed)


def test_a_bad_picture_is_one_line_of_the_command_and_the_others_have_results(folder, vgg, tmp_path, command):
    save(vgg, tmp_path / "x.safetensors")
    code, out, err = command("classify", tmp_path / "x.safetensors", folder)
    assert code == 1
    assert "Traceback" not in err
    assert "a.png" in out
    assert "z.png" in out
    assert "cut.tif" in err


def test_bad_pictures_are_rows_of_an_index_and_none_is_hashed_for_hours(folder, vgg, tmp_path):
    pytest.importorskip("lancedb")
    from convnets_torch.embeddings.index import index_pictures

    done = index_pictures(vgg, folder, tmp_path / "x.lance")
    assert done.embedded == 2
    assert done.failed == len(find_pictures(folder)) - 2
    assert any("sparse.jpg has 15,000,000,000,000 bytes" in error for error in done.index.errors())


def test_bad_pictures_are_counted_by_an_evaluation(folder, vgg, tmp_path):
    paths = find_pictures(folder)
    truth = GroundTruth(folder, tuple(paths), np.arange(len(paths)) % 10)
    assert len(evaluate(vgg, truth).failed) == len(paths) - 2


@pytest.mark.parametrize("length", range(60, 560, 25))
def test_a_cut_file_of_several_pages_is_read_rightly_or_refused(length, tmp_path):
    frames = [Image.fromarray(NOISE[:8, :8]), Image.fromarray(NOISE[:8, :8])]
    whole = saved(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    (tmp_path / "x.tif").write_bytes(whole[:length])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PictureWarning)
        try:
            np.testing.assert_array_equal(read_picture(tmp_path / "x.tif"), NOISE[:8, :8])
        except OSError as error:
            assert "x.tif is broken" in str(error)  # noqa: PT017 - either is right


@pytest.mark.parametrize("length", [8, 100, 20_000, 90_000])
def test_a_cut_file_that_is_read_row_by_row_is_refused_in_one_sentence(length, tmp_path, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    monkeypatch.setattr("convnets_torch.images.sources.STREAMED_PIXELS", 1000)
    tall = np.random.default_rng(0).integers(0, 256, (400, 100, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", tall, photometric="rgb", compression="zlib", tile=(64, 64))
    (tmp_path / "x.tif").write_bytes((tmp_path / "x.tif").read_bytes()[:length])
    with pytest.raises(OSError, match=r"x\.tif is (broken|truncated|no picture)"):
        open_source(tmp_path / "x.tif").rows(0, 400)


def test_a_file_that_took_the_place_of_one_read_row_by_row_is_not_read(tmp_path, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    monkeypatch.setattr("convnets_torch.images.sources.STREAMED_PIXELS", 1000)
    for name, value in (("x.tif", 7), ("other.tif", 9)):
        tifffile.imwrite(tmp_path / name, np.full((400, 100, 3), value, np.uint8), photometric="rgb")
    source = open_source(tmp_path / "x.tif")
    (tmp_path / "other.tif").replace(tmp_path / "x.tif")
    with pytest.raises(OSError, match=r"x\.tif was changed while it was read; read it again"):
        source.rows(0, 10)


def test_what_a_decoder_raises_by_itself_is_a_sentence_about_the_file(tmp_path, monkeypatch):
    """Errors of any class, and of words that steer a terminal; who interrupts is heard."""
    (tmp_path / "x.png").write_bytes(png(2, 2))
    raised = [KeyError("x"), ZeroDivisionError("by\x1b[31m zero"), RecursionError(), MemoryError(), AssertionError()]
    raised += [AttributeError("none"), zlib.error("bad"), struct.error("cut"), subprocess.CalledProcessError(1, "gs")]
    for error in raised:

        def load(image, error=error):
            raise error

        monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
        with pytest.raises(OSError, match=r"x\.png is broken \(.+\); copy the picture again") as caught:
            read_picture(tmp_path / "x.png")
        assert str(caught.value).isprintable()

    def stop(image):
        raise KeyboardInterrupt

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", stop)
    with pytest.raises(KeyboardInterrupt):
        read_picture(tmp_path / "x.png")


def test_a_thumbnail_of_an_index_is_a_small_jpeg_file_or_none():
    good = thumbnail(Image.fromarray(NOISE))
    assert (np.asarray(result_sheets._squared(good)) != result_sheets.GREY).any()
    large = saved(Image.new("RGB", (4000, 4000)), "JPEG")
    for data in (b"", b"no picture", PROGRAM, saved(Image.new("RGB", (9, 9)), "PNG"), large, good[: len(good) // 2]):
        assert (np.asarray(result_sheets._squared(data)) == result_sheets.GREY).all()


# What a small file may ask for


def repeated_scans(times, **options):
    whole = saved(Image.fromarray(NOISE), "JPEG", **options)
    last = whole.rfind(b"\xff\xda")
    return whole[:last] + whole[last:-2] * times + whole[-2:]


def icon(inside):
    return b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(inside), 22) + inside


def macos_icon(inside):
    return b"icns" + struct.pack(">I", len(inside) + 16) + b"ic10" + struct.pack(">I", len(inside) + 8) + inside


JPEG = saved(Image.fromarray(NOISE), "JPEG")
TEXT = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1_000_000)))
HUGE_PNG = png(5, 5).replace(struct.pack(">II", 5, 5), struct.pack(">II", 30_000, 30_000))
GREEDY = {
    "scans": repeated_scans(500, progressive=True),
    "segments": JPEG[:2] + b"\xff\xe5\0\2" * 300_000 + JPEG[2:],
    "EXIF": JPEG[:2] + (b"\xff\xe1\xff\xffExif\0\0" + bytes(65_527)) * 100 + JPEG[2:],
    "junk": JPEG[:2] + bytes(3_000_000) + JPEG[2:],
    "filling": JPEG[:2] + b"\xff" * 3_000_000 + JPEG[2:],
    "text": png(2, 2, extra=TEXT * 500),
    "chunks": png(2, 2, extra=chunk(b"xxXx", b"") * 100_000),
    "a chunk": png(2, 2, extra=chunk(b"xxXx", bytes(70_000_000))),
    "comment": b"GIF89a\1\0\1\0\0\0\0!\xfe" + (b"\x0f" + bytes(15)) * 200_000 + b"\0;",
    "tags": tiff([(number, 3, 1, 1) for number in range(256, 6000)]),
    "tiles": tiff([*grey_tags(5000, 5000)[:5], (273, 4, 1_200_000, 8), (279, 4, 1_200_000, 8)], bytes(4_800_000)),
    "a tile": tiff(
        [*grey_tags(16, 16, t259=8)[:5], (322, 4, 1, 32768), (323, 4, 1, 65520), (324, 4, 1, 8), (325, 4, 1, 99)],
        zlib.compress(bytes(99_000)),
    ),
    "BigTIFF": b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**62) + bytes(5_000_000),
    "resources": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHHII", 3, 5, 5, 8, 3, 0, 2**31)
    + (b"8BIM\0\1\0\0" + bytes(4)) * 200_000,
    "PPM": b"P6\n#" + b"c" * 3_000_000 + b"\n1 1\n255\n123",
    "no line": b"\r" * 20_000_000,
    "icon": icon(HUGE_PNG),
    "bitmap": icon(struct.pack("<IiiHHIIiiII", 40, 20_000, 40_000, 1, 32, 0, 0, 0, 0, 0, 0)),
    "macOS icon": macos_icon(HUGE_PNG),
    "parts": b"icns\x7f\0\0\0" + b"ic07\0\0\0\1" * 300_000,
    "pixels in Python": b"qoif" + struct.pack(">IIBB", 6000, 6000, 3, 0) + bytes(36_000_000),
    "WebP": b"RIFF\x1a\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xff\x3f\0\xff\x3f\0" + bytes(20),
}  # fmt: skip


@pytest.mark.parametrize("content", GREEDY.values(), ids=GREEDY.keys())
def test_a_file_that_asks_for_much_is_refused_at_once(content, tmp_path):
    (tmp_path / "x").write_bytes(content)
    start = time.process_time()
    with pytest.raises((OSError, ValueError), match=r"/x (is broken|is not a picture|holds|has) .*"):
        read_picture(tmp_path / "x")
    assert time.process_time() - start < 1
    expected_pixels(tmp_path / "x")
    assert time.process_time() - start < 2


def test_what_encoders_write_is_not_much(tmp_path):
    """Scans, segments, chunks, blocks and pages as they are in real files, of more than a megabyte."""
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x010E] = "x" * 60_000
    for form, options in (
        ("JPEG", {"progressive": True, "quality": 98, "exif": exif, "icc_profile": bytes(500_000), "comment": "c"}),
        ("PNG", {"compress_level": 1, "exif": exif, "icc_profile": bytes(900_000)}),
        ("GIF", {"comment": b"c" * 5000, "save_all": True, "append_images": [image.rotate(90)]}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("PPM", {}),
        ("TGA", {}),
    ):
        (tmp_path / "x").write_bytes(saved(image, form, **options))
        assert (tmp_path / "x").stat().st_size > 1_000_000
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PictureWarning)
            assert read_picture(tmp_path / "x").shape == (700, 700, 3)


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.webp", "x"])
@pytest.mark.parametrize("start", [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_a_file_of_terabytes_is_refused_before_it_is_read(start, name, tmp_path):
    with (tmp_path / name).open("wb") as file:
        file.write(start)
        file.truncate(15 * 10**12)
    began = time.process_time()
    with pytest.raises(ValueError, match=r"has 15,000,000,000,000 bytes, more than 16 for each of 178,956,970 pixels"):
        read_picture(tmp_path / name)
    assert expected_pixels(tmp_path / name) == 0
    assert time.process_time() - began < 1


def test_pages_are_counted_up_to_a_thousand_and_circles_once(tmp_path):
    for count, said in ((3, "3"), (1000, "1000"), (100_000, "more than 1,000")):
        (tmp_path / "x.tif").write_bytes(pages(count))
        start = time.process_time()
        with pytest.warns(PictureWarning, match=rf"has {said} frames or pages; the first was read"):
            read_picture(tmp_path / "x.tif")
        assert time.process_time() - start < 2
    (tmp_path / "x.tif").write_bytes(pages(3, last=12))
    with pytest.warns(PictureWarning, match="has 3 frames or pages"):
        read_picture(tmp_path / "x.tif")
    (tmp_path / "x.tif").write_bytes(pages(3, last=10**9))
    with pytest.raises(OSError, match=r"page 4 is missing; the file is truncated"):
        read_picture(tmp_path / "x.tif")


def test_frames_of_a_gif_are_counted_up_to_a_thousand(tmp_path):
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    for count, said in ((3, "3"), (200_000, "more than 1,000")):
        (tmp_path / "x.gif").write_bytes(b"GIF89a\1\0\1\0\x80\0\0" + bytes(6) + frame * count + b";")
        start = time.process_time()
        with pytest.warns(PictureWarning, match=rf"has {said} frames or pages"):
            read_picture(tmp_path / "x.gif")
        assert time.process_time() - start < 1


def peak(path):
    """Megabytes that a process of its own takes to read a picture, beyond what it takes for a small one."""
    program = f"""if True:
        import resource, warnings
        from PIL import Image
        from convnets_torch.images.decoding import read_picture
        warnings.simplefilter("ignore")
        read_picture(Image.new("L", (9, 9)))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        read_picture({str(path)!r})
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(done.stdout) / (1000 if sys.platform != "darwin" else 10**6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bits", "kind", "most"), [(16, 6, 15), (16, 0, 11), (8, 6, 14)], ids=["deep", "grey", "alpha"]
)
def test_a_picture_takes_few_bytes_for_each_pixel(bits, kind, most, tmp_path):
    """Before, 64 bytes for 16-bit colour."""
    (tmp_path / "x.png").write_bytes(png(4000, 4000, bits, kind))
    assert peak(tmp_path / "x.png") < most * 16


def test_work_in_blocks_gives_the_same_pixels(tmp_path, monkeypatch):
    deep = np.random.default_rng(1).integers(0, 65536, (37, 23), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "grey.png")
    row = b"".join(b"\0" + each.astype(">u2").tobytes() for each in np.stack([deep, deep[::-1], 65535 - deep], axis=2))
    header = struct.pack(">IIBBBBB", 23, 37, 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    (tmp_path / "rgb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    whole = [read_picture(tmp_path / name) for name in ("grey.png", "rgb.png")]
    monkeypatch.setattr(decoding, "BLOCK_PIXELS", 50)
    for name, pixels in zip(("grey.png", "rgb.png"), whole, strict=True):
        np.testing.assert_array_equal(read_picture(tmp_path / name), pixels)
    grey = np.floor(deep / 65535 * 255 + 0.5).astype(np.uint8)
    np.testing.assert_array_equal(whole[0][:, :, 1], grey)
    np.testing.assert_array_equal(whole[1][:, :, 0], grey)


# Folders


def test_odd_names_and_files_of_a_folder_are_rows_or_left_out(tmp_path, vgg):
    Image.fromarray(NOISE).save(tmp_path / "a.png")
    Image.fromarray(NOISE).save(tmp_path / "line\nbreak\x1b[31m.png")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.png")).write_bytes((tmp_path / "a.png").read_bytes())
    (tmp_path / "circle.png").symlink_to("circle.png")
    (tmp_path / "nowhere.png").symlink_to("none.png")
    (tmp_path / "up").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "note\x1b[2J.txt").touch()
    with pytest.warns(PictureWarning) as said:
        found = find_pictures(tmp_path)
    assert str(said[0].message).isprintable()
    assert len(found) == 7
    rows = list(predict(vgg, found))
    assert sum(row.error is None for row in rows) == 3
    assert all(isinstance(row.error, OSError) for row in rows if row.error is not None)


@pytest.fixture
def deep_folder(tmp_path):
    """A folder that is removed by a program that does not call itself for each folder below, as pytest does."""
    yield tmp_path
    subprocess.run(["rm", "-rf", *tmp_path.iterdir()], check=True)


def test_folders_deeper_than_python_calls_itself_are_listed(deep_folder):
    tmp_path = deep_folder
    place = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1500):  # each below the last, for which a whole path would be too long
        os.mkdir("d", dir_fd=place)
        place, before = os.open("d", os.O_RDONLY, dir_fd=place), place
        os.close(before)
    os.close(place)
    (tmp_path / "a.png").touch()
    (tmp_path / "d" / "b.png").touch()
    assert [path.name for path in find_pictures(tmp_path)] == ["a.png", "b.png"]
    deeper = tmp_path
    for _ in range(10):
        deeper = deeper / ("e" * 250)
        deeper.mkdir()
    place = os.open(deeper, os.O_RDONLY)
    for _ in range(8):
        os.mkdir("e" * 250, dir_fd=place)
        place, before = os.open("e" * 250, os.O_RDONLY, dir_fd=place), place
        os.close(before)
    os.close(place)
    found = find_pictures(tmp_path)
    assert len(found) == 3
    with pytest.raises(OSError, match="File name too long"):
        read_picture(found[2])


def test_a_kind_that_is_decoded_slowly_is_read_when_its_pixels_are_allowed(monkeypatch, tmp_path):
    path = tmp_path / "plain.ppm"
    path.write_text("P3 20 10 255\n" + "9 8 7\n" * 200)
    monkeypatch.setattr(decoding, "SLOW_PIXELS", 199)  # 16 million take some 17 seconds
    with pytest.raises(ValueError, match=r"plain.ppm has 200 pixels, and its kind of PPM is decoded slowly.*allow 200"):
        read_picture(path)
    assert read_picture(path, max_pixels=200)[9, 19].tolist() == [9, 8, 7]

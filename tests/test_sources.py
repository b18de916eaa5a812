"""Pictures that are read row by row are what `read_picture` reads at once, and stay on their disk."""

from __future__ import annotations

import io
import subprocess
import sys
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from convnets_torch.images import sources
from convnets_torch.images.decoding import PictureWarning, read_picture
from convnets_torch.images.sources import Resized, is_sliced, open_picture, open_source

zarr = pytest.importorskip("zarr")
tifffile = pytest.importorskip("tifffile")

PIXELS = np.random.default_rng(0).integers(0, 256, (300, 170, 3), dtype=np.uint8)


def read_through(source, step=32, overlap=7):
    """All rows, in strips that overlap."""
    height, width = source.shape
    pixels = np.zeros((height, width, 3), np.uint8)
    for top in range(0, height, step):
        start, bottom = max(0, top - overlap), min(height, top + step)
        rows = source.rows(start, bottom)
        assert rows.shape == (bottom - start, width, 3)
        assert rows.dtype == np.uint8
        pixels[start:bottom] = rows
    return pixels


class Sliced:
    """An array that notes which rows are asked for."""

    def __init__(self, array, chunks=None):
        self.array, self.shape, self.dtype, self.asked = array, array.shape, array.dtype, []
        if chunks is not None:
            self.chunks = chunks

    def __getitem__(self, rows):
        self.asked.append((rows.start, rows.stop))
        return self.array[rows]


def mapped(folder, array, mode="r"):
    array.tofile(folder / "picture.raw")
    return np.memmap(folder / "picture.raw", array.dtype, mode, shape=array.shape)


def chunked(folder, array):
    chunks = (64, 50, 3)[: array.ndim]
    stored = zarr.open_array(
        str(folder / "picture.zarr"), mode="w", shape=array.shape, chunks=chunks, dtype=array.dtype
    )
    stored[:] = array
    return stored


def hdf5(folder, array):
    file = h5py.File(folder / "picture.h5", "w")
    return file.create_dataset("picture", data=array, chunks=(37, 50, 3)[: array.ndim])


SLICED = {"memmap": mapped, "zarr": chunked, "h5py": hdf5, "any": lambda folder, array: Sliced(array)}


@pytest.mark.parametrize("store", SLICED.values(), ids=SLICED.keys())
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.dtype(">f8")], ids=str)
def test_a_sliced_array_is_the_array(store, dtype, tmp_path):
    for array in (PIXELS.astype(dtype), PIXELS[:, :, 1].astype(dtype)):
        folder = tmp_path / str(array.ndim)
        folder.mkdir()
        stored = store(folder, array)
        assert is_sliced(stored)
        source = open_source(stored)
        assert source.shape == (300, 170)
        np.testing.assert_array_equal(read_through(source), read_picture(array))


def test_a_file_an_image_an_array_and_a_tensor_are_read_at_once(photographs):
    path = photographs / "chelsea.png"
    pixels = read_picture(path)
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    for picture in (path, str(path), io.BytesIO(path.read_bytes()), Image.open(path), pixels, tensor):
        assert not is_sliced(picture)
        np.testing.assert_array_equal(read_through(open_source(picture)), pixels)
    with pytest.raises(ValueError, match="has 135,300 pixels"):
        open_source(path, max_pixels=1000)


def test_what_is_said_about_a_file_is_said_of_its_source(tmp_path):
    Image.new("RGBA", (4, 3), (10, 20, 30, 40)).save(tmp_path / "glass.png")
    with pytest.warns(PictureWarning, match=r"glass\.png is partly transparent"):
        open_source(tmp_path / "glass.png")
    [note] = open_picture(tmp_path / "glass.png").notes
    assert "glass.png is partly transparent" in note


def test_only_rows_that_are_asked_for_are_read():
    array = Sliced(PIXELS)
    source = open_source(array)
    assert array.asked == []
    source.rows(100, 132)
    source.rows(130, 131)
    assert array.asked == [(100, 132), (130, 131)]


@pytest.mark.parametrize("chunks", [(128, 50, 3), ((128, 128, 44), (170,), (3,))], ids=["zarr", "dask"])
def test_chunks_are_read_once_for_many_narrow_strips(chunks):
    array = Sliced(PIXELS, chunks)
    read_through(open_source(array), step=10)
    assert array.asked == [(0, 128), (128, 256), (256, 300)]


def test_chunks_of_few_rows_are_read_together_and_chunks_of_too_many_apart():
    array = Sliced(PIXELS, (3, 170, 3))
    read_through(open_source(array))
    assert array.asked[0] == (0, 66)
    wide = Sliced(np.broadcast_to(np.zeros((1, 1), np.uint8), (2000, 100_000)), (2000, 10))
    open_source(wide).rows(0, 1)
    assert wide.asked == [(0, 640)]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (PIXELS.astype(np.uint16), r"uint16, but pixels are uint8 or float; divide by 257"),
        (PIXELS[:, :, :2], r"the array is \(300, 170, 2\) uint8, but a picture is \(height, width, 3\)"),
        (PIXELS[None], "give one picture, or a list of them"),
        (PIXELS[:0], r"is \(0, 170, 3\) uint8"),
        (PIXELS.astype(np.float32) / 255, "values are 0 to 1, as if white were 1"),
        (PIXELS - 120.0, "values are -120 to 135, but pixels are 0 to 255"),
        (np.where(np.arange(300)[:, None] == 10, np.nan, 1.0 * PIXELS[:, :, 0]), "holds NaN or infinite values"),
    ],
)
def test_a_sliced_array_that_is_no_picture_is_refused_before_a_row_is_given(array, message):
    with pytest.raises(ValueError, match=message):
        open_source(Sliced(array))


def test_strips_of_a_dark_part_are_no_reason_to_refuse_floats():
    """Where a strip holds 0 to 1 alone, the whole picture says that white is 255."""
    dark = np.zeros((300, 20))
    dark[:100] = 0.6
    dark[299] = 255
    np.testing.assert_array_equal(read_through(open_source(Sliced(dark)))[:, 0, 0], np.rint(dark[:, 0]))


def test_a_slice_of_another_shape_is_refused():
    class Loose(Sliced):
        def __getitem__(self, rows):
            return self.array

    with pytest.raises(ValueError, match=r"rows 3 to 5 of the array are \(300, 170, 3\), not \(2, 170, 3\)"):
        open_source(Loose(PIXELS)).rows(3, 5)


@pytest.mark.parametrize("picture", [PIXELS, Sliced(PIXELS), Sliced(PIXELS, (64, 64, 3))], ids=["array", "any", "zarr"])
def test_rows_that_are_not_there_are_refused(picture):
    source = open_source(picture)
    for top, bottom in ((-1, 5), (5, 5), (290, 301)):
        with pytest.raises(ValueError, match=f"rows {top} to {bottom} are not in a picture of 300 rows; give 0 to 300"):
            source.rows(top, bottom)


def test_what_was_written_to_a_copy_on_write_map_is_kept(tmp_path):
    for mode in ("c", "r+"):
        map = mapped(tmp_path, PIXELS, mode)
        map[7] = 99
        source = open_source(map)
        assert (source.rows(0, 300)[7] == 99).all()
        assert (source.rows(7, 8) == 99).all()
        assert (map[7] == 99).all()


MAPPED = """
import sys
import numpy as np
from convnets_torch.images.sources import open_source

def memory(what):
    [line] = [line for line in open("/proc/self/status") if line.startswith(what)]
    return int(line.split()[1]) * 1024

source = open_source(np.memmap(sys.argv[1], np.uint8, "r", shape=(15_000, 10_000, 3)))
before = memory("VmRSS")
for top in range(0, 15_000, 100):
    source.rows(top, top + 100)
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say the peak of a process")
def test_450_mb_of_a_map_pass_through_30_mb(tmp_path):
    """The peak of a process counts pages of mapped files too."""
    with (tmp_path / "large.raw").open("wb") as file:
        file.truncate(450_000_000)
    command = [sys.executable, "-c", MAPPED, str(tmp_path / "large.raw")]
    assert int(subprocess.run(command, capture_output=True, check=True, text=True).stdout) < 30_000_000


def test_240_mb_of_zarr_pass_through_60_mb(tmp_path):
    shape, chunks = (10_000, 8_000, 3), (250, 1000, 3)
    stored = zarr.open_array(str(tmp_path / "l.zarr"), mode="w", shape=shape, chunks=chunks, dtype="u1", fill_value=9)
    stored[5000:5250] = 200
    tracemalloc.start()
    resized = Resized(open_source(stored), (1000, 800), "bilinear")
    rows = [resized.rows(top, top + 50) for top in range(0, 1000, 50)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert all((strip[30:45] == 9).all() for strip in rows)
    assert (rows[10][1:24] == 200).all()
    assert peak < 60_000_000


def test_a_large_tiff_is_read_row_by_row_and_a_small_one_at_once(tmp_path, monkeypatch):
    path = tmp_path / "picture.jpg"  # the content decides
    tifffile.imwrite(path, PIXELS, photometric="rgb", tile=(64, 64), compression="zlib")
    assert type(open_source(path)).__name__ == "InMemory"
    monkeypatch.setattr(sources, "STREAMED_PIXELS", 50_000)
    source = open_source(path, max_pixels=1000)
    assert type(source).__name__ == "Bands"
    np.testing.assert_array_equal(read_through(source), PIXELS)


def test_a_kind_of_tiff_that_is_not_read_row_by_row_is_decoded_while_that_is_allowed(tmp_path, monkeypatch):
    path = tmp_path / "palette.tif"
    Image.fromarray(PIXELS).quantize(16).save(path)
    monkeypatch.setattr(sources, "STREAMED_PIXELS", 50_000)
    np.testing.assert_array_equal(read_through(open_source(path)), read_picture(path))
    with pytest.raises(ValueError, match="its colours are PALETTE; save it as 8-bit RGB or grey in tiles"):
        open_source(path, max_pixels=50_999)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    open_source(path)
    with pytest.raises(ImportError, match=r"pip install 'convnets-torch\[tiff\]'"):
        open_source(path, max_pixels=50_999)

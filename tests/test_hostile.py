"""Hostile files and odd number types through the whole `convert`: refused with nothing left behind, or read rightly."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.numpy import load_file

from converters import convert
from converters.readers.process import _Reader, reading_process
from tests.conftest import DATA, KERAS1

KERNEL = "block1_conv1/block1_conv1_W"
SOURCE = KERAS1 / "vgg16_notop_th.h5"
WEIGHTS = "model.weights.h5"


@pytest.fixture
def path(tmp_path):
    """A copy of a small file of Keras 1 that may be spoilt."""
    return Path(shutil.copy(SOURCE, tmp_path / "x.h5"))


def replace_kernel(path, **options):
    with h5py.File(path, "r+") as file:
        values = file[KERNEL][()]
        del file[KERNEL]
        file[KERNEL.partition("/")[0]].create_dataset(KERNEL.partition("/")[2], **options)
    return values


def test_the_kernel_is_where_the_tests_take_it_to_be(tmp_path):
    with h5py.File(SOURCE) as file:
        assert file[KERNEL].shape == (4, 3, 3, 3)
    assert convert(SOURCE, tmp_path / "out.safetensors", backend="theano").rows[0].source == "block1_conv1"


# What lies elsewhere


def test_nothing_outside_the_file_is_read(path, refused, tmp_path):
    """Each of these would give the values of another file, which is there and could be read."""
    (tmp_path / "secret.bin").write_bytes(np.ones(108, np.float32).tobytes())
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["x"] = np.ones((4, 3, 3, 3), np.float32)
    replace_kernel(path, shape=(4, 3, 3, 3), dtype="f4", external=[(str(tmp_path / "secret.bin"), 0, 432)])
    refused(path, "external storage, its values lie in the file .*secret.bin", backend="theano")
    with h5py.File(path, "r+") as file:
        del file[KERNEL]
        file[KERNEL] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/x")
    refused(path, "an external link, to /x in .*other.h5", backend="theano")
    layout = h5py.VirtualLayout((4, 3, 3, 3), "f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (4, 3, 3, 3))
    with h5py.File(path, "r+") as file:
        del file[KERNEL]
        file.create_virtual_dataset(KERNEL, layout)
    refused(path, "a virtual dataset, made of other files", backend="theano")


def test_soft_links_are_refused_and_loops_end(path, refused):
    with h5py.File(path, "r+") as file:
        file["block1_conv1/one"], file["block1_conv1/two"] = h5py.SoftLink("two"), h5py.SoftLink("/block1_conv1/one")
    refused(path, "a soft link, to ", backend="theano")


def test_symbolic_links_are_followed_once_and_loops_refused(path, tmp_path):
    (tmp_path / "link.h5").symlink_to(path)
    convert(tmp_path / "link.h5", tmp_path / "out.safetensors", backend="theano")
    (tmp_path / "loop.h5").symlink_to(tmp_path / "pool.h5")
    (tmp_path / "pool.h5").symlink_to(tmp_path / "loop.h5")
    with pytest.raises(OSError, match=r"loop\.h5"):
        convert(tmp_path / "loop.h5", tmp_path / "other.safetensors", backend="theano")
    assert not (tmp_path / "other.safetensors").exists()


# Sizes


def memory_of(process: int, word: str) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(word))


class Peak(threading.Thread):
    """The memory of all processes below the one that forks readers, looked at every millisecond."""

    def __init__(self, server: int) -> None:
        super().__init__(daemon=True)
        self.server, self.largest, self.done = server, 0, threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.001):
            for process in self.readers(self.server):
                try:
                    self.largest = max(self.largest, memory_of(process, "VmHWM"))
                except (OSError, StopIteration):  # gone meanwhile
                    continue

    def readers(self, process: int) -> list[int]:
        found = [process]
        for place in found:
            try:
                found += map(int, Path(f"/proc/{place}/task/{place}/children").read_text().split())
            except OSError:
                continue
        return found[1:]


@pytest.mark.skipif(not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="looks into /proc")
@pytest.mark.parametrize("chunks", [None, (1000, 1000)])
def test_a_trillion_values_are_refused_in_no_time_and_memory(path, refused, chunks):
    replace_kernel(path, shape=(1_000_000, 1_000_000), dtype="f4", chunks=chunks)
    convert(SOURCE, path.parent / "warm.safetensors", backend="theano")  # imports are no part of it
    before = memory_of(os.getpid(), "VmRSS")
    server = _Reader.idle[-1].process.pid
    size = memory_of(server, "VmHWM")
    peak = Peak(server)
    peak.start()
    began = time.monotonic()
    refused(path, r"is \(1000000, 1000000\), but only 0 bytes of it are there", backend="theano")
    seconds = time.monotonic() - began
    peak.done.set()
    peak.join()
    assert seconds < 1
    assert memory_of(os.getpid(), "VmRSS") - before < 50 << 20
    assert 0 < peak.largest < size + (50 << 20)


def test_sizes_that_the_network_does_not_need_are_refused_before_reading(path, refused):
    """All values are there, 40 MB of zeros in some kilobytes."""
    replace_kernel(path, data=np.zeros((100, 1000, 10, 10), np.float32), compression=9, chunks=(100, 1000, 10, 10))
    refused(path, r"is \(100, 1000, 10, 10\), but only \d+ bytes of it are there", backend="theano")


# Types


@pytest.mark.parametrize("dtype", ["<f2", ">f2", ">f4", "<f8", ">f8"])
def test_floating_point_numbers_of_all_kinds_are_read_rightly(path, tmp_path, dtype):
    values = np.random.default_rng(5).normal(size=(4, 3, 3, 3)).astype(dtype)
    replace_kernel(path, data=values)
    report = convert(path, tmp_path / "out.safetensors", backend="theano")
    assert f"{np.dtype(dtype)} to float32" in report.rows[0].change
    found = load_file(tmp_path / "out.safetensors")["features.conv1_1.weight"]
    np.testing.assert_array_equal(found, values[:, :, ::-1, ::-1].astype(np.float32))


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_marked_halves_of_float32_are_read_rightly(path, tmp_path, dtype):
    values = np.random.default_rng(5).normal(size=(4, 3, 3, 3)).astype(np.float32)
    bits = values.view(np.uint32) >> 16
    replace_kernel(path, data=bits.astype(dtype))
    with h5py.File(path, "r+") as file:
        file[KERNEL].attrs["dtype"] = "bfloat16"
    convert(path, tmp_path / "out.safetensors", backend="theano")
    found = load_file(tmp_path / "out.safetensors")["features.conv1_1.weight"]
    np.testing.assert_array_equal(found, (bits << 16).astype(np.uint32).view(np.float32)[:, :, ::-1, ::-1])


@pytest.mark.parametrize("dtype", ["i4", "u2", "u1", "i8", "c8", "c16", "?", "S4"])
def test_what_is_no_floating_point_number_is_refused(path, refused, dtype):
    replace_kernel(path, data=np.ones((4, 3, 3, 3), dtype))
    refused(path, "holds .* values, but weights are floating point", backend="theano")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_values_that_are_not_finite_are_refused(path, refused, value):
    replace_kernel(path, data=np.full((4, 3, 3, 3), value, np.float64))
    refused(path, "holds NaN, infinite or .* weights in block1_conv1", backend="theano")


# Code


@pytest.mark.slow
def test_nothing_of_a_config_is_imported_or_run(tmp_path, refused):
    """A module that a class of the config names lies where Python would find it, and is not imported."""
    (tmp_path / "stolen.py").write_text("raise SystemExit('imported')")
    path = Path(shutil.copy(DATA / "keras305/vgg16.keras", tmp_path / "x.keras"))
    members = read(path)
    config = json.loads(members["config.json"])
    config["config"]["layers"][1] |= {"module": "stolen", "class_name": "Stolen", "registered_name": "stolen>Stolen"}
    write(path, members | {"config.json": json.dumps(config).encode()})
    code = "import sys; from convnets_torch.cli.app import main; sys.path.insert(0, '.'); main()"
    command = [sys.executable, "-c", code, "convert", path.name, "-o", "out.safetensors", "--preprocessing", "unit"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(DATA.parents[1]), str(tmp_path)])}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith("convnets-torch: x.keras")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out.safetensors").exists()


# Archives


def read(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path, members, form=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", form) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def members():
    return read(DATA / "keras305/vgg16.keras")


def test_compressed_archives_are_read_as_stored_ones(tmp_path, members):
    write(tmp_path / "x.keras", members, zipfile.ZIP_DEFLATED)
    convert(tmp_path / "x.keras", tmp_path / "one.safetensors", preprocessing="unit")
    convert(DATA / "keras305/vgg16.keras", tmp_path / "other.safetensors", preprocessing="unit")
    one, other = load_file(tmp_path / "one.safetensors"), load_file(tmp_path / "other.safetensors")
    assert all(np.array_equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "assets/../../escaped", "C:\\escaped", "a\\..\\..\\b"])
def test_members_cannot_escape(tmp_path, members, refused, name):
    path = write(tmp_path / "x.keras", members | {name: b"x"})
    refused(path, "would leave its folder", preprocessing="unit")


def test_bombs_are_refused_by_the_sizes_that_they_declare(tmp_path, members, refused):
    path = write(tmp_path / "x.keras", members | {WEIGHTS: bytes(200_000_000)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 300_000
    refused(path, r"member 'model\.weights\.h5' says 200000000 bytes, stored in", preprocessing="unit")
    path = write(tmp_path / "x.keras", members | {"config.json": b" " * 100_000_000}, zipfile.ZIP_DEFLATED)
    refused(path, r"member 'config\.json' says 100000000 bytes, stored in", preprocessing="unit")


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
@pytest.mark.parametrize("declared", [50_000, 5_000_000])
def test_bombs_that_lie_about_their_size_inflate_no_further(tmp_path, members, refused, name, declared):
    """What is declared is modest; 100 MB would come out."""
    path = write(tmp_path / "x.keras", members | {name: b" " * 100_000_000}, zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    local = data.index(name.encode(), data.index(b"PK\x03\x04")) - 30
    central = data.rindex(name.encode()) - 46
    for place in (local + 22, central + 24):
        assert data[place : place + 4] == struct.pack("<I", 100_000_000)
        data[place : place + 4] = struct.pack("<I", declared)
    path.write_bytes(data)
    refused(path, r"x\.keras", preprocessing="unit")


def test_members_that_overlap_and_archives_in_archives_are_refused(tmp_path, members, refused):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr(WEIGHTS, members[WEIGHTS])
    refused(
        write(tmp_path / "x.keras", members | {WEIGHTS: inner.getvalue()}), "cannot be opened", preprocessing="unit"
    )
    # The config's entry points at the bytes of the metadata: one local header for two members.
    path = write(tmp_path / "x.keras", members)
    with zipfile.ZipFile(path) as archive:
        offsets = {member.filename: member.header_offset for member in archive.infolist()}
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\x01\x02", data.rindex(b"PK\x03\x04") + 4)
    while data[place + 46 : place + 46 + len(WEIGHTS)] != WEIGHTS.encode():
        place = data.index(b"PK\x01\x02", place + 4)
    data[place + 42 : place + 46] = struct.pack("<I", offsets["config.json"])
    path.write_bytes(data)
    refused(path, r"model\.weights\.h5 is not where the zip says", preprocessing="unit")


# Layers that have changed places


@pytest.mark.parametrize("form", ["groups", "lists"])
def test_layers_of_one_shape_that_were_swapped_are_caught_where_names_tell(path, refused, form):
    one, other = "block5_conv1", "block5_conv2"
    with h5py.File(path, "r+") as file:
        if form == "groups":
            file.move(one, "moved"), file.move(other, one), file.move("moved", other)
        else:
            names = [file[name].attrs["weight_names"] for name in (one, other)]
            file[one].attrs["weight_names"], file[other].attrs["weight_names"] = names[1], names[0]
    refused(path, "named after block5_conv2|lists layers or arrays that are missing", backend="theano")


def test_a_list_of_layers_in_another_order_is_refused(path, refused):
    with h5py.File(path, "r+") as file:
        names = [name if isinstance(name, str) else name.decode() for name in file.attrs["layer_names"]]
        one, other = names.index("block5_conv1"), names.index("block5_conv2")
        names[one], names[other] = names[other], names[one]
        file.attrs["layer_names"] = names
    refused(path, r"block5_conv2 \(Conv2D\) stands where block5_conv1 \(Conv2D\) should", backend="theano")


# Words of a file


def test_names_that_steer_a_terminal_or_fill_pages_become_one_printable_line(path, refused):
    with h5py.File(path, "r+") as file:
        file.attrs["layer_names"] = [b"evil\n\x1b[2J\x07", b"x" * 5000, b"y"]
    refused(path, r"evil", backend="theano")
    with reading_process() as call, pytest.raises(ValueError, match="evil") as caught:
        call("read", path=str(path))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 5000


def test_a_config_that_is_deeper_than_python_recurses_is_refused(tmp_path, members, refused):
    for depth in (250, 900, 5000, 200_000):
        deep = '{"class_name": "Functional", "config": {"layers": [], "x": ' + "[" * depth + "]" * depth + "}}"
        path = write(tmp_path / "x.keras", members | {"config.json": deep.encode()})
        refused(path, "nested too deeply", preprocessing="unit")


def test_a_checksum_that_is_wrong_is_refused(tmp_path, members, refused):
    """Of a compressed member, which zipfile reads; stored weights are read in place, where HDF5 has no sum to check."""
    path = write(tmp_path / "x.keras", members, zipfile.ZIP_DEFLATED)
    data = path.read_bytes()
    assert struct.pack("<I", zlib.crc32(members[WEIGHTS])) in data
    path.write_bytes(data.replace(struct.pack("<I", zlib.crc32(members[WEIGHTS])), b"\x01\x02\x03\x04"))
    refused(path, "Bad CRC-32", preprocessing="unit")

"""Files made to mislead, and broken ones: refused in one sentence that names the file, before an array is read."""

from __future__ import annotations

import json
import struct
import time
import tracemalloc
import zipfile

import h5py
import numpy as np
import pytest

from converters import read_keras
from tests.conftest import KERAS1
from tests.test_reading import write


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "x.h5", {"a": {"a_W": (2, 3), "a_b": (3,)}, "b": {}})


def external_link(file):
    file["a/out"] = h5py.ExternalLink("/etc/passwd", "/secret")


def external_link_in_place(file):
    del file["a/a_W"]
    file["a/a_W"] = h5py.ExternalLink("other.h5", "/a_W")


def soft_link(file):
    file["a/again"] = h5py.SoftLink("/a/a_W")


def soft_loop(file):
    file["a/one"], file["a/two"] = h5py.SoftLink("/a/two"), h5py.SoftLink("/a/one")


def hard_loop(file):
    file["a/up"] = file["/a"]


def virtual(file):
    layout = h5py.VirtualLayout((2, 3), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (2, 3))
    del file["a/a_W"]
    file["a"].create_virtual_dataset("a_W", layout)


def external_storage(file):
    del file["a/a_W"]
    file["a"].create_dataset("a_W", (2, 3), "f4", external=[("/etc/passwd", 0, 24)])


def never_written(file):
    del file["a/a_W"]
    file["a"].create_dataset("a_W", (1_000_000, 1_000_000), "f4")


def never_written_chunks(file):
    del file["a/a_W"]
    file["a"].create_dataset("a_W", (1_000_000, 1_000_000), "f4", chunks=(10, 10))


def zeros(file):
    del file["a/a_W"]
    values = np.zeros((2000, 2000), np.float32)
    file["a"].create_dataset("a_W", data=values, compression="gzip", chunks=(2000, 2000))


def other_filter(file):
    del file["a/a_W"]
    file["a"].create_dataset("a_W", data=np.ones((64, 64), np.float32), scaleoffset=3)


def stored(values):
    def change(file):
        del file["a/a_W"]
        file["a/a_W"] = values

    return change


def group_instead(file):
    del file["a/a_W"]
    file["a"].create_group("a_W")


def array_gone(file):
    del file["a/a_W"]


def layer_gone(file):
    del file["b"]


def listed_twice(file):
    file["a"].attrs["weight_names"] = [b"a_W", b"a_W"]


def layer_twice(file):
    file.attrs["layer_names"] = [b"a", b"a"]


def no_list(file):
    del file["a"].attrs["weight_names"]


def no_names(file):
    file.attrs["layer_names"] = [1.0, 2.0]


def no_utf8(file):
    file.attrs["layer_names"] = np.array([b"\xff\xfe"])


def deep(file):
    file["/".join("a" * 80)] = 1.0


def bad_config(text):
    def change(file):
        file.attrs["model_config"] = text

    return change


CASES = {
    external_link: "/a/out is an external link, to /secret in /etc/passwd",
    external_link_in_place: "/a/a_W is an external link, to /a_W in other.h5",
    soft_link: "/a/again is a soft link, to /a/a_W",
    soft_loop: "/a/one is a soft link, to /a/two",
    hard_loop: "/a/up is a second name for something else",
    virtual: "/a/a_W is a virtual dataset",
    external_storage: "/a/a_W is external storage, its values lie in the file /etc/passwd",
    never_written: r"/a/a_W is \(1000000, 1000000\), but only 0 bytes of it are there",
    never_written_chunks: r"/a/a_W is \(1000000, 1000000\), but only 0 bytes of it are there",
    zeros: r"/a/a_W is \(2000, 2000\), but only \d+ bytes of it are there",
    other_filter: "/a/a_W is stored through filter 6",
    stored(np.ones((2, 3), np.int32)): "/a/a_W holds int32 values",
    stored(np.ones((2, 3), np.uint16)): "/a/a_W holds uint16 values",
    stored(np.ones((2, 3), np.complex64)): "/a/a_W holds .*complex.* values",
    stored(np.ones((2, 3), bool)): "/a/a_W holds .* values, but weights are floating point",
    stored([b"text"]): "/a/a_W holds strings values",
    stored(np.ones((2, 3), np.longdouble)): "/a/a_W holds .* values, but weights are floating point",
    group_instead: "/a/a_W is not an array",
    array_gone: "lists layers or arrays that are missing: a/a_W",
    layer_gone: "lists layers or arrays that are missing: b",
    listed_twice: "/a lists an array twice",
    layer_twice: "lists a layer twice",
    no_list: "/a does not list its weights",
    no_names: "is broken .*holds something that is not a name",
    no_utf8: "is broken .*codec can't decode",
    deep: "is broken .*nested deeper than 64",
    bad_config("{"): "is broken .*config is not JSON",
    bad_config("[" * 200_000): "is broken .*config is n",
    bad_config("[]"): "is broken .*config names no class",
    bad_config('{"class_name": "Model", "config": {"layers": [1]}}'): "is broken .*has a layer without a class",
}


@pytest.mark.parametrize(("change", "sentence"), CASES.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_what_keras_never_writes_is_refused(path, change, sentence):
    with h5py.File(path, "r+") as file:
        change(file)
    tracemalloc.start()
    began = time.monotonic()
    with pytest.raises(ValueError, match=sentence) as refused:
        read_keras(path)
    assert time.monotonic() - began < 1
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("count", [-1, 10**9, 1.5e300, "many", [1, 2]])
def test_absurd_numbers_of_layers_are_refused(tmp_path, count):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.attrs["nb_layers"] = count
    with pytest.raises(ValueError, match=r"x\.h5 is broken: .* (is not a number|not 0 to 100000)"):
        read_keras(tmp_path / "x.h5")


def test_files_that_are_no_keras_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist; name a file"):
        read_keras(tmp_path / "none.h5")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        read_keras(tmp_path)
    (tmp_path / "empty.h5").touch()
    with pytest.raises(OSError, match=r"empty\.h5 is not an HDF5 file"):
        read_keras(tmp_path / "empty.h5")
    (tmp_path / "cut.h5").write_bytes((KERAS1 / "alexnet.h5").read_bytes()[:50_000])
    with pytest.raises(OSError, match=r"cut\.h5 is truncated or broken and cannot be opened"):
        read_keras(tmp_path / "cut.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = np.ones(3)
    with pytest.raises(ValueError, match=r"other\.h5 holds no Keras weights \(neither .* but data\)"):
        read_keras(tmp_path / "other.h5")


def archive(path, members, **options):
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, data in members:
            file.writestr(name, data)
    return path


CONFIG = json.dumps({"class_name": "Sequential", "config": {"layers": []}})
MEMBERS = [("metadata.json", "{}"), ("config.json", CONFIG), ("model.weights.h5", "")]


def patched(data, offset, what):
    return data[:offset] + what + data[offset + len(what) :]


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ([*MEMBERS, ("../outside", "x")], "member '../outside' would leave its folder"),
        ([*MEMBERS, ("/etc/x", "x")], "member '/etc/x' would leave its folder"),
        ([*MEMBERS, ("assets\\..\\..\\x", "x")], "would leave its folder"),
        (MEMBERS[:2], "holds no model.weights.h5, but 'metadata.json', 'config.json'"),
        ([*MEMBERS[:2], ("model.weights.npz", "x")], "holds no model.weights.h5, but .*npz"),
        ([MEMBERS[0], MEMBERS[2]], r"holds no config\.json"),
        ([*MEMBERS[:1], ("config.json", "{"), MEMBERS[2]], "is broken .*config is not JSON"),
        ([("metadata.json", "{"), *MEMBERS[1:]], r"metadata\.json is not JSON"),
    ],
)
def test_archives_with_other_members_are_refused(tmp_path, members, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_keras(archive(tmp_path / "x.keras", members))


def test_an_archive_with_a_member_twice_is_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive(tmp_path / "x.keras", [*MEMBERS, MEMBERS[1]])
    with pytest.raises(ValueError, match=r"has two members 'config\.json'"):
        read_keras(tmp_path / "x.keras")


def test_an_archive_that_would_inflate_without_bound_is_refused(tmp_path):
    members = [*MEMBERS[:2], ("model.weights.h5", bytes(50_000_000))]
    archive(tmp_path / "x.keras", members, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"member 'model\.weights\.h5' says 50000000 bytes, stored in \d+"):
        read_keras(tmp_path / "x.keras")


@pytest.mark.parametrize("form", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_archives_whose_sizes_lie_are_refused(tmp_path, form, keras3_formats):
    """The central directory says another size than what is there."""
    with zipfile.ZipFile(keras3_formats / "many.keras") as source:
        members = [(name, source.read(name)) for name in source.namelist()]
    data = archive(tmp_path / "x.keras", members, compression=form).read_bytes()
    entry = data.rindex(b"PK\x01\x02")  # of the last member, the weights
    for offset, size in ((24, 40_000), (24, 60_000), (20, 100)):
        (tmp_path / "x.keras").write_bytes(patched(data, entry + offset, struct.pack("<I", size)))
        with pytest.raises((ValueError, OSError), match=r"x\.keras"):
            read_keras(tmp_path / "x.keras")


def test_encrypted_and_broken_archives_are_refused(tmp_path):
    data = archive(tmp_path / "x.keras", MEMBERS).read_bytes()
    (tmp_path / "x.keras").write_bytes(patched(data, data.rindex(b"PK\x01\x02") + 8, b"\x01\x00"))
    with pytest.raises(ValueError, match=r"member 'model\.weights\.h5' is encrypted"):
        read_keras(tmp_path / "x.keras")
    (tmp_path / "x.keras").write_bytes(data[:-30])
    with pytest.raises(OSError, match=r"x\.keras is a broken zip"):
        read_keras(tmp_path / "x.keras")
    (tmp_path / "x.keras").write_bytes(data)
    with pytest.raises(OSError, match=r"model\.weights\.h5 cannot be opened"):
        read_keras(tmp_path / "x.keras")

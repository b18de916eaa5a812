"""Safetensors files: what is filled in place is what the library writes, and what is mapped is what it reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from convnets_torch.safetensors_io import filling, header_of_opened, map_arrays, read_arrays, write_arrays
from convnets_torch.weights import load, save

LAYOUT = {
    "b.weight": ("F32", (3, 5)),
    "a.steps": ("I64", ()),
    "a.bias": ("F32", (7,)),
    "c.steps": ("I64", ()),
}


def test_the_bytes_are_those_of_the_library(tmp_path):
    values = {
        name: torch.randn(shape) if dtype == "F32" else torch.tensor(4) for name, (dtype, shape) in LAYOUT.items()
    }
    metadata = {"card": '{"name": "w\\u00e4sp \\"quoted\\"", "path": "a\\\\b"}'}
    save_file(values, tmp_path / "library", metadata)
    with filling(tmp_path / "ours", LAYOUT, metadata) as file:
        for name, array in file.arrays.items():
            array[...] = values[name]
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "library").read_bytes()


def test_a_real_network_with_counters_is_written_as_the_library_does(lite_weights, tmp_path):
    save(load(lite_weights), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == lite_weights.read_bytes()


def test_metadata_may_change_but_not_in_length(tmp_path):
    with filling(tmp_path / "out", LAYOUT, {"card": "000"}) as file:
        file.metadata = {"card": "abc"}
    assert b'"card":"abc"' in (tmp_path / "out").read_bytes()
    (tmp_path / "out").write_text("precious")

    def grow():
        with filling(tmp_path / "out", LAYOUT, {"card": "000"}) as file:
            file.metadata = {"card": "a much longer text"}

    with pytest.raises(ValueError, match=r"room for .* was kept"):
        grow()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_text() == "precious"


@pytest.mark.parametrize("damage", [lambda raw: raw + b"more", lambda raw: raw[:-1], lambda raw: b"\xff" + raw[1:]])
def test_what_another_process_damages_is_not_put_in_place(damage, tmp_path):
    def fill():
        with filling(tmp_path / "out", LAYOUT, {"card": "000"}) as file:
            file.arrays.clear()
            raw = damage(file.path.read_bytes())
            with file.path.open("r+b") as written:
                written.write(raw)
                written.truncate(max(len(raw), 100))

    with pytest.raises(ValueError, match="was damaged while it was written"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_mapped_arrays_are_those_that_the_library_reads(tmp_path):
    path = tmp_path / "some.safetensors"
    arrays: dict[str, np.ndarray] = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.arange(4),
        "c": np.zeros((0, 5), np.uint8),
    }
    write_arrays(path, arrays, {"about": "ü"})
    with path.open("rb") as file:
        header = header_of_opened(file, path)
        found = map_arrays(file, header, arrays)
    read, metadata = read_arrays(path)
    assert header["__metadata__"] == metadata == {"about": "ü"}
    for name, array in arrays.items():
        assert found[name].dtype == read[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, strict=True)
        np.testing.assert_array_equal(read[name], array, strict=True)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 20]},
        {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 24]},
        {"dtype": "F32", "shape": [2, 3], "data_offsets": [-24, 0]},
        {"dtype": "F32", "shape": [-2, -3], "data_offsets": [0, 24]},
        {"dtype": "F32", "shape": [2.0, 3.0], "data_offsets": [0, 24]},
        {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
        {"dtype": "F32", "shape": [2, 3]},
        {"dtype": "F32", "shape": 6, "data_offsets": [0, 24]},
    ],
)
def test_arrays_that_do_not_fit_their_file_are_not_mapped(entry, tmp_path):
    path = tmp_path / "some.safetensors"
    write_arrays(path, {"a": np.ones((2, 3), np.float32)}, {})
    with path.open("rb") as file, pytest.raises((ValueError, KeyError, TypeError)):
        map_arrays(file, {"a": entry}, ["a"])

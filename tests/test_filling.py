"""Files that are filled in place are those that the library writes, byte for byte."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from convnets_torch.safetensors_io import filling
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

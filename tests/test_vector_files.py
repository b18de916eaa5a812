"""Files of vectors: what is read back, how much is held while they are written, and what a failure leaves."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from safetensors.numpy import load_file

from convnets_torch.embeddings.extraction import Embedded, Embedder, embed_each
from convnets_torch.embeddings.files import SavedVectors, save_vectors
from tests.reference.pictures import picture
from tests.test_pipeline import small

ERROR = OSError("b.jpg is\nno picture")


def rows_of(count: int, logits: bool = False, names=("fc1",)):
    """Good rows of 3, 4, ... values, and a bad one after each second."""
    for number in range(count):
        vectors = {name: torch.full((3 + place,), number + place / 8) for place, name in enumerate(names)}
        yield Embedded(
            Path(f"{number}.jpg"), vectors, logits=torch.tensor([number, -number]).float() if logits else None
        )
        if number % 2:
            yield Embedded(f"bad-{number}.jpg", None, ERROR)


def read(path):
    """Numbers, and texts as lists, from a file of either kind, by its own library."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(str(arrays.pop("about")))
        texts = {name: arrays.pop(name).tolist() for name in ("paths", "failed", "errors")}
    else:
        arrays = load_file(path)
        texts = {name: json.loads(arrays.pop(name).tobytes()) for name in ("paths", "failed", "errors")}
        with safetensors.safe_open(path, "numpy") as file:
            about = file.metadata()
    return arrays, texts, about


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
@pytest.mark.parametrize("count", [1, 5])
def test_what_is_read_back_is_what_was_given(ending, count, tmp_path):
    path = tmp_path / f"vectors.{ending}"
    about = {"network": "vgg16", "words": 'a "quoted" word, ü'}
    saved = save_vectors(rows_of(count, logits=True, names=("fc1", "block5/out")), path, about)
    assert saved == SavedVectors(
        {"vectors.fc1": (count, 3), "vectors.block5/out": (count, 4), "logits": (count, 2)}, count, count // 2
    )
    arrays, texts, found = read(path)
    assert found == about
    assert texts == {
        "paths": [f"{number}.jpg" for number in range(count)],
        "failed": [f"bad-{number}.jpg" for number in range(1, count, 2)],
        "errors": ["b.jpg is no picture"] * (count // 2),
    }
    numbers = np.arange(count, dtype=np.float32)
    np.testing.assert_array_equal(arrays["vectors.fc1"], np.repeat(numbers[:, None], 3, 1))
    np.testing.assert_array_equal(arrays["vectors.block5/out"], np.repeat(numbers[:, None] + 1 / 8, 4, 1))
    np.testing.assert_array_equal(arrays["logits"], np.stack([numbers, -numbers], 1))
    assert {array.dtype for array in arrays.values()} == {np.dtype("float32")}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_one_layer_needs_no_name_and_odd_paths_stay_what_they_are(ending, tmp_path):
    names = ["bücher/a b.jpg", 'x"y\\z.png', "line\nbreak.jpg", "\udcff.jpg"]  # the last as Python reads bytes 0xff
    rows = [Embedded(name, {"fc2": torch.ones(2)}) for name in names]
    rows.insert(2, Embedded(np.zeros((2, 2, 3)), {"fc2": torch.zeros(2)}))  # no file: its number
    save_vectors(rows, tmp_path / f"v.{ending}")
    arrays, texts, about = read(tmp_path / f"v.{ending}")
    assert texts["paths"] == [*names[:2], "2", *names[2:]]
    assert list(arrays) == ["vectors"]
    assert arrays["vectors"].sum(1).tolist() == [2, 2, 0, 2, 2]
    assert not about
    assert texts["errors"] == []


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_the_same_rows_give_the_same_file(ending, tmp_path):
    contents = []
    for name in ("a", "b"):
        save_vectors(rows_of(5), tmp_path / f"{name}.{ending}", {"network": "vgg16"})
        contents.append((tmp_path / f"{name}.{ending}").read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_no_row_is_held_after_it_was_written(ending, tmp_path):
    alive: list[weakref.ref] = []

    def rows():
        for number in range(200):
            vector = torch.full((10,), float(number))
            alive.append(weakref.ref(vector))
            yield Embedded(f"{number}.jpg", {"fc1": vector})
            del vector
            assert sum(reference() is not None for reference in alive) <= 2

    assert save_vectors(rows(), tmp_path / f"v.{ending}").pictures == 200


def test_a_file_says_what_made_it(tmp_path):
    network = small()
    embedder = Embedder(network, ["relu_3", "pool_5"], "max", normalize=True)
    save_vectors(embed_each(network, [picture(1, 300, 280)], ["relu_3", "pool_5"], "max", True), tmp_path / "v.npz")
    assert embedder.about == {
        "network": "alexnet",
        "card": network.card.to_json(),
        "layers": '["relu_3", "pool_5"]',
        "pool": "max",
        "normalize": "true",
    }
    assert Embedder(network).about["layers"] == '["input of head.dense_3"]'


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "v.npz"
    path.write_text("before")

    def breaking():
        yield from rows_of(2)
        raise OSError("the disk is gone")

    refused = [
        (breaking(), "the disk is gone"),
        ([Embedded("a.jpg", None, ERROR)] * 3, "none of 3 pictures could be used; the first: b.jpg is"),
        ([], "there are no pictures"),
        ([Embedded("a", {"fc1": torch.ones(2)}), Embedded("b", {"fc1": torch.ones(3)})], "b has {'vectors': 3}, but"),
        (
            [Embedded("a", {"x": torch.ones(2)}), Embedded("b", {"x": torch.ones(2)}, logits=torch.ones(2))],
            "save them apart",
        ),
    ]
    for rows, message in refused:
        with pytest.raises((OSError, ValueError), match=message):
            save_vectors(rows, path)
        assert path.read_text() == "before"
        assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match=r"vectors can be written as \.npz or \.safetensors"):
        save_vectors(rows_of(1), tmp_path / "v.npy")
    with pytest.raises(FileNotFoundError, match="create it first"):
        save_vectors(rows_of(1), tmp_path / "none" / "v.npz")

"""The command `map`: from a network and pictures, from a file of vectors, on an old map; what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from base64 import b64decode

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from convnets_torch import embed, load, make_map
from convnets_torch.embeddings.extraction import Embedder, embed_each
from convnets_torch.embeddings.files import read_vectors, save_vectors
from convnets_torch.embeddings.image_map import load_map
from tests.conftest import NARROW

GOOD = ["astronaut.png", "camera.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png"]


@pytest.fixture(scope="module")
def folder(photographs, tmp_path_factory):
    """Parts of six photographs, three of each, and a file that is none."""
    made = tmp_path_factory.mktemp("photos")
    for name in GOOD:
        with Image.open(photographs / name) as whole:
            image = whole.convert("RGB")
        width, height = image.size
        for number, corner in enumerate([(0, 0), (width // 8, height // 8), (width // 4, 0)]):
            box = (*corner, corner[0] + 3 * width // 4, corner[1] + 3 * height // 4)
            image.crop(box).resize((240, 180)).save(made / f"{name[:-4]}_{number}.png")
    (made / "bad.jpg").write_bytes(b"no picture")
    return made


@pytest.fixture(scope="module")
def vectors(lite_weights, folder, tmp_path_factory):
    """What `embed` writes for it, with logits."""
    path = tmp_path_factory.mktemp("vectors") / "v.npz"
    network = load(lite_weights)
    save_vectors(embed_each(network, sorted(folder.glob("*")), logits=True), path, Embedder(network).about)
    return path


def page_data(path):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.S)
    return json.loads(found[1])


def test_a_folder_becomes_a_page_a_picture_and_a_map(command, lite_weights, folder, tmp_path):
    page, png, saved = tmp_path / "m.html", tmp_path / "m.png", tmp_path / "m.safetensors"
    code, out, error = command("map", lite_weights, folder, "-o", page, "--png", png, "--save", saved)
    assert (code, out) == (1, "")  # a picture could not be used
    names = sorted(str(path) for path in folder.glob("*.png"))
    data = page_data(page)
    assert data["names"] == names
    assert "a perplexity of 30 needs 61 pictures or more, but there are 18; using 8.5" in error
    assert re.search(r"m\.png: \d+ of 18 pictures; the others would overlap and are dots", error)
    assert "the same as others" not in error
    assert f"{folder / 'bad.jpg'}</bdi>" in page.read_text()  # listed with its error
    assert "1 could not be used" in page.read_text()
    with Image.open(png) as drawn:
        assert max(drawn.size) == 2400
    kept = load_map(saved)
    assert [entry.name for entry in kept.entries] == names
    wanted = make_map(embed(load(lite_weights), names).numpy(), perplexity=8.5)
    np.testing.assert_array_equal(kept.image_map.positions, wanted.positions)
    words = {entry.name: entry.words for entry in kept.entries}
    assert words[str(folder / "coffee_0.png")] == "espresso"
    assert kept.about == Embedder(load(lite_weights)).about
    assert 'id="failed" data-count="1"' in page.read_text()


def test_identical_files_are_drawn_as_one(command, lite_weights, folder, tmp_path):
    for number, name in enumerate(("coffee_0.png", "coffee_1.png", "coffee_2.png", "coffee_0.png", "coffee_0.png")):
        shutil.copy(folder / name, tmp_path / f"{number}.png")
    code, _, error = command(
        "map", lite_weights, tmp_path, "--png", tmp_path / "m.jpg", "--save", tmp_path / "m.safetensors"
    )
    assert code == 0
    assert "2 pictures are the same as others and are drawn as one with them" in error
    positions = load_map(tmp_path / "m.safetensors").image_map.positions
    assert len(np.unique(positions, axis=0)) == 3
    assert (positions[[3, 4]] == positions[0]).all()


def test_parts_of_one_photograph_lie_together(command, vectors, tmp_path):
    assert command("map", vectors, "--save", tmp_path / "m.safetensors", "--perplexity", 3)[0] == 1
    kept = load_map(tmp_path / "m.safetensors")
    of = np.array([entry.name[:-6] for entry in kept.entries])
    away = np.linalg.norm(kept.image_map.positions[:, None] - kept.image_map.positions, axis=2)
    np.fill_diagonal(away, np.inf)
    assert (of[away.argmin(axis=1)] == of).mean() > 0.85


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_vectors_of_a_file_give_the_same_map_as_the_network(command, lite_weights, folder, tmp_path, ending):
    network, path = load(lite_weights), tmp_path / f"v{ending}"
    save_vectors(embed_each(network, sorted(folder.glob("*.png")), logits=True), path, Embedder(network).about)
    for source, name in ([[lite_weights, *sorted(folder.glob("*.png"))], "one"], [[path], "other"]):
        code, _, _ = command("map", *source, "--save", tmp_path / f"{name}.safetensors", "--perplexity", 4)
        assert code == 0
    one, other = (load_map(tmp_path / f"{name}.safetensors") for name in ("one", "other"))
    np.testing.assert_array_equal(one.image_map.positions, other.image_map.positions)
    assert one.entries == other.entries
    assert one.about == other.about


def test_new_pictures_are_placed_on_an_old_map(command, lite_weights, folder, tmp_path):
    old, new = sorted(folder.glob("*_[01].png")), sorted(folder.glob("*_2.png"))
    command("map", lite_weights, *old, "--save", tmp_path / "m.safetensors", "--perplexity", 3)
    code, _, _ = command("map", lite_weights, *new, "--on", tmp_path / "m.safetensors", "-o", tmp_path / "m.html")
    assert code == 0
    data = page_data(tmp_path / "m.html")
    assert data["names"] == [str(path) for path in [*old, *new]]
    kept = load_map(tmp_path / "m.safetensors").image_map
    placed = kept.place(embed(load(lite_weights), new).numpy())
    found = np.frombuffer(b64decode(data["positions"]), np.float32).reshape(-1, 2) * (1, -1)
    np.testing.assert_array_equal(found[: len(old)], kept.positions)
    np.testing.assert_allclose(found[len(old) :], placed, atol=1e-3)
    assert list(b64decode(data["new"])) == [0] * len(old) + [1] * len(new)


def test_pictures_that_went_are_dots(command, vectors, folder, tmp_path):
    moved = tmp_path / "moved.npz"
    with np.load(vectors) as file:
        arrays = dict(file)
    arrays["paths"] = np.array([path.replace("coffee_0", "gone") for path in arrays["paths"].tolist()])
    np.savez(moved, **arrays)
    code, _, error = command("map", moved, "-o", tmp_path / "m.html", "--perplexity", 3)
    assert code == 1  # bad.jpg
    assert f"1 of 18 pictures have no thumbnail; the first: {folder / 'gone.png'} does not exist" in error


def test_what_is_misused_is_said(command, vectors, lite_weights, folder, tmp_path):
    page, saved = tmp_path / "m.html", tmp_path / "m.safetensors"
    for options in (
        [],
        ["--png", tmp_path / "m.txt"],
        ["-o", page, "--perplexity", 0.5],
        ["-o", page, "--on", saved, "--perplexity", 5],
        ["-o", page, "--on", saved, "--save", saved],
    ):
        assert command("map", vectors, *options)[0] == 2
    assert not page.exists()


def test_what_cannot_be_done_is_one_line_and_nothing_is_written(command, vectors, lite_weights, folder, tmp_path):
    page, old = tmp_path / "m.html", tmp_path / "old.safetensors"
    command("map", vectors, "--save", old, "--perplexity", 3)
    (tmp_path / "alone").mkdir()
    shutil.copy(folder / "bad.jpg", tmp_path / "alone" / "bad.jpg")
    other = tmp_path / "other.npz"
    network = NARROW["vgg16"]().eval()
    network.card = load(lite_weights).card
    about = Embedder(network).about | {"network": "vgg16"}
    save_vectors(embed_each(load(lite_weights), sorted(folder.glob("*.png"))), other, about)
    several = tmp_path / "several.safetensors"
    save_vectors(embed_each(load(lite_weights), sorted(folder.glob("*.png")), ["relu1", "block1"]), several)
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(vectors.read_bytes()[:-2000])
    equal = tmp_path / "equal.npz"
    with np.load(vectors) as file:
        np.savez(equal, **dict(file) | {"vectors": np.ones((18, 4), np.float32)})
    cases = [
        ([vectors, "-o", tmp_path / "m.svg"], "a map can be written as .html or .htm"),
        ([vectors, "--save", tmp_path / "m.npz"], "a map of pictures can be written as .safetensors"),
        ([vectors, "-o", tmp_path / "none" / "m.html"], "create it first"),
        ([lite_weights, folder / "coffee_0.png", folder / "coffee_1.png", "-o", page], "a map needs 3 or more"),
        ([lite_weights, tmp_path / "alone", "-o", page], "none of 1 pictures could be used; the first: "),
        ([lite_weights, folder, "--png", folder / "coffee_0.png"], "would overwrite a picture that is read"),
        ([equal, "-o", page], "all 18 vectors are equal"),
        ([other, "-o", page, "--on", old], "is a map of vectors of another kind"),
        ([vectors, "-o", page, "--on", vectors], "not a safetensors file"),
        ([vectors, "-o", page, "--on", lite_weights], "holds no map of pictures"),
        ([several, "-o", page], "(it has vectors of block1, relu1)"),
        ([damaged, "-o", page], "holds no vectors of one layer, or is damaged"),
        ([old, "-o", page], "holds no vectors of one layer, or is damaged"),
        ([tmp_path / "no.npz", "-o", page], "does not exist"),
    ]
    for arguments, message in cases:
        code, out, error = command("map", *arguments)
        assert (code, out) == (1, ""), arguments
        assert message in error.splitlines()[-1], arguments
    assert not page.exists()


def test_read_vectors_gives_what_save_vectors_wrote(vectors, lite_weights, folder, tmp_path):
    found = read_vectors(vectors)
    assert found.vectors.shape == (18, 1280)
    assert found.logits.shape == (18, 1000)
    assert list(found.failed) == [str(folder / "bad.jpg")]
    assert found.about["network"] == "efficientnet_lite0"
    network = load(lite_weights)
    path = tmp_path / "v.safetensors"
    save_vectors(embed_each(network, sorted(folder.glob("*")), logits=True), path, Embedder(network).about)
    other = read_vectors(path)
    np.testing.assert_array_equal(found.vectors, other.vectors)
    np.testing.assert_array_equal(found.logits, other.logits)
    assert (found.paths, found.failed, found.about) == (other.paths, other.failed, other.about)
    with safe_open(path, "numpy") as file:
        assert file.metadata() == found.about

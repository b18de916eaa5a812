"""Vectors of class folders: from the cache where they are in it, whole after a kill, and what cannot be used."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convnets_torch.embeddings import cache as feature_cache
from convnets_torch.embeddings.extraction import embed
from convnets_torch.embeddings.probe import embed_classes
from convnets_torch.images.decoding import PictureWarning
from convnets_torch.images.finding import find_pictures
from convnets_torch.images.labelled import find_classes
from convnets_torch.inference.prepare import prepare
from convnets_torch.weights import load
from tests.reference.pictures import picture


def assert_near(found, wanted):
    """Equal, but for the order of sums, which goes with the size of a batch."""
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.fixture
def folder(tmp_path):
    """Three classes of five small pictures each, one of them in a folder below."""
    for number in range(15):
        place = tmp_path / "classes" / ("ant", "bee", "cat")[number % 3] / ("more" if number == 7 else "")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(number, 40, 50)).save(place / f"{number:02}.png")
    return tmp_path / "classes"


def test_vectors_are_those_of_embed_in_the_order_of_classes(weights, folder, tmp_path):
    network = load(weights)
    told = []
    found = embed_classes(
        network, folder, cache=tmp_path / "cache", progress=lambda done, whole: told.append((done, whole))
    )
    assert found.classes == ("ant", "bee", "cat")
    assert [path.name for path in found.paths[5:10]] == ["01.png", "04.png", "10.png", "13.png", "07.png"]
    np.testing.assert_array_equal(found.labels, np.repeat([0, 1, 2], 5))
    np.testing.assert_array_equal(found.counts, [5, 5, 5])
    assert_near(found.vectors, embed(network, found.paths).numpy())
    assert (found.computed, found.failed, found.notes) == (15, (), ())
    assert told == [(number, 15) for number in range(1, 16)]


def test_a_second_run_computes_what_is_new_alone(weights, folder, tmp_path):
    network, cache = load(weights), tmp_path / "cache"
    first = embed_classes(network, folder, cache=cache)
    (folder / "ant" / "00.png").rename(folder / "ant" / "renamed.png")
    Image.fromarray(picture(99, 40, 50)).save(folder / "bee" / "99.png")
    shutil.copytree(folder, tmp_path / "moved")
    second = embed_classes(network, tmp_path / "moved", cache=cache)
    assert second.computed == 1
    both = {path.name: vector for path, vector in zip(second.paths, second.vectors, strict=True)}
    for path, vector in zip(first.paths, first.vectors, strict=True):
        name = "renamed.png" if path.name == "00.png" else path.name
        np.testing.assert_array_equal(both[name], vector)
    assert embed_classes(network, folder, cache=cache).computed == 0


def test_the_cache_knows_what_made_a_vector(weights, folder, tmp_path):
    """Another network with the same card, and another precision, have vectors of their own."""
    network, cache = load(weights), tmp_path / "cache"
    first = embed_classes(network, folder, cache=cache)
    other = load(weights, mapped=False)
    with torch.no_grad():
        next(other.parameters()).add_(0.5)
    second = embed_classes(other, folder, cache=cache)
    assert second.computed == 15
    assert not np.allclose(second.vectors, first.vectors)
    third = embed_classes(network, folder, precision="float32", cache=cache)
    assert third.computed == 15
    assert_near(third.vectors, first.vectors)
    assert embed_classes(load(weights), folder, cache=cache).computed == 0


KILLED = """
import os, signal, sys
from convnets_torch.embeddings import cache, probe
from convnets_torch.weights import load
cache.PART = 4
def killed(done, whole):
    if done == 11:
        os.kill(os.getpid(), signal.SIGKILL)
probe.embed_classes(load(sys.argv[1]), sys.argv[2], cache=sys.argv[3], progress=killed)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")
def test_a_killed_run_loses_the_part_that_was_not_written(weights, folder, tmp_path):
    cache = tmp_path / "cache"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-c", KILLED, str(weights), str(folder), str(cache)]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    network = load(weights)
    found = embed_classes(network, folder, cache=cache)
    assert found.computed == 15 - 8  # two parts of four were whole
    assert_near(found.vectors, embed(network, found.paths).numpy())


def test_what_was_done_before_an_interrupt_is_kept(weights, folder, tmp_path):
    def interrupt(done, whole):
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_classes(load(weights), folder, cache=tmp_path / "cache", progress=interrupt)
    assert embed_classes(load(weights), folder, cache=tmp_path / "cache").computed == 15 - 6


def test_a_damaged_part_of_the_cache_is_computed_again(weights, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "PART", 4)
    network, cache = load(weights), tmp_path / "cache"
    first = embed_classes(network, folder, cache=cache)
    part, *others = sorted(cache.glob("*/*.safetensors"))
    assert len(others) == 3
    part.write_bytes(part.read_bytes()[:-20])
    second = embed_classes(network, folder, cache=cache)
    assert second.computed in (3, 4)
    assert "could not be read" in second.notes[0]
    assert_near(second.vectors, first.vectors)
    assert embed_classes(network, folder, cache=cache).notes == ()


def test_bad_pictures_are_listed_and_copies_are_left_out(weights, folder, tmp_path):
    (folder / "ant" / "bad.jpg").write_text("no picture")
    (folder / "cat" / "bad too.jpg").write_text("no picture")  # of the same content
    shutil.copy(folder / "bee" / "01.png", folder / "bee" / "copy.png")
    shutil.copy(folder / "bee" / "04.png", folder / "cat" / "also a bee.png")
    os.mkfifo(folder / "cat" / "pipe.png")
    with pytest.raises(ValueError, match="2 pictures are in several classes"):
        embed_classes(load(weights), folder, cache=tmp_path / "cache")
    classes = {name: find_pictures(folder / name) for name in ("ant", "bee", "cat")}
    found = embed_classes(load(weights), classes, cache=tmp_path / "cache")
    assert sorted(Path(name).name for name, _ in found.failed) == ["bad too.jpg", "bad.jpg", "pipe.png"]
    assert len(found.paths) == 16
    assert found.notes[0] == "1 pictures have the same content as another of their class and were left out"
    assert found.notes[1].startswith("2 pictures have the same content in several classes, such as ")
    np.testing.assert_array_equal(found.counts, [5, 5, 6])


def test_folders_that_are_no_classes_are_refused_in_one_sentence(weights, folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="none does not exist; name a folder with a sub-folder for each class"):
        find_classes(tmp_path / "none")
    with pytest.raises(NotADirectoryError, match=r"00\.png is not a folder, and no table"):
        find_classes(folder / "ant" / "00.png")
    with pytest.raises(ValueError, match="ant has no sub-folders, so nothing says which class"):
        find_classes(folder / "ant")
    (folder / "dog").mkdir()
    (folder / "eel").mkdir()
    with pytest.raises(
        ValueError, match=r"2 of 5 sub-folders hold no pictures \(dog, eel\); fill them, or remove them"
    ):
        find_classes(folder)
    (tmp_path / "one" / ".hidden").mkdir(parents=True)
    shutil.copytree(folder / "bee", tmp_path / "one" / "bee")
    with (
        pytest.warns(PictureWarning, match=r"left out 1 hidden files and hidden or system folders \(\.hidden\)"),
        pytest.raises(ValueError, match=r"one has only one class \(bee\), so nothing to tell apart"),
    ):
        find_classes(tmp_path / "one")
    bad = {"ant": [tmp_path / "none.png"], "bee": [weights]}
    with pytest.raises(ValueError, match=r"none of 2 pictures could be used; the first: .*none\.png does not exist"):
        embed_classes(load(weights), bad, cache=tmp_path / "cache")
    with pytest.raises(ValueError, match="the network was prepared, which rounds"):
        embed_classes(prepare(load(weights), device="cpu", precision="float32"), folder)


def test_loose_pictures_are_left_out_with_a_warning(folder):
    shutil.copy(folder / "ant" / "00.png", folder / "loose.png")
    (folder / "notes.txt").write_text("of no interest")
    with pytest.warns(PictureWarning, match=r"left out 1 pictures that are in no sub-folder, so of no class \(loose"):
        assert list(find_classes(folder)) == ["ant", "bee", "cat"]

"""The command `filters`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from tests.reference.pictures import picture


@pytest.fixture
def weights(users_files, monkeypatch):
    """Narrow AlexNet's, in the folder where they lie."""
    monkeypatch.chdir(users_files)
    return "alexnet.safetensors"


def test_patterns_are_drawn_and_their_rise_is_told(weights, tmp_path, command):
    output = tmp_path / "x.png"
    options = ["--layer", "conv_2", "--channels", "3,5-6,5", "--steps", 4, "--size", 64, "-o", output]
    code, printed, error = command("filters", weights, *options)
    assert code == 0, error
    rows = [line.split() for line in printed.splitlines()]
    assert [row[2] for row in rows] == ["3", "5", "6"]
    assert all(float(row[0]) < float(row[1]) or row[-1] == "excited" for row in rows)
    with Image.open(output) as image:
        assert image.width <= 800
    code, printed, _ = command("filters", weights, *options, "--json")
    told = json.loads(printed)
    assert (told["form"], told["steps"], [entry["unit"] for entry in told["patterns"]]) == ("fourier", 4, [3, 5, 6])


def test_a_class_and_kernels_are_drawn(weights, tmp_path, command):
    options = ["--target", "tabby", "--form", "plain", "--steps", 1, "-o", tmp_path / "x.npz", "--json"]
    code, printed, error = command("filters", weights, *options)
    assert code == 0, error
    assert json.loads(printed)["patterns"][0]["unit"] == "tabby, tabby cat"
    assert np.load(tmp_path / "x.npz")["pictures"].shape == (1, 227, 227, 3)
    code, printed, _ = command("filters", weights, "--kernels", "-o", tmp_path / "k.png")
    assert (code, printed) == (0, f"{tmp_path / 'k.png'}: 12 kernels of 11x11 pixels of features.conv_1\n")


def test_patches_stand_beside_patterns_and_a_broken_file_is_told(weights, tmp_path, command):
    folder = tmp_path / "album"
    folder.mkdir()
    Image.fromarray(picture(1, 80, 100)).save(folder / "a.png")
    (folder / "b.jpg").write_bytes(b"")
    options = ["--layer", "conv_2", "--channels", "3", "--steps", 1, "--size", 64, "--pictures", folder]
    code, printed, error = command("filters", weights, *options, "-o", tmp_path / "x.png", "--json")
    assert code == 1
    assert "b.jpg" in error
    [entry] = json.loads(printed)["patterns"]
    assert [patch["picture"] for patch in entry["patches"]] == [str(folder / "a.png")]
    assert (tmp_path / "x.png").is_file()


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        ([], 2, "give one of --layer, --target and --kernels"),
        (["--layer", "conv_2", "--kernels"], 2, "give one of"),
        (["--target", "dog", "--channels", "3"], 2, "go with --layer"),
        (["--layer", "conv_2", "--channels", "7-3"], 2, "give numbers and ranges such as 0-63,70"),
        (["--layer", "conv_2", "--channels", "999"], 1, "999 is out of range"),
        (["--layer", "conv_9"], 1, "has no layer 'conv_9'"),
        (["--target", "unicorn horn"], 1, "unicorn"),
    ],
)
def test_misuse_is_told_in_a_line(weights, tmp_path, command, options, code, sentence):
    found, _, error = command("filters", weights, *options, "-o", tmp_path / "x.png")
    assert found == code
    assert sentence in " ".join(error.replace("│", " ").split())


def test_an_output_that_cannot_be_is_refused_before_the_work(weights, tmp_path, command):
    assert "does not exist" in command("filters", weights, "--layer", "conv_2", "-o", tmp_path / "no" / "x.png")[2]

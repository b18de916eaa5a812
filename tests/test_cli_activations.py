"""The commands `layers` and `activations`."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from convnets_torch.explain.activations import layer_names
from convnets_torch.explain.statistics import channel_statistics, zero_shares
from convnets_torch.weights import load
from tests.reference.goldens import DATA
from tests.reference.theano_goldens import THEANO


@pytest.fixture(scope="module")
def headless(tmp_path_factory):
    """A VGG16 without its top, of real Keras."""
    from converters import convert

    golden = next(golden for golden in THEANO if golden.file.endswith("vgg16_notop_th.h5"))
    path = tmp_path_factory.mktemp("headless") / "vgg16.safetensors"
    convert(DATA / golden.file, path, **{"preprocessing": golden.preprocessing, **golden.needs})
    return path


def test_layers_prints_what_layer_names_says(command, lite_weights):
    code, out, error = command("layers", lite_weights)
    assert (code, error) == (0, "")
    lines = out.splitlines()
    assert lines[0].split("  ")[0] == "name"
    network = load(lite_weights)
    assert [line.split()[0] for line in lines[1:]] == [layer.name for layer in layer_names(network)]
    [last] = [line.split() for line in lines if line.startswith("features.relu1 ")]
    assert last[:4] == ["features.relu1", "ReLU6", "1280x7x7", "32x32"]
    _, out, _ = command("layers", lite_weights, "--json")
    records = [json.loads(line) for line in out.splitlines()]
    assert [tuple(record["shape"]) for record in records] == [layer.shape for layer in layer_names(network)]


def test_layers_names_keras_layers_and_errors_are_one_line(command, tmp_path):
    from converters import convert

    convert(DATA / "keras1" / "vgg16.h5", tmp_path / "vgg.safetensors")
    _, out, _ = command("layers", tmp_path / "vgg.safetensors")
    [line] = [line for line in out.splitlines() if line.startswith("features.relu5_3 ")]
    assert line.split()[-1] == "block5_conv3"
    code, _, error = command("layers", tmp_path / "none.safetensors")
    assert code == 1
    assert len(error.strip().splitlines()) == 1


def test_activations_of_a_picture_as_page_numbers_and_folder(command, lite_weights, photographs, tmp_path):
    base = ["activations", lite_weights, photographs / "coffee.png", "--layer", "relu0", "--layer", "block[12]"]
    code, out, _ = command(*base, "-o", tmp_path / "page.png", "--most-channels", 16)
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["features.relu0", "features.block1", "features.block2"]
    assert "16 shown, 16 left out" in lines[0]
    with Image.open(tmp_path / "page.png") as page:
        assert page.width == 800
    code, out, _ = command(*base, "-o", tmp_path / "numbers.npz", "--order", "number", "--longest-side", 300, "--json")
    assert code == 0
    records = [json.loads(line) for line in out.splitlines()]
    numbers = np.load(tmp_path / "numbers.npz")
    for record in records:
        assert record["channels"] == list(range(record["shape"][0]))
        values = numbers[f"{record['layer']}.values"]
        assert values.shape == tuple(record["shape"])
        np.testing.assert_allclose(np.abs(values).mean((1, 2)), record["strengths"], rtol=1e-5)
    assert numbers["picture"].shape == (200, 300, 3)
    code, _, error = command(*base, "-o", tmp_path / "pages")
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "pages").iterdir()) == [
        "features.block1.png",
        "features.block2.png",
        "features.relu0.png",
    ]
    assert "pages of 3 layers" in error


def test_activations_of_a_folder_are_statistics(command, lite_weights, photographs, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("coffee.png", "chelsea.png", "rocket.jpg"):
        shutil.copy(photographs / name, folder)
    (folder / "bad.png").write_text("no picture")
    base = ["activations", lite_weights, folder, "--layer", "head.flatten"]
    pictures = sorted(folder.iterdir())
    [wanted] = channel_statistics(load(lite_weights), pictures, "head.flatten").layers
    code, out, error = command(*base, "-o", tmp_path / "out.json", "--json")
    assert code == 1
    assert error.count("bad.png is not a picture") == 1
    [record] = json.loads(out)["layers"]
    assert record == json.loads((tmp_path / "out.json").read_text())["layers"][0]
    np.testing.assert_allclose(record["mean"], wanted.mean)
    assert record["pictures"] == 3
    (folder / "bad.png").unlink()
    code, out, _ = command(*base, "-o", tmp_path / "out.csv")
    assert code == 0
    assert f"dead {int(wanted.dead.sum())} of 1280" in out
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    np.testing.assert_allclose([float(row["zeros"]) for row in rows], wanted.zeros)
    code, out, _ = command(*base, "-o", tmp_path / "zeros.png")
    assert code == 0
    shares = zero_shares(load(lite_weights), sorted(folder.iterdir()), "head.flatten").shares
    assert f"3 pictures  {shares.mean():.3f} of the values are zero" in out
    with Image.open(tmp_path / "zeros.png") as page:
        assert page.width == 800
    assert command(*base, "-o", tmp_path / "zeros.svg")[0] == 0
    assert "head.flatten: share of values that are zero, in 3 pictures" in (tmp_path / "zeros.svg").read_text()


def test_a_network_without_a_head(command, headless, photographs, tmp_path):
    assert load(headless).head is None
    code, out, _ = command("layers", headless)
    assert code == 0
    assert out.splitlines()[-1].startswith("features.pool5")
    photograph = photographs / "coffee.png"
    assert command("activations", headless, photograph, "--layer", "block5_conv3", "-o", tmp_path / "a.png")[0] == 0
    code, out, _ = command(
        "activations", headless, photograph, photographs / "chelsea.png", "--layer", "pool", "--json"
    )
    assert code == 0
    assert [each["layer"] for each in json.loads(out)["layers"]] == [f"features.pool{block}" for block in range(1, 6)]


def test_standard_input_is_a_picture(command, lite_weights, photographs, monkeypatch):
    content = (photographs / "coffee.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    code, out, _ = command("activations", lite_weights, "-", "--layer", "head.fc", "--json", "--most-channels", 1)
    assert code == 0
    assert json.loads(out)["channels"] == [967]  # espresso


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ([], 2, "give -o FILE or FOLDER"),
        (["--layer", "relu_9", "--json"], 1, "has no layer 'relu_9'"),
        (["--layer", "relu0", "-o", "none/x.png"], 1, "create it first"),
        (["--most-channels", "0", "--json"], 2, "most-channels"),
        (["--order", "best", "--json"], 2, "order"),
        (["--layer", "head.fc", "--longest-side", "300", "--json"], 1, "images are (200, 300) pixels"),
    ],
)
def test_misuse_is_told(command, lite_weights, photographs, tmp_path, monkeypatch, options, code, said):
    monkeypatch.chdir(tmp_path)
    found, out, error = command("activations", lite_weights, photographs / "coffee.png", *options)
    assert (found, out) == (code, "")
    assert said in error


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--order", "number", "--json"], 2, "need a single picture"),
        (["-o", "x.png"], 2, "histogram of one layer"),
        (["--layer", "relu0", "-o", "x.txt"], 1, "statistics can be written as"),
    ],
)
def test_misuse_with_several_pictures_is_told(command, lite_weights, photographs, options, code, said):
    pictures = [photographs / "coffee.png", photographs / "chelsea.png"]
    found, _, error = command("activations", lite_weights, *pictures, *options)
    assert found == code
    assert said in " ".join(error.replace("│", " ").split())

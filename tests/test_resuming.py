"""Runs that stop and go on, and pictures that are never held whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from convnets_torch.heatmaps import running as resuming
from convnets_torch.heatmaps.api import heatmap, heatmap_targets

ROOT = Path(__file__).parents[1]

# The command, with a file for every strip instead of one in five seconds.
PROGRAM = (
    "from convnets_torch.heatmaps import running; running.EVERY = 0.0; from convnets_torch.cli.app import main; main()"
)


@pytest.fixture(scope="module")
def tall(photographs) -> np.ndarray:
    """A picture of 1600 x 288 pixels: more than the receptive field is high."""
    with Image.open(photographs / "coffee.png") as image:
        pixels = np.asarray(image.convert("RGB"))[:, 160:448]
    return np.concatenate([pixels, pixels[::-1], pixels, pixels[:, ::-1]])


class StoppedError(Exception):
    pass


def stopping_after(rows):
    def progress(done, whole):
        if done >= rows:
            raise StoppedError

    return progress


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"cell_stride": 16}, {"scales": (0.8, 1)}, {"longest_side": 1300}])
def test_a_run_that_was_stopped_goes_on_with_the_same_numbers(network, tall, tmp_path, options, monkeypatch):
    whole = heatmap_targets(network, tall, ["espresso", "dog"], **options)
    told: list[tuple[int, int]] = []
    arguments = {"max_memory": "12MB", "resume": tmp_path / "rows", **options}
    for rows in (9, 25):
        with pytest.raises(StoppedError):
            heatmap_targets(network, tall, ["espresso", "dog"], progress=stopping_after(rows), **arguments)
    found = heatmap_targets(network, tall, ["espresso", "dog"], progress=lambda *done: told.append(done), **arguments)
    for one, other in zip(whole, found, strict=True):
        np.testing.assert_allclose(other.values, one.values, atol=1e-5)
        np.testing.assert_array_equal(other.best_ids[..., 0], one.best_ids[..., 0])
    assert told[-1][0] == told[-1][1]
    assert any(done >= 9 for done, _ in told[:1])  # the first thing said is what earlier runs had done
    again: list[tuple[int, int]] = []
    heatmap_targets(network, tall, ["espresso", "dog"], progress=lambda *done: again.append(done), **arguments)
    assert len(again) == len(options.get("scales", (1,)))  # nothing was computed again


def test_rows_of_another_run_are_not_taken(network, tall, tmp_path):
    arguments: dict[str, Any] = {"max_memory": "12MB", "resume": tmp_path / "rows"}
    heatmap(network, tall, "dog", **arguments)
    others: list[tuple[np.ndarray, str, dict[str, Any]]] = [
        (tall[:, ::-1], "dog", {}), (tall, "cat", {}), (tall, "dog", {"cell_stride": 16}), (tall[:-1], "dog", {}),
        (tall, "dog", {"background": "white"}), (tall, "dog", {"depth": "auto"}),
    ]  # fmt: skip
    for image, target, options in others:
        with pytest.raises(ValueError, match=r"rows holds rows of another run: .* name another folder"):
            heatmap(network, image, target, **arguments, **options)


def test_a_damaged_file_of_rows_is_computed_again(network, tall, tmp_path, monkeypatch):
    monkeypatch.setattr(resuming, "EVERY", 0.0)  # a file for every strip
    arguments = {"max_memory": "12MB", "resume": tmp_path / "rows"}
    whole = heatmap(network, tall, "dog", **arguments)
    files = sorted((tmp_path / "rows").glob("rows-*.npz"))
    assert len(files) > 3
    files[1].write_bytes(files[1].read_bytes()[:100])
    np.testing.assert_allclose(heatmap(network, tall, "dog", **arguments).values, whole.values, atol=1e-5)


@pytest.mark.slow
def test_a_killed_command_leaves_no_picture_and_goes_on(lite_weights, tall, tmp_path):
    """SIGKILL in the middle: no output, no half-written file of rows; the same command finishes from there."""
    big = np.concatenate([tall, tall[::-1]] * 2)
    np.save(tmp_path / "big.npy", big)
    Image.fromarray(big).save(tmp_path / "big.png")
    out = tmp_path / "dogs.png"
    arguments = ["heatmap", lite_weights, tmp_path / "big.png", "--target", "dog", "-o", out]
    options = ["--max-memory", "20MB", "--resume-folder", tmp_path / "rows"]
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments + options)]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    waited = time.monotonic() + 120
    while len(list((tmp_path / "rows").glob("rows-*.npz"))) < 3 and time.monotonic() < waited:
        time.sleep(0.02)
    os.kill(running.pid, signal.SIGKILL)
    running.communicate()
    done = sorted((tmp_path / "rows").glob("rows-*.npz"))
    assert len(done) >= 3
    assert not out.exists()
    before = {path: path.stat().st_mtime_ns for path in done[:-1]}
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.exists()
    assert "highest" in finished.stdout
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items())


@pytest.mark.slow
def test_an_interrupted_command_says_how_it_goes_on(lite_weights, tall, tmp_path):
    big = np.concatenate([tall] * 4)
    Image.fromarray(big).save(tmp_path / "big.png")
    arguments = [lite_weights, tmp_path / "big.png", "--target", "dog", "-o", tmp_path / "dogs.png"]
    options = ["--max-memory", "20MB", "--resume-folder", tmp_path / "rows"]
    command = [sys.executable, "-c", PROGRAM, "heatmap", *map(str, arguments + options)]
    running = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which tests in the background ignore
    )
    waited = time.monotonic() + 120
    while not list((tmp_path / "rows").glob("rows-*.npz")) and time.monotonic() < waited:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, error = running.communicate()
    assert running.returncode == 130
    assert f"interrupted; nothing was written; the same command goes on from {tmp_path / 'rows'}" in error
    assert "Traceback" not in error
    assert not (tmp_path / "dogs.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["memmap", "zarr", "tiff"])
def test_pictures_that_are_sliced_give_the_same_map(network, tall, tmp_path, kind, monkeypatch):
    image: Any
    if kind == "memmap":
        path = tmp_path / "tall.npy"
        np.save(path, tall)
        image = np.load(path, mmap_mode="r")
    elif kind == "zarr":
        image = zarr.open(str(tmp_path / "tall.zarr"), mode="w", shape=tall.shape, chunks=(64, 64, 3), dtype="u1")
        image[:] = tall
    else:
        from convnets_torch.images import sources

        monkeypatch.setattr(sources, "STREAMED_PIXELS", 500_000)
        image = tmp_path / "tall.tif"
        tifffile.imwrite(image, tall, tile=(64, 64), compression="zlib", photometric="rgb")
    different: list[dict[str, Any]] = [{}, {"longest_side": 1300, "cell_stride": 16}]
    for options in different:
        wanted = heatmap(network, tall, "espresso", **options)
        found = heatmap(network, image, "espresso", max_memory="30MB", **options)
        np.testing.assert_allclose(found.values, wanted.values, atol=1e-5)
        assert found.size == (1600, 288)
        assert found.window(3, 0) == wanted.window(3, 0)
    found.save(tmp_path / "map.png")


def test_the_note_of_a_run_is_damaged(network, tall, tmp_path):
    (tmp_path / "rows").mkdir()
    for text in ("", "[]", json.dumps({"run": 1})):
        (tmp_path / "rows" / "run.json").write_text(text)
        with pytest.raises(ValueError, match="another run"):
            heatmap(network, tall, "dog", resume=tmp_path / "rows")

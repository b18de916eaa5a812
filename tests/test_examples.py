"""The programs of `examples/`, run as their first lines say."""

from __future__ import annotations

import csv
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from converters import convert
from convnets_torch.images.finding import find_pictures
from convnets_torch.inference.classification import classify
from convnets_torch.weights import load
from tests.conftest import KERAS1
from tests.reference.pictures import picture

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Narrow weights, and five pictures beside a broken one."""
    folder = tmp_path_factory.mktemp("examples")
    convert(KERAS1 / "alexnet.h5", folder / "alexnet.safetensors")
    (folder / "photographs").mkdir()
    for number in range(5):
        Image.fromarray(picture(number, 240 + 10 * number, 300)).save(folder / "photographs" / f"{number}.jpg")
    return folder


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_each_says_how_to_run_it(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert re.fullmatch(rf"    (python|torchrun --nproc-per-node 2) examples/{path.name} WEIGHTS .*", lines[2])


def run(name, *arguments, command=(sys.executable,)):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, ROOT / "examples" / name, *map(str, arguments)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def best(folder):
    paths = find_pictures(folder / "photographs")
    answers = classify(load(folder / "alexnet.safetensors", precision="auto"), paths, top=1)
    return {str(path): answer[0] for path, answer in zip(paths, answers, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_the_dataloader_gives_the_same_classes(workers, folder):
    out = run("dataloader.py", folder / "alexnet.safetensors", folder / "photographs", workers)
    assert out.splitlines() == [f"{path} {answer.words}" for path, answer in best(folder).items()]


@pytest.mark.slow
def test_several_processes_share_a_folder_and_the_first_gathers(folder, tmp_path):
    broken = folder / "photographs" / "3b.jpg"
    wanted = best(folder)
    broken.write_text("no picture")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    weights = folder / "alexnet.safetensors"
    try:
        run("many_processes.py", weights, folder / "photographs", tmp_path / "out.csv", command=torchrun)
    finally:
        broken.unlink()
    rows = list(csv.reader((tmp_path / "out.csv").read_text().splitlines()))
    assert [row[0] for row in rows] == sorted([*wanted, str(broken)])
    assert {row[0]: int(row[1]) for row in rows if row[1]} == {path: one.class_id for path, one in wanted.items()}
    assert "not a picture that Pillow can read" in next(row[2] for row in rows if not row[1])


@pytest.mark.slow
def test_a_compiled_network_answers_the_same(folder, capsys):
    main = runpy.run_path(str(ROOT / "examples" / "compiled.py"))["main"]
    main(str(folder / "alexnet.safetensors"), *map(str, find_pictures(folder / "photographs")))
    *_, difference = capsys.readouterr().out.split()
    assert float(difference) < 1e-4

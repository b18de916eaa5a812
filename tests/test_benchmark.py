"""What the benchmark measures with: programs in processes of their own, in turn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from scripts.benchmarks.machine import facts
from scripts.benchmarks.processes import Program, alternating, started

ROOT = Path(__file__).parent.parent


def sleeping(seconds, log):
    """A program that sleeps, and notes its process."""

    def run():
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(seconds)

    return run


def missing():
    raise ImportError("no such package")


def test_programs_run_in_turn_each_in_its_process(tmp_path, capsys):
    log = tmp_path / "log"
    builders: dict[str, Callable[[], Program]] = {
        "short": partial(sleeping, 0.01, log),
        "long": partial(sleeping, 0.1, log),
        "none": missing,
    }
    with started(builders) as timers:
        warm = log.read_text().split()
        seconds = alternating(timers, 3)
    short, long = warm[0], warm[2]
    assert warm == [short, short, long, long]
    assert len({short, long, str(os.getpid())}) == 3
    first, second, third = (log.read_text().split()[4 + 2 * number :][:2] for number in range(3))
    assert sorted(first) == sorted(third) == sorted([short, long])
    assert second == first[::-1]
    assert list(seconds) == ["short", "long"]
    assert all(0.01 <= each < 0.09 for each in seconds["short"])
    assert all(each >= 0.1 for each in seconds["long"])
    assert capsys.readouterr().out == "none: left out (no such package)\n"


@pytest.mark.slow
def test_the_record_names_the_machine(tmp_path):
    command = [
        sys.executable,
        "scripts/benchmarks/benchmark.py",
        "import",
        "--rounds",
        "1",
        "--json",
        str(tmp_path / "x.json"),
    ]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    record = json.loads((tmp_path / "x.json").read_text())
    assert record["machine"].keys() == facts().keys()
    assert record["machine"]["processor"] in done.stdout
    assert [row["work"] for row in record["results"]] == ["import convnets_torch", "convnets-torch --help"]
    assert all(row["ours_s"] > 0 < row["ratio"] for row in record["results"])

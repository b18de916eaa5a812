"""The tutorials: each page's blocks as one program, with its commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest
from PIL import Image

from convnets_torch.weights import load

PAGES = Path(__file__).parent.parent / "docs"
Run = tuple[int, str, str]


@pytest.fixture
def follow(tmp_path, monkeypatch, cache, capsys, command) -> Callable[..., Iterator[Run]]:
    """Run a page's blocks in an empty folder: each command's exit code and output, and what Python prints.

    `commands` are all of them, or those with these names.
    """
    monkeypatch.chdir(tmp_path)

    def steps(page: str, names: dict, commands: Collection[str] | None = None) -> Iterator[Run]:
        text = (PAGES / page).read_text(encoding="utf-8")
        for language, block in re.findall(r"^```(python|sh)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            if language == "python":
                exec(compile(block, page, "exec"), names)
                yield 0, *capsys.readouterr()
            else:
                for line in block.splitlines():
                    program, *arguments = shlex.split(line)
                    assert program == "convnets-torch"
                    if commands is None or arguments[0] in commands:
                        yield command(*arguments)

    return steps


@pytest.mark.slow
def test_the_tutorial_about_features_runs_from_the_first_line_to_the_last(follow):
    names: dict = {}
    runs = list(follow("tutorial-features.md", names, ["probe"]))  # the others have tests of their own
    assert [code for code, _, _ in runs] == [0] * len(runs)
    assert any(out.startswith("torch.Size([144, 1280])\n") for _, out, _ in runs)
    assert 0.2 < names["shares"].shares.mean() < 0.9
    assert sum(names["same"]) > 0.9 * 144
    assert names["found"].accuracies["logistic"].mean() > 0.9
    assert names["best"].words == "brick"
    bricks = names["bricks"].values
    assert bricks[:, 0].mean() > 0.5 > bricks[:, -1].mean()
    for name in ("zeros", "curve", "confusion", "similarities", "bricks"):
        with Image.open(f"{name}.png") as image:
            image.load()
    _, out, error = runs[-1]
    assert out.count("+/-") == 9
    assert " 0 of them computed, 144 from the cache" in error
    assert load("textures.safetensors").card.class_names == ("brick", "coffee", "coins", "grass", "gravel", "page")


@pytest.mark.slow
def test_the_tutorial_about_fine_tuning_runs_from_the_first_line_to_the_last(follow):
    names: dict = {}
    runs = list(follow("tutorial-finetuning.md", names))
    refused = [error for code, _, error in runs if code == 1]
    assert {code for code, _, _ in runs} == {0, 1}
    assert len(refused) == 1
    assert "leak: digits/" in refused[0]
    assert not Path("strict.safetensors").exists()
    printed = "\n".join(out for _, out, _ in runs)
    assert re.search(r"features.block10 +170,240 +frozen\nfeatures.block11 +224,160 +trains\n", printed)
    assert "3,376,132   2,675,364 train" in printed
    error = names["found"]["errors"]["top-1"]
    assert error["low"] < error["error"] < error["high"] < 0.5
    before, after = (names["found"]["recalibration"][words] for words in ("before", "after"))
    assert before["accuracy"] == after["accuracy"]
    assert before["confidence"] > after["confidence"]
    assert names["found"]["recalibration"]["temperature"]["value"] > 1
    assert 96 <= int(re.search(r"heatmap.png: highest .*, in the window x (\d+) to", printed)[1]) + 16 <= 128
    classified = dict(re.findall(r"^unseen/(eight|three)/.*\n\S+ +\d +(\w+)$", printed, re.MULTILINE))
    assert classified == {"eight": "eight", "three": "three"}
    for path in ("views.png", "digits.history.png", "report/worst.png", "heatmap.png", "gradcam.png"):
        with Image.open(path) as image:
            image.load()

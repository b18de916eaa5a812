"""The tutorial about features: its blocks as one program, and its command."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from PIL import Image

from convnets_torch.weights import load

PAGE = (Path(__file__).parent.parent / "docs" / "tutorial-features.md").read_text(encoding="utf-8")


def test_the_tutorial_runs_from_the_first_line_to_the_last(tmp_path, monkeypatch, cache, capsys, command):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(code, "tutorial-features.md", "exec"), names)
    printed = capsys.readouterr().out
    assert printed.startswith("torch.Size([144, 1280])\n")
    assert 0.2 < names["shares"].shares.mean() < 0.9
    assert sum(names["same"]) > 0.9 * 144
    assert names["found"].accuracies["logistic"].mean() > 0.9
    assert names["best"].words == "brick"
    bricks = names["bricks"].values
    assert bricks[:, 0].mean() > 0.5 > bricks[:, -1].mean()
    for name in ("zeros", "curve", "confusion", "similarities", "bricks"):
        with Image.open(f"{name}.png") as image:
            image.load()
    [line] = re.findall(r"```sh\n(convnets-torch probe .*)\n```", PAGE)
    code, out, error = command(*shlex.split(line)[1:])
    assert (code, out.count("+/-")) == (0, 9)
    assert " 0 of them computed, 144 from the cache" in error
    assert load("textures.safetensors").card.class_names == ("brick", "coffee", "coins", "grass", "gravel", "page")

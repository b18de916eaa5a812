"""The README's examples, run as they stand."""

from __future__ import annotations

import doctest
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import KERAS1
from tests.reference.pictures import picture

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def in_a_users_folder(tmp_path, monkeypatch):
    """Weights and a photograph under the README's names; the weights are the narrow AlexNet, with 1,000 classes."""
    shutil.copy(KERAS1 / "alexnet.h5", tmp_path / "vgg16_weights.h5")
    Image.fromarray(picture(1, 300, 400)).save(tmp_path / "street.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_example_runs(in_a_users_folder, capsys):
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 6
    assert printed[-1].startswith("(3, 6) Box(left=")
    assert (in_a_users_folder / "cars.png").is_file()


def test_the_two_commands_of_the_main_job_run(in_a_users_folder, command):
    [block] = re.findall(r"```sh\n(convnets-torch convert.*?)```", README, re.DOTALL)
    for line in block.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "convnets-torch"
        assert command(*arguments)[0] == 0
    with Image.open(in_a_users_folder / "cars.png") as image:
        assert image.width == 400


def test_the_code_of_the_porting_page_runs(tmp_path, monkeypatch, cache):
    page = (Path(__file__).parent.parent / "docs" / "porting.md").read_text(encoding="utf-8")
    shutil.copy(KERAS1 / "alexnet.h5", tmp_path / "alexnet_weights.h5")
    Image.fromarray(picture(1, 300, 400)).save(tmp_path / "dog.jpg")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 5
    names: dict = {}
    for code in blocks:
        exec(compile(code, "porting.md", "exec"), names)
    np.testing.assert_allclose(names["heatmap"], names["found"].probabilities, atol=1e-6)  # old names and new agree
    assert (tmp_path / "dog.png").is_file()


def test_the_commands_with_several_targets_run(in_a_users_folder, command):
    command("convert", "vgg16_weights.h5", "vgg16.safetensors")
    [block] = re.findall(r"```sh\n(convnets-torch heatmap.*?)```", README, re.DOTALL)
    for line in block.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "convnets-torch"
        assert command(*arguments)[0] == 0
    assert (in_a_users_folder / "dogs.png").is_file()


def test_the_synset_examples_print_what_stands_there(command):
    [line, drawn] = re.search(r"\$ (convnets-torch synsets .*)\n([^`]*)```", README).groups()
    assert command(*shlex.split(line)[1:])[:2] == (0, drawn)
    [session] = re.findall(r"```pycon\n(.*?)```", README, re.DOTALL)
    test = doctest.DocTestParser().get_doctest(session, {}, "README.md", None, None)
    assert doctest.DocTestRunner().run(test) == (0, 4)

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

from convnets_torch.weights import load
from tests.conftest import DATA, KERAS1
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
    code, _, _ = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 6
    assert printed[-1].startswith("(3, 6) Box(left=")
    assert (in_a_users_folder / "cars.png").is_file()


def test_the_example_of_reading_maps_runs(in_a_users_folder, capsys):
    from convnets_torch import convert

    convert("vgg16_weights.h5", "vgg16.safetensors")
    _, code, _ = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert capsys.readouterr().out.splitlines()[1].startswith("Box(left=")
    assert names["cars"].values.shape == (10, 22)
    assert len(names["maps"][0].scales) == 2
    for name in ("dog-or-cat.png", "what-is-where.png", "cars.html"):
        assert (in_a_users_folder / name).is_file()


def test_the_example_of_a_users_own_network_runs(in_a_users_folder):
    _, _, code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["bees"].probabilities.shape == (4, 7)


def test_the_two_commands_of_the_main_job_run(in_a_users_folder, command):
    block, _ = re.findall(r"```sh\n(convnets-torch convert.*?)```", README, re.DOTALL)
    for line in block.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "convnets-torch"
        assert command(*arguments)[0] == 0
    with Image.open(in_a_users_folder / "cars.png") as image:
        assert image.width == 400


def test_the_commands_for_other_files_run(keras3_files, tmp_path, monkeypatch, command):
    _, block = re.findall(r"```sh\n(convnets-torch convert.*?)```", README, re.DOTALL)
    shutil.copy(keras3_files / "resnet50.keras", tmp_path)
    shutil.copy(DATA / "keras231" / "vgg16_nested_last_model.h5", tmp_path / "flowers.h5")
    (tmp_path / "flowers.txt").write_text("aster\nbellis\ncrocus\ndahlia\nerica\n")
    monkeypatch.chdir(tmp_path)
    released, own = (shlex.split(line)[1:] for line in block.splitlines())
    released += ["--preprocessing", "keras-caffe"]  # it is narrow, with other classes than the released one
    for arguments in (released, own):
        code, _, error = command(*arguments)
        assert (code, error) == (0, "")
    assert load(tmp_path / "flowers.safetensors").card.class_names[3] == "dahlia"
    found = re.findall(r"(convnets-torch audit .*?) *#", README)
    assert command(*shlex.split(found[0])[1:])[0] == 0


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
    np.testing.assert_allclose(
        names["heatmap"], names["found"].probabilities, atol=1e-5
    )  # old names and new agree, but for rounding
    assert (tmp_path / "dog.png").is_file()


def test_the_commands_with_several_targets_run(in_a_users_folder, command):
    command("convert", "vgg16_weights.h5", "-o", "vgg16.safetensors")
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


def test_the_code_of_the_page_about_reading_runs(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parent.parent / "docs" / "reading-keras-files.md").read_text(encoding="utf-8")
    shutil.copy(KERAS1 / "alexnet.h5", tmp_path / "alexnet_weights.h5")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(code, "reading-keras-files.md", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "Keras 1 None"
    assert printed[1] == "conv_1 Conv2D {'kernel': (12, 3, 11, 11), 'bias': (12,)} oihw"
    assert (len(names["arrays"]), names["found"].problems) == (11, ())


def test_the_code_of_the_doctors_page_runs(in_a_users_folder, command, capsys):
    page = (Path(__file__).parent.parent / "docs" / "doctor.md").read_text(encoding="utf-8")
    command("convert", "vgg16_weights.h5", "-o", "alexnet.safetensors")
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "doctor.md", "exec"), {})
    assert capsys.readouterr().out.startswith("kernels are flipped: the file as it is misses")

"""The gates for files: what is opened, and outputs that appear whole or not at all."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convnets_torch as ct
from convnets_torch.explain.channels import activation_grids, save_grids
from convnets_torch.explain.filters import first_kernels
from convnets_torch.explain.statistics import channel_statistics, save_statistics
from convnets_torch.files import (
    FileWarning,
    Writer,
    check_own_folder,
    loads,
    make_folder,
    open_file,
    open_own,
    opened_path,
    replacing,
)
from tests.test_threads import make, pictures

ROOT = Path(__file__).parents[1]


def test_a_finished_block_replaces_the_old_file(tmp_path):
    (tmp_path / "out").write_text("old")
    with replacing(tmp_path / "out") as temporary:
        temporary.write_text("new")
        assert (tmp_path / "out").read_text() == "old"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"out": "new"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_broken_block_leaves_the_old_file_and_nothing_else(error, tmp_path):
    (tmp_path / "out").write_text("old")

    def break_off():
        with replacing(tmp_path / "out") as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        break_off()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"out": "old"}


def test_a_link_is_replaced_and_what_it_led_to_stays(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "real").write_text("precious")
    for name, target in (("out", "real"), ("dangling", "none")):
        (tmp_path / name).symlink_to(tmp_path / "far" / target)
        with replacing(tmp_path / name) as temporary:
            temporary.write_text("new")
        assert not (tmp_path / name).is_symlink()
        assert (tmp_path / name).read_text() == "new"
    assert {path.name: path.read_text() for path in (tmp_path / "far").iterdir()} == {"real": "precious"}


def test_a_folder_that_is_a_link_is_written_to(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to(tmp_path / "far")
    with replacing(tmp_path / "near" / "out") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "far" / "out").read_text() == "new"


def test_a_link_to_a_device_is_left_alone(tmp_path):
    (tmp_path / "out").symlink_to(os.devnull)
    with pytest.raises(OSError, match="is not a regular file"), replacing(tmp_path / "out"):
        pass
    assert (tmp_path / "out").is_symlink()


def test_the_file_has_the_rights_that_any_new_file_has(tmp_path):
    (tmp_path / "plain").write_text("")
    with replacing(tmp_path / "out") as temporary:
        temporary.write_text("new")
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize(("before", "after"), [(0o640, 0o640), (0o666, 0o644), (0o600, 0o600)])
def test_a_file_gets_no_right_that_the_old_one_had_not_or_the_umask_withholds(before, after, tmp_path):
    (tmp_path / "out").write_text("old")
    (tmp_path / "out").chmod(before)
    umask = os.umask(0o022)
    try:
        with replacing(tmp_path / "out") as temporary:
            temporary.unlink()
            temporary.write_text("new")
            temporary.chmod(0o777)  # as a library may
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == after


def test_a_name_of_the_greatest_length_is_written(tmp_path):
    with replacing(tmp_path / ("x" * 255)) as temporary:
        temporary.write_text("new")
    assert (tmp_path / ("x" * 255)).read_text() == "new"


def test_links_that_lead_in_a_circle_are_refused(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError, match=r"loop.*(circle|Too many levels)"), replacing(tmp_path / "loop") as temporary:
        temporary.write_text("new")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is not a regular file"), replacing(tmp_path / "pipe"):
        pass
    assert (tmp_path / "pipe").is_fifo()


HALF = """
import os, sys, time
from convnets_torch.files import replacing
with replacing(sys.argv[1]) as temporary:
    temporary.write_text("half")
    (temporary.parent / "spool").write_text("more")
    print("writing", flush=True)
    time.sleep(60)
"""


def begin_half(path):
    process = subprocess.Popen([sys.executable, "-c", HALF, path], stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout.readline() == b"writing\n"
    return process


def write_in_new_process(path):
    program = (
        "import sys; from convnets_torch.files import replacing\nwith replacing(sys.argv[1]) as t: t.write_text('b')"
    )
    subprocess.run([sys.executable, "-c", program, path], check=True, cwd=ROOT)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
def test_what_a_killed_process_left_is_removed_by_the_next_and_what_a_living_one_has_is_not(tmp_path):
    with begin_half(tmp_path / "a") as dead:
        dead.kill()
    [left] = tmp_path.iterdir()
    with begin_half(tmp_path / "a") as alive:
        write_in_new_process(tmp_path / "b")
        [part] = set(tmp_path.iterdir()) - {tmp_path / "b"}
        assert part != left
        assert {path.name for path in part.iterdir()} == {"a", "spool"}
        alive.kill()
    write_in_new_process(tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_left_over_folders_that_are_links_or_anothers_are_not_touched(tmp_path, monkeypatch):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "letter").write_text("dear")
    (tmp_path / ".0123456789abcdef.part").symlink_to(tmp_path / "precious")
    (tmp_path / ".x.part").mkdir()
    write_in_new_process(tmp_path / "b")
    assert (tmp_path / "precious" / "letter").exists()
    assert (tmp_path / ".0123456789abcdef.part").is_symlink()
    assert (tmp_path / ".x.part").exists()


def test_a_file_that_takes_the_name_of_an_opened_one_is_not_read(tmp_path):
    path = tmp_path / "in"
    path.write_text("checked")
    with open_file(path) as file:
        path.unlink()
        path.write_text("swapped")
        assert Path(opened_path(file)).read_text() == "checked"
        assert file.read() == b"checked"


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "below a file", "circle", "zero byte", "device"])
def test_what_is_no_regular_file_is_refused_in_a_sentence(kind, tmp_path):
    path = tmp_path / "in"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "below a file":
        path.write_text("")
        path = path / "x"
    elif kind == "circle":
        path.symlink_to(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "zero byte":
        path = f"{path}\0"
    with pytest.raises(OSError, match=r"name (a|another) file|name one"):
        open_file(path)


def test_a_large_file_and_a_link_are_refused_where_they_matter(tmp_path):
    (tmp_path / "real").write_bytes(bytes(100))
    (tmp_path / "link").symlink_to("real")
    with open_file(tmp_path / "link", max_bytes=100) as file:
        assert len(file.read()) == 100
    with pytest.raises(ValueError, match="has 100 bytes, but no file of its kind needs more than 99"):
        open_file(tmp_path / "real", max_bytes=99)
    with pytest.raises(OSError, match="is a link"):
        open_file(tmp_path / "link", follow_links=False)


@pytest.mark.parametrize("mode", ["rb", "r+b"])
def test_files_of_earlier_runs_are_no_links_of_any_kind(mode, tmp_path):
    (tmp_path / "precious").write_text("dear")
    (tmp_path / "soft").symlink_to("precious")
    (tmp_path / "gone").symlink_to("none")
    for name in ("soft", "gone"):
        with pytest.raises(OSError, match="is a link"):
            open_own(tmp_path / name, mode)
    os.link(tmp_path / "precious", tmp_path / "hard")
    if mode == "r+b":
        with pytest.raises(OSError, match="hard link"):
            open_own(tmp_path / "hard", mode)
        with open_own(tmp_path / "new", mode) as file:
            file.write(b"x")
        assert not (tmp_path / "none").exists()
    assert (tmp_path / "precious").read_text() == "dear"


def test_folders_of_earlier_runs_hold_no_links_and_are_not_everybodys(tmp_path):
    folder = tmp_path / "run"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "file").write_text("")
    check_own_folder(folder)
    folder.chmod(0o777)
    with pytest.warns(FileWarning, match="every user may write to .*run"):
        check_own_folder(folder)
    (folder / "deep" / "link").symlink_to(tmp_path)
    with pytest.raises(OSError, match="deep/link is a link"):
        check_own_folder(folder)


def test_folders_for_outputs_do_not_lead_elsewhere(tmp_path):
    assert make_folder(tmp_path / "out", "a/b") == tmp_path / "out" / "a" / "b"
    (tmp_path / "out" / "link").symlink_to(tmp_path)
    for below in ("link", "a/../../x"):
        with pytest.raises(OSError, match=r"is a link|leads out"):
            make_folder(tmp_path / "out", below)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[" * 70 + "]" * 70, "nested more deeply than 64"),
        ("[" * 100_000, "nested more deeply than 64"),
        ('{"a": {"b": 1, "b": 2}}', "has the name 'b' twice"),
        ("[1" + "0" * 400 + "]", "number of 401 digits"),
        ("{", "Expecting"),
    ],
)
def test_json_that_later_code_would_stumble_over_is_refused(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        loads(text)
    assert loads("[" * 64 + "]" * 64)


def test_folders_deeper_than_python_calls_itself_do_no_harm(tmp_path):
    folder = tmp_path / ".0123456789abcdef.part"
    deep = folder
    for _ in range(1500):
        deep = deep / "d"
    subprocess.run(["mkdir", "-p", deep], check=True)
    try:
        check_own_folder(tmp_path)
        write_in_new_process(tmp_path / "b")
        assert (tmp_path / "b").read_text() == "b"
        (deep / "link").symlink_to("b")
        with pytest.raises(OSError, match="is a link"):
            check_own_folder(tmp_path)
    finally:
        subprocess.run(["rm", "-rf", folder], check=True)  # pytest calls itself for each folder, too


NOTES = Writer("a note", {".txt": lambda path, words: path.write_text(words), ".raw": lambda path, _: path.touch()})


@pytest.mark.parametrize(("name", "written"), [("a.txt", "dear"), ("a.TXT", "dear"), ("a.raw", "")])
def test_the_ending_says_what_is_written(name, written, tmp_path):
    NOTES.write(tmp_path / name, "dear")
    assert (tmp_path / name).read_text() == written
    with (tmp_path / name).open("wb") as file:
        NOTES.write(file, "dear")
    assert (tmp_path / name).read_text() == written


def test_another_ending_is_refused_before_anything_is_written(tmp_path):
    held = BytesIO()
    NOTES.write(held, "dear")  # no name, so the first format
    assert held.getvalue() == b"dear"
    for refused in (NOTES.check, partial(NOTES.write)):
        for name in ("a.gif", "a", "txt"):
            with pytest.raises(
                ValueError, match=rf"{name} has an unknown ending; a note can be written as .txt or .raw$"
            ):
                refused(tmp_path / name)
        with pytest.raises(FileNotFoundError, match="create it first"):
            refused(tmp_path / "none" / "a.txt")
    with pytest.raises(ValueError, match=r"a letter can be written as \.txt$"):
        Writer("a letter", {".txt": Path.touch}).check("a.gif")
    (tmp_path / "a.txt").write_text("old")
    held = BytesIO()
    for place in (tmp_path / "a.txt", held):
        with pytest.raises(TypeError):
            NOTES.write(place, b"no text")
    assert held.getvalue() == b""
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.slow
def test_what_writes_a_file_at_a_path_writes_the_same_into_an_open_file(tmp_path):
    network, street = make(), pictures(tmp_path)[0]
    found, cam = ct.heatmap(network, street, 3), ct.gradcam(network, street, 3)
    statistics = channel_statistics(network, [street], "relu_2")
    writers: dict[str, Any] = {
        "x.safetensors": partial(ct.save, network),
        "x.pt2": partial(ct.export, network),
        "x.png": found.save,
        "x.html": found.save,
        "x.json": cam.save,
        "x.npz": partial(save_grids, activation_grids(network, street, "relu_3", channels=2)),
        "x.jpg": first_kernels(network).save,
        "x.csv": partial(save_statistics, statistics),
    }
    for name, write in writers.items():
        held = BytesIO()
        held.name = name
        write(held)
        write(tmp_path / name)
        assert held.getvalue() == (tmp_path / name).read_bytes(), name
    held = BytesIO()
    found.save(held)
    assert held.getvalue() == (tmp_path / "x.png").read_bytes()
    with (tmp_path / "y.npy").open("wb") as file:
        found.save(file)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), found.values)
    held.name = "x.gif"
    with pytest.raises(ValueError, match="gif"):
        found.save(held)

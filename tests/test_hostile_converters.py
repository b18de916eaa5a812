"""Files and folders of strangers, given to the converter, the audit and the doctor."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.conftest import KERAS1

pytestmark = pytest.mark.hostile

ROOT = Path(__file__).resolve().parent.parent
COMMAND = Path(sysconfig.get_path("scripts")) / "convnets-torch"


# A folder full of somebody's modules


@pytest.fixture
def trap(tmp_path):
    """A folder with a weights file, and modules of any name that is imported, each of which leaves a trace."""
    folder = tmp_path / "download"
    folder.mkdir()
    names = [name for name in sys.stdlib_module_names if not name.startswith("_")]
    for name in (*names, "numpy", "h5py", "torch", "converters", "convnets_torch", "sitecustomize", "usercustomize"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'a').write({name!r} + ' ')\n")
    shutil.copy(KERAS1 / "vgg16.h5", folder / "x.h5")
    return folder


@pytest.mark.skipif(not COMMAND.exists(), reason="the command is not installed")
@pytest.mark.parametrize("arguments", [("audit", "x.h5"), ("convert", "x.h5", "out.safetensors", "--backend=theano")])
def test_no_module_of_the_current_folder_is_run(trap, arguments):
    """The command's own script keeps the folder away from the first process; the others are ours to keep it from."""
    environment = os.environ | {"PYTHONPATH": ""}
    done = subprocess.run([COMMAND, *arguments], cwd=trap, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (trap.parent / "trace").exists()


@pytest.mark.parametrize("forks", [True, False])
def test_nor_where_variables_and_the_callers_own_path_name_that_folder(trap, forks):
    """As in a notebook, whose path begins with "", the current folder."""
    if forks and not sys.platform.startswith("linux"):
        pytest.skip("there is no server that forks")
    code = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from converters import isolation
isolation.FORKS = {forks}
sys.path.insert(0, "")
os.environ |= {{"PYTHONPATH": ".", "PYTHONHOME": ".", "PYTHONSTARTUP": "json.py", "PYTHONUSERBASE": "."}}
with isolation.reading_process() as call:
    print(call("read", path="x.h5")["container"])
    call("forward", path="x.h5", described={{}}, folder=".", assumptions={{}})
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=trap, capture_output=True, text=True)
    assert done.stdout == "legacy\n", done.stderr
    assert "KeyError: 'layers'" in done.stderr  # what is only then imported was the library's own, and ran
    assert not (trap.parent / "trace").exists()


def test_packages_that_only_the_caller_finds_are_found(tmp_path):
    """On PYTHONPATH alone, where an isolated interpreter does not look."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for package in (np, h5py):
        for place in Path(package.__file__).parents[1].glob(f"{package.__name__}*"):
            (packages / place.name).symlink_to(place)
    code = f"""
from converters import isolation
print(isolation._further_folders())
with isolation.reading_process() as call:
    print(call("read", path={str(KERAS1 / "vgg16.h5")!r})["container"])
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(packages), str(ROOT)])}
    bare = sys._base_executable  # without what is installed in this environment
    done = subprocess.run([bare, "-s", "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == f"[{str(packages)!r}]\nlegacy\n", done.stderr

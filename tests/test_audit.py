"""Audits: honest files are listed, hostile ones are told of rather than refused."""

from __future__ import annotations

import json

import h5py
import pytest

from converters.audit import Audit, audit
from tests.conftest import KERAS1
from tests.test_reading import write
from tests.test_reading_hostile import external_link, external_storage, never_written, soft_loop, virtual


@pytest.mark.parametrize("form", ["h5", "keras", "weights.h5"])
def test_optimizer_slots_are_told_apart_from_weights(keras3_formats, form):
    found = audit(keras3_formats / f"transfer.{form}")
    weights = sum(layer.parameters for layer in found.layers)
    assert (found.refused, found.problems, found.code, found.parameters) == (None, (), (), weights)
    assert found.clean
    assert found.optimizer_arrays == 2 + 2 * 9  # two moments of each of nine trainable arrays, step and rate
    assert found.optimizer_bytes > 2 * 4 * (weights - 2 * 4)
    assert json.loads(json.dumps(found.to_dict()))["parameters"] == weights


@pytest.mark.parametrize("form", ["h5", "keras"])
def test_lambdas_and_training_are_told(keras3_formats, form):
    assert any("twice is a Lambda" in entry for entry in audit(keras3_formats / f"with_code.{form}").code)
    assert "mse" in json.dumps(audit(keras3_formats / f"transfer.{form}").training)


def test_classes_that_are_not_keras_own_are_told(tmp_path):
    path = write(tmp_path / "x.h5", {"a": {"a_W": (2, 3)}})
    layer = {"class_name": "Thing", "module": "os.path", "registered_name": "pack>Thing", "config": {"name": "t"}}
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": {"layers": [layer]}})
    assert audit(path).code == ("t is os.path.Thing, which is not Keras's own",)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (external_link, "/a/out is an external link, to /secret in /etc/passwd"),
        (soft_loop, "/a/one is a soft link, to /a/two"),
        (virtual, "/a/a_W is a virtual dataset, made of other files"),
        (external_storage, "/a/a_W is external storage, its values lie in the file /etc/passwd"),
        (never_written, "/a/a_W is (1000000, 1000000), but only 0 bytes of it are there"),
    ],
)
def test_hostile_files_are_told_of(tmp_path, change, sentence):
    path = write(tmp_path / "x.h5", {"a": {"a_W": (2, 3), "a_b": (3,)}})
    with h5py.File(path, "r+") as file:
        change(file)
    found = audit(path)
    assert sentence in found.problems
    assert sentence.split(",")[0] in found.refused
    assert any("a_b" in layer.arrays for layer in found.layers)
    assert not found.clean


def test_broken_files_are_told_of(tmp_path):
    (tmp_path / "cut.h5").write_bytes((KERAS1 / "alexnet.h5").read_bytes()[:50_000])
    assert "truncated" in audit(tmp_path / "cut.h5").problems[0]
    (tmp_path / "cut.keras").write_bytes(b"PK\x03\x04 and no more")
    assert "not a zip file" in audit(tmp_path / "cut.keras").problems[0]


def test_the_command_prints_a_line_for_each_layer_and_json(command, tmp_path):
    code, printed, _ = command("audit", KERAS1 / "alexnet.h5")
    assert code == 0
    assert "Keras 1 (legacy), " in printed
    assert "  conv_1 " in printed
    code, printed, _ = command("audit", KERAS1 / "alexnet.h5", "--json")
    assert json.loads(printed)["framework"] == "Keras 1"
    assert json.loads(printed)["clean"] is True
    path = write(tmp_path / "x.h5", {"a\x1b[31m": {"a_W": (2, 3)}})
    assert "a\\x1b[31m" in command("audit", path)[1]


def nothing(file):
    pass


def code(file):
    layer = {"class_name": "Lambda", "config": {"name": "twice"}}
    file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": {"layers": [layer]}})


def unlisted(file):
    file["a"]["more"] = [1.0]


@pytest.mark.parametrize(
    ("change", "clean"), [(nothing, True), (code, False), (external_link, False), (unlisted, False)]
)
def test_a_clean_file_is_said_to_be_clean_and_no_other_is(change, clean, tmp_path, command):
    path = write(tmp_path / "x.h5", {"a": {"a_W": (2, 3), "a_b": (3,)}})
    with h5py.File(path, "r+") as file:
        change(file)
    _, printed, _ = command("audit", path)
    assert (printed.splitlines()[-1][:19] == "nothing suspicious:") is clean
    assert Audit.from_dict(audit(path).to_dict()).clean is clean
    (tmp_path / "empty.h5").write_bytes(b"")
    assert not audit(tmp_path / "empty.h5").clean

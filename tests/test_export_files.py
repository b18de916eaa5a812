"""What exports leave on disk, what they refuse, and the command."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from convnets_torch import export, prepare, save
from convnets_torch.inference import child_process
from convnets_torch.inference.export import OPSET
from tests.conftest import DATA, NARROW

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


def test_the_card_and_no_folder_of_this_machine_is_in_the_file(vgg, tmp_path):
    import onnx

    card = vgg.card.to_json()
    export(vgg, tmp_path / "x.onnx")
    export(vgg, tmp_path / "x.pt2")
    model = onnx.load(tmp_path / "x.onnx")
    assert {entry.key: entry.value for entry in model.metadata_props}["card"] == card
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == OPSET
    onnx.checker.check_model(model)
    extra = {"card": ""}
    torch.export.load(tmp_path / "x.pt2", extra_files=extra)
    assert json.loads(extra["card"]) == json.loads(card)
    folder = str(DATA.parents[1]).encode()
    assert not any(folder in path.read_bytes() for path in tmp_path.iterdir())


def test_what_cannot_be_exported_is_refused(tmp_path):
    narrow = NARROW["alexnet"]().eval()

    def refused(network, words, name="x.pt2", kind=ValueError, **options):
        with pytest.raises(kind, match=words):
            export(network, tmp_path / name, **options)

    refused(narrow, r"ends in '\.tflite'; an export is a file that ends in \.onnx or \.pt2", "x.tflite")
    refused(narrow, "folder .* does not exist", "none/x.pt2", OSError)
    refused(narrow, "no card, so its preprocessing is unknown", with_preprocessing=True)
    refused(prepare(narrow, device="cpu", precision="float32"), "prepared to run, not to be exported")
    refused(
        prepare(narrow, device="cpu", precision="exact").to(torch.float64), r"in torch\.float64; export it in float3"
    )
    nn.init.constant_(narrow.get_parameter("head.dense_1.weight"), torch.nan)
    refused(narrow, "outputs differ from the network's by nan")
    narrow.head = None
    refused(narrow, "the network has no head")
    assert not list(tmp_path.iterdir())


def test_an_older_file_survives_what_fails(tmp_path):
    (tmp_path / "x.pt2").write_text("older")
    narrow = NARROW["alexnet"]().eval()
    nn.init.constant_(narrow.get_parameter("head.dense_1.weight"), torch.nan)
    with pytest.raises(ValueError, match=r"x\.pt2 was not written"):
        export(narrow, tmp_path / "x.pt2")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"x.pt2": "older"}


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_a_missing_extra_is_named(missing, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"needs onnx and onnxscript: pip install 'convnets-torch\[export\]'"):
        export(NARROW["alexnet"]().eval(), tmp_path / "x.onnx")


def test_without_onnxruntime_the_file_is_written_unchecked(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(child_process, "_may_run", lambda thread: False)  # so that it is written in this process
    written = export(NARROW["alexnet"]().eval(), tmp_path / "x.onnx")
    assert written.difference is None
    assert "onnxruntime is not installed" in written.unchecked
    assert (tmp_path / "x.onnx").stat().st_size == written.bytes


@pytest.mark.slow
def test_a_killed_export_leaves_nothing(lite_weights, tmp_path):
    code = "from convnets_torch.cli.app import main; main()"
    output = tmp_path / "x.onnx"
    with subprocess.Popen([sys.executable, "-c", code, "export", lite_weights, "-o", output]) as process:
        while not list(tmp_path.glob(".*.part")):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_was_written(command, vgg, tmp_path):
    save(vgg, tmp_path / "x.safetensors")
    code, out, _ = command(
        "export", tmp_path / "x.safetensors", "-o", tmp_path / "x.onnx", "--heatmap", "--with-preprocessing"
    )
    assert code == 0
    rows = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in out.splitlines()}
    assert rows["images"] == "uint8 (batch, height, width, 3), RGB, 0 to 255"
    assert rows["logits"] == "float32 (batch, 10, rows, columns)"
    assert rows["smallest images"] == "256x256 pixels (height x width)"
    assert rows["largest difference"].endswith("of the largest logit")
    code, _, errors = command("export", tmp_path / "x.safetensors", "-o", tmp_path / "x.h5")
    assert code == 1
    assert errors.strip().count("\n") == 0
    assert "ends in '.h5'" in errors


WITHOUT_TELEMETRY = """
import os, sys
import torch
from convnets_torch.inference.export import export
from tests.conftest import NARROW
del os.environ["ORT_DISABLE_TELEMETRY"]  # which the tests set for themselves
exported = export(NARROW["alexnet"]().eval(), sys.argv[1])
held = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
print(exported.unchecked, [path for path in held if path.endswith("onnxruntime.db")])
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_onnxruntime_runs_without_its_telemetry(tmp_path):
    """Its uploader keeps a database open; with telemetry, one is in the list."""
    command = [sys.executable, "-c", WITHOUT_TELEMETRY, str(tmp_path / "x.onnx")]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "None []"

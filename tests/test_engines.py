"""Engines answer as the networks that were given to them."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torchvision

from convnets_torch import classify, engine, load, predict, prepare
from convnets_torch.inference import engines
from tests.conftest import NARROW
from tests.reference.nearness import differ, with_statistics

MARGINS = {"float32": 1e-4, "bfloat16": 3e-2}  # of the largest logit


KINDS = [("alexnet", "float32"), ("alexnet", "bfloat16"), ("vgg16", "bfloat16")]
KINDS += [(name, "float32") for name in NARROW if name not in ("alexnet", "vgg19")]


def made(name, precision):
    """A narrow network and its engine."""
    pytest.importorskip("openvino")
    torch.manual_seed(0)
    narrow = with_statistics(NARROW[name]())
    return narrow, engine(narrow, "openvino", precision=precision)


@pytest.fixture(scope="module")
def alexnet():
    return made("alexnet", "float32")


@pytest.mark.filterwarnings("ignore::convnets_torch.inference.prepare.RuntimeRemark")  # of processors without bfloat16
@pytest.mark.parametrize(
    ("name", "precision"),
    [pytest.param(*kind, marks=[pytest.mark.slow] * (number > 0)) for number, kind in enumerate(KINDS)],
)
def test_openvino_answers_the_same_for_any_batch(name, precision, request):
    narrow, ready = request.getfixturevalue("alexnet") if (name, precision) == KINDS[0] else made(name, precision)
    assert (ready.size, ready.card) == (narrow.size, None)
    assert ready.precision in (precision, "float32")
    for batch in (1, 2, 5):
        images = torch.randn(batch, 3, *narrow.size)
        with torch.inference_mode():
            wanted = narrow(images)
        found = ready(images)
        assert (found.shape, found.dtype) == (wanted.shape, torch.float32)
        assert differ(found, wanted) <= MARGINS[precision]


def test_the_program_is_kept_in_the_cache(vgg, monkeypatch, tmp_path):
    pytest.importorskip("openvino")
    monkeypatch.setenv("CONVNETS_TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(engines, "MOST_KEPT", 2)
    written = []

    def counted(_, function, *given):  # here, where nothing else runs a network, since a process takes seconds
        written.append(given)
        return getattr(engines, function)(*given)

    monkeypatch.setattr(engines, "apart", counted)
    images = torch.randn(1, 3, *vgg.size)

    def answer(times):
        found = engine(vgg, precision="float32")(images)
        assert len(written) == times
        return found

    first = answer(1)
    assert torch.equal(answer(1), first)
    [folder] = (tmp_path / "engines").iterdir()
    for damage in ("program.bin", "program.xml"):
        data = bytearray((folder / damage).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / damage).write_bytes(data)
        assert torch.equal(answer(len(written) + 1), first)
    shutil.rmtree(tmp_path / "engines")
    (tmp_path / "engines").write_text("no folder")
    assert torch.equal(answer(4), first)
    (tmp_path / "engines").unlink()
    other = copy.deepcopy(vgg)
    for count in range(1, 4):
        other.head[-1].bias.data.fill_(count)
        changed = engine(other, precision="float32")(images) - first + vgg.head[-1].bias.detach()
        assert differ(changed, torch.full_like(changed, count)) < 1e-3
        assert len(list((tmp_path / "engines").iterdir())) == min(count, 2)


@pytest.mark.filterwarnings("ignore::convnets_torch.inference.prepare.RuntimeRemark")
@pytest.mark.slow
@pytest.mark.parametrize("precision", MARGINS)
def test_torchvisions_networks_are_taken_too(precision):
    pytest.importorskip("openvino")
    torch.manual_seed(0)
    module = with_statistics(torchvision.models.resnet18(num_classes=10))
    ready = engine(module, "openvino", precision=precision, size=(160, 192))
    images = torch.randn(3, 3, 160, 192)
    with torch.inference_mode():
        assert differ(ready(images), module(images)) <= MARGINS[precision]


def test_an_answer_stays_when_the_next_is_computed(alexnet):
    _, ready = alexnet
    images = torch.randn(2, 3, 227, 227)
    first = ready(images)
    kept = first.clone()
    ready(-3 * images)
    assert torch.equal(first, kept)


def test_several_threads_get_the_answers_to_their_own_images(alexnet):
    narrow, ready = alexnet
    asked = [torch.randn(1 + number % 3, 3, 227, 227) for number in range(24)]
    with torch.inference_mode():
        wanted = [narrow(images) for images in asked]
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(ready, asked))
    for one, other in zip(found, wanted, strict=True):
        assert differ(one, other) <= MARGINS["float32"]


def test_what_an_engine_cannot_take_is_refused():
    narrow = NARROW["alexnet"]().eval()
    with pytest.raises(ValueError, match="unknown engine 'tensorrt'; known: openvino"):
        engine(narrow, "tensorrt")
    with pytest.raises(ValueError, match="unknown engine precision 'float16'; known: auto, float32, bfloat16"):
        engine(narrow, precision="float16")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prepared to run"):
        engine(prepare(narrow, device="cpu", precision="float32"))
    with pytest.raises(ValueError, match="ResNet has no image size; give it, for example size=224"):
        engine(torchvision.models.resnet18(num_classes=2).eval())
    with pytest.raises(ValueError, match=r"size is \(224, 224\), but the network classifies \(227, 227\)"):
        engine(narrow, size=224)


def test_images_of_another_size_are_refused(alexnet):
    _, ready = alexnet
    with pytest.raises(ValueError, match=r"images are \(1, 3, 224, 224\), but this engine takes \(N, 3, 227, 227\)"):
        ready(torch.zeros(1, 3, 224, 224))


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"needs its package: pip install 'convnets-torch\[openvino\]'"):
        engine(NARROW["alexnet"]().eval())


@pytest.mark.slow
def test_pictures_are_classified_in_an_engine(command, lite_weights, photographs, tmp_path):
    pytest.importorskip("openvino")
    pictures = [photographs / name for name in ("coffee.png", "chelsea.png")]
    (tmp_path / "none.png").write_bytes(b"no picture")
    network = load(lite_weights)
    ready = engine(network, "openvino", precision="float32")
    assert ready.card == network.card
    for found, wanted in zip(classify(ready, pictures), classify(network, pictures), strict=True):
        assert [entry.class_id for entry in found] == [entry.class_id for entry in wanted]
        assert [entry.probability for entry in found] == pytest.approx(
            [entry.probability for entry in wanted], abs=1e-4
        )
    assert [row.error is None for row in predict(ready, [*pictures, tmp_path / "none.png"])] == [True, True, False]
    _, plain, _ = command("classify", lite_weights, *pictures)
    code, out, said = command("classify", lite_weights, *pictures, "--engine", "openvino")
    assert (code, said) == (0, "")
    assert out == plain  # three decimals
    code, _, said = command("classify", lite_weights, *pictures, "--engine", "openvino", "--precision", "float16")
    assert code == 2
    assert "not float16" in " ".join(said.split())


DROPPED = """
import gc, os, signal, sys, threading
from convnets_torch import engine
from convnets_torch.networks import vgg16
box = [engine(vgg16(3, (2, 2, 2, 2, 2), (4, 4), size=(32, 32)).eval(), precision="float32")]
other = threading.Thread(target=box.clear)
other.start()
other.join()
gc.collect()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_signal_is_handled_after_another_thread_dropped_the_engine():
    """OpenVINO's core unmaps the signal stack of the thread that made it, whichever thread destroys it."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", DROPPED], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr

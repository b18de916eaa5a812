"""Exported programs answer as the networks they were made of, in ONNX Runtime and in plain PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision

from convnets_torch import densify, export, load, score_map
from convnets_torch.images.decoding import read_picture
from convnets_torch.images.preprocessing import center_crop, normalize
from tests.conftest import DATA, NARROW
from tests.reference.nearness import differ, with_statistics

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

MARGIN = 1e-4  # of the largest logit
FORMS = [*((name, "onnx") for name in NARROW if name != "vgg19"), ("alexnet", "pt2"), ("resnet50", "pt2")]
CASES = [pytest.param(*form, marks=[pytest.mark.slow] * (form != ("alexnet", "onnx"))) for form in FORMS]


def runner(path):
    """The program in the file, as a function of one tensor."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def network_of(name):
    torch.manual_seed(0)
    return with_statistics(NARROW[name]())


@pytest.mark.parametrize(("name", "ending"), CASES)
def test_classifiers_answer_the_same_for_any_batch(name, ending, tmp_path):
    narrow = network_of(name)
    written = export(narrow, tmp_path / f"x.{ending}")
    assert (written.images, written.logits) == (("batch", 3, *narrow.size), ("batch", 10))
    assert written.difference is not None
    assert written.difference <= MARGIN
    run = runner(tmp_path / f"x.{ending}")
    with torch.inference_mode():
        for batch in (1, 2, 5):
            images = torch.randn(batch, 3, *narrow.size)
            assert differ(run(images), narrow(images)) <= MARGIN
            assert differ(run(images)[:, :, None, None], score_map(narrow, images)) <= MARGIN  # a map of one cell
    assert [path.name for path in tmp_path.iterdir()] == [f"x.{ending}"]  # one file, no external data


@pytest.mark.slow
@pytest.mark.parametrize(("name", "ending"), FORMS)
def test_score_maps_answer_the_same_for_any_size_and_batch(name, ending, tmp_path):
    narrow = network_of(name)
    written = export(narrow, tmp_path / f"x.{ending}", heatmap=True)
    height, width = written.smallest
    assert (height, width) == (narrow.size[0] + narrow.stride, narrow.size[1] + narrow.stride)
    run = runner(tmp_path / f"x.{ending}")
    with torch.inference_mode():
        for batch, down, across in ((1, 0, 0), (3, 7, 101), (2, 77, 0), (1, 64, 33)):
            images = torch.randn(batch, 3, height + down, width + across)
            assert differ(run(images), score_map(narrow, images)) <= MARGIN


@pytest.mark.slow
def test_users_networks_are_exported_too(tmp_path):
    torch.manual_seed(0)
    module = with_statistics(torchvision.models.resnet18(num_classes=7))
    network = densify(module)
    export(network, tmp_path / "x.onnx")
    export(network, tmp_path / "map.pt2", heatmap=True)
    images, larger = torch.randn(2, 3, 224, 224), torch.randn(1, 3, 301, 260)
    with torch.inference_mode():
        assert differ(runner(tmp_path / "x.onnx")(images), module(images)) <= MARGIN
        assert differ(runner(tmp_path / "map.pt2")(larger), score_map(network, larger)) <= MARGIN


@pytest.mark.slow
@pytest.mark.parametrize(("name", "ending"), [("alexnet", "onnx"), ("vgg16", "pt2")])  # RGB and BGR
def test_with_preprocessing_pixels_go_in(name, ending, tmp_path):
    from converters import convert

    convert(DATA / "keras1" / f"{name}.h5", tmp_path / "x.safetensors")
    network = load(tmp_path / "x.safetensors")
    rule = network.card.preprocessing
    random = np.random.default_rng(0)
    for heatmap in (False, True):
        written = export(network, tmp_path / f"x.{ending}", heatmap=heatmap, with_preprocessing=True)
        sides = ("height", "width") if heatmap else rule.shape
        assert (written.kind, written.images) == ("uint8", ("batch", *sides, 3))
        down, across = (300, 353) if heatmap else rule.shape
        pixels = random.integers(0, 256, (2, down, across, 3), dtype=np.uint8)
        images = torch.from_numpy(np.stack([normalize(each, rule) for each in pixels]))
        with torch.inference_mode():
            wanted = score_map(network, images) if heatmap else network(images)
            found = runner(tmp_path / f"x.{ending}")(torch.from_numpy(pixels))
        assert differ(found, wanted) <= MARGIN


@pytest.mark.slow
def test_a_photograph_is_classified_by_the_file_alone(lite_weights, photographs, tmp_path):
    network = load(lite_weights)
    export(network, tmp_path / "lite.onnx", with_preprocessing=True)
    pixels = center_crop(read_picture(photographs / "chelsea.png"), network.card.preprocessing)
    logits = runner(tmp_path / "lite.onnx")(torch.from_numpy(pixels[None].copy()))
    assert int(logits.argmax()) in (281, 282, 285)  # tabby, tiger cat, Egyptian cat

"""Maps of an engine are those of the network that was given to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.nn.functional import interpolate

from convnets_torch import (
    classify,
    contrast,
    densify,
    engine,
    heatmap,
    heatmap_each,
    heatmap_targets,
    probability_map,
    save,
    score_map,
)
from convnets_torch.inference.engines import Engine
from convnets_torch.inference.prepare import RuntimeRemark
from tests.conftest import NARROW
from tests.reference.nearness import differ, with_statistics
from tests.test_engines import MARGINS

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:this processor has no instructions")]


def openvino(network, precision="float32"):
    pytest.importorskip("openvino")
    return engine(network, "openvino", precision=precision, heatmap=True)


@pytest.fixture(scope="module")
def pair(vgg):
    """A network whose probabilities differ from cell to cell, and its engine."""
    last = vgg.head[-1]
    with torch.no_grad():
        scores = score_map(vgg, torch.from_numpy(picture(500, 500)).permute(2, 0, 1)[None].float() - 100)
        last.bias -= scores.mean(dim=(0, 2, 3))
        for parameter in last.parameters():
            parameter /= scores.std(dim=(2, 3)).mean()
    return vgg, openvino(vgg)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Coloured blots, so that cells are unlike each other."""
    blots = torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(seed)) * 255
    return interpolate(blots, (height, width), mode="bicubic")[0].clamp(0, 255).byte().permute(1, 2, 0).numpy()


KINDS = [*((name, "float32") for name in NARROW if name != "vgg19"), ("vgg16", "bfloat16")]


@pytest.mark.parametrize(("name", "precision"), KINDS)
def test_one_program_maps_all_sizes_and_batches(name, precision):
    torch.manual_seed(0)
    narrow = with_statistics(NARROW[name]())
    ready = openvino(narrow, precision)
    (height, width), stride = narrow.size, narrow.stride
    sizes = [
        (1, height, width),  # one cell, which torch.export takes for a constant
        (3, height, width),
        (1, height, width + 2 * stride),
        (2, height + stride, width),
        (1, height + stride - 1, width + stride + 1),
        (2, height + 101, width + 53),
        (1, height, width),
    ]
    for count, *sides in sizes:
        images = torch.randn(count, 3, *sides)
        with torch.inference_mode():
            wanted = score_map(narrow, images)
        found = ready(images)
        assert (found.shape, found.dtype) == (wanted.shape, torch.float32)
        assert differ(found, wanted) <= MARGINS[precision]


def test_a_densified_network_is_mapped_too():
    torch.manual_seed(0)
    module = with_statistics(torchvision.models.resnet18(num_classes=10))
    with pytest.raises(ValueError, match=r"ResNet cannot compute score maps; convert it first"):
        engine(module, size=96, heatmap=True)
    network = densify(module, 96)
    images = torch.randn(2, 3, 130, 200)
    with torch.inference_mode():
        assert differ(openvino(network)(images), score_map(network, images)) <= MARGINS["float32"]


def test_images_below_the_native_size_are_refused(pair):
    with pytest.raises(ValueError, match=r"\(1, 3, 224, 223\), but this engine takes \(N, 3, 224, 224\) or larger"):
        pair[1](torch.zeros(1, 3, 224, 223))


def test_heatmaps_of_an_engine_are_the_networks(pair):
    network, ready = pair
    image = picture(300, 421)
    one, other = (heatmap_targets(each, image, ["a", "3"], scales=(1, 1.5)) for each in pair)
    for mine, wanted in zip(other, one, strict=True):
        np.testing.assert_allclose(mine.values, wanted.values, atol=1e-4)
        assert np.ptp(wanted.values) > 0.05  # else any map would do
        assert mine.placement == wanted.placement
        assert mine.window(0, 1) == wanted.window(0, 1)
    np.testing.assert_allclose(
        contrast(ready, image, "a", "b").values, contrast(network, image, "a", "b").values, atol=1e-4
    )
    np.testing.assert_allclose(
        probability_map(ready, image).probabilities, probability_map(network, image).probabilities, atol=1e-4
    )


def test_pictures_of_one_size_go_through_an_engine_together(pair):
    network, ready = pair
    images = [picture(224, 288, 1), picture(250, 260, 2), picture(224, 288, 3), picture(100, 300), picture(224, 288, 4)]
    shapes = []

    class Watched(Engine):
        def __call__(self, given):
            shapes.append(tuple(given.shape))
            return super().__call__(given)

    watched = object.__new__(Watched)
    watched.__dict__ = ready.__dict__
    found = list(heatmap_each(watched, images, "a"))
    assert shapes == [(3, 3, 224, 288), (1, 3, 250, 260)]
    for mine, wanted in zip(found, heatmap_each(network, images, "a"), strict=True):
        assert str(mine.error) == str(wanted.error)
        for one, other in zip(mine.maps, wanted.maps, strict=True):
            np.testing.assert_allclose(one.values, other.values, atol=1e-4)
    assert "smaller than the network's" in str(found[3].error)


def test_beyond_the_memory_the_network_itself_runs_and_that_is_said(pair):
    network, ready = pair
    image = picture(900, 260)
    said = r"one pass over 900x260 pixels .* takes up to \d+MB, but max_memory is 12MB; the network itself runs"
    with pytest.warns(RuntimeRemark, match=said):
        found = heatmap(ready, image, "a", max_memory="12MB")
    wanted = heatmap(network, image, "a", max_memory="12MB")
    assert np.array_equal(found.values, wanted.values)
    with pytest.warns(RuntimeRemark, match=said):
        [result] = heatmap_each(ready, [image], "a", max_memory="12MB")
    assert np.array_equal(result.maps[0].values, wanted.values)


def test_rows_of_the_network_and_of_an_engine_are_not_mixed(pair, tmp_path):
    network, ready = pair
    image = picture(260, 300)
    wanted = heatmap(ready, image, "a", resume=tmp_path)
    assert np.array_equal(heatmap(ready, image, "a", resume=tmp_path).values, wanted.values)
    with pytest.raises(ValueError, match="holds rows of another run"):
        heatmap(network, image, "a", resume=tmp_path)


def test_what_an_engine_cannot_do_is_refused(pair):
    network, ready = pair
    with pytest.raises(ValueError, match="one cell per 32 pixels; for a cell stride of 8 use the network itself"):
        heatmap(ready, picture(260, 300), "a", cell_stride=8)
    with pytest.raises(ValueError, match="a cell stride of 8 use the network itself"):
        heatmap_each(ready, [picture(260, 300)], "a", cell_stride=8)
    assert heatmap(ready, picture(260, 300), "a", cell_stride=32).values.shape == (2, 3)
    with pytest.raises(ValueError, match="the engine gives score maps; to classify, make one without heatmap"):
        classify(ready, picture(260, 300))
    with pytest.raises(ValueError, match=r"the engine classifies; for maps make one with engine\(network, 'openvino'"):
        heatmap(engine(network), picture(260, 300), "a")


def test_the_command_maps_a_picture_and_a_folder_in_an_engine(command, pair, tmp_path):
    network, weights, folder = pair[0], tmp_path / "narrow.safetensors", tmp_path / "pictures"
    save(network, weights)
    folder.mkdir()
    for name, (height, width) in {"large": (900, 260), "small": (240, 300)}.items():
        Image.fromarray(picture(height, width)).save(folder / f"{name}.png")
    small, wanted = folder / "small.png", ["--target", "a", "--engine", "openvino"]
    code, out, _ = command("heatmap", weights, small, *wanted, "-o", tmp_path / "one.npy")
    direct = heatmap(network, small, "a").values
    assert (code, f"highest {direct.max():.3f}" in out) == (0, True)
    np.testing.assert_allclose(np.load(tmp_path / "one.npy"), direct, atol=1e-4)
    asked = [*wanted, "--max-memory", "12MB", "--format", "npy", "-o", tmp_path / "maps"]
    code, _, said = command("heatmap", weights, folder, *asked)
    assert (code, said.count("the network itself runs in blocks of rows instead of openvino")) == (0, 1)
    for name in ("large", "small"):
        direct = heatmap(network, folder / f"{name}.png", "a").values
        np.testing.assert_allclose(np.load(tmp_path / "maps" / f"{name}.png.npy"), direct, atol=1e-4)


@pytest.mark.parametrize("wrong", [["--cell-stride", "16"], ["--precision", "exact"], ["--device", "cuda"]])
def test_options_that_an_engine_has_not_are_a_misuse(command, tmp_path, wrong):
    code, _, said = command(
        "heatmap", "none", "none.jpg", "--target", "cup", "--engine", "openvino", *wrong, "-o", tmp_path / "x.png"
    )
    assert code == 2
    assert "--engine openvino" in " ".join(said.split())

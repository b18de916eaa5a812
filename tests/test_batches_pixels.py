"""What heatmaps of many pictures see: pixels normalised on the device, JPEG files at reduced scale, halved batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from convnets_torch.heatmaps.api import heatmap
from convnets_torch.heatmaps.many import heatmap_each
from convnets_torch.images.decoding import read_picture
from convnets_torch.images.preprocessing import fit_longest_side, normalize, preset
from convnets_torch.weights import load, save
from tests.reference.pictures import picture
from tests.test_reduced import large as large

TORCHVISION = preset("alexnet", "torchvision")


@pytest.fixture
def network(weights):
    network = load(weights)
    network.card = replace(network.card, preprocessing=TORCHVISION)
    return network


@pytest.fixture
def seen(network):
    """What has gone into the network, pass by pass."""
    inputs = []
    network.features.register_forward_hook(lambda features, given, output: inputs.append(given[0].clone()))
    return inputs


def values(network, images, **options: Any):
    """The map of each picture, and what else is known of it."""
    results = list(heatmap_each(network, images, "dog", **options))
    assert [result.error for result in results] == [None] * len(results)
    return [result.maps[0] for result in results]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", ["original", "keras-caffe", "keras-tf", "torchvision", "efficientnet-lite"])
def test_inputs_are_those_that_numpy_normalises(rule, dtype, network, seen):
    network.to(dtype).card = replace(network.card, preprocessing=preset("alexnet", rule))
    pictures = [picture(seed, 240, 331) for seed in range(3)]
    values(network, pictures)
    [inputs] = seen
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    wanted = np.stack([normalize(pixels, network.card.preprocessing) for pixels in pictures])
    assert torch.equal(inputs, torch.from_numpy(wanted).to(dtype))


@pytest.fixture
def files(large, tmp_path):
    """JPEG files whose sides are multiples of eight, or not, or that lie on their side."""
    paths = []
    for number, (width, height, turn) in enumerate([(2048, 1536, 1), (2047, 1535, 1), (1536, 2048, 6)]):
        paths.append(tmp_path / f"{number}.jpg")
        paths[-1].write_bytes(large(width, height, "coffee.png", turn=turn).getvalue())
    return paths


def test_jpeg_files_are_read_whole_unless_told_otherwise(files, network):
    for path, found in zip(files, values(network, files, longest_side=400), strict=True):
        alone = heatmap(network, path, "dog", longest_side=400)
        np.testing.assert_array_equal(found.picture, alone.picture)
        np.testing.assert_allclose(found.values, alone.values, atol=1e-5)


def test_a_reduced_file_gives_nearly_the_same_map_of_the_same_picture(files, network, seen):
    near = values(network, files, longest_side=400, exact=False)
    assert [tuple(inputs.shape) for inputs in seen] == [(3, 3, 300, 400)]
    sizes = [(768, 1024), (768, 1024), (768, 1024)]
    for number, (path, found, size) in enumerate(zip(files, near, sizes, strict=True)):
        alone = heatmap(network, path, "dog", longest_side=400)
        assert found.picture.shape[:2] == size
        assert found.placement == alone.placement
        np.testing.assert_allclose(found.values, alone.values, atol=2e-3)
        whole = fit_longest_side(read_picture(path), 400, TORCHVISION)
        wanted = torch.from_numpy(normalize(whole, TORCHVISION))
        level = 1 / 255 / min(TORCHVISION.std)
        assert 0 < (seen[0][number] - wanted).abs().mean() < level  # a picture that moved is some levels off


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("torchvision", {"longest_side": 1500}),  # half of it would be less than twice as large
        ("torchvision", {}),
        ("torchvision", {"longest_side": 400, "scales": (1, 1.5)}),
        ("torchvision", {"longest_side": 400, "max_memory": "1.7MB"}),  # in strips
        ("original", {"longest_side": 400}),
        ("keras-caffe", {"longest_side": 400}),
    ],
    ids=str,
)
def test_where_nothing_can_be_reduced_the_maps_stay(rule, options, files, network):
    network.card = replace(network.card, preprocessing=preset("alexnet", rule))
    exact, near = (values(network, files[1:2], exact=each, **options) for each in (True, False))
    np.testing.assert_array_equal(near[0].values, exact[0].values)
    np.testing.assert_array_equal(near[0].picture, exact[0].picture)


def test_a_picture_too_small_says_its_own_size(files, network):
    [row] = heatmap_each(network, files[:1], "dog", longest_side=250, exact=False)
    assert "0.jpg is 188x250 pixels" in str(row.error)


def test_the_command_reduces_when_asked(command, weights, files, tmp_path):
    lite = load(weights)
    lite.card = replace(lite.card, preprocessing=TORCHVISION)
    path = tmp_path / "card.safetensors"
    save(lite, path)
    arguments = ["heatmap", path, files[0], files[1], "--target", "dog", "--longest-side", "400", "--format", "npz"]
    kept = {}
    for name, more in {"whole": [], "near": ["--reduced"]}.items():
        code, _, said = command(*arguments, "-o", tmp_path / name, *more)
        assert code == 0, said
        with np.load(tmp_path / name / "0.jpg.npz") as saved:
            kept[name] = saved["values"]
    assert not np.array_equal(kept["whole"], kept["near"])
    np.testing.assert_allclose(kept["whole"], kept["near"], atol=2e-3)
    code, _, said = command("heatmap", path, files[0], "--target", "dog", "-o", tmp_path / "a.png", "--reduced")
    assert code == 2
    assert "--reduced goes with" in said


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_cuda_gives_nearly_the_same_maps(network, files):
    wanted = values(network, files, longest_side=400)
    for exact in (True, False):
        found = values(network.cuda(), files, longest_side=400, exact=exact)
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one.values, other.values, atol=1e-2)

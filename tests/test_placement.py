"""Boxes of cells: windows by definition, receptive fields by gradients and by what a broken pixel breaks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from convnets_torch.fcn.graph import map_graph
from convnets_torch.fcn.score_map import score_map
from convnets_torch.heatmaps.scales import placement_of
from tests.test_heatmaps import sliding
from tests.test_networks import random
from tests.test_streaming import THIN, thin_network


@pytest.fixture(params=[(name, stride) for name in THIN for stride in (32, 8)], ids=lambda case: f"{case[0]}-{case[1]}")
def placed(request):
    """A thin network, a stride, the size of a picture in which some fields end inside, and where the cells lie."""
    name, stride = request.param
    network = thin_network(name)
    grid = map_graph(network, stride)
    size = (network.size[0] + 33, network.size[1] + 70)
    return network, stride, size, placement_of(grid, network, size, size, "bilinear"), grid.shape(*size)


def test_a_pixel_outside_the_receptive_field_has_no_gradient(placed):
    network, stride, size, placement, (rows, columns) = placed
    images = random(1, 3, *size).requires_grad_()
    scores = score_map(network, images, cell_stride=stride)
    assert scores.shape[2:] == (rows, columns)
    for row, column in ((0, columns - 1), (rows - 1, columns // 2)):
        [gradient] = torch.autograd.grad(scores[0, :, row, column].sum(), images, retain_graph=True)
        top, bottom = placement.fields(0)[row].astype(int)
        left, right = placement.fields(1)[column].astype(int)
        assert gradient[:, :, top:bottom, left:right].any()
        gradient[:, :, top:bottom, left:right] = 0
        assert not gradient.any()


def test_exactly_the_cells_that_see_a_broken_row_are_broken(placed):
    """NaN goes through every layer: a cell is broken where its field holds the row, and nowhere else."""
    network, stride, size, placement, _ = placed
    for axis in (0, 1):
        fields = placement.fields(axis).astype(int)
        edges = {edge for begin, end in fields for edge in (begin - 1, begin, end - 1, end) if 0 <= edge < size[axis]}
        for edge in sorted(edges)[:: max(1, len(edges) // 3)]:
            images = random(1, 3, *size)
            images.select(2 + axis, edge).fill_(float("nan"))
            with torch.inference_mode():
                broken = score_map(network, images, cell_stride=stride)[0].isnan().any(0).any(1 - axis)
            np.testing.assert_array_equal(broken.numpy(), [begin <= edge < end for begin, end in fields])


def test_windows_are_the_networks_own_crops(placed):
    network, stride, _, placement, (rows, columns) = placed
    for row, column in ((0, 0), (rows - 1, columns - 1)):
        box = placement.box(row, column)
        assert box == (column * stride, row * stride, column * stride + network.size[1], row * stride + network.size[0])
        assert placement.fields(0)[row][0] <= box.top
        assert placement.fields(1)[column][1] >= min(box.right, placement.size[1])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("seen", [(150, 97), (61, 80), (300, 411)])
def test_receptive_fields_of_resized_pictures_reach_as_far_as_the_filter(interpolation, seen):
    """A pixel of the picture changes what the network saw only where a field says so."""
    size = (150, 200)
    single = [tuple((place, place + 1) for place in range(side)) for side in seen]
    placement = sliding(size, seen, 1, 1, tuple(single), interpolation)
    resample = Image.Resampling[interpolation.upper()]
    generator = np.random.default_rng(0)
    for row in generator.integers(0, size[0], 25):
        pixels = np.zeros(size, np.uint8)
        pixels[row] = 255
        changed = np.asarray(Image.fromarray(pixels).resize(seen[::-1], resample)).any(axis=1)
        fields = placement.fields(0)
        inside = (fields[:, 0] <= row) & (row < fields[:, 1])
        assert not (changed & ~inside).any()
        assert inside.sum() <= changed.sum() + (4 if interpolation == "bicubic" else 2)  # weights that round to 0


def test_the_nearest_cell_has_the_nearest_centre():
    placement = sliding((480, 640), (240, 320), 32, 224, (((0, 1),) * 3, ((0, 1),) * 4))
    rows, columns = placement.windows(0).mean(axis=1), placement.windows(1).mean(axis=1)
    generator = np.random.default_rng(1)
    for x, y in zip(generator.integers(0, 640, 200), generator.integers(0, 480, 200), strict=True):
        row, column = placement.nearest(x, y)
        assert abs(rows[row] - y - 0.5) == np.abs(rows - y - 0.5).min()
        assert abs(columns[column] - x - 0.5) == np.abs(columns - x - 0.5).min()
    assert placement.nearest(0, 0) == (0, 0)
    assert placement.nearest(639, 479) == (2, 3)

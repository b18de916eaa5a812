"""Strips of rows give the map of one pass, and stay within the memory that was given."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from convnets_torch.fcn.graph import cell_strides, map_graph, trace_ops
from convnets_torch.fcn.memory import block_rows, parse_bytes, peak_bytes
from convnets_torch.fcn.score_map import gather, score_map
from convnets_torch.fcn.streaming import Stream
from convnets_torch.networks import (
    AlexNet,
    Network,
    efficientnet_lite0,
    inception,
    inception_v3,
    resnet50,
    vgg16,
)
from tests.test_networks import random, uneven

THIN = {  # as few channels as the traps need: what blocks and strides can do wrong, they do to one channel too
    "alexnet": lambda: AlexNet(3, widths=(4, 6, 4, 6, 4), hidden=(4, 5)),
    "efficientnet_lite0": lambda: efficientnet_lite0(3, widths=(3, 2, 3, 2, 3, 2, 3, 2, 5)),
    "inception_v3": lambda: inception_v3(3, widths=[max(2, width // 48) for width in inception.WIDTHS]),
    "resnet50": lambda: resnet50(3, widths=(3, 1, 1, 2, 2)),
    "vgg16": lambda: vgg16(3, widths=(2, 3, 2, 3, 4), hidden=(4, 5)),
}


def thin_network(name):
    """In float64, with statistics of batch normalisation that are not 0 and 1, and cells that differ."""
    torch.manual_seed(0)
    network = THIN[name]().eval().double()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            uneven(layer)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.uniform_(layer.bias, 0, 0.3)  # a ReLU that gives zeros alone would hide every fault
    with torch.inference_mode():
        cells = score_map(network, random(1, 3, network.size[0] + 64, network.size[1] + 64))
    assert (cells.amax((2, 3)) - cells.amin((2, 3))).max() > 0.01 * cells.abs().max()
    return network


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] * (name == "inception_v3")) for name in THIN])
def thin(request):
    return thin_network(request.param)


def blocks(images, rows):
    return (images[:, :, top : top + rows] for top in range(0, images.shape[2], rows))


def assert_same(found, wanted, tolerance=1e-10):
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize("rows", [200, 64, 32, 17, 4])
def test_blocks_give_the_map_of_one_pass(thin, rows):
    """Odd sides: floors of pools and strides leave rows and columns over, and padding meets them."""
    images = random(2, 3, thin.size[0] + 97, thin.size[1] + 150)
    with torch.inference_mode():
        whole = score_map(thin, images)
        found = gather(map_graph(thin), blocks(images, rows), *images.shape[2:])
    assert_same(found, whole, 1e-12)


@pytest.mark.parametrize("odd", range(0, 33, 5))
def test_every_size_leaves_other_rows_over(odd):
    for name in ("alexnet", "resnet50", "inception_v3", "efficientnet_lite0"):
        network = thin_network(name)
        images = random(1, 3, network.size[0] + odd, network.size[1] + 41 - odd)
        with torch.inference_mode():
            whole = score_map(network, images)
            assert_same(gather(map_graph(network), blocks(images, 48), *images.shape[2:]), whole, 1e-12)
            assert map_graph(network).shape(*images.shape[2:]) == tuple(whole.shape[2:])


def test_a_denser_map_holds_the_map_itself_on_its_own_grid(thin):
    images = random(1, 3, thin.size[0] + 45, thin.size[1] + 70)
    with torch.inference_mode():
        own = score_map(thin, images)
        assert torch.equal(score_map(thin, images, cell_stride=thin.stride), own)
        for stride in (16, 8, 4):
            dense = score_map(thin, images, cell_stride=stride)
            every = thin.stride // stride
            assert_same(dense[:, :, ::every, ::every], own, 1e-9)
            between = dense[:, :, every // 2 :: every, every // 2 :: every]
            assert (between - own[:, :, : between.shape[2], : between.shape[3]]).abs().max() > 1e-6 * own.abs().max()
            strided = gather(map_graph(thin, stride), blocks(images, 40), *images.shape[2:])
            assert_same(strided, dense, 1e-9)


def test_a_denser_map_is_the_network_on_moved_pictures():
    """Away from the padding, the cells between are those of the picture cut by so many pixels."""
    for name in ("alexnet", "vgg16"):
        network = thin_network(name)
        images = random(1, 3, 480, 512)
        with torch.inference_mode():
            dense = score_map(network, images, cell_stride=8)
            for down, right in ((1, 0), (2, 3)):
                moved = score_map(network, images[:, :, 8 * down :, 8 * right :])[:, :, 3:-3, 3:-3]
                here = dense[:, :, down + 12 :: 4, right + 12 :: 4][:, :, : moved.shape[2], : moved.shape[3]]
                assert_same(here, moved, 1e-9)


def test_max_memory_changes_nothing_but_the_memory(thin):
    thin.float()
    images = random(2, 3, thin.size[0] + 130, thin.size[1] + 33, dtype=torch.float32)
    grid = map_graph(thin)
    shape = (2, *images.shape[2:])
    whole_takes = peak_bytes(grid, shape, torch.float32, images.shape[2])
    with torch.inference_mode():
        whole = score_map(thin, images)
        for share in (1.0, 0.6, 0.45):
            assert_same(score_map(thin, images, max_memory=int(whole_takes * share)), whole, 1e-5)


class Live(TorchDispatchMode):
    """Bytes of tensors that PyTorch itself holds at a time."""

    def __init__(self, *known):
        super().__init__()
        self.live = self.peak = 0
        self.known = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    def __torch_dispatch__(self, function, types, arguments: tuple = (), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(storage)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self.free, storage.nbytes())
        return result

    def free(self, size):
        self.live -= size


@pytest.mark.slow
@pytest.mark.parametrize("rows", [8, 64, 500])
@pytest.mark.parametrize("stride", [None, 8])
def test_what_is_reckoned_is_what_pytorch_holds(thin, rows, stride):
    """The reckoning may exceed it a little; a block of the images themselves belongs to it."""
    grid = map_graph(thin, stride)
    thin.float()
    images = torch.zeros(1, 3, 500, 400)
    reckoned = peak_bytes(grid, (1, 500, 400), torch.float32, rows)
    with torch.inference_mode(), Live(images, *thin.parameters(), *thin.buffers()) as live:
        stream = Stream(grid.ops)
        for top in range(0, 500, rows):
            stream.push(images[:, :, top : top + rows].clone(), last=top + rows >= 500)
    assert live.peak <= reckoned * 1.01
    assert reckoned <= live.peak * 1.3


def test_blocks_are_as_high_as_the_memory_allows(thin):
    grid = map_graph(thin)
    shape = (1, 4000, 600)

    def peak(rows):
        return peak_bytes(grid, shape, torch.float32, rows)

    assert block_rows(grid, shape, torch.float32, peak(4000)) == 4000
    for most in (peak(32), peak(32) * 2, peak(4000) // 2):
        rows = block_rows(grid, shape, torch.float32, most)
        assert rows % 32 == 0
        assert peak(rows) <= most < peak(rows + 32)
    least = peak(4)
    assert block_rows(grid, shape, torch.float32, least) < 32
    with pytest.raises(ValueError, match=r"max_memory is \d+MB, but images 600 pixels wide need at least \d+MB for"):
        block_rows(grid, shape, torch.float32, least // 2)


def test_the_least_memory_that_is_named_works(thin):
    thin.float()
    images = torch.zeros(1, 3, 700, 600)
    with torch.inference_mode():
        with pytest.raises(ValueError, match="need at least") as refused:
            score_map(thin, images, max_memory="100kB")
        named = str(refused.value).split("at least ")[1].split()[0]
        assert torch.isfinite(score_map(thin, images, max_memory=named)).all()


@pytest.mark.parametrize("wrong", ["much", "", "-1GB", "0", 0, "1TB2", True, "nan"])
def test_no_amount_of_memory(wrong):
    with pytest.raises(ValueError, match="is not an amount of memory; give for example '1GB'"):
        parse_bytes(wrong)


def test_strides_that_a_network_cannot_give_are_listed(thin):
    images = torch.zeros(1, 3, *thin.size)
    with pytest.raises(ValueError, match=r"does not support a cell stride of 7 pixels; it supports 32, 16, 8, 4, "):
        score_map(thin, images, cell_stride=7)
    assert cell_strides(thin)[0] == thin.stride
    with pytest.raises(ValueError, match=r"in training mode, where blocks of rows and strides change outputs"):
        score_map(thin.train(), images, cell_stride=16)


def test_gradients_go_through_blocks():
    torch.manual_seed(0)
    network = vgg16(4, widths=(2, 2, 3, 4, 4), hidden=(5, 6)).double().eval()
    images = random(1, 3, 260, 300)

    def gradients(**options):
        network.zero_grad()
        score_map(network, images, **options).square().sum().backward()
        return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])

    assert_same(gradients(max_memory="2MB"), gradients(), 1e-10)


class Odd(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def squeeze(x):
    return x * x.mean((2, 3), keepdim=True)


def branching(x):
    return x if x.sum() > 0 else -x


class Called(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.AdaptiveAvgPool2d(7), "layer is AdaptiveAvgPool2d, which is not known"),
        (nn.MaxPool2d(2, ceil_mode=True), r"MaxPool2d.*ceil_mode"),
        (nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), "has padding mode 'reflect'"),
        (nn.ZeroPad2d((-1, 0, 0, 0)), "crops the map"),
        (nn.InstanceNorm2d(3), "InstanceNorm2d, which is not known"),
        (Called(squeeze), "call mean, which is not known"),
        (Called(branching), "cannot be traced layer by layer"),
        (Called(lambda x: (x, x)), "several maps"),
        (Called(lambda x: x + 1), "call add, which is not known"),
        (Called(lambda x: torch.cat([x, x], dim=2)), "call cat, which is not known"),
    ],
)  # fmt: skip
def test_layers_that_see_more_than_a_window_are_refused_by_name(layer, words):
    with pytest.raises(ValueError, match=words):
        trace_ops(Odd(layer))


def test_a_layer_that_was_replaced_is_seen():
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    assert trace_ops(layers)[-1].layer is layers[1]
    layers[1] = nn.Sigmoid()
    assert trace_ops(layers)[-1].layer is layers[1]


def test_average_pools_count_as_torch_does_in_blocks_and_dilated():
    for options in ({"count_include_pad": False}, {"count_include_pad": True}, {"divisor_override": 5}):
        layers = nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), nn.AvgPool2d((3, 5), (1, 2), (1, 2), **options)).double()
        images = random(2, 3, 31, 38)
        stream = Stream(trace_ops(layers))
        found = [stream.push(images[:, :, top : top + 5], last=top >= 26) for top in range(0, 31, 5)]
        torch.testing.assert_close(torch.cat([each for each in found if each is not None], dim=2), layers(images))


def test_the_stride_of_an_average_pool_is_removed_too():
    torch.manual_seed(0)
    network = Network()
    network.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AvgPool2d(2), nn.Conv2d(4, 4, 3))
    network.head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 3 * 4, 3))
    network.window, network.size, network.stride = (3, 4), (10, 12), 2
    network.eval().double()
    images = random(1, 3, 21, 24)
    with torch.inference_mode():
        own, dense = score_map(network, images), score_map(network, images, cell_stride=1)
    assert_same(dense[:, :, ::2, ::2], own, 1e-12)


def test_functions_are_called_with_their_arguments():
    """Pools among them; and never in place, since the block is the caller's."""
    layers = Called(lambda x: F.avg_pool2d(F.elu(pooled(F.gelu(x, approximate="tanh")), 0.3), 3, 2, 1, False, False))
    images = random(2, 3, 31, 38)
    kept = images.clone()
    stream = Stream(trace_ops(layers))
    found = [stream.push(images[:, :, top : top + 5], last=top >= 26) for top in range(0, 31, 5)]
    torch.testing.assert_close(torch.cat([each for each in found if each is not None], dim=2), layers(images))
    overwriting = Called(lambda x: F.relu(x, inplace=True))
    assert torch.equal(Stream(trace_ops(overwriting)).push(images, last=True), images.relu())
    assert torch.equal(images, kept)


def pooled(x):
    return F.max_pool2d(x, (2, 3), stride=2, padding=(0, 1))


def test_blocks_keep_the_layout_in_memory(monkeypatch):
    """Channels side by side stay so: another layout in between costs time and twice the memory."""
    seen = []
    convolution = torch.nn.functional.conv2d

    def watched(cells, *arguments):
        seen.append(cells.stride(1) == 1 or cells.shape[1] == 1)
        return convolution(cells, *arguments)

    network = thin_network("resnet50").float()
    monkeypatch.setattr(torch.nn.functional, "conv2d", watched)
    images = random(1, 3, 300, 256, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        gather(map_graph(network), blocks(images, 40), 300, 256)
    assert len(seen) > 200
    assert all(seen)

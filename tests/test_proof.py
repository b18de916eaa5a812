"""The second derivation against real Keras 1 and 0.3 on real Theano, and the mistakes that it must see."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from converters import convert
from converters.keras_plan import plan_keras
from converters.plan import Wishes
from converters.proof.proof import TOLERANCE, ProofRow, check, compare, forward
from converters.proof.proving import probe_picture, record_outputs
from convnets_torch.images.preprocessing import normalize, preset
from convnets_torch.weights import load
from tests.conftest import KERAS0, KERAS1, assert_agree
from tests.reference.keras_files import described, of_arrays, read_old, with_graph
from tests.reference.pictures import picture

GOLDENS = [(KERAS1, "alexnet"), (KERAS1, "vgg16"), (KERAS1, "vgg19"), (KERAS0, "vgg16"), (KERAS0, "vgg19")]
THEANO: dict[str, Any] = {"backend": "theano"}


def prove(network, file, read, **assumptions):
    """As `converters.proof.proving` does it, in this process and from arrays at hand."""
    file, plan = plan_keras(file, Wishes(backend="theano"))
    image = normalize(probe_picture(network.size), network.card.preprocessing)
    theirs = dict(forward(file, read, image.transpose(1, 2, 0), **assumptions))
    return compare(record_outputs(network, image, tuple(plan.table)), theirs, {**plan.table, "logits": ("logits",)})


def softmax(logits):
    values = np.exp(logits - logits.max())
    return values / values.sum()


@pytest.mark.parametrize(("folder", "name"), GOLDENS)
def test_the_second_derivation_answers_as_real_keras_on_theano(folder, name):
    file, values = read_old(folder / f"{name}.h5")
    golden = np.load(folder / f"{name}.npz")
    for seed, wanted in zip(golden["seeds"], golden["softmax"], strict=True):
        image = normalize(picture(int(seed), *golden["size"]), preset(name)).transpose(1, 2, 0)
        outputs = dict(forward(with_graph(file, **THEANO), of_arrays(values), image, **THEANO))
        assert list(outputs) == [layer.name for layer in file.weighted] + ["logits"]
        assert_agree(softmax(outputs["logits"])[None], wanted[None])


@pytest.fixture(scope="module", params=["alexnet", "vgg16"])
def converted(request, tmp_path_factory):
    """The name, the converted network, and its file with the values in it."""
    path = tmp_path_factory.mktemp("proof") / "out.safetensors"
    convert(KERAS1 / f"{request.param}.h5", path)
    return request.param, load(path), *read_old(KERAS1 / f"{request.param}.h5")


def test_every_layer_of_a_conversion_is_proven(converted):
    name, network, file, values = converted
    rows = prove(network, file, of_arrays(values), **THEANO)
    assert len(rows) == {"alexnet": 9, "vgg16": 17}[name]
    assert max(row.error for row in rows) < 3e-5  # what float32 leaves where random kernels cancel
    assert min(row.largest for row in rows) > 1  # nothing is compared with zeros
    check(rows)
    assert not any(module._forward_hooks for module in network.modules())


def test_a_missing_flip_is_seen_at_the_first_layer(converted):
    _name, network, file, values = converted
    rows = prove(network, file, of_arrays(values), backend="tensorflow")
    assert rows[0].error > 100 * TOLERANCE
    with pytest.raises(ValueError, match=f"the proof fails at {rows[0].layer} "):
        check(rows)


@pytest.mark.parametrize("converted", ["alexnet"], indirect=True)
def test_swapped_groups_are_seen(converted):
    _name, network, file, values = converted
    swapped = {place.replace("conv_4_1", "?").replace("conv_4_2", "conv_4_1").replace("?", "conv_4_2"): array
               for place, array in values.items()}  # fmt: skip
    rows = prove(network, file, of_arrays(swapped), **THEANO)
    with pytest.raises(ValueError, match=r"the proof fails at conv_4_1 \+ conv_4_2 "):
        check(rows)


@pytest.mark.parametrize("converted", ["alexnet"], indirect=True)
def test_an_lrn_that_divides_alpha_is_seen(converted):
    _name, network, file, values = converted
    network.features.lrn_1.alpha = 1e-4
    try:
        rows = prove(network, file, of_arrays(values), **THEANO)
    finally:
        network.features.lrn_1.alpha = 5e-4
    with pytest.raises(ValueError, match=r"the proof fails at conv_2_1 \+ conv_2_2 "):
        check(rows)


def narrow_vgg(version, data_format):
    """A VGG16 of Keras Applications as Keras 2 stores it: random kernels (h, w, in, out)."""
    random = np.random.default_rng(0)
    layers, channels = [], 3
    for block, (depth, width) in enumerate(zip((2, 2, 3, 3, 3), (2, 3, 4, 5, 6), strict=True), 1):
        for conv in range(1, depth + 1):
            kernel = random.standard_normal((3, 3, channels, width)) * np.sqrt(2 / 9 / channels)
            layers.append((f"block{block}_conv{conv}", {"kernel": kernel, "bias": random.standard_normal(width)}))
            channels = width
        layers.append((f"block{block}_pool", {}))
    layers.append(("flatten", {}))
    for name, rows, units in (("fc1", 294, 8), ("fc2", 8, 9), ("predictions", 9, 10)):
        layers.append((name, {"kernel": random.standard_normal((rows, units)), "bias": random.standard_normal(units)}))
    return described("vgg16.h5", layers, container="legacy", named=True, version=version, backend="tensorflow",
                     data_format=data_format)  # fmt: skip


def fc1(version, data_format):
    file, values = narrow_vgg(version, data_format)
    image = np.random.default_rng(1).standard_normal((224, 224, 3))
    return dict(forward(with_graph(file), of_arrays(values), image))


def test_flatten_takes_channels_first_maps_as_in_memory_until_keras_2_2_and_transposes_since():
    old, new = fc1("2.1.6", "channels_first"), fc1("2.2.4", "channels_first")
    last = fc1("2.1.6", "channels_last")
    np.testing.assert_allclose(old["block5_conv3"], last["block5_conv3"], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(new["fc1"], last["fc1"], rtol=1e-9, atol=1e-9)
    assert np.abs(old["fc1"] - new["fc1"]).max() > 100 * TOLERANCE * np.abs(new["fc1"]).max()


def test_the_backend_is_asked_for_where_the_file_does_not_say_it():
    file, values = read_old(KERAS1 / "vgg16.h5")
    with pytest.raises(ValueError, match="does not say which backend trained it"):
        next(forward(replace(with_graph(file, **THEANO), backend=None), of_arrays(values), np.zeros((224, 224, 3))))


def test_an_own_head_is_run_as_it_is_listed():
    file, values = narrow_vgg("2.1.6", "channels_last")
    keep = [layer for layer in file.layers if layer.name.startswith("block")]
    random = np.random.default_rng(2)
    kernel, bias = random.standard_normal((6, 3)), random.standard_normal(3)
    own, more = described(
        "own.h5",
        [("global_average_pooling2d", {}), ("my_dense", {"kernel": kernel, "bias": bias})],
        container="legacy",
        named=True,
    )
    file = type(file)(**{**vars(file), "layers": (*keep, *own.layers)})
    image = random.standard_normal((224, 224, 3))
    outputs = dict(forward(with_graph(file), of_arrays(values | more), image))
    features = np.maximum(outputs["block5_conv3"], 0).reshape(6, 7, 2, 7, 2).max((2, 4))
    np.testing.assert_allclose(outputs["logits"], features.mean((1, 2)) @ kernel + bias, rtol=1e-12)
    bare = type(file)(**{**vars(file), "layers": tuple(keep)})
    outputs = dict(forward(with_graph(bare), of_arrays(values), image))
    np.testing.assert_allclose(outputs["features"], features, rtol=1e-12)


def test_compare_wants_every_layer_and_equal_shapes():
    one = np.ones(3)
    with pytest.raises(ValueError, match=r"lacks the outputs of \['b'\], and does not use those of \['c'\]"):
        compare({"a": one, "b": one}, {"a": one, "c": one}, {"a": ("a",), "b": ("b",)})
    with pytest.raises(ValueError, match=r"a gives \(3,\), but a \(2,\)"):
        compare({"a": one}, {"a": np.ones(2)}, {"a": ("a",)})
    with pytest.raises(ValueError, match="the proof fails"):
        check([ProofRow("a", "a", float("nan"), 1.0)])


def test_rounding_of_a_constant_is_no_error():
    """A normalisation over one value gives 0, but for rounding, whose relative error is 1."""
    table = {"conv": ("conv",), "norm": ("norm",)}
    theirs = {"conv": np.full(3, 5.0), "norm": np.array([1e-17, 0.0, -1e-17])}
    [_, norm] = compare({"conv": np.full(3, 5.0), "norm": np.zeros(3)}, theirs, table)
    assert norm.error < 1e-7
    [_, norm] = compare({"conv": np.full(3, 5.0), "norm": np.zeros(3)}, theirs | {"norm": np.full(3, 1e-6)}, table)
    assert norm.error == 1
    [nothing] = compare({"a": np.ones(1)}, {"a": np.zeros(1)}, {"a": ("a",)})
    assert nothing.error == 1


def test_hooks_are_removed_when_a_network_fails(converted):
    _, network, _, _ = converted
    with pytest.raises(ValueError, match="this network classifies"):
        record_outputs(network, np.zeros((3, 10, 10), np.float32), ["features", "head"])
    assert not any(module._forward_hooks for module in network.modules())


def test_the_probe_picture_is_unlike_itself_turned_or_mirrored():
    pixels = probe_picture((227, 227)).astype(float)
    assert pixels.std() > 40
    for other in (pixels[::-1], pixels[:, ::-1], pixels[::-1, ::-1], pixels.transpose(1, 0, 2), pixels[:, :, ::-1]):
        assert np.abs(pixels - other).mean() > 40


def test_the_second_derivation_imports_neither_torch_nor_h5py():
    foreign = {"torch", "h5py", "converters.layouts", "converters.keras_plan", "convnets_torch.networks"}
    code = f"import sys, converters.proof.proof; print({foreign} & {{*sys.modules}})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"

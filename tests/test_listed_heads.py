"""Heads in files of weights alone: what Keras lists is carried out where it is listed, or the file is refused."""

from __future__ import annotations

import re
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import torch
from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

from converters import convert
from converters.readers.keras_words import kind_of_name
from convnets_torch.weights import load
from tests.reference.keras3_heads import (
    NORMALISED,
    PLACED,
    REFUSED,
    RIGHT,
    SIZE,
    L,
    base,
    frozen,
    in_front,
    on_map,
    pooled,
)
from tests.reference.keras3_models import randomize

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Keras and torch about each other
]
FORMS = ["weights.h5", "model.weights.h5"]


def write(model, path):
    randomize(model)
    if len(model.inputs) == len(model.outputs) == 1:
        calm(model)
    if path.name == FORMS[0]:
        with h5py.File(path, "w") as file:
            save_weights_to_hdf5_group(file, model)
    else:
        model.save_weights(path)
    return path


def answers(model):
    images = np.random.default_rng(0).standard_normal((2, *model.inputs[0].shape[1:])).astype(np.float32) / 4
    with torch.inference_mode():
        return images, np.asarray(model(images, training=False))


def calm(model):
    """Make the outputs such that a wrong head would answer otherwise."""
    last = next(layer for layer in reversed(model.layers) if layer.get_weights())
    while answers(model)[1].max() > 0.99:
        last.set_weights([array / 4 for array in last.get_weights()])


def converted(model, path, **options):
    """The report on the model's weights, after our answers were compared with Keras's."""
    write(model, path)
    size = tuple(model.inputs[0].shape[1:3])
    out = path.with_name("out.safetensors")
    told: dict[str, Any] = {"preprocessing": "unit", "input_size": size, "proof": True} | options
    report = convert(path, out, **told, isolated=False)
    images, wanted = answers(model)
    with torch.inference_mode():
        logits = load(out)(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    found = logits.softmax(1).numpy()
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    return report


def refusal(path, **options):
    out = path.with_name("refused.safetensors")
    told: dict[str, Any] = {"preprocessing": "unit", "input_size": SIZE} | options
    with pytest.raises(ValueError, match=r"weights\.h5") as caught:
        convert(path, out, **told, isolated=False)
    assert not out.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(autouse=True)
def _automatic_names_begin_anew():
    keras.backend.clear_session(free_memory=False)  # which collects garbage for half a second


@pytest.fixture
def model(request):
    return request.param()


def heads(table):
    return pytest.mark.parametrize("model", [one[0] if isinstance(one, tuple) else one for one in table.values()],
                                   ids=table, indirect=True)  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@heads(RIGHT)
def test_a_listed_head_answers_as_keras(model, form, tmp_path):
    converted(model, tmp_path / form)


@heads(NORMALISED)
def test_a_normalisation_stands_where_it_is_listed(model, tmp_path):
    converted(model, tmp_path / FORMS[0])
    assert "does not say" in refusal(write(model, tmp_path / FORMS[1]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", REFUSED)
def test_a_layer_without_a_place_is_named(name, form, tmp_path):
    make, layer = REFUSED[name]
    assert re.search(layer, refusal(write(make(), tmp_path / form)))


def test_frozen_layers_of_a_nested_head_are_not_put_last(tmp_path):
    model = frozen()
    assert "lists only the arrays of sequential" in refusal(write(model, tmp_path / FORMS[0]))
    converted(model, tmp_path / FORMS[1])


@pytest.mark.parametrize("name", PLACED)
def test_a_layer_out_of_its_place_is_refused_or_said(name, tmp_path):
    make, layer = PLACED[name]
    model = make()
    assert layer in refusal(write(model, tmp_path / FORMS[0]))
    out = tmp_path / "out.safetensors"
    report = convert(write(model, tmp_path / FORMS[1]), out, preprocessing="unit", input_size=SIZE, isolated=False)
    assert any("numbers layers only within each class" in choice for choice in report.choices)


def test_the_number_of_a_listed_activation_may_be_told(tmp_path):
    model = pooled(L.Dense(8), L.LeakyReLU(0.3))
    for form in FORMS:
        path = write(model, tmp_path / form)
        assert "--hidden-activation 'leaky_relu NUMBER'" in refusal(path, hidden_activation="elu 1.0")
        converted(model, path, hidden_activation="leaky_relu 0.3")


def test_what_the_list_does_not_say_is_said(tmp_path):
    choices = converted(RIGHT["own names"](), tmp_path / FORMS[0]).choices
    assert choices == (
        "inferred from layer names: my_flatten is Flatten, hidden_relu is ReLU, drop1 is Dropout, probs is Softmax",
        "hidden_relu is assumed to have no maximum, threshold or slope",
        "the head is assumed to be the listed layers in sequence: my_flatten, hidden, hidden_relu, drop1, scores,"
        " probs",
    )
    model = RIGHT["dense, activation"]()
    assert converted(model, tmp_path / FORMS[0]).choices == (
        "relu is assumed between the dense layers (at activation), as the file does not specify it; change it with"
        " --hidden-activation",
        "the head is assumed to be the listed layers in sequence: global_average_pooling2d, dense, activation,"
        " dropout, dense_1",
        "softmax is assumed for the outputs, as the file does not specify it; change it with --activation",
    )


def test_a_dense_layer_of_a_map_stays_there_if_the_list_says_so(tmp_path):
    """A list without order is read as dense layers of vectors, which is said."""
    model = on_map(L.Dense(12, "relu"), L.GlobalAveragePooling2D(), L.Dense(5, "softmax"))
    converted(model, tmp_path / FORMS[0])
    path = write(model, tmp_path / FORMS[1])
    report = convert(path, tmp_path / "out.safetensors", preprocessing="unit", input_size=SIZE, isolated=False)
    order = "their assumed order is global_average_pooling2d, dense, dense_1"
    assert any(order in choice for choice in report.choices)


def test_a_flatten_of_a_single_cell_is_none_of_a_larger_map(tmp_path):
    """A row for each channel: the pictures were 32x32, and their map is not averaged."""
    network = base(size=(32, 32))
    model = keras.Model(network.input, L.Dense(5, "softmax")(L.Flatten()(network.output)))
    report = converted(model, tmp_path / FORMS[0], input_size=None)
    assert report.card.arguments["size"] == (32, 32)


@pytest.mark.slow
@pytest.mark.parametrize(("network", "size"), [("resnet50", (32, 32)), ("inception_v3", (75, 75))])
def test_a_map_of_a_single_cell_is_no_reason_to_refuse(network, size, tmp_path):
    body = base(network, size)
    model = keras.Model(body.input, L.Dense(5, "softmax")(L.GlobalAveragePooling2D()(body.output)))
    assert converted(model, tmp_path / FORMS[0]).card.arguments["size"] == size


@pytest.mark.parametrize("form", FORMS)
def test_layers_in_front_are_part_of_the_preprocessing_that_is_named(form, tmp_path):
    model = in_front(L.Normalization(mean=[1.0, 2.0, 3.0], variance=[2.0, 3.0, 4.0]))
    path = write(model, tmp_path / form)
    assert "normalization before the first convolution" in refusal(path, preprocessing=None)
    report = convert(path, tmp_path / "out.safetensors", preprocessing="unit", input_size=SIZE, isolated=False)
    note = "normalization before the first convolution is assumed to be part of the preprocessing you named"
    assert note in report.choices


def test_every_class_of_keras_is_told_by_the_name_that_keras_gives():
    classes = {one for one in vars(keras.layers).values() if isinstance(one, type) and issubclass(one, L.Layer)}
    names = {keras.src.utils.naming.to_snake_case(one.__name__): one.__name__ for one in classes}
    plain = {"Layer", "Wrapper"}  # of which nobody makes layers
    assert {name: kind_of_name(name) for name in names if names[name] not in plain} == {
        name: kind for name, kind in names.items() if kind not in plain
    }


def test_a_dense_layer_without_its_kernel_is_refused(tmp_path):
    write(pooled(), tmp_path / FORMS[0])
    with h5py.File(tmp_path / FORMS[0], "r+") as file:
        [name] = [name for name in file.attrs["layer_names"] if name.startswith("dense")]
        names = file[name].attrs["weight_names"]
        file[name].attrs["weight_names"] = names[1:]
        del file[name][names[0]]
    with pytest.raises(ValueError, match=r"lists dense\S* \(Dense\) without its kernel; download it again"):
        convert(tmp_path / FORMS[0], tmp_path / "out.safetensors", preprocessing="unit", isolated=False)

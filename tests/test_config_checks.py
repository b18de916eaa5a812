"""A config that is JSON but no model's: settings of a wrong kind or size are refused in a sentence, by the plan."""

from __future__ import annotations

import copy

import pytest

from converters.keras_plan import plan_keras
from converters.plan import Wishes
from converters.readers.keras_file import KerasFile
from converters.readers.keras_graph import Node
from converters.readers.reading import read_keras
from tests.conftest import DATA

SOURCE = read_keras(DATA / "keras231" / "vgg16_flat_first_model.h5").to_dict()


def planned(kind, setting, value):
    """Plan a sound model with one setting of the first layer of a class changed."""
    described = copy.deepcopy(SOURCE)
    layer = next(layer for layer in described["config"]["config"]["layers"] if layer["class_name"] == kind)
    layer["config"][setting] = value
    return plan_keras(KerasFile.from_dict(described), Wishes(preprocessing="unit"))[1]


def test_the_sound_model_is_planned():
    assert planned("Conv2D", "trainable", False).network == "vgg16"


@pytest.mark.parametrize(
    "value", [[], [1], [1, 2, 3], 0, -1, 10**12, 1.5, "2", True, {}, [[1, 1], [1, 1]], float("nan")]
)
@pytest.mark.parametrize(("kind", "setting"), [("Conv2D", "strides"), ("MaxPooling2D", "pool_size")])
def test_sizes_that_are_none_are_refused(kind, setting, value):
    with pytest.raises(ValueError, match=rf"vgg16_flat_first_model\.h5: the model's config gives \S+ the {setting} "):
        planned(kind, setting, value)


@pytest.mark.parametrize("value", [[None], "large", {}, [None, 3, 10**9, 96], [None, 3, 96.5, 96], [None, 3, -96, 96]])
def test_inputs_that_are_none_are_refused(value):
    with pytest.raises(ValueError, match=r"vgg16_flat_first_model\.h5"):
        planned("InputLayer", "batch_input_shape", value)


def test_inputs_that_are_too_small_for_the_network_are_refused():
    with pytest.raises(ValueError, match=r"first_model\.h5: layer block1_pool .* cannot read inputs of"):
        planned("InputLayer", "batch_input_shape", [None, 3, 1, 128])


@pytest.mark.parametrize(
    ("kind", "setting", "value"),
    [
        ("BatchNormalization", "epsilon", "small"),
        ("BatchNormalization", "epsilon", 10**400),
        ("Dropout", "rate", 2),
        ("Dropout", "p", [0.5]),
        ("LeakyReLU", "alpha", None),
        ("LeakyReLU", "alpha", float("inf")),
        ("ELU", "alpha", {}),
        ("ZeroPadding2D", "padding", [[1, 1], [1]]),
        ("ZeroPadding2D", "padding", {"top": 1}),
        ("Conv2D", "groups", 0),
    ],
)
def test_numbers_that_are_none_are_refused(kind, setting, value):
    if value is None:  # stands for the default
        assert Node("x", kind, (), {setting: value}).setting(setting, default=0.3) == 0.3
        return
    with pytest.raises(ValueError, match=f"gives x the {setting} .*; expected ") as caught:
        Node("x", kind, (), {setting: value})
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "padding", [1, [1, 2], [[1, 1], [0, 1]], {"top_pad": 1, "bottom_pad": 1, "left_pad": 0, "right_pad": 0}]
)
def test_paddings_of_all_versions_are_taken(padding):
    assert Node("x", "ZeroPadding2D", (), {"padding": padding}).setting("padding", default=0) == padding

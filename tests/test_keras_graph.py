"""Model configs as graphs: the spellings of each Keras, and configs that are broken or made to do harm."""

from __future__ import annotations

from pathlib import Path

import pytest

from converters.readers.keras_file import KerasFile
from converters.readers.keras_graph import graph_of_config


def graph(config, kind="Model"):
    config = {"class_name": kind, "config": config}
    return graph_of_config(KerasFile(Path("m.h5"), "legacy", True, (), config=config), "channels_last")


def layer(name, *inbound, kind="Dropout", **config):
    return {"class_name": kind, "name": name, "config": {"name": name, **config}, "inbound_nodes": list(inbound)}


def model(*layers, end):
    return {"layers": [layer("i", kind="InputLayer"), *layers], "input_layers": [["i", 0, 0]], "output_layers": [end]}


def test_the_words_of_keras_1_are_those_of_keras_2():
    words = {"nb_filter": 4, "nb_row": 2, "nb_col": 3, "subsample": [2, 1], "border_mode": "same", "dim_ordering": "th"}
    found = graph([{"class_name": "Convolution2D", "config": {"name": "c", **words}}], "Sequential").nodes[1]
    wanted = {"kernel_size": (2, 3), "strides": [2, 1], "padding": "same", "data_format": "channels_first"}
    assert (found.name, found.kind, found.inputs) == ("c", "Conv2D", ("input",))
    assert wanted.items() <= found.settings.items()
    merge = layer("m", [["a", 0, 0], ["i", 0, 0]], kind="Merge", mode="concat", concat_axis=1)
    *_, found = graph(model(merge, layer("a", [["i", 0, 0]]), end=["m", 0, 0])).nodes
    assert (found.kind, found.inputs, found.settings["axis"]) == ("Concatenate", ("a", "input"), 1)


@pytest.mark.parametrize("call", [0, 1])  # Keras 3 counts calls from 0, Keras 1 and 2 those of a model from 1
def test_a_model_in_a_model_is_laid_out_flat(call):
    base = layer("base", [["i", 0, 0]], kind="Model", **model(layer("inner", [["i", 0, 0]]), end=["inner", 0, 0]))
    found = graph(model(base, layer("last", [["base", call, 0, {}]]), end=["last", 0, 0]))
    assert [(node.name, node.inputs) for node in found.nodes[1:]] == [
        ("base/inner", ("input",)),
        ("last", ("base/inner",)),
    ]
    assert found.output == "last"


def nested(depth, *calls):
    """Models in models, each called as often as `calls` says: few words for many layers."""
    base = layer("base", *calls)
    for _ in range(depth):
        base = layer("base", *calls, kind="Model", **model(base, end=["base", len(calls) - 1, 0]))
    return model(base, end=["base", len(calls) - 1, 0])


BROKEN = {
    "the layers of its model config form a cycle": model(
        layer("a", [["b", 0, 0]]), layer("b", [["a", 0, 0]]), end=["a", 0, 0]
    ),
    "more than 20000 layers": nested(16, [["i", 0, 0]], [["base", 0, 0]]),
    "nested more than 20 deep": nested(23, [["i", 0, 0]]),
    "its model config has a layer that reads a, which does not exist": model(end=["a", 0, 0]),
    r"its model config is broken \(TypeError": model(end=["i", 0, 0]) | {"layers": None},
    "its model has 2 inputs; only one is supported": model(end=["i", 0, 0])
    | {"input_layers": [["i", 0, 0], ["j", 0, 0]]},
    "a Merge of mode 'cos' is not known": model(layer("a", [["i", 0, 0]], kind="Merge", mode="cos"), end=["a", 0, 0]),
    "a Merge runs Python code": model(
        layer("a", [["i", 0, 0]], kind="Merge", mode="f", mode_type="function"), end=["a", 0, 0]
    ),
    "its layer a .Merge. holds models of its own": model(
        layer("a", [["i", 0, 0]], kind="Merge", mode="sum", layers=[]), end=["a", 0, 0]
    ),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_config_is_refused_in_a_sentence(message):
    with pytest.raises(ValueError, match=message) as caught:
        graph(BROKEN[message])
    assert "\n" not in str(caught.value)


def test_a_model_of_an_own_class_is_refused():
    with pytest.raises(ValueError, match=r"m\.h5: its model is a MyModel, whose config does not list its layers"):
        graph({}, "MyModel")

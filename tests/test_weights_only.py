"""Files of weights alone: what their own lists say gives the same network as the whole model, or they are refused."""

from __future__ import annotations

import copy
import json
import re
import shutil
from typing import Any

import h5py
import keras
import pytest
import torch
from keras.src.applications.convnext import ConvNeXt
from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group
from safetensors.torch import load_file

from converters import convert, read_keras
from converters.graph_plan import plan_graph
from converters.plan import Wishes
from converters.proof.listing import check_list, list_of
from converters.weights_only import with_config
from convnets_torch.weights import load
from tests.reference import keras3_heads
from tests.reference.goldens import DATA
from tests.reference.keras3_graphs import choose_weights
from tests.reference.keras_files import config_of_list
from tests.reference.theano_goldens import THEANO
from tests.test_formats import assert_answers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Keras and torch about each other
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Keras about .h5
]
L, A = keras.layers, keras.applications
LISTED, NAMED, NUMBERED = "weights.h5", "model.weights.h5", "nameless.weights.h5"
SIZE = (64, 64)  # 2x2 cells behind MobileNet


@pytest.fixture(autouse=True)
def _automatic_names_begin_anew():
    keras.backend.clear_session(free_memory=False)


def mobilenet(*layers: Any, size: tuple[int, int] = SIZE, pooling: str | None = None) -> Any:
    """Layers behind a narrow MobileNet without its top."""
    base = A.MobileNet(weights=None, input_shape=(*size, 3), alpha=0.25, include_top=False, pooling=pooling)
    x = base.output
    for layer in layers:
        x = layer(x)
    return keras.Model(base.input, x)


def whole(name: str, side: int = 32, **options: Any) -> Any:
    return getattr(A, name)(weights=None, input_shape=(side, side, 3), **({"classes": 7} | options))


def convnext(*layers: Any, top: bool = False, pooling: str | None = None) -> Any:
    """Layers behind a narrow ConvNeXtTiny."""
    base = ConvNeXt((3, 3, 9, 3), (4, 6, 8, 10), weights=None, input_shape=(*SIZE, 3), include_top=top, classes=7,
                    pooling=pooling, name="convnext_tiny")  # fmt: skip
    return behind(base, *layers)


def nested(*layers: Any, **options: Any) -> Any:
    return keras.Sequential([keras.Input((*SIZE, 3)), mobilenet(**options), *layers])


def behind(model: Any, *layers: Any) -> Any:
    x = model.output
    for layer in layers:
        x = layer(x)
    return keras.Model(model.input, x)


def write(model: Any, path: Any) -> Any:
    if path.name == LISTED:
        with h5py.File(path, "w") as file:
            save_weights_to_hdf5_group(file, model)
    else:
        model.save_weights(path)
    if path.name == NUMBERED:  # as before Keras 3.6
        with h5py.File(path, "r+") as file:
            places: list[str] = []
            file.visit(places.append)
            for place in places:
                file[place].attrs.pop("name", None)
    return path


OPEN = "does not say in which order"
HIDDEN = "lists only the arrays of"
MODELS: dict[str, tuple[Any, dict[str, str]]] = {  # name -> (model, form -> why it is refused)
    "whole, narrow": (lambda: whole("MobileNet", alpha=0.25), {}),
    "no top": (mobilenet, {}),
    "no top, of odd sides": (lambda: mobilenet(size=(33, 47)), {}),
    "a head on the top": (lambda: behind(whole("MobileNet", alpha=0.25), L.Dense(5, "softmax")), {}),
    "pool of the whole map, normalisation before its activation": (
        lambda: mobilenet(L.AveragePooling2D(2), L.Flatten(), L.Dense(8), L.BatchNormalization(), L.ReLU(), L.Dense(5)),
        {NAMED: OPEN, NUMBERED: OPEN},
    ),
    "maximum and dropout": (
        lambda: mobilenet(L.GlobalMaxPooling2D(), L.Dropout(0.3), L.Dense(8, "relu"), L.Dense(5)), {},
    ),
    "activation and softmax layers": (
        lambda: mobilenet(L.Flatten(), L.Dense(8), L.Activation("relu"), L.Dense(5), L.Activation("softmax")), {},
    ),
    "nested": (lambda: nested(L.GlobalAveragePooling2D(), L.PReLU(), L.Dense(5)), {}),
    "nested, pooled within": (lambda: nested(L.Dense(5), pooling="avg"), {LISTED: HIDDEN}),
    "nested head": (
        lambda: mobilenet(keras.Sequential([L.GlobalAveragePooling2D(), L.Dense(8, "relu"), L.Dense(5)])),
        {LISTED: HIDDEN},
    ),
    "DenseNet121, pooled": (lambda: whole("DenseNet121", include_top=False, pooling="avg"), {}),
    "Xception": (lambda: whole("Xception", 71), {}),
    "ResNet50V2 with a head": (
        lambda: behind(
            whole("ResNet50V2", include_top=False), L.GlobalAveragePooling2D(), L.Dense(8, "relu"), L.Dense(5)
        ),
        {},
    ),
    "MobileNetV3Small": (lambda: whole("MobileNetV3Small"), {}),
    "ConvNeXtTiny": (lambda: convnext(top=True), {NUMBERED: OPEN}),
    "ConvNeXtTiny without its top": (convnext, {}),
    "ConvNeXtTiny with a head": (
        lambda: convnext(L.GlobalAveragePooling2D(), L.Dense(5)), {NAMED: OPEN, NUMBERED: OPEN},
    ),
    "ConvNeXtTiny, pooled": (
        lambda: convnext(L.Dense(5), pooling="avg"),
        {LISTED: r"layer_normalization \(LayerNormalization\)", NAMED: OPEN, NUMBERED: OPEN},
    ),
}  # fmt: skip


FORMS = {  # of the larger ones, which take seconds
    "DenseNet121, pooled": (LISTED,), "Xception": (NUMBERED,),
    "ResNet50V2 with a head": (LISTED,), "MobileNetV3Small": (NUMBERED,),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_weights_alone_give_the_network_of_the_whole_model(name, tmp_path):
    make, refused = MODELS[name]
    model = make()
    choose_weights(model, 0)
    size = tuple(model.input_shape[1:3])
    inside = any(type(layer).__name__ in ("Rescaling", "Normalization") for layer in model.layers)
    options: dict[str, Any] = {} if inside else {"preprocessing": "unit"}
    model.save(tmp_path / "model.keras")
    report = convert(tmp_path / "model.keras", tmp_path / "model.safetensors", isolated=False, **options)
    if report.card.arguments["classes"] is not None:
        options["activation"] = report.card.activation
    wanted = load_file(tmp_path / "model.safetensors")
    images = torch.rand(2, 3, *size)
    for form in FORMS.get(name, (LISTED, NAMED, NUMBERED)):
        path, out = write(model, tmp_path / form), tmp_path / f"{form}.safetensors"
        told: dict[str, Any] = {"input_size": size, "isolated": False} | options
        if form in refused:
            with pytest.raises(ValueError, match=refused[form]):
                convert(path, out, **told)
            continue
        convert(path, out, proof=form == LISTED and name not in FORMS, **told)
        found = load_file(out)
        if form != NUMBERED:  # whose layers are called after their classes
            assert found.keys() == wanted.keys()
            assert all(torch.equal(found[key], wanted[key]) for key in wanted)
        with torch.no_grad():
            one, other = (load(file, mapped=False).eval() for file in (tmp_path / "model.safetensors", out))
            answers = [each.features(images) if each.head is None else each(images) for each in (one, other)]
        assert torch.equal(*answers)


def refusal(model: Any, path: Any, **options: Any) -> str:
    """The sentence with which a model's weights are refused."""
    told: dict[str, Any] = {"preprocessing": "unit", "input_size": SIZE} | options
    with pytest.raises(ValueError, match=r"h5") as caught:
        convert(write(model, path), path.with_name("out.safetensors"), isolated=False, **told)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def gated(model: Any) -> Any:
    x = L.GlobalAveragePooling2D()(model.output)
    return keras.Model(model.input, L.Dense(5)(L.Multiply()([x, L.Dense(x.shape[-1], "sigmoid")(x)])))


def subtracted(model: Any) -> Any:
    other = keras.Input((model.output.shape[-1],))
    x = L.Subtract()([L.GlobalAveragePooling2D()(model.output), other])
    return keras.Model([model.input, other], L.Dense(5)(x))


def gated_within(model: Any) -> Any:
    """A nested head with a product, of which a .h5 lists only two dense layers that fit one another."""
    inputs = keras.Input(model.output.shape[1:])
    x = L.GlobalAveragePooling2D()(inputs)
    head = keras.Model(inputs, L.Dense(5)(L.Multiply()([x, L.Dense(x.shape[-1], "sigmoid")(x)])), name="head")
    return keras.Model(model.input, head(model.output))


LARGE = (96, 96)  # 3x3 cells, of which a pool of 2x2 leaves one as well
FAULTS: dict[str, tuple[Any, str, str]] = {  # name -> (model, form, what is said); silently wrong, or dropped, once
    "average pool": (lambda m: behind(m, L.AveragePooling2D(2), L.Flatten(), L.Dense(5)), LISTED, "several sizes"),
    "average pool of Keras's name": (
        lambda m: behind(m, L.AveragePooling2D(2, name="avg_pool"), L.Flatten(), L.Dense(5)), LISTED, "avg_pool, whose",
    ),
    "maximum pool of Keras's name": (
        lambda m: behind(m, L.MaxPooling2D(2, name="max_pool"), L.Flatten(), L.Dense(5)), LISTED, "max_pool, whose",
    ),
    "hidden average pool": (
        lambda m: behind(m, keras.Sequential([L.AveragePooling2D(2), L.Flatten(), L.Dense(5)])), LISTED, HIDDEN,
    ),
    "hidden normalisation before its activation": (
        lambda m: behind(m, L.GlobalAveragePooling2D(),
                         keras.Sequential([L.Dense(8), L.BatchNormalization(), L.ReLU(), L.Dense(5)])),
        LISTED, HIDDEN,
    ),
    "hidden product": (gated_within, LISTED, HIDDEN),
    "leaky": (lambda m: behind(m, L.GlobalAveragePooling2D(), L.Dense(8), L.LeakyReLU(0.3), L.Dense(5)), NAMED,
              "leaky_relu NUMBER"),
    "product": (gated, LISTED, r"multiply \(Multiply\)"),
    "difference with a second input": (subtracted, LISTED, "lists 2 inputs"),
    "softmax in the middle": (
        lambda m: behind(m, L.GlobalAveragePooling2D(), L.Dense(8), L.Softmax(), L.Dense(5)), NAMED, OPEN,
    ),
    "normalisation before the maximum": (
        lambda m: behind(m, L.BatchNormalization(), L.GlobalMaxPooling2D(), L.Dense(5)), NAMED, OPEN,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_what_the_list_leaves_open_is_refused(name, tmp_path):
    make, form, said = FAULTS[name]
    sentence = refusal(make(mobilenet(size=LARGE)), tmp_path / form, input_size=LARGE)
    assert re.search(said, sentence)
    assert "--architecture FILE.json" in sentence or "inputs" in sentence


PAPER_FAULTS = [name for name in FAULTS if "Keras's name" in name or "hidden" in name]


@pytest.mark.parametrize("name", PAPER_FAULTS)
@pytest.mark.parametrize("network", ["vgg16", "resnet50"])
def test_the_same_of_a_paper_network(name, network, tmp_path):
    make, form, said = FAULTS[name]
    file = read_keras(write(make(keras3_heads.base(network)), tmp_path / form))
    with pytest.raises(ValueError, match=said):
        config_of_list(file, input_size=LARGE)


def test_a_listed_normalisation_stays_before_its_activation(tmp_path):
    """In the config, and in the order that the check of the proof derives from it."""
    head = [L.GlobalAveragePooling2D(), L.Dense(8), L.BatchNormalization(), L.Activation("relu"), L.Dense(5)]
    file = read_keras(write(mobilenet(*head), tmp_path / LISTED))
    config, _ = config_of_list(file, input_size=SIZE)
    assert [one.name for one in list_of(config)][-4:] == ["dense", "batch_normalization", "activation", "dense_1"]


# The check of the proof


def derived(tmp_path: Any, *head: Any) -> tuple[Any, dict[str, Any]]:
    file = read_keras(write(mobilenet(*head), tmp_path / LISTED))
    config, _ = config_of_list(file, input_size=SIZE)
    check_list(file, config)
    return file, copy.deepcopy(config)


def entry(config: dict[str, Any], name: str) -> dict[str, Any]:
    return next(layer for layer in config["config"]["layers"] if layer["name"] == name)


def reads(config: dict[str, Any], name: str, source: str) -> None:
    entry(config, name)["inbound_nodes"][0]["args"][0]["config"]["keras_history"][0] = source


def swap(config: dict[str, Any]) -> None:
    """The activation before the normalisation."""
    reads(config, "activation", "dense")
    reads(config, "batch_normalization", "activation")
    reads(config, "dense_1", "batch_normalization")


def drop(config: dict[str, Any]) -> None:
    reads(config, "dense_1", "batch_normalization")


def average(config: dict[str, Any]) -> None:
    entry(config, "average_pooling2d")["class_name"] = "GlobalAveragePooling2D"


def without_bias(config: dict[str, Any]) -> None:
    entry(config, "dense")["config"]["use_bias"] = False


def kernel(config: dict[str, Any]) -> None:
    entry(config, "conv1")["config"]["kernel_size"] = [5, 5]


def swap_convolutions(config: dict[str, Any]) -> None:
    one, other = (entry(config, name) for name in ("conv_pw_1", "conv_pw_2"))
    for layer, name in ((one, "conv_pw_2"), (other, "conv_pw_1")):
        layer["name"] = layer["config"]["name"] = name
    text = json.dumps(config).replace('["conv_pw_1"', '["other"').replace('["conv_pw_2"', '["conv_pw_1"')
    config["config"] = json.loads(text.replace('["other"', '["conv_pw_2"'))["config"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (swap, "activation stands where the file lists batch_normalization"),
        (drop, "activation is listed, but not in the config"),
        (average, "average_pooling2d is listed as AveragePooling2D, but is a GlobalAveragePooling2D"),
        (without_bias, "dense has 2 arrays, but a Dense with its settings 1"),
        (kernel, "conv1 has a kernel of"),
        (swap_convolutions, "conv_pw_2 stands where the file lists conv_pw_1"),
    ],
)
def test_the_proof_compares_the_config_with_the_list(spoil, message, tmp_path):
    head = [L.AveragePooling2D(2), L.Flatten(), L.Dense(8), L.BatchNormalization(), L.Activation("relu"), L.Dense(5)]
    file, config = derived(tmp_path, *head)
    spoil(config)
    with pytest.raises(ValueError, match=message):
        check_list(file, config)


# Recognition


def test_an_incomplete_network_is_named_with_all_that_is_missing(tmp_path):
    path = write(whole("MobileNetV2", alpha=0.35), tmp_path / LISTED)
    with h5py.File(path, "r+") as file:
        gone = ("block_3_expand", "block_7_project_BN")
        file.attrs["layer_names"] = [name for name in file.attrs["layer_names"] if name not in gone]
        for name in gone:
            del file[name]
    with pytest.raises(
        ValueError, match="not a complete MobileNetV2: block_3_expand is missing; block_7_project_BN is m"
    ):
        convert(path, tmp_path / "out.safetensors", preprocessing="unit", isolated=False)


def test_arrays_in_the_group_of_another_layer_are_named(tmp_path):
    path = write(whole("MobileNetV2", alpha=0.35), tmp_path / NAMED)
    with h5py.File(path, "r+") as file:
        for one, other in (("conv2d_5", "aside"), ("conv2d_7", "conv2d_5"), ("aside", "conv2d_7")):
            file.move(f"layers/{one}", f"layers/{other}")
    with pytest.raises(
        ValueError, match="not a complete MobileNetV2: block_3_project stands where block_2_project should; "
    ):
        convert(path, tmp_path / "out.safetensors", preprocessing="unit", isolated=False)


def test_one_layer_of_another_width_is_named(tmp_path):
    path = write(mobilenet(), tmp_path / LISTED)
    with h5py.File(path, "r+") as file:
        place = "conv_pw_3/conv_pw_3/kernel"
        values = file[place][..., :-1]
        del file[place]
        file[place] = values
    with pytest.raises(ValueError, match="not complete: conv_pw_3_bn has"):
        convert(path, tmp_path / "out.safetensors", preprocessing="unit", isolated=False)


def test_released_weights_get_their_preprocessing_and_others_none(tmp_path):
    path = write(mobilenet(), tmp_path / LISTED)
    report = convert(path, tmp_path / "out.safetensors", isolated=False)
    assert report.card.preprocessing.name == "keras-tf"
    assert load(tmp_path / "out.safetensors").size == (224, 224)
    said = "pictures are preprocessed with keras-tf, as for the released weights with these layers; change it with"
    assert any(choice.startswith(said) for choice in report.choices)
    path = write(mobilenet(L.GlobalAveragePooling2D(), L.Dense(5)), tmp_path / LISTED)
    with pytest.raises(ValueError, match="give --preprocessing"):
        convert(path, tmp_path / "out.safetensors", isolated=False)


def test_the_rows_behind_a_flatten_tell_the_size(tmp_path):
    path = write(mobilenet(L.Flatten(), L.Dense(5), size=(96, 96)), tmp_path / LISTED)
    report = convert(path, tmp_path / "out.safetensors", preprocessing="unit", isolated=False)
    assert load(tmp_path / "out.safetensors").size == (96, 96)
    assert any("assumed to have 96x96 pixels, as dense reads 3x3 cells" in choice for choice in report.choices)


def test_names_of_convnets_keras_on_tensorflow_are_not_taken_for_theanos(tmp_path):
    with h5py.File(DATA / "keras1/vgg16.h5") as source, h5py.File(tmp_path / "vgg16.h5", "w") as file:
        file.attrs["layer_names"] = source.attrs["layer_names"]
        for name, group in source.items():
            made = file.create_group(name)
            weights = [f"{weight}:0" for weight in group.attrs["weight_names"]]
            made.attrs["weight_names"] = weights
            for weight in group:
                made[f"{weight}:0"] = group[weight][()]
    config, notes = config_of_list(read_keras(tmp_path / "vgg16.h5"))
    assert config["backend"] == "tensorflow"
    assert any("tensorflow's, as the file names arrays in its style" in note for note in notes)
    config, _ = config_of_list(read_keras(DATA / "keras1/vgg16.h5"))
    assert config["backend"] == "theano"


# An architecture that is given


def test_an_architecture_answers_all_that_a_list_leaves_open(tmp_path):
    model = gated(mobilenet(L.BatchNormalization(), L.LeakyReLU(0.3), size=LARGE))
    choose_weights(model, 0)
    (tmp_path / "model.json").write_text(model.to_json())
    model.save(tmp_path / "model.keras")
    told: dict[str, Any] = {"preprocessing": "unit", "isolated": False}
    convert(tmp_path / "model.keras", tmp_path / "model.safetensors", **told)
    wanted = load_file(tmp_path / "model.safetensors")
    for form in (LISTED, NAMED, NUMBERED):
        path = write(model, tmp_path / form)
        convert(path, tmp_path / "out.safetensors", architecture=tmp_path / "model.json", proof=True, **told)
        found = load_file(tmp_path / "out.safetensors")
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    with pytest.raises(ValueError, match="holds its model's config; leave out the architecture"):
        convert(tmp_path / "model.keras", tmp_path / "out.safetensors", architecture=tmp_path / "model.json", **told)


def test_an_architecture_of_other_names_is_bound_by_order(tmp_path):
    """As after a restart of the session, in which automatic names count from elsewhere."""
    model = mobilenet(L.GlobalAveragePooling2D(), L.Dense(8, "tanh"), L.Dense(5))
    path = write(model, tmp_path / LISTED)
    text = (
        model.to_json().replace('"dense"', '"dense_7"').replace('"dense_1"', '"dense_8"').replace("conv_pw_", "mine_")
    )
    (tmp_path / "model.json").write_text(text)
    told: dict[str, Any] = {"preprocessing": "unit", "isolated": False, "architecture": tmp_path / "model.json"}
    report = convert(path, tmp_path / "out.safetensors", proof=True, **told)
    assert any(row.source == "dense_7" for row in report.rows)
    other = mobilenet(L.GlobalMaxPooling2D(), L.Dense(8), L.BatchNormalization(), L.Dense(5))
    (tmp_path / "model.json").write_text(other.to_json())
    with pytest.raises(ValueError, match=r"has|layers"):
        convert(path, tmp_path / "out.safetensors", **told)


@pytest.mark.parametrize("text", ["[1]", "{}", "{", '{"class_name": "Functional", "config": {"layers": 3}}'])
def test_a_file_that_is_no_architecture_is_refused_in_one_sentence(text, tmp_path):
    path = write(mobilenet(), tmp_path / LISTED)
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(ValueError, match=r"model\.json|weights\.h5") as caught:
        convert(path, tmp_path / "out.safetensors", architecture=tmp_path / "model.json", isolated=False)
    assert "\n" not in str(caught.value)


def test_an_architecture_of_keras_2_gives_backend_and_version(tmp_path):
    with h5py.File(DATA / "keras231/vgg16_last_model.h5") as file:
        config = json.loads(file.attrs["model_config"])
    (tmp_path / "model.json").write_text(json.dumps(config | {"keras_version": "2.3.1", "backend": "theano"}))
    golden = next(golden for golden in THEANO if golden.file == "keras231/vgg16_last.h5")
    convert(DATA / golden.file, tmp_path / "out.safetensors", preprocessing="unit",
            architecture=tmp_path / "model.json", isolated=False)  # fmt: skip
    assert_answers(load(tmp_path / "out.safetensors"), golden, DATA)
    file = read_keras(DATA / "keras1/vgg16_tf.h5")
    bound = with_config(file, config | {"keras_version": "1.2.2", "backend": "tensorflow"})
    assert (bound.backend, bound.version) == ("tensorflow", "1.2.2")
    assert plan_graph(bound, Wishes(preprocessing="unit")).backend == "tensorflow"


def test_dropout_that_a_file_does_not_list_is_left_out(tmp_path):
    """Of the network's own top, as models without it are written."""
    told: dict[str, Any] = {"backend": "theano", "proof": True, "isolated": False}
    shutil.copy(DATA / "keras1/vgg16.h5", tmp_path / "bare.h5")
    with h5py.File(tmp_path / "bare.h5", "r+") as file:
        file.attrs["layer_names"] = [name for name in file.attrs["layer_names"] if "dropout" not in name]
    convert(DATA / "keras1/vgg16.h5", tmp_path / "whole.safetensors", **told)
    report = convert(tmp_path / "bare.h5", tmp_path / "bare.safetensors", **told)
    assert report.card.network == "vgg16"
    bare, whole = (load_file(tmp_path / f"{name}.safetensors") for name in ("bare", "whole"))
    assert bare.keys() == whole.keys()
    assert all(torch.equal(bare[name], whole[name]) for name in whole)

"""What the user must say where a file cannot, what must not be said twice, and where the choices are written down."""

from __future__ import annotations

import json
import shutil
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from converters import convert, layouts
from convnets_torch.card import read_card
from convnets_torch.evaluation.labels import resolved_labels
from convnets_torch.weights import load
from convnets_torch.wordnet import synsets
from convnets_torch.wordnet.targets import class_wnid, find_target
from tests.reference.goldens import DATA
from tests.reference.theano_goldens import THEANO
from tests.test_formats import assert_answers
from tests.test_released_by_hand import lay_out, plain

GOLDENS = {golden.file: golden for golden in THEANO}
VGG_OF_KERAS_1, NOTOP = "keras1/vgg16_th.h5", "keras1/vgg16_notop_th.h5"
NESTED, FLAT, OLD_RESNET = "keras231/vgg16_nested_first.h5", "keras231/vgg16_flat_last.h5", "keras216/resnet50_first.h5"
WHOLE_RESNET, WHOLE = "keras224/resnet50_first_model.h5", "keras231/vgg16_last_model.h5"
UNTOLD = "keras208/vgg16_first.h5"  # Theano, weights, before Flatten transposed: no data format
CAFFE: dict[str, Any] = {"preprocessing": "keras-caffe"}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.safetensors"


@pytest.fixture
def refused(refused):
    return lambda file, message, **options: refused(DATA / file, message, named=False, **options)


def assert_right(file, out, **options):
    """Converts, proves, answers as the golden says."""
    report = convert(DATA / file, out, proof=True, **options)
    assert_answers(load(out), GOLDENS[file], DATA)
    return report


# Backend


@pytest.mark.parametrize("file", [VGG_OF_KERAS_1, "keras1/resnet50_tf.h5", "keras1/vgg16_th_model.h5"])
def test_a_file_of_keras_1_does_not_say_its_backend(file, refused):
    refused(
        file, "files of Keras 1 do not say which backend .* give --backend theano .* or --backend tensorflow", **CAFFE
    )


@pytest.mark.parametrize(("word", "backend"), [("th", "theano"), ("tf", "tensorflow")])
def test_the_name_of_the_file_may_say_the_backend(word, backend, tmp_path, out):
    path = tmp_path / f"vgg16_weights_th_dim_ordering_{word}_kernels.h5"
    shutil.copy(DATA / VGG_OF_KERAS_1, path)
    report = convert(path, out, **CAFFE)
    note = f"kernels are {backend}'s according to the file name; change it with --backend"
    assert report.card.source.backend == backend
    assert note in report.choices
    assert note in read_card(out).source.changes
    other = {"theano": "tensorflow", "tensorflow": "theano"}[backend]
    again = convert(path, out, backend=other, **CAFFE)  # the user knows better than a name
    assert again.card.source.backend == other
    assert not any("kernels" in choice for choice in again.choices)


def test_what_a_file_says_of_its_backend_is_not_said_twice(refused):
    refused(FLAT, "says that theano trained it, not tensorflow; leave out the backend", backend="tensorflow")
    refused("keras305/vgg16.weights.h5", "which never ran on Theano", backend="theano", **CAFFE)


def test_what_is_in_the_file_comes_before_its_name(tmp_path, out):
    """Arrays as TensorFlow names them, in a file that is called th_kernels."""
    path = tmp_path / "vgg16_weights_th_kernels.h5"
    lay_out("keras1/vgg16.h5", path, plain, kernels="tf", order="th")
    report = convert(path, out, **CAFFE)
    assert report.card.source.backend == "tensorflow"
    assert any("as the file names arrays in its style" in choice for choice in report.choices)


def test_kernels_that_are_turned_for_the_names_of_layers_alone_are_said(out):
    told = [choice for choice in convert(DATA / "keras1/vgg16.h5", out, **CAFFE).choices if "kernels" in choice]
    assert told == ["kernels are theano's, as in the released files with these layer names; change it with --backend"]


@pytest.mark.parametrize(
    ("file", "name", "told"), [("keras1/vgg16.h5", "original", {}), (NOTOP, "keras-caffe", {"backend": "theano"})]
)
def test_a_preprocessing_that_nobody_named_is_said(file, name, told, out):
    report = convert(DATA / file, out, **told)
    assert f"pictures are preprocessed with {name}, as for the released weights with these layers; change it with" in (
        " ".join(report.choices)
    )
    assert not any("preprocessed" in choice for choice in convert(DATA / file, out, preprocessing=name, **told).choices)


# Data format


def test_the_order_of_the_first_dense_layer_must_be_told_before_keras_2_2(refused, out):
    refused(UNTOLD, "does not say whether it was trained channels first or last, .* give --data-format", **CAFFE)
    assert_right(UNTOLD, out, data_format="channels_first", **CAFFE)
    first = load_file(out)["head.dense_1.weight"].clone()
    convert(DATA / UNTOLD, out, data_format="channels_last", **CAFFE)
    assert not torch.equal(first, load_file(out)["head.dense_1.weight"])


@pytest.mark.parametrize("file", [WHOLE, WHOLE_RESNET])
def test_a_data_format_that_the_config_says_is_not_said_twice(file, refused):
    said, other = ("last", "first") if file == WHOLE else ("first", "last")
    refused(
        file,
        f"says that it is channels_{said}, not channels_{other}; leave out",
        data_format=f"channels_{other}",
        **CAFFE,
    )
    refused(file, "unknown data format 'nchw'; known: channels_first, channels_last", data_format="nchw", **CAFFE)


def test_kernels_of_keras_1_with_th_are_never_channels_last(refused):
    refused(VGG_OF_KERAS_1, "which are never channels_last", backend="theano", data_format="channels_last", **CAFFE)


# The first pooling of ResNet50


def test_the_list_tells_whether_an_old_resnet_pads_its_first_pooling(out, refused):
    """The file of Keras 2.3.1 lists pool1_pad, that of 2.1.6 does not; neither has a config."""
    for file, padded in ((OLD_RESNET, False), ("keras231/resnet50_last.h5", True)):
        assert_right(file, out, **CAFFE)
        assert read_card(out).arguments["pool_padding"] is padded
        assert_right(file, out, pool1_padding=padded, **CAFFE)
        out.unlink()
        refused(file, "resnet50, whose first pooling is known; leave out", pool1_padding=not padded, **CAFFE)


def test_a_first_pooling_that_is_known_is_not_said_twice(refused, command, out):
    refused(WHOLE_RESNET, "its config specifies all paddings; leave out", pool1_padding=False, **CAFFE)
    refused(WHOLE, "its config specifies all paddings; leave out", pool1_padding=True, **CAFFE)
    refused(NESTED, "is vgg16, whose first pooling is known; leave out", pool1_padding=True, **CAFFE)
    code, _, error = command("convert", DATA / OLD_RESNET, "-o", out, "--pool1-padding", "maybe")
    assert (code, "give yes or no" in error) == (2, True)


# Preprocessing


def test_a_model_of_ones_own_needs_its_preprocessing(refused, tmp_path, out):
    told: dict[str, Any] = {"input_size": (96, 96), "activation": "sigmoid"}
    refused(
        FLAT, "does not say how its pictures were preprocessed; give --preprocessing with a JSON file or one of", **told
    )
    rule = {"name": "custom", "size": 96, "resize": 96, "resize_rule": "stretch", "interpolation": "bilinear",
            "channels": "rgb", "mean": [0, 0, 0], "scale": 1 / 255}  # fmt: skip
    (tmp_path / "rule.json").write_text(json.dumps(rule))
    assert_right(FLAT, out, preprocessing=str(tmp_path / "rule.json"), **told)
    assert read_card(out).preprocessing.scale == 1 / 255
    (tmp_path / "large.json").write_text(json.dumps(rule | {"size": 150, "resize": 150}))
    refused(
        FLAT,
        "large.json has the size 150, but the network's input is 96x96",
        preprocessing=str(tmp_path / "large.json"),
        **told,
    )
    refused(FLAT, "unknown preprocessing 'caffe'|'caffe'", preprocessing="caffe", **told)


def test_a_model_that_rescales_pictures_itself_takes_no_other_preprocessing(keras3_files, out):
    with pytest.raises(ValueError, match=r"normalises pictures itself \(rescaling\); leave out"):
        convert(keras3_files / "resnet50_rescaling.keras", out, preprocessing="unit")


# Outputs


def test_a_single_unit_in_a_file_of_weights_needs_its_activation(refused):
    told: dict[str, Any] = {"input_size": (96, 96), "preprocessing": "unit"}
    refused(FLAT, "has a single output and does not say its activation; give --activation sigmoid", **told)
    refused(FLAT, "has a single output, which no softmax fits", activation="softmax", **told)
    refused(FLAT, "unknown activation 'tanh'; known: softmax, sigmoid, none", activation="tanh", **told)


def test_an_activation_that_is_known_is_not_said_twice(refused):
    refused(WHOLE, "says that its activation is softmax, not sigmoid; leave it out", activation="sigmoid", **CAFFE)
    refused(NOTOP, "has no head, so no activation of its outputs", activation="softmax", backend="theano")


def test_the_hidden_activation_of_weights_is_chosen_and_said(out, refused):
    told: dict[str, Any] = {"preprocessing": "unit", "input_size": (96, 96)}
    report = assert_right(NESTED, out, **told)
    [note] = [choice for choice in report.choices if "--hidden-activation" in choice]
    assert note.startswith("relu is assumed between the dense layers")
    assert note in read_card(out).source.changes
    assert "--hidden" not in "".join(convert(DATA / NESTED, out, hidden_activation="tanh", **told).choices)
    assert ("tanh",) in read_card(out).arguments["head"]
    refused(NESTED, "'maxout'", hidden_activation="maxout", **told)
    refused(WHOLE, "its config specifies the hidden activations; leave out", hidden_activation="relu", **CAFFE)


# Input size


def test_the_input_size_follows_from_a_square_of_cells_or_is_asked_for(out, refused, command):
    """96 pixels give 3x3 cells, and so do all sizes up to 127; a file of 3x4 cells tells no size."""
    assert convert(DATA / NESTED, out, preprocessing="unit").card.arguments["size"] == (96, 96)
    assert_right(NESTED, out, preprocessing="unit", input_size=(96, 96))
    refused(NESTED, "dense_1 has 108 rows, but reads 192 values", preprocessing="unit", input_size=(150, 150))
    code, _, error = command("convert", DATA / NESTED, "-o", out, "--preprocessing", "unit", "--input-size", "96x")
    assert (code, "--input-size is '96x'" in error) == (2, True)
    code, _, _ = command("convert", DATA / NESTED, "-o", out, "--preprocessing", "unit", "--input-size", "100x120")
    assert (code, read_card(out).arguments["size"]) == (0, (100, 120))


def test_cells_that_are_no_square_need_the_input_size(tmp_path, out):
    wide, path = "keras231/vgg16_nested_last_model.h5", tmp_path / "wide.h5"
    with h5py.File(DATA / wide) as file, h5py.File(path, "w") as weights:  # the weights of a whole model alone
        for name in file["model_weights"]:
            file.copy(f"model_weights/{name}", weights)
        for name, value in file["model_weights"].attrs.items():
            weights.attrs[name] = value
        weights.attrs["backend"], weights.attrs["keras_version"] = "theano", "2.3.1"
    with pytest.raises(
        ValueError, match="a head that reads 12 cells, which is not a square number; give --input-size HEIGHTxWIDTH"
    ):
        convert(path, out, preprocessing="unit")
    convert(path, out, preprocessing="unit", input_size=(96, 128), proof=True)
    assert_answers(load(out), GOLDENS[wide], DATA)
    assert_asks(path, out, ["--input-size HEIGHTxWIDTH", "--preprocessing with"])
    convert(path, out, preprocessing="unit", input_size=(128, 96))  # as many cells: nothing tells it is wrong
    assert load(out).window == (4, 3)


ASKED = {  # file -> the options that it needs
    "keras1/vgg16_flat_tf.h5": ["--backend theano", "--activation sigmoid", "--preprocessing with"],
    "keras1/vgg16_th_model.h5": ["--backend theano", "--preprocessing with"],
    UNTOLD: ["--data-format channels_first", "--preprocessing with"],
    FLAT: ["--activation sigmoid", "--preprocessing with"],
}
TOLD: dict[str, dict[str, Any]] = {
    "--backend": {"backend": "tensorflow"}, "--preprocessing": {"preprocessing": "unit"},
    "--activation": {"activation": "sigmoid"}, "--data-format": {"data_format": "channels_last"},
    "--input-size": {"input_size": (96, 128)},
}  # fmt: skip


def assert_asks(path, out, wanted):
    """Asks for all the options at once, for the others if one is given, and for none if all are."""
    told = {each: TOLD[each.split()[0]] for each in wanted}
    with pytest.raises(ValueError, match=rf"needs {len(wanted)} options: ") as caught:
        convert(path, out)
    assert "\n" not in str(caught.value)
    places = [str(caught.value).index(each) for each in wanted]
    assert sorted(places) == places
    for each in wanted:
        with pytest.raises(ValueError, match=r"; give |needs") as caught:
            convert(path, out, **told[each])
        assert [other for other in wanted if other in str(caught.value)] == [other for other in wanted if other != each]
    convert(path, out, **{key: value for each in told.values() for key, value in each.items()})


@pytest.mark.parametrize("file", ASKED)
def test_all_that_must_be_asked_is_asked_at_once(file, out):
    assert_asks(DATA / file, out, ASKED[file])


def test_an_answer_that_is_wrong_is_refused_before_anything_is_asked(refused):
    refused(FLAT, "unknown activation 'tanh'", activation="tanh")
    refused(FLAT, "says that theano trained it, not tensorflow", backend="tensorflow")
    refused(UNTOLD, "unknown data format 'nchw'", data_format="nchw")
    refused("keras1/vgg16_flat_tf.h5", "the input size 0x0 is invalid", input_size=(0, 0))


def test_an_input_size_that_the_config_says_is_not_said_twice(refused):
    refused(WHOLE, "says that its input is 224x224 pixels; leave out", input_size=(96, 96), **CAFFE)


@pytest.mark.parametrize("file", [NESTED, FLAT, NOTOP])
@pytest.mark.parametrize("size", [(0, 0), (-5, 96), (10**6, 96), (10**12, 96), (31, 96), (10, 10)])
def test_a_size_that_no_picture_for_the_network_has_is_refused(size, file, refused):
    told: dict[str, Any] = {"activation": "sigmoid"} if file == FLAT else {"backend": "theano"} if file == NOTOP else {}
    height, width = size
    message = (
        f"{height}x{width} pixels are too small"
        if min(size) in (10, 31)
        else f"the input size {height}x{width} is invalid"
    )
    refused(file, message, input_size=size, preprocessing="unit", **told)


# Names of classes


def test_names_of_classes_are_one_on_each_line(tmp_path, out, refused, command):
    labels = tmp_path / "labels.txt"
    names = ("cat", "dog", "größe", "a b", "e", "f", "g")
    labels.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(names).encode() + b"\r\n\r\n")
    code, _, _ = command("convert", DATA / WHOLE, "-o", out, "--preprocessing", "keras-caffe", "--classes", labels)
    assert (code, read_card(out).class_names) == (0, names)
    out.unlink()
    for text, message in (
        (b"cat\ndog\n", "2 class names for the 7 outputs of .*; name each once, in order"),
        (b"", "all of it is empty"),
        (b"a\n\nb\nc\nd\ne\nf\n", "line 2 is empty"),
        (b"\x89PNG\xff\xfe", "is not UTF-8 text"),
    ):
        labels.write_bytes(text)
        refused(WHOLE, message, classes=labels, **CAFFE)
    labels.write_text("cat\n")
    refused(NOTOP, "has no head, so no classes to name", classes=labels, backend="theano")
    told: dict[str, Any] = {"preprocessing": "unit", "input_size": (96, 96), "activation": "sigmoid"}
    labels.write_text("cat\ndog\n")
    refused(
        FLAT,
        r"2 class names for the 1 outputs .*a single output is the probability of one class",
        classes=labels,
        **told,
    )


# Isolation and proof


def test_reading_in_this_process_gives_the_same_bytes(tmp_path, command):
    paths = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for path, more in zip(paths, ([], ["--no-isolation"]), strict=True):
        assert command("convert", DATA / WHOLE, "-o", path, "--preprocessing", "keras-caffe", "--proof", *more)[0] == 0
    assert paths[0].read_bytes() == paths[1].read_bytes()


BROKEN = {
    "kernels are not flipped": ("flip", lambda kernel: kernel),
    "kernels are mirrored only": ("flip", lambda kernel: kernel[:, :, :, ::-1]),
    "rows are not permuted": ("chw_rows_from_hwc", lambda rows, window: rows),
    "axes are swapped": ("ORDERS", {**layouts.ORDERS, "hwio": lambda kernel: kernel.transpose(3, 2, 1, 0)}),
}


@pytest.mark.parametrize("mistake", BROKEN)
def test_a_proof_that_fails_leaves_no_output(mistake, monkeypatch, tmp_path, command):
    """The conversion is broken on purpose; without the proof it would go through."""
    from converters import writing

    name, broken = BROKEN[mistake]
    assert hasattr(layouts, name)
    monkeypatch.setattr(writing, name, broken)
    out = tmp_path / "out.safetensors"
    arguments = ("convert", DATA / WHOLE, "-o", out, "--preprocessing", "keras-caffe", "--no-isolation")
    code, printed, error = command(*arguments, "--proof")
    assert (code, printed) == (1, "")
    assert "the proof fails at " in error
    assert error.count("\n") <= 1
    assert list(tmp_path.iterdir()) == []
    assert command(*arguments)[0] == 0


# torchvision's names


@pytest.mark.parametrize("file", ["keras231/vgg16_last.h5", "vgg19.keras"])
def test_torchvision_loads_what_is_written_under_its_names(file, keras3_files, out):
    import torchvision
    from torch import nn

    from tests.reference.goldens import VGG_HIDDEN, VGG_WIDTHS

    path = DATA / file if "/" in file else keras3_files / file
    name, depths = ("vgg16", (2, 2, 3, 3, 3)) if "vgg16" in file else ("vgg19", (2, 2, 4, 4, 4))
    convert(path, out, layout="torchvision", proof=True, **CAFFE)
    plan = [part for width, depth in zip(VGG_WIDTHS, depths, strict=True) for part in (*[width] * depth, "M")]
    theirs = torchvision.models.VGG(torchvision.models.vgg.make_layers(plan), num_classes=7)
    for place, sizes in zip((0, 3, 6), ((VGG_WIDTHS[-1] * 49, 6), VGG_HIDDEN, (VGG_HIDDEN[-1], 7)), strict=True):
        theirs.classifier[place] = nn.Linear(*sizes)
    theirs.load_state_dict(load_file(out), strict=True)
    convert(path, out.parent / "ours.safetensors", **CAFFE)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 50
    with torch.inference_mode():
        torch.testing.assert_close(theirs.eval()(images), load(out.parent / "ours.safetensors")(images))
    with pytest.raises(
        ValueError, match=r"has the parameter names of torchvision, for its load_state_dict; convert .* again"
    ) as caught:
        load(out)
    assert len(str(caught.value)) < 300
    assert read_card(out).network == name


def test_torchvision_has_no_other_network_or_head(refused):
    refused(
        WHOLE_RESNET, "is resnet50, but only VGG16 and VGG19 have torchvision's layers", layout="torchvision", **CAFFE
    )
    refused(NOTOP, "has another head or input than torchvision's vgg16", layout="torchvision", backend="theano")
    refused(NESTED, "has another head or input", layout="torchvision", preprocessing="unit", input_size=(96, 96))
    refused(WHOLE, "unknown layout 'timm'; known: torchvision", layout="timm", **CAFFE)


# Own heads, end to end


def test_a_model_of_ones_own_classifies_and_maps_its_own_classes(tmp_path, out, street, command):
    (tmp_path / "labels.txt").write_text("cat\ndog\nfish\nbird\nnone of these\n")
    code, _, error = command(
        "convert",
        DATA / "keras231/vgg16_nested_last_model.h5",
        "-o",
        out,
        "--preprocessing",
        "unit",
        "--classes",
        tmp_path / "labels.txt",
    )
    assert code == 0, error
    code, printed, error = command("classify", out, street, "--top", "5")
    assert code == 0, error
    assert sorted(line.split(maxsplit=2)[2].strip() for line in printed.splitlines() if line.strip()) == sorted(
        ["cat", "dog", "fish", "bird", "none of these"]
    )
    code, _, error = command("heatmap", out, street, "--target", "dog", "--output", tmp_path / "map.png")
    assert code == 0, error
    assert (tmp_path / "map.png").stat().st_size > 0


def test_a_network_without_a_head_says_what_is_wanting(tmp_path, out, street, command):
    code, _, error = command("convert", DATA / NOTOP, "-o", out, "--backend", "theano")
    assert code == 0, error
    network = load(out)
    assert (network.head, network.card.class_names, network.card.activation) == (None, None, "none")
    code, printed, error = command("classify", out, street)
    assert (code, printed) == (1, "")
    assert "head" in error
    code, printed, error = command("heatmap", out, street, "--target", "dog", "--output", tmp_path / "map.png")
    assert (code, printed) == (1, "")
    assert "head" in error
    assert not (tmp_path / "map.png").exists()


def test_a_network_of_ones_own_is_fine_tuned_by_its_last_layer(out):
    convert(DATA / NESTED, out, preprocessing="unit", input_size=(96, 96))
    network = load(out)
    last = network.head[-1]
    assert isinstance(last, torch.nn.Linear)
    network.head[-1] = torch.nn.Linear(last.in_features, 3)
    images = torch.from_numpy(np.random.default_rng(0).random((2, 3, 96, 96), np.float32))
    network(images).sum().backward()
    assert network(images).shape == (2, 3)
    assert network.get_parameter("features.conv1_1.weight").grad.abs().sum() > 0


def test_lines_of_wnids_and_words_are_read_as_wnids(tmp_path, out):
    """Of ImageNet in its order they are ImageNet's classes; of others the wnid is a target as the whole line is."""
    lines = [f"{synsets.wnid(class_id)} {synsets.words(class_id)}" for class_id in range(1000)]
    (tmp_path / "synset_words.txt").write_text("\n".join(lines))
    convert(DATA / "keras1/alexnet.h5", out, classes=tmp_path / "synset_words.txt")
    assert read_card(out).imagenet
    convert(DATA / "keras1/alexnet.h5", out, classes=lines[::-1])
    card = read_card(out)
    assert find_target(card, "n02123159").class_ids == find_target(card, "n02123159 tiger_cat").class_ids == (717,)
    assert (class_wnid(card, 717), class_wnid(card, 0)) == ("n02123159", "n15075141")
    found, _ = resolved_labels(card, ["n02123159", "n15075141 toilet tissue"], "labels")
    assert list(found.values()) == [717, 0]

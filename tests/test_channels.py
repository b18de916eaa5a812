"""Networks that read grey pictures (one channel) or RGBA (four): what they see is what Keras's `load_img` gives."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from converters import convert
from converters.doctor.doctor import diagnose
from convnets_torch import (
    classify,
    densify,
    embed,
    engine,
    export,
    filter_patterns,
    finetune,
    gradcam,
    heatmap,
    heatmap_each,
    load,
    prepare,
)
from convnets_torch.card import Card
from convnets_torch.explain.channels import activation_grids, save_grids
from convnets_torch.explain.faithfulness import measure_faithfulness
from convnets_torch.explain.filters import first_kernels
from convnets_torch.explain.page import explain
from convnets_torch.explain.patches import top_patches
from convnets_torch.images import sources
from convnets_torch.images.decoding import AS_IS, decode
from convnets_torch.images.levels import shown
from convnets_torch.images.preprocessing import (
    CENTER,
    CORNERS,
    Preprocessing,
    center_crop,
    crop_each,
    crop_image,
    cropped_box,
    fit_longest_side,
    general,
    normalize,
    presets_for,
    read_preprocessing,
)
from convnets_torch.images.resizing import grey_of, normalized
from convnets_torch.images.rows import Resized
from convnets_torch.images.sources import InMemory
from convnets_torch.inference.pipeline import predict
from convnets_torch.training.augmentation import Augmentation, Photo, augmentation, view, view_sheet
from convnets_torch.training.datasets import find_dataset
from convnets_torch.training.settings import Settings
from tests.conftest import run_keras3
from tests.reference.keras3_channels import INSIDE, MODELS
from tests.reference.pictures import picture

HOWS = ("nearest", "bilinear", "bicubic")


@pytest.fixture(scope="module")
def keras3_channels(filled) -> Path:
    return filled("keras3_channels", lambda folder: run_keras3(folder, program="keras3_channels"))


def see_through(seed: int, height: int, width: int) -> np.ndarray:
    """An RGBA picture of all opacities."""
    alpha = np.random.default_rng(seed).integers(0, 256, (height, width))
    return np.dstack([picture(seed, height, width), np.where(alpha < 30, 0, np.where(alpha > 220, 255, alpha))]).astype(
        np.uint8
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("name", MODELS)
def test_pictures_are_read_and_answered_as_in_keras(keras3_channels, name, how, tmp_path):
    preprocessing = None if name in INSIDE else "keras-tf"
    file = keras3_channels / f"{name}.keras"
    convert(file, tmp_path / "out.safetensors", preprocessing=preprocessing, proof=True, isolated=False)
    network = load(tmp_path / "out.safetensors")
    rule = replace(network.card.preprocessing, interpolation=how)
    network.card = replace(network.card, preprocessing=rule)
    stored = dict(np.load(keras3_channels / f"{name}.npz"))
    paths = [keras3_channels / key.removesuffix(f".{how}") for key in stored if key.endswith(f".{how}")]
    assert len(paths) == 9
    reading = AS_IS.for_rule(rule)
    for path in paths:
        wanted = stored[f"{path.name}.{how}"]
        assert wanted.shape[2] == rule.channel_count
        np.testing.assert_array_equal(center_crop(decode(path, reading).pixels, rule), wanted, err_msg=path.name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = list(predict(network, paths, exact=True))
    answers = np.stack([stored[f"{path.name}.{how}.answers"] for path in paths])
    found = torch.stack([row.logits for row in rows]).softmax(1)
    assert np.abs(found.numpy() - answers).max() <= 1e-4 * answers.max()
    on_device = list(predict(network, paths, exact=False, resize="device"))
    assert all(torch.equal(one.logits, other.logits) for one, other in zip(rows, on_device, strict=True))


RULES = {
    "stretch": Preprocessing("custom", (20, 30), (24, 36), "stretch", "bilinear", "rgb", (0.0, 0.0, 0.0)),
    "shorter": Preprocessing("custom", (30, 20), (33, 24), "shorter-side", "bicubic", "rgb", (0.0, 0.0, 0.0)),
    "nearest": Preprocessing("custom", (20, 30), (24, 36), "stretch", "nearest", "rgb", (0.0, 0.0, 0.0)),
}


def of(rule: Preprocessing, channels: Any) -> Preprocessing:
    count = {"grey": 1, "rgba": 4}[channels]
    return replace(rule, channels=channels, mean=(3.0, 5.0, 7.0, 9.0)[:count], std=(2.0, 3.0, 4.0, 5.0)[:count])


@pytest.mark.parametrize("name", RULES)
def test_crops_are_pillows(name):
    """Grey is made before resizing, and transparent colours are weighted by their opacity."""
    rule, pixels = RULES[name], see_through(1, 50, 70)
    for channels, image in (("grey", Image.fromarray(pixels[..., :3])), ("rgba", Image.fromarray(pixels))):
        own = of(rule, channels)
        mode = {"grey": "L", "rgba": "RGBA"}[channels]
        found = list(crop_each(image, own, (CENTER, *CORNERS)))
        assert all(crop.shape == (*rule.shape, own.channel_count) for crop in found)
        if rule.resize_rule == "stretch":
            whole = image.convert(mode).resize((36, 24), Image.Resampling[rule.interpolation.upper()])
            for (top, left), crop in zip([(2, 3), (0, 0), (0, 6), (4, 0), (4, 6)], found, strict=True):
                np.testing.assert_array_equal(crop.squeeze(), np.asarray(whole)[top : top + 20, left : left + 30])
        else:
            box = cropped_box((50, 70), rule)
            wanted = image.convert(mode).resize((20, 30), Image.Resampling.BICUBIC, box=box)
            np.testing.assert_array_equal(found[0].squeeze(), np.asarray(wanted))
        small = fit_longest_side(np.asarray(image), 41, own)
        wanted = image.convert(mode).resize((41, 29), Image.Resampling[rule.interpolation.upper()])
        np.testing.assert_array_equal(small.squeeze(), np.asarray(wanted))


def test_normalising_is_the_same_on_both_ways():
    for channels in ("grey", "rgba"):
        rule = of(RULES["stretch"], channels)
        pixels = see_through(2, 9, 11)[..., : rule.channel_count]
        found = normalize(pixels, rule)
        wanted = (pixels.astype(np.float64) - rule.mean) / rule.std
        np.testing.assert_allclose(found, wanted.transpose(2, 0, 1), rtol=1e-6)
        assert np.array_equal(normalized(torch.from_numpy(pixels)[None], rule)[0].numpy(), found)


def test_every_colour_becomes_pillows_grey_on_a_device():
    values = torch.arange(0, 256, 5, dtype=torch.uint8)
    colors = torch.cartesian_prod(values, values, values)
    wanted = np.asarray(Image.fromarray(colors.numpy()[None]).convert("L"))
    assert np.array_equal(grey_of(colors.T[:, None])[0].numpy(), wanted)


@pytest.mark.parametrize("size", [(17, 40), (60, 23), (31, 23), (40, 9), (40, 61)])  # some are resized downwards first
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_rows_are_resized_as_pillow_resizes_whole_pictures(mode, how, size):
    image = Image.fromarray(see_through(3, 40, 61))
    image = image if mode == "RGBA" else image.convert("RGB")
    source = Resized(InMemory(np.asarray(image)), size, how, mode)
    found = np.concatenate([source.rows(top, min(top + 7, size[0])) for top in range(0, size[0], 7)])
    wanted = np.asarray(image.convert(mode).resize(size[::-1], Image.Resampling[how.upper()]))
    assert found.shape == (*size, len(mode))
    np.testing.assert_array_equal(found.squeeze(), wanted)


def test_presets_with_one_number_for_all_colours_have_a_form_for_one_and_four_channels():
    assert presets_for(1) == presets_for(4) == ("keras-tf", "keras-tf-aspect", "unit", "efficientnet-lite")
    grey, rgba = general("keras-tf", 28, 1), general("efficientnet-lite", (20, 30), 4)
    assert (grey.channels, grey.mean, grey.std, grey.channel_count) == ("grey", (1.0,), (1.0,), 1)
    assert (rgba.channels, rgba.mean, rgba.std, rgba.channel_count) == ("rgba", (127.0,) * 4, (128.0,) * 4, 4)
    for name in ("keras-caffe", "torchvision"):
        with pytest.raises(
            ValueError, match=f"{name} has numbers for three colours, but the images have four channels"
        ):
            general(name, 28, 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": "grey", "mean": [0, 0, 0]}, r"mean \(0, 0, 0\); give one finite number, std not 0"),
        ({"channels": "rgba", "mean": [0, 0, 0]}, "give four finite numbers"),
        ({"channels": "grey", "mean": [0], "std": [1, 1, 1]}, r"std \(1, 1, 1\); give one finite number, std not 0"),
        ({"channels": "gray", "mean": [0]}, "channels 'gray'; known: rgb, bgr, grey, rgba"),
    ],
)
def test_a_rule_has_a_number_for_each_channel(fields, message, tmp_path):
    known = {"size": 28, "resize_rule": "stretch", "interpolation": "nearest"}
    (tmp_path / "rule.json").write_text(json.dumps(known | {"channels": "grey", "mean": [7]}))
    rule = read_preprocessing(tmp_path / "rule.json")
    assert (rule.mean, rule.std) == ((7,), (1.0,))
    assert Preprocessing.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule
    (tmp_path / "rule.json").write_text(json.dumps(known | fields))
    with pytest.raises(ValueError, match=message):
        read_preprocessing(tmp_path / "rule.json")


def test_a_card_agrees_with_its_network():
    with pytest.raises(ValueError, match=r"makes grey images, but the network reads 3 channels"):
        Card("vgg16", {"classes": 10}, general("unit", 224, 1), None)
    graph = {"features": (), "head": None, "size": (8, 8), "channels": 4}
    with pytest.raises(ValueError, match=r"makes grey images, but the network reads 4 channels"):
        Card("graph", {"classes": None, "graph": graph}, general("unit", 8, 1), None)
    card = Card("graph", {"classes": None, "graph": graph}, general("unit", 8, 4), None)
    assert Card.from_json(card.to_json()) == card


def small(channels: int, size: int = 32) -> nn.Module:
    """A classifier of 5 classes with random weights, of images of 1, 3 or 4 channels."""
    torch.manual_seed(channels)
    layers = [nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8 * (size // 4) ** 2, 5)).eval()


@pytest.fixture(params=[1, 4], ids=["grey", "rgba"])
def network(request):
    rule = replace(general("efficientnet-lite", 32, request.param), interpolation="bilinear")
    return densify(small(request.param), 32, preprocessing=rule, classes=["a", "b", "c", "d", "e"])


def test_arrays_of_as_many_channels_are_pictures(network):
    count = network.channels
    pixels = see_through(4, 40, 50)[..., :count]
    file = Image.fromarray(pixels.squeeze())
    given: list[Any] = [pixels, torch.from_numpy(pixels).permute(2, 0, 1), pixels.astype(np.float32), file]
    given += [pixels[..., 0], np.repeat(pixels, 3, axis=2)] if count == 1 else []
    logits = torch.stack([row.logits for row in predict(network, given, exact=True)])
    assert all(torch.equal(each, logits[0]) for each in logits)
    images = torch.from_numpy(normalize(center_crop(pixels, network.card.preprocessing), network.card.preprocessing))
    torch.testing.assert_close(embed(network, images[None]), embed(network, [pixels]), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(network(images[None])[0], logits[0], rtol=1e-5, atol=1e-5)
    opaque = see_through(4, 40, 50)[..., :3]  # arrays of three channels are pictures for all networks
    assert len(classify(network, [opaque])[0]) == 5


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_arrays_of_other_channels_are_refused(channels):
    network = densify(small(channels), 32, preprocessing=general("unit", 32, channels), classes=[*"abcde"])
    for wrong in {1, 2, 4, 5} - {channels}:
        with pytest.raises(
            ValueError, match=r"the array is \(40, 50, \d\) uint8, but a picture is \(height, width, 3\)"
        ):
            classify(network, [np.zeros((40, 50, wrong), np.uint8)])
        with pytest.raises(ValueError, match=r"the tensor is \(\d, 40, 50\), but a picture is a tensor \(3, height"):
            classify(network, [torch.zeros(wrong, 40, 50, dtype=torch.uint8)])


def test_transparency_that_a_network_reads_is_not_remarked_on(network, tmp_path):
    Image.fromarray(see_through(5, 40, 50)).save(tmp_path / "a.png")
    [row] = predict(network, [tmp_path / "a.png"])
    assert any("transparency was dropped" in note for note in row.notes) == (network.channels == 1)
    [white] = predict(network, [tmp_path / "a.png"], background="white")
    laid = Image.new("RGB", (50, 40), "white")
    laid.paste(Image.open(tmp_path / "a.png").convert("RGB"), mask=Image.open(tmp_path / "a.png").getchannel("A"))
    [wanted] = predict(network, [laid])
    assert not white.notes
    assert (white.logits - wanted.logits).abs().max() < 0.02 * wanted.logits.abs().max()  # Pillow rounds otherwise


def test_deep_grey_is_scaled_to_8_bits(network, tmp_path):
    shallow = picture(6, 40, 50)[..., 0]
    Image.fromarray(shallow.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(shallow).save(tmp_path / "shallow.png")
    deep, plain = predict(network, [tmp_path / "deep.png", tmp_path / "shallow.png"], exact=True)
    assert torch.equal(deep.logits, plain.logits)


@pytest.mark.parametrize("views", ["center", "flip", "ten"])
def test_batches_and_devices_see_the_same(network, views, tmp_path):
    Image.fromarray(picture(7, 80, 90)).save(tmp_path / "a.jpg")
    Image.fromarray(see_through(8, 70, 60)).save(tmp_path / "b.png")
    paths = [tmp_path / "a.jpg", tmp_path / "b.png"] * 3
    one = [row.logits for path in paths for row in predict(network, path, exact=True, views=views)]
    many = [row.logits for row in predict(network, paths, batch=4, exact=True, views=views)]
    torch.testing.assert_close(torch.stack(many), torch.stack(one))
    if views != "ten":
        there = [row.logits for row in predict(network, paths, resize="device", views=views)]
        torch.testing.assert_close(torch.stack(there), torch.stack(one), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("two_channels", r"input has 2 channels; expected images of 1 \(grey\), 3 \(RGB\) or 4 \(RGBA\) channels"),
        ("five_channels", "its model's input has 5 channels"),
        (
            "dense_on_rows",
            "without channels, and rows reads it; only Flatten, and Reshape to 20x28 pixels of one channel",
        ),
    ],
)
def test_other_inputs_are_refused(keras3_channels, name, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        convert(keras3_channels / f"{name}.keras", tmp_path / "out.safetensors", preprocessing="unit", isolated=False)


@pytest.mark.slow
def test_what_preprocessing_a_grey_model_can_have_is_said(keras3_channels, tmp_path):
    def refused(preprocessing: str | None, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            convert(
                keras3_channels / "grey.keras", tmp_path / "out.safetensors", preprocessing=preprocessing,
                isolated=False,
            )  # fmt: skip

    refused(None, "one of keras-tf, keras-tf-aspect, unit, efficientnet-lite$")
    refused(
        "torchvision", "torchvision has numbers for three colours, but the images have one channel; known for these"
    )
    rule = {"size": 28, "resize_rule": "stretch", "interpolation": "nearest", "channels": "rgb", "mean": [0, 0, 0]}
    (tmp_path / "rule.json").write_text(json.dumps(rule))
    refused(str(tmp_path / "rule.json"), "has the channels rgb, but the network's input has one")
    rule |= {"channels": "grey", "mean": [33.3], "std": [78.6]}
    (tmp_path / "rule.json").write_text(json.dumps(rule))
    report = convert(
        keras3_channels / "grey.keras", tmp_path / "out.safetensors", preprocessing=str(tmp_path / "rule.json"),
        proof=True, isolated=False,
    )  # fmt: skip
    assert report.card.preprocessing.std == (78.6,)
    assert "pictures are read as grey, since the model's input has one channel" in report.choices


@pytest.fixture
def pictures(tmp_path) -> list[str]:
    """A photograph, larger than JPEG's smallest scale, and a picture with transparency."""
    Image.fromarray(picture(9, 150, 130)).save(tmp_path / "a.jpg")
    Image.fromarray(see_through(10, 70, 90)).save(tmp_path / "b.png")
    return [str(tmp_path / "a.jpg"), str(tmp_path / "b.png")]


def as_seen(path: str, network) -> Image.Image:
    """A picture in Pillow's mode of the network's channels."""
    return Image.open(path).convert("L" if network.channels == 1 else "RGBA")


@pytest.mark.filterwarnings("ignore:.*partly transparent")
def test_maps_of_whole_pictures_of_rows_and_of_folders_agree(network, pictures, tmp_path):
    """Each cell is the head on its own window of the resized picture."""
    for path in pictures:
        found = heatmap(network, path, "b", longest_side=80, max_memory=None)
        blocks = heatmap(network, path, "b", longest_side=80, max_memory="150kB")
        np.testing.assert_allclose(blocks.values, found.values, atol=1e-6)
        image = as_seen(path, network)
        assert found.picture.shape == (image.height, image.width, 3 if network.channels == 1 else 4)
        size = (round(image.width * 80 / max(image.size)), round(image.height * 80 / max(image.size)))
        small = np.atleast_3d(np.asarray(image.resize(size, Image.Resampling.BILINEAR)))
        inputs = torch.from_numpy(normalize(small, network.card.preprocessing))[None]
        with torch.no_grad():
            cells = network.features(inputs)
            [wanted] = network.head(cells[:, :, 1:9, 2:10]).softmax(1)
        assert abs(found.values[1, 2] - wanted[1]) < 1e-5
    rows = list(heatmap_each(network, pictures, "b", longest_side=80, exact=True))
    assert [row.error for row in rows] == [None, None]
    np.testing.assert_allclose(rows[1].maps[0].values, found.values, atol=1e-6)
    alike = [np.asarray(as_seen(pictures[1], network).resize((80, 62))), pictures[1]]  # one needs no resizing
    assert [row.error for row in heatmap_each(network, alike, "b", longest_side=80)] == [None, None]
    drawn = np.asarray(found.draw())[:70]
    if network.channels == 4:  # what is transparent is drawn on white
        pale = see_through(10, 70, 90)[..., 3] == 0
        assert drawn[pale].mean() > drawn[~pale].mean() + 20


def test_large_pictures_are_read_by_rows(network, tmp_path, monkeypatch):
    """A memory map and a TIFF file are resized and mapped as the same picture in memory."""
    pixels = see_through(11, 300, 200)[..., : 4 if network.channels == 4 else 3]
    wanted = heatmap(network, pixels, "c", longest_side=120)
    mapped = np.memmap(tmp_path / "pixels", np.uint8, "w+", shape=pixels.shape)
    mapped[:] = pixels
    found = heatmap(network, mapped, "c", longest_side=120)
    np.testing.assert_allclose(found.values, wanted.values, atol=1e-6)
    pytest.importorskip("tifffile")
    Image.fromarray(pixels).save(tmp_path / "large.tif", compression="tiff_deflate")
    monkeypatch.setattr(sources, "STREAMED_PIXELS", 1000)
    streamed = heatmap(network, tmp_path / "large.tif", "c", longest_side=120)
    np.testing.assert_allclose(streamed.values, wanted.values, atol=1e-6)
    assert (wanted.picture.shape, streamed.picture.shape) == (pixels.shape, (300, 200, 3))


def test_a_channel_axis_of_a_grey_array_is_read_by_rows(tmp_path):
    network = densify(small(1), 32, preprocessing=general("unit", 32, 1), classes=[*"abcde"])
    pixels = picture(12, 90, 70)[..., :1]
    mapped = np.memmap(tmp_path / "pixels", np.uint8, "w+", shape=pixels.shape)
    mapped[:] = pixels
    assert np.array_equal(heatmap(network, mapped, "c").values, heatmap(network, pixels[..., 0], "c").values)


@pytest.mark.filterwarnings("ignore:.*(partly transparent|no cell supports)")
def test_explanations_are_drawn_over_the_picture(network, pictures, tmp_path):
    for path in pictures:
        cam = gradcam(network, path, "a")
        assert cam.picture.shape[:2] == as_seen(path, network).size[::-1]
        faithful = measure_faithfulness(network, cam, steps=2)
        [prediction] = [each for each in classify(network, path)[0] if each.words == "a"]
        assert abs(faithful.probability - prediction.probability) < 1e-5  # it sees the picture as `classify` does
        cam.save(tmp_path / "cam.png")
        explain(network, path).save(tmp_path / "page.html")
        [grid] = activation_grids(network, path, "features.1", channels=2)
        seen = shown(
            center_crop(decode(path, AS_IS.for_rule(network.card.preprocessing)).pixels, network.card.preprocessing)
        )
        assert np.array_equal(grid.picture, seen)
        save_grids([grid], tmp_path / "grids.png")
    found = top_patches(network, pictures, "features.0", channels=[0], longest_side=100)
    assert [patch.pixels.shape for patch in found.patches[0]] == [(3, 3, 3)] * 2
    if network.channels == 1:  # as the network sees it
        assert all(np.ptp(patch.pixels, axis=2).max() == 0 for patch in found.patches[0])


@pytest.mark.parametrize("form", ["fourier", "plain"])
def test_patterns_have_the_networks_channels(network, form):
    found = filter_patterns(network, "features.0", [0, 1], form=form, steps=12, size=24)
    assert found.pictures.shape == (2, 24, 24, 1 if network.channels == 1 else 3)
    assert found.excited.all()
    inputs = (
        found.pictures[0] if network.channels == 1 else np.dstack([found.pictures[0], np.full((24, 24), 255, "u1")])
    )
    with torch.no_grad():
        first: Any = network.features.get_submodule("0")
        output = first(torch.from_numpy(normalize(inputs, network.card.preprocessing))[None])
    assert abs(float(output[0, 0].mean()) - found.after[0]) < 1e-4
    assert found.draw().mode == "RGB"


def test_first_kernels_are_drawn_of_grey_but_not_of_four_channels():
    network = densify(small(1), 32, preprocessing=general("efficientnet-lite", 32, 1), classes=[*"abcde"])
    found = first_kernels(network)
    assert found.weights.shape == (8, 3, 3, 1)
    assert found.pictures.shape == (8, 3, 3, 3)
    weight = network.state_dict()["features.0.weight"].numpy()
    np.testing.assert_allclose(found.weights[..., 0], weight[:, 0] / 128, rtol=1e-6)
    other = densify(small(4), 32, preprocessing=general("unit", 32, 4), classes=[*"abcde"])
    with pytest.raises(ValueError, match="takes 4 channels, not RGB or grey"):
        first_kernels(other)


def test_augmentation_keeps_the_channels(network):
    rule = network.card.preprocessing
    image = Image.fromarray(see_through(13, 60, 50)) if network.channels == 4 else Image.fromarray(picture(13, 60, 50))
    plain = view(image, rule, augmentation("none"), (0, 0, 0))
    assert np.array_equal(plain.permute(1, 2, 0).numpy(), crop_image(image, rule))
    strong = [view(image, rule, augmentation("strong"), (0, 0, n)) for n in range(8)]
    assert {tuple(each.shape) for each in strong} == {(network.channels, 32, 32)}
    [flipped] = {tuple(view(image, rule, Augmentation(flip=1.0), (0, 0, n)).flip(2).flatten().tolist()) for n in (0, 1)}
    assert flipped == tuple(plain.flatten().tolist())
    photos = [Photo(image, "one"), Photo(image, "two")]
    assert view_sheet(photos, rule, augmentation("strong"), views=2, mixing=("mixup", 1.0)).mode == "RGB"
    if network.channels == 1:
        view(image, rule, replace(augmentation("light"), randaugment=9), (0, 0, 1))
    else:
        with pytest.raises(ValueError, match="RandAugment has no form for images of four channels"):
            view(image, rule, replace(augmentation("light"), randaugment=9), (0, 0, 1))


def test_tints_change_colours_and_leave_opacity():
    image, rule = Image.fromarray(see_through(14, 40, 40)), general("unit", 32, 4)
    tinted = view(image, rule, Augmentation(tint=0.5, blur=1.5), (0, 0, 1))
    plain = crop_image(image, rule)
    assert np.array_equal(tinted[3].numpy(), plain[..., 3])
    assert not np.array_equal(tinted[:3].permute(1, 2, 0).numpy(), plain[..., :3])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grey", "rgba"])
def test_a_converted_network_trains_exports_and_is_searched(keras3_channels, name, tmp_path):
    convert(keras3_channels / f"{name}.keras", tmp_path / "out.safetensors", preprocessing="keras-tf", isolated=False)
    network = load(tmp_path / "out.safetensors")
    count, (height, width) = network.channels, network.size
    for number in range(12):  # two classes that only opacity, or brightness, tells apart
        for part, label in (("train", number % 2), ("val", number % 2)):
            folder = tmp_path / "data" / part / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = picture(number + 50 * (part == "val"), 50, 60)
            opaque = np.full((50, 60), (90, 250)[label], np.uint8)
            pixels = np.dstack([pixels, opaque]) if count == 4 else pixels // 4 + 160 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    trained = finetune(
        network, find_dataset(tmp_path / "data"), tmp_path / "trained.safetensors",
        Settings(epochs=1, batch=4, unfreeze="features", seed=1), cache=tmp_path / "vectors", allow_leaks=True,
    )  # fmt: skip
    rows = list(predict(trained.network, sorted((tmp_path / "data" / "val").rglob("*.png"))))
    assert [int(row.logits.argmax()) for row in rows] == [0] * 6 + [1] * 6
    exported = export(network, tmp_path / "out.onnx", with_preprocessing=True)
    assert exported.images == ("batch", height, width, count)
    assert exported.difference < 1e-5
    images = torch.randn(2, count, height, width)
    with torch.no_grad():
        torch.testing.assert_close(engine(network, precision="float32")(images), network(images), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(prepare(network, precision="float32")(images), network(images), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=rf"this engine takes \(N, {count}, {height}, {width}\)"):
        engine(network)(torch.zeros(1, 3, height, width))
    with pytest.raises(ValueError, match="the network is graph, but only conversions of alexnet"):
        diagnose(network, [tmp_path / "data/val/class0/0.png"], "class 0")

"""Classifying real photographs with real weights."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from convnets_torch.heatmaps.api import heatmap
from convnets_torch.images.decoding import PictureWarning, read_picture
from convnets_torch.images.preprocessing import center_crop, normalize
from convnets_torch.inference.classification import classify, square_input
from convnets_torch.weights import load
from convnets_torch.wordnet import synsets

CATS = set(range(281, 286))  # the domestic ones


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("coffee.png", {synsets.find("espresso").class_ids[0]}),
        ("chelsea.png", CATS),
        ("motorcycle_left.png", {synsets.find("moped").class_ids[0]}),
        ("rocket.jpg", {657}),  # missile, n03773504
    ],
)
def test_efficientnet_lite0_knows_what_is_in_the_photographs(name, expected, network, photographs):
    [[best, *rest]] = classify(network, photographs / name)
    assert best.class_id in expected
    assert best.wnid == synsets.wnid(best.class_id)
    assert best.words == synsets.words(best.class_id)
    assert len(rest) == 4
    assert best.probability >= rest[0].probability >= rest[-1].probability > 0


def test_it_is_less_sure_with_the_normalisation_that_its_package_shows(network, photographs):
    """The package's README has ImageNet's mean and deviation; the network was trained on (x - 127) / 128."""
    with_card = classify(network, photographs / "coffee.png", top=1)[0][0]
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    wrong = replace(network.card.preprocessing, scale=1 / 255, mean=mean, std=std)
    pixels = center_crop(read_picture(photographs / "coffee.png"), wrong)
    with torch.inference_mode():
        answer = network(torch.from_numpy(normalize(pixels, wrong))[None]).softmax(1)
    assert with_card.probability > answer[0, with_card.class_id] + 0.1


def test_the_rotation_of_a_camera_is_followed_where_the_card_says_so(lite_weights, photographs, tmp_path):
    """A picture stored on its side and marked so is the upright picture; without the mark it is another one."""
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(photographs / "rocket.jpg") as image:
        image.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
        image.save(tmp_path / "upright.png")
    network = load(lite_weights)
    assert classify(network, tmp_path / "turned.png") == classify(network, tmp_path / "upright.png")
    found = heatmap(network, tmp_path / "turned.png", "rocket")
    np.testing.assert_array_equal(found.picture, read_picture(tmp_path / "upright.png"))
    network.card = replace(network.card, preprocessing=replace(network.card.preprocessing, exif=False))
    ignored = r"turned\.png is turned or mirrored in its file, and the rotation noted there \(EXIF\) not followed"
    with pytest.warns(PictureWarning, match=ignored):
        assert classify(network, tmp_path / "turned.png") != classify(network, tmp_path / "upright.png")
    with pytest.warns(PictureWarning, match=ignored):
        assert heatmap(network, tmp_path / "turned.png", "rocket").picture.shape == (640, 427, 3)


def test_sigmoid_outputs_are_each_by_itself(lite_weights, photographs):
    network = load(lite_weights)
    pixels = photographs / "coffee.png"
    with torch.inference_mode():
        logits = network(torch.from_numpy(square_input(read_picture(pixels), network.card))[None])[0]
    network.card = replace(network.card, activation="sigmoid")
    [[best, *_]] = classify(network, pixels)
    assert best.probability == pytest.approx(1 / (1 + np.exp(-logits.max().item())), rel=1e-5)
    with pytest.raises(ValueError, match="118 classes, whose sigmoids do not add up; name one class"):
        heatmap(network, pixels, "dog")
    network.card = replace(network.card, activation="none")
    with pytest.raises(ValueError, match="outputs are not probabilities"):
        classify(network, pixels)


def test_order_is_kept_and_batches_do_not_matter(network, photographs):
    names = ["coffee.png", "rocket.jpg", "chelsea.png"] * 6  # more than one batch
    together = classify(network, (photographs / name for name in names), top=3)
    alone = [classify(network, photographs / name, top=3)[0] for name in names[:3]]
    assert len(together) == 18
    for many, one in zip(together[-3:], alone, strict=True):
        assert [entry.class_id for entry in many] == [entry.class_id for entry in one]
        np.testing.assert_allclose(
            [entry.probability for entry in many], [entry.probability for entry in one], rtol=1e-4, atol=1e-6
        )


def test_files_images_and_arrays_get_the_same_answer(network, photographs):
    path = photographs / "chelsea.png"
    image = Image.open(path)
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    pictures = (path, str(path), image, array, array.astype(float), tensor, io.BytesIO(path.read_bytes()), [path])
    answers = [classify(network, picture) for picture in pictures]
    assert all(answer == answers[0] for answer in answers)


def test_probabilities_of_all_classes_sum_to_one(network, photographs):
    [predictions] = classify(network, photographs / "coffee.png", top=1000)
    assert sum(entry.probability for entry in predictions) == pytest.approx(1, abs=1e-5)
    assert sorted(entry.class_id for entry in predictions) == list(range(1000))


@pytest.mark.parametrize("only", ["dog", "dog - hunting dog + wolf", 285])
def test_only_leaves_out_the_other_classes_and_changes_no_probability(only, network, photographs):
    names = [photographs / "chelsea.png", photographs / "coffee.png"]
    kept = set(synsets.class_ids(only))
    for every, some in zip(
        classify(network, names, top=1000), classify(network, names, top=1000, only=only), strict=True
    ):
        assert some == [entry for entry in every if entry.class_id in kept]
        assert len(some) == len(kept)
    assert [len(some) for some in classify(network, names, top=3, only="dog")] == [3, 3]
    with pytest.raises(ValueError, match="unknown word 'doog'"):
        classify(network, names, only="doog")


@pytest.mark.filterwarnings("ignore::convnets_torch.inference.prepare.RuntimeRemark")  # not every processor has it
def test_half_precision_answers_nearly_the_same(lite_weights, network, photographs):
    [[exact, *_]] = classify(network, photographs / "coffee.png")
    [[rough, *_]] = classify(load(lite_weights, precision="bfloat16"), photographs / "coffee.png")
    assert rough.class_id == exact.class_id
    assert rough.probability == pytest.approx(exact.probability, abs=0.05)


def test_what_cannot_be_answered_is_refused(lite_weights, photographs):
    network = load(lite_weights)
    network.head[-1] = torch.nn.Linear(1280, 3).eval()
    with pytest.raises(ValueError, match=r"has 3 outputs, its card 1000 classes; set network\.card"):
        classify(network, photographs / "coffee.png")
    network = load(lite_weights)
    network.get_parameter("head.fc.bias").data[3] = torch.nan
    with pytest.raises(ValueError, match="outputs are NaN or infinite"):
        classify(network, photographs / "coffee.png")
    network = load(lite_weights)
    assert len(classify(network, photographs / "coffee.png", top=2000)[0]) == 1000  # all of fewer
    with pytest.raises(ValueError, match="top is 0; give 1 or more"):
        classify(network, photographs / "coffee.png", top=0)
    network.card = None
    with pytest.raises(ValueError, match="has no card"):
        classify(network, photographs / "coffee.png")


def test_classify_warns_of_what_each_remarks_and_stops_at_the_first_bad_picture(network, photographs, tmp_path):
    moving, frame = tmp_path / "moving.gif", Image.new("RGB", (2, 2), "red")
    Image.new("RGB", (2, 2)).save(moving, save_all=True, append_images=[frame])
    with pytest.warns(PictureWarning, match="the first was read"):
        [[entry]] = classify(network, moving, top=1)
    assert entry.probability > 0
    with pytest.raises(FileNotFoundError, match="none-0"):
        classify(network, [photographs / "coffee.png", tmp_path / "none-0.jpg", tmp_path / "none-1.jpg"])


def test_one_image_may_stand_in_a_list_many_times(network, photographs):
    """Opened but not decoded: two threads that decode it at once break it."""
    with Image.open(photographs / "rocket.jpg") as image:
        answers = classify(network, [image] * 12, top=1)
    assert {answer[0].class_id for answer in answers} == {657}

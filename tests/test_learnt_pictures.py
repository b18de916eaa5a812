"""Pictures that a network was trained on are recognised when it is evaluated on them."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from convnets_torch import load
from convnets_torch.card import DIGESTS, MOST, MOST_CARD, Card, find_learnt, read_card, with_learnt
from convnets_torch.evaluation.evaluate import evaluate
from convnets_torch.evaluation.labels import find_truth
from convnets_torch.images.preprocessing import preset
from convnets_torch.training.datasets import find_dataset
from convnets_torch.training.finetuning import finetune
from convnets_torch.weights import save
from tests.finetuned import QUICK, draw_pictures, small_resnet

CARD = Card("vgg16", {"classes": 2}, preset("vgg16"), ("ant", "bee"))


def digests(numbers):
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in numbers]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """Pictures, and weights that learnt from some of them."""
    folder = tmp_path_factory.mktemp("tuned")
    data = draw_pictures(folder / "data")
    output = folder / "mine.safetensors"
    settings = replace(QUICK, epochs=0)
    finetune(small_resnet(), find_dataset(data), output, settings, cache=folder / "vectors", allow_leaks=True)
    return data, output


def test_training_pictures_are_told_from_others_wherever_they_lie(tuned, command, tmp_path):
    data, weights = tuned
    code, out, error = command("evaluate", weights, data, "-o", tmp_path / "report")
    assert code == 0
    assert ["in", "training", "24", "of", "30"] in [line.split()[-5:] for line in out.splitlines()]
    assert "the network was trained on 24 of these 30 pictures, so its errors are lower" in error
    assert "the network's best epoch was chosen by 6 of these 30 pictures" in error
    figures = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert figures["learnt_from"] == {"train": 24, "train_checked": 30, "validation": 6, "validation_checked": 30}
    assert "24 of these pictures" in (tmp_path / "report" / "report.html").read_text()
    learnt = {path for path, _ in find_dataset(data).train}
    others = tmp_path / "others"
    for number, path in enumerate(sorted(data.rglob("*.png"))):
        copied = others / path.parent.name / f"renamed{number}.png"
        copied.parent.mkdir(parents=True, exist_ok=True)
        if path in learnt and number % 2:
            shutil.copy(path, copied)
        else:  # the same pixels in another file, which has another content
            Image.open(path).save(copied, compress_level=1)
    network = load(weights)
    found = evaluate(network, find_truth(network.card, others))
    copies = [int(path.stem.removeprefix("renamed")) for path in found.paths]
    wanted = [sorted(data.rglob("*.png"))[number] in learnt and number % 2 == 1 for number in copies]
    assert found.learnt.train.tolist() == wanted
    assert not found.learnt.val.any()


def test_a_probe_and_a_second_training_keep_what_was_learnt_from(tuned, command, tmp_path):
    data, weights = tuned
    code, _, error = command("probe", weights, data, "-o", tmp_path / "probe.safetensors", "--choose", "logistic")
    assert code == 0, error
    _, _, error = command("evaluate", tmp_path / "probe.safetensors", data)
    assert "trained on 30 of these 30 pictures" in error
    other = draw_pictures(tmp_path / "other", 5)
    for path in other.rglob("*.png"):
        Image.open(path).rotate(180).save(path)
    settings = replace(QUICK, epochs=0)
    finetune(load(weights), find_dataset(other), tmp_path / "again.safetensors", settings, allow_leaks=True)
    for pictures, count in ((data, 24), (other, 12)):
        _, _, error = command("evaluate", tmp_path / "again.safetensors", pictures)
        assert f"trained on {count} of these" in error
    _, out, _ = command("info", weights)
    assert max(map(len, out.splitlines())) < 6000


def test_a_network_that_does_not_say_is_not_judged(tuned):
    data, _ = tuned
    network = small_resnet(3)
    network.card = replace(network.card, class_names=("ant", "bee", "cat"))
    found = evaluate(network, find_truth(network.card, data))
    assert found.learnt is None
    assert found.to_dict()["learnt_from"] is None


def test_a_million_pictures_are_a_sample_that_estimates_well():
    started = time.process_time()
    train = digests(range(200_000))
    card = with_learnt(CARD, train, digests(range(200_000, 201_000)))
    text = card.to_json()
    assert len(text) < 8 * (MOST["train"] + 1000) + 3000 < MOST_CARD
    assert Card.from_json(text) == card
    found = find_learnt(card, [*digests(range(100_000, 104_000)), *digests(range(300_000, 304_000)), None])
    assert not found.train[4000:].any()
    assert found.val_checked == 8000
    share = found.train.sum() / found.train_checked
    assert found.train_checked == pytest.approx(8000 * MOST["train"] / 200_000, rel=0.1)  # five deviations
    assert share == pytest.approx(0.5, abs=0.07)
    assert f"on some {share:.0%}" in found.notes[0]
    assert time.process_time() - started < 10


def test_the_sample_of_two_trainings_is_that_of_both_at_once():
    one, other = digests(range(40_000)), digests(range(30_000, 75_000))
    assert with_learnt(with_learnt(CARD, one), other) == with_learnt(CARD, [*other, *one])


def test_all_digests_and_the_names_of_many_classes_fit(tmp_path):
    network = small_resnet(3)
    network.card = with_learnt(network.card, digests(range(100_000)), digests(range(100_000, 120_000)))
    save(network, tmp_path / "large.safetensors")
    assert read_card(tmp_path / "large.safetensors") == network.card
    assert find_learnt(load(tmp_path / "large.safetensors").card, []).train.shape == (0,)


@pytest.mark.parametrize("damaged", ["abc", {"train": "AAAA"}, {"train": "AAAA", "val": ""}, {"train": 3, "val": ""}])
def test_damaged_digests_are_remarked_on_and_stop_nothing(tuned, damaged):
    data, weights = tuned
    network = load(weights)
    network.card = replace(network.card, unknown={DIGESTS: damaged})
    found = evaluate(network, find_truth(network.card, data))
    assert found.learnt is None
    assert any("digests of training pictures are damaged" in note for note in found.notes)


def test_digests_are_compared_whole():
    one = digests([1])[0]
    near = f"{int(one[:12], 16) ^ 1:012x}{one[12:]}"
    other = one[:12] + "0" * 52
    found = find_learnt(with_learnt(CARD, [one]), [near, other])
    assert found.train.tolist() == [False, True]  # what lies behind the sixth byte is not kept
    np.testing.assert_array_equal(found.val, False)

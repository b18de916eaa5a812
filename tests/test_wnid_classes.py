"""A user's own classes with wnids: the same targets, answers and weights of mistakes as ImageNet's."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from convnets_torch.card import Card
from convnets_torch.images.preprocessing import preset
from convnets_torch.training.datasets import find_dataset
from convnets_torch.training.finetuning import finetune
from convnets_torch.wordnet import synsets
from convnets_torch.wordnet.hierarchy import back_off, check_backoff, distances, measure_severity, tree_order
from convnets_torch.wordnet.targets import class_keys, class_name, class_wnid, find_target, tree_wnids
from tests.finetuned import QUICK, draw_pictures, small_resnet
from tests.test_ground_truth import IMAGENET

SHUFFLED = np.random.default_rng(0).permutation(1000)  # own class id -> ImageNet's
FORMS = ("{}", "{} {}", "{}_{}", "{}-{}", "{}: {}")


def card_of(*names, activation="softmax"):
    return Card("vgg16", {"classes": len(names)}, preset("vgg16"), names, activation)


@pytest.fixture(scope="module")
def shuffled():
    """ImageNet's classes under names of a user's own, in another order."""
    names = [FORMS[place % 5].format(synsets.wnid(each), f"w{place}") for place, each in enumerate(SHUFFLED)]
    return card_of(*names)


@pytest.mark.parametrize("target", ["dog", "n02121808", "vehicle - car + n02084071", "tench, Tinca tinca", "dog.n.01"])
def test_targets_are_those_of_imagenet_in_another_order(shuffled, target):
    found, wanted = find_target(shuffled, target), find_target(IMAGENET, target)
    assert {SHUFFLED[each] for each in found.class_ids} == {*wanted.class_ids}
    assert list(found.class_ids) == sorted(found.class_ids)
    assert (found.label, found.wnid) == (wanted.label, wanted.wnid)


def test_backing_off_and_severity_are_those_of_imagenet_in_another_order(shuffled):
    check_backoff(shuffled, 0.5)
    random = np.random.default_rng(1)
    tree = tree_wnids(shuffled)
    for threshold in (0.3, 0.6, 0.9):
        logits = random.normal(size=1000) * 3
        chances = np.exp(logits) / np.exp(logits).sum()
        answer, wanted_answer = back_off(chances[SHUFFLED], threshold, tree), back_off(chances, threshold)
        assert (answer.wnid, answer.text) == (wanted_answer.wnid, wanted_answer.text)
    best = np.stack([random.permutation(1000)[:10] for _ in range(50)])
    labels = np.where(np.arange(50) % 2, best[:, 0], random.integers(0, 1000, 50))
    own = np.argsort(SHUFFLED)
    found, wanted = measure_severity(own[best], own[labels], tree), measure_severity(best, labels)
    assert {**found.to_dict(), "frequent_ancestors": 0} == {**wanted.to_dict(), "frequent_ancestors": 0}
    order, groups = tree_order(tree)
    assert [SHUFFLED[each] for each in order] == list(tree_order(synsets.wnids())[0])
    assert groups == tree_order(synsets.wnids())[1]


def test_names_hold_wnids_beside_words():
    card = card_of("n02123045", "n02123159 tiger cat", "n02085620-Chihuahua", "n00000000 gnome", "n021231590", "Newt")
    assert [class_wnid(card, each) for each in range(6)] == [
        "n02123045", "n02123159", "n02085620", "n00000000", None, None,
    ]  # fmt: skip
    assert [class_name(card, each) for each in range(6)] == [
        "tabby, tabby cat", "tiger cat", "Chihuahua", "gnome", "n021231590", "Newt",
    ]  # fmt: skip
    meant: dict[str | int, tuple[int, ...]] = {
        "cat": (0, 1), "animal": (0, 1, 2), "domestic cat - tabby": (1,), "n00000000": (3,), "gnome + Newt": (3, 5),
        "n02123159 tiger cat": (1,), "tiger cat": (1,), 4: (4,), "5": (5,), "Newt": (5,),
    }  # fmt: skip
    for target, ids in meant.items():
        assert find_target(card, target).class_ids == ids, target
    for target, words in {
        "newt": "none of them is under newt, triton",  # as WordNet knows it
        "gnomes": "no synset above them: unknown word 'gnomes'",
        "crane": "'crane' has several meanings",
        "281": "'281' is not one of the 6 classes",  # no class id of ImageNet's
    }.items():
        with pytest.raises(ValueError, match=words):
            find_target(card, target)
    assert tree_wnids(card) is None
    with pytest.raises(ValueError, match=r"3 of the network's 6 classes \(gnome\) have no place in the WordNet tree"):
        check_backoff(card, 0.5)
    keys = class_keys(card)
    assert (keys["n02123159"], keys["n02123159 tiger cat"], keys["tiger cat"], keys["Newt"]) == (1, 1, 1, 5)
    assert class_keys(card_of("n02123159 a", "n02123159 b"))["n02123159"] == -1


def test_a_class_may_lie_above_another():
    card = card_of("n02084071", "n02088364", "n02121620")  # dog, beagle, cat
    assert find_target(card, "dog").class_ids == (0, 1)
    assert find_target(card, "n02084071").class_ids == (0,)  # its own name, letter by letter
    tree = tree_wnids(card)
    answer = back_off([0.3, 0.4, 0.3], 0.6, tree)
    assert (answer.wnid, answer.text) == ("n02084071", "dog 0.70 > beagle 0.40")
    found = distances(tree)
    assert found.ancestor(0, 1).wnid == "n02084071"
    assert (found.steps[0, 1], found.steps[1, 0]) == (0, synsets.find("beagle").depth - synsets.find("dog").depth)
    assert found.heights[0, 2] == distances().heights[207, 281]


def test_a_network_that_learnt_wnid_folders_knows_the_tree(command, tmp_path):
    wnids = {"ant": "n02123159", "bee": "n02123045 my tabby", "cat": "n02088364"}  # two cats and a beagle
    data = draw_pictures(tmp_path / "colors", 8)
    for name, wnid in wnids.items():
        (data / name).rename(data / wnid)
    weights = tmp_path / "wnids.safetensors"
    finetune(
        small_resnet(), find_dataset(data), weights, replace(QUICK, epochs=0), cache=tmp_path / "v", allow_leaks=True
    )
    picture = data / "n02088364" / "0.png"
    code, out, error = command("classify", weights, picture, "--target", "cat", "--json")
    assert code == 0, error
    listed = json.loads(out)["predictions"]
    assert {(each["wnid"], each["words"]) for each in listed} == {("n02123159", "tiger cat"), ("n02123045", "my tabby")}
    code, out, error = command("classify", weights, picture, "--backoff", 0.99)
    assert code == 0, error
    assert "n02075296" in out or "n02088364" in out  # carnivore, or the dog
    code, _, error = command("heatmap", weights, picture, "--target", "domestic cat", "-o", tmp_path / "map.png")
    assert code == 0, error
    for rename in ("n02123045 my tabby", "n02123045", "my tabby"):  # the class's name, its wnid, its words
        [folder] = {*data.iterdir()} - {data / "n02123159", data / "n02088364"}
        folder.rename(data / rename)
        code, out, error = command("evaluate", weights, data, "--json")
        assert code == 0, error
        figures = json.loads(out)
        assert [each["wnid"] for each in figures["by_class"]] == ["n02088364", "n02123045", "n02123159"]
        assert figures["severity"]["pictures"] == 24

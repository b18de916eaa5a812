"""Mistakes and their weight against plain loops over the synset tree."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch

from convnets_torch.card import Card
from convnets_torch.evaluation.metrics import confusion, find_mistakes, most_confused_pairs
from convnets_torch.images.preprocessing import preset
from convnets_torch.wordnet import synsets
from convnets_torch.wordnet.hierarchy import distances, measure_severity
from tests.test_ground_truth import IMAGENET

OWN = Card("vgg16", {"classes": 4}, preset("vgg16"), ("ant", "bee", "cat", "dog"))


def height(wnid):
    """Steps down to a class, by the longest path."""
    children = synsets.find(wnid).children
    return 1 + max(map(height, children)) if children else 0


def test_every_pair_meets_where_common_ancestor_says():
    found = distances()
    random = np.random.default_rng(0)
    pairs = [(491, 696), (696, 740), (403, 895), (833, 895)]  # several ancestors are the deepest, over unequal numbers
    pairs += [(134, 517), (281, 281), (0, 999), *random.integers(0, 1000, (150, 2)).tolist()]
    pairs += [(one, one + 1) for one in random.integers(0, 999, 100).tolist()]  # which meet low
    heights = {}
    for one, other in pairs:
        ancestor = synsets.common_ancestor(one, other)
        assert found.ancestor(one, other) == ancestor
        assert found.ancestor(other, one) == ancestor
        assert found.steps[one, other] == synsets.find(one).depth - ancestor.depth
        if ancestor.wnid not in heights:
            heights[ancestor.wnid] = height(ancestor.wnid)
        assert found.heights[one, other] == heights[ancestor.wnid]
    assert len(heights) > 40


def test_the_distances_are_a_hierarchy():
    found = distances()
    off = ~np.eye(1000, dtype=bool)
    assert (found.heights.diagonal() == 0).all()
    assert (found.steps.diagonal() == 0).all()
    assert found.heights[off].min() == 1
    assert found.steps[off].min() == 1  # no class lies above another
    assert (found.heights == found.heights.T).all()
    assert (found.steps <= found.heights[0].max()).all()
    assert found.heights.max() == synsets.find("entity").depth + height(synsets.ENTITY)


def test_all_pairs_take_less_than_a_second():
    started = time.process_time()
    distances.__wrapped__()
    assert time.process_time() - started < 1


def test_the_severity_is_that_of_plain_loops():
    random = np.random.default_rng(1)
    labels = random.integers(0, 1000, 60)
    best = np.stack([random.permutation(1000)[:7] for _ in labels])
    best[:25, 0] = labels[:25]
    best[25:40, 2] = labels[25:40]
    found = measure_severity(best, labels)
    table = distances().heights.astype(int)
    every = [[table[truth, answer] for answer in row] for truth, row in zip(labels, best, strict=True)]
    wrong = [(truth, row[0]) for truth, row in zip(labels, best, strict=True) if truth != row[0]]
    assert (found.pictures, found.mistakes) == (60, len(wrong))
    assert found.height == pytest.approx(np.mean([table[pair] for pair in wrong]))
    ups = [synsets.find(one).depth - synsets.common_ancestor(one, other).depth for one, other in wrong]
    assert found.steps == pytest.approx(np.mean(ups))
    assert list(found.of_best) == [1, 5]
    assert found.of_best[5] == pytest.approx(np.mean([row[:5] for row in every]))
    assert found.least_cost[5] == pytest.approx(np.mean([min(row[:5]) for row in every]) / 18)
    assert found.heights.tolist() == [sum(table[pair] == high for pair in wrong) for high in range(19)]
    wnid, words, count = found.frequent[0]
    assert count == max(sum(each == wnid for each in meets(wrong)) for wnid in set(meets(wrong)))
    assert words == synsets.find(wnid).label
    assert json.loads(json.dumps(found.to_dict()))["mistakes_by_height"] == found.heights.tolist()


def meets(pairs):
    return [synsets.common_ancestor(*pair).wnid for pair in pairs]


def test_a_network_without_mistakes_has_no_mean_height():
    found = measure_severity(np.array([3, 5]), np.array([3, 5]))
    assert (found.mistakes, found.height, found.steps, found.of_best, found.frequent) == (0, None, None, {1: 0.0}, ())
    assert found.heights.sum() == 0
    with pytest.raises(ValueError, match="class ids go from 3 to 1000"):
        measure_severity(np.array([3, 5]), np.array([3, 1000]))
    with pytest.raises(ValueError, match=r"answers are \(2, 3\) and labels \(3,\)"):
        measure_severity(np.zeros((2, 3), int), np.zeros(3, int))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_the_worst_and_the_most_confident_mistakes_are_those_of_a_plain_sort(activation, monkeypatch):
    monkeypatch.setattr("convnets_torch.evaluation.calibration.VALUES", 40)  # ten rows a block
    card = Card("vgg16", {"classes": 4}, OWN.preprocessing, OWN.class_names, activation)
    random = np.random.default_rng(2)
    logits = random.normal(size=(90, 4)).astype(np.float32) * 3
    labels = random.integers(0, 4, 90)
    paths = [f"{row:02}.jpg" for row in range(90)]
    values = torch.from_numpy(logits).double()
    chances = (values.softmax(1) if activation == "softmax" else values.sigmoid()).numpy()
    wrong = [row for row in range(90) if chances[row].argmax() != labels[row]]
    found = find_mistakes(logits, labels, paths, card, most=11)
    assert found.count == len(wrong) > 20
    assert [each.row for each in found.worst] == sorted(wrong, key=lambda row: chances[row, labels[row]])[:11]
    others = sorted({*wrong} - {each.row for each in found.worst}, key=lambda row: -chances[row].max())
    assert [each.row for each in found.confident] == others[:11]  # no picture is in both
    assert [each.row for each in found.listed] == sorted(wrong, key=lambda row: chances[row, labels[row]])
    monkeypatch.setattr("convnets_torch.evaluation.metrics.LISTED", 15)
    assert find_mistakes(logits, labels, paths, card, most=11).listed == found.listed[:15]
    first = found.confident[0]
    assert first.probability == pytest.approx(chances[first.row].max())
    assert first.of_truth == pytest.approx(chances[first.row, labels[first.row]])
    assert (first.path, first.truth) == (paths[first.row], labels[first.row])
    assert first.given_words == OWN.class_names[chances[first.row].argmax()]
    assert (first.ancestor, first.common) == (None, "")
    assert json.loads(json.dumps(found.to_dict()))["count"] == len(wrong)


def test_equal_mistakes_come_in_the_order_of_the_pictures_and_tiny_probabilities_differ():
    logits = np.tile(np.array([0, 0, 0, 9], np.float32), (6, 1))
    found = find_mistakes(logits, np.array([1, 1, 3, 1, 0, 2]), list("abcdef"), OWN)
    assert [each.path for each in found.worst] == list("abdef")
    few = find_mistakes(logits, np.array([1, 1, 3, 1, 0, 2]), list("abcdef"), OWN, most=2)
    assert [each.path for each in few.confident] == list("de")
    logits[:2, 1] = [-2000, -3000]  # both 0 as a float
    found = find_mistakes(logits, np.array([1, 1, 3, 1, 0, 2]), list("abcdef"), OWN)
    assert [each.path for each in found.worst] == list("badef")
    assert found.worst[0].of_truth == 0
    none = find_mistakes(logits[:1], np.array([3]), ["a"], OWN)
    assert (none.count, none.worst, none.confident, none.listed) == (0, (), (), ())


def test_a_mistake_of_imagenet_says_what_both_are():
    logits = np.zeros((2, 1000), np.float32)
    logits[0, 156], logits[1, 207] = 5, 5
    found = find_mistakes(logits, np.array([151, 281]), ["a.jpg", "b.jpg"], IMAGENET)
    assert [each.common for each in found.worst] == ["both: toy dog, 1 step up", "both: carnivore, 4 steps up"]
    with pytest.raises(ValueError, match="1000 columns, and the card 4 classes"):
        find_mistakes(logits, np.array([1, 2]), ["a", "b"], OWN)
    with pytest.raises(ValueError, match="1 paths for 2 labels"):
        find_mistakes(logits, np.array([1, 2]), ["a"], IMAGENET)


def test_the_most_confused_pairs_come_first():
    labels = np.array([0] * 9 + [1] * 5 + [2] * 9 + [3])
    given = np.array([0] * 6 + [1] * 2 + [3] + [1, 1, 1, 2, 2] + [2] * 7 + [0, 0] + [1])
    counts = confusion(labels, given, 4)
    assert counts.sum() == 24
    assert counts[2, 0] == 2
    found = most_confused_pairs(counts, OWN)
    assert [(pair.truth, pair.given, pair.count) for pair in found] == [
        (1, 2, 2),  # two of five
        (0, 1, 2),
        (2, 0, 2),
        (3, 1, 1),  # one of one
        (0, 3, 1),
    ]
    assert found[0].share == pytest.approx(0.4)
    assert found[0].truth_words == "bee"
    assert most_confused_pairs(counts, OWN, most=2) == found[:2]
    with pytest.raises(ValueError, match=r"confusions are \(4, 4\), and the card has 1000 classes"):
        most_confused_pairs(counts, IMAGENET)

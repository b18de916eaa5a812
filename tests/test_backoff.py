"""Backing off in the WordNet tree: against a plain derivation over all synsets, and what the command prints."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from itertools import pairwise
from math import fsum
from pathlib import Path

import numpy as np
import pytest
import torch

import convnets_torch
from convnets_torch.inference.classification import classify_each
from convnets_torch.wordnet import synsets
from convnets_torch.wordnet.hierarchy import back_off, check_backoff
from tests.test_ground_truth import IMAGENET

TABLE = Path(convnets_torch.__file__).parent / "wordnet" / "data" / "synsets.tsv"
ROWS = [line.split("\t") for line in TABLE.read_text(encoding="ascii").splitlines()[1:]]
PARENTS = {row[0]: row[2].split() for row in ROWS}
OWN_ID = {row[0]: int(row[1]) for row in ROWS if row[1]}


def plain_depth(wnid):
    return max((1 + plain_depth(parent) for parent in PARENTS[wnid]), default=0)


def above(wnid):
    """A synset and everything above it, each once."""
    return {wnid}.union(*map(above, PARENTS[wnid]))


ABOVE = {wnid: above(wnid) for wnid in OWN_ID}
DEPTHS = {wnid: plain_depth(wnid) for wnid in PARENTS}


def plain_answer(probabilities, threshold):
    """The definition, from the table alone: a class counts for each synset above it, once."""
    shares: dict[str, list[float]] = {wnid: [] for wnid in PARENTS}
    for wnid, class_id in OWN_ID.items():
        for each in ABOVE[wnid]:
            shares[each].append(float(probabilities[class_id]))
    sums = {wnid: fsum(values) for wnid, values in shares.items()}
    passing = [wnid for wnid in PARENTS if sums[wnid] >= threshold * sums[synsets.ENTITY]]
    best = min(passing, key=lambda wnid: (-DEPTHS[wnid], -sums[wnid], wnid))
    return best, sums[best] / sums[synsets.ENTITY]


def drawn(seed):
    """Probabilities like a network's: most of them on few classes that are near each other."""
    stream = np.random.default_rng(seed)
    logits = stream.normal(size=1000) * 2
    center = stream.integers(1000)
    logits[max(0, center - 5) : center + 5] += stream.uniform(0, 12)
    return torch.from_numpy(logits).float().softmax(0)


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.8, 0.95])
def test_answers_are_those_of_a_plain_derivation(threshold):
    assert len(PARENTS) == 1860
    found = set()
    for seed in range(20):
        probabilities = drawn(seed)
        wnid, probability = plain_answer(probabilities, threshold)
        answer = back_off(probabilities, threshold)
        assert answer.wnid == wnid
        assert answer.probability == pytest.approx(probability, abs=1e-9)
        assert answer.depth == synsets.find(wnid).depth == DEPTHS[wnid]
        found.add(wnid)
    assert len(found) >= 5


def test_a_higher_threshold_never_gives_a_deeper_answer():
    thresholds = np.linspace(0.01, 1, 34)
    for seed in range(40):
        probabilities = drawn(seed)
        depths = [back_off(probabilities, float(threshold)).depth for threshold in thresholds]
        assert depths == sorted(depths, reverse=True)
        assert depths[0] > depths[-1]


def test_a_threshold_of_one_holds_for_what_float32_cannot_add_up():
    for seed in range(20):
        probabilities = drawn(seed)
        assert back_off(probabilities * 0.9999, 1.0).depth >= 0
        assert back_off(probabilities, 1.0).probability == pytest.approx(1, abs=1e-6)
    flat = torch.full((1000,), 1 / 1000)
    assert back_off(flat, 1.0).wnid == synsets.ENTITY
    cats = np.zeros(1000, np.float32)
    cats[281:286] = [0.1, 0.2, 0.3, 0.3, 0.1]
    assert back_off(cats, 1.0).words.startswith("domestic cat")
    cats[[281, 0]] -= np.array([5e-8, -5e-8], np.float32)  # what float32 does not tell from 1
    assert back_off(cats, 1.0).words.startswith("domestic cat")
    one = np.zeros(1000)
    one[207] = 1
    assert [link.word for link in back_off(one, 1.0).chain] == ["golden retriever"]


def test_a_chain_leads_down_from_what_is_less_than_certain_to_the_most_probable_class():
    for seed in range(40):
        probabilities = drawn(seed)
        answer = back_off(probabilities, 0.6)
        wnids = [link.wnid for link in answer.chain]
        place = wnids.index(answer.wnid)
        assert len(wnids) - place in (1, 2)
        below = synsets.find(answer.wnid).class_ids
        assert synsets.class_ids(wnids[-1]) == [max(below, key=lambda class_id: probabilities[class_id].item())]
        for upper, lower in pairwise(wnids):
            assert upper in synsets.find(lower).ancestors
        values = [link.probability for link in answer.chain]
        assert all(upper >= lower + 0.02 for upper, lower in pairwise(values[: place + 1]))
        assert all(value < 0.995 for value in values[:place])


def test_the_cat_of_the_photograph_is_a_cat(command, lite_weights, photographs):
    code, out, error = command("classify", lite_weights, photographs / "chelsea.png", "--backoff", 0.8, "--top", 2)
    assert (code, error) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("0.920  n02121808  placental 0.94 > domestic cat 0.92 > tiger cat 0.3")
    assert lines[1:] == command("classify", lite_weights, photographs / "chelsea.png", "--top", 2)[1].splitlines()


def test_every_form_has_the_answer(command, lite_weights, photographs, tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    arguments = ["classify", lite_weights, photographs / "chelsea.png", tmp_path / "a.png", "--top", 1]
    arguments += ["--backoff", 0.8]
    code, out, _ = command(*arguments, "--json")
    first, second = map(json.loads, out.splitlines())
    assert code == 1
    assert first["answer"]["wnid"] == "n02121808"
    assert first["answer"]["depth"] == 14
    assert [link["words"] for link in first["answer"]["chain"]][-1] == "tiger cat"
    assert "answer" not in second
    rows = list(csv.DictReader(io.StringIO(command(*arguments, "--csv")[1])))
    assert [(row["rank"], row["wnid"], row["class_id"]) for row in rows] == [
        ("0", "n02121808", ""), ("1", "n02123159", "282"), ("", "", ""),
    ]  # fmt: skip
    assert float(rows[0]["probability"]) == pytest.approx(first["answer"]["probability"], abs=1e-6)
    assert "domestic cat 0.92" in " ".join(command(*arguments, "--table")[1].replace("│", " ").split())


def test_other_networks_and_thresholds_are_refused(command, vgg, lite_weights, tmp_path):
    with pytest.raises(ValueError, match=r"10 of the network's 10 classes \(a\) have no place in the WordNet tree"):
        classify_each(vgg, [], backoff=0.8)
    with pytest.raises(ValueError, match="outputs are sigmoid, which do not add up to 1"):
        check_backoff(replace(IMAGENET, activation="sigmoid"), 0.8)
    for threshold in (0.0, -1.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="give a probability above 0, at most 1"):
            check_backoff(IMAGENET, threshold)
        with pytest.raises(ValueError, match="give a probability above 0, at most 1"):
            back_off(np.full(1000, 0.001), threshold)
    with pytest.raises(ValueError, match=r"probabilities are \(999,\); give one for each of ImageNet's 1000"):
        back_off(np.full(999, 1 / 999), 0.5)
    for numbers in (np.full(1000, 0.5), np.full(1000, np.nan), np.eye(1000)[0] * 2 - np.eye(1000)[1]):
        with pytest.raises(ValueError, match="give the output of a softmax"):
            back_off(numbers, 0.5)
    assert command("classify", lite_weights, tmp_path / "x.png", "--backoff", 1.5)[0] == 2
    assert command("classify", lite_weights, tmp_path / "x.png", "--backoff", 0)[0] == 1

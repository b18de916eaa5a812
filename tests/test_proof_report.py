"""The verdict of a proof: in the card, in `info`, in reports; and that it is not kept where it no longer holds."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from converters import convert, writing
from converters.proof.proof import TOLERANCE, ProofRow
from converters.proof.report import PLACEHOLDER, WRITER, contents, proof_of
from convnets_torch.card import ROUNDING, Card, read_card
from convnets_torch.evaluation.calibration import with_temperature
from convnets_torch.images.preprocessing import preset
from convnets_torch.weights import load, save, with_last_layer
from tests.reference.goldens import DATA

WHOLE = DATA / "keras231/vgg16_last_model.h5"
TOLD: dict[str, Any] = {"preprocessing": "keras-caffe"}
ROWS = (ProofRow("block1_conv1", "features.conv1_1", 2e-16, 3.0), ProofRow("logits", "logits", 4e-15, 8.0))


@pytest.fixture(scope="module")
def proven(tmp_path_factory):
    """A proven file, with both reports beside it."""
    folder = tmp_path_factory.mktemp("proven")
    convert(WHOLE, folder / "out.safetensors", report=folder / "proof.json", **TOLD)
    convert(WHOLE, folder / "out.safetensors", report=folder / "proof.html", **TOLD)
    return folder / "out.safetensors"


def test_the_card_keeps_the_proof_and_info_shows_it(proven, command):
    card = read_card(proven)
    assert (card.proof.layers, card.proof.error, card.proof.worst, card.proof.tolerance) == (
        16,
        ROUNDING,
        "",
        TOLERANCE,
    )
    sentence = (
        "Proven: 16 layers and the output agree with the file's own model, computed independently in NumPy; the largest"
        " error is below 1e-09 of a layer's largest value."
    )
    assert card.proof.verdict == sentence
    assert f"proof verdict                {sentence}" in command("info", proven)[1].splitlines()
    assert json.loads(command("info", proven, "--json")[1])["proof"]["verdict"] == sentence
    assert load(proven).card == card


def test_equal_conversions_are_equal_byte_for_byte_and_a_proof_changes_the_header_alone(proven, tmp_path, command):
    again, plain = tmp_path / "again.safetensors", tmp_path / "plain.safetensors"
    _, printed, _ = command("convert", WHOLE, "-o", again, "--preprocessing", "keras-caffe", "--proof")
    assert read_card(proven).proof.verdict in printed.splitlines()
    assert again.read_bytes() == proven.read_bytes()
    assert convert(WHOLE, plain, **TOLD).verdict is None
    assert "proof" not in json.loads(read_card(plain).to_json())
    assert replace(read_card(proven), proof=None) == read_card(plain)
    for name, array in load_file(plain).items():
        assert torch.equal(array, load_file(proven)[name])


def changed_weight(network):
    network.get_parameter("features.conv1_1.bias").data[0] += 1e-3


def other_type(network):
    network.half()


def other_preprocessing(network):
    network.card = replace(network.card, preprocessing=preset("vgg16", "unit"))


def other_names(network):
    network.card = replace(network.card, class_names=tuple("abcdefg"))


@pytest.mark.parametrize(
    ("change", "kept"),
    [(None, True), (other_names, True), (changed_weight, False), (other_type, False), (other_preprocessing, False)],
)
def test_saving_keeps_the_proof_of_the_very_network_that_was_proven(proven, change, kept, tmp_path):
    network = load(proven)
    if change is not None:
        change(network)
    save(network, tmp_path / "saved.safetensors")
    assert (read_card(tmp_path / "saved.safetensors").proof is not None) is kept


def test_what_is_made_of_a_proven_network_is_not_proven(proven):
    network = load(proven)
    assert network.card.proof is not None
    last = with_last_layer(network, torch.zeros(2, 10), torch.zeros(2), ("a", "b"), "for fun")
    assert last.card.proof is None
    assert with_temperature(network, 2.0).card.proof is None


def test_a_report_keeps_every_layer(proven):
    report = json.loads((proven.parent / "proof.json").read_text())
    assert report["proven"] is True
    assert report["verdict"] == read_card(proven).proof.verdict
    assert report["source"]["sha256"] == read_card(proven).source.sha256
    assert [row["layer"] for row in report["layers"]][::16] == ["block1_conv1", "(output)"]
    assert max(row["error"] for row in report["layers"]) < ROUNDING
    page = (proven.parent / "proof.html").read_text()
    assert report["verdict"].replace("'", "&#39;") in page
    assert all(row["layer"] in page and row["module"] in page for row in report["layers"])


@pytest.mark.parametrize("ending", ["json", "html"])
def test_a_proof_that_fails_leaves_its_report_alone(ending, monkeypatch, tmp_path):
    monkeypatch.setattr(writing, "flip", lambda kernel: kernel)
    path = tmp_path / f"proof.{ending}"
    with pytest.raises(ValueError, match="the proof fails at block1_conv1 "):
        convert(WHOLE, tmp_path / "out.safetensors", report=path, isolated=False, **TOLD)
    assert list(tmp_path.iterdir()) == [path]
    assert "Not proven: the proof fails at block1_conv1 " in path.read_text()


def test_a_report_that_cannot_be_written_is_refused_first(tmp_path, command):
    out = tmp_path / "out.safetensors"
    for name, words in (("proof.txt", "can be written as .json or .html"), ("no/proof.json", "create it first")):
        told = ("--preprocessing", "keras-caffe", "--report", tmp_path / name)
        code, _, error = command("convert", WHOLE, "-o", out, *told)
        assert code == 1
        assert words in error
    same = tmp_path / "both.json"
    with pytest.raises(ValueError, match="also read or written by the conversion"):
        convert(WHOLE, same, report=same, **TOLD)
    assert list(tmp_path.iterdir()) == []


def test_a_page_shows_hostile_names_as_text(tmp_path, proven):
    card = read_card(proven)
    row = ProofRow("<script>alert(1)</script>\x1b[2J", "a & b", float("nan"), 1.0)
    report = contents(replace(card, proof=None), [row], ["<b>note</b>"], "it <i>fails</i>")
    WRITER.write(tmp_path / "x.html", report)
    page = (tmp_path / "x.html").read_text()
    assert "<script" not in page
    assert not any(words in page for words in ("<b>", "<i>", "\x1b"))
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[2J" in page
    WRITER.write(tmp_path / "x.json", report)
    assert json.loads((tmp_path / "x.json").read_text())["layers"][0]["error"] is None


def test_an_error_above_rounding_is_named_with_its_layer():
    proof = proof_of([*ROWS, ProofRow("block3_conv2", "features.conv3_2", 3.14e-8, 1.0), ROWS[-1]], "f" * 64)
    assert (proof.error, proof.worst) == (3.1e-8, "block3_conv2")
    assert proof.verdict.endswith("the largest error is 3.1e-08 of a layer's largest value (at block3_conv2).")
    assert proof_of(ROWS, "f" * 64).verdict.startswith("Proven: 1 layer and the output agree")


@pytest.mark.parametrize("name", ["x", "\U0001f600" * 3000, '\\"\x00\x1b' * 90, "+ " * 3000])
def test_no_proof_is_longer_than_what_is_kept_for_it(name, proven):
    card = read_card(proven)
    rows = [ProofRow(name, name, 9.9e-5, 1.0)] * 10_000
    kept = len(json.dumps(replace(card, proof=PLACEHOLDER).to_json()))
    found = replace(card, proof=proof_of(rows, "f" * 64))
    assert len(json.dumps(found.to_json())) <= kept
    assert Card.from_json(found.to_json()) == found


def test_cards_with_damaged_proofs_are_refused_and_further_fields_are_kept(proven, tmp_path):
    values = json.loads(read_card(proven).to_json())
    for wrong in ({"layers": "many"}, {"error": None}, {"worst": 3}, {"layers": True}):
        with pytest.raises(ValueError, match=f"the proof's {next(iter(wrong))} is"):
            Card.from_json(json.dumps({**values, "proof": {**values["proof"], **wrong}}))
    with pytest.raises(ValueError, match="card cannot be read"):
        Card.from_json(json.dumps({**values, "proof": {"layers": 3}}))
    with pytest.raises(ValueError, match="card cannot be read"):
        Card.from_json(json.dumps({**values, "proof": "yes"}))
    newer = Card.from_json(json.dumps({**values, "proof": {**values["proof"], "device": "cpu"}}))
    assert json.loads(newer.to_json())["proof"]["device"] == "cpu"
    path = tmp_path / "forged.safetensors"  # a proof of another network does not outlive the next save
    arrays = {name: array.clone() for name, array in load_file(proven).items()}
    arrays["features.conv1_1.bias"] += 1
    save_file(arrays, path, {"card": json.dumps(values)})
    save(load(path), path)
    assert read_card(path).proof is None

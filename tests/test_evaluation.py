"""Evaluation: figures against plain computations by others, views, bad files, and runs that were cut off."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix, log_loss, recall_score, top_k_accuracy_score

from convnets_torch.card import Card
from convnets_torch.evaluation import evaluate as evaluation
from convnets_torch.evaluation.calibration import calibrate
from convnets_torch.evaluation.evaluate import averaged, evaluate, published
from convnets_torch.evaluation.labels import find_truth
from convnets_torch.evaluation.metrics import errors_by_class, rank, wilson
from convnets_torch.images.preprocessing import preset
from convnets_torch.inference.classification import classify_each
from convnets_torch.inference.pipeline import predict
from convnets_torch.inference.prepare import prepare
from convnets_torch.networks import AlexNet
from convnets_torch.weights import save
from tests.reference.pictures import picture

NAMES = "abcdefghij"  # classes
ROOT = Path(__file__).parent.parent


def write_pictures(folder, count=23):
    """Pictures in folders of their classes, one of them broken; and all of them flat with a file of labels."""
    flat = folder / "flat"
    flat.mkdir(parents=True)
    lines = []
    for number in range(count):
        name = NAMES[number * 7 % 9]  # j has none
        path = folder / "classes" / name / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(picture(number, 40 + number, 60))
        if number in (0, 22):
            image.putalpha(200)  # about which there is a remark
        image.save(path)
        if number == 9:  # in the first batch
            path.write_text("no picture")
        shutil.copy(path, flat / path.name)
        lines.append(f"{path.name} {name}\n")
    (folder / "truth.txt").write_text("".join(lines))
    return folder


def narrow_alexnet():
    """A very narrow AlexNet that answers differently to different pictures."""
    torch.manual_seed(1)
    arguments: dict[str, Any] = {"classes": 10, "widths": (4, 8, 12, 12, 8), "hidden": (16, 20)}
    network = AlexNet(**arguments).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)
    network.card = Card("alexnet", arguments, preset("alexnet"), tuple(NAMES))
    return network


@pytest.fixture(scope="module")
def network():
    return narrow_alexnet()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="module")
def evaluated(network, pictures):
    return evaluate(network, find_truth(network.card, pictures / "classes"), batch=4)


def first_of(truth, count):
    return replace(truth, paths=truth.paths[:count], labels=truth.labels[:count])


def by_hand(network, paths):
    """Logits of each picture, alone."""
    return np.stack([row.logits.numpy() for row in predict(network, paths, batch=1, exact=True)])


def test_figures_are_those_that_scikit_learn_gives_for_logits_of_each_picture_alone(network, evaluated):
    paths, labels = evaluated.paths, evaluated.labels
    assert [NAMES[label] for label in labels] == [path.parent.name for path in paths]
    logits = by_hand(network, paths)
    np.testing.assert_allclose(evaluated.logits, logits, rtol=1e-4, atol=1e-5)
    classes = range(10)
    assert [rate.k for rate in evaluated.errors] == [1, 5]  # the best 10 of 10 leave none out
    for rate in evaluated.errors:
        wanted = 1 - top_k_accuracy_score(labels, logits, k=rate.k, labels=classes)
        assert rate.error == pytest.approx(wanted, abs=1e-12)
        assert 0 < rate.error < 1
        assert rate.interval[0] < rate.error < rate.interval[1]
    given = logits.argmax(1)
    np.testing.assert_array_equal(evaluated.confusion, confusion_matrix(labels, given, labels=classes))
    assert evaluated.balanced_error == pytest.approx(1 - recall_score(labels, given, labels=range(9), average="macro"))
    for each in evaluated.by_class:
        of_it = labels == each.class_id
        assert each.count == of_it.sum()
        assert each.errors[1].wrong == (given[of_it] != each.class_id).sum()
        assert each.taken == (given[~of_it] == each.class_id).sum()
    assert [each.class_id for each in evaluated.by_class] == list(range(9))
    chances = torch.from_numpy(logits).double().softmax(1).numpy()
    found = calibrate(evaluated.logits, labels).nll
    assert found == pytest.approx(log_loss(labels, chances, labels=classes), rel=1e-4)
    best = [[entry.class_id for entry in row.predictions] for row in classify_each(network, paths, top=10)]
    np.testing.assert_array_equal(evaluated.ranking.best, best)


def test_bad_files_are_apart(evaluated, pictures):
    [(path, words)] = evaluated.failed
    assert path.name == "09.png"
    assert f"{path} is not a picture that Pillow can read" in words
    assert len(evaluated.paths) == len(evaluated.labels) == len(evaluated.logits) == 22
    figures = evaluated.to_dict()
    assert (figures["pictures"], list(figures["failed"])) == (22, [str(path)])
    assert sum(count for *_, count in figures["confusions"]) == 22
    assert figures["running"]["computed"] == 23
    assert 0 < figures["running"]["network_seconds"] < figures["running"]["seconds"]
    assert figures["running"]["memory"] > 50_000_000
    assert figures["published"] is None


def test_class_folders_and_a_flat_folder_with_labels_give_the_same(network, evaluated, pictures):
    truth = find_truth(network.card, pictures / "flat", truth=pictures / "truth.txt")
    flat = evaluate(network, truth, batch=4)
    order = np.argsort([path.name for path in evaluated.paths])
    assert [path.name for path in flat.paths] == [evaluated.paths[place].name for place in order]
    np.testing.assert_array_equal(flat.labels, evaluated.labels[order])
    np.testing.assert_allclose(flat.logits, evaluated.logits[order], rtol=1e-5, atol=1e-6)
    for name in ("errors", "balanced_error", "by_class", "confusions"):
        assert flat.to_dict()[name] == evaluated.to_dict()[name]


@pytest.mark.parametrize("crops", ["flip", "ten"])
def test_views_have_the_mean_of_their_probabilities(network, pictures, crops):
    truth = first_of(find_truth(network.card, pictures / "classes"), 4)
    found = evaluate(network, truth, crops=crops, batch=8)
    rows = [
        row.logits for row in predict(network, truth.paths, exact=True, views=crops, batch=1) if row.logits is not None
    ]
    wanted = torch.stack([row.double().softmax(1).mean(0) for row in rows])
    torch.testing.assert_close(torch.from_numpy(found.logits.copy()).double().softmax(1), wanted, rtol=1e-4, atol=1e-6)


def test_views_of_sigmoids_and_of_plain_outputs():
    logits = torch.randn(10, 7, generator=torch.Generator().manual_seed(0)) * 30
    chances = torch.sigmoid(averaged(logits, "sigmoid").double())
    torch.testing.assert_close(chances, logits.double().sigmoid().mean(0), rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(averaged(logits, "none"), logits.mean(0))
    torch.testing.assert_close(averaged(logits, "softmax").exp().sum(), torch.tensor(1.0))


KILLED = """
import os, signal, sys
from pathlib import Path
from typing import Any
from convnets_torch.evaluation import evaluate as evaluation
from convnets_torch.evaluation.labels import find_truth
from convnets_torch.weights import load

def kill(done, whole):
    if done == 19:
        os.kill(os.getpid(), signal.SIGKILL)

evaluation.PART = 4
weights, folder, store = map(Path, sys.argv[1:])
network = load(weights)
evaluation.evaluate(network, find_truth(network.card, folder), batch=4, store=store, progress=kill)
"""


def test_a_killed_run_goes_on_and_gives_what_an_unbroken_one_does(network, evaluated, pictures, tmp_path, monkeypatch):
    save(network, tmp_path / "weights.safetensors")
    arguments = [tmp_path / "weights.safetensors", pictures / "classes", tmp_path / "store"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    with (tmp_path / "store" / "outputs.f32").open("ab") as file:
        file.write(b"half a row")  # as if it had been killed while it wrote
    with (tmp_path / "store" / "done.jsonl").open("ab") as file:
        file.write(b'{"done": 21, "rows": 4,')
    truth = find_truth(network.card, pictures / "classes")
    found = evaluate(network, truth, store=tmp_path / "store")  # in the batches that it began with
    assert found.running.computed == 23 - 17  # batches of four end at 5, with the one that is bad, 9, 13 and 17
    np.testing.assert_array_equal(found.logits, evaluated.logits)
    same = [each.to_dict() for each in (found, evaluated)]
    for figures in same:
        del figures["running"]
    assert same[0] == same[1]
    truth.labels[:] = 0  # other labels need no other outputs
    assert sum("transparent" in note for note in found.notes) == 2
    again = evaluate(network, truth, store=tmp_path / "store")
    assert again.notes[:2] == found.notes[:2]
    assert (again.running.computed, again.running.throughput) == (0, None)
    assert again.errors[0].wrong == (again.ranking.best[:, 0] != 0).sum()
    assert [path for path, _ in again.failed] == [path for path, _ in evaluated.failed]


def test_a_damaged_row_is_computed_again(network, pictures, tmp_path, monkeypatch):
    truth = find_truth(network.card, pictures / "classes")
    truth = replace(truth, paths=truth.paths[::-1], labels=truth.labels[::-1].copy())  # the broken one not at first
    whole = evaluate(network, truth, batch=4)
    monkeypatch.setattr(evaluation, "PART", 8)
    evaluate(network, truth, batch=4, store=tmp_path)
    with (tmp_path / "outputs.f32").open("r+b") as file:
        file.seek(9 * 40)
        file.write(b"\0\0\0\0")
    found = evaluate(network, truth, batch=4, store=tmp_path)
    assert 0 < found.running.computed < 23
    np.testing.assert_array_equal(found.logits, whole.logits)
    assert (found.paths, found.failed) == (whole.paths, whole.failed)
    assert len(found.failed) == 1


def test_outputs_of_another_run_are_refused(network, pictures, tmp_path):
    truth = find_truth(network.card, pictures / "flat", truth=pictures / "truth.txt")
    store = tmp_path / "store"
    evaluate(network, truth, batch=4, store=store)
    with pytest.raises(ValueError, match="outputs of another run, which differs in: batch, crops; name another folder"):
        evaluate(network, truth, batch=5, crops="flip", store=store)
    bias = network.head[-1].bias
    before = bias.detach().clone()
    try:
        with torch.no_grad():
            bias[0] += 1
        with pytest.raises(ValueError, match="differs in: network;"):
            evaluate(network, truth, store=store)
    finally:
        with torch.no_grad():
            bias.copy_(before)
    ready = prepare(network, device="cpu", precision="float32")
    with pytest.raises(ValueError, match="differs in: network;"):
        evaluate(ready, truth, store=store)
    evaluate(ready, truth, store=tmp_path / "ready")
    assert evaluate(ready, truth, store=tmp_path / "ready").running.computed == 0
    path = truth.paths[3]
    state = path.stat()
    try:
        os.utime(path, (1, 1))
        with pytest.raises(ValueError, match="differs in: files;"):
            evaluate(network, truth, store=store)
    finally:
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    (store / "run.json").write_text("[1]")
    with pytest.raises(ValueError, match="outputs of another run"):
        evaluate(network, truth, store=store)


@pytest.mark.slow
def test_an_engine_is_evaluated_and_known_by_its_answers(network, evaluated, pictures, tmp_path):
    pytest.importorskip("openvino")
    from convnets_torch.inference.engines import engine

    truth = first_of(find_truth(network.card, pictures / "classes"), 4)
    other = engine(network, precision="float32")
    for computed in (4, 0):
        found = evaluate(other, truth, batch=4, store=tmp_path)
        assert found.running.computed == computed
    np.testing.assert_allclose(found.logits, evaluated.logits[: len(found.logits)], rtol=1e-3, atol=1e-4)


def test_ties_are_decided_by_ids_as_argmax_does():
    random = np.random.default_rng(0)
    logits = random.integers(0, 4, (300, 12)).astype(np.float32)
    labels = random.integers(0, 12, 300)
    found = rank(logits, labels)
    order = np.argsort(-logits, axis=1, kind="stable")
    np.testing.assert_array_equal(found.best, order[:, :10])
    np.testing.assert_array_equal(found.best[:, 0], logits.argmax(1))
    np.testing.assert_array_equal(found.ranks, (order == labels[:, None]).argmax(1))
    assert found.ties == sum((row == row[label]).sum() > 1 for row, label in zip(logits, labels, strict=True))
    assert sum(each.errors[5].wrong for each in errors_by_class(found, labels, 12)) == found.error(5).wrong
    assert list(errors_by_class(found, labels, 12)[0].errors) == [1, 5, 10]


@pytest.mark.parametrize(("wrong", "count"), [(0, 5), (1, 7), (250, 1000), (7, 7)])
def test_the_interval_holds_the_shares_that_are_not_surprised(wrong, count):
    """Its ends are the shares p for which the count found is 1.96 standard deviations away."""
    low, high = wilson(wrong, count)
    for end, beyond in ((low, wrong == 0), (high, wrong == count)):
        if beyond:
            assert end in (0, 1)
        else:
            distance = abs(wrong / count - end) / np.sqrt(end * (1 - end) / count)
            assert distance == pytest.approx(1.959964, rel=1e-6)


def test_what_cannot_be_evaluated_is_refused(network, pictures, tmp_path):
    truth = find_truth(network.card, pictures / "classes")
    with pytest.raises(ValueError, match="unknown crops 'five'; known: center, flip, ten"):
        evaluate(network, truth, crops="five")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch must be a positive integer or 'auto', got 0"):
        evaluate(network, truth, batch=0)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"none of 1 pictures could be read; the first: .*0\.png"):
        evaluate(network, find_truth(network.card, tmp_path))
    broken = prepare(network, device="cpu", precision="exact")
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match="outputs are NaN or infinite"):
        evaluate(broken, truth)


def test_the_originals_figures_stand_beside_networks_of_its_classes(network):
    arguments = {"classes": 1000}
    of_imagenet = Card("vgg19", arguments, network.card.preprocessing, "imagenet-1k")
    assert dict(published(of_imagenet)) == {1: 0.3277, 5: 0.1217, 10: 0.078}
    assert published(Card("resnet50", arguments, network.card.preprocessing, "imagenet-1k")) is None
    assert published(Card("vgg19", arguments, network.card.preprocessing, None)) is None


def test_ranking_takes_memory_for_a_block_of_rows_not_for_all():
    logits = np.random.default_rng(0).normal(size=(10_000, 1000)).astype(np.float32)
    labels = np.zeros(len(logits), np.int64)
    tracemalloc.start()
    rank(logits[:1000], labels[:1000])
    few = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    rank(logits, labels)
    many = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert many < few + 20_000_000  # all numbers of a ranking of float64 would take 80 MB


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA")
@pytest.mark.parametrize("crops", ["center", "flip", "ten"])
def test_a_gpu_gives_the_same_errors(network, pictures, crops):
    truth = find_truth(network.card, pictures / "classes")
    wanted = evaluate(network, truth, crops=crops, batch=20)
    found = evaluate(deepcopy(network).cuda(), truth, crops=crops, batch=20)
    np.testing.assert_allclose(found.logits, wanted.logits, rtol=1e-2, atol=1e-2)
    assert found.running.device_memory > 0
    assert 0 < found.running.network_seconds < found.running.seconds

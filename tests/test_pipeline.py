"""From files to logits: the numbers, the order, bad files, and how much is in memory."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from convnets_torch.card import Card
from convnets_torch.images.decoding import read_picture
from convnets_torch.images.preprocessing import center_crop, preset
from convnets_torch.images.resizing import normalized
from convnets_torch.inference.classification import classify, probabilities, square_input
from convnets_torch.inference.pipeline import (
    BATCH,
    PREFETCHED,
    Input,
    _a_batch_late,
    _Batch,
    _LogitsRow,
    batch_for,
    is_whole,
    predict,
    run_pictures,
)
from convnets_torch.weights import load
from tests.conftest import NARROW
from tests.reference.pictures import picture


def small(name="alexnet", rule=None, seed=0):
    """A narrow network with a card, its own rule by default."""
    torch.manual_seed(seed)
    network = NARROW[name]().eval()
    network.card = Card(name, {"classes": 10}, preset(name, rule), None)
    return network


@pytest.mark.parametrize("rule", ["original", "keras-caffe-aspect", "keras-tf", "torchvision", "efficientnet-lite"])
def test_logits_are_those_of_the_inputs_that_classify_takes(rule, files):
    network = small(rule="original" if rule == "original" else rule)
    inputs = [square_input(read_picture(path, exif=False), network.card) for path in files]
    with torch.inference_mode():
        wanted = network(torch.from_numpy(np.stack(inputs)))
    rows = list(predict(network, files, exact=True))
    assert [row.picture for row in rows] == files
    found = torch.stack([row.logits for row in rows])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())


@pytest.mark.parametrize("rule", ["original", "keras-caffe", "keras-tf", "torchvision", "efficientnet-lite"])
def test_normalising_on_the_device_is_normalising_in_numpy(rule):
    card = small(rule=rule).card
    pixels = picture(1, 300, 280)
    cut = torch.from_numpy(center_crop(pixels, card.preprocessing).copy())
    found = normalized(torch.stack([255 - cut, cut]), card.preprocessing)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found[1], torch.from_numpy(square_input(pixels, card)))


def test_classify_gives_the_probabilities_of_these_logits(lite_weights, photographs):
    network = load(lite_weights)
    [row] = predict(network, photographs / "rocket.jpg", exact=True)
    [[best, *_]] = classify(network, photographs / "rocket.jpg")
    chances = probabilities(row.logits[None], network.card)[0]
    assert best.class_id == chances.argmax() == 657
    assert best.probability == chances.max()


def test_batches_and_workers_do_not_matter(files):
    network = small()
    alone = [next(predict(network, path)).logits for path in files]
    options: list[dict] = [{"batch": 1, "workers": 1}, {"batch": 3, "workers": 3}, {"batch": 7}, {"batch": "auto"}]
    for each in options:
        rows = list(predict(network, files, **each))
        assert [row.picture for row in rows] == files
        torch.testing.assert_close(torch.stack([row.logits for row in rows]), torch.stack(alone), rtol=1e-4, atol=1e-5)


def test_the_networks_precision_is_followed(files):
    network = small()
    wanted = torch.stack([row.logits for row in predict(network, files)])
    found = torch.stack([row.logits for row in predict(network.double(), files)])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def decoders():
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_an_endless_iterable_is_taken_as_it_is_needed_and_close_leaves_no_thread(files):
    taken = itertools.count()
    rows = predict(small(), (files[number % 7] for number in taken), batch=4, workers=2)
    for _ in range(9):
        next(rows)
    assert len(decoders()) <= 2
    assert next(taken) <= 9 + (PREFETCHED + 1) * 4
    rows.close()
    assert not decoders()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals as Unix has them")
def test_an_interrupt_ends_the_process_at_once(files):
    code = f"""
import itertools, torch
from tests.test_pipeline import small
from convnets_torch.inference.pipeline import predict
for row in predict(small(), itertools.repeat({str(files[0])!r})):
    print("row", flush=True)
"""
    pipe, default = subprocess.PIPE, partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # ignored in the background
    with subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, preexec_fn=default) as process:
        assert process.stdout.readline() == b"row\n"
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        process.stdout.read()
        error = process.stderr.read()
        assert process.wait(30) in (-signal.SIGINT, 130)
    assert b"KeyboardInterrupt" in error
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch must be a positive integer or 'auto', got 0"),
        ({"batch": "large"}, "batch must be a positive integer or 'auto', got 'large'"),
        ({"workers": 0}, "workers must be 1 or more, got 0"),
        ({"decoder": "cv2"}, "unknown decoder 'cv2'; known: pillow, torchcodec"),
    ],
)
def test_options_are_checked_before_the_first_picture(options, message):
    with pytest.raises(ValueError, match=message):
        predict(small(), [], **options)
    network = small()
    network.card = None
    with pytest.raises(ValueError, match="has no card"):
        predict(network, [])


def test_is_whole_says_where_batches_end():
    numbers = np.random.default_rng(0)

    def prepare(good):
        if not good:
            raise ValueError("a bad one")
        return Input()

    for share in (0.1, 0.3, 0.6, 0.95):
        given = (numbers.random(200) < share).tolist()
        rows = run_pictures(given, prepare, lambda items: [len(items)] * len(items), batch=4)
        sizes = [row.value for row in rows if row.value is not None]
        batches: list[int] = []
        while sum(batches) < len(sizes):
            batches.append(sizes[sum(batches)])
        said, members, good = [], 0, 0
        for each in given:
            members, good = members + 1, good + each
            if is_whole(members, good, 4):
                said += [good] if good else []
                members = good = 0
        assert batches == said + [good] * (good > 0)
        assert share > 0.3 or min(batches[:-1]) < 4


def test_where_a_device_computes_rows_come_when_the_next_batch_has_begun():
    """What `predict` does on CUDA, with batches of three that count how many have begun."""
    begun = []

    def prepare(number):
        if number < 0:
            raise ValueError("a bad one")
        return Input()

    def run(items):
        batch = _Batch(torch.zeros(len(items), 1))
        begun.append(batch)
        return [_LogitsRow(batch, number, None) for number in range(len(items))]

    rows = _a_batch_late(run_pictures([0, -1, 1, 2, 3, 4, 5, -1, 6], prepare, run, batch=3), 3)
    assert [(row.picture, len(begun)) for row in rows] == [
        (0, 2), (-1, 2), (1, 2), (2, 2), (3, 3), (4, 3), (5, 3), (-1, 3), (6, 3),
    ]  # fmt: skip
    taken = itertools.count()
    rows = _a_batch_late(run_pictures((-1 - number for number in taken), prepare, run, batch=3), 3)
    assert next(rows).error is not None
    assert next(taken) < 40  # bad ones alone do not wait for a good one
    rows.close()


def test_rows_may_be_changed_and_hold_no_batch(files):
    row = next(predict(small(), files))
    row.logits.add_(1)  # which a tensor of inference mode would refuse
    assert row.logits.untyped_storage().nbytes() == 40


def test_the_batch_on_the_cpu_is_fixed():
    assert batch_for(small()) == BATCH


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("batch", [1, 3, "auto"])
def test_cuda_gives_the_same_in_order(batch, files):
    network = small("vgg16")
    wanted = torch.stack([row.logits for row in predict(network, files * 5)])
    network = network.cuda()
    assert batch_for(network) >= BATCH
    rows = list(predict(network, files * 5, batch=batch))
    assert [row.picture for row in rows] == files * 5
    found = torch.stack([row.logits for row in rows])
    assert found.device.type == "cpu"
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-2 * wanted.abs().max().item())  # TF32 in cuDNN


def test_a_sigmoid_card_changes_no_logit(files):
    network = small()
    wanted = next(predict(network, files)).logits
    network.card = replace(network.card, activation="sigmoid")
    assert torch.equal(next(predict(network, files)).logits, wanted)

"""Fine-tuning: what trains and what stays, what comes out, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from convnets_torch import classify, heatmap, load
from convnets_torch.embeddings.extraction import embed
from convnets_torch.networks import CATALOG
from convnets_torch.training.augmentation import augmentation
from convnets_torch.training.datasets import Dataset, find_dataset
from convnets_torch.training.distributed import Group
from convnets_torch.training.features import cached_features
from convnets_torch.training.finetuning import LeakError, finetune
from convnets_torch.training.running import Callbacks, read_checkpoint
from convnets_torch.training.settings import Settings
from convnets_torch.training.stages import (
    HeadStage,
    balanced,
    freeze,
    own_dropout,
    row_losses,
    soft_targets,
    unfrozen,
    what_trains,
)
from convnets_torch.visualization.charts import ChartWarning
from tests.conftest import NARROW
from tests.finetuned import QUICK, draw_pictures, small_resnet


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw_pictures(tmp_path_factory.mktemp("pictures") / "data")


@pytest.fixture(scope="module")
def dataset(data):
    return find_dataset(data)


@pytest.fixture(scope="module")
def tuned(dataset, vectors, tmp_path_factory):
    """The network before, what came of fine-tuning it, and the file."""
    before, output = small_resnet(), tmp_path_factory.mktemp("tuned") / "mine.safetensors"
    return before, finetune(before, dataset, output, QUICK, cache=vectors, allow_leaks=True, started_from="r"), output


def test_what_is_frozen_stays_to_the_bit_with_all_statistics(tuned):
    before, result, output = tuned
    assert result.best.stage == 2  # else nothing but the last layer would be new
    old, new = small_resnet().state_dict(), load(output).state_dict()
    names = unfrozen(before, "conv5_block3")
    assert {"features.conv5_block3.conv_1.weight", "features.conv5_block3.bn_1.weight", "head.dense_1.bias"} < {*names}
    for name, values in new.items():
        same = name in old and old[name].shape == values.shape and torch.equal(old[name], values)
        assert same != (name in names), name
    assert all(torch.equal(values, before.state_dict()[name]) for name, values in old.items())  # and was left alone


def test_the_network_that_is_given_keeps_its_modes_and_takes_no_gradients(tuned):
    before, _, _ = tuned
    assert not before.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in before.parameters())


def test_the_file_says_what_it_is_and_every_command_takes_it(tuned, data, command, tmp_path):
    _, result, output = tuned
    network = load(output)
    card = network.card
    assert card.class_names == ("ant", "bee", "cat")
    assert card.preprocessing == small_resnet().card.preprocessing
    about = card.unknown["finetuning"]
    assert about["metrics"]["val_accuracy"] == result.best.val_accuracy
    assert about["from"]["file"] == "r"
    assert about["settings"] == json.loads(json.dumps(QUICK.to_dict()))
    picture = data / "bee" / "0.png"
    [best] = classify(network, [picture], top=1)[0]
    assert best.words == "bee"
    code, out, _ = command("classify", output, picture)
    assert code == 0
    assert "bee" in out.splitlines()[0]
    assert list(heatmap(network, picture, "bee").target.class_ids) == [1]
    for arguments in (
        ("gradcam", output, picture, "--target", "bee", "-o", tmp_path / "cam.png"),
        ("embed", output, picture, "-o", tmp_path / "vectors.npz"),
    ):
        code, _, err = command(*arguments)
        assert code == 0, err
    assert output.with_suffix(".history.csv").read_text().splitlines()[0].startswith("stage,epoch,train_loss")
    assert output.with_suffix(".history.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(output.parent.glob("*.checkpoint.*"))


def test_without_matplotlib_all_but_the_picture_of_the_history_is_written(dataset, vectors, tmp_path, monkeypatch):
    output = tmp_path / "mine.safetensors"
    picture = output.with_suffix(".history.png")
    picture.write_text("of another training")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.warns(ChartWarning, match=r"mine\.history\.png is left out: a chart needs matplotlib .*\[plots\]"):
        result = finetune(small_resnet(), dataset, output, QUICK, cache=vectors, allow_leaks=True)
    assert load(output).card.unknown["finetuning"]["metrics"]["epoch"] == result.best.epoch
    assert len(output.with_suffix(".history.csv").read_text().splitlines()) == len(result.history) + 1
    assert not picture.exists()
    assert not list(tmp_path.glob("*.checkpoint.*"))


def test_the_accuracy_is_that_of_the_file(tuned, dataset):
    _, result, output = tuned
    network = load(output)
    right = [classify(network, [path], top=1)[0][0].class_id == label for path, label in dataset.val]
    assert np.mean(right) == result.best.val_accuracy


def test_the_same_call_gives_the_same_file(tuned, dataset, vectors, tmp_path):
    before, _, output = tuned
    finetune(before, dataset, tmp_path / "again.safetensors", QUICK, cache=vectors, allow_leaks=True, started_from="r")
    assert (tmp_path / "again.safetensors").read_bytes() == output.read_bytes()
    other = replace(QUICK, seed=1)
    finetune(before, dataset, tmp_path / "other.safetensors", other, cache=vectors, allow_leaks=True)
    ours, theirs = (load(path).state_dict() for path in (output, tmp_path / "other.safetensors"))
    assert not torch.equal(ours["head.dense_1.weight"], theirs["head.dense_1.weight"])


def test_where_stage_two_is_worse_the_network_of_stage_one_is_kept(dataset, vectors, tmp_path):
    output, before = tmp_path / "mine.safetensors", small_resnet()
    settings = replace(QUICK, head_epochs=8, epochs=1, lr=0.3)
    result = finetune(before, dataset, output, settings, cache=vectors, allow_leaks=True)
    assert (result.best.stage, result.history[-1].stage) == (1, 2)
    kept = load(output).state_dict()
    assert all(torch.equal(values, kept[name]) for name, values in before.state_dict().items() if "head." not in name)
    right = [classify(load(output), [path], top=1)[0][0].class_id == label for path, label in dataset.val]
    assert np.mean(right) == result.best.val_accuracy


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_two_classes_and_no_head(dataset, vectors, tmp_path, activation):
    two = Dataset(
        dataset.classes[:2],
        tuple(row for row in dataset.train if row[1] < 2),
        tuple(row for row in dataset.val if row[1] < 2),
        "by hand",
    )
    settings = replace(
        QUICK, activation=activation, head_epochs=8, epochs=1, class_weights="balanced", optimizer="adamw"
    )
    output = tmp_path / "two.safetensors"
    result = finetune(small_resnet(None), two, output, settings, cache=vectors, allow_leaks=True)
    assert result.best.val_accuracy == 1
    card = load(output).card
    assert (card.activation, card.classes) == (activation, 2)
    chances = [row.probability for row in classify(load(output), [two.val[0][0]], top=2)[0]]
    assert chances[0] > 0.5 > chances[1]


def test_losses_are_those_of_pytorch():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(9, 4, generator=generator), torch.tensor([0, 1, 2, 3, 0, 0, 1, 0, 2])
    weights = balanced(labels, 4)
    rows = row_losses(logits, soft_targets(labels, 4, 0.1, "softmax"), "softmax")
    wanted = F.cross_entropy(logits, labels, label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(rows, wanted)
    hard = row_losses(logits, soft_targets(labels, 4, 0, "softmax"), "softmax", weights)
    of_classes = 9 / (4 * torch.bincount(labels))
    torch.testing.assert_close(hard.sum() / weights.sum(), F.cross_entropy(logits, labels, of_classes))
    assert weights.mean() == pytest.approx(1)
    sigmoid = row_losses(logits, soft_targets(labels, 4, 0.2, "sigmoid"), "sigmoid")
    targets = F.one_hot(labels, 4).double() * 0.8 + 0.1
    chances = logits.double().sigmoid()
    by_hand = -(targets * chances.log() + (1 - targets) * (1 - chances).log()).mean(1)
    torch.testing.assert_close(sigmoid.double(), by_hand, rtol=1e-5, atol=1e-6)


def test_stage_one_finds_what_logistic_regression_finds():
    """Convex and without decay, both come to the same minimum; the scale is in the layer's own numbers."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 60)
    features = (generator.normal(size=(180, 5)) + 1.5 * np.eye(3, 5)[labels]) * (40, 50, 60, 50, 50) + 70
    wanted = linear_model.LogisticRegression(C=np.inf, max_iter=10_000, tol=1e-8)
    scaled = (features - features.mean(0)) / features.std(0)
    chances = wanted.fit(scaled, labels).predict_proba(scaled)
    rows, places = torch.from_numpy(features).float(), torch.from_numpy(labels)
    stage = HeadStage(rows, places, rows, places, 3, Settings(head_lr=0.02, batch=180))
    for epoch in range(600):
        for step in stage.steps(epoch, 0):
            stage.optimizer.zero_grad()
            step.loss.backward()
            stage.optimizer.step()
    weight, bias = stage.unscaled()
    found = (rows @ weight.T + bias).softmax(1).numpy()
    assert np.abs(found - chances).max() < 0.02


def test_features_of_further_views_are_those_of_the_views(dataset, tmp_path):
    network = small_resnet()
    settings = replace(QUICK, views=3, augmentation=augmentation("strong", no_flip=("ant",)))
    found = cached_features(network, dataset, settings, Group(), tmp_path, None, {})
    assert found.computed == 3 * len(dataset.train) + len(dataset.val)
    whole = embed(network, [path for path, _ in dataset.train])
    torch.testing.assert_close(found.train.features[0], whole, rtol=1e-4, atol=1e-5)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not torch.isclose(found.train.features[one], found.train.features[other]).all(1).any()
    again = cached_features(network, dataset, settings, Group(), tmp_path, None, {})
    assert again.computed == 0
    assert torch.equal(again.train.features, found.train.features)


def test_mixing_learns_from_two_pictures_at_once(dataset, vectors, tmp_path):
    for kind in ("mixup", "cutmix"):
        settings = replace(QUICK, epochs=1, mixing=kind, mixing_alpha=1.0)
        result = finetune(
            small_resnet(), dataset, tmp_path / f"{kind}.safetensors", settings, cache=vectors, allow_leaks=True
        )
        plain = finetune(
            small_resnet(), dataset, tmp_path / "plain.safetensors", replace(QUICK, epochs=1), cache=vectors,
            allow_leaks=True,
        )  # fmt: skip
        assert result.history[-1].train_loss > plain.history[-1].train_loss  # targets of two classes cost more


def test_every_network_has_a_last_block_and_freezing_reaches_dropout(narrow):
    kind = next(spec for name, spec in CATALOG.items() if type(NARROW[name]()) is type(narrow))
    names = unfrozen(narrow, kind.last_block)
    rows = what_trains(narrow, names)
    assert 0 < sum(row.trains for row in rows) < sum(row.parameters for row in rows)
    assert sum(row.parameters for row in rows) == sum(parameter.numel() for parameter in narrow.parameters())
    states = [bool(row.trains) for row in rows]
    assert states == sorted(states)  # first all that is frozen, then all that trains
    freeze(narrow, names, dropout=True)
    modes = {type(module).__name__ for module in narrow.modules() if module.training}
    assert modes <= {"Dropout"}
    assert bool(modes) == any(isinstance(module, torch.nn.Dropout) for module in narrow.modules())


def test_leaks_are_refused_unless_they_are_allowed(data, dataset, vectors, tmp_path):
    path, label = dataset.train[0]
    copy = data.parent / "copy.png"
    copy.write_bytes(path.read_bytes())
    leaking = replace(dataset, val=(*dataset.val, (copy, label)))
    output, seen = tmp_path / "mine.safetensors", []
    callbacks = Callbacks(found=lambda features, leaks: seen.extend(leaks))
    with pytest.raises(
        LeakError, match=r"1 of 7 validation pictures are nearly the same as training pictures"
    ) as error:
        finetune(small_resnet(), leaking, output, QUICK, cache=vectors, leak_threshold=1, callbacks=callbacks)
    assert [(leak.path, leak.of) for leak in error.value.leaks] == [(copy, path)] == [(seen[0].path, seen[0].of)]
    assert not list(tmp_path.iterdir())
    finetune(
        small_resnet(), leaking, output, replace(QUICK, epochs=0), cache=vectors, leak_threshold=1, allow_leaks=True
    )
    assert load(output).card.unknown["finetuning"]["metrics"]["leaks"] == 1


def test_pictures_that_cannot_be_read_are_told_and_left_out(dataset, vectors, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with_broken = replace(dataset, train=(*dataset.train, (broken, 0)))
    output = tmp_path / "mine.safetensors"
    result = finetune(small_resnet(), with_broken, output, replace(QUICK, epochs=0), cache=vectors, allow_leaks=True)
    assert list(result.failed) == [broken]
    assert load(output).card.unknown["finetuning"]["data"]["train"] == len(dataset.train)
    only = replace(dataset, train=((broken, 0), *(row for row in dataset.train if row[1])))
    with pytest.raises(ValueError, match=r"1 classes have no usable picture in train \(ant\)"):
        finetune(small_resnet(), only, output, replace(QUICK, batch=4), cache=vectors, allow_leaks=True)
    none = replace(dataset, val=((broken, 0),))
    with pytest.raises(ValueError, match=r"3 classes have no usable picture in val \(ant, bee, cat\)"):
        finetune(small_resnet(), none, output, QUICK, cache=vectors, allow_leaks=True)


def test_a_class_without_validation_pictures_is_learnt_and_judged_by_nothing(data, vectors, tmp_path):
    chosen = tmp_path / "data"
    for name in ("ant", "bee", "cat"):
        shutil.copytree(data / name, chosen / name)
    for number in range(1, 10):
        (chosen / "ant" / f"{number}.png").unlink()
    found = find_dataset(chosen)
    assert {label for _, label in found.val} == {1, 2}
    output = tmp_path / "mine.safetensors"
    settings = replace(QUICK, head_epochs=8, epochs=1, class_weights="balanced")
    result = finetune(small_resnet(), found, output, settings, cache=vectors, allow_leaks=True)
    network = load(output)
    assert network.card.class_names == ("ant", "bee", "cat")
    right = [classify(network, [path], top=1)[0][0].class_id == label for path, label in found.val]
    assert result.best.val_accuracy == np.mean(right)
    assert classify(network, [chosen / "ant" / "0.png"], top=1)[0][0].class_id == 0  # which was learnt


def test_what_cannot_be_trained_is_refused_before_any_work(dataset, vectors, tmp_path):
    def tried(match, network=None, settings=QUICK, output=tmp_path / "mine.safetensors", **options):
        with pytest.raises((ValueError, OSError), match=match):
            finetune(network or small_resnet(), dataset, output, settings, cache=vectors, **options)

    tried("fewer than a batch of 64; lower the batch to 24", settings=replace(QUICK, batch=64))
    tried("'dog', not among the classes", settings=replace(QUICK, augmentation=augmentation("light", no_flip=("dog",))))
    tried("does not exist; create it first", output=tmp_path / "none" / "mine.safetensors")
    tried("ResNet has no layer 'conv9'", settings=replace(QUICK, unfreeze="conv9"), allow_leaks=True)
    assert not list(tmp_path.iterdir())  # no checkpoint either
    for wrong, match in (
        ({"lr": 0}, "lr is 0; give a number above 0"),
        ({"momentum": 1}, "momentum is 1; give a number 0 or more, below 1"),
        ({"batch": 0}, "batch is 0; give an integer, 1 or more"),
        ({"optimizer": "lion"}, "optimizer is 'lion'; known: sgd, adamw"),
        ({"mixing": "mixup", "activation": "sigmoid"}, "mixing needs mutually exclusive classes"),
    ):
        with pytest.raises(ValueError, match=match):
            replace(QUICK, **wrong)
    (tmp_path / "mine.checkpoint.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{              }")
    tried("is the checkpoint of an unfinished training; continue it with --resume, or remove it")
    with pytest.raises(ValueError, match="is not a training checkpoint"):
        read_checkpoint(tmp_path / "mine.checkpoint.safetensors")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_a_gpu_learns_what_the_cpu_learns(dataset, tmp_path):
    settings = replace(QUICK, precision="float32")
    one, two = (
        finetune(
            small_resnet().to(device), dataset, tmp_path / f"{device}.safetensors", settings, cache=tmp_path / device,
            allow_leaks=True,
        )
        for device in ("cpu", "cuda")
    )  # fmt: skip
    for row, wanted in zip(two.history, one.history, strict=True):
        assert row.train_loss == pytest.approx(wanted.train_loss, rel=1e-2)
        assert row.val_loss == pytest.approx(wanted.val_loss, rel=1e-2)
    again = tmp_path / "again.safetensors"
    finetune(small_resnet().cuda(), dataset, again, settings, cache=tmp_path / "cuda", allow_leaks=True)
    assert again.read_bytes() == (tmp_path / "cuda.safetensors").read_bytes()


def test_dropout_draws_what_pytorch_draws_and_nothing_from_the_global_generator():
    network = NARROW["vgg16"]().train()
    values = torch.randn(50, 24)
    torch.manual_seed(7)
    wanted = [nn.functional.dropout(values, 0.5), nn.functional.dropout(values, 0.5)]
    before = torch.get_rng_state()
    generator = own_dropout(network)
    generator.manual_seed(7)
    layers = [module for module in network.modules() if isinstance(module, nn.Dropout)]
    assert len(layers) == 2
    for layer, drawn in zip(layers, wanted, strict=True):
        torch.testing.assert_close(layer(values), drawn, rtol=0, atol=0)
    assert torch.equal(layers[0].eval()(values), values)
    assert torch.equal(torch.get_rng_state(), before)

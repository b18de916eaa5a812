"""The epochs of a stage: which one is kept, when patience ends, and what a checkpoint must hold."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from convnets_torch.training.distributed import Group
from convnets_torch.training.running import (
    Callbacks,
    Checkpointer,
    EpochRow,
    TrainingProgress,
    TrainingStopped,
    best_epoch,
    read_checkpoint,
    run_stage,
)
from convnets_torch.training.settings import Settings
from convnets_torch.training.stages import HeadStage, freeze, unfrozen
from tests.finetuned import small_resnet


def worsening(**options):
    """A stage that is judged by the opposite of what it learns, so that its first epoch is the best."""
    labels = torch.arange(40) % 2
    rows = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)) + 3 * labels[:, None]
    return HeadStage(rows, labels, rows, 1 - labels, 2, Settings(batch=20, head_lr=0.01, **options))


@pytest.mark.parametrize("steps", [3, 4, 5])  # of 2 an epoch: in the one after the best, and later
def test_the_best_epoch_outlives_a_break_after_worse_ones(tmp_path, steps):
    stage, progress, checkpointer = (
        worsening(),
        TrainingProgress(),
        Checkpointer(tmp_path / "unbroken.safetensors", {}, Group()),
    )
    run_stage(stage, progress, 4, 0, checkpointer, Callbacks(), {})
    assert best_epoch(progress.history).epoch == 1
    path, asked = tmp_path / "broken.safetensors", itertools.count()
    callbacks = Callbacks(stop=lambda: next(asked) >= steps)
    with pytest.raises(TrainingStopped):
        run_stage(worsening(), TrainingProgress(), 4, 0, Checkpointer(path, {"settings": {}}, Group()), callbacks, {})
    arrays, _, resumed = read_checkpoint(path)
    again, other = worsening(), Checkpointer(path, {}, Group())
    other.restore(again, resumed, arrays)
    run_stage(again, resumed, 4, 0, other, Callbacks(), {})
    assert set(other.best) == {"weight", "bias"}
    for name, values in checkpointer.best.items():
        assert torch.equal(other.best[name], values)
        assert not torch.equal(stage.layer.get_parameter(name), values)
        assert torch.equal(again.layer.get_parameter(name), stage.layer.get_parameter(name))


@pytest.mark.parametrize(("losses", "waited"), [([3, 2, 1], 0), ([1, 2, 3], 2), ([1, 2, 2], 2), ([2, 1, 1.5], 1)])
def test_patience_counts_epochs_of_the_stage_since_the_best_one_of_all(losses, waited):
    rows = [EpochRow(2, number, 0, loss, 0.5, 0.1, 0) for number, loss in enumerate(losses, start=1)]
    progress = TrainingProgress(stage=2, history=rows)
    assert progress.waited == waited
    assert progress.ended(9, 2) == (waited >= 2)
    assert not progress.ended(9, 0)
    assert progress.ended(3, 0)
    begun = TrainingProgress(stage=2, history=[replace(row, stage=1) for row in rows])
    assert (begun.waited, begun.ended(1, 1)) == (0, False)  # of stage one's epochs none is waited for


def test_validation_takes_neither_smoothing_nor_weights():
    plain, other = worsening().validate(), worsening(label_smoothing=0.5, class_weights="balanced").validate()
    assert plain == other == (pytest.approx(torch.tensor(2.0).log().item()), pytest.approx(0.5))


def test_rare_classes_weigh_as_much_as_frequent_ones():
    rows, labels = torch.ones(6, 2), torch.tensor([0, 0, 0, 0, 0, 1])
    plain = Settings(batch=6, head_lr=0.05)
    for settings, wanted in ((plain, 5 / 6), (replace(plain, class_weights="balanced"), 1 / 2)):
        stage = HeadStage(rows, labels, rows, labels, 2, settings)
        for _ in range(200):
            for step in stage.steps(1, 0):
                stage.optimizer.zero_grad()
                step.loss.backward()
                stage.optimizer.step()
        chance = stage.layer(torch.zeros(1, 2)).softmax(1)[0, 0].item()
        assert chance == pytest.approx(wanted, abs=0.02), settings


def test_frozen_layers_leave_no_graph():
    network, graphs = small_resnet(), {}
    freeze(network, unfrozen(network, "conv5_block3"), dropout=True)
    for name, module in network.named_modules():
        module.register_forward_hook(lambda module, given, output, name=name: graphs.update({name: output.grad_fn}))
    network(torch.zeros(1, 3, 64, 64))
    below = [name for name in graphs if name.startswith("features.conv") and "conv5_block3" not in name]
    assert len(below) > 100
    assert not any(graphs[name] for name in below)
    assert graphs["features.conv5_block3.conv_1"]

"""The history of a training: as a table, as a picture, and what TensorBoard reads of it."""

from __future__ import annotations

import csv
import itertools
import math
import sys

import numpy as np
import pytest

from convnets_torch.training.running import EpochRow, best_epoch, draw_history, save_history_csv, tensorboard_log
from convnets_torch.visualization.charts import round_marks
from convnets_torch.visualization.overlays import CLASS_COLORS, GREY


def history(*stages: int, scale: float = 1.0) -> list[EpochRow]:
    """Falling losses, validation above training, over so many epochs of each stage."""
    numbered = enumerate(itertools.chain(*([stage] * count for stage, count in enumerate(stages, 1))), 1)
    losses = [(stage, epoch, scale * math.exp(-epoch / sum(stages))) for epoch, stage in numbered]
    return [EpochRow(stage, epoch, loss, 1.2 * loss, 0.9 - 0.1 / epoch, 0.01, 2.5) for stage, epoch, loss in losses]


def places(image, color) -> np.ndarray:
    """Rows and columns of the pixels that have a colour, or nearly: lines are smoothed."""
    return np.argwhere((abs(np.asarray(image).astype(int) - color) < 70).all(2))


def test_a_table_holds_every_number_as_it_is(tmp_path):
    rows = [*history(2, 3), EpochRow(2, 6, math.nan, 1e-17, 1 / 3, 1e-4, 0.1)]
    save_history_csv(rows, tmp_path / "history.csv")
    with (tmp_path / "history.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in read] == [1, 2, 3, 4, 5, 6]
    names = ("train_loss", "val_loss", "val_accuracy", "rate", "seconds")
    again = [EpochRow(int(row["stage"]), int(row["epoch"]), *(float(row[name]) for name in names)) for row in read]
    assert again[:5] == rows[:5]
    assert math.isnan(again[5].train_loss)
    assert (again[5].val_loss, again[5].val_accuracy) == (1e-17, 1 / 3)
    with pytest.raises(FileNotFoundError, match="create it first"):
        save_history_csv(rows, tmp_path / "none" / "history.csv")


def test_the_best_epoch_is_the_most_accurate_then_of_least_loss_then_the_first():
    rows = [EpochRow(1, epoch, 1, loss, accuracy, 0.1, 1) for epoch, loss, accuracy in
            ((1, 0.2, 0.7), (2, 0.5, 0.8), (3, 0.4, 0.8), (4, 0.4, 0.8))]  # fmt: skip
    assert best_epoch(rows).epoch == 3


@pytest.mark.parametrize("stages", [(1,), (2,), (0, 1), (5, 12), (200, 800)])
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e5])
def test_any_history_is_drawn(stages, scale):
    assert draw_history(history(*stages, scale=scale)).size == (800, 892)


def test_lower_losses_stand_lower_and_validation_above_training():
    image = draw_history(history(6, scale=3.0)).crop((58, 60, 750, 375))
    validation, training = (places(image, CLASS_COLORS[color]) for color in (5, 4))
    for found in (validation, training):
        columns = found[:, 1]
        left, right = (found[columns < 200][:, 0].mean(), found[columns > 500][:, 0].mean())
        assert left < right  # rows count from the top
    shared = set(validation[:, 1]) & set(training[:, 1])
    assert len(shared) > 100
    for column in shared:
        rows = [found[found[:, 1] == column][:, 0].mean() for found in (validation, training)]
        assert rows[0] < rows[1]


def test_losses_of_several_decades_fall_evenly_on_their_axis():
    """Each epoch divides the loss by ten, which is a straight line there and a corner on a plain axis."""
    rows = [EpochRow(1, epoch, 10.0**-epoch, 10.0**-epoch, 0.5, 0.1, 1) for epoch in range(1, 6)]
    found = places(draw_history(rows).crop((70, 60, 740, 375)), CLASS_COLORS[5])
    slope = np.polyfit(found[:, 1], found[:, 0], 1)
    assert np.abs(np.polyval(slope, found[:, 1]) - found[:, 0]).max() < 8  # pixels: the dots' radius, and the line's


def test_the_border_of_the_stages_stands_between_their_epochs():
    dashes = {name: places(draw_history(rows).crop((62, 80, 748, 365)), GREY) for name, rows in
              (("one", history(10)), ("two", history(4, 6)))}  # fmt: skip
    assert not len(dashes["one"])
    columns = dashes["two"][:, 1] + 62
    assert np.ptp(columns) <= 1
    assert columns.mean() == pytest.approx(
        58 + 704 * 3.5 / 9, abs=1.5
    )  # between epochs 4 and 5 of 1 to 10; the plot is 704 wide


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_not_drawn(value):
    with pytest.raises(ValueError, match=f"epoch 3 has a val_loss of {value}; draw the epochs before it"):
        draw_history([*history(2), EpochRow(1, 3, 1.0, value, 0.5, 0.1, 1)])
    with pytest.raises(ValueError, match="no finished epoch to draw"):
        draw_history([])


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.7, 1), (1, 1000), (0, 3e-7), (2.3, 2.4), (0, 12345.6), (1, 2)]
)
def test_marks_are_round_few_and_in_range(low, high):
    marks = round_marks(low, high)
    assert 3 <= len(marks) <= 7
    assert low - 1e-12 <= marks[0] < marks[-1] <= high + 1e-12
    steps = np.diff(marks)
    np.testing.assert_allclose(steps, steps[0])
    assert f"{steps[0]:.6e}"[0] in "125"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's own
def test_a_run_that_goes_on_shows_each_epoch_once(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    first, second = history(3, 2), history(3, 5, scale=7.0)
    with tensorboard_log(tmp_path / "events") as log:
        for row in first:
            log(row)
    with tensorboard_log(tmp_path / "events", first_epoch=4) as log:  # epoch 3 was the last one of the checkpoint
        for row in second[3:]:
            log(row)
    events = accumulators.EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"stage", "train_loss", "val_loss", "val_accuracy", "rate", "seconds"}
    losses = events.Scalars("val_loss")
    assert [event.step for event in losses] == [1, 2, 3, 4, 5, 6, 7, 8]
    wanted = [row.val_loss for row in first[:3] + second[3:]]
    assert [event.value for event in losses] == pytest.approx(wanted, rel=1e-6)


def test_without_tensorboard_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"need tensorboard: pip install 'convnets-torch\[tensorboard\]'"):  # noqa: SIM117
        with tensorboard_log(tmp_path / "events"):
            pass
    assert not (tmp_path / "events").exists()

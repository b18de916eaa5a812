"""The history of a training: as a table, as a picture, and what TensorBoard reads of it."""

from __future__ import annotations

import csv
import itertools
import math
import sys
from io import BytesIO

import pytest
from PIL import Image

from convnets_torch.training.running import EpochRow, best_epoch, draw_history, save_history_csv, tensorboard_log
from convnets_torch.visualization.charts import png_of


def history(*stages: int, scale: float = 1.0) -> list[EpochRow]:
    """Falling losses, validation above training, over so many epochs of each stage."""
    numbered = enumerate(itertools.chain(*([stage] * count for stage, count in enumerate(stages, 1))), 1)
    losses = [(stage, epoch, scale * math.exp(-epoch / sum(stages))) for epoch, stage in numbered]
    return [EpochRow(stage, epoch, loss, 1.2 * loss, 0.9 - 0.1 / epoch, 0.01, 2.5) for stage, epoch, loss in losses]


def test_a_table_holds_every_number_as_it_is(tmp_path):
    rows = [*history(2, 3), EpochRow(2, 6, math.nan, 1e-17, 1 / 3, 1e-4, 0.1)]
    save_history_csv(rows, tmp_path / "history.csv")
    with (tmp_path / "history.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in read] == [1, 2, 3, 4, 5, 6]
    names = ("train_loss", "val_loss", "val_accuracy", "lr", "seconds")
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
    above, below = draw_history(history(*stages, scale=scale))
    assert above.figure is below.figure
    with Image.open(BytesIO(png_of(above))) as image:
        assert image.size == (800, 880)


def test_curves_are_the_losses_and_the_scores_of_the_epochs():
    rows = history(2, 4, scale=3.0)
    losses, scores = draw_history(rows)
    train, val = losses.get_lines()[:2]
    for line, name in ((train, "train_loss"), (val, "val_loss"), (scores.get_lines()[0], "score")):
        assert list(line.get_xdata()) == [1, 2, 3, 4, 5, 6]
        assert list(line.get_ydata()) == [getattr(row, name) for row in rows]
    assert train.get_color() != val.get_color() == scores.get_lines()[0].get_color()
    best = best_epoch(rows)
    for ax, value in ((losses, best.val_loss), (scores, best.score)):
        [ring] = [line for line in ax.get_lines() if line.get_fillstyle() == "none"]
        assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (best.epoch, value)
    assert losses.get_ylim()[0] == 0
    assert scores.get_ylim() == (0.7, 1)  # 0.8 is the least
    assert [text.get_text() for text in losses.get_legend().get_texts()] == [
        f"training, {rows[-1].train_loss:.4g} at last",
        f"validation, {rows[-1].val_loss:.4g} at last",
    ]


@pytest.mark.parametrize(("last", "scale"), [(3.0, "linear"), (0.03, "log"), (0.0, "linear"), (-0.1, "linear")])
def test_losses_that_differ_more_than_30_times_stand_on_an_axis_of_logarithms(last, scale):
    rows = [EpochRow(1, 1, 2.0, 2.0, 0.5, 0.1, 1), EpochRow(1, 2, last, 2.0, 0.5, 0.1, 1)]
    above, below = draw_history(rows)
    assert (above.get_yscale(), below.get_yscale()) == (scale, "linear")
    assert ("logarithmic" in above.get_title(loc="left")) == (scale == "log")


def test_the_border_of_the_stages_stands_between_their_epochs():
    for ax in draw_history(history(10)):
        assert not ax.texts
    for ax in draw_history(history(4, 6)):
        assert [text.get_text().strip() for text in ax.texts] == ["stage 1", "stage 2"]
        assert {text.get_position()[0] for text in ax.texts} == {4.5}
        assert [line.get_xdata()[0] for line in ax.get_lines() if line.get_linestyle() == "--"] == [4.5]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_not_drawn(value):
    with pytest.raises(ValueError, match=f"epoch 3 has a val_loss of {value}; plot the epochs before it"):
        draw_history([*history(2), EpochRow(1, 3, 1.0, value, 0.5, 0.1, 1)])
    with pytest.raises(ValueError, match="no finished epoch to plot"):
        draw_history([])


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
    assert set(events.Tags()["scalars"]) == {"stage", "train_loss", "val_loss", "val_accuracy", "lr", "seconds"}
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

"""Former names of modules' contents, keywords and attributes: they work for one release, with a warning."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convnets_torch.card import Card
from convnets_torch.evaluation.evaluate import Evaluation, Running, evaluate
from convnets_torch.evaluation.labels import GroundTruth
from convnets_torch.evaluation.report import Metrics, save_report
from convnets_torch.explain.statistics import FolderStatistics
from convnets_torch.images.preprocessing import preset
from convnets_torch.inference.pipeline import Result
from convnets_torch.training.datasets import Dataset
from convnets_torch.training.finetuning import finetune
from convnets_torch.training.running import Callbacks, EpochRow
from convnets_torch.training.settings import Settings
from tests.finetuned import small_resnet

NAMES = [  # module, former name, present one
    ("convnets_torch.evaluation.report", "Judged", "Metrics"),
    ("convnets_torch.evaluation.report", "judge", "compute_metrics"),
    ("convnets_torch.evaluation.report", "save_judged", "save_report"),
    ("convnets_torch.training.finetuning", "Watch", "Callbacks"),
    ("convnets_torch.training.running", "Reports", "Callbacks"),
]


@pytest.mark.parametrize(("module", "former", "present"), NAMES)
def test_a_renamed_function_or_class_is_found_by_its_former_name(module, former, present):
    with pytest.warns(DeprecationWarning, match=rf"{module}\.{former} is now {present};") as caught:
        found = getattr(import_module(module), former)
    assert found is getattr(import_module(module), present)
    assert caught[0].filename == __file__
    with pytest.raises(AttributeError, match="has no attribute 'judged_by_nobody'"):
        import_module(module).judged_by_nobody  # noqa: B018


@pytest.mark.parametrize(("former", "present"), [("rate", "lr"), ("head_rate", "head_lr")])
def test_learning_rates_have_their_former_names(former, present):
    with pytest.warns(DeprecationWarning, match=rf"Settings\({former}=\.\.\.\) is now {present};"):
        settings = Settings(**{former: 0.5})  # type: ignore[arg-type]
    assert settings == Settings(**{present: 0.5})  # type: ignore[arg-type]
    with pytest.warns(DeprecationWarning, match=rf"Settings\.{former} is now {present};"):
        assert getattr(settings, former) == 0.5
    with pytest.raises(TypeError, match=f"takes {former} as a former name of {present}; give one of them"):
        Settings(**{former: 0.5, present: 0.5})  # type: ignore[arg-type]
    assert former not in {each.name for each in fields(Settings)} | settings.to_dict().keys()
    with pytest.raises(ValueError, match=rf"^{present} is -1; give a number above 0"):
        replace(settings, **{present: -1})  # type: ignore[arg-type]


def test_an_epoch_has_a_rate():
    with pytest.warns(DeprecationWarning, match=r"EpochRow\(rate=\.\.\.\) is now lr"):
        row = EpochRow(1, 1, 1.0, 1.0, 0.5, rate=0.25, seconds=1)  # type: ignore[call-arg]
    with pytest.warns(DeprecationWarning, match=r"EpochRow\.rate is now lr"):
        assert row.rate == row.lr == 0.25


def evaluation() -> Evaluation:
    card = Card("vgg16", {"classes": 2}, preset("vgg16"), ("a", "b"))
    labels, logits = np.zeros(1, np.int64), np.zeros((1, 2), np.float32)
    return Evaluation(card, Path(), "center", (Path(),), labels, logits, None, (), ("x",), Running(0, 0, 0, None, None))


def test_notes_are_found_as_remarks():
    found = evaluation()
    truth = GroundTruth(Path(), (), np.zeros(0, np.int64), ("x",))
    row: Result[int] = Result("cat.jpg", 1, None, ("x",))
    statistics = FolderStatistics((), (), ("x",))
    for each in (found, truth, Dataset((), (), (), "", ("x",)), Metrics(found, notes=("x",)), row, statistics):
        with pytest.warns(DeprecationWarning, match=rf"{type(each).__name__}\.remarks is now notes"):
            assert each.remarks == each.notes == ("x",)


def test_callbacks_are_given_as_a_watch_with_reports(tmp_path):
    def stop() -> bool:
        return True

    assert Callbacks(found=print, reports=Callbacks(stop=stop)) == Callbacks(found=print, stop=stop)
    with (
        pytest.warns(DeprecationWarning, match=r"finetune\(watch=\.\.\.\) is now callbacks"),
        pytest.raises(ValueError, match="NoneType is not a network"),  # which comes after the keywords
    ):
        finetune(None, Dataset((), (), (), ""), tmp_path / "x.safetensors", watch=Callbacks())  # type: ignore[call-arg]


def test_functions_show_the_keywords_for_reading_and_take_no_others(tmp_path):
    network: Any = small_resnet(2)
    found = Metrics(evaluation())
    calls: Any = (
        partial(finetune, network, Dataset((), (), (), ""), tmp_path / "x.safetensors"),
        partial(evaluate, network, GroundTruth(Path(), (), np.zeros(0, np.int64))),
        partial(save_report, found, tmp_path),
    )
    for call in calls:
        shown = [name for name, each in signature(call.func).parameters.items() if each.kind is each.KEYWORD_ONLY]
        assert shown[-4:] == ["max_pixels", "allow_truncated", "depth", "background"]
        with pytest.raises(TypeError, match="unexpected keyword argument 'pixels'; known: max_pixels, allow_truncated"):
            call(pixels=3)

"""Predictions as tables: read back by the csv module and by pyarrow they are what the network answered."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from convnets_torch.evaluation.evaluate import evaluate
from convnets_torch.evaluation.labels import find_truth
from convnets_torch.evaluation.report import check_predictions, compute_metrics, save_predictions, save_report
from convnets_torch.weights import save
from convnets_torch.wordnet import synsets
from tests.test_evaluation import narrow_alexnet, write_pictures

pq = pytest.importorskip("pyarrow.parquet")
NASTY = '=1+1\nsecond, "line";\ttab \udcff'  # of a picture's file
NAMES = ("n02123045", "=cmd()\nb", 'c, "d"', *"defghij")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """An evaluation of pictures and classes with names that are no honest ones, one picture broken."""
    folder = write_pictures(tmp_path_factory.mktemp("tables"))
    network = narrow_alexnet()
    network.card = replace(network.card, class_names=NAMES)
    for old, new in zip("abc", NAMES, strict=False):
        (folder / "classes" / old).rename(folder / "classes" / new)
    shutil.copy(folder / "flat" / "01.png", folder / "classes" / NAMES[1] / f"{NASTY}.png")
    return evaluate(network, find_truth(network.card, folder / "classes"))


def test_both_files_hold_what_was_answered(found, tmp_path):
    save_predictions(found, tmp_path / "all.csv")
    save_predictions(found, tmp_path / "all.parquet")
    with (tmp_path / "all.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    table = pq.read_table(tmp_path / "all.parquet")
    columns = table.to_pydict()
    assert len(rows) == table.num_rows == len(found.paths) + len(found.failed) == 24
    chances = torch.from_numpy(np.array(found.logits)).double().softmax(1).numpy()
    answers = chances.argmax(1)
    for row, (path, truth, answer) in enumerate(zip(found.paths, found.labels, answers, strict=True)):
        assert columns["path"][row] == str(path).replace("\udcff", "\\udcff")
        assert (columns["truth_id"][row], columns["answer_id"][row]) == (truth, answer)
        words = "tabby, tabby cat" if truth == 0 else NAMES[truth]
        assert columns["truth"][row] == words
        assert columns["rank"][row] == 1 + (chances[row] > chances[row, truth]).sum()
        every = [columns[name][row] for name in table.column_names[-10:]]
        assert every == pytest.approx(chances[row], rel=1e-6)
        assert (columns["probability"][row], columns["probability_of_truth"][row]) == pytest.approx(
            (chances[row].max(), chances[row, truth]), rel=1e-6
        )
        for name, text in rows[row].items():
            value = columns[name.lstrip("'")][row]
            if isinstance(value, str) or value is None:
                cells = "" if value is None else value
                assert text.lstrip("'").replace("\\t", "\t") == cells
                assert not text.startswith(("=", "+", "-", "@"))
            else:
                assert float(text) == pytest.approx(value, rel=1e-6)
    assert [rows[-1]["path"], rows[-1]["error"]] == [str(found.failed[0][0]), found.failed[0][1]]
    assert {value for name, value in rows[-1].items() if name not in ("path", "error")} == {""}
    assert columns["error"][-1] == found.failed[0][1]
    names = [Path(path).name for path in columns["path"]]
    assert any(name.startswith("=1+1\nsecond") for name in names)  # the break is one
    assert "probability 1 =cmd()\nb" in table.column_names
    assert table.schema.field("probability").type == "float"


def test_a_report_holds_the_same_without_the_classes(found, tmp_path):
    metrics = compute_metrics(found)
    names = save_report(metrics, tmp_path)
    assert {"predictions.csv", "classes.csv", "confusion.svg"} <= {*names}
    with (tmp_path / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    wrong = [row for row in rows if row["rank"] not in ("", "1")]
    assert len(wrong) == metrics.mistakes.count
    assert list(rows[0])[-1] == "error"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"All mistakes ({metrics.mistakes.count}), worst first" in page
    assert all(Path(each.path).name[:2] in page for each in metrics.mistakes.listed)


def test_more_mistakes_than_a_page_lists_are_counted_and_lie_beside_it(found, tmp_path, monkeypatch):
    monkeypatch.setattr("convnets_torch.evaluation.metrics.LISTED", 3)
    metrics = compute_metrics(found)
    save_report(metrics, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"The 3 worst of {metrics.mistakes.count} mistakes" in page
    assert f"{metrics.mistakes.count - 3} more are in predictions.csv, next to this page: the rows" in page


def test_severity_and_plain_outputs(found, tmp_path):
    wnids = tuple(synsets.wnid(each) for each in (281, 282, 207, 208, 0, 1, 2, 3, 4, 5))
    own = replace(found, card=replace(found.card, class_names=wnids, activation="none"), failed=())
    save_predictions(own, tmp_path / "tree.parquet")
    columns = pq.read_table(tmp_path / "tree.parquet").to_pydict()
    for row in range(len(found.paths)):
        truth, answer = (wnids[columns[name][row]] for name in ("truth_id", "answer_id"))
        above = synsets.common_ancestor(truth, answer)
        assert columns["common_ancestor"][row] == above.words[0]
        assert columns["steps"][row] == synsets.find(truth).depth - above.depth
        assert (columns["height"][row] == 0) == (truth == answer)
        assert columns["output"][row] == pytest.approx(found.logits[row].max())


def test_the_command_writes_one_and_refuses_others_before_any_work(command, tmp_path):
    pictures = write_pictures(tmp_path / "pictures")
    weights = tmp_path / "narrow.safetensors"
    save(narrow_alexnet(), weights)
    table = tmp_path / "answers.parquet"
    arguments = (weights, pictures / "flat", "--truth", pictures / "truth.txt")
    code, out, error = command("evaluate", *arguments, "--predictions", table, "--json")
    assert code == 1  # for the picture that is none
    assert f"{table}: 23 pictures" in error
    ranks = pq.read_table(table).to_pydict()["rank"]
    assert sum(rank != 1 for rank in ranks if rank) == json.loads(out)["errors"]["top-1"]["wrong"]
    for output, words in [
        (tmp_path / "a.xlsx", "unknown ending; predictions are written as .csv or .parquet"),
        (tmp_path / "none" / "a.csv", "does not exist"),
    ]:
        code, out, error = command("evaluate", *arguments, "--predictions", output)
        assert (code, out) == (1, "")
        assert words in error
    shutil.copy(pictures / "truth.txt", pictures / "truth.csv")
    code, _, error = command(
        "evaluate", *arguments[:3], pictures / "truth.csv", "--predictions", pictures / "truth.csv"
    )
    assert code == 1
    assert "would overwrite" in error


@pytest.mark.slow
def test_without_pyarrow_a_sentence_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from pathlib import Path\n"
        "from convnets_torch.evaluation.report import check_predictions\n"
        "check_predictions(Path('a.csv'))\n"
        "check_predictions(Path('a.parquet'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert "ImportError: a Parquet file needs pyarrow" in done.stderr
    assert "pip install 'convnets-torch[parquet]'" in done.stderr
    check_predictions(tmp_path / "a.parquet")

"""Pictures with several labels each: tables, sides, losses, training and evaluation, against scikit-learn's figures."""

from __future__ import annotations

import csv
import itertools
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from convnets_torch import classify, evaluate, find_truth, load
from convnets_torch.evaluation.report import compute_metrics, save_report
from convnets_torch.evaluation.several_labels import average_precision, score_labels
from convnets_torch.images.labelled import find_classes, find_labelled
from convnets_torch.inference.pipeline import predict
from convnets_torch.training.augmentation import AUGMENTATIONS
from convnets_torch.training.datasets import find_dataset
from convnets_torch.training.finetuning import checkpoint_of, finetune, outputs_of
from convnets_torch.training.running import (
    Callbacks,
    EpochRow,
    TrainingStopped,
    best_epoch,
    draw_history,
    save_history_csv,
)
from convnets_torch.training.stages import balanced, row_losses, soft_targets, targets_and_weights
from convnets_torch.weights import save
from tests.finetuned import QUICK, small_resnet

metrics = pytest.importorskip("sklearn.metrics")
SETTINGS = replace(QUICK, activation="sigmoid", class_weights="balanced", label_smoothing=0.1, head_epochs=8)
KINDS = [("ant",), ("bee",), ("ant", "bee"), ("cat",), ("ant", "cat"), ()]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """36 pictures of noise: an ant makes them redder, a bee greener, a cat bluer; and a table of columns."""
    folder = tmp_path_factory.mktemp("several") / "data"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(36):
        pixels = generator.normal(90, 60, (70, 90, 3))
        for name in KINDS[number % 6]:
            pixels[..., ("ant", "bee", "cat").index(name)] += 130
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:02}.png")
    write(folder.parent / "columns.csv", columns(), "image", "ant", "bee", "cat")
    return folder


def columns(numbers=range(36)):
    return [(f"{each:02}.png", *(int(name in KINDS[each % 6]) for name in ("ant", "bee", "cat"))) for each in numbers]


def joined(mark, numbers=range(36)):
    """Those with a label."""
    return [(f"{each:02}.png", mark.join(KINDS[each % 6])) for each in numbers if KINDS[each % 6]]


def write(path, rows, *header):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture(scope="module")
def dataset(pictures):
    return find_dataset(pictures, truth=pictures.parent / "columns.csv")


@pytest.fixture(scope="module")
def tuned(dataset, vectors, tmp_path_factory):
    output = tmp_path_factory.mktemp("tuned") / "mine.safetensors"
    return finetune(small_resnet(), dataset, output, SETTINGS, cache=vectors, allow_leaks=True), output


# Tables


@pytest.mark.parametrize(
    ("rows", "header", "words"),
    [
        (columns(), ("image", "ant", "bee", "cat"), "12 of 36 pictures have several labels, and 6 none (by their col"),
        (joined("|"), ("path", "label"), "12 of 30 pictures have several labels (separated by '|'); each label is a"),
        (joined(" | "), ("path", "label"), "(separated by '|')"),
        (joined(","), ("id", "label"), "(separated by ',')"),
        (joined(";"), ("id", "label"), "(separated by ';')"),
        (joined(" "), ("id", "tags"), "(separated by blanks)"),
        (
            [(name, " 1 2 3 4 ".join([*label.split("|"), ""])) for name, label in joined("|")],
            ("ImageId", "PredictionString"),
            "(by their boxes)",
        ),
    ],
)
def test_every_table_gives_the_same_labels(pictures, tmp_path, rows, header, words):
    table = write(tmp_path / "labels.csv", rows, *header)
    wanted = {pictures / row[0]: KINDS[int(row[0][:2]) % 6] for row in rows}
    found = find_labelled(pictures, table, partial=True, several=True)
    assert dict(zip(found.paths, found.several, strict=True)) == wanted
    assert words in found.notes[-1]
    dataset = find_dataset(pictures, truth=table, partial=True)
    assert {path: dataset.names_of(label) for path, label in dataset.train + dataset.val} == wanted
    card = replace(small_resnet(3).card, class_names=("cat", "ant", "bee"), activation="sigmoid")
    truth = find_truth(card, pictures, truth=table, partial=True)
    assert truth.labels.dtype == bool
    for path, row in zip(truth.paths, truth.labels, strict=True):
        assert {name for name, has in zip(("cat", "ant", "bee"), row, strict=True) if has} == {*wanted[path]}
    with pytest.raises(ValueError, match=r"line 4 has 2 labels \(ant, bee\), .* \(finetune and evaluate take several"):
        find_classes(pictures, truth=table, partial=True)


def test_tags_that_never_stand_alone_are_told_by_how_few_they_are(pictures, tmp_path):
    """As those of satellite pictures: "agriculture clear primary", "clear water", ..."""
    words = ["clear", "haze", "water", "road", "primary"]
    pairs = [" ".join(pair) for pair in itertools.combinations(words, 2)]
    table = write(tmp_path / "tags.csv", [(f"{n:02}.png", pair) for n, pair in enumerate(pairs)], "image_name", "tags")
    found = find_labelled(pictures, table, partial=True, several=True)
    assert {label for labels in found.several for label in labels} == {*words}


@pytest.mark.parametrize(
    ("label", "labels"),
    [
        ("label", ["red wine", "white wine", "red", "wine"]),
        ("labels", ["golden retriever", "labrador retriever", "pug", "beagle"]),
        ("label", ["tench, Tinca tinca", "goldfish, Carassius auratus", "great white shark", "tench"]),
        ("label", [f"{crop}, {state}" for crop in ("apple", "corn", "fig", "oat", "rice") for state in "pqrst"]),
        ("label", ["a|b", "c|d", "e", "f"]),
    ],
)
def test_names_with_marks_in_them_stay_one_label(pictures, tmp_path, label, labels):
    table = write(tmp_path / "labels.csv", [(f"{n:02}.png", name) for n, name in enumerate(labels)], "path", label)
    found = find_labelled(pictures, table, partial=True, several=True)
    assert found.several is None
    assert found.labels == tuple(labels)


def test_pictures_to_be_answered_are_no_pictures_without_a_label(pictures, tmp_path):
    rows = [("00.png", 1, 0, "train"), ("01.png", 0, 1, "train"), ("02.png", 0, 0, "test")]
    table = write(tmp_path / "labels.csv", rows, "path", "ant", "bee", "split")
    found = find_labelled(pictures, table, partial=True, several=True)
    assert (found.labels, found.several) == (("ant", "bee"), None)
    table = write(tmp_path / "labels.csv", [*rows, ("04.png", 1, 1, "train")], "path", "ant", "bee", "split")
    found = find_labelled(pictures, table, partial=True, several=True)
    assert found.several == (("ant",), ("bee",), (), ("ant", "bee"))


def test_a_column_without_a_1_is_told(pictures, tmp_path):
    table = write(tmp_path / "labels.csv", [(*row, 0) for row in columns()], "path", "ant", "bee", "cat", "dog")
    dataset = find_dataset(pictures, truth=table)
    assert dataset.classes == ("ant", "bee", "cat")
    assert f"{table}: no picture has a 1 in 1 columns (dog)" in dataset.notes


def test_the_same_picture_with_other_labels_is_refused(pictures, tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("00.png", "02.png"):
        (tmp_path / "data" / name).write_bytes((pictures / "00.png").read_bytes())
    table = write(tmp_path / "labels.csv", joined("|", [0, 2]), "path", "label")
    with pytest.raises(ValueError, match=r"00\.png \(ant\) and .*02\.png \(ant\|bee\); give them the same labels"):
        find_dataset(tmp_path / "data", truth=table)


# Sides


@pytest.mark.parametrize("seed", range(4))
def test_each_label_has_its_share_on_each_side(pictures, seed):
    dataset = find_dataset(pictures, truth=pictures.parent / "columns.csv", val_share=0.25, seed=seed)
    for name, wanted in {"ant": 4, "bee": 3, "cat": 3, "": 2}.items():
        counts = [
            sum(name in (dataset.names_of(label) or ("",)) for _, label in side)
            for side in (dataset.train, dataset.val)
        ]
        assert wanted <= counts[1] <= 6, name
        assert counts[0] >= 4, name
    assert len(dataset.train) + len(dataset.val) == 36
    assert dataset.split == f"25 % of each label, seed {seed}"


@pytest.mark.parametrize("seed", range(4))
def test_a_label_of_two_pictures_keeps_one_to_be_learnt_from(pictures, tmp_path, seed):
    """Each picture of a ring has its own label and the next one's."""
    rows = [(f"{n:02}.png", f"k{n}|k{(n + 1) % 9}") for n in range(9)]
    table = write(tmp_path / "labels.csv", rows, "path", "label")
    dataset = find_dataset(pictures, truth=table, partial=True, seed=seed)
    assert {name for _, label in dataset.train for name in dataset.names_of(label)} == {f"k{n}" for n in range(9)}
    assert dataset.val


def test_a_column_may_say_the_sides(pictures, tmp_path):
    rows = [(name, label, ("train", "val", "test")[n // 2 % 3]) for n, (name, label) in enumerate(joined("|"))]
    table = write(tmp_path / "labels.csv", rows, "path", "label", "split")
    dataset = find_dataset(pictures, truth=table, partial=True)
    wanted = {pictures / name: (label.split("|"), side) for name, label, side in rows if side != "test"}
    for side, found in (("train", dataset.train), ("val", dataset.val)):
        assert {path: ([*dataset.names_of(label)], side) for path, label in found} == {
            path: each for path, each in wanted.items() if each[1] == side
        }
    rows = [(name, "ant|dog" if side == "val" else label, side) for name, label, side in rows]
    table = write(tmp_path / "labels.csv", rows, "path", "label", "split")
    with pytest.raises(ValueError, match=r"1 classes are in val and not in train \(dog\)"):
        find_dataset(pictures, truth=table, partial=True)


def test_the_last_picture_with_a_label_is_learnt_from_and_copies_stay_together(pictures, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number:02}.png").write_bytes((pictures / f"{number // 2:02}.png").read_bytes())
    rows = [(f"{n:02}.png", "|".join(("rare",) * (n < 4) + (f"k{n // 2 % 3}", "x"))) for n in range(20)]
    dataset = find_dataset(folder, truth=write(tmp_path / "labels.csv", rows, "path", "label"), val_share=0.5)
    train, val = ({path.name for path, _ in side} for side in (dataset.train, dataset.val))
    assert all((f"{n:02}.png" in train) == (f"{n + 1:02}.png" in train) for n in range(0, 20, 2))
    rare = [sum("rare" in dataset.names_of(label) for _, label in side) for side in (dataset.train, dataset.val)]
    assert rare == [2, 2]
    assert train | val == {row[0] for row in rows}


# Figures


def drawn(count=200, classes=70, seed=0):
    """Outputs with many equal ones, and labels; the last class has no picture."""
    generator = np.random.default_rng(seed)
    truth = generator.random((count, classes)) < generator.random(classes) / 2
    truth[:, -1] = False
    logits = (2 * truth - 1 + generator.normal(0, 2, truth.shape)).round(1)
    return logits.astype(np.float32), truth


def test_figures_are_those_of_scikit_learn():
    logits, truth = drawn()
    found = score_labels(logits, truth)
    had = truth.any(0)
    assert had.sum() == 69
    wanted = metrics.average_precision_score(truth[:, had], logits[:, had], average=None)
    precisions = np.array([each.average_precision for each in found.labels if each.pictures])
    np.testing.assert_allclose(precisions, wanted, rtol=1e-12)
    assert found.mean_average_precision == pytest.approx(wanted.mean(), rel=1e-12)
    assert found.labels[-1].figures == dict.fromkeys(("average_precision", "precision", "recall", "f1"))
    given = logits >= 0
    for kind, ours in (("macro", found.macro), ("micro", found.micro.figures)):
        places = slice(None) if kind == "micro" else had
        theirs = metrics.precision_recall_fscore_support(
            truth[:, places], given[:, places], average=kind, zero_division=0
        )[:3]
        assert [ours[name] for name in ("precision", "recall", "f1")] == pytest.approx(theirs, rel=1e-12)
    assert (found.pictures, found.unlabelled) == (200, int((~truth.any(1)).sum()))


def test_what_has_no_figures_is_refused():
    logits, truth = drawn()
    with pytest.raises(ValueError, match="no picture has the label"):
        average_precision(logits[:, 0], np.zeros(200, bool))
    with pytest.raises(ValueError, match="no picture has a label"):
        score_labels(logits, np.zeros_like(truth))
    with pytest.raises(ValueError, match=r"outputs are \(200, 70\) and labels \(200,\) int64; give"):
        score_labels(logits, np.zeros(200, np.int64))


def test_losses_and_weights_are_those_of_pytorch_and_scikit_learn():
    weighting = pytest.importorskip("sklearn.utils.class_weight")
    logits, truth = (torch.from_numpy(each) for each in drawn(40, 5))
    labels = truth.long()
    wanted = F.binary_cross_entropy_with_logits(logits, truth.float(), reduction="none")
    torch.testing.assert_close(row_losses(logits, soft_targets(labels, 5, 0, "sigmoid"), "sigmoid"), wanted.mean(1))
    weights = balanced(labels, 5)
    for place in range(4):
        theirs = weighting.compute_sample_weight("balanced", truth[:, place].numpy())
        np.testing.assert_allclose(weights[:, place].numpy(), theirs, rtol=1e-6)
    assert (weights[:, 4] == 1).all()  # which no row has
    targets, weights = targets_and_weights(labels, 5, SETTINGS)
    smooth = F.binary_cross_entropy_with_logits(logits, truth * 0.9 + 0.05, weights, reduction="none").mean(1)
    torch.testing.assert_close(row_losses(logits, targets, "sigmoid", weights), smooth)


# Training


def probabilities(network, paths):
    return np.stack([row.logits.sigmoid().numpy() for row in predict(network, list(paths), exact=True)])


def test_training_is_judged_by_mean_average_precision(tuned, dataset):
    result, output = tuned
    network = load(output)
    assert (network.card.activation, network.card.class_names) == ("sigmoid", ("ant", "bee", "cat"))
    truth = np.array([[name in dataset.names_of(label) for name in dataset.classes] for _, label in dataset.val])
    found = probabilities(network, [path for path, _ in dataset.val])
    wanted = metrics.average_precision_score(truth, found, average="macro")
    assert result.best.score == pytest.approx(wanted, abs=1e-6)
    assert result.best.val_loss == pytest.approx(
        float(F.binary_cross_entropy(torch.from_numpy(found), torch.from_numpy(truth).float())), rel=1e-4
    )
    about = network.card.unknown["finetuning"]
    assert about["metrics"]["val_mean_average_precision"] == result.best.score
    assert "val_accuracy" not in about["metrics"]
    assert about["data"]["several_labels"] is True
    assert result.best.score > 0.8  # by chance it is 0.3
    both = [row.probability for row in classify(network, [dataset.train[-1][0]], top=3)[0]]
    assert sum(both) != pytest.approx(1, abs=0.01)
    head = outputs_of(output)[0].read_text().splitlines()[0]
    assert head == "stage,epoch,train_loss,val_loss,val_mean_average_precision,lr,seconds"


def test_the_loss_of_stage_two_is_weighted_and_smoothed(dataset, vectors, tmp_path):
    settings = replace(
        SETTINGS, head_epochs=1, epochs=1, lr=1e-9, augmentation=AUGMENTATIONS["none"], precision="float32"
    )
    result = finetune(small_resnet(), dataset, tmp_path / "mine.safetensors", settings, cache=vectors, allow_leaks=True)
    paths, labels = zip(*dataset.train, strict=True)
    truth = torch.tensor([[float(name in dataset.names_of(label)) for name in dataset.classes] for label in labels])
    weights = truth / truth.mean(0) / 2 + (1 - truth) / (1 - truth).mean(0) / 2
    found = torch.from_numpy(probabilities(result.network, paths))
    wanted = float(F.binary_cross_entropy(found, truth * 0.9 + 0.05, weights))
    assert result.history[1].train_loss == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("steps", [2, 6])  # of 4 an epoch: in stage one, and in stage two
def test_a_training_that_was_stopped_goes_on_to_the_same_file(tuned, dataset, vectors, tmp_path, steps):
    output, seen = tmp_path / "mine.safetensors", Counter[str]()

    def stop():
        seen["asked"] += 1
        return seen["asked"] > steps

    callbacks = Callbacks(stop=stop)
    with pytest.raises(TrainingStopped):
        finetune(small_resnet(), dataset, output, SETTINGS, cache=vectors, allow_leaks=True, callbacks=callbacks)
    assert checkpoint_of(output).exists()
    finetune(small_resnet(), dataset, output, SETTINGS, cache=vectors, allow_leaks=True, resume=True)
    assert output.read_bytes() == tuned[1].read_bytes()


def test_what_takes_classes_to_exclude_each_other_is_refused(dataset, vectors, tmp_path):
    with pytest.raises(ValueError, match=r"several labels, but softmax is .*activation='sigmoid'"):
        finetune(small_resnet(), dataset, tmp_path / "mine.safetensors", QUICK, cache=vectors)
    with pytest.raises(ValueError, match="mixing needs mutually exclusive classes"):
        replace(SETTINGS, mixing="cutmix")


def test_no_picture_with_a_label_that_no_flip_names_is_mirrored(dataset):
    for _, label in dataset.train:
        names = dataset.names_of(label)
        assert (dataset.shown_as(label, ("cat", "bee")) in ("cat", "bee")) == ("cat" in names or "bee" in names)


def test_the_best_epoch_and_the_history_are_of_mean_average_precision(tmp_path):
    rows = [EpochRow(1, n, 1.0, 1.0, None, 0.1, 2.0, score) for n, score in enumerate((0.25, 0.75, 0.5), start=1)]
    assert best_epoch(rows).epoch == 2
    save_history_csv(rows, tmp_path / "rows.csv")
    read = csv.DictReader((tmp_path / "rows.csv").read_text().splitlines())
    assert [row["val_mean_average_precision"] for row in read] == ["0.25", "0.75", "0.5"]
    accuracies = [replace(row, val_accuracy=row.score, val_mean_average_precision=None) for row in rows]
    titles = [draw_history(each)[1].get_title(loc="left").partition(" on ")[0] for each in (rows, accuracies)]
    assert titles == ["Mean average precision", "Accuracy"]


# Evaluation


def test_evaluation_is_that_of_scikit_learn(tuned, pictures, tmp_path):
    network = load(tuned[1])
    found = evaluate(network, find_truth(network.card, pictures, truth=pictures.parent / "columns.csv"), batch=8)
    truth = np.array([row[1:] for row in columns()]) > 0
    outputs = probabilities(network, found.paths)
    scores = found.several_labels
    assert scores.mean_average_precision == pytest.approx(metrics.average_precision_score(truth, outputs), abs=1e-6)
    wanted = metrics.f1_score(truth, outputs >= 0.5, average=None, zero_division=0)
    assert [each.f1 for each in scores.labels] == pytest.approx(wanted)
    with pytest.raises(ValueError, match="see `several_labels`"):
        _ = found.errors
    judged = compute_metrics(found, temperature=True)
    assert any("no temperature was fitted" in note for note in judged.notes)
    assert save_report(judged, tmp_path) == ("evaluation.json", "report.html")
    figures = json.loads((tmp_path / "evaluation.json").read_text())
    assert figures["mean_average_precision"] == scores.mean_average_precision
    assert (figures["pictures"], figures["unlabelled"]) == (36, 6)
    assert [row["words"] for row in figures["by_class"]] == ["ant", "bee", "cat"]
    assert not {"errors", "confusions", "calibration", "severity"} & {*figures}
    page = (tmp_path / "report.html").read_text()
    assert f"mean average precision {scores.mean_average_precision:.4f}" in page
    assert "confusion" not in page.partition("<main>")[2].partition("<script>")[0].replace("confusions, calib", "")


def test_a_network_of_several_labels_judges_pictures_of_one(tuned, pictures, tmp_path):
    network = load(tuned[1])
    table = write(tmp_path / "one.csv", joined("|", [0, 1, 3, 6, 7, 9]), "path", "label")
    truth = find_truth(network.card, pictures, truth=table, partial=True)
    assert truth.labels.sum(1).tolist() == [1] * 6
    assert any("each picture has one label, but the network is multi-label" in note for note in truth.notes)
    single = replace(network.card, unknown={})  # a network with sigmoids that learnt one label a picture
    assert find_truth(single, pictures, truth=table, partial=True).labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_softmax_has_no_several_labels(pictures):
    card = replace(small_resnet(3).card, class_names=("ant", "bee", "cat"))
    for activation in ("softmax", "none"):
        with pytest.raises(ValueError, match=f"several labels, but the network's activation is {activation}"):
            find_truth(replace(card, activation=activation), pictures, truth=pictures.parent / "columns.csv")


def test_the_commands_say_it(pictures, command, cache, tmp_path):
    weights, output = tmp_path / "small.safetensors", tmp_path / "mine.safetensors"
    save(small_resnet(), weights)
    table = ("--truth", pictures.parent / "columns.csv")
    short = ("--batch-size", 8, "--head-epochs", 2, "--epochs", 0, "--allow-leaks")
    code, out, error = command("finetune", weights, pictures, *table, "-o", output, *short)
    assert code == 0, error
    assert "12 of 36 pictures have several labels, and 6 none (by their columns of 0 and 1)" in error
    assert "mean average precision on the validation pictures" in out
    assert load(output).card.activation == "sigmoid"
    code, out, error = command("evaluate", output, pictures, *table)
    assert code == 0, error
    lines = [line.split() for line in out.splitlines()]
    assert [line[:2] for line in lines[1:4]] == [["ant", "18"], ["bee", "12"], ["cat", "12"]]
    assert "mean of the labels (macro)" in out
    code, out, error = command("evaluate", output, pictures, *table, "--json")
    assert json.loads(out)["macro"].keys() == {"precision", "recall", "f1"}
    code, _, error = command("evaluate", output, pictures, *table, "--temperature")
    assert (code, "a temperature needs classes that exclude each other" in error) == (1, True)
    code, _, error = command("finetune", weights, pictures, *table, "-o", output, *short, "--activation", "softmax")
    assert (code, "softmax is for mutually exclusive classes" in error) == (1, True)
    code, _, error = command("probe", weights, pictures, *table)
    assert (code, "line 4 has 2 labels (ant, bee)" in error) == (1, True)

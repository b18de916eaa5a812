"""Probes of vectors: cross-validation without leaks, learning curves, linear ones in numbers, pairs, and refusals."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from convnets_torch.embeddings.probe import (
    LabelledVectors,
    count_pairs,
    draw_confusion,
    draw_curve,
    draw_pairs,
    fit_probe,
    probe,
)

NAMES = ("ant", "bee", "cat")
SKLEARN = {  # what the module says that it takes, in scikit-learn's own words
    "knn": KNeighborsClassifier(5, metric="cosine"),
    "svm": LinearSVC(C=0.01, dual=True, tol=0.1, max_iter=10_000, random_state=0),
    "logistic": LogisticRegression(C=0.1, max_iter=1000),
}


def made(counts=(30, 24, 40), values=6, apart=1.5, seed=0) -> LabelledVectors:
    """Clouds around points, with values of very unequal sizes, one of which never changes."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    vectors = generator.normal(size=(len(labels), values)) + apart * np.eye(values)[labels]
    vectors = vectors * 10.0 ** np.arange(-2, values - 2) + 3
    vectors[:, -1] = 7
    order = generator.permutation(len(labels))
    return LabelledVectors(vectors[order].astype(np.float32), labels[order], NAMES[: len(counts)])


@pytest.fixture(scope="module")
def found():
    return probe(made())


@pytest.mark.parametrize("kind", SKLEARN)
def test_each_picture_is_classified_by_what_the_other_folds_teach(found, kind):
    labelled = made()
    wanted = cross_val_predict(
        make_pipeline(StandardScaler(), SKLEARN[kind]),
        labelled.vectors.astype(np.float64),
        labelled.labels,
        cv=StratifiedKFold(5, shuffle=True, random_state=0),
    )
    np.testing.assert_array_equal(found.predicted[kind], wanted)
    right = found.confusion(kind).trace() / len(wanted)
    assert right == (wanted == labelled.labels).mean()
    assert abs(found.accuracies[kind].mean() - right) < 0.01  # folds are of nearly equal size
    np.testing.assert_array_equal(found.confusion(kind).sum(1), labelled.counts)


def test_what_cannot_be_learnt_is_guessed():
    """Vectors without any class in them, as many values as pictures: a leak would make them certain."""
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 60)
    noise = LabelledVectors(generator.normal(size=(120, 120)).astype(np.float32), labels, NAMES[:2])
    found = probe(noise)
    for values in found.accuracies.values():
        assert 0.3 < values.mean() < 0.7
    assert found.chance == 0.5


def test_learning_curves_double_and_more_images_teach_more(found):
    assert list(found.curve) == [5, 10]  # the smallest class leaves 19 or 20 of its 24; 20 not in every fold
    assert found.learnt == pytest.approx(94 * 0.8 / 3)
    many = probe(made((220, 220, 220)), 4)
    assert list(many.curve) == [5, 10, 20, 40, 80, 160]
    for kind in SKLEARN:
        assert many.curve[5][kind].mean() < many.curve[160][kind].mean()
    assert probe(made((6, 6, 6)), 2).curve == {}


def test_the_same_call_gives_the_same_figures(found):
    assert probe(made()).to_dict() == found.to_dict()


def test_progress_counts_every_fit():
    told = []
    probe(made(), 3, progress=lambda done, whole: told.append((done, whole)))
    assert told == [(number, 27) for number in range(1, 28)]  # 3 kinds, 3 folds, 5 and 10 images and all


@pytest.mark.parametrize("counts", [(30, 24), (30, 24, 40)])
def test_logistic_regression_in_numbers_gives_the_probabilities_of_scikit_learn(counts):
    labelled = made(counts)
    vectors = labelled.vectors.astype(np.float64)
    pipeline = make_pipeline(StandardScaler(), SKLEARN["logistic"]).fit(vectors, labelled.labels)
    logits = fit_probe(labelled, "logistic").logits(vectors)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(powers / powers.sum(1, keepdims=True), pipeline.predict_proba(vectors), atol=1e-9)


@pytest.mark.parametrize("counts", [(30, 24), (30, 24, 40)])
def test_a_support_vector_machine_in_numbers_gives_its_decisions(counts):
    labelled = made(counts)
    vectors = labelled.vectors.astype(np.float64)
    pipeline = make_pipeline(StandardScaler(), SKLEARN["svm"]).fit(vectors, labelled.labels)
    wanted = pipeline.decision_function(vectors)
    if wanted.ndim == 1:
        wanted = np.stack([-wanted, wanted], 1)
    logits = fit_probe(labelled, "svm").logits(vectors)
    np.testing.assert_allclose(logits, wanted, atol=1e-9)
    np.testing.assert_array_equal(logits.argmax(1), pipeline.predict(vectors))


@pytest.mark.parametrize("measure", ["distance", "similarity"])
def test_pairs_are_counted_once_each(measure):
    labelled = made()
    vectors = labelled.vectors.astype(np.float64)
    wanted: dict = {True: [], False: []}
    for i in range(len(vectors)):
        for j in range(i):
            one, other = vectors[i], vectors[j]
            cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
            value = np.linalg.norm(one - other) if measure == "distance" else cosine
            wanted[labelled.labels[i] == labelled.labels[j]].append(value)
    pairs = count_pairs(labelled, measure, bins=13)
    assert pairs.within.sum() == len(wanted[True]) == 30 * 29 / 2 + 24 * 23 / 2 + 40 * 39 / 2
    assert pairs.between.sum() == len(wanted[False])
    np.testing.assert_allclose(pairs.means, (np.mean(wanted[True]), np.mean(wanted[False])), rtol=1e-6)
    every = wanted[True] + wanted[False]
    np.testing.assert_allclose(pairs.edges[[0, -1]], (min(every), max(every)), rtol=1e-6)
    moved = np.abs(pairs.within - np.histogram(wanted[True], pairs.edges)[0]).sum()
    assert moved <= 2  # on an edge float32 may round to the other side


def test_of_many_pictures_some_are_drawn_for_the_pairs():
    pairs = count_pairs(made((300, 300)), "distance", most=100)
    assert pairs.pictures == 100
    assert pairs.within.sum() + pairs.between.sum() == 100 * 99 / 2


def test_a_cell_of_the_confusion_is_darker_the_larger_its_share(found):
    counts = found.confusion("logistic")
    ax = draw_confusion(found, "logistic")
    shares = counts / counts.sum(1, keepdims=True)
    cells = np.argwhere(counts)
    brightness = np.array([sum(patch.get_facecolor()[:3]) for patch in ax.patches])
    order = np.argsort(shares[tuple(cells.T)], kind="stable")
    assert (np.diff(brightness[order]) <= 0).all()
    assert [text.get_text() for text in ax.texts] == [str(counts[tuple(cell)]) for cell in cells]


def test_charts_hold_the_accuracies_and_the_pairs(found):
    ax = draw_curve(found)
    assert len(ax.containers) == 3
    for kind, bars in zip(("knn", "svm", "logistic"), ax.containers, strict=True):
        values = [*(kinds[kind] for kinds in found.curve.values()), found.accuracies[kind]]
        assert list(bars.lines[0].get_xdata()) == [*found.curve, found.learnt]
        np.testing.assert_allclose(np.asarray(bars.lines[0].get_ydata(), float), [each.mean() for each in values])
        ends = [segment[:, 1] for segment in bars.lines[2][0].get_segments()]
        np.testing.assert_allclose([high - low for low, high in ends], [2 * each.std() for each in values])
    alone = draw_curve(probe(made((4, 4)), 2))  # one point for each, and no curve
    assert [len(bars.lines[0].get_xdata()) for bars in alone.containers] == [1, 1, 1]
    pairs = count_pairs(made((4, 4)), "similarity")
    within, between = [patch for patch in draw_pairs(pairs).patches if not patch.get_fill()]
    np.testing.assert_allclose(within.get_data().values, pairs.within / pairs.within.sum())
    np.testing.assert_allclose(between.get_data().edges, pairs.edges)


def test_confusions_of_many_classes_are_a_chart_of_bounded_size():
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(300), 2)
    names = tuple(f"a class with a long name, number {number}" for number in range(300))
    many = probe(LabelledVectors(generator.normal(size=(600, 4)).astype(np.float32), labels, names), 2)
    assert max(draw_confusion(many, "knn").figure.bbox.size) < 2600


def test_what_cannot_be_learnt_from_is_refused_in_one_sentence(monkeypatch):
    one = LabelledVectors(np.zeros((4, 2), np.float32), np.zeros(4, np.int64), ("ant",))
    with pytest.raises(ValueError, match=r"only one class \(ant\), so nothing to tell apart"):
        probe(one)
    with pytest.raises(
        ValueError, match=r"2 of 3 classes have fewer usable pictures \(bee: 4, .*: 4\) than the 5 folds, so nothing"
    ):
        probe(made((9, 4, 4)))
    with pytest.raises(ValueError, match=r"1 of 2 classes have no usable picture \(bee\); add some"):
        fit_probe(LabelledVectors(np.zeros((4, 2), np.float32), np.zeros(4, np.int64), ("ant", "bee")), "svm")
    with pytest.raises(ValueError, match="1 folds leave nothing to learn from; give 2 or more"):
        probe(made(), 1)
    with pytest.raises(ValueError, match="'knn' is not a linear classifier; known: svm, logistic"):
        fit_probe(made(), "knn")  # type: ignore[arg-type]
    broken = made()
    broken.vectors[3, 2] = np.nan
    with pytest.raises(ValueError, match="vectors contain NaN or infinity"):
        probe(broken)
    with pytest.raises(ValueError, match=r"vectors are \(3, 2\), but there are 4 labels"):
        probe(LabelledVectors(np.zeros((3, 2), np.float32), np.array([0, 0, 1, 1]), ("ant", "bee")), 2)
    with pytest.raises(ValueError, match="unknown measure 'angle'; known: distance, similarity"):
        count_pairs(made(), "angle")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there are no pairs within classes"):
        count_pairs(LabelledVectors(np.eye(2, dtype=np.float32), np.array([0, 1]), ("ant", "bee")), "distance")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"probes need scikit-learn .*: pip install 'convnets-torch\[probes\]'"):
        probe(made())


def test_classes_with_few_pictures_are_learnt_and_not_asked_for():
    """The figures of the others are those of a network that has the few among what it learns from."""
    labelled = made((30, 4, 40))
    found = probe(labelled, 5)
    rare = labelled.labels == 1
    assert found.notes == (
        "1 classes have fewer usable pictures than the 5 folds (bee: 4); they are trained on but not tested",
    )
    asked = np.flatnonzero(~rare)
    parts = StratifiedKFold(5, shuffle=True, random_state=0).split(asked, labelled.labels[asked])
    wanted = np.full(len(rare), -1)
    for learnt, rest in parts:
        rows = np.concatenate([asked[learnt], np.flatnonzero(rare)])
        estimator = make_pipeline(StandardScaler(), SKLEARN["knn"])
        estimator.fit(labelled.vectors[rows].astype(np.float64), labelled.labels[rows])
        wanted[asked[rest]] = estimator.predict(labelled.vectors[asked[rest]].astype(np.float64))
    np.testing.assert_array_equal(found.predicted["knn"], wanted)
    assert found.confusion("knn").sum() == 70
    assert not found.confusion("knn")[1].any()
    assert found.chance == 40 / 70
    assert found.learnt == pytest.approx((70 * 0.8 + 4) / 3)
    assert list(found.curve) == [5, 10, 20]

"""Small classifiers on top of features: how well they tell classes apart, and how many pictures that takes.

Three are tried: the five nearest neighbours by cosine; a linear support vector machine (LIBLINEAR's, each class against
the rest, with LIBLINEAR's own tolerance of 0.1); and logistic regression, of all classes together. All standardise
values first (mean 0, deviation 1), by what the pictures they learn from have.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from convnets_torch.apart import Progress, apart
from convnets_torch.embeddings.probe_features import LabelledVectors
from convnets_torch.folders import few

Kind = Literal["knn", "svm", "logistic"]
LinearKind = Literal["svm", "logistic"]

NEIGHBORS = 5
STRENGTHS = {"svm": 0.01, "logistic": 0.1}  # C of scikit-learn; small, since values are as many as pictures
ROUNDS = {"svm": 10_000, "logistic": 1_000}  # after which a fit is given up
MOST_THREADS = 4  # fits at once, each with a copy of what it learns from
SEED = 0  # of the folds, of the pictures that learning curves take, and of the solver
FIRST = 5  # images a class at the beginning of the learning curve, which then doubles


@dataclass(frozen=True, eq=False)
class Probed:
    """How well classifiers tell classes apart that they see in other pictures.

    Attributes:
        classes: names.
        labels: (N,), the class of each picture.
        accuracies: classifier -> share of right answers in each fold, (folds,) 0 to 1.
        predicted: classifier -> (N,), for each picture the class that it gave without having learnt from that picture;
            -1 for pictures of classes with fewer pictures than folds, which were only learnt from.
        curve: images a class -> classifier -> (folds,); the same folds, learning from so many images of each class.
        learnt: images a class that the classifiers of `accuracies` learnt from, on average over classes.
        remarks: sentences, such as that a fit did not converge.
    """

    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    accuracies: dict[str, NDArray[np.float64]]
    predicted: dict[str, NDArray[np.int64]]
    curve: dict[int, dict[str, NDArray[np.float64]]]
    learnt: float
    remarks: tuple[str, ...] = ()

    @property
    def counts(self) -> NDArray[np.int64]:
        """Pictures of each class, (classes,)."""
        return np.bincount(self.labels, minlength=len(self.classes))

    @property
    def chance(self) -> float:
        """The accuracy of always giving the most frequent class, 0 to 1."""
        counts = np.bincount(self.labels[self.predicted["knn"] >= 0])
        return float(counts.max() / counts.sum())

    @property
    def best(self) -> LinearKind:
        """The linear classifier of the higher mean accuracy, which can become a head; of equals logistic regression."""
        return "svm" if self.accuracies["svm"].mean() > self.accuracies["logistic"].mean() else "logistic"

    def confusion(self, kind: Kind) -> NDArray[np.int64]:
        """(classes, classes): how many pictures of the row's class were given the column's."""
        count, asked = len(self.classes), self.predicted[kind] >= 0
        pairs = np.bincount((self.labels * count + self.predicted[kind])[asked], minlength=count * count)
        return pairs.reshape(count, count)

    def to_dict(self) -> dict[str, Any]:
        """All numbers as plain data for JSON: `spread` is the standard deviation over the folds."""
        return {
            "classes": dict(zip(self.classes, self.counts.tolist(), strict=True)),
            "chance": self.chance,
            "accuracy": {kind: _figures(values) for kind, values in self.accuracies.items()},
            "curve": {
                str(images): {kind: _figures(values) for kind, values in kinds.items()}
                for images, kinds in self.curve.items()
            },
            "learnt": self.learnt,
            "confusion": {kind: self.confusion(kind).tolist() for kind in get_args(Kind)},
        }


def _figures(values: NDArray[np.float64]) -> dict[str, Any]:
    return {"mean": float(values.mean()), "spread": float(values.std()), "folds": values.tolist()}


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A linear classifier of vectors, with the standardising of values in its numbers.

    Attributes:
        kind: "logistic": `softmax(logits)` is what scikit-learn's `predict_proba` gives. "svm": logits are the decision
            values, each class against the rest, whose largest is the answer; their softmax adds up to 1 and has the
            same order, but no frequencies stand behind it.
        classes: names.
        weight: (classes, values) float64.
        bias: (classes,) float64.
        pictures: how many it learnt from.
    """

    kind: LinearKind
    classes: tuple[str, ...]
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    pictures: int

    def logits(self, vectors: NDArray[Any]) -> NDArray[np.float64]:
        """(N, values) -> (N, classes)."""
        return vectors @ self.weight.T + self.bias


def probe(labelled: LabelledVectors, folds: int = 5, *, progress: Progress | None = None) -> Probed:
    """Measure how well vectors tell classes apart, by cross-validation.

    Pictures are dealt into `folds` parts with the same share of each class; each part is classified by what was
    learnt from the others, standardising included. All classifiers have the same parts, and the same call gives the
    same figures. Classes with fewer pictures than folds are learnt in all of them and never asked for; a remark names
    them. The learning curve takes 5, 10, 20, ... images of each class out of those of the other parts, as
    far as the smallest class has them, the fewer among the more.

    Args:
        labelled: as `embed_classes` gives them, or made of vectors of your own.
        folds: 2 or more.
        progress: told how many fits of how many are done.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: fewer than two classes with as many pictures as folds; a class without pictures; fewer folds than 2;
            or vectors that are not finite.

    >>> generator = np.random.default_rng(0)
    >>> labels = np.repeat([0, 1, 2], 20)
    >>> vectors = (generator.normal(size=(60, 8)) + 3 * np.eye(8)[labels]).astype(np.float32)
    >>> found = probe(LabelledVectors(vectors, labels, ("ant", "bee", "cat")), folds=4)
    >>> sorted(found.accuracies), int(found.confusion("logistic").sum()), list(found.curve), found.learnt
    (['knn', 'logistic', 'svm'], 60, [5, 10], 15.0)
    >>> bool(found.accuracies["logistic"].mean() > 0.9)
    True
    """
    check_sklearn()
    if folds < 2:
        raise ValueError(f"{folds} folds leave nothing to learn from; give 2 or more")
    check_folds(labelled, folds)
    _check_vectors(labelled)
    found: Probed = apart(__name__, "cross_validated", labelled, folds, progress=progress)
    return found


def cross_validated(labelled: LabelledVectors, folds: int, *, progress: Progress | None = None) -> Probed:
    """`probe` of what was checked; while it runs, the process has one thread of BLAS and no warning of scikit-learn."""
    from sklearn.model_selection import StratifiedKFold

    vectors, labels = labelled.vectors.astype(np.float64), labelled.labels
    with _quiet():
        rare = labelled.counts < folds
        asked_for, always = np.flatnonzero(~rare[labels]), np.flatnonzero(rare[labels])
        dealt = StratifiedKFold(folds, shuffle=True, random_state=SEED).split(asked_for, labels[asked_for])
        parts = [(np.concatenate([asked_for[learnt], always]), asked_for[asked]) for learnt, asked in dealt]
    sizes, size = [], FIRST
    while size <= min(int(np.bincount(labels[learnt])[~rare].min()) for learnt, _ in parts):
        sizes.append(size)
        size *= 2
    kinds: tuple[Kind, ...] = get_args(Kind)
    accuracies: dict[str, NDArray[np.float64]] = {kind: np.zeros(folds) for kind in kinds}
    predicted: dict[str, NDArray[np.int64]] = {kind: np.full(len(labels), -1) for kind in kinds}
    curve = {size: {str(kind): np.zeros(folds) for kind in kinds} for size in sizes}
    given_up = dict.fromkeys(kinds, 0)
    jobs = [(fold, some, kind) for some in (None, *sizes) for fold in range(folds) for kind in kinds]

    def answer(job: tuple[int, int | None, Kind]) -> tuple[NDArray[np.int64], bool]:
        fold, some, kind = job
        learnt, asked = parts[fold]
        rows = learnt if some is None else _some_of_each(learnt, labels, some, fold)
        estimator = _fit(kind, vectors[rows], labels[rows])
        return estimator.predict(vectors[asked]), _converged(kind, estimator)

    for done, (job, (answers, converged)) in enumerate(zip(jobs, _side_by_side(answer, jobs), strict=True), start=1):
        fold, some, kind = job
        asked = parts[fold][1]
        right = float((answers == labels[asked]).mean())
        given_up[kind] += not converged
        if some is None:
            accuracies[kind][fold], predicted[kind][asked] = right, answers
        else:
            curve[some][kind][fold] = right
        if progress is not None:
            progress(done, len(jobs))
    remarks = [
        f"{kind}: {count} of {len(jobs) // len(kinds)} fits were given up after {ROUNDS[kind]} rounds"
        for kind, count in given_up.items()
        if count
    ]
    if rare.any():
        names = few([f"{labelled.classes[place]}: {labelled.counts[place]}" for place in np.flatnonzero(rare)])
        remarks.append(
            f"{rare.sum()} classes have fewer usable pictures than the {folds} folds ({names}); they are learnt, and no"
            " figure says how well"
        )
    learnt_from = (len(asked_for) * (1 - 1 / folds) + len(always)) / len(labelled.classes)
    return Probed(labelled.classes, labels, accuracies, predicted, curve, learnt_from, tuple(remarks))


def fit_probe(labelled: LabelledVectors, kind: LinearKind) -> LinearProbe:
    """Learn a linear classifier from all vectors.

    Args:
        labelled: as for `probe`.
        kind: "logistic" or "svm".

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: the kind is not linear; one class alone; a class without vectors; vectors that are not finite.
    """
    check_sklearn()
    if kind not in get_args(LinearKind):
        raise ValueError(f"{kind!r} is no linear classifier; known: {', '.join(get_args(LinearKind))}")
    check_folds(labelled, 1)
    _check_vectors(labelled)
    scaler, estimator = apart(__name__, "fitted", kind, labelled.vectors.astype(np.float64), labelled.labels)
    weight, bias = estimator.coef_, estimator.intercept_
    if len(weight) == 1:  # of two classes scikit-learn has the second one's decision alone
        share = 0.5 if kind == "logistic" else 1.0  # so that the softmax is its sigmoid; each class against the other
        weight, bias = np.concatenate([-weight, weight]) * share, np.concatenate([-bias, bias]) * share
    weight = weight / scaler.scale_
    return LinearProbe(kind, labelled.classes, weight, bias - weight @ scaler.mean_, len(labelled.labels))


def fitted(
    kind: LinearKind, vectors: NDArray[np.float64], labels: NDArray[np.int64], *, progress: object = None
) -> Any:
    """What standardises, and the classifier, as scikit-learn fits them; settings of the process are those above."""
    [both] = _side_by_side(lambda kind: _fit(kind, vectors, labels), [kind])
    return both


def check_folds(labelled: LabelledVectors, folds: int) -> None:
    """Refuse what cannot be dealt into parts; 1 fold is for learning from all.

    Raises:
        ValueError: one class alone, a class without pictures, or fewer than two with as many pictures as folds.
    """
    check_counts(dict(zip(labelled.classes, labelled.counts.tolist(), strict=True)), folds)


def check_counts(counts: dict[str, int], folds: int) -> None:
    """`check_folds` before there are vectors: class -> number of its pictures."""
    if len(counts) < 2:
        raise ValueError(f"there is one class alone ({', '.join(counts)}), so nothing to tell apart; give two or more")
    rare = [f"{name}: {count}" for name, count in counts.items() if count < folds]
    if missing := [name for name, count in counts.items() if not count]:
        raise ValueError(
            f"{len(missing)} of {len(counts)} classes have no usable picture ({few(missing)}); add some, or leave the"
            " class out"
        )
    if len(counts) - len(rare) < 2:
        raise ValueError(
            f"{len(rare)} of {len(counts)} classes have fewer usable pictures ({few(rare)}) than the {folds} folds, so"
            " nothing can be told apart; add pictures, or take fewer folds"
        )


def _check_vectors(labelled: LabelledVectors) -> None:
    shape, count = labelled.vectors.shape, len(labelled.labels)
    if len(shape) != 2 or shape[0] != count:
        raise ValueError(f"vectors are {shape}, but there are {count} labels; wanted is (labels, values)")
    if not np.isfinite(labelled.vectors).all():
        raise ValueError("vectors are NaN or infinite; give such that are not")


def check_sklearn() -> None:
    """Raise ImportError, in one sentence, where scikit-learn is not installed."""
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ImportError(f"probes need scikit-learn ({error}): pip install 'convnets-torch[probes]'") from None


def _fit(kind: Kind, vectors: NDArray[np.float64], labels: NDArray[np.int64]) -> Any:
    """scikit-learn's pipeline of two: what standardises, and the classifier."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    if kind == "knn":
        classifier = KNeighborsClassifier(min(NEIGHBORS, len(labels)), metric="cosine")
    elif kind == "svm":
        classifier = LinearSVC(C=STRENGTHS[kind], dual=True, tol=0.1, max_iter=ROUNDS[kind], random_state=SEED)
    else:
        classifier = LogisticRegression(C=STRENGTHS[kind], max_iter=ROUNDS[kind])
    return make_pipeline(StandardScaler(), classifier).fit(vectors, labels)


def _converged(kind: Kind, estimator: Any) -> bool:
    return kind == "knn" or bool(np.max(estimator[-1].n_iter_) < ROUNDS[kind])


def _some_of_each(learnt: NDArray[np.int64], labels: NDArray[np.int64], count: int, fold: int) -> NDArray[np.int64]:
    """`count` pictures of each class, of which fewer would be the first ones."""
    order = np.random.default_rng([SEED, fold]).permutation(learnt)
    return np.concatenate([order[labels[order] == label][:count] for label in np.unique(labels)])


def _side_by_side(answer: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[Any]:
    """Answers in the order of the jobs, one job on each core: threads within a fit wait for each other more than work.

    Source: measured; on two busy cores logistic regression of 1,437 vectors took 12 s in two threads, 0.6 s in one.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), _quiet(), ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        try:
            yield from pool.map(answer, jobs)
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what scikit-learn says of fits that were given up, which `_converged` tells, and of few pictures."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        yield

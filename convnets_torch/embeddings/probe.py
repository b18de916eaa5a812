"""Probes: kNN and linear classifiers on feature vectors, their confusion matrices, and networks made from them.

Three classifiers are cross-validated: five nearest neighbours by cosine; a linear support vector machine (LIBLINEAR,
one-vs-rest, with LIBLINEAR's own tolerance of 0.1); and multinomial logistic regression. Values are first standardised
(mean 0, standard deviation 1) with the statistics of the training pictures.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import Unpack

from convnets_torch.embeddings.cache import CachedVectors, embed_cached
from convnets_torch.images.decoding import Reading, ReadingKeywords
from convnets_torch.images.finding import few
from convnets_torch.images.labelled import find_classes
from convnets_torch.inference.child_process import Progress, apart
from convnets_torch.inference.prepare import Precision
from convnets_torch.networks import Network
from convnets_torch.networks.network import as_network
from convnets_torch.networks.packed import check_unpacked
from convnets_torch.options import FormerAttribute, checked, shows
from convnets_torch.text import check_choice
from convnets_torch.visualization import charts
from convnets_torch.visualization.charts import BAR, Color
from convnets_torch.visualization.overlays import CLASS_COLORS
from convnets_torch.weights import with_last_layer

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class LabelledVectors:
    """Vectors and their class labels.

    Attributes:
        vectors: (N, values) float32.
        labels: (N,) int64, indices into `classes`.
        classes: class names.
        paths: paths of the N pictures; empty if unknown.
        failed: pictures that failed, with their errors.
        notes: warnings about pictures that were left out.
        computed: number of vectors that were not in the cache.
    """

    vectors: NDArray[np.float32]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    paths: tuple[Path, ...] = ()
    failed: tuple[tuple[str, Exception], ...] = ()
    notes: tuple[str, ...] = ()
    remarks = FormerAttribute("notes")
    computed: int = 0

    @property
    def counts(self) -> NDArray[np.int64]:
        """Pictures of each class, (classes,)."""
        return np.bincount(self.labels, minlength=len(self.classes))


@shows(ReadingKeywords, Reading)
def embed_classes(
    network: Network,
    folder: str | os.PathLike[str] | Mapping[str, Iterable[Path]],
    *,
    precision: Precision | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    batch: int | Literal["auto"] = "auto",
    workers: int | None = None,
    **reading: Unpack[ReadingKeywords],
) -> LabelledVectors:
    """Embed pictures in class folders as `embed` does, reading vectors from the feature cache where possible.

    Pictures are read as `classify` reads them. The cache key of a vector is the sha256 of the picture file together
    with the parameters and card of the network, precision, device and version of this library, so renamed and moved
    pictures are found. Vectors are written in groups of 256, the most that a killed process loses.

    Args:
        network: in eval mode, with its card, on the device to run on, as from `load`; not prepared.
        folder: folder with a sub-folder per class, as in `find_classes`; or a mapping from classes to files.
        precision: as in `prepare`; None runs the network unchanged.
        cache: folder for vectors; by default `features` in the library's cache folder.
        progress: called with (pictures done, total pictures).
        batch, workers: as for `predict`.
        **reading: as for `read_picture`.

    Returns:
        Vectors in the order of classes and paths. Copies of a picture within a class are left out, since they could be
        in both the training and the test part of a fold.

    Raises:
        OSError: `folder` is not a folder, or the cache cannot be written.
        ValueError: as in `find_classes`; no picture could be used; the network has no card, is in training mode or is
            already prepared; activations are NaN or infinite.

    Warns:
        PictureWarning: as in `find_classes`.
        MemoryWarning: memory ran out; work continues in smaller batches.
    """
    decoding = Reading(**checked(reading, ReadingKeywords))
    network = as_network(network)
    check_unpacked(network)
    found = find_classes(folder) if isinstance(folder, str | os.PathLike) else folder
    pictures = [(path, label) for label, paths in enumerate(found.values()) for path in paths]
    vectors = embed_cached(
        network, [path for path, _ in pictures], precision=precision, cache=cache, progress=progress, batch=batch,
        workers=workers, reading=decoding,
    )  # fmt: skip
    return _labelled(tuple(found), pictures, vectors)


def _labelled(classes: tuple[str, ...], pictures: list[tuple[Path, int]], found: CachedVectors) -> LabelledVectors:
    """Label the vectors, keeping each content once per class."""
    failed = tuple((str(path), found.failed[path]) for path, _ in pictures if path in found.failed)
    kept: dict[tuple[str, int], Path] = {}
    for path, label in pictures:
        if path not in found.failed:
            kept.setdefault((found.digests[path], label), path)
    if not kept:
        raise ValueError(f"none of {len(failed)} pictures could be used; the first: {failed[0][1]}")
    notes = list(found.notes)
    if copies := len(pictures) - len(failed) - len(kept):
        notes.append(f"{copies} pictures have the same content as another of their class and were left out")
    places = Counter(digest for digest, _ in kept)
    if several := [path for (digest, _), path in kept.items() if places[digest] > 1]:
        notes.append(f"{len(several)} pictures have the same content in several classes, such as {several[0]}")
    return LabelledVectors(
        np.stack([found.vectors[digest] for digest, _ in kept]),
        np.array([label for _, label in kept], np.int64),
        classes,
        tuple(kept.values()),
        failed,
        tuple(notes),
        found.computed,
    )


Kind = Literal["knn", "svm", "logistic"]
LinearKind = Literal["svm", "logistic"]

NEIGHBORS = 5
STRENGTHS = {"svm": 0.01, "logistic": 0.1}  # scikit-learn's C; small, as there are about as many values as pictures
ROUNDS = {"svm": 10_000, "logistic": 1_000}  # maximum iterations of a fit
MOST_THREADS = 4  # fits at once, each with a copy of its training vectors
SEED = 0  # for folds, subsets of the learning curve, and the solver
FIRST = 5  # images per class at the start of the learning curve, doubled at each step


@dataclass(frozen=True, eq=False)
class Probed:
    """Results of cross-validation.

    Attributes:
        classes: class names.
        labels: (N,), true class of each picture.
        accuracies: classifier -> (folds,) accuracy in each fold, 0 to 1.
        predicted: classifier -> (N,) class predicted while the picture was in the test part; -1 for pictures of classes
            with fewer pictures than folds, which are only trained on.
        curve: images per class -> classifier -> (folds,) accuracy in the same folds, trained on so many images of each
            class.
        learnt: training images per class for `accuracies`, averaged over classes.
        notes: warnings, such as about fits that did not converge.
    """

    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    accuracies: dict[str, NDArray[np.float64]]
    predicted: dict[str, NDArray[np.int64]]
    curve: dict[int, dict[str, NDArray[np.float64]]]
    learnt: float
    notes: tuple[str, ...] = ()
    remarks = FormerAttribute("notes")

    @property
    def counts(self) -> NDArray[np.int64]:
        """Pictures of each class, (classes,)."""
        return np.bincount(self.labels, minlength=len(self.classes))

    @property
    def chance(self) -> float:
        """Accuracy of always predicting the most frequent class, 0 to 1."""
        counts = np.bincount(self.labels[self.predicted["knn"] >= 0])
        return float(counts.max() / counts.sum())

    @property
    def best(self) -> LinearKind:
        """The linear classifier with the higher mean accuracy; logistic regression on a tie."""
        return "svm" if self.accuracies["svm"].mean() > self.accuracies["logistic"].mean() else "logistic"

    def confusion(self, kind: Kind) -> NDArray[np.int64]:
        """Return the confusion matrix (classes, classes): true classes in rows, predicted classes in columns."""
        count, asked = len(self.classes), self.predicted[kind] >= 0
        pairs = np.bincount((self.labels * count + self.predicted[kind])[asked], minlength=count * count)
        return pairs.reshape(count, count)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; `spread` is the standard deviation over folds."""
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
    """A linear classifier of vectors, with standardisation folded into weight and bias.

    Attributes:
        kind: "logistic": `softmax(logits)` equals scikit-learn's `predict_proba`. "svm": logits are the one-vs-rest
            decision values; their softmax sums to 1 and keeps the order, but is not a calibrated probability.
        classes: class names.
        weight: (classes, values) float64.
        bias: (classes,) float64.
        pictures: number of training pictures.
    """

    kind: LinearKind
    classes: tuple[str, ...]
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    pictures: int

    def logits(self, vectors: NDArray[Any]) -> NDArray[np.float64]:
        """Return logits (N, classes) of vectors (N, values)."""
        return vectors @ self.weight.T + self.bias


def probe(labelled: LabelledVectors, folds: int = 5, *, progress: Progress | None = None) -> Probed:
    """Measure how well vectors separate classes, by stratified cross-validation.

    Each fold is classified by models, including standardisation, fitted on the other folds. All classifiers use the
    same folds, and results are reproducible. Classes with fewer pictures than folds are always in the training part and
    never tested; a note names them. The learning curve trains on 5, 10, 20, ... images of each class, up to the size
    of the smallest class; smaller subsets are contained in larger ones.

    Args:
        labelled: as from `embed_classes`, or made from other vectors.
        folds: number of folds, 2 or more.
        progress: called with (fits done, total fits).

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: fewer than two classes have as many pictures as folds; a class has no pictures; fewer than 2 folds;
            vectors contain NaN or infinity.

    >>> generator = np.random.default_rng(0)
    >>> labels = np.repeat([0, 1, 2], 20)
    >>> vectors = (generator.normal(size=(60, 8)) + 3 * np.eye(8)[labels]).astype(np.float32)
    >>> found = probe(LabelledVectors(vectors, labels, ("ant", "bee", "cat")), folds=4)
    >>> sorted(found.accuracies), int(found.confusion("logistic").sum()), list(found.curve), found.learnt
    (['knn', 'logistic', 'svm'], 60, [5, 10], 15.0)
    >>> bool(found.accuracies["logistic"].mean() > 0.9)
    True
    """
    if folds < 2:
        raise ValueError(f"{folds} folds leave nothing to learn from; give 2 or more")
    _check(labelled, folds)
    found: Probed = apart(__name__, "cross_validated", labelled, folds, progress=progress)
    return found


def cross_validated(labelled: LabelledVectors, folds: int, *, progress: Progress | None = None) -> Probed:
    """Implement `probe` for checked arguments; limits BLAS to one thread and mutes scikit-learn in the process."""
    from sklearn.model_selection import StratifiedKFold

    vectors, labels = labelled.vectors.astype(np.float64), labelled.labels
    with _quiet():
        rare = labelled.counts < folds
        tested, always = np.flatnonzero(~rare[labels]), np.flatnonzero(rare[labels])
        splits = StratifiedKFold(folds, shuffle=True, random_state=SEED).split(tested, labels[tested])
        parts = [(np.concatenate([tested[train], always]), tested[test]) for train, test in splits]
    sizes, size = [], FIRST
    while size <= min(int(np.bincount(labels[train])[~rare].min()) for train, _ in parts):
        sizes.append(size)
        size *= 2
    kinds: tuple[Kind, ...] = get_args(Kind)
    predicted: dict[str, NDArray[np.int64]] = {kind: np.full(len(labels), -1) for kind in kinds}
    found: dict[int | None, dict[str, NDArray[np.float64]]] = {
        count: {kind: np.zeros(folds) for kind in kinds} for count in (None, *sizes)
    }
    unconverged = dict.fromkeys(kinds, 0)
    jobs = [(fold, count, kind) for count in found for fold in range(folds) for kind in kinds]

    def run(job: tuple[int, int | None, Kind]) -> tuple[NDArray[np.int64], bool]:
        fold, count, kind = job
        train, test = parts[fold]
        rows = train if count is None else _some_of_each(train, labels, count, fold)
        estimator = _fit(kind, vectors[rows], labels[rows])
        converged = kind == "knn" or bool(np.max(estimator[-1].n_iter_) < ROUNDS[kind])
        return estimator.predict(vectors[test]), converged

    for done, (job, (answers, converged)) in enumerate(zip(jobs, _in_threads(run, jobs), strict=True), start=1):
        fold, count, kind = job
        test = parts[fold][1]
        found[count][kind][fold] = float((answers == labels[test]).mean())
        unconverged[kind] += not converged
        if count is None:
            predicted[kind][test] = answers
        if progress is not None:
            progress(done, len(jobs))
    notes = [
        f"{kind}: {count} of {len(jobs) // len(kinds)} fits did not converge within {ROUNDS[kind]} iterations"
        for kind, count in unconverged.items()
        if count
    ]
    if rare.any():
        names = few([f"{labelled.classes[place]}: {labelled.counts[place]}" for place in np.flatnonzero(rare)])
        notes.append(
            f"{rare.sum()} classes have fewer usable pictures than the {folds} folds ({names}); they are trained on but"
            " not tested"
        )
    learnt = (len(tested) * (1 - 1 / folds) + len(always)) / len(labelled.classes)
    curve = {size: found[size] for size in sizes}
    return Probed(labelled.classes, labels, found[None], predicted, curve, learnt, tuple(notes))


def fit_probe(labelled: LabelledVectors, kind: LinearKind) -> LinearProbe:
    """Fit a linear classifier on all vectors.

    Args:
        labelled: as in `probe`.
        kind: "logistic" or "svm".

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: the kind is not linear; there is only one class; a class has no vectors; vectors contain NaN or
            infinity.
    """
    if kind not in get_args(LinearKind):
        raise ValueError(f"{kind!r} is not a linear classifier; known: {', '.join(get_args(LinearKind))}")
    _check(labelled, 1)
    scaler, estimator = apart(__name__, "fitted", kind, labelled.vectors.astype(np.float64), labelled.labels)
    weight, bias = estimator.coef_, estimator.intercept_
    if len(weight) == 1:  # for two classes scikit-learn has a single decision function, the second class's
        share = 0.5 if kind == "logistic" else 1.0  # makes softmax equal to scikit-learn's sigmoid
        weight, bias = np.concatenate([-weight, weight]) * share, np.concatenate([-bias, bias]) * share
    weight = weight / scaler.scale_
    return LinearProbe(kind, labelled.classes, weight, bias - weight @ scaler.mean_, len(labelled.labels))


def fitted(
    kind: LinearKind, vectors: NDArray[np.float64], labels: NDArray[np.int64], *, progress: object = None
) -> Any:
    """Return scikit-learn's pipeline of scaler and classifier, fitted as in `cross_validated`."""
    [pipeline] = _in_threads(lambda kind: _fit(kind, vectors, labels), [kind])
    return pipeline


def check_counts(counts: dict[str, int], folds: int) -> None:
    """Check that classes, name -> number of pictures, can be split into folds; `folds=1` means training on all."""
    if len(counts) < 2:
        raise ValueError(f"there is only one class ({', '.join(counts)}), so nothing to tell apart; give two or more")
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


def _check(labelled: LabelledVectors, folds: int) -> None:
    check_sklearn()
    check_counts(dict(zip(labelled.classes, labelled.counts.tolist(), strict=True)), folds)
    shape, count = labelled.vectors.shape, len(labelled.labels)
    if len(shape) != 2 or shape[0] != count:
        raise ValueError(f"vectors are {shape}, but there are {count} labels; give vectors of shape (labels, values)")
    if not np.isfinite(labelled.vectors).all():
        raise ValueError("vectors contain NaN or infinity; leave these out")


def check_sklearn() -> None:
    """Raise ImportError if scikit-learn is not installed."""
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ImportError(f"probes need scikit-learn ({error}): pip install 'convnets-torch[probes]'") from None


def _fit(kind: Kind, vectors: NDArray[np.float64], labels: NDArray[np.int64]) -> Any:
    """Fit scikit-learn's pipeline of scaler and classifier."""
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


def _some_of_each(rows: NDArray[np.int64], labels: NDArray[np.int64], count: int, fold: int) -> NDArray[np.int64]:
    """Return `count` rows of each class; a smaller `count` gives a subset."""
    order = np.random.default_rng([SEED, fold]).permutation(rows)
    return np.concatenate([order[labels[order] == label][:count] for label in np.unique(labels)])


def _in_threads(run: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[Any]:
    """Yield results in order, one job per core, with BLAS limited to one thread: threads within a fit mostly wait.

    Source: measured; on two busy cores logistic regression of 1,437 vectors took 12 s in two threads, 0.6 s in one.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), _quiet(), ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        try:
            yield from pool.map(run, jobs)
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Mute scikit-learn's warnings about convergence, which becomes a note, and about classes with few pictures."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        yield


def with_probe(network: Network, probe: LinearProbe, notes: Mapping[str, Any] | None = None) -> Network:
    """Replace the last dense layer of a network by a probe; without a head, append it after average pooling.

    The probe's input is the default vector of `embed`. `classify`, `heatmap` and `gradcam` work with the probe's
    classes.

    Args:
        network: with its card; it is unchanged and shares all other parameters with the result.
        probe: fitted on vectors of `embed` or `embed_classes` for this network.
        notes: plain data to store in the card beside the kind of probe, such as its accuracy.

    Returns:
        A network in eval mode with its own card, ready for `save`. Its activation is softmax: for logistic regression
        the outputs are scikit-learn's probabilities, for a support vector machine scores in the same order.

    Raises:
        ValueError: the network has no card or is already prepared; the probe expects another number of values.

    >>> import numpy as np
    >>> from convnets_torch import load
    >>> flowers = LinearProbe("logistic", ("aster", "bellis"), np.zeros((2, 40)), np.array([0.0, 1.0]), 20)
    >>> network = with_probe(load("alexnet.safetensors"), flowers)
    >>> network.card.class_names, network(torch.zeros(1, 3, 227, 227)).tolist()
    (('aster', 'bellis'), [[0.0, 1.0]])
    """
    return with_last_layer(
        network,
        torch.from_numpy(probe.weight),
        torch.from_numpy(probe.bias),
        probe.classes,
        f"last dense layer replaced by a probe of {len(probe.classes)} classes ({probe.kind})",
        fields={"probe": {"kind": probe.kind, "pictures": probe.pictures, **(notes or {})}},
    )


BINS = 40
MOST = 2_000  # maximum pictures to pair: about 2,000,000 pairs
ROWS = 256  # rows of the pair matrix in memory at a time

Measure = Literal["distance", "similarity"]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Histograms of distances or similarities of picture pairs, within classes and between classes.

    Attributes:
        measure: "distance" (Euclidean) or "similarity" (cosine, -1 to 1; 0 if a vector is zero).
        within, between: (bins,) numbers of pairs.
        edges: (bins + 1,) bin edges.
        means: mean of the pairs within classes, and of those between classes.
        pictures: number of pictures.
    """

    measure: Measure
    within: NDArray[np.int64]
    between: NDArray[np.int64]
    edges: NDArray[np.float64]
    means: tuple[float, float]
    pictures: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "measure": self.measure,
            "pictures": self.pictures,
            "within": {"mean": self.means[0], "pairs": int(self.within.sum()), "counts": self.within.tolist()},
            "between": {"mean": self.means[1], "pairs": int(self.between.sum()), "counts": self.between.tolist()},
            "edges": self.edges.tolist(),
        }


def count_pairs(labelled: LabelledVectors, measure: Measure, bins: int = BINS, most: int = MOST) -> Pairs:
    """Compute histograms of distances or similarities of all pairs of vectors.

    Args:
        labelled: vectors and their classes; vectors are not standardised.
        measure: "distance" or "similarity".
        bins: number of equal-width bins between the smallest and the largest value.
        most: maximum number of pictures; of more, a random subset with a fixed seed is used.

    Raises:
        ValueError: the measure is unknown; there are no pairs within classes, or none between them.

    >>> vectors = np.array([[1, 0], [1, 0], [0, 2], [0, 4]], np.float32)
    >>> pairs = count_pairs(LabelledVectors(vectors, np.array([0, 0, 1, 1]), ("a", "b")), "similarity", bins=2)
    >>> pairs.within.tolist(), pairs.between.tolist(), pairs.edges.tolist(), pairs.means
    ([0, 2], [4, 0], [0.0, 0.5, 1.0], (1.0, 0.0))
    """
    check_choice(measure, ("distance", "similarity"), "measure")
    vectors, labels = labelled.vectors, labelled.labels
    if len(labels) > most:
        some = np.random.default_rng(SEED).choice(len(labels), most, replace=False)
        vectors, labels = vectors[some], labels[some]
    rows = vectors.astype(np.float64)
    if measure == "similarity":
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = rows / np.where(lengths > 0, lengths, 1)
    squares = (rows**2).sum(1)
    values, same = [], []
    for start in range(0, len(rows), ROWS):
        stop = min(start + ROWS, len(rows))
        products = rows[start:stop] @ rows.T
        if measure == "similarity":
            found = np.clip(products, -1, 1)
        else:
            found = np.sqrt(np.maximum(squares[start:stop, None] + squares - 2 * products, 0))
        above = np.arange(start, stop)[:, None] < np.arange(len(rows))  # each pair once
        values.append(found[above].astype(np.float32))
        same.append((labels[start:stop, None] == labels)[above])
    every, mates = np.concatenate(values), np.concatenate(same)
    if not mates.any() or mates.all():
        raise ValueError("there are no pairs within classes, or none between them; give two classes of two pictures")
    edges = np.histogram_bin_edges(every.astype(np.float64), bins)
    within, between = (np.histogram(every[mask], edges)[0] for mask in (mates, ~mates))
    means = float(every[mates].mean(dtype=np.float64)), float(every[~mates].mean(dtype=np.float64))
    return Pairs(measure, within, between, edges, means, len(rows))


WORDS: dict[str, str] = {"knn": "nearest neighbours", "svm": "linear SVM", "logistic": "logistic regression"}
COLORS: dict[str, Color] = {"knn": CLASS_COLORS[0], "svm": CLASS_COLORS[4], "logistic": BAR}
BETWEEN = CLASS_COLORS[1]


def draw_confusion(found: Probed, kind: Kind, *, ax: Axes | None = None) -> Axes:
    """Draw the confusion matrix, coloured by row share; each cell shows its count unless there are too many classes."""
    counts = found.confusion(kind)
    lines = (
        f"{WORDS[kind][0].upper()}{WORDS[kind][1:]}: true classes (rows) and predicted classes (columns)",
        f"{counts.trace()} of {counts.sum()} pictures correct; colours show the share of the row",
    )
    return charts.draw_counts(counts, found.classes, lines, ax=ax)


def draw_curve(found: Probed, *, ax: Axes | None = None) -> Axes:
    """Draw accuracy over training images per class: means over folds, with bars of one standard deviation."""
    sizes = [*found.curve, found.learnt]
    curves = []
    for kind, color in COLORS.items():
        values = [*(kinds[kind] for kinds in found.curve.values()), found.accuracies[kind]]
        means, spreads = ([float(getattr(each, name)()) for each in values] for name in ("mean", "std"))
        curves.append(charts.Line(f"{WORDS[kind]} {means[-1]:.3f}", color, sizes, means, spreads))
    ax = charts.draw_lines(
        curves,
        (
            "Accuracy by number of training images per class",
            f"{len(found.labels)} pictures of {len(found.classes)} classes, {len(found.accuracies['knn'])} folds;"
            " bars: one standard deviation over folds",
        ),
        ax=ax,
    )
    lowest = min(mean - spread for each in curves for mean, spread in zip(each.y, each.spread or (), strict=True))
    ax.set_ylim(max(0.0, np.floor(lowest * 10 - 1e-9) / 10), 1)
    ax.set_xscale("log")
    ax.set_xlim(sizes[0] / 1.05, sizes[-1] * 1.05)
    gap = (sizes[-1] / sizes[0]) ** 0.06  # keeps labels clear of the last size, which always has one
    marked = [size for size in sizes[:-1] if sizes[-1] > size * gap] + sizes[-1:]
    ax.set_xticks(marked, [f"{size:.0f}" for size in marked])
    ax.set_xticks([], minor=True)
    return ax


def draw_pairs(pairs: Pairs, *, ax: Axes | None = None) -> Axes:
    """Draw histograms of pairs within and between classes, each normalised to its number of pairs."""
    words = "Euclidean distances" if pairs.measure == "distance" else "Cosine similarities"
    kinds = zip(("within", "between"), (BAR, BETWEEN), (pairs.within, pairs.between), pairs.means, strict=True)
    return charts.draw_shares(
        {f"{name}: mean {mean:.3g}, {int(counts.sum())} pairs": (color, counts) for name, color, counts, mean in kinds},
        pairs.edges,
        (
            f"{words} of vectors, within classes and between them",
            f"all pairs of {pairs.pictures} pictures; each histogram is normalised to its number of pairs",
        ),
        ax=ax,
    )

"""Maps of a collection: vectors of pictures in two dimensions, by t-SNE, UMAP or PCA.

Source: openTSNE: a modular Python library for t-SNE dimensionality reduction and embedding, Policar, Strazar and Zupan,
doi:10.18637/jss.v109.i03; what it computes: Visualizing Data using t-SNE, van der Maaten and Hinton, 2008.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from openTSNE import TSNE, TSNEEmbedding
from openTSNE.affinity import PerplexityBasedNN
from openTSNE.nearest_neighbors import KNNIndex
from safetensors import SafetensorError
from safetensors.numpy import save_file
from scipy.sparse import csr_matrix

from convnets_torch import files
from convnets_torch.embeddings.files import read_arrays
from convnets_torch.files import Output, check_writable, path_of, replacing, to_open_files
from convnets_torch.text import ConvnetsTorchWarning

EARLY, STEPS = 250, 500  # of the optimisation: with exaggeration, and after it
PLACING = 250  # steps, of new pictures
NEAR = 5.0  # perplexity of new pictures, as openTSNE has it
EVERY = 25  # steps between two reports
MANY = 10_000  # pictures from which the forces are interpolated on a grid instead of summed over a tree
BLOCK = 1024  # rows that are searched at once

Report = Callable[[int, int], None]


def fit(reduced: NDArray[np.float32], perplexity: float, report: Report | None) -> NDArray[np.float64]:
    """Places (N, 2) of vectors (N, k) whose first two values are those of the largest variance.

    The start is these two values, so that the map has the large outline of the vectors and depends on no chance.
    """
    neighbours = _Neighbours(reduced, min(len(reduced) - 1, max(1, int(3 * perplexity))))
    affinities = PerplexityBasedNN(perplexity=perplexity, knn_index=neighbours, n_jobs=_threads(len(reduced)))
    start = reduced[:, :2].astype(np.float64)
    if start.shape[1] < 2:
        start = np.column_stack([start, np.zeros(len(start))])
    start /= start[:, 0].std() / 1e-4  # what it takes for the first steps to be small
    start += np.random.RandomState(0).normal(0, 1e-6, start.shape)  # equal vectors must not lie upon each other
    model = TSNE(
        perplexity=perplexity,
        early_exaggeration_iter=EARLY,
        n_iter=STEPS,
        random_state=0,
        negative_gradient_method=_method(len(reduced)),
        n_jobs=_threads(len(reduced)),
        **_reporting(report, EARLY, STEPS),
    )
    return np.asarray(model.fit(affinities=affinities, initialization=start))


def place(
    reduced: NDArray[np.float32], positions: NDArray[np.float64], new: NDArray[np.float32], report: Report | None
) -> NDArray[np.float64]:
    """Places (M, 2) of new vectors (M, k) among old ones (N, k), which stay where they are, (N, 2)."""
    old = TSNEEmbedding(
        positions,
        _OfOld(reduced),
        negative_gradient_method=_method(len(reduced)),
        theta=0.5,
        n_jobs=_threads(len(new)),
        **_reporting(report, 0, PLACING),
    )
    placed = old.transform(new, perplexity=min(NEAR, len(reduced) / 3), n_iter=PLACING)
    return np.asarray(placed) + (positions[0] - np.asarray(old)[0])  # it moves the old ones to the middle


def _method(count: int) -> str:
    return "fft" if count >= MANY else "bh"


def _threads(count: int) -> int:
    """Its threads wait for each other a thousand times a second by spinning: few pictures are faster with one."""
    return torch.get_num_threads() if count >= MANY else 1


def _reporting(report: Report | None, early: int, steps: int) -> dict[str, Any]:
    """Options that have openTSNE say how far it is; it counts the steps of each of its two parts from 0."""
    if report is None:
        return {}
    seen = [0]

    def said(iteration: int, error: float, embedding: object) -> None:
        seen[0] = min(seen[0] + EVERY, early + steps)
        report(seen[0], early + steps)

    return {"callbacks": said, "callbacks_every_iters": EVERY}


class _Neighbours(KNNIndex):  # type: ignore[misc]
    """The nearest by comparing all, so that neither threads nor chance change them."""

    VALID_METRICS = ("euclidean",)

    def build(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        return self._nearest(self.data, self.k, itself=False)

    def query(self, query: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        return self._nearest(query, k, itself=True)

    def _nearest(self, rows: NDArray[np.float32], k: int, itself: bool) -> Any:
        among = torch.from_numpy(self.data).double()
        lengths = among.square().sum(1)
        among = among.T.contiguous()
        places, distances = [], []
        for start in range(0, len(rows), BLOCK):
            block = torch.from_numpy(rows[start : start + BLOCK]).double()
            squares = torch.addmm(lengths, block, among, alpha=-2) + block.square().sum(1, keepdim=True)
            if not itself:
                several = torch.arange(len(block))
                squares[several, several + start] = torch.inf
            found = squares.topk(k, largest=False)
            places.append(found.indices.numpy())
            distances.append(found.values.clamp(min=0).sqrt().numpy())
        return np.concatenate(places), np.concatenate(distances)


class _OfOld(PerplexityBasedNN):  # type: ignore[misc]
    """What places new pictures; what is between the old ones is not computed again."""

    def __init__(self, reduced: NDArray[np.float32]) -> None:
        self.knn_index = _Neighbours(reduced, 1)
        self.P = csr_matrix((len(reduced), len(reduced)))
        self.n_jobs, self.verbose = 1, False


COMPONENTS = 50  # principal ones that are kept of the vectors
FEWEST = 3  # pictures of a map
PERPLEXITY = 30.0
ROUNDING = 1e-5  # of a vector's length: so far apart are those of one picture, which depend on its batch


class MapWarning(ConvnetsTorchWarning):
    """What was done otherwise than asked, because the collection is small."""


@dataclass(frozen=True, eq=False)
class ImageMap:
    """Places of pictures, and what it takes to place others among them.

    Attributes:
        positions: (N, 2) float32, x to the right and y upwards, in units of their own; the middle is at 0. Pictures
            whose vectors are equal up to rounding are at one place.
        perplexity: about how many neighbours each picture was kept near to.
        mean: (values,) float32, of the vectors.
        axes: (k, values) float32, the principal components, the one of the largest variance first.
        reduced: (N, k) float32, the vectors in these components.
    """

    positions: NDArray[np.float32]
    perplexity: float
    mean: NDArray[np.float32]
    axes: NDArray[np.float32]
    reduced: NDArray[np.float32]

    def place(self, vectors: ArrayLike, *, report: Callable[[int, int], None] | None = None) -> NDArray[np.float32]:
        """Place new pictures on the map; the old ones stay where they are.

        Each is placed by itself among the old ones: what else is placed does not matter.

        Args:
            vectors: (M, values), of the same kind as those that the map was made of.
            report: is told now and then how many of how many steps are done.

        Returns:
            (M, 2) float32.

        Raises:
            ValueError: vectors of another number of values, or with NaN or infinite ones.
            ImportError: openTSNE is missing.

        >>> vectors = np.random.RandomState(0).normal(size=(40, 8))
        >>> found = make_map(vectors, perplexity=5)
        >>> found.place(vectors[:2] + 0.01).shape
        (2, 2)
        """
        tsne = _tsne()
        checked = _checked(vectors)
        if checked.shape[1] != len(self.mean):
            raise ValueError(
                f"the map is of vectors of {len(self.mean)} values, and the new ones have {checked.shape[1]};"
                " make them with the same network and layer"
            )
        new = np.ascontiguousarray((checked - self.mean) @ self.axes.T, np.float32)
        _, one = np.unique(self.positions, axis=0, return_index=True)  # picture for each place
        one.sort()
        return tsne.place(self.reduced[one], self.positions[one].astype(np.float64), new, report).astype(np.float32)


def make_map(
    vectors: ArrayLike, *, perplexity: float = PERPLEXITY, report: Callable[[int, int], None] | None = None
) -> ImageMap:
    """Lay pictures out on a plane by t-SNE, so that those with near vectors are near.

    The vectors are reduced to their 50 principal components first. On one machine the same vectors always give the
    same map, whatever the number of threads: neighbours are searched exactly, and the start is the first two
    components. Pictures whose vectors are equal, such as copies, count as one and lie at one place. What a map shows is
    who is near to whom; distances between groups and their sizes mean little.

    Args:
        vectors: (N, values), at least 3 of them different, such as `embed` gives them.
        perplexity: about how many neighbours each picture is kept near to; few show small groups, many large ones. The
            most is half of the other pictures that are different.
        report: is told now and then how many of how many steps are done.

    Raises:
        ValueError: vectors of another shape, fewer than 3 that are different, or with NaN or infinite values; a
            perplexity below 1.
        ImportError: openTSNE is missing.

    Warns:
        MapWarning: the perplexity was too large for so few pictures, and a smaller one was taken.

    >>> found = make_map(np.random.RandomState(0).normal(size=(40, 8)), perplexity=5)
    >>> found.positions.shape, found.axes.shape
    ((40, 2), (8, 8))
    """
    checked = _checked(vectors)
    if len(checked) < FEWEST:
        raise ValueError(f"there are {len(checked)} vectors, and a map needs {FEWEST} or more; give more pictures")
    if not perplexity >= 1:  # NaN is neither
        raise ValueError(f"the perplexity is {perplexity}; give 1 or more, such as {PERPLEXITY:.0f}")
    if not (checked != checked[0]).any():
        raise ValueError(f"all {len(checked)} vectors are equal, so that there is nothing to map; give other pictures")
    mean, axes, reduced = _components(checked)
    one, place_of = np.unique(_first_alike(reduced, _rounding(checked)), return_inverse=True)
    if len(one) < FEWEST:
        raise ValueError(
            f"of {len(checked)} vectors {len(one)} are different, and a map needs {FEWEST} or more; give other pictures"
        )
    tsne = _tsne()
    most = (len(one) - 1) / 2
    if perplexity > most:
        warnings.warn(
            f"a perplexity of {perplexity:g} needs {int(2 * perplexity) + 1} pictures or more, and there are"
            f" {len(one)}; {most:.3g} was taken",
            MapWarning,
            stacklevel=2,
        )
        perplexity = most
    positions = tsne.fit(reduced[one], perplexity, report)[place_of]
    positions -= (positions.max(axis=0) + positions.min(axis=0)) / 2
    return ImageMap(positions.astype(np.float32), float(perplexity), mean, axes, reduced)


def check_installed() -> None:
    """Raise, before long work begins, when openTSNE is missing.

    Raises:
        ImportError: it is.
    """
    _tsne()


def _tsne() -> Any:
    try:
        return importlib.import_module("convnets_torch.embeddings.image_map")
    except ModuleNotFoundError as error:
        if error.name not in ("openTSNE", "sklearn", "scipy"):
            raise
        raise ImportError("a map of pictures needs openTSNE: pip install 'convnets-torch[maps]'") from None


def _checked(vectors: ArrayLike) -> NDArray[np.float32]:
    checked = np.asarray(vectors, np.float32)
    if checked.ndim != 2 or not checked.shape[1]:
        raise ValueError(f"the vectors are {checked.shape}; give (pictures, values)")
    bad = ~np.isfinite(checked).all(axis=1, keepdims=True)
    if bad.any():
        raise ValueError(
            f"{bad.sum()} of {len(checked)} vectors have values that are NaN or infinite, the first is number"
            f" {bad.argmax()}, from 0; leave them out, or make them anew"
        )
    return checked


def _components(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
    """Mean, principal axes, and the vectors in them."""
    from sklearn.decomposition import PCA

    count = min(COMPONENTS, len(vectors) - 1, vectors.shape[1])
    found = PCA(count, random_state=0).fit(vectors)  # its search for axes begins at random
    mean, axes = found.mean_.astype(np.float32), np.ascontiguousarray(found.components_, np.float32)
    return mean, axes, np.ascontiguousarray((vectors - mean) @ axes.T, np.float32)


def _rounding(vectors: NDArray[np.float32]) -> float:
    """How far apart two vectors of one picture may be."""
    return ROUNDING * float(np.median(np.linalg.norm(vectors, axis=1)))


def _first_alike(reduced: NDArray[np.float32], near: float) -> NDArray[np.int64]:
    """(N,), for each vector one that is not farther than `near` from it and stands for all such; often itself."""
    direction = np.random.RandomState(0).normal(size=reduced.shape[1])
    along = reduced @ (direction / np.linalg.norm(direction))  # differs no more than the vectors do
    first = np.arange(len(reduced))
    waiting: list[int] = []  # those that stand for others and are near in this direction
    for row in np.argsort(along, kind="stable").tolist():
        waiting = [other for other in waiting if along[row] - along[other] <= near]
        alike = (other for other in waiting if np.linalg.norm(reduced[row] - reduced[other]) <= near)
        first[row] = next(alike, row)
        if first[row] == row:
            waiting.append(row)
    return first


KEY = "convnets-torch image map"
SCHEMA = 1
ARRAYS = {"positions": 2, "mean": 1, "axes": 2, "reduced": 2}  # name -> dimensions


@dataclass(frozen=True)
class MapEntry:
    """What a map says of a picture.

    Attributes:
        name: of its file, or other words for it.
        words: of its most probable class; empty where that is not known.
        probability: of this class, 0 to 1.
    """

    name: str
    words: str = ""
    probability: float | None = None


@dataclass(frozen=True, eq=False)
class SavedMap:
    """What a file of a map holds.

    Attributes:
        image_map: places, and what it takes to place more.
        entries: one for each picture.
        about: what tells its vectors from those of another kind, as `Embedder.about` does.
    """

    image_map: ImageMap
    entries: list[MapEntry]
    about: dict[str, str]


def check_map_output(path: Path) -> None:
    """Raise, before long work begins, when a map cannot be saved at `path`.

    Raises:
        ValueError: another ending than .safetensors.
        OSError: `path` cannot be written.
    """
    if path.suffix.lower() != ".safetensors":
        raise ValueError(f"{path} has an unknown ending; a map is saved as .safetensors")
    check_writable(path)


@to_open_files(".npz")
def save_map(
    image_map: ImageMap,
    entries: Sequence[MapEntry],
    path: Output,
    about: Mapping[str, str] | None = None,
) -> None:
    """Write a map as one safetensors file, atomically, on which `load_map` and `ImageMap.place` put new pictures.

    Args:
        image_map: as `make_map` gives it.
        entries: one for each of its pictures, in order.
        path: ends in .safetensors; a file that is there is replaced.
        about: `Embedder.about` of what made the vectors.

    Raises:
        ValueError: another ending, or another number of entries than places.
        OSError: the file cannot be written.

    >>> from convnets_torch import make_map
    >>> found = make_map(np.random.RandomState(0).normal(size=(40, 8)), perplexity=5)
    >>> save_map(found, [MapEntry(f"{number}.jpg") for number in range(40)], "map.safetensors")
    >>> load_map("map.safetensors").entries[39]
    MapEntry(name='39.jpg', words='', probability=None)
    """
    path = path_of(path)
    check_map_output(path)
    if len(entries) != len(image_map.positions):
        raise ValueError(f"there are {len(entries)} entries and {len(image_map.positions)} places; give one for each")
    text = json.dumps([list(asdict(entry).values()) for entry in entries]).encode()
    arrays: dict[str, NDArray[Any]] = {name: np.ascontiguousarray(getattr(image_map, name)) for name in ARRAYS}
    arrays["entries"] = np.frombuffer(text, np.uint8)
    said = {"schema": SCHEMA, "perplexity": image_map.perplexity, "about": dict(about or {})}
    with replacing(path) as temporary:
        try:
            save_file(arrays, temporary, {KEY: json.dumps(said)})  # one text: the order of several is by chance
        except SafetensorError as error:
            raise OSError(str(error)) from None


def load_map(path: str | os.PathLike[str]) -> SavedMap:
    """Read a map that `save_map` wrote.

    Raises:
        OSError: the file is missing, a folder, or cannot be read.
        ValueError: the file holds no map, or is damaged.
    """
    path = Path(path)
    found, metadata = read_arrays(path)
    if KEY not in metadata:
        raise ValueError(f"{path} holds no map of pictures; make one with `convnets-torch map --save`")
    damaged = f"{path} is damaged (%s); make the map anew"
    try:
        said = files.loads(metadata[KEY])
        if said["schema"] != SCHEMA:
            raise ValueError(f"it is of version {said['schema']!r:.80}, and {SCHEMA} is read")
        perplexity, about = float(said["perplexity"]), {str(name): str(text) for name, text in said["about"].items()}
        arrays = {name: found[name] for name in ARRAYS}
        entries = [MapEntry(*entry) for entry in files.loads(found["entries"].tobytes())]
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(damaged % " ".join(str(error).split())) from None
    for name, array in arrays.items():
        if array.ndim != ARRAYS[name] or array.dtype != np.float32 or not np.isfinite(array).all():
            raise ValueError(damaged % f"{name} is {array.dtype} {array.shape}, or holds NaN")
    count, components = arrays["reduced"].shape
    wanted = {"positions": (count, 2), "axes": (components, len(arrays["mean"]))}
    for name, shape in wanted.items():
        if arrays[name].shape != shape:
            raise ValueError(damaged % f"{name} is {arrays[name].shape}, not {shape}")
    if not count or not math.isfinite(perplexity):
        raise ValueError(damaged % f"it has {count} places and a perplexity of {perplexity}")
    if len(entries) != count or not all(_is_entry(entry) for entry in entries):
        raise ValueError(damaged % f"its {count} places have {len(entries)} entries, or broken ones")
    return SavedMap(ImageMap(perplexity=perplexity, **arrays), entries, about)


def check_same_kind(saved: SavedMap, about: Mapping[str, str], path: str | os.PathLike[str]) -> None:
    """Raise ValueError when new vectors are of another kind than those of a map; where one is not said, they pass.

    Args:
        saved: the map.
        about: `Embedder.about` of what made the new vectors.
        path: of the map, for the message.
    """
    old = saved.about
    other = [name for name in old if name in about and old[name] != about[name]]
    other += [name for name in ("depth", "background") if (name in old) != (name in about)]  # None is one of them
    if not other:
        return
    if other == ["card"]:
        raise ValueError(
            f"{path} was made with other weights of {old['network']} than these; place pictures with the same weights"
        )
    said = [
        ", ".join(f"{name} {each.get(name, 'as stored')}" for name in other if name != "card") for each in (old, about)
    ]
    raise ValueError(f"{path} is a map of vectors of another kind ({said[0]}) than these ({said[1]}); make a new map")


def _is_entry(entry: MapEntry) -> bool:
    chance = entry.probability
    return (
        isinstance(entry.name, str)
        and isinstance(entry.words, str)
        and (chance is None or (isinstance(chance, float | int) and 0 <= chance <= 1))
    )

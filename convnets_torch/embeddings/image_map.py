"""Image maps: feature vectors of pictures embedded in two dimensions by t-SNE.

Source: Visualizing Data using t-SNE, van der Maaten and Hinton, 2008.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from convnets_torch import files
from convnets_torch.files import Output, Writer
from convnets_torch.inference.child_process import Progress
from convnets_torch.safetensors_io import read_arrays, write_arrays
from convnets_torch.text import ConvnetsTorchWarning

COMPONENTS = 50  # principal components kept
FEWEST = 3  # pictures
PERPLEXITY = 30.0
ROUNDING = 1e-5  # relative distance of two vectors of one picture, which depend slightly on the batch


class MapWarning(ConvnetsTorchWarning):
    """A map setting was changed because the collection is small."""


@dataclass(frozen=True, eq=False)
class ImageMap:
    """Positions of pictures, and the data needed to place new ones.

    Attributes:
        positions: (N, 2) float32, x to the right and y upwards, in arbitrary units, centred at 0. Pictures whose
            vectors are equal up to rounding share a position.
        perplexity: effective number of neighbours of each picture.
        mean: (values,) float32, mean of the vectors.
        axes: (k, values) float32, principal components, the largest variance first.
        reduced: (N, k) float32, the vectors in these components.
    """

    positions: NDArray[np.float32]
    perplexity: float
    mean: NDArray[np.float32]
    axes: NDArray[np.float32]
    reduced: NDArray[np.float32]

    def place(self, vectors: ArrayLike, *, report: Progress | None = None) -> NDArray[np.float32]:
        """Place new pictures on the map without moving the old ones.

        Each new picture is placed independently of the other new ones.

        Args:
            vectors: (M, values), of the same kind as those of the map.
            report: called from time to time with (steps done, total steps).

        Returns:
            (M, 2) float32.

        Raises:
            ValueError: the number of values differs from the map's, or vectors contain NaN or infinity.
            ImportError: openTSNE is not installed.

        >>> vectors = np.random.RandomState(0).normal(size=(40, 8))
        >>> found = make_map(vectors, perplexity=5)
        >>> found.place(vectors[:2] + 0.01).shape
        (2, 2)
        """
        tsne = import_tsne()
        checked = _checked(vectors)
        if checked.shape[1] != len(self.mean):
            raise ValueError(
                f"the map is of vectors of {len(self.mean)} values, and the new ones have {checked.shape[1]};"
                " make them with the same network and layer"
            )
        new = np.ascontiguousarray((checked - self.mean) @ self.axes.T, np.float32)
        _, distinct = np.unique(self.positions, axis=0, return_index=True)
        distinct.sort()
        old = self.reduced[distinct], self.positions[distinct].astype(np.float64)
        return tsne.place(*old, new, report).astype(np.float32)


def make_map(vectors: ArrayLike, *, perplexity: float = PERPLEXITY, report: Progress | None = None) -> ImageMap:
    """Embed vectors in two dimensions by t-SNE, so that similar pictures are close together.

    The vectors are first reduced to 50 principal components. On one machine the same vectors always give the same map,
    whatever the number of threads: the neighbour search is exact and the initial positions are the first two principal
    components. Pictures with equal vectors, such as copies, count once and share a position. A map shows which pictures
    are close; distances between groups and sizes of groups mean little.

    Args:
        vectors: (N, values), such as from `embed`, with at least 3 distinct rows.
        perplexity: effective number of neighbours of each picture; small values show small groups, large values large
            ones. At most half the number of other distinct pictures.
        report: called from time to time with (steps done, total steps).

    Raises:
        ValueError: vectors are not (N, values), have fewer than 3 distinct rows or contain NaN or infinity; the
            perplexity is below 1.
        ImportError: openTSNE is not installed.

    Warns:
        MapWarning: the perplexity was too large for so few pictures and was lowered.

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
        raise ValueError(f"all {len(checked)} vectors are equal, so there is nothing to map; give other pictures")
    mean, axes, reduced = _components(checked)
    rounding = ROUNDING * float(np.median(np.linalg.norm(checked, axis=1)))
    distinct, inverse = np.unique(_first_alike(reduced, rounding), return_inverse=True)
    if len(distinct) < FEWEST:
        raise ValueError(
            f"{len(distinct)} of {len(checked)} vectors are distinct, and a map needs {FEWEST} or more; give other"
            " pictures"
        )
    tsne = import_tsne()
    most = (len(distinct) - 1) / 2
    if perplexity > most:
        warnings.warn(
            f"a perplexity of {perplexity:g} needs {int(2 * perplexity) + 1} pictures or more, but there are"
            f" {len(distinct)}; using {most:.3g}",
            MapWarning,
            stacklevel=2,
        )
        perplexity = most
    positions = tsne.fit(reduced[distinct], perplexity, report)[inverse]
    positions -= (positions.max(axis=0) + positions.min(axis=0)) / 2
    return ImageMap(positions.astype(np.float32), float(perplexity), mean, axes, reduced)


def import_tsne() -> Any:
    """Import `embeddings.tsne`; raise ImportError if openTSNE is not installed."""
    try:
        return importlib.import_module("convnets_torch.embeddings.tsne")
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
            f"{bad.sum()} of {len(checked)} vectors contain NaN or infinity, the first at index {bad.argmax()}; leave"
            " them out, or compute them again"
        )
    return checked


def _components(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
    """Return mean, principal axes, and the vectors projected on them."""
    from sklearn.decomposition import PCA

    count = min(COMPONENTS, len(vectors) - 1, vectors.shape[1])
    found = PCA(count, random_state=0).fit(vectors)  # the randomised solver needs a seed
    mean, axes = found.mean_.astype(np.float32), np.ascontiguousarray(found.components_, np.float32)
    return mean, axes, np.ascontiguousarray((vectors - mean) @ axes.T, np.float32)


def _first_alike(reduced: NDArray[np.float32], near: float) -> NDArray[np.int64]:
    """Return for each vector (N,) the row of a representative at most `near` away, often itself."""
    direction = np.random.RandomState(0).normal(size=reduced.shape[1])
    along = reduced @ (direction / np.linalg.norm(direction))  # a projection: never farther apart than the vectors
    first = np.arange(len(reduced))
    window: list[int] = []  # representatives that are near in the projection
    for row in np.argsort(along, kind="stable").tolist():
        window = [other for other in window if along[row] - along[other] <= near]
        alike = (other for other in window if np.linalg.norm(reduced[row] - reduced[other]) <= near)
        first[row] = next(alike, row)
        if first[row] == row:
            window.append(row)
    return first


KEY = "convnets-torch image map"
MAP_SCHEMA = 1  # version of the map file
ARRAYS = {"positions": 2, "mean": 1, "axes": 2, "reduced": 2}  # name -> dimensions


@dataclass(frozen=True)
class MapEntry:
    """Caption of a picture on a map.

    Attributes:
        name: file name, or other text.
        words: name of the most probable class; empty if unknown.
        probability: probability of this class, 0 to 1.
    """

    name: str
    words: str = ""
    probability: float | None = None


@dataclass(frozen=True, eq=False)
class SavedMap:
    """Contents of a map file.

    Attributes:
        image_map: the map.
        entries: one entry per picture.
        about: metadata that identifies the kind of vectors, as in `Embedder.about`.
    """

    image_map: ImageMap
    entries: list[MapEntry]
    about: dict[str, str]


def save_map(
    image_map: ImageMap,
    entries: Sequence[MapEntry],
    path: Output,
    about: Mapping[str, str] | None = None,
) -> None:
    """Write a map to a safetensors file, atomically; `load_map` reads it.

    Args:
        image_map: as from `make_map`.
        entries: one entry per picture, in order.
        path: ends in .safetensors; an existing file is replaced.
        about: `Embedder.about` of the embedder that computed the vectors.

    Raises:
        ValueError: unknown file extension, or the numbers of entries and positions differ.
        OSError: the file cannot be written.

    >>> from convnets_torch import make_map
    >>> found = make_map(np.random.RandomState(0).normal(size=(40, 8)), perplexity=5)
    >>> save_map(found, [MapEntry(f"{number}.jpg") for number in range(40)], "map.safetensors")
    >>> load_map("map.safetensors").entries[39]
    MapEntry(name='39.jpg', words='', probability=None)
    """
    if len(entries) != len(image_map.positions):
        raise ValueError(f"there are {len(entries)} entries and {len(image_map.positions)} places; give one for each")
    text = json.dumps([list(asdict(entry).values()) for entry in entries]).encode()
    arrays: dict[str, NDArray[Any]] = {name: np.ascontiguousarray(getattr(image_map, name)) for name in ARRAYS}
    arrays["entries"] = np.frombuffer(text, np.uint8)
    metadata = {"schema": MAP_SCHEMA, "perplexity": image_map.perplexity, "about": dict(about or {})}
    WRITER.write(path, arrays, {KEY: json.dumps(metadata)})  # a single entry, as safetensors does not order several


WRITER = Writer("a map of pictures", {".safetensors": write_arrays})


def load_map(path: str | os.PathLike[str]) -> SavedMap:
    """Read a map that `save_map` wrote.

    Raises:
        OSError: the file is missing, is a folder or cannot be read.
        ValueError: the file holds no map, or is damaged.
    """
    path = Path(path)
    found, metadata = read_arrays(path)
    if KEY not in metadata:
        raise ValueError(f"{path} holds no map of pictures; make one with `convnets-torch map --save`")
    damaged = f"{path} is damaged (%s); create the map again"
    try:
        said = files.loads(metadata[KEY])
        if said["schema"] != MAP_SCHEMA:
            raise ValueError(f"it is of version {said['schema']!r:.80}, and {MAP_SCHEMA} is read")
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
    """Raise ValueError if new vectors are of another kind than those of a map; missing metadata is not compared."""
    old = saved.about
    other = [name for name in old if name in about and old[name] != about[name]]
    other += [name for name in ("depth", "background") if (name in old) != (name in about)]  # missing means None
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

"""Maps on disk, and what of a picture a map shows."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from convnets_torch import strict_json
from convnets_torch.embeddings.maps import ImageMap
from convnets_torch.embeddings.vector_reading import read_arrays
from convnets_torch.files import Output, check_writable, path_of, replacing, to_open_files

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
        said = strict_json.loads(metadata[KEY])
        if said["schema"] != SCHEMA:
            raise ValueError(f"it is of version {said['schema']!r:.80}, and {SCHEMA} is read")
        perplexity, about = float(said["perplexity"]), {str(name): str(text) for name, text in said["about"].items()}
        arrays = {name: found[name] for name in ARRAYS}
        entries = [MapEntry(*entry) for entry in strict_json.loads(found["entries"].tobytes())]
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

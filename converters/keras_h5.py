"""Weights files of Keras 0.x and Keras 1 as named layers of arrays; imports neither torch nor Keras.

Layouts (seen in files of the real frameworks):

- Keras 0.x: the root says `nb_layers`; groups `layer_0`, `layer_1`, ... say `nb_params` and hold `param_0`
  (kernel), `param_1` (bias). Layers have no names, and those without weights are counted too.
- Keras 1: the root lists `layer_names`; each group lists `weight_names` and holds a dataset for each.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

MOST_COMPRESSED = 100  # times that compression may shrink an array; more is no set of weights


@dataclass(frozen=True)
class KerasLayer:
    """One layer that has weights.

    Attributes:
        name: as the file has it; of Keras 0.x the group's name, "layer_1".
        arrays: name -> dataset, in the order of the file: kernel, bias. Datasets have `shape` and `dtype` and
            are read by slicing, while the file is open.
    """

    name: str
    arrays: dict[str, h5py.Dataset]


@dataclass(frozen=True)
class KerasFile:
    """What a weights file says of itself.

    Attributes:
        path: the file.
        named: whether layers have names of their own (Keras 1) or only numbers (Keras 0.x).
        layers: those that have weights, in the order of the file.
        unlisted: arrays in the file that no layer lists.
        version: of Keras, where the file says it.
        backend: "theano" or "tensorflow", where the file says it.
    """

    path: Path
    named: bool
    layers: tuple[KerasLayer, ...]
    unlisted: tuple[str, ...]
    version: str | None
    backend: str | None

    @property
    def framework(self) -> str:
        """Keras, with the version as far as the file gives it away."""
        return f"Keras {self.version or ('1' if self.named else '0')}"


@contextmanager
def open_keras_h5(path: str | os.PathLike[str]) -> Iterator[KerasFile]:
    """Open a weights file; its datasets can be read until the block ends.

    Raises:
        OSError: the file is missing, a folder, empty, truncated or no HDF5.
        ValueError: it is HDF5, but no Keras weights in a layout that is known here.
    """
    path = Path(path)
    if not h5py.is_hdf5(path):
        raise OSError(f"{path} is no HDF5 file, or truncated before its header ends; download it again")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise OSError(f"{path} cannot be opened, it is truncated or broken ({error}); download it again") from None
    with file:
        try:
            layers = tuple(layer for layer in _layers(path, file) if layer.arrays)
            unlisted = _unlisted(file, layers)
        except (OSError, KeyError, RuntimeError, TypeError, AttributeError, ValueError, OverflowError) as error:
            if str(path) in str(error):  # said already
                raise
            reason = " ".join(str(error).strip("'\"").split())
            raise ValueError(f"{path} is broken ({reason}); download it again") from None
        named = "layer_names" in file.attrs
        version, backend = (_text(file.attrs.get(name)) for name in ("keras_version", "backend"))
        yield KerasFile(path, named, layers, unlisted, version, backend)


def _layers(path: Path, file: h5py.File) -> Iterator[KerasLayer]:
    if "layer_names" in file.attrs:
        for name in map(str, map(_text, file.attrs["layer_names"])):
            if name in file:  # else it is missing, which the plan says with all others that are
                group = file[name]
                names = [str(_text(weight)) for weight in group.attrs["weight_names"]]
                if len(set(names)) < len(names):
                    raise ValueError(f"{path}: {name} lists an array twice; download the file again")
                yield KerasLayer(name, {weight: _dataset(path, group, weight) for weight in names if weight in group})
    elif "nb_layers" in file.attrs:
        for name in (f"layer_{number}" for number in range(_count(path, file.attrs["nb_layers"]))):
            count = _count(path, file[name].attrs["nb_params"])
            if count != len(file[name]):
                raise ValueError(f"{path}: {name} says {count} arrays and holds {len(file[name])}; download it again")
            params = [f"param_{number}" for number in range(count)]
            yield KerasLayer(name, {param: _dataset(path, file[name], param) for param in params})
    elif "model_weights" in file:
        raise ValueError(f"{path} holds a whole model; save its weights alone, with model.save_weights in Keras")
    else:
        held = ", ".join(list(file)[:8]) or "nothing"
        raise ValueError(f"{path} holds no Keras weights (neither layer_names nor nb_layers, but {held})")


def _unlisted(file: h5py.File, layers: tuple[KerasLayer, ...]) -> tuple[str, ...]:
    listed = {dataset.name for layer in layers for dataset in layer.arrays.values()}
    found: list[str] = []
    file.visititems(lambda _, entry: found.append(entry.name) if isinstance(entry, h5py.Dataset) else None)
    return tuple(sorted(set(found) - listed))


def _dataset(path: Path, group: h5py.Group, name: str) -> h5py.Dataset:
    dataset = group[name]
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{path}: {group.name}/{name} is no array; download the file again")
    if dataset.dtype.kind != "f":
        raise ValueError(f"{path}: {group.name}/{name} holds {dataset.dtype} values, but weights are floating point")
    stored = dataset.id.get_storage_size()
    if not dataset.size or dataset.nbytes > stored * (1 if dataset.chunks is None else MOST_COMPRESSED):
        raise ValueError(f"{path}: {group.name}/{name} is {dataset.shape}, but only {stored} bytes of it are there")
    return dataset


def _count(path: Path, value: Any) -> int:
    try:
        return int(value)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"{path} is broken: {value!r} is no number of layers or arrays; download it again") from None


def _text(value: Any) -> str | None:
    """Attributes are bytes by h5py 2 and str by h5py 3."""
    return value.decode() if isinstance(value, bytes | np.bytes_) else None if value is None else str(value)

"""Read a weights file or model of Keras 0.x to 3 as plain data, without Keras or torch.

Every container gives a `KerasFile`: ordered layers, arrays by role, the model's config. Nothing in a file is executed
or imported, no link is followed, and arrays are only read by `values`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import h5py

from converters.layouts import Array
from converters.readers import arrays, keras_archive, keras_weights, legacy_h5
from converters.readers.foreign import check_folder, check_foreign, kind_of_zip
from converters.readers.hdf5_tree import BROKEN, Tree, reason_of, survey
from converters.readers.keras_file import KerasArray, KerasFile
from convnets_torch.files import check_regular, open_file, opened_path
from convnets_torch.text import printable_errors

values, Blocks = arrays.values, arrays.Blocks


@printable_errors()
def read_keras(path: str | os.PathLike[str]) -> KerasFile:
    """Read the description of a Keras file.

    Args:
        path: an `.h5` (weights or a whole model of Keras 0.x to 3), `.weights.h5` or `.keras` file; the type is
            determined by the content.

    Raises:
        OSError: the file is missing, a folder, empty, truncated or broken.
        ValueError: it holds no Keras weights, or holds something that Keras never writes: links, external storage,
            incomplete arrays, weights that are not floating point.

    >>> file = read_keras("alexnet_weights.h5")
    >>> file.framework, len(file.layers), [layer.name for layer in file.weighted[:3]]
    ('Keras 1', 34, ['conv_1', 'conv_2_1', 'conv_2_2'])
    >>> file.weighted[0].kind, file.weighted[0].arrays["kernel"].shape, file.weighted[0].kernel_order
    ('Conv2D', (12, 3, 11, 11), 'oihw')
    """
    path = Path(path)
    check_folder(path)
    check_regular(path)
    if keras_archive.is_archive(path):
        kind_of_zip(str(path))
        with keras_archive.opened_archive(path) as archive, _one_sentence(path):
            config = keras_archive.config_of(path, archive)
            version = keras_archive.version_of(path, archive)
            with keras_archive.opened_weights(path, archive) as file:
                tree = _surveyed(path, file)
                return replace(keras_weights.read_weights(path, file, tree, config), version=version)
    with _opened_h5(path) as file, _one_sentence(path):
        tree = _surveyed(path, file)
        if legacy_h5.is_legacy(file, tree):
            return legacy_h5.read_legacy(path, file, tree)
        if keras_weights.is_weights(tree):
            return keras_weights.read_weights(path, file, tree)
        held = ", ".join(list(tree.root.members)[:8]) or "nothing"
        raise ValueError(f"{path} holds no Keras weights (neither layer_names, nb_layers nor vars, but {held})")


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[h5py.File]:
    """Open the HDF5 file at `path`, or the one in a `.keras` archive, for reading."""
    path = Path(path)
    check_regular(path)
    if not keras_archive.is_archive(path):
        with _opened_h5(path) as file:
            yield file
        return
    with keras_archive.opened_archive(path) as archive, keras_archive.opened_weights(path, archive) as file:
        yield file


def read_array(array: KerasArray) -> Array:
    """Open an array's file and return its `values`; to read many arrays, use `opened` and `values`."""
    with opened(array.path) as file:
        return values(file, array)


@contextmanager
def _opened_h5(path: Path) -> Iterator[h5py.File]:
    with open_file(path) as opened:
        place = opened_path(opened)
        if not h5py.is_hdf5(place):
            check_foreign(path, opened)
            raise OSError(f"{path} is not an HDF5 file, or is truncated within its header; download it again")
        try:
            file = h5py.File(place, "r")
        except BROKEN as error:
            reason = str(error).replace(place, str(path))
            raise OSError(f"{path} is truncated or broken and cannot be opened ({reason}); download it again") from None
        with file:
            yield file


def _surveyed(path: Path, file: h5py.File) -> Tree:
    """Survey a file without its training state; raise ValueError for anything that Keras never writes."""
    listing = "layer_names" in file.attrs or "layer_names0" in file.attrs or "nb_layers" in file.attrs
    if listing:
        leave_out: frozenset[str] = frozenset()
    elif "model_weights" in file:
        leave_out = frozenset([legacy_h5.OPTIMIZER])
    else:
        leave_out = keras_weights.NOT_WEIGHTS
    tree = survey(file, leave_out)
    for problem in tree.problems:
        raise ValueError(f"{path}: {problem.place} is {problem.what}; Keras never writes this, so the file is not read")
    return tree


@contextmanager
def _one_sentence(path: Path) -> Iterator[None]:
    """Turn errors of libhdf5 and h5py into one-sentence errors that name the file."""
    try:
        yield
    except BROKEN as error:
        if str(path) in str(error):  # already names the file
            raise
        raise ValueError(f"{path} is broken ({reason_of(error)}); download it again") from None

"""List the contents of a Keras file without building a model, importing code or reading arrays."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import h5py

from converters.readers import keras_archive
from converters.readers.foreign import check_folder
from converters.readers.hdf5_tree import BROKEN, Array, Tree, attribute, reason_of, survey, text
from converters.readers.keras_graph import parse
from converters.readers.keras_weights import NOT_WEIGHTS
from converters.readers.keras_words import CODE
from converters.readers.reading import read_keras
from convnets_torch import files
from convnets_torch.files import check_regular, open_file, opened_path

OPTIMIZER = ("optimizer_weights", "optimizer", "_optimizer")
OWN_MODULES = ("keras", "tf_keras", "tensorflow", "builtins")


@dataclass(frozen=True)
class AuditLayer:
    """A layer or, if the file cannot be read as layers, a group with arrays.

    Attributes:
        name: name including those of enclosing models, "vgg16/block1_conv1".
        kind: class, or "".
        arrays: role -> (shape, dtype).
        parameters: total number of elements.
    """

    name: str
    kind: str
    arrays: dict[str, tuple[tuple[int, ...], str]]
    parameters: int


@dataclass(frozen=True)
class Audit:
    """The contents of a file.

    Attributes:
        path: the file.
        size: file size in bytes.
        framework: "Keras 3.15.1", or "" if it cannot be read as a Keras file.
        container: as in `KerasFile`, or "".
        version, backend: Keras version and backend, if the file specifies them.
        layers: in file order.
        parameters: total number of elements of all layers.
        unlisted: paths of arrays that belong to no layer.
        optimizer_arrays, optimizer_bytes: number and size of optimizer arrays.
        training: the loss, optimizer and metrics that the file names, as stored.
        code: what a loader would import or run, such as Lambda layers and custom classes, with locations.
        problems: what Keras never writes, such as links, external storage, wrong sizes and damage, with locations.
        refused: why `read_keras` refuses the file, or None.
    """

    path: str
    size: int
    framework: str = ""
    container: str = ""
    version: str | None = None
    backend: str | None = None
    layers: tuple[AuditLayer, ...] = ()
    parameters: int = 0
    unlisted: tuple[str, ...] = ()
    optimizer_arrays: int = 0
    optimizer_bytes: int = 0
    training: Any = None
    code: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    refused: str | None = None

    @property
    def clean(self) -> bool:
        """Whether nothing was found: the file is readable, and has no code, problems or unlisted arrays."""
        return not (self.code or self.problems or self.unlisted or self.refused)

    def to_dict(self) -> dict[str, Any]:
        """Return all attributes, and `clean`, as JSON values."""
        return asdict(self) | {"clean": self.clean}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Audit:
        """The inverse of `to_dict`, also after JSON has turned tuples into lists."""
        layers = []
        for layer in values["layers"]:
            arrays = {role: (tuple(shape), dtype) for role, (shape, dtype) in layer["arrays"].items()}
            layers.append(AuditLayer(**{**layer, "arrays": arrays}))
        lists = {name: tuple(values[name]) for name in ("unlisted", "code", "problems")}
        known = {name: value for name, value in values.items() if name != "clean"}
        return cls(**{**known, **lists, "layers": tuple(layers)})


@dataclass
class _Found:
    """Findings collected before it is known whether the file is readable."""

    problems: list[str] = field(default_factory=list)
    code: list[str] = field(default_factory=list)
    arrays: list[Array] = field(default_factory=list)
    training: Any = None


def audit(path: str | os.PathLike[str]) -> Audit:
    """List the contents of an `.h5` or `.keras` file.

    Raises:
        OSError: the file does not exist.
        ValueError: it is the folder of a SavedModel or the like.

    >>> found = audit("alexnet_weights.h5")
    >>> found.framework, found.parameters, found.clean
    ('Keras 1', 110104, True)
    """
    path = Path(path)
    check_folder(path)
    check_regular(path)
    found = _Found()
    try:
        with ExitStack() as stack:
            file = _opened(path, found, stack)
            _look(file, found)
    except (*BROKEN, zipfile.BadZipFile) as error:
        found.problems.append(reason_of(error))
    optimizer = [array for array in found.arrays if _is_optimizer(array)]
    common: dict[str, Any] = {
        "path": str(path),
        "size": path.stat().st_size,
        "optimizer_arrays": len(optimizer),
        "optimizer_bytes": sum(array.stored for array in optimizer),
        "training": found.training,
        "code": tuple(dict.fromkeys(found.code)),
        "problems": tuple(found.problems),
    }
    try:
        read = read_keras(path)
    except (OSError, ValueError) as error:
        rest = tuple(_groups([array for array in found.arrays if not _is_optimizer(array)]))
        parameters = sum(layer.parameters for layer in rest)
        return Audit(**common, layers=rest, parameters=parameters, refused=reason_of(error))
    layers = tuple(
        AuditLayer(
            "/".join((*layer.parents, layer.name)),
            layer.kind,
            {role: (array.shape, array.dtype) for role, array in layer.arrays.items()},
            sum(prod(array.shape) for array in layer.arrays.values()),
        )
        for layer in read.layers
    )
    return Audit(
        **common,
        framework=read.framework,
        container=read.container,
        version=read.version,
        backend=read.backend,
        layers=layers,
        parameters=sum(layer.parameters for layer in layers),
        unlisted=read.unlisted,
    )


def _opened(path: Path, found: _Found, stack: ExitStack) -> h5py.File:
    opened = stack.enter_context(open_file(path))
    if not keras_archive.is_archive(path):
        return stack.enter_context(h5py.File(opened_path(opened), "r"))
    archive = stack.enter_context(zipfile.ZipFile(opened))
    found.problems.extend(keras_archive.problems_of_members(path, archive))
    if found.problems:
        raise ValueError("its members are not examined")
    config = keras_archive.config_of(path, archive)
    found.code.extend(_code(config))
    found.training = config.get("compile_config")
    return stack.enter_context(keras_archive.opened_weights(path, archive))


def _look(file: h5py.File, found: _Found) -> None:
    for name in ("model_config", "training_config"):
        stored = text(attribute(file.attrs, name))
        if stored is None:
            continue
        try:
            if name == "model_config":
                found.code.extend(_code(parse(stored)))
            else:
                found.training = files.loads(stored)
        except ValueError as error:
            found.problems.append(f"{name}: {reason_of(error)}")
    tree: Tree = survey(file)
    found.arrays.extend(tree.root.arrays())
    found.problems.extend(f"{problem.place} is {problem.what}" for problem in tree.problems)
    found.problems.extend(f"{array.place} is {array.problem}" for array in found.arrays if array.problem)


def _code(config: Any, where: str = "the model", level: int = 0) -> Iterator[str]:
    """Yield descriptions of what a loader would import or run, anywhere in a config."""
    if level > 200:
        yield f"{where}: nested too deeply to examine"
        return
    if isinstance(config, list):
        for entry in config:
            yield from _code(entry, where, level + 1)
    if not isinstance(config, Mapping):
        return
    inner = config.get("config")
    named = inner.get("name") if isinstance(inner, Mapping) else None
    where = str(named) if isinstance(named, str) else where
    kind, module, registered = (config.get(word) for word in ("class_name", "module", "registered_name"))
    if kind in (*CODE, "__lambda__"):
        yield f"{where} is a {kind}, which contains or calls Python code"
    elif isinstance(kind, str) and isinstance(module, str) and module.split(".")[0] not in OWN_MODULES:
        yield f"{where} is {module}.{kind}, which is not Keras's own"
    elif isinstance(registered, str) and ">" in registered:
        yield f"{where} is the registered class {registered}, which is not Keras's own"
    for value in config.values():
        yield from _code(value, where, level + 1)


def _is_optimizer(array: Array) -> bool:
    top = array.place.split("/")[1]
    return top in OPTIMIZER or (top in NOT_WEIGHTS and "/vars/" in array.place)


def _groups(arrays: list[Array]) -> Iterator[AuditLayer]:
    """Group arrays by HDF5 group, for a file that cannot be read as layers."""
    groups: dict[str, list[Array]] = {}
    for array in arrays:
        groups.setdefault(array.place.rpartition("/")[0] or "/", []).append(array)
    for place, held in groups.items():
        shapes = {array.place.rpartition("/")[2]: (array.shape, array.dtype) for array in held}
        yield AuditLayer(place, "", shapes, sum(prod(array.shape) for array in held))

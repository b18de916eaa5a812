"""Read `.weights.h5` of Keras 3 and tf_keras, alone or in a `.keras` archive.

Layout: every object with weights is a group that has a subgroup `vars` of arrays `0`, `1`, ... A model holds its layers
under `layers` (in tf_keras `_layer_checkpoint_dependencies`) as `layers/conv2d`, `layers/conv2d_1`, ..., numbered
within each class in the order of `model.layers`. These are not the layers' names: Keras 3.15 stores the name as the
attribute `name` of `vars`, older versions do not store it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

from converters.readers.arrays import check_array, keras_array, with_kernel_orders
from converters.readers.hdf5_tree import Array, Group, Tree, attribute, text
from converters.readers.keras_file import KerasFile, KerasLayer
from converters.readers.keras_graph import Described, data_format, describe
from converters.readers.keras_words import group_name, kind_and_roles, kind_of_name, roles_by_count

CONTAINERS = ("layers", "_layer_checkpoint_dependencies")
NOT_WEIGHTS = frozenset(  # training state at the root
    ("optimizer", "_optimizer", "metrics", "_metrics", "_loss_tracker", "loss_tracker", "compiled_metrics",
     "_compile_metrics", "compiled_loss", "_compile_loss")
)  # fmt: skip
SEEDS = "seed_generator"


def is_weights(tree: Tree) -> bool:
    """Return whether a file has this module's layout."""
    return any(re.search(r"(^|/)vars/\d+$", array.place) for array in tree.root.arrays())


def read_weights(path: Path, file: h5py.File, tree: Tree, config: dict[str, Any] | None = None) -> KerasFile:
    """Read the description of an open `.weights.h5` file that has been surveyed.

    Args:
        path: path for messages and arrays.
        file: the open file.
        tree: the file's survey, without training state.
        config: the model's config, if any, which determines order, names and classes of the layers.
    """
    described = None if config is None else describe(config)
    groups = {name: group for name, group in tree.root.groups().items() if name not in NOT_WEIGHTS}
    top = Group("/", dict(groups))
    reader = _Reader(path, file)
    layers = tuple(reader.model(top, (), described) if described else reader.members(top, ()))
    if own := tuple(reader.own(top, "", None, ())):
        layers = (*layers, *own)
    named = all(reader.has_names) if described is None else True
    listed = {array.place for layer in layers for array in layer.arrays.values()} | reader.states
    unlisted = tuple(array.place for array in top.arrays() if array.place not in listed)
    return KerasFile(
        path,
        "weights" if config is None else "archive",
        named,
        with_kernel_orders(layers, modern=True),
        unlisted,
        config,
        data_format=None if described is None else data_format(described),
    )


class _Reader:
    """Reads the layers of one file."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path, self.file = path, file
        self.has_names: list[bool] = []  # whether each layer with arrays stores its name
        self.states: set[str] = set()  # paths of seeds and counters

    def model(self, group: Group, parents: tuple[str, ...], described: Described) -> Iterator[KerasLayer]:
        """Yield the layers of a model in config order."""
        container = _container(group)
        left = dict(container.groups()) if container else {}
        counts: dict[str, int] = {}
        for layer in described.layers or ():
            if layer.kind.startswith("ops."):  # an operation, which the archive does not list
                continue
            key = group_name(layer.class_name)
            key = "functional" if key == "model" else key
            number = counts.get(key, 0)
            counts[key] = number + 1
            found = left.pop(f"{key}_{number}" if number else key, None)
            if found is not None:
                self._check_name(found, layer.name)
            if layer.layers is not None:
                yield from self.model(found or Group(""), (*parents, layer.name), layer)
            elif found is None:
                yield KerasLayer(layer.name, layer.kind, {}, layer.config, parents)
            else:
                yield from self.layer(found, layer.name, layer, parents)
        for name in sorted(left, key=_natural):
            yield from self.member(left[name], name, parents)

    def _check_name(self, group: Group, name: str) -> None:
        told = self._name(group)
        if told is not None and told != name:
            raise ValueError(
                f"{self.path}: {group.place} is named {told!r}, but {name!r} in the config; one of them was altered,"
                " save the model again"
            )

    def members(self, group: Group, parents: tuple[str, ...]) -> Iterator[KerasLayer]:
        """Yield the layers in a group by class and number, for a file without config."""
        for name in sorted(group.groups(), key=_natural):
            if name in CONTAINERS:
                yield from self.members(group.groups()[name], parents)
            elif name != "vars":
                yield from self.member(group.groups()[name], name, parents)

    def member(self, group: Group, key: str, parents: tuple[str, ...]) -> Iterator[KerasLayer]:
        """Yield a layer or the layers of a nested model, for a file without config."""
        name = self._name(group)
        inner = [other for other in group.groups() if other != "vars" and not other.startswith(SEEDS)]
        if inner:
            yield from self.own(group, name or key, None, parents)
            yield from self.members(group, (*parents, name or key))
        elif key.startswith(SEEDS):
            self._skip(group)
        else:
            yield from self.layer(group, name or key, None, parents)

    def layer(
        self, group: Group, name: str, described: Described | None, parents: tuple[str, ...]
    ) -> Iterator[KerasLayer]:
        """Yield a layer, then its sublayers, such as the cell of a recurrent layer."""
        for key, inner in group.groups().items():
            if key.startswith(SEEDS):
                self._skip(inner)
        found = list(self.own(group, name, described, parents))
        yield from found or [
            KerasLayer(
                name,
                described.kind if described else kind_of_name(_key(group)),
                {},
                described.config if described else None,
                parents,
            )
        ]
        for key, inner in group.groups().items():
            if key != "vars" and not key.startswith(SEEDS):
                yield from self.member(inner, key, (*parents, name))

    def own(
        self, group: Group, name: str, described: Described | None, parents: tuple[str, ...]
    ) -> Iterator[KerasLayer]:
        """Yield the layer of a group's own arrays, if it has any."""
        held = group.members.get("vars")
        if not isinstance(held, Group):
            return
        counters = [
            array
            for array in held.members.values()
            if isinstance(array, Array) and array.shape == () and array.dtype.strip("<>|").startswith(("i", "u"))
        ]
        self.states |= {array.place for array in counters}
        members = [key for key, array in held.members.items() if array not in counters]
        if not members:
            return
        arrays = [check_array(self.path, held, key) for key in sorted(members, key=_natural)]
        shapes = [array.shape for array in arrays]
        kind = described.kind if described else kind_of_name(_key(group)) or kind_of_name(name)
        if kind:
            roles = roles_by_count(kind, shapes, described.config if described else None)
        else:
            kind, roles = kind_and_roles(shapes)
        self.has_names.append(self._name(group) is not None)
        found = {role: keras_array(self.path, array) for role, array in zip(roles, arrays, strict=True)}
        yield KerasLayer(name, kind, found, described.config if described else None, parents)

    def _name(self, group: Group) -> str | None:
        held = group.members.get("vars")
        return text(attribute(self.file[held.place].attrs, "name")) if isinstance(held, Group) else None

    def _skip(self, group: Group) -> None:
        self.states |= {array.place for array in group.arrays()}


def _container(group: Group) -> Group | None:
    """Return the group of a model's layers; if both spellings exist, the one with more arrays."""
    found = [member for name in CONTAINERS if (member := group.groups().get(name))]
    return max(found, key=lambda member: len(list(member.arrays())), default=None)


def _key(group: Group) -> str:
    return group.place.rpartition("/")[2]


def _natural(name: str) -> list[tuple[str, int]]:
    """Return a sort key that puts conv2d before conv2d_2, and this before conv2d_10."""
    return [(word, int(number or -1)) for word, number in re.findall(r"(\D*)(\d*)", name)]

"""Read `.h5` files of Keras 0.x to 3, with weights only or a whole model.

Layouts, as seen in files written by the real frameworks:

- Keras 0.x: the root has the attribute `nb_layers`; groups `layer_0`, `layer_1`, ... have `nb_params` and hold
  `param_0` (kernel) and `param_1` (bias). Layers have no names; those without weights are counted too.
- Keras 1 to 3: the root, or `model_weights` in a whole model, lists `layer_names`; each group lists `weight_names` and
  holds a dataset for each. A nested model has a single group for all its weights, the trainable ones first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py

from converters.readers.arrays import check_array, keras_array, with_kernel_orders
from converters.readers.hdf5_tree import Array, Group, Tree, attribute, text, texts
from converters.readers.keras_file import KerasArray, KerasFile, KerasLayer
from converters.readers.keras_graph import Described, data_format, describe, each, parse
from converters.readers.keras_words import kind_and_roles, kind_of_arrays, kind_of_name, owner_and_role

MOST_NAMES = 100_000
OPTIMIZER = "optimizer_weights"
TOP_LEVEL = "top_level_model_weights"


def is_legacy(file: h5py.File, tree: Tree) -> bool:
    """Return whether a file has one of this module's layouts."""
    return "nb_layers" in file.attrs or _root(file, tree) is not None


def read_legacy(path: Path, file: h5py.File, tree: Tree) -> KerasFile:
    """Read the description of an open `.h5` file that has been surveyed."""
    if "nb_layers" in file.attrs:
        layers = with_kernel_orders(tuple(_numbered(path, file, tree.root)), modern=False)
        return KerasFile(path, "nb_layers", False, layers, _unlisted(tree, layers))
    root = _root(file, tree)
    if root is None:
        raise ValueError(f"{path} holds no Keras weights")
    opened = file[root.place]
    backend, version = (text(attribute(place.attrs, word)) for place, word in _says(file, opened))
    config_text = text(attribute(file.attrs, "model_config"))
    config = None if config_text is None else parse(config_text)
    described = None if config is None else describe(config)
    layers = tuple(_listed(path, file, root, described))
    modern = backend is not None or (version is not None and version.split(".")[0] not in ("0", "1"))
    modern = modern or any("/kernel" in array.place for layer in layers for array in layer.arrays.values())
    return KerasFile(
        path,
        "legacy",
        True,
        with_kernel_orders(layers, modern=modern),
        _unlisted(tree, layers),
        config,
        version,
        backend,
        None if described is None else data_format(described),
    )


def _root(file: h5py.File, tree: Tree) -> Group | None:
    """Return the group that lists the layers, or None."""
    weights = tree.root.groups().get("model_weights")
    for group in (tree.root, *([] if weights is None else [weights])):
        attributes = file[group.place].attrs
        if "layer_names" in attributes or "layer_names0" in attributes:
            return group
    return None


def _says(file: h5py.File, weights: h5py.Group) -> Iterator[tuple[h5py.Group, str]]:
    """Yield where backend and version are stored: at the root, in whole models of some versions with the weights."""
    for word in ("backend", "keras_version"):
        yield (file if word in file.attrs else weights), word


def _numbered(path: Path, file: h5py.File, root: Group) -> Iterator[KerasLayer]:
    for name in (f"layer_{number}" for number in range(_count(path, file.attrs, "nb_layers"))):
        group = root.members.get(name)
        if not isinstance(group, Group):
            raise ValueError(f"{path} has no {name}, but says that there is one; download the file again")
        count = _count(path, file[group.place].attrs, "nb_params")
        if count != len(group.members):
            raise ValueError(f"{path}: {name} says {count} arrays and holds {len(group.members)}; download it again")
        arrays = [check_array(path, group, f"param_{number}") for number in range(count)]
        yield _counted(path, name, arrays)


def _counted(path: Path, name: str, arrays: Sequence[Array]) -> KerasLayer:
    """Return a layer whose arrays have numbers instead of names."""
    kind, roles = kind_and_roles([array.shape for array in arrays])
    return KerasLayer(name, kind, {role: keras_array(path, array) for role, array in zip(roles, arrays, strict=True)})


def _listed(path: Path, file: h5py.File, root: Group, described: Described | None) -> Iterator[KerasLayer]:
    names = texts(file[root.place].attrs, "layer_names") or []
    if len(names) > MOST_NAMES:
        raise ValueError(f"{path} lists {len(names)} layers; too many")
    if len(set(names)) < len(names):
        raise ValueError(f"{path} lists a layer twice; download the file again")
    _refuse_missing(path, file, root, names)
    inner = {layer.name: layer for layer in (described.layers or ())} if described else {}
    order = _configured(names, described)
    for name in [*order, *([TOP_LEVEL] if TOP_LEVEL in root.members and TOP_LEVEL not in names else [])]:
        group = root.find(name)
        if name not in names and group is None:  # a layer without weights, only in the config
            yield KerasLayer(name, inner[name].kind, {}, inner[name].config)
            continue
        if not isinstance(group, Group):
            continue  # reported by _refuse_missing
        weights = _weights(path, file, group)
        if name == TOP_LEVEL and not weights:
            continue
        yield from _layers_of(path, name, weights, inner.get(name))


def _refuse_missing(path: Path, file: h5py.File, root: Group, names: list[str]) -> None:
    """Raise one ValueError that names all layers and arrays that are listed but missing."""
    missing = []
    for name in names:
        group = root.find(name)
        if isinstance(group, Group):
            listed = texts(file[group.place].attrs, "weight_names") or []
            missing += [f"{name}/{weight}" for weight in listed if group.find(weight) is None]
        else:
            missing.append(name)
    if missing:
        shown = ", ".join(missing[:20]) + (f", ... ({len(missing)})" if len(missing) > 20 else "")
        raise ValueError(f"{path} lists layers or arrays that are missing: {shown}; download the file again")


def _configured(names: list[str], described: Described | None) -> list[str]:
    """Return the names in file order, with layers that only the config has (inputs) inserted in config order."""
    if described is None:
        return names
    order, left = [], list(names)
    for layer in described.layers or ():
        if layer.name in left:
            while left[0] != layer.name:  # the file's order takes precedence
                order.append(left.pop(0))
            order.append(left.pop(0))
        elif layer.name not in order:
            order.append(layer.name)
    return order + left


def _weights(path: Path, file: h5py.File, group: Group) -> list[tuple[str, Array]]:
    """Return the weights that a group lists, without seeds and counters."""
    names = texts(file[group.place].attrs, "weight_names")
    if names is None:
        raise ValueError(f"{path}: {group.place} does not list its weights; download the file again")
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: {group.place} lists an array twice; download the file again")
    if len(names) > MOST_NAMES:
        raise ValueError(f"{path}: {group.place} lists {len(names)} arrays; too many")
    kept = [name for name in names if not _is_state(group, name)]
    return [(name, check_array(path, group, name)) for name in kept]


def _is_state(group: Group, name: str) -> bool:
    """Return whether a weight is a random seed (dropout) or a sample counter (Normalization)."""
    found = group.find(name)
    if "seed_generator" in name:
        return True
    return isinstance(found, Array) and found.shape == () and found.dtype.strip("<>|").startswith(("i", "u"))


def _layers_of(
    path: Path, name: str, weights: list[tuple[str, Array]], described: Described | None
) -> Iterator[KerasLayer]:
    """Yield the layer of a group, or the layers if the group is a nested model."""
    if weights and all(weight.startswith("param_") for weight, _ in weights):
        yield _counted(path, name, [array for _, array in weights])
        return
    owned: dict[str, dict[str, KerasArray]] = {}
    for weight, array in weights:
        owner, role = owner_and_role(weight)
        arrays = owned.setdefault(owner, {})
        arrays[weight if role in arrays else role] = keras_array(path, array)
    if described is not None and described.layers is not None:
        yield from _nested_as_configured(name, owned, described)
    elif described is not None or _is_one_layer(name, owned):
        arrays = {}
        for owner, held in owned.items():
            for role, found in held.items():
                arrays[role if len(owned) == 1 or owner == "" else f"{owner.rpartition('/')[2]}/{role}"] = found
        yield _layer(name, arrays, described, ())
    else:
        for owner, arrays in owned.items():
            *above, own = _below(name, owner) or (name,)
            yield _layer(own, arrays, None, (name, *above))


def _below(name: str, owner: str) -> list[str]:
    """Return the path below a model's group: ("vgg16", "sequential/vgg16/conv1") -> ["conv1"]."""
    parts = [part for part in owner.split("/") if part]
    return parts[parts.index(name) + 1 :] if name in parts[:-1] else parts


def _is_one_layer(name: str, owned: Iterable[str]) -> bool:
    owners = [owner for owner in owned if owner]
    if len(owners) > 1:
        return False
    return not owners or name not in owners[0].split("/")[:-1] or owners[0].split("/")[-1] == name


def _nested_as_configured(
    name: str, owned: dict[str, dict[str, KerasArray]], described: Described
) -> Iterator[KerasLayer]:
    """Yield all layers of a nested model in config order, with or without weights."""
    left = dict(owned)
    names = {layer.name for layer, _ in each(described)}
    for layer, parents in each(described, (name,)):
        candidates = [owner for owner in left if owner.rpartition("/")[2] == layer.name]
        if not candidates:  # TensorFlow appends a number to the scope of a model that was built twice
            ends = {owner: owner.rpartition("/")[2] for owner in left}
            candidates = [
                owner for owner, end in ends.items() if end not in names and re.sub(r"_\d+$", "", end) == layer.name
            ]
        if len(candidates) > 1:  # two nested models have a layer of this name
            candidates = [owner for owner in candidates if parents[-1] in owner.split("/")[:-1]] or candidates
        arrays = left.pop(candidates[0]) if candidates else {}
        inside = [owner for owner in left if layer.name in owner.split("/")[:-1]]  # of a wrapper or an attention layer
        if not candidates:
            for owner in inside:
                arrays |= {f"{owner.rpartition('/')[2]}/{role}": array for role, array in left.pop(owner).items()}
        yield _layer(layer.name, arrays, layer, parents)
    for owner, arrays in left.items():
        yield _layer(owner.rpartition("/")[2] or name, arrays, None, (name,))


def _layer(
    name: str, arrays: dict[str, KerasArray], described: Described | None, parents: tuple[str, ...]
) -> KerasLayer:
    kind = described.kind if described else kind_of_name(name)
    if described is None and arrays and kind in ("", "Functional", "Sequential"):
        kind = kind_of_arrays({role: array.shape for role, array in arrays.items()})
    if kind.startswith("DepthwiseConv"):  # Keras 3 names it "kernel"
        arrays = {"depthwise_kernel" if role == "kernel" else role: array for role, array in arrays.items()}
    return KerasLayer(name, kind, arrays, described.config if described else None, parents)


def _unlisted(tree: Tree, layers: tuple[KerasLayer, ...]) -> tuple[str, ...]:
    listed = {array.place for layer in layers for array in layer.arrays.values()}
    states = ("seed_generator", "/count")
    return tuple(
        array.place
        for array in tree.root.arrays()
        if array.place not in listed and not any(state in array.place for state in states)
    )


def _count(path: Path, attributes: Any, name: str) -> int:
    value = attribute(attributes, name)
    try:
        count = int(value)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(
            f"{path} is broken: its {name} is not a number of layers or arrays; download it again"
        ) from None
    if not 0 <= count <= MOST_NAMES:
        raise ValueError(f"{path} is broken: {count} layers or arrays, not 0 to {MOST_NAMES}; download it again")
    return count

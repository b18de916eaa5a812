"""Compare a config that was derived for a weights file, or given beside it, with what the file lists.

Keras lists the layers of a model in an order that its graph determines. So the list that Keras would write for the
config is computed here, from Keras's definition, and compared with the file's. Nothing of the derivation is used.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from converters.readers.keras_file import KerasFile, KerasLayer
from converters.readers.keras_words import IDENTITIES, kind_of_class, kind_of_name, pair_of

Path = tuple[str, ...]
MODELS = ("Functional", "Sequential")
SAME = {  # classes of one effect on the list, whose names do not tell them apart
    "SplitTensor": "Lambda", "CrossChannelNormalization": "Lambda", "ReLU": "Activation", "Softmax": "Activation",
    "Merge": "Concatenate", "Add": "Concatenate",
}  # fmt: skip
FRONT = ("Rescaling", "Normalization", "Resizing", "CenterCrop", "Lambda", "TFOpLambda", "Sequential", "Functional", "")
BARE = ("InputLayer",)  # layers that some files list and others do not


class Listed:
    """A layer that Keras would list: its name, class and settings, and the layers of a nested model."""

    def __init__(self, name: str, kind: str, settings: Mapping[str, Any], inner: list[Listed] | None) -> None:
        self.name, self.kind, self.settings, self.inner = name, kind, settings, inner

    def each(self) -> Iterator[Listed]:
        """Yield the layer or, for a nested model, its layers at all levels."""
        if self.inner is None:
            yield self
        else:
            for layer in self.inner:
                yield from layer.each()


def list_of(config: Mapping[str, Any]) -> list[Listed]:
    """Return the layers of a model's config in the order of `model.layers`, without inputs and functions.

    Source: `map_graph` in keras/src/ops/function.py: by depth from the output, the deepest first; layers of one depth
    in the order in which a walk from the output meets them.
    """
    held = config["config"]
    if kind_of_class(str(config["class_name"])) == "Sequential":
        entries = held if isinstance(held, list) else held["layers"]
        return [listed for entry in entries if (listed := _listed(entry)) is not None]
    entries = {_name(entry): entry for entry in held["layers"]}
    reads = {name: list(_sources(entry.get("inbound_nodes") or [])) for name, entry in entries.items()}
    met: dict[str, None] = {}
    waiting = [name for name in _ends(held["output_layers"])][::-1]
    while waiting:
        name = waiting.pop()
        if name not in met:
            met[name] = None
            waiting.extend(reads[name][::-1])
    depth = dict.fromkeys(met, 0)
    for _ in met:  # each pass settles at least one more level
        before = dict(depth)
        for name in met:
            for source in reads[name]:
                depth[source] = max(depth[source], depth[name] + 1)
        if depth == before:
            break
    else:
        raise ValueError("the layers of its model config form a cycle")
    order = sorted(met, key=lambda name: -depth[name])  # which keeps the order of the walk
    return [listed for name in order if (listed := _listed(entries[name])) is not None]


def _name(entry: Mapping[str, Any]) -> str:
    own = entry["config"]
    return str(entry.get("name") or (own.get("name") if isinstance(own, Mapping) else "") or "")


def _ends(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [name for each in value.values() for name in _ends(each)]
    return [value[0]] if value and isinstance(value[0], str) else [name for each in value for name in _ends(each)]


def _sources(value: Any) -> Iterator[str]:
    """Yield the names of the layers that a call reads, in the words of Keras 1, 2 or 3."""
    if isinstance(value, Mapping):
        if value.get("class_name") == "__keras_tensor__":
            yield str(value["config"]["keras_history"][0])
        else:
            for each in value.values():
                yield from _sources(each)
    elif isinstance(value, list | tuple):
        if len(value) >= 3 and isinstance(value[0], str) and isinstance(value[1], int) and isinstance(value[2], int):
            yield value[0]
        else:
            for each in value:
                yield from _sources(each)


def _listed(entry: Mapping[str, Any]) -> Listed | None:
    """Return a layer as listed; None for inputs and functions, which are not."""
    kind = kind_of_class(str(entry["class_name"]))
    if kind in BARE or "ops." in str(entry.get("module", "")):
        return None
    if kind in MODELS:
        return Listed(_name(entry), kind, {}, list_of(entry))
    return Listed(_name(entry), kind, entry["config"], None)


def check_list(file: KerasFile, config: Mapping[str, Any], *, names: bool = True) -> None:
    """Raise ValueError if a config's layers are not those that the file lists, in its order and with its arrays.

    Args:
        file: the file as read, without a config.
        config: the config, of any version of Keras.
        names: whether the layers bear the file's names.
    """
    wanted = list_of(config)
    problems = list(_differences(file, wanted, names=names))
    if problems:
        raise ValueError(
            f"{file.path}: the model config does not give the list of layers in the file: {'; '.join(problems[:6])}"
        )


def _differences(file: KerasFile, wanted: Sequence[Listed], *, names: bool) -> Iterator[str]:
    levels: dict[Path, list[KerasLayer]] = defaultdict(list)
    for layer in file.layers:
        if layer.kind not in BARE:
            levels[layer.parents].append(layer)
    if file.container == "weights":
        yield from _per_class(levels, wanted, (), names=names)
    else:
        yield from _in_order(file, wanted, names=names)


def _in_order(file: KerasFile, wanted: Sequence[Listed], *, names: bool) -> Iterator[str]:
    """Compare the order of the whole model, and the arrays of nested ones."""
    theirs: list[tuple[str, KerasLayer | None, list[KerasLayer]]] = []
    for layer in file.layers:
        if layer.kind in BARE:
            continue
        if not layer.parents:
            theirs.append((layer.name, layer, []))
        elif theirs and theirs[-1][1] is None and theirs[-1][0] == layer.parents[0]:
            theirs[-1][2].append(layer)
        else:
            theirs.append((layer.parents[0], None, [layer]))
    ours = [one for one in wanted if one.inner is None or list(one.each())]
    first = next((place for place, (_, layer, inner) in enumerate(theirs) if inner or (layer and layer.arrays)), 0)
    if len(ours) != len(theirs):
        listed, made = [name for name, _, _ in theirs], [one.name for one in ours]
        if names:
            yield from (f"{name} is listed, but not in the config" for name in listed if name not in made)
            yield from (f"{name} is not listed" for name in made if name not in listed)
        yield f"it has {len(ours)} layers, the file {len(theirs)}"
        return
    for place, (one, (name, held, inner)) in enumerate(zip(ours, theirs, strict=True)):
        if names and file.named and one.name != name:
            yield f"{one.name} stands where the file lists {name}"
        elif held is None:
            yield from _arrays_alone(one, inner, names=names)
        elif not (one.kind == "Identity" and place < first and held.kind in (*FRONT, *IDENTITIES)):
            yield from _of_layer(one, held)


def _arrays_alone(model: Listed, inner: Sequence[KerasLayer], *, names: bool) -> Iterator[str]:
    """Compare a nested model of which the file lists only arrays, those of frozen layers last."""
    if model.inner is None:
        yield f"{model.name} is a {model.kind}, but the file lists the layers of a model"
        return
    ours = [one for one in model.each() if _roles(one) is not None]
    if names:
        held = {layer.name: layer for layer in inner}
        made = {one.name: one for one in ours}
        yield from (f"{model.name}/{name} is listed, but not in the config" for name in held if name not in made)
        yield from (f"{model.name}/{name} is not listed" for name in made if name not in held)
        pairs = [(made[name], held[name]) for name in made if name in held]
    else:
        pairs = list(zip(ours, inner, strict=False))
        if len(ours) != len(inner):
            yield f"{model.name} has {len(ours)} layers with weights, the file lists {len(inner)}"
    for one, layer in pairs:
        yield from _of_layer(one, layer)


def _per_class(
    levels: Mapping[Path, Sequence[KerasLayer]], wanted: Sequence[Listed], path: Path, *, names: bool
) -> Iterator[str]:
    """Compare the layers of each class, which the file numbers in the order of `model.layers`."""
    ours: dict[str, list[Listed]] = defaultdict(list)
    theirs: dict[str, list[KerasLayer]] = defaultdict(list)
    for one in wanted:
        if one.inner is None:
            ours[one.kind].append(one)
        elif names:
            yield from _per_class(levels, one.inner, (*path, one.name), names=names)
        else:
            deeper = [other for other in levels if len(other) == len(path) + 1 and other[: len(path)] == path]
            yield from _per_class(levels, one.inner, deeper[0] if deeper else (*path, one.name), names=names)
    for layer in levels.get(path, []):
        theirs[layer.kind or next((kind for kind in ours if _roles_fit(kind, layer)), "")].append(layer)
    for kind in dict.fromkeys((*ours, *theirs)):
        mine, found = ours.get(kind, []), theirs.get(kind, [])
        if kind == "Identity" or (kind in FRONT and len(ours.get("Identity", [])) >= len(found) - len(mine) > 0):
            continue  # the preprocessing that the user names, or an Identity for it
        if len(mine) != len(found):
            yield f"{'/'.join((*path, ''))} has {len(mine)} layers {kind}, the file {len(found)}".lstrip("/ ")
            continue
        for one, layer in zip(mine, found, strict=True):
            if names and one.name != layer.name:
                yield f"{one.name} stands where the file lists {layer.name}"
            else:
                yield from _of_layer(one, layer)


def _roles_fit(kind: str, layer: KerasLayer) -> bool:
    return kind == "DepthwiseConv2D" and len(next(iter(layer.arrays.values())).shape) == 4


def _of_layer(one: Listed, layer: KerasLayer) -> Iterator[str]:
    """Compare class and arrays of one layer."""
    told = kind_of_name(layer.name)
    if told and SAME.get(told, told) != SAME.get(one.kind, one.kind):
        yield f"{layer.name} is listed as {told}, but is a {one.kind}"
        return
    roles = _roles(one)
    if (roles is not None) != bool(layer.arrays):
        yield f"{layer.name} has {len(layer.arrays)} arrays, which no {one.kind} with its settings has"
    elif roles is not None:
        yield from _shapes(one, layer, roles)


def _roles(one: Listed) -> list[str] | None:
    """Return the roles of the arrays that a layer with these settings has; None for none, [] where they may be any."""
    settings = one.settings
    bias = ["bias"] if settings.get("use_bias", settings.get("bias", True)) else []
    if one.kind in ("Conv2D", "Dense", "Conv2DTranspose"):
        return ["kernel", *bias]
    if one.kind == "DepthwiseConv2D":
        return ["depthwise_kernel", *bias]
    if one.kind == "SeparableConv2D":
        return ["depthwise_kernel", "pointwise_kernel", *bias]
    if one.kind == "BatchNormalization":
        first = [role for role, flag in (("gamma", "scale"), ("beta", "center")) if settings.get(flag, True)]
        return [*first, "moving_mean", "moving_variance"]
    if one.kind == "Normalization":
        return None if settings.get("mean") is not None else []
    return [] if one.kind in ("LayerNormalization", "GroupNormalization", "PReLU", "LayerScale") else None


def _shapes(one: Listed, layer: KerasLayer, roles: Sequence[str]) -> Iterator[str]:
    """Compare the shapes of arrays with each other and with the settings."""
    arrays = list(layer.arrays.values())
    if roles and len(arrays) != len(roles):
        yield f"{layer.name} has {len(arrays)} arrays, but a {one.kind} with its settings {len(roles)}"
        return
    shapes = {role: array.shape for role, array in zip(roles, arrays, strict=False)}
    if {"kernel", "bias", "gamma", "beta"} & set(layer.arrays):
        known = {"depthwise_kernel": "kernel"} if "depthwise_kernel" not in layer.arrays else {}
        shapes = {role: layer.arrays[known.get(role, role)].shape for role in roles
                  if known.get(role, role) in layer.arrays} or shapes  # fmt: skip
    if one.kind == "BatchNormalization":
        if len(set(array.shape for array in arrays)) != 1 or len(arrays[0].shape) != 1:
            yield f"{layer.name} has arrays of {', '.join(str(array.shape) for array in arrays)}"
        return
    kernel = shapes.get("kernel") or shapes.get("depthwise_kernel")
    if kernel is None:
        return
    if len(kernel) != (2 if one.kind == "Dense" else 4):
        yield f"{layer.name} has a kernel of {kernel}, which is no {one.kind}'s"
        return
    if one.kind != "Dense" and "kernel_size" in one.settings:
        size = pair_of(one.settings["kernel_size"])
        if size not in ((kernel[2:], kernel[:2]) if layer.kernel_order is None else
                        (kernel[2:] if layer.kernel_order == "oihw" else kernel[:2],)):  # fmt: skip
            yield f"{layer.name} has a kernel of {kernel}, but is of {size[0]}x{size[1]} cells"
    said = one.settings.get("units", one.settings.get("filters"))
    outputs = kernel[0] if layer.kernel_order == "oihw" else kernel[-1]
    if one.kind in ("Conv2D", "Dense") and said not in (None, outputs):
        yield f"{layer.name} has {outputs} outputs, but the config says {said}"
    if "bias" in shapes and one.kind in ("Conv2D", "Dense") and shapes["bias"] != (outputs,):
        yield f"{layer.name} has a kernel of {kernel} and a bias of {shapes['bias']}"

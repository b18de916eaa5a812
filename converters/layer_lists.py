"""What a file without config lists, and how it agrees with the layers of a known architecture.

`.h5` files list layers in the order of `model.layers`; of a nested model they list only the arrays. `.weights.h5` files
number the layers of each class in that order. Files of Keras 0.x list layers without names.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import chain, takewhile

from converters.architectures import (
    Architecture,
    Config,
    Entry,
    Pair,
    Shape,
    architectures,
    entries_of,
    is_automatic,
    resized,
)
from converters.readers.keras_file import KerasArray, KerasFile, KerasLayer, KernelOrder
from converters.readers.keras_words import HOLDS, IDENTITIES, kind_of_name, pair_of

Path = tuple[str, ...]  # names of the enclosing models
ALIKE = {  # classes that stand for others in some releases
    "SplitTensor": "Lambda", "CrossChannelNormalization": "Lambda", "ReLU": "Activation", "Softmax": "Activation",
    "AlphaDropout": "Dropout", "StochasticDepth": "Dropout",
}  # fmt: skip
# Layers that are preprocessing if before the first convolution; "" are functions and layers of unrecognised names.
PREPARES = ("Rescaling", "Normalization", "Resizing", "CenterCrop")
PREPARES_IN_PLACE = (*PREPARES, "Lambda", "TFOpLambda", "Sequential", "Functional", "")
PART = ["Conv2D", "LayerNormalization"]  # the layers of ConvNeXt's stem, and of its downsampling blocks
MOST_NAMED = 20
LONGEST = 1000  # characters of an array's name that are examined
LEAST_LIKENESS = 0.5  # share of common layers above which an incomplete file counts as a network


def number(name: str) -> int:
    """Return the number at the end of an automatic name; 0 for the first of a class, which has none.

    >>> number("conv2d"), number("conv2d_12")
    (0, 12)
    """
    digits = re.search(r"_(\d+)$", name)
    return int(digits[1]) if digits else 0


@dataclass(frozen=True)
class Joined(KerasLayer):
    """A model within a network, such as ConvNeXt's stem, as one layer with all its arrays."""

    inner: tuple[KerasLayer, ...] = ()

    def within(self, entry: Entry) -> dict[str, KerasLayer]:
        """Return an architecture's inner layer -> the file's, of the same name or, where none is, of the same class."""
        names = {layer.name: layer for layer in self.inner}
        kinds = {class_of(layer): layer for layer in self.inner}
        ours = entries_of(entry.settings)
        found = {one.name: names.get(one.name) or kinds.get(one.kind) for one in ours if one.weighted}
        return {name: layer for name, layer in found.items() if layer is not None}


def joined(file: KerasFile) -> KerasFile:
    """Return the file with each model that is part of a network of Keras's own as one layer."""
    groups: dict[Path, list[KerasLayer]] = defaultdict(list)
    for layer in file.layers:
        if layer.parents and (layer.parents[-1] in _parts() or not file.named):
            groups[layer.parents].append(layer)
    if not file.named:  # where only the classes tell
        groups = {path: inner for path, inner in groups.items() if sorted(map(class_of, inner)) == PART}
    layers: list[KerasLayer] = []
    for layer in file.layers:
        inner = groups.get(layer.parents)
        if inner is None:
            layers.append(layer)
        elif layer is inner[0]:
            *path, name = layer.parents
            arrays = {f"{one.name}/{role}": array for one in inner for role, array in one.arrays.items()}
            layers.append(Joined(name, "Sequential", arrays, None, tuple(path), layer.kernel_order, tuple(inner)))
    return replace(file, layers=tuple(layers)) if groups else file


@lru_cache(maxsize=1)
def _parts() -> frozenset[str]:
    return frozenset(name for one in architectures() for name, kind, _ in one.layers if kind == "Sequential")


@dataclass
class Agreement:
    """How a file's list agrees with an architecture.

    Attributes:
        architecture: the architecture.
        entries: its layers.
        path: names of the nested models that hold it, () if the whole model does.
        bound: its layer -> the file's layer, for all that the file lists.
        front: layers without arrays that the file lists before it.
        extra: its layer -> listed layers behind it that are the identity.
        top: names of its top's layers that the file lists.
        whole_top: whether these are all of them.
        before: layers that the file lists before it and that do more than prepare pictures.
        rest: the file's layers after it, in listed order, and those of other models.
        problems: what is missing, unknown, or of another kind.
        likeness: share of the common layers with weights, 0 to 1.
    """

    architecture: Architecture
    entries: tuple[Entry, ...]
    path: Path
    bound: dict[str, KerasLayer] = field(default_factory=dict)
    front: list[KerasLayer] = field(default_factory=list)
    extra: dict[str, list[KerasLayer]] = field(default_factory=lambda: defaultdict(list))
    top: tuple[str, ...] = ()
    whole_top: bool = False
    before: list[KerasLayer] = field(default_factory=list)
    rest: list[KerasLayer] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    likeness: float = 0.0

    @cached_property
    def base(self) -> list[Entry]:
        """The layers without the top."""
        return [entry for entry in self.entries if entry.name not in self.architecture.top]

    @cached_property
    def present(self) -> list[Entry]:
        """The layers without those of the top that the file does not list."""
        absent = set(self.architecture.top) - set(self.top)
        return [entry for entry in self.entries if entry.name not in absent]

    @cached_property
    def outputs(self) -> dict[str, int | None]:
        """Numbers of channels or values that the layers with weights give, also those of inner models."""
        layers = dict(self.bound)
        for entry in self.entries:
            if isinstance(layer := layers.get(entry.name), Joined):
                layers |= layer.within(entry)
        return {name: outputs_of(layer) for name, layer in layers.items()}

    def sized(self, size: Pair) -> tuple[Config, dict[str, Shape]]:
        """Return the architecture's config for an input size, (height, width), and the shape of each layer's output."""
        return resized(self.architecture.config, size, self.architecture.padded, self.outputs)

    @property
    def rank(self) -> tuple[int, int, int, int]:
        """The better it agrees, the larger."""
        exact = sum(name == layer.name for name, layer in self.bound.items())
        return self.whole_top, -sum(bool(layer.arrays) for layer in self.rest), exact, -len(self.front)


def ordered(file: KerasFile) -> bool:
    """Return whether a file keeps the order of layers."""
    return file.container != "weights"


@lru_cache(maxsize=1)
def _known() -> tuple[tuple[Architecture, tuple[frozenset[str], ...]], ...]:
    """Return all architectures, each with the keys of its layers with weights: with names and without, each without its
    top and with it."""
    found = []
    for architecture in architectures():
        layers = [(name, kind) for name, kind, weighted in architecture.layers if weighted]
        base = [one for one in layers if one[0] not in architecture.top]
        found.append((architecture, tuple(frozenset(_keys(named, part)) for named in (True, False)
                                          for part in (base, layers))))  # fmt: skip
    return tuple(found)


def candidates(file: KerasFile) -> list[Agreement]:
    """Return how a file's list agrees with each architecture that it resembles."""
    groups: dict[Path, list[KerasLayer]] = defaultdict(list)
    for layer in file.layers:
        groups[layer.parents].append(layer)
    if not groups:
        return []
    path = max(groups, key=lambda path: sum(_holds_map(layer) for layer in groups[path]))
    members = [layer for layer in groups[path] if layer.kind != "InputLayer"]
    theirs = _keys(file.named, [(layer.name, class_of(layer)) for layer in members if layer.arrays])
    found = []
    for architecture, keys in _known():
        likeness = max(
            len(ours & theirs) / max(1, len(ours | theirs)) for ours in (keys[:2] if file.named else keys[2:])
        )
        if likeness >= LEAST_LIKENESS:
            found.append(_agree(file, architecture, path, members, likeness))
    return found


def _agree(
    file: KerasFile, architecture: Architecture, path: Path, members: Sequence[KerasLayer], likeness: float
) -> Agreement:
    """Compare the list of a model in the file, the one at `path`, with an architecture's."""
    found = Agreement(architecture, entries_of(architecture.config["config"]), path, likeness=likeness)
    if not ordered(file):
        _by_class(file, found, members)
    elif path:
        _by_name(found, members)
    else:
        _in_sequence(file, found, members)
    entries = {entry.name: entry for entry in found.entries}
    for name, layer in found.bound.items():
        entry = entries[name]
        if layer.arrays and (problem := _misfit(entry, layer)):
            found.problems.append(problem)
    _outside(file, found)
    used = [*found.bound.values(), *found.front, *found.before, *chain.from_iterable(found.extra.values())]
    found.rest = _without([layer for layer in file.layers if layer.kind != "InputLayer"], used)
    return found


def _without(layers: Iterable[KerasLayer], used: Iterable[KerasLayer]) -> list[KerasLayer]:
    known = set(map(id, used))
    return [layer for layer in layers if id(layer) not in known]


def _outside(file: KerasFile, found: Agreement) -> None:
    """Sort the layers before a nested network into those that prepare pictures and others."""
    if not ordered(file):
        found.front += [layer for layer in file.layers if layer.parents != found.path and layer.kind in PREPARES
                        and not layer.arrays]  # fmt: skip
    elif found.path:
        for layer in takewhile(lambda layer: layer.parents != found.path, file.layers):
            prepares = not layer.arrays and layer.kind in (*PREPARES_IN_PLACE, *IDENTITIES)
            if layer.kind != "InputLayer" or not prepares:
                (found.front if prepares else found.before).append(layer)


def oriented(file: KerasFile) -> KerasFile:
    """Return the file with the order of kernel axes that agrees best with an architecture; its own if that does."""

    def problems(one: KerasFile) -> int:
        found = [each for each in candidates(one) if each.bound]
        return min((len(each.problems) for each in found), default=0)

    def turned(order: KernelOrder) -> KerasFile:
        layers = [replace(layer, kernel_order=order) if _holds_map(layer) else layer for layer in file.layers]
        return replace(file, layers=tuple(layers))

    return min((file, turned("oihw"), turned("hwio")), key=problems) if problems(file) else file


def _holds_map(layer: KerasLayer) -> bool:
    return any(len(array.shape) == 4 for array in layer.arrays.values()) or "moving_mean" in layer.arrays


def _keys(named: bool, layers: Sequence[tuple[str, str]]) -> set[str]:
    """Return keys of (name, class) pairs: own names as they are, others by class and count."""
    counts: Counter[str] = Counter()
    keys = set()
    for name, kind in layers:
        if named and not is_automatic(name, kind):
            keys.add(name)
        else:
            counts[kind] += 1
            keys.add(f"{kind} {counts[kind]}")
    return keys


def class_of(layer: KerasLayer) -> str:
    """Return a layer's class, for a depthwise convolution also where a file leaves it open."""
    kernel = layer.arrays.get("kernel")
    return layer.kind or ("DepthwiseConv2D" if kernel is not None and len(kernel.shape) == 4 else "")


def outputs_of(layer: KerasLayer) -> int | None:
    """Return the number of channels or values that a convolution or dense layer gives; None for other layers."""
    if "pointwise_kernel" in layer.arrays:
        return layer.arrays["pointwise_kernel"].shape[-1]
    kernel = layer.arrays.get("kernel", layer.arrays.get("depthwise_kernel"))
    if kernel is None:
        return None
    if class_of(layer) == "DepthwiseConv2D":
        return kernel.shape[2] * kernel.shape[3]
    return kernel.shape[0] if layer.kernel_order == "oihw" else kernel.shape[-1]


def _same_class(layer: KerasLayer, kind: str) -> bool:
    own = layer.kind
    return ALIKE.get(own, own) == ALIKE.get(kind, kind) or (own == "Merge" and kind in ("Add", "Concatenate"))


def _is(layer: KerasLayer, entry: Entry, named: bool) -> bool:
    """Return whether a listed layer may be an architecture's, by its name or else its class."""
    if bool(layer.arrays) != entry.weighted:
        return False
    if not named:
        return _same_class(layer, entry.kind) or not layer.kind
    if layer.name == entry.name:
        return True
    if layer.arrays:  # of whose settings only Keras's own names tell
        return entry.automatic and is_automatic(layer.name, entry.kind)
    return _same_class(layer, entry.kind) and (entry.automatic or kind_of_name(layer.name) != "")


def _walk(
    file: KerasFile, wanted: Sequence[Entry], members: Sequence[KerasLayer], start: int
) -> tuple[dict[str, KerasLayer], dict[str, list[KerasLayer]], int, bool]:
    """Follow both lists from `start`; returns what agrees, where it ends in the file, and whether all of it agrees."""
    bound: dict[str, KerasLayer] = {}
    extra: dict[str, list[KerasLayer]] = defaultdict(list)
    place, last = start, ""
    for entry in _listable(wanted):
        while (
            place < len(members) and last and not _is(members[place], entry, file.named)
            and not members[place].arrays and members[place].kind in IDENTITIES
        ):  # fmt: skip
            extra[last].append(members[place])
            place += 1
        if place < len(members) and _is(members[place], entry, file.named):
            bound[entry.name] = members[place]
            place, last = place + 1, entry.name
        elif entry.kind not in IDENTITIES:
            return bound, extra, place, False
    return bound, extra, place, True


def _listable(entries: Iterable[Entry]) -> list[Entry]:
    """Return the layers that a file lists: all but functions and inputs."""
    return [entry for entry in entries if not entry.kind.startswith("ops.") and entry.kind != "InputLayer"]


def _in_sequence(file: KerasFile, found: Agreement, members: Sequence[KerasLayer]) -> None:
    """Compare with a list in the order of `model.layers`."""
    first = next((place for place, layer in enumerate(members) if layer.arrays), len(members))
    starts = [place for place in range(first + 1)
              if all(layer.kind in (*PREPARES_IN_PLACE, *IDENTITIES) for layer in members[:place])]  # fmt: skip
    walks = {start: _walk(file, found.base, members, start) for start in starts}
    whole = next((start for start in starts if walks[start][3]), None)
    if whole is None:
        _name_differences(file, found, members)
        if not found.problems:
            bound, _, place, _ = max(walks.values(), key=lambda walk: len(walk[0]))
            what = described(members[place]) if place < len(members) else "nothing"
            left = [entry for entry in _listable(found.base) if entry.name not in bound]
            wanted = next(f"{entry.name} ({entry.kind})" for entry in left if entry.kind not in IDENTITIES)
            found.problems.append(f"{what} stands where {wanted} should")
        return
    bound, extra, place, _ = walks[whole]
    found.front = list(members[:whole])
    found.bound, found.extra = bound, extra
    top = [entry for entry in found.entries if entry.name in found.architecture.top]
    above, more, end, complete = _walk(file, top, members, place) if top else ({}, {}, place, False)
    named = {entry.name for entry in top if not entry.automatic}
    ends = end == len(members) and all(name == layer.name for name, layer in above.items()) and any(
        layer.arrays for layer in above.values()
    )  # fmt: skip
    if not (complete or ends):  # of the top, only layers without arrays that bear its own names are the network's
        kept = [*takewhile(lambda name: name in named and name == above[name].name and not above[name].arrays, above)]
        if kept and place + 1 < len(members) and members[place + 1].kind == "Flatten":
            kept = []  # a pooling before a Flatten is hardly the network's own, which is global
        above = {name: above[name] for name in kept}
        more = {name: more[name] for name in kept[:-1] if name in more}
    found.bound |= above
    found.extra.update(more)
    found.top, found.whole_top = tuple(above), bool(top) and complete


def described(layer: KerasLayer) -> str:
    """Return a listed layer's name and class for a message."""
    return f"{layer.name} ({class_of(layer) or 'a layer of unknown class'})"


def _name_differences(file: KerasFile, found: Agreement, members: Sequence[KerasLayer]) -> None:
    """Add the layers with weights that are missing, unknown or in another order."""
    wanted = [entry for entry in found.base if entry.weighted]
    weighted = [layer for layer in members if layer.arrays]
    if not file.named:
        counts = Counter(entry.kind for entry in wanted)
        for kind, count in counts.items():
            if (theirs := sum(class_of(layer) == kind for layer in weighted)) < count:
                found.problems.append(f"it has {theirs} of {count} layers {kind}")
        return
    names, own = {layer.name for layer in weighted}, {entry.name for entry in found.entries}
    missing = [entry.name for entry in wanted if not entry.automatic and entry.name not in names]
    last = max((place for place, layer in enumerate(weighted) if layer.name in own), default=-1)
    unknown = [layer.name for layer in weighted[:last] if not is_automatic(layer.name, layer.kind)]
    found.problems += [f"{name} is missing" for name in missing]
    found.problems += [f"{name} is unknown" for name in unknown if name not in own]


def _by_name(found: Agreement, members: Sequence[KerasLayer]) -> None:
    """Compare with the arrays of a nested model, of which frozen layers come last."""
    for part in (found.base, [entry for entry in found.entries if entry.name in found.architecture.top]):
        wanted = [entry for entry in part if entry.weighted]
        own = {layer.name: layer for layer in members}
        bound = {entry.name: own[entry.name] for entry in wanted if entry.name in own and not entry.automatic}
        for kind in dict.fromkeys(entry.kind for entry in wanted if entry.automatic):
            ours = [entry.name for entry in wanted if entry.automatic and entry.kind == kind]
            theirs = [layer for layer in members if layer.arrays and is_automatic(layer.name, kind)]
            theirs.sort(key=lambda layer: number(layer.name))
            bound |= dict(zip(sorted(ours, key=number), theirs, strict=False))
        missing = [entry.name for entry in wanted if entry.name not in bound]
        if part is found.base:
            found.bound = bound
            found.problems += [f"{name} is missing" for name in missing]
        elif wanted and not missing:
            found.bound |= bound
            found.top, found.whole_top = found.architecture.top, True
    found.problems += _unknown(members, found.bound)


def _by_class(file: KerasFile, found: Agreement, members: Sequence[KerasLayer]) -> None:
    """Compare with a list that numbers the layers of each class."""
    theirs: dict[str, list[KerasLayer]] = defaultdict(list)
    for layer in members:
        theirs[layer.kind].append(layer)
    base, whole = (_pairs(file, entries, theirs) for entries in (found.base, found.entries))
    has_top = bool(found.architecture.top) and not whole[1]
    if has_top and not file.named:  # then layers behind the top are more likely the head of a network without it
        acting = any(one.kind not in IDENTITIES for one in _without(members, whole[0].values()))
        has_top = not acting or bool(base[1] + _unknown(members, base[0]))
    found.bound, problems = whole if has_top else base
    found.problems += [*problems, *_unknown(members, found.bound)]
    if has_top:
        found.top, found.whole_top = found.architecture.top, True
    left = _without(members, found.bound.values())
    found.front = [layer for layer in left if layer.kind in PREPARES and not layer.arrays]


def _pairs(
    file: KerasFile, wanted: Sequence[Entry], theirs: Mapping[str, Sequence[KerasLayer]]
) -> tuple[dict[str, KerasLayer], list[str]]:
    """Return the architecture's layers with the file's of the same class and number; and what does not agree."""
    bound: dict[str, KerasLayer] = {}
    problems: list[str] = []
    ours: dict[str, list[Entry]] = defaultdict(list)
    for entry in _listable(wanted):
        ours[entry.kind].append(entry)
    for kind, entries in ours.items():
        found = theirs.get(kind, [])
        if kind in IDENTITIES and len(found) < len(entries):
            continue
        names = {layer.name for layer in found}
        missing = [entry.name for entry in entries[len(found) :]]
        if file.named:
            own = [entry.name for entry in entries if entry.weighted and not entry.automatic]
            missing = [name for name in own if name not in names] or missing
        problems += [f"{name} is missing" for name in missing]
        pairs = list(zip(entries, found, strict=False))
        bound |= {entry.name: layer for entry, layer in pairs}
        if file.named and not missing:
            problems += [
                f"{layer.name} stands where {entry.name} should" for entry, layer in pairs
                if entry.weighted and layer.name != entry.name
                and not (entry.automatic and is_automatic(layer.name, kind))
            ]  # fmt: skip
    return bound, problems


def _unknown(members: Sequence[KerasLayer], bound: Mapping[str, KerasLayer]) -> list[str]:
    """Describe the layers with kernels of maps that are not the architecture's."""
    return [f"{layer.name} is unknown" for layer in _without(members, bound.values())
            if _holds_map(layer) and class_of(layer) != "BatchNormalization"]  # fmt: skip


def _misfit(entry: Entry, layer: KerasLayer) -> str:
    """Describe arrays that are not those of an architecture's layer, whatever its width; "" if they are."""
    if isinstance(layer, Joined):
        ours = {inner.name: inner for inner in entries_of(entry.settings) if inner.weighted}
        held = layer.within(entry)
        if held.keys() != ours.keys() or len(held) != len(layer.inner):
            return f"{layer.name} has the layers {few([one.name for one in layer.inner])}, not {few([*ours])}"
        return next((said for name, inner in held.items() if (said := _misfit(ours[name], inner))), "")
    roles, settings = set(layer.arrays), entry.settings
    if entry.kind == "BatchNormalization":
        scaled = {role for role, flag in (("gamma", "scale"), ("beta", "center")) if settings.get(flag, True)}
        wanted = {"moving_mean", "moving_variance", *scaled}
        # The roles of numbered arrays are guesses.
        numbered = all(re.search(r"/vars/\d+$", array.place) for array in layer.arrays.values())
        fits = len(roles) == len(wanted) if numbered else roles == wanted
        return "" if fits else f"{layer.name} has {', '.join(layer.arrays)}, not {', '.join(sorted(wanted))}"
    kernel = layer.arrays.get("kernel", layer.arrays.get("depthwise_kernel"))
    if kernel is None or entry.kind not in HOLDS:
        return f"{layer.name} has no kernel" if entry.kind in ("Conv2D", "DepthwiseConv2D", "Dense") else ""
    shapes = " ".join(str(array.shape) for array in layer.arrays.values())
    biased = bool(settings.get("use_bias", True))
    if biased != ("bias" in roles):
        return f"{layer.name} is {shapes}, {'without' if biased else 'with'} a bias"
    outputs = kernel.shape[0] if layer.kernel_order == "oihw" else kernel.shape[-1]
    if entry.kind in ("Conv2D", "Dense") and biased and layer.arrays["bias"].shape != (outputs,):
        return f"{layer.name} is {shapes}, not with a bias of ({outputs},)"
    if "kernel_size" in settings and len(kernel.shape) == 4:
        height, width = pair_of(settings["kernel_size"])
        if (kernel.shape[2:] if layer.kernel_order == "oihw" else kernel.shape[:2]) != (height, width):
            return f"{layer.name} is {shapes}, not of {height}x{width} cells"
    elif len(kernel.shape) != (2 if entry.kind == "Dense" else 4):
        return f"{layer.name} is {shapes}, not of a {entry.kind}"
    return ""


def few(names: Sequence[str]) -> str:
    """Join names for a message, at most `MOST_NAMED`."""
    return ", ".join(names[:MOST_NAMED]) + (f", ... ({len(names)})" if len(names) > MOST_NAMED else "")


def misnamed_arrays(file: KerasFile) -> list[str]:
    """Describe arrays named after another layer than the one that lists them."""
    names = {layer.name for layer in file.weighted}
    problems = []
    for layer in file.weighted:
        for array in layer.arrays.values():
            own = _own_name(array, names)
            if f"{layer.name}/{layer.name}/" in array.place:  # a name with slashes may end like another layer's
                continue
            if file.named and file.container == "legacy" and own is not None and own != layer.name:
                problems.append(f"{layer.name} lists the array {array.place}, which is named after {own}")
    return problems


def _own_name(array: KerasArray, names: set[str]) -> str | None:
    """Return the layer named in an array's path: "/conv1_2/conv1_2_W" or "/block1_conv1/block1_conv1/kernel:0"."""
    *folders, last = array.place.strip("/").split("/")
    candidates = [folders[-1] if folders else ""]
    pieces = last[:LONGEST].split(":")[0].split("_")
    candidates += ["_".join(pieces[:end]) for end in range(len(pieces) - 1, 0, -1)]
    return next((name for name in (*candidates[1:], candidates[0]) if name in names), None)  # the longest first

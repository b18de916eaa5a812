"""Make a whole model of a file that holds only weights: derive the model's config from the file's own list of layers.

The list and the shapes are the evidence. Keras's own graphs say how the layers of a network are connected and what
their settings are; the layers behind it are read in listed order. What the list leaves open is refused or said.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from math import prod
from typing import Any

from converters.architectures import Entry, Shape, entries_of, fitting, tensor
from converters.layer_lists import (
    Agreement,
    Joined,
    Path,
    candidates,
    class_of,
    described,
    few,
    joined,
    misnamed_arrays,
    ordered,
    outputs_of,
)
from converters.listed_heads import READERS, WAY_ON, Head, HeadReader, Op, Place, with_kinds
from converters.options import Questions, check_data_format, check_size, settle_activation, settle_backend, settle_rows
from converters.plan import Wishes
from converters.proof.listing import check_list
from converters.readers.keras_file import KerasFile, KerasLayer
from converters.readers.keras_graph import Described, data_format, describe, each, parse
from converters.readers.keras_words import IDENTITIES, edges_of, holds_arrays, pair_of, roles_by_count
from convnets_torch.files import read_text

PAPER = {  # networks with a class of their own here -> its name
    "AlexNet": "alexnet", "VGG16": "vgg16", "VGG19": "vgg19", "ResNet50": "resnet50", "InceptionV3": "inception_v3",
}  # fmt: skip
EARLY = ("keras-applications", "keras 1.", "keras 2.0", "keras 2.1.", "keras 2.2.", "keras 2.3.")
POSITIVE = ("relu", "relu6")
LAYER = {"module": "keras.layers"}  # which tells layers from functions
OWN_WIDTHS = {"EfficientNetB1": ("top_conv", 1280), "EfficientNetB2": ("top_conv", 1408)}  # layer, its outputs
RELU: dict[Any, dict[str, Any]] = {"relu": {}, "relu6": {"max_value": 6.0}}  # activation -> the settings of a ReLU
NEEDED = {"Dense": "kernel", "BatchNormalization": "moving_mean", "PReLU": "alpha"}  # class -> array that tells sizes
MOST_JSON = 16 << 20  # bytes of an architecture file


def derive(file: KerasFile, wishes: Wishes, questions: Questions) -> tuple[dict[str, Any], list[str], Wishes]:
    """Derive the config of a file that holds only weights.

    Returns:
        The config, in Keras 3's form; notes on assumptions; and the user's options for `plan_graph`, without those that
        the config answers.

    Raises:
        ValueError: the list is of no known network, or of an incomplete one; or it leaves open what the model computes.
    """
    check_data_format(file, wishes)
    check_size(file, wishes.input_size)
    _check_inputs(file)
    file = joined(file)
    return _Deriving(file, _recognised(file, wishes), wishes, questions).derived()


def _check_inputs(file: KerasFile) -> None:
    inputs = [layer.name for layer in file.layers if layer.kind == "InputLayer" and not layer.parents]
    if len(inputs) > 1:
        raise ValueError(f"{file.path} lists {len(inputs)} inputs ({few(inputs)}); only one is supported")
    counts = Counter((layer.parents, layer.name) for layer in file.weighted)
    if doubles := [name for (_, name), count in counts.items() if count > 1]:
        raise ValueError(f"{file.path} lists a layer twice ({few(doubles)}); download it again")


# Recognition


def _recognised(file: KerasFile, wishes: Wishes) -> Agreement:
    """Return how the file's list agrees with the one architecture that it is."""
    found = candidates(file)
    whole = [one for one in found if not one.problems]
    swapped = misnamed_arrays(file)
    if not whole or swapped:
        _refuse(file, found, whole, swapped)
    if not ordered(file) or re.match(r"[3-9]|2\.([4-9]|\d\d)", file.version or ""):  # of tf_keras or Keras 3
        whole = [one for one in whole if not one.architecture.release.startswith(EARLY)] or whole
    best = max(one.rank for one in whole)
    tied = [one for one in whole if one.rank == best]
    tied = [one for one in tied if _has_own_width(one)] or tied
    if wishes.pool1_padding is not None:
        tied = [one for one in tied if _pads_first_pool(one) == wishes.pool1_padding]
        if not tied or "ResNet" not in tied[0].architecture.name:
            known = f"{file.path} is {_name(whole[0])}, whose first pooling is known"
            raise ValueError(f"{known}; leave out --pool1-padding")
    chosen = tied[0]
    if chosen.before:
        raise ValueError(
            f"{file.path} lists {described(chosen.before[0])} before the network, of which a weights file stores too"
            f" little; {WAY_ON}"
        )
    if any(_essence(one) != _essence(chosen) for one in tied[1:]):
        options = " or give --pool1-padding yes or no," if len({_pads_first_pool(one) for one in tied}) > 1 else ""
        releases = few([f"{one.architecture.name} of {one.architecture.release}" for one in tied])
        raise ValueError(f"{file.path} may be one of several networks ({releases});{options} {WAY_ON}")
    _check_norm(file, chosen)
    return chosen


def _has_own_width(found: Agreement) -> bool:
    """Return whether a network that differs from another in width and size only has its own width."""
    layer, width = OWN_WIDTHS.get(found.architecture.name, ("", None))
    return found.outputs.get(layer) == width


def _check_norm(file: KerasFile, found: Agreement) -> None:
    """Refuse ConvNeXt with a head where a pooling may stand before its last normalisation or behind it.

    It does before in Keras's top and with `pooling="avg"`, and behind in a head of one's own.
    """
    norms = [entry.name for entry in (found.base[-1], *found.entries) if entry.kind == "LayerNormalization"
             and entry.name in (found.base[-1].name, *found.top)]  # fmt: skip
    if not norms:
        return
    pools = [layer for layer in found.rest if layer.kind in READERS]
    if ordered(file):
        is_open = bool(found.path) and not pools and not found.top
    elif found.top:  # without names, the top may be a head; with 1000 classes it is that of released weights
        is_open = not file.named and found.outputs[found.top[-1]] != 1000
    else:
        is_open = any(layer.parents == found.path for layer in pools)
    if is_open:
        raise ValueError(
            f"{file.path} does not say in which order {found.bound[norms[0]].name} and the pooling of"
            f" {found.architecture.name} come; {WAY_ON}"
        )


def _refuse(file: KerasFile, found: Sequence[Agreement], whole: Sequence[Agreement], swapped: Sequence[str]) -> None:
    """Raise ValueError for a file that is no complete network."""
    if not found:
        shown = [
            f"{layer.name} {' '.join(str(array.shape) for array in layer.arrays.values())}" for layer in file.weighted
        ]
        raise ValueError(
            f"{file.path}: the network is not known here, as it is none of convnets-keras and Keras Applications; its"
            " layers with weights are:"
            f" {few(shown) or 'none'}; {WAY_ON}"
        )
    nearest = max(whole or found, key=lambda one: (one.likeness, one.rank))
    problems = [
        *nearest.problems,
        *swapped,
        *(f"{place} is an array that belongs to no layer" for place in file.unlisted),
    ]
    raise ValueError(f"{file.path} is not a complete {_name(nearest)}: {'; '.join(problems)}")


def _name(found: Agreement) -> str:
    return PAPER.get(found.architecture.name, found.architecture.name)


def _pads_first_pool(found: Agreement) -> bool:
    """Return whether a ZeroPadding2D stands before the first pooling."""
    kinds = {entry.name: entry.kind for entry in found.entries}
    first = next((entry for entry in found.entries if entry.kind == "MaxPooling2D"), None)
    return first is not None and kinds[first.inputs[0]] == "ZeroPadding2D"


UNSAID = ("name", "data_format", "strides", "padding", "batch_shape")  # settings that `_essence` does not repeat


def _said(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the settings that matter, those of inner layers among them."""
    said = {key: value for key, value in settings.items() if key not in UNSAID and key not in ("layers", "groups")}
    inner = [(each["class_name"], _said(each["config"])) for each in settings.get("layers", ())]
    groups = "each channel" if settings.get("groups", 1) > 1 else "one"
    return sorted((key, repr(value)) for key, value in (said | {"layers": inner, "groups": groups}).items())


def _essence(found: Agreement) -> str:
    """Return a digest of what a network computes from the file's arrays, whatever its other layers are called."""
    digests: dict[str, str] = {}
    terms: dict[str, tuple[Any, ...]] = {}  # digest -> what it stands for, and the digests of its inputs
    _, shapes = found.sized(found.architecture.size)
    last = ""
    for entry in found.present:
        settings, sources = entry.settings, [digests[source] for source in entry.inputs]
        before = shapes[entry.inputs[0]] if entry.inputs else ()
        window = settings.get("kernel_size") or settings.get("pool_size")
        term: Any = (entry.kind, *_said(settings))
        if entry.kind == "Activation" and settings.get("activation") in RELU:  # a ReLU in later releases
            term = ("ReLU", *_said(RELU[settings["activation"]]))
        if entry.kind == "ZeroPadding2D":
            term = ("pad", edges_of(settings["padding"]))
        elif entry.kind == "AveragePooling2D" and pair_of(window) == before[:2]:
            term = ("GlobalAveragePooling2D",)
        elif entry.kind == "GlobalAveragePooling2D":
            term = (entry.kind,)
        elif window is not None:
            strides = pair_of(settings.get("strides") or settings.get("pool_size") or 1)
            edges = _edges(before, pair_of(window), strides, settings.get("padding", "valid"))
            inner, *further = terms[sources[0]]
            if "kernel_size" in settings and inner[0] == "pad":  # padding by a layer of its own is the convolution's
                edges = tuple((a + c, b + d) for (a, b), (c, d) in zip(edges, inner[1], strict=True))
                sources = further
            term = (*term, strides, edges)
        if entry.weighted:
            term = (*term, found.bound[entry.name].parents, found.bound[entry.name].name)
        if entry.kind in IDENTITIES and sources:
            last = sources[0]
        else:
            last = hashlib.sha256(repr((term, *sources)).encode()).hexdigest()
            terms[last] = (term, *sources)
        digests[entry.name] = last
    return last


def _edges(
    before: Shape, window: tuple[int, int], strides: tuple[int, int], padding: str
) -> tuple[tuple[int, int], ...]:
    edges = []
    for side, size, step in zip(before[:2], window, strides, strict=True):
        total = max(0, (-(-side // step) - 1) * step + size - side) if padding == "same" else 0
        edges.append((total // 2, total - total // 2))
    return tuple(edges)


# Derivation


class _Deriving:
    """Derives the config of one file: the network's layers under the file's names, with the head behind them."""

    def __init__(self, file: KerasFile, found: Agreement, wishes: Wishes, questions: Questions) -> None:
        self.file, self.found, self.wishes, self.questions = file, found, wishes, questions
        self.architecture = found.architecture
        self.ends = found.present[-1]  # the network's last layer
        self.hides = ordered(file) and bool(found.path)  # whether the file lists only arrays of the network's model
        named = "avg_pool" in self.architecture.top or self.architecture.name.startswith("MobileNetV3")
        self.head_layers = found.rest = list(with_kinds(found.rest, named=named))
        for layer in self.head_layers:
            if layer.arrays and (role := NEEDED.get(layer.kind)) is not None and role not in layer.arrays:
                raise ValueError(f"{file.path} lists {layer.name} ({layer.kind}) without its {role}; download it again")
        self.dense = [layer for layer in self.head_layers if layer.arrays and layer.kind == "Dense"]
        self.backend, self.notes = settle_backend(file, wishes, questions)
        _, self.own_shapes = found.sized(self.architecture.size)
        self.format = self._format()
        self.first = self.format == "channels_first"
        self.taken: dict[Path, set[str]] = defaultdict(set)
        for layer in file.layers:
            self.taken[layer.parents].add(layer.name)

    def derived(self) -> tuple[dict[str, Any], list[str], Wishes]:
        file, found, wishes = self.file, self.found, self.wishes
        if not file.named:
            self.notes.insert(
                0, f"{_name(found)} is inferred from the number and shapes of the layers, which have no names"
            )
        if found.front:
            self._note_front(few([layer.name for layer in found.front]))
        self.size = self._size()
        self.config, self.shapes = found.sized(self.size)
        shape = self.shapes[self.ends.name]
        if min(shape[:-1], default=1) < 1:
            raise ValueError(
                f"{file.path}: pictures of {self.size[0]}x{self.size[1]} pixels are too small for the network"
            )
        place = Place(shape, found.path, self._is_positive(), self.hides)
        head = HeadReader(
            file, self.head_layers, place, wishes.hidden_activation, self._output, ordered=ordered(file)
        ).head()
        if wishes.hidden_activation is not None and not head.uses_hidden:
            raise ValueError(f"{file.path}: no activation of its head is open; leave out --hidden-activation")
        self.notes += head.notes
        units = next((count for name in reversed(found.top) if (count := found.outputs.get(name))), None)
        self.top_activation = self._top_activation(units)
        items: list[tuple[Path, Op | None]] = [(layer.parents, Op("Identity", {}, layer)) for layer in found.front]
        items += [(found.path, None), *((op.layer.parents, op) for op in head.ops)]
        entry = self._level((), items, (*self.size, 3))
        config = {"class_name": "Functional", "config": entry["config"]}
        if self.backend is not None:
            config["backend"] = self.backend
        return config, self.notes, self._wishes(units, head)

    def _note_front(self, names: str) -> None:
        """Note the layers before the first convolution, and ask for the preprocessing that they are part of."""
        if self.wishes.preprocessing is None:
            reason = f"it lists {names} before the first convolution, but not what these layers do"
            self.questions.ask("preprocessing", reason, "the whole preprocessing with --preprocessing")
        self.notes.append(f"{names} before the first convolution is assumed to be part of the preprocessing you named")

    def _wishes(self, units: int | None, head: Head) -> Wishes:
        """Return the options for `plan_graph`: those answered here left out, a released network's rule added."""
        wishes = replace(self.wishes, hidden_activation=None, pool1_padding=None, input_size=None)
        convnets = self.architecture.release.startswith("convnets-keras")
        released = (units in (None, 1000) or convnets) and not self.found.front and not any(
            op.layer.arrays for op in head.ops
        )  # fmt: skip
        preset = self.architecture.preprocessing
        if wishes.preprocessing is None and released and preset is not None:
            self.notes.append(
                f"pictures are preprocessed with {preset}, as for the released weights with these layers; change it"
                " with --preprocessing"
            )
            wishes = replace(wishes, preprocessing=preset)
        return wishes

    # Assumptions

    def _format(self) -> str:
        """Return the data format of the maps, and remember that of the rows behind a Flatten."""
        order: Any = "oihw" if {layer.kernel_order for layer in self.file.weighted} - {None} == {"oihw"} else "hwio"
        flattens = any(
            prod(self.own_shapes[entry.inputs[0]][:-1]) > 1
            for entry in self.found.present if entry.name in self.found.top and entry.kind == "Flatten"
        )  # fmt: skip
        self.rows_last = True
        if not (flattens or self.dense):
            return "channels_first" if order == "oihw" else self.wishes.data_format or "channels_last"
        self.rows_last, found, chosen = settle_rows(self.file, order, self.wishes, self.questions)
        if flattens or any(layer.kind == "Flatten" for layer in self.head_layers):
            self.notes += chosen
        return found or "channels_last"

    def _flattened(self) -> tuple[KerasLayer | None, Shape]:
        """Return the dense layer that reads a flattened map, None if there is none; and the map's shape."""
        found, shapes = self.found, self.own_shapes
        flat = [one for one in found.present if one.name in found.top and one.kind == "Flatten"
                and len(shapes[one.inputs[0]]) == 3]  # fmt: skip
        if flat:  # of the network's own top, which the head may go on
            readers = [found.bound[one.name] for one in found.entries
                       if flat[-1].name in one.inputs and one.name in found.bound]  # fmt: skip
            return next(iter([*readers, *self.dense]), None), shapes[flat[-1].inputs[0]]
        end = shapes[self.ends.name]
        if len(end) != 3 or not self.dense:
            return None, end
        dense = self.dense[0]
        before = self.head_layers[: self.head_layers.index(dense)] if ordered(self.file) else self.head_layers
        kinds = {layer.kind for layer in before if not layer.arrays} - set(IDENTITIES)
        rows = dense.arrays["kernel"].shape[0]
        flattens = "Flatten" in kinds and not any("Pooling" in kind for kind in kinds)
        return dense if flattens or (not kinds and rows != end[-1]) else None, end

    def _size(self) -> tuple[int, int]:
        """Return the input size: as given, as the rows behind a Flatten tell, or the network's own."""
        own, found = self.architecture.size, self.found
        if self.wishes.input_size is not None:
            return self.wishes.input_size
        first, shape = self._flattened()
        if first is None:
            if any(one.arrays for one in self.head_layers):
                self.notes.append(
                    f"pictures are assumed to have {own[0]}x{own[1]} pixels, as for the released weights; change it"
                    " with --input-size"
                )
            return own
        rows, channels = first.arrays["kernel"].shape[0], shape[-1]
        if rows == prod(shape):
            return own
        side = round((rows / channels) ** 0.5)
        cells = (side, side)
        if side * side * channels != rows:
            if found.whole_top or rows % channels:
                raise ValueError(
                    f"{self.file.path} is not a complete {_name(found)}: {first.name} has {rows} rows, but a"
                    f" {channels}x{shape[0]}x{shape[1]} block flattens to {prod(shape)}"
                )
            reason = f"it has a head that reads {rows // channels} cells, which is not a square number"
            self.questions.ask("input_size", reason, "--input-size HEIGHTxWIDTH, in pixels")
            cells = (1, rows // channels)
        end = found.base[-1].name if self.ends.name in found.top else self.ends.name
        base, more = self.own_shapes[end], found.sized((own[0] + 320, own[1] + 320))[1][end]
        stride = 320 // (more[0] - base[0])
        height, width = (own[axis] + stride * (cells[axis] - base[axis]) for axis in (0, 1))
        self.notes.append(
            f"pictures are assumed to have {height}x{width} pixels, as {first.name} reads {cells[0]}x{cells[1]} cells;"
            " change it with --input-size"
        )
        return height, width

    def _is_positive(self) -> bool:
        """Return whether the network's output, a ReLU's or what poolings and Concatenates join, is not negative."""
        entries = {one.name: one for one in self.found.entries}
        waiting = [self.ends.name]
        while waiting:
            one = entries[waiting.pop()]
            if one.kind == "ReLU" or one.settings.get("activation") in POSITIVE:
                continue
            if one.kind not in ("Concatenate", "MaxPooling2D", "AveragePooling2D", "Dropout"):
                return False
            waiting.extend(one.inputs)
        return True

    def _output(self, units: int, listed: str | None) -> str:
        """Return the setting of the output activation."""
        activation, _ = settle_activation(self.file, units, listed, self.wishes, self.questions)
        return "linear" if activation == "none" else activation

    def _top_activation(self, units: int | None) -> str | None:
        """Return the activation of the network's own top, if the file may have another; `units` are its outputs."""
        found = self.found
        if self.dense:
            units = outputs_of(self.dense[-1])
            behind = self.head_layers[self.head_layers.index(self.dense[-1]) :]
            listed = [layer for layer in (behind if ordered(self.file) else self.head_layers) if not layer.arrays]
        else:
            units = units if found.whole_top else None
            listed = [found.bound[name] for name in found.top[-1:] if name in found.bound]
        kinds = {layer.kind.lower() for layer in listed}
        told = next((kind for kind in ("softmax", "sigmoid") if kind in kinds), None)
        known = units == 1000 and not self.dense
        activation, chosen = settle_activation(self.file, units, told, self.wishes, self.questions, known=known)
        self.notes += chosen
        if units is None or self.head_layers:
            return None
        return "linear" if activation == "none" else activation

    # The config

    def _level(self, path: Path, items: Sequence[tuple[Path, Op | None]], shape: Shape | None) -> dict[str, Any]:
        """Return the entry of the model at `path`, of (path, layer) pairs; None stands for the network."""
        listed = [one.name for one in self.file.layers if one.parents == path and one.kind == "InputLayer"]
        start = at = listed[0] if listed else self._free(path, "input_layer")
        settings: dict[str, Any] = {"name": start}
        if shape is not None:
            settings["batch_shape"] = [None, *((shape[2], *shape[:2]) if self.first else shape)]
        layers: list[dict[str, Any]] = [
            {**LAYER, "class_name": "InputLayer", "name": start, "config": settings, "inbound_nodes": []}
        ]
        depth = len(path)
        for inner, run in groupby(items, key=lambda item: item[0][: depth + 1] if len(item[0]) > depth else None):
            members = list(run)
            if inner is not None:
                if any(layer["name"] == inner[-1] for layer in layers):
                    raise ValueError(f"{self.file.path} lists {inner[-1]} in two places; {WAY_ON}")
                holds = any(op is None for _, op in members)
                entry = self._level(inner, members, (*self.size, 3) if holds else None)
                layers.append(entry | {"inbound_nodes": [_call(at)]})
                at = inner[-1]
                continue
            for _, op in members:
                layers += self._network(path, at) if op is None else [self._entry(op, at)]
                at = layers[-1]["name"]
        name = path[-1] if path else self.config["config"].get("name", "model")
        own = {"name": name, "layers": layers, "input_layers": [[start, 0, 0]], "output_layers": [[at, 0, 0]]}
        return {**LAYER, "class_name": "Functional", "name": name, "config": own}

    def _free(self, path: Path, name: str) -> str:
        while name in self.taken[path]:
            name += "_"
        self.taken[path].add(name)
        return name

    def _entry(self, op: Op, at: str) -> dict[str, Any]:
        name = op.layer.name
        settings = {"name": name, **op.settings, **(self._rows() if op.kind == "Flatten" else {})}
        if self.first and op.kind == "BatchNormalization":
            settings["axis"] = 1
        return {**LAYER, "class_name": op.kind, "name": name, "config": settings, "inbound_nodes": [_call(at)]}

    def _rows(self) -> dict[str, str]:
        """Return the setting of a Flatten that gives the rows of the dense kernel behind it."""
        return {"data_format": "channels_first" if self.first and self.rows_last else "channels_last"}

    def _network(self, path: Path, at: str) -> list[dict[str, Any]]:
        """Return the network's layers that the file has, reading `at`."""
        found = self.found
        names: dict[str, str] = {}
        result: list[dict[str, Any]] = []
        present = {entry.name for entry in found.present}
        for entry in entries_of(self.config["config"]):
            if entry.kind == "InputLayer":
                names[entry.name] = at
                continue
            layer = found.bound.get(entry.name)
            unlisted = layer is None and not self.hides and not entry.kind.startswith("ops.")
            if unlisted or entry.name not in present:
                names[entry.name] = names[entry.inputs[0]]  # dropout that the file does not list
                continue
            name = names[entry.name] = layer.name if layer is not None else self._free(path, entry.name)
            calls = _renamed(entry.raw["inbound_nodes"], names)
            result.append(
                {**LAYER, **entry.raw, "name": name, "config": self._settings(entry, name), "inbound_nodes": calls}
            )
            for more in found.extra.get(entry.name, []):
                result.append(self._entry(Op(more.kind, {}, more), names[entry.name]))
                names[entry.name] = more.name
        return result

    def _settings(self, entry: Entry, name: str) -> dict[str, Any]:
        """Return a layer's settings in the file's data format, of the size that its input has."""
        settings = {**entry.settings, "name": name}
        layer, before = self.found.bound.get(entry.name), self.shapes[entry.inputs[0]]
        if self.found.whole_top and entry.name == self.found.top[-1] and settings.get("activation") is not None:
            settings["activation"] = self.top_activation or settings["activation"]
        if settings.get("groups", 1) > 1 and layer is not None:  # a group for each channel, in ConvNeXt
            settings["groups"] = outputs_of(layer)
        if isinstance(layer, Joined):
            held = layer.within(entry)
            settings["layers"] = [
                {**raw, "config": {**raw["config"], "name": held[raw["config"]["name"]].name}}
                for raw in settings["layers"]
            ]
        if entry.kind == "Reshape":
            target = fitting(settings["target_shape"], before)
            settings["target_shape"] = [target[-1], *target[:-1]] if self.first and len(target) == 3 else [*target]
        if entry.kind == "Flatten":
            settings |= self._rows()
        elif entry.kind == "Conv2D":
            settings["data_format"] = self.format
        elif self.first and len(before) == 3:
            if "data_format" in settings or entry.kind == "ZeroPadding2D" or "Pooling" in entry.kind:
                settings["data_format"] = "channels_first"
            if settings.get("axis") in (-1, 3, [3]):
                settings["axis"] = 1
        return settings


def _call(source: str) -> dict[str, Any]:
    return {"args": [tensor(source)], "kwargs": {}}


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Return the arguments of calls with other names of the layers that they read."""
    if isinstance(value, list | tuple):
        return [_renamed(each, names) for each in value]
    if not isinstance(value, Mapping):
        return value
    if value.get("class_name") == "__keras_tensor__":
        return tensor(names[value["config"]["keras_history"][0]])
    return {key: _renamed(each, names) for key, each in value.items()}


# The file with a config


def with_architecture(file: KerasFile, path: str | os.PathLike[str]) -> KerasFile:
    """Return a file with the config that the user gives for it, a model's `to_json()` of any version of Keras.

    Raises:
        OSError: the architecture cannot be read.
        ValueError: it is no JSON, or no config of a model; or the file holds a config itself, or has other layers.
    """
    if file.config is not None:
        raise ValueError(f"{file.path} holds its model's config; leave out the architecture")
    try:
        config = parse(read_text(path, max_bytes=MOST_JSON))
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}; write the model's to_json() to it") from None
    try:
        bound = with_config(file, config)
        check_list(file, config, names=False)
    except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{path} is no model's to_json() ({error!r:.200}); write it again") from None
    return bound


def with_config(file: KerasFile, config: Mapping[str, Any]) -> KerasFile:
    """Return the file as it would be read if it held the config: its layers bound to those of the config.

    They are bound by name or, where names differ, by class and order. Layers that the config lacks stay as they are.

    Args:
        file: a file without config.
        config: {"class_name": ..., "config": ...}, of any version of Keras; "backend" and "keras_version" beside them
            are those of the file where it does not say its own.

    Raises:
        ValueError: the config has other layers than the file.
    """
    described = describe(config)
    held = _bound(file, described)
    layers = []
    used = set()
    for layer, parents in each(described):
        found = held.get((parents, layer.name))
        arrays: Mapping[str, Any] = {}
        if found is not None:
            used.add(id(found))
            arrays = _roles(file, layer, found)
        order = None if found is None else found.kernel_order
        layers.append(KerasLayer(layer.name, layer.kind, arrays, layer.config, parents, order))
    layers += [layer for layer in file.weighted if id(layer) not in used]
    version, backend = config.get("keras_version"), config.get("backend")
    return replace(
        file, layers=tuple(layers), config=dict(config), named=True,
        backend=file.backend or (backend if isinstance(backend, str) else None),
        version=file.version or (version if isinstance(version, str) else None) or _generation(file),
        data_format=file.data_format or data_format(described),
    )  # fmt: skip


def _generation(file: KerasFile) -> str | None:
    """Return the major version that a file without backend and version is of, before a backend is added."""
    first = {layer.kernel_order for layer in file.weighted} - {None} == {"oihw"}  # which no later version stores
    return {"nb_layers": "0", "legacy": "1"}.get(file.container) if file.backend is None or first else None


def _bound(file: KerasFile, described: Described) -> dict[tuple[Path, str], KerasLayer]:
    """Return (parents, name) in the config -> the file's layer with arrays."""
    wanted = [(parents, layer) for layer, parents in each(described)]
    by_key = {(layer.parents, layer.name): layer for layer in file.weighted}
    keys = {(parents, layer.name) for parents, layer in wanted}
    if set(by_key) <= keys:
        return by_key
    names = Counter(layer.name for layer in file.weighted)
    counts = Counter(layer.name for _, layer in wanted)
    by_name = {layer.name: layer for layer in file.weighted if names[layer.name] == 1 and counts[layer.name] == 1}
    if file.named and len(by_name) == len(file.weighted):
        return {(parents, layer.name): by_name[layer.name] for parents, layer in wanted if layer.name in by_name}
    return _bound_in_order(file, wanted)


def _bound_in_order(file: KerasFile, wanted: Sequence[tuple[Path, Described]]) -> dict[tuple[Path, str], KerasLayer]:
    """Bind layers by order and class: to those of the config with arrays, per class where the file numbers classes."""
    slots = [(parents, layer) for parents, layer in wanted if holds_arrays(layer.kind, layer.config)]
    known = {layer.kind for _, layer in slots}
    theirs = sorted(file.weighted, key=lambda layer: -len(layer.parents)) if not ordered(file) else list(file.weighted)
    pairs: list[tuple[tuple[Path, Described], KerasLayer]] = []
    if ordered(file):
        groups = {"": (slots, theirs)}
    else:
        groups = {
            kind: (
                sorted((one for one in slots if one[1].kind == kind), key=lambda one: -len(one[0])),
                [one for one in theirs if class_of(one) == kind],
            )
            for kind in {*known, *(class_of(one) for one in theirs)}
        }
    problems = []
    for kind, (ours, found) in groups.items():
        if len(ours) != len(found):
            what = f"layers {kind}" if kind else "layers with weights"
            problems.append(f"it has {len(found)} {what}, but the architecture {len(ours)}")
            continue
        pairs += zip(ours, found, strict=True)
    problems += [
        f"{layer.name} has the arrays of a {class_of(layer)}, but {slot.name} is a {slot.kind}"
        for (_, slot), layer in pairs if class_of(layer) not in (slot.kind, "")
    ]  # fmt: skip
    if problems:
        raise ValueError(f"{file.path} does not fit the architecture: {'; '.join(problems[:20])}")
    return {(parents, slot.name): layer for (parents, slot), layer in pairs}


def _roles(file: KerasFile, described: Described, layer: KerasLayer) -> Mapping[str, Any]:
    """Return a layer's arrays by the roles that they have in the config's class."""
    arrays = list(layer.arrays.values())
    if file.container in ("weights", "nb_layers"):  # whose arrays have numbers
        roles = roles_by_count(described.kind, [array.shape for array in arrays], described.config)
        return dict(zip(roles, arrays, strict=True))
    if described.kind.startswith("DepthwiseConv"):
        return {"depthwise_kernel" if role == "kernel" else role: array for role, array in layer.arrays.items()}
    return layer.arrays

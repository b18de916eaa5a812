"""Make a whole model of a file that holds only weights: derive the model's config from the file's own list of layers.

The list and the shapes are the evidence. Keras's own graphs say how the layers of a network are connected and what
their settings are; the layers behind it are read in listed order. What the list leaves open is refused or said.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import prod
from typing import Any

from converters import convnets_keras
from converters.layer_lists import (
    Agreement,
    Entry,
    Joined,
    Path,
    candidates,
    class_of,
    described,
    entries_of,
    few,
    joined,
    misnamed_arrays,
    ordered,
)
from converters.listed_heads import READERS, WAY_ON, Head, HeadReader, Op, Place, with_kinds
from converters.options import (
    Questions,
    check_data_format,
    check_size,
    settle_activation,
    settle_backend,
    settle_rows,
)
from converters.plan import Wishes
from converters.proof.listing import check_list
from converters.readers.keras_file import KerasFile, KerasLayer
from converters.readers.keras_graph import Described, data_format, describe, parse
from converters.readers.keras_words import HOLDS, IDENTITIES, edges_of, pair_of, roles_by_count
from convnets_torch.files import read_text

Shape = tuple[int, ...]  # (height, width, channels) of a map, (values,) of a vector
PAPER = {  # networks with a class of their own here -> its name
    "AlexNet": "alexnet", "VGG16": "vgg16", "VGG19": "vgg19", "ResNet50": "resnet50", "InceptionV3": "inception_v3",
}  # fmt: skip
EARLY = ("keras-applications", "keras 1.", "keras 2.0", "keras 2.1.", "keras 2.2.", "keras 2.3.")
POSITIVE = ("relu", "relu6")
LAYER = {"module": "keras.layers"}  # which tells layers from functions
OWN_WIDTHS = {"EfficientNetB1": ("top_conv", 1280), "EfficientNetB2": ("top_conv", 1408)}  # layer, its outputs
RELU: dict[Any, dict[str, Any]] = {"relu": {}, "relu6": {"max_value": 6.0}}  # activation -> the settings of a ReLU
MOST_JSON = 16 << 20  # bytes of an architecture file


@dataclass(frozen=True)
class Derived:
    """What was derived from a file's list.

    Attributes:
        config: the model's config.
        notes: on assumptions.
        wishes: the user's options for `plan_graph`, without those that the config answers.
        network: name of the recognised network.
    """

    config: dict[str, Any]
    notes: list[str]
    wishes: Wishes
    network: str


def config_of_list(file: KerasFile, wishes: Wishes | None = None) -> tuple[dict[str, Any], list[str]]:
    """Return the config of a file that holds only weights, in Keras 3's form, and notes on assumptions.

    Raises:
        ValueError: the list is of no known network, or of an incomplete one; or it leaves open what the model computes.
    """
    questions = Questions(file.path)
    derived = derive(file, wishes or Wishes(), questions)
    questions.check()
    return derived.config, derived.notes


def derive(file: KerasFile, wishes: Wishes, questions: Questions) -> Derived:
    """Return the config of a file that holds only weights, and what else follows from it; see `config_of_list`."""
    check_data_format(file, wishes)
    check_size(file, wishes.input_size)
    _check_inputs(file)
    file = joined(file)
    found = _recognised(file, wishes)
    return _Deriving(file, found, wishes, questions).derived()


def network_of(file: KerasFile) -> str | None:
    """Return the name of the architecture that a file resembles most; None if there is none."""
    found = candidates(joined(file))
    best = max(found, key=lambda one: (not one.problems, one.likeness, one.rank), default=None)
    return None if best is None else best.architecture.name


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
            name = PAPER.get(whole[0].architecture.name, whole[0].architecture.name)
            raise ValueError(f"{file.path} is {name}, whose first pooling is known; leave out --pool1-padding")
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
    return width is None or _outputs(found.bound.get(layer)) == width


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
        is_open = not file.named and _outputs(found.bound[found.top[-1]]) != 1000
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
    name = PAPER.get(nearest.architecture.name, nearest.architecture.name)
    problems = [
        *nearest.problems,
        *swapped,
        *(f"{place} is an array that belongs to no layer" for place in file.unlisted),
    ]
    raise ValueError(f"{file.path} is not a complete {name}: {'; '.join(problems)}")


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
    absent = set(found.architecture.top) - set(found.top)
    shapes = _shapes(found, found.architecture.size)
    last = ""
    for entry in found.entries:
        if entry.name in absent:
            continue
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


# Shapes


def _shapes(found: Agreement, size: tuple[int, int], config: Mapping[str, Any] | None = None) -> dict[str, Shape]:
    """Return the shape of each layer's output, channels last, at an input size."""
    entries = found.entries if config is None else entries_of(config)
    shapes: dict[str, Shape] = {}
    for entry in entries:
        if entry.name in found.architecture.top and entry.name not in found.top:
            continue
        if entry.kind == "InputLayer":
            shapes[entry.name] = (*size, 3)
        else:
            shapes[entry.name] = _shape_after(entry, [shapes[one] for one in entry.inputs], found.bound.get(entry.name))
    return shapes


def _shape_after(entry: Entry, shapes: Sequence[Shape], layer: KerasLayer | None) -> Shape:
    kind, settings, shape = entry.kind, entry.settings, shapes[0]
    if isinstance(layer, Joined):
        inner = layer.within(entry)
        for each in entries_of({"config": settings}):
            shape = _shape_after(each, [shape], inner.get(each.name))
        return shape
    if kind in ("GlobalAveragePooling2D", "GlobalMaxPooling2D"):
        return (1, 1, shape[-1]) if settings.get("keepdims") else shape[-1:]
    if kind == "Flatten":
        return (prod(shape),)
    if kind == "Reshape":
        return _reshaped(settings["target_shape"], shape)
    if kind == "Dense":
        return (*shape[:-1], _outputs(layer) or 0)
    if kind == "SplitTensor":
        return (*shape[:-1], shape[-1] // 2)
    if kind in ("Concatenate", "ops.Concatenate"):
        return (*shape[:-1], sum(one[-1] for one in shapes))
    if len(shape) != 3:
        return shape
    if kind in ("ZeroPadding2D", "Cropping2D"):
        sign = 1 if kind == "ZeroPadding2D" else -1
        edges = edges_of(settings["padding" if sign == 1 else "cropping"])
        return (shape[0] + sign * sum(edges[0]), shape[1] + sign * sum(edges[1]), shape[2])
    window = pair_of(settings.get("kernel_size") or settings.get("pool_size") or 1)
    strides = pair_of(settings.get("strides") or settings.get("pool_size") or 1)
    less = [0, 0] if settings.get("padding") == "same" else [
        (side - 1) * rate for side, rate in zip(window, pair_of(settings.get("dilation_rate") or 1), strict=True)
    ]  # fmt: skip
    if "kernel_size" in settings or "pool_size" in settings:
        sides = [-(-(side - loss) // step) for side, loss, step in zip(shape, less, strides, strict=False)]
        return (*sides, _outputs(layer) or shape[-1])
    return tuple(max(sides) for sides in zip(*shapes, strict=True)) if len({len(one) for one in shapes}) == 1 else shape


def _reshaped(target: Sequence[int], shape: Shape) -> Shape:
    """Return the target of a Reshape, its largest side such that it fits: that is the number of channels or classes."""
    target, total = list(target), prod(shape)
    if -1 in target or prod(target) != total:
        place = target.index(-1) if -1 in target else target.index(max(target))
        target[place] = total // max(1, prod(target[:place] + target[place + 1 :]))
    return tuple(target)


def _outputs(layer: KerasLayer | None) -> int | None:
    """Return the output channels of a convolution or dense layer."""
    if layer is None:
        return None
    if "pointwise_kernel" in layer.arrays:
        return layer.arrays["pointwise_kernel"].shape[-1]
    kernel = layer.arrays.get("kernel", layer.arrays.get("depthwise_kernel"))
    if kernel is None:
        return None
    if class_of(layer) == "DepthwiseConv2D":
        return kernel.shape[2] * kernel.shape[3]
    return kernel.shape[0] if layer.kernel_order == "oihw" else kernel.shape[-1]


# Derivation


class _Deriving:
    """Derives the config of one file."""

    def __init__(self, file: KerasFile, found: Agreement, wishes: Wishes, questions: Questions) -> None:
        self.file, self.found, self.wishes, self.questions = file, found, wishes, questions
        self.architecture = found.architecture
        self.notes: list[str] = []
        absent = set(self.architecture.top) - set(found.top)
        self.ends = [entry for entry in found.entries if entry.name not in absent][-1]  # the network's last layer
        named = "avg_pool" in self.architecture.top or self.architecture.name.startswith("MobileNetV3")
        self.head_layers = found.rest = list(with_kinds(found.rest, named=named))
        self.backend, chosen = settle_backend(file, wishes, questions)
        self.notes += chosen
        self.data_format = self._format()

    def derived(self) -> Derived:
        file, found, wishes = self.file, self.found, self.wishes
        network = PAPER.get(self.architecture.name, self.architecture.name)
        if not file.named:
            self.notes.insert(0, f"{network} is inferred from the number and shapes of the layers, which have no names")
        if found.front:
            self.notes += listed_front(found.front, wishes, self.questions)
        size = self._size()
        shapes = _shapes(found, size, self.architecture.sized(size))
        if min(shapes[self.ends.name][:-1], default=1) < 1:
            raise ValueError(f"{file.path}: pictures of {size[0]}x{size[1]} pixels are too small for the network")
        units = _outputs(
            found.bound.get(next((name for name in reversed(found.top) if _outputs(found.bound[name])), ""))
        )
        head = self._head(shapes[self.ends.name])
        if wishes.hidden_activation is not None and not head.uses_hidden:
            raise ValueError(f"{file.path}: no activation of its head is open; leave out --hidden-activation")
        self.notes += head.notes
        top_activation = self._top_activation(units, bool(self.head_layers))
        config = self._config(size, shapes, head, top_activation)
        return Derived(config, self.notes, self._wishes(units, head), network)

    def _wishes(self, units: int | None, head: Head) -> Wishes:
        """Return the options for `plan_graph`: those answered here left out, a released network's rule added."""
        wishes = replace(self.wishes, hidden_activation=None, pool1_padding=None, input_size=None)
        own = [op for op in head.ops if op.layer is not None and op.layer.arrays]
        released = not own and (units in (None, 1000) or _is_convnets(self.found)) and not self.found.front
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
        orders = {layer.kernel_order for layer in self.file.weighted} - {None}
        order: Any = "oihw" if orders == {"oihw"} else "hwio"
        shapes = _shapes(self.found, self.architecture.size)
        flattens = any(
            prod(shapes[entry.inputs[0]][:-1]) > 1
            for entry in self.found.entries if entry.name in self.found.top and entry.kind == "Flatten"
        )  # fmt: skip
        reads = [layer for layer in self.head_layers if layer.arrays and layer.kind == "Dense"]
        self.rows_of_channels_last = True
        if not (flattens or reads):
            return "channels_first" if order == "oihw" else self.wishes.data_format or "channels_last"
        permuted, found, chosen = settle_rows(self.file, order, self.wishes, self.questions)
        if flattens or any(layer.kind == "Flatten" for layer in self.head_layers):
            self.notes += chosen
        self.rows_of_channels_last = permuted
        return found or "channels_last"

    def _size(self) -> tuple[int, int]:
        """Return the input size: as given, as the rows behind a Flatten tell, or the network's own."""
        given, own = self.wishes.input_size, self.architecture.size
        if given is not None:
            return given
        found = self.found
        end = self.ends.name
        first, shape = None, None
        shapes = _shapes(found, own)
        for entry in found.entries:  # a Flatten of the network's own top
            if entry.name in found.top and entry.kind == "Flatten" and len(shapes[entry.inputs[0]]) == 3:
                shape = shapes[entry.inputs[0]]
                readers = [one.name for one in found.entries if entry.name in one.inputs and one.name in found.bound]
                first = found.bound[readers[0]] if readers else None
                if first is None:  # the head's own dense layer reads it
                    first = next((one for one in self.head_layers if one.arrays and one.kind == "Dense"), None)
        if first is None and len(shapes[end]) == 3:
            dense = next(
                (place for place, one in enumerate(self.head_layers) if one.arrays and one.kind == "Dense"), None
            )
            if dense is not None:
                before = [one for one in self.head_layers[:dense] if one.kind not in IDENTITIES] if ordered(
                    self.file
                ) else [one for one in self.head_layers if not one.arrays and one.kind not in IDENTITIES]  # fmt: skip
                rows = self.head_layers[dense].arrays["kernel"].shape[0]
                kinds = {one.kind for one in before if not one.arrays}
                hidden = not kinds and rows != shapes[end][-1]
                if hidden or ("Flatten" in kinds and not any("Pooling" in kind for kind in kinds)):
                    first, shape = self.head_layers[dense], shapes[end]
        if first is None or shape is None:
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
        if found.whole_top or rows % channels:
            if side * side * channels != rows:
                raise ValueError(
                    f"{self.file.path} is not a complete {PAPER.get(self.architecture.name, self.architecture.name)}:"
                    f" {first.name} has {rows} rows, but a {channels}x{shape[0]}x{shape[1]} block flattens to"
                    f" {prod(shape)}"
                )
        elif side * side * channels != rows:
            reason = f"it has a head that reads {rows // channels} cells, which is not a square number"
            self.questions.ask("input_size", reason, "--input-size HEIGHTxWIDTH, in pixels")
            cells = (1, rows // channels)
        more = _shapes(found, (own[0] + 320, own[1] + 320))[end if end not in found.top else found.base[-1].name]
        base = _shapes(found, own)[end if end not in found.top else found.base[-1].name]
        stride = 320 // (more[0] - base[0])
        height, width = (own[axis] + stride * (cells[axis] - base[axis]) for axis in (0, 1))
        self.notes.append(
            f"pictures are assumed to have {height}x{width} pixels, as {first.name} reads {cells[0]}x{cells[1]} cells;"
            " change it with --input-size"
        )
        return height, width

    def _hides(self) -> bool:
        """Return whether the file lists only arrays of the model that holds the network."""
        return ordered(self.file) and bool(self.found.path)

    def _head(self, shape: Shape) -> Head:
        last = self.ends
        activation = last.settings.get("activation")
        positive = activation in POSITIVE or last.kind in ("ReLU", "MaxPooling2D") or self._joins_positive(last)
        place = Place(shape, self.found.path, positive, self._hides())
        reader = HeadReader(
            self.file, self.head_layers, place, self.wishes.hidden_activation, self._output,
            ordered=ordered(self.file),
        )  # fmt: skip
        return reader.head()

    def _joins_positive(self, entry: Entry) -> bool:
        """Return whether a Concatenate or pooling joins outputs of ReLUs."""
        entries = {one.name: one for one in self.found.entries}
        waiting = [entry.name]
        while waiting:
            one = entries[waiting.pop()]
            if one.kind in ("ReLU",) or one.settings.get("activation") in POSITIVE:
                continue
            if one.kind not in ("Concatenate", "MaxPooling2D", "AveragePooling2D", "Dropout"):
                return False
            waiting.extend(one.inputs)
        return True

    def _output(self, units: int, listed: str | None) -> str:
        """Return the setting of the output activation."""
        activation, _ = settle_activation(self.file, _Ending(units, listed), self.wishes, self.questions)
        return {"none": "linear"}.get(activation, activation)

    def _top_activation(self, units: int | None, goes_on: bool) -> str | None:
        """Return the activation of the network's own top, if the file may have another."""
        own = [layer for layer in self.head_layers if layer.arrays and layer.kind == "Dense"]
        if own:
            ending = _Ending(own[-1].arrays["kernel"].shape[-1], self._listed_output())
        else:
            listed = [self.found.bound[name].kind.lower() for name in self.found.top[-1:] if name in self.found.bound]
            ending = _Ending(units, next((kind for kind in listed if kind in ("softmax", "sigmoid")), None))
        if not own and (units is None or not self.found.whole_top):
            if self.wishes.activation is not None:
                settle_activation(self.file, _Ending(None, None), self.wishes, self.questions)
            return None
        known = self.found.whole_top and units == 1000 and not own
        activation, chosen = settle_activation(self.file, ending, self.wishes, self.questions, known=known)
        self.notes += chosen
        return None if own or goes_on else {"none": "linear"}.get(activation, activation)

    def _listed_output(self) -> str | None:
        """Return the output activation that the list names."""
        dense = max(place for place, layer in enumerate(self.head_layers) if layer.arrays and layer.kind == "Dense")
        behind = self.head_layers[dense + 1 :] if ordered(self.file) else self.head_layers
        kinds = {layer.kind.lower() for layer in behind if not layer.arrays}
        return next((kind for kind in ("softmax", "sigmoid") if kind in kinds), None)

    # The config

    def _config(self, size: Any, shapes: Mapping[str, Shape], head: Head, top_activation: str | None) -> dict[str, Any]:
        config = self.architecture.sized(size)
        writer = _Writer(self.file, self.found, self.data_format, rows_last=self.rows_of_channels_last)
        front = [Op("Identity", {}, layer, layer.parents) for layer in self.found.front]
        result = writer.model(config, shapes, front, head.ops, size, top_activation)
        if self.backend is not None:
            result["backend"] = self.backend
        return result


def _is_convnets(found: Agreement) -> bool:
    return found.architecture.release.startswith(convnets_keras.RELEASE)


@dataclass(frozen=True)
class _Ending:
    """What `settle_activation` asks of a head."""

    units: int | None
    activation: str | None


class _Writer:
    """Writes the config of a model: the network's layers under the file's names, with the head behind them."""

    def __init__(self, file: KerasFile, found: Agreement, data_format: str, *, rows_last: bool) -> None:
        self.file, self.found, self.first = file, found, data_format == "channels_first"
        self.format, self.rows_last = data_format, rows_last
        self.taken: dict[Path, set[str]] = defaultdict(set)
        for layer in file.layers:
            self.taken[layer.parents].add(layer.name)

    def model(
        self, config: Mapping[str, Any], shapes: Mapping[str, Shape], front: Sequence[Op], head: Sequence[Op],
        size: tuple[int, int], top_activation: str | None,
    ) -> dict[str, Any]:  # fmt: skip
        self.config, self.shapes, self.size, self.top_activation = config, shapes, size, top_activation
        items: list[tuple[Path, Op | None]] = [(op.path, op) for op in front]
        items += [(self.found.path, None), *((op.path, op) for op in head)]
        entry = self._level((), items, (*size, 3))
        return {"class_name": "Functional", "config": entry["config"]}

    def _level(self, path: Path, items: Sequence[tuple[Path, Op | None]], shape: Shape | None) -> dict[str, Any]:
        """Return the entry of the model at `path`."""
        listed = next((layer.name for layer in self.file.layers
                       if layer.parents == path and layer.kind == "InputLayer"), None)  # fmt: skip
        start = listed or self._free(path, "input_layer")
        settings: dict[str, Any] = {"name": start}
        if shape is not None:
            settings["batch_shape"] = [None, *((shape[2], *shape[:2]) if self.first else shape)]
        layers: list[dict[str, Any]] = [
            {**LAYER, "class_name": "InputLayer", "name": start, "config": settings, "inbound_nodes": []}
        ]
        at = start
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
                if op is None:
                    added = self._network(path, at)
                    layers += added
                    at = added[-1]["name"]
                else:
                    layers.append(self._entry(path, op, at))
                    at = layers[-1]["name"]
        name = path[-1] if path else self.config["config"].get("name", "model")
        own = {"name": name, "layers": layers, "input_layers": [[start, 0, 0]], "output_layers": [[at, 0, 0]]}
        return {**LAYER, "class_name": "Functional", "name": name, "config": own}

    def _free(self, path: Path, name: str) -> str:
        while name in self.taken[path]:
            name += "_"
        self.taken[path].add(name)
        return name

    def _entry(self, path: Path, op: Op, at: str) -> dict[str, Any]:
        name = op.layer.name if op.layer is not None else self._free(path, f"{op.kind.lower()}_of_map")
        settings = {"name": name, **op.settings}
        if op.kind == "Flatten":
            settings |= self._rows()
        elif op.kind == "BatchNormalization" and self.first and settings.get("axis") == -1 and self._on_map(op):
            settings["axis"] = 1
        return {**LAYER, "class_name": op.kind, "name": name, "config": settings, "inbound_nodes": [_call(at)]}

    def _on_map(self, op: Op) -> bool:
        """Return whether a listed normalisation stands before the layer that reads the map."""
        names = [layer.name for layer in self.found.rest]
        readers = [
            place for place, layer in enumerate(self.found.rest) if layer.kind in ("Flatten",) or "Global" in layer.kind
        ]
        return bool(readers) and op.layer is not None and names.index(op.layer.name) < readers[0]

    def _rows(self) -> dict[str, str]:
        """Return the setting of a Flatten that gives the rows of the dense kernel behind it."""
        if self.first:
            return {"data_format": "channels_first" if self.rows_last else "channels_last"}
        return {"data_format": "channels_last"}

    def _network(self, path: Path, at: str) -> list[dict[str, Any]]:
        """Return the network's layers that the file has, reading `at`."""
        found = self.found
        names: dict[str, str] = {}
        result: list[dict[str, Any]] = []
        absent = set(found.architecture.top) - set(found.top)
        complete = ordered(self.file) is False or not found.path
        last = found.top[-1] if found.whole_top else None
        for entry in entries_of(self.config):
            if entry.kind == "InputLayer":
                names[entry.name] = at
                continue
            if entry.name in absent:
                continue
            layer = found.bound.get(entry.name)
            if layer is None and complete and not entry.kind.startswith("ops."):
                names[entry.name] = names[entry.inputs[0]]  # dropout that the file does not list
                continue
            name = layer.name if layer is not None else self._free(path, entry.name)
            raw = {**LAYER, **entry.raw, "name": name, "config": self._settings(entry, name)}
            if entry.name == last and self.top_activation is not None:
                raw["config"] = self._ending(entry, raw["config"])
            raw["inbound_nodes"] = _renamed(entry.raw["inbound_nodes"], names)
            result.append(raw)
            names[entry.name] = name
            for more in found.extra.get(entry.name, []):
                op = Op(more.kind, {}, more, path)
                result.append(self._entry(path, op, names[entry.name]))
                names[entry.name] = more.name
        return result

    def _ending(self, entry: Entry, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the settings of the last layer with the output activation."""
        own = settings.get("activation")
        if entry.kind in ("Dense", "Activation", "Conv2D") and own is not None:
            return {**settings, "activation": self.top_activation}
        return settings

    def _settings(self, entry: Entry, name: str) -> dict[str, Any]:
        """Return a layer's settings in the file's data format, of the size that its input has."""
        settings = {**entry.settings, "name": name}
        layer = self.found.bound.get(entry.name)
        if settings.get("groups", 1) > 1 and layer is not None:  # a group for each channel, in ConvNeXt
            settings["groups"] = _outputs(layer)
        if isinstance(layer, Joined):
            held = layer.within(entry)
            settings["layers"] = [
                {**raw, "config": {**raw["config"], "name": held[raw["config"]["name"]].name}}
                for raw in settings["layers"]
            ]
        before = self.shapes[entry.inputs[0]]
        if entry.kind == "Reshape":
            target = list(_reshaped(settings["target_shape"], before))
            settings["target_shape"] = [target[-1], *target[:-1]] if self.first and len(target) == 3 else target
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
    return {"args": [_tensor(source)], "kwargs": {}}


def _tensor(source: str) -> dict[str, Any]:
    return {"class_name": "__keras_tensor__", "config": {"keras_history": [source, 0, 0]}}


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Return the arguments of calls with other names of the layers that they read."""
    if isinstance(value, list | tuple):
        return [_renamed(each, names) for each in value]
    if not isinstance(value, Mapping):
        return value
    if value.get("class_name") == "__keras_tensor__":
        return _tensor(names[value["config"]["keras_history"][0]])
    return {key: _renamed(each, names) for key, each in value.items()}


def listed_front(front: Sequence[KerasLayer], wishes: Wishes, questions: Questions) -> list[str]:
    """Return notes on layers that a weights file lists before the first convolution.

    The preprocessing that they are part of is asked.
    """
    names = [layer.name for layer in front]
    if wishes.preprocessing is None:
        reason = f"it lists {few(names)} before the first convolution, but not what these layers do"
        questions.ask("preprocessing", reason, "the whole preprocessing with --preprocessing")
    return _prepares(names)


def _prepares(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    return [f"{few(names)} before the first convolution is assumed to be part of the preprocessing you named"]


# The file with a config


def read_architecture(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a model's `to_json()`, of any version of Keras.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no JSON, or no config of a model.
    """
    try:
        return parse(read_text(path, max_bytes=MOST_JSON))
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}; write the model's to_json() to it") from None


def with_architecture(file: KerasFile, path: str | os.PathLike[str]) -> KerasFile:
    """Return a file with the config that the user gives for it.

    Raises:
        OSError: the architecture cannot be read.
        ValueError: the file holds a config itself, or has other layers.
    """
    if file.config is not None:
        raise ValueError(f"{file.path} holds its model's config; leave out the architecture")
    config = read_architecture(path)
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
    for parents, layer in _laid_out(described, ()):
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


def _laid_out(described: Described, parents: Path) -> Iterator[tuple[Path, Described]]:
    for layer in described.layers or ():
        if layer.layers is None:
            yield parents, layer
        else:
            yield from _laid_out(layer, (*parents, layer.name))


def _has_arrays(layer: Described) -> bool:
    if layer.kind == "Normalization":
        return layer.config.get("mean") is None
    return layer.kind in HOLDS or layer.kind == "BatchNormalization"


def _bound(file: KerasFile, described: Described) -> dict[tuple[Path, str], KerasLayer]:
    """Return (parents, name) in the config -> the file's layer with arrays."""
    wanted = [(parents, layer) for parents, layer in _laid_out(described, ())]
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
    slots = [(parents, layer) for parents, layer in wanted if _has_arrays(layer)]
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

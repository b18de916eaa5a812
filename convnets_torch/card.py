"""The card in the header of a safetensors file: which network the weights belong to, and how to use it.

Reading a card does not import torch, so `info` is fast.

A card may also store digests of the pictures that a network was trained on: the first 6 bytes of the sha256 of each
file, for up to 32,768 training and 8,192 validation pictures. Of more pictures it keeps the smallest digests, a uniform
sample: any digest in their range can be looked up exactly, so the share of known pictures can still be estimated. A
picture that was saved again has different content and is not recognised.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import IO, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from convnets_torch import files
from convnets_torch.files import open_file
from convnets_torch.images.preprocessing import CHANNEL_WORDS, MOST_INPUT, PRESETS, Preprocessing
from convnets_torch.options import FormerAttribute
from convnets_torch.safetensors_io import header_of_opened

SCHEMA = 1  # version of the card; later ones are refused, unknown fields of this one are kept
GRAPH_SCHEMA = 2  # of cards of networks that are given as a graph of layers
GRAPH = "graph"  # name of these networks, and of the argument that holds the layers
KEY = "card"  # key in the metadata of the safetensors header
DIGESTS = "digests"  # field of the digests of training pictures, which may be long

# Limits that no legitimate card exceeds and that bound the time and memory a malicious one can take.
MOST_CARD = 6_500_000  # characters of JSON; room for 22,000 class names of 40 Chinese characters, and all digests
MOST_BESIDE = 100_000  # characters of JSON without class names and digests
MOST_GRAPH = 3_000_000  # characters of JSON of a graph; Keras's largest network takes 160,000
MOST_NUMBERS = 1_000  # values in `arguments`, at all depths; InceptionV3 has 94 widths
MOST_CLASSES = 1_000_000
MOST_NAME = 1_000  # characters of a class name

Activation = Literal["softmax", "sigmoid", "none"]

ROUNDING = 1e-9  # errors below it are rounding of float64, and differ between machines
LONGEST_LAYER = 100  # characters of a layer's name that a proof keeps


@dataclass(frozen=True)
class Proof:
    """The result of `convert --proof`: the converted network computes what the file's own model does.

    Equal conversions have equal proofs, on whatever machine and day.

    Attributes:
        layers: number of layers that were compared, besides the output.
        error: largest error of a layer or the output, relative to its largest value, to two digits; `ROUNDING` stands
            for all smaller ones.
        worst: the source file's layer with this error; "" if the error is below `ROUNDING`.
        tolerance: errors above it fail.
        converter, numpy: versions that computed it, "convnets-torch 0.2.0" and "NumPy 2.3.5".
        network: sha256 of what was proven, as `network_digest`.
        unknown: fields that a newer version wrote; kept when the card is written again.
    """

    layers: int
    error: float
    worst: str
    tolerance: float
    converter: str
    numpy: str
    network: str
    unknown: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """One sentence."""
        bound = f"below {ROUNDING:.0e}" if self.error <= ROUNDING else f"{self.error:.1e}"
        where = f" (at {self.worst})" if self.worst else ""
        layers = "1 layer" if self.layers == 1 else f"{self.layers} layers"
        return (
            f"Proven: {layers} and the output agree with the file's own model, computed independently in NumPy; the"
            f" largest error is {bound} of a layer's largest value{where}."
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Proof:
        """The inverse of `_flat`; raises KeyError or TypeError if a field is missing or invalid."""
        kinds = {"layers": int, "error": float, "tolerance": float}
        known = {entry.name: values.pop(entry.name) for entry in fields(cls) if entry.name != "unknown"}
        for name, value in known.items():
            if type(value) is not kinds.get(name, str):
                raise TypeError(f"the proof's {name} is {value!r:.80}")
        return cls(**known, unknown=values)


@dataclass(frozen=True)
class Quantization:
    """How a quantised network was made, and how well it agrees with the original one on held-out pictures.

    Attributes:
        pictures: number of pictures that it was calibrated on.
        images: number of held-out pictures.
        same_best, same_five: share of them with the same best class, and the same five best classes, 0 to 1.
        largest: largest difference of a probability.
        mean: mean over pictures of the largest difference of a probability.
        wide: names of layers that stayed in floating point.
        unknown: fields that a newer version wrote; kept when the card is written again.
    """

    pictures: int
    images: int
    same_best: float
    same_five: float
    largest: float
    mean: float
    wide: tuple[str, ...]
    unknown: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Quantization:
        """The inverse of `to_dict`; raises KeyError or TypeError if a field is missing or invalid."""
        known = {entry.name: values.pop(entry.name) for entry in fields(cls) if entry.name != "unknown"}
        wide = known.pop("wide")
        for name, value in known.items():
            if type(value) is not (int if name in ("pictures", "images") else float):
                raise TypeError(f"the quantisation's {name} is {value!r:.80}")
        if not isinstance(wide, list) or not all(isinstance(name, str) for name in wide):
            raise TypeError(f"the quantisation's wide layers are {wide!r:.80}")
        return cls(**known, wide=tuple(wide), unknown=values)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return _flat(self)


@dataclass(frozen=True)
class Source:
    """Where weights came from.

    Attributes:
        file: name of the source file, without its folder.
        sha256: sha256 of the source file, in hexadecimal.
        framework: what wrote the file, with the version if known: "Keras 1", "PyTorch".
        backend: the backend that trained the weights, "theano" or "tensorflow"; None if there is none.
        changes: what was done to the arrays, for example "13 arrays flipped".
        converter: name and version of the converter.
        unknown: fields that a newer version wrote; kept when the card is written again.
    """

    file: str
    sha256: str
    framework: str
    backend: str | None
    changes: tuple[str, ...]
    converter: str
    unknown: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Source:
        """The inverse of `_flat`; raises KeyError or TypeError if a field is missing or invalid."""
        known = {entry.name: values.pop(entry.name) for entry in fields(cls) if entry.name != "unknown"}
        changes = known.pop("changes")
        for name, words in (*known.items(), *(("changes", change) for change in changes)):
            if not isinstance(words, str) and (words is not None or name != "backend"):
                raise TypeError(f"the source's {name} is {words!r:.80}, not a string")
        return cls(**known, changes=tuple(changes), unknown=values)


@dataclass(frozen=True)
class Card:
    """Description of weights: all that `load` and preprocessing need.

    Attributes:
        network: a name in `convnets_torch.networks.NETWORKS`.
        arguments: arguments of the network's builder: number of classes (None for weights without a head), widths, and
            the numbers that the architecture alone does not fix (LRN constants, batch-norm epsilon).
        preprocessing: how pictures become network input.
        class_names: "imagenet-1k", the user's own names, or None if unknown.
        activation: function that turns logits into probabilities.
        source: where the weights came from; None for weights that were made here.
        unknown: further fields, written by training (`finetuning`, `probe`, `digests`) or by a newer version; kept when
            the card is written again.
        proof: that the network computes what its source does; None if that was not proven, or the network was changed
            since. `save` leaves out the proof of a changed network.
        quantization: of a network with 8-bit weights; None for others.
    """

    network: str
    arguments: Mapping[str, Any]
    preprocessing: Preprocessing
    class_names: Literal["imagenet-1k"] | tuple[str, ...] | None
    activation: Activation = "softmax"
    source: Source | None = None
    unknown: Mapping[str, Any] = field(default_factory=dict)
    proof: Proof | None = None
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        classes = self.arguments.get("classes", 0)
        numbered = type(classes) is int and classes >= 1
        if not isinstance(self.network, str) or not (numbered or classes is None):
            raise ValueError(
                f"card has network {self.network!r} with {classes!r} classes; give a name, and a number or null"
            )
        if self.classes > MOST_CLASSES:
            raise ValueError(f"card has {classes} classes; the maximum is {MOST_CLASSES}")
        if (self.network == GRAPH) != isinstance(self.arguments.get(GRAPH), Mapping):
            raise ValueError("card has a graph of layers but another network, or the other way round")
        plain = {name: value for name, value in self.arguments.items() if name != GRAPH}
        if (numbers := _count(plain)) > MOST_NUMBERS:
            raise ValueError(f"card has {numbers} numbers and strings in its arguments; the maximum is {MOST_NUMBERS}")
        graph = self.arguments.get(GRAPH)
        read = graph.get("channels", 3) if isinstance(graph, Mapping) else self.preprocessing.channel_count
        if read != self.preprocessing.channel_count or (graph is None and self.network in PRESETS and read != 3):
            raise ValueError(
                f"the card's preprocessing makes {CHANNEL_WORDS[self.preprocessing.channels]} images, but the"
                f" network reads {3 if graph is None else read!r:.80} channels; give as many"
            )
        size = self.arguments.get("size")
        if isinstance(size, list | tuple) and any(type(side) is int and side > MOST_INPUT for side in size):
            raise ValueError(f"card has images of {size} pixels; the maximum of a side is {MOST_INPUT}")
        if self.class_names not in ("imagenet-1k", None) and not (
            isinstance(self.class_names, tuple) and all(isinstance(name, str) for name in self.class_names)
        ):
            raise ValueError(
                f"card has class names {self.class_names!r:.80}; give 'imagenet-1k', null or a list of strings"
            )
        if isinstance(self.class_names, tuple) and (long := max(map(len, self.class_names), default=0)) > MOST_NAME:
            raise ValueError(f"card has a class name of {long} characters; the maximum is {MOST_NAME}")
        if self.activation not in get_args(Activation):
            raise ValueError(f"card has activation {self.activation!r}; known: {', '.join(get_args(Activation))}")
        if classes == 1 and self.activation == "softmax":
            raise ValueError("card has one class and softmax, which is always 1; use sigmoid, or none")
        names = self.classes if self.class_names is None else 1000 if self.imagenet else len(self.class_names)
        if names != self.classes:
            raise ValueError(f"card has {self.classes} classes but {names} class names; give each class one")

    @property
    def imagenet(self) -> bool:
        """Whether the classes are the 1,000 classes of ImageNet."""
        return self.class_names == "imagenet-1k"

    @property
    def classes(self) -> int:
        """Number of classes; 0 for weights without a head."""
        return int(self.arguments["classes"] or 0)

    def to_json(self) -> str:
        """The card as one line of JSON; equal cards give equal text."""
        values = _flat(self) | {
            "schema": GRAPH_SCHEMA if self.network == GRAPH else SCHEMA,
            "preprocessing": self.preprocessing.to_dict(),
            "source": _flat(self.source) if self.source else None,
            "arguments": dict(self.arguments),
        }
        for name in OPTIONAL:
            part = values.pop(name)
            if part is not None:
                values[name] = _flat(part)
        return json.dumps(values, sort_keys=True)

    def __hash__(self) -> int:
        return hash(self.to_json())

    @classmethod
    def from_json(cls, text: str) -> Card:
        """The inverse of `to_json`; ValueError if the text is no card, too long, or of an unknown schema."""
        if len(text) > MOST_CARD:
            raise ValueError(f"the card has {len(text):,} characters, more than {MOST_CARD:,}; shorten its class names")
        try:
            values = files.loads(text)
        except json.JSONDecodeError:
            values = None
        except ValueError as error:
            raise ValueError(f"the card cannot be read ({error}); convert the weights again") from None
        if not isinstance(values, dict) or "schema" not in values:
            raise ValueError("the card has no schema number; convert the weights again")
        schema = values.pop("schema")
        if schema not in (SCHEMA, GRAPH_SCHEMA):
            raise ValueError(
                f"the card has schema {schema!r:.80}, but this version reads up to {GRAPH_SCHEMA}; update"
                " convnets-torch"
            )
        beside = len(json.dumps({**values, "class_names": None, DIGESTS: None}))
        if beside > (MOST_BESIDE if schema == SCHEMA else MOST_GRAPH):
            raise ValueError(
                f"the card has {beside:,} characters beside its class names and digests, more than {MOST_BESIDE:,};"
                " convert the weights again"
            )
        try:
            parts = {name: values.pop(name, None) for name in OPTIONAL}
            named = [entry.name for entry in fields(cls) if entry.name not in ("unknown", *OPTIONAL)]
            known = {name: values.pop(name) for name in named}
            known |= {name: None if part is None else OPTIONAL[name].from_dict(part) for name, part in parts.items()}
            known["preprocessing"] = Preprocessing.from_dict(known["preprocessing"])
            if known["source"] is not None:
                known["source"] = Source.from_dict(known["source"])
            if isinstance(known["class_names"], list):
                known["class_names"] = tuple(known["class_names"])
            known["arguments"] = {key: _tuples(value) for key, value in known["arguments"].items()}
            return cls(**known, unknown=values)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the card cannot be read ({error}); convert the weights again") from None


OPTIONAL: Mapping[str, type[Proof] | type[Quantization]] = {"proof": Proof, "quantization": Quantization}


def _tuples(value: Any) -> Any:
    """Convert lists to tuples, at every depth."""
    if isinstance(value, Mapping):
        return {key: _tuples(each) for key, each in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _count(value: Any) -> int:
    """Number of scalars and lists in a value, at every depth."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    return 1 + sum(map(_count, value)) if isinstance(value, list | tuple) else 1


def _flat(entry: Card | Source | Proof | Quantization) -> dict[str, Any]:
    """All fields of a card or of a part of it, including the unknown ones."""
    known = {field.name: getattr(entry, field.name) for field in fields(entry) if field.name != "unknown"}
    return {**entry.unknown, **known}


def network_digest(card: Card, arrays: Mapping[str, NDArray[Any]]) -> str:
    """sha256 of what a network computes: its name, arguments, preprocessing and parameters.

    Args:
        card: the network's card.
        arrays: parameter -> values; the bytes count, not the dtype.
    """
    digest = hashlib.sha256()
    about = [card.network, dict(card.arguments), card.preprocessing.to_dict(), sorted(arrays)]
    digest.update(json.dumps(about, sort_keys=True).encode())
    for _, array in sorted(arrays.items()):
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def read_card(path: str | os.PathLike[str]) -> Card:
    """Read the card from the header of a safetensors file, without the weights.

    Raises:
        OSError: the file is missing, a folder, or cannot be read.
        ValueError: it is not a safetensors file, is truncated, or has no card.

    >>> read_card("alexnet.safetensors").source.backend
    'theano'
    """
    with open_file(path) as file:
        return card_of_opened(file, path)


def card_of_opened(file: IO[bytes], path: str | os.PathLike[str]) -> Card:
    """`read_card` of an open file, from which the arrays can be read too; `path` is its name in messages."""
    metadata = header_of_opened(file, path).get("__metadata__")
    text = metadata.get(KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise ValueError(
            f"{path} has no card, so its network and preprocessing are unknown;"
            " convert the original weights with `convnets-torch convert`, or set `network.card` and `save` it"
        )
    try:
        return Card.from_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


BYTES = 6  # of a digest: one of a million other pictures matches one of 32,768 with a probability of 1 in 8,000
MOST = {"train": 1 << 15, "val": 1 << 13}  # maximum number of digests of each side


@dataclass(frozen=True, eq=False)
class Learnt:
    """Which of N pictures a network was trained on, or was validated on to choose its best epoch.

    Attributes:
        train, val: (N,) bool, the pictures known to be among the training and the validation pictures.
        train_checked, val_checked: how many of the N could be looked up: all, unless the card keeps a sample.
    """

    train: NDArray[np.bool_]
    val: NDArray[np.bool_]
    train_checked: int
    val_checked: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "train": int(self.train.sum()),
            "train_checked": self.train_checked,
            "validation": int(self.val.sum()),
            "validation_checked": self.val_checked,
        }

    remarks = FormerAttribute("notes")

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on known pictures, which make errors look too low; empty if there are none."""
        found = []
        if self.train.any():
            known = _known_pictures(self.train, self.train_checked)
            found.append(
                f"the network was trained on {known}, so its errors are lower than on new ones; evaluate it on"
                " pictures that it has never seen"
            )
        if self.val.any():
            known = _known_pictures(self.val, self.val_checked)
            found.append(
                f"the network's best epoch was chosen by {known}, so its errors may be a little too low; keep a"
                " third set of pictures to evaluate on"
            )
        return tuple(found)


def with_learnt(card: Card, train: Iterable[str], val: Iterable[str] = ()) -> Card:
    """Return the card with digests of further pictures, given their sha256 in hexadecimal.

    Earlier digests are kept, because the network's features still depend on those pictures. `val` are the validation
    pictures that decided the best epoch.
    """
    kept = {}
    for name, new in (("train", train), ("val", val)):
        cut = np.frombuffer(b"".join(bytes.fromhex(each)[:BYTES] for each in new), np.uint8).reshape(-1, BYTES)
        every = np.unique(np.concatenate([_integers(cut), _kept_digests(card, name)]))[: MOST[name]]
        packed = every.astype(">u8").view(np.uint8).reshape(-1, 8)[:, 8 - BYTES :]
        kept[name] = base64.b64encode(packed.tobytes()).decode()
    return replace(card, unknown={**card.unknown, DIGESTS: kept})


def find_learnt(card: Card, digests: Sequence[str | None]) -> Learnt:
    """Look up which pictures a network was trained on.

    Args:
        card: card of the network, with digests; see `keeps_digests`.
        digests: sha256, in hexadecimal, of the content of each of N pictures; None for unreadable ones.

    Raises:
        ValueError: the card's digests are damaged.

    >>> from hashlib import sha256
    >>> from convnets_torch.card import read_card
    >>> one, other = (sha256(name).hexdigest() for name in (b"one", b"other"))
    >>> find_learnt(with_learnt(read_card("alexnet.safetensors"), [one]), [other, one]).train.tolist()
    [False, True]
    """
    readable = np.array([each is not None for each in digests], bool)
    data = b"".join(bytes.fromhex(each or "0" * 2 * BYTES)[:BYTES] for each in digests)
    numbers = _integers(np.frombuffer(data, np.uint8).reshape(-1, BYTES))
    found: dict[str, tuple[NDArray[np.bool_], int]] = {}
    for name, most in MOST.items():
        kept = _kept_digests(card, name)
        within = readable if len(kept) < most else readable & (numbers <= kept.max())
        found[name] = readable & np.isin(numbers, kept), int(within.sum())
    (train, train_checked), (val, val_checked) = found["train"], found["val"]
    return Learnt(train, val & ~train, train_checked, val_checked)


def keeps_digests(card: Card) -> bool:
    """Whether the card has digests of training pictures."""
    return DIGESTS in card.unknown


def _known_pictures(known: NDArray[np.bool_], checked: int) -> str:
    some, every = int(known.sum()), len(known)
    words = f"{some} of these {every} pictures" if every > 1 else "this picture"
    if checked < every:
        words = f"{some} of the {checked} pictures here that its card's sample covers, so on some {some / checked:.0%}"
    return words


def _integers(rows: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Convert (N, BYTES), big-endian, to integers."""
    wide = np.zeros((len(rows), 8), np.uint8)
    wide[:, 8 - BYTES :] = rows
    return wide.view(">u8").reshape(-1).astype(np.uint64)


def _kept_digests(card: Card, name: str) -> NDArray[np.uint64]:
    if not keeps_digests(card):
        return np.zeros(0, np.uint64)
    try:
        data = base64.b64decode(card.unknown[DIGESTS][name], validate=True)
        return _integers(np.frombuffer(data, np.uint8).reshape(-1, BYTES))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(
            "the card's digests of training pictures are damaged, so it is unknown whether the network was trained on"
            " these pictures; train it again, or evaluate it with care"
        ) from None

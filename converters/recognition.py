"""Which network a Keras file holds: its convolutional part by the names or the number of its layers, and the rest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from converters.keras_file import KerasFile, KerasLayer
from converters.names import LINEAGES, Lineage

LEAST_AGREEMENT = 0.5  # of the names of a network's layers and the file's, for the network to be named in the refusal


@dataclass(frozen=True)
class Found:
    """A file's layers, sorted into a network's.

    Attributes:
        lineage: whose names and architecture they are.
        base: name in the lineage's table -> layer, of the convolutional part.
        rest: the other layers with weights, in the order of the file: a head.
        standard_head: whether the rest goes by the lineage's own names of its head, or has as many dense layers in a
            file without names.
    """

    lineage: Lineage
    base: dict[str, KerasLayer]
    rest: tuple[KerasLayer, ...]
    standard_head: bool


def recognise(file: KerasFile) -> Found:
    """Sort a file's layers into those of the network that they resemble most.

    Raises:
        ValueError: they resemble none, or a network that goes by a known name and is another.
    """
    _refuse_doubles(file)
    _refuse_keras_1_inception(file)
    found = _by_name(file) if file.named else None
    found = found or _by_number(file)
    if found is None:
        raise ValueError(
            f"{file.path}: the network is not known here (known: {', '.join(_networks())});"
            f" its layers with weights are: {_listed(file) or 'none'}"
        )
    return found


def _networks() -> list[str]:
    return sorted({lineage.network for lineage in LINEAGES})


def _listed(file: KerasFile) -> str:
    shown = [f"{layer.name} {' '.join(str(array.shape) for array in layer.arrays.values())}" for layer in file.weighted]
    return ", ".join(shown[:20]) + (f", ... ({len(shown)})" if len(shown) > 20 else "")


def base_names(lineage: Lineage) -> list[str]:
    """Their names of the layers of the convolutional part."""
    return [name for module, names in lineage.layers.items() if not module.startswith("head.") for name in names]


def head_names(lineage: Lineage) -> list[str]:
    """Their names of the layers of the standard head."""
    return [name for module, names in lineage.layers.items() if module.startswith("head.") for name in names]


def _by_name(file: KerasFile) -> Found | None:
    names = {layer.name for layer in file.weighted}

    def agreement(lineage: Lineage) -> float:
        wanted = {*base_names(lineage), *head_names(lineage)}
        return len(wanted & names) / len(wanted | names)

    named = [lineage for lineage in LINEAGES if not lineage.automatic]
    best = max(named, key=agreement)
    if agreement(best) < LEAST_AGREEMENT and not set(base_names(best)) <= names:
        return None
    wanted = set(base_names(best))
    counts = Counter(layer.name for layer in file.weighted if layer.name in wanted)
    if doubles := [name for name, count in counts.items() if count > 1]:
        raise ValueError(
            f"{file.path} holds {best.network} more than once ({', '.join(doubles[:3])}, ... in several models); models"
            " of one network are read"
        )
    base = {layer.name: layer for layer in file.weighted if layer.name in wanted}
    rest = tuple(layer for layer in file.weighted if layer.name not in wanted)
    return Found(best, base, rest, _standard(best, [layer.name for layer in rest]))


def _standard(lineage: Lineage, names: list[str]) -> bool:
    """Whether the names are among those of the standard head (one may be missing, which is said later)."""
    head = head_names(lineage)
    return bool(set(names) & set(head)) and len(set(names) & set(head)) * 2 > len(head)


def number(name: str) -> int:
    """The number at the end of an automatic name; the first of a class has none.

    >>> number("conv2d"), number("conv2d_12")
    (0, 12)
    """
    digits = re.search(r"_(\d+)$", name)
    return int(digits[1]) if digits else 0


def _by_number(file: KerasFile) -> Found | None:
    """The network with as many layers of each class; those of the file by their numbers."""
    layers = file.weighted
    counts = Counter(layer.kind for layer in layers)
    for lineage in LINEAGES:
        if file.named and not lineage.automatic:
            continue
        wanted = base_names(lineage)
        kinds = {kind: [name for name in _in_order(lineage, file) if name in wanted and kind_of(name) == kind]
                 for kind in ("Conv2D", "BatchNormalization")}  # fmt: skip
        if not wanted or any(len(names) > counts[kind] for kind, names in kinds.items()):
            continue
        if len(kinds["Conv2D"]) != counts["Conv2D"]:
            continue
        base: dict[str, KerasLayer] = {}
        for kind, names in kinds.items():
            theirs = _sorted(file, [layer for layer in layers if layer.kind == kind])
            base |= dict(zip(names, theirs, strict=False))
        used = {id(layer) for layer in base.values()}
        rest = tuple(layer for layer in layers if id(layer) not in used)
        if not file.named:
            rest = tuple(_sorted(file, rest))
        names = [layer.name for layer in rest]
        kinds_of_rest = [layer.kind for layer in rest]
        standard = (
            kinds_of_rest == ["Dense"] * len(head_names(lineage)) and not any(layer.parents for layer in rest)
            if not file.named
            else _standard(lineage, names)
        )
        return Found(lineage, base, rest, standard)
    return None


def kind_of(name: str) -> str:
    """The class of a layer of a lineage by its name.

    >>> kind_of("bn2a_branch2a"), kind_of("conv2_block1_0_bn"), kind_of("block1_conv1")
    ('BatchNormalization', 'BatchNormalization', 'Conv2D')
    """
    return "BatchNormalization" if re.match(r"bn|batch_normalization", name) or name.endswith("_bn") else "Conv2D"


def _in_order(lineage: Lineage, file: KerasFile) -> Iterable[str]:
    """Names as the file counts: as they were made where layers carry automatic names, else as the model lists them."""
    if file.named and lineage.automatic:
        return sorted(base_names(lineage), key=lambda name: (kind_of(name), number(name)))
    return lineage.order


def _sorted(file: KerasFile, layers: Iterable[KerasLayer]) -> list[KerasLayer]:
    """By their numbers: those of names (the layers of a nested model before its parent's own), or of places."""
    if file.container == "nb_layers":
        return list(layers)
    return sorted(layers, key=lambda layer: (-len(layer.parents), number(layer.name)))


def _refuse_doubles(file: KerasFile) -> None:
    counts = Counter((layer.parents, layer.name) for layer in file.weighted)
    if doubles := [name for (_, name), count in counts.items() if count > 1]:
        raise ValueError(f"{file.path} lists a layer twice ({', '.join(doubles[:5])}); download it again")


def _refuse_keras_1_inception(file: KerasFile) -> None:
    """Convolution with bias, then batch normalisation with gamma, 94 times."""
    convolutions = [layer for layer in file.weighted if layer.kind == "Conv2D"]
    normalised = [layer for layer in file.weighted if layer.kind == "BatchNormalization"]
    if (
        len(convolutions) == 94 == len(normalised)
        and all("bias" in layer.arrays for layer in convolutions)
        and all("gamma" in layer.arrays for layer in normalised)
    ):
        raise ValueError(
            f"{file.path} is the InceptionV3 of Keras 1, which is another network than that of Keras 2 and 3 (biases"
            " and scales, another pooling) and is not read; convert the file of keras-applications instead"
        )

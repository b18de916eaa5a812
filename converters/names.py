"""Layer names in files of other frameworks, and recognition of the network by them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from converters.readers.keras_file import KerasFile, KerasLayer

# our module -> source layers, in order; several are the groups of one convolution, concatenated on the output axis
LayerTable = dict[str, tuple[str, ...]]

VGG_DEPTHS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}


def _vgg(network: str, convolution: str, dense: tuple[str, str, str]) -> LayerTable:
    """`convolution` is a format string of `block`, `number` within it, and `place`, torchvision's module index."""
    table: LayerTable = {}
    for block, depth in enumerate(VGG_DEPTHS[network], 1):
        for number in range(1, depth + 1):
            place = 2 * len(table) + block - 1  # torchvision counts convolutions, ReLUs and a pool after each block
            name = convolution.format(block=block, number=number, place=place)
            table[f"features.conv{block}_{number}"] = (name,)
    return table | {f"head.dense_{number}": (name,) for number, name in enumerate(dense, 1)}


_ALEXNET: LayerTable = {
    "features.conv_1": ("conv_1",),
    "features.conv_2": ("conv_2_1", "conv_2_2"),
    "features.conv_3": ("conv_3",),
    "features.conv_4": ("conv_4_1", "conv_4_2"),
    "features.conv_5": ("conv_5_1", "conv_5_2"),
    **{f"head.dense_{number}": (f"dense_{number}",) for number in (1, 2, 3)},
}


@dataclass(frozen=True)
class Lineage:
    """Layer names of one network in files of one origin.

    Attributes:
        name: "convnets-keras", "keras-applications", "keras-applications-old" or "torchvision".
        network: a name in `convnets_torch.networks.NETWORKS`.
        layers: our module -> source layers, several for the groups of one convolution. Automatically named layers are
            listed with the numbers that a fresh Keras session assigns: "conv2d", "conv2d_1", ...
        order: source layers with weights in the order of Keras's `model.layers`, in which `.weights.h5` numbers the
            layers of each class; empty if no such files exist.
        widths: our convolutions whose output channels are the `widths` of the network's builder, in order.
        head: our modules whose outputs are `hidden` (all but the last) and `classes` of the standard head.
        preset: preprocessing preset of the released weights.
        epsilon: epsilon of ResNet50's batch normalisations, if the file does not specify it.
        automatic: whether Keras named the layers automatically. Their numbers may start at any value; sorted by number,
            the layers of each class are in the order of `layers`.
    """

    name: str
    network: str
    layers: Mapping[str, tuple[str, ...]]
    order: tuple[str, ...]
    widths: tuple[str, ...]
    head: tuple[str, ...]
    preset: str
    epsilon: float | None = None
    automatic: bool = False


def efficientnet_lite0(name: str) -> str:
    """Return our parameter for one of EfficientNet-Lite0's PyTorch file, whose module names begin with underscores.

    >>> efficientnet_lite0("_blocks.3._bn1.running_mean")
    'features.block3.layers.bn1.running_mean'
    >>> efficientnet_lite0("_fc.bias")
    'head.fc.bias'
    """
    if name.startswith("_fc."):
        return f"head.{name[1:]}"
    return re.sub(r"^_", "features.", re.sub(r"^_blocks\.(\d+)\._", r"_block\1.layers.", name))


def _lineage(
    name: str,
    network: str,
    layers: LayerTable,
    widths: list[str],
    order: tuple[str, ...] | None = None,
    *,
    preset: str = "keras-caffe",
    epsilon: float | None = None,
) -> Lineage:
    head = tuple(module for module in layers if module.startswith("head."))
    table = MappingProxyType(dict(layers))
    names = tuple(layer for group in layers.values() for layer in group) if order is None else order
    automatic = network == "inception_v3"
    return Lineage(name, network, table, names, tuple(widths), head, preset, epsilon, automatic)


RESNET50_DEPTHS = (3, 4, 6, 3)


def _resnet50(old: bool) -> LayerTable:
    """Names such as conv2_block1_1_conv and conv2_block1_1_bn; if `old`, res2a_branch2a and bn2a_branch2a."""
    table: LayerTable = {
        "features.conv1_conv": ("conv1" if old else "conv1_conv",),
        "features.conv1_bn": ("bn_conv1" if old else "conv1_bn",),
    }
    for stage, depth in enumerate(RESNET50_DEPTHS, start=2):
        for block in range(1, depth + 1):
            for part in (1, 2, 3, 0) if block == 1 else (1, 2, 3):  # 0 is the shortcut, "branch1" in the old names
                branch = f"{stage}{'abcdef'[block - 1]}_branch" + (f"2{'abc'[part - 1]}" if part else "1")
                module, name = f"features.conv{stage}_block{block}", f"conv{stage}_block{block}_{part}"
                table[f"{module}.conv_{part}"] = (f"res{branch}" if old else f"{name}_conv",)
                table[f"{module}.bn_{part}"] = (f"bn{branch}" if old else f"{name}_bn",)
    return table | {"head.dense_1": ("fc1000" if old else "predictions",)}


def _resnet50_order(old: bool) -> tuple[str, ...]:
    """The table's order, but `model.layers` interleaves a block's shortcut with its third convolution."""
    table = _resnet50(old)
    ordered = []
    for module, (name,) in table.items():
        if not module.endswith(("_0", "_3")):
            ordered.append(name)
        elif module.endswith("conv_3"):
            block = module.removesuffix("conv_3")
            parts = [f"{block}{kind}_{part}" for kind in ("conv", "bn") for part in (0, 3)]
            ordered += [table[part][0] for part in parts if part in table]
    return tuple(ordered)


# For each branch of InceptionV3's blocks, the distance in Keras layers from each convolution to the end of the block:
# convolution, batch normalisation and ReLU are three layers; the fork of mixed9 and mixed10 adds one.
_A = {"branch1x1": (3,), "branch5x5": (6, 3), "branch3x3dbl": (9, 6, 3), "branch_pool": (3,)}
_A_TO_B = {"branch3x3": (3,), "branch3x3dbl": (9, 6, 3)}
_B = {"branch1x1": (3,), "branch7x7": (9, 6, 3), "branch7x7dbl": (15, 12, 9, 6, 3), "branch_pool": (3,)}
_B_TO_C = {"branch3x3": (6, 3), "branch7x7x3": (12, 9, 6, 3)}
_FORK = {"fork.branch1x3": (4,), "fork.branch3x1": (4,)}
_C = {
    "branch1x1": (3,),
    **{"branch3x3": (7,)}, **{f"branch3x3.{name}": value for name, value in _FORK.items()},
    **{"branch3x3dbl": (10, 7)}, **{f"branch3x3dbl.{name}": value for name, value in _FORK.items()},
    "branch_pool": (3,),
}  # fmt: skip
_BLOCKS = (_A, _A, _A, _A_TO_B, _B, _B, _B, _B, _B_TO_C, _C, _C)


def _inception_v3() -> Lineage:
    """Keras sorts `model.layers` by distance from the output, then by creation."""
    convolutions = [(-1, f"features.conv_{number}", 18 - 3 * number) for number in range(1, 6)]  # block, ours, distance
    for block, branches in enumerate(_BLOCKS):
        for branch, distances in branches.items():
            for number, distance in enumerate(distances, start=1):
                convolutions.append((block, f"features.mixed{block}.{branch}.conv_{number}", distance))
    table: LayerTable = {}
    places = []
    for number, (block, module, distance) in enumerate(convolutions):
        normalization = re.sub(r"conv_(\d+)$", r"bn_\1", module)
        for nearer, (ours, kind) in enumerate(((module, "conv2d"), (normalization, "batch_normalization"))):
            table[ours] = (f"{kind}_{number}" if number else kind,)  # Keras's automatic name
            places.append((block, nearer - distance, table[ours][0]))
    order = [name for *_, name in sorted(places, key=lambda place: place[:2])]  # stable sort keeps order of creation
    table["head.dense_1"] = ("predictions",)
    modules = [module for _, module, _ in convolutions]
    return _lineage("keras-applications", "inception_v3", table, modules, (*order, "predictions"), preset="keras-tf")


_RESNET50_WIDTHS = ["features.conv1_conv", *(f"features.conv{stage}_block1.conv_1" for stage in range(2, 6))]


def _torchvision_resnet50() -> LayerTable:
    table: LayerTable = {"features.conv1_conv": ("conv1",), "features.conv1_bn": ("bn1",)}
    for stage, depth in enumerate(RESNET50_DEPTHS, start=2):
        for block in range(depth):
            module, theirs = f"features.conv{stage}_block{block + 1}", f"layer{stage - 1}.{block}"
            if block == 0:
                table[f"{module}.conv_0"] = (f"{theirs}.downsample.0",)
                table[f"{module}.bn_0"] = (f"{theirs}.downsample.1",)
            for part in (1, 2, 3):
                table[f"{module}.conv_{part}"] = (f"{theirs}.conv{part}",)
                table[f"{module}.bn_{part}"] = (f"{theirs}.bn{part}",)
    return table | {"head.dense_1": ("fc",)}


_ALEXNET_WIDTHS = [f"features.conv_{number}" for number in range(1, 6)]  # the convolutions whose channels are `widths`
_VGG_WIDTHS = [f"features.conv{block}_1" for block in range(1, 6)]


def _vggs(
    name: str, convolution: str, dense: tuple[str, str, str], order: tuple[str, ...] | None = None, **more: Any
) -> list[Lineage]:
    return [
        _lineage(name, network, _vgg(network, convolution, dense), _VGG_WIDTHS, order, **more) for network in VGG_DEPTHS
    ]


LINEAGES: tuple[Lineage, ...] = (
    _lineage("convnets-keras", "alexnet", _ALEXNET, _ALEXNET_WIDTHS, preset="original"),
    *_vggs("convnets-keras", "conv{block}_{number}", ("dense_1", "dense_2", "dense_3"), preset="original"),
    *_vggs("keras-applications", "block{block}_conv{number}", ("fc1", "fc2", "predictions")),
    *(
        _lineage(name, "resnet50", _resnet50(old), _RESNET50_WIDTHS, _resnet50_order(old), epsilon=epsilon)
        for name, old, epsilon in (("keras-applications", False, 1.001e-5), ("keras-applications-old", True, 1e-3))
    ),
    _inception_v3(),
)

# Modules of torchvision's published state dicts.
TORCHVISION: tuple[Lineage, ...] = (
    *_vggs(
        "torchvision", "features.{place}", ("classifier.0", "classifier.3", "classifier.6"), (), preset="torchvision"
    ),
    _lineage(
        "torchvision", "resnet50", _torchvision_resnet50(), _RESNET50_WIDTHS, (), preset="torchvision", epsilon=1e-5
    ),
)

LEAST_AGREEMENT = 0.5  # Jaccard index of layer names above which an incomplete file counts as that network


@dataclass(frozen=True)
class Found:
    """A file's layers, assigned to a network.

    Attributes:
        lineage: the recognised names and architecture.
        base: name in the lineage's table -> layer, for the convolutional part.
        rest: all other layers with weights, in file order, which form the head.
        standard_head: whether `rest` has the lineage's names of the standard head or, in a file without names, the same
            number of dense layers.
    """

    lineage: Lineage
    base: dict[str, KerasLayer]
    rest: tuple[KerasLayer, ...]
    standard_head: bool


def recognise(file: KerasFile) -> Found:
    """Recognise the network that a file's layers resemble most, and assign them to it.

    Raises:
        ValueError: they resemble no supported network, or are the InceptionV3 of Keras 1, a different network.
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
    """Return the source names of the convolutional part's layers."""
    return [name for module, names in lineage.layers.items() if not module.startswith("head.") for name in names]


def head_names(lineage: Lineage) -> list[str]:
    """Return the source names of the standard head's layers."""
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
            " with one network are supported"
        )
    base = {layer.name: layer for layer in file.weighted if layer.name in wanted}
    rest = tuple(layer for layer in file.weighted if layer.name not in wanted)
    return Found(best, base, rest, _standard(best, [layer.name for layer in rest]))


def _standard(lineage: Lineage, names: list[str]) -> bool:
    """Return whether most names of the standard head are present (missing ones are reported later)."""
    head = head_names(lineage)
    return bool(set(names) & set(head)) and len(set(names) & set(head)) * 2 > len(head)


def number(name: str) -> int:
    """Return the number at the end of an automatic name; 0 for the first of a class, which has none.

    >>> number("conv2d"), number("conv2d_12")
    (0, 12)
    """
    digits = re.search(r"_(\d+)$", name)
    return int(digits[1]) if digits else 0


def _by_number(file: KerasFile) -> Found | None:
    """Return the network with as many layers of each class, assigning layers by number."""
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
    """Return the class of a lineage's convolutional-part layer by its name.

    >>> kind_of("bn2a_branch2a"), kind_of("conv2_block1_0_bn"), kind_of("block1_conv1")
    ('BatchNormalization', 'BatchNormalization', 'Conv2D')
    """
    return "BatchNormalization" if re.match(r"bn|batch_normalization", name) or name.endswith("_bn") else "Conv2D"


def _in_order(lineage: Lineage, file: KerasFile) -> Iterable[str]:
    """Return names in the file's numbering: by creation for automatic names, else in `model.layers` order."""
    if file.named and lineage.automatic:
        return sorted(base_names(lineage), key=lambda name: (kind_of(name), number(name)))
    return lineage.order


def _sorted(file: KerasFile, layers: Iterable[KerasLayer]) -> list[KerasLayer]:
    """Sort layers by number, those of a nested model before its parent's; Keras 0.x files are already in order."""
    if file.container == "nb_layers":
        return list(layers)
    return sorted(layers, key=lambda layer: (-len(layer.parents), number(layer.name)))


def _refuse_doubles(file: KerasFile) -> None:
    counts = Counter((layer.parents, layer.name) for layer in file.weighted)
    if doubles := [name for (_, name), count in counts.items() if count > 1]:
        raise ValueError(f"{file.path} lists a layer twice ({', '.join(doubles[:5])}); download it again")


def _refuse_keras_1_inception(file: KerasFile) -> None:
    """Raise ValueError for 94 convolutions with bias and 94 batch normalisations with gamma."""
    convolutions = [layer for layer in file.weighted if layer.kind == "Conv2D"]
    normalised = [layer for layer in file.weighted if layer.kind == "BatchNormalization"]
    if (
        len(convolutions) == 94 == len(normalised)
        and all("bias" in layer.arrays for layer in convolutions)
        and all("gamma" in layer.arrays for layer in normalised)
    ):
        raise ValueError(
            f"{file.path} is the InceptionV3 of Keras 1, a different network from that of Keras 2 and 3 (biases, scales"
            " and other pooling), which is not supported; convert the file of keras-applications instead"
        )

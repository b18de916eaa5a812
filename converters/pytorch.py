"""Plan the conversion of PyTorch state dicts, and map parameter names to torchvision's."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from converters.options import named_preprocessing
from converters.plan import Plan, Row, Step, Wishes
from convnets_torch.networks import CATALOG
from convnets_torch.weights import build

VGG_DEPTHS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
RESNET50_DEPTHS = (3, 4, 6, 3)


@dataclass(frozen=True)
class Lineage:
    """Module names of one network in torchvision's published state dicts.

    Attributes:
        network: a name in `convnets_torch.networks.NETWORKS`.
        layers: our module -> theirs.
        widths: our convolutions whose output channels are the `widths` of the network's builder, in order.
        head: our modules whose outputs are `hidden` (all but the last) and `classes` of the standard head.
    """

    network: str
    layers: Mapping[str, str]
    widths: tuple[str, ...]
    head: tuple[str, ...]


def _vgg(network: str) -> Lineage:
    table: dict[str, str] = {}
    for block, depth in enumerate(VGG_DEPTHS[network], 1):
        for number in range(1, depth + 1):
            place = 2 * len(table) + block - 1  # torchvision counts convolutions, ReLUs and a pool after each block
            table[f"features.conv{block}_{number}"] = f"features.{place}"
    head = {f"head.dense_{number}": f"classifier.{place}" for number, place in enumerate((0, 3, 6), 1)}
    widths = tuple(f"features.conv{block}_1" for block in range(1, 6))
    return Lineage(network, table | head, widths, tuple(head))


def _resnet50() -> Lineage:
    table = {"features.conv1_conv": "conv1", "features.conv1_bn": "bn1"}
    for stage, depth in enumerate(RESNET50_DEPTHS, start=2):
        for block in range(depth):
            module, theirs = f"features.conv{stage}_block{block + 1}", f"layer{stage - 1}.{block}"
            if block == 0:
                table[f"{module}.conv_0"] = f"{theirs}.downsample.0"
                table[f"{module}.bn_0"] = f"{theirs}.downsample.1"
            for part in (1, 2, 3):
                table[f"{module}.conv_{part}"] = f"{theirs}.conv{part}"
                table[f"{module}.bn_{part}"] = f"{theirs}.bn{part}"
    widths = ("features.conv1_conv", *(f"features.conv{stage}_block1.conv_1" for stage in range(2, 6)))
    return Lineage("resnet50", table | {"head.dense_1": "fc"}, widths, ("head.dense_1",))


TORCHVISION = (*map(_vgg, VGG_DEPTHS), _resnet50())


def _efficientnet_lite0(name: str) -> str:
    """Return our parameter for one of EfficientNet-Lite0's PyTorch file, whose module names begin with underscores.

    >>> _efficientnet_lite0("_blocks.3._bn1.running_mean")
    'features.block3.layers.bn1.running_mean'
    >>> _efficientnet_lite0("_fc.bias")
    'head.fc.bias'
    """
    if name.startswith("_fc."):
        return f"head.{name[1:]}"
    return re.sub(r"^_", "features.", re.sub(r"^_blocks\.(\d+)\._", r"_block\1.layers.", name))


def torchvision_names(source: Path, plan: Plan) -> dict[str, str]:
    """Return our parameter -> torchvision's, for a VGG with the standard head.

    Only the names are torchvision's; the preprocessing is still the card's (BGR for Keras's weights).

    Raises:
        ValueError: torchvision has no such network.
    """
    lineage = next((one for one in TORCHVISION if one.network == plan.network and one.network.startswith("vgg")), None)
    if lineage is None:
        raise ValueError(
            f"{source} is {plan.network}, but only VGG16 and VGG19 have torchvision's layers; leave out the layout"
        )
    if plan.arguments.get("head") is not None or plan.arguments["classes"] is None or "size" in plan.arguments:
        raise ValueError(f"{source} has another head or input than torchvision's {plan.network}; leave out the layout")
    names = {}
    for step in plan.steps:
        module, _, role = step.row.parameter.rpartition(".")
        names[step.row.parameter] = f"{lineage.layers[module]}.{role}"
    return names


class TensorInfo(NamedTuple):
    """A tensor's shape and dtype as given in a file, in torch's spelling, "float32"."""

    shape: tuple[int, ...]
    dtype: str


def plan_pytorch(path: str | os.PathLike[str], state: dict[str, TensorInfo], wishes: Wishes) -> Plan:
    """Recognise the network of a state dict and check all of it.

    Supported are EfficientNet-Lite0 of its package, and VGG16, VGG19 and ResNet50 of torchvision.

    Args:
        path: path for messages.
        state: the file's tensors by name.

    Raises:
        ValueError: the network is unknown, or arrays are missing, superfluous or of a wrong shape.
    """
    if wishes != Wishes(preprocessing=wishes.preprocessing):
        raise ValueError(
            f"{path} is a PyTorch file; leave out the options for Keras files (backend, data format, padding, ...)"
        )
    if "_conv_stem.weight" in state and "_fc.weight" in state:
        classes = next(iter(state["_fc.weight"].shape), 1)
        arguments = CATALOG["efficientnet_lite0"].standard | {"classes": classes}
        ours = {name: _efficientnet_lite0(name) for name in state if name.startswith("_")}
        return _checked(path, "efficientnet_lite0", arguments, state, ours, wishes.preprocessing)
    lineage = _torchvision(path, state)
    modules = {theirs: module for module, theirs in lineage.layers.items()}
    ours = {}
    for name in state:
        module, _, role = name.rpartition(".")
        if module in modules:
            ours[name] = f"{modules[module]}.{role}"
    return _checked(
        path,
        lineage.network,
        _torchvision_arguments(lineage, state),
        state,
        ours,
        wishes.preprocessing or "torchvision",
    )


def _torchvision(path: str | os.PathLike[str], state: dict[str, TensorInfo]) -> Lineage:
    """Return the torchvision network whose module names match the file's best."""
    found = {name.rpartition(".")[0] for name in state}

    def share(lineage: Lineage) -> float:
        wanted = set(lineage.layers.values())
        return len(wanted & found) / len(wanted | found)

    best = max(TORCHVISION, key=share)
    if share(best) < 0.5:
        held = ", ".join(list(state)[:8]) or "nothing"
        known = ", ".join(("efficientnet_lite0", *(lineage.network for lineage in TORCHVISION)))
        raise ValueError(f"{path}: the network is not known here; its arrays are {held}, ...; known are {known}")
    return best


def _torchvision_arguments(lineage: Lineage, state: dict[str, TensorInfo]) -> dict[str, Any]:
    """Infer the builder's arguments from the shapes; a missing array gives the standard value."""

    def outputs(module: str, standard: int) -> int:
        array = state.get(f"{lineage.layers[module]}.weight")
        return standard if array is None or not array.shape else array.shape[0]

    standard = CATALOG[lineage.network].standard
    modules = {"widths": lineage.widths, "hidden": lineage.head[:-1]}
    arguments: dict[str, Any] = {"classes": outputs(lineage.head[-1], standard["classes"])}
    for name in (name for name in modules if name in standard):  # in this order, which is also the card's
        pairs = zip(modules[name], standard[name], strict=True)
        arguments[name] = tuple(outputs(module, width) for module, width in pairs)
    if lineage.network == "resnet50":
        arguments |= {"epsilon": 1e-5, "pool_padding": True, "stride_in": "3x3", "bias": False}
    return arguments


def _checked(
    path: str | os.PathLike[str],
    network: str,
    arguments: dict[str, Any],
    state: dict[str, TensorInfo],
    ours: dict[str, str],
    preprocessing: str | None,
) -> Plan:
    """Return the plan after checking that `ours` maps the arrays of `state` one-to-one to the parameters."""
    wanted = build(network, arguments).state_dict()
    theirs = {ours: name for name, ours in ours.items()}
    problems = [f"the array for {name} is missing" for name in wanted if name not in theirs]
    problems += [f"{name} is unknown" for name in state if ours.get(name) not in wanted]
    problems += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(wanted[parameter].shape)}"
        for parameter, name in theirs.items()
        if parameter in wanted and state[name].shape != wanted[parameter].shape
    ]
    if problems:
        raise ValueError(f"{path} is not a complete {network}: {'; '.join(problems)}")
    steps = tuple(
        Step(Row(theirs[parameter], parameter, tuple(array.shape), _change(state[theirs[parameter]], array)))
        for parameter, array in wanted.items()
    )
    rule = named_preprocessing(preprocessing, network, build(network, arguments).size)
    return Plan(network, arguments, "PyTorch", None, rule, steps)


def _change(theirs: TensorInfo, ours: Tensor) -> str:
    dtype = str(ours.dtype).removeprefix("torch.")
    return "kept" if theirs.dtype == dtype else f"{theirs.dtype} to {dtype}"

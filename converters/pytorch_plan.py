"""Plan the conversion of a PyTorch state dict."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from torch import Tensor

from converters import names
from converters.names import Lineage
from converters.plans import Plan, Row, Step, Wishes, refuse
from converters.rules import chosen_preprocessing
from convnets_torch.networks import resnet, vgg
from convnets_torch.networks.efficientnet_lite import EPSILON, WIDTHS
from convnets_torch.weights import build


class Told(NamedTuple):
    """What a file says of a tensor; its type is torch's name, "float32"."""

    shape: tuple[int, ...]
    dtype: str


def plan_pytorch(path: str | os.PathLike[str], state: dict[str, Told], wishes: Wishes) -> Plan:
    """Recognise the network of a state dict and check all of it.

    Known are EfficientNet-Lite0 of its package, and VGG16, VGG19 and ResNet50 of torchvision.

    Args:
        path: for messages.
        state: the tensors of the file by name.

    Raises:
        ValueError: the network is not known, or arrays are missing, superfluous or of a wrong shape.
    """
    if wishes != Wishes(preprocessing=wishes.preprocessing):
        raise ValueError(
            f"{path} is a file of PyTorch, which has no backend, data format or padding of Keras; leave these"
            " options out"
        )
    if "_conv_stem.weight" in state and "_fc.weight" in state:
        classes = next(iter(state["_fc.weight"].shape), 1)
        arguments = {"classes": classes, "widths": WIDTHS, "epsilon": EPSILON}
        ours = {name: names.efficientnet_lite0(name) for name in state if name.startswith("_")}
        return _checked(path, "efficientnet_lite0", arguments, state, ours, wishes.preprocessing)
    lineage = _torchvision(path, state)
    modules = {theirs: module for module, (theirs,) in lineage.layers.items()}
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


def _torchvision(path: str | os.PathLike[str], state: dict[str, Told]) -> Lineage:
    """The network whose modules resemble those of the file most."""
    found = {name.rpartition(".")[0] for name in state}

    def share(lineage: Lineage) -> float:
        wanted = {theirs for (theirs,) in lineage.layers.values()}
        return len(wanted & found) / len(wanted | found)

    best = max(names.TORCHVISION, key=share)
    if share(best) < 0.5:
        held = ", ".join(list(state)[:8]) or "nothing"
        known = ", ".join(("efficientnet_lite0", *(lineage.network for lineage in names.TORCHVISION)))
        raise ValueError(f"{path}: the network is not known here; its arrays are {held}, ...; known are {known}")
    return best


def _torchvision_arguments(lineage: Lineage, state: dict[str, Told]) -> dict[str, Any]:
    """The builder's arguments as the shapes suggest them; the standard where an array is missing."""

    def outputs(module: str, standard: int) -> int:
        array = state.get(f"{lineage.layers[module][0]}.weight")
        return standard if array is None or not array.shape else array.shape[0]

    residual = lineage.network == "resnet50"
    standard = resnet.WIDTHS if residual else vgg.WIDTHS
    arguments: dict[str, Any] = {
        "classes": outputs(lineage.head[-1], 1000),
        "widths": tuple(outputs(module, width) for module, width in zip(lineage.widths, standard, strict=True)),
    }
    if residual:
        return arguments | {"epsilon": 1e-5, "pool_padding": True, "stride_in": "3x3", "bias": False}
    hidden = zip(lineage.head[:-1], vgg.HIDDEN, strict=True)
    return arguments | {"hidden": tuple(outputs(module, units) for module, units in hidden)}


def _checked(
    path: str | os.PathLike[str],
    network: str,
    arguments: dict[str, Any],
    state: dict[str, Told],
    ours: dict[str, str],
    preprocessing: str | None,
) -> Plan:
    """The plan, when every array of `state` has its parameter by `ours` and every parameter its array."""
    wanted = build(network, arguments).state_dict()
    theirs = {ours: name for name, ours in ours.items()}
    problems = [f"what becomes {name} is missing" for name in wanted if name not in theirs]
    problems += [f"{name} is not known" for name in state if ours.get(name) not in wanted]
    problems += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(wanted[parameter].shape)}"
        for parameter, name in theirs.items()
        if parameter in wanted and state[name].shape != wanted[parameter].shape
    ]
    refuse(path, network, problems)
    steps = tuple(
        Step(Row(theirs[parameter], parameter, tuple(array.shape), _change(state[theirs[parameter]], array)))
        for parameter, array in wanted.items()
    )
    rule = chosen_preprocessing(network, preprocessing, build(network, arguments).size)
    return Plan(network, arguments, "PyTorch", None, rule, steps)


def _change(theirs: Told, ours: Tensor) -> str:
    dtype = str(ours.dtype).removeprefix("torch.")
    return "kept" if theirs.dtype == dtype else f"{theirs.dtype} to {dtype}"

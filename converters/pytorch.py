"""Plan the conversion of PyTorch state dicts, and map parameter names to torchvision's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from converters import names
from converters.names import TORCHVISION, Lineage
from converters.options import chosen_preprocessing
from converters.plan import Plan, Row, Step, Wishes, refuse
from convnets_torch.networks import CATALOG
from convnets_torch.weights import build


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
        ours = {name: names.efficientnet_lite0(name) for name in state if name.startswith("_")}
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
        wishes.preprocessing or lineage.preset,
    )


def _torchvision(path: str | os.PathLike[str], state: dict[str, TensorInfo]) -> Lineage:
    """Return the torchvision network whose module names match the file's best."""
    found = {name.rpartition(".")[0] for name in state}

    def share(lineage: Lineage) -> float:
        wanted = set(lineage.layers.values())
        return len(wanted & found) / len(wanted | found)

    best = max(names.TORCHVISION, key=share)
    if share(best) < 0.5:
        held = ", ".join(list(state)[:8]) or "nothing"
        known = ", ".join(("efficientnet_lite0", *(lineage.network for lineage in names.TORCHVISION)))
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
        arguments |= {"epsilon": lineage.epsilon, "pool_padding": True, "stride_in": "3x3", "bias": False}
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
    refuse(path, network, problems)
    steps = tuple(
        Step(Row(theirs[parameter], parameter, tuple(array.shape), _change(state[theirs[parameter]], array)))
        for parameter, array in wanted.items()
    )
    rule = chosen_preprocessing(network, preprocessing, build(network, arguments).size)
    return Plan(network, arguments, "PyTorch", None, rule, steps)


def _change(theirs: TensorInfo, ours: Tensor) -> str:
    dtype = str(ours.dtype).removeprefix("torch.")
    return "kept" if theirs.dtype == dtype else f"{theirs.dtype} to {dtype}"

"""Plan the conversion of a PyTorch state dict."""

from __future__ import annotations

import os
from functools import partial

from torch import Tensor

from converters import names
from converters.plans import Plan, Row, Step, refuse
from convnets_torch.networks.efficientnet_lite import EPSILON, WIDTHS
from convnets_torch.weights import build


def plan_pytorch(path: str | os.PathLike[str], state: dict[str, Tensor]) -> Plan:
    """Recognise the network of a state dict and check all of it.

    Args:
        path: for messages.
        state: the tensors of the file by name.

    Raises:
        ValueError: the network is not known, or arrays are missing, superfluous or of a wrong shape.
    """
    network = "efficientnet_lite0"
    if "_conv_stem.weight" not in state or "_fc.weight" not in state:
        held = ", ".join(list(state)[:8]) or "nothing"
        raise ValueError(f"{path}: the network is not known here; its arrays are {held}, ...; known is {network}")
    classes = next(iter(state["_fc.weight"].shape), 1)
    arguments = {"classes": classes, "widths": WIDTHS, "epsilon": EPSILON}
    wanted = build(network, arguments).state_dict()
    foreign = [name for name in state if not name.startswith("_")]
    theirs = {names.efficientnet_lite0(name): name for name in state if name not in foreign}
    problems = [f"what becomes {name} is missing" for name in wanted if name not in theirs]
    problems += [f"{name} is not known" for name in foreign]
    problems += [f"{name} is not known" for ours, name in theirs.items() if ours not in wanted]
    problems += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(wanted[ours].shape)}"
        for ours, name in theirs.items()
        if ours in wanted and state[name].shape != wanted[ours].shape
    ]
    refuse(path, network, problems)
    steps = tuple(
        Step(
            Row(theirs[ours], ours, tuple(array.shape), _change(state[theirs[ours]], array)),
            partial(_copy, state[theirs[ours]]),
        )
        for ours, array in wanted.items()
    )
    return Plan(network, arguments, "PyTorch", None, steps)


def _change(theirs: Tensor, ours: Tensor) -> str:
    return "kept" if theirs.dtype == ours.dtype else f"{theirs.dtype} to {ours.dtype}".replace("torch.", "")


def _copy(source: Tensor, target: Tensor) -> Tensor:
    return target.copy_(source)

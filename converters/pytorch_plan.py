"""Plan the conversion of a PyTorch state dict."""

from __future__ import annotations

import os
from functools import partial

from torch import Tensor

from converters import names
from converters.plans import Plan, Step, refuse
from convnets_torch.card import Card
from convnets_torch.networks.efficientnet_lite import EPSILON, WIDTHS
from convnets_torch.preprocessing import preset
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
    arguments = {"classes": len(state["_fc.weight"]), "widths": WIDTHS, "epsilon": EPSILON}
    wanted = build(Card(network, arguments, preset(network), None)).state_dict()
    theirs = {names.efficientnet_lite0(name): name for name in state}
    problems = [f"what becomes {name} is missing" for name in wanted if name not in theirs]
    problems += [f"{name} is not known" for ours, name in theirs.items() if ours not in wanted]
    problems += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(wanted[ours].shape)}"
        for ours, name in theirs.items()
        if ours in wanted and state[name].shape != wanted[ours].shape
    ]
    refuse(path, network, problems)
    steps = tuple(
        Step(theirs[ours], ours, tuple(array.shape), "kept", partial(_copy, state[theirs[ours]]))
        for ours, array in wanted.items()
    )
    return Plan(network, arguments, "PyTorch", None, steps)


def _copy(source: Tensor, target: Tensor) -> Tensor:
    return target.copy_(source)

"""Checkpoints of a training: arrays and plain data in one safetensors file, which appears whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from convnets_torch.card import read_header
from convnets_torch.files import replacing

KEY = "training"  # in the metadata of the safetensors header
SCHEMA = 1


def save_checkpoint(path: str | os.PathLike[str], arrays: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write a checkpoint, which then replaces the older one.

    Args:
        arrays: on any device.
        state: what JSON can hold.

    Raises:
        OSError: it cannot be written; the older one survives.
    """
    kept = {name: array.detach().cpu().contiguous() for name, array in arrays.items()}
    with replacing(path) as temporary:
        try:
            save_file(kept, temporary, metadata={KEY: json.dumps({**state, "schema": SCHEMA})})
        except SafetensorError as error:
            raise OSError(str(error)) from None


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_checkpoint` wrote: arrays on the CPU, and the state.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: the file is no checkpoint, or of another version.
    """
    path = Path(path)
    metadata = read_header(path).get("__metadata__")
    text = metadata.get(KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise ValueError(f"{path} is no checkpoint of a training; remove it, or name another output")
    try:
        state = json.loads(text)
    except ValueError:
        state = None
    if not isinstance(state, dict) or state.get("schema") != SCHEMA:
        raise ValueError(f"{path} was written by another version; remove it to begin anew, or finish with that version")
    try:
        return load_file(path), state
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}); remove it to begin anew") from None


def optimizer_arrays(optimizer: Optimizer, names: list[str]) -> dict[str, Tensor]:
    """What an optimizer remembers, by the names of its parameters in their order."""
    [group] = optimizer.param_groups
    return {
        f"{name}.{kind}": values
        for name, parameter in zip(names, group["params"], strict=True)
        for kind, values in optimizer.state.get(parameter, {}).items()
        if isinstance(values, Tensor)
    }


def restore_optimizer(optimizer: Optimizer, names: list[str], arrays: Mapping[str, Tensor]) -> None:
    """Give an optimizer back what `optimizer_arrays` took from one of its kind."""
    [group] = optimizer.param_groups
    for name, parameter in zip(names, group["params"], strict=True):
        for key, values in arrays.items():
            owner, _, kind = key.rpartition(".")
            if owner == name:
                place = values.device if kind == "step" else parameter.device  # counts of steps stay on the CPU
                optimizer.state[parameter][kind] = values.to(place)

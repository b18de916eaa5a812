"""Checkpoints of a training: arrays and plain data in one safetensors file, which appears whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import SGD, Optimizer

from convnets_torch import strict_json
from convnets_torch.files import open_own, opened_path, replacing

KEY = "training"  # in the metadata of the safetensors header
SCHEMA = 1
MOST_STATE = 1 << 25  # bytes of the state: 100,000 epochs


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


def read_checkpoint(
    path: str | os.PathLike[str], *, max_bytes: int | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_checkpoint` wrote: arrays on the CPU, and the state.

    Args:
        path: of the file, which an earlier run of this user wrote.
        max_bytes: refuse a larger file.

    Raises:
        OSError: there is none, it is a link or another user's, or it cannot be read.
        ValueError: the file is no checkpoint, or of another version.
    """
    path = Path(path)
    with open_own(path) as opened:
        size = os.fstat(opened.fileno()).st_size
        if max_bytes is not None and size > max_bytes:
            raise damaged(path, f"it has {size:,} bytes, and this training needs {max_bytes:,} at most")
        try:
            with safe_open(opened_path(opened), "pt") as file:
                text = (file.metadata() or {}).get(KEY)
                if text is None:
                    raise ValueError(f"{path} is no checkpoint of a training; remove it, or name another output")
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        except (SafetensorError, RuntimeError) as error:  # RuntimeError: it is too large to be mapped
            raise ValueError(f"{path} is no checkpoint of a training ({error}); remove it to begin anew") from None
    try:
        state = strict_json.loads(text) if len(text) <= MOST_STATE else None
    except ValueError:
        state = None
    if not isinstance(state, dict) or state.get("schema") != SCHEMA:
        raise another_version(path)
    return arrays, state


def damaged(path: Path, reason: str) -> ValueError:
    """What is raised for a checkpoint that no training wrote."""
    return ValueError(f"{path} is damaged ({reason}); remove it to begin anew")


def another_version(path: Path) -> ValueError:
    """What is raised for a checkpoint with other fields."""
    return ValueError(f"{path} was written by another version; remove it to begin anew, or finish with that version")


def check_arrays(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise ValueError, a reason in words, when arrays have not the names, shapes and kinds wanted, or are no numbers.

    >>> import torch
    >>> check_arrays({"bias": torch.zeros(3)}, {"bias": torch.ones(3)})
    >>> check_arrays({"bias": torch.zeros(3)}, {"bias": torch.ones(2)})
    Traceback (most recent call last):
    ...
    ValueError: bias is (2,) torch.float32, not (3,) torch.float32
    """
    if wanted.keys() != found.keys():
        raise ValueError(f"the arrays {', '.join(sorted(wanted.keys() ^ found.keys()))[:200]} are missing or unknown")
    for name, values in found.items():
        shape, kind = tuple(wanted[name].shape), wanted[name].dtype
        if tuple(values.shape) != shape or values.dtype != kind:
            raise ValueError(f"{name} is {tuple(values.shape)} {values.dtype}, not {shape} {kind}")
        if not values.isfinite().all():
            raise ValueError(f"{name} has values that are NaN or infinite")


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
    """Give an optimizer back what `optimizer_arrays` took from one of its kind.

    Raises:
        ValueError: the arrays are of another optimizer, or of none.
    """
    [group] = optimizer.param_groups
    kinds = ("momentum_buffer",) if isinstance(optimizer, SGD) else ("step", "exp_avg", "exp_avg_sq")
    parameters = dict(zip(names, group["params"], strict=True))
    if arrays:  # there are none before the first step, nor without momentum
        one = arrays.get(f"{names[0]}.step", next(iter(parameters.values()))).new_zeros(())
        check_arrays(
            {
                f"{name}.{kind}": one if kind == "step" else parameter
                for name, parameter in parameters.items()
                for kind in kinds
            },
            arrays,
        )
    for key, values in arrays.items():
        name, _, kind = key.rpartition(".")
        if kind in ("step", "exp_avg_sq") and not (values >= 0).all():
            raise ValueError(f"{key} has values below 0")
        place = values.device if kind == "step" else parameters[name].device  # counts of steps stay on the CPU
        optimizer.state[parameters[name]][kind] = values.to(place)

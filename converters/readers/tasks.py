"""What a process that reads files can be asked to do: functions of what JSON can hold, free of torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from converters.audit import audit
from converters.readers.pytorch_files import carry_out_tensors, describe_state_dict, holds_state_dict
from converters.readers.reading import read_keras
from converters.writing import carry_out


def read(path: str) -> dict[str, Any]:
    """What a Keras file says of itself, as `KerasFile.from_dict` takes it."""
    return read_keras(path).to_dict()


def look_over(path: str) -> dict[str, Any]:
    """What a file holds, as `Audit.from_dict` takes it."""
    return audit(path).to_dict()


def forward(path: str, **arguments: Any) -> None:
    """The file's own meaning, for the proof (imported here: nothing else needs it)."""
    from converters.proof.forwarding import forward_into

    forward_into(path, **arguments)


TASKS: dict[str, Callable[..., Any]] = {
    "read": read,
    "fill": carry_out,
    "forward": forward,
    "audit": look_over,
    "holds state dict": holds_state_dict,
    "describe state dict": describe_state_dict,
    "fill tensors": carry_out_tensors,
}

"""Converters from the files of other frameworks to safetensors that know what they are."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from converters.auditing import Audit as Audit
    from converters.auditing import audit as audit
    from converters.conversion import Report as Report
    from converters.conversion import convert as convert
    from converters.doctor import Diagnosis as Diagnosis
    from converters.doctor import diagnose as diagnose
    from converters.evidence import Golden as Golden
    from converters.keras_file import KerasArray as KerasArray
    from converters.keras_file import KerasFile as KerasFile
    from converters.keras_file import KerasLayer as KerasLayer
    from converters.reading import opened as opened
    from converters.reading import read_array as read_array
    from converters.reading import read_keras as read_keras
    from converters.reading import values as values
    from converters.torch_layout import to_torch_layout as to_torch_layout

_HOMES = {
    "converters.auditing": ("Audit", "audit"),
    "converters.conversion": ("Report", "convert"),
    "converters.doctor": ("Diagnosis", "diagnose"),
    "converters.evidence": ("Golden",),
    "converters.keras_file": ("KerasArray", "KerasFile", "KerasLayer"),
    "converters.reading": ("opened", "read_array", "read_keras", "values"),
    "converters.torch_layout": ("to_torch_layout",),
}

__all__ = sorted(name for names in _HOMES.values() for name in names)


def __getattr__(name: str) -> Any:
    """Import the public names when they are first asked for: some need torch, the readers do not."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

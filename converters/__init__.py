"""Converters from the files of other frameworks to safetensors that know what they are."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from converters.conversion import Report as Report
    from converters.conversion import convert as convert

__all__ = ["Report", "convert"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are first asked for: they need torch, the readers do not."""
    if name in __all__:
        from converters import conversion

        return getattr(conversion, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

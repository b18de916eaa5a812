"""A model's config as an ordered tree of layers, in the forms of Keras 1, 2 and 3; nothing of it is carried out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from converters.readers.keras_file import DataFormat
from converters.readers.keras_words import kind_of_class
from convnets_torch import files

MOST_LAYERS = 100_000


@dataclass(frozen=True)
class Described:
    """A layer as the config has it.

    Attributes:
        name: its own.
        class_name: as stored.
        config: its own settings, as stored.
        layers: those of a nested model, else None.
        outer: the whole entry, with module and registered name where there are such.
    """

    name: str
    class_name: str
    config: Mapping[str, Any]
    layers: tuple[Described, ...] | None
    outer: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """The class in Keras 3's spelling."""
        return kind_of_class(self.class_name)


def parse(text: str) -> dict[str, Any]:
    """The JSON of a config; ValueError where it is none."""
    try:
        found = files.loads(text)
    except ValueError as error:
        raise ValueError(f"the model's config is no JSON as Keras writes it, or nested too deeply ({error})") from None
    if not isinstance(found, dict) or not isinstance(found.get("class_name"), str) or "config" not in found:
        raise ValueError("the model's config names no class")
    return found


def describe(entry: Mapping[str, Any]) -> Described:
    """A model or layer of a config, {"class_name": ..., "config": ...}, with all below it."""
    return _describe(entry, 0)


def _describe(entry: Any, level: int) -> Described:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("class_name"), str):
        raise ValueError("the model's config has a layer without a class")
    if level > 20:
        raise ValueError("the model's config nests models deeper than 20")
    config = entry.get("config")
    inner = config if isinstance(config, list) else config.get("layers") if isinstance(config, Mapping) else None
    if len(inner or ()) > MOST_LAYERS:
        raise ValueError(f"the model's config has more than {MOST_LAYERS} layers")
    layers = tuple(_describe(layer, level + 1) for layer in inner) if isinstance(inner, list) else None
    own = config if isinstance(config, Mapping) else {}
    name = own.get("name") or entry.get("name") or ""
    return Described(str(name), entry["class_name"], own, layers, entry)


def each(described: Described, parents: tuple[str, ...] = ()) -> Iterator[tuple[Described, tuple[str, ...]]]:
    """The layers of a model in order, those of nested models in their place, each with its parents' names."""
    for layer in described.layers or ():
        if layer.layers is None:
            yield layer, parents
        else:
            yield from each(layer, (*parents, layer.name))


def data_format(described: Described) -> DataFormat | None:
    """That of the convolutions; None where they do not say it or not with one voice."""
    found = {format_of(layer.config) for layer, _ in each(described) if "Conv" in layer.class_name}
    found.discard(None)
    return found.pop() if len(found) == 1 else None


def format_of(config: Mapping[str, Any]) -> DataFormat | None:
    """A layer's own, also in the words of Keras 1."""
    known: dict[Any, DataFormat] = {
        "channels_first": "channels_first", "channels_last": "channels_last",
        "th": "channels_first", "tf": "channels_last",
    }  # fmt: skip
    for word in ("data_format", "dim_ordering"):
        value = config.get(word)
        if isinstance(value, str) and value in known:
            return known[value]
    return None

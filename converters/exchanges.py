"""Layers of one shape that were exchanged, as far as a file tells it twice: by names, and by where its arrays lie."""

from __future__ import annotations

import re

from converters.keras_file import KerasArray, KerasFile
from converters.recognition import Found

LONGEST = 1000  # letters of an array's name that are looked at


def exchanged(file: KerasFile, found: Found) -> list[str]:
    """Everything that two tellings of a file do not agree on, in a few words each."""
    return [*_by_array_names(file), *_by_numbers(file, found)]


def _by_array_names(file: KerasFile) -> list[str]:
    """Arrays whose own names are those of another layer: two layers of one shape have been exchanged."""
    names = {layer.name for layer in file.weighted}
    problems = []
    for layer in file.weighted:
        for array in layer.arrays.values():
            own = _own_name(array, names)
            if file.named and file.container == "legacy" and own is not None and own != layer.name:
                problems.append(f"{layer.name} lists the array {array.place}, which is named after {own}")
    return problems


def _by_numbers(file: KerasFile, found: Found) -> list[str]:
    """Layers whose names tell of another order than their groups, which are numbered as `model.layers` counts."""
    if file.container != "weights" or not file.named or found.lineage.automatic:
        return []
    groups = {
        name: re.fullmatch(r"(.*?)(?:_(\d+))?", next(iter(layer.arrays.values())).place.split("/")[-3])
        for name, layer in found.base.items()
    }
    problems = []
    for kind in dict.fromkeys(group[1] for group in groups.values() if group):
        listed = [
            (int(group[2] or 0), name)
            for name in found.lineage.order
            if (group := groups.get(name)) and group[1] == kind
        ]
        problems += [
            f"{name} stands where {other} should"
            for (_, other), (_, name) in zip(listed, sorted(listed), strict=True)
            if name != other
        ]
    return problems


def _own_name(array: KerasArray, names: set[str]) -> str | None:
    """The layer that an array's name tells of: "/conv1_2/conv1_2_W" and "/block1_conv1/block1_conv1/kernel:0"."""
    *folders, last = array.place.strip("/").split("/")
    candidates = [folders[-1] if folders else ""]
    pieces = last[:LONGEST].split(":")[0].split("_")
    candidates += ["_".join(pieces[:end]) for end in range(len(pieces) - 1, 0, -1)]
    return next((name for name in (*candidates[1:], candidates[0]) if name in names), None)  # the longest first

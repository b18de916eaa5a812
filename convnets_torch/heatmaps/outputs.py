"""Maps as files: pictures, numbers with where the cells lie, regions as boxes, a page."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnets_torch.files import check_writable, replacing
from convnets_torch.heatmaps.maps import CellMap, ClassMap, Contrast, Heatmap, ProbabilityMap
from convnets_torch.images.preprocessing import Pixels
from convnets_torch.images.sources import Held, Preview
from convnets_torch.visualization import overlays
from convnets_torch.visualization.pages import Cells, Layer, write_page
from convnets_torch.wordnet.targets import Target, class_name

NUMBERS = (".npy", ".npz", ".json", ".html")
LONGEST_PAGE = 4096  # pixels of the picture in a page
TILE = 640  # pixels of a picture's width in a sheet


def check_output(path: Path) -> None:
    """Raise, before long work begins, when a map cannot be written to `path`.

    Raises:
        ValueError: another ending than that of a picture or of numbers.
        OSError: `path` cannot be written.
    """
    if path.suffix.lower() not in (*overlays.FORMATS, *NUMBERS):
        known = ", ".join(overlays.FORMATS)
        raise ValueError(
            f"{path} has an unknown ending; name a picture: {known} (or .html for a page, .json for boxes, .npz or .npy"
            " for the numbers)"
        )
    check_writable(path)


def save(maps: Sequence[CellMap], path: str | os.PathLike[str], *, plain: bool = False, threshold: float = 0.5) -> None:
    """Write maps of one picture, atomically; `maps.CellMap.save` and `heatmaps.save_sheet` say how.

    Raises:
        ValueError: another file ending, no map, or maps of other pictures.
        OSError: `path` cannot be written.
    """
    path = Path(path)
    check_output(path)
    if not maps:
        raise ValueError("there is no map to write; give one or more")
    if any(each.placement != maps[0].placement for each in maps):
        raise ValueError("the maps are of other pictures or cells than the first one; write them to files of their own")
    ending = path.suffix.lower()
    if ending == ".npy":
        with replacing(path) as temporary, temporary.open("wb") as file:
            values = [_numbers(each) for each in maps]
            np.save(file, values[0] if len(values) == 1 else np.stack(values))
    elif ending == ".npz":
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays_of(maps))
    elif ending == ".json":
        with replacing(path) as temporary:
            text = json.dumps(regions_of(maps, threshold), ensure_ascii=False, indent=1)
            temporary.write_text(text + "\n", encoding="utf-8")
    elif ending == ".html":
        _save_page(maps, path, threshold)
    else:
        overlays.save_image(_drawn(maps, plain), path)


def arrays_of(maps: Sequence[CellMap]) -> dict[str, Any]:
    """What an `.npz` holds.

    Returns:
        "values": (rows, columns), of several maps (maps, rows, columns); "best_ids", "best_probabilities": (rows,
        columns, 5); "windows", "receptive_fields": (rows, columns, 4), left, top, right, bottom in pixels of the
        picture (of several maps of several scales, those of the first); "mapping": JSON of the placement and the
        targets. A class map adds "class_ids", a probability map "probabilities", and a map of several scales
        "scale_0", "scale_1", ... with their "mapping_0", ...
    """
    first = maps[0]
    values = [each.values for each in maps]
    best_ids, best_probabilities = first.best_classes()
    arrays: dict[str, Any] = {
        "values": values[0] if len(values) == 1 else np.stack(values),
        "best_ids": best_ids,
        "best_probabilities": best_probabilities,
        "windows": first.boxes("window"),
        "receptive_fields": first.boxes("receptive field"),
        "mapping": json.dumps({"placement": first.placement.to_dict(), "maps": [described(each) for each in maps]}),
    }
    if isinstance(first, ClassMap):
        arrays["class_ids"] = first.class_ids
    if isinstance(first, ProbabilityMap):
        arrays["probabilities"] = first.probabilities
    if isinstance(first, Heatmap):
        for number, scale in enumerate(first.scales):
            each_target = [each.scales[number].values for each in maps if isinstance(each, Heatmap)]
            arrays[f"scale_{number}"] = each_target[0] if len(each_target) == 1 else np.stack(each_target)
            arrays[f"mapping_{number}"] = json.dumps({"placement": scale.placement.to_dict()})
    return arrays


def regions_of(maps: Sequence[CellMap], threshold: float) -> dict[str, Any]:
    """What a `.json` holds: the picture's size, and for each map its target and its regions above the threshold."""
    height, width = maps[0].size
    entries = []
    for each in maps:
        entries.append({**described(each), **highest_and_regions(each, threshold)})
    return {"picture": {"height": height, "width": width}, "threshold": threshold, "maps": entries}


def highest_and_regions(cells: CellMap, threshold: float) -> dict[str, Any]:
    """A map's highest value, and its regions above the threshold, as JSON can hold them."""
    boxes = [
        {
            "box": region.box._asdict(),
            "score": round(region.score, 6),
            "peak": list(region.peak),
            "cells": region.cells,
        }
        for region in cells.regions(threshold)
    ]
    return {"highest": round(float(cells.values.max()), 6), "regions": boxes}


def described(cells: CellMap) -> dict[str, Any]:
    """A map's target as JSON can hold it."""
    if isinstance(cells, Heatmap):
        return {"kind": "heatmap", **_target(cells.target)}
    if isinstance(cells, Contrast):
        return {"kind": "contrast", "one": _target(cells.one.target), "other": _target(cells.other.target)}
    if isinstance(cells, ClassMap):
        return {"kind": "classes", "names": {str(class_id): words for class_id, words in cells.names.items()}}
    return {"kind": "probabilities"}


def _target(target: Target) -> dict[str, Any]:
    return {"target": target.label, "wnid": target.wnid, "class_ids": list(target.class_ids)}


def _numbers(cells: CellMap) -> NDArray[Any]:
    if isinstance(cells, ClassMap):
        return cells.class_ids
    return cells.probabilities if isinstance(cells, ProbabilityMap) else cells.values


def _drawn(maps: Sequence[CellMap], plain: bool) -> Image.Image:
    pictures = [_picture(each, plain) for each in maps]
    if len(pictures) == 1:
        return pictures[0]
    columns = min(3, ceil(len(maps) ** 0.5))
    return overlays.sheet([(picture, "") for picture in pictures], columns, width=TILE)


def _picture(cells: CellMap, plain: bool) -> Image.Image:
    if isinstance(cells, ProbabilityMap):
        cells = cells.class_map()
    if isinstance(cells, ClassMap):
        return overlays.class_overlay(cells)
    draw: Callable[[Any], Image.Image] = overlays.color_map if plain else overlays.overlay
    return draw(cells)


def _save_page(maps: Sequence[CellMap], path: Path, threshold: float) -> None:
    first = maps[0]
    names = {int(class_id): class_name(first.card, int(class_id)) for class_id in np.unique(first.best_ids)}
    cells = Cells(
        window_rows=first.placement.windows(0),
        window_columns=first.placement.windows(1),
        field_rows=first.placement.fields(0),
        field_columns=first.placement.fields(1),
        top_ids=first.best_ids,
        top_probabilities=first.best_probabilities,
        names=names,
    )
    layers = [
        Layer(overlays.label_of(each), each.values, signed=isinstance(each, Contrast), threshold=threshold)
        for each in maps
    ]
    title = " · ".join(layer.words for layer in layers)
    if isinstance(first, Heatmap) and first.scales:
        title += f" ({len(first.scales)} scales fused; windows and classes are the finest scale's)"
    write_page(path, _reduced(first.picture), first.size, layers, cells, title=title)


def _reduced(picture: Pixels) -> Pixels:
    """A picture of at most so many pixels a side as a page holds."""
    if max(picture.shape) <= LONGEST_PAGE:
        return picture
    preview = Preview(Held(picture).shape, LONGEST_PAGE)
    preview.add(0, picture)
    return preview.picture

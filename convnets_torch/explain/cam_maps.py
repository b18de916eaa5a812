"""Maps of what in a picture speaks for a target: their numbers, where they lie, and how they are written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convnets_torch.explain.cam_cells import CamCells, Values
from convnets_torch.files import Output, check_writable, path_of, replacing, to_open_files
from convnets_torch.maps.regions import Region, find_regions
from convnets_torch.preprocessing import Pixels
from convnets_torch.targets import Target

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".json", ".npz", ".npy")


@dataclass(frozen=True, eq=False, kw_only=True)
class GradCam:
    """Which cells of a layer speak for a target in a picture.

    Attributes:
        values: (rows, columns) float32, 0 to 1: the raw map divided by its maximum; zero everywhere where no cell
            speaks for the target.
        raw_maximum: that maximum; it can be compared between targets and pictures, `values` cannot.
        target: the classes that are explained.
        against: the classes against which they are weighed; None for none.
        layer: name of the module whose cells these are.
        method: as in `cams`.
        probability: of the target, 0 to 1.
        picture: (H, W, 3) uint8, RGB: the picture at its own size.
        cells: where the cells lie over it; the network saw a part of it.
    """

    values: Values
    raw_maximum: float
    target: Target
    against: Target | None
    layer: str
    method: str
    probability: float
    picture: Pixels
    cells: CamCells

    @property
    def label(self) -> str:
        """What is explained in words."""
        return self.target.label if self.against is None else f"{self.target.label} rather than {self.against.label}"

    @property
    def peak(self) -> tuple[int, int]:
        """(row, column) of the cell with the highest value."""
        row, column = np.unravel_index(self.values.argmax(), self.values.shape)
        return int(row), int(column)

    @property
    def peak_pixel(self) -> tuple[float, float]:
        """(x, y) of that cell's centre in pixels of the picture, cut at what the network saw."""
        (row, column), seen = self.peak, self.cells.seen
        x, y = float(self.cells.centres(1)[column]), float(self.cells.centres(0)[row])
        return (min(max(x, seen.left), seen.right), min(max(y, seen.top), seen.bottom))

    def at_picture_size(self) -> Values:
        """The map on the pixels of the picture, bilinear between the centres of cells.

        Returns:
            (H, W) float32, 0 to 1; zero where the network saw nothing.
        """
        return self.cells.at_picture_size(self.values)

    def regions(self, threshold: float = 0.5) -> list[Region]:
        """Cells above a threshold that touch: a box around them, and the highest of their values.

        Returns:
            The region with the highest value first; none for a map of zeros.

        Raises:
            ValueError: the threshold is not a number.
        """
        return find_regions(self.values, threshold, self.cells.boxes(), self.cells.size)

    @to_open_files(".png")
    def save(self, path: Output) -> None:
        """Write the map, atomically, in the form that the ending of `path` names.

        Args:
            path: `.png`, `.jpg` or `.webp`: the picture, and beside it the map over it, with its words and a bar of
                its colours; `.npz`: the numbers and where the cells lie; `.npy`: the numbers alone, (rows, columns);
                `.json`: all but the picture.

        Raises:
            ValueError: another file ending.
            OSError: `path` cannot be written.
        """
        save_cams([self], path)

    def to_dict(self) -> dict[str, Any]:
        """All but the picture as JSON can hold it; boxes of regions are those above half of the maximum."""
        return {
            **self.described(),
            "regions": [{"box": region.box._asdict(), "score": round(region.score, 6)} for region in self.regions()],
            "cells": self.cells.to_dict(),
            "values": [[round(value, 6) for value in row] for row in self.values.tolist()],
        }

    def described(self) -> dict[str, Any]:
        """What is explained, how, and where the peak is, as JSON can hold it."""
        x, y = self.peak_pixel
        return {
            "label": self.label,
            "target": _target(self.target),
            "against": None if self.against is None else _target(self.against),
            "layer": self.layer,
            "method": self.method,
            "probability": round(self.probability, 6),
            "raw_maximum": self.raw_maximum,
            "peak": {"x": round(x, 1), "y": round(y, 1)},
        }


@to_open_files(".png")
def save_cams(maps: Sequence[GradCam], path: Output) -> None:
    """Write maps of one picture into one file, atomically; a single one as its `save` does.

    Args:
        maps: as `gradcam` gives them for a list of targets.
        path: `.png`, `.jpg` or `.webp`: the picture and its maps side by side; `.npz`, `.npy`: numbers (maps, rows,
            columns); `.json`: a list.

    Raises:
        ValueError: another file ending, no map, or maps of several pictures or layers.
        OSError: `path` cannot be written.
    """
    path = path_of(path)
    check_cam_output(path)
    if not maps:
        raise ValueError("there is no map to write; give one or more")
    if any(each.cells != maps[0].cells for each in maps):
        raise ValueError(
            "the maps are of other pictures or layers than the first one; write them to files of their own"
        )
    ending = path.suffix.lower()
    values = maps[0].values if len(maps) == 1 else np.stack([each.values for each in maps])
    if ending == ".npy":
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, values)
    elif ending == ".npz":
        described = {"cells": maps[0].cells.to_dict(), "maps": [each.described() for each in maps]}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, values=values, boxes=maps[0].cells.boxes(), mapping=json.dumps(described))
    elif ending == ".json":
        found = [each.to_dict() for each in maps]
        text = json.dumps(found[0] if len(found) == 1 else found, ensure_ascii=False)
        with replacing(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    else:
        from convnets_torch import render
        from convnets_torch.explain.cam_pictures import side_by_side

        render.save_image(side_by_side(maps), path)


def check_cam_output(path: Path) -> None:
    """Raise, before long work begins, when a map cannot be written to `path`.

    Raises:
        ValueError: another ending than that of a picture or of numbers.
        OSError: `path` cannot be written.
    """
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"{path} has an unknown ending; Grad-CAM is written as {', '.join(ENDINGS)}")
    check_writable(path)


def _target(target: Target) -> dict[str, Any]:
    return {"label": target.label, "wnid": target.wnid, "class_ids": list(target.class_ids)}

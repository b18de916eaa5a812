"""Measure the meaning of cells and the quality of maps, on photographs with hand-drawn boxes.

    pip install '.[demo]' scikit-learn && python scripts/judge_maps.py [networks cost padding boxes] [--json FILE]

It prints the tables of docs/heatmaps.md. The photographs come with scikit-image and scikit-learn, the trained
EfficientNet-Lite0 with its package; the boxes are in tests/data/boxes.json. It takes some minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from convnets_torch.explain.gradcam import gradcam
from convnets_torch.explain.gradcam_maps import GradCam
from convnets_torch.fcn.graph import (
    cell_strides,
    map_graph,
)
from convnets_torch.fcn.score_map import score_map
from convnets_torch.heatmaps.api import Box, Heatmap, heatmap_targets
from convnets_torch.images.preprocessing import normalize
from convnets_torch.networks import NETWORKS, Network
from scripts.cells_and_crops import (
    Row,
    cells_and_crops,
    moved_table,
    padding_table,
    random_table,
    softmax,
)
from scripts.judged_photographs import Photograph, photographs, trained

FOUND = 0.1  # highest probability from which a target counts as found
SETTINGS: dict[str, dict[str, Any]] = {
    "own size": {},
    "cell_stride=16": {"cell_stride": 16},
    "cell_stride=8": {"cell_stride": 8},
    "cell_stride=4": {"cell_stride": 4},
    "longest_side=600": {"longest_side": 600},
    'scales="auto", mean': {"scales": "auto", "fuse": "mean"},
    'scales="auto", max': {"scales": "auto", "fuse": "max"},
}
CROPS = "each window by itself"
CAM = "Grad-CAM"


# Properties of the architectures, without weights.


def empty(name: str) -> Network:
    """Return a network on the meta device: parameters have shapes but no values."""
    with torch.device("meta"):
        return NETWORKS[name]().eval()


def network_table() -> list[Row]:
    """Return windows and receptive fields, which are equal in both directions."""
    rows = []
    for name in NETWORKS:
        network = empty(name)
        field = map_graph(network).vertical
        rows.append(
            {
                "network": name,
                "window": network.size[0],
                "strides": ", ".join(map(str, cell_strides(network))),
                "field starts at": field.start,
                "field size": field.size,
                "centre of window": network.size[0] / 2,
                "centre of field": field.start + field.size / 2,
            }
        )
    return rows


def operations(work: Callable[[], object]) -> float:
    """Count multiply-adds of convolutions and matrix products, in 10^9."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        work()
    return counter.get_total_flops() / 2e9


def cost_table(height: int = 480, width: int = 640) -> list[Row]:
    """Compare the operations of maps with those of classifying each window's crop."""
    rows = []
    for name in NETWORKS:
        network = empty(name)
        images = torch.zeros(1, 3, height, width, device="meta")
        one = torch.zeros(1, 3, *network.size, device="meta")
        cells = np.prod(map_graph(network).shape(height, width))
        row: Row = {"network": name, "cells": int(cells), "one window": operations(lambda: network(one))}  # noqa: B023
        row["all windows one by one"] = row["one window"] * cells
        row["map"] = operations(lambda: score_map(network, images))  # noqa: B023
        for stride in (16, 8, 4):
            row[f"stride {stride}"] = operations(lambda: score_map(network, images, cell_stride=stride))  # noqa: B023
        rows.append(row)
    return rows


# How good maps are.


def inside(boxes: Iterable[Box], x: float, y: float) -> bool:
    """Whether a point is in one of the boxes."""
    return any(box.left <= x < box.right and box.top <= y < box.bottom for box in boxes)


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes.

    >>> overlap(Box(0, 0, 2, 2), Box(1, 0, 3, 2))
    0.3333333333333333
    """
    width = min(one.right, other.right) - max(one.left, other.left)
    height = min(one.bottom, other.bottom) - max(one.top, other.top)
    both = max(width, 0) * max(height, 0)
    return both / (sum((box.right - box.left) * (box.bottom - box.top) for box in (one, other)) - both)


def drawn(boxes: Iterable[Box], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask (H, W) of pixels in boxes."""
    mask = np.zeros(size, bool)
    for left, top, right, bottom in boxes:
        mask[int(top) : int(bottom), int(left) : int(right)] = True
    return mask


def best_box(found: Heatmap | GradCam, boxes: Sequence[Box], threshold: float) -> float | None:
    """Overlap of the best region with the best-matching drawn box; None without a region."""
    regions = found.regions(threshold)
    return max(overlap(regions[0].box, box) for box in boxes) if regions else None


def centre_of(box: Box) -> tuple[float, float]:
    """(x, y)."""
    return ((box.left + box.right) / 2, (box.top + box.bottom) / 2)


def judged(found: Heatmap, boxes: Sequence[Box]) -> Row:
    """Compare a map with the boxes of its target."""
    mask = drawn(boxes, found.size)
    highest = float(found.values.max())
    above = found.at_picture_size() >= highest / 2
    x, y = centre_of(found.window(*found.peak))
    return {
        "highest": highest,
        "x": x,
        "y": y,
        "hit": inside(boxes, x, y),
        "half box": best_box(found, boxes, highest / 2),
        "0.5 box": best_box(found, boxes, 0.5),
        "mask": float((above & mask).sum() / (above | mask).sum()),
    }


def baseline(picture: Photograph, found: Heatmap, boxes: Sequence[Box]) -> Row:
    """Baselines without a network: the picture's centre, a random pixel or cell, the whole picture."""
    height, width = found.size
    mask = drawn(boxes, found.size)
    rows, columns = found.values.shape
    centres = [centre_of(found.window(row, column)) for row in range(rows) for column in range(columns)]
    whole = Box(0, 0, width, height)
    return {
        "photograph": picture.name,
        "area": float(mask.mean()),
        "centre": inside(boxes, width / 2, height / 2),
        "cell": float(np.mean([inside(boxes, *centre) for centre in centres])),
        "whole": max(overlap(whole, box) for box in boxes),
    }


def judged_cam(found: GradCam, boxes: Sequence[Box]) -> Row:
    """Compare a Grad-CAM map with the boxes of its target; values are not probabilities, so there is no box above 0.5.

    The network saw the centre of the picture; the boxes are those of the whole picture.
    """
    mask = drawn(boxes, found.cells.size)
    above = found.at_picture_size() >= 0.5
    x, y = found.peak_pixel
    return {
        "highest": found.probability,
        "x": x,
        "y": y,
        "hit": bool(found.raw_maximum) and inside(boxes, x, y),
        "half box": best_box(found, boxes, 0.5) or 0.0,
        "0.5 box": None,
        "mask": float((above & mask).sum() / (above | mask).sum()),
    }


def maps_of_crops(network: Network, picture: Photograph, maps: Sequence[Heatmap]) -> list[Heatmap]:
    """Return maps of the peer, which classifies each window's crop separately."""
    assert network.card is not None
    inputs = torch.from_numpy(normalize(picture.pixels, network.card.preprocessing))
    _, crops = cells_and_crops(network, inputs, network.stride)
    columns = (picture.pixels.shape[1] - network.size[1]) // network.stride + 1
    chances = softmax(crops)
    return [
        replace(each, values=chances[:, list(each.target.class_ids)].sum(axis=1).reshape(-1, columns)) for each in maps
    ]


def box_rows(network: Network, pictures: Iterable[Photograph]) -> list[Row]:
    """Return one row per target and setting."""
    rows = []
    for picture in pictures:
        targets = list(picture.targets)
        maps = {
            name: heatmap_targets(network, picture.pixels, targets, **options) for name, options in SETTINGS.items()
        }
        maps[CROPS] = maps_of_crops(network, picture, maps["own size"])
        for place, (target, boxes) in enumerate(picture.targets.items()):
            row = {"target": target, **baseline(picture, maps["own size"][place], boxes)}
            row |= {name: judged(found[place], boxes) for name, found in maps.items()}
            rows.append(row | {CAM: judged_cam(gradcam(network, picture.pixels, target), boxes)})
    return rows


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return one row per setting, and the baselines."""
    lines: list[Row] = []
    for name in (*SETTINGS, CROPS, CAM):
        each = [row[name] for row in rows]
        found = [one for one in each if one["highest"] >= FOUND]
        moved = [np.hypot(row[name]["x"] - row["own size"]["x"], row[name]["y"] - row["own size"]["y"]) for row in rows]
        halves = [one["0.5 box"] for one in each if one["0.5 box"] is not None]
        lines.append(
            {
                "maps": f"`{name}`" if "=" in name else name,
                "peaks in a box": f"{sum(one['hit'] for one in each)} of {len(each)}",
                f"of those found (≥ {FOUND})": f"{sum(one['hit'] for one in found)} of {len(found)}",
                "highest": float(np.mean([one["highest"] for one in each])),
                "peak moved, px": f"{np.median(moved):.0f}",
                "box, half": float(np.mean([one["half box"] for one in each])),
                "box, 0.5": f"{np.mean(halves):.2f} in {len(halves)}" if halves else "none",
                "pixels": float(np.mean([one["mask"] for one in each])),
            }
        )
    empty_cells = {"highest": "", "peak moved, px": "", "box, half": "", "box, 0.5": "", "pixels": ""}
    column = f"of those found (≥ {FOUND})"
    known = [row for row in rows if row["own size"]["highest"] >= FOUND]

    def expected(kind: str, some: Sequence[Row]) -> str:
        return f"{sum(row[kind] for row in some):.3g} of {len(some)}"

    for words, kind in (
        ("centre of the picture", "centre"),
        ("a pixel by chance", "area"),
        ("a cell by chance", "cell"),
    ):
        counts = {"peaks in a box": expected(kind, rows), column: expected(kind, known)}
        lines.append({"maps": words, **counts, **empty_cells})
    whole = {"box, half": float(np.mean([row["whole"] for row in rows])), "pixels": expected_mean(rows, "area")}
    lines.append({"maps": "all of the picture", "peaks in a box": "", column: "", **empty_cells, **whole})
    return lines


def expected_mean(rows: Sequence[Row], kind: str) -> float:
    """The mean over all targets."""
    return float(np.mean([row[kind] for row in rows]))


def each_target(rows: Sequence[Row], cell: Callable[[Row], str]) -> list[Row]:
    """Return one row per target, with one column per setting."""
    return [
        {"photograph": row["photograph"], "target": row["target"], "area": row["area"]}
        | {name: cell(row[name]) for name in (*SETTINGS, CROPS, CAM)}
        for row in rows
    ]


def markdown(rows: Sequence[Row]) -> str:
    """Format rows as a table; numbers below 10 have two decimals, below 100 one."""

    def words(value: object) -> str:
        if not isinstance(value, float):
            return str(value)
        return f"{value:.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"

    lines = [list(rows[0]), ["---"] * len(rows[0]), *([words(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Print the selected tables, and write their numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    work = ("networks", "cost", "padding", "boxes")
    parser.add_argument("work", nargs="*", choices=[*work, []], help="which tables; all by default")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    arguments = parser.parse_args()
    wanted = arguments.work or work
    found: dict[str, Any] = {}
    if "networks" in wanted:
        found["networks"] = network_table()
        print(markdown(found["networks"]) + "\n")
    if "cost" in wanted:
        found["cost"] = cost_table()
        print(markdown(found["cost"]) + "\n")
    if "padding" in wanted:
        network, pictures = trained(), photographs()
        found["padding"] = padding_table(network, pictures, network.stride)
        found["padding"] += padding_table(network, [each for each in pictures if each.name in ("chelsea", "coffee")], 8)
        print(markdown(found["padding"]) + "\n")
        found["moved"] = moved_table(network, pictures)
        print(markdown(found["moved"]) + "\n")
        coffee = next(each for each in pictures if each.name == "coffee")
        assert network.card is not None
        found["random"] = random_table(coffee.pixels, network.card.preprocessing)
        print(markdown(found["random"]) + "\n")
    if "boxes" in wanted:
        rows = found["boxes"] = box_rows(trained(), photographs())
        print(markdown(summary(rows)) + "\n")
        print(markdown(each_target(rows, lambda one: f"{one['highest']:.2f}{' in' if one['hit'] else ' out'}")) + "\n")
        print(markdown(each_target(rows, lambda one: f"{one['mask']:.2f}")) + "\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

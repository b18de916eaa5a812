"""Grad-CAM maps: cell positions, values, files and drawings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from convnets_torch.card import Card
from convnets_torch.explain.activations import layer_fields
from convnets_torch.files import Output, Writer
from convnets_torch.heatmaps.maps import (
    Box,
    CellGrid,
    PictureMap,
    save_maps,
    target_as_json,
    write_arrays,
    write_values,
)
from convnets_torch.images.levels import shown
from convnets_torch.images.preprocessing import Pair, cropped_box
from convnets_torch.networks import Network
from convnets_torch.visualization.letters import Letters, Pen
from convnets_torch.visualization.overlays import GREY, INK, PAPER, STRENGTH, palette, picture_formats, shorten
from convnets_torch.wordnet.targets import Target


def cam_cells(network: Network, layer: str, shape: Pair, card: Card, size: Pair) -> CellGrid:
    """Return the positions of a layer's cells, `shape` (rows, columns), over a picture of `size` (height, width).

    A cell lies at the centre of its receptive field if the field is known (layers in `features`); otherwise the cells
    divide the part of the picture that the network saw evenly.
    """
    seen_size = card.preprocessing.shape
    fields = layer_fields(network).get(layer)
    if fields is None:
        apart = (seen_size[0] / shape[0], seen_size[1] / shape[1])
        first = (apart[0] / 2, apart[1] / 2)
    else:
        first = (fields[0].start + fields[0].size / 2, fields[1].start + fields[1].size / 2)
        apart = (float(fields[0].stride), float(fields[1].stride))
    return CellGrid(size, Box(*cropped_box(size, card.preprocessing)), seen_size, shape, first, apart)


@dataclass(frozen=True, eq=False, kw_only=True)
class GradCam(PictureMap):
    """A map of how much each cell of a layer supports a target in a picture.

    Attributes:
        values: (rows, columns) float32, 0 to 1: the raw map divided by its maximum; all zero if no cell supports the
            target.
        raw_maximum: that maximum; unlike `values` it is comparable between targets and pictures.
        target: the explained classes.
        against: the classes whose score was subtracted, or None.
        layer: name of the module.
        method: as in `cams`.
        probability: of the target, 0 to 1.
        picture: (H, W, 3) uint8, RGB, or RGBA for a network that reads it: the picture at its own size.
        grid: the positions of the cells over the picture, and the part that the network saw; also named `cells`.
    """

    raw_maximum: float
    target: Target
    against: Target | None
    layer: str
    method: str
    probability: float

    @property
    def cells(self) -> CellGrid:
        """The same as `grid`."""
        return self.grid

    @property
    def label(self) -> str:
        return self.target.label if self.against is None else f"{self.target.label} rather than {self.against.label}"

    @property
    def peak_pixel(self) -> tuple[float, float]:
        """(x, y) of the highest cell's centre in pixels of the picture, clipped to the part that the network saw."""
        (row, column), part = self.peak, self.grid.part
        x, y = float(self.grid.centres(1)[column]), float(self.grid.centres(0)[row])
        return (min(max(x, part.left), part.right), min(max(y, part.top), part.bottom))

    def save(self, path: Output) -> None:
        """Write the map atomically, in the format that the extension of `path` names.

        `.png`, `.jpg` or `.webp` draw the picture next to the overlaid map, with label and colour bar; `.npz` holds the
        values and cell positions, `.npy` the values alone (rows, columns), and `.json` everything but the picture. An
        open binary file gets a `.png` unless its name says otherwise.
        """
        save_maps([self], path)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the picture, ready for JSON; regions are those above half of the maximum."""
        return {
            **self.described(),
            "regions": [{"box": region.box._asdict(), "score": round(region.score, 6)} for region in self.regions()],
            **self.located(),
            "values": [[round(value, 6) for value in row] for row in self.values.tolist()],
        }

    def described(self) -> dict[str, Any]:
        """Return target, layer, method, probability and peak, ready for JSON."""
        x, y = self.peak_pixel
        return {
            "label": self.label,
            "target": target_as_json(self.target, "label"),
            "against": None if self.against is None else target_as_json(self.against, "label"),
            "layer": self.layer,
            "method": self.method,
            "probability": round(self.probability, 6),
            "raw_maximum": self.raw_maximum,
            "peak": {"x": round(x, 1), "y": round(y, 1)},
        }

    def located(self) -> dict[str, Any]:
        grid = self.grid
        return {
            "cells": {
                "size": grid.size,
                "seen": grid.part._asdict(),
                "seen_size": grid.seen,
                "shape": grid.shape,
                "first": grid.first,
                "apart": grid.apart,
            }
        }

    def shared_arrays(self) -> dict[str, Any]:
        return {"boxes": self.boxes()}


def save_cams(maps: Sequence[GradCam], path: Output) -> None:
    """Write the maps of one picture into one file, atomically; a single map as its `save` does.

    Args:
        maps: as `gradcam_targets` returns them.
        path: `.png`, `.jpg` or `.webp`: the picture and its maps side by side; `.npz`, `.npy`: values (maps, rows,
            columns); `.json`: a list.

    Raises:
        ValueError: the extension is unknown, or there is no map, or maps are of several pictures or layers.
    """
    save_maps(maps, path)


WIDTH, HEIGHT = 640, 800  # pixels; each picture is scaled to fit
MARGIN, LETTERS, LINE = 16, 24, 34  # pixels; the page is 1328 wide and still readable when reduced to 800
DIMMED = 0.6  # opacity of the paper colour over the part that the network did not see


def side_by_side(maps: Sequence[GradCam]) -> Image.Image:
    """Draw a picture next to each of its maps laid over it, with labels and colour bars, in two or three columns.

    Colours are those of heatmaps, from transparent at 0 to bright at the map's maximum. The part that the network did
    not see is faded in every picture.
    """
    columns = 2 if len(maps) <= 3 else 3
    scaled = [_scaled(each) for each in maps]
    (height, width), (left, top, right, bottom) = maps[0].size, maps[0].grid.part
    cropped = max(left, top, width - right, height - bottom) >= 1
    note = "faded: what the network did not see" if cropped else ""
    tiles = [_tile(_photograph(scaled[0]), "the picture", note)]
    for found in scaled:
        chance = f"{found.probability:.3f}" if found.probability >= 0.0005 else "below 0.001"
        note = f"probability {chance}, {found.method} of {found.layer}"
        tiles.append(_tile(_overlay(found), found.label, note, found))
    across, down = WIDTH + MARGIN, max(tile.height for tile in tiles) + MARGIN
    page = Image.new("RGB", (MARGIN + columns * across, MARGIN - (-len(tiles) // columns) * down), PAPER)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        page.paste(tile, (MARGIN + column * across, MARGIN + row * down))
    return page


def _scaled(found: GradCam) -> GradCam:
    """Resize the picture and its grid to the drawing size."""
    height, width = found.size
    factor = min(WIDTH / width, HEIGHT / height)
    size: Pair = (max(1, round(height * factor)), max(1, round(width * factor)))
    down, across = size[0] / height, size[1] / width
    left, top, right, bottom = found.grid.part
    picture = np.asarray(Image.fromarray(shown(found.picture)).resize((size[1], size[0])))
    part = Box(left * across, top * down, right * across, bottom * down)
    return replace(found, picture=picture, grid=replace(found.grid, size=size, part=part))


def _photograph(found: GradCam) -> Image.Image:
    """The picture with the part that the network did not see faded."""
    height, width = found.size
    left, top, right, bottom = (round(edge) for edge in found.grid.part)
    shade = np.full((height, width), round(255 * DIMMED), np.uint8)
    shade[max(top, 0) : bottom, max(left, 0) : right] = 0
    paper = Image.new("RGB", (width, height), PAPER)
    return Image.composite(paper, Image.fromarray(shown(found.picture)), Image.fromarray(shade))


def overlaid(found: GradCam) -> Image.Image:
    """Draw a map over its picture, without text, at most 640 pixels wide and 800 high."""
    return _overlay(_scaled(found))


def _overlay(found: GradCam) -> Image.Image:
    values = np.rint(found.at_picture_size() * 255).astype(np.uint8)
    mask = Image.fromarray((255 * STRENGTH[values]).astype(np.uint8))
    return Image.composite(Image.fromarray(palette()[values]), _photograph(found), mask)


def _tile(image: Image.Image, words: str, note: str, found: GradCam | None = None) -> Image.Image:
    """A picture with two lines of text below and, for a map, a colour bar from 0 to its maximum."""
    font, small = Letters(LETTERS), Letters(LETTERS - 4)
    tile = Image.new("RGB", (WIDTH, image.height + 8 + 3 * LINE), PAPER)
    tile.paste(image, ((WIDTH - image.width) // 2, 0))
    draw = Pen(tile)
    middles = [image.height + 8 + LINE * number + LINE // 2 for number in range(3)]
    draw.text((0, middles[0]), shorten(words, font, WIDTH), INK, font, anchor="lm")
    draw.text((0, middles[1]), shorten(note, small, WIDTH), GREY, small, anchor="lm")
    if found is not None:
        end = f"{found.raw_maximum:.3g}"
        begin_width, end_width = (round(small.getlength(text)) + 10 for text in ("0", end))
        width = WIDTH - begin_width - end_width
        colors = palette()[np.linspace(0, 255, width).astype(int)]
        bar = Image.fromarray(np.repeat(colors[None], LETTERS - 4, axis=0))
        tile.paste(bar, (begin_width, middles[2] - LETTERS // 2))
        draw.text((0, middles[2]), "0", GREY, small, anchor="lm")
        draw.text((WIDTH, middles[2]), end, GREY, small, anchor="rm")
    return tile


def _write_json(path: Path, maps: Sequence[GradCam]) -> None:
    found = [each.to_dict() for each in maps]
    text = json.dumps(found[0] if len(found) == 1 else found, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


GradCam.writer = Writer(
    "Grad-CAM",
    {**picture_formats(side_by_side), ".json": _write_json, ".npz": write_arrays, ".npy": write_values},
)

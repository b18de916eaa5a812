"""Grad-CAM maps: their cells, values, files and pictures."""

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
from convnets_torch.images.preprocessing import Pair, cropped_box
from convnets_torch.networks import Network
from convnets_torch.visualization.letters import Letters, Pen
from convnets_torch.visualization.overlays import GREY, INK, PAPER, STRENGTH, palette, picture_formats, shorten
from convnets_torch.wordnet.targets import Target


def cam_cells(network: Network, layer: str, shape: Pair, card: Card, size: Pair) -> CellGrid:
    """Where the cells of a layer lie over a picture.

    Cells stand at the centres of their receptive fields where the layer is one of `features` that can be followed;
    otherwise they share what was seen evenly.

    Args:
        network: that saw the picture.
        layer: name of the module.
        shape: (rows, columns) of its output.
        card: of the weights, whose preprocessing says what was seen.
        size: (height, width) of the picture in pixels.
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
        grid: where the cells lie over it; the network saw a part of it. `cells` is another name for it.
    """

    raw_maximum: float
    target: Target
    against: Target | None
    layer: str
    method: str
    probability: float

    @property
    def cells(self) -> CellGrid:
        """Where the cells lie."""
        return self.grid

    @property
    def label(self) -> str:
        return self.target.label if self.against is None else f"{self.target.label} rather than {self.against.label}"

    @property
    def peak_pixel(self) -> tuple[float, float]:
        """(x, y) of the centre of the cell with the highest value in pixels of the picture, cut at what was seen."""
        (row, column), part = self.peak, self.grid.part
        x, y = float(self.grid.centres(1)[column]), float(self.grid.centres(0)[row])
        return (min(max(x, part.left), part.right), min(max(y, part.top), part.bottom))

    def save(self, path: Output) -> None:
        """Write the map, atomically, in the form that the ending of `path` names.

        Args:
            path: `.png`, `.jpg` or `.webp`: the picture, and beside it the map over it, with its words and a bar of
                its colours; `.npz`: the numbers and where the cells lie; `.npy`: the numbers alone, (rows, columns);
                `.json`: all but the picture. Or an open binary file, which gets a `.png` unless its name says
                otherwise.

        Raises:
            ValueError: another file ending.
            OSError: `path` cannot be written.
        """
        save_maps([self], path)

    def to_dict(self) -> dict[str, Any]:
        """All but the picture as JSON can hold it; boxes of regions are those above half of the maximum."""
        return {
            **self.described(),
            "regions": [{"box": region.box._asdict(), "score": round(region.score, 6)} for region in self.regions()],
            **self.located(),
            "values": [[round(value, 6) for value in row] for row in self.values.tolist()],
        }

    def described(self) -> dict[str, Any]:
        """What is explained, how, and where the peak is, as JSON can hold it."""
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
    """Write maps of one picture into one file, atomically; a single one as its `save` does.

    Args:
        maps: as `gradcam` gives them for a list of targets.
        path: `.png`, `.jpg` or `.webp`: the picture and its maps side by side; `.npz`, `.npy`: numbers (maps, rows,
            columns); `.json`: a list.

    Raises:
        ValueError: another file ending, no map, or maps of several pictures or layers.
        OSError: `path` cannot be written.
    """
    save_maps(maps, path)


WIDTH, HEIGHT = 640, 800  # pixels into which each picture is fitted
MARGIN, LETTERS, LINE = 16, 24, 34  # of a page that is 1328 pixels wide and readable at 800
DIMMED = 0.6  # how far what the network did not see fades into the paper


def side_by_side(maps: Sequence[GradCam]) -> Image.Image:
    """The picture, and beside it each map over it, with its words and a bar of its colours.

    Colours are those of heatmaps, from clear at 0 to glowing at the map's maximum. What the network did not see is
    faded, on the photograph too.

    Args:
        maps: of one picture.

    Returns:
        RGB, two pictures in a row, of more than three maps three.
    """
    columns = 2 if len(maps) <= 3 else 3
    scaled = [_scaled(each) for each in maps]
    tiles = [
        _tile(_photograph(scaled[0]), "the picture", "faded: what the network did not see" if _cut(maps[0]) else "")
    ]
    for found in scaled:
        chance = f"{found.probability:.3f}" if found.probability >= 0.0005 else "below 0.001"
        remark = f"probability {chance}, {found.method} of {found.layer}"
        tiles.append(_tile(_overlay(found), found.label, remark, found))
    height = max(tile.height for tile in tiles) + MARGIN
    rows = -(-len(tiles) // columns)
    page = Image.new("RGB", (MARGIN + columns * (WIDTH + MARGIN), MARGIN + rows * height), PAPER)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        page.paste(tile, (MARGIN + column * (WIDTH + MARGIN), MARGIN + row * height))
    return page


def _scaled(found: GradCam) -> GradCam:
    """The same map over its picture, enlarged or reduced to the size at which it is drawn."""
    height, width = found.size
    factor = min(WIDTH / width, HEIGHT / height)
    size: Pair = (max(1, round(height * factor)), max(1, round(width * factor)))
    down, across = size[0] / height, size[1] / width
    left, top, right, bottom = found.grid.part
    picture = np.asarray(Image.fromarray(found.picture).resize((size[1], size[0])))
    part = Box(left * across, top * down, right * across, bottom * down)
    return replace(found, picture=picture, grid=replace(found.grid, size=size, part=part))


def _cut(found: GradCam) -> bool:
    """Whether the network saw less than the picture, by a pixel or more."""
    height, width = found.size
    left, top, right, bottom = found.grid.part
    return max(left, top, width - right, height - bottom) >= 1


def _photograph(found: GradCam) -> Image.Image:
    """The picture, what was not seen fading into the paper."""
    height, width = found.size
    left, top, right, bottom = (round(edge) for edge in found.grid.part)
    shade = np.full((height, width), round(255 * DIMMED), np.uint8)
    shade[max(top, 0) : bottom, max(left, 0) : right] = 0
    paper = Image.new("RGB", (width, height), PAPER)
    return Image.composite(paper, Image.fromarray(found.picture), Image.fromarray(shade))


def overlaid(found: GradCam) -> Image.Image:
    """A map over its picture, without words, of at most 640 pixels' width and 800 pixels' height."""
    return _overlay(_scaled(found))


def _overlay(found: GradCam) -> Image.Image:
    values = np.rint(found.at_picture_size() * 255).astype(np.uint8)
    mask = Image.fromarray((255 * STRENGTH[values]).astype(np.uint8))
    return Image.composite(Image.fromarray(palette()[values]), _photograph(found), mask)


def _tile(image: Image.Image, words: str, remark: str, found: GradCam | None = None) -> Image.Image:
    """A picture over its words; of a map with a bar from 0 to its maximum."""
    font, small = Letters(LETTERS), Letters(LETTERS - 4)
    tile = Image.new("RGB", (WIDTH, image.height + 8 + 3 * LINE), PAPER)
    tile.paste(image, ((WIDTH - image.width) // 2, 0))
    draw = Pen(tile)
    middles = [image.height + 8 + LINE * number + LINE // 2 for number in range(3)]
    draw.text((0, middles[0]), shorten(words, font, WIDTH), INK, font, anchor="lm")
    draw.text((0, middles[1]), shorten(remark, small, WIDTH), GREY, small, anchor="lm")
    if found is not None:
        end = f"{found.raw_maximum:.3g}"
        begin_width, end_width = (round(small.getlength(text)) + 10 for text in ("0", end))
        width = WIDTH - begin_width - end_width
        colors = palette()[np.linspace(0, 255, width).astype(int)]
        tile.paste(
            Image.fromarray(np.repeat(colors[None], LETTERS - 4, axis=0)), (begin_width, middles[2] - LETTERS // 2)
        )
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

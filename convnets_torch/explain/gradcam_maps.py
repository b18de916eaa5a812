"""Grad-CAM maps: their cells, values, files and pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnets_torch.card import Card
from convnets_torch.explain.activations import layer_fields
from convnets_torch.files import Output, check_writable, path_of, replacing, to_open_files
from convnets_torch.heatmaps.maps import Box, Region, find_regions
from convnets_torch.images.preprocessing import Pair, Pixels, cropped_box
from convnets_torch.networks import Network
from convnets_torch.visualization.letters import Letters, Pen
from convnets_torch.visualization.overlays import GREY, INK, PAPER, STRENGTH, interpolated, palette, shorten
from convnets_torch.wordnet.targets import Target

Values = NDArray[np.float32]


@dataclass(frozen=True)
class CamCells:
    """The cells of a layer over a picture.

    Attributes:
        size: (height, width) of the picture in pixels.
        seen: the part of it that the network saw, in pixels of the picture.
        seen_size: (height, width) in pixels at which the network saw that part.
        shape: (rows, columns) of cells.
        first: (vertical, horizontal) centre of the first cell, in pixels that the network saw.
        apart: (vertical, horizontal) pixels that the network saw between neighbouring centres.
    """

    size: Pair
    seen: Box
    seen_size: Pair
    shape: Pair
    first: tuple[float, float]
    apart: tuple[float, float]

    @property
    def scale(self) -> tuple[float, float]:
        """(vertical, horizontal) pixels of the picture for one that the network saw."""
        left, top, right, bottom = self.seen
        return ((bottom - top) / self.seen_size[0], (right - left) / self.seen_size[1])

    def centres(self, axis: int) -> NDArray[np.float64]:
        """Where the centres of rows (axis 0) or columns (axis 1) are, in pixels of the picture.

        It is the centre of the receptive field, which some networks shift by up to half the distance of the cells.
        """
        begin = (self.seen.top, self.seen.left)[axis]
        places = self.first[axis] + np.arange(self.shape[axis], dtype=np.float64) * self.apart[axis]
        return np.asarray(begin + places * self.scale[axis], np.float64)

    def boxes(self) -> NDArray[np.float64]:
        """(rows, columns, 4): what is nearest to each cell, cut at what the network saw.

        Left, top, right, bottom in pixels of the picture.
        """
        edges = []
        for axis, begin, end in ((0, self.seen.top, self.seen.bottom), (1, self.seen.left, self.seen.right)):
            half = self.apart[axis] * self.scale[axis] / 2
            centres = self.centres(axis)
            spans = np.stack([centres - half, centres + half], axis=1)
            spans[0, 0], spans[-1, 1] = begin, end  # the outermost cells reach to the border
            edges.append(np.clip(spans, begin, end))
        down, across = edges[0][:, None], edges[1][None]
        sides = (across[..., 0], down[..., 0], across[..., 1], down[..., 1])
        return np.stack([np.broadcast_to(side, self.shape) for side in sides], axis=-1)

    def at_picture_size(self, values: Values) -> Values:
        """Values (rows, columns) between the centres on the pixels of the picture, zero where nothing was seen.

        Returns:
            (H, W) for the picture's height and width.
        """
        left, top, right, bottom = self.seen
        for axis, begin, end in ((0, top, bottom), (1, left, right)):
            pixels = np.arange(self.size[axis]) + 0.5
            centres = self.centres(axis)
            values = interpolated(values, (pixels - centres[0]) / (self.apart[axis] * self.scale[axis]), axis)
            outside = (pixels < begin) | (pixels > end)
            values = np.where(outside[:, None] if axis == 0 else outside, np.float32(0), values)
        return values

    def at_seen_size(self, values: Values) -> Values:
        """Values (rows, columns) on the pixels that the network saw, (h, w)."""
        for axis in (0, 1):
            pixels = np.arange(self.seen_size[axis]) + 0.5
            values = interpolated(values, (pixels - self.first[axis]) / self.apart[axis], axis)
        return values

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON can hold them."""
        return {**asdict(self), "seen": self.seen._asdict()}


def cam_cells(network: Network, layer: str, shape: Pair, card: Card, size: Pair) -> CamCells:
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
    return CamCells(size, Box(*cropped_box(size, card.preprocessing)), seen_size, shape, first, apart)


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
        from convnets_torch.visualization import overlays

        overlays.save_image(side_by_side(maps), path)


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
    height, width = found.cells.size
    factor = min(WIDTH / width, HEIGHT / height)
    size: Pair = (max(1, round(height * factor)), max(1, round(width * factor)))
    down, across = size[0] / height, size[1] / width
    left, top, right, bottom = found.cells.seen
    picture = np.asarray(Image.fromarray(found.picture).resize((size[1], size[0])))
    seen = Box(left * across, top * down, right * across, bottom * down)
    return replace(found, picture=picture, cells=replace(found.cells, size=size, seen=seen))


def _cut(found: GradCam) -> bool:
    """Whether the network saw less than the picture, by a pixel or more."""
    height, width = found.cells.size
    left, top, right, bottom = found.cells.seen
    return max(left, top, width - right, height - bottom) >= 1


def _photograph(found: GradCam) -> Image.Image:
    """The picture, what was not seen fading into the paper."""
    height, width = found.cells.size
    left, top, right, bottom = (round(edge) for edge in found.cells.seen)
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

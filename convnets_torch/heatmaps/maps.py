"""Maps over a picture: cell positions, values, regions above a threshold, and output files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import ceil, floor
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnets_torch.card import Card
from convnets_torch.files import Output, Writer
from convnets_torch.images.levels import shown
from convnets_torch.images.preprocessing import Interpolation, Pair, Pixels
from convnets_torch.images.sources import Preview
from convnets_torch.inference.classification import Prediction, prediction
from convnets_torch.npz import write_npz
from convnets_torch.text import check_choice
from convnets_torch.visualization import overlays
from convnets_torch.visualization.overlays import Resampling, interpolated
from convnets_torch.visualization.pages import Cells, MapLayer, write_page
from convnets_torch.wordnet.targets import Target, allowed_classes, checked_target, class_name, winners_in_words

# Support of Pillow's filters, in pixels of the larger of the two pictures.
REACH = {"bilinear": 1.0, "bicubic": 2.0}


class Box(NamedTuple):
    """A rectangle in pixels of the picture: columns left to right, rows top to bottom, the ends excluded."""

    left: float
    top: float
    right: float
    bottom: float


Values = NDArray[np.float32]
Boxes = Literal["window", "receptive field"]


@dataclass(frozen=True)
class CellGrid:
    """Equally spaced cells over a picture, all or part of which the network saw, possibly resized.

    Attributes:
        size: (height, width) of the picture in pixels.
        part: the part of it that the network saw, in pixels of the picture.
        seen: (height, width) of the network's input for that part.
        shape: (rows, columns) of cells.
        first: (vertical, horizontal) centre of the first cell, in input pixels.
        apart: (vertical, horizontal) distance between neighbouring centres, in input pixels.
        window: (height, width) of a cell's window, in input pixels; None if a cell covers the area nearest to its
            centre.
        fields_seen: receptive fields, for rows and for columns of cells: the first input pixel and the one after the
            last. Empty if they were not requested.
        interpolation: the filter that resized the picture.
    """

    size: Pair
    part: Box
    seen: Pair
    shape: Pair
    first: tuple[float, float]
    apart: tuple[float, float]
    window: Pair | None = None
    fields_seen: tuple[tuple[Pair, ...], tuple[Pair, ...]] = ((), ())
    interpolation: Interpolation = "bilinear"

    @property
    def scale(self) -> tuple[float, float]:
        """(vertical, horizontal) pixels of the picture per input pixel."""
        left, top, right, bottom = self.part
        return ((bottom - top) / self.seen[0], (right - left) / self.seen[1])

    @property
    def step(self) -> tuple[float, float]:
        """(vertical, horizontal) pixels of the picture between neighbouring centres."""
        return (self.apart[0] * self.scale[0], self.apart[1] * self.scale[1])

    @property
    def window_size(self) -> tuple[float, float]:
        """(height, width) of the area that a cell covers, in pixels of the picture."""
        height, width = self.window or self.apart
        return (height * self.scale[0], width * self.scale[1])

    def centres(self, axis: int) -> NDArray[np.float64]:
        """Return the centres of rows (axis 0) or columns (axis 1), in pixels of the picture.

        In some networks the centres of receptive fields are shifted by up to half the distance between cells.
        """
        begin = (self.part.top, self.part.left)[axis]
        return np.asarray(
            begin + (self.first[axis] + np.arange(self.shape[axis]) * self.apart[axis]) * self.scale[axis]
        )

    def places(self, axis: int, pixels: NDArray[Any]) -> NDArray[Any]:
        """Convert pixels of the picture to cell indices: 1.5 is halfway between the second and the third centre."""
        begin = (self.part.top, self.part.left)[axis]
        return (pixels - (begin + self.first[axis] * self.scale[axis])) / self.step[axis]

    def nearest(self, x: float, y: float) -> Pair:
        """Return (row, column) of the cell centred nearest to the centre of a pixel; the first of two equally near."""
        places = (np.ceil(self.places(axis, np.asarray(place + 0.5)) - 0.5) for axis, place in enumerate((y, x)))
        row, column = (int(np.clip(place, 0, count - 1)) for place, count in zip(places, self.shape, strict=True))
        return (row, column)

    def windows(self, axis: int) -> NDArray[np.float64]:
        """Return the start and end of the area that each row (axis 0) or column (axis 1) covers, (count, 2)."""
        if self.window is not None:
            corner = np.arange(self.shape[axis]) * self.step[axis]
            return np.stack([corner, corner + self.window_size[axis]], axis=1)
        begin, end = ((self.part.top, self.part.bottom), (self.part.left, self.part.right))[axis]
        centres, half = self.centres(axis), self.step[axis] / 2
        spans = np.stack([centres - half, centres + half], axis=1)
        spans[0, 0], spans[-1, 1] = begin, end  # the outermost cells reach to the border
        return np.clip(spans, begin, end)

    def fields(self, axis: int) -> NDArray[np.float64]:
        """Return the receptive field of each row or column, (count, 2): the first pixel and the one after the last."""
        found = [self._source_pixels(axis, first, end - 1) for first, end in self.fields_seen[axis]]
        return np.array(found, np.float64)

    def _source_pixels(self, axis: int, first: int, last: int) -> tuple[int, int]:
        """Return the range of picture pixels that contribute to input pixels `first` to `last`."""
        scale = self.scale[axis]
        if self.size[axis] == self.seen[axis]:
            return (first, last + 1)
        reach = REACH.get(self.interpolation)
        middle, end = (first + 0.5) * scale, (last + 0.5) * scale
        if reach is None:  # the nearest pixel
            return (floor(middle), floor(end) + 1)
        reach *= max(scale, 1.0)
        return (max(0, floor(middle - reach + 0.5)), min(self.size[axis], floor(end + reach + 0.5)))

    def box(self, row: int, column: int, kind: Boxes = "window") -> Box:
        """Return the window or the receptive field of a cell, in pixels of the picture."""
        edges = self.windows if kind == "window" else self.fields
        (top, bottom), (left, right) = edges(0)[row].tolist(), edges(1)[column].tolist()
        return Box(left, top, right, bottom)

    def boxes(self, kind: Boxes = "window") -> NDArray[np.float64]:
        """Return `box` of every cell, (rows, columns, 4)."""
        edges = self.windows if kind == "window" else self.fields
        down, across = edges(0)[:, None], edges(1)[None]
        sides = (across[..., 0], down[..., 0], across[..., 1], down[..., 1])
        return np.stack([np.broadcast_to(side, self.shape) for side in sides], axis=-1)

    def resample(self, values: Values, interpolation: Resampling = "bilinear") -> Values:
        """Resample values (rows, columns) to the pixels of the picture, (H, W); zero outside `part`."""
        left, top, right, bottom = self.part
        for axis, begin, end in ((0, top, bottom), (1, left, right)):
            pixels = np.arange(self.size[axis]) + 0.5
            values = interpolated(values, self.places(axis, pixels), axis, interpolation)
            outside = (pixels < begin) | (pixels > end)
            if outside.any():
                values = np.where(outside[:, None] if axis == 0 else outside, np.float32(0), values)
        return values

    def resample_seen(self, values: Values) -> Values:
        """Resample values (rows, columns) to the network's input, (h, w)."""
        for axis in (0, 1):
            pixels = np.arange(self.seen[axis]) + 0.5
            values = interpolated(values, (pixels - self.first[axis]) / self.apart[axis], axis)
        return values


@dataclass(frozen=True)
class Region:
    """A connected region of cells above a threshold.

    Attributes:
        box: bounding box of the cells' windows, clipped to the picture.
        score: the highest value of the cells.
        peak: (row, column) of that cell.
        cells: number of cells.
    """

    box: Box
    score: float
    peak: tuple[int, int]
    cells: int


def components(above: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Return the cells of each connected component, (cells, 2) of row and column; cells connect at sides and corners.

    >>> [len(cells) for cells in components(np.array([[1, 0, 0, 1], [0, 1, 0, 1]], bool))]
    [2, 2]
    """
    left = {(int(row), int(column)) for row, column in zip(*np.nonzero(above), strict=True)}
    found = []
    while left:
        edge = [left.pop()]
        cells = []
        while edge:
            row, column = edge.pop()
            cells.append((row, column))
            for near in [(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)]:
                if near in left:
                    left.remove(near)
                    edge.append(near)
        found.append(np.array(sorted(cells)))
    return found


def check_threshold(threshold: float) -> None:
    """Raise ValueError if a threshold is not a finite number."""
    if not np.isfinite(threshold):
        raise ValueError(f"the threshold is {threshold}; give a number, 0 to 1 for probabilities")


def find_regions(
    values: NDArray[np.float32], threshold: float, boxes: NDArray[Any], size: tuple[int, int]
) -> list[Region]:
    """Return the regions of a map, highest score first; cells connect at sides and corners.

    Args:
        values: (rows, columns).
        threshold: regions consist of cells above it.
        boxes: (rows, columns, 4), the window of each cell: left, top, right, bottom in pixels of the picture.
        size: (height, width) of the picture in pixels.

    Raises:
        ValueError: the threshold is not a number.
    """
    check_threshold(threshold)
    regions = []
    for cells in components(values > np.float32(threshold)):
        rows, columns = cells.T
        windows = boxes[rows, columns]
        left, top = (max(0.0, float(windows[:, side].min())) for side in (0, 1))
        right, bottom = (min(float(size[1 - side]), float(windows[:, 2 + side].max())) for side in (0, 1))
        best = int(values[rows, columns].argmax())
        peak = (int(rows[best]), int(columns[best]))
        regions.append(Region(Box(left, top, right, bottom), float(values[peak]), peak, len(cells)))
    return sorted(regions, key=lambda region: (-region.score, region.peak))


@dataclass(frozen=True, eq=False, kw_only=True)
class PictureMap:
    """A map of values over a picture: the common base of heatmaps and Grad-CAM.

    Attributes:
        values: (rows, columns) float32, the map.
        picture: (h, w, 3) uint8, RGB, or RGBA for a network that reads it: the picture at its own size, rotated by its
            EXIF orientation if the card says so; a reduced view, RGB, of a picture that was read row by row.
        grid: the cells' positions, in pixels of the picture at its own size.
    """

    values: Values
    picture: Pixels
    grid: CellGrid

    writer: ClassVar[Writer]  # its functions take maps of one picture and further arguments of `save`
    own: ClassVar[str] = "values"  # name of the attribute that `.npy` files hold

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the picture in pixels."""
        return self.grid.size

    @property
    def label(self) -> str:
        """The map's subject, in words."""
        raise NotImplementedError

    @property
    def peak(self) -> tuple[int, int]:
        """(row, column) of the cell with the highest value."""
        row, column = np.unravel_index(self.values.argmax(), self.values.shape)
        return int(row), int(column)

    def boxes(self, kind: Boxes = "window") -> NDArray[np.float64]:
        """Return `grid.boxes`: left, top, right, bottom of every cell in pixels of the picture, (rows, columns, 4)."""
        return self.grid.boxes(kind)

    def regions(self, threshold: float = 0.5) -> list[Region]:
        """Return the connected regions of cells above a threshold, highest value first, as `find_regions` does."""
        return find_regions(self.values, threshold, self.boxes(), self.size)

    def at_picture_size(self, interpolation: Resampling = "bilinear") -> Values:
        """Interpolate the map to the pixels of the picture; nothing was measured between cells.

        Beyond the outermost centres, the nearest cell's value is used, as far as the network saw the picture.

        Args:
            interpolation: "nearest", "bilinear" or "bicubic" (Catmull-Rom, which may overshoot) between centres.

        Returns:
            (H, W) float32 for the picture's height and width in pixels; zero where the network saw nothing.

        Raises:
            ValueError: the interpolation is unknown.
        """
        check_choice(interpolation, get_args(Resampling), "interpolation")
        return self.grid.resample(self.values, interpolation)

    def described(self) -> dict[str, Any]:
        """Return the map's subject as JSON-serialisable data."""
        raise NotImplementedError

    def located(self) -> dict[str, Any]:
        """Return the cells' positions as JSON-serialisable data, under the key that files use."""
        raise NotImplementedError

    def arrays(self) -> dict[str, Any]:
        """Return the arrays that an `.npz` stacks over several maps; of texts it keeps the first."""
        return {"values": self.values, self.own: getattr(self, self.own)}

    def shared_arrays(self) -> dict[str, Any]:
        """Return the arrays that an `.npz` takes from the first map only."""
        raise NotImplementedError


def save_maps(maps: Sequence[PictureMap], path: Output, *arguments: Any) -> None:
    """Write maps of one kind and picture to one file, as `save` does with these arguments.

    Raises:
        ValueError: the file ending is not supported, there is no map, or the maps have different pictures or cells.
    """
    if not maps:
        raise ValueError("there are no maps to write; give one or more")
    if any(each.grid != maps[0].grid for each in maps):
        raise ValueError("the maps differ in picture or cells from the first one; write them to separate files")
    maps[0].writer.write(path, maps, *arguments)


def write_values(path: Path, maps: Sequence[PictureMap], *_: Any) -> None:
    """Write the maps' values as `.npy`."""
    numbers = [getattr(each, each.own) for each in maps]
    with path.open("wb") as file:
        np.save(file, numbers[0] if len(numbers) == 1 else np.stack(numbers))


def write_arrays(path: Path, maps: Sequence[PictureMap], *_: Any) -> None:
    """Write all data of maps as `.npz`: their `arrays`, the first one's `shared_arrays`, and a text, "mapping"."""
    found = [each.arrays() for each in maps]
    arrays = {}
    for name, first in found[0].items():
        several = [each[name] for each in found if name in each]
        arrays[name] = first if len(several) == 1 or isinstance(first, str) else np.stack(several)
    mapping = {**maps[0].located(), "maps": [each.described() for each in maps]}
    shared = {"values": arrays["values"], **maps[0].shared_arrays(), "mapping": json.dumps(mapping)}
    write_npz(path, {**shared, **arrays})


def target_as_json(target: Target, name: str = "target") -> dict[str, Any]:
    """Return a target as JSON-serialisable data, its words under `name`."""
    return {name: target.label, "wnid": target.wnid, "class_ids": list(target.class_ids)}


@dataclass(frozen=True, eq=False, kw_only=True)
class CellMap(PictureMap):
    """A picture and the cells over it, each of which covers a window of the network's own size.

    Attributes:
        values, picture, grid: as in `PictureMap`; `placement` is an alias of `grid`.
        best_ids: (rows, columns, k) int32: the k most probable classes of each cell, best first.
        best_probabilities: (rows, columns, k) float32, 0 to 1.
        card: of the weights; names the classes.
    """

    best_ids: NDArray[np.int32]
    best_probabilities: Values
    card: Card

    signed: ClassVar[bool] = False

    @property
    def placement(self) -> CellGrid:
        """Alias of `grid`."""
        return self.grid

    @property
    def stride(self) -> tuple[float, float]:
        """(vertical, horizontal) pixels of the picture between neighbouring cells."""
        return self.grid.step

    @property
    def window_size(self) -> tuple[float, float]:
        """(height, width) of a cell's window in pixels of the picture."""
        return self.grid.window_size

    @property
    def label(self) -> str:
        return "the most probable class"

    def window(self, row: int, column: int) -> Box:
        """Return the window of a cell in pixels of the picture: a crop of the network's own size.

        If the network pads, the last row and column of windows may extend some pixels beyond the picture.

        Raises:
            IndexError: there is no such cell.
        """
        cells, place = self._source(row, column)
        return cells.grid.box(*place)

    def receptive_field(self, row: int, column: int) -> Box:
        """Return the receptive field of a cell, clipped to the picture: all pixels that can change its value."""
        cells, place = self._source(row, column)
        return cells.grid.box(*place, "receptive field")

    def cell_at_pixel(self, x: float, y: float) -> tuple[int, int]:
        """Return (row, column) of the cell whose window is centred nearest to a pixel, counted from the top left.

        Raises:
            IndexError: the pixel is outside the picture.
        """
        height, width = self.size
        if not (0 <= x < width and 0 <= y < height):
            raise IndexError(f"pixel ({x}, {y}) is outside the picture, {width} pixels wide and {height} high")
        return self.grid.nearest(x, y)

    def top_at(self, row: int, column: int) -> list[Prediction]:
        """Return the five most probable classes of a cell, best first."""
        cells, place = self._source(row, column)
        found = zip(cells.best_ids[place].tolist(), cells.best_probabilities[place].tolist(), strict=True)
        return [prediction(self.card, class_id, probability) for class_id, probability in found]

    def top_at_pixel(self, x: float, y: float) -> list[Prediction]:
        """Return `top_at` of `cell_at_pixel`."""
        return self.top_at(*self.cell_at_pixel(x, y))

    def best_classes(self) -> tuple[NDArray[np.int32], Values]:
        """Return the most probable class ids of every cell, (rows, columns, k), best first, and their probabilities."""
        return self.best_ids, self.best_probabilities

    def draw(self, *, plain: bool = False) -> Image.Image:
        """Draw the map over its picture, with a colour bar or a legend; with `plain`, the map alone."""
        return overlays.color_map(self) if plain else overlays.overlay(self)

    def save(self, path: Output, *, plain: bool = False, threshold: float = 0.5) -> None:
        """Write the map, atomically, in the format that the ending of `path` names.

        Args:
            path: `.png`, `.jpg` or `.webp`: the map over the picture, with a colour bar or a legend; `.html`: a page
                that shows the cell under the mouse; `.json`: regions as boxes; `.npz`: all data and the cells'
                positions; `.npy`: the map's values only. Or an open binary file, which gets a `.png` unless its name
                says otherwise.
            plain: draw the map alone, without the photograph.
            threshold: for the regions in `.json` and `.html`.

        Raises:
            ValueError: the file ending is not supported.
            OSError: `path` cannot be written.
        """
        save_maps([self], path, plain, threshold)

    def located(self) -> dict[str, Any]:
        grid = self.grid
        return {
            "placement": {
                "size": grid.size,
                "seen": grid.seen,
                "stride_seen": grid.apart[0],
                "window_seen": grid.window,
                "rows_seen": grid.fields_seen[0],
                "columns_seen": grid.fields_seen[1],
                "interpolation": grid.interpolation,
            }
        }

    def shared_arrays(self) -> dict[str, Any]:
        best_ids, best_probabilities = self.best_classes()
        return {
            "best_ids": best_ids,
            "best_probabilities": best_probabilities,
            "windows": self.boxes("window"),
            "receptive_fields": self.boxes("receptive field"),
        }

    def highest_and_regions(self, threshold: float) -> dict[str, Any]:
        """Return the highest value and the regions above the threshold as JSON-serialisable data."""
        regions = [
            {"box": each.box._asdict(), "score": round(each.score, 6), "peak": list(each.peak), "cells": each.cells}
            for each in self.regions(threshold)
        ]
        return {"highest": round(float(self.values.max()), 6), "regions": regions}

    def _source(self, row: int, column: int) -> tuple[CellMap, tuple[int, int]]:
        """Return the single-pass map, and its cell, behind a cell of this map."""
        rows, columns = self.values.shape
        if not (0 <= row < rows and 0 <= column < columns):
            raise IndexError(f"cell ({row}, {column}) is outside the map of {rows} rows and {columns} columns")
        return self, (row, column)


LONGEST_PAGE = 4096  # pixels, longer side of the picture in a page
TILE = 640  # pixels, width of a picture in a sheet


def _draw(maps: Sequence[CellMap], plain: bool, _: float) -> Image.Image:
    """Draw one map over its picture, or several side by side."""
    pictures = [each.draw(plain=plain) for each in maps]
    if len(pictures) == 1:
        return pictures[0]
    columns = min(3, ceil(len(maps) ** 0.5))
    return overlays.sheet([(picture, "") for picture in pictures], columns, width=TILE)


def regions_of(maps: Sequence[CellMap], threshold: float) -> dict[str, Any]:
    """Return the picture's size and each map's target and regions as JSON-serialisable data."""
    height, width = maps[0].size
    entries = [{**each.described(), **each.highest_and_regions(threshold)} for each in maps]
    return {"picture": {"height": height, "width": width}, "threshold": threshold, "maps": entries}


def _write_json(path: Path, maps: Sequence[CellMap], _: bool, threshold: float) -> None:
    path.write_text(json.dumps(regions_of(maps, threshold), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _write_page(path: Path, maps: Sequence[CellMap], _: bool, threshold: float) -> None:
    first = maps[0]
    names = {class_id: class_name(first.card, class_id) for class_id in np.unique(first.best_ids).tolist()}
    windows, fields = first.grid.windows, first.grid.fields
    edges = windows(0), windows(1), fields(0), fields(1)
    cells = Cells(*edges, first.best_ids, first.best_probabilities, names)
    layers = [MapLayer(each.label, each.values, signed=each.signed, threshold=threshold) for each in maps]
    picture = shown(first.picture)
    if max(picture.shape) > LONGEST_PAGE:
        preview = Preview(picture.shape[:2], LONGEST_PAGE)
        preview.add(0, picture)
        picture = preview.picture
    title = " · ".join(layer.words for layer in layers)
    if scales := getattr(first, "scales", ()):
        title += f" ({len(scales)} scales fused; windows and classes are the finest scale's)"
    write_page(path, picture, first.size, layers, cells, title=title)


CellMap.writer = Writer(
    "a heatmap",
    {
        **overlays.picture_formats(_draw),
        ".npy": write_values,
        ".npz": write_arrays,
        ".json": _write_json,
        ".html": _write_page,
    },
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Heatmap(CellMap):
    """The probability of a target in every window of a picture.

    Attributes:
        values: (rows, columns) float32, 0 to 1; `probabilities` is an alias.
        target: the classes whose probabilities are summed in each cell, each class once.
        scales: the map of each scale of the picture, if several were fused; the fused map has the cells of the last,
            finest one. A cell's window, receptive field and best classes come from the nearest cell of the scale with
            the highest value there.
        winners: (rows, columns) int64, the index of that scale in `scales`; None for a single pass.
    """

    target: Target
    scales: tuple[Heatmap, ...] = ()
    winners: NDArray[np.int64] | None = None

    @property
    def probabilities(self) -> Values:
        """(rows, columns) float32, 0 to 1."""
        return self.values

    @property
    def label(self) -> str:
        return self.target.label

    def described(self) -> dict[str, Any]:
        return {"kind": "heatmap", **target_as_json(self.target)}

    def arrays(self) -> dict[str, Any]:
        found = super().arrays()
        for number, scale in enumerate(self.scales):
            found |= {f"scale_{number}": scale.values, f"mapping_{number}": json.dumps(scale.located())}
        return found

    def _source(self, row: int, column: int) -> tuple[CellMap, tuple[int, int]]:
        cell = super()._source(row, column)
        if self.winners is None:
            return cell
        winner = self.scales[int(self.winners[row, column])]
        box = self.grid.box(row, column)
        x, y = (box.left + box.right) / 2 - 0.5, (box.top + box.bottom) / 2 - 0.5
        return winner, winner.grid.nearest(x, y)

    def boxes(self, kind: Boxes = "window") -> NDArray[np.float64]:
        return super().boxes(kind) if self.winners is None else self._take_winners([s.boxes(kind) for s in self.scales])

    def best_classes(self) -> tuple[NDArray[np.int32], Values]:
        if self.winners is None:
            return super().best_classes()
        ids, probabilities = zip(*(scale.best_classes() for scale in self.scales), strict=True)
        return self._take_winners(ids), self._take_winners(probabilities)

    def _take_winners(self, arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Take each cell's values from the array (rows, columns, k) of its winning scale."""
        down, across = (self.grid.windows(axis).mean(axis=1) - 0.5 for axis in (0, 1))
        spread = []
        for scale, array in zip(self.scales, arrays, strict=True):
            rows = [scale.grid.nearest(0, y)[0] for y in down]
            columns = [scale.grid.nearest(x, 0)[1] for x in across]
            spread.append(array[rows][:, columns])
        assert self.winners is not None
        return np.take_along_axis(np.stack(spread), self.winners[None, :, :, None], axis=0)[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class Contrast(CellMap):
    """How much more probable one target is than another in every window.

    Attributes:
        values: (rows, columns) float32, -1 to 1: the probability of `one` minus that of `other`.
        one, other: their maps.
    """

    one: Heatmap
    other: Heatmap

    signed: ClassVar[bool] = True

    @property
    def label(self) -> str:
        return f"{self.one.target.label} rather than {self.other.target.label}"

    def described(self) -> dict[str, Any]:
        one, other = (target_as_json(each.target) for each in (self.one, self.other))
        return {"kind": "contrast", "one": one, "other": other}

    def _source(self, row: int, column: int) -> tuple[CellMap, tuple[int, int]]:
        return self.one._source(row, column)

    def boxes(self, kind: Boxes = "window") -> NDArray[np.float64]:
        return self.one.boxes(kind)

    def best_classes(self) -> tuple[NDArray[np.int32], Values]:
        return self.one.best_classes()


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassMap(CellMap):
    """The most probable class of every window of a picture, and its probability.

    Attributes:
        values: (rows, columns) float32, 0 to 1: the winner's probability; `probabilities` is an alias.
        class_ids: (rows, columns) int64, the winning class of each cell.
        names: class id -> words, for every class that wins a cell, most frequent first.
    """

    class_ids: NDArray[np.int64]
    names: dict[int, str]

    own: ClassVar[str] = "class_ids"

    @property
    def probabilities(self) -> Values:
        """(rows, columns) float32, 0 to 1."""
        return self.values

    def described(self) -> dict[str, Any]:
        return {"kind": "classes", "names": {str(class_id): words for class_id, words in self.names.items()}}

    def draw(self, *, plain: bool = False) -> Image.Image:
        """Draw each window in the colour of its class, over the picture, with a legend."""
        return overlays.class_overlay(self, self.class_ids, self.names)


@dataclass(frozen=True, eq=False, kw_only=True)
class ProbabilityMap(CellMap):
    """The probability of every class in every window; maps of any target follow without another pass.

    Attributes:
        values: (rows, columns) float32: the highest probability of any class.
        probabilities: (classes, rows, columns) float32, 0 to 1.
    """

    probabilities: Values

    own: ClassVar[str] = "probabilities"

    def described(self) -> dict[str, Any]:
        return {"kind": "probabilities"}

    def draw(self, *, plain: bool = False) -> Image.Image:
        """Draw `class_map()`."""
        return self.class_map().draw()

    def heatmap(self, target: str | int) -> Heatmap:
        """Return the map of a target, as `heatmap` computes it.

        Raises:
            ValueError: the target is unknown, or consists of several classes of a network with sigmoid outputs.
        """
        found = checked_target(self.card, target)
        total = np.minimum(self.probabilities[list(found.class_ids)].sum(axis=0), np.float32(1))
        return Heatmap(**_shared(self), values=total, target=found)

    def contrast(self, target: str | int, against: str | int) -> Contrast:
        """Return the difference between the maps of two targets, as `contrast` computes it."""
        return contrast_of(self.heatmap(target), self.heatmap(against))

    def class_map(self, only: str | int | None = None) -> ClassMap:
        """Return the most probable class of every cell, as `class_map` computes it."""
        allowed = allowed_classes(self.card, only)
        chances = self.probabilities[allowed]
        class_ids = np.asarray(allowed)[chances.argmax(axis=0)]
        names = winners_in_words(self.card, class_ids.ravel().tolist())
        return ClassMap(**_shared(self), values=chances.max(axis=0), class_ids=class_ids, names=names)


def contrast_of(one: Heatmap, other: Heatmap) -> Contrast:
    """Return the difference between two maps of the same cells; ValueError if their targets are the same classes."""
    if one.target.class_ids == other.target.class_ids:
        raise ValueError(f"{one.target.label} and {other.target.label} are the same classes; contrast two targets")
    return Contrast(**_shared(one), values=one.values - other.values, one=one, other=other)


def _shared(cells: CellMap) -> dict[str, Any]:
    """Return the fields that all maps of one pass share."""
    return {field.name: getattr(cells, field.name) for field in fields(CellMap) if field.name != "values"}

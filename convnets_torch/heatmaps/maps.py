"""Maps over a picture: where the cells lie, what their values are, and the regions above a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import floor
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from convnets_torch.card import Card
from convnets_torch.files import Output, path_of, to_open_files
from convnets_torch.images.preprocessing import Interpolation, Pair, Pixels
from convnets_torch.inference.classification import Prediction, prediction
from convnets_torch.text import check_choice
from convnets_torch.visualization.overlays import Resampling, interpolated
from convnets_torch.wordnet.targets import Target, allowed_classes, checked_target, winners_in_words

# How far Pillow's filters reach, in pixels of the larger of both pictures.
REACH = {"bilinear": 1.0, "bicubic": 2.0}


@dataclass(frozen=True)
class Placement:
    """A grid of cells over a picture that was perhaps resized before the network saw it.

    Attributes:
        size: (height, width) of the picture in pixels.
        seen: (height, width) of what the network saw.
        stride_seen: pixels between neighbouring cells, in what the network saw.
        window_seen: (height, width) of a window, in what the network saw.
        rows_seen: for each row of cells the first row of pixels that they see, and the one after the last, in what the
            network saw.
        columns_seen: likewise.
        interpolation: the filter with which the picture was resized.
    """

    size: Pair
    seen: Pair
    stride_seen: int
    window_seen: Pair
    rows_seen: tuple[Pair, ...]
    columns_seen: tuple[Pair, ...]
    interpolation: Interpolation = "bilinear"

    @property
    def scale(self) -> tuple[float, float]:
        """(vertical, horizontal) pixels of the picture for one that the network saw."""
        return (self.size[0] / self.seen[0], self.size[1] / self.seen[1])

    @property
    def stride(self) -> tuple[float, float]:
        """(vertical, horizontal) pixels of the picture between neighbouring cells."""
        return (self.stride_seen * self.scale[0], self.stride_seen * self.scale[1])

    @property
    def window_size(self) -> tuple[float, float]:
        """(height, width) of a window in pixels of the picture."""
        return (self.window_seen[0] * self.scale[0], self.window_seen[1] * self.scale[1])

    @property
    def shape(self) -> Pair:
        """(rows, columns) of cells."""
        return (len(self.rows_seen), len(self.columns_seen))

    def windows(self, axis: int) -> NDArray[np.float64]:
        """(count, 2): where the windows of each row (axis 0) or column (axis 1) begin and end."""
        begin = np.arange(self.shape[axis]) * self.stride[axis]
        return np.stack([begin, begin + self.window_size[axis]], axis=1)

    def fields(self, axis: int) -> NDArray[np.float64]:
        """(count, 2): the first pixel that the cells of a row or column see, and the one after the last."""
        seen = (self.rows_seen, self.columns_seen)[axis]
        return np.array([self._source_pixels(axis, first, end - 1) for first, end in seen], np.float64)

    def _source_pixels(self, axis: int, first: int, last: int) -> tuple[int, int]:
        """Pixels of the picture that those from `first` to `last`, as the network saw them, were made of."""
        scale = self.scale[axis]
        if self.size[axis] == self.seen[axis]:
            return (first, last + 1)
        reach = REACH.get(self.interpolation)
        middle, end = (first + 0.5) * scale, (last + 0.5) * scale
        if reach is None:  # the nearest pixel
            return (floor(middle), floor(end) + 1)
        reach *= max(scale, 1.0)
        return (max(0, floor(middle - reach + 0.5)), min(self.size[axis], floor(end + reach + 0.5)))

    def box(self, row: int, column: int) -> Box:
        """The window of a cell."""
        (height, width), (down, right) = self.window_size, self.stride
        return Box(column * right, row * down, column * right + width, row * down + height)

    def nearest(self, x: float, y: float) -> Pair:
        """(row, column) of the cell whose window has its centre nearest to the centre of a pixel."""
        places = (
            np.ceil((place + 0.5 - size / 2) / stride - 0.5)  # of two as near, the first
            for place, size, stride in zip((y, x), self.window_size, self.stride, strict=True)
        )
        row, column = (int(np.clip(place, 0, count - 1)) for place, count in zip(places, self.shape, strict=True))
        return (row, column)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON can hold them."""
        return asdict(self)


class Box(NamedTuple):
    """A rectangle in pixels of the picture: columns left to right, rows top to bottom, the ends excluded."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Region:
    """Cells above a threshold that touch each other.

    Attributes:
        box: what their windows cover together, cut at the picture's borders.
        score: the highest value of its cells.
        peak: (row, column) of that cell.
        cells: how many there are.
    """

    box: Box
    score: float
    peak: tuple[int, int]
    cells: int


def components(above: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """The cells of each connected component, (cells, 2) of row and column; cells touch at sides and at corners.

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
    """Raise ValueError when a threshold is not a number."""
    if not np.isfinite(threshold):
        raise ValueError(f"the threshold is {threshold}; give a number, 0 to 1 for probabilities")


def find_regions(
    values: NDArray[np.float32], threshold: float, boxes: NDArray[Any], size: tuple[int, int]
) -> list[Region]:
    """The regions of a map, the highest score first.

    Args:
        values: (rows, columns).
        threshold: cells above it belong to regions.
        boxes: (rows, columns, 4), each cell's window: left, top, right, bottom in pixels of the picture.
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


Values = NDArray[np.float32]


@dataclass(frozen=True, eq=False, kw_only=True)
class CellMap:
    """A picture and the cells over it.

    Attributes:
        values: (rows, columns) float32: what the map shows.
        picture: (h, w, 3) uint8, RGB: the picture at its own size, turned as its EXIF says if the card follows that;
            of one that was read row by row, a reduced view.
        placement: where the cells lie, in pixels of the picture at its own size.
        best_ids: (rows, columns, k) int32: the k most probable of all classes of each cell, the best first.
        best_probabilities: (rows, columns, k) float32, 0 to 1.
        card: of the weights, which names the classes.
    """

    values: Values
    picture: Pixels
    placement: Placement
    best_ids: NDArray[np.int32]
    best_probabilities: Values
    card: Card

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the picture in pixels."""
        return self.placement.size

    @property
    def stride(self) -> tuple[float, float]:
        """(vertical, horizontal) pixels of the picture between neighbouring cells."""
        return self.placement.stride

    @property
    def window_size(self) -> tuple[float, float]:
        """(height, width) of a cell's window in pixels of the picture."""
        return self.placement.window_size

    @property
    def peak(self) -> tuple[int, int]:
        """(row, column) of the cell with the highest value."""
        row, column = np.unravel_index(self.values.argmax(), self.values.shape)
        return int(row), int(column)

    def window(self, row: int, column: int) -> Box:
        """The crop of the network's own size that a cell stands for, in pixels of the picture.

        Where a network pads, the last row and column of windows may reach some pixels beyond the picture.

        Raises:
            IndexError: there is no such cell.
        """
        cells, (row, column) = self._source(row, column)
        return cells.placement.box(row, column)

    def receptive_field(self, row: int, column: int) -> Box:
        """All pixels of the picture that can change a cell, cut at its borders; more than its window.

        Raises:
            IndexError: there is no such cell.
        """
        cells, (row, column) = self._source(row, column)
        top, bottom = cells.placement.fields(0)[row].tolist()
        left, right = cells.placement.fields(1)[column].tolist()
        return Box(left, top, right, bottom)

    def cell_at_pixel(self, x: float, y: float) -> tuple[int, int]:
        """(row, column) of the cell whose window has its centre nearest to a pixel.

        Args:
            x: column of the pixel, counted from the left, from 0.
            y: row of the pixel, counted from above.

        Raises:
            IndexError: the pixel is outside the picture.
        """
        height, width = self.size
        if not (0 <= x < width and 0 <= y < height):
            raise IndexError(f"pixel ({x}, {y}) is outside the picture of {width} pixels' width and {height} height")
        return self.placement.nearest(x, y)

    def top_at(self, row: int, column: int) -> list[Prediction]:
        """The five most probable classes of a cell, the best first.

        Raises:
            IndexError: there is no such cell.
        """
        cells, place = self._source(row, column)
        found = zip(cells.best_ids[place].tolist(), cells.best_probabilities[place].tolist(), strict=True)
        return [prediction(self.card, class_id, probability) for class_id, probability in found]

    def top_at_pixel(self, x: float, y: float) -> list[Prediction]:
        """The five most probable classes of the cell whose window has its centre nearest to a pixel.

        Raises:
            IndexError: the pixel is outside the picture.
        """
        return self.top_at(*self.cell_at_pixel(x, y))

    def regions(self, threshold: float = 0.5) -> list[Region]:
        """Cells above a threshold that touch, at sides or corners: a box around their windows, and a score.

        Returns:
            The region with the highest value first; none where no cell is above the threshold.

        Raises:
            ValueError: the threshold is not a number.
        """
        return find_regions(self.values, threshold, self.boxes("window"), self.size)

    def at_picture_size(self, interpolation: Resampling = "bilinear") -> Values:
        """The map on the pixels of the picture: a step of its own, since between cells nothing was measured.

        Cells stand at the centres of their windows; beyond the outermost centres the nearest cell's value goes on.

        Args:
            interpolation: "nearest", "bilinear" or "bicubic" (Catmull-Rom, which may overshoot) between centres.

        Returns:
            (H, W) float32 for the picture's height and width in pixels.

        Raises:
            ValueError: another interpolation.
        """
        check_choice(interpolation, get_args(Resampling), "interpolation")
        values = self.values
        for axis in (0, 1):
            places = np.arange(self.size[axis]) + 0.5
            values = interpolated(values, self._centres_at(axis, places), axis, interpolation)
        return values

    @to_open_files(".png")
    def save(self, path: Output, *, plain: bool = False, threshold: float = 0.5) -> None:
        """Write the map, atomically, in the form that the ending of `path` names.

        Args:
            path: `.png`, `.jpg` or `.webp`: the map over the picture, with a bar or a legend; `.html`: one page that
                shows the cell below the mouse; `.json`: regions as boxes; `.npz`: all numbers and where the cells lie;
                `.npy`: the map's own numbers alone.
            plain: a picture of the map alone, without the photograph.
            threshold: of the regions in `.json` and `.html`.

        Raises:
            ValueError: another file ending.
            OSError: `path` cannot be written.
        """
        from convnets_torch.heatmaps.outputs import save

        save([self], path_of(path), plain=plain, threshold=threshold)

    def _source(self, row: int, column: int) -> tuple[CellMap, tuple[int, int]]:
        """The map of one pass, and its cell, that a cell of this one stands for."""
        rows, columns = self.values.shape
        if not (0 <= row < rows and 0 <= column < columns):
            raise IndexError(f"cell ({row}, {column}) is outside the map of {rows} rows and {columns} columns")
        return self, (row, column)

    def boxes(self, kind: Literal["window", "receptive field"]) -> NDArray[np.float64]:
        """Every cell's `window` or `receptive_field` at once.

        Returns:
            (rows, columns, 4): left, top, right, bottom in pixels of the picture.
        """
        of_axis = self.placement.windows if kind == "window" else self.placement.fields
        down, across = of_axis(0)[:, None, :], of_axis(1)[None]
        edges = (across[..., 0], down[..., 0], across[..., 1], down[..., 1])
        return np.stack([np.broadcast_to(edge, self.values.shape) for edge in edges], axis=-1)

    def best_classes(self) -> tuple[NDArray[np.int32], Values]:
        """What `top_at` says of every cell at once.

        Returns:
            (rows, columns, k) class ids, the best first, and their probabilities.
        """
        return self.best_ids, self.best_probabilities

    def _centres_at(self, axis: int, places: NDArray[Any]) -> NDArray[Any]:
        """Pixels of the picture as numbers of cells: 1.5 is in the middle between the second centre and the third."""
        return (places - self.window_size[axis] / 2) / self.stride[axis]


@dataclass(frozen=True, eq=False, kw_only=True)
class Heatmap(CellMap):
    """How probable a target is in every window of a picture.

    Attributes:
        values: (rows, columns) float32, 0 to 1; `probabilities` is another name for it.
        target: the classes whose probabilities were summed in each cell, each distinct class once.
        scales: the map of each scale of the picture, where several were fused; the cells of the fused map are those
            of the last, finest one. Window, receptive field and best classes of a cell are those of the scale that
            says the most there, at its nearest cell.
        winners: (rows, columns) int64, the number of that scale in `scales`; None for a map of one pass.
    """

    target: Target
    scales: tuple[Heatmap, ...] = ()
    winners: NDArray[np.int64] | None = None

    @property
    def probabilities(self) -> Values:
        """(rows, columns) float32, 0 to 1."""
        return self.values

    def _source(self, row: int, column: int) -> tuple[CellMap, tuple[int, int]]:
        cell = super()._source(row, column)
        if self.winners is None:
            return cell
        winner = self.scales[int(self.winners[row, column])]
        box = self.placement.box(row, column)
        x, y = (box.left + box.right) / 2 - 0.5, (box.top + box.bottom) / 2 - 0.5
        return winner, winner.placement.nearest(x, y)

    def boxes(self, kind: Literal["window", "receptive field"]) -> NDArray[np.float64]:
        return super().boxes(kind) if self.winners is None else self._of_winners([s.boxes(kind) for s in self.scales])

    def best_classes(self) -> tuple[NDArray[np.int32], Values]:
        if self.winners is None:
            return super().best_classes()
        ids, probabilities = zip(*(scale.best_classes() for scale in self.scales), strict=True)
        return self._of_winners(ids), self._of_winners(probabilities)

    def _of_winners(self, arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """From an array (rows, columns, k) of each scale, what the cells of its winners have."""
        down, across = (self.placement.windows(axis).mean(axis=1) - 0.5 for axis in (0, 1))
        spread = []
        for scale, array in zip(self.scales, arrays, strict=True):
            rows = [scale.placement.nearest(0, y)[0] for y in down]
            columns = [scale.placement.nearest(x, 0)[1] for x in across]
            spread.append(array[rows][:, columns])
        assert self.winners is not None
        return np.take_along_axis(np.stack(spread), self.winners[None, :, :, None], axis=0)[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class Contrast(CellMap):
    """How much more probable one target is than another in every window.

    Attributes:
        values: (rows, columns) float32, -1 to 1: the one's probability less the other's.
        one, other: their maps.
    """

    one: Heatmap
    other: Heatmap

    @property
    def label(self) -> str:
        """Both targets in words."""
        return f"{self.one.target.label} rather than {self.other.target.label}"

    def _source(self, row: int, column: int) -> tuple[CellMap, tuple[int, int]]:
        return self.one._source(row, column)

    def boxes(self, kind: Literal["window", "receptive field"]) -> NDArray[np.float64]:
        return self.one.boxes(kind)

    def best_classes(self) -> tuple[NDArray[np.int32], Values]:
        return self.one.best_classes()


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassMap(CellMap):
    """What is where: the most probable class of every window of a picture, and how probable it is.

    Attributes:
        values: (rows, columns) float32, 0 to 1: the winner's probability; also `probabilities`.
        class_ids: (rows, columns) int64, the winning class of each cell.
        names: class id -> words, for every class that wins a cell, the most frequent first.
    """

    class_ids: NDArray[np.int64]
    names: dict[int, str]

    @property
    def probabilities(self) -> Values:
        """(rows, columns) float32, 0 to 1."""
        return self.values


@dataclass(frozen=True, eq=False, kw_only=True)
class ProbabilityMap(CellMap):
    """The probability of every class in every window: whatever is asked of it later needs no further pass.

    Attributes:
        values: (rows, columns) float32: the highest probability of any class.
        probabilities: (classes, rows, columns) float32, 0 to 1.
    """

    probabilities: Values

    def heatmap(self, target: str | int) -> Heatmap:
        """The map of a target, as `heatmap` gives it.

        Raises:
            ValueError: the target is not known, or is several classes of a network with sigmoids.
        """
        found = checked_target(self.card, target)
        total = np.minimum(self.probabilities[list(found.class_ids)].sum(axis=0), np.float32(1))
        return Heatmap(**self._shared(), values=total, target=found)

    def contrast(self, target: str | int, against: str | int) -> Contrast:
        """The map of one target less that of another, as `contrast` gives it.

        Raises:
            ValueError: as `heatmap`; or both are the same classes.
        """
        return contrast_of(self.heatmap(target), self.heatmap(against))

    def class_map(self, only: str | int | None = None) -> ClassMap:
        """The best class of every cell, as `class_map` gives it.

        Raises:
            ValueError: the target `only` is not known.
        """
        allowed = allowed_classes(self.card, only)
        chances = self.probabilities[allowed]
        class_ids = np.asarray(allowed)[chances.argmax(axis=0)]
        names = winners_in_words(self.card, class_ids.ravel().tolist())
        return ClassMap(**self._shared(), values=chances.max(axis=0), class_ids=class_ids, names=names)

    def _shared(self) -> dict[str, Any]:
        names = ("picture", "placement", "best_ids", "best_probabilities", "card")
        return {name: getattr(self, name) for name in names}


def contrast_of(one: Heatmap, other: Heatmap) -> Contrast:
    """The difference of two maps of the same cells.

    Raises:
        ValueError: both targets are the same classes.
    """
    if one.target.class_ids == other.target.class_ids:
        raise ValueError(f"{one.target.label} and {other.target.label} are the same classes; contrast two targets")
    return Contrast(
        values=one.values - other.values,
        picture=one.picture,
        placement=one.placement,
        best_ids=one.best_ids,
        best_probabilities=one.best_probabilities,
        card=one.card,
        one=one,
        other=other,
    )

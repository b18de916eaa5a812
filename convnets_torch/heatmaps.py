"""Where in a picture a class is, or a whole branch of the WordNet tree."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import NamedTuple, TypeAlias, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnets_torch.classification import card_of, probabilities, to_parameters
from convnets_torch.images import Picture, picture_name, read_picture
from convnets_torch.networks import Network, score_map
from convnets_torch.preprocessing import Pixels, fit_longest_side, normalize
from convnets_torch.targets import Target, class_name, find_target

Targets: TypeAlias = "list[str | int] | list[str] | list[int] | tuple[str | int, ...]"
Place: TypeAlias = "tuple[Pixels, tuple[float, float], tuple[float, float]]"  # picture, stride, window size


class Box(NamedTuple):
    """A rectangle in pixels of the picture: columns left to right, rows top to bottom, the ends excluded."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, eq=False)
class CellMap:
    """A picture and the cells over it.

    Attributes:
        probabilities: (rows, columns) float32, 0 to 1.
        picture: (H, W, 3) uint8, RGB: the picture at its own size, turned as its EXIF says if the card follows that.
        stride: (vertical, horizontal) pixels of the picture between neighbouring cells.
        window_size: (height, width) of a cell's window in pixels of the picture.
    """

    probabilities: NDArray[np.float32]
    picture: Pixels
    stride: tuple[float, float]
    window_size: tuple[float, float]

    def window(self, row: int, column: int) -> Box:
        """The crop of the network's own size that a cell stands for, in pixels of the picture.

        Raises:
            IndexError: there is no such cell.
        """
        rows, columns = self.probabilities.shape
        if not (0 <= row < rows and 0 <= column < columns):
            raise IndexError(f"cell ({row}, {column}) is outside the map of {rows} rows and {columns} columns")
        top, left = row * self.stride[0], column * self.stride[1]
        return Box(left, top, left + self.window_size[1], top + self.window_size[0])

    @property
    def peak(self) -> tuple[int, int]:
        """(row, column) of the most probable cell."""
        row, column = np.unravel_index(self.probabilities.argmax(), self.probabilities.shape)
        return int(row), int(column)


@dataclass(frozen=True, eq=False)
class Heatmap(CellMap):
    """How probable a target is in every window of a picture.

    Attributes:
        target: the classes whose probabilities were summed in each cell, each distinct class once.
    """

    target: Target

    def save(self, path: str | os.PathLike[str], *, plain: bool = False) -> None:
        """Write the map, atomically.

        Args:
            path: `.npy` holds `probabilities`; `.png`, `.jpg` or `.webp` the map over the picture.
            plain: the map alone in colours, without the picture.

        Raises:
            ValueError: another file ending.
            OSError: `path` cannot be written.
        """
        from convnets_torch import render

        draw = render.color_map if plain else render.overlay
        render.save_map(self.probabilities, lambda: draw(self), path)


@dataclass(frozen=True, eq=False)
class ClassMap(CellMap):
    """What is where: the most probable class of every window of a picture, and how probable it is.

    Attributes:
        class_ids: (rows, columns) int64, the winning class of each cell.
        names: class id -> words, for every class that wins a cell, the most frequent first.
    """

    class_ids: NDArray[np.int64]
    names: dict[int, str]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the map, atomically: `.npy` holds `class_ids`, a picture has a legend of words.

        Raises:
            ValueError: another file ending.
            OSError: `path` cannot be written.
        """
        from convnets_torch import render

        render.save_map(self.class_ids, lambda: render.class_overlay(self), path)


def save_sheet(maps: list[Heatmap], path: str | os.PathLike[str], *, plain: bool = False) -> None:
    """Write several maps of one picture, side by side, atomically; a single one as `Heatmap.save` does.

    Args:
        maps: as `heatmap` gives them for a list of targets.
        path: `.npy` holds an array (maps, rows, columns); `.png`, `.jpg` or `.webp` a sheet.
        plain: the maps alone in colours, without the picture.

    Raises:
        ValueError: another file ending.
        OSError: `path` cannot be written.

    >>> from convnets_torch import load
    >>> save_sheet(heatmap(load("alexnet.safetensors"), "street.jpg", ["car", "dog"]), "sheet.png")
    """
    from convnets_torch import render

    if len(maps) == 1:
        maps[0].save(path, plain=plain)
        return
    draw = render.color_map if plain else render.overlay
    columns = min(3, ceil(len(maps) ** 0.5))
    render.save_map(
        np.stack([each.probabilities for each in maps]),
        lambda: render.sheet([(draw(each), "") for each in maps], columns, width=640),
        path,
    )


@overload
def heatmap(
    network: Network,
    image: Picture,
    target: str | int,
    *,
    longest_side: int | None = None,
    max_pixels: int | None = None,
    allow_truncated: bool = False,
) -> Heatmap: ...


@overload
def heatmap(
    network: Network,
    image: Picture,
    target: Targets,
    *,
    longest_side: int | None = None,
    max_pixels: int | None = None,
    allow_truncated: bool = False,
) -> list[Heatmap]: ...


def heatmap(
    network: Network,
    image: Picture,
    target: str | int | Targets,
    *,
    longest_side: int | None = None,
    max_pixels: int | None = None,
    allow_truncated: bool = False,
) -> Heatmap | list[Heatmap]:
    """Find a target in a picture: one pass over the whole picture, uncropped and at its own size.

    Args:
        network: in eval mode, with its card, as `load` gives it.
        image: whatever `read_picture` takes: a file, a `PIL.Image`, an array (H, W, 3), a tensor (3, H, W).
        target: a class id, a wnid, a WordNet name or a word; a synset means every class below it, counted once. Or
            several of them with signs between blanks: "dog - hunting dog + wolf". A list of targets gives a list
            of maps; the network still runs once.
        longest_side: resize the picture to so many pixels first, keeping its aspect: larger gives more cells,
            and finds smaller things.
        max_pixels, allow_truncated: as in `read_picture`.

    Returns:
        Its map, one cell for every `network.stride` pixels of the (resized) picture; for a list, a map for each.

    Raises:
        OSError: the picture is missing or broken.
        ValueError: the picture is smaller than the network's own size, or a target is not known.

    >>> from convnets_torch import load
    >>> cars = heatmap(load("alexnet.safetensors"), "street.jpg", "car")
    >>> cars.probabilities.shape, cars.window(2, 1)
    ((3, 6), Box(left=32.0, top=64.0, right=259.0, bottom=291.0))
    >>> cars.save("cars.png")
    """
    card = card_of(network)
    several = isinstance(target, list | tuple)
    targets = [find_target(card, each) for each in (target if isinstance(target, list | tuple) else [target])]
    for found in targets:
        if card.activation == "sigmoid" and len(found.class_ids) > 1:
            raise ValueError(
                f"{found.label} is {len(found.class_ids)} classes, whose sigmoids do not add up; name one class"
            )
    chances, place = _cells(network, image, longest_side, max_pixels, allow_truncated)
    # Rounding alone can bring the sum of all classes above 1.
    sums = [chances[list(found.class_ids)].sum(dim=0).clamp(max=1).cpu().numpy() for found in targets]
    maps = [Heatmap(total, *place, found) for total, found in zip(sums, targets, strict=True)]
    return maps if several else maps[0]


def class_map(
    network: Network,
    image: Picture,
    *,
    only: str | int | None = None,
    longest_side: int | None = None,
    max_pixels: int | None = None,
    allow_truncated: bool = False,
) -> ClassMap:
    """What is where in a picture: the most probable class of every cell.

    Args:
        network, image, longest_side, max_pixels, allow_truncated: as for `heatmap`.
        only: let only the classes of this target win cells; their probabilities stay as they are.

    Raises:
        OSError, ValueError: as `heatmap`.

    >>> from convnets_torch import load
    >>> found = class_map(load("alexnet.safetensors"), "street.jpg", only="dog")
    >>> found.class_ids.shape, set(found.names) <= set(range(151, 269))
    ((3, 6), True)
    """
    card = card_of(network)
    allowed = list(range(card.classes)) if only is None else list(find_target(card, only).class_ids)
    chances, place = _cells(network, image, longest_side, max_pixels, allow_truncated)
    best, position = chances[allowed].max(dim=0)
    class_ids = np.asarray(allowed)[position.cpu().numpy()]
    winners = Counter(class_ids.ravel().tolist())
    names = {class_id: class_name(card, class_id) for class_id, _ in winners.most_common()}
    return ClassMap(best.cpu().numpy(), *place, class_ids, names)


def _cells(
    network: Network, image: Picture, longest_side: int | None, max_pixels: int | None, allow_truncated: bool
) -> tuple[Tensor, Place]:
    """Probabilities (classes, h, w) of every cell, and where the cells are."""
    card = card_of(network)
    rule = card.preprocessing
    picture = read_picture(image, exif=rule.exif, max_pixels=max_pixels, allow_truncated=allow_truncated)
    resized = picture if longest_side is None else fit_longest_side(picture, longest_side, rule)
    _check_size(picture_name(image), picture, resized, network)
    with torch.inference_mode():
        scores = score_map(network, to_parameters(normalize(resized, rule)[None], network))
        chances = probabilities(scores, card)[0]
    vertical, horizontal = (given / used for given, used in zip(picture.shape[:2], resized.shape[:2], strict=True))
    stride = (network.stride * vertical, network.stride * horizontal)
    return chances, (picture, stride, (network.size[0] * vertical, network.size[1] * horizontal))


def _check_size(name: str, picture: Pixels, resized: Pixels, network: Network) -> None:
    height, width = resized.shape[:2]
    if height >= network.size[0] and width >= network.size[1]:
        return
    given = picture.shape[:2]
    if max(given) > 50 * min(given):
        raise ValueError(f"{name} is {given[0]}x{given[1]} pixels (height x width), too thin for a heatmap; cut it")
    least = max(ceil(Fraction(wanted * max(given), side)) for wanted, side in zip(network.size, given, strict=True))
    raise ValueError(
        f"{name} is {height}x{width} pixels (height x width), smaller than the network's"
        f" {network.size[0]}x{network.size[1]}; enlarge it with a longest side of {least} or more"
    )

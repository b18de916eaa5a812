"""Where in a picture a class is, or a whole branch of the WordNet tree."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from convnets_torch.classification import card_of, probabilities, to_parameters
from convnets_torch.files import replacing
from convnets_torch.images import Picture, picture_name, read_picture
from convnets_torch.networks import Network, score_map
from convnets_torch.preprocessing import Pixels, fit_longest_side, normalize
from convnets_torch.targets import Target, find_target


class Box(NamedTuple):
    """A rectangle in pixels of the picture: columns left to right, rows top to bottom, the ends excluded."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, eq=False)
class Heatmap:
    """How probable a target is in every window of a picture.

    Attributes:
        target: the classes that were summed, with their words.
        probabilities: (rows, columns) float32, 0 to 1: the summed probability of the target's distinct classes
            in each cell.
        picture: (H, W, 3) uint8, RGB: the picture at its own size, turned as its EXIF says if the card follows that.
        stride: (vertical, horizontal) pixels of the picture between neighbouring cells.
        window_size: (height, width) of a cell's window in pixels of the picture.
    """

    target: Target
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

        path = Path(path)
        render.check_output(path)
        if path.suffix.lower() == ".npy":
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, self.probabilities)
            return
        render.save_image(render.color_map(self) if plain else render.overlay(self), path)


def heatmap(network: Network, image: Picture, target: str | int, *, longest_side: int | None = None) -> Heatmap:
    """Find a target in a picture: one pass over the whole picture, uncropped and at its own size.

    Args:
        network: in eval mode, with its card, as `load` gives it.
        image: a file, a `PIL.Image` or an array (H, W, 3) uint8 RGB.
        target: a class id, a wnid, a WordNet name or a word; a synset means every class below it, counted once.
        longest_side: resize the picture to so many pixels first, keeping its aspect: larger gives more cells,
            and finds smaller things.

    Returns:
        Its map, one cell for every `network.stride` pixels of the (resized) picture.

    Raises:
        OSError: the picture is missing or broken.
        ValueError: the picture is smaller than the network's own size, or the target is not known.
    """
    card = card_of(network)
    found = find_target(card, target)
    if card.activation == "sigmoid" and len(found.class_ids) > 1:
        raise ValueError(
            f"{found.label} is {len(found.class_ids)} classes, whose sigmoids do not add up; name one class"
        )
    rule = card.preprocessing
    picture = read_picture(image, exif=rule.exif)
    resized = picture if longest_side is None else fit_longest_side(picture, longest_side, rule)
    _check_size(picture_name(image), picture, resized, network)
    with torch.inference_mode():
        scores = score_map(network, to_parameters(normalize(resized, rule)[None], network))
        chances = probabilities(scores, card)[0, list(found.class_ids)].sum(dim=0)
    vertical, horizontal = (given / used for given, used in zip(picture.shape[:2], resized.shape[:2], strict=True))
    return Heatmap(
        found,
        chances.clamp(max=1).cpu().numpy(),  # rounding alone can bring the sum of all classes above 1
        picture,
        (network.stride * vertical, network.stride * horizontal),
        (network.size[0] * vertical, network.size[1] * horizontal),
    )


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

"""Find the patches of pictures that activate channels most."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from typing_extensions import Unpack

from convnets_torch.explain.activations import layer_fields, run_to
from convnets_torch.explain.filters import FIRST, TILE, FilterPatterns, enlarged, rule_of, short
from convnets_torch.explain.layer_names import LayerLike, find_layer
from convnets_torch.fcn.graph import ReceptiveField
from convnets_torch.files import Output, Writer
from convnets_torch.heatmaps.maps import Box
from convnets_torch.images.decoding import Picture, Reading, ReadingKeywords, decode, picture_name, warn
from convnets_torch.images.levels import shown
from convnets_torch.images.preprocessing import Pixels, fit_longest_side, in_channels, normalize
from convnets_torch.inference.batching import is_out_of_memory, is_too_small
from convnets_torch.inference.classification import to_parameters
from convnets_torch.inference.pipeline import THREADS, each_of, expected_pixels, run_pictures
from convnets_torch.networks import Network
from convnets_torch.networks.network import as_network, check_eval_mode
from convnets_torch.options import checked, renamed, shows
from convnets_torch.visualization import overlays

COUNT = 9  # patches per channel
LONGEST_SIDE = 1024  # pixels; larger pictures are reduced
AHEAD = 8  # pictures decoded ahead
OUTSIDE = 128  # grey for the part of a receptive field outside the picture


@dataclass(frozen=True, eq=False)
class Patch:
    """One cell of a layer's map and its receptive field.

    Attributes:
        picture: as it was given.
        activation: of the channel in this cell.
        row, column: of the cell.
        box: the receptive field in pixels of the picture at its own size, clipped to the picture.
        pixels: (h, w, 3) uint8, RGB: the whole receptive field as the network saw it, at its size; grey (128) outside
            the picture, where the network sees padding.
    """

    picture: Picture
    activation: float
    row: int
    column: int
    box: Box
    pixels: Pixels


@dataclass(frozen=True, eq=False)
class TopPatches:
    """The patches that activate each channel of a layer most.

    Attributes:
        layer: name of the module.
        channels: channel numbers.
        patches: for each channel at most `count` patches, strongest first, at most one per picture.
        failed: unusable pictures, each with its error.
    """

    layer: str
    channels: tuple[int, ...]
    patches: tuple[tuple[Patch, ...], ...]
    failed: tuple[tuple[Picture, Exception], ...] = ()

    def save(self, path: Output, patterns: FilterPatterns | None = None) -> None:
        """Write a sheet, atomically: a row for each channel, its pattern first, the activation below each patch.

        Args:
            path: `.png`, `.jpg` or `.webp`.
            patterns: filter patterns of the same channels in the same order, to show beside the patches.
        """
        WRITER.write(path, self, patterns)

    def draw(self, patterns: FilterPatterns | None = None) -> Image.Image:
        """Draw the sheet that `save` writes."""
        if patterns is not None and (patterns.layer, patterns.units) != (self.layer, self.channels):
            raise ValueError("patterns and patches are of other layers or channels; make both for the same ones")
        columns = max(1, max(map(len, self.patches), default=0) + (patterns is not None))
        tiles = []
        for place, (channel, patches) in enumerate(zip(self.channels, self.patches, strict=True)):
            row = [(enlarged(patch.pixels, TILE), short(patch.activation)) for patch in patches]
            if patterns is not None:
                row.insert(0, (enlarged(patterns.pictures[place], TILE), f"channel {channel}"))
            elif row:
                row[0] = (row[0][0], f"{row[0][1]}\nchannel {channel}")
            else:
                row = [(Image.new("RGB", (TILE, TILE), overlays.PAPER), f"channel {channel}:\nnone")]
            blank = (Image.new("RGB", (TILE, 1), overlays.PAPER), "")
            tiles += row + [blank] * (columns - len(row))
        title = f"{self.layer}: what excites each channel most, with its activation"
        return overlays.sheet(tiles, columns, TILE, title)


WRITER = Writer("patches", overlays.picture_formats(TopPatches.draw))


class _Read(NamedTuple):
    image: Picture
    pixels: Pixels
    notes: tuple[str, ...]


class _Strongest(NamedTuple):
    """The strongest cell of each channel in one picture."""

    image: Picture
    size: tuple[int, int]  # (height, width) of the picture
    pixels: Pixels  # as the network saw them
    columns: int  # of the map
    values: NDArray[np.float64]  # (channels,) activations
    cells: NDArray[np.int64]  # (channels,) numbers of the cells, row by row
    constant: NDArray[np.bool_]  # (channels,) whether all cells are equal


@renamed(pictures="images")
@shows(ReadingKeywords, Reading)
def top_patches(
    network: Network,
    images: Picture | Iterable[Picture],
    layer: LayerLike,
    channels: Sequence[int] | None = None,
    count: int = COUNT,
    *,
    longest_side: int | None = LONGEST_SIDE,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
    **reading: Unpack[ReadingKeywords],
) -> TopPatches:
    """Find the patches of pictures that activate channels of a layer most, at most one per picture.

    A patch is the receptive field of the strongest cell of the channel's map. Pictures are neither cropped nor resized
    to the network's input size, since convolutions take any size, so patches look as in the picture. Pictures in which
    the channel is constant are skipped; unusable ones are listed in `failed`.

    Args:
        network: in eval mode, with known receptive fields (`layer_names` shows them).
        images: anything `read_picture` takes; `find_pictures` lists those of a folder.
        layer: one layer in `features`, as in `find_layer`.
        channels: channel numbers; defaults to the first 64.
        count: maximum number of patches per channel.
        longest_side: reduce larger pictures to this many pixels first; None keeps their size.
        workers: decoding threads; defaults to one per core, at most 16.
        progress: called with the number of finished pictures.
        reading: as in `read_picture`.

    Raises:
        ValueError: the layer is unknown or has no receptive field, a channel or option is out of range, or the network
            is in training mode.

    Warns:
        PictureWarning: as `read_picture` does.

    >>> from convnets_torch import load
    >>> found = top_patches(load("alexnet.safetensors"), ["street.jpg", "none.jpg"], "relu_1", channels=[3])
    >>> found.patches[0][0].pixels.shape, [str(error) for _, error in found.failed]
    ((11, 11, 3), ['none.jpg does not exist; name a file'])
    """
    network = as_network(network)
    how = Reading(**checked(reading, ReadingKeywords)).for_rule(rule_of(network))
    name = find_layer(network, layer)
    fields = layer_fields(network).get(name)
    if fields is None:
        raise ValueError(f"the receptive field of {name} is unknown; name a layer in features")
    if count < 1:
        raise ValueError(f"count is {count}; give 1 or more patches per channel")
    if longest_side is not None and longest_side < 1:
        raise ValueError(f"a longest side of {longest_side} pixels is out of range; give 1 or more")
    check_eval_mode(network)
    with torch.inference_mode():
        trial = run_to(network, name, next(network.parameters()).new_zeros(1, network.channels, *network.size))[name]
    numbers = tuple(range(min(FIRST, trial.shape[1]))) if channels is None else tuple(int(each) for each in channels)
    for number in numbers:
        if not 0 <= number < trial.shape[1]:
            raise ValueError(
                f"{name} has {trial.shape[1]} channels, 0 to {trial.shape[1] - 1}; {number} is out of range"
            )
    best: list[list[Patch]] = [[] for _ in numbers]
    failed: list[tuple[Picture, Exception]] = []

    def read(image: Picture) -> _Read:
        found = decode(image, how)
        return _Read(image, found.pixels, found.notes)

    def run(items: list[_Read]) -> list[_Strongest | Exception]:
        return [_strongest(network, name, list(numbers), longest_side, *each[:2]) for each in items]

    rows = run_pictures(
        each_of(images), read, run, batch=1, most=AHEAD, threads=workers or THREADS, size=expected_pixels
    )
    with contextlib.closing(rows):
        for done, row in enumerate(rows, start=1):
            warn(row.notes)
            if row.error is not None:
                failed.append((row.picture, row.error))
            elif row.value is not None:
                for place, patches in enumerate(best):
                    _insert(patches, row.value, place, fields, count)
            if progress is not None:
                progress(done)
    return TopPatches(name, numbers, tuple(map(tuple, best)), tuple(failed))


def _strongest(
    network: Network, layer: str, channels: list[int], longest_side: int | None, image: Picture, pixels: Pixels
) -> _Strongest | Exception:
    """Run a picture as far as the layer; return the error if it is unusable."""
    rule, size = rule_of(network), (pixels.shape[0], pixels.shape[1])
    if longest_side is not None and max(size) > longest_side:
        pixels = fit_longest_side(pixels, longest_side, rule)
    pixels = in_channels(pixels, rule)
    try:
        with torch.inference_mode():
            maps = run_to(network, layer, to_parameters(normalize(pixels, rule)[None], network))[layer][0, channels]
            flat = maps.flatten(1).double()
            values, cells = flat.max(dim=1)
            constant = (flat.min(dim=1).values == values) & (flat.shape[1] > 1)
    except (MemoryError, RuntimeError) as error:
        words = f"{picture_name(image)} at {pixels.shape[0]}x{pixels.shape[1]} pixels"
        if is_out_of_memory(error):
            return ValueError(f"{words} needs more memory than there is; give a smaller longest side")
        if is_too_small(error):
            return ValueError(f"{words} is too small for {layer}; take a larger picture")
        raise
    if not values.isfinite().all():
        return ValueError(f"activations of {layer} for {picture_name(image)} are NaN or infinite")
    return _Strongest(image, size, pixels, maps.shape[2], *(each.cpu().numpy() for each in (values, cells, constant)))


def _insert(
    patches: list[Patch], found: _Strongest, place: int, fields: tuple[ReceptiveField, ReceptiveField], count: int
) -> None:
    """Insert a picture's patch into a channel's list if it is among the `count` strongest."""
    value = float(found.values[place])
    if found.constant[place] or (len(patches) == count and value <= patches[-1].activation):
        return
    row, column = divmod(int(found.cells[place]), found.columns)
    top, left = (field.start + cell * field.stride for field, cell in zip(fields, (row, column), strict=True))
    bottom, right = top + fields[0].size, left + fields[1].size
    height, width = found.pixels.shape[:2]
    down, across = found.size[0] / height, found.size[1] / width  # picture pixels per pixel of the input
    box = Box(max(left, 0) * across, max(top, 0) * down, min(right, width) * across, min(bottom, height) * down)
    pixels = np.full((bottom - top, right - left, 3), OUTSIDE, np.uint8)
    part = shown(found.pixels[max(top, 0) : bottom, max(left, 0) : right])
    pixels[max(-top, 0) :, max(-left, 0) :][: part.shape[0], : part.shape[1]] = part
    patches.append(Patch(found.image, value, row, column, box, pixels))
    patches.sort(key=lambda patch: -patch.activation)
    del patches[count:]

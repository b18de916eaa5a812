"""One pass of a network over a picture, in strips that memory allows, and what is kept of every cell's classes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convnets_torch.card import Card
from convnets_torch.classification import probabilities, to_parameters
from convnets_torch.device_pixels import normalized
from convnets_torch.networks import Network, slide
from convnets_torch.networks.budget import in_words, peak_bytes, strip_rows
from convnets_torch.networks.grids import Grid, grid_of
from convnets_torch.networks.streaming import Stream
from convnets_torch.pipeline import Mappable
from convnets_torch.preprocessing import Pixels, Preprocessing, normalize
from convnets_torch.runtime import RuntimeRemark
from convnets_torch.sources import Source
from convnets_torch.targets import Target

BEST = 5  # classes that are kept of every cell

Kept = dict[str, NDArray[Any]]  # arrays whose last two axes are rows and columns of cells
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Wanted:
    """What is kept of the probabilities of all classes.

    Attributes:
        targets: the sum over each one's classes.
        allowed: the best of these classes; None for no class map.
        everything: all of them.
    """

    targets: Sequence[Target] = ()
    allowed: Sequence[int] | None = None
    everything: bool = False

    def keep(self, chances: Tensor) -> Kept:
        """The arrays "sums" (targets, h, w), "best_ids" and "best" (k, h, w), "winner_ids" and "winners" (h, w), "all".

        Args:
            chances: (classes, h, w) float32.
        """
        kept: dict[str, Tensor] = {}
        # Rounding alone can bring the sum of all classes above 1.
        sums = [chances[list(target.class_ids)].sum(dim=0).clamp(max=1) for target in self.targets]
        kept["sums"] = torch.stack(sums) if sums else chances[:0]
        best, best_ids = chances.topk(min(BEST, len(chances)), dim=0)
        kept |= {"best": best, "best_ids": best_ids.int()}
        if self.allowed is not None:
            winners, places = chances[list(self.allowed)].max(dim=0)
            kept |= {"winners": winners, "winner_ids": torch.as_tensor(self.allowed)[places.cpu()]}
        if self.everything:
            kept["all"] = chances
        return {name: tensor.cpu().numpy() for name, tensor in kept.items()}


class Store:
    """Where finished rows of a map are kept, so that an interrupted run can go on; this one keeps nothing."""

    def load(self, size: tuple[int, int]) -> list[Kept]:
        """What earlier runs finished, rows in order from the first, for a map of so many rows and columns."""
        return []

    def add(self, first: int, kept: Kept) -> None:
        """Rows that were finished, from row `first` on."""


def network_of(network: Mappable) -> Network:
    """The network itself, or the one whose score maps an engine gives.

    Raises:
        ValueError: the engine classifies.
    """
    if isinstance(network, nn.Module):
        return network
    if network.mapped is None:
        raise ValueError(
            f"the engine classifies; for maps make one with engine(network, {network.name!r}, heatmap=True)"
        )
    return network.mapped


def grid_for(network: Mappable, cell_stride: int | None) -> Grid:
    """The cells of a network's map, or of its engine's.

    Raises:
        ValueError: as `grid_of`; or another stride than the network's own is wanted of an engine.
    """
    own = network_of(network)
    if network is not own and cell_stride not in (None, own.stride):
        raise ValueError(
            f"an engine gives a cell for every {own.stride} pixels; for a cell stride of {cell_stride} take the network"
            " itself"
        )
    return grid_of(own, cell_stride)


def dtype_of(network: Mappable) -> torch.dtype:
    """The kind of number of a network's activations, or an engine's."""
    return next(network.parameters()).dtype if isinstance(network, nn.Module) else network.dtype


def run_pass(
    network: Mappable,
    grid: Grid,
    source: Source,
    card: Card,
    wanted: Wanted,
    *,
    max_memory: int | None = None,
    store: Store | None = None,
    progress: Progress | None = None,
) -> Kept:
    """Run a network over a picture and keep what is wanted.

    Args:
        network: in eval mode, or its engine; where that would need more memory the network itself runs, in strips.
        grid: its cells.
        source: the picture as the network is to see it.
        card: of the weights.
        wanted: what to keep.
        max_memory: bytes that activations may take; None for one strip.
        store: finished rows come from there and go there.
        progress: called with the rows of cells that are done, and with how many there are.

    Raises:
        ValueError: the memory is too little; or the outputs are no probabilities.

    Warns:
        RuntimeRemark: the network runs instead of its engine.
    """
    store = Store() if store is None else store
    rows, columns = grid.shape(*source.shape)
    whole: Kept = {}
    done = 0
    for piece in store.load((rows, columns)):
        done = _fill(whole, done, piece, rows)
    if progress is not None:
        progress(done, rows)
    if done < rows:
        for scores in score_strips(network, grid, source, card.preprocessing, max_memory, done):
            piece = wanted.keep(probabilities(scores, card)[0])
            store.add(done, piece)
            done = _fill(whole, done, piece, rows)
            if progress is not None:
                progress(done, rows)
    return whole


def _fill(whole: Kept, first: int, piece: Kept, rows: int) -> int:
    """Copy rows to their place, and return the row after them.

    One array for all rows: many small ones, each kept among activations that come and go, would leave holes in memory.
    """
    last = first + piece["best"].shape[-2]
    for name, values in piece.items():
        if name not in whole:
            whole[name] = np.empty((*values.shape[:-2], rows, values.shape[-1]), values.dtype)
        whole[name][..., first:last, :] = values
    return last


def score_strips(
    network: Mappable,
    grid: Grid,
    source: Source,
    rule: Preprocessing,
    max_memory: int | None = None,
    first: int = 0,
) -> Iterator[Tensor]:
    """Logits (1, classes, rows, w) of a picture, in strips from above, beginning with row `first` of the cells.

    A run that begins below the top reads the rows that its first cells see once more, so its numbers are the same.
    """
    height, width = source.shape
    begin = max(0, (first * grid.stride + grid.vertical.start) // grid.stride * grid.stride)
    cells = begin // grid.stride  # the row of cells with which this run begins, some of them without what is above
    rows = height
    if max_memory is not None:
        network = _within(network, grid, (height, width), max_memory)
        rows = strip_rows(grid, (1, height, width), dtype_of(network), max_memory)
    stream = Stream(grid.steps)
    for top in range(begin, height, rows):
        bottom = min(top + rows, height)
        with torch.inference_mode():
            images = to_images(normalize(source.rows(top, bottom), rule)[None], network)
            if rows == height and not begin:
                found: Tensor | None = score_whole(network, grid, images)
            else:
                found = stream.push(images, last=bottom == height)
            del images
        if found is None:
            continue
        skipped = min(max(0, first - cells), found.shape[2])
        cells += found.shape[2]
        if skipped < found.shape[2]:
            yield found[:, :, skipped:]


def _within(network: Mappable, grid: Grid, size: tuple[int, int], max_memory: int) -> Mappable:
    """What is to run: an engine where one pass over (height, width) pixels fits, else the network itself."""
    if isinstance(network, nn.Module):
        return network
    wanted = peak_bytes(grid, (1, *size), network.dtype, size[0])
    if wanted <= max_memory:
        return network
    warnings.warn(
        f"one pass over {size[0]}x{size[1]} pixels (height x width) takes up to {in_words(wanted)}, and max_memory is"
        f" {in_words(max_memory)}; so the network itself runs, in strips, and not {network.name}",
        RuntimeRemark,
        stacklevel=2,
    )
    return network_of(network)


def run_batch(
    network: Mappable, grid: Grid, pictures: Sequence[Pixels], card: Card, wanted: Wanted
) -> list[Kept | ValueError]:
    """Run a network over pictures of one size together and keep of each what is wanted, as `run_pass` does.

    Args:
        network: in eval mode, or its engine.
        grid: its cells.
        pictures: as the network is to see them, (H, W, 3) uint8, RGB, 0 to 255 each.
        card: of the weights.
        wanted: what to keep of each.

    Returns:
        What was kept of each picture, or why its outputs are no probabilities.
    """
    device = next(network.parameters()).device if isinstance(network, nn.Module) else torch.device("cpu")
    with torch.inference_mode():
        pixels = torch.from_numpy(np.stack(pictures)).to(device)
        images = normalized(pixels, card.preprocessing).to(dtype_of(network))
        scores = score_whole(network, grid, images.contiguous(memory_format=torch.channels_last))
    found: list[Kept | ValueError] = []
    for place in range(len(pictures)):
        try:
            found.append(wanted.keep(probabilities(scores[place : place + 1], card)[0]))
        except ValueError as error:
            found.append(error)
    return found


def score_whole(network: Mappable, grid: Grid, images: Tensor) -> Tensor:
    """Logits (N, classes, h, w) of whole images, in one pass."""
    if not isinstance(network, nn.Module):
        return network(images)
    if grid.dilation == 1:
        assert network.head is not None
        return slide(network.head, network.features(images), network.window)
    found = Stream(grid.steps).push(images, last=True)
    assert found is not None
    return found


def to_images(inputs: NDArray[np.float32], network: Mappable) -> Tensor:
    """Pictures (N, 3, H, W) as a network takes them fastest: the channels of a pixel side by side in memory."""
    if not isinstance(network, nn.Module):
        return torch.from_numpy(inputs)
    return to_parameters(inputs, network).contiguous(memory_format=torch.channels_last)

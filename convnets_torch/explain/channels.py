"""Draw the channels of layers as pages of tiles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from typing_extensions import Unpack

from convnets_torch.explain.activations import BROKEN, check_run, observed
from convnets_torch.explain.layer_names import LayerLike, candidates, find_layers, needed
from convnets_torch.files import Output, Writer
from convnets_torch.images.decoding import Picture, Reading, ReadingKeywords, decode, picture_name, warn
from convnets_torch.images.levels import shown
from convnets_torch.images.preprocessing import Pixels, center_crop, fit_longest_side, normalize
from convnets_torch.inference.batching import is_too_small
from convnets_torch.inference.classification import ready_card, square_input, to_parameters
from convnets_torch.networks import Network
from convnets_torch.networks.network import as_network
from convnets_torch.npz import write_npz
from convnets_torch.options import checked, shows
from convnets_torch.text import check_choice
from convnets_torch.visualization.letters import Letters, Pen
from convnets_torch.visualization.overlays import DIVERGING, GREY, INFERNO, INK, PAPER, palette, picture_formats

Order = Literal["strongest", "number"]
Scale = Literal["channel", "layer"]
CHANNELS = 64  # kept per layer


@dataclass(frozen=True, eq=False)
class ChannelGrid:
    """Channels of one layer for one image.

    Attributes:
        layer: name of the module.
        shape: of the layer's output: (channels, height, width), or (values,).
        channels: numbers of the kept channels in drawing order, (n,) int64.
        values: their activations, (n, height, width) float32; (n, 1, 1) for a layer without cells.
        strengths: mean absolute activation of every channel of the layer, (channels,) float32.
        highest: largest absolute value of all channels.
        signed: whether any value of the layer is negative.
        scale: whether colours are scaled by each channel's largest absolute value or by the layer's.
        picture: the network's input before normalising, (H, W, 3) RGB, 0 to 255.
    """

    layer: str
    shape: tuple[int, ...]
    channels: NDArray[np.int64]
    values: NDArray[np.float32]
    strengths: NDArray[np.float32]
    highest: float
    signed: bool
    scale: Scale
    picture: Pixels

    @property
    def left_out(self) -> int:
        """Number of channels that were not kept."""
        return self.shape[0] - len(self.channels)

    def scaled(self) -> NDArray[np.float32]:
        """Return values divided by the largest absolute value of their channel or layer, -1 to 1."""
        top = np.abs(self.values).max((1, 2), keepdims=True) if self.scale == "channel" else np.float32(self.highest)
        return self.values / np.where(top > 0, top, np.float32(1))

    def draw(self, width: int = 800) -> Image.Image:
        """Draw the picture, the layer's name and shape, and its channels, eight to a row.

        Each tile is labelled with its number and strength; a channel that is zero everywhere is grey and labelled dead.
        If the layer has no negative values, colours go from black (0 of `scaled`) to light yellow (1), otherwise from
        blue (-1) through white to red (1).

        Args:
            width: of the page in pixels, 400 or more.
        """
        return draw_page([self], width)


@shows(ReadingKeywords, Reading)
def activation_grids(
    network: Network,
    image: Picture,
    layers: LayerLike | Iterable[LayerLike] | None = None,
    *,
    order: Order = "strongest",
    channels: int = CHANNELS,
    scale: Scale | None = None,
    longest_side: int | None = None,
    **reading: Unpack[ReadingKeywords],
) -> list[ChannelGrid]:
    """Return the channel activations of layers for one image, ready to draw.

    Only these channels are kept while the network runs.

    Args:
        network: in eval mode and with a card, as `load` returns it; a head is not needed.
        image: anything `read_picture` takes.
        layers: as in `record_activations`; defaults to all layers and blocks of `features`.
        order: "strongest" first, by mean absolute activation, or by "number".
        channels: the number of channels to keep of each layer, from the start of the order.
        scale: of the colours: "channel" (the default) scales each channel by its own largest absolute value, so that
            weak channels stay visible; "layer" scales all by the layer's, so that they are comparable. Layers without
            cells always use "layer".
        longest_side: resize the whole picture to this many pixels on its longer side, instead of cropping its centre to
            the network's input size; only layers of `features` are available then.
        reading: as in `read_picture`.

    Returns:
        One grid per layer, in execution order.

    Raises:
        OSError: the picture is missing or broken.
        ValueError: a layer is not in the network, is not run, or gives other than finite maps or vectors; `channels`,
            `order` or `scale` is out of range; the network has no card, or is in training mode.

    >>> from convnets_torch import load
    >>> [grid] = activation_grids(load("alexnet.safetensors"), "street.jpg", "conv_3", channels=4)
    >>> grid.layer, grid.shape, grid.values.shape, grid.left_out
    ('features.conv_3', (48, 13, 13), (4, 13, 13), 44)
    >>> bool(np.all(np.diff(grid.strengths[grid.channels]) <= 0))
    True
    """
    network = as_network(network)
    card = ready_card(network)
    if channels < 1:
        raise ValueError(f"channels is {channels}; give how many of a layer to keep, 1 or more")
    check_choice(order, ("strongest", "number"), "order")
    if scale is not None:
        check_choice(scale, ("channel", "layer"), "scale")
    if layers is None:
        names = [name for name in candidates(network) if name.startswith("features.")]
    else:
        names = find_layers(network, layers)
    decoded = decode(image, Reading(**checked(reading, ReadingKeywords)).for_rule(card.preprocessing))
    warn(decoded.notes)
    if longest_side is None:
        picture, inputs = center_crop(decoded.pixels, card.preprocessing), square_input(decoded.pixels, card)
    else:
        picture = fit_longest_side(decoded.pixels, longest_side, card.preprocessing)
        inputs = normalize(picture, card.preprocessing)
    grids: dict[str, ChannelGrid] = {}

    def keep(name: str, output: Tensor) -> None:
        grids[name] = _grid(name, output[0], order, channels, scale, shown(picture))

    try:
        with torch.inference_mode():
            needed(observed(network, names, keep), names)(to_parameters(inputs[None], network))
    except RuntimeError as error:
        if not is_too_small(error):
            raise
        height, width = picture.shape[:2]
        raise ValueError(
            f"{picture_name(image)} at {height}x{width} pixels (height x width) is too small for these layers; give a"
            " larger longest side, or earlier layers"
        ) from None
    check_run(network, names, grids)
    return list(grids.values())


def save_grids(grids: Sequence[ChannelGrid], path: Output, *, width: int = 800) -> None:
    """Write the channels of one image as a page of all layers (.png, .jpg or .webp), or as arrays.

    An .npz holds "picture" (H, W, 3) RGB, "layers" (their names), and for each layer
    NAME the kept channels "NAME.values" (n, height, width), their numbers "NAME.channels" (n,), and "NAME.strengths"
    (channels,) of all channels.

    Args:
        width: of a page in pixels, 400 or more.

    Raises:
        ValueError: there is no grid, the extension is unknown, or the page is too high for its format.

    >>> from convnets_torch import load
    >>> grids = activation_grids(load("alexnet.safetensors"), "street.jpg", ["relu_2", "relu_5"], channels=8)
    >>> save_grids(grids, "channels.png")
    >>> save_grids(grids, "channels.npz")
    >>> np.load("channels.npz")["features.relu_5.values"].shape
    (8, 13, 13)
    """
    if not grids:
        raise ValueError("there is no layer to write; give one or more")
    WRITER.write(path, grids, width)


def _write_arrays(path: Path, grids: Sequence[ChannelGrid], _: int) -> None:
    arrays = {
        f"{grid.layer}.{name}": getattr(grid, name) for grid in grids for name in ("values", "channels", "strengths")
    }
    write_npz(path, {"picture": grids[0].picture, "layers": np.array([grid.layer for grid in grids]), **arrays})


def _grid(name: str, output: Tensor, order: Order, channels: int, scale: Scale | None, picture: Pixels) -> ChannelGrid:
    """Keep some channels of one layer's output."""
    if output.dim() not in (1, 3):
        raise ValueError(
            f"{name} gives {tuple(output.shape)} per image, neither a map nor a vector; name another layer"
        )
    maps = output.reshape(-1, 1, 1) if output.dim() == 1 else output
    low, high = (float(value) for value in torch.aminmax(maps))
    if not (isfinite(low) and isfinite(high)):
        raise ValueError(BROKEN.format(name))
    strengths = torch.stack([each.float().abs().mean() for each in maps])  # channel by channel, to save memory
    numbers = torch.arange(len(maps), device=maps.device)
    if order == "strongest":
        numbers = strengths.argsort(descending=True, stable=True)
    kept = numbers[:channels]
    return ChannelGrid(
        name,
        tuple(output.shape),
        kept.cpu().numpy(),
        maps[kept].float().cpu().numpy(),
        strengths.cpu().numpy(),
        max(-low, high),
        low < 0,
        "layer" if output.dim() == 1 else scale or "channel",
        picture,
    )


COLUMNS = 8
MARGIN, GAP = 12, 6  # pixels at the borders of a page, and between tiles
DEAD = (190, 190, 190)
LEAST_WIDTH = 400
MOST_HEIGHT = 65_000  # pixels; JPEG holds 65,535


def draw_page(grids: Sequence[ChannelGrid], width: int) -> Image.Image:
    """Draw the channels of several layers of one picture, one layer below the other, with the picture at the top.

    Raises:
        ValueError: the page is narrower than 400 pixels, or would be higher than 65,000.
    """
    if width < LEAST_WIDTH:
        raise ValueError(f"a page {width} pixels wide cannot be read; give {LEAST_WIDTH} or more")
    size = max(11, width // 57)  # font size
    thumb = Image.fromarray(grids[0].picture)
    scale = (width // 4) / max(thumb.size)
    sides = (max(1, round(thumb.width * scale)), max(1, round(thumb.height * scale)))
    thumb = thumb.resize(sides, Image.Resampling.BICUBIC)
    blocks = [_LayerBlock(grid, width, size) for grid in grids]
    top = MARGIN + max(thumb.height + blocks[0].line, blocks[0].head) + GAP  # its heading is beside the picture
    height = top + blocks[0].body + sum(block.head + block.body for block in blocks[1:]) + MARGIN
    if height > MOST_HEIGHT:
        raise ValueError(
            f"a page of {len(grids)} layers would be {height} pixels high, more than {MOST_HEIGHT}; take fewer layers"
            " or channels, or a file for each layer"
        )
    page = Image.new("RGB", (width, height), PAPER)
    page.paste(thumb, (MARGIN, MARGIN))
    font = Letters(size)
    draw = Pen(page)
    draw.text((MARGIN, MARGIN + thumb.height + 1), "what the network saw", GREY, font)
    y = top
    for number, block in enumerate(blocks):
        if number == 0:
            block.write(page, 2 * MARGIN + thumb.width, MARGIN)
        else:
            block.write(page, MARGIN, y)
            y += block.head
        block.paint(page, y)
        y += block.body
    return page


class _LayerBlock:
    """One layer on the page: a heading of `head` pixels in height, and tiles of `body` pixels."""

    def __init__(self, grid: ChannelGrid, width: int, size: int) -> None:
        self.grid, self.size = grid, size
        self.font, self.large = Letters(size), Letters(round(size * 1.3))
        self.line = round(size * 1.45)
        self.tile_width = (width - 2 * MARGIN - (COLUMNS - 1) * GAP) // COLUMNS
        _, rows, columns = grid.values.shape
        self.tile_height = min(3 * self.tile_width, max(4, round(self.tile_width * rows / columns)))
        self.step = self.tile_height + self.line + GAP
        self.words = words(grid)
        self.head = round(self.line * (len(self.words) + 1.6))
        self.body = self.step * -(-len(grid.channels) // COLUMNS)

    def write(self, page: Image.Image, left: int, top: int) -> None:
        """Draw the heading and the colour bar."""
        draw = Pen(page)
        draw.text((left, top), self.words[0], INK, self.large)
        for number, words in enumerate(self.words[1:], start=1):
            draw.text((left, top + round(self.line * (number + 0.35))), words, GREY, self.font)
        ramp = palette(DIVERGING if self.grid.signed else INFERNO)
        bar = np.repeat(ramp[None], self.size * 3 // 4, axis=0)
        middle = top + round(self.line * (len(self.words) + 0.85))
        begin, end = _bar_labels(self.grid)
        draw.text((left, middle), begin, GREY, self.font, anchor="lm")
        x = round(left + self.font.getlength(begin) + GAP)
        page.paste(Image.fromarray(bar), (x, middle - bar.shape[0] // 2))
        draw.text((x + bar.shape[1] + GAP, middle), end, GREY, self.font, anchor="lm")

    def paint(self, page: Image.Image, top: int) -> None:
        """Draw the tiles from `top` down."""
        draw = Pen(page)
        scaled = self.grid.scaled()
        for place, channel in enumerate(self.grid.channels.tolist()):
            x = MARGIN + place % COLUMNS * (self.tile_width + GAP)
            y = top + place // COLUMNS * self.step
            dead = not self.grid.values[place].any()
            if dead:
                tile = Image.new("RGB", (self.tile_width, self.tile_height), DEAD)
            else:  # a box filter keeps enlarged cells sharp and averages reduced ones
                cells = Image.fromarray(scaled[place].astype(np.float32))
                sized = np.asarray(cells.resize((self.tile_width, self.tile_height), Image.Resampling.BOX))
                tile = Image.fromarray(_colored(sized, self.grid.signed))
            page.paste(tile, (x, y))
            strength = "dead" if dead else f"{self.grid.strengths[channel]:.3g}"
            draw.text((x, y + self.tile_height + 1), str(channel), INK, self.font)
            draw.text((x + self.tile_width, y + self.tile_height + 1), strength, GREY, self.font, anchor="ra")


WRITER = Writer("channels", {**picture_formats(draw_page), ".npz": _write_arrays})


def words(grid: ChannelGrid) -> list[str]:
    """Return the heading lines of a layer: its name, its shape, and what was left out."""
    if len(grid.shape) == 1:
        shape = f"{grid.shape[0]} values"
    else:
        shape = f"{grid.shape[0]} channels of {grid.shape[1]} x {grid.shape[2]} cells (height x width)"
    notes = f"{len(grid.channels)} shown, {grid.left_out} left out" if grid.left_out else "all shown"
    if dead := int((grid.strengths == 0).sum()):
        notes += f"; {dead} dead (zero everywhere)"
    return [grid.layer, shape, notes, "below each: its number, and its mean absolute value"]


def _bar_labels(grid: ChannelGrid) -> tuple[str, str]:
    """The labels at both ends of the colour bar."""
    if grid.scale == "layer":
        return (f"-{grid.highest:.3g}" if grid.signed else "0", f"{grid.highest:.3g} (the same for all)")
    return ("-1" if grid.signed else "0", "1 x the channel's largest absolute value")


def _colored(scaled: np.ndarray, signed: bool) -> Pixels:
    """Map values (h, w), 0 to 1 or -1 to 1, to colours (h, w, 3)."""
    places = (scaled + 1) * 127.5 if signed else scaled * 255
    return palette(DIVERGING if signed else INFERNO)[np.rint(places).clip(0, 255).astype(int)]

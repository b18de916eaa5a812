"""Pages of channels: tiles in rows, with words, beside the picture that the network saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from convnets_torch.letters import Letters, Pen
from convnets_torch.preprocessing import Pixels
from convnets_torch.render import DIVERGING, GREY, INFERNO, INK, PAPER, palette

if TYPE_CHECKING:
    from convnets_torch.explain.grids import ChannelGrid

COLUMNS = 8
MARGIN, GAP = 12, 6  # pixels at the borders of a page, and between tiles
DEAD = (190, 190, 190)
LEAST_WIDTH = 400
MOST_HEIGHT = 65_000  # pixels; JPEG holds 65,535


def draw_page(grids: Sequence[ChannelGrid], width: int) -> Image.Image:
    """The channels of layers one below the other, with the picture at the top.

    Args:
        grids: of one picture.
        width: of the page in pixels.

    Raises:
        ValueError: the page would be too narrow to read, or higher than 65,000 pixels.
    """
    if width < LEAST_WIDTH:
        raise ValueError(f"a page {width} pixels wide cannot be read; give {LEAST_WIDTH} or more")
    size = max(11, width // 57)  # height of letters
    side = width // 4
    seen = grids[0].picture
    scale = side / max(seen.shape[:2])
    thumb = Image.fromarray(seen).resize(
        (max(1, round(seen.shape[1] * scale)), max(1, round(seen.shape[0] * scale))), Image.Resampling.BICUBIC
    )
    blocks = [_Block(grid, width, size) for grid in grids]
    top = MARGIN + max(thumb.height + blocks[0].line, blocks[0].head) + GAP  # the first words stand beside the picture
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
        y = block.paint(page, y)
    return page


class _Block:
    """One layer on the page: its words, and its tiles.

    Attributes:
        head: height of the words in pixels.
        body: height of the tiles in pixels.
    """

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
        """The layer's name and what the tiles are, from a corner on."""
        draw = Pen(page)
        draw.text((left, top), self.words[0], INK, self.large)
        for number, words in enumerate(self.words[1:], start=1):
            draw.text((left, top + round(self.line * (number + 0.35))), words, GREY, self.font)
        ramp = palette(DIVERGING if self.grid.signed else INFERNO)
        bar = np.repeat(ramp[None], self.size * 3 // 4, axis=0)
        middle = top + round(self.line * (len(self.words) + 0.85))
        begin, end = _ends(self.grid)
        draw.text((left, middle), begin, GREY, self.font, anchor="lm")
        x = round(left + self.font.getlength(begin) + GAP)
        page.paste(Image.fromarray(bar), (x, middle - bar.shape[0] // 2))
        draw.text((x + bar.shape[1] + GAP, middle), end, GREY, self.font, anchor="lm")

    def paint(self, page: Image.Image, top: int) -> int:
        """The tiles from a row of pixels on; where the next thing begins."""
        draw = Pen(page)
        scaled = self.grid.scaled()
        for place, channel in enumerate(self.grid.channels.tolist()):
            x = MARGIN + place % COLUMNS * (self.tile_width + GAP)
            y = top + place // COLUMNS * self.step
            dead = not self.grid.values[place].any()
            if dead:
                tile = Image.new("RGB", (self.tile_width, self.tile_height), DEAD)
            else:  # cells stay sharp where there is room for them, and are averaged where there is not
                cells = Image.fromarray(scaled[place].astype(np.float32))
                sized = np.asarray(cells.resize((self.tile_width, self.tile_height), Image.Resampling.BOX))
                tile = Image.fromarray(_colored(sized, self.grid.signed))
            page.paste(tile, (x, y))
            strength = "dead" if dead else f"{self.grid.strengths[channel]:.3g}"
            draw.text((x, y + self.tile_height + 1), str(channel), INK, self.font)
            draw.text((x + self.tile_width, y + self.tile_height + 1), strength, GREY, self.font, anchor="ra")
        return top + self.body


def words(grid: ChannelGrid) -> list[str]:
    """What stands above the tiles of a layer: its name, its shape, and what was left out."""
    if len(grid.shape) == 1:
        shape = f"{grid.shape[0]} values"
    else:
        shape = f"{grid.shape[0]} channels of {grid.shape[1]} x {grid.shape[2]} cells (height x width)"
    dead = int((grid.strengths == 0).sum())
    remarks = [f"{len(grid.channels)} shown, {grid.left_out} left out" if grid.left_out else "all shown"]
    remarks += [f"{dead} dead (zero everywhere)"] if dead else []
    return [grid.layer, shape, "; ".join(remarks), "below each: its number, and its mean absolute value"]


def _ends(grid: ChannelGrid) -> tuple[str, str]:
    """What the first and the last colour mean."""
    if grid.scale == "layer":
        return (f"-{grid.highest:.3g}" if grid.signed else "0", f"{grid.highest:.3g} (the same for all)")
    return ("-1" if grid.signed else "0", "1 x the channel's largest absolute value")


def _colored(scaled: np.ndarray, signed: bool) -> Pixels:
    """Values (h, w), 0 to 1, or -1 to 1, in colours (h, w, 3)."""
    places = (scaled + 1) * 127.5 if signed else scaled * 255
    return palette(DIVERGING if signed else INFERNO)[np.rint(places).clip(0, 255).astype(int)]

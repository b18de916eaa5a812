"""Grad-CAM maps as pictures: the photograph, and beside it each map over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from convnets_torch.explain.cam_maps import GradCam
from convnets_torch.letters import Letters, Pen
from convnets_torch.maps.regions import Box
from convnets_torch.preprocessing import Pair
from convnets_torch.render import GREY, INK, PAPER, STRENGTH, palette, shorten

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

"""A contact sheet of what a network will see of pictures in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from convnets_torch import render
from convnets_torch.explain.sheets import enlarged
from convnets_torch.preprocessing import Pixels, Preprocessing, crop_image
from convnets_torch.training.augmentation import FAINTEST_BLUR, Augmentation, Changes, draw_changes, view
from convnets_torch.training.mixing import Mix, MixKind, draw_mix

NARROWEST, WIDEST = 128, 300  # pixels of a tile
MOST_COLUMNS = 8
MOST_TILES = 400


class Photo(NamedTuple):
    """A picture of a sheet.

    Attributes:
        image: upright, of mode RGB.
        name: what to call it.
        label: its class by name, which `no_flip` may list; None where it has none.
    """

    image: Image.Image
    name: str
    label: str | None = None


def view_sheet(
    photos: Sequence[Photo],
    rule: Preprocessing,
    augmentation: Augmentation,
    *,
    views: int = 15,
    seed: int = 0,
    mixing: tuple[MixKind, float] | None = None,
    title: str = "",
) -> Image.Image:
    """Views of pictures side by side: of each first what is cut out for classifying, then `views` at random.

    View k of picture n has the key (seed, k, n). Below each stand its turn in degrees and its flips.

    Args:
        photos: one or more; mixing takes two or more.
        rule: the preprocessing of a card.
        augmentation: what may be done.
        views: of each picture.
        seed: of the changes, from 0.
        mixing: kind and alpha, as for `draw_mix`; each view is then mixed with the same view of the picture before.
        title: above all.

    Returns:
        RGB.

    Raises:
        ValueError: there are too few pictures, or more than 400 tiles.

    >>> street = Photo(Image.open("street.jpg"), "street")
    >>> from convnets_torch.preprocessing import preset
    >>> view_sheet([street], preset("vgg16"), Augmentation(rotation=10), views=2).width
    736
    """
    tiles_in_all = len(photos) * (views + 1)
    if len(photos) < (1 if mixing is None else 2) or views < 1:
        raise ValueError(
            f"{len(photos)} pictures and {views} views make no sheet; give one of each, to mix two pictures"
        )
    if tiles_in_all > MOST_TILES:
        raise ValueError(f"{len(photos)} pictures of {views} views are more than {MOST_TILES} tiles; give fewer")
    rows = [[(crop_image(photo.image, rule), f"{photo.name}\nfor classifying")] for photo in photos]
    for number in range(views):
        seen = [
            view(photo.image, rule, augmentation, (seed, number, n), label=photo.label) for n, photo in _each(photos)
        ]
        words = [_in_words(draw_changes(augmentation, (seed, number, n), photo.label)) for n, photo in _each(photos)]
        if mixing is not None:
            generator = torch.Generator().manual_seed(seed * MOST_TILES + number)
            drawn = draw_mix(len(photos), *mixing, rule.shape, generator)
            mix = replace(drawn, permutation=torch.arange(len(photos)).roll(1))  # in so few, many are their own partner
            batch, _ = mix.apply(torch.stack(seen).float(), torch.zeros(len(photos), 1))
            seen = list(batch.round().to(torch.uint8))
            words = _mixed_words(mix, photos)
        for row, pixels, said in zip(rows, seen, words, strict=True):
            row.append((np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()), said))
    columns = views + 1 if views < MOST_COLUMNS else 4 if views < 16 else MOST_COLUMNS
    width = min(max(rule.shape[1], NARROWEST), WIDEST)
    tiles = [tile for row in rows for tile in _line(row, columns, width)]
    return render.sheet(tiles, columns, width, title)


def _each(photos: Sequence[Photo]) -> list[tuple[int, Photo]]:
    return list(enumerate(photos))


def _line(row: Sequence[tuple[Pixels, str]], columns: int, width: int) -> list[tuple[Image.Image, str]]:
    """A picture's tiles, filled up to whole lines."""
    blank = (Image.new("RGB", (width, 1), render.PAPER), "")
    return [(enlarged(pixels, width), words) for pixels, words in row] + [blank] * (-len(row) % columns)


def _in_words(changes: Changes) -> str:
    said = [f"{changes.rotation:+.0f}°"] if round(changes.rotation) else []
    said += [
        words
        for words, there in (
            ("mirrored", changes.mirrored),
            ("upside down", changes.upside_down),
            ("blurred", changes.blur >= FAINTEST_BLUR),
        )
        if there
    ]
    return ", ".join(said)


def _mixed_words(mix: Mix, photos: Sequence[Photo]) -> list[str]:
    """The shares of a picture and of its partner."""
    return [
        f"{mix.share:.0%} {photo.name}\n{1 - mix.share:.0%} {photos[partner].name}"
        for photo, partner in zip(photos, mix.permutation.tolist(), strict=True)
    ]

"""Pictures that are not in an index as queries to it: the network that made the index gives their vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from convnets_torch.cache import find
from convnets_torch.card import read_card
from convnets_torch.embeddings.extraction import Embedder, embed
from convnets_torch.embeddings.picture_table import kind_of
from convnets_torch.images import Picture, read_picture
from convnets_torch.networks import Network
from convnets_torch.preprocessing import Pixels
from convnets_torch.weights import load

if TYPE_CHECKING:
    from convnets_torch.embeddings.pooling import Pool
    from convnets_torch.embeddings.searching import Box, Index


def vectors_of(index: Index, network: Network, paths: list[str], box: Box | None) -> list[NDArray[np.float32]]:
    """The vectors of pictures, or of the same part of each, from the network of an index.

    Raises:
        OSError: a file is missing or no picture.
        ValueError: the network is another than that of the index; or the box is not in a picture.
    """
    layer, pool = index.about.layer, cast("Pool", index.about.pool)
    levels = index.about.levels
    if kind_of(Embedder(network, layer, pool).about | levels) != index.about.kind:
        raise ValueError(
            f"{index.address} has vectors of {index.card.network} with another card; give the weights that made it"
        )
    pictures: Iterable[Picture] = paths
    if box is not None or levels:
        pictures = [
            _part(path, box, partial(read_picture, exif=index.card.preprocessing.exif, **levels)) for path in paths
        ]
    return list(embed(network, pictures, layer, pool).numpy())


def network_of(index: Index) -> Network:
    """The network that made an index, from where it was then.

    Raises:
        OSError: it is not there any more.
        ValueError: the index does not say where it was, or another is there now.
    """
    weights = index.about.weights
    if not weights:
        raise ValueError(f"{index.address} does not say where its weights are; name them (network, --weights)")
    if "://" in weights or weights.startswith(("//", "\\\\")):  # to ask for one may alone reach another machine
        raise ValueError(f"{index.address} says that its weights are at {weights}; name a file (network, --weights)")
    try:
        path = find(weights)
    except (OSError, ValueError):
        raise FileNotFoundError(
            f"the weights of {index.address} are not at {weights} any more; name them (network, --weights)"
        ) from None
    try:
        same = read_card(path).to_json() == index.about.card
    except ValueError as error:
        raise ValueError(f"the weights that {index.address} names cannot be used: {error}") from None
    if not same:
        raise ValueError(
            f"{weights} is another network than the one that made {index.address}; name that (network, --weights)"
        )
    return load(path)


def _part(path: str, box: Box | None, read: Callable[[str], Pixels]) -> Pixels:
    """A part of a picture, given in pixels, or all of it."""
    pixels = read(path)
    if box is None:
        return pixels
    left, top, right, bottom = box
    height, width = pixels.shape[:2]
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(f"the box {left},{top},{right},{bottom} is not in {path}, which is {width} x {height} pixels")
    return pixels[top:bottom, left:right]

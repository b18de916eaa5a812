"""Grad-CAM for pictures: from files and words to maps over their pixels."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import overload

import numpy as np
import torch
from torch import Tensor

from convnets_torch.ahead import ahead, each_of, expected_pixels
from convnets_torch.card import Card
from convnets_torch.classification import card_of, probabilities, square_input, to_parameters
from convnets_torch.explain.cam_cells import cam_cells
from convnets_torch.explain.cam_maps import GradCam
from convnets_torch.explain.gradcam import (
    CamWarning,
    Method,
    Score,
    cams_and_logits,
    checked_layer,
    checked_method,
)
from convnets_torch.explain.names import Layer
from convnets_torch.fitting import in_batches
from convnets_torch.images import Decoded, Picture, Reading, decode, picture_name, warn
from convnets_torch.levels import Background, Depth
from convnets_torch.networks import Network
from convnets_torch.networks.network import as_network
from convnets_torch.preprocessing import Pixels
from convnets_torch.targets import Target, Targets, checked_target, checked_targets, find_target

BATCH = 8  # pictures that go through the network together
ROOM = 32_000_000  # pixels that are decoded ahead


@dataclass(frozen=True)
class Explained:
    """What became of one picture.

    Attributes:
        picture: as it was given.
        maps: one for each target; empty where there is an error.
        error: why the picture could not be used (OSError, ValueError), else None.
        remarks: sentences on what its owner may not expect, such as that a map is zero everywhere.
    """

    picture: Picture
    maps: list[GradCam]
    error: Exception | None = None
    remarks: tuple[str, ...] = ()


@overload
def gradcam(
    network: Network,
    image: Picture,
    target: str | int | None = None,
    *,
    against: str | int | None = None,
    layer: Layer | None = None,
    method: Method = "gradcam",
    max_pixels: int | None = None,
    allow_truncated: bool = False,
    depth: Depth = None,
    background: Background = None,
) -> GradCam: ...


@overload
def gradcam(
    network: Network,
    image: Picture,
    target: Targets,
    *,
    against: str | int | None = None,
    layer: Layer | None = None,
    method: Method = "gradcam",
    max_pixels: int | None = None,
    allow_truncated: bool = False,
    depth: Depth = None,
    background: Background = None,
) -> list[GradCam]: ...


def gradcam(
    network: Network,
    image: Picture,
    target: str | int | Targets | None = None,
    *,
    against: str | int | None = None,
    layer: Layer | None = None,
    method: Method = "gradcam",
    max_pixels: int | None = None,
    allow_truncated: bool = False,
    depth: Depth = None,
    background: Background = None,
) -> GradCam | list[GradCam]:
    """What in a picture speaks for a target: cells of a layer, weighted with gradients.

    The picture is resized and cropped as for classifying, so that the map explains that answer; where it saw nothing,
    the map says nothing. `heatmap` asks another question: where in an uncropped picture a target is.

    Args:
        network: in eval mode, with its card, as `load` gives it.
        image: whatever `read_picture` takes. `gradcam_each` takes several.
        target: a class id, a wnid, a WordNet name, a word, or several with signs, as for `heatmap`: a synset is
            explained as one class, by the log-sum-exp of its classes' logits. None for the most probable class. A list
            of targets gives a list of maps; the network still runs once.
        against: what counts against the target, "husky rather than wolf": the difference of the two scores is
            explained.
        layer: name, Keras's name or pattern of one layer; the last convolution by default.
        method: "gradcam", "gradcam++", "hirescam" or "layercam", as in `cams`.
        max_pixels, allow_truncated, depth, background: as in `read_picture`.

    Returns:
        Its map; for a list, a map for each target.

    Raises:
        OSError: the picture is missing or broken.
        ValueError: a target or the layer is not known, the layer has no cells, both targets are the same classes, or
            the network has no card, no head, or is in training mode.

    Warns:
        CamWarning: a map is zero everywhere.

    Sources: as in `cams`.

    >>> from convnets_torch import load
    >>> car = gradcam(load("alexnet.safetensors"), "street.jpg", "car", method="layercam")
    >>> car.values.shape, car.layer, car.cells.apart
    ((13, 13), 'features.relu_5', (16.0, 16.0))
    >>> car.save("car.png")
    """
    [entry] = gradcam_each(
        network,
        [image],
        target,
        against=against,
        layer=layer,
        method=method,
        max_pixels=max_pixels,
        allow_truncated=allow_truncated,
        depth=depth,
        background=background,
    )
    if entry.error is not None:
        raise entry.error
    zero = [remark for remark in entry.remarks if remark.endswith(NOTHING)]
    warn(tuple(remark for remark in entry.remarks if remark not in zero))
    for remark in zero:
        warnings.warn(remark, CamWarning, stacklevel=2)
    return entry.maps if isinstance(target, list | tuple) else entry.maps[0]


def gradcam_each(
    network: Network,
    images: Picture | Iterable[Picture],
    target: str | int | Targets | None = None,
    *,
    against: str | int | None = None,
    layer: Layer | None = None,
    method: Method = "gradcam",
    max_pixels: int | None = None,
    allow_truncated: bool = False,
    depth: Depth = None,
    background: Background = None,
) -> Generator[Explained, None, None]:
    """`gradcam` of any number of pictures; one that cannot be used does not stop the others.

    Pictures are decoded ahead in threads and go through the network 8 at a time, or fewer where memory does not
    suffice.

    Args:
        network, target, against, layer, method, max_pixels, allow_truncated, depth, background: as in `gradcam`; None
            as the target is the most probable class of each picture.
        images: whatever `read_picture` takes, one or several.

    Returns:
        A generator of one `Explained` per picture, in the order given; `close()` stops it early.

    Raises:
        ValueError: at once, for what concerns all pictures, as in `gradcam`.

    >>> from convnets_torch import load
    >>> for entry in gradcam_each(load("alexnet.safetensors"), ["street.jpg", "none.jpg"], ["car", "dog"]):
    ...     print(entry.picture, len(entry.maps), entry.error)
    street.jpg 2 None
    none.jpg 0 none.jpg does not exist; name a file
    """
    network = as_network(network)
    card = card_of(network)
    probabilities(torch.zeros(1, card.classes), card)  # refuses a network whose outputs are none
    targets = None if target is None else checked_targets(card, target)
    opposed = None if against is None else checked_target(card, against)
    if opposed is not None and targets is None:
        raise ValueError(f"{opposed.label} is to count against a target; name that target")
    for each in targets or []:
        if opposed is not None and each.class_ids == opposed.class_ids:
            raise ValueError(f"{each.label} and {opposed.label} are the same classes; weigh two targets")
    wanted = _Wanted(network, card, targets, opposed, checked_layer(network, layer), checked_method(method))
    read = partial(decode, reading=Reading(card.preprocessing.exif, max_pixels, allow_truncated, depth, background))
    return _explained(wanted, each_of(images), read)


NOTHING = "no cell speaks for it, and its map is zero"  # how a remark ends


@dataclass(frozen=True)
class _Wanted:
    network: Network
    card: Card
    targets: list[Target] | None
    against: Target | None
    layer: str
    method: Method


@dataclass
class _Entry:
    """A picture on its way: its pixels, what the network is to see, or why there is none."""

    picture: Picture
    pixels: Pixels | None = None
    inputs: np.ndarray | None = None
    error: Exception | None = None
    remarks: list[str] = field(default_factory=list)
    maps: list[GradCam] = field(default_factory=list)


def _read(picture: Picture, card: Card, read: Callable[[Picture], Decoded]) -> _Entry:
    try:
        decoded = read(picture)
        return _Entry(picture, decoded.pixels, square_input(decoded.pixels, card), remarks=list(decoded.remarks))
    except (OSError, ValueError) as error:
        return _Entry(picture, error=error)


def _explained(
    wanted: _Wanted, pictures: Iterable[Picture], read: Callable[[Picture], Decoded]
) -> Generator[Explained, None, None]:
    waiting: list[_Entry] = []
    work = partial(_read, card=wanted.card, read=read)
    with contextlib.closing(ahead(pictures, work, most=2 * BATCH, size=expected_pixels, room=ROOM)) as entries:
        for _, entry in entries:
            waiting.append(entry)
            if sum(each.inputs is not None for each in waiting) == BATCH:
                yield from _finished(wanted, waiting)
                waiting = []
    yield from _finished(wanted, waiting)


def _finished(wanted: _Wanted, entries: list[_Entry]) -> Generator[Explained, None, None]:
    good = [entry for entry in entries if entry.inputs is not None]

    def run(numbers: range) -> None:
        _explain(wanted, [good[number] for number in numbers])

    for _ in in_batches(run, len(good), BATCH) if good else ():
        pass
    for entry in entries:
        yield Explained(entry.picture, entry.maps, entry.error, tuple(entry.remarks))


def _explain(wanted: _Wanted, entries: list[_Entry]) -> None:
    """One batch through the network; each entry gets its maps."""
    images = to_parameters(np.stack([entry.inputs for entry in entries if entry.inputs is not None]), wanted.network)
    opposed = () if wanted.against is None else wanted.against.class_ids
    scores = None if wanted.targets is None else [Score(each.class_ids, opposed) for each in wanted.targets]
    maps, logits = cams_and_logits(wanted.network, images, scores, layer=wanted.layer, method=wanted.method)
    chances = probabilities(logits, wanted.card).cpu()
    for number, entry in enumerate(entries):
        entry.maps = _maps(wanted, entry, maps[:, number], chances[number])


def _maps(wanted: _Wanted, entry: _Entry, raw: Tensor, chances: Tensor) -> list[GradCam]:
    """The maps of one picture, (targets, h, w), with their places and words."""
    assert entry.pixels is not None
    targets = wanted.targets or [find_target(wanted.card, int(chances.argmax()))]
    cells = cam_cells(
        wanted.network,
        wanted.layer,
        (raw.shape[1], raw.shape[2]),
        wanted.card,
        (entry.pixels.shape[0], entry.pixels.shape[1]),
    )
    found = []
    for target, values in zip(targets, raw.float().cpu().numpy(), strict=True):
        highest = float(values.max())
        found.append(
            GradCam(
                values=values / np.float32(highest or 1),
                raw_maximum=highest,
                target=target,
                against=wanted.against,
                layer=wanted.layer,
                method=wanted.method,
                probability=min(1.0, float(chances[list(target.class_ids)].sum())),
                picture=entry.pixels,
                cells=cells,
            )
        )
        if highest == 0:
            entry.remarks.append(f"{picture_name(entry.picture)}: {found[-1].label}: {NOTHING}")
    return found

"""Pictures on their way to the network: what threads make of them, and what is made of that on its device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convnets_torch.decoders import batch_decoder, jpeg_decoder
from convnets_torch.device_pixels import Box, Resizer, reach, turned
from convnets_torch.fitting import in_batches
from convnets_torch.images import Picture, Reading, Upright, decode_encoded, open_encoded
from convnets_torch.jpeg import Encoded
from convnets_torch.levels import Background, Depth, check_levels
from convnets_torch.preprocessing import (
    Pair,
    Pixels,
    Place,
    Preprocessing,
    crop_each,
    crop_image,
    cropped_box,
    least_size,
)
from convnets_torch.strips import goes_down_first

MOST_SENT = 25  # pixels that wait to be resized on the device, for each pixel of the resized picture
MOST_TOGETHER = 64_000_000  # pixels that are decoded or resized together on the device: 0.2 GB, and 0.8 GB as floats


class Cut(NamedTuple):
    """What is to be resized of an array of pixels, and how Pillow would do it.

    Attributes:
        box: in pixels of the picture.
        origin: (x, y) in the picture of the array's first pixel.
        down_first: whether rows are summed before columns.
    """

    box: Box
    origin: tuple[int, int]
    down_first: bool


@dataclass(frozen=True)
class Input:
    """What a thread made of a picture, or why it could not.

    Attributes:
        pixels: (h, w, 3) uint8: of the network's own size where there is no `cut`; None where there is an error or
            `encoded`. With places (places, h, w, 3).
        cut: what of the pixels is to be resized to that size.
        encoded: a file that is to be decoded on the device.
        error: why the picture cannot be used.
        remarks: on it.
        seen: what `look` made of it.
    """

    pixels: Pixels | None = None
    cut: Cut | None = None
    encoded: Encoded | None = None
    error: Exception | None = None
    remarks: tuple[str, ...] = ()
    seen: object = None


class Inputs:
    """How pictures become input.

    Args:
        rule: the card's preprocessing.
        device: where the network is.
        on_device: resize there what this rule lets be resized there.
        exact: decode every file at its whole scale.
        torchcodec: decode JPEG files by torchcodec: there too where `on_device`, else in threads.
        max_pixels, allow_truncated, depth, background: as in `read_picture`.
        look: called in a thread with each decoded picture; then no file is decoded on the device.
        places: where crops are taken instead of in the centre alone, all in threads; each picture then has one more
            axis in front of its pixels.

    Raises:
        ImportError: torchcodec cannot be used.
    """

    def __init__(
        self,
        rule: Preprocessing,
        device: torch.device,
        *,
        on_device: bool = False,
        exact: bool = False,
        torchcodec: bool = False,
        max_pixels: int | None = None,
        allow_truncated: bool = False,
        depth: Depth = None,
        background: Background = None,
        look: Callable[[Image.Image], object] | None = None,
        places: tuple[Place, ...] | None = None,
    ) -> None:
        check_levels(depth, background)
        least = least_size(rule)
        self._rule, self._device, self._places = rule, device, places
        self._on_device = on_device and least is not None and places is None
        self._look = look
        there = torchcodec and self._on_device and look is None
        in_threads = torchcodec and not there
        self._reading = Reading(
            rule.exif,
            max_pixels,
            allow_truncated,
            depth,
            background,
            None if exact or in_threads else least,
            jpeg_decoder() if in_threads else None,
            there,
        )
        self._decode = batch_decoder(device) if there else None
        self._resize = Resizer(rule.resized, rule.interpolation)
        self._left, self._top = (
            (side - kept) // 2 for side, kept in zip(rule.resized[::-1], rule.shape[::-1], strict=True)
        )

    def prepared(self, picture: Picture) -> Input:
        """What threads do: decode, and resize what is not resized on the device."""
        try:
            found = open_encoded(picture, self._reading)
            return Input(encoded=found, remarks=found.remarks) if isinstance(found, Encoded) else self._of(found)
        except (OSError, ValueError) as error:
            return Input(error=error.with_traceback(None))  # whose frames would keep pixels

    def _of(self, found: Upright) -> Input:
        looked = None if self._look is None else self._look(found.image)
        if self._on_device:
            seen, cut = self._seen((found.image.height, found.image.width), found.part)
            if (seen[2] - seen[0]) * (seen[3] - seen[1]) <= MOST_SENT * prod(self._rule.shape):
                image = found.image if seen == (0, 0, *found.image.size) else found.image.crop(seen)
                return Input(np.asarray(image), cut, remarks=found.remarks, seen=looked)
        if self._places is None:
            pixels = crop_image(found.image, self._rule, found.part)
        else:
            pixels = np.stack(list(crop_each(found.image, self._rule, self._places, found.part)))
        return Input(pixels, remarks=found.remarks, seen=looked)

    def _seen(self, size: Pair, part: tuple[float, float] | None = None) -> tuple[tuple[int, int, int, int], Cut]:
        """The pixels that are needed of an image of (height, width), and what of these is to be resized.

        Args:
            size: of the image.
            part: (width, height) that the picture covers of it, as in `Upright`.
        """
        rule, whole = self._rule, size if part is None else part[::-1]
        box = (0, 0, *whole[::-1]) if rule.resize_rule == "stretch" else cropped_box(whole, rule)
        x, y, *_ = seen = reach(box, size, rule.resized, rule.interpolation)
        left, top, right, bottom = map(float, np.asarray(box, np.float32))  # as Pillow takes a box
        return seen, Cut((left, top, right, bottom), (x, y), goes_down_first(size, rule.resized))

    def brought(self, inputs: Sequence[Input]) -> tuple[list[Input], Tensor]:
        """What is done on the device, always in the same stream.

        Returns:
            The inputs, of which more may be errors now; and of those that are none (N, height, width, 3) uint8 of the
            network's own size on its device, in order; with places (N, places, height, width, 3).
        """
        inputs = list(inputs)
        crops = () if self._places is None else (len(self._places),)
        made = torch.empty((len(inputs), *crops, *self._rule.shape, 3), dtype=torch.uint8, device=self._device)
        encoded = {place: each.encoded for place, each in enumerate(inputs) if each.encoded is not None}
        for refused in self._decoded(encoded, made):
            inputs[refused] = self._by_pillow(encoded[refused])
        for (shape, cut), places in _alike(inputs).items():
            most = _together(prod(shape[:-1]))
            for _ in in_batches(partial(self._send, inputs, places, cut, made), len(places), most):
                pass
        good = [place for place, each in enumerate(inputs) if each.error is None]
        return inputs, made if len(good) == len(inputs) else made[good]

    def _send(self, inputs: list[Input], places: list[int], cut: Cut | None, made: Tensor, items: range) -> None:
        """Copy pictures of one size to the device and resize them there, if they are to be."""
        some = places[items.start : items.stop]
        pixels = torch.from_numpy(np.stack([each for place in some if (each := inputs[place].pixels) is not None]))
        if self._device.type == "cuda":
            pixels = pixels.pin_memory()
        sent = pixels.to(self._device, non_blocking=True)
        made[_index(some)] = sent if cut is None else self._cropped(sent.permute(0, 3, 1, 2), cut)

    def _cropped(self, pictures: Tensor, cut: Cut) -> Tensor:
        """Pictures (N, 3, H, W) at the network's own size, (N, height, width, 3)."""
        resized, (height, width) = self._resize(pictures, *cut), self._rule.shape
        return resized[:, self._top : self._top + height, self._left : self._left + width]

    def _decoded(self, encoded: dict[int, Encoded], made: Tensor) -> Iterator[int]:
        """Decode files on the device and resize them there; the places of those that were refused."""
        if self._decode is None or not encoded:
            return
        places, decode = list(encoded), self._decode

        def run(items: range) -> list[int]:
            some = places[items.start : items.stop]
            refused = []
            alike: dict[tuple[torch.Size, Cut], list[tuple[int, Tensor]]] = {}
            for place, picture in zip(some, decode([encoded[place].data for place in some]), strict=True):
                if picture is None:
                    refused.append(place)
                    continue
                picture = turned(picture, encoded[place].turn)
                (left, top, right, bottom), cut = self._seen((picture.shape[1], picture.shape[2]))
                needed = picture[:, top:bottom, left:right]
                alike.setdefault((needed.shape, cut), []).append((place, needed))
            for (_, cut), found in alike.items():
                stack = torch.stack([needed for _, needed in found])
                made[_index([place for place, _ in found])] = self._cropped(stack, cut)
            return refused

        largest = max(each.pixels for each in encoded.values())
        for refused in in_batches(run, len(places), _together(largest)):
            yield from refused

    def _by_pillow(self, encoded: Encoded) -> Input:
        try:
            return self._of(decode_encoded(encoded, self._reading))
        except (OSError, ValueError) as error:
            return Input(error=error.with_traceback(None))


def _alike(inputs: Sequence[Input]) -> dict[tuple[tuple[int, ...], Cut | None], list[int]]:
    """The places of pictures whose pixels wait, by their shape and by what of them is to be resized."""
    alike: dict[tuple[tuple[int, ...], Cut | None], list[int]] = {}
    for place, each in enumerate(inputs):
        if each.pixels is not None:
            alike.setdefault((each.pixels.shape, each.cut), []).append(place)
    return alike


def _together(pixels: int) -> int:
    """How many pictures of so many pixels are worked on together."""
    return max(1, MOST_TOGETHER // pixels)


def _index(places: list[int]) -> slice | list[int]:
    """Places that follow each other as a slice, which costs no copy of their numbers to the device."""
    whole = places[-1] - places[0] + 1 == len(places)
    return slice(places[0], places[-1] + 1) if whole else places

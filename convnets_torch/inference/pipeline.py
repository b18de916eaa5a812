"""Run pictures through a network in order: decode ahead in threads, batch, and keep bad files in their place."""

from __future__ import annotations

import contextlib
import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, islice
from math import prod
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, Protocol, TypeAlias, TypeVar, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from convnets_torch.card import Card
from convnets_torch.fcn.graph import features_grid, grid_of
from convnets_torch.fcn.memory import peak_bytes
from convnets_torch.files import open_file
from convnets_torch.images.decoding import (
    AS_IS,
    Encoded,
    Picture,
    Reading,
    Upright,
    decode_encoded,
    is_tensor,
    open_encoded,
    stored_pixels,
)
from convnets_torch.images.levels import Background, Depth, check_levels
from convnets_torch.images.preprocessing import (
    CENTER,
    CORNERS,
    Pair,
    Pixels,
    Place,
    Preprocessing,
    crop_each,
    crop_image,
    cropped_box,
    least_size,
)
from convnets_torch.images.resizing import Box, Resizer, normalized, reach, turned
from convnets_torch.images.rows import goes_down_first
from convnets_torch.inference.batching import in_batches
from convnets_torch.inference.torchcodec import batch_decoder, jpeg_decoder
from convnets_torch.networks import Network
from convnets_torch.networks.network import NO_HEAD, as_network, check_eval_mode
from convnets_torch.networks.tracing import unwrapped
from convnets_torch.text import check_choice

if TYPE_CHECKING:
    from convnets_torch.inference.engines import Engine

THREADS = min(16, os.cpu_count() or 1)  # that decode; Pillow frees them to run at once
UNKNOWN_PIXELS = 12_000_000  # of an open file, which nobody has looked into yet

Item = TypeVar("Item")
Done = TypeVar("Done")


def ahead(
    items: Iterable[Item],
    work: Callable[[Item], Done],
    *,
    most: int,
    threads: int = THREADS,
    size: Callable[[Item], int] = lambda item: 0,
    room: int = 0,
) -> Generator[tuple[Item, Done], None, None]:
    """Each item with its work done, in order; threads are ahead of whoever asks.

    Args:
        items: taken as they are needed.
        work: runs in a thread; never in two at once for the same item.
        most: items that threads are ahead by.
        threads: how many of them.
        size: how much an item takes while it waits.
        room: how much all of them may take; one alone may take more.

    Returns:
        A generator; its `close` drops what has not begun and waits for the threads.

    >>> list(ahead([3, 1, 2], lambda number: number**2, most=2))
    [(3, 9), (1, 1), (2, 4)]
    """
    executor = ThreadPoolExecutor(threads, "decode")
    rest = iter(items)
    running: deque[tuple[Item, int, Future[Done]]] = deque()
    held: list[tuple[Item, int]] = []  # the next one, taken but not begun
    taken = 0
    try:
        while True:
            while len(running) < most:
                if not held:
                    held.extend((item, size(item)) for item in _next(rest))
                if not held or (running and taken + held[0][1] > room):
                    break
                item, needed = held.pop()
                wait([future for other, _, future in running if other is item])  # no two threads in one image
                running.append((item, needed, executor.submit(work, item)))
                taken += needed
            if not running:
                return
            item, needed, future = running.popleft()
            taken -= needed
            yield item, future.result()
            del item, future  # whoever has the result may let go of it
    finally:
        executor.shutdown(cancel_futures=True)


def _next(items: Iterable[Item]) -> list[Item]:
    """The next of an iterator's items, or none."""
    for item in items:
        return [item]
    return []


def each_of(images: Any) -> Iterable[Any]:
    """The pictures that are given: a single one is a list of one."""
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray)
    one = isinstance(images, kinds) or is_tensor(images)
    return [images] if one or hasattr(images, "read") else images


def expected_pixels(image: object) -> int:
    """How many pixels a picture has, as far as it can be said without decoding it; 0 where it cannot be read."""
    if isinstance(image, Image.Image):
        return image.width * image.height
    if hasattr(image, "shape"):
        return prod(sorted(image.shape)[-2:])  # without the channels, wherever they are
    if not isinstance(image, str | os.PathLike):
        return UNKNOWN_PIXELS
    try:
        with open_file(image) as file:
            return stored_pixels(file)
    except OSError:
        return 0


T = TypeVar("T")
ROOM = 32_000_000  # pixels of whole pictures that are decoded ahead, and as many that wait for others of their group


@dataclass(frozen=True, eq=False)
class Result(Generic[T]):
    """What became of one picture.

    Attributes:
        picture: as it was given.
        value: what the network made of it; None where there is an error.
        error: why the picture could not be used (OSError, ValueError, ImportError), else None.
        remarks: sentences on what its owner may not expect, such as that the first of several frames was read.
    """

    picture: Any
    value: T | None
    error: Exception | None = None
    remarks: tuple[str, ...] = ()


class Prepared(Protocol):
    """What a thread makes of a picture."""

    @property
    def remarks(self) -> tuple[str, ...]: ...


Ready = TypeVar("Ready", bound=Prepared)


@dataclass(eq=False)
class _Entry(Generic[Ready, T]):
    """A picture on its way; it waits while it has neither a value nor an error."""

    picture: Any
    item: Ready | None = None
    group: Hashable = None
    error: Exception | None = None
    waits: bool = False
    value: T | None = None

    def finish(self, found: T | Exception) -> None:
        self.waits = False
        if isinstance(found, Exception):
            self.error = without_frames(found)
        else:
            self.value = found

    def result(self) -> Result[T]:
        return Result(self.picture, self.value, self.error, () if self.item is None else self.item.remarks)


def without_frames(error: Exception) -> Exception:
    """The error without its tracebacks, whose frames would keep pixels and activations."""
    error.__context__ = None
    return error.with_traceback(None)


def run_pictures(
    pictures: Iterable[Any],
    prepare: Callable[[Any], Ready],
    run: Callable[[list[Ready]], Sequence[T | Exception]],
    *,
    batch: int,
    group: Callable[[Ready], Hashable] = lambda item: None,
    room: Callable[[Hashable], int] | None = None,
    waiting: int | None = None,
    held: Callable[[Ready], int] | None = None,
    most: int | None = None,
    threads: int = THREADS,
    size: Callable[[Any], int] = lambda picture: 0,
) -> Generator[Result[T], None, None]:
    """Run pictures in order; one that cannot be used is a row in its place and does not stop the others.

    Threads prepare pictures ahead. The first picture that waits is run together with those of its group, as soon as
    `batch` of them wait, or no more pictures may wait. A batch for which memory runs out is halved, and the size that
    fitted stays for its group.

    Args:
        pictures: taken as they are needed.
        prepare: runs in a thread; an OSError, ValueError or ImportError becomes the picture's row.
        run: items of one group -> for each its value, or why there is none. What it raises ends the run, except for
            want of memory: then it is called again with fewer of the items.
        batch: how many items go together, at most.
        group: of an item; only items of the same group go together.
        room: how many items of a group go together, where groups differ.
        waiting: how many pictures may wait; twice the batch by default.
        held: how many pixels an item keeps in memory; pictures wait while those of all are fewer than `ROOM`.
        most: pictures that are prepared ahead; by default enough for the next batches and for all threads.
        threads: how many prepare.
        size: how many pixels a picture keeps in memory when it is prepared; those ahead are at most `ROOM`.

    Returns:
        A generator of a `Result` for each picture, in order; its `close` leaves no thread behind.

    >>> from types import SimpleNamespace
    >>> def prepare(number):
    ...     return SimpleNamespace(root=number**0.5 if number >= 0 else int("none"), remarks=())
    >>> rows = run_pictures([4, -1, 9], prepare, lambda items: [item.root for item in items], batch=2)
    >>> [(row.picture, row.value, type(row.error).__name__) for row in rows]
    [(4, 2.0, 'NoneType'), (-1, None, 'ValueError'), (9, 3.0, 'NoneType')]
    """
    queue: deque[_Entry[Ready, T]] = deque()
    counts: Counter[Hashable] = Counter()  # of each group, how many wait
    fitting: dict[Hashable, int] = {}  # of a group, how many go together, where memory ran out over more
    longest = waiting or 2 * batch

    def tried(picture: Any) -> _Entry[Ready, T]:
        try:
            item = prepare(picture)
            return _Entry(picture, item, group(item), waits=True)
        except (OSError, ValueError, ImportError) as error:
            return _Entry(picture, error=without_frames(error))

    def together(key: Hashable) -> int:
        return min(batch, fitting.get(key, batch), batch if room is None else room(key))

    def may_wait(key: Hashable) -> bool:
        if counts[key] >= together(key) or len(queue) >= longest:
            return False
        return held is None or sum(held(each.item) for each in queue if each.item is not None) < ROOM

    def run_group(key: Hashable) -> None:
        entries = list(islice((each for each in queue if each.waits and each.group == key), together(key)))
        items = [each.item for each in entries if each.item is not None]
        parts = list(in_batches(lambda numbers: run(items[numbers.start : numbers.stop]), len(items), len(items)))
        if len(parts) > 1:
            fitting[key] = max(map(len, parts))
        for entry, found in zip(entries, chain.from_iterable(parts), strict=True):
            entry.finish(found)
        counts[key] -= len(entries)
        if not counts[key]:
            del counts[key]

    def finished(more: bool) -> Iterator[Result[T]]:
        while queue and not (more and queue[0].waits and may_wait(queue[0].group)):
            if queue[0].waits:
                run_group(queue[0].group)
            yield queue.popleft().result()  # nothing here keeps it

    most = most or max(BATCHES_AHEAD * batch, threads)
    with contextlib.closing(ahead(pictures, tried, most=most, threads=threads, size=size, room=ROOM)) as entries:
        for _, entry in entries:
            queue.append(entry)
            counts[entry.group] += entry.waits
            del entry
            yield from finished(more=True)
        yield from finished(more=False)


Row = TypeVar("Row")
Made = TypeVar("Made")


def each_row(rows: Generator[Row, None, None], make: Callable[[Row], Made]) -> Generator[Made, None, None]:
    """What is made of each row; `close` closes the rows."""
    with contextlib.closing(rows):
        yield from map(make, rows)


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


@dataclass(eq=False)
class Input:
    """What a thread made of a picture.

    Attributes:
        pixels: (h, w, 3) uint8: of the network's own size where there is no `cut`; None where there is an error or
            `encoded`. With places (places, h, w, 3).
        cut: what of the pixels is to be resized to that size.
        encoded: a file that is to be decoded on the device.
        error: why the file could not be decoded there, nor by Pillow.
        remarks: on it.
        seen: what `look` made of it.
    """

    pixels: Pixels | None = None
    cut: Cut | None = None
    encoded: Encoded | None = None
    error: Exception | None = None
    remarks: tuple[str, ...] = ()
    seen: Any = None


class Inputs:
    """How pictures become input.

    Args:
        rule: the card's preprocessing.
        device: where the network is.
        reading: how files are decoded; the rule decides on EXIF, `exact` on the scale, `torchcodec` on the decoder.
        on_device: resize there what this rule lets be resized there.
        exact: decode every file at its whole scale.
        torchcodec: decode JPEG files by torchcodec: there too where `on_device`, else in threads.
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
        reading: Reading = AS_IS,
        *,
        on_device: bool = False,
        exact: bool = False,
        torchcodec: bool = False,
        look: Callable[[Image.Image], object] | None = None,
        places: tuple[Place, ...] | None = None,
    ) -> None:
        check_levels(reading.depth, reading.background)
        least = least_size(rule)
        self._rule, self._device, self._places = rule, device, places
        self._on_device = on_device and least is not None and places is None
        self._look = look
        there = torchcodec and self._on_device and look is None
        in_threads = torchcodec and not there
        self._reading = reading._replace(
            exif=rule.exif,
            least=None if exact or in_threads else least,
            jpeg=jpeg_decoder() if in_threads else None,
            encoded=there,
        )
        self._decode = batch_decoder(device) if there else None
        self._resize = Resizer(rule.resized, rule.interpolation)
        self._left, self._top = (
            (side - kept) // 2 for side, kept in zip(rule.resized[::-1], rule.shape[::-1], strict=True)
        )

    def prepared(self, picture: Picture) -> Input:
        """What threads do: decode, and resize what is not resized on the device.

        Raises:
            OSError, ValueError: the picture cannot be used.
        """
        found = open_encoded(picture, self._reading)
        return Input(encoded=found, remarks=found.remarks) if isinstance(found, Encoded) else self._of(found)

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

    def images(self, inputs: Sequence[Input], dtype: torch.dtype = torch.float32) -> Tensor:
        """Pictures as the network takes them, (N, 3, height, width) on its device; those without an error, in order."""
        return normalized(self.brought(inputs), self._rule).to(dtype)

    def brought(self, inputs: Sequence[Input]) -> Tensor:
        """What is done on the device, always in the same stream; inputs that cannot be decoded there get an error.

        Returns:
            (N, height, width, 3) uint8 of the network's own size on its device, of the inputs without an error, in
            order; with places (N, places, height, width, 3).
        """
        crops = () if self._places is None else (len(self._places),)
        made = torch.empty((len(inputs), *crops, *self._rule.shape, 3), dtype=torch.uint8, device=self._device)
        encoded = {place: each.encoded for place, each in enumerate(inputs) if each.encoded is not None}
        for refused in self._decoded(encoded, made):
            self._by_pillow(inputs[refused], encoded[refused])
        for (shape, cut), places in _alike(inputs).items():
            most = _together(prod(shape[:-1]))
            for _ in in_batches(partial(self._send, inputs, places, cut, made), len(places), most):
                pass
        good = [place for place, each in enumerate(inputs) if each.error is None]
        return made if len(good) == len(inputs) else made[good]

    def _send(self, inputs: Sequence[Input], places: list[int], cut: Cut | None, made: Tensor, items: range) -> None:
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

    def _by_pillow(self, each: Input, encoded: Encoded) -> None:
        """Decode in an input what the device refused."""
        try:
            found = self._of(decode_encoded(encoded, self._reading))
            each.encoded, each.pixels, each.cut, each.remarks = None, found.pixels, found.cut, found.remarks
        except (OSError, ValueError) as error:
            each.encoded, each.error, each.remarks = None, without_frames(error), ()


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


Decoder = Literal["pillow", "torchcodec"]
Resizing = Literal["auto", "pillow", "device"]
Views = Literal["center", "flip", "ten"]
Mappable: TypeAlias = "Network | Engine"  # what gives score maps

BATCH = 16  # pictures that go through the network together on the CPU, and the fewest elsewhere
MOST_BATCH = 256  # that "auto" takes
PLACES: dict[Views, tuple[Place, ...] | None] = {"center": None, "flip": None, "ten": (*CORNERS, CENTER)}
VIEWS: dict[Views, int] = {"center": 1, "flip": 2, "ten": 10}  # how many of a picture go through the network
BATCHES_AHEAD = 3  # how many batches are decoded before the network asks for them


class Runnable(Protocol):
    """What gives numbers for images: a network, an engine of one, or a module around one with its card."""

    card: Card | None

    def __call__(self, images: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Predicted(Result[Tensor]):
    """What became of one picture.

    Attributes:
        logits: (classes,) float32 on the CPU, with several views (views, classes); None where there is an error.
        seen: what `look` returned for it; None where there is none, or an error.
        picture, error, remarks: as in `Result`.
    """

    seen: Any = None

    @property
    def logits(self) -> Tensor | None:
        """The `value`."""
        return self.value


def predict(
    network: Runnable,
    pictures: Picture | Iterable[Picture],
    *,
    batch: int | Literal["auto"] = "auto",
    workers: int | None = None,
    exact: bool = False,
    max_pixels: int | None = None,
    allow_truncated: bool = False,
    depth: Depth = None,
    background: Background = None,
    decoder: Decoder = "pillow",
    resize: Resizing = "auto",
    look: Callable[[Image.Image], object] | None = None,
    views: Views = "center",
) -> Generator[Predicted, None, None]:
    """The logits of any number of pictures; one that cannot be used does not stop the others.

    Threads decode, resize and crop as the network's card says, ahead of the network. Pixels go to its device as 8 bits
    and are normalised there. On CUDA they are resized there as well, while the batch before is computed. Some three
    batches of inputs are in memory at once, and a decoded picture in each thread, so the pictures may go on for ever.

    Args:
        network: in eval mode, with its card, as `load` gives it; with `load(path, device="auto", precision="auto")` it
            runs as fast as the device allows. Or an `engine` of such a network; or an `Embedder`, whose vectors then
            stand for logits.
        pictures: whatever `read_picture` takes, or any iterable of it; `find_pictures` lists those of a folder.
        batch: how many go through the network together; "auto" takes 16 on the CPU, and elsewhere as many as half of
            the free memory has room for, 16 to 256. It is halved when memory runs out.
        workers: threads that decode; by default one for each core, at most 16.
        exact: take no pixel otherwise than `classify` does. Without it, JPEG files are decoded at 1/2, 1/4 or 1/8 of
            their scale where they stay twice as large as the resized picture: by far less work, and inputs that differ
            by a third of a level of 255 on average. Never so where the card picks nearest pixels, nor for the presets
            of convnets-keras. docs/speed.md has what that changes.
        max_pixels: refuse files of more pixels; 178,956,970 by default.
        allow_truncated: read what is there of files whose end is missing.
        depth, background: as in `read_picture`.
        decoder: "pillow"; or "torchcodec", which decodes JPEG files at their whole scale: on the CPU to the same
            pixels; where pictures are resized on CUDA, there by nvJPEG, whole batches at once, to nearly the same.
            Pillow reads whatever is no JPEG file, or one that torchcodec refuses.
        resize: "pillow" in the threads; "device" where the network is, with Pillow's own weights and roundings: on the
            CPU the same to the bit, and slower. Pillow resizes all the same where the card picks nearest pixels, for
            the presets of convnets-keras, and pictures of which more than 25 pixels would be sent for each one of the
            input. "auto" is "device" on CUDA without `exact`, else "pillow".
        look: called in the thread that decodes with each picture, upright and RGB, before it is cropped; JPEG files may
            be there at a fraction of their scale. What it returns is `seen` of the row. Files are then decoded in
            threads, not on the device.
        views: what of a picture the network sees: "center", the crop that the card says; "flip", that one and its
            mirror image; "ten", crops of the resized picture's corners (top left, top right, bottom left, bottom right)
            and of its centre, then the mirror images of these five. A batch counts views, and holds whole pictures.
            The crops of "ten" are resized in threads.

    Returns:
        A generator of one `Predicted` per picture, in the order given; results come in bursts. `close()` stops it early
        and leaves no thread behind.

    Raises:
        ValueError: at once, when the network has no card, no head, or is in training mode, or an option is no good.
        ImportError: at once, when the decoder is not installed.

    Warns:
        MemoryWarning: memory ran out, and the work goes on in smaller batches.

    >>> from convnets_torch import load
    >>> for row in predict(load("alexnet.safetensors"), ["street.jpg", "none.jpg"]):
    ...     print(row.picture, None if row.logits is None else tuple(row.logits.shape), row.error)
    street.jpg (1000,) None
    none.jpg None none.jpg does not exist; name a file
    """
    reading = Reading(True, max_pixels, allow_truncated, depth, background)
    return predicted(network, pictures, reading, batch, workers, exact, decoder, resize, look, views)


def predicted(
    network: Runnable,
    pictures: Picture | Iterable[Picture],
    reading: Reading,
    batch: int | Literal["auto"] = "auto",
    workers: int | None = None,
    exact: bool = False,
    decoder: Decoder = "pillow",
    resize: Resizing = "auto",
    look: Callable[[Image.Image], object] | None = None,
    views: Views = "center",
) -> Generator[Predicted, None, None]:
    """`predict` with its options on files in one object; the card decides on EXIF."""
    rule = card_of(network).preprocessing
    if getattr(network, "mapped", None) is not None:
        raise ValueError("the engine gives score maps; to classify, make one without heatmap")
    if batch != "auto" and (type(batch) is not int or batch < 1):
        raise ValueError(f"a batch of {batch!r} is none; give 1 or more, or 'auto'")
    if workers is not None and workers < 1:
        raise ValueError(f"{workers} workers decode nothing; give 1 or more")
    check_choice(decoder, get_args(Decoder), "decoder")
    check_choice(resize, get_args(Resizing), "resize")
    if exact and resize == "device":
        raise ValueError("exact has Pillow resize, so that no device rounds otherwise; leave out resize='device'")
    check_choice(views, VIEWS, "views")
    if views == "ten" and resize == "device":
        raise ValueError("the ten views are resized by Pillow, in threads; leave out resize='device'")
    device, _ = place_of(network)
    inputs = Inputs(
        rule,
        device,
        reading,
        on_device=resize == "device" or (resize == "auto" and device.type == "cuda" and not exact),
        exact=exact,
        torchcodec=decoder == "torchcodec",
        look=look,
        places=PLACES[views],
    )
    size = together(batch_for(network) if batch == "auto" else batch, views)
    runner = _Runner(network, inputs, rule, exact, views)
    rows = run_pictures(each_of(pictures), inputs.prepared, runner.run, batch=size, threads=workers or THREADS)
    return each_row(_a_batch_late(rows, size) if device.type == "cuda" else rows, _predicted)


def together(batch: int, views: Views) -> int:
    """How many pictures go through the network together: as many as have all their views in a batch, or one."""
    return max(1, batch // VIEWS[views])


def is_whole(members: int, good: int, size: int) -> bool:
    """Whether of pictures that follow each other, `good` of the `members` usable, none waits for the network any more.

    It says where the batches of `predict` end: with `size` good ones, or with so many bad ones among them.
    """
    return good in (0, size) or members == 2 * size


class _Batch:
    """Logits (N, classes) or (N, views, classes) of a batch, float32, perhaps still on their way."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def fetch(self) -> Tensor:
        """The same on the CPU, when they are there."""
        self.logits = self.logits.cpu()
        return self.logits


class _Place(NamedTuple):
    """Where the logits of a picture are, and what `look` returned for it."""

    batch: _Batch
    number: int
    seen: object


def _predicted(row: Result[_Place]) -> Predicted:
    if row.value is None:
        return Predicted(row.picture, None, row.error, row.remarks)
    logits = row.value.batch.fetch()[row.value.number].clone()  # which may be kept without the others
    return Predicted(row.picture, logits, None, row.remarks, row.value.seen)


def _a_batch_late(rows: Generator[Result[_Place], None, None], size: int) -> Generator[Result[_Place], None, None]:
    """The rows of a batch when the next one has been started, so that the device does not wait for who takes them."""
    late: list[Result[_Place]] = []
    last: _Batch | None = None
    with contextlib.closing(rows):
        for row in rows:
            batch = last if row.value is None else row.value.batch
            if batch is not last or len(late) >= 2 * size:  # bad files alone do not wait for a good one
                yield from late
                late, last = [], batch
            late.append(row)
        yield from late


class _Runner:
    """Batches of inputs in, logits out."""

    def __init__(self, network: Runnable, inputs: Inputs, rule: Preprocessing, exact: bool, views: Views) -> None:
        self._network, self._inputs, self._rule, self._exact, self._views = network, inputs, rule, exact, views
        self._device, self._dtype = place_of(network)
        self._most = VIEWS[views]  # of the views of one picture that go together; halved where memory runs out
        self._side = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._before: _Batch | None = None

    def run(self, inputs: list[Input]) -> list[_Place | Exception]:
        """The logits of each picture."""
        if self._side is None:
            batch = _Batch(self._logits(self._inputs.brought(inputs)).cpu())
        else:
            # Kernels are started, not waited for: a batch is computed while the next is decoded, copied and resized.
            with torch.cuda.device(self._device), torch.cuda.stream(self._side):
                pixels = self._inputs.brought(inputs)
            if self._before is not None:
                self._before.fetch()
            with torch.cuda.device(self._device):
                current = torch.cuda.current_stream()
                current.wait_stream(self._side)
                pixels.record_stream(current)  # so that its memory is not given away before it has been read
                batch = self._before = _Batch(self._logits(pixels))
        numbers = count()
        return [each.error or _Place(batch, next(numbers), each.seen) for each in inputs]

    def _logits(self, pixels: Tensor) -> Tensor:
        """Pixels as `Inputs.brought` gives them -> (N, classes) or (N, views, classes) float32, all on one device."""
        pictures, views = len(pixels), VIEWS[self._views]
        if not pictures:
            return torch.empty(0)
        if views == 1:
            return self._forward(pixels)
        seen = pixels.view(pictures, -1, *pixels.shape[-3:])  # (N, places, h, w, 3)
        pixels = torch.cat([seen, seen.flip(3)], dim=1).flatten(0, 1)
        if pictures > 1:
            return self._forward(pixels).view(pictures, views, -1)
        parts = list(in_batches(lambda some: self._forward(pixels[some.start : some.stop]), views, self._most))
        self._most = max(map(len, parts))
        return torch.cat(parts)[None]

    def _forward(self, pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            images = normalized(pixels, self._rule).to(self._dtype)
            layout = torch.contiguous_format if self._exact else torch.channels_last
            return self._network(images.contiguous(memory_format=layout)).float()


def place_of(network: Runnable) -> tuple[torch.device, torch.dtype]:
    """Where images have to be, and as what kind of number."""
    if not isinstance(network, nn.Module):
        return torch.device("cpu"), torch.float32
    some = next(network.parameters())
    return some.device, some.dtype


def batch_for(network: Runnable) -> int:
    """How many pictures "auto" takes: 16 on the CPU; on CUDA what half of the free memory has room for, 16 to 256."""
    device, dtype = place_of(network)
    if device.type != "cuda" or not isinstance(network, Network):
        return BATCH
    free, _ = torch.cuda.mem_get_info(device)
    height, width = network.size
    grid = features_grid(network) if network.head is None else grid_of(network)
    one = peak_bytes(grid, (1, height, width), dtype, height)
    return max(BATCH, min(MOST_BATCH, free // 2 // max(1, one)))


def card_of(network: Runnable) -> Card:
    """The card of a network that is ready to classify, or of its engine.

    Raises:
        ValueError: the network has no card or no head, or is in training mode.
    """
    card = ready_card(network)
    inner = unwrapped(network) if isinstance(network, nn.Module) else None
    if isinstance(inner, Network) and inner.head is None:
        raise ValueError(NO_HEAD)
    return card


def mappable(network: Mappable) -> Mappable:
    """A network to make maps of, or its engine; of a compiled or wrapped network, the one inside.

    Raises:
        ValueError: it is another module.
    """
    return as_network(network) if isinstance(network, nn.Module) else network


def ready_card(network: Runnable) -> Card:
    """The card of a network that is ready to run, with a head or without, or of its engine.

    Raises:
        ValueError: the network has no card, or is in training mode.
    """
    inner = unwrapped(network) if isinstance(network, nn.Module) else network
    card: Card | None = getattr(inner, "card", None)
    if card is None:
        raise ValueError(
            "the network has no card, so its preprocessing is unknown; load it with convnets_torch.load, or make a"
            " classifier of your own one with convnets_torch.densify(module, size, preprocessing=..., classes=...)"
        )
    if isinstance(inner, nn.Module):
        check_eval_mode(inner)
    return card

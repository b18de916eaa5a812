"""Run pictures through a network in order: prefetch in threads, batch, and return an error row for each bad file."""

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
from convnets_torch.fcn.graph import features_graph, map_graph
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

THREADS = min(16, os.cpu_count() or 1)  # decoding threads; Pillow releases the GIL
UNKNOWN_PIXELS = 12_000_000  # assumed for an open file, whose header has not been read yet

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
    """Yield (item, result) in order; worker threads compute results before they are needed.

    Args:
        items: consumed lazily.
        work: runs in a thread, never in two threads at once for the same item.
        most: maximum number of items prefetched.
        threads: number of worker threads.
        size: size of an item while it is queued.
        room: maximum total size of the queued items; a single item may exceed it.

    Returns:
        A generator; closing it cancels pending work and waits for the threads.

    >>> list(ahead([3, 1, 2], lambda number: number**2, most=2))
    [(3, 9), (1, 1), (2, 4)]
    """
    executor = ThreadPoolExecutor(threads, "decode")
    rest = iter(items)
    running: deque[tuple[Item, int, Future[Done]]] = deque()
    held: list[tuple[Item, int]] = []  # the next item, if it was taken but not submitted
    taken = 0
    try:
        while True:
            while len(running) < most:
                if not held:
                    held.extend((item, size(item)) for item in islice(rest, 1))
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
            del item, future  # keep no reference: the caller may free the result
    finally:
        executor.shutdown(cancel_futures=True)


def each_of(images: Any) -> Iterable[Any]:
    """Return the given pictures as an iterable; a single picture becomes a list of one."""
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray)
    one = isinstance(images, kinds) or is_tensor(images)
    return [images] if one or hasattr(images, "read") else images


def expected_pixels(image: object) -> int:
    """Estimate the number of pixels of a picture without decoding it; 0 if it cannot be read."""
    if isinstance(image, Image.Image):
        return image.width * image.height
    if hasattr(image, "shape"):
        return prod(sorted(image.shape)[-2:])  # without the channels, first or last
    if not isinstance(image, str | os.PathLike):
        return UNKNOWN_PIXELS
    try:
        with open_file(image) as file:
            return stored_pixels(file)
    except OSError:
        return 0


T = TypeVar("T")
ROOM = 32_000_000  # pixels of prefetched pictures, and as many again of queued ones


@dataclass(frozen=True, eq=False)
class Result(Generic[T]):
    """The outcome for one picture.

    Attributes:
        picture: the picture as given.
        value: the result; None on error.
        error: why the picture could not be used (OSError, ValueError, ImportError), else None.
        remarks: notes for the user, for example that only the first of several frames was read.
    """

    picture: Any
    value: T | None
    error: Exception | None = None
    remarks: tuple[str, ...] = ()


class Prepared(Protocol):
    """The output of `prepare` in `run_pictures`."""

    @property
    def remarks(self) -> tuple[str, ...]: ...


Ready = TypeVar("Ready", bound=Prepared)


@dataclass(eq=False)
class _Entry(Generic[Ready, T]):
    """A queued picture; it is pending until it has a value or an error."""

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
    """Return the error without its traceback, whose frames would keep pixels and activations alive."""
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
    """Run pictures through a network in order; a picture that cannot be used yields a row with its error.

    Threads prepare pictures ahead of time. The first pending picture runs together with the other pending pictures of
    its group, as soon as there are `batch` of them or no more pictures may be queued. A batch that runs out of memory
    is halved, and the smaller size is kept for that group.

    Args:
        pictures: consumed lazily.
        prepare: runs in a thread; an OSError, ValueError or ImportError becomes the picture's error.
        run: items of one group -> a value or an exception per item. An exception that it raises ends the run, except
            out-of-memory errors: `run` is then called again with fewer items.
        batch: maximum number of items per call of `run`.
        group: key of an item; only items with equal keys run together.
        room: maximum number of items per call of `run` for a group, if that differs between groups.
        waiting: maximum number of queued pictures; twice the batch by default.
        held: pixels that an item keeps in memory; no more pictures are queued once the total reaches `ROOM`.
        most: maximum number of prefetched pictures; by default enough for the next batches and for all threads.
        threads: number of threads that prepare pictures.
        size: pixels that a prepared picture keeps in memory; prefetched pictures take at most `ROOM`.

    Returns:
        A generator of one `Result` per picture, in order; closing it leaves no thread behind.

    >>> from types import SimpleNamespace
    >>> def prepare(number):
    ...     return SimpleNamespace(root=number**0.5 if number >= 0 else int("none"), remarks=())
    >>> rows = run_pictures([4, -1, 9], prepare, lambda items: [item.root for item in items], batch=2)
    >>> [(row.picture, row.value, type(row.error).__name__) for row in rows]
    [(4, 2.0, 'NoneType'), (-1, None, 'ValueError'), (9, 3.0, 'NoneType')]
    """
    queue: deque[_Entry[Ready, T]] = deque()
    counts: Counter[Hashable] = Counter()  # pending entries per group
    fitting: dict[Hashable, int] = {}  # largest batch that fitted, for groups that ran out of memory
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
            yield queue.popleft().result()  # keep no reference

    most = most or max(BATCHES_AHEAD * batch, threads)
    with contextlib.closing(ahead(pictures, tried, most=most, threads=threads, size=size, room=ROOM)) as entries:
        for _, entry in entries:
            queue.append(entry)
            counts[entry.group] += entry.waits
            del entry
            yield from finished(more=True)
        yield from finished(more=False)


def each_row(rows: Generator[Item, None, None], make: Callable[[Item], Done]) -> Generator[Done, None, None]:
    """Yield `make(row)` for each row; closing the generator closes `rows`."""
    with contextlib.closing(rows):
        yield from map(make, rows)


MOST_SENT = 25  # pixels copied to the device for resizing, per pixel of the resized picture
MOST_TOGETHER = 64_000_000  # pixels decoded or resized at once on the device: 0.2 GB, and 0.8 GB as floats


class Cut(NamedTuple):
    """The region of a pixel array to resize, and how Pillow would resize it.

    Attributes:
        box: in pixels of the picture.
        origin: (x, y) in the picture of the array's first pixel.
        down_first: whether the vertical pass runs before the horizontal one.
    """

    box: Box
    origin: tuple[int, int]
    down_first: bool


@dataclass(eq=False)
class Input:
    """A decoded picture.

    Attributes:
        pixels: (h, w, 3) uint8, of the network's own size if `cut` is None; (places, h, w, 3) with places; None on
            error or if the file is `encoded`.
        cut: the region of `pixels` to resize to that size.
        encoded: a file to decode on the device.
        error: why neither the device nor Pillow could decode the file.
        remarks: notes on the file.
        seen: the result of `look`.
    """

    pixels: Pixels | None = None
    cut: Cut | None = None
    encoded: Encoded | None = None
    error: Exception | None = None
    remarks: tuple[str, ...] = ()
    seen: Any = None


class Inputs:
    """Turn pictures into network input.

    Args:
        rule: the card's preprocessing.
        device: the network's device.
        reading: how files are decoded; `rule` decides on EXIF, `exact` on the scale, `torchcodec` on the decoder.
        on_device: resize on the device where `rule` allows it.
        exact: decode every file at full scale.
        torchcodec: decode JPEG files with torchcodec: on the device with `on_device`, else in threads.
        look: called in a thread with each decoded picture; files are then never decoded on the device.
        places: take crops at these places instead of the centre crop, all in threads; adds an axis in front of each
            picture's pixels.

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
        """Decode a picture in a worker thread, and resize it unless the device does.

        Raises:
            OSError, ValueError: the picture cannot be used.
        """
        found = open_encoded(picture, self._reading)
        return (
            Input(encoded=found, remarks=found.remarks) if isinstance(found, Encoded) else self._prepared_image(found)
        )

    def _prepared_image(self, found: Upright) -> Input:
        looked = None if self._look is None else self._look(found.image)
        if self._on_device:
            seen, cut = self._needed((found.image.height, found.image.width), found.part)
            if (seen[2] - seen[0]) * (seen[3] - seen[1]) <= MOST_SENT * prod(self._rule.shape):
                image = found.image if seen == (0, 0, *found.image.size) else found.image.crop(seen)
                return Input(np.asarray(image), cut, remarks=found.remarks, seen=looked)
        if self._places is None:
            pixels = crop_image(found.image, self._rule, found.part)
        else:
            pixels = np.stack(list(crop_each(found.image, self._rule, self._places, found.part)))
        return Input(pixels, remarks=found.remarks, seen=looked)

    def _needed(self, size: Pair, part: tuple[float, float] | None = None) -> tuple[tuple[int, int, int, int], Cut]:
        """Return the needed pixels of an image, of which the picture covers `part`, and the region to resize."""
        rule, whole = self._rule, size if part is None else part[::-1]
        box = (0, 0, *whole[::-1]) if rule.resize_rule == "stretch" else cropped_box(whole, rule)
        x, y, *_ = seen = reach(box, size, rule.resized, rule.interpolation)
        left, top, right, bottom = map(float, np.asarray(box, np.float32))  # as Pillow takes a box
        return seen, Cut((left, top, right, bottom), (x, y), goes_down_first(size, rule.resized))

    def images(self, inputs: Sequence[Input], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return network input (N, 3, height, width) on the device, for the inputs without an error, in order."""
        return normalized(self.brought(inputs), self._rule).to(dtype)

    def brought(self, inputs: Sequence[Input]) -> Tensor:
        """Copy, decode and resize inputs on the device; an input that cannot be decoded gets an error.

        Returns:
            (N, height, width, 3) uint8 of the network's own size, on its device, for the inputs without an error, in
            order; with places (N, places, height, width, 3). All work runs in the current stream.
        """
        crops = () if self._places is None else (len(self._places),)
        made = torch.empty((len(inputs), *crops, *self._rule.shape, 3), dtype=torch.uint8, device=self._device)
        encoded = {place: each.encoded for place, each in enumerate(inputs) if each.encoded is not None}
        for refused in self._decode_on_device(encoded, made):
            self._decode_with_pillow(inputs[refused], encoded[refused])
        for (shape, cut), places in _by_shape_and_crop(inputs).items():
            most = _chunk_size(prod(shape[:-1]))
            for _ in in_batches(partial(self._send, inputs, places, cut, made), len(places), most):
                pass
        good = [place for place, each in enumerate(inputs) if each.error is None]
        return made if len(good) == len(inputs) else made[good]

    def _send(self, inputs: Sequence[Input], places: list[int], cut: Cut | None, made: Tensor, items: range) -> None:
        """Copy pictures of one size to the device, and resize them there if `cut` is given."""
        some = places[items.start : items.stop]
        pixels = torch.from_numpy(np.stack([each for place in some if (each := inputs[place].pixels) is not None]))
        if self._device.type == "cuda":
            pixels = pixels.pin_memory()
        sent = pixels.to(self._device, non_blocking=True)
        made[_index(some)] = sent if cut is None else self._cropped(sent.permute(0, 3, 1, 2), cut)

    def _cropped(self, pictures: Tensor, cut: Cut) -> Tensor:
        """Resize and crop pictures (N, 3, H, W) to the network's own size, (N, height, width, 3)."""
        resized, (height, width) = self._resize(pictures, *cut), self._rule.shape
        return resized[:, self._top : self._top + height, self._left : self._left + width]

    def _decode_on_device(self, encoded: dict[int, Encoded], made: Tensor) -> Iterator[int]:
        """Decode and resize files on the device; yield the indices of refused files."""
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
                (left, top, right, bottom), cut = self._needed((picture.shape[1], picture.shape[2]))
                needed = picture[:, top:bottom, left:right]
                alike.setdefault((needed.shape, cut), []).append((place, needed))
            for (_, cut), found in alike.items():
                stack = torch.stack([needed for _, needed in found])
                made[_index([place for place, _ in found])] = self._cropped(stack, cut)
            return refused

        largest = max(each.pixels for each in encoded.values())
        for refused in in_batches(run, len(places), _chunk_size(largest)):
            yield from refused

    def _decode_with_pillow(self, each: Input, encoded: Encoded) -> None:
        """Decode with Pillow a file that the device refused."""
        try:
            found = self._prepared_image(decode_encoded(encoded, self._reading))
            each.encoded, each.pixels, each.cut, each.remarks = None, found.pixels, found.cut, found.remarks
        except (OSError, ValueError) as error:
            each.encoded, each.error, each.remarks = None, without_frames(error), ()


def _by_shape_and_crop(inputs: Sequence[Input]) -> dict[tuple[tuple[int, ...], Cut | None], list[int]]:
    """Group the indices of inputs with pixels by shape and crop."""
    alike: dict[tuple[tuple[int, ...], Cut | None], list[int]] = {}
    for place, each in enumerate(inputs):
        if each.pixels is not None:
            alike.setdefault((each.pixels.shape, each.cut), []).append(place)
    return alike


def _chunk_size(pixels: int) -> int:
    """Return how many pictures of `pixels` pixels to process at once."""
    return max(1, MOST_TOGETHER // pixels)


def _index(places: list[int]) -> slice | list[int]:
    """Return consecutive indices as a slice, which avoids copying them to the device."""
    whole = places[-1] - places[0] + 1 == len(places)
    return slice(places[0], places[-1] + 1) if whole else places


Decoder = Literal["pillow", "torchcodec"]
Resizing = Literal["auto", "pillow", "device"]
Views = Literal["center", "flip", "ten"]
Mappable: TypeAlias = "Network | Engine"  # can compute score maps

BATCH = 16  # "auto" batch size on the CPU, and the minimum on other devices
MOST_BATCH = 256  # maximum of "auto"
PLACES: dict[Views, tuple[Place, ...] | None] = {"center": None, "flip": None, "ten": (*CORNERS, CENTER)}
VIEWS: dict[Views, int] = {"center": 1, "flip": 2, "ten": 10}  # views per picture
BATCHES_AHEAD = 3  # batches decoded ahead of the network


class Runnable(Protocol):
    """A callable from images to numbers: a network, an engine, or a module with the network's card."""

    card: Card | None

    def __call__(self, images: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Predicted(Result[Tensor]):
    """The logits of one picture.

    Attributes:
        logits: (classes,) float32 on the CPU, with several views (views, classes); None on error.
        seen: the result of `look`; None on error or without `look`.
        picture, error, remarks: as in `Result`.
    """

    seen: Any = None

    @property
    def logits(self) -> Tensor | None:
        """Alias of `value`."""
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
    """Compute the logits of any number of pictures; a picture that cannot be used does not stop the others.

    Threads decode, resize and crop pictures ahead of time, as the network's card says. Pixels are copied to the device
    as 8-bit values and normalised there. On CUDA they are also resized there, while the previous batch is being
    computed. About three batches of inputs and one decoded picture per thread are in memory at once, so `pictures` may
    be endless.

    Args:
        network: in eval mode and with its card, as `load` returns it; `load(path, device="auto", precision="auto")`
            gives the fastest one. Or an `engine` of such a network; or an `Embedder`, whose vectors then take the place
            of the logits.
        pictures: whatever `read_picture` takes, or an iterable of such; `find_pictures` lists those of a folder.
        batch: batch size; "auto" uses 16 on the CPU, and on other devices as many as fit in half of the free memory,
            16 to 256. It is halved when memory runs out.
        workers: number of decoding threads; one per core by default, at most 16.
        exact: use exactly the pixels that `classify` uses. Without it, JPEG files are decoded at 1/2, 1/4 or 1/8 scale
            if they are then still at least twice as large as the resized picture: much less work, and inputs that
            differ by a third of a level of 255 on average. This never applies to cards with nearest-pixel interpolation
            or to the presets of convnets-keras. docs/speed.md describes the effect.
        max_pixels: refuse files with more pixels; 178,956,970 by default.
        allow_truncated: accept truncated files.
        depth, background: as in `read_picture`.
        decoder: "pillow" or "torchcodec". torchcodec decodes JPEG files at full scale: on the CPU to the same pixels;
            on CUDA, if pictures are resized there, with nvJPEG and in whole batches, to nearly the same pixels. Pillow
            reads all other files, and those that torchcodec refuses.
        resize: "pillow" resizes in the threads. "device" resizes on the network's device with Pillow's own weights and
            rounding: on the CPU bit-identical, but slower. Pillow still resizes for cards with nearest-pixel
            interpolation, for the presets of convnets-keras, and for pictures that would need more than 25 pixels
            copied per input pixel. "auto" is "device" on CUDA without `exact`, else "pillow".
        look: called in the decoding thread with each picture, upright and RGB, before it is cropped; JPEG files may be
            at a fraction of their scale. Its result is `seen` of the row. Files are then decoded in threads, not on the
            device.
        views: crops of a picture that the network sees: "center", the crop that the card says; "flip", that crop and
            its mirror image; "ten", crops of the resized picture's corners (top left, top right, bottom left, bottom
            right) and of its centre, then the mirror images of these five. `batch` counts views, and pictures are never
            split across batches. The crops of "ten" are resized in threads.

    Returns:
        A generator of one `Predicted` per picture, in the order given; results come in bursts. `close()` stops it early
        and leaves no thread behind.

    Raises:
        ValueError: immediately, if the network has no card, no head, or is in training mode, or an option is invalid.
        ImportError: immediately, if the decoder is not installed.

    Warns:
        MemoryWarning: memory ran out, and the work continues in smaller batches.

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
    """Run `predict` with its reading options in one object; the card decides on EXIF."""
    rule = card_of(network).preprocessing
    if getattr(network, "mapped", None) is not None:
        raise ValueError("the engine gives score maps; to classify, make one without heatmap")
    if batch != "auto" and (type(batch) is not int or batch < 1):
        raise ValueError(f"batch must be a positive integer or 'auto', got {batch!r}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be 1 or more, got {workers}")
    check_choice(decoder, get_args(Decoder), "decoder")
    check_choice(resize, get_args(Resizing), "resize")
    if exact and resize == "device":
        raise ValueError("exact resizes with Pillow, since a device may round differently; leave out resize='device'")
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
    """Return how many pictures have all their views in a batch, at least 1."""
    return max(1, batch // VIEWS[views])


def is_whole(members: int, good: int, size: int) -> bool:
    """Return whether no picture waits for its batch in `predict` after `members` pictures, `good` of them usable.

    A batch ends after `size` usable pictures, or after 2 * `size` pictures of any kind.
    """
    return good in (0, size) or members == 2 * size


class _Batch:
    """Logits (N, classes) or (N, views, classes) of a batch, float32; on CUDA perhaps still being computed."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def fetch(self) -> Tensor:
        """Return the logits on the CPU, waiting for them if necessary."""
        self.logits = self.logits.cpu()
        return self.logits


class _Place(NamedTuple):
    """A picture's index in a batch of logits, and the result of `look`."""

    batch: _Batch
    number: int
    seen: object


def _predicted(row: Result[_Place]) -> Predicted:
    if row.value is None:
        return Predicted(row.picture, None, row.error, row.remarks)
    logits = row.value.batch.fetch()[row.value.number].clone()  # a view would keep the whole batch in memory
    return Predicted(row.picture, logits, None, row.remarks, row.value.seen)


def _a_batch_late(rows: Generator[Result[_Place], None, None], size: int) -> Generator[Result[_Place], None, None]:
    """Yield the rows of a batch once the next batch is running, so that the device does not wait for the caller."""
    late: list[Result[_Place]] = []
    last: _Batch | None = None
    with contextlib.closing(rows):
        for row in rows:
            batch = last if row.value is None else row.value.batch
            if batch is not last or len(late) >= 2 * size:  # do not hold back a long run of bad files
                yield from late
                late, last = [], batch
            late.append(row)
        yield from late


class _Runner:
    """Run batches of inputs through the network."""

    def __init__(self, network: Runnable, inputs: Inputs, rule: Preprocessing, exact: bool, views: Views) -> None:
        self._network, self._inputs, self._rule, self._exact, self._views = network, inputs, rule, exact, views
        self._device, self._dtype = place_of(network)
        self._most = VIEWS[views]  # views of one picture per forward pass; halved when memory runs out
        self._side = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._before: _Batch | None = None

    def run(self, inputs: list[Input]) -> list[_Place | Exception]:
        if self._side is None:
            batch = _Batch(self._logits(self._inputs.brought(inputs)).cpu())
        else:
            # Kernels run asynchronously: a batch is computed while the next one is decoded, copied and resized.
            with torch.cuda.device(self._device), torch.cuda.stream(self._side):
                pixels = self._inputs.brought(inputs)
            if self._before is not None:
                self._before.fetch()
            with torch.cuda.device(self._device):
                current = torch.cuda.current_stream()
                current.wait_stream(self._side)
                pixels.record_stream(current)  # its memory is not reused before it has been read
                batch = self._before = _Batch(self._logits(pixels))
        numbers = count()
        return [each.error or _Place(batch, next(numbers), each.seen) for each in inputs]

    def _logits(self, pixels: Tensor) -> Tensor:
        """Map pixels from `Inputs.brought` to logits (N, classes) or (N, views, classes), float32, on one device."""
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
    """Return the device and dtype that a network expects."""
    if not isinstance(network, nn.Module):
        return torch.device("cpu"), torch.float32
    some = next(network.parameters())
    return some.device, some.dtype


def batch_for(network: Runnable) -> int:
    """Return the batch size of "auto": 16 on the CPU; on CUDA as many as fit in half of the free memory, 16 to 256."""
    device, dtype = place_of(network)
    if device.type != "cuda" or not isinstance(network, Network):
        return BATCH
    free, _ = torch.cuda.mem_get_info(device)
    height, width = network.size
    graph = features_graph(network) if network.head is None else map_graph(network)
    one = peak_bytes(graph, (1, height, width), dtype, height)
    return max(BATCH, min(MOST_BATCH, free // 2 // max(1, one)))


def card_of(network: Runnable) -> Card:
    """Return the card of a network or engine; ValueError if it has none or no head, or is in training mode."""
    card = ready_card(network)
    inner = unwrapped(network) if isinstance(network, nn.Module) else None
    if isinstance(inner, Network) and inner.head is None:
        raise ValueError(NO_HEAD)
    return card


def mappable(network: Mappable) -> Mappable:
    """Return the network, unwrapped, or engine to compute maps with; ValueError for other modules."""
    return as_network(network) if isinstance(network, nn.Module) else network


def ready_card(network: Runnable) -> Card:
    """Return the card of a network or engine, headless or not; ValueError if it has none or is in training mode."""
    inner = unwrapped(network) if isinstance(network, nn.Module) else network
    card: Card | None = getattr(inner, "card", None)
    if card is None:
        raise ValueError(
            "the network has no card, so its preprocessing is unknown; load it with convnets_torch.load, or convert"
            " your own classifier with convnets_torch.densify(module, size, preprocessing=..., classes=...)"
        )
    if isinstance(inner, nn.Module):
        check_eval_mode(inner)
    return card

"""Run pictures through a network in order: prefetch in threads, batch, and return an error row for each bad file."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
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
from typing_extensions import Unpack

from convnets_torch.card import Card
from convnets_torch.fcn.graph import features_graph, map_graph
from convnets_torch.fcn.memory import peak_bytes
from convnets_torch.files import open_file
from convnets_torch.images.decoding import (
    AS_IS,
    DecodedPicture,
    JpegFile,
    Picture,
    Reading,
    ReadingKeywords,
    decode_file,
    decode_unless_jpeg,
    is_tensor,
    stored_pixels,
)
from convnets_torch.images.levels import check_levels
from convnets_torch.images.preprocessing import (
    CENTER,
    CORNERS,
    Pair,
    Pixels,
    Position,
    Preprocessing,
    array_of,
    crop_each,
    crop_image,
    cropped_box,
    in_mode,
    least_size,
)
from convnets_torch.images.remote import RemotePicture, TransportError
from convnets_torch.images.resizing import Box, Resizer, grey_of, normalized, reach, turned
from convnets_torch.images.rows import goes_down_first
from convnets_torch.inference.batching import batches_with_retry, is_out_of_memory
from convnets_torch.inference.torchcodec import batch_decoder, jpeg_decoder
from convnets_torch.networks import Network
from convnets_torch.networks.network import NO_HEAD, as_network, check_eval_mode
from convnets_torch.networks.tracing import unwrapped
from convnets_torch.options import FormerAttribute, checked, renamed, shows
from convnets_torch.text import check_choice

if TYPE_CHECKING:
    from convnets_torch.inference.engines import Engine

THREADS = min(16, os.cpu_count() or 1)  # decoding threads; Pillow releases the GIL
UNKNOWN_PIXELS = 12_000_000  # assumed for an open file, whose header has not been read yet

Item = TypeVar("Item")
Done = TypeVar("Done")


def prefetch(
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

    >>> list(prefetch([3, 1, 2], lambda number: number**2, most=2))
    [(3, 9), (1, 1), (2, 4)]
    """
    executor = ThreadPoolExecutor(threads, "decode")
    rest = iter(items)
    running: deque[tuple[Item, int, Future[Done]]] = deque()
    following: list[tuple[Item, int]] = []  # the next item, if it was taken but not submitted
    taken = 0
    try:
        while True:
            while len(running) < most:
                if not following:
                    following.extend((item, size(item)) for item in islice(rest, 1))
                if not following or (running and taken + following[0][1] > room):
                    break
                item, needed = following.pop()
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
    if isinstance(image, RemotePicture):
        return image.pixels or UNKNOWN_PIXELS
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
        notes: notes for the user, for example that only the first of several frames was read.
    """

    picture: Any
    value: T | None
    error: Exception | None = None
    notes: tuple[str, ...] = ()
    remarks = FormerAttribute("notes")


class Prepared(Protocol):
    """The output of `prepare` in `run_pictures`."""

    @property
    def notes(self) -> tuple[str, ...]: ...


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
        return Result(self.picture, self.value, self.error, () if self.item is None else self.item.notes)


def without_frames(error: Exception) -> Exception:
    """Return the error without its traceback, whose frames would keep pixels and activations alive."""
    error.__context__ = None
    return error.with_traceback(None)


def run_pictures(
    images: Iterable[Any],
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
        images: consumed lazily.
        prepare: runs in a thread; an OSError, ValueError or ImportError becomes the picture's error, except a
            `TransportError`, which ends the run.
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
    ...     return SimpleNamespace(root=number**0.5 if number >= 0 else int("none"), notes=())
    >>> rows = run_pictures([4, -1, 9], prepare, lambda items: [item.root for item in items], batch=2)
    >>> [(row.picture, row.value, type(row.error).__name__) for row in rows]
    [(4, 2.0, 'NoneType'), (-1, None, 'ValueError'), (9, 3.0, 'NoneType')]
    """
    queue: deque[_Entry[Ready, T]] = deque()
    counts: Counter[Hashable] = Counter()  # pending entries per group
    fitting: dict[Hashable, int] = {}  # largest batch that fitted, for groups that ran out of memory
    longest = waiting or 2 * batch

    def prepared(picture: Any) -> _Entry[Ready, T]:
        try:
            item = prepare(picture)
            return _Entry(picture, item, group(item), waits=True)
        except TransportError:
            raise
        except (OSError, ValueError, ImportError) as error:
            return _Entry(picture, error=without_frames(error))

    def limit(key: Hashable) -> int:
        return min(batch, fitting.get(key, batch), batch if room is None else room(key))

    def may_wait(key: Hashable) -> bool:
        if counts[key] >= limit(key) or len(queue) >= longest:
            return False
        return held is None or sum(held(each.item) for each in queue if each.item is not None) < ROOM

    def run_group(key: Hashable) -> None:
        entries = list(islice((each for each in queue if each.waits and each.group == key), limit(key)))
        items = [each.item for each in entries if each.item is not None]
        parts = list(
            batches_with_retry(lambda numbers: run(items[numbers.start : numbers.stop]), len(items), len(items))
        )
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

    most = most or max(PREFETCHED * batch, threads)
    with contextlib.closing(prefetch(images, prepared, most=most, threads=threads, size=size, room=ROOM)) as entries:
        failure: list[TransportError] = []
        try:
            for _, entry in entries:
                queue.append(entry)
                counts[entry.group] += entry.waits
                del entry
                yield from finished(more=True)
        except TransportError as error:  # the pictures before it have their rows
            failure.append(error)
        yield from finished(more=False)
        if failure:
            raise failure.pop()


def each_row(rows: Generator[Item, None, None], make: Callable[[Item], Done]) -> Generator[Done, None, None]:
    """Yield `make(row)` for each row; closing the generator closes `rows`."""
    with contextlib.closing(rows):
        yield from map(make, rows)


MOST_SENT = 25  # pixels copied to the device for resizing, per pixel of the resized picture
MOST_TOGETHER = 64_000_000  # pixels decoded or resized at once on the device: 0.2 GB, and 0.8 GB as floats


class Crop(NamedTuple):
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
        pixels: (h, w, C) uint8, of the network's own size if `crop` is None; (crops, h, w, C) with positions; None on
            error or with `jpeg`.
        crop: the region of `pixels` to resize to that size.
        jpeg: a file to decode on the device.
        error: why neither the device nor Pillow could decode the file.
        notes: notes on the file.
        extra: the result of `on_decode`.
    """

    pixels: Pixels | None = None
    crop: Crop | None = None
    jpeg: JpegFile | None = None
    error: Exception | None = None
    notes: tuple[str, ...] = ()
    extra: Any = None


class Inputs:
    """Turn pictures into network input.

    Args:
        rule: the card's preprocessing.
        device: the network's device.
        reading: how files are decoded; `rule` decides on EXIF, `exact` on the scale, `torchcodec` on the decoder.
        on_device: resize on the device where `rule` allows it.
        exact: decode every file at full scale.
        torchcodec: decode JPEG files with torchcodec: on the device with `on_device`, else in threads.
        on_decode: called in a thread with each decoded picture; files are then never decoded on the device.
        positions: take crops at these positions instead of the centre crop, all in threads; adds an axis in front of
            each picture's pixels.

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
        on_decode: Callable[[Image.Image], object] | None = None,
        positions: tuple[Position, ...] | None = None,
    ) -> None:
        check_levels(reading.depth, reading.background)
        least = least_size(rule)
        self._rule, self._device, self._positions = rule, device, positions
        self._on_device = on_device and least is not None and positions is None and rule.channels != "rgba"
        self._on_decode = on_decode
        jpeg_on_device = torchcodec and self._on_device and on_decode is None
        jpeg_in_threads = torchcodec and not jpeg_on_device
        self._reading = reading.for_rule(rule)._replace(
            least=None if exact or jpeg_in_threads else least,
            jpeg=jpeg_decoder() if jpeg_in_threads else None,
            keep_jpeg=jpeg_on_device,
        )
        self._decode_batch = batch_decoder(device) if jpeg_on_device else None
        self._resize = Resizer(rule.resized, rule.interpolation)
        self._left, self._top = (
            (side - kept) // 2 for side, kept in zip(rule.resized[::-1], rule.shape[::-1], strict=True)
        )

    def decode(self, image: Picture) -> Input:
        """Decode a picture in a worker thread, and resize it unless the device does.

        Raises:
            OSError, ValueError: the picture cannot be used.
        """
        found = decode_unless_jpeg(image, self._reading)
        return Input(jpeg=found, notes=found.notes) if isinstance(found, JpegFile) else self._resized(found)

    def _resized(self, found: DecodedPicture) -> Input:
        image = found.image
        extra = None if self._on_decode is None else self._on_decode(image)
        if self._on_device:
            needed, crop = self._needed((image.height, image.width), found.part)
            if (needed[2] - needed[0]) * (needed[3] - needed[1]) <= MOST_SENT * prod(self._rule.shape):
                part = image if needed == (0, 0, *image.size) else image.crop(needed)
                return Input(array_of(in_mode(part, self._rule)), crop, notes=found.notes, extra=extra)
        if self._positions is None:
            pixels = crop_image(image, self._rule, found.part)
        else:
            pixels = np.stack(list(crop_each(image, self._rule, self._positions, found.part)))
        return Input(pixels, notes=found.notes, extra=extra)

    def _needed(self, size: Pair, part: tuple[float, float] | None = None) -> tuple[tuple[int, int, int, int], Crop]:
        """Return the needed pixels of an image, of which the picture covers `part`, and the region to resize."""
        rule, whole = self._rule, size if part is None else part[::-1]
        box = (0, 0, *whole[::-1]) if rule.resize_rule == "stretch" else cropped_box(whole, rule)
        x, y, *_ = needed = reach(box, size, rule.resized, rule.interpolation)
        left, top, right, bottom = map(float, np.asarray(box, np.float32))  # as Pillow takes a box
        return needed, Crop((left, top, right, bottom), (x, y), goes_down_first(size, rule.resized))

    def images(self, inputs: Sequence[Input], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return network input (N, C, height, width) on the device, for the inputs without an error, in order."""
        return normalized(self.to_device(inputs), self._rule).to(dtype)

    def to_device(self, inputs: Sequence[Input]) -> Tensor:
        """Copy, decode and resize inputs on the device; an input that cannot be decoded gets an error.

        Returns:
            (N, height, width, C) uint8 of the network's own size, on its device, for the inputs without an error, in
            order; with positions (N, crops, height, width, C). All work runs in the current stream.
        """
        crops = () if self._positions is None else (len(self._positions),)
        shape = (len(inputs), *crops, *self._rule.shape, self._rule.channel_count)
        made = torch.empty(shape, dtype=torch.uint8, device=self._device)
        files = {number: each.jpeg for number, each in enumerate(inputs) if each.jpeg is not None}
        for refused in self._decode_on_device(files, made):
            self._decode_with_pillow(inputs[refused], files[refused])
        alike: dict[tuple[tuple[int, ...], Crop | None], list[int]] = {}
        for number, each in enumerate(inputs):
            if each.pixels is not None:
                alike.setdefault((each.pixels.shape, each.crop), []).append(number)
        for (shape, crop), numbers in alike.items():
            most = max(1, MOST_TOGETHER // prod(shape[:-1]))
            for _ in batches_with_retry(partial(self._send, inputs, numbers, crop, made), len(numbers), most):
                pass
        good = [number for number, each in enumerate(inputs) if each.error is None]
        return made if len(good) == len(inputs) else made[good]

    def _send(self, inputs: Sequence[Input], numbers: list[int], crop: Crop | None, made: Tensor, items: range) -> None:
        """Copy pictures of one size to the device, and resize them there if `crop` is given."""
        some = numbers[items.start : items.stop]
        pixels = torch.from_numpy(np.stack([each for number in some if (each := inputs[number].pixels) is not None]))
        if self._device.type == "cuda":
            pixels = pixels.pin_memory()
        sent = pixels.to(self._device, non_blocking=True)
        made[_index(some)] = sent if crop is None else self._cropped(sent.permute(0, 3, 1, 2), crop)

    def _cropped(self, images: Tensor, crop: Crop) -> Tensor:
        """Resize and crop images (N, C, H, W) to the network's own size, (N, height, width, C)."""
        resized, (height, width) = self._resize(images, *crop), self._rule.shape
        return resized[:, self._top : self._top + height, self._left : self._left + width]

    def _decode_on_device(self, files: dict[int, JpegFile], made: Tensor) -> Iterator[int]:
        """Decode and resize files on the device; yield the indices of refused files."""
        if self._decode_batch is None or not files:
            return
        numbers, decode_batch = list(files), self._decode_batch

        def run(items: range) -> list[int]:
            some = numbers[items.start : items.stop]
            refused = []
            alike: dict[tuple[torch.Size, Crop], list[tuple[int, Tensor]]] = {}
            for number, image in zip(some, decode_batch([files[number].data for number in some]), strict=True):
                if image is None:
                    refused.append(number)
                    continue
                image = turned(image, files[number].turn)
                (left, top, right, bottom), crop = self._needed((image.shape[1], image.shape[2]))
                needed = image[:, top:bottom, left:right]
                needed = grey_of(needed) if self._rule.channels == "grey" else needed
                alike.setdefault((needed.shape, crop), []).append((number, needed))
            for (_, crop), found in alike.items():
                stack = torch.stack([needed for _, needed in found])
                made[_index([number for number, _ in found])] = self._cropped(stack, crop)
            return refused

        most = max(1, MOST_TOGETHER // max(each.pixels for each in files.values()))
        yield from chain.from_iterable(batches_with_retry(run, len(numbers), most))

    def _decode_with_pillow(self, each: Input, file: JpegFile) -> None:
        """Decode with Pillow a file that the device refused."""
        each.jpeg = None
        try:
            found = self._resized(decode_file(io.BytesIO(file.data), file.name, self._reading))
            each.pixels, each.crop, each.notes = found.pixels, found.crop, found.notes
        except (OSError, ValueError) as error:
            each.error, each.notes = without_frames(error), ()


def _index(numbers: list[int]) -> slice | list[int]:
    """Return consecutive indices as a slice, which avoids copying them to the device."""
    whole = numbers[-1] - numbers[0] + 1 == len(numbers)
    return slice(numbers[0], numbers[-1] + 1) if whole else numbers


Decoder = Literal["pillow", "torchcodec"]
Resizing = Literal["auto", "pillow", "device"]
Views = Literal["center", "flip", "ten"]
Mappable: TypeAlias = "Network | Engine"  # can compute score maps

BATCH = 16  # "auto" batch size on the CPU, and the minimum on other devices
MOST_BATCH = 256  # maximum of "auto"
POSITIONS: dict[Views, tuple[Position, ...] | None] = {"center": None, "flip": None, "ten": (*CORNERS, CENTER)}
VIEWS: dict[Views, int] = {"center": 1, "flip": 2, "ten": 10}  # views per picture
PREFETCHED = 3  # batches decoded ahead of the network


class Runnable(Protocol):
    """A callable from images to numbers: a network, an engine, or a module with the network's card."""

    card: Card | None

    def __call__(self, images: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Predicted(Result[Tensor]):
    """The logits of one picture.

    Attributes:
        logits: (classes,) float32 on the CPU, with several views (views, classes); None on error.
        extra: the result of `on_decode`; None on error or without it.
        picture, error, notes: as in `Result`.
    """

    extra: Any = None

    @property
    def logits(self) -> Tensor | None:
        """Alias of `value`."""
        return self.value

    @property
    def seen(self) -> Any:
        """Former name of `extra`."""
        warnings.warn("`seen` is now `extra`; the old name goes with the next release", DeprecationWarning, 2)
        return self.extra


@renamed(pictures="images", look="on_decode")
@shows(ReadingKeywords, Reading)
def predict(
    network: Runnable,
    images: Picture | Iterable[Picture],
    *,
    batch: int | Literal["auto"] = "auto",
    workers: int | None = None,
    exact: bool = False,
    decoder: Decoder = "pillow",
    resize: Resizing = "auto",
    on_decode: Callable[[Image.Image], object] | None = None,
    views: Views = "center",
    **reading: Unpack[ReadingKeywords],
) -> Generator[Predicted, None, None]:
    """Compute the logits of any number of pictures; a picture that cannot be used does not stop the others.

    Threads decode, resize and crop pictures ahead of time, as the network's card says. Pixels are copied to the device
    as 8-bit values and normalised there. On CUDA they are also resized there, while the previous batch is being
    computed. About three batches of inputs and one decoded picture per thread are in memory at once, so `images` may be
    endless.

    Args:
        network: in eval mode and with its card, as `load` returns it; `load(path, device="auto", precision="auto")`
            gives the fastest one. Or an `engine` of such a network; or an `Embedder`, whose vectors then take the place
            of the logits.
        images: whatever `read_picture` takes, or an iterable of such; `find_pictures` lists those of a folder.
        batch: batch size; "auto" uses 16 on the CPU, and on other devices as many as fit in half of the free memory,
            16 to 256. It is halved when memory runs out.
        workers: number of decoding threads; one per core by default, at most 16.
        exact: use exactly the pixels that `classify` uses. Without it, JPEG files are decoded at 1/2, 1/4 or 1/8 scale
            if they are then still at least twice as large as the resized picture: much less work, and inputs that
            differ by a third of a level of 255 on average. This never applies to cards with nearest-pixel interpolation
            or to the presets of convnets-keras. docs/speed.md describes the effect.
        decoder: "pillow" or "torchcodec". torchcodec decodes JPEG files at full scale: on the CPU to the same pixels;
            on CUDA, if pictures are resized there, with nvJPEG and in whole batches, to nearly the same pixels. Pillow
            reads all other files, and those that torchcodec refuses.
        resize: "pillow" resizes in the threads. "device" resizes on the network's device with Pillow's own weights and
            rounding: on the CPU bit-identical, but slower. Pillow still resizes for cards with nearest-pixel
            interpolation or RGBA, for the presets of convnets-keras, and for pictures that would need more than 25
            pixels copied per input pixel. "auto" is "device" on CUDA without `exact`, else "pillow".
        on_decode: called in the decoding thread with each picture, upright and RGB (RGBA for a network that reads it),
            before it is cropped; JPEG files may be at a fraction of their scale. Its result is `extra` of the row.
            Files are then decoded in threads, not on the device.
        views: crops of a picture that the network sees: "center", the crop that the card says; "flip", that crop and
            its mirror image; "ten", crops of the resized picture's corners (top left, top right, bottom left, bottom
            right) and of its centre, then the mirror images of these five. `batch` counts views, and pictures are never
            split across batches. The crops of "ten" are resized in threads.
        **reading: as for `read_picture`.

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
    how = Reading(**checked(reading, ReadingKeywords))
    return predicted(network, images, how, batch, workers, exact, decoder, resize, on_decode, views)


def predicted(
    network: Runnable,
    images: Picture | Iterable[Picture],
    reading: Reading,
    batch: int | Literal["auto"] = "auto",
    workers: int | None = None,
    exact: bool = False,
    decoder: Decoder = "pillow",
    resize: Resizing = "auto",
    on_decode: Callable[[Image.Image], object] | None = None,
    views: Views = "center",
    fill: bool = False,
) -> Generator[Predicted, None, None]:
    """Run `predict` with its reading options in one object; the card decides on EXIF.

    With `fill`, batches that are not full are filled up with copies, so that the numbers of a picture do not depend, in
    their last bits, on how many others are in its batch.
    """
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
        on_decode=on_decode,
        positions=POSITIONS[views],
    )
    size = together(batch_for(network) if batch == "auto" else batch, views)
    runner = _Runner(network, inputs, rule, exact, views, size if fill and views == "center" else 0)
    rows = run_pictures(each_of(images), inputs.decode, runner.run, batch=size, threads=workers or THREADS)
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


class _LogitsRow(NamedTuple):
    """A picture's index in a batch of logits, and the result of `on_decode`."""

    batch: _Batch
    number: int
    extra: object


def _predicted(row: Result[_LogitsRow]) -> Predicted:
    if row.value is None:
        return Predicted(row.picture, None, row.error, row.notes)
    logits = row.value.batch.fetch()[row.value.number].clone()  # a view would keep the whole batch in memory
    return Predicted(row.picture, logits, None, row.notes, row.value.extra)


def _a_batch_late(
    rows: Generator[Result[_LogitsRow], None, None], size: int
) -> Generator[Result[_LogitsRow], None, None]:
    """Yield the rows of a batch once the next batch is running, so that the device does not wait for the caller."""
    late: list[Result[_LogitsRow]] = []
    last: _Batch | None = None
    with contextlib.closing(rows):
        try:
            for row in rows:
                batch = last if row.value is None else row.value.batch
                if batch is not last or len(late) >= 2 * size:  # do not hold back a long run of bad files
                    yield from late
                    late, last = [], batch
                late.append(row)
        except TransportError:
            yield from late
            raise
        yield from late


class _Runner:
    """Run batches of inputs through the network."""

    def __init__(
        self, network: Runnable, inputs: Inputs, rule: Preprocessing, exact: bool, views: Views, full: int = 0
    ) -> None:
        self._full = full  # pictures of every forward pass, filled up with copies; 0 takes as many as there are
        self._network, self._inputs, self._rule, self._exact, self._views = network, inputs, rule, exact, views
        self._device, self._dtype = place_of(network)
        self._most = VIEWS[views]  # views of one picture per forward pass; halved when memory runs out
        self._side = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._before: _Batch | None = None

    def run(self, inputs: list[Input]) -> list[_LogitsRow | Exception]:
        if self._side is None:
            batch = _Batch(self._logits(self._inputs.to_device(inputs)).cpu())
        else:
            # Kernels run asynchronously: a batch is computed while the next one is decoded, copied and resized.
            with torch.cuda.device(self._device), torch.cuda.stream(self._side):
                pixels = self._inputs.to_device(inputs)
            if self._before is not None:
                self._before.fetch()
            with torch.cuda.device(self._device):
                current = torch.cuda.current_stream()
                current.wait_stream(self._side)
                pixels.record_stream(current)  # its memory is not reused before it has been read
                batch = self._before = _Batch(self._logits(pixels))
        numbers = count()
        return [each.error or _LogitsRow(batch, next(numbers), each.extra) for each in inputs]

    def _logits(self, pixels: Tensor) -> Tensor:
        """Map pixels from `Inputs.to_device` to logits (N, classes) or (N, views, classes), float32, on one device."""
        pictures, views = len(pixels), VIEWS[self._views]
        if not pictures:
            return torch.empty(0)
        if views == 1:
            return self._filled(pixels) if pictures < self._full else self._forward(pixels)
        crops = pixels.view(pictures, -1, *pixels.shape[-3:])  # (N, crops, h, w, C)
        pixels = torch.cat([crops, crops.flip(3)], dim=1).flatten(0, 1)
        if pictures > 1:
            return self._forward(pixels).view(pictures, views, -1)
        parts = list(batches_with_retry(lambda some: self._forward(pixels[some.start : some.stop]), views, self._most))
        self._most = max(map(len, parts))
        return torch.cat(parts)[None]

    def _filled(self, pixels: Tensor) -> Tensor:
        copies = pixels[:1].expand(self._full - len(pixels), *pixels.shape[1:])
        try:
            return self._forward(torch.cat([pixels, copies]))[: len(pixels)]
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        self._full = 0  # smaller batches from here on
        return self._forward(pixels)

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

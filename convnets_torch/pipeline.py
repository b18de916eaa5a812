"""From files to logits, for any number of pictures: decoding in threads, the rest on the network's device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, get_args

import torch
from PIL import Image
from torch import Tensor, nn

from convnets_torch.ahead import THREADS, ahead, each_of
from convnets_torch.card import Card
from convnets_torch.device_pixels import normalized
from convnets_torch.fitting import in_batches
from convnets_torch.images import Picture
from convnets_torch.inputs import Input, Inputs
from convnets_torch.levels import Background, Depth
from convnets_torch.networks import Network
from convnets_torch.networks.budget import peak_bytes
from convnets_torch.networks.grids import features_grid, grid_of
from convnets_torch.networks.network import NO_HEAD, as_network
from convnets_torch.networks.replicas import unwrapped
from convnets_torch.preprocessing import CENTER, CORNERS, Place, Preprocessing

if TYPE_CHECKING:
    from convnets_torch.engines import Engine

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
class Predicted:
    """What became of one picture.

    Attributes:
        picture: as it was given.
        logits: (classes,) float32 on the CPU, with several views (views, classes); None where there is an error.
        error: why the picture could not be used (OSError, ValueError), else None.
        remarks: sentences on what its owner may not expect, such as that the first of several frames was read.
        seen: what `look` returned for it; None where there is none, or an error.
    """

    picture: Picture
    logits: Tensor | None
    error: Exception | None = None
    remarks: tuple[str, ...] = ()
    seen: Any = None


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
    rule = card_of(network).preprocessing
    if getattr(network, "mapped", None) is not None:
        raise ValueError("the engine gives score maps; to classify, make one without heatmap")
    if batch != "auto" and (type(batch) is not int or batch < 1):
        raise ValueError(f"a batch of {batch!r} is none; give 1 or more, or 'auto'")
    if workers is not None and workers < 1:
        raise ValueError(f"{workers} workers decode nothing; give 1 or more")
    if decoder not in get_args(Decoder):
        raise ValueError(f"unknown decoder {decoder!r}; known: {', '.join(get_args(Decoder))}")
    if resize not in get_args(Resizing):
        raise ValueError(f"unknown resize {resize!r}; known: {', '.join(get_args(Resizing))}")
    if exact and resize == "device":
        raise ValueError("exact has Pillow resize, so that no device rounds otherwise; leave out resize='device'")
    if views not in VIEWS:
        raise ValueError(f"unknown views {views!r}; known: {', '.join(VIEWS)}")
    if views == "ten" and resize == "device":
        raise ValueError("the ten views are resized by Pillow, in threads; leave out resize='device'")
    device, _ = _place(network)
    inputs = Inputs(
        rule,
        device,
        on_device=resize == "device" or (resize == "auto" and device.type == "cuda" and not exact),
        exact=exact,
        torchcodec=decoder == "torchcodec",
        max_pixels=max_pixels,
        allow_truncated=allow_truncated,
        depth=depth,
        background=background,
        look=look,
        places=PLACES[views],
    )
    images = batch_for(network) if batch == "auto" else batch
    size = together(images, views)
    threads = workers or THREADS
    entries = ahead(each_of(pictures), inputs.prepared, most=max(BATCHES_AHEAD * size, threads), threads=threads)
    return _predicted(_Runner(network, inputs, rule, exact, images, views), entries, size)


Group = list[tuple[Picture, Input]]


def together(batch: int, views: Views) -> int:
    """How many pictures go through the network together: as many as have all their views in a batch, or one."""
    return max(1, batch // VIEWS[views])


def is_whole(members: int, good: int, size: int) -> bool:
    """Whether pictures that follow each other go through the network now: `good` of the `members` could be read."""
    return good == size or members == 2 * size  # of bad files alone, so many wait at most


def _predicted(
    runner: _Runner, entries: Generator[tuple[Picture, Input], None, None], size: int
) -> Generator[Predicted, None, None]:
    with contextlib.closing(entries):
        for group, logits in runner.run(_groups(entries, size)):
            rows = iter(logits)
            for picture, entry in group:
                logits_of_it = None if entry.error else next(rows).clone()
                yield Predicted(picture, logits_of_it, entry.error, entry.remarks, entry.seen)


def _groups(entries: Iterable[tuple[Picture, Input]], size: int) -> Iterator[Group]:
    """As many as go through the network together, and those between them that could not be read."""
    group: Group = []
    good = 0
    for picture, entry in entries:
        group.append((picture, entry))
        good += entry.error is None
        if is_whole(len(group), good, size):
            yield group
            group, good = [], 0
    if group:
        yield group


class _Runner:
    """Batches of pixels in, logits out."""

    def __init__(
        self, network: Runnable, inputs: Inputs, rule: Preprocessing, exact: bool, size: int, views: Views
    ) -> None:
        self._network, self._inputs, self._rule, self._exact, self._views = network, inputs, rule, exact, views
        self._size = max(size, VIEWS[views])  # of the batches; halved where memory runs out
        self._device, self._dtype = _place(network)

    def run(self, groups: Iterable[Group]) -> Iterator[tuple[Group, Tensor]]:
        """Each group with its logits (N, classes), float32 on the CPU."""
        if self._device.type != "cuda":
            for group in groups:
                group, pixels = self._brought(group)
                yield group, self._logits(pixels).cpu()
            return
        # Kernels are started, not waited for: a group is computed while the next one is decoded, copied and resized.
        side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        before: tuple[Group, Tensor] | None = None
        for group in groups:
            with torch.cuda.device(self._device), torch.cuda.stream(side):
                group, pixels = self._brought(group)
            if before is not None:
                yield before[0], before[1].cpu()
            with torch.cuda.device(self._device):
                current = torch.cuda.current_stream()
                current.wait_stream(side)
                pixels.record_stream(current)  # so that its memory is not given away before it has been read
                before = group, self._logits(pixels)
            del pixels
        if before is not None:
            yield before[0], before[1].cpu()

    def _brought(self, group: Group) -> tuple[Group, Tensor]:
        """A group with what became of it on the device, and the pixels there."""
        inputs, pixels = self._inputs.brought([entry for _, entry in group])
        return [(picture, entry) for (picture, _), entry in zip(group, inputs, strict=True)], pixels

    def _logits(self, pixels: Tensor) -> Tensor:
        """Pixels as `Inputs.brought` gives them -> (N, classes) or (N, views, classes) float32, all on one device."""
        count, views = len(pixels), VIEWS[self._views]
        if not count:
            return torch.empty(0)
        if views > 1:
            seen = pixels.view(count, -1, *pixels.shape[-3:])  # (N, places, h, w, 3)
            pixels = torch.cat([seen, seen.flip(3)], dim=1).flatten(0, 1)
        parts = in_batches(lambda items: self._forward(pixels[items.start : items.stop]), len(pixels), self._size)
        done = list(parts)
        self._size = min(self._size, max(map(len, done)) if len(done) > 1 else self._size)
        logits = torch.cat(done)
        return logits if views == 1 else logits.view(count, views, -1)

    def _forward(self, pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            images = normalized(pixels, self._rule).to(self._dtype)
            layout = torch.contiguous_format if self._exact else torch.channels_last
            return self._network(images.contiguous(memory_format=layout)).float()


def _place(network: Runnable) -> tuple[torch.device, torch.dtype]:
    """Where images have to be, and as what kind of number."""
    if not isinstance(network, nn.Module):
        return torch.device("cpu"), torch.float32
    some = next(network.parameters())
    return some.device, some.dtype


def batch_for(network: Runnable) -> int:
    """How many pictures "auto" takes: 16 on the CPU; on CUDA what half of the free memory has room for, 16 to 256."""
    device, dtype = _place(network)
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
    if isinstance(inner, nn.Module) and any(part.training for part in inner.modules() if unwrapped(part) is part):
        raise ValueError("the network is in training mode, where dropout makes answers random; call network.eval()")
    return card

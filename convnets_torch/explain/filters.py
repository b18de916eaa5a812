"""Filter patterns: pictures that excite a channel, the first layer's kernels, and sheets of both.

The pictures of a batch do not know of each other: the gradient of the sum of their objectives with respect to one
picture is that of its own. All start from the same noise and are moved alike, so a picture depends on the seed and on
its own objective, not on who is beside it (but for rounding, where a library computes batches differently).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from convnets_torch.explain.activations import BROKEN, run_to
from convnets_torch.explain.layer_names import LayerLike, find_layer
from convnets_torch.files import Output, Writer
from convnets_torch.images.preprocessing import Pixels, Preprocessing, general
from convnets_torch.images.resizing import normalized
from convnets_torch.inference.batching import in_batches
from convnets_torch.inference.classification import card_of
from convnets_torch.networks import Network
from convnets_torch.networks.network import as_network, check_eval_mode
from convnets_torch.networks.tracing import unwrapped
from convnets_torch.npz import write_npz
from convnets_torch.text import check_choice
from convnets_torch.visualization import overlays
from convnets_torch.wordnet.targets import Target, Targets, checked_targets


def rule_of(network: nn.Module) -> Preprocessing:
    """The preprocessing of a network's card; of one without card, that of torchvision's weights.

    That is RGB, 0 to 1, with ImageNet's mean and standard deviation. Give the network a card where it is another.
    """
    if isinstance(network, Network) and network.card is not None:
        return network.card.preprocessing
    return general("torchvision", 224)


@dataclass(frozen=True, eq=False)
class FirstKernels:
    """What the first layer looks for, in colours.

    Attributes:
        layer: name of the module.
        weights: (K, h, w, 3) float32, RGB: what one more of 255 in a pixel adds to the channel.
        pictures: (K, h, w, 3) uint8, RGB: 128 is a weight of 0; 1 and 255 are those of the kernel's `peaks`.
        peaks: (K,) the largest absolute weight of each kernel.
    """

    layer: str
    weights: NDArray[np.float32]
    pictures: NDArray[np.uint8]
    peaks: NDArray[np.float32]

    def save(self, path: Output) -> None:
        """Write the kernels as a sheet (`.png`, `.jpg`, `.webp`) or as arrays (`.npz`), atomically.

        Raises:
            ValueError: another ending.
            OSError: `path` cannot be written.
        """
        WRITER.write(path, self)

    def draw(self) -> Image.Image:
        """The kernels side by side, with their numbers and largest weights."""
        labels = [f"{number}\nmost {short(peak)}" for number, peak in enumerate(self.peaks)]
        return _sheet(self.pictures, labels, f"{self.layer}: kernels, grey is 0, each up to its largest weight")

    def arrays(self) -> dict[str, Any]:
        """What an `.npz` holds."""
        return {name: getattr(self, name) for name in ("pictures", "weights", "peaks", "layer")}


def first_kernels(network: nn.Module) -> FirstKernels:
    """The kernels of the first convolution, in RGB whatever the order of the network's colours is.

    The weights are those of pixels 0 to 255: multiplied with the scale of the card's preprocessing, divided by its
    standard deviation, and turned to RGB; without a card, as `rule_of` says. Each kernel is then stretched by itself:
    zero is grey, its largest absolute weight black or full.

    Args:
        network: any module whose first convolution reads three channels.

    Raises:
        ValueError: there is no such convolution, or its weights are not finite.

    >>> from convnets_torch import load
    >>> kernels = first_kernels(load("alexnet.safetensors"))
    >>> kernels.layer, kernels.pictures.shape
    ('features.conv_1', (12, 11, 11, 3))
    """
    network = unwrapped(network)
    found = next(((name, each) for name, each in network.named_modules() if isinstance(each, nn.Conv2d)), None)
    if found is None:
        raise ValueError(f"{type(network).__name__} has no convolution whose kernels could be drawn")
    layer, module = found
    if module.weight.shape[1] != 3:
        raise ValueError(f"{layer}, the first convolution, reads {module.weight.shape[1]} channels, which are no RGB")
    rule = rule_of(network)
    kernels = module.weight.detach().float().cpu().numpy().transpose(0, 2, 3, 1)
    weights = kernels * np.float32(rule.scale) / np.asarray(rule.std, np.float32)
    if rule.channels == "bgr":
        weights = weights[..., ::-1]
    weights = np.ascontiguousarray(weights)
    if not np.isfinite(weights).all():
        raise ValueError(f"weights of {layer} are NaN or infinite: the file is broken")
    peaks = np.abs(weights).max(axis=(1, 2, 3))
    shares = weights / np.where(peaks > 0, peaks, 1)[:, None, None, None]
    return FirstKernels(layer, weights, np.rint(128 + 127 * shares).astype(np.uint8), peaks)


Size = tuple[int, int]  # height, width in pixels
Measure = Callable[[Tensor], Tensor]  # pixels (N, 3, H, W), RGB, 0 to 255 -> what each picture is to raise (N,)

GREY, NOISE = 128.0, 20.0  # where the plain form starts: grey, and up to so many more
PIXELS = 1.0  # root mean square of what one step of the plain form adds to the pixels

START = 0.01  # standard deviation of the first coefficients
RATE = 0.05  # of Adam
CONTRAST = 0.35  # of the picture before the sigmoid, for coefficients of 1
JITTER = 1 / 16  # of the side that a picture is moved at most, up or down, left or right
ZOOM = 0.1  # it becomes larger or smaller by at most so much
TURN = math.radians(10)  # it is turned either way by at most so much

# A square root of the covariance of red, green and blue (0 to 1) in seven photographs of scikit-image and scikit-learn:
# columns are the principal axes (light, yellow to blue, magenta to green). `scripts/color_correlation.py` prints it.
COLORS = ((0.2379, 0.1059, 0.0097), (0.2266, -0.0281, -0.0312), (0.2175, -0.0865, 0.0220))


def plain(
    measure: Measure, like: Tensor, size: Size, count: int, steps: int, seed: int, tick: Callable[[], None]
) -> Tensor:
    """From grey noise along the gradient, which is divided by its root mean square before each step.

    Source: Deep Learning with Python, F. Chollet, 2018, section 5.4.2: noise from 128 to 148, the gradient divided by
    its RMS, steps of size 1 on pixels 0 to 255. Departures: the book gives these pixels to the network without its
    preprocessing and adds 1e-5 to the RMS, which swamps small gradients; here a gradient of zero stays one. It lets
    pixels leave 0 to 255 and afterwards sets mean and contrast anew; here they are clipped in each step, so that the
    picture that is shown is the one that the network saw.

    Args:
        measure: what each picture is to raise.
        like: a tensor on the device and of the type that is worked in.
        size: (H, W) in pixels.
        count: how many pictures.
        steps: how many; of none, the noise at the start comes back.
        seed: of the noise.
        tick: called after each step.

    Returns:
        (count, 3, H, W), RGB, 0 to 255.
    """
    noise = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(seed))
    pixels = (GREY + NOISE * noise).to(like).repeat(count, 1, 1, 1)
    for _ in range(steps):
        pixels.requires_grad_(True)
        [gradient] = torch.autograd.grad(measure(pixels).sum(), pixels)
        pixels = (pixels.detach() + PIXELS * _even(gradient)).clamp(0, 255)
        tick()
    return pixels


def fourier(
    measure: Measure, like: Tensor, size: Size, count: int, steps: int, seed: int, tick: Callable[[], None]
) -> Tensor:
    """Adam on Fourier coefficients in decorrelated colours; the network sees the picture moved, turned and zoomed.

    Source: Feature Visualization, C. Olah, A. Mordvintsev, L. Schubert, Distill 2017, "Transformation Robustness" and
    "Preconditioning and Parameterization"; Adam: arXiv:1412.6980, algorithm 1. Departures: one resampling moves, turns
    and zooms at once, mirrored at the borders, and its amounts are spread evenly; all pictures are moved alike. The
    gradient of each picture is divided by its root mean square, so that Adam's epsilon does not swamp small ones.

    Args:
        measure, like, size, count, steps, tick: as for `plain`.
        seed: of the first coefficients, and of the movements.

    Returns:
        (count, 3, H, W), RGB, 0 to 255; not moved.
    """
    chance = torch.Generator().manual_seed(seed)
    start = START * torch.randn(1, 3, size[0], size[1] // 2 + 1, 2, generator=chance)
    coefficients = start.to(like).repeat(count, 1, 1, 1, 1).requires_grad_(True)
    adam = torch.optim.Adam([coefficients], lr=RATE, maximize=True)
    for _ in range(steps):
        moved = _moved(fourier_pixels(coefficients, size), torch.rand(4, generator=chance) * 2 - 1)
        [gradient] = torch.autograd.grad(measure(moved).sum(), [coefficients])
        coefficients.grad = _even(gradient)
        adam.step()
        tick()
    return fourier_pixels(coefficients.detach(), size)


def fourier_pixels(coefficients: Tensor, size: Size) -> Tensor:
    """The pictures that coefficients stand for.

    The coefficients of a real Fourier transform are divided by their frequency (in cycles per pixel, at least one
    cycle over the longer side), which gives all scales the share that they have in photographs; the three planes are
    amounts of the principal colours of photographs; a sigmoid keeps all within bounds.

    Source: Feature Visualization, C. Olah, A. Mordvintsev, L. Schubert, Distill 2017, "Preconditioning and
    Parameterization". The colours are computed anew (`scripts/color_correlation.py`).

    Args:
        coefficients: (N, 3, H, W // 2 + 1, 2).
        size: (H, W) in pixels.

    Returns:
        (N, 3, H, W), RGB, 0 to 255.
    """
    height, width = size
    down, across = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)
    frequency = (down.square() + across.square()).sqrt().clamp(min=1 / max(size)).to(coefficients)
    spectrum = torch.view_as_complex(coefficients) / frequency
    planes = CONTRAST * torch.fft.irfft2(spectrum, s=size, norm="ortho")
    colors = coefficients.new_tensor(COLORS)
    colors = colors / colors.norm(dim=0).max()
    return 255 * torch.einsum("rc,nchw->nrhw", colors, planes).sigmoid()


def _even(gradient: Tensor) -> Tensor:
    """The gradient of each picture divided by its root mean square; where there is none, zeros."""
    axes = tuple(range(1, gradient.dim()))
    peak = gradient.abs().amax(dim=axes, keepdim=True)  # squares of the smallest numbers would vanish
    shares = torch.where(peak > 0, gradient / peak, 0.0)
    length = shares.square().mean(dim=axes, keepdim=True).sqrt()
    return torch.where(peak > 0, shares / length, 0.0)


def _moved(pixels: Tensor, amounts: Tensor) -> Tensor:
    """Pictures moved down and right, zoomed and turned, by amounts (4,) from -1 to 1 of what is most."""
    down, right, zoom, turn = amounts.tolist()
    height, width = pixels.shape[-2:]
    scale, angle = 1 + ZOOM * zoom, TURN * turn
    cosine, sine = math.cos(angle) / scale, math.sin(angle) / scale
    matrix = pixels.new_tensor(
        [  # grids reach from -1 to 1 on both sides, so turning an oblong picture needs its aspect
            [cosine, -sine * height / width, 2 * JITTER * right],
            [sine * width / height, cosine, 2 * JITTER * down],
        ]
    )
    grid = F.affine_grid(matrix.expand(len(pixels), 2, 3), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


FORMS = {"fourier": fourier, "plain": plain}

Form = Literal["fourier", "plain"]
Unit: TypeAlias = "int | tuple[int, int, int] | Target"
Pick = Callable[[Tensor, range], Tensor]  # what a layer gives for pictures, and their numbers -> (N,)

STEPS = {"fourier": 64, "plain": 40}
SIDE = 128  # pixels of pictures for layers in `features`
BATCH = 16  # pictures that climb together
MOST_SIDE = 4096  # pixels
FIRST = 64  # channels that are taken by default


@dataclass(frozen=True, eq=False)
class FilterPatterns:
    """Pictures, each made to excite one unit of a layer.

    Attributes:
        layer: name of the module.
        units: what each picture excites: a channel's number, a neuron (channel, row, column), or a target.
        pictures: (K, H, W, 3) uint8, RGB.
        start: (H, W, 3) uint8, RGB: the noise that all of them were at first.
        before, after: (K,) what each unit gives for `start` and for its picture: the mean over the channel's map, the
            neuron's value, or the logarithm of the sum of exponentials of the logits of the target's classes.
        form: how they were made.
        steps: of the ascent.
        seed: of the noise and the movements.
    """

    layer: str
    units: tuple[Unit, ...]
    pictures: NDArray[np.uint8]
    start: Pixels
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    form: Form
    steps: int
    seed: int

    @property
    def excited(self) -> NDArray[np.bool_]:
        """(K,) whether the picture excites its unit more than the noise; not so where no gradient came through."""
        return self.after > self.before

    def save(self, path: Output) -> None:
        """Write the pictures, atomically.

        Args:
            path: `.png`, `.jpg` or `.webp`: a sheet with the unit and its activation before and after below each
                picture; `.npz`: the attributes as arrays, the units in words.

        Raises:
            ValueError: another ending.
            OSError: `path` cannot be written.
        """
        WRITER.write(path, self)

    def draw(self) -> Image.Image:
        """The pictures side by side, with their units and activations."""
        labels = []
        for unit, before, after, excited in zip(self.units, self.before, self.after, self.excited, strict=True):
            rise = f"{short(before)} to {short(after)}" if excited else "not excited"
            labels.append(f"{words_of(unit)}\n{rise}")
        title = f"{self.layer}, {self.form}, {self.steps} steps: activation from noise to picture"
        return _sheet(self.pictures, labels, title)

    def arrays(self) -> dict[str, Any]:
        """What an `.npz` holds."""
        names = ("pictures", "start", "before", "after", "layer", "form", "steps", "seed")
        return {name: getattr(self, name) for name in names} | {"units": np.array([words_of(u) for u in self.units])}


def words_of(unit: Unit) -> str:
    """A unit as people call it."""
    if isinstance(unit, Target):
        return unit.label
    return str(unit) if isinstance(unit, int) else f"{unit[0]} at {unit[1]}, {unit[2]}"


def filter_patterns(
    network: nn.Module,
    layer: LayerLike,
    channels: Sequence[int | tuple[int, int, int]] | None = None,
    *,
    form: Form = "fourier",
    steps: int | None = None,
    size: int | Size | None = None,
    seed: int = 0,
    batch: int = BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> FilterPatterns:
    """Pictures that excite channels or neurons of a layer, by gradient ascent.

    The network runs only as far as the layer, and is left as it was. Pixels become its input as its card says; without
    a card, as for torchvision's weights (RGB, 0 to 1, ImageNet's mean and standard deviation). A ReLU that is closed
    lets no gradient through, so layers before their activation ("conv4_1", not "relu4_1") give more.

    Args:
        network: any module, in eval mode; on its device and in its precision.
        layer: as `find_layers` takes it; one.
        channels: numbers of channels, whose mean over the map is raised, or neurons (channel, row, column); of a layer
            without map, its values. The first 64 by default.
        form: "fourier" (`explain.ascent.fourier`) gives recognisable patterns, "plain" (`explain.ascent.plain`) is
            that of "Deep Learning with Python".
        steps: of the ascent; 64 of the form "fourier" and 40 of "plain" by default.
        size: pixels of each side, or (height, width); 128 by default, and the network's own size for layers that are
            not in `features`.
        seed: the same one gives the same pictures, whatever the batch is (but for rounding).
        batch: pictures that climb together; halved when memory runs out.
        progress: called with the number of steps done and of all.

    Raises:
        ValueError: the layer is unknown or gives no map and no values, a channel is out of range, an option is, the
            network is in training mode, or activations are not finite.

    Warns:
        MemoryWarning: memory ran out, and the batch was halved.

    >>> from convnets_torch import load
    >>> found = filter_patterns(load("alexnet.safetensors"), "conv_2", channels=[0, 5], steps=8, size=64)
    >>> found.pictures.shape, (found.after > found.before).all()
    ((2, 64, 64, 3), np.True_)
    """
    network = unwrapped(network)
    name = find_layer(network, layer)
    ascent = _Ascent(network, name, form, steps, _size(network, name, size), seed)
    shape = ascent.output.shape[1:]
    if len(shape) not in (1, 3):
        raise ValueError(f"{name} gives {tuple(shape)} for an image; (channels, height, width) or (values,) are wanted")
    if channels is None:
        channels = range(min(FIRST, shape[0]))
    units = tuple(_checked_unit(unit, name, tuple(shape)) for unit in channels)

    def pick(output: Tensor, items: range) -> Tensor:
        return torch.stack([_value(each, units[item]) for each, item in zip(output, items, strict=True)])

    return ascent.climb(units, pick, batch, progress)


def class_patterns(
    network: Network,
    target: str | int | Targets,
    *,
    form: Form = "fourier",
    steps: int | None = None,
    size: int | Size | None = None,
    seed: int = 0,
    batch: int = BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> FilterPatterns:
    """Pictures that excite classes: for each target the logarithm of the sum of exponentials of its classes' logits.

    Args:
        network: in eval mode, with its card and a head.
        target: a class, a branch of the tree or several of them, as for `heatmap`.
        form, steps, seed, batch, progress: as for `filter_patterns`.
        size: the network's own, which is also the default.

    Raises:
        ValueError: as `filter_patterns`; the network has no card or no head; a target is not known.

    >>> from convnets_torch import load
    >>> found = class_patterns(load("alexnet.safetensors"), ["dog", 281], steps=2)
    >>> [unit.label for unit in found.units]
    ['dog, domestic dog, Canis familiaris', 'tabby, tabby cat']
    """
    network = as_network(network)
    units = tuple(checked_targets(card_of(network), target))
    head = network.head
    assert head is not None
    name = f"head.{[each for each, _ in head.named_children()][-1]}"

    def pick(output: Tensor, items: range) -> Tensor:
        logits = zip(output, items, strict=True)
        return torch.stack([each[list(units[item].class_ids)].logsumexp(dim=0) for each, item in logits])

    return _Ascent(network, name, form, steps, _size(network, name, size), seed).climb(units, pick, batch, progress)


class _Ascent:
    """One network, one layer and one way of making pictures."""

    def __init__(self, network: nn.Module, layer: str, form: Form, steps: int | None, size: Size, seed: int) -> None:
        check_choice(form, get_args(Form), "form")
        self.steps = STEPS[form] if steps is None else steps
        if self.steps < 1:
            raise ValueError(f"{self.steps} steps are none; give 1 or more")
        check_eval_mode(network)
        self.network, self.layer, self.form, self.size, self.seed = network, layer, form, size, seed
        self.rule = rule_of(network)
        self.dtype = next(network.parameters()).dtype
        worked_in = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.like = next(network.parameters()).detach().new_zeros((), dtype=worked_in)
        with torch.inference_mode(False), torch.no_grad():
            self.start = FORMS[form](self.run, self.like, size, 1, 0, seed, lambda: None).round()
            self.output = self.run(self.start)

    def run(self, pixels: Tensor) -> Tensor:
        """What the layer gives for (N, 3, H, W), RGB, 0 to 255."""
        images = normalized(pixels.permute(0, 2, 3, 1), self.rule).to(self.dtype)
        try:
            return run_to(self.network, self.layer, images)[self.layer]
        except RuntimeError as error:
            if "size" not in str(error) or "memory" in str(error):
                raise
            height, width = self.size
            raise ValueError(
                f"{self.layer} gives nothing for pictures of {height}x{width} pixels ({error}); give another size"
            ) from None

    def climb(
        self, units: tuple[Any, ...], pick: Pick, batch: int, progress: Callable[[int, int], None] | None
    ) -> FilterPatterns:
        """A picture for each unit."""

        def climbed(items: range) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.float64]]:
            done = items.start * self.steps

            def tick() -> None:
                nonlocal done
                done += len(items)
                if progress is not None:
                    progress(done, len(units) * self.steps)

            def measure(pixels: Tensor) -> Tensor:
                return pick(self.run(pixels), items)

            with torch.inference_mode(False):
                with torch.enable_grad():
                    ascend = FORMS[self.form]
                    pixels = ascend(measure, self.like, self.size, len(items), self.steps, self.seed, tick).round()
                with torch.no_grad():
                    before = pick(self.output.expand(len(items), *self.output.shape[1:]), items)
                    after = measure(pixels)
            pictures = pixels.permute(0, 2, 3, 1).to("cpu", torch.uint8).numpy()
            return pictures, before.double().cpu().numpy(), after.double().cpu().numpy()

        parts: Iterator[Any] = in_batches(climbed, len(units), batch)
        pictures, before, after = (np.concatenate(each) for each in zip(*parts, strict=True))
        if not (np.isfinite(before).all() and np.isfinite(after).all()):
            raise ValueError(BROKEN.format(self.layer))
        start = self.start[0].permute(1, 2, 0).to("cpu", torch.uint8).numpy()
        return FilterPatterns(self.layer, units, pictures, start, before, after, self.form, self.steps, self.seed)


def _size(network: nn.Module, layer: str, size: int | Size | None) -> Size:
    if size is None:
        if isinstance(network, Network) and not layer.startswith("features."):
            return network.size
        return (SIDE, SIDE)
    height, width = (size, size) if isinstance(size, int) else size
    if not 1 <= min(height, width) <= max(height, width) <= MOST_SIDE:
        raise ValueError(f"pictures of {height}x{width} pixels are out of range; give sides of 1 to {MOST_SIDE}")
    return (height, width)


def _checked_unit(unit: int | tuple[int, int, int], layer: str, shape: tuple[int, ...]) -> int | tuple[int, int, int]:
    """A unit of a layer with outputs (channels, height, width) or (values,)."""
    places = (unit,) if isinstance(unit, int | np.integer) else tuple(unit)
    if len(places) not in (1, 3):
        raise ValueError(f"{unit!r} is no unit; give a channel's number, or (channel, row, column)")
    if len(places) > len(shape):
        raise ValueError(f"{layer} gives {shape[0]} values and no map; name one by its number, not {unit!r}")
    for place, count, words in zip(places, shape, ("channels", "rows", "columns"), strict=False):
        if not 0 <= place < count:
            raise ValueError(f"{layer} has {count} {words}, 0 to {count - 1}; {place} is none of them")
    return int(places[0]) if len(places) == 1 else (int(places[0]), int(places[1]), int(places[2]))


def _value(output: Tensor, unit: int | tuple[int, int, int]) -> Tensor:
    """What a unit gives: of a channel, the mean over its map."""
    return output[unit].mean() if isinstance(unit, int) else output[unit]


TILE = 128  # pixels of a picture's width in a sheet of many
LARGE_TILE = 240  # and of few


def _sheet(pictures: Sequence[Pixels] | Pixels, labels: Sequence[str], title: str) -> Image.Image:
    """Pictures in a sheet with words under each; small ones are enlarged to whole squares."""
    columns = 8 if len(pictures) > 9 else 3
    width = TILE if columns == 8 else LARGE_TILE
    tiles = [(enlarged(picture, width), label) for picture, label in zip(pictures, labels, strict=True)]
    return overlays.sheet(tiles, columns, width, title)


def enlarged(picture: Pixels, width: int) -> Image.Image:
    """A picture as it is, or, much smaller than `width`, with its pixels as squares."""
    image = Image.fromarray(picture)
    if image.width * 2 > width:
        return image
    return image.resize((width, round(image.height * width / image.width)), Image.Resampling.NEAREST)


def short(value: float) -> str:
    """A number in three digits or so."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _write_arrays(path: Path, found: FilterPatterns | FirstKernels) -> None:
    write_npz(path, found.arrays())


WRITER = Writer("filters", {**overlays.picture_formats(lambda found: found.draw()), ".npz": _write_arrays})

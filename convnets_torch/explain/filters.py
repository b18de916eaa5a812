"""Filter patterns: pictures that maximise a channel, neuron or class, and pictures of the first layer's kernels.

The pictures of a batch are independent: the gradient of the summed objectives with respect to one picture is that of
its own objective. All pictures start from the same noise and get the same random transformations, so a picture depends
only on its objective and the seed, not on the batch (except for rounding).
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
from convnets_torch.images.levels import shown
from convnets_torch.images.preprocessing import Pixels, Preprocessing, general
from convnets_torch.images.resizing import normalized
from convnets_torch.inference.batching import batches_with_retry
from convnets_torch.inference.classification import card_of
from convnets_torch.networks import Network
from convnets_torch.networks.network import as_network, check_eval_mode
from convnets_torch.networks.tracing import unwrapped
from convnets_torch.npz import write_npz
from convnets_torch.text import check_choice
from convnets_torch.visualization import overlays
from convnets_torch.wordnet.targets import Target, Targets, checked_targets


def rule_of(network: nn.Module) -> Preprocessing:
    """Return the preprocessing of a network's card; without a card, that of torchvision's weights.

    The latter is RGB, 0 to 1, normalised with ImageNet's mean and standard deviation.
    """
    if isinstance(network, Network) and network.card is not None:
        return network.card.preprocessing
    return general("torchvision", 224)


@dataclass(frozen=True, eq=False)
class FirstKernels:
    """The kernels of the first convolution as colour or grey pictures.

    Attributes:
        layer: name of the module.
        weights: (K, h, w, 3) float32, RGB: the change of the channel per unit of a pixel from 0 to 255; (K, h, w, 1)
            for a network that reads grey.
        pictures: (K, h, w, 3) uint8, RGB: 128 is a weight of 0; 1 and 255 are minus and plus the kernel's peak.
        peaks: (K,) the largest absolute weight of each kernel.
    """

    layer: str
    weights: NDArray[np.float32]
    pictures: NDArray[np.uint8]
    peaks: NDArray[np.float32]

    def save(self, path: Output) -> None:
        """Write the kernels as a sheet (`.png`, `.jpg`, `.webp`) or as arrays (`.npz`), atomically."""
        WRITER.write(path, self)

    def draw(self) -> Image.Image:
        """Draw a sheet of the kernels with their numbers and largest weights."""
        labels = [f"{number}\nmost {short(peak)}" for number, peak in enumerate(self.peaks)]
        return _sheet(self.pictures, labels, f"{self.layer}: kernels, grey is 0, each up to its largest weight")

    def arrays(self) -> dict[str, Any]:
        """Return the arrays of an `.npz` file."""
        return {name: getattr(self, name) for name in ("pictures", "weights", "peaks", "layer")}


def first_kernels(network: nn.Module) -> FirstKernels:
    """Return the kernels of the first convolution in RGB, whatever the network's colour order.

    Weights are converted to pixels from 0 to 255: multiplied by the scale of the preprocessing (see `rule_of`), divided
    by its standard deviation, and reordered to RGB. In the pictures each kernel has its own contrast: zero is grey, and
    its largest absolute weight is black or full colour.

    Args:
        network: any module whose first convolution takes three channels, or one of grey.

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
        raise ValueError(f"{type(network).__name__} has no convolution, so there are no kernels to draw")
    layer, module = found
    rule = rule_of(network)
    if module.weight.shape[1] != (1 if rule.channels == "grey" else 3) or rule.channels == "rgba":
        raise ValueError(
            f"{layer}, the first convolution, takes {module.weight.shape[1]} channels, not RGB or grey; patterns of its"
            " output (filter_patterns, --layer) can be drawn"
        )
    kernels = module.weight.detach().float().cpu().numpy().transpose(0, 2, 3, 1)
    weights = kernels * np.float32(rule.scale) / np.asarray(rule.std, np.float32)
    if rule.channels == "bgr":
        weights = weights[..., ::-1]
    weights = np.ascontiguousarray(weights)
    if not np.isfinite(weights).all():
        raise ValueError(f"weights of {layer} are NaN or infinite: the file is broken")
    peaks = np.abs(weights).max(axis=(1, 2, 3))
    shares = weights / np.where(peaks > 0, peaks, 1)[:, None, None, None]
    pictures = np.rint(128 + 127 * shares).astype(np.uint8)
    return FirstKernels(layer, weights, pictures.repeat(3, axis=3) if pictures.shape[3] == 1 else pictures, peaks)


Size = tuple[int, int]  # height, width in pixels
Progress = Callable[[int, int], None]
Measure = Callable[
    [Tensor], Tensor
]  # pixels (N, 3, H, W), RGB, or (N, 1, H, W), 0 to 255 -> objective of each picture (N,)

GREY, NOISE = 128.0, 20.0  # the plain form starts from uniform noise of GREY to GREY + NOISE
PIXELS = 1.0  # RMS of the pixel change of one plain step

START = 0.01  # standard deviation of the first coefficients
RATE = 0.05  # of Adam
CONTRAST = 0.35  # of the picture before the sigmoid, for coefficients of 1
JITTER = 1 / 16  # maximum shift as a share of the side, in each direction
ZOOM = 0.1  # maximum relative change of scale
TURN = math.radians(10)  # maximum rotation, either way

# Channels of the pictures that are made: patterns for networks that read RGBA are opaque.
PLANES = {"rgb": 3, "bgr": 3, "grey": 1, "rgba": 3}

# A square root of the covariance of red, green and blue (0 to 1) in seven photographs of scikit-image and scikit-learn:
# columns are the principal axes (light, yellow to blue, magenta to green). `scripts/color_correlation.py` prints it.
COLORS = ((0.2379, 0.1059, 0.0097), (0.2266, -0.0281, -0.0312), (0.2175, -0.0865, 0.0220))


def plain(
    measure: Measure, like: Tensor, size: Size, count: int, steps: int, seed: int, on_step: Callable[[], None],
    planes: int = 3,
) -> Tensor:  # fmt: skip
    """Gradient ascent on pixels, from grey noise, with gradients normalised by their root mean square (RMS).

    Source: Deep Learning with Python, F. Chollet, 2018, section 5.4.2: noise from 128 to 148, the gradient divided by
    its RMS, steps of size 1 on pixels 0 to 255. Differences: the book feeds these pixels to the network without
    preprocessing and adds 1e-5 to the RMS, which swamps small gradients; here a zero gradient stays zero. The book lets
    pixels leave 0 to 255 and finally resets mean and contrast; here pixels are clipped in each step, so the returned
    picture is the one that the network saw.

    Args:
        measure: the objective of each picture.
        like: a tensor that gives device and dtype.
        size, count: (H, W) in pixels, and number of pictures.
        steps, seed: number of steps; 0 returns the noise of the seed.
        on_step: called after each step.
        planes: 3 for RGB, 1 for grey.

    Returns:
        (count, planes, H, W), RGB or grey, 0 to 255.
    """
    noise = torch.rand(1, planes, *size, generator=torch.Generator().manual_seed(seed))
    pixels = (GREY + NOISE * noise).to(like).repeat(count, 1, 1, 1)
    for _ in range(steps):
        pixels.requires_grad_(True)
        [gradient] = torch.autograd.grad(measure(pixels).sum(), pixels)
        pixels = (pixels.detach() + PIXELS * _rms_normalized(gradient)).clamp(0, 255)
        on_step()
    return pixels


def fourier(
    measure: Measure, like: Tensor, size: Size, count: int, steps: int, seed: int, on_step: Callable[[], None],
    planes: int = 3,
) -> Tensor:  # fmt: skip
    """Adam on Fourier coefficients in decorrelated colours; the network sees randomly transformed pictures.

    Source: Feature Visualization, C. Olah, A. Mordvintsev, L. Schubert, Distill 2017, "Transformation Robustness" and
    "Preconditioning and Parameterization"; Adam: arXiv:1412.6980, algorithm 1. Differences: a single resampling shifts,
    rotates and scales, with reflection at the borders and uniformly distributed amounts, and all pictures get the same
    transformation. Each picture's gradient is divided by its RMS, so that Adam's epsilon does not swamp small ones.

    Arguments and result are those of `plain`; the seed is of the initial coefficients and the transformations.
    """
    chance = torch.Generator().manual_seed(seed)
    start = START * torch.randn(1, planes, size[0], size[1] // 2 + 1, 2, generator=chance)
    coefficients = start.to(like).repeat(count, 1, 1, 1, 1).requires_grad_(True)
    adam = torch.optim.Adam([coefficients], lr=RATE, maximize=True)
    for _ in range(steps):
        moved = _transformed(fourier_pixels(coefficients, size), torch.rand(4, generator=chance) * 2 - 1)
        [gradient] = torch.autograd.grad(measure(moved).sum(), [coefficients])
        coefficients.grad = _rms_normalized(gradient)
        adam.step()
        on_step()
    return fourier_pixels(coefficients.detach(), size)


def fourier_pixels(coefficients: Tensor, size: Size) -> Tensor:
    """Convert Fourier coefficients to pictures.

    The coefficients of a real Fourier transform are divided by their frequency (in cycles per pixel, at least one
    cycle over the longer side), so that all scales have the share that they have in photographs. Three planes are
    amounts of the principal colours of photographs; a single one is grey. A sigmoid limits the pixel values.

    Source: as for `fourier`. The colours are recomputed (`scripts/color_correlation.py`).

    Args:
        coefficients: (N, 3, H, W // 2 + 1, 2), or (N, 1, ...) for grey.
        size: (H, W) in pixels.

    Returns:
        (N, 3, H, W), RGB, or (N, 1, H, W), grey, 0 to 255.
    """
    height, width = size
    down, across = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)
    frequency = (down.square() + across.square()).sqrt().clamp(min=1 / max(size)).to(coefficients)
    spectrum = torch.view_as_complex(coefficients) / frequency
    planes = CONTRAST * torch.fft.irfft2(spectrum, s=size, norm="ortho")
    if planes.shape[1] == 1:
        return 255 * planes.sigmoid()
    colors = coefficients.new_tensor(COLORS)
    colors = colors / colors.norm(dim=0).max()
    return 255 * torch.einsum("rc,nchw->nrhw", colors, planes).sigmoid()


def _rms_normalized(gradient: Tensor) -> Tensor:
    """Divide each picture's gradient by its RMS; a zero gradient stays zero."""
    axes = tuple(range(1, gradient.dim()))
    peak = gradient.abs().amax(dim=axes, keepdim=True)  # scale first: squares of tiny numbers underflow
    shares = torch.where(peak > 0, gradient / peak, 0.0)
    length = shares.square().mean(dim=axes, keepdim=True).sqrt()
    return torch.where(peak > 0, shares / length, 0.0)


def _transformed(pixels: Tensor, amounts: Tensor) -> Tensor:
    """Shift down and right, scale and rotate pictures; `amounts` (4,) are shares of the maxima, -1 to 1."""
    down, right, zoom, turn = amounts.tolist()
    height, width = pixels.shape[-2:]
    scale, angle = 1 + ZOOM * zoom, TURN * turn
    cosine, sine = math.cos(angle) / scale, math.sin(angle) / scale
    matrix = pixels.new_tensor(
        [  # grid coordinates run from -1 to 1 on both axes, so a rotation needs the aspect ratio
            [cosine, -sine * height / width, 2 * JITTER * right],
            [sine * width / height, cosine, 2 * JITTER * down],
        ]
    )
    grid = F.affine_grid(matrix.expand(len(pixels), 2, 3), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


FORMS = {"fourier": fourier, "plain": plain}

Form = Literal["fourier", "plain"]
Unit: TypeAlias = "int | tuple[int, int, int] | Target"
Pick = Callable[[Tensor, range], Tensor]  # layer output for pictures, their numbers -> objectives (N,)

STEPS = {"fourier": 64, "plain": 40}
SIDE = 128  # pixels of pictures for layers in `features`
BATCH_SIZE = 16  # pictures
MOST_SIDE = 4096  # pixels
FIRST = 64  # channels by default


@dataclass(frozen=True, eq=False)
class FilterPatterns:
    """Pictures that each maximise one unit of a layer.

    Attributes:
        layer: name of the module.
        units: the unit of each picture: a channel number, a neuron (channel, row, column), or a target.
        pictures: (K, H, W, 3) uint8, RGB; (K, H, W, 1) for a network that reads grey. For one that reads RGBA they are
            opaque.
        start: (H, W, 3) uint8, RGB, or grey: the noise that all pictures start from.
        before, after: (K,) the activation of each unit for `start` and for its picture: the mean over the channel's
            map, the neuron's value, or the log-sum-exp of the logits of the target's classes.
        form: "fourier" or "plain".
        steps: number of steps.
        seed: of the noise and the transformations.
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
        """(K,) whether the picture excites its unit more than the noise; False if the gradient was zero."""
        return self.after > self.before

    def save(self, path: Output) -> None:
        """Write the pictures, atomically.

        `.png`, `.jpg` or `.webp` is a sheet with the unit and its activation before and after below each picture;
        `.npz` holds the attributes as arrays, with the units as text.
        """
        WRITER.write(path, self)

    def draw(self) -> Image.Image:
        """Draw a sheet of the pictures with their units and activations."""
        labels = []
        for unit, before, after, excited in zip(self.units, self.before, self.after, self.excited, strict=True):
            rise = f"{short(before)} to {short(after)}" if excited else "not excited"
            labels.append(f"{words_of(unit)}\n{rise}")
        title = f"{self.layer}, {self.form}, {self.steps} steps: activation from noise to picture"
        return _sheet(self.pictures, labels, title)

    def arrays(self) -> dict[str, Any]:
        """Return the arrays of an `.npz` file."""
        names = ("pictures", "start", "before", "after", "layer", "form", "steps", "seed")
        return {name: getattr(self, name) for name in names} | {"units": np.array([words_of(u) for u in self.units])}


def words_of(unit: Unit) -> str:
    """Describe a unit in words."""
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
    batch: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> FilterPatterns:
    """Make pictures that maximise channels or neurons of a layer, by gradient ascent.

    The network runs only as far as the layer and is left unchanged. Pixels are preprocessed as the card says, or, for a
    module without a card, as for torchvision's weights (RGB, 0 to 1, ImageNet's mean and standard deviation). An
    inactive ReLU has no gradient, so layers before their activation ("conv4_1", not "relu4_1") work better.

    Args:
        network: any module in eval mode; it keeps its device and dtype.
        layer: one layer, as in `find_layer`.
        channels: channel numbers, for the mean over the channel's map, or neurons (channel, row, column); for a layer
            without a map, numbers of values. Defaults to the first 64.
        form: "fourier" (`explain.filters.fourier`) gives recognisable patterns; "plain" (`explain.filters.plain`) is
            that of "Deep Learning with Python".
        steps: number of steps; defaults to 64 for "fourier" and 40 for "plain".
        size: side in pixels, or (height, width); defaults to 128, or the network's input size for layers outside
            `features`.
        seed: equal seeds give equal pictures, whatever the batch size (except for rounding).
        batch: batch size; halved when memory runs out.
        progress: called with the number of finished steps and of all steps.

    Raises:
        ValueError: the layer is unknown or gives neither a map nor a vector, a channel or option is out of range, the
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
    ascent = _Ascent(network, name, form, steps, size, seed)
    shape = ascent.output.shape[1:]
    if len(shape) not in (1, 3):
        raise ValueError(f"{name} gives {tuple(shape)} per image, not (channels, height, width) or (values,)")
    if channels is None:
        channels = range(min(FIRST, shape[0]))
    units = tuple(_checked_unit(unit, name, tuple(shape)) for unit in channels)

    def pick(output: Tensor, items: range) -> Tensor:
        values = [each[units[item]] for each, item in zip(output, items, strict=True)]
        return torch.stack([value.mean() for value in values])  # over a channel's map, or of one value

    return ascent.climb(units, pick, batch, progress)


def class_patterns(
    network: Network,
    target: str | int | Targets,
    *,
    form: Form = "fourier",
    steps: int | None = None,
    size: int | Size | None = None,
    seed: int = 0,
    batch: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> FilterPatterns:
    """Make pictures that maximise classes: for each target the log-sum-exp of its classes' logits.

    Args:
        network: in eval mode, with a card and a head.
        target: one target or a list of targets, as for `heatmap`.
        form, steps, seed, batch, progress: as for `filter_patterns`.
        size: the network's input size, which is also the default.

    Raises:
        ValueError: as for `filter_patterns`; the network has no card or no head; a target is unknown.

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

    return _Ascent(network, name, form, steps, size, seed).climb(units, pick, batch, progress)


class _Ascent:
    """Gradient ascent on pictures that maximise units of a layer; see `filter_patterns`."""

    def __init__(
        self, network: nn.Module, layer: str, form: Form, steps: int | None, size: int | Size | None, seed: int
    ) -> None:
        check_choice(form, get_args(Form), "form")
        self.size = _size(network, layer, size)
        self.steps = STEPS[form] if steps is None else steps
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; give 1 or more")
        check_eval_mode(network)
        self.network, self.layer, self.form, self.seed = network, layer, form, seed
        self.rule = rule_of(network)
        self.planes = PLANES[self.rule.channels]
        self.dtype = next(network.parameters()).dtype
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.like = next(network.parameters()).detach().new_zeros((), dtype=dtype)
        with torch.inference_mode(False), torch.no_grad():
            self.start = FORMS[form](self.run, self.like, self.size, 1, 0, seed, lambda: None, self.planes).round()
            self.output = self.run(self.start)

    def run(self, pixels: Tensor) -> Tensor:
        """Return the layer's output for pixels (N, 3, H, W), RGB, or grey, 0 to 255."""
        if self.rule.channels == "rgba":
            pixels = torch.cat([pixels, torch.full_like(pixels[:, :1], 255)], dim=1)
        images = normalized(pixels.permute(0, 2, 3, 1), self.rule).to(self.dtype)
        try:
            return run_to(self.network, self.layer, images)[self.layer]
        except RuntimeError as error:
            if "size" not in str(error) or "memory" in str(error):
                raise
            height, width = self.size
            raise ValueError(
                f"{self.layer} cannot run on pictures of {height}x{width} pixels ({error}); give another size"
            ) from None

    def climb(self, units: tuple[Any, ...], pick: Pick, batch: int, progress: Progress | None) -> FilterPatterns:
        """Make one picture per unit."""

        def climbed(items: range) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.float64]]:
            done = items.start * self.steps

            def on_step() -> None:
                nonlocal done
                done += len(items)
                if progress is not None:
                    progress(done, len(units) * self.steps)

            def measure(pixels: Tensor) -> Tensor:
                return pick(self.run(pixels), items)

            with torch.inference_mode(False):
                with torch.enable_grad():
                    ascend = FORMS[self.form]
                    settings = (self.like, self.size, len(items), self.steps, self.seed, on_step, self.planes)
                    pixels = ascend(measure, *settings).round()
                with torch.no_grad():
                    before = pick(self.output.expand(len(items), *self.output.shape[1:]), items)
                    after = measure(pixels)
            pictures = pixels.permute(0, 2, 3, 1).to("cpu", torch.uint8).numpy()
            return pictures, before.double().cpu().numpy(), after.double().cpu().numpy()

        parts: Iterator[Any] = batches_with_retry(climbed, len(units), batch)
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
    """Check a unit against a layer's output shape, (channels, height, width) or (values,)."""
    places = (unit,) if isinstance(unit, int | np.integer) else tuple(unit)
    if len(places) not in (1, 3):
        raise ValueError(f"{unit!r} is not a unit; give a channel number, or (channel, row, column)")
    if len(places) > len(shape):
        raise ValueError(f"{layer} gives {shape[0]} values and no map; give the number of one, not {unit!r}")
    for place, count, words in zip(places, shape, ("channels", "rows", "columns"), strict=False):
        if not 0 <= place < count:
            raise ValueError(f"{layer} has {count} {words}, 0 to {count - 1}; {place} is out of range")
    return int(places[0]) if len(places) == 1 else (int(places[0]), int(places[1]), int(places[2]))


TILE = 128  # width in pixels of a picture in a sheet of 10 or more
LARGE_TILE = 240  # and in a smaller sheet


def _sheet(pictures: Pixels, labels: Sequence[str], title: str) -> Image.Image:
    columns, width = (8, TILE) if len(pictures) > 9 else (3, LARGE_TILE)
    tiles = [(enlarged(picture, width), label) for picture, label in zip(pictures, labels, strict=True)]
    return overlays.sheet(tiles, columns, width, title)


def enlarged(pixels: Pixels, width: int) -> Image.Image:
    """Enlarge a picture of at most half of `width` to it, with pixels as squares; leave a larger one as it is."""
    image = Image.fromarray(shown(pixels))
    if image.width * 2 > width:
        return image
    return image.resize((width, round(image.height * width / image.width)), Image.Resampling.NEAREST)


def short(value: float) -> str:
    """Format a number with about three digits."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _write_arrays(path: Path, found: FilterPatterns | FirstKernels) -> None:
    write_npz(path, found.arrays())


WRITER = Writer("filters", {**overlays.picture_formats(lambda found: found.draw()), ".npz": _write_arrays})

"""Pictures that excite a channel, a neuron or a class, by gradient ascent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convnets_torch.classification import card_of
from convnets_torch.explain.activations import BROKEN, run_to
from convnets_torch.explain.ascent import FORMS, Size
from convnets_torch.explain.names import Layer, find_layer
from convnets_torch.explain.pixels import rule_of, to_input
from convnets_torch.files import Output, path_of, to_open_files
from convnets_torch.fitting import in_batches
from convnets_torch.networks import Network
from convnets_torch.networks.network import as_network
from convnets_torch.networks.replicas import unwrapped
from convnets_torch.preprocessing import Pixels
from convnets_torch.targets import Target, Targets, checked_targets

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

    @to_open_files(".png")
    def save(self, path: Output) -> None:
        """Write the pictures, atomically.

        Args:
            path: `.png`, `.jpg` or `.webp`: a sheet with the unit and its activation before and after below each
                picture; `.npz`: the attributes as arrays, the units in words.

        Raises:
            ValueError: another ending.
            OSError: `path` cannot be written.
        """
        from convnets_torch.explain.sheets import save_patterns

        save_patterns(self, path_of(path))


def words_of(unit: Unit) -> str:
    """A unit as people call it."""
    if isinstance(unit, Target):
        return unit.label
    return str(unit) if isinstance(unit, int) else f"{unit[0]} at {unit[1]}, {unit[2]}"


def filter_patterns(
    network: nn.Module,
    layer: Layer,
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
        if form not in get_args(Form):
            raise ValueError(f"unknown form {form!r}; known: {', '.join(get_args(Form))}")
        self.steps = STEPS[form] if steps is None else steps
        if self.steps < 1:
            raise ValueError(f"{self.steps} steps are none; give 1 or more")
        if any(module.training for module in network.modules()):
            raise ValueError("the network is in training mode, where its answers are random; call network.eval()")
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
        images = to_input(pixels, self.rule).to(self.dtype).contiguous(memory_format=torch.channels_last)
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

"""Post-training static quantisation: 8-bit weights and activations, calibrated on pictures, with the accuracy told.

Batch normalisation is folded first. Weights are quantised per output channel, symmetric; inputs of layers per tensor,
in the range of the calibration pictures. The mean error that rounding the weights adds to each channel is subtracted
from its bias. Nothing is trained.

Sources: Quantizing deep convolutional networks for efficient inference, arXiv:1806.08342, sections 2 and 3, for the
scheme; Data-Free Quantization Through Weight Equalization and Bias Correction, arXiv:1906.04721, section 4.2, for the
bias.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from convnets_torch.card import Card, Quantization
from convnets_torch.images.decoding import Picture, Reading, ReadingKeywords, picture_name
from convnets_torch.inference.classification import probabilities
from convnets_torch.inference.pipeline import BATCH, THREADS, Input, Inputs, each_of, place_of, ready_card, run_pictures
from convnets_torch.inference.prepare import fold
from convnets_torch.networks import Network
from convnets_torch.networks.network import NO_HEAD, as_network
from convnets_torch.networks.packed import check_unpacked
from convnets_torch.networks.quantized import (
    LEAST,
    MOST,
    QuantizedAdd,
    QuantizedConv2d,
    QuantizedLinear,
    is_quantized,
    quantizable,
    quantized_form,
    replace_layer,
    residuals,
)
from convnets_torch.networks.tracing import replicate
from convnets_torch.options import checked, shows

LEAST_PICTURES, MOST_PICTURES = 8, 1000  # 1,000 inputs of 224x224 pixels take 0.6 GB
HELD_OUT = 4  # every fourth picture measures the agreement and calibrates nothing
MOST_TRIED = 16  # held-out pictures on which single layers are measured

Layer = nn.Conv2d | nn.Linear


@dataclass(frozen=True)
class LayerError:
    """What quantising one layer alone changes.

    Attributes:
        layer: name of the module.
        kind: "Conv2d" or "Linear".
        noise: root mean square error of its output, relative to the output's standard deviation.
        difference: mean over held-out pictures of the largest difference of a probability; None if not measured.
        wide: whether the layer stayed in floating point.
    """

    layer: str
    kind: str
    noise: float
    difference: float | None
    wide: bool


@dataclass(frozen=True, eq=False)
class Quantized:
    """A quantised network, and what it costs.

    Attributes:
        network: the network; its card records how it was made and how well it agrees.
        agreement: with the original network, on held-out pictures.
        layers: one entry per layer that can be quantised, in execution order.
        errors: (name, error) of each unusable picture.
        notes: notes on unusual pictures.
    """

    network: Network
    agreement: Quantization
    layers: tuple[LayerError, ...]
    errors: tuple[tuple[str, Exception], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def wide(self) -> tuple[str, ...]:
        """The layers that stayed in floating point."""
        return self.agreement.wide

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"agreement": self.agreement.to_dict(), "layers": [asdict(layer) for layer in self.layers]}


@shows(ReadingKeywords, Reading)
def quantize(
    network: Network,
    images: Picture | Iterable[Picture],
    *,
    target_agreement: float | None = None,
    layer_errors: bool = False,
    workers: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    **reading: Unpack[ReadingKeywords],
) -> Quantized:
    """Quantise a network to 8-bit integers, calibrated on pictures like those that it will see.

    Every fourth picture is held out: it calibrates nothing, and the quantised network is compared with the original one
    on it. The same pictures in the same order give the same network.

    Args:
        network: in eval mode, float32, with a card and a head, as `load` returns it; it is not changed.
        images: 8 pictures or more, some hundred are better, each anything `read_picture` takes; of more than 1,000, an
            evenly spaced part is used.
        target_agreement: share of held-out pictures, 0 to 1, that must keep their best class. The layers whose
            quantisation changes the probabilities most stay in floating point until it is reached.
        layer_errors: measure what each layer alone changes, which runs the network once per layer.
        workers: decoding threads; defaults to one per core, at most 16.
        progress: called with the name of a step, the number of finished items, and the number of all.
        reading: as in `read_picture`.

    Returns:
        The network, which `save`, `prepare` and all functions accept but those that train, and its agreement.

    Raises:
        ValueError: fewer than 8 pictures are usable; the network has no card or head, is in training mode, prepared,
            quantised, in another precision or on another device than the CPU; no layer can be quantised; or the target
            is not reached even with all layers but one in floating point.

    >>> from convnets_torch import load
    >>> found = quantize(load("alexnet.safetensors"), ["street.jpg"] * 8)
    >>> found.agreement.images, found.agreement.same_best, found.wide
    (2, 1.0, ())
    """
    network = as_network(network)
    card = _checked(network, target_agreement)
    inputs, errors, notes = _read(
        network, images, workers or THREADS, Reading(True, **checked(reading, ReadingKeywords)), progress
    )
    held = inputs[HELD_OUT - 1 :: HELD_OUT]
    used = inputs[[number for number in range(len(inputs)) if number % HELD_OUT != HELD_OUT - 1]]
    folded, _ = replicate(network)
    fold(folded)
    ranges = _ranges(folded, used, progress)
    if not ranges:
        raise ValueError("the network has no layer that can be quantised: neither a convolution nor a dense layer")
    full = _with_scales(folded, ranges, ())
    noise = _correct_biases(folded, full, used, progress)
    wanted = _chances(network, held, card)

    def measured(wide: Sequence[str]) -> tuple[Network, Quantization]:
        made = _with_wide(folded, full, ranges, wide)
        return made, _agreement(wanted, _chances(made, held, card), len(used), wide)

    found, agreement = measured(())
    differences: dict[str, float] = {}
    layers = quantizable(folded)
    if layer_errors or (target_agreement is not None and agreement.same_best < target_agreement):
        some = slice(0, MOST_TRIED)
        for number, name in enumerate(layers):
            alone = _with_wide(folded, full, ranges, [each for each in layers if each != name])
            changed = (_chances(alone, held[some], card) - wanted[some]).abs().amax(1)
            differences[name] = float(changed.mean())
            if progress is not None:
                progress("layers", number + 1, len(layers))
    if target_agreement is not None and agreement.same_best < target_agreement:
        worst = sorted(layers, key=lambda name: -differences[name])
        for count in range(1, len(worst)):
            found, agreement = measured(worst[:count])
            if agreement.same_best >= target_agreement:
                break
        else:
            raise ValueError(
                f"{target_agreement:.1%} of the held-out pictures should keep their best class, but only"
                f" {agreement.same_best:.1%} do with a single quantised layer; give more pictures, or a lower target"
            )
    source = card.source
    if source is not None:
        source = replace(source, changes=(*source.changes, f"quantised to int8 with {len(used)} pictures"))
    found.card = replace(card, source=source, proof=None, quantization=agreement)
    rows = tuple(
        LayerError(name, type(layer).__name__, noise[name], differences.get(name), name in agreement.wide)
        for name, layer in layers.items()
    )
    return Quantized(found, agreement, rows, errors, notes)


def _checked(network: Network, target: float | None) -> Card:
    card = ready_card(network)
    if network.head is None:
        raise ValueError(NO_HEAD)
    if is_quantized(network):
        raise ValueError("the network is quantised already; quantise the one that it was made from")
    check_unpacked(network)
    device, dtype = place_of(network)
    if device.type != "cpu" or dtype != torch.float32:
        raise ValueError(f"the network is in {dtype} on {device}; load it in float32 on the CPU to quantise it")
    if target is not None and not 0 < target <= 1:
        raise ValueError(f"the target agreement is {target}; give a share above 0, at most 1")
    return card


Progress = Callable[[str, int, int], None] | None


def _read(
    network: Network, images: Picture | Iterable[Picture], workers: int, reading: Reading, progress: Progress
) -> tuple[Tensor, tuple[tuple[str, Exception], ...], tuple[str, ...]]:
    """Return network input (N, C, H, W), (name, error) of each unusable picture, and notes."""
    pictures = given = list(each_of(images))
    notes: list[str] = []
    if len(given) > MOST_PICTURES:
        pictures = given[:: -(-len(given) // MOST_PICTURES)]
        notes.append(f"{len(pictures)} of the {len(given)} pictures are used, evenly spaced; more would change little")
    inputs = Inputs(ready_card(network).preprocessing, torch.device("cpu"), reading, exact=True)
    found: list[Tensor] = []
    errors: list[tuple[str, Exception]] = []

    def run(items: list[Input]) -> list[Tensor]:
        return list(inputs.images(items))

    with contextlib.closing(run_pictures(pictures, inputs.decode, run, batch=BATCH, threads=workers)) as rows:
        for number, row in enumerate(rows):
            notes += row.notes
            if row.value is not None:
                found.append(row.value)
            elif row.error is not None:
                errors.append((picture_name(row.picture), row.error))
            if progress is not None:
                progress("pictures", number + 1, len(pictures))
    if len(found) < LEAST_PICTURES:
        first = f"; the first error: {errors[0][1]}" if errors else ""
        raise ValueError(
            f"{len(found)} of {len(pictures)} pictures are usable, but calibration needs {LEAST_PICTURES} or more,"
            f" better some hundred{first}"
        )
    return torch.stack(found), tuple(errors), tuple(notes)


def _batches(network: nn.Module, inputs: Tensor, step: str, progress: Progress) -> None:
    """Run inputs through a network, for its hooks."""
    with torch.inference_mode():
        for start in range(0, len(inputs), BATCH):
            network(inputs[start : start + BATCH])
            if progress is not None:
                progress(step, min(start + BATCH, len(inputs)), len(inputs))


class _Range:
    """The smallest and largest value of a layer's input, and 0, which padding is made of."""

    def __init__(self) -> None:
        self.low = self.high = 0.0

    def add(self, values: Tensor) -> None:
        """Add a batch of inputs."""
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    def scale(self) -> tuple[float, int]:
        """Return the scale and zero point of the integers; 0 is represented exactly."""
        scale = (self.high - self.low) / (MOST - LEAST) or 1.0
        return scale, round(-self.low / scale)


def _ranges(folded: Network, inputs: Tensor, progress: Progress) -> dict[str, _Range]:
    """Return the ranges of the inputs of layers, and of the shortcuts of residual sums, by name."""
    watched: dict[str, tuple[nn.Module, int]] = {name: (layer, 0) for name, layer in quantizable(folded).items()}
    watched |= {each.add: (folded.get_submodule(each.add), each.shortcut) for each in residuals(folded)}
    ranges = {name: _Range() for name in watched}
    with contextlib.ExitStack() as stack:
        for name, (layer, place) in watched.items():
            hook = lambda _, given, name=name, place=place: ranges[name].add(given[place])  # noqa: E731
            stack.callback(layer.register_forward_pre_hook(hook).remove)
        _batches(folded, inputs, "ranges", progress)
    return ranges


def _with_scales(folded: Network, ranges: dict[str, _Range], wide: Sequence[str]) -> Network:
    """Return the network with all layers quantised."""
    made, _ = replicate(folded)
    quantized_form(made, wide)
    for name, layer in made.named_modules():
        if isinstance(layer, QuantizedConv2d | QuantizedLinear | QuantizedAdd):
            scale, zero_point = ranges[name].scale()
            layer.input_scale.fill_(scale)
            layer.input_zero_point.fill_(zero_point)
    return made


def _with_wide(folded: Network, full: Network, ranges: dict[str, _Range], wide: Sequence[str]) -> Network:
    """Return the network with the layers of `full`, but those named in `wide` as they were."""
    made = _with_scales(folded, ranges, wide)
    for name, layer in full.named_modules():
        if isinstance(layer, QuantizedConv2d | QuantizedLinear) and name not in wide:
            replace_layer(made, name, copy.copy(layer))
    return made


def _correct_biases(folded: Network, full: Network, inputs: Tensor, progress: Progress) -> dict[str, float]:
    """Subtract from each quantised layer's bias the mean error of its outputs; return the noise that is left."""
    layers = quantizable(folded)
    shift: dict[str, Tensor] = {}
    sums: dict[str, list[float]] = {name: [0.0, 0.0, 0.0, 0.0] for name in layers}
    counts: dict[str, int] = dict.fromkeys(layers, 0)

    def compare(name: str, given: tuple[Tensor, ...], wanted: Tensor) -> None:
        rounded: Tensor = full.get_submodule(name)(given[0])
        error = (rounded - wanted).movedim(1, 0).flatten(1).double()
        values = wanted.double()
        shift[name] = shift.get(name, 0) + error.sum(1)
        count = torch.tensor(values.numel())
        for place, number in enumerate((error.square().sum(), values.sum(), values.square().sum(), count)):
            sums[name][place] += float(number)
        counts[name] += error.shape[1]

    with contextlib.ExitStack() as stack:
        for name, layer in layers.items():
            hook = lambda _, given, wanted, name=name: compare(name, given, wanted)  # noqa: E731
            stack.callback(layer.register_forward_hook(hook).remove)
        _batches(folded, inputs, "biases", progress)
    noise = {}
    for name in shift:
        mean, rounding = shift[name] / counts[name], full.get_submodule(name)
        rounding.bias = nn.Parameter((rounding.get_parameter("bias").detach() - mean).float(), requires_grad=False)
        squares, total, total_squares, count = sums[name]
        left = max(0.0, squares - float(mean.square().sum()) * counts[name])
        spread = total_squares - total * total / count
        noise[name] = (left / spread) ** 0.5 if spread > 0 else 0.0
    return noise


def _chances(network: Network, inputs: Tensor, card: Card) -> Tensor:
    """Return probabilities (N, classes)."""
    with torch.inference_mode():
        return torch.cat([probabilities(network(batch), card) for batch in torch.split(inputs, BATCH)])


def _agreement(wanted: Tensor, found: Tensor, images: int, wide: Sequence[str]) -> Quantization:
    five = min(5, wanted.shape[1])
    best = (wanted.argmax(1) == found.argmax(1)).double().mean()
    tops = [each.topk(five).indices.sort().values for each in (wanted, found)]
    difference = (wanted - found).abs()
    return Quantization(
        pictures=images,
        images=len(wanted),
        same_best=float(best),
        same_five=float((tops[0] == tops[1]).all(1).double().mean()),
        largest=float(difference.max()),
        mean=float(difference.amax(1).double().mean()),
        wide=tuple(wide),
    )

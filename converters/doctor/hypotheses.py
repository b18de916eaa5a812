"""Hypotheses on converted weights that are wrong although every shape fits, grouped into families.

A change is a pure function from (state dict, card) to (state dict, card). Families affect different things, so changes
of different families commute, and at most one change per family makes sense at a time.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from torch import Tensor, nn

from convnets_torch.card import Card
from convnets_torch.images.preprocessing import (
    CAFFE_MEAN_RGB,
    GENERAL,
    IMAGENET_MEAN,
    IMAGENET_STD,
    PRESETS,
    Preprocessing,
    preset,
)
from convnets_torch.networks import NETWORKS, Network
from convnets_torch.wordnet import synsets

State = Mapping[str, Tensor]
Triple = tuple[float, float, float]

ALIKE = 0.01  # relative difference below which epsilons, and for labels pixel values, cannot be told apart


@dataclass(frozen=True)
class Change:
    """One hypothesis of one family.

    Attributes:
        family: "kernels", "flatten", "channels", "values", "lrn", "stride", "epsilon", "pool", "resize" or "classes".
        name: short description of the change, as recorded in the card: "kernels turned by 180 degrees".
        finding: the fault as a clause: "kernels are flipped".
        of_input: whether only the preprocessing changes, not the weights or the builder's arguments.
        apply: (state dict, card) -> (state dict, card); does not modify its arguments.
        usual: False for values that no released weights of the network had; usual changes are preferred.
        rows: if only the last layer's rows change, the remaining rows in their new order; else None.
    """

    family: str
    name: str
    finding: str
    of_input: bool
    apply: Callable[[State, Card], tuple[State, Card]] = field(compare=False, repr=False)
    usual: bool = True
    rows: tuple[int, ...] | None = field(default=None, repr=False)


def families(network: Network, card: Card, *, exact: bool) -> dict[str, tuple[Change, ...]]:
    """Return all applicable changes by family; families without a change are left out.

    Args:
        network: the network that the card describes; its weights are not read.
        card: card of the file as it is.
        exact: whether pixel scalings that differ by less than 1 % are separate hypotheses. Recorded outputs can
            distinguish them; expected answers cannot, and then the network's own presets take precedence.
    """
    arguments = _arguments(card)
    found = {
        "kernels": _kernels(network),
        "flatten": _flatten(network),
        "channels": (_channels(card.preprocessing),),
        "values": _values(card, exact=exact),
        "lrn": tuple(_lrn(arguments)),
        "stride": _choices("stride", "stride_in", arguments, {"1x1": "the first 1x1", "3x3": "the 3x3"}, STRIDE),
        "epsilon": tuple(_epsilons(arguments)),
        "pool": _choices("pool", "pool_padding", arguments, {True: "padded", False: "not padded"}, POOL),
        "resize": (_resize(card.preprocessing),),
        "classes": tuple(_classes(network, card)),
    }
    return {family: changes for family, changes in found.items() if changes}


def _arguments(card: Card) -> dict[str, Any]:
    """Return the builder's arguments, including defaults."""
    parameters = inspect.signature(NETWORKS[card.network]).parameters.values()
    defaults = {each.name: each.default for each in parameters if each.default is not each.empty}
    return {**defaults, **card.arguments}


def _argument(family: str, key: str, value: object, name: str, finding: str) -> Change:
    """Another value of an argument of the builder."""
    return Change(
        family,
        name,
        finding,
        False,
        lambda state, card: (state, replace(card, arguments={**card.arguments, key: value})),
    )


def with_background(card: Card) -> bool:
    """Return whether the outputs are probably ImageNet's 1,000 classes and a background class."""
    return card.classes == 1001 and card.class_names is None


def _classes(network: Network, card: Card) -> list[Change]:
    """Other orders of the outputs than the card's class names: shifted by one, sorted, or with a background class."""
    last = next((name for name, layer in reversed([*network.named_modules()]) if isinstance(layer, nn.Linear)), None)
    if last is None or card.classes < 2:
        return []
    if with_background(card):
        found = "the {place} of 1,001 outputs is the background, the others are ImageNet's classes"
        return [
            _with_rows(last, f"background class {place} left out", found.format(place=place), rows)
            for place, rows in (("first", range(1, 1001)), ("last", range(1000)))
        ]
    numbers = range(card.classes)
    orders = {"shifted by one": [*numbers[1:], 0], "shifted back by one": [card.classes - 1, *numbers[:-1]]}
    texts = [synsets.words(number) for number in numbers] if card.imagenet else list(card.class_names or ())
    sorts: dict[str, Callable[[int], Any]] = {
        "sorted by name": lambda number: texts[number],
        "sorted by name without capitals": lambda number: texts[number].casefold(),
        "sorted by the numbers in names": lambda number: [
            (int(digits or -1), word) for word, digits in re.findall(r"(\D*)(\d*)", texts[number])
        ],
    }
    if card.class_names is not None:
        for name, key in sorts.items():  # output k is the k-th class in sorted order
            places = {number: place for place, number in enumerate(sorted(numbers, key=key))}
            orders[name] = [places[number] for number in numbers]
    orders["from last to first"] = [*numbers[::-1]]
    changes: dict[tuple[int, ...], Change] = {}
    for name, rows in orders.items():
        finding = f"outputs are in another order than the card's classes: {name}"
        changes.setdefault(tuple(rows), _with_rows(last, f"outputs {name}", finding, rows))
    changes.pop(tuple(numbers), None)  # the card's own order
    return [*changes.values()]


def _with_rows(last: str, name: str, finding: str, rows: Sequence[int]) -> Change:
    """Keep these rows of the last layer, possibly fewer than it has."""

    def apply(state: State, card: Card) -> tuple[State, Card]:
        taken = {key: state[key][list(rows)] for key in (f"{last}.weight", f"{last}.bias")}
        if len(rows) == card.classes:
            return {**state, **taken}, card
        arguments = {**card.arguments, "classes": len(rows)}
        if "head" in arguments:
            *steps, _ = arguments["head"]
            arguments["head"] = (*steps, ("dense", len(rows)))
        return {**state, **taken}, replace(card, arguments=arguments, class_names="imagenet-1k")

    return Change("classes", name, finding, False, apply, rows=tuple(rows))


def _kernels(network: Network) -> tuple[Change, ...]:
    """All kernels larger than 1x1 rotated by 180 degrees: Theano convolves, PyTorch cross-correlates."""
    names = [name for name, array in network.state_dict().items() if array.dim() == 4 and array.shape[2:].numel() > 1]

    def apply(state: State, card: Card) -> tuple[State, Card]:
        return {**state, **{name: state[name].flip(2, 3) for name in names}}, card

    change = Change("kernels", "kernels turned by 180 degrees", "kernels are flipped", False, apply)
    return (change,) if names else ()


def _flatten(network: Network) -> tuple[Change, ...]:
    """Other orders of the columns of the first dense layer; PyTorch expects channel, height, width."""
    if network.head is None:
        return ()
    layers = [
        (name, layer)
        for name, layer in network.head.named_modules()
        if next(layer.parameters(recurse=False), None) is not None or isinstance(layer, nn.AvgPool2d | nn.MaxPool2d)
    ]
    height, width = network.window
    if not layers or not isinstance(layers[0][1], nn.Linear) or height * width == 1:
        return ()
    key = f"head.{layers[0][0]}.weight"
    units, inputs = layers[0][1].weight.shape
    channels = inputs // (height * width)
    if channels == 1:
        return ()

    def permuted(shape: tuple[int, ...], order: tuple[int, ...]) -> Callable[[State, Card], tuple[State, Card]]:
        def apply(state: State, card: Card) -> tuple[State, Card]:
            rows = state[key].reshape(units, *shape).permute(0, *order)
            return {**state, key: rows.reshape(units, inputs)}, card

        return apply

    from_last, to_last = permuted((height, width, channels), (3, 1, 2)), permuted((channels, height, width), (2, 3, 1))
    name, found = "first dense layer permuted", "the first dense layer"
    order = "height, width, channel"
    return (
        Change("flatten", f"{name} from channels-last", f"{found} reads {order}", False, from_last),
        Change(
            "flatten", f"{name} back to channels-last", f"{found} was permuted as if it read {order}", False, to_last
        ),
    )


def _channels(rule: Preprocessing) -> Change:
    """The other channel order, RGB or BGR; each colour keeps its mean and standard deviation."""
    other = "bgr" if rule.channels == "rgb" else "rgb"

    def apply(state: State, card: Card) -> tuple[State, Card]:
        mean, std = card.preprocessing.mean[::-1], card.preprocessing.std[::-1]
        return state, _with_rule(card, channels=other, mean=mean, std=std)

    finding = f"colours must be {other.upper()}, not {rule.channels.upper()}"
    return Change("channels", f"channels {other}", finding, True, apply)


@dataclass(frozen=True)
class PixelScaling:
    """Scaling of pixels, 0 to 255: (pixel * scale - mean) / std, with mean and std in RGB order."""

    words: str
    scale: float
    mean: Triple
    std: Triple

    @classmethod
    def of(cls, rule: Preprocessing, words: str) -> PixelScaling:
        step = 1 if rule.channels == "rgb" else -1
        mean, std = cast(Triple, rule.mean[::step]), cast(Triple, rule.std[::step])
        return cls(words, rule.scale, mean, std)

    def ends(self) -> list[tuple[float, float]]:
        """Return the scaled values of black and white, for each colour."""
        return [(-mean / std, (255 * self.scale - mean) / std) for mean, std in zip(self.mean, self.std, strict=True)]

    def apply(self, state: State, card: Card) -> tuple[State, Card]:
        step = 1 if card.preprocessing.channels == "rgb" else -1
        return state, _with_rule(card, scale=self.scale, mean=self.mean[::step], std=self.std[::step])


ONE: Triple = (1.0, 1.0, 1.0)
NOTHING: Triple = (0.0, 0.0, 0.0)
GENERIC = (
    PixelScaling("0 to 255, nothing subtracted", 1.0, NOTHING, ONE),
    PixelScaling("0 to 255, Caffe's mean subtracted", 1.0, CAFFE_MEAN_RGB, ONE),
    PixelScaling("0 to 1", 1 / 255, NOTHING, ONE),
    PixelScaling("-1 to 1", 1 / 127.5, ONE, ONE),
    PixelScaling("0 to 1, torchvision's mean and deviation", 1 / 255, IMAGENET_MEAN, IMAGENET_STD),
    PixelScaling("(x - 127) / 128", 1.0, (127.0, 127.0, 127.0), (128.0, 128.0, 128.0)),
)


def _values(card: Card, *, exact: bool) -> tuple[Change, ...]:
    """Scale, mean and std from the network's presets, other common ones, and the card's with RGB and BGR swapped."""
    as_it_is = PixelScaling.of(card.preprocessing, "as the card says")
    own = [PixelScaling.of(preset(card.network, name), f"as in the preset {name}") for name in PRESETS[card.network][1]]
    words = "as in the card with red and blue swapped"
    swapped = PixelScaling(words, as_it_is.scale, as_it_is.mean[::-1], as_it_is.std[::-1])
    tried = [as_it_is]
    for each in (*own, *GENERIC, swapped):
        if not any(_alike(each, other, 1e-6 if exact else ALIKE) for other in tried):
            tried.append(each)
    finding = "pixel values must be {}, not as the card says"
    return tuple(
        Change("values", f"values {each.words}", finding.format(each.words), True, each.apply, usual=each in own)
        for each in tried[1:]
    )


def _alike(one: PixelScaling, other: PixelScaling, tolerance: float) -> bool:
    """Return whether black and white scale to nearly the same values, relative to the range between them."""
    return all(
        abs(a - b) <= tolerance * abs(first[1] - first[0])
        for first, second in zip(one.ends(), other.ends(), strict=True)
        for a, b in zip(first, second, strict=True)
    )


def _lrn(arguments: Mapping[str, Any]) -> Sequence[Change]:
    """LRN alpha per neighbour (convnets-keras, Theano) or divided by their number (Caffe, PyTorch)."""
    if "lrn" not in arguments:
        return ()
    size, alpha, beta, k = arguments["lrn"]
    return [
        _argument(
            "lrn", "lrn", (size, new, beta, k), f"LRN alpha {new:.6g}", f"LRN alpha is {new:.6g}, not {alpha:.6g}"
        )
        for new in (alpha * size, alpha / size)
    ]


def _epsilons(arguments: Mapping[str, Any]) -> Sequence[Change]:
    """Common batch norm epsilons; of 1.001e-5 and 1e-5, which cannot be told apart, only the first is tried."""
    if "epsilon" not in arguments:
        return ()
    epsilon = arguments["epsilon"]
    tried = [epsilon]
    for other in EPSILONS[arguments.get("stride_in")]:
        if all(abs(other - one) > ALIKE * one for one in tried):
            tried.append(other)
    finding = "the epsilon of batch normalisation is {:g}, not {:g}"
    return [
        _argument("epsilon", "epsilon", other, f"batch-norm epsilon {other:g}", finding.format(other, epsilon))
        for other in tried[1:]
    ]


# Batch norm epsilons by `stride_in`, likeliest first: Keras's default, its ResNet50's, and PyTorch's default (3x3).
EPSILONS = {None: (1e-3, 1e-5), "1x1": (1e-3, 1.001e-5), "3x3": (1e-5, 1e-3)}
STRIDE = "each stage strides in {new} convolution, not in {old}"
POOL = "the first pool reads a map that is {new}, not {old}"


def _choices(
    family: str, key: str, arguments: Mapping[str, Any], words: Mapping[Any, str], sentence: str
) -> tuple[Change, ...]:
    """The other values of a builder argument with few choices."""
    if key not in arguments:
        return ()
    old = words[arguments[key]]
    return tuple(
        _argument(family, key, value, f"{key} {value}", sentence.format(new=new, old=old))
        for value, new in words.items()
        if value != arguments[key]
    )


def _resize(rule: Preprocessing) -> Change:
    other = "stretch" if rule.resize_rule == "shorter-side" else "shorter-side"

    def apply(state: State, card: Card) -> tuple[State, Card]:
        return state, _with_rule(card, resize_rule=other)

    words = {"stretch": "stretched to a square", "shorter-side": "resized with their aspect kept"}
    finding = f"pictures must be {words[other]}, not {words[rule.resize_rule]}"
    return Change("resize", f"resize rule {other}", finding, True, apply)


def _with_rule(card: Card, **fields: Any) -> Card:
    """Return the card with a changed preprocessing, named after the preset that it equals, or "custom"."""
    rule = replace(card.preprocessing, **fields)
    for name in (*PRESETS[card.network][1], *GENERAL):
        if replace(known := preset(card.network, name, rule.size), name=rule.name) == rule:
            return replace(card, preprocessing=known)
    return replace(card, preprocessing=replace(rule, name="custom"))

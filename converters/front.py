"""The preprocessing that a model does itself: the operations between its input and its first layer with weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from converters.options import Questions, image_shape, named_preprocessing
from converters.plan import Wishes
from converters.readers.keras_file import KerasFile
from converters.readers.keras_graph import Graph, Node, Operand
from converters.readers.keras_words import CODE, IDENTITIES, number_of
from convnets_torch.images.preprocessing import Channels, Interpolation, Preprocessing, general, presets_for

AFFINE = ("ops.Add", "ops.Subtract", "ops.Multiply", "ops.TrueDivide", "ops.Divide")
RECOGNISED = ("keras-caffe", "keras-tf", "torchvision")  # modes of `preprocess_input`
CLOSE = 1e-4  # relative; configs hold float32
ORDERS: dict[tuple[int, ...], Channels] = {(0, 1, 2): "rgb", (2, 1, 0): "bgr", (0,): "grey", (0, 1, 2, 3): "rgba"}
NOTES = {
    1: "pictures are read as grey, since the model's input has one channel",
    4: "pictures are read as RGBA, since the model's input has four channels",
}


@dataclass(frozen=True)
class Front:
    """What a model does to pictures before its first layer with weights.

    Attributes:
        nodes: names of the graph's nodes that are part of it, with the input; their output is the network's input.
        scale, offset: channel c becomes scale[c] * pixel[order[c]] + offset[c], for pixels 0 to 255: RGB, grey or RGBA.
        order: source channel of each channel.
        affine: whether it changes values.
        size: (height, width) of the input in pixels; None if the model takes any.
        interpolation: of a Resizing layer, if it has one.
        given: the preprocessing that the user named.
        cut: whether the user chose an inner layer or an output, so that some arrays are unused.
        notes: on assumptions.
        skipped: names of layers of code that are assumed to be part of the given preprocessing.
        resized: (height, width) of pictures before a CenterCrop to `size`, if it has one.
    """

    path: Any
    nodes: tuple[str, ...]
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    order: tuple[int, ...]
    affine: bool
    size: tuple[int, int] | None
    interpolation: Interpolation | None
    given: str | None
    cut: bool
    notes: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    resized: tuple[int, int] | None = None

    @property
    def channels(self) -> int:
        """Number of channels of the input."""
        return len(self.scale)

    def preprocessing(
        self, size: tuple[int, int], network: str, released: str | None, questions: Questions
    ) -> tuple[Preprocessing, list[str]]:
        """Return the preprocessing for the card, and notes on the assumptions made.

        It is asked if the model does not do it, and these are no released weights.

        Args:
            size: (height, width) of the network's input in pixels.
            network: its name, on which the meaning of presets depends.
            released: preset of the released weights, if these are weights with their layers.

        Raises:
            ValueError: the user names it although the model does it, or it has another size.
        """
        side = size[0] if size[0] == size[1] else size
        if self.affine:
            if self.given is not None:
                raise ValueError(
                    f"{self.path}: its model normalises pictures itself ({', '.join(self.nodes[1:])}); leave out the"
                    " preprocessing"
                )
            rule = self._cropped(self._rule(side))
            stretched = (
                [] if rule.name != "custom" else ["pictures are stretched to the input size, as Keras's datasets do"]
            )
            return rule, [*self.notes, *stretched]
        if self.given is None and released is None:
            known = presets_for(self.channels)
            reason = "it does not say how its pictures were preprocessed"
            questions.ask("preprocessing", reason, f"--preprocessing with a JSON file or one of {', '.join(known)}")
            return general(known[0], side, self.channels), []
        if self.given is None:
            rule = named_preprocessing(released, network, size, self.channels)
            return rule, [*self.notes, f"pictures are preprocessed with {rule.name}, as for the released weights with"
                          " these layers; change it with --preprocessing"]  # fmt: skip
        asked = "input_size" in questions.asked
        rule = named_preprocessing(self.given, network, size, self.channels, sized=not asked)
        return rule if self.given.lower().endswith(".json") else self._cropped(rule), [*self.notes]

    def _cropped(self, rule: Preprocessing) -> Preprocessing:
        """Return the rule with a CenterCrop of the model."""
        if self.resized is None:
            return rule
        side = self.resized[0] if self.resized[0] == self.resized[1] else self.resized
        return replace(rule, name="custom", resize=side, resize_rule="stretch")

    def _rule(self, side: int | tuple[int, int]) -> Preprocessing:
        channels = ORDERS.get(self.order)
        if channels is None:
            raise ValueError(f"{self.path}: its model reorders the colours to {self.order}, which is not supported")
        if min(map(abs, self.scale)) == 0:
            raise ValueError(f"{self.path}: its model multiplies pixels by 0")
        for name in RECOGNISED if self.interpolation is None else ():
            if name not in presets_for(self.channels):
                continue
            rule = general(name, side, self.channels)
            scale = [rule.scale / each for each in rule.std]
            offset = [-mean / each for mean, each in zip(rule.mean, rule.std, strict=True)]
            if rule.channels == channels and _alike(scale, self.scale) and _alike(offset, self.offset):
                return rule
        how = self.interpolation or "bilinear"
        if len(set(self.scale)) == 1:
            mean: Any = tuple(0.0 - each for each in self.offset)  # never -0.0
            return Preprocessing("custom", side, side, "stretch", how, channels, mean, scale=self.scale[0])
        std: Any = tuple(1 / each for each in self.scale)
        mean = tuple(-offset * each for offset, each in zip(self.offset, std, strict=True))
        return Preprocessing("custom", side, side, "stretch", how, channels, mean, std)


def _alike(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(abs(a - b) <= CLOSE * max(abs(a), abs(b)) for a, b in zip(one, other, strict=True))


def front_of(file: KerasFile, graph: Graph, wishes: Wishes, questions: Questions) -> Front:
    """Follow the model from its input as far as each operation changes pixels one by one.

    If a layer of code stands in front, the preprocessing that it is part of is asked.

    Raises:
        ValueError: the input is no image of 1, 3 or 4 channels.
    """
    channels, size = image_shape(file, graph)
    flat = size if size is not None and len(graph.nodes[0].settings["batch_shape"]) == 3 else None  # no channels yet
    readers: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for source in node.inputs:
            readers.setdefault(source, []).append(node)
    scale, offset, order = [1.0] * channels, [0.0] * channels, list(range(channels))
    found, here, affine, interpolation = ["input"], "input", False, None
    resized: tuple[int, int] | None = None
    notes = [NOTES[channels]] if channels in NOTES else []
    skipped: list[str] = []
    while here != graph.output:
        after = readers.get(here, [])
        if channels == 3 and (flipped := _reversed(after, readers, graph.data_format == "channels_first")):
            nodes, picked = flipped
            order = [order[one] for one in picked]
            scale, offset = ([each[one] for one in picked] for each in (scale, offset))
            found, here, affine = [*found, *nodes], nodes[-1], True
            continue
        if len(after) != 1 or len(after[0].inputs) != 1:
            break
        [node] = after
        if node.kind in CODE:
            if wishes.preprocessing is None:
                reason = f"{node.own_name} ({node.kind}) changes the input in a way that is not read"
                questions.ask("preprocessing", reason, "the whole preprocessing with --preprocessing")
            skipped.append(node.name)
            notes.append(
                f"{node.own_name} before the first convolution is assumed to be part of the preprocessing you named"
            )
        elif node.kind == "Resizing" and here == "input":
            size, interpolation = _resizing(file, node)
            notes.append(
                f"{node.own_name} becomes part of the preprocessing, which smooths large pictures before shrinking"
            )
        elif node.kind == "CenterCrop" and (cropped := _cropped(node, size)) is not None:
            resized, size = resized or size, cropped
        elif flat is not None and _adds_channel(node, flat, graph):
            flat = None
        elif node.kind in IDENTITIES or node.kind == "ops.Cast":
            if node.kind.startswith("Random"):
                notes.append(f"{node.own_name} is left out, since it acts in training alone")
        elif (numbers := _affine(node, channels)) is not None:
            factor, summand = numbers
            scale = [one * by for one, by in zip(scale, factor, strict=True)]
            offset = [one * by + more for one, by, more in zip(offset, factor, summand, strict=True)]
            affine = True
        else:
            break
        found.append(node.name)
        here = node.name
    if flat is not None and any(node.kind != "Flatten" for node in readers.get(here, [])):
        shape = graph.nodes[0].settings["batch_shape"]
        raise ValueError(
            f"{file.path}: its model's input is {shape!r}, without channels, and {readers[here][0].name} reads it; only"
            f" Flatten, and Reshape to {flat[0]}x{flat[1]} pixels of one channel, are supported there"
        )
    return Front(
        file.path, tuple(found), tuple(scale), tuple(offset), tuple(order), affine or interpolation is not None, size,
        interpolation, wishes.preprocessing, wishes.output is not None or wishes.until is not None, tuple(notes),
        tuple(skipped), resized,
    )  # fmt: skip


def _cropped(node: Node, size: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return the size after a CenterCrop; None if it enlarges pictures."""
    wanted = int(node.settings["height"]), int(node.settings["width"])
    fits = size is not None and all(0 < less <= side for less, side in zip(wanted, size, strict=True))
    return wanted if fits else None


def _adds_channel(node: Node, size: tuple[int, int], graph: Graph) -> bool:
    """Return whether a layer gives images (height, width) of `size` an axis of channels, in the graph's format."""
    if node.kind != "Reshape":
        return False
    wanted = (1, *size) if graph.data_format == "channels_first" else (*size, 1)
    target = node.settings["target_shape"]
    return len(target) == 3 and all(side in (-1, own) for side, own in zip(target, wanted, strict=True))


def _reversed(
    after: Sequence[Node], readers: Mapping[str, Sequence[Node]], first: bool
) -> tuple[list[str], list[int]] | None:
    """Return the nodes that reorder the channels, the `first` axis or the last, and the source channel of each."""
    if len(after) == 1 and _channels_of(after[0], first) == slice(None, None, -1):
        return [after[0].name], [2, 1, 0]
    if len(after) == 3:
        stacks = {one.name: one for node in after for one in readers.get(node.name, [])}
        keys = {node.name: _channels_of(node, first) for node in after}
        if len(stacks) == 1:
            [stack] = stacks.values()
            picked: list[Any] = [keys.get(source) for source in stack.inputs]
            axis = stack.settings.get("axis")
            if stack.kind == "ops.Stack" and axis == (1 if first else -1) and sorted(picked, key=str) == [0, 1, 2]:
                return [*(node.name for node in after), stack.name], picked
    return None


def _channels_of(node: Node, first: bool) -> Any:
    """Return the number or slice of the channels that x[..., number] picks, or x[:, number, :] of channels first."""
    key = node.operands[1] if node.kind == "ops.GetItem" and len(node.operands) == 2 else None
    if not isinstance(key, list) or len(key) < 2:
        return None
    if first:
        all_else = key[0] == slice(None) and all(one in (slice(None), "...") for one in key[2:])
    else:
        all_else = len(key) == 2 and key[0] == "..."
    return key[1] if all_else else None


def _affine(node: Node, channels: int) -> tuple[list[float], list[float]] | None:
    """Return (factors, summands) of an operation that scales and shifts the channels; None for others."""
    if node.kind == "Rescaling":
        scale, offset = node.setting("scale", default=1.0), node.setting("offset", default=0.0)
        numbers = _of_each(scale, channels), _of_each(offset, channels)
        return None if None in numbers else numbers  # type: ignore[return-value]
    if node.kind == "Normalization":
        mean, variance = (_of_each(node.settings.get(name), channels) for name in ("mean", "variance"))
        if mean is None or variance is None or node.settings.get("invert"):
            return None
        deviation = [max(each**0.5, 1e-7) for each in variance]
        return [1 / each for each in deviation], [-one / each for one, each in zip(mean, deviation, strict=True)]
    if node.kind not in AFFINE or len(node.operands) < 2 or not isinstance(node.operands[0], Operand):
        return None
    number = _of_each(node.operands[1], channels)
    if number is None:
        return None
    ones, zeros = [1.0] * channels, [0.0] * channels
    if node.kind == "ops.Add":
        return ones, number
    if node.kind == "ops.Subtract":
        return ones, [-each for each in number]
    return (number if node.kind == "ops.Multiply" else [1 / each for each in number]), zeros


def _of_each(value: Any, channels: int) -> list[float] | None:
    """Return one number per channel from a number or a nested list; None for anything else."""
    while isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if isinstance(value, list | tuple) and len(value) == channels:
        inner = [_of_each(each, channels) for each in value]
        return None if None in inner else [each[0] for each in inner if each is not None]
    if isinstance(value, bool) or not isinstance(value, int | float | Mapping):
        return None
    return [number_of(value)] * channels


def _resizing(file: KerasFile, node: Node) -> tuple[tuple[int, int], Interpolation]:
    settings = node.settings
    if settings.get("crop_to_aspect_ratio") or settings.get("pad_to_aspect_ratio"):
        raise ValueError(f"{file.path}: {node.own_name} (Resizing) keeps the aspect ratio, which is not supported")
    how = settings.get("interpolation", "bilinear")
    if how not in ("nearest", "bilinear", "bicubic"):
        raise ValueError(f"{file.path}: {node.own_name} resizes by {how!r}; known: nearest, bilinear, bicubic")
    return (int(settings["height"]), int(settings["width"])), how

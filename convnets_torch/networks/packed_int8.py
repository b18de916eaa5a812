"""Quantised layers that multiply integers: weights packed in oneDNN's layout, fused with activation and residual sum.

PyTorch's compiler uses the same operations, of the namespace `torch.ops.onednn`, for quantised programs. Between two
such layers the map stays 8-bit: a layer whose output only quantised layers read writes it as their integers (`gives`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional as F

from convnets_torch.networks.packed import FUSIBLE, PackedAdd, PackedConv2d, PackedLinear, _Packed, fusible
from convnets_torch.networks.quantized import (
    LEAST,
    MOST,
    QuantizedAdd,
    QuantizedConv2d,
    QuantizedLinear,
    replace_layer,
    residuals,
)
from convnets_torch.networks.tracing import graphs_of, pairs

OPERATIONS = ("qconv2d_pointwise", "qconv_prepack", "qlinear_pointwise", "qlinear_prepack")


class Scale(NamedTuple):
    """What the integers of a map stand for: (integer - zero_point) * scale."""

    scale: float
    zero_point: int


# Whether layers of this thread write numbers, not integers, since their outputs are recorded.
numbers_wanted: ContextVar[bool] = ContextVar("numbers_wanted", default=False)
PLAIN = Scale(1.0, 0)  # of outputs that are not integers


def is_available() -> bool:
    """Return whether this PyTorch has the operations, and the processor instructions for them (VNNI or AMX)."""
    ask = getattr(torch.cpu, "_is_vnni_supported", None)
    return ask is not None and bool(ask()) and all(hasattr(torch.ops.onednn, name) for name in OPERATIONS)


def to_integers(cells: Tensor, scale: Scale) -> Tensor:
    """Round a map to the integers of a scale, as `fake_quantize_per_tensor_affine` does; integers stay as they are."""
    if cells.dtype == torch.uint8:
        return cells
    scaled = cells.to(torch.float32) * (1 / torch.tensor(scale.scale))
    return scaled.round_().add_(scale.zero_point).clamp_(LEAST, MOST).to(torch.uint8)


def from_integers(cells: Tensor, scale: Scale, dtype: torch.dtype) -> Tensor:
    """Return the values that integers of a scale stand for; other maps are returned as they are."""
    if cells.dtype != torch.uint8:
        return cells
    return cells.to(torch.float32).sub_(scale.zero_point).mul_(scale.scale).to(dtype)


class _Integers(_Packed):
    """The part that both layers share."""

    takes: Scale
    gives: Scale | None
    bias: nn.Parameter

    def _adopt(
        self, layer: QuantizedConv2d | QuantizedLinear, activation: nn.Module | None, dtype: torch.dtype
    ) -> None:
        self.quantized: tuple[Any] = (layer,)  # in tuples, so that they are neither submodules nor buffers
        self.zeros = (torch.zeros(len(layer.weight_scale), dtype=torch.int32),)
        self.takes, self.gives = Scale(float(layer.input_scale), int(layer.input_zero_point)), None
        self.dtype, self.shape = dtype, tuple(layer.weight_int8.shape)
        self.bias = layer.bias
        self.fuse(activation)
        self._layout = [(None, layer.weight_int8)]

    @property
    def weight(self) -> Tensor:
        """The weights that the integers stand for."""
        weight: Tensor = self.quantized[0].weight
        return weight

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_layout": [(None, self.quantized[0].weight_int8)]}

    def _output(self, gives: Scale | None) -> tuple[float, int, torch.dtype]:
        return (*PLAIN, self.dtype) if gives is None or numbers_wanted.get() else (*gives, torch.uint8)


class PackedInt8Conv2d(_Integers, PackedConv2d):
    """A convolution of integers with an optional fused activation.

    Attributes:
        takes: scale of its inputs.
        gives: scale of its outputs; None if they are not integers but of dtype `dtype`.

    Args:
        layer: on the CPU.
        activation: one of `packed.FUSIBLE`, or None.
        dtype: of outputs.
    """

    def __init__(self, layer: QuantizedConv2d, activation: nn.Module | None, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.in_channels, self.out_channels, self.groups = layer.in_channels, layer.out_channels, layer.groups
        self.kernel_size, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        assert not isinstance(layer.padding, str)
        self.padding = layer.padding
        self._adopt(layer, activation, dtype)

    def forward(self, cells: Tensor) -> Tensor:
        return self._run(cells, self.stride, self.padding, self.dilation, self.gives)

    def convolve(self, cells: Tensor, stride: Any, padding: Any, dilation: Any) -> Tensor:
        return self._run(cells, stride, padding, dilation, None)

    def _run(self, cells: Tensor, stride: Any, padding: Any, dilation: Any, gives: Scale | None) -> Tensor:
        if not isinstance(cells, Tensor):  # the dry run of `fcn.memory`
            return F.conv2d(cells, self._blank(), None, stride, padding, dilation, self.groups)
        layer = self.quantized[0]
        if torch.is_grad_enabled() and cells.requires_grad:
            wide = layer.rounded(cells)
            return self._finished(F.conv2d(wide, self.weight, self.bias, stride, padding, dilation, self.groups))
        given, numbers = self._given(cells, stride, padding, dilation)
        made: Tensor = torch.ops.onednn.qconv2d_pointwise(
            *given, layer.bias, *numbers, *self._output(gives), *self.fused, ""
        )
        return made

    def add_rounded(self, cells: Tensor, shortcut: Tensor, scale: Scale, gives: Scale | None) -> Tensor:
        """Convolve, add a shortcut rounded to `scale`, and apply the activation."""
        layer = self.quantized[0]
        if not isinstance(cells, Tensor):  # the dry run of `fcn.memory`
            return F.conv2d(cells, self._blank()) + shortcut
        rounded = to_integers(shortcut, scale)
        if torch.is_grad_enabled() and (cells.requires_grad or shortcut.requires_grad):
            passed = shortcut + (from_integers(rounded, scale, shortcut.dtype) - shortcut).detach()
            return self._finished(F.conv2d(layer.rounded(cells), self.weight, self.bias) + passed)
        if gives is None or numbers_wanted.get():
            rounded, scale = from_integers(rounded, scale, self.dtype), PLAIN
        given, numbers = self._given(cells, (1, 1), (0, 0), (1, 1))
        made: Tensor = torch.ops.onednn.qconv2d_pointwise.binary(
            *given, rounded.contiguous(memory_format=torch.channels_last), layer.bias, *numbers, *self._output(gives),
            *scale, "sum", 1.0, *self.fused, "",
        )  # fmt: skip
        return made

    def _given(
        self, cells: Tensor, stride: Any, padding: Any, dilation: Any
    ) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Return inputs and weights, and the numbers of the convolution."""
        layer = self.quantized[0]
        integers = to_integers(cells, self.takes).contiguous(memory_format=torch.channels_last)
        numbers = (list(stride), list(padding), list(dilation), self.groups)
        wanted = (tuple(integers.shape[2:]), *map(tuple, numbers[:3]))
        made_for, weight = self._layout[0]
        if made_for != wanted:
            weight = torch.ops.onednn.qconv_prepack(
                layer.weight_int8, layer.weight_scale, *self.takes, *numbers, list(integers.shape)
            )
            self._layout[0] = (wanted, weight)
        return (integers, *self.takes, weight, layer.weight_scale, self.zeros[0]), numbers


class PackedInt8Linear(_Integers, PackedLinear):
    """A dense layer of integers with an optional fused activation; see `PackedInt8Conv2d`."""

    def __init__(self, layer: QuantizedLinear, activation: nn.Module | None, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._adopt(layer, activation, dtype)

    def rounded(self, cells: Tensor) -> Tensor:
        """Round a map before its windows are copied, each cell once."""
        if not isinstance(cells, Tensor) or (torch.is_grad_enabled() and cells.requires_grad):
            return cells
        return to_integers(cells, self.takes)

    def forward(self, values: Tensor) -> Tensor:
        if not isinstance(values, Tensor):  # the dry run of `fcn.memory`
            return F.linear(values, self._blank())
        layer = self.quantized[0]
        if torch.is_grad_enabled() and values.requires_grad:
            return self._finished(F.linear(layer.rounded(values), self.weight, self.bias))
        integers = to_integers(values, self.takes).reshape(-1, self.in_features)
        made_for, weight = self._layout[0]
        if made_for is None:
            weight = torch.ops.onednn.qlinear_prepack(weight, list(integers.shape))
            self._layout[0] = ("any number", weight)
        found: Tensor = torch.ops.onednn.qlinear_pointwise(
            integers, *self.takes, weight, layer.weight_scale, self.zeros[0], layer.bias, *self._output(self.gives),
            *self.fused, "",
        )  # fmt: skip
        return found.view(*values.shape[:-1], self.out_features)


class Int8MaxPool2d(nn.MaxPool2d):
    """A maximum pool that also takes integers."""

    def __init__(self, layer: nn.MaxPool2d) -> None:
        super().__init__(layer.kernel_size, layer.stride, layer.padding, layer.dilation, ceil_mode=layer.ceil_mode)

    def forward(self, input: Tensor) -> Tensor:
        if not isinstance(input, Tensor) or input.dtype != torch.uint8:
            return super().forward(input)
        sides = [[each] * 2 if isinstance(each, int) else list(each)
                 for each in (self.kernel_size, self.stride, self.padding, self.dilation)]  # fmt: skip
        return torch.ops.quantized.max_pool2d(input, *sides, self.ceil_mode)


class PackedInt8Add(PackedAdd):
    """A residual sum that a convolution of integers computes."""

    conv: tuple[PackedInt8Conv2d]
    gives: Scale | None = None

    def __init__(self, layer: QuantizedAdd, conv: PackedInt8Conv2d, activation: nn.Module | None) -> None:
        super().__init__(conv, layer.shortcut, activation)
        self.shortcut_takes = Scale(float(layer.input_scale), int(layer.input_zero_point))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._run(inputs, self.gives)

    def merge(self, *inputs: Tensor) -> Tensor:
        return self._run(inputs, None)

    def _run(self, inputs: tuple[Tensor, ...], gives: Scale | None) -> Tensor:
        cells, shortcut = inputs[1 - self.shortcut], inputs[self.shortcut]
        return self.conv[0].add_rounded(cells, shortcut, self.shortcut_takes, gives)


def pack(network: nn.Module, dtype: torch.dtype) -> None:
    """Replace the quantised layers of a network in place; outputs that are not integers are of `dtype`."""
    activations = dict(pairs(network, *FUSIBLE))
    sums = list(residuals(network, QuantizedConv2d))
    for name, layer in list(network.named_modules()):
        if isinstance(layer, QuantizedConv2d | QuantizedLinear):
            after = fusible(network, activations.get(name))
            made = PackedInt8Conv2d if isinstance(layer, QuantizedConv2d) else PackedInt8Linear
            replace_layer(network, name, made(layer, after, dtype))  # type: ignore[arg-type]
            if after is not None:
                replace_layer(network, activations[name], nn.Identity())
        elif type(layer) is nn.MaxPool2d:
            replace_layer(network, name, Int8MaxPool2d(layer))
    for found in sums:
        add, conv = network.get_submodule(found.add), network.get_submodule(found.conv)
        if isinstance(add, QuantizedAdd) and isinstance(conv, PackedInt8Conv2d):
            after = fusible(network, activations.get(found.add))
            replace_layer(network, found.add, PackedInt8Add(add, conv, after))
            replace_layer(network, found.conv, nn.Identity())
            if after is not None:
                replace_layer(network, activations[found.add], nn.Identity())
    for _, graph, part in graphs_of(network):
        calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
        for node in graph.nodes:
            layer = part.get_submodule(str(node.target)) if node.op == "call_module" else None
            if isinstance(layer, PACKED) and calls[node.target] == 1 and len(scales := set(_read(part, node))) == 1:
                [layer.gives] = scales


def writing_integers(network: nn.Module) -> list[nn.Module]:
    """Return the layers whose outputs are integers."""
    return [module for module in network.modules() if isinstance(module, PACKED) and module.gives is not None]


PACKED = (PackedInt8Conv2d, PackedInt8Linear, PackedInt8Add)
UNTOUCHED = (nn.Identity, nn.Dropout, Int8MaxPool2d)  # layers that integers pass


def _read(part: nn.Module, node: Node) -> Iterator[Scale | None]:
    """Yield the scales in which the readers of a layer's output take it; None for one that takes no integers."""
    for reader in node.users:
        layer = part.get_submodule(str(reader.target)) if reader.op == "call_module" else None
        if isinstance(layer, PackedInt8Conv2d | PackedInt8Linear):
            yield layer.takes
        elif isinstance(layer, PackedInt8Add):
            if reader.args[layer.shortcut] is node:
                yield layer.shortcut_takes
            if reader.args[1 - layer.shortcut] is node:
                yield layer.conv[0].takes
        elif isinstance(layer, UNTOUCHED):
            yield from _read(part, reader)
        elif isinstance(layer, nn.ZeroPad2d):
            yield from (scale if scale is not None and scale.zero_point == 0 else None for scale in _read(part, reader))
        else:
            yield None

"""Convolutions and dense layers with 8-bit weights, whose inputs are rounded to 8 bits.

These modules define what a quantised network computes, on any device and for exports: they round the input and compute
in floating point with the weights that the integers stand for. `prepare` replaces them by layers that multiply the
integers themselves, where the processor has instructions for it; sums of integers are exact, so that both give the same
but for the rounding of the last float operations.

Source: Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, arXiv:1712.05877,
section 2.1; here with signed weights, symmetric and per output channel, and unsigned inputs, per tensor.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convnets_torch.networks.layers import Add
from convnets_torch.networks.tracing import graphs_of, only_reader, replicate

LEAST, MOST = 0, 255  # of an input
MOST_WEIGHT = 127  # -128 is not used, so that the range is symmetric

AnyModule = TypeVar("AnyModule", bound=nn.Module)


Style = Literal["onnx", "openvino", "plain"]


class Exported(NamedTuple):
    """How a layer is traced: with numbers in place of tensors.

    Attributes:
        scale, zero_point: of the input.
        style: "onnx": operations that become QuantizeLinear and DequantizeLinear; "openvino": those for inputs alone,
            as its converter takes integers of weights for numbers; "plain": arithmetic that needs no other library.
    """

    scale: float
    zero_point: int
    style: Style


class Rounding(nn.Module):
    """A layer that rounds an input."""

    input_scale: Tensor
    input_zero_point: Tensor
    exported: Exported | None = None  # while the layer is exported

    def _set_input(self, scale: float, zero_point: int, device: torch.device | None = None) -> None:
        self.input_scale = nn.Buffer(torch.tensor(scale, dtype=torch.float32, device=device))
        self.input_zero_point = nn.Buffer(torch.tensor(zero_point, dtype=torch.int32, device=device))

    def rounded(self, x: Tensor) -> Tensor:
        """Round inputs to the nearest values that the integers stand for; larger and smaller ones are clipped."""
        if not isinstance(x, Tensor) or x.is_meta:
            return x
        if self.exported is not None:
            scale, zero_point, style = self.exported
            if style == "plain":
                return ((x / scale).round() + zero_point).clamp(LEAST, MOST).sub(zero_point).mul(scale)
            decomposed, numbers = torch.ops.quantized_decomposed, (scale, zero_point, LEAST, MOST, torch.uint8)
            return decomposed.dequantize_per_tensor(decomposed.quantize_per_tensor(x, *numbers), *numbers)
        wide = x.to(torch.float32)
        return torch.fake_quantize_per_tensor_affine(wide, self.input_scale, self.input_zero_point, LEAST, MOST)


class _Quantized(Rounding):
    """The part that both layers share.

    Attributes:
        weight_int8: the plain layer's weights as integers, int8.
        weight_scale: (outputs,) float32; weights are integers times this.
        input_scale: float32; inputs are (integers - zero point) times this.
        input_zero_point: int32, 0 to 255.
        bias: (outputs,) float32.
    """

    weight_int8: Tensor
    weight_scale: Tensor
    bias: Any

    def _set(self, layer: nn.Conv2d | nn.Linear, scale: float, zero_point: int) -> None:
        weight = layer.weight.detach()
        if weight.is_meta:
            integers, scales = weight.new_empty(weight.shape, dtype=torch.int8), weight.new_empty(len(weight))
        else:
            integers, scales = rounded_weights(weight)
        self.weight_int8, self.weight_scale = nn.Buffer(integers), nn.Buffer(scales)
        self._set_input(scale, zero_point, weight.device)
        bias = torch.zeros(len(weight), device=weight.device) if layer.bias is None else layer.bias.detach()
        self.bias = nn.Parameter(bias, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The weights that the integers stand for, float32."""
        if self.exported is not None and self.exported.style == "onnx":
            zeros = torch.zeros(len(self.weight_scale), dtype=torch.int64)
            return torch.ops.quantized_decomposed.dequantize_per_channel(
                self.weight_int8, self.weight_scale, zeros, 0, -MOST_WEIGHT, MOST_WEIGHT, torch.int8
            )
        shape = (-1, *(1,) * (self.weight_int8.dim() - 1))
        return self.weight_int8.to(self.weight_scale) * self.weight_scale.view(shape)


class QuantizedConv2d(_Quantized, nn.Conv2d):  # type: ignore[override]  # no weight to assign to
    """A convolution with 8-bit weights and inputs."""

    def __init__(self, layer: nn.Conv2d, scale: float = 1.0, zero_point: int = 0) -> None:
        """Quantise the weights of a convolution, whose inputs are (0 to 255, minus `zero_point`) times `scale`."""
        nn.Module.__init__(self)
        own = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
        vars(self).update({name: getattr(layer, name) for name in (*own, "_reversed_padding_repeated_twice")})
        vars(self).update(transposed=False, output_padding=(0, 0))
        self._set(layer, scale, zero_point)

    def forward(self, input: Tensor) -> Tensor:
        return self.convolve(input, self.stride, self.padding, self.dilation)

    def convolve(self, cells: Tensor, stride: Any, padding: Any, dilation: Any) -> Tensor:
        """Apply the layer with another stride, padding or dilation than its own."""
        if not isinstance(cells, Tensor):  # the dry run of `fcn.memory`
            blank = torch.empty(self.weight_int8.shape, device="meta")
            return F.conv2d(cells, blank, None, stride, padding, dilation, self.groups)
        made = F.conv2d(self.rounded(cells), self.weight, self.bias, stride, padding, dilation, self.groups)
        return made.to(cells.dtype)


class QuantizedAdd(Rounding, Add):
    """The sum of a convolution and a shortcut, which is rounded."""

    def __init__(
        self, shortcut: int, scale: float = 1.0, zero_point: int = 0, device: torch.device | None = None
    ) -> None:
        """`shortcut`: which of the two inputs is rounded."""
        super().__init__()
        self.shortcut = shortcut
        self._set_input(scale, zero_point, device)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Add two maps."""
        rounded = self.rounded(inputs[self.shortcut]).to(inputs[self.shortcut].dtype)
        return rounded + inputs[1 - self.shortcut]


class QuantizedLinear(_Quantized, nn.Linear):  # type: ignore[override]  # no weight to assign to
    """A dense layer with 8-bit weights and inputs."""

    def __init__(self, layer: nn.Linear, scale: float = 1.0, zero_point: int = 0) -> None:
        """Quantise the weights of a dense layer; arguments as for `QuantizedConv2d`."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._set(layer, scale, zero_point)

    def forward(self, input: Tensor) -> Tensor:
        if not isinstance(input, Tensor):  # the dry run of `fcn.memory`
            return F.linear(input, torch.empty(self.weight_int8.shape, device="meta"))
        return F.linear(self.rounded(input), self.weight, self.bias).to(input.dtype)


def as_convolution(layer: QuantizedLinear, channels: int, kernel: tuple[int, int]) -> QuantizedConv2d:
    """View a dense layer after a channels-first flatten as a convolution with the same integers."""
    with torch.device("meta"):
        made = QuantizedConv2d(nn.Conv2d(channels, layer.out_features, kernel))
    for name, tensor in [*layer._buffers.items(), ("bias", layer.bias)]:
        assert tensor is not None
        setattr(made, name, tensor.view(len(tensor), channels, *kernel) if name == "weight_int8" else tensor)
    made.exported = layer.exported
    return made.eval()


def rounded_weights(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights as int8, and the scale of each output (dimension 0): the largest magnitude becomes 127."""
    most = weight.flatten(1).abs().amax(1)
    scale = torch.where(most > 0, most / MOST_WEIGHT, 1.0)
    integers = torch.round(weight / scale.view(-1, *(1,) * (weight.dim() - 1)))
    return integers.to(torch.int8), scale


def quantizable(network: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Return the layers that can be quantised, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if type(module) is nn.Linear
        or (type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str))
    }


def for_export(network: AnyModule, style: Style) -> AnyModule:
    """Return a copy whose quantised layers can be traced; see `Exported`. Other networks are returned as they are."""
    if not is_quantized(network):
        return network
    importlib.import_module("torch.ao.quantization.fx._decomposed")  # registers the operations
    made, _ = replicate(network)
    for module in made.modules():
        if isinstance(module, Rounding):
            module.exported = Exported(float(module.input_scale), int(module.input_zero_point), style)
    return made


def is_quantized(network: nn.Module) -> bool:
    """Return whether a network has quantised layers."""
    return any(isinstance(module, _Quantized) for module in network.modules())


class Residual(NamedTuple):
    """A sum that the last convolution of a block can compute.

    Attributes:
        add: name of the layer that adds.
        conv: name of the convolution, whose output nothing else reads.
        shortcut: which input of the sum is the other one.
    """

    add: str
    conv: str
    shortcut: int


def residuals(network: nn.Module, kind: type[nn.Conv2d] = nn.Conv2d) -> Iterator[Residual]:
    """Yield the sums of two maps of which one is a 1x1 convolution's, each called once; fold normalisation first."""
    for prefix, graph, part in graphs_of(network):
        calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
        for node in graph.nodes:
            if node.op != "call_module" or not isinstance(part.get_submodule(str(node.target)), Add):
                continue
            if len(node.args) != 2 or node.args[0] is node.args[1] or calls[node.target] > 1:
                continue
            for place in (1, 0):  # of two convolutions, the second is the block's
                conv = only_reader(part, node.args[place])
                if conv is None or calls[conv.target] > 1:
                    continue
                layer = part.get_submodule(str(conv.target))
                if type(layer) is kind and _is_pointwise(layer):
                    yield Residual(f"{prefix}{node.target}", f"{prefix}{conv.target}", 1 - place)
                    break


def _is_pointwise(layer: nn.Conv2d) -> bool:
    return (layer.kernel_size, layer.stride, layer.padding, layer.groups) == ((1, 1), (1, 1), (0, 0), 1)


def quantized_form(network: AnyModule, wide: Collection[str]) -> AnyModule:
    """Replace the layers that can be quantised, but for those named in `wide`, in place; scales are those of no data.

    Args:
        network: with batch normalisation folded.
        wide: names of layers that stay as they are.

    Raises:
        ValueError: the network has no layer of a name in `wide`.
    """
    layers = quantizable(network)
    if unknown := sorted(set(wide) - layers.keys()):
        raise ValueError(f"the network has no layer {', '.join(unknown)[:200]} to keep wide; quantise it again")
    sums = [found for found in residuals(network) if found.conv not in wide]
    for name, layer in layers.items():
        if name not in wide:
            replace_layer(
                network, name, QuantizedConv2d(layer) if isinstance(layer, nn.Conv2d) else QuantizedLinear(layer)
            )
    for found in sums:
        device = network.get_buffer(f"{found.conv}.weight_scale").device
        replace_layer(network, found.add, QuantizedAdd(found.shortcut, device=device))
    return network


def replace_layer(network: nn.Module, name: str, layer: nn.Module) -> None:
    """Replace a layer by another one, in eval mode."""
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, layer.eval())

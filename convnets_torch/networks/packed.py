"""Convolutions and dense layers with weights packed in oneDNN's layout, fused with the following activation.

PyTorch repacks weights on every call and runs an activation as a separate pass over the map. Its compiler avoids both
with operations of the namespace `torch.ops.mkldnn`; these modules call the same operations without compiling. They
compute the same as the plain layers, in the same order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convnets_torch.networks.quantized import is_quantized

# Activations that oneDNN can fuse: its name and arguments for each.
FUSIBLE: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    nn.Sigmoid: ("sigmoid", []),
    nn.Tanh: ("tanh", []),
}
OPERATIONS = ("_convolution_pointwise", "_linear_pointwise", "_reorder_convolution_weight", "_reorder_linear_weight")


def fusible(network: nn.Module, name: str | None) -> nn.Module | None:
    """Return the layer of this name if it is an activation that can be fused."""
    module = None if name is None else network.get_submodule(name)
    return module if type(module) in FUSIBLE else None


def is_available() -> bool:
    """Return whether this PyTorch has the operations."""
    known = all(hasattr(torch.ops.mkldnn, name) for name in OPERATIONS)
    return known and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


class _Packed(nn.Module):
    """Base class: weights, not parameters, packed for the most recent input size.

    oneDNN chooses the layout by the map's size. Weights packed for another size are repacked on every call, which can
    take fifty times as long as the layer itself; so the layer repacks them once, when the size changes.
    """

    bias: nn.Parameter | None  # a parameter, so that device and dtype can be looked up as for any module

    def _keep(self, layer: nn.Conv2d | nn.Linear, activation: nn.Module | None, weight: Tensor) -> None:
        # (layout key, weights), replaced atomically; in a list, so that replicas of the layer share it
        self._layout: list[tuple[Any, Tensor]] = [(None, weight)]
        self.fuse(activation)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
        self.shape, self.dtype = tuple(layer.weight.shape), layer.weight.dtype

    def fuse(self, activation: nn.Module | None) -> None:
        """Apply an activation, one of `FUSIBLE`, to the output."""
        self._after = () if activation is None else (activation,)  # in a tuple, so that it is no submodule
        self.fused: tuple[str, list[float]] = ("none", []) if activation is None else FUSIBLE[type(activation)]

    @property
    def weight(self) -> Tensor:
        """The weights in the plain layer's layout, unpacked on every access."""
        kept = self._layout[0][1]
        return (kept.to_dense() if kept.is_mkldnn else kept).reshape(self.shape)

    def __getstate__(self) -> dict[str, Any]:
        """Unpack the weights for copies and other processes, which cannot hold oneDNN's layout."""
        return self.__dict__ | {"_layout": [(None, self.weight)]}

    def _blank(self) -> Tensor:
        """Return weights of the right shape without data."""
        return torch.empty(self.shape, device="meta")

    def _finished(self, cells: Tensor) -> Tensor:
        for activation in self._after:
            cells = activation(cells)
        return cells

    def _is_plain(self, cells: Tensor) -> bool:
        """Return whether the unpacked path is needed: for gradients, or for another device or dtype than packed."""
        wanted = torch.is_grad_enabled() and cells.requires_grad
        return wanted or cells.device.type != "cpu" or cells.dtype != self.dtype


class PackedConv2d(_Packed):
    """A convolution with an optional fused activation.

    Args:
        layer: with zero padding, on the CPU, in the precision to run in.
        activation: one of `FUSIBLE`, or None.
    """

    padding_mode = "zeros"

    def __init__(self, layer: nn.Conv2d, activation: nn.Module | None) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups = layer.in_channels, layer.out_channels, layer.groups
        self.kernel_size, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        assert not isinstance(layer.padding, str)
        self.padding = layer.padding
        self._keep(layer, activation, layer.weight.detach().contiguous(memory_format=torch.channels_last))

    def forward(self, cells: Tensor) -> Tensor:
        """Map (N, C, h, w) to (N, K, h', w') in channels-last memory format."""
        if isinstance(cells, Tensor):
            cells = cells.contiguous(memory_format=torch.channels_last)
        return self.convolve(cells, self.stride, self.padding, self.dilation)

    def convolve(self, cells: Tensor, stride: Any, padding: Any, dilation: Any) -> Tensor:
        """Apply the layer with another stride, padding or dilation than its own, and its activation."""
        if not isinstance(cells, Tensor):  # the dry run of `fcn.memory`
            return F.conv2d(cells, self._blank(), None, stride, padding, dilation, self.groups)
        if self._is_plain(cells):
            return self._finished(F.conv2d(cells, self.weight, self.bias, stride, padding, dilation, self.groups))
        numbers, weight = self._packed_for(cells, stride, padding, dilation)
        return torch.ops.mkldnn._convolution_pointwise(cells, weight, self.bias, *numbers, *self.fused, "")

    def add(self, cells: Tensor, shortcut: Tensor) -> Tensor:
        """Convolve, add a map of the same size, and apply the activation; for 1x1 convolutions of stride 1."""
        if not isinstance(cells, Tensor):  # the dry run of `fcn.memory`
            return F.conv2d(cells, self._blank()) + shortcut
        if self._is_plain(cells) or self._is_plain(shortcut):
            return self._finished(F.conv2d(cells, self.weight, self.bias) + shortcut)
        cells, shortcut = (each.contiguous(memory_format=torch.channels_last) for each in (cells, shortcut))
        numbers, weight = self._packed_for(cells, (1, 1), (0, 0), (1, 1))
        unary = (None, [], None) if self.fused[0] == "none" else (*self.fused, "")
        made: Tensor = torch.ops.mkldnn._convolution_pointwise.binary(
            cells, shortcut, weight, self.bias, *numbers, "add", 1.0, *unary
        )
        return made

    def _packed_for(self, cells: Tensor, stride: Any, padding: Any, dilation: Any) -> tuple[tuple[Any, ...], Tensor]:
        """Return the numbers of the convolution, and the weights packed for them and for the size of a map."""
        numbers = (list(padding), list(stride), list(dilation), self.groups)
        wanted = (tuple(cells.shape[2:]), *map(tuple, numbers[:3]))
        made_for, weight = self._layout[0]
        if made_for != wanted:
            plain = self.weight.contiguous(memory_format=torch.channels_last)
            weight = torch.ops.mkldnn._reorder_convolution_weight(plain, *numbers, list(cells.shape))
            self._layout[0] = (wanted, weight)
        return numbers, weight

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"


class PackedAdd(nn.Module):
    """A residual sum that a 1x1 convolution computes, with an optional fused activation.

    It takes the shortcut and the convolution's input, in the order of the sum's inputs.
    """

    def __init__(self, conv: PackedConv2d, shortcut: int, activation: nn.Module | None) -> None:
        """`shortcut`: which of the two inputs is the shortcut."""
        super().__init__()
        self.conv, self.shortcut = (conv,), shortcut  # in a tuple, so that it is no submodule
        conv.fuse(activation)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Add two maps."""
        return self.merge(*inputs)

    def merge(self, *inputs: Tensor) -> Tensor:
        """Add two maps; the result never is of integers."""
        return self.conv[0].add(inputs[1 - self.shortcut], inputs[self.shortcut])


class PackedLinear(_Packed):
    """A dense layer with an optional fused activation; parameters as for `PackedConv2d`."""

    def __init__(self, layer: nn.Linear, activation: nn.Module | None) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._keep(layer, activation, layer.weight.detach())

    def forward(self, values: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        if not isinstance(values, Tensor):  # the dry run of `fcn.memory`
            return F.linear(values, self._blank())
        if self._is_plain(values):
            return self._finished(F.linear(values, self.weight, self.bias))
        made_for, weight = self._layout[0]
        if made_for is None:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight, values.shape[:-1].numel())
            self._layout[0] = ("any number", weight)
        return torch.ops.mkldnn._linear_pointwise(values, weight, self.bias, *self.fused, "")

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def check_unpacked(network: nn.Module) -> None:
    """Raise ValueError for a network made by `prepare` or `quantize`, whose parameters are rounded or absent."""
    if any(isinstance(module, PackedConv2d | PackedLinear) for module in network.modules()):
        raise ValueError("the network was prepared, which rounds its weights; give the one that was given to `prepare`")
    if is_quantized(network):
        raise ValueError("the network is quantised, which rounds its weights; give the one that it was made from")

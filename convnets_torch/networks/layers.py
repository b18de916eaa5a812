"""Layers of other frameworks that PyTorch lacks, for networks that are given as a graph of layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Edges = tuple[int, int, int, int]  # top, bottom, left, right


class Scale(nn.Module):
    """x * scale + offset, with one number each or one per channel; constants, not parameters.

    >>> Scale(2.0, -1.0)(torch.tensor([[3.0]]))
    tensor([[5.]])
    """

    def __init__(self, scale: float | Sequence[float] = 1.0, offset: float | Sequence[float] = 0.0) -> None:
        super().__init__()
        self.scale, self.offset = scale, offset

    def forward(self, x: Tensor) -> Tensor:
        return x * self._number(self.scale, x) + self._number(self.offset, x)

    def _number(self, value: float | Sequence[float], x: Tensor) -> float | Tensor:
        if isinstance(value, int | float):
            return value
        return torch.tensor(value, dtype=x.dtype, device=x.device).view(-1, *(1,) * (x.dim() - 2))

    def extra_repr(self) -> str:
        return f"{self.scale}, {self.offset}"


class Normalize(nn.Module):
    """(x - mean) / max(sqrt(variance), epsilon) with a mean and a variance per channel, as Keras's `Normalization`."""

    def __init__(self, channels: int, epsilon: float = 1e-7, invert: bool = False) -> None:
        super().__init__()
        self.mean, self.variance = nn.Buffer(torch.zeros(channels)), nn.Buffer(torch.ones(channels))
        self.epsilon, self.invert = epsilon, invert

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, *(1,) * (x.dim() - 2))
        mean, deviation = self.mean.view(shape), self.variance.sqrt().clamp(min=self.epsilon).view(shape)
        return x * deviation + mean if self.invert else (x - mean) / deviation


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each cell (dimension 1) of a map or vector."""

    def __init__(self, channels: int, epsilon: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        last = x.movedim(1, -1)
        return F.layer_norm(last, self.weight.shape, self.weight, self.bias, self.epsilon).movedim(-1, 1)


class LayerScale(nn.Module):
    """Multiplies each channel by a learnt number. Source: ConvNeXt, arXiv:2201.03545."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.view(-1, *(1,) * (x.dim() - 2))


class PReLU(nn.Module):
    """max(x, 0) + slope * min(x, 0), with a slope for each value or shared along dimensions of size 1."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(*shape))

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(x, min=0) + self.weight * torch.clamp(x, max=0)


class ClippedReLU(nn.Module):
    """min(x, most) where x >= threshold, else slope * (x - threshold), as Keras's `ReLU` with all its settings.

    >>> ClippedReLU(6.0, 1.0, 0.5)(torch.tensor([0.0, 1.0, 9.0])).tolist()
    [-0.5, 1.0, 6.0]
    """

    def __init__(self, most: float | None = None, threshold: float = 0.0, slope: float = 0.0) -> None:
        super().__init__()
        self.most, self.threshold, self.slope = most, threshold, slope

    def forward(self, x: Tensor) -> Tensor:
        kept = x if self.most is None else torch.clamp(x, max=self.most)
        return torch.where(torch.ge(x, self.threshold), kept, (x - self.threshold) * self.slope)

    def extra_repr(self) -> str:
        return f"most={self.most}, threshold={self.threshold}, slope={self.slope}"


class Exponential(nn.Module):
    """e to the power of x."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(x)


class MaxPool2d(nn.Module):
    """Maximum pooling with any number of padding cells at each edge; padding never is the maximum."""

    count_include_pad, divisor_override = False, None  # as nn.AvgPool2d calls them

    def __init__(self, kernel: tuple[int, int], stride: tuple[int, int], edges: Edges) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.edges = kernel, stride, edges

    def forward(self, x: Tensor) -> Tensor:
        top, bottom, left, right = self.edges
        return F.max_pool2d(F.pad(x, (left, right, top, bottom), value=-math.inf), self.kernel_size, self.stride)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, edges={self.edges}"


class AvgPool2d(MaxPool2d):
    """Average pooling with any number of padding cells at each edge; padding is not counted."""

    def forward(self, x: Tensor) -> Tensor:
        top, bottom, left, right = self.edges
        ones = F.pad(x.new_ones(1, 1, *x.shape[2:]), (left, right, top, bottom))
        sums, counts = (
            F.avg_pool2d(each, self.kernel_size, self.stride, divisor_override=1)
            for each in (F.pad(x, (left, right, top, bottom)), ones)
        )
        return sums / counts


class ConvTranspose2d(nn.ConvTranspose2d):
    """Transposed convolution whose result is cut at its edges by (top, bottom, left, right) cells."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], *, edges: Edges, **settings: object) -> None:
        super().__init__(inputs, outputs, kernel, **settings)  # type: ignore[arg-type]
        self.edges = edges

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        top, bottom, left, right = self.edges
        return F.pad(super().forward(input, output_size), (-left, -right, -top, -bottom))


class Flatten(nn.Module):
    """(N, C, h, w) -> (N, h * w * C), in channels-last order."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.movedim(1, -1) if x.dim() > 2 else x).flatten(1)


class Reshape(nn.Module):
    """Reshape each item, in channels-last order if `channels_last`: maps (N, C, h, w) count as (N, h, w, C)."""

    def __init__(self, shape: Sequence[int], channels_last: bool) -> None:
        super().__init__()
        self.shape, self.channels_last = tuple(shape), channels_last

    def forward(self, x: Tensor) -> Tensor:
        if not self.channels_last:
            return x.reshape(x.shape[0], *self.shape)
        x = (x.movedim(1, -1) if x.dim() == 4 else x).reshape(x.shape[0], *self.shape)
        return x.movedim(-1, 1) if x.dim() == 4 else x

    def extra_repr(self) -> str:
        return f"{self.shape}, channels_last={self.channels_last}"


class Permute(nn.Module):
    """Reorder the dimensions, counted with the batch."""

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        self.order = tuple(order)

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


class Add(nn.Module):
    """Sum of its inputs."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return reduce(torch.add, inputs)


class Subtract(nn.Module):
    """First input minus the second."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first - second


class Multiply(nn.Module):
    """Product of its inputs."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return reduce(torch.mul, inputs)


class Divide(nn.Module):
    """First input divided by the second."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first / second


class Average(nn.Module):
    """Mean of its inputs."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return reduce(torch.add, inputs) / len(inputs)


class Maximum(nn.Module):
    """Largest of its inputs, value by value."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return reduce(torch.maximum, inputs)


class Minimum(nn.Module):
    """Smallest of its inputs, value by value."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return reduce(torch.minimum, inputs)


class Concatenate(nn.Module):
    """Concatenation of its inputs along one dimension, counted with the batch."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, dim=self.dim)


class Channels(nn.Module):
    """Channels from `start` to before `stop`."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.start : self.stop]


class Dot(nn.Module):
    """Dot product of two vectors (N, C) -> (N, 1); of their cosine if `normalize`."""

    def __init__(self, normalize: bool) -> None:
        super().__init__()
        self.normalize = normalize

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        if self.normalize:
            first, second = F.normalize(first, dim=1, eps=1e-7), F.normalize(second, dim=1, eps=1e-7)
        return (first * second).sum(1, keepdim=True)

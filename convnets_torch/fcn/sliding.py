"""Apply a dense head at every position of a feature map: the same parameters, used as convolution kernels.

Source: Fully Convolutional Networks for Semantic Segmentation, arXiv:1411.4038, section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convnets_torch.networks.packed import PackedLinear
from convnets_torch.networks.packed_int8 import PackedInt8Linear
from convnets_torch.networks.quantized import QuantizedLinear

# Elementwise layers: applying them to a map and to a vector is the same.
ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Hardswish,
    nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Dropout, nn.Identity,
)  # fmt: skip
PATCHES = 64_000_000  # bytes of unfolded windows per matrix product
DENSE = (nn.Linear, PackedLinear, nn.Conv2d)  # tuples, since torch.compile of PyTorch 2.6 does not support unions
POOLS = (nn.AvgPool2d, nn.MaxPool2d)


def slide(head: Iterable[nn.Module], features: Tensor, window: tuple[int, int], dilation: int = 1) -> Tensor:
    """Apply a dense `head` at every position of a feature map.

    The first layer that reads the window (a `Linear` after `Flatten`, or an `AvgPool2d` or `MaxPool2d` of the
    window's size) becomes a convolution, a sliding mean or a sliding maximum; every later `Linear` becomes a 1x1
    convolution. A `Conv2d` over exactly the window, or a later 1x1 one, stays as it is. Weights are never copied, so
    gradients reach the parameters of `head`.

    Args:
        head: the layers of `network.head`, in order.
        features: (N, C, H, W), with H >= (h - 1) * dilation + 1, and W likewise.
        window: (h, w) in cells of the feature map, `network.window`.
        dilation: distance in cells between the cells that one position reads; above 1 for feature maps that
            were computed with a smaller stride than the network was trained with.

    Returns:
        Logits (N, classes, H - (h - 1) * dilation, W - (w - 1) * dilation).

    Raises:
        ValueError: the feature map is smaller than the window, or the head has a layer that cannot slide or that
            does not fit the window.

    >>> import torch
    >>> head = [nn.Flatten(), nn.Linear(8 * 2 * 2, 5), nn.ReLU(), nn.Linear(5, 10)]
    >>> slide(head, torch.zeros(1, 8, 4, 6), window=(2, 2)).shape
    torch.Size([1, 10, 3, 5])
    """
    window = (window[0], window[1])
    if features.dim() != 4 or dilation < 1:
        raise ValueError(f"features are {tuple(features.shape)}, dilation {dilation}; give (N, C, H, W), 1 or more")
    reach = ((window[0] - 1) * dilation + 1, (window[1] - 1) * dilation + 1)
    if features.shape[-2] < reach[0] or features.shape[-1] < reach[1]:
        raise ValueError(
            f"features are {tuple(features.shape[-2:])} cells, smaller than the head's window {reach};"
            " use a larger image"
        )
    cells, window_read, flat = features, False, False
    for layer in head:
        if isinstance(layer, DENSE):
            kernel = (1, 1) if window_read else window
            _check_dense(layer, cells.shape[1], kernel, flat)
            product = _product(layer)
            if isinstance(layer, PackedInt8Linear):
                cells = layer.rounded(cells)
            if window_read:
                cells = product(cells.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            else:
                cells = _convolution(cells, product, window, dilation)
                window_read = True
        elif isinstance(layer, POOLS) and not window_read:
            cells = _sliding_pool(layer, cells, window, dilation)
            window_read = True
        elif isinstance(layer, nn.BatchNorm1d):
            cells = _normalized(layer, cells, window_read)
        elif isinstance(layer, ELEMENTWISE):
            cells = layer(cells)
        elif isinstance(layer, nn.Flatten):
            flat = True  # nothing to do: the channels of a cell are its vector
        else:
            raise ValueError(
                f"a head with {layer} cannot slide; supported are Flatten, Linear, AvgPool2d,"
                " MaxPool2d, BatchNorm1d, activations, and Conv2d over exactly the window"
            )
    if not window_read:
        raise ValueError("the head has no layer that reads the window: neither Flatten and Linear nor a pooling layer")
    return cells


def _product(layer: nn.Linear | PackedLinear | nn.Conv2d) -> Callable[[Tensor], Tensor]:
    """Return the layer as a matrix product (..., inputs) -> (..., outputs)."""
    if isinstance(layer, PackedLinear | QuantizedLinear):
        return layer
    weight = layer.weight.flatten(1)  # (outputs, inputs), a view of a convolution's
    return lambda values: F.linear(values, weight, layer.bias)


def _check_dense(
    layer: nn.Linear | PackedLinear | nn.Conv2d, channels: int, kernel: tuple[int, int], flat: bool
) -> None:
    inputs = channels * kernel[0] * kernel[1]
    read = f"{inputs} values ({channels} channels, window {kernel})"
    if not isinstance(layer, nn.Conv2d):
        if not flat or layer.in_features != inputs:
            raise ValueError(f"{layer} cannot slide: it must follow Flatten and read {read}")
    elif flat or layer.kernel_size != kernel or layer.in_channels != channels or not is_dense(layer):
        raise ValueError(f"{layer} cannot slide: it must come before Flatten, without padding, and read {read}")


def is_dense(layer: nn.Conv2d) -> bool:
    """Return whether a convolution over a map of its kernel's size is a dense layer: no groups, dilation or padding."""
    return layer.groups == 1 and layer.dilation == (1, 1) and layer.padding in ((0, 0), "valid")


def _convolution(cells: Tensor, product: Callable[[Tensor], Tensor], window: tuple[int, int], dilation: int) -> Tensor:
    """Convolve with the dense layer's weights as kernel, by matrix products over blocks of windows.

    Convolution libraries are slow for a 7x7 kernel over 512 channels; unfolding the windows and multiplying is faster
    on the CPU, and in blocks it takes no more memory.
    """
    reach = [(side - 1) * dilation + 1 for side in window]
    # (N, h, w, C, rows, columns), a view: the last three axes in the order of the layer's inputs
    crops = cells.unfold(2, reach[0], 1).unfold(3, reach[1], 1)[..., ::dilation, ::dilation].permute(0, 2, 3, 1, 4, 5)
    batch, height, width = crops.shape[:3]
    inputs = cells.shape[1] * window[0] * window[1]
    most = max(1, PATCHES // (inputs * cells.dtype.itemsize * batch))  # positions per block
    across, down = min(width, most), max(1, most // width)
    rows_of_blocks = []
    for top in range(0, height, down):
        rows = crops[:, top : top + down]
        blocks = [product(rows[:, :, left : left + across].flatten(3)) for left in range(0, width, across)]
        rows_of_blocks.append(torch.cat(blocks, dim=2) if len(blocks) > 1 else blocks[0])
    whole = torch.cat(rows_of_blocks, dim=1) if len(rows_of_blocks) > 1 else rows_of_blocks[0]
    return whole.permute(0, 3, 1, 2)


def _sliding_pool(layer: nn.AvgPool2d | nn.MaxPool2d, cells: Tensor, window: tuple[int, int], dilation: int) -> Tensor:
    kernel = layer.kernel_size if isinstance(layer.kernel_size, tuple) else (layer.kernel_size,) * 2
    dilated = getattr(layer, "dilation", 1) not in (1, (1, 1))
    if kernel != window or layer.stride not in (1, (1, 1)) or layer.padding not in (0, (0, 0)) or dilated:
        raise ValueError(
            f"a head that begins with {layer} cannot slide; use {type(layer).__name__}({window}, stride=1)"
        )
    if dilation == 1:
        return layer(cells)
    if isinstance(layer, nn.MaxPool2d):
        return F.max_pool2d(cells, window, stride=1, dilation=dilation)
    rows, columns = (side * dilation - dilation + 1 for side in window)
    crops = cells.unfold(2, rows, 1).unfold(3, columns, 1)  # (N, C, h, w, rows, columns), a view
    return crops[..., ::dilation, ::dilation].mean(dim=(-2, -1))


def _normalized(layer: nn.BatchNorm1d, cells: Tensor, window_read: bool) -> Tensor:
    """Apply batch normalisation in eval mode: a scale and a shift of each channel."""
    if layer.training or layer.running_mean is None:
        raise ValueError(f"{layer} cannot slide in training mode, where it mixes the images of a batch; call eval()")
    if not window_read or layer.num_features != cells.shape[1]:
        raise ValueError(f"{layer} cannot slide: it must follow the layer that reads the window, and fit its outputs")
    return F.batch_norm(
        cells, layer.running_mean, layer.running_var, layer.weight, layer.bias, training=False, eps=layer.eps
    )

"""Score maps: the logits of a network at every position of images of any size."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from convnets_torch.fcn.graph import MapGraph, map_graph
from convnets_torch.fcn.memory import block_rows, parse_bytes
from convnets_torch.fcn.sliding import slide
from convnets_torch.fcn.streaming import Stream
from convnets_torch.networks.network import Network, as_network, check_map


def score_map(
    network: Network, images: Tensor, *, cell_stride: int | None = None, max_memory: int | str | None = None
) -> Tensor:
    """Compute logits at every position where the network's head fits on its feature map.

    Cell (i, j) is exactly `head` on its crop of the feature map. It equals the classification of the image crop that
    starts at (i * stride, j * stride) only if the network has no padding: padded convolutions see the neighbouring
    pixels where a crop would see zeros (docs/heatmaps.md measures the difference).

    Args:
        network: any network with `features`, `head`, `window`, `size`.
        images: (N, 3, H, W), at least `network.size`, normalised as the weights expect.
        cell_stride: pixels between neighbouring cells, for a denser map than the network's own (`network.stride`):
            the last strides are removed and the following layers dilated, so every (stride / cell_stride)-th row and
            column equals the map without it. `cell_strides(network)` lists the supported values.
        max_memory: limit for activations, in bytes or as text such as "1GB"; images that need more are processed in
            blocks of rows, with the same numbers. It holds if no gradients are recorded; images, weights and the
            result are not counted.

    Returns:
        Logits (N, classes, h, w); (N, classes, 1, 1) at the network's own size, equal to `network(images)`.

    Raises:
        ValueError: the images are smaller than the network's own size; the network has no head, does not support this
            stride, or is in training mode with `cell_stride` or `max_memory`; or the memory is too small for blocks of
            a few rows (the message names the minimum).

    >>> import torch
    >>> from convnets_torch.networks import vgg16
    >>> narrow = vgg16(classes=10, widths=(2, 2, 4, 4, 4), hidden=(8, 8))
    >>> score_map(narrow, torch.zeros(1, 3, 288, 352)).shape
    torch.Size([1, 10, 3, 5])
    """
    network = as_network(network)
    head = check_map(network)
    height, width = images.shape[-2:]
    if height < network.size[0] or width < network.size[1]:
        raise ValueError(
            f"images are {height}x{width} pixels (height x width), but the network needs at least"
            f" {network.size[0]}x{network.size[1]}; enlarge them"
        )
    if cell_stride in (None, network.stride) and max_memory is None:
        return slide(head, network.features(images), network.window)
    if network.training:
        raise ValueError(
            "the network is in training mode, where blocks of rows and strides change outputs; call eval()"
        )
    graph = map_graph(network, cell_stride)
    rows = height
    if max_memory is not None:
        rows = block_rows(graph, (len(images), height, width), images.dtype, parse_bytes(max_memory))
    blocks = (images[:, :, top : top + rows] for top in range(0, height, rows))
    return gather(graph, blocks, height, width)


def gather(graph: MapGraph, blocks: Iterator[Tensor], height: int, width: int) -> Tensor:
    """Return the map of images of (height, width) pixels that arrive in blocks of rows, (N, 3, rows, W) each."""
    stream, above, whole = Stream(graph.ops), 0, None
    for block in blocks:
        above += block.shape[2]
        found = stream.push(block, last=above == height)
        if found is None:
            continue
        if above == height and whole is None:
            return found
        if whole is None:
            whole, row = found.new_empty((*found.shape[:2], *graph.shape(height, width))), 0
        whole[:, :, row : row + found.shape[2]] = found
        row += found.shape[2]
    assert whole is not None
    return whole

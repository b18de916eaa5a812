"""Time of heatmaps, against peers; `scripts/benchmarks/benchmark.py heatmap` and `strips` run it.

Pictures are noise, which does not affect the time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

from scripts.benchmarks.rounds import Result, alternate

HEIGHT, WIDTH = 480, 640
LARGE = (2700, 3600)  # pixels whose activations take more than 4 GB
BATCH = 16  # crops per batch of the peer


def measure_heatmap(folder: Path, rounds: int) -> list[Result]:
    """Measure a VGG16 map of 640x480 pixels, against each window's crop, plain convolutions, and many targets."""
    import numpy as np
    import torch
    from torch import nn
    from torchvision.models import vgg16

    from convnets_torch.heatmaps.api import heatmap, heatmap_targets
    from convnets_torch.weights import load

    network = load(folder / "vgg16.safetensors", mapped=False)
    rough = copy.deepcopy(network).bfloat16()
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    peer = vgg16().eval()
    images = torch.randn(1, 3, HEIGHT, WIDTH)
    corners = [(row, column) for row in range(0, HEIGHT - 223, 32) for column in range(0, WIDTH - 223, 32)]

    def crops() -> None:
        with torch.inference_mode():
            for start in range(0, len(corners), BATCH):
                batch = [images[0, :, y : y + 224, x : x + 224] for y, x in corners[start : start + BATCH]]
                peer(torch.stack(batch)).softmax(dim=1)

    dense = [layer for layer in peer.classifier if isinstance(layer, nn.Linear)]
    kernels = [(7, 512), (1, 4096), (1, 4096)]
    convolutions = nn.Sequential()
    for layer, (side, channels) in zip(dense, kernels, strict=True):
        convolution = nn.Conv2d(channels, layer.out_features, side)
        convolution.weight.data = layer.weight.data.view(layer.out_features, channels, side, side)
        convolutions += nn.Sequential(convolution, nn.ReLU())
    plain = nn.Sequential(peer.features, *list(convolutions)[:-1]).eval()

    def convolved() -> None:
        with torch.inference_mode():
            plain(images).softmax(dim=1)

    def ours(targets: list[int]) -> Callable[[], object]:
        return lambda: heatmap_targets(network, pixels, targets)

    few = max(1, rounds // 3)
    size = f"VGG16, {WIDTH}x{HEIGHT}"
    return [
        alternate(f"heatmap, {size}, float32", "each window's crop, torchvision", ours([281]), crops, few),
        alternate(f"heatmap, {size}, bfloat16", "the same", lambda: heatmap(rough, pixels, 281), crops, few),
        alternate(f"heatmap, {size}, float32", "torchvision's layers as convolutions", ours([281]), convolved, rounds),
        alternate(f"heatmap, {size}, bfloat16", "the same", lambda: heatmap(rough, pixels, 281), convolved, rounds),
        alternate(f"heatmap of 50 targets, {size}", "of one target", ours(list(range(50))), ours([281]), rounds),
    ]


def measure_strips(folder: Path, rounds: int) -> list[Result]:
    """Measure VGG16 on 9.7 megapixels in strips, against one pass that holds everything."""
    import torch

    from convnets_torch.fcn.score_map import score_map
    from convnets_torch.weights import load

    network = load(folder / "vgg16.safetensors", mapped=False)
    images = torch.randn(1, 3, *LARGE).contiguous(memory_format=torch.channels_last)

    def in_strips(memory: str | None) -> Callable[[], object]:
        def call() -> None:
            with torch.inference_mode():
                score_map(network, images, max_memory=memory)

        return call

    size = f"VGG16, {LARGE[1]}x{LARGE[0]}"
    return [
        alternate(
            f"strips within {memory}, {size}", "one pass", in_strips(memory), in_strips(None), max(1, rounds // 3)
        )
        for memory in ("4GB", "1GB", "300MB")
    ]

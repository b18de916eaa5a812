"""Dilated convolutions against shift-and-stitch, layer by layer; `scripts/benchmarks/benchmark.py dilation` runs it.

A smaller cell stride needs each later layer at every shift of its input. A dilated convolution reads all shifts in
place; shift-and-stitch rearranges the cells by shift into a batch, runs the plain convolution and rearranges them back.
Both give the same results. Sizes are those of the last layers of our networks on 640x480 pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scripts.benchmarks.rounds import Result, alternate

if TYPE_CHECKING:
    from torch import Tensor


# layer: channels, side of the kernel, cells (height, width), dilation, groups
LAYERS = {
    "VGG16 conv5 at stride 8": (512, 3, (60, 80), 2, 1),
    "VGG16 conv5 at stride 4": (512, 3, (120, 160), 4, 1),
    "ResNet50 conv5_block3 at stride 8": (512, 3, (60, 80), 4, 1),
    "EfficientNet-Lite0 block10 at stride 8, depthwise": (672, 5, (60, 80), 2, 672),
    "EfficientNet-Lite0 block14 at stride 8, depthwise": (1152, 5, (60, 80), 4, 1152),
    "EfficientNet-Lite0 block15 at stride 8, depthwise": (1152, 3, (60, 80), 4, 1152),
}


def stitched(cells: Tensor, weight: Tensor, dilation: int, groups: int) -> Tensor:
    """Compute a dilated convolution, zero-padded to keep the map's size, as a batch of all shifts.

    Args:
        cells: (1, C, h, w).
        weight: (K, C / groups, side, side).
        dilation: distance between the cells that a kernel reads.
        groups: of the convolution.

    Returns:
        (1, K, h, w).
    """
    import torch
    from torch.nn import functional as F

    height, width = cells.shape[2:]
    border = dilation * (weight.shape[2] // 2)
    cells = F.pad(cells, (border, border + -width % dilation, border, border + -height % dilation))
    down, across = (side // dilation for side in cells.shape[2:])
    shifts = cells.reshape(-1, down, dilation, across, dilation).permute(2, 4, 0, 1, 3).flatten(0, 1)
    found = F.conv2d(shifts.contiguous(memory_format=torch.channels_last), weight, groups=groups)
    channels, down, across = found.shape[1:]
    apart = found.reshape(dilation, dilation, channels, down, across).permute(2, 3, 0, 4, 1)
    return apart.reshape(1, channels, down * dilation, across * dilation)[:, :, :height, :width]


def measure_dilation(folder: Path, rounds: int) -> list[Result]:
    """Measure each layer in float32 and bfloat16.

    Raises:
        ValueError: the two methods give different results.
    """
    import torch
    from torch.nn import functional as F

    results = []
    for name, (channels, side, size, dilation, groups) in LAYERS.items():
        for dtype in (torch.float32, torch.bfloat16):
            cells = torch.randn(1, channels, *size, dtype=dtype).contiguous(memory_format=torch.channels_last)
            weight = torch.randn(channels, channels // groups, side, side, dtype=dtype) / side / channels**0.5
            border = dilation * (side // 2)

            def dilated(
                cells: Tensor = cells, weight: Tensor = weight, border: int = border, d: int = dilation, g: int = groups
            ) -> Tensor:
                with torch.inference_mode():
                    return F.conv2d(cells, weight, padding=border, dilation=d, groups=g)

            def by_shifts(cells: Tensor = cells, weight: Tensor = weight, d: int = dilation, g: int = groups) -> Tensor:
                with torch.inference_mode():
                    return stitched(cells, weight, d, g)

            difference = float((dilated() - by_shifts()).abs().max() / dilated().abs().max())
            if not difference < (1e-5 if dtype == torch.float32 else 2e-2):
                raise ValueError(f"{name}: both ways differ by {difference:.2g} of the largest value")
            label = f"dilated, {name}, {str(dtype).removeprefix('torch.')}"
            results.append(alternate(label, "shift-and-stitch", dilated, by_shifts, rounds))
    return results

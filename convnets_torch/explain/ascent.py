"""Gradient ascent on pictures, in two forms: each picture of a batch climbs its own objective.

The pictures of a batch do not know of each other: the gradient of the sum of their objectives with respect to one
picture is that of its own. All start from the same noise and are moved alike, so a picture depends on the seed and on
its own objective, not on who is beside it (but for rounding, where a library computes batches differently).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Size = tuple[int, int]  # height, width in pixels
Measure = Callable[[Tensor], Tensor]  # pixels (N, 3, H, W), RGB, 0 to 255 -> what each picture is to raise (N,)

GREY, NOISE = 128.0, 20.0  # where the plain form starts: grey, and up to so many more
PIXELS = 1.0  # root mean square of what one step of the plain form adds to the pixels

START = 0.01  # standard deviation of the first coefficients
RATE = 0.05  # of Adam
CONTRAST = 0.35  # of the picture before the sigmoid, for coefficients of 1
JITTER = 1 / 16  # of the side that a picture is moved at most, up or down, left or right
ZOOM = 0.1  # it becomes larger or smaller by at most so much
TURN = math.radians(10)  # it is turned either way by at most so much

# A square root of the covariance of red, green and blue (0 to 1) in seven photographs of scikit-image and scikit-learn:
# columns are the principal axes (light, yellow to blue, magenta to green). `scripts/color_correlation.py` prints it.
COLORS = ((0.2379, 0.1059, 0.0097), (0.2266, -0.0281, -0.0312), (0.2175, -0.0865, 0.0220))


def plain(
    measure: Measure, like: Tensor, size: Size, count: int, steps: int, seed: int, tick: Callable[[], None]
) -> Tensor:
    """From grey noise along the gradient, which is divided by its root mean square before each step.

    Source: Deep Learning with Python, F. Chollet, 2018, section 5.4.2: noise from 128 to 148, the gradient divided by
    its RMS, steps of size 1 on pixels 0 to 255. Departures: the book gives these pixels to the network without its
    preprocessing and adds 1e-5 to the RMS, which swamps small gradients; here a gradient of zero stays one. It lets
    pixels leave 0 to 255 and afterwards sets mean and contrast anew; here they are clipped in each step, so that the
    picture that is shown is the one that the network saw.

    Args:
        measure: what each picture is to raise.
        like: a tensor on the device and of the type that is worked in.
        size: (H, W) in pixels.
        count: how many pictures.
        steps: how many; of none, the noise at the start comes back.
        seed: of the noise.
        tick: called after each step.

    Returns:
        (count, 3, H, W), RGB, 0 to 255.
    """
    noise = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(seed))
    pixels = (GREY + NOISE * noise).to(like).repeat(count, 1, 1, 1)
    for _ in range(steps):
        pixels.requires_grad_(True)
        [gradient] = torch.autograd.grad(measure(pixels).sum(), pixels)
        pixels = (pixels.detach() + PIXELS * _even(gradient)).clamp(0, 255)
        tick()
    return pixels


def fourier(
    measure: Measure, like: Tensor, size: Size, count: int, steps: int, seed: int, tick: Callable[[], None]
) -> Tensor:
    """Adam on Fourier coefficients in decorrelated colours; the network sees the picture moved, turned and zoomed.

    Source: Feature Visualization, C. Olah, A. Mordvintsev, L. Schubert, Distill 2017, "Transformation Robustness" and
    "Preconditioning and Parameterization"; Adam: arXiv:1412.6980, algorithm 1. Departures: one resampling moves, turns
    and zooms at once, mirrored at the borders, and its amounts are spread evenly; all pictures are moved alike. The
    gradient of each picture is divided by its root mean square, so that Adam's epsilon does not swamp small ones.

    Args:
        measure, like, size, count, steps, tick: as for `plain`.
        seed: of the first coefficients, and of the movements.

    Returns:
        (count, 3, H, W), RGB, 0 to 255; not moved.
    """
    chance = torch.Generator().manual_seed(seed)
    start = START * torch.randn(1, 3, size[0], size[1] // 2 + 1, 2, generator=chance)
    coefficients = start.to(like).repeat(count, 1, 1, 1, 1).requires_grad_(True)
    adam = torch.optim.Adam([coefficients], lr=RATE, maximize=True)
    for _ in range(steps):
        moved = _moved(fourier_pixels(coefficients, size), torch.rand(4, generator=chance) * 2 - 1)
        [gradient] = torch.autograd.grad(measure(moved).sum(), [coefficients])
        coefficients.grad = _even(gradient)
        adam.step()
        tick()
    return fourier_pixels(coefficients.detach(), size)


def fourier_pixels(coefficients: Tensor, size: Size) -> Tensor:
    """The pictures that coefficients stand for.

    The coefficients of a real Fourier transform are divided by their frequency (in cycles per pixel, at least one
    cycle over the longer side), which gives all scales the share that they have in photographs; the three planes are
    amounts of the principal colours of photographs; a sigmoid keeps all within bounds.

    Source: Feature Visualization, C. Olah, A. Mordvintsev, L. Schubert, Distill 2017, "Preconditioning and
    Parameterization". The colours are computed anew (`scripts/color_correlation.py`).

    Args:
        coefficients: (N, 3, H, W // 2 + 1, 2).
        size: (H, W) in pixels.

    Returns:
        (N, 3, H, W), RGB, 0 to 255.
    """
    height, width = size
    down, across = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)
    frequency = (down.square() + across.square()).sqrt().clamp(min=1 / max(size)).to(coefficients)
    spectrum = torch.view_as_complex(coefficients) / frequency
    planes = CONTRAST * torch.fft.irfft2(spectrum, s=size, norm="ortho")
    colors = coefficients.new_tensor(COLORS)
    colors = colors / colors.norm(dim=0).max()
    return 255 * torch.einsum("rc,nchw->nrhw", colors, planes).sigmoid()


def _even(gradient: Tensor) -> Tensor:
    """The gradient of each picture divided by its root mean square; where there is none, zeros."""
    axes = tuple(range(1, gradient.dim()))
    peak = gradient.abs().amax(dim=axes, keepdim=True)  # squares of the smallest numbers would vanish
    shares = torch.where(peak > 0, gradient / peak, 0.0)
    length = shares.square().mean(dim=axes, keepdim=True).sqrt()
    return torch.where(peak > 0, shares / length, 0.0)


def _moved(pixels: Tensor, amounts: Tensor) -> Tensor:
    """Pictures moved down and right, zoomed and turned, by amounts (4,) from -1 to 1 of what is most."""
    down, right, zoom, turn = amounts.tolist()
    height, width = pixels.shape[-2:]
    scale, angle = 1 + ZOOM * zoom, TURN * turn
    cosine, sine = math.cos(angle) / scale, math.sin(angle) / scale
    matrix = pixels.new_tensor(
        [  # grids reach from -1 to 1 on both sides, so turning an oblong picture needs its aspect
            [cosine, -sine * height / width, 2 * JITTER * right],
            [sine * width / height, cosine, 2 * JITTER * down],
        ]
    )
    grid = F.affine_grid(matrix.expand(len(pixels), 2, 3), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


FORMS = {"fourier": fourier, "plain": plain}

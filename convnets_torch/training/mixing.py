"""MixUp and CutMix: pictures of a batch blended with, or partly covered by, others, and their targets alike.

What is mixed is drawn first and applied after, so that the processes of a group draw the same for the whole batch and
each applies its own rows.

Source: mixup, arXiv:1710.09412, section 2; CutMix, arXiv:1905.04899, section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

MixKind = Literal["mixup", "cutmix"]
Box = tuple[int, int, int, int]  # top, left, bottom, right in pixels; the last two are outside


@dataclass(frozen=True, eq=False)
class Mix:
    """How a batch is mixed.

    Attributes:
        permutation: (N,) int64 on the CPU: each picture's partner.
        share: of a picture's own, 0 to 1, in the pixels and in the targets; the rest is its partner's.
        box: of CutMix, what of the partner covers the picture; None for MixUp.
    """

    permutation: Tensor
    share: float
    box: Box | None = None

    def apply(
        self,
        images: Tensor,
        targets: Tensor,
        partners: Tensor | None = None,
        partner_targets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mix a batch, or some of its rows.

        Args:
            images: (N, 3, H, W) floats, normalised, all of the batch that was drawn for.
            targets: (N, classes) floats; a row adds up to 1, or has a 1 for each class of the picture.
            partners: of `images`' shape: with it `images` may be any rows of the batch, and these are the rows that
                `permutation` names for them. By default `images[permutation]`.
            partner_targets: of `targets`' shape, with `partners`.

        Returns:
            Images and targets of the same shapes; those given stay as they were.

        Raises:
            ValueError: shapes do not fit.

        >>> mix = Mix(torch.tensor([1, 0]), share=0.75)
        >>> mix.apply(torch.zeros(2, 3, 4, 4), torch.eye(2))[1].tolist()
        [[0.75, 0.25], [0.25, 0.75]]
        """
        if (partners is None) != (partner_targets is None):
            raise ValueError("partners come with partner_targets; give both or neither")
        if partners is None or partner_targets is None:
            if len(images) != len(self.permutation):
                raise ValueError(
                    f"{len(images)} images, but a batch of {len(self.permutation)} was drawn for; give their partners"
                )
            order = self.permutation.to(images.device)
            partners, partner_targets = images[order], targets[order]
        shapes = [tuple(each.shape) for each in (images, partners, targets, partner_targets)]
        if shapes[0] != shapes[1] or shapes[2] != shapes[3] or shapes[0][:1] != shapes[2][:1]:
            raise ValueError(
                f"images are {shapes[0]}, partners {shapes[1]}, targets {shapes[2]} and {shapes[3]};"
                " the first two are alike, and the last two, with a row for each image"
            )
        mixed_targets = torch.lerp(partner_targets, targets, self.share)
        if self.box is None:
            return torch.lerp(partners, images, self.share), mixed_targets
        top, left, bottom, right = self.box
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = partners[:, :, top:bottom, left:right]
        return mixed, mixed_targets


def draw_mix(count: int, kind: MixKind, alpha: float, size: tuple[int, int], generator: torch.Generator) -> Mix:
    """Draw how a batch is mixed: each picture's partner, and one share for all, from Beta(alpha, alpha).

    Args:
        count: pictures in the batch.
        kind: "mixup", which blends; or "cutmix", which covers a box of the picture by its partner's.
        alpha: above 0; 1 draws every share alike, 0.2 mostly shares near 0 and 1.
        size: (height, width) of the images in pixels.
        generator: on the CPU; it alone decides.

    Returns:
        The mix. Of CutMix the share is what the box leaves, after it was cut at the border.

    Raises:
        ValueError: there is no picture, the kind is unknown, or alpha is not above 0.

    >>> draw_mix(4, "mixup", 0.2, (224, 224), torch.Generator().manual_seed(0)).permutation.shape
    torch.Size([4])
    """
    if kind not in get_args(MixKind):
        raise ValueError(f"unknown kind of mixing {kind!r}; known: {', '.join(get_args(MixKind))}")
    if count < 1 or min(size) < 1 or not (isfinite(alpha) and alpha > 0):
        raise ValueError(f"a batch of {count} pictures of {size} and alpha {alpha} cannot be mixed; alpha is above 0")
    permutation = torch.randperm(count, generator=generator)
    # torch draws from a Beta distribution with its global generator alone.
    stream = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    share = float(stream.beta(alpha, alpha))
    if kind == "mixup":
        return Mix(permutation, share)
    (height, width), side = size, sqrt(1 - share)
    half_height, half_width = int(height * side / 2), int(width * side / 2)
    y, x = int(stream.integers(height)), int(stream.integers(width))
    top, bottom = max(0, y - half_height), min(height, y + half_height)
    left, right = max(0, x - half_width), min(width, x + half_width)
    covered = (bottom - top) * (right - left)
    return Mix(permutation, 1 - covered / (height * width), (top, left, bottom, right))


def mixed(
    images: Tensor, targets: Tensor, kind: MixKind, alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw a mix of a batch and apply it.

    Args:
        images: (N, 3, H, W) floats, normalised.
        targets: (N, classes) floats.
        kind, alpha, generator: as in `draw_mix`.

    Returns:
        Images and targets of the same shapes.

    Raises:
        ValueError: as `draw_mix` and `Mix.apply`.

    >>> _, targets = mixed(torch.rand(4, 3, 8, 8), torch.eye(4), "cutmix", 1.0, torch.Generator().manual_seed(0))
    >>> targets.sum(dim=1).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    size = (images.shape[2], images.shape[3])
    return draw_mix(len(images), kind, alpha, size, generator).apply(images, targets)

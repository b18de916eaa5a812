"""Feature maps as vectors."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Pool = Literal["avg", "max", "flatten", "gem"]

POWER = 3.0  # of the generalised mean
LEAST = 1e-6  # to which values below are raised before it


def pooled(maps: Tensor, pool: Pool = "avg") -> Tensor:
    """Maps as vectors.

    Args:
        maps: (N, C, h, w).
        pool: "avg" and "max": the mean and the largest value of each channel; "gem": the generalised mean, the cube
            root of the mean of cubes, of values raised to 1e-6 where they are below, so that nothing of it is zero;
            "flatten": all values, channel by channel, each row by row (Keras's order is another: cell by cell).

    Returns:
        (N, C), or (N, C * h * w) for "flatten"; float32, float64 from such maps ("flatten" leaves the precision).

    Raises:
        ValueError: the pool is not known.

    Source of "gem": Fine-tuning CNN Image Retrieval with No Human Annotation, arXiv:1711.02512, section 3.2.

    >>> maps = torch.tensor([[[[0.0, 2.0], [0.0, 2.0]]]])
    >>> [pooled(maps, pool).tolist() for pool in ("avg", "max", "flatten")]
    [[[1.0]], [[2.0]], [[0.0, 2.0, 0.0, 2.0]]]
    >>> round(float(pooled(maps, "gem")) ** 3, 4)
    4.0
    """
    check_pool(pool)
    if pool == "flatten":
        return maps.flatten(1)
    if pool == "max":
        return maps.amax((2, 3)).to(numbers_of(maps))
    if pool == "avg":
        return maps.mean((2, 3), dtype=numbers_of(maps))
    return maps.to(numbers_of(maps)).clamp(min=LEAST).pow(POWER).mean((2, 3)).pow(1 / POWER)


def check_pool(pool: str) -> None:
    """ValueError where it is none."""
    if pool not in get_args(Pool):
        raise ValueError(f"unknown pool {pool!r}; known: {', '.join(get_args(Pool))}")


def numbers_of(tensor: Tensor) -> torch.dtype:
    """In which kind of number vectors of a tensor are given: float64 stays, all else becomes float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32

"""The learning rate of stage two, step by step."""

from __future__ import annotations

from math import cos, pi


def scheduled(rate: float, step: int, count: int, epochs: int) -> float:
    """Rising in a line over the first epoch, then falling as half a cosine to nearly nothing at the last step.

    The rise keeps the first steps, whose gradients are the largest and whose momentum is not there yet, from throwing
    away what the layers know; the fall lets accuracy settle.

    Args:
        rate: the highest.
        step: of all of the stage, from 0.
        count: steps of an epoch.
        epochs: that the stage takes at most; of one alone, half is the rise.

    Source: the fall is that of SGDR, arXiv:1608.03983, without restarts; the rise that of arXiv:1706.02677, section
    2.2.

    >>> [round(scheduled(1.0, step, count=4, epochs=3), 2) for step in range(12)]
    [0.25, 0.5, 0.75, 1.0, 0.97, 0.88, 0.75, 0.59, 0.41, 0.25, 0.12, 0.03]
    """
    total = count * epochs
    rise = max(1, min(count, total // 2))
    if step < rise:
        return rate * (step + 1) / rise
    return rate * (1 + cos(pi * (step - rise + 1) / (total - rise + 1))) / 2

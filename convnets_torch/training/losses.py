"""From logits and labels to one loss for each row."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from convnets_torch.training.settings import Output


def soft_targets(labels: Tensor, classes: int, smoothing: float, activation: Output) -> Tensor:
    """Labels (N,) as (N, classes) float32 of what the outputs should be.

    With smoothing s, softmax spreads s evenly over all classes; sigmoid draws each class so far towards 1/2.

    Source: Rethinking the Inception Architecture for Computer Vision, arXiv:1512.00567, section 7.

    >>> soft_targets(torch.tensor([1]), 4, 0.2, "softmax")
    tensor([[0.0500, 0.8500, 0.0500, 0.0500]])
    """
    hard = F.one_hot(labels, classes).float()
    return hard * (1 - smoothing) + smoothing / (classes if activation == "softmax" else 2)


def row_losses(logits: Tensor, targets: Tensor, activation: Output) -> Tensor:
    """The loss of each row, (N,) float32: cross entropy, or the mean over classes of the binary ones.

    Args:
        logits: (N, classes), taken as float32.
        targets: (N, classes), 0 to 1.
        activation: what will turn the logits into probabilities.
    """
    logits = logits.float()
    if activation == "softmax":
        return -(targets * logits.log_softmax(1)).sum(1)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)


def balanced(labels: Tensor, classes: int) -> Tensor:
    """A weight for each class, (classes,) float32: its rows together weigh as much as those of any other.

    The mean weight of a row is 1, so that learning rates mean the same with and without weights.

    >>> balanced(torch.tensor([0, 0, 0, 1]), 2)
    tensor([0.6667, 2.0000])
    """
    counts = torch.bincount(labels, minlength=classes).float()
    return len(labels) / (classes * counts)

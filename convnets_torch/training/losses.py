"""From logits and labels to one loss for each row."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from convnets_torch.training.settings import Output


def soft_targets(labels: Tensor, classes: int, smoothing: float, activation: Output) -> Tensor:
    """Labels as (N, classes) float32 of what the outputs should be.

    With smoothing s, softmax spreads s evenly over all classes; sigmoid draws each class so far towards 1/2.

    Args:
        labels: (N,) class ids; or (N, classes) of 0 and 1, where a row may have several classes.

    Source: Rethinking the Inception Architecture for Computer Vision, arXiv:1512.00567, section 7.

    >>> soft_targets(torch.tensor([1]), 4, 0.2, "softmax")
    tensor([[0.0500, 0.8500, 0.0500, 0.0500]])
    """
    hard = (F.one_hot(labels, classes) if labels.dim() == 1 else labels).float()
    return hard * (1 - smoothing) + smoothing / (classes if activation == "softmax" else 2)


def row_losses(logits: Tensor, targets: Tensor, activation: Output, weights: Tensor | None = None) -> Tensor:
    """The loss of each row, (N,) float32: cross entropy, or the mean over classes of the binary ones.

    Args:
        logits: (N, classes), taken as float32.
        targets: (N, classes), 0 to 1.
        activation: what will turn the logits into probabilities.
        weights: by which the losses are multiplied, (N,); or (N, classes), those of the binary ones.
    """
    logits = logits.float()
    if activation == "softmax":
        losses = -(targets * logits.log_softmax(1)).sum(1)
    else:
        if weights is not None and weights.dim() == 2:
            return F.binary_cross_entropy_with_logits(logits, targets, weights, reduction="none").mean(1)
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
    return losses if weights is None else losses * weights


def balanced(labels: Tensor, classes: int) -> Tensor:
    """A weight for each row, (N,) float32: the rows of a class together weigh as much as those of any other.

    Of rows with several labels, (N, classes) of 0 and 1, a weight for each label of each row, (N, classes): the rows
    that have a label weigh as much as those that do not. The mean weight is 1, so that learning rates mean the same
    with and without weights.

    >>> balanced(torch.tensor([0, 0, 0, 1]), 2)
    tensor([0.6667, 0.6667, 0.6667, 2.0000])
    >>> balanced(torch.tensor([[1], [0], [0], [0]]), 1).flatten()
    tensor([2.0000, 0.6667, 0.6667, 0.6667])
    """
    if labels.dim() == 1:
        counts = torch.bincount(labels, minlength=classes).float()
        return (len(labels) / (classes * counts))[labels]
    has = labels.float().mean(0)
    weights = torch.where(labels == 1, 1 / (2 * has), 1 / (2 * (1 - has)))
    return torch.where((has == 0) | (has == 1), 1, weights)  # where there is nothing to weigh against

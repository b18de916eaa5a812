"""How near answers are to others, and networks on which that is worth asking."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def with_statistics(module: AnyModule) -> AnyModule:
    """Statistics of batch normalisation as training leaves them: none is 0 or 1."""
    for each in module.modules():
        if isinstance(each, nn.BatchNorm2d):
            assert each.running_mean is not None
            assert each.running_var is not None
            each.running_mean.normal_(0, 0.2)
            each.running_var.uniform_(0.5, 2)
            nn.init.uniform_(each.weight, 0.5, 1.5)
            nn.init.normal_(each.bias, 0, 0.2)
    return module.eval()


def differ(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, of the largest number that is wanted."""
    assert found.shape == wanted.shape
    return float((found.float() - wanted).abs().max() / wanted.abs().max())

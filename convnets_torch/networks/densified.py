"""A classifier of somebody's own as a `Network`: the same parameters, under the three names, and proof of it."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor, nn

from convnets_torch.networks.cuts import cut
from convnets_torch.networks.grids import fields, grid_of
from convnets_torch.networks.network import Network, Size, check_size
from convnets_torch.networks.scoring import gather, score_map
from convnets_torch.networks.steps import steps_of

# Of the largest value, for sums in another order. Half precision has 8 or 11 bits; on GPUs, convolutions of float32
# have 11 bits too, unless the user asked for more.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 1e-1}
ON_GPU = 1e-2


class Densified(Network):
    """The features and the head of another module, whose layers it shares.

    Attributes:
        classes: how many there are.
        left_out: the module's last layer, where it makes probabilities of logits and is therefore not in the head.
    """

    classes: int
    head: nn.Sequential
    left_out: nn.Module | None

    def __init__(self, module: nn.Module, size: Size) -> None:
        """As `convnets_torch.densify` says, without a card."""
        super().__init__()
        try:
            self.size = check_size(size)
            images = _images(module, self.size)
            wanted = _logits(module, images)
            parts = cut(module, images)
            steps = steps_of(parts.features)
            down, across = fields(steps)
            if down.stride != across.stride:
                raise ValueError(f"cells are {down.stride} pixels apart vertically and {across.stride} horizontally")
        except ValueError as error:
            raise ValueError(f"{type(module).__name__} cannot be made dense: {error}") from None
        self.features, self.head, self.window = parts.features, parts.head, parts.window
        self.stride, self.classes = down.stride, wanted.shape[1]
        self.left_out = parts.left_out
        self.eval()
        self._prove(wanted, images)

    def _prove(self, wanted: Tensor, images: Tensor) -> None:
        """ValueError unless the answers are the module's, and those of larger images the head's on every crop."""
        larger = _noise((self.size[0] + self.stride, self.size[1] + self.stride), images)[:1]
        with torch.no_grad():
            found = self(images)
            _compare(found if self.left_out is None else self.left_out(found), wanted, "the module's answers")
            cells = self.features(larger)
            crops = [
                self.head(cells[:, :, row : row + self.window[0], column : column + self.window[1]])
                for row, column in product(*(range(cells.shape[2 + axis] - self.window[axis] + 1) for axis in (0, 1)))
            ]
            found = score_map(self, larger)
            _compare(found.flatten(2), torch.stack(crops, dim=2), "its head on crops of the feature map")
            grid, height = grid_of(self), larger.shape[2]
            strips = (larger[:, :, top : top + height // 2] for top in range(0, height, height // 2))
            _compare(gather(grid, strips, *larger.shape[2:]), found, "its answers in one pass, in strips of rows")


def _images(module: nn.Module, size: Size) -> Tensor:
    """What the module can be tried on, if it can be tried at all."""
    lazy = [name for name, part in module.named_modules() if getattr(part, "has_uninitialized_params", bool)()]
    if lazy:
        raise ValueError(f"{lazy[0]} has no parameters yet; run the module once on images of its size")
    parameters = [parameter for parameter in module.parameters() if parameter.dtype in TOLERANCES]
    if not parameters:
        raise ValueError("it has no parameters in floating point")
    training = [name or "the module" for name, part in module.named_modules() if part.training]
    if training:
        raise ValueError(
            f"{training[0]} is in training mode, where dropout and batch normalisation answer otherwise; call eval()"
        )
    return _noise(size, parameters[0])


def _noise(size: Size, like: Tensor) -> Tensor:
    """Two pictures of the device and kind of number of `like`."""
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)).to(like.device, like.dtype)


def _logits(module: nn.Module, images: Tensor) -> Tensor:
    shape = tuple(images.shape)
    try:
        with torch.no_grad():
            logits = module(images)
    except (RuntimeError, AssertionError, ValueError, TypeError, LookupError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"it does not take images {shape} ({reason}); give the size that it classifies") from None
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[0] != shape[0]:
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"it gives {given} for images {shape}; logits (N, classes) are wanted")
    if not torch.isfinite(logits).all():
        raise ValueError("its answers to random images are not finite, so nothing can be proven")
    return logits


def _compare(found: Tensor, wanted: Tensor, of_what: str) -> None:
    tolerance = TOLERANCES[wanted.dtype]
    if wanted.is_cuda:
        tolerance = max(tolerance, ON_GPU) if wanted.dtype != torch.float64 else tolerance
    difference, largest = float((found - wanted).abs().max()), float(wanted.abs().max())
    if found.shape != wanted.shape or not difference <= tolerance * largest:
        raise ValueError(
            f"the dense network differs from {of_what} by {difference:.3g} where values reach {largest:.3g}: an"
            " operation in the module is not what it seems; nothing is returned"
        )

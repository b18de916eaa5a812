"""Pictures that are numbers already: NumPy arrays and torch tensors, with their range checked."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from convnets_torch.preprocessing import Pixels

if TYPE_CHECKING:
    import torch


def is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    """Whether this is a torch tensor; torch is not imported to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def from_tensor(tensor: torch.Tensor) -> Pixels:
    """The pixels of a tensor (3, H, W), RGB, 0 to 255, uint8 or float, on any device: torch's own order.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: another shape, type or range; a tensor (H, W, 3) is none, even where its shape fits both.
    """
    if tensor.ndim != 3 or tensor.shape[0] != 3 or 0 in tensor.shape:
        raise ValueError(
            f"the tensor is {tuple(tensor.shape)}, but a picture is a tensor (3, height, width), RGB,"
            f" 0 to 255{_tensor_hint(tuple(tensor.shape))}"
        )
    if tensor.is_floating_point():
        tensor = tensor.float()  # NumPy has no bfloat16
    return from_array(tensor.detach().cpu().numpy().transpose(1, 2, 0), "tensor")


def from_array(array: NDArray[Any], kind: str = "array") -> Pixels:
    """The pixels of an array (H, W, 3), RGB, or (H, W), grey; 0 to 255, uint8 or float.

    Args:
        array: floats are rounded to whole numbers, never clipped; grey is repeated in the three channels.
        kind: what messages call it.

    Returns:
        (H, W, 3) uint8; an array of that kind itself.

    Raises:
        ValueError: another shape or type, values outside 0 to 255, or floats that seem to be 0 to 1.

    >>> from_array(np.array([[0.0, 127.6]])).tolist()
    [[[0, 0, 0], [128, 128, 128]]]
    >>> from_array(np.array([[0.0, 0.5]]))
    Traceback (most recent call last):
    ...
    ValueError: the array's values are 0 to 0.5, as if white were 1, but pixels are 0 to 255; multiply by 255
    """
    check_kind(array.shape, array.dtype, kind)
    if array.dtype != np.uint8:
        check_range(float(array.min()), float(array.max()), kind)
    return to_pixels(array)


def to_pixels(array: NDArray[Any]) -> Pixels:
    """The pixels of an array, or of rows cut out of one, that was checked already: rounded, grey repeated."""
    pixels = array if array.dtype == np.uint8 else np.rint(array).astype(np.uint8)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)


def check_kind(shape: tuple[int, ...], dtype: np.dtype[Any], kind: str) -> None:
    """Raise ValueError, in one sentence, when arrays of this shape and type are no pictures."""
    if not (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)) or 0 in shape:
        raise ValueError(
            f"the {kind} is {shape} {dtype}, but a picture is (height, width, 3), RGB, or (height, width), grey,"
            f" 0 to 255{_array_hint(shape)}"
        )
    if dtype != np.uint8 and not np.issubdtype(dtype, np.floating):
        way = "divide by 257 and round" if dtype == np.uint16 else "bring it to 0 to 255"
        raise ValueError(f"the {kind} is {shape} {dtype}, but pixels are uint8 or float; {way}, then take uint8")


def check_range(lowest: float, highest: float, kind: str) -> None:
    """Raise ValueError, in one sentence, when floats from `lowest` to `highest` are not 0 to 255."""
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise ValueError(f"the {kind} holds NaN or infinite values, but pixels are 0 to 255; mend it first")
    values = f"the {kind}'s values are {lowest:.6g} to {highest:.6g}"
    if lowest < 0 and highest <= 127.5:
        raise ValueError(f"{values}, as if the mean were subtracted, but pixels are 0 to 255; give the picture itself")
    if lowest < 0 or highest > 255:
        raise ValueError(f"{values}, but pixels are 0 to 255; bring them there first")
    if 0 < highest <= 1:
        raise ValueError(f"{values}, as if white were 1, but pixels are 0 to 255; multiply by 255")


def _array_hint(shape: tuple[int, ...]) -> str:
    if len(shape) == 4:
        return "; give one picture, or a list of them"
    if len(shape) == 3 and shape[0] == 3:
        return "; its channels seem to come first: array.transpose(1, 2, 0)"
    if len(shape) == 3 and shape[2] == 4:
        return "; its fourth channel seems to be transparency: array[:, :, :3]"
    if len(shape) == 3 and shape[2] == 1:
        return "; it seems to be grey: array[:, :, 0]"
    return ""


def _tensor_hint(shape: tuple[int, ...]) -> str:
    if len(shape) == 4:
        return "; give one picture, or a list of them"
    if len(shape) == 3 and shape[2] == 3:
        return "; its channels seem to come last: tensor.permute(2, 0, 1)"
    if len(shape) == 3 and shape[0] == 4:
        return "; its fourth channel seems to be transparency: tensor[:3]"
    if len(shape) == 2 or (len(shape) == 3 and shape[0] == 1):
        return "; it seems to be grey: tensor.expand(3, -1, -1)"
    return ""

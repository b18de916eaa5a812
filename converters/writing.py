"""Execute the steps of a plan with NumPy: read arrays, change their layout, write them to the output file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from converters.layouts import ORDERS, chw_rows_from_hwc, flip
from converters.readers.keras_file import KerasArray
from converters.readers.reading import Blocks, opened, values

BLOCK = 1_000_000  # values of a dense kernel read at once, 4 MB
LINE = 16  # float32 values per CPU cache line, so that transposing writes whole lines


class Job(TypedDict):
    """A `Step` as JSON values, and its destination.

    Attributes:
        source: source layers or tensor.
        place: byte offset in the output file.
        shape: shape of our parameter.
        dtype: NumPy dtype of our parameter.
        arrays: the fields of each source `KerasArray`.
        kernel_order, flipped, window: the step's layout.
        constant: the step's constant.
    """

    source: str
    place: int
    shape: list[int]
    dtype: str
    arrays: list[dict[str, Any]]
    kernel_order: str | None
    flipped: bool
    window: list[int] | None
    constant: float


def carry_out(path: str, output: str, jobs: Sequence[Job]) -> list[str]:
    """Convert arrays and write them into an existing file of final size.

    Args:
        path: the Keras file.
        output: the file to fill.
        jobs: the arrays and their destinations.

    Returns:
        The sources with NaN, infinite or (for float32) too large values.

    Raises:
        ValueError: an array cannot be read.
    """
    not_finite = []
    mapped = np.memmap(output, np.uint8, "r+")
    with opened(path) as file:
        for job in jobs:
            target = target_of(mapped, job)
            try:
                with np.errstate(over="ignore"):  # too large for float32 becomes inf and is reported
                    finite = _fill(file, job, target)
            except (OSError, KeyError, RuntimeError) as error:
                raise ValueError(f"{path}: {job['source']} cannot be read ({error}); download the file again") from None
            if not (finite or is_finite(target)):
                not_finite.append(job["source"])
    return not_finite


def target_of(mapped: NDArray[np.uint8], job: Job) -> NDArray[Any]:
    """Return the part of the output file that a job fills."""
    size = prod(job["shape"]) * np.dtype(job["dtype"]).itemsize
    return np.asarray(mapped[job["place"] : job["place"] + size]).view(job["dtype"]).reshape(job["shape"])


def is_finite(array: NDArray[Any]) -> bool:
    """Return whether all values are finite; they are checked one by one only if their float32 sum is not finite."""
    return _sum_is_finite(array) or bool(np.isfinite(array).all())


def _sum_is_finite(array: NDArray[Any]) -> bool:
    """Return whether the float32 sum is finite, which implies that all values are."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(array.sum(dtype=np.float32)))


def _fill(file: Any, job: Job, target: NDArray[Any]) -> bool:
    """Fill `target`; return True if all values were found finite, False if this was not established."""
    arrays = [*map(KerasArray.from_dict, job["arrays"])]
    if not arrays:
        target[...] = job["constant"]
    elif len(job["shape"]) == 2 and job["kernel_order"] is None:
        return _fill_dense(file, arrays[0], target, job["window"])
    else:
        start = 0
        for array in arrays:  # one per group of a convolution
            part = ORDERS[job["kernel_order"]](values(file, array))
            part = flip(part) if job["flipped"] else part
            if job["window"] is not None:  # batch normalisation of a flattened map
                _, height, width = job["window"]
                part = chw_rows_from_hwc(part[:, None], (height, width))[:, 0]
            target[start : start + len(part)] = part.reshape(len(part), *target.shape[1:])
            start += len(part)
    return False


def _fill_dense(file: Any, array: KerasArray, target: NDArray[Any], window: list[int] | None) -> bool:
    """Convert a dense kernel in blocks, so that VGG's largest one is in memory only once."""
    start, finite = 0, True
    for block in _dense_blocks(file, array, window):
        finite = finite and _sum_is_finite(block)
        for first in range(0, len(block), LINE):
            part = block[first : first + LINE].T
            target[:, start + first : start + first + part.shape[1]] = part
        start += len(block)
    return finite


def _dense_blocks(file: Any, array: KerasArray, window: list[int] | None) -> Iterator[NDArray[Any]]:
    """Yield blocks of a dense kernel's rows, in the order of our inputs."""
    rows, columns = array.shape
    if window is None:
        step = max(1, BLOCK // columns)
        for start in range(0, rows, step):
            yield values(file, array, slice(start, start + step))
        return
    channels, height, width = window
    step = max(1, BLOCK // columns // (height * width))  # channels per block, at all positions of the window
    for start in range(0, channels, step):  # the rows are in the order h, w, channels
        part = Blocks(start, height * width, channels, min(step, channels - start))
        yield chw_rows_from_hwc(values(file, array, part), (height, width))

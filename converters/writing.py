"""Execute the steps of a plan with NumPy: read arrays, change their layout, write them to the output file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from converters.layouts import (
    chw_rows_from_hwc,
    flip,
    iohw_from_hwoi,
    oihw_from_depthwise,
    oihw_from_hwio,
    transpose_dense,
)
from converters.readers.keras_file import KerasArray
from converters.readers.reading import Blocks, opened, values

BLOCK = 1_000_000  # values of a dense kernel read at once, 4 MB
LINE = 16  # float32 values per CPU cache line, so that transposing writes whole lines


class Job(TypedDict):
    """A `KerasStep` as JSON values, and its destination.

    Attributes:
        source: source layer or layers.
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
            size = int(np.prod(job["shape"], dtype=np.int64)) * np.dtype(job["dtype"]).itemsize
            flat = np.asarray(mapped[job["place"] : job["place"] + size])
            target = flat.view(job["dtype"]).reshape(job["shape"])
            try:
                with np.errstate(over="ignore"):  # too large for float32 becomes inf and is reported
                    finite = _fill(file, job, target)
            except (OSError, KeyError, RuntimeError) as error:
                raise ValueError(f"{path}: {job['source']} cannot be read ({error}); download the file again") from None
            if not (finite or is_finite(target)):
                not_finite.append(job["source"])
    return not_finite


def is_finite(array: NDArray[Any]) -> bool:
    """Return whether all values are finite; they are checked one by one only if their float32 sum is not finite."""
    return _sum_is_finite(array) or bool(np.isfinite(array).all())


def _sum_is_finite(array: NDArray[Any]) -> bool:
    """Return whether the float32 sum is finite, which implies that all values are."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(array.sum(dtype=np.float32)))


def _fill(file: Any, job: Job, target: NDArray[Any]) -> bool:
    """Fill `target`; return True if all values were found finite, False if this was not established."""
    arrays = [
        KerasArray(Path(array["path"]), array["place"], tuple(array["shape"]), array["dtype"])
        for array in job["arrays"]
    ]
    if not arrays:
        target[...] = job["constant"]
    elif len(job["shape"]) == 2 and job["kernel_order"] is None:
        return _fill_dense(file, arrays[0], target, job["window"])
    else:
        change = _kernel(job["kernel_order"], job["flipped"])
        start = 0
        for array in arrays:  # one per group of a convolution
            part = change(values(file, array))
            if job["window"] is not None:  # batch normalisation of a flattened map
                _, height, width = job["window"]
                part = chw_rows_from_hwc(part[:, None], (height, width))[:, 0]
            target[start : start + len(part)] = part.reshape(len(part), *target.shape[1:])
            start += len(part)
    return False


def _kernel(order: str | None, flipped: bool) -> Callable[[NDArray[Any]], NDArray[Any]]:
    def change(array: NDArray[Any]) -> NDArray[Any]:
        if order is not None:
            array = ORDERS[order](array)
        return flip(array) if flipped else array

    return change


ORDERS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "oihw": lambda array: array,
    "same": lambda array: array,
    "hwio": lambda array: oihw_from_hwio(array),
    "hwoi": lambda array: iohw_from_hwoi(array),
    "deconv_oihw": lambda array: array.transpose(1, 0, 2, 3),
    "deconv_hwio": lambda array: array.transpose(2, 3, 0, 1),
    "depthwise": lambda array: oihw_from_depthwise(array),
    "io": lambda array: transpose_dense(array),
    "hwc": lambda array: array.transpose(2, 0, 1),
    "flat": lambda array: array.reshape(-1),
}


def _fill_dense(file: Any, array: KerasArray, target: NDArray[Any], window: list[int] | None) -> bool:
    """Convert a dense kernel in blocks, so that VGG's largest one is in memory only once."""
    start, finite = 0, True
    for block in _dense_blocks(file, array, window):
        finite = finite and _sum_is_finite(block)
        for first in range(0, len(block), LINE):
            part = transpose_dense(block[first : first + LINE])
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

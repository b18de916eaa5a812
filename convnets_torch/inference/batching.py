"""Run work in batches, retrying with a smaller batch when memory runs out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

from convnets_torch.text import ConvnetsTorchWarning

Done = TypeVar("Done")

# Messages of the allocators of the CPU, CUDA and its libraries, and Metal; must not match "illegal memory access".
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "bad_alloc", "STATUS_ALLOC_FAILED")


class MemoryWarning(ConvnetsTorchWarning):
    """Memory ran out, and the work continues in smaller batches."""


def batches_with_retry(run: Callable[[range], Done], count: int, batch: int) -> Iterator[Done]:
    """Run work on items 0 to `count` - 1 in batches; a batch that does not fit into memory is halved.

    The size that fitted is kept for the rest. Nothing of the failed attempt is kept alive during the next one.

    Args:
        run: a range of item indices -> their result; called again with a smaller range after an out-of-memory error.
        count: number of items.
        batch: initial batch size.

    Returns:
        An iterator of the results of `run`, batch by batch, in order.

    Raises:
        ValueError: the batch size is below 1.
        MemoryError, RuntimeError: raised by `run`; out-of-memory errors only if a single item does not fit.

    Warns:
        MemoryWarning: a batch was halved.

    >>> list(batches_with_retry(list, count=5, batch=2))
    [[0, 1], [2, 3], [4]]
    """
    if batch < 1:
        raise ValueError(f"batch must be 1 or more, got {batch}")
    start = 0
    while start < count:
        items = range(start, min(start + batch, count))
        done: list[Done] = []
        try:
            done.append(run(items))
        except (MemoryError, RuntimeError) as error:
            if len(items) == 1 or not is_out_of_memory(error):
                raise
        if not done:  # outside of the handler, since the error's frames keep the tensors alive
            batch = len(items) // 2
            warnings.warn(
                f"memory ran out for {len(items)} at a time; going on with {batch}",
                MemoryWarning,
                stacklevel=2,
            )
            continue
        start = items.stop
        yield done.pop()


def is_too_small(error: Exception) -> bool:
    """Return whether an error of PyTorch says that an image is too small for the network."""
    return "too small" in str(error) or "greater than actual input size" in str(error)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that memory ran out, on any device."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)

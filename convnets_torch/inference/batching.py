"""Work in batches that become smaller when memory runs out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

from convnets_torch.text import ConvnetsTorchWarning

Done = TypeVar("Done")

# What the allocators of the CPU, of CUDA and its libraries, and of Metal say; not "illegal memory access".
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "bad_alloc", "STATUS_ALLOC_FAILED")


class MemoryWarning(ConvnetsTorchWarning):
    """Memory ran out, and the work goes on in smaller batches."""


def in_batches(run: Callable[[range], Done], count: int, batch: int) -> Iterator[Done]:
    """Run work on items 0 to `count` - 1, some at a time; a batch that does not fit into memory is halved.

    The size that fitted stays for the rest. Nothing of the failed attempt is held while the next one runs.

    Args:
        run: numbers of items -> what comes of them; it is called again for a part of those for which memory ran out.
        count: how many items there are.
        batch: how many of them go together at first.

    Returns:
        An iterator of what `run` gave, batch by batch, in order.

    Raises:
        ValueError: a batch of less than one item.
        MemoryError, RuntimeError: of `run`; for want of memory only where a single item does not fit.

    Warns:
        MemoryWarning: a batch was halved.

    >>> list(in_batches(list, count=5, batch=2))
    [[0, 1], [2, 3], [4]]
    """
    if batch < 1:
        raise ValueError(f"a batch of {batch} is none; give 1 or more")
    start = 0
    while start < count:
        items = range(start, min(start + batch, count))
        done: list[Done] = []
        try:
            done.append(run(items))
        except (MemoryError, RuntimeError) as error:
            if len(items) == 1 or not is_out_of_memory(error):
                raise
        if not done:  # outside of the handler: the error's frames hold the tensors that were too many
            batch = len(items) // 2
            warnings.warn(
                f"the memory does not suffice for {len(items)} at a time; going on with {batch}",
                MemoryWarning,
                stacklevel=2,
            )
            continue
        start = items.stop
        yield done.pop()


def is_too_small(error: Exception) -> bool:
    """Whether an error of PyTorch says that an image is too small for what is to run on it."""
    return "too small" in str(error) or "greater than actual input size" in str(error)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)

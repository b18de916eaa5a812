"""A network of this library under torch.compile, with batches of any number of pictures.

    python examples/compiled.py WEIGHTS PICTURE...

Prints how long the first call took, which compiles, and a later one, and how far the logits are from uncompiled ones.
"""

from __future__ import annotations

import sys
import time
from typing import cast

import torch

import convnets_torch


def main(weights: str, *pictures: str) -> None:
    """Compile, run twice, compare."""
    network = convnets_torch.load(weights)
    compiled = cast(convnets_torch.Network, torch.compile(network, dynamic=True))  # it has all that the network has
    for attempt in ("first call", "later call"):
        start = time.perf_counter()
        rows = list(convnets_torch.predict(compiled, pictures))
        print(f"{attempt}: {time.perf_counter() - start:.2f} s")
    differences = [
        (mine.logits - plain.logits).abs().max().item()
        for mine, plain in zip(rows, convnets_torch.predict(network, pictures), strict=True)
        if mine.logits is not None and plain.logits is not None
    ]
    print(f"largest difference of {len(differences)} pictures: {max(differences):.2g}")


if __name__ == "__main__":
    main(*sys.argv[1:])

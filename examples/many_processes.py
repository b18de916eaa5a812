"""A folder shared by several processes, which may be on several machines; the first one gathers the results.

    torchrun --nproc-per-node 2 examples/many_processes.py WEIGHTS FOLDER OUT.csv

On CUDA each process takes the device of its own number. Each classifies every n-th picture, so that all are done at
about the same time.
"""

from __future__ import annotations

import csv
import os
import sys
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import distributed

import convnets_torch
from convnets_torch.files import replacing


def main(weights: str, folder: str, output: str) -> None:
    """Write picture, best class and its words, or the error, as CSV in the order of the folder."""
    distributed.init_process_group("gloo")
    rank, processes = distributed.get_rank(), distributed.get_world_size()
    device = f"cuda:{os.environ['LOCAL_RANK']}" if torch.cuda.is_available() else "cpu"
    network = convnets_torch.load(weights, device=device, precision="auto")

    mine = convnets_torch.find_pictures(folder)[rank::processes]
    rows = []
    for entry in convnets_torch.classify_each(network, mine, top=1):
        best = entry.predictions[0] if entry.predictions else None
        rows.append([str(entry.picture), best.class_id if best else "", best.words if best else str(entry.error)])

    shares: list[Any] | None = [None] * processes if rank == 0 else None
    distributed.gather_object(rows, shares)
    if shares is not None:
        every: list[list[str]] = sorted((row for share in shares for row in share), key=itemgetter(0))
        with replacing(output) as temporary, Path(temporary).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(every)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])

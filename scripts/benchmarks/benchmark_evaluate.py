"""Overhead of evaluation over the bare pipeline; `scripts/benchmarks/benchmark.py evaluate` runs it.

Both run the same network over the same files, by `predict` with the same options: the peer discards the logits,
ours writes them to a file and counts errors; with a resume folder it also hashes the network's
244 MB and syncs its writes. The network is torchvision's AlexNet with random weights in float32, which is fast, so
that overhead is visible; pictures are those of `benchmark_pipeline`.
"""

from __future__ import annotations

import itertools
import shutil
from functools import partial
from pathlib import Path

from scripts.benchmarks.rounds import Result, alternate

CLASSES = 1000


def measure_evaluate(folder: Path, rounds: int) -> list[Result]:
    """Evaluate class folders of photographs, at exact and at reduced scale."""
    import numpy as np
    import torch
    from torchvision import models

    from convnets_torch import densify, predict
    from convnets_torch.evaluation.evaluate import evaluate
    from convnets_torch.evaluation.labels import GroundTruth
    from scripts.benchmarks.benchmark_pipeline import BATCH, make_photographs

    paths = make_photographs(folder / "large")
    torch.manual_seed(0)
    network = densify(models.alexnet().eval(), preprocessing="torchvision")
    labels = np.arange(len(paths), dtype=np.int64) * 7 % CLASSES
    truth = GroundTruth(folder / "large", tuple(paths), labels)
    numbers = itertools.count()

    def bare(exact: bool) -> int:
        return sum(row.logits is not None for row in predict(network, paths, batch=BATCH, exact=exact))

    def ours(exact: bool, resumable: bool = False) -> None:
        store = folder / f"outputs{next(numbers)}" if resumable else None
        found = evaluate(network, truth, batch=BATCH, exact=exact, store=store)
        assert len(found.labels) == len(paths)
        if store is not None:
            shutil.rmtree(store)

    work, peer = f"evaluate {len(paths)} photographs, AlexNet, float32", "bare loop over predict"
    return [
        alternate(f"{work}, whole scale", peer, partial(ours, True), partial(bare, True), rounds),
        alternate(f"{work}, reduced scale", peer, partial(ours, False), partial(bare, False), rounds),
        alternate(f"{work}, whole scale, resumable", peer, partial(ours, True, True), partial(bare, True), rounds),
    ]

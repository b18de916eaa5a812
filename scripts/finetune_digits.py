"""Compare fine-tuning with a probe on scikit-learn's handwritten digits.

    python scripts/finetune_digits.py [--seeds 0 1 2 3 4] [--json FILE] [options of fine-tuning: see --help]

It needs EfficientNet-Lite0 (the `demo` extra) and the `probes` extra; nothing is downloaded. For each seed the 1797
pictures are split anew: a fifth of each class is held out for testing. Of the rest a fifth
is for validation, by which fine-tuning chooses its epoch; both methods train on the remaining four fifths: logistic
regression on the features of the original network, and `finetune`.

It prints the mean of the differences over the seeds and its 95 % confidence interval (Student's t, seeds - 1 degrees of
freedom). Seeds share many training pictures, so the differences are not quite independent, and the interval
is somewhat too narrow.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from numpy.typing import NDArray

from convnets_torch.embeddings.cache import embed_cached
from convnets_torch.embeddings.probe import (
    LabelledVectors,
    fit_probe,
)
from convnets_torch.inference.pipeline import predict
from convnets_torch.networks import Network
from convnets_torch.training.augmentation import augmentation
from convnets_torch.training.datasets import Dataset, LabelledPaths, find_dataset
from convnets_torch.training.finetuning import finetune
from convnets_torch.training.settings import Settings
from convnets_torch.weights import (
    last_dense,
    load,
)
from scripts.benchmarks.machine import facts
from tests.reference.digits import write_digits

HELD_OUT, VAL = 0.2, 0.2  # of all pictures; of the rest


@dataclass(frozen=True)
class Row:
    """Results of one split: test accuracies, 0 to 1, and seconds of fine-tuning."""

    seed: int
    learnt: int
    asked: int
    probe: float
    first_stage: float
    finetuned: float
    seconds: float
    best_epoch: int
    epochs: int


@dataclass(frozen=True)
class Paired:
    """Mean of differences and its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def paired(ours: list[float], theirs: list[float]) -> Paired:
    """Return the mean of ours - theirs with Student's interval."""
    from scipy.stats import ttest_rel

    ends = ttest_rel(ours, theirs).confidence_interval(0.95)
    return Paired(float(np.mean(ours) - np.mean(theirs)), float(ends.low), float(ends.high))


def divided(pictures: Path, table: Path, seed: int) -> tuple[Dataset, LabelledPaths]:
    """Split into the dataset of both methods (training and validation) and the test pictures."""
    outer = find_dataset(pictures, val_share=HELD_OUT, seed=seed)
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label"))
        rows.writerows((path, outer.classes[label]) for path, label in outer.train)
    return find_dataset(table, val_share=VAL, seed=seed), outer.val


def labelled(network: Network, pictures: LabelledPaths, classes: tuple[str, ...], cache: Path) -> LabelledVectors:
    """Return the features of pictures, cached if possible."""
    kept = embed_cached(network, [path for path, _ in pictures], cache=cache)
    vectors = np.stack([vector for path, _ in pictures if (vector := kept.of(path)) is not None])
    return LabelledVectors(vectors, np.array([label for _, label in pictures]), classes)


def accuracy(network: Network, asked: LabelledPaths) -> float:
    """Share of the pictures whose class has the highest logit."""
    answers = predict(network, [path for path, _ in asked])
    right = [
        row.logits is not None and int(row.logits.argmax()) == label
        for row, (_, label) in zip(answers, asked, strict=True)
    ]
    return float(np.mean(right))


def compare(seed: int, folder: Path, settings: Settings) -> Row:
    """Compare both methods on one split."""
    network, cache = load("efficientnet_lite0"), folder / "cache"
    data, asked = divided(folder / "digits", folder / f"{seed}.csv", seed)
    probe = fit_probe(labelled(network, data.train, data.classes, cache), "logistic")
    held_out = labelled(network, asked, data.classes, cache)
    by_probe = float((probe.logits(held_out.vectors).argmax(1) == held_out.labels).mean())
    output = folder / f"{seed}.safetensors"
    start = time.perf_counter()
    # the same digit by different writers can look nearly alike
    first = finetune(network, data, output, replace(settings, seed=seed, epochs=0), allow_leaks=True, cache=cache)
    by_first = float((head_logits(first.network, held_out.vectors).argmax(1) == held_out.labels).mean())
    found = finetune(network, data, output, replace(settings, seed=seed), allow_leaks=True, cache=cache)
    seconds = time.perf_counter() - start
    by_both = accuracy(load(output), asked)  # as a user loads it
    row = Row(
        seed, len(data.train), len(asked), by_probe, by_first, by_both, seconds, found.best.epoch, len(found.history)
    )
    print(
        f"| {seed} | {by_probe:.4f} | {by_first:.4f} | {by_both:.4f} | {by_both - by_probe:+.4f}"
        f" | {found.best.epoch} of {row.epochs} | {seconds:.0f} |",
        flush=True,
    )
    return row


def head_logits(network: Network, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Apply the last dense layer to features."""
    layer = network.get_submodule(last_dense(network))
    with torch.inference_mode():
        logits: NDArray[np.float32] = layer(torch.from_numpy(vectors)).numpy()
    return logits


def main() -> None:
    """Compare for each seed, print a table and the interval, and optionally write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="two or more")
    parser.add_argument("--count", type=int, help="pictures of each digit; all, some 180, by default")
    parser.add_argument("--unfreeze", default="features.block11", help="stage two trains from this layer on")
    parser.add_argument("--epochs", type=int, default=4, help="of stage two, at most")
    parser.add_argument("--optimizer", choices=["sgd", "adamw"], default="sgd")
    parser.add_argument("--lr", type=float, default=3e-4, help="of stage two")
    parser.add_argument("--json", type=Path, help="also write the results here")
    arguments = parser.parse_args()
    if len(arguments.seeds) < 2:
        parser.error("an interval takes two seeds or more")
    settings = Settings(
        unfreeze=arguments.unfreeze,
        epochs=arguments.epochs,
        optimizer=arguments.optimizer,
        lr=arguments.lr,
        augmentation=augmentation("light", flip=0.0),  # a mirrored 2 is not a 2
    )
    machine = facts()
    print("; ".join(f"{name} {fact}" for name, fact in machine.items()) + "\n")
    print("| seed | probe | stage one | both stages | difference to the probe | best epoch | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        write_digits(Path(name) / "digits", count=arguments.count)
        rows = [compare(seed, Path(name), settings) for seed in arguments.seeds]
    interval = paired([row.finetuned for row in rows], [row.probe for row in rows])
    means = [float(np.mean([getattr(row, side) for row in rows])) for side in ("probe", "first_stage", "finetuned")]
    print(f"\nmeans: probe {means[0]:.4f}, stage one {means[1]:.4f}, both stages {means[2]:.4f}")
    print(
        f"difference to the probe: mean {interval.mean:+.4f}, 95 % interval {interval.low:+.4f} to {interval.high:+.4f}"
        f" ({len(rows)} seeds; {rows[0].learnt} pictures learnt from, {rows[0].asked} asked for)"
    )
    if arguments.json:
        record = {
            "machine": machine,
            "settings": settings.to_dict(),
            "rows": [asdict(row) for row in rows],
            "difference": asdict(interval),
        }
        arguments.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()

"""Measure how far the answers of prepared networks are from float32; prints the table of docs/speed.md.

    pip install '.[demo]' scikit-learn
    python scripts/benchmarks/measure_precision.py [NETWORK ...] [--inputs 240] [--json FILE]

Inputs are crops of the photographs that come with scikit-image and scikit-learn, at several positions and sizes, their
mirror images, and noise. EfficientNet-Lite0 has its trained weights; the other networks have random ones (He
initialisation, batch normalisation statistics from the inputs), whose classes are closer together than trained
ones, so their agreement is a worst case.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from convnets_torch.images.preprocessing import Preprocessing, normalize, preset
from convnets_torch.inference.prepare import Precision, prepare
from convnets_torch.networks import NETWORKS, Network
from scripts.judged_photographs import photographs, trained

BATCH = 16
PRECISIONS: tuple[Precision, ...] = ("exact", "float32", "bfloat16")  # float16 takes seconds per image on CPUs
NOISE = 6  # one input in this many is noise


@dataclass
class Row:
    """One network in one precision, against PyTorch's eager float32."""

    network: str
    weights: str
    precision: str
    inputs: int
    same_best: float
    same_five: float
    largest_difference: float
    mean_difference: float


def inputs(rule: Preprocessing, count: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Return normalised inputs (3, H, W)."""
    pictures = [each.pixels for each in photographs()]
    height, width = rule.shape
    for number in range(count):
        if number % NOISE == NOISE - 1:
            pixels = generator.integers(0, 256, (height, width, 3)).astype(np.uint8)
        else:
            picture = pictures[number % len(pictures)]
            share = generator.uniform(0.3, 1)
            side = max(8, round(share * min(picture.shape[:2])))
            top, left = (int(generator.integers(0, picture.shape[axis] - side + 1)) for axis in (0, 1))
            crop = Image.fromarray(picture[top : top + side, left : left + side])
            pixels = np.asarray(crop.resize((width, height), Image.Resampling.BILINEAR))
            if generator.random() < 0.5:
                pixels = pixels[:, ::-1]
        yield normalize(pixels, rule)


def randomized(name: str, images: Tensor) -> Network:
    """Return a network with random weights whose activations keep their scale through the layers."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # average the statistics over all batches
    network.train()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    with torch.no_grad():
        network(images)
        network.eval()
        last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
        last.weight.mul_(4 / network(images).std())  # the spread of trained networks' logits
    return network


def measure(name: str, count: int, precisions: Sequence[Precision]) -> list[Row]:
    """Measure several precisions of one network."""
    rule = preset(name)
    arrays = torch.from_numpy(np.stack(list(inputs(rule, count, np.random.default_rng(0)))))
    is_trained = name == "efficientnet_lite0"
    network = trained() if is_trained else randomized(name, arrays[:BATCH])
    wanted = chances(network, arrays)
    rows = []
    for precision in precisions:
        ready = prepare(network, device="cpu", precision=precision)
        found = chances(ready, arrays)
        best = (found.argmax(1) == wanted.argmax(1)).float().mean()
        five = (found.topk(5).indices.sort().values == wanted.topk(5).indices.sort().values).all(1).float().mean()
        difference = (found - wanted).abs()
        rows.append(
            Row(
                name,
                "trained" if is_trained else "random",
                precision,
                count,
                float(best),
                float(five),
                float(difference.max()),
                float(difference.amax(dim=1).mean()),
            )
        )
    return rows


def chances(network: Network, arrays: Tensor) -> Tensor:
    """Probabilities (N, classes) in float32."""
    dtype = next(network.parameters()).dtype
    with torch.inference_mode():
        return torch.cat([network(batch.to(dtype)).float().softmax(1) for batch in torch.split(arrays, BATCH)])


def main() -> None:
    """Measure the named networks and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", choices=[*NETWORKS, []])
    parser.add_argument("--inputs", type=int, default=240)
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=get_args(Precision))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows: list[Row] = []
    print("| network | weights | precision | inputs | same best class | same best five | largest difference | mean |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.networks or NETWORKS:
        for row in measure(name, arguments.inputs, arguments.precisions):
            rows.append(row)
            print(
                f"| {row.network} | {row.weights} | {row.precision} | {row.inputs} | {row.same_best:.1%}"
                f" | {row.same_five:.1%} | {row.largest_difference:.2g} | {row.mean_difference:.2g} |",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()

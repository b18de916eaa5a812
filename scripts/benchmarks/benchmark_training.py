"""Time that cached features save in stage one, and memory of stage two (`benchmark.py training`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scripts.benchmarks.rounds import Result

PICTURES, CLASSES = 64, 10
BATCH = 8  # pictures per batch
FROM = (
    "head.dense_3",
    "head",
    "features.conv5_1",
    "features.conv4_1",
    "features.conv3_1",
    "features.conv2_1",
    "features",
)
STEPS = """
import torch
from convnets_torch.training.stages import freeze, unfrozen
from convnets_torch.training.stages import row_losses, soft_targets
from convnets_torch.weights import load

network = load({weights!r}, mapped=False)
trained = unfrozen(network, {layer!r})
freeze(network, trained, dropout=True)
learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
optimizer = torch.optim.SGD(learning, 1e-4, momentum=0.9)
images, labels = torch.randn({batch}, 3, 224, 224), torch.arange({batch})
print(sum(parameter.numel() for parameter in learning), flush=True)
input()
for _ in range(2):  # the second has momentum
    optimizer.zero_grad()
    row_losses(network(images), soft_targets(labels, 1000, 0.0, "softmax"), "softmax").mean().backward()
    optimizer.step()
"""


def measure_training(folder: Path, rounds: int) -> list[Result]:
    """Measure epochs of stage one with full-size VGG16 and random weights, alternating; then print a table of memory.

    The peer has decoded and cropped pictures in memory, and runs the frozen layers as `embed` does.
    """
    import torch

    from convnets_torch.embeddings.extraction import Embedder
    from convnets_torch.images.resizing import normalized
    from convnets_torch.training.settings import Settings
    from convnets_torch.training.stages import HeadStage
    from convnets_torch.weights import load
    from scripts.benchmarks.rounds import alternate

    network = load(folder / "vgg16.safetensors", mapped=False)
    assert network.card is not None
    rule, embedder = network.card.preprocessing, Embedder(network)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (PICTURES, 224, 224, 3), dtype=torch.uint8, generator=generator)
    labels = torch.arange(PICTURES) % CLASSES

    def features() -> torch.Tensor:
        with torch.inference_mode():
            return torch.cat([embedder(normalized(part, rule)) for part in pixels.split(BATCH)])  # type: ignore[no-untyped-call]

    cached = features().clone()
    stage = HeadStage(cached, labels, cached, labels, CLASSES, Settings())

    def epoch() -> None:
        for step in stage.steps(1, 0):
            stage.optimizer.zero_grad()
            step.loss.backward()  # type: ignore[no-untyped-call]
            stage.optimizer.step()

    def frozen() -> None:
        features()
        epoch()

    result = alternate(
        f"epoch of stage one, VGG16, {PICTURES} pictures", "frozen network run each epoch", epoch, frozen, rounds
    )
    print_memory(folder / "vgg16.safetensors")
    return [result]


def print_memory(weights: Path) -> None:
    """Print the memory that two steps of stage two add to a process with the network and a batch."""
    from scripts.benchmarks.benchmark import memory_growth

    print(f"memory that stage two adds, VGG16, batches of {BATCH}, SGD with momentum\n")
    print("| trains from | parameters, M | gradients and momentum, MB | added at most, MB | the rest, MB |")
    print("| --- | --- | --- | --- | --- |")
    for layer in FROM:
        count, growth = memory_growth(STEPS.format(weights=str(weights), layer=layer, batch=BATCH))
        known = 8 * int(count) / 1e6
        print(f"| {layer} | {int(count) / 1e6:.1f} | {known:.0f} | {growth / 1e6:.0f} | {growth / 1e6 - known:.0f} |")
    print()

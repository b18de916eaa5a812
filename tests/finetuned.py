"""What the tests of fine-tuning share: small pictures of three colours, and a narrow network that learns them fast."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from convnets_torch.card import Card
from convnets_torch.images.preprocessing import preset
from convnets_torch.networks import Network, resnet50
from convnets_torch.training.settings import Settings

COLORS = {"ant": (200, 60, 60), "bee": (60, 200, 60), "cat": (60, 60, 200)}
WIDTHS = (8, 8, 16, 32, 64)
# Stage two is better than stage one with it, on one core as on many.
QUICK = Settings(head_epochs=1, head_lr=3e-4, epochs=2, batch=8, lr=3e-5, unfreeze="conv5_block3", dropout=False)


def draw_pictures(folder: Path, count: int = 10) -> Path:
    """Noise around a colour for each class: easy, but not certain."""
    generator = np.random.default_rng(0)
    for name, color in COLORS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.normal(0, 90, (70, 90, 3)) + color
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


def small_resnet(classes: int | None = 10) -> Network:
    """A narrow ResNet50 for 64 x 64 pixels with seeded weights and statistics, in eval mode."""
    torch.manual_seed(0)
    network = resnet50(classes, widths=WIDTHS, size=(64, 64))
    for name, values in network.named_buffers():
        if name.endswith("running_var"):
            values.uniform_(0.5, 1.5)
        elif name.endswith("running_mean"):
            values.normal_(0, 0.1)
    rule = preset("resnet50", "torchvision", 64)
    names = None if classes is None else tuple(f"class {number}" for number in range(classes))
    network.card = Card("resnet50", {"classes": classes, "widths": WIDTHS, "size": (64, 64)}, rule, names)
    return network.eval()

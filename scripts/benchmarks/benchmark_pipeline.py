"""JPEG files to the top five classes, against a DataLoader; `scripts/benchmarks/benchmark.py pipeline` runs it.

The network is torchvision's AlexNet with random weights, with torchvision's preprocessing, on both sides. The files
are scikit-image's colour photographs enlarged to 2560x1600, so that they compress like photographs without noise.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.benchmarks.rounds import Result, alternate

if TYPE_CHECKING:
    import torch

    from convnets_torch.images.preprocessing import Pixels


WIDTH, HEIGHT = 2560, 1600
COUNT = 64  # files
BATCH = 16
NAMES = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")


def make_photographs(folder: Path) -> list[Path]:
    """Write files of 2560x1600, each of a different part of a photograph."""
    import skimage
    from PIL import Image

    folder.mkdir(exist_ok=True)
    paths = []
    for number in range(COUNT):
        with Image.open(Path(skimage.__file__).parent / "data" / NAMES[number % len(NAMES)]) as image:
            width, height = image.width, round(image.width * HEIGHT / WIDTH)
            left, top = number % 8, number // 8
            part = image.convert("RGB").crop((left, top, width - 8 + left, min(height, image.height) - 8 + top))
            paths.append(folder / f"{number:03}.jpg")
            part.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def measure_pipeline(folder: Path, rounds: int) -> list[Result]:
    """Measure top five of files: a DataLoader and eager float32, against `predict` with a prepared network."""
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import models, transforms

    from convnets_torch import densify, predict, prepare

    paths = make_photographs(folder / "large")
    torch.manual_seed(0)
    peer = models.alexnet().eval()
    network = densify(peer, preprocessing="torchvision")
    ready, plain = prepare(network, device="cpu"), prepare(network, device="cpu", precision="float32")
    steps = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )

    class Photographs(Dataset[torch.Tensor]):
        """Like torchvision's ImageFolder, without labels."""

        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, number: int) -> torch.Tensor:
            with paths[number].open("rb") as file:
                return steps(Image.open(file).convert("RGB"))

    def usual() -> list[list[int]]:
        best = []
        for images in DataLoader(Photographs(), batch_size=BATCH, num_workers=2):
            with torch.inference_mode():
                best += peer(images).softmax(dim=1).topk(5).indices.tolist()
        return best

    def ours(network: torch.nn.Module, **options: bool | str) -> Callable[[], list[list[int]]]:
        def call() -> list[list[int]]:
            rows = predict(network, paths, batch=BATCH, **options)  # type: ignore[arg-type]
            return [row.logits.softmax(dim=0).topk(5).indices.tolist() for row in rows if row.logits is not None]

        return call

    for line in stages(paths, network, ready):
        print(line)
    print()
    work, loader = f"{COUNT} photographs of {WIDTH}x{HEIGHT} to top five, AlexNet", "DataLoader, 2 workers, float32"
    return [
        alternate(f"{work}, auto", loader, ours(ready), usual, rounds),
        alternate(f"{work}, auto, exact pixels", loader, ours(ready, exact=True), usual, rounds),
        alternate(f"{work}, float32, exact pixels", loader, ours(plain, exact=True), usual, rounds),
    ]


def stages(paths: list[Path], network: torch.nn.Module, ready: torch.nn.Module) -> Iterator[str]:
    """Return the CPU time of each stage for one photograph, in ms on one thread, averaged over all files."""
    import numpy as np
    import torch

    from convnets_torch.images.decoding import Reading, decode
    from convnets_torch.images.preprocessing import crop_image, least_size
    from convnets_torch.images.resizing import normalized
    from convnets_torch.inference.torchcodec import jpeg_decoder
    from convnets_torch.networks import Network

    assert isinstance(network, Network)
    assert network.card is not None
    rule = network.card.preprocessing
    readings = {"whole scale": Reading(), "reduced scale": Reading(least=least_size(rule))}
    try:
        readings["torchcodec, whole scale"] = Reading(jpeg=jpeg_decoder())
    except ImportError as error:
        yield str(error)
    cut: list[Pixels] = []
    for name, reading in readings.items():
        decoding = resizing = 0.0
        cut = []
        for path in paths:
            start = time.thread_time()
            found = decode(path, reading)
            between = time.thread_time()
            cut.append(crop_image(found.image, rule, found.part))
            decoding, resizing = decoding + between - start, resizing + time.thread_time() - between
        milliseconds = (1000 * seconds / len(paths) for seconds in (decoding, resizing))
        yield "{}: decode {:.1f} ms, resize and crop {:.1f} ms".format(name, *milliseconds)
    pixels = torch.from_numpy(np.stack(cut[:BATCH]))
    for name, module in (("float32, eager", network), ("auto", ready)):
        dtype = next(module.parameters()).dtype
        seconds = []
        for _ in range(5):
            with torch.inference_mode():
                start = time.process_time()
                images = normalized(pixels, rule).to(dtype)
                between = time.process_time()
                module(images)
                seconds.append((between - start, time.process_time() - between))
        normalising, running = (1000 * statistics.median(column) / BATCH for column in zip(*seconds, strict=True))
        yield (
            f"{name}, {BATCH} at a time: normalise {normalising:.1f} ms, network {running:.1f} ms"
            f" ({os.cpu_count()} cores together)"
        )

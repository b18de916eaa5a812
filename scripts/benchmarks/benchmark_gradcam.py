"""Time of Grad-CAM, against peers; `scripts/benchmarks/benchmark.py gradcam` runs it.

Images are noise and weights random, which does not affect the time.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from scripts.benchmarks.rounds import Result, alternate

BATCH = 8
TARGETS = (3, 151, 281, 500, 999)


def measure_gradcam(folder: Path, rounds: int) -> list[Result]:
    """Measure maps of 8 images with VGG16 in float32, all on the same module, for one and five targets."""
    import torch
    from pytorch_grad_cam import GradCAM as OtherGradCam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    from torchcam.methods import GradCAM as TorchCam

    from convnets_torch.explain.gradcam import cams
    from convnets_torch.weights import load

    network = load(folder / "vgg16.safetensors", mapped=False)
    layer = "features.relu5_3"
    images = torch.randn(BATCH, 3, 224, 224)
    target = TARGETS[0]

    def ours(*targets: int) -> Callable[[], object]:
        return lambda: cams(network, images, targets, layer=layer)

    def torchcam(*targets: int) -> Callable[[], object]:
        def call() -> None:
            with TorchCam(network, layer) as extractor:
                for each in targets:
                    extractor(each, network(images))

        return call

    def pytorch_grad_cam() -> None:
        with OtherGradCam(network, [network.get_submodule(layer)]) as extractor:
            extractor(images, [ClassifierOutputTarget(target)] * BATCH)
        network.zero_grad(set_to_none=True)

    work = f"Grad-CAM, VGG16, {BATCH} images"
    return [
        alternate(work, "pytorch-grad-cam", ours(target), pytorch_grad_cam, rounds),
        alternate(work, "TorchCAM", ours(target), torchcam(target), rounds),
        alternate(f"{work}, five targets", "TorchCAM, five calls", ours(*TARGETS), torchcam(*TARGETS), rounds),
    ]

"""Time of filter patterns, against a loop over channels; `scripts/benchmarks/benchmark.py filters` runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from scripts.benchmarks.rounds import Result, alternate

CHANNELS, STEPS = 64, 20
DRAWN = 4  # channels that the peer draws; one after another, so that all of them take 16 times as long
LAYER = "features.conv4_1"


def measure_filters(folder: Path, rounds: int) -> list[Result]:
    """Measure patterns of VGG16's conv4_1, against one channel at a time through the whole network at 224 pixels.

    The peer is plain gradient ascent as usually written: a hook on the layer, the whole network forward, and backward
    with the gradients of the parameters. Ours is measured at its default 128 pixels, and at the same 224.
    """
    import torch

    from convnets_torch.explain.filters import filter_patterns
    from convnets_torch.weights import load

    network = load(folder / "vgg16.safetensors", mapped=False)
    module = network.get_submodule(LAYER)

    def one_at_a_time() -> None:
        for channel in range(DRAWN):
            seen: list[torch.Tensor] = []
            handle = module.register_forward_hook(lambda layer, inputs, output, seen=seen: seen.append(output))
            image = torch.rand(1, 3, 224, 224, requires_grad=True)
            for _ in range(STEPS):
                network(image)
                torch.autograd.backward(seen.pop()[0, channel].mean())
                gradient = image.grad
                assert gradient is not None
                with torch.no_grad():
                    image += gradient / (gradient.square().mean().sqrt() + 1e-5)
                image.grad = None
                network.zero_grad()
            handle.remove()

    def ours(size: int, form: str) -> Callable[[], object]:
        return lambda: filter_patterns(network, LAYER, range(CHANNELS), form=form, steps=STEPS, size=size)  # type: ignore[arg-type]

    def measured(size: int, form: str) -> Result:
        work = f"{CHANNELS} patterns of conv4_1, {form}, {size} pixels"
        found = alternate(work, peer, ours(size, form), one_at_a_time, max(1, rounds // 3))
        times = CHANNELS / DRAWN
        return replace(
            found,
            peer_s=found.peer_s * times,
            ratio=found.ratio * times,
            ratio_low=found.ratio_low * times,
            ratio_high=found.ratio_high * times,
        )

    peer = f"one channel at a time, whole network, 224 pixels, {DRAWN} of them measured"
    return [measured(size, form) for form, size in (("plain", 128), ("fourier", 128), ("plain", 224))]

"""Images and files to logits on a GPU; `scripts/benchmarks/benchmark.py gpu` runs it if there is one.

Peers are torchvision's modules in the same precision, channels-last, eager and compiled with CUDA graphs. Each time is
that of a synchronised call. The floor is the network's operations at the rate of the fastest matrix product
measured on the device.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.benchmarks.machine import matrix_rate, memory_rate, seconds_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from scripts.benchmarks.rounds import Result

NETWORKS = ("vgg16", "resnet50", "alexnet")
BATCHES = (1, 16, 256)
EAGER = "torchvision eager, channels-last"


def measure_gpu(folder: Path, rounds: int) -> list[Result]:
    """Measure each network and batch, then photographs."""
    import torch

    if not torch.cuda.is_available():
        print("gpu: left out (PyTorch finds no CUDA)\n")
        return []
    results = []
    for name in NETWORKS:
        for batch in BATCHES:
            results += measure(name, batch, rounds, "cuda")
    return [*results, *measure_files(folder, rounds, "cuda")]


def measure(name: str, batch: int, rounds: int, device: str) -> list[Result]:
    """Alternate all programs in each round, each repeated for at least a tenth of a second."""
    import torch
    import torchvision

    from convnets_torch.inference.prepare import dtype_of
    from scripts.benchmarks.rounds import compared

    torch.manual_seed(0)
    module = getattr(torchvision.models, name)(weights=None).eval()
    dtype = dtype_of("auto", torch.device(device))
    images = torch.randn(batch, 3, 224, 224, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    print(f"\n## {name}, 224, batch {batch}, {str(dtype).removeprefix('torch.')}\n")
    print("| program | ms, median | images/s | peak of memory, MB | of the floor |\n| --- | --- | --- | --- | --- |")
    floor = operations(module) * batch / matrix_rate(dtype, device)
    calls, peaks, seconds = {}, {}, {}
    for program, build in programs(module, dtype, device).items():
        calls[program], peaks[program] = ready(build(), images, device)
        seconds[program] = list[float]()
    for number in range(rounds):
        for program in list(calls) if number % 2 else reversed(calls):
            seconds[program].append(mean_seconds(calls[program], images, device))
    for program, times in seconds.items():
        middle = statistics.median(times)
        rate, distance = batch / middle, middle / floor
        print(f"| {program} | {1000 * middle:.2f} | {rate:.0f} | {peaks[program] / 1e6:.0f} | {distance:.2f} |")
    ours = [program for program in seconds if program.startswith("ours")]
    return [
        compared(f"{name}, batch {batch}, {device}: {mine}", peer, seconds[mine], seconds[peer])
        for mine in ours
        for peer in seconds
        if peer not in ours
    ]


def programs(module: nn.Module, dtype: torch.dtype, device: str) -> dict[str, Callable[[], Any]]:
    """Return builders of our programs and the peers'."""
    import torch

    from convnets_torch.inference.prepare import prepare

    def eager() -> Any:
        return copy.deepcopy(module).to(device, dtype).to(memory_format=torch.channels_last)

    return {
        "ours, prepare": lambda: prepare(module, device=device),
        "ours, prepare compiled": lambda: prepare(module, device=device, compiled=True),
        EAGER: eager,
        "torch.compile, reduce-overhead": lambda: torch.compile(eager(), mode="reduce-overhead"),
    }


def ready(program: Any, images: Tensor, device: str) -> tuple[Any, int]:
    """Run three times; return the peak memory of the third run."""
    import warnings

    import torch

    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        program(images)
        program(images)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        program(images)
    return program, torch.cuda.max_memory_allocated() if device == "cuda" else 0


def mean_seconds(program: Any, images: Tensor, device: str) -> float:
    """Mean seconds of a call, over as many calls as take a tenth of a second."""
    import torch

    with torch.inference_mode():
        count = max(1, round(0.1 / seconds_of(lambda: program(images), device)))
        return sum(seconds_of(lambda: program(images), device) for _ in range(count)) / count


def operations(module: nn.Module) -> int:
    """Operations for one image; a multiply-add counts as two."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        module(torch.zeros(1, 3, 224, 224))
    return int(counter.get_total_flops())


def measure_files(folder: Path, rounds: int, device: str) -> list[Result]:
    """Measure photographs through AlexNet, against decoding alone, which is the limit."""
    import torch
    import torchvision

    from convnets_torch import densify, predict, prepare
    from convnets_torch.inference.pipeline import BATCH, THREADS, Inputs, prefetch
    from scripts.benchmarks.benchmark_pipeline import make_photographs
    from scripts.benchmarks.rounds import alternate

    torch.manual_seed(0)
    paths = make_photographs(folder / "large") * 4
    network = densify(torchvision.models.alexnet().eval(), preprocessing="torchvision")
    on_device = prepare(network, device=device)
    assert network.card is not None
    inputs = Inputs(network.card.preprocessing, torch.device(device), on_device=True)

    def whole() -> None:
        assert all(row.error is None for row in predict(on_device, paths))

    def decoding() -> None:
        assert all(entry.notes == () for _, entry in prefetch(paths, inputs.decode, most=4 * BATCH, threads=THREADS))

    start = time.perf_counter()
    decoding()
    print(f"\ndecoding alone: {len(paths) / (time.perf_counter() - start):.0f} photographs/s")
    print(f"memory of the device is read at {memory_rate(device) / 1e9:.0f} GB/s")
    return [
        alternate(f"{len(paths)} photographs to logits, AlexNet, {device}", "decoding alone", whole, decoding, rounds)
    ]

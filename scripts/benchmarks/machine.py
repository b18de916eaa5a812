"""Facts about the machine, and the rates that limit every program."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "torch", "torchvision", "numpy", "PIL", "timm", "onnxruntime", "openvino", "keras", "torchcam", "torchcodec",
    "lancedb", "faiss-cpu",
)  # fmt: skip
FLAGS = {"amx_tile": "AMX", "amx_bf16": "AMX-BF16", "avx512_bf16": "AVX512-BF16", "avx512f": "AVX512", "avx2": "AVX2"}
SHAPES = ((1024, 1024, 1024), (2048, 2048, 2048), (3136, 4608, 512), (4096, 1024, 1024))  # of the products tried


def facts() -> dict[str, str]:
    """Return processor, instruction sets, cores, load, accelerator and versions."""
    import torch

    name, flags = processor()
    found = [word for flag, word in FLAGS.items() if flag in flags]
    known = {
        "processor": name,
        "instructions": ", ".join(found) or "none of " + ", ".join(FLAGS.values()),
        "cores": f"{os.cpu_count()}; {torch.get_num_threads()} threads of torch",
        "load average": " ".join(f"{load:.1f}" for load in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown",
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "system": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}".rstrip(", "),
        "python": platform.python_version(),
    }
    return known | {name: version_of(name) for name in PACKAGES}


def processor() -> tuple[str, list[str]]:
    """Return the processor's name and instruction sets."""
    if Path("/proc/cpuinfo").exists():
        lines = (line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
        told = {key.strip(): value.strip() for key, value in lines}
        return told.get("model name", platform.machine()), told.get("flags", "").split()
    if platform.system() == "Darwin":
        ask = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip(), []
    return platform.processor() or platform.machine(), []


def version_of(name: str) -> str:
    """Return a package's version, from its metadata if possible."""
    distribution = {"PIL": "pillow"}.get(name, name)
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def matrix_rate(dtype: torch.dtype, device: str = "cpu") -> float:
    """Operations per second of the fastest of several matrix products, as products and as 1x1 convolutions.

    PyTorch uses different libraries for these, and on some processors one of them is much slower.
    """
    import torch
    from torch.nn import functional as F

    best = 0.0
    larger = 1 if device == "cpu" else 4
    for sides in SHAPES:
        rows, inner, columns = (larger * side for side in sides)
        one = torch.randn(rows, inner, device=device).to(dtype)
        other = torch.randn(inner, columns, device=device).to(dtype)
        cells = one.view(1, rows, 1, inner).permute(0, 3, 1, 2)  # channels last
        kernels = other.t().contiguous().view(columns, inner, 1, 1).to(memory_format=torch.channels_last)
        programs = (partial(torch.mm, one, other), partial(F.conv2d, cells, kernels))
        seconds = min(seconds_of(program, device) for program in programs for _ in range(12))
        best = max(best, 2 * rows * inner * columns / seconds)
    return best


def memory_rate(device: str = "cpu") -> float:
    """Bytes per second of the fastest of several sums over 256 MB."""
    import torch

    numbers = torch.ones(64_000_000, device=device)
    return max(256e6 / seconds_of(numbers.sum, device) for _ in range(5))


def seconds_of(work: Callable[[], object], device: str = "cpu") -> float:
    """Seconds of a call, including its work on the device."""
    import torch

    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start

"""Images to logits on the CPU, against everything else that runs them; `scripts/benchmark.py classify` runs it.

The floor is what the machine cannot go below: the network's operations at the rate of the best matrix product measured
on the spot, or its weights at the rate at which memory is read, whichever takes longer.
"""

from __future__ import annotations

import importlib
import platform
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from scripts.benchmark import Result

Program = Callable[["Tensor"], object]


@dataclass(frozen=True)
class Work:
    """One row of the table: a network of torchvision and a batch."""

    name: str
    batch: int
    float32_only: bool = False
    timm: str | None = None  # its name there

    def __str__(self) -> str:
        return f"{self.name}, 224, batch {self.batch}{', float32 only' if self.float32_only else ''}"


WORKS = (
    Work("vgg16", 8, timm="vgg16"),
    Work("alexnet", 16),
    Work("resnet50", 8, timm="resnet50"),
    Work("vgg16", 1, timm="vgg16"),
    Work("vgg16", 8, float32_only=True, timm="vgg16"),
)


def measure_classify(folder: Path, rounds: int) -> list[Result]:
    """Every row of the table: all programs in turn in each round, the order reversed in every second one."""
    print_machine()
    results = []
    for work in WORKS:
        results += measure(work, rounds)
    return results


def measure(work: Work, rounds: int) -> list[Result]:
    """One row: the strongest of ours against each peer, and the floor."""
    import torch
    import torchvision

    torch.manual_seed(0)
    module = getattr(torchvision.models, work.name)(weights=None).eval()
    images = torch.randn(work.batch, 3, 224, 224)
    print(f"\n## {work}\n")
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as name, torch.inference_mode():
        warnings.simplefilter("ignore")
        ours = ready(own_programs(module, work), images)
        peers = ready(peer_programs(module, work, Path(name)), images)
        seconds = alternating({**ours, **peers}, images, rounds)
    print("| program | ms, median | lowest to highest | images/s | against eager float32 |")
    print("| --- | --- | --- | --- | --- |")
    eager = seconds[EAGER]
    for program, times in seconds.items():
        middle = statistics.median(times)
        ratio = statistics.median(one / other for one, other in zip(eager, times, strict=True))
        spread = f"{1000 * min(times):.1f} to {1000 * max(times):.1f}"
        print(f"| {program} | {1000 * middle:.1f} | {spread} | {work.batch / middle:.1f} | {ratio:.2f} |")
    print_floor(module, images, {program: statistics.median(seconds[program]) for program in ours})
    return [compared(work, mine, peer, seconds) for mine in ours for peer in peers]


def compared(work: Work, mine: str, peer: str, seconds: dict[str, list[float]]) -> Result:
    """One program of ours against one peer, from the rounds that both ran in."""
    from scripts.benchmark import Result

    ratios = sorted(theirs / own for own, theirs in zip(seconds[mine], seconds[peer], strict=True))
    middles = (statistics.median(seconds[mine]), statistics.median(seconds[peer]))
    return Result(f"{work}: {mine}", peer, *middles, statistics.median(ratios), ratios[0], ratios[-1])


EAGER = "torchvision eager float32"


def own_programs(module: nn.Module, work: Work) -> dict[str, Callable[[], Program]]:
    """What this library makes of the module; each is built by a call."""
    from convnets_torch.engines import engine
    from convnets_torch.runtime import Precision, dtype_of, prepare

    def prepared(precision: Precision, compiled: bool = False) -> Program:
        import torch

        made = prepare(module, device="cpu", precision=precision, compiled=compiled)
        dtype = dtype_of(precision, torch.device("cpu"))
        return lambda images: made(images.to(dtype)).float()

    best: Precision = "float32" if work.float32_only else "auto"
    programs: dict[str, Callable[[], Program]] = {"ours, prepare float32": partial(prepared, "float32")}
    if not work.float32_only:
        programs["ours, prepare auto"] = partial(prepared, "auto")
    programs[f"ours, prepare {best} compiled"] = partial(prepared, best, compiled=True)
    programs[f"ours, engine openvino {best}"] = partial(
        engine, module, "openvino", precision="float32" if work.float32_only else "auto", size=224
    )
    return programs


def peer_programs(module: nn.Module, work: Work, folder: Path) -> dict[str, Callable[[], Program]]:
    """What others make of it; each is built by a call, which raises ImportError where its package is missing."""
    import torch

    def half(network: nn.Module) -> Program:
        import copy

        made = copy.deepcopy(network).to(torch.bfloat16, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return lambda images: made(images.to(torch.bfloat16, memory_format=torch.channels_last)).float()

    def compiled(dtype: torch.dtype) -> Program:
        import copy

        made = copy.deepcopy(module).to(dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        program: Any = torch.compile(made, options={"freezing": True})
        return lambda images: program(images.to(dtype, memory_format=torch.channels_last)).float()

    def timm(name: str) -> nn.Module:
        library: Any = importlib.import_module("timm")
        made: nn.Module = library.create_model(name, pretrained=False).eval()
        return made

    programs: dict[str, Callable[[], Program]] = {EAGER: lambda: module}
    if not work.float32_only:
        programs["torchvision eager bfloat16 channels-last"] = lambda: half(module)
    dtype = torch.float32 if work.float32_only else torch.bfloat16
    programs[f"torch.compile freezing {str(dtype).removeprefix('torch.')}"] = partial(compiled, dtype)
    if (name := work.timm) is not None:
        programs["timm eager float32"] = lambda: timm(name)
        if not work.float32_only:
            programs["timm eager bfloat16 channels-last"] = lambda: half(timm(name))
    programs["ONNX Runtime float32"] = partial(onnx_program, module, folder / "x.onnx")
    programs["OpenVINO float32"] = partial(openvino_program, module, work.batch, "f32")
    if not work.float32_only:
        programs["OpenVINO bfloat16"] = partial(openvino_program, module, work.batch, "bf16")
    return programs


def onnx_program(module: nn.Module, file: Path) -> Program:
    """As its own documentation has it: exported by PyTorch, a session on the CPU, defaults."""
    import torch

    onnxruntime: Any = importlib.import_module("onnxruntime")
    importlib.import_module("onnxscript")
    example = torch.zeros(2, 3, 224, 224)
    batch = ({0: torch.export.Dim("batch")},)
    made = torch.onnx.export(module, (example,), dynamo=True, dynamic_shapes=batch, input_names=["x"], verbose=False)
    assert made is not None
    made.save(file, external_data=False)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"x": images.numpy()})


def openvino_program(module: nn.Module, batch: int, precision: str) -> Program:
    """At its best: a fixed batch, one stream, the precision asked for."""
    import torch

    openvino: Any = importlib.import_module("openvino")
    model = openvino.convert_model(torch.export.export(module, (torch.zeros(batch, 3, 224, 224),), strict=False))
    options = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    made = openvino.Core().compile_model(model, "CPU", options)
    return lambda images: made([images.numpy()])


def ready(programs: dict[str, Callable[[], Program]], images: Tensor) -> dict[str, Program]:
    """Built and run twice; those whose package is missing are named and left out."""
    made = {}
    for name, build in programs.items():
        try:
            program = build()
        except ImportError as error:
            print(f"{name}: left out ({error})")
            continue
        program(images)
        program(images)
        made[name] = program
    return made


def alternating(programs: dict[str, Program], images: Tensor, rounds: int) -> dict[str, list[float]]:
    """Seconds of each program in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(rounds):
        names = list(programs)
        for name in names if number % 2 else reversed(names):
            start = time.perf_counter()
            programs[name](images)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def print_floor(module: nn.Module, images: Tensor, ours: dict[str, float]) -> None:
    """The least time that the machine allows, and how far ours are from it."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from convnets_torch.runtime import dtype_of

    with FlopCounterMode(display=False) as counter:
        module(images)
    operations = counter.get_total_flops()
    numbers = sum(parameter.numel() for parameter in module.parameters())
    bandwidth = memory_rate()
    print(f"\n{operations / 1e9:.1f} GFLOP; memory is read at {bandwidth / 1e9:.1f} GB/s")
    for dtype in (torch.float32, torch.bfloat16):
        rate = matrix_rate(dtype)
        floor = max(operations / rate, numbers * dtype.itemsize / bandwidth)
        kind = str(dtype).removeprefix("torch.")
        print(f"{kind}: {rate / 1e9:.0f} GFLOP/s in the best matrix product; floor {1000 * floor:.1f} ms")
        for name, middle in ours.items():
            if dtype == (torch.float32 if "float32" in name else dtype_of("auto", torch.device("cpu"))):
                print(f"  {name} takes {middle / floor:.2f} of it")


def matrix_rate(dtype: torch.dtype) -> float:
    """Operations a second in the fastest of several matrix products."""
    import torch

    best = 0.0
    for rows, inner, columns in ((1024, 1024, 1024), (2048, 2048, 2048), (3136, 4608, 512), (4096, 1024, 1024)):
        one, other = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
        for _ in range(12):
            start = time.perf_counter()
            one @ other
            best = max(best, 2 * rows * inner * columns / (time.perf_counter() - start))
    return best


def memory_rate() -> float:
    """Bytes a second in the fastest of several sums over 256 MB."""
    import torch

    numbers = torch.ones(64_000_000)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        numbers.sum()
        best = max(best, 256e6 / (time.perf_counter() - start))
    return best


def print_machine() -> None:
    """What the figures depend on."""
    import torch

    processor, flags = platform.processor() or platform.machine(), ""
    if Path("/proc/cpuinfo").exists():
        lines = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
        facts = {key.strip(): value.strip() for key, value in lines.items()}
        processor, flags = facts.get("model name", processor), facts.get("flags", "")
    elif platform.system() == "Darwin":
        asked = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        processor = asked.stdout.strip() or processor
    known = {"amx_tile": "AMX", "amx_bf16": "AMX-BF16", "avx512_bf16": "AVX512-BF16", "avx512f": "AVX512"}
    found = [word for flag, word in known.items() if flag in flags.split()]
    print(f"{processor}; {', '.join(found) or 'none of AMX, AVX512'}; {torch.get_num_threads()} threads of torch")
    for name in ("torch", "torchvision", "timm", "onnxruntime", "openvino"):
        try:
            print(f"{name} {importlib.import_module(name).__version__}", end="; ")
        except ImportError:
            print(f"{name} is not installed", end="; ")
    print()
